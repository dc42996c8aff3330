/* SPDX-License-Identifier: MIT
 *
 * mem_mimalloc.c -- the production allocator behind mem.h: mimalloc, and the kernel itself for
 * large pages. Those do not go through mimalloc, for it would give a part of such a page to others,
 * later, and the first byte of a part makes all of it resident.
 *
 * mimalloc gives pages back some time after they were freed, 25 ms and more, and takes others
 * meanwhile: under large values as much as half of what is used is resident beside it and nobody's.
 * To give back at once costs large values two to three times the processor time. So who has room is
 * spared it, see mem_keep_freed. The delay is an option of the process: 0 while any thread is
 * short.
 */
#include "base/mem.h"

#include <mimalloc.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

static struct {
    mi_option_t option;
    long ms;
} delays[] = {
#if MI_MALLOC_VERSION >= 210
    {mi_option_purge_delay, 0}, /* of both */
#else
    {mi_option_decommit_delay, 0},
    {mi_option_segment_decommit_delay, 0},
#endif
};

static _Atomic u32 short_threads;
static __thread bool is_short;

void *
mem_raw_alloc(size_t size, size_t alignment)
{
    /* What any block has by itself costs less than when it is asked for. */
    if (alignment <= alignof(max_align_t) && size >= alignof(max_align_t)) return mi_malloc(size);
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

/* As they are by default, or by the environment. */
__attribute__((constructor)) static void
remember_delays(void)
{
    for (u32 i = 0; i < ARRAY_COUNT(delays); i++)
        delays[i].ms = mi_option_get(delays[i].option);
}

void
mem_keep_freed(bool keep)
{
    if (keep == !is_short) return;
    is_short = !keep;
    atomic_fetch_add(&short_threads, is_short ? 1 : UINT32_MAX);
    /* Another may do the same at the same time: the last to look sees what is to be. */
    bool any;
    do {
        any = atomic_load(&short_threads) > 0;
        for (u32 i = 0; i < ARRAY_COUNT(delays); i++)
            mi_option_set(delays[i].option, any ? 0 : delays[i].ms);
    } while (any != (atomic_load(&short_threads) > 0));
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
