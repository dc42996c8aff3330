/* SPDX-License-Identifier: MIT
 *
 * cluster_knobs.c -- what a cluster's run is like, drawn from the seed. As in knobs.c a run takes
 * some of the troubles and not a little of all.
 *
 * What is not drawn, because it is not promised:
 *   W or R of half the replicas or less. What is acknowledged last is the newest only when two write
 *   quorums overlap; what one read has told later ones tell, too, only when two read quorums do.
 */
#include "cluster.h"

#include <stdio.h>

const char *const cluster_trouble_names[] = {
    "power",  "kill",   "restart", "blackout", "wipe", "lose",  "join", "leave", "isolate",
    "halves", "bridge", "one-way", "pair",     "slow", "pause", "skew", "step",  "rot",
};
static_assert(ARRAY_COUNT(cluster_trouble_names) == TROUBLE_COUNT, "a name each");

static void
quorums_draw(struct cluster_knobs *knobs, struct prng *prng)
{
    static const u8 quorums[][3] = {{3, 2, 2}, {3, 2, 2}, {3, 2, 2},
                                    {3, 2, 3}, {3, 3, 2}, {5, 3, 3}};
    u64 at = prng_below(prng, knobs->nodes >= 5 ? 6 : knobs->lite ? 4 : 5);
    knobs->replicas = quorums[at][0];
    knobs->write_quorum = quorums[at][1];
    knobs->read_quorum = quorums[at][2];
}

/* Not TROUBLE_ROT: rot_draw. */
static void
troubles_draw(struct cluster_knobs *knobs, struct prng *prng)
{
    for (u32 i = 0; i < TROUBLE_ROT; i++)
        knobs->weights[i] = prng_chance(prng, 2, 5) ? (u32)prng_range(prng, 1, 10) : 0;
    if (knobs->weights[TROUBLE_BLACKOUT] > 2) knobs->weights[TROUBLE_BLACKOUT] = 2;
    /* A quarter has nothing but one kind. */
    if (!prng_chance(prng, 1, 4)) return;
    u64 only = prng_below(prng, TROUBLE_ROT);
    for (u32 i = 0; i < TROUBLE_ROT; i++)
        knobs->weights[i] = i == only ? 5 : 0;
}

static u32
family(struct prng *prng, u32 ppm_max, u32 one_in)
{
    bool there = prng_chance(prng, 1, one_in);
    return there ? (u32)prng_range(prng, 1, ppm_max) : 0;
}

static void
faults_draw(struct sim_options *sim, struct prng *prng)
{
    sim->disk.read_error_ppm = family(prng, 1000, 6);
    sim->disk.write_error_ppm = family(prng, 300, 6);
    sim->disk.sync_error_ppm = family(prng, 300, 6);
    sim->disk.look_error_ppm = 0;
    sim->disk.no_space_ppm = 0;
    sim->disk.stall_ppm = family(prng, 300, 4);
    sim->disk.stall_ns = prng_range(prng, 1, 5) * NS_PER_S;
    sim->disk.torn_ppm = family(prng, 400000, 2);
    sim->alloc_ppm = family(prng, 30, 6);
    sim->shard_stall_ppm = family(prng, 20, 4);
    sim->shard_stall_ns_max = prng_range(prng, 1, 3000) * NS_PER_MS;
    sim->net.refuse_ppm = family(prng, 100000, 4);
    sim->net.reset_ppm = family(prng, 1000, 3);
    sim->net.half_open_ppm = family(prng, 200, 4);
    sim->net.stall_ppm = family(prng, 500, 4);
    sim->net.stall_ns_max = prng_range(prng, 1, 5000) * NS_PER_MS;
}

/* From a stream of its own: it was added when the others' draws were known by their seeds. */
static void
cuts_draw(struct cluster_knobs *knobs, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 24);
    knobs->event_part = (u32)prng_below(&prng, 101);
    knobs->recovery_cut_part = prng_chance(&prng, 1, 2) ? (u32)prng_below(&prng, 50) : 0;
}

/* Likewise. */
static void
siblings_draw(struct cluster_knobs *knobs, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 25);
    if (!prng_chance(&prng, 1, 2)) return;
    knobs->sibling_keys = (u32)prng_range(&prng, 1, knobs->lite ? 3 : 8);
    knobs->sibling_clients = (u32)prng_range(&prng, 2, knobs->lite ? 3 : 5);
    knobs->blind_part = (u32)prng_below(&prng, 40);
    knobs->stale_part = (u32)prng_below(&prng, 30);
    knobs->plain_part = (u32)prng_below(&prng, 30);
    knobs->sibling_fewer = prng_chance(&prng, 1, 2);
}

/* Likewise. */
static void
trees_draw(struct cluster_knobs *knobs, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 26);
    knobs->looks = prng_chance(&prng, 1, 2);
    knobs->repairs = prng_chance(&prng, 1, 3);
}

/* Likewise. */
static void
rot_draw(struct cluster_knobs *knobs, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 28);
    if (prng_chance(&prng, 1, 4)) knobs->weights[TROUBLE_ROT] = (u32)prng_range(&prng, 1, 10);
}

/* Likewise. Only where there are others to stand in. */
static void
sloppy_draw(struct cluster_knobs *knobs, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 27);
    knobs->sloppy = prng_chance(&prng, 1, 2) && knobs->nodes > knobs->replicas;
}

/* Likewise. */
static void
shrinks_draw(struct cluster_knobs *knobs, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 29);
    bool quorums = knobs->replicas == 3 && knobs->write_quorum == 2 && knobs->read_quorum == 2;
    knobs->shrinks = prng_chance(&prng, 1, 4) && quorums;
    if (knobs->shrinks) knobs->weights[TROUBLE_LEAVE] += (u32)prng_range(&prng, 3, 15);
}

void
cluster_knobs_draw(struct cluster_knobs *knobs, struct sim_options *sim,
                   const struct run_options *options)
{
    struct prng prng;
    prng_init(&prng, options->seed * 7919 + 23);
    bool lite = options->mode == RUN_CLUSTER;
    memset(knobs, 0, sizeof(*knobs));
    knobs->lite = lite;
    if (lite) {
        sim_options_default(sim, options->seed);
        sim_options_full_ways(sim, options->seed);
        sim->buggify = prng_chance(&prng, 1, 2);
    } else {
        sim_options_swarm(sim, options->seed);
        faults_draw(sim, &prng);
    }
    /* Time is cheap; turns cost: nobody waits for a world that is slower than a real one. */
    sim->turn_long_ppm = MIN(sim->turn_long_ppm, 200u);
    /* A room with machines: moves ask for a few thousand pages, one after the other. */
    sim->net.latency_ns_max = MIN(sim->net.latency_ns_max, 3 * NS_PER_MS);
    sim->net.latency_ns_min = MIN(sim->net.latency_ns_min, sim->net.latency_ns_max);
    sim->net.single_bytes = false;
    knobs->nodes = lite ? (prng_chance(&prng, 3, 4) ? 3 : 4) : (u32)prng_range(&prng, 3, 6);
    knobs->shards_max = lite ? (prng_chance(&prng, 2, 3) ? 1 : 2) : (u32)prng_range(&prng, 1, 4);
    quorums_draw(knobs, &prng);
    knobs->timeout_ms = prng_range(&prng, 500, 3000);
    knobs->memory_per_shard = MIB(32) << prng_below(&prng, 2);
    knobs->clients = (u32)prng_range(&prng, 2, lite ? 4 : 8);
    knobs->registers = (u32)prng_range(&prng, 1, lite ? 12 : 40);
    knobs->groups = (u32)prng_below(&prng, lite ? 3 : 6);
    knobs->fixed = (u32)prng_range(&prng, 0, lite ? 8 : 40);
    knobs->counters = (u32)prng_below(&prng, 3);
    knobs->hot_part = (u32)prng_below(&prng, 80);
    knobs->pause_ns = prng_range(&prng, 1, lite ? 60 : 100) * NS_PER_MS;
    knobs->trouble_ns = prng_range(&prng, 3, lite ? 8 : 40) * NS_PER_S;
    knobs->between_ns = prng_range(&prng, 100, lite ? 1500 : 4000) * NS_PER_MS;
    knobs->lasts_ns = prng_range(&prng, 200, lite ? 3000 : 12000) * NS_PER_MS;
    knobs->value_bytes_max = prng_chance(&prng, 1, 3) ? 4000 : 100;
    knobs->expire_part = prng_chance(&prng, 1, 3) ? (u32)prng_below(&prng, 40) : 0;
    knobs->delete_part = (u32)prng_below(&prng, 40);
    knobs->read_part = (u32)prng_range(&prng, 20, 80);
    knobs->batch_part = (u32)prng_below(&prng, 60);
    knobs->loose_part = prng_chance(&prng, 1, 3) ? (u32)prng_below(&prng, 30) : 0;
    knobs->racks = prng_chance(&prng, 1, 2);
    knobs->operates = prng_chance(&prng, 1, 3);
    knobs->after = lite ? 40 : 200;
    troubles_draw(knobs, &prng);
    cuts_draw(knobs, options->seed);
    siblings_draw(knobs, options->seed);
    trees_draw(knobs, options->seed);
    sloppy_draw(knobs, options->seed);
    rot_draw(knobs, options->seed);
    shrinks_draw(knobs, options->seed);
    if (options->ops != 0) knobs->trouble_ns = options->ops * CLUSTER_NS_PER_OP;
    sim->print_log = options->log;
    sim->faults_off = options->off;
    sim->faults_skip = options->skips;
    sim->faults_skip_count = options->skip_count;
    sim->faults_max = options->faults_max;
    sim->time_ns_max = 100ull * 24 * 3600 * NS_PER_S;
}

void
cluster_knobs_print(const struct cluster_knobs *knobs)
{
    fprintf(stderr,
            "cluster   nodes %u, shards to %u, N %u W %u R %u%s, timeout %llu ms, racks %d, "
            "operator %d%s\n",
            knobs->nodes, knobs->shards_max, knobs->replicas, knobs->write_quorum,
            knobs->read_quorum, knobs->sloppy ? " sloppy" : "",
            (unsigned long long)knobs->timeout_ms, knobs->racks, knobs->operates,
            knobs->shrinks ? ", shrinks" : "");
    fprintf(stderr,
            "clients   %u, keys %u + %u groups + %u fixed + %u counters, hot %u %%, pause to %llu "
            "ms, reads %u %%, deletes %u %%, expire %u %%, batches %u %%, loose %u %%, values to "
            "%u\n",
            knobs->clients, knobs->registers, knobs->groups, knobs->fixed, knobs->counters,
            knobs->hot_part, (unsigned long long)(knobs->pause_ns / NS_PER_MS), knobs->read_part,
            knobs->delete_part, knobs->expire_part, knobs->batch_part, knobs->loose_part,
            knobs->value_bytes_max);
    fprintf(stderr, "siblings  %u keys, %u clients, of 100 writes %u blind, %u stale, %u plain%s\n",
            knobs->sibling_keys, knobs->sibling_clients, knobs->blind_part, knobs->stale_part,
            knobs->plain_part, knobs->sibling_fewer ? "; two replicas" : "");
    fprintf(stderr, "trees     looks %d, repairs %d\n", knobs->looks, knobs->repairs);
    fprintf(stderr, "cuts      of 100 crashes %u at an event, of 100 starts %u\n",
            knobs->event_part, knobs->recovery_cut_part);
    fprintf(stderr, "trouble   for %llu ms, one in %llu ms, to %llu ms each:",
            (unsigned long long)(knobs->trouble_ns / NS_PER_MS),
            (unsigned long long)(knobs->between_ns / NS_PER_MS),
            (unsigned long long)(knobs->lasts_ns / NS_PER_MS));
    for (u32 i = 0; i < TROUBLE_COUNT; i++)
        if (knobs->weights[i] > 0)
            fprintf(stderr, " %s %u", cluster_trouble_names[i], knobs->weights[i]);
    fprintf(stderr, "\n");
}
