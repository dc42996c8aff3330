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
 * The index is linear hashing (W. Litwin, 1980) over segments of 256 buckets: it grows or shrinks
 * by one bucket at a time, so there is never a resize to wait for. A bucket is one cache line of
 * seven places, each an address with 16 bits of the hash above it, which tell nearly always which
 * object to look at: a hit costs one miss in the index and those of the object. The ghost is a
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
    struct list link; /* in its queue */
    u32 hash;         /* well mixed */
    u32 size;         /* bytes that count, with the allocator's rounding */
    u8 frequency;
    u8 queue;    /* enum s3fifo_queue */
    u16 owner16; /* these two fill the padding; free for the cache around this */
    u32 owner32;
};

#define S3FIFO_PLACES 7u
#define S3FIFO_TAG_AT 48u

struct s3fifo_bucket {
    u64 places[S3FIFO_PLACES]; /* tag, address of a node; those in use come first */
    struct s3fifo_bucket *more;
};
static_assert(sizeof(struct s3fifo_bucket) == 64, "a cache line");

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

/* Where nodes with that hash are to be looked for, until the next insertion or removal. */
const struct s3fifo_bucket *s3fifo_bucket(const struct s3fifo *cache, u32 hash);

/* The candidates for hash one after another, from *place = 0 on; NULL: no more. One of 65,536
 * others comes along: the caller compares. */
static inline struct s3fifo_node *
s3fifo_next(const struct s3fifo_bucket **bucket, u32 *place, u32 hash)
{
    for (; *bucket != NULL; *bucket = (*bucket)->more, *place = 0) {
        while (*place < S3FIFO_PLACES) {
            u64 value = (*bucket)->places[(*place)++];
            if (value >> S3FIFO_TAG_AT == hash >> 16 && value != 0)
                return (struct s3fifo_node *)(uintptr_t)(value & ((1ull << S3FIFO_TAG_AT) - 1));
        }
    }
    return NULL;
}

static inline void
s3fifo_hit(struct s3fifo_node *node)
{
    if (node->frequency < S3FIFO_FREQUENCY_MAX) node->frequency++;
}
/* hash and size are set. Into main when the ghost knows it, else into small. False: no memory, not
 * inserted. */
MUST_CHECK bool s3fifo_insert(struct s3fifo *cache, struct s3fifo_node *node);
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
