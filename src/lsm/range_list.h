/* SPDX-License-Identifier: MIT
 *
 * range_list.h -- deleted token ranges of a store. Pure: no I/O, no clock, memory from a budget.
 *
 * A range deletes every entry of its keyspace whose token lies in it and whose (version, seq) is
 * lower than its own; readers below its seq do not see it. It leaves the list when no entry that
 * it covers can exist any more.
 *
 * Two arrays. *Active* ranges are what readers look at, usually none or one. A range that a newer
 * one hides from every reader is *shadowed*: nobody reads it, but it is kept until the newer one
 * is persistent, too, because the manifest may be written with a boundary between the two, and
 * the log before that boundary is then gone.
 */
#ifndef DISTKV_LSM_RANGE_LIST_H
#define DISTKV_LSM_RANGE_LIST_H

#include "base/limits.h"
#include "base/mem.h"
#include "base/status.h"

/* Active and shadowed ones together. Costs 48 bytes each; a read looks at all active ones. */
#define LEVELS_RANGES_MAX 4096u
/* What a manifest and the list hold while a store is opened: the manifest was written before what
 * had become needless left the list, and the log brings what was accepted after that. */
#define RANGE_LIST_MAX (4u * LEVELS_RANGES_MAX)

struct range_delete {
    u64 token_first, token_last; /* included */
    u64 version, seq;
    u16 keyspace;
};

struct range_list {
    struct budget *budget;
    struct range_delete *active; /* by seq, ascending */
    struct range_delete *shadowed;
    u32 active_count, active_capacity;
    u32 shadowed_count, shadowed_capacity;
    u32 limit; /* range_list_add refuses at this many */
    /* Only ranges from here on are merged with their neighbours. Those before may come from
     * different stores (when the number of cores changed), whose clocks are not comparable.
     * UINT64_MAX: none are, for versions come from outside, and one between the two ranges' may be
     * there, or come. */
    u64 merge_seq_min;
};

void range_list_init(struct range_list *list, struct budget *budget);
void range_list_deinit(struct range_list *list);
/* Adds one that is not older than any in the list. snapshots: open ones, ascending. Older ranges
 * that no reader can tell from the new one become shadowed. ST_OVERLOADED at the limit,
 * ST_NO_MEMORY. */
MUST_CHECK status range_list_add(struct range_list *list, const struct range_delete *range,
                                 const u64 *snapshots, u32 snapshot_count);
/* The newest range that covers the entry for a reader at seq_max; NULL: none does. A reader that is
 * no snapshot must have begun after the last range_list_coalesce. */
const struct range_delete *range_list_find(const struct range_list *list, u16 keyspace, u64 token,
                                           u64 version, u64 seq, u64 seq_max);
/* The lowest seq of all ranges up to seq_limit that cover the entry; UINT64_MAX: none does. Whoever
 * drops entries uses this one with the seq up to which ranges are persistent. */
u64 range_list_cover_seq_min(const struct range_list *list, u16 keyspace, u64 token, u64 version,
                             u64 seq, u64 seq_limit);
/* Forgets what readers and recovery can do without, among ranges up to seq_flushed: those inside a
 * newer one, and neighbours that were deleted one right after the other. Returns how many went. */
u32 range_list_coalesce(struct range_list *list, u64 seq_flushed, const u64 *snapshots,
                        u32 snapshot_count);
/* Removes every range up to seq_flushed for which may_cover(arg, range) is false. */
u32 range_list_expire(struct range_list *list, u64 seq_flushed,
                      bool (*may_cover)(void *arg, const struct range_delete *range), void *arg);
/* All ranges with seq <= seq_limit, ascending by seq, into out (room for range_list_count). */
u32 range_list_persistent(const struct range_list *list, u64 seq_limit, struct range_delete *out);
bool range_list_check(const struct range_list *list);

static inline u32
range_list_count(const struct range_list *list)
{
    return list->active_count + list->shadowed_count;
}

/* Those with seq > seq_above. */
u32 range_list_count_above(const struct range_list *list, u64 seq_above);

/* Whether the range deletes the entry. */
static inline bool
range_covers(const struct range_delete *range, u16 keyspace, u64 token, u64 version, u64 seq)
{
    if (range->keyspace != keyspace) return false;
    if (token < range->token_first || token > range->token_last) return false;
    return version < range->version || (version == range->version && seq < range->seq);
}

/* Whether a reader exists at first <= seq < end. snapshots: ascending. */
static inline bool
snapshot_between(const u64 *snapshots, u32 count, u64 first, u64 end)
{
    u32 low = 0, high = count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (snapshots[middle] < first)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && snapshots[low] < end;
}

#endif
