/* SPDX-License-Identifier: MIT
 *
 * hints.h -- writes kept for a replica that did not get them, until it lives again: of one shard.
 *
 *   coordinator: a write went to the others, and one home replica is dead, late or refuses
 *       hints_add      -> an entry of KEYSPACE_HINTS in this shard's own store
 *       target lives   -> read back, sent with its old version, deleted once acknowledged
 *
 * A hint is named by partition and target, and its key has a hash tag that lies in the partition
 * of the write. So it stays on the shard that owns the partition whatever the number of cores
 * becomes, and restarts as everything else in the store does.
 *
 * Promises
 *   N1  hints_add never waits and is bounded: disk_bytes_max on disk; in memory what waits for room
 *       in the store (HINTS_QUEUE_BYTES, or a quarter of the budget), and a quarter of the budget
 *       for what is known of them. What is left is for those who read, compare and stream.
 *       What does not fit is dropped, and then it is known (also after a restart) that the target
 *       needs repair of that partition: hints_repair_next.
 *   N2  A hint goes when every replica that it is for has acknowledged it as durable, or when its
 *       window has passed (then N1's repair is due), not before. A crash of either side repeats
 *       it at worst; it has its version, so that changes nothing.
 *   N3  A target that does not hold the partition any more gets nothing; all that do are sent the
 *       write instead. A target that left needs no repair, nor one for a member (a stand-in) that
 *       does not hold the partition itself: those who do compare what they have.
 *   N4  hints_oldest_version tells of every write that a hint here may yet bring, and of every one
 *       that was dropped and not repaired: nobody may collect what hides them (lsm_purge_allow).
 *       Should somebody all the same, the replica refuses the hint (PEER_WRITE_HINT).
 *
 * A stand-in (stand_in.h) keeps a write that another member coordinates, and counts as one of W by
 * that: hints_keep, which says whether it is in the store. From there on it is a hint as any other.
 *
 * What is not promised: a write that was acknowledged a moment before this node lost power may have
 * no hint yet. Hash trees find it.
 */
#ifndef DISTKV_CLUSTER_HINTS_H
#define DISTKV_CLUSTER_HINTS_H

#include "cluster/peer.h"
#include "cluster/topology.h"
#include "lsm/lsm.h"

/* Later a tree is compared anyway; and disks have an end. */
#define HINTS_WINDOW_MS (3ull * 3600 * 1000)
/* Of the disk, for all shards together. */
#define HINTS_DISK_PERCENT 10u
/* Of one shard. 30 s without a node at 5,000 writes/s of 1 KB leave 75 MB on each of two
 * coordinators: at this rate gone in 2.3 s. A disk writes, and a network of 10 Gbit/s carries, many
 * times as much. */
#define HINTS_REPLAY_BYTES_PER_S MIB(32)
/* While the store has no room for them at once. One of the largest batches fits; where a quarter of
 * the budget is less than that it may be alone in the queue, with half of the budget. */
#define HINTS_QUEUE_BYTES MIB(10)

struct hints; /* of one shard */

struct hints_options {
    struct lsm *lsm;
    struct peers *peers;
    struct budget *budget;
    u32 shard;
    /* Whether calls to the member are worth an attempt; NULL: always. */
    bool (*alive)(void *arg, u32 member);
    void *arg;
    u64 disk_bytes_max;     /* hints_disk_bytes; 0: none are kept, all are dropped */
    u64 window_ms;          /* 0: HINTS_WINDOW_MS */
    u64 replay_bytes_per_s; /* 0: HINTS_REPLAY_BYTES_PER_S */
};

/* A share of the disk that the directory is on, for one of shard_count shards. */
MUST_CHECK status hints_disk_bytes(const char *dir, u32 percent, u32 shard_count, u64 *out);

/* Opened before the shard's replicator and closed after it, while peers and store are there. What
 * the store has of an earlier life is counted on a fiber. */
MUST_CHECK status hints_open(const struct hints_options *options, struct hints **out);
MAY_YIELD void hints_close(struct hints *hints);
/* Holds the topology. self: the own number. */
void hints_topology_set(struct hints *hints, struct topology *topology, u32 self);

/* What hints for this very member need, while the replicator is open. */
struct hints_own {
    /* Before a version comes into our own store: what is stamped later is higher. False: it is too
     * far ahead of the wall clock, and must wait. */
    bool (*observe)(void *arg, u64 version);
    /* How a state of a key that keeps siblings comes into it. */
    status (*merge)(void *arg, const struct lsm_batch *batch, u64 deadline_ns);
    void *arg;
};
/* NULL: not now. */
void hints_own_set(struct hints *hints, const struct hints_own *own);

/* The oldest epoch that something was sent with that is not answered yet; UINT64_MAX: nothing is
 * under way. */
u64 hints_epoch(const struct hints *hints);

/* The batch (its version filled in; puts and deletes of one partition and keyspace) did not get to
 * the target. Copies it. Also as a callback. */
void hints_add(struct hints *hints, u32 target, const struct lsm_batch *batch);
/* The same, of one that counts only if it is kept: in the store (*seq_out is to be durable), or
 * refused, and then nothing is known of it here. All operations lie in one partition (of
 * PARTITION_COUNT_DEFAULT). ST_WOULD_WAIT, ST_OVERLOADED: no room in memory now; ST_NO_SPACE:
 * disk_bytes_max; ST_TOO_LARGE: with its name it is larger than a batch. Never waits. */
MUST_CHECK status hints_keep(struct hints *hints, u32 target, const struct lsm_batch *batch,
                             u64 *seq_out);

/* No hint here is, and none that was dropped for a member who still needs it was, of a lower
 * version; UINT64_MAX: there are none; 0: not known yet. (Of what is being written now the
 * replicator knows: replicator_oldest_version.) */
u64 hints_oldest_version(const struct hints *hints);

/* The same of those that wait alone: none of a lower version will be sent any more. */
u64 hints_oldest_waiting(const struct hints *hints);

/* Whom hints were dropped for. partition: of PARTITION_COUNT_DEFAULT. */
struct hints_repair {
    u32 partition; /* HINTS_EVERY: any of this shard */
    u32 target;    /* HINTS_EVERY: any member */
    u64 version_oldest;
};
#define HINTS_EVERY UINT32_MAX
/* In some order that stays; *cursor: 0 at first. False: no more. */
bool hints_repair_next(const struct hints *hints, u64 *cursor, struct hints_repair *out);
/* The target has all of the partition up to this version: what was dropped before is mended. As
 * hints_repair_next tells them; a partition with HINTS_EVERY: all of its targets. */
void hints_repaired(struct hints *hints, u32 partition, u32 target, u64 version);

/* Whether any wait for somebody else, or what an earlier life left is not counted yet. What waits
 * is delivered, or its window passes. */
bool hints_wait_for_others(const struct hints *hints);

struct hints_stats {
    /* now */
    u64 waiting, waiting_bytes; /* on disk and in the queue */
    u64 queued_bytes;           /* in memory */
    u64 version_oldest;         /* of those, at most; hlc_wall_ms says when; 0: none */
    u64 repairs_due; /* runs of hints (partition and target) of which some were dropped */
    bool loaded;     /* what an earlier life left is counted */
    /* since the opening */
    u64 added;
    u64 kept; /* by hints_keep */
    u64 replayed, replayed_bytes;
    u64 rerouted; /* of these: to others, since the target does not hold the partition */
    u64 failed;   /* attempts that were not acknowledged; they are repeated */
    u64 dropped;  /* no room on disk or in memory, or the store refused */
    u64 expired;  /* their window has passed */
    u64 stale;    /* a replica has collected what might have hidden them */
    u64 damaged;  /* unreadable, or not what we write */
    u64 orphaned; /* their keyspace is gone */
};
void hints_stats_get(const struct hints *hints, struct hints_stats *out);

struct hints_target {
    u32 member;
    u64 waiting, waiting_bytes;
    u64 version_oldest; /* as above */
    u64 repairs_due;
};
/* The member with the next higher number than `after` for whom hints wait or repair is due. */
bool hints_target_next(const struct hints *hints, u32 after, struct hints_target *out);

#endif
