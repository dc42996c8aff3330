/* SPDX-License-Identifier: MIT
 *
 * placement.h -- which nodes hold which partition. A pure function of the nodes and of the
 * placement that there is: integers only, and nothing depends on addresses, so every node that
 * computes it gets the same.
 *
 *   row of a partition:  | first data center: N nodes | second data center: N nodes | ...
 *
 * Data centers are dealt to apart, by ascending number; each has N replicas of everything, or as
 * many as it has nodes. The first of its N nodes is the one whom requests from there go to first.
 *
 * Promises, for each data center
 *   P1  The nodes of a row are distinct.
 *   P2  They lie on as many racks as there are, up to N, and as evenly as nodes allow. This comes
 *       before P3: with three racks and N = 3 every rack holds everything, however few its nodes.
 *   P3  A node holds its share: what is in proportion to its weight, after P1 and P2 have bounded
 *       what it (at most everything) and its rack may hold. Nodes of one share differ by one
 *       partition at most; between nodes of different weights, a node is less than two partitions
 *       off its share (rounding that would move data is not repeated at each change).
 *   P4  The first places of rows are dealt in the same way: a node that holds h partitions is first
 *       of h / N of them, rounded down or up.
 *   P5  Little moves: a join moves what the new node holds, a leave what the leaver held. P1 to P3
 *       come first: more moves where racks fill up unevenly, where weights differ, and where few
 *       nodes are left to choose from (a leave from at most 2N + 1 nodes). docs/testing.md has the
 *       figures; an oracle that tries everything found at most one move too many.
 *   P6  Partner sets are small. Partners are nodes that share a partition; no partition is picked
 *       that brings new pairs while another brings fewer, beyond DEAL_PARTNERS_FREE partners a
 *       node. P3 and P5 set a floor: whoever takes over from a leaver becomes a partner of the
 *       leaver's partners, and by P3 everybody takes over something. With n nodes and N = 3, grown
 *       by joins, a node has at most 4 sqrt(n) + 2 partners, and after any mixture of joins and
 *       leaves 4 sqrt(n) in the mean; single nodes may have more for a while after a leave, and
 *       joins take it back. A node never has more than (N - 1) times the partitions that it holds.
 *   P7  Time: for each node that gains, a few passes over all rows for every 32nd of its gain:
 *       O(gainers * 64 * partitions * N^2), and a search over nodes and rows for each first place
 *       that its own row cannot settle. Nothing depends on how long the cluster has lived.
 *   P8  Shards of a node have contiguous parts of the partitions, and each is to have its part of
 *       what the node holds and of what it is first of; so both are dealt from all over, in blocks
 *       of a few partitions (few runs with one leader make the maps of clients short). How far that
 *       is off is in docs/testing.md. It is no reason to move anything.
 *   P9  Each prefix of a row's places is dealt evenly, too: keyspaces of fewer replicas are on it.
 *       It lies on as many racks as it can, and as evenly. With one rack, or N of them or more,
 *       nodes of one share differ by one partition at most; others are less than three off their
 *       part of what they hold. With 2 to N - 1 racks that is so as far as racks leave a choice.
 *       What moves there beyond what nodes gain comes from first places that P8 passes on:
 *       docs/testing.md has the figures.
 */
#ifndef DISTKV_CLUSTER_PLACEMENT_H
#define DISTKV_CLUSTER_PLACEMENT_H

#include "base/limits.h"
#include "base/mem.h"
#include "base/status.h"

/* The matrix of pairs takes two bytes for each two nodes of a data center: 2 MiB. */
#define LIMIT_PLACEMENT_NODES       1024u
#define LIMIT_PLACEMENT_REPLICAS    7u
#define LIMIT_PLACEMENT_DATACENTERS 16u
#define LIMIT_PLACEMENT_WEIGHT      65535u

#define PLACEMENT_NONE 0u /* no node has this id */

enum placement_state {
    PLACEMENT_JOINING, /* gets its share: what it holds is decided before it holds it */
    PLACEMENT_NORMAL,
    PLACEMENT_LEAVING, /* gets nothing and gives everything */
};

struct placement_node {
    u32 id;     /* not PLACEMENT_NONE; never used again for another node */
    u32 weight; /* virtual nodes, 1 to LIMIT_PLACEMENT_WEIGHT */
    u16 rack;   /* a number within the data center */
    u16 datacenter;
    u8 state; /* enum placement_state */
};

/* Ways to deal, as plans came to know them. A log that has a plan of a way before is applied as it
 * was, so what each does never changes. */
enum placement_dealing {
    PLACEMENT_IN_ORDER,  /* partitions are gone through in their order: no P8, and no P9 */
    PLACEMENT_SCATTERED, /* no P9 */
    PLACEMENT_EVEN,
};

struct placement_input {
    const struct placement_node *nodes; /* by ascending id */
    u32 node_count;
    u32 partition_count; /* a power of two up to SLOT_COUNT; never changes */
    u32 replicas;        /* N */
    u8 dealing;          /* enum placement_dealing */
    /* Called every few dozen rows that are looked at, or NULL: with 60 nodes it takes a third of a
     * second, and others are to be served meanwhile. What is pointed to stays as it is. */
    void (*pause)(void);
};

struct placement {
    u32 partition_count;
    u32 width; /* places of a row: data centers times N */
    u32 *ids;  /* rows; PLACEMENT_NONE in places that stay empty */
    struct budget *budget;
};

/* One replica that changes its node. from is PLACEMENT_NONE where a replica is added, to where one
 * is given up. */
struct placement_move {
    u32 partition;
    u32 from;
    u32 to;
};

struct placement_moves {
    struct placement_move *moves; /* by partition */
    u32 count;
    u32 capacity;
    struct budget *budget;
};

/* The next placement and what must move for it. present: NULL when there is none yet; ids in it
 * that are no nodes of the input are nodes that are gone. ST_INVALID: the input is not as above, or
 * nobody is left to hold anything. ST_NO_MEMORY: the budget refuses. */
MUST_CHECK status placement_next(const struct placement_input *input,
                                 const struct placement *present, struct budget *budget,
                                 struct placement *next_out, struct placement_moves *moves_out);
void placement_deinit(struct placement *placement);
void placement_moves_deinit(struct placement_moves *moves);

static inline const u32 *
placement_row(const struct placement *placement, u32 partition)
{
    return placement->ids + (size_t)partition * placement->width;
}

#endif
