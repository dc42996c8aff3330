/* SPDX-License-Identifier: MIT
 *
 * report.c -- what a person gets to see of a failure: the rule that was violated, what the run was
 * like, what happened to the key, the last events, and the command that shows it again.
 *
 * Three ways to fail. A violated rule is noted, and the run ends at the next event. A CHECK that
 * does not hold, or a crash, ends the process: the signal's handler reports first. A seed that
 * takes too long is ended by an alarm, as a crash is: by what it takes of a processor, since a
 * machine may be busy with other work, and at last by the clock, should it wait for something.
 */
#include "cluster.h"

#include <execinfo.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

#define FAULTS_SHOWN        60u
#define CLOCK_PER_PROCESSOR 20u /* what a busy machine may make of a second of a processor */

const char *const run_flaw_names[RUN_FLAW_COUNT] = {"none",         "lost-write",  "stale-read",
                                                    "half-batch",   "two-replies", "deep-stack",
                                                    "failed-check", "address",     "early-check"};

void
violated(const char *rule, const char *format, ...)
{
    if (run->rule != NULL) return;
    run->rule = rule;
    va_list args;
    va_start(args, format);
    vsnprintf(run->violation, sizeof(run->violation), format, args);
    va_end(args);
}

/* The program that runs, as it was called; by its path when the shell looked for it. */
static const char *program = "distkv-sim";

void
report_program_set(const char *name)
{
    static char path[4096];
    program = name;
    ssize_t size = strchr(name, '/') == NULL ? readlink("/proc/self/exe", path, sizeof(path)) : -1;
    if (size <= 0 || size == sizeof(path)) return;
    program = path; /* its end is zero */
}

void
report_replay_command(const struct run_options *options, FILE *out)
{
    fprintf(out, "%s --seed %llu --mode %s", program, (unsigned long long)options->seed,
            run_mode_names[options->mode]);
    if (options->ops != 0) fprintf(out, " --ops %llu", (unsigned long long)options->ops);
    if (options->faults_max != 0)
        fprintf(out, " --faults %llu", (unsigned long long)options->faults_max);
    if (options->flaw != RUN_FLAW_NONE) fprintf(out, " --flaw %s", run_flaw_names[options->flaw]);
    const char *before = " --off ";
    for (u32 i = 0; i < SIM_FAULT_COUNT; i++) {
        if (!(options->off >> i & 1)) continue;
        fprintf(out, "%s%s", before, sim_fault_name((enum sim_fault)i));
        before = ",";
    }
    before = " --skip ";
    for (u32 i = 0; i < options->skip_count; i++) {
        fprintf(out, "%s%s:%u", before, sim_fault_name(options->skips[i].family),
                options->skips[i].number);
        before = ",";
    }
    fputc('\n', out);
}

static void
fault_count(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail)
{
    (void)id, (void)time_ns, (void)detail;
    ++*(u64 *)arg;
}

static void
fault_print(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail)
{
    u64 *skipped = arg;
    if (*skipped > 0) {
        --*skipped;
        return;
    }
    fprintf(stderr, "  %10llu us  %s:%u %s\n", (unsigned long long)(time_ns / 1000),
            sim_fault_name(id.family), id.number, detail == NULL ? "" : detail);
}

static void
print(void)
{
    fprintf(stderr, "\nFAILED seed %llu mode %s rule %s\n%s\n",
            (unsigned long long)run->options->seed, run_mode_names[run->options->mode], run->rule,
            run->violation);
    if (run->sim == NULL) { /* it came to an end before the world was made */
        fprintf(stderr, "again with: ");
        report_replay_command(run->options, stderr);
        return;
    }
    if (run->cluster != NULL)
        cluster_report();
    else
        knobs_print(&run->knobs, &run->sim_options);
    fprintf(stderr,
            "at        %llu us, %llu events, position %llu, process %llu of the server, %u "
            "shards, %llu requests\n",
            (unsigned long long)(sim_now_ns(run->sim) / 1000),
            (unsigned long long)sim_event_count(run->sim), (unsigned long long)run->position,
            (unsigned long long)run->starts, run->shards, (unsigned long long)run->stats.requests);
    fprintf(stderr, "trace     %016llx until then: another run of the seed has the same\n",
            (unsigned long long)sim_trace_hash(run->sim));
    if (run->failed_object != 0) {
        const struct object *object = &run->objects[run->failed_object - 1];
        fprintf(stderr, "object %u in keyspace %u: %u keys\n", run->failed_object - 1,
                object->keyspace, object->key_count);
        for (u32 k = 0; k < object->key_count; k++)
            fprintf(stderr, "  key %u: %.*s\n", k,
                    (int)MIN(run->keys[object->key_first + k].size, 40u),
                    (const char *)run->keys[object->key_first + k].name);
        model_print(run->model, &object->model, run->failed_op);
    }
    u64 faults = 0;
    sim_fault_each(run->sim, fault_count, &faults);
    u64 skipped = faults - MIN(faults, FAULTS_SHOWN);
    fprintf(stderr, "the last %llu of %llu faults:\n", (unsigned long long)(faults - skipped),
            (unsigned long long)faults);
    sim_fault_each(run->sim, fault_print, &skipped);
    fprintf(stderr, "the last events:\n");
    sim_trace_dump(run->sim);
    fprintf(stderr, "the last messages:\n");
    sim_log_dump(run->sim);
    fprintf(stderr, "again with: ");
    report_replay_command(run->options, stderr);
}

/* By itself stderr writes each line at once: a report has hundreds, and took longer than its run.
 * (After a crash it does: what is told must be out when telling it crashes as well.) */
void
report_print(void)
{
    static char lines[64u << 10];
    setvbuf(stderr, lines, _IOFBF, sizeof(lines));
    print();
    fflush(stderr);
    setvbuf(stderr, NULL, _IONBF, 0);
}

/* ---- signals ---- */

/* A fiber that has overflowed its stack has none left for the handler. */
static u8 signal_stack[256u << 10] __attribute__((aligned(16)));

static void (*crash_tell)(i32 signal);

void
report_crash_set(void (*tell)(i32 signal))
{
    crash_tell = tell;
}

static void
on_signal(int number)
{
    signal(number, SIG_DFL);
    if (run == NULL) {
        raise(number);
        return;
    }
    bool hang = number == SIGPROF || number == SIGALRM;
    void *frames[40];
    if (number != SIGABRT) backtrace_symbols_fd(frames, backtrace(frames, 40), STDERR_FILENO);
    run->rule = hang ? "hang" : "crash";
    snprintf(run->violation, sizeof(run->violation),
             hang ? "the run takes too long" : "the program ends by signal %d: see above", number);
    run->failed_object = 0;
    if (crash_tell != NULL) crash_tell(hang ? 0 : number);
    print();
    fflush(stderr);
    _exit(1);
}

void
report_signals_set(void)
{
    static const int numbers[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGPROF, SIGALRM};
    stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    void *frame;
    CHECK(sigaltstack(&stack, NULL) == 0);
    backtrace(&frame, 1); /* loads what it needs: the handler should not */
    for (u32 i = 0; i < ARRAY_COUNT(numbers); i++)
        CHECK(sigaction(numbers[i], &action, NULL) == 0);
}

void
report_watchdog_start(u32 seconds)
{
    struct itimerval timer = {.it_value.tv_sec = seconds};
    CHECK(setitimer(ITIMER_PROF, &timer, NULL) == 0);
    alarm(seconds * CLOCK_PER_PROCESSOR);
}
