/* SPDX-License-Identifier: MIT
 *
 * peer_tree.h -- what replicas say to each other when they compare what they hold: the bodies of
 * PEER_TREE and of its answers. Pure: bytes to structs and back.
 *
 *   head      | kind: 1 | 0: 3 | count: 4 | version: 8 |      then count items
 *   ROOTS     item    | partition: 4 | bound: 4 | root: 8 |
 *     answer  | session: 4 | 0: 4 |, and for each item
 *             | partition: 4 | bound: 4 | state: 1 | 0: 7 | leaves: 64 * 8, where they DIFFER |
 *   ENTRIES   item    | size: 2 | key |
 *     answer  as a page of PEER_STREAM (src/cluster/cluster_stream.c), in the order of the items;
 *             more: not all fitted, ask again for what is behind the last one
 *   SETTLED   item    | partition: 4 |        version: all replicas have all below it
 *     answer  nothing
 *
 * The keyspace is the header's. version is 0 in the others. Answers with another status than OK
 * have no body.
 */
#ifndef DISTKV_PROTO_PEER_TREE_H
#define DISTKV_PROTO_PEER_TREE_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/status.h"

#define PEER_TREE_HEAD_BYTES  16u
#define PEER_TREE_ROOT_BYTES  16u
#define PEER_TREE_LEAVES      64u
#define PEER_TREE_ITEMS_MAX   256u
#define PEER_TREE_ROOTS_BYTES 8u  /* before the items of an answer */
#define PEER_TREE_SIDE_BYTES  16u /* of an item of an answer, without leaves */

enum peer_tree_kind { PEER_TREE_ROOTS = 1, PEER_TREE_ENTRIES = 2, PEER_TREE_SETTLED = 3 };

/* SAME and DIFFER: for the bound that was asked for. BOUND: ours is higher; ask again with it.
 * UNKNOWN: not to be told now. DAMAGED: nor later, for a block of the store is damaged. */
enum peer_tree_state {
    PEER_TREE_SAME,
    PEER_TREE_DIFFER,
    PEER_TREE_BOUND,
    PEER_TREE_UNKNOWN,
    PEER_TREE_DAMAGED,
};

struct peer_tree {
    u8 kind;     /* enum peer_tree_kind */
    u32 count;   /* at most PEER_TREE_ITEMS_MAX */
    u64 version; /* SETTLED: not 0 */
    struct bytes items;
};

struct peer_tree_root {
    u32 partition, bound;
    u64 root;
};

struct peer_tree_side {
    u32 partition, bound;
    u8 state;         /* enum peer_tree_state */
    const u8 *leaves; /* DIFFER: 64 numbers, little-endian */
};

void peer_tree_head(const struct peer_tree *tree, u8 out[PEER_TREE_HEAD_BYTES]);
void peer_tree_root_encode(const struct peer_tree_root *root, u8 out[PEER_TREE_ROOT_BYTES]);
void peer_tree_side_head(const struct peer_tree_side *side, u8 out[PEER_TREE_SIDE_BYTES]);

/* Any bytes: ST_INVALID. Every item is looked at, so the steps below meet no bad one. Spans point
 * into body. */
MUST_CHECK status peer_tree_decode(struct bytes body, struct peer_tree *out);
/* One item after the other, from the front of *rest. False: there are no more. */
bool peer_tree_root_next(struct bytes *rest, struct peer_tree_root *out);
bool peer_tree_key_next(struct bytes *rest, struct bytes *out);
bool peer_tree_partition_next(struct bytes *rest, u32 *out);

/* Of an answer to ROOTS: the session and the items. Those may turn out to be bad. */
MUST_CHECK status peer_tree_roots_decode(struct bytes body, u32 *session_out, struct bytes *items);
/* ST_END: there are no more. */
MUST_CHECK status peer_tree_side_next(struct bytes *rest, struct peer_tree_side *out);

#endif
