/* SPDX-License-Identifier: MIT
 *
 * ring_log.h -- control of the operator's log, for the host's main. Before ring_log_start and
 * after ring_log_stop messages go straight to stderr; in between a writer thread has them, and a
 * shard never waits for whoever reads stderr.
 */
#ifndef DISTKV_IO_RING_LOG_H
#define DISTKV_IO_RING_LOG_H

#include "base/log.h"
#include "base/status.h"

enum ring_log_format {
    RING_LOG_AUTO,   /* human on a terminal, journal under systemd, else logfmt */
    RING_LOG_HUMAN,  /* 2026-11-21 05:51:46.123 warning io: text key=value */
    RING_LOG_LOGFMT, /* time=... level=warning module=io msg="text" key=value */
    RING_LOG_JSON,   /* {"time":"...","level":"warning","module":"io","msg":"text","key":"value"} */
    RING_LOG_JOURNAL, /* <4>io: text key=value */
};

MUST_CHECK status ring_log_start(enum ring_log_format format, enum log_level level);
/* Writes what is waiting, then ends the thread. Safe to call when it was never started. When nobody
 * reads stderr it gives up after two seconds: the thread stays where it is, and there is no log any
 * more. The process can end. */
void ring_log_stop(void);
void ring_log_level_set(enum log_level level);
/* Messages that found no room since the process began. */
u64 ring_log_dropped(void);
/* One line for one message, without its end: what the writer prints. Returns its length, at most
 * size - 1. time_ms: since the epoch. For the writer and its tests. */
size_t ring_log_format_line(char *line, size_t size, enum ring_log_format format, u64 time_ms,
                            enum log_level level, const char *module, const char *message);

#endif
