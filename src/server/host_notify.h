/* SPDX-License-Identifier: MIT
 *
 * host_notify.h -- talking to systemd: ready, stopping, status line, longer start-up, watchdog.
 * Does nothing when the process was not started by systemd (no NOTIFY_SOCKET).
 */
#ifndef DISTKV_SERVER_HOST_NOTIFY_H
#define DISTKV_SERVER_HOST_NOTIFY_H

#include "io/io.h"

struct host_notify {
    u64 watchdog_ns;      /* 0: none is wanted */
    u64 watchdog_next_ns; /* when to feed it again */
    u64 extend_next_ns;
};

void host_notify_init(struct host_notify *notify);
void host_notify_ready(const char *status_line);
void host_notify_stopping(const char *status_line);
void host_notify_status(const char *status_line);
/* While starting or stopping takes long: asks for more time, at most once a second. */
void host_notify_extend(struct host_notify *notify, u64 now_ns);
/* Called often. Feeds the watchdog when it is time and every shard has turned lately: a shard
 * whose loop hangs means a restart. */
void host_notify_watchdog(struct host_notify *notify, u64 now_ns, bool all_shards_turn);

/* Whether every shard has turned within the last limit_ns; else *stuck_out is one that has not. */
bool host_shards_turn(const struct io_node *node, u32 shard_count, u64 now_ns, u64 limit_ns,
                      u32 *stuck_out);
/* CLOCK_MONOTONIC, as io_node_heartbeat_ns. */
u64 host_now_ns(void);

#endif
