/* SPDX-License-Identifier: MIT
 *
 * level_unreadable.c -- whether what cannot be read is damage.
 *
 * A disk that has lost a sector says that it cannot be read, for good. That is damage as much as a
 * checksum that does not match, and is to be found, told and mended like that: merges fail over it
 * for ever. But a disk that dies, hangs, or was cut off for a while says the same of everything;
 * then nothing is damaged, or all of it is, and in neither case a table is to be given up block by
 * block. So all that fails to be read is a suspect first, and one place decides:
 *
 *   met         any reader, merge or scrub gets an I/O error for a block or a value; it has that as
 *               the answer, as merges do, which try again each second
 *   looked at   by a fiber: LOOKS_MAX times, LOOK_NS from each other. Each time it cannot be read,
 *               and right after that another page of the same file can: so the disk, the way to it
 *               and the file system work, and it is this place that does not
 *   damage      from then on, noted as by a checksum (level_damage.c). Who fails to read it anew
 *               gets ST_CORRUPT; who can read it after all gets what is there, if it is right
 *
 * Where one look goes otherwise the suspect is let go. It is one when it is met again, from the
 * first look on; so seconds of trouble, in which a sector fails and the next one does not, say
 * nothing. Nor is anything said of a file of which neither the first page nor the last can be read:
 * that is not told from a disk that dies, and is for an operator (docs/operating.md).
 *
 * A disk that loses a part of what it has, in many places, is found place by place, each of them
 * after seconds. What a wrong decision costs is work: a member gives up only what all others have
 * (cluster_mend.c), and a file that is no longer there is not asked again.
 *
 * One suspect at a time: others are met again.
 *
 * All of that is so where reads are direct. Where the file system knows none, the other page may
 * come from the kernel's cache, and a disk that dies slowly looks like one that has lost sectors.
 */
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/levels_internal.h"
#include "lsm/table_format.h"

#define LOOKS_MAX  4u
#define LOOK_NS    (1 * NS_PER_S)
#define LOOK_BYTES ((u32)KIB(64)) /* of one read */

/* ---- looking ---- */

MAY_YIELD static status
read_all(struct io_file *file, u8 *buffer, u64 first, u64 bytes)
{
    for (u64 done = 0; done < bytes;) {
        u32 part = (u32)MIN(bytes - done, LOOK_BYTES);
        status st = io_file_read(file, IO_CLASS_COMPACTION, buffer, part, first + done);
        if (!ok(st)) return st;
        done += part;
    }
    return ST_OK;
}

/* ST_CORRUPT: it cannot be read, and another place of the file can. */
MAY_YIELD static status
look(const struct suspect *suspect, u8 *buffer)
{
    struct io_file *file =
        suspect->table != NULL ? suspect->table->file : suspect->blob->file->file;
    u64 file_bytes =
        suspect->table != NULL ? suspect->table->meta.file_bytes : suspect->blob->file_bytes;
    status st = read_all(file, buffer, suspect->first, suspect->bytes);
    if (!status_is(st, ST_IO_ERROR)) return st;
    /* Where one of these is what cannot be read, the other one is elsewhere. */
    status elsewhere = read_all(file, buffer, 0, IO_ALIGNMENT);
    if (!ok(elsewhere)) elsewhere = read_all(file, buffer, file_bytes - IO_ALIGNMENT, IO_ALIGNMENT);
    return ok(elsewhere) ? MARKED("lsm.unreadable.only_here", ST_CORRUPT)
                         : MARKED("lsm.unreadable.all", st);
}

MAY_YIELD static void
pause(struct levels *levels)
{
    u64 until_ns = io_now_ns() + LOOK_NS;
    while (!levels->stopping && io_now_ns() < until_ns)
        (void)!ok(fiber_queue_wait(&levels->scrub_wake, until_ns));
}

static void
suspect_damaged(struct levels *levels, const struct suspect *suspect)
{
    bool is_table = suspect->table != NULL;
    u64 file_id = is_table ? suspect->table->meta.file_id : suspect->blob->file_id;
    MARK("lsm.unreadable.is_damage");
    levels->corruptions++;
    if (is_table)
        levels_note_table(levels, suspect->table, suspect->offset);
    else
        level_blob_damaged(suspect->blob, suspect->tokens.token_first, suspect->tokens.token_last);
    log_error("lsm",
              "what cannot be read is damage from now on: the disk reads the rest of the file "
              "dir=%s file=%c%016llx offset=%llu",
              levels->dir, is_table ? 't' : 'b', (unsigned long long)file_id,
              (unsigned long long)suspect->offset);
}

MAY_YIELD static void
judge_main(void *arg)
{
    struct levels *levels = arg;
    struct suspect *suspect = &levels->suspect;
    u8 *buffer = mem_alloc_aligned(levels->budget, LOOK_BYTES, IO_ALIGNMENT);
    status st =
        buffer == NULL ? MARKED("lsm.unreadable.no_memory", ST_NO_MEMORY) : look(suspect, buffer);
    for (u32 looks = 1; status_is(st, ST_CORRUPT) && looks < LOOKS_MAX; looks++) {
        pause(levels);
        st = levels->stopping ? MARKED("lsm.unreadable.canceled", ST_CANCELED)
                              : look(suspect, buffer);
    }
    mem_free(levels->budget, buffer, LOOK_BYTES);
    if (status_is(st, ST_CORRUPT))
        suspect_damaged(levels, suspect);
    else
        pause(levels); /* a disk that reads nothing is not asked all the time */
    struct suspect was = *suspect;
    levels->judges = false;
    if (was.table != NULL) table_unref(was.table);
    if (was.blob != NULL) level_blob_unref(was.blob);
    levels_fiber_ended(levels);
}

/* ---- meeting ---- */

/* From any context. */
static void
judge_start(struct levels *levels, const struct suspect *suspect)
{
    if (levels->judges || !levels->started || levels->stopping) return;
    status st = fiber_spawn(FIBER_BACKGROUND, "unreadable", judge_main, levels);
    if (!ok(st)) {
        MARK("lsm.unreadable.no_fiber"); /* when it is met again */
        return;
    }
    levels->fibers++;
    levels->judges = true;
    levels->suspect = *suspect;
    if (suspect->table != NULL) table_ref(suspect->table);
    if (suspect->blob != NULL) suspect->blob->ref_count++;
}

static void
table_met(void *arg, struct table *table, u64 offset)
{
    struct suspect suspect = {.table = table, .offset = offset};
    table_span_at(table, offset, &suspect.first, &suspect.bytes);
    judge_start(arg, &suspect);
}

void
levels_unreadable_init(struct levels *levels)
{
    levels->table_stats.unreadable = table_met;
    levels->table_stats.arg = levels;
}

status
level_blob_unreadable(struct level_blob *blob, u64 offset, u64 bytes, struct gap tokens)
{
    if (gap_list_covers(&blob->damaged, tokens.token_first, tokens.token_last))
        return MARKED("lsm.unreadable.blob_known", ST_CORRUPT);
    u64 first = align_down(offset, IO_ALIGNMENT);
    struct suspect suspect = {
        .blob = blob,
        .offset = offset,
        .first = first,
        .bytes = align_up(offset + bytes, IO_ALIGNMENT) - first,
        .tokens = tokens,
    };
    judge_start(blob->levels, &suspect);
    return MARKED("lsm.unreadable.blob", ST_IO_ERROR);
}

status
level_value_unreadable(struct level_blob *blob, const struct blob_pointer *pointer,
                       const struct entry *entry)
{
    return level_blob_unreadable(blob, pointer->offset,
                                 blob_record_bytes(entry->key.size, pointer->size),
                                 (struct gap){entry->token, entry->token});
}
