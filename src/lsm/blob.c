/* SPDX-License-Identifier: MIT
 *
 * blob.c -- files of values that are kept apart from their keys.
 *
 * A record carries its key, so a value is never returned for another key, whatever pointer led to
 * it, and a lost pointer could be found again. Records are sealed with their place (file, offset):
 * what a misdirected or stale read brings fails its check. Reading a value costs one span; it is
 * cut into requests of LIMIT_IO_BYTES that are all in flight together.
 */
#include "lsm/table_format.h"

#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/piece_io.h"

/* ---- writing ---- */

struct blob_writer {
    struct piece_writer file;
    struct budget *budget;
    u64 file_id;
    u64 record_count;
};

MAY_YIELD status
blob_writer_open(const char *dir, u64 file_id, enum io_class io_class, struct budget *budget,
                 struct blob_writer **out)
{
    struct blob_writer *writer = mem_alloc_zero(budget, sizeof(*writer));
    if (writer == NULL) return MARKED("lsm.blob_writer.no_memory", ST_NO_MEMORY);
    writer->budget = budget;
    writer->file_id = file_id;
    char path[LSM_PATH_BYTES];
    blob_path(path, dir, file_id);
    status st = piece_writer_open(&writer->file, path, io_class, budget);
    if (!ok(st)) {
        mem_free(budget, writer, sizeof(*writer));
        return st;
    }
    struct blob_file_header header = {
        .magic = BLOB_MAGIC, .format = BLOB_FORMAT, .file_id = file_id};
    header.crc = crc32c(0, &header, sizeof(header) - sizeof(header.crc));
    st = piece_writer_append(&writer->file, BYTES(&header, sizeof(header)));
    if (!ok(st)) {
        MARK("lsm.blob_writer.header_failed");
        blob_writer_abort(writer);
        return st;
    }
    *out = writer;
    return ST_OK;
}

MAY_YIELD status
blob_writer_add(struct blob_writer *writer, u64 token, struct bytes key, struct bytes value,
                struct blob_pointer *out)
{
    CHECK(key.size > 0 && key.size <= LIMIT_KEY_BYTES && value.size <= LIMIT_VALUE_BYTES);
    u64 offset = piece_writer_offset(&writer->file);
    struct blob_record_header header = {
        .magic = BLOB_RECORD_MAGIC,
        .value_crc = crc32c(0, value.data, value.size),
        .value_size = (u32)value.size,
        .key_size = (u16)key.size,
        .token = token,
    };
    u32 crc = crc32c(table_place_seed(writer->file_id, offset), (const u8 *)&header + 8,
                     sizeof(header) - 8);
    header.crc = crc32c(crc, key.data, key.size);
    u64 padding = blob_record_bytes(key.size, value.size) - sizeof(header) - key.size - value.size;
    status st = piece_writer_append(&writer->file, BYTES(&header, sizeof(header)));
    if (ok(st)) st = piece_writer_append(&writer->file, key);
    if (ok(st)) st = piece_writer_append(&writer->file, value);
    if (ok(st)) st = piece_writer_zeros(&writer->file, padding);
    if (!ok(st)) return st;
    writer->record_count++;
    *out = (struct blob_pointer){
        .file_id = writer->file_id,
        .offset = offset,
        .size = (u32)value.size,
        .crc = header.value_crc,
    };
    return ST_OK;
}

u64
blob_writer_bytes(const struct blob_writer *writer)
{
    return piece_writer_offset(&writer->file);
}

MAY_YIELD static status
footer_write(struct blob_writer *writer, u64 *file_bytes_out)
{
    u64 end = piece_writer_offset(&writer->file);
    struct blob_footer footer = {
        .magic = BLOB_FOOTER_MAGIC,
        .file_id = writer->file_id,
        .file_bytes = align_up(end + sizeof(footer), IO_ALIGNMENT),
        .records_end = end,
        .record_count = writer->record_count,
        .content_hash = piece_writer_hash(&writer->file),
    };
    footer.crc = crc32c(0, &footer, sizeof(footer) - sizeof(footer.crc));
    status st = piece_writer_zeros(&writer->file, footer.file_bytes - sizeof(footer) - end);
    if (ok(st)) st = piece_writer_append(&writer->file, BYTES(&footer, sizeof(footer)));
    *file_bytes_out = footer.file_bytes;
    return st;
}

MAY_YIELD status
blob_writer_finish(struct blob_writer *writer, u64 *file_bytes_out)
{
    u64 file_bytes;
    status st = footer_write(writer, &file_bytes);
    if (ok(st)) {
        st = piece_writer_finish(&writer->file);
    } else {
        MARK("lsm.blob_writer.finish_failed");
        piece_writer_abort(&writer->file);
    }
    if (ok(st)) *file_bytes_out = file_bytes;
    mem_free(writer->budget, writer, sizeof(*writer));
    return st;
}

MAY_YIELD void
blob_writer_abort(struct blob_writer *writer)
{
    if (writer == NULL) return;
    piece_writer_abort(&writer->file);
    mem_free(writer->budget, writer, sizeof(*writer));
}

/* ---- opening and closing ---- */

struct blob_open {
    struct blob_file blob;
    u64 records_end;
    struct file_closer *closer;
};

/* Told now and then: a reader may meet it a thousand times a second. */
static status
blob_corrupt(struct blob_file *blob, u64 offset, const char *what)
{
    char path[LSM_PATH_BYTES];
    blob_path(path, blob->dir, blob->file_id);
    MARK("lsm.blob.corrupt");
    blob->damage_met++;
    if (log_seldom(&blob->damage_told_ns, io_now_ns()))
        log_error("lsm", "blob file is damaged file=%s offset=%llu what=\"%s\" met=%llu", path,
                  (unsigned long long)offset, what, (unsigned long long)blob->damage_met);
    return ST_CORRUPT;
}

/* Header and footer. *offset_out: where *what_out is wrong. */
MAY_YIELD static status
frame_read(struct io_file *file, u64 file_id, u64 file_bytes, struct budget *budget,
           struct blob_footer *footer, u64 *offset_out, const char **what_out)
{
    *offset_out = 0;
    *what_out = "file size";
    if (file_bytes == 0 || file_bytes % IO_ALIGNMENT != 0)
        return MARKED("lsm.blob.size_impossible", ST_CORRUPT);
    u64 size;
    status st = io_file_size(file, &size);
    if (!ok(st)) return st;
    if (size != file_bytes) return MARKED("lsm.blob.size_differs", ST_CORRUPT);
    u8 *page = mem_alloc_aligned(budget, IO_ALIGNMENT, IO_ALIGNMENT);
    if (page == NULL) return MARKED("lsm.blob.frame_no_memory", ST_NO_MEMORY);
    st = io_file_read(file, IO_CLASS_READ, page, IO_ALIGNMENT, 0);
    if (ok(st)) st = blob_header_decode(BYTES(page, IO_ALIGNMENT), file_id, what_out);
    if (ok(st)) {
        *offset_out = file_bytes - IO_ALIGNMENT;
        st = io_file_read(file, IO_CLASS_READ, page, IO_ALIGNMENT, file_bytes - IO_ALIGNMENT);
    }
    if (ok(st))
        st = blob_footer_decode(BYTES(page, IO_ALIGNMENT), file_id, file_bytes, footer, what_out);
    mem_free(budget, page, IO_ALIGNMENT);
    return status_is(st, ST_END) ? MARKED("lsm.blob.frame_cut_off", ST_CORRUPT) : st;
}

MAY_YIELD status
blob_open(const char *dir, u64 file_id, u64 file_bytes, struct budget *budget,
          struct blob_file **out)
{
    char path[LSM_PATH_BYTES];
    blob_path(path, dir, file_id);
    struct blob_open *open = mem_alloc_zero(budget, sizeof(*open));
    if (open == NULL) return MARKED("lsm.blob.no_memory", ST_NO_MEMORY);
    struct blob_file *blob = &open->blob;
    blob->file_id = file_id;
    blob->file_bytes = file_bytes;
    blob->ref_count = 1;
    blob->budget = budget;
    memcpy(blob->dir, dir, strlen(dir) + 1); /* blob_path has checked the length */
    open->closer = file_closer_new(path);
    struct blob_footer footer = {0};
    status st = open->closer == NULL ? MARKED("lsm.blob.closer_no_memory", ST_NO_MEMORY)
                                     : io_file_open(path, IO_OPEN_READ, &blob->file);
    if (ok(st)) {
        u64 offset;
        const char *what;
        st = frame_read(blob->file, file_id, file_bytes, budget, &footer, &offset, &what);
        if (status_is(st, ST_CORRUPT)) st = blob_corrupt(blob, offset, what);
    }
    if (!ok(st)) {
        MARK("lsm.blob.open_failed");
        io_file_close(blob->file);
        if (open->closer != NULL) file_closer_free(open->closer);
        mem_free(budget, open, sizeof(*open));
        return st;
    }
    open->records_end = footer.records_end;
    *out = blob;
    return ST_OK;
}

void
blob_ref(struct blob_file *blob)
{
    CHECK(blob->ref_count > 0);
    blob->ref_count++;
}

void
blob_unref(struct blob_file *blob)
{
    if (blob == NULL) return;
    CHECK(blob->ref_count > 0);
    if (--blob->ref_count > 0) return;
    struct blob_open *open = CONTAINER_OF(blob, struct blob_open, blob);
    file_closer_close(open->closer, blob->file, blob->unlink_on_close);
    mem_free(blob->budget, open, sizeof(*open)); /* now: see table_unref */
}

/* ---- reading ---- */

#define SPAN_OPS_MAX 4u
static_assert(SPAN_OPS_MAX * LIMIT_IO_BYTES >= LIMIT_VALUE_BYTES + LIMIT_KEY_BYTES +
                                                   sizeof(struct blob_record_header) +
                                                   2 * IO_ALIGNMENT,
              "the largest record fits");

/* Reads an aligned span; every request is in flight at once. */
MAY_YIELD static status
span_read(struct blob_file *blob, enum io_class io_class, struct budget *budget, u8 *buffer,
          u32 size, u64 offset)
{
    u32 part = LIMIT_IO_BYTES;
    if (BUGGIFY("lsm.blob.split_reads"))
        part = (u32)align_up(size / SPAN_OPS_MAX + 1, IO_ALIGNMENT);
    if (size <= part) return io_file_read(blob->file, io_class, buffer, size, offset);
    size_t ops_bytes = SPAN_OPS_MAX * sizeof(struct io_op);
    struct io_op *ops = mem_alloc_zero(budget, ops_bytes);
    if (ops == NULL) return MARKED("lsm.blob.span_no_memory", ST_NO_MEMORY);
    u32 count = 0;
    for (u32 at = 0; at < size; at += part) {
        CHECK(count < SPAN_OPS_MAX);
        io_file_read_start(blob->file, &ops[count++], io_class, buffer + at, MIN(size - at, part),
                           offset + at);
    }
    status st = ST_OK;
    for (u32 i = 0; i < count; i++) {
        status result = io_op_wait(&ops[i]);
        if (ok(st)) st = result;
    }
    mem_free(budget, ops, ops_bytes);
    return st;
}

static status
record_verify(struct bytes stored, const struct blob_file *blob, const struct blob_pointer *pointer,
              u64 token, struct bytes key, struct bytes *value_out, const char **what_out)
{
    struct blob_record record;
    *what_out = "record sizes";
    status st = blob_record_decode(stored, blob->file_id, pointer->offset, &record, what_out);
    /* INCOMPLETE: its sizes are not the pointer's. */
    if (!ok(st)) return MARKED("lsm.blob.record_damaged", ST_CORRUPT);
    *what_out = "record of another key";
    if (record.token != token || !bytes_equal(record.key, key))
        return MARKED("lsm.blob.record_of_another_key", ST_CORRUPT);
    *what_out = "record does not match its pointer";
    if (record.value.size != pointer->size || record.value_crc != pointer->crc)
        return MARKED("lsm.blob.record_differs", ST_CORRUPT);
    *value_out = record.value;
    return ST_OK;
}

MAY_YIELD status
blob_read(struct blob_file *blob, enum io_class io_class, const struct blob_pointer *pointer,
          u64 token, struct bytes key, struct budget *budget, void **buffer_out,
          size_t *buffer_size_out, struct bytes *value_out)
{
    u64 records_end = CONTAINER_OF(blob, struct blob_open, blob)->records_end;
    u64 size = blob_record_bytes(key.size, pointer->size);
    if (pointer->file_id != blob->file_id || pointer->size > LIMIT_VALUE_BYTES ||
        pointer->offset % BLOB_ALIGNMENT != 0 || pointer->offset < blob_header_bytes() ||
        pointer->offset > records_end || size > records_end - pointer->offset)
        return MARKED("lsm.blob.pointer_bad",
                      blob_corrupt(blob, pointer->offset, "pointer does not lead to a record"));
    u64 first = align_down(pointer->offset, IO_ALIGNMENT);
    u32 span = (u32)(align_up(pointer->offset + size, IO_ALIGNMENT) - first);
    u8 *buffer = mem_alloc_aligned(budget, span, IO_ALIGNMENT);
    if (buffer == NULL) return MARKED("lsm.blob.read_no_memory", ST_NO_MEMORY);
    blob_ref(blob); /* a compaction may drop it meanwhile */
    status st = span_read(blob, io_class, budget, buffer, span, first);
    const char *what = "file is cut off";
    if (status_is(st, ST_END)) {
        MARK("lsm.blob.read_cut_off");
        st = ST_CORRUPT;
    }
    if (ok(st))
        st = record_verify(BYTES(buffer + (pointer->offset - first), size), blob, pointer, token,
                           key, value_out, &what);
    if (status_is(st, ST_CORRUPT)) st = blob_corrupt(blob, pointer->offset, what);
    blob_unref(blob);
    if (!ok(st)) {
        mem_free(budget, buffer, span);
        return st;
    }
    *buffer_out = buffer;
    *buffer_size_out = span;
    return ST_OK;
}

/* ---- verification ---- */

struct blob_verification {
    struct io_file *file;
    u64 file_id, file_bytes;
    struct blob_footer footer;
    struct piece_reader *reader;
    struct piece_hash *hash;
    struct pace pace;
    struct places *places; /* NULL: the first one ends it */
    bool cut_off;          /* there is nothing behind it to look at */
    u64 offset;
    const char *what;
};

/* The record at v->offset and its bytes. What cannot be had says by record->bytes where the next
 * one is; 0: that is not known. */
MAY_YIELD static status
record_at(struct blob_verification *v, struct blob_record *record, const u8 **data)
{
    u64 left = v->footer.records_end - v->offset;
    u32 have = (u32)MIN(left, sizeof(struct blob_record_header));
    for (;;) { /* twice: the header tells how much the record is */
        v->what = "file is cut off";
        record->bytes = 0;
        status st = piece_reader_get(v->reader, v->offset, have, data);
        v->cut_off = status_is(st, ST_CORRUPT);
        if (!ok(st)) return st;
        st = blob_record_decode(BYTES(*data, have), v->file_id, v->offset, record, &v->what);
        if (!status_is(st, ST_INCOMPLETE))
            return ok(st) ? ST_OK : MARKED("lsm.blob_verify.record", st);
        if (record->bytes > left || record->bytes <= have) {
            v->what = "record goes beyond the end";
            record->bytes = 0;
            return MARKED("lsm.blob_verify.record_too_long", ST_CORRUPT);
        }
        have = (u32)record->bytes;
    }
}

/* Tells the record at v->offset, if it is damaged and there is more to see behind it, and goes to
 * the next that is whole or says at least how long it is. */
MAY_YIELD static status
record_pass(struct blob_verification *v, status st, u64 record_bytes)
{
    bool damage = status_is(st, ST_CORRUPT) || status_is_io(st);
    if (!damage || v->cut_off || v->places == NULL || v->places->count == PLACES_MAX) return st;
    MARK("lsm.blob_verify.go_on");
    places_tell(v->places, st, v->offset, v->what);
    if (record_bytes != 0) {
        v->offset += record_bytes;
        return ST_OK;
    }
    for (;;) {
        u64 next = v->offset + BLOB_ALIGNMENT;
        if (status_is_io(st)) next = align_up(next, IO_ALIGNMENT); /* once a page: it is slow */
        v->offset = MIN(next, v->footer.records_end);
        if (v->offset == v->footer.records_end)
            return MARKED("lsm.blob_verify.no_record_behind", ST_OK);
        struct blob_record record;
        const u8 *data;
        st = record_at(v, &record, &data);
        if (ok(st) || record.bytes != 0) return MARKED("lsm.blob_verify.record_behind", ST_OK);
        if (v->cut_off || (!status_is(st, ST_CORRUPT) && !status_is_io(st))) return st;
        status paced = pace_add(&v->pace, BLOB_ALIGNMENT);
        if (!ok(paced)) return paced;
    }
}

MAY_YIELD static status
records_verify(struct blob_verification *v)
{
    const u8 *data;
    u64 count = 0;
    v->what = "file is cut off";
    status st = piece_reader_get(v->reader, 0, (u32)blob_header_bytes(), &data);
    if (!ok(st)) return st;
    piece_hash_add(v->hash, BYTES(data, blob_header_bytes()));
    for (v->offset = blob_header_bytes(); v->offset < v->footer.records_end; count++) {
        struct blob_record record;
        st = record_at(v, &record, &data);
        if (ok(st)) {
            piece_hash_add(v->hash, BYTES(data, record.bytes));
            v->offset += record.bytes;
            st = pace_add(&v->pace, record.bytes);
        } else {
            st = record_pass(v, st, record.bytes);
        }
        if (!ok(st)) return st;
    }
    bool damaged = v->places != NULL && v->places->count > 0; /* and so are count and hash */
    v->what = "record count";
    if (!damaged && count != v->footer.record_count)
        return MARKED("lsm.blob_verify.count", ST_CORRUPT);
    v->what = "hash of the content";
    if (!damaged && piece_hash_value(v->hash) != v->footer.content_hash)
        return MARKED("lsm.blob_verify.hash", ST_CORRUPT);

    u64 zeros = v->file_bytes - sizeof(struct blob_footer) - v->footer.records_end;
    v->what = "padding";
    if (zeros == 0) return ST_OK;
    st = piece_reader_get(v->reader, v->offset, (u32)zeros, &data);
    if (!ok(st)) return st;
    for (u64 i = 0; i < zeros; i++)
        if (data[i] != 0) return MARKED("lsm.blob_verify.padding", ST_CORRUPT);
    return ST_OK;
}

MAY_YIELD static status
blob_verify_run(struct blob_verification *v, struct budget *budget)
{
    status st =
        frame_read(v->file, v->file_id, v->file_bytes, budget, &v->footer, &v->offset, &v->what);
    if (!ok(st)) return st;
    v->hash = piece_hash_new(budget);
    if (v->hash == NULL) return MARKED("lsm.blob_verify.hash_no_memory", ST_NO_MEMORY);
    st = piece_reader_open(v->file, v->file_bytes, IO_CLASS_COMPACTION, PIECE_BYTES, budget,
                           &v->reader);
    if (!ok(st)) return st;
    v->offset = 0;
    return records_verify(v);
}

MAY_YIELD static status
verify_file(const char *dir, u64 file_id, u64 file_bytes, u64 bytes_per_s, struct budget *budget,
            struct places *places, u64 *offset_out, const char **what_out)
{
    struct blob_verification *v = mem_alloc_zero(budget, sizeof(*v));
    if (v == NULL) return MARKED("lsm.blob_verify.no_memory", ST_NO_MEMORY);
    v->places = places;
    v->file_id = file_id;
    v->file_bytes = file_bytes;
    pace_init(&v->pace, bytes_per_s);
    char path[LSM_PATH_BYTES];
    blob_path(path, dir, file_id);
    status st = io_file_open(path, IO_OPEN_READ, &v->file);
    if (ok(st)) st = blob_verify_run(v, budget);
    if (!ok(st)) *offset_out = v->offset;
    if (status_is(st, ST_CORRUPT)) {
        MARK("lsm.blob_verify.corrupt");
        *what_out = v->what;
    }
    piece_hash_free(v->hash, budget);
    if (v->reader != NULL) piece_reader_close(v->reader);
    io_file_close(v->file); /* waits for a window that is still on its way */
    mem_free(budget, v, sizeof(*v));
    return st;
}

MAY_YIELD status
blob_verify(const char *dir, u64 file_id, u64 file_bytes, u64 bytes_per_s, struct budget *budget,
            u64 *offset_out, const char **what_out)
{
    return verify_file(dir, file_id, file_bytes, bytes_per_s, budget, NULL, offset_out, what_out);
}

MAY_YIELD status
blob_verify_all(const char *dir, u64 file_id, u64 file_bytes, struct budget *budget,
                struct places *places)
{
    u64 offset = 0;
    const char *what = "";
    status st = verify_file(dir, file_id, file_bytes, 0, budget, places, &offset, &what);
    return places_end(places, st, offset, what);
}
