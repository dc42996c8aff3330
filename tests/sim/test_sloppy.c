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
#include "cluster/replicate_internal.h"
#include "io/file.h"
#include "lsm/batch.h"
#include "replica_rig.h"

#define MS(n)      ((u64)(n)*NS_PER_MS)
#define SECONDS(n) ((u64)(n)*NS_PER_S)

#define PARTITIONS 16u
#define NODES      5u
#define HOMES      3u
#define KEYS_MAX   64u
#define OPS_MAX    300u
#define STRICT     1u /* the keyspace that is not sloppy; 0 is */
/* Longer than a write's calls go on. */
#define UNKNOWN_NS (WRITE_CALL_NS_MIN + MS(300))
#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 10u
#else
#define SEED_COUNT 40u
#endif

/* ---- the cluster ---- */

struct app {
    struct lsm *lsm;
    struct hints *hints;
    struct replicator *replicator;
};

struct world {
    struct peer_rig rig;
    struct prng prng;
    u64 seed;
    struct budget budget; /* of topologies */
    struct topology *topology;
    bool down[NODES]; /* as far as anybody knows */
    u64 disk_bytes_max[NODES];
    u64 window_ms;
    struct app apps[NODES][PEER_RIG_SHARDS_MAX];
    char violation[512];
};

static struct world world; /* large */

#define VIOLATED(...)                                                                              \
    do {                                                                                           \
        if (world.violation[0] == '\0')                                                            \
            snprintf(world.violation, sizeof(world.violation), __VA_ARGS__);                       \
    } while (0)

static bool
node_alive(void *arg, u32 member)
{
    (void)arg;
    return !world.down[member - 1];
}

static MAY_YIELD status
node_main(struct peer_rig_node *node)
{
    u32 shard = io_shard_index();
    struct app *app = &world.apps[node->index][shard];
    *app = (struct app){0};
    char dir[32];
    snprintf(dir, sizeof(dir), "/store%u", shard);
    status st = replica_rig_store_open(dir, shard, node->rig->shard_count, MIB(2), &app->lsm);
    if (!ok(st)) return st;
    struct peers *peers;
    st = peer_rig_peers_open(node, &peers);
    if (!ok(st)) return st;
    struct hints_options kept = {.lsm = app->lsm,
                                 .peers = peers,
                                 .budget = io_budget(),
                                 .shard = shard,
                                 .alive = node_alive,
                                 .disk_bytes_max = world.disk_bytes_max[node->index],
                                 .window_ms = world.window_ms};
    while (!ok(st = hints_open(&kept, &app->hints))) /* a fiber may be refused by chance */
        fiber_sleep_ns(NS_PER_MS);
    struct replicator_options options = {.lsm = app->lsm,
                                         .peers = peers,
                                         .budget = io_budget(),
                                         .shard = shard,
                                         .alive = node_alive,
                                         .hints = app->hints};
    while (!ok(st = replicator_open(&options, &app->replicator)))
        fiber_sleep_ns(NS_PER_MS);
    replicator_topology_set(app->replicator, world.topology, node->index + 1);
    peer_rig_serve(node);
    replicator_close(app->replicator);
    hints_close(app->hints);
    app->replicator = NULL;
    app->hints = NULL;
    peers_close(peers);
    return lsm_close(app->lsm);
}

static bool
runs(u32 node)
{
    return peer_rig_runs(&world.rig, node);
}

/* Keyspace 0 is sloppy, the other one is not. */
static void
cluster_open(u64 seed, u32 members, u8 write_quorum)
{
    memset(&world, 0, sizeof(world));
    world.seed = seed;
    for (u32 i = 0; i < NODES; i++)
        world.disk_bytes_max[i] = MIB(64);
    prng_init(&world.prng, seed);
    world.rig = (struct peer_rig){.node_count = members, .shard_count = 1, .shard_main = node_main};
    sim_options_default(&world.rig.options, seed);
    world.rig.options.print_log = seeds_is_one();
    budget_init(&world.budget, "topologies", MIB(64), NULL);
    world.topology =
        replica_rig_grow(replica_rig_found(&world.budget, PARTITIONS, HOMES, 1), members, 1);
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = STRICT};
    set.options = world.topology->keyspaces[0];
    set.options.write_quorum = write_quorum;
    snprintf(set.options.name, sizeof(set.options.name), "%u", STRICT);
    world.topology = replica_rig_apply_on(world.topology, set);
    set.options.sloppy = true;
    set.keyspace = 0;
    snprintf(set.options.name, sizeof(set.options.name), "0");
    world.topology = replica_rig_apply_on(world.topology, set);
}

static void
cluster_close(void)
{
    peer_rig_close(&world.rig);
    replica_rig_free(world.topology);
}

/* ---- keys and operations ---- */

static struct bytes
key_of(u32 key)
{
    static char names[KEYS_MAX][24];
    int size = snprintf(names[key], sizeof(names[key]), "key:%u", (unsigned)key);
    return BYTES(names[key], size);
}

static void
row_of(u32 key, struct topology_row *out)
{
    topology_row(world.topology, 0, token_partition(hash_token(key_of(key)), PARTITIONS), out);
}

static u32
home(u32 key, u32 at)
{
    struct topology_row row;
    row_of(key, &row);
    return row.write[at] - 1;
}

/* The at-th of the nodes that hold no replica of the key. */
static u32
other(u32 key, u32 at)
{
    struct topology_row row;
    row_of(key, &row);
    for (u32 node = 0; node < world.rig.node_count; node++) {
        bool is_home = false;
        for (u32 i = 0; i < row.count; i++)
            is_home = is_home || row.write[i] == node + 1;
        if (!is_home && at-- == 0) return node;
    }
    CHECK(false);
    return 0;
}

struct op {
    u32 node, key;
    u64 id; /* 0: a deletion */
    u64 begun_ns, deadline_ns;
    u16 keyspace;
    enum replicate_level level;
    bool ended, crashed;
    status st;
    u64 version; /* when it was acknowledged */
};

static void
op_run(struct peer_rig_node *node, void *arg)
{
    struct op *op = arg;
    struct app *app = &world.apps[node->index][io_shard_index()];
    struct bytes key = key_of(op->key);
    u8 bytes[8];
    store_u64(bytes, op->id);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    bool added = op->id == 0 ? lsm_batch_delete(&batch, op->keyspace, hash_token(key), key)
                             : lsm_batch_put(&batch, op->keyspace, hash_token(key), key,
                                             BYTES(bytes, sizeof(bytes)), 0);
    CHECK(added);
    op->st = replicate_write(app->replicator, op->level, &batch, UINT64_MAX,
                             io_now_ns() + op->deadline_ns, &op->version);
    lsm_batch_deinit(&batch);
    op->ended = true;
}

static status
op_do(struct op *op)
{
    if (op->deadline_ns == 0) op->deadline_ns = SECONDS(2);
    op->begun_ns = sim_now_ns(world.rig.sim);
    CHECK(peer_rig_do(&world.rig, op->node, 0, op_run, op));
    return op->st;
}

/* What a node's own store has; nobody is asked, and nothing is mended. */
struct look {
    u32 key;
    u64 version, id;
};

static void
look_run(struct peer_rig_node *node, void *arg)
{
    struct look *look = arg;
    struct app *app = &world.apps[node->index][io_shard_index()];
    struct bytes key = key_of(look->key);
    struct own_read own;
    CHECK(ok(own_read(app->replicator, 0, hash_token(key), key, &own)));
    look->version = own.version;
    if (!own.found) return;
    look->id = load_u64(own.value.value.data);
    lsm_value_release(&own.value);
}

static struct look
look_at(u32 node, u32 key)
{
    struct look look = {.key = key};
    CHECK(peer_rig_do(&world.rig, node, 0, look_run, &look));
    return look;
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
    struct app *app = &world.apps[node->index][io_shard_index()];
    struct bytes key = key_of(reading->key);
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

/* ---- hints and nodes ---- */

static struct hints_stats
hints_of(u32 node)
{
    struct hints_stats stats;
    hints_stats_get(world.apps[node][0].hints, &stats);
    return stats;
}

static struct replicate_stats
figures_of(u32 node)
{
    struct replicate_stats stats;
    replicate_stats_get(world.apps[node][0].replicator, &stats);
    return stats;
}

static bool
all_delivered(void *arg)
{
    (void)arg;
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (!runs(i) || world.apps[i][0].hints == NULL) return false;
        struct hints_stats stats = hints_of(i);
        if (!stats.loaded || stats.waiting > 0) return false;
    }
    return true;
}

static void
crash(u32 node)
{
    peer_rig_crash(&world.rig, node, false);
    world.down[node] = true;
}

static void
start(u32 node)
{
    peer_rig_start(&world.rig, node);
    world.down[node] = false;
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
    struct op before = {.node = first, .key = key, .id = 1};
    assert_true(ok(op_do(&before)));
    peer_rig_run(&world.rig, MS(200));
    assert_int_equal(figures_of(first).stood_in, 0); /* while W live nobody stands in */
    crash(gone[0]);
    struct op one = {.node = first, .key = key, .id = 2};
    assert_true(ok(op_do(&one)));
    assert_int_equal(figures_of(first).stood_in, 0);
    crash(gone[1]);

    struct op write = {.node = first, .key = key, .id = 3};
    assert_true(ok(op_do(&write)));
    assert_int_equal(figures_of(first).stood_in, 1);
    peer_rig_run(&world.rig, MS(200)); /* the other one has it, too, a moment later */
    for (u32 i = 0; i < 2; i++) {
        struct hints_stats stats = hints_of(other(key, i));
        assert_int_equal(stats.kept, 1);
        assert_int_equal(stats.waiting, 1);
        assert_int_equal(look_at(other(key, i), key).version, 0); /* as a hint */
    }

    /* A stand-in loses its power, and the coordinator is gone: what was acknowledged is there. */
    crash(other(key, 0));
    peer_rig_run(&world.rig, MS(100));
    start(other(key, 0));
    crash(first);
    for (u32 i = 0; i < 2; i++)
        start(gone[i]);
    peer_rig_run(&world.rig, SECONDS(10));
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(look_at(gone[i], key).id, 3);
    start(first);
    assert_true(peer_rig_run_until(&world.rig, all_delivered, NULL, SECONDS(20)));
    for (u32 i = 0; i < HOMES; i++)
        assert_int_equal(look_at(home(key, i), key).version, write.version);
    assert_int_equal(read_at(gone[0], key, REPLICATE_DEFAULT).id, 3);
    cluster_close();
}

static void
reads_are_of_home_replicas(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 5;
    crash(home(key, 1));
    crash(home(key, 2));
    struct op write = {.node = home(key, 0), .key = key, .id = 3};
    assert_true(ok(op_do(&write)));
    struct reading reading = read_at(home(key, 0), key, REPLICATE_DEFAULT);
    assert_true(status_is(reading.st, ST_UNAVAILABLE));
    assert_int_equal(read_at(home(key, 0), key, REPLICATE_ONE).id, 3);
    start(home(key, 1));
    start(home(key, 2));
    assert_true(peer_rig_run_until(&world.rig, all_delivered, NULL, SECONDS(20)));
    assert_int_equal(read_at(home(key, 2), key, REPLICATE_DEFAULT).id, 3);
    cluster_close();
}

static void
nobody_stands_in_where_it_was_not_allowed(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = home(key, 0);
    crash(home(key, 1));
    crash(home(key, 2));
    struct op strict = {.node = first, .key = key, .id = 2, .keyspace = STRICT};
    assert_true(status_is(op_do(&strict), ST_UNAVAILABLE));
    const enum replicate_level levels[] = {REPLICATE_QUORUM, REPLICATE_ALL, REPLICATE_HOMES};
    for (u32 i = 0; i < ARRAY_COUNT(levels); i++) {
        struct op op = {.node = first, .key = key, .id = 3, .level = levels[i]};
        assert_true(status_is(op_do(&op), ST_UNAVAILABLE));
    }
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(hints_of(other(key, i)).kept, 0);
    assert_int_equal(look_at(first, key).version, 0);
    /* One is always enough of it by itself. */
    struct op one = {.node = first, .key = key, .id = 4, .level = REPLICATE_ONE};
    assert_true(ok(op_do(&one)));
    struct op number = {.node = first, .key = key, .id = 5, .level = REPLICATE_COUNT_BASE + 3};
    assert_true(ok(op_do(&number)));
    peer_rig_run(&world.rig, MS(200));
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(hints_of(other(key, i)).kept, 1);
    cluster_close();
}

/* W confirmations are those of W nodes. */
static void
a_node_counts_once_however_many_are_gone(void **state)
{
    (void)state;
    story_begin(4, 3);
    const u32 key = 3;
    u32 first = home(key, 0);
    crash(home(key, 1));
    crash(home(key, 2));
    struct op three = {.node = first, .key = key, .id = 2};
    assert_true(status_is(op_do(&three), ST_UNAVAILABLE));
    assert_int_equal(hints_of(other(key, 0)).kept, 0);
    struct op two = {.node = first, .key = key, .id = 3, .level = REPLICATE_COUNT_BASE + 2};
    assert_true(ok(op_do(&two)));
    peer_rig_run(&world.rig, MS(200));
    assert_int_equal(hints_of(other(key, 0)).kept, 1);
    cluster_close();

    /* Nor does it count for another stand-in, which does not answer. */
    story_begin(5, 3);
    crash(home(key, 1));
    crash(home(key, 2));
    peer_rig_isolate(&world.rig, other(key, 1)); /* nobody knows */
    struct op silent = {.node = home(key, 0), .key = key, .id = 2};
    assert_true(status_is(op_do(&silent), ST_UNKNOWN_OUTCOME));
    assert_int_equal(hints_of(other(key, 0)).kept, 1);
    cluster_close();
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
    u32 first = home(key, 0);
    crash(home(key, 1));
    crash(home(key, 2));
    struct op three = {.node = first, .key = key, .id = 2};
    assert_true(status_is(op_do(&three), ST_UNKNOWN_OUTCOME));
    struct hints_stats full = hints_of(other(key, 1));
    assert_true(full.kept == 0 && full.waiting == 0 && full.repairs_due == 0);
    struct op two = {.node = first, .key = key, .id = 3, .level = REPLICATE_COUNT_BASE + 2};
    assert_true(ok(op_do(&two)));
    cluster_close();
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
    crash(home(key, 1));
    crash(home(key, 2));
    struct op write = {.node = first, .key = key, .id = 2};
    assert_true(ok(op_do(&write)));
    crash(others[0]);
    crash(others[1]);
    crash(first); /* for good, as far as this story goes */
    for (u32 i = 0; i < 2; i++) {
        start(others[i]);
        start(home(key, i + 1));
    }
    peer_rig_run(&world.rig, SECONDS(10));
    /* By that of the two which was one of W at least. */
    assert_true(look_at(home(key, 1), key).id == 2 || look_at(home(key, 2), key).id == 2);
    start(first);
    cluster_close();
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
    u32 first = home(key, 0);
    crash(home(key, 1));
    crash(home(key, 2));
    struct op write = {.node = first, .key = key, .id = 2};
    assert_true(ok(op_do(&write)));
    peer_rig_run(&world.rig, SECONDS(40));
    for (u32 i = 0; i < 2; i++) {
        struct hints_stats stats = hints_of(other(key, i));
        assert_true(stats.expired == 1 && stats.waiting == 0 && stats.repairs_due == 0);
    }
    /* Who coordinated it holds it, and knows who needs it. */
    assert_int_equal(hints_of(first).repairs_due, 2);
    cluster_close();
}

/* ---- what may be collected ---- */

struct collect {
    u64 below;
};

static void
oldest_run(struct peer_rig_node *node, void *arg)
{
    struct collect *collect = arg;
    const struct app *app = &world.apps[node->index][io_shard_index()];
    collect->below = MIN(collect->below, replicator_oldest_to_come(app->replicator));
}

static void
collect_run(struct peer_rig_node *node, void *arg)
{
    const struct collect *collect = arg;
    struct app *app = &world.apps[node->index][io_shard_index()];
    lsm_purge_allow(app->lsm, 0, collect->below, UINT64_MAX);
    CHECK(ok(lsm_flush(app->lsm)));
    CHECK(ok(lsm_compact(app->lsm)));
}

/* How far all members allow it. */
static u64
collect_bound(void)
{
    struct collect collect = {.below = UINT64_MAX};
    for (u32 i = 0; i < world.rig.node_count; i++)
        if (!runs(i) || !peer_rig_do(&world.rig, i, 0, oldest_run, &collect)) return 0;
    return collect.below;
}

static void
collect_on(u32 node, u64 below)
{
    struct collect collect = {.below = below};
    CHECK(peer_rig_do(&world.rig, node, 0, collect_run, &collect));
}

/* A put that stand-ins have for those who were gone, and a deletion that all replicas have: it is
 * not collected before the stand-ins are rid of what it hides. */
static void
what_was_deleted_stays_so_though_a_stand_in_is_late(void **state)
{
    (void)state;
    story_begin(5, 2);
    const u32 key = 3;
    u32 first = home(key, 0);
    crash(home(key, 1));
    crash(home(key, 2));
    struct op put = {.node = first, .key = key, .id = 2};
    assert_true(ok(op_do(&put)));
    peer_rig_run(&world.rig, UNKNOWN_NS);
    /* The stand-ins do not reach those who are back. */
    for (u32 i = 0; i < 2; i++)
        for (u32 k = 1; k < HOMES; k++)
            peer_rig_cut(&world.rig, other(key, i), home(key, k));
    start(home(key, 1));
    start(home(key, 2));
    struct op gone = {.node = first, .key = key};
    assert_true(ok(op_do(&gone)));
    peer_rig_run(&world.rig, SECONDS(60));
    for (u32 i = 0; i < HOMES; i++)
        assert_int_equal(look_at(home(key, i), key).version, gone.version);
    assert_int_equal(hints_of(first).waiting, 0);
    u64 below = collect_bound();
    assert_true(below > 0 && below <= put.version);
    for (u32 i = 0; i < HOMES; i++)
        collect_on(home(key, i), below);
    peer_rig_heal_all(&world.rig);
    assert_true(peer_rig_run_until(&world.rig, all_delivered, NULL, SECONDS(30)));
    for (u32 i = 0; i < HOMES; i++)
        assert_int_equal(look_at(home(key, i), key).version, gone.version);
    /* Now nothing is in the way any more. */
    peer_rig_run(&world.rig, SECONDS(40));
    assert_true(collect_bound() > gone.version);
    cluster_close();
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
    crash(home(key, 1));
    crash(home(key, 2));
    world.down[other(key, 1)] = true;
    sim_node_clock_step(world.rig.nodes[first].machine, -150 * 1000);
    peer_rig_run(&world.rig, SECONDS(120));
    struct collect told = {.below = UINT64_MAX};
    CHECK(peer_rig_do(&world.rig, stand_in, 0, oldest_run, &told));
    struct op late = {.node = first, .key = key, .id = 2};
    assert_true(status_is(op_do(&late), ST_UNKNOWN_OUTCOME));
    assert_true(look_at(first, key).version < told.below);
    assert_true(hints_of(stand_in).kept == 0 && hints_of(stand_in).waiting == 0);
    struct collect again = {.below = UINT64_MAX};
    CHECK(peer_rig_do(&world.rig, stand_in, 0, oldest_run, &again));
    assert_true(again.below >= told.below);
    /* In time it is, and what is told does not pass it. */
    sim_node_clock_step(world.rig.nodes[first].machine, 150 * 1000);
    struct op write = {.node = first, .key = key, .id = 3};
    assert_true(ok(op_do(&write)));
    peer_rig_run(&world.rig, SECONDS(90));
    again.below = UINT64_MAX;
    CHECK(peer_rig_do(&world.rig, stand_in, 0, oldest_run, &again));
    assert_true(again.below >= told.below && again.below <= write.version);
    cluster_close();
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
        struct bytes key = key_of(3);
        struct lsm_batch batch;
        lsm_batch_init(&batch, io_budget());
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES_LITERAL("value"), 0));
        /* Each of a version of its own, as coordinators have it. */
        struct peer_write write = {.version = hlc_version_at(io_wall_ms()) + 2 * i,
                                   .partition = token_partition(hash_token(key), PARTITIONS),
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
        struct native_header answer;
        struct bytes part = BYTES(body, size);
        struct buf out;
        buf_init(&out, io_budget());
        bool maybe_sent;
        status st = peer_call_wait(peer_rig_peers(node), other(3, 0) + 1, 0, &header, &part, 1,
                                   io_now_ns() + SECONDS(2), &answer, &out, &maybe_sent);
        CHECK(ok(st) && answer.status <= NATIVE_ST_MAX);
        statuses[answer.status]++;
        buf_deinit(&out);
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
    assert_true(peer_rig_run_until(&world.rig, all_delivered, NULL, SECONDS(30)));
    for (u32 key = 0; key < KEYS_MAX; key++) /* of others nothing came in */
        for (u32 i = 0; i < HOMES && key != 3; i++)
            assert_int_equal(look_at(home(key, i), key).version, 0);
    cluster_close();
}

/* ---- seeds ---- */

static struct op ops[OPS_MAX];
static struct peer_rig_job jobs[OPS_MAX];
static u32 op_count;
static u64 restart_ns[NODES], know_ns[NODES], stood_in;
#define SEED_KEYS 6u

static void
op_begin(void)
{
    struct prng *prng = &world.prng;
    u32 key = (u32)prng_below(prng, SEED_KEYS), node = home(key, (u32)prng_below(prng, HOMES));
    if (!runs(node)) return;
    struct op *op = &ops[op_count];
    *op = (struct op){.key = key,
                      .node = node,
                      .id = prng_chance(prng, 1, 4) ? 0 : op_count + 1,
                      .begun_ns = sim_now_ns(world.rig.sim),
                      .deadline_ns = MS(prng_range(prng, 20, 1000))};
    peer_rig_give(&world.rig, node, 0, &jobs[op_count], op_run, op);
    op_count++;
}

static void
nodes_turn(void)
{
    struct prng *prng = &world.prng;
    u64 now = sim_now_ns(world.rig.sim);
    u32 away = 0;
    for (u32 i = 0; i < NODES; i++) {
        if (!runs(i) && now >= restart_ns[i]) start(i);
        if (!runs(i) && now >= know_ns[i]) world.down[i] = true;
        away += !runs(i);
    }
    u32 node = (u32)prng_below(prng, NODES);
    if (away >= 2 || !runs(node) || !prng_chance(prng, 1, 8)) return;
    for (u32 i = 0; i < op_count; i++)
        if (ops[i].node == node && ops[i].begun_ns + UNKNOWN_NS > now) ops[i].crashed = true;
    struct replicate_stats stats = figures_of(node);
    stood_in += stats.stood_in;
    peer_rig_crash(&world.rig, node, prng_chance(prng, 1, 3));
    restart_ns[node] = now + MS(prng_range(prng, 100, 6000));
    know_ns[node] = now + MS(prng_below(prng, 200));
}

static void
judge_key(u32 key)
{
    const struct op *acknowledged = NULL;
    bool excused = false;
    for (u32 i = 0; i < op_count; i++) {
        if (ops[i].key != key) continue;
        excused = excused || ops[i].crashed;
        if (ops[i].ended && ok(ops[i].st) &&
            (acknowledged == NULL || ops[i].version > acknowledged->version))
            acknowledged = &ops[i];
    }
    u64 newest = 0;
    struct look looks[HOMES];
    for (u32 i = 0; i < HOMES; i++) {
        looks[i] = look_at(home(key, i), key);
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
    world.rig.options.buggify = prng_chance(prng, 1, 2);
    world.rig.options.disk.latency_ns_max = MS(prng_range(prng, 1, 6));
    world.rig.options.net.latency_ns_max = prng_range(prng, 200, 4000) * NS_PER_US;
    op_count = 0;
    memset(restart_ns, 0, sizeof(restart_ns));
    memset(know_ns, 0, sizeof(know_ns));
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2));
    u32 most = (u32)prng_range(prng, 60, 200);
    for (u32 turn = 0; turn < 2000 && op_count < most; turn++) {
        if (prng_chance(prng, 1, 2)) op_begin();
        nodes_turn();
        peer_rig_run(&world.rig, MS(prng_below(prng, prng_chance(prng, 1, 10) ? 1500 : 60)));
    }
    for (u32 i = 0; i < NODES; i++)
        if (!runs(i)) start(i);
    peer_rig_run(&world.rig, UNKNOWN_NS + SECONDS(1));
    u64 end_ns = sim_now_ns(world.rig.sim) + SECONDS(300);
    while (!all_delivered(NULL) && sim_now_ns(world.rig.sim) < end_ns)
        peer_rig_run(&world.rig, MS(20));
    if (!all_delivered(NULL)) VIOLATED("hints wait though all is healed");
    for (u32 key = 0; key < SEED_KEYS; key++)
        judge_key(key);
    for (u32 i = 0; i < NODES; i++)
        stood_in += figures_of(i).stood_in;
    if (world.violation[0] != '\0') {
        for (u32 i = 0; i < op_count && seeds_is_one(); i++)
            fprintf(stderr, "%10llu us node %u key %u id %llu %s version %llu%s\n",
                    (unsigned long long)ops[i].begun_ns / 1000, ops[i].node + 1, ops[i].key,
                    (unsigned long long)ops[i].id, ops[i].ended ? status_name(ops[i].st) : "-",
                    (unsigned long long)ops[i].version, ops[i].crashed ? " crashed" : "");
        print_error("seed %llu: %s\n", (unsigned long long)seed, world.violation);
    }
    bool failed = world.violation[0] != '\0';
    cluster_close();
    return !failed;
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
    struct app *app = &world.apps[node->index][io_shard_index()];
    static u8 value[60000];
    struct bytes key = key_of(KEYS_MAX - 1);
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
    struct op before = {.node = first, .key = key, .id = 1};
    assert_true(ok(op_do(&before)));
    peer_rig_run(&world.rig, MS(200));
    struct sim_disk *disk = sim_node_disk(world.rig.nodes[first].machine);
    sim_disk_capacity_set(disk, sim_disk_used_bytes(disk));
    CHECK(peer_rig_do(&world.rig, first, 0, fill_run, NULL));
    crash(home(key, 1));
    crash(home(key, 2));
    struct op write = {.node = first, .key = key, .id = 2};
    assert_true(status_is(op_do(&write), ST_UNKNOWN_OUTCOME));
    assert_int_equal(figures_of(first).stood_in, 0);
    assert_int_equal(look_at(first, key).id, 1);
    peer_rig_run(&world.rig, MS(200));
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(hints_of(other(key, i)).kept, 1);
    sim_disk_capacity_set(disk, GIB(64));
    cluster_close();
}

#define FEW 3u /* a keyspace of two replicas */

/* A key of FEW whose third holder, no replica of it, would be the first to stand in. */
static u32
key_of_a_third_holder(void)
{
    for (u32 key = 0; key < KEYS_MAX; key++) {
        u32 partition = token_partition(hash_token(key_of(key)), PARTITIONS);
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
    world.topology = replica_rig_apply_on(world.topology, set);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2));
    const u32 key = key_of_a_third_holder();
    u32 third = home(key, 2);
    struct topology_row row;
    topology_row(world.topology, FEW, token_partition(hash_token(key_of(key)), PARTITIONS), &row);
    crash(row.write[0] - 1);
    struct op one = {.node = third, .key = key, .id = 2, .keyspace = FEW};
    assert_true(ok(op_do(&one)));
    peer_rig_run(&world.rig, MS(200));
    u64 kept = 0;
    for (u32 i = 0; i < NODES; i++)
        kept += runs(i) ? hints_of(i).kept : 0;
    assert_int_equal(kept, 1);
    assert_int_equal(hints_of(third).kept, 0);
    crash(row.write[1] - 1);
    struct op two = {.node = third, .key = key, .id = 3, .keyspace = FEW};
    assert_true(status_is(op_do(&two), ST_UNAVAILABLE));
    cluster_close();
}

static void
topology_run(struct peer_rig_node *node, void *arg)
{
    struct app *app = &world.apps[node->index][io_shard_index()];
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
    crash(home(key, 1));
    crash(home(key, 2));
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = 0};
    set.options = world.topology->keyspaces[0];
    set.options.sloppy = false;
    struct topology *before = world.topology; /* those that crashed have it */
    topology_hold(before);
    world.topology = replica_rig_apply_on(world.topology, set);
    for (u32 i = 0; i < 2; i++)
        CHECK(peer_rig_do(&world.rig, other(key, i), 0, topology_run, world.topology));
    struct op behind = {.node = first, .key = key, .id = 2};
    assert_true(status_is(op_do(&behind), ST_UNKNOWN_OUTCOME)); /* it is in its own store */
    for (u32 i = 0; i < 2; i++)
        assert_int_equal(hints_of(other(key, i)).kept, 0);
    CHECK(peer_rig_do(&world.rig, first, 0, topology_run, world.topology));
    struct op after = {.node = first, .key = key, .id = 3};
    assert_true(status_is(op_do(&after), ST_UNAVAILABLE));
    cluster_close();
    replica_rig_free(before);
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
    crash(home(key, 1));
    struct op one = {.node = first, .key = key, .id = 1};
    assert_true(ok(op_do(&one)));
    assert_int_equal(waited_for, 0); /* partners are pinged anyway */
    crash(home(key, 2));
    struct op two = {.node = first, .key = key, .id = 2};
    assert_true(ok(op_do(&two)));
    assert_int_equal(waited_for, 2u << other(key, 0) | 2u << other(key, 1));
    cluster_close();
}

static void
on_abort(int number)
{
    (void)number;
    print_error("seed %llu: aborted\n", (unsigned long long)world.seed);
}

int
main(void)
{
    signal(SIGABRT, on_abort);
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
