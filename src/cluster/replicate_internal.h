/* SPDX-License-Identifier: MIT
 *
 * replicate_internal.h -- what the parts of the replicator share:
 *
 *   replicate.c        opening, closing, topology, waiting for the own log
 *   replicate_clock.c  what is stamped, and what is kept of the clock over a restart
 *   replicate_write.c  coordinating writes, and the writes that mend replicas
 *   replicate_read.c   coordinating reads
 *   replicate_serve.c  the replica: requests of coordinators on other nodes
 *   replicate_siblings.c  all that writes keys which keep siblings
 *   replicate_stand_in.c  keeping what a home replica that is gone should have got
 *
 * Invariants
 *   R1  A write counts here when lsm_durable_seq has reached its number, not when it is visible; a
 *       replica answers no earlier either. So with reads: what a power cut could take back, from
 *       all who have it, is not told.
 *   R2  Every version that this store holds of a client's keyspace is at most hlc.last: it was
 *       stamped here, observed before it was written, or is below the floor of the opening. So what
 *       is stamped here is higher than anything here, and own keys are never asked for it.
 *   R3  What is acknowledged was counted in one attempt, with one version, by one topology. Answers
 *       to an attempt that was given up (another version, another row) count for nothing.
 *   R4  Nothing is kept here for others of a version below what was told to be the oldest that may
 *       come from here (promised): a hint counts there from its first moment on.
 */
#ifndef DISTKV_CLUSTER_REPLICATE_INTERNAL_H
#define DISTKV_CLUSTER_REPLICATE_INTERNAL_H

#include "base/histogram.h"
#include "base/list.h"
#include "base/retry.h"
#include "cluster/quorum.h"
#include "cluster/replicate.h"
#include "proto/peer.h"
#include "proto/peer_replica.h"

/* Replica requests that wait on fibers at once; more are refused. */
#define SERVE_FIBERS_MAX 256u
/* Calls under way by member; members that share a place share their counts, which only decide whom
 * to prefer. */
#define LOAD_PLACES  256u
#define REPAIR_MARKS 1024u
#define SESSION_NS   (30 * NS_PER_S)
/* Between two attempts that may find another topology, when nobody tells of one. */
#define AGAIN_NS (10 * NS_PER_MS)
/* By how much what is told of versions to come lags behind the clock: longer than a write is on its
 * way to a stand-in while nothing fails, and clocks differ. */
#define KEEP_LATE_MS 2000u
/* While the own store has no room for a write. */
#define ROOM_NS NS_PER_MS

/* A write's calls last at least so long, however soon its coordinator must answer: the others are
 * to get it, too. */
#define WRITE_CALL_NS_MIN (2 * NS_PER_S)

/* Keys whose siblings are read and written at once, by hash. */
#define HOLD_BUCKETS 64u

#define HEDGE_NS_MIN   (2 * NS_PER_MS)
#define HEDGE_NS_START (10 * NS_PER_MS) /* before enough answers were seen */
#define HEDGE_SAMPLES  128u

/* So long after the disk has answered nothing of what it was asked it counts as one that does not
 * answer: others are asked in its place at once, and without a budget. As long as a near member's
 * silence takes to be seen, nearly (liveness.h). */
#define DISK_STANDS_NS (500 * NS_PER_MS)
/* Own reads that nobody waits for any more, and their fibers. With so many the disk is asked
 * nothing. */
#define DISK_READS_LEFT_MAX 256u

/* Something that waits for the own log; in replicator->durable, ascending by seq. */
struct durable_wait {
    struct list link; /* or to itself */
    u64 seq;
    /* A callback; frees it if it likes. */
    void (*done)(struct durable_wait *wait, bool durable);
};

/* A request that is being coordinated, on its fiber's stack; or a replica's write that was judged
 * and is not in the store yet. */
struct coordinated {
    struct list link; /* replicator->coordinated, ascending by epoch */
    u64 epoch;
};

struct replicator {
    /* configuration */
    struct replicator_options options;
    u64 token_first, token_last;
    u64 open_ns;

    /* state */
    struct topology *topology; /* NULL: none yet */
    u32 self;
    struct hlc hlc;
    u64 clock_marked; /* durable: whatever is stamped after another opening is above it */
    u64 promised;     /* R4 */
    bool clock_runs;
    struct fiber_queue clock_wake;
    bool closing, watcher_ended;
    struct fiber_gate gate; /* coordinators */
    struct list coordinated;
    struct list attempts;       /* struct write_attempt that live */
    struct list durable;        /* struct durable_wait */
    struct fiber_queue changed; /* another topology, or closing */
    struct fiber_queue durable_wake;
    struct fiber_queue idle; /* closing waits here */
    u32 serving;             /* replica requests that are not answered yet */
    u32 serving_fibers;
    u32 load[LOAD_PLACES];
    u64 session_secret;
    u32 repair_marks[REPAIR_MARKS]; /* bumped by repairs, by partition */
    /* replicate_siblings.c */
    struct list holds[HOLD_BUCKETS]; /* struct key_hold */
    struct fiber_queue hold_freed;
    struct actor_lease *leases; /* by partition of the store's, NULL until the first is needed */
    u32 lease_first, lease_count;
    bool leasing;
    struct fiber_queue lease_done;

    /* statistics */
    struct histogram answer_ns; /* of digests, and of own reads of the disk */
    u64 hedge_ns;
    struct retry_budget retries; /* of reads: earned by those who are asked first */
    /* own reads that wait for the disk (replicate_read.c) */
    u32 disk_reads;
    u32 disk_reads_left; /* of these: whoever wanted them has gone on without */
    u64 disk_moved_ns;   /* when one has ended last, or the first of them has begun */
    u64 clock_log_ns;    /* when a refused clock was logged last */
    struct replicate_stats stats;
};

static inline u32 *
load_of(struct replicator *r, u32 member)
{
    return &r->load[member % LOAD_PLACES];
}

static inline bool
is_alive(const struct replicator *r, u32 member)
{
    return member == r->self || r->options.alive == NULL ||
           r->options.alive(r->options.arg, member);
}

/* A call has done nothing, and who was called lives: it, or the way to it, has too much to do. */
static inline bool
is_busy(const struct peer_call *call, status st, const struct native_header *header)
{
    if (!ok(st)) return status_is(st, ST_OVERLOADED) && !call->maybe_sent;
    return header->status == NATIVE_ST_OVERLOADED || header->status == NATIVE_ST_NO_MEMORY;
}

/* The same of our own store. Who goes away is to be passed over. */
static inline bool
own_is_busy(const struct replicator *r, status st)
{
    bool busy =
        status_is(st, ST_WOULD_WAIT) || status_is(st, ST_OVERLOADED) || status_is(st, ST_NO_MEMORY);
    return busy && !r->closing;
}

static inline bool
lost_without(const struct quorum *quorum, u32 members)
{
    struct quorum others = *quorum;
    for (u32 i = 0; i < others.count; i++)
        if (members >> i & 1) others.answers[i] = QUORUM_PENDING;
    return quorum_state(&others) == QUORUM_LOST;
}

/* Why a quorum is lost, or not met in time. busy: members that were, a bit each by index; full:
 * whose indexes fill their memory. ST_OVERLOADED: without those that were busy it would not be, so
 * whoever asks another coordinator meets the same ones; ST_FULL: nor without those that are full,
 * so that asking again is in vain for long. */
static inline status
lost_why(const struct quorum *quorum, u32 busy, u32 full)
{
    if ((busy | full) == 0) return ST_UNAVAILABLE;
    if (busy != 0 && !lost_without(quorum, busy)) return ST_OVERLOADED;
    return full != 0 && !lost_without(quorum, busy | full) ? ST_FULL : ST_UNAVAILABLE;
}

/* ---- replicate.c ---- */

static inline void
repair_note(struct replicator *r, u32 partition)
{
    r->repair_marks[partition % REPAIR_MARKS]++;
}
/* Of replicator_session, and not over. */
bool replicate_session_is_open(const struct replicator *r, u32 session);

/* The shard of the member that the token lies on; false: no such member. */
bool replicate_shard(const struct topology *topology, u32 member, u64 token, u32 *shard_out);
/* How many of a row's members a level asks for. wanted: W or R, of replicas (N). */
u32 replicate_need(enum replicate_level level, u32 wanted, u32 replicas, u32 places, u32 count);
/* The keyspace's row where the token lies. False: this shard knows of none. A keyspace is made
 * before anybody is asked for its keys and is never removed, so whoever asked has a newer topology:
 * it is to ask again, not to be refused. */
bool replicate_row(const struct replicator *r, u16 keyspace, u64 token, u32 *partition_out,
                   struct topology_row *out);

/* Begins (or begins anew) with the present topology. */
void coordinated_begin(struct replicator *r, struct coordinated *c);
/* Of a request of another node, of the epoch that it was accepted with (or the present one). */
void coordinated_begin_at(struct replicator *r, struct coordinated *c, u64 epoch);
void coordinated_end(struct coordinated *c);
/* Waits for a topology other than that of epoch, for AGAIN_NS at most (or until the deadline).
 * wait_newer: somebody has one, so until it comes. False: the deadline has passed. */
MAY_YIELD bool topology_await(struct replicator *r, u64 epoch, bool wait_newer, u64 deadline_ns);

/* ---- replicate_clock.c ---- */

void clock_open(struct replicator *r);
/* Whether a version from elsewhere is not too far ahead of the wall clock; moves our clock. */
bool version_observe(struct replicator *r, u64 version, const char *what, u32 member);
/* The same of a hint; arg: the replicator. */
bool clock_observe_hint(void *arg, u64 version);
/* Waits until this shard may stamp (REPLICATE_QUIET_MS). False: the deadline has passed. */
MAY_YIELD bool stamp_await(struct replicator *r, u64 deadline_ns);

/* ---- replicate.c ---- */

/* done comes later or, when seq is durable already, at once. */
void durable_await(struct replicator *r, struct durable_wait *wait, u64 seq);

/* What this store has of a key, as it is: what has expired by our clock may live by another one,
 * so it is told, and brought to others, with its expiry. */
struct own_read {
    bool found;             /* a value; false: deleted, or nothing */
    u64 version, expire_ms; /* version: as lsm_newest, so that a deleted range counts, too */
    u64 seq;                /* what must be durable before anybody is told */
    struct lsm_value value; /* when found: the caller releases it */
};
MAY_YIELD MUST_CHECK status own_read(struct replicator *r, u16 keyspace, u64 token,
                                     struct bytes key, struct own_read *out);
/* The same from memory; ST_WOULD_WAIT: it takes the disk. */
MUST_CHECK status own_read_try(struct replicator *r, u16 keyspace, u64 token, struct bytes key,
                               struct own_read *out);

/* ---- replicate_write.c ---- */

struct write_call {
    struct peer_call call;
    struct write_attempt *attempt;
    u32 member;
    u32 target; /* whom it stands in for; 0: nobody */
    bool under_way;
};

/* One version of a batch on its way to the replicas. Lives until the last call has ended and the
 * own log has answered, which may be after the coordinator has: so it is on no stack, and has the
 * operations by then. */
struct write_attempt {
    struct list link; /* replicator->attempts */
    struct replicator *r;
    u32 references;
    u64 version, epoch;
    u64 deadline_ns;
    u16 keyspace;
    u32 partition;
    struct quorum quorum;
    u32 busy;         /* who has refused for that, by index: lost_why */
    u32 full;         /* the same, ST_FULL */
    u64 newer;        /* the highest version that a replica told of; 0: none */
    u64 epoch_seen;   /* the highest of a replica that refused for its epoch */
    bool wrong_epoch; /* somebody did */
    bool maybe_done;  /* somewhere */
    bool given_up;    /* R3 */
    bool decided;     /* the coordinator is gone; what fails is missed */
    bool merges;      /* the operation is a state of a key that keeps siblings */
    bool repair;      /* somebody has had it for long: no hints, the next read finds it again */
    struct fiber_queue wake;
    struct durable_wait own;
    const struct lsm_batch *batch; /* the coordinator's, or &taken */
    struct lsm_batch taken;
    u32 call_count;
    struct write_call calls[];
};

/* A tombstone above it may have been collected here: it would bring back what was deleted. Whoever
 * has it now, and it is in no order for us to lack it, shows so by comparing trees. repair: it
 * mends; that something is gone may be brought at any time. */
bool write_is_stale(const struct replicator *r, u16 keyspace, u64 version, struct bytes ops,
                    bool repair);

void attempt_unref(struct write_attempt *attempt);
/* Ends the calls of an attempt that nobody waits for, because of closing. */
void attempt_cancel(struct write_attempt *attempt);
/* Brings a value that somebody has to members that are known (or thought) not to have it. have and
 * lack: bits by index of members. Waits until need_read (or the sets' needs) are met; false: they
 * were not before the deadline. */
struct mend {
    u16 keyspace;
    u64 token;
    struct bytes key;
    bool found;
    bool merges; /* a state of a key that keeps siblings */
    u64 version, expire_ms;
    struct bytes value;
    u32 have[LIMIT_PLACEMENT_REPLICAS], have_count;
    u32 lack[LIMIT_PLACEMENT_REPLICAS], lack_count;
};
/* Whether so many have it already that nothing needs to be brought to anybody. */
bool replicate_held(const struct replicator *r, const struct topology_row *row,
                    const struct mend *mend);
MAY_YIELD MUST_CHECK status replicate_mend(struct replicator *r, const struct topology_row *row,
                                           u32 partition, u64 epoch, const struct mend *mend,
                                           u64 deadline_ns);

/* Whether enough live for a write at the level. */
bool write_possible(const struct replicator *r, enum replicate_level level, u16 keyspace,
                    const struct topology_row *row);
/* Brings the others a batch, with its version, that is durable here, until W have it. */
MAY_YIELD MUST_CHECK status write_spread(struct replicator *r, enum replicate_level level,
                                         struct lsm_batch *batch, struct coordinated *c,
                                         u64 deadline_ns, u64 *version_out);

/* ---- replicate_siblings.c ---- */

/* replicate_merge of a batch's only operation, put or delete. from: a member, for the log. */
MAY_YIELD MUST_CHECK status siblings_merge_op(struct replicator *r, const struct lsm_batch *batch,
                                              u32 from, u64 deadline_ns, u64 *seq_out);
/* The same of a hint, until it is durable; arg: the replicator. */
MAY_YIELD MUST_CHECK status siblings_merge_hint(void *arg, const struct lsm_batch *batch,
                                                u64 deadline_ns);
void siblings_close(struct replicator *r);

/* ---- replicate_stand_in.c ---- */

/* What is asked of a stand-in; nothing of it is believed. */
enum native_status keep_judge(struct replicator *r, u32 from, u16 keyspace, u64 epoch,
                              const struct peer_write *write);
/* Of one that is judged to be fine: in the store, as hints_keep says. ST_CONFLICT: too late. */
status keep_try(struct replicator *r, const struct peer_write *write, u64 *seq_out);
MAY_YIELD status keep_until(struct replicator *r, const struct peer_write *write, u64 deadline_ns,
                            u64 *seq_out);

/* ---- replicate_serve.c ---- */

void serve_open(struct replicator *r);
void serve_close(struct replicator *r);

#endif
