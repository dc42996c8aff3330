/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "load/settings.h"

static struct settings settings;
static char error[OPTION_ERROR_BYTES];

/* Flags, separated by single spaces. */
static bool
parsed(const char *flags)
{
    char text[512];
    const char *words[32] = {"distkv-bench"}, *left[2];
    int count = 1;
    u32 left_count;
    snprintf(text, sizeof(text), "%s", flags);
    for (char *word = text; word != NULL && *word != '\0';) {
        words[count++] = word;
        word = strchr(word, ' ');
        if (word != NULL) *word++ = '\0';
    }
    settings_defaults(&settings);
    error[0] = '\0';
    return settings_parse(&settings, count, words, left, 2, &left_count, error, sizeof(error)) &&
           settings_finish(&settings, error, sizeof(error));
}

static void
the_defaults_are_sound(void **state)
{
    assert_true(parsed(""));
    assert_string_equal(settings.name, "mixed");
    assert_int_equal(settings.depth, 1);
    assert_int_equal(settings.value_min, 100);
    assert_int_equal(settings.order, KEYS_UNIFORM);
    assert_true(settings_has(&settings, OP_GET) && settings_has(&settings, OP_SET));
    assert_false(settings_has(&settings, OP_SCAN));
}

static void
values_are_read(void **state)
{
    assert_true(parsed("-value-size 10-1000 --reads=90% --cores 0,2-3 --theta 0.5 --pipeline 7"));
    assert_int_equal(settings.value_min, 10);
    assert_int_equal(settings.value_max, 1000);
    assert_int_equal(settings.reads_percent, 90);
    assert_int_equal(settings.core_count, 3);
    assert_int_equal(settings.core_list[2], 3);
    assert_int_equal(settings.threads, 3);
    assert_true(fabs(settings.zipf_theta - 0.5) < 1e-12);
    assert_int_equal(settings.depth, 7);
    assert_true(parsed("--value-size 4KiB --rate 1000"));
    assert_int_equal(settings.value_max, 4096);
    assert_int_equal(settings.depth, 128);
}

static void
verify_may_stand_alone(void **state)
{
    assert_true(parsed("--verify --load"));
    assert_int_equal(settings.verify, VERIFY_VALUES);
    assert_int_equal(settings.load, 1);
    assert_true(parsed("--load --verify"));
    assert_int_equal(settings.verify, VERIFY_VALUES);
    assert_true(parsed("--verify strict"));
    assert_int_equal(settings.verify, VERIFY_STRICT);
    assert_true(parsed("--verify=no"));
    assert_int_equal(settings.verify, VERIFY_NO);
}

static void
what_makes_no_sense_is_refused(void **state)
{
    static const char *const refused[] = {
        "--value-size 10-5",
        "--value-size x",
        "--value-size 9MiB",
        "--value-size 2MiB --protocol native",
        "--reads 101%",
        "--reads %",
        "--cores 3-1",
        "--cores 1,",
        "--theta 1",
        "--server host:0",
        "--server host:70000",
        "--keys 0",
        "--workload ycsb-e",
        "--workload incr --protocol native",
        "--verify --value-size 10",
        "--verify strict --ttl 1s",
        "--verify strict --workload delete",
        "--verify strict --keys 10",
        "--connections 1 --threads 2",
        "--user joe",
        "--password-file /does/not/exist",
        "--protocol native --database 16",
        "--pipelin 3",
        "--workload ycsb-g",
        "--duration 10",
        "a b c",
    };
    for (u32 i = 0; i < ARRAY_COUNT(refused); i++) {
        if (parsed(refused[i])) fail_msg("taken: %s", refused[i]);
        assert_true(error[0] != '\0');
    }
}

static void
workloads_mix_as_ycsb_says(void **state)
{
    static const struct {
        const char *flags;
        u32 percent[OP_COUNT];
        enum key_order order;
    } cases[] = {
        {"--workload ycsb-a", {[OP_GET] = 50, [OP_SET] = 50}, KEYS_ZIPF},
        {"--workload ycsb-b", {[OP_GET] = 95, [OP_SET] = 5}, KEYS_ZIPF},
        {"--workload ycsb-c", {[OP_GET] = 100}, KEYS_ZIPF},
        {"--workload ycsb-d", {[OP_GET] = 95, [OP_INSERT] = 5}, KEYS_LATEST},
        {"--workload ycsb-e --protocol native", {[OP_SCAN] = 95, [OP_INSERT] = 5}, KEYS_ZIPF},
        {"--workload ycsb-f", {[OP_GET] = 50, [OP_RMW] = 50}, KEYS_ZIPF},
        {"--reads 25%", {[OP_GET] = 25, [OP_SET] = 75}, KEYS_UNIFORM},
        {"--workload incr --distribution latest", {[OP_INCR] = 100}, KEYS_LATEST},
    };
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        assert_true(parsed(cases[i].flags));
        u32 seen[OP_COUNT] = {0};
        for (u32 random = 0; random < 65536; random++)
            seen[settings_pick(&settings, random)]++;
        for (u32 op = 0; op < OP_COUNT; op++) {
            assert_true(abs((int)seen[op] - (int)(cases[i].percent[op] * 65536 / 100)) <= 1);
            assert_int_equal(settings_has(&settings, (enum op)op), cases[i].percent[op] > 0);
        }
        assert_int_equal(settings.order, cases[i].order);
    }
}

static void
servers_are_named_in_many_ways(void **state)
{
    static const struct {
        const char *text, *host;
        u16 port;
    } cases[] = {
        {"10.0.0.1:6379", "10.0.0.1", 6379}, {"example", "example", 8080},
        {":7000", "127.0.0.1", 7000},        {"7000", "127.0.0.1", 7000},
        {"[::1]:7000", "::1", 7000},         {"[::1]", "::1", 8080},
    };
    char host[64];
    u16 port;
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        assert_true(settings_server(cases[i].text, host, sizeof(host), &port));
        assert_string_equal(host, cases[i].host);
        assert_int_equal(port, cases[i].port);
    }
    assert_false(settings_server("[::1", host, sizeof(host), &port));
    assert_false(settings_server("a:b", host, sizeof(host), &port));
}

static void
the_help_names_every_option(void **state)
{
    static char text[16384];
    size_t size = option_help_text(&settings_table, text, sizeof(text));
    assert_true(size > 0 && size < sizeof(text));
    for (u32 i = 0; i < settings_table.count; i++) {
        char flag[64];
        snprintf(flag, sizeof(flag), "  --%s", settings_table.options[i].name);
        assert_non_null(strstr(text, flag));
    }
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        assert_true(strcspn(line, "\n") <= 100);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_defaults_are_sound),
        cmocka_unit_test(values_are_read),
        cmocka_unit_test(verify_may_stand_alone),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(workloads_mix_as_ycsb_says),
        cmocka_unit_test(servers_are_named_in_many_ways),
        cmocka_unit_test(the_help_names_every_option),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
