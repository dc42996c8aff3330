/* SPDX-License-Identifier: MIT
 *
 * replica_world.c -- see replica_world.h.
 */
#include "replica_world.h"

#include <string.h>

#include "../seeds.h"
#include "base/hash.h"
#include "lsm/batch.h"

#define VALUE_MAX 32768u

struct world world; /* large */

/* ---- the cluster ---- */

static bool
node_alive(void *arg, u32 member)
{
    (void)arg;
    return world.optimist || !world.down[member - 1];
}

struct replica_app *
world_app(const struct peer_rig_node *node)
{
    return &world.apps[node->index][io_shard_index()];
}

static MAY_YIELD status
node_main(struct peer_rig_node *node)
{
    struct replica_app *app = world_app(node);
    char dir[32];
    snprintf(dir, sizeof(dir), "/store%u", io_shard_index());
    struct hints_options kept = {.alive = node_alive,
                                 .disk_bytes_max = world.disk_bytes_max[node->index],
                                 .window_ms = world.window_ms,
                                 .replay_bytes_per_s = world.replay_bytes_per_s};
    if (world.hint_memory_bytes != 0) {
        kept.budget = &world.hint_budgets[node->index][io_shard_index()];
        budget_init(kept.budget, "hints", world.hint_memory_bytes, io_budget());
    }
    struct replicator_options options = {.alive = node_alive};
    status st = replica_rig_app_open(node, dir, world.memtable_bytes, &kept, &options, app);
    if (!ok(st)) return st;
    replicator_topology_set(app->replicator, world.topology, node->index + 1);
    peer_rig_serve(node);
    if (world.ends != NULL) world.ends(app);
    return replica_rig_app_close(app);
}

void
world_open(u64 seed, u32 nodes, u32 members, u32 shard_count)
{
    memset(&world, 0, sizeof(world));
    world.seed = seed;
    world.memtable_bytes = MIB(2);
    for (u32 i = 0; i < nodes; i++)
        world.disk_bytes_max[i] = MIB(64);
    prng_init(&world.prng, seed);
    world.rig =
        (struct peer_rig){.node_count = nodes, .shard_count = shard_count, .shard_main = node_main};
    sim_options_default(&world.rig.options, seed);
    world.rig.options.print_log = seeds_is_one();
    budget_init(&world.budget, "topologies", MIB(64), NULL);
    struct topology *first =
        replica_rig_found(&world.budget, WORLD_PARTITIONS, WORLD_REPLICAS, shard_count);
    world.topology = replica_rig_grow(first, members, shard_count);
}

void
world_close(void)
{
    peer_rig_close(&world.rig);
    for (u32 i = 0; i < world.old_count; i++)
        replica_rig_free(world.old[i]);
    replica_rig_free(world.topology);
}

void
world_topology_keep(void)
{
    CHECK(world.old_count < ARRAY_COUNT(world.old));
    topology_hold(world.topology);
    world.old[world.old_count++] = world.topology;
}

void
world_apply(struct topology_command command)
{
    world.topology = replica_rig_apply_on(world.topology, command);
}

static void
topology_take(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    replicator_topology_set(world_app(node)->replicator, world.topology, node->index + 1);
}

void
world_topology_tell(void)
{
    for (u32 i = 0; i < world.rig.node_count; i++)
        for (u32 shard = 0; world_runs(i) && shard < world.rig.shard_count; shard++)
            CHECK(peer_rig_do(&world.rig, i, shard, topology_take, NULL));
}

bool
world_runs(u32 node)
{
    return peer_rig_runs(&world.rig, node);
}

void
world_crash(u32 node)
{
    peer_rig_crash(&world.rig, node, false);
    world.down[node] = true;
}

void
world_start(u32 node)
{
    peer_rig_start(&world.rig, node);
    world.down[node] = false;
}

/* ---- keys, values, operations ---- */

struct bytes
world_key(u32 key)
{
    static char names[WORLD_KEYS_MAX][24];
    int size = snprintf(names[key], sizeof(names[key]), "key:%u", (unsigned)key);
    return BYTES(names[key], size);
}

u32
world_shard_of(u32 key)
{
    return partition_shard(token_partition(hash_token(world_key(key)), PARTITION_COUNT_DEFAULT),
                           world.rig.shard_count, PARTITION_COUNT_DEFAULT);
}

void
world_row(u32 key, struct topology_row *out)
{
    topology_row(world.topology, 0, token_partition(hash_token(world_key(key)), WORLD_PARTITIONS),
                 out);
}

static struct bytes
value_of(u64 id, u8 *out)
{
    u32 size = 8 + (id % 29 == 0 ? 20000 : (u32)(id % 900));
    memset(out, (int)id, size);
    store_u64(out, id);
    return BYTES(out, size);
}

static void
op_run(struct peer_rig_node *node, void *arg)
{
    static u8 bytes[VALUE_MAX];
    struct world_op *op = arg;
    struct bytes key = world_key(op->key);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    bool added = op->id == 0 ? lsm_batch_delete(&batch, op->keyspace, hash_token(key), key)
                             : lsm_batch_put(&batch, op->keyspace, hash_token(key), key,
                                             value_of(op->id, bytes), 0);
    CHECK(added);
    op->st = replicate_write(world_app(node)->replicator, op->level, &batch, UINT64_MAX,
                             io_now_ns() + op->deadline_ns, &op->version);
    lsm_batch_deinit(&batch);
    op->ended = true;
}

status
world_write(struct world_op *op)
{
    if (op->deadline_ns == 0) op->deadline_ns = SECONDS(2);
    op->begun_ns = sim_now_ns(world.rig.sim);
    CHECK(peer_rig_do(&world.rig, op->node, world_shard_of(op->key), op_run, op));
    return op->st;
}

static void
look_run(struct peer_rig_node *node, void *arg)
{
    static u8 expected[VALUE_MAX];
    struct world_look *look = arg;
    struct bytes key = world_key(look->key);
    struct own_read own;
    CHECK(ok(own_read(world_app(node)->replicator, 0, hash_token(key), key, &own)));
    look->version = own.version;
    if (!own.found) return;
    look->id = load_u64(own.value.value.data);
    CHECK(bytes_equal(own.value.value, value_of(look->id, expected)));
    lsm_value_release(&own.value);
}

struct world_look
world_look_at(u32 node, u32 key)
{
    struct world_look look = {.key = key};
    CHECK(peer_rig_do(&world.rig, node, world_shard_of(key), look_run, &look));
    return look;
}

/* ---- hints ---- */

static void
hints_add_up(u32 node, struct hints_stats *sum)
{
    for (u32 shard = 0; shard < world.rig.shard_count; shard++) {
        if (!world_runs(node) || world.apps[node][shard].hints == NULL) continue;
        struct hints_stats one;
        hints_stats_get(world.apps[node][shard].hints, &one);
        sum->waiting += one.waiting;
        sum->waiting_bytes += one.waiting_bytes;
        sum->queued_bytes += one.queued_bytes;
        sum->repairs_due += one.repairs_due;
        sum->loaded = sum->loaded && one.loaded;
        sum->kept += one.kept;
        sum->replayed += one.replayed;
        sum->rerouted += one.rerouted;
        sum->failed += one.failed;
        sum->dropped += one.dropped;
        sum->expired += one.expired;
        sum->stale += one.stale;
        sum->damaged += one.damaged;
        sum->orphaned += one.orphaned;
    }
}

struct hints_stats
world_hints_of(u32 node)
{
    struct hints_stats sum = {.loaded = true};
    hints_add_up(node, &sum);
    return sum;
}

struct hints_stats
world_hints(void)
{
    struct hints_stats sum = {.loaded = true};
    for (u32 i = 0; i < world.rig.node_count; i++)
        hints_add_up(i, &sum);
    return sum;
}

bool
world_delivered(void *arg)
{
    (void)arg;
    struct hints_stats sum = world_hints();
    return sum.loaded && sum.waiting == 0;
}

/* ---- what may be collected ---- */

struct collect {
    u64 (*oldest)(struct replicator *replicator);
    u64 below;
};

static void
oldest_run(struct peer_rig_node *node, void *arg)
{
    struct collect *collect = arg;
    collect->below = MIN(collect->below, collect->oldest(world_app(node)->replicator));
}

static void
collect_run(struct peer_rig_node *node, void *arg)
{
    const struct collect *collect = arg;
    struct lsm *lsm = world_app(node)->lsm;
    lsm_purge_allow(lsm, 0, collect->below, UINT64_MAX);
    CHECK(ok(lsm_flush(lsm)));
    CHECK(ok(lsm_compact(lsm)));
}

u64
world_oldest_of(u32 node, u64 (*oldest)(struct replicator *replicator))
{
    struct collect collect = {.oldest = oldest, .below = UINT64_MAX};
    for (u32 shard = 0; shard < world.rig.shard_count; shard++)
        if (!world_runs(node) || !peer_rig_do(&world.rig, node, shard, oldest_run, &collect))
            return 0;
    return collect.below;
}

u64
world_oldest(u64 (*oldest)(struct replicator *replicator))
{
    u64 least = UINT64_MAX;
    for (u32 i = 0; i < world.rig.node_count && least > 0; i++)
        least = MIN(least, world_oldest_of(i, oldest));
    return least;
}

void
world_collect(u32 node, u64 below)
{
    struct collect collect = {.below = below};
    for (u32 shard = 0; world_runs(node) && shard < world.rig.shard_count; shard++)
        (void)peer_rig_do(&world.rig, node, shard, collect_run, &collect);
}

/* ---- seeds ---- */

void
world_draw(void)
{
    struct prng *prng = &world.prng;
    world.rig.options.buggify = prng_chance(prng, 1, 2);
    world.rig.options.disk.latency_ns_max = MS(prng_range(prng, 1, 6));
    world.rig.options.net.latency_ns_max = prng_range(prng, 200, 4000) * NS_PER_US;
}

void
world_op_begin(u32 node, u32 key, u64 id)
{
    CHECK(world.op_count < WORLD_OPS_MAX);
    struct world_op *op = &world.ops[world.op_count];
    *op = (struct world_op){.key = key,
                            .node = node,
                            .id = id,
                            .begun_ns = sim_now_ns(world.rig.sim),
                            .deadline_ns = MS(prng_range(&world.prng, 20, 1000))};
    peer_rig_give(&world.rig, node, world_shard_of(key), &world.jobs[world.op_count], op_run, op);
    world.op_count++;
}

void
world_crash_begin(u32 node, struct world_crash_times times)
{
    struct prng *prng = &world.prng;
    u64 now = sim_now_ns(world.rig.sim);
    for (u32 i = 0; i < world.op_count; i++)
        if (world.ops[i].node == node && world.ops[i].begun_ns + UNKNOWN_NS > now)
            world.ops[i].excused = true;
    peer_rig_crash(&world.rig, node, prng_chance(prng, 1, 3));
    world.restart_ns[node] = now + MS(prng_range(prng, times.away_ms_min, times.away_ms_max));
    world.know_ns[node] = now + MS(prng_below(prng, times.known_ms_max));
}

u32
world_nodes_turn(void)
{
    u64 now = sim_now_ns(world.rig.sim);
    u32 away = 0;
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (!world_runs(i) && now >= world.restart_ns[i]) world_start(i);
        if (!world_runs(i) && now >= world.know_ns[i]) world.down[i] = true;
        away += !world_runs(i);
    }
    return away;
}

void
world_heal(void)
{
    peer_rig_heal_all(&world.rig);
    for (u32 i = 0; i < world.rig.node_count; i++) {
        if (!world_runs(i)) world_start(i);
        world.down[i] = false;
    }
    peer_rig_run(&world.rig, UNKNOWN_NS + SECONDS(1));
    u64 end_ns = sim_now_ns(world.rig.sim) + SECONDS(300);
    while (!world_delivered(NULL) && sim_now_ns(world.rig.sim) < end_ns)
        peer_rig_run(&world.rig, MS(20)); /* to ask after each event would cost more than they do */
    if (!world_delivered(NULL)) VIOLATED("hints wait though all is healed");
}

const struct world_op *
world_acknowledged(u32 key)
{
    const struct world_op *newest = NULL;
    for (u32 i = 0; i < world.op_count; i++) {
        const struct world_op *op = &world.ops[i];
        if (op->key == key && op->ended && ok(op->st) &&
            (newest == NULL || op->version > newest->version))
            newest = op;
    }
    return newest;
}

static void
ops_print(void)
{
    for (u32 i = 0; i < world.op_count; i++) {
        const struct world_op *op = &world.ops[i];
        fprintf(stderr, "%10llu us node %u key %u id %llu %s version %llu%s\n",
                (unsigned long long)op->begun_ns / 1000, op->node + 1, op->key,
                (unsigned long long)op->id, op->ended ? status_name(op->st) : "-",
                (unsigned long long)op->version, op->excused ? " excused" : "");
    }
}

bool
world_judge(void)
{
    bool right = world.violation[0] == '\0';
    if (!right && seeds_is_one()) ops_print();
    if (!right) fprintf(stderr, "seed %llu: %s\n", (unsigned long long)world.seed, world.violation);
    world_close();
    return right;
}

void
world_on_abort(int number)
{
    (void)number;
    fprintf(stderr, "seed %llu: aborted\n", (unsigned long long)world.seed);
}
