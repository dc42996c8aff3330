/* SPDX-License-Identifier: MIT
 *
 * group0_change.c -- how a command becomes real, whoever leads, and how a node becomes a member.
 *
 *   fill -> attempt at the leader -> DONE       applied; waits until it is applied here, too
 *     ^                              CONFLICT   somebody was faster: look at the state, fill again
 *     |                              REFUSED    for a reason that lies in the state
 *     |                              NOT_LEADER, BUSY    not done: again, elsewhere or later
 *     +----------------------------- UNKNOWN    may have been done
 *
 * An attempt whose outcome is not known is made again with the same state ids as long as the state
 * is the one that it was made for: applied twice it is found to be done. When the state is another
 * one it can never be applied any more, and `fill` sees from the new state whether it was.
 */
#include "cluster/group0_internal.h"

#include <stdio.h>

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "proto/peer.h"

/* ---- at the leader ---- */

static void
outcome_set(struct group0_outcome *outcome, const struct group0 *group0, u8 result)
{
    *outcome = (struct group0_outcome){.result = result,
                                       .leader = group0->running ? (u32)group0->raft.leader : 0};
}

/* What can be said without an entry: when all that there is has been applied. */
static bool
answer_now(const struct group0 *group0, const struct topology_command *command,
           struct group0_outcome *outcome)
{
    const struct topology *topology = group0->topology;
    if (topology == NULL || group0->applied != group0->raft.last_index) return false;
    if (command->state_after == topology->state_id) {
        outcome_set(outcome, group0, GROUP0_DONE);
        outcome->index = group0->applied;
        return true;
    }
    if (command->state_before == topology->state_id) return false;
    outcome_set(outcome, group0, GROUP0_CONFLICT);
    return true;
}

/* A change of quorums lets those overlap that stand next to each other (topology_apply). So that
 * these are all that are in use at once, there is none before every member, silent ones too, works
 * with the quorums that are there now: one that was cut off before the last change would go on
 * writing, or reading from its own store alone, by those before. What it has shown it does not
 * forget (G2), so an epoch that it told once stays true. False: not now. */
static bool
quorums_are_known(struct group0 *group0, const struct topology_command *command,
                  struct group0_outcome *outcome)
{
    const struct topology *topology = group0->topology;
    if (command->kind != TOPOLOGY_KEYSPACE_SET || topology == NULL ||
        command->keyspace >= LIMIT_KEYSPACES_CLIENT)
        return true;
    outcome_set(outcome, group0, GROUP0_BUSY);
    /* Not the state that it is for: what is under way decides what it meets. */
    if (command->state_before != topology->state_id) return false;
    const struct group0_quorums *known = &group0->quorums[command->keyspace];
    bool same = known->write == command->options.write_quorum &&
                known->read == command->options.read_quorum;
    for (u32 i = 0; known->used && !same && i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (group0->options.epoch_of(group0->options.arg, member->number) >= known->since) continue;
        MARK("cluster.group0.quorums_not_known");
        if (member->number == group0->identity.member ||
            group0->options.alive(group0->options.arg, member->number))
            return false;
        outcome_set(outcome, group0, GROUP0_REFUSED);
        snprintf(
            outcome->reason, sizeof(outcome->reason),
            "'%.40s' does not answer, and may not know the present quorums yet: bring it back, "
            "or remove it",
            member->node_id);
        return false;
    }
    return true;
}

/* Who is to be taken out, or replaced, has died as the last one that held everything before the
 * present plan. That is refused as long as the plan lasts, though others have fetched everything by
 * now; and the plan waits for it, since by itself it is a read quorum of the row before, and may
 * only be cut off. But whoever asks gives it up. So the plan ends first, without it. (To take it out
 * at once would be another rule of topology_apply, which members of a version before this do not
 * know.) True: not now. */
static bool
last_give_up(struct group0 *group0, const struct topology_command *command,
             struct group0_outcome *outcome)
{
    const struct topology *topology = group0->topology;
    u32 number = command->kind == TOPOLOGY_MEMBER_FORGET ? command->member.number
                 : command->kind == TOPOLOGY_MEMBER_ADD  ? command->member.replaces
                                                         : 0;
    if (topology == NULL || !topology_last_is_followed(topology, number)) return false;
    if (number == group0->identity.member || group0->options.alive(group0->options.arg, number))
        return false;
    MARK("cluster.group0.last_given_up");
    group0->given_up_member = number;
    group0->given_up_session = topology->session;
    outcome_set(outcome, group0, GROUP0_BUSY);
    return true;
}

bool
group0_propose(struct group0 *group0, const struct topology_command *command, struct bytes bytes,
               struct group0_proposal *proposal, struct group0_outcome *outcome_out)
{
    struct raft *raft = &group0->raft;
    if (!group0_works(group0) || raft->role != RAFT_LEADER) {
        outcome_set(outcome_out, group0, GROUP0_NOT_LEADER);
        return false;
    }
    if (answer_now(group0, command, outcome_out)) return false;
    if (!quorums_are_known(group0, command, outcome_out)) return false;
    if (last_give_up(group0, command, outcome_out)) return false;
    outcome_set(outcome_out, group0, GROUP0_BUSY);
    if (group0->proposal_count == GROUP0_PROPOSALS_MAX || !group0_input_begin(group0)) return false;
    struct raft_entry entry = {.kind = RAFT_ENTRY_DATA, .data = bytes};
    if (!ok(raft_propose(raft, &entry, 1, &group0->ready))) return false;
    proposal->index = entry.index;
    proposal->term = entry.term;
    list_push_back(&group0->proposals, &proposal->link);
    group0->proposal_count++;
    group0_input_end(group0);
    return true;
}

static void
proposal_end(struct group0 *group0, struct group0_proposal *proposal,
             const struct group0_outcome *outcome)
{
    list_del(&proposal->link);
    group0->proposal_count--;
    proposal->done(group0, proposal, outcome);
}

void
group0_proposals_applied(struct group0 *group0, u64 index, u64 term,
                         const struct group0_outcome *outcome)
{
    while (!list_empty(&group0->proposals)) {
        struct group0_proposal *first =
            list_entry(list_first(&group0->proposals), struct group0_proposal, link);
        if (first->index > index) return;
        struct group0_outcome other = *outcome;
        /* Another entry stands where this one was: it is gone for good. */
        if (first->index != index || first->term != term) outcome_set(&other, group0, GROUP0_BUSY);
        proposal_end(group0, first, &other);
    }
}

void
group0_proposals_fail(struct group0 *group0, u8 result)
{
    struct group0_outcome outcome;
    outcome_set(&outcome, group0, result);
    while (!list_empty(&group0->proposals))
        proposal_end(group0,
                     list_entry(list_first(&group0->proposals), struct group0_proposal, link),
                     &outcome);
}

/* ---- an attempt ---- */

struct waiting { /* on the stack of who waits */
    struct group0_proposal proposal;
    struct group0_outcome outcome;
    struct fiber_queue queue;
    bool done;
};

static void
waiting_done(struct group0 *group0, struct group0_proposal *proposal,
             const struct group0_outcome *outcome)
{
    struct waiting *waiting = CONTAINER_OF(proposal, struct waiting, proposal);
    waiting->outcome = *outcome;
    waiting->done = true;
    fiber_queue_wake_all(&waiting->queue);
}

static MAY_YIELD void
attempt_here(struct group0 *group0, const struct topology_command *command, struct bytes bytes,
             u64 deadline_ns, struct group0_outcome *outcome)
{
    struct waiting waiting = {.proposal.done = waiting_done};
    fiber_queue_init(&waiting.queue);
    if (!group0_propose(group0, command, bytes, &waiting.proposal, outcome)) return;
    while (!waiting.done)
        if (!ok(fiber_queue_wait(&waiting.queue, deadline_ns))) break;
    if (!waiting.done) {
        list_del(&waiting.proposal.link);
        group0->proposal_count--;
        outcome_set(outcome, group0, GROUP0_UNKNOWN);
        return;
    }
    *outcome = waiting.outcome;
}

static MAY_YIELD void
attempt_there(struct group0 *group0, u32 leader, struct bytes bytes, u64 deadline_ns,
              struct group0_outcome *outcome)
{
    struct native_header header = {.opcode = PEER_PROPOSE,
                                   .epoch = group0->topology != NULL ? group0->topology->epoch : 0};
    struct native_header reply;
    struct buf answer;
    bool maybe_sent = false;
    buf_init(&answer, group0->options.budget);
    status st = peer_call_wait(group0->options.peers, leader, 0, &header, &bytes, 1, deadline_ns,
                               &reply, &answer, &maybe_sent);
    if (!ok(st))
        outcome_set(outcome, group0, maybe_sent ? GROUP0_UNKNOWN : GROUP0_BUSY);
    else if (reply.status != NATIVE_ST_OK)
        outcome_set(outcome, group0,
                    native_status_retryable(reply.status) && reply.status != NATIVE_ST_NO_MEMORY
                        ? GROUP0_BUSY
                        : GROUP0_UNKNOWN);
    else if (!ok(group0_outcome_decode(buf_bytes(&answer), outcome)))
        outcome_set(outcome, group0, GROUP0_UNKNOWN);
    buf_deinit(&answer);
}

/* leader: whom somebody named, 0: whom we know. */
static MAY_YIELD void
attempt(struct group0 *group0, u32 leader, const struct topology_command *command, u64 deadline_ns,
        struct group0_outcome *outcome)
{
    struct buf bytes;
    buf_init(&bytes, group0->options.budget);
    outcome_set(outcome, group0, GROUP0_BUSY);
    if (leader == 0) leader = (u32)group0->raft.leader;
    deadline_ns = MIN(deadline_ns, io_now_ns() + GROUP0_ATTEMPT_NS);
    if (topology_command_encode(command, &bytes) && leader != 0) {
        if (leader == group0->identity.member)
            attempt_here(group0, command, buf_bytes(&bytes), deadline_ns, outcome);
        else
            attempt_there(group0, leader, buf_bytes(&bytes), deadline_ns, outcome);
    }
    buf_deinit(&bytes);
}

/* ---- changes ---- */

/* Until the entry is applied here; what the caller asked for is done in any case. */
static MAY_YIELD bool
applied_wait(struct group0 *group0, u64 index, u64 deadline_ns)
{
    while (group0->applied < index) {
        if (!group0_works(group0)) return false;
        if (!ok(fiber_queue_wait(&group0->applied_queue, deadline_ns))) return false;
    }
    return true;
}

struct change { /* on the stack */
    struct group0 *group0;
    status (*fill)(void *arg, const struct topology *present, struct topology_command *command);
    void *arg;
    u64 deadline_ns;
    char *reason;
    struct topology_command command;
    bool made;    /* command is one that was tried, for the state that it names */
    bool unknown; /* and may be done yet */
    bool fresh;   /* the topology is not older than the call */
};

/* The command for the present state. */
static status
change_fill(struct change *change)
{
    const struct topology *topology = change->group0->topology;
    if (change->made && change->command.state_before == topology->state_id) return ST_OK;
    if (change->made && change->command.state_after == topology->state_id) {
        change->fresh = true; /* than the call: the call has made it */
        return ST_EXISTS;
    }
    change->made = false;
    change->command = (struct topology_command){0};
    change->reason[0] = 0;
    status st = change->fill(change->arg, topology, &change->command);
    if (!ok(st)) return st;
    change->unknown = false; /* never done any more, or it would be visible */
    change->command.state_before = topology->state_id;
    change->command.state_after = io_entropy_id(change->command.state_before);
    change->made = true;
    return ST_OK;
}

static MAY_YIELD void
retry_pause(struct change *change)
{
    u64 now = io_now_ns();
    if (now < change->deadline_ns)
        fiber_sleep_ns(MIN((u64)GROUP0_RETRY_NS, change->deadline_ns - now));
}

/* Without the newest state it would only fail again, or be found done when it is undone. */
static MAY_YIELD void
behind_wait(struct change *change)
{
    u64 until = MIN(change->deadline_ns, io_now_ns() + GROUP0_ATTEMPT_NS);
    status st = group0_barrier(change->group0, until);
    if (ok(st))
        change->fresh = true;
    else
        retry_pause(change);
}

/* One turn; ST_WOULD_WAIT: again. */
static MAY_YIELD status
change_once(struct change *change, u32 *leader)
{
    struct group0 *group0 = change->group0;
    if (group0->topology == NULL || !group0->running) {
        retry_pause(change);
        return ST_WOULD_WAIT;
    }
    status st = change_fill(change);
    if (!ok(st) && !change->fresh) {
        behind_wait(change);
        return ST_WOULD_WAIT;
    }
    if (!ok(st)) return status_is(st, ST_EXISTS) ? ST_OK : st;
    struct group0_outcome outcome;
    attempt(group0, *leader, &change->command, change->deadline_ns, &outcome);
    *leader = 0;
    switch ((enum group0_result)outcome.result) {
    case GROUP0_DONE:
        (void)applied_wait(group0, outcome.index, change->deadline_ns);
        return ST_OK;
    case GROUP0_REFUSED:
        memcpy(change->reason, outcome.reason, TOPOLOGY_REASON_BYTES);
        /* The earlier attempt may still be on its way. */
        return change->unknown ? ST_UNKNOWN_OUTCOME : ST_INVALID;
    case GROUP0_NOT_LEADER:
        /* Whom it names may know no better: not at once and for ever. */
        if (outcome.leader != group0->identity.member) *leader = outcome.leader;
        retry_pause(change);
        return ST_WOULD_WAIT;
    case GROUP0_CONFLICT:
        behind_wait(change);
        return ST_WOULD_WAIT;
    case GROUP0_UNKNOWN:
        change->unknown = true;
        retry_pause(change);
        return ST_WOULD_WAIT;
    case GROUP0_BUSY:
    case GROUP0_RESULT_COUNT:
        retry_pause(change);
        return ST_WOULD_WAIT;
    }
    return ST_WOULD_WAIT;
}

status
group0_change(struct group0 *group0,
              status (*fill)(void *arg, const struct topology *present,
                             struct topology_command *command),
              void *arg, u64 deadline_ns, char reason[TOPOLOGY_REASON_BYTES])
{
    struct change change = {
        .group0 = group0, .fill = fill, .arg = arg, .deadline_ns = deadline_ns, .reason = reason};
    u32 leader = 0;
    reason[0] = 0;
    if (!fiber_gate_enter(&group0->gate)) return ST_CLOSED;
    status st = ST_WOULD_WAIT;
    while (status_is(st, ST_WOULD_WAIT)) {
        if (group0->closing || !ok(group0->failed))
            st = change.unknown ? ST_UNKNOWN_OUTCOME : ST_CLOSED;
        else if (io_now_ns() >= deadline_ns)
            st = change.unknown ? ST_UNKNOWN_OUTCOME : ST_TIMED_OUT;
        else
            st = change_once(&change, &leader);
    }
    fiber_gate_leave(&group0->gate);
    return st;
}

/* ---- barriers ---- */

/* One question to the leader. ST_WOULD_WAIT: another one. */
static MAY_YIELD status
barrier_once(struct group0 *group0, u64 deadline_ns)
{
    struct group0_reader reader = {.id = ++group0->read_id};
    fiber_queue_init(&reader.queue);
    u64 until = MIN(deadline_ns, io_now_ns() + NS_PER_S);
    if (!group0_input_begin(group0)) return ST_WOULD_WAIT;
    list_push_back(&group0->readers, &reader.link);
    if (ok(raft_read(&group0->raft, reader.id, io_now_ns(), &group0->ready))) {
        group0_input_end(group0);
        while (!reader.answered && group0_works(group0))
            if (!ok(fiber_queue_wait(&reader.queue, until))) break;
    }
    list_del(&reader.link);
    if (!reader.answered || !ok(reader.result)) return ST_WOULD_WAIT;
    return applied_wait(group0, reader.index, deadline_ns) ? ST_OK : ST_WOULD_WAIT;
}

status
group0_barrier(struct group0 *group0, u64 deadline_ns)
{
    if (!fiber_gate_enter(&group0->gate)) return ST_CLOSED;
    status st = ST_WOULD_WAIT;
    while (status_is(st, ST_WOULD_WAIT)) {
        if (group0->closing || !ok(group0->failed))
            st = ST_CLOSED;
        else if (io_now_ns() >= deadline_ns)
            st = ST_TIMED_OUT;
        else
            st = barrier_once(group0, deadline_ns);
        if (status_is(st, ST_WOULD_WAIT))
            fiber_sleep_ns(
                MIN((u64)GROUP0_RETRY_NS, MAX(deadline_ns, io_now_ns() + 1) - io_now_ns()));
    }
    fiber_gate_leave(&group0->gate);
    return st;
}

/* ---- joining: the member that is asked ---- */

struct join {
    struct group0 *group0;
    struct peer_request *request;
    struct topology_member member;
    u32 was; /* the member that it takes itself for; 0: none */
    char reason[TOPOLOGY_REASON_BYTES];
};

static const struct topology_member *
member_of_incarnation(const struct topology *topology, u64 incarnation)
{
    for (u32 i = 0; i < topology->member_count; i++)
        if (topology->members[i].incarnation == incarnation) return &topology->members[i];
    return NULL;
}

/* The same incarnation again is a retry; another one of the same id has lost what the first one
 * knew, and takes its place. But not while that one is alive: then two nodes have been given one
 * id. */
static status
join_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    struct join *join = arg;
    struct group0 *group0 = join->group0;
    if (member_of_incarnation(present, join->member.incarnation) != NULL) return ST_EXISTS;
    if (join->was != 0 && join->was < present->next_number) {
        /* Taken out while it joined. Taken in again, it would not be that one. */
        snprintf(join->reason, sizeof(join->reason), "member %u was taken out", join->was);
        return ST_DENIED;
    }
    command->kind = TOPOLOGY_MEMBER_ADD;
    command->member = join->member;
    const struct topology_member *old = topology_member_by_id(present, join->member.node_id);
    bool same_id = old != NULL;
    if (!same_id && join->member.replaces != 0)
        old = topology_member(present, join->member.replaces); /* NULL: forgotten already */
    if (old == NULL) return ST_OK;
    if (!same_id && (old->number == group0->identity.member ||
                     group0->options.alive(group0->options.arg, old->number))) {
        snprintf(join->reason, sizeof(join->reason), "member %u, '%s', is alive", old->number,
                 old->node_id);
        return ST_DENIED;
    }
    if (old->number == group0->identity.member ||
        group0->options.alive(group0->options.arg, old->number)) {
        snprintf(join->reason, sizeof(join->reason),
                 "node id '%s' belongs to a member that is alive", join->member.node_id);
        return ST_DENIED;
    }
    command->member.replaces = old->number;
    return ST_OK;
}

static MAY_YIELD void
join_answer(struct join *join, status st)
{
    struct group0 *group0 = join->group0;
    struct group0_welcome welcome = {0};
    struct buf topology, body;
    buf_init(&topology, group0->options.budget);
    buf_init(&body, group0->options.budget);
    const struct topology *present = group0->topology;
    const struct topology_member *member =
        ok(st) ? member_of_incarnation(present, join->member.incarnation) : NULL;
    if (member != NULL && topology_encode(present, &topology)) {
        welcome.member = member->number;
        welcome.cluster_id = present->cluster_id;
        welcome.topology = buf_bytes(&topology);
    } else {
        snprintf(welcome.reason, sizeof(welcome.reason), "%s",
                 join->reason[0] != 0 ? join->reason : status_text(ok(st) ? ST_OVERLOADED : st));
    }
    bool done = group0_welcome_encode(&welcome, &body);
    struct bytes part = buf_bytes(&body);
    peer_reply(join->request, done ? NATIVE_ST_OK : NATIVE_ST_NO_MEMORY,
               present != NULL ? present->epoch : 0, &part, done ? 1 : 0);
    buf_deinit(&topology);
    buf_deinit(&body);
}

static bool
is_known(const struct group0 *group0, const struct topology_member *member)
{
    return group0->topology != NULL &&
           member_of_incarnation(group0->topology, member->incarnation) != NULL;
}

/* It was taken in, and lost its power before it heard of it. That was decided, so it hears of it
 * though nobody leads, and though this member waits for others itself (group0_starts.c): it may be
 * the one that is waited for, and says nothing before it knows its number. But first the leader is
 * asked: it may have been taken out since. If nobody knows that here, the others say so when it
 * comes to them, as they do to a member that was away. */
static MAY_YIELD void
join_main(void *arg)
{
    struct join *join = arg;
    struct group0 *group0 = join->group0;
    char reason[TOPOLOGY_REASON_BYTES];
    u64 wait_ns = is_known(group0, &join->member) ? GROUP0_KNOWN_NS : 10 * NS_PER_S;
    u64 deadline_ns = MIN(peer_request_deadline_ns(join->request), io_now_ns() + wait_ns);
    status st = group0_change(group0, join_fill, join, deadline_ns, reason);
    if (status_is(st, ST_TIMED_OUT) && is_known(group0, &join->member)) st = ST_OK;
    if (join->reason[0] == 0) memcpy(join->reason, reason, sizeof(reason));
    join_answer(join, st);
    group0->joins--;
    mem_free(group0->options.budget, join, sizeof(*join));
    fiber_gate_leave(&group0->gate);
}

static bool
join_start(struct group0 *group0, struct peer_request *request, u32 was,
           const struct topology_member *member)
{
    if (group0->joins == GROUP0_JOINS_MAX || !fiber_gate_enter(&group0->gate)) return false;
    struct join *join = mem_alloc(group0->options.budget, sizeof(*join));
    if (join != NULL) {
        *join = (struct join){.group0 = group0, .request = request, .member = *member, .was = was};
        join->member.number = 0;
        if (ok(fiber_spawn(FIBER_FOREGROUND, "group0-join", join_main, join))) {
            group0->joins++;
            return true;
        }
        mem_free(group0->options.budget, join, sizeof(*join));
    }
    fiber_gate_leave(&group0->gate);
    return false;
}

/* Whether this member can answer, or may find one who can. */
static bool
may_take_in(const struct group0 *group0, const struct topology_member *member)
{
    if (group0->topology == NULL) return false;
    bool waits = group0->proving && !group0->closing && ok(group0->failed);
    return group0_works(group0) || (waits && is_known(group0, member));
}

void
group0_join_asked(struct group0 *group0, struct peer_request *request,
                  const struct peer_identity *from, struct bytes body)
{
    struct topology_command command;
    u64 epoch = group0->topology != NULL ? group0->topology->epoch : 0;
    bool right = ok(topology_command_decode(body, &command)) &&
                 command.kind == TOPOLOGY_MEMBER_ADD &&
                 command.member.incarnation == from->incarnation &&
                 strcmp(command.member.node_id, from->node_id) == 0;
    if (!right)
        peer_reply(request, NATIVE_ST_INVALID, epoch, NULL, 0);
    else if (!may_take_in(group0, &command.member))
        peer_reply(request, NATIVE_ST_UNAVAILABLE, epoch, NULL, 0);
    else if (!join_start(group0, request, from->member, &command.member))
        peer_reply(request, NATIVE_ST_OVERLOADED, epoch, NULL, 0);
}

/* ---- joining: the node that asks ---- */

struct calling { /* a call to a seed, on the stack */
    struct peer_call call;
    struct group0 *group0;
    struct fiber_queue queue;
    struct buf answer;
    u16 native_status;
    status st;
    bool done;
};

static void
calling_done(struct peer_call *call, status st, const struct native_header *header,
             struct bytes body)
{
    struct calling *calling = CONTAINER_OF(call, struct calling, call);
    calling->st = st;
    if (ok(st)) {
        calling->native_status = header->status;
        if (!buf_append(&calling->answer, body.data, body.size)) calling->st = ST_NO_MEMORY;
    }
    calling->done = true;
    fiber_queue_wake_all(&calling->queue);
}

/* ST_OK: answer is what it said. */
static MAY_YIELD status
seed_call(struct group0 *group0, const struct peer_address *seed, struct bytes body,
          u64 deadline_ns, struct buf *answer)
{
    struct calling calling = {.group0 = group0};
    struct native_header header = {.opcode = PEER_JOIN};
    fiber_queue_init(&calling.queue);
    buf_init(&calling.answer, group0->options.budget);
    peer_call_init(&calling.call, calling_done);
    peer_call_start_at(group0->options.peers, &calling.call, seed, 0, &header, &body, 1,
                       MIN(deadline_ns, io_now_ns() + GROUP0_ATTEMPT_NS));
    while (!calling.done)
        (void)fiber_queue_wait(&calling.queue, FIBER_FOREVER); /* it has a deadline of its own */
    status st = calling.st;
    if (ok(st)) st = native_status_to_base(calling.native_status);
    if (ok(st)) {
        *answer = calling.answer;
        return ST_OK;
    }
    buf_deinit(&calling.answer);
    return st;
}

/* We are this one now: durable before raft says a word in its name. */
static MAY_YIELD status
become(struct group0 *group0, const struct group0_welcome *welcome)
{
    struct topology *topology;
    status st = topology_decode(welcome->topology, group0->options.budget, &topology);
    if (!ok(st)) return st;
    if (group0->identity.member == 0) {
        u8 value[GROUP0_IDENTITY_BYTES];
        group0->identity.member = welcome->member;
        group0->identity.cluster_id = welcome->cluster_id;
        group0_identity_encode(&group0->identity, value);
        st = group0_put(group0, group0_key(GROUP0_KEY_IDENTITY, 0, 0), BYTES(value, sizeof(value)))
                 ? group0_write_wait(group0, group0_write_post(group0))
                 : ST_NO_MEMORY;
        if (!ok(st)) { /* the next answer says the same */
            group0->identity.member = 0;
            group0->identity.cluster_id = 0;
        }
    }
    if (ok(st)) {
        group0_identity_tell(group0);
        group0_addresses_update(group0, topology);
        if (!group0->running) st = group0_starts_check(group0, topology, FIBER_FOREVER);
        if (ok(st) && !group0->running) st = group0_raft_start(group0, group0->restored);
        if (!ok(st)) group0_fail(group0, st, "joining");
    }
    topology_release(topology);
    return st;
}

static MAY_YIELD status
seed_ask(struct group0 *group0, const struct topology_member *self, const struct peer_address *seed,
         u64 deadline_ns, char reason[TOPOLOGY_REASON_BYTES])
{
    struct topology_command command = {.kind = TOPOLOGY_MEMBER_ADD, .member = *self};
    struct buf body, answer;
    struct group0_welcome welcome;
    buf_init(&body, group0->options.budget);
    buf_init(&answer, group0->options.budget);
    status st = topology_command_encode(&command, &body)
                    ? seed_call(group0, seed, buf_bytes(&body), deadline_ns, &answer)
                    : ST_NO_MEMORY;
    buf_deinit(&body);
    if (ok(st)) st = group0_welcome_decode(buf_bytes(&answer), &welcome);
    if (!ok(st)) {
        snprintf(reason, TOPOLOGY_REASON_BYTES, "%s:%u: %s", seed->host, seed->port,
                 status_text(st));
    } else if (welcome.member == 0) {
        memcpy(reason, welcome.reason, sizeof(welcome.reason));
        st = ST_DENIED;
    } else if (group0->identity.member != 0 && group0->identity.member != welcome.member) {
        /* Not the number that our log was written under. */
        snprintf(reason, TOPOLOGY_REASON_BYTES,
                 "this directory is that of member %u, which has left", group0->identity.member);
        st = ST_CONFLICT;
    } else {
        st = become(group0, &welcome);
        /* Of its topology: no other member has it in a format that we know. */
        if (status_is(st, ST_UNSUPPORTED)) group0_outdated(group0);
        if (!ok(st)) snprintf(reason, TOPOLOGY_REASON_BYTES, "%s", status_text(st));
    }
    buf_deinit(&answer);
    return st;
}

static MAY_YIELD status
join(struct group0 *group0, const struct topology_member *self, const struct peer_address *seeds,
     u32 seed_count, u64 deadline_ns, char reason[TOPOLOGY_REASON_BYTES])
{
    bool taken_in = false;
    while (group0_member(group0) == 0) {
        if (!ok(group0->failed))
            snprintf(reason, TOPOLOGY_REASON_BYTES, "the record of the cluster has failed: %s",
                     status_text(group0->failed));
        if (group0->closing || !ok(group0->failed)) return ST_CLOSED;
        if (io_now_ns() >= deadline_ns) return ST_TIMED_OUT;
        if (taken_in) {
            (void)fiber_queue_wait(&group0->applied_queue,
                                   MIN(deadline_ns, io_now_ns() + GROUP0_ATTEMPT_NS));
            continue;
        }
        /* Not from the first one on at each call: those before may take all the time there is. */
        const struct peer_address *seed = &seeds[group0->seed_turn++ % seed_count];
        status st = seed_ask(group0, self, seed, deadline_ns, reason);
        if (status_is(st, ST_CONFLICT)) return st;
        taken_in = ok(st);
        if (!taken_in) fiber_sleep_ns(4 * GROUP0_RETRY_NS);
    }
    return ST_OK;
}

status
group0_join(struct group0 *group0, const struct topology_member *self,
            const struct peer_address *seeds, u32 seed_count, u64 deadline_ns,
            char reason[TOPOLOGY_REASON_BYTES])
{
    reason[0] = 0;
    if (seed_count == 0) return ST_INVALID;
    if (!fiber_gate_enter(&group0->gate)) return ST_CLOSED;
    struct topology_member member = *self;
    member.number = 0;
    member.incarnation = group0->identity.incarnation;
    memcpy(group0->identity.node_id, member.node_id, sizeof(group0->identity.node_id));
    group0_identity_tell(group0);
    status st = join(group0, &member, seeds, seed_count, deadline_ns, reason);
    fiber_gate_leave(&group0->gate);
    return st;
}
