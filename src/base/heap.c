/* SPDX-License-Identifier: MIT
 *
 * heap.c -- see heap.h. Removal melds the children in two passes, which is what keeps the
 * amortised cost logarithmic.
 */
#include "base/heap.h"

static struct heap_node *
heap_meld(struct heap *heap, struct heap_node *a, struct heap_node *b)
{
    if (a == NULL) return b;
    if (b == NULL) return a;
    if (heap->before(b, a)) {
        struct heap_node *swap = a;
        a = b;
        b = swap;
    }
    b->prev = a;
    b->next = a->child;
    if (a->child != NULL) a->child->prev = b;
    a->child = b;
    a->next = NULL;
    a->prev = NULL;
    return a;
}

/* Two passes, iteratively: pair left to right, then meld the pairs right to left. */
static struct heap_node *
heap_meld_siblings(struct heap *heap, struct heap_node *first)
{
    struct heap_node *pairs = NULL; /* stack through next */
    while (first != NULL) {
        struct heap_node *a = first;
        struct heap_node *b = a->next;
        first = b != NULL ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b != NULL) b->next = b->prev = NULL;
        struct heap_node *pair = heap_meld(heap, a, b);
        pair->next = pairs;
        pairs = pair;
    }
    struct heap_node *root = NULL;
    while (pairs != NULL) {
        struct heap_node *pair = pairs;
        pairs = pair->next;
        pair->next = NULL;
        root = heap_meld(heap, root, pair);
    }
    return root;
}

void
heap_insert(struct heap *heap, struct heap_node *node)
{
    *node = (struct heap_node){0};
    heap->root = heap_meld(heap, heap->root, node);
}

void
heap_remove(struct heap *heap, struct heap_node *node)
{
    struct heap_node *rest = heap_meld_siblings(heap, node->child);
    if (node == heap->root) {
        heap->root = rest;
    } else {
        if (node->prev->child == node) {
            node->prev->child = node->next;
        } else {
            node->prev->next = node->next;
        }
        if (node->next != NULL) node->next->prev = node->prev;
        heap->root = heap_meld(heap, heap->root, rest);
    }
    *node = (struct heap_node){0};
}
