/* SPDX-License-Identifier: MIT
 *
 * tree.h -- the hash tree of one partition of one keyspace: what two replicas compare. Pure.
 *
 *   tokens of the partition   |  leaf 0  |  leaf 1  |  ...  |  leaf 63  |
 *   a leaf                    sum of the hashes of (key, version) of its entries
 *   the root                  hash of all leaves; 0 when all are 0
 *
 * 64 leaves of 4,096 partitions: 10 million keys on a node are 38 in a leaf, which is scanned by a
 * read or two; a tree is 776 bytes, so all of a keyspace are 3 MiB of a node's memory at most.
 * Which leaves were written to since they were scanned is kept elsewhere, as bits (lsm_marks_set).
 *
 * A version names one write, so kind, expiry and value need not be hashed: replicas that have the
 * same version of a key have the same.
 *
 * What is gone. Tombstones and expired values are collected at some time on each replica, and not
 * at once on all. So they count only as long as nobody may collect them: an entry is *gone* at
 *
 *   a tombstone              the time of its version
 *   a value with an expiry   the later of that and of its expiry
 *
 * and counts in a tree whose bound is at most that. (A store collects by the same rule.) Raising
 * the bound makes leaves unknown from which something falls out; the least time that counts tells.
 * Two trees are compared with the same bound.
 *
 * Times here are u32, of 1,024 milliseconds since HLC_EPOCH_MS.
 */
#ifndef DISTKV_CLUSTER_TREE_H
#define DISTKV_CLUSTER_TREE_H

#include "base/hash.h"
#include "base/types.h"
#include "cluster/hlc.h"

#define TREE_LEAVES     64u
#define TREE_LEAF_BITS  6u
#define TREE_TIME_SHIFT 10u
#define TREE_NEVER      UINT32_MAX

struct tree {
    u64 hashes[TREE_LEAVES];
    u32 gone_min[TREE_LEAVES]; /* of what counts; TREE_NEVER: nothing will ever be gone */
    u64 known;                 /* bit i: the two are right, for this bound */
    u32 bound;
};

struct tree_leaf {
    u64 hash;
    u32 gone_min;
};

static inline u32
tree_time(u64 wall_ms)
{
    u64 ms = wall_ms < HLC_EPOCH_MS ? 0 : wall_ms - HLC_EPOCH_MS;
    return (u32)MIN(ms >> TREE_TIME_SHIFT, (u64)TREE_NEVER - 1);
}

/* What is gone before the bound has a lower version than this and, of a value, an earlier expiry
 * than that. */
static inline u64
tree_bound_version(u32 bound)
{
    return (u64)bound << (TREE_TIME_SHIFT + HLC_MS_SHIFT);
}
static inline u64
tree_bound_ms(u32 bound)
{
    return ((u64)bound << TREE_TIME_SHIFT) + HLC_EPOCH_MS;
}

/* The highest bound for which tree_bound_version is not above the version. */
static inline u32
tree_bound_of(u64 version)
{
    return (u32)(version >> (TREE_TIME_SHIFT + HLC_MS_SHIFT));
}

/* When an entry is gone; TREE_NEVER. */
static inline u32
tree_gone(u64 version, bool deleted, u64 expire_ms)
{
    if (deleted) return tree_bound_of(version);
    if (expire_ms == 0) return TREE_NEVER;
    return MAX(tree_bound_of(version), tree_time(expire_ms));
}

void tree_init(struct tree *tree, u32 bound);
/* Never less than before. */
void tree_bound_raise(struct tree *tree, u32 bound);

static inline void
tree_leaf_init(struct tree_leaf *leaf)
{
    *leaf = (struct tree_leaf){.gone_min = TREE_NEVER};
}
void tree_leaf_add(struct tree_leaf *leaf, u32 bound, struct bytes key, u64 version, bool deleted,
                   u64 expire_ms);
/* What a scan has found, for the tree's bound. */
void tree_leaf_set(struct tree *tree, u32 index, const struct tree_leaf *leaf);

/* All leaves are known. */
u64 tree_root(const struct tree *tree);
/* Bits of leaves that differ. */
u64 tree_differing(const u64 ours[TREE_LEAVES], const u64 theirs[TREE_LEAVES]);

/* Tokens of a leaf. partition_count: a power of two, at most SLOT_COUNT. */
static inline u32
tree_leaf_shift(u32 partition_count)
{
    return 64 - TREE_LEAF_BITS - (u32)__builtin_ctz(partition_count);
}
static inline u64
tree_leaf_first(u32 partition, u32 partition_count, u32 leaf)
{
    return partition_token_first(partition, partition_count) +
           ((u64)leaf << tree_leaf_shift(partition_count));
}
static inline u64
tree_leaf_last(u32 partition, u32 partition_count, u32 leaf)
{
    return tree_leaf_first(partition, partition_count, leaf) +
           (((u64)1 << tree_leaf_shift(partition_count)) - 1);
}

#endif
