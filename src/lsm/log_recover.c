/* SPDX-License-Identifier: MIT
 *
 * log_recover.c -- reading the log: recovery, and verification of a closed store.
 *
 * The segments that were begun (their header is valid) form a chain: each names its predecessor,
 * where that ended, and the last number in it. So for all but the newest it is known how far they
 * must be readable, and a bad block before that point is damage. In the newest one the first block
 * that is not valid ends the log, unless a block after it attests (durable_offset, durable_seq)
 * that it was durable once: then it is damage, too. So it is when the file has become shorter: what
 * would attest went with the rest. Damage is ST_CORRUPT and nothing is repaired: cutting there
 * would take back what was acknowledged.
 *
 * What is cut stays on the disk, behind an end that the next segment names; it is never looked at
 * again. Numbers are not used twice, so no later block can make it valid.
 *
 * Files are synced before anything of them is read: after a crash of the process only, blocks may
 * be readable that a power cut would still take away. But a sync that succeeds proves little: when
 * one failed before, the process that died was told, and nobody else will be. So what no block
 * attests is replayed and then written once more, to the next segment (log_carry.c), before
 * anything relies on it; and a segment of which not even the header is attested is not followed by
 * the next one but replaced. Which is which, the chain tells: both begin at the same place of the
 * log.
 */
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/log_internal.h"
#include "lsm/lsm_internal.h"

struct segment_info {
    u64 number;
    bool started;
    bool replaced; /* was started, but a later one stands in its place */
    struct log_segment_header header;
    u64 durable_offset, durable_seq; /* attested by the block of the header */
};

struct walk {
    const char *dir;
    struct budget *budget;
    const struct log_reader_report *report;

    struct segment_info *infos; /* ascending by number */
    u32 count, capacity;
    bool out_of_memory;

    struct log_reader reader;
    struct log_stream stream;
};

static status
damaged(struct walk *walk, u64 offset, const char *what)
{
    MARK("lsm.log.damaged");
    if (walk->report != NULL) {
        walk->report->fn(walk->report->arg, walk->reader.path, offset, what);
        return ST_CORRUPT;
    }
    log_error("lsm",
              "log damaged, acknowledged writes would be lost file=%s offset=%llu what=\"%s\" "
              "do=\"restore the file from a copy or the node from its replicas; the server does "
              "not start on it\"",
              walk->reader.path, (unsigned long long)offset, what);
    return ST_CORRUPT;
}

static status
unreadable(struct walk *walk, status st)
{
    MARK("lsm.log.unreadable");
    if (walk->report != NULL)
        walk->report->fn(walk->report->arg, walk->reader.path, 0, status_text(st));
    log_error("lsm", "log cannot be read file=%s error=\"%s\" do=\"check the disk\"",
              walk->reader.path, status_text(st));
    return st;
}

/* ---- segments ---- */

/* Whether the segment was begun. */
static bool
header_parse(struct walk *walk, const u8 *data, struct segment_info *info)
{
    struct log_block block;
    struct log_segment_header *out = &info->header;
    if (!log_block_is_valid(data, walk->reader.number, 0, &block)) return false;
    if (block.kind != LOG_BLOCK_HEADER || block.used != sizeof(*out)) return false;
    memcpy(out, data + sizeof(block), sizeof(*out));
    info->durable_offset = block.durable_offset;
    info->durable_seq = block.durable_seq;
    return memcmp(out->magic, LOG_MAGIC, sizeof(out->magic)) == 0 &&
           out->block_bytes == LOG_BLOCK_BYTES && out->segment == walk->reader.number;
}

/* Adds what the blocks from offset on attest: how much of the segment was durable once. */
static MAY_YIELD status
attested_scan(struct walk *walk, u64 offset, u64 *offset_max, u64 *seq_max)
{
    for (; offset < walk->reader.file_bytes; offset += LOG_BLOCK_BYTES) {
        const u8 *data;
        status st = log_reader_block(&walk->reader, offset, &data);
        if (!ok(st)) return unreadable(walk, st);
        struct log_block block;
        if (!log_block_is_valid(data, walk->reader.number, offset, &block)) continue;
        MARK("lsm.log.valid_block_after_the_end");
        *offset_max = MAX(*offset_max, block.durable_offset);
        *seq_max = MAX(*seq_max, block.durable_seq);
        if (fiber_should_yield()) fiber_yield();
    }
    return ST_OK;
}

/* Reads block 0: whether the segment was begun. One that was not may not be attested, either. */
static MAY_YIELD status
header_read(struct walk *walk, struct segment_info *info, bool repair)
{
    status st = log_reader_open(&walk->reader, info->number, repair);
    const u8 *data = NULL;
    log_reader_limit(&walk->reader, LOG_BLOCK_BYTES);
    if (ok(st)) st = log_reader_block(&walk->reader, 0, &data);
    if (!ok(st)) {
        st = unreadable(walk, st);
    } else {
        info->started = header_parse(walk, data, info);
        if (info->started && info->header.format != LOG_FORMAT) {
            MARK("lsm.log.other_format");
            log_error("lsm", "log segment of another format file=%s format=%u", walk->reader.path,
                      info->header.format);
            st = ST_UNSUPPORTED;
        } else if (!info->started && walk->reader.file_bytes < LOG_SEGMENT_BYTES_MIN) {
            /* Its size was durable before it had this name. */
            st = MARKED("lsm.log.emptied", damaged(walk, 0, "file is shorter than any segment"));
        } else if (!info->started) {
            MARK("lsm.log.segment_not_begun");
            u64 offset = 0, seq = 0;
            st = attested_scan(walk, LOG_BLOCK_BYTES, &offset, &seq);
            if (ok(st) && offset > 0) {
                MARK("lsm.log.header_damaged");
                st = damaged(walk, 0, "header of a segment");
            }
        }
    }
    log_reader_close(&walk->reader);
    return st;
}

/* What the newest segment, whose valid blocks end at offset, must and may hold. durable_offset and
 * durable_seq: what those blocks attest. */
static MAY_YIELD status
tail_judge(struct walk *walk, const struct segment_info *info, u64 offset, u64 durable_offset,
           u64 durable_seq, struct log_recovered *out)
{
    /* Its size was durable before its header was written: what is missing, somebody took. */
    if (walk->reader.file_bytes < info->header.segment_bytes)
        return MARKED("lsm.log.shortened", damaged(walk, walk->reader.file_bytes,
                                                   "file is shorter than its header says"));
    status st = attested_scan(walk, offset, &durable_offset, &durable_seq);
    if (!ok(st)) return st;
    /* The blocks that were written once the header was durable attest it. Those that were under way
     * beside it, and what was carried there before, attest nothing. */
    out->tail_doubtful = durable_offset == 0;
    durable_offset = MAX(durable_offset, info->durable_offset);
    durable_seq = MAX(durable_seq, info->durable_seq);
    if (durable_offset > offset || durable_seq > walk->stream.seq_last)
        return MARKED("lsm.log.durable_block_lost",
                      damaged(walk, offset, "block that was durable once"));
    out->tail_attested = MAX(align_down(durable_offset, LOG_BLOCK_BYTES), (u64)LOG_BLOCK_BYTES);
    out->tail_header = info->header;
    if (walk->stream.partial.size > 0) {
        MARK("lsm.log.record_cut");
        log_info("lsm", "unfinished record at the end of the log dropped file=%s offset=%llu",
                 walk->reader.path, (unsigned long long)offset);
    }
    return ST_OK;
}

/* Replays one segment. next: its successor, or NULL. *end_out: behind its last block. */
static MAY_YIELD status
segment_walk(struct walk *walk, struct segment_info *info, const struct segment_info *next,
             u64 *end_out, struct log_recovered *out)
{
    struct log_reader *reader = &walk->reader;
    struct log_stream *stream = &walk->stream;
    status st = log_reader_open(reader, info->number, false);
    if (!ok(st)) st = unreadable(walk, st);
    u64 limit = next != NULL ? next->header.predecessor_end : reader->file_bytes;
    log_reader_limit(reader, limit);
    u64 offset = LOG_BLOCK_BYTES;
    u64 durable_offset = 0, durable_seq = 0;
    log_stream_begin(stream, info->header.seq_base, reader->file_bytes);
    while (ok(st) && offset < limit) {
        const u8 *data;
        st = log_reader_block(reader, offset, &data);
        if (!ok(st)) {
            st = unreadable(walk, st);
            break;
        }
        struct log_block block;
        if (!log_block_is_valid(data, info->number, offset, &block)) {
            MARK("lsm.log.end_found");
            break;
        }
        durable_offset = MAX(durable_offset, block.durable_offset);
        durable_seq = MAX(durable_seq, block.durable_seq);
        st = log_stream_block(stream, data, &block);
        if (status_is(st, ST_CORRUPT)) st = damaged(walk, offset, stream->damage);
        if (ok(st)) offset += LOG_BLOCK_BYTES;
    }
    if (ok(st) && next != NULL) {
        if (offset < limit) {
            MARK("lsm.log.ended_segment_damaged");
            st = damaged(walk, offset, "block of an ended segment");
        } else if (offset != limit || stream->seq_last != next->header.predecessor_seq) {
            MARK("lsm.log.end_differs");
            st = damaged(walk, offset, "end of a segment is not where the next one says");
        }
    } else if (ok(st)) {
        st = tail_judge(walk, info, offset, durable_offset, durable_seq, out);
    }
    log_reader_close(reader);
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

/* Whether both begin at the same place of the log: the later one was made to replace the other,
 * and holds all that was in it. */
static bool
is_replaced_by(const struct segment_info *info, const struct segment_info *later)
{
    return info->header.predecessor == later->header.predecessor &&
           info->header.predecessor_end == later->header.predecessor_end &&
           info->header.predecessor_seq == later->header.predecessor_seq;
}

/* Whether the first segment is the one that it must be, and nothing is missing between two. Puts
 * aside those that were replaced. */
static status
chain_check(struct walk *walk, u64 segment_first, struct log_recovered *out)
{
    struct segment_info *next = NULL;
    for (u32 i = walk->count; i-- > 0;) {
        struct segment_info *info = &walk->infos[i];
        if (!info->started) continue;
        if (next == NULL || next->header.predecessor == info->number) {
            next = info;
            continue;
        }
        if (info->number == segment_first || !is_replaced_by(info, next)) {
            log_path(walk->reader.path, walk->dir, next->header.predecessor);
            return MARKED("lsm.log.middle_missing", damaged(walk, 0, "a segment is missing"));
        }
        MARK("lsm.log.replaced");
        info->started = false;
        info->replaced = true;
        if (!number_add(walk->budget, &out->replaced, &out->replaced_count, &out->replaced_capacity,
                        info->number))
            return ST_NO_MEMORY;
    }
    struct segment_info *first = started_from(walk, 0);
    log_path(walk->reader.path, walk->dir, segment_first != 0 ? segment_first : 1);
    if (segment_first != 0 && (first == NULL || first->number != segment_first))
        return MARKED(
            "lsm.log.first_missing",
            damaged(walk, 0, "the segment that the manifest names is missing or not valid"));
    if (segment_first == 0 && first != NULL && first->header.predecessor != 0) {
        log_path(walk->reader.path, walk->dir, first->header.predecessor);
        return MARKED("lsm.log.predecessor_missing", damaged(walk, 0, "a segment is missing"));
    }
    return ST_OK;
}

static MAY_YIELD status
segments_walk(struct walk *walk, struct log_recovered *out)
{
    for (u32 i = 0; i < walk->count; i++) {
        struct segment_info *info = &walk->infos[i];
        if (info->replaced) continue;
        if (!info->started) {
            if (!number_add(walk->budget, &out->unstarted, &out->unstarted_count,
                            &out->unstarted_capacity, info->number))
                return ST_NO_MEMORY;
            continue;
        }
        u64 end;
        status st = segment_walk(walk, info, started_from(walk, i + 1), &end, out);
        if (!ok(st)) return st;
        if (!number_add(walk->budget, &out->ends, &out->end_count, &out->end_capacity, end) ||
            !number_add(walk->budget, &out->segments, &out->segment_count, &out->segment_capacity,
                        info->number))
            return ST_NO_MEMORY;
        out->tail_number = info->number;
        out->tail_end = end;
        out->tail_seq = walk->stream.seq_last;
        out->seq_base = walk->stream.seq_last;
        out->files++;
        out->file_bytes += end;
    }
    return ST_OK;
}

MAY_YIELD status
log_recover(const char *dir, u64 segment_first, bool repair, struct budget *budget,
            log_take_fn *replay, void *arg, const struct log_reader_report *report,
            struct log_recovered *out)
{
    struct walk *walk = mem_alloc_zero(budget, sizeof(*walk));
    if (walk == NULL) return MARKED("lsm.log.walk_no_memory", ST_NO_MEMORY);
    walk->dir = dir;
    walk->budget = budget;
    walk->report = report;
    log_stream_init(&walk->stream, budget, replay, arg);
    status st = log_reader_init(&walk->reader, dir, budget);

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
    if (ok(st)) st = chain_check(walk, segment_first, out);
    if (ok(st)) st = segments_walk(walk, out);
    /* The manifest names a segment only when its header is durable. */
    if (out->tail_number == segment_first) out->tail_doubtful = false;
    out->records = walk->stream.records;
    out->bytes = walk->stream.bytes;

    log_reader_deinit(&walk->reader);
    log_stream_deinit(&walk->stream);
    mem_free(budget, walk->infos, walk->capacity * sizeof(*walk->infos));
    mem_free(budget, walk, sizeof(*walk));
    return st;
}

void
log_recovered_deinit(struct log_recovered *recovered, struct budget *budget)
{
    mem_free(budget, recovered->segments, recovered->segment_capacity * sizeof(u64));
    mem_free(budget, recovered->ends, recovered->end_capacity * sizeof(u64));
    mem_free(budget, recovered->unstarted, recovered->unstarted_capacity * sizeof(u64));
    mem_free(budget, recovered->replaced, recovered->replaced_capacity * sizeof(u64));
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
