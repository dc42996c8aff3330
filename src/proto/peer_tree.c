/* SPDX-License-Identifier: MIT
 *
 * peer_tree.c -- see peer_tree.h.
 */
#include "proto/peer_tree.h"

#include "proto/native_codec.h"

static void
skip(struct bytes *rest, size_t size)
{
    *rest = BYTES(rest->data + size, rest->size - size);
}

void
peer_tree_head(const struct peer_tree *tree, u8 out[PEER_TREE_HEAD_BYTES])
{
    memset(out, 0, PEER_TREE_HEAD_BYTES);
    out[0] = tree->kind;
    store_u32(out + 4, tree->count);
    store_u64(out + 8, tree->version);
}

void
peer_tree_root_encode(const struct peer_tree_root *root, u8 out[PEER_TREE_ROOT_BYTES])
{
    store_u32(out, root->partition);
    store_u32(out + 4, root->bound);
    store_u64(out + 8, root->root);
}

void
peer_tree_side_head(const struct peer_tree_side *side, u8 out[PEER_TREE_SIDE_BYTES])
{
    memset(out, 0, PEER_TREE_SIDE_BYTES);
    store_u32(out, side->partition);
    store_u32(out + 4, side->bound);
    out[8] = side->state;
}

bool
peer_tree_root_next(struct bytes *rest, struct peer_tree_root *out)
{
    if (rest->size < PEER_TREE_ROOT_BYTES) return false;
    *out = (struct peer_tree_root){.partition = load_u32(rest->data),
                                   .bound = load_u32(rest->data + 4),
                                   .root = load_u64(rest->data + 8)};
    skip(rest, PEER_TREE_ROOT_BYTES);
    return true;
}

bool
peer_tree_key_next(struct bytes *rest, struct bytes *out)
{
    if (rest->size < 2) return false;
    u16 size = load_u16(rest->data);
    if (size == 0 || size > LIMIT_KEY_BYTES || rest->size - 2 < size) return false;
    *out = BYTES(rest->data + 2, size);
    skip(rest, 2 + (size_t)size);
    return true;
}

bool
peer_tree_partition_next(struct bytes *rest, u32 *out)
{
    if (rest->size < 4) return false;
    *out = load_u32(rest->data);
    skip(rest, 4);
    return true;
}

/* As many as it says, and nothing behind them. */
static bool
items_right(const struct peer_tree *tree)
{
    struct bytes rest = tree->items;
    for (u32 i = 0; i < tree->count; i++) {
        struct peer_tree_root root;
        struct bytes key;
        u32 partition = 0;
        bool right = false;
        if (tree->kind == PEER_TREE_ROOTS) {
            right = peer_tree_root_next(&rest, &root);
            partition = right ? root.partition : 0;
        } else if (tree->kind == PEER_TREE_ENTRIES) {
            right = peer_tree_key_next(&rest, &key);
        } else {
            right = peer_tree_partition_next(&rest, &partition);
        }
        if (!right || partition >= SLOT_COUNT) return false;
    }
    return rest.size == 0;
}

status
peer_tree_decode(struct bytes body, struct peer_tree *out)
{
    struct reader r = reader_of(body);
    struct peer_tree tree = {.kind = read_u8(&r)};
    read_zeros(&r, 3);
    tree.count = read_u32(&r);
    tree.version = read_u64(&r);
    tree.items = read_rest(&r);
    if (!reader_done(&r) || tree.kind < PEER_TREE_ROOTS || tree.kind > PEER_TREE_SETTLED ||
        tree.count > PEER_TREE_ITEMS_MAX ||
        (tree.version != 0) != (tree.kind == PEER_TREE_SETTLED) || !items_right(&tree))
        return ST_INVALID;
    *out = tree;
    return ST_OK;
}

status
peer_tree_roots_decode(struct bytes body, u32 *session_out, struct bytes *items)
{
    struct reader r = reader_of(body);
    u32 session = read_u32(&r);
    read_zeros(&r, 4);
    struct bytes rest = read_rest(&r);
    if (!reader_done(&r)) return ST_INVALID;
    *session_out = session;
    *items = rest;
    return ST_OK;
}

status
peer_tree_side_next(struct bytes *rest, struct peer_tree_side *out)
{
    if (rest->size == 0) return ST_END;
    struct reader r = reader_of(*rest);
    struct peer_tree_side side = {.partition = read_u32(&r)};
    side.bound = read_u32(&r);
    side.state = read_u8(&r);
    read_zeros(&r, 7);
    if (side.state > PEER_TREE_DAMAGED || side.partition >= SLOT_COUNT) return ST_INVALID;
    if (side.state == PEER_TREE_DIFFER) side.leaves = read_bytes(&r, PEER_TREE_LEAVES * 8).data;
    if (r.failed) return ST_INVALID;
    *rest = read_rest(&r);
    *out = side;
    return ST_OK;
}
