/* SPDX-License-Identifier: MIT
 *
 * register.h -- is what clients have seen of one key what a register shows? Pure.
 *
 * A register holds one value or none. Each write puts another number there (numbers name writes) or
 * deletes; a read tells the number, or 0. A history is right when there is one order of everything
 * that was done in which each read tells what the write before it has put there, and in which what
 * ended before something else began comes first (linearizability, after Herlihy and Wing). Writes
 * whose outcome is unknown may be done at any time after they began, or never.
 *
 * What a write may do besides: while it is under way it may be done more than once (`again`). A
 * coordinator that finds a newer version stamps a write anew, and readers may have met the first
 * stamp already, then the newer version, then the second stamp.
 *
 * Values that expire: from `gone_first_ns` on a read may find nothing where such a value is, and
 * after `gone_last_ns` none may tell it.
 */
#ifndef DISTKV_TESTS_SIM_RUN_REGISTER_H
#define DISTKV_TESTS_SIM_RUN_REGISTER_H

#include "base/types.h"

enum register_kind { REGISTER_PUT, REGISTER_DELETE, REGISTER_READ };

enum register_outcome {
    REGISTER_UNKNOWN, /* or not answered yet; of reads: nothing was told */
    REGISTER_DONE,
    REGISTER_REFUSED, /* it had no effect, says the answer */
};

struct register_op {
    u8 kind, outcome;
    u16 client;
    u16 node;         /* that it was sent to */
    u64 begun, ended; /* positions in the order of everything; distinct */
    u64 begun_ns, ended_ns;
    u64 value;                       /* of a put, its number; of a read, what it told */
    u64 gone_first_ns, gone_last_ns; /* of a put that expires, else 0 */
};

struct register_history {
    struct register_op *ops; /* in order of `begun` */
    u32 count, capacity;
};

void register_history_free(struct register_history *history);
/* The index of the new one. */
u32 register_history_add(struct register_history *history, const struct register_op *op);

struct register_verdict {
    const char *rule; /* NULL: all is well */
    u32 op;           /* that cannot be explained */
    bool gave_up;     /* too many are under way at once: nothing is said */
    u32 configs_max;
};

/* Only: each read tells what was written, not before, not when it was refused, not expired. */
void register_check_told(const struct register_history *history, struct register_verdict *out);
/* What stands at the end of the history, when all replicas have all: each read that began at
 * `position` or later tells what no other write that was done has replaced. Writes are in the order
 * of clocks, which differ by less than apart_ns; one of unknown outcome may be done until late_ns
 * after it began. For histories whose other reads need not see what was written before (what they
 * may tell is register_check_told's). */
void register_check_last(const struct register_history *history, u64 position, u64 apart_ns,
                         u64 late_ns, struct register_verdict *out);
/* astray: clocks were further apart than is allowed. Then what a write of unknown outcome has left
 * may be told by one node, and not by the others until its time has come: reads that tell of such
 * writes count for nothing. */
void register_judge(const struct register_history *history, bool again, bool astray,
                    struct register_verdict *out);

#endif
