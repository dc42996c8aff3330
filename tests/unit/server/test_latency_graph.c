/* SPDX-License-Identifier: MIT
 *
 * test_latency_graph.c -- LATENCY GRAPH draws what Redis draws; the first picture is one of
 * redis-server 7.0.15's own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "server/slowlog.h"

#define LINE80 "--------------------------------------------------------------------------------\n"

static const char *
drawn(const struct latency_series *series, u64 now_s)
{
    static char text[8192];
    struct budget budget;
    struct buf out;
    budget_init(&budget, "test", KIB(64), NULL);
    buf_init(&out, &budget);
    assert_true(latency_graph(&out, "command", series, now_s));
    memcpy(text, out.data, out.size);
    text[out.size] = '\0';
    buf_deinit(&out);
    return text;
}

static void
the_picture_is_that_of_redis(void **state)
{
    (void)state;
    static const u64 samples[][2] = {{1795697229, 21},  {1795697230, 150}, {1795697231, 70},
                                     {1795697233, 300}, {1795697234, 11},  {1795697236, 200},
                                     {1795697237, 90}};
    struct latency_monitor monitor = {0};
    for (u32 i = 0; i < ARRAY_COUNT(samples); i++)
        latency_add(&monitor, LATENCY_COMMAND, samples[i][0], samples[i][1]);
    assert_string_equal(drawn(&monitor.series[LATENCY_COMMAND], 1795697238),
                        "command - high 300 ms, low 11 ms (all time high 300 ms)\n" LINE80
                        "   #   \n"
                        "   | o \n"
                        " # | |_\n"
                        "_|#|_||\n"
                        "       \n"
                        "9875421\n"
                        "sssssss\n");
}

static void
one_sample_and_ages_of_every_unit(void **state)
{
    (void)state;
    struct latency_monitor monitor = {0};
    u64 now_s = 100 * 86400;
    latency_add(&monitor, LATENCY_COMMAND, now_s - 12 * 86400, 5);
    assert_string_equal(drawn(&monitor.series[LATENCY_COMMAND], now_s),
                        "command - high 5 ms, low 5 ms (all time high 5 ms)\n" LINE80
                        " \n \n \n_\n \n1\n2\nd\n");
    latency_add(&monitor, LATENCY_COMMAND, now_s - 7200, 5);
    latency_add(&monitor, LATENCY_COMMAND, now_s - 60, 5);
    latency_add(&monitor, LATENCY_COMMAND, now_s + 3, 5); /* the clock was set back */
    assert_string_equal(drawn(&monitor.series[LATENCY_COMMAND], now_s),
                        "command - high 5 ms, low 5 ms (all time high 5 ms)\n" LINE80
                        "    \n    \n    \n____\n    \n1210\n2hms\nd   \n");
}

static void
more_samples_than_columns_are_drawn_below(void **state)
{
    (void)state;
    struct latency_monitor monitor = {0};
    for (u64 i = 0; i < LATENCY_SAMPLES + 50; i++)
        latency_add(&monitor, LATENCY_COMMAND, 1000 + i, i);
    const char *text = drawn(&monitor.series[LATENCY_COMMAND], 1000 + LATENCY_SAMPLES + 50);
    assert_non_null(strstr(text, "command - high 209 ms, low 50 ms (all time high 209 ms)\n"));
    u32 lines = 0, longest = 0, length = 0;
    for (; *text != '\0'; text++) {
        length = *text == '\n' ? 0 : length + 1;
        longest = MAX(longest, length);
        lines += *text == '\n';
    }
    assert_int_equal(longest, 80);
    assert_int_equal(lines, 2 + (4 + 1 + 2) + 1 + (4 + 1 + 3));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_picture_is_that_of_redis),
        cmocka_unit_test(one_sample_and_ages_of_every_unit),
        cmocka_unit_test(more_samples_than_columns_are_drawn_below),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
