/* SPDX-License-Identifier: MIT
 *
 * cluster_steward.c -- what a member does for the cluster beside requests, on a fiber of shard 0:
 * it keeps its own record in the topology right, fetches what the present plan gives it, and, while
 * it leads group0, makes plans and takes them from stage to stage.
 *
 *   STAGE_NONE        somebody joins or leaves, or a place of a row is empty: PLAN, once nobody
 *                     else has come for SETTLE_NS (several who join at once are one plan)
 *   STAGE_WRITE_BOTH  all gainers have fetched: ADVANCE. One that has not does not answer for
 *                     GIVE_UP_NS: ABANDON, since writes need its half of the quorum meanwhile
 *   STAGE_READ_NEXT   ADVANCE
 *
 * Each waits until every living member works with the epoch of the stage before.
 */
#include <stdio.h>

#include "cluster/cluster.h"

#include "base/log.h"
#include "io/io.h"

#define LOOK_NS        (100 * NS_PER_MS)
#define SETTLE_NS      (500 * NS_PER_MS)
#define GIVE_UP_NS     (5 * NS_PER_S)
#define CHANGE_NS      (5 * NS_PER_S)
#define FETCH_PAUSE_NS (300 * NS_PER_MS)

struct change {
    const struct cluster_shard *shard;
    u8 kind;
    u64 session;
    const char *node_id;
};

static bool
is_ending(const struct cluster_shard *shard)
{
    return atomic_load(&shard->cluster->refusing) || io_stopping();
}

/* ---- the own record ---- */

static bool
record_is_right(const struct topology_member *member, const struct cluster_options *options)
{
    return member->client_port == options->client_port && member->peer_port == options->peer_port &&
           member->shard_count == options->shard_count &&
           strcmp(member->host, options->host) == 0 && strcmp(member->rack, options->rack) == 0;
}

static status
fill_record(void *arg, const struct topology *present, struct topology_command *command)
{
    const struct cluster_shard *shard = arg;
    const struct cluster_options *options = &shard->cluster->options;
    const struct topology_member *member = topology_member(present, cluster_member(shard->cluster));
    if (member == NULL || record_is_right(member, options)) return ST_EXISTS;
    command->kind = TOPOLOGY_MEMBER_SET;
    command->member = *member;
    snprintf(command->member.host, sizeof(command->member.host), "%s", options->host);
    snprintf(command->member.rack, sizeof(command->member.rack), "%s", options->rack);
    command->member.client_port = options->client_port;
    command->member.peer_port = options->peer_port;
    command->member.shard_count = options->shard_count;
    return ST_OK;
}

MAY_YIELD static void
keep_record(struct cluster_shard *shard)
{
    const struct topology_member *member =
        topology_member(shard->topology, cluster_member(shard->cluster));
    if (member == NULL || record_is_right(member, &shard->cluster->options)) return;
    char reason[TOPOLOGY_REASON_BYTES] = "";
    status st = group0_change(shard->group0, fill_record, shard, io_now_ns() + CHANGE_NS, reason);
    if (!ok(st) && !status_is(st, ST_EXISTS))
        log_warning("cluster", "the cluster does not know our new address yet: %s (%s)",
                    status_text(st), reason);
}

/* ---- stages ---- */

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

static status
fill_plan(void *arg, const struct topology *present, struct topology_command *command)
{
    const struct change *change = arg;
    switch ((enum topology_command_kind)change->kind) {
    case TOPOLOGY_PLAN:
        if (present->stage != STAGE_NONE) return ST_EXISTS;
        command->session = change->session;
        break;
    case TOPOLOGY_ADVANCE:
    case TOPOLOGY_ABANDON:
        if (present->stage == STAGE_NONE || present->session != change->session) return ST_EXISTS;
        if (change->kind == TOPOLOGY_ABANDON && present->stage != STAGE_WRITE_BOTH)
            return ST_EXISTS;
        command->session = change->session;
        break;
    case TOPOLOGY_FETCHED: {
        if (present->stage != STAGE_WRITE_BOTH || present->session != change->session)
            return ST_EXISTS;
        const struct topology_member *self =
            topology_member(present, cluster_member(change->shard->cluster));
        if (self == NULL || self->fetched) return ST_EXISTS;
        command->session = change->session;
        command->member = *self;
        break;
    }
    case TOPOLOGY_MEMBER_LEAVE:
    case TOPOLOGY_MEMBER_FORGET: {
        const struct topology_member *member = topology_member_by_id(present, change->node_id);
        if (member == NULL) return ST_EXISTS;
        if (change->kind == TOPOLOGY_MEMBER_LEAVE && member->state == PLACEMENT_LEAVING)
            return ST_EXISTS;
        command->member = *member;
        break;
    }
    case TOPOLOGY_FOUND:
    case TOPOLOGY_MEMBER_ADD:
    case TOPOLOGY_MEMBER_SET:
    case TOPOLOGY_WEIGHT_SET:
    case TOPOLOGY_KEYSPACE_SET:
        return ST_INVALID;
    }
    command->kind = change->kind;
    return ST_OK;
}

MAY_YIELD static void
change_stage(struct cluster_shard *shard, u8 kind, u64 session, const char *what)
{
    struct change change = {.shard = shard, .kind = kind, .session = session};
    char reason[TOPOLOGY_REASON_BYTES] = "";
    status st = group0_change(shard->group0, fill_plan, &change, io_now_ns() + CHANGE_NS, reason);
    if (ok(st))
        log_info("cluster", "move: %s session=%016llx", what, (unsigned long long)session);
    else if (!status_is(st, ST_EXISTS))
        log_warning("cluster", "move: not %s session=%016llx: %s (%s)", what,
                    (unsigned long long)session, status_text(st), reason);
}

/* Whether a plan would change something: nobody who only joins and does not live is planned for. */
static bool
plan_wanted(struct cluster_shard *shard)
{
    const struct topology *topology = shard->topology;
    bool wanted = false;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->state == PLACEMENT_LEAVING) wanted = true;
        if (member->state != PLACEMENT_JOINING) continue;
        if (!cluster_is_alive(shard, member->number)) return false;
        wanted = true;
    }
    size_t places = (size_t)topology->current.partition_count * topology->current.width;
    for (size_t i = 0; i < places && !wanted; i++)
        if (topology->current.ids[i] & TOPOLOGY_GONE) wanted = true;
    return wanted;
}

struct leading {
    u64 epoch;     /* for which the next two are */
    u64 since_ns;  /* when that came */
    u64 silent_ns; /* since when a gainer does not answer; 0: all do */
};

MAY_YIELD static void
lead(struct cluster_shard *shard, struct leading *leading)
{
    const struct topology *topology = shard->topology;
    u64 now = io_now_ns();
    if (leading->epoch != topology->epoch) {
        leading->epoch = topology->epoch;
        leading->since_ns = now;
        leading->silent_ns = 0;
    }
    if (!barrier_passed(shard, topology->stage_epoch)) return;
    if (topology->stage == STAGE_NONE) {
        if (now - leading->since_ns < SETTLE_NS || !plan_wanted(shard)) return;
        u64 session;
        do
            io_entropy(&session, sizeof(session));
        while (session == 0);
        leading->since_ns = now; /* what is refused is not asked for in each round */
        change_stage(shard, TOPOLOGY_PLAN, session, "planned");
        return;
    }
    if (topology->stage == STAGE_READ_NEXT) {
        change_stage(shard, TOPOLOGY_ADVANCE, topology->session, "done");
        return;
    }
    u32 waits_for = topology_unfetched(topology);
    if (waits_for == 0) {
        change_stage(shard, TOPOLOGY_ADVANCE, topology->session, "reading from the new places");
        return;
    }
    if (cluster_is_alive(shard, waits_for)) {
        leading->silent_ns = 0;
        return;
    }
    if (leading->silent_ns == 0) leading->silent_ns = now;
    if (now - leading->silent_ns > GIVE_UP_NS)
        change_stage(shard, TOPOLOGY_ABANDON, topology->session, "abandoned");
}

/* ---- fetching ---- */

struct fetch_call {
    struct cluster *cluster;
    status st;
};

MAY_YIELD static void
fetch_here(void *arg)
{
    struct fetch_call *call = arg;
    struct cluster_shard *shard = call->cluster->shards[io_shard_index()];
    call->st = shard == NULL ? ST_CANCELED : cluster_fetch(shard);
}

/* Whether the present plan is still the one of the session, and wants us to fetch. */
static bool
fetch_is_wanted(const struct cluster_shard *shard, u64 session)
{
    const struct topology *topology = shard->topology;
    const struct topology_member *self = topology_member(topology, cluster_member(shard->cluster));
    return topology->stage == STAGE_WRITE_BOTH && topology->session == session && self != NULL &&
           !self->fetched && !is_ending(shard);
}

MAY_YIELD static void
fetch_all(void *arg)
{
    struct cluster_shard *shard = arg;
    struct cluster *cluster = shard->cluster;
    u64 session = shard->fetch_session, began_ns = io_now_ns();
    u64 bytes = atomic_load(&cluster->fetched_bytes);
    bool done = false;
    /* What was begun under the epoch before may be written to the old places alone. */
    while (fetch_is_wanted(shard, session) && !barrier_passed(shard, shard->topology->stage_epoch))
        fiber_sleep_ns(LOOK_NS / 4);
    while (fetch_is_wanted(shard, session) && !done) {
        done = true;
        for (u32 i = 0; i < cluster->options.shard_count && done; i++) {
            struct fetch_call call = {.cluster = cluster};
            status st = io_shard_call(i, FIBER_BULK, fetch_here, &call);
            done = ok(st) && ok(call.st);
        }
        if (!done) fiber_sleep_ns(FETCH_PAUSE_NS);
    }
    if (done)
        log_info("cluster", "fetched session=%016llx bytes=%llu ms=%llu",
                 (unsigned long long)session,
                 (unsigned long long)(atomic_load(&cluster->fetched_bytes) - bytes),
                 (unsigned long long)((io_now_ns() - began_ns) / NS_PER_MS));
    while (done && fetch_is_wanted(shard, session)) {
        struct change change = {.shard = shard, .kind = TOPOLOGY_FETCHED, .session = session};
        char reason[TOPOLOGY_REASON_BYTES] = "";
        status st =
            group0_change(shard->group0, fill_plan, &change, io_now_ns() + CHANGE_NS, reason);
        if (ok(st) || status_is(st, ST_EXISTS)) break;
        fiber_sleep_ns(FETCH_PAUSE_NS);
    }
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
    struct leading leading = {.epoch = 0};
    while (!is_ending(shard)) {
        keep_record(shard);
        if (is_ending(shard)) break;
        fetch_start(shard);
        struct group0_stats stats;
        group0_stats_get(shard->group0, &stats);
        if (stats.leads) lead(shard, &leading);
        if (is_ending(shard)) break;
        (void)!ok(fiber_queue_wait(&shard->changed, io_now_ns() + LOOK_NS));
    }
    shard->steward_runs = false;
    fiber_queue_wake_all(&shard->changed);
}

MAY_YIELD status
cluster_remove(struct cluster_shard *shard, const char *node_id, bool dead, u64 deadline_ns,
               char reason[TOPOLOGY_REASON_BYTES])
{
    struct change change = {.shard = shard,
                            .kind = dead ? TOPOLOGY_MEMBER_FORGET : TOPOLOGY_MEMBER_LEAVE,
                            .node_id = node_id};
    if (topology_member_by_id(shard->topology, node_id) == NULL) {
        snprintf(reason, TOPOLOGY_REASON_BYTES, "no member has this id");
        return ST_NOT_FOUND;
    }
    status st = group0_change(shard->group0, fill_plan, &change, deadline_ns, reason);
    return status_is(st, ST_EXISTS) ? ST_OK : st;
}
