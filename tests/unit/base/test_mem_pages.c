/* SPDX-License-Identifier: MIT
 *
 * test_mem_pages.c -- large pages from the kernel: they are where they must be, all of them can be
 * written to, and what is given back is gone; and what the allocator keeps of what was freed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <pthread.h>
#include <sys/mman.h>

#include "base/mem.h"

#define BLOCKS 8u

/* Not large pages, but what a value of 1 MiB takes. */
#define VALUES      16u
#define VALUE_BYTES ((size_t)MIB(1) + 100)

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

/* Of the blocks that were there, how many pages are resident. */
static u32
pages_resident(u8 *const *blocks)
{
    u32 count = 0;
    for (u32 i = 0; i < VALUES; i++) {
        uintptr_t first = align_up((uintptr_t)blocks[i], 4096);
        for (uintptr_t at = first; at + 4096 <= (uintptr_t)blocks[i] + VALUE_BYTES; at += 4096) {
            unsigned char resident = 0;
            if (mincore((void *)at, 4096, &resident) == 0) count += resident & 1u;
        }
    }
    return count;
}

/* Every second one first, so that what is freed has neighbours in use. */
static u32
resident_after_freeing(struct budget *budget)
{
    u8 *blocks[VALUES];
    for (u32 i = 0; i < VALUES; i++) {
        blocks[i] = mem_alloc(budget, VALUE_BYTES);
        assert_non_null(blocks[i]);
        memset(blocks[i], 1, VALUE_BYTES);
    }
    assert_true(pages_resident(blocks) >= VALUES * 255);
    for (u32 i = 0; i < VALUES; i++)
        mem_free(budget, blocks[i * 2 % VALUES + i * 2 / VALUES], VALUE_BYTES);
    return pages_resident(blocks);
}

static void
what_is_freed_is_kept_only_by_who_has_room(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", GIB(1), NULL);
    assert_true(resident_after_freeing(&budget) >= VALUES * 128);
    mem_keep_freed(false);
    mem_keep_freed(false); /* said again it changes nothing */
    assert_in_range(resident_after_freeing(&budget), 0, VALUES);
    mem_keep_freed(true);
    assert_true(resident_after_freeing(&budget) >= VALUES * 128);
    assert_int_equal(budget.used_bytes, 0);
}

static void *
short_of_room(void *arg)
{
    struct budget *budget = arg;
    mem_keep_freed(false);
    assert_in_range(resident_after_freeing(budget), 0, VALUES);
    mem_keep_freed(true);
    return NULL;
}

static void
one_that_is_short_decides_for_all(void **state)
{
    (void)state;
    struct budget budget, other;
    budget_init(&budget, "test", GIB(1), NULL);
    budget_init(&other, "other", GIB(1), NULL);
    mem_keep_freed(false);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, short_of_room, &other), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_in_range(resident_after_freeing(&budget), 0, VALUES); /* this one is short still */
    mem_keep_freed(true);
    assert_true(resident_after_freeing(&budget) >= VALUES * 128);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(large_pages_are_aligned_apart_and_given_back),
        cmocka_unit_test(large_pages_beyond_the_budget_are_refused),
        cmocka_unit_test(what_is_freed_is_kept_only_by_who_has_room),
        cmocka_unit_test(one_that_is_short_decides_for_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
