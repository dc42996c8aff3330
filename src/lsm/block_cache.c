/* SPDX-License-Identifier: MIT
 *
 * block_cache.c -- decompressed, verified blocks of tables, see cache.h.
 *
 * A block is one allocation, its data behind its header. It belongs to the cache (owner is set), to
 * the fibers that pinned it, or to both; it is freed when it belongs to nobody. So evicting or
 * dropping a pinned block only takes it out of the index, and its readers never notice.
 *
 * Blocks of one file hang together in one of 256 lists by file id, so that dropping a file looks at
 * a fraction of the cache only. Many files may be dropped at once, with all that is cached of them:
 * only their names are noted then, and each later call frees a few of their blocks, before any that
 * are of use. Until then they are found by whoever has such a file open still, which is no harm: no
 * file gets the number of another one.
 *
 * Invariants
 *   B1  owner != NULL exactly when the block is in the index, a queue and a file list.
 *   B2  file_counts[] are the lengths of the lists.
 */
#include "lsm/cache.h"

#include "base/fault.h"
#include "lsm/s3fifo.h"

#define FILE_LISTS  256u
#define STEP_BLOCKS 64u /* what one call looks at or frees at most of what should be gone */
#define DROPPED_MIN 16u

struct block_cache {
    struct budget *budget;
    struct s3fifo fifo;
    struct list files[FILE_LISTS];
    u32 file_counts[FILE_LISTS];

    /* files that are gone, with blocks that are not */
    u64 *dropped;
    u32 dropped_count, dropped_room;
    u32 dropped_left; /* of the last one's list: blocks to look at; 0: not begun */
};

static u64
block_hash(u64 file_id, u64 offset)
{
    u64 h = (file_id * 0x9e3779b97f4a7c15ull) ^ (offset + 0x632be59bd9b4e019ull);
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
}

static u32
file_list(u64 file_id)
{
    return (u32)((file_id * 0x9e3779b97f4a7c15ull) >> 56);
}

static struct block *
block_of(struct s3fifo_node *node)
{
    return CONTAINER_OF(node, struct block, node);
}

static void
block_free(struct block *block)
{
    CHECK(block->pin_count == 0 && block->owner == NULL);
    mem_free(block->budget, block, block->node.size);
}

/* The block is out of the index and its queue already. */
static void
disown(struct block *block)
{
    struct block_cache *cache = block->owner;
    list_del(&block->file_link);
    cache->file_counts[file_list(block->file_id)]--;
    block->owner = NULL;
    if (block->pin_count == 0)
        block_free(block);
    else
        MARK("lsm.block_cache.disowned_pinned");
}

/* Looks at a few blocks of the last dropped file's list: its own are freed, others go to the end. */
static void
dropped_step(struct block_cache *cache)
{
    u64 file_id = cache->dropped[cache->dropped_count - 1];
    u32 index = file_list(file_id);
    struct list *list = &cache->files[index];
    if (cache->dropped_left == 0) cache->dropped_left = cache->file_counts[index];
    cache->dropped_left =
        MIN(cache->dropped_left, cache->file_counts[index]); /* some were evicted */
    for (u32 i = 0; i < STEP_BLOCKS && cache->dropped_left > 0; i++) {
        struct block *block = list_entry(list_first(list), struct block, file_link);
        cache->dropped_left--;
        if (block->file_id == file_id) {
            s3fifo_remove(&cache->fifo, &block->node);
            disown(block);
        } else {
            list_del(&block->file_link);
            list_push_back(list, &block->file_link);
        }
    }
    if (cache->dropped_left == 0) cache->dropped_count--;
}

/* False: nothing is above the limit any more. */
static bool
shrink(struct block_cache *cache)
{
    u32 count = STEP_BLOCKS;
    while (count-- > 0 && s3fifo_bytes(&cache->fifo) > cache->fifo.limit_bytes) {
        struct s3fifo_node *node = s3fifo_evict(&cache->fifo);
        if (node == NULL) {
            MARK("lsm.block_cache.nothing_to_evict");
            return false;
        }
        disown(block_of(node));
    }
    return s3fifo_bytes(&cache->fifo) > cache->fifo.limit_bytes;
}

struct block_cache *
block_cache_new(struct budget *budget, u64 limit_bytes)
{
    struct block_cache *cache = mem_alloc_zero(budget, sizeof(*cache));
    if (cache == NULL) return MARKED("lsm.block_cache.no_memory", NULL);
    cache->budget = budget;
    for (u32 i = 0; i < FILE_LISTS; i++)
        list_init(&cache->files[i]);
    if (!s3fifo_init(&cache->fifo, budget, limit_bytes, 4096)) {
        MARK("lsm.block_cache.index_no_memory");
        mem_free(budget, cache, sizeof(*cache));
        return NULL;
    }
    return cache;
}

void
block_cache_free(struct block_cache *cache)
{
    if (cache == NULL) return;
    struct list *queues[] = {&cache->fifo.small, &cache->fifo.main};
    for (u32 i = 0; i < ARRAY_COUNT(queues); i++) {
        struct list *first;
        while ((first = list_first(queues[i])) != NULL) {
            struct s3fifo_node *node = list_entry(first, struct s3fifo_node, link);
            s3fifo_remove(&cache->fifo, node);
            disown(block_of(node));
        }
    }
    s3fifo_deinit(&cache->fifo);
    mem_free(cache->budget, cache->dropped, cache->dropped_room * sizeof(*cache->dropped));
    mem_free(cache->budget, cache, sizeof(*cache));
}

static struct block *
find(struct block_cache *cache, u64 file_id, u64 offset)
{
    u32 hash = (u32)block_hash(file_id, offset);
    const struct s3fifo_bucket *bucket = s3fifo_bucket(&cache->fifo, hash);
    struct s3fifo_node *node;
    for (u32 place = 0; (node = s3fifo_next(&bucket, &place, hash)) != NULL;) {
        struct block *block = block_of(node);
        if (node->hash == hash && block->file_id == file_id && block->offset == offset)
            return block;
    }
    return NULL;
}

struct block *
block_cache_get(struct block_cache *cache, u64 file_id, u64 offset)
{
    struct block *block = find(cache, file_id, offset);
    if (block == NULL) {
        cache->fifo.misses++;
        return NULL;
    }
    cache->fifo.hits++;
    s3fifo_hit(&block->node);
    block->pin_count++;
    return block;
}

struct block *
block_new(struct budget *budget, u64 file_id, u64 offset, u32 size)
{
    u32 allocated = s3fifo_round_size(sizeof(struct block) + (u64)size);
    struct block *block = mem_alloc(budget, allocated);
    if (block == NULL) return MARKED("lsm.block_cache.block_no_memory", NULL);
    *block = (struct block){
        .file_id = file_id,
        .offset = offset,
        .size = size,
        .pin_count = 1,
        .data = (u8 *)(block + 1),
        .budget = budget,
        .node = {.hash = (u32)block_hash(file_id, offset), .size = allocated},
    };
    list_init(&block->file_link);
    list_init(&block->node.link);
    return block;
}

void
block_cache_insert(struct block_cache *cache, struct block *block)
{
    CHECK(block->owner == NULL && block->pin_count > 0);
    if (block->node.size > cache->fifo.limit_bytes / 8) {
        MARK("lsm.block_cache.too_large"); /* would empty a tiny cache */
        return;
    }
    if (find(cache, block->file_id, block->offset) != NULL) {
        MARK("lsm.block_cache.read_twice"); /* two fibers waited for the same block */
        return;
    }
    if (!s3fifo_insert(&cache->fifo, &block->node)) return; /* stays private */
    block->owner = cache;
    u32 index = file_list(block->file_id);
    list_push_back(&cache->files[index], &block->file_link);
    cache->file_counts[index]++;
    if (cache->dropped_count > 0) dropped_step(cache);
    (void)shrink(cache);
    AUDIT("lsm.block_cache.inserted", block_cache_check(cache));
}

void
block_cache_unpin(struct block *block)
{
    if (block == NULL) return;
    CHECK(block->pin_count > 0);
    block->pin_count--;
    if (block->pin_count == 0 && block->owner == NULL) block_free(block);
}

static bool
dropped_has_room(struct block_cache *cache)
{
    if (cache->dropped_count < cache->dropped_room) return true;
    u32 room = MAX(DROPPED_MIN, 2 * cache->dropped_room);
    size_t size = sizeof(*cache->dropped);
    u64 *grown =
        mem_realloc(cache->budget, cache->dropped, cache->dropped_room * size, room * size);
    if (grown == NULL) return MARKED("lsm.block_cache.drop_no_memory", false);
    cache->dropped = grown;
    cache->dropped_room = room;
    return true;
}

void
block_cache_drop_file(struct block_cache *cache, u64 file_id)
{
    /* Not noted, its blocks are evicted in time, as any that nobody asks for. */
    if (cache->file_counts[file_list(file_id)] == 0 || !dropped_has_room(cache)) return;
    cache->dropped[cache->dropped_count++] = file_id;
    cache->dropped_left = 0;
}

void
block_cache_limit_set(struct block_cache *cache, u64 limit_bytes)
{
    s3fifo_limit_set(&cache->fifo, limit_bytes);
}

bool
block_cache_step(struct block_cache *cache)
{
    bool more = cache->dropped_count > 0;
    if (more)
        dropped_step(cache);
    else
        more = shrink(cache);
    AUDIT("lsm.block_cache.step", block_cache_check(cache));
    return more;
}

void
block_cache_stats(const struct block_cache *cache, struct cache_stats *out)
{
    *out = (struct cache_stats){
        .bytes = s3fifo_bytes(&cache->fifo),
        .limit_bytes = cache->fifo.limit_bytes,
        .entries = s3fifo_count(&cache->fifo),
        .hits = cache->fifo.hits,
        .misses = cache->fifo.misses,
        .evictions = cache->fifo.evictions,
    };
}

bool
block_cache_check(const struct block_cache *cache)
{
    if (!s3fifo_check(&cache->fifo)) return false;
    u64 count = 0;
    for (u32 i = 0; i < FILE_LISTS; i++) {
        u32 length = 0;
        list_for_each (pos, &cache->files[i]) {
            const struct block *block = list_entry(pos, struct block, file_link);
            if (block->owner != cache || block->node.queue == S3FIFO_NONE) return false; /* B1 */
            length++;
        }
        if (length != cache->file_counts[i]) return false; /* B2 */
        count += length;
    }
    return count == s3fifo_count(&cache->fifo);
}
