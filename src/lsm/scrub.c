/* SPDX-License-Identifier: MIT
 *
 * scrub.c -- reads every table and blob file of a live store again, slowly, so that damage is found
 * while a replica or a backup can still mend it and not when a client asks.
 *
 * Files are visited by ascending id. Each is held by a reference while it is read, so compaction
 * may drop it from the tree meanwhile; the next one is looked up afresh. A pass ends when there is
 * no higher id. The rate bounds the bytes a second; 0 stops between two files.
 */
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/levels_internal.h"

/* A pass over little data is not begun again at once. */
#define SCRUB_PAUSE_NS (60 * NS_PER_S)

struct target {
    struct level_table *table;
    struct level_blob *blob;
    u64 file_id;
};

/* The file with the lowest id from id on, with a reference. */
static bool
find_next(struct levels *levels, u64 id, struct target *out)
{
    const struct run_set *set = levels->current;
    *out = (struct target){.file_id = UINT64_MAX};
    for (u32 i = 0; i < set->run_count; i++) {
        for (u32 j = 0; j < set->runs[i]->count; j++) {
            struct level_table *file = set->runs[i]->slots[j].file;
            u64 file_id = file->table->meta.file_id;
            if (file_id < id || file_id >= out->file_id) continue;
            *out = (struct target){.table = file, .file_id = file_id};
        }
    }
    for (u32 i = 0; i < levels->blob_count; i++) {
        struct level_blob *blob = levels->blobs[i];
        if (blob->live_tables == 0 || blob->file_id < id || blob->file_id >= out->file_id) continue;
        *out = (struct target){.blob = blob, .file_id = blob->file_id};
    }
    if (out->table != NULL) out->table->ref_count++;
    if (out->blob != NULL) out->blob->ref_count++;
    return out->file_id != UINT64_MAX;
}

void
levels_note_table(struct levels *levels, struct table *table, u64 offset)
{
    (void)table_damaged(table, offset);
    const struct gap_list *damaged = &table->damaged;
    if (damaged->count == 0 ||
        gap_list_meets(damaged, levels->config.token_first, levels->config.token_last))
        return;
    /* The file is another store's, too, since the number of cores changed, and what is damaged is
     * that one's alone: ours is written anew, and the file goes. */
    MARK("lsm.scrub.damage_elsewhere");
    levels->trees[table->meta.keyspace].clean_due = true;
    fiber_queue_wake_all(&levels->wake);
}

static status
scrub_unreadable(const struct target *target, u64 offset)
{
    if (target->table != NULL) return table_unreadable(target->table->table, offset);
    struct level_blob *blob = target->blob;
    return level_blob_unreadable(blob, offset, blob->file_bytes - offset,
                                 (struct gap){blob->token_first, blob->token_last});
}

MAY_YIELD static void
scrub_file(struct levels *levels, const struct target *target)
{
    u64 offset = 0, bytes;
    const char *what = "";
    status st;
    u64 rate = levels->scrub_bytes_per_s;
    if (target->table != NULL) {
        const struct table_meta *meta = &target->table->table->meta;
        bytes = meta->file_bytes;
        st = table_verify(levels->dir, meta, rate, levels->budget, &offset, &what);
    } else {
        bytes = target->blob->file_bytes;
        st = blob_verify(levels->dir, target->file_id, bytes, rate, levels->budget, &offset, &what);
    }
    levels->scrub_bytes += bytes;
    if (ok(st) || status_is(st, ST_CANCELED)) return;
    if (status_is(st, ST_IO_ERROR)) {
        what = "cannot be read";
        st = scrub_unreadable(target, offset);
    }
    if (status_is(st, ST_CORRUPT)) {
        MARK("lsm.scrub.damage_found");
        levels->corruptions++;
        if (target->table != NULL)
            levels_note_table(levels, target->table->table, offset);
        else /* whose record it is is not known */
            level_blob_damaged(target->blob, target->blob->token_first, target->blob->token_last);
        log_error("lsm", "scrub found damage dir=%s file=%c%016llx offset=%llu what=%s",
                  levels->dir, target->table != NULL ? 't' : 'b',
                  (unsigned long long)target->file_id, (unsigned long long)offset, what);
    } else {
        MARK("lsm.scrub.unreadable");
        log_warning("lsm", "scrub could not read dir=%s file=%c%016llx why=%s", levels->dir,
                    target->table != NULL ? 't' : 'b', (unsigned long long)target->file_id,
                    status_text(st));
    }
}

MAY_YIELD void
levels_scrub_main(void *arg)
{
    struct levels *levels = arg;
    u64 id = 0;
    while (!levels->stopping) {
        struct target target;
        if (levels->scrub_bytes_per_s == 0) {
            (void)!ok(fiber_queue_wait(&levels->scrub_wake, FIBER_FOREVER));
            continue;
        }
        if (!find_next(levels, id, &target)) {
            if (id != 0) levels->scrub_passes++;
            id = 0;
            u64 pause_ns = BUGGIFY("lsm.scrub.no_pause") ? NS_PER_MS : SCRUB_PAUSE_NS;
            (void)!ok(fiber_queue_wait(&levels->scrub_wake, io_now_ns() + pause_ns));
            continue;
        }
        scrub_file(levels, &target);
        if (target.table != NULL) level_table_unref(target.table);
        if (target.blob != NULL) level_blob_unref(target.blob);
        id = target.file_id + 1;
    }
    levels_fiber_ended(levels);
}
