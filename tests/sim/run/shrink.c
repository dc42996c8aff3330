/* SPDX-License-Identifier: MIT
 *
 * shrink.c -- less of the same failure (after Zeller's delta debugging).
 *
 * What can be taken away without changing the rest: a family of faults, the requests behind the
 * last that matters, single faults. A candidate runs in a process of its own, because it may crash
 * or hang, and is kept when it violates the same rule.
 */
#include "run.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define RULE_BYTES        32u
#define CANDIDATE_SECONDS 60u
#define CANDIDATES_MAX    400u

struct outcome {
    char rule[RULE_BYTES]; /* "": nothing was violated */
    u64 requests;
    u32 fault_count;
    struct sim_fault_id faults[RUN_SKIPS_MAX];
};

static u32 candidates;

static void
fault_keep(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail)
{
    struct outcome *outcome = arg;
    (void)time_ns;
    (void)detail;
    if (outcome->fault_count < RUN_SKIPS_MAX) outcome->faults[outcome->fault_count++] = id;
}

static void
child_main(const struct run_options *options, int to)
{
    static struct outcome outcome;
    u64 hash;
    if (freopen("/dev/null", "w", stderr) == NULL) _exit(1);
    report_watchdog_start(CANDIDATE_SECONDS);
    history_run(options, &hash);
    if (run->rule != NULL) snprintf(outcome.rule, sizeof(outcome.rule), "%s", run->rule);
    outcome.requests = run->stats.requests;
    sim_fault_each(run->sim, fault_keep, &outcome);
    const char *at = (const char *)&outcome;
    for (size_t left = sizeof(outcome); left > 0;) {
        ssize_t n = write(to, at, left);
        if (n <= 0) break;
        at += n;
        left -= (size_t)n;
    }
    _exit(0);
}

/* What becomes of a run with these options; "crash" when its process ends without a word. */
static struct outcome *
try_options(const struct run_options *options)
{
    static struct outcome outcome;
    int ends[2];
    memset(&outcome, 0, sizeof(outcome));
    candidates++;
    if (pipe(ends) != 0) exit(2);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        child_main(options, ends[1]);
    }
    close(ends[1]);
    char *at = (char *)&outcome;
    size_t left = sizeof(outcome);
    while (left > 0) {
        ssize_t n = read(ends[0], at, left);
        if (n <= 0) break;
        at += n;
        left -= (size_t)n;
    }
    close(ends[0]);
    waitpid(child, NULL, 0);
    if (left > 0) {
        memset(&outcome, 0, sizeof(outcome));
        snprintf(outcome.rule, sizeof(outcome.rule), "crash");
    }
    return &outcome;
}

/* With no more requests than that; then it is less. */
static bool
still_fails(const struct run_options *options, const char *rule, u64 *requests)
{
    if (candidates >= CANDIDATES_MAX) return false;
    const struct outcome *outcome = try_options(options);
    if (strcmp(outcome->rule, rule) != 0 || outcome->requests > *requests) return false;
    *requests = outcome->requests;
    return true;
}

/* A run that goes on for longer without a fault is no smaller. Returns the requests of what is
 * left. */
static u64
families_off(struct run_options *options, const char *rule, u64 requests)
{
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++) {
        options->off |= 1ull << i;
        const struct outcome *outcome = try_options(options);
        if (strcmp(outcome->rule, rule) == 0 && outcome->requests <= requests)
            requests = outcome->requests;
        else
            options->off &= ~(1ull << i);
    }
    return requests;
}

/* The least number of requests, as far as halving finds it. */
static void
requests_fewer(struct run_options *options, const char *rule, u64 requests)
{
    u64 low = 0, high = requests; /* high fails; as an option it counts for each life */
    struct run_options candidate = *options;
    candidate.ops = high;
    if (!still_fails(&candidate, rule, &requests)) return;
    while (high - low > MAX(high / 16, 1u)) {
        candidate.ops = low + (high - low) / 2;
        if (still_fails(&candidate, rule, &requests))
            high = candidate.ops;
        else
            low = candidate.ops;
    }
    options->ops = high;
}

static int
id_order(const void *a, const void *b)
{
    const struct sim_fault_id *x = a, *y = b;
    if (x->family != y->family) return x->family < y->family ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* Skips halves, quarters, ... of the faults, as many as can be missed. */
static void
faults_fewer(struct run_options *options, const char *rule)
{
    static struct sim_fault_id faults[RUN_SKIPS_MAX];
    const struct outcome *outcome = try_options(options);
    u64 requests = outcome->requests;
    u32 count = outcome->fault_count;
    memcpy(faults, outcome->faults, count * sizeof(faults[0]));
    for (u32 part = (count + 1) / 2; part > 0; part = part == 1 ? 0 : (part + 1) / 2) {
        for (u32 from = 0; from < count;) {
            static struct run_options candidate;
            u32 size = MIN(part, count - from);
            candidate = *options;
            if (candidate.skip_count + size > RUN_SKIPS_MAX) return;
            memcpy(&candidate.skips[candidate.skip_count], &faults[from], size * sizeof(faults[0]));
            candidate.skip_count += size;
            qsort(candidate.skips, candidate.skip_count, sizeof(faults[0]), id_order);
            const struct outcome *left = try_options(&candidate);
            if (strcmp(left->rule, rule) == 0 && left->requests <= requests) {
                *options = candidate;
                requests = left->requests;
                memmove(&faults[from], &faults[from + size],
                        (count - from - size) * sizeof(faults[0]));
                count -= size;
            } else {
                from += size;
            }
        }
    }
}

int
shrink_main(struct run_options *options)
{
    static struct outcome first;
    first = *try_options(options);
    if (first.rule[0] == '\0') {
        printf("seed %llu violates nothing\n", (unsigned long long)options->seed);
        return 0;
    }
    printf("rule %s, %llu requests, %u faults\n", first.rule, (unsigned long long)first.requests,
           first.fault_count);
    fflush(stdout);
    u64 requests = families_off(options, first.rule, first.requests);
    requests_fewer(options, first.rule, MAX(requests, 1u));
    faults_fewer(options, first.rule);
    first = *try_options(options);
    printf("after %u runs: %llu requests, %u faults\n", candidates,
           (unsigned long long)first.requests, first.fault_count);
    report_replay_command(options, stdout);
    return 1;
}
