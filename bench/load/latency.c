/* SPDX-License-Identifier: MIT
 *
 * latency.c -- see latency.h, where recording is inline. Here is what is done once a second and at
 * the end: percentiles, the mean, the sum over threads, and what lies between two copies.
 */
#include "load/latency.h"

u64
latency_bucket_last(u32 bucket)
{
    CHECK(bucket < LATENCY_BUCKETS);
    if (bucket < (2u << LATENCY_SUB_BITS)) return bucket;
    u32 shift = (bucket >> LATENCY_SUB_BITS) - 1;
    u64 step = (bucket & ((1u << LATENCY_SUB_BITS) - 1)) + (1u << LATENCY_SUB_BITS);
    return ((step + 1) << shift) - 1;
}

u64
latency_count(const struct latency *l)
{
    u64 count = 0;
    for (u32 i = 0; i < LATENCY_BUCKETS; i++)
        count += l->buckets[i];
    return count;
}

u64
latency_percentile_ns(const struct latency *l, double part)
{
    u64 count = latency_count(l);
    if (count == 0) return 0;
    double exact = part * (double)count;
    u64 wanted = (u64)exact;
    if ((double)wanted < exact) wanted++;
    wanted = CLAMP(wanted, 1, count);
    u64 seen = 0;
    u32 i = 0;
    for (; i < LATENCY_BUCKETS - 1; i++) {
        seen += l->buckets[i];
        if (seen >= wanted) break;
    }
    /* The last bucket holds everything above: of it only the maximum is known. */
    return i == LATENCY_BUCKETS - 1 ? l->max_ns : MIN(latency_bucket_last(i), l->max_ns);
}

double
latency_mean_ns(const struct latency *l)
{
    u64 count = latency_count(l);
    return count == 0 ? 0 : (double)l->sum_ns / (double)count;
}

void
latency_merge(struct latency *target, const struct latency *source)
{
    target->sum_ns += source->sum_ns;
    target->max_ns = MAX(target->max_ns, source->max_ns);
    for (u32 i = 0; i < LATENCY_BUCKETS; i++)
        target->buckets[i] += source->buckets[i];
}

void
latency_between(struct latency *out, const struct latency *before, const struct latency *after)
{
    out->sum_ns = after->sum_ns - before->sum_ns;
    out->max_ns = 0;
    for (u32 i = 0; i < LATENCY_BUCKETS; i++) {
        out->buckets[i] = after->buckets[i] - before->buckets[i];
        if (out->buckets[i] > 0) out->max_ns = MIN(latency_bucket_last(i), after->max_ns);
    }
}
