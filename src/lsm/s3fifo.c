/* SPDX-License-Identifier: MIT
 *
 * s3fifo.c -- see s3fifo.h.
 *
 * Invariants
 *   S1  a node is in exactly one queue and once in the bucket of its hash, or in neither.
 *   S2  the byte and object counts of a queue are the sums over its nodes.
 *   S3  bucket_count buckets exist, all segments below segment_count are allocated.
 *   S4  places in use come first: no bucket behind an unfilled one, none of them empty.
 */
#include "lsm/s3fifo.h"

#include "base/fault.h"

#define SEGMENT_BUCKETS 256u
/* Nodes per bucket, on average. Those that are to be split next hold up to twice as many. */
#define BUCKET_LOAD     3u
#define GHOST_WAYS      4u
#define GHOST_PAGE_SETS 128u
#define GHOST_SLOTS_MIN (GHOST_PAGE_SETS * GHOST_WAYS)
#define GHOST_SLOTS_MAX (1u << 22)
/* With as many objects their average is taken for what the next ones have. */
#define OBJECTS_KNOWN 1000u

struct s3fifo_bucket_segment {
    struct s3fifo_bucket buckets[SEGMENT_BUCKETS];
};

struct ghost_slot {
    u32 fingerprint;
    u32 time; /* 0: empty */
};

struct s3fifo_ghost_page {
    struct ghost_slot slots[GHOST_PAGE_SETS][GHOST_WAYS];
};

static_assert(sizeof(struct s3fifo_bucket_segment) == 16384, "a size class without waste");
static_assert(sizeof(struct s3fifo_ghost_page) == 4096, "a size class without waste");

/* ---- index ---- */

static u32
bucket_index(const struct s3fifo *cache, u32 hash)
{
    /* mask covers the smallest power of two that is at least bucket_count; buckets beyond
     * bucket_count are not split off yet and live in their parent. */
    u32 top = 31u - (u32)__builtin_clz(cache->bucket_count);
    u32 index = hash & (u32)((2ull << top) - 1);
    if (index >= cache->bucket_count) index &= (1u << top) - 1;
    return index;
}

static struct s3fifo_bucket *
bucket_at(const struct s3fifo *cache, u32 index)
{
    return &cache->segments[index / SEGMENT_BUCKETS]->buckets[index % SEGMENT_BUCKETS];
}

const struct s3fifo_bucket *
s3fifo_bucket(const struct s3fifo *cache, u32 hash)
{
    return bucket_at(cache, bucket_index(cache, hash));
}

static struct s3fifo_node *
place_node(u64 place)
{
    return (struct s3fifo_node *)(uintptr_t)(place & ((1ull << S3FIFO_TAG_AT) - 1));
}

static u32
bucket_used(const struct s3fifo_bucket *bucket)
{
    u32 used = 0;
    while (used < S3FIFO_PLACES && bucket->places[used] != 0)
        used++;
    return used;
}

static void
more_free(struct s3fifo *cache, struct s3fifo_bucket **at)
{
    mem_free(cache->budget, *at, sizeof(**at));
    *at = NULL;
    cache->overhead_bytes -= sizeof(struct s3fifo_bucket);
}

static bool
bucket_put(struct s3fifo *cache, struct s3fifo_bucket *bucket, u64 place)
{
    u32 used;
    while ((used = bucket_used(bucket)) == S3FIFO_PLACES) {
        if (bucket->more == NULL) {
            struct s3fifo_bucket *more =
                mem_alloc_aligned(cache->budget, sizeof(*more), sizeof(*more));
            if (more == NULL) return MARKED("lsm.s3fifo.bucket_no_memory", false);
            *more = (struct s3fifo_bucket){0};
            bucket->more = more;
            cache->overhead_bytes += sizeof(*more);
        }
        bucket = bucket->more;
    }
    bucket->places[used] = place;
    return true;
}

/* Fills the hole with the last one of the bucket. */
static void
bucket_take(struct s3fifo *cache, struct s3fifo_bucket *bucket, const struct s3fifo_node *node)
{
    u64 *hole = NULL;
    struct s3fifo_bucket **last = NULL;
    for (struct s3fifo_bucket *b = bucket;; last = &b->more, b = b->more) {
        for (u32 i = 0; hole == NULL && i < S3FIFO_PLACES; i++)
            if (place_node(b->places[i]) == node) hole = &b->places[i];
        if (b->more != NULL) continue;
        CHECK(hole != NULL); /* S1 */
        u32 used = bucket_used(b);
        *hole = b->places[used - 1];
        b->places[used - 1] = 0;
        if (used == 1 && last != NULL) more_free(cache, last);
        return;
    }
}

static bool
segment_add(struct s3fifo *cache)
{
    if (cache->segment_count == cache->segment_capacity) {
        u32 capacity = cache->segment_capacity == 0 ? 8 : cache->segment_capacity * 2;
        size_t old_size = cache->segment_capacity * sizeof(cache->segments[0]);
        size_t new_size = capacity * sizeof(cache->segments[0]);
        void *grown = mem_realloc(cache->budget, cache->segments, old_size, new_size);
        if (grown == NULL) return MARKED("lsm.s3fifo.segments_no_memory", false);
        cache->segments = grown;
        cache->segment_capacity = capacity;
        cache->overhead_bytes += new_size - old_size;
    }
    struct s3fifo_bucket_segment *segment =
        mem_alloc_aligned(cache->budget, sizeof(*segment), sizeof(struct s3fifo_bucket));
    if (segment == NULL) return MARKED("lsm.s3fifo.segment_no_memory", false);
    memset(segment, 0, sizeof(*segment));
    cache->segments[cache->segment_count++] = segment;
    cache->overhead_bytes += sizeof(*segment);
    return true;
}

static void
segment_drop(struct s3fifo *cache)
{
    cache->segment_count--;
    mem_free(cache->budget, cache->segments[cache->segment_count],
             sizeof(struct s3fifo_bucket_segment));
    cache->overhead_bytes -= sizeof(struct s3fifo_bucket_segment);
}

/* bucket_put with lines from a list instead of the allocator. */
static void
bucket_put_spare(struct s3fifo_bucket *bucket, u64 place, struct s3fifo_bucket **spare)
{
    u32 used;
    while ((used = bucket_used(bucket)) == S3FIFO_PLACES) {
        if (bucket->more == NULL) {
            struct s3fifo_bucket *more = *spare;
            CHECK(more != NULL); /* whoever calls this has counted them */
            *spare = more->more;
            *more = (struct s3fifo_bucket){0};
            bucket->more = more;
        }
        bucket = bucket->more;
    }
    bucket->places[used] = place;
}

static void
spare_free(struct s3fifo *cache, struct s3fifo_bucket *spare)
{
    while (spare != NULL) {
        struct s3fifo_bucket *next = spare->more;
        more_free(cache, &spare);
        spare = next;
    }
}

/* Takes all of a bucket out of it and deals it to two: those whose hash has the bit to `ones`.
 * Either may be the bucket itself. Its own lines suffice: n nodes in two buckets take at most
 * n / 7 rounded up and one more, and each bucket's first line is there. */
static void
bucket_deal(struct s3fifo_bucket *bucket, u32 bit, struct s3fifo_bucket *zeros,
            struct s3fifo_bucket *ones, struct s3fifo_bucket **spare)
{
    struct s3fifo_bucket line = *bucket;
    *bucket = (struct s3fifo_bucket){0};
    for (;;) {
        for (u32 i = 0; i < S3FIFO_PLACES && line.places[i] != 0; i++) {
            u64 place = line.places[i];
            /* Above 16 the bit lies in the tag: the node need not be fetched. */
            bool one = bit >= 16 ? (place >> (S3FIFO_TAG_AT + bit - 16) & 1) != 0
                                 : (place_node(place)->hash >> bit & 1) != 0;
            bucket_put_spare(one ? ones : zeros, place, spare);
        }
        struct s3fifo_bucket *next = line.more;
        if (next == NULL) return;
        line = *next;
        next->more = *spare;
        *spare = next;
    }
}

static void
bucket_split(struct s3fifo *cache)
{
    u32 added = cache->bucket_count;
    if (added == UINT32_MAX / 2) return;
    if (added % SEGMENT_BUCKETS == 0 && added / SEGMENT_BUCKETS == cache->segment_count) {
        if (!segment_add(cache)) {
            MARK("lsm.s3fifo.index_no_memory"); /* buckets grow longer: slower, still right */
            return;
        }
    }
    u32 bit = 31u - (u32)__builtin_clz(added);
    struct s3fifo_bucket *parent = bucket_at(cache, added & ~(1u << bit));
    struct s3fifo_bucket *other = bucket_at(cache, added);
    struct s3fifo_bucket *spare = NULL;
    bucket_deal(parent, bit, parent, other, &spare);
    spare_free(cache, spare);
    cache->bucket_count++;
}

static void
bucket_measure(const struct s3fifo_bucket *bucket, u32 *lines, u32 *nodes)
{
    for (; bucket != NULL; bucket = bucket->more) {
        *lines += 1;
        *nodes += bucket_used(bucket);
    }
}

static void
bucket_merge(struct s3fifo *cache)
{
    u32 last = cache->bucket_count - 1;
    u32 bit = 31u - (u32)__builtin_clz(last);
    struct s3fifo_bucket *parent = bucket_at(cache, last & ~(1u << bit));
    struct s3fifo_bucket *gone = bucket_at(cache, last);
    u32 lines = 0, nodes = 0;
    bucket_measure(parent, &lines, &nodes);
    bucket_measure(gone, &lines, &nodes);
    if (nodes > (lines - 1) * S3FIFO_PLACES) {
        MARK("lsm.s3fifo.merge_put_off"); /* it would take memory; other nodes go, too */
        return;
    }
    struct s3fifo_bucket *spare = NULL;
    bucket_deal(gone, bit, parent, parent, &spare);
    spare_free(cache, spare);
    cache->bucket_count--;
    if (last % SEGMENT_BUCKETS == 0 && last / SEGMENT_BUCKETS + 1 == cache->segment_count)
        segment_drop(cache);
}

/* ---- ghost ---- */

static void
ghost_deinit(struct s3fifo *cache)
{
    for (u32 i = 0; i < cache->ghost_page_count; i++) {
        if (cache->ghost_pages[i] == NULL) continue;
        mem_free(cache->budget, cache->ghost_pages[i], sizeof(struct s3fifo_ghost_page));
        cache->overhead_bytes -= sizeof(struct s3fifo_ghost_page);
    }
    size_t size = cache->ghost_page_count * sizeof(cache->ghost_pages[0]);
    mem_free(cache->budget, cache->ghost_pages, size);
    cache->overhead_bytes -= size;
    cache->ghost_pages = NULL;
    cache->ghost_page_count = 0;
}

/* A slot for each object that fits, by what objects have turned out to be. The ghost is advice:
 * without memory for it the cache works, a little worse. */
static void
ghost_size_set(struct s3fifo *cache)
{
    u64 count = s3fifo_count(cache);
    u64 object_bytes = cache->object_bytes;
    if (count >= OBJECTS_KNOWN) object_bytes = (cache->small_bytes + cache->main_bytes) / count;
    u64 wanted = CLAMP(cache->limit_bytes / object_bytes, GHOST_SLOTS_MIN, GHOST_SLOTS_MAX);
    u32 pages = 1;
    while ((u64)pages * GHOST_SLOTS_MIN < wanted)
        pages *= 2;
    if (cache->ghost_page_count != 0 && pages <= cache->ghost_page_count &&
        pages >= cache->ghost_page_count / 4)
        return;
    ghost_deinit(cache);
    size_t size = pages * sizeof(cache->ghost_pages[0]);
    cache->ghost_pages = mem_alloc_zero(cache->budget, size);
    if (cache->ghost_pages == NULL) {
        MARK("lsm.s3fifo.ghost_no_memory");
        return;
    }
    cache->ghost_page_count = pages;
    cache->overhead_bytes += size;
}

static u32
ghost_set(const struct s3fifo *cache, u32 hash, u32 *page_out)
{
    u32 mixed = hash * 0x9e3779b1u;
    mixed ^= mixed >> 15;
    *page_out = mixed / GHOST_PAGE_SETS & (cache->ghost_page_count - 1);
    return mixed % GHOST_PAGE_SETS;
}

static bool
ghost_take(struct s3fifo *cache, u32 hash)
{
    if (cache->ghost_page_count == 0) return false;
    u32 page;
    u32 set = ghost_set(cache, hash, &page);
    if (cache->ghost_pages[page] == NULL) return false;
    u64 slots = (u64)cache->ghost_page_count * GHOST_SLOTS_MIN;
    /* Main may still be empty: what it can hold counts, or a round of more keys than fit would find
     * each one forgotten, for ever. */
    u64 window = MIN(MAX(s3fifo_count(cache) * 9 / 10, 64), slots * 3 / 4);
    struct ghost_slot *slot = cache->ghost_pages[page]->slots[set];
    for (u32 i = 0; i < GHOST_WAYS; i++) {
        if (slot[i].time == 0 || slot[i].fingerprint != hash) continue;
        bool known = (u32)(cache->ghost_clock - slot[i].time) < window;
        slot[i].time = 0;
        return known;
    }
    return false;
}

static void
ghost_add(struct s3fifo *cache, u32 hash)
{
    if (cache->ghost_page_count == 0) return;
    u32 page;
    u32 set = ghost_set(cache, hash, &page);
    if (cache->ghost_pages[page] == NULL) {
        cache->ghost_pages[page] = mem_alloc_zero(cache->budget, sizeof(struct s3fifo_ghost_page));
        if (cache->ghost_pages[page] == NULL) {
            MARK("lsm.s3fifo.ghost_page_no_memory");
            return;
        }
        cache->overhead_bytes += sizeof(struct s3fifo_ghost_page);
    }
    if (++cache->ghost_clock == 0) cache->ghost_clock = 1;
    struct ghost_slot *slot = cache->ghost_pages[page]->slots[set];
    u32 oldest = 0;
    for (u32 i = 1; i < GHOST_WAYS; i++) {
        if (slot[oldest].time == 0) break;
        if (slot[i].time == 0 ||
            cache->ghost_clock - slot[i].time > cache->ghost_clock - slot[oldest].time)
            oldest = i;
    }
    slot[oldest] = (struct ghost_slot){.fingerprint = hash, .time = cache->ghost_clock};
}

/* ---- queues ---- */

static void
queue_add(struct s3fifo *cache, struct s3fifo_node *node, enum s3fifo_queue queue)
{
    bool small = queue == S3FIFO_SMALL;
    node->queue = (u8)queue;
    list_push_back(small ? &cache->small : &cache->main, &node->link);
    *(small ? &cache->small_bytes : &cache->main_bytes) += node->size;
    *(small ? &cache->small_count : &cache->main_count) += 1;
}

static void
queue_del(struct s3fifo *cache, struct s3fifo_node *node)
{
    bool small = node->queue == S3FIFO_SMALL;
    list_del(&node->link);
    *(small ? &cache->small_bytes : &cache->main_bytes) -= node->size;
    *(small ? &cache->small_count : &cache->main_count) -= 1;
    node->queue = S3FIFO_NONE;
}

bool
s3fifo_insert(struct s3fifo *cache, struct s3fifo_node *node)
{
    CHECK((u64)(uintptr_t)node >> S3FIFO_TAG_AT == 0);
    u64 place = (u64)(uintptr_t)node | (u64)(node->hash >> 16) << S3FIFO_TAG_AT;
    if (!bucket_put(cache, bucket_at(cache, bucket_index(cache, node->hash)), place)) return false;
    node->frequency = 0;
    queue_add(cache, node, ghost_take(cache, node->hash) ? S3FIFO_MAIN : S3FIFO_SMALL);
    if (s3fifo_count(cache) > (u64)cache->bucket_count * BUCKET_LOAD) bucket_split(cache);
    return true;
}

void
s3fifo_remove(struct s3fifo *cache, struct s3fifo_node *node)
{
    CHECK(node->queue != S3FIFO_NONE);
    bucket_take(cache, bucket_at(cache, bucket_index(cache, node->hash)), node);
    queue_del(cache, node);
    /* Far below the load of growth, so that a cache that breathes does not split and merge. Two at
     * a time: removals alone must be able to follow. */
    for (u32 i = 0; i < 2; i++) {
        if (cache->bucket_count > SEGMENT_BUCKETS &&
            s3fifo_count(cache) < (u64)cache->bucket_count * BUCKET_LOAD / 4)
            bucket_merge(cache);
    }
}

struct s3fifo_node *
s3fifo_evict(struct s3fifo *cache)
{
    for (u32 moved = 0;;) {
        bool from_small = cache->small_count > 0 &&
                          (cache->main_count == 0 || cache->small_bytes >= cache->limit_bytes / 10);
        if (!from_small && cache->main_count == 0) return NULL;
        struct list *first = list_first(from_small ? &cache->small : &cache->main);
        struct s3fifo_node *node = list_entry(first, struct s3fifo_node, link);
        bool keep = from_small ? node->frequency > 1 : node->frequency > 0;
        if (keep && moved < S3FIFO_REINSERT_MAX) {
            queue_del(cache, node);
            node->frequency = from_small ? 0 : node->frequency - 1;
            queue_add(cache, node, S3FIFO_MAIN);
            moved++;
            continue;
        }
        s3fifo_remove(cache, node);
        if (from_small) ghost_add(cache, node->hash);
        cache->evictions++;
        return node;
    }
}

/* ---- life ---- */

bool
s3fifo_init(struct s3fifo *cache, struct budget *budget, u64 limit_bytes, u32 object_bytes)
{
    CHECK(object_bytes > 0);
    *cache = (struct s3fifo){
        .budget = budget,
        .limit_bytes = limit_bytes,
        .object_bytes = object_bytes,
        .bucket_count = 1,
    };
    list_init(&cache->small);
    list_init(&cache->main);
    if (!segment_add(cache)) {
        MARK("lsm.s3fifo.no_memory");
        mem_free(budget, cache->segments, cache->segment_capacity * sizeof(cache->segments[0]));
        return false;
    }
    cache->bucket_count = SEGMENT_BUCKETS;
    ghost_size_set(cache);
    return true;
}

void
s3fifo_deinit(struct s3fifo *cache)
{
    CHECK(s3fifo_count(cache) == 0);
    ghost_deinit(cache);
    while (cache->segment_count > 0)
        segment_drop(cache);
    size_t size = cache->segment_capacity * sizeof(cache->segments[0]);
    mem_free(cache->budget, cache->segments, size);
    cache->overhead_bytes -= size;
    CHECK(cache->overhead_bytes == 0);
}

void
s3fifo_limit_set(struct s3fifo *cache, u64 limit_bytes)
{
    cache->limit_bytes = limit_bytes;
    ghost_size_set(cache);
}

static bool
queue_check(const struct list *queue, enum s3fifo_queue kind, u64 bytes, u64 count)
{
    u64 bytes_seen = 0, count_seen = 0;
    list_for_each (pos, queue) {
        const struct s3fifo_node *node = list_entry(pos, struct s3fifo_node, link);
        if (node->queue != kind || node->frequency > S3FIFO_FREQUENCY_MAX) return false;
        bytes_seen += node->size;
        count_seen++;
    }
    return bytes_seen == bytes && count_seen == count; /* S2 */
}

bool
s3fifo_check(const struct s3fifo *cache)
{
    if (!queue_check(&cache->small, S3FIFO_SMALL, cache->small_bytes, cache->small_count))
        return false;
    if (!queue_check(&cache->main, S3FIFO_MAIN, cache->main_bytes, cache->main_count)) return false;
    if ((u64)cache->segment_count * SEGMENT_BUCKETS < cache->bucket_count) return false; /* S3 */
    u64 count = 0;
    for (u32 i = 0; i < cache->bucket_count; i++) {
        for (const struct s3fifo_bucket *b = bucket_at(cache, i); b != NULL; b = b->more) {
            u32 used = bucket_used(b);
            if (used < S3FIFO_PLACES && b->more != NULL) return false; /* S4 */
            if (used == 0 && b != bucket_at(cache, i)) return false;
            for (u32 j = 0; j < S3FIFO_PLACES; j++) {
                if ((b->places[j] != 0) != (j < used)) return false;
                if (b->places[j] == 0) continue;
                const struct s3fifo_node *node = place_node(b->places[j]);
                if (bucket_index(cache, node->hash) != i || node->queue == S3FIFO_NONE)
                    return false;
                if (b->places[j] >> S3FIFO_TAG_AT != node->hash >> 16) return false;
                count++;
            }
        }
    }
    return count == s3fifo_count(cache); /* S1 */
}
