/* SPDX-License-Identifier: MIT
 *
 * test_run_model.c -- the judge of distkv-sim is judged: histories that are right are accepted,
 * each way of being wrong is refused, and a brute force over all orders agrees with it on small
 * ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/prng.h"
#include "clock.h"
#include "model.h"
#include "parts.h"
#include "presence.h"

static struct values values;
static struct model *model;
static struct model_object object;
static u64 clock_ns;

static void
begin(u32 keys)
{
    values_init(&values);
    model = model_new(&values);
    model_object_init(&object, keys);
    clock_ns = NS_PER_S;
}

static void
finish(void)
{
    model_object_deinit(&object);
    model_free(model);
    values_deinit(&values);
}

static u32
text(const char *content)
{
    return values_intern(&values, BYTES(content, strlen(content)));
}

/* An operation of one step from position first to last; last 0: its outcome is unknown. */
static struct model_op *
add(u64 first, u64 last, struct model_step step)
{
    struct model_op *op = model_op_new(1);
    op->steps[0] = step;
    model_invoke(&object, op, first, clock_ns + first * NS_PER_MS);
    if (last == 0)
        model_forget(&object, op);
    else
        model_return(&object, op, last, clock_ns + last * NS_PER_MS);
    return op;
}

static void
put(u64 first, u64 last, u8 key, const char *content)
{
    add(first, last, (struct model_step){.kind = MODEL_PUT, .key = key, .value = text(content)});
}

static void
get(u64 first, u64 last, u8 key, const char *content)
{
    add(first, last,
        (struct model_step){.kind = MODEL_GET,
                            .key = key,
                            .known = MODEL_KNOWS_VALUE,
                            .result_value = content == NULL ? VALUE_ABSENT : text(content)});
}

static void delete (u64 first, u64 last, u8 key)
{
    add(first, last, (struct model_step){.kind = MODEL_DELETE, .key = key});
}

static bool
judge_end(enum model_end end, bool weak, u64 since_ns, u64 at)
{
    const struct model_op *failed;
    return model_judge(model, &object, end, weak, since_ns, clock_ns + at * NS_PER_MS, &failed);
}

static bool
judge(void)
{
    return judge_end(MODEL_END_KEEPS, false, 0, 1000);
}

/* ---- registers ---- */

static void
reads_see_what_was_written(void **state)
{
    (void)state;
    begin(1);
    get(1, 2, 0, NULL);
    put(3, 4, 0, "a");
    get(5, 6, 0, "a");
    put(7, 10, 0, "b");
    get(8, 9, 0, "a"); /* beside it: either */
    get(11, 12, 0, "b");
    assert_true(judge());
    get(1001, 1002, 0, "b");
    assert_true(judge_end(MODEL_END_KEEPS, false, 0, 2000));
    finish();
}

static void
a_stale_read_is_refused(void **state)
{
    (void)state;
    begin(1);
    put(1, 2, 0, "a");
    put(3, 4, 0, "b");
    get(5, 6, 0, "a");
    assert_false(judge());
    finish();
}

static void
reads_do_not_go_back(void **state)
{
    (void)state;
    begin(1);
    put(1, 2, 0, "a");
    put(3, 10, 0, "b");
    get(4, 5, 0, "b");
    get(6, 7, 0, "a");
    assert_false(judge());
    finish();
}

static void
an_answered_write_survives_the_end(void **state)
{
    (void)state;
    begin(1);
    put(1, 2, 0, "a");
    assert_true(judge());
    get(1001, 1002, 0, NULL);
    assert_false(judge_end(MODEL_END_KEEPS, false, 0, 2000));
    finish();
}

static void
a_write_without_answer_is_there_or_not_but_stays_so(void **state)
{
    (void)state;
    for (u32 i = 0; i < 4; i++) {
        begin(1);
        put(1, 2, 0, "a");
        put(3, 0, 0, "b");
        get(4, 5, 0, i == 2 ? "b" : "a");
        assert_true(judge());
        get(1001, 1002, 0, i == 0 ? "a" : "b");
        get(1003, 1004, 0, i == 3 ? "a" : i == 0 ? "a" : "b");
        assert_int_equal(judge_end(MODEL_END_KEEPS, false, 0, 2000), i != 3);
        finish();
    }
}

static void
a_write_without_answer_does_not_come_after_the_end(void **state)
{
    (void)state;
    begin(1);
    put(1, 2, 0, "a");
    put(3, 0, 0, "b");
    assert_true(judge());
    get(1001, 1002, 0, "a");
    get(1003, 1004, 0, "b");
    assert_false(judge_end(MODEL_END_KEEPS, false, 0, 2000));
    finish();
}

static void
a_deleted_value_does_not_return(void **state)
{
    (void)state;
    begin(1);
    put(1, 2, 0, "a");
    delete (3, 4, 0);
    get(5, 6, 0, NULL);
    assert_true(judge());
    get(1001, 1002, 0, "a");
    assert_false(judge_end(MODEL_END_KEEPS, false, 0, 2000));
    finish();
}

static void
a_delete_that_found_nothing_in_one_order_found_something_in_another(void **state)
{
    (void)state;
    begin(1);
    put(2, 4, 0, "a");
    delete (3, 5, 0);
    get(6, 7, 0, NULL);
    assert_true(judge());
    finish();
}

/* ---- ends that lose ---- */

static void
what_may_be_lost_is_a_moment_since_then(void **state)
{
    (void)state;
    for (u32 i = 0; i < 3; i++) {
        begin(1);
        put(10, 20, 0, "a");
        put(200, 210, 0, "b");
        put(300, 310, 0, "c");
        assert_true(judge_end(MODEL_END_LOSES, true, clock_ns + 250 * NS_PER_MS, 400));
        get(401, 402, 0, i == 0 ? "c" : i == 1 ? "b" : "a"); /* "a" was over before */
        assert_int_equal(judge_end(MODEL_END_KEEPS, false, 0, 500), i != 2);
        finish();
    }
}

/* ---- several keys ---- */

static void
a_batch_is_done_wholly_or_not_at_all(void **state)
{
    (void)state;
    for (u32 i = 0; i < 4; i++) {
        begin(2);
        struct model_op *op = model_op_new(2);
        op->steps[0] = (struct model_step){.kind = MODEL_PUT, .key = 0, .value = text("x")};
        op->steps[1] = (struct model_step){.kind = MODEL_PUT, .key = 1, .value = text("y")};
        op->all = MODEL_ALL_ANY;
        model_invoke(&object, op, 1, clock_ns);
        model_forget(&object, op);
        assert_true(judge());
        get(1001, 1002, 0, i & 1 ? "x" : NULL);
        get(1003, 1004, 1, i & 2 ? "y" : NULL);
        assert_int_equal(judge_end(MODEL_END_KEEPS, false, 0, 2000), i == 0 || i == 3);
        finish();
    }
}

static void
a_batch_with_a_condition_that_does_not_hold_does_nothing(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin(2);
        put(1, 2, 1, "y");
        struct model_op *op = model_op_new(2);
        op->steps[0] = (struct model_step){.kind = MODEL_PUT, .value = text("x")};
        op->steps[1] = (struct model_step){
            .kind = MODEL_PUT, .key = 1, .flags = MODEL_IF_ABSENT, .value = text("z")};
        op->all = i == 0 ? MODEL_ALL_UNDONE : MODEL_ALL_DONE;
        model_invoke(&object, op, 3, clock_ns);
        model_return(&object, op, 4, clock_ns);
        get(5, 6, 0, NULL);
        assert_int_equal(judge(), i == 0);
        finish();
    }
}

static void
a_transaction_that_expects_another_value_cannot_have_been_done(void **state)
{
    (void)state;
    begin(1);
    put(1, 2, 0, "a");
    put(3, 4, 0, "b");
    struct model_op *op = model_op_new(2);
    op->steps[0] = (struct model_step){.kind = MODEL_EXPECT, .value = text("a")};
    op->steps[1] = (struct model_step){.kind = MODEL_PUT, .value = text("c")};
    model_invoke(&object, op, 5, clock_ns);
    model_return(&object, op, 6, clock_ns);
    assert_false(judge());
    finish();
}

static void
a_name_moves_as_a_whole(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin(2);
        put(1, 2, 0, "a");
        add(3, 4,
            (struct model_step){
                .kind = MODEL_RENAME, .key2 = 1, .known = MODEL_KNOWS_NUMBER, .result_number = 1});
        get(5, 6, 0, i == 0 ? NULL : "a");
        get(7, 8, 1, "a");
        assert_int_equal(judge(), i == 0);
        finish();
    }
}

/* ---- answers that compute ---- */

static void
no_increment_is_lost(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin(1);
        for (u32 n = 0; n < 4; n++) /* all at once */
            add(1 + n, 10 + n,
                (struct model_step){.kind = MODEL_INCR,
                                    .number = 1,
                                    .known = MODEL_KNOWS_NUMBER,
                                    .result_number = n == 3 && i == 1 ? 3 : 4 - (i64)n});
        get(20, 21, 0, "4");
        assert_int_equal(judge(), i == 0);
        finish();
    }
}

static void
appends_tell_the_size(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin(1);
        for (u32 n = 0; n < 2; n++)
            add(1 + 2 * n, 2 + 2 * n,
                (struct model_step){.kind = MODEL_APPEND,
                                    .value = text("ab"),
                                    .known = MODEL_KNOWS_NUMBER,
                                    .result_number = 2 + 2 * n + (n == 1 && i == 1)});
        get(5, 6, 0, "abab");
        assert_int_equal(judge(), i == 0);
        finish();
    }
}

static void
versions_do_not_go_back(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin(1);
        for (u32 n = 0; n < 2; n++)
            add(1 + 2 * n, 2 + 2 * n,
                (struct model_step){.kind = MODEL_PUT,
                                    .value = text(n == 0 ? "a" : "b"),
                                    .known = MODEL_KNOWS_VERSION,
                                    .result_version = n == 0 || i == 0 ? 5 + n : 4});
        assert_int_equal(judge(), i == 0);
        finish();
    }
}

/* ---- time ---- */

/* The clock is set back by a second at 200 ms. A value is written, looked for at 150 ms, where it
 * is what it should be, and once more. */
static bool
judge_stepped(u64 written, u64 ttl_ms, u64 read, const char *found)
{
    begin(1);
    clock_begin(0, 50 * NS_PER_S);
    u64 step_ns = clock_ns + 200 * NS_PER_MS;
    clock_change(step_ns, 50 * NS_PER_S + step_ns - NS_PER_S, 0);
    model_clock_set(model, clock_least, clock_most);
    model_time_back_set(model);
    add(written, written + 1,
        (struct model_step){.kind = MODEL_PUT, .value = text("a"), .ttl_ms = ttl_ms});
    get(150, 151, 0, written > 150 || ttl_ms < 140 ? NULL : "a");
    get(read, read + 1, 0, found);
    bool right = judge_end(MODEL_END_KEEPS, false, 0, 5000);
    finish();
    return right;
}

static void
values_expire_by_the_clock_that_was_set_back(void **state)
{
    (void)state;
    /* It had expired, and the clock shows a time before that: dropped meanwhile, or not. */
    assert_true(judge_stepped(1, 100, 300, "a"));
    assert_true(judge_stepped(1, 100, 300, NULL));
    /* The clock comes there once more. */
    assert_true(judge_stepped(1, 100, 1200, NULL));
    assert_false(judge_stepped(1, 100, 1200, "a"));
    /* It had not, and so it lives a second longer. */
    assert_true(judge_stepped(1, 400, 1300, "a"));
    assert_false(judge_stepped(1, 400, 1300, NULL));
    assert_true(judge_stepped(1, 400, 1500, NULL));
    /* What is written afterwards lives as long as it was told to. */
    assert_true(judge_stepped(250, 400, 600, "a"));
    assert_false(judge_stepped(250, 400, 600, NULL));
    assert_false(judge_stepped(250, 400, 700, "a"));
}

static void
an_expired_value_is_gone_for_good(void **state)
{
    (void)state;
    for (u32 i = 0; i < 4; i++) {
        begin(1);
        add(1, 2, (struct model_step){.kind = MODEL_PUT, .value = text("a"), .ttl_ms = 100});
        if (i == 0) get(50, 60, 0, "a");
        if (i == 1) get(50, 60, 0, NULL);  /* too early */
        if (i == 2) get(200, 210, 0, "a"); /* too late */
        if (i == 3) {
            get(99, 104, 0, NULL);
            get(104, 105, 0, "a");
        }
        get(300, 301, 0, NULL);
        assert_int_equal(judge(), i == 0);
        finish();
    }
}

static void
a_time_to_live_is_told_as_it_is(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin(1);
        add(1, 2, (struct model_step){.kind = MODEL_PUT, .value = text("a"), .ttl_ms = 1000});
        add(100, 101,
            (struct model_step){.kind = MODEL_TTL,
                                .known = MODEL_KNOWS_NUMBER,
                                .result_number = i == 0 ? 901 : 990});
        assert_int_equal(judge(), i == 0);
        finish();
    }
}

/* ---- order within a connection ---- */

static void
writes_of_one_connection_keep_their_order(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        begin(1);
        struct model_op *ops[2];
        for (u32 n = 0; n < 2; n++) { /* pipelined: both under way */
            ops[n] = model_op_new(1);
            ops[n]->connection = i;
            ops[n]->steps[0] =
                (struct model_step){.kind = MODEL_PUT, .value = text(n == 0 ? "a" : "b")};
            model_invoke(&object, ops[n], 1 + n, clock_ns);
        }
        for (u32 n = 0; n < 2; n++)
            model_return(&object, ops[n], 10 + n, clock_ns);
        get(20, 21, 0, "a");
        assert_int_equal(judge(), i == 0); /* connection 0 is none */
        finish();
    }
}

/* ---- against brute force ---- */

#define BRUTE_OPS 6u

static struct model_op *brute[BRUTE_OPS];

/* Whether the rest of the operations can follow in some order that keeps the intervals. */
static bool
brute_force(u32 done, u32 value)
{
    if (done == (1u << BRUTE_OPS) - 1) return true;
    for (u32 i = 0; i < BRUTE_OPS; i++) {
        if (done >> i & 1) continue;
        bool first = true; /* nothing that is left has returned before it began */
        for (u32 j = 0; j < BRUTE_OPS; j++)
            if (!(done >> j & 1) && j != i && brute[j]->returned < brute[i]->invoked) first = false;
        if (!first) continue;
        const struct model_step *step = &brute[i]->steps[0];
        bool unknown = brute[i]->outcome == MODEL_UNKNOWN;
        if (step->kind == MODEL_GET && !unknown && step->result_value != value) continue;
        u32 after = step->kind == MODEL_PUT      ? step->value
                    : step->kind == MODEL_DELETE ? VALUE_ABSENT
                                                 : value;
        if (brute_force(done | 1u << i, after)) return true;
        if (unknown && brute_force(done | 1u << i, value)) return true;
    }
    return false;
}

static void
small_histories_are_judged_as_by_brute_force(void **state)
{
    (void)state;
    u32 right = 0, wrong = 0;
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 round = 0; round < 4000; round++) {
        begin(1);
        u64 position = 0;
        u32 begun = 0, ended = 0;
        while (ended < BRUTE_OPS) {
            if (begun < BRUTE_OPS && (begun == ended || prng_chance(&prng, 1, 2))) {
                struct model_op *op = model_op_new(1);
                static const u8 kinds[] = {MODEL_GET, MODEL_GET, MODEL_PUT, MODEL_DELETE};
                char name[8];
                op->steps[0] = (struct model_step){.kind = kinds[prng_below(&prng, 4)]};
                snprintf(name, sizeof(name), "v%u", (unsigned)begun);
                if (op->steps[0].kind == MODEL_PUT) op->steps[0].value = text(name);
                brute[begun++] = op;
                model_invoke(&object, op, ++position, clock_ns);
                continue;
            }
            u32 i = (u32)prng_below(&prng, begun);
            struct model_op *op = brute[i];
            if (op->outcome != MODEL_OPEN) continue;
            ended++;
            if (op->steps[0].kind == MODEL_GET) {
                op->steps[0].known = MODEL_KNOWS_VALUE;
                op->steps[0].result_value = (u32)prng_below(&prng, values.count);
            }
            if (prng_chance(&prng, 1, 5))
                model_forget(&object, op);
            else
                model_return(&object, op, ++position, clock_ns);
        }
        bool expected = brute_force(0, VALUE_ABSENT);
        assert_int_equal(judge(), expected);
        right += expected;
        wrong += !expected;
        finish();
    }
    assert_true(right > 300 && wrong > 300);
}

/* ---- presence ---- */

static void
what_is_sure_is_demanded_of_a_scan(void **state)
{
    (void)state;
    struct presence p;
    presence_init(&p);
    assert_true(presence_surely_absent(&p, 1));
    presence_begin(&p, true, false); /* a write from 2 to 4 */
    assert_false(presence_surely_absent(&p, 3));
    presence_end(&p, true, false, PRESENCE_THERE, 2, 4);
    assert_true(presence_surely_there(&p, 4));
    assert_false(presence_surely_there(&p, 3)); /* since then, not before */
    presence_begin(&p, false, true);            /* a delete from 5 on */
    assert_false(presence_surely_there(&p, 5));
    presence_begin(&p, true, false); /* a write from 6 to 7, beside it: not sure */
    presence_end(&p, true, false, PRESENCE_THERE, 6, 7);
    assert_false(presence_surely_there(&p, 8));
    presence_end(&p, false, true, PRESENCE_ABSENT, 5, 8);
    assert_false(presence_surely_absent(&p, 9));
    presence_begin(&p, false, false); /* a read that finds it, with nothing beside it */
    presence_end(&p, false, false, PRESENCE_THERE, 9, 10);
    assert_true(presence_surely_there(&p, 10));
    presence_reset(&p, true, 11);
    assert_false(presence_surely_there(&p, 12));
}

/* ---- refusals ---- */

/* FLUSHDB in a keyspace with the keys of one object: the shard that owns them has done its part,
 * another one refuses. The answer of the whole says nothing of that object. */
static void
a_flush_that_one_shard_refused_may_have_emptied_another(void **state)
{
    (void)state;
    for (u32 shards = 1; shards <= 4; shards++) {
        begin(1);
        put(1, 2, 0, "a");
        struct model_op *op = model_op_new(1);
        op->steps[0] = (struct model_step){.kind = MODEL_CLEAR};
        model_invoke(&object, op, 3, clock_ns + 3 * NS_PER_MS);
        if (parts_may_be_done(true, 1, shards))
            model_forget(&object, op);
        else
            model_refuse(&object, op);
        get(4, 5, 0, NULL);
        assert_int_equal(judge(), shards > 1);
        finish();
    }
    assert_false(parts_may_be_done(false, 1, 4)); /* one owner: done wholly or not at all */
    assert_true(parts_may_be_done(false, 2, 4));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_see_what_was_written),
        cmocka_unit_test(a_stale_read_is_refused),
        cmocka_unit_test(reads_do_not_go_back),
        cmocka_unit_test(an_answered_write_survives_the_end),
        cmocka_unit_test(a_write_without_answer_is_there_or_not_but_stays_so),
        cmocka_unit_test(a_write_without_answer_does_not_come_after_the_end),
        cmocka_unit_test(a_deleted_value_does_not_return),
        cmocka_unit_test(a_delete_that_found_nothing_in_one_order_found_something_in_another),
        cmocka_unit_test(what_may_be_lost_is_a_moment_since_then),
        cmocka_unit_test(a_batch_is_done_wholly_or_not_at_all),
        cmocka_unit_test(a_batch_with_a_condition_that_does_not_hold_does_nothing),
        cmocka_unit_test(a_transaction_that_expects_another_value_cannot_have_been_done),
        cmocka_unit_test(a_name_moves_as_a_whole),
        cmocka_unit_test(no_increment_is_lost),
        cmocka_unit_test(appends_tell_the_size),
        cmocka_unit_test(versions_do_not_go_back),
        cmocka_unit_test(values_expire_by_the_clock_that_was_set_back),
        cmocka_unit_test(an_expired_value_is_gone_for_good),
        cmocka_unit_test(a_time_to_live_is_told_as_it_is),
        cmocka_unit_test(writes_of_one_connection_keep_their_order),
        cmocka_unit_test(small_histories_are_judged_as_by_brute_force),
        cmocka_unit_test(what_is_sure_is_demanded_of_a_scan),
        cmocka_unit_test(a_flush_that_one_shard_refused_may_have_emptied_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
