/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdlib.h>

#include "load/compare.h"
#include "load/report.h"

static struct result results[2];
static struct report report;

static struct latency *
latencies(u32 count, u64 ns)
{
    struct latency *l = calloc(1, sizeof(*l));
    assert_non_null(l);
    for (u32 i = 0; i < count; i++)
        latency_record(l, ns + i);
    return l;
}

/* Two runs with everything in them that can be. */
static int
set_up(void **state)
{
    char error[OPTION_ERROR_BYTES];
    report = (struct report){.results = results, .count = 2};
    snprintf(report.machine.cpu, sizeof(report.machine.cpu), "a \"quoted\" CPU");
    report.machine.cores = 2;
    snprintf(report.server.name, sizeof(report.server.name), "redis");
    for (u32 i = 0; i < 2; i++) {
        struct result *result = &results[i];
        *result = (struct result){.elapsed_s = 2, .client_cpu_known = true, .client_cpu_s = 0.5};
        settings_defaults(&result->settings);
        result->settings.rate = i == 1 ? 5000 : 0;
        snprintf(result->settings.password, sizeof(result->settings.password), "secret");
        assert_true(settings_finish(&result->settings, error, sizeof(error)));
        snprintf(result->name, sizeof(result->name), "run-%u", i);
        result->counters = (struct counters){.answered = 3000, .misses = 4};
        errors_add(&result->errors, 2, BYTES_LITERAL("OOM"), BYTES_LITERAL("a \"b\" \x01\xff"));
        errors_add(&result->wrong, 1, BYTES_LITERAL("stale value"), BYTES_LITERAL("key 1"));
        result->latency[OP_GET] = latencies(1000, 10000);
        result->latency[OP_SET] = latencies(2000, 20000);
        result->total = latencies(1000, 10000);
        latency_merge(result->total, result->latency[OP_SET]);
        result->late = latencies(10, 500);
        result->series = calloc(1, sizeof(*result->series));
        assert_non_null(result->series);
        result->series_count = 1;
        result->series[0] = (struct second){.at_s = 1, .length_s = 1, .answered = 1500};
    }
    return 0;
}

static int
tear_down(void **state)
{
    for (u32 i = 0; i < 2; i++) {
        for (u32 op = 0; op < OP_COUNT; op++)
            free(results[i].latency[op]);
        free(results[i].total);
        free(results[i].late);
        free(results[i].series);
    }
    return 0;
}

/* What is written in a format; the caller frees. */
static char *
written(enum format format)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    assert_non_null(file);
    assert_true(report_write(&report, format, file));
    fclose(file);
    return text;
}

static double
number_at(const json_t *object, const char *a, const char *b, const char *c)
{
    object = json_object_get(object, a);
    if (b != NULL) object = json_object_get(object, b);
    if (c != NULL) object = json_object_get(object, c);
    assert_true(json_is_number(object));
    return json_number_value(object);
}

static void
json_is_valid_and_complete(void **state)
{
    char *text = written(FORMAT_JSON);
    json_error_t problem;
    json_t *json = json_loads(text, 0, &problem);
    if (json == NULL) fail_msg("%s", problem.text);
    assert_null(strstr(text, "secret"));
    json_t *runs = json_object_get(json, "runs"), *run = json_array_get(runs, 0);
    assert_int_equal(json_array_size(runs), 2);
    assert_true(number_at(run, "rate", NULL, NULL) == 1500);
    assert_true(number_at(run, "client_cpu_us_per_op", NULL, NULL) > 166);
    assert_null(json_object_get(run, "server_cpu_us_per_op"));
    assert_true(number_at(run, "error_count", NULL, NULL) == 2);
    assert_true(number_at(run, "wrong_count", NULL, NULL) == 1);
    double p50 = number_at(run, "latency_us", "get", "p50");
    assert_true(p50 > 10.4 && p50 < 10.6);
    assert_true(number_at(run, "options", "connections", NULL) == 50);
    /* The buckets hold every recording. */
    json_t *buckets =
        json_object_get(json_object_get(json_object_get(run, "latency_us"), "set"), "buckets_ns");
    json_int_t sum = 0;
    for (size_t i = 0; i < json_array_size(buckets); i++)
        sum += json_integer_value(json_array_get(json_array_get(buckets, i), 1));
    assert_int_equal(sum, 2000);
    run = json_array_get(runs, 1);
    assert_string_equal(json_string_value(json_object_get(run, "latency_is")),
                        "from the intended start");
    assert_true(number_at(run, "client_late_us", "count", NULL) == 10);
    json_decref(json);
    free(text);
}

static void
every_line_of_csv_has_as_many_fields(void **state)
{
    char *text = written(FORMAT_CSV);
    u32 lines = 0, fields = 0;
    for (char *line = text; *line != '\0'; lines++) {
        u32 now = 1;
        size_t size = strcspn(line, "\n");
        for (size_t i = 0; i < size; i++)
            now += line[i] == ',';
        if (lines == 0) fields = now;
        assert_int_equal(now, fields);
        line += size + 1;
    }
    assert_int_equal(lines, 1 + 2 * 3); /* get, set and total of each */
    free(text);
}

static void
text_names_errors_and_what_was_wrong(void **state)
{
    report.count = 1;
    char *text = written(FORMAT_TEXT);
    assert_non_null(strstr(text, "error: 2 x OOM"));
    assert_non_null(strstr(text, "wrong: 1 x stale value"));
    assert_non_null(strstr(text, "service time"));
    assert_non_null(strstr(text, "1,500"));
    free(text);
    report.results = &results[1];
    text = written(FORMAT_TEXT);
    assert_non_null(strstr(text, "intended start"));
    assert_non_null(strstr(text, "not kept up with"));
    free(text);
}

static char *
compared(const json_t *a, const json_t *b, bool *done)
{
    char error[OPTION_ERROR_BYTES], *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    assert_non_null(file);
    *done = compare_print(a, b, file, error, sizeof(error));
    fclose(file);
    return text;
}

static void
compare_shows_what_became_better_and_what_differs(void **state)
{
    bool done;
    json_t *before = report_json(&report);
    results[0].elapsed_s = 1; /* twice the rate */
    results[0].client_cpu_s = 1;
    results[0].settings.connections = 51;
    json_t *after = report_json(&report);
    char *text = compared(before, after, &done);
    assert_true(done);
    assert_non_null(strstr(text, "run-0"));
    assert_non_null(strstr(text, "run-1"));
    assert_non_null(strstr(text, "differs: --connections 50, then 51"));
    const char *rate = strstr(text, "requests/s");
    assert_non_null(rate);
    assert_memory_equal(strstr(rate, "+100.0 %"), "+100.0 %   better", 17);
    const char *cpu = strstr(text, "client CPU us");
    assert_non_null(cpu);
    assert_memory_equal(strstr(cpu, "+100.0 %"), "+100.0 %   worse", 16);
    free(text);

    json_t *nothing = json_object();
    free(compared(before, nothing, &done));
    assert_false(done);
    free(compared(nothing, after, &done));
    assert_false(done);
    results[0].name[0] = results[1].name[0] = 'x';
    json_t *others = report_json(&report);
    free(compared(before, others, &done));
    assert_false(done);
    json_decref(before);
    json_decref(after);
    json_decref(nothing);
    json_decref(others);
}

static void
servers_say_who_they_are(void **state)
{
    struct server_info info;
    server_info_parse("# Server\r\nredis_version:7.2.4\r\nredis_mode:standalone\r\n"
                      "process_id:321\r\n# DistKV\r\ndistkv_version:0.1.0\r\n",
                      &info);
    assert_string_equal(info.name, "distkv");
    assert_string_equal(info.version, "0.1.0");
    assert_string_equal(info.redis_version, "7.2.4");
    assert_int_equal(info.pid, 321);
    server_info_parse("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n",
                      &info);
    assert_string_equal(info.name, "valkey");
    assert_string_equal(info.version, "8.0.1");
    server_info_parse("redis_version:7.0.15", &info);
    assert_string_equal(info.name, "redis");
    server_info_parse("xxxx", &info);
    assert_string_equal(info.name, "");
    assert_int_equal(info.pid, 0);
}

static void
kinds_of_errors_are_bounded(void **state)
{
    struct errors errors = {0};
    for (u32 i = 0; i < 100; i++) {
        char name[16];
        snprintf(name, sizeof(name), "E%u", i);
        errors_add(&errors, 2, BYTES(name, strlen(name)), BYTES_LITERAL(""));
    }
    assert_int_equal(errors.total, 200);
    assert_int_equal(errors.kinds, ERROR_KINDS_MAX);
    assert_string_equal(errors.kind[ERROR_KINDS_MAX - 1].name, "other");
    u64 sum = 0;
    for (u32 i = 0; i < errors.kinds; i++)
        sum += errors.kind[i].count;
    assert_int_equal(sum, 200);
}

static void
numbers_are_shown_for_people(void **state)
{
    char out[SHOWN_BYTES];
    assert_string_equal(show_count(0, out), "0");
    assert_string_equal(show_count(999, out), "999");
    assert_string_equal(show_count(1234567, out), "1,234,567");
    assert_string_equal(show_time(999, out), "999 ns");
    assert_string_equal(show_time(1234, out), "1.23 us");
    assert_string_equal(show_time(123456789, out), "123 ms");
    assert_string_equal(show_time(90e9, out), "90.0 s");
}

#define WITH_RESULTS(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_RESULTS(json_is_valid_and_complete),
        WITH_RESULTS(every_line_of_csv_has_as_many_fields),
        WITH_RESULTS(text_names_errors_and_what_was_wrong),
        WITH_RESULTS(compare_shows_what_became_better_and_what_differs),
        cmocka_unit_test(servers_say_who_they_are),
        cmocka_unit_test(kinds_of_errors_are_bounded),
        cmocka_unit_test(numbers_are_shown_for_people),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
