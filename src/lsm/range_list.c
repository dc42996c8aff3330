/* SPDX-License-Identifier: MIT
 *
 * range_list.c -- see range_list.h. Linear on purpose: the list is empty or short, and every
 * structure cleverer than an array has been a source of resurrected keys somewhere.
 *
 * Invariants
 *   R1  active and shadowed are each ascending by seq. Equal ones come from different stores and
 *       have no token in common.
 *   R2  A shadowed range lies inside an active one of its keyspace with a higher seq, and when it
 *       was shadowed no snapshot lay between the two. (Later snapshots lie above both.)
 *   R3  A range above the persistent boundary leaves only into the shadowed array, never the list.
 */
#include "lsm/range_list.h"

#include "base/fault.h"

void
range_list_init(struct range_list *list, struct budget *budget)
{
    *list = (struct range_list){.budget = budget, .limit = LEVELS_RANGES_MAX};
}

void
range_list_deinit(struct range_list *list)
{
    mem_free(list->budget, list->active, list->active_capacity * sizeof(*list->active));
    mem_free(list->budget, list->shadowed, list->shadowed_capacity * sizeof(*list->shadowed));
    range_list_init(list, list->budget);
}

static bool
array_reserve(struct budget *budget, struct range_delete **array, u32 *capacity, u32 count)
{
    if (count <= *capacity) return true;
    u32 grown = MAX(8u, *capacity * 2);
    while (grown < count)
        grown *= 2;
    struct range_delete *bigger =
        mem_realloc(budget, *array, *capacity * sizeof(**array), grown * sizeof(**array));
    if (bigger == NULL) return MARKED("lsm.ranges.no_memory", false);
    *array = bigger;
    *capacity = grown;
    return true;
}

static bool
range_inside(const struct range_delete *inner, const struct range_delete *outer)
{
    return inner->keyspace == outer->keyspace && inner->token_first >= outer->token_first &&
           inner->token_last <= outer->token_last;
}

static void
array_insert(struct range_delete *array, u32 *count, const struct range_delete *range)
{
    u32 at = *count;
    while (at > 0 && array[at - 1].seq > range->seq)
        at--;
    memmove(array + at + 1, array + at, (*count - at) * sizeof(*array));
    array[at] = *range;
    (*count)++;
}

status
range_list_add(struct range_list *list, const struct range_delete *range, const u64 *snapshots,
               u32 snapshot_count)
{
    CHECK(range->token_first <= range->token_last);
    CHECK(list->active_count == 0 || list->active[list->active_count - 1].seq <= range->seq);
    if (range_list_count(list) >= list->limit) return MARKED("lsm.ranges.full", ST_OVERLOADED);
    u32 total = range_list_count(list) + 1;
    if (!array_reserve(list->budget, &list->active, &list->active_capacity,
                       list->active_count + 1) ||
        !array_reserve(list->budget, &list->shadowed, &list->shadowed_capacity, total))
        return ST_NO_MEMORY;

    u32 kept = 0;
    for (u32 i = 0; i < list->active_count; i++) {
        struct range_delete *older = &list->active[i];
        /* A reader between the two, or an older one with a higher version, still needs it. */
        bool hidden = range_inside(older, range) && older->seq < range->seq &&
                      older->version <= range->version &&
                      !snapshot_between(snapshots, snapshot_count, older->seq, range->seq);
        if (hidden)
            array_insert(list->shadowed, &list->shadowed_count, older);
        else
            list->active[kept++] = *older;
    }
    list->active[kept++] = *range;
    list->active_count = kept;
    DCHECK(range_list_check(list));
    return ST_OK;
}

static const struct range_delete *
newest_covering(const struct range_delete *best, const struct range_delete *range, u16 keyspace,
                u64 token, u64 version, u64 seq, u64 seq_max)
{
    if (range->seq > seq_max || !range_covers(range, keyspace, token, version, seq)) return best;
    if (best == NULL || range->version > best->version ||
        (range->version == best->version && range->seq > best->seq))
        return range;
    return best;
}

const struct range_delete *
range_list_find(const struct range_list *list, u16 keyspace, u64 token, u64 version, u64 seq,
                u64 seq_max)
{
    const struct range_delete *best = NULL;
    bool above = false; /* a range that this reader does not see, but that may shadow one it does */
    for (u32 i = 0; i < list->active_count; i++) {
        const struct range_delete *range = &list->active[i];
        above |= range->seq > seq_max;
        best = newest_covering(best, range, keyspace, token, version, seq, seq_max);
    }
    /* A reader without a snapshot may have begun before the shadowing range was added. */
    for (u32 i = 0; above && i < list->shadowed_count; i++)
        best = newest_covering(best, &list->shadowed[i], keyspace, token, version, seq, seq_max);
    return best;
}

static u64
array_cover_seq_min(const struct range_delete *array, u32 count, u16 keyspace, u64 token,
                    u64 version, u64 seq, u64 seq_limit)
{
    for (u32 i = 0; i < count && array[i].seq <= seq_limit; i++) {
        if (range_covers(&array[i], keyspace, token, version, seq)) return array[i].seq;
    }
    return UINT64_MAX;
}

u64
range_list_cover_seq_min(const struct range_list *list, u16 keyspace, u64 token, u64 version,
                         u64 seq, u64 seq_limit)
{
    u64 active = array_cover_seq_min(list->active, list->active_count, keyspace, token, version,
                                     seq, seq_limit);
    u64 shadowed = array_cover_seq_min(list->shadowed, list->shadowed_count, keyspace, token,
                                       version, seq, seq_limit);
    return MIN(active, shadowed);
}

/* Whether another range up to seq_flushed hides range from every reader. */
static bool
hidden_by_persistent(const struct range_list *list, const struct range_delete *range,
                     u64 seq_flushed, const u64 *snapshots, u32 snapshot_count)
{
    for (u32 i = 0; i < range_list_count(list); i++) {
        const struct range_delete *newer =
            i < list->active_count ? &list->active[i] : &list->shadowed[i - list->active_count];
        if (newer->seq <= range->seq || newer->seq > seq_flushed) continue;
        if (range_inside(range, newer) && range->version <= newer->version &&
            !snapshot_between(snapshots, snapshot_count, range->seq, newer->seq))
            return true;
    }
    return false;
}

static void
array_remove(struct range_delete *array, u32 *count, u32 at)
{
    memmove(array + at, array + at + 1, (*count - at - 1) * sizeof(*array));
    (*count)--;
}

/* Two neighbours whose seqs follow each other: no entry was written between them, so one range
 * with the later (version, seq) deletes exactly the same. */
static u32
coalesce_neighbours(struct range_list *list, u64 seq_flushed, const u64 *snapshots,
                    u32 snapshot_count)
{
    u32 gone = 0;
    for (u32 i = 0; i + 1 < list->active_count;) {
        struct range_delete *older = &list->active[i];
        struct range_delete *newer = &list->active[i + 1];
        bool touch = older->token_last != UINT64_MAX && older->token_last + 1 >= newer->token_first;
        touch = touch || older->token_last >= newer->token_first;
        bool touch_back =
            newer->token_last >= older->token_first ||
            (newer->token_last != UINT64_MAX && newer->token_last + 1 == older->token_first);
        if (older->seq >= list->merge_seq_min && newer->seq <= seq_flushed &&
            newer->seq == older->seq + 1 && touch && touch_back &&
            older->keyspace == newer->keyspace && older->version <= newer->version &&
            !snapshot_between(snapshots, snapshot_count, older->seq, newer->seq)) {
            newer->token_first = MIN(older->token_first, newer->token_first);
            newer->token_last = MAX(older->token_last, newer->token_last);
            array_remove(list->active, &list->active_count, i);
            gone++;
            if (i > 0) i--;
            continue;
        }
        i++;
    }
    return gone;
}

u32
range_list_coalesce(struct range_list *list, u64 seq_flushed, const u64 *snapshots,
                    u32 snapshot_count)
{
    /* A hidden range is hidden for good (snapshots only open above), so order does not matter, nor
     * that what has gone is still looked at until the end of a pass. */
    u32 kept = 0;
    for (u32 i = 0; i < list->shadowed_count; i++) {
        if (!hidden_by_persistent(list, &list->shadowed[i], seq_flushed, snapshots, snapshot_count))
            list->shadowed[kept++] = list->shadowed[i];
    }
    u32 gone = list->shadowed_count - kept;
    list->shadowed_count = kept;
    kept = 0;
    for (u32 i = 0; i < list->active_count; i++) {
        if (!hidden_by_persistent(list, &list->active[i], seq_flushed, snapshots, snapshot_count))
            list->active[kept++] = list->active[i];
    }
    gone += list->active_count - kept;
    list->active_count = kept;
    gone += coalesce_neighbours(list, seq_flushed, snapshots, snapshot_count);
    DCHECK(range_list_check(list));
    return gone;
}

static u32
array_expire(struct range_delete *array, u32 *count, u64 seq_flushed,
             bool (*may_cover)(void *arg, const struct range_delete *range), void *arg)
{
    u32 kept = 0;
    for (u32 i = 0; i < *count; i++) {
        if (array[i].seq > seq_flushed || may_cover(arg, &array[i])) array[kept++] = array[i];
    }
    u32 gone = *count - kept;
    *count = kept;
    return gone;
}

u32
range_list_expire(struct range_list *list, u64 seq_flushed,
                  bool (*may_cover)(void *arg, const struct range_delete *range), void *arg)
{
    /* An active range above a shadowed one goes only together with it or after it, as whatever the
     * shadowed one covers the active one covers, too: R2 holds. */
    u32 gone = array_expire(list->shadowed, &list->shadowed_count, seq_flushed, may_cover, arg);
    gone += array_expire(list->active, &list->active_count, seq_flushed, may_cover, arg);
    DCHECK(range_list_check(list));
    return gone;
}

u32
range_list_count_above(const struct range_list *list, u64 seq_above)
{
    u32 active = list->active_count, shadowed = list->shadowed_count;
    while (active > 0 && list->active[active - 1].seq > seq_above)
        active--;
    while (shadowed > 0 && list->shadowed[shadowed - 1].seq > seq_above)
        shadowed--;
    return range_list_count(list) - active - shadowed;
}

u32
range_list_persistent(const struct range_list *list, u64 seq_limit, struct range_delete *out)
{
    u32 count = 0, active = 0, shadowed = 0;
    while (active < list->active_count || shadowed < list->shadowed_count) {
        bool take_active = shadowed == list->shadowed_count ||
                           (active < list->active_count &&
                            list->active[active].seq < list->shadowed[shadowed].seq);
        const struct range_delete *next =
            take_active ? &list->active[active++] : &list->shadowed[shadowed++];
        if (next->seq <= seq_limit) out[count++] = *next;
    }
    return count;
}

bool
range_list_check(const struct range_list *list)
{
    if (range_list_count(list) > RANGE_LIST_MAX) return false;
    for (u32 i = 0; i + 1 < list->active_count; i++) {
        if (list->active[i].seq > list->active[i + 1].seq) return false;
    }
    for (u32 i = 0; i < list->shadowed_count; i++) {
        const struct range_delete *range = &list->shadowed[i];
        if (i + 1 < list->shadowed_count && range->seq > list->shadowed[i + 1].seq) return false;
        bool inside = false;
        for (u32 j = 0; j < list->active_count && !inside; j++)
            inside = list->active[j].seq > range->seq && range_inside(range, &list->active[j]);
        if (!inside) return false;
    }
    return true;
}
