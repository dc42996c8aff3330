/* SPDX-License-Identifier: MIT
 *
 * prefix_look.c -- reads every key once a process has recovered, past all protocols, and demands
 * that each log of the process before lost nothing but its end: prefix.h.
 */
#include "prefix.h"

#include <stdlib.h>

#include "lsm/lsm.h"
#include "lsm/store.h"
#include "run.h"
#include "server/shard.h"

#define LOOK_NS NS_PER_MS

static struct {
    struct store_layout layout; /* of the process that is judged */
    struct prefix_seen *seen;   /* by key */
    bool wanted[LIMIT_SHARDS];
} look;

void
prefix_ended(const struct store_layout *layout)
{
    look.layout = *layout;
}

void
prefix_free(void)
{
    free(look.seen);
    memset(&look, 0, sizeof(look));
}

/* What fails leaves the key unread. */
static MAY_YIELD void
key_look(struct lsm *lsm, u32 index)
{
    const struct key *key = &run->keys[index];
    const struct object *object = &run->objects[key->object];
    struct prefix_seen *seen = &look.seen[index];
    struct lsm_value value;
    status st = lsm_get(lsm, NULL, object->keyspace, key->token, key_bytes(key), &value);
    if (status_is(st, ST_NOT_FOUND)) seen->found = PREFIX_ABSENT;
    if (!ok(st)) return;
    seen->value = values_find(&run->values, value.value);
    if (seen->value != VALUE_ABSENT) seen->found = PREFIX_VALUE; /* else it is foreign_value */
    lsm_value_release(&value);
}

MAY_YIELD void
prefix_look_main(void *arg)
{
    const struct server *server = arg;
    u32 here = io_shard_index();
    while (!io_stopping() && !server_ready(server))
        fiber_sleep_ns(LOOK_NS);
    struct shard *shard = shard_self();
    for (u32 i = 0; i < run->key_count && !io_stopping(); i++) {
        const struct object *object = &run->objects[run->keys[i].object];
        u64 token = run->keys[i].token;
        if (object->type == OBJECT_REGISTER && token >= shard->token_first &&
            token <= shard->token_last)
            key_look(shard->lsm, i);
    }
    look.wanted[here] = false;
}

void
prefix_look_begin(void)
{
    free(look.seen);
    look.seen = calloc(run->key_count, sizeof(*look.seen));
    CHECK(look.seen != NULL);
    for (u32 i = 0; i < run->shards; i++)
        look.wanted[i] = true;
}

void
prefix_look_skip(u32 shard)
{
    look.wanted[shard] = false;
}

bool
prefix_look_done(void)
{
    for (u32 i = 0; i < run->shards; i++)
        if (look.wanted[i]) return false;
    return true;
}

static bool
key_is_of(u32 index, u32 shard)
{
    u64 token = run->keys[index].token;
    return run->objects[run->keys[index].object].type == OBJECT_REGISTER &&
           token >= look.layout.shards[shard].token_first &&
           token <= look.layout.shards[shard].token_last;
}

static void
missing_tell(const struct model_op *op, u32 missing, u32 survivor)
{
    const struct key *key = &run->keys[missing], *other = &run->keys[survivor];
    run->failed_op = op;
    run->failed_object = key->object + 1;
    violated(
        "prefix",
        "the crash took operation %llu of client %u on key %u of object %u, acknowledged at "
        "%llu, but not a later write of the same log: key %u of object %u holds what was asked "
        "for at %llu",
        (unsigned long long)op->number, op->client, key->index, key->object,
        (unsigned long long)op->returned, other->index, other->object,
        (unsigned long long)prefix_survivor(&run->objects[other->object].model,
                                            &look.seen[survivor]));
}

static void
shard_check(u32 shard)
{
    u64 last = 0;
    u32 survivor = 0;
    bool lost = false;
    for (u32 i = 0; i < run->key_count; i++) {
        if (!key_is_of(i, shard)) continue;
        u64 asked = prefix_survivor(&run->objects[run->keys[i].object].model, &look.seen[i]);
        if (asked > last) survivor = i;
        last = MAX(last, asked);
    }
    for (u32 i = 0; i < run->key_count && !run_over(); i++) {
        if (!key_is_of(i, shard)) continue;
        const struct object *object = &run->objects[run->keys[i].object];
        u32 key = run->keys[i].index;
        const struct prefix_seen *seen = &look.seen[i];
        const struct model_op *op =
            prefix_missing(&object->model, key, object->expires, seen, last);
        if (op != NULL) missing_tell(op, i, survivor);
        lost |= prefix_missing(&object->model, key, object->expires, seen, UINT64_MAX) != NULL;
    }
    run->stats.ends_survived += last != 0;
    run->stats.ends_lost += lost;
}

void
prefix_check(void)
{
    for (u32 shard = 0; shard < look.layout.shard_count && !run_over(); shard++)
        shard_check(shard);
}
