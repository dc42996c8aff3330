/* SPDX-License-Identifier: MIT
 *
 * store.h -- the data directory of a node: which stores it holds, and how it changes when the
 * number of cores does.
 *
 *   DIR/LOCK                     held by the running process
 *   DIR/NODE                     magic, format, node id, partition count, generation, the stores
 *   DIR/p0000-2047.3/            a store: partitions 0 to 2047, generation 3
 *   DIR/p2048-4095.3/
 *
 * A store is named by its partitions, never by a shard. Opening with another number of shards
 * makes a new generation: each old store is recovered and flushed, so that only tables and blobs
 * are left; each new store gets hard links to the files that overlap its tokens and a manifest
 * that names them; NODE is replaced (the commit point); the old directories are removed. A file
 * that spans two stores is thus shared and counted by the file system, read by each within its own
 * tokens, and parted by compaction. Whatever NODE does not name is removed at the next open.
 */
#ifndef DISTKV_LSM_STORE_H
#define DISTKV_LSM_STORE_H

#include "lsm/lsm.h"

#define STORE_DIR_BYTES 512u
#define NODE_ID_BYTES   64u

struct store_layout {
    char node_id[NODE_ID_BYTES];
    u32 partition_count;
    u32 shard_count;
    u64 generation;
    struct {
        char dir[STORE_DIR_BYTES];
        u32 partition_first, partition_last;
        u64 token_first, token_last;
    } shards[LIMIT_SHARDS];
};

/* Takes the directory (making it when it is not there), creates or changes its stores so that
 * there is one for each of shard_count shards, and describes them. Called by one shard before any
 * store is opened. node_id: NULL or "" takes the stored one, or makes one up.
 *
 * ST_LOCKED: another server runs here. ST_INVALID: a foreign directory, another node's, or a newer
 * format. ST_CORRUPT as lsm_open. error receives a sentence for the operator. */
MAY_YIELD MUST_CHECK status store_prepare(const char *data_dir, const char *node_id,
                                          u32 shard_count, const struct lsm_options *options,
                                          struct store_layout *out, char *error, size_t error_size);
void store_release(const char *data_dir);

/* lsm_verify over all stores of a data directory that no server uses. ST_NOT_FOUND without a
 * report: this is none, and it was left as it is. */
MAY_YIELD MUST_CHECK status store_verify(const char *data_dir,
                                         void (*report)(void *arg, const char *file, u64 offset,
                                                        const char *what),
                                         void *arg, u64 *files_out, u64 *bytes_out);

#endif
