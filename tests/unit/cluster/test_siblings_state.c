/* SPDX-License-Identifier: MIT
 *
 * test_siblings_state.c -- states of a key that keeps siblings: entries as sets, unions, and which
 * version a store gives to what it has made of two.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "base/hash.h"
#include "cluster/siblings.h"

static struct budget budget;

#define TOKEN 0x123456789abcdef0ull

/* A set that has seen counters 1 to seen[i] of actor i, of which those above kept[i] live. */
static void
make(const u64 seen[2], const u64 kept[2], struct buf *out)
{
    struct dvvset set;
    dvvset_init(&set, &budget);
    for (u32 a = 0; a < 2; a++)
        for (u64 counter = 1; counter <= seen[a]; counter++) {
            struct dvv_value value = {.actor = siblings_actor(10 + a, 1, 0),
                                      .counter = counter,
                                      .version = counter,
                                      .data = BYTES_LITERAL("v")};
            struct dvv_vector context;
            dvv_vector_init(&context, &budget);
            struct dvv_entry entry = {.actor = value.actor, .counter = counter - 1};
            if (counter - 1 > 0 && counter - 1 <= kept[a]) {
                context.entries = &entry;
                context.count = 1;
            }
            assert_true(ok(dvvset_update(&set, context.count != 0 ? &context : NULL, &value)));
        }
    buf_init(out, &budget);
    assert_true(ok(dvvset_encode(&set, out)));
    dvvset_deinit(&set);
}

static enum siblings_version
judge(const struct buf *own, u64 own_version, const struct buf *other, u64 other_version)
{
    struct buf both;
    buf_init(&both, &budget);
    assert_true(ok(siblings_union(buf_bytes(own), buf_bytes(other), &both)));
    enum siblings_version answer = siblings_version_of(
        buf_bytes(own), own_version, buf_bytes(other), other_version, buf_bytes(&both));
    buf_deinit(&both);
    return answer;
}

static void
each_case_of_the_table(void **state)
{
    (void)state;
    struct buf small, large, aside;
    make((u64[]){1, 0}, (u64[]){0, 0}, &small);
    make((u64[]){3, 0}, (u64[]){1, 0}, &large);
    make((u64[]){0, 1}, (u64[]){0, 0}, &aside);
    assert_int_equal(judge(&small, 5, &small, 6), SIBLINGS_TAKE);
    assert_int_equal(judge(&small, 6, &small, 6), SIBLINGS_KEEP);
    assert_int_equal(judge(&small, 7, &small, 6), SIBLINGS_KEEP);
    assert_int_equal(judge(&large, 7, &small, 6), SIBLINGS_KEEP);
    assert_int_equal(judge(&large, 6, &small, 6), SIBLINGS_STAMP); /* no such two: V1 */
    assert_int_equal(judge(&large, 5, &small, 6), SIBLINGS_STAMP);
    assert_int_equal(judge(&small, 5, &large, 6), SIBLINGS_TAKE);
    assert_int_equal(judge(&small, 6, &large, 5), SIBLINGS_STAMP);
    assert_int_equal(judge(&small, 5, &aside, 6), SIBLINGS_STAMP);
    assert_int_equal(judge(&small, 6, &aside, 5), SIBLINGS_STAMP);
    buf_deinit(&small);
    buf_deinit(&large);
    buf_deinit(&aside);
}

static void
what_is_no_set_is_met_as_one(void **state)
{
    (void)state;
    struct siblings_entry absent = {.found = false, .version = 9},
                          old = {.found = true, .version = 5, .value = BYTES_LITERAL("old")},
                          newer = {.found = true, .version = 6, .value = BYTES_LITERAL("newer")};
    struct buf none, first, second, both;
    buf_init(&none, &budget);
    buf_init(&first, &budget);
    buf_init(&second, &budget);
    buf_init(&both, &budget);
    assert_true(ok(siblings_bytes(&absent, TOKEN, &none)));
    assert_true(siblings_empty(buf_bytes(&none)));
    assert_true(ok(siblings_bytes(&old, TOKEN, &first)));
    assert_true(ok(siblings_bytes(&newer, TOKEN, &second)));
    assert_false(siblings_empty(buf_bytes(&first)));
    /* The newer one is the only one that stays, as under lww. */
    assert_true(ok(siblings_union(buf_bytes(&first), buf_bytes(&second), &both)));
    struct dvvset set;
    dvvset_init(&set, &budget);
    assert_true(ok(dvvset_decode(buf_bytes(&both), &set)));
    assert_int_equal(set.count, 1);
    assert_int_equal(set.values[0].version, 6);
    dvvset_deinit(&set);
    buf_deinit(&none);
    buf_deinit(&first);
    buf_deinit(&second);
    buf_deinit(&both);
}

static void
dots_that_were_forgotten_are_noticed(void **state)
{
    (void)state;
    struct dvv_entry mine[] = {{siblings_actor(10, 1, 0), 5}, {siblings_actor(10, 1, 1), 2}};
    struct dvv_entry theirs[] = {{siblings_actor(9, 1, 7), 50},
                                 {siblings_actor(10, 1, 0), 5},
                                 {siblings_actor(10, 1, 1), 3}};
    struct dvv_vector own = {.entries = mine, .count = 2}, other = {.entries = theirs, .count = 3};
    u32 generation = 99;
    assert_true(siblings_forgot(&own, &other, 10, &generation));
    assert_int_equal(generation, 1);
    assert_true(siblings_forgot(&own, &other, 9, &generation));
    assert_int_equal(generation, 7);
    theirs[2].counter = 2;
    assert_false(siblings_forgot(&own, &other, 10, &generation));
    assert_false(siblings_forgot(&own, &own, 10, &generation));
}

static void
too_little_memory_is_a_refusal(void **state)
{
    (void)state;
    struct buf a, b;
    make((u64[]){3, 0}, (u64[]){0, 0}, &a);
    make((u64[]){0, 3}, (u64[]){0, 0}, &b);
    for (u64 bytes = 0; bytes < 2000; bytes += 40) {
        struct budget little;
        budget_init(&little, "little", bytes, NULL);
        struct buf both;
        buf_init(&both, &little);
        status st = siblings_union(buf_bytes(&a), buf_bytes(&b), &both);
        assert_true(ok(st) || status_is(st, ST_NO_MEMORY));
        buf_deinit(&both);
        assert_int_equal(little.used_bytes, 0);
    }
    buf_deinit(&a);
    buf_deinit(&b);
}

int
main(void)
{
    budget_init(&budget, "test", MIB(64), NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_case_of_the_table),
        cmocka_unit_test(what_is_no_set_is_met_as_one),
        cmocka_unit_test(dots_that_were_forgotten_are_noticed),
        cmocka_unit_test(too_little_memory_is_a_refusal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
