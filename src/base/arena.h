/* SPDX-License-Identifier: MIT
 *
 * arena.h -- bump allocation inside one block of memory that the caller owns. Nothing is freed but
 * all at once (arena_reset). Used for memtables and for scratch that ends with a request.
 */
#ifndef DISTKV_BASE_ARENA_H
#define DISTKV_BASE_ARENA_H

#include "base/types.h"

struct arena {
    u8 *memory;
    size_t capacity;
    size_t used;
};

static inline void
arena_init(struct arena *arena, void *memory, size_t capacity)
{
    *arena = (struct arena){.memory = memory, .capacity = capacity};
}

/* NULL when it does not fit. alignment: a power of two up to 16. */
static inline void *
arena_alloc(struct arena *arena, size_t size, size_t alignment)
{
    size_t start = (size_t)align_up(arena->used, alignment);
    if (start > arena->capacity || size > arena->capacity - start) return NULL;
    arena->used = start + size;
    return arena->memory + start;
}

static inline size_t
arena_left(const struct arena *arena)
{
    return arena->capacity - arena->used;
}

static inline void
arena_reset(struct arena *arena)
{
    arena->used = 0;
}

#endif
