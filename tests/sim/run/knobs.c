/* SPDX-License-Identifier: MIT
 *
 * knobs.c -- what a run is like. Everything is drawn from the seed, and everything is printed when
 * the run fails.
 *
 * Swarm testing: each run takes a random subset of the faults and of the actions, with weights of
 * its own, instead of a little of everything. Of what is drawn, what the command line switches off
 * (--off) is set to nothing afterwards, so that the rest of the run stays as it was.
 *
 * What a run may not combine, because the promise does not cover it:
 *   periodic durability and failing syncs: after a failed sync the kernel says that all is well, so
 *   a log that is opened again cannot know what the next power cut takes.
 */
#include "workload.h"

#include "lsm/lsm.h"

const char *const run_mode_names[] = {"lite",   "swarm",   "liveness",
                                      "beyond", "cluster", "cluster-swarm"};

static void
weights_draw(struct knobs *knobs, struct prng *prng)
{
    for (u32 i = 0; i < ACTION_COUNT; i++)
        knobs->weights[i] = prng_chance(prng, 1, 3) ? 0 : (u32)prng_range(prng, 1, 20);
    knobs->weights[ACTION_GET] += 10;
    knobs->weights[ACTION_PUT] += 10;
    /* Each of these touches everything. */
    knobs->weights[ACTION_KEYS] /= 8;
    knobs->weights[ACTION_FLUSH] = prng_chance(prng, 1, 4) ? 1 : 0;
    knobs->weights[ACTION_COUNT_KEYS] /= 4;
    knobs->weights[ACTION_SCAN] /= 4;
    knobs->weights[ACTION_SNAPSHOT] /= 4;
    knobs->weights[ACTION_OTHER] /= 4;
    knobs->weights[ACTION_CONFIG] /= 4;
}

static void
node_draw(struct knobs *knobs, struct prng *prng, bool lite)
{
    knobs->shards = prng_chance(prng, 1, 3) ? 1 : (u32)prng_range(prng, 2, lite ? 2 : 4);
    knobs->memory_per_shard = MIB(32) << prng_below(prng, 2);
    if (prng_chance(prng, 1, 4)) {
        knobs->durability = prng_chance(prng, 1, 3) ? LSM_DURABILITY_NONE : LSM_DURABILITY_PERIODIC;
    }
    knobs->sync_interval_ms = (u32)prng_range(prng, 1, 200);
    knobs->codec = (u32)prng_below(prng, lite ? 2 : 2 + prng_chance(prng, 1, 6));
    knobs->codec_last = (u32)prng_below(prng, lite ? 2 : 2 + prng_chance(prng, 1, 6));
    knobs->blob_threshold = prng_chance(prng, 1, 2) ? 512 : 4096;
    if (prng_chance(prng, 1, 3)) knobs->scrub_rate = MIB(1) << prng_below(prng, 6);
    knobs->output_limit = prng_chance(prng, 1, 3) ? MIB(1) : MIB(32);
    knobs->operates = prng_chance(prng, 1, 2);
}

static void
history_draw(struct knobs *knobs, struct prng *prng, bool lite)
{
    knobs->phases = (u32)prng_range(prng, lite ? 1 : 2, lite ? 3 : 6);
    knobs->ops = prng_range(prng, lite ? 150 : 400, lite ? 500 : 2500);
    knobs->phase_ns_max = prng_range(prng, 2, lite ? 10 : 60) * NS_PER_S;
    knobs->power_part = (u32)prng_below(prng, 101);
    knobs->kill_part = (u32)prng_below(prng, 101 - knobs->power_part);
    knobs->resize_part = prng_chance(prng, 1, 2) ? (u32)prng_below(prng, 60) : 0;
    knobs->recovery_crash_part = prng_chance(prng, 1, 2) ? (u32)prng_below(prng, 50) : 0;
}

static void
clients_draw(struct knobs *knobs, struct prng *prng, bool lite)
{
    knobs->resp_clients = (u32)prng_range(prng, 1, lite ? 3 : 6);
    knobs->native_clients = (u32)prng_below(prng, lite ? 3 : 5);
    knobs->hostile_clients = lite ? 0 : (u32)prng_below(prng, 3);
    knobs->machines = lite ? 1 : (u32)prng_range(prng, 1, 3);
    knobs->depth_max = prng_chance(prng, 1, 3) ? (u32)prng_range(prng, 20, 300) : 8;
    knobs->keyspaces = (u32)prng_range(prng, 1, 3);
    knobs->singles = (u32)prng_range(prng, 1, prng_chance(prng, 1, 4) ? 200 : 24);
    knobs->groups = (u32)prng_below(prng, 10);
    knobs->open_max = (u32)prng_range(prng, 2, 10);
    knobs->hot_part = (u32)prng_below(prng, 80);
    knobs->big_part = prng_chance(prng, 1, 4) ? (u32)prng_below(prng, lite ? 5 : 20) : 0;
    knobs->slow_readers = !lite && prng_chance(prng, 1, 3);
    knobs->cut_part = prng_chance(prng, 1, 2) ? (u32)prng_below(prng, 60) : 0;
}

/* Whether a family is there at all: 1 in 4, and 1 in 2 where the question is what comes after. */
static u32
family(struct prng *prng, u32 ppm_max, u32 one_in)
{
    bool there = prng_chance(prng, 1, one_in);
    return there ? (u32)prng_range(prng, 1, ppm_max) : 0;
}

static void
faults_draw(struct knobs *knobs, struct sim_options *sim, struct prng *prng, u32 one_in)
{
    sim->disk.read_error_ppm = family(prng, 3000, one_in);
    sim->disk.write_error_ppm = family(prng, 1500, one_in);
    sim->disk.sync_error_ppm = family(prng, 1500, one_in);
    sim->disk.stall_ppm = family(prng, 2000, one_in);
    sim->disk.stall_ns = prng_range(prng, 1, 30) * NS_PER_S;
    sim->disk.no_space_ppm = family(prng, 500, 2 * one_in);
    sim->disk.no_space_ns_max = prng_range(prng, 1, 2000) * NS_PER_MS;
    sim->disk.torn_ppm = family(prng, 400000, one_in);
    sim->alloc_ppm = family(prng, 500, one_in);
    sim->shard_stall_ppm = family(prng, 200, one_in);
    sim->shard_stall_ns_max = prng_range(prng, 1, 3000) * NS_PER_MS;
    sim->net.refuse_ppm = family(prng, 200000, one_in);
    sim->net.reset_ppm = family(prng, 3000, one_in);
    sim->net.half_open_ppm = family(prng, 500, one_in);
    sim->net.stall_ppm = family(prng, 1000, one_in);
    sim->net.stall_ns_max = prng_range(prng, 1, 10) * NS_PER_S;
    knobs->clock_steps = prng_chance(prng, 1, 5);
    knobs->clock_drifts = prng_chance(prng, 1, 5);
    knobs->space_shrinks = prng_chance(prng, 1, 4);
    if (knobs->durability == LSM_DURABILITY_PERIODIC) sim->disk.sync_error_ppm = 0;
}

/* From streams of their own: they were added when the others' draws were known by their seeds. */
static void
look_draw(struct sim_options *sim, u64 seed, u32 one_in)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 18);
    sim->disk.look_error_ppm = family(&prng, 10000, one_in);
    prng_init(&prng, seed * 7919 + 25);
    sim->disk.name_error_ppm = family(&prng, 20000, one_in);
}

/* Native clients that do not wait: they give a connection up, and send again over another one,
 * while what they sent before may still be on its way: in half of these runs it often is, for long,
 * and few keys are written again and again meanwhile. From a stream of its own, too. */
static void
patience_draw(struct knobs *knobs, struct sim_options *sim, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 20);
    if (!prng_chance(&prng, 1, 4)) return;
    knobs->patience_ms = 1u << prng_range(&prng, 0, 10);
    if (!prng_chance(&prng, 1, 2)) return;
    knobs->patience_ms = MIN(knobs->patience_ms, 64u);
    knobs->native_clients = MAX(knobs->native_clients, 3u);
    knobs->singles = MIN(knobs->singles, 6u);
    knobs->weights[ACTION_PUT] += 30;
    sim->net.stall_ppm = (u32)prng_range(&prng, 5000, 40000);
    sim->net.stall_ns_max = prng_range(&prng, 100, 1000) * NS_PER_MS;
}

/* Native clients with little but conditional puts and deletes of one or two keys, who soon give a
 * connection up while its bytes stand still. So a retry is answered by what the keys hold just
 * then, and its first attempt comes when they hold something else. A kind of its own, from a stream
 * of its own: other seeds stay what they were. */
static void
late_draw(struct knobs *knobs, struct sim_options *sim, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 26);
    if (!prng_chance(&prng, 1, 12)) return;
    knobs->patience_ms = 1u << prng_range(&prng, 0, 4);
    sim->net.stall_ppm = (u32)prng_range(&prng, 50000, 200000);
    sim->net.stall_ns_max = prng_range(&prng, 20, 200) * NS_PER_MS;
    knobs->resp_clients = (u32)prng_range(&prng, 1, 2);
    knobs->native_clients = (u32)prng_range(&prng, 3, 6);
    knobs->keyspaces = 1;
    knobs->singles = (u32)prng_range(&prng, 1, 2);
    knobs->groups = 0;
    knobs->big_part = 0;
    for (u32 i = 0; i < ACTION_COUNT; i++)
        knobs->weights[i] = prng_chance(&prng, 1, 8) ? knobs->weights[i] : 0;
    knobs->weights[ACTION_GET] = (u32)prng_range(&prng, 10, 30);
    knobs->weights[ACTION_PUT] = (u32)prng_below(&prng, 10);
    knobs->weights[ACTION_PUT_IF] = (u32)prng_range(&prng, 20, 40);
    knobs->weights[ACTION_DELETE] = (u32)prng_range(&prng, 10, 30);
}

/* A kind of lite: many connections with little but plain GETs, SETs and read-modify-writes of the
 * same few keys, on a disk as slow as spinning ones, and a power cut again and again. So what is
 * not durable yet is read by others just before it is lost, and what waits for the disk with its
 * keys locked is met by others. From a stream of its own, too. */
static void
crowd_draw(struct knobs *knobs, struct sim_options *sim, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 19);
    if (!prng_chance(&prng, 1, 4)) return;
    sim->disk.latency_ns_max = prng_range(&prng, 1, 20) * NS_PER_MS;
    knobs->shards = prng_chance(&prng, 2, 3) ? 1 : 2;
    knobs->resize_part = 0;
    knobs->durability = LSM_DURABILITY_GROUP;
    knobs->operates = true;
    knobs->phases = (u32)prng_range(&prng, 4, 8);
    knobs->ops = knobs->phases * prng_range(&prng, 60, 200);
    knobs->power_part = (u32)prng_range(&prng, 60, 100);
    knobs->kill_part = 0;
    knobs->resp_clients = (u32)prng_range(&prng, 3, 6);
    knobs->keyspaces = 1;
    knobs->singles = (u32)prng_range(&prng, 1, 4);
    knobs->groups = 0;
    knobs->open_max = 8; /* each more doubles what the judge may have to look at */
    knobs->big_part = 0;
    for (u32 i = 0; i < ACTION_COUNT; i++)
        knobs->weights[i] = prng_chance(&prng, 1, 8) ? knobs->weights[i] : 0;
    knobs->weights[ACTION_GET] = (u32)prng_range(&prng, 20, 40);
    knobs->weights[ACTION_PUT] = (u32)prng_range(&prng, 10, 30);
    knobs->weights[ACTION_GROW] = (u32)prng_range(&prng, 5, 20);
    knobs->weights[ACTION_PUT_IF] = (u32)prng_range(&prng, 10, 30);
}

/* A kind of lite: many connections with transactions and conditional writes of one or two objects
 * whose values live for milliseconds, on a node with rare paths. So what was read expires before
 * what was made of it is written, while others look. From a stream of its own, too. */
static void
brief_draw(struct knobs *knobs, struct sim_options *sim, u64 seed)
{
    struct prng prng;
    prng_init(&prng, seed * 7919 + 21);
    if (!prng_chance(&prng, 1, 8)) return;
    knobs->ttl_ms_max = (u32)prng_range(&prng, 3, 8);
    sim->buggify = true;
    knobs->shards = 1;
    knobs->resize_part = 0;
    knobs->durability = LSM_DURABILITY_GROUP;
    knobs->operates = true;
    knobs->phases = (u32)prng_range(&prng, 1, 3);
    knobs->ops = knobs->phases * prng_range(&prng, 400, 600);
    knobs->resp_clients = (u32)prng_range(&prng, 5, 8);
    knobs->keyspaces = 1;
    knobs->singles = 1;
    knobs->groups = (u32)prng_below(&prng, 2);
    knobs->open_max = 6;
    knobs->big_part = 0;
    memset(knobs->weights, 0, sizeof(knobs->weights));
    knobs->weights[ACTION_GET] = (u32)prng_range(&prng, 20, 40);
    knobs->weights[ACTION_PUT] = (u32)prng_range(&prng, 10, 20);
    knobs->weights[ACTION_PUT_IF] = (u32)prng_range(&prng, 10, 30);
    knobs->weights[ACTION_GROW] = (u32)prng_below(&prng, 10);
    knobs->weights[ACTION_EXEC] = (u32)prng_range(&prng, 20, 40);
}

static void
damage_draw(struct sim_options *sim, struct prng *prng)
{
    sim->disk.bit_rot_ppm = family(prng, 2000, 3);
    sim->disk.latent_ppm = family(prng, 2000, 3);
    sim->disk.misdirected_ppm = family(prng, 5000, 3);
    sim->disk.lost_write_ppm = family(prng, 5000, 3);
    if (sim->disk.latent_ppm + sim->disk.misdirected_ppm + sim->disk.lost_write_ppm == 0)
        sim->disk.bit_rot_ppm = (u32)prng_range(prng, 1, 3000);
}

void
knobs_draw(struct knobs *knobs, struct sim_options *sim, const struct run_options *options)
{
    struct prng prng;
    prng_init(&prng, options->seed * 7919 + 17);
    bool lite = options->mode == RUN_LITE;
    memset(knobs, 0, sizeof(*knobs));
    if (lite) {
        sim_options_default(sim, options->seed);
        sim_options_full_ways(sim, options->seed);
        sim->buggify = prng_chance(&prng, 1, 2);
    } else {
        sim_options_swarm(sim, options->seed);
    }
    node_draw(knobs, &prng, lite);
    history_draw(knobs, &prng, lite);
    clients_draw(knobs, &prng, lite);
    weights_draw(knobs, &prng);
    if (!lite) faults_draw(knobs, sim, &prng, options->mode == RUN_LIVENESS ? 2 : 4);
    if (lite) crowd_draw(knobs, sim, options->seed);
    if (lite) brief_draw(knobs, sim, options->seed);
    if (!lite) look_draw(sim, options->seed, options->mode == RUN_LIVENESS ? 2 : 4);
    if (!lite) patience_draw(knobs, sim, options->seed);
    if (options->mode == RUN_SWARM || options->mode == RUN_LIVENESS)
        late_draw(knobs, sim, options->seed);
    if (options->mode == RUN_BEYOND) damage_draw(sim, &prng);
    if (options->ops != 0) knobs->ops = options->ops;
    sim->print_log = options->log;
    sim->faults_off = options->off;
    sim->faults_skip = options->skips;
    sim->faults_skip_count = options->skip_count;
    sim->faults_max = options->faults_max;
    sim->time_ns_max = 100ull * 24 * 3600 * NS_PER_S; /* the history has its own limits */
}

void
knobs_print(const struct knobs *knobs, const struct sim_options *sim)
{
    static const char *const durabilities[] = {"group", "periodic", "none"};
    static const char *const codecs[] = {"none", "lz4", "deflate"};
    const struct sim_disk_options *disk = &sim->disk;
    const struct sim_net_options *net = &sim->net;
    fprintf(
        stderr,
        "node      shards %u, %llu MiB each, durability %s every %u ms, codecs %s and %s, blobs "
        "from %u, scrub %llu B/s, output %llu B, operator %d, buggify %d\n",
        knobs->shards, (unsigned long long)(knobs->memory_per_shard >> 20),
        durabilities[knobs->durability], knobs->sync_interval_ms, codecs[knobs->codec],
        codecs[knobs->codec_last], knobs->blob_threshold, (unsigned long long)knobs->scrub_rate,
        (unsigned long long)knobs->output_limit, knobs->operates, sim->buggify);
    fprintf(
        stderr,
        "history   phases %u, requests %llu, at most %llu s each; of 100 ends power %u, kill %u; "
        "of 100 starts resized %u, cut %u; clock steps %d, drifts %d, space shrinks %d\n",
        knobs->phases, (unsigned long long)knobs->ops,
        (unsigned long long)(knobs->phase_ns_max / NS_PER_S), knobs->power_part, knobs->kill_part,
        knobs->resize_part, knobs->recovery_crash_part, knobs->clock_steps, knobs->clock_drifts,
        knobs->space_shrinks);
    fprintf(stderr,
            "clients   resp %u, native %u, hostile %u on %u machines, depth %u, keyspaces %u, "
            "objects %u + %u, open %u, hot %u %%, big %u of 1000, slow %d, cut %u %%, patience %u "
            "ms, values live %u ms (0: as drawn)\n",
            knobs->resp_clients, knobs->native_clients, knobs->hostile_clients, knobs->machines,
            knobs->depth_max, knobs->keyspaces, knobs->singles, knobs->groups, knobs->open_max,
            knobs->hot_part, knobs->big_part, knobs->slow_readers, knobs->cut_part,
            knobs->patience_ms, knobs->ttl_ms_max);
    fprintf(stderr, "actions  ");
    for (u32 i = 0; i < ACTION_COUNT; i++)
        if (knobs->weights[i] > 0) fprintf(stderr, " %s %u", action_names[i], knobs->weights[i]);
    fprintf(stderr,
            "\ndisk      latency %llu..%llu us, errors read %u write %u sync %u look %u name %u, "
            "short %u, stalls %u of %llu s, full %u, torn %u, rot %u, latent %u, misdirected %u, "
            "lost %u (ppm)\n",
            (unsigned long long)(disk->latency_ns_min / 1000),
            (unsigned long long)(disk->latency_ns_max / 1000), disk->read_error_ppm,
            disk->write_error_ppm, disk->sync_error_ppm, disk->look_error_ppm, disk->name_error_ppm,
            disk->short_ppm, disk->stall_ppm, (unsigned long long)(disk->stall_ns / NS_PER_S),
            disk->no_space_ppm, disk->torn_ppm, disk->bit_rot_ppm, disk->latent_ppm,
            disk->misdirected_ppm, disk->lost_write_ppm);
    fprintf(
        stderr,
        "network   latency %llu..%llu us, pipe %u, split %u, refuse %u, reset %u, half open %u, "
        "stall %u to %llu ms (ppm)\n",
        (unsigned long long)(net->latency_ns_min / 1000),
        (unsigned long long)(net->latency_ns_max / 1000), net->pipe_bytes, net->split_ppm,
        net->refuse_ppm, net->reset_ppm, net->half_open_ppm, net->stall_ppm,
        (unsigned long long)(net->stall_ns_max / NS_PER_MS));
    fprintf(stderr,
            "process   turns %llu..%llu us, long %u, mails to %llu us, at most %u, alloc %u, shard "
            "stalls %u to "
            "%llu ms (ppm)\n",
            (unsigned long long)(sim->turn_ns_min / 1000),
            (unsigned long long)(sim->turn_ns_max / 1000), sim->turn_long_ppm,
            (unsigned long long)(sim->mail_ns_max / 1000), sim->mails_max, sim->alloc_ppm,
            sim->shard_stall_ppm, (unsigned long long)(sim->shard_stall_ns_max / NS_PER_MS));
}
