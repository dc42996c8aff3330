/* SPDX-License-Identifier: MIT
 *
 * test_resp_reply.c -- replies as RESP2 and RESP3 spell them, and read back.
 */
#include "proto/resp.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static struct budget budget;
static struct buf out;

static int
setup(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&out, &budget);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    buf_deinit(&out);
    return budget.used_bytes == 0 ? 0 : -1;
}

static void
write_one_of_each(u8 version)
{
    struct resp_writer w = {.out = &out, .version = version};
    resp_simple(&w, "OK");
    resp_error(&w, "ERR no %s\r\n+here", "line ends");
    resp_integer(&w, -42);
    resp_integer(&w, INT64_MIN);
    resp_integer(&w, INT64_MAX);
    resp_integer(&w, 0);
    resp_bulk(&w, BYTES_LITERAL("a\r\nb"));
    resp_bulk(&w, BYTES(NULL, 0));
    resp_bulk_text(&w, "text");
    resp_null(&w);
    resp_null_array(&w);
    resp_array(&w, 2);
    resp_map(&w, 1);
    resp_set(&w, 1);
    resp_push(&w, 3);
    resp_bool(&w, true);
    resp_bool(&w, false);
    resp_double(&w, 3.25);
    resp_double(&w, 0.1);
    resp_double(&w, -INFINITY);
    resp_double(&w, NAN);
    resp_verbatim(&w, "txt", BYTES_LITERAL("hello"));
    assert_false(w.failed);
}

static void
replies_are_spelt_as_resp2(void **state)
{
    (void)state;
    write_one_of_each(2);
    const char *expected = "+OK\r\n-ERR no line ends  +here\r\n:-42\r\n:-9223372036854775808\r\n"
                           ":9223372036854775807\r\n:0\r\n$4\r\na\r\nb\r\n$0\r\n\r\n$4\r\ntext\r\n"
                           "$-1\r\n*-1\r\n*2\r\n*2\r\n*1\r\n*3\r\n:1\r\n:0\r\n$4\r\n3.25\r\n"
                           "$3\r\n0.1\r\n$4\r\n-inf\r\n$3\r\nnan\r\n$5\r\nhello\r\n";
    assert_int_equal(out.size, strlen(expected));
    assert_memory_equal(out.data, expected, out.size);
}

static void
replies_are_spelt_as_resp3(void **state)
{
    (void)state;
    write_one_of_each(3);
    const char *expected = "+OK\r\n-ERR no line ends  +here\r\n:-42\r\n:-9223372036854775808\r\n"
                           ":9223372036854775807\r\n:0\r\n$4\r\na\r\nb\r\n$0\r\n\r\n$4\r\ntext\r\n"
                           "_\r\n_\r\n*2\r\n%1\r\n~1\r\n>3\r\n#t\r\n#f\r\n,3.25\r\n,0.1\r\n"
                           ",-inf\r\n,nan\r\n=9\r\ntxt:hello\r\n";
    assert_int_equal(out.size, strlen(expected));
    assert_memory_equal(out.data, expected, out.size);
}

static void
what_is_written_is_read_back_whole_or_not_at_all(void **state)
{
    (void)state;
    write_one_of_each(3);
    static const enum resp_reply_kind kinds[] = {
        RESP_REPLY_SIMPLE,  RESP_REPLY_ERROR,    RESP_REPLY_INTEGER, RESP_REPLY_INTEGER,
        RESP_REPLY_INTEGER, RESP_REPLY_INTEGER,  RESP_REPLY_BULK,    RESP_REPLY_BULK,
        RESP_REPLY_BULK,    RESP_REPLY_NULL,     RESP_REPLY_NULL,    RESP_REPLY_ARRAY,
        RESP_REPLY_MAP,     RESP_REPLY_SET,      RESP_REPLY_PUSH,    RESP_REPLY_BOOL,
        RESP_REPLY_BOOL,    RESP_REPLY_DOUBLE,   RESP_REPLY_DOUBLE,  RESP_REPLY_DOUBLE,
        RESP_REPLY_DOUBLE,  RESP_REPLY_VERBATIM,
    };
    struct bytes rest = buf_bytes(&out);
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        struct resp_reply reply;
        size_t consumed = 0;
        assert_true(ok(resp_read(rest, &reply, &consumed)));
        assert_int_equal(reply.kind, kinds[i]);
        for (size_t have = 0; have < consumed; have++) {
            u8 *copy = malloc(have + 1);
            assert_non_null(copy);
            memcpy(copy, rest.data, have);
            size_t ignored;
            assert_true(status_is(resp_read(BYTES(copy, have), &reply, &ignored), ST_INCOMPLETE));
            free(copy);
        }
        rest = BYTES(rest.data + consumed, rest.size - consumed);
    }
    assert_int_equal(rest.size, 0);
}

static void
malformed_replies_are_corrupt(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "\r\n",    "x\r\n",           ":\r\n",     ":1x\r\n", ":99999999999999999999\r\n",
        "$-2\r\n", "$x\r\n",          "$1\r\nxab", "#x\r\n",  "_x\r\n",
        "*-2\r\n", "*4294967296\r\n", "+OK\rx",    "%-1\r\n", "$9223372036854775807\r\n",
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct resp_reply reply;
        size_t consumed;
        assert_true(
            status_is(resp_read(BYTES(bad[i], strlen(bad[i])), &reply, &consumed), ST_CORRUPT));
    }
}

static void
a_reply_that_does_not_fit_leaves_no_piece(void **state)
{
    (void)state;
    budget.limit_bytes = 512;
    struct resp_writer w = {.out = &out, .version = 2};
    resp_simple(&w, "OK");
    static u8 large[1024];
    resp_bulk(&w, BYTES(large, sizeof(large)));
    assert_true(w.failed);
    resp_simple(&w, "later");
    assert_int_equal(out.size, 5);
}

static void
a_long_error_is_cut(void **state)
{
    (void)state;
    static char text[2000];
    memset(text, 'e', sizeof(text) - 1);
    struct resp_writer w = {.out = &out, .version = 2};
    resp_error(&w, "ERR %s", text);
    assert_in_range(out.size, 500, 700);
    assert_memory_equal(out.data + out.size - 2, "\r\n", 2);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(replies_are_spelt_as_resp2),
        T(replies_are_spelt_as_resp3),
        T(what_is_written_is_read_back_whole_or_not_at_all),
        T(malformed_replies_are_corrupt),
        T(a_reply_that_does_not_fit_leaves_no_piece),
        T(a_long_error_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
