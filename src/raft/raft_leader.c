/* SPDX-License-Identifier: MIT
 *
 * raft_leader.c -- what a leader does: brings each peer's log to its own, counts, steps down.
 *
 *                accepted                        refused
 *     PROBE ---------------> REPLICATE -------------------> PROBE
 *       |  ^                     |
 *       |  | sent, or failed     | what it needs is compacted
 *       v  |                     v
 *     SNAPSHOT <-----------------+       (and -> REPLICATE when it says that it has it)
 *
 * PROBE finds the place where the logs part, one message at a time; the refusal names a hint, and
 * both sides skip whole terms. REPLICATE sends ahead without waiting, up to inflight_max messages
 * and inflight_bytes; what is lost shows as a refusal of what comes next, or at the next heartbeat.
 */
#include "raft/raft_internal.h"

/* ---- peers ---- */

void
raft_peer_reset(struct raft *raft, struct raft_peer *peer)
{
    peer->match = 0;
    peer->next = raft->last_index + 1;
    peer->snapshot_index = 0;
    peer->round = 0;
    peer->inflight_bytes = 0;
    peer->inflight_start = peer->inflight_count = 0;
    peer->state = RAFT_PEER_PROBE;
    peer->vote = 0;
    peer->active = true; /* it has until the next look at the quorum */
    peer->paused = false;
}

static void
peer_state_set(struct raft_peer *peer, enum raft_peer_state state)
{
    peer->state = state;
    peer->paused = false;
    peer->inflight_bytes = 0;
    peer->inflight_start = peer->inflight_count = 0;
}

static void
inflight_add(struct raft *raft, struct raft_peer *peer, u64 index, u64 bytes)
{
    u32 at = (peer->inflight_start + peer->inflight_count) % raft->options.inflight_max;
    peer->inflight[at] = (struct raft_inflight){index, bytes};
    peer->inflight_count++;
    peer->inflight_bytes += bytes;
}

static void
inflight_drop_first(struct raft *raft, struct raft_peer *peer)
{
    peer->inflight_bytes -= peer->inflight[peer->inflight_start].bytes;
    peer->inflight_start = (u16)((peer->inflight_start + 1u) % raft->options.inflight_max);
    peer->inflight_count--;
}

static bool
inflight_full(const struct raft *raft, const struct raft_peer *peer)
{
    return peer->inflight_count == raft->options.inflight_max ||
           (peer->inflight_count > 0 && peer->inflight_bytes >= raft->options.inflight_bytes);
}

/* ---- sending ---- */

static void
send_snapshot(struct raft *raft, struct raft_peer *peer, struct raft_ready *out)
{
    if (!peer->active) return; /* nobody there to take it */
    struct raft_snapshot snapshot;
    status st = raft->options.storage->snapshot(raft->options.storage_context, &snapshot);
    if (!ok(st)) return; /* at the next heartbeat's answer */
    struct raft_message *message = raft_emit(raft, out, RAFT_SNAPSHOT, peer->id);
    if (message == NULL) return;
    message->index = snapshot.index;
    message->log_term = snapshot.term;
    message->config = snapshot.config;
    peer_state_set(peer, RAFT_PEER_SNAPSHOT);
    peer->snapshot_index = snapshot.index;
}

/* One message; false when none went. */
static bool
send_one(struct raft *raft, struct raft_peer *peer, bool even_empty, struct raft_ready *out)
{
    const struct raft_storage *storage = raft->options.storage;
    if (peer->state == RAFT_PEER_SNAPSHOT || peer->paused) return false;
    bool nothing = peer->next > raft->last_index;
    bool full = peer->state == RAFT_PEER_REPLICATE && inflight_full(raft, peer);
    if ((nothing || full) && !even_empty) return false;
    if (out->message_count == out->messages_max) return false;

    u64 term = raft_term_of(raft, peer->next - 1);
    if (term == 0 && peer->next > 1) {
        send_snapshot(raft, peer, out);
        return false;
    }
    struct raft_entry *entries = out->entries + out->entry_count;
    u32 count = 0;
    if (!nothing && !full) {
        u32 room = out->entries_max - out->entry_count;
        if (room == 0) return false;
        status st = storage->entries(raft->options.storage_context, peer->next,
                                     raft->options.message_bytes, room, entries, &count);
        if (status_is(st, ST_NOT_FOUND)) {
            send_snapshot(raft, peer, out);
            return false;
        }
        if (!ok(st)) return false; /* not in memory: at the next heartbeat's answer */
    }
    struct raft_message *message = raft_emit(raft, out, RAFT_APPEND, peer->id);
    CHECK(message != NULL);
    message->index = peer->next - 1;
    message->log_term = term;
    message->commit = raft->commit;
    message->entries = entries;
    message->entry_count = count;
    out->entry_count += count;
    if (peer->state == RAFT_PEER_PROBE) {
        peer->paused = true;
    } else if (count > 0) {
        u64 bytes = 0;
        for (u32 i = 0; i < count; i++)
            bytes += entries[i].data.size;
        peer->next += count;
        inflight_add(raft, peer, peer->next - 1, bytes);
    }
    return count > 0 && peer->state == RAFT_PEER_REPLICATE;
}

void
raft_send_append(struct raft *raft, struct raft_peer *peer, bool even_empty, struct raft_ready *out)
{
    if (peer->id == raft->options.id) return;
    while (send_one(raft, peer, even_empty, out))
        even_empty = false;
}

static void
broadcast(struct raft *raft, bool even_empty, struct raft_ready *out)
{
    for (u32 i = 0; i < raft->peer_count; i++)
        raft_send_append(raft, &raft->peers[i], even_empty, out);
}

void
raft_broadcast_append(struct raft *raft, struct raft_ready *out)
{
    broadcast(raft, false, out);
}

void
raft_broadcast_heartbeat(struct raft *raft, bool quiesce, struct raft_ready *out)
{
    for (u32 i = 0; i < raft->peer_count; i++) {
        const struct raft_peer *peer = &raft->peers[i];
        if (peer->id == raft->options.id) continue;
        struct raft_message *message = raft_emit(raft, out, RAFT_HEARTBEAT, peer->id);
        if (message == NULL) continue;
        /* Never more than what the peer is known to hold: its log may differ behind that. */
        message->commit = MIN(peer->match, raft->commit);
        message->round = raft->round;
        message->quiesce = quiesce;
        message->index = raft->last_index;
        message->log_term = raft->last_term;
    }
}

/* ---- leading ---- */

void
raft_become_leader(struct raft *raft, struct raft_ready *out)
{
    raft->role = RAFT_LEADER;
    raft->leader = raft->options.id;
    raft->election_elapsed = raft->heartbeat_elapsed = 0;
    raft->uncommitted_bytes = 0;
    raft->transfer_target = 0;
    raft->lease_lost = false;
    raft->lease_until_ns = 0;
    raft->round = 0;
    raft->read_count = 0;
    for (u32 i = 0; i < raft->peer_count; i++)
        raft_peer_reset(raft, &raft->peers[i]);
    /* What earlier terms left is committed together with this (S3). */
    struct raft_entry noop = {
        .index = raft->last_index + 1, .term = raft->term, .kind = RAFT_ENTRY_NOOP};
    status st = raft_log_append(raft, &noop, 1, out);
    if (!ok(st)) {
        raft_become_follower(raft, raft->term, 0, out);
        return;
    }
    raft_broadcast_append(raft, out);
}

static void
give_up(struct raft *raft, struct raft_ready *out)
{
    raft_become_follower(raft, raft->term, 0, out);
}

void
raft_tick_leader(struct raft *raft, u64 now_ns, struct raft_ready *out)
{
    u32 ticks = raft->options.election_ticks;
    if (raft->transfer_target != 0 && ++raft->transfer_elapsed >= ticks) raft->transfer_target = 0;
    /* Its disk has stopped: somebody else may have one that works. */
    if (raft->stall_elapsed >= 2 * ticks && raft->peer_count > 1) {
        give_up(raft, out);
        return;
    }
    if (++raft->election_elapsed >= ticks) {
        raft->election_elapsed = 0;
        if (!raft_quorum_active(raft)) {
            give_up(raft, out);
            return;
        }
        for (u32 i = 0; i < raft->peer_count; i++)
            raft->peers[i].active = false;
    }
    raft_leave_joint_if_committed(raft, out);
    if (++raft->heartbeat_elapsed >= raft->options.heartbeat_ticks) {
        raft->heartbeat_elapsed = 0;
        raft_round_start(raft, now_ns);
        raft_broadcast_heartbeat(raft, false, out);
        raft_reads_advance(raft, out); /* a group of one */
    }
}

/* Bytes of what has just been committed no longer count against the limit. */
static void
uncommitted_reduce(struct raft *raft, u64 first, u64 last)
{
    if (last == raft->last_index) {
        raft->uncommitted_bytes = 0;
        return;
    }
    const struct raft_storage *storage = raft->options.storage;
    struct raft_entry entries[16];
    while (first <= last && raft->uncommitted_bytes > 0) {
        u32 count = 0;
        u32 most = (u32)MIN(last - first + 1, ARRAY_COUNT(entries));
        status st = storage->entries(raft->options.storage_context, first, UINT64_MAX, most,
                                     entries, &count);
        if (!ok(st) || count == 0) return; /* too much is counted until all is committed */
        for (u32 i = 0; i < count; i++)
            if (entries[i].kind == RAFT_ENTRY_DATA && entries[i].term == raft->term)
                raft->uncommitted_bytes -= MIN(raft->uncommitted_bytes, entries[i].data.size);
        first += count;
    }
}

void
raft_maybe_commit(struct raft *raft, struct raft_ready *out)
{
    u64 index = raft_quorum(raft, RAFT_QUORUM_MATCH);
    if (index <= raft->commit || raft_term_of(raft, index) != raft->term) return; /* S3 */
    uncommitted_reduce(raft, raft->commit + 1, index);
    raft_commit_to(raft, index);
    broadcast(raft, true, out); /* the news */
    raft_leave_joint_if_committed(raft, out);
    /* Led from outside until the configuration without it was committed. */
    if (raft->config_index <= raft->commit && !raft_is_voter(raft)) give_up(raft, out);
}

/* ---- answers ---- */

static void
tell_to_campaign(struct raft *raft, const struct raft_peer *peer, struct raft_ready *out)
{
    raft->lease_lost = true; /* S8: the message may arrive at any time in this term */
    raft_emit(raft, out, RAFT_TIMEOUT_NOW, peer->id);
}

/* The last entry up to index whose term is not above term: where the logs may still agree. */
static u64
agree_at(const struct raft *raft, u64 index, u64 term)
{
    index = MIN(index, raft->last_index);
    while (index > 0 && raft_term_of(raft, index) > term)
        index--;
    return index;
}

static void
append_refused(struct raft *raft, struct raft_peer *peer, const struct raft_message *message,
               struct raft_ready *out)
{
    switch ((enum raft_peer_state)peer->state) {
    case RAFT_PEER_SNAPSHOT:
        return;
    case RAFT_PEER_REPLICATE:
        if (message->index <= peer->match) return; /* late */
        peer_state_set(peer, RAFT_PEER_PROBE);
        peer->next = peer->match + 1;
        break;
    case RAFT_PEER_PROBE:
        if (message->index != peer->next - 1) return; /* late */
        peer->next = MIN(message->index, agree_at(raft, message->hint, message->log_term) + 1);
        peer->next = MAX(peer->next, peer->match + 1);
        peer->paused = false;
        break;
    }
    raft_send_append(raft, peer, true, out);
}

void
raft_append_answered(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    struct raft_peer *peer = raft_peer_find(raft, message->from);
    if (peer == NULL) return;
    peer->active = true;
    if (message->reject) {
        append_refused(raft, peer, message, out);
        return;
    }
    if (message->index > raft->last_index) return; /* it cannot hold what is not there */
    if (message->index < peer->match) return;      /* late */
    if (message->index == peer->match && peer->state != RAFT_PEER_PROBE) return;
    peer->match = message->index;
    peer->next = MAX(peer->next, peer->match + 1);
    switch ((enum raft_peer_state)peer->state) {
    case RAFT_PEER_SNAPSHOT:
        if (peer->match < peer->snapshot_index) break;
        /* fall through */
    case RAFT_PEER_PROBE:
        peer_state_set(peer, RAFT_PEER_REPLICATE);
        peer->next = peer->match + 1;
        break;
    case RAFT_PEER_REPLICATE:
        while (peer->inflight_count > 0 &&
               peer->inflight[peer->inflight_start].index <= peer->match)
            inflight_drop_first(raft, peer);
        break;
    }
    u64 id = peer->id;
    raft_maybe_commit(raft, out);
    if (raft->role != RAFT_LEADER) return;
    peer = raft_peer_find(raft, id); /* a configuration may have been left */
    if (peer == NULL) return;
    raft_send_append(raft, peer, false, out);
    if (id == raft->transfer_target && peer->match == raft->last_index)
        tell_to_campaign(raft, peer, out);
}

void
raft_heartbeat_answered(struct raft *raft, const struct raft_message *message,
                        struct raft_ready *out)
{
    struct raft_peer *peer = raft_peer_find(raft, message->from);
    if (peer == NULL) return;
    peer->active = true;
    peer->paused = false;
    if (message->round <= raft->round) peer->round = MAX(peer->round, message->round);
    if (peer->state == RAFT_PEER_REPLICATE && inflight_full(raft, peer))
        inflight_drop_first(raft, peer);
    if (peer->match < raft->last_index || peer->state == RAFT_PEER_PROBE)
        raft_send_append(raft, peer, true, out);
    raft_reads_advance(raft, out);
}

void
raft_snapshot_sent(struct raft *raft, u64 id, bool done, struct raft_ready *out)
{
    raft_begin(out);
    struct raft_peer *peer = raft_peer_find(raft, id);
    if (raft->role == RAFT_LEADER && peer != NULL && peer->state == RAFT_PEER_SNAPSHOT) {
        u64 next = done ? MAX(peer->match, peer->snapshot_index) + 1 : peer->match + 1;
        peer_state_set(peer, RAFT_PEER_PROBE);
        peer->next = MIN(next, raft->last_index + 1);
        peer->paused = true; /* it says itself that it has it, or shows it after a heartbeat */
    }
    raft_end(raft, out);
}

/* ---- requests of the caller ---- */

status
raft_transfer(struct raft *raft, u64 target, struct raft_ready *out)
{
    raft_begin(out);
    if (raft->role != RAFT_LEADER) return ST_CONFLICT;
    struct raft_peer *peer = raft_peer_find(raft, target);
    if (target == raft->options.id || peer == NULL || !(peer->roles & RAFT_VOTER))
        return ST_INVALID;
    if (target != raft->transfer_target) {
        raft->quiescent = false;
        raft->transfer_target = target;
        raft->transfer_elapsed = 0;
        if (peer->match == raft->last_index)
            tell_to_campaign(raft, peer, out);
        else
            raft_send_append(raft, peer, false, out);
    }
    raft_end(raft, out);
    return ST_OK;
}

bool
raft_quiesce(struct raft *raft, struct raft_ready *out)
{
    raft_begin(out);
    if (raft->role != RAFT_LEADER || raft->quiescent) return raft->quiescent;
    if (raft->commit != raft->last_index || raft->persisted != raft->last_index) return false;
    if (raft->applying != raft->commit || raft_term_of(raft, raft->commit) != raft->term)
        return false;
    if (raft->read_count > 0 || raft->transfer_target != 0 || raft_config_is_joint(raft))
        return false;
    for (u32 i = 0; i < raft->peer_count; i++) {
        const struct raft_peer *peer = &raft->peers[i];
        if (peer->id != raft->options.id && peer->match != raft->last_index) return false;
    }
    raft_broadcast_heartbeat(raft, true, out);
    raft->quiescent = true;
    raft_end(raft, out);
    return true;
}
