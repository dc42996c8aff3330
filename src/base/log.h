/* SPDX-License-Identifier: MIT
 *
 * log.h -- messages for the operator. Where they go is chosen at link time: the server hands them
 * to a writer thread and never blocks a shard (ring_log.c; what does not fit is dropped and
 * counted), the simulator keeps them in its trace (sim_log.c), tools print them.
 *
 * A message is one sentence fragment in lower case, then key=value pairs:
 *     log_info("lsm", "log segment cut segment=%llu offset=%llu", ...)
 */
#ifndef DISTKV_BASE_LOG_H
#define DISTKV_BASE_LOG_H

#include "base/types.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

#define LOG_MESSAGE_BYTES 512u /* longer ones are cut */

void log_emit(enum log_level level, const char *module, const char *format, ...) PRINTF_LIKE(3, 4);
/* Whether level is wanted at all: guards expensive arguments. */
bool log_enabled(enum log_level level);

/* For a line that may be due a thousand times a second: true at most once in LOG_SELDOM_NS, and
 * then *told_ns, which begins as 0, is set. What was left out meanwhile is to be seen in a count
 * that the line shows. */
#define LOG_SELDOM_NS (10 * NS_PER_S)
static inline bool
log_seldom(u64 *told_ns, u64 now_ns)
{
    if (*told_ns != 0 && now_ns - *told_ns < LOG_SELDOM_NS) return false;
    *told_ns = now_ns;
    return true;
}

#define log_error(module, ...)   log_emit(LOG_LEVEL_ERROR, module, __VA_ARGS__)
#define log_warning(module, ...) log_emit(LOG_LEVEL_WARNING, module, __VA_ARGS__)
#define log_info(module, ...)    log_emit(LOG_LEVEL_INFO, module, __VA_ARGS__)
#define log_debug(module, ...)                                                                     \
    do {                                                                                           \
        if (log_enabled(LOG_LEVEL_DEBUG)) log_emit(LOG_LEVEL_DEBUG, module, __VA_ARGS__);          \
    } while (0)

#endif
