/* SPDX-License-Identifier: MIT
 *
 * sim_disk.h -- a disk that remembers what is durable and what is not. Pure: no events, no time;
 * sim_file.c decides when a request begins and ends and whether it fails.
 *
 *   what reads return  =  durable content + versions that were written and not yet made durable
 *   after a crash      =  per 512-byte sector any one of these
 *
 * The same for names: a map that everybody sees, a durable map, and the operations between them in
 * their order; a crash applies any subset of the operations, a directory's sync all of its own.
 */
#ifndef DISTKV_IO_SIM_DISK_H
#define DISTKV_IO_SIM_DISK_H

#include "base/list.h"
#include "base/prng.h"
#include "io/sim.h"

#define SIM_PAGE_BYTES   4096u
#define SIM_SECTOR_BYTES 512u

struct sim_inode;

/* A write under way; caller-owned between begin and end. */
struct sim_write {
    struct list link; /* sim_inode.writes */
    struct sim_inode *inode;
    const u8 *buffer;
    u8 *copy; /* NULL: the data is taken at the end */
    u64 offset;
    u32 size;
};

/* What a sync promised when it began. */
struct sim_sync {
    u64 order;
    u64 size;
};

struct sim_disk *sim_disk_new(const struct sim_disk_options *options, u64 seed);
void sim_disk_free(struct sim_disk *disk);
/* Power loss (or, with crash_keeps_all, the end of the process): openings, locks and writes under
 * way are forgotten; the buffers of the writes must still be there. */
void sim_disk_crash(struct sim_disk *disk);
void sim_disk_crash_keeps_all_set(struct sim_disk *disk, bool keeps_all);
/* The process ended in order: openings and locks are forgotten. */
void sim_disk_process_ended(struct sim_disk *disk);

/* ---- files ---- */

MUST_CHECK status sim_disk_open(struct sim_disk *disk, const char *path, u32 flags,
                                struct sim_inode **out);
void sim_disk_close(struct sim_disk *disk, struct sim_inode *inode);
MUST_CHECK status sim_inode_read(const struct sim_inode *inode, void *buffer, u32 size, u64 offset);
/* ST_NO_SPACE: nothing has begun. Overlap with another write under way is a CHECK. */
MUST_CHECK status sim_inode_write_begin(struct sim_inode *inode, struct sim_write *write,
                                        const void *buffer, u32 size, u64 offset);
void sim_inode_write_end(struct sim_write *write, bool durable);
/* Some sectors were written, some not. A durable write may have failed only when the disk was to
 * keep what it had taken: then all of it is read, and no later sync makes it durable. */
void sim_inode_write_fail(struct sim_write *write, bool durable);
struct sim_sync sim_inode_sync_begin(const struct sim_inode *inode);
void sim_inode_sync_end(struct sim_inode *inode, struct sim_sync sync);
/* What should have become durable never will, unless it is written again. */
void sim_inode_sync_fail(struct sim_inode *inode, struct sim_sync sync);
u64 sim_inode_size(const struct sim_inode *inode);
MUST_CHECK status sim_inode_truncate(struct sim_inode *inode, u64 size);
MUST_CHECK status sim_inode_allocate(struct sim_inode *inode, u64 size);

/* ---- names ---- */

MUST_CHECK status sim_disk_rename(struct sim_disk *disk, const char *from, const char *to);
MUST_CHECK status sim_disk_link(struct sim_disk *disk, const char *from, const char *to);
MUST_CHECK status sim_disk_unlink(struct sim_disk *disk, const char *path);
MUST_CHECK status sim_disk_dir_make(struct sim_disk *disk, const char *path);
MUST_CHECK status sim_disk_dir_remove(struct sim_disk *disk, const char *path);
/* order_out: for sim_disk_dir_sync_end. */
MUST_CHECK status sim_disk_dir_sync_begin(struct sim_disk *disk, const char *path, u64 *order_out);
void sim_disk_dir_sync_end(struct sim_disk *disk, const char *path, u64 order);
MUST_CHECK status sim_disk_dir_list(struct sim_disk *disk, const char *path,
                                    void (*each)(void *arg, const char *name), void *arg);
void sim_disk_space(const struct sim_disk *disk, u64 *free_out, u64 *total_out);
/* ST_LOCKED when it is held. */
MUST_CHECK status sim_disk_dir_lock(struct sim_disk *disk, const char *path);
void sim_disk_dir_unlock(struct sim_disk *disk, const char *path);

#endif
