/* SPDX-License-Identifier: MIT
 *
 * raft_config.c -- who belongs to the group, and what counts as a majority.
 *
 * An entry holds a whole configuration, not a change: to know the one in force is to find the last
 * such entry, and to take one back is to find the one before (S4).
 *
 *     u16 count | count times: u64 id, u8 roles        ids ascending, little-endian
 *
 * The life of a member, by its roles in the entries:
 *
 *     -> LEARNER -> VOTER (joint) -> VOTER             added, promoted
 *     VOTER -> VOTER_OLD (joint) -> gone               removed
 *     VOTER -> VOTER_OLD|LEARNER_NEXT (joint) -> LEARNER     demoted
 *     VOTER -> VOTER|VOTER_OLD (joint) -> VOTER        stays while others change
 *     LEARNER -> gone
 *
 * Learners come and go without a joint configuration, since they decide nothing.
 */
#include "raft/raft_internal.h"

/* ---- bytes ---- */

static bool
roles_are_right(u8 roles)
{
    return roles == RAFT_VOTER || roles == (RAFT_VOTER | RAFT_VOTER_OLD) ||
           roles == RAFT_VOTER_OLD || roles == (RAFT_VOTER_OLD | RAFT_LEARNER_NEXT) ||
           roles == RAFT_LEARNER;
}

static status
members_check(const struct raft_member *members, u32 count)
{
    u32 voters = 0, old = 0;
    for (u32 i = 0; i < count; i++) {
        if (members[i].id == 0 || !roles_are_right(members[i].roles)) return ST_CORRUPT;
        if (i > 0 && members[i - 1].id >= members[i].id) return ST_CORRUPT;
        voters += (members[i].roles & RAFT_VOTER) != 0;
        old += (members[i].roles & RAFT_VOTER_OLD) != 0;
    }
    return voters == 0 || voters > RAFT_VOTERS_MAX || old > RAFT_VOTERS_MAX ? ST_CORRUPT : ST_OK;
}

struct bytes
raft_config_encode(const struct raft_member *members, u32 count, u8 *buffer)
{
    CHECK(count <= RAFT_MEMBERS_MAX && ok(members_check(members, count)));
    store_u16(buffer, (u16)count);
    for (u32 i = 0; i < count; i++) {
        store_u64(buffer + 2 + 9 * i, members[i].id);
        buffer[2 + 9 * i + 8] = members[i].roles;
    }
    return BYTES(buffer, RAFT_CONFIG_BYTES(count));
}

status
raft_config_decode(struct bytes bytes, u32 members_max, struct raft_member *members, u32 *count_out)
{
    if (bytes.size < 2) return ST_CORRUPT;
    u32 count = load_u16(bytes.data);
    if (count > members_max || bytes.size != RAFT_CONFIG_BYTES(count)) return ST_CORRUPT;
    for (u32 i = 0; i < count; i++)
        members[i] = (struct raft_member){.id = load_u64(bytes.data + 2 + 9 * i),
                                          .roles = bytes.data[2 + 9 * i + 8]};
    status st = members_check(members, count);
    if (ok(st)) *count_out = count;
    return st;
}

/* ---- the configuration in force ---- */

struct raft_peer *
raft_peer_find(const struct raft *raft, u64 id)
{
    u32 low = 0, high = raft->peer_count;
    while (low < high) {
        u32 middle = (low + high) / 2;
        if (raft->peers[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < raft->peer_count && raft->peers[low].id == id ? &raft->peers[low] : NULL;
}

u32
raft_members(const struct raft *raft, struct raft_member *members)
{
    for (u32 i = 0; i < raft->peer_count; i++)
        members[i] = (struct raft_member){raft->peers[i].id, raft->peers[i].roles};
    return raft->peer_count;
}

bool
raft_is_voter(const struct raft *raft)
{
    const struct raft_peer *self = raft_peer_find(raft, raft->options.id);
    return self != NULL && (self->roles & (RAFT_VOTER | RAFT_VOTER_OLD)) != 0;
}

bool
raft_config_is_joint(const struct raft *raft)
{
    for (u32 i = 0; i < raft->voter_count; i++)
        if (raft->peers[raft->voters[i]].roles & RAFT_VOTER_OLD) return true;
    return false;
}

/* Answers of learners, who may be many, do not have all of them looked over. */
static void
voters_note(struct raft *raft)
{
    raft->voter_count = 0;
    for (u32 i = 0; i < raft->peer_count; i++) {
        if (!(raft->peers[i].roles & (RAFT_VOTER | RAFT_VOTER_OLD))) continue;
        CHECK(raft->voter_count < ARRAY_COUNT(raft->voters));
        raft->voters[raft->voter_count++] = (u16)i;
    }
}

/* Peers that stay keep what is known of them. Each of the peers_max slots owns a ring for messages
 * in flight: who stays takes its ring along, who comes gets one of the others. */
static void
set_members(struct raft *raft, const struct raft_member *members, u32 count)
{
    struct raft_peer *old = raft->peers, *new = raft->peers_spare;
    for (u32 i = 0; i < count; i++) {
        struct raft_peer *peer = raft_peer_find(raft, members[i].id);
        new[i] = (struct raft_peer){.id = members[i].id};
        if (peer != NULL) {
            new[i] = *peer;
            peer->inflight = NULL; /* taken */
        }
        new[i].roles = members[i].roles;
    }
    u32 next = 0;
    for (u32 i = 0; i < raft->options.peers_max; i++) {
        if (i < count && new[i].inflight != NULL) continue;
        while (old[next].inflight == NULL)
            next++;
        if (i >= count) new[i] = (struct raft_peer){0};
        new[i].inflight = old[next++].inflight;
        if (i < count) raft_peer_reset(raft, &new[i]);
    }
    raft->peers = new;
    raft->peers_spare = old;
    raft->peer_count = count;
    voters_note(raft);
    if (raft->transfer_target != 0) {
        const struct raft_peer *target = raft_peer_find(raft, raft->transfer_target);
        if (target == NULL || !(target->roles & RAFT_VOTER)) raft->transfer_target = 0;
    }
}

void
raft_config_adopt(struct raft *raft, const struct raft_member *members, u32 count, u64 index)
{
    raft->previous_count = raft_members(raft, raft->previous);
    raft->previous_index = raft->config_index;
    raft->config_index = index;
    set_members(raft, members, count);
}

void
raft_config_truncate(struct raft *raft, u64 index)
{
    if (raft->config_index < index) return;
    /* Only one can be uncommitted (S4), so the one before it stays. */
    set_members(raft, raft->previous, raft->previous_count);
    raft->config_index = raft->previous_index;
}

/* ---- majorities ---- */

static u64
majority_of(const struct raft *raft, u8 role, enum raft_quorum_field field)
{
    u64 values[RAFT_VOTERS_MAX];
    u32 count = 0;
    for (u32 i = 0; i < raft->voter_count; i++) {
        const struct raft_peer *peer = &raft->peers[raft->voters[i]];
        if (!(peer->roles & role)) continue;
        u64 value = field == RAFT_QUORUM_MATCH ? peer->match : peer->round;
        if (peer->id == raft->options.id)
            value = field == RAFT_QUORUM_MATCH ? raft->persisted : raft->round;
        u32 at = count++;
        for (; at > 0 && values[at - 1] < value; at--)
            values[at] = values[at - 1];
        values[at] = value; /* descending */
    }
    return count == 0 ? UINT64_MAX : values[count / 2];
}

u64
raft_quorum(const struct raft *raft, enum raft_quorum_field field)
{
    u64 new = majority_of(raft, RAFT_VOTER, field);
    u64 old = majority_of(raft, RAFT_VOTER_OLD, field);
    return raft->peer_count == 0 ? 0 : MIN(new, old);
}

struct tally {
    u32 voters, yes, no;
};

static struct tally
tally_of(const struct raft *raft, u8 role, bool of_votes)
{
    struct tally tally = {0};
    for (u32 i = 0; i < raft->voter_count; i++) {
        const struct raft_peer *peer = &raft->peers[raft->voters[i]];
        if (!(peer->roles & role)) continue;
        bool self = peer->id == raft->options.id;
        tally.voters++;
        tally.yes += of_votes ? peer->vote == 1 : self || peer->active;
        tally.no += of_votes && peer->vote == 2;
    }
    return tally;
}

static bool
tally_won(struct tally tally)
{
    return tally.voters == 0 || tally.yes > tally.voters / 2;
}

static bool
tally_lost(struct tally tally)
{
    return tally.voters > 0 && tally.voters - tally.no <= tally.voters / 2;
}

bool
raft_quorum_active(const struct raft *raft)
{
    return tally_won(tally_of(raft, RAFT_VOTER, false)) &&
           tally_won(tally_of(raft, RAFT_VOTER_OLD, false));
}

enum raft_votes
raft_count_votes(const struct raft *raft)
{
    struct tally new = tally_of(raft, RAFT_VOTER, true), old = tally_of(raft, RAFT_VOTER_OLD, true);
    if (tally_lost(new) || tally_lost(old)) return RAFT_VOTES_LOST;
    return tally_won(new) && tally_won(old) ? RAFT_VOTES_WON : RAFT_VOTES_OPEN;
}

/* ---- changes ---- */

static struct raft_member *
member_find(struct raft_member *members, u32 count, u64 id)
{
    for (u32 i = 0; i < count; i++)
        if (members[i].id == id) return &members[i];
    return NULL;
}

/* One change in raft->scratch; new members are inserted in order. */
static status
change_apply(struct raft *raft, const struct raft_change *change, u32 *count)
{
    struct raft_member *members = raft->scratch;
    struct raft_member *member = member_find(members, *count, change->id);
    if (change->id == 0) return ST_INVALID;
    if (change->kind == RAFT_ADD_LEARNER) {
        if (member != NULL) return ST_CONFLICT;
        if (*count == raft->options.peers_max) return ST_TOO_LARGE;
        u32 at = (*count)++;
        for (; at > 0 && members[at - 1].id > change->id; at--)
            members[at] = members[at - 1];
        members[at] = (struct raft_member){change->id, RAFT_LEARNER};
        return ST_OK;
    }
    if (member == NULL) return ST_CONFLICT;
    const struct raft_peer *peer = raft_peer_find(raft, change->id);
    switch (change->kind) {
    case RAFT_ADD_LEARNER:
        break;
    case RAFT_PROMOTE:
        /* It must have been here before this change, and keep up. */
        if (member->roles != RAFT_LEARNER || peer == NULL) return ST_CONFLICT;
        if (peer->state != RAFT_PEER_REPLICATE) return ST_CONFLICT;
        member->roles = RAFT_VOTER;
        return ST_OK;
    case RAFT_DEMOTE:
        if (member->roles != (RAFT_VOTER | RAFT_VOTER_OLD)) return ST_CONFLICT;
        member->roles = RAFT_VOTER_OLD | RAFT_LEARNER_NEXT;
        return ST_OK;
    case RAFT_REMOVE:
        if (member->roles == (RAFT_VOTER | RAFT_VOTER_OLD)) {
            member->roles = RAFT_VOTER_OLD;
            return ST_OK;
        }
        if (member->roles != RAFT_LEARNER) return ST_CONFLICT;
        memmove(member, member + 1, (size_t)(members + --(*count) - member) * sizeof(*member));
        return ST_OK;
    }
    return ST_INVALID;
}

/* Appends the configuration in scratch, which is in force at once. */
static status
append_config(struct raft *raft, u32 count, struct raft_ready *out)
{
    struct raft_entry entry = {.index = raft->last_index + 1,
                               .term = raft->term,
                               .kind = RAFT_ENTRY_CONFIG,
                               .data =
                                   raft_config_encode(raft->scratch, count, raft->config_bytes)};
    status st = raft_log_append(raft, &entry, 1, out);
    if (!ok(st)) return st;
    raft_config_adopt(raft, raft->scratch, count, entry.index);
    raft->quiescent = false;
    raft_broadcast_append(raft, out);
    return ST_OK;
}

status
raft_propose_config(struct raft *raft, const struct raft_change *changes, u32 count,
                    struct raft_ready *out)
{
    raft_begin(out);
    if (raft->role != RAFT_LEADER) return ST_CONFLICT;
    if (count == 0) return ST_INVALID;
    if (raft->transfer_target != 0 || raft->config_index > raft->commit ||
        raft_config_is_joint(raft) || raft_term_of(raft, raft->commit) != raft->term)
        return ST_OVERLOADED;
    u32 members = raft_members(raft, raft->scratch);
    for (u32 i = 0; i < members; i++)
        if (raft->scratch[i].roles == RAFT_VOTER) raft->scratch[i].roles |= RAFT_VOTER_OLD;
    for (u32 i = 0; i < count; i++) {
        status st = change_apply(raft, &changes[i], &members);
        if (!ok(st)) return st;
    }
    u32 voters = 0;
    bool joint = false;
    for (u32 i = 0; i < members; i++) {
        u8 roles = raft->scratch[i].roles;
        voters += (roles & RAFT_VOTER) != 0;
        joint |= roles != RAFT_LEARNER && roles != (RAFT_VOTER | RAFT_VOTER_OLD);
    }
    if (voters == 0) return ST_INVALID;
    if (voters > RAFT_VOTERS_MAX) return ST_TOO_LARGE;
    for (u32 i = 0; i < members && !joint; i++)
        if (raft->scratch[i].roles != RAFT_LEARNER) raft->scratch[i].roles = RAFT_VOTER;
    status st = append_config(raft, members, out);
    if (ok(st)) raft_end(raft, out);
    return st;
}

/* S5. Asked after every commit and every tick: a storage that refuses now is asked again. */
void
raft_leave_joint_if_committed(struct raft *raft, struct raft_ready *out)
{
    if (raft->config_index > raft->commit || !raft_config_is_joint(raft)) return;
    if (raft_term_of(raft, raft->commit) != raft->term) return;
    u32 count = 0;
    for (u32 i = 0; i < raft->peer_count; i++) {
        u8 roles = raft->peers[i].roles;
        if (roles == RAFT_VOTER_OLD) continue;
        roles = roles & RAFT_VOTER ? RAFT_VOTER : RAFT_LEARNER;
        raft->scratch[count++] = (struct raft_member){raft->peers[i].id, roles};
    }
    status st = append_config(raft, count, out);
    (void)st; /* refused: at the next tick */
}
