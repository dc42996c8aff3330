/* SPDX-License-Identifier: MIT
 *
 * test_run_prefix.c -- what is surely a hole in a log, and what only may be one (prefix.h).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "prefix.h"

static struct values values;
static struct model *model;
static struct model_object object;

static u32
text(const char *content)
{
    return values_intern(&values, BYTES(content, strlen(content)));
}

static int
begin(void **state)
{
    (void)state;
    values_init(&values);
    model = model_new(&values);
    model_object_init(&object, 2);
    return 0;
}

static int
finish(void **state)
{
    (void)state;
    model_object_deinit(&object);
    model_free(model);
    values_deinit(&values);
    return 0;
}

/* From position first to last; last 0: its outcome is unknown. */
static struct model_op *
add(u64 first, u64 last, struct model_step step)
{
    struct model_op *op = model_op_new(1);
    op->steps[0] = step;
    if (last != 0) {
        op->steps[0].known = MODEL_KNOWS_NUMBER;
        op->steps[0].result_number = 1;
    }
    model_invoke(&object, op, first, first);
    if (last == 0)
        model_forget(&object, op);
    else
        model_return(&object, op, last, last);
    return op;
}

static struct model_op *
put(u64 first, u64 last, const char *content)
{
    return add(first, last, (struct model_step){.kind = MODEL_PUT, .value = text(content)});
}

static void
held_before(const char *content)
{
    object.states[0].cells[0].value = text(content);
}

/* Of key 0, which holds this (NULL: nothing), and a later write of the log that was asked for at
 * that position. */
static bool
hole(const char *content, u64 before)
{
    struct prefix_seen seen = {.found = PREFIX_ABSENT};
    if (content != NULL) seen = (struct prefix_seen){.found = PREFIX_VALUE, .value = text(content)};
    return prefix_missing(&object, 0, false, &seen, before) != NULL;
}

static u64
survivor(const char *content)
{
    struct prefix_seen seen = {.found = PREFIX_VALUE, .value = text(content)};
    return prefix_survivor(&object, &seen);
}

static void
a_value_of_this_process_survives_no_sooner_than_it_was_asked_for(void **state)
{
    (void)state;
    held_before("old");
    put(3, 4, "a");
    put(7, 0, "b");
    assert_int_equal(survivor("old"), 0);
    assert_int_equal(survivor("a"), 3);
    assert_int_equal(survivor("b"), 7);
    assert_int_equal(survivor("never written"), 0);
}

static void
an_acknowledged_write_is_missing_when_what_is_there_is_older(void **state)
{
    (void)state;
    held_before("old");
    put(3, 4, "a");
    put(7, 8, "b");
    assert_true(hole("a", 9));
    assert_false(hole("a", 8)); /* it was asked for before b was acknowledged */
    assert_true(hole("old", 9));
    assert_true(hole("old", 5)); /* a is missing */
    assert_false(hole("old", 4));
    assert_true(hole(NULL, 9));
    assert_false(hole("b", 9));
    assert_false(hole("never written", 9));
}

static void
what_ran_at_the_same_time_or_has_an_unknown_outcome_may_have_come_later(void **state)
{
    (void)state;
    held_before("old");
    put(3, 6, "a");
    put(5, 7, "b");
    put(2, 0, "c");
    assert_false(hole("a", 9));
    assert_false(hole("b", 9));
    assert_false(hole("c", 9));
    assert_true(hole("old", 9));
}

static void
what_is_absent_may_have_been_taken(void **state)
{
    (void)state;
    put(3, 4, "a");
    struct model_op *first = add(1, 2, (struct model_step){.kind = MODEL_DELETE});
    assert_true(hole(NULL, 9)); /* that was before */
    struct model_op *taken = add(5, 0, (struct model_step){.kind = MODEL_DELETE});
    assert_false(hole(NULL, 9));
    taken->outcome = MODEL_REFUSED;
    assert_true(hole(NULL, 9));
    first->returned = 3;
    assert_false(hole(NULL, 9));
    first->returned = 2;
    struct prefix_seen absent = {.found = PREFIX_ABSENT}, unread = {.found = PREFIX_UNREAD};
    assert_null(prefix_missing(&object, 0, true, &absent, 9)); /* it may have expired */
    assert_null(prefix_missing(&object, 0, false, &unread, 9));
}

static void
a_delete_is_missing_when_what_it_took_is_back(void **state)
{
    (void)state;
    held_before("old");
    add(3, 4, (struct model_step){.kind = MODEL_DELETE});
    assert_true(hole("old", 5));
    assert_false(hole(NULL, 5));
    add(6, 0, (struct model_step){.kind = MODEL_COPY, .key = 1, .key2 = 0});
    assert_false(hole("old", 5)); /* from the other key */
}

static void
what_was_not_surely_done_is_not_missing(void **state)
{
    (void)state;
    held_before("old");
    put(3, 4, "a")->steps[0].result_number = 0;
    put(5, 6, "b")->all = MODEL_ALL_UNDONE;
    put(7, 0, "c");
    assert_false(hole("old", 99));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, finish)
        TEST(a_value_of_this_process_survives_no_sooner_than_it_was_asked_for),
        TEST(an_acknowledged_write_is_missing_when_what_is_there_is_older),
        TEST(what_ran_at_the_same_time_or_has_an_unknown_outcome_may_have_come_later),
        TEST(what_is_absent_may_have_been_taken),
        TEST(a_delete_is_missing_when_what_it_took_is_back),
        TEST(what_was_not_surely_done_is_not_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
