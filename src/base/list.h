/* SPDX-License-Identifier: MIT
 *
 * list.h -- intrusive doubly linked list. A node that is in no list points to itself, so list_del
 * may be called twice and list_linked can be asked.
 */
#ifndef DISTKV_BASE_LIST_H
#define DISTKV_BASE_LIST_H

#include "base/types.h"

struct list {
    struct list *prev;
    struct list *next;
};

#define LIST_INIT(name)                                                                            \
    {                                                                                              \
        .prev = &(name), .next = &(name)                                                           \
    }

static inline void
list_init(struct list *list)
{
    list->prev = list;
    list->next = list;
}

static inline bool
list_empty(const struct list *list)
{
    return list->next == list;
}

static inline bool
list_linked(const struct list *node)
{
    return node->next != node;
}

static inline void
list_insert_between(struct list *node, struct list *prev, struct list *next)
{
    node->prev = prev;
    node->next = next;
    prev->next = node;
    next->prev = node;
}

static inline void
list_push_back(struct list *head, struct list *node)
{
    list_insert_between(node, head->prev, head);
}

static inline void
list_push_front(struct list *head, struct list *node)
{
    list_insert_between(node, head, head->next);
}

static inline void
list_del(struct list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

static inline struct list *
list_first(const struct list *head)
{
    return list_empty(head) ? NULL : head->next;
}

static inline struct list *
list_pop_front(struct list *head)
{
    struct list *node = list_first(head);
    if (node != NULL) list_del(node);
    return node;
}

/* Moves all of source to the end of target; source becomes empty. */
static inline void
list_splice_back(struct list *target, struct list *source)
{
    if (list_empty(source)) return;
    source->next->prev = target->prev;
    target->prev->next = source->next;
    source->prev->next = target;
    target->prev = source->prev;
    list_init(source);
}

#define list_for_each(pos, head)                                                                   \
    for (struct list *pos = (head)->next; pos != (head); pos = pos->next)
/* Safe against removal of pos itself. */
#define list_for_each_safe(pos, head)                                                              \
    for (struct list *pos = (head)->next, *pos##_next = pos->next; pos != (head);                  \
         pos = pos##_next, pos##_next = pos->next)
#define list_entry(node, type, member) CONTAINER_OF(node, type, member)

#endif
