/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "load/keys.h"

#define DRAWS 2000000u

/* How often each of count keys comes in DRAWS; the caller frees. */
static u64 *
draw(enum key_order order, u64 count, double theta)
{
    u64 window[1] = {0};
    struct keys keys;
    struct prng prng;
    prng_init(&prng, 7);
    keys_init(&keys, order, count, theta, 0, 1, window, 64);
    u64 *seen = calloc(count, sizeof(*seen));
    assert_non_null(seen);
    for (u32 i = 0; i < DRAWS; i++) {
        u64 number = keys_pick(&keys, &prng);
        assert_true(number < count);
        seen[number]++;
    }
    return seen;
}

static int
descending(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void
uniform_keys_come_equally_often(void **state)
{
    u64 *seen = draw(KEYS_UNIFORM, 1000, 0.99);
    for (u32 i = 0; i < 1000; i++)
        assert_in_range(seen[i], 2000 - 250, 2000 + 250); /* 5.6 standard deviations */
    free(seen);
}

/* Of n keys the part that the first k make up: the sum of r^-theta to k by that to n. */
static double
share(u64 k, u64 n, double theta)
{
    double part = 0, all = 0;
    for (u64 r = 1; r <= n; r++) {
        double weight = pow((double)r, -theta);
        all += weight;
        if (r <= k) part += weight;
    }
    return part / all;
}

static void
zipf_keys_come_as_often_as_their_rank_says(void **state)
{
    const u64 count = 10000;
    u64 *seen = draw(KEYS_ZIPF, count, 0.99);
    qsort(seen, count, sizeof(*seen), descending);
    u64 sum = 0, next = 0;
    static const u64 ranks[] = {1, 2, 100, 1000, 5000};
    for (u32 i = 0; i < ARRAY_COUNT(ranks); i++) {
        while (next < ranks[i])
            sum += seen[next++];
        double got = (double)sum / DRAWS, wanted = share(ranks[i], count, 0.99);
        /* The method is an approximation: a few percent off around the third rank. */
        assert_true(fabs(got - wanted) < 0.02);
    }
    free(seen);
}

static void
zipf_spreads_the_frequent_keys(void **state)
{
    u64 *seen = draw(KEYS_ZIPF, 1000, 0.99);
    u64 first_tenth = 0;
    for (u32 i = 0; i < 100; i++)
        first_tenth += seen[i];
    /* Unspread, the first tenth of the numbers would take about two thirds. */
    assert_true(first_tenth < DRAWS * 4ull / 10);
    free(seen);
}

static void
every_zipf_key_can_come(void **state)
{
    u64 *seen = draw(KEYS_ZIPF, 97, 0.5);
    for (u32 i = 0; i < 97; i++)
        assert_true(seen[i] > 0);
    free(seen);
}

static void
one_key_and_two_keys_are_enough(void **state)
{
    static const enum key_order orders[] = {KEYS_UNIFORM, KEYS_ZIPF, KEYS_LATEST, KEYS_SEQUENTIAL};
    for (u32 i = 0; i < ARRAY_COUNT(orders); i++)
        for (u64 count = 1; count <= 2; count++)
            free(draw(orders[i], count, 0.99));
}

static void
the_sum_behind_zipf_is_exact_where_it_is_approximated(void **state)
{
    struct zipf whole, grown;
    zipf_init(&whole, 1000000, 0.99);
    double sum = 0;
    for (u64 r = 1; r <= 1000000; r++)
        sum += pow((double)r, -0.99);
    assert_true(fabs(whole.zeta - sum) < 1e-6);
    zipf_init(&grown, 999000, 0.99);
    for (u32 i = 0; i < 1000; i++)
        zipf_grow(&grown);
    assert_true(grown.count == 1000000);
    assert_true(fabs(grown.zeta - whole.zeta) < 1e-6);
    assert_true(fabs(grown.eta - whole.eta) < 1e-9);
}

static void
latest_prefers_what_was_inserted_last(void **state)
{
    u64 window[16] = {0};
    struct keys keys;
    struct prng prng;
    prng_init(&prng, 1);
    keys_init(&keys, KEYS_LATEST, 1000, 0.99, 1, 3, window, 1024);
    u64 first = keys_insert(&keys), second = keys_insert(&keys), third = keys_insert(&keys);
    assert_int_equal(first, 1001);
    assert_int_equal(second, 1004);
    assert_int_equal(third, 1007);
    /* Not acknowledged yet: nobody reads them. */
    for (u32 i = 0; i < 10000; i++)
        assert_true(keys_pick(&keys, &prng) < 1000);
    keys_insert_done(&keys, third);
    keys_insert_done(&keys, second);
    for (u32 i = 0; i < 10000; i++)
        assert_true(keys_pick(&keys, &prng) < 1000);
    keys_insert_done(&keys, first);
    u32 newest = 0, others = 0;
    for (u32 i = 0; i < 10000; i++) {
        u64 number = keys_pick(&keys, &prng);
        assert_true(number < 1000 || number == first || number == second || number == third);
        newest += number == third;
        others += number == second;
    }
    assert_true(newest > others && others > 100);
}

static void
inserts_go_on_around_the_window(void **state)
{
    u64 window[1] = {0};
    struct keys keys;
    keys_init(&keys, KEYS_LATEST, 10, 0.99, 0, 1, window, 64);
    for (u64 round = 0; round < 100; round++) {
        u64 numbers[7];
        for (u32 i = 0; i < 7; i++)
            numbers[i] = keys_insert(&keys);
        for (u32 i = 7; i-- > 0;)
            keys_insert_done(&keys, numbers[i]);
        assert_int_equal(keys.inserts_done, 7 * (round + 1));
    }
}

static void
sequential_threads_cover_all_keys_once_a_round(void **state)
{
    u32 seen[100] = {0};
    u64 window[1] = {0};
    struct prng prng;
    prng_init(&prng, 1);
    for (u64 thread = 0; thread < 3; thread++) {
        struct keys keys;
        keys_init(&keys, KEYS_SEQUENTIAL, 100, 0.99, thread, 3, window, 64);
        for (u64 i = 0; i < 2 * ((100 - thread + 2) / 3); i++)
            seen[keys_pick(&keys, &prng)]++;
    }
    for (u32 i = 0; i < 100; i++)
        assert_int_equal(seen[i], 2);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uniform_keys_come_equally_often),
        cmocka_unit_test(zipf_keys_come_as_often_as_their_rank_says),
        cmocka_unit_test(zipf_spreads_the_frequent_keys),
        cmocka_unit_test(every_zipf_key_can_come),
        cmocka_unit_test(one_key_and_two_keys_are_enough),
        cmocka_unit_test(the_sum_behind_zipf_is_exact_where_it_is_approximated),
        cmocka_unit_test(latest_prefers_what_was_inserted_last),
        cmocka_unit_test(inserts_go_on_around_the_window),
        cmocka_unit_test(sequential_threads_cover_all_keys_once_a_round),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
