/* SPDX-License-Identifier: MIT
 *
 * trees_clean.c -- losers forget: what a shard has of partitions that its member does not hold.
 *
 * It is there after a move has ended, after a plan was abandoned for which some was fetched, and
 * when a node was away while partitions went to others. Nobody reads it, and nobody is asked for
 * it. But a partition may come back, and meanwhile the others may have collected tombstones that
 * would hide some of it. Therefore (A4) nobody collects anything until all members are clean; what
 * is left over here is then no older than what was settled when this member held it, and what was
 * settled then it had. So it need not be gone when the partition comes back: it may not be there
 * for long.
 *
 *   a stage has gone on     wait until no request of a stage before is under way, no reader, and
 *                           nothing that was fetched for a plan before
 *   something is here       flush, and let the store merge it away: lsm_drop_set; look again.
 *                           Damage there goes, too: nothing of it is needed
 *   nothing is              clean, until the stage changes
 *
 * What is removed is decided by bits which change before a topology becomes the shard's: before
 * anybody may write to a partition that it gains.
 */
#include "base/fault.h"
#include "base/log.h"
#include "cluster/trees_internal.h"

/* Since the stage came, for readers that began before it. */
#define READERS_NS  (5 * NS_PER_S)
#define LOOK_NS     (30 * NS_PER_S) /* at what merging has left */
#define LOOK_NS_MIN (2 * NS_PER_S)

static bool
holds(const struct topology *topology, u32 self, u32 keyspace, u32 partition)
{
    struct topology_row row;
    topology_row(topology, keyspace, partition, &row);
    return topology_row_has_or_will(&row, self);
}

static bool
is_mending(const struct trees *t)
{
    const struct topology_member *self =
        topology_member(t->shard->topology, cluster_member(t->shard->cluster));
    return self != NULL && self->mending;
}

void
trees_clean_follow(struct trees *t, const struct topology *topology)
{
    u32 self = cluster_member(t->shard->cluster);
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        u64 *bits = t->drops[keyspace];
        if (bits == NULL) continue;
        bool changed = false;
        for (u32 i = 0; i < t->count; i++) {
            bool wanted = holds(topology, self, keyspace, t->first + i);
            if (!wanted || !(bits[i / 64] >> i % 64 & 1)) continue;
            bits[i / 64] &= ~((u64)1 << i % 64);
            changed = true;
        }
        if (!changed) continue;
        MARK("cluster.trees.clean_stopped");
        lsm_drop_set(t->shard->lsm, keyspace, bits, 64 - (u32)__builtin_ctz(t->partition_count));
    }
}

/* The first entry of partitions [first, last], if any. ST_OK: there is one; ST_END. */
MAY_YIELD static status
find_entry(struct trees *t, u16 keyspace, u32 first, u32 last)
{
    struct lsm_scan *scan;
    status st = lsm_scan_open(t->shard->lsm, NULL, keyspace,
                              partition_token_first(first, t->partition_count), BYTES(NULL, 0),
                              partition_token_last(last, t->partition_count), &scan);
    if (!ok(st)) return st;
    lsm_scan_whole(scan);
    u64 token;
    struct bytes key;
    struct lsm_value value;
    st = lsm_scan_next(scan, false, &token, &key, &value);
    lsm_scan_close(scan);
    return st;
}

/* ST_OK: something is here that should not be; ST_END: nothing is. */
MAY_YIELD static status
find_foreign(struct trees *t, u16 keyspace, u64 stage_epoch)
{
    u32 self = cluster_member(t->shard->cluster);
    status st = find_entry(t, keyspace, t->first, t->first + t->count - 1);
    if (status_is(st, ST_CORRUPT)) st = ST_OK; /* perhaps in what is ours */
    u32 at = 0;
    while (ok(st) && at < t->count) {
        if (trees_is_ending(t) || t->shard->topology->stage_epoch != stage_epoch)
            return ST_CANCELED;
        u32 run = 0;
        while (at + run < t->count &&
               !holds(t->shard->topology, self, keyspace, t->first + at + run))
            run++;
        if (run == 0) {
            at++;
            continue;
        }
        st = find_entry(t, keyspace, t->first + at, t->first + at + run - 1);
        if (status_is(st, ST_CORRUPT)) {
            MARK("cluster.trees.foreign_damaged");
            return ST_OK;
        }
        if (!status_is(st, ST_END)) return st; /* ok: something is */
        st = ST_OK;
        at += run;
        if (fiber_should_yield()) fiber_yield();
    }
    return ok(st) ? ST_END : st;
}

/* No yield between the look at the topology and the call. */
static status
drop(struct trees *t, u16 keyspace)
{
    size_t bytes = (t->count + 63) / 64 * sizeof(u64);
    u32 self = cluster_member(t->shard->cluster);
    if (t->drops[keyspace] == NULL) t->drops[keyspace] = mem_alloc_zero(io_budget(), bytes);
    u64 *bits = t->drops[keyspace];
    if (bits == NULL) return ST_NO_MEMORY;
    for (u32 i = 0; i < t->count; i++) {
        if (holds(t->shard->topology, self, keyspace, t->first + i)) continue;
        bits[i / 64] |= (u64)1 << i % 64;
        /* What its tree knows is of what goes. */
        if (t->sets[keyspace].marks != NULL) t->sets[keyspace].marks[i] = UINT64_MAX;
    }
    MARK("cluster.trees.cleaning");
    lsm_drop_set(t->shard->lsm, keyspace, bits, 64 - (u32)__builtin_ctz(t->partition_count));
    return ST_OK;
}

MAY_YIELD void
trees_clean(struct trees *t)
{
    const struct topology *topology = t->shard->topology;
    u64 now = io_now_ns(), epoch = topology->stage_epoch;
    if (t->stage_epoch != epoch) {
        t->stage_epoch = epoch;
        t->stage_ns = now;
        t->clean_ns = now + READERS_NS;
        t->drop_ns = 0;
    }
    if (t->clean_epoch == epoch || now < t->clean_ns ||
        replicator_epoch(t->shard->replicator) < epoch)
        return;
    t->clean_ns = now + LOOK_NS_MIN;
    u64 fetching = t->shard->fetching;
    if (fetching != 0 && fetching != topology->session) return; /* it ends soon, with a last page */
    bool clean = true, dropped = false;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        status st = find_foreign(t, keyspace, epoch);
        if (status_is(st, ST_END)) continue;
        clean = false;
        /* While a plan is under way what it takes from us is needed yet, and what an earlier one
         * has left can wait. */
        if (!ok(st) || t->shard->topology->stage != STAGE_NONE || now < t->drop_ns) continue;
        st = lsm_flush(t->shard->lsm);
        if (trees_is_ending(t) || t->shard->topology->stage_epoch != epoch) return;
        if (ok(st)) st = drop(t, keyspace);
        if (!ok(st))
            log_warning("cluster", "what this node does not hold any more stays for now: %s",
                        status_text(st));
        dropped = true;
    }
    if (dropped) t->drop_ns = io_now_ns() + LOOK_NS;
    /* A plan waits for who mends. */
    if (dropped && !is_mending(t)) t->clean_ns = t->drop_ns;
    if (!clean || t->shard->topology->stage_epoch != epoch) return;
    t->clean_epoch = epoch;
    log_debug("cluster", "clean shard=%u epoch=%llu", t->shard->index, (unsigned long long)epoch);
}

void
trees_clean_close(struct trees *t)
{
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        if (t->drops[keyspace] == NULL) continue;
        lsm_drop_set(t->shard->lsm, keyspace, NULL, 0);
        mem_free(io_budget(), t->drops[keyspace], (t->count + 63) / 64 * sizeof(u64));
        t->drops[keyspace] = NULL;
    }
}
