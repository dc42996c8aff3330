/* SPDX-License-Identifier: MIT
 *
 * sim_inject.c -- the books of what went wrong, by family: chances, numbers, what is left out.
 *
 *   chance of the family  ->  hit: it gets the next number of its family  ->  off or left out?
 *                                                                             else it happens
 *
 * A person who looks for the cause of a failure leaves out one fault after the other, and the rest
 * should stay what it was. So each family draws from a stream of its own, one draw a chance; what a
 * fault needs besides (which bit, how long) comes from one more stream that is seeded by its
 * number; and what is left out is numbered all the same.
 */
#include "io/sim_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

const char *
sim_fault_name(enum sim_fault family)
{
    switch (family) {
    case SIM_FAULT_READ_ERROR:
        return "read-error";
    case SIM_FAULT_WRITE_ERROR:
        return "write-error";
    case SIM_FAULT_SYNC_ERROR:
        return "sync-error";
    case SIM_FAULT_NO_SPACE:
        return "no-space";
    case SIM_FAULT_DISK_STALL:
        return "disk-stall";
    case SIM_FAULT_TORN:
        return "torn";
    case SIM_FAULT_BIT_ROT:
        return "bit-rot";
    case SIM_FAULT_LATENT:
        return "latent";
    case SIM_FAULT_MISDIRECTED:
        return "misdirected";
    case SIM_FAULT_LOST_WRITE:
        return "lost-write";
    case SIM_FAULT_POWER_CUT:
        return "power-cut";
    case SIM_FAULT_KILL:
        return "kill";
    case SIM_FAULT_ALLOC:
        return "alloc";
    case SIM_FAULT_SHARD_STALL:
        return "shard-stall";
    case SIM_FAULT_CLOCK_STEP:
        return "clock-step";
    case SIM_FAULT_CLOCK_DRIFT:
        return "clock-drift";
    case SIM_FAULT_NET_REFUSE:
        return "net-refuse";
    case SIM_FAULT_NET_RESET:
        return "net-reset";
    case SIM_FAULT_NET_HALF_OPEN:
        return "net-half-open";
    case SIM_FAULT_NET_STALL:
        return "net-stall";
    case SIM_FAULT_LOOK_ERROR:
        return "look-error";
    case SIM_FAULT_LINK_CUT:
        return "link-cut";
    case SIM_FAULT_LINK_SLOW:
        return "link-slow";
    case SIM_FAULT_MACHINE_LOST:
        return "machine-lost";
    case SIM_FAULT_NAME_ERROR:
        return "name-error";
    case SIM_FAULT_SHORT:
        return "short";
    case SIM_FAULT_LATE_WRITE:
        return "late-write";
    case SIM_FAULT_MEMBERS:
        return "members";
    case SIM_FAULT_COUNT:
        break;
    }
    return "?";
}

static int
id_compare(struct sim_fault_id a, struct sim_fault_id b)
{
    if (a.family != b.family) return a.family < b.family ? -1 : 1;
    if (a.number != b.number) return a.number < b.number ? -1 : 1;
    return 0;
}

static bool
fault_skipped(const struct sim_options *options, struct sim_fault_id id)
{
    u32 low = 0, high = options->faults_skip_count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        int order = id_compare(options->faults_skip[middle], id);
        if (order == 0) return true;
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return false;
}

static bool
fault_off(const struct sim *sim, enum sim_fault family)
{
    return (sim->options.faults_off >> family & 1) != 0;
}

void
sim_inject_init(struct sim *sim)
{
    struct sim_faults *faults = &sim->faults;
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++)
        prng_init(&faults->chances[i], sim_seed(sim->options.seed, "chance", i));
    const struct sim_fault_id *skip = sim->options.faults_skip;
    for (u32 i = 1; i < sim->options.faults_skip_count; i++)
        CHECK(id_compare(skip[i - 1], skip[i]) < 0); /* sorted, each once */
}

void
sim_inject_deinit(struct sim *sim)
{
    free(sim->faults.records);
}

/* A hit: numbered, and kept when it is to happen. */
static bool
fault_hit(struct sim *sim, enum sim_fault family, const char *format, va_list args)
{
    struct sim_faults *faults = &sim->faults;
    if (fault_off(sim, family)) return false;
    struct sim_fault_id id = {.family = family, .number = faults->numbers[family]++};
    if (fault_skipped(&sim->options, id)) return false;
    u64 most = sim->options.faults_max;
    if (most != 0 && faults->record_count >= most) return false;
    faults->injected[family]++;
    if (faults->record_count == faults->record_capacity) {
        faults->record_capacity = MAX(64u, faults->record_capacity * 2);
        faults->records =
            realloc(faults->records, faults->record_capacity * sizeof(*faults->records));
        CHECK(faults->records != NULL);
    }
    struct sim_fault_record *record = &faults->records[faults->record_count++];
    *record = (struct sim_fault_record){.id = id, .time_ns = sim->now_ns};
    (void)vsnprintf(record->detail, sizeof(record->detail), format, args);
    sim_trace(sim, NULL, SIM_KIND_FAULT, (u64)family << 32 | id.number, NULL,
              faults->record_count - 1, 0, 0);
    return true;
}

bool
sim_fault_take(struct sim *sim, enum sim_fault family, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    bool happens = fault_hit(sim, family, format, args);
    va_end(args);
    return happens;
}

struct sim_fault_id
sim_fault_last(const struct sim *sim)
{
    CHECK(sim->faults.record_count > 0);
    return sim->faults.records[sim->faults.record_count - 1].id;
}

bool
sim_fault_chance(struct sim *sim, enum sim_fault family, u32 ppm)
{
    return !fault_off(sim, family) && sim_ppm(&sim->faults.chances[family], ppm);
}

struct prng
sim_fault_prng(const struct sim *sim, enum sim_fault family)
{
    struct prng prng;
    u64 number = sim->faults.numbers[family];
    prng_init(&prng, sim_seed(sim->options.seed, "fault", (u64)family << 32 | number));
    return prng;
}

bool
sim_fault_inject(struct sim *sim, enum sim_fault family)
{
    CHECK(family < SIM_FAULT_COUNT);
    return sim_fault_take(sim, family, "by the test");
}

u64
sim_fault_count(const struct sim *sim, enum sim_fault family)
{
    return sim->faults.injected[family];
}

void
sim_fault_each(const struct sim *sim,
               void (*each)(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail),
               void *arg)
{
    for (u32 i = 0; i < sim->faults.record_count; i++) {
        const struct sim_fault_record *record = &sim->faults.records[i];
        each(arg, record->id, record->time_ns, record->detail);
    }
}

void
sim_damage_each(const struct sim *sim, void (*each)(void *arg, const struct sim_damage *damage),
                void *arg)
{
    list_for_each (pos, &sim->nodes) {
        const struct sim_node *node = list_entry(pos, struct sim_node, link);
        sim_disk_damage_each(node->disk, node, each, arg);
    }
}

void
sim_faults_end(struct sim *sim)
{
    struct sim_options *options = &sim->options;
    sim_faults_clear(sim);
    options->turn_long_ppm = 0;
    options->alloc_ppm = 0;
    options->shard_stall_ppm = 0;
    options->disk.stall_ppm = 0;
    options->disk.torn_ppm = 0;
    options->disk.read_error_ppm = 0;
    options->disk.write_error_ppm = 0;
    options->disk.sync_error_ppm = 0;
    options->disk.look_error_ppm = 0;
    options->disk.name_error_ppm = 0;
    options->disk.short_ppm = 0;
    options->disk.late_ppm = 0;
    options->disk.no_space_ppm = 0;
    options->disk.bit_rot_ppm = 0;
    options->disk.latent_ppm = 0;
    options->disk.misdirected_ppm = 0;
    options->disk.lost_write_ppm = 0;
    options->net.refuse_ppm = 0;
    options->net.reset_ppm = 0;
    options->net.half_open_ppm = 0;
    options->net.stall_ppm = 0;
    list_for_each (pos, &sim->nodes) {
        struct sim_node *node = list_entry(pos, struct sim_node, link);
        sim_disk_faults_end(node->disk);
        memset(node->io_slow_ns, 0, sizeof(node->io_slow_ns));
        sim_event_cancel(sim, &node->space_returns);
        memset(node->io_stall_until_ns, 0, sizeof(node->io_stall_until_ns));
        sim_files_hurry(node);
        for (u32 i = 0; i < node->shard_count; i++)
            sim_shard_hurry(&node->shards[i]);
    }
    sim_net_hurry(sim);
}
