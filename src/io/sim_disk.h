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
#define SIM_PAGE_SECTORS (SIM_PAGE_BYTES / SIM_SECTOR_BYTES)

struct sim_inode;

/* A write under way; caller-owned between begin and end. */
struct sim_write {
    struct list link; /* sim_inode.writes */
    struct sim_inode *inode;
    const u8 *buffer; /* NULL: zeros */
    u8 *copy;         /* NULL: the data is taken at the end */
    u64 offset;
    u32 size;
};

/* What a sync promised when it began. */
struct sim_sync {
    u64 order;
    u64 size;
};

struct sim_disk *sim_disk_new(const struct sim_disk_options *options, u64 seed);
/* Faults of this disk are counted by sim from now on; host names it, and stays. */
void sim_disk_books_set(struct sim_disk *disk, struct sim *sim, const char *host);
void sim_disk_free(struct sim_disk *disk);
/* Power loss (or, with crash_keeps_all, the end of the process): openings, locks and writes under
 * way are forgotten, but those that outlive it; the buffers of the writes must still be there. */
void sim_disk_crash(struct sim_disk *disk);
void sim_disk_crash_keeps_all_set(struct sim_disk *disk, bool keeps_all);
/* The capacity shrinks to what is used; and is again what it was, unless it was set meanwhile. */
void sim_disk_space_take(struct sim_disk *disk);
void sim_disk_space_give(struct sim_disk *disk);
/* Its chances are 0 from now on, and at least the space of its options is there. */
void sim_disk_faults_end(struct sim_disk *disk);
/* The process ended in order: openings and locks are forgotten. */
void sim_disk_process_ended(struct sim_disk *disk);

/* ---- files ---- */

MUST_CHECK status sim_disk_open(struct sim_disk *disk, const char *path, u32 flags,
                                struct sim_inode **out);
void sim_disk_close(struct sim_disk *disk, struct sim_inode *inode);
MUST_CHECK status sim_inode_read(struct sim_inode *inode, void *buffer, u32 size, u64 offset);
/* ST_NO_SPACE: nothing has begun. Overlap with another write under way is a CHECK. buffer NULL:
 * zeros. */
MUST_CHECK status sim_inode_write_begin(struct sim_inode *inode, struct sim_write *write,
                                        const void *buffer, u32 size, u64 offset);
void sim_inode_write_end(struct sim_write *write, bool durable);
/* Only its first bytes: the disk was not told of the others. size is of whole pages, and not 0. */
void sim_inode_write_cut(struct sim_write *write, u32 size);
/* The size grows as by the write; frees it. */
void sim_inode_write_close(struct sim_write *write, bool extend, bool durable);
/* The process ends, and the write does not: late takes its place, data and all, and is not among
 * those that may not overlap any more. */
void sim_inode_write_outlive(struct sim_write *write, struct sim_write *late);
/* Of the page that begins at done. */
const u8 *sim_write_data(const struct sim_write *write, u64 done);
/* Some sectors were written, some not. A durable write may have failed only when the disk was to
 * keep what it had taken: then all of it is read, and no later sync makes it durable. */
void sim_inode_write_fail(struct sim_write *write, bool durable);
struct sim_sync sim_inode_sync_begin(const struct sim_inode *inode);
void sim_inode_sync_end(struct sim_inode *inode, struct sim_sync sync);
/* What should have become durable never will, unless it is written again. Reads show it until the
 * cache drops it, at any time. */
void sim_inode_sync_fail(struct sim_inode *inode, struct sim_sync sync);
u64 sim_inode_size(const struct sim_inode *inode);
/* In order of making: tells files apart whatever they are called. */
u64 sim_inode_number(const struct sim_inode *inode);
/* How many writes of it have begun. */
u64 sim_inode_write_count(const struct sim_inode *inode);
/* One of its names now, or "(no name)"; valid until names change. */
const char *sim_inode_path(const struct sim_inode *inode);
u32 sim_inode_name_count(const struct sim_inode *inode);
/* It has no name any more, as far as the running system sees. */
bool sim_inode_nameless(const struct sim_inode *inode);
MUST_CHECK status sim_inode_truncate(struct sim_inode *inode, u64 size);
MUST_CHECK status sim_inode_allocate(struct sim_inode *inode, u64 size);

/* ---- damage beyond the promise: sim_damage.c ---- */

/* One bit at offset flips, in whatever is stored. */
void sim_inode_rot(struct sim_inode *inode, u64 offset, u8 mask, struct sim_fault_id id);
/* The sector at offset cannot be read until it is written again. */
void sim_inode_latent_add(struct sim_inode *inode, u64 offset, struct sim_fault_id id);
bool sim_inode_latent(const struct sim_inode *inode, u64 offset, u64 size);
/* Ends a write that says ok and did not happen. cached: it is read until the power fails. */
void sim_inode_write_lose(struct sim_write *write, bool durable, bool cached,
                          struct sim_fault_id id);
/* A place for size bytes in a file of the disk, elsewhere than at offset of inode; false: there is
 * none. */
MUST_CHECK bool sim_inode_elsewhere(struct sim_inode *inode, u64 offset, u32 size,
                                    struct prng *prng, struct sim_inode **inode_out,
                                    u64 *offset_out);
/* Ends a write that went to the other place. */
void sim_inode_write_misdirect(struct sim_write *write, bool durable, struct sim_inode *other,
                               u64 other_offset, struct sim_fault_id id);
void sim_disk_damage_each(const struct sim_disk *disk, const struct sim_node *node,
                          void (*each)(void *arg, const struct sim_damage *damage), void *arg);

/* ---- names ---- */

MUST_CHECK status sim_disk_rename(struct sim_disk *disk, const char *from, const char *to);
MUST_CHECK status sim_disk_link(struct sim_disk *disk, const char *from, const char *to);
MUST_CHECK status sim_disk_unlink(struct sim_disk *disk, const char *path);
MUST_CHECK status sim_disk_dir_make(struct sim_disk *disk, const char *path);
MUST_CHECK status sim_disk_dir_remove(struct sim_disk *disk, const char *path);
/* order_out: for sim_disk_dir_sync_end. */
MUST_CHECK status sim_disk_dir_sync_begin(struct sim_disk *disk, const char *path, u64 *order_out);
void sim_disk_dir_sync_end(struct sim_disk *disk, const char *path, u64 order);
/* Something was renamed in it and that is not durable. */
bool sim_disk_dir_renamed(const struct sim_disk *disk, const char *path);
MUST_CHECK status sim_disk_dir_list(struct sim_disk *disk, const char *path,
                                    void (*each)(void *arg, const char *name), void *arg);
void sim_disk_space(const struct sim_disk *disk, u64 *free_out, u64 *total_out);
/* ST_LOCKED when it is held. */
MUST_CHECK status sim_disk_dir_lock(struct sim_disk *disk, const char *path);
void sim_disk_dir_unlock(struct sim_disk *disk, const char *path);

#endif
