/* SPDX-License-Identifier: MIT
 *
 * histogram.c -- see histogram.h. Only reading is here: recording is inline, on the hot path.
 */
#include "base/histogram.h"

u64
histogram_bucket_last(u32 bucket)
{
    CHECK(bucket < HISTOGRAM_BUCKETS);
    if (bucket < (2u << HISTOGRAM_SUB_BITS)) return bucket;
    u32 shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
    u64 step = (bucket & ((1u << HISTOGRAM_SUB_BITS) - 1)) + (1u << HISTOGRAM_SUB_BITS);
    return ((step + 1) << shift) - 1;
}

u64
histogram_percentile(const struct histogram *h, u32 parts_per_million)
{
    if (h->count == 0) return 0;
    u64 wanted = (u64)(((unsigned __int128)h->count * parts_per_million + 999999) / 1000000);
    wanted = CLAMP(wanted, 1, h->count);
    u64 seen = 0;
    for (u32 i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen >= wanted) return MIN(histogram_bucket_last(i), h->max);
    }
    return h->max;
}

u64
histogram_count_until(const struct histogram *h, u64 value)
{
    u64 seen = 0;
    for (u32 i = 0; i < HISTOGRAM_BUCKETS && histogram_bucket_last(i) <= value; i++)
        seen += h->buckets[i];
    return seen;
}

void
histogram_merge(struct histogram *target, const struct histogram *source)
{
    if (source->count == 0) return;
    target->min = target->count == 0 ? source->min : MIN(target->min, source->min);
    target->max = MAX(target->max, source->max);
    target->count += source->count;
    target->sum += source->sum;
    for (u32 i = 0; i < HISTOGRAM_BUCKETS; i++)
        target->buckets[i] += source->buckets[i];
}
