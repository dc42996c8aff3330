/* SPDX-License-Identifier: MIT
 *
 * raft_election.c -- who leads.
 *
 *     follower --timeout--> pre-candidate --majority would--> candidate --majority--> leader
 *        ^                                                       ^
 *        +--- a leader is heard, a newer term, a refusal         +-- the leader says: now
 *
 * A pre-candidate asks whether it would be elected and changes no term: who was cut off does not
 * disturb the others when it returns. Others say no while they hear a leader (S6).
 */
#include "raft/raft_internal.h"

#include "base/prng.h"

void
raft_reset_timeout(struct raft *raft)
{
    raft->election_elapsed = 0;
    raft->election_timeout = raft->options.election_ticks +
                             (u32)(splitmix64(&raft->random) % raft->options.election_ticks);
}

void
raft_become_follower(struct raft *raft, u64 term, u64 leader, struct raft_ready *out)
{
    if (raft->role == RAFT_LEADER) {
        raft_reads_fail(raft, out);
        raft->transfer_target = 0;
        /* It has heard nobody else, and nobody holds a lease on its vote. */
        raft->heard_elapsed = raft->options.election_ticks;
    }
    if (term > raft->term) raft_set_hard(raft, term, 0);
    raft->role = RAFT_FOLLOWER;
    raft->leader = leader;
    raft_reset_timeout(raft);
}

/* Who is no voter any more by a configuration that is not committed may be the only one that has
 * it: those who are to decide could not follow anybody else. It campaigns, without a vote of its
 * own. */
static bool
was_voter(const struct raft *raft)
{
    if (raft->config_index <= raft->commit) return false;
    for (u32 i = 0; i < raft->previous_count; i++)
        if (raft->previous[i].id == raft->options.id)
            return (raft->previous[i].roles & (RAFT_VOTER | RAFT_VOTER_OLD)) != 0;
    return false;
}

/* A log whose end is not durable is none to campaign with, and a snapshot that is being installed
 * is about to replace it. Behind the last term there is none. */
bool
raft_may_campaign(const struct raft *raft)
{
    return (raft_is_voter(raft) || was_voter(raft)) && raft->persisted == raft->last_index &&
           raft->sequence == raft->sequence_persisted && !raft->installing &&
           raft->term < RAFT_NUMBER_MAX;
}

static void
ask_for_votes(struct raft *raft, u8 type, u64 term, bool forced, struct raft_ready *out)
{
    for (u32 i = 0; i < raft->peer_count; i++) {
        struct raft_peer *peer = &raft->peers[i];
        peer->vote = 0;
        if (peer->id == raft->options.id || !(peer->roles & (RAFT_VOTER | RAFT_VOTER_OLD)))
            continue;
        struct raft_message *message = raft_emit(raft, out, type, peer->id);
        if (message == NULL) continue;
        message->term = term;
        message->force = forced;
        message->index = raft->last_index;
        message->log_term = raft->last_term;
    }
}

static void
campaign_for_real(struct raft *raft, bool forced, struct raft_ready *out)
{
    raft->role = RAFT_CANDIDATE;
    raft->leader = 0;
    raft_set_hard(raft, raft->term + 1, 0);
    raft_set_hard(raft, raft->term, raft->options.id);
    ask_for_votes(raft, RAFT_VOTE, raft->term, forced, out);
    /* The own vote counts when it is durable: raft_own_vote_durable(). */
}

void
raft_campaign(struct raft *raft, bool forced, struct raft_ready *out)
{
    raft_reset_timeout(raft);
    raft->leader = 0;
    if (forced) {
        campaign_for_real(raft, true, out);
        return;
    }
    raft->role = RAFT_PRE_CANDIDATE;
    ask_for_votes(raft, RAFT_PRE_VOTE, raft->term + 1, false, out);
    struct raft_peer *self = raft_peer_find(raft, raft->options.id);
    if (self != NULL) self->vote = 1;
    if (raft_count_votes(raft) == RAFT_VOTES_WON) campaign_for_real(raft, false, out);
}

void
raft_own_vote_durable(struct raft *raft, struct raft_ready *out)
{
    if (raft->role != RAFT_CANDIDATE || raft->hard_dirty) return;
    if (raft->hard_sequence > raft->sequence_persisted) return;
    struct raft_peer *self = raft_peer_find(raft, raft->options.id);
    if (self == NULL || self->vote != 0) return;
    self->vote = 1;
    if (raft_count_votes(raft) == RAFT_VOTES_WON) raft_become_leader(raft, out);
}

void
raft_tick_election(struct raft *raft, struct raft_ready *out)
{
    if (raft->heard_elapsed < raft->options.election_ticks) raft->heard_elapsed++;
    if (raft->election_elapsed < raft->election_timeout) raft->election_elapsed++;
    if (raft->election_elapsed >= raft->election_timeout && raft_may_campaign(raft))
        raft_campaign(raft, false, out);
}

static bool
log_is_up_to_date(const struct raft *raft, const struct raft_message *message)
{
    return message->log_term > raft->last_term ||
           (message->log_term == raft->last_term && message->index >= raft->last_index);
}

/* A candidate is answered whether or not it belongs to our configuration: it may be newer. */
void
raft_vote_asked(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    bool pre = message->type == RAFT_PRE_VOTE;
    bool grant = log_is_up_to_date(raft, message);
    if (pre) {
        grant = grant && message->term > raft->term;
    } else {
        grant = grant && (raft->vote == message->from || (raft->vote == 0 && raft->leader == 0));
        if (grant && raft->vote == 0) {
            raft_set_hard(raft, raft->term, message->from);
            raft_reset_timeout(raft);
        }
    }
    struct raft_message *reply =
        raft_emit(raft, out, pre ? RAFT_PRE_VOTE_REPLY : RAFT_VOTE_REPLY, message->from);
    if (reply == NULL) return;
    reply->reject = !grant;
    if (pre && grant) reply->term = message->term;
}

void
raft_vote_told(struct raft *raft, const struct raft_message *message, struct raft_ready *out)
{
    bool pre = message->type == RAFT_PRE_VOTE_REPLY;
    if (raft->role != (pre ? RAFT_PRE_CANDIDATE : RAFT_CANDIDATE)) return;
    if (pre && !message->reject && message->term != raft->term + 1) return;
    struct raft_peer *peer = raft_peer_find(raft, message->from);
    if (peer == NULL || peer->vote != 0) return;
    peer->vote = message->reject ? 2 : 1;
    switch (raft_count_votes(raft)) {
    case RAFT_VOTES_OPEN:
        break;
    case RAFT_VOTES_LOST:
        raft_become_follower(raft, raft->term, 0, out);
        break;
    case RAFT_VOTES_WON:
        if (pre)
            campaign_for_real(raft, false, out);
        else
            raft_become_leader(raft, out);
        break;
    }
}
