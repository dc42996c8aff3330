/* SPDX-License-Identifier: MIT
 *
 * log_carry.c -- saving what recovery could read, but what may be lost yet.
 *
 * What the last process wrote last is attested by no block: it may be durable, or written and not
 * synced (PERIODIC), or its sync failed, in which case the disk may hold something else than what
 * it lets us read, and no later sync says so. If the first segment of the new process followed it,
 * a power cut could take it out from under what was written since: a hole, which recovery would
 * rightly call damage. So the records that do not lie before the last attested offset are written
 * once more, to that first segment, which then follows the attested offset:
 *
 *   segment 7   | header | durable once      | readable        |
 *                                            ^ predecessor_end of 8
 *   segment 8   | header | the same records  | new ones ...
 *
 * They are not written again where they lie: that could tear what is durable after all.
 *
 * The order makes it safe to be interrupted anywhere: first the copies, which attest nothing, then
 * a sync, then the header (log_cut), durable, which attests them. Without its header the segment
 * is not begun, and segment 7 is whole as far as it ever was.
 *
 * When not even the header of 7 is attested, 8 may not follow it: it takes all that 7 holds and
 * follows the predecessor of 7, as 7 did. From then on 7 is not needed. Until 8 has begun for sure
 * its file stays.
 *
 * When tables hold all of those records, 8 still follows the attested offset, but nothing is
 * copied. The tables may hold more than the log does: a flush that cannot change segments does not
 * wait for a sync. Then numbers go on behind the tables, and there would be a gap between the
 * copies and what is new.
 *
 * A full disk may have no room for 8. Reads go on all the same, on the word of the sync alone, and
 * the copying is done when there is room, before the first write.
 */
#include "base/buf.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/log_internal.h"

#define LOOK_BACK_BYTES KIB(64)

struct copy {
    struct log *log;
    struct log_segment *segment;
    struct log_reader reader;
    struct log_stream stream;
    bool behind; /* what is taken now ends behind carry.from */
    bool any;
    u64 seq_before; /* of the last record that stays where it is */
    /* blocks being laid out */
    u8 *buffer;
    u32 capacity;
    u32 size;       /* whole blocks */
    u32 block_used; /* in the last one */
    u64 offset;     /* of the buffer in segment */
};

/* ---- writing ---- */

static MAY_YIELD status
buffer_write(struct copy *copy)
{
    if (copy->size == 0) return ST_OK;
    for (u32 at = 0; at < copy->size; at += LOG_BLOCK_BYTES) {
        struct log_block *block = (struct log_block *)(void *)(copy->buffer + at);
        block->crc = log_block_crc(block, copy->segment->number, copy->offset + at);
    }
    status st = io_file_write(copy->segment->file, IO_CLASS_LOG, copy->buffer, copy->size,
                              copy->offset, false);
    copy->offset += copy->size;
    copy->size = 0;
    return st;
}

static MAY_YIELD status
block_add(struct copy *copy)
{
    if (copy->size == copy->capacity) {
        status st = buffer_write(copy);
        if (!ok(st)) return st;
    }
    u8 *data = copy->buffer + copy->size;
    memset(data, 0, LOG_BLOCK_BYTES);
    *(struct log_block *)(void *)data = (struct log_block){
        .record_first = LOG_NO_RECORD,
        .segment = copy->segment->number,
        .index = (u32)((copy->offset + copy->size) / LOG_BLOCK_BYTES),
        .kind = LOG_BLOCK_RECORDS,
    };
    copy->size += LOG_BLOCK_BYTES;
    copy->block_used = 0;
    return ST_OK;
}

static MAY_YIELD status
stream_put(struct copy *copy, const void *source, size_t size, bool record_first)
{
    const u8 *p = source;
    while (size > 0) {
        if (copy->size == 0 || copy->block_used == LOG_BLOCK_PAYLOAD_BYTES) {
            status st = block_add(copy);
            if (!ok(st)) return st;
        }
        struct log_block *block =
            (struct log_block *)(void *)(copy->buffer + copy->size - LOG_BLOCK_BYTES);
        if (record_first && block->record_first == LOG_NO_RECORD)
            block->record_first = (u16)copy->block_used;
        record_first = false;
        u32 part = (u32)MIN(size, (size_t)(LOG_BLOCK_PAYLOAD_BYTES - copy->block_used));
        memcpy((u8 *)block + sizeof(*block) + copy->block_used, p, part);
        copy->block_used += part;
        block->used = (u16)copy->block_used;
        p += part;
        size -= part;
    }
    return ST_OK;
}

/* ---- reading ---- */

static MAY_YIELD status
record_copy(void *arg, const struct log_record *record, struct bytes payload)
{
    struct copy *copy = arg;
    if (!copy->any) copy->seq_before = record->seq_first - 1;
    copy->any = true;
    if (!copy->behind) {
        copy->seq_before = record->seq_first + record->count - 1;
        return ST_OK;
    }
    if (copy->log->carry.in_tables) return ST_OK;
    status st = stream_put(copy, record, sizeof(*record), true);
    if (ok(st)) st = stream_put(copy, payload.data, payload.size, false);
    return st;
}

static status
changed(const struct copy *copy)
{
    log_error("lsm", "log reads otherwise than a moment ago file=%s do=\"check the disk\"",
              copy->reader.path);
    return MARKED("lsm.log.carry_changed", ST_CONFLICT);
}

static MAY_YIELD status
block_read(struct copy *copy, u64 offset, const u8 **data_out, struct log_block *out)
{
    status st = log_reader_block(&copy->reader, offset, data_out);
    if (!ok(st)) return st;
    bool valid = log_block_is_valid(*data_out, copy->reader.number, offset, out);
    return valid ? ST_OK : changed(copy);
}

/* Where to begin reading: the last block before from in which a record begins, or from itself when
 * none does before it. */
static MAY_YIELD status
start_find(struct copy *copy, u64 from, u64 *offset_out)
{
    u64 window = from;
    while (window > LOG_BLOCK_BYTES) {
        u64 offset = window;
        window -= MIN(window - LOG_BLOCK_BYTES, (u64)LOOK_BACK_BYTES);
        const u8 *data;
        struct log_block block;
        /* Front to back, as the reader likes it; the last one counts. */
        u64 found = 0;
        for (u64 at = window; at < offset; at += LOG_BLOCK_BYTES) {
            status st = block_read(copy, at, &data, &block);
            if (!ok(st)) return st;
            if (block.record_first != LOG_NO_RECORD) found = at;
        }
        if (found == 0) continue;
        *offset_out = found;
        return ST_OK;
    }
    MARK("lsm.log.carry_no_record_before");
    *offset_out = from;
    return ST_OK;
}

static MAY_YIELD status
records_copy(struct copy *copy, const struct log_carry *carry)
{
    u64 start;
    status st = start_find(copy, carry->from, &start);
    if (!ok(st)) return st;
    log_stream_begin(&copy->stream, carry->seq_base, copy->reader.file_bytes);
    copy->stream.seq_any = start < carry->from;
    for (u64 offset = start; offset < carry->end; offset += LOG_BLOCK_BYTES) {
        const u8 *data;
        struct log_block block;
        st = block_read(copy, offset, &data, &block);
        if (!ok(st)) return st;
        copy->behind = offset >= carry->from;
        if (offset == start && start < carry->from) {
            /* What is before belongs to a record that ends here. */
            if (block.record_first > block.used) return changed(copy);
            data += block.record_first;
            block.used -= block.record_first;
            block.record_first = 0;
        }
        st = log_stream_block(&copy->stream, data, &block);
        if (status_is(st, ST_CORRUPT)) return changed(copy);
        if (!ok(st)) return st;
        if (fiber_should_yield()) fiber_yield();
    }
    if (copy->any && copy->stream.seq_last != carry->seq_last) return changed(copy);
    return buffer_write(copy);
}

MAY_YIELD status
log_carry_copy(struct log *log, struct log_segment *segment)
{
    struct budget *budget = log->config.budget;
    struct log_carry *carry = &log->carry;
    struct copy *copy = mem_alloc_zero(budget, sizeof(*copy));
    if (copy == NULL) return MARKED("lsm.log.carry_no_memory", ST_NO_MEMORY);
    copy->log = log;
    copy->segment = segment;
    copy->seq_before = carry->seq_last;
    copy->offset = LOG_BLOCK_BYTES;
    copy->capacity = BUGGIFY("lsm.carry.buffer_small") ? LOG_BLOCK_BYTES : log->group_bytes;
    copy->buffer = mem_alloc_aligned(budget, copy->capacity, IO_ALIGNMENT);
    log_stream_init(&copy->stream, budget, record_copy, copy);
    status st = log_reader_init(&copy->reader, log->dir, budget);
    if (copy->buffer == NULL) st = MARKED("lsm.log.carry_no_buffer", ST_NO_MEMORY);
    if (ok(st)) st = log_reader_open(&copy->reader, carry->number, false);
    log_reader_limit(&copy->reader, carry->end);
    if (ok(st)) st = records_copy(copy, carry);
    if (ok(st) && copy->offset > LOG_BLOCK_BYTES) st = io_file_sync(segment->file);
    if (ok(st)) {
        if (copy->offset > LOG_BLOCK_BYTES) {
            MARK("lsm.log.carried");
            segment->written_offset = segment->synced_offset = copy->offset;
        }
        if (!carry->replace) {
            log->tail_end = carry->from;
            log->tail_seq = copy->seq_before;
            list_for_each (link, &log->old) {
                struct log_segment *old = list_entry(link, struct log_segment, link);
                if (old->number == carry->number) old->end = carry->from;
            }
        }
        if (!carry->in_tables) log->seq_base = copy->seq_before;
        *carry = (struct log_carry){0};
    }
    log_reader_deinit(&copy->reader);
    log_stream_deinit(&copy->stream);
    mem_free(budget, copy->buffer, copy->capacity);
    mem_free(budget, copy, sizeof(*copy));
    return st;
}
