/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include <stdlib.h>

#include "base/prng.h"
#include "load/latency.h"

static struct latency *
new_latency(void)
{
    struct latency *l = calloc(1, sizeof(*l));
    assert_non_null(l);
    return l;
}

static void
every_value_falls_into_a_bucket_that_is_close_to_it(void **state)
{
    u32 before = 0;
    for (u64 ns = 0; ns < 1ull << LATENCY_VALUE_BITS; ns = ns < 1000 ? ns + 1 : ns + ns / 97) {
        u32 bucket = latency_bucket(ns);
        assert_true(bucket < LATENCY_BUCKETS && bucket >= before);
        before = bucket;
        u64 last = latency_bucket_last(bucket);
        assert_true(last >= ns);
        assert_true((double)(last - ns) <= (double)ns / 128);
        assert_true(latency_bucket(last) == bucket && latency_bucket(last + 1) != bucket);
    }
    assert_int_equal(latency_bucket(UINT64_MAX), LATENCY_BUCKETS - 1);
}

static int
ascending(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

static void
percentiles_are_those_of_the_sorted_values(void **state)
{
    enum { COUNT = 100000 };
    struct latency *l = new_latency();
    u64 *sorted = malloc(COUNT * sizeof(*sorted));
    assert_non_null(sorted);
    struct prng prng;
    prng_init(&prng, 3);
    for (u32 i = 0; i < COUNT; i++) {
        sorted[i] = 1000 + (prng_u64(&prng) >> (24 + prng_below(&prng, 24)));
        latency_record(l, sorted[i]);
    }
    qsort(sorted, COUNT, sizeof(*sorted), ascending);
    static const double parts[] = {0.00001, 0.01, 0.5, 0.9, 0.99, 0.999, 0.9999};
    for (u32 i = 0; i < ARRAY_COUNT(parts); i++) {
        u64 exact = sorted[(u32)(parts[i] * COUNT + 0.999999) - 1];
        u64 got = latency_percentile_ns(l, parts[i]);
        assert_true(got >= exact && (double)(got - exact) <= (double)exact / 128);
    }
    assert_true(latency_percentile_ns(l, 1) == sorted[COUNT - 1]);
    assert_true(l->max_ns == sorted[COUNT - 1]);
    assert_true(latency_count(l) == COUNT);
    free(sorted);
    free(l);
}

static void
nothing_recorded_is_zero(void **state)
{
    struct latency *l = new_latency();
    assert_true(latency_percentile_ns(l, 0.5) == 0 && latency_mean_ns(l) == 0);
    latency_record(l, 0);
    assert_true(latency_percentile_ns(l, 0.5) == 0 && latency_count(l) == 1);
    free(l);
}

static void
longer_than_the_scale_counts_with_its_true_maximum(void **state)
{
    struct latency *l = new_latency();
    u64 day_ns = 86400 * NS_PER_S;
    latency_record(l, 1000);
    latency_record(l, day_ns);
    assert_true(latency_percentile_ns(l, 1) == day_ns);
    assert_true(latency_percentile_ns(l, 0.5) < 1100);
    free(l);
}

static void
merging_and_taking_apart_keep_every_recording(void **state)
{
    struct latency *a = new_latency(), *b = new_latency(), *between = new_latency();
    latency_record(a, 5000);
    *b = *a;
    latency_record(b, 70);
    latency_record(b, 900000);
    latency_between(between, a, b);
    assert_true(latency_count(between) == 2 && between->sum_ns == 900070);
    assert_true(between->max_ns == 900000);
    latency_merge(a, between);
    assert_memory_equal(a, b, sizeof(*a));
    free(a);
    free(b);
    free(between);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_falls_into_a_bucket_that_is_close_to_it),
        cmocka_unit_test(percentiles_are_those_of_the_sorted_values),
        cmocka_unit_test(nothing_recorded_is_zero),
        cmocka_unit_test(longer_than_the_scale_counts_with_its_true_maximum),
        cmocka_unit_test(merging_and_taking_apart_keep_every_recording),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
