/* SPDX-License-Identifier: MIT
 *
 * mem_mimalloc.c -- the production allocator behind mem.h.
 */
#include "base/mem.h"

#include <mimalloc.h>

void *
mem_raw_alloc(size_t size, size_t alignment)
{
    return mi_malloc_aligned(size, alignment);
}

void *
mem_raw_realloc(void *block, size_t old_size, size_t new_size)
{
    (void)old_size;
    return mi_realloc(block, new_size);
}

void
mem_raw_free(void *block, size_t size)
{
    (void)size;
    mi_free(block);
}
