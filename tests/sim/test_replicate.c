/* SPDX-License-Identifier: MIT
 *
 * test_replicate.c -- replicated keys between nodes on the simulated link: seeds, then small
 * stories.
 *
 * A seed is a cluster of three or five nodes with their stores, skewed clocks (one may be a second
 * off), and clients that read and write a few keys through any replica, while nodes lose power or
 * their process, links are cut, shards stall, and in some seeds a fifth member joins, stage by
 * stage (the data of what it gains is fetched as the topology's promise T3 says). What every
 * operation began, ended and answered with is kept, and judged at the end, key by key:
 *
 *   J1  Of two operations that were acknowledged, one after the other: the second has a higher
 *       version if it is a write, and not a lower one if it is a read. So nothing acknowledged is
 *       lost, reads see the latest, and what was read once is read again.
 *   J2  A value that is read was written to this key, not later than the read's end, and not by a
 *       write that said that it was not done.
 *   J3  A version is one write.
 *   J4  Once all is healed and every key was read from all replicas, all have the same.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/retry.h"
#include "../seeds.h"
#include "base/hash.h"
#include "cluster/replicate_internal.h"
#include "io/file.h"
#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"
#include "replica_rig.h"

#define MS(n)      ((u64)(n)*NS_PER_MS)
#define SECONDS(n) ((u64)(n)*NS_PER_S)

#define PARTITIONS 16u
#define STAGES     6u
#define KEYS       5u
#define CLIENTS    6u
#define OPS_MAX    400u
#define VALUE_MAX  (1u << 20)
/* So many pass everything that can happen. */
#define SEED_COUNT_WHOLE 300u
#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 12u
#else
#define SEED_COUNT SEED_COUNT_WHOLE
#endif

/* ---- the cluster ---- */

struct world {
    struct peer_rig rig;
    struct prng prng;
    u64 seed;
    struct budget budget; /* of topologies */
    struct topology *stages[STAGES];
    u32 stage_count;
    u32 stage[PEER_RIG_NODES_MAX]; /* what each node has, or will have when it starts */
    bool clocks_are_ahead;         /* as others say */
    bool down[PEER_RIG_NODES_MAX]; /* as far as anybody knows: what `alive` says */
    bool optimist;                 /* everybody is believed to live */
    u32 spread;                    /* one of so many turns brings a stage to a node */
    u64 memtable_bytes;
    u32 read_quorum; /* 0: as ever */
    struct replica_app apps[PEER_RIG_NODES_MAX][PEER_RIG_SHARDS_MAX];
    bool acknowledged; /* a write was, and now is a good moment for a power cut */
    char violation[512];
};

static struct world world; /* large */

#define VIOLATED(...)                                                                              \
    do {                                                                                           \
        if (world.violation[0] == '\0')                                                            \
            snprintf(world.violation, sizeof(world.violation), __VA_ARGS__);                       \
    } while (0)

static struct replicate_stats reached; /* of all seeds */
static u64 disk_reads_left;            /* of all seeds */

static bool
clock_is_ahead(void *arg)
{
    (void)arg;
    return world.clocks_are_ahead;
}

static bool
node_alive(void *arg, u32 member)
{
    (void)arg;
    return world.optimist || !world.down[member - 1];
}

static void
stats_add(const struct replicator *replicator)
{
    struct replicate_stats stats;
    replicate_stats_get(replicator, &stats);
    for (size_t i = 0; i < sizeof(stats) / sizeof(u64); i++)
        ((u64 *)&reached)[i] += ((const u64 *)&stats)[i];
}

static MAY_YIELD status
node_main(struct peer_rig_node *node)
{
    u32 shard = io_shard_index();
    struct replica_app *app = &world.apps[node->index][shard];
    char dir[32];
    snprintf(dir, sizeof(dir), "/store%u", shard);
    struct replicator_options options = {.alive = node_alive, .clock_is_ahead = clock_is_ahead};
    status st = replica_rig_app_open(node, dir, world.memtable_bytes, NULL, &options, app);
    if (!ok(st)) return st;
    replicator_topology_set(app->replicator, world.stages[world.stage[node->index]],
                            node->index + 1);
    peer_rig_serve(node);
    stats_add(app->replicator);
    return replica_rig_app_close(app);
}

/* ---- topologies ---- */

/* A member may be left behind, since it is believed dead, and is not: without the fence it and a
 * replica one stage behind acknowledge what readers of the next stage do not see. */
static struct topology *
fenced(struct topology *from)
{
    return replica_rig_apply(
        from, (struct topology_command){.kind = TOPOLOGY_FENCE, .session = from->session});
}

/* members of them, N = replicas; with a stage for each step of one more that joins, if wanted. */
static void
topologies_make(u32 members, u32 replicas, u32 shard_count, bool one_joins)
{
    budget_init(&world.budget, "topologies", MIB(64), NULL);
    struct topology *now = replica_rig_found(&world.budget, PARTITIONS, replicas, shard_count);
    if (world.read_quorum != 0) {
        struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .options = now->keyspaces[0]};
        if (world.read_quorum == 1) { /* one after the other, so that quorums overlap */
            set.options.write_quorum = (u8)replicas;
            now = replica_rig_apply_on(now, set);
        }
        set.options.read_quorum = (u8)world.read_quorum;
        now = replica_rig_apply_on(now, set);
    }
    if (members > 1) now = replica_rig_grow(now, members, shard_count);
    if (one_joins)
        now = replica_rig_apply_on(
            now, (struct topology_command){.kind = TOPOLOGY_MEMBER_ADD,
                                           .member = replica_rig_member(members, shard_count)});
    CHECK(now->stage == STAGE_NONE);
    world.stage_count = 1;
    world.stages[0] = now;
    if (!one_joins) return;
    world.stage_count = STAGES;
    world.stages[1] =
        replica_rig_apply(now, (struct topology_command){.kind = TOPOLOGY_PLAN, .session = 2});
    world.stages[2] = fenced(world.stages[1]);
    topology_hold(world.stages[2]);
    world.stages[3] = replica_rig_advance(world.stages[2], 2);
    world.stages[4] = fenced(world.stages[3]);
    world.stages[5] = replica_rig_apply(
        world.stages[4], (struct topology_command){.kind = TOPOLOGY_ADVANCE, .session = 2});
    CHECK(world.stages[1]->stage == STAGE_WRITE_BOTH && world.stages[3]->stage == STAGE_READ_NEXT &&
          world.stages[5]->stage == STAGE_NONE);
}

static void
topologies_free(void)
{
    for (u32 i = 0; i < world.stage_count; i++)
        replica_rig_free(world.stages[i]);
}

static void
cluster_open_as(u64 seed, u32 nodes, u32 shard_count, bool one_joins, u32 read_quorum)
{
    memset(&world, 0, sizeof(world));
    world.seed = seed;
    world.read_quorum = read_quorum;
    world.memtable_bytes = KIB(256);
    prng_init(&world.prng, seed);
    world.rig =
        (struct peer_rig){.node_count = nodes, .shard_count = shard_count, .shard_main = node_main};
    sim_options_default(&world.rig.options, seed);
    world.rig.options.print_log = seeds_is_one();
    topologies_make(one_joins ? nodes - 1 : nodes, 3, shard_count, one_joins);
}

static void
cluster_open(u64 seed, u32 nodes, u32 shard_count, bool one_joins)
{
    cluster_open_as(seed, nodes, shard_count, one_joins, 0);
}

static void
cluster_close(void)
{
    peer_rig_close(&world.rig);
    topologies_free();
}

/* ---- keys and values ---- */

static struct bytes
key_of(u32 key)
{
    static char names[64][24];
    int size = snprintf(names[key], sizeof(names[key]), "key:%u", (unsigned)key);
    return BYTES(names[key], size);
}

static u32
value_size(u64 id)
{
    return 8 + (id % 29 == 0 ? 20000 : (u32)(id % 200));
}

static struct bytes
value_of(u64 id, u8 *out, u32 size)
{
    memset(out, (int)id, size);
    store_u64(out, id);
    return BYTES(out, size);
}

static u64
value_id(struct bytes value)
{
    static u8 expected[VALUE_MAX];
    if (value.size < 8) return UINT64_MAX;
    u64 id = load_u64(value.data);
    if (!bytes_equal(value, value_of(id, expected, (u32)value.size))) return UINT64_MAX;
    return id;
}

static u32
shard_of(u32 key)
{
    return partition_shard(token_partition(hash_token(key_of(key)), PARTITION_COUNT_DEFAULT),
                           world.rig.shard_count, PARTITION_COUNT_DEFAULT);
}

static u32
partition_of(u32 key)
{
    return token_partition(hash_token(key_of(key)), PARTITIONS);
}

/* ---- operations ---- */

enum op_kind { OP_READ, OP_WRITE, OP_DELETE };

struct op {
    enum op_kind kind;
    u32 key, node;
    u16 keyspace;
    enum replicate_level level;
    u64 id; /* that was written or read; 0: none */
    u64 expire_ms;
    u32 size; /* 0: value_size(id) */
    u64 begun_ns, ended_ns;
    u64 deadline_ns; /* from the beginning */
    bool ended;
    status st;
    u64 version;
};

static void
op_write(struct op *op, struct replica_app *app)
{
    static u8 bytes[VALUE_MAX];
    struct bytes key = key_of(op->key);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    u32 size = op->size != 0 ? op->size : value_size(op->id);
    bool added = op->kind == OP_DELETE
                     ? lsm_batch_delete(&batch, op->keyspace, hash_token(key), key)
                     : lsm_batch_put(&batch, op->keyspace, hash_token(key), key,
                                     value_of(op->id, bytes, size), op->expire_ms);
    CHECK(added);
    op->st = replicate_write(app->replicator, op->level, &batch, UINT64_MAX,
                             io_now_ns() + op->deadline_ns, &op->version);
    lsm_batch_deinit(&batch);
}

static void
op_read(struct op *op, struct replica_app *app)
{
    struct bytes key = key_of(op->key);
    struct replicate_value value;
    op->st = replicate_read(app->replicator, op->level, op->keyspace, hash_token(key), key,
                            io_now_ns() + op->deadline_ns, &value);
    if (ok(op->st)) {
        op->version = value.version;
        op->id = value.found ? value_id(value.value) : 0;
        if (op->id == UINT64_MAX) VIOLATED("key %u: a value that nobody wrote", op->key);
    }
    replicate_value_release(&value);
}

static void
op_run(struct peer_rig_node *node, void *arg)
{
    struct op *op = arg;
    struct replica_app *app = &world.apps[node->index][io_shard_index()];
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
    return peer_rig_do(&world.rig, op->node, shard_of(op->key), op_run, op) && ok(op->st);
}

static bool
op_ended(void *arg)
{
    const struct op *op = arg;
    return op->ended;
}

/* What a node's own store has, as nobody but a test may ask. */
struct look {
    u32 key;
    u64 version, id;
    bool ended;
};

static void
look_run(struct peer_rig_node *node, void *arg)
{
    struct look *look = arg;
    struct replica_app *app = &world.apps[node->index][io_shard_index()];
    struct bytes key = key_of(look->key);
    struct own_read own;
    status st = own_read(app->replicator, 0, hash_token(key), key, &own);
    CHECK(ok(st));
    look->version = own.version;
    bool lives = own.found && (own.expire_ms == 0 || own.expire_ms > io_wall_ms());
    look->id = lives ? value_id(own.value.value) : 0;
    if (own.found) lsm_value_release(&own.value);
    look->ended = true;
}

static struct look
look_at(u32 node, u32 key)
{
    struct look look = {.key = key};
    CHECK(peer_rig_do(&world.rig, node, shard_of(key), look_run, &look));
    return look;
}

/* ---- a history ---- */

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

static void
judge_pair(const struct op *a, const struct op *b)
{
    if (!said_done(a) || !said_done(b) || a->key != b->key) return;
    if (a->version == b->version && a->version != 0 && a->id != b->id)
        VIOLATED("key %u: version %llu is the values %llu and %llu", a->key,
                 (unsigned long long)a->version, (unsigned long long)a->id,
                 (unsigned long long)b->id);
    if (a->ended_ns >= b->begun_ns) return;
    bool right = b->kind == OP_READ ? b->version >= a->version : b->version > a->version;
    if (!right)
        VIOLATED("key %u: %s by node %u ended at %llu us with version %llu (value %llu), then %s "
                 "by node %u began at %llu us and has %llu (value %llu)",
                 a->key, a->kind == OP_READ ? "a read" : "a write", a->node + 1,
                 (unsigned long long)a->ended_ns / 1000, (unsigned long long)a->version,
                 (unsigned long long)a->id, b->kind == OP_READ ? "a read" : "a write", b->node + 1,
                 (unsigned long long)b->begun_ns / 1000, (unsigned long long)b->version,
                 (unsigned long long)b->id);
}

static void
judge_value(const struct op *read)
{
    if (!said_done(read) || read->kind != OP_READ || read->id == 0) return;
    for (u32 i = 0; i < op_count; i++) {
        const struct op *op = &ops[i];
        if (op->kind != OP_WRITE || op->id != read->id) continue;
        if (op->key != read->key || op->begun_ns > read->ended_ns || said_not_done(op))
            VIOLATED("key %u: value %llu was read, of key %u, begun %llu, ended %llu, %s",
                     read->key, (unsigned long long)read->id, op->key,
                     (unsigned long long)op->begun_ns, (unsigned long long)read->ended_ns,
                     op->ended ? status_name(op->st) : "-");
        return;
    }
    VIOLATED("key %u: value %llu was read, and never written", read->key,
             (unsigned long long)read->id);
}

static void
judge(void)
{
    for (u32 i = 0; i < op_count; i++) {
        judge_value(&ops[i]);
        for (u32 j = 0; j < op_count; j++)
            if (i != j) judge_pair(&ops[i], &ops[j]);
    }
}

/* ---- a seed ---- */

struct client {
    struct peer_rig_job job;
    struct op *op; /* NULL: none */
};

static struct client clients[CLIENTS];
static u64 restart_ns[PEER_RIG_NODES_MAX];
static u64 know_ns[PEER_RIG_NODES_MAX]; /* when others learn that it is down */
static i64 clock_off_ms[PEER_RIG_NODES_MAX];
static u32 lagging; /* a node that learns of no other stage, + 1; believed dead by who plans */

static bool
runs(u32 node)
{
    return peer_rig_runs(&world.rig, node);
}

static void
client_begin(struct client *client)
{
    if (op_count == OPS_MAX) return;
    struct prng *prng = &world.prng;
    u32 key = (u32)prng_below(prng, KEYS);
    u32 node = (u32)prng_below(prng, world.rig.node_count);
    /* Who is left behind goes on as if nothing was. */
    if (lagging != 0 && prng_chance(prng, 1, 3)) node = lagging - 1;
    if (!runs(node) ||
        !topology_holds(world.stages[world.stage[node]], node + 1, partition_of(key)))
        return;
    struct op *op = &ops[op_count++];
    *op = (struct op){.kind = prng_chance(prng, 1, 2) ? OP_READ : OP_WRITE,
                      .key = key,
                      .node = node,
                      .level = prng_chance(prng, 1, 8) ? REPLICATE_QUORUM : REPLICATE_DEFAULT,
                      .begun_ns = sim_now_ns(world.rig.sim),
                      .deadline_ns = MS(prng_range(prng, 20, 800))};
    if (prng_chance(prng, 1, 20)) op->level = REPLICATE_ALL;
    if (op->kind == OP_WRITE && prng_chance(prng, 1, 8)) op->kind = OP_DELETE;
    if (op->kind == OP_WRITE) op->id = op_count;
    client->op = op;
    peer_rig_give(&world.rig, node, shard_of(key), &client->job, op_run, op);
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
    struct prng *prng = &world.prng;
    if (!runs(node)) return;
    peer_rig_crash(&world.rig, node, process_only);
    u64 now = sim_now_ns(world.rig.sim);
    restart_ns[node] = now + MS(prng_range(prng, 1, 400));
    know_ns[node] = now + MS(prng_below(prng, 100));
}

static bool
write_acknowledged(void *arg)
{
    (void)arg;
    return world.acknowledged;
}

/* Lets the world turn for a while; some power cuts come in the moment of an acknowledgement, which
 * is when what is not durable would be missed: at one node, or at all. */
static void
world_turn(bool calm)
{
    struct prng *prng = &world.prng;
    world.acknowledged = false;
    u64 ns = prng_below(prng, MS(6));
    if (calm || !prng_chance(prng, 1, 12)) {
        peer_rig_run(&world.rig, ns);
        return;
    }
    if (!peer_rig_run_until(&world.rig, write_acknowledged, NULL, MS(20))) return;
    bool all = prng_chance(prng, 1, 3);
    u32 one = (u32)prng_below(prng, world.rig.node_count);
    for (u32 i = 0; i < world.rig.node_count; i++)
        if (all || i == one) node_crash(i, false);
}

/* A node starts without waiting for it, or loses its process. */
static void
nodes_turn(void)
{
    struct prng *prng = &world.prng;
    u64 now = sim_now_ns(world.rig.sim);
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (!runs(i) && now >= restart_ns[i]) {
            peer_rig_start(&world.rig, i);
            world.down[i] = false;
        }
        if (!runs(i) && now >= know_ns[i]) world.down[i] = true;
    }
    if (!prng_chance(prng, 1, 60)) return;
    node_crash((u32)prng_below(prng, world.rig.node_count), prng_chance(prng, 1, 3));
}

static void
links_turn(void)
{
    struct prng *prng = &world.prng;
    if (!prng_chance(prng, 1, 40)) return;
    u32 a = (u32)prng_below(prng, world.rig.node_count);
    u32 b = (u32)prng_below(prng, world.rig.node_count);
    if (a == b) return;
    peer_rig_link_flip(&world.rig, a, b);
    if (prng_chance(prng, 1, 3) && runs(a))
        sim_node_shard_stall(world.rig.nodes[a].machine,
                             (u32)prng_below(prng, world.rig.shard_count),
                             MS(prng_range(prng, 1, 60)));
}

static void
flush_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    (void)!ok(lsm_flush(world.apps[node->index][io_shard_index()].lsm));
}

/* What was written lately goes to the disk now and then, and some disks take long to read. */
static void
disks_turn(struct prng *prng)
{
    if (!prng_chance(prng, 1, 10)) return;
    u32 node = (u32)prng_below(prng, world.rig.node_count);
    u32 shard = (u32)prng_below(prng, world.rig.shard_count);
    if (runs(node)) (void)peer_rig_do(&world.rig, node, shard, flush_run, NULL);
    sim_node_disk_slow_set(world.rig.nodes[node].machine, SIM_POINT_READ,
                           prng_chance(prng, 1, 3) ? 0 : MS(prng_range(prng, 1, 80)));
}

/* ---- a member joins ---- */

static void
topology_take(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct replica_app *app = &world.apps[node->index][io_shard_index()];
    replicator_topology_set(app->replicator, world.stages[world.stage[node->index]],
                            node->index + 1);
}

/* Tells the nodes one after the other, with operations going on meanwhile. */
static bool
stage_spread(u32 stage)
{
    bool all = true;
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (i + 1 == lagging || world.stage[i] >= stage) continue;
        if (!runs(i) || !prng_chance(&world.prng, 1, world.spread)) {
            all = false;
            continue;
        }
        world.stage[i] = stage;
        for (u32 shard = 0; shard < world.rig.shard_count; shard++)
            (void)peer_rig_do(&world.rig, i, shard, topology_take, NULL);
    }
    return all;
}

/* Whether nothing that began with an older topology is under way: the barrier. */
static bool
stage_settled(u32 stage)
{
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (i + 1 == lagging || !runs(i)) continue;
        for (u32 shard = 0; shard < world.rig.shard_count; shard++) {
            const struct replicator *replicator = world.apps[i][shard].replicator;
            if (replicator_epoch(replicator) < world.stages[stage]->epoch) return false;
        }
    }
    return true;
}

struct fetch_job {
    u32 key;
    u64 version, id;
};

static void
fetch_store(struct peer_rig_node *node, void *arg)
{
    static u8 bytes[VALUE_MAX];
    struct fetch_job *fetch = arg;
    struct replica_app *app = &world.apps[node->index][io_shard_index()];
    struct bytes key = key_of(fetch->key);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    bool added = fetch->id == 0
                     ? lsm_batch_delete(&batch, 0, hash_token(key), key)
                     : lsm_batch_put(&batch, 0, hash_token(key), key,
                                     value_of(fetch->id, bytes, value_size(fetch->id)), 0);
    CHECK(added);
    batch.version = fetch->version;
    u64 seq;
    CHECK(ok(lsm_write(app->lsm, &batch, &seq)));
    CHECK(ok(lsm_wait_durable(app->lsm, seq)));
    lsm_batch_deinit(&batch);
}

/* What the new member gains, key by key, from a quorum. False: not yet. */
static bool
stage_fetch(u32 *next_key)
{
    const struct topology *topology = world.stages[2];
    while (*next_key < KEYS) {
        u32 key = *next_key;
        for (u32 gainer = 0; gainer < world.rig.node_count; gainer++) {
            if (!topology_gains(topology, gainer + 1, 0, partition_of(key))) continue;
            struct topology_row row;
            topology_row(topology, 0, partition_of(key), &row);
            u32 from = row.write[prng_below(&world.prng, row.count)] - 1;
            if (!runs(from) || !runs(gainer) || world.stage[from] < 2) return false;
            struct op read = {.kind = OP_READ, .key = key, .node = from, .deadline_ns = MS(300)};
            if (!op_do(&read)) return false;
            struct fetch_job fetch = {.key = key, .version = read.version, .id = read.id};
            if (read.version != 0 &&
                (!runs(gainer) ||
                 !peer_rig_do(&world.rig, gainer, shard_of(key), fetch_store, &fetch)))
                return false;
        }
        (*next_key)++;
    }
    return true;
}

static void
join_turn(u32 *stage, u32 *fetched)
{
    if (*stage == 0) {
        if (!prng_chance(&world.prng, 1, 30)) return;
        *stage = 1;
    }
    if (*stage >= world.stage_count || !stage_spread(*stage) || !stage_settled(*stage)) return;
    if (*stage == 2 && !stage_fetch(fetched)) return;
    (*stage)++;
}

/* ---- the end ---- */

static void
heal(void)
{
    peer_rig_heal_all(&world.rig);
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (!runs(i)) peer_rig_start(&world.rig, i);
        world.down[i] = false;
        sim_node_clock_step(world.rig.nodes[i].machine, -clock_off_ms[i]);
        clock_off_ms[i] = 0;
        sim_node_disk_slow_set(world.rig.nodes[i].machine, SIM_POINT_READ, 0);
    }
    sim_buggify_set(world.rig.sim, false); /* there is room before everybody */
}

static void
converge(void)
{
    for (u32 key = 0; key < KEYS; key++) {
        const struct topology *topology = world.stages[world.stage[0]];
        struct topology_row row;
        topology_row(topology, 0, partition_of(key), &row);
        struct op read = {.kind = OP_READ,
                          .key = key,
                          .node = row.write[prng_below(&world.prng, row.count)] - 1,
                          .level = REPLICATE_ALL};
        bool done = false;
        for (u32 i = 0; i < 20 && !done; i++)
            done = op_do(&read);
        if (!done) {
            VIOLATED("key %u: cannot be read from all once all is healed: %s", key,
                     status_name(read.st));
            return;
        }
        if (op_count < OPS_MAX) ops[op_count++] = read;
        peer_rig_run(&world.rig, MS(200));
        for (u32 i = 0; i < row.count; i++) {
            struct look look = look_at(row.write[i] - 1, key);
            if (look.version != read.version || look.id != read.id)
                VIOLATED("key %u: node %u has version %llu (value %llu), read was %llu (%llu)", key,
                         row.write[i], (unsigned long long)look.version,
                         (unsigned long long)look.id, (unsigned long long)read.version,
                         (unsigned long long)read.id);
        }
    }
}

static void
ops_print(void)
{
    for (u32 i = 0; i < op_count; i++) {
        const struct op *op = &ops[i];
        fprintf(stderr, "%10llu %10llu us node %u key %u %-6s level %d id %llu %s version %llu\n",
                (unsigned long long)op->begun_ns / 1000, (unsigned long long)op->ended_ns / 1000,
                op->node + 1, op->key,
                op->kind == OP_READ    ? "read"
                : op->kind == OP_WRITE ? "write"
                                       : "delete",
                op->level, (unsigned long long)op->id, op->ended ? status_name(op->st) : "-",
                (unsigned long long)op->version);
    }
}

static void
topologies_print(void)
{
    for (u32 key = 0; key < KEYS; key++) {
        for (u32 stage = 0; stage < world.stage_count; stage++) {
            struct topology_row row;
            topology_row(world.stages[stage], 0, partition_of(key), &row);
            fprintf(stderr, "key %u stage %u epoch %llu:", key, stage,
                    (unsigned long long)world.stages[stage]->epoch);
            for (u32 i = 0; i < row.count; i++)
                fprintf(stderr, " %u", row.write[i]);
            fprintf(stderr, " (%u) next", row.write_quorum);
            for (u32 i = 0; i < row.next_count; i++)
                fprintf(stderr, " %u", row.write_next[i]);
            fprintf(stderr, "\n");
        }
    }
    fprintf(stderr, "lagging: %u\n", lagging);
}

static bool
seed_run(u64 seed)
{
    bool joins = seed % 3 == 0;
    u32 nodes = joins || seed % 5 == 0 ? 5 : 3;
    u32 shards = seed % 4 == 0 ? 2 : 1;
    cluster_open(seed, nodes, shards, joins);
    struct prng *prng = &world.prng;
    world.optimist = prng_chance(prng, 1, 3);
    world.rig.options.buggify = prng_chance(prng, 1, 2);
    world.rig.options.disk.latency_ns_max = MS(prng_range(prng, 1, 6));
    world.rig.options.net.latency_ns_max = prng_range(prng, 200, 4000) * NS_PER_US;
    world.spread = prng_chance(prng, 1, 2) ? 4 : 20;
    bool calm = prng_chance(prng, 1, 6), slow_disks = seed % 7 == 0;
    struct prng disks;
    prng_init(&disks, seed);
    op_count = 0;
    memset(clients, 0, sizeof(clients));
    memset(restart_ns, 0, sizeof(restart_ns));
    memset(know_ns, 0, sizeof(know_ns));
    peer_rig_open(&world.rig);
    for (u32 i = 0; i < nodes; i++) {
        clock_off_ms[i] = (i64)prng_below(prng, 201) - 100; /* 200 between any two */
        sim_node_clock_step(world.rig.nodes[i].machine, clock_off_ms[i]);
    }
    if (prng_chance(prng, 1, 6)) {
        u32 node = (u32)prng_below(prng, nodes);
        i64 off = prng_chance(prng, 1, 2) ? 1000 : -1000;
        sim_node_clock_step(world.rig.nodes[node].machine, off);
        clock_off_ms[node] += off;
    }
    lagging = joins && prng_chance(prng, 1, 2) ? 1 + (u32)prng_below(prng, nodes - 1) : 0;
    peer_rig_run(&world.rig, MS(prng_below(prng, 600)));

    u32 stage = 0, fetched = 0;
    u64 most = prng_range(prng, 60, 150);
    for (u32 turn = 0; turn < 2000 && op_count < most && world.violation[0] == '\0'; turn++) {
        clients_turn(true);
        if (!calm) nodes_turn();
        if (!calm) links_turn();
        if (slow_disks) disks_turn(&disks);
        if (joins) join_turn(&stage, &fetched);
        world_turn(calm);
    }
    for (u32 turn = 0; turn < 1000 && !clients_idle(); turn++) {
        clients_turn(false);
        peer_rig_run(&world.rig, MS(5));
    }
    heal();
    if (stage > 0) {
        lagging = 0;
        for (u32 turn = 0; turn < 2000 && stage < world.stage_count; turn++) {
            join_turn(&stage, &fetched);
            peer_rig_run(&world.rig, MS(5));
        }
        if (stage < world.stage_count) VIOLATED("the plan does not end");
        for (u32 turn = 0; turn < 1000 && !stage_spread(world.stage_count - 1); turn++)
            peer_rig_run(&world.rig, MS(1));
    }
    peer_rig_run(&world.rig, SECONDS(4)); /* clocks that ran ahead are the past by now */
    if (world.violation[0] == '\0') converge();
    judge();
    if (world.violation[0] != '\0') {
        if (seeds_is_one()) {
            ops_print();
            topologies_print();
        }
        print_error("seed %llu: %s\n", (unsigned long long)seed, world.violation);
    }
    bool failed = world.violation[0] != '\0';
    disk_reads_left += sim_mark_count(world.rig.sim, "cluster.replicate.disk_read_left");
    cluster_close();
    return !failed;
}

static void
acknowledged_writes_are_read_whatever_fails(void **state)
{
    (void)state;
    struct seeds seeds = seeds_chosen(SEED_COUNT);
    u32 failed = seeds_run(&seeds, 5, seed_run);
    if (getenv("SIM_STATS") != NULL)
        fprintf(stderr,
                "reads %llu local %llu digests %llu mismatches %llu repairs %llu writes %llu "
                "restamped %llu unknown %llu unavailable %llu replica reads %llu writes %llu wrong "
                "epoch %llu hedged %llu missed %llu clocks %llu\n",
                (unsigned long long)reached.reads, (unsigned long long)reached.reads_local,
                (unsigned long long)reached.digests, (unsigned long long)reached.digest_mismatches,
                (unsigned long long)reached.repairs, (unsigned long long)reached.writes,
                (unsigned long long)reached.restamped, (unsigned long long)reached.unknown,
                (unsigned long long)reached.unavailable, (unsigned long long)reached.replica_reads,
                (unsigned long long)reached.replica_writes, (unsigned long long)reached.wrong_epoch,
                (unsigned long long)reached.hedged, (unsigned long long)reached.missed,
                (unsigned long long)reached.clocks_refused);
    assert_int_equal(failed, 0);
    if (seeds_count(&seeds) < SEED_COUNT_WHOLE) return;
    /* Nothing of this is left out by all seeds. */
    assert_true(reached.restamped > 10 && reached.repairs > 10 && reached.digest_mismatches > 10);
    assert_true(reached.unknown > 10 && reached.unavailable > 10 && reached.wrong_epoch > 0);
    assert_true(reached.hedged > 0 && reached.missed > 10 && reached.clocks_refused > 0);
    assert_true(disk_reads_left > 0);
}

/* ---- small stories ---- */

static void
story_of_reads(u32 read_quorum)
{
    lagging = 0;
    cluster_open_as(1, 3, 1, false, read_quorum);
    world.memtable_bytes = MIB(4);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1)); /* REPLICATE_QUIET_MS */
}

static void
story_begin(void)
{
    story_of_reads(0);
}

/* Nobody reaches the node, and everybody knows. */
static void
away(u32 node)
{
    peer_rig_isolate(&world.rig, node);
    world.down[node] = true;
}

static void
back(u32 node)
{
    peer_rig_rejoin(&world.rig, node);
    world.down[node] = false;
    peer_rig_run(&world.rig, SECONDS(2));
}

static void
values_of_a_mebibyte_are_read_and_brought_to_who_missed_them(void **state)
{
    (void)state;
    story_begin();
    away(2);
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 77, .size = LIMIT_VALUE_BYTES};
    assert_true(op_do(&write));
    back(2);
    assert_int_equal(look_at(2, 1).version, 0);
    struct op read = {.kind = OP_READ, .key = 1, .node = 2};
    assert_true(op_do(&read));
    assert_int_equal(read.id, 77);
    assert_int_equal(read.version, write.version);
    peer_rig_run(&world.rig, SECONDS(1));
    assert_int_equal(look_at(2, 1).version, write.version);
    assert_int_equal(look_at(2, 1).id, 77);
    cluster_close();
}

static void
nothing_is_sent_when_too_few_live(void **state)
{
    (void)state;
    story_begin();
    world.down[1] = world.down[2] = true;
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5}, read = {.kind = OP_READ, .key = 1};
    assert_false(op_do(&write));
    assert_true(status_is(write.st, ST_UNAVAILABLE));
    assert_false(op_do(&read));
    assert_true(status_is(read.st, ST_UNAVAILABLE));
    write.level = read.level = REPLICATE_ALL;
    world.down[1] = false;
    assert_false(op_do(&write));
    assert_true(status_is(write.st, ST_UNAVAILABLE));
    for (u32 node = 0; node < 3; node++)
        assert_int_equal(look_at(node, 1).version, 0);
    /* One is enough for `one`, and a read of one is the own value. */
    world.down[1] = true;
    write.level = read.level = REPLICATE_ONE;
    assert_true(op_do(&write));
    assert_true(op_do(&read));
    assert_int_equal(read.id, 5);
    cluster_close();
}

/* Cut off, and not known to be: the outcome is unknown, and said to be. */
static void
what_may_have_been_done_is_unknown(void **state)
{
    (void)state;
    story_begin();
    peer_rig_cut(&world.rig, 0, 1);
    peer_rig_cut(&world.rig, 0, 2);
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .deadline_ns = MS(300)};
    assert_false(op_do(&write));
    assert_true(status_is(write.st, ST_UNKNOWN_OUTCOME));
    /* It is in the own store, and no quorum has it: no read tells of it before one has. */
    assert_int_equal(look_at(0, 1).id, 5);
    struct op read = {.kind = OP_READ, .key = 1, .deadline_ns = MS(300)};
    assert_false(op_do(&read));
    assert_true(status_is(read.st, ST_UNAVAILABLE));
    peer_rig_heal(&world.rig, 0, 1);
    peer_rig_heal(&world.rig, 0, 2);
    peer_rig_run(&world.rig, SECONDS(2));
    read.deadline_ns = 0;
    assert_true(op_do(&read));
    assert_int_equal(read.id, 5);
    for (u32 node = 1; node < 3; node++) {
        struct op again = {.kind = OP_READ, .key = 1, .node = node};
        assert_true(op_do(&again));
        assert_int_equal(again.id, 5);
    }
    cluster_close();
}

static void
a_clock_that_runs_ahead_harms_its_own_writes_only(void **state)
{
    (void)state;
    story_begin();
    struct op first = {.kind = OP_WRITE, .key = 1, .node = 1, .id = 4};
    assert_true(op_do(&first));
    sim_node_clock_step(world.rig.nodes[0].machine, 3600 * 1000);
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .deadline_ns = MS(300)};
    assert_false(op_do(&write));
    assert_true(status_is(write.st, ST_UNKNOWN_OUTCOME));
    /* The others neither take its version nor wait for an hour. */
    for (u32 i = 0; i < 4; i++) {
        struct op read = {.kind = OP_READ, .key = 1, .node = 1 + i % 2};
        struct op next = {.kind = OP_WRITE, .key = 1, .node = 1 + i % 2, .id = 10 + i};
        assert_true(op_do(&read));
        assert_int_equal(read.id, i == 0 ? 4 : 9 + i);
        assert_true(op_do(&next));
    }
    cluster_close();
}

/* What the node has said that it stamps no more, on the shard of the first key. */
static void
said_run(struct peer_rig_node *node, void *arg)
{
    *(u64 *)arg = replicator_oldest_to_come(world.apps[node->index][io_shard_index()].replicator);
}

static void
forget_below_run(struct peer_rig_node *node, void *arg)
{
    const u64 *below = arg;
    lsm_purge_allow(world.apps[node->index][io_shard_index()].lsm, 0, *below, hlc_wall_ms(*below));
}

/* Nobody has written for long when it ends, so that its store tells of old stamps only; others have
 * collected what lies below what it said since, and take nothing from there any more. */
static void
a_clock_that_was_set_back_over_a_restart_keeps_what_was_said(void **state)
{
    (void)state;
    story_begin();
    struct op first = {.kind = OP_WRITE, .key = 1, .id = 4};
    assert_true(op_do(&first));
    peer_rig_run(&world.rig, SECONDS(600));
    u64 least = UINT64_MAX;
    for (u32 node = 0; node < 3; node++) {
        u64 said = 0;
        assert_true(peer_rig_do(&world.rig, node, shard_of(1), said_run, &said));
        least = MIN(least, said);
    }
    /* It goes on though nothing is written, and lags by less than a minute. */
    assert_true(hlc_wall_ms(least) > hlc_wall_ms(first.version) + 540 * 1000);
    for (u32 node = 1; node < 3; node++)
        assert_true(peer_rig_do(&world.rig, node, shard_of(1), forget_below_run, &least));

    peer_rig_crash(&world.rig, 0, false);
    sim_node_clock_step(world.rig.nodes[0].machine, -300 * 1000);
    peer_rig_start(&world.rig, 0);
    u64 said = 0;
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), said_run, &said));
    assert_true(said >= least);
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .deadline_ns = SECONDS(5)};
    assert_true(op_do(&write));
    assert_true(write.version > least);
    struct op read = {.kind = OP_READ, .key = 1, .node = 2};
    assert_true(op_do(&read));
    assert_int_equal(read.id, 5);
    cluster_close();
}

/* As if tables had come, or gone again: *arg: sixteenths of its memory. */
static void
index_grow_run(struct peer_rig_node *node, void *arg)
{
    struct lsm *lsm = world.apps[node->index][io_shard_index()].lsm;
    const i64 *sixteenths = arg;
    lsm->levels->table_stats.index_bytes +=
        (u64)(*sixteenths * (i64)(lsm->budget.limit_bytes / 16));
    CHECK(lsm_index_is_full(lsm) == (*sixteenths > 0));
}

/* It only takes deletes, which in a cluster are as many entries again: they go, and their indexes
 * with them, when everybody has said that nothing older comes. */
static void
a_store_full_of_indexes_tells_of_its_clock_yet(void **state)
{
    (void)state;
    story_begin();
    struct op first = {.kind = OP_WRITE, .key = 1, .id = 4};
    assert_true(op_do(&first));
    i64 more = 7;
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), index_grow_run, &more));
    struct op gone = {.kind = OP_DELETE, .key = 1};
    assert_true(op_do(&gone));
    peer_rig_run(&world.rig, SECONDS(120));
    u64 said = 0;
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), said_run, &said));
    assert_true(said > gone.version);
    more = -more;
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), index_grow_run, &more));
    cluster_close();
}

/* Asking again is in vain until something was deleted and merged: so the client is told that, and
 * not that somebody is busy; at once. */
static void
where_the_replicas_are_full_of_indexes_a_write_is_told_so(void **state)
{
    (void)state;
    story_begin();
    struct op first = {.kind = OP_WRITE, .key = 1, .id = 4};
    assert_true(op_do(&first));
    i64 more = 7;
    for (u32 node = 0; node < 3; node++)
        assert_true(peer_rig_do(&world.rig, node, shard_of(1), index_grow_run, &more));
    u64 begin_ns = sim_now_ns(world.rig.sim);
    struct op refused = {.kind = OP_WRITE, .key = 1, .id = 5, .deadline_ns = SECONDS(5)};
    assert_false(op_do(&refused));
    assert_true(status_is(refused.st, ST_FULL));
    assert_true(sim_now_ns(world.rig.sim) - begin_ns < SECONDS(1));
    struct op read = {.kind = OP_READ, .key = 1};
    assert_true(op_do(&read) && read.id == 4);
    struct op gone = {.kind = OP_DELETE, .key = 1};
    assert_true(op_do(&gone));
    /* One of them alone keeps nobody from writing. */
    i64 less = -more;
    for (u32 node = 0; node < 2; node++)
        assert_true(peer_rig_do(&world.rig, node, shard_of(1), index_grow_run, &less));
    struct op again = {.kind = OP_WRITE, .key = 1, .id = 6};
    assert_true(op_do(&again));
    assert_true(peer_rig_do(&world.rig, 2, shard_of(1), index_grow_run, &less));
    cluster_close();
}

/* Its stamps are not kept: started again with the right time, it has nothing to wait for. */
static void
a_clock_that_others_find_ahead_is_not_kept_over_a_restart(void **state)
{
    (void)state;
    story_begin();
    struct op first = {.kind = OP_WRITE, .key = 1, .id = 4};
    assert_true(op_do(&first));
    world.clocks_are_ahead = true;
    sim_node_clock_step(world.rig.nodes[0].machine, 3600 * 1000);
    peer_rig_run(&world.rig, SECONDS(120));
    peer_rig_crash(&world.rig, 0, false);
    sim_node_clock_step(world.rig.nodes[0].machine, -3600 * 1000);
    world.clocks_are_ahead = false;
    peer_rig_start(&world.rig, 0);
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .deadline_ns = SECONDS(5)};
    assert_true(op_do(&write));
    assert_true(hlc_wall_ms(write.version) < hlc_wall_ms(first.version) + 150 * 1000);
    cluster_close();
}

static void
what_was_deleted_or_has_expired_stays_so(void **state)
{
    (void)state;
    story_begin();
    struct op put = {.kind = OP_WRITE, .key = 1, .id = 5},
              both = {.kind = OP_WRITE, .key = 2, .id = 6};
    assert_true(op_do(&put) && op_do(&both));
    peer_rig_run(&world.rig, MS(100));
    away(2);
    struct op gone = {.kind = OP_DELETE, .key = 1};
    struct op brief = {.kind = OP_WRITE, .key = 2, .id = 7};
    assert_true(op_do(&gone));
    /* The machines' clocks agree in this story. */
    brief.expire_ms = hlc_wall_ms(gone.version) + 500;
    assert_true(op_do(&brief));
    back(2); /* which takes longer than it lives */
    assert_int_equal(look_at(2, 1).id, 5);
    assert_int_equal(look_at(2, 2).id, 6);
    for (u32 key = 1; key <= 2; key++) {
        struct op read = {.kind = OP_READ, .key = key, .node = 2};
        assert_true(op_do(&read));
        assert_int_equal(read.id, 0);
        assert_int_equal(read.version, key == 1 ? gone.version : brief.version);
        peer_rig_run(&world.rig, SECONDS(1));
        for (u32 node = 0; node < 3; node++) {
            assert_int_equal(look_at(node, key).version, read.version);
            assert_int_equal(look_at(node, key).id, 0);
        }
    }
    cluster_close();
}

/* Reads that ask all would meet it on one replica. Reads by a majority would not. */
static void
what_was_read_where_all_are_asked_a_majority_reads_too(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        story_of_reads(3);
        struct op first = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ALL};
        assert_true(op_do(&first));
        world.down[1] = world.down[2] = true; /* as far as anybody knows */
        struct op write = {.kind = OP_WRITE, .key = 1, .id = 6, .level = REPLICATE_ONE};
        assert_true(op_do(&write));
        world.down[1] = world.down[2] = false;
        assert_int_equal(look_at(1, 1).id, 5);
        struct op read = {
            .kind = OP_READ, .key = 1, .level = i == 0 ? REPLICATE_DEFAULT : REPLICATE_QUORUM};
        assert_true(op_do(&read));
        assert_int_equal(read.id, 6);
        away(0); /* with what is under way then */
        struct op later = {.kind = OP_READ, .key = 1, .node = 1, .level = REPLICATE_QUORUM};
        assert_true(op_do(&later));
        assert_int_equal(later.id, 6);
        cluster_close();
    }
}

/* Two replicas are read, and node 0 has 6, which node 1 lacks: it has 5. */
static void
story_of_two(u32 write_quorum)
{
    lagging = 0;
    cluster_open_as(1, 2, 1, false, 0);
    topologies_free();
    topologies_make(2, 2, 1, false);
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET,
                                   .options = world.stages[0]->keyspaces[0]};
    set.options.write_quorum = (u8)write_quorum;
    if (write_quorum == 1) world.stages[0] = replica_rig_apply_on(world.stages[0], set);
    world.memtable_bytes = MIB(4);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1));
    struct op first = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ALL};
    assert_true(op_do(&first));
    world.down[1] = true; /* as far as anybody knows */
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 6, .level = REPLICATE_ONE};
    assert_true(op_do(&write));
    world.down[1] = false;
    assert_int_equal(look_at(1, 1).id, 5);
}

/* Each of the two is a read's quorum with the other only, so one copy would do for every read. But
 * a disk may be lost, as with more replicas; unless that loses what is acknowledged, too. */
static void
what_was_read_of_two_replicas_both_have(void **state)
{
    (void)state;
    for (u32 write_quorum = 1; write_quorum <= 2; write_quorum++) {
        story_of_two(write_quorum);
        sim_link_slow_set(world.rig.sim, world.rig.nodes[0].machine, world.rig.nodes[1].machine,
                          MS(100));
        struct op read = {.kind = OP_READ, .key = 1, .deadline_ns = SECONDS(2)};
        assert_true(op_do(&read));
        assert_int_equal(read.id, 6);
        assert_int_equal(look_at(1, 1).id, write_quorum == 2 ? 6 : 5);
        peer_rig_run(&world.rig, SECONDS(1));
        assert_int_equal(look_at(1, 1).id, 6);
        cluster_close();
    }
}

/* A coordinator that said that too few live would be passed over, though it goes on with others'
 * requests. */
static void
a_value_that_only_one_has_is_waited_for(void **state)
{
    (void)state;
    story_of_two(2);
    sim_link_slow_set(world.rig.sim, world.rig.nodes[0].machine, world.rig.nodes[1].machine,
                      MS(300));
    struct op read = {.kind = OP_READ, .key = 1, .node = 1, .deadline_ns = SECONDS(5)};
    assert_true(op_do(&read));
    assert_int_equal(read.id, 6);
    peer_rig_isolate(&world.rig, 0); /* and nobody knows: it ends in time */
    read = (struct op){.kind = OP_READ, .key = 1, .node = 1, .deadline_ns = SECONDS(1)};
    assert_false(op_do(&read));
    assert_true(status_is(read.st, ST_UNAVAILABLE));
    assert_in_range(read.ended_ns - read.begun_ns, SECONDS(1), MS(1010));
    cluster_close();
}

/* Who is asked first says that it has the value, and is late with it: another one is asked for it.
 * If that one does not answer, what is late will do. */
static void
a_late_value_is_asked_of_another_and_taken_when_it_comes(void **state)
{
    (void)state;
    for (u32 dies = 0; dies < 2; dies++) {
        story_begin();
        away(2);
        struct op write = {.kind = OP_WRITE, .key = 1, .id = 6};
        assert_true(op_do(&write));
        back(2);
        struct op connects = {.kind = OP_READ, .key = 2, .node = 2, .level = REPLICATE_ALL};
        assert_true(op_do(&connects));
        assert_int_equal(look_at(2, 1).version, 0);
        struct topology_row row;
        topology_row(world.stages[0], 0, partition_of(1), &row);
        u32 first = row.write[0] == 3 ? row.write[1] - 1 : row.write[0] - 1;
        for (u32 node = 0; node < 2; node++)
            sim_link_slow_set(world.rig.sim, world.rig.nodes[node].machine,
                              world.rig.nodes[2].machine, MS(20));
        struct op read = {.kind = OP_READ,
                          .key = 1,
                          .node = 2,
                          .begun_ns = sim_now_ns(world.rig.sim),
                          .deadline_ns = SECONDS(2)};
        struct peer_rig_job job;
        peer_rig_give(&world.rig, 2, shard_of(1), &job, op_run, &read);
        peer_rig_run(&world.rig,
                     MS(46)); /* the value is asked for; the other one was, too, by now */
        assert_false(read.ended);
        sim_link_slow_set(world.rig.sim, world.rig.nodes[first].machine, world.rig.nodes[2].machine,
                          MS(400));
        if (dies) peer_rig_isolate(&world.rig, 1 - first); /* and nobody knows */
        assert_true(peer_rig_run_until(&world.rig, op_ended, &read, SECONDS(2)));
        assert_true(ok(read.st) && read.id == 6);
        if (dies)
            assert_in_range(read.ended_ns - read.begun_ns, MS(400), MS(700));
        else
            assert_in_range(read.ended_ns - read.begun_ns, MS(100), MS(300));
        cluster_close();
    }
}

/* A third one gains places of the two: while reads do not ask it, it ends none. */
static void
reads_of_two_replicas_do_not_need_who_gains(void **state)
{
    (void)state;
    lagging = 0;
    cluster_open_as(1, 3, 1, false, 0);
    topologies_free();
    topologies_make(2, 2, 1, true);
    for (u32 i = 0; i < 3; i++)
        world.stage[i] = 2;
    world.memtable_bytes = MIB(4);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1));
    u32 key = 0;
    struct topology_row row;
    do
        topology_row(world.stages[2], 0, partition_of(++key), &row);
    while (row.write_next[0] != 3 && row.write_next[1] != 3);
    struct op write = {.kind = OP_WRITE, .key = key, .id = 5};
    assert_true(op_do(&write));
    away(2);
    struct op read = {.kind = OP_READ, .key = key};
    assert_true(op_do(&read));
    assert_int_equal(read.id, 5);
    cluster_close();
}

/* Node 1 has the write durably, node 0 in memory only, and then loses power. Node 1 asked both and
 * told of it: a majority has to have it yet, without node 1. */
static void
what_a_digest_tells_of_is_read_after_a_power_cut(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 8; seed++) { /* what a power cut takes is drawn */
        lagging = 0;
        cluster_open(seed, 3, 1, false);
        world.memtable_bytes = MIB(4);
        struct sim_disk_options *disk = &world.rig.options.disk;
        disk->latency_ns_min = disk->latency_ns_max = MS(20);
        peer_rig_open(&world.rig);
        peer_rig_run(&world.rig, SECONDS(1));
        struct op first = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ALL};
        assert_true(op_do(&first));
        away(2);
        /* So much later than at node 1 the write begins at node 0, and the digest is asked for. */
        sim_link_slow_set(world.rig.sim, world.rig.nodes[0].machine, world.rig.nodes[1].machine,
                          MS(8));
        struct op write = {
            .kind = OP_WRITE, .key = 1, .node = 1, .id = 6, .deadline_ns = SECONDS(2)};
        struct op read = {.kind = OP_READ, .key = 1, .node = 1, .deadline_ns = SECONDS(2)};
        struct peer_rig_job write_job, read_job;
        peer_rig_give(&world.rig, 1, shard_of(1), &write_job, op_run, &write);
        peer_rig_run(&world.rig, MS(1));
        peer_rig_give(&world.rig, 1, shard_of(1), &read_job, op_run, &read);
        assert_true(peer_rig_run_until(&world.rig, op_ended, &read, SECONDS(1)));
        assert_true(ok(read.st));
        assert_int_equal(read.id, 6);
        peer_rig_crash(&world.rig, 0, false);
        away(1);
        back(2);
        peer_rig_start(&world.rig, 0);
        peer_rig_run(&world.rig, SECONDS(1));
        struct op later = {.kind = OP_READ, .key = 1, .node = 2};
        assert_true(op_do(&later));
        assert_int_equal(later.id, 6);
        cluster_close();
    }
}

/* Node 0 has 6, and as far as it is up to the others 5. */
static void
story_of_one_ahead(u32 read_quorum)
{
    story_of_reads(read_quorum);
    struct op first = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ALL};
    assert_true(op_do(&first));
    world.down[1] = world.down[2] = true; /* as far as anybody knows */
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 6, .level = REPLICATE_ONE};
    assert_true(op_do(&write));
    world.down[1] = world.down[2] = false;
    assert_int_equal(look_at(1, 1).id, 5);
    assert_int_equal(look_at(2, 1).id, 5);
}

/* A majority is enough for who reads by a majority, though readers of one may be told the older
 * value: what only all could promise is promised nobody. */
static void
a_majority_that_differs_is_answered_where_reads_ask_one(void **state)
{
    (void)state;
    story_of_one_ahead(1);
    away(2);
    struct op read = {.kind = OP_READ, .key = 1, .level = REPLICATE_QUORUM};
    assert_true(op_do(&read));
    assert_int_equal(read.id, 6);
    assert_int_equal(look_at(1, 1).id, 6);
    back(2);
    assert_int_equal(look_at(2, 1).id, 5);
    away(0);
    struct op later = {.kind = OP_READ, .key = 1, .node = 2, .level = REPLICATE_QUORUM};
    assert_true(op_do(&later));
    assert_int_equal(later.id, 6);
    cluster_close();
}

/* Two that differ are no majority of three places, and are answered though the third is dead; or
 * there is no memory to bring anybody what was read. */
static void
fewer_than_a_majority_are_answered_as_they_are(void **state)
{
    (void)state;
    lagging = 0;
    cluster_open_as(1, 5, 1, false, 0);
    topologies_free();
    topologies_make(5, 5, 1, false);
    world.memtable_bytes = MIB(4);
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(1));
    for (u32 node = 1; node < 5; node++)
        world.down[node] = true;
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 6, .size = 20000, .level = REPLICATE_ONE};
    assert_true(op_do(&write));
    world.down[1] = false;
    struct op read = {.kind = OP_READ, .key = 1, .level = REPLICATE_COUNT_BASE + 2};
    assert_true(op_do(&read));
    assert_int_equal(read.id, 6);

    peer_rig_run(&world.rig, SECONDS(3)); /* what it has brought the other is over */
    world.down[1] = true;
    write.id = 7;
    assert_true(op_do(&write));
    for (u32 node = 1; node < 5; node++)
        world.down[node] = false;
    struct replicator *r = world.apps[0][0].replicator;
    struct budget *all = r->options.budget, few;
    budget_init(&few, "few", KIB(4), NULL);
    r->options.budget = &few;
    assert_true(op_do(&read));
    assert_int_equal(read.id, 7);
    r->options.budget = all;
    assert_int_equal(few.used_bytes, 0);
    cluster_close();
}

/* Which of the others node 0 asks first for key 1. */
static u32
asked_first(void)
{
    struct topology_row row;
    topology_row(world.stages[0], 0, partition_of(1), &row);
    return row.write[0] == 1 ? row.write[1] - 1 : row.write[0] - 1;
}

/* Who was to be brought the value dies: the other one is brought it. */
static void
who_dies_while_it_is_mended_is_replaced_by_another(void **state)
{
    (void)state;
    story_of_one_ahead(0);
    u32 first = asked_first();
    for (u32 node = 1; node < 3; node++)
        sim_link_slow_set(world.rig.sim, world.rig.nodes[0].machine, world.rig.nodes[node].machine,
                          MS(100));
    struct op read = {.kind = OP_READ,
                      .key = 1,
                      .level = REPLICATE_QUORUM,
                      .deadline_ns = SECONDS(2),
                      .begun_ns = sim_now_ns(world.rig.sim)};
    struct peer_rig_job job;
    peer_rig_give(&world.rig, 0, shard_of(1), &job, op_run, &read);
    peer_rig_run(&world.rig, MS(260)); /* it has said what it has, and the value is on its way */
    assert_false(read.ended);
    world.down[first] = true;
    peer_rig_crash(&world.rig, first, true);
    peer_rig_run(&world.rig, SECONDS(2));
    assert_true(read.ended && ok(read.st));
    assert_int_equal(read.id, 6);
    assert_int_equal(look_at(3 - first, 1).id, 6);
    peer_rig_start(&world.rig, first);
    cluster_close();
}

/* All have key 1; whom node 0 asks first for it takes long to answer. Who that is. */
static u32
story_of_one_slow(void)
{
    story_begin();
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ALL};
    assert_true(op_do(&write));
    u32 first = asked_first();
    sim_link_slow_set(world.rig.sim, world.rig.nodes[0].machine, world.rig.nodes[first].machine,
                      MS(300));
    return first;
}

/* The replica that each read asks first takes long to answer. Others are asked
 * in its place as long as there is a budget (base/retry.h); then those who work are not asked more
 * than a tenth beyond what is needed, and reads wait for the slow one. */
static void
who_does_not_answer_costs_the_others_no_more_than_a_tenth(void **state)
{
    (void)state;
    const u32 reads = RETRY_BURST + 300;
    struct replicate_stats before = reached;
    (void)story_of_one_slow();
    u32 late = 0;
    for (u32 i = 0; i < reads; i++) {
        struct op read = {.kind = OP_READ, .key = 1, .deadline_ns = SECONDS(8)};
        assert_true(op_do(&read));
        assert_int_equal(read.id, 5);
        late += sim_now_ns(world.rig.sim) - read.begun_ns >= MS(500);
        /* The burst is enough for a failover: nobody waits. */
        if (i < RETRY_BURST) assert_int_equal(late, 0);
    }
    cluster_close();
    u64 asked = reached.digests - before.digests, hedged = reached.hedged - before.hedged;
    assert_true(hedged >= RETRY_BURST && hedged <= RETRY_BURST + reads / RETRY_SHARE);
    assert_true(asked <= reads + reads / RETRY_SHARE + RETRY_BURST);
    assert_true(late > 100 && reached.retries_refused > before.retries_refused);
}

/* Who is dead is known to be, in a while: others take its place, whatever was repeated before. */
static void
a_dead_replica_is_replaced_without_a_budget(void **state)
{
    (void)state;
    struct replicate_stats before = reached;
    u32 first = story_of_one_slow();
    for (bool late = false; !late;) {
        struct op read = {.kind = OP_READ, .key = 1, .deadline_ns = SECONDS(8)};
        assert_true(op_do(&read));
        late = sim_now_ns(world.rig.sim) - read.begun_ns >= MS(500);
    }
    struct op read = {.kind = OP_READ,
                      .key = 1,
                      .deadline_ns = SECONDS(8),
                      .begun_ns = sim_now_ns(world.rig.sim)};
    struct peer_rig_job job;
    peer_rig_give(&world.rig, 0, shard_of(1), &job, op_run, &read);
    peer_rig_run(&world.rig, MS(1));
    assert_false(read.ended);
    world.down[first] = true;
    assert_true(peer_rig_run_until(&world.rig, op_ended, &read, MS(400)));
    assert_true(ok(read.st) && read.id == 5);
    cluster_close();
    assert_true(reached.retries_refused > before.retries_refused); /* there was none left */
}

/* All have key 1, node 0 on its disk only, where whatever is read takes so much longer. */
static struct replicator *
story_of_a_slow_disk(u64 ns)
{
    story_begin();
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ALL};
    assert_true(op_do(&write));
    peer_rig_stop(&world.rig, 0);
    peer_rig_start(&world.rig, 0);
    peer_rig_run(&world.rig, SECONDS(2));
    sim_node_disk_slow_set(world.rig.nodes[0].machine, SIM_POINT_READ, ns);
    return world.apps[0][0].replicator;
}

/* How long it took; UINT64_MAX: it did not find it. */
static u64
read_takes_ns(enum replicate_level level)
{
    struct op read = {.kind = OP_READ, .key = 1, .level = level};
    if (!op_do(&read) || read.id != 5) return UINT64_MAX;
    return read.ended_ns - read.begun_ns;
}

/* The disk of who coordinates is hedged as a replica is. What it was asked goes on, and is in
 * nobody's way; and who has nobody else to ask ends in time. */
static void
a_read_does_not_wait_for_the_own_disk(void **state)
{
    (void)state;
    struct replicator *r = story_of_a_slow_disk(SECONDS(10));
    const enum replicate_level levels[] = {REPLICATE_DEFAULT, REPLICATE_ONE, REPLICATE_QUORUM};
    for (u32 i = 0; i < 3; i++) {
        assert_true(read_takes_ns(levels[i]) < HEDGE_NS_START + MS(10));
        assert_int_equal(r->disk_reads_left, i + 1);
        assert_true(list_empty(&r->coordinated));
    }
    peer_rig_isolate(&world.rig, 0); /* and nobody knows */
    for (u32 i = 0; i < 3; i++) {
        struct op read = {.kind = OP_READ, .key = 1, .level = levels[i], .deadline_ns = MS(200)};
        assert_false(op_do(&read));
        assert_true(status_is(read.st, ST_UNAVAILABLE));
        u64 took_ns = read.ended_ns - read.begun_ns;
        assert_true(took_ns >= MS(200) && took_ns < MS(210));
    }
    peer_rig_rejoin(&world.rig, 0);
    peer_rig_run(&world.rig, SECONDS(2));
    struct op all = {.kind = OP_READ, .key = 1, .level = REPLICATE_ALL, .deadline_ns = MS(200)};
    assert_false(op_do(&all));
    assert_true(status_is(all.st, ST_UNAVAILABLE));

    sim_node_disk_slow_set(world.rig.nodes[0].machine, SIM_POINT_READ, 0);
    peer_rig_run(&world.rig, SECONDS(10));
    assert_int_equal(r->disk_reads + r->disk_reads_left, 0);
    u64 local = r->stats.reads_local, digests = r->stats.digests;
    assert_true(read_takes_ns(REPLICATE_ONE) < MS(5));
    assert_true(r->stats.reads_local == local + 1 && r->stats.digests == digests);
    cluster_close();
}

/* One that is late only is waited for as long as others would be, and has answered then. */
static void
a_read_waits_for_a_disk_that_is_in_time(void **state)
{
    (void)state;
    struct replicator *r = story_of_a_slow_disk(MS(5));
    u64 took_ns = read_takes_ns(REPLICATE_ONE);
    assert_true(took_ns >= MS(5) && took_ns < HEDGE_NS_START);
    assert_true(r->stats.reads_local == 1 && r->stats.digests == 0 && r->stats.hedged == 0);
    assert_int_equal(r->disk_reads + r->disk_reads_left, 0);
    cluster_close();
}

/* Soon others are asked in its place at once, whatever was repeated before. */
static void
a_disk_that_hangs_is_replaced_without_a_budget(void **state)
{
    (void)state;
    struct replicator *r = story_of_a_slow_disk(SECONDS(10));
    r->retries.parts = 0;
    u64 took_ns = read_takes_ns(REPLICATE_DEFAULT);
    assert_true(took_ns >= MS(400) && took_ns < MS(550));
    assert_true(r->retries.refused > 0);
    r->retries.parts = 0;
    u64 hedged = r->stats.hedged;
    assert_true(read_takes_ns(REPLICATE_DEFAULT) < MS(5));
    assert_true(read_takes_ns(REPLICATE_ONE) < MS(5));
    assert_int_equal(r->stats.hedged, hedged);
    assert_int_equal(r->disk_reads, 1);
    cluster_close();
}

/* What is left of them has a bound; and who stops waits for the disk. */
static void
a_disk_that_hangs_keeps_no_more_than_so_many_fibers(void **state)
{
    (void)state;
    struct replicator *r = story_of_a_slow_disk(SECONDS(30));
    world.down[1] = world.down[2] = true; /* as far as anybody knows */
    struct op read;
    for (u32 i = 0; i < DISK_READS_LEFT_MAX + 20; i++) {
        read =
            (struct op){.kind = OP_READ, .key = 1, .level = REPLICATE_ONE, .deadline_ns = MS(20)};
        assert_false(op_do(&read));
        /* The bound is this node's, so that it is told as what ends by itself. */
        assert_true(status_is(read.st, i < DISK_READS_LEFT_MAX ? ST_UNAVAILABLE : ST_OVERLOADED));
    }
    assert_true(read.ended_ns - read.begun_ns < MS(5));
    assert_int_equal(r->disk_reads_left, DISK_READS_LEFT_MAX);
    world.down[1] = world.down[2] = false;
    assert_true(read_takes_ns(REPLICATE_DEFAULT) < MS(5));
    cluster_close();
}

/* What a clock that runs ahead takes for expired is a value yet, and the others' clocks say so. */
static void
what_has_expired_by_one_clock_is_brought_as_it_is(void **state)
{
    (void)state;
    for (u32 fetches = 0; fetches < 2; fetches++) {
        story_begin();
        away(2);
        struct op first = {.kind = OP_WRITE, .key = 2, .id = 4};
        assert_true(op_do(&first));
        struct op put = {
            .kind = OP_WRITE, .key = 1, .id = 5, .expire_ms = hlc_wall_ms(first.version) + 600000};
        assert_true(op_do(&put));
        back(2);
        assert_int_equal(look_at(2, 1).version, 0);
        sim_node_clock_step(world.rig.nodes[0].machine, 3600 * 1000);
        if (fetches) away(1);
        /* By its own clock a node may say so; it may also bring what it has to who lacks it. */
        struct op read = {.kind = OP_READ, .key = 1, .node = fetches ? 2 : 0};
        if (!fetches) read.level = REPLICATE_ALL;
        assert_true(op_do(&read));
        assert_int_equal(read.id, fetches ? 5 : 0);
        assert_int_equal(read.version, put.version);
        if (fetches) back(1);
        peer_rig_run(&world.rig, SECONDS(1));
        for (u32 node = 1; node < 3; node++) {
            struct op own = {.kind = OP_READ, .key = 1, .node = node, .level = REPLICATE_ONE};
            assert_true(op_do(&own));
            assert_int_equal(own.id, 5);
            assert_int_equal(own.version, put.version);
        }
        cluster_close();
    }
}

/* As it was when the read began: meanwhile another one may have been written, and then the key was
 * never absent. (Found by seed 683 of clusters.) */
static void
what_expires_while_it_is_brought_to_others_is_told(void **state)
{
    (void)state;
    story_begin();
    struct op first = {.kind = OP_WRITE, .key = 1, .id = 4, .level = REPLICATE_ALL};
    assert_true(op_do(&first));
    world.down[1] = world.down[2] = true; /* as far as anybody knows */
    struct op put = {.kind = OP_WRITE,
                     .key = 1,
                     .id = 5,
                     .level = REPLICATE_ONE,
                     .expire_ms = hlc_wall_ms(first.version) + 900};
    assert_true(op_do(&put));
    world.down[1] = world.down[2] = false;
    for (u32 node = 1; node < 3; node++)
        sim_link_slow_set(world.rig.sim, world.rig.nodes[0].machine, world.rig.nodes[node].machine,
                          MS(300));
    struct op read = {.kind = OP_READ, .key = 1, .level = REPLICATE_QUORUM};
    assert_true(op_do(&read));
    assert_true(read.ended_ns - read.begun_ns > MS(1000));
    assert_int_equal(read.id, 5);
    struct op later = {.kind = OP_READ, .key = 1, .level = REPLICATE_QUORUM};
    assert_true(op_do(&later));
    assert_int_equal(later.id, 0);
    cluster_close();
}

static void
collect_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct lsm *lsm = world.apps[node->index][io_shard_index()].lsm;
    CHECK(ok(lsm_flush(lsm)));
    u64 now_ms = io_wall_ms();
    lsm_purge_allow(lsm, 0, hlc_version_at(now_ms), now_ms);
    CHECK(ok(lsm_compact(lsm)));
}

/* Where it was collected it may be brought again: nobody sees it. */
static void
what_has_expired_is_read_as_absent_though_others_have_collected_it(void **state)
{
    (void)state;
    story_begin();
    struct op first = {.kind = OP_WRITE, .key = 2, .id = 4};
    assert_true(op_do(&first));
    struct op put = {
        .kind = OP_WRITE, .key = 1, .id = 5, .expire_ms = hlc_wall_ms(first.version) + 500};
    assert_true(op_do(&put));
    peer_rig_run(&world.rig, SECONDS(1));
    for (u32 node = 1; node < 3; node++) {
        assert_int_equal(look_at(node, 1).version, put.version);
        assert_true(peer_rig_do(&world.rig, node, shard_of(1), collect_run, NULL));
        assert_int_equal(look_at(node, 1).version, 0);
    }
    for (u32 i = 0; i < 2; i++) {
        struct op read = {.kind = OP_READ, .key = 1, .node = 0, .level = REPLICATE_ALL};
        assert_true(op_do(&read));
        assert_int_equal(read.id, 0);
    }
    cluster_close();
}

static void
levels_ask_for_so_many(void **state)
{
    (void)state;
    /* level, W of N, places, members: answer */
    const u32 cases[][6] = {
        {REPLICATE_DEFAULT, 2, 3, 3, 3, 2},
        {REPLICATE_DEFAULT, 2, 3, 2, 2, 2},
        {REPLICATE_DEFAULT, 2, 3, 1, 1, 1},
        {REPLICATE_DEFAULT, 3, 3, 3, 2, 2},
        {REPLICATE_ONE, 2, 3, 3, 3, 1},
        {REPLICATE_QUORUM, 1, 3, 3, 3, 2},
        {REPLICATE_QUORUM, 1, 5, 5, 5, 3},
        {REPLICATE_ALL, 1, 3, 3, 3, 3},
        {REPLICATE_ALL, 1, 3, 3, 2, 2},
        {REPLICATE_COUNT_BASE + 2, 1, 5, 5, 5, 2},
        {REPLICATE_COUNT_BASE + 7, 1, 3, 3, 3, 3},
        {REPLICATE_COUNT_BASE, 1, 3, 3, 3, 1},
    };
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++)
        assert_int_equal(replicate_need((enum replicate_level)cases[i][0], cases[i][1], cases[i][2],
                                        cases[i][3], cases[i][4]),
                         cases[i][5]);
}

/* A batch that a replica must look at on a fiber, and another topology that comes meanwhile. */
struct batch_op {
    u32 count;
    status st;
    bool ended;
};

static void
batch_run(struct peer_rig_node *node, void *arg)
{
    struct batch_op *op = arg;
    struct replica_app *app = &world.apps[node->index][io_shard_index()];
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    u32 partition = partition_of(1);
    for (u32 i = 0, added = 0; added < op->count; i++) {
        char name[24];
        struct bytes key = BYTES(name, snprintf(name, sizeof(name), "many:%u", i));
        if (token_partition(hash_token(key), PARTITIONS) != partition) continue;
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES_LITERAL("value"), 0));
        added++;
    }
    u64 version;
    op->st = replicate_write(app->replicator, REPLICATE_ALL, &batch, UINT64_MAX,
                             io_now_ns() + SECONDS(2), &version);
    lsm_batch_deinit(&batch);
    op->ended = true;
}

static bool
is_at_work(void *arg)
{
    (void)arg;
    return !list_empty(&world.apps[1][0].replicator->coordinated);
}

/* The replica has another epoch, and says that it works with the one that the write was taken by:
 * a barrier would wait for it, and nobody fetches from here before it is in the store. */
static void
a_write_that_was_taken_counts_until_it_is_in_the_store(void **state)
{
    (void)state;
    story_begin();
    const struct replicator *replica = world.apps[1][0].replicator;
    u64 epoch = world.stages[0]->epoch;
    struct topology *next = replica_rig_apply(
        world.stages[0], (struct topology_command){.kind = TOPOLOGY_WEIGHT_SET,
                                                   .member = {.number = 1, .weight = 99}});
    struct peer_rig_job job;
    struct batch_op op = {.count = 100};
    peer_rig_give(&world.rig, 0, 0, &job, batch_run, &op);
    assert_true(peer_rig_run_until(&world.rig, is_at_work, NULL, SECONDS(1)));
    replicator_topology_set(world.apps[1][0].replicator, next, 2);
    assert_int_equal(replicator_epoch(replica), epoch);
    peer_rig_run(&world.rig, SECONDS(1));
    assert_true(op.ended && ok(op.st));
    assert_int_equal(replicator_epoch(replica), next->epoch);
    cluster_close();
    next->references = 1;
    topology_release(next);
}

static void
hold_run(struct peer_rig_node *node, void *arg)
{
    struct lsm *lsm = world.apps[node->index][io_shard_index()].lsm;
    if (*(const bool *)arg)
        lsm_writes_hold(lsm);
    else
        lsm_writes_release(lsm);
}

/* So many writes at once, through one node: more than its links take. */
#define BURST 600u

static u64
burst_run(void)
{
    static struct op burst[BURST];
    static struct peer_rig_job jobs[BURST];
    for (u32 i = 0, key = 0; i < BURST; i++, key = (key + 1) % KEYS) {
        while (shard_of(key) != 0)
            key = (key + 1) % KEYS;
        burst[i] = (struct op){.kind = OP_WRITE,
                               .key = key,
                               .id = i + 1,
                               .size = 8000,
                               .begun_ns = sim_now_ns(world.rig.sim),
                               .deadline_ns = SECONDS(5)};
        peer_rig_give(&world.rig, 0, 0, &jobs[i], op_run, &burst[i]);
    }
    peer_rig_run(&world.rig, SECONDS(6));
    u64 longest_ns = 0;
    for (u32 i = 0; i < BURST; i++) {
        assert_true(burst[i].ended && ok(burst[i].st));
        longest_ns = MAX(longest_ns, burst[i].ended_ns - burst[i].begun_ns);
    }
    return longest_ns;
}

/* They wait, and nobody is told that it is unknown what became of a write. */
static void
a_burst_waits_for_room_before_the_replicas(void **state)
{
    (void)state;
    story_begin();
    (void)burst_run();
    struct replicate_stats stats;
    replicate_stats_get(world.apps[0][0].replicator, &stats);
    assert_int_equal(stats.missed, 0);
    cluster_close();
}

/* One that takes nothing, and is not known to be gone, is not waited for long. */
static void
who_takes_nothing_holds_up_no_burst(void **state)
{
    (void)state;
    story_begin();
    peer_rig_isolate(&world.rig, 2);
    assert_true(burst_run() < SECONDS(1));
    cluster_close();
}

/* Who is to be asked lives, and takes no more: that is said, not that too few live. */
static void
replicas_before_whom_there_is_no_room_are_not_gone(void **state)
{
    (void)state;
    static struct op burst[64];
    static struct peer_rig_job jobs[64], read_job, write_job;
    story_begin();
    peer_rig_isolate(&world.rig, 1);
    peer_rig_isolate(&world.rig, 2);
    for (u32 i = 0; i < ARRAY_COUNT(burst); i++) {
        burst[i] = (struct op){
            .kind = OP_WRITE, .key = 1, .id = i + 1, .size = 16000, .deadline_ns = SECONDS(3)};
        peer_rig_give(&world.rig, 0, shard_of(1), &jobs[i], op_run, &burst[i]);
    }
    peer_rig_run(&world.rig, MS(100));
    struct op read = {.kind = OP_READ, .key = 1, .deadline_ns = SECONDS(1)};
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 99, .deadline_ns = SECONDS(1)};
    read.begun_ns = sim_now_ns(world.rig.sim);
    peer_rig_give(&world.rig, 0, shard_of(1), &read_job, op_run, &read);
    peer_rig_give(&world.rig, 0, shard_of(1), &write_job, op_run, &write);
    peer_rig_run(&world.rig, MS(1500));
    assert_true(read.ended && status_is(read.st, ST_OVERLOADED));
    assert_in_range(read.ended_ns - read.begun_ns, MS(50), MS(100)); /* it has waited for room */
    assert_true(write.ended && status_is(write.st, ST_OVERLOADED));
    peer_rig_heal_all(&world.rig);
    peer_rig_run(&world.rig, SECONDS(5));
    cluster_close();
}

/* Nobody has refused what a read found and brings to another: there is only no answer in time. */
static void
a_mend_without_an_answer_is_not_an_overload(void **state)
{
    (void)state;
    story_begin();
    away(1);
    away(2);
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ONE};
    assert_true(op_do(&write));
    back(1);
    bool held = true; /* it reads, and a write waits there */
    assert_true(peer_rig_do(&world.rig, 1, shard_of(1), hold_run, &held));
    struct op read = {.kind = OP_READ, .key = 1, .deadline_ns = MS(300)};
    assert_false(op_do(&read));
    assert_true(status_is(read.st, ST_UNAVAILABLE));
    held = false;
    assert_true(peer_rig_do(&world.rig, 1, shard_of(1), hold_run, &held));
    assert_true(op_do(&read));
    assert_int_equal(read.id, 5);
    cluster_close();
}

/* A read waits for room before those whom it needs. */
static void
a_read_waits_for_room_before_the_replicas(void **state)
{
    (void)state;
    static struct op reads[3];
    static struct peer_rig_job jobs[3];
    story_begin();
    struct op write = {.kind = OP_WRITE, .key = 1, .id = 5, .level = REPLICATE_ALL};
    assert_true(op_do(&write));
    cluster_close();
    world.rig.nodes[1].requests_max = world.rig.nodes[2].requests_max = 1;
    story_begin();
    assert_true(op_do(&write));
    for (u32 i = 1; i < 3; i++)
        sim_link_slow_set(world.rig.sim, world.rig.nodes[0].machine, world.rig.nodes[i].machine,
                          MS(10));
    for (u32 i = 0; i < 3; i++) {
        reads[i] = (struct op){.kind = OP_READ, .key = 1, .deadline_ns = SECONDS(2)};
        peer_rig_give(&world.rig, 0, shard_of(1), &jobs[i], op_run, &reads[i]);
    }
    peer_rig_run(&world.rig, SECONDS(1));
    for (u32 i = 0; i < 3; i++)
        assert_true(reads[i].ended && ok(reads[i].st) && reads[i].id == 5);
    cluster_close();
}

/* Of a key that keeps siblings. */
static void
siblings_run(struct peer_rig_node *node, void *arg)
{
    struct op *op = arg;
    struct replicator *replicator = world.apps[node->index][io_shard_index()].replicator;
    struct bytes key = key_of(op->key);
    struct replicate_put put = {.keyspace = op->keyspace,
                                .token = hash_token(key),
                                .key = key,
                                .value = BYTES_LITERAL("one")};
    op->st = replicate_put(replicator, op->level, &put, io_now_ns() + SECONDS(2), &op->version);
}

static void
knows(u32 node, struct topology *topology)
{
    replicator_topology_set(world.apps[node][0].replicator, topology, node + 1);
}

/* Somebody has told the client that it was made, and the ones who are asked hear of it later: that
 * is no mistake of the client's. */
static void
a_keyspace_that_is_not_known_here_yet_is_waited_for(void **state)
{
    (void)state;
    story_begin();
    struct topology_command make = {
        .kind = TOPOLOGY_KEYSPACE_SET, .keyspace = 3, .options = world.stages[0]->keyspaces[0]};
    snprintf(make.options.name, sizeof(make.options.name), "late");
    struct topology *next = replica_rig_apply(world.stages[0], make);

    /* The coordinator is behind whoever asks it. */
    struct op put = {.kind = OP_WRITE, .key = 1, .id = 5, .keyspace = 3};
    struct op get = {.kind = OP_READ, .key = 1, .keyspace = 3};
    struct op erase = {.kind = OP_DELETE, .key = 1, .keyspace = 3};
    struct op *const all[] = {&put, &get, &erase};
    for (u32 i = 0; i < ARRAY_COUNT(all); i++) {
        assert_false(op_do(all[i]));
        assert_true(status_is(all[i]->st, ST_WOULD_WAIT));
    }
    struct op sibling = {.key = 1, .keyspace = 3};
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), siblings_run, &sibling));
    assert_true(status_is(sibling.st, ST_WOULD_WAIT));

    /* The replicas are behind the coordinator. */
    knows(0, next);
    struct peer_rig_job write_job, read_job;
    put.ended = get.ended = false;
    peer_rig_give(&world.rig, 0, 0, &write_job, op_run, &put);
    peer_rig_give(&world.rig, 0, 0, &read_job, op_run, &get);
    peer_rig_run(&world.rig, MS(200));
    assert_false(put.ended || get.ended);
    knows(1, next);
    peer_rig_run(&world.rig, SECONDS(1));
    assert_true(put.ended && ok(put.st));
    assert_true(get.ended && ok(get.st));
    cluster_close();
    next->references = 1;
    topology_release(next);
}

/* What waited for room for longer than anybody waits for it is not done: what hides it may have
 * been collected meanwhile. */
static void
a_write_without_room_is_not_done_when_its_time_is_over(void **state)
{
    (void)state;
    story_begin();
    bool held = true;
    assert_true(peer_rig_do(&world.rig, 1, shard_of(1), hold_run, &held));
    struct op put = {.kind = OP_WRITE, .key = 1, .id = 5};
    assert_true(op_do(&put));
    assert_int_equal(look_at(2, 1).version, put.version);
    peer_rig_run(&world.rig, SECONDS(20));
    held = false;
    assert_true(peer_rig_do(&world.rig, 1, shard_of(1), hold_run, &held));
    peer_rig_run(&world.rig, SECONDS(1));
    assert_int_equal(look_at(1, 1).version, 0);
    cluster_close();
}

/* Who runs a key's commands has no room itself, and who else lives refuses for the same reason.
 * Whoever asked must come again: a command that is taken elsewhere runs there beside ours. */
static void
a_coordinator_without_room_is_not_gone(void **state)
{
    (void)state;
    story_begin();
    away(2);
    bool held = true;
    for (u32 node = 0; node < 2; node++)
        assert_true(peer_rig_do(&world.rig, node, shard_of(1), hold_run, &held));
    struct replicator *other = world.apps[1][0].replicator;
    other->serving_fibers += SERVE_FIBERS_MAX;
    struct op put = {.kind = OP_WRITE, .key = 1, .id = 5};
    assert_false(op_do(&put));
    assert_true(status_is(put.st, ST_OVERLOADED));
    assert_true(put.ended_ns - put.begun_ns < MS(100)); /* nobody waits for what is decided */
    other->serving_fibers -= SERVE_FIBERS_MAX;
    held = false;
    for (u32 node = 0; node < 2; node++)
        assert_true(peer_rig_do(&world.rig, node, shard_of(1), hold_run, &held));
    peer_rig_run(&world.rig, SECONDS(1));
    for (u32 node = 0; node < 2; node++)
        assert_int_equal(look_at(node, 1).version, 0);
    assert_true(op_do(&put));
    cluster_close();
}

/* It lacks memory for what another one sends. */
static void
a_coordinator_without_memory_for_a_value_is_not_gone(void **state)
{
    (void)state;
    story_of_two(2);
    world.down[1] = true; /* as far as anybody knows */
    struct op large = {.kind = OP_WRITE, .key = 1, .id = 7, .size = 20000, .level = REPLICATE_ONE};
    assert_true(op_do(&large));
    world.down[1] = false;
    struct replicator *r = world.apps[1][0].replicator;
    struct budget *all = r->options.budget, few;
    budget_init(&few, "few", KIB(4), NULL);
    r->options.budget = &few;
    struct op read = {.kind = OP_READ, .key = 1, .node = 1};
    assert_false(op_do(&read));
    assert_true(status_is(read.st, ST_OVERLOADED));
    assert_true(read.ended_ns - read.begun_ns < MS(100));
    r->options.budget = all;
    assert_int_equal(few.used_bytes, 0);
    assert_true(op_do(&read));
    assert_int_equal(read.id, 7);
    cluster_close();
}

/* As a replica answers that has read it, and lacks memory for the answer. */
static void
read_lacks_memory(void *arg, struct peer_request *request, const struct peer_identity *from,
                  const struct native_header *header, struct bytes body)
{
    (void)arg, (void)from, (void)header, (void)body;
    peer_reply(request, NATIVE_ST_UNKNOWN_OUTCOME, 0, NULL, 0);
}

static void
lacks_memory_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    peers_handler_set(world.apps[node->index][0].peers, PEER_READ, read_lacks_memory, NULL);
}

static void
a_replica_without_memory_for_its_answer_is_not_gone(void **state)
{
    (void)state;
    story_of_two(2);
    assert_true(peer_rig_do(&world.rig, 0, 0, lacks_memory_run, NULL));
    struct op read = {.kind = OP_READ, .key = 1, .node = 1};
    assert_false(op_do(&read));
    assert_true(status_is(read.st, ST_OVERLOADED));
    cluster_close();
}

#define CROWD       64u
#define CROWD_BYTES KIB(30)

struct crowd {
    struct lsm *lsm;
    bool ends;
    u32 writing;
};

static struct crowd crowd;

/* What is no client's, again and again, as soon as there is room for it. */
static void
crowd_main(void *arg)
{
    (void)arg;
    static const u8 value[CROWD_BYTES];
    u64 first, last, token, seq;
    lsm_tokens(crowd.lsm, &first, &last);
    char text[16];
    struct bytes key;
    u32 number = 0;
    do { /* one that is of this store */
        key = BYTES(text, (size_t)snprintf(text, sizeof(text), "crowd%u", number++));
        token = hash_token(key);
    } while (token < first || token > last);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_put(&batch, KEYSPACE_SYSTEM, token, key, BYTES(value, sizeof(value)), 0));
    while (!crowd.ends)
        CHECK(ok(lsm_write(crowd.lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
    crowd.writing--;
}

static void
crowd_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    crowd = (struct crowd){.lsm = world.apps[node->index][io_shard_index()].lsm};
    while (crowd.writing++ < CROWD)
        CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "crowd", crowd_main, NULL)));
    crowd.writing--;
}

/* Its own store is one of those that it needs. */
static void
a_large_write_has_its_turn_at_its_coordinator(void **state)
{
    (void)state;
    story_begin();
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), crowd_run, NULL));
    peer_rig_run(&world.rig, MS(20));
    for (u32 i = 0; i < 5; i++) {
        struct op put = {.kind = OP_WRITE,
                         .key = 1,
                         .id = 5 + i,
                         .size = LIMIT_VALUE_BYTES,
                         .level = REPLICATE_ALL,
                         .deadline_ns = SECONDS(1)};
        assert_true(op_do(&put));
        assert_int_equal(look_at(0, 1).version, put.version);
    }
    /* The others have no crowd, and nobody else takes turns here. */
    assert_true(sim_mark_count(world.rig.sim, "lsm.write.large_in_turn") > 0);
    crowd.ends = true;
    peer_rig_run(&world.rig, SECONDS(1));
    assert_int_equal(crowd.writing, 0);
    cluster_close();
}

static void
allow_run(struct peer_rig_node *node, void *arg)
{
    lsm_purge_allow(world.apps[node->index][io_shard_index()].lsm, 0, *(const u64 *)arg, 1);
}

/* A read has found what this store lacks, and waits for room to bring it here. Meanwhile it was
 * deleted, and the tombstone collected. */
static void
what_a_read_found_is_not_brought_here_once_what_hides_it_was_collected(void **state)
{
    (void)state;
    story_begin();
    away(0);
    away(2);
    struct op put = {.kind = OP_WRITE, .key = 1, .node = 1, .id = 5, .level = REPLICATE_ONE};
    assert_true(op_do(&put));
    back(0);
    assert_int_equal(look_at(0, 1).version, 0);
    bool held = true;
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), hold_run, &held));
    struct op read = {.kind = OP_READ, .key = 1, .deadline_ns = SECONDS(300)};
    struct peer_rig_job job;
    peer_rig_give(&world.rig, 0, shard_of(1), &job, op_run, &read);
    peer_rig_run(&world.rig, SECONDS(200));
    assert_false(read.ended);
    u64 below = put.version + 1;
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), allow_run, &below));
    held = false;
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), hold_run, &held));
    assert_true(peer_rig_run_until(&world.rig, op_ended, &read, SECONDS(10)));
    assert_true(status_is(read.st, ST_UNAVAILABLE));
    assert_int_equal(look_at(0, 1).version, 0);
    cluster_close();
}

/* A read finds an old value at one replica and brings it to the others, while somebody deletes it:
 * at whatever moment of the read that comes, the tombstone wins on each of them. */
#define RACE_STEP_NS (NS_PER_MS / 20)

static bool
read_races_with_delete(u64 offset_ns, u32 *overlapped)
{
    story_begin();
    away(0);
    away(2);
    struct op put = {.kind = OP_WRITE, .key = 1, .node = 1, .id = 5, .level = REPLICATE_ONE};
    assert_true(op_do(&put));
    back(0);
    back(2);
    struct op read = {.kind = OP_READ, .key = 1, .node = 1, .deadline_ns = SECONDS(5)};
    struct op gone = {.kind = OP_DELETE, .key = 1, .node = 2, .deadline_ns = SECONDS(5)};
    struct peer_rig_job read_job, delete_job;
    read.begun_ns = sim_now_ns(world.rig.sim);
    peer_rig_give(&world.rig, 1, shard_of(1), &read_job, op_run, &read);
    peer_rig_run(&world.rig, offset_ns);
    bool read_was_over = read.ended;
    gone.begun_ns = sim_now_ns(world.rig.sim);
    peer_rig_give(&world.rig, 2, shard_of(1), &delete_job, op_run, &gone);
    assert_true(peer_rig_run_until(&world.rig, op_ended, &gone, SECONDS(10)) && ok(gone.st));
    assert_true(peer_rig_run_until(&world.rig, op_ended, &read, SECONDS(10)) && ok(read.st));
    if (!read_was_over && read.id == 5) (*overlapped)++;
    peer_rig_run(&world.rig, SECONDS(1));
    assert_true(gone.version > put.version);
    for (u32 node = 0; node < 3; node++) {
        struct op after = {.kind = OP_READ, .key = 1, .node = node};
        assert_true(op_do(&after));
        assert_int_equal(after.id, 0);
        assert_int_equal(after.version, gone.version);
        assert_int_equal(look_at(node, 1).version, gone.version);
        assert_int_equal(look_at(node, 1).id, 0);
    }
    cluster_close();
    return read_was_over;
}

static void
what_a_read_brings_does_not_undo_a_delete_that_comes_meanwhile(void **state)
{
    (void)state;
    u32 overlapped = 0, steps = 0;
    while (!read_races_with_delete(steps * RACE_STEP_NS, &overlapped))
        assert_true(++steps < 1000);
    assert_true(steps > 10 && overlapped > steps / 2);
}

/* A repair by trees is taken however old it is, as one that who asked has just compared for. */
struct tree_write {
    u64 version;
    u32 session;
    u16 answered;
};

static void
session_run(struct peer_rig_node *node, void *arg)
{
    struct tree_write *write = arg;
    write->session = replicator_session(world.apps[node->index][io_shard_index()].replicator);
}

static void
tree_write_run(struct peer_rig_node *node, void *arg)
{
    struct tree_write *asked = arg;
    struct bytes key = key_of(1);
    struct lsm_batch batch;
    u8 head[PEER_REPLICA_HEAD_BYTES];
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES_LITERAL("value"), 0));
    struct peer_write write = {.version = asked->version,
                               .partition = partition_of(1),
                               .count = 1,
                               .flags = PEER_WRITE_REPAIR | PEER_WRITE_TREE,
                               .session = asked->session};
    struct bytes parts[] = {BYTES(head, peer_write_head(&write, head)), buf_bytes(&batch.ops)};
    struct native_header header = {.opcode = PEER_WRITE, .epoch = 99};
    asked->answered = replica_rig_ask(node, 1, shard_of(1), &header, parts, ARRAY_COUNT(parts));
    lsm_batch_deinit(&batch);
}

/* What was on its way to a replica for so long may have been deleted meanwhile, and the tombstone
 * collected. */
static void
what_was_compared_long_ago_is_not_brought_here_once_what_hides_it_was_collected(void **state)
{
    (void)state;
    story_begin();
    struct tree_write write = {
        .version = hlc_version_at(sim_node_wall_ns(world.rig.nodes[1].machine) / NS_PER_MS)};
    u64 below = write.version + 2;
    peer_rig_run(&world.rig, SECONDS(1));
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), allow_run, &below));
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), session_run, &write));
    peer_rig_run(&world.rig, 2 * SESSION_NS);
    assert_true(peer_rig_do(&world.rig, 1, 0, tree_write_run, &write));
    assert_int_equal(write.answered, NATIVE_ST_CONFLICT);
    assert_int_equal(look_at(0, 1).version, 0);
    assert_true(peer_rig_do(&world.rig, 0, shard_of(1), session_run, &write));
    assert_true(peer_rig_do(&world.rig, 1, 0, tree_write_run, &write));
    assert_int_equal(write.answered, NATIVE_ST_OK);
    assert_int_equal(look_at(0, 1).version, write.version);
    cluster_close();
}

/* Whatever a peer sends to a replica is answered, and harms nobody. */
static void
hostile_run(struct peer_rig_node *node, void *arg)
{
    u32 *statuses = arg;
    struct prng prng;
    prng_init(&prng, 5);
    for (u32 i = 0; i < 3000; i++) {
        u8 body[256];
        struct bytes key = key_of(1);
        struct lsm_batch batch;
        lsm_batch_init(&batch, io_budget());
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES_LITERAL("value"), 0));
        struct peer_write write = {
            .version = hlc_version_at(io_wall_ms()), .partition = partition_of(1), .count = 1};
        size_t size = peer_write_head(&write, body);
        memcpy(body + size, batch.ops.data, batch.ops.size);
        size += batch.ops.size;
        lsm_batch_deinit(&batch);
        if (i % 3 == 0) size = prng_below(&prng, size + 1);
        for (u64 bytes = i % 7 == 0 ? 0 : prng_range(&prng, 1, 3); bytes > 0 && size > 0; bytes--)
            body[prng_below(&prng, size)] ^= (u8)(1u << prng_below(&prng, 8));
        struct native_header header = {.opcode = prng_chance(&prng, 1, 3) ? PEER_READ : PEER_WRITE,
                                       .epoch =
                                           prng_chance(&prng, 1, 9) ? prng_below(&prng, 9) : 99,
                                       .keyspace = (u16)(prng_chance(&prng, 1, 9) ? 40 : 0)};
        struct bytes part = BYTES(body, size);
        statuses[replica_rig_ask(node, 1, 0, &header, &part, 1)]++;
    }
}

static void
hostile_bytes_are_refused(void **state)
{
    (void)state;
    story_begin();
    u32 statuses[NATIVE_ST_MAX + 1] = {0};
    assert_true(peer_rig_do(&world.rig, 1, 0, hostile_run, statuses));
    assert_true(statuses[NATIVE_ST_OK] > 100 && statuses[NATIVE_ST_INVALID] > 1000);
    assert_true(statuses[NATIVE_ST_WRONG_EPOCH] > 10);
    /* Of keys that lie elsewhere than they say nothing came in. */
    struct op read = {.kind = OP_READ, .key = 3};
    assert_true(op_do(&read));
    assert_int_equal(read.version, 0);
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(acknowledged_writes_are_read_whatever_fails),
        cmocka_unit_test(values_of_a_mebibyte_are_read_and_brought_to_who_missed_them),
        cmocka_unit_test(nothing_is_sent_when_too_few_live),
        cmocka_unit_test(what_may_have_been_done_is_unknown),
        cmocka_unit_test(a_clock_that_runs_ahead_harms_its_own_writes_only),
        cmocka_unit_test(a_clock_that_was_set_back_over_a_restart_keeps_what_was_said),
        cmocka_unit_test(a_store_full_of_indexes_tells_of_its_clock_yet),
        cmocka_unit_test(where_the_replicas_are_full_of_indexes_a_write_is_told_so),
        cmocka_unit_test(a_clock_that_others_find_ahead_is_not_kept_over_a_restart),
        cmocka_unit_test(what_was_deleted_or_has_expired_stays_so),
        cmocka_unit_test(what_was_read_where_all_are_asked_a_majority_reads_too),
        cmocka_unit_test(what_was_read_of_two_replicas_both_have),
        cmocka_unit_test(a_value_that_only_one_has_is_waited_for),
        cmocka_unit_test(a_late_value_is_asked_of_another_and_taken_when_it_comes),
        cmocka_unit_test(reads_of_two_replicas_do_not_need_who_gains),
        cmocka_unit_test(what_a_digest_tells_of_is_read_after_a_power_cut),
        cmocka_unit_test(a_majority_that_differs_is_answered_where_reads_ask_one),
        cmocka_unit_test(fewer_than_a_majority_are_answered_as_they_are),
        cmocka_unit_test(who_dies_while_it_is_mended_is_replaced_by_another),
        cmocka_unit_test(who_does_not_answer_costs_the_others_no_more_than_a_tenth),
        cmocka_unit_test(a_dead_replica_is_replaced_without_a_budget),
        cmocka_unit_test(a_read_does_not_wait_for_the_own_disk),
        cmocka_unit_test(a_read_waits_for_a_disk_that_is_in_time),
        cmocka_unit_test(a_disk_that_hangs_is_replaced_without_a_budget),
        cmocka_unit_test(a_disk_that_hangs_keeps_no_more_than_so_many_fibers),
        cmocka_unit_test(what_has_expired_by_one_clock_is_brought_as_it_is),
        cmocka_unit_test(what_expires_while_it_is_brought_to_others_is_told),
        cmocka_unit_test(what_has_expired_is_read_as_absent_though_others_have_collected_it),
        cmocka_unit_test(a_write_that_was_taken_counts_until_it_is_in_the_store),
        cmocka_unit_test(a_keyspace_that_is_not_known_here_yet_is_waited_for),
        cmocka_unit_test(a_write_without_room_is_not_done_when_its_time_is_over),
        cmocka_unit_test(a_coordinator_without_room_is_not_gone),
        cmocka_unit_test(a_coordinator_without_memory_for_a_value_is_not_gone),
        cmocka_unit_test(a_replica_without_memory_for_its_answer_is_not_gone),
        cmocka_unit_test(a_burst_waits_for_room_before_the_replicas),
        cmocka_unit_test(who_takes_nothing_holds_up_no_burst),
        cmocka_unit_test(a_large_write_has_its_turn_at_its_coordinator),
        cmocka_unit_test(replicas_before_whom_there_is_no_room_are_not_gone),
        cmocka_unit_test(a_mend_without_an_answer_is_not_an_overload),
        cmocka_unit_test(a_read_waits_for_room_before_the_replicas),
        cmocka_unit_test(what_a_read_found_is_not_brought_here_once_what_hides_it_was_collected),
        cmocka_unit_test(
            what_was_compared_long_ago_is_not_brought_here_once_what_hides_it_was_collected),
        cmocka_unit_test(what_a_read_brings_does_not_undo_a_delete_that_comes_meanwhile),
        cmocka_unit_test(levels_ask_for_so_many),
        cmocka_unit_test(hostile_bytes_are_refused),
    };
    /* With a seed or seeds chosen, only these. */
    return seeds_are_chosen() ? _cmocka_run_group_tests("seeds", tests, 1, NULL, NULL)
                              : cmocka_run_group_tests(tests, NULL, NULL);
}
