/* SPDX-License-Identifier: MIT
 *
 * cluster_operate.c -- what operators have done to a cluster: on shard 0 of any node; proposals go
 * to whoever leads group0. And waiting, on any shard, until it knows what was done.
 *
 * Draining: this node hands over what it does for others, and stays a replica. In this order, so
 * that no two nodes run a command that reads before it writes at the same time:
 *
 *   CLUSTER_DRAIN_CLOSING   nothing new is coordinated here (who asks is told to ask again); ends
 *                           when nothing is under way any more
 *   CLUSTER_DRAIN_DONE      pings say so; everybody, ourselves too, gives requests to the next
 *                           replica, and leadership of group0 has been given away
 *
 * It lasts until it is undone or the node starts again. Where no other replica of a key lives, it
 * is still served here.
 */
#include <stdio.h>

#include "cluster/cluster.h"

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"

#define DRAIN_LOOK_NS  (10 * NS_PER_MS)
#define RENEW_LOOK_NS  NS_PER_MS
#define DRAIN_AGAIN_NS (200 * NS_PER_MS)
#define HAND_LOOK_NS   (5 * NS_PER_MS)

/* ---- members ---- */

struct member_change {
    const struct cluster_shard *shard;
    u8 kind;
    bool forced;
    u32 weight;
    const char *node_id;
    char *reason; /* group0_change's */
};

/* Who stays must be as many as the replicas of a key: with fewer each key would have a copy less
 * from then on, and nothing but another node brings that back. Who joins is on its way, and has
 * nothing to take along. */
static bool
too_few_stay(const struct topology *topology, const struct topology_member *leaver,
             struct member_change *change)
{
    u32 stay = 0;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        stay += member->number != leaver->number && member->state != PLACEMENT_LEAVING &&
                strcmp(member->datacenter, leaver->datacenter) == 0;
    }
    if (stay >= topology->replicas || leaver->state == PLACEMENT_JOINING) return false;
    snprintf(change->reason, TOPOLOGY_REASON_BYTES,
             "%u %s would be left, and a key has %u replicas: add a node first, or use force", stay,
             stay == 1 ? "node" : "nodes", topology->replicas);
    return true;
}

/* A member that does not know STAY stops when it meets one, and wants to be upgraded. So all who
 * may be there must know it; the dead need not, as one that is lost is why it is asked for. */
static bool
all_know_stay(const struct cluster_shard *shard, const struct topology *topology, char *reason)
{
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->number == cluster_member(shard->cluster)) continue;
        const struct cluster_ping *ping = cluster_ping_of(shard, member->number);
        if (ping != NULL &&
            (ping->knows_stay || liveness_state(&shard->liveness, member->number) == LIVENESS_DEAD))
            continue;
        snprintf(
            reason, TOPOLOGY_REASON_BYTES,
            "%s has not shown that it knows how a removal is undone: upgrade it, and ask again",
            member->node_id);
        return false;
    }
    return true;
}

static status
fill_stay(struct member_change *change, const struct topology *present,
          const struct topology_member *member)
{
    if (member == NULL) {
        snprintf(change->reason, TOPOLOGY_REASON_BYTES,
                 "it has left: let it join again, with an empty directory");
        return ST_NOT_FOUND;
    }
    if (member->state != PLACEMENT_LEAVING) return ST_EXISTS;
    return all_know_stay(change->shard, present, change->reason) ? ST_OK : ST_INVALID;
}

static status
fill_member(void *arg, const struct topology *present, struct topology_command *command)
{
    struct member_change *change = arg;
    const struct topology_member *member = topology_member_by_id(present, change->node_id);
    if (change->kind == TOPOLOGY_MEMBER_STAY) {
        status st = fill_stay(change, present, member);
        if (!ok(st)) return st;
    }
    if (member == NULL) return change->kind == TOPOLOGY_WEIGHT_SET ? ST_NOT_FOUND : ST_EXISTS;
    if (change->kind == TOPOLOGY_MEMBER_LEAVE && member->state == PLACEMENT_LEAVING)
        return ST_EXISTS;
    if (change->kind == TOPOLOGY_WEIGHT_SET && member->weight == change->weight) return ST_EXISTS;
    if (change->kind == TOPOLOGY_MEMBER_LEAVE && !change->forced &&
        too_few_stay(present, member, change))
        return ST_INVALID;
    command->kind = change->kind;
    command->member = *member;
    if (change->kind == TOPOLOGY_WEIGHT_SET) command->member.weight = change->weight;
    return ST_OK;
}

MAY_YIELD static status
change_member(struct cluster_shard *shard, struct member_change *change, u64 deadline_ns,
              char reason[TOPOLOGY_REASON_BYTES])
{
    if (shard->topology == NULL) return ST_UNAVAILABLE;
    if (topology_member_by_id(shard->topology, change->node_id) == NULL) {
        snprintf(reason, TOPOLOGY_REASON_BYTES, "no member has this id");
        return ST_NOT_FOUND;
    }
    change->reason = reason;
    change->shard = shard;
    return group0_change(shard->group0, fill_member, change, deadline_ns, reason);
}

MAY_YIELD status
cluster_remove(struct cluster_shard *shard, const char *node_id, enum cluster_removal how,
               u64 deadline_ns, char reason[TOPOLOGY_REASON_BYTES])
{
    struct member_change change = {.kind = how == CLUSTER_FORGET ? TOPOLOGY_MEMBER_FORGET
                                           : how == CLUSTER_STAY ? TOPOLOGY_MEMBER_STAY
                                                                 : TOPOLOGY_MEMBER_LEAVE,
                                   .forced = how == CLUSTER_LEAVE_FORCED,
                                   .node_id = node_id};
    return change_member(shard, &change, deadline_ns, reason);
}

status
cluster_leave_at_once(struct cluster_shard *shard)
{
    const struct topology_member *self =
        shard->topology == NULL ? NULL
                                : topology_member(shard->topology, cluster_member(shard->cluster));
    if (self != NULL && self->state != PLACEMENT_LEAVING) return ST_OVERLOADED;
    atomic_store(&shard->cluster->leaves_at_once, true);
    return ST_OK;
}

MAY_YIELD status
cluster_weight_set(struct cluster_shard *shard, const char *node_id, u32 weight, u64 deadline_ns,
                   char reason[TOPOLOGY_REASON_BYTES])
{
    struct member_change change = {
        .kind = TOPOLOGY_WEIGHT_SET, .weight = weight, .node_id = node_id};
    return change_member(shard, &change, deadline_ns, reason);
}

/* ---- keyspaces ---- */

u32
cluster_keyspace_find(const struct topology *topology, const char *name)
{
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (topology->keyspaces[k].used && strcmp(topology->keyspaces[k].name, name) == 0) return k;
    return LIMIT_KEYSPACES_CLIENT;
}

/* "0" to "15" are the names of keyspaces that nobody has given another one. */
static u32
number_of_name(const char *name)
{
    u32 number = 0, digits = 0;
    for (; name[digits] >= '0' && name[digits] <= '9' && digits < 3; digits++)
        number = number * 10 + (u32)(name[digits] - '0');
    bool plain = digits != 0 && name[digits] == 0 && (digits == 1 || name[0] != '0');
    return plain && number < LIMIT_KEYSPACES_CLIENT ? number : LIMIT_KEYSPACES_CLIENT;
}

/* What is not given is as keyspace 0 has it; W and R of another N are a majority. */
static struct topology_keyspace
keyspace_new(const struct topology *topology, const struct cluster_keyspace *wanted)
{
    const struct topology_keyspace *first = &topology->keyspaces[0];
    struct topology_keyspace made = {.conflict = wanted->conflict};
    made.replicas = wanted->replicas != 0 ? wanted->replicas : (u8)topology->replicas;
    u8 majority = made.replicas / 2 + 1;
    bool as_first = first->used && made.replicas == first->replicas;
    made.write_quorum = wanted->write_quorum != 0 ? wanted->write_quorum
                        : as_first                ? first->write_quorum
                                                  : majority;
    made.read_quorum = wanted->read_quorum != 0 ? wanted->read_quorum
                       : as_first               ? first->read_quorum
                                                : majority;
    bool lww = made.conflict == CONFLICT_LWW;
    made.sloppy = wanted->sloppy_on || (!wanted->sloppy_off && first->sloppy && lww);
    snprintf(made.name, sizeof(made.name), "%s", wanted->name);
    return made;
}

static bool
keyspace_same(const struct topology_keyspace *a, const struct topology_keyspace *b)
{
    return a->conflict == b->conflict && a->replicas == b->replicas &&
           a->write_quorum == b->write_quorum && a->read_quorum == b->read_quorum &&
           a->sloppy == b->sloppy && strcmp(a->name, b->name) == 0;
}

/* The number for a new one: what is asked for, or the highest that is free; low ones are what
 * SELECT makes when it is used. LIMIT_KEYSPACES_CLIENT: none, for the reason. */
static u32
keyspace_place(const struct topology *topology, struct cluster_keyspace *wanted)
{
    u32 named = number_of_name(wanted->name), number = wanted->number;
    if (named < LIMIT_KEYSPACES_CLIENT && number != CLUSTER_KEYSPACE_ANY && named != number) {
        snprintf(wanted->reason, sizeof(wanted->reason), "'%s' is the name of keyspace %u",
                 wanted->name, named);
        return LIMIT_KEYSPACES_CLIENT;
    }
    if (number == CLUSTER_KEYSPACE_ANY && named < LIMIT_KEYSPACES_CLIENT) number = named;
    if (number == CLUSTER_KEYSPACE_ANY)
        for (number = LIMIT_KEYSPACES_CLIENT; number > 0; number--)
            if (!topology->keyspaces[number - 1].used) break;
    if (wanted->number == CLUSTER_KEYSPACE_ANY && named == LIMIT_KEYSPACES_CLIENT) {
        if (number != 0) return number - 1;
        snprintf(wanted->reason, sizeof(wanted->reason), "all %u keyspaces are made",
                 LIMIT_KEYSPACES_CLIENT);
        return LIMIT_KEYSPACES_CLIENT;
    }
    if (number >= LIMIT_KEYSPACES_CLIENT)
        snprintf(wanted->reason, sizeof(wanted->reason), "keyspaces have the numbers 0 to %u",
                 LIMIT_KEYSPACES_CLIENT - 1);
    else if (topology->keyspaces[number].used)
        snprintf(wanted->reason, sizeof(wanted->reason), "keyspace %u is there, as '%s'", number,
                 topology->keyspaces[number].name);
    else
        return number;
    return LIMIT_KEYSPACES_CLIENT;
}

/* They are shown in JSON, and typed in shells. */
static bool
name_is_plain(const char *name)
{
    for (const char *c = name; *c != 0; c++) {
        bool letter = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z');
        if (!letter && !(*c >= '0' && *c <= '9') && *c != '.' && *c != '_' && *c != '-')
            return false;
    }
    return name[0] != 0;
}

/* A member that does not know sloppy keyspaces stops when it meets the first one, and does not
 * start any more. Where there is one already, all who are here know them. False: not all are known
 * to, for the reason. */
static bool
all_know_sloppy(const struct cluster_shard *shard, const struct topology *topology, char *reason)
{
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (topology->keyspaces[k].used && topology->keyspaces[k].sloppy) return true;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->number == cluster_member(shard->cluster)) continue;
        const struct cluster_ping *ping = cluster_ping_of(shard, member->number);
        if (ping != NULL && ping->knows_sloppy) continue;
        snprintf(reason, TOPOLOGY_REASON_BYTES,
                 "%s has not shown that it knows sloppy keyspaces: upgrade it, start it if it is "
                 "down, and ask again",
                 member->node_id);
        return false;
    }
    return true;
}

struct keyspace_change {
    const struct cluster_shard *shard;
    struct cluster_keyspace *wanted;
};

static status
fill_wanted(struct cluster_keyspace *wanted, const struct topology *present,
            struct topology_command *command)
{
    u32 there = cluster_keyspace_find(present, wanted->name);
    bool is_there = there < LIMIT_KEYSPACES_CLIENT;
    command->kind = TOPOLOGY_KEYSPACE_SET;
    if (wanted->create) {
        command->options = keyspace_new(present, wanted);
        bool as_numbered = wanted->number == CLUSTER_KEYSPACE_ANY || wanted->number == there;
        if (is_there && as_numbered &&
            keyspace_same(&present->keyspaces[there], &command->options)) {
            wanted->number = there;
            return ST_EXISTS;
        }
        u32 number = is_there ? LIMIT_KEYSPACES_CLIENT : keyspace_place(present, wanted);
        if (is_there)
            snprintf(wanted->reason, sizeof(wanted->reason),
                     "keyspace %u has this name, and is another one", there);
        if (number == LIMIT_KEYSPACES_CLIENT) return ST_INVALID;
        command->keyspace = number;
        return ST_OK;
    }
    if (!is_there) {
        snprintf(wanted->reason, sizeof(wanted->reason), "no keyspace has this name");
        return ST_NOT_FOUND;
    }
    wanted->number = there;
    command->keyspace = there;
    command->options = present->keyspaces[there];
    if (wanted->replicas != 0) command->options.replicas = wanted->replicas;
    if (wanted->write_quorum != 0) command->options.write_quorum = wanted->write_quorum;
    if (wanted->read_quorum != 0) command->options.read_quorum = wanted->read_quorum;
    if (wanted->sloppy_on || wanted->sloppy_off) command->options.sloppy = wanted->sloppy_on;
    return keyspace_same(&present->keyspaces[there], &command->options) ? ST_EXISTS : ST_OK;
}

static status
fill_keyspace(void *arg, const struct topology *present, struct topology_command *command)
{
    const struct keyspace_change *change = arg;
    status st = fill_wanted(change->wanted, present, command);
    if (ok(st) && command->options.sloppy &&
        !all_know_sloppy(change->shard, present, change->wanted->reason))
        return ST_INVALID;
    return st;
}

MAY_YIELD status
cluster_keyspace_set(struct cluster_shard *shard, struct cluster_keyspace *wanted, u64 deadline_ns)
{
    if (!name_is_plain(wanted->name)) {
        snprintf(wanted->reason, sizeof(wanted->reason),
                 "names of keyspaces have letters, digits, '.', '_' and '-'");
        return ST_INVALID;
    }
    if (shard->topology == NULL) return ST_UNAVAILABLE;
    u16 asked = wanted->number;
    struct keyspace_change change = {shard, wanted};
    status st = group0_change(shard->group0, fill_keyspace, &change, deadline_ns, wanted->reason);
    if (!ok(st)) return st;
    u32 there = cluster_keyspace_find(shard->topology, wanted->name);
    /* This member may learn of it a moment later than the leader. */
    wanted->number = there < LIMIT_KEYSPACES_CLIENT ? (u16)there : asked;
    return ST_OK;
}

MAY_YIELD status
cluster_keyspace_need(struct cluster_shard *shard, u32 number, u64 deadline_ns)
{
    struct cluster_keyspace wanted = {.create = true, .number = (u16)number};
    snprintf(wanted.name, sizeof(wanted.name), "%u", number);
    if (shard->topology == NULL) return ST_UNAVAILABLE;
    if (shard->topology->keyspaces[number].used) return ST_OK;
    status st = cluster_keyspace_set(shard, &wanted, deadline_ns);
    if (!ok(st) && !shard->topology->keyspaces[number].used)
        log_warning("cluster", "keyspace %u cannot be made: %s (%s)", number, status_text(st),
                    wanted.reason);
    return shard->topology->keyspaces[number].used ? ST_OK : st;
}

/* ---- what is not known here ---- */

struct renewal {
    struct cluster *cluster;
    u64 deadline_ns, epoch;
    status st;
};

MAY_YIELD static void
renew_here(void *arg)
{
    struct renewal *renewal = arg;
    const struct cluster_shard *shard = renewal->cluster->shards[0];
    if (shard == NULL) return;
    renewal->st = group0_barrier(shard->group0, renewal->deadline_ns);
    if (ok(renewal->st)) renewal->epoch = group0_topology(shard->group0)->epoch;
}

MAY_YIELD status
cluster_topology_renew(struct cluster_shard *shard, u64 deadline_ns)
{
    struct renewal renewal = {
        .cluster = shard->cluster, .deadline_ns = deadline_ns, .st = ST_UNAVAILABLE};
    status st = io_shard_call(0, fiber_class_self(), renew_here, &renewal);
    if (!ok(st) || !ok(renewal.st)) return ST_UNAVAILABLE;
    while (shard->topology == NULL || shard->topology->epoch < renewal.epoch) {
        MARK("cluster.topology.renewed"); /* it is on its way from shard 0 */
        if (io_now_ns() >= deadline_ns) return ST_UNAVAILABLE;
        fiber_sleep_ns(RENEW_LOOK_NS);
    }
    return ST_OK;
}

/* ---- draining ---- */

static bool
is_draining(const struct cluster *cluster)
{
    return atomic_load(&cluster->drain) != CLUSTER_DRAIN_NONE && !atomic_load(&cluster->refusing) &&
           !io_stopping();
}

struct drain_call {
    struct cluster *cluster;
    bool closing;
    u64 count;
};

static void
drain_here(void *arg)
{
    struct drain_call *call = arg;
    struct cluster_shard *shard = call->cluster->shards[io_shard_index()];
    if (shard == NULL) return;
    shard->closing = call->closing;
    call->count += shard->coordinating;
}

/* Tells all shards; how many requests they coordinate. */
MAY_YIELD static u64
drain_tell(struct cluster *cluster, bool closing)
{
    struct drain_call call = {.cluster = cluster, .closing = closing};
    for (u32 i = 0; i < cluster->options.shard_count; i++) {
        status st = io_shard_call(i, FIBER_FOREGROUND, drain_here, &call);
        if (!ok(st)) call.count++; /* asked again */
    }
    return call.count;
}

MAY_YIELD static void
drain_main(void *arg)
{
    struct cluster_shard *shard = arg;
    struct cluster *cluster = shard->cluster;
    while (is_draining(cluster) && drain_tell(cluster, true) != 0)
        fiber_sleep_ns(DRAIN_LOOK_NS);
    if (is_draining(cluster)) {
        cluster_runners_change(cluster);
        atomic_store(&cluster->drain, CLUSTER_DRAIN_DONE);
        log_info("cluster", "drained: requests go to other nodes");
    }
    /* Who stops does that again, and opens only when it has told. */
    if (!io_stopping()) (void)drain_tell(cluster, false);
    while (is_draining(cluster)) {
        if (group0_give_lead(shard->group0)) log_info("cluster", "gives the lead of group0 away");
        (void)!ok(fiber_queue_wait(&shard->changed, io_now_ns() + DRAIN_AGAIN_NS));
    }
    shard->drain_runs = false;
    fiber_queue_wake_all(&shard->changed);
}

status
cluster_drain(struct cluster_shard *shard, bool undo)
{
    struct cluster *cluster = shard->cluster;
    if (undo) {
        cluster_runners_change(cluster);
        atomic_store(&cluster->drain, CLUSTER_DRAIN_NONE);
        fiber_queue_wake_all(&shard->changed);
        return ST_OK;
    }
    if (atomic_load(&cluster->drain) != CLUSTER_DRAIN_NONE) return ST_OK;
    if (shard->drain_runs) return ST_OVERLOADED; /* one that was undone has not ended yet */
    atomic_store(&cluster->drain, CLUSTER_DRAIN_CLOSING);
    shard->drain_runs = true;
    status st = fiber_spawn(FIBER_BACKGROUND, "cluster drain", drain_main, shard);
    if (!ok(st)) {
        shard->drain_runs = false;
        atomic_store(&cluster->drain, CLUSTER_DRAIN_NONE);
    }
    return st;
}

/* ---- stopping ---- */

/* Whether all who live have heard since then that requests are to go elsewhere. */
static bool
all_were_told(const struct cluster_shard *shard, u64 since_ns)
{
    for (u32 i = 0; i < shard->liveness.count; i++) {
        const struct cluster_ping *ping = cluster_ping_at(shard, i);
        if (!cluster_ping_is_alive(ping)) continue;
        if (ping->began_ns <= since_ns || ping->calling) return false;
    }
    return true;
}

MAY_YIELD void
cluster_hand_over(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    u64 now = io_now_ns(), until_ns = now + CLUSTER_HAND_OVER_NS;
    u64 closed_ns = now + CLUSTER_HAND_OVER_NS / 2; /* who is slow leaves time to tell the others */
    while (drain_tell(cluster, true) != 0 && io_now_ns() < closed_ns)
        fiber_sleep_ns(HAND_LOOK_NS);
    cluster_runners_change(cluster);
    atomic_store(&cluster->passing, CLUSTER_PASSING_STOPS);
    (void)drain_tell(cluster, false); /* to others: they take it */
    u64 since_ns = io_now_ns();
    bool gave = false, given = false;
    while (io_now_ns() < until_ns) {
        /* Once: who got it may stop, too, and give it back. */
        bool leads = !given && group0_give_lead(shard->group0);
        if (leads && !gave) log_info("cluster", "gives the lead of group0 away");
        given = gave && !leads;
        gave |= leads;
        if (!leads && all_were_told(shard, since_ns)) break;
        fiber_sleep_ns(HAND_LOOK_NS);
    }
}
