/* SPDX-License-Identifier: MIT
 *
 * test_voters.c -- who votes in group0: small cases by hand, then rules over random ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/prng.h"
#include "cluster/group0_internal.h"

#define MANY 24u

/* "racks" has a letter for each node: its rack; "states": v votes, . alive, x dead, X a dead voter,
 * l leaves, L leaves and votes. The numbers chosen, as letters a, b, ... */
static void
expect(const char *racks, const char *states, bool ends, const char *chosen)
{
    struct group0_candidate candidates[MANY];
    u32 count = (u32)strlen(racks), at = 0;
    char got[MANY + 1];
    for (u32 i = 0; i < count; i++) {
        char state = states[i];
        candidates[i] = (struct group0_candidate){
            .number = i + 1,
            .voter = state == 'v' || state == 'X' || state == 'L',
            .alive = state != 'x' && state != 'X',
            .leaving = state == 'l' || state == 'L',
            .place = (u32)racks[i],
        };
    }
    group0_voters_choose(candidates, count, ends);
    for (u32 i = 0; i < count; i++)
        if (candidates[i].chosen) got[at++] = (char)('a' + i);
    got[at] = 0;
    assert_string_equal(got, chosen);
}

static void
expect_chosen(const char *racks, const char *states, const char *chosen)
{
    expect(racks, states, false, chosen);
}

static void
an_odd_number_up_to_seven(void **state)
{
    expect_chosen("r", "v", "a");
    expect_chosen("rr", "v.", "a");  /* growing */
    expect_chosen("rr", "vv", "ab"); /* shrinking */
    expect_chosen("rrr", "v..", "abc");
    expect_chosen("rrrr", "v...", "abc");
    expect_chosen("rrrrr", "vvv..", "abcde");
    expect_chosen("rrrrrrrrr", "vvvvv....", "abcdefg");
}

static void
racks_are_served_evenly(void **state)
{
    expect_chosen("rrrrsstt", "........", "abcefgh"); /* seven of eight: the fullest gives one up */
    expect_chosen("rrst", "v...", "acd");
    expect_chosen("rrst", "vvv.", "acd"); /* even though another one has the vote */
}

static void
the_dead_give_way_to_the_living_only(void **state)
{
    expect_chosen("rrrr", "vXv.", "acd");
    expect_chosen("rrr", "vXv", "abc");   /* nobody else is there */
    expect_chosen("rstr", "vXv.", "acd"); /* also to one of a rack that has a vote */
    expect_chosen("rrrx", "vvvx", "abc");
}

/* Nor is one of two made a voter beside one who is not there. */
static void
who_is_silent_and_has_no_vote_does_not_count(void **state)
{
    expect_chosen("rr", "vx", "a");
    expect_chosen("rrr", "vx.", "a");
    expect_chosen("rrr", "vxx", "a");
    expect_chosen("rrrr", "vx..", "acd");
    expect_chosen("rrr", "vvx", "ab");
    expect_chosen("rrrrr", "vXvx.", "ace");
}

static void
who_leaves_votes_no_more(void **state)
{
    expect_chosen("rrrr", "Lvv.", "bcd");
    expect_chosen("rrrrrrr", "LLLvvv.", "def");
    expect_chosen("rr", "Lv", "b");
}

/* Until it is out: two voters survive the loss of none, and it has all that they have. */
static void
who_leaves_votes_where_fewer_than_three_stay(void **state)
{
    expect_chosen("rrr", "Lvv", "abc");
    expect_chosen("rrr", "LvX", "abc");
    expect_chosen("rrr", "lvv", "abc"); /* it was silent meanwhile, say */
    expect_chosen("rrr", "Lv.", "abc");
    expect_chosen("rrrr", "LLvv", "acd"); /* one is enough */
    expect_chosen("rsrr", "LLvv", "bcd");
    expect_chosen("rrrr", "LLvX", "acd"); /* who stays comes first, though it is dead */
    expect_chosen("rrr", "xvv", "bc");
    expect_chosen("rrr", "LLv", "abc");
    expect_chosen("rrr", "Lxv", "c");
    expect_chosen("rrrr", "LLLv", "abd");
    expect_chosen("rr", "LX", "b");
    expect_chosen("rr", "Lx", ""); /* nobody is there to help */
}

/* Whoever is out may be stopped before the others are told to do without it. */
static void
who_is_about_to_be_out_is_no_majority(void **state)
{
    expect("rrr", "Lvv", true, "abc");
    expect("rrrr", "LLvv", true, "acd");
    expect("rrr", "LLv", true, "c");
    expect("rrrr", "LLLv", true, "d");
    expect("rrrr", "Lvv.", true, "bcd");
}

static void
whatever_is_given_the_rules_hold(void **state)
{
    struct prng prng;
    prng_init(&prng, 3);
    for (u32 round = 0; round < 20000; round++) {
        struct group0_candidate c[MANY];
        u32 count = 1 + (u32)prng_below(&prng, MANY), racks = 1 + (u32)prng_below(&prng, 5);
        u32 staying = 0, leaving = 0, voters = 0, chosen = 0, leaving_chosen = 0;
        bool ends = prng_chance(&prng, 1, 3);
        for (u32 i = 0; i < count; i++) {
            c[i] = (struct group0_candidate){.number = i + 1,
                                             .voter = prng_chance(&prng, 1, 3),
                                             .alive = prng_chance(&prng, 3, 4),
                                             .leaving = prng_chance(&prng, 1, 6),
                                             .place = (u32)prng_below(&prng, racks)};
            staying += !c[i].leaving && (c[i].alive || c[i].voter);
            leaving += c[i].leaving && c[i].alive;
            voters += c[i].voter;
        }
        group0_voters_choose(c, count, ends);
        bool dead_chosen = false, living_left = false;
        for (u32 i = 0; i < count; i++) {
            assert_false(c[i].chosen && c[i].leaving && !c[i].alive);
            chosen += c[i].chosen;
            leaving_chosen += c[i].chosen && c[i].leaving;
            dead_chosen |= c[i].chosen && !c[i].alive;
            living_left |= !c[i].chosen && c[i].alive && !c[i].leaving;
        }
        assert_false(dead_chosen && living_left);
        u32 wanted = MIN(staying, GROUP0_VOTERS_MAX);
        if (wanted != 2 && wanted % 2 == 0 && wanted > 0) wanted--;
        if (wanted == 2 && voters < 2) wanted = 1;
        u32 helpers = staying == 0 || staying > 2 ? 0 : 3 - staying;
        if (helpers > leaving || (ends && helpers > 1)) helpers = 0;
        assert_int_equal(leaving_chosen, helpers);
        assert_int_equal(chosen, helpers != 0 ? 3 : wanted);
        /* What is chosen stays chosen. */
        for (u32 i = 0; i < count; i++)
            c[i].voter = c[i].chosen;
        struct group0_candidate again[MANY];
        memcpy(again, c, sizeof(c));
        group0_voters_choose(again, count, ends);
        for (u32 i = 0; i < count; i++)
            assert_int_equal(again[i].chosen, c[i].chosen);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_odd_number_up_to_seven),
        cmocka_unit_test(racks_are_served_evenly),
        cmocka_unit_test(the_dead_give_way_to_the_living_only),
        cmocka_unit_test(who_is_silent_and_has_no_vote_does_not_count),
        cmocka_unit_test(who_leaves_votes_no_more),
        cmocka_unit_test(who_leaves_votes_where_fewer_than_three_stay),
        cmocka_unit_test(who_is_about_to_be_out_is_no_majority),
        cmocka_unit_test(whatever_is_given_the_rules_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
