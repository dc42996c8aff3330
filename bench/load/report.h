/* SPDX-License-Identifier: MIT
 *
 * report.h -- results as text, JSON and CSV.
 *
 * The JSON holds all that is needed to do it again and to judge it: options, machine, server,
 * figures, errors, the time series, and the histogram's buckets. docs/benchmarking.md describes it.
 */
#ifndef DISTKV_BENCH_REPORT_H
#define DISTKV_BENCH_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "load/run.h"

struct report {
    struct machine machine;
    struct server_info server;
    const struct result *results;
    u32 count;
};

/* What --compare can read; counts up when a field changes its meaning. */
#define REPORT_FORMAT 1

/* NULL: no memory. */
json_t *report_json(const struct report *report);
/* False: it could not be written. */
MUST_CHECK bool report_write(const struct report *report, enum format format, FILE *out);
/* One line for each result: the standard set. */
void report_table(const struct report *report, FILE *out);

/* "1,234,567"; "12.3 us": into out, which is returned. */
#define SHOWN_BYTES 32u
const char *show_count(double count, char out[SHOWN_BYTES]);
const char *show_time(double ns, char out[SHOWN_BYTES]);

#endif
