/* SPDX-License-Identifier: MIT
 *
 * raft.h -- one replica of one Raft group: an event in, its effects out.
 *
 * No input or output, no clock, no allocation: time comes as ticks (and, for leases, as a number
 * that the caller read), memory is one block that raft_init() is given. A shard runs thousands of
 * such groups on one log; what a group costs is raft_memory_bytes() and struct raft.
 *
 *     struct raft_ready ready = {.messages = ..., .messages_max = ..., ...};   any number of groups
 *     raft_step(raft, &message, now_ns, &ready);            one input: its effects replace the old
 *       1. ready.sequence != 0: write the hard state (if hard_changed) and the entries from
 *          append_first to append_last behind it; an entry written earlier at append_first or
 *          above is void. Writes of a group become durable in the order of their sequences.
 *       2. send each message as soon as its `after` is durable (0: now, beside the write)
 *       3. ready.install: fetch and install that snapshot, then raft_snapshot_installed()
 *       4. apply the entries apply_first to apply_last, in order; they are handed out once
 *       5. answer ready.reads: a read with index i may be served once i is applied
 *     raft_persisted(raft, sequence, persist_index, &ready);    when the write is durable
 *
 * The effects of an input are taken (not: finished) before the next input of that group. Bytes in
 * messages are borrowed from the storage until then: the caller keeps what it passed in.
 *
 * Invariants (S: for safety; the tests break each)
 *   S1  A term and a vote are durable before any message that depends on them leaves, and before
 *       the own vote counts.
 *   S2  An entry counts as held by a replica only when durable there; a learner's never counts.
 *   S3  Only an entry of the leader's own term is committed by counting; older ones follow it.
 *   S4  The configuration in force is the last one in the log, committed or not. A leader appends
 *       another only when the last one is committed, and an entry of its own term as well; so a
 *       truncation takes back one at most, and `previous` is all that must be kept for it.
 *   S5  Voters change through a joint configuration only, where every decision needs a majority
 *       of both sets; who is to vote has been a learner that keeps up. The leader leaves the joint
 *       configuration as soon as it is committed, whoever began it.
 *   S6  Who has heard from a leader within the shortest election timeout (or has started within
 *       it: a restart forgets whom it heard) votes for nobody, but on that leader's own word.
 *   S7  A read is answered after a round of heartbeats that began after it came was answered by a
 *       majority in the same term, and never before the leader has committed in its term.
 *   S8  A lease counts from before that round was sent, and is given up for the rest of the term
 *       when the leader tells somebody to campaign.
 *
 * What is configured alike on all replicas: peers_max, entry_bytes_max, election_ticks. A group
 * whose replica lost its log or its hard state must get a new id: nothing here can notice it.
 */
#ifndef DISTKV_RAFT_RAFT_H
#define DISTKV_RAFT_RAFT_H

#include "base/status.h"
#include "base/types.h"

/* Voters of one of the two sets of a joint configuration; and members altogether. */
#define RAFT_VOTERS_MAX  9u
#define RAFT_MEMBERS_MAX 1024u
/* Of terms and of indexes. Nobody counts so far; what claims to have, is damaged or lies. */
#define RAFT_NUMBER_MAX (UINT64_MAX / 2)
/* Rounds of heartbeats whose moment is remembered: a lease is extended by answers that are no more
 * than so many rounds late. */
#define RAFT_ROUNDS 4u

/* ---- entries and their storage ---- */

enum raft_entry_kind {
    RAFT_ENTRY_DATA = 0,
    RAFT_ENTRY_NOOP = 1,   /* begins a term; nothing to apply */
    RAFT_ENTRY_CONFIG = 2, /* a whole configuration, see raft_config.c */
    RAFT_ENTRY_KIND_COUNT
};

struct raft_entry {
    u64 index;
    u64 term;
    u8 kind; /* enum raft_entry_kind */
    struct bytes data;
};

struct raft_snapshot {
    u64 index;
    u64 term;
    struct bytes config; /* encoded, as it was at index */
};

/* What the caller implements. Answers at once: what is not in memory is ST_WOULD_WAIT, and is asked
 * for again later. The log holds the entries first_index..last_index; first_index - 1 is the
 * snapshot's index (0 when there is none yet), whose term is known, too. */
struct raft_storage {
    u64 (*first_index)(void *context);
    u64 (*last_index)(void *context);
    /* ST_NOT_FOUND outside of first_index - 1 .. last_index. Never waits. */
    status (*term)(void *context, u64 index, u64 *term_out);
    /* Up to count entries from first on, fewer when they exceed bytes_max together, but always one.
     * The data is borrowed until the effects of the present input are taken. ST_NOT_FOUND: they are
     * compacted. */
    status (*entries)(void *context, u64 first, u64 bytes_max, u32 count_max,
                      struct raft_entry *entries_out, u32 *count_out);
    /* Drops what is at entries[0].index and above, then appends copies: both or neither. They are
     * visible at once and durable later. Any refusal (ST_NO_MEMORY) leaves all as it was. */
    status (*append)(void *context, const struct raft_entry *entries, u32 count);
    /* The newest snapshot; ST_WOULD_WAIT while it is being made. */
    status (*snapshot)(void *context, struct raft_snapshot *snapshot_out);
};

/* ---- configurations ---- */

enum {
    RAFT_VOTER = 1,        /* of the only set, or of the new one */
    RAFT_VOTER_OLD = 2,    /* of the old set: the configuration is joint */
    RAFT_LEARNER = 4,      /* gets entries, decides nothing */
    RAFT_LEARNER_NEXT = 8, /* of the old set, and learns when the joint configuration is left */
};

struct raft_member {
    u64 id; /* not 0; never used again for a replica that lost its state */
    u8 roles;
};

/* Bytes of a configuration of count members. */
#define RAFT_CONFIG_BYTES(count) (2u + 9u * (count))

/* buffer: RAFT_CONFIG_BYTES(count). */
struct bytes raft_config_encode(const struct raft_member *members, u32 count, u8 *buffer);
/* ST_CORRUPT for bytes that are no configuration, or one of more than members_max. */
MUST_CHECK status raft_config_decode(struct bytes bytes, u32 members_max,
                                     struct raft_member *members, u32 *count_out);

enum raft_change_kind {
    RAFT_ADD_LEARNER,
    RAFT_PROMOTE, /* a learner that keeps up becomes a voter */
    RAFT_DEMOTE,  /* a voter becomes a learner */
    RAFT_REMOVE,
};

struct raft_change {
    enum raft_change_kind kind;
    u64 id;
};

/* ---- messages ---- */

enum raft_message_type {
    RAFT_PRE_VOTE = 1,
    RAFT_PRE_VOTE_REPLY,
    RAFT_VOTE,
    RAFT_VOTE_REPLY,
    RAFT_APPEND,
    RAFT_APPEND_REPLY,
    RAFT_HEARTBEAT,
    RAFT_HEARTBEAT_REPLY,
    RAFT_SNAPSHOT, /* the caller ships the data beside it, then raft_snapshot_sent() */
    RAFT_TIMEOUT_NOW,
    RAFT_READ,
    RAFT_READ_REPLY,
};

struct raft_message {
    u8 type;
    bool reject;
    bool force;   /* VOTE: the leader wishes it (S6) */
    bool quiesce; /* HEARTBEAT: stop ticking */
    u64 from;
    u64 to;
    u64 term;     /* PRE_VOTE and a grant of it: the term that is asked for */
    u64 index;    /* VOTE: last; APPEND: before the entries; its reply: held, or rejected */
    u64 log_term; /* term at index; in a rejecting reply: of hint */
    u64 commit;
    u64 hint;  /* rejecting APPEND_REPLY: the last index that may match */
    u64 round; /* HEARTBEAT and reply; READ and reply: the read's id */
    u64 after; /* out only: send when that sequence is durable; 0: now */
    const struct raft_entry *entries;
    u32 entry_count;
    struct bytes config; /* SNAPSHOT: index and log_term name it */
};

/* ---- effects ---- */

struct raft_read_state {
    u64 id;
    u64 index;
    status result; /* ST_CONFLICT: leadership changed, ask anew with another id */
};

struct raft_hard_state {
    u64 term;
    u64 vote; /* 0: nobody */
};

struct raft_ready {
    /* the caller's arrays. A message that finds no room is lost as on a network, and counted. */
    struct raft_message *messages;
    u32 messages_max;
    struct raft_entry *entries; /* what messages carry */
    u32 entries_max;
    struct raft_read_state *reads; /* as many as config.reads_max, at least */
    u32 reads_max;

    u64 sequence; /* of the write; 0: nothing to write */
    u64 persist_index;
    bool hard_changed;
    struct raft_hard_state hard;
    u64 append_first; /* 0: no entries */
    u64 append_last;
    u64 apply_first; /* 0: nothing */
    u64 apply_last;
    bool install;
    struct raft_snapshot snapshot; /* config is borrowed from the message */
    u32 message_count;
    u32 entry_count;
    u32 read_count;
    u32 dropped;
};

/* ---- a replica ---- */

struct raft_options {
    u64 id;
    const struct raft_storage *storage;
    void *storage_context;
    u64 seed;              /* of election timeouts */
    u64 lease_ns;          /* 0: no leases. By this replica's clock, however slow it runs, less than
                            * election_ticks - 1 ticks take on any other's, however fast */
    u32 election_ticks;    /* timeouts are 1 to 2 times as long */
    u32 heartbeat_ticks;   /* less than election_ticks */
    u32 peers_max;         /* members, this one included */
    u32 reads_max;         /* reads that wait for a round */
    u32 inflight_max;      /* messages with entries on their way to a peer */
    u32 inflight_bytes;    /* and their bytes */
    u32 message_bytes;     /* entries of one message; one entry always goes */
    u32 entry_bytes_max;   /* data of one entry */
    u64 uncommitted_bytes; /* proposals above are refused */
};

/* What the caller kept of the replica. A new member of a group starts with all zero and no config;
 * the first ones of a new group with a snapshot at index 1, term 1 that names them all. */
struct raft_restored {
    struct raft_hard_state hard;
    struct raft_snapshot snapshot; /* what the log begins behind; index 0: none */
    u64 applied;                   /* at least snapshot.index */
};

enum raft_role { RAFT_FOLLOWER, RAFT_PRE_CANDIDATE, RAFT_CANDIDATE, RAFT_LEADER };

enum raft_peer_state {
    RAFT_PEER_PROBE,     /* one message at a time until one is accepted */
    RAFT_PEER_REPLICATE, /* a pipeline */
    RAFT_PEER_SNAPSHOT,  /* nothing until the snapshot is there, or failed */
};

struct raft_inflight {
    u64 index; /* last of the message */
    u64 bytes;
};

struct raft_peer {
    u64 id;
    u64 match;          /* durable there */
    u64 next;           /* first to send */
    u64 snapshot_index; /* in RAFT_PEER_SNAPSHOT */
    u64 round;          /* newest round of heartbeats that it answered in this term */
    u64 inflight_bytes;
    struct raft_inflight *inflight; /* ring of options.inflight_max */
    u16 inflight_start;
    u16 inflight_count;
    u8 roles;
    u8 state;    /* enum raft_peer_state */
    u8 vote;     /* 0 unknown, 1 granted, 2 refused */
    bool active; /* heard from since the last look at the quorum */
    bool paused; /* in RAFT_PEER_PROBE: waits for an answer, or for the next heartbeat's */
};

struct raft_read {
    u64 id;
    u64 from; /* a peer that asked; the own id for the caller */
    u64 index;
    u64 round;
};

struct raft {
    /* configuration, fixed by raft_init() */
    struct raft_options options;
    struct raft_member *scratch; /* peers_max: a configuration being looked at */
    u8 *config_bytes;            /* RAFT_CONFIG_BYTES(peers_max): one being proposed */

    /* durable state, and how far it is durable */
    u64 term;
    u64 vote;
    u64 last_index;
    u64 last_term;
    u64 persisted;          /* last index that is durable */
    u64 sequence;           /* of the newest write */
    u64 sequence_persisted; /* all up to it are durable */
    u64 hard_sequence;      /* the write that has the present term and vote */
    u64 truncate_sequence;  /* the newest write that voided entries, */
    u64 truncate_index;     /* and the least of what such writes under way voided */
    bool hard_dirty;

    /* what is decided */
    u64 commit;
    u64 applying; /* handed out to be applied */

    /* configuration: S4 */
    struct raft_peer *peers; /* by id; the own one too while a member */
    struct raft_peer *peers_spare;
    u32 peer_count;
    u32 voter_count;
    u16 voters[2 * RAFT_VOTERS_MAX]; /* places of those who vote in either set, among peers */
    u64 config_index;
    struct raft_member *previous;
    u32 previous_count;
    u64 previous_index;

    /* role */
    enum raft_role role;
    u64 leader; /* 0: not known */
    u64 random;
    u32 election_elapsed;
    u32 election_timeout;
    u32 heard_elapsed; /* S6; saturates */
    u32 heartbeat_elapsed;
    u32 stall_elapsed; /* ticks without any write having become durable, while some are under way */
    bool quiescent;
    bool installing;
    u64 installing_index;
    u64 installing_term;

    /* leader */
    u64 uncommitted_bytes;
    u64 transfer_target; /* 0: none */
    u32 transfer_elapsed;
    bool lease_lost; /* S8 */
    u64 round;       /* newest that was sent */
    u64 round_ns[RAFT_ROUNDS];
    u64 lease_until_ns;
    struct raft_read *reads;
    u32 read_count;
};

/* What raft_init() needs; options with nonsense in them are the caller's mistake. */
size_t raft_memory_bytes(const struct raft_options *options);
/* memory: raft_memory_bytes(), 16-byte aligned, given back by the caller when it is done with the
 * group. Reads the kinds of all entries in the log for configurations: ST_CORRUPT when one is
 * damaged; whatever the storage answers is passed on. */
MUST_CHECK status raft_init(struct raft *raft, const struct raft_options *options, void *memory,
                            const struct raft_restored *restored);

/* ---- inputs: each begins by emptying out ---- */

void raft_tick(struct raft *raft, u64 now_ns, struct raft_ready *out);
/* ST_CORRUPT for what no right peer sends, ST_INVALID for what is not for us; the log is as before
 * then. What the storage refused is passed on, and the peer tries again. Whatever is returned, the
 * effects are taken: the message's term may be a new one. */
MUST_CHECK status raft_step(struct raft *raft, const struct raft_message *message, u64 now_ns,
                            struct raft_ready *out);
/* All of them or none; index and term are filled in. Kinds: RAFT_ENTRY_DATA. ST_CONFLICT: not the
 * leader (raft->leader may be). ST_OVERLOADED: too much uncommitted, or a transfer is under way;
 * nothing was done, try again. ST_TOO_LARGE. */
MUST_CHECK status raft_propose(struct raft *raft, struct raft_entry *entries, u32 count,
                               struct raft_ready *out);
/* ST_CONFLICT: not the leader, or a member is not what the change needs. ST_OVERLOADED: another
 * change is under way. ST_INVALID: there would be no voter. ST_TOO_LARGE: too many members. */
MUST_CHECK status raft_propose_config(struct raft *raft, const struct raft_change *changes,
                                      u32 count, struct raft_ready *out);
/* The write `sequence` of a ready is durable, and with it all before. */
void raft_persisted(struct raft *raft, u64 sequence, u64 persist_index, struct raft_ready *out);
/* Follower: the snapshot of ready.install is durable and is what the storage begins with now
 * (done), or was given up: the log is as before. */
MUST_CHECK status raft_snapshot_installed(struct raft *raft, const struct raft_snapshot *snapshot,
                                          bool done, struct raft_ready *out);
/* Leader: the data of a RAFT_SNAPSHOT message has arrived at the peer, or will not. */
void raft_snapshot_sent(struct raft *raft, u64 peer, bool done, struct raft_ready *out);
/* ST_CONFLICT: not the leader. ST_INVALID: no voter to be had by that id, or the leader itself. */
MUST_CHECK status raft_transfer(struct raft *raft, u64 target, struct raft_ready *out);
/* The answer comes in ready.reads of this or a later input. id: never used before. On a follower it
 * asks the leader, and no answer may ever come. ST_WOULD_WAIT: no leader is known, or it has not
 * committed in its term yet. ST_OVERLOADED: too many wait. */
MUST_CHECK status raft_read(struct raft *raft, u64 id, u64 now_ns, struct raft_ready *out);
/* Leader with nothing to do: tells its peers and stops; false when there is something. */
MUST_CHECK bool raft_quiesce(struct raft *raft, struct raft_ready *out);
/* Something happens: tick again. leader_dead: what the caller knows of the leader's node. */
void raft_wake(struct raft *raft, bool leader_dead, struct raft_ready *out);

/* ---- questions ---- */

/* May a read at raft->commit be answered at now_ns without asking anybody? Ask again after the
 * read and right before the reply. now_ns: a clock that goes on while the machine is suspended. */
bool raft_lease_valid(const struct raft *raft, u64 now_ns);
/* The configuration in force; members: options.peers_max. */
u32 raft_members(const struct raft *raft, struct raft_member *members);
/* By its number; NULL: not in the configuration. Until the next input. */
struct raft_peer *raft_peer_find(const struct raft *raft, u64 id);
bool raft_is_voter(const struct raft *raft);
bool raft_config_is_joint(const struct raft *raft);
const char *raft_role_name(enum raft_role role);
/* Whether the fields agree with each other; for tests. */
bool raft_check(const struct raft *raft);

#endif
