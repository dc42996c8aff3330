/* SPDX-License-Identifier: MIT
 *
 * universe.c -- the keys of a run: objects of one key and of several with one hash tag, of three
 * types, in a few keyspaces. Which commands a key may see follows from its type, so that a counter
 * is not overwritten by a text and every answer can be judged.
 */
#include "run.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"

struct bytes
key_bytes(const struct key *key)
{
    return BYTES(key->name, key->size);
}

static void
key_name(struct key *key, u32 object, u32 index, u32 count)
{
    struct prng *prng = &run->prng;
    int size;
    if (count > 1) {
        size = snprintf((char *)key->name, sizeof(key->name), "{t%u}%u", object, index);
    } else {
        size = snprintf((char *)key->name, sizeof(key->name), "k%u", object);
    }
    if (prng_chance(prng, 1, 16)) { /* binary, long */
        u32 more = (u32)prng_range(prng, 1, KEY_BYTES_MAX - 32);
        for (u32 i = 0; i < more; i++)
            key->name[size++] = (u8)prng_u64(prng);
    }
    key->size = (u32)size;
}

void
universe_make(void)
{
    const struct knobs *knobs = &run->knobs;
    struct prng *prng = &run->prng;
    run->object_count = knobs->singles + knobs->groups;
    run->objects = calloc(run->object_count, sizeof(*run->objects));
    run->keys = calloc((size_t)run->object_count * MODEL_KEYS_MAX, sizeof(*run->keys));
    CHECK(run->objects != NULL && run->keys != NULL);
    for (u32 i = 0; i < run->object_count; i++) {
        struct object *object = &run->objects[i];
        u32 count = i < knobs->singles ? 1 : (u32)prng_range(prng, 2, MODEL_KEYS_MAX);
        u64 type = prng_below(prng, 10);
        *object = (struct object){
            .keyspace = (u16)(prng_below(prng, knobs->keyspaces) * 3 % LIMIT_KEYSPACES),
            .type = type < 7   ? OBJECT_REGISTER
                    : type < 9 ? OBJECT_COUNTER
                               : OBJECT_TEXT,
            .expires = prng_chance(prng, 1, knobs->clock_steps || knobs->clock_drifts ? 2 : 6),
            .key_first = run->key_count,
            .key_count = count,
        };
        object->expires |= knobs->ttl_ms_max != 0;
        model_object_init(&object->model, count);
        for (u32 k = 0; k < count; k++) {
            struct key *key = &run->keys[run->key_count++];
            key->object = i;
            key->index = k;
            key_name(key, i, k, count);
            key->token = hash_token(key_bytes(key));
            presence_init(&key->presence);
        }
    }
    run->audit_seen = calloc(run->key_count, sizeof(*run->audit_seen));
    CHECK(run->audit_seen != NULL);
}

void
universe_free(void)
{
    for (u32 i = 0; i < run->object_count; i++)
        model_object_deinit(&run->objects[i].model);
    free(run->objects);
    free(run->keys);
    free(run->audit_seen);
}

struct key *
key_find(u16 keyspace, struct bytes name)
{
    for (u32 i = 0; i < run->key_count; i++) {
        struct key *key = &run->keys[i];
        if (run->objects[key->object].keyspace == keyspace && bytes_equal(key_bytes(key), name))
            return key;
    }
    return NULL;
}
