/* SPDX-License-Identifier: MIT
 *
 * trees.c -- see trees.h, trees_internal.h: the fiber of a shard that compares what it holds with
 * other replicas, round after round, and what it lets the store collect.
 *
 * Rounds take a bounded part of the shard's time: after each few partitions the fiber rests for a
 * multiple of what they took, less on request. Shards begin theirs at different times.
 *
 * What may be collected is one version for the whole store: the least that is settled of all
 * partitions which this member holds. One replica that is silent stops it for all partitions that
 * it holds, and so for every shard that shares one with it.
 */
#include "cluster/trees_internal.h"

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"

#define SHARE_BUDGET     64u /* of the shard's memory */
#define BUDGET_MIN       KIB(512)
#define LOOK_NS          (100 * NS_PER_MS)
#define PURGE_NS         (10 * NS_PER_S)
#define AGAIN_NS         (30 * NS_PER_S) /* something was mended: what was is looked at once more */
#define REST_TIMES       9u
#define REST_TIMES_ASKED 1u
#define REST_NS_MAX      (2 * NS_PER_S)
/* Who is asked for a repair tries again where a replica was busy for a moment; one that does not
 * answer at all keeps it long enough. */
#define TRIES_ASKED 3u
#define TRY_NS      (500 * NS_PER_MS)

/* ---- topology ---- */

static u32
member_shards(const struct trees *t)
{
    return t->shard->cluster->options.shard_count;
}

bool
trees_follow(struct trees *t)
{
    const struct topology *topology = t->shard->topology;
    if (topology == NULL || topology->partition_count == 0) return false;
    if (t->partition_count == 0) {
        u32 count = topology->partition_count;
        u32 first = shard_partition_first(t->shard->index, member_shards(t), count);
        u32 end = shard_partition_first(t->shard->index + 1, member_shards(t), count);
        u64 token_first, token_last;
        lsm_tokens(t->shard->lsm, &token_first, &token_last);
        if (first == end || partition_token_first(first, count) != token_first) return false;
        t->settled = mem_alloc_zero(&t->budget, (end - first) * sizeof(*t->settled));
        if (t->settled == NULL) return MARKED("cluster.trees.no_settled", false);
        t->partition_count = count;
        t->first = first;
        t->count = end - first;
        t->token_first = token_first;
    }
    if (t->settled_epoch != topology->stage_epoch) {
        t->settled_epoch = topology->stage_epoch;
        memset(t->settled, 0, t->count * sizeof(*t->settled));
    }
    return true;
}

void
trees_topology_comes(struct cluster_shard *shard, const struct topology *before,
                     const struct topology *topology)
{
    if (shard->trees != NULL && shard->trees->partition_count != 0)
        trees_clean_follow(shard->trees, topology);
    bool mends = cluster_mends(topology);
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++)
        lsm_mends_set(shard->lsm, keyspace, mends);
    if (topology->stage == STAGE_NONE || (before != NULL && before->session == topology->session) ||
        !topology_gainer(topology, cluster_member(shard->cluster)))
        return;
    /* What is fetched is older than what was settled of other partitions. */
    MARK("cluster.trees.purge_forgotten");
    lsm_purge_forget(shard->lsm);
}

/* ---- settled ---- */

static void
settled_ripen(struct settled *s)
{
    if (s->next == 0 || io_now_ns() - s->next_ns < TREES_GRACE_NS) return;
    s->ready = MAX(s->ready, s->next);
    /* What has come since waits from now on. */
    s->next = s->last > s->ready ? s->last : 0;
    s->next_ns = io_now_ns();
}

void
trees_settle(struct trees *t, u32 partition, u64 version)
{
    struct settled *s = &t->settled[partition - t->first];
    if (version <= s->last) return;
    s->last = version;
    settled_ripen(s);
    if (s->next == 0) {
        s->next = version;
        s->next_ns = io_now_ns();
    }
    /* What was dropped of hints for replicas of the partition is mended now. */
    if (t->partition_count == PARTITION_COUNT_DEFAULT)
        hints_repaired(t->shard->hints, partition, HINTS_EVERY, version);
}

/* The least of all partitions that this member holds; 0: one is not known. */
static u64
settled_least(const struct trees *t, bool ready)
{
    u32 self = cluster_member(t->shard->cluster);
    u64 least = UINT64_MAX;
    for (u32 i = 0; i < t->count; i++) {
        struct settled *s = &t->settled[i];
        settled_ripen(s);
        if (topology_holds(t->shard->topology, self, t->first + i))
            least = MIN(least, ready ? s->ready : s->last);
    }
    return least == UINT64_MAX ? 0 : least;
}

static void
purge(struct trees *t)
{
    const struct topology *topology = t->shard->topology;
    u64 last = settled_least(t, false);
    atomic_store(&trees_node(t)->settled[t->shard->index], last);
    if (last != 0) {
        struct hints_repair due;
        u64 cursor = 0;
        while (hints_repair_next(t->shard->hints, &cursor, &due))
            if (due.partition == HINTS_EVERY)
                hints_repaired(t->shard->hints, HINTS_EVERY, due.target, last);
    }
    if (topology->stage != STAGE_NONE) return;
    u32 bound = tree_bound_of(settled_least(t, true));
    for (u16 keyspace = 0; bound != 0 && keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        /* Siblings: what a tombstone hides there is not told by its version. */
        if (!topology->keyspaces[keyspace].used ||
            topology->keyspaces[keyspace].conflict != CONFLICT_LWW)
            continue;
        if (tree_bound_version(bound) <= lsm_purge_below(t->shard->lsm, keyspace)) continue;
        MARK("cluster.trees.purge_allowed");
        lsm_purge_allow(t->shard->lsm, keyspace, tree_bound_version(bound), tree_bound_ms(bound));
    }
}

/* ---- rounds ---- */

MAY_YIELD void
trees_pace(struct trees *t, u64 bytes)
{
    t->owed_ns += bytes * NS_PER_S / TREES_BYTES_PER_S;
    if (t->owed_ns < NS_PER_MS) return;
    u64 owed_ns = t->owed_ns;
    t->owed_ns = 0;
    fiber_sleep_ns(MIN(owed_ns, NS_PER_S));
}

/* For cluster_mend. */
static void
damage_tell(const struct trees *t)
{
    atomic_store(&trees_node(t)->damage[t->shard->index], lsm_damage_epoch(t->shard->lsm));
}

MAY_YIELD static void
rest(struct trees *t, u64 took_ns, bool asked)
{
    u64 ns = MIN(took_ns * (asked ? REST_TIMES_ASKED : REST_TIMES), REST_NS_MAX);
    u64 until_ns = io_now_ns() + ns;
    damage_tell(t);
    while (!trees_is_ending(t) && io_now_ns() < until_ns)
        (void)!ok(fiber_queue_wait(&t->wake, until_ns));
    if (ns == 0) fiber_yield();
}

MAY_YIELD static struct trees_exchanged
round_step(struct trees *t, u32 first, u32 count, bool asked)
{
    struct trees_exchanged done = {0};
    for (u32 tries = 0; tries < (asked ? TRIES_ASKED : 1); tries++) {
        if (tries != 0) {
            MARK("cluster.trees.tried_again");
            (void)!ok(fiber_queue_wait(&t->wake, io_now_ns() + TRY_NS));
            if (trees_is_ending(t) || !trees_follow(t)) break;
        }
        bool mended = done.mended;
        u64 began_ns = io_now_ns();
        trees_exchange(t, first, count, asked, &done);
        done.mended = done.mended || mended;
        if (done.failed == 0 || done.over || io_now_ns() - began_ns >= TREES_CALL_NS) break;
    }
    return done;
}

/* False: broken off. */
MAY_YIELD static bool
round_go(struct trees *t, bool asked, bool *mended_out)
{
    u64 stage_epoch = t->shard->topology->stage_epoch, missed = 0, damaged = 0;
    *mended_out = false;
    for (u32 at = 0; at < t->count; at += TREES_BATCH) {
        if (trees_is_ending(t) || !trees_follow(t) || t->shard->topology->stage != STAGE_NONE ||
            t->shard->topology->stage_epoch != stage_epoch)
            return false;
        u64 began_ns = io_now_ns();
        u32 count = MIN(TREES_BATCH, t->count - at);
        struct trees_exchanged done = round_step(t, t->first + at, count, asked);
        if (done.over) return false;
        *mended_out = *mended_out || done.mended;
        missed += done.failed + done.not_tried;
        damaged += done.damaged;
        if (asked) trees_count(&trees_node(t)->repair_done, count);
        rest(t, io_now_ns() - began_ns, asked);
    }
    if (asked) trees_count(&trees_node(t)->repair_missed, missed);
    if (asked) trees_count(&trees_node(t)->repair_damaged, damaged);
    trees_count(&trees_node(t)->rounds, 1);
    atomic_store(&trees_node(t)->round_ended_ns[t->shard->index], io_now_ns());
    return true;
}

static u64
jittered(u64 ns)
{
    return ns - ns / 4 + io_random() % (ns / 2 + 1);
}

MAY_YIELD static void
trees_main(void *arg)
{
    struct trees *t = arg;
    struct trees_node *node = trees_node(t);
    u32 index = t->shard->index;
    u64 next_ns = io_now_ns() + jittered(TREES_FIRST_NS), purge_ns = 0;
    while (!trees_is_ending(t)) {
        u64 asked = atomic_load(&node->repair_asked);
        bool is_asked = asked != atomic_load(&node->repair_ended[index]);
        bool work = trees_follow(t) && t->shard->topology->stage == STAGE_NONE;
        if (work && (is_asked || io_now_ns() >= next_ns)) {
            bool mended;
            if (round_go(t, is_asked, &mended)) {
                next_ns = io_now_ns() + jittered(mended ? AGAIN_NS : TREES_ROUND_NS);
                if (is_asked) atomic_store(&node->repair_ended[index], asked);
            }
            purge_ns = 0;
        }
        if (trees_is_ending(t)) break;
        damage_tell(t);
        if (trees_follow(t)) trees_clean(t);
        if (trees_is_ending(t)) break;
        if (trees_follow(t) && io_now_ns() >= purge_ns) {
            purge_ns = io_now_ns() + PURGE_NS;
            purge(t);
        }
        (void)!ok(fiber_queue_wait(&t->wake, io_now_ns() + LOOK_NS));
    }
    t->ended = true;
    fiber_queue_wake_all(&t->idle);
}

/* ---- opening and closing ---- */

status
trees_open(struct cluster_shard *shard)
{
    struct trees *t = mem_alloc_zero(io_budget(), sizeof(*t));
    if (t == NULL) return ST_NO_MEMORY;
    t->shard = shard;
    budget_init(&t->budget, "trees", MAX(BUDGET_MIN, io_budget()->limit_bytes / SHARE_BUDGET),
                io_budget());
    fiber_mutex_init(&t->resolving);
    fiber_queue_init(&t->wake);
    fiber_queue_init(&t->idle);
    status st = fiber_spawn(FIBER_BACKGROUND, "trees", trees_main, t);
    if (!ok(st)) {
        mem_free(io_budget(), t, sizeof(*t));
        return st;
    }
    shard->trees = t;
    trees_serve_open(t);
    return ST_OK;
}

MAY_YIELD void
trees_close(struct cluster_shard *shard)
{
    struct trees *t = shard->trees;
    if (t == NULL) return;
    t->closing = true;
    trees_serve_close(t);
    fiber_queue_wake_all(&t->wake);
    while (!t->ended || t->serving > 0)
        (void)!ok(fiber_queue_wait(&t->idle, io_now_ns() + LOOK_NS));
    trees_resolve_close(t);
    trees_clean_close(t);
    mem_free(&t->budget, t->settled, t->count * sizeof(*t->settled));
    mem_free(io_budget(), t, sizeof(*t));
    shard->trees = NULL;
}

bool
trees_are_clean(const struct cluster_shard *shard)
{
    return shard->topology != NULL && trees_are_clean_since(shard, shard->topology->stage_epoch);
}

bool
trees_are_clean_since(const struct cluster_shard *shard, u64 stage_epoch)
{
    return shard->trees != NULL && stage_epoch != 0 && shard->trees->clean_epoch == stage_epoch;
}

/* ---- on request, and figures ---- */

static bool
is_repairing(const struct cluster *cluster)
{
    u64 asked = atomic_load(&cluster->trees.repair_asked);
    for (u32 i = 0; i < cluster->options.shard_count; i++)
        if (atomic_load(&cluster->trees.repair_ended[i]) != asked) return true;
    return false;
}

void
trees_repair_start(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    const struct topology *topology = shard->topology;
    if (is_repairing(cluster) || topology == NULL) return;
    atomic_store(&cluster->trees.repair_done, 0);
    atomic_store(&cluster->trees.repair_missed, 0);
    atomic_store(&cluster->trees.repair_damaged, 0);
    atomic_store(&cluster->trees.repair_total, topology->partition_count);
    atomic_fetch_add(&cluster->trees.repair_asked, 1);
    if (shard->trees != NULL) fiber_queue_wake_all(&shard->trees->wake);
}

void
trees_stats_get(const struct cluster_shard *shard, struct trees_stats *out)
{
    struct cluster *cluster = shard->cluster;
    struct trees_node *node = &cluster->trees;
    *out = (struct trees_stats){
        .repairing = is_repairing(cluster),
        .repair_done = MIN(atomic_load(&node->repair_done), atomic_load(&node->repair_total)),
        .repair_total = atomic_load(&node->repair_total),
        .repair_missed = atomic_load(&node->repair_missed),
        .repair_damaged = atomic_load(&node->repair_damaged),
        .settled_version = UINT64_MAX,
        .rounds = atomic_load(&node->rounds),
        .exchanges = atomic_load(&node->exchanges),
        .failures = atomic_load(&node->failures),
        .leaves_differing = atomic_load(&node->leaves_differing),
        .entries_sent = atomic_load(&node->entries_sent),
        .entries_received = atomic_load(&node->entries_received),
        .bytes_sent = atomic_load(&node->bytes_sent),
        .bytes_received = atomic_load(&node->bytes_received),
        .leaves_scanned = atomic_load(&node->leaves_scanned),
        .entries_scanned = atomic_load(&node->entries_scanned),
    };
    u64 now = io_now_ns();
    for (u32 i = 0; i < cluster->options.shard_count; i++) {
        u64 ended_ns = atomic_load(&node->round_ended_ns[i]);
        u64 age_ms = ended_ns == 0 ? UINT64_MAX : (now - MIN(now, ended_ns)) / NS_PER_MS;
        out->round_age_ms = MAX(out->round_age_ms, age_ms);
        out->settled_version = MIN(out->settled_version, atomic_load(&node->settled[i]));
    }
}

u64
trees_settled_age_ms(const struct trees_stats *stats)
{
    u64 now = io_wall_ms();
    if (stats->settled_version == 0) return 0;
    return now - MIN(now, hlc_wall_ms(stats->settled_version));
}
