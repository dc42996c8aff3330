/* SPDX-License-Identifier: MIT
 *
 * test_siblings.c -- keys that keep siblings, between nodes on the simulated link: small stories,
 * then seeds.
 *
 * A seed is a cluster of three or five nodes, and clients that write a few keys blindly or with the
 * context of an earlier read, delete and read, while nodes lose power or their process (or their
 * disk: they come back as another incarnation), and links are cut. Judged, key by key, with "Q saw
 * P" for a write Q that brought the context of a read that returned P's value:
 *
 *   S1  A write that was acknowledged is in every later read, and in the end, unless a write that
 *       saw it was begun. (So nothing concurrent is lost.)
 *   S2  Once a write that saw P is acknowledged, no later read returns P.
 *   S3  What is read was written, not later than the read's end, and not by a write that said that
 *       it was not done.
 *   S4  Once all is healed and every key was read from all replicas a few times, all have
 *       equal bytes and equal versions.
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
#include "cluster/siblings.h"
#include "io/file.h"
#include "lsm/lsm.h"
#include "replica_rig.h"

#define MS(n)      ((u64)(n)*NS_PER_MS)
#define SECONDS(n) ((u64)(n)*NS_PER_S)

#define PARTITIONS  16u
#define KEYSPACE    3u
#define KEYS        3u
#define CLIENTS     5u
#define OPS_MAX     300u
#define VALUES_MAX  LIMIT_DVV_SIBLINGS
#define CONTEXT_MAX 2048u
#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 8u
#else
#define SEED_COUNT 100u
#endif

/* ---- the cluster ---- */

struct world {
    struct peer_rig rig;
    struct prng prng;
    u64 seed;
    struct budget budget; /* of topologies */
    struct topology *topology;
    struct topology *old[64]; /* that crashed nodes may hold yet */
    u32 old_count;
    bool down[PEER_RIG_NODES_MAX]; /* as far as anybody knows */
    u32 disks[PEER_RIG_NODES_MAX]; /* how many a node has lost */
    struct replica_app apps[PEER_RIG_NODES_MAX];
    bool acknowledged;
    char violation[512];
};

static struct world world;

static struct {
    u64 siblings, unions, wipes, hints, crashes, refused;
} reached; /* of all seeds */

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
    struct replica_app *app = &world.apps[node->index];
    char dir[32];
    snprintf(dir, sizeof(dir), "/store%u", world.disks[node->index]);
    struct hints_options kept = {.alive = node_alive, .disk_bytes_max = MIB(16)};
    struct replicator_options options = {.alive = node_alive};
    status st = replica_rig_app_open(node, dir, MIB(1), &kept, &options, app);
    if (!ok(st)) return st;
    replicator_topology_set(app->replicator, world.topology, node->index + 1);
    peer_rig_serve(node);
    reached.unions += app->replicator->stats.unions;
    struct hints_stats stats;
    hints_stats_get(app->hints, &stats);
    reached.hints += stats.replayed;
    return replica_rig_app_close(app);
}

/* ---- topologies ---- */

static void
topology_make(u32 members)
{
    budget_init(&world.budget, "topologies", MIB(64), NULL);
    struct topology *now =
        replica_rig_grow(replica_rig_found(&world.budget, PARTITIONS, 3, 1), members, 1);
    struct topology_command set = {
        .kind = TOPOLOGY_KEYSPACE_SET, .keyspace = KEYSPACE, .options = now->keyspaces[0]};
    set.options.conflict = CONFLICT_SIBLINGS;
    snprintf(set.options.name, sizeof(set.options.name), "carts");
    world.topology = replica_rig_apply_on(now, set);
}

static void
cluster_open(u64 seed, u32 nodes)
{
    memset(&world, 0, sizeof(world));
    world.seed = seed;
    prng_init(&world.prng, seed);
    world.rig = (struct peer_rig){.node_count = nodes, .shard_count = 1, .shard_main = node_main};
    sim_options_default(&world.rig.options, seed);
    world.rig.options.print_log = seeds_is_one();
    topology_make(nodes);
}

static void
cluster_close(void)
{
    peer_rig_close(&world.rig);
    world.old[world.old_count++] = world.topology;
    for (u32 i = 0; i < world.old_count; i++)
        replica_rig_free(world.old[i]);
}

static void
topology_take(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    replicator_topology_set(world.apps[node->index].replicator, world.topology, node->index + 1);
}

static bool
runs(u32 node)
{
    return peer_rig_runs(&world.rig, node);
}

/* All that run learn of another topology at once. */
static void
topology_next(struct topology *next)
{
    CHECK(world.old_count + 1 < ARRAY_COUNT(world.old));
    world.old[world.old_count++] = world.topology;
    world.topology = next;
    for (u32 i = 0; i < world.rig.node_count; i++)
        if (runs(i)) (void)peer_rig_do(&world.rig, i, 0, topology_take, NULL);
}

/* The node starts with an empty disk. What group0 does about it is other tests' matter; here the
 * member keeps its number and its places, and only is another incarnation. */
static void
disk_lose(u32 node)
{
    struct buf bytes;
    buf_init(&bytes, &world.budget);
    struct topology *next;
    CHECK(topology_encode(world.topology, &bytes));
    CHECK(ok(topology_decode(buf_bytes(&bytes), &world.budget, &next)));
    buf_deinit(&bytes);
    next->epoch++;
    next->members[node].incarnation += 1000;
    world.disks[node]++;
    topology_next(next);
}

/* ---- operations ---- */

static struct bytes
key_of(u32 key)
{
    static char names[64][24];
    int size = snprintf(names[key], sizeof(names[key]), "cart:%u", (unsigned)key);
    return BYTES(names[key], size);
}

static u64
token_of(u32 key)
{
    return hash_token(key_of(key));
}

enum op_kind { OP_READ, OP_PUT, OP_DELETE };

struct op {
    enum op_kind kind;
    u32 key, node;
    enum replicate_level level;
    u64 id;               /* that is written */
    const struct op *saw; /* the read whose context it brings; NULL: none */
    u32 size;             /* of the value; 0: 8 */
    u64 begun_ns, ended_ns, deadline_ns;
    bool ended;
    status st;
    u64 version;
    /* of a read */
    u64 values[VALUES_MAX];
    u32 value_count;
    u8 context[CONTEXT_MAX];
    u32 context_size;
};

static u8 filler[LIMIT_VALUE_BYTES];

static void
op_write(struct op *op, struct replica_app *app)
{
    struct dvv_vector context;
    dvv_vector_init(&context, io_budget());
    if (op->saw != NULL)
        CHECK(ok(dvv_vector_decode(BYTES(op->saw->context, op->saw->context_size), &context)));
    u8 small[8], *data = op->size > 8 ? filler : small;
    store_u64(data, op->id);
    struct replicate_put put = {.keyspace = KEYSPACE,
                                .token = token_of(op->key),
                                .key = key_of(op->key),
                                .context = op->saw != NULL ? &context : NULL,
                                .deletes = op->kind == OP_DELETE,
                                .value = BYTES(data, MAX(op->size, 8u))};
    op->st = replicate_put(app->replicator, op->level, &put, io_now_ns() + op->deadline_ns,
                           &op->version);
    dvv_vector_deinit(&context);
}

/* Into op->values and op->context. */
static void
op_take(struct op *op, struct bytes bytes)
{
    struct dvvset set;
    dvvset_init(&set, io_budget());
    CHECK(ok(dvvset_decode(bytes, &set)));
    for (u32 i = 0; i < set.count; i++)
        if ((set.values[i].flags & DVV_DELETED) == 0)
            op->values[op->value_count++] = load_u64(set.values[i].data.data);
    struct buf context;
    buf_init(&context, io_budget());
    CHECK(ok(dvv_vector_encode(dvvset_context(&set), &context)) && context.size <= CONTEXT_MAX);
    memcpy(op->context, context.data, context.size);
    op->context_size = (u32)context.size;
    buf_deinit(&context);
    dvvset_deinit(&set);
}

static void
op_read(struct op *op, struct replica_app *app)
{
    struct replicate_value value;
    op->st = replicate_read(app->replicator, op->level, KEYSPACE, token_of(op->key),
                            key_of(op->key), io_now_ns() + op->deadline_ns, &value);
    if (ok(op->st)) {
        op->version = value.version;
        op_take(op, value.value);
    }
    replicate_value_release(&value);
}

static void
op_run(struct peer_rig_node *node, void *arg)
{
    struct op *op = arg;
    struct replica_app *app = &world.apps[node->index];
    if (op->kind == OP_READ)
        op_read(op, app);
    else
        op_write(op, app);
    op->ended_ns = sim_now_ns(node->rig->sim);
    op->ended = true;
    if (op->kind != OP_READ && ok(op->st)) world.acknowledged = true;
}

static bool
op_do(struct op *op)
{
    if (op->deadline_ns == 0) op->deadline_ns = SECONDS(2);
    op->begun_ns = sim_now_ns(world.rig.sim);
    return peer_rig_do(&world.rig, op->node, 0, op_run, op) && ok(op->st);
}

/* What a node's own store has. */
struct look {
    u32 key;
    u64 version;
    u8 bytes[1u << 16];
    u32 size;
};

static void
look_run(struct peer_rig_node *node, void *arg)
{
    struct look *look = arg;
    struct own_read own;
    CHECK(ok(own_read(world.apps[node->index].replicator, KEYSPACE, token_of(look->key),
                      key_of(look->key), &own)));
    look->version = own.version;
    look->size = 0;
    if (!own.found) return;
    look->size = (u32)own.value.value.size;
    CHECK(look->size <= sizeof(look->bytes));
    memcpy(look->bytes, own.value.value.data, look->size);
    lsm_value_release(&own.value);
}

static void
look_at(u32 node, u32 key, struct look *out)
{
    out->key = key;
    CHECK(peer_rig_do(&world.rig, node, 0, look_run, out));
}

/* Whether the replicas of the key have the same, byte by byte. */
static bool
same_everywhere(u32 key, bool versions_too)
{
    static struct look first, other;
    struct topology_row row;
    topology_row(world.topology, KEYSPACE, token_partition(token_of(key), PARTITIONS), &row);
    look_at(row.write[0] - 1, key, &first);
    for (u32 i = 1; i < row.count; i++) {
        look_at(row.write[i] - 1, key, &other);
        if (!bytes_equal(BYTES(first.bytes, first.size), BYTES(other.bytes, other.size)))
            return false;
        if (versions_too && first.version != other.version) return false;
    }
    return true;
}

static bool
returned(const struct op *read, u64 id)
{
    for (u32 i = 0; i < read->value_count; i++)
        if (read->values[i] == id) return true;
    return false;
}

/* ---- states as other stores send them ---- */

#define STATES_MAX 24u

struct states {
    struct buf bytes[STATES_MAX];
    u64 versions[STATES_MAX];
    u32 count;
    u32 order[2 * STATES_MAX];
    u32 order_count;
    u32 key;
};

static void
states_take(struct peer_rig_node *node, void *arg)
{
    struct states *states = arg;
    u64 seq = 0;
    for (u32 i = 0; i < states->order_count; i++) {
        u32 at = states->order[i];
        struct replicate_state state = {.keyspace = KEYSPACE,
                                        .token = token_of(states->key),
                                        .key = key_of(states->key),
                                        .found = true,
                                        .version = states->versions[at],
                                        .value = buf_bytes(&states->bytes[at])};
        CHECK(ok(replicate_merge(world.apps[node->index].replicator, &state,
                                 io_now_ns() + SECONDS(1), &seq)));
    }
}

static bool
actor_seen(const struct op *read, struct dvv_actor actor)
{
    struct budget budget;
    budget_init(&budget, "context", MIB(1), NULL);
    struct dvv_vector seen;
    dvv_vector_init(&seen, &budget);
    assert_true(ok(dvv_vector_decode(BYTES(read->context, read->context_size), &seen)));
    bool found = dvv_vector_counter(&seen, actor) != 0;
    dvv_vector_deinit(&seen);
    return found;
}

/* ---- stories ---- */

static void
story_begin(void)
{
    cluster_open(1, 3);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1)); /* REPLICATE_QUIET_MS */
}

static void
away(u32 node)
{
    peer_rig_isolate(&world.rig, node);
}

static void
back(u32 node)
{
    peer_rig_rejoin(&world.rig, node);
    peer_rig_run(&world.rig, SECONDS(3));
}

static bool
put(u32 node, u32 key, u64 id, const struct op *saw)
{
    struct op op = {.kind = OP_PUT, .node = node, .key = key, .id = id, .saw = saw};
    return op_do(&op);
}

static void
get(u32 node, u32 key, struct op *out)
{
    *out = (struct op){.kind = OP_READ, .node = node, .key = key};
    assert_true(op_do(out));
}

static void
writes_on_both_sides_of_a_cut_are_kept(void **state)
{
    (void)state;
    static struct op read, old;
    story_begin();
    assert_true(put(0, 1, 10, NULL));
    get(1, 1, &old);
    away(2);
    /* Both have seen the same, and neither the other. */
    struct op alone = {.kind = OP_PUT, .node = 2, .key = 1, .id = 30, .saw = &old};
    alone.level = REPLICATE_ONE;
    assert_true(op_do(&alone));
    assert_true(put(0, 1, 20, &old));
    back(2);
    for (u32 node = 0; node < 3; node++) {
        get(node, 1, &read);
        assert_int_equal(read.value_count, 2);
        assert_true(returned(&read, 20) && returned(&read, 30));
    }
    /* Who has seen both replaces both. */
    assert_true(put(1, 1, 40, &read));
    peer_rig_run(&world.rig, SECONDS(1));
    get(2, 1, &read);
    assert_int_equal(read.value_count, 1);
    assert_true(returned(&read, 40));
    assert_true(same_everywhere(1, false));
    cluster_close();
}

static void
a_write_replaces_what_its_writer_saw_and_nothing_else(void **state)
{
    (void)state;
    static struct op first, second, read;
    story_begin();
    assert_true(put(0, 1, 10, NULL));
    get(1, 1, &first);
    assert_true(put(1, 1, 20, NULL)); /* has seen nothing: stands beside it */
    get(2, 1, &second);
    assert_int_equal(second.value_count, 2);
    assert_true(put(2, 1, 30, &first)); /* has seen 10 only */
    get(0, 1, &read);
    assert_int_equal(read.value_count, 2);
    assert_true(returned(&read, 20) && returned(&read, 30));
    struct op gone = {.kind = OP_DELETE, .node = 0, .key = 1, .saw = &second}; /* 10 and 20 */
    assert_true(op_do(&gone));
    get(1, 1, &read);
    assert_int_equal(read.value_count, 1);
    assert_true(returned(&read, 30));
    gone.saw = &read;
    assert_true(op_do(&gone));
    get(1, 1, &read);
    assert_int_equal(read.value_count, 0);
    /* The tombstone is a state, too, until it is replaced. */
    assert_true(read.version != 0 && read.context_size > 4);
    assert_true(put(2, 1, 50, &read));
    get(0, 1, &read);
    assert_int_equal(read.value_count, 1);
    cluster_close();
}

/* Acknowledged by nodes 1 and 2. Then node 1 comes back with an empty disk, and writes the key
 * again before it has learned of anything: under a new name, so that its dot covers nothing. */
static void
a_wiped_node_writes_under_a_new_name(void **state)
{
    (void)state;
    static struct op read;
    story_begin();
    away(2);
    assert_true(put(0, 1, 10, NULL));
    assert_true(put(0, 1, 11, NULL));
    peer_rig_crash(&world.rig, 0, false);
    world.rig.nodes[0].requests_max = 0;
    disk_lose(0);
    peer_rig_start(&world.rig, 0);
    peer_rig_run(&world.rig, SECONDS(1));
    back(2);
    peer_rig_cut(&world.rig, 0, 1);
    struct op blind = {.kind = OP_PUT, .node = 0, .key = 1, .id = 12};
    assert_true(op_do(&blind)); /* nodes 1 and 3 have it */
    peer_rig_heal(&world.rig, 0, 1);
    peer_rig_run(&world.rig, SECONDS(2));
    get(1, 1, &read);
    assert_int_equal(read.value_count, 3);
    cluster_close();
}

/* A stamp of a moment ago. */
static u64
read_version(u32 node, u32 key)
{
    static struct op read;
    get(node, key, &read);
    return read.version;
}

/* As of a disk that was put back from a copy: another replica knows of a dot of node 1's which that
 * does not have. What node 1 writes afterwards must not cover what lies between. */
static void
who_has_forgotten_own_dots_goes_on_under_another_name(void **state)
{
    (void)state;
    static struct op read;
    story_begin();
    assert_true(put(0, 1, 10, NULL)); /* the actor is in use */
    struct budget budget;
    budget_init(&budget, "states", MIB(1), NULL);
    struct dvvset set;
    dvvset_init(&set, &budget);
    u64 now = read_version(0, 1);
    u8 data[2][8];
    for (u32 i = 0; i < 2; i++) {
        store_u64(data[i], 70 + i);
        struct dvv_value value = {.actor = siblings_actor(100, siblings_partition(token_of(2)), 0),
                                  .counter = now + i,
                                  .version = now + i,
                                  .data = BYTES(data[i], 8)};
        assert_true(ok(dvvset_update(&set, NULL, &value)));
    }
    struct states states = {.key = 2, .count = 1, .order_count = 1};
    states.versions[0] = now + 1024;
    buf_init(&states.bytes[0], &budget);
    assert_true(ok(dvvset_encode(&set, &states.bytes[0])));
    assert_true(peer_rig_do(&world.rig, 1, 0, states_take, &states));
    assert_true(peer_rig_do(&world.rig, 2, 0, states_take, &states));
    /* A read brings it to node 1. Its next dot is of another generation. */
    get(0, 2, &read);
    assert_int_equal(read.value_count, 2);
    assert_true(put(0, 2, 20, NULL));
    get(1, 2, &read);
    assert_int_equal(read.value_count, 3);
    assert_true(actor_seen(&read, siblings_actor(100, siblings_partition(token_of(2)), 1)));
    /* It stays so over a crash, and in the same partition only. */
    peer_rig_crash(&world.rig, 0, false);
    peer_rig_start(&world.rig, 0);
    peer_rig_run(&world.rig, SECONDS(1));
    assert_true(put(0, 2, 30, &read));
    get(1, 2, &read);
    assert_int_equal(read.value_count, 1);
    assert_false(actor_seen(&read, siblings_actor(100, siblings_partition(token_of(2)), 2)));
    assert_true(put(0, 1, 11, NULL));
    get(1, 1, &read);
    assert_true(actor_seen(&read, siblings_actor(100, siblings_partition(token_of(1)), 0)));
    buf_deinit(&states.bytes[0]);
    dvvset_deinit(&set);
    cluster_close();
}

/* A key is deleted, and whoever deleted it forgets all of that, or is set back: what it writes
 * afterwards counts from anew, or from before, and others still have the tombstone. That does not
 * cover the new write. */
static void
an_old_tombstone_does_not_swallow_a_new_write(void **state)
{
    (void)state;
    static struct op read;
    for (u32 wiped = 0; wiped < 2; wiped++) {
        story_begin();
        for (u64 id = 10; id < 15; id++) {
            assert_true(put(0, 1, id, NULL));
            get(0, 1, &read);
            struct op gone = {.kind = OP_DELETE, .node = 0, .key = 1, .saw = &read};
            assert_true(op_do(&gone));
        }
        peer_rig_run(&world.rig, SECONDS(1));
        peer_rig_crash(&world.rig, 0, false);
        if (wiped != 0)
            disk_lose(0);
        else
            sim_node_clock_step(world.rig.nodes[0].machine, -150);
        peer_rig_start(&world.rig, 0);
        peer_rig_run(&world.rig, SECONDS(2));
        away(2); /* with the tombstone */
        assert_true(put(0, 1, 20, NULL));
        back(2);
        for (u32 node = 3; node-- > 0;) {
            get(node, 1, &read);
            assert_int_equal(read.value_count, 1);
            assert_true(returned(&read, 20));
        }
        cluster_close();
    }
}

static void
flush_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    status st = lsm_flush(world.apps[node->index].lsm);
    CHECK(ok(st));
}

struct largest {
    struct sim_disk *disk;
    u64 size;
    char path[64];
};

/* The sets; leases lie in a table of another keyspace. */
static void
find_largest_table(void *arg, const char *path)
{
    struct largest *largest = arg;
    u64 size;
    if (strrchr(path, '/')[1] != 't' || !ok(sim_disk_file_size(largest->disk, path, &size)) ||
        size <= largest->size)
        return;
    largest->size = size;
    snprintf(largest->path, sizeof(largest->path), "%s", path);
}

/* The coordinator cannot read what it has of a key: it does not take that for nothing, to which it
 * would add a dot that covers what others have. */
static void
a_damaged_set_at_the_coordinator_loses_nothing(void **state)
{
    (void)state;
    static struct op read;
    u32 refused = 0;
    story_begin();
    for (u32 key = 1; key <= 30; key++) {
        assert_true(put(0, key, 100 + key, NULL));
        assert_true(put(0, key, 200 + key, NULL));
    }
    peer_rig_run(&world.rig, SECONDS(1));
    assert_true(peer_rig_do(&world.rig, 0, 0, flush_run, NULL));
    peer_rig_crash(&world.rig, 0, false); /* nothing is in memory any more */
    peer_rig_start(&world.rig, 0);
    peer_rig_run(&world.rig, SECONDS(2));
    struct largest sets = {.disk = sim_node_disk(world.rig.nodes[0].machine)};
    sim_disk_each_file(sets.disk, find_largest_table, &sets);
    for (u64 at = 100; at < sets.size / 2; at += 500) {
        status st = sim_disk_flip(sets.disk, sets.path, at, 1);
        CHECK(ok(st));
    }
    for (u32 key = 1; key <= 30; key++) {
        bool taken = put(0, key, 300 + key, NULL);
        refused += !taken;
        for (u32 node = 3; node-- > 0;) {
            get(node, key, &read);
            assert_true(returned(&read, 100 + key) && returned(&read, 200 + key));
            assert_true(!taken || returned(&read, 300 + key));
        }
    }
    assert_true(refused > 0);
    cluster_close();
}

/* The clock of one is an hour ahead, or behind, for a while: it is refused, or not; what anybody
 * was told is there, is there all the time and when the clock is right again. */
static void
a_clock_that_is_an_hour_off_loses_no_sibling(void **state)
{
    (void)state;
    static struct op read;
    for (u32 ahead = 0; ahead < 2; ahead++) {
        i64 step_ms = (ahead != 0 ? 1 : -1) * 3600 * 1000;
        u64 taken[16] = {0};
        u32 count = 0;
        story_begin();
        for (u64 id = 10; id < 25; id++) {
            if (id == 13) sim_node_clock_step(world.rig.nodes[0].machine, step_ms);
            if (id == 20) sim_node_clock_step(world.rig.nodes[0].machine, -step_ms);
            u32 node = (u32)(id % 3);
            if (put(node, 1, id, NULL))
                taken[count++] = id;
            else
                assert_true(node == 0 && id >= 13); /* others write on */
            get(1, 1, &read);
            for (u32 i = 0; i < count; i++)
                assert_true(returned(&read, taken[i]));
        }
        peer_rig_run(&world.rig, SECONDS(5));
        for (u32 node = 0; node < 3; node++) {
            /* With the stamp of a write that nobody took, it can bring nobody up to date. */
            read = (struct op){.kind = OP_READ, .node = node, .key = 1};
            if (!op_do(&read)) assert_true(node == 0 && ahead != 0);
            if (!ok(read.st)) continue;
            for (u32 i = 0; i < count; i++)
                assert_true(returned(&read, taken[i]));
        }
        get(1, 1, &read);
        assert_true(put(1, 1, 40, &read));
        get(2, 1, &read);
        assert_int_equal(read.value_count, 1);
        cluster_close();
    }
}

/* A member that has not fetched what it gains makes no dots there: of an earlier tenure it may have
 * left some, that only others have now. */
static void
who_gains_a_partition_writes_there_when_it_has_fetched(void **state)
{
    (void)state;
    cluster_open(1, 4);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1));
    struct topology_command command = {.kind = TOPOLOGY_WEIGHT_SET,
                                       .member = {.number = 1, .weight = 20}};
    topology_hold(world.topology);
    struct topology *next = replica_rig_apply_on(world.topology, command);
    next =
        replica_rig_apply_on(next, (struct topology_command){.kind = TOPOLOGY_PLAN, .session = 7});
    topology_next(next);
    u32 key = 0, gainer = 0;
    for (; key < 60 && gainer == 0; key++)
        for (u32 i = 0; i < 4 && gainer == 0; i++)
            if (topology_gains(next, i + 1, KEYSPACE, token_partition(token_of(key), PARTITIONS)))
                gainer = i + 1;
    assert_int_not_equal(gainer, 0);
    key--;
    struct op op = {.kind = OP_PUT, .node = gainer - 1, .key = key, .id = 5};
    assert_false(op_do(&op));
    assert_true(status_is(op.st, ST_WOULD_WAIT));
    struct topology_row row;
    topology_row(next, KEYSPACE, token_partition(token_of(key), PARTITIONS), &row);
    op.node = row.write[0] - 1;
    assert_true(op_do(&op)); /* who had it before takes it, and brings it to the gainer */
    peer_rig_run(&world.rig, SECONDS(1));
    static struct look look;
    look_at(gainer - 1, key, &look);
    assert_true(look.version != 0);
    cluster_close();
}

/* The lease is what a crash leaves of the counters that were given. */
struct lease {
    u64 counter;
    bool covered;
};

static void
lease_run(struct peer_rig_node *node, void *arg)
{
    struct lease *lease = arg;
    static struct look look;
    look.key = 1;
    look_run(node, &look);
    struct dvvset set;
    dvvset_init(&set, io_budget());
    CHECK(ok(dvvset_decode(BYTES(look.bytes, look.size), &set)));
    struct dvv_actor actor = {.incarnation = 100 + node->index,
                              .partition = siblings_partition(token_of(1))};
    lease->counter = dvv_vector_counter(dvvset_context(&set), actor);
    dvvset_deinit(&set);
    /* What is given lies under a lease that is durable. */
    struct hint_tag tag;
    char name[32];
    hint_tags_find(actor.partition, 1, &tag);
    int size = snprintf(name, sizeof(name), "{%.*s}actor", (int)tag.size, tag.text);
    struct bytes key = BYTES(name, size);
    struct lsm_value value;
    struct lsm *lsm = world.apps[node->index].lsm;
    CHECK(ok(lsm_get(lsm, NULL, KEYSPACE_SYSTEM, hash_token(key), key, &value)));
    lease->covered = value.value.size == 24 && value.seq <= lsm_durable_seq(lsm) &&
                     load_u64(value.value.data + 16) >= lease->counter;
    lsm_value_release(&value);
}

static void
counters_grow_over_crashes_even_when_the_clock_is_set_back(void **state)
{
    (void)state;
    story_begin();
    u64 last = 0;
    for (u32 i = 0; i < 4; i++) {
        assert_true(put(0, 1, 10 + i, NULL));
        struct lease lease;
        assert_true(peer_rig_do(&world.rig, 0, 0, lease_run, &lease));
        assert_true(lease.counter > last && lease.covered);
        last = lease.counter;
        peer_rig_crash(&world.rig, 0, i % 2 == 0);
        /* Further than the clock's floor reaches, and not so far that peers refuse its stamps. */
        sim_node_clock_step(world.rig.nodes[0].machine, -150);
        peer_rig_start(&world.rig, 0);
        peer_rig_run(&world.rig, SECONDS(2));
    }
    cluster_close();
}

static void
too_many_siblings_are_refused(void **state)
{
    (void)state;
    static struct op read;
    story_begin();
    for (u32 i = 0; i < LIMIT_DVV_SIBLINGS_WRITE; i++)
        assert_true(put(0, 1, 100 + i, NULL));
    struct op more = {.kind = OP_PUT, .key = 1, .id = 999};
    assert_false(op_do(&more));
    assert_true(status_is(more.st, ST_TOO_LARGE));
    get(1, 1, &read);
    assert_int_equal(read.value_count, LIMIT_DVV_SIBLINGS_WRITE);
    assert_false(returned(&read, 999));
    assert_true(put(0, 1, 1000, &read)); /* who merges them goes on */
    /* Bytes are bounded, too. */
    struct op large = {.kind = OP_PUT, .key = 2, .id = 1, .size = LIMIT_SIBLINGS_WRITE_BYTES};
    assert_false(op_do(&large));
    assert_true(status_is(large.st, ST_TOO_LARGE));
    large.size = LIMIT_SIBLINGS_WRITE_BYTES - 100;
    assert_true(op_do(&large));
    large.id = 2;
    assert_false(op_do(&large));
    assert_true(status_is(large.st, ST_TOO_LARGE));
    cluster_close();
}

static void
a_context_that_names_writes_that_never_were_is_refused(void **state)
{
    (void)state;
    static struct op read;
    story_begin();
    assert_true(put(0, 1, 10, NULL));
    get(0, 1, &read);
    /* context: kind, 0, entries: u16; then incarnation, counter, partition */
    store_u64(read.context + 4 + 8, UINT64_MAX - 5);
    struct op forged = {.kind = OP_PUT, .key = 1, .id = 20, .saw = &read};
    assert_false(op_do(&forged));
    assert_true(status_is(forged.st, ST_INVALID));
    get(0, 1, &read);
    assert_true(read.value_count == 1 && returned(&read, 10));
    cluster_close();
}

/* ---- a disk that stands still ---- */

/* No write of the node's log, or of its tables, ends before the time has passed. */
static void
disk_stall(u32 node, u64 ns)
{
    sim_node_disk_stall(world.rig.nodes[node].machine, SIM_POINT_WRITE, ns);
}

/* Whether it was over by its deadline, but for what a turn takes. */
static bool
in_time(const struct op *op)
{
    return op->ended && op->ended_ns - op->begun_ns <= op->deadline_ns + MS(50);
}

/* What is put through the node within a second comes to this. */
static bool
put_ends(u32 node, u32 key, u64 id, status expected)
{
    struct op op = {.kind = OP_PUT, .node = node, .key = key, .id = id, .deadline_ns = SECONDS(1)};
    return !op_do(&op) && in_time(&op) && status_is(op.st, expected);
}

static void
key_read_of_all(u32 key, struct op *out)
{
    *out = (struct op){.kind = OP_READ, .key = key, .level = REPLICATE_ALL};
    assert_true(op_do(out));
}

/* The coordinator's disk stands still for half a minute. A put is told by its deadline: unknown
 * where it may be in the own store, not done where it waited for a lease, or for who has the key.
 * Once the disk goes on nothing is lost, and no dot was given twice. */
static void
puts_end_by_their_deadlines_while_the_own_disk_stands_still(void **state)
{
    (void)state;
    static struct op read, slow;
    static struct peer_rig_job job;
    story_begin();
    assert_true(put(0, 1, 10, NULL)); /* its partition has a lease */
    disk_stall(0, SECONDS(30));
    assert_true(put_ends(0, 1, 11, ST_UNKNOWN_OUTCOME));
    assert_true(put_ends(0, 2, 20, ST_TIMED_OUT)); /* that has none */
    /* One that may wait for long keeps key 3, and the storing of leases. */
    slow = (struct op){.kind = OP_PUT, .key = 3, .id = 30, .deadline_ns = SECONDS(20)};
    slow.begun_ns = sim_now_ns(world.rig.sim);
    peer_rig_give(&world.rig, 0, 0, &job, op_run, &slow);
    peer_rig_run(&world.rig, MS(10));
    assert_true(put_ends(0, 3, 31, ST_TIMED_OUT));
    assert_true(put_ends(0, 4, 40, ST_TIMED_OUT));
    /* A read that brings what others have here waits no longer, either. */
    assert_true(put(1, 3, 32, NULL));
    read = (struct op){.kind = OP_READ, .key = 3, .deadline_ns = SECONDS(1)};
    (void)op_do(&read);
    assert_true(in_time(&read));
    peer_rig_run(&world.rig, SECONDS(8)); /* the lease that was there is over */
    assert_true(put_ends(0, 1, 12, ST_TIMED_OUT));
    peer_rig_run(&world.rig, SECONDS(20));
    assert_true(in_time(&slow) && status_is(slow.st, ST_TIMED_OUT));

    for (u32 key = 1; key <= 4; key++)
        assert_true(put(0, key, 10 * key + 5, NULL));
    key_read_of_all(1, &read);
    assert_int_equal(read.value_count, 3); /* the unknown one was done */
    assert_true(returned(&read, 10) && returned(&read, 11) && returned(&read, 15));
    key_read_of_all(2, &read);
    assert_true(read.value_count == 1 && returned(&read, 25));
    key_read_of_all(3, &read);
    assert_int_equal(read.value_count, 2);
    assert_true(returned(&read, 32) && returned(&read, 35));
    key_read_of_all(4, &read);
    assert_true(read.value_count == 1 && returned(&read, 45));
    cluster_close();
}

/* The same until the store takes nothing any more. */
static void
puts_and_reads_end_by_their_deadlines_without_room(void **state)
{
    (void)state;
    static struct op read;
    const u32 keys = 40;
    story_begin();
    for (u32 key = 0; key < keys; key++)
        assert_true(put(0, key, 100 + key, NULL));
    disk_stall(0, SECONDS(30));
    struct op fill = {.kind = OP_PUT, .size = KIB(100), .deadline_ns = MS(50)};
    for (fill.key = 0; fill.key < keys; fill.key++) {
        fill.id = 200 + fill.key;
        assert_false(op_do(&fill));
        assert_true(in_time(&fill));
        if (status_is(fill.st, ST_TIMED_OUT)) break;
        assert_true(status_is(fill.st, ST_UNKNOWN_OUTCOME));
    }
    assert_true(fill.key < keys);
    u32 key = keys - 1;
    struct op other = {.kind = OP_PUT, .node = 1, .key = key, .id = 300, .size = KIB(100)};
    peer_rig_cut(&world.rig, 0, 1); /* only the read brings it, from node 3 */
    assert_true(op_do(&other));
    read = (struct op){.kind = OP_READ, .key = key, .deadline_ns = SECONDS(1)};
    (void)op_do(&read);
    assert_true(in_time(&read));
    peer_rig_heal(&world.rig, 0, 1);
    peer_rig_run(&world.rig, SECONDS(35));
    for (u32 i = 0; i < keys; i++) {
        key_read_of_all(i, &read);
        assert_true(returned(&read, 100 + i) && (i != key || returned(&read, 300)));
    }
    cluster_close();
}

/* Node 0 has a large set, node 1 none, and who coordinates has no memory for the large one: its own,
 * or the other's. */
static void
a_coordinator_without_memory_for_a_set_is_not_gone(void **state)
{
    (void)state;
    static struct op read;
    story_begin();
    world.down[1] = world.down[2] = true; /* as far as anybody knows */
    struct op large = {.kind = OP_PUT, .key = 1, .id = 10, .size = KIB(20), .level = REPLICATE_ONE};
    assert_true(op_do(&large));
    world.down[1] = false;
    for (u32 node = 0; node < 2; node++) {
        struct replicator *r = world.apps[node].replicator;
        struct budget *all = r->options.budget, few;
        budget_init(&few, "few", KIB(4), NULL);
        r->options.budget = &few;
        read = (struct op){.kind = OP_READ, .node = node, .key = 1};
        assert_false(op_do(&read));
        assert_true(status_is(read.st, ST_OVERLOADED));
        r->options.budget = all;
        assert_int_equal(few.used_bytes, 0);
    }
    get(1, 1, &read);
    assert_true(returned(&read, 10));
    cluster_close();
}

/* ---- replicas get the same states in any order ---- */

/* Some states of a history with three writers that meet now and then. */
static void
states_make(struct states *states, struct prng *prng, struct budget *budget, u64 base)
{
    struct dvvset sets[3];
    u64 counters[3] = {0};
    for (u32 i = 0; i < 3; i++)
        dvvset_init(&sets[i], budget);
    static u8 data[STATES_MAX][8]; /* sets borrow them */
    while (states->count < STATES_MAX) {
        u32 a = (u32)prng_below(prng, 3), b = (u32)prng_below(prng, 3);
        u32 at = states->count;
        if (a == b || prng_chance(prng, 1, 2)) {
            store_u64(data[at], at);
            struct dvv_value value = {.actor = {.incarnation = 7 + a, .partition = 1},
                                      .counter = ++counters[a],
                                      .version = base + at,
                                      .data = BYTES(data[at], 8)};
            if (prng_chance(prng, 1, 5)) {
                value.flags = DVV_DELETED;
                value.data = BYTES(NULL, 0);
            }
            const struct dvv_vector *saw =
                prng_chance(prng, 1, 2) ? dvvset_context(&sets[a]) : NULL;
            assert_true(ok(dvvset_update(&sets[a], saw, &value)));
        } else {
            struct dvvset both;
            dvvset_init(&both, budget);
            assert_true(ok(dvvset_sync(&sets[a], &sets[b], &both)));
            dvvset_deinit(&sets[a]);
            sets[a] = both;
        }
        buf_init(&states->bytes[at], budget);
        assert_true(ok(dvvset_encode(&sets[a], &states->bytes[at])));
        states->versions[at] = base + at * 1024;
        states->count++;
    }
    for (u32 i = 0; i < 3; i++)
        dvvset_deinit(&sets[i]);
}

static void
states_meet_in_any_order_with_equal_bytes(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "states", MIB(16), NULL);
    cluster_open(2, 3);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1));
    for (u32 key = 0; key < 40; key++) {
        struct states states = {.key = key};
        states_make(&states, &world.prng, &budget, hlc_version_at(HLC_EPOCH_MS + 1000));
        for (u32 node = 0; node < 3; node++) {
            states.order_count = 0;
            for (u32 i = 0; i < states.count; i++) { /* each, and some of them twice */
                states.order[states.order_count++] = i;
                if (prng_chance(&world.prng, 1, 2)) states.order[states.order_count++] = i;
            }
            for (u32 i = states.order_count; i > 1; i--) {
                u32 j = (u32)prng_below(&world.prng, i), kept = states.order[i - 1];
                states.order[i - 1] = states.order[j];
                states.order[j] = kept;
            }
            assert_true(peer_rig_do(&world.rig, node, 0, states_take, &states));
        }
        assert_true(same_everywhere(key, false));
        struct op read = {.kind = OP_READ, .key = key, .level = REPLICATE_ALL};
        assert_true(op_do(&read)); /* they meet once */
        peer_rig_run(&world.rig, MS(100));
        assert_true(same_everywhere(key, true));
        u64 version = read.version;
        read.value_count = 0;
        assert_true(op_do(&read)); /* and have nothing to tell each other any more */
        assert_int_equal(read.version, version);
        for (u32 i = 0; i < states.count; i++)
            buf_deinit(&states.bytes[i]);
    }
    cluster_close();
}

/* ---- hints ---- */

static void
hints_are_merged(void **state)
{
    (void)state;
    static struct op read;
    static struct look look;
    story_begin();
    away(2);
    world.down[2] = true;
    assert_true(put(0, 1, 10, NULL)); /* a hint for node 3 */
    /* Which takes a write of its own meanwhile, as somebody sees it who is on its side. */
    world.down[2] = false;
    struct op alone = {.kind = OP_PUT, .node = 2, .key = 1, .id = 30, .level = REPLICATE_ONE};
    assert_true(op_do(&alone));
    back(2);
    peer_rig_run(&world.rig, SECONDS(5));
    look_at(2, 1, &look);
    read = (struct op){.kind = OP_READ, .node = 2, .key = 1, .level = REPLICATE_ONE};
    assert_true(op_do(&read));
    assert_int_equal(read.value_count, 2);
    assert_true(same_everywhere(1, false));
    cluster_close();
}

/* What the replicas of a key have, for who looks into a failure. */
static void
stores_print(u32 key)
{
    static struct look look;
    struct topology_row row;
    topology_row(world.topology, KEYSPACE, token_partition(token_of(key), PARTITIONS), &row);
    for (u32 i = 0; i < row.count; i++) {
        look_at(row.write[i] - 1, key, &look);
        struct dvvset set;
        struct budget budget;
        budget_init(&budget, "look", MIB(1), NULL);
        dvvset_init(&set, &budget);
        if (!ok(dvvset_decode(BYTES(look.bytes, look.size), &set))) continue;
        fprintf(stderr, "node %u version %llx\n", row.write[i], (unsigned long long)look.version);
        for (u32 e = 0; e < set.seen.count; e++)
            fprintf(stderr, "  seen %llu: %llx\n",
                    (unsigned long long)set.seen.entries[e].actor.incarnation,
                    (unsigned long long)set.seen.entries[e].counter);
        for (u32 v = 0; v < set.count; v++)
            fprintf(stderr, "  value %llu of %llu: %llx flags %u\n",
                    (unsigned long long)(set.values[v].data.size >= 8
                                             ? load_u64(set.values[v].data.data)
                                             : 0),
                    (unsigned long long)set.values[v].actor.incarnation,
                    (unsigned long long)set.values[v].counter, set.values[v].flags);
        dvvset_deinit(&set);
    }
}

/* The one it is for is taken out of the cluster: it goes to all that hold the key now, who keeps it
 * among them. */
static void
hints_of_who_was_removed_are_merged_by_all(void **state)
{
    (void)state;
    static struct op read;
    static struct look look;
    cluster_open(1, 4);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1));
    struct topology_row row;
    topology_row(world.topology, KEYSPACE, token_partition(token_of(1), PARTITIONS), &row);
    u32 writer = row.write[0] - 1, other = row.write[1] - 1, gone = row.write[2] - 1;
    away(gone);
    world.down[gone] = true;
    assert_true(put(writer, 1, 10, NULL));
    /* The writer has a later sibling that the hint does not know of. */
    struct op alone = {.kind = OP_PUT, .node = writer, .key = 1, .id = 11};
    assert_true(op_do(&alone));
    topology_hold(world.topology);
    struct topology *next = replica_rig_apply_on(
        world.topology, (struct topology_command){.kind = TOPOLOGY_MEMBER_FORGET,
                                                  .member = replica_rig_member(gone, 1)});
    next = replica_rig_plan(next, 9);
    topology_next(next);
    peer_rig_run(&world.rig, SECONDS(8));
    topology_row(next, KEYSPACE, token_partition(token_of(1), PARTITIONS), &row);
    assert_int_equal(row.count, 3);
    for (u32 i = 0; i < row.count; i++) {
        look_at(row.write[i] - 1, 1, &look);
        assert_true(look.version != 0);
    }
    get(other, 1, &read);
    assert_int_equal(read.value_count, 2);
    peer_rig_run(&world.rig, SECONDS(1));
    assert_true(same_everywhere(1, false));
    struct hints_stats stats;
    hints_stats_get(world.apps[writer].hints, &stats);
    assert_true(stats.rerouted > 0 && stats.waiting == 0);
    cluster_close();
}

/* ---- a seed ---- */

static struct op ops[OPS_MAX];
static u32 op_count;

static bool
said_done(const struct op *op)
{
    return op->ended && ok(op->st);
}

static bool
said_not_done(const struct op *op)
{
    return op->ended && !ok(op->st) && !status_is(op->st, ST_UNKNOWN_OUTCOME);
}

/* Whether a write began before then, and may have been done, that saw the value. */
static bool
may_be_replaced(const struct op *p, u64 before_ns)
{
    for (u32 i = 0; i < op_count; i++) {
        const struct op *q = &ops[i];
        if (q->kind != OP_READ && q->saw != NULL && q->begun_ns < before_ns && !said_not_done(q) &&
            q->key == p->key && returned(q->saw, p->id))
            return true;
    }
    return false;
}

static void
judge_read(const struct op *read)
{
    for (u32 i = 0; i < op_count; i++) {
        const struct op *p = &ops[i];
        if (p->kind == OP_READ || p->key != read->key) continue;
        if (p->kind == OP_PUT && said_done(p) && p->ended_ns < read->begun_ns &&
            !returned(read, p->id) && !may_be_replaced(p, read->ended_ns))
            VIOLATED("S1: key %u: value %llu was acknowledged by node %u at %llu us, nobody "
                     "replaced it, and the read by node %u at %llu us has not got it",
                     p->key, (unsigned long long)p->id, p->node + 1,
                     (unsigned long long)p->ended_ns / 1000, read->node + 1,
                     (unsigned long long)read->begun_ns / 1000);
        if (said_done(p) && p->saw != NULL && p->ended_ns < read->begun_ns)
            for (u32 v = 0; v < p->saw->value_count; v++)
                if (returned(read, p->saw->values[v]))
                    VIOLATED("S2: key %u: value %llu was replaced by %llu, and read again",
                             read->key, (unsigned long long)p->saw->values[v],
                             (unsigned long long)p->id);
    }
    for (u32 v = 0; v < read->value_count; v++) {
        bool written = false;
        for (u32 i = 0; i < op_count; i++)
            written = written || (ops[i].kind == OP_PUT && ops[i].id == read->values[v] &&
                                  ops[i].key == read->key && ops[i].begun_ns <= read->ended_ns &&
                                  !said_not_done(&ops[i]));
        if (!written)
            VIOLATED("S3: key %u: value %llu was read, and not written", read->key,
                     (unsigned long long)read->values[v]);
    }
}

struct client {
    struct peer_rig_job job;
    struct op *op; /* NULL: none */
};

static struct client clients[CLIENTS];
static u64 restart_ns[PEER_RIG_NODES_MAX];
static u32 disk_lost; /* a node that did, + 1: one in a seed, of W = 2 */

static bool
is_replica(u32 node, u32 key)
{
    return topology_holds(world.topology, node + 1, token_partition(token_of(key), PARTITIONS));
}

static const struct op *
some_read(u32 key)
{
    for (u32 tries = 0; tries < 8 && op_count > 0; tries++) {
        u32 back_by = (u32)prng_below(&world.prng, MIN(op_count, 20u));
        const struct op *op = &ops[op_count - 1 - back_by];
        if (op->kind == OP_READ && op->key == key && said_done(op)) return op;
    }
    return NULL;
}

static void
client_begin(struct client *client)
{
    if (op_count == OPS_MAX) return;
    struct prng *prng = &world.prng;
    u32 key = (u32)prng_below(prng, KEYS);
    u32 node = (u32)prng_below(prng, world.rig.node_count);
    if (!runs(node) || !is_replica(node, key)) return;
    const struct op *saw = some_read(key);
    struct op *op = &ops[op_count++];
    *op = (struct op){.kind = prng_chance(prng, 1, 3) ? OP_READ : OP_PUT,
                      .key = key,
                      .node = node,
                      .begun_ns = sim_now_ns(world.rig.sim),
                      .deadline_ns = MS(prng_range(prng, 20, 800))};
    if (prng_chance(prng, 1, 20)) op->level = REPLICATE_ALL;
    if (op->kind == OP_PUT) {
        if (!prng_chance(prng, 1, 3)) op->saw = saw;
        if (op->saw != NULL && prng_chance(prng, 1, 6)) op->kind = OP_DELETE;
        op->id = op_count;
    }
    client->op = op;
    peer_rig_give(&world.rig, node, 0, &client->job, op_run, op);
}

static void
clients_turn(bool more)
{
    for (u32 i = 0; i < CLIENTS; i++) {
        struct client *client = &clients[i];
        if (client->op != NULL && (client->op->ended || peer_rig_job_over(&client->job)))
            client->op = NULL;
        if (client->op == NULL && more && prng_chance(&world.prng, 1, 3)) client_begin(client);
    }
}

static bool
clients_idle(void)
{
    for (u32 i = 0; i < CLIENTS; i++)
        if (clients[i].op != NULL) return false;
    return true;
}

static void
node_crash(u32 node, bool process_only)
{
    if (!runs(node)) return;
    reached.crashes++;
    peer_rig_crash(&world.rig, node, process_only);
    restart_ns[node] = sim_now_ns(world.rig.sim) + MS(prng_range(&world.prng, 1, 400));
}

static bool
write_acknowledged(void *arg)
{
    (void)arg;
    return world.acknowledged;
}

/* Some power cuts come in the moment of an acknowledgement, which is when what is not durable would
 * be missed. */
static void
world_turn(void)
{
    struct prng *prng = &world.prng;
    world.acknowledged = false;
    u64 ns = prng_below(prng, MS(6));
    if (!prng_chance(prng, 1, 12)) {
        peer_rig_run(&world.rig, ns);
        return;
    }
    if (!peer_rig_run_until(&world.rig, write_acknowledged, NULL, MS(20))) return;
    bool all = prng_chance(prng, 1, 3);
    u32 one = (u32)prng_below(prng, world.rig.node_count);
    for (u32 i = 0; i < world.rig.node_count; i++)
        if (all || i == one) node_crash(i, false);
}

static void
nodes_turn(void)
{
    struct prng *prng = &world.prng;
    u64 now = sim_now_ns(world.rig.sim);
    for (u32 i = 0; i < world.rig.node_count; i++) {
        world.down[i] = !runs(i);
        if (runs(i) || now < restart_ns[i]) continue;
        peer_rig_start(&world.rig, i);
        world.down[i] = false;
    }
    if (!prng_chance(prng, 1, 60)) return;
    node_crash((u32)prng_below(prng, world.rig.node_count), prng_chance(prng, 1, 3));
}

static void
links_turn(void)
{
    struct prng *prng = &world.prng;
    if (!prng_chance(prng, 1, 30)) return;
    u32 a = (u32)prng_below(prng, world.rig.node_count);
    u32 b = (u32)prng_below(prng, world.rig.node_count);
    if (a == b) return;
    peer_rig_link_flip(&world.rig, a, b);
}

static void
heal(void)
{
    peer_rig_heal_all(&world.rig);
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (!runs(i)) peer_rig_start(&world.rig, i);
        world.down[i] = false;
    }
    peer_rig_run(&world.rig, SECONDS(8)); /* hints come, too, with their pauses */
}

static struct op *
read_all(u32 key)
{
    struct topology_row row;
    topology_row(world.topology, KEYSPACE, token_partition(token_of(key), PARTITIONS), &row);
    for (u32 i = 0; i < 20 && op_count < OPS_MAX; i++) {
        struct op *read = &ops[op_count];
        *read = (struct op){.kind = OP_READ,
                            .key = key,
                            .node = row.write[prng_below(&world.prng, row.count)] - 1,
                            .level = REPLICATE_ALL};
        if (!op_do(read)) continue;
        op_count++;
        return read;
    }
    VIOLATED("key %u: cannot be read from all once all is healed", key);
    return NULL;
}

/* A disk is lost in the middle, when the others have all that it had: then W are enough again. */
static void
disk_turn(void)
{
    u32 node = (u32)prng_below(&world.prng, world.rig.node_count);
    for (u32 turn = 0; turn < 1000 && !clients_idle(); turn++) {
        clients_turn(false);
        peer_rig_run(&world.rig, MS(5));
    }
    heal();
    for (u32 key = 0; key < KEYS; key++)
        (void)read_all(key);
    peer_rig_run(&world.rig, SECONDS(1));
    reached.wipes++;
    peer_rig_crash(&world.rig, node, false);
    disk_lose(node);
    /* Others write meanwhile, and it writes before it has been read to. */
    restart_ns[node] = sim_now_ns(world.rig.sim) + MS(100);
    disk_lost = node + 1;
}

static bool
seed_run(u64 seed)
{
    u32 nodes = seed % 5 == 0 ? 5 : 3;
    cluster_open(seed, nodes);
    struct prng *prng = &world.prng;
    world.rig.options.buggify = prng_chance(prng, 1, 2);
    world.rig.options.disk.latency_ns_max = MS(prng_range(prng, 1, 6));
    world.rig.options.net.latency_ns_max = prng_range(prng, 200, 4000) * NS_PER_US;
    op_count = 0;
    disk_lost = 0;
    memset(clients, 0, sizeof(clients));
    memset(restart_ns, 0, sizeof(restart_ns));
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, MS(prng_below(prng, 600)));
    u64 most = prng_range(prng, 60, 200);
    bool loses = prng_chance(prng, 1, 3);
    for (u32 turn = 0; turn < 3000 && op_count < most && world.violation[0] == '\0'; turn++) {
        clients_turn(true);
        nodes_turn();
        links_turn();
        if (loses && disk_lost == 0 && op_count > most / 2) disk_turn();
        world_turn();
    }
    for (u32 turn = 0; turn < 1000 && !clients_idle(); turn++) {
        clients_turn(false);
        peer_rig_run(&world.rig, MS(5));
    }
    heal();
    for (u32 key = 0; key < KEYS && world.violation[0] == '\0'; key++) {
        struct op *read = read_all(key);
        if (read != NULL && read->value_count > 1) reached.siblings++;
        bool same = false;
        /* What mends a replica may be refused by chance (a fiber); the next read does it again. */
        for (u32 tries = 0; tries < 8 && !same && world.violation[0] == '\0'; tries++) {
            (void)read_all(key);
            peer_rig_run(&world.rig, MS(200));
            same = same_everywhere(key, true);
        }
        if (!same) {
            VIOLATED("S4: key %u: replicas differ", key);
            stores_print(key);
        }
    }
    for (u32 i = 0; i < op_count; i++) {
        if (ops[i].kind == OP_READ && said_done(&ops[i])) judge_read(&ops[i]);
        if (said_not_done(&ops[i]) && ops[i].kind != OP_READ) reached.refused++;
    }
    if (world.violation[0] != '\0')
        print_error("seed %llu: %s\n", (unsigned long long)seed, world.violation);
    bool failed = world.violation[0] != '\0';
    cluster_close();
    return !failed;
}

static void
concurrent_writes_are_kept_whatever_fails(void **state)
{
    (void)state;
    struct seeds seeds = seeds_chosen(SEED_COUNT);
    u32 failed = seeds_run(&seeds, 5, seed_run);
    if (getenv("SIM_STATS") != NULL)
        fprintf(stderr,
                "siblings %llu unions %llu wipes %llu hints %llu crashes %llu refused %llu\n",
                (unsigned long long)reached.siblings, (unsigned long long)reached.unions,
                (unsigned long long)reached.wipes, (unsigned long long)reached.hints,
                (unsigned long long)reached.crashes, (unsigned long long)reached.refused);
    assert_int_equal(failed, 0);
    if (seeds_count(&seeds) < 100) return;
    assert_true(reached.siblings > 25 && reached.unions > 25 && reached.wipes > 10);
    assert_true(reached.hints > 25 && reached.crashes > 100);
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
        cmocka_unit_test(writes_on_both_sides_of_a_cut_are_kept),
        cmocka_unit_test(a_write_replaces_what_its_writer_saw_and_nothing_else),
        cmocka_unit_test(a_wiped_node_writes_under_a_new_name),
        cmocka_unit_test(an_old_tombstone_does_not_swallow_a_new_write),
        cmocka_unit_test(a_clock_that_is_an_hour_off_loses_no_sibling),
        cmocka_unit_test(a_damaged_set_at_the_coordinator_loses_nothing),
        cmocka_unit_test(counters_grow_over_crashes_even_when_the_clock_is_set_back),
        cmocka_unit_test(who_has_forgotten_own_dots_goes_on_under_another_name),
        cmocka_unit_test(who_gains_a_partition_writes_there_when_it_has_fetched),
        cmocka_unit_test(too_many_siblings_are_refused),
        cmocka_unit_test(a_context_that_names_writes_that_never_were_is_refused),
        cmocka_unit_test(puts_end_by_their_deadlines_while_the_own_disk_stands_still),
        cmocka_unit_test(puts_and_reads_end_by_their_deadlines_without_room),
        cmocka_unit_test(a_coordinator_without_memory_for_a_set_is_not_gone),
        cmocka_unit_test(states_meet_in_any_order_with_equal_bytes),
        cmocka_unit_test(hints_are_merged),
        cmocka_unit_test(hints_of_who_was_removed_are_merged_by_all),
    };
    const struct CMUnitTest seeds[] = {
        cmocka_unit_test(concurrent_writes_are_kept_whatever_fails),
    };
    int failed = 0;
    if (!seeds_is_one()) failed += cmocka_run_group_tests_name("stories", stories, NULL, NULL);
    failed += cmocka_run_group_tests_name("seeds", seeds, NULL, NULL);
    return failed;
}
