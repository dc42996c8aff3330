/* SPDX-License-Identifier: MIT
 *
 * test_command_text.c -- patterns and numbers as Redis reads and writes them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

#include "server/glob.h"
#include "server/number.h"

static bool
glob(const char *pattern, const char *text)
{
    return glob_match(BYTES(pattern, strlen(pattern)), BYTES(text, strlen(text)), false);
}

static void
patterns_match_as_in_redis(void **state)
{
    (void)state;
    assert_true(glob("*", ""));
    assert_true(glob("a*c", "abbbc"));
    assert_false(glob("a*c", "abbbd"));
    assert_true(glob("h?llo", "hello"));
    assert_false(glob("h?llo", "hllo"));
    assert_true(glob("h[ae]llo", "hallo"));
    assert_false(glob("h[^e]llo", "hello"));
    assert_true(glob("h[b-a]llo", "hallo"));
    assert_true(glob("\\*x", "*x"));
    assert_false(glob("\\*x", "ax"));
    assert_true(glob("*a*b*c", "xxaxxbxxc"));
    assert_false(glob("", "a"));
    assert_true(glob("", ""));
}

static void
many_stars_cost_no_exponent(void **state)
{
    (void)state;
    char pattern[201], text[1001];
    for (int i = 0; i < 200; i += 2)
        memcpy(pattern + i, "*a", 2);
    pattern[199] = 'b';
    pattern[200] = '\0';
    memset(text, 'a', 1000);
    text[1000] = '\0';
    assert_false(glob(pattern, text));
}

static bool
integer(const char *text, i64 *out)
{
    return number_parse_i64(BYTES(text, strlen(text)), out);
}

static void
integers_have_one_form(void **state)
{
    (void)state;
    i64 value;
    static const char *const bad[] = {"",
                                      "-",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "01",
                                      "-0",
                                      "00",
                                      "1a",
                                      "9223372036854775808",
                                      "-9223372036854775809",
                                      "99999999999999999999999"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        assert_false(integer(bad[i], &value));
    static const char *const good[] = {"0", "-1", "9223372036854775807", "-9223372036854775808"};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        char text[24];
        assert_true(integer(good[i], &value));
        size_t size = number_format_i64(value, text);
        assert_int_equal(size, strlen(good[i]));
        assert_memory_equal(text, good[i], size);
    }
}

static void
floats_lose_their_zeros(void **state)
{
    (void)state;
    static char text[NUMBER_FLOAT_BYTES];
    static const struct {
        const char *in, *out;
    } cases[] = {{"3.0e3", "3000"},
                 {"10.5", "10.5"},
                 {"-0.0", "0"},
                 {"100", "100"},
                 {"1e20", "100000000000000000000"}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        long double value;
        assert_true(number_parse_float(BYTES(cases[i].in, strlen(cases[i].in)), &value));
        size_t size = number_format_float(value, text);
        assert_int_equal(size, strlen(cases[i].out));
        assert_memory_equal(text, cases[i].out, size);
    }
    long double value;
    assert_false(number_parse_float(BYTES_LITERAL("nan"), &value));
    assert_false(number_parse_float(BYTES_LITERAL(" 1"), &value));
    assert_false(number_parse_float(BYTES_LITERAL("1x"), &value));
    assert_false(number_parse_float(BYTES_LITERAL("1e5000"), &value));
}

static void
cursors_are_read_as_strtoul_reads_them(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t size;
        u64 value;
    } good[] = {
        {"", 0, 0},
        {"0", 1, 0},
        {"-0", 2, 0},
        {"+17", 3, 17},
        {"-1", 2, UINT64_MAX},
        {"000000000000000000000000017", 27, 17},
        {"18446744073709551615", 20, UINT64_MAX},
        {"-18446744073709551615", 21, 1},
        {"5\0x", 3, 5},
        {"\0x", 2, 0},
    };
    for (u32 i = 0; i < ARRAY_COUNT(good); i++) {
        u64 value = 12345;
        assert_true(number_parse_cursor(BYTES(good[i].text, good[i].size), &value));
        assert_true(value == good[i].value);
    }
    assert_true(number_parse_cursor(BYTES(NULL, 0), &(u64){0}));
    static const char *const bad[] = {
        "-",
        "+",
        "--1",
        "+-1",
        " 1",
        "1 ",
        "0x1",
        "x",
        "18446744073709551616",
        "-18446744073709551616",
    };
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++)
        assert_false(number_parse_cursor(BYTES(bad[i], strlen(bad[i])), &(u64){0}));
}

static void
words_are_compared_without_case(void **state)
{
    (void)state;
    assert_true(text_is(BYTES_LITERAL("GeT"), "get"));
    assert_false(text_is(BYTES_LITERAL("ge"), "get"));
    assert_false(text_is(BYTES_LITERAL("get "), "get"));
    assert_false(text_is(BYTES_LITERAL("@"), "`"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns_match_as_in_redis),
        cmocka_unit_test(many_stars_cost_no_exponent),
        cmocka_unit_test(integers_have_one_form),
        cmocka_unit_test(floats_lose_their_zeros),
        cmocka_unit_test(cursors_are_read_as_strtoul_reads_them),
        cmocka_unit_test(words_are_compared_without_case),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
