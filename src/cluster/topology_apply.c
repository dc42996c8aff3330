/* SPDX-License-Identifier: MIT
 *
 * topology_apply.c -- commands: each is checked against the state, then done to a copy of it. A
 * refusal drops the copy; so nothing half done is ever seen.
 *
 *   JOINING --plan--> NORMAL --leave--> LEAVING --plan--> removed
 *      |                 |  <---stay-----   |
 *      +---- forgotten --+------------------+-> gone: its places are marked, until a plan ends
 *
 * (Who lost its copy of a partition has its place there marked likewise, and stays what it is.)
 *
 * Racks and data centers are names here and numbers in placements: their positions among the sorted
 * names of the members. A data center that joins may so change the numbers of others, and the order
 * in which they stand in rows, but nobody's place within its own.
 */
#include <stdarg.h>
#include <stdio.h>

#include "base/fault.h"
#include "cluster/topology.h"
#include "cluster/topology_internal.h"

struct apply {
    struct topology *next; /* being changed */
    const struct topology_command *command;
    char *reason;
    void (*pause)(void); /* see placement_input */
    bool stage_changed;
};

static status PRINTF_LIKE(2, 3) refuse(struct apply *apply, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(apply->reason, TOPOLOGY_REASON_BYTES, format, args);
    va_end(args);
    return ST_INVALID;
}

/* ---- placements ---- */

static bool
same_rows(const struct placement *a, const struct placement *b)
{
    return a->width == b->width && memcmp(a->ids, b->ids, topology_ids_bytes(a)) == 0;
}

static int
place_order(const struct topology_member *a, const struct topology_member *b)
{
    int order = strcmp(a->datacenter, b->datacenter);
    return order != 0 ? order : strcmp(a->rack, b->rack);
}

/* One member of each rack, sorted by data center and rack; by insertion. */
static u32
racks_sort(const struct topology *topology, u16 *out)
{
    u32 count = 0;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        u32 first = 0, last = count;
        while (first < last) {
            u32 middle = (first + last) / 2;
            if (place_order(&topology->members[out[middle]], member) < 0)
                first = middle + 1;
            else
                last = middle;
        }
        if (first < count && place_order(&topology->members[out[first]], member) == 0) continue;
        memmove(out + first + 1, out + first, (count - first) * sizeof(*out));
        out[first] = (u16)i;
        count++;
    }
    return count;
}

/* The members as placement.h knows them. */
static status
nodes_of(struct topology *topology, struct placement_node *nodes)
{
    size_t bytes = topology->member_count * sizeof(u16);
    u16 *racks = mem_alloc(&topology->own, bytes);
    if (racks == NULL) return ST_NO_MEMORY;
    u32 rack_count = racks_sort(topology, racks);
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        u16 datacenter = 0, rack = 0;
        for (u32 j = 0; place_order(&topology->members[racks[j]], member) != 0; j++) {
            CHECK(j + 1 < rack_count);
            const char *name = topology->members[racks[j]].datacenter;
            bool last = strcmp(name, topology->members[racks[j + 1]].datacenter) != 0;
            datacenter += last;
            rack = last ? 0 : (u16)(rack + 1);
        }
        nodes[i] = (struct placement_node){.id = member->number,
                                           .weight = member->weight,
                                           .rack = rack,
                                           .datacenter = datacenter,
                                           .state = member->state};
    }
    mem_free(&topology->own, racks, bytes);
    return ST_OK;
}

/* Whoever joins for somebody who is gone has his places, as far as the placement is concerned. */
static void
replacements_take(const struct topology *topology, struct placement *present)
{
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->state != PLACEMENT_JOINING || member->replaces == 0) continue;
        size_t count = (size_t)present->partition_count * present->width;
        for (size_t k = 0; k < count; k++)
            if (present->ids[k] == (TOPOLOGY_GONE | member->replaces))
                present->ids[k] = member->number;
    }
}

/* The placement that the members' states ask for. present: NULL at the foundation; is changed. */
static status
placement_compute(struct apply *apply, struct placement *present, u8 dealing, struct placement *out)
{
    struct topology *topology = apply->next;
    size_t bytes = topology->member_count * sizeof(struct placement_node);
    struct placement_node *nodes = mem_alloc(&topology->own, bytes);
    if (nodes == NULL) return ST_NO_MEMORY;
    status st = nodes_of(topology, nodes);
    if (ok(st)) {
        struct placement_input input = {.nodes = nodes,
                                        .node_count = topology->member_count,
                                        .partition_count = topology->partition_count,
                                        .replicas = topology->replicas,
                                        .dealing = dealing,
                                        .pause = apply->pause};
        struct placement_moves moves;
        if (present != NULL) replacements_take(topology, present);
        st = placement_next(&input, present, &topology->own, out, &moves);
        if (ok(st)) placement_moves_deinit(&moves);
    }
    mem_free(&topology->own, nodes, bytes);
    return st;
}

/* ---- members ---- */

/* The one that the command names, by its number or else by its id. ST_INVALID: there is none. */
static status
named(struct apply *apply, u32 *index_out)
{
    const struct topology_member *wanted = &apply->command->member;
    struct topology *next = apply->next;
    if (!topology_name_ok(wanted->node_id)) return refuse(apply, "the node id is no name");
    const struct topology_member *found = wanted->number != 0
                                              ? topology_member(next, wanted->number)
                                              : topology_member_by_id(next, wanted->node_id);
    if (found == NULL && wanted->number != 0)
        return refuse(apply, "there is no member %u", wanted->number);
    if (found == NULL) return refuse(apply, "there is no member '%s'", wanted->node_id);
    if (wanted->node_id[0] != 0 && strcmp(found->node_id, wanted->node_id) != 0)
        return refuse(apply, "member %u is not '%s'", wanted->number, wanted->node_id);
    *index_out = (u32)(found - next->members);
    return ST_OK;
}

static void
member_remove(struct topology *topology, u32 index)
{
    topology->member_count--;
    memmove(&topology->members[index], &topology->members[index + 1],
            (topology->member_count - index) * sizeof(*topology->members));
}

/* From the last one given on, in a circle. There are as many as members. */
static u16
stamp_take(struct topology *topology)
{
    u64 taken[TOPOLOGY_STAMPS / 64] = {0};
    for (u32 i = 0; i < topology->member_count; i++) {
        u16 stamp = topology->members[i].stamp;
        taken[stamp / 64] |= (u64)1 << stamp % 64;
    }
    u16 stamp = topology->next_stamp;
    while ((taken[stamp / 64] >> stamp % 64 & 1) != 0)
        stamp = (stamp + 1) % TOPOLOGY_STAMPS;
    topology->next_stamp = (stamp + 1) % TOPOLOGY_STAMPS;
    return stamp;
}
static_assert(LIMIT_PLACEMENT_NODES <= TOPOLOGY_STAMPS, "a stamp for each member");

/* Two nodes cannot listen at one port of one machine; 0 says that it is not known. */
bool
topology_ports_clash(const struct topology_member *a, const struct topology_member *b)
{
    if (a->peer_port == 0 || b->peer_port == 0 || strcmp(a->host, b->host) != 0) return false;
    return a->peer_port < b->peer_port + b->shard_count &&
           b->peer_port < a->peer_port + a->shard_count;
}

/* Whether it can stand beside the others; `self`: not compared with. */
static status
beside_others(struct apply *apply, const struct topology_member *member, u32 self)
{
    for (u32 i = 0; i < apply->next->member_count; i++) {
        const struct topology_member *other = &apply->next->members[i];
        if (i == self) continue;
        if (topology_ports_clash(member, other))
            return refuse(apply, "member %u, '%s', listens at these ports", other->number,
                          other->node_id);
        if (member->incarnation != 0 && member->incarnation == other->incarnation)
            return refuse(apply, "member %u has this incarnation: was its directory copied?",
                          other->number);
    }
    return ST_OK;
}

/* Appended: the number is the highest. Room was made by topology_copy. */
static void
member_append(struct topology *topology, const struct topology_member *from, u8 state, u32 replaces)
{
    CHECK(topology->member_count < topology->member_capacity);
    struct topology_member member = {.number = topology->next_number++,
                                     .stamp = stamp_take(topology),
                                     .state = state,
                                     .weight = from->weight,
                                     .incarnation = from->incarnation,
                                     .client_port = from->client_port,
                                     .peer_port = from->peer_port,
                                     .shard_count = from->shard_count,
                                     .replaces = replaces};
    topology_name_copy(member.node_id, from->node_id);
    topology_name_copy(member.host, from->host);
    topology_name_copy(member.rack, from->rack);
    topology_name_copy(member.datacenter, from->datacenter);
    topology->members[topology->member_count++] = member;
}

/* ---- plans ---- */

static void
fetched_clear(struct topology *topology)
{
    for (u32 i = 0; i < topology->member_count; i++)
        topology->members[i].fetched = false;
}

static void
plan_end(struct apply *apply)
{
    struct topology *next = apply->next;
    placement_deinit(&next->next);
    next->next = (struct placement){.budget = &next->own};
    next->stage = STAGE_NONE;
    next->session = 0;
    fetched_clear(next);
    apply->stage_changed = true;
}

static void
mark_gone(struct placement *placement, u32 number)
{
    if (placement->ids == NULL) return;
    size_t count = (size_t)placement->partition_count * placement->width;
    for (size_t k = 0; k < count; k++)
        if (placement->ids[k] == number) placement->ids[k] |= TOPOLOGY_GONE;
}

static void
forget(struct apply *apply, u32 index)
{
    struct topology *next = apply->next;
    u32 number = next->members[index].number;
    if (next->stage == STAGE_WRITE_BOTH && topology_gainer(next, number)) plan_end(apply);
    mark_gone(&next->current, number);
    mark_gone(&next->next, number);
    member_remove(next, index);
}

static bool
holds_any(const struct placement *placement, u32 number)
{
    size_t count = (size_t)placement->partition_count * placement->width;
    for (size_t k = 0; placement->ids != NULL && k < count; k++)
        if (placement->ids[k] == number) return true;
    return false;
}

/* Current is what the members' states asked for: who joined has joined, who left has left. Members
 * who came or were told to leave since the plan was made wait for the next one; so those who join
 * are only taken when they hold something, or when `all` of them were asked. */
static bool
states_finish(struct topology *topology, bool all)
{
    bool changed = false;
    for (u32 i = topology->member_count; i-- > 0;) {
        struct topology_member *member = &topology->members[i];
        if (member->state == PLACEMENT_NORMAL) continue;
        bool joins = member->state == PLACEMENT_JOINING;
        bool holds = (joins && all) || holds_any(&topology->current, member->number);
        if (joins != holds) continue;
        changed = true;
        if (joins) {
            member->state = PLACEMENT_NORMAL;
            member->replaces = 0;
        } else {
            member_remove(topology, i);
        }
    }
    return changed;
}

/* ---- commands ---- */

static status
keyspace_found(struct apply *apply)
{
    const struct topology_keyspace *wanted = &apply->command->options;
    u8 replicas = (u8)apply->next->replicas;
    u8 majority = replicas / 2 + 1;
    struct topology_keyspace keyspace = {
        .used = true,
        .conflict = CONFLICT_LWW,
        .replicas = replicas,
        .write_quorum = wanted->write_quorum != 0 ? wanted->write_quorum : majority,
        .read_quorum = wanted->read_quorum != 0 ? wanted->read_quorum : majority,
        .name = "0"};
    const char *fault = topology_keyspace_fault(&keyspace, replicas);
    if (fault != NULL) return refuse(apply, "%s", fault);
    apply->next->keyspaces[0] = keyspace;
    return ST_OK;
}

static status
apply_found(struct apply *apply)
{
    const struct topology_command *command = apply->command;
    struct topology *next = apply->next;
    if (command->cluster_id == 0) return refuse(apply, "a cluster has an id");
    if (!is_power_of_two(command->partition_count) || command->partition_count > SLOT_COUNT)
        return refuse(apply, "the number of partitions is a power of two up to %u", SLOT_COUNT);
    if (command->replicas == 0 || command->replicas > LIMIT_PLACEMENT_REPLICAS)
        return refuse(apply, "there are 1 to %u replicas", LIMIT_PLACEMENT_REPLICAS);
    const char *fault = topology_member_fault(&command->member);
    if (fault != NULL) return refuse(apply, "%s", fault);
    next->cluster_id = command->cluster_id;
    next->partition_count = command->partition_count;
    next->replicas = command->replicas;
    next->next_number = 1;
    status st = keyspace_found(apply);
    if (!ok(st)) return st;
    member_append(next, &command->member, PLACEMENT_NORMAL, 0);
    apply->stage_changed = true;
    return placement_compute(apply, NULL, PLACEMENT_IN_ORDER,
                             &next->current); /* one member: all the same */
}

/* Whoever leaves may have it all, too, and be told to stay: then it is not the last one. */
static status
refuse_last(struct apply *apply, u32 number)
{
    const struct topology *next = apply->next;
    for (u32 i = 0; i < next->member_count; i++)
        if (next->members[i].state == PLACEMENT_LEAVING &&
            holds_any(&next->current, next->members[i].number))
            return refuse(apply,
                          "member %u is the last one that holds everything: its data would be "
                          "lost; first take back that '%.40s' leaves",
                          number, next->members[i].node_id);
    return refuse(apply, "member %u is the last one that holds everything: its data would be lost",
                  number);
}

/* Who is to be replaced goes, and is named as the one whose places are to be taken. */
static status
replaced_forget(struct apply *apply, u32 *replaces)
{
    struct topology *next = apply->next;
    if (*replaces == 0) return ST_OK;
    if (*replaces >= next->next_number) return refuse(apply, "%u never was a member", *replaces);
    for (u32 i = 0; i < next->member_count; i++)
        if (next->members[i].state == PLACEMENT_JOINING && next->members[i].replaces == *replaces)
            return refuse(apply, "member %u replaces member %u already", next->members[i].number,
                          *replaces);
    u32 index = topology_find(next, *replaces);
    if (index == next->member_count) return ST_OK; /* was forgotten before */
    if (topology_last_normal(next, *replaces)) return refuse_last(apply, *replaces);
    /* It never got what it was to take over: its own replacement is to have that. */
    const struct topology_member *member = &next->members[index];
    u32 before = member->state == PLACEMENT_JOINING ? member->replaces : 0;
    forget(apply, index);
    if (before != 0) *replaces = before;
    return ST_OK;
}

static status
apply_member_add(struct apply *apply)
{
    const struct topology_member *wanted = &apply->command->member;
    struct topology *next = apply->next;
    const char *fault = topology_member_fault(wanted);
    if (fault != NULL) return refuse(apply, "%s", fault);
    const struct topology_member *same = topology_member_by_id(next, wanted->node_id);
    if (same != NULL && same->incarnation == wanted->incarnation)
        return refuse(apply, "'%s' is member %u already", wanted->node_id, same->number);
    if (same != NULL && same->number != wanted->replaces)
        return refuse(apply,
                      "'%s' is member %u, whose data this node does not have: it must join as its "
                      "replacement",
                      wanted->node_id, same->number);
    u32 replaces = wanted->replaces;
    status st = replaced_forget(apply, &replaces);
    if (ok(st)) st = beside_others(apply, wanted, UINT32_MAX);
    if (!ok(st)) return st;
    if (next->member_count == LIMIT_PLACEMENT_NODES)
        return refuse(apply, "a cluster has at most %u members", LIMIT_PLACEMENT_NODES);
    if (next->next_number == TOPOLOGY_NUMBER_MAX) return refuse(apply, "all numbers were used");
    member_append(next, wanted, PLACEMENT_JOINING, replaces);
    if (topology_datacenter_count(next) * next->replicas > LIMIT_PLACEMENT_REPLICAS)
        return refuse(apply, "at most %u replicas of a key in all data centers together",
                      LIMIT_PLACEMENT_REPLICAS);
    return ST_OK;
}

static status
apply_member_set(struct apply *apply)
{
    u32 index;
    status st = named(apply, &index);
    if (!ok(st)) return st;
    const struct topology_member *wanted = &apply->command->member;
    struct topology_member *member = &apply->next->members[index];
    struct topology_member changed = *member;
    if (!topology_name_ok(wanted->host) || !topology_name_ok(wanted->rack) ||
        !topology_name_ok(wanted->datacenter))
        return refuse(apply, "names have up to 63 printable characters");
    if (wanted->incarnation != member->incarnation)
        return refuse(apply,
                      "'%s' is member %u, whose data this node does not have: it must join as its "
                      "replacement",
                      member->node_id, member->number);
    if (strcmp(wanted->datacenter, member->datacenter) != 0)
        return refuse(apply, "a member stays in its data center, '%s'", member->datacenter);
    topology_name_copy(changed.host, wanted->host);
    topology_name_copy(changed.rack, wanted->rack);
    changed.client_port = wanted->client_port;
    changed.peer_port = wanted->peer_port;
    changed.shard_count = wanted->shard_count;
    const char *fault = topology_member_fault(&changed);
    if (fault != NULL) return refuse(apply, "%s", fault);
    st = beside_others(apply, &changed, index);
    if (!ok(st)) return st;
    bool same =
        strcmp(changed.host, member->host) == 0 && strcmp(changed.rack, member->rack) == 0 &&
        changed.client_port == member->client_port && changed.peer_port == member->peer_port &&
        changed.shard_count == member->shard_count;
    if (same) return refuse(apply, "nothing changes");
    *member = changed;
    return ST_OK;
}

static status
apply_member_leave(struct apply *apply)
{
    u32 index;
    status st = named(apply, &index);
    if (!ok(st)) return st;
    struct topology *next = apply->next;
    struct topology_member *member = &next->members[index];
    if (member->state == PLACEMENT_LEAVING)
        return refuse(apply, "member %u is leaving already", member->number);
    if (topology_last_normal(next, member->number))
        return refuse(apply, "member %u is the last one that holds everything", member->number);
    if (member->state == PLACEMENT_JOINING && !holds_any(&next->next, member->number))
        member_remove(next, index);
    else
        member->state = PLACEMENT_LEAVING;
    return ST_OK;
}

/* Whether it has a place in a row, or had one whose copy it has lost. */
static bool
placed_any(const struct placement *placement, u32 number)
{
    size_t count = (size_t)placement->partition_count * placement->width;
    for (size_t k = 0; k < count; k++)
        if ((placement->ids[k] & ~TOPOLOGY_GONE) == number) return true;
    return false;
}

static status
apply_member_stay(struct apply *apply)
{
    u32 index;
    status st = named(apply, &index);
    if (!ok(st)) return st;
    struct topology *next = apply->next;
    struct topology_member *member = &next->members[index];
    if (member->state != PLACEMENT_LEAVING)
        return refuse(apply, "member %u is not leaving", member->number);
    bool placed = placed_any(&next->current, member->number);
    bool taken = placed && next->stage != STAGE_NONE && !holds_any(&next->next, member->number);
    if (taken && next->stage == STAGE_READ_NEXT)
        return refuse(apply,
                      "reads use the places of others already: member %u goes; let it join again "
                      "when it has left, with an empty directory",
                      member->number);
    /* It was told to leave as it joined, and has nothing yet. */
    member->state = placed ? PLACEMENT_NORMAL : PLACEMENT_JOINING;
    if (placed) member->replaces = 0;
    if (taken) plan_end(apply);
    return ST_OK;
}

static status
apply_member_forget(struct apply *apply)
{
    u32 index;
    status st = named(apply, &index);
    if (!ok(st)) return st;
    u32 number = apply->next->members[index].number;
    if (topology_last_normal(apply->next, number)) return refuse_last(apply, number);
    forget(apply, index);
    return ST_OK;
}

static status
apply_weight_set(struct apply *apply)
{
    u32 index;
    status st = named(apply, &index);
    if (!ok(st)) return st;
    u32 weight = apply->command->member.weight;
    if (weight == 0 || weight > LIMIT_PLACEMENT_WEIGHT)
        return refuse(apply, "a node has 1 to %u virtual nodes", LIMIT_PLACEMENT_WEIGHT);
    if (apply->next->members[index].weight == weight) return refuse(apply, "nothing changes");
    apply->next->members[index].weight = weight;
    return ST_OK;
}

/* Coordinators of two epochs are at work at once, and what was written stays: both must see it. */
static bool
quorums_overlap(const struct topology_keyspace *a, const struct topology_keyspace *b)
{
    return a->write_quorum + b->read_quorum > b->replicas;
}

static status
apply_keyspace_set(struct apply *apply)
{
    const struct topology_keyspace *wanted = &apply->command->options;
    struct topology *next = apply->next;
    u32 number = apply->command->keyspace;
    if (number >= LIMIT_KEYSPACES_CLIENT)
        return refuse(apply, "there are %u keyspaces", LIMIT_KEYSPACES_CLIENT);
    const char *fault = topology_keyspace_fault(wanted, next->replicas);
    if (fault != NULL) return refuse(apply, "%s", fault);
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (k != number && next->keyspaces[k].used &&
            strcmp(next->keyspaces[k].name, wanted->name) == 0)
            return refuse(apply, "keyspace %u is called '%s'", k, wanted->name);
    struct topology_keyspace *keyspace = &next->keyspaces[number];
    struct topology_keyspace changed = *wanted;
    changed.used = true;
    topology_name_copy(changed.name, wanted->name);
    if (keyspace->used && changed.conflict != keyspace->conflict)
        return refuse(apply, "how conflicts are resolved cannot change");
    if (keyspace->used && changed.replicas != keyspace->replicas)
        return refuse(apply, "the number of replicas cannot change");
    if (keyspace->used && quorums_overlap(keyspace, keyspace) &&
        quorums_overlap(&changed, &changed) &&
        (!quorums_overlap(keyspace, &changed) || !quorums_overlap(&changed, keyspace)))
        return refuse(apply, "the quorums before and after must overlap: raise one of them, "
                             "repair, then lower the other");
    if (keyspace->used && strcmp(changed.name, keyspace->name) == 0 &&
        changed.write_quorum == keyspace->write_quorum &&
        changed.read_quorum == keyspace->read_quorum && changed.sloppy == keyspace->sloppy)
        return refuse(apply, "nothing changes");
    *keyspace = changed;
    return ST_OK;
}

static u8
dealing_of(u8 kind)
{
    if (kind == TOPOLOGY_PLAN_IN_ORDER) return PLACEMENT_IN_ORDER;
    return kind == TOPOLOGY_PLAN_SCATTERED ? PLACEMENT_SCATTERED : PLACEMENT_EVEN;
}

static status
apply_plan(struct apply *apply)
{
    struct topology *next = apply->next;
    if (next->stage != STAGE_NONE) return refuse(apply, "there is a plan already");
    if (apply->command->session == 0) return refuse(apply, "a plan has a session");
    u32 mending = topology_mending(next);
    if (mending != 0) return refuse(apply, "member %u removes what was damaged", mending);
    struct placement present, planned;
    if (!topology_placement_init(next, next->current.width, &present)) return ST_NO_MEMORY;
    memcpy(present.ids, next->current.ids, topology_ids_bytes(&present));
    status st = placement_compute(apply, &present, dealing_of(apply->command->kind), &planned);
    placement_deinit(&present);
    if (status_is(st, ST_INVALID)) return refuse(apply, "nobody is left to hold anything");
    if (!ok(st)) return st;
    if (same_rows(&planned, &next->current)) {
        placement_deinit(&planned);
        return states_finish(next, true) ? ST_OK : refuse(apply, "there is nothing to plan");
    }
    next->next = planned;
    next->stage = STAGE_WRITE_BOTH;
    next->session = apply->command->session;
    fetched_clear(next);
    apply->stage_changed = true;
    return ST_OK;
}

/* Who acts for a plan that has ended does nothing. */
static status
session_check(struct apply *apply)
{
    if (apply->next->stage == STAGE_NONE) return refuse(apply, "there is no plan");
    if (apply->next->session != apply->command->session)
        return refuse(apply, "the plan of this session has ended");
    return ST_OK;
}

static status
apply_fetched(struct apply *apply)
{
    u32 index;
    status st = session_check(apply);
    if (ok(st)) st = named(apply, &index);
    if (!ok(st)) return st;
    struct topology_member *member = &apply->next->members[index];
    if (apply->next->stage != STAGE_WRITE_BOTH)
        return refuse(apply, "everything was fetched already");
    if (!topology_fenced(apply->next)) return refuse(apply, "the stage is not fenced yet");
    if (member->fetched) return refuse(apply, "member %u has said so already", member->number);
    if (!topology_gainer(apply->next, member->number))
        return refuse(apply, "member %u gains nothing", member->number);
    member->fetched = true;
    return ST_OK;
}

static status
apply_advance(struct apply *apply)
{
    struct topology *next = apply->next;
    status st = session_check(apply);
    if (!ok(st)) return st;
    if (!topology_fenced(next)) return refuse(apply, "the stage is not fenced yet");
    apply->stage_changed = true;
    if (next->stage == STAGE_WRITE_BOTH) {
        u32 number = topology_unfetched(next);
        if (number != 0) return refuse(apply, "member %u has not fetched everything", number);
        next->stage = STAGE_READ_NEXT;
        return ST_OK;
    }
    placement_deinit(&next->current);
    next->current = next->next;
    next->next = (struct placement){.budget = &next->own};
    plan_end(apply);
    (void)states_finish(next, false);
    return ST_OK;
}

static status
apply_abandon(struct apply *apply)
{
    status st = session_check(apply);
    if (!ok(st)) return st;
    if (apply->next->stage != STAGE_WRITE_BOTH)
        return refuse(apply, "reads use the next placement already: the plan can only go on");
    plan_end(apply);
    return ST_OK;
}

static status
apply_fence(struct apply *apply)
{
    struct topology *next = apply->next;
    status st = session_check(apply);
    if (!ok(st)) return st;
    if (topology_fenced(next)) return refuse(apply, "the stage is fenced already");
    next->stage_epoch_before = next->stage_epoch;
    return ST_OK;
}

/* Places of somebody who is there as of somebody gone: in current alone, as there is no plan. */
static status
apply_lost(struct apply *apply)
{
    struct topology *next = apply->next;
    u32 index;
    status st = named(apply, &index);
    if (!ok(st)) return st;
    if (next->stage != STAGE_NONE) return refuse(apply, "a plan is under way");
    u32 first = apply->command->partition_first, count = apply->command->partition_count;
    if (first >= next->partition_count || count > next->partition_count - first)
        return refuse(apply, "there are %u partitions", next->partition_count);
    u32 number = next->members[index].number, lost = 0;
    u32 other = topology_mending_beside(next, number);
    if (other != 0) return refuse(apply, "member %u is mended first", other);
    for (u32 p = first; p < first + count; p++) {
        if (!topology_holds(next, number, p)) continue;
        if (!topology_may_lose(next, number, p))
            return refuse(apply, "too few others have partition %u", p);
        u32 *row = next->current.ids + (size_t)p * next->current.width;
        for (u32 k = 0; k < next->current.width; k++)
            if (row[k] == number) row[k] |= TOPOLOGY_GONE;
        lost++;
    }
    if (lost == 0) return refuse(apply, "member %u holds none of these", number);
    next->members[index].mending = true;
    apply->stage_changed = true;
    return ST_OK;
}

static status
apply_mended(struct apply *apply)
{
    u32 index;
    status st = named(apply, &index);
    if (!ok(st)) return st;
    struct topology_member *member = &apply->next->members[index];
    if (!member->mending) return refuse(apply, "member %u has lost nothing", member->number);
    member->mending = false;
    return ST_OK;
}

static status
apply_kind(struct apply *apply)
{
    switch ((enum topology_command_kind)apply->command->kind) {
    case TOPOLOGY_FOUND:
        return apply_found(apply);
    case TOPOLOGY_MEMBER_ADD:
        return apply_member_add(apply);
    case TOPOLOGY_MEMBER_SET:
        return apply_member_set(apply);
    case TOPOLOGY_MEMBER_LEAVE:
        return apply_member_leave(apply);
    case TOPOLOGY_MEMBER_STAY:
        return apply_member_stay(apply);
    case TOPOLOGY_MEMBER_FORGET:
        return apply_member_forget(apply);
    case TOPOLOGY_WEIGHT_SET:
        return apply_weight_set(apply);
    case TOPOLOGY_KEYSPACE_SET:
        return apply_keyspace_set(apply);
    case TOPOLOGY_PLAN_IN_ORDER:
    case TOPOLOGY_PLAN_SCATTERED:
    case TOPOLOGY_PLAN:
        return apply_plan(apply);
    case TOPOLOGY_FETCHED:
        return apply_fetched(apply);
    case TOPOLOGY_ADVANCE:
        return apply_advance(apply);
    case TOPOLOGY_ABANDON:
        return apply_abandon(apply);
    case TOPOLOGY_FENCE:
        return apply_fence(apply);
    case TOPOLOGY_LOST:
        return apply_lost(apply);
    case TOPOLOGY_MENDED:
        return apply_mended(apply);
    }
    return refuse(apply, "there is no such command");
}

status
topology_apply(const struct topology *topology, const struct topology_command *command,
               void (*pause)(void), struct topology **next_out, char reason[TOPOLOGY_REASON_BYTES])
{
    struct apply apply = {.command = command, .reason = reason, .pause = pause};
    *next_out = NULL;
    reason[0] = 0;
    if (command->state_after == 0 || command->state_after == command->state_before)
        return refuse(&apply, "a command makes a new state");
    if (command->state_after == topology->state_id) return ST_EXISTS;
    if (command->state_before != topology->state_id) return ST_CONFLICT;
    if ((topology->cluster_id == 0) != (command->kind == TOPOLOGY_FOUND))
        return refuse(&apply, "%s",
                      topology->cluster_id == 0 ? "there is no cluster yet"
                                                : "there is a cluster already");
    if (topology->epoch == TOPOLOGY_EPOCH_MAX) return refuse(&apply, "all epochs were used");
    apply.next = topology_copy(topology);
    if (apply.next == NULL) return ST_NO_MEMORY;
    status st = apply_kind(&apply);
    if (!ok(st)) {
        topology_release(apply.next);
        return st;
    }
    struct topology *next = apply.next;
    next->state_id = command->state_after;
    next->epoch++;
    if (apply.stage_changed) {
        next->stage_epoch_before = topology->cluster_id != 0 ? next->stage_epoch : next->epoch;
        next->stage_epoch = next->epoch;
    }
    DCHECK(topology_check(next));
    AUDIT("cluster.topology.applied", topology_check(next));
    *next_out = next;
    return ST_OK;
}
