/* SPDX-License-Identifier: MIT
 *
 * hints_internal.h -- what the parts of the hints share:
 *
 *   hints.c         opening, adding, storing, the index in memory, figures
 *   hints_key.c     keys of hints and of markers; pure
 *   hints_replay.c  the fiber that loads, sends, expires and deletes
 *
 * In the store. The value of a hint is the batch's operations as a log has them; all else is in the
 * key, so that nothing is put together before it is written:
 *
 *   | {tag} | target: 4 | kind: 1 | version: 8 | keyspace: 2 | count: 4 | part: 2 | parts: 2 |
 *
 * numbers big-endian, so a run (the hints of a partition for a target) lies together, the oldest
 * first. A batch that is larger than a value may be is cut into parts by bytes, and is one write
 * again when it is sent: a batch is atomic on each replica, late or not. The parts are stored in
 * one batch, in two where LIMIT_BATCH_BYTES wants it; then a crash, or a store without room, may
 * leave the first ones alone, which is noticed (damaged). A marker (kind 2, nothing behind the kind, value: a version) says
 * that a run needs repair; target 0: any.
 *
 * No time to live in the store: what expired there would be gone unseen, and nobody would know
 * that repair is due.
 *
 * In memory. Runs, of which each knows how many hints it has and how old the oldest may be: at most
 * partitions of the shard times absent partners, some 100 bytes each.
 *
 * Invariants
 *   I1  version_oldest of a run is at most the version of each of its hints, stored or queued.
 *   I2  A hint counts (waiting, version_oldest) until its deletion is durable: before that it may
 *       come back after a power cut.
 *   I3  The marker of a run is in the log before the deletion of what was dropped.
 *   I4  One pass at a time, of one target; it ends when nothing that it sent is outstanding. So no
 *       hint is sent twice at once, or counted twice.
 */
#ifndef DISTKV_CLUSTER_HINTS_INTERNAL_H
#define DISTKV_CLUSTER_HINTS_INTERNAL_H

#include "base/list.h"
#include "cluster/hints.h"
#include "cluster/quorum.h"
#include "io/fiber.h"

/* ---- hints_key.c ---- */

#define HINT_TAG_BYTES 8u
#define HINT_KEY_BYTES (2u + HINT_TAG_BYTES + 4u + 1u + 8u + 2u + 4u + 2u + 2u)
#define HINT_PARTS_MAX ((u32)((LIMIT_BATCH_BYTES + LIMIT_VALUE_BYTES - 1) / LIMIT_VALUE_BYTES))
/* What an entry costs beside its value: an estimate. */
#define HINT_ENTRY_BYTES 64u

/* Decimal digits; no hash tag has none, so a size of 0 is none. */
struct hint_tag {
    u8 size;
    char text[HINT_TAG_BYTES - 1];
};

enum hint_kind { HINT_KIND_WRITE = 1, HINT_KIND_MARKER = 2 };

struct hint_key {
    u32 target;
    u8 kind;
    u64 version;
    u16 keyspace;
    u32 count;
    u16 part, parts;
};

/* The least number for each of the partitions (of PARTITION_COUNT_DEFAULT) from first on. */
void hint_tags_find(u32 first, u32 count, struct hint_tag *out);
/* Into HINT_KEY_BYTES; returns the size. */
u32 hint_key_encode(const struct hint_tag *tag, const struct hint_key *key, u8 *out);
/* The beginning that all keys of a run have, and no other. */
u32 hint_key_run(const struct hint_tag *tag, u32 target, u8 *out);
/* False: none that we write. */
bool hint_key_decode(const struct hint_tag *tag, struct bytes bytes, struct hint_key *out);

static inline u32
hint_parts(size_t ops_bytes)
{
    return (u32)((ops_bytes + LIMIT_VALUE_BYTES - 1) / LIMIT_VALUE_BYTES);
}

/* ---- state ---- */

/* In flight, and in flight or not deleted yet. Twenty round trips with a sync of 10 ms carry 25
 * MB/s of writes of 1 KB. */
#define HINTS_IN_FLIGHT       256u
#define HINTS_IN_FLIGHT_BYTES MIB(4)
#define HINTS_OUTSTANDING     1024u
#define HINTS_DELETE_OPS      512u
#define HINTS_CALL_NS         (2 * NS_PER_S)
#define HINTS_TICK_NS         (100 * NS_PER_MS)
#define HINTS_BURST_NS        (10 * NS_PER_MS)
#define HINTS_BACKOFF_NS_MAX  (5 * NS_PER_S)
#define HINTS_EXPIRE_NS       (10 * NS_PER_S)

struct hint_target {
    struct list link; /* hints->targets */
    u32 member;
    u32 run_count;
    u64 waiting, waiting_bytes;
    /* passes */
    u64 retry_ns, backoff_ns;
    bool failed; /* in this pass: it is given up */
};

struct hint_run {
    struct hint_run *next;      /* of the same partition */
    struct hint_target *target; /* NULL: hints->all */
    u32 partition;
    u64 waiting, waiting_bytes;
    u32 queued;         /* of these, in hints->queue; none: nobody walks that */
    u64 version_oldest; /* I1; UINT64_MAX: none waits */
    u64 pass_oldest;    /* during a pass: of what it leaves, and of what is added meanwhile */
    /* repair */
    bool repair, marked, marking; /* marked: the store has a marker of marked_version */
    u64 repair_oldest, repair_newest, marked_version;
};

/* A hint that waits for room in the store. Counted in its run. */
struct hint_queued {
    struct list link; /* hints->queue, until it is stored */
    struct hint_run *run;
    struct hint_key key;
    size_t size;
    u8 ops[];
};

struct hint_call {
    struct peer_call call;
    struct hint_sent *sent;
    u32 member;
    bool under_way;
};

enum hint_fate {
    HINT_DELIVERED,
    HINT_REROUTED,
    HINT_EXPIRED,
    HINT_STALE,
    HINT_DAMAGED,
    HINT_ORPHANED
};

/* A hint between its reading and the moment when its deletion is durable. */
struct hint_sent {
    struct list link; /* hints->flying, ended or deleting */
    struct hints *h;
    struct hint_run *run;
    struct hint_key key; /* part: how many of the parts are there */
    u64 bytes;
    u64 delete_seq;
    enum hint_fate fate;
    bool failed, refused; /* refused: by what it is; others may do better */
    u64 epoch;            /* of the topology that told whom to call */
    u32 partition;
    struct buf ops; /* for those who are called later */
    u32 pending;
    u32 called, call_count;
    struct hint_call calls[];
};

struct hints {
    /* configuration */
    struct hints_options options;
    u32 partition_first, partition_count; /* of PARTITION_COUNT_DEFAULT */
    u64 open_seq;                         /* what was stored later was counted when it was added */
    struct hint_tag *tags;                /* by partition */

    /* state */
    struct topology *topology; /* NULL: none yet */
    u32 self;
    bool closing, loaded, main_ended, storing, markers_due;
    bool unreadable;        /* something that we could not count */
    struct hint_run **runs; /* by partition */
    struct list targets;
    struct hint_target *to_self; /* the one that is ourselves; NULL: there is none */
    struct hint_run all;         /* of whom nothing is known any more: any partition, any member */
    u64 waiting, waiting_bytes;  /* of all targets */
    struct list queue;           /* struct hint_queued */
    u64 queue_bytes, run_bytes;  /* in memory */
    struct hints_own own;        /* zero: no replicator is there */
    u32 merging;                 /* states on their way into our own store */
    struct fiber_queue wake;     /* the main fiber */
    struct fiber_queue idle;     /* closing waits here */

    /* a pass */
    struct hint_target *passing;         /* whose */
    struct hint_run *passing_run;        /* only this one, if any */
    bool passing_alive;                  /* when it began */
    bool passed_over;                    /* something waits for others than the target */
    struct list flying, ended, deleting; /* struct hint_sent; those that fly: by epoch */
    u32 in_flight, outstanding;
    u64 in_flight_bytes;
    u64 pace_ns;       /* when the next may be sent */
    struct buf joined; /* the parts of a large one */
    u64 too_large_told_ns;

    /* statistics */
    struct hints_stats stats;
};

/* ---- hints.c ---- */

static inline const struct hint_tag *
hint_tag_of(const struct hints *h, u32 partition)
{
    return &h->tags[partition - h->partition_first];
}

bool hints_own_partition(const struct hints *h, u32 partition);
/* NULL: none. */
struct hint_run *hint_run_find(const struct hints *h, u32 partition, u32 target);
/* Made if it is not there; NULL: no memory. */
struct hint_run *hint_run_get(struct hints *h, u32 partition, u32 target);
void hint_run_count(struct hints *h, struct hint_run *run, u64 version, u64 bytes);
void hint_run_uncount(struct hints *h, struct hint_run *run, u64 bytes);
/* Frees what has nothing to tell any more, and its target. On the main fiber, between passes. What
 * is queued need not count: where some could not be read, what is read of them later takes away
 * counts of others. */
void hint_runs_prune(struct hints *h);
/* A hint of this version is gone without having been delivered. */
void hint_run_lost(struct hints *h, struct hint_run *run, u64 version);
/* Lowest version in the queue of the run's, UINT64_MAX: none. */
u64 hint_queue_oldest(const struct hints *h, const struct hint_run *run);
bool hint_queue_has(const struct hints *h, const struct hint_run *run, u64 version);
/* Brings the store's markers in line with the runs. False: not now. */
MAY_YIELD bool hint_markers_write(struct hints *h);
/* What waits for room goes on on a fiber; a spawn that was refused is tried again. */
void hint_store_go_on(struct hints *h);

/* ---- hints_replay.c ---- */

MAY_YIELD void hints_main(void *arg);

#endif
