/* SPDX-License-Identifier: MIT
 *
 * engine_model.c -- see engine_model.h.
 */
#include "engine_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

/* Every eighth key lies in the first or the last partition of a shard of some layout. */
static bool
is_edge(u32 key)
{
    return key % 8 == 5;
}

static u32
edge_partition(u32 key)
{
    u32 number = key / 8;
    u32 shards = 2 + number % 3;
    u32 border =
        shard_partition_first(1 + number / 3 % (shards - 1), shards, PARTITION_COUNT_DEFAULT);
    return border - number % 2;
}

/* What to append so that the key lies there. Filled by model_init; no state but a cache. */
static u32 edge_salts[MODEL_KEYS];

struct bytes
model_key(u32 key, char text[static MODEL_KEY_BYTES_MAX])
{
    int size =
        snprintf(text, MODEL_KEY_BYTES_MAX, key % 4 == 0 ? "{tag}%u" : "key:%u", (unsigned)key);
    if (is_edge(key))
        size += snprintf(text + size, MODEL_KEY_BYTES_MAX - (size_t)size, ":%u",
                         (unsigned)edge_salts[key]);
    if (key % 7 == 0) {
        memset(text + size, 'x', 180);
        size += 180;
    }
    return BYTES(text, size);
}

u32
model_key_number(struct bytes name)
{
    char text[MODEL_KEY_BYTES_MAX];
    if (name.size < 5 || name.size >= sizeof(text)) return UINT32_MAX;
    memcpy(text, name.data, name.size);
    text[name.size] = '\0';
    const char *digits = strchr(text, text[0] == '{' ? '}' : ':');
    if (digits == NULL) return UINT32_MAX;
    u64 key = strtoull(digits + 1, NULL, 10);
    char expected[MODEL_KEY_BYTES_MAX];
    if (key >= MODEL_KEYS || !bytes_equal(name, model_key((u32)key, expected))) return UINT32_MAX;
    return (u32)key;
}

void
model_init(struct model *model)
{
    memset(model, 0, offsetof(struct model, tapes));
    for (u32 i = 0; i < MODEL_SHARDS_MAX; i++)
        memset(&model->tapes[i], 0, offsetof(struct model_tape, batches));
    model->id_last = model->recoveries = 0;
    model->violation[0] = '\0';
    char text[MODEL_KEY_BYTES_MAX];
    for (u32 key = 0; key < MODEL_KEYS; key++) {
        model->token[key] = hash_token(model_key(key, text));
        while (is_edge(key) &&
               token_partition(model->token[key], PARTITION_COUNT_DEFAULT) != edge_partition(key)) {
            edge_salts[key]++;
            model->token[key] = hash_token(model_key(key, text));
        }
    }
}

/* ---- tapes ---- */

static bool
change_touches(const struct model *model, u32 tape, const struct model_change *change, u32 key)
{
    if (model->owner[key] != tape) return false;
    if (!change->range) return change->key == key;
    return model_keyspace(key) == change->key && model->token[key] >= change->token_first &&
           model->token[key] <= change->token_last;
}

static void
batch_apply(const struct model *model, u32 tape, const struct model_batch *batch,
            struct model_value state[static MODEL_KEYS])
{
    for (u32 i = 0; i < batch->count; i++)
        for (u32 key = 0; key < MODEL_KEYS; key++)
            if (change_touches(model, tape, &batch->changes[i], key) &&
                batch->changes[i].value.version >= state[key].version)
                state[key] = batch->changes[i].value;
}

struct model_batch *
model_begin(struct model *model, u32 tape)
{
    struct model_tape *to = &model->tapes[tape];
    CHECK(to->count < MODEL_BATCHES_MAX);
    struct model_batch *batch = &to->batches[to->count++];
    batch->count = 0;
    batch->seq = 0;
    batch->durable_ns = 0;
    return batch;
}

void
model_cancel(struct model *model, u32 tape)
{
    CHECK(model->tapes[tape].count > model->tapes[tape].durable);
    model->tapes[tape].count--;
}

void
model_commit(struct model *model, u32 tape, u64 seq)
{
    struct model_batch *batch = &model->tapes[tape].batches[model->tapes[tape].count - 1];
    batch->seq = seq;
    batch_apply(model, tape, batch, model->now);
    for (u32 i = 0; i < batch->count; i++)
        for (u32 key = 0; key < MODEL_KEYS; key++)
            if (change_touches(model, tape, &batch->changes[i], key)) model->moves[key]++;
}

void
model_durable(struct model *model, u32 tape, u64 seq, u64 now_ns)
{
    struct model_tape *of = &model->tapes[tape];
    while (of->durable < of->count && of->batches[of->durable].seq != 0 &&
           of->batches[of->durable].seq <= seq)
        of->batches[of->durable++].durable_ns = now_ns;
}

/* ---- checking ---- */

bool
model_fits(const struct model_value *value, const struct model_found *found)
{
    if (found->id == 0)
        return value->id == 0 || (value->expire_ms != 0 && value->expire_ms <= found->to_ms);
    return found->id == value->id && (value->expire_ms == 0 || value->expire_ms > found->from_ms);
}

static bool
tape_fits(const struct model *model, u32 tape, const struct model_value state[static MODEL_KEYS],
          const struct model_found found[static MODEL_KEYS], u32 *differs_out)
{
    for (u32 key = 0; key < MODEL_KEYS; key++) {
        if (model->owner[key] != tape) continue;
        bool same = !found[key].versioned || found[key].version == state[key].version;
        if (same && model_fits(&state[key], &found[key])) continue;
        *differs_out = key;
        return false;
    }
    return true;
}

/* What happened to a key. */
static void
tape_print(const struct model *model, u32 index, u32 key)
{
    const struct model_tape *tape = &model->tapes[index];
    fprintf(stderr, "shard %u: %u batches, %u durable, %u in tables, %u promised; key %u:\n", index,
            tape->count, tape->durable, tape->flushed, tape->floor, key);
    for (u32 i = 0; i < tape->count; i++) {
        const struct model_batch *batch = &tape->batches[i];
        for (u32 j = 0; j < batch->count; j++) {
            const struct model_change *change = &batch->changes[j];
            if (!change_touches(model, index, change, key)) continue;
            fprintf(stderr, "  batch %u: number %llu, %s, id %llu, expires %llu, version %llu\n", i,
                    (unsigned long long)batch->seq, change->range ? "range" : "key",
                    (unsigned long long)change->value.id,
                    (unsigned long long)change->value.expire_ms,
                    (unsigned long long)change->value.version);
        }
    }
}

static void
tape_recovered(struct model *model, u32 index, const struct model_found found[static MODEL_KEYS])
{
    struct model_tape *tape = &model->tapes[index];
    struct model_value state[MODEL_KEYS], floor[MODEL_KEYS];
    memcpy(state, model->base, sizeof(state));
    memcpy(floor, model->base, sizeof(floor));
    u32 differs = 0;
    for (u32 i = 0;; i++) {
        if (i == tape->floor) memcpy(floor, state, sizeof(floor));
        if (i >= tape->floor && tape_fits(model, index, state, found, &differs)) {
            for (u32 key = 0; key < MODEL_KEYS; key++)
                if (model->owner[key] == index) model->base[key] = state[key];
            return;
        }
        if (i == tape->count) break;
        batch_apply(model, index, &tape->batches[i], state);
    }
    if (tape_fits(model, index, floor, found, &differs)) return;
    tape_print(model, index, differs);
    MODEL_VIOLATED(model,
                   "shard %u of %u batches, %u promised, is no prefix: key %u has id %llu, the "
                   "promised state %llu (expires %llu, read at %llu)",
                   index, tape->count, tape->floor, differs, (unsigned long long)found[differs].id,
                   (unsigned long long)floor[differs].id,
                   (unsigned long long)floor[differs].expire_ms,
                   (unsigned long long)found[differs].from_ms);
}

void
model_recovered(struct model *model, const struct model_found found[static MODEL_KEYS],
                const u32 owner[static MODEL_KEYS])
{
    for (u32 i = 0; i < MODEL_SHARDS_MAX; i++) {
        tape_recovered(model, i, found);
        memset(&model->tapes[i], 0, offsetof(struct model_tape, batches));
    }
    memcpy(model->now, model->base, sizeof(model->now));
    memcpy(model->owner, owner, sizeof(model->owner));
    model->recoveries++;
}
