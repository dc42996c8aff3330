/* SPDX-License-Identifier: MIT
 *
 * presence.h -- whether a key was surely there, or surely not, during a stretch of the run: what a
 * scan must return, and must not. Pure.
 *
 * A scan takes time, and keys come and go meanwhile, so only what is sure is demanded. A key is
 * surely there from the answer of a write (or of a read that found it) on, if nothing that may have
 * deleted it was under way while that ran; and until something begins that may delete it. The same
 * the other way round. Positions are those of model.h.
 */
#ifndef DISTKV_TESTS_SIM_RUN_PRESENCE_H
#define DISTKV_TESTS_SIM_RUN_PRESENCE_H

#include "base/types.h"

struct presence {
    u64 there_since, absent_since; /* UINT64_MAX: not sure */
    u32 makers, takers;            /* under way: what may create it, delete it */
    u64 maker_ended, taker_ended;  /* when the last one ended */
};

enum presence_effect { PRESENCE_UNSURE, PRESENCE_THERE, PRESENCE_ABSENT };

static inline void
presence_init(struct presence *p)
{
    *p = (struct presence){.there_since = UINT64_MAX};
}

static inline void
presence_begin(struct presence *p, bool makes, bool takes)
{
    p->makers += makes;
    p->takers += takes;
    if (makes) p->absent_since = UINT64_MAX;
    if (takes) p->there_since = UINT64_MAX;
}

/* It began at begun; effect: what its answer says of the moment when it took effect. */
static inline void
presence_end(struct presence *p, bool makes, bool takes, enum presence_effect effect, u64 begun,
             u64 now)
{
    p->makers -= makes;
    p->takers -= takes;
    if (effect == PRESENCE_THERE && p->takers == 0 && p->taker_ended < begun)
        p->there_since = MIN(p->there_since, now);
    if (effect == PRESENCE_ABSENT && p->makers == 0 && p->maker_ended < begun)
        p->absent_since = MIN(p->absent_since, now);
    if (makes) p->maker_ended = now;
    if (takes) p->taker_ended = now;
}

/* The server's process ended: what was under way is over. lost: nothing is sure any more. */
static inline void
presence_reset(struct presence *p, bool lost, u64 now)
{
    if (p->makers > 0) p->maker_ended = now;
    if (p->takers > 0) p->taker_ended = now;
    p->makers = p->takers = 0;
    if (!lost) return;
    p->there_since = p->absent_since = UINT64_MAX;
    p->maker_ended = p->taker_ended = now;
}

/* Since from, and still. */
static inline bool
presence_surely_there(const struct presence *p, u64 from)
{
    return p->there_since <= from;
}

static inline bool
presence_surely_absent(const struct presence *p, u64 from)
{
    return p->absent_since <= from;
}

#endif
