/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include "base/option.h"

static const char *const colours[] = {"red", "green", NULL};

struct values {
    char name[16];
    _Atomic u64 size, wait_ms, count, colour, flag, help, level;
    struct option_text secret;
};

static const struct option options[] = {
    {.name = "name",
     .kind = OPTION_STRING,
     .offset = offsetof(struct values, name),
     .size = 16,
     .fallback = "x",
     .section = "One",
     .help = "A name."},
    {.name = "size",
     .kind = OPTION_BYTES,
     .offset = offsetof(struct values, size),
     .fallback = "4KiB",
     .min = 1,
     .max = GIB(8),
     .help = "A size."},
    {.name = "sync-wait",
     .kind = OPTION_DURATION,
     .unit = NS_PER_MS,
     .offset = offsetof(struct values, wait_ms),
     .fallback = "10ms",
     .min = 1,
     .max = 60000,
     .help = "A time."},
    {.name = "count",
     .kind = OPTION_NUMBER,
     .flags = OPTION_RUNTIME,
     .offset = offsetof(struct values, count),
     .fallback = "3",
     .max = 10,
     .help = "A | number."},
    {.name = "level",
     .kind = OPTION_SIGNED,
     .offset = offsetof(struct values, level),
     .fallback = "-1",
     .min = (u64)-1,
     .max = 100,
     .help = "Signed."},
    {.name = "colour",
     .kind = OPTION_CHOICE,
     .choices = colours,
     .offset = offsetof(struct values, colour),
     .fallback = "green",
     .section = "Two",
     .help = "A colour."},
    {.name = "flag",
     .kind = OPTION_BOOL,
     .offset = offsetof(struct values, flag),
     .fallback = "no",
     .help = "Yes or no."},
    {.name = "secret",
     .kind = OPTION_STRING,
     .flags = OPTION_RUNTIME | OPTION_SECRET,
     .offset = offsetof(struct values, secret),
     .help = "A secret."},
    {.name = "help",
     .kind = OPTION_BOOL,
     .flags = OPTION_COMMAND,
     .offset = offsetof(struct values, help),
     .help = "Helps."},
};

static const struct option_table table = {
    .options = options,
    .count = ARRAY_COUNT(options),
    .program = "prog",
    .summary = "a program",
    .usage = "[--x]",
    .variable_prefix = "P_",
    .epilogue = ".dot at the start\nend\n",
};

static void
sizes_take_units_and_refuse_what_does_not_fit(void **state)
{
    static const struct {
        const char *text;
        bool good;
        u64 value;
    } cases[] = {
        {"0", true, 0},
        {"4096", true, 4096},
        {"64KiB", true, 65536},
        {"64kb", true, 65536},
        {"64k", true, 65536},
        {"2GiB", true, GIB(2)},
        {"1 MiB", true, MIB(1)},
        {"1TiB", true, GIB(1024)},
        {"5b", true, 5},
        {"", false, 0},
        {"-1", false, 0},
        {"+1", false, 0},
        {" 1", false, 0},
        {"1Ki", false, 0},
        {"1X", false, 0},
        {"1.5G", false, 0},
        {"0x10", false, 0},
        {"18446744073709551615", true, UINT64_MAX},
        {"1KiBx", false, 0},
        {"18446744073709551616", false, 0},
        {"18014398509481984KiB", false, 0},
        {"99999999TiB", false, 0},
    };
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        u64 value = 77;
        bool good = option_parse_bytes(cases[i].text, &value);
        if (good != cases[i].good) fail_msg("'%s'", cases[i].text);
        assert_int_equal(value, good ? cases[i].value : 77);
    }
}

static void
durations_need_a_unit(void **state)
{
    u64 ns = 0;
    assert_true(option_parse_duration_ns("20us", &ns) && ns == 20000);
    assert_true(option_parse_duration_ns("5s", &ns) && ns == 5 * NS_PER_S);
    assert_true(option_parse_duration_ns("2 m", &ns) && ns == 120 * NS_PER_S);
    assert_true(option_parse_duration_ns("1d", &ns) && ns == 86400 * NS_PER_S);
    assert_true(option_parse_duration_ns("0", &ns) && ns == 0);
    assert_false(option_parse_duration_ns("10", &ns));
    assert_false(option_parse_duration_ns("ms", &ns));
    assert_false(option_parse_duration_ns("10 parsecs", &ns));
    assert_false(option_parse_duration_ns("99999999999999d", &ns));
}

static void
what_is_printed_is_read_back(void **state)
{
    static const u64 figures[] = {0, 1, 1023, 1024, 1536, MIB(3), GIB(2), UINT64_MAX};
    char text[64];
    u64 back;
    for (u32 i = 0; i < ARRAY_COUNT(figures); i++) {
        option_format_bytes(figures[i], text, sizeof(text));
        assert_true(option_parse_bytes(text, &back));
        assert_true(back == figures[i]);
        option_format_duration(figures[i], text, sizeof(text));
        assert_true(option_parse_duration_ns(text, &back));
        assert_true(back == figures[i]);
    }
}

static void
a_refused_value_changes_nothing(void **state)
{
    struct values values;
    memset(&values, 0, sizeof(values));
    option_set_defaults(&table, &values);
    char error[OPTION_ERROR_BYTES];
    for (u32 i = 0; i < table.count; i++) {
        static const char *const bad[] = {"", "\x01", "99999999999999999999999", "no such word",
                                          "16 or more bytes of text"};
        char before[OPTION_TEXT_BYTES], after[OPTION_TEXT_BYTES];
        option_get(&options[i], &values, before, sizeof(before));
        for (u32 j = 0; j < ARRAY_COUNT(bad); j++) {
            error[0] = '\0';
            status st = option_set(&options[i], &values, bad[j], error, sizeof(error));
            if (ok(st)) {
                st = option_set(&options[i], &values, before, error, sizeof(error));
                assert_true(ok(st));
                continue;
            }
            assert_true(error[0] != '\0');
            option_get(&options[i], &values, after, sizeof(after));
            assert_string_equal(before, after);
        }
    }
}

static void
values_outside_their_range_are_named_with_it(void **state)
{
    struct values values = {0};
    char error[OPTION_ERROR_BYTES];
    assert_false(ok(option_set(&options[1], &values, "16GiB", error, sizeof(error))));
    assert_string_equal(error, "size must be between 1 and 8GiB");
    assert_false(ok(option_set(&options[2], &values, "2m", error, sizeof(error))));
    assert_string_equal(error, "sync-wait must be between 1ms and 1m");
    assert_false(ok(option_set(&options[2], &values, "1500us", error, sizeof(error))));
    assert_string_equal(error, "sync-wait: must be a multiple of 1ms");
    assert_false(ok(option_set(&options[4], &values, "-2", error, sizeof(error))));
    assert_string_equal(error, "level must be between -1 and 100");
    assert_true(ok(option_set(&options[4], &values, "-1", error, sizeof(error))));
    assert_int_equal((i64)values.level, -1);
}

static void
a_mistyped_name_gets_a_suggestion(void **state)
{
    static const struct {
        const char *typed, *meant;
    } cases[] = {
        {"naem", "name"},
        {"sizes", "size"},
        {"sync_wiat", "sync-wait"},
        {"color", "colour"},
        {"bandwidth", NULL},
        {"x", NULL},
        {"", NULL},
        {"FLAGG", "flag"},
        {"a-very-long-name-that-is-longer-than-any-option-can-be", NULL},
    };
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        const char *got = option_suggest(&table, cases[i].typed, strlen(cases[i].typed));
        if (cases[i].meant == NULL) {
            assert_null(got);
        } else {
            assert_non_null(got);
            assert_string_equal(got, cases[i].meant);
        }
    }
}

static void
flags_take_one_dash_or_two_and_either_form(void **state)
{
    static const char *const argv[] = {"prog", "--size",         "1",      "-count=2",  "-name",
                                       "n",    "--sync_wait=1s", "--flag", "--flag=no", "--",
                                       "rest"};
    static const char *const expected[][2] = {{"size", "1"},       {"count", "2"},  {"name", "n"},
                                              {"sync-wait", "1s"}, {"flag", "yes"}, {"flag", "no"}};
    int argc = (int)ARRAY_COUNT(argv), index = 1;
    char error[OPTION_ERROR_BYTES];
    const struct option *option;
    const char *value;
    for (u32 i = 0; i < ARRAY_COUNT(expected); i++) {
        status st =
            option_next_flag(&table, argc, argv, &index, &option, &value, error, sizeof(error));
        assert_true(ok(st));
        assert_string_equal(option->name, expected[i][0]);
        assert_string_equal(value, expected[i][1]);
    }
    status st = option_next_flag(&table, argc, argv, &index, &option, &value, error, sizeof(error));
    assert_true(status_is(st, ST_END));
    assert_string_equal(argv[index], "rest");
}

static void
a_flag_without_its_value_is_refused(void **state)
{
    static const char *const argv[] = {"prog", "--size"};
    int index = 1;
    char error[OPTION_ERROR_BYTES];
    const struct option *option;
    const char *value;
    assert_true(
        status_is(option_next_flag(&table, 2, argv, &index, &option, &value, error, sizeof(error)),
                  ST_INVALID));
    assert_string_equal(error, "option 'size' needs a value");
}

static void
a_runtime_text_is_replaced_whole(void **state)
{
    struct option_text text;
    memset(&text, 0, sizeof(text));
    char out[OPTION_TEXT_BYTES];
    assert_false(option_text_is_set(&text));
    option_text_store(&text, "a longer secret");
    assert_true(option_text_is_set(&text));
    option_text_store(&text, "short");
    option_text_load(&text, out);
    assert_string_equal(out, "short");
    option_text_store(&text, "");
    assert_false(option_text_is_set(&text));
}

static void
help_in_every_form_names_every_option(void **state)
{
    static char text[16384];
    size_t size = option_help_text(&table, text, sizeof(text));
    assert_int_equal(size, strlen(text));
    assert_int_equal(option_help_text(&table, NULL, 0), size);
    for (u32 i = 0; i < table.count; i++)
        assert_non_null(strstr(text, options[i].name));
    assert_non_null(strstr(text, "One of red, green. [green]"));

    option_help_markdown(&table, text, sizeof(text));
    for (u32 i = 0; i < table.count; i++)
        assert_non_null(strstr(text, options[i].name));
    assert_non_null(strstr(text, "A \\| number."));

    option_help_man(&table, "1", text, sizeof(text));
    assert_non_null(strstr(text, "sync\\-wait"));
    assert_non_null(strstr(text, "\n\\&.dot")); /* or roff would swallow the line */
}

static void
variables_are_the_name_in_capitals(void **state)
{
    char name[32];
    option_variable_name(&table, &options[2], name, sizeof(name));
    assert_string_equal(name, "P_SYNC_WAIT");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_take_units_and_refuse_what_does_not_fit),
        cmocka_unit_test(durations_need_a_unit),
        cmocka_unit_test(what_is_printed_is_read_back),
        cmocka_unit_test(a_refused_value_changes_nothing),
        cmocka_unit_test(values_outside_their_range_are_named_with_it),
        cmocka_unit_test(a_mistyped_name_gets_a_suggestion),
        cmocka_unit_test(flags_take_one_dash_or_two_and_either_form),
        cmocka_unit_test(a_flag_without_its_value_is_refused),
        cmocka_unit_test(a_runtime_text_is_replaced_whole),
        cmocka_unit_test(help_in_every_form_names_every_option),
        cmocka_unit_test(variables_are_the_name_in_capitals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
