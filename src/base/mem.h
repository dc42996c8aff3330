/* SPDX-License-Identifier: MIT
 *
 * mem.h -- budgets and the allocation that counts against them.
 *
 * A budget is a limit and what is used of it; budgets form a tree and a taking counts in every
 * ancestor, so a shard's root budget bounds the sum. Running out is a NULL (or false), never an
 * abort: the caller waits or refuses. Sizes are given again when freeing, so nothing is stored
 * beside the block. The allocator below (mimalloc; malloc in sanitizer builds and in the
 * simulator, which can refuse the n-th allocation) is chosen at link time: mem_mimalloc.c or
 * mem_malloc.c.
 *
 * A budget belongs to one shard and is not thread-safe.
 */
#ifndef DISTKV_BASE_MEM_H
#define DISTKV_BASE_MEM_H

#include "base/types.h"

struct budget {
    struct budget *parent; /* NULL at the root */
    u64 limit_bytes;
    u64 used_bytes;
    u64 reserved_bytes; /* counted in the parent, used or not */
    u64 spare_bytes;    /* of used_bytes: reserved by children that do not use it */
    u64 used_bytes_max; /* high-water mark */
    const char *name;   /* static, for metrics and errors */
};

void budget_init(struct budget *budget, const char *name, u64 limit_bytes, struct budget *parent);
/* Takes size from the parent for good, so that it is there however much others take. Once, before
 * anything is used; false: the parent has not so much. */
MUST_CHECK bool budget_reserve(struct budget *budget, u64 size);
/* Nothing may be in use any more. */
void budget_unreserve(struct budget *budget);
/* Counts size in budget and all ancestors, or changes nothing and returns false. */
MUST_CHECK bool budget_take(struct budget *budget, u64 size);
void budget_give(struct budget *budget, u64 size);
/* Counts in budget, too, what its parent counts already, and all above that; or changes nothing and
 * returns false. budget_give(budget, size) then gives it back to all. */
MUST_CHECK bool budget_take_over(struct budget *budget, u64 size);
/* What could be taken now: the least that is left on the path to the root. */
u64 budget_available(const struct budget *budget);

/* NULL when the budget (or the machine) has no more. Memory is not zeroed. 16-byte aligned. */
MUST_CHECK void *mem_alloc(struct budget *budget, size_t size);
MUST_CHECK void *mem_alloc_zero(struct budget *budget, size_t size);
/* alignment: a power of two; IO_ALIGNMENT for disk buffers. Free with mem_free. */
MUST_CHECK void *mem_alloc_aligned(struct budget *budget, size_t size, size_t alignment);
/* Grows or shrinks; on NULL the old block is untouched. block may be NULL with old_size 0. */
MUST_CHECK void *mem_realloc(struct budget *budget, void *block, size_t old_size, size_t new_size);
/* block may be NULL. size is what was asked for. */
void mem_free(struct budget *budget, void *block, size_t size);

/* For what is large, filled soon and read all over: memory in pages of MEM_PAGE_BYTES where the
 * machine has such ones. The first touch of small pages costs more than filling them does, and each
 * of their first reads a walk through page tables. size: a multiple of MEM_PAGE_BYTES, all of which
 * is resident as soon as a part is touched. Aligned to a cache line. Free with mem_free_pages. */
#define MEM_PAGE_BYTES MIB(2)
MUST_CHECK void *mem_alloc_pages(struct budget *budget, size_t size);
void mem_free_pages(struct budget *budget, void *block, size_t size);

/* Whether what this thread frees may stay resident for the next who asks, which saves a fault for
 * each of its pages, as it does at first: no budget counts it, so it is only for who has room to
 * spare. Without, all goes back to the kernel as it is freed. For all threads as soon as one says
 * no; a thread takes its no back before it ends. */
void mem_keep_freed(bool keep);

/* The link-time hook below the above; nobody else calls these. */
void *mem_raw_alloc(size_t size, size_t alignment);
void *mem_raw_realloc(void *block, size_t old_size, size_t new_size);
void mem_raw_free(void *block, size_t size);
void *mem_raw_alloc_pages(size_t size);
void mem_raw_free_pages(void *block, size_t size);

#endif
