/* SPDX-License-Identifier: MIT
 *
 * retry.h -- how much of what is sent may be sent once more. Pure. Where replicas are overloaded,
 * or half of them gone, all requests are late or refused at once; if each were then repeated, those
 * who still work would get a multiple of the load. So whoever repeats holds a budget:
 *
 *     retry_earn(&budget)   each request that is sent for the first time: a part of a repetition
 *     retry_take(&budget)   before one is sent once more; false: the first outcome stands
 *
 * Of n requests no more than n / RETRY_SHARE + RETRY_BURST are repeated.
 *
 * The burst is what a failover needs, for then many are repeated at once and none of them for
 * nothing. A near member's silence is seen after at most 600 ms (liveness.h); until then whoever
 * keeps asking it hedges after 2 ms or more, which is 300 times for each request that is under way.
 * Requests that overlap hedge less often, as who has most of them under way is asked last. A client
 * with 64 requests under way pauses 2, 4, ... 500 ms between attempts: in 3 s, which is an election
 * and a half, 13 for each, 832. So 1,000, of each shard and each handle: and a burst is paid once.
 */
#ifndef DISTKV_BASE_RETRY_H
#define DISTKV_BASE_RETRY_H

#include "base/types.h"

#define RETRY_SHARE 10u /* one in so many */
#define RETRY_BURST 1000u

struct retry_budget {
    u32 parts; /* of a repetition, RETRY_SHARE to one */
    u64 taken, refused;
};

static inline void
retry_init(struct retry_budget *budget)
{
    *budget = (struct retry_budget){.parts = RETRY_BURST * RETRY_SHARE};
}

static inline void
retry_earn(struct retry_budget *budget)
{
    if (budget->parts < RETRY_BURST * RETRY_SHARE) budget->parts++;
}

MUST_CHECK static inline bool
retry_take(struct retry_budget *budget)
{
    if (budget->parts < RETRY_SHARE) {
        budget->refused++;
        return false;
    }
    budget->parts -= RETRY_SHARE;
    budget->taken++;
    return true;
}

#endif
