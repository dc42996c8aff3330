/* SPDX-License-Identifier: MIT
 *
 * mem.c -- see mem.h: budgets, and what is common to both allocators. Every byte is counted in its
 * budget and all of that one's parents before it is taken, so that a limit is never passed.
 */
#include "base/mem.h"

#define MEM_ALIGNMENT 16u

void
budget_init(struct budget *budget, const char *name, u64 limit_bytes, struct budget *parent)
{
    *budget = (struct budget){.parent = parent, .limit_bytes = limit_bytes, .name = name};
}

/* What of size, on top of what is used, the parent has not counted as reserved. */
static u64
above_reserve(const struct budget *budget, u64 used, u64 size)
{
    u64 reserved = budget->reserved_bytes > used ? budget->reserved_bytes - used : 0;
    return size > reserved ? size - reserved : 0;
}

static u64
left_in(const struct budget *budget)
{
    return budget->limit_bytes - MIN(budget->limit_bytes, budget->used_bytes);
}

bool
budget_take(struct budget *budget, u64 size)
{
    u64 rest = size;
    for (const struct budget *b = budget; b != NULL; b = b->parent) {
        if (rest > left_in(b)) return false;
        rest = above_reserve(b, b->used_bytes, rest);
    }
    rest = size;
    for (struct budget *b = budget; b != NULL; b = b->parent) {
        u64 above = above_reserve(b, b->used_bytes, rest);
        b->used_bytes += rest;
        b->used_bytes_max = MAX(b->used_bytes_max, b->used_bytes);
        if (b->parent != NULL) b->parent->spare_bytes -= rest - above;
        rest = above;
    }
    return true;
}

void
budget_give(struct budget *budget, u64 size)
{
    for (struct budget *b = budget; b != NULL; b = b->parent) {
        CHECK(b->used_bytes >= size);
        b->used_bytes -= size;
        u64 above = above_reserve(b, b->used_bytes, size);
        if (b->parent != NULL) b->parent->spare_bytes += size - above;
        size = above;
    }
}

bool
budget_reserve(struct budget *budget, u64 size)
{
    CHECK(budget->used_bytes == 0 && budget->reserved_bytes == 0 && size <= budget->limit_bytes);
    if (!budget_take(budget->parent, size)) return false;
    budget->parent->spare_bytes += size;
    budget->reserved_bytes = size;
    return true;
}

void
budget_unreserve(struct budget *budget)
{
    CHECK(budget->used_bytes == 0);
    if (budget->reserved_bytes == 0) return;
    budget->parent->spare_bytes -= budget->reserved_bytes;
    budget_give(budget->parent, budget->reserved_bytes);
    budget->reserved_bytes = 0;
}

bool
budget_take_over(struct budget *budget, u64 size)
{
    CHECK(budget->reserved_bytes == 0);
    if (size > left_in(budget)) return false;
    budget->used_bytes += size;
    budget->used_bytes_max = MAX(budget->used_bytes_max, budget->used_bytes);
    CHECK(budget->parent->used_bytes >= budget->used_bytes);
    return true;
}

u64
budget_available(const struct budget *budget)
{
    if (budget == NULL) return UINT64_MAX;
    u64 reserved = budget->reserved_bytes - MIN(budget->reserved_bytes, budget->used_bytes);
    u64 above = budget_available(budget->parent);
    return MIN(left_in(budget), above > UINT64_MAX - reserved ? UINT64_MAX : above + reserved);
}

void *
mem_alloc_aligned(struct budget *budget, size_t size, size_t alignment)
{
    CHECK(size > 0);
    if (!budget_take(budget, size)) return NULL;
    void *block = mem_raw_alloc(size, alignment);
    if (block == NULL) budget_give(budget, size);
    return block;
}

void *
mem_alloc(struct budget *budget, size_t size)
{
    return mem_alloc_aligned(budget, size, MEM_ALIGNMENT);
}

void *
mem_alloc_zero(struct budget *budget, size_t size)
{
    void *block = mem_alloc(budget, size);
    if (block != NULL) memset(block, 0, size);
    return block;
}

void *
mem_realloc(struct budget *budget, void *block, size_t old_size, size_t new_size)
{
    CHECK(new_size > 0);
    if (block == NULL) {
        CHECK(old_size == 0);
        return mem_alloc(budget, new_size);
    }
    if (new_size > old_size && !budget_take(budget, new_size - old_size)) return NULL;
    void *moved = mem_raw_realloc(block, old_size, new_size);
    if (moved == NULL) {
        if (new_size > old_size) budget_give(budget, new_size - old_size);
        return NULL;
    }
    if (new_size < old_size) budget_give(budget, old_size - new_size);
    return moved;
}

void
mem_free(struct budget *budget, void *block, size_t size)
{
    if (block == NULL) return;
    mem_raw_free(block, size);
    budget_give(budget, size);
}
