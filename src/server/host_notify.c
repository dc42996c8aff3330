/* SPDX-License-Identifier: MIT
 *
 * host_notify.c -- see host_notify.h. The watchdog is fed from the supervising thread, but only
 * while each shard's own heartbeat is fresh: a thread that is alive proves nothing about the loops.
 */
#include "server/host_notify.h"

#include <stdlib.h>
#include <systemd/sd-daemon.h>
#include <time.h>

/* Idle shards turn at least every 500 ms. */
#define EXTEND_EVERY_NS NS_PER_S
#define EXTEND_BY_US    "30000000"

u64
host_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

void
host_notify_init(struct host_notify *notify)
{
    *notify = (struct host_notify){0};
    uint64_t watchdog_us = 0;
    if (sd_watchdog_enabled(0, &watchdog_us) > 0) notify->watchdog_ns = watchdog_us * NS_PER_US;
}

void
host_notify_ready(const char *status_line)
{
    sd_notifyf(0, "READY=1\nSTATUS=%s", status_line);
}

void
host_notify_stopping(const char *status_line)
{
    sd_notifyf(0, "STOPPING=1\nSTATUS=%s", status_line);
}

void
host_notify_status(const char *status_line)
{
    sd_notifyf(0, "STATUS=%s", status_line);
}

void
host_notify_extend(struct host_notify *notify, u64 now_ns)
{
    if (now_ns < notify->extend_next_ns) return;
    notify->extend_next_ns = now_ns + EXTEND_EVERY_NS;
    sd_notify(0, "EXTEND_TIMEOUT_USEC=" EXTEND_BY_US);
}

void
host_notify_watchdog(struct host_notify *notify, u64 now_ns, bool all_shards_turn)
{
    if (notify->watchdog_ns == 0 || now_ns < notify->watchdog_next_ns) return;
    if (!all_shards_turn) return;
    /* A third of the period, so that one late turn does no harm. */
    notify->watchdog_next_ns = now_ns + notify->watchdog_ns / 3;
    sd_notify(0, "WATCHDOG=1");
}

bool
host_shards_turn(const struct io_node *node, u32 shard_count, u64 now_ns, u64 limit_ns,
                 u32 *stuck_out)
{
    for (u32 shard = 0; shard < shard_count; shard++) {
        u64 beat = io_node_heartbeat_ns(node, shard);
        if (beat + limit_ns >= now_ns) continue;
        *stuck_out = shard;
        return false;
    }
    return true;
}
