/* SPDX-License-Identifier: MIT
 *
 * latency.h -- latencies of a run: a log-linear histogram after HdrHistogram, 128 linear steps per
 * power of two, so that a figure is off by less than 0.8 %, up to 73 minutes. The server's own
 * (base/histogram.h) is a quarter of the size and a quarter as sharp: it has hundreds of them.
 *
 * Recording touches one bucket, a sum and a maximum; the count is the sum of the buckets.
 */
#ifndef DISTKV_BENCH_LATENCY_H
#define DISTKV_BENCH_LATENCY_H

#include "base/types.h"

#define LATENCY_SUB_BITS   7u
#define LATENCY_VALUE_BITS 42u /* larger values count in the last bucket; max stays exact */
#define LATENCY_BUCKETS    ((LATENCY_VALUE_BITS - LATENCY_SUB_BITS + 1u) << LATENCY_SUB_BITS)

struct latency {
    u64 sum_ns;
    u64 max_ns;
    u64 buckets[LATENCY_BUCKETS];
};

static inline u32
latency_bucket(u64 ns)
{
    if (ns < 1u << LATENCY_SUB_BITS) return (u32)ns;
    u32 top = 63u - (u32)__builtin_clzll(ns);
    if (top >= LATENCY_VALUE_BITS) return LATENCY_BUCKETS - 1;
    u32 shift = top - LATENCY_SUB_BITS;
    return ((shift + 1) << LATENCY_SUB_BITS) + (u32)((ns >> shift) - (1u << LATENCY_SUB_BITS));
}

static inline void
latency_record(struct latency *l, u64 ns)
{
    l->buckets[latency_bucket(ns)]++;
    l->sum_ns += ns;
    if (ns > l->max_ns) l->max_ns = ns;
}

/* The largest value that falls into bucket. */
u64 latency_bucket_last(u32 bucket);
u64 latency_count(const struct latency *l);
/* The value below or at which this part (0 to 1) of the recordings lies; 0 when there are none. */
u64 latency_percentile_ns(const struct latency *l, double part);
double latency_mean_ns(const struct latency *l);
void latency_merge(struct latency *target, const struct latency *source);
/* What was recorded between two copies of the same histogram. The maximum is that of the highest
 * bucket that grew. */
void latency_between(struct latency *out, const struct latency *before,
                     const struct latency *after);

#endif
