/* SPDX-License-Identifier: MIT
 *
 * group0_address.c -- members that come back under another address.
 *
 * Where members are, the topology says, and whoever leads changes it. But nobody reaches a member
 * that was started elsewhere, so it hears of no leader that it could ask. So it says itself where
 * it is, each GROUP0_ADDRESS_NS, until the topology does:
 *
 *   member 2 --- PEER_ADDRESS "I am at X" ------------------> members, where they were; seeds
 *            <-- "I am member 1, at Y; I have 3 at Z ..." ---
 *
 * Who hears it calls it there from then on (moved), as long as it is said again and the record is
 * what it was. Then the leader's messages come, and the steward has the record changed.
 *
 * Others may have moved as well. What an answer says of them is no more than a place to look: who
 * answers there says itself who and where it is, and only that counts. So members all of whose
 * addresses are others find each other by one seed that they can name; and one that does not even
 * know yet whether it may believe its directory (group0_starts.c) finds enough whom to ask.
 *
 * Who runs with an older copy of a directory is not heard: it would cut off the real one.
 */
#include "cluster/group0_internal.h"

#include "base/log.h"
#include "io/io.h"
#include "proto/peer.h"

static bool
same_place(const struct peer_address *a, const struct peer_address *b)
{
    return a->port == b->port && strcmp(a->host, b->host) == 0;
}

struct peer_address
group0_address_of(const struct topology_member *member)
{
    struct peer_address address = {.port = member->peer_port, .shard_count = member->shard_count};
    static_assert(sizeof(address.host) == sizeof(member->host), "the same names");
    memcpy(address.host, member->host, sizeof(address.host));
    return address;
}

static void
lacked_note(struct group0 *group0, u32 member, bool lacks)
{
    u32 at = 0;
    while (at < group0->lacked_count && group0->lacked[at] != member)
        at++;
    bool noted = at < group0->lacked_count;
    if (noted && !lacks) group0->lacked[at] = group0->lacked[--group0->lacked_count];
    if (!noted && lacks && at < RAFT_MEMBERS_MAX) group0->lacked[group0->lacked_count++] = member;
}

bool
group0_address_set(struct group0 *group0, u32 member, const struct peer_address *address)
{
    struct peers *peers = group0->options.peers;
    const struct peer_address *present = peers_member_address(peers, member);
    bool same = present != NULL && same_place(present, address) &&
                present->shard_count == address->shard_count;
    bool fits = same || peers_member_set(peers, member, address);
    lacked_note(group0, member, !fits);
    return fits;
}

/* ---- who has moved ---- */

static struct group0_moved *
moved_find(const struct group0 *group0, u32 member)
{
    for (u32 i = 0; i < group0->moved_count; i++)
        if (group0->moved[i].member == member) return &group0->moved[i];
    return NULL;
}

static void
moved_drop(struct group0 *group0, struct group0_moved *moved)
{
    if (moved != NULL) *moved = group0->moved[--group0->moved_count];
}

/* NULL: no memory. */
static struct group0_moved *
moved_add(struct group0 *group0, u32 member)
{
    if (group0->moved_count == group0->moved_capacity) {
        u32 capacity = MAX(4u, group0->moved_capacity * 2);
        void *grown = mem_realloc(group0->options.budget, group0->moved,
                                  group0->moved_capacity * sizeof(*group0->moved),
                                  capacity * sizeof(*group0->moved));
        if (grown == NULL) return NULL;
        group0->moved = grown;
        group0->moved_capacity = capacity;
    }
    struct group0_moved *moved = &group0->moved[group0->moved_count++];
    *moved = (struct group0_moved){.member = member};
    return moved;
}

struct peer_address
group0_address_present(struct group0 *group0, const struct topology_member *member)
{
    struct peer_address record = group0_address_of(member);
    struct group0_moved *moved = moved_find(group0, member->number);
    if (moved == NULL) return record;
    if (same_place(&moved->record, &record)) {
        struct peer_address present = moved->present;
        present.shard_count = record.shard_count;
        return present;
    }
    if (record.port == 0) return moved->present; /* it gives its old place up: cluster_steward.c */
    moved_drop(group0, moved);                   /* the record is newer than what was said */
    return record;
}

/* The member itself says where it is. */
static void
moved_hear(struct group0 *group0, u32 number, const struct peer_address *address)
{
    const struct topology *topology = group0->topology;
    const struct topology_member *member =
        topology == NULL ? NULL : topology_member(topology, number);
    if (number == group0->identity.member) return;
    if (member == NULL) { /* who was taken out is not let in; so it has joined since */
        group0_address_heard(group0, number, UINT64_MAX, address);
        return;
    }
    struct peer_address record = group0_address_of(member);
    struct group0_moved *moved = moved_find(group0, number);
    if (same_place(&record, address)) {
        moved_drop(group0, moved);
    } else {
        if (moved == NULL || !same_place(&moved->present, address))
            log_info("group0", "a member is elsewhere than the topology says member=%u at=%s:%u",
                     number, address->host, address->port);
        if (moved == NULL) moved = moved_add(group0, number);
        if (moved == NULL) return; /* it says so again */
        moved->record = record;
        moved->present = *address;
        moved->until_ns = io_now_ns() + GROUP0_MOVED_NS;
    }
    struct peer_address present = group0_address_present(group0, member);
    if (!group0_address_set(group0, number, &present))
        log_debug("group0", "no memory for an address member=%u", number);
}

/* It has gone, or is where it was. */
static void
moved_expire(struct group0 *group0)
{
    u64 now_ns = io_now_ns();
    for (u32 i = group0->moved_count; i-- > 0;) {
        if (group0->moved[i].until_ns > now_ns) continue;
        u32 number = group0->moved[i].member;
        moved_drop(group0, &group0->moved[i]);
        const struct topology *topology = group0->topology;
        const struct topology_member *member =
            topology == NULL ? NULL : topology_member(topology, number);
        if (member == NULL) continue;
        struct peer_address record = group0_address_of(member);
        if (!group0_address_set(group0, number, &record))
            log_debug("group0", "no memory for an address member=%u", number);
    }
}

void
group0_addresses_free(struct group0 *group0)
{
    mem_free(group0->options.budget, group0->moved,
             group0->moved_capacity * sizeof(*group0->moved));
    group0->moved = NULL;
    group0->moved_count = group0->moved_capacity = 0;
}

/* ---- being told ---- */

static u64
epoch_of(const struct group0 *group0)
{
    return group0->topology != NULL ? group0->topology->epoch : 0;
}

static bool
is_believed(const struct group0 *group0, u32 member, const struct starts *own)
{
    struct starts known = group0_starts_of(group0, member);
    return starts_judge(&known, own) != STARTS_ROLLED_BACK;
}

/* Where we have the others. false: no memory. */
static bool
others_put(const struct group0 *group0, u32 asker, struct buf *out)
{
    const struct topology *topology = group0->topology;
    for (u32 i = 0; topology != NULL && i < topology->member_count; i++) {
        u32 number = topology->members[i].number;
        const struct peer_address *present = peers_member_address(group0->options.peers, number);
        if (present == NULL || number == asker || number == group0->identity.member) continue;
        struct group0_place place = {.member = number, .address = *present};
        if (!group0_place_put(&place, out)) return false;
    }
    return true;
}

static void
address_came(void *arg, struct peer_request *request, const struct peer_identity *from,
             const struct native_header *header, struct bytes body)
{
    struct group0 *group0 = arg;
    struct group0_told told;
    (void)header;
    if (request == NULL) return;
    if (from->member == 0 || !ok(group0_told_decode(body, &told))) {
        peer_reply(request, NATIVE_ST_INVALID, epoch_of(group0), NULL, 0);
        return;
    }
    if (group0->closing || !ok(group0->failed)) {
        peer_reply(request, NATIVE_ST_UNAVAILABLE, epoch_of(group0), NULL, 0);
        return;
    }
    if (is_believed(group0, from->member, &told.own))
        moved_hear(group0, from->member, &told.address);
    struct group0_told ours = {.member = group0->identity.member,
                               .address = group0->options.address,
                               .own = group0->own_starts};
    struct buf out;
    buf_init(&out, group0->options.budget);
    bool done =
        group0_told_encode(&ours, &out) && (!told.asks || others_put(group0, from->member, &out));
    struct bytes part = buf_bytes(&out);
    peer_reply(request, done ? NATIVE_ST_OK : NATIVE_ST_NO_MEMORY, epoch_of(group0), &part,
               done ? 1 : 0);
    buf_deinit(&out);
}

void
group0_address_open(struct group0 *group0, bool there)
{
    there = there && group0->options.address.port != 0;
    peers_handler_set(group0->options.peers, PEER_ADDRESS, there ? address_came : NULL,
                      there ? group0 : NULL);
}

/* ---- telling ---- */

struct asking {
    struct peer_call call;
    struct round *round;
    struct group0_place place; /* member 0: whoever is there */
    struct buf answer;
    bool called, answered;
};

struct round { /* on the stack of who tells */
    struct group0 *group0;
    struct fiber_queue queue;
    struct asking *askings; /* count, of capacity */
    u32 count, capacity;
    u32 pending, answers;
};

static void
answered(struct peer_call *call, status st, const struct native_header *header, struct bytes body)
{
    struct asking *asking = CONTAINER_OF(call, struct asking, call);
    asking->called = false;
    asking->round->pending--;
    asking->answered = ok(st) && header->status == NATIVE_ST_OK &&
                       buf_append(&asking->answer, body.data, body.size);
    fiber_queue_wake_all(&asking->round->queue);
}

static void
asking_add(struct round *round, const struct group0_place *place)
{
    if (round->count == round->capacity) return; /* in another round */
    struct asking *asking = &round->askings[round->count++];
    asking->round = round;
    asking->place = *place;
    buf_init(&asking->answer, round->group0->options.budget);
}

static void
call(struct round *round, struct asking *asking, bool by_number, bool asks)
{
    struct group0 *group0 = round->group0;
    struct group0_told told = {.member = group0->identity.member,
                               .asks = asks,
                               .address = group0->options.address,
                               .own = group0->own_starts};
    struct native_header header = {.opcode = PEER_ADDRESS, .epoch = epoch_of(group0)};
    struct buf out;
    buf_init(&out, group0->options.budget);
    if (group0_told_encode(&told, &out)) {
        struct bytes part = buf_bytes(&out);
        u64 deadline_ns = io_now_ns() + GROUP0_ADDRESS_CALL_NS;
        asking->called = true;
        round->pending++;
        peer_call_init(&asking->call, answered);
        if (by_number)
            peer_call_start(group0->options.peers, &asking->call, asking->place.member, 0, &header,
                            &part, 1, deadline_ns);
        else
            peer_call_start_at(group0->options.peers, &asking->call, &asking->place.address, 0,
                               &header, &part, 1, deadline_ns);
    }
    buf_deinit(&out);
}

static bool
has_answered(const struct round *round, u32 member)
{
    for (u32 i = 0; i < round->count; i++)
        if (round->askings[i].answered && round->askings[i].place.member == member) return true;
    return false;
}

/* Somebody has it elsewhere than we do, and there it did not answer: a place to look. */
static void
place_look(struct round *round, const struct group0_place *place)
{
    const struct group0 *group0 = round->group0;
    const struct peer_address *present = peers_member_address(group0->options.peers, place->member);
    if (place->member == group0->identity.member || has_answered(round, place->member)) return;
    if (present != NULL && same_place(present, &place->address)) return;
    for (u32 i = 0; i < round->count; i++)
        if (same_place(&round->askings[i].place.address, &place->address)) return;
    asking_add(round, place);
}

/* Who has answered says where it is. */
static void
answer_take(struct round *round, struct asking *asking)
{
    struct group0 *group0 = round->group0;
    struct group0_told told;
    if (!asking->answered) return;
    asking->answered = ok(group0_told_decode(buf_bytes(&asking->answer), &told));
    if (!asking->answered || told.member == group0->identity.member) return;
    asking->place.member = told.member;
    round->answers++;
    if (told.address.port != 0 && is_believed(group0, told.member, &told.own))
        moved_hear(group0, told.member, &told.address);
}

static void
places_take(struct round *round, const struct asking *asking)
{
    struct group0_told told;
    struct group0_place place;
    if (!asking->answered || !ok(group0_told_decode(buf_bytes(&asking->answer), &told))) return;
    while (ok(group0_place_take(&told.others, &place)))
        place_look(round, &place);
}

/* Those from `first` on; until all have answered, or not. Whoever stops waits for nobody. */
static MAY_YIELD void
await(struct round *round, u32 first)
{
    while (round->pending != 0 && !round->group0->closing)
        (void)!ok(fiber_queue_wait(&round->queue, io_now_ns() + GROUP0_RETRY_NS));
    u32 count = round->count;
    for (u32 i = first; i < count; i++)
        answer_take(round, &round->askings[i]);
    for (u32 i = first; i < count; i++)
        places_take(round, &round->askings[i]);
}

/* A few are asked for the others, in turn: they may be a thousand, and so may those who ask. */
static MAY_YIELD void
ask_all(struct round *round)
{
    struct group0 *group0 = round->group0;
    const struct group0_options *options = &group0->options;
    u32 members = group0->known_count, turn = group0->address_turn;
    for (u32 i = 0; i < members; i++) {
        struct group0_place place = {.member = group0->known[i]};
        asking_add(round, &place);
    }
    for (u32 i = 0; i < options->seed_count; i++) {
        struct group0_place place = {.address = options->seeds[i]};
        if (!same_place(&place.address, &options->address)) asking_add(round, &place);
    }
    u32 first = round->count;
    for (u32 i = 0; i < first; i++) {
        bool by_number = round->askings[i].place.member != 0;
        bool in_turn = by_number && (i + members - turn % members) % members < GROUP0_ADDRESS_ASKED;
        call(round, &round->askings[i], by_number, !by_number || in_turn);
        if (fiber_should_yield()) fiber_yield();
    }
    group0->address_turn += GROUP0_ADDRESS_ASKED;
    await(round, 0);
    for (u32 i = first; i < round->count && !group0->closing; i++)
        call(round, &round->askings[i], false, false);
    await(round, first);
}

/* How many have answered. */
static MAY_YIELD u32
tell(struct group0 *group0)
{
    struct round round = {.group0 = group0,
                          .capacity = group0->known_count + group0->options.seed_count +
                                      GROUP0_ADDRESS_LOOKS};
    fiber_queue_init(&round.queue);
    size_t bytes = round.capacity * sizeof(struct asking);
    round.askings = mem_alloc_zero(group0->options.budget, bytes);
    if (round.askings == NULL) return 0; /* in the next round */
    ask_all(&round);
    for (u32 i = 0; i < round.count; i++) {
        struct asking *asking = &round.askings[i];
        if (asking->called) peer_call_cancel(group0->options.peers, &asking->call);
        buf_deinit(&asking->answer);
    }
    mem_free(group0->options.budget, round.askings, bytes);
    return round.answers;
}

bool
group0_address_is_new(const struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    const struct topology_member *self =
        topology == NULL ? NULL : topology_member(topology, group0->identity.member);
    if (self == NULL || group0->options.address.port == 0) return false;
    struct peer_address record = group0_address_of(self);
    return !same_place(&record, &group0->options.address);
}

/* Also who was taken in elsewhere than it is now, and has heard nothing yet; and who waits to hear
 * what its directory is worth. */
static bool
is_to_be_told(const struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    u32 self = group0->identity.member;
    if (self == 0 || group0->options.address.port == 0) return false;
    if (topology != NULL && topology_member(topology, self) == NULL) return false;
    return topology == NULL || !group0->running || group0_address_is_new(group0);
}

void
group0_address_main(void *arg)
{
    struct group0 *group0 = arg;
    u32 silent = 0;
    while (!group0->closing && ok(group0->failed)) {
        moved_expire(group0);
        if (is_to_be_told(group0) && group0->known_count + group0->options.seed_count != 0) {
            silent = tell(group0) != 0 ? 0 : silent + 1;
            if (silent % GROUP0_ADDRESS_WARN == GROUP0_ADDRESS_WARN / 10)
                log_warning("group0",
                            "no member answers where this node knows them: where they have other "
                            "addresses, too, name one that runs in seed-nodes");
        }
        if (group0->closing) break;
        (void)!ok(fiber_queue_wait(&group0->address_queue, io_now_ns() + GROUP0_ADDRESS_NS));
    }
    fiber_gate_leave(&group0->gate);
}
