/* SPDX-License-Identifier: MIT
 *
 * test_run_register.c -- the judge of what a cluster's clients were told of a key.
 *
 * Small histories are drawn by chance and judged by brute force, too: every order of every subset
 * of the writes of unknown outcome.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/prng.h"
#include "register.h"

static struct register_history history;

static void
begin(void)
{
    register_history_free(&history);
}

/* From .. to are positions, and milliseconds. to 0: no answer. */
static void
op(enum register_kind kind, u64 from, u64 to, u64 value)
{
    struct register_op op = {
        .kind = (u8)kind,
        .outcome = to != 0 ? REGISTER_DONE : REGISTER_UNKNOWN,
        .begun = from,
        .ended = to != 0 ? to : UINT64_MAX,
        .begun_ns = from * NS_PER_MS,
        .ended_ns = to != 0 ? to * NS_PER_MS : UINT64_MAX,
        .value = value,
    };
    (void)register_history_add(&history, &op);
}

static const char *
judged(bool again)
{
    struct register_verdict verdict;
    register_judge(&history, again, false, &verdict);
    assert_false(verdict.gave_up);
    return verdict.rule;
}

static void
what_was_acknowledged_is_read(void **state)
{
    (void)state;
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_READ, 3, 4, 1);
    op(REGISTER_PUT, 5, 6, 2);
    op(REGISTER_READ, 7, 8, 2);
    assert_null(judged(false));
    op(REGISTER_READ, 9, 10, 1);
    assert_string_equal(judged(true), "register");
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_READ, 3, 4, 0);
    assert_string_equal(judged(true), "register");
}

static void
what_one_read_has_told_later_ones_tell(void **state)
{
    (void)state;
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_PUT, 3, 20, 2);
    op(REGISTER_READ, 4, 5, 2);
    op(REGISTER_READ, 6, 7, 1);
    assert_string_equal(judged(true), "register");
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_PUT, 3, 20, 2);
    op(REGISTER_READ, 4, 7, 2);
    op(REGISTER_READ, 5, 6, 1);
    assert_null(judged(false));
}

static void
a_write_of_unknown_outcome_may_be_done_late_or_never(void **state)
{
    (void)state;
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_PUT, 3, 0, 2);
    op(REGISTER_READ, 4, 5, 1);
    op(REGISTER_PUT, 6, 7, 3);
    op(REGISTER_READ, 8, 9, 3);
    op(REGISTER_READ, 10, 11, 2);
    assert_null(judged(false));
    op(REGISTER_READ, 12, 13, 3);
    assert_string_equal(judged(false), "register");
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_DELETE, 3, 0, 0);
    op(REGISTER_READ, 4, 5, 1);
    op(REGISTER_READ, 6, 7, 0);
    op(REGISTER_READ, 8, 9, 0);
    assert_null(judged(false));
}

static void
a_deleted_value_does_not_come_back(void **state)
{
    (void)state;
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_DELETE, 3, 4, 0);
    op(REGISTER_READ, 5, 6, 0);
    assert_null(judged(false));
    op(REGISTER_READ, 7, 8, 1);
    assert_string_equal(judged(true), "register");
}

/* A write that is stamped again while another one comes between. */
static void
a_write_may_be_done_twice_while_it_is_under_way(void **state)
{
    (void)state;
    begin();
    op(REGISTER_PUT, 1, 10, 1);
    op(REGISTER_PUT, 2, 11, 2);
    op(REGISTER_READ, 3, 4, 1);
    op(REGISTER_READ, 5, 6, 2);
    op(REGISTER_READ, 12, 13, 1);
    assert_string_equal(judged(false), "register");
    assert_null(judged(true));
    op(REGISTER_READ, 14, 15, 2);
    assert_string_equal(judged(true), "register");
}

/* A delete that one node has done by a clock that is seconds ahead. */
static void
what_nobody_knows_may_come_and_go_while_clocks_are_wrong(void **state)
{
    (void)state;
    struct register_verdict verdict;
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    op(REGISTER_DELETE, 3, 0, 0);
    op(REGISTER_PUT, 4, 5, 2);
    op(REGISTER_READ, 6, 7, 0);
    op(REGISTER_READ, 8, 9, 2);
    assert_string_equal(judged(true), "register");
    register_judge(&history, true, true, &verdict);
    assert_null(verdict.rule);
    op(REGISTER_READ, 10, 11, 1);
    register_judge(&history, true, true, &verdict);
    assert_string_equal(verdict.rule, "register");
}

static void
what_was_refused_or_never_written_is_told_by_nobody(void **state)
{
    (void)state;
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    history.ops[0].outcome = REGISTER_REFUSED;
    op(REGISTER_READ, 3, 4, 1);
    assert_string_equal(judged(true), "refused_and_done");
    begin();
    op(REGISTER_READ, 3, 4, 1);
    assert_string_equal(judged(true), "never_written");
    begin();
    op(REGISTER_READ, 1, 2, 1);
    op(REGISTER_PUT, 3, 4, 1);
    assert_string_equal(judged(true), "told_before_written");
}

static void
a_value_that_expires_is_there_then_perhaps_and_then_gone(void **state)
{
    (void)state;
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    history.ops[0].gone_first_ns = 10 * NS_PER_MS;
    history.ops[0].gone_last_ns = 20 * NS_PER_MS;
    op(REGISTER_READ, 12, 13, 0);
    op(REGISTER_READ, 14, 15, 1);
    op(REGISTER_READ, 21, 22, 0);
    assert_null(judged(false));
    op(REGISTER_READ, 23, 24, 1);
    assert_string_equal(judged(false), "expired_told");
    begin();
    op(REGISTER_PUT, 1, 2, 1);
    history.ops[0].gone_first_ns = 10 * NS_PER_MS;
    history.ops[0].gone_last_ns = 20 * NS_PER_MS;
    op(REGISTER_READ, 3, 4, 0);
    assert_string_equal(judged(false), "register");
}

/* A node that stood still meanwhile answers both at once: the read has found what expired, and the
 * put came behind it. */
static void
what_expires_under_a_read_may_be_replaced_before_the_read_ends(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin();
        op(REGISTER_PUT, 1, 2, 1);
        history.ops[0].gone_first_ns = (i == 0 ? 5 : 20) * NS_PER_MS;
        history.ops[0].gone_last_ns = UINT64_MAX;
        op(REGISTER_PUT, 3, 10, 2);
        op(REGISTER_READ, 4, 11, 0);
        if (i == 0)
            assert_null(judged(false));
        else
            assert_string_equal(judged(false), "register");
    }
}

/* ---- by brute force ---- */

#define OPS_MAX 7u

/* The put of a value that may be gone some time; NULL. */
static const struct register_op *
expiring(u32 value)
{
    for (u32 i = 0; i < history.count && value != 0; i++) {
        const struct register_op *op = &history.ops[i];
        if (op->kind == REGISTER_PUT && op->value == value)
            return op->gone_first_ns != 0 ? op : NULL;
    }
    return NULL;
}

/* The last moment was at from_ns: each next one is as early as it can be. */
static bool
order_is_right(u32 done, u32 state, u64 from_ns)
{
    bool all = true;
    for (u32 i = 0; i < history.count; i++)
        all = all && ((done >> i & 1) || history.ops[i].outcome != REGISTER_DONE);
    if (all) return true;
    for (u32 i = 0; i < history.count; i++) {
        const struct register_op *next = &history.ops[i];
        if (done >> i & 1) continue;
        bool first = true; /* nothing that is left ended before it began */
        for (u32 j = 0; j < history.count; j++)
            first = first && ((done >> j & 1) || history.ops[j].ended > next->begun);
        if (!first) continue;
        u32 after = next->kind == REGISTER_READ ? state : (u32)next->value;
        u64 at_ns = MAX(from_ns, next->begun_ns);
        if (next->kind == REGISTER_READ && next->value != state) {
            const struct register_op *put = expiring(state);
            if (next->value != 0 || put == NULL) continue;
            at_ns = MAX(at_ns, put->gone_first_ns);
        }
        if (at_ns > next->ended_ns) continue;
        if (order_is_right(done | 1u << i, after, at_ns)) return true;
    }
    return false;
}

static void
history_draw(struct prng *prng, bool expire)
{
    u32 count = (u32)prng_range(prng, 2, OPS_MAX), puts = 0;
    begin();
    for (u32 i = 0; i < count; i++) {
        u64 kind = prng_below(prng, 5);
        u64 from = 1 + 40 * i + prng_below(prng, 20), to = from + 1 + prng_below(prng, 150);
        to = to * 8 + i; /* distinct */
        from = from * 8 + i;
        if (kind < 2) {
            op(REGISTER_PUT, from, prng_chance(prng, 1, 4) ? 0 : to, ++puts);
            if (!expire || prng_chance(prng, 1, 2)) continue;
            u64 gone = from + 8 * prng_range(prng, 1, 200); /* at the time of no event */
            history.ops[i].gone_first_ns = (gone - gone % 8 + 7) * NS_PER_MS;
            history.ops[i].gone_last_ns = UINT64_MAX;
        } else if (kind == 2) {
            op(REGISTER_DELETE, from, prng_chance(prng, 1, 4) ? 0 : to, 0);
        } else {
            op(REGISTER_READ, from, to, prng_below(prng, puts + 1));
        }
    }
}

static void
small_histories_are_judged(bool expire)
{
    struct prng prng;
    u32 right = 0, wrong = 0;
    prng_init(&prng, 11);
    for (u32 i = 0; i < 30000; i++) {
        history_draw(&prng, expire);
        bool is_right = order_is_right(0, 0, 0);
        assert_int_equal(judged(false) == NULL, is_right);
        *(is_right ? &right : &wrong) += 1;
    }
    assert_true(right > 2000 && wrong > 2000);
    begin();
}

static void
small_histories_are_judged_as_by_brute_force(void **state)
{
    (void)state;
    small_histories_are_judged(false);
}

static void
so_are_those_of_values_that_expire(void **state)
{
    (void)state;
    small_histories_are_judged(true);
}

static const char *
last(u64 from)
{
    struct register_verdict verdict;
    register_check_last(&history, from, 10 * NS_PER_MS, 100 * NS_PER_MS, &verdict);
    return verdict.rule;
}

static void
what_stands_in_the_end_is_the_last_by_some_clock(void **state)
{
    (void)state;
    begin();
    op(REGISTER_READ, 1, 2, 0);
    assert_null(last(0)); /* nothing was ever there */
    op(REGISTER_PUT, 3, 4, 1);
    op(REGISTER_READ, 5, 6, 0); /* of which nothing is demanded */
    op(REGISTER_READ, 1001, 1002, 0);
    assert_string_equal(last(1000), "lost");
    begin();
    op(REGISTER_PUT, 3, 4, 1);
    op(REGISTER_PUT, 10, 12, 2); /* clocks may differ */
    op(REGISTER_READ, 1001, 1002, 1);
    assert_null(last(1000));
    op(REGISTER_READ, 1003, 1004, 2);
    assert_null(last(1000));
    op(REGISTER_DELETE, 30, 31, 0);
    assert_string_equal(last(1000), "lost");
    op(REGISTER_READ, 1005, 1006, 0);
    assert_null(last(1005));
    op(REGISTER_PUT, 35, 0, 3); /* nobody knows until when it may be done */
    op(REGISTER_READ, 1007, 1008, 3);
    assert_null(last(1005));
    op(REGISTER_PUT, 140, 141, 4);
    assert_null(last(1007));
    assert_string_equal(last(1005), "lost"); /* the read of nothing */
    op(REGISTER_PUT, 150, 151, 5);
    assert_string_equal(last(1007), "lost");
    begin();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_acknowledged_is_read),
        cmocka_unit_test(what_one_read_has_told_later_ones_tell),
        cmocka_unit_test(a_write_of_unknown_outcome_may_be_done_late_or_never),
        cmocka_unit_test(a_deleted_value_does_not_come_back),
        cmocka_unit_test(a_write_may_be_done_twice_while_it_is_under_way),
        cmocka_unit_test(what_nobody_knows_may_come_and_go_while_clocks_are_wrong),
        cmocka_unit_test(what_was_refused_or_never_written_is_told_by_nobody),
        cmocka_unit_test(a_value_that_expires_is_there_then_perhaps_and_then_gone),
        cmocka_unit_test(what_expires_under_a_read_may_be_replaced_before_the_read_ends),
        cmocka_unit_test(what_stands_in_the_end_is_the_last_by_some_clock),
        cmocka_unit_test(small_histories_are_judged_as_by_brute_force),
        cmocka_unit_test(so_are_those_of_values_that_expire),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
