/* SPDX-License-Identifier: MIT
 *
 * compaction.c -- carries out what compaction_pick decides, slice by slice.
 *
 *   work     pick the most urgent thing over all keyspaces; begin a sweep or go on with one
 *   step     one slice of a sweep: merge, write, commit
 *   pace     between pieces of a step: yield, and wait when ahead of what writers have earned
 *
 * Invariants
 *   C1  All work happens under compact_mutex, so between the picking of a step and its commit only
 *       flushes change the current set, and they only insert in front.
 *   C2  The runs of a sweep are those that carry its number as their owner; nobody else replaces
 *       them (checked at the commit).
 *   C3  A sweep's inputs are neighbours in age and its output stands right behind them, so S1 holds
 *       for every token whether it was swept yet or not.
 *   C4  A step that fails leaves the set as it was and removes what it wrote. The sweep is tried
 *       again later, except when an input was damaged: then its tree is not merged any more, the
 *       owner is told, and reads go on. One whose owner mends it waits instead, and only what is
 *       not damaged is merged (level_damage.c).
 *   C5  What a merge leaves out unread because it is damaged was to go, with all that any run has
 *       of its tokens.
 *
 * Sweeps live in memory only. After a restart the views in the manifest tell what was consumed, and
 * picking starts afresh; that is correct whatever it picks, by C3.
 */
#include <stdio.h>

#include "base/fault.h"
#include "base/log.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/levels_internal.h"
#include "lsm/merge.h"
#include "lsm/piece_io.h"

/* After a failure nothing is tried for this long. */
#define RETRY_NS (1 * NS_PER_S)
/* What compaction may have done before it was earned. */
#define CREDIT_BEHIND_BYTES ((i64)MIB(256))
/* Merged bytes that one written byte pays for: what keys that are written again and again need. It
 * rises with the pressure, for the shape may need 6 to 8. */
#define CREDIT_FACTOR   4u
#define CREDIT_PRESSURE 25u /* that much of it is one more */
/* From this pressure on compaction does not wait for credit. */
#define PRESSURE_UNPACED 500u
/* Tokens are hashes: fewer of them at once than this are no less work. */
#define SLICE_WIDTH_MIN ((u64)1 << 20)
/* Without memory for a slice it is halved as often as this at most, and doubled again after so many
 * steps that went well. */
#define NARROW_SHIFT_MAX 6u
#define WIDEN_AFTER      4u
/* Where space is short: tiers of this part of the last level are merged into it. */
#define SPACE_RATIO 8u

/* ---- pacing ---- */

/* Disk and core that compaction takes are taken from requests, so it is to go on evenly: as fast as
 * writers earn, or as an idle store may, whichever is more; never in a burst of what was saved up.
 */
static void
earn(struct levels *levels, u64 bytes)
{
    levels->credit_bytes = MIN(levels->credit_bytes + (i64)bytes, COMPACTION_AHEAD_BYTES);
}

void
levels_user_bytes(struct levels *levels, u64 bytes)
{
    u64 earned = MIN(bytes, GIB(1)) * (CREDIT_FACTOR + levels->pressure / CREDIT_PRESSURE);
    earn(levels, earned);
    levels->credit_written = MIN(levels->credit_written + earned, (u64)COMPACTION_IDLE_BYTES_PER_S);
}

static void
earn_idle_credit(struct levels *levels)
{
    u64 now = io_now_ns();
    u64 elapsed = MIN(now - levels->credit_ns, NS_PER_S);
    levels->credit_ns = now;
    u64 earned = elapsed * (COMPACTION_IDLE_BYTES_PER_S / NS_PER_MS) / NS_PER_US;
    u64 written = MIN(earned, levels->credit_written);
    levels->credit_written -= written;
    earn(levels, earned - written);
}

MAY_YIELD static status
pace(struct levels *levels, u64 bytes)
{
    levels->credit_bytes = MAX(levels->credit_bytes - (i64)bytes, -CREDIT_BEHIND_BYTES);
    earn_idle_credit(levels);
    while (levels->credit_bytes < 0 && levels->forced == 0 && !levels->stopping &&
           levels_pressure(levels) < PRESSURE_UNPACED) {
        u64 deficit = (u64)-levels->credit_bytes;
        u64 wait_ns = deficit * NS_PER_US / (COMPACTION_IDLE_BYTES_PER_S / NS_PER_MS);
        (void)!ok(fiber_queue_wait(&levels->wake,
                                   io_now_ns() + CLAMP(wait_ns, NS_PER_MS / 2, 10 * NS_PER_MS)));
        earn_idle_credit(levels);
    }
    if (!levels->started || !levels->stopping) return ST_OK;
    return MARKED("lsm.compaction.canceled", ST_CANCELED);
}

/* ---- one step ---- */

struct step {
    struct levels *levels;
    u16 keyspace;
    u8 owner;
    struct sweep *sweep;
    u64 token_first, token_last;
    struct run *inputs[SWEEP_RUNS_MAX]; /* newest first; the whole sweep's, in the current set */
    u32 input_count;
    struct run *last;   /* of a sweep into the last level; NULL: there is none yet */
    struct run *target; /* the output so far: last, or the sweep's own run; NULL: none yet */
    struct run *oldest; /* input */
    bool leaves_out;    /* damage, where it drops */
    struct leave_out left_out;
    bool again; /* what is to be dropped has changed meanwhile: nothing is done */
};

/* What the sweep still has, from the current set (C2). */
static void
step_inputs(struct step *step)
{
    const struct run_set *set = step->levels->current;
    struct sweep *sweep = step->sweep;
    step->input_count = 0;
    step->oldest = NULL;
    for (u32 i = 0; i < run_set_tree_count(set, step->keyspace); i++) {
        struct run *run = run_set_tree_run(set, step->keyspace, i);
        bool is_output = run->tier == RUN_TIER_LAST || run->id == sweep->output_run_id;
        if (run->owner != step->owner || is_output) continue;
        CHECK(step->input_count < SWEEP_RUNS_MAX);
        step->inputs[step->input_count++] = run;
        step->oldest = run;
    }
    step->last = sweep->into_last ? run_set_last(set, step->keyspace) : NULL;
    step->target = step->last;
    if (!sweep->into_last && sweep->output_run_id != 0)
        step->target = run_set_find(set, sweep->output_run_id);
}

/* The next slice that has something to do. False: the sweep is at its end. */
static bool
step_range(struct step *step)
{
    struct levels *levels = step->levels;
    struct sweep *sweep = step->sweep;
    u64 end = levels->config.token_last;
    u64 first = UINT64_MAX;
    bool any = false;
    for (u32 i = 0; i < step->input_count; i++) {
        const struct run *run = step->inputs[i];
        u32 at = run_slot_from(run, sweep->token_next);
        if (at == run->count) continue;
        first = MIN(first, MAX(sweep->token_next, run->slots[at].token_first));
        any = true;
    }
    const struct run *last = step->last;
    if (last != NULL && sweep->whole) {
        for (u32 i = run_slot_from(last, sweep->token_next); i < last->count; i++) {
            if (last->slots[i].token_first >= first) break;
            if (!levels_wants_rewrite(levels, &last->slots[i])) continue;
            first = MIN(first, MAX(sweep->token_next, last->slots[i].token_first));
            any = true;
            break;
        }
    }
    if (!any) return false;
    step->token_first = first;
    step->token_last = MIN(end, compaction_slice_last(first, sweep->width));
    if (last == NULL) return true;
    /* Tables of the last level are taken whole, so that their space comes back. */
    for (u32 i = run_slot_from(last, first); i < last->count; i++) {
        const struct run_slot *slot = &last->slots[i];
        if (slot->token_first > step->token_last) break;
        if (slot->token_first < first && slot->token_first >= sweep->token_next)
            step->token_first = slot->token_first;
        step->token_last = MAX(step->token_last, slot->token_last);
    }
    return true;
}

static u64
bytes_in(const struct run *run, u64 first, u64 last)
{
    u64 bytes = 0;
    for (u32 i = run_slot_from(run, first); i < run->count; i++) {
        const struct run_slot *slot = &run->slots[i];
        if (slot->token_first > last) break;
        bytes += level_table_bytes_in(slot->file, MAX(first, slot->token_first),
                                      MIN(last, slot->token_last));
    }
    return bytes;
}

static u64
entries_in(const struct run *run, u64 first, u64 last)
{
    u64 entries = 0;
    for (u32 i = run_slot_from(run, first); i < run->count; i++) {
        const struct run_slot *slot = &run->slots[i];
        if (slot->token_first > last) break;
        const struct table_meta *meta = &slot->file->table->meta;
        u64 span = meta->token_last - meta->token_first;
        u64 part = MIN(last, slot->token_last) - MAX(first, slot->token_first);
        entries += span == 0 ? meta->entry_count
                             : (u64)((unsigned __int128)meta->entry_count * part / span) + 1;
    }
    return entries;
}

/* How many entries the slice's inputs hold. False: a table is only partly in it, so that is not
 * known. */
static bool
entries_known(const struct step *step, u64 *entries_out)
{
    *entries_out = 0;
    for (u32 i = 0; i <= step->input_count; i++) {
        const struct run *run = i < step->input_count ? step->inputs[i] : step->last;
        if (run == NULL) continue;
        for (u32 j = run_slot_from(run, step->token_first); j < run->count; j++) {
            const struct run_slot *slot = &run->slots[j];
            if (slot->token_first > step->token_last) break;
            const struct table_meta *meta = &slot->file->table->meta;
            if (slot->token_first < step->token_first || slot->token_last > step->token_last ||
                slot->token_first != meta->token_first || slot->token_last != meta->token_last)
                return false;
            *entries_out += meta->entry_count;
        }
    }
    return true;
}

static void
report_space(struct levels *levels, bool full)
{
    if (levels->no_space == full) return;
    levels->no_space = full;
    if (!full) MARK("lsm.compaction.space_returned");
    if (levels->config.failed != NULL)
        levels->config.failed(levels->config.arg, full ? ST_NO_SPACE : ST_OK,
                              full ? "no space for compaction" : "compaction has space again");
}

/* What the slice takes of the disk before its inputs give anything back, at most: its tables, and
 * of the values kept apart those that are written again. All others stay where they are, however
 * much they take: a merge writes their pointers. */
static u64
bytes_to_write(const struct step *step, const struct output_config *config)
{
    u64 tables = 0, again = 0, stay = 0, largest = 0, mark = ++step->levels->mark_next;
    u32 files = 0;
    for (u32 i = 0; i <= step->input_count; i++) {
        const struct run *run = i < step->input_count ? step->inputs[i] : step->last;
        if (run == NULL) continue;
        for (u32 j = run_slot_from(run, step->token_first); j < run->count; j++) {
            const struct run_slot *slot = &run->slots[j];
            if (slot->token_first > step->token_last) break;
            const struct level_table *file = slot->file;
            const struct table_meta *meta = &file->table->meta;
            u64 first = MAX(step->token_first, slot->token_first);
            u64 last = MIN(step->token_last, slot->token_last);
            tables += level_table_part(file, meta->file_bytes, first, last);
            for (u32 k = 0; k < file->blob_count; k++) {
                struct level_blob *blob = file->blobs[k];
                u64 bytes = level_table_part(file, meta->blob_refs[k].bytes, first, last);
                bool rewritten = output_rewrites(config, blob);
                *(rewritten ? &again : &stay) += bytes;
                if (rewritten || blob->mark == mark) continue;
                blob->mark = mark;
                largest = MAX(largest, blob->live_bytes);
                files++;
            }
        }
    }
    /* A table refers to these at least, and to one that it writes. */
    u32 kept = OUTPUT_BLOB_REFS_MAX - 1;
    if (files > kept) again += MIN(stay, (files - kept) * largest);
    return tables + again;
}

/* A slice is only begun when its output surely fits: a full disk in the middle costs work, and the
 * space that it would have given back is needed most then. In memory a try costs little, and most
 * of what is merged may be what is deleted. */
static bool
step_has_space(struct levels *levels, u64 bytes)
{
    u64 disk_free, disk_total;
    if (levels->config.in_memory) return true;
    if (!ok(io_disk_free(levels->dir, &disk_free, &disk_total)))
        return MARKED("lsm.compaction.free_unknown", true);
    return disk_free > bytes + MIB(1);
}

/* The oldest version that might lie in a run that is not merged and newer, in a table that has
 * something up to seq. */
static u64
version_elsewhere(const struct step *step, u64 seq)
{
    const struct run_set *set = step->levels->current;
    u64 version = UINT64_MAX;
    for (u32 i = 0; i < run_set_tree_count(set, step->keyspace); i++) {
        const struct run *run = run_set_tree_run(set, step->keyspace, i);
        if (run->owner == step->owner) continue;
        for (u32 j = run_slot_from(run, step->token_first); j < run->count; j++) {
            if (run->slots[j].token_first > step->token_last) break;
            const struct table_meta *meta = &run->slots[j].file->table->meta;
            if (meta->seq_min <= seq) version = MIN(version, meta->version_min);
        }
    }
    return version;
}

/* The highest version that the slice's inputs may hold. */
static u64
version_inside(const struct step *step)
{
    u64 version = 0;
    for (u32 i = 0; i <= step->input_count; i++) {
        const struct run *run = i < step->input_count ? step->inputs[i] : step->last;
        if (run == NULL) continue;
        for (u32 j = run_slot_from(run, step->token_first); j < run->count; j++) {
            if (run->slots[j].token_first > step->token_last) break;
            version = MAX(version, run->slots[j].file->table->meta.version_max);
        }
    }
    return version;
}

/* Nothing older than the inputs has a token of this slice. */
static bool
at_bottom(const struct step *step)
{
    if (step->sweep->into_last) return true;
    const struct run_set *set = step->levels->current;
    u32 count = run_set_tree_count(set, step->keyspace);
    for (u32 i = count; i-- > 0;) {
        const struct run *run = run_set_tree_run(set, step->keyspace, i);
        if (run == step->oldest) return true;
        if (run_overlaps(run, step->token_first, step->token_last)) return false;
    }
    return true;
}

/* Of each source. There are many when compaction is behind, and that is when writers wait for it:
 * so it takes what memory there is, and never asks for more. */
static u32
read_ahead_bytes(const struct levels *levels, u32 sources)
{
    /* Two windows each, and as much again for what does not lie in one, and for the output. */
    u64 room = budget_available(levels->budget) / 4 / sources;
    u32 bytes = COMPACTION_READ_AHEAD_BYTES;
    while (bytes > room && bytes > PIECE_BYTES_MIN)
        bytes /= 2;
    if (bytes < COMPACTION_READ_AHEAD_BYTES) MARK("lsm.compaction.reads_less_ahead");
    return bytes;
}

MAY_YIELD static status
merge_slice(struct step *step, struct output *output)
{
    struct levels *levels = step->levels;
    struct cursor *sources[SWEEP_RUNS_MAX + 1];
    u32 count = 0;
    u32 ahead_bytes = read_ahead_bytes(levels, step->input_count + 1);
    for (u32 i = 0; i <= step->input_count; i++) {
        const struct run *run = i < step->input_count ? step->inputs[i] : step->last;
        if (run == NULL || !run_overlaps(run, step->token_first, step->token_last)) continue;
        sources[count] = run_cursor_open(levels, levels->current, run, step->token_first,
                                         step->token_last, IO_CLASS_COMPACTION, ahead_bytes);
        if (sources[count] == NULL) {
            MARK("lsm.compaction.cursors_dropped");
            while (count-- > 0)
                sources[count]->ops->close(sources[count]);
            return ST_NO_MEMORY;
        }
        if (step->leaves_out) run_cursor_leave_out(sources[count], &step->left_out);
        count++;
    }
    struct cursor *merge;
    status st = merge_cursor_open(sources, count, levels->budget, &merge);
    if (!ok(st)) return st;
    st = merge->ops->seek(merge, step->token_first, BYTES(NULL, 0));
    u64 bytes = 0;
    while (ok(st) && merge->valid) {
        /* Out of order in its block, or of a number that no table can have: the manifest would be
         * one that nobody opens. */
        if (merge->entry.token < step->token_first || merge->entry.token > step->token_last ||
            merge->entry.seq > levels->state.seq_flushed) {
            st = MARKED("lsm.compaction.entry_outside", ST_CORRUPT);
            break;
        }
        bytes += merge->entry.key.size + entry_value_size(&merge->entry) + 32;
        st = output_add(output, &merge->entry);
        if (ok(st)) st = merge->ops->next(merge);
        if (ok(st) && bytes >= COMPACTION_PIECE_BYTES) {
            st = pace(levels, bytes);
            bytes = 0;
        }
        if (fiber_should_yield()) fiber_yield();
    }
    merge->ops->close(merge);
    return ok(st) ? output_finish(output) : st;
}

/* Replaces the slice in the inputs by the given slots of the output, durably. */
MAY_YIELD static status
commit_slice(struct step *step, const struct run_slot *slots, u32 slot_count)
{
    struct levels *levels = step->levels;
    struct sweep *sweep = step->sweep;
    struct run_change changes[SWEEP_RUNS_MAX + 1];
    struct run *made[SWEEP_RUNS_MAX + 1];
    u32 count = 0, made_count = 0;
    struct run *output;
    u8 tier = sweep->into_last ? RUN_TIER_LAST : sweep->tier_out;
    status st = run_splice(step->target, levels, step->keyspace, tier, step->token_first,
                           step->token_last, slots, slot_count, &output);
    if (!ok(st)) return st;
    if (output != NULL) {
        output->owner = step->owner;
        made[made_count++] = output;
    }
    struct run_change *oldest = NULL;
    for (u32 i = 0; i < step->input_count && ok(st); i++) {
        struct run *run = step->inputs[i];
        bool overlaps = run_overlaps(run, step->token_first, step->token_last);
        if (!overlaps && run != step->oldest) continue;
        struct run *rest = run;
        if (overlaps) {
            st = run_splice(run, levels, step->keyspace, run->tier, step->token_first,
                            step->token_last, NULL, 0, &rest);
            if (!ok(st)) break;
            if (rest != NULL) made[made_count++] = rest;
        }
        changes[count] = (struct run_change){.old = run, .replacement = rest};
        if (run == step->oldest) oldest = &changes[count];
        count++;
    }
    if (ok(st)) {
        if (step->target != NULL) {
            changes[count++] = (struct run_change){.old = step->target, .replacement = output};
        } else if (output != NULL && sweep->into_last) {
            changes[count++] = (struct run_change){.replacement = output};
        } else if (output != NULL) {
            CHECK(oldest != NULL);
            oldest->after = output; /* C3 */
        }
        st = levels_commit(levels, changes, count, NULL);
    }
    if (ok(st) && !sweep->into_last && output != NULL) sweep->output_run_id = output->id;
    for (u32 i = 0; i < made_count; i++)
        run_unref(made[i], levels);
    return st;
}

/* The one table of the slice, when it can become part of the output as it is. */
static const struct run_slot *
trivial_move(const struct step *step)
{
    const struct run_slot *only = NULL;
    u64 first = step->token_first, last = step->token_last;
    /* It is to be looked into. */
    if (step->sweep->drops || levels_drops_any(step->levels, step->keyspace, first, last))
        return NULL;
    for (u32 i = 0; i < step->input_count; i++) {
        const struct run *run = step->inputs[i];
        for (u32 j = run_slot_from(run, first); j < run->count; j++) {
            if (run->slots[j].token_first > last) break;
            if (only != NULL) return NULL;
            only = &run->slots[j];
        }
    }
    if (only == NULL || (step->last != NULL && run_overlaps(step->last, first, last))) return NULL;
    const struct table_meta *meta = &only->file->table->meta;
    if (only->token_first < first || only->token_last > last) return NULL;
    if (meta->file_bytes > 2 * step->levels->slice_bytes) return NULL;
    if (only->token_first != meta->token_first || only->token_last != meta->token_last) return NULL;
    if (meta->delete_count > 0 || meta->expiring_count > 0) return NULL;
    if (range_list_count(&step->levels->ranges) > 0) return NULL;
    for (u32 i = 0; i < only->file->blob_count; i++) {
        const struct level_blob *blob = only->file->blobs[i];
        if (step->sweep->into_last && (blob->token_first < first || blob->token_last > last))
            return NULL;
    }
    return only;
}

/* How many of the puts that came from above were new to the last level. */
#define MERGED_PUTS_MAX (1u << 20)
static void
note_merged(struct step *step, u64 entries, u64 entries_last, u64 puts_out)
{
    if (!step->sweep->into_last || entries <= entries_last) return;
    struct level_tree *tree = &step->levels->trees[step->keyspace];
    u64 puts = entries - entries_last;
    u64 more = puts_out > entries_last ? puts_out - entries_last : 0;
    if (tree->merged_puts > MERGED_PUTS_MAX) {
        tree->merged_puts /= 2;
        tree->merged_new /= 2;
    }
    tree->merged_puts += puts;
    tree->merged_new += MIN(more, puts);
}

/* What the merge may drop, besides what its snapshots allow. */
static void
retain_complete(struct step *step, struct retain *retain)
{
    struct levels *levels = step->levels;
    struct sweep *sweep = step->sweep;
    retain->range_seq_limit = levels->state.seq_flushed;
    retain->bottom = at_bottom(step);
    /* Or come later. (Memtables hold higher versions than runs when the store stamps; else see
     * lsm_purge_allow.) */
    retain->version_elsewhere = version_elsewhere(step, UINT64_MAX);
    retain->version_outside = MIN(retain->version_elsewhere, levels->purge_below[step->keyspace]);
    if (!sweep->drops) return;
    retain->version_elsewhere = version_elsewhere(step, levels->drop_seq[step->keyspace]);
    step->leaves_out = retain->bottom && version_inside(step) < retain->version_elsewhere;
    step->left_out.drop = retain->drop;
    sweep->held_back = !step->leaves_out;
    if (sweep->held_back) MARK("lsm.compaction.held_back");
}

/* What was not read is not replaced, unless it was left out. */
static status
entries_check(const struct step *step, bool is_known, u64 known, u64 read)
{
    if (!is_known || read == known || (step->left_out.blocks > 0 && read < known)) return ST_OK;
    MARK("lsm.compaction.entries_missing");
    log_error("lsm", "merged tables hold %llu entries, %llu were read dir=%s",
              (unsigned long long)known, (unsigned long long)read, step->levels->dir);
    return ST_CORRUPT;
}

/* Before what was left out is gone for readers: it may have been the last trace of a key. */
static void
note_left_out(const struct step *step)
{
    struct levels *levels = step->levels;
    const struct leave_out *left_out = &step->left_out;
    if (left_out->blocks == 0) return;
    MARK("lsm.compaction.damage_left_out");
    u64 *dropped_seq = &levels->dropped_seq_tables[step->keyspace];
    *dropped_seq = MAX(*dropped_seq, left_out->seq_max);
    log_warning("lsm",
                "damaged blocks go unread with all that was kept of their tokens dir=%s "
                "keyspace=%u blocks=%llu",
                levels->dir, step->keyspace, (unsigned long long)left_out->blocks);
}

MAY_YIELD static status
run_step(struct step *step)
{
    struct levels *levels = step->levels;
    const struct run_slot *move = trivial_move(step);
    if (move != NULL) {
        MARK("lsm.compaction.trivial_move");
        struct run_slot slot = *move;
        u64 moved = slot.file->table->meta.entry_count;
        status moved_st = commit_slice(step, &slot, 1);
        if (ok(moved_st)) note_merged(step, moved, 0, moved);
        return moved_st;
    }
    u64 bytes = 0, entries = 0, entries_last = 0, puts_out = 0;
    for (u32 i = 0; i <= step->input_count; i++) {
        const struct run *run = i < step->input_count ? step->inputs[i] : step->last;
        if (run == NULL) continue;
        bytes += bytes_in(run, step->token_first, step->token_last);
        u64 run_entries = entries_in(run, step->token_first, step->token_last);
        entries += run_entries;
        if (run == step->last) entries_last = run_entries;
    }
    bool into_last = step->sweep->into_last;
    u64 span = step->token_last - step->token_first;
    struct output_config config = {
        .levels = levels,
        .keyspace = step->keyspace,
        .codec = into_last ? levels->config.options.codec_last : levels->config.options.codec_upper,
        .filter_bits = into_last ? FILTER_BITS_LAST : FILTER_BITS_TIER,
        .io_class = IO_CLASS_COMPACTION,
        .slice_width = step->sweep->width_full, /* narrower ones make no more tables */
        .entry_count_max = entries,
        .blob_span_max = into_last && span < UINT64_MAX / 2 ? 2 * span + 1 : UINT64_MAX,
        .collect_blobs = into_last,
        .leave_damaged = step->sweep->drops,
        .table_bytes_max = levels->table_bytes_max,
    };
    if (!step_has_space(levels, bytes_to_write(step, &config))) {
        MARK("lsm.compaction.no_space_ahead");
        return ST_NO_SPACE;
    }
    struct output output;
    status st = output_init(&output, &config);
    if (!ok(st)) return st;
    output.retain.wall_ms = levels_expiry_begin(levels);
    retain_complete(step, &output.retain);
    u64 known, drop_hash = levels->drop_hashes[step->keyspace];
    bool is_known = entries_known(step, &known);
    st = merge_slice(step, &output);
    if (ok(st)) st = entries_check(step, is_known, known, output.entries_in);
    if (ok(st) && step->left_out.blocks > 0 && levels->drop_hashes[step->keyspace] != drop_hash) {
        MARK("lsm.compaction.drop_changed");
        step->again = true;
        levels_expiry_end(levels);
        output_deinit(&output);
        return ST_OK;
    }
    struct run_slot *slots = NULL;
    u32 count = output.table_count;
    if (ok(st) && count > 0) {
        slots = mem_alloc(levels->budget, count * sizeof(*slots));
        if (slots == NULL) {
            MARK("lsm.compaction.slots_no_memory");
            st = ST_NO_MEMORY;
        }
        for (u32 i = 0; slots != NULL && i < count; i++) {
            const struct table_meta *meta = &output.tables[i]->table->meta;
            slots[i] = (struct run_slot){output.tables[i], meta->token_first, meta->token_last};
            puts_out += meta->entry_count - meta->delete_count;
        }
    }
    if (BUGGIFY("lsm.compaction.late_commit")) fiber_sleep_ns(20 * NS_PER_MS);
    if (ok(st)) note_left_out(step);
    if (ok(st)) st = commit_slice(step, slots, count);
    levels_expiry_end(levels);
    mem_free(levels->budget, slots, count * sizeof(*slots));
    if (ok(st)) {
        note_merged(step, entries, entries_last, puts_out);
        levels->compaction_read_bytes += bytes;
        levels->compaction_written_bytes += output.bytes_written;
        for (u32 i = 0; i < RETAIN_ANSWER_COUNT; i++)
            levels->dropped[i] += output.dropped[i];
    }
    output_deinit(&output);
    return st;
}

/* ---- sweeps ---- */

static void
sweep_end(struct levels *levels, u16 keyspace, u32 index)
{
    struct sweep *sweep = &levels->trees[keyspace].sweeps[index];
    const struct run_set *set = levels->current;
    for (u32 i = 0; i < run_set_tree_count(set, keyspace); i++) {
        struct run *run = run_set_tree_run(set, keyspace, i);
        if (run->owner == index + 1) run->owner = 0;
    }
    *sweep = (struct sweep){0};
}

static u32
sweep_begin(struct levels *levels, u16 keyspace, const struct pick *pick, u32 skipped)
{
    struct level_tree *tree = &levels->trees[keyspace];
    const struct run_set *set = levels->current;
    u32 index = 0;
    while (tree->sweeps[index].active)
        index++;
    CHECK(index < PICK_SWEEPS_MAX);
    struct sweep *sweep = &tree->sweeps[index];
    *sweep = (struct sweep){.active = true,
                            .into_last = pick->kind == PICK_LAST,
                            .tier_out = pick->tier_out,
                            .token_next = levels->config.token_first};
    u64 bytes = 0;
    CHECK(pick->count <= SWEEP_RUNS_MAX);
    for (u32 i = 0; i < pick->count; i++) {
        struct run *run = run_set_tree_run(set, keyspace, skipped + pick->first + i);
        CHECK(run->owner == 0);
        run->owner = (u8)(index + 1);
        sweep->tier_in = run->tier;
        bytes += run->bytes;
    }
    if (sweep->into_last) {
        struct run *last = run_set_last(set, keyspace);
        if (last != NULL) {
            CHECK(last->owner == 0);
            last->owner = (u8)(index + 1);
            bytes += last->bytes;
        }
        sweep->whole = tree->force_whole || tree->clean_due || tree->drop_due ||
                       levels->space_pressure > 0 || levels_ranges_want_rewrite(levels, keyspace);
        sweep->drops = tree->drop_due && levels->mends[keyspace];
        tree->force_whole = tree->clean_due = tree->drop_due = false;
        if (sweep->whole) tree->rewrite_seq = levels->state.seq_flushed;
    }
    sweep->width_full = compaction_slice_width(bytes, levels->config.token_first,
                                               levels->config.token_last, levels->slice_bytes);
    sweep->width = sweep->width_full;
    return index;
}

static void
sweeps_end(struct levels *levels, u16 keyspace)
{
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++)
        if (levels->trees[keyspace].sweeps[i].active) sweep_end(levels, keyspace, i);
}

/* Whether damage is known in one of its inputs. */
static bool
sweep_is_damaged(const struct levels *levels, u16 keyspace, u32 index)
{
    const struct run_set *set = levels->current;
    for (u32 i = 0; i < run_set_tree_count(set, keyspace); i++) {
        const struct run *run = run_set_tree_run(set, keyspace, i);
        if (run->owner == index + 1 && levels_run_is_damaged(levels, run)) return true;
    }
    return false;
}

/* The sweep has met damage. */
static void
tree_break(struct levels *levels, u16 keyspace, u32 index)
{
    bool again = false, located = sweep_is_damaged(levels, keyspace, index);
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++) {
        const struct sweep *sweep = &levels->trees[keyspace].sweeps[i];
        again = again || (sweep->drops && (i != index || sweep->held_back));
    }
    sweeps_end(levels, keyspace);
    levels_tree_break(levels, keyspace, again, located);
}

/* There was no memory for a slice: the next try takes less at once. Not ever less: what is lacking
 * need not be what a slice takes, and each is a commit. */
static void
sweep_narrow(struct levels *levels, struct sweep *sweep)
{
    u64 span = levels->config.token_last - levels->config.token_first;
    u64 full = sweep->width_full == 0 ? span : MIN(sweep->width_full, span);
    u64 least = MAX(full >> NARROW_SHIFT_MAX, SLICE_WIDTH_MIN);
    u64 width = sweep->width == 0 ? (u64)1 << 63 : sweep->width >> 1;
    while (width > span / 2 && width > least)
        width >>= 1;
    sweep->went_well = 0;
    if (width < least) return;
    MARK("lsm.compaction.narrower");
    sweep->width = width;
}

/* A step went well. One is not enough: where memory stays short each second one would fail. */
static void
sweep_widen(struct sweep *sweep)
{
    if (sweep->width == sweep->width_full || ++sweep->went_well < WIDEN_AFTER) return;
    sweep->went_well = 0;
    sweep->width <<= 1; /* of 2^63 there is nothing left, which is everything */
}

/* The next slice of a sweep. */
MAY_YIELD static status
sweep_step(struct levels *levels, u16 keyspace, u32 index)
{
    struct step *step = mem_alloc(levels->budget, sizeof(*step));
    if (step == NULL) return MARKED("lsm.compaction.step_no_memory", ST_NO_MEMORY);
    *step = (struct step){.levels = levels,
                          .keyspace = keyspace,
                          .owner = (u8)(index + 1),
                          .sweep = &levels->trees[keyspace].sweeps[index]};
    step_inputs(step);
    status st = ST_OK;
    if (!step_range(step)) {
        sweep_end(levels, keyspace, index);
        levels->compactions++;
        levels_shape_update(levels);
    } else {
        st = run_step(step);
        bool done = ok(st) && !step->again;
        if (done) sweep_widen(step->sweep);
        if (done && step->token_last == UINT64_MAX)
            step->sweep->token_next = UINT64_MAX; /* the last token was taken: nothing is left */
        else if (done)
            step->sweep->token_next = step->token_last + 1;
    }
    mem_free(levels->budget, step, sizeof(*step));
    return st;
}

/* ---- work ---- */

/* Whether space is so short that the tiers go down, though the shape would let them grow. Not for a
 * few bytes each time, unless nothing else is left to do. */
static bool
space_wants_last(const struct levels *levels, const struct pick_tree *tree)
{
    if (levels->space_pressure < LEVELS_SPACE_NEAR || tree->run_count == 0) return false;
    u64 bytes = 0;
    for (u32 i = 0; i < tree->run_count; i++)
        bytes += tree->runs[i].bytes;
    return levels->space_pressure >= LEVELS_SPACE_FULL || bytes >= tree->last_bytes / SPACE_RATIO;
}

/* ... and then what the last level holds of values apart that nothing points to any more. */
static bool
space_wants_rewrite(const struct levels *levels, u16 keyspace)
{
    const struct run *last = run_set_last(levels->current, keyspace);
    return levels->space_pressure >= LEVELS_SPACE_FULL && last != NULL &&
           levels_run_has_garbage(last);
}

/* Of a tree that waits, and of which nothing is to be dropped, or that is under way: around what is
 * damaged, and what the merge that drops has taken. */
static void
waiting_pick(struct levels *levels, u16 keyspace, struct pick_tree *tree, struct pick_run *runs,
             u32 skipped, struct pick *out)
{
    struct level_tree *state = &levels->trees[keyspace];
    if (!levels_tree_drops(levels, keyspace))
        state->force_last = state->force_whole = state->clean_due = false;
    for (u32 i = 0; i < tree->run_count; i++)
        runs[i].damaged =
            levels_run_is_damaged(levels, run_set_tree_run(levels->current, keyspace, skipped + i));
    tree->waits = true;
    compaction_pick(tree, out);
    if (out->kind == PICK_TIER) MARK("lsm.compaction.beside_damage");
}

/* Whether a merge that drops is to begin in a tree that waits. It is to take all that there is, so
 * the others end. */
static bool
drop_begins(struct levels *levels, u16 keyspace)
{
    const struct level_tree *tree = &levels->trees[keyspace];
    bool begins = tree->broken && tree->drop_due;
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++)
        begins = begins && !(tree->sweeps[i].active && tree->sweeps[i].drops);
    if (begins) sweeps_end(levels, keyspace);
    return begins;
}

static bool
tree_pick(struct levels *levels, u16 keyspace, struct pick *out, u32 *skipped_out)
{
    struct pick_run runs[SWEEP_RUNS_MAX];
    struct pick_sweep sweeps[PICK_SWEEPS_MAX];
    struct pick_tree tree;
    struct level_tree *state = &levels->trees[keyspace];
    bool empty = run_set_tree_count(levels->current, keyspace) == 0;
    if (!levels_tree_merges(levels, keyspace) || empty) {
        if (state->broken || empty) sweeps_end(levels, keyspace);
        state->force_last = state->force_whole = state->clean_due = state->drop_due = false;
        return false;
    }
    bool begins = drop_begins(levels, keyspace);
    levels_pick_tree(levels, keyspace, &tree, runs, sweeps, SWEEP_RUNS_MAX);
    u32 count = run_set_tree_count(levels->current, keyspace);
    *skipped_out = count - tree.run_count - (run_set_last(levels->current, keyspace) != NULL);
    if (state->broken && !begins && !state->stuck) {
        waiting_pick(levels, keyspace, &tree, runs, *skipped_out, out);
        return out->kind != PICK_NONE;
    }
    bool due = state->clean_due || state->drop_due;
    /* One that waits has no merge of tiers then. (Nor has one that is stuck while it drops.) */
    tree.force_last = state->force_last || due || state->broken || space_wants_last(levels, &tree);
    tree.rewrite_last = state->force_whole || due || levels_ranges_want_rewrite(levels, keyspace) ||
                        space_wants_rewrite(levels, keyspace);
    compaction_pick(&tree, out);
    return out->kind != PICK_NONE;
}

/* One piece of work. *worked_out: whether there was any. Holding compact_mutex. */
MAY_YIELD static status
work(struct levels *levels, bool *worked_out)
{
    *worked_out = false;
    if (levels->failed) return MARKED("lsm.compaction.levels_failed", ST_IO_ERROR);
    bool changed = levels->generation != levels->prune_generation;
    if ((changed && range_list_count(&levels->ranges) > 0) || io_now_ns() >= levels->prune_ns) {
        levels->prune_ns = io_now_ns() + NS_PER_S;
        levels->prune_generation = levels->generation;
        status st = levels_prune(levels);
        if (!ok(st)) return st;
    }
    struct pick best = {.kind = PICK_NONE};
    u16 keyspace = 0;
    u32 skipped = 0;
    for (u16 i = 0; i < LIMIT_KEYSPACES; i++) {
        struct pick pick;
        u32 skip;
        if (!tree_pick(levels, i, &pick, &skip)) continue;
        if (best.kind != PICK_NONE && pick.urgency <= best.urgency) continue;
        best = pick;
        keyspace = i;
        skipped = skip;
    }
    if (best.kind == PICK_NONE) {
        report_space(levels, false); /* what had no room is not needed any more */
        return ST_OK;
    }
    *worked_out = true;
    u32 index =
        best.kind == PICK_CONTINUE ? best.sweep : sweep_begin(levels, keyspace, &best, skipped);
    status st = sweep_step(levels, keyspace, index);
    if (ok(st)) {
        report_space(levels, false);
        return ST_OK;
    }
    if (status_is(st, ST_CORRUPT)) {
        tree_break(levels, keyspace, index);
    } else if (status_is(st, ST_NO_SPACE)) {
        MARK("lsm.compaction.no_space");
        report_space(levels, true);
    } else if (!status_is(st, ST_CANCELED)) {
        MARK("lsm.compaction.step_failed");
        struct sweep *sweep = &levels->trees[keyspace].sweeps[index];
        if (status_is(st, ST_NO_MEMORY) && sweep->active) sweep_narrow(levels, sweep);
        log_warning("lsm", "compaction put off dir=%s why=%s", levels->dir, status_text(st));
    }
    return st;
}

MAY_YIELD static status
work_locked(struct levels *levels, bool *worked_out)
{
    fiber_mutex_lock(&levels->compact_mutex);
    status st = work(levels, worked_out);
    fiber_mutex_unlock(&levels->compact_mutex);
    return st;
}

MAY_YIELD void
levels_compaction_main(void *arg)
{
    struct levels *levels = arg;
    while (!levels->stopping) {
        bool worked = false;
        status st = ST_OK;
        if (io_now_ns() >= levels->retry_ns) st = work_locked(levels, &worked);
        if (!ok(st)) {
            MARK("lsm.compaction.retry_later");
            levels->retry_ns = io_now_ns() + RETRY_NS;
        }
        if (levels->stopping) break;
        if (ok(st) && worked) {
            fiber_yield();
            continue;
        }
        (void)!ok(fiber_queue_wait(&levels->wake, io_now_ns() + RETRY_NS));
    }
    levels_fiber_ended(levels);
}

/* ---- everything at once ---- */

/* Whether something that was flushed up to seq is not in the last level yet. */
static bool
unmerged(const struct levels *levels, u64 seq)
{
    const struct run_set *set = levels->current;
    for (u32 i = 0; i < set->run_count; i++) {
        const struct run *run = set->runs[i];
        if (run->tier == RUN_TIER_LAST || levels->trees[run->keyspace].broken) continue;
        for (u32 j = 0; j < run->count; j++) {
            if (run->slots[j].file->table->meta.seq_min <= seq) return true;
        }
    }
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES; keyspace++) {
        const struct level_tree *tree = &levels->trees[keyspace];
        if (tree->force_whole) return true;
        /* Nothing was left, or a deleted range took it: its sweeps end when a merge is looked for.
         */
        if (run_set_tree_count(set, keyspace) == 0) continue;
        for (u32 i = 0; i < PICK_SWEEPS_MAX; i++) {
            if (tree->sweeps[i].active && tree->sweeps[i].into_last) return true;
        }
    }
    return false;
}

MAY_YIELD status
levels_compact_all(struct levels *levels)
{
    u64 seq = levels->state.seq_flushed;
    levels->forced++;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES; keyspace++) {
        levels->trees[keyspace].force_last = true;
        levels->trees[keyspace].force_whole = true;
    }
    fiber_queue_wake_all(&levels->wake); /* a paced step goes on at once */
    status st = ST_OK;
    while (ok(st)) {
        bool worked = false;
        st = levels->started && levels->stopping
                 ? MARKED("lsm.compaction.all_canceled", ST_CANCELED)
                 : work_locked(levels, &worked);
        if (!ok(st) || !unmerged(levels, seq)) break;
        if (!worked) {
            /* Only broken trees are left. */
            MARK("lsm.compaction.only_broken_left");
            st = ST_CORRUPT;
            break;
        }
        if (fiber_should_yield()) fiber_yield();
    }
    levels->forced--;
    for (u16 keyspace = 0; levels->forced == 0 && keyspace < LIMIT_KEYSPACES; keyspace++) {
        levels->trees[keyspace].force_last = false;
        levels->trees[keyspace].force_whole = false;
        if (ok(st) && levels->trees[keyspace].broken) {
            MARK("lsm.compaction.broken_told");
            st = ST_CORRUPT;
        }
    }
    return st;
}
