/* SPDX-License-Identifier: MIT
 *
 * sim_log.c -- messages of the code under test: the last ones are kept, for a test that looks for
 * one or fails; printed as they come on request.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

#include "io/sim_internal.h"

#define LINE_COUNT 512u
#define LINE_BYTES (LOG_MESSAGE_BYTES + 64u)

static char lines[LINE_COUNT][LINE_BYTES];
static u64 line_count;
static bool printing;

void
sim_log_reset(bool print)
{
    line_count = 0;
    printing = print;
}

bool
log_enabled(enum log_level level)
{
    return level <= LOG_LEVEL_INFO || printing;
}

void
log_emit(enum log_level level, const char *module, const char *format, ...)
{
    static const char *const names[] = {"error", "warning", "info", "debug"};
    char *line = lines[line_count++ % LINE_COUNT];
    u64 now_us = sim_current != NULL ? sim_now_ns(sim_current) / NS_PER_US : 0;
    const struct sim_shard *shard = io_current != NULL ? sim_shard_current() : NULL;
    int used = snprintf(line, LINE_BYTES, "%9llu us %s/%u %s %s: ", (unsigned long long)now_us,
                        shard != NULL ? shard->node->host : "-",
                        shard != NULL ? shard->core.index : 0, names[level], module);
    CHECK(used > 0);
    size_t at = MIN((size_t)used, (size_t)LINE_BYTES - 1);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(line + at, LINE_BYTES - at, format, args);
    va_end(args);
    if (printing) fprintf(stderr, "%s\n", line);
}

void
sim_log_dump(const struct sim *sim)
{
    (void)sim;
    u64 first = line_count > LINE_COUNT ? line_count - LINE_COUNT : 0;
    for (u64 i = first; i < line_count; i++)
        fprintf(stderr, "%s\n", lines[i % LINE_COUNT]);
}

bool
sim_log_contains(const struct sim *sim, const char *text)
{
    (void)sim;
    u64 first = line_count > LINE_COUNT ? line_count - LINE_COUNT : 0;
    for (u64 i = first; i < line_count; i++) {
        if (strstr(lines[i % LINE_COUNT], text) != NULL) return true;
    }
    return false;
}
