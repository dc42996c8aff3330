/* SPDX-License-Identifier: MIT
 *
 * cluster_mend.c -- damage in a member's store is mended by the others, a partition at a time: the
 * member forgets its copy, whole, and fetches the partition anew.
 *
 *   a block fails its check   the store refuses what it may hold, so other replicas answer, and
 *                             tells which tokens that is (lsm_damage_next)
 *   handing over              the others are given what they lack of those partitions and can be
 *                             read here, and asked for all that they have, values too: only if
 *                             each of them answers, and can read it, does the member give up what
 *                             it can read itself
 *   LOST                      the topology says that the member has those partitions no more:
 *                             nobody asks it for them, nor writes them there (topology.h)
 *   cleaning                  it forgets as any loser: trees_clean.c lets the store drop them, the
 *                             damaged blocks unread, and looks until nothing is found there
 *   MENDED                    the next plan gives the places back, and the member fetches from
 *                             the others, as anybody does who gains
 *
 * Why whole. A damaged block may have held the tombstone, or the newer version, of a key of which
 * an older one lies elsewhere in the same store, and which the others may have collected
 * meanwhile: so to bring what they have, and to leave out the block, may bring back what was
 * deleted. Where nothing is left that it could have hidden, nothing comes back.
 *
 * Nor is anything given up while another holder takes no writes (its disk is full): with what is
 * left there might be no write quorum any more.
 *
 * Why that loses nothing: LOST is refused where those who are left could lack an acknowledged write
 * (topology_may_lose). So two copies with W = 1, or keyspaces of one copy, are not mended: there
 * the store refuses, and an operator decides.
 *
 * Not mended is what belongs to no partition of a client's keyspace (group0's log, hints), nor a
 * store that does not open: such a node is wiped, and replaced.
 */
#include <stdio.h>

#include "cluster/cluster.h"
#include "cluster/trees_internal.h"

#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "io/io.h"

#define LOOK_NS (500 * NS_PER_MS)
/* What was refused, or others cannot read: twice as long each time. */
#define AGAIN_NS      (10 * NS_PER_S)
#define LOOK_AGAIN_NS (2 * NS_PER_S) /* where nothing was read */
#define AGAIN_NS_MAX  (600 * NS_PER_S)
#define CHANGE_NS     (5 * NS_PER_S)
#define PAGE_NS       (10 * NS_PER_S)
#define PAGE_BYTES    KIB(256)
/* So long plans wait for who mends, while others cannot read what it would give up besides. */
#define GIVE_BACK_NS (60 * NS_PER_S)

bool
cluster_mends(const struct topology *topology)
{
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        const struct topology_keyspace *keyspace = &topology->keyspaces[k];
        u32 places = MIN(keyspace->replicas, topology->member_count);
        if (keyspace->used && !topology_may_spare(keyspace, places, places)) return false;
    }
    return true;
}

/* ---- what a shard has ---- */

struct look {
    struct cluster *cluster;
    u64 stage_epoch; /* of the topology that shard 0 goes by */
    /* out */
    u64 damage_epoch;     /* before it looked */
    u32 partition, count; /* damaged ones, with those that it does not hold; 0: it holds none */
    bool all_know;        /* in: what LOST is */
    bool is_here, is_clean, was_read;
    status st; /* whether the others have all of these */
    u32 member, keyspace;
};

static bool
is_over(const struct cluster_shard *shard, const struct look *look)
{
    return shard->topology == NULL || shard->topology->stage_epoch != look->stage_epoch ||
           atomic_load(&shard->cluster->refusing) || io_stopping();
}

/* From the first one to the last that the member holds. */
static void
held(const struct topology *topology, u32 self, u32 first, u32 last, struct look *look)
{
    for (u32 p = first; p <= last; p++) {
        if (!topology_holds(topology, self, p)) continue;
        if (look->count == 0) look->partition = p;
        look->count = p - look->partition + 1;
    }
}

/* The first stretch of damage in what the member holds; or, with `grows`, what of it begins in
 * partitions that are to be given up anyway, and does not end there. */
static bool
find_damage(const struct cluster_shard *shard, struct look *look, bool grows)
{
    u32 self = cluster_member(look->cluster), partitions = shard->topology->partition_count;
    u32 first_before = look->partition, count_before = look->count;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        u64 token = 0, first, last;
        while (lsm_damage_next(shard->lsm, keyspace, token, &first, &last)) {
            u32 from = token_partition(first, partitions), to = token_partition(last, partitions);
            bool meets =
                look->count != 0 && from < look->partition + look->count && to >= look->partition;
            if (look->count == 0) {
                held(shard->topology, self, from, to, look);
            } else if (grows && meets) {
                u32 end = MAX(look->partition + look->count, to + 1);
                look->partition = MIN(look->partition, from);
                look->count = end - look->partition;
            }
            if (last == UINT64_MAX) break;
            token = last + 1;
        }
    }
    return look->partition != first_before || look->count != count_before;
}

/* Reads all that the store has of them, so that all the damage there is known. */
MAY_YIELD static status
read_here(struct cluster_shard *shard, struct look *look)
{
    u32 partitions = shard->topology->partition_count;
    u64 first = partition_token_first(look->partition, partitions);
    u64 last = partition_token_last(look->partition + look->count - 1, partitions);
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        struct lsm_scan *scan;
        status st = lsm_scan_open(shard->lsm, NULL, keyspace, first, BYTES(NULL, 0), last, &scan);
        if (!ok(st)) return st;
        lsm_scan_whole(scan);
        lsm_scan_pass_damage(scan);
        u64 token, bytes = 0;
        struct bytes key;
        struct lsm_value value;
        while (ok(st = lsm_scan_next(scan, true, &token, &key, &value))) {
            if (is_over(shard, look)) {
                st = ST_CANCELED;
                break;
            }
            bytes += key.size + value.value.size;
            if (bytes < PAGE_BYTES) continue;
            trees_pace(shard->trees, bytes);
            bytes = 0;
        }
        lsm_scan_close(scan);
        if (!status_is(st, ST_END)) return st;
    }
    return ST_OK;
}

/* ---- so that the others have it ---- */

/* How many partitions from this one on both hold, and the member on one shard; 0 also where those
 * before it go on. */
static u32
run_length(const struct cluster_shard *shard, const struct look *look,
           const struct topology_member *member, u32 partition)
{
    u32 self = cluster_member(look->cluster), partitions = shard->topology->partition_count;
    u32 there = partition_shard(partition, member->shard_count, partitions), length = 0;
    for (u32 p = MAX(partition, look->partition + 1) - 1; p < look->partition + look->count; p++) {
        struct topology_row row;
        topology_row(shard->topology, look->keyspace, p, &row);
        bool goes_on = topology_row_has(&row, self) && topology_row_has(&row, member->number) &&
                       partition_shard(p, member->shard_count, partitions) == there;
        if (p < partition && goes_on) return 0;
        if (p >= partition && !goes_on) break;
        length += p >= partition;
    }
    return length;
}

MAY_YIELD static status
hand_over(struct cluster_shard *shard, struct look *look)
{
    for (look->keyspace = 0; look->keyspace < LIMIT_KEYSPACES_CLIENT; look->keyspace++)
        for (u32 p = look->partition; p < look->partition + look->count; p++) {
            if (is_over(shard, look)) return ST_CANCELED;
            struct topology_row row;
            topology_row(shard->topology, look->keyspace, p, &row);
            for (u32 i = 0; i < row.count; i++) {
                const struct topology_member *member =
                    topology_member(shard->topology, row.write[i]);
                if (member == NULL || member->number == cluster_member(look->cluster)) continue;
                u32 length = run_length(shard, look, member, p);
                if (length == 0) continue;
                look->member = member->number;
                u32 there =
                    partition_shard(p, member->shard_count, shard->topology->partition_count);
                status st = trees_hand_over(shard->trees, look->stage_epoch, (u16)look->keyspace,
                                            look->member, there, p, p + length);
                if (ok(st) && is_over(shard, look)) st = ST_CANCELED;
                if (!ok(st)) return st;
            }
            if (fiber_should_yield()) fiber_yield();
        }
    look->member = 0;
    return ST_OK;
}

/* What costs nothing to find out, before anything is read. */
static status
may_begin(struct cluster_shard *shard, struct look *look)
{
    const struct topology *topology = shard->topology;
    u32 self = cluster_member(look->cluster);
    if (!look->all_know) return ST_UNSUPPORTED;
    if (lsm_is_stuck(shard->lsm)) return ST_READ_ONLY; /* what cannot be removed is not given up */
    look->member = topology_mending_beside(topology, self);
    if (look->member != 0) return ST_OVERLOADED;
    for (u32 p = look->partition; p < look->partition + look->count; p++) {
        if (!topology_holds(topology, self, p)) continue;
        if (!topology_may_lose(topology, self, p)) return ST_DENIED;
        const u32 *row = placement_row(&topology->current, p);
        for (u32 k = 0; k < topology->current.width; k++) {
            if (topology_member(topology, row[k]) == NULL || row[k] == self) continue;
            look->member = row[k];
            if (!cluster_alive(look->cluster, row[k])) return ST_UNAVAILABLE;
            /* It would be no part of a write quorum of those who are left. */
            if (cluster_stuck(look->cluster, row[k])) return ST_NO_SPACE;
        }
    }
    look->member = 0;
    return ST_OK;
}

MAY_YIELD static void
look_here(void *arg)
{
    struct look *look = arg;
    struct cluster_shard *shard = look->cluster->shards[io_shard_index()];
    if (shard == NULL || shard->trees == NULL || is_over(shard, look)) return;
    shard->mends = true; /* it is not closed meanwhile */
    look->is_clean = trees_are_clean_since(shard, look->stage_epoch);
    look->damage_epoch = lsm_damage_epoch(shard->lsm);
    bool found = find_damage(shard, look, false);
    look->st = found ? may_begin(shard, look) : ST_OK;
    look->was_read = ok(look->st);
    while (found && ok(look->st)) {
        look->st = read_here(shard, look);
        if (ok(look->st) && is_over(shard, look)) look->st = ST_CANCELED;
        if (!ok(look->st) || !find_damage(shard, look, true)) break;
    }
    if (found && ok(look->st)) look->st = hand_over(shard, look);
    look->is_here = !is_over(shard, look);
    shard->mends = false;
    fiber_queue_wake_all(&shard->ended);
}

/* ---- what the topology is told ---- */

struct change {
    const struct cluster_shard *shard;
    u8 kind;
    u64 state_id; /* what it was decided by */
    u32 partition, count;
    bool in_vain; /* MENDED, though it is not */
};

static status
fill(void *arg, const struct topology *present, struct topology_command *command)
{
    const struct change *change = arg;
    const struct topology_member *self =
        topology_member(present, cluster_member(change->shard->cluster));
    if (present->state_id != change->state_id || self == NULL) return ST_EXISTS; /* look again */
    command->kind = change->kind;
    command->member = *self;
    command->partition_first = change->partition;
    command->partition_count = change->count;
    return ST_OK;
}

/* A member that does not know what LOST is would stop. */
static bool
all_know(const struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    if (topology_mending(topology) != 0) return true;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 number = topology->members[i].number;
        if (number == cluster_member(shard->cluster)) continue;
        const struct cluster_ping *ping = cluster_ping_of(shard, number);
        if (ping == NULL || !ping->knows_lost) return false;
    }
    return true;
}

static void
pause(struct cluster_shard *shard)
{
    shard->mend_pause_ns = CLAMP(2 * shard->mend_pause_ns, AGAIN_NS, AGAIN_NS_MAX);
    shard->mend_at_ns = io_now_ns() + shard->mend_pause_ns;
}

MAY_YIELD static void
tell(struct cluster_shard *shard, struct change *change)
{
    char reason[TOPOLOGY_REASON_BYTES] = "";
    status st = group0_change(shard->group0, fill, change, io_now_ns() + CHANGE_NS, reason);
    if (status_is(st, ST_EXISTS)) return;
    if (!ok(st)) pause(shard);
    if (ok(st) && change->kind == TOPOLOGY_MENDED) {
        if (change->in_vain)
            log_warning("cluster", "what was given up is taken back: it waits for what other nodes "
                                   "cannot read either");
        else
            log_info("cluster", "all that was damaged is removed, to be fetched anew");
    } else if (ok(st)) {
        MARK("cluster.mend.lost");
        log_warning("cluster",
                    "damage: these partitions are given up, to be fetched from other nodes "
                    "first=%u count=%u",
                    change->partition, change->count);
    } else {
        MARK("cluster.mend.refused");
        log_error("cluster", "damage is not mended from other nodes yet: %s (%s) first=%u count=%u",
                  status_text(st), reason[0] != 0 ? reason : "it waits for a member that leads",
                  change->partition, change->count);
    }
}

/* Whether any shard has met damage since all that it had was told of. */
static bool
is_wanted(const struct cluster_shard *shard, const struct topology_member *self)
{
    if (shard->mend_seen_epoch != shard->topology->stage_epoch) return true; /* it may hold more */
    for (u32 i = 0; i < shard->cluster->options.shard_count; i++)
        if (atomic_load(&shard->cluster->trees.damage[i]) != shard->mend_seen[i]) return true;
    return self->mending;
}

static const char *
why_not(const struct look *look)
{
    status st = look->st;
    if (look->was_read && look->member == 0) return "what is here of it cannot be read now";
    if (look->was_read) return "one of them does not say that it has it";
    return status_is(st, ST_DENIED)        ? "those who are left might lack what was acknowledged"
           : status_is(st, ST_UNSUPPORTED) ? "not all nodes have shown that they know how"
           : status_is(st, ST_READ_ONLY)   ? "this node takes no writes"
           : status_is(st, ST_OVERLOADED)  ? "another node is mended first"
           : status_is(st, ST_NO_SPACE)    ? "one of them takes no writes"
                                           : "one of them is not reached";
}

/* Nothing is given up. */
static void
tell_why_not(struct cluster_shard *shard, const struct look *look)
{
    if (look->was_read)
        pause(shard);
    else
        shard->mend_at_ns = io_now_ns() + LOOK_AGAIN_NS;
    status st = look->st;
    bool again = status_is(st, shard->mend_told);
    if (again && io_now_ns() < shard->mend_told_ns + AGAIN_NS_MAX) return;
    MARK("cluster.mend.not_yet");
    shard->mend_told = st;
    shard->mend_told_ns = io_now_ns();
    const struct topology_member *member = topology_member(shard->topology, look->member);
    log_error(
        "cluster",
        "damage is not mended from other nodes yet: %s first=%u count=%u node_id=%s why=\"%s\"",
        why_not(look), look->partition, look->count, member == NULL ? "" : member->node_id,
        status_text(st));
}

/* It waits for somebody else who does not have what this one cannot remove without it, and the
 * plans of all wait for it. It is no danger to hold again what is damaged yet: the block stays, and
 * is refused, as long as any of its tokens is wanted. */
MAY_YIELD static void
give_back(struct cluster_shard *shard, struct change *change)
{
    MARK("cluster.mend.given_back");
    change->in_vain = true;
    tell(shard, change);
    shard->mend_at_ns = io_now_ns() + AGAIN_NS_MAX;
}

MAY_YIELD static void
mend_round(struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    const struct topology_member *self = topology_member(topology, cluster_member(shard->cluster));
    if (self == NULL || topology->stage != STAGE_NONE) return;
    struct change change = {
        .shard = shard, .kind = TOPOLOGY_MENDED, .state_id = topology->state_id};
    bool mending = self->mending, all_clean = true, knows = all_know(shard);
    u64 stage_epoch = topology->stage_epoch;
    for (u32 i = 0; i < shard->cluster->options.shard_count; i++) {
        struct look look = {
            .cluster = shard->cluster, .stage_epoch = stage_epoch, .all_know = knows};
        status st = io_shard_call(i, FIBER_BACKGROUND, look_here, &look);
        if (!ok(st) || !look.is_here || status_is(look.st, ST_CANCELED)) return;
        all_clean = all_clean && look.is_clean;
        if (look.count == 0) {
            shard->mend_seen[i] = look.damage_epoch;
            continue;
        }
        if (!ok(look.st)) {
            tell_why_not(shard, &look);
            if (mending && io_now_ns() - shard->mend_since_ns >= GIVE_BACK_NS)
                give_back(shard, &change);
            return;
        }
        change.kind = TOPOLOGY_LOST;
        change.state_id = shard->topology->state_id; /* the stage is the same */
        change.partition = look.partition;
        change.count = look.count;
        tell(shard, &change);
        return;
    }
    shard->mend_seen_epoch = stage_epoch;
    shard->mend_pause_ns = 0;
    if (mending && all_clean) tell(shard, &change);
}

MAY_YIELD static void
mend_main(void *arg)
{
    struct cluster_shard *shard = arg;
    mend_round(shard);
    shard->mend_runs = false;
    fiber_queue_wake_all(&shard->changed);
}

void
cluster_mend(struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    const struct topology_member *self = topology_member(topology, cluster_member(shard->cluster));
    if (shard->mend_runs || io_now_ns() < shard->mend_at_ns || self == NULL ||
        topology->stage != STAGE_NONE || !is_wanted(shard, self))
        return;
    shard->mend_at_ns = io_now_ns() + LOOK_NS;
    if (shard->mend_stage_epoch != topology->stage_epoch) shard->mend_since_ns = io_now_ns();
    shard->mend_stage_epoch = topology->stage_epoch;
    shard->mend_runs = true;
    status st = fiber_spawn(FIBER_BACKGROUND, "cluster mend", mend_main, shard);
    if (!ok(st)) shard->mend_runs = false; /* in the next round */
}
