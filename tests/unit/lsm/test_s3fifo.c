/* SPDX-License-Identifier: MIT
 *
 * test_s3fifo.c -- the index that both caches share, against a list that is searched from end to
 * end: growing, shrinking, buckets of several lines, hashes that agree in many bits, and memory
 * that runs out.
 */
#include "lsm/s3fifo.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/prng.h"

#define NODES 6000u

static struct s3fifo_node nodes[NODES];
static bool inside[NODES];

static bool
is_found(const struct s3fifo *cache, const struct s3fifo_node *node)
{
    const struct s3fifo_bucket *bucket = s3fifo_bucket(cache, node->hash);
    struct s3fifo_node *candidate;
    bool found = false;
    for (u32 place = 0; (candidate = s3fifo_next(&bucket, &place, node->hash)) != NULL;) {
        if (candidate != node) continue;
        assert_false(found); /* once */
        found = true;
    }
    return found;
}

static void
check(const struct s3fifo *cache)
{
    assert_true(s3fifo_check(cache));
    for (u32 i = 0; i < NODES; i++)
        assert_true(is_found(cache, &nodes[i]) == inside[i]);
}

struct refusals {
    u64 refused;
};

/* Nodes come and go, more of them coming first and more going then, three times. */
static void
run(u64 seed, u32 hash_mask, u64 budget_bytes, struct refusals *out)
{
    struct budget budget;
    budget_init(&budget, "test", budget_bytes, NULL);
    struct s3fifo cache;
    assert_true(s3fifo_init(&cache, &budget, MIB(64), 512));
    struct prng prng;
    prng_init(&prng, seed);
    for (u32 i = 0; i < NODES; i++) {
        nodes[i] = (struct s3fifo_node){.hash = (u32)prng_u64(&prng) & hash_mask, .size = 64};
        list_init(&nodes[i].link);
        inside[i] = false;
    }
    u64 count = 0;
    for (u32 step = 0; step < 60000; step++) {
        u32 i = (u32)prng_below(&prng, NODES);
        bool growing = step / 10000 % 2 == 0;
        bool insert = prng_below(&prng, 10) < (growing ? 8u : 2u);
        if (insert && !inside[i]) {
            inside[i] = s3fifo_insert(&cache, &nodes[i]);
            out->refused += !inside[i];
            count += inside[i];
        } else if (!insert && inside[i]) {
            s3fifo_remove(&cache, &nodes[i]);
            inside[i] = false;
            count--;
        }
        if (step % 5000 == 0) check(&cache);
        assert_int_equal(s3fifo_count(&cache), count);
    }
    check(&cache);
    for (u32 i = 0; i < NODES; i++)
        if (inside[i]) s3fifo_remove(&cache, &nodes[i]);
    assert_true(s3fifo_check(&cache));
    s3fifo_deinit(&cache);
    assert_int_equal(budget.used_bytes, 0);
}

static void
it_finds_what_is_in_it_and_nothing_else(void **state)
{
    (void)state;
    struct refusals none = {0};
    for (u64 seed = 1; seed <= 3; seed++)
        run(seed, UINT32_MAX, MIB(16), &none);
    assert_int_equal(none.refused, 0);
}

static void
hashes_that_agree_in_many_bits_only_make_buckets_longer(void **state)
{
    (void)state;
    struct refusals none = {0};
    run(4, 0xffff000fu, MIB(16), &none); /* sixteen buckets, told apart by tags */
    run(5, 0x00000fffu, MIB(16), &none); /* one tag */
    run(6, 0x00000007u, MIB(16), &none); /* neither */
    assert_int_equal(none.refused, 0);
}

static void
without_memory_it_takes_in_less(void **state)
{
    (void)state;
    struct refusals refusals = {0};
    run(7, UINT32_MAX, KIB(64), &refusals); /* a few segments, then no more */
    run(8, 0x00000fffu, KIB(28), &refusals);
    assert_true(refusals.refused > 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_finds_what_is_in_it_and_nothing_else),
        cmocka_unit_test(hashes_that_agree_in_many_bits_only_make_buckets_longer),
        cmocka_unit_test(without_memory_it_takes_in_less),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
