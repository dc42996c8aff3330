/* SPDX-License-Identifier: MIT
 *
 * hlc.h -- a hybrid logical clock: S. Kulkarni et al., "Logical physical clocks", 2014, in the form
 * that versions of entries have (clock_next in lsm_write.c):
 *
 *   | wall clock, milliseconds: 48 | counter: 16 |
 *
 * Pure: the wall clock is passed in. Where the paper keeps the two parts apart we add one to the
 * whole number: a counter that is used up borrows a millisecond from the future, instead of
 * waiting.
 *
 * Promises
 *   H1  hlc_next never gives what it gave before, nor less; across a restart, too, when the floor
 *       that hlc_init is given is at least the last one given: the highest version in the store.
 *   H2  After hlc_observe(v) is ok every hlc_next gives more than v: effects come after causes.
 *   H3  A peer moves this clock to at most HLC_AHEAD_MS_MAX before our wall clock. What is further
 *       ahead is refused and changes nothing, so one wrong clock does not drag all others along.
 *
 * A wall clock that was set back does not stop this one: it goes on counting from where it was, and
 * hlc_ahead_ms says how far it is ahead. Beyond HLC_AHEAD_MS_MAX the peers refuse what we stamp,
 * and the node had better say so itself.
 */
#ifndef DISTKV_CLUSTER_HLC_H
#define DISTKV_CLUSTER_HLC_H

#include "base/status.h"

#define HLC_COUNTER_BITS 16u
#define HLC_AHEAD_MS_MAX 250u
#define HLC_WALL_MS_MAX  (((u64)1 << 48) - 1)

struct hlc {
    u64 last; /* the highest that was given or observed */
};

static inline u64
hlc_wall_ms(u64 version)
{
    return version >> HLC_COUNTER_BITS;
}

void hlc_init(struct hlc *hlc, u64 floor);
/* The version for an event that happens now. */
u64 hlc_next(struct hlc *hlc, u64 wall_ms);
/* A version came from a peer. ST_INVALID when it is too far ahead. */
MUST_CHECK status hlc_observe(struct hlc *hlc, u64 version, u64 wall_ms);
/* By how much this clock is ahead of the wall clock; 0 when it is not. */
u64 hlc_ahead_ms(const struct hlc *hlc, u64 wall_ms);

#endif
