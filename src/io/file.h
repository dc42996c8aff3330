/* SPDX-License-Identifier: MIT
 *
 * file.h -- direct disk I/O.
 *
 * Files are opened O_DIRECT: buffers, sizes and offsets are multiples of IO_ALIGNMENT (a CHECK),
 * but sizes and offsets of reads only of io_file_read_unit. Nothing is durable before a durable
 * write or a sync has returned ok, and a new, renamed or removed name is durable only after
 * io_dir_sync of its directory. After a failed write or sync the content is unknown and a retry
 * proves nothing: the kernel reports such an error once.
 *
 * Paths that begin with ":memory:" name files that live in this shard's memory budget: the same
 * functions, no durability, gone with the process.
 *
 * Errors: ST_NO_SPACE, ST_NOT_FOUND, ST_EXISTS, ST_IO_ERROR, ST_DENIED, ST_MOUNTED_READ_ONLY,
 * ST_NO_MEMORY, ST_INVALID (a foreign kind of file), of the kernel's files ST_NOT_DIRECTORY. EINTR
 * and EAGAIN are retried inside, short transfers are continued.
 */
#ifndef DISTKV_IO_FILE_H
#define DISTKV_IO_FILE_H

#include "base/limits.h"
#include "base/list.h"
#include "base/status.h"
#include "io/fiber.h"

/* Shares of the device; at most LIMIT_IO_IN_FLIGHT requests are in flight over all classes. */
enum io_class {
    IO_CLASS_LOG,
    IO_CLASS_READ, /* becomes IO_CLASS_BULK by itself: large ones, and those of bulk fibers */
    IO_CLASS_BULK, /* reads that are one of many, or large: small ones do not wait behind them */
    IO_CLASS_COMPACTION,
    IO_CLASS_STREAM,
    IO_CLASS_COUNT
};

enum io_open_flags {
    IO_OPEN_READ = 0,
    IO_OPEN_WRITE = 1 << 0,  /* read and write */
    IO_OPEN_CREATE = 1 << 1, /* must not exist yet */
};

struct io_file; /* opaque; belongs to the shard that opened it */

MAY_YIELD MUST_CHECK status io_file_open(const char *path, u32 flags, struct io_file **out);
/* Waits for operations in flight on the file. file may be NULL. */
MAY_YIELD void io_file_close(struct io_file *file);
/* io_file_close of a file that was opened for writing and then removed. When it has no other name
 * its blocks go back little by little: a disk that is told of many at once is deaf meanwhile. */
MAY_YIELD void io_file_close_removed(struct io_file *file);

/* A power of two, 512 to IO_ALIGNMENT: the least that the file system reads from the disk. What is
 * read at random costs the disk by its pages: half a page less is less than half a page. */
u32 io_file_read_unit(const struct io_file *file);
/* Reads exactly size bytes; beyond the end of the file is ST_END (nothing is promised about the
 * buffer then). */
MAY_YIELD MUST_CHECK status io_file_read(struct io_file *file, enum io_class class, void *buffer,
                                         u32 size, u64 offset);
/* Writes exactly size bytes. durable: returns only when they survive power loss (one request with
 * RWF_DSYNC, or write then fdatasync, whichever the disk does better). */
MAY_YIELD MUST_CHECK status io_file_write(struct io_file *file, enum io_class class,
                                          const void *buffer, u32 size, u64 offset, bool durable);
/* All writes that completed before the call survive power loss after it. */
MAY_YIELD MUST_CHECK status io_file_sync(struct io_file *file);
MAY_YIELD MUST_CHECK status io_file_size(struct io_file *file, u64 *size_out);
MAY_YIELD MUST_CHECK status io_file_truncate(struct io_file *file, u64 size);
/* Reserves blocks up to size bytes and sets the size; content reads as zeros. Overwrites never
 * allocate only once the range has been *written*, too: see io_file_fill. */
MAY_YIELD MUST_CHECK status io_file_allocate(struct io_file *file, u64 size);
/* Allocates, then writes zeros over [0, size) in paced pieces and syncs, so that later writes
 * inside it neither allocate nor convert extents. */
MAY_YIELD MUST_CHECK status io_file_fill(struct io_file *file, u64 size);

/* ---- overlapped operations ---- */

/* Caller-owned; must stay in place, with the buffer, until done was called. */
struct io_op {
    /* set by the caller; NULL: wait with io_op_wait */
    void (*done)(struct io_op *op);
    /* valid in done, or after io_op_wait */
    status result;

    /* private to src/io */
    struct io_file *file;
    void *buffer;
    u64 offset;
    u32 size;
    u32 transferred;
    u8 kind;
    u8 class;
    bool durable;
    bool finished;
    struct list link;
    struct fiber_queue waiters;
    u64 start_ns;
    u64 sim[2];
};

void io_file_read_start(struct io_file *file, struct io_op *op, enum io_class class, void *buffer,
                        u32 size, u64 offset);
void io_file_write_start(struct io_file *file, struct io_op *op, enum io_class class,
                         const void *buffer, u32 size, u64 offset, bool durable);
/* For bytes that have to survive the process, but not the machine before a later io_file_sync: as
 * io_file_write_start, not durable, but where the kernel's cache takes them they are done at once
 * and reported in the next turn. For ranges that were written before (io_file_fill). */
void io_file_write_cached_start(struct io_file *file, struct io_op *op, enum io_class class,
                                const void *buffer, u32 size, u64 offset);
/* For an op whose done is NULL. */
MAY_YIELD status io_op_wait(struct io_op *op);

/* ---- names ---- */

MAY_YIELD MUST_CHECK status io_file_rename(const char *from, const char *to); /* replaces to */
MAY_YIELD MUST_CHECK status io_file_link(const char *from, const char *to);   /* hard link */
MAY_YIELD MUST_CHECK status io_file_unlink(const char *path);
MAY_YIELD MUST_CHECK status io_dir_make(const char *path);   /* ST_EXISTS when it is there */
MAY_YIELD MUST_CHECK status io_dir_remove(const char *path); /* empty ones only */
MAY_YIELD MUST_CHECK status io_dir_sync(const char *path);
/* Calls each(arg, name) for every entry but "." and "..", in byte order of the names. Blocks the
 * shard: for opening and closing only. */
MAY_YIELD MUST_CHECK status io_dir_list(const char *path, void (*each)(void *arg, const char *name),
                                        void *arg);
/* Bytes that may still be written on the file system of path. May block shortly. */
MUST_CHECK status io_disk_free(const char *path, u64 *free_out, u64 *total_out);

/* Takes the directory for this process (a lock file inside it), so that a second server is
 * refused with ST_LOCKED. Retries for a second: a killed process holds its files a little longer,
 * and the lock until the disk has done all that the process has asked of it.
 * Released by io_dir_unlock or with the process. Takes effect once per path and node. */
MAY_YIELD MUST_CHECK status io_dir_lock(const char *path);
void io_dir_unlock(const char *path);

#endif
