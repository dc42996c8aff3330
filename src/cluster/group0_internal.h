/* SPDX-License-Identifier: MIT
 *
 * group0_internal.h -- what the files of group0 share. Nobody else includes it.
 *
 *   group0.c         life: open, found, close; inputs of raft and what they lead to; ticks
 *   group0_log.c     the log: its tail in memory (raft_storage), its bytes in the store, loading
 *   group0_write.c   the fiber that writes batches, in order, and reports them durable
 *   group0_apply.c   the fiber that applies, takes snapshots, and installs those of others
 *   group0_net.c     messages, snapshots on their way, requests of other members
 *   group0_wire.c    bodies of frames and values of keys as bytes; pure
 *   group0_change.c  commands: proposing, retrying; barriers; joining
 *   group0_lead.c    what the leader sees to: voters, learners, plans
 *   group0_voters.c  who should vote; pure
 *   group0_starts.c  a directory from an older copy is noticed before anything of it counts
 *   group0_address.c members that come back under another address
 *
 * Invariants
 *   G1  What raft wants written goes into the batch `next` in the same callback, entries already in
 *       storage.append: so a batch always ends between two inputs of raft, and truncation, entries
 *       and hard state of an input become durable together. One batch is written at a time.
 *   G2  A topology is published only when the store remembers durably that it was decided (the
 *       commit mark): after a restart this member begins with nothing older than it showed before.
 *   G3  Everything that changes base, applied or the topology happens on the one applying fiber.
 *   G4  A failed log write ends this member's part (failed): no tick, no message, no answer. What
 *       it said before was durable.
 */
#ifndef DISTKV_CLUSTER_GROUP0_INTERNAL_H
#define DISTKV_CLUSTER_GROUP0_INTERNAL_H

#include "base/list.h"
#include "cluster/group0.h"
#include "cluster/starts.h"
#include "io/timer.h"
#include "raft/raft.h"

/* ---- figures ---- */

#define GROUP0_TICK_NS           (100 * NS_PER_MS)
#define GROUP0_ELECTION_TICKS    10u /* 1 to 2 s */
#define GROUP0_HEARTBEAT_TICKS   2u
#define GROUP0_ENTRY_BYTES_MAX   KIB(64) /* of one command; the largest one has less than 1 KiB */
#define GROUP0_MESSAGE_BYTES     KIB(256)
#define GROUP0_MESSAGES_MAX      (2u * RAFT_MEMBERS_MAX + 64u)
#define GROUP0_ENTRIES_MAX       4096u /* in the messages of one input */
#define GROUP0_ENTRIES_IN        4096u /* in a message that came */
#define GROUP0_READS_MAX         64u
#define GROUP0_UNCOMMITTED_BYTES MIB(1)
/* A snapshot is taken behind so much log. */
#define GROUP0_SNAPSHOT_ENTRIES 256u
#define GROUP0_SNAPSHOT_BYTES   MIB(1)
/* Of a topology as bytes: 16,384 partitions with 7 replicas, twice, and 1,024 members take 2 MiB.
 */
#define GROUP0_TOPOLOGY_BYTES_MAX MIB(16)
#define GROUP0_CHUNK_BYTES        KIB(512) /* of a snapshot, in the store and on the wire */
#define GROUP0_BATCH_BYTES_MAX    MIB(4)   /* a batch that waits for the one before it */
#define GROUP0_HELD_BYTES_MAX     MIB(4)   /* messages that wait for the disk */
#define GROUP0_SENDS_MAX          4u       /* snapshots on their way at once */
#define GROUP0_PROPOSALS_MAX      256u     /* under way at the leader */
#define GROUP0_JOINS_MAX          16u
/* One attempt at the leader. */
#define GROUP0_ATTEMPT_NS (3 * NS_PER_S)
#define GROUP0_RETRY_NS   (50 * NS_PER_MS)
/* Who joins and is a member here already is told so when the leader has not been found by then. */
#define GROUP0_KNOWN_NS (1 * NS_PER_S)
static_assert(GROUP0_KNOWN_NS < GROUP0_ATTEMPT_NS, "who asks waits so long, and hears the answer");
/* Between two looks at what the leader sees to. */
#define GROUP0_LEAD_NS   (200 * NS_PER_MS)
#define GROUP0_VOTERS_NS (1 * NS_PER_S)
#define GROUP0_HEARD     2048u
/* The others are told of our start, and asked whether they know a later one: again so often, and
 * one question for so long. */
#define GROUP0_STARTS_NS          (1 * NS_PER_S)
#define GROUP0_STARTS_CALL_NS     (400 * NS_PER_MS)
#define GROUP0_STRANGERS_MAX      RAFT_VOTERS_MAX
#define GROUP0_STARTS_PATIENCE_NS (200 * NS_PER_MS) /* once enough have answered */
#define GROUP0_STARTS_OPEN_NS     (1 * NS_PER_S)    /* group0_open waits no longer */
/* A member that is elsewhere than the topology says tells the others, and is believed so long. */
#define GROUP0_ADDRESS_NS      (500 * NS_PER_MS)
#define GROUP0_ADDRESS_CALL_NS (1 * NS_PER_S)
#define GROUP0_MOVED_NS        (10 * NS_PER_S)
#define GROUP0_ADDRESS_ASKED   3u   /* members that are asked for the others, in a round */
#define GROUP0_ADDRESS_LOOKS   16u  /* places where others may be, in a round */
#define GROUP0_ADDRESS_WARN    100u /* rounds without an answer: once in so many it is said */
static_assert(GROUP0_HEARD >= 2 * RAFT_MEMBERS_MAX, "numbers of present members seldom meet");

static_assert(RAFT_MEMBERS_MAX >= LIMIT_PLACEMENT_NODES, "every member takes part");
static_assert(GROUP0_BATCH_BYTES_MAX + GROUP0_MESSAGE_BYTES + GROUP0_ENTRIES_IN * 128 <
                  LIMIT_BATCH_BYTES,
              "a batch fits in one record of the store's log");

/* ---- what is stored ---- */

/* The hash tag's slot is 0, so these keys lie in partition 0 and on shard 0 whatever the number of
 * partitions and cores. docs/cluster-internals.md has their bytes. */
#define GROUP0_TAG "{group0-b9v}"

enum group0_key_kind {
    GROUP0_KEY_IDENTITY = 'i',
    GROUP0_KEY_STARTS = 'n', /* | member : u32, big-endian; 0: our own */
    GROUP0_KEY_HARD = 'h',
    GROUP0_KEY_COMMIT = 'c',
    GROUP0_KEY_BASE = 'b',
    GROUP0_KEY_CHUNK = 's', /* | index : u64, number : u32, both big-endian */
    GROUP0_KEY_LOG = 'l',   /* | index : u64, big-endian */
};

struct group0_key {
    u8 bytes[sizeof(GROUP0_TAG) - 1 + 1 + 8 + 4];
    u32 size;
};

/* group0_wire.c */
struct group0_key group0_key(enum group0_key_kind kind, u64 index, u32 number);
/* Of keys with our tag. false: none of ours. */
MUST_CHECK bool group0_key_parse(struct bytes key, u8 *kind, u64 *index, u32 *number);
u64 group0_token(void);

struct group0_identity {
    u64 incarnation;
    u64 cluster_id; /* 0: of no cluster yet */
    u32 member;
    char node_id[TOPOLOGY_NAME_BYTES];
};
#define GROUP0_IDENTITY_BYTES (8u + 8u + 8u + TOPOLOGY_NAME_BYTES)
#define GROUP0_HARD_BYTES     24u
#define GROUP0_COMMIT_BYTES   16u
#define GROUP0_LOG_HEADER     16u
#define GROUP0_BASE_HEADER    32u

/* What the log begins behind. */
struct group0_base {
    u64 index, term;
    u32 chunk_count;
    u64 bytes; /* of the topology */
    struct bytes config;
};

void group0_identity_encode(const struct group0_identity *identity, u8 out[GROUP0_IDENTITY_BYTES]);
MUST_CHECK status group0_identity_decode(struct bytes bytes, struct group0_identity *out);
void group0_hard_encode(struct raft_hard_state hard, u8 out[GROUP0_HARD_BYTES]);
MUST_CHECK status group0_hard_decode(struct bytes bytes, struct raft_hard_state *out);
void group0_commit_encode(u64 index, u8 out[GROUP0_COMMIT_BYTES]);
MUST_CHECK status group0_commit_decode(struct bytes bytes, u64 *out);
MUST_CHECK bool group0_base_encode(const struct group0_base *base, struct buf *out);
MUST_CHECK status group0_base_decode(struct bytes bytes, struct group0_base *out);
/* The header only; the data follows it. */
void group0_log_encode(u64 term, u8 kind, u8 out[GROUP0_LOG_HEADER]);
MUST_CHECK status group0_log_decode(struct bytes bytes, u64 *term, u8 *kind, struct bytes *data);

/* ---- what is said ---- */

enum group0_result {
    GROUP0_DONE = 0,   /* applied; or it was before */
    GROUP0_CONFLICT,   /* made for another state: look again */
    GROUP0_REFUSED,    /* for the reason */
    GROUP0_NOT_LEADER, /* not done here; `leader` may be, 0: not known */
    GROUP0_BUSY,       /* not done, later */
    GROUP0_UNKNOWN,    /* appended; what became of it is not known here */
    GROUP0_RESULT_COUNT
};

struct group0_outcome {
    u8 result; /* enum group0_result */
    u32 leader;
    u64 index; /* DONE: where it was applied, at the latest */
    char reason[TOPOLOGY_REASON_BYTES];
};

/* What stands before each message of raft: where the one who sends it can be reached. Who lags may
 * not know the leader at all yet, and could never say so. */
#define GROUP0_ENVELOPE_BYTES_MAX (8u + PEER_HOST_BYTES)
/* The size. An address of port 0 is none. */
u32 group0_envelope_encode(const struct peer_address *address, u8 out[GROUP0_ENVELOPE_BYTES_MAX]);
MUST_CHECK status group0_envelope_decode(struct bytes bytes, struct peer_address *address_out,
                                         struct bytes *message_out);

/* PEER_ADDRESS and its answer: who says so, and where it is. */
struct group0_told {
    u32 member;
    bool asks; /* for the others' places */
    struct peer_address address;
    struct starts own;
    struct bytes others; /* of an answer: struct group0_place, one behind the other */
};
struct group0_place {
    u32 member;
    struct peer_address address;
};
MUST_CHECK bool group0_told_encode(const struct group0_told *told, struct buf *out);
MUST_CHECK status group0_told_decode(struct bytes bytes, struct group0_told *out);
MUST_CHECK bool group0_place_put(const struct group0_place *place, struct buf *out);
/* The first one, which *bytes begins behind then; ST_NOT_FOUND: there is none. */
MUST_CHECK status group0_place_take(struct bytes *bytes, struct group0_place *out);

/* Answer to PEER_PROPOSE. */
MUST_CHECK bool group0_outcome_encode(const struct group0_outcome *outcome, struct buf *out);
MUST_CHECK status group0_outcome_decode(struct bytes bytes, struct group0_outcome *out);

/* Answer to PEER_JOIN. */
struct group0_welcome {
    u32 member; /* 0: refused, for the reason */
    u64 cluster_id;
    char reason[TOPOLOGY_REASON_BYTES];
    struct bytes topology; /* encoded: who the members are */
};
MUST_CHECK bool group0_welcome_encode(const struct group0_welcome *welcome, struct buf *out);
MUST_CHECK status group0_welcome_decode(struct bytes bytes, struct group0_welcome *out);

/* A part of a snapshot: PEER_RAFT_SNAPSHOT. */
struct group0_chunk {
    u64 from, to, term; /* of the message */
    u64 index, log_term;
    u64 total, offset; /* of the topology's bytes */
    struct bytes config;
    struct bytes data;
};
/* Everything but the data, which is sent behind it. */
MUST_CHECK bool group0_chunk_encode(const struct group0_chunk *chunk, struct buf *out);
MUST_CHECK status group0_chunk_decode(struct bytes bytes, struct group0_chunk *out);

/* ---- voters ---- */

#define GROUP0_VOTERS_MAX 7u
static_assert(GROUP0_VOTERS_BOTH >= 2 * RAFT_VOTERS_MAX, "of a joint configuration");
static_assert(GROUP0_VOTERS_MAX <= RAFT_VOTERS_MAX, "raft allows them");

struct group0_candidate {
    u32 number;
    bool voter;   /* now */
    bool ready;   /* a learner that keeps up */
    bool alive;   /* no matter if it was only gone for a moment */
    bool leaving; /* votes only where those who stay are too few */
    u32 place;    /* number of its rack */
    bool chosen;  /* out */
};
/* Marks who should vote: as many as an odd number allows, from 1 to 7, over racks evenly. Who votes
 * goes on voting where nothing speaks against it. ends: those who leave may be out at any moment. */
void group0_voters_choose(struct group0_candidate *candidates, u32 count, bool ends);

/* ---- state ---- */

struct group0_item {
    u64 term;
    u8 kind;
    u32 size;
    u8 *data; /* size bytes of the budget; NULL when there are none */
};

/* A topology as bytes, for those who send it while a newer one is made. */
struct group0_blob {
    u32 references;
    u64 size;
    u8 data[];
};

struct group0_proposal {
    struct list link; /* in group0.proposals; to itself when done */
    u64 index, term;
    void (*done)(struct group0 *group0, struct group0_proposal *proposal,
                 const struct group0_outcome *outcome); /* a callback */
};

struct group0_reader { /* on the stack of who waits */
    struct list link;
    u64 id;
    u64 index;
    bool answered;
    status result;
    struct fiber_queue queue;
};

struct group0_send {
    bool used;
    struct group0 *group0;
    u64 to, term, index, log_term;
    struct group0_blob *blob;
    struct buf config;
};

struct group0_starts { /* what we were told of another member */
    u32 member;
    struct starts newest; /* alone */
    u64 batch;            /* with which it is durable */
};

struct group0_moved { /* says that it is elsewhere than the topology has it */
    u32 member;
    u64 until_ns; /* if it does not say so again */
    struct peer_address record, present;
};

struct group0_held { /* a message that waits for the disk */
    struct list link;
    u64 to, after;
    u32 size;
    u8 bytes[];
};

struct group0 {
    struct group0_options options;
    u64 token;
    bool forgetful; /* the store's log is not synced: nothing is believed after a start */

    struct group0_identity identity;
    struct starts own_starts;
    struct starts next_starts; /* next_starts_batch != 0: being written */
    u64 next_starts_batch;
    bool start_made; /* in this life: own_starts ends with it */
    struct group0_starts
        *starts; /* starts_count, one for each member that has told us, by number */
    u32 starts_count, starts_capacity;
    struct fiber_queue starts_queue;
    struct group0_moved *moved; /* moved_count */
    u32 moved_count, moved_capacity;
    u32 address_turn; /* of `known`: who is asked for the others next */
    struct fiber_queue address_queue;
    u32 strangers[GROUP0_STRANGERS_MAX]; /* members since our topology; before raft runs */
    u32 stranger_count;
    bool proving; /* whether this directory may be believed is not known yet: raft does not run */
    bool rolled_back;
    struct raft_hard_state restored; /* what raft starts with */
    bool running;                    /* raft is */
    bool closing;
    status failed; /* G4 */
    struct fiber_gate gate;
    struct io_timer tick;

    /* raft */
    struct raft raft;
    void *raft_memory;
    size_t raft_memory_bytes;
    struct raft_ready ready;
    struct raft_entry *entries_in; /* GROUP0_ENTRIES_IN: of a message that came */
    enum raft_role seen_role;
    u32 seen_leader;

    /* log, in memory: first = base.index + 1 */
    struct group0_item *items;
    u32 item_count, item_capacity;
    u64 item_bytes;
    u64 base_index, base_term;
    struct buf base_config;
    struct group0_blob *base_blob; /* NULL: no snapshot yet */
    u32 base_chunks;               /* in the store */

    /* log, in the store: what the newest batch leaves there */
    u64 disk_first, disk_last; /* disk_last < disk_first: nothing */
    struct lsm_batch next;     /* G1 */
    u64 next_number;           /* of the batch `next` */
    u64 next_sequence, next_persist_index;
    u64 written; /* the newest batch that is durable */
    struct fiber_queue writer_queue, written_queue;
    struct list held;
    u64 held_bytes;
    u8 envelope[GROUP0_ENVELOPE_BYTES_MAX];
    u32 envelope_size;

    /* applied */
    u64 applied, apply_target;
    u64 commit_mark; /* durable: G2 */
    struct buf applied_config;
    struct topology *topology; /* NULL: none yet */
    struct fiber_queue apply_queue, applied_queue;
    u64 snapshot_retry_ns;

    /* a snapshot that comes in, and the one that is being installed */
    struct {
        u64 from, term, index, log_term, total;
        struct buf data;
    } staging;
    struct {
        bool wanted;
        u64 index, term;
        struct buf config, data;
    } install;
    struct group0_send sends[GROUP0_SENDS_MAX];

    /* requests */
    struct list proposals;
    u32 proposal_count;
    struct list readers;
    u64 read_id;
    u32 joins;
    u32 seed_turn; /* who is asked to take us in next */

    /* leading */
    struct fiber_queue lead_queue;
    struct buf lead_memory; /* what voters are chosen from */
    u64 plan_at_ns;         /* not before */
    u64 plan_epoch;         /* of the newest topology that was looked at */
    u64 plan_nothing_epoch; /* where a plan moves nothing and is refused */
    u64 plan_ends_epoch;    /* where a plan moves nothing, and lets somebody go at once; 0: none */
    u32 plan_waits_for;     /* group0_stats */
    u32 given_up_member;    /* that the plan of this session does not wait for (group0_propose) */
    u64 given_up_session;
    u32 keeps_member; /* who leaves and was waited for last, and since when */
    u64 keeps_since_ns;
    u32 known_count;             /* whose addresses were told to peers */
    u32 known[RAFT_MEMBERS_MAX]; /* by number */
    u32 lacked_count;            /* no memory for their addresses: the tick tries again */
    u32 lacked[RAFT_MEMBERS_MAX];
    u64 leads_since_ns;
    struct group0_heard {
        u32 member;
        u64 at_ns;
    } heard[GROUP0_HEARD]; /* by number, the last one of those that meet in a place */
    u64 voters_at_ns;      /* not before */
    struct group0_quorums {
        bool used;
        u8 write, read;
        u64 since; /* the first epoch that has them; or a later one: not before */
    } quorums[LIMIT_KEYSPACES_CLIENT]; /* of the topology: group0_quorums_follow */

    u64 snapshots;
};

/* group0.c */
/* Each input of raft: begin, the input itself, end. begin is false when there is no memory for what
 * it may lead to: the input is dropped then, as on a network. */
MUST_CHECK bool group0_input_begin(struct group0 *group0);
void group0_input_end(struct group0 *group0);
/* Makes raft from what is in memory. */
MUST_CHECK status group0_raft_start(struct group0 *group0, struct raft_hard_state hard);
void group0_fail(struct group0 *group0, status st, const char *what);
/* group0_is_outdated from now on. */
void group0_outdated(struct group0 *group0);
/* True while this member takes part. */
static inline bool
group0_works(const struct group0 *group0)
{
    return group0->running && !group0->closing && ok(group0->failed);
}
/* Shows it to those above; takes the reference. */
void group0_publish(struct group0 *group0, struct topology *topology);
/* What the topology that is there now says of keyspaces' quorums. */
void group0_quorums_follow(struct group0 *group0);
void group0_addresses_update(struct group0 *group0, const struct topology *topology);
/* For those alone that there was no memory for. */
void group0_addresses_retry(struct group0 *group0);
void group0_address_heard(struct group0 *group0, u32 member, u64 epoch,
                          const struct peer_address *address);
/* What we are called from now on, on our shard. */
void group0_identity_tell(struct group0 *group0);

/* group0_log.c */
extern const struct raft_storage group0_storage;
struct group0_item *group0_log_at(struct group0 *group0, u64 index);
static inline u64
group0_log_last(const struct group0 *group0)
{
    return group0->base_index + group0->item_count;
}
/* Forgets the entries up to index, or all of them. */
void group0_log_trim(struct group0 *group0, u64 index);
void group0_log_clear(struct group0 *group0);
/* Reads everything that is stored. hard_out: zero when there is none. */
MAY_YIELD MUST_CHECK status group0_load(struct group0 *group0, struct raft_hard_state *hard_out,
                                        struct buf *topology_out);
/* Deletes everything that is stored. */
MAY_YIELD MUST_CHECK status group0_wipe(struct group0 *group0);

/* group0_write.c */
/* Makes room in `next` for one small value more. */
MUST_CHECK bool group0_write_reserve(struct group0 *group0);
/* Into `next`. false: no memory; what this call added is gone again. */
MUST_CHECK bool group0_put(struct group0 *group0, struct group0_key key, struct bytes value);
MUST_CHECK bool group0_delete(struct group0 *group0, struct group0_key key);
/* The writer is to take `next`; its number. */
u64 group0_write_post(struct group0 *group0);
/* Until that batch is durable. ST_CLOSED, or what ended it all. */
MAY_YIELD MUST_CHECK status group0_write_wait(struct group0 *group0, u64 number);
/* The value in chunks, durable, under names that nothing refers to yet. */
MAY_YIELD MUST_CHECK status group0_write_chunks(struct group0 *group0, u64 index,
                                                struct bytes bytes, u32 *count_out);
MAY_YIELD void group0_writer_main(void *arg);

/* group0_apply.c */
MAY_YIELD void group0_applier_main(void *arg);
/* What the log holds up to the commit mark, before raft starts. */
MAY_YIELD MUST_CHECK status group0_apply_stored(struct group0 *group0);
/* Lets others run when it is time. */
MAY_YIELD void group0_pause(void);
struct group0_blob *group0_blob_new(struct group0 *group0, u64 size);
void group0_blob_release(struct group0 *group0, struct group0_blob *blob);

/* group0_net.c */
void group0_messages_send(struct group0 *group0);
void group0_held_send(struct group0 *group0);
void group0_held_drop(struct group0 *group0);
void group0_handlers_set(struct group0 *group0, bool there);
/* Snapshots that could not be sent are tried again. */
void group0_sends_check(struct group0 *group0);

/* group0_starts.c */
/* A stored value. */
MUST_CHECK status group0_starts_load(struct group0 *group0, u32 member, struct bytes value);
void group0_starts_free(struct group0 *group0);
/* Before raft runs. ST_DENIED: this directory is an older copy. ST_NOT_FOUND: the others have taken
 * this member out. ST_CANCELED, ST_CLOSED, ST_TIMED_OUT: it was not found out. The topology stays
 * what it is meanwhile. */
MAY_YIELD MUST_CHECK status group0_starts_check(struct group0 *group0,
                                                const struct topology *topology, u64 deadline_ns);
/* A member has said where it is. */
void group0_starts_heard(struct group0 *group0, u32 member);
MAY_YIELD void group0_starts_main(void *arg);
/* Others are answered. */
void group0_starts_open(struct group0 *group0, bool there);
/* What the member has told last; count 0: nothing. */
struct starts group0_starts_of(const struct group0 *group0, u32 member);

/* group0_address.c */
/* What the topology says. */
struct peer_address group0_address_of(const struct topology_member *member);
/* Where the member is to be called: there, or where it says that it is. */
struct peer_address group0_address_present(struct group0 *group0,
                                           const struct topology_member *member);
/* False: no memory; the next message, topology or tick tries again. */
MUST_CHECK bool group0_address_set(struct group0 *group0, u32 member,
                                   const struct peer_address *address);
/* Whether the topology has us elsewhere. */
bool group0_address_is_new(const struct group0 *group0);
void group0_addresses_free(struct group0 *group0);
MAY_YIELD void group0_address_main(void *arg);
/* Others are answered. */
void group0_address_open(struct group0 *group0, bool there);

/* group0_change.c */
/* done is called later, if it returns true; else outcome_out says what it was. */
MUST_CHECK bool group0_propose(struct group0 *group0, const struct topology_command *command,
                               struct bytes bytes, struct group0_proposal *proposal,
                               struct group0_outcome *outcome_out);
void group0_proposals_applied(struct group0 *group0, u64 index, u64 term,
                              const struct group0_outcome *outcome);
/* What is under way will not be heard of any more. */
void group0_proposals_fail(struct group0 *group0, u8 result);
void group0_join_asked(struct group0 *group0, struct peer_request *request,
                       const struct peer_identity *from, struct bytes body);

/* group0_lead.c */
/* A member has answered what we sent it as leader: so it is reached, too. */
static inline void
group0_member_heard(struct group0 *group0, u32 member, u64 now_ns)
{
    group0->heard[member % GROUP0_HEARD] = (struct group0_heard){member, now_ns};
}
MAY_YIELD void group0_lead_main(void *arg);

#endif
