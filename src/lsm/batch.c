/* SPDX-License-Identifier: MIT
 *
 * batch.c -- operations encoded as the log stores them, so that a batch is copied into a log record
 * without looking at it: | struct log_op | key | value | struct log_op | ...
 */
#include "base/fault.h"
#include "base/hash.h"
#include "lsm/lsm_internal.h"

void
lsm_batch_init(struct lsm_batch *batch, struct budget *budget)
{
    buf_init(&batch->ops, budget);
    batch->count = 0;
    batch->until_ms = 0;
    batch->version = 0;
    batch->of_reserve = false;
}

void
lsm_batch_deinit(struct lsm_batch *batch)
{
    buf_deinit(&batch->ops);
    batch->count = 0;
}

#define BATCH_KEEP_BYTES KIB(16)

void
lsm_batch_clear(struct lsm_batch *batch)
{
    buf_clear(&batch->ops, BATCH_KEEP_BYTES);
    batch->count = 0;
    batch->until_ms = 0;
    batch->version = 0;
    batch->of_reserve = false;
}

static bool
batch_add(struct lsm_batch *batch, const struct log_op *header, struct bytes key,
          struct bytes value)
{
    CHECK(header->keyspace < LIMIT_KEYSPACES);
    CHECK(batch->count < UINT32_MAX);
    size_t size = sizeof(*header) + key.size + value.size;
    if (!buf_reserve(&batch->ops, size)) return MARKED("lsm.batch.no_memory", false);
    u8 *p = batch->ops.data + batch->ops.size;
    memcpy(p, header, sizeof(*header));
    p += sizeof(*header);
    if (key.size > 0) memcpy(p, key.data, key.size);
    if (value.size > 0) memcpy(p + key.size, value.data, value.size);
    batch->ops.size += size;
    batch->count++;
    return true;
}

bool
lsm_batch_put(struct lsm_batch *batch, u16 keyspace, u64 token, struct bytes key,
              struct bytes value, u64 expire_ms)
{
    CHECK(key.size > 0 && key.size <= LIMIT_KEY_BYTES);
    CHECK(value.size <= LIMIT_VALUE_BYTES);
    DCHECK(token == hash_token(key));
    struct log_op header = {
        .kind = ENTRY_PUT,
        .key_size = (u16)key.size,
        .value_size = (u32)value.size,
        .keyspace = keyspace,
        .token = token,
        .expire_ms = expire_ms,
    };
    return batch_add(batch, &header, key, value);
}

bool
lsm_batch_delete(struct lsm_batch *batch, u16 keyspace, u64 token, struct bytes key)
{
    CHECK(key.size > 0 && key.size <= LIMIT_KEY_BYTES);
    DCHECK(token == hash_token(key));
    struct log_op header = {
        .kind = ENTRY_DELETE,
        .key_size = (u16)key.size,
        .keyspace = keyspace,
        .token = token,
    };
    return batch_add(batch, &header, key, BYTES(NULL, 0));
}

bool
lsm_batch_delete_range(struct lsm_batch *batch, u16 keyspace, u64 token_first, u64 token_last)
{
    CHECK(batch->count == 0);
    CHECK(token_first <= token_last);
    u8 last[sizeof(u64)];
    store_u64(last, token_last);
    struct log_op header = {
        .kind = ENTRY_DELETE_RANGE,
        .value_size = sizeof(last),
        .keyspace = keyspace,
        .token = token_first,
    };
    return batch_add(batch, &header, BYTES(NULL, 0), BYTES(last, sizeof(last)));
}

static bool
op_is_sound(const struct log_op *op)
{
    if (op->keyspace >= LIMIT_KEYSPACES || op->reserved != 0 || op->reserved2 != 0 ||
        op->flags != 0)
        return false;
    switch (op->kind) {
    case ENTRY_PUT:
        return op->key_size > 0 && op->key_size <= LIMIT_KEY_BYTES &&
               op->value_size <= LIMIT_VALUE_BYTES;
    case ENTRY_DELETE:
        return op->key_size > 0 && op->key_size <= LIMIT_KEY_BYTES && op->value_size == 0 &&
               op->expire_ms == 0;
    case ENTRY_DELETE_RANGE:
        return op->key_size == 0 && op->value_size == sizeof(u64) && op->expire_ms == 0;
    }
    return false;
}

bool
lsm_op_next(struct bytes *rest, struct lsm_op *out, bool *bad)
{
    *bad = false;
    if (rest->size == 0) return false;
    struct lsm_op op;
    if (rest->size < sizeof(op.header)) goto broken;
    memcpy(&op.header, rest->data, sizeof(op.header));
    if (!op_is_sound(&op.header)) goto broken;
    size_t size = sizeof(op.header) + op.header.key_size + op.header.value_size;
    if (rest->size < size) goto broken;
    op.key = BYTES(rest->data + sizeof(op.header), op.header.key_size);
    op.value = BYTES(op.key.data + op.header.key_size, op.header.value_size);
    if (op.header.kind == ENTRY_DELETE_RANGE && load_u64(op.value.data) < op.header.token)
        goto broken;
    *rest = BYTES(rest->data + size, rest->size - size);
    *out = op;
    return true;

broken:
    *bad = true;
    return false;
}

status
lsm_ops_check(struct bytes ops, u32 count, u16 keyspace, u64 token_first, u64 token_last)
{
    struct lsm_op op;
    bool bad;
    u32 seen = 0;
    while (lsm_op_next(&ops, &op, &bad)) {
        const struct log_op *header = &op.header;
        if (header->kind == ENTRY_DELETE_RANGE || header->keyspace != keyspace ||
            header->token < token_first || header->token > token_last ||
            header->token != hash_token(op.key))
            return MARKED("lsm.batch.foreign_operation", ST_INVALID);
        seen++;
    }
    if (bad || seen != count) return MARKED("lsm.batch.cut_off", ST_INVALID);
    return ST_OK;
}
