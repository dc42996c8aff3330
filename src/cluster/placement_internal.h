/* SPDX-License-Identifier: MIT
 *
 * placement_internal.h -- one data center while it is dealt to. placement.c fills it from the
 * present placement and reads the result; placement_quota.c decides how many partitions each node
 * shall hold; placement_deal.c decides which, placement_first.c who is first, and placement_order.c
 * who comes next.
 */
#ifndef DISTKV_CLUSTER_PLACEMENT_INTERNAL_H
#define DISTKV_CLUSTER_PLACEMENT_INTERNAL_H

#include "cluster/placement.h"

#define DEAL_HOLE       0xffffu
#define DEAL_SHARE_BITS 20u /* shares are fixed-point numbers: integers are the same everywhere */
#define DEAL_SHARE(n)   ((u64)(n) << DEAL_SHARE_BITS)

/* Up to here partners are welcome: the more there are, the faster a lost node is rebuilt, and the
 * better its share can be dealt to all. Beyond, each is one more pair of failures that hurts. */
#define DEAL_PARTNERS_FREE 16u

/* Nodes and racks go by index: nodes by ascending id, racks by ascending number. */
struct deal_node {
    u32 id;
    u32 weight;
    u16 rack;     /* index */
    u64 share;    /* partitions it should hold, DEAL_SHARE */
    u32 quota;    /* partitions it shall hold */
    u32 held;     /* places in rows, now */
    u32 partners; /* nodes that it shares a row with */
    /* of deal_firsts, and of deal_order */
    u32 first; /* rows whose first place (one of whose first places) it has, of those looked at */
    u32 first_low, first_high;
    u32 held_before, first_before; /* in blocks that are done */
    u64 due, likes_due;            /* in parts of rows; its likes together */
    u32 likes;
    /* of searches */
    bool seen;
    u16 parent;
    u32 parent_partition;
    u16 parent_place;
};

struct deal_rack {
    u16 number;
    u32 node_count;
    u64 weight;
    u32 low; /* of a row's places, at least and at most */
    u32 high;
    u64 share;   /* DEAL_SHARE */
    bool frozen; /* at its bound */
    u64 quota;   /* sum of its nodes' */
};

/* Rows of the same nodes are as good for a sink until the next place is taken, and where nodes are
 * few most rows are alike. So rows are of kinds, by their nodes where these fit a number, and what
 * was found out is kept by kind. Rows for which there is no number left are looked at each time. */
#define DEAL_KIND_PLACES 4u
#define DEAL_KINDS_BITS  8u
#define DEAL_KINDS_MAX   (1u << (DEAL_KINDS_BITS - 1)) /* half of the slots stay empty */
#define DEAL_KIND_NONE   0xffu

struct deal_kind {
    u64 nodes;
    u64 cost;  /* of the best place ... */
    u32 place; /* ... this one ... */
    u32 taken; /* ... when so many places had been taken; 0: not known */
};

struct deal_kinds {
    u32 count;
    u32 taken; /* places by the sink, + 1 */
    u8 slots[1u << DEAL_KINDS_BITS];
    struct deal_kind kinds[DEAL_KINDS_MAX];
    u8 rows[]; /* by deal_walk: the row's kind */
};

/* Blocks that partitions are gone through in: 128 at most, for up to 64 shards. */
#define DEAL_BLOCKS_BITS 7u

struct deal {
    u32 partition_count;
    bool scattered; /* see deal_walk */
    bool even;      /* with deal_order */
    u32 replicas;   /* N, or fewer where there are fewer nodes */
    u32 node_count;
    u32 rack_count;
    u32 racks_low; /* sum of their low bounds */
    struct deal_node *nodes;
    struct deal_rack *racks;
    u16 *rows;                         /* replicas places a row: a node or DEAL_HOLE */
    u16 *origin;                       /* rows as they were given */
    u16 *pairs;                        /* node_count^2: rows that two nodes share */
    u64 *costs;                        /* by deal_walk: no place of the row costs a sink less */
    struct deal_kinds *kinds;          /* behind the costs */
    u16 *queue;                        /* node_count, of searches; behind the kinds */
    u8 blocks[1u << DEAL_BLOCKS_BITS]; /* see deal_walk: in which order they come */
    void (*pause)(void);               /* see placement_input */
    u32 looks;
};

#define DEAL_PAUSE_LOOKS 64u

/* For each row that is looked at. */
static inline void
deal_look(struct deal *deal)
{
    if (++deal->looks % DEAL_PAUSE_LOOKS == 0 && deal->pause != NULL) deal->pause();
}

static inline u16 *
deal_row(const struct deal *deal, u32 partition)
{
    return deal->rows + (size_t)partition * deal->replicas;
}

static inline u16 *
deal_pair(const struct deal *deal, u32 a, u32 b)
{
    return deal->pairs + (size_t)a * deal->node_count + b;
}

static inline bool
deal_row_has(const struct deal *deal, const u16 *row, u32 node)
{
    for (u32 k = 0; k < deal->replicas; k++)
        if (row[k] == node) return true;
    return false;
}

static inline u32
deal_block_bits(const struct deal *deal)
{
    return MIN(DEAL_BLOCKS_BITS, (u32)__builtin_ctz(deal->partition_count));
}

/* The partition that comes at this place when all are gone through; a permutation. Scattered: one
 * of each block, then the next of each. Blocks by the bits of their numbers turned round, so that
 * wherever a pass ends it was nearly everywhere equally often; every other block backwards, so that
 * what was dealt first in a block meets what was dealt first in the next. */
static inline u32
deal_walk(const struct deal *deal, u32 at)
{
    if (!deal->scattered) return at;
    u32 bits = deal_block_bits(deal), size = deal->partition_count >> bits;
    u32 within = at >> bits, block = deal->blocks[at & ((1u << bits) - 1)];
    return block * size + ((block & 1) == 0 ? within : size - 1 - within);
}

void deal_walk_init(struct deal *deal);

/* Puts a node (or DEAL_HOLE) into a place and keeps all counts. */
void deal_place(struct deal *deal, u32 partition, u32 place, u32 node);
/* By how many places a row is off the bounds of racks; holes may still be filled well. */
u32 deal_row_violation(const struct deal *deal, const u16 *row);

/* Bounds of racks, shares and quotas; held must be right. */
void deal_quotas(struct deal *deal);
/* Moves places until held is quota, then corrects racks. No hole is left. */
void deal_places(struct deal *deal);
void deal_firsts(struct deal *deal);
/* The other places. present: of which width are the places of a data center; NULL: none. */
void deal_order(struct deal *deal, const struct placement *present, u32 width);

#endif
