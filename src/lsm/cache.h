/* SPDX-License-Identifier: MIT
 *
 * cache.h -- the two caches of a store: rows first (hashed keys have no block locality), then
 * verified blocks of tables. Both evict by S3-FIFO (Yang et al., SOSP 2023): a small queue (10 %),
 * a main queue and a ghost of fingerprints, so one scan cannot empty them. They share one budget:
 * what one does not use of its share is lent to the other, and when both use theirs, the share of
 * that with more hits per byte grows. Growth of hash tables is incremental, no
 * resize ever stops the shard, and so is what clears, drops or shrinks: each call that adds frees a
 * little, and whoever needs the memory goes on with the steps. Single-threaded.
 */
#ifndef DISTKV_LSM_CACHE_H
#define DISTKV_LSM_CACHE_H

#include "base/mem.h"
#include "lsm/entry.h"
#include "lsm/s3fifo.h"

/* Values above this never get into the row cache: one of them costs a thousand small rows. */
#define ROW_CACHE_VALUE_BYTES_MAX 16384u

/* ---- rows: the newest version of a key, also "it is deleted" and "there is none" ---- */

struct row_cache;

MUST_CHECK struct row_cache *row_cache_new(struct budget *budget, u64 limit_bytes);
void row_cache_free(struct row_cache *cache);
/* out's bytes live until the next call on this cache. False: not cached. A cached absence is
 * returned as kind ENTRY_DELETE. */
bool row_cache_get(struct row_cache *cache, u16 keyspace, u64 key_hash, struct bytes key,
                   struct entry *out);
/* Hints for row_cache_get: the place in the index, good until the cache changes; then the row. */
const struct s3fifo_bucket *row_cache_prefetch_bucket(const struct row_cache *cache, u16 keyspace,
                                                      u64 key_hash);
/* Whether there is one: of this key, nearly always. */
bool row_cache_prefetch_row(const struct s3fifo_bucket *bucket, u16 keyspace, u64 key_hash);
/* The newest of a key, after a read from tables: admits or not. An entry with ENTRY_BLOB is refused. */
void row_cache_put(struct row_cache *cache, u16 keyspace, u64 key_hash, const struct entry *entry);
/* After every write of a key: the row that there is of it becomes the new version, or is not seen
 * again. What is not cached stays so. */
void row_cache_write(struct row_cache *cache, u16 keyspace, u64 key_hash,
                     const struct entry *entry);
/* After a range delete: no row is seen again. */
void row_cache_clear(struct row_cache *cache);
void row_cache_limit_set(struct row_cache *cache, u64 limit_bytes);
/* Frees a little of what was cleared or is above the limit. True: there is more. */
bool row_cache_step(struct row_cache *cache);

/* ---- blocks: decompressed, checked ---- */

struct block_cache;

struct block {
    u64 file_id;
    u64 offset; /* in the table file: identifies it together with file_id */
    u32 size;
    u32 pin_count;
    u8 *data;
    void *owner; /* the cache, or NULL for a block that is not cached */
    struct budget *budget;
    /* private */
    struct s3fifo_node node;
    struct list file_link; /* with other blocks of the same file */
};

MUST_CHECK struct block_cache *block_cache_new(struct budget *budget, u64 limit_bytes);
void block_cache_free(struct block_cache *cache);
/* Pinned, or NULL. */
struct block *block_cache_get(struct block_cache *cache, u64 file_id, u64 offset);
/* A pinned block with room for size bytes that is in no cache yet; NULL: no memory. */
MUST_CHECK struct block *block_new(struct budget *budget, u64 file_id, u64 offset, u32 size);
/* Offers a filled block; it stays pinned for the caller. If one is there already, the new block
 * stays private. */
void block_cache_insert(struct block_cache *cache, struct block *block);
void block_cache_unpin(struct block *block);
/* The file is gone, and no other one will have its number. */
void block_cache_drop_file(struct block_cache *cache, u64 file_id);
void block_cache_limit_set(struct block_cache *cache, u64 limit_bytes);
/* Frees a little of what was dropped or is above the limit. True: there is more. */
bool block_cache_step(struct block_cache *cache);

struct cache_stats {
    u64 bytes, limit_bytes, entries, hits, misses, evictions;
};
/* Walk everything; true when every invariant holds. */
bool row_cache_check(const struct row_cache *cache);
bool block_cache_check(const struct block_cache *cache);
void row_cache_stats(const struct row_cache *cache, struct cache_stats *out);
void block_cache_stats(const struct block_cache *cache, struct cache_stats *out);

#endif
