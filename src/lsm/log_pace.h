/* SPDX-License-Identifier: MIT
 *
 * log_pace.h -- when a group of records leaves for the disk while others are still to come.
 *
 * A durable write costs the device and the processor about the same whether it carries one record or
 * ten: the interrupt, the flush, the rest of a block. One after the other as soon as the last is done
 * is the shortest wait for each record alone, and two to three times as many writes as a moderate load
 * needs: what then waits is everything else that wants the device or the core. So writes begin at
 * least twice as far apart as one of them takes, but never for more than PACE_NS_MAX, and only as long
 * as it is worth it: a group leaves at once
 *
 *   - when nearly nobody else would come meanwhile: a client alone never waits;
 *   - when all who usually wait are waiting: in a closed loop nobody else can come;
 *   - when it is large.
 *
 * (PostgreSQL's commit_delay and commit_siblings are the same bargain, set by hand.)
 */
#ifndef DISTKV_LSM_LOG_PACE_H
#define DISTKV_LSM_LOG_PACE_H

#include "base/types.h"

#define PACE_NS_MAX   NS_PER_MS /* between the beginnings of two writes */
#define PACE_RECORDS  1u        /* fewer that are still to come are not waited for */
#define PACE_BYTES    KIB(32)   /* a group of this size does not wait */
#define PACE_FADES    64u       /* pending's peak falls by this part with each write */
#define PACE_AVERAGES 8u        /* writes that the rate is of, about */
#define PACE_STEPS    16u       /* by this part took_ns goes up or down with each write */
#define PACE_FRACTION 64u       /* of a record, which the sum of them is counted in */

struct log_pace {
    u32 pending; /* records that were appended and are not durable */
    u32 peak;    /* the most of late, times PACE_FADES */
    u32 arrived; /* since began_ns */
    u64 began_ns;
    u64 took_ns;             /* half of the writes take longer; 0: not known */
    u64 rate_parts, rate_ns; /* parts of records a time, of late */
};

static inline void
log_pace_appended(struct log_pace *pace)
{
    pace->arrived++;
    pace->pending++;
    if (pace->pending * PACE_FADES > pace->peak) pace->peak = pace->pending * PACE_FADES;
}

static inline void
log_pace_begun(struct log_pace *pace, u64 now_ns)
{
    /* A pause says nothing of the load that follows it. */
    u64 passed_ns = MIN(now_ns - pace->began_ns, 2 * PACE_NS_MAX);
    pace->rate_parts += pace->arrived * PACE_FRACTION - pace->rate_parts / PACE_AVERAGES;
    pace->rate_ns += passed_ns - pace->rate_ns / PACE_AVERAGES;
    pace->arrived = 0;
    pace->began_ns = now_ns;
    pace->peak -= pace->peak / PACE_FADES;
}

static inline void
log_pace_ended(struct log_pace *pace, u64 took_ns, u32 records)
{
    pace->pending -= records;
    /* The median: a mean would be that of the few that are stuck. */
    if (pace->took_ns == 0)
        pace->took_ns = MIN(took_ns, PACE_NS_MAX);
    else if (took_ns > pace->took_ns)
        pace->took_ns += pace->took_ns / PACE_STEPS + 1;
    else
        pace->took_ns -= pace->took_ns / PACE_STEPS;
}

/* How long a group of these bytes stays for others; 0: it leaves. */
static inline u64
log_pace_wait_ns(const struct log_pace *pace, u64 now_ns, u64 bytes)
{
    u64 apart_ns = MIN(2 * pace->took_ns, PACE_NS_MAX);
    u64 passed_ns = now_ns - pace->began_ns;
    if (passed_ns >= apart_ns || bytes >= PACE_BYTES) return 0;
    if (pace->pending * PACE_FADES >= pace->peak) return 0;
    u64 expected_parts_ns = pace->rate_parts * (apart_ns - passed_ns);
    if (expected_parts_ns < PACE_RECORDS * PACE_FRACTION * pace->rate_ns) return 0;
    return apart_ns - passed_ns;
}

#endif
