/* SPDX-License-Identifier: MIT
 *
 * topology.c -- the state that members agree on: its memory, questions to it, and its invariants.
 *
 * Invariants (topology_check), of each but the one without a cluster, which is empty
 *   I1  Members stand by ascending number, below next_number. No two share a stamp, a node_id, or
 *       (unless it is 0) an incarnation. One is NORMAL.
 *   I2  A row has, in the places of each data center, first members and those who are gone, each at
 *       most once, then empty places. Who is gone has a number that was given out, and is no
 *       member; or, in current, one that lost its copy.
 *   I3  Who is JOINING holds nothing in current.
 *   I4  There are a session and a next exactly while there is a plan; only then has anybody
 *       fetched.
 *   I5  A row has at most LIMIT_PLACEMENT_REPLICAS places.
 *   I6  The last change of a stage was not before the one before it, nor after the epoch. Nobody
 *       has fetched before STAGE_WRITE_BOTH is fenced.
 *   I7  Nobody is mending while there is a plan, nor while it is JOINING.
 */
#include "cluster/topology.h"

#include <stdatomic.h>

#include "cluster/topology_internal.h"

/* ---- memory ---- */

struct topology *
topology_new(struct budget *budget)
{
    struct budget own;
    budget_init(&own, "topology", budget_available(budget), NULL);
    struct topology *topology = mem_alloc_zero(&own, sizeof(*topology));
    if (topology == NULL) return NULL;
    topology->budget = budget;
    topology->own = own; /* with the struct itself in it */
    atomic_init(&topology->references, 1);
    topology->current.budget = &topology->own;
    topology->next.budget = &topology->own;
    return topology;
}

void
topology_hold(struct topology *topology)
{
    u32 before = atomic_fetch_add_explicit(&topology->references, 1, memory_order_relaxed);
    CHECK(before > 0 && before < UINT32_MAX);
}

void
topology_release(struct topology *topology)
{
    if (topology == NULL) return;
    /* Who frees it sees all that others did with it. */
    u32 before = atomic_fetch_sub_explicit(&topology->references, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before > 1) return;
    placement_deinit(&topology->current);
    placement_deinit(&topology->next);
    mem_free(&topology->own, topology->members,
             topology->member_capacity * sizeof(*topology->members));
    CHECK(topology->own.used_bytes == sizeof(*topology));
    struct budget own = topology->own;
    mem_free(&own, topology, sizeof(*topology));
}

bool
topology_members_reserve(struct topology *topology, u32 capacity)
{
    CHECK(topology->members == NULL);
    topology->members = mem_alloc(&topology->own, capacity * sizeof(*topology->members));
    if (topology->members == NULL) return false;
    topology->member_capacity = capacity;
    return true;
}

bool
topology_placement_init(struct topology *topology, u32 width, struct placement *out)
{
    struct placement placement = {
        .partition_count = topology->partition_count, .width = width, .budget = &topology->own};
    placement.ids = mem_alloc(&topology->own, topology_ids_bytes(&placement));
    if (placement.ids == NULL) return false;
    *out = placement;
    return true;
}

static bool
placement_copy(struct topology *target, const struct placement *source, struct placement *out)
{
    if (source->ids == NULL) return true;
    if (!topology_placement_init(target, source->width, out)) return false;
    memcpy(out->ids, source->ids, topology_ids_bytes(source));
    return true;
}

struct topology *
topology_copy(const struct topology *topology)
{
    struct topology *copy = topology_new(topology->budget);
    if (copy == NULL) return NULL;
    copy->cluster_id = topology->cluster_id;
    copy->state_id = topology->state_id;
    copy->epoch = topology->epoch;
    copy->stage_epoch = topology->stage_epoch;
    copy->stage_epoch_before = topology->stage_epoch_before;
    copy->session = topology->session;
    copy->partition_count = topology->partition_count;
    copy->replicas = topology->replicas;
    copy->next_number = topology->next_number;
    copy->next_stamp = topology->next_stamp;
    copy->stage = topology->stage;
    memcpy(copy->keyspaces, topology->keyspaces, sizeof(copy->keyspaces));
    if (!topology_members_reserve(copy, topology->member_count + 1) ||
        !placement_copy(copy, &topology->current, &copy->current) ||
        !placement_copy(copy, &topology->next, &copy->next)) {
        topology_release(copy);
        return NULL;
    }
    if (topology->member_count > 0)
        memcpy(copy->members, topology->members,
               topology->member_count * sizeof(*topology->members));
    copy->member_count = topology->member_count;
    return copy;
}

/* ---- names ---- */

bool
topology_name_ok(const char name[TOPOLOGY_NAME_BYTES])
{
    for (u32 i = 0; i < TOPOLOGY_NAME_BYTES; i++) {
        if (name[i] == 0) return true;
        if (name[i] <= ' ' || name[i] > '~') return false;
    }
    return false;
}

void
topology_name_copy(char target[TOPOLOGY_NAME_BYTES], const char *source)
{
    memset(target, 0, TOPOLOGY_NAME_BYTES);
    for (u32 i = 0; i + 1 < TOPOLOGY_NAME_BYTES && source[i] != 0; i++)
        target[i] = source[i];
}

const char *
topology_member_fault(const struct topology_member *member)
{
    if (!topology_name_ok(member->node_id) || member->node_id[0] == 0)
        return "a node id has 1 to 63 printable characters";
    if (!topology_name_ok(member->host) || member->host[0] == 0)
        return "a host has 1 to 63 printable characters";
    if (!topology_name_ok(member->rack)) return "a rack has up to 63 printable characters";
    if (!topology_name_ok(member->datacenter))
        return "a data center has up to 63 printable characters";
    if (member->weight == 0 || member->weight > LIMIT_PLACEMENT_WEIGHT)
        return "a node has 1 to 65,535 virtual nodes";
    if (member->shard_count == 0 || member->shard_count > LIMIT_SHARDS)
        return "a node has 1 to 64 shards";
    return NULL;
}

const char *
topology_keyspace_fault(const struct topology_keyspace *keyspace, u32 replicas_max)
{
    if (!topology_name_ok(keyspace->name) || keyspace->name[0] == 0)
        return "the name of a keyspace has 1 to 63 printable characters";
    if (keyspace->conflict > CONFLICT_SIBLINGS) return "there is no such way to resolve conflicts";
    if (keyspace->sloppy && keyspace->conflict == CONFLICT_SIBLINGS)
        return "a keyspace that keeps siblings cannot be sloppy";
    if (keyspace->replicas == 0 || keyspace->replicas > replicas_max)
        return "a keyspace has at least one replica, and at most as many as the cluster keeps";
    if (keyspace->write_quorum == 0 || keyspace->write_quorum > keyspace->replicas)
        return "the write quorum is from 1 to the number of replicas";
    if (keyspace->read_quorum == 0 || keyspace->read_quorum > keyspace->replicas)
        return "the read quorum is from 1 to the number of replicas";
    return NULL;
}

/* ---- members ---- */

u32
topology_find(const struct topology *topology, u32 number)
{
    u32 first = 0, last = topology->member_count;
    while (first < last) {
        u32 middle = (first + last) / 2;
        if (topology->members[middle].number < number)
            first = middle + 1;
        else
            last = middle;
    }
    bool found = first < topology->member_count && topology->members[first].number == number;
    return found ? first : topology->member_count;
}

const struct topology_member *
topology_member(const struct topology *topology, u32 number)
{
    u32 index = topology_find(topology, number);
    return index < topology->member_count ? &topology->members[index] : NULL;
}

const struct topology_member *
topology_member_by_id(const struct topology *topology, const char *node_id)
{
    for (u32 i = 0; i < topology->member_count; i++)
        if (strncmp(topology->members[i].node_id, node_id, TOPOLOGY_NAME_BYTES) == 0)
            return &topology->members[i];
    return NULL;
}

u32
topology_datacenter_count(const struct topology *topology)
{
    u32 count = 0;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 j = 0;
        while (strcmp(topology->members[j].datacenter, topology->members[i].datacenter) != 0)
            j++;
        count += j == i; /* the first of its data center */
    }
    return count;
}

/* ---- rows ---- */

/* The members among the first `replicas` of each data center, in order; returns how many places
 * those are together with who is gone. */
static u32
row_take(const struct topology *topology, const struct placement *placement, u32 replicas,
         u32 partition, u32 out[LIMIT_PLACEMENT_REPLICAS], u32 *count_out)
{
    u32 count = 0, places = 0;
    if (placement->ids != NULL && partition < placement->partition_count) {
        const u32 *row = placement_row(placement, partition);
        for (u32 column = 0; column < placement->width; column += topology->replicas)
            for (u32 k = 0; k < replicas && row[column + k] != PLACEMENT_NONE; k++) {
                places++;
                if ((row[column + k] & TOPOLOGY_GONE) == 0) out[count++] = row[column + k];
            }
    }
    *count_out = count;
    return places;
}

static bool
ids_have(const u32 *ids, u32 count, u32 id)
{
    for (u32 k = 0; k < count; k++)
        if (ids[k] == id) return true;
    return false;
}

static bool
placement_has(const struct placement *placement, u32 number, u32 partition)
{
    return placement->ids != NULL && partition < placement->partition_count &&
           ids_have(placement_row(placement, partition), placement->width, number);
}

static const struct topology_keyspace no_keyspace;

static const struct topology_keyspace *
keyspace_of(const struct topology *topology, u32 keyspace)
{
    if (keyspace >= LIMIT_KEYSPACES_CLIENT || !topology->keyspaces[keyspace].used)
        return &no_keyspace;
    return &topology->keyspaces[keyspace];
}

void
topology_row(const struct topology *topology, u32 keyspace, u32 partition, struct topology_row *out)
{
    const struct topology_keyspace *options = keyspace_of(topology, keyspace);
    u32 replicas = options->replicas;
    out->places =
        row_take(topology, &topology->current, replicas, partition, out->write, &out->count);
    out->next_places =
        row_take(topology, &topology->next, replicas, partition, out->write_next, &out->next_count);
    out->read_next = topology->stage == STAGE_READ_NEXT;
    out->write_quorum = topology_quorum(options->write_quorum, replicas, out->places, out->count);
    out->write_next_quorum =
        topology_quorum(options->write_quorum, replicas, out->next_places, out->next_count);
    out->read_quorum = topology_quorum(options->read_quorum, replicas,
                                       out->read_next ? out->next_places : out->places,
                                       out->read_next ? out->next_count : out->count);
}

bool
topology_holds(const struct topology *topology, u32 number, u32 partition)
{
    if (number == PLACEMENT_NONE || number >= TOPOLOGY_GONE) return false;
    return placement_has(&topology->current, number, partition) ||
           placement_has(&topology->next, number, partition);
}

/* ---- who lost a part ---- */

bool
topology_may_spare(const struct topology_keyspace *options, u32 places, u32 count)
{
    u32 writes = topology_quorum(options->write_quorum, options->replicas, places, places);
    u32 reads = topology_quorum(options->read_quorum, options->replicas, places, places);
    if (count - 1 < places - writes + 1) return false;
    /* Whoever does not know it yet reads as before, the member itself, say. */
    return writes + reads <= places || MIN(writes, count - 1) + reads > places;
}

bool
topology_may_lose(const struct topology *topology, u32 number, u32 partition)
{
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        const struct topology_keyspace *options = &topology->keyspaces[k];
        if (!options->used) continue;
        u32 ids[LIMIT_PLACEMENT_REPLICAS], count;
        u32 places =
            row_take(topology, &topology->current, options->replicas, partition, ids, &count);
        if (!ids_have(ids, count, number)) continue;
        if (!topology_may_spare(options, places, count)) return false;
    }
    return true;
}

u32
topology_mending(const struct topology *topology)
{
    for (u32 i = 0; i < topology->member_count; i++)
        if (topology->members[i].mending) return topology->members[i].number;
    return 0;
}

u32
topology_mending_beside(const struct topology *topology, u32 number)
{
    for (u32 i = 0; i < topology->member_count; i++)
        if (topology->members[i].mending && topology->members[i].number != number)
            return topology->members[i].number;
    size_t places = (size_t)topology->current.partition_count * topology->current.width;
    for (size_t i = 0; i < places; i++) {
        u32 id = topology->current.ids[i], lost = id & ~TOPOLOGY_GONE;
        if (id != lost && lost != number && topology_member(topology, lost) != NULL) return lost;
    }
    return 0;
}

/* ---- who gains ---- */

/* Those who gain the partition in keyspaces of so many replicas (T3). */
static u32
row_gainers(const struct topology *topology, u32 replicas, u32 partition,
            u32 out[LIMIT_PLACEMENT_REPLICAS])
{
    u32 now[LIMIT_PLACEMENT_REPLICAS], then[LIMIT_PLACEMENT_REPLICAS];
    u32 now_count, then_count;
    u32 places = row_take(topology, &topology->current, replicas, partition, now, &now_count);
    u32 next_places = row_take(topology, &topology->next, replicas, partition, then, &then_count);
    u32 count = 0;
    for (u32 k = 0; k < then_count; k++)
        if (next_places < places || !ids_have(now, now_count, then[k])) out[count++] = then[k];
    return count;
}

bool
topology_gains(const struct topology *topology, u32 number, u32 keyspace, u32 partition)
{
    if (topology->stage == STAGE_NONE) return false;
    u32 gainers[LIMIT_PLACEMENT_REPLICAS];
    u32 count =
        row_gainers(topology, keyspace_of(topology, keyspace)->replicas, partition, gainers);
    return ids_have(gainers, count, number);
}

u32
topology_fetch_quorum(const struct topology *topology, u32 keyspace, const struct topology_row *row)
{
    const struct topology_keyspace *options = keyspace_of(topology, keyspace);
    u32 places = row->places;
    u32 writes = topology_quorum(options->write_quorum, options->replicas, places, places);
    u32 reads = topology_quorum(options->read_quorum, options->replicas, places, row->count);
    /* Where W + R > N the first is never less than the second. */
    return MIN(row->count, MAX(reads, places - writes + 1));
}

/* Keyspaces of one N have the same gainers: one bit for each N that there is. */
static u32
replicas_set(const struct topology *topology)
{
    u32 set = 0;
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (topology->keyspaces[k].used) set |= 1u << topology->keyspaces[k].replicas;
    return set;
}

bool
topology_gainer(const struct topology *topology, u32 number)
{
    if (topology->stage == STAGE_NONE) return false;
    u32 set = replicas_set(topology);
    u32 gainers[LIMIT_PLACEMENT_REPLICAS];
    for (u32 p = 0; p < topology->partition_count; p++) {
        if (!placement_has(&topology->next, number, p)) continue;
        for (u32 replicas = 1; replicas <= topology->replicas; replicas++)
            if ((set >> replicas & 1) != 0 &&
                ids_have(gainers, row_gainers(topology, replicas, p, gainers), number))
                return true;
    }
    return false;
}

u32
topology_unfetched(const struct topology *topology)
{
    if (topology->stage == STAGE_NONE) return 0;
    u32 set = replicas_set(topology);
    u32 first = 0;
    for (u32 p = 0; p < topology->partition_count; p++)
        for (u32 replicas = 1; replicas <= topology->replicas; replicas++) {
            if ((set >> replicas & 1) == 0) continue;
            u32 gainers[LIMIT_PLACEMENT_REPLICAS];
            u32 count = row_gainers(topology, replicas, p, gainers);
            for (u32 k = 0; k < count; k++)
                if ((first == 0 || gainers[k] < first) &&
                    !topology_member(topology, gainers[k])->fetched)
                    first = gainers[k];
        }
    return first;
}

/* ---- who is left behind ---- */

bool
topology_last_normal(const struct topology *topology, u32 number)
{
    bool is_normal = false;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->state != PLACEMENT_NORMAL) continue;
        if (member->number != number) return false;
        is_normal = true;
    }
    return is_normal;
}

bool
topology_last_is_followed(const struct topology *topology, u32 number)
{
    if (topology->stage != STAGE_READ_NEXT || !topology_last_normal(topology, number)) return false;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->state == PLACEMENT_JOINING && member->fetched) return true;
    }
    return false;
}

static u32
count_unknowing(const u32 *ids, u32 count, bool (*knows)(void *arg, u32 number), void *arg)
{
    u32 unknowing = 0;
    for (u32 k = 0; k < count; k++)
        unknowing += !knows(arg, ids[k]);
    return unknowing;
}

bool
topology_may_leave_behind(const struct topology *topology, bool (*knows)(void *arg, u32 number),
                          void *arg)
{
    bool all = true;
    for (u32 i = 0; i < topology->member_count && all; i++)
        all = knows(arg, topology->members[i].number);
    if (all || topology->next.ids == NULL) return true;
    for (u32 p = 0; p < topology->partition_count; p++)
        for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
            const struct topology_keyspace *options = &topology->keyspaces[k];
            if (!options->used) continue;
            struct topology_row row;
            topology_row(topology, k, p, &row);
            bool same = row.count == row.next_count && row.places == row.next_places;
            for (u32 i = 0; i < row.count && same; i++)
                same = ids_have(row.write_next, row.next_count, row.write[i]);
            if (same) continue;
            /* Of those who ask R, and of those who ask a majority where R is more. */
            u32 fewest = MIN(options->read_quorum, options->replicas / 2 + 1u);
            u32 quorum = topology_quorum(fewest, options->replicas, row.places, row.count);
            if (count_unknowing(row.write, row.count, knows, arg) >= quorum) return false;
        }
    return true;
}

/* ---- invariants ---- */

static bool
bytes_zero(const void *data, size_t size)
{
    const u8 *bytes = data;
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != 0) return false;
    return true;
}

static bool
check_none(const struct topology *topology)
{
    return topology->state_id == 0 && topology->epoch == 0 && topology->stage_epoch == 0 &&
           topology->stage_epoch_before == 0 && topology->session == 0 &&
           topology->partition_count == 0 && topology->replicas == 0 &&
           topology->next_number == 0 && topology->next_stamp == 0 &&
           topology->stage == STAGE_NONE && topology->member_count == 0 &&
           topology->current.ids == NULL && topology->next.ids == NULL &&
           bytes_zero(topology->keyspaces, sizeof(topology->keyspaces));
}

static bool
check_keyspaces(const struct topology *topology)
{
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        const struct topology_keyspace *keyspace = &topology->keyspaces[k];
        if (!keyspace->used) {
            if (!bytes_zero(keyspace, sizeof(*keyspace))) return false;
            continue;
        }
        if (topology_keyspace_fault(keyspace, topology->replicas) != NULL) return false;
        for (u32 j = 0; j < k; j++)
            if (topology->keyspaces[j].used &&
                strcmp(topology->keyspaces[j].name, keyspace->name) == 0)
                return false;
    }
    return true;
}

/* Two of one node_id or incarnation: a bucket by the incarnation would save little, for commands
 * are rare and members few. */
static bool
check_pair(const struct topology_member *a, const struct topology_member *b)
{
    return strcmp(a->node_id, b->node_id) != 0 &&
           (a->incarnation == 0 || a->incarnation != b->incarnation);
}

static bool
check_member(const struct topology *topology, u32 index)
{
    const struct topology_member *member = &topology->members[index];
    if (topology_member_fault(member) != NULL) return false;
    if (member->number == 0 || member->number >= topology->next_number) return false;
    if (index > 0 && member->number <= member[-1].number) return false;
    if (member->state > PLACEMENT_LEAVING || member->stamp >= TOPOLOGY_STAMPS) return false;
    if (member->fetched && topology->stage == STAGE_NONE) return false; /* I4 */
    if (member->fetched && topology->stage == STAGE_WRITE_BOTH && !topology_fenced(topology))
        return false; /* I6 */
    if (member->mending &&
        (member->state == PLACEMENT_JOINING || topology->stage != STAGE_NONE)) /* I7 */
        return false;
    if (member->replaces != 0 &&
        (member->state == PLACEMENT_NORMAL || member->replaces >= member->number))
        return false;
    for (u32 j = 0; j < index; j++)
        if (!check_pair(member, &topology->members[j])) return false;
    return true;
}

static bool
check_members(const struct topology *topology)
{
    if (topology->member_count == 0 || topology->member_count > LIMIT_PLACEMENT_NODES) return false;
    u64 stamps[TOPOLOGY_STAMPS / 64] = {0};
    bool normal = false;
    for (u32 i = 0; i < topology->member_count; i++) {
        if (!check_member(topology, i)) return false;
        u16 stamp = topology->members[i].stamp;
        if ((stamps[stamp / 64] >> stamp % 64 & 1) != 0) return false;
        stamps[stamp / 64] |= (u64)1 << stamp % 64;
        normal = normal || topology->members[i].state == PLACEMENT_NORMAL;
    }
    return normal; /* I1 */
}

/* I2, and I3 where it is the current one. */
static bool
check_row(const struct topology *topology, const u32 *row, u32 width, bool current)
{
    for (u32 k = 0; k < width; k++) {
        if (row[k] == PLACEMENT_NONE) continue;
        if (k % topology->replicas > 0 && row[k - 1] == PLACEMENT_NONE) return false;
        u32 number = row[k] & ~TOPOLOGY_GONE;
        const struct topology_member *member = topology_member(topology, number);
        if (number == 0 || number >= topology->next_number) return false;
        bool is_gone = number != row[k]; /* of a member: it lost its copy */
        if (member == NULL ? !is_gone : is_gone && !current) return false;
        if (current && member != NULL && member->state == PLACEMENT_JOINING) return false;
        for (u32 j = 0; j < k; j++)
            if ((row[j] & ~TOPOLOGY_GONE) == number) return false;
    }
    return true;
}

static bool
check_placement(const struct topology *topology, const struct placement *placement, bool current)
{
    if (placement->ids == NULL || placement->partition_count != topology->partition_count)
        return false;
    if (placement->width == 0 || placement->width % topology->replicas != 0 ||
        placement->width > LIMIT_PLACEMENT_REPLICAS) /* I5 */
        return false;
    for (u32 p = 0; p < placement->partition_count; p++)
        if (!check_row(topology, placement_row(placement, p), placement->width, current))
            return false;
    return true;
}

bool
topology_check(const struct topology *topology)
{
    if (topology->cluster_id == 0) return check_none(topology);
    if (topology->state_id == 0 || topology->epoch == 0 || topology->epoch > TOPOLOGY_EPOCH_MAX)
        return false;
    if (topology->stage_epoch > topology->epoch ||
        topology->stage_epoch_before > topology->stage_epoch) /* I6 */
        return false;
    if (!is_power_of_two(topology->partition_count) || topology->partition_count > SLOT_COUNT)
        return false;
    if (topology->replicas == 0 || topology->replicas > LIMIT_PLACEMENT_REPLICAS) return false;
    if (topology->next_number == 0 || topology->next_number > TOPOLOGY_NUMBER_MAX) return false;
    if (topology->next_stamp >= TOPOLOGY_STAMPS || topology->stage > STAGE_READ_NEXT) return false;
    if (!check_keyspaces(topology) || !check_members(topology)) return false;
    if (topology_datacenter_count(topology) * topology->replicas > LIMIT_PLACEMENT_REPLICAS)
        return false;
    if (!check_placement(topology, &topology->current, true)) return false;
    bool planned = topology->stage != STAGE_NONE;
    if ((topology->session != 0) != planned || (topology->next.ids != NULL) != planned)
        return false; /* I4 */
    return !planned || check_placement(topology, &topology->next, false);
}
