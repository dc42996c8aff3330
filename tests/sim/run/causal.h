/* SPDX-License-Identifier: MIT
 *
 * causal.h -- is what clients have seen of one key that keeps siblings what such a key shows? Pure.
 *
 * A write stands beside all that its writer has not seen, and replaces all that he has. What he has
 * seen he says with a context, which a read gave him; a *plain* write reads by itself, just before.
 * A read tells all values that nothing known to it has replaced. So, with
 *
 *   replaces(q)   what the write q has surely replaced: all that the read of its context has told,
 *                 and what these had replaced; and what was acknowledged before that read began
 *   seen(r)       what the read r must know of: what it tells; what was acknowledged, and what
 *                 another read told, before it began; and all that these had replaced
 *
 * a history is right when of each read
 *
 *   never_written, told_before_written, refused_and_done, sibling_twice
 *                      each value was written, not later, not refused, and stands there once
 *   sibling_beside     no value stands beside one that has replaced it: so there are never more
 *                      siblings than writers who had not seen each other
 *   sibling_returned   nothing is told that something in seen(r) has replaced
 *   sibling_lost       what is in seen(r) is told, or was replaced by a write that may have seen it
 *                      and is told itself, or was replaced in its turn, or was a delete
 *
 * Writes whose outcome is unknown may be done at any time after they began, or never. By a read of
 * a single value (`latest`) only that one is known of what it tells; that there is none is all.
 */
#ifndef DISTKV_TESTS_SIM_RUN_CAUSAL_H
#define DISTKV_TESTS_SIM_RUN_CAUSAL_H

#include "base/types.h"

enum causal_kind { CAUSAL_PUT, CAUSAL_DELETE, CAUSAL_READ };
enum causal_outcome { CAUSAL_UNKNOWN, CAUSAL_DONE, CAUSAL_REFUSED };

struct causal_op {
    u8 kind, outcome;
    bool plain;  /* of a write: it has read by itself */
    bool latest; /* of a read: one value at most */
    u16 client, node;
    u64 begun, ended; /* positions in the order of everything; distinct */
    u64 begun_ns, ended_ns;
    u64 number;  /* of a put's value; they ascend */
    u32 saw;     /* of a write: the read whose context it brings, + 1; 0: none */
    u64 *values; /* of a read: the numbers that it told */
    u32 value_count;
};

struct causal_history {
    struct causal_op *ops; /* in order of `begun` */
    u32 count, capacity;
};

void causal_history_free(struct causal_history *history);
/* The index of the new one; values are copied. */
u32 causal_history_add(struct causal_history *history, const struct causal_op *op);
/* What a read has told. */
void causal_told(struct causal_op *op, const u64 *values, u32 count);

struct causal_verdict {
    const char *rule; /* NULL: all is well */
    u32 op;           /* the read */
    u64 number;       /* of the value */
};

void causal_judge(const struct causal_history *history, struct causal_verdict *out);

#endif
