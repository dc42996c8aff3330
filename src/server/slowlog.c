/* SPDX-License-Identifier: MIT
 *
 * slowlog.c -- see slowlog.h.
 */
#include "server/slowlog.h"

#include <stdio.h>

#include "server/redact.h"

void
slowlog_init(struct slowlog *log, struct budget *budget, u32 shard, u32 shard_count)
{
    memset(log, 0, sizeof(*log));
    log->budget = budget;
    log->next = shard;
    log->step = shard_count;
}

void
slowlog_reset(struct slowlog *log)
{
    for (; log->count > 0; log->count--) {
        struct slowlog_entry *entry = log->entries[log->first];
        mem_free(log->budget, entry, entry->size);
        log->first = (log->first + 1) % SLOWLOG_ENTRIES_MAX;
    }
}

void
slowlog_deinit(struct slowlog *log)
{
    slowlog_reset(log);
}

static void
drop_oldest(struct slowlog *log)
{
    struct slowlog_entry *entry = log->entries[log->first];
    mem_free(log->budget, entry, entry->size);
    log->first = (log->first + 1) % SLOWLOG_ENTRIES_MAX;
    log->count--;
}

/* Appends one argument as it is logged: cut, or the remark that says how many were left out. */
static u8 *
put_arg(u8 *at, const void *data, u32 size)
{
    store_u32(at, size);
    memcpy(at + 4, data, size);
    return at + 4 + size;
}

void
slowlog_add(struct slowlog *log, u64 limit, u64 time_s, u64 duration_us,
            const struct command *command, const struct bytes *args, u32 arg_count,
            const char *client, struct bytes client_name)
{
    limit = MIN(limit, SLOWLOG_ENTRIES_MAX);
    while (log->count > 0 && log->count >= limit)
        drop_oldest(log);
    if (limit == 0) return;

    u32 kept = MIN(arg_count, SLOWLOG_ARGS_MAX);
    char remark[SLOWLOG_ARG_BYTES_MAX + 48];
    size_t size = sizeof(struct slowlog_entry) + kept * (4 + SLOWLOG_ARG_BYTES_MAX + 48);
    struct slowlog_entry *entry = mem_alloc(log->budget, size);
    if (entry == NULL) return;
    memset(entry, 0, sizeof(*entry));
    entry->id = log->next;
    log->next += log->step;
    entry->time_s = time_s;
    entry->duration_us = duration_us;
    entry->arg_count = kept;
    entry->size = size;
    snprintf(entry->client, sizeof(entry->client), "%s", client);
    size_t name_size = MIN(client_name.size, sizeof(entry->client_name) - 1);
    if (name_size != 0) memcpy(entry->client_name, client_name.data, name_size);

    u8 *at = (u8 *)(entry + 1);
    struct redactor redactor = {.command = command};
    for (u32 i = 0; i < kept; i++) {
        struct bytes arg = redact_next(&redactor, args[i]);
        if (i + 1 == kept && arg_count > kept) {
            int n =
                snprintf(remark, sizeof(remark), "... (%u more arguments)", arg_count - kept + 1);
            at = put_arg(at, remark, (u32)n);
        } else if (arg.size > SLOWLOG_ARG_BYTES_MAX) {
            memcpy(remark, arg.data, SLOWLOG_ARG_BYTES_MAX);
            int n = snprintf(remark + SLOWLOG_ARG_BYTES_MAX, 48, "... (%zu more bytes)",
                             arg.size - SLOWLOG_ARG_BYTES_MAX);
            at = put_arg(at, remark, SLOWLOG_ARG_BYTES_MAX + (u32)n);
        } else {
            at = put_arg(at, arg.data == NULL ? (const u8 *)"" : arg.data, (u32)arg.size);
        }
    }
    log->entries[(log->first + log->count) % SLOWLOG_ENTRIES_MAX] = entry;
    log->count++;
}

const struct slowlog_entry *
slowlog_below(const struct slowlog *log, u64 id)
{
    u64 i = 0; /* from the newest: ids follow each other in steps, and only the oldest go */
    if (log->count != 0 && id < log->next) i = (log->next - id + log->step - 1) / log->step;
    if (i >= log->count) return NULL;
    return log->entries[(log->first + log->count - 1 - i) % SLOWLOG_ENTRIES_MAX];
}

const char *
latency_event_name(u32 event)
{
    return event == LATENCY_FAST_COMMAND ? "fast-command" : "command";
}

void
latency_add(struct latency_monitor *monitor, enum latency_event event, u64 time_s, u64 ms)
{
    struct latency_series *series = &monitor->series[event];
    series->max_ms = MAX(series->max_ms, ms);
    if (series->count > 0) {
        u32 last = (series->next + LATENCY_SAMPLES - 1) % LATENCY_SAMPLES;
        if (series->samples[last].time_s == time_s) {
            series->samples[last].ms = MAX(series->samples[last].ms, ms);
            return;
        }
    }
    series->samples[series->next].time_s = time_s;
    series->samples[series->next].ms = ms;
    series->next = (series->next + 1) % LATENCY_SAMPLES;
    series->count = MIN(series->count + 1, LATENCY_SAMPLES);
}
