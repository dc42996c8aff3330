/* SPDX-License-Identifier: MIT
 *
 * log_recover.c -- reading the log: recovery, and verification of a closed store.
 *
 * The segments that were begun (their header is valid) form a chain: each names its predecessor,
 * where that ended, and the last number in it. So for all but the newest it is known how far they
 * must be readable, and a bad block before that point is damage. In the newest one the first block
 * that is not valid ends the log, unless a block after it attests (durable_offset, durable_seq)
 * that it was durable once: then it is damage, too. Damage is ST_CORRUPT and nothing is repaired:
 * cutting there would take back what was acknowledged.
 *
 * What is cut stays on the disk, behind an end that the next segment names; it is never looked at
 * again. Numbers are not used twice, so no later block can make it valid.
 *
 * Files are synced before they are read: after a crash of the process only, blocks may be readable
 * that a power cut would still take away, and what is replayed counts as durable.
 */
#include "base/buf.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/log_internal.h"
#include "lsm/lsm_internal.h"

#define CHUNK_BYTES KIB(256)

struct segment_info {
    u64 number;
    u64 file_bytes; /* whole blocks */
    bool started;
    struct log_segment_header header;
};

struct walk {
    const char *dir;
    struct budget *budget;
    const struct log_reader_report *report;
    status (*replay)(void *arg, const struct log_record *record, struct bytes payload);
    void *replay_arg;

    struct segment_info *infos; /* ascending by number */
    u32 count, capacity;
    bool out_of_memory;

    /* the file that is being read */
    struct segment_info *info;
    struct io_file *file;
    char path[LSM_PATH_BYTES];
    u8 *chunk;
    u64 chunk_offset, chunk_size;

    /* the record stream */
    struct buf partial; /* the beginning of a record */
    u64 seq_last;
    u64 durable_seq_max; /* attested by any block of the segment */
    u64 records, bytes;
    const char *damage; /* what a function that returns ST_CORRUPT found */
};

static status
damaged(struct walk *walk, u64 offset, const char *what)
{
    MARK("lsm.log.damaged");
    if (walk->report != NULL) {
        walk->report->fn(walk->report->arg, walk->path, offset, what);
        return ST_CORRUPT;
    }
    log_error("lsm",
              "log damaged, acknowledged writes would be lost file=%s offset=%llu what=\"%s\" "
              "do=\"restore the file from a copy or the node from its replicas; the server does "
              "not start on it\"",
              walk->path, (unsigned long long)offset, what);
    return ST_CORRUPT;
}

static status
unreadable(struct walk *walk, status st)
{
    MARK("lsm.log.unreadable");
    if (walk->report != NULL) walk->report->fn(walk->report->arg, walk->path, 0, status_text(st));
    log_error("lsm", "log cannot be read file=%s error=\"%s\" do=\"check the disk\"", walk->path,
              status_text(st));
    return st;
}

/* ---- blocks ---- */

static MAY_YIELD status
segment_begin(struct walk *walk, struct segment_info *info, bool repair)
{
    walk->info = info;
    walk->chunk_size = 0;
    walk->durable_seq_max = 0;
    log_path(walk->path, walk->dir, info->number);
    status st = io_file_open(walk->path, repair ? IO_OPEN_WRITE : IO_OPEN_READ, &walk->file);
    if (!ok(st)) {
        walk->file = NULL;
        return unreadable(walk, st);
    }
    if (repair) st = io_file_sync(walk->file);
    u64 size = 0;
    if (ok(st)) st = io_file_size(walk->file, &size);
    if (!ok(st)) return unreadable(walk, st);
    info->file_bytes = align_down(size, LOG_BLOCK_BYTES);
    return ST_OK;
}

static MAY_YIELD void
segment_end(struct walk *walk)
{
    io_file_close(walk->file);
    walk->file = NULL;
}

/* The block at offset, or NULL beyond the file. It stays until the next call. */
static MAY_YIELD status
block_read(struct walk *walk, u64 offset, const u8 **out)
{
    if (offset >= walk->info->file_bytes) {
        *out = NULL;
        return ST_OK;
    }
    if (walk->chunk_size == 0 || offset < walk->chunk_offset ||
        offset >= walk->chunk_offset + walk->chunk_size) {
        u64 size = MIN(CHUNK_BYTES, walk->info->file_bytes - offset);
        walk->chunk_size = 0;
        status st = io_file_read(walk->file, IO_CLASS_READ, walk->chunk, (u32)size, offset);
        if (!ok(st)) return unreadable(walk, st);
        walk->chunk_offset = offset;
        walk->chunk_size = size;
    }
    *out = walk->chunk + (offset - walk->chunk_offset);
    return ST_OK;
}

static bool
block_is_valid(const u8 *data, u64 segment, u64 offset, struct log_block *out)
{
    if (data == NULL) return false;
    memcpy(out, data, sizeof(*out));
    if (out->segment != segment || out->index != offset / LOG_BLOCK_BYTES) return false;
    if (out->used > LOG_BLOCK_PAYLOAD_BYTES) return false;
    return out->crc == log_block_crc(data, segment, offset);
}

/* ---- records ---- */

static status
record_take(struct walk *walk, const u8 *data, size_t size)
{
    struct log_record record;
    memcpy(&record, data, sizeof(record));
    u32 crc = crc32c((u32)record.seq_first, data + sizeof(record.crc), size - sizeof(record.crc));
    walk->damage = "checksum of a record";
    if (crc != record.crc) return MARKED("lsm.log.record_checksum", ST_CORRUPT);
    walk->damage = "header of a record";
    if (record.kind != LOG_RECORD_BATCH || record.count == 0 || record.reserved != 0)
        return MARKED("lsm.log.record_header", ST_CORRUPT);
    walk->damage = "gap in the sequence numbers";
    if (record.seq_first != walk->seq_last + 1) return MARKED("lsm.log.record_gap", ST_CORRUPT);
    walk->damage = NULL;
    if (walk->replay != NULL) {
        struct bytes payload = BYTES(data + sizeof(record), size - sizeof(record));
        status st = walk->replay(walk->replay_arg, &record, payload);
        if (status_is(st, ST_CORRUPT)) {
            MARK("lsm.log.record_content");
            walk->damage = "content of a record";
        }
        if (!ok(st)) return st;
    }
    walk->seq_last = record.seq_first + record.count - 1;
    walk->records++;
    walk->bytes += size;
    return ST_OK;
}

static bool
record_size_is_sound(const struct walk *walk, u64 size)
{
    return size >= sizeof(struct log_record) && size <= walk->info->file_bytes;
}

/* How much of the record that begins partial is still missing. */
static status
partial_missing(struct walk *walk, u64 *missing_out)
{
    struct buf *partial = &walk->partial;
    if (partial->size < sizeof(struct log_record)) {
        *missing_out = sizeof(struct log_record) - partial->size;
        return ST_OK;
    }
    u64 size = load_u32(partial->data + offsetof(struct log_record, size));
    walk->damage = "size of a record";
    if (!record_size_is_sound(walk, size)) return MARKED("lsm.log.partial_size", ST_CORRUPT);
    walk->damage = NULL;
    *missing_out = size - partial->size;
    return ST_OK;
}

/* The used bytes of one block. Checks that records begin where the block says. */
static MAY_YIELD status
stream_take(struct walk *walk, const u8 *data, u32 used, u32 record_first)
{
    u32 first = LOG_NO_RECORD;
    u32 at = 0;
    while (at < used) {
        u32 left = used - at;
        if (walk->partial.size == 0) {
            if (first == LOG_NO_RECORD) first = at;
            if (left >= sizeof(struct log_record)) {
                u64 size = load_u32(data + at + offsetof(struct log_record, size));
                walk->damage = "size of a record";
                if (!record_size_is_sound(walk, size))
                    return MARKED("lsm.log.record_size", ST_CORRUPT);
                walk->damage = NULL;
                if (size <= left) {
                    status st = record_take(walk, data + at, size);
                    if (!ok(st)) return st;
                    at += (u32)size;
                    continue;
                }
            }
        }
        u64 missing;
        status st = partial_missing(walk, &missing);
        if (!ok(st)) return st;
        u32 part = (u32)MIN(missing, (u64)left);
        if (!buf_append(&walk->partial, data + at, part))
            return MARKED("lsm.log.partial_no_memory", ST_NO_MEMORY);
        at += part;
        st = partial_missing(walk, &missing);
        if (!ok(st)) return st;
        if (missing > 0) continue;
        st = record_take(walk, walk->partial.data, walk->partial.size);
        if (!ok(st)) return st;
        walk->partial.size = 0;
    }
    walk->damage = "place of the first record in a block";
    if (first != record_first) return MARKED("lsm.log.record_place", ST_CORRUPT);
    walk->damage = NULL;
    return ST_OK;
}

/* ---- segments ---- */

static bool
header_parse(struct walk *walk, const u8 *data, struct log_segment_header *out)
{
    struct log_block block;
    if (!block_is_valid(data, walk->info->number, 0, &block)) return false;
    if (block.kind != LOG_BLOCK_HEADER || block.used != sizeof(*out)) return false;
    memcpy(out, data + sizeof(block), sizeof(*out));
    return memcmp(out->magic, LOG_MAGIC, sizeof(out->magic)) == 0 &&
           out->block_bytes == LOG_BLOCK_BYTES && out->segment == walk->info->number;
}

/* What the blocks from offset on attest: how much of the segment was durable once. */
static MAY_YIELD status
attested_scan(struct walk *walk, u64 offset, u64 *offset_out, u64 *seq_out)
{
    u64 offset_max = 0, seq_max = 0;
    for (; offset < walk->info->file_bytes; offset += LOG_BLOCK_BYTES) {
        const u8 *data;
        status st = block_read(walk, offset, &data);
        if (!ok(st)) return st;
        struct log_block block;
        if (!block_is_valid(data, walk->info->number, offset, &block)) continue;
        MARK("lsm.log.valid_block_after_the_end");
        offset_max = MAX(offset_max, block.durable_offset);
        seq_max = MAX(seq_max, block.durable_seq);
        if (fiber_should_yield()) fiber_yield();
    }
    *offset_out = offset_max;
    *seq_out = seq_max;
    return ST_OK;
}

/* Reads block 0: whether the segment was begun. One that was not may not be attested, either. */
static MAY_YIELD status
header_read(struct walk *walk, struct segment_info *info, bool repair)
{
    status st = segment_begin(walk, info, repair);
    const u8 *data = NULL;
    if (ok(st)) st = block_read(walk, 0, &data);
    if (ok(st)) {
        info->started = header_parse(walk, data, &info->header);
        if (info->started && info->header.format != LOG_FORMAT) {
            MARK("lsm.log.other_format");
            log_error("lsm", "log segment of another format file=%s format=%u", walk->path,
                      info->header.format);
            st = ST_UNSUPPORTED;
        } else if (!info->started) {
            MARK("lsm.log.segment_not_begun");
            u64 offset, seq;
            st = attested_scan(walk, LOG_BLOCK_BYTES, &offset, &seq);
            if (ok(st) && offset > 0) {
                MARK("lsm.log.header_damaged");
                st = damaged(walk, 0, "header of a segment");
            }
        }
    }
    segment_end(walk);
    return st;
}

/* Replays one segment. next: its successor, or NULL. *end_out: behind its last block. */
static MAY_YIELD status
segment_walk(struct walk *walk, struct segment_info *info, const struct segment_info *next,
             bool repair, u64 *end_out)
{
    status st = segment_begin(walk, info, repair);
    u64 limit = next != NULL ? next->header.predecessor_end : info->file_bytes;
    u64 offset = LOG_BLOCK_BYTES;
    walk->partial.size = 0;
    walk->seq_last = info->header.seq_base;
    while (ok(st) && offset < limit) {
        const u8 *data;
        st = block_read(walk, offset, &data);
        if (!ok(st)) break;
        struct log_block block;
        if (!block_is_valid(data, info->number, offset, &block)) {
            MARK("lsm.log.end_found");
            break;
        }
        walk->durable_seq_max = MAX(walk->durable_seq_max, block.durable_seq);
        st = stream_take(walk, data + sizeof(block), block.used, block.record_first);
        if (status_is(st, ST_CORRUPT)) st = damaged(walk, offset, walk->damage);
        if (ok(st)) offset += LOG_BLOCK_BYTES;
    }
    if (ok(st) && next != NULL) {
        if (offset < limit) {
            MARK("lsm.log.ended_segment_damaged");
            st = damaged(walk, offset, "block of an ended segment");
        } else if (offset != limit || walk->seq_last != next->header.predecessor_seq) {
            MARK("lsm.log.end_differs");
            st = damaged(walk, offset, "end of a segment is not where the next one says");
        }
    } else if (ok(st)) {
        u64 durable_offset, durable_seq;
        st = attested_scan(walk, offset, &durable_offset, &durable_seq);
        durable_seq = ok(st) ? MAX(durable_seq, walk->durable_seq_max) : 0;
        if (ok(st) && (durable_offset > offset || durable_seq > walk->seq_last))
            st = MARKED("lsm.log.durable_block_lost",
                        damaged(walk, offset, "block that was durable once"));
        if (ok(st) && walk->partial.size > 0) {
            MARK("lsm.log.record_cut");
            log_info("lsm", "unfinished record at the end of the log dropped file=%s offset=%llu",
                     walk->path, (unsigned long long)offset);
        }
    }
    segment_end(walk);
    *end_out = offset;
    return st;
}

/* ---- the chain ---- */

static void
name_each(void *arg, const char *name)
{
    struct walk *walk = arg;
    u64 number;
    if (!log_name_parse(name, &number) || walk->out_of_memory) return;
    if (walk->count == walk->capacity) {
        u32 capacity = MAX(16u, walk->capacity * 2);
        struct segment_info *infos = mem_realloc(
            walk->budget, walk->infos, walk->capacity * sizeof(*infos), capacity * sizeof(*infos));
        if (infos == NULL) {
            MARK("lsm.log.names_no_memory");
            walk->out_of_memory = true;
            return;
        }
        walk->infos = infos;
        walk->capacity = capacity;
    }
    walk->infos[walk->count++] = (struct segment_info){.number = number}; /* names ascend */
}

static bool
number_add(struct budget *budget, u64 **numbers, u32 *count, u32 *capacity, u64 number)
{
    if (*count == *capacity) {
        u32 grown = MAX(16u, *capacity * 2);
        u64 *moved = mem_realloc(budget, *numbers, *capacity * sizeof(u64), grown * sizeof(u64));
        if (moved == NULL) return MARKED("lsm.log.numbers_no_memory", false);
        *numbers = moved;
        *capacity = grown;
    }
    (*numbers)[(*count)++] = number;
    return true;
}

/* The next segment at or after i that was begun, or NULL. */
static struct segment_info *
started_from(struct walk *walk, u32 i)
{
    for (; i < walk->count; i++)
        if (walk->infos[i].started) return &walk->infos[i];
    return NULL;
}

/* Whether the first segment is the one that it must be, and nothing is missing between two. */
static status
chain_check(struct walk *walk, u64 segment_first)
{
    struct segment_info *first = started_from(walk, 0);
    log_path(walk->path, walk->dir, segment_first != 0 ? segment_first : 1);
    if (segment_first != 0 && (first == NULL || first->number != segment_first))
        return MARKED(
            "lsm.log.first_missing",
            damaged(walk, 0, "the segment that the manifest names is missing or not valid"));
    if (first == NULL) return ST_OK;
    if (segment_first == 0 && first->header.predecessor != 0) {
        log_path(walk->path, walk->dir, first->header.predecessor);
        return MARKED("lsm.log.predecessor_missing", damaged(walk, 0, "a segment is missing"));
    }
    for (u32 i = 0; i < walk->count; i++) {
        struct segment_info *info = &walk->infos[i];
        struct segment_info *next = started_from(walk, i + 1);
        if (!info->started || next == NULL) continue;
        if (next->header.predecessor == info->number) continue;
        log_path(walk->path, walk->dir, next->header.predecessor);
        return MARKED("lsm.log.middle_missing", damaged(walk, 0, "a segment is missing"));
    }
    return ST_OK;
}

static MAY_YIELD status
segments_walk(struct walk *walk, bool repair, struct log_recovered *out)
{
    for (u32 i = 0; i < walk->count; i++) {
        struct segment_info *info = &walk->infos[i];
        if (!info->started) {
            if (!number_add(walk->budget, &out->unstarted, &out->unstarted_count,
                            &out->unstarted_capacity, info->number))
                return ST_NO_MEMORY;
            continue;
        }
        u64 end;
        status st = segment_walk(walk, info, started_from(walk, i + 1), repair, &end);
        if (!ok(st)) return st;
        if (!number_add(walk->budget, &out->ends, &out->end_count, &out->end_capacity, end) ||
            !number_add(walk->budget, &out->segments, &out->segment_count, &out->segment_capacity,
                        info->number))
            return ST_NO_MEMORY;
        out->tail_number = info->number;
        out->tail_end = end;
        out->tail_seq = walk->seq_last;
        out->seq_base = walk->seq_last;
        out->files++;
        out->file_bytes += end;
    }
    return ST_OK;
}

MAY_YIELD status
log_recover(const char *dir, u64 segment_first, bool repair, struct budget *budget,
            status (*replay)(void *arg, const struct log_record *record, struct bytes payload),
            void *arg, const struct log_reader_report *report, struct log_recovered *out)
{
    struct walk *walk = mem_alloc_zero(budget, sizeof(*walk));
    if (walk == NULL) return MARKED("lsm.log.walk_no_memory", ST_NO_MEMORY);
    walk->dir = dir;
    walk->budget = budget;
    walk->report = report;
    walk->replay = replay;
    walk->replay_arg = arg;
    buf_init(&walk->partial, budget);
    walk->chunk = mem_alloc_aligned(budget, CHUNK_BYTES, IO_ALIGNMENT);
    status st = walk->chunk == NULL ? MARKED("lsm.log.chunk_no_memory", ST_NO_MEMORY) : ST_OK;

    if (ok(st) && repair) st = io_dir_sync(dir); /* names first, then what is under them */
    if (ok(st)) st = io_dir_list(dir, name_each, walk);
    if (ok(st) && walk->out_of_memory) st = ST_NO_MEMORY;
    out->number_max = segment_first;

    /* Released segments first: only their files matter. */
    u32 released = 0;
    while (ok(st) && released < walk->count && walk->infos[released].number < segment_first) {
        if (!number_add(budget, &out->unstarted, &out->unstarted_count, &out->unstarted_capacity,
                        walk->infos[released].number))
            st = ST_NO_MEMORY;
        MARK("lsm.log.released_found");
        released++;
    }
    if (walk->count > 0) {
        out->number_max = MAX(out->number_max, walk->infos[walk->count - 1].number);
        memmove(walk->infos, walk->infos + released,
                (walk->count - released) * sizeof(*walk->infos));
        walk->count -= released;
    }
    for (u32 i = 0; ok(st) && i < walk->count; i++)
        st = header_read(walk, &walk->infos[i], repair);
    if (ok(st)) st = chain_check(walk, segment_first);
    if (ok(st)) st = segments_walk(walk, repair, out);
    out->records = walk->records;
    out->bytes = walk->bytes;

    segment_end(walk);
    mem_free(budget, walk->infos, walk->capacity * sizeof(*walk->infos));
    mem_free(budget, walk->chunk, CHUNK_BYTES);
    buf_deinit(&walk->partial);
    mem_free(budget, walk, sizeof(*walk));
    return st;
}

void
log_recovered_deinit(struct log_recovered *recovered, struct budget *budget)
{
    mem_free(budget, recovered->segments, recovered->segment_capacity * sizeof(u64));
    mem_free(budget, recovered->ends, recovered->end_capacity * sizeof(u64));
    mem_free(budget, recovered->unstarted, recovered->unstarted_capacity * sizeof(u64));
    *recovered = (struct log_recovered){0};
}

/* ---- looking at a closed store ---- */

static void
exists_each(void *arg, const char *name)
{
    u64 number;
    if (log_name_parse(name, &number)) *(bool *)arg = true;
}

MAY_YIELD status
log_exists(const char *dir, bool *out)
{
    bool found = false;
    status st = io_dir_list(dir, exists_each, &found);
    if (ok(st)) *out = found;
    return st;
}

/* Without a replay of its own: every operation must decode. */
static status
verify_record(void *arg, const struct log_record *record, struct bytes payload)
{
    (void)arg;
    struct lsm_op op;
    bool bad;
    u32 count = 0;
    while (lsm_op_next(&payload, &op, &bad))
        count++;
    if (!bad && count == record->count) return ST_OK;
    return MARKED("lsm.log.verify_content", ST_CORRUPT);
}

MAY_YIELD status
log_verify(const char *dir, u64 segment_first,
           void (*report)(void *arg, const char *file, u64 offset, const char *what), void *arg,
           u64 *files_out, u64 *bytes_out)
{
    struct log_reader_report to = {.fn = report, .arg = arg};
    struct log_recovered found = {0};
    struct budget *budget = io_budget();
    status st = log_recover(dir, segment_first, false, budget, verify_record, NULL, &to, &found);
    *files_out += found.files;
    *bytes_out += found.file_bytes;
    log_recovered_deinit(&found, budget);
    return st;
}
