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

static void
milliseconds_stand_above_a_counter(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0);
    assert_int_equal(hlc_next(&hlc, 1000), 1000 << 16);
    assert_int_equal(hlc_next(&hlc, 1000), (1000 << 16) + 1);
    assert_int_equal(hlc_next(&hlc, 1001), 1001 << 16);
    assert_int_equal(hlc_wall_ms(hlc_next(&hlc, 1001)), 1001);
}

static void
a_wall_clock_that_goes_back_does_not_stop_it(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0);
    u64 before = hlc_next(&hlc, 5000);
    assert_int_equal(hlc_next(&hlc, 4000), before + 1);
    assert_int_equal(hlc_ahead_ms(&hlc, 4000), 1000);
    assert_int_equal(hlc_ahead_ms(&hlc, 6000), 0);
}

static void
a_counter_that_is_used_up_borrows_a_millisecond(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0);
    u64 last = hlc_next(&hlc, 7);
    for (u32 i = 0; i < 65536; i++) {
        u64 next = hlc_next(&hlc, 7);
        assert_true(next > last);
        last = next;
    }
    assert_int_equal(hlc_wall_ms(last), 8);
}

static void
a_restart_goes_on_above_the_floor(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0);
    u64 last = hlc_next(&hlc, 9000);
    hlc_init(&hlc, last);
    assert_true(hlc_next(&hlc, 10) > last); /* the machine woke in 1970 */
}

static void
a_clock_more_than_250_ms_ahead_is_refused_and_changes_nothing(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0);
    u64 now = hlc_next(&hlc, 1000);
    assert_true(status_is(hlc_observe(&hlc, (u64)1251 << 16, 1000), ST_INVALID));
    assert_true(status_is(hlc_observe(&hlc, UINT64_MAX, 1000), ST_INVALID));
    assert_int_equal(hlc.last, now);
    u64 edge = ((u64)1250 << 16) + 65535;
    assert_true(ok(hlc_observe(&hlc, edge, 1000)));
    assert_true(hlc_next(&hlc, 1000) > edge);
}

static void
peers_cannot_push_each_other_ahead_by_turns(void **state)
{
    struct hlc hlc;
    hlc_init(&hlc, 0);
    u64 refused = 0;
    for (u64 i = 0; i < 100; i++) {
        u64 ahead = (hlc_wall_ms(hlc.last) + 200) << 16;
        if (!ok(hlc_observe(&hlc, ahead, 1000))) refused++;
    }
    assert_true(refused > 90);
    assert_true(hlc_ahead_ms(&hlc, 1000) <= HLC_AHEAD_MS_MAX);
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
            hlc_init(&hlc[i], 0);
            wall[i] = 1000000 + prng_below(&prng, 100);
            last[i] = 0;
        }
        for (int step = 0; step < STEPS; step++) {
            u64 from = prng_below(&prng, NODES), to = prng_below(&prng, NODES);
            if (prng_chance(&prng, 1, 500)) wall[from] += prng_below(&prng, 1000);
            if (prng_chance(&prng, 1, 500)) wall[from] -= prng_below(&prng, 1000);
            for (int i = 0; i < NODES; i++)
                wall[i] += prng_below(&prng, 3);
            if (prng_chance(&prng, 1, 100)) hlc_init(&hlc[from], last[from]);
            u64 sent = hlc_next(&hlc[from], wall[from]);
            assert_true(sent > last[from]);
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
        cmocka_unit_test(milliseconds_stand_above_a_counter),
        cmocka_unit_test(a_wall_clock_that_goes_back_does_not_stop_it),
        cmocka_unit_test(a_counter_that_is_used_up_borrows_a_millisecond),
        cmocka_unit_test(a_restart_goes_on_above_the_floor),
        cmocka_unit_test(a_clock_more_than_250_ms_ahead_is_refused_and_changes_nothing),
        cmocka_unit_test(peers_cannot_push_each_other_ahead_by_turns),
        cmocka_unit_test(effects_come_after_causes_in_random_histories),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
