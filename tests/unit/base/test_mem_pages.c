/* SPDX-License-Identifier: MIT
 *
 * test_mem_pages.c -- large pages from the kernel: they are where they must be, all of them can be
 * written to, and what is given back is gone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <sys/mman.h>

#include "base/mem.h"

#define BLOCKS 8u

/* Whether something lies at this address. */
static bool
is_mapped(const u8 *address)
{
    unsigned char resident;
    return mincore((void *)(uintptr_t)address, 4096, &resident) == 0;
}

static void
large_pages_are_aligned_apart_and_given_back(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", 2 * BLOCKS * MEM_PAGE_BYTES, NULL);
    u8 *blocks[BLOCKS];
    for (u32 i = 0; i < BLOCKS; i++) {
        size_t size = (1 + i % 2) * MEM_PAGE_BYTES;
        blocks[i] = mem_alloc_pages(&budget, size);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % MEM_PAGE_BYTES, 0);
        memset(blocks[i], (int)i, size);
    }
    assert_int_equal(budget.used_bytes, BLOCKS / 2 * 3 * MEM_PAGE_BYTES);
    for (u32 i = 0; i < BLOCKS; i++) {
        size_t size = (1 + i % 2) * MEM_PAGE_BYTES;
        for (size_t at = 0; at < size; at++)
            if (blocks[i][at] != i) fail_msg("block %u, byte %zu", i, at);
        mem_free_pages(&budget, blocks[i], size);
        assert_false(is_mapped(blocks[i]));
        assert_false(is_mapped(blocks[i] + size - 4096));
    }
    assert_int_equal(budget.used_bytes, 0);
}

static void
large_pages_beyond_the_budget_are_refused(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", 3 * MEM_PAGE_BYTES - 1, NULL);
    u8 *block = mem_alloc_pages(&budget, MEM_PAGE_BYTES);
    assert_non_null(block);
    assert_null(mem_alloc_pages(&budget, 2 * MEM_PAGE_BYTES));
    /* Nor what the machine has not. */
    budget.limit_bytes = UINT64_MAX;
    assert_null(mem_alloc_pages(&budget, (size_t)1 << 50));
    assert_int_equal(budget.used_bytes, MEM_PAGE_BYTES);
    mem_free_pages(&budget, block, MEM_PAGE_BYTES);
    mem_free_pages(&budget, NULL, MEM_PAGE_BYTES);
    assert_int_equal(budget.used_bytes, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(large_pages_are_aligned_apart_and_given_back),
        cmocka_unit_test(large_pages_beyond_the_budget_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
