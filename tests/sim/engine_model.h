/* SPDX-License-Identifier: MIT
 *
 * engine_model.h -- what a node's stores must hold: the model beside the engine in test_engine.c.
 * Pure; lives outside of the simulated world, so it survives every crash.
 *
 *   base     what was found by the last recovery: durable, may never go back
 *   tape     for each shard of the last process, the batches handed to its store since, in order
 *   now      base and the whole tapes: what a read must see while the process runs
 *
 * After a crash each tape on its own must have become a prefix: base and its first P batches, with
 * P at least what was promised (model_tape.floor). A tape belongs to the keys of its shard at that
 * time, so the next process may have another number of shards.
 *
 * Time: a value that has expired is absent, once and for all. What was read in [from_ms, to_ms] may
 * show a value that expires in between, or not.
 */
#ifndef DISTKV_TESTS_SIM_ENGINE_MODEL_H
#define DISTKV_TESTS_SIM_ENGINE_MODEL_H

#include "base/types.h"

#define MODEL_KEYS          96u
#define MODEL_KEYSPACES     2u
#define MODEL_SHARDS_MAX    4u
#define MODEL_BATCH_OPS_MAX 6u
#define MODEL_BATCHES_MAX   1500u
#define MODEL_KEY_BYTES_MAX 256u

struct model_value {
    u64 id; /* 0: absent */
    u64 expire_ms;
    /* Of who wrote or deleted it, when versions come from outside: one that is not higher does
     * nothing. 0: the store stamps, the last one wins. */
    u64 version;
};

struct model_change {
    bool range;
    u32 key; /* of a put or delete; else the keyspace of the range */
    struct model_value value;
    u64 token_first, token_last;
};

struct model_batch {
    u32 count;
    struct model_change changes[MODEL_BATCH_OPS_MAX];
    u64 seq; /* of its last operation; 0: not known */
    u64 durable_ns;
};

struct model_tape {
    u32 count;       /* handed to the engine */
    u32 durable;     /* of them: acknowledged */
    u32 floor;       /* what a recovery must find at least */
    u32 floor_power; /* the same should the power fail before */
    u32 flushed;     /* known to be in tables */
    u64 failed_ns;   /* when the log failed; 0: it did not */
    struct model_batch batches[MODEL_BATCHES_MAX];
};

struct model_found {
    u64 id; /* 0: nothing */
    u64 from_ms, to_ms;
    bool versioned; /* version is known: the highest that came, be it of a tombstone or a range */
    u64 version;
};

struct model {
    struct model_value base[MODEL_KEYS];
    struct model_value now[MODEL_KEYS];
    u32 moves[MODEL_KEYS]; /* changes of now: tells whether a key was written during a read */
    u32 owner[MODEL_KEYS]; /* the tape that a key is on */
    u64 token[MODEL_KEYS];
    struct model_tape tapes[MODEL_SHARDS_MAX];
    u64 id_last;
    u64 recoveries;
    char violation[512]; /* the first one; "" : none */
};

#define MODEL_VIOLATED(model, ...)                                                                 \
    do {                                                                                           \
        if ((model)->violation[0] == '\0')                                                         \
            snprintf((model)->violation, sizeof((model)->violation), __VA_ARGS__);                 \
    } while (0)

void model_init(struct model *model);
/* A quarter of the keys share one token; some are long, some lie at the borders of shards. After
 * model_init. */
struct bytes model_key(u32 key, char text[static MODEL_KEY_BYTES_MAX]);
/* UINT32_MAX: not one of ours. */
u32 model_key_number(struct bytes name);
static inline u16
model_keyspace(u32 key)
{
    return key % 3 == 0;
}

/* The next entry of a tape, to be filled. From then on a recovery may find it. */
struct model_batch *model_begin(struct model *model, u32 tape);
/* It was refused and did nothing. */
void model_cancel(struct model *model, u32 tape);
/* It is visible now. */
void model_commit(struct model *model, u32 tape, u64 seq);
void model_durable(struct model *model, u32 tape, u64 seq, u64 now_ns);

/* Whether what was found may be this value. */
bool model_fits(const struct model_value *value, const struct model_found *found);
/* After a recovery: each tape is a prefix, or that is a violation. Then the tapes are empty and
 * every key is on the tape that owner says. */
void model_recovered(struct model *model, const struct model_found found[static MODEL_KEYS],
                     const u32 owner[static MODEL_KEYS]);

#endif
