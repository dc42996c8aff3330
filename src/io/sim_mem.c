/* SPDX-License-Identifier: MIT
 *
 * sim_mem.c -- the allocator of the simulated link behind base/mem.h: libc's, so that sanitizers
 * see every block, with a list of blocks per node, so that a crash frees what its process held.
 *
 *   | room for alignment | struct block | what the caller gets ... |
 *
 * Blocks allocated outside of a node are in no list; there the leak checker sees to them. Fresh and
 * freed memory is scribbled, large blocks only at both ends.
 *
 * Stacks and large blocks are kept for the next who wants that size: libc would give them back to
 * the kernel, and getting their pages again is most of what a short run costs. AddressSanitizer is
 * told which of their bytes nobody may touch.
 */
#include "io/sim_internal.h"

#include <malloc.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SCRIBBLE_FRESH 0xA5
#define SCRIBBLE_FREED 0xDE
#define SCRIBBLE_BYTES (16u << 10)
#define BLOCK_MAGIC    0x6b636f6cu

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define LARGE_FENCE 4096u /* behind each block */
#else
#define ASAN_POISON_MEMORY_REGION(data, size)   ((void)(data), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(data, size) ((void)(data), (void)(size))
#define LARGE_FENCE                             0u
#endif
#define LARGE_BYTES    (32u << 10)
#define LARGE_KEPT_MAX MIB(512)
#define LARGE_SIZES    256u

struct block {
    struct list link;
    struct sim_memory *owner; /* NULL: nobody's */
    u64 size;
    u32 prefix; /* from the start of libc's block to the caller's */
    u32 alignment;
    u64 magic;
};
static_assert(sizeof(struct block) == 48, "keeps 16-byte alignment");

static struct sim_memory *domain;

/* What is freed is asked for again: kept by libc, its pages need not be got from the kernel anew.
 */
__attribute__((constructor)) static void
keep_what_is_freed(void)
{
    (void)mallopt(M_MMAP_THRESHOLD, 64 << 20);
    (void)mallopt(M_TRIM_THRESHOLD, 256 << 20);
    (void)mallopt(M_TOP_PAD, 4 << 20);
}

struct sim_memory *
sim_mem_domain_set(struct sim_memory *memory)
{
    struct sim_memory *last = domain;
    domain = memory;
    return last;
}

/* Whether sim_node_refuse_at means this one. */
static bool
alloc_chosen(struct sim_memory *memory)
{
    if (memory->refuse_at == 0 || --memory->refuse_at > 0) return false;
    if (memory->refuse_more == 0) return true;
    memory->refuse_more--;
    memory->refuse_at = 1;
    return true;
}

/* Whether an allocation of the code under test is to fail. */
static bool
alloc_refused(size_t size)
{
    struct sim *sim = sim_current;
    if (domain == NULL || sim == NULL) return false;
    if (!ok(sim_point_hit(sim, NULL, SIM_POINT_ALLOC))) return true;
    bool chosen = alloc_chosen(domain);
    if (!chosen && !domain->may_refuse) return false;
    return (chosen || sim_fault_chance(sim, SIM_FAULT_ALLOC, sim->options.alloc_ppm)) &&
           sim_fault_take(sim, SIM_FAULT_ALLOC, "%zu bytes for %s", size,
                          CONTAINER_OF(domain, struct sim_node, memory)->host);
}

/* ---- large blocks that wait for their next use ---- */

struct large {
    struct large *next;
};

/* By size, open addressing; a size that finds no place goes to libc. */
static struct {
    size_t size;
    struct large *first;
} larges[LARGE_SIZES];
static u64 large_kept;

static struct large **
large_find(size_t size)
{
    u32 at = (u32)(size / 4096 % LARGE_SIZES);
    for (u32 i = 0; i < 8; i++, at = (at + 1) % LARGE_SIZES) {
        if (larges[at].size == 0) larges[at].size = size;
        if (larges[at].size == size) return &larges[at].first;
    }
    return NULL;
}

/* Of a block of size bytes: what it takes with its fence. */
static size_t
large_bytes(size_t size)
{
    return align_up(size, 4096) + LARGE_FENCE;
}

/* size: a multiple of alignment. */
static void *
base_alloc(size_t size, size_t alignment)
{
    if (size < LARGE_BYTES || alignment > 4096) return aligned_alloc(alignment, size);
    size_t bytes = large_bytes(size);
    struct large **list = large_find(bytes);
    struct large *large = list != NULL ? *list : NULL;
    if (large == NULL) {
        large = aligned_alloc(4096, bytes);
        if (large == NULL) return NULL;
    } else {
        *list = large->next;
        large_kept -= bytes;
    }
    ASAN_UNPOISON_MEMORY_REGION(large, size);
    ASAN_POISON_MEMORY_REGION((u8 *)large + size, bytes - size);
    return large;
}

static void
base_free(void *base, size_t size, size_t alignment)
{
    size_t bytes = large_bytes(size);
    struct large **list = NULL;
    bool is_large = size >= LARGE_BYTES && alignment <= 4096;
    if (is_large && large_kept + bytes <= LARGE_KEPT_MAX) list = large_find(bytes);
    if (list == NULL) {
        if (is_large) ASAN_UNPOISON_MEMORY_REGION(base, bytes);
        free(base);
        return;
    }
    struct large *large = base;
    large->next = *list;
    *list = large;
    large_kept += bytes;
    ASAN_POISON_MEMORY_REGION((u8 *)base + sizeof(*large), bytes - sizeof(*large));
}

/* ---- stacks ---- */

#define STACKS_KEPT_MAX 64u

/* All of one size. */
static void *stacks_kept[STACKS_KEPT_MAX];
static u32 stacks_kept_count;

void *
backend_stacks_map(size_t bytes)
{
    if (stacks_kept_count == 0) return fiber_stacks_map(bytes);
    return stacks_kept[--stacks_kept_count];
}

void
backend_stacks_unmap(void *stacks, size_t bytes)
{
    if (stacks_kept_count == STACKS_KEPT_MAX)
        munmap(stacks, bytes);
    else
        stacks_kept[stacks_kept_count++] = stacks;
}

/* ---- blocks ---- */

static void
scribble(u8 *data, size_t size, int value)
{
    size_t part = MIN(size, SCRIBBLE_BYTES);
    memset(data, value, part);
    memset(data + size - part, value, part);
}

void *
mem_raw_alloc(size_t size, size_t alignment)
{
    if (alloc_refused(size)) return NULL;
    if (size > SIZE_MAX / 2) return NULL;
    alignment = MAX(alignment, (size_t)16);
    size_t prefix = align_up(sizeof(struct block), alignment);
    u8 *base = base_alloc(align_up(prefix + size, alignment), alignment);
    if (base == NULL) return NULL;
    struct block *block = (struct block *)(base + prefix - sizeof(struct block));
    *block = (struct block){
        .owner = domain,
        .size = size,
        .prefix = (u32)prefix,
        .alignment = (u32)alignment,
        .magic = BLOCK_MAGIC,
    };
    list_init(&block->link);
    if (domain != NULL) {
        list_push_back(&domain->blocks, &block->link);
        domain->bytes += size;
    }
    scribble(base + prefix, size, SCRIBBLE_FRESH);
    return base + prefix;
}

static struct block *
block_of(void *data)
{
    struct block *block = (struct block *)((u8 *)data - sizeof(struct block));
    CHECK(block->magic == BLOCK_MAGIC);
    return block;
}

void *
mem_raw_realloc(void *data, size_t old_size, size_t new_size)
{
    void *moved = mem_raw_alloc(new_size, 16);
    if (moved == NULL) return NULL;
    memcpy(moved, data, MIN(old_size, new_size));
    mem_raw_free(data, old_size);
    return moved;
}

static void
block_free(struct block *block)
{
    u8 *data = (u8 *)block + sizeof(*block);
    u8 *base = data - block->prefix;
    list_del(&block->link);
    if (block->owner != NULL) block->owner->bytes -= block->size;
    u32 alignment = block->alignment;
    size_t bytes = align_up(block->prefix + block->size, alignment);
    block->magic = 0;
    scribble(data, block->size, SCRIBBLE_FREED);
    base_free(base, bytes, alignment);
}

void
mem_raw_free(void *data, size_t size)
{
    struct block *block = block_of(data);
    CHECK(block->size == size); /* the budget would drift */
    block_free(block);
}

/* Small ones serve. */
void *
mem_raw_alloc_pages(size_t size)
{
    return mem_raw_alloc(size, 64);
}

void
mem_raw_free_pages(void *data, size_t size)
{
    mem_raw_free(data, size);
}

void
sim_node_memory_each(const struct sim_node *node,
                     void (*look)(void *arg, const void *data, u64 size), void *arg)
{
    list_for_each (link, &node->memory.blocks) {
        const struct block *block = list_entry(link, struct block, link);
        look(arg, block + 1, block->size);
    }
}

u64
sim_mem_free_all(struct sim_memory *memory)
{
    u64 count = 0;
    while (!list_empty(&memory->blocks)) {
        block_free(list_entry(list_first(&memory->blocks), struct block, link));
        count++;
    }
    CHECK(memory->bytes == 0);
    return count;
}
