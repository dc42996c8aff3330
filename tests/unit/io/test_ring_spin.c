/* SPDX-License-Identifier: MIT
 *
 * test_ring_spin.c -- when a shard polls before it sleeps.
 */
#include "io/ring_spin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/prng.h"

/* How many of `waits` are polled, when something comes within what is polled in so many of a
 * hundred. */
static u32
polled(struct ring_spin *spin, u32 percent, u32 waits)
{
    struct prng prng;
    prng_init(&prng, 1);
    u32 count = 0;
    for (u32 i = 0; i < waits; i++) {
        bool comes = prng_below(&prng, 100) < percent;
        if (!ring_spin_wanted(spin)) continue;
        count++;
        ring_spin_note(spin, comes);
    }
    return count;
}

static void
it_polls_while_that_finds_something(void **state)
{
    struct ring_spin spin;
    ring_spin_init(&spin);
    assert_int_equal(polled(&spin, 100, 10000), 10000);
    assert_int_equal(polled(&spin, 50, 10000), 10000);
}

static void
it_stops_where_nothing_comes_in_time_and_looks_now_and_then(void **state)
{
    struct ring_spin spin;
    ring_spin_init(&spin);
    assert_int_equal(polled(&spin, 0, SPIN_CREDIT_MAX), SPIN_CREDIT_MAX);
    assert_int_equal(polled(&spin, 0, 100 * SPIN_PROBE), 100);
    /* Requests that come at random and far apart: some within the time, for nothing. */
    assert_in_range(polled(&spin, 6, 100 * SPIN_PROBE), 100, 140);
}

static void
it_polls_again_when_that_pays_again(void **state)
{
    struct ring_spin spin;
    ring_spin_init(&spin);
    (void)polled(&spin, 0, 1000);
    /* From the next look on. */
    assert_in_range(polled(&spin, 100, 1000), 1000 - SPIN_PROBE, 1000);
    (void)polled(&spin, 0, 1000);
    assert_true(polled(&spin, 50, 100000) > 95000);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_polls_while_that_finds_something),
        cmocka_unit_test(it_stops_where_nothing_comes_in_time_and_looks_now_and_then),
        cmocka_unit_test(it_polls_again_when_that_pays_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
