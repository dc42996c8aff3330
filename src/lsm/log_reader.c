/* SPDX-License-Identifier: MIT
 *
 * log_reader.c -- reading one segment of a log: its blocks in order, and the records in them.
 *
 *   log_reader:  file -> pieces -> blocks that are valid, or not
 *   log_stream:  used bytes of blocks -> records that are whole, sound and in order -> take
 *
 * What a block or a record that is not valid means is for the callers to say: log_recover.c knows
 * what must be there.
 */
#include "base/crc.h"
#include "base/fault.h"
#include "io/io.h"
#include "lsm/log_internal.h"
#include "lsm/lsm_internal.h"

#define PIECE_BYTES KIB(256)

/* ---- blocks ---- */

static bool
piece_add(struct log_reader *reader)
{
    if (reader->piece_count == reader->piece_max) return false;
    u8 *buffer = mem_alloc_aligned(reader->budget, reader->piece_bytes, IO_ALIGNMENT);
    if (buffer == NULL) return MARKED("lsm.log.fewer_pieces", false);
    reader->pieces[reader->piece_count++].buffer = buffer;
    return true;
}

status
log_reader_init(struct log_reader *reader, const char *dir, struct budget *budget)
{
    *reader = (struct log_reader){.dir = dir, .budget = budget, .piece_bytes = PIECE_BYTES};
    if (BUGGIFY("lsm.log.pieces_small")) reader->piece_bytes = 2 * LOG_BLOCK_BYTES;
    /* One must be had; more of them, once there is enough to read, let the disk work meanwhile. A
     * small store has fewer. */
    u64 most = budget->limit_bytes / 64 / reader->piece_bytes;
    reader->piece_max = (u32)CLAMP(most, 1u, LOG_READ_PIECES);
    return piece_add(reader) ? ST_OK : MARKED("lsm.log.pieces_no_memory", ST_NO_MEMORY);
}

MAY_YIELD void
log_reader_deinit(struct log_reader *reader)
{
    log_reader_close(reader);
    while (reader->piece_count > 0)
        mem_free(reader->budget, reader->pieces[--reader->piece_count].buffer, reader->piece_bytes);
}

MAY_YIELD status
log_reader_open(struct log_reader *reader, u64 number, bool sync)
{
    CHECK(reader->file == NULL);
    reader->number = number;
    reader->file_bytes = 0;
    log_path(reader->path, reader->dir, number);
    status st = io_file_open(reader->path, sync ? IO_OPEN_WRITE : IO_OPEN_READ, &reader->file);
    if (!ok(st)) {
        reader->file = NULL;
        return st;
    }
    if (sync) st = io_file_sync(reader->file);
    u64 size = 0;
    if (ok(st)) st = io_file_size(reader->file, &size);
    if (!ok(st)) return st;
    reader->file_bytes = align_down(size, LOG_BLOCK_BYTES);
    log_reader_limit(reader, reader->file_bytes);
    return ST_OK;
}

void
log_reader_limit(struct log_reader *reader, u64 offset)
{
    reader->ahead_end = MIN(align_up(offset, LOG_BLOCK_BYTES), reader->file_bytes);
}

/* Begins to read what comes next into a piece; nothing when there is nothing to come. */
static void
piece_start(struct log_reader *reader, struct log_piece *piece)
{
    piece->offset = reader->ahead;
    piece->size = (u32)MIN((u64)reader->piece_bytes, reader->ahead_end - reader->ahead);
    piece->reading = piece->size > 0;
    if (!piece->reading) return;
    reader->ahead += piece->size;
    piece->op = (struct io_op){0};
    io_file_read_start(reader->file, &piece->op, IO_CLASS_READ, piece->buffer, piece->size,
                       piece->offset);
}

static MAY_YIELD status
piece_wait(struct log_piece *piece)
{
    if (!piece->reading) return piece->op.result;
    piece->reading = false;
    return io_op_wait(&piece->op);
}

/* Nothing is under way any more and nothing is there. */
static MAY_YIELD void
pieces_drop(struct log_reader *reader)
{
    for (u32 i = 0; i < reader->piece_count; i++) {
        (void)ok(piece_wait(&reader->pieces[i]));
        reader->pieces[i].size = 0;
    }
}

MAY_YIELD void
log_reader_close(struct log_reader *reader)
{
    pieces_drop(reader);
    io_file_close(reader->file);
    reader->file = NULL;
}

/* One more, when there is something to read into it. */
static bool
piece_wanted(struct log_reader *reader)
{
    return reader->ahead < reader->ahead_end && piece_add(reader);
}

static bool
piece_holds(const struct log_piece *piece, u64 offset)
{
    return offset >= piece->offset && offset - piece->offset < piece->size;
}

MAY_YIELD status
log_reader_block(struct log_reader *reader, u64 offset, const u8 **out)
{
    if (offset >= reader->file_bytes) {
        *out = NULL;
        return ST_OK;
    }
    struct log_piece *piece = &reader->pieces[reader->front];
    if (!piece_holds(piece, offset)) {
        u32 second = (reader->front + 1) % reader->piece_count;
        bool next = piece_holds(&reader->pieces[second], offset) && second != reader->front;
        if (next) {
            piece_start(reader, piece);
            reader->front = second;
        } else {
            pieces_drop(reader);
            if (offset >= reader->ahead_end) log_reader_limit(reader, reader->file_bytes);
            reader->ahead = offset;
            reader->front = 0;
            for (u32 i = 0; i < reader->piece_count || piece_wanted(reader); i++)
                piece_start(reader, &reader->pieces[i]);
        }
        piece = &reader->pieces[reader->front];
        /* What was started leaves with the next turn of the loop, so there must be one, also when
         * the piece that is wanted has come already. */
        fiber_yield();
        status st = piece_wait(piece);
        if (!ok(st)) {
            MARK("lsm.log.piece_failed");
            pieces_drop(reader); /* another call reads it again */
            return st;
        }
    }
    *out = piece->buffer + (offset - piece->offset);
    return ST_OK;
}

bool
log_block_is_valid(const u8 *data, u64 segment, u64 offset, struct log_block *out)
{
    if (data == NULL) return false;
    memcpy(out, data, sizeof(*out));
    if (out->segment != segment || out->index != offset / LOG_BLOCK_BYTES) return false;
    if (out->used > LOG_BLOCK_PAYLOAD_BYTES) return false;
    return out->crc == log_block_crc(data, segment, offset);
}

/* ---- records ---- */

void
log_stream_init(struct log_stream *stream, struct budget *budget, log_take_fn *take, void *arg)
{
    *stream = (struct log_stream){.take = take, .arg = arg};
    buf_init(&stream->partial, budget);
}

void
log_stream_deinit(struct log_stream *stream)
{
    buf_deinit(&stream->partial);
}

void
log_stream_begin(struct log_stream *stream, u64 seq_last, u64 size_max)
{
    stream->partial.size = 0;
    stream->seq_last = seq_last;
    stream->seq_any = false;
    stream->size_max = size_max;
    stream->damage = NULL;
}

static MAY_YIELD status
record_take(struct log_stream *stream, const u8 *data, size_t size)
{
    struct log_record record;
    memcpy(&record, data, sizeof(record));
    u32 crc = crc32c((u32)record.seq_first, data + sizeof(record.crc), size - sizeof(record.crc));
    stream->damage = "checksum of a record";
    if (crc != record.crc) return MARKED("lsm.log.record_checksum", ST_CORRUPT);
    stream->damage = "header of a record";
    if (record.kind != LOG_RECORD_BATCH || record.count == 0 || record.reserved != 0)
        return MARKED("lsm.log.record_header", ST_CORRUPT);
    stream->damage = "gap in the sequence numbers";
    if (!stream->seq_any && record.seq_first != stream->seq_last + 1)
        return MARKED("lsm.log.record_gap", ST_CORRUPT);
    stream->damage = NULL;
    if (stream->take != NULL) {
        struct bytes payload = BYTES(data + sizeof(record), size - sizeof(record));
        status st = stream->take(stream->arg, &record, payload);
        if (status_is(st, ST_CORRUPT)) {
            MARK("lsm.log.record_content");
            stream->damage = "content of a record";
        }
        if (!ok(st)) return st;
    }
    stream->seq_last = record.seq_first + record.count - 1;
    stream->seq_any = false;
    stream->records++;
    stream->bytes += size;
    return ST_OK;
}

static bool
record_size_is_sound(const struct log_stream *stream, u64 size)
{
    return size >= sizeof(struct log_record) && size <= stream->size_max;
}

/* How much of the record that begins partial is still missing. */
static status
partial_missing(struct log_stream *stream, u64 *missing_out)
{
    struct buf *partial = &stream->partial;
    if (partial->size < sizeof(struct log_record)) {
        *missing_out = sizeof(struct log_record) - partial->size;
        return ST_OK;
    }
    u64 size = load_u32(partial->data + offsetof(struct log_record, size));
    stream->damage = "size of a record";
    if (!record_size_is_sound(stream, size)) return MARKED("lsm.log.partial_size", ST_CORRUPT);
    stream->damage = NULL;
    *missing_out = size - partial->size;
    return ST_OK;
}

MAY_YIELD status
log_stream_block(struct log_stream *stream, const u8 *data, const struct log_block *block)
{
    u32 used = block->used;
    data += sizeof(*block);
    u32 first = LOG_NO_RECORD;
    u32 at = 0;
    while (at < used) {
        u32 left = used - at;
        if (stream->partial.size == 0) {
            if (first == LOG_NO_RECORD) first = at;
            if (left >= sizeof(struct log_record)) {
                u64 size = load_u32(data + at + offsetof(struct log_record, size));
                stream->damage = "size of a record";
                if (!record_size_is_sound(stream, size))
                    return MARKED("lsm.log.record_size", ST_CORRUPT);
                stream->damage = NULL;
                if (size <= left) {
                    status st = record_take(stream, data + at, size);
                    if (!ok(st)) return st;
                    at += (u32)size;
                    continue;
                }
            }
        }
        u64 missing;
        status st = partial_missing(stream, &missing);
        if (!ok(st)) return st;
        u32 part = (u32)MIN(missing, (u64)left);
        if (!buf_append(&stream->partial, data + at, part))
            return MARKED("lsm.log.partial_no_memory", ST_NO_MEMORY);
        at += part;
        st = partial_missing(stream, &missing);
        if (!ok(st)) return st;
        if (missing > 0) continue;
        st = record_take(stream, stream->partial.data, stream->partial.size);
        if (!ok(st)) return st;
        stream->partial.size = 0;
    }
    stream->damage = "place of the first record in a block";
    if (first != block->record_first) return MARKED("lsm.log.record_place", ST_CORRUPT);
    stream->damage = NULL;
    return ST_OK;
}
