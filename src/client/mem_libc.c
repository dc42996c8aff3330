/* SPDX-License-Identifier: MIT
 *
 * mem_libc.c -- the allocator of libdistkv behind base/mem.h: the caller's own malloc.
 */
#include "base/mem.h"

#include <stdlib.h>

void *
mem_raw_alloc(size_t size, size_t alignment)
{
    if (alignment <= _Alignof(max_align_t)) return malloc(size);
    return aligned_alloc(alignment, align_up(size, alignment));
}

void *
mem_raw_realloc(void *block, size_t old_size, size_t new_size)
{
    (void)old_size;
    return realloc(block, new_size);
}

void
mem_raw_free(void *block, size_t size)
{
    (void)size;
    free(block);
}
