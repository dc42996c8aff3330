/* SPDX-License-Identifier: MIT
 *
 * test_resp.c -- RESP commands: what is accepted, what is refused with which words, and that the
 * pieces in which bytes arrive never matter.
 */
#include "proto/resp.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static struct budget budget;
static struct resp_parser parser;

static int
setup(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(64), NULL);
    resp_parser_init(&parser, &budget);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    resp_parser_deinit(&parser);
    return budget.used_bytes == 0 ? 0 : -1;
}

static enum resp_result
parse(struct bytes data, size_t *consumed)
{
    size_t wanted;
    return resp_parse(&parser, data, RESP_ARGS_MAX, RESP_BULK_BYTES_MAX, consumed, &wanted);
}

/* The arguments as one text: "[SET][key][]". */
static void
describe(struct bytes data, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (u32 i = 0; i < parser.arg_count; i++) {
        struct bytes arg = resp_arg(&parser, data, i);
        assert_true(used + arg.size + 3 < size);
        out[used++] = '[';
        if (arg.size > 0) memcpy(out + used, arg.data, arg.size);
        used += arg.size;
        out[used++] = ']';
        out[used] = '\0';
    }
}

struct accepted {
    const char *bytes;
    const char *args;
};

static const struct accepted ACCEPTED[] = {
    {"*1\r\n$4\r\nPING\r\n", "[PING]"},
    {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n", "[SET][k][]"},
    {"*2\r\n$3\r\nGET\r\n$5\r\na\r\nb\r\r\n", "[GET][a\r\nb\r]"},
    {"*0\r\n", ""},
    {"*-1\r\n", ""},
    {"*-9223372036854775808\r\n", ""},
    {"PING\r\n", "[PING]"},
    {"PING\n", "[PING]"},
    {"\r\n", ""},
    {"\n", ""},
    {"   \t \r\n", ""},
    {"  set  key\tvalue \r\n", "[set][key][value]"},
    {"set key \"a b\"\r\n", "[set][key][a b]"},
    {"set key \"\\x41\\x7a\\n\\r\\t\\b\\a\\\\\\\"\\q\"\r\n", "[set][key][Az\n\r\t\b\a\\\"q]"},
    {"set key \"\\xZZ\"\r\n", "[set][key][xZZ]"},
    {"set key 'a\\'b\\n'\r\n", "[set][key][a'b\\n]"},
    {"set key \"\" ''\r\n", "[set][key][][]"},
    {"set ke\"y 1\" v\r\n", "[set][key 1][v]"},
    {"set k\\x41 v\r\n", "[set][k\\x41][v]"},
    {"$5\r\n", "[$5]"}, /* not an array: inline, as Redis has it */
};

static void
commands_are_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(ACCEPTED); i++) {
        struct bytes data = BYTES(ACCEPTED[i].bytes, strlen(ACCEPTED[i].bytes));
        size_t consumed = 0;
        char text[128];
        assert_int_equal(parse(data, &consumed), RESP_COMMAND);
        assert_int_equal(consumed, data.size);
        describe(data, text, sizeof(text));
        assert_string_equal(text, ACCEPTED[i].args);
    }
}

/* Each prefix is copied to the heap at its exact size, so that reading past it is seen. */
static void
commands_may_arrive_byte_by_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(ACCEPTED); i++) {
        size_t size = strlen(ACCEPTED[i].bytes);
        for (size_t have = 1; have <= size; have++) {
            u8 *copy = malloc(have);
            assert_non_null(copy);
            memcpy(copy, ACCEPTED[i].bytes, have);
            size_t consumed = 0, wanted = 0;
            enum resp_result result = resp_parse(&parser, BYTES(copy, have), RESP_ARGS_MAX,
                                                 RESP_BULK_BYTES_MAX, &consumed, &wanted);
            if (have < size) {
                assert_int_equal(result, RESP_INCOMPLETE);
                assert_in_range(wanted, have + 1, size);
            } else {
                char text[128];
                assert_int_equal(result, RESP_COMMAND);
                assert_int_equal(consumed, size);
                describe(BYTES(copy, have), text, sizeof(text));
                assert_string_equal(text, ACCEPTED[i].args);
            }
            free(copy);
        }
    }
}

static void
commands_may_be_split_at_any_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(ACCEPTED); i++) {
        size_t size = strlen(ACCEPTED[i].bytes);
        for (size_t split = 1; split < size; split++) {
            size_t consumed = 0;
            char text[128];
            struct bytes whole = BYTES(ACCEPTED[i].bytes, size);
            assert_int_equal(parse(BYTES(whole.data, split), &consumed), RESP_INCOMPLETE);
            assert_int_equal(parse(whole, &consumed), RESP_COMMAND);
            describe(whole, text, sizeof(text));
            assert_string_equal(text, ACCEPTED[i].args);
        }
    }
}

static void
pipelined_commands_are_taken_one_by_one(void **state)
{
    (void)state;
    const char *text = "*1\r\n$4\r\nPING\r\nECHO 'x'\r\n\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    const char *expected[] = {"[PING]", "[ECHO][x]", "", "[GET][k]"};
    struct bytes data = BYTES(text, strlen(text));
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++) {
        size_t consumed = 0;
        char got[64];
        assert_int_equal(parse(data, &consumed), RESP_COMMAND);
        describe(data, got, sizeof(got));
        assert_string_equal(got, expected[i]);
        data = BYTES(data.data + consumed, data.size - consumed);
    }
    assert_int_equal(data.size, 0);
}

struct refused {
    const char *bytes;
    const char *error;
};

static const struct refused REFUSED[] = {
    {"*x\r\n", "Protocol error: invalid multibulk length"},
    {"*\r\n", "Protocol error: invalid multibulk length"},
    {"*+1\r\n", "Protocol error: invalid multibulk length"},
    {"*01\r\n", "Protocol error: invalid multibulk length"},
    {"*-0\r\n", "Protocol error: invalid multibulk length"},
    {"* 1\r\n", "Protocol error: invalid multibulk length"},
    {"*1 \r\n", "Protocol error: invalid multibulk length"},
    {"*3000000000\r\n", "Protocol error: invalid multibulk length"},
    {"*1048577\r\n", "Protocol error: invalid multibulk length"},
    {"*2147483648\r\n", "Protocol error: invalid multibulk length"},
    {"*4294967297\r\n", "Protocol error: invalid multibulk length"},
    {"*9223372036854775808\r\n", "Protocol error: invalid multibulk length"},
    {"*18446744073709551617\r\n", "Protocol error: invalid multibulk length"},
    {"*99999999999999999999999\r\n", "Protocol error: invalid multibulk length"},
    {"*1\rX", "Protocol error: invalid multibulk length"},
    {"*1\r\n:5\r\n", "Protocol error: expected '$', got ':'"},
    {"*1\r\nx", "Protocol error: expected '$', got 'x'"},
    {"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n", "Protocol error: expected '$', got 'f'"},
    {"*1\r\n\r\n", "Protocol error: expected '$', got ' '"},
    {"*1\r\n$x\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$-10\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$+4\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$04\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$536870913\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$2000000000\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$4294967300\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$9223372036854775807\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$18446744073709551620\r\n", "Protocol error: invalid bulk length"},
    {"*1\r\n$4\rx", "Protocol error: invalid bulk length"},
    {"*1\r\n$4\r\nPINGxx", "Protocol error: expected CRLF after bulk string"},
    {"*1\r\n$4\r\nPING\rx", "Protocol error: expected CRLF after bulk string"},
    {"set k \"a\r\n", "Protocol error: unbalanced quotes in request"},
    {"set k 'a\r\n", "Protocol error: unbalanced quotes in request"},
    {"set k \"a\"b\r\n", "Protocol error: unbalanced quotes in request"},
    {"set k 'a'b\r\n", "Protocol error: unbalanced quotes in request"},
    {"set k \"\"\"test-key\"\"\" v\r\n", "Protocol error: unbalanced quotes in request"},
    {"set k \"a\\\r\n", "Protocol error: unbalanced quotes in request"},
};

static void
malformed_commands_are_refused_with_redis_words(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(REFUSED); i++) {
        struct bytes data = BYTES(REFUSED[i].bytes, strlen(REFUSED[i].bytes));
        size_t consumed;
        assert_int_equal(parse(data, &consumed), RESP_ERROR);
        assert_string_equal(parser.error, REFUSED[i].error);
        resp_parser_reset(&parser);
    }
}

static void
malformed_commands_are_refused_however_they_arrive(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(REFUSED); i++) {
        size_t size = strlen(REFUSED[i].bytes);
        enum resp_result result = RESP_INCOMPLETE;
        for (size_t have = 1; have <= size && result == RESP_INCOMPLETE; have++) {
            size_t consumed;
            result = parse(BYTES(REFUSED[i].bytes, have), &consumed);
        }
        assert_int_equal(result, RESP_ERROR);
        assert_string_equal(parser.error, REFUSED[i].error);
        resp_parser_reset(&parser);
    }
}

static void
lines_without_end_are_refused_at_64_kib(void **state)
{
    (void)state;
    static const struct refused lines[] = {
        {"*", "Protocol error: too big mbulk count string"},
        {"*1\r\n$", "Protocol error: too big bulk count string"},
        {"", "Protocol error: too big inline request"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++) {
        size_t head = strlen(lines[i].bytes);
        size_t size = head + RESP_INLINE_BYTES_MAX + 1;
        u8 *data = malloc(size);
        assert_non_null(data);
        memcpy(data, lines[i].bytes, head);
        memset(data + head, '1', size - head);
        size_t consumed;
        assert_int_equal(parse(BYTES(data, RESP_INLINE_BYTES_MAX), &consumed), RESP_INCOMPLETE);
        assert_int_equal(parse(BYTES(data, size), &consumed), RESP_ERROR);
        assert_string_equal(parser.error, lines[i].error);
        resp_parser_reset(&parser);
        free(data);
    }
}

static void
an_inline_line_of_64_kib_is_read(void **state)
{
    (void)state;
    size_t size = RESP_INLINE_BYTES_MAX + 1;
    u8 *data = malloc(size);
    assert_non_null(data);
    memset(data, 'x', size);
    data[size - 1] = '\n';
    size_t consumed;
    assert_int_equal(parse(BYTES(data, size), &consumed), RESP_COMMAND);
    assert_int_equal(resp_arg(&parser, BYTES(data, size), 0).size, size - 1);
    free(data);
}

static void
limits_before_authentication_are_named(void **state)
{
    (void)state;
    static const struct refused lines[] = {
        {"*11\r\n", "Protocol error: unauthenticated multibulk length"},
        {"*1\r\n$16385\r\n", "Protocol error: unauthenticated bulk length"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++) {
        size_t consumed, wanted;
        struct bytes data = BYTES(lines[i].bytes, strlen(lines[i].bytes));
        assert_int_equal(resp_parse(&parser, data, RESP_ARGS_MAX_UNAUTHENTICATED,
                                    RESP_BULK_BYTES_MAX_UNAUTHENTICATED, &consumed, &wanted),
                         RESP_ERROR);
        assert_string_equal(parser.error, lines[i].error);
        resp_parser_reset(&parser);
    }
    size_t consumed, wanted;
    assert_int_equal(resp_parse(&parser, BYTES_LITERAL("*1\r\n$1048577\r\n"), RESP_ARGS_MAX,
                                1048576, &consumed, &wanted),
                     RESP_ERROR);
    assert_string_equal(parser.error, "Protocol error: invalid bulk length");
}

static void
a_promised_length_allocates_nothing(void **state)
{
    (void)state;
    size_t consumed, wanted;
    struct bytes data = BYTES_LITERAL("*1048576\r\n$536870912\r\nabc");
    assert_int_equal(
        resp_parse(&parser, data, RESP_ARGS_MAX, RESP_BULK_BYTES_MAX, &consumed, &wanted),
        RESP_INCOMPLETE);
    assert_int_equal(wanted, 10 + 12 + 536870912 + 2);
    assert_int_equal(budget.used_bytes, 0);
}

static void
memory_that_runs_out_is_told(void **state)
{
    (void)state;
    budget.limit_bytes = 1024;
    static char data[32 + 6 * 1000];
    int size = snprintf(data, sizeof(data), "*1000\r\n");
    for (int i = 0; i < 1000; i++)
        size += snprintf(data + size, sizeof(data) - (size_t)size, "$0\r\n\r\n");
    size_t consumed;
    assert_int_equal(parse(BYTES(data, size), &consumed), RESP_NO_MEMORY);
    assert_in_range(budget.used_bytes, 0, 1024);
    resp_parser_reset(&parser);
    budget.limit_bytes = MIB(1);
    assert_int_equal(parse(BYTES(data, size), &consumed), RESP_COMMAND);
    assert_int_equal(parser.arg_count, 1000);
    resp_parser_reset(&parser);
    assert_in_range(budget.used_bytes, 0, 512);
}

/* Redis' protocol tests send these as a first line each. */
static void
binary_bytes_are_arguments_like_any_other(void **state)
{
    (void)state;
    struct bytes data = BYTES_LITERAL("*2\r\n$4\r\n\0\xff\r\n\r\n$1\r\n\0\r\n");
    size_t consumed;
    assert_int_equal(parse(data, &consumed), RESP_COMMAND);
    assert_memory_equal(resp_arg(&parser, data, 0).data, "\0\xff\r\n", 4);
    assert_memory_equal(resp_arg(&parser, data, 1).data, "\0", 1);
}

static void
the_plain_form_is_taken_and_nothing_else(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        u32 size; /* of the request; 0: not for this */
        const char *key, *value;
    } cases[] = {
        {"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", 20, "k", NULL},
        {"*2\r\n$3\r\ngeT\r\n$1\r\nk\r\n*2\r\n", 20, "k", NULL},
        {"*2\r\n$3\r\nGET\r\n$12\r\nkey:00000001\r\n", 32, "key:00000001", NULL},
        {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nvw\r\n", 28, "k", "vw"},
        {"*3\r\n$3\r\nset\r\n$2\r\n\r\n\r\n$2\r\n\r\n\r\n", 29, "\r\n", "\r\n"},
        /* in pieces */
        {"*2\r\n$3\r\nGET\r\n$1\r\nk\r", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n$2\r\nk\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n$1", 0, NULL, NULL},
        {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n", 0, NULL, NULL},
        {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nvw\r", 0, NULL, NULL},
        /* other commands and forms, and mistakes */
        {"*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nSET\r\n$1\r\nk\r\n", 0, NULL, NULL},
        {"*3\r\n$3\r\nGET\r\n$1\r\nk\r\n$1\r\nv\r\n", 0, NULL, NULL},
        {"*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n$2\r\nEX\r\n$1\r\n1\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n$0\r\n\r\n    ", 0, NULL, NULL},
        {"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n$01\r\nk\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n$-1\r\nk\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n$1\r\nkk\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n$999999\r\nk\r\n", 0, NULL, NULL},
        {"*2\r\n$3\r\nGET\r\n:1\r\nk\r\n  ", 0, NULL, NULL},
        {"*2\r\n$3 \nGET\r\n$1\r\nk\r\n", 0, NULL, NULL},
        {"GET key with spaces\r\n", 0, NULL, NULL},
        {"", 0, NULL, NULL},
    };
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        size_t size = strlen(cases[i].bytes);
        u8 *exact = malloc(size + 1); /* so that a sanitizer sees a look behind the end */
        memcpy(exact, cases[i].bytes, size);
        struct resp_plain plain;
        bool taken = resp_parse_plain(BYTES(exact, size), &plain);
        if (taken != (cases[i].size != 0)) fail_msg("case %u: %s", i, cases[i].bytes);
        if (taken) {
            assert_int_equal(plain.size, cases[i].size);
            assert_true(bytes_equal(plain.key, BYTES(cases[i].key, strlen(cases[i].key))));
            assert_true(plain.set == (cases[i].value != NULL));
            if (plain.set)
                assert_true(
                    bytes_equal(plain.value, BYTES(cases[i].value, strlen(cases[i].value))));
        }
        free(exact);
    }
    /* A key of 1,024 bytes and one more. */
    for (u32 extra = 0; extra < 2; extra++) {
        char text[1200];
        int n = snprintf(text, sizeof(text), "*2\r\n$3\r\nGET\r\n$%u\r\n%0*d\r\n",
                         LIMIT_KEY_BYTES + extra, (int)(LIMIT_KEY_BYTES + extra), 7);
        struct resp_plain plain;
        assert_true(resp_parse_plain(BYTES(text, (size_t)n), &plain) == (extra == 0));
    }
}

/* Who has other things to do reads a long command in several calls. */
static void
so_many_arguments_are_read_in_a_call(void **state)
{
    (void)state;
    static const char text[] = "*5\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n";
    struct bytes data = BYTES(text, sizeof(text) - 1);
    parser.args_per_call = 2;
    size_t consumed = 0, wanted = 0;
    for (u32 round = 0; round < 2; round++) { /* the next command as well */
        for (u32 read = 2; read < 5; read += 2) {
            assert_int_equal(resp_parse(&parser, data, 100, 100, &consumed, &wanted),
                             RESP_INCOMPLETE);
            assert_int_equal(parser.arg_count, read);
            assert_true(wanted <= data.size);
        }
        assert_int_equal(resp_parse(&parser, data, 100, 100, &consumed, &wanted), RESP_COMMAND);
        assert_int_equal(consumed, data.size);
        assert_int_equal(parser.arg_count, 5);
        for (u32 i = 0; i < 5; i++)
            assert_int_equal(resp_arg(&parser, data, i).data[0], 'a' + (int)i);
    }
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(the_plain_form_is_taken_and_nothing_else),
        T(commands_are_read),
        T(commands_may_arrive_byte_by_byte),
        T(commands_may_be_split_at_any_byte),
        T(pipelined_commands_are_taken_one_by_one),
        T(malformed_commands_are_refused_with_redis_words),
        T(malformed_commands_are_refused_however_they_arrive),
        T(lines_without_end_are_refused_at_64_kib),
        T(an_inline_line_of_64_kib_is_read),
        T(limits_before_authentication_are_named),
        T(a_promised_length_allocates_nothing),
        T(memory_that_runs_out_is_told),
        T(binary_bytes_are_arguments_like_any_other),
        T(so_many_arguments_are_read_in_a_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
