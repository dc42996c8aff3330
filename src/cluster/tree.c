/* SPDX-License-Identifier: MIT
 *
 * tree.c -- see tree.h.
 */
#include "cluster/tree.h"

void
tree_init(struct tree *tree, u32 bound)
{
    *tree = (struct tree){.bound = bound};
    for (u32 i = 0; i < TREE_LEAVES; i++)
        tree->gone_min[i] = TREE_NEVER;
}

void
tree_bound_raise(struct tree *tree, u32 bound)
{
    if (bound <= tree->bound) return;
    tree->bound = bound;
    for (u32 i = 0; i < TREE_LEAVES; i++)
        if (tree->gone_min[i] < bound) tree->known &= ~((u64)1 << i);
}

void
tree_leaf_add(struct tree_leaf *leaf, u32 bound, struct bytes key, u64 version, bool deleted,
              u64 expire_ms)
{
    u32 gone = tree_gone(version, deleted, expire_ms);
    if (gone < bound) return;
    /* A sum, so that the order does not matter; a key is there once, so nothing cancels out. The
     * version is no seed: of a short key the seed is only combined with its bytes, so that two
     * versions of several keys, written at once, may just exchange their hashes. */
    const u64 parts[] = {hash_key(key, 0), version};
    leaf->hash += hash_bytes(parts, sizeof(parts), 0);
    leaf->gone_min = MIN(leaf->gone_min, gone);
}

void
tree_leaf_set(struct tree *tree, u32 index, const struct tree_leaf *leaf)
{
    CHECK(index < TREE_LEAVES);
    tree->hashes[index] = leaf->hash;
    tree->gone_min[index] = leaf->gone_min;
    tree->known |= (u64)1 << index;
}

u64
tree_root(const struct tree *tree)
{
    CHECK(tree->known == UINT64_MAX);
    static const u64 nothing[TREE_LEAVES];
    if (memcmp(tree->hashes, nothing, sizeof(nothing)) == 0) return 0;
    return hash_bytes(tree->hashes, sizeof(tree->hashes), TREE_LEAVES);
}

u64
tree_differing(const u64 ours[TREE_LEAVES], const u64 theirs[TREE_LEAVES])
{
    u64 bits = 0;
    for (u32 i = 0; i < TREE_LEAVES; i++)
        if (ours[i] != theirs[i]) bits |= (u64)1 << i;
    return bits;
}
