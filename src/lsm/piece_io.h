/* SPDX-License-Identifier: MIT
 *
 * piece_io.h -- files written and read from one end to the other, in large aligned pieces with two
 * buffers: while one is filled (or used) the other is on its way. Tables and blob files are written
 * through a piece_writer; cursors and verification read through a piece_reader. A reader of the
 * class of streams takes more buffers as it goes on, so that several reads are under way.
 *
 * A reader may be closed from a callback while a read is in flight. It then lives on until the read
 * has ended; its memory is moved from the caller's budget to the shard's, so the caller's budget
 * may go away at once.
 */
#ifndef DISTKV_LSM_PIECE_IO_H
#define DISTKV_LSM_PIECE_IO_H

#include "base/mem.h"
#include "io/file.h"
#include "lsm/lsm.h"

#define PIECE_BYTES     (256u << 10)
#define PIECE_BYTES_MIN (16u << 10) /* what a writer makes do with when memory is short */

struct piece_hash; /* streaming XXH3 */

/* ---- writing ---- */

struct piece_writer {
    struct budget *budget;
    struct io_file *file;
    enum io_class io_class;
    u32 piece_bytes;
    struct piece_hash *hash;
    struct {
        u8 *data;
        bool busy;
        struct io_op op;
    } pieces[2];
    u32 current;         /* being filled */
    u32 fill;            /* bytes in it */
    u64 offset;          /* in the file, of the current piece */
    u64 allocated_bytes; /* of the file */
    status failed;       /* sticky */
    char path[600];
};

/* Creates the file. On failure nothing is left. */
MAY_YIELD MUST_CHECK status piece_writer_open(struct piece_writer *writer, const char *path,
                                              enum io_class io_class, struct budget *budget);
MAY_YIELD MUST_CHECK status piece_writer_append(struct piece_writer *writer, struct bytes bytes);
MAY_YIELD MUST_CHECK status piece_writer_zeros(struct piece_writer *writer, u64 count);
/* Where the next byte goes. */
static inline u64
piece_writer_offset(const struct piece_writer *writer)
{
    return writer->offset + writer->fill;
}
/* XXH3 of everything appended so far. */
u64 piece_writer_hash(const struct piece_writer *writer);
/* The offset must be aligned. Writes what is left, sets the size, syncs, closes, frees. On failure
 * the file is removed. */
MAY_YIELD MUST_CHECK status piece_writer_finish(struct piece_writer *writer);
MAY_YIELD void piece_writer_abort(struct piece_writer *writer);

/* ---- reading ---- */

struct piece_reader;

/* file stays the caller's: it may close it (io_file_close waits for reads in flight) as soon as the
 * reader was closed. file_bytes: a multiple of IO_ALIGNMENT; nothing behind it is read.
 * window_bytes: of one piece. */
MUST_CHECK status piece_reader_open(struct io_file *file, u64 file_bytes, enum io_class io_class,
                                    u32 window_bytes, struct budget *budget,
                                    struct piece_reader **out);
/* *out points to size bytes from offset, until the next call. Going forward is what it is made for;
 * any offset is right. ST_CORRUPT when the range is not inside the file, or the file ends early.
 * ST_IO_ERROR: some of these very bytes cannot be read, or of the units of the disk in which they
 * lie. */
MAY_YIELD MUST_CHECK status piece_reader_get(struct piece_reader *reader, u64 offset, u32 size,
                                             const u8 **out);
/* From any context; never waits. */
void piece_reader_close(struct piece_reader *reader);

/* Reads [offset, offset + size) of any alignment into target by requests of bounded size.
 * file_bytes as above. */
MAY_YIELD MUST_CHECK status piece_read(struct io_file *file, u64 file_bytes, enum io_class io_class,
                                       struct budget *budget, u8 *target, u64 offset, u64 size);

/* ---- streaming hash, equal to hash_bytes(all, size, 0) ---- */

MUST_CHECK struct piece_hash *piece_hash_new(struct budget *budget);
void piece_hash_free(struct piece_hash *hash, struct budget *budget);
void piece_hash_add(struct piece_hash *hash, struct bytes bytes);
u64 piece_hash_value(const struct piece_hash *hash);

/* ---- reading no faster than asked ---- */

struct pace {
    u64 bytes_per_s; /* 0: no limit */
    u64 start_ns;
    u64 bytes;
};

void pace_init(struct pace *pace, u64 bytes_per_s);
/* Called after each piece of work; sleeps or yields as is due. ST_CANCELED when the node stops. */
MAY_YIELD MUST_CHECK status pace_add(struct pace *pace, u64 bytes);

/* ---- files that are closed later ---- */

/* Closes (and removes) a file from any context, on a background fiber. Made together with the file,
 * so that closing cannot fail for lack of memory. Its memory is the shard's, not a store's. */
struct file_closer;
MUST_CHECK struct file_closer *file_closer_new(const char *path);
void file_closer_free(struct file_closer *closer);
/* Takes closer and file. */
void file_closer_close(struct file_closer *closer, struct io_file *file, bool unlink);

#endif
