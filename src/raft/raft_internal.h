/* SPDX-License-Identifier: MIT
 *
 * raft_internal.h -- what the files of src/raft share. Nobody else includes it.
 */
#ifndef DISTKV_RAFT_RAFT_INTERNAL_H
#define DISTKV_RAFT_RAFT_INTERNAL_H

#include "raft/raft.h"

/* In message.after while an input is handled: waits for the newest write. */
#define RAFT_AFTER_NEWEST UINT64_MAX

/* raft.c */
/* NULL when there is no room. from, to, term and type are set; the rest is zero. */
struct raft_message *raft_emit(struct raft *raft, struct raft_ready *out, u8 type, u64 to);
void raft_begin(struct raft_ready *out);
void raft_end(struct raft *raft, struct raft_ready *out);
MUST_CHECK status raft_log_append(struct raft *raft, const struct raft_entry *entries, u32 count,
                                  struct raft_ready *out);
/* 0 when the storage does not have it. */
u64 raft_term_of(const struct raft *raft, u64 index);
void raft_commit_to(struct raft *raft, u64 index);
void raft_set_hard(struct raft *raft, u64 term, u64 vote);

/* raft_config.c */
/* The present one becomes `previous`. members may be raft->scratch. */
void raft_config_adopt(struct raft *raft, const struct raft_member *members, u32 count, u64 index);
/* Entries from index on are gone. */
void raft_config_truncate(struct raft *raft, u64 index);
/* The largest value that a majority of each set has reached, by field. */
enum raft_quorum_field { RAFT_QUORUM_MATCH, RAFT_QUORUM_ROUND };
u64 raft_quorum(const struct raft *raft, enum raft_quorum_field field);
/* Whether a majority of each set was heard from. */
bool raft_quorum_active(const struct raft *raft);
enum raft_votes { RAFT_VOTES_OPEN, RAFT_VOTES_WON, RAFT_VOTES_LOST };
enum raft_votes raft_count_votes(const struct raft *raft);
void raft_leave_joint_if_committed(struct raft *raft, struct raft_ready *out);

/* raft_election.c */
void raft_become_follower(struct raft *raft, u64 term, u64 leader, struct raft_ready *out);
void raft_campaign(struct raft *raft, bool forced, struct raft_ready *out);
void raft_tick_election(struct raft *raft, struct raft_ready *out);
void raft_reset_timeout(struct raft *raft);
bool raft_may_campaign(const struct raft *raft);
void raft_vote_asked(struct raft *raft, const struct raft_message *message, struct raft_ready *out);
void raft_vote_told(struct raft *raft, const struct raft_message *message, struct raft_ready *out);
void raft_own_vote_durable(struct raft *raft, struct raft_ready *out);

/* raft_leader.c */
void raft_become_leader(struct raft *raft, struct raft_ready *out);
void raft_tick_leader(struct raft *raft, u64 now_ns, struct raft_ready *out);
void raft_send_append(struct raft *raft, struct raft_peer *peer, bool even_empty,
                      struct raft_ready *out);
void raft_broadcast_append(struct raft *raft, struct raft_ready *out);
void raft_broadcast_heartbeat(struct raft *raft, bool quiesce, struct raft_ready *out);
void raft_maybe_commit(struct raft *raft, struct raft_ready *out);
void raft_append_answered(struct raft *raft, const struct raft_message *message,
                          struct raft_ready *out);
void raft_heartbeat_answered(struct raft *raft, const struct raft_message *message,
                             struct raft_ready *out);
void raft_peer_reset(struct raft *raft, struct raft_peer *peer);

/* raft_follower.c */
MUST_CHECK status raft_append_came(struct raft *raft, const struct raft_message *message,
                                   struct raft_ready *out);
void raft_heartbeat_came(struct raft *raft, const struct raft_message *message,
                         struct raft_ready *out);
MUST_CHECK status raft_snapshot_came(struct raft *raft, const struct raft_message *message,
                                     struct raft_ready *out);

/* raft_read.c */
void raft_round_start(struct raft *raft, u64 now_ns);
void raft_reads_advance(struct raft *raft, struct raft_ready *out);
void raft_reads_fail(struct raft *raft, struct raft_ready *out);
void raft_read_asked(struct raft *raft, const struct raft_message *message, u64 now_ns,
                     struct raft_ready *out);

#endif
