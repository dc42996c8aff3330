/* SPDX-License-Identifier: MIT
 *
 * history.c -- the whole of one seed: processes of the server begin and end, clients work
 * meanwhile, faults come and go, and in the end everything must be well.
 *
 *   phase   start (perhaps cut while recovering, again and again) -> ready, what came before is
 *           judged -> clients work, clocks step, disks fill -> power cut, kill or orderly stop
 *   calm    no faults from here on: every request is answered, then after a restart none is
 *           refused and every key is read
 *   close   an orderly stop, which must leave nothing behind; the last judgement; verification
 *
 * All of this runs outside of the simulated machines, between two events.
 */
#include "calm.h"
#include "client.h"
#include "cluster.h"
#include "clock.h"
#include "damage.h"
#include "prefix.h"

#include <stdio.h>
#include <stdlib.h>

#include "io/sim_internal.h"
#include "lsm/store.h"
#include "server/shard.h"

#define DATA_DIR    "/data"
#define SERVER_HOST "10.0.0.1"

/* Virtual time that a start, a stop and the answers of the calm may take. */
#define START_NS_MAX (900 * NS_PER_S)
#define STOP_NS_MAX  (900 * NS_PER_S)
#define CALM_NS_MAX  (600 * NS_PER_S)
#define STARTS_MAX   40u
/* Of the requests after the last restart, at most, for want of memory: a burst of large values may
 * ask for more than there is. Seeds refuse up to one in 20. */
#define REFUSED_ONE_IN 5u
/* Events of the node for a request of a client, about: how far ahead a crash at an event is set. */
#define REQUEST_EVENTS 8u
/* Against a world in which nothing comes forward. */
#define EVENTS_MAX 30000000ull

struct run *run;

/* What a process of the server ended like, until it is judged when the next one is ready. */
static struct {
    bool any, orderly, power;
    bool looked; /* what it left is read key by key */
    u64 ended_ns;
} end;

/* When a process is to crash: between two events, once clients have asked for so much; when it
 * begins its n-th request to its disk; at its n-th event, whatever that is. */
enum moment { MOMENT_ASKED, MOMENT_IO, MOMENT_EVENT, MOMENT_COUNT };

/* ---- a process ---- */

static MAY_YIELD void
operator_main(void *arg)
{
    struct server *server = arg;
    struct prng prng;
    prng_init(&prng, run->options->seed * 31 + run->starts * 8 + io_shard_index());
    while (!io_stopping()) {
        fiber_sleep_ns(prng_range(&prng, NS_PER_MS, 150 * NS_PER_MS));
        if (io_stopping() || !server_ready(server) || run->calm) continue;
        bool compacts = prng_chance(&prng, 1, 3);
        struct server_action_call call = {
            .server = server, .action = compacts ? SERVER_ACTION_COMPACT : SERVER_ACTION_FLUSH};
        server_action_call(&call);
        *(compacts ? &run->stats.compactions : &run->stats.flushes) += ok(call.result);
    }
}

static MAY_YIELD status
server_main(void *arg)
{
    if (run->knobs.operates && !ok(fiber_spawn(FIBER_BACKGROUND, "operator", operator_main, arg)))
        run->stats.starts_failed += 0; /* an allocation was refused: without one, then */
    if (end.looked && !ok(fiber_spawn(FIBER_BACKGROUND, "look", prefix_look_main, arg)))
        prefix_look_skip(io_shard_index());
    return server_shard_main(arg);
}

static void
config_fill(struct server_config *config)
{
    const struct knobs *knobs = &run->knobs;
    config_init_for_test(config, DATA_DIR, run->shards);
    config->memory_bytes = knobs->memory_per_shard * run->shards;
    config->durability = knobs->durability;
    config->sync_interval_ms = knobs->sync_interval_ms;
    config->codec = knobs->codec;
    config->codec_last = knobs->codec_last;
    config->blob_threshold_bytes = knobs->blob_threshold;
    config->scrub_rate_bytes = knobs->scrub_rate;
    config->client_output_limit_bytes = knobs->output_limit;
    config->disk_reserve_bytes = MIB(1);
    snprintf(config->endpoint.host, sizeof(config->endpoint.host), "%s", SERVER_HOST);
}

static void
damage_met(void)
{
    if (run->beyond && damage_anywhere()) run->stats.damaged = 1;
}

/* What is stored is spoiled while no process runs, too: short runs ask so little of the disk that
 * by the chances of its requests half of them would meet no damage. Seldom before the calm, since
 * many a node does not start any more. */
static void
damage_at_rest(void)
{
    if (!run->beyond || run->starts == 1 || damage_anywhere()) return;
    bool strikes = run->calm ? run->stats.damaged == 0 : prng_chance(&run->prng, 1, 10);
    bool rots = prng_chance(&run->prng, 3, 4);
    if (strikes)
        (void)sim_node_spoil(run->server_node, rots ? SIM_FAULT_BIT_ROT : SIM_FAULT_LATENT);
}

/* Where allocations are refused by chance, which only nodes meet that have started up, a start is
 * refused some now and then: any of those that it makes. From a stream of its own. */
static void
start_starve(void)
{
    struct prng prng;
    prng_init(&prng, sim_seed(run->options->seed, "starve", run->starts));
    if (run->calm || run->sim_options.alloc_ppm == 0 || !prng_chance(&prng, 1, 3)) return;
    /* About so many a shard makes before it replays, and as it does. */
    u64 n = prng_below(&prng, prng_chance(&prng, 3, 4) ? 60 * run->shards : 1000);
    sim_node_refuse_at(run->server_node, n, prng_range(&prng, 1, 4));
}

/* Whether the process has begun; without memory for its shards there is none. */
static bool
process_begin(void)
{
    if (run->starts > 0 && prng_chance(&run->prng, run->knobs.resize_part, 100)) {
        u32 shards = (u32)prng_range(&run->prng, 1, 4);
        run->stats.resizes += shards != run->shards;
        run->shards = shards;
    }
    config_fill(&run->config);
    run->starts++;
    run->stats.starts++;
    end.looked = end.any && !run->beyond && check_end_loses(end.orderly, end.power);
    if (end.looked) prefix_look_begin();
    damage_recovery_begin();
    damage_at_rest();
    damage_met();
    run->server = server_new(&run->config, (u32)run->starts);
    CHECK(run->server != NULL);
    struct io_node_config node = {
        .shard_count = run->shards,
        .memory_bytes = run->config.memory_bytes,
        .shard_main = server_main,
        .arg = run->server,
    };
    u64 refused = sim_fault_count(run->sim, SIM_FAULT_ALLOC);
    start_starve();
    status st = sim_node_start(run->server_node, &node);
    CHECK(ok(st) || sim_fault_count(run->sim, SIM_FAULT_ALLOC) > refused);
    return ok(st);
}

/* It has ended, whatever the way. */
static void
process_ended(bool orderly, bool power)
{
    bool was_ready = run->serving;
    if (was_ready) prefix_ended(&run->server->layout);
    run->serving = false;
    damage_note();
    if (!was_ready) damage_recovery_end();
    static const char *const damage[] = {"damaged file met", "merged tables hold"};
    for (u32 i = 0; i < ARRAY_COUNT(damage) && !damage_ever(); i++)
        if (sim_log_contains(run->sim, damage[i]))
            violated("damage", "nothing damages the disk, and the node says: %s", damage[i]);
    sim_faults_clear(run->sim);
    clients_cut();
    run->position++;
    if (was_ready || !end.any) {
        end.any = true;
        end.orderly = orderly;
        end.ended_ns = sim_now_ns(run->sim);
        end.power = false;
    }
    /* What a kill left may still be lost to a power cut before it was recovered. */
    if (!orderly && power) end.power = true;
    server_free(run->server);
    run->server = NULL;
}

static bool
server_alive(void)
{
    return sim_node_running(run->server_node);
}

static bool
step(void)
{
    if (run_over()) return false;
    if (!sim_step(run->sim)) {
        violated("deadlock", "nothing will ever happen again");
        return false;
    }
    if (sim_event_count(run->sim) > EVENTS_MAX) {
        violated("endless", "%llu events, and no end",
                 (unsigned long long)sim_event_count(run->sim));
        return false;
    }
    return !run_over();
}

static void
crash(bool power)
{
    sim_crash_keeps_all_set(run->sim, !power);
    sim_node_crash(run->server_node);
    *(power ? &run->stats.power_cuts : &run->stats.kills) += 1;
}

static bool
crash_allowed(bool power)
{
    return sim_fault_inject(run->sim, power ? SIM_FAULT_POWER_CUT : SIM_FAULT_KILL);
}

static void
crash_arm(bool power, enum moment moment, u64 n)
{
    sim_crash_keeps_all_set(run->sim, !power);
    sim_node_crash_at(run->server_node, moment == MOMENT_EVENT ? SIM_POINT_EVENT : SIM_POINT_IO, n);
}

/* A process has not come up, and nobody cut it: it says why. */
static void
start_failed(bool begun)
{
    run->stats.starts_failed++;
    const char *why = server_failure(run->server);
    if (!run->faulty && !run->beyond)
        violated("start", "the node does not start, though nothing fails: %s", why);
    if (begun && (ok(sim_node_result(run->server_node)) || why[0] == '\0'))
        violated("start", "the node does not start and does not tell why (%s)",
                 status_text(sim_node_result(run->server_node)));
    process_ended(false, false);
}

/* Whether the process came up. cut_before: whether the last try was cut while it recovered, before
 * and after. */
static bool
process_try(bool *cut_before)
{
    u32 part = *cut_before ? 50 : run->knobs.recovery_crash_part;
    bool cut = !run->calm && run->starts > 0 && prng_chance(&run->prng, part, 100);
    bool power = prng_chance(&run->prng, 1, 2);
    enum moment moment = prng_chance(&run->prng, 1, 2) ? MOMENT_EVENT : MOMENT_IO;
    u64 n_max = prng_chance(&run->prng, 1, 2) ? 20 : 200;
    u64 n = prng_below(&run->prng, moment == MOMENT_EVENT ? 5 * n_max : n_max);
    cut = cut && crash_allowed(power);
    if (cut) crash_arm(power, moment, n);
    u64 refused = sim_fault_count(run->sim, SIM_FAULT_ALLOC);
    bool begun = process_begin();
    u64 deadline_ns = sim_now_ns(run->sim) + START_NS_MAX;
    while (server_alive() && !server_ready(run->server)) {
        if (!step()) return false;
        if (sim_now_ns(run->sim) > deadline_ns) {
            violated("start_hangs", "the node is not ready after %llu s",
                     (unsigned long long)(START_NS_MAX / NS_PER_S));
            return false;
        }
    }
    run->stats.starts_starved += sim_fault_count(run->sim, SIM_FAULT_ALLOC) > refused;
    if (server_alive()) {
        damage_note();
        damage_met();
        damage_recovery_end();
        sim_faults_clear(run->sim);
        return true;
    }
    if (cut && sim_crashed(run->sim)) { /* else it tells of an earlier crash */
        run->stats.recoveries_cut++;
        run->stats.recoveries_cut_at_events += moment == MOMENT_EVENT;
        run->stats.recoveries_cut_again += *cut_before;
        *cut_before = true;
        *(power ? &run->stats.power_cuts : &run->stats.kills) += 1;
        process_ended(false, power);
        return false;
    }
    *cut_before = false;
    start_failed(begun);
    return false;
}

/* No client comes before every key was read, where a crash may have taken something. */
static void
look(void)
{
    u64 deadline_ns = sim_now_ns(run->sim) + START_NS_MAX;
    while (server_alive() && !prefix_look_done())
        if (!step() || sim_now_ns(run->sim) > deadline_ns) return;
    if (server_alive()) prefix_check();
}

/* Brings a process up and judges the one before. false: it cannot be, or the run is over. */
static bool
process_start(void)
{
    bool cut_before = false;
    for (u32 tries = 0; tries < STARTS_MAX && !run_over(); tries++) {
        if (process_try(&cut_before)) {
            if (end.looked) look();
            if (end.any && !run_over()) check_epoch_end(end.orderly, end.power, end.ended_ns);
            end.any = false;
            run->epoch_ns = sim_now_ns(run->sim);
            run->serving = !run_over();
            return run->serving;
        }
        u64 until_ns = sim_now_ns(run->sim) + 100 * NS_PER_MS;
        while (sim_now_ns(run->sim) < until_ns && step()) {
        }
    }
    return false;
}

/* An orderly stop. false: it did not end, or not well. */
static bool
process_stop(void)
{
    u64 deadline_ns = sim_now_ns(run->sim) + STOP_NS_MAX;
    sim_node_stop(run->server_node);
    while (server_alive()) {
        if (!step()) return false;
        if (sim_now_ns(run->sim) > deadline_ns) {
            violated("stop_hangs", "the node has not stopped after %llu s",
                     (unsigned long long)(STOP_NS_MAX / NS_PER_S));
            return false;
        }
    }
    run->stats.stops++;
    bool well = ok(sim_node_result(run->server_node));
    if (!well && !run->faulty && !run->beyond)
        violated("stop", "the node stops with: %s", status_text(sim_node_result(run->server_node)));
    process_ended(well, false);
    return well;
}

/* ---- meddling ---- */

static void
clock_step(i64 ms)
{
    sim_node_clock_step(run->server_node, ms);
    clock_change(sim_now_ns(run->sim), sim_node_wall_ns(run->server_node), run->drift_ppm);
}

static void
clock_drift(i32 ppm)
{
    sim_node_clock_drift_set(run->server_node, ppm);
    run->drift_ppm = ppm;
    clock_change(sim_now_ns(run->sim), sim_node_wall_ns(run->server_node), ppm);
}

static void
meddle(void)
{
    struct prng *prng = &run->prng;
    const struct knobs *knobs = &run->knobs;
    if (knobs->clock_steps && prng_chance(prng, 1, 3)) {
        i64 ms = (i64)prng_below(prng, 20000) - 10000;
        if (prng_chance(prng, 1, 8)) ms *= 100000;
        if (sim_fault_inject(run->sim, SIM_FAULT_CLOCK_STEP)) clock_step(ms);
    }
    if (knobs->clock_drifts && prng_chance(prng, 1, 6)) {
        i32 ppm = (i32)prng_below(prng, 200000) - 100000;
        if (sim_fault_inject(run->sim, SIM_FAULT_CLOCK_DRIFT)) clock_drift(ppm);
    }
    if (knobs->space_shrinks && prng_chance(prng, 1, 4)) {
        struct sim_disk *disk = sim_node_disk(run->server_node);
        u64 more = prng_below(prng, MIB(4));
        if (prng_chance(prng, 1, 2)) {
            sim_disk_capacity_set(disk, GIB(16));
        } else if (sim_fault_inject(run->sim, SIM_FAULT_NO_SPACE)) {
            sim_disk_capacity_set(disk, sim_disk_used_bytes(disk) + more);
        }
    }
}

/* Budgets count stacks of fibers, too, which are not among the bytes of a process, and what is
 * reserved and not in use; and taking never passes a limit, so limits need no look. */
i64
memory_uncounted(const struct sim_node *node)
{
    u64 counted = 0;
    for (u32 i = 0; i < node->shard_count; i++) {
        const struct io_shard *shard = &node->shards[i].core;
        counted += shard->budget.used_bytes - shard->budget.spare_bytes -
                   (u64)shard->fiber_stacks_used * FIBER_STACK_CHARGE_BYTES;
    }
    return (i64)(sim_node_memory_bytes(node) - counted);
}

static void
memory_check(void)
{
    i64 uncounted = memory_uncounted(run->server_node);
    if (uncounted != 0)
        violated("memory", "of the process's %llu bytes its budgets do not count %lld",
                 (unsigned long long)sim_node_memory_bytes(run->server_node), (long long)uncounted);
}

/* Until the clients have asked for so much more, the time is over, or the process has ended. */
static void
work(u64 requests, u64 duration_ns)
{
    run->ops_goal = run->stats.requests + requests;
    u64 deadline_ns = sim_now_ns(run->sim) + duration_ns;
    u64 meddle_ns = sim_now_ns(run->sim);
    while (server_alive() && run->stats.requests < run->ops_goal &&
           sim_now_ns(run->sim) < deadline_ns) {
        if (!step()) return;
        if (sim_now_ns(run->sim) < meddle_ns) continue;
        meddle_ns = sim_now_ns(run->sim) + prng_range(&run->prng, 5, 300) * NS_PER_MS;
        if (!run->calm) meddle();
        if (server_alive()) memory_check();
    }
}

/* ---- phases ---- */

static void
phase(void)
{
    struct prng *prng = &run->prng;
    if (!server_alive() && !process_start()) return;
    u64 requests = MAX(1u, run->knobs.ops / run->knobs.phases); /* --ops may be less */
    u64 draw = prng_below(prng, 100);
    bool power = draw < run->knobs.power_part;
    bool kill = !power && draw < run->knobs.power_part + run->knobs.kill_part;
    enum moment moment = (enum moment)prng_below(prng, MOMENT_COUNT);
    u64 n = prng_below(prng, 1 + requests * prng_range(prng, 1, 3));
    if (moment == MOMENT_EVENT) n = n * REQUEST_EVENTS / 2 + prng_below(prng, REQUEST_EVENTS);
    bool crashes = (power || kill) && crash_allowed(power);
    bool asked = crashes && moment == MOMENT_ASKED, armed = crashes && !asked;
    if (armed) crash_arm(power, moment, n);
    work(asked ? prng_range(prng, 1, requests) : requests, run->knobs.phase_ns_max);
    if (run_over()) return;
    if (!server_alive()) {
        bool by_us = armed && sim_crashed(run->sim);
        run->stats.crashes_at_events += by_us && moment == MOMENT_EVENT;
        if (by_us) *(power ? &run->stats.power_cuts : &run->stats.kills) += 1;
        if (!by_us && !run->faulty && !run->beyond)
            violated("ended", "the node has ended by itself: %s", server_failure(run->server));
        process_ended(false, by_us && power);
    } else if (crashes) {
        crash(power);
        process_ended(false, power);
    } else if (!power && !kill && prng_chance(prng, 3, 4)) {
        process_stop();
    } /* else it lives on */
}

/* ---- the calm ---- */

static void
calm_begin(void)
{
    sim_faults_clear(run->sim);
    sim_faults_end(run->sim);
    sim_disk_capacity_set(sim_node_disk(run->server_node), GIB(16));
    run->calm = true;
    run->calm_ns = sim_now_ns(run->sim);
}

/* No client waits for anything any more. */
static bool
all_answered(void)
{
    for (u32 i = 0; i < run->client_count; i++) {
        const struct client *client =
            run->clients[i]; /* what is asked again later is not asked now */
        if (client->pending_count > 0) return false;
    }
    return true;
}

/* Nobody asks for more now; what was asked must be answered, too, not only most of it. */
static enum work_state
answers_awaited(u32 round, u64 answers_before, const char *when)
{
    u64 deadline_ns = sim_now_ns(run->sim) + CALM_NS_MAX;
    for (;;) {
        bool answered = run->stats.answers != answers_before;
        enum work_state state = work_state_of(round, !all_answered(), answered);
        if (state != WORK_WAITS || run_over() || !server_alive() || !step()) return state;
        if (sim_now_ns(run->sim) > deadline_ns) violated("no_answer", "%s a client waits", when);
    }
}

static void
work_must_be_done(u64 requests, const char *when)
{
    u64 answers = run->stats.answers;
    enum work_state state = WORK_AGAIN;
    for (u32 round = 1; state == WORK_AGAIN && !run_over(); round++) {
        work(requests, CALM_NS_MAX);
        if (run_over()) return;
        bool asked = run->stats.requests >= run->ops_goal;
        if (asked && server_alive()) state = answers_awaited(round, answers, when);
        if (run_over()) return;
        if (!server_alive())
            violated("ended", "the node has ended by itself %s: %s", when,
                     server_failure(run->server));
        else if (!asked)
            violated("no_progress", "%llu s %s, and the clients have not asked for their work",
                     (unsigned long long)(CALM_NS_MAX / NS_PER_S), when);
    }
    if (state == WORK_UNANSWERED)
        violated("no_progress", "%s clients have asked %u times for %llu, and got no answer", when,
                 WORK_ROUNDS_MAX, (unsigned long long)requests);
}

static bool
audit_done(void)
{
    return run->audited == run->key_count;
}

/* Everything is read once. */
static void
audit(void)
{
    u64 deadline_ns = sim_now_ns(run->sim) + CALM_NS_MAX;
    run->audited = 0;
    memset(run->audit_seen, 0, run->key_count);
    run->audits = true;
    damage_met();
    while (!audit_done() && server_alive() && sim_now_ns(run->sim) < deadline_ns)
        if (!step()) return;
    run->audits = false;
    if (!audit_done() && !run_over())
        violated("no_audit", "%u of %u keys could be read", run->audited, run->key_count);
}

static void
calm(void)
{
    u64 requests = 60 + run->knobs.ops / (run->options->mode == RUN_LIVENESS ? 1 : 10);
    calm_begin();
    if (!server_alive() && !process_start()) {
        if (!run_over() && !damage_anywhere())
            violated("start", "the node does not start, though nothing fails any more");
        return;
    }
    run->faulty = false;
    work_must_be_done(requests, "after the last fault");
    /* What the faults did to a store, such as a failed log, is over with a restart. */
    run->faulty = true;
    if (!run_over()) process_stop();
    run->faulty = false;
    /* Rare paths that are made common refuse, too: pressure that nobody makes. */
    sim_buggify_set(run->sim, false);
    if (run_over() || !process_start()) return;
    run->healthy = true;
    u64 refusals = run->stats.refusals_unharmed;
    u64 made_common = sim_buggify_count(run->sim);
    work_must_be_done(requests, "after a restart without faults");
    if (!run_over()) audit();
    made_common = sim_buggify_count(run->sim) - made_common;
    if (made_common != 0 && !run_over())
        violated("rare_paths", "%llu were made common in a life that is judged by its refusals",
                 (unsigned long long)made_common);
    refusals = run->stats.refusals_unharmed - refusals;
    if (refusals > requests / REFUSED_ONE_IN)
        violated("refusals", "of %llu requests without faults %llu were refused",
                 (unsigned long long)requests, (unsigned long long)refusals);
}

/* ---- the end ---- */

static void
damage_found(void *arg, const char *file, u64 offset, const char *what)
{
    (void)arg;
    char path[512];
    snprintf(path, sizeof(path), "%s", file);
    if (run->beyond && damage_in_file(path)) return;
    violated("verify", "%s is damaged at %llu: %s", file, (unsigned long long)offset, what);
}

static MAY_YIELD status
verify_main(void *arg)
{
    (void)arg;
    u64 files, bytes;
    return store_verify(DATA_DIR, damage_found, NULL, &files, &bytes);
}

static void
verify(void)
{
    struct io_node_config node = {
        .shard_count = 1, .memory_bytes = MIB(64), .shard_main = verify_main};
    status st = sim_node_start(run->server_node, &node);
    CHECK(ok(st));
    while (server_alive())
        if (!step()) return;
    st = sim_node_result(run->server_node);
    if (!ok(st) && !damage_anywhere())
        violated("verify", "verification ends with: %s", status_text(st));
}

static void
close_down(void)
{
    if (server_alive() && !process_stop()) return;
    run->stop = true;
    if (end.any) check_epoch_end(end.orderly, end.power, end.ended_ns);
    if (!run_over()) verify();
}

/* ---- the whole ---- */

static void
machines_start(void)
{
    static u32 numbers[4];
    for (u32 i = 0; i < run->knobs.machines; i++) {
        char host[24];
        snprintf(host, sizeof(host), "10.0.1.%u", i + 1);
        run->machines[i] = sim_node_new(run->sim, host);
        numbers[i] = i;
        struct io_node_config config = {
            .shard_count = 1,
            .memory_bytes = MIB(256),
            .shard_main = clients_shard_main,
            .arg = &numbers[i],
        };
        status st = sim_node_start(run->machines[i], &config);
        CHECK(ok(st));
    }
}

static bool
may_fail(const struct sim_options *sim)
{
    const struct sim_disk_options *disk = &sim->disk;
    return disk->read_error_ppm + disk->write_error_ppm + disk->sync_error_ppm +
                   disk->look_error_ppm + disk->name_error_ppm + disk->no_space_ppm +
                   sim->alloc_ppm >
               0 ||
           run->knobs.space_shrinks;
}

static void
begin(const struct run_options *options)
{
    run = calloc(1, sizeof(*run));
    CHECK(run != NULL);
    run->options = options;
    knobs_draw(&run->knobs, &run->sim_options, options);
    prng_init(&run->prng, options->seed * 104729 + 5);
    memset(&end, 0, sizeof(end));
    CHECK(options->flaw != RUN_FLAW_EARLY_CHECK);
    run->sim = sim_new(&run->sim_options);
    sim_trace_print_set(run->sim, options->trace);
    sim_audits_set(run->sim, SIM_AUDIT_ONE_IN);
    sim_leaks_forbid(run->sim);
    run->server_node = sim_node_new(run->sim, SERVER_HOST);
    run->shards = run->knobs.shards;
    run->faulty = may_fail(&run->sim_options);
    run->beyond = options->mode == RUN_BEYOND;
    damage_init();
    values_init(&run->values);
    run->model = model_new(&run->values);
    if (run->beyond) model_past_kept_set(run->model);
    clock_begin(sim_now_ns(run->sim), sim_node_wall_ns(run->server_node));
    model_clock_set(run->model, clock_least, clock_most);
    /* A clock that steps back brings expired values back, as long as nothing has dropped them. */
    if (run->knobs.clock_steps && !(options->off >> SIM_FAULT_CLOCK_STEP & 1))
        model_time_back_set(run->model);
    universe_make();
    clients_make();
    machines_start();
}

static void
cluster_begin(const struct run_options *options)
{
    run = calloc(1, sizeof(*run));
    CHECK(run != NULL);
    run->options = options;
    prng_init(&run->prng, options->seed * 104729 + 6);
}

void
history_run(const struct run_options *options, u64 *hash_out)
{
    if (run_of_cluster(options->mode)) {
        cluster_begin(options);
        cluster_history_run();
    } else {
        begin(options);
        for (u32 i = 0; i < run->knobs.phases && !run_over(); i++)
            phase();
        if (!run_over()) calm();
        if (!run_over()) close_down();
    }
    run->stats.virtual_ns = sim_now_ns(run->sim);
    run->stats.events = sim_event_count(run->sim);
    *hash_out = sim_trace_hash(run->sim);
}

void
history_free(void)
{
    if (run->cluster != NULL) {
        cluster_history_free();
        free(run);
        run = NULL;
        return;
    }
    run->stop = true;
    clients_free();
    prefix_free();
    sim_free(run->sim);
    if (run->server != NULL) server_free(run->server);
    universe_free();
    model_free(run->model);
    values_deinit(&run->values);
    free(run);
    run = NULL;
}
