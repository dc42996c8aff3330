/* SPDX-License-Identifier: MIT
 *
 * test_quorum.c -- counting answers: every case of small sets, against a count by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cluster/quorum.h"

#define PEOPLE 5u

/* Who of PEOPLE is in the set, as bits. */
static u32
set_of(u32 bits, u32 out[LIMIT_PLACEMENT_REPLICAS])
{
    u32 count = 0;
    for (u32 i = 0; i < PEOPLE; i++)
        if (bits & 1u << i) out[count++] = i + 1;
    return count;
}

static enum quorum_state
by_hand(u32 first, u32 need_first, u32 second, u32 need_second, u32 yes, u32 no)
{
    u32 pending = ~(yes | no);
    u32 yes1 = (u32)__builtin_popcount(first & yes), yes2 = (u32)__builtin_popcount(second & yes);
    u32 may1 = yes1 + (u32)__builtin_popcount(first & pending);
    u32 may2 = yes2 + (u32)__builtin_popcount(second & pending);
    if (may1 < need_first || (second != 0 && may2 < need_second)) return QUORUM_LOST;
    if (yes1 >= need_first && (second == 0 || yes2 >= need_second)) return QUORUM_MET;
    return QUORUM_OPEN;
}

/* All pairs of sets of up to five members, all needs, all answers (3^5). */
static void
every_small_case_is_judged_as_by_hand(void **state)
{
    (void)state;
    u64 cases = 0, states[3] = {0};
    for (u32 first = 1; first < 1u << PEOPLE; first++) {
        for (u32 second = 0; second < 1u << PEOPLE; second += second == 0 ? 1 : 3) {
            u32 a[LIMIT_PLACEMENT_REPLICAS], b[LIMIT_PLACEMENT_REPLICAS];
            u32 a_count = set_of(first, a), b_count = set_of(second, b);
            for (u32 need = 1; need <= a_count; need++) {
                u32 need_b = second == 0 ? 0 : MIN(need, b_count);
                for (u32 code = 0; code < 243; code++) {
                    struct quorum quorum;
                    quorum_init(&quorum);
                    quorum_set_add(&quorum, a, a_count, need);
                    if (second != 0) quorum_set_add(&quorum, b, b_count, need_b);
                    u32 yes = 0, no = 0, rest = code;
                    for (u32 i = 0; i < PEOPLE; i++, rest /= 3) {
                        if (rest % 3 == 0) continue;
                        bool is_yes = rest % 3 == 1;
                        (void)quorum_answer(&quorum, i + 1, is_yes ? QUORUM_YES : QUORUM_NO);
                        *(is_yes ? &yes : &no) |= 1u << i;
                    }
                    enum quorum_state got = quorum_state(&quorum);
                    assert_int_equal(got, by_hand(first, need, second, need_b, yes, no));
                    states[got]++;
                    cases++;
                }
            }
        }
    }
    assert_true(cases > 100000);
    assert_true(states[QUORUM_OPEN] > 1000 && states[QUORUM_MET] > 1000 &&
                states[QUORUM_LOST] > 1000);
}

static void
answers_of_two_sets_are_not_added_up(void **state)
{
    (void)state;
    const u32 current[] = {1, 2, 3}, next[] = {1, 4, 5};
    struct quorum quorum;
    quorum_init(&quorum);
    quorum_set_add(&quorum, current, 3, 2);
    quorum_set_add(&quorum, next, 3, 2);
    assert_true(quorum_answer(&quorum, 2, QUORUM_YES));
    assert_true(quorum_answer(&quorum, 4, QUORUM_YES));
    assert_int_equal(quorum_state(&quorum), QUORUM_OPEN); /* two of five, one of each three */
    assert_true(quorum_answer(&quorum, 1, QUORUM_YES));   /* counts in both */
    assert_int_equal(quorum_state(&quorum), QUORUM_MET);
}

static void
nobody_counts_twice_and_strangers_do_not_count(void **state)
{
    (void)state;
    const u32 members[] = {1, 2, 3};
    struct quorum quorum;
    quorum_init(&quorum);
    assert_int_equal(quorum_state(&quorum), QUORUM_OPEN); /* nobody was asked */
    quorum_set_add(&quorum, members, 3, 2);
    assert_true(quorum_answer(&quorum, 1, QUORUM_YES));
    assert_false(quorum_answer(&quorum, 1, QUORUM_YES));
    assert_false(quorum_answer(&quorum, 9, QUORUM_YES));
    assert_int_equal(quorum_state(&quorum), QUORUM_OPEN);
    assert_true(quorum_answer(&quorum, 2, QUORUM_NO));
    assert_false(quorum_answer(&quorum, 2, QUORUM_YES));
    assert_int_equal(quorum_state(&quorum), QUORUM_OPEN);
    assert_true(quorum_answer(&quorum, 3, QUORUM_NO));
    assert_int_equal(quorum_state(&quorum), QUORUM_LOST);
    assert_int_equal(quorum_count(&quorum, QUORUM_NO), 2);
    quorum_reset(&quorum);
    assert_int_equal(quorum_state(&quorum), QUORUM_OPEN);
    assert_int_equal(quorum_count(&quorum, QUORUM_PENDING), 3);
}

static void
more_than_there_are_cannot_be_met(void **state)
{
    (void)state;
    const u32 members[] = {1, 2};
    struct quorum quorum;
    quorum_init(&quorum);
    quorum_set_add(&quorum, members, 2, 3);
    assert_int_equal(quorum_state(&quorum), QUORUM_LOST);
    quorum_init(&quorum);
    quorum_set_add(&quorum, members, 0, 0);
    assert_int_equal(quorum_state(&quorum), QUORUM_LOST);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_small_case_is_judged_as_by_hand),
        cmocka_unit_test(answers_of_two_sets_are_not_added_up),
        cmocka_unit_test(nobody_counts_twice_and_strangers_do_not_count),
        cmocka_unit_test(more_than_there_are_cannot_be_met),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
