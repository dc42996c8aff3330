/* SPDX-License-Identifier: MIT
 *
 * histogram.h -- log-linear latency histogram after HdrHistogram: 32 linear steps per power of two,
 * so a recorded value is off by at most 1/32. Recording is a few instructions and never allocates.
 */
#ifndef DISTKV_BASE_HISTOGRAM_H
#define DISTKV_BASE_HISTOGRAM_H

#include "base/types.h"

#define HISTOGRAM_SUB_BITS 5u
/* Values up to 2^40 ns (18 minutes); larger ones count in the last bucket. */
#define HISTOGRAM_VALUE_BITS 40u
#define HISTOGRAM_BUCKETS    ((HISTOGRAM_VALUE_BITS - HISTOGRAM_SUB_BITS + 1u) << HISTOGRAM_SUB_BITS)

struct histogram {
    u64 count;
    u64 sum;
    u64 min;
    u64 max;
    u64 buckets[HISTOGRAM_BUCKETS];
};

static inline u32
histogram_bucket(u64 value)
{
    if (value < (1u << HISTOGRAM_SUB_BITS)) return (u32)value;
    u32 top = 63u - (u32)__builtin_clzll(value);
    if (top >= HISTOGRAM_VALUE_BITS) return HISTOGRAM_BUCKETS - 1;
    u32 shift = top - HISTOGRAM_SUB_BITS;
    return ((shift + 1) << HISTOGRAM_SUB_BITS) +
           (u32)((value >> shift) - (1u << HISTOGRAM_SUB_BITS));
}

static inline void
histogram_record(struct histogram *h, u64 value)
{
    if (h->count == 0 || value < h->min) h->min = value;
    if (value > h->max) h->max = value;
    h->count++;
    h->sum += value;
    h->buckets[histogram_bucket(value)]++;
}

/* The largest value that falls into bucket. */
u64 histogram_bucket_last(u32 bucket);
/* The value below or at which parts_per_million of the recordings lie; 0 when empty. */
u64 histogram_percentile(const struct histogram *h, u32 parts_per_million);
/* How many recordings are at most value (to bucket precision): for Prometheus buckets. */
u64 histogram_count_until(const struct histogram *h, u64 value);
void histogram_merge(struct histogram *target, const struct histogram *source);

#endif
