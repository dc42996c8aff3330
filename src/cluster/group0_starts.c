/* SPDX-License-Identifier: MIT
 *
 * group0_starts.c -- a directory that is older than what its member has run with is not believed.
 *
 * Before raft says a word, and before anything of the store is shown, a member that starts
 *
 *   1  asks all others whether its last start is one that they know        nothing is written
 *   2  when half of them say so (with itself, a majority), makes a new one, durable here
 *   3  tells them; when half of them have it durably, it goes on
 *
 * One who says that it is older ends it, whatever the others say. Without half of the others it
 * waits (proving), as nothing could be read or written by a quorum anyway: raft does not run, so it
 * neither votes nor leads, and no topology is shown, without which no shard serves anything.
 * Nothing is written meanwhile, so waiting again and again uses up none of the starts that are
 * kept. Those who could not be reached in 3, and who join, are told each GROUP0_STARTS_NS, and each
 * member tells what it knows of the other one, so that it does not matter who calls whom. Those who
 * came when it was away are asked as well, once they have called.
 *
 * Who has lost its power while it was taken in does not know yet that it is a member, and says
 * nothing. Whoever has it in its topology tells it its number when it asks to be taken in, though
 * nobody leads, and though it waits here itself (group0_change.c): or they would wait for each other.
 * It is known by its incarnation: one whose disk was emptied is another one, and vouches for nobody.
 *
 * A store that is stuck (a full disk) still answers reads. So it is not waited for: the start is
 * made as soon as there is room, and what others tell is kept in memory until then.
 *
 * What cannot be noticed: that all whom it asks know nothing of the newer starts, as they were down
 * or no members then (starts.h: never heard of it). And a copy that was made after the last start
 * in which the member has run.
 */
#include "cluster/group0_internal.h"

#include <stdio.h>

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "proto/peer.h"

/* ---- what is known ---- */

/* Where it stands, or would. */
static u32
known_place(const struct group0 *group0, u32 member)
{
    u32 first = 0, last = group0->starts_count;
    while (first < last) {
        u32 middle = (first + last) / 2;
        if (group0->starts[middle].member < member)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

static struct group0_starts *
known_find(const struct group0 *group0, u32 member)
{
    u32 at = known_place(group0, member);
    bool found = at < group0->starts_count && group0->starts[at].member == member;
    return found ? &group0->starts[at] : NULL;
}

struct starts
group0_starts_of(const struct group0 *group0, u32 member)
{
    const struct group0_starts *known = known_find(group0, member);
    return known != NULL ? known->newest : (struct starts){0};
}

/* Of a member that was not known. NULL: no memory. */
static struct group0_starts *
known_add(struct group0 *group0, u32 member)
{
    if (group0->starts_count == group0->starts_capacity) {
        u32 capacity = MAX(8u, group0->starts_capacity * 2);
        void *grown = mem_realloc(group0->options.budget, group0->starts,
                                  group0->starts_capacity * sizeof(*group0->starts),
                                  capacity * sizeof(*group0->starts));
        if (grown == NULL) return NULL;
        group0->starts = grown;
        group0->starts_capacity = capacity;
    }
    u32 at = known_place(group0, member);
    struct group0_starts *known = &group0->starts[at];
    memmove(known + 1, known, (group0->starts_count++ - at) * sizeof(*known));
    *known = (struct group0_starts){.member = member};
    return known;
}

status
group0_starts_load(struct group0 *group0, u32 member, struct bytes value)
{
    struct starts starts;
    size_t size;
    status st = starts_decode(value, &starts, &size);
    if (!ok(st) || size != value.size) return ST_CORRUPT;
    if (member == 0) {
        group0->own_starts = starts;
        return ST_OK;
    }
    struct group0_starts *known = known_add(group0, member);
    if (known == NULL) return ST_NO_MEMORY;
    known->newest = starts_newest(&starts);
    return ST_OK;
}

void
group0_starts_free(struct group0 *group0)
{
    mem_free(group0->options.budget, group0->starts,
             group0->starts_capacity * sizeof(*group0->starts));
    group0->starts = NULL;
    group0->starts_count = group0->starts_capacity = 0;
}

/* member 0: our own. */
static MUST_CHECK bool
starts_put(struct group0 *group0, u32 member, const struct starts *starts)
{
    u8 value[STARTS_BYTES_MAX];
    u32 size = starts_encode(starts, value);
    return group0_put(group0, group0_key(GROUP0_KEY_STARTS, 0, member), BYTES(value, size));
}

/* Those of members that are gone for good: numbers are not given again. */
static void
forget_the_gone(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    u32 kept = 0;
    if (topology == NULL) return;
    for (u32 i = 0; i < group0->starts_count; i++) {
        u32 member = group0->starts[i].member;
        bool gone = member < topology->next_number && topology_member(topology, member) == NULL;
        if (gone && group0_delete(group0, group0_key(GROUP0_KEY_STARTS, 0, member)))
            (void)group0_write_post(group0);
        else
            group0->starts[kept++] = group0->starts[i];
    }
    group0->starts_count = kept;
}

/* ---- being told ---- */

static void
rolled_back(struct group0 *group0)
{
    if (group0->rolled_back) return;
    MARK("cluster.group0.rolled_back");
    group0->rolled_back = true;
    group0_fail(group0, ST_DENIED, GROUP0_ROLLED_BACK);
}

bool
group0_is_rolled_back(const struct group0 *group0)
{
    return group0->rolled_back;
}

static void
answer(struct group0 *group0, struct peer_request *request, enum starts_verdict verdict)
{
    u8 bytes[STARTS_ANSWER_BYTES];
    starts_answer_encode(verdict, bytes);
    struct bytes part = BYTES(bytes, sizeof(bytes));
    u64 epoch = group0->topology != NULL ? group0->topology->epoch : 0;
    peer_reply(request, NATIVE_ST_OK, epoch, &part, 1);
}

static void
refuse(struct group0 *group0, struct peer_request *request, enum native_status why)
{
    peer_reply(request, why, group0->topology != NULL ? group0->topology->epoch : 0, NULL, 0);
}

/* Waits until the batch is durable, or will be later for a reason that may last. */
static MAY_YIELD status
write_await(struct group0 *group0, u64 batch, u64 deadline_ns)
{
    while (group0->written < batch) {
        if (!ok(group0->failed)) return group0->failed;
        if (group0->closing) return ST_CLOSED;
        if (lsm_reserve_is_stuck(group0->options.lsm)) return ST_NO_SPACE;
        if (io_now_ns() >= deadline_ns) return ST_TIMED_OUT;
        (void)!ok(fiber_queue_wait(&group0->written_queue, io_now_ns() + GROUP0_RETRY_NS));
    }
    return ST_OK;
}

struct keeping { /* until what was told is durable */
    struct group0 *group0;
    struct peer_request *request;
    u64 batch;
};

static MAY_YIELD void
keep_main(void *arg)
{
    struct keeping *keeping = arg;
    struct group0 *group0 = keeping->group0;
    status st = write_await(group0, keeping->batch, peer_request_deadline_ns(keeping->request));
    if (ok(st) || status_is(st, ST_NO_SPACE))
        answer(group0, keeping->request, STARTS_FINE);
    else
        refuse(group0, keeping->request, NATIVE_ST_UNAVAILABLE);
    mem_free(group0->options.budget, keeping, sizeof(*keeping));
    fiber_gate_leave(&group0->gate);
}

static bool
answer_when_durable(struct group0 *group0, struct peer_request *request, u64 batch)
{
    if (!fiber_gate_enter(&group0->gate)) return false;
    struct keeping *keeping = mem_alloc(group0->options.budget, sizeof(*keeping));
    if (keeping != NULL) {
        *keeping = (struct keeping){.group0 = group0, .request = request, .batch = batch};
        if (ok(fiber_spawn(FIBER_FOREGROUND, "group0-keep", keep_main, keeping))) return true;
        mem_free(group0->options.budget, keeping, sizeof(*keeping));
    }
    fiber_gate_leave(&group0->gate);
    return false;
}

/* Also what an earlier request has brought, and is being written. */
static void
keep(struct group0 *group0, struct peer_request *request, u32 member, const struct starts *own)
{
    struct starts newest = starts_newest(own);
    struct group0_starts *known = known_find(group0, member);
    if (known == NULL) known = known_add(group0, member);
    if (known == NULL) {
        refuse(group0, request, NATIVE_ST_NO_MEMORY);
        return;
    }
    if (newest.count > known->newest.count) {
        if (!starts_put(group0, member, &newest)) {
            refuse(group0, request, NATIVE_ST_NO_MEMORY);
            return;
        }
        known->newest = newest;
        known->batch = group0_write_post(group0);
    }
    if (known->batch <= group0->written || lsm_reserve_is_stuck(group0->options.lsm))
        answer(group0, request, STARTS_FINE);
    else if (!answer_when_durable(group0, request, known->batch))
        refuse(group0, request, NATIVE_ST_OVERLOADED);
}

static void
started_came(void *arg, struct peer_request *request, const struct peer_identity *from,
             const struct native_header *header, struct bytes body)
{
    struct group0 *group0 = arg;
    struct starts_told told;
    (void)header;
    if (request == NULL) return;
    if (from->member == 0 || !ok(starts_told_decode(body, &told))) {
        refuse(group0, request, NATIVE_ST_INVALID);
        return;
    }
    if (starts_judge(&told.yours, &group0->own_starts) == STARTS_ROLLED_BACK) rolled_back(group0);
    if (group0->closing || !ok(group0->failed)) {
        refuse(group0, request, NATIVE_ST_UNAVAILABLE);
        return;
    }
    struct starts known = group0_starts_of(group0, from->member);
    enum starts_verdict verdict = starts_judge(&known, &told.own);
    if (verdict == STARTS_ROLLED_BACK)
        log_warning("group0",
                    "a member runs with a directory from an older copy: it is refused member=%u "
                    "start=%llu known=%llu",
                    from->member, (unsigned long long)told.own.count,
                    (unsigned long long)known.count);
    /* Too far behind to tell: then the majority that has found it fine is believed. */
    if (verdict != STARTS_ROLLED_BACK && told.remember)
        keep(group0, request, from->member, &told.own);
    else
        answer(group0, request, verdict);
}

/* ---- telling ---- */

struct round;

struct telling {
    struct peer_call call;
    struct round *round;
    bool called;
};

struct round { /* on the stack of who waits: one question to many */
    struct group0 *group0;
    struct fiber_queue queue;
    struct telling *tellings; /* count */
    u32 count;
    u32 pending;
    u32 fine;
    bool denied; /* one says that we are rolled back */
};

/* A member of an earlier version keeps nothing, and has nothing against us. */
static bool
is_fine(struct round *round, const struct native_header *header, struct bytes body)
{
    enum starts_verdict verdict;
    if (header->status == NATIVE_ST_UNSUPPORTED) return true;
    if (header->status != NATIVE_ST_OK || !ok(starts_answer_decode(body, &verdict))) return false;
    round->denied |= verdict == STARTS_ROLLED_BACK;
    return verdict == STARTS_FINE;
}

static void
answered(struct peer_call *call, status st, const struct native_header *header, struct bytes body)
{
    struct telling *telling = CONTAINER_OF(call, struct telling, call);
    struct round *round = telling->round;
    telling->called = false;
    round->pending--;
    round->fine += ok(st) && is_fine(round, header, body);
    fiber_queue_wake_all(&round->queue);
}

static void
tell(struct round *round, struct telling *telling, u32 member, bool remember)
{
    struct group0 *group0 = round->group0;
    struct starts_told told = {
        .remember = remember, .yours = group0_starts_of(group0, member), .own = group0->own_starts};
    u8 bytes[STARTS_TOLD_BYTES_MAX];
    struct bytes part = BYTES(bytes, starts_told_encode(&told, bytes));
    struct native_header header = {.opcode = PEER_STARTED,
                                   .epoch = group0->topology != NULL ? group0->topology->epoch : 0};
    telling->round = round;
    telling->called = true;
    round->pending++;
    peer_call_init(&telling->call, answered);
    peer_call_start(group0->options.peers, &telling->call, member, 0, &header, &part, 1,
                    io_now_ns() + GROUP0_STARTS_CALL_NS);
}

/* Asks all other members of the topology (or the living ones), until all have answered, or one has
 * found us rolled back, or enough have found us fine and the others had so much time more. False:
 * no memory. */
static MAY_YIELD bool
ask(struct group0 *group0, const struct topology *topology, bool remember, bool living, u32 enough,
    u64 patience_ns, struct round *round)
{
    u32 members = topology->member_count, count = members + group0->stranger_count;
    *round = (struct round){.group0 = group0, .count = count};
    fiber_queue_init(&round->queue);
    round->tellings = mem_alloc_zero(group0->options.budget, count * sizeof(struct telling));
    if (round->tellings == NULL) return false;
    for (u32 i = 0; i < count; i++) {
        u32 member = i < members ? topology->members[i].number : group0->strangers[i - members];
        if (member == group0->identity.member) continue;
        if (living && !group0->options.alive(group0->options.arg, member)) continue;
        tell(round, &round->tellings[i], member, remember);
        if (fiber_should_yield()) fiber_yield(); /* they may be a thousand */
    }
    u64 until_ns = FIBER_FOREVER; /* calls have a deadline */
    for (;;) {
        if (round->fine >= enough) until_ns = MIN(until_ns, io_now_ns() + patience_ns);
        if (round->pending == 0 || round->denied || io_now_ns() >= until_ns) break;
        (void)!ok(fiber_queue_wait(&round->queue, until_ns));
    }
    for (u32 i = 0; i < count; i++)
        if (round->tellings[i].called)
            peer_call_cancel(group0->options.peers, &round->tellings[i].call);
    mem_free(group0->options.budget, round->tellings, count * sizeof(struct telling));
    return true;
}

/* ---- a start ---- */

/* Whoever has been away for long may know nobody who is still there: those who lead now call it. */
void
group0_starts_heard(struct group0 *group0, u32 member)
{
    const struct topology *topology = group0->topology;
    if (group0->running || member == 0 || group0->stranger_count == GROUP0_STRANGERS_MAX) return;
    if (topology != NULL && topology_member(topology, member) != NULL) return;
    for (u32 i = 0; i < group0->stranger_count; i++)
        if (group0->strangers[i] == member) return;
    group0->strangers[group0->stranger_count++] = member;
}

/* Durable before anybody hears of it: whoever knows of it must find it here again. */
static void
start_look(struct group0 *group0)
{
    if (group0->next_starts_batch == 0 || group0->written < group0->next_starts_batch) return;
    group0->own_starts = group0->next_starts;
    group0->next_starts_batch = 0;
    group0->start_made = true;
}

static MAY_YIELD status
start_make(struct group0 *group0, u64 deadline_ns)
{
    if (group0->next_starts_batch == 0) {
        group0->next_starts = group0->own_starts;
        starts_add(&group0->next_starts, io_entropy_id(0));
        if (!starts_put(group0, 0, &group0->next_starts)) return ST_NO_MEMORY;
        group0->next_starts_batch = group0_write_post(group0);
    }
    status st = write_await(group0, group0->next_starts_batch, deadline_ns);
    start_look(group0);
    return st;
}

/* One attempt. ST_WOULD_WAIT: too few answer. */
static MAY_YIELD status
check_once(struct group0 *group0, const struct topology *topology, u64 deadline_ns)
{
    u32 needed = topology->member_count / 2;
    struct round round;
    if (!group0->start_made) {
        u64 patience_ns = GROUP0_STARTS_PATIENCE_NS; /* who knows more may be slower */
        if (!ask(group0, topology, false, false, needed, patience_ns, &round)) return ST_NO_MEMORY;
        if (round.denied) rolled_back(group0);
        if (!ok(group0->failed)) return group0->failed;
        if (round.fine < needed) return ST_WOULD_WAIT;
        status st = start_make(group0, deadline_ns);
        if (status_is(st, ST_NO_SPACE)) return ST_OK; /* group0_starts_main tells, later */
        if (!ok(st)) return st;
    }
    if (!ask(group0, topology, true, false, needed, 0, &round)) return ST_NO_MEMORY;
    if (round.denied) rolled_back(group0);
    if (!ok(group0->failed)) return group0->failed;
    return round.fine < needed ? ST_WOULD_WAIT : ST_OK;
}

status
group0_starts_check(struct group0 *group0, const struct topology *topology, u64 deadline_ns)
{
    for (;;) {
        status st = check_once(group0, topology, deadline_ns);
        bool passes = status_is(st, ST_WOULD_WAIT) || status_is(st, ST_NO_MEMORY);
        if (!passes) {
            group0->stranger_count = 0;
            return st;
        }
        if (group0->closing) return ST_CLOSED;
        if (io_stopping()) return ST_CANCELED;
        if (peers_taken_out(group0->options.peers)) return ST_NOT_FOUND;
        if (io_now_ns() >= deadline_ns) return ST_TIMED_OUT;
        fiber_sleep_ns(GROUP0_RETRY_NS);
    }
}

/* What group0_open did not find out in its time. */
static MAY_YIELD void
prove(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    char names[256] = "";
    size_t size = 0;
    for (u32 i = 0; i < topology->member_count && size < sizeof(names); i++) {
        const struct topology_member *member = &topology->members[i];
        const struct peer_address *at = peers_member_address(group0->options.peers, member->number);
        if (at == NULL || member->number == group0->identity.member) continue;
        size += (size_t)snprintf(names + size, sizeof(names) - size, "%s%s (%s:%u)",
                                 size == 0 ? "" : ", ", member->node_id, at->host, at->port);
    }
    log_warning("group0",
                "this node serves nothing before %u of the others say that its directory is none "
                "from an older copy; it asks %s",
                topology->member_count / 2, names);
    status st = group0_starts_check(group0, group0->topology, FIBER_FOREVER);
    if (ok(st)) st = group0_raft_start(group0, group0->restored);
    bool ends = group0->closing || io_stopping() || peers_taken_out(group0->options.peers);
    if (!ok(st) && !ends) group0_fail(group0, st, "starting");
    if (!ok(st)) return;
    group0->proving = false;
    log_info("group0", "enough of the others have answered: this node serves");
    group0->options.changed(group0->options.arg, group0->topology);
}

void
group0_starts_main(void *arg)
{
    struct group0 *group0 = arg;
    while (!group0->closing && ok(group0->failed)) {
        struct round round;
        if (group0->proving) prove(group0);
        struct topology *topology = group0->topology;
        if (group0_works(group0) && topology != NULL) {
            start_look(group0);
            forget_the_gone(group0);
            topology_hold(topology);
            if (ask(group0, topology, true, true, UINT32_MAX, 0, &round) && round.denied)
                rolled_back(group0);
            topology_release(topology);
        }
        u64 pause_ns = group0->next_starts_batch != 0 ? GROUP0_RETRY_NS : GROUP0_STARTS_NS;
        (void)!ok(fiber_queue_wait(&group0->starts_queue, io_now_ns() + pause_ns));
    }
    fiber_gate_leave(&group0->gate);
}

bool
group0_is_proving(const struct group0 *group0)
{
    return group0->proving;
}

void
group0_starts_open(struct group0 *group0, bool there)
{
    peers_handler_set(group0->options.peers, PEER_STARTED, there ? started_came : NULL,
                      there ? group0 : NULL);
}
