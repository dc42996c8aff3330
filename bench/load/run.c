/* SPDX-License-Identifier: MIT
 *
 * run.c -- one measurement, driven from the main thread.
 *
 * The workers go on by themselves; this thread only tells them when a phase begins, looks once a
 * while whether they have finished, and takes a copy of their counts each second. It sleeps in
 * between, so that its CPU time, which counts as the client's, does not matter.
 */
#include "load/run.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

#include "io/io.h"

#define LOOK_NS    (10 * NS_PER_MS)
#define LEAD_NS    (5 * NS_PER_MS) /* between telling the workers and the first request */
#define SPIN_US    50u             /* of the open loop: see the end of start_node */
#define SERIES_MAX 1000000u        /* 11 days of seconds */
/* Filling and counted runs have no end in time; without any reply for so long they are given up. */
#define GIVE_UP_TIMEOUTS 3u

struct run {
    const struct run_input *input;
    const struct settings *settings;
    struct plan plan;
    struct values values;
    u32 worker_count;
    struct worker *workers;
    struct io_node *node;
    struct sample *samples;
    struct latency *before, *now, *between; /* of the time series */
    struct result *result;
};

static void
sleep_until(u64 until_ns)
{
    u64 now_ns = clock_now_ns();
    if (until_ns <= now_ns) return;
    u64 left_ns = until_ns - now_ns;
    struct timespec left = {.tv_sec = (time_t)(left_ns / NS_PER_S),
                            .tv_nsec = (long)(left_ns % NS_PER_S)};
    nanosleep(&left, NULL); /* a signal ends it early: that is what is wanted */
}

/* ---- birth and death ---- */

static bool
run_init(struct run *run, const struct run_input *input, struct result *out)
{
    const struct settings *settings = input->settings;
    *run = (struct run){.input = input, .settings = settings, .result = out};
    u32 id = 0;
    while ((id & 0xffffffu) == 0)
        if (getrandom(&id, sizeof(id), 0) != sizeof(id) && errno != EINTR) return false;
    values_init(&run->values, settings->value_min, settings->value_max,
                settings->compressible_percent, id);
    run->plan = (struct plan){
        .settings = settings, .values = &run->values, .port = input->port, .places = input->places};
    snprintf(run->plan.host, sizeof(run->plan.host), "%s", input->host);
    if (settings->verify == VERIFY_STRICT) {
        run->plan.sent = calloc(settings->key_count, sizeof(*run->plan.sent));
        run->plan.acknowledged = calloc(settings->key_count, sizeof(*run->plan.acknowledged));
        if (run->plan.sent == NULL || run->plan.acknowledged == NULL) return false;
    }
    run->worker_count = (u32)settings->threads;
    run->workers = calloc(run->worker_count, sizeof(*run->workers));
    run->samples = calloc(run->worker_count, sizeof(*run->samples));
    run->before = calloc(1, sizeof(struct latency));
    run->now = calloc(1, sizeof(struct latency));
    run->between = calloc(1, sizeof(struct latency));
    if (run->workers == NULL || run->samples == NULL || run->before == NULL || run->now == NULL ||
        run->between == NULL)
        return false;
    for (u32 i = 0; i < run->worker_count; i++)
        if (!worker_init(&run->workers[i], &run->plan, i, run->worker_count)) return false;
    return true;
}

static void
run_deinit(struct run *run)
{
    for (u32 i = 0; i < run->worker_count && run->workers != NULL; i++)
        worker_deinit(&run->workers[i]);
    free(run->workers);
    free(run->samples);
    free(run->before);
    free(run->now);
    free(run->between);
    free(run->plan.sent);
    free(run->plan.acknowledged);
}

/* What the connections of a worker may have under way, with plenty to spare: src/io gives output an
 * eighth of the memory. */
static u64
memory_of_worker(const struct run *run)
{
    const struct settings *settings = run->settings;
    u64 connections = settings->connections / settings->threads + 1;
    u64 batch = (u64)MAX(settings->depth, LOAD_DEPTH) * (settings->value_max + 1024ull);
    return MIB(64) + connections * (batch + KIB(64)) * 24;
}

static bool
start_node(struct run *run)
{
    const struct settings *settings = run->settings;
    struct io_node_config config = {
        .shard_count = run->worker_count,
        .cores = settings->core_count > 0 ? settings->core_list : NULL,
        .memory_bytes = memory_of_worker(run) * run->worker_count,
        /* An open loop that slept until the next request is due would be late by what waking takes.
         * A closed loop has nothing to do but wait. */
        .spin_us = settings->rate > 0 ? SPIN_US : 0,
        .shard_main = worker_main,
        .arg = run->workers};
    return ok(io_node_start(&config, &run->node));
}

static void
on_all(struct run *run, void (*fn)(void *arg))
{
    for (u32 i = 0; i < run->worker_count; i++)
        (void)!ok(io_node_call(run->node, i, fn, &run->workers[i]));
}

/* ---- looking ---- */

static bool
all_finished(const struct run *run)
{
    for (u32 i = 0; i < run->worker_count; i++)
        if (!atomic_load(&run->workers[i].finished)) return false;
    return true;
}

struct view {
    struct counters counters;
    u64 errors, wrong;
};

static void
counters_add(struct counters *target, const struct counters *source)
{
    target->answered += source->answered;
    target->last_ns = MAX(target->last_ns, source->last_ns);
    target->loaded += source->loaded;
    target->misses += source->misses;
    target->entries += source->entries;
    target->verified += source->verified;
    target->sent_bytes += source->sent_bytes;
    target->received_bytes += source->received_bytes;
    target->reconnects += source->reconnects;
}

/* Sums what the workers have counted; run->now receives their latencies. */
static struct view
look(struct run *run)
{
    struct view view = {0};
    memset(run->now, 0, sizeof(*run->now));
    for (u32 i = 0; i < run->worker_count; i++) {
        struct sample *sample = &run->samples[i];
        sample->worker = &run->workers[i];
        if (!ok(io_node_call(run->node, i, worker_sample, sample))) continue;
        counters_add(&view.counters, &sample->counters);
        view.errors += sample->errors;
        view.wrong += sample->wrong;
        latency_merge(run->now, &sample->latency);
    }
    return view;
}

static void
tell(struct run *run, const char *phase, const struct second *now, double total_s, u64 errors,
     bool final)
{
    const struct run_input *input = run->input;
    if (input->progress != NULL)
        input->progress(input->progress_arg, phase, now, total_s, errors, final);
}

static bool
interrupted(struct run *run)
{
    if (run->input->interrupted == NULL || !atomic_load(run->input->interrupted)) return false;
    run->result->stopped = true;
    return true;
}

static bool
connected(struct run *run, char *problem, size_t problem_size)
{
    on_all(run, worker_connect);
    for (u32 i = 0; i < run->worker_count; i++) {
        if (run->workers[i].problem[0] == '\0') continue;
        snprintf(problem, problem_size, "%s", run->workers[i].problem);
        return false;
    }
    return true;
}

/* ---- phases ---- */

/* Watches bytes that come in; says when none have for too long. */
struct patience {
    u64 seen_bytes, seen_ns;
};

static bool
patience_over(struct run *run, struct patience *patience, u64 received_bytes, u64 now_ns)
{
    if (received_bytes != patience->seen_bytes || patience->seen_ns == 0)
        *patience = (struct patience){.seen_bytes = received_bytes, .seen_ns = now_ns};
    u64 timeout_ns = run->settings->timeout_ms * NS_PER_MS * GIVE_UP_TIMEOUTS;
    if (now_ns - patience->seen_ns < timeout_ns) return false;
    static const char name[] = "gave up", text[] = "no reply at all for three timeouts";
    errors_add(&run->result->errors, 1, BYTES_LITERAL(name), BYTES_LITERAL(text));
    return true;
}

/* False: it did not get to the end. */
static bool
fill(struct run *run)
{
    struct patience patience = {0};
    u64 begin_ns = clock_now_ns(), told_ns = begin_ns;
    on_all(run, worker_load);
    bool whole = true;
    while (!all_finished(run)) {
        sleep_until(clock_now_ns() + LOOK_NS);
        u64 now_ns = clock_now_ns();
        bool stop = interrupted(run);
        if (now_ns - told_ns >= NS_PER_S || stop) {
            struct view view = look(run);
            struct second second = {.at_s = (double)(now_ns - begin_ns) / 1e9,
                                    .length_s = (double)(now_ns - told_ns) / 1e9,
                                    .answered = view.counters.loaded};
            tell(run, "load", &second, 0, view.errors, false);
            told_ns = now_ns;
            stop = stop || patience_over(run, &patience, view.counters.received_bytes, now_ns);
        }
        if (stop) {
            atomic_store(&run->plan.stop, true);
            whole = false;
            break;
        }
    }
    struct view view = look(run);
    run->result->load_count = view.counters.loaded;
    run->result->load_s = (double)(clock_now_ns() - begin_ns) / 1e9;
    struct second second = {.at_s = run->result->load_s, .answered = view.counters.loaded};
    tell(run, "load", &second, 0, 0, true);
    return whole;
}

static void
series_add(struct run *run, const struct second *second)
{
    struct result *result = run->result;
    if (result->series_count == SERIES_MAX) return;
    if ((result->series_count & (result->series_count + 1)) == 0 || result->series == NULL) {
        size_t room = result->series == NULL ? 64 : (size_t)(result->series_count + 1) * 2;
        struct second *grown = realloc(result->series, room * sizeof(*grown));
        if (grown == NULL) return;
        result->series = grown;
    }
    result->series[result->series_count++] = *second;
}

struct cpu {
    bool server_known;
    u64 server_ns, client_ns;
};

static struct cpu
cpu_now(const struct run *run)
{
    struct cpu cpu = {.client_ns = own_cpu_ns()};
    u64 pid = run->input->server_pid;
    cpu.server_known = pid > 0 && process_cpu_ns(pid, &cpu.server_ns);
    return cpu;
}

/* The measured time, from its begin to the last reply. */
static void
measure(struct run *run)
{
    const struct settings *settings = run->settings;
    struct result *result = run->result;
    struct plan *plan = &run->plan;
    plan->begin_ns = clock_now_ns() + LEAD_NS;
    atomic_store(&plan->measure_ns, PLAN_NEVER);
    atomic_store(&plan->end_ns, PLAN_NEVER);
    on_all(run, worker_run);
    u64 measure_ns = MAX(plan->begin_ns, clock_now_ns()) + settings->warmup_ms * NS_PER_MS;
    atomic_store(&plan->end_ns, measure_ns + settings->duration_ms * NS_PER_MS);
    atomic_store(&plan->measure_ns, measure_ns);
    while (clock_now_ns() < measure_ns && !interrupted(run) && !all_finished(run))
        sleep_until(MIN(measure_ns, clock_now_ns() + LOOK_NS));

    struct cpu cpu = cpu_now(run);
    struct view last = look(run);
    *run->before = *run->now;
    double total_s = settings->count > 0 ? 0 : (double)settings->duration_ms / 1e3;
    struct patience patience = {0};
    u64 told_ns = measure_ns;
    bool finished = false;
    while (!finished) {
        finished = all_finished(run);
        if (!finished) sleep_until(MIN(clock_now_ns() + LOOK_NS, told_ns + NS_PER_S));
        u64 now_ns = clock_now_ns();
        if (interrupted(run)) atomic_store(&plan->stop, true);
        if (now_ns < told_ns + NS_PER_S && !finished) continue;
        struct view view = look(run);
        latency_between(run->between, run->before, run->now);
        struct second second = {
            .at_s = (double)(now_ns - measure_ns) / 1e9,
            .length_s = (double)(now_ns - told_ns) / 1e9,
            .answered = view.counters.answered - last.counters.answered,
            .errors = view.errors + view.wrong - last.errors - last.wrong,
            .p50_ns = latency_percentile_ns(run->between, 0.5),
            .p99_ns = latency_percentile_ns(run->between, 0.99),
            .max_ns = run->between->max_ns,
        };
        if (second.answered > 0 || second.errors > 0 || !finished) series_add(run, &second);
        tell(run, "run", &second, total_s, view.errors + view.wrong, finished);
        told_ns = finished || now_ns > told_ns + 2 * NS_PER_S ? now_ns : told_ns + NS_PER_S;
        *run->before = *run->now;
        last = view;
        if (settings->count > 0 &&
            patience_over(run, &patience, view.counters.received_bytes, now_ns))
            break;
    }
    struct cpu after = cpu_now(run);
    result->client_cpu_known = true;
    result->client_cpu_s = (double)(after.client_ns - cpu.client_ns) / 1e9;
    result->server_cpu_known = cpu.server_known && after.server_known;
    if (result->server_cpu_known)
        result->server_cpu_s = (double)(after.server_ns - cpu.server_ns) / 1e9;
}

/* ---- what was found; the workers have ended ---- */

static bool
collect(struct run *run)
{
    struct result *result = run->result;
    result->total = calloc(1, sizeof(struct latency));
    result->late = calloc(1, sizeof(struct latency));
    if (result->total == NULL || result->late == NULL) return false;
    for (u32 i = 0; i < run->worker_count; i++) {
        const struct worker *worker = &run->workers[i];
        counters_add(&result->counters, &worker->counters);
        errors_merge(&result->errors, &worker->errors);
        errors_merge(&result->wrong, &worker->wrong);
        latency_merge(result->late, &worker->late);
        for (u32 op = 0; op < OP_COUNT; op++) {
            if (worker->latency[op] == NULL || latency_count(worker->latency[op]) == 0) continue;
            if (result->latency[op] == NULL)
                result->latency[op] = calloc(1, sizeof(struct latency));
            if (result->latency[op] == NULL) return false;
            latency_merge(result->latency[op], worker->latency[op]);
            if (op != OP_RMW) latency_merge(result->total, worker->latency[op]);
        }
    }
    u64 measure_ns = plan_measure_ns(&run->plan);
    if (result->counters.last_ns > measure_ns)
        result->elapsed_s = (double)(result->counters.last_ns - measure_ns) / 1e9;
    return true;
}

static enum run_outcome
run_phases(struct run *run, char *problem, size_t problem_size)
{
    const struct settings *settings = run->settings;
    if (!connected(run, problem, problem_size)) return RUN_UNREACHABLE;
    if (settings->load) {
        bool vanish = settings->ttl_ms > 0 || settings_has(settings, OP_DELETE);
        atomic_store(&run->plan.all_there, !vanish);
        if (!fill(run)) return RUN_DONE;
    }
    if (!interrupted(run)) measure(run);
    return RUN_DONE;
}

enum run_outcome
run_measure(const struct run_input *input, struct result *out, char *problem, size_t problem_size)
{
    *out = (struct result){.settings = *input->settings};
    snprintf(out->name, sizeof(out->name), "%s", input->name);
    struct run *run = malloc(sizeof(*run));
    enum run_outcome outcome = RUN_FAILED;
    snprintf(problem, problem_size, "out of memory");
    if (run == NULL) return RUN_FAILED;
    if (run_init(run, input, out)) {
        if (start_node(run)) {
            outcome = run_phases(run, problem, problem_size);
            io_node_stop(run->node);
            if (!ok(io_node_join(run->node))) outcome = RUN_FAILED;
            if (outcome == RUN_DONE && !collect(run)) outcome = RUN_FAILED;
        } else {
            snprintf(problem, problem_size, "io_uring cannot be set up");
        }
    }
    run_deinit(run);
    free(run);
    return outcome;
}

void
result_free(struct result *result)
{
    for (u32 op = 0; op < OP_COUNT; op++)
        free(result->latency[op]);
    free(result->total);
    free(result->late);
    free(result->series);
    *result = (struct result){0};
}
