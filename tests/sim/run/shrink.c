/* SPDX-License-Identifier: MIT
 *
 * shrink.c -- less of the same failure (after Zeller's delta debugging).
 *
 * What can be taken away without changing the rest: a family of faults, the requests behind the
 * last that matters, single faults. A candidate runs in a process of its own, because it may crash
 * or hang, and is kept when it violates the same rule; a crash, when it is by the same signal with
 * the same words of a failed check. What became of it lies in memory that both processes share: one
 * that crashes writes it, too, from the signal's handler.
 */
#include "run.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define RULE_BYTES        32u
#define CHECK_BYTES       256u
#define CANDIDATE_SECONDS 60u
#define CANDIDATES_MAX    400u

struct outcome {
    char rule[RULE_BYTES];   /* "": nothing was violated */
    i32 signal;              /* of a crash; else 0 */
    char check[CHECK_BYTES]; /* what a failed check said; else "" */
    u64 requests;
    u32 fault_count;
    struct sim_fault_id faults[RUN_SKIPS_MAX];
};

static u32 candidates;
static struct outcome *told; /* by the candidate that runs */
static int said;             /* its stderr: a file */

static void
fault_keep(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail)
{
    struct outcome *outcome = arg;
    (void)time_ns;
    (void)detail;
    if (outcome->fault_count < RUN_SKIPS_MAX) outcome->faults[outcome->fault_count++] = id;
}

/* In the candidate's process, at its end, whatever that is. */
static void
outcome_tell(i32 signal)
{
    told->signal = signal;
    if (run->rule != NULL) snprintf(told->rule, sizeof(told->rule), "%s", run->rule);
    told->requests = run->stats.requests;
    if (run->sim != NULL) sim_fault_each(run->sim, fault_keep, told);
}

static void
child_main(const struct run_options *options)
{
    u64 hash;
    if (dup2(said, STDERR_FILENO) < 0) _exit(2);
    report_crash_set(outcome_tell);
    report_watchdog_start(CANDIDATE_SECONDS);
    history_run(options, &hash);
    outcome_tell(0);
    _exit(0);
}

/* The line of a check that failed; it comes before the report. */
static void
check_read(struct outcome *outcome)
{
    static const char begin[] = "distkv: check failed: ";
    static char text[64u << 10];
    ssize_t size = pread(said, text, sizeof(text) - 1, 0);
    text[MAX(size, 0)] = '\0';
    const char *at = strstr(text, begin);
    if (at == NULL) return;
    at += sizeof(begin) - 1;
    snprintf(outcome->check, sizeof(outcome->check), "%.*s", (int)strcspn(at, "\n"), at);
}

/* What becomes of a run with these options. */
static struct outcome *
try_options(const struct run_options *options)
{
    static struct outcome outcome;
    int ended;
    candidates++;
    memset(told, 0, sizeof(*told));
    fflush(NULL);
    if (ftruncate(said, 0) != 0 || lseek(said, 0, SEEK_SET) != 0) exit(2);
    pid_t child = fork();
    if (child < 0) exit(2);
    if (child == 0) child_main(options);
    if (waitpid(child, &ended, 0) != child) exit(2);
    outcome = *told;
    if (WIFSIGNALED(ended)) { /* not even its handler came to an end */
        snprintf(outcome.rule, sizeof(outcome.rule), "crash");
        outcome.signal = WTERMSIG(ended);
    }
    if (outcome.signal != 0) check_read(&outcome);
    return &outcome;
}

static bool
fails_as(const struct outcome *a, const struct outcome *b)
{
    return strcmp(a->rule, b->rule) == 0 && a->signal == b->signal &&
           strcmp(a->check, b->check) == 0;
}

/* With no more requests than that; then it is less. */
static bool
still_fails(const struct run_options *options, const struct outcome *first, u64 *requests)
{
    if (candidates >= CANDIDATES_MAX) return false;
    const struct outcome *outcome = try_options(options);
    if (!fails_as(outcome, first) || outcome->requests > *requests) return false;
    *requests = outcome->requests;
    return true;
}

/* A run that goes on for longer without a fault is no smaller. Returns the requests of what is
 * left. */
static u64
families_off(struct run_options *options, const struct outcome *first, u64 requests)
{
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++) {
        options->off |= 1ull << i;
        const struct outcome *outcome = try_options(options);
        if (fails_as(outcome, first) && outcome->requests <= requests)
            requests = outcome->requests;
        else
            options->off &= ~(1ull << i);
    }
    return requests;
}

/* The least number of requests, as far as halving finds it. */
static void
requests_fewer(struct run_options *options, const struct outcome *first, u64 requests)
{
    u64 low = 0, high = requests; /* high fails; as an option it counts for each life */
    struct run_options candidate = *options;
    candidate.ops = high;
    if (!still_fails(&candidate, first, &requests)) return;
    while (high - low > MAX(high / 16, 1u)) {
        candidate.ops = low + (high - low) / 2;
        if (still_fails(&candidate, first, &requests))
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
faults_fewer(struct run_options *options, const struct outcome *first)
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
            if (fails_as(left, first) && left->requests <= requests) {
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
    told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    said = memfd_create("said", MFD_CLOEXEC);
    if (told == MAP_FAILED || said < 0) {
        fprintf(stderr, "distkv-sim: no memory or no file for what a run says\n");
        return 2;
    }
    options->trace = options->log = false;
    first = *try_options(options);
    if (first.rule[0] == '\0') {
        printf("seed %llu violates nothing\n", (unsigned long long)options->seed);
        return 0;
    }
    printf("rule %s, %llu requests, %u faults\n", first.rule, (unsigned long long)first.requests,
           first.fault_count);
    if (first.signal != 0) printf("signal %d %s\n", first.signal, first.check);
    fflush(stdout);
    u64 requests = families_off(options, &first, first.requests);
    requests_fewer(options, &first, MAX(requests, 1u));
    faults_fewer(options, &first);
    const struct outcome *last = try_options(options);
    printf("after %u runs: %llu requests, %u faults\n", candidates,
           (unsigned long long)last->requests, last->fault_count);
    report_replay_command(options, stdout);
    return 1;
}
