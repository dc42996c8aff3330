/* SPDX-License-Identifier: MIT
 *
 * raft_follower.c -- what a replica takes from its leader: entries, how far they are committed, and
 * snapshots. Bytes of a peer are never asserted on: what no right leader sends is ST_CORRUPT, and
 * nothing has changed.
 */
#include "raft/raft_internal.h"

static void
leader_is_heard(struct raft *raft, u64 leader, struct raft_ready *out)
{
    if (raft->role != RAFT_FOLLOWER) raft_become_follower(raft, raft->term, leader, out);
    raft->leader = leader;
    raft->election_elapsed = 0;
    raft->heard_elapsed = 0;
}

static void
accept(struct raft *raft, u64 leader, u64 index, struct raft_ready *out)
{
    struct raft_message *reply = raft_emit(raft, out, RAFT_APPEND_REPLY, leader);
    if (reply == NULL) return;
    reply->index = index;
    reply->after = index > raft->persisted ? RAFT_AFTER_NEWEST : 0; /* S2 */
}

/* The hint: the last of our entries that may agree, which is none of a later term than the one the
 * leader has there. */
static void
refuse(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    struct raft_message *reply = raft_emit(raft, out, RAFT_APPEND_REPLY, message->from);
    if (reply == NULL) return;
    u64 hint = MIN(message->index, raft->last_index);
    while (hint > raft->commit && raft_term_of(raft, hint) > message->log_term)
        hint--;
    reply->reject = true;
    reply->index = message->index;
    reply->hint = hint;
    reply->log_term = raft_term_of(raft, hint);
}

/* The entries from `from` on are new. */
static status
append_new(struct raft *raft, const struct raft_entry *entries, u32 count, struct raft_ready *out)
{
    u32 members;
    /* What is committed stays, and so does the configuration before the last one (S4). */
    if (entries[0].index <= raft->commit || entries[0].index <= raft->previous_index)
        return ST_CORRUPT;
    for (u32 i = 0; i < count; i++) {
        if (entries[i].kind == RAFT_ENTRY_CONFIG) {
            status st = raft_config_decode(entries[i].data, raft->options.peers_max, raft->scratch,
                                           &members);
            if (!ok(st)) return st;
        } else if (entries[i].data.size > raft->options.entry_bytes_max) {
            return ST_CORRUPT;
        }
    }
    status st = raft_log_append(raft, entries, count, out);
    if (!ok(st)) return st;
    for (u32 i = 0; i < count; i++) {
        if (entries[i].kind != RAFT_ENTRY_CONFIG) continue;
        st = raft_config_decode(entries[i].data, raft->options.peers_max, raft->scratch, &members);
        CHECK(ok(st)); /* the same bytes as a moment ago */
        raft_config_adopt(raft, raft->scratch, members, entries[i].index);
    }
    return ST_OK;
}

status
raft_append_came(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    leader_is_heard(raft, message->from, out);
    if (raft->installing) return ST_OK;
    if (message->index < raft->commit) {
        accept(raft, message->from, raft->commit, out);
        return ST_OK;
    }
    if (message->index > raft->last_index ||
        raft_term_of(raft, message->index) != message->log_term) {
        refuse(raft, message, out);
        return ST_OK;
    }
    /* What is there already stays: the message may be old, and the log longer. */
    u32 known = 0;
    while (known < message->entry_count && message->entries[known].index <= raft->last_index &&
           raft_term_of(raft, message->entries[known].index) == message->entries[known].term)
        known++;
    if (known < message->entry_count) {
        status st = append_new(raft, message->entries + known, message->entry_count - known, out);
        if (!ok(st)) return st;
    }
    u64 last = message->index + message->entry_count;
    raft_commit_to(raft, MIN(message->commit, last));
    accept(raft, message->from, last, out);
    return ST_OK;
}

void
raft_heartbeat_came(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    leader_is_heard(raft, message->from, out);
    if (!raft->installing) raft_commit_to(raft, message->commit);
    if (message->quiesce && message->index == raft->last_index &&
        message->log_term == raft->last_term && raft->commit == raft->last_index &&
        raft->persisted == raft->last_index) {
        raft->quiescent = true;
        return;
    }
    struct raft_message *reply = raft_emit(raft, out, RAFT_HEARTBEAT_REPLY, message->from);
    if (reply != NULL) reply->round = message->round;
}

status
raft_snapshot_came(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    u32 members;
    status st =
        raft_config_decode(message->config, raft->options.peers_max, raft->scratch, &members);
    if (!ok(st) || message->index == 0 || message->log_term == 0) return ST_CORRUPT;
    if (message->log_term > message->term) return ST_CORRUPT;
    leader_is_heard(raft, message->from, out);
    if (raft->installing) return ST_OK;
    if (message->index <= raft->commit) {
        accept(raft, message->from, raft->commit, out);
        return ST_OK;
    }
    if (raft_term_of(raft, message->index) == message->log_term) {
        /* All of it is in the log. */
        raft_commit_to(raft, message->index);
        accept(raft, message->from, message->index, out);
        return ST_OK;
    }
    raft->installing = true;
    raft->installing_index = message->index;
    raft->installing_term = message->log_term;
    out->install = true;
    out->snapshot = (struct raft_snapshot){message->index, message->log_term, message->config};
    return ST_OK;
}

status
raft_snapshot_installed(struct raft *raft, const struct raft_snapshot *snapshot, bool done,
                        struct raft_ready *out)
{
    raft_begin(out);
    if (!raft->installing || snapshot->index != raft->installing_index ||
        snapshot->term != raft->installing_term)
        return ST_CONFLICT;
    u32 members = 0;
    status st =
        raft_config_decode(snapshot->config, raft->options.peers_max, raft->scratch, &members);
    if (done && !ok(st)) return st;
    raft->installing = false;
    if (done) {
        const struct raft_storage *storage = raft->options.storage;
        CHECK(storage->last_index(raft->options.storage_context) == snapshot->index);
        CHECK(snapshot->index > raft->commit);
        raft->last_index = raft->commit = raft->applying = snapshot->index;
        raft->last_term = snapshot->term;
        raft->persisted = snapshot->index;
        /* Writes under way tell nothing about the log behind the snapshot. */
        raft->truncate_sequence = raft->sequence + 1;
        raft->truncate_index = MIN(raft->truncate_index, snapshot->index + 1);
        raft_config_adopt(raft, raft->scratch, members, snapshot->index);
        raft_members(raft, raft->previous);
        raft->previous_count = raft->peer_count;
        raft->previous_index = snapshot->index;
        if (raft->leader != 0 && raft->role == RAFT_FOLLOWER)
            accept(raft, raft->leader, snapshot->index, out);
    }
    raft_end(raft, out);
    return ST_OK;
}
