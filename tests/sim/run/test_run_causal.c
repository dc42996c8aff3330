/* SPDX-License-Identifier: MIT
 *
 * test_run_causal.c -- the judge of what a cluster's clients were told of a key that keeps
 * siblings. Beside single cases, histories of a right store are drawn by chance, which must be
 * right; and the same with one answer changed, which must not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/prng.h"
#include "causal.h"

static struct causal_history history;

static void
begin(void)
{
    causal_history_free(&history);
}

static u32
add(struct causal_op op, u64 from, u64 to)
{
    op.begun = from;
    op.ended = to != 0 ? to : UINT64_MAX;
    if (op.outcome == CAUSAL_UNKNOWN && to != 0) op.outcome = CAUSAL_DONE;
    return causal_history_add(&history, &op);
}

/* From .. to are positions; to 0: no answer. saw: a read, + 1. */
static void
put(u64 from, u64 to, u64 number, u32 saw)
{
    (void)add((struct causal_op){.kind = CAUSAL_PUT, .number = number, .saw = saw}, from, to);
}

static void
plain_put(u64 from, u64 to, u64 number)
{
    (void)add((struct causal_op){.kind = CAUSAL_PUT, .number = number, .plain = true}, from, to);
}

static void
refused(u64 from, u64 to, u64 number)
{
    (void)add((struct causal_op){.kind = CAUSAL_PUT, .number = number, .outcome = CAUSAL_REFUSED},
              from, to);
}

static void
deletes(u64 from, u64 to, u32 saw)
{
    (void)add((struct causal_op){.kind = CAUSAL_DELETE, .saw = saw}, from, to);
}

/* + 1. */
static u32
reads(u64 from, u64 to, u32 count, u64 one, u64 two)
{
    u64 values[] = {one, two};
    struct causal_op op = {.kind = CAUSAL_READ, .values = values, .value_count = count};
    return add(op, from, to) + 1;
}

static void
latest(u64 from, u64 to, u64 number)
{
    u64 values[] = {number};
    struct causal_op op = {
        .kind = CAUSAL_READ, .latest = true, .values = values, .value_count = number != 0};
    (void)add(op, from, to);
}

static const char *
judged(void)
{
    struct causal_verdict verdict;
    causal_judge(&history, &verdict);
    return verdict.rule;
}

static void
writes_that_have_not_seen_each_other_are_siblings(void **state)
{
    (void)state;
    begin();
    put(1, 2, 1, 0);
    put(3, 4, 2, 0);
    u32 saw = reads(5, 6, 2, 1, 2);
    latest(7, 8, 2);
    assert_null(judged());
    put(9, 10, 3, saw);
    (void)reads(11, 12, 1, 3, 0);
    assert_null(judged());
    begin();
    put(1, 2, 1, 0);
    put(3, 4, 2, 0);
    (void)reads(5, 6, 1, 2, 0);
    assert_string_equal(judged(), "sibling_lost");
}

static void
what_was_replaced_does_not_come_back(void **state)
{
    (void)state;
    begin();
    put(1, 2, 1, 0);
    u32 saw = reads(3, 4, 1, 1, 0);
    put(5, 6, 2, saw);
    (void)reads(7, 8, 1, 1, 0);
    assert_string_equal(judged(), "sibling_returned");
    begin();
    put(1, 2, 1, 0);
    saw = reads(3, 4, 1, 1, 0);
    deletes(5, 6, saw);
    assert_null(judged());
    (void)reads(7, 8, 0, 0, 0);
    assert_null(judged());
    latest(9, 10, 1);
    assert_string_equal(judged(), "sibling_returned");
}

static void
nothing_stands_beside_what_has_replaced_it(void **state)
{
    (void)state;
    begin();
    put(1, 2, 1, 0);
    u32 saw = reads(3, 4, 1, 1, 0);
    put(5, 0, 2, saw);
    (void)reads(6, 7, 1, 1, 0); /* 2 may still come */
    assert_null(judged());
    (void)reads(8, 9, 2, 1, 2);
    assert_string_equal(judged(), "sibling_beside");
    begin(); /* what was acknowledged before it read has been seen, told or not */
    put(1, 2, 1, 0);
    plain_put(3, 4, 2);
    (void)reads(5, 6, 2, 1, 2);
    assert_string_equal(judged(), "sibling_beside");
    begin(); /* ... and through another one */
    put(1, 2, 1, 0);
    saw = reads(3, 4, 1, 1, 0);
    put(5, 0, 2, saw);
    saw = reads(6, 7, 1, 2, 0);
    put(8, 0, 3, saw);
    (void)reads(9, 10, 2, 1, 3);
    assert_string_equal(judged(), "sibling_beside");
}

static void
what_is_not_there_was_replaced_by_what_is(void **state)
{
    (void)state;
    begin();
    put(1, 2, 1, 0);
    u32 saw = reads(3, 4, 1, 1, 0);
    put(5, 0, 2, saw); /* it may have replaced 1, but then it is there */
    (void)reads(6, 7, 0, 0, 0);
    assert_string_equal(judged(), "sibling_lost");
    begin();
    put(1, 2, 1, 0);
    saw = reads(3, 4, 1, 1, 0);
    put(5, 0, 2, saw);
    deletes(6, 0, saw);
    (void)reads(7, 8, 0, 0, 0); /* by the delete */
    assert_null(judged());
    begin(); /* a plain write whose outcome is unknown may be done late */
    plain_put(1, 0, 1);
    put(2, 3, 2, 0);
    (void)reads(4, 5, 1, 2, 0);
    (void)reads(6, 7, 1, 1, 0);
    assert_null(judged());
    begin(); /* ... and one that is done not after its end */
    plain_put(1, 2, 1);
    put(3, 4, 2, 0);
    (void)reads(5, 6, 1, 1, 0);
    assert_string_equal(judged(), "sibling_lost");
    begin(); /* a read of a single value that has found none has found that there is none */
    put(1, 2, 1, 0);
    latest(3, 4, 0);
    assert_string_equal(judged(), "sibling_lost");
}

static void
what_one_read_has_told_later_ones_know(void **state)
{
    (void)state;
    begin();
    put(1, 0, 1, 0);
    (void)reads(2, 3, 1, 1, 0);
    (void)reads(4, 5, 0, 0, 0);
    assert_string_equal(judged(), "sibling_lost");
    begin(); /* not beside each other */
    put(1, 0, 1, 0);
    (void)reads(2, 5, 1, 1, 0);
    (void)reads(3, 4, 0, 0, 0);
    assert_null(judged());
}

static void
only_what_was_written_is_told_and_once(void **state)
{
    (void)state;
    begin();
    (void)reads(1, 2, 1, 7, 0);
    assert_string_equal(judged(), "never_written");
    begin();
    refused(1, 2, 1);
    (void)reads(3, 4, 1, 1, 0);
    assert_string_equal(judged(), "refused_and_done");
    begin();
    (void)reads(1, 2, 1, 1, 0);
    put(3, 4, 1, 0);
    assert_string_equal(judged(), "told_before_written");
    begin();
    put(1, 2, 1, 0);
    (void)reads(3, 4, 2, 1, 1);
    assert_string_equal(judged(), "sibling_twice");
}

/* ---- by chance ---- */

#define OPS 40u

/* A store at one place, in which each operation has its moment at its end, or, of unknown outcome,
 * then or never. Values are their numbers, up to 64. */
struct store {
    u64 alive, seen;
};

static u32
numbers_of(u64 set, u64 out[64])
{
    u32 count = 0;
    for (; set != 0; set &= set - 1)
        out[count++] = (u64)__builtin_ctzll(set);
    return count;
}

struct drawn {
    u64 seen[OPS]; /* the context of a read, by its operation */
};

static void
op_draw(struct prng *prng, struct store *store, struct drawn *drawn, u64 *number)
{
    u64 at = 2 * (u64)history.count + 1, values[64];
    u64 draw = prng_below(prng, 10);
    if (draw < 5) {
        struct causal_op op = {.kind = CAUSAL_READ, .values = values};
        op.value_count = numbers_of(store->alive, values);
        drawn->seen[add(op, at, at + 1)] = store->seen;
        return;
    }
    bool plain = draw == 5, blind = draw == 6, del = !blind && prng_chance(prng, 1, 5);
    u32 saw = 0;
    for (u32 tries = 0; tries < 8 && saw == 0 && history.count > 0 && !plain && !blind; tries++) {
        u32 back = (u32)prng_below(prng, MIN(history.count, 8u));
        if (history.ops[history.count - 1 - back].kind == CAUSAL_READ) saw = history.count - back;
    }
    if (del && !plain && saw == 0) return;
    bool unknown = prng_chance(prng, 1, 6), happens = !unknown || prng_chance(prng, 1, 2);
    struct causal_op op = {.kind = del ? CAUSAL_DELETE : CAUSAL_PUT, .plain = plain, .saw = saw};
    if (!del) op.number = ++*number;
    (void)add(op, at, unknown ? 0 : at + 1);
    if (!happens) return;
    u64 context = plain ? store->seen : saw != 0 ? drawn->seen[saw - 1] : 0;
    store->alive &= ~context;
    if (del) return;
    store->alive |= (u64)1 << op.number;
    store->seen |= (u64)1 << op.number;
}

static void
history_draw(struct prng *prng)
{
    struct store store = {0};
    struct drawn drawn = {0};
    u64 number = 0;
    begin();
    for (u32 i = 0; i < OPS; i++)
        op_draw(prng, &store, &drawn, &number);
}

/* The answer of the last read that has told something loses a value that was acknowledged. */
static bool
last_read_forgets(void)
{
    for (u32 i = history.count; i > 0; i--) {
        struct causal_op *read = &history.ops[i - 1];
        if (read->kind != CAUSAL_READ) continue;
        for (u32 k = 0; k < read->value_count; k++) {
            for (u32 w = 0; w < i; w++) {
                const struct causal_op *op = &history.ops[w];
                if (op->kind != CAUSAL_PUT || op->number != read->values[k] ||
                    op->outcome != CAUSAL_DONE)
                    continue;
                /* A delete, or a plain write, of unknown outcome may have taken it. */
                for (u32 u = 0; u < history.count; u++)
                    if (history.ops[u].kind != CAUSAL_READ &&
                        history.ops[u].outcome == CAUSAL_UNKNOWN)
                        return false;
                for (u32 later = i; later < history.count; later++)
                    if (history.ops[later].kind == CAUSAL_READ) return false;
                read->values[k] = read->values[--read->value_count];
                return true;
            }
        }
        return false;
    }
    return false;
}

static void
histories_of_a_right_store_are_right_and_others_are_not(void **state)
{
    (void)state;
    u32 changed = 0;
    for (u64 seed = 1; seed <= 3000; seed++) {
        struct prng prng;
        prng_init(&prng, seed);
        history_draw(&prng);
        const char *rule = judged();
        if (rule != NULL) print_error("seed %llu: %s\n", (unsigned long long)seed, rule);
        assert_null(rule);
        if (!last_read_forgets()) continue;
        changed++;
        if (judged() == NULL) print_error("seed %llu: not noticed\n", (unsigned long long)seed);
        assert_non_null(judged());
    }
    assert_true(changed > 20);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_that_have_not_seen_each_other_are_siblings),
        cmocka_unit_test(what_was_replaced_does_not_come_back),
        cmocka_unit_test(nothing_stands_beside_what_has_replaced_it),
        cmocka_unit_test(what_is_not_there_was_replaced_by_what_is),
        cmocka_unit_test(what_one_read_has_told_later_ones_know),
        cmocka_unit_test(only_what_was_written_is_told_and_once),
        cmocka_unit_test(histories_of_a_right_store_are_right_and_others_are_not),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    causal_history_free(&history);
    return failed;
}
