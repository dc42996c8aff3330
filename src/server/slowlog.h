/* SPDX-License-Identifier: MIT
 *
 * slowlog.h -- the commands that took long, and the events of the latency monitor, of one shard.
 * Both are rings of fixed size, so that they cost what they cost.
 */
#ifndef DISTKV_SERVER_SLOWLOG_H
#define DISTKV_SERVER_SLOWLOG_H

#include "base/buf.h"
#include "base/mem.h"

struct command;

/* As Redis: so many arguments, each cut to so many bytes. */
#define SLOWLOG_ARGS_MAX      32u
#define SLOWLOG_ARG_BYTES_MAX 128u
/* Most entries that a shard keeps, whatever slowlog-max-len says. */
#define SLOWLOG_ENTRIES_MAX 1024u

struct slowlog_entry {
    u64 id; /* ascending in time within the node: see slowlog_add */
    u64 time_s;
    u64 duration_us;
    char client[64];
    char client_name[64];
    u32 arg_count;
    size_t size; /* of the whole block */
    /* then arg_count times: u32 size, bytes */
};

struct slowlog {
    struct budget *budget;
    struct slowlog_entry *entries[SLOWLOG_ENTRIES_MAX]; /* a ring */
    u32 first, count;
    u64 next; /* id of the next entry, in steps of the number of shards */
    u64 step;
};

void slowlog_init(struct slowlog *log, struct budget *budget, u32 shard, u32 shard_count);
void slowlog_deinit(struct slowlog *log);
/* Keeps at most limit entries. Forgets silently when memory is out. */
void slowlog_add(struct slowlog *log, u64 limit, u64 time_s, u64 duration_us,
                 const struct command *command, const struct bytes *args, u32 arg_count,
                 const char *client, struct bytes client_name);
void slowlog_reset(struct slowlog *log);
/* The newest with an id below this one, or NULL. */
const struct slowlog_entry *slowlog_below(const struct slowlog *log, u64 id);

#define LATENCY_SAMPLES 160u
enum latency_event { LATENCY_COMMAND, LATENCY_FAST_COMMAND, LATENCY_EVENTS };
const char *latency_event_name(u32 event);

struct latency_series {
    struct {
        u64 time_s, ms;
    } samples[LATENCY_SAMPLES]; /* a ring, one a second */
    u32 next, count;
    u64 max_ms;
};
struct latency_monitor {
    struct latency_series series[LATENCY_EVENTS];
};
void latency_add(struct latency_monitor *monitor, enum latency_event event, u64 time_s, u64 ms);
/* Where the i-th sample is, the oldest first. */
static inline u32
latency_sample_at(const struct latency_series *series, u32 i)
{
    return (series->next + LATENCY_SAMPLES - series->count + i) % LATENCY_SAMPLES;
}
/* Draws a series that is not empty. False: no memory. */
MUST_CHECK bool latency_graph(struct buf *out, const char *event,
                              const struct latency_series *series, u64 now_s);

#endif
