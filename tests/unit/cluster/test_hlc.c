/* SPDX-License-Identifier: MIT
 *
 * test_hlc.c -- the hybrid logical clock: the form of its numbers, then histories of several nodes
 * whose wall clocks are off, jump and stop.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/prng.h"
#include "cluster/hlc.h"

/* Wall clock readings in these tests: a moment in 2033, as good as any. */
#define T0 (HLC_EPOCH_MS + ((u64)400000000000))

static void
milliseconds_counter_and_stamp_stand_side_by_side(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0, 5);
    u64 base = (u64)400000000000 << 23;
    assert_int_equal(hlc_next(&hlc, T0), base | 5);
    assert_int_equal(hlc_next(&hlc, T0), base | 1 << 10 | 5);
    assert_int_equal(hlc_next(&hlc, T0 + 1), (base + (1 << 23)) | 5);
    assert_int_equal(hlc_wall_ms(hlc.last), T0 + 1);
    assert_int_equal(hlc_stamp(hlc.last), 5);
}

static void
versions_lie_above_those_of_single_nodes(void **state)
{
    /* What lsm_write.c stamps on the last day of 2035, against the first version of mid 2026. */
    u64 single = 2082672000000ull << 16;
    struct hlc hlc;
    hlc_init(&hlc, single, 0);
    u64 first = hlc_next(&hlc, 1782864000000ull);
    assert_true(first > single);
    assert_int_equal(hlc_wall_ms(first), 1782864000000ull);
    assert_int_equal(hlc_ahead_ms(&hlc, 1782864000000ull), 0);
}

static void
two_members_never_give_the_same(void **state)
{
    struct hlc a, b;
    hlc_init(&a, 0, 0);
    hlc_init(&b, 0, 1023);
    for (u32 i = 0; i < 1000; i++) {
        u64 from_a = hlc_next(&a, T0 + i / 100), from_b = hlc_next(&b, T0 + i / 100);
        assert_int_equal(from_a >> 10, from_b >> 10);
        assert_true(from_a < from_b);
    }
    /* Whoever has seen the other's goes above it, though its stamp is the lower one. */
    assert_true(ok(hlc_observe(&a, b.last, T0)));
    assert_true(hlc_next(&a, T0) > b.last);
    assert_int_equal(hlc_stamp(a.last), 0);
}

static void
a_wall_clock_that_goes_back_does_not_stop_it(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0, 1);
    u64 before = hlc_next(&hlc, T0 + 5000);
    assert_int_equal(hlc_next(&hlc, T0 + 4000), before + HLC_STAMPS);
    assert_int_equal(hlc_ahead_ms(&hlc, T0 + 4000), 1000);
    assert_int_equal(hlc_ahead_ms(&hlc, T0 + 6000), 0);
}

static void
a_wall_clock_outside_of_the_years_counts_as_the_nearest(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0, 7);
    assert_int_equal(hlc_ahead_ms(&hlc, 0), 0);
    u64 last = 0;
    const u64 walls[] = {0, HLC_EPOCH_MS - 1, HLC_EPOCH_MS, HLC_WALL_MS_MAX, UINT64_MAX, 0};
    for (u32 i = 0; i < ARRAY_COUNT(walls); i++) {
        u64 next = hlc_next(&hlc, walls[i]);
        assert_true(next > last);
        last = next;
    }
    /* At the end a peer cannot push it over: this far there are versions left. */
    assert_true(status_is(hlc_observe(&hlc, UINT64_MAX, UINT64_MAX), ST_INVALID));
    assert_true(hlc_next(&hlc, UINT64_MAX) > last);
}

static void
a_counter_that_is_used_up_borrows_a_millisecond(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0, 1023);
    u64 last = hlc_next(&hlc, T0);
    for (u32 i = 0; i < 1u << HLC_COUNTER_BITS; i++) {
        u64 next = hlc_next(&hlc, T0);
        assert_true(next > last);
        assert_int_equal(hlc_stamp(next), 1023);
        last = next;
    }
    assert_int_equal(hlc_wall_ms(last), T0 + 1);
}

static void
a_restart_goes_on_above_the_floor(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0, 3);
    u64 last = hlc_next(&hlc, T0);
    hlc_init(&hlc, last, 3);
    assert_true(hlc_next(&hlc, 10) > last); /* the machine woke in 1970 */
}

static void
a_clock_more_than_250_ms_ahead_is_refused_and_changes_nothing(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0, 1);
    u64 now = hlc_next(&hlc, T0);
    assert_true(status_is(hlc_observe(&hlc, hlc_version_at(T0 + 251), T0), ST_INVALID));
    assert_true(status_is(hlc_observe(&hlc, UINT64_MAX, T0), ST_INVALID));
    assert_int_equal(hlc.last, now);
    u64 edge = hlc_version_at(T0 + 251) - 1;
    assert_true(ok(hlc_observe(&hlc, edge, T0)));
    assert_true(hlc_next(&hlc, T0) > edge);
}

static void
peers_cannot_push_each_other_ahead_by_turns(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0, 1);
    (void)hlc_next(&hlc, T0);
    u64 refused = 0;
    for (u64 i = 0; i < 100; i++) {
        u64 ahead = hlc_version_at(hlc_wall_ms(hlc.last) + 200);
        if (!ok(hlc_observe(&hlc, ahead, T0))) refused++;
    }
    assert_true(refused > 90);
    assert_true(hlc_ahead_ms(&hlc, T0) <= HLC_AHEAD_MS_MAX);
}

/* Five nodes send each other messages; clocks drift, jump and stand still; nodes restart with the
 * floor of their store. Each message comes after what was before its sending. */
static void
effects_come_after_causes_in_random_histories(void **state)
{
    enum { NODES = 5, STEPS = 20000 };
    u64 refused = 0, taken = 0;
    for (u64 seed = 1; seed <= 5; seed++) {
        struct prng prng;
        prng_init(&prng, seed);
        struct hlc hlc[NODES];
        u64 wall[NODES], last[NODES];
        for (int i = 0; i < NODES; i++) {
            hlc_init(&hlc[i], 0, (u16)i);
            wall[i] = T0 + prng_below(&prng, 100);
            last[i] = 0;
        }
        for (int step = 0; step < STEPS; step++) {
            u64 from = prng_below(&prng, NODES), to = prng_below(&prng, NODES);
            if (prng_chance(&prng, 1, 500)) wall[from] += prng_below(&prng, 1000);
            if (prng_chance(&prng, 1, 500)) wall[from] -= prng_below(&prng, 1000);
            for (int i = 0; i < NODES; i++)
                wall[i] += prng_below(&prng, 3);
            if (prng_chance(&prng, 1, 100)) hlc_init(&hlc[from], last[from], (u16)from);
            u64 sent = hlc_next(&hlc[from], wall[from]);
            assert_true(sent > last[from]);
            assert_int_equal(hlc_stamp(sent), from);
            last[from] = sent;
            u64 before = hlc[to].last;
            if (ok(hlc_observe(&hlc[to], sent, wall[to]))) {
                taken++;
                u64 got = hlc_next(&hlc[to], wall[to]);
                assert_true(got > sent && got > last[to]);
                last[to] = got;
            } else {
                refused++;
                assert_true(hlc_wall_ms(sent) > wall[to] + HLC_AHEAD_MS_MAX);
                assert_int_equal(hlc[to].last, before);
            }
        }
    }
    assert_true(refused > 100 && taken > 10000);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(milliseconds_counter_and_stamp_stand_side_by_side),
        cmocka_unit_test(versions_lie_above_those_of_single_nodes),
        cmocka_unit_test(two_members_never_give_the_same),
        cmocka_unit_test(a_wall_clock_that_goes_back_does_not_stop_it),
        cmocka_unit_test(a_wall_clock_outside_of_the_years_counts_as_the_nearest),
        cmocka_unit_test(a_counter_that_is_used_up_borrows_a_millisecond),
        cmocka_unit_test(a_restart_goes_on_above_the_floor),
        cmocka_unit_test(a_clock_more_than_250_ms_ahead_is_refused_and_changes_nothing),
        cmocka_unit_test(peers_cannot_push_each_other_ahead_by_turns),
        cmocka_unit_test(effects_come_after_causes_in_random_histories),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
