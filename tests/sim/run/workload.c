/* SPDX-License-Identifier: MIT
 *
 * workload.c -- what a client does next: an action, the keys it touches, the values it writes.
 *
 * Each run weighs the actions anew, and leaves some out (swarm testing): what never happens beside
 * what may matter as much as what does. Keys are skewed: a few objects of each keyspace are hot. An
 * object that has as many operations under way as its share allows is left alone, so that the model
 * can judge it.
 */
#include "workload.h"

#include <stdlib.h>

const char *const action_names[ACTION_COUNT] = {
    "get",   "put",   "put-if", "delete", "getdel", "grow",     "expire", "mget",
    "mset",  "del-n", "msetnx", "move",   "exec",   "swap",     "scan",   "keys",
    "count", "flush", "config", "other",  "batch",  "snapshot",
};

struct request *
request_make(enum request_kind kind)
{
    struct request *request = calloc(1, sizeof(*request));
    CHECK(request != NULL);
    request->kind = kind;
    list_init(&request->link);
    return request;
}

void
request_drop(struct request *request)
{
    CHECK(request->op_count == 0);
    list_del(&request->link);
    free(request);
}

/* ---- which object ---- */

static bool
of_client(const struct client *client, const struct object *object)
{
    return client->native || object->keyspace == client->keyspace;
}

/* Some object of the client's keyspace that has room; types: bit per enum object_type; keys: it
 * has at least so many. UINT32_MAX: none. */
static u32
object_draw(struct client *client, u32 types, u32 keys, bool changes)
{
    u32 count = run->object_count;
    for (u32 tries = 0; tries < 12; tries++) {
        u32 i = (u32)prng_below(&client->prng, count);
        if (prng_chance(&client->prng, run->knobs.hot_part, 100))
            i = (u32)prng_below(&client->prng, MIN(count, 4u)) * (count / MIN(count, 4u));
        const struct object *object = &run->objects[i];
        if (!(types >> object->type & 1) || object->key_count < keys) continue;
        if (of_client(client, object) && check_has_room(object, changes)) return i;
    }
    return UINT32_MAX;
}

#define ANY (1u << OBJECT_REGISTER | 1u << OBJECT_COUNTER | 1u << OBJECT_TEXT)

static u8
key_draw(struct client *client, u32 object)
{
    return (u8)prng_below(&client->prng, run->objects[object].key_count);
}

/* ---- values ---- */

static u32
size_draw(struct client *client)
{
    struct prng *prng = &client->prng;
    if (prng_chance(prng, run->knobs.big_part, 1000))
        return (u32)prng_range(prng, KIB(64), LIMIT_VALUE_BYTES);
    u64 draw = prng_below(prng, 100);
    if (draw < 4) return 0;
    if (draw < 20) return (u32)prng_range(prng, 1, VALUE_HEAD_BYTES - 1);
    if (draw < 80) return (u32)prng_range(prng, VALUE_HEAD_BYTES, 200);
    if (draw < 97) return (u32)prng_range(prng, 200, 3000);
    return (u32)prng_range(prng, 3000, 20000);
}

static u32
value_draw(struct client *client, u32 object_index)
{
    struct object *object = &run->objects[object_index];
    struct prng *prng = &client->prng;
    if (object->type == OBJECT_COUNTER) {
        char text[24];
        int n = snprintf(text, sizeof(text), "%d", (int)prng_below(prng, 1000) - 500);
        return values_intern(&run->values, BYTES(text, n));
    }
    u32 size = object->type == OBJECT_TEXT ? (u32)prng_range(prng, 1, 12) : size_draw(client);
    u8 *data = malloc(size + 1);
    CHECK(data != NULL);
    value_make(data, size, object_index, client->id, ++object->written, prng_chance(prng, 1, 2));
    u32 value = values_intern(&run->values, BYTES(data, size));
    free(data);
    return value;
}

static u64
ttl_draw(struct client *client, u32 object)
{
    if (!run->objects[object].expires) return 0;
    struct prng *prng = &client->prng;
    if (run->knobs.ttl_ms_max != 0) return prng_range(prng, 1, run->knobs.ttl_ms_max);
    return prng_chance(prng, 1, 2) ? prng_range(prng, 1, 60) : prng_range(prng, 60, 20000);
}

/* ---- steps ---- */

static void
put_draw(struct client *client, u32 object, struct model_step *step, bool conditions)
{
    *step = (struct model_step){.kind = MODEL_PUT, .key = key_draw(client, object)};
    step->value = value_draw(client, object);
    u32 thirds = run->knobs.ttl_ms_max != 0 ? 2 : 1;
    if (prng_chance(&client->prng, thirds, 3)) step->ttl_ms = ttl_draw(client, object);
    if (!conditions) return;
    u64 draw = prng_below(&client->prng, 6);
    if (draw < 2) step->flags = MODEL_IF_ABSENT;
    if (draw == 2) step->flags = MODEL_IF_PRESENT;
    if (!client->native && prng_chance(&client->prng, 1, 3)) step->flags |= MODEL_GET_OLD;
    if (step->ttl_ms == 0 && prng_chance(&client->prng, 1, 3)) step->flags |= MODEL_KEEP_TTL;
}

static void
grow_draw(struct client *client, u32 object, struct model_step *step)
{
    *step = (struct model_step){.key = key_draw(client, object)};
    if (run->objects[object].type == OBJECT_COUNTER) {
        step->kind = MODEL_INCR;
        step->number = (i64)prng_below(&client->prng, 20) - 8;
    } else if (prng_chance(&client->prng, 1, 3)) {
        step->kind = MODEL_STRLEN;
    } else {
        step->kind = MODEL_APPEND;
        step->value = value_draw(client, object);
    }
}

static void
expire_draw(struct client *client, u32 object, struct model_step *step)
{
    *step = (struct model_step){.key = key_draw(client, object)};
    u64 draw = prng_below(&client->prng, client->native ? 2 : 3);
    step->kind = draw == 0 ? MODEL_TTL : draw == 1 ? MODEL_EXPIRE : MODEL_PERSIST;
    if (step->kind == MODEL_EXPIRE) step->ttl_ms = MAX(ttl_draw(client, object), 1u);
}

static void
move_draw(struct client *client, u32 object, struct model_step *step)
{
    static const u8 kinds[] = {MODEL_RENAME, MODEL_RENAMENX, MODEL_COPY};
    u32 count = run->objects[object].key_count;
    *step = (struct model_step){.kind = kinds[prng_below(&client->prng, 3)]};
    step->key = key_draw(client, object);
    step->key2 = (u8)((step->key + prng_range(&client->prng, 1, count - 1)) % count);
    if (step->kind == MODEL_COPY && prng_chance(&client->prng, 1, 2)) step->flags = MODEL_REPLACE;
}

/* One of those that fit into a transaction. */
static void
step_draw(struct client *client, u32 object, struct model_step *step)
{
    const struct object *of = &run->objects[object];
    u64 draw = prng_below(&client->prng, 10);
    if (draw < 4) {
        put_draw(client, object, step, draw == 0);
    } else if (draw < 6) {
        *step = (struct model_step){.kind = MODEL_GET, .key = key_draw(client, object)};
    } else if (draw == 6) {
        *step = (struct model_step){.kind = MODEL_DELETE, .key = key_draw(client, object)};
    } else if (draw == 7 && of->type != OBJECT_REGISTER) {
        grow_draw(client, object, step);
    } else if (draw == 8 && of->key_count > 1) {
        move_draw(client, object, step);
    } else if (draw == 8 && of->expires) {
        expire_draw(client, object, step);
    } else {
        *step = (struct model_step){.kind = MODEL_GETDEL, .key = key_draw(client, object)};
    }
}

/* ---- requests ---- */

static struct request *
single(struct client *client, u32 object, const struct model_step *step)
{
    struct request *request = request_make(REQUEST_STEP);
    struct model_op *op = check_op(client, object, 1);
    op->steps[0] = *step;
    request->ops[request->op_count++] = op;
    return request;
}

static struct request *
single_draw(struct client *client, enum action action)
{
    bool changes = action != ACTION_GET;
    u32 types = action == ACTION_GROW ? 1u << OBJECT_COUNTER | 1u << OBJECT_TEXT : ANY;
    u32 object = object_draw(client, types, action == ACTION_MOVE ? 2 : 1, changes);
    if (object == UINT32_MAX) return NULL;
    struct model_step step = {.kind = MODEL_GET, .key = key_draw(client, object)};
    switch (action) {
    case ACTION_PUT:
    case ACTION_PUT_IF:
        put_draw(client, object, &step, action == ACTION_PUT_IF);
        break;
    case ACTION_DELETE:
        step.kind = MODEL_DELETE;
        break;
    case ACTION_GETDEL:
        step.kind = MODEL_GETDEL;
        break;
    case ACTION_GROW:
        grow_draw(client, object, &step);
        break;
    case ACTION_EXPIRE:
        if (!run->objects[object].expires) return NULL;
        expire_draw(client, object, &step);
        break;
    case ACTION_MOVE:
        move_draw(client, object, &step);
        break;
    default:
        break;
    }
    return single(client, object, &step);
}

static void
many_step(struct client *client, enum request_kind kind, u32 object, u32 key,
          struct model_step *step)
{
    *step = (struct model_step){.kind = MODEL_PUT, .key = (u8)key};
    if (kind == REQUEST_VALUES) step->kind = MODEL_GET;
    if (kind == REQUEST_SUM) step->kind = MODEL_DELETE;
    if (step->kind == MODEL_PUT) step->value = value_draw(client, object);
    if (kind == REQUEST_ALL_NX) step->flags = MODEL_IF_ABSENT;
}

/* Several keys of several objects, each once, so that nothing depends on their order. MGET, MSET
 * and DEL promise each key on its own: an operation each. MSETNX is done wholly or not at all. */
static struct request *
many_draw(struct client *client, enum request_kind kind)
{
    struct request *request = request_make(kind);
    bool whole = kind == REQUEST_ALL_NX;
    u32 wanted = whole ? 1 : (u32)prng_range(&client->prng, 1, REQUEST_KEYS_MAX);
    for (u32 i = 0; i < wanted; i++) {
        u32 object = object_draw(client, ANY, 1, kind != REQUEST_VALUES);
        if (object == UINT32_MAX) continue;
        bool there = false;
        for (u32 j = 0; j < request->op_count; j++)
            if (request->ops[j]->object == object) there = true;
        if (there) continue;
        u32 keys = (u32)prng_range(&client->prng, 1, run->objects[object].key_count);
        struct model_op *op = NULL;
        for (u32 k = 0; k < keys; k++) {
            if (op == NULL || !whole) {
                op = check_op(client, object, whole ? keys : 1);
                request->ops[request->op_count++] = op;
            }
            many_step(client, kind, object, k, &op->steps[whole ? k : 0]);
        }
        if (whole) op->all = MODEL_ALL_ANY;
    }
    if (request->op_count > 0) return request;
    request_drop(request);
    return NULL;
}

static struct request *
exec_draw(struct client *client)
{
    u32 object = object_draw(client, ANY, 1, true);
    if (object == UINT32_MAX) return NULL;
    u32 steps = (u32)prng_range(&client->prng, 1, 6);
    struct request *request = request_make(REQUEST_EXEC);
    struct model_op *op = check_op(client, object, steps);
    for (u32 i = 0; i < steps; i++)
        step_draw(client, object, &op->steps[i]);
    request->ops[request->op_count++] = op;
    return request;
}

/* Compare and swap. RESP: WATCH and GET, then MULTI and EXEC with what was found. Native: GET tells
 * a version that PUT demands. Between these the client sends nothing else. */
static struct request *
swap_begin(struct client *client)
{
    if (client->pending_count > 0) return NULL;
    u32 object = object_draw(client, 1u << OBJECT_REGISTER, 1, true);
    if (object == UINT32_MAX) return NULL;
    client->swap_key = &run->keys[run->objects[object].key_first + key_draw(client, object)];
    client->swap = client->native ? SWAP_WATCHED : SWAP_WATCHES;
    if (client->native) return NULL; /* reads next time */
    return request_make(REQUEST_WATCH);
}

static struct request *
swap_write(struct client *client)
{
    const struct key *key = client->swap_key;
    u32 object = key->object;
    struct model_step put = {.kind = MODEL_PUT, .key = (u8)key->index};
    client->swap = SWAP_NOT;
    if (client->native && client->swap_value == VALUE_ABSENT) return NULL;
    put.value = value_draw(client, object);
    if (client->native) {
        put.flags = MODEL_IF_VERSION;
        put.version = client->swap_version;
        return single(client, object, &put);
    }
    struct request *request = request_make(REQUEST_EXEC);
    struct model_op *op = check_op(client, object, 2);
    op->steps[0] = (struct model_step){
        .kind = MODEL_EXPECT, .key = (u8)key->index, .value = client->swap_value};
    op->steps[1] = put;
    request->ops[request->op_count++] = op;
    return request;
}

static struct request *
swap_next(struct client *client)
{
    const struct key *key = client->swap_key;
    if (client->pending_count > 0) return NULL;
    if (client->swap == SWAP_HAS_READ) return swap_write(client);
    if (client->swap == SWAP_WATCHED) {
        client->swap = SWAP_READS;
        struct model_step get = {.kind = MODEL_GET, .key = (u8)key->index};
        return single(client, key->object, &get);
    }
    /* WATCH or GET was refused: what is watched now is not known, so another connection. */
    client->swap = SWAP_NOT;
    client->broken = true;
    return NULL;
}

static struct request *
batch_draw(struct client *client)
{
    u32 object = object_draw(client, 1u << OBJECT_REGISTER, 1, true);
    if (object == UINT32_MAX) return NULL;
    u32 steps = (u32)prng_range(&client->prng, 1, run->objects[object].key_count);
    struct request *request = request_make(REQUEST_BATCH);
    struct model_op *op = check_op(client, object, steps);
    for (u32 i = 0; i < steps; i++) {
        struct model_step *step = &op->steps[i];
        if (prng_chance(&client->prng, 1, 4)) {
            *step = (struct model_step){.kind = MODEL_DELETE};
            if (prng_chance(&client->prng, 1, 4)) step->flags = MODEL_IF_PRESENT;
        } else {
            put_draw(client, object, step, prng_chance(&client->prng, 1, 4));
        }
        step->key = (u8)i;
    }
    op->all = MODEL_ALL_ANY;
    request->ops[request->op_count++] = op;
    return request;
}

static struct request *
clear_draw(struct client *client)
{
    struct request *request = request_make(REQUEST_CLEAR);
    /* An operation for every object of the keyspace: only where that is few. */
    for (u32 i = 0; i < run->object_count; i++) {
        const struct object *object = &run->objects[i];
        if (object->keyspace != client->keyspace) continue;
        if (request->op_count == REQUEST_OPS_MAX || !check_has_room(object, true)) goto no_room;
        struct model_op *op = check_op(client, i, 1);
        op->steps[0] = (struct model_step){.kind = MODEL_CLEAR};
        request->ops[request->op_count++] = op;
    }
    return request;
no_room:
    while (request->op_count > 0)
        free(request->ops[--request->op_count]);
    request_drop(request);
    return NULL;
}

static struct request *
scan_draw(struct client *client, bool snapshot)
{
    if (client->scan.active) return NULL;
    u16 keyspace = client->keyspace;
    if (client->native)
        keyspace = run->objects[prng_below(&client->prng, run->object_count)].keyspace;
    check_scan_begin(client, keyspace);
    if (!snapshot) return request_make(REQUEST_SCAN);
    check_instant_begin(client);
    client->scan.values = calloc(run->key_count, sizeof(*client->scan.values));
    client->scan.versions = calloc(run->key_count, sizeof(*client->scan.versions));
    CHECK(client->scan.values != NULL && client->scan.versions != NULL);
    return request_make(REQUEST_SNAPSHOT);
}

static struct request *
other_draw(struct client *client, bool config)
{
    static const char *const others[] = {
        "PING",          "INFO",          "ECHO hello",   "CLIENT ID",
        "COMMAND COUNT", "CLUSTER SLOTS", "TIME",         "CLIENT LIST",
        "SLOWLOG GET",   "RANDOMKEY",     "CONFIG GET *", "LATENCY HISTOGRAM",
        "NOSUCHCOMMAND", "GET",           "OBJECT HELP",
    };
    static const char *const configs[] = {
        "CONFIG SET slowlog-log-slower-than 0",
        "CONFIG SET slowlog-log-slower-than -1",
        "CONFIG SET slowlog-max-len 3",
        "CONFIG SET timeout 0",
        "CONFIG SET scrub-rate 1MiB",
        "CONFIG SET scrub-rate 0",
        "CONFIG SET log-level warning",
        "CONFIG SET latency-monitor-threshold 1",
        "CONFIG RESETSTAT",
        "CONFIG SET maxclients nonsense",
    };
    struct request *request = request_make(REQUEST_OTHER);
    request->text = config ? configs[prng_below(&client->prng, ARRAY_COUNT(configs))]
                           : others[prng_below(&client->prng, ARRAY_COUNT(others))];
    return request;
}

/* ---- the choice ---- */

static bool
action_fits(const struct client *client, enum action action)
{
    switch (action) {
    case ACTION_GETDEL:
    case ACTION_GROW:
    case ACTION_MGET:
    case ACTION_MSET:
    case ACTION_DEL_N:
    case ACTION_MSETNX:
    case ACTION_MOVE:
    case ACTION_EXEC:
    case ACTION_KEYS:
    case ACTION_FLUSH:
    case ACTION_CONFIG:
        return !client->native;
    case ACTION_BATCH:
    case ACTION_SNAPSHOT:
        return client->native;
    default:
        return true;
    }
}

static enum action
action_draw(struct client *client)
{
    u64 total = 0;
    for (u32 i = 0; i < ACTION_COUNT; i++)
        if (action_fits(client, (enum action)i)) total += run->knobs.weights[i];
    if (total == 0) return ACTION_GET;
    u64 draw = prng_below(&client->prng, total);
    for (u32 i = 0;; i++) {
        if (!action_fits(client, (enum action)i)) continue;
        if (draw < run->knobs.weights[i]) return (enum action)i;
        draw -= run->knobs.weights[i];
    }
}

struct request *
workload_next(struct client *client)
{
    if (client->swap != SWAP_NOT) return swap_next(client);
    enum action action = action_draw(client);
    switch (action) {
    case ACTION_MGET:
        return many_draw(client, REQUEST_VALUES);
    case ACTION_MSET:
        return many_draw(client, REQUEST_ALL);
    case ACTION_DEL_N:
        return many_draw(client, REQUEST_SUM);
    case ACTION_MSETNX:
        return many_draw(client, REQUEST_ALL_NX);
    case ACTION_EXEC:
        return exec_draw(client);
    case ACTION_SWAP:
        return swap_begin(client);
    case ACTION_BATCH:
        return batch_draw(client);
    case ACTION_SCAN:
        return scan_draw(client, false);
    case ACTION_SNAPSHOT:
        return scan_draw(client, true);
    case ACTION_KEYS:
        if (client->scan.active) return NULL;
        check_scan_begin(client, client->keyspace);
        check_instant_begin(client);
        return request_make(REQUEST_KEYS);
    case ACTION_COUNT_KEYS:
        return request_make(REQUEST_COUNT);
    case ACTION_FLUSH:
        return clear_draw(client);
    case ACTION_CONFIG:
    case ACTION_OTHER:
        return other_draw(client, action == ACTION_CONFIG);
    default:
        return single_draw(client, action);
    }
}
