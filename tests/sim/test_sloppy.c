/* SPDX-License-Identifier: MIT
 *
 * test_sloppy.c -- writes of a sloppy keyspace where home replicas are gone: who stands in for
 * them, what counts, and what becomes of it when they are back. Nodes on the simulated link: small
 * stories, then seeds.
 *
 * A seed is a cluster of five nodes whose clients write and delete a few keys with W = 2 of N = 3
 * while up to two nodes at once are gone. Nodes lose power or their process. At the end all is
 * healed, and once no hint waits:
 *
 *   S1  A write that was acknowledged lies on a home replica, or a newer one does.
 *   S2  All home replicas of a key have the same. Excused: keys of which a write's coordinator
 *       crashed before its calls had ended (nobody may know who has missed it).
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../seeds.h"
#include "base/hash.h"
#include "cluster/hints_internal.h"
#include "lsm/batch.h"
#include "replica_world.h"

#define NODES  5u
#define HOMES  WORLD_REPLICAS
#define STRICT 1u /* the keyspace that is not sloppy; 0 is */
#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 4u
#else
#define SEED_COUNT 40u
#endif

/* ---- the cluster ---- */

/* Keyspace 0 is sloppy, the other one is not. */
static void
cluster_open(u64 seed, u32 members, u8 write_quorum)
{
    world_open(seed, members, members, 1);
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = STRICT};
    set.options = world.topology->keyspaces[0];
    set.options.write_quorum = write_quorum;
    snprintf(set.options.name, sizeof(set.options.name), "%u", STRICT);
    world_apply(set);
    set.options.sloppy = true;
    set.keyspace = 0;
    snprintf(set.options.name, sizeof(set.options.name), "0");
    world_apply(set);
}

/* ---- keys and operations ---- */

static u32
home(u32 key, u32 at)
{
    struct topology_row row;
    world_row(key, &row);
    return row.write[at] - 1;
}

/* The at-th of the nodes that hold no replica of the key. */
static u32
other(u32 key, u32 at)
{
    struct topology_row row;
    world_row(key, &row);
    for (u32 node = 0; node < world.rig.node_count; node++) {
        bool is_home = false;
        for (u32 i = 0; i < row.count; i++)
            is_home = is_home || row.write[i] == node + 1;
        if (!is_home && at-- == 0) return node;
    }
    CHECK(false);
    return 0;
}

/* Of the key's homes; that one is returned. */
static u32
crash_all_but_first(u32 key)
{
    for (u32 i = 1; i < HOMES; i++)
        world_crash(home(key, i));
    return home(key, 0);
}

/* By the keyspace's R, through that node. */
struct reading {
    u32 key;
    enum replicate_level level;
    status st;
    u64 id;
};

static void
read_run(struct peer_rig_node *node, void *arg)
{
    struct reading *reading = arg;
    struct replica_app *app = world_app(node);
    struct bytes key = world_key(reading->key);
    struct replicate_value value;
    reading->st = replicate_read(app->replicator, reading->level, 0, hash_token(key), key,
                                 io_now_ns() + SECONDS(1), &value);
    if (ok(reading->st) && value.found) reading->id = load_u64(value.value.data);
    replicate_value_release(&value);
}

static struct reading
read_at(u32 node, u32 key, enum replicate_level level)
{
    struct reading reading = {.key = key, .level = level};
    CHECK(peer_rig_do(&world.rig, node, 0, read_run, &reading));
    return reading;
}

static struct replicate_stats
figures_of(u32 node)
{
    struct replicate_stats stats;
    replicate_stats_get(world.apps[node][0].replicator, &stats);
    return stats;
}

static void
story_begin(u32 members, u8 write_quorum)
{
    cluster_open(1, members, write_quorum);
    /* What is not durable yet is gone. */
    peer_rig_open(&world.rig);
    sim_crash_keeps_all_set(world.rig.sim, false);
    peer_rig_run(&world.rig, SECONDS(2)); /* REPLICATE_QUIET_MS_MAX */
}

/* ---- stories ---- */

static void
two_of_three_are_gone_and_two_nodes_have_the_write(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = home(key, 0), gone[] = {home(key, 1), home(key, 2)};
    struct world_op before = {.node = first, .key = key, .id = 1};
    assert_true(ok(world_write(&before)));
    peer_rig_run(&world.rig, MS(200));
    assert_int_equal(figures_of(first).stood_in, 0); /* while W live nobody stands in */
    world_crash(gone[0]);
    struct world_op one = {.node = first, .key = key, .id = 2};
    assert_true(ok(world_write(&one)));
    assert_int_equal(figures_of(first).stood_in, 0);
    world_crash(gone[1]);

    struct world_op write = {.node = first, .key = key, .id = 3};
    assert_true(ok(world_write(&write)));
    assert_int_equal(figures_of(first).stood_in, 1);
    peer_rig_run(&world.rig, MS(200)); /* the other one has it, too, a moment later */
    for (u32 i = 0; i < 2; i++) {
        struct hints_stats stats = world_hints_of(other(key, i));
        assert_int_equal(stats.kept, 1);
        assert_int_equal(stats.waiting, 1);
        assert_int_equal(world_look_at(other(key, i), key).version, 0); /* as a hint */
    }

    /* A stand-in loses its power, and the coordinator is gone: what was acknowledged is there. */
    world_crash(other(key, 0));
    peer_rig_run(&world.rig, MS(100));
    world_start(other(key, 0));
    world_crash(first);
    for (u32 i = 0; i < 2; i++)
        world_start(gone[i]);
    peer_rig_run(&world.rig, SECONDS(10));
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(world_look_at(gone[i], key).id, 3);
    world_start(first);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    for (u32 i = 0; i < HOMES; i++)
        assert_int_equal(world_look_at(home(key, i), key).version, write.version);
    assert_int_equal(read_at(gone[0], key, REPLICATE_DEFAULT).id, 3);
    world_close();
}

static void
reads_are_of_home_replicas(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 5;
    (void)crash_all_but_first(key);
    struct world_op write = {.node = home(key, 0), .key = key, .id = 3};
    assert_true(ok(world_write(&write)));
    struct reading reading = read_at(home(key, 0), key, REPLICATE_DEFAULT);
    assert_true(status_is(reading.st, ST_UNAVAILABLE));
    assert_int_equal(read_at(home(key, 0), key, REPLICATE_ONE).id, 3);
    world_start(home(key, 1));
    world_start(home(key, 2));
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    assert_int_equal(read_at(home(key, 2), key, REPLICATE_DEFAULT).id, 3);
    world_close();
}

static void
nobody_stands_in_where_it_was_not_allowed(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = crash_all_but_first(key);
    struct world_op strict = {.node = first, .key = key, .id = 2, .keyspace = STRICT};
    assert_true(status_is(world_write(&strict), ST_UNAVAILABLE));
    const enum replicate_level levels[] = {REPLICATE_QUORUM, REPLICATE_ALL, REPLICATE_HOMES};
    for (u32 i = 0; i < ARRAY_COUNT(levels); i++) {
        struct world_op op = {.node = first, .key = key, .id = 3, .level = levels[i]};
        assert_true(status_is(world_write(&op), ST_UNAVAILABLE));
    }
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(world_hints_of(other(key, i)).kept, 0);
    assert_int_equal(world_look_at(first, key).version, 0);
    /* One is always enough of it by itself. */
    struct world_op one = {.node = first, .key = key, .id = 4, .level = REPLICATE_ONE};
    assert_true(ok(world_write(&one)));
    struct world_op number = {
        .node = first, .key = key, .id = 5, .level = REPLICATE_COUNT_BASE + 3};
    assert_true(ok(world_write(&number)));
    peer_rig_run(&world.rig, MS(200));
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(world_hints_of(other(key, i)).kept, 1);
    world_close();
}

/* W confirmations are those of W nodes. */
static void
a_node_counts_once_however_many_are_gone(void **state)
{
    (void)state;
    story_begin(4, 3);
    const u32 key = 3;
    u32 first = crash_all_but_first(key);
    struct world_op three = {.node = first, .key = key, .id = 2};
    assert_true(status_is(world_write(&three), ST_UNAVAILABLE));
    assert_int_equal(world_hints_of(other(key, 0)).kept, 0);
    struct world_op two = {.node = first, .key = key, .id = 3, .level = REPLICATE_COUNT_BASE + 2};
    assert_true(ok(world_write(&two)));
    peer_rig_run(&world.rig, MS(200));
    assert_int_equal(world_hints_of(other(key, 0)).kept, 1);
    world_close();

    /* Nor does it count for another stand-in, which does not answer. */
    story_begin(5, 3);
    (void)crash_all_but_first(key);
    peer_rig_isolate(&world.rig, other(key, 1)); /* nobody knows */
    struct world_op silent = {.node = home(key, 0), .key = key, .id = 2};
    assert_true(status_is(world_write(&silent), ST_UNKNOWN_OUTCOME));
    assert_int_equal(world_hints_of(other(key, 0)).kept, 1);
    world_close();
}

static void
a_stand_in_without_room_does_not_count(void **state)
{
    (void)state;
    cluster_open(1, 5, 3);
    const u32 key = 3;
    world.disk_bytes_max[other(key, 1)] = 10;
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2));
    u32 first = crash_all_but_first(key);
    struct world_op three = {.node = first, .key = key, .id = 2};
    assert_true(status_is(world_write(&three), ST_UNKNOWN_OUTCOME));
    struct hints_stats full = world_hints_of(other(key, 1));
    assert_true(full.kept == 0 && full.waiting == 0 && full.repairs_due == 0);
    struct world_op two = {.node = first, .key = key, .id = 3, .level = REPLICATE_COUNT_BASE + 2};
    assert_true(ok(world_write(&two)));
    world_close();
}

/* The answers wait for the logs: a power cut of all just after them takes nothing back. */
static void
all_lose_their_power_just_after_the_answer(u64 seed)
{
    cluster_open(seed, 5, 2);
    world.rig.options.disk.latency_ns_min = MS(20);
    world.rig.options.disk.latency_ns_max = MS(30);
    peer_rig_open(&world.rig);
    sim_crash_keeps_all_set(world.rig.sim, false);
    peer_rig_run(&world.rig, SECONDS(3));
    const u32 key = 3;
    u32 first = home(key, 0), others[] = {other(key, 0), other(key, 1)};
    (void)crash_all_but_first(key);
    struct world_op write = {.node = first, .key = key, .id = 2};
    assert_true(ok(world_write(&write)));
    world_crash(others[0]);
    world_crash(others[1]);
    world_crash(first); /* for good, as far as this story goes */
    for (u32 i = 0; i < 2; i++) {
        world_start(others[i]);
        world_start(home(key, i + 1));
    }
    peer_rig_run(&world.rig, SECONDS(10));
    /* By that of the two which was one of W at least. */
    assert_true(world_look_at(home(key, 1), key).id == 2 ||
                world_look_at(home(key, 2), key).id == 2);
    world_start(first);
    world_close();
}

static void
what_a_stand_in_has_answered_survives_its_power_cut(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 8; seed++) /* what a power cut leaves is drawn */
        all_lose_their_power_just_after_the_answer(seed);
}

/* Of what has grown too old who holds no replica has nothing to tell, for good. */
static void
after_its_window_a_stand_in_is_rid_of_it(void **state)
{
    (void)state;
    cluster_open(1, 5, 2);
    world.window_ms = 20000;
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2));
    const u32 key = 3;
    u32 first = crash_all_but_first(key);
    struct world_op write = {.node = first, .key = key, .id = 2};
    assert_true(ok(world_write(&write)));
    peer_rig_run(&world.rig, SECONDS(40));
    for (u32 i = 0; i < 2; i++) {
        struct hints_stats stats = world_hints_of(other(key, i));
        assert_true(stats.expired == 1 && stats.waiting == 0 && stats.repairs_due == 0);
    }
    /* Who coordinated it holds it, and knows who needs it. */
    assert_int_equal(world_hints_of(first).repairs_due, 2);
    world_close();
}

/* ---- what may be collected ---- */

/* A put that stand-ins have for those who were gone, and a deletion that all replicas have: it is
 * not collected before the stand-ins are rid of what it hides. */
static void
what_was_deleted_stays_so_though_a_stand_in_is_late(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = crash_all_but_first(key);
    struct world_op put = {.node = first, .key = key, .id = 2};
    assert_true(ok(world_write(&put)));
    peer_rig_run(&world.rig, UNKNOWN_NS);
    /* The stand-ins do not reach those who are back. */
    for (u32 i = 0; i < 2; i++)
        for (u32 k = 1; k < HOMES; k++)
            peer_rig_cut(&world.rig, other(key, i), home(key, k));
    world_start(home(key, 1));
    world_start(home(key, 2));
    struct world_op gone = {.node = first, .key = key};
    assert_true(ok(world_write(&gone)));
    peer_rig_run(&world.rig, SECONDS(60));
    for (u32 i = 0; i < HOMES; i++)
        assert_int_equal(world_look_at(home(key, i), key).version, gone.version);
    assert_int_equal(world_hints_of(first).waiting, 0);
    u64 below = world_oldest(replicator_oldest_to_come);
    assert_true(below > 0 && below <= put.version);
    for (u32 i = 0; i < HOMES; i++)
        world_collect(home(key, i), below);
    peer_rig_heal_all(&world.rig);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(30)));
    for (u32 i = 0; i < HOMES; i++)
        assert_int_equal(world_look_at(home(key, i), key).version, gone.version);
    /* Now nothing is in the way any more. */
    peer_rig_run(&world.rig, SECONDS(40));
    assert_true(world_oldest(replicator_oldest_to_come) > gone.version);
    world_close();
}

/* What is older than a stand-in has told that anything is to come from it is in nobody's account:
 * it is not kept. (A clock that is behind is as good as a way that is long.) */
static void
what_comes_to_a_stand_in_too_late_is_refused(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = home(key, 0), stand_in = other(key, 0);
    (void)crash_all_but_first(key);
    world.down[other(key, 1)] = true;
    sim_node_clock_step(world.rig.nodes[first].machine, -150 * 1000);
    peer_rig_run(&world.rig, SECONDS(120));
    u64 told = world_oldest_of(stand_in, replicator_oldest_to_come);
    struct world_op late = {.node = first, .key = key, .id = 2};
    assert_true(status_is(world_write(&late), ST_UNKNOWN_OUTCOME));
    assert_true(world_look_at(first, key).version < told);
    assert_true(world_hints_of(stand_in).kept == 0 && world_hints_of(stand_in).waiting == 0);
    u64 again = world_oldest_of(stand_in, replicator_oldest_to_come);
    assert_true(again >= told);
    /* In time it is, and what is told does not pass it. */
    sim_node_clock_step(world.rig.nodes[first].machine, 150 * 1000);
    struct world_op write = {.node = first, .key = key, .id = 3};
    assert_true(ok(world_write(&write)));
    peer_rig_run(&world.rig, SECONDS(90));
    again = world_oldest_of(stand_in, replicator_oldest_to_come);
    assert_true(again >= told && again <= write.version);
    world_close();
}

/* ---- strangers' bytes ---- */

/* What is asked of a stand-in, with some bits turned. */
static void
hostile_run(struct peer_rig_node *node, void *arg)
{
    u32 *statuses = arg;
    struct prng prng;
    prng_init(&prng, 5);
    for (u32 i = 0; i < 2000; i++) {
        u8 body[256];
        struct bytes key = world_key(3);
        struct lsm_batch batch;
        lsm_batch_init(&batch, io_budget());
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES_LITERAL("value"), 0));
        /* Each of a version of its own, as coordinators have it. */
        struct peer_write write = {.version = hlc_version_at(io_wall_ms()) + 2 * i,
                                   .partition = token_partition(hash_token(key), WORLD_PARTITIONS),
                                   .count = 1,
                                   .flags = PEER_WRITE_STAND_IN,
                                   .session = home(3, 1) + 1};
        size_t size = peer_write_head(&write, body);
        memcpy(body + size, batch.ops.data, batch.ops.size);
        size += batch.ops.size;
        lsm_batch_deinit(&batch);
        for (u64 bits = i % 7 == 0 ? 0 : prng_range(&prng, 1, 2); bits > 0; bits--)
            body[prng_range(&prng, 8, size - 1)] ^= (u8)(1u << prng_below(&prng, 8));
        struct native_header header = {.opcode = PEER_WRITE,
                                       .epoch = prng_chance(&prng, 1, 9) ? 1 : 99,
                                       .keyspace = (u16)(prng_chance(&prng, 1, 9) ? 9 : 0)};
        struct bytes part = BYTES(body, size);
        statuses[replica_rig_ask(node, other(3, 0) + 1, 0, &header, &part, 1)]++;
    }
}

static void
a_stand_in_believes_nobody(void **state)
{
    (void)state;
    story_begin(5, 2);
    u32 statuses[NATIVE_ST_MAX + 1] = {0};
    assert_true(peer_rig_do(&world.rig, home(3, 0), 0, hostile_run, statuses));
    assert_true(statuses[NATIVE_ST_OK] > 100 && statuses[NATIVE_ST_INVALID] > 300);
    assert_true(statuses[NATIVE_ST_WRONG_EPOCH] > 100);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(30)));
    for (u32 key = 0; key < WORLD_KEYS_MAX; key++) /* of others nothing came in */
        for (u32 i = 0; i < HOMES && key != 3; i++)
            assert_int_equal(world_look_at(home(key, i), key).version, 0);
    world_close();
}

/* ---- seeds ---- */

static u64 stood_in;
#define SEED_KEYS 6u

static void
op_begin(void)
{
    struct prng *prng = &world.prng;
    u32 key = (u32)prng_below(prng, SEED_KEYS), node = home(key, (u32)prng_below(prng, HOMES));
    if (!world_runs(node)) return;
    world_op_begin(node, key, prng_chance(prng, 1, 4) ? 0 : world.op_count + 1);
}

static void
nodes_turn(void)
{
    struct prng *prng = &world.prng;
    u32 away = world_nodes_turn();
    u32 node = (u32)prng_below(prng, NODES);
    if (away >= 2 || !world_runs(node) || !prng_chance(prng, 1, 8)) return;
    stood_in += figures_of(node).stood_in;
    struct world_crash_times times = {.away_ms_min = 100, .away_ms_max = 6000, .known_ms_max = 200};
    world_crash_begin(node, times);
}

static void
judge_key(u32 key)
{
    const struct world_op *acknowledged = world_acknowledged(key);
    bool excused = false;
    for (u32 i = 0; i < world.op_count; i++)
        excused = excused || (world.ops[i].key == key && world.ops[i].excused);
    u64 newest = 0;
    struct world_look looks[HOMES];
    for (u32 i = 0; i < HOMES; i++) {
        looks[i] = world_look_at(home(key, i), key);
        newest = MAX(newest, looks[i].version);
    }
    u64 needed = acknowledged == NULL ? 0 : acknowledged->version;
    /* Of a coordinator that crashed nobody may know who has missed its write; but some have it. */
    if (newest < needed)
        VIOLATED("key %u: %llu (%llu) was acknowledged, and all have %llu at most", key,
                 (unsigned long long)needed, (unsigned long long)acknowledged->id,
                 (unsigned long long)newest);
    for (u32 i = 0; i < HOMES && !excused; i++)
        if (looks[i].version != newest)
            VIOLATED("key %u: node %u has %llu (%llu), others %llu; acknowledged %llu", key,
                     home(key, i) + 1, (unsigned long long)looks[i].version,
                     (unsigned long long)looks[i].id, (unsigned long long)newest,
                     (unsigned long long)needed);
}

static bool
seed_run(u64 seed)
{
    cluster_open(seed, NODES, 2);
    struct prng *prng = &world.prng;
    world_draw();
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2));
    u32 most = (u32)prng_range(prng, 60, 200);
    for (u32 turn = 0; turn < 2000 && world.op_count < most; turn++) {
        if (prng_chance(prng, 1, 2)) op_begin();
        nodes_turn();
        peer_rig_run(&world.rig, MS(prng_below(prng, prng_chance(prng, 1, 10) ? 1500 : 60)));
    }
    world_heal();
    for (u32 key = 0; key < SEED_KEYS; key++)
        judge_key(key);
    for (u32 i = 0; i < NODES; i++)
        stood_in += figures_of(i).stood_in;
    return world_judge();
}

static void
what_was_acknowledged_comes_home_whoever_crashes(void **state)
{
    (void)state;
    struct seeds seeds = seeds_chosen(SEED_COUNT);
    stood_in = 0;
    u32 failed = seeds_run(&seeds, 5, seed_run);
    if (getenv("SIM_STATS") != NULL)
        fprintf(stderr, "stood in %llu\n", (unsigned long long)stood_in);
    assert_int_equal(failed, 0);
    if (seeds_count(&seeds) < SEED_COUNT) return;
    assert_true(stood_in > 20); /* not left out by all seeds */
}

/* ---- who counts ---- */

/* Nothing fits into the store any more. */
static void
fill_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct replica_app *app = world_app(node);
    static u8 value[60000];
    struct bytes key = world_key(WORLD_KEYS_MAX - 1);
    status st = ST_OK;
    for (u32 i = 0; ok(st) && i < 600; i++) {
        struct lsm_batch batch;
        lsm_batch_init(&batch, io_budget());
        CHECK(lsm_batch_put(&batch, STRICT, hash_token(key), key, BYTES(value, sizeof(value)), 0));
        batch.version = hlc_next(&app->replicator->hlc, io_wall_ms());
        u64 seq;
        st = lsm_write(app->lsm, &batch, &seq);
        lsm_batch_deinit(&batch);
    }
    CHECK(!ok(st));
}

/* What only stand-ins have is on no replica, and is nowhere once their hints are too old. */
static void
stand_ins_alone_acknowledge_nothing(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = home(key, 0);
    struct world_op before = {.node = first, .key = key, .id = 1};
    assert_true(ok(world_write(&before)));
    peer_rig_run(&world.rig, MS(200));
    struct sim_disk *disk = sim_node_disk(world.rig.nodes[first].machine);
    sim_disk_capacity_set(disk, sim_disk_used_bytes(disk));
    CHECK(peer_rig_do(&world.rig, first, 0, fill_run, NULL));
    world_crash(home(key, 1));
    world_crash(home(key, 2));
    struct world_op write = {.node = first, .key = key, .id = 2};
    assert_true(status_is(world_write(&write), ST_UNKNOWN_OUTCOME));
    assert_int_equal(figures_of(first).stood_in, 0);
    assert_int_equal(world_look_at(first, key).id, 1);
    peer_rig_run(&world.rig, MS(200));
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(world_hints_of(other(key, i)).kept, 1);
    sim_disk_capacity_set(disk, GIB(64));
    world_close();
}

#define FEW 3u /* a keyspace of two replicas */

/* A key of FEW whose third holder, no replica of it, would be the first to stand in. */
static u32
key_of_a_third_holder(void)
{
    for (u32 key = 0; key < WORLD_KEYS_MAX; key++) {
        u32 partition = token_partition(hash_token(world_key(key)), WORLD_PARTITIONS);
        struct topology_row row;
        topology_row(world.topology, FEW, partition, &row);
        u32 third = home(key, 2) + 1, chosen = 0;
        for (u32 i = 0; chosen == 0 && i < NODES; i++) {
            chosen = world.topology->members[(partition + i) % NODES].number;
            if (chosen == row.write[0] || chosen == row.write[1]) chosen = 0;
        }
        if (chosen == third) return key;
    }
    CHECK(false);
    return 0;
}

/* Whoever holds the partition may coordinate; a replica of the keyspace it need not be. What it has
 * in its own store is no hint then, and nobody reads it there. */
static void
the_coordinator_stands_in_for_nobody(void **state)
{
    (void)state;
    cluster_open(1, 5, 2);
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = FEW};
    set.options = world.topology->keyspaces[0];
    set.options.replicas = set.options.write_quorum = 2;
    set.options.read_quorum = 1;
    snprintf(set.options.name, sizeof(set.options.name), "%u", FEW);
    world_apply(set);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2));
    const u32 key = key_of_a_third_holder();
    u32 third = home(key, 2);
    struct topology_row row;
    topology_row(world.topology, FEW, token_partition(hash_token(world_key(key)), WORLD_PARTITIONS),
                 &row);
    world_crash(row.write[0] - 1);
    struct world_op one = {.node = third, .key = key, .id = 2, .keyspace = FEW};
    assert_true(ok(world_write(&one)));
    peer_rig_run(&world.rig, MS(200));
    u64 kept = 0;
    for (u32 i = 0; i < NODES; i++)
        kept += world_runs(i) ? world_hints_of(i).kept : 0;
    assert_int_equal(kept, 1);
    assert_int_equal(world_hints_of(third).kept, 0);
    world_crash(row.write[1] - 1);
    struct world_op two = {.node = third, .key = key, .id = 3, .keyspace = FEW};
    assert_true(status_is(world_write(&two), ST_UNAVAILABLE));
    world_close();
}

static void
topology_run(struct peer_rig_node *node, void *arg)
{
    struct replica_app *app = world_app(node);
    replicator_topology_set(app->replicator, arg, node->index + 1);
}

/* A coordinator that has not heard of it has no writes acknowledged by stand-ins that have. */
static void
nobody_stands_in_once_it_is_not_allowed_any_more(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = home(key, 0);
    world_crash(home(key, 1));
    world_crash(home(key, 2));
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = 0};
    set.options = world.topology->keyspaces[0];
    set.options.sloppy = false;
    world_topology_keep();
    world_apply(set);
    for (u32 i = 0; i < 2; i++)
        CHECK(peer_rig_do(&world.rig, other(key, i), 0, topology_run, world.topology));
    struct world_op behind = {.node = first, .key = key, .id = 2};
    assert_true(status_is(world_write(&behind), ST_UNKNOWN_OUTCOME)); /* it is in its own store */
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(world_hints_of(other(key, i)).kept, 0);
    CHECK(peer_rig_do(&world.rig, first, 0, topology_run, world.topology));
    struct world_op after = {.node = first, .key = key, .id = 3};
    assert_true(status_is(world_write(&after), ST_UNAVAILABLE));
    world_close();
}

static u32 waited_for;

static void
note_who_is_waited_for(void *arg, u32 member)
{
    (void)arg;
    waited_for |= 1u << member;
}

/* A node that is no partner may be dead for seconds before it is known. */
static void
of_stand_ins_it_is_asked_whether_they_live(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = home(key, 0);
    waited_for = 0;
    world.apps[first][0].replicator->options.waits_for = note_who_is_waited_for;
    world_crash(home(key, 1));
    struct world_op one = {.node = first, .key = key, .id = 1};
    assert_true(ok(world_write(&one)));
    assert_int_equal(waited_for, 0); /* partners are pinged anyway */
    world_crash(home(key, 2));
    struct world_op two = {.node = first, .key = key, .id = 2};
    assert_true(ok(world_write(&two)));
    assert_int_equal(waited_for, 2u << other(key, 0) | 2u << other(key, 1));
    world_close();
}

int
main(void)
{
    signal(SIGABRT, world_on_abort);
    const struct CMUnitTest stories[] = {
        cmocka_unit_test(two_of_three_are_gone_and_two_nodes_have_the_write),
        cmocka_unit_test(reads_are_of_home_replicas),
        cmocka_unit_test(nobody_stands_in_where_it_was_not_allowed),
        cmocka_unit_test(a_node_counts_once_however_many_are_gone),
        cmocka_unit_test(a_stand_in_without_room_does_not_count),
        cmocka_unit_test(what_a_stand_in_has_answered_survives_its_power_cut),
        cmocka_unit_test(after_its_window_a_stand_in_is_rid_of_it),
        cmocka_unit_test(what_was_deleted_stays_so_though_a_stand_in_is_late),
        cmocka_unit_test(what_comes_to_a_stand_in_too_late_is_refused),
        cmocka_unit_test(a_stand_in_believes_nobody),
        cmocka_unit_test(stand_ins_alone_acknowledge_nothing),
        cmocka_unit_test(the_coordinator_stands_in_for_nobody),
        cmocka_unit_test(nobody_stands_in_once_it_is_not_allowed_any_more),
        cmocka_unit_test(of_stand_ins_it_is_asked_whether_they_live),
    };
    const struct CMUnitTest seeds[] = {
        cmocka_unit_test(what_was_acknowledged_comes_home_whoever_crashes),
    };
    int failed = 0;
    if (!seeds_is_one()) failed += cmocka_run_group_tests_name("stories", stories, NULL, NULL);
    failed += cmocka_run_group_tests_name("seeds", seeds, NULL, NULL);
    return failed;
}
