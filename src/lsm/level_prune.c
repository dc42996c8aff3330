/* SPDX-License-Identifier: MIT
 *
 * level_prune.c -- dropping whole tables without reading them, and deciding when a deleted range
 * has nothing left to hide.
 *
 * A table goes when all its entries are covered by one persistent range and no snapshot lies
 * between the two, or when all of them have expired, no snapshot sees any, nothing older lies
 * beneath (it would come back), and nothing above may hold an older version, or will.
 */
#include "base/fault.h"
#include "io/io.h"
#include "lsm/levels_internal.h"

static bool
range_before_table(const struct range_delete *range, const struct table_meta *meta)
{
    return meta->version_min > range->version ||
           (meta->version_min == range->version && meta->seq_min > range->seq);
}

bool
levels_range_may_cover(void *arg, const struct range_delete *range)
{
    const struct levels *levels = arg;
    const struct run_set *set = levels->current;
    if (range->version >= levels->purge_below[range->keyspace]) return true; /* it may come yet */
    for (u32 i = 0; i < run_set_tree_count(set, range->keyspace); i++) {
        const struct run *run = run_set_tree_run(set, range->keyspace, i);
        for (u32 j = run_slot_from(run, range->token_first); j < run->count; j++) {
            if (run->slots[j].token_first > range->token_last) break;
            if (!range_before_table(range, &run->slots[j].file->table->meta)) return true;
        }
    }
    return false;
}

static bool
covered_whole(const struct levels *levels, const struct range_delete *range, u16 keyspace,
              const struct run_slot *slot, const u64 *snapshots, u32 snapshot_count)
{
    const struct table_meta *meta = &slot->file->table->meta;
    if (range->keyspace != keyspace || range->seq > levels->state.seq_flushed) return false;
    if (range->token_first > slot->token_first || range->token_last < slot->token_last)
        return false;
    if (meta->version_max > range->version ||
        (meta->version_max == range->version && meta->seq_max >= range->seq))
        return false;
    return !snapshot_between(snapshots, snapshot_count, meta->seq_min, range->seq);
}

static const struct range_delete *
range_at(const struct range_list *list, u32 index)
{
    return index < list->active_count ? &list->active[index]
                                      : &list->shadowed[index - list->active_count];
}

static bool
droppable_by_range(const struct levels *levels, u16 keyspace, const struct run_slot *slot,
                   const u64 *snapshots, u32 snapshot_count)
{
    for (u32 i = 0; i < range_list_count(&levels->ranges); i++) {
        if (covered_whole(levels, range_at(&levels->ranges, i), keyspace, slot, snapshots,
                          snapshot_count))
            return true;
    }
    return false;
}

/* Whether any slot may go: from the ranges' side, because many small ranges over many tables are
 * too many pairs. */
static bool
run_has_droppable(const struct levels *levels, const struct run *run, const u64 *snapshots,
                  u32 snapshot_count, u64 wall_ms)
{
    for (u32 i = 0; i < range_list_count(&levels->ranges); i++) {
        const struct range_delete *range = range_at(&levels->ranges, i);
        if (range->keyspace != run->keyspace) continue;
        for (u32 j = run_slot_from(run, range->token_first); j < run->count; j++) {
            if (run->slots[j].token_first > range->token_last) break;
            if (covered_whole(levels, range, run->keyspace, &run->slots[j], snapshots,
                              snapshot_count))
                return true;
        }
    }
    for (u32 i = 0; i < run->count; i++) {
        const struct table_meta *meta = &run->slots[i].file->table->meta;
        if (meta->entries_all_expire && meta->expire_max_ms <= wall_ms) return true;
    }
    return false;
}

static bool
droppable_expired(const struct levels *levels, u16 keyspace, u32 run_index,
                  const struct run_slot *slot, const u64 *snapshots, u32 snapshot_count,
                  u64 wall_ms)
{
    const struct run_set *set = levels->current;
    const struct table_meta *meta = &slot->file->table->meta;
    if (meta->version_max >= levels->purge_below[keyspace] ||
        meta->expire_max_ms >= levels->expire_below_ms[keyspace])
        return false;
    if (!meta->entries_all_expire || meta->expire_max_ms > wall_ms) return false;
    if (snapshot_between(snapshots, snapshot_count, meta->seq_min, UINT64_MAX)) return false;
    for (u32 i = 0; i < run_set_tree_count(set, keyspace); i++) {
        if (i == run_index) continue;
        const struct run *run = run_set_tree_run(set, keyspace, i);
        for (u32 j = run_slot_from(run, slot->token_first); j < run->count; j++) {
            if (run->slots[j].token_first > slot->token_last) break;
            if (i > run_index) return false;
            if (run->slots[j].file->table->meta.version_min <= meta->version_max) return false;
        }
    }
    return MARKED("lsm.prune.expired", true);
}

/* The run without what may go; *out == run when all stays. */
static status
prune_run(struct levels *levels, u16 keyspace, u32 index, u64 wall_ms, struct run **out)
{
    const struct run_set *set = levels->current;
    struct run *run = run_set_tree_run(set, keyspace, index);
    u32 snapshot_count;
    const u64 *snapshots = levels_snapshots(levels, &snapshot_count);
    *out = run;
    if (!run_has_droppable(levels, run, snapshots, snapshot_count, wall_ms)) return ST_OK;
    u32 kept = 0;
    struct run *made = NULL;
    /* Twice the same question: first to count, then to copy. */
    for (u32 pass = 0; pass < 2; pass++) {
        for (u32 i = 0; i < run->count; i++) {
            const struct run_slot *slot = &run->slots[i];
            if (droppable_by_range(levels, keyspace, slot, snapshots, snapshot_count) ||
                droppable_expired(levels, keyspace, index, slot, snapshots, snapshot_count,
                                  wall_ms)) {
                levels->dropped_seq_tables[keyspace] =
                    MAX(levels->dropped_seq_tables[keyspace], slot->file->table->meta.seq_max);
                continue;
            }
            if (pass == 0)
                kept++;
            else
                run_add(made, slot->file, slot->token_first, slot->token_last);
        }
        if (pass == 1 || kept == run->count) break;
        MARK("lsm.prune.table_dropped");
        *out = NULL;
        if (kept == 0) return ST_OK;
        made = run_new(levels, keyspace, run->tier, kept);
        if (made == NULL) return ST_NO_MEMORY;
        made->id = run->id;
        made->owner = run->owner;
        *out = made;
    }
    return ST_OK;
}

MAY_YIELD status
levels_prune(struct levels *levels)
{
    if (range_list_count(&levels->ranges) > 0 && levels->sets_alive == 1)
        (void)range_list_expire(&levels->ranges, levels->state.seq_flushed, levels_range_may_cover,
                                levels);
    /* What a commit could not let go of because of a reader. Costs the square of their number. */
    if (range_list_count(&levels->ranges) >= LEVELS_RANGES_MAX / 2 && levels->sets_alive == 1 &&
        levels->current->ref_count == 1) {
        u32 snapshot_count;
        const u64 *snapshots = levels_snapshots(levels, &snapshot_count);
        (void)range_list_coalesce(&levels->ranges, levels->state.seq_flushed, snapshots,
                                  snapshot_count);
    }
    /* No yield until the commit has the changes. */
    const struct run_set *set = levels->current;
    struct run_change changes[64];
    u32 count = 0;
    status st = ST_OK;
    u64 wall_ms = levels_expiry_begin(levels);
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES && ok(st); keyspace++) {
        for (u32 i = 0; i < run_set_tree_count(set, keyspace) && count < ARRAY_COUNT(changes);
             i++) {
            struct run *run = run_set_tree_run(set, keyspace, i);
            struct run *pruned;
            st = prune_run(levels, keyspace, i, wall_ms, &pruned);
            if (!ok(st)) break;
            if (pruned != run)
                changes[count++] = (struct run_change){.old = run, .replacement = pruned};
        }
    }
    u64 entries = levels->table_entries;
    if (ok(st) && count > 0) st = levels_commit(levels, changes, count, NULL);
    levels_expiry_end(levels);
    if (ok(st) && count > 0 && levels->table_entries < entries)
        levels->dropped[RETAIN_DROP_DELETED] += entries - levels->table_entries;
    for (u32 i = 0; i < count; i++) {
        if (changes[i].replacement != NULL) run_unref(changes[i].replacement, levels);
    }
    return st;
}

bool
levels_ranges_want_rewrite(struct levels *levels, u16 keyspace)
{
    u32 snapshot_count;
    const u64 *snapshots = levels_snapshots(levels, &snapshot_count);
    const struct range_list *list = &levels->ranges;
    for (u32 i = 0; i < list->active_count; i++) {
        const struct range_delete *range = &list->active[i];
        if (range->keyspace != keyspace || range->seq > levels->state.seq_flushed) continue;
        if (range->seq <= levels->trees[keyspace].rewrite_seq) continue;
        if (snapshot_between(snapshots, snapshot_count, 0, range->seq)) continue;
        return true;
    }
    return false;
}

bool
levels_run_has_garbage(const struct run *run)
{
    for (u32 i = 0; i < run->count; i++) {
        const struct level_table *file = run->slots[i].file;
        for (u32 j = 0; j < file->blob_count; j++)
            if (level_blob_is_garbage(file->blobs[j])) return true;
    }
    return false;
}

bool
levels_drops_any(const struct levels *levels, u16 keyspace, u64 token_first, u64 token_last)
{
    const struct drop_bits *drop = &levels->drops[keyspace];
    if (drop->bits == NULL) return false;
    u64 first = MAX(token_first, levels->config.token_first) - drop->token_first;
    u64 last = MIN(token_last, levels->config.token_last) - drop->token_first;
    for (u64 at = first >> drop->shift; at <= last >> drop->shift; at++)
        if (drop->bits[at / 64] >> at % 64 & 1) return true;
    return false;
}

bool
levels_wants_rewrite(struct levels *levels, const struct run_slot *slot)
{
    const struct table_meta *meta = &slot->file->table->meta;
    if (slot->token_first != meta->token_first || slot->token_last != meta->token_last) return true;
    if (meta->delete_count > 0) return true;
    if (meta->expiring_count > 0 && meta->expire_min_ms <= io_wall_ms()) return true;
    if (levels_drops_any(levels, meta->keyspace, slot->token_first, slot->token_last)) return true;
    for (u32 i = 0; i < slot->file->blob_count; i++) {
        const struct level_blob *blob = slot->file->blobs[i];
        if (level_blob_is_garbage(blob)) return true;
    }
    for (u32 i = 0; i < levels->ranges.active_count; i++) {
        const struct range_delete *range = &levels->ranges.active[i];
        if (range->keyspace == meta->keyspace && range->seq <= levels->state.seq_flushed &&
            range->token_first <= slot->token_last && range->token_last >= slot->token_first &&
            !range_before_table(range, meta))
            return true;
    }
    return false;
}
