/* SPDX-License-Identifier: MIT
 *
 * run.h -- one measurement from beginning to end: connect, fill, warm up, measure, wait for what is
 * under way, and what was found.
 */
#ifndef DISTKV_BENCH_RUN_H
#define DISTKV_BENCH_RUN_H

#include "load/machine.h"
#include "load/worker.h"

struct second {  /* a point of the time series */
    double at_s; /* its end, from the start of the measured time */
    double length_s;
    u64 answered;
    u64 errors;
    u64 p50_ns, p99_ns, max_ns; /* of what was answered in it; to the histogram's precision */
};

struct result {
    struct settings settings;
    char name[64];
    bool stopped; /* by a signal, before its time */

    double elapsed_s; /* from the start of the measured time to the last reply that counts */
    struct counters counters;
    struct errors errors;
    struct errors wrong;
    struct latency *latency[OP_COUNT]; /* NULL: none of these */
    struct latency *total;             /* of all but RMW, whose parts are in it already */
    struct latency *late;

    bool client_cpu_known, server_cpu_known;
    double client_cpu_s, server_cpu_s;

    u64 load_count;
    double load_s;

    struct second *series;
    u32 series_count;
};

enum run_outcome {
    RUN_DONE,        /* there may have been errors: see the result */
    RUN_UNREACHABLE, /* problem says why */
    RUN_FAILED,      /* this client cannot run */
};

/* How a run tells what goes on; may be NULL. final: the phase is over. */
typedef void run_progress(void *arg, const char *phase, const struct second *now, double total_s,
                          u64 errors, bool final);

struct run_input {
    const struct settings *settings;
    const char *name;
    const char *host; /* numeric */
    u16 port;
    const struct places *places; /* may be empty */
    u64 server_pid;              /* 0: its CPU time is not measured */
    const _Atomic bool *interrupted;
    run_progress *progress;
    void *progress_arg;
};

MUST_CHECK enum run_outcome run_measure(const struct run_input *input, struct result *out,
                                        char *problem, size_t problem_size);
void result_free(struct result *result);
/* Requests failed or reads were wrong. */
static inline bool
result_is_bad(const struct result *result)
{
    return result->errors.total > 0 || result->wrong.total > 0;
}

#endif
