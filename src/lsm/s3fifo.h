/* SPDX-License-Identifier: MIT
 *
 * s3fifo.h -- what both caches share: the eviction order, the ghost, and the hash index.
 *
 *            new ----------> small (10 %) --not used--> out, remembered in the ghost
 *                              | used twice
 *   in the ghost ----------> main (90 %) ---not used--> out
 *                              ^ | used: once more round, one use less
 *                              +-+
 *
 * Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. The node lies inside
 * the cached object; objects are owned and freed by the cache around this.
 *
 * The index is linear hashing (W. Litwin, 1980) over segments of 512 buckets: it grows or shrinks
 * by one bucket per insertion or removal, so there is never a resize to wait for. The ghost is a
 * table of (fingerprint, time) in four-way sets on pages that come with the first use; an element
 * is in it when its time lies within the last as many evictions as main may have objects.
 */
#ifndef DISTKV_LSM_S3FIFO_H
#define DISTKV_LSM_S3FIFO_H

#include "base/list.h"
#include "base/mem.h"

#define S3FIFO_FREQUENCY_MAX 3u
/* Objects that a single eviction may send round main again: bounds one call. */
#define S3FIFO_REINSERT_MAX 64u

enum s3fifo_queue { S3FIFO_NONE, S3FIFO_SMALL, S3FIFO_MAIN };

struct s3fifo_node {
    struct list link;          /* in its queue */
    struct s3fifo_node *chain; /* in its bucket */
    u32 hash;                  /* well mixed */
    u32 size;                  /* bytes that count, with the allocator's rounding */
    u8 frequency;
    u8 queue;    /* enum s3fifo_queue */
    u16 owner16; /* these two fill the padding; free for the cache around this */
    u32 owner32;
};

struct s3fifo_bucket_segment;
struct s3fifo_ghost_page;

struct s3fifo {
    /* configuration */
    struct budget *budget; /* of index and ghost */
    u64 limit_bytes;       /* of objects, index and ghost together */
    u32 object_bytes;      /* what an object has, about, until enough are there to know */

    /* state */
    struct list small, main;
    u64 small_bytes, main_bytes;
    u64 small_count, main_count;
    struct s3fifo_bucket_segment **segments;
    u32 segment_count, segment_capacity;
    u32 bucket_count;
    struct s3fifo_ghost_page **ghost_pages;
    u32 ghost_page_count; /* of the directory; a power of two */
    u32 ghost_clock;      /* evictions remembered so far */
    u64 overhead_bytes;   /* of index and ghost */

    /* statistics */
    u64 hits, misses, evictions;
};

MUST_CHECK bool s3fifo_init(struct s3fifo *cache, struct budget *budget, u64 limit_bytes,
                            u32 object_bytes);
/* Every node must have been removed. */
void s3fifo_deinit(struct s3fifo *cache);
/* Also sizes the ghost anew; evicting down to the limit is the caller's. */
void s3fifo_limit_set(struct s3fifo *cache, u64 limit_bytes);

/* The first node of the bucket of hash: the caller follows chain and compares. */
struct s3fifo_node *s3fifo_bucket(const struct s3fifo *cache, u32 hash);
/* A hint for that. */
void s3fifo_prefetch_bucket(const struct s3fifo *cache, u32 hash);
static inline void
s3fifo_hit(struct s3fifo_node *node)
{
    if (node->frequency < S3FIFO_FREQUENCY_MAX) node->frequency++;
}
/* hash and size are set. Into main when the ghost knows it, else into small. */
void s3fifo_insert(struct s3fifo *cache, struct s3fifo_node *node);
void s3fifo_remove(struct s3fifo *cache, struct s3fifo_node *node);
/* Chooses, removes and remembers the next object to go; NULL when there is none. */
struct s3fifo_node *s3fifo_evict(struct s3fifo *cache);

static inline u64
s3fifo_bytes(const struct s3fifo *cache)
{
    return cache->small_bytes + cache->main_bytes + cache->overhead_bytes;
}
static inline u64
s3fifo_count(const struct s3fifo *cache)
{
    return cache->small_count + cache->main_count;
}
/* Walks queues and buckets. */
bool s3fifo_check(const struct s3fifo *cache);

/* What the allocator really hands out for size: its classes are four to a power of two. Objects
 * are allocated at this size, so that what is accounted is what is resident. */
static inline u32
s3fifo_round_size(u64 size)
{
    CHECK(size > 0 && size < UINT32_MAX / 2);
    if (size <= 64) return (u32)align_up(size, 16);
    u32 shift = 63u - (u32)__builtin_clzll(size - 1) - 2;
    return (u32)align_up(size, 1ull << shift);
}

#endif
