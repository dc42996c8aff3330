/* SPDX-License-Identifier: MIT
 *
 * model_internal.h -- shared by model.c, model_step.c and model_judge.c.
 */
#ifndef DISTKV_TESTS_SIM_RUN_MODEL_INTERNAL_H
#define DISTKV_TESTS_SIM_RUN_MODEL_INTERNAL_H

#include "model.h"

/* Moments are known but for the milliseconds of a wall clock, and what a turn takes. */
#define MODEL_SLACK_NS (3 * NS_PER_MS)
/* Each key that an operation looks at may be there or have expired. */
#define MODEL_BRANCHES (2u << MODEL_KEYS_MAX)
#define MODEL_MASK     (MODEL_OPEN_MAX / 64)

struct config {
    struct model_state state;
    u64 mask[MODEL_MASK]; /* open operations that have taken effect, by slot */
};

struct config_set {
    struct config *all;
    u32 *next;   /* in its bucket, index + 1 */
    u32 *hashes; /* of what two that are equal or cover each other have in common */
    u32 count, capacity;
    u32 *buckets; /* index + 1 */
    u32 bucket_count;
};

struct model {
    struct values *values;
    bool time_back, past_kept;
    u64 (*clock_least)(u64 from_ns, u64 to_ns);
    u64 (*clock_most)(u64 from_ns, u64 to_ns);
    struct config_set now, next, seen;
    struct model_op *open[MODEL_OPEN_MAX];  /* by slot */
    u64 taken[MODEL_MASK];                  /* slots in use */
    u64 quiet[MODEL_MASK];                  /* of these: answers say that nothing was changed */
    u64 done[MODEL_MASK];                   /* slots whose answers are known */
    u64 unknown[MODEL_MASK];                /* slots of unknown outcome */
    u64 before[MODEL_OPEN_MAX][MODEL_MASK]; /* by slot: those that it must not pass */
    size_t state_bytes;                     /* of a state: those of the object's keys */
    u64 end_ns;                             /* what has not returned may have happened until then */
    struct model_stats stats;
    bool full;
};

/* What the state may become when op takes effect in it: into out, MODEL_BRANCHES at most; returns
 * how many. 0: not with what it answered. */
u32 model_apply(struct model *model, const struct model_state *state, const struct model_op *op,
                struct model_state *out);

#endif
