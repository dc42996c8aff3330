/* SPDX-License-Identifier: MIT
 *
 * memfs.h -- the files behind paths that begin with ":memory:".
 *
 * One memfs belongs to one shard and lives inside its memory budget; no other shard sees its names.
 * Both backends hold one per shard and answer the functions of file.h with it; nothing here waits,
 * so the backend decides when an overlapped operation is reported as finished (never from inside
 * its start). Order of calls: memfs_init; open, read, write ...; close of every file; memfs_deinit.
 *
 * ":memory:" itself is the root directory and always there; ":memory:/a/b" is file or directory b
 * in directory a, which must exist. Repeated and trailing slashes do not count.
 */
#ifndef DISTKV_IO_MEMFS_H
#define DISTKV_IO_MEMFS_H

#include "base/list.h"
#include "base/mem.h"
#include "base/status.h"

/* Content is kept in chunks of this size; a chunk that was never written costs nothing. */
#define MEMFS_CHUNK_BYTES (16u << 10)
/* Longest canonical path, with its end. */
#define MEMFS_PATH_BYTES 512u

struct memfs_file; /* one content, with any number of names and openings */

struct memfs {
    struct budget budget; /* content, names and tables; its parent bounds it, too */
    struct list names;    /* struct memfs_name, in byte order of their paths */
    u64 open_count;       /* openings not closed */
    u64 name_count;
};

static inline bool
memfs_path(const char *path)
{
    return strncmp(path, ":memory:", 8) == 0;
}

/* Everything counts against parent; limit_bytes is a further bound, UINT64_MAX for none. */
void memfs_init(struct memfs *fs, struct budget *parent, u64 limit_bytes);
/* Frees all names and contents. Every file must be closed. */
void memfs_deinit(struct memfs *fs);

/* flags: enum io_open_flags. The same errors as io_file_open. */
MUST_CHECK status memfs_open(struct memfs *fs, const char *path, u32 flags,
                             struct memfs_file **out);
void memfs_close(struct memfs_file *file);
/* Exactly size bytes, or ST_END. */
MUST_CHECK status memfs_read(const struct memfs_file *file, void *buffer, u32 size, u64 offset);
/* Exactly size bytes, or ST_NO_SPACE and (where it grew the file) nothing. */
MUST_CHECK status memfs_write(struct memfs_file *file, const void *buffer, u32 size, u64 offset);
u64 memfs_size(const struct memfs_file *file);
MUST_CHECK status memfs_truncate(struct memfs_file *file, u64 size);
/* io_file_allocate and io_file_fill: takes the memory for [0, size) and sets the size. */
MUST_CHECK status memfs_allocate(struct memfs_file *file, u64 size);
/* io_file_fill: the same, and the range reads as zeros. */
MUST_CHECK status memfs_fill(struct memfs_file *file, u64 size);

MUST_CHECK status memfs_rename(struct memfs *fs, const char *from, const char *to);
MUST_CHECK status memfs_link(struct memfs *fs, const char *from, const char *to);
MUST_CHECK status memfs_unlink(struct memfs *fs, const char *path);
MUST_CHECK status memfs_dir_make(struct memfs *fs, const char *path);
MUST_CHECK status memfs_dir_remove(struct memfs *fs, const char *path);
/* Only checks that the directory is there. */
MUST_CHECK status memfs_dir_sync(const struct memfs *fs, const char *path);
/* each may create and remove names, and may yield when the caller may. */
MUST_CHECK status memfs_dir_list(const struct memfs *fs, const char *path,
                                 void (*each)(void *arg, const char *name), void *arg);
MUST_CHECK status memfs_disk_free(const struct memfs *fs, u64 *free_out, u64 *total_out);
/* io_dir_lock and io_dir_unlock on these paths: nobody else can see them, so they only check the
 * directory and do nothing. */
MUST_CHECK status memfs_dir_lock(const struct memfs *fs, const char *path);

#endif
