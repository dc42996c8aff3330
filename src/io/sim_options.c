/* SPDX-License-Identifier: MIT
 *
 * sim_options.c -- what a run is like: the quiet default, what a seed draws, and damage.
 */
#include "io/sim_internal.h"

void
sim_options_default(struct sim_options *options, u64 seed)
{
    *options = (struct sim_options){
        .seed = seed,
        .memory_bytes = MIB(256),
        .turn_ns_min = 200,
        .turn_ns_max = 20 * NS_PER_US,
        .mail_ns_min = 200,
        .mail_ns_max = 20 * NS_PER_US,
        .mails_max = 256,
        .time_ns_max = 24 * 3600 * NS_PER_S,
        .disk =
            {
                .capacity_bytes = GIB(16),
                .latency_ns_min = 10 * NS_PER_US,
                .latency_ns_max = 300 * NS_PER_US,
                .stall_ns = NS_PER_S,
                .late_ppm = 500000,
                .late_ns_max = 5 * NS_PER_S,
            },
        .net =
            {
                .latency_ns_min = 10 * NS_PER_US,
                .latency_ns_max = 500 * NS_PER_US,
                .pipe_bytes = 256u << 10,
                .split_ppm = 300000,
            },
    };
}

/* A stream of its own, so that a draw that is added or taken away moves no other. True in one of
 * `in` runs. */
static bool
swarm_draw(struct prng *prng, u64 seed, const char *purpose, u64 in)
{
    prng_init(prng, sim_seed(seed, purpose, 0));
    return prng_chance(prng, 1, in);
}

/* Ways between shards that are full as soon as one to three mails are under way, which take longer:
 * so outboxes hold several, and their order matters. */
void
sim_options_full_ways(struct sim_options *options, u64 seed)
{
    struct prng prng;
    if (!swarm_draw(&prng, seed, "full ways", 4)) return;
    options->mails_max = (u32)prng_range(&prng, 1, 3);
    options->mail_ns_max =
        MAX(options->mail_ns_max, prng_range(&prng, 20 * NS_PER_US, 400 * NS_PER_US));
}

static void
swarm_more(struct sim_options *options, u64 seed)
{
    struct sim_disk_options *disk = &options->disk;
    struct sim_net_options *net = &options->net;
    struct prng prng;
    if (swarm_draw(&prng, seed, "swarm disk-stall", 2))
        disk->stall_ns = prng_range(&prng, NS_PER_S, 30 * NS_PER_S);
    if (swarm_draw(&prng, seed, "swarm evict", 2))
        disk->evict_chance = (u32)prng_range(&prng, 1, 64);
    if (swarm_draw(&prng, seed, "swarm no-space", 10)) {
        disk->no_space_ppm = (u32)prng_below(&prng, 2000);
        disk->no_space_ns_max = prng_range(&prng, NS_PER_MS, 10 * NS_PER_S);
    }
    if (swarm_draw(&prng, seed, "swarm look", 10))
        disk->look_error_ppm = (u32)prng_below(&prng, 10000);
    if (swarm_draw(&prng, seed, "swarm short", 4)) disk->short_ppm = (u32)prng_below(&prng, 200000);
    if (swarm_draw(&prng, seed, "swarm alloc", 8)) options->alloc_ppm = (u32)prng_below(&prng, 300);
    if (swarm_draw(&prng, seed, "swarm shard-stall", 8)) {
        options->shard_stall_ppm = (u32)prng_below(&prng, 300);
        options->shard_stall_ns_max = prng_range(&prng, NS_PER_MS, 30 * NS_PER_S);
    }
    if (swarm_draw(&prng, seed, "swarm net-half-open", 6))
        net->half_open_ppm = (u32)prng_below(&prng, 2000);
    if (swarm_draw(&prng, seed, "swarm net-stall", 5)) {
        net->stall_ppm = (u32)prng_below(&prng, 5000);
        net->stall_ns_max = prng_range(&prng, NS_PER_MS, 20 * NS_PER_S);
    }
    net->single_bytes = swarm_draw(&prng, seed, "swarm single-bytes", 40);
    sim_options_full_ways(options, seed);
}

void
sim_options_swarm(struct sim_options *options, u64 seed)
{
    sim_options_default(options, seed);
    struct prng prng;
    prng_init(&prng, sim_seed(seed, "swarm", 0));
    options->buggify = prng_chance(&prng, 3, 4);
    if (prng_chance(&prng, 1, 4)) options->turn_ns_max = NS_PER_MS;
    if (prng_chance(&prng, 1, 4)) options->turn_long_ppm = (u32)prng_below(&prng, 2000);
    if (prng_chance(&prng, 1, 4)) options->mail_ns_max = 5 * NS_PER_MS;
    struct sim_disk_options *disk = &options->disk;
    if (prng_chance(&prng, 1, 4)) disk->latency_ns_max *= 1 + prng_below(&prng, 100);
    if (prng_chance(&prng, 1, 5)) disk->stall_ppm = (u32)prng_below(&prng, 5000);
    if (prng_chance(&prng, 1, 4)) disk->torn_ppm = (u32)prng_below(&prng, 300000);
    if (prng_chance(&prng, 1, 8)) disk->read_error_ppm = (u32)prng_below(&prng, 5000);
    if (prng_chance(&prng, 1, 8)) disk->write_error_ppm = (u32)prng_below(&prng, 5000);
    if (prng_chance(&prng, 1, 8)) disk->sync_error_ppm = (u32)prng_below(&prng, 5000);
    struct sim_net_options *net = &options->net;
    net->split_ppm = (u32)prng_below(&prng, 1000000);
    if (prng_chance(&prng, 1, 4)) net->latency_ns_max *= 1 + prng_below(&prng, 100);
    if (prng_chance(&prng, 1, 4)) net->pipe_bytes = (u32)prng_range(&prng, 4096, 65536);
    if (prng_chance(&prng, 1, 4)) net->refuse_ppm = (u32)prng_below(&prng, 200000);
    if (prng_chance(&prng, 1, 4)) net->reset_ppm = (u32)prng_below(&prng, 3000);
    swarm_more(options, seed);
}

void
sim_options_beyond(struct sim_options *options, u64 seed)
{
    struct sim_disk_options *disk = &options->disk;
    struct {
        const char *purpose;
        u32 *ppm;
    } const families[] = {
        {"beyond bit-rot", &disk->bit_rot_ppm},
        {"beyond latent", &disk->latent_ppm},
        {"beyond misdirected", &disk->misdirected_ppm},
        {"beyond lost-write", &disk->lost_write_ppm},
    };
    u32 drawn = 0;
    for (u32 i = 0; i < ARRAY_COUNT(families); i++) {
        struct prng prng;
        prng_init(&prng, sim_seed(seed, families[i].purpose, 0));
        if (!prng_chance(&prng, 1, 2)) continue;
        *families[i].ppm = (u32)prng_range(&prng, 1, prng_chance(&prng, 1, 2) ? 200 : 5000);
        drawn++;
    }
    /* Without any it would be a run like the others. */
    if (drawn == 0) *families[seed % ARRAY_COUNT(families)].ppm = 1000;
}
