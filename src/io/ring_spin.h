/* SPDX-License-Identifier: MIT
 *
 * ring_spin.h -- whether a shard that has nothing to do polls before it sleeps.
 *
 * Polling saves a sleep and the wait until the processor is there again where what comes next mostly
 * comes within the time that is polled; where it mostly does not, it takes the processor from others
 * for nothing. So what polls found is counted, and a shard polls while about one of SPIN_PAYS or more
 * found something. Else it polls each SPIN_PROBE-th time alone, to see whether that has changed: what
 * it would have found cannot be told from how long it slept, as waking takes longer than what is
 * polled. (KVM's halt polling grows and shrinks its time by the same reasoning:
 * Documentation/virt/kvm/halt-polling.rst of Linux.)
 */
#ifndef DISTKV_IO_RING_SPIN_H
#define DISTKV_IO_RING_SPIN_H

#include "base/types.h"

#define SPIN_PAYS  4u
#define SPIN_PROBE 16u
/* Polls for nothing before one stops, after a time in which they paid. */
#define SPIN_CREDIT_MAX 64u

struct ring_spin {
    u32 credit;
    u32 passed; /* over since the last probe */
};

static inline void
ring_spin_init(struct ring_spin *spin)
{
    *spin = (struct ring_spin){.credit = SPIN_CREDIT_MAX};
}

/* Before each wait. True: poll, and say then what came of it. */
static inline bool
ring_spin_wanted(struct ring_spin *spin)
{
    if (spin->credit > 0) return true;
    if (++spin->passed < SPIN_PROBE) return false;
    spin->passed = 0;
    return true;
}

static inline void
ring_spin_note(struct ring_spin *spin, bool found)
{
    if (found) {
        spin->credit += SPIN_PAYS - 1;
        if (spin->credit > SPIN_CREDIT_MAX) spin->credit = SPIN_CREDIT_MAX;
    } else if (spin->credit > 0) {
        spin->credit--;
    }
}

#endif
