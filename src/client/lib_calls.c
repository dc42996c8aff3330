/* SPDX-License-Identifier: MIT
 *
 * lib_calls.c -- the public calls: each builds a request; the blocking ones then turn the handle's
 * loop until its reply is there. Deadlines bound that: every request has one.
 */
#include "client/lib_internal.h"

#include "base/hash.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- arguments ---- */

int
lib_make_op(struct native_op *op, u8 kind, const void *key, size_t key_size, const void *value,
            size_t value_size, const struct distkv_write *write, const char **error)
{
    static const struct distkv_write plain;
    if (write == NULL) write = &plain;
    *error = "unknown condition or expiry";
    if (write->condition < 0 || write->condition > NATIVE_IF_VERSION) return DISTKV_INVALID;
    if (write->expiry < 0 || write->expiry > NATIVE_EXPIRY_KEEP) return DISTKV_INVALID;
    *op = (struct native_op){.kind = kind,
                             .condition = (u8)write->condition,
                             .expiry = (u8)write->expiry,
                             .version = write->version,
                             .expiry_ms = write->expiry_ms,
                             .key = BYTES(key, key_size),
                             .value = BYTES(value, value_size)};
    status st = native_op_check(op, error);
    if (ok(st)) return DISTKV_OK;
    return status_is(st, ST_TOO_LARGE) ? DISTKV_TOO_LARGE : DISTKV_INVALID;
}

static int
check_key(struct distkv *kv, size_t key_size)
{
    if (key_size == 0) return lib_fail(kv, DISTKV_INVALID, "key is empty");
    if (key_size > LIMIT_KEY_BYTES)
        return lib_fail(kv, DISTKV_TOO_LARGE, "key is longer than %u bytes", LIMIT_KEY_BYTES);
    return DISTKV_OK;
}

static struct native_request
request_for(enum native_opcode opcode)
{
    return (struct native_request){.header.opcode = (u8)opcode};
}

static u32
slot_of(struct bytes key)
{
    return hash_slot(key);
}

uint32_t
distkv_slot(const void *key, size_t key_size)
{
    return hash_slot(BYTES(key, key_size));
}

/* ---- blocking ---- */

static void
waiter_done(struct request *request, int code, const char *error, const struct native_reply *reply)
{
    struct waiter *waiter = request->arg;
    waiter->finished = true;
    if (waiter->left != NULL) {
        waiter->left(waiter->left_arg);
        return;
    }
    waiter->code = code;
    waiter->run_id = waiter->kv->reply_run_id;
    snprintf(waiter->error, sizeof(waiter->error), "%s", error);
    if (reply == NULL) return;
    waiter->reply = *reply;
    if (reply->header.status != NATIVE_ST_OK) return;
    /* What the reply points to lies in the connection's buffer: keep the one span that a caller
     * reads, with a zero byte behind it. */
    struct bytes span = BYTES(NULL, 0);
    struct bytes *target = NULL;
    if (reply->header.opcode == NATIVE_GET) target = &waiter->reply.get.value;
    if (reply->header.opcode == NATIVE_STATUS) target = &waiter->reply.status.json;
    if (reply->header.opcode == NATIVE_CLUSTER) target = &waiter->reply.cluster.json;
    if (reply->header.opcode == NATIVE_SCAN) target = &waiter->reply.scan.entries;
    if (reply->header.opcode == NATIVE_GET_SIBLINGS) target = &waiter->reply.siblings.values;
    if (target == NULL) return;
    span = *target;
    struct bytes next = BYTES(NULL, 0);
    if (reply->header.opcode == NATIVE_SCAN) next = reply->scan.next.key;
    if (reply->header.opcode == NATIVE_GET_SIBLINGS) next = reply->siblings.context;
    if (!lib_reserve(waiter->kv, &waiter->body, span.size + next.size + 1) ||
        !buf_append(&waiter->body, span.data, span.size) ||
        !buf_append(&waiter->body, next.data, next.size) || !buf_append(&waiter->body, "", 1)) {
        waiter->code = DISTKV_NO_MEMORY;
        snprintf(waiter->error, sizeof(waiter->error), "no memory for the reply");
        return;
    }
    *target = BYTES(waiter->body.data, span.size);
    if (reply->header.opcode == NATIVE_SCAN)
        waiter->reply.scan.next.key = BYTES(waiter->body.data + span.size, next.size);
    if (reply->header.opcode == NATIVE_GET_SIBLINGS)
        waiter->reply.siblings.context = BYTES(waiter->body.data + span.size, next.size);
}

/* A caller's. One that keeps the handle full does not keep it from connecting again. */
static struct request *
call_new(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable)
{
    if (kv->table_used >= LIB_PENDING_MAX) return NULL;
    struct request *request = request_new(kv, native, slot, repeatable);
    if (request == NULL || kv->pending == 0 || budget_available(&kv->budget) >= LIB_OWN_BYTES)
        return request;
    if (connections_give_back(kv) && budget_available(&kv->budget) >= LIB_OWN_BYTES) return request;
    request_free(kv, request);
    return NULL;
}

void
waiter_deinit(struct waiter *waiter)
{
    if (waiter->body.budget != NULL) buf_deinit(&waiter->body);
}

int
lib_call_start(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable,
               struct waiter *waiter)
{
    *waiter = (struct waiter){.kv = kv};
    buf_init(&waiter->body, &kv->budget);
    struct request *request = call_new(kv, native, slot, repeatable);
    if (request == NULL)
        return lib_fail(kv, DISTKV_NO_MEMORY, "%s", distkv_code_text(DISTKV_NO_MEMORY));
    request_start(kv, request, request_deadline(kv), waiter_done, waiter);
    return DISTKV_OK;
}

int
lib_call_wait(struct distkv *kv, struct waiter *waiter)
{
    while (!waiter->finished)
        distkv_process(kv, -1);
    if (waiter->code != DISTKV_OK) lib_fail(kv, waiter->code, "%s", waiter->error);
    return waiter->code;
}

int
lib_call(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable,
         struct waiter *waiter)
{
    *waiter = (struct waiter){0};
    if (kv->in_process)
        return lib_fail(kv, DISTKV_INVALID, "a blocking call from within a callback");
    int code = lib_call_start(kv, native, slot, repeatable, waiter);
    return code == DISTKV_OK ? lib_call_wait(kv, waiter) : code;
}

/* For calls whose reply is only its code. */
static int
lib_call_simple(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable)
{
    struct waiter waiter;
    int code = lib_call(kv, native, slot, repeatable, &waiter);
    waiter_deinit(&waiter);
    return code;
}

void
distkv_free(void *memory)
{
    free(memory);
}

void
distkv_value_free(struct distkv_value *value)
{
    free(value->data);
    *value = (struct distkv_value){0};
}

int
distkv_get(distkv *kv, const void *key, size_t key_size, struct distkv_value *out)
{
    *out = (struct distkv_value){0};
    int code = check_key(kv, key_size);
    if (code != DISTKV_OK) return code;
    struct native_request native = request_for(NATIVE_GET);
    native.get.key = BYTES(key, key_size);
    struct waiter waiter;
    code = lib_call(kv, &native, slot_of(native.get.key), true, &waiter);
    if (code == DISTKV_OK) {
        struct bytes value = waiter.reply.get.value;
        out->data = malloc(value.size + 1);
        if (out->data == NULL) {
            code = lib_fail(kv, DISTKV_NO_MEMORY, "out of memory");
        } else {
            memcpy(out->data, value.data, value.size + 1);
            out->size = value.size;
            out->version = waiter.reply.get.version;
            out->expire_ms = waiter.reply.get.expire_ms;
        }
    }
    waiter_deinit(&waiter);
    return code;
}

static int
write_request(struct distkv *kv, u8 kind, const void *key, size_t key_size, const void *value,
              size_t value_size, const struct distkv_write *write, struct native_request *out)
{
    const char *error;
    *out = request_for(kind == NATIVE_OP_PUT ? NATIVE_PUT : NATIVE_DELETE);
    int code = lib_make_op(&out->op, kind, key, key_size, value, value_size, write, &error);
    return code == DISTKV_OK ? code : lib_fail(kv, code, "%s", error);
}

int
distkv_put(distkv *kv, const void *key, size_t key_size, const void *value, size_t value_size,
           const struct distkv_write *write, uint64_t *version_out)
{
    struct native_request native;
    int code = write_request(kv, NATIVE_OP_PUT, key, key_size, value, value_size, write, &native);
    if (code != DISTKV_OK) return code;
    struct waiter waiter;
    code = lib_call(kv, &native, slot_of(native.op.key), lib_op_repeatable(&native.op), &waiter);
    if (version_out != NULL && code == DISTKV_OK) *version_out = waiter.reply.written.version;
    if (version_out != NULL && code == DISTKV_CONFLICT) *version_out = waiter.reply.error.detail;
    waiter_deinit(&waiter);
    return code;
}

int
distkv_delete(distkv *kv, const void *key, size_t key_size, const struct distkv_write *write)
{
    struct native_request native;
    int code = write_request(kv, NATIVE_OP_DELETE, key, key_size, NULL, 0, write, &native);
    if (code != DISTKV_OK) return code;
    return lib_call_simple(kv, &native, slot_of(native.op.key), lib_op_repeatable(&native.op));
}

static int64_t
remaining_of(const struct native_reply *reply)
{
    if (reply->ttl.expire_ms == 0) return -1;
    return (int64_t)MIN(reply->ttl.remaining_ms, (u64)INT64_MAX);
}

int
distkv_ttl(distkv *kv, const void *key, size_t key_size, int64_t *remaining_ms_out)
{
    int code = check_key(kv, key_size);
    if (code != DISTKV_OK) return code;
    struct native_request native = request_for(NATIVE_TTL);
    native.ttl.key = BYTES(key, key_size);
    struct waiter waiter;
    code = lib_call(kv, &native, slot_of(native.ttl.key), true, &waiter);
    if (code == DISTKV_OK) *remaining_ms_out = remaining_of(&waiter.reply);
    waiter_deinit(&waiter);
    return code;
}

static int
expire_request(struct distkv *kv, const void *key, size_t key_size, int expiry, u64 expiry_ms,
               struct native_request *out)
{
    int code = check_key(kv, key_size);
    if (code != DISTKV_OK) return code;
    if (expiry < 0 || expiry > NATIVE_EXPIRY_AT ||
        (expiry != NATIVE_EXPIRY_NONE) != (expiry_ms != 0))
        return lib_fail(kv, DISTKV_INVALID,
                        "expiry must be NEVER with 0, or AFTER or AT with a time");
    *out = request_for(NATIVE_EXPIRE);
    out->expire.expiry = (u8)expiry;
    out->expire.expiry_ms = expiry_ms;
    out->expire.key = BYTES(key, key_size);
    return DISTKV_OK;
}

int
distkv_expire(distkv *kv, const void *key, size_t key_size, int expiry, uint64_t expiry_ms)
{
    struct native_request native;
    int code = expire_request(kv, key, key_size, expiry, expiry_ms, &native);
    if (code != DISTKV_OK) return code;
    return lib_call_simple(kv, &native, slot_of(native.expire.key), true);
}

void
distkv_siblings_free(struct distkv_siblings *siblings)
{
    free(siblings->memory);
    *siblings = (struct distkv_siblings){0};
}

/* One piece of memory: the array, the context, the values, each with a zero byte behind it. */
static bool
siblings_copy(const struct native_reply *reply, struct distkv_siblings *out)
{
    u32 count = reply->siblings.count;
    struct bytes context = reply->siblings.context, rest = reply->siblings.values;
    size_t array = count * sizeof(struct distkv_sibling);
    u8 *memory = malloc(array + context.size + 1 + rest.size + count);
    if (memory == NULL) return false;
    *out = (struct distkv_siblings){.version = reply->siblings.version,
                                    .context = memory + array,
                                    .context_size = context.size,
                                    .values = (struct distkv_sibling *)(void *)memory,
                                    .count = count,
                                    .memory = memory};
    u8 *at = memory + array;
    if (context.size != 0) memcpy(at, context.data, context.size);
    at[context.size] = 0;
    at += context.size + 1;
    struct native_sibling sibling;
    for (u32 i = 0; i < count && native_sibling_next(&rest, &sibling); i++) {
        out->values[i] = (struct distkv_sibling){
            .data = at, .size = sibling.value.size, .version = sibling.version};
        if (sibling.value.size != 0) memcpy(at, sibling.value.data, sibling.value.size);
        at[sibling.value.size] = 0;
        at += sibling.value.size + 1;
    }
    return true;
}

int
distkv_get_siblings(distkv *kv, const void *key, size_t key_size, struct distkv_siblings *out)
{
    *out = (struct distkv_siblings){0};
    int code = check_key(kv, key_size);
    if (code != DISTKV_OK) return code;
    struct native_request native = request_for(NATIVE_GET_SIBLINGS);
    native.get.key = BYTES(key, key_size);
    struct waiter waiter;
    code = lib_call(kv, &native, slot_of(native.get.key), true, &waiter);
    if (code == DISTKV_OK && !siblings_copy(&waiter.reply, out))
        code = lib_fail(kv, DISTKV_NO_MEMORY, "out of memory");
    waiter_deinit(&waiter);
    return code;
}

static int
put_siblings(struct distkv *kv, u8 kind, struct bytes key, struct bytes context, struct bytes value,
             uint64_t *version_out)
{
    struct native_op op = {.kind = kind, .key = key, .value = value};
    const char *error = "";
    status st = native_op_check(&op, &error);
    if (!ok(st))
        return lib_fail(kv, status_is(st, ST_TOO_LARGE) ? DISTKV_TOO_LARGE : DISTKV_INVALID, "%s",
                        error);
    if (context.size > NATIVE_CONTEXT_BYTES_MAX)
        return lib_fail(kv, DISTKV_TOO_LARGE, "context is longer than %u bytes",
                        NATIVE_CONTEXT_BYTES_MAX);
    struct native_request native = request_for(NATIVE_PUT_SIBLINGS);
    native.siblings.kind = kind;
    native.siblings.key = key;
    native.siblings.context = context;
    native.siblings.value = value;
    struct waiter waiter;
    /* Done twice it would be two siblings. */
    int code = lib_call(kv, &native, slot_of(key), false, &waiter);
    if (version_out != NULL && code == DISTKV_OK) *version_out = waiter.reply.written.version;
    waiter_deinit(&waiter);
    return code;
}

int
distkv_put_siblings(distkv *kv, const void *key, size_t key_size, const void *value,
                    size_t value_size, const void *context, size_t context_size,
                    uint64_t *version_out)
{
    return put_siblings(kv, NATIVE_OP_PUT, BYTES(key, key_size), BYTES(context, context_size),
                        BYTES(value, value_size), version_out);
}

int
distkv_delete_siblings(distkv *kv, const void *key, size_t key_size, const void *context,
                       size_t context_size)
{
    return put_siblings(kv, NATIVE_OP_DELETE, BYTES(key, key_size), BYTES(context, context_size),
                        BYTES(NULL, 0), NULL);
}

int
distkv_count(distkv *kv, int exact, uint64_t *count_out)
{
    struct native_request native = request_for(NATIVE_COUNT);
    native.count.exact = exact != 0;
    struct waiter waiter;
    int code = lib_call(kv, &native, LIB_ANYWHERE, true, &waiter);
    if (code == DISTKV_OK) *count_out = waiter.reply.count.count;
    waiter_deinit(&waiter);
    return code;
}

int
distkv_status(distkv *kv, char **json_out)
{
    struct native_request native = request_for(NATIVE_STATUS);
    struct waiter waiter;
    int code = lib_call(kv, &native, LIB_ANYWHERE, true, &waiter);
    if (code == DISTKV_OK) {
        *json_out =
            strndup((const char *)waiter.reply.status.json.data, waiter.reply.status.json.size);
        if (*json_out == NULL) code = lib_fail(kv, DISTKV_NO_MEMORY, "out of memory");
    }
    waiter_deinit(&waiter);
    return code;
}

int
distkv_cluster(distkv *kv, const struct distkv_cluster_request *request, char **json_out,
               uint64_t *number_out)
{
    const char *node = request->node == NULL ? "" : request->node;
    const char *name = request->name == NULL ? "" : request->name;
    struct native_request native = request_for(NATIVE_CLUSTER);
    struct native_cluster *cluster = &native.cluster;
    if (request->function <= 0 || request->function > DISTKV_CLUSTER_DRAIN ||
        request->replicas > 255 || request->write_quorum > 255 || request->read_quorum > 255 ||
        request->keyspace > DISTKV_KEYSPACE_ANY)
        return lib_fail(kv, DISTKV_INVALID, "a number is out of range");
    int sloppy = request->sloppy > 0   ? NATIVE_CLUSTER_SLOPPY
                 : request->sloppy < 0 ? NATIVE_CLUSTER_NOT_SLOPPY
                                       : 0;
    *cluster =
        (struct native_cluster){.function = (u8)request->function,
                                .flags = (u8)((request->dead ? NATIVE_CLUSTER_DEAD : 0) |
                                              (request->create ? NATIVE_CLUSTER_CREATE : 0) |
                                              (request->undo ? NATIVE_CLUSTER_UNDO : 0) |
                                              (request->force ? NATIVE_CLUSTER_FORCE : 0) | sloppy),
                                .conflict = request->siblings ? 1 : 0,
                                .replicas = (u8)request->replicas,
                                .write_quorum = (u8)request->write_quorum,
                                .read_quorum = (u8)request->read_quorum,
                                .keyspace = (u16)request->keyspace,
                                .weight = request->weight,
                                .node = BYTES(node, strlen(node)),
                                .name = BYTES(name, strlen(name))};
    const char *error = "";
    if (!ok(native_cluster_check(cluster, &error)))
        return lib_fail(kv, DISTKV_INVALID, "%s", error);
    bool reads = request->function == DISTKV_CLUSTER_STATUS ||
                 request->function == DISTKV_CLUSTER_RING ||
                 request->function == DISTKV_CLUSTER_KEYSPACES ||
                 request->function == DISTKV_CLUSTER_KEYSPACE_FIND;
    struct waiter waiter;
    int code = lib_call(kv, &native, LIB_ANYWHERE, reads, &waiter);
    if (code == DISTKV_OK && number_out != NULL) *number_out = waiter.reply.cluster.number;
    if (code == DISTKV_OK && json_out != NULL) {
        struct bytes json = waiter.reply.cluster.json;
        *json_out = strndup((const char *)json.data, json.size);
        if (*json_out == NULL) code = lib_fail(kv, DISTKV_NO_MEMORY, "out of memory");
    }
    waiter_deinit(&waiter);
    return code;
}

int
distkv_keyspace_find(distkv *kv, const char *name, uint32_t *keyspace_out)
{
    struct distkv_cluster_request request = {.function = DISTKV_CLUSTER_KEYSPACE_FIND,
                                             .name = name};
    uint64_t number = 0;
    int code = distkv_cluster(kv, &request, NULL, &number);
    if (code == DISTKV_OK && number >= DISTKV_KEYSPACES)
        return lib_fail(kv, DISTKV_SERVER_ERROR, "the server named a keyspace that is none");
    if (code == DISTKV_OK) *keyspace_out = (uint32_t)number;
    return code;
}

int
distkv_ping(distkv *kv)
{
    struct native_request native = request_for(NATIVE_PING);
    return lib_call_simple(kv, &native, LIB_ANYWHERE, true);
}

/* ---- asynchronous ---- */

static void
async_done(struct request *request, int code, const char *error, const struct native_reply *reply)
{
    struct distkv_result result = {
        .code = code,
        .error = code == DISTKV_OK ? "" : error,
        .remaining_ms = -1,
        .attempts = request->attempts,
    };
    if (reply != NULL && reply->header.status != NATIVE_ST_OK) {
        if (code == DISTKV_CONFLICT) result.version = reply->error.detail;
    } else if (reply != NULL) {
        result.replayed = (reply->header.flags & NATIVE_FLAG_REPLAYED) != 0;
        struct bytes value = BYTES(NULL, 0);
        switch ((enum native_opcode)reply->header.opcode) {
        case NATIVE_GET:
            value = reply->get.value;
            result.version = reply->get.version;
            result.expire_ms = reply->get.expire_ms;
            break;
        case NATIVE_PUT:
        case NATIVE_DELETE:
        case NATIVE_BATCH:
        case NATIVE_EXPIRE:
        case NATIVE_PUT_SIBLINGS:
            result.version = reply->written.version;
            break;
        case NATIVE_TTL:
            result.version = reply->ttl.version;
            result.expire_ms = reply->ttl.expire_ms;
            result.remaining_ms = remaining_of(reply);
            break;
        case NATIVE_PING:
            value = reply->ping.payload;
            break;
        case NATIVE_HELLO:
        case NATIVE_GET_SIBLINGS:
        case NATIVE_SCAN:
        case NATIVE_SNAPSHOT_OPEN:
        case NATIVE_SNAPSHOT_CLOSE:
        case NATIVE_COUNT:
        case NATIVE_STATUS:
        case NATIVE_CLUSTER:
        case NATIVE_TOPOLOGY:
            break;
        }
        result.value = value.data;
        result.value_size = value.size;
    }
    request->callback(request->callback_arg, &result);
}

int
lib_start_async(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable,
                distkv_callback callback, void *arg)
{
    return lib_start_async_until(kv, native, slot, repeatable, request_deadline(kv), callback, arg);
}

int
lib_start_async_until(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable,
                      u64 deadline_ns, distkv_callback callback, void *arg)
{
    if (callback == NULL) return lib_fail(kv, DISTKV_INVALID, "no callback");
    if (kv->closing) return lib_fail(kv, DISTKV_CANCELED, "the handle is being closed");
    struct request *request = call_new(kv, native, slot, repeatable);
    if (request == NULL)
        return lib_fail(kv, DISTKV_NO_MEMORY, "%s", distkv_code_text(DISTKV_NO_MEMORY));
    request->callback = callback;
    request->callback_arg = arg;
    request_start(kv, request, deadline_ns, async_done, NULL);
    return DISTKV_OK;
}

int
distkv_get_async(distkv *kv, const void *key, size_t key_size, distkv_callback callback, void *arg)
{
    int code = check_key(kv, key_size);
    if (code != DISTKV_OK) return code;
    struct native_request native = request_for(NATIVE_GET);
    native.get.key = BYTES(key, key_size);
    return lib_start_async(kv, &native, slot_of(native.get.key), true, callback, arg);
}

int
distkv_put_async(distkv *kv, const void *key, size_t key_size, const void *value, size_t value_size,
                 const struct distkv_write *write, distkv_callback callback, void *arg)
{
    struct native_request native;
    int code = write_request(kv, NATIVE_OP_PUT, key, key_size, value, value_size, write, &native);
    if (code != DISTKV_OK) return code;
    return lib_start_async(kv, &native, slot_of(native.op.key), lib_op_repeatable(&native.op),
                           callback, arg);
}

int
distkv_delete_async(distkv *kv, const void *key, size_t key_size, const struct distkv_write *write,
                    distkv_callback callback, void *arg)
{
    struct native_request native;
    int code = write_request(kv, NATIVE_OP_DELETE, key, key_size, NULL, 0, write, &native);
    if (code != DISTKV_OK) return code;
    return lib_start_async(kv, &native, slot_of(native.op.key), lib_op_repeatable(&native.op),
                           callback, arg);
}

int
distkv_ttl_async(distkv *kv, const void *key, size_t key_size, distkv_callback callback, void *arg)
{
    int code = check_key(kv, key_size);
    if (code != DISTKV_OK) return code;
    struct native_request native = request_for(NATIVE_TTL);
    native.ttl.key = BYTES(key, key_size);
    return lib_start_async(kv, &native, slot_of(native.ttl.key), true, callback, arg);
}

int
distkv_expire_async(distkv *kv, const void *key, size_t key_size, int expiry, uint64_t expiry_ms,
                    distkv_callback callback, void *arg)
{
    struct native_request native;
    int code = expire_request(kv, key, key_size, expiry, expiry_ms, &native);
    if (code != DISTKV_OK) return code;
    return lib_start_async(kv, &native, slot_of(native.expire.key), true, callback, arg);
}

int
distkv_ping_async(distkv *kv, distkv_callback callback, void *arg)
{
    struct native_request native = request_for(NATIVE_PING);
    return lib_start_async(kv, &native, LIB_ANYWHERE, true, callback, arg);
}
