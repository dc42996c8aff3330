/* SPDX-License-Identifier: MIT
 *
 * trees_internal.h -- what the parts of the trees share:
 *
 *   trees.c           opening, the fiber with its rounds, what is settled and may be purged, figures
 *   trees_resolve.c   the trees of this shard: scanning what was written, forgetting when memory is
 *                     short
 *   trees_exchange.c  comparing some partitions with all their replicas
 *   trees_serve.c     being compared with
 *   trees_clean.c     removing what this member does not hold any more
 *
 * Invariants
 *   A1  A leaf is known and not marked only if its hash is that of a state that the store had after
 *       the last write to it. (A mark is cleared before the scan's snapshot is taken.)
 *   A2  The bound of every tree is at least what lsm_purge_below says: what may be collected here
 *       does not count here.
 *   A3  settled is raised only by who has compared all replicas of a partition, in a time during
 *       which no repair came to his own store, each durable up to what was compared, and found no
 *       difference below a version below which nothing will come any more; or was told so by him.
 *   A4  The version of A3 is known only while every member of the topology answers, works with the
 *       present stage, and is clean: has nothing of partitions that it does not hold.
 */
#ifndef DISTKV_CLUSTER_TREES_INTERNAL_H
#define DISTKV_CLUSTER_TREES_INTERNAL_H

#include "cluster/cluster.h"
#include "cluster/tree.h"
#include "io/io.h"
#include "proto/peer_tree.h"

static_assert(PEER_TREE_LEAVES == TREE_LEAVES, "they are those");

/* Partitions that are compared at once: what is scanned of them is used for all replicas. */
#define TREES_BATCH 32u
/* A scan that takes longer begins anew behind what it has: its snapshot holds files. */
#define TREES_SCAN_NS    (200 * NS_PER_MS)
#define TREES_ROOTS_NS   (10 * NS_PER_S)
#define TREES_PAGE_NS    (10 * NS_PER_S)
#define TREES_CALL_NS    (5 * NS_PER_S)
#define TREES_PAGE_BYTES KIB(64)
/* Requests of others that are worked at; more are refused. */
#define TREES_SERVED_MAX 8u
/* A difference in something that was written a moment ago is on its way. */
#define TREES_FRESH_MS 5000u

/* The trees of one keyspace; arrays by partition of this shard. */
struct tree_set {
    struct tree **trees; /* NULL: nothing but empty leaves, as far as they are known */
    u64 *known;          /* of those without a tree */
    u64 *marks;          /* leaves that were written to: the store sets them */
};

/* What is known to be on all replicas of a partition, in all keyspaces: all below a version. */
struct settled {
    u64 last;          /* the newest */
    u64 next, next_ns; /* one that must wait, since when; 0: none */
    u64 ready;         /* one that has waited */
};

struct trees {
    /* configuration */
    struct cluster_shard *shard;
    struct budget budget; /* of `settled`, and of trees, which take the rest (trees_resolve.c) */
    u64 token_first;

    /* state; partitions as the topology counts them */
    u32 partition_count; /* of the whole ring; 0: no topology yet */
    u32 first, count;    /* those of this shard */
    struct tree_set sets[LIMIT_KEYSPACES_CLIENT];
    struct fiber_mutex resolving;
    u32 forget; /* where memory is looked for next */
    struct settled *settled;
    u64 settled_epoch;                  /* the stage that it belongs to */
    u64 *drops[LIMIT_KEYSPACES_CLIENT]; /* bits of partitions that this member does not hold */
    u64 clean_epoch;                    /* nothing of such is here, since this stage */
    u64 clean_ns, drop_ns;              /* when it is looked at next, and dropped again */
    u64 stage_epoch, stage_ns;          /* the present one, and since when it is that */
    bool closing, ended;
    u32 serving;
    struct fiber_queue wake, idle;
    u64 owed_ns; /* of TREES_BYTES_PER_S */
};

/* What a partition has, for others to compare with. */
struct tree_view {
    u32 partition, bound;
    bool failed;
    bool damaged; /* that is why: it will fail again */
    u64 root;
    u64 leaves[TREE_LEAVES];
};

static inline struct trees_node *
trees_node(const struct trees *t)
{
    return &t->shard->cluster->trees;
}

static inline void
trees_count(_Atomic u64 *counter, u64 n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline bool
trees_is_ending(const struct trees *t)
{
    return t->closing || atomic_load(&t->shard->cluster->refusing) || io_stopping();
}

/* ---- trees.c ---- */

/* Takes note of what the topology demands. False: there is none to work with. */
bool trees_follow(struct trees *t);
/* All replicas of the partition have all below the version. */
void trees_settle(struct trees *t, u32 partition, u64 version);
/* Sleeps as long as it takes to have sent so many bytes. */
MAY_YIELD void trees_pace(struct trees *t, u64 bytes);

/* ---- trees_clean.c ---- */

/* Now and then: removes what lies here of partitions that this member does not hold (any more). */
MAY_YIELD void trees_clean(struct trees *t);
void trees_clean_close(struct trees *t);
/* A topology comes: what it gives us is not removed any more. */
void trees_clean_follow(struct trees *t, const struct topology *topology);

/* ---- trees_resolve.c ---- */

/* Of views[i].partition, with the bound that is asked for there or a higher one: the rest is filled
 * in. failed: that one could not be told. */
MAY_YIELD void trees_view(struct trees *t, u16 keyspace, struct tree_view *views, u32 count);
void trees_resolve_close(struct trees *t);

/* ---- trees_exchange.c ---- */

/* Compares partitions [first, first + count) of this shard, at most TREES_BATCH, with all their
 * replicas, if this member is the first living one of them (all: wherever it is one of them), and
 * mends what differs. */
struct trees_exchanged {
    bool mended;   /* something differed */
    bool over;     /* broken off: the stage has changed, or the node stops */
    u32 failed;    /* comparisons with living replicas that did not come to an end */
    u32 not_tried; /* with those that are dead */
    u32 damaged;   /* that damage prevents; to try again is of no use */
};
MAY_YIELD void trees_exchange(struct trees *t, u32 first, u32 count, bool all,
                              struct trees_exchanged *out);

/* For who is to give up its copy: reads all that the member's shard `there` has of partitions
 * [first, end) of the keyspace, values too, and sends it what it lacks of what can be read here.
 * ST_OK: it has all of that, durably. ST_CORRUPT: it has
 * damage there. ST_CANCELED: the stage is another one. */
MAY_YIELD MUST_CHECK status trees_hand_over(struct trees *t, u64 stage_epoch, u16 keyspace,
                                            u32 member, u32 there, u32 first, u32 end);

/* ---- trees_serve.c ---- */

void trees_serve_open(struct trees *t);
void trees_serve_close(struct trees *t);

#endif
