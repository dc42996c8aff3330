/* SPDX-License-Identifier: MIT
 *
 * pages.c -- large pages that count against a budget. Apart from mem.c, so that programs which
 * want none need no hook for them.
 */
#include "base/mem.h"

void *
mem_alloc_pages(struct budget *budget, size_t size)
{
    CHECK(size > 0 && size % MEM_PAGE_BYTES == 0);
    if (!budget_take(budget, size)) return NULL;
    void *block = mem_raw_alloc_pages(size);
    if (block == NULL) budget_give(budget, size);
    return block;
}

void
mem_free_pages(struct budget *budget, void *block, size_t size)
{
    if (block == NULL) return;
    mem_raw_free_pages(block, size);
    budget_give(budget, size);
}
