/* SPDX-License-Identifier: MIT */
#include "proto/peer_forward.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static struct budget budget;

static void
must(bool done)
{
    assert_true(done);
}

/* Two watched keys, SET a 1 and GET a. */
static void
encode_exec(struct buf *out, enum peer_forward_kind kind)
{
    static const char *const args[] = {"a", "{a}b", "SET", "a", "1", "GET", "a"};
    bool exec = kind == PEER_FORWARD_EXEC;
    struct peer_forward forward = {.resp = 3,
                                   .level = 2,
                                   .kind = kind,
                                   .age_ms = 77,
                                   .until_ms = 1ull << 41,
                                   .arg_count = exec ? 7 : 2,
                                   .watch_count = 2,
                                   .command_count = exec ? 2 : 0};
    struct peer_watch present = {.version = 99, .keyspace = 3, .flags = PEER_WATCH_PRESENT};
    struct peer_watch absent = {.version = 0, .keyspace = 0, .flags = PEER_WATCH_OLD};
    must(peer_forward_begin(out, &forward));
    must(peer_forward_watch(out, &present));
    must(peer_forward_watch(out, &absent));
    if (exec) must(peer_forward_count(out, 3) && peer_forward_count(out, 2));
    for (u32 i = 0; i < forward.arg_count; i++)
        must(peer_forward_arg(out, BYTES(args[i], strlen(args[i]))));
}

static void
a_transaction_comes_back_as_it_went_in(void **state)
{
    (void)state;
    struct buf out;
    struct peer_forward back;
    struct bytes args[7];
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&out, &budget);
    encode_exec(&out, PEER_FORWARD_EXEC);
    assert_true(ok(peer_forward_decode(buf_bytes(&out), &back)));
    assert_int_equal(back.kind, PEER_FORWARD_EXEC);
    assert_int_equal(back.resp, 3);
    assert_int_equal(back.level, 2);
    assert_int_equal(back.age_ms, 77);
    assert_true(back.until_ms == 1ull << 41);
    assert_int_equal(back.watch_count, 2);
    assert_int_equal(back.command_count, 2);
    struct peer_watch watch = peer_forward_watch_at(&back, 0);
    assert_true(watch.version == 99 && watch.keyspace == 3 && watch.flags == PEER_WATCH_PRESENT);
    watch = peer_forward_watch_at(&back, 1);
    assert_true(watch.version == 0 && watch.keyspace == 0 && watch.flags == PEER_WATCH_OLD);
    assert_int_equal(peer_forward_count_at(&back, 0), 3);
    assert_int_equal(peer_forward_count_at(&back, 1), 2);
    peer_forward_args(&back, args);
    assert_true(bytes_equal(args[1], BYTES_LITERAL("{a}b")));
    assert_true(bytes_equal(args[6], BYTES_LITERAL("a")));
    for (size_t size = 0; size < out.size; size++)
        assert_false(ok(peer_forward_decode(BYTES(out.data, size), &back)));
    buf_deinit(&out);
    assert_int_equal(budget.used_bytes, 0);
}

static void
counts_that_do_not_add_up_are_refused(void **state)
{
    (void)state;
    struct buf out;
    struct peer_forward back;
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&out, &budget);
    encode_exec(&out, PEER_FORWARD_EXEC);
    static const struct {
        u32 at;
        u8 value;
    } wrong[] = {
        {0, 1},     /* version */
        {1, 1},     /* no RESP */
        {1, 0},     /* a native frame is no transaction */
        {3, 4},     /* kind */
        {3, 2},     /* WATCH has no commands */
        {3, 0x81},  /* a transaction has no attempt before */
        {16, 6},    /* arguments */
        {20, 3},    /* watched keys */
        {24, 1},    /* commands */
        {38, 4},    /* flags */
        {39, 1},    /* reserved */
        {52, 0},    /* a command of no arguments */
        {52, 4},    /* one more than there are */
        {55, 0x80}, /* very many more */
    };
    for (u32 i = 0; i < ARRAY_COUNT(wrong); i++) {
        u8 right = out.data[wrong[i].at];
        out.data[wrong[i].at] = wrong[i].value;
        assert_false(ok(peer_forward_decode(buf_bytes(&out), &back)));
        out.data[wrong[i].at] = right;
    }
    assert_true(ok(peer_forward_decode(buf_bytes(&out), &back)));
    buf_deinit(&out);
}

static void
a_frame_that_comes_again_says_so(void **state)
{
    (void)state;
    struct buf out;
    struct peer_forward back;
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&out, &budget);
    for (u32 moved = 0; moved < 2; moved++) {
        struct peer_forward forward = {.resp = 0, .moved = moved != 0, .arg_count = 1};
        out.size = 0;
        must(peer_forward_begin(&out, &forward) && peer_forward_arg(&out, BYTES_LITERAL("frame")));
        assert_true(ok(peer_forward_decode(buf_bytes(&out), &back)));
        assert_int_equal(back.kind, PEER_FORWARD_COMMAND);
        assert_int_equal(back.moved, moved);
    }
    out.data[1] = 3; /* no native frame */
    assert_false(ok(peer_forward_decode(buf_bytes(&out), &back)));
    buf_deinit(&out);
}

static void
what_watch_answers_is_checked(void **state)
{
    (void)state;
    struct buf out;
    struct peer_forward back;
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&out, &budget);
    encode_exec(&out, PEER_FORWARD_WATCH);
    assert_true(ok(peer_forward_decode(buf_bytes(&out), &back)));
    assert_int_equal(back.kind, PEER_FORWARD_WATCH);
    out.size = 0;
    must(buf_append(&out, "+OK\r\n", 5));
    struct peer_watch watch = {.version = 1234567, .flags = PEER_WATCH_PRESENT};
    must(peer_watched_encode(&out, &watch));
    assert_true(ok(peer_watched_check(buf_bytes(&out), 1)));
    assert_true(peer_watched_at(buf_bytes(&out), 0).version == 1234567);
    assert_int_equal(peer_watched_at(buf_bytes(&out), 0).flags, PEER_WATCH_PRESENT);
    assert_false(ok(peer_watched_check(buf_bytes(&out), 0)));
    assert_false(ok(peer_watched_check(buf_bytes(&out), 2)));
    for (size_t size = 0; size < out.size; size++)
        assert_false(ok(peer_watched_check(BYTES(out.data, size), 1)));
    out.data[13] = 2;
    assert_false(ok(peer_watched_check(buf_bytes(&out), 1)));
    assert_false(ok(peer_watched_check(BYTES_LITERAL("-ERR no\r\n"), 0)));
    buf_deinit(&out);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_transaction_comes_back_as_it_went_in),
        cmocka_unit_test(counts_that_do_not_add_up_are_refused),
        cmocka_unit_test(a_frame_that_comes_again_says_so),
        cmocka_unit_test(what_watch_answers_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
