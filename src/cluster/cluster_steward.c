/* SPDX-License-Identifier: MIT
 *
 * cluster_steward.c -- what a member does for the cluster beside requests, on a fiber of shard 0:
 * it keeps its own record in the topology right, fetches what the present plan gives it, and gives
 * up what damage has made unreadable (cluster_mend.c). (Plans
 * are made, and taken from stage to stage, by whoever leads group0: group0_lead.c.)
 *
 * Nobody fetches before every living member works with the fence of the stage (topology.h).
 */
#include <stdio.h>

#include "cluster/cluster.h"

#include "base/hash.h"
#include "base/log.h"
#include "io/io.h"

#define LOOK_NS   (100 * NS_PER_MS)
#define CHANGE_NS (5 * NS_PER_S)
/* What was refused is asked for again after this: each time costs an entry of the log. */
#define RECORD_AGAIN_NS (500 * NS_PER_MS)
#define FETCH_PAUSE_NS  (300 * NS_PER_MS)
#define FETCH_WAIT_NS   NS_PER_S /* for who does not answer */

static bool
is_ending(const struct cluster_shard *shard)
{
    return atomic_load(&shard->cluster->refusing) || io_stopping();
}

/* ---- the own record ---- */

static bool
record_is_right(const struct topology_member *member, const struct cluster_options *options)
{
    struct topology_member right = *member;
    cluster_describe(options, &right);
    return right.client_port == member->client_port && right.peer_port == member->peer_port &&
           right.shard_count == member->shard_count && strcmp(right.host, member->host) == 0 &&
           strcmp(right.rack, member->rack) == 0;
}

struct record_change {
    const struct cluster_shard *shard;
    char taken_by[TOPOLOGY_NAME_BYTES]; /* out: who has our place, by its record */
};

/* Two that have changed places each find the other one's record in the way. So who has left its own
 * place gives that up first, by a record without a port. */
static status
fill_record(void *arg, const struct topology *present, struct topology_command *command)
{
    struct record_change *change = arg;
    const struct cluster_shard *shard = change->shard;
    const struct cluster_options *options = &shard->cluster->options;
    const struct topology_member *member = topology_member(present, cluster_member(shard->cluster));
    if (member == NULL || record_is_right(member, options)) return ST_EXISTS;
    command->kind = TOPOLOGY_MEMBER_SET;
    command->member = *member;
    cluster_describe(options, &command->member);
    change->taken_by[0] = 0;
    for (u32 i = 0; i < present->member_count; i++) {
        const struct topology_member *other = &present->members[i];
        if (other->number == member->number || !topology_ports_clash(&command->member, other))
            continue;
        snprintf(change->taken_by, sizeof(change->taken_by), "%s", other->node_id);
        bool left = member->peer_port != 0 && !topology_ports_clash(&command->member, member);
        command->member.peer_port = 0;
        return left ? ST_OK : ST_DENIED;
    }
    return ST_OK;
}

MAY_YIELD static void
keep_record(struct cluster_shard *shard)
{
    const struct topology_member *member =
        topology_member(shard->topology, cluster_member(shard->cluster));
    if (member == NULL || record_is_right(member, &shard->cluster->options)) return;
    if (io_now_ns() < shard->record_again_ns) return;
    char reason[TOPOLOGY_REASON_BYTES] = "";
    struct record_change change = {.shard = shard};
    status st = group0_change(shard->group0, fill_record, &change, io_now_ns() + CHANGE_NS, reason);
    if (ok(st) || status_is(st, ST_EXISTS)) return;
    shard->record_again_ns = io_now_ns() + RECORD_AGAIN_NS;
    if (!log_seldom(&shard->record_told_ns, io_now_ns())) return;
    if (status_is(st, ST_DENIED) && change.taken_by[0] != 0)
        log_warning("cluster",
                    "another member has the address of this node: start it elsewhere, or remove it "
                    "node_id=%s",
                    change.taken_by);
    else
        log_warning("cluster", "the cluster does not know yet what has changed about us: %s (%s)",
                    status_text(st),
                    reason[0] != '\0' ? reason : "it waits for a member that leads");
}

/* ---- what it fetches ---- */

/* Whether every living member works with this epoch or a newer one. */
static bool
barrier_passed(struct cluster_shard *shard, u64 epoch)
{
    const struct topology *topology = shard->topology;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 number = topology->members[i].number;
        if (cluster_is_alive(shard, number) && cluster_epoch_of(shard, number) < epoch)
            return false;
    }
    return true;
}

struct fetched {
    const struct cluster_shard *shard;
    u64 session;
};

static status
fill_fetched(void *arg, const struct topology *present, struct topology_command *command)
{
    const struct fetched *fetched = arg;
    if (present->stage != STAGE_WRITE_BOTH || present->session != fetched->session)
        return ST_EXISTS;
    const struct topology_member *self =
        topology_member(present, cluster_member(fetched->shard->cluster));
    if (self == NULL || self->fetched) return ST_EXISTS;
    command->kind = TOPOLOGY_FETCHED;
    command->session = fetched->session;
    command->member = *self;
    return ST_OK;
}

struct fetch_call {
    struct cluster *cluster;
    struct cluster_fetch_left *left;
    status st;
};

MAY_YIELD static void
fetch_here(void *arg)
{
    struct fetch_call *call = arg;
    struct cluster_shard *shard = call->cluster->shards[io_shard_index()];
    call->st = shard == NULL ? ST_CANCELED : cluster_fetch(shard, call->left);
}

/* Whether the present plan is still the one of the session, and wants us to fetch. */
static bool
fetch_is_wanted(const struct cluster_shard *shard, u64 session)
{
    const struct topology *topology = shard->topology;
    const struct topology_member *self = topology_member(topology, cluster_member(shard->cluster));
    return topology->stage == STAGE_WRITE_BOTH && topology_fenced(topology) &&
           topology->session == session && self != NULL && !self->fetched && !is_ending(shard);
}

struct fetch_told {
    u64 waits; /* a hash */
    u64 ns;
};

/* Whom it waits for, when that changes, and then seldom. */
static void
tell_waits(const struct cluster_shard *shard, const struct cluster_fetch_left *left,
           struct fetch_told *told)
{
    const struct topology *topology = shard->topology;
    u64 waits = left->wait_count == 0
                    ? 0
                    : hash_bytes(left->waits, left->wait_count * sizeof(left->waits[0]), 1);
    if (waits != told->waits) told->ns = 0;
    told->waits = waits;
    if (waits == 0 || !log_seldom(&told->ns, io_now_ns())) return;
    for (u32 i = 0; i < left->wait_count; i++) {
        const struct cluster_fetch_wait *wait = &left->waits[i];
        const struct topology_member *member = topology_member(topology, wait->member);
        log_warning("cluster",
                    "what it gains waits for a node that does not answer: bring it back, or remove "
                    "it as dead keyspace=%u name=%s partitions=%u from=%s",
                    wait->keyspace, topology->keyspaces[wait->keyspace].name, wait->partitions,
                    member == NULL ? "?" : member->node_id);
    }
}

static void
tell_lost(const struct topology *topology, const struct cluster_fetch_left *left)
{
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (left->lost[k] != 0)
            log_warning("cluster",
                        "every node that had it was given up: it begins empty keyspace=%u name=%s "
                        "partitions=%u",
                        k, topology->keyspaces[k].name, left->lost[k]);
}

/* One round of all shards but those that have everything (a bit each). */
MAY_YIELD static u64
fetch_round(struct cluster *cluster, u64 have, struct cluster_fetch_left *left)
{
    left->wait_count = 0;
    for (u32 i = 0; i < cluster->options.shard_count; i++) {
        if ((have >> i & 1) != 0) continue;
        struct fetch_call call = {.cluster = cluster, .left = left};
        status st = io_shard_call(i, FIBER_BULK, fetch_here, &call);
        if (ok(st) && ok(call.st)) have |= (u64)1 << i;
    }
    return have;
}
static_assert(LIMIT_SHARDS <= 64, "a bit for each shard");

MAY_YIELD static void
fetch_all(void *arg)
{
    struct cluster_shard *shard = arg;
    struct cluster *cluster = shard->cluster;
    u64 session = shard->fetch_session, began_ns = io_now_ns();
    u64 bytes = atomic_load(&cluster->fetched_bytes);
    bool done = false;
    atomic_store(&cluster->fetch_done, 0);
    atomic_store(&cluster->fetch_failed_from, 0);
    atomic_store(&cluster->fetch_partitions, cluster_fetch_size(shard));
    atomic_store(&cluster->fetch_began_ns, began_ns);
    atomic_store(&cluster->fetch_began_bytes, bytes);
    atomic_store(&cluster->fetch_session, session);
    /* What was begun before the fence may be written to the old places alone. */
    while (fetch_is_wanted(shard, session) && !barrier_passed(shard, shard->topology->epoch))
        fiber_sleep_ns(LOOK_NS / 4);
    struct cluster_fetch_left left = {0};
    struct fetch_told told = {0};
    u64 all = UINT64_MAX >> (64 - cluster->options.shard_count), have = 0;
    while (fetch_is_wanted(shard, session) && !done) {
        have = fetch_round(cluster, have, &left);
        done = have == all;
        tell_waits(shard, &left, &told);
        if (!done) fiber_sleep_ns(left.wait_count != 0 ? FETCH_WAIT_NS : FETCH_PAUSE_NS);
    }
    if (done) tell_lost(shard->topology, &left);
    if (done)
        log_info("cluster", "fetched session=%016llx bytes=%llu ms=%llu",
                 (unsigned long long)session,
                 (unsigned long long)(atomic_load(&cluster->fetched_bytes) - bytes),
                 (unsigned long long)((io_now_ns() - began_ns) / NS_PER_MS));
    while (done && fetch_is_wanted(shard, session)) {
        struct fetched fetched = {.shard = shard, .session = session};
        char reason[TOPOLOGY_REASON_BYTES] = "";
        status st =
            group0_change(shard->group0, fill_fetched, &fetched, io_now_ns() + CHANGE_NS, reason);
        if (ok(st) || status_is(st, ST_EXISTS)) break;
        fiber_sleep_ns(FETCH_PAUSE_NS);
    }
    atomic_store(&cluster->fetch_failed_from, 0);
    shard->fetch_runs = false;
    fiber_queue_wake_all(&shard->changed);
}

static void
fetch_start(struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    if (shard->fetch_runs || !fetch_is_wanted(shard, topology->session)) return;
    if (!topology_gainer(topology, cluster_member(shard->cluster))) return;
    shard->fetch_runs = true;
    shard->fetch_session = topology->session;
    status st = fiber_spawn(FIBER_BACKGROUND, "cluster fetch", fetch_all, shard);
    if (!ok(st)) shard->fetch_runs = false; /* in the next round */
}

/* ---- the fiber ---- */

MAY_YIELD void
cluster_steward(void *arg)
{
    struct cluster_shard *shard = arg;
    while (!is_ending(shard)) {
        if (shard->topology != NULL) {
            keep_record(shard);
            if (is_ending(shard)) break;
            fetch_start(shard);
            cluster_mend(shard);
        }
        (void)!ok(fiber_queue_wait(&shard->changed, io_now_ns() + LOOK_NS));
    }
    shard->steward_runs = false;
    fiber_queue_wake_all(&shard->changed);
}
