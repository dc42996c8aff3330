/* SPDX-License-Identifier: MIT
 *
 * memtable_memory.c -- chunks out of the budget, and the large pages that memtables hand on.
 */
#include "lsm/memtable_memory.h"

#include "base/fault.h"

#define CHUNK_BYTES_MIN KIB(16)
#define CHUNK_BYTES_MAX MIB(1)
/* Neither a large part of the memtable nor one that few requests leave half empty. */
#define PAGES_CAPACITY    (8 * MEM_PAGE_BYTES)
#define PAGES_REQUEST_MAX (MEM_PAGE_BYTES / 8)
#define PAGES_TRIM_SHARE  8u

/* Data follow at CHUNK_HEAD_BYTES, so that nodes lie in whole cache lines. */
struct memtable_chunk {
    struct memtable_chunk *next;
    size_t size;
    bool pages; /* from mem_alloc_pages */
};
#define CACHE_LINE_BYTES 64u
#define CHUNK_HEAD_BYTES CACHE_LINE_BYTES
static_assert(sizeof(struct memtable_chunk) <= CHUNK_HEAD_BYTES, "the head");
static_assert(MEM_PAGE_BYTES % CACHE_LINE_BYTES == 0, "large pages begin with a line");

/* One that waits for its next use. */
struct memtable_page {
    struct memtable_page *next;
};

void
memtable_pages_init(struct memtable_pages *pages, struct budget *budget)
{
    *pages = (struct memtable_pages){.budget = budget};
}

static void *
page_take(struct memtable_pages *pages)
{
    struct memtable_page *page = pages->first;
    pages->first = page->next;
    pages->count--;
    pages->count_least = MIN(pages->count_least, pages->count);
    return page;
}

static void
page_leave(struct memtable_pages *pages, void *block)
{
    struct memtable_page *page = block;
    page->next = pages->first;
    pages->first = page;
    pages->count++;
}

void
memtable_pages_trim(struct memtable_pages *pages)
{
    u32 surplus = (pages->count_least + PAGES_TRIM_SHARE - 1) / PAGES_TRIM_SHARE;
    for (; surplus > 0; surplus--)
        mem_free_pages(pages->budget, page_take(pages), MEM_PAGE_BYTES);
    pages->count_least = pages->count;
}

void
memtable_pages_drop(struct memtable_pages *pages)
{
    while (pages->count > 0)
        mem_free_pages(pages->budget, page_take(pages), MEM_PAGE_BYTES);
}

struct memtable_memory
memtable_memory_of(struct budget *budget, u64 capacity_bytes)
{
    return (struct memtable_memory){
        .budget = budget,
        .capacity_bytes = capacity_bytes,
        .chunk_bytes = (u32)CLAMP(capacity_bytes / 16, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX),
    };
}

static struct memtable_chunk *
chunk_alloc(struct memtable_memory *memory, size_t bytes, bool pages)
{
    struct memtable_pages *left = memory->pages;
    bool any = left != NULL && left->count > 0;
    if (pages) return any ? page_take(left) : mem_alloc_pages(memory->budget, bytes);
    struct memtable_chunk *chunk = mem_alloc_aligned(memory->budget, bytes, CACHE_LINE_BYTES);
    if (chunk != NULL || !any) return chunk;
    memtable_pages_drop(left); /* they may be what is missing */
    return mem_alloc_aligned(memory->budget, bytes, CACHE_LINE_BYTES);
}

static void
chunk_free(struct memtable_memory *memory, struct memtable_chunk *chunk)
{
    if (!chunk->pages)
        mem_free(memory->budget, chunk, chunk->size);
    else if (memory->pages != NULL)
        page_leave(memory->pages, chunk);
    else
        mem_free_pages(memory->budget, chunk, chunk->size);
}

/* pages: bytes is that of one large page. */
static bool
pool_grow(struct memtable_pool *pool, struct memtable_memory *memory, size_t bytes, bool pages)
{
    if (bytes > memory->capacity_bytes || memory->used_bytes > memory->capacity_bytes - bytes)
        return MARKED("lsm.memtable.at_capacity", false);
    struct memtable_chunk *chunk = chunk_alloc(memory, bytes, pages);
    if (chunk == NULL) return MARKED("lsm.memtable.chunk_no_memory", false);
    *chunk = (struct memtable_chunk){.next = pool->chunks, .size = bytes, .pages = pages};
    pool->chunks = chunk;
    if (pool->open.left > pool->spare.left) pool->spare = pool->open;
    pool->open = (struct memtable_room){
        .at = (u8 *)chunk + CHUNK_HEAD_BYTES,
        .left = bytes - CHUNK_HEAD_BYTES,
    };
    memory->used_bytes += bytes;
    return true;
}

/* The largest chunk first, then just what is needed. */
bool
memtable_pool_reserve(struct memtable_pool *pool, struct memtable_memory *memory, size_t size)
{
    if (size <= pool->open.left) return true;
    if (size <= pool->spare.left) {
        struct memtable_room open = pool->open;
        pool->open = pool->spare;
        pool->spare = open;
        return true;
    }
    size_t bytes = CHUNK_HEAD_BYTES + size;
    bool pages = pool->chunks != NULL && memory->capacity_bytes >= PAGES_CAPACITY;
    if (pages && bytes <= PAGES_REQUEST_MAX && pool_grow(pool, memory, MEM_PAGE_BYTES, true))
        return true;
    if (bytes <= memory->chunk_bytes / 2 && pool_grow(pool, memory, memory->chunk_bytes, false))
        return true;
    return pool_grow(pool, memory, bytes, false);
}

void
memtable_pool_free(struct memtable_pool *pool, struct memtable_memory *memory)
{
    while (pool->chunks != NULL) {
        struct memtable_chunk *chunk = pool->chunks;
        pool->chunks = chunk->next;
        chunk_free(memory, chunk);
    }
}
