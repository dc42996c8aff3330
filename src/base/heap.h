/* SPDX-License-Identifier: MIT
 *
 * heap.h -- pairing heap, intrusive: no array to grow, removal of any node. Amortised O(log n).
 * M. L. Fredman et al., "The pairing heap", 1986.
 */
#ifndef DISTKV_BASE_HEAP_H
#define DISTKV_BASE_HEAP_H

#include "base/types.h"

struct heap_node {
    struct heap_node *child;
    struct heap_node *next; /* sibling to the right */
    struct heap_node *prev; /* sibling to the left, or the parent for a first child */
};

struct heap {
    struct heap_node *root;
    /* True when a goes before b. Must be a strict order; ties decide by the caller's own rule so
     * that a run is repeatable. */
    bool (*before)(const struct heap_node *a, const struct heap_node *b);
};

static inline void
heap_init(struct heap *heap, bool (*before)(const struct heap_node *, const struct heap_node *))
{
    heap->root = NULL;
    heap->before = before;
}

static inline struct heap_node *
heap_first(const struct heap *heap)
{
    return heap->root;
}

void heap_insert(struct heap *heap, struct heap_node *node);
void heap_remove(struct heap *heap, struct heap_node *node);

#endif
