/* SPDX-License-Identifier: MIT
 *
 * mem_mimalloc.c -- the production allocator behind mem.h: mimalloc, and the kernel itself for
 * large pages. Those do not go through mimalloc, for it would give a part of such a page to others,
 * later, and the first byte of a part makes all of it resident.
 */
#include "base/mem.h"

#include <mimalloc.h>
#include <sys/mman.h>

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

static void *
map(size_t size)
{
    void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block == MAP_FAILED ? NULL : block;
}

void *
mem_raw_alloc_pages(size_t size)
{
    u8 *block = map(size);
    if (block == NULL) return NULL;
    if ((uintptr_t)block % MEM_PAGE_BYTES != 0) { /* always, before Linux 6.7 */
        (void)munmap(block, size);
        u8 *room = map(size + MEM_PAGE_BYTES);
        if (room == NULL) return NULL;
        size_t before = MEM_PAGE_BYTES - (uintptr_t)room % MEM_PAGE_BYTES;
        block = room + before;
        (void)munmap(room, before);
        if (before < MEM_PAGE_BYTES) (void)munmap(block + size, MEM_PAGE_BYTES - before);
    }
    (void)madvise(block, size, MADV_HUGEPAGE); /* a machine without them has small pages */
    return block;
}

void
mem_raw_free_pages(void *block, size_t size)
{
    (void)munmap(block, size);
}
