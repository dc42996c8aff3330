/* SPDX-License-Identifier: MIT
 *
 * sim_trace.c -- the rolling hash over every event, and the last events themselves.
 *
 * The hash covers time, node, shard, kind and content: what was written to the disk, what was sent,
 * which faults came. What the code under test computes shows in one of these sooner or later. The
 * last events are kept as numbers; they become text only when somebody asks.
 *
 * The same seed gives the same hash in every build (release, debug, sanitizers), and on every
 * machine: what libraries choose by the processor is either the same bytes whatever they choose
 * (checksums, inflating) or replaced (sim_deflate.c). Another version of LZ4 or isa-l may compress
 * differently.
 */
#include "io/sim_internal.h"

#include <stdio.h>

#include "base/hash.h"

#define NOBODY (UINT64_MAX >> 1)

static const char *
kind_name(enum sim_kind kind)
{
    switch (kind) {
    case SIM_KIND_TURN:
        return "turn";
    case SIM_KIND_MAIL:
        return "mail";
    case SIM_KIND_STOP:
        return "stop";
    case SIM_KIND_DISK:
        return "disk";
    case SIM_KIND_NET:
        return "net";
    case SIM_KIND_CONTROL:
        return "control";
    case SIM_KIND_FAULT:
        return "fault";
    }
    return "?";
}

static void
entry_print(const struct sim *sim, const struct sim_trace_entry *entry)
{
    u64 us = entry->time_ns / NS_PER_US;
    fprintf(stderr, "%9llu us ", (unsigned long long)us); /* as the log's lines */
    if (entry->node == UINT32_MAX) {
        fprintf(stderr, "- %s", kind_name(entry->kind));
    } else {
        fprintf(stderr, "%u/%u %s", entry->node, entry->shard, kind_name(entry->kind));
    }
    if (entry->kind == SIM_KIND_FAULT) {
        const struct sim_fault_record *record = &sim->faults.records[entry->numbers[0]];
        fprintf(stderr, " %s %u: %s\n", sim_fault_name(record->id.family), record->id.number,
                record->detail);
        return;
    }
    if (entry->what != NULL)
        fprintf(stderr, " %s %llu, %llu, %llu [%016llx]", entry->what,
                (unsigned long long)entry->numbers[0], (unsigned long long)entry->numbers[1],
                (unsigned long long)entry->numbers[2], (unsigned long long)entry->content);
    fprintf(stderr, "\n");
}

void
sim_trace(struct sim *sim, const struct sim_shard *shard, enum sim_kind kind, u64 content,
          const char *what, u64 a, u64 b, u64 c)
{
    u64 parts[6] = {sim->trace_hash, sim->now_ns, (u64)kind, content, NOBODY, NOBODY};
    if (shard != NULL) {
        parts[4] = shard->node->index;
        parts[5] = shard->core.index;
    }
    sim->trace_hash = hash_bytes(parts, sizeof(parts), 0);

    struct sim_tracer *tracer = &sim->tracer;
    struct sim_trace_entry *entry = &tracer->entries[tracer->count++ % SIM_TRACE_ENTRIES];
    *entry = (struct sim_trace_entry){
        .time_ns = sim->now_ns,
        .content = content,
        .node = shard != NULL ? shard->node->index : UINT32_MAX,
        .shard = shard != NULL ? shard->core.index : UINT32_MAX,
        .kind = kind,
        .what = what,
        .numbers = {a, b, c},
    };
    if (tracer->printing) entry_print(sim, entry);
}

void
sim_trace_print_set(struct sim *sim, bool print)
{
    sim->tracer.printing = print;
}

void
sim_trace_dump(const struct sim *sim)
{
    const struct sim_tracer *tracer = &sim->tracer;
    u64 first = tracer->count > SIM_TRACE_ENTRIES ? tracer->count - SIM_TRACE_ENTRIES : 0;
    for (u64 i = first; i < tracer->count; i++)
        entry_print(sim, &tracer->entries[i % SIM_TRACE_ENTRIES]);
}

u64
sim_trace_hash(const struct sim *sim)
{
    return sim->trace_hash;
}
