/* SPDX-License-Identifier: MIT
 *
 * gap_list.h -- which tokens a scan that goes on behind damage cannot tell of; also, which tokens
 * what is damaged in a file may have held.
 *
 * What lies in a damaged block is not known: it may have been a newer version, or the tombstone, of
 * a key of which an older version lies elsewhere. So of all keys whose tokens the block may have
 * held the scan shows none, whatever other runs and memtables have. Who copies the store gets less
 * from it then, but nothing that had been deleted.
 */
#ifndef DISTKV_LSM_GAP_LIST_H
#define DISTKV_LSM_GAP_LIST_H

#include "base/types.h"

#define GAPS_MAX 8u

struct gap {
    u64 token_first, token_last;
};

struct gap_list {
    struct gap gaps[GAPS_MAX];
    u32 count;
    u64 met; /* blocks and values, also of gaps that are forgotten */
};

/* One that is known already is not counted again: cursors that are opened anew meet it anew. One
 * that finds no room makes the last one larger: that hides more, never less. */
static inline void
gap_list_add(struct gap_list *list, u64 token_first, u64 token_last)
{
    for (u32 i = 0; i < list->count; i++)
        if (list->gaps[i].token_first == token_first && list->gaps[i].token_last == token_last)
            return;
    list->met++;
    if (list->count < GAPS_MAX) {
        list->gaps[list->count++] = (struct gap){token_first, token_last};
        return;
    }
    struct gap *last = &list->gaps[GAPS_MAX - 1];
    last->token_first = MIN(last->token_first, token_first);
    last->token_last = MAX(last->token_last, token_last);
}

/* Whether one of them holds all of [token_first, token_last]. */
static inline bool
gap_list_covers(const struct gap_list *list, u64 token_first, u64 token_last)
{
    for (u32 i = 0; i < list->count; i++)
        if (list->gaps[i].token_first <= token_first && token_last <= list->gaps[i].token_last)
            return true;
    return false;
}

/* For who remembers what is damaged. False: all of it was known. */
static inline bool
gap_list_note(struct gap_list *list, u64 token_first, u64 token_last)
{
    if (gap_list_covers(list, token_first, token_last)) return false;
    gap_list_add(list, token_first, token_last);
    return true;
}

/* The scan is at this token: what ends before it matters no more. */
static inline void
gap_list_forget(struct gap_list *list, u64 token)
{
    u32 kept = 0;
    for (u32 i = 0; i < list->count; i++)
        if (list->gaps[i].token_last >= token) list->gaps[kept++] = list->gaps[i];
    list->count = kept;
}

/* Whether any of them lies in [token_first, token_last]. */
static inline bool
gap_list_meets(const struct gap_list *list, u64 token_first, u64 token_last)
{
    for (u32 i = 0; i < list->count; i++)
        if (list->gaps[i].token_first <= token_last && token_first <= list->gaps[i].token_last)
            return true;
    return false;
}

static inline bool
gap_list_has(const struct gap_list *list, u64 token)
{
    return gap_list_meets(list, token, token);
}

#endif
