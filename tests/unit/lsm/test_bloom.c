/* SPDX-License-Identifier: MIT
 *
 * test_bloom.c -- no false negative ever, and the rate of false positives that was bought.
 */
#include "lsm/bloom.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/hash.h"

static u64
key_hash_of(u64 i)
{
    char text[32];
    int size = snprintf(text, sizeof(text), "key:%llu", (unsigned long long)i);
    return hash_key(BYTES(text, (size_t)size), 0);
}

/* In parts per million. */
static u64
false_positive_ppm(const u8 *lines, u64 line_count, u32 probes, u64 first)
{
    const u64 tries = 200000;
    u64 hits = 0;
    for (u64 i = 0; i < tries; i++)
        hits += bloom_may_contain(lines, line_count, probes, key_hash_of(first + i));
    return hits * 1000000 / tries;
}

static void
ten_bits_a_key_give_about_one_percent(void **unused)
{
    const u64 keys = 100000;
    u64 line_count = bloom_line_count(keys, 10);
    u32 probes = bloom_probe_count(10);
    u8 *lines = calloc(line_count, BLOOM_LINE_BYTES);
    for (u64 i = 0; i < keys; i++)
        bloom_add(lines, line_count, probes, key_hash_of(i));
    for (u64 i = 0; i < keys; i++)
        assert_true(bloom_may_contain(lines, line_count, probes, key_hash_of(i)));
    u64 ppm = false_positive_ppm(lines, line_count, probes, 1 << 30);
    assert_in_range(ppm, 5000, 13000);
    free(lines);
}

static void
fourteen_bits_a_key_give_a_fraction_of_that(void **unused)
{
    const u64 keys = 100000;
    u64 line_count = bloom_line_count(keys, 14);
    u32 probes = bloom_probe_count(14);
    u8 *lines = calloc(line_count, BLOOM_LINE_BYTES);
    for (u64 i = 0; i < keys; i++)
        bloom_add(lines, line_count, probes, key_hash_of(i));
    assert_in_range(false_positive_ppm(lines, line_count, probes, 1 << 30), 500, 3500);
    free(lines);
}

/* The keys of a table share the top bits of their hash when the table is a narrow slice. */
static void
keys_that_share_their_top_bits_are_spread_all_the_same(void **unused)
{
    const u64 keys = 20000;
    u64 line_count = bloom_line_count(keys, 10);
    u8 *lines = calloc(line_count, BLOOM_LINE_BYTES);
    u64 state = 5;
    u64 used = 0;
    while (used < keys) {
        u64 hash = 0xabcdull << 48 | key_hash_of(state++) >> 16;
        bloom_add(lines, line_count, 6, hash);
        used++;
    }
    u64 hits = 0;
    for (u64 i = 0; i < 100000; i++)
        hits += bloom_may_contain(lines, line_count, 6,
                                  0xabcdull << 48 | key_hash_of((1 << 30) + i) >> 16);
    assert_in_range(hits, 300, 1500);
    free(lines);
}

static void
a_folded_filter_keeps_its_keys(void **unused)
{
    const u64 announced = 100000, keys = 3000;
    u64 line_count = bloom_line_count(announced, 10);
    u32 probes = bloom_probe_count(10);
    u8 *lines = calloc(line_count, BLOOM_LINE_BYTES);
    for (u64 i = 0; i < keys; i++)
        bloom_add(lines, line_count, probes, key_hash_of(i));
    u64 wanted = bloom_line_count(keys, 10);
    u64 folded = bloom_fold(lines, line_count, wanted);
    assert_true(folded >= wanted);
    assert_true(folded < 2 * wanted || folded % 2 == 1);
    for (u64 i = 0; i < keys; i++)
        assert_true(bloom_may_contain(lines, folded, probes, key_hash_of(i)));
    assert_true(false_positive_ppm(lines, folded, probes, 1 << 30) < 13000);
    free(lines);
}

static void
the_smallest_filter_is_one_line(void **unused)
{
    assert_int_equal(bloom_line_count(0, 10), 1);
    assert_int_equal(bloom_line_count(1, 10), 1);
    assert_int_equal(bloom_line_count(100, 10), 2);
    assert_int_equal(bloom_line_count(1000000, 10) % 64, 0);
    assert_int_equal(bloom_probe_count(10), 6);
    assert_int_equal(bloom_probe_count(1), 1);
    u8 line[BLOOM_LINE_BYTES] ALIGNED(64) = {0};
    assert_false(bloom_may_contain(line, 1, 6, 42));
    bloom_add(line, 1, 6, 42);
    assert_true(bloom_may_contain(line, 1, 6, 42));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_bits_a_key_give_about_one_percent),
        cmocka_unit_test(fourteen_bits_a_key_give_a_fraction_of_that),
        cmocka_unit_test(keys_that_share_their_top_bits_are_spread_all_the_same),
        cmocka_unit_test(a_folded_filter_keeps_its_keys),
        cmocka_unit_test(the_smallest_filter_is_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
