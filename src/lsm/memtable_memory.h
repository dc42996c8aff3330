/* SPDX-License-Identifier: MIT
 *
 * memtable_memory.h -- where records and nodes of a memtable lie: bump allocation out of chunks,
 * which come from the budget and go all at once.
 *
 * A small chunk comes first, then, in a large memtable, huge pages, if possible those of a memtable
 * before it: nearly all of what filling a memtable costs is the first touch of its memory
 * otherwise.
 */
#ifndef DISTKV_LSM_MEMTABLE_MEMORY_H
#define DISTKV_LSM_MEMTABLE_MEMORY_H

#include "base/mem.h"

/* Large pages that a memtable leaves to the next of its store: those can be filled without asking
 * the machine for memory that nobody has touched lately. They stay taken from the budget until
 * then. */
struct memtable_page;
struct memtable_pages {
    struct budget *budget; /* that of the memtables */
    struct memtable_page *first;
    u32 count;
    u32 count_least; /* since the last trim */
};
void memtable_pages_init(struct memtable_pages *pages, struct budget *budget);
/* Gives back a part of those that were there, unused, since the last call. */
void memtable_pages_trim(struct memtable_pages *pages);
/* Gives back all. */
void memtable_pages_drop(struct memtable_pages *pages);

/* What one memtable takes; the size and the limit of its chunks. */
struct memtable_memory {
    struct budget *budget;
    struct memtable_pages *pages; /* NULL: none are left to others */
    u64 capacity_bytes;           /* of everything it may ever take */
    u64 used_bytes;               /* chunks, and what the owner counts here as well */
    u32 chunk_bytes;
};
struct memtable_memory memtable_memory_of(struct budget *budget, u64 capacity_bytes);

/* What is free at the end of a chunk. */
struct memtable_room {
    u8 *at;
    size_t left;
};

/* All zero is one without memory. A chunk's data begin with a cache line, so what is taken in whole
 * lines lies in whole lines. */
struct memtable_chunk;
struct memtable_pool {
    struct memtable_chunk *chunks;
    struct memtable_room open;  /* what is being used up */
    struct memtable_room spare; /* the largest that was left for something that did not fit */
};
/* Makes size bytes available in one piece; false when the capacity or the budget do not allow it.
 */
MUST_CHECK bool memtable_pool_reserve(struct memtable_pool *pool, struct memtable_memory *memory,
                                      size_t size);
/* Gives back all chunks. */
void memtable_pool_free(struct memtable_pool *pool, struct memtable_memory *memory);

/* Of what was reserved. */
static inline void *
memtable_pool_alloc(struct memtable_pool *pool, size_t size)
{
    CHECK(size <= pool->open.left);
    void *p = pool->open.at;
    pool->open.at += size;
    pool->open.left -= size;
    return p;
}

#endif
