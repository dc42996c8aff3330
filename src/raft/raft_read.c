/* SPDX-License-Identifier: MIT
 *
 * raft_read.c -- reads that are linearizable without an entry in the log (S7), and leases (S8).
 *
 * Heartbeats are numbered in rounds, counted anew in each term; an answer names its round. A read
 * waits for the first round that begins after it came: the answers then prove that no other leader
 * had been elected by that time. Reads that come during a round share the next one, which begins as
 * soon as this one is answered. The number names an attempt, not a read: an answer to an earlier
 * attempt never counts for a later one.
 */
#include "raft/raft_internal.h"

void
raft_round_start(struct raft *raft, u64 now_ns)
{
    raft->round++;
    raft->round_ns[raft->round % RAFT_ROUNDS] = now_ns;
}

static bool
commit_is_of_this_term(const struct raft *raft)
{
    return raft_term_of(raft, raft->commit) == raft->term;
}

static void
answer(struct raft *raft, const struct raft_read *read, status result, struct raft_ready *out)
{
    if (read->from == raft->options.id) {
        out->reads[out->read_count++] = (struct raft_read_state){read->id, read->index, result};
        return;
    }
    struct raft_message *reply = raft_emit(raft, out, RAFT_READ_REPLY, read->from);
    if (reply == NULL) return; /* as lost */
    reply->round = read->id;
    reply->index = read->index;
    reply->reject = !ok(result);
}

void
raft_reads_advance(struct raft *raft, struct raft_ready *out)
{
    u64 round = raft_quorum(raft, RAFT_QUORUM_ROUND);
    if (round > 0 && raft->options.lease_ns > 0 && raft->round - round < RAFT_ROUNDS) {
        u64 until = raft->round_ns[round % RAFT_ROUNDS] + raft->options.lease_ns;
        raft->lease_until_ns = MAX(raft->lease_until_ns, until);
    }
    u32 done = 0;
    while (done < raft->read_count && raft->reads[done].round <= round &&
           out->read_count < out->reads_max)
        answer(raft, &raft->reads[done++], ST_OK, out);
    raft->read_count -= done;
    memmove(raft->reads, raft->reads + done, raft->read_count * sizeof(*raft->reads));
}

void
raft_reads_fail(struct raft *raft, struct raft_ready *out)
{
    for (u32 i = 0; i < raft->read_count; i++) {
        /* More than the caller's array has been promised to hold would be its mistake. */
        CHECK(out->read_count < out->reads_max);
        answer(raft, &raft->reads[i], ST_CONFLICT, out);
    }
    raft->read_count = 0;
}

static status
read_add(struct raft *raft, u64 id, u64 from, u64 now_ns, struct raft_ready *out)
{
    if (!commit_is_of_this_term(raft)) return ST_WOULD_WAIT;
    if (raft->read_count == raft->options.reads_max) return ST_OVERLOADED;
    raft->quiescent = false;
    raft->reads[raft->read_count++] = (struct raft_read){id, from, raft->commit, raft->round + 1};
    if (raft->read_count == 1) {
        raft_round_start(raft, now_ns);
        raft_broadcast_heartbeat(raft, false, out);
        raft_reads_advance(raft, out); /* a group of one */
    }
    return ST_OK;
}

status
raft_read(struct raft *raft, u64 id, u64 now_ns, struct raft_ready *out)
{
    raft_begin(out);
    status st = ST_OK;
    if (raft->role == RAFT_LEADER) {
        st = read_add(raft, id, raft->options.id, now_ns, out);
    } else if (raft->leader == 0) {
        st = ST_WOULD_WAIT;
    } else {
        struct raft_message *message = raft_emit(raft, out, RAFT_READ, raft->leader);
        if (message == NULL) return ST_OVERLOADED;
        message->round = id;
    }
    raft_end(raft, out);
    return st;
}

void
raft_read_asked(struct raft *raft, const struct raft_message *message, u64 now_ns,
                struct raft_ready *out)
{
    status st = ST_CONFLICT;
    if (raft->role == RAFT_LEADER) st = read_add(raft, message->round, message->from, now_ns, out);
    if (ok(st)) return;
    struct raft_message *reply = raft_emit(raft, out, RAFT_READ_REPLY, message->from);
    if (reply == NULL) return;
    reply->reject = true;
    reply->round = message->round;
}

bool
raft_lease_valid(const struct raft *raft, u64 now_ns)
{
    return raft->role == RAFT_LEADER && !raft->lease_lost && now_ns < raft->lease_until_ns &&
           commit_is_of_this_term(raft);
}
