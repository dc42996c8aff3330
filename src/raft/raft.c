/* SPDX-License-Identifier: MIT
 *
 * raft.c -- the inputs of a replica: what each leads to is in raft_election.c, raft_leader.c,
 * raft_follower.c, raft_read.c, raft_config.c. Here as well: the log's end, what of it is durable,
 * and the batch of effects.
 *
 * Durability in flight. Each batch with something to write gets the next sequence, and the caller
 * reports sequences in order. A message names the sequence that it waits for; so an entry that was
 * written, voided by a truncation and written again is never acknowledged for the first writing
 * while the disk may still end up without it (truncate_sequence, truncate_index).
 */
#include "raft/raft_internal.h"

#include "base/fault.h"
#include "base/prng.h"

/* ---- memory ---- */

static size_t
part(size_t *used, size_t size)
{
    size_t start = (size_t)align_up(*used, 16);
    *used = start + size;
    return start;
}

struct layout {
    size_t peers, peers_spare, inflight, previous, scratch, reads, config_bytes, size;
};

static struct layout
layout_of(const struct raft_options *options)
{
    struct layout at;
    size_t peers = options->peers_max, used = 0;
    at.peers = part(&used, peers * sizeof(struct raft_peer));
    at.peers_spare = part(&used, peers * sizeof(struct raft_peer));
    at.inflight = part(&used, peers * options->inflight_max * sizeof(struct raft_inflight));
    at.previous = part(&used, peers * sizeof(struct raft_member));
    at.scratch = part(&used, peers * sizeof(struct raft_member));
    at.reads = part(&used, options->reads_max * sizeof(struct raft_read));
    at.config_bytes = part(&used, RAFT_CONFIG_BYTES(peers));
    at.size = (size_t)align_up(used, 16);
    return at;
}

size_t
raft_memory_bytes(const struct raft_options *options)
{
    return layout_of(options).size;
}

static status
restore_config(struct raft *raft, struct bytes config, u64 index)
{
    u32 count;
    status st = raft_config_decode(config, raft->options.peers_max, raft->scratch, &count);
    if (ok(st)) raft_config_adopt(raft, raft->scratch, count, index);
    return st;
}

/* The configurations that the log holds behind the snapshot: the last two stay (S4). */
static status
restore_configs(struct raft *raft)
{
    const struct raft_storage *storage = raft->options.storage;
    struct raft_entry entries[16];
    u64 next = storage->first_index(raft->options.storage_context);
    while (next <= raft->last_index) {
        u32 count = 0;
        status st = storage->entries(raft->options.storage_context, next, UINT64_MAX,
                                     ARRAY_COUNT(entries), entries, &count);
        if (!ok(st)) return st;
        if (count == 0) return ST_CORRUPT;
        for (u32 i = 0; i < count; i++) {
            if (entries[i].index != next + i) return ST_CORRUPT;
            if (entries[i].kind != RAFT_ENTRY_CONFIG) continue;
            st = restore_config(raft, entries[i].data, entries[i].index);
            if (!ok(st)) return st;
        }
        next += count;
    }
    return ST_OK;
}

status
raft_init(struct raft *raft, const struct raft_options *options, void *memory,
          const struct raft_restored *restored)
{
    CHECK(options->id != 0);
    CHECK(options->peers_max > 0 && options->peers_max <= RAFT_MEMBERS_MAX);
    CHECK(options->heartbeat_ticks > 0 && options->heartbeat_ticks < options->election_ticks);
    CHECK(options->inflight_max > 0 && options->inflight_max <= UINT16_MAX);

    struct layout at = layout_of(options);
    u8 *base = memory;
    memset(base, 0, at.size);
    *raft = (struct raft){
        .options = *options,
        .scratch = (struct raft_member *)(base + at.scratch),
        .config_bytes = base + at.config_bytes,
        .peers = (struct raft_peer *)(base + at.peers),
        .peers_spare = (struct raft_peer *)(base + at.peers_spare),
        .previous = (struct raft_member *)(base + at.previous),
        .reads = (struct raft_read *)(base + at.reads),
        .term = restored->hard.term,
        .vote = restored->hard.vote,
        .truncate_index = UINT64_MAX,
        .random = options->seed,
    };
    /* Each slot has its ring for good; they change places with their peers. */
    for (u32 i = 0; i < options->peers_max; i++)
        raft->peers[i].inflight =
            (struct raft_inflight *)(base + at.inflight) + (size_t)i * options->inflight_max;

    raft->last_index = options->storage->last_index(options->storage_context);
    raft->last_term = raft_term_of(raft, raft->last_index);
    if (raft->last_index > 0 && raft->last_term == 0) return ST_CORRUPT;
    /* A log of a later term than the hard state: it was written first, and that is a lie (S1). */
    if (raft->term < raft->last_term || raft->term > RAFT_NUMBER_MAX) return ST_CORRUPT;
    if (restored->applied > raft->last_index || restored->applied < restored->snapshot.index)
        return ST_CORRUPT;
    raft->persisted = raft->last_index;
    raft->commit = restored->applied;
    raft->applying = restored->applied;
    if (restored->snapshot.index > 0) {
        status st = restore_config(raft, restored->snapshot.config, restored->snapshot.index);
        if (!ok(st)) return st;
    }
    status st = restore_configs(raft);
    if (!ok(st)) return st;
    raft_reset_timeout(raft);
    return ST_OK;
}

/* ---- the batch of effects ---- */

void
raft_begin(struct raft_ready *out)
{
    out->sequence = out->persist_index = 0;
    out->hard_changed = false;
    out->hard = (struct raft_hard_state){0};
    out->append_first = out->append_last = 0;
    out->apply_first = out->apply_last = 0;
    out->install = false;
    out->snapshot = (struct raft_snapshot){0};
    out->message_count = out->entry_count = out->read_count = out->dropped = 0;
}

void
raft_end(struct raft *raft, struct raft_ready *out)
{
    if (raft->hard_dirty || out->append_first != 0) {
        out->sequence = ++raft->sequence;
        out->persist_index = raft->last_index;
        if (raft->hard_dirty) {
            out->hard_changed = true;
            out->hard = (struct raft_hard_state){raft->term, raft->vote};
            raft->hard_sequence = raft->sequence;
            raft->hard_dirty = false;
        }
    }
    /* S1: whatever is said in a term that is not durable yet waits until it is. */
    u64 least = raft->hard_sequence > raft->sequence_persisted ? raft->hard_sequence : 0;
    for (u32 i = 0; i < out->message_count; i++) {
        struct raft_message *message = &out->messages[i];
        if (message->after == RAFT_AFTER_NEWEST)
            message->after = raft->sequence > raft->sequence_persisted ? raft->sequence : 0;
        message->after = MAX(message->after, least);
    }
    /* What is applied is durable here as well: a restart finds it in the log. */
    u64 apply = MIN(raft->commit, raft->persisted);
    if (apply > raft->applying && !raft->installing) {
        out->apply_first = raft->applying + 1;
        out->apply_last = apply;
        raft->applying = apply;
    }
    DCHECK(raft_check(raft));
    AUDIT("raft.ready.made", raft_check(raft));
}

struct raft_message *
raft_emit(struct raft *raft, struct raft_ready *out, u8 type, u64 to)
{
    if (out->message_count == out->messages_max) {
        out->dropped++;
        return NULL;
    }
    struct raft_message *message = &out->messages[out->message_count++];
    *message =
        (struct raft_message){.type = type, .from = raft->options.id, .to = to, .term = raft->term};
    return message;
}

/* ---- the log's end ---- */

u64
raft_term_of(const struct raft *raft, u64 index)
{
    if (index == raft->last_index && raft->last_term != 0) return raft->last_term;
    if (index == 0) return 0;
    u64 term = 0;
    status st = raft->options.storage->term(raft->options.storage_context, index, &term);
    return ok(st) ? term : 0;
}

void
raft_set_hard(struct raft *raft, u64 term, u64 vote)
{
    if (raft->term == term && raft->vote == vote) return;
    CHECK(term > raft->term || (term == raft->term && raft->vote == 0));
    raft->term = term;
    raft->vote = vote;
    raft->hard_dirty = true;
}

void
raft_commit_to(struct raft *raft, u64 index)
{
    index = MIN(index, raft->last_index);
    if (index > raft->commit) raft->commit = index;
}

status
raft_log_append(struct raft *raft, const struct raft_entry *entries, u32 count,
                struct raft_ready *out)
{
    CHECK(count > 0 && entries[0].index > raft->commit);
    CHECK(entries[0].index <= raft->last_index + 1);
    status st = raft->options.storage->append(raft->options.storage_context, entries, count);
    if (!ok(st)) return st;
    u64 first = entries[0].index;
    if (first <= raft->last_index) {
        raft->persisted = MIN(raft->persisted, first - 1);
        raft->truncate_index = MIN(raft->truncate_index, first);
        raft->truncate_sequence = raft->sequence + 1;
        raft_config_truncate(raft, first);
    }
    raft->last_index = entries[count - 1].index;
    raft->last_term = entries[count - 1].term;
    out->append_first = out->append_first == 0 ? first : MIN(out->append_first, first);
    out->append_last = raft->last_index;
    return ST_OK;
}

/* ---- inputs ---- */

void
raft_tick(struct raft *raft, u64 now_ns, struct raft_ready *out)
{
    raft_begin(out);
    if (!raft->quiescent) {
        raft->stall_elapsed =
            raft->sequence > raft->sequence_persisted ? raft->stall_elapsed + 1 : 0;
        if (raft->role == RAFT_LEADER)
            raft_tick_leader(raft, now_ns, out);
        else
            raft_tick_election(raft, out);
    }
    raft_end(raft, out);
}

void
raft_persisted(struct raft *raft, u64 sequence, u64 persist_index, struct raft_ready *out)
{
    raft_begin(out);
    CHECK(sequence <= raft->sequence);
    if (sequence > raft->sequence_persisted) {
        raft->stall_elapsed = 0;
        raft->sequence_persisted = sequence;
        if (sequence < raft->truncate_sequence)
            persist_index = MIN(persist_index, raft->truncate_index - 1);
        else
            raft->truncate_index = UINT64_MAX;
        raft->persisted = MAX(raft->persisted, persist_index);
        CHECK(raft->persisted <= raft->last_index);
        raft_own_vote_durable(raft, out);
        if (raft->role == RAFT_LEADER) raft_maybe_commit(raft, out);
    }
    raft_end(raft, out);
}

static bool
is_from_leader(u8 type)
{
    return type == RAFT_APPEND || type == RAFT_HEARTBEAT || type == RAFT_SNAPSHOT;
}

/* What no right peer sends, whatever our state. */
static status
message_check(const struct raft *raft, const struct raft_message *message)
{
    if (message->to != raft->options.id || message->from == 0) return ST_INVALID;
    if (message->from == raft->options.id) return ST_INVALID;
    if (message->type < RAFT_PRE_VOTE || message->type > RAFT_READ_REPLY) return ST_CORRUPT;
    if (message->term == 0 || message->term > RAFT_NUMBER_MAX) return ST_CORRUPT;
    if (message->index > RAFT_NUMBER_MAX) return ST_CORRUPT;
    if (message->type == RAFT_APPEND && (message->log_term == 0) != (message->index == 0))
        return ST_CORRUPT;
    u64 term = message->log_term;
    for (u32 i = 0; i < message->entry_count; i++) {
        const struct raft_entry *entry = &message->entries[i];
        if (entry->index != message->index + 1 + i) return ST_CORRUPT;
        if (entry->term < term || entry->term == 0 || entry->term > message->term)
            return ST_CORRUPT;
        if (entry->kind >= RAFT_ENTRY_KIND_COUNT) return ST_CORRUPT;
        term = entry->term;
    }
    /* Two leaders in one term. */
    if (message->term == raft->term && is_from_leader(message->type) &&
        (raft->role == RAFT_LEADER || (raft->leader != 0 && raft->leader != message->from)))
        return ST_CORRUPT;
    return ST_OK;
}

/* A message of an older term: who sent it learns that there is a newer one. That is what brings a
 * leader down whom a replica of a later term cannot follow. */
static void
stale(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    u8 type = message->type == RAFT_PRE_VOTE  ? RAFT_PRE_VOTE_REPLY
              : message->type == RAFT_VOTE    ? RAFT_VOTE_REPLY
              : is_from_leader(message->type) ? RAFT_HEARTBEAT_REPLY
                                              : 0;
    if (type == 0) return;
    struct raft_message *reply = raft_emit(raft, out, type, message->from);
    if (reply != NULL) reply->reject = true;
}

static status
step_current(struct raft *raft, const struct raft_message *message, u64 now_ns,
             struct raft_ready *out)
{
    switch ((enum raft_message_type)message->type) {
    case RAFT_PRE_VOTE:
    case RAFT_VOTE:
        raft_vote_asked(raft, message, out);
        return ST_OK;
    case RAFT_PRE_VOTE_REPLY:
    case RAFT_VOTE_REPLY:
        raft_vote_told(raft, message, out);
        return ST_OK;
    case RAFT_APPEND:
        return raft_append_came(raft, message, out);
    case RAFT_HEARTBEAT:
        raft_heartbeat_came(raft, message, out);
        return ST_OK;
    case RAFT_SNAPSHOT:
        return raft_snapshot_came(raft, message, out);
    case RAFT_APPEND_REPLY:
        if (raft->role == RAFT_LEADER) raft_append_answered(raft, message, out);
        return ST_OK;
    case RAFT_HEARTBEAT_REPLY:
        if (raft->role != RAFT_LEADER || message->reject) return ST_OK;
        raft_heartbeat_answered(raft, message, out);
        /* Reads that came during the round now get their own. */
        if (raft->read_count > 0 && raft->reads[raft->read_count - 1].round > raft->round &&
            raft_quorum(raft, RAFT_QUORUM_ROUND) >= raft->round) {
            raft_round_start(raft, now_ns);
            raft_broadcast_heartbeat(raft, false, out);
        }
        return ST_OK;
    case RAFT_TIMEOUT_NOW:
        /* Not while something is being written: the log that it would campaign with could be lost.
         */
        if (raft->role != RAFT_LEADER && raft_may_campaign(raft)) raft_campaign(raft, true, out);
        return ST_OK;
    case RAFT_READ:
        raft_read_asked(raft, message, now_ns, out);
        return ST_OK;
    case RAFT_READ_REPLY:
        if (out->read_count == out->reads_max) return ST_OK;
        out->reads[out->read_count++] = (struct raft_read_state){
            message->round, message->index, message->reject ? ST_CONFLICT : ST_OK};
        return ST_OK;
    }
    return ST_CORRUPT;
}

status
raft_step(struct raft *raft, const struct raft_message *message, u64 now_ns, struct raft_ready *out)
{
    raft_begin(out);
    status st = message_check(raft, message);
    if (!ok(st)) return st;

    /* A leader that sleeps is not woken by late answers of those whom it told to sleep. */
    bool late = raft->role == RAFT_LEADER && !message->reject && message->term == raft->term &&
                (message->type == RAFT_HEARTBEAT_REPLY || message->type == RAFT_APPEND_REPLY);
    if (raft->quiescent && !late && !(message->type == RAFT_HEARTBEAT && message->quiesce)) {
        raft->quiescent = false;
        raft->heartbeat_elapsed = raft->options.heartbeat_ticks; /* a leader speaks up next tick */
    }
    bool asks = message->type == RAFT_PRE_VOTE || message->type == RAFT_VOTE;
    bool granted = message->type == RAFT_PRE_VOTE_REPLY && !message->reject;
    if (asks && !message->force &&
        (raft->role == RAFT_LEADER || raft->heard_elapsed < raft->options.election_ticks)) {
        /* S6. A candidate with an older term is told ours, or it would never catch up. */
        if (message->term < raft->term) stale(raft, message, out);
    } else if (message->term < raft->term) {
        stale(raft, message, out);
    } else {
        if (message->term > raft->term && message->type != RAFT_PRE_VOTE && !granted)
            raft_become_follower(raft, message->term,
                                 is_from_leader(message->type) ? message->from : 0, out);
        st = step_current(raft, message, now_ns, out);
    }
    raft_end(raft, out);
    return st;
}

status
raft_propose(struct raft *raft, struct raft_entry *entries, u32 count, struct raft_ready *out)
{
    raft_begin(out);
    if (raft->role != RAFT_LEADER) return ST_CONFLICT;
    if (raft->transfer_target != 0) return ST_OVERLOADED;
    if (count == 0) return ST_INVALID;
    u64 bytes = 0;
    for (u32 i = 0; i < count; i++) {
        if (entries[i].kind != RAFT_ENTRY_DATA) return ST_INVALID;
        if (entries[i].data.size > raft->options.entry_bytes_max) return ST_TOO_LARGE;
        bytes += entries[i].data.size;
    }
    /* One proposal goes whatever its size, or a small limit would refuse it for ever. */
    if (raft->uncommitted_bytes > 0 &&
        raft->uncommitted_bytes + bytes > raft->options.uncommitted_bytes)
        return ST_OVERLOADED;
    for (u32 i = 0; i < count; i++) {
        entries[i].index = raft->last_index + 1 + i;
        entries[i].term = raft->term;
    }
    status st = raft_log_append(raft, entries, count, out);
    if (!ok(st)) return st;
    raft->quiescent = false;
    raft->uncommitted_bytes += bytes;
    raft_broadcast_append(raft, out);
    raft_end(raft, out);
    return ST_OK;
}

void
raft_wake(struct raft *raft, bool leader_dead, struct raft_ready *out)
{
    raft_begin(out);
    if (raft->quiescent) raft->heartbeat_elapsed = raft->options.heartbeat_ticks;
    raft->quiescent = false;
    if (leader_dead && raft->role == RAFT_FOLLOWER) {
        /* As if the shortest timeout had passed; who goes first is still drawn. */
        raft->heard_elapsed = raft->options.election_ticks;
        raft->election_elapsed = MAX(raft->election_elapsed, raft->options.election_ticks);
        raft->leader = 0;
    }
    raft_end(raft, out);
}

const char *
raft_role_name(enum raft_role role)
{
    switch (role) {
    case RAFT_FOLLOWER:
        return "follower";
    case RAFT_PRE_CANDIDATE:
        return "pre-candidate";
    case RAFT_CANDIDATE:
        return "candidate";
    case RAFT_LEADER:
        return "leader";
    }
    return "?";
}

bool
raft_check(const struct raft *raft)
{
    if (raft->commit > raft->last_index || raft->persisted > raft->last_index) return false;
    if (raft->applying > raft->commit) return false;
    if (raft->last_term > raft->term || raft->term > RAFT_NUMBER_MAX) return false;
    if (raft->config_index > raft->last_index || raft->previous_index > raft->config_index)
        return false;
    if (raft->sequence_persisted > raft->sequence) return false;
    if (raft->role == RAFT_LEADER && raft->leader != raft->options.id) return false;
    u32 voters = 0;
    for (u32 i = 0; i < raft->peer_count; i++) {
        const struct raft_peer *peer = &raft->peers[i];
        if (i > 0 && raft->peers[i - 1].id >= peer->id) return false;
        if ((peer->roles & (RAFT_VOTER | RAFT_VOTER_OLD)) != 0 &&
            (voters >= raft->voter_count || raft->voters[voters++] != i))
            return false;
        if (raft->role != RAFT_LEADER) continue;
        if (peer->match > raft->last_index || peer->next <= peer->match) return false;
        if (peer->next > raft->last_index + 1 || peer->round > raft->round) return false;
    }
    return voters == raft->voter_count;
}
