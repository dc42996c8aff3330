/* SPDX-License-Identifier: MIT
 *
 * mem_malloc.c -- the allocator of tests, the simulator and sanitizer builds behind mem.h: libc's,
 * so that sanitizers see every block; fresh blocks are scribbled so that a read of
 * uninitialised memory does not look right by chance, and freed ones so that a late read shows.
 */
#include "base/mem.h"

#include <stdlib.h>

#define SCRIBBLE_FRESH 0xA5
#define SCRIBBLE_FREED 0xDE

/* kept: so many bytes the caller writes itself. */
static void *
fresh_block(size_t size, size_t alignment, size_t kept)
{
    u8 *block = aligned_alloc(alignment, align_up(size, alignment));
    if (block != NULL) memset(block + kept, SCRIBBLE_FRESH, size - kept);
    return block;
}

void *
mem_raw_alloc(size_t size, size_t alignment)
{
    return fresh_block(size, alignment, 0);
}

void *
mem_raw_realloc(void *block, size_t old_size, size_t new_size)
{
    size_t kept = MIN(old_size, new_size);
    void *moved = fresh_block(new_size, 16, kept);
    if (moved == NULL) return NULL;
    memcpy(moved, block, kept);
    mem_raw_free(block, old_size);
    return moved;
}

void
mem_raw_free(void *block, size_t size)
{
#ifndef __SANITIZE_ADDRESS__ /* which tells of any late access itself */
    memset(block, SCRIBBLE_FREED, size);
#endif
    free(block);
}

/* libc's, which has no say in the matter here: the bound of the process is not kept with it. */
void
mem_keep_freed(bool keep)
{
    (void)keep;
}

/* Small ones serve: what matters here is that each byte is seen. */
void *
mem_raw_alloc_pages(size_t size)
{
    return mem_raw_alloc(size, 64);
}

void
mem_raw_free_pages(void *block, size_t size)
{
    mem_raw_free(block, size);
}
