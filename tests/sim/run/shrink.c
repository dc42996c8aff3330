/* SPDX-License-Identifier: MIT
 *
 * shrink.c -- less of the same failure (after Zeller's delta debugging).
 *
 * What can be taken away: a family of faults, requests, faults behind the last that matters, parts
 * of the others, down to single ones; again, until nothing can be missed. What comes after what was
 * taken away is another run: it may be longer, or have more faults. Such a candidate is not taken,
 * so that neither number ever grows. A candidate runs in a process of its own, because it may crash
 * or hang, and is kept when it violates the same rule; a crash, when it is by the same signal with
 * the same words of a failed check. What became of it lies in memory that both processes share: one
 * that crashes writes it, too, from the signal's handler.
 */
#include "run.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster.h"

#define RULE_BYTES        32u
#define CHECK_BYTES       256u
#define CANDIDATE_SECONDS 60u
#define CANDIDATES_MAX    400u

struct outcome {
    char rule[RULE_BYTES];   /* "": nothing was violated */
    i32 signal;              /* of a crash; else 0 */
    char check[CHECK_BYTES]; /* what a failed check said; else "" */
    u64 ops;                 /* as --ops would have it, of what was drawn, too */
    u64 requests;
    u32 fault_count; /* all; kept are the first */
    struct sim_fault_id faults[RUN_SKIPS_MAX];
};

static u32 candidates;
static struct outcome *told; /* by the candidate that runs */
static int said;             /* its stderr: a file */
static struct outcome left;  /* of the least run until now */

static void
fault_keep(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail)
{
    struct outcome *outcome = arg;
    (void)time_ns;
    (void)detail;
    if (outcome->fault_count < RUN_SKIPS_MAX) outcome->faults[outcome->fault_count] = id;
    outcome->fault_count++;
}

/* In the candidate's process, at its end, whatever that is. */
static void
outcome_tell(i32 signal)
{
    told->signal = signal;
    if (run->rule != NULL) snprintf(told->rule, sizeof(told->rule), "%s", run->rule);
    told->requests = run->stats.requests;
    told->ops = run->options->ops != 0 ? run->options->ops
                : run->cluster != NULL ? run->cluster->knobs.trouble_ns / CLUSTER_NS_PER_OP
                                       : run->knobs.ops;
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

/* Which of the rules about replies it is depends on what the client is waiting for when one comes
 * that is not its own: they are one. */
static bool
same_rule(const char *a, const char *b)
{
    static const char reply[] = "reply";
    size_t size = sizeof(reply) - 1;
    return strcmp(a, b) == 0 || (strncmp(a, reply, size) == 0 && strncmp(b, reply, size) == 0);
}

static bool
fails_as(const struct outcome *a, const struct outcome *b)
{
    return same_rule(a->rule, b->rule) && a->signal == b->signal && strcmp(a->check, b->check) == 0;
}

/* Whether it still fails so, with no more requests and no more faults than what is left; strictly:
 * and less of one. Then it is what is left. */
static bool
take_smaller(const struct run_options *candidate, bool strictly)
{
    if (candidates >= CANDIDATES_MAX) return false;
    const struct outcome *outcome = try_options(candidate);
    if (!fails_as(outcome, &left)) return false;
    if (outcome->requests > left.requests || outcome->fault_count > left.fault_count) return false;
    bool less = outcome->requests < left.requests || outcome->fault_count < left.fault_count;
    if (strictly && !less) return false;
    left = *outcome;
    return true;
}

static void
families_off(struct run_options *options)
{
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++) {
        if (options->off >> i & 1) continue;
        options->off |= 1ull << i;
        if (!take_smaller(options, false)) options->off &= ~(1ull << i);
    }
}

/* A small number for --ops. How many there are decides what is under way when a fault comes, so a
 * half that passes tells nothing of a quarter: from few to more, then between. */
static void
requests_fewer(struct run_options *options)
{
    u64 before = options->ops, high = left.ops, low = 0; /* high fails */
    for (options->ops = 1; options->ops < high; options->ops += (options->ops + 1) / 2) {
        if (take_smaller(options, true))
            high = before = options->ops;
        else
            low = options->ops;
    }
    while (high - low > MAX(high / 16, 1u)) {
        options->ops = low + (high - low) / 2;
        if (take_smaller(options, true))
            high = before = options->ops;
        else
            low = options->ops;
    }
    options->ops = before;
}

/* Only the first so many faults: until the last of these the run is the same, to the byte. */
static void
faults_first(struct run_options *options)
{
    u64 before = options->faults_max, high = left.fault_count, low = 0; /* high fails */
    while (high - low > 1) {
        options->faults_max = low + (high - low) / 2;
        if (take_smaller(options, true))
            high = before = options->faults_max;
        else
            low = options->faults_max;
    }
    options->faults_max = before;
}

static int
id_order(const void *a, const void *b)
{
    const struct sim_fault_id *x = a, *y = b;
    if (x->family != y->family) return x->family < y->family ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* Without size of the faults that are left, and without as many others that would come instead. */
static bool
faults_skip(struct run_options *options, u32 from, u32 size)
{
    static struct run_options candidate;
    candidate = *options;
    if (candidate.skip_count + size > RUN_SKIPS_MAX) return false;
    memcpy(&candidate.skips[candidate.skip_count], &left.faults[from],
           size * sizeof(left.faults[0]));
    candidate.skip_count += size;
    if (size < left.fault_count) candidate.faults_max = left.fault_count - size;
    qsort(candidate.skips, candidate.skip_count, sizeof(left.faults[0]), id_order);
    if (!take_smaller(&candidate, true)) return false;
    *options = candidate;
    return true;
}

/* Skips all faults, halves, quarters, ... as many as can be missed. What comes behind a fault that
 * is skipped is another run, with other faults: the next part is taken from those. */
static void
faults_fewer(struct run_options *options)
{
    u32 part = MIN(left.fault_count, RUN_SKIPS_MAX);
    while (part > 0) {
        for (u32 from = 0; from < MIN(left.fault_count, RUN_SKIPS_MAX);) {
            u32 size = MIN(part, MIN(left.fault_count, RUN_SKIPS_MAX) - from);
            if (candidates >= CANDIDATES_MAX) return;
            if (!faults_skip(options, from, size)) from += size;
        }
        part = part == 1 ? 0 : (part + 1) / 2;
    }
}

int
shrink_main(struct run_options *options)
{
    told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    said = memfd_create("said", MFD_CLOEXEC);
    if (told == MAP_FAILED || said < 0) {
        fprintf(stderr, "distkv-sim: no memory or no file for what a run says\n");
        return 2;
    }
    options->trace = options->log = false;
    left = *try_options(options);
    if (left.rule[0] == '\0') {
        printf("seed %llu violates nothing\n", (unsigned long long)options->seed);
        return 0;
    }
    printf("rule %s, %llu requests, %u faults\n", left.rule, (unsigned long long)left.requests,
           left.fault_count);
    if (left.signal != 0) printf("signal %d %s\n", left.signal, left.check);
    fflush(stdout);
    u64 requests;
    u32 faults;
    do { /* what could not be missed before may be now */
        requests = left.requests;
        faults = left.fault_count;
        faults_first(options);
        families_off(options);
        requests_fewer(options);
        faults_fewer(options);
    } while (candidates < CANDIDATES_MAX &&
             (left.requests < requests || left.fault_count < faults));
    printf("after %u runs: %llu requests, %u faults, rule %s\n", candidates,
           (unsigned long long)left.requests, left.fault_count, left.rule);
    report_replay_command(options, stdout);
    return 1;
}
