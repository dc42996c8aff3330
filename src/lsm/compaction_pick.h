/* SPDX-License-Identifier: MIT
 *
 * compaction_pick.h -- what to merge next. Pure: a picture of one tree in, a decision out.
 *
 * The shape (lazy leveling): flushes make runs of tier 0; PICK_FANOUT runs of one tier become one
 * run of the next; when all tiers together reach a quarter of the last level, or there are many
 * runs above a small last level, the oldest runs are merged into it.
 *
 * A merge is a *sweep* over the tokens, slice by slice, and gives its inputs' space back as it
 * goes. Several sweeps of one tree may be under way, on different runs; the runs of a sweep are
 * *owned* by it and no other may take them.
 *
 * While a tree waits to be mended nothing goes into its last level but by a sweep that drops what
 * is damaged, which is begun for it, and its damaged runs stay where they are. The others are
 * merged among themselves, each stretch of neighbours for itself, so that however long it waits
 * there are a few runs of each size in each stretch, and however long that sweep takes, not too
 * many.
 */
#ifndef DISTKV_LSM_COMPACTION_PICK_H
#define DISTKV_LSM_COMPACTION_PICK_H

#include "base/types.h"

#define PICK_FANOUT     8u
#define PICK_SWEEPS_MAX 8u /* of one tree: one a tier and the last level, with room to spare */

/* Tiers that are merged into the last level when they reach 1 / this of it. */
#define PICK_LAST_RATIO 4u

struct pick_run {
    u64 bytes; /* still to be merged: consumed slices are gone from it */
    u8 tier;
    u8 owner;     /* 0: free, else 1 + index of its sweep */
    bool damaged; /* of a tree that waits: it stays as it is */
};

struct pick_sweep {
    bool active;
    bool into_last;
    u8 tier; /* of the inputs */
};

struct pick_tree {
    const struct pick_run *runs; /* newest first, without the last level */
    u32 run_count;
    u64 last_bytes;
    const struct pick_sweep *sweeps; /* PICK_SWEEPS_MAX */
    u32 fanout;                      /* PICK_FANOUT; tests and BUGGIFY make it smaller */
    u64 tier_bytes;                  /* what a run of tier 1 has at least: about a memtable */
    bool force_last;                 /* everything is to go to the last level */
    bool rewrite_last;               /* the last level has tables to rewrite on their own */
    bool waits;                      /* to be mended: only tiers are merged, around damaged runs */
};

enum pick_kind {
    PICK_NONE,
    PICK_CONTINUE, /* the next slice of sweep */
    PICK_TIER,     /* begin to merge runs first .. first + count - 1 into one run */
    PICK_LAST,     /* begin to merge these into the last level; count 0: rewrite it */
};

struct pick {
    enum pick_kind kind;
    u32 sweep;
    u32 first, count;
    u8 tier_out; /* of PICK_TIER */
    u32 urgency; /* 1000: due; more: overdue */
};

void compaction_pick(const struct pick_tree *tree, struct pick *out);

/* Bytes that merging has to write until the tree is in shape: what is due, smoothly. */
u64 compaction_debt(const struct pick_tree *tree);
/* 0 .. 1000: how much writers have to slow down. Rises without a step. */
u32 compaction_pressure(const struct pick_tree *tree);

/* The width of a token slice, a power of two (0: the whole 2^64), so that a slice of a keyspace
 * with these bytes in [token_first, token_last] holds about target_bytes. */
u64 compaction_slice_width(u64 bytes, u64 token_first, u64 token_last, u64 target_bytes);
/* The last token of the slice that token lies in. */
static inline u64
compaction_slice_last(u64 token, u64 width)
{
    return width == 0 ? UINT64_MAX : token | (width - 1);
}

#endif
