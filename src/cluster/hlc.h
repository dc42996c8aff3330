/* SPDX-License-Identifier: MIT
 *
 * hlc.h -- a hybrid logical clock: S. Kulkarni et al., "Logical physical clocks", 2014, in the form
 * that versions of entries have in a cluster:
 *
 *   | milliseconds since 2020-01-01: 41 | counter: 13 | stamp of the member: 10 |
 *
 * No two members have the same stamp (topology.h), and no member gives a number twice, so a version
 * names one write in the whole cluster: two that were made at the same (millisecond, counter)
 * differ in the stamp, and every replica takes the same one for the newer.
 *
 * What a single node stamps (clock_next in lsm_write.c: milliseconds since 1970 << 16) lies below
 * all of these, so its directory can become a member's. (2026 gives 1.2e17 there, and is reached
 * here in May 2020.) 41 bits of milliseconds last until September 2089.
 *
 * Pure: the wall clock is passed in. Where the paper keeps milliseconds and counter apart we add
 * one to the whole number above the stamp: a counter that is used up borrows a millisecond from the
 * future, instead of waiting.
 *
 * Promises
 *   H1  hlc_next never gives what it gave before, nor less; across a restart, too, when the floor
 *       that hlc_init is given is at least the last one given. (The highest version in the store
 *       may be less: what was sent to others may not have become durable here. See
 *       replicate_clock.c.)
 *   H2  After hlc_observe(v) is ok every hlc_next gives more than v: effects come after causes.
 *   H3  A peer moves this clock to at most HLC_AHEAD_MS_MAX before our wall clock. What is further
 *       ahead is refused and changes nothing, so one wrong clock does not drag all others along.
 *
 * A wall clock that was set back does not stop this one: it goes on counting from where it was, and
 * hlc_ahead_ms says how far it is ahead. Beyond HLC_AHEAD_MS_MAX the peers refuse what we stamp,
 * and the node had better say so itself. A wall clock before 2020 or after 2089 counts as the
 * nearest time in between.
 */
#ifndef DISTKV_CLUSTER_HLC_H
#define DISTKV_CLUSTER_HLC_H

#include "base/status.h"

#define HLC_STAMP_BITS   10u
#define HLC_COUNTER_BITS 13u
#define HLC_MS_SHIFT     (HLC_STAMP_BITS + HLC_COUNTER_BITS)
#define HLC_STAMPS       (1u << HLC_STAMP_BITS)
#define HLC_AHEAD_MS_MAX 250u
#define HLC_EPOCH_MS     1577836800000ull /* 2020-01-01T00:00:00Z */
/* Of the wall clock. Four hours are left above it: 2^37 versions, for whose clock stands there. */
#define HLC_WALL_MS_MAX (HLC_EPOCH_MS + ((u64)1 << 41) - ((u64)1 << 24))

static_assert(HLC_MS_SHIFT + 41 == 64, "a version is 64 bits");

struct hlc {
    u64 last;  /* the highest that was given or observed */
    u16 stamp; /* of this member */
};

/* Milliseconds since 1970 of a version in this form. */
static inline u64
hlc_wall_ms(u64 version)
{
    return (version >> HLC_MS_SHIFT) + HLC_EPOCH_MS;
}

static inline u16
hlc_stamp(u64 version)
{
    return (u16)(version & (HLC_STAMPS - 1));
}

/* The lowest version of a moment. */
u64 hlc_version_at(u64 wall_ms);
/* stamp: below HLC_STAMPS. */
void hlc_init(struct hlc *hlc, u64 floor, u16 stamp);
/* The version for an event that happens now. */
u64 hlc_next(struct hlc *hlc, u64 wall_ms);
/* A version came from a peer. ST_INVALID when it is too far ahead. */
MUST_CHECK status hlc_observe(struct hlc *hlc, u64 version, u64 wall_ms);
/* By how much this clock is ahead of the wall clock; 0 when it is not. */
u64 hlc_ahead_ms(const struct hlc *hlc, u64 wall_ms);

#endif
