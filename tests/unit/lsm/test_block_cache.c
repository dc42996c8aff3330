/* SPDX-License-Identifier: MIT
 *
 * test_block_cache.c -- blocks, pins and files that go away.
 */
#include "lsm/cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/prng.h"

static struct block *
block_filled(struct budget *budget, u64 file_id, u64 offset, u32 size)
{
    struct block *block = block_new(budget, file_id, offset, size);
    assert_non_null(block);
    memset(block->data, (u8)(file_id * 31 + offset), size);
    return block;
}

static void
block_assert(const struct block *block, u64 file_id, u64 offset)
{
    assert_int_equal(block->file_id, file_id);
    assert_int_equal(block->offset, offset);
    for (u32 i = 0; i < block->size; i++)
        assert_int_equal(block->data[i], (u8)(file_id * 31 + offset));
}

static void
all_steps(struct block_cache *cache)
{
    while (block_cache_step(cache)) {
    }
}

static void
pinned_blocks_outlive_eviction_and_dropping(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct block_cache *cache = block_cache_new(&budget, KIB(512));
    struct block *pinned = block_filled(&budget, 1, 4096, 4000);
    block_cache_insert(cache, pinned);
    for (u64 i = 0; i < 1000; i++) { /* pushes everything else out */
        struct block *block = block_filled(&budget, 2, i * 4096, 4000);
        block_cache_insert(cache, block);
        block_cache_unpin(block);
    }
    block_assert(pinned, 1, 4096);
    assert_null(pinned->owner);
    assert_null(block_cache_get(cache, 1, 4096));

    struct block *other = block_cache_get(cache, 2, 999 * 4096);
    assert_non_null(other);
    block_cache_drop_file(cache, 2);
    all_steps(cache);
    assert_null(block_cache_get(cache, 2, 999 * 4096));
    block_assert(other, 2, 999 * 4096);
    struct cache_stats stats;
    block_cache_stats(cache, &stats);
    assert_int_equal(stats.entries, 0);
    assert_true(block_cache_check(cache));
    block_cache_free(cache);
    block_assert(other, 2, 999 * 4096);
    block_cache_unpin(other);
    block_cache_unpin(pinned);
    assert_int_equal(budget.used_bytes, 0);
}

static void
the_second_of_two_equal_blocks_stays_private(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct block_cache *cache = block_cache_new(&budget, MIB(1));
    struct block *first = block_filled(&budget, 5, 100, 300);
    struct block *second = block_filled(&budget, 5, 100, 300);
    block_cache_insert(cache, first);
    block_cache_insert(cache, second);
    assert_null(second->owner);
    block_cache_unpin(second);
    struct block *hit = block_cache_get(cache, 5, 100);
    assert_ptr_equal(hit, first);
    block_cache_unpin(hit);
    block_cache_unpin(first);
    block_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

#define MODEL_FILES  8u
#define MODEL_BLOCKS 400u

static void
it_never_returns_what_was_dropped(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct block_cache *cache = block_cache_new(&budget, MIB(1));
    static bool present[MODEL_FILES][MODEL_BLOCKS];
    u64 ids[MODEL_FILES], id_next = 1, oldest_read = 0;
    for (u32 i = 0; i < MODEL_FILES; i++)
        ids[i] = id_next++;
    struct block *pins[16] = {0};
    struct prng prng;
    prng_init(&prng, 3);
    u64 hits = 0;
    for (u32 step = 0; step < 100000; step++) {
        u32 file = (u32)prng_below(&prng, MODEL_FILES), n = (u32)prng_below(&prng, MODEL_BLOCKS);
        u32 pin = (u32)prng_below(&prng, ARRAY_COUNT(pins));
        u32 action = (u32)prng_below(&prng, 1000);
        block_cache_unpin(pins[pin]);
        pins[pin] = NULL;
        if (action < 990) {
            struct block *block = block_cache_get(cache, ids[file], n * 10);
            if (block != NULL) {
                hits++;
                assert_true(present[file][n]);
                block_assert(block, ids[file], n * 10);
            } else {
                block = block_filled(&budget, ids[file], n * 10, 1 + (u32)prng_below(&prng, 4000));
                block_cache_insert(cache, block);
                present[file][n] = true;
            }
            pins[pin] = block;
        } else if (action < 997) {
            (void)block_cache_step(cache);
        } else if (action < 999) {
            block_cache_drop_file(cache, ids[file]);
            ids[file] = id_next++; /* no file has the number of another one */
            memset(present[file], 0, sizeof(present[file]));
        } else {
            block_cache_limit_set(cache, KIB(128) + prng_below(&prng, MIB(2)));
        }
        if (step % 1000 == 0) {
            assert_true(block_cache_check(cache));
            all_steps(cache);
            for (u64 id = oldest_read; id < id_next; id++) {
                bool live = false;
                for (u32 i = 0; i < MODEL_FILES; i++)
                    live |= ids[i] == id;
                for (u32 i = 0; !live && i < MODEL_BLOCKS; i++)
                    assert_null(block_cache_get(cache, id, i * 10));
            }
            oldest_read = id_next - MIN(id_next, 2 * MODEL_FILES);
        }
    }
    assert_true(hits > 5000 && id_next > 100);
    for (u32 i = 0; i < ARRAY_COUNT(pins); i++)
        block_cache_unpin(pins[i]);
    block_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

/* However much is cached of however many: nobody is to wait for it, and it goes before what is of use. */
static void
files_are_dropped_in_steps(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(256), NULL);
    struct block_cache *cache = block_cache_new(&budget, MIB(128));
    const u64 files = 40, blocks = 250;
    for (u64 i = 0; i < (files + 1) * blocks; i++) {
        struct block *block = block_filled(&budget, i % (files + 1), i / (files + 1) * 4096, 4000);
        block_cache_insert(cache, block);
        block_cache_unpin(block);
    }
    struct cache_stats before, stats;
    block_cache_stats(cache, &before);
    assert_int_equal(before.entries, (files + 1) * blocks);
    for (u64 i = 0; i < files; i++) /* the last one stays */
        block_cache_drop_file(cache, i);
    block_cache_stats(cache, &stats);
    assert_int_equal(stats.entries, before.entries);
    block_cache_limit_set(cache, MIB(2)); /* more than the one takes */
    u64 steps = 0;
    for (bool more = true; more; steps++) {
        before = stats;
        more = block_cache_step(cache);
        block_cache_stats(cache, &stats);
        assert_true(before.entries - stats.entries <= 128);
        assert_true(block_cache_check(cache));
    }
    assert_true(steps >= files * blocks / 128);
    assert_int_equal(stats.entries, blocks);
    block_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

static void
without_memory_to_note_it_a_file_is_evicted_in_time(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(1), NULL);
    struct block_cache *cache = block_cache_new(&budget, KIB(256));
    struct block *block = block_filled(&budget, 1, 0, 4000);
    block_cache_insert(cache, block);
    block_cache_unpin(block);
    budget.limit_bytes = budget.used_bytes;
    block_cache_drop_file(cache, 1);
    assert_false(block_cache_step(cache));
    budget.limit_bytes = MIB(1);
    block_cache_limit_set(cache, 1);
    all_steps(cache);
    assert_null(block_cache_get(cache, 1, 0));
    block_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

static void
a_limit_below_what_the_index_takes_ends_when_it_is_empty(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(1), NULL);
    struct block_cache *cache = block_cache_new(&budget, KIB(256));
    assert_non_null(cache);
    struct block *block = block_new(&budget, 1, 0, 4000);
    block_cache_insert(cache, block);
    block_cache_unpin(block);
    block_cache_limit_set(cache, 1);
    all_steps(cache);
    assert_null(block_cache_get(cache, 1, 0));
    assert_true(block_cache_check(cache));
    block_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

static void
no_memory_for_a_block_is_null(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", 1000, NULL);
    assert_null(block_new(&budget, 1, 0, 4000));
    assert_int_equal(budget.used_bytes, 0);
}

/* The allocator's classes are four to a power of two; ours must not be smaller than asked. */
static void
sizes_round_up_to_classes_of_the_allocator(void **unused)
{
    assert_int_equal(s3fifo_round_size(1), 16);
    assert_int_equal(s3fifo_round_size(64), 64);
    assert_int_equal(s3fifo_round_size(65), 80);
    assert_int_equal(s3fifo_round_size(4096), 4096);
    assert_int_equal(s3fifo_round_size(4097), 5120);
    for (u32 size = 1; size < 100000; size += 7) {
        u32 rounded = s3fifo_round_size(size);
        assert_true(rounded >= size && rounded % 16 == 0);
        assert_true(size <= 64 || rounded <= size + size / 4 + 1);
        assert_int_equal(s3fifo_round_size(rounded), rounded);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pinned_blocks_outlive_eviction_and_dropping),
        cmocka_unit_test(the_second_of_two_equal_blocks_stays_private),
        cmocka_unit_test(it_never_returns_what_was_dropped),
        cmocka_unit_test(files_are_dropped_in_steps),
        cmocka_unit_test(without_memory_to_note_it_a_file_is_evicted_in_time),
        cmocka_unit_test(a_limit_below_what_the_index_takes_ends_when_it_is_empty),
        cmocka_unit_test(no_memory_for_a_block_is_null),
        cmocka_unit_test(sizes_round_up_to_classes_of_the_allocator),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
