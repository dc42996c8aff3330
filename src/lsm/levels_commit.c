/* SPDX-License-Identifier: MIT
 *
 * levels_commit.c -- the only place where the current run set changes.
 *
 * In this order, under commit_mutex:
 *   1. the next set is made of the current one and the changes (memory is all taken here, so that
 *      nothing can fail after the manifest is durable);
 *   2. the manifest of the next set is written;
 *   3. without a yield: counts are moved, files that no set uses any more are marked to go with
 *      their last reader, the set is exchanged.
 *
 * When 2 failed before the rename, the old state holds for certain and everything is as before.
 * When it failed later, which one holds is unknown: from then on no file is removed and nothing is
 * committed, so that whichever manifest the next opening finds, its files are there.
 */
#include <stdio.h>

#include "base/fault.h"
#include "base/log.h"
#include "lsm/levels_internal.h"

/* ---- counting (S3, S4) ---- */

static void
table_lives(struct levels *levels, struct level_table *file)
{
    const struct table_meta *meta = &file->table->meta;
    levels->tables++;
    levels->table_bytes += meta->file_bytes;
    levels->table_entries += meta->entry_count;
    for (u32 i = 0; i < file->blob_count; i++) {
        struct level_blob *blob = file->blobs[i];
        if (blob->live_tables++ == 0) levels->blob_bytes += blob->file_bytes;
        blob->live_bytes += meta->blob_refs[i].bytes;
        levels->blob_live_bytes += meta->blob_refs[i].bytes;
    }
}

static void
table_dies(struct levels *levels, struct level_table *file)
{
    const struct table_meta *meta = &file->table->meta;
    levels->tables--;
    levels->table_bytes -= meta->file_bytes;
    levels->table_entries -= meta->entry_count;
    for (u32 i = 0; i < file->blob_count; i++) {
        struct level_blob *blob = file->blobs[i];
        blob->live_bytes -= meta->blob_refs[i].bytes;
        levels->blob_live_bytes -= meta->blob_refs[i].bytes;
        if (--blob->live_tables > 0) continue;
        levels->blob_bytes -= blob->file_bytes;
        blob->file->unlink_on_close = true;
    }
    file->table->unlink_on_close = true;
    if (levels->config.block_cache != NULL)
        block_cache_drop_file(levels->config.block_cache, meta->file_id);
}

static void
run_enters(struct levels *levels, const struct run *run)
{
    for (u32 i = 0; i < run->count; i++) {
        struct level_table *file = run->slots[i].file;
        if (file->slot_count++ == 0) table_lives(levels, file);
    }
}

static void
run_leaves(struct levels *levels, const struct run *run)
{
    for (u32 i = 0; i < run->count; i++) {
        struct level_table *file = run->slots[i].file;
        CHECK(file->slot_count > 0);
        if (--file->slot_count == 0) table_dies(levels, file);
    }
}

void
levels_install_first(struct levels *levels, struct run_set *set)
{
    CHECK(levels->current == NULL);
    for (u32 i = 0; i < set->run_count; i++)
        run_enters(levels, set->runs[i]);
    levels->current = set;
    levels->waited.set = NULL;
    levels_shape_update(levels);
}

/* ---- what was written for nothing ---- */

void
levels_forget_table(struct levels *levels, struct level_table *file)
{
    if (file->slot_count > 0) return;
    if (levels->failed) {
        MARK("lsm.levels.table_kept");
        return;
    }
    file->table->unlink_on_close = true;
    /* A blob file that the current set does not use is new, too, or already on its way out. */
    for (u32 i = 0; i < file->blob_count; i++) {
        if (file->blobs[i]->live_tables == 0) file->blobs[i]->file->unlink_on_close = true;
    }
}

void
levels_discard_blob(struct levels *levels, struct level_blob *blob)
{
    if (blob->live_tables == 0 && blob->ref_count == 1 && !levels->failed) {
        MARK("lsm.levels.blob_discarded");
        blob->file->unlink_on_close = true;
    }
    level_blob_unref(blob);
}

/* ---- the manifest of a set ---- */

static void
manifest_release(struct levels *levels, struct manifest *manifest, u32 tables, u32 blobs,
                 u32 ranges)
{
    struct budget *budget = levels->budget;
    mem_free(budget, manifest->runs, manifest->run_count * sizeof(*manifest->runs));
    mem_free(budget, manifest->tables, tables * sizeof(*manifest->tables));
    mem_free(budget, manifest->blobs, blobs * sizeof(*manifest->blobs));
    mem_free(budget, manifest->ranges, ranges * sizeof(*manifest->ranges));
}

MAY_YIELD static status
write_manifest(struct levels *levels, const struct run_set *set, const struct levels_state *state,
               bool *outcome_known)
{
    *outcome_known = true;
    struct budget *budget = levels->budget;
    struct manifest manifest = {.state = *state,
                                .generation = levels->generation + 1,
                                .file_id_next = levels_file_id_reserved(levels),
                                .token_first = levels->config.token_first,
                                .token_last = levels->config.token_last};
    u32 tables = 0;
    for (u32 i = 0; i < set->run_count; i++)
        tables += set->runs[i]->count;
    u32 blobs = levels->blob_count, ranges = range_list_count(&levels->ranges);
    manifest.run_count = set->run_count;
    status st = ST_NO_MEMORY;
    if (set->run_count > 0) {
        manifest.runs = mem_alloc(budget, set->run_count * sizeof(*manifest.runs));
        if (manifest.runs == NULL) manifest.run_count = 0;
        manifest.tables = mem_alloc(budget, tables * sizeof(*manifest.tables));
    }
    if (blobs > 0) manifest.blobs = mem_alloc(budget, blobs * sizeof(*manifest.blobs));
    if (ranges > 0) manifest.ranges = mem_alloc(budget, ranges * sizeof(*manifest.ranges));
    if ((set->run_count > 0 && (manifest.runs == NULL || manifest.tables == NULL)) ||
        (blobs > 0 && manifest.blobs == NULL) || (ranges > 0 && manifest.ranges == NULL)) {
        MARK("lsm.levels.manifest_no_memory");
        goto release;
    }

    u64 mark = ++levels->mark_next;
    for (u32 i = 0; i < set->run_count; i++) {
        const struct run *run = set->runs[i];
        manifest.runs[i] = (struct manifest_run){run->keyspace, run->tier, run->count};
        for (u32 j = 0; j < run->count; j++) {
            const struct run_slot *slot = &run->slots[j];
            manifest.tables[manifest.table_count++] = (struct manifest_table){
                &slot->file->table->meta, slot->token_first, slot->token_last};
            for (u32 k = 0; k < slot->file->blob_count; k++)
                slot->file->blobs[k]->mark = mark;
        }
    }
    for (u32 i = 0; i < blobs; i++) {
        const struct level_blob *blob = levels->blobs[i];
        if (blob->mark != mark) continue; /* of readers, or of a writer that has not finished */
        manifest.blobs[manifest.blob_count++] = (struct manifest_blob){
            blob->file_id, blob->file_bytes, blob->token_first, blob->token_last};
    }
    if (ranges > 0)
        manifest.range_count =
            range_list_persistent(&levels->ranges, state->seq_flushed, manifest.ranges);
    st = manifest_write(levels->dir, &manifest, budget, outcome_known);

release:
    manifest_release(levels, &manifest, tables, blobs, ranges);
    return st;
}

static void
fail(struct levels *levels, status why)
{
    MARK("lsm.levels.failed");
    levels->failed = true;
    char text[160];
    snprintf(text, sizeof(text), "manifest write failed, which one holds is unknown: %s",
             status_text(why));
    log_error("lsm", "%s dir=%s", text, levels->dir);
    if (levels->config.failed != NULL) levels->config.failed(levels->config.arg, why, text);
}

MAY_YIELD status
levels_commit(struct levels *levels, const struct run_change *changes, u32 count,
              const struct levels_state *state)
{
    fiber_mutex_lock(&levels->commit_mutex);
    if (BUGGIFY("lsm.levels.late_commit")) fiber_sleep_ns(5 * NS_PER_MS);
    status st = ST_IO_ERROR;
    struct run_set *next = NULL;
    if (levels->failed) {
        MARK("lsm.levels.commit_refused");
        goto unlock;
    }
    for (u32 i = 0; i < count; i++) {
        /* Two compactions never share an input. */
        if (changes[i].old != NULL)
            CHECK(run_set_find(levels->current, changes[i].old->id) == changes[i].old);
    }
    next = run_set_edit(levels, levels->current, changes, count);
    st = ST_NO_MEMORY;
    if (next == NULL) {
        MARK("lsm.levels.commit_no_memory");
        goto unlock;
    }
    DCHECK(next->run_count > 64 || run_set_check(next));

    struct levels_state state_next = state != NULL ? *state : levels->state;
    bool outcome_known;
    st = write_manifest(levels, next, &state_next, &outcome_known);
    if (!ok(st)) {
        MARK("lsm.levels.commit_failed");
        /* A device that fails writes is not trusted with an answer either. */
        if (!outcome_known || status_is_io(st)) fail(levels, st);
        run_set_unref(next);
        goto unlock;
    }

    fiber_no_yield_begin();
    levels->generation++;
    levels->state = state_next;
    struct run_set *before = levels->current;
    for (u32 i = 0; i < count; i++) {
        if (changes[i].replacement != NULL) run_enters(levels, changes[i].replacement);
        if (changes[i].after != NULL) run_enters(levels, changes[i].after);
    }
    for (u32 i = 0; i < count; i++) {
        if (changes[i].old != NULL) run_leaves(levels, changes[i].old);
    }
    levels->current = next;
    levels->waited.set = NULL;
    /* A reader of an older set still meets what a merge has dropped: it needs the range. */
    if (levels->sets_alive == 2 && before->ref_count == 1) {
        u32 snapshot_count;
        const u64 *snapshots = levels_snapshots(levels, &snapshot_count);
        (void)range_list_expire(&levels->ranges, levels->state.seq_flushed, levels_range_may_cover,
                                levels);
        (void)range_list_coalesce(&levels->ranges, levels->state.seq_flushed, snapshots,
                                  snapshot_count);
    }
    levels_shape_update(levels);
    AUDIT("lsm.levels.committed", levels_check(levels));
    fiber_no_yield_end();
    run_set_unref(before); /* closes files: may yield inside */

unlock:
    fiber_mutex_unlock(&levels->commit_mutex);
    return st;
}
