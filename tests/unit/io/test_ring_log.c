/* SPDX-License-Identifier: MIT
 *
 * test_ring_log.c -- the lines of the operator's log, and that no message is lost or blocks.
 */
#include "io/ring_log.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <unistd.h>

#define AT_MS 1795153906123ull /* 2026-11-20T05:51:46.123Z */

static const char *
line_of(enum ring_log_format format, enum log_level level, const char *message)
{
    static char line[1024];
    size_t size = ring_log_format_line(line, sizeof(line), format, AT_MS, level, "io", message);
    assert_int_equal(size, strlen(line));
    return line;
}

static void
each_format_writes_its_line(void **state)
{
    const char *message = "disk slow path=/a b/c latency_ms=12 error=";
    assert_string_equal(line_of(RING_LOG_HUMAN, LOG_LEVEL_WARNING, message),
                        "2026-11-20 05:51:46.123 warning io: disk slow path=/a b/c latency_ms=12 "
                        "error=");
    assert_string_equal(line_of(RING_LOG_JOURNAL, LOG_LEVEL_ERROR, message),
                        "<3>io: disk slow path=/a b/c latency_ms=12 error=");
    assert_string_equal(line_of(RING_LOG_LOGFMT, LOG_LEVEL_INFO, message),
                        "time=2026-11-20T05:51:46.123Z level=info module=io msg=\"disk slow\" "
                        "path=\"/a b/c\" latency_ms=12 error=\"\"");
    assert_string_equal(line_of(RING_LOG_JSON, LOG_LEVEL_DEBUG, message),
                        "{\"time\":\"2026-11-20T05:51:46.123Z\",\"level\":\"debug\",\"module\":"
                        "\"io\",\"msg\":\"disk slow\",\"path\":\"/a b/c\",\"latency_ms\":\"12\","
                        "\"error\":\"\"}");
}

static void
a_quoted_value_is_quoted_once(void **state)
{
    const char *message = "damaged file=/a what=\"bad block\" do=\"ask\" odd=\"";
    assert_string_equal(line_of(RING_LOG_HUMAN, LOG_LEVEL_ERROR, message),
                        "2026-11-20 05:51:46.123 error io: damaged file=/a what=\"bad block\" "
                        "do=\"ask\" odd=\"");
    assert_string_equal(line_of(RING_LOG_LOGFMT, LOG_LEVEL_ERROR, message) + 30,
                        "level=error module=io msg=damaged file=/a what=\"bad block\" do=ask "
                        "odd=\"\\\"\"");
    assert_string_equal(strstr(line_of(RING_LOG_JSON, LOG_LEVEL_ERROR, message), ",\"msg"),
                        ",\"msg\":\"damaged\",\"file\":\"/a\",\"what\":\"bad block\","
                        "\"do\":\"ask\",\"odd\":\"\\\"\"}");
}

static void
what_others_sent_cannot_forge_a_line(void **state)
{
    const char *message = "key refused key=a\n<0>b\x1b[2J\"c\\";
    assert_string_equal(line_of(RING_LOG_JOURNAL, LOG_LEVEL_INFO, message),
                        "<6>io: key refused key=a\\x0a<0>b\\x1b[2J\"c\\");
    assert_string_equal(
        line_of(RING_LOG_LOGFMT, LOG_LEVEL_INFO, message) + 30,
        "level=info module=io msg=\"key refused\" key=\"a\\x0a<0>b\\x1b[2J\\\"c\\\\\"");
    const char *json = line_of(RING_LOG_JSON, LOG_LEVEL_INFO, message);
    assert_non_null(strstr(json, "\"key\":\"a\\u000a<0>b\\u001b[2J\\\"c\\\\\"}"));
}

static void
a_long_message_is_cut(void **state)
{
    char line[40];
    size_t size = ring_log_format_line(line, sizeof(line), RING_LOG_HUMAN, AT_MS, LOG_LEVEL_INFO,
                                       "io", "a message that does not fit");
    assert_int_equal(size, 39);
    assert_string_equal(line, "2026-11-20 05:51:46.123 info io: a mess");
}

/* ---- the writer ---- */

#define THREADS  4u
#define MESSAGES 1000u

static void *
emits(void *arg)
{
    for (u32 i = 0; i < MESSAGES; i++)
        log_info("test", "message thread=%u number=%u", *(u32 *)arg, i);
    return NULL;
}

static void
every_message_arrives_or_is_counted_in_order_of_its_thread(void **state)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    int saved = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    u64 dropped = ring_log_dropped();
    status st = ring_log_start(RING_LOG_LOGFMT, LOG_LEVEL_INFO);
    log_debug("test", "not wanted");
    pthread_t threads[THREADS];
    u32 numbers[THREADS];
    for (u32 i = 0; i < THREADS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, emits, &numbers[i]);
    }
    static char text[THREADS * MESSAGES * 128];
    size_t used = 0;
    for (u32 i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    /* 4,000 messages are more than pipe and queue hold: the writer waits for us, the threads did
     * not. The last one goes once there is room for it. */
    u64 lost = ring_log_dropped() - dropped;
    ring_log_level_set(LOG_LEVEL_DEBUG);
    bool sent = false;
    while (strstr(text, "the end") == NULL) {
        u64 before = ring_log_dropped();
        if (!sent) log_debug("test", "the end");
        sent = ring_log_dropped() == before;
        ssize_t got = read(ends[0], text + used, sizeof(text) - 1 - used);
        if (got <= 0) break;
        used += (size_t)got;
        text[used] = '\0';
    }
    ring_log_stop();
    ring_log_stop();
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[0]);

    assert_true(ok(st));
    assert_null(strstr(text, "not wanted"));
    u32 next[THREADS] = {0}, seen = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        u32 thread, number;
        char *at = strstr(line, "thread=");
        if (at == NULL || sscanf(at, "thread=%u number=%u", &thread, &number) != 2) continue;
        assert_true(thread < THREADS);
        assert_true(number >= next[thread]);
        next[thread] = number + 1;
        seen++;
    }
    assert_true(lost > 0);
    assert_int_equal(seen + lost, THREADS * MESSAGES);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_format_writes_its_line),
        cmocka_unit_test(a_quoted_value_is_quoted_once),
        cmocka_unit_test(what_others_sent_cannot_forge_a_line),
        cmocka_unit_test(a_long_message_is_cut),
        cmocka_unit_test(every_message_arrives_or_is_counted_in_order_of_its_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
