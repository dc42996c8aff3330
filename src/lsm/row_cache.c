/* SPDX-License-Identifier: MIT
 *
 * row_cache.c -- the newest version of hot keys, see cache.h.
 *
 * A write of a key whose row is here writes the row, too: else the key would be as cold as one that
 * nobody has ever read once its memtable has been flushed, and where many keys are written again and
 * again most reads would go to the disk.
 *
 *   a row, one allocation:  | node | token, version, ... | key bytes | value bytes |
 *
 * Clearing must not stop the shard, however many rows there are: it starts a new epoch, rows of an
 * older one are as good as gone, and every later call frees a few of them (a row may be of 16 KiB). Because both queues are
 * first-in first-out and a row only moves back while it is of the current epoch, the old ones
 * always lie together at the fronts. A lowered limit is followed in the same way, in steps.
 *
 * Invariants
 *   R1  the cache holds at most one row of the current epoch for a (keyspace, key).
 *   R2  after a call of row_cache_put bytes <= limit, unless the limit was lowered by more than
 *       what a step evicts, or more was cleared than what a step frees.
 *   R3  as long as there are rows of an older epoch none is evicted: that would move them.
 */
#include "lsm/cache.h"

#include "base/fault.h"
#include "lsm/s3fifo.h"

/* What one call frees at most of what should be gone. */
#define STEP_ROWS 64u

#define CACHE_LINE_BYTES 64u
#define PREFETCH_LINES   4u /* of a row with a value of 100 bytes; a longer one is followed */

struct row {
    struct s3fifo_node node; /* owner16: key bytes; owner32: value bytes */
    u64 token;
    u64 version;
    u64 seq;
    u64 expire_ms;
    u32 epoch;
    u16 keyspace;
    u8 kind;
    u8 flags;
    u8 data[]; /* key, value */
};

struct row_cache {
    struct budget *budget;
    struct s3fifo fifo;
    u32 epoch;
};

static u32
row_size(size_t key_size, size_t value_size)
{
    return s3fifo_round_size(sizeof(struct row) + key_size + value_size);
}

static struct row *
row_of(struct s3fifo_node *node)
{
    return CONTAINER_OF(node, struct row, node);
}

static u32
row_hash(u16 keyspace, u64 key_hash)
{
    u64 h = (key_hash ^ ((u64)keyspace << 48)) * 0x9e3779b97f4a7c15ull;
    return (u32)(h >> 32);
}

static void
row_free(struct row_cache *cache, struct row *row)
{
    mem_free(cache->budget, row, row->node.size);
}

/* Frees rows of older epochs. False: there is no more of them. */
static bool
sweep(struct row_cache *cache)
{
    struct list *queues[] = {&cache->fifo.small, &cache->fifo.main};
    u32 count = STEP_ROWS;
    for (u32 i = 0; i < ARRAY_COUNT(queues); i++) {
        struct list *first;
        while (count > 0 && (first = list_first(queues[i])) != NULL) {
            struct row *row = row_of(list_entry(first, struct s3fifo_node, link));
            if (row->epoch == cache->epoch) break;
            s3fifo_remove(&cache->fifo, &row->node);
            row_free(cache, row);
            count--;
        }
    }
    return count == 0;
}

/* False: there is nothing more that should be gone. */
static bool
shrink(struct row_cache *cache)
{
    /* What is of use is evicted only when nothing else is left: R3. */
    if (sweep(cache)) return true;
    u32 count = STEP_ROWS;
    while (count-- > 0 && s3fifo_bytes(&cache->fifo) > cache->fifo.limit_bytes) {
        struct s3fifo_node *node = s3fifo_evict(&cache->fifo);
        if (node == NULL) {
            MARK("lsm.row_cache.nothing_to_evict");
            return false;
        }
        row_free(cache, row_of(node));
    }
    return s3fifo_bytes(&cache->fifo) > cache->fifo.limit_bytes;
}

static struct row *
find(struct row_cache *cache, u16 keyspace, u32 hash, struct bytes key)
{
    const struct s3fifo_bucket *bucket = s3fifo_bucket(&cache->fifo, hash);
    struct s3fifo_node *node;
    for (u32 place = 0; (node = s3fifo_next(&bucket, &place, hash)) != NULL;) {
        if (node->hash != hash || node->owner16 != key.size) continue;
        struct row *row = row_of(node);
        if (row->keyspace == keyspace && row->epoch == cache->epoch &&
            memcmp(row->data, key.data, key.size) == 0)
            return row;
    }
    return NULL;
}

struct row_cache *
row_cache_new(struct budget *budget, u64 limit_bytes)
{
    struct row_cache *cache = mem_alloc_zero(budget, sizeof(*cache));
    if (cache == NULL) return MARKED("lsm.row_cache.self_no_memory", NULL);
    cache->budget = budget;
    if (!s3fifo_init(&cache->fifo, budget, limit_bytes, 512)) {
        MARK("lsm.row_cache.index_no_memory");
        mem_free(budget, cache, sizeof(*cache));
        return NULL;
    }
    return cache;
}

void
row_cache_free(struct row_cache *cache)
{
    if (cache == NULL) return;
    struct list *queues[] = {&cache->fifo.small, &cache->fifo.main};
    for (u32 i = 0; i < ARRAY_COUNT(queues); i++) {
        struct list *first;
        while ((first = list_first(queues[i])) != NULL) {
            struct row *row = row_of(list_entry(first, struct s3fifo_node, link));
            s3fifo_remove(&cache->fifo, &row->node);
            row_free(cache, row);
        }
    }
    s3fifo_deinit(&cache->fifo);
    mem_free(cache->budget, cache, sizeof(*cache));
}

bool
row_cache_get(struct row_cache *cache, u16 keyspace, u64 key_hash, struct bytes key,
              struct entry *out)
{
    struct row *row = find(cache, keyspace, row_hash(keyspace, key_hash), key);
    if (row == NULL) {
        cache->fifo.misses++;
        return false;
    }
    cache->fifo.hits++;
    s3fifo_hit(&row->node);
    *out = (struct entry){
        .token = row->token,
        .key = BYTES(row->data, row->node.owner16),
        .value = BYTES(row->data + row->node.owner16, row->node.owner32),
        .version = row->version,
        .seq = row->seq,
        .expire_ms = row->expire_ms, /* or the key_seq that shares its place */
        .kind = row->kind,
        .flags = row->flags,
    };
    return true;
}

const struct s3fifo_bucket *
row_cache_prefetch_bucket(const struct row_cache *cache, u16 keyspace, u64 key_hash)
{
    const struct s3fifo_bucket *bucket = s3fifo_bucket(&cache->fifo, row_hash(keyspace, key_hash));
    __builtin_prefetch(bucket);
    return bucket;
}

bool
row_cache_prefetch_row(const struct s3fifo_bucket *bucket, u16 keyspace, u64 key_hash)
{
    u32 place = 0;
    const u8 *row = (const u8 *)s3fifo_next(&bucket, &place, row_hash(keyspace, key_hash));
    if (row == NULL) return false;
    for (u32 i = 0; i < PREFETCH_LINES; i++)
        __builtin_prefetch(row + i * CACHE_LINE_BYTES);
    return true;
}

void
row_cache_put(struct row_cache *cache, u16 keyspace, u64 key_hash, const struct entry *entry)
{
    (void)shrink(cache);
    if (entry->flags & ENTRY_BLOB) return;
    if (entry->value.size > ROW_CACHE_VALUE_BYTES_MAX) return;
    CHECK(entry->key.size > 0 && entry->key.size <= UINT16_MAX);

    u32 hash = row_hash(keyspace, key_hash);
    struct row *old = find(cache, keyspace, hash, entry->key);
    if (old != NULL) {
        bool newer =
            old->version != entry->version ? old->version < entry->version : old->seq < entry->seq;
        if (!newer) {
            MARK("lsm.row_cache.not_newer");
            return;
        }
        s3fifo_remove(&cache->fifo, &old->node); /* R1 */
        row_free(cache, old);
    }
    u32 size = row_size(entry->key.size, entry->value.size);
    if (size > cache->fifo.limit_bytes / 8) {
        MARK("lsm.row_cache.too_large"); /* would empty a tiny cache */
        return;
    }
    struct row *row = NULL;
    for (u32 attempt = 0; attempt < 8; attempt++) {
        row = mem_alloc(cache->budget, size);
        if (row != NULL) break;
        MARK("lsm.row_cache.no_memory"); /* somebody else has it: make do with our own */
        if (sweep(cache)) continue;      /* R3 */
        struct s3fifo_node *node = s3fifo_evict(&cache->fifo);
        if (node == NULL) {
            MARK("lsm.row_cache.empty_no_memory");
            return;
        }
        row_free(cache, row_of(node));
    }
    if (row == NULL) {
        MARK("lsm.row_cache.given_up");
        return;
    }
    *row = (struct row){
        .node = {.hash = hash,
                 .size = size,
                 .owner16 = (u16)entry->key.size,
                 .owner32 = (u32)entry->value.size},
        .token = entry->token,
        .version = entry->version,
        .seq = entry->seq,
        .expire_ms = entry->expire_ms,
        .epoch = cache->epoch,
        .keyspace = keyspace,
        .kind = entry->kind,
        .flags = entry->flags,
    };
    memcpy(row->data, entry->key.data, entry->key.size);
    if (entry->value.size > 0)
        memcpy(row->data + entry->key.size, entry->value.data, entry->value.size);
    if (!s3fifo_insert(&cache->fifo, &row->node)) {
        row_free(cache, row);
        return;
    }
    (void)shrink(cache);
    AUDIT("lsm.row_cache.put", row_cache_check(cache));
}

void
row_cache_write(struct row_cache *cache, u16 keyspace, u64 key_hash, const struct entry *entry)
{
    struct row *row = find(cache, keyspace, row_hash(keyspace, key_hash), entry->key);
    if (row == NULL) return;
    /* A row is the newest of its key, and no deleted range covers one that is a value: so what has a
     * higher version and comes later is the newest, and not covered either. Of a row that says that
     * nothing is there only the tables and ranges know what it hides. */
    bool follows = row->kind == ENTRY_PUT && entry->kind == ENTRY_PUT && entry->flags == 0 &&
                   entry->version > row->version && entry->value.size <= ROW_CACHE_VALUE_BYTES_MAX;
    if (follows && row_size(entry->key.size, entry->value.size) == row->node.size) {
        row->node.owner32 = (u32)entry->value.size;
        row->version = entry->version;
        row->seq = entry->seq;
        row->expire_ms = entry->expire_ms;
        if (entry->value.size > 0)
            memcpy(row->data + entry->key.size, entry->value.data, entry->value.size);
    } else {
        s3fifo_remove(&cache->fifo, &row->node);
        row_free(cache, row);
        if (follows) row_cache_put(cache, keyspace, key_hash, entry);
    }
    AUDIT("lsm.row_cache.written", row_cache_check(cache));
}

void
row_cache_clear(struct row_cache *cache)
{
    cache->epoch++;
}

void
row_cache_limit_set(struct row_cache *cache, u64 limit_bytes)
{
    s3fifo_limit_set(&cache->fifo, limit_bytes);
}

bool
row_cache_step(struct row_cache *cache)
{
    bool more = shrink(cache);
    AUDIT("lsm.row_cache.step", row_cache_check(cache));
    return more;
}

void
row_cache_stats(const struct row_cache *cache, struct cache_stats *out)
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
row_cache_check(const struct row_cache *cache)
{
    if (!s3fifo_check(&cache->fifo)) return false;
    const struct list *queues[] = {&cache->fifo.small, &cache->fifo.main};
    for (u32 i = 0; i < ARRAY_COUNT(queues); i++) {
        bool current_seen = false;
        list_for_each (pos, queues[i]) {
            const struct row *row = row_of(list_entry(pos, struct s3fifo_node, link));
            if (row->node.size != row_size(row->node.owner16, row->node.owner32)) return false;
            bool current = row->epoch == cache->epoch;
            if (current_seen && !current) return false; /* old ones lie at the front */
            current_seen |= current;
            /* R1: whoever looks for this key finds this row. */
            if (current && find((struct row_cache *)(uintptr_t)cache, row->keyspace, row->node.hash,
                                BYTES(row->data, row->node.owner16)) != row)
                return false;
        }
    }
    return true;
}
