/* SPDX-License-Identifier: MIT
 *
 * bench_caches.c -- question: what does a hot GET find its row or its block for, and what does a
 * cold one pay to leave them behind? Rows are keys of 16 bytes with values of 100; blocks are of the
 * size of a table's, 4 KiB with their head. A small cache lies in the core's own caches, a large one
 * in memory.
 *
 *   row.get.hit      a row that is there; each look-up begins when the one before is over,
 *                    here and below
 *   row.get.16       the same, sixteen at once, each asked for beforehand
 *   row.get.miss     a key that is not there
 *   row.put.evict    a new row, for which an old one has to go
 *   row.write        what a SET of a cached key pays
 *   row.write.none   and of a cold one
 *   block.get.hit    a block that is there, pinned and let go
 *   block.get.miss   one that is not there
 *   block.put.evict  a new block (its bytes are not filled), for which an old one has to go
 *   load.*           a random line of as much memory, each known only when the last is there
 *   alloc.*          taking and giving back as much memory
 *
 * Compare a hit with load.*: it costs one for the index, one for the row's head and one where the
 * value ends in another line; a miss the one in the index alone. Compare an insertion with alloc.*.
 *
 *     bench_caches [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>

#include "base/prng.h"
#include "lsm/cache.h"
#include "lsm/table_format.h"
#include "micro.h"

#define VALUE_BYTES 100u
#define BLOCK_BYTES TABLE_RAW_BYTES
#define TOGETHER    16u
#define ROW_BYTES   256u /* more than a row needs */
#define KEYSPACE    3u
#define FILE_ID     7u

static struct budget budget;
static u8 value[VALUE_BYTES];

/* ---- rows ---- */

struct rows {
    struct row_cache *cache;
    const struct micro_key *keys; /* shuffled; count are in the cache, and as many more are not */
    const struct micro_key *absent;
    u32 count, at, put_at;
};

static struct entry
row_entry(const struct micro_key *key, u64 version)
{
    return (struct entry){.token = key->token,
                          .key = micro_key_bytes(key),
                          .value = BYTES(value, VALUE_BYTES),
                          .version = version,
                          .seq = version,
                          .kind = ENTRY_PUT};
}

static void
row_put(struct row_cache *cache, const struct micro_key *key)
{
    struct entry entry = row_entry(key, 5);
    row_cache_put(cache, KEYSPACE, key->hash, &entry);
}

static void
row_hit_run(void *arg, u64 count)
{
    struct rows *rows = arg;
    u32 at = rows->at;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &rows->keys[at];
        struct entry got;
        MICRO_CHECK(row_cache_get(rows->cache, KEYSPACE, key->hash, micro_key_bytes(key), &got));
        micro_keep(got.value.data[VALUE_BYTES - 1]);
        micro_wait();
        if (++at >= rows->count) at = 0;
    }
    rows->at = at;
}

static void
row_together_run(void *arg, u64 count)
{
    struct rows *rows = arg;
    for (u64 i = 0; i < count; i += TOGETHER) {
        if (rows->at + TOGETHER > rows->count) rows->at = 0;
        const struct micro_key *keys = &rows->keys[rows->at];
        rows->at += TOGETHER;
        const struct s3fifo_bucket *buckets[TOGETHER];
        for (u32 j = 0; j < TOGETHER; j++)
            buckets[j] = row_cache_prefetch_bucket(rows->cache, KEYSPACE, keys[j].hash);
        for (u32 j = 0; j < TOGETHER; j++)
            (void)row_cache_prefetch_row(buckets[j], KEYSPACE, keys[j].hash);
        for (u32 j = 0; j < TOGETHER; j++) {
            struct entry got;
            MICRO_CHECK(row_cache_get(rows->cache, KEYSPACE, keys[j].hash,
                                      micro_key_bytes(&keys[j]), &got));
            micro_keep(got.value.data[VALUE_BYTES - 1]);
        }
    }
}

static void
row_miss_run(void *arg, u64 count)
{
    struct rows *rows = arg;
    u32 at = rows->at;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &rows->absent[at];
        struct entry got;
        bool found = row_cache_get(rows->cache, KEYSPACE, key->hash, micro_key_bytes(key), &got);
        MICRO_CHECK(!found);
        micro_wait();
        if (++at >= rows->count) at = 0;
    }
    rows->at = at;
}

static void
row_write_none_run(void *arg, u64 count)
{
    struct rows *rows = arg;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &rows->absent[rows->at];
        struct entry entry = row_entry(key, 6);
        row_cache_write(rows->cache, KEYSPACE, key->hash, &entry);
        if (++rows->at >= rows->count) rows->at = 0;
    }
}

static void
row_write_run(void *arg, u64 count)
{
    struct rows *rows = arg;
    static u64 version = 6;
    for (u64 i = 0; i < count; i++) {
        const struct micro_key *key = &rows->keys[rows->at];
        struct entry entry = row_entry(key, version++);
        row_cache_write(rows->cache, KEYSPACE, key->hash, &entry);
        if (++rows->at >= rows->count) rows->at = 0;
    }
}

/* Through all keys in a circle of which the cache holds the smaller part. */
static void
row_evict_run(void *arg, u64 count)
{
    struct rows *rows = arg;
    for (u64 i = 0; i < count; i++) {
        u32 at = rows->put_at++;
        row_put(rows->cache, at < rows->count ? &rows->keys[at] : &rows->absent[at - rows->count]);
        if (rows->put_at >= 2 * rows->count) rows->put_at = 0;
    }
}

/* ---- blocks ---- */

struct blocks {
    struct block_cache *cache;
    u32 *order;
    u32 count, at;
    u64 next; /* number of the next new block */
};

static void
block_put(struct block_cache *cache, u64 block_number)
{
    struct block *block = block_new(&budget, FILE_ID, block_number * BLOCK_BYTES, BLOCK_BYTES);
    MICRO_CHECK(block != NULL);
    block_cache_insert(cache, block);
    block_cache_unpin(block);
}

static void
block_hit_run(void *arg, u64 count)
{
    struct blocks *blocks = arg;
    u32 at = blocks->at;
    for (u64 i = 0; i < count; i++) {
        struct block *block =
            block_cache_get(blocks->cache, FILE_ID, (u64)blocks->order[at] * BLOCK_BYTES);
        MICRO_CHECK(block != NULL);
        micro_keep(block->data[0]);
        block_cache_unpin(block);
        micro_wait();
        if (++at >= blocks->count) at = 0;
    }
    blocks->at = at;
}

static void
block_miss_run(void *arg, u64 count)
{
    struct blocks *blocks = arg;
    u32 at = blocks->at;
    for (u64 i = 0; i < count; i++) {
        u64 absent = (u64)blocks->order[at] + (1u << 30);
        struct block *block = block_cache_get(blocks->cache, FILE_ID, absent * BLOCK_BYTES);
        MICRO_CHECK(block == NULL);
        micro_wait();
        if (++at >= blocks->count) at = 0;
    }
    blocks->at = at;
}

static void
block_evict_run(void *arg, u64 count)
{
    struct blocks *blocks = arg;
    for (u64 i = 0; i < count; i++)
        block_put(blocks->cache, blocks->next++);
}

/* ---- the allocator alone ---- */

/* Out of as much as is held, in the order in which it came. */
struct allocation {
    void **held;
    u32 count, at, bytes;
};

static void
allocation_run(void *arg, u64 count)
{
    struct allocation *a = arg;
    for (u64 i = 0; i < count; i++) {
        mem_free(&budget, a->held[a->at], a->bytes);
        a->held[a->at] = mem_alloc(&budget, a->bytes);
        MICRO_CHECK(a->held[a->at] != NULL);
        store_u64(a->held[a->at], i);
        if (++a->at == a->count) a->at = 0;
    }
}

static void
measure_allocation(const char *name, u32 count, u32 bytes)
{
    struct allocation a = {.count = count, .bytes = bytes};
    a.held = mem_alloc_zero(&budget, count * sizeof(a.held[0]));
    MICRO_CHECK(a.held != NULL);
    for (u32 i = 0; i < count; i++)
        MICRO_CHECK((a.held[i] = mem_alloc(&budget, bytes)) != NULL);
    micro_measure(&(struct micro_case){.name = name, .run = allocation_run, .arg = &a});
    for (u32 i = 0; i < count; i++)
        mem_free(&budget, a.held[i], bytes);
    mem_free(&budget, a.held, count * sizeof(a.held[0]));
}

/* ---- cases ---- */

static void
measure(const char *what, const char *size, void (*run)(void *, u64), void *arg)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.%s", what, size);
    micro_measure(
        &(struct micro_case){.name = name, .run = run, .arg = arg, .count_unit = TOGETHER});
}

static struct row_cache *
row_cache_make(u64 limit_bytes)
{
    struct row_cache *cache = row_cache_new(&budget, limit_bytes);
    MICRO_CHECK(cache != NULL);
    return cache;
}

static void
measure_rows(u32 count, const char *size)
{
    struct micro_key *keys = micro_keys(0, count);
    struct rows rows = {.count = count,
                        .keys = micro_keys_shuffled(keys, count, 1),
                        .absent = micro_keys(count, count),
                        .cache = row_cache_make(KIB(64) + (u64)count * ROW_BYTES)};
    for (u32 i = 0; i < count; i++)
        row_put(rows.cache, &keys[i]);
    measure("row.get.hit", size, row_hit_run, &rows);
    measure("row.get.16", size, row_together_run, &rows);
    measure("row.get.miss", size, row_miss_run, &rows);
    measure("row.write.none", size, row_write_none_run, &rows);
    struct cache_stats stats;
    row_cache_stats(rows.cache, &stats);
    measure("row.write", size, row_write_run, &rows);
    row_cache_free(rows.cache);

    rows.cache = row_cache_make((u64)count * ROW_BYTES / 4);
    for (u32 i = 0; i < 2 * count; i++)
        row_evict_run(&rows, 1);
    measure("row.put.evict", size, row_evict_run, &rows);
    row_cache_free(rows.cache);
    char name[64];
    snprintf(name, sizeof(name), "alloc.192.%s", size);
    measure_allocation(name, count, 192);
    snprintf(name, sizeof(name), "load.row.%s", size);
    micro_measure_loads(name, stats.bytes);
}

static void
measure_blocks(u32 count, const char *size)
{
    struct blocks blocks = {.count = count};
    blocks.order = mem_alloc(&budget, count * sizeof(u32));
    MICRO_CHECK(blocks.order != NULL);
    struct prng prng;
    prng_init(&prng, 2);
    for (u32 i = 0; i < count; i++) {
        u32 j = (u32)prng_below(&prng, i + 1);
        blocks.order[i] = blocks.order[j];
        blocks.order[j] = i;
    }
    u64 limit_bytes = (u64)count * (4096 + 512) + KIB(256); /* and room to spare */
    blocks.cache = block_cache_new(&budget, limit_bytes);
    MICRO_CHECK(blocks.cache != NULL);
    for (; blocks.next < count; blocks.next++)
        block_put(blocks.cache, blocks.next);
    measure("block.get.hit", size, block_hit_run, &blocks);
    measure("block.get.miss", size, block_miss_run, &blocks);
    for (u32 i = 0; i < count; i++)
        block_put(blocks.cache, blocks.next++);
    measure("block.put.evict", size, block_evict_run, &blocks);
    block_cache_free(blocks.cache);
    mem_free(&budget, blocks.order, count * sizeof(u32));
    char name[64];
    snprintf(name, sizeof(name), "alloc.4096.%s", size);
    measure_allocation(name, count, 4096);
    snprintf(name, sizeof(name), "load.block.%s", size);
    micro_measure_loads(name, (u64)count * 4096);
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    budget_init(&budget, "bench", GIB(2), NULL);
    micro_text(value, VALUE_BYTES, 1);
    measure_rows(1000, "1k");
    if (!micro_small()) measure_rows(250000, "250k");
    measure_blocks(64, "64");
    if (!micro_small()) measure_blocks(20000, "20k");
    return micro_end();
}
