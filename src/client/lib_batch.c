/* SPDX-License-Identifier: MIT
 *
 * lib_batch.c -- batches: operations in the protocol's encoding, and an index of them by slot.
 *
 * An atomic batch is one frame. distkv_batch_commit_parts cuts a batch by slot (keeping the order
 * of operations within each) and sends the parts pipelined, each of them atomic.
 */
#include "client/lib_internal.h"

#include "base/hash.h"

#include <stdio.h>
#include <stdlib.h>

struct batch_entry {
    u32 slot;
    u32 offset; /* into ops */
    u32 size;
    bool repeatable;
};

struct distkv_batch {
    struct budget budget;
    struct buf ops;
    struct buf index; /* struct batch_entry[count] */
    u32 count;
};

/* Parts that are under way at the same time: bounds the memory that their frames take. */
#define BATCH_PARTS_IN_FLIGHT 256u

static struct batch_entry *
batch_entries(const struct buf *index)
{
    return (struct batch_entry *)(void *)index->data;
}

distkv_batch *
distkv_batch_new(void)
{
    distkv_batch *batch = calloc(1, sizeof(*batch));
    if (batch == NULL) return NULL;
    budget_init(&batch->budget, "batch", 4ull * LIMIT_BATCH_BYTES, NULL);
    buf_init(&batch->ops, &batch->budget);
    buf_init(&batch->index, &batch->budget);
    return batch;
}

void
distkv_batch_free(distkv_batch *batch)
{
    if (batch == NULL) return;
    buf_deinit(&batch->ops);
    buf_deinit(&batch->index);
    free(batch);
}

void
distkv_batch_clear(distkv_batch *batch)
{
    buf_clear(&batch->ops, KIB(64));
    buf_clear(&batch->index, KIB(64));
    batch->count = 0;
}

static int
batch_add(distkv_batch *batch, const struct native_op *op)
{
    if (batch->count == LIMIT_BATCH_OPS) return DISTKV_TOO_LARGE;
    size_t start = batch->ops.size;
    if (!native_batch_add(&batch->ops, op)) return DISTKV_NO_MEMORY;
    struct batch_entry entry = {.slot = hash_slot(op->key),
                                .offset = (u32)start,
                                .size = (u32)(batch->ops.size - start),
                                .repeatable = lib_op_repeatable(op)};
    int code = batch->ops.size > LIMIT_BATCH_BYTES ? DISTKV_TOO_LARGE : DISTKV_OK;
    if (code == DISTKV_OK && !buf_append(&batch->index, &entry, sizeof(entry)))
        code = DISTKV_NO_MEMORY;
    if (code != DISTKV_OK)
        batch->ops.size = start;
    else
        batch->count++;
    return code;
}

int
distkv_batch_put(distkv_batch *batch, const void *key, size_t key_size, const void *value,
                 size_t value_size, const struct distkv_write *write)
{
    struct native_op op;
    const char *error;
    int code = lib_make_op(&op, NATIVE_OP_PUT, key, key_size, value, value_size, write, &error);
    return code == DISTKV_OK ? batch_add(batch, &op) : code;
}

int
distkv_batch_delete(distkv_batch *batch, const void *key, size_t key_size,
                    const struct distkv_write *write)
{
    struct native_op op;
    const char *error;
    int code = lib_make_op(&op, NATIVE_OP_DELETE, key, key_size, NULL, 0, write, &error);
    return code == DISTKV_OK ? batch_add(batch, &op) : code;
}

size_t
distkv_batch_count(const distkv_batch *batch)
{
    return batch->count;
}

size_t
distkv_batch_slots(const distkv_batch *batch)
{
    u64 seen[SLOT_COUNT / 64] = {0};
    size_t slots = 0;
    const struct batch_entry *entries = batch_entries(&batch->index);
    for (u32 i = 0; i < batch->count; i++) {
        u64 bit = 1ull << (entries[i].slot % 64);
        if (!(seen[entries[i].slot / 64] & bit)) slots++;
        seen[entries[i].slot / 64] |= bit;
    }
    return slots;
}

/* The whole batch as one request. */
static int
batch_request(struct distkv *kv, const distkv_batch *batch, struct native_request *native,
              u32 *slot, bool *repeatable)
{
    if (batch->count == 0) return lib_fail(kv, DISTKV_INVALID, "the batch is empty");
    const struct batch_entry *entries = batch_entries(&batch->index);
    *slot = entries[0].slot;
    *repeatable = true;
    for (u32 i = 0; i < batch->count; i++) {
        *repeatable = *repeatable && entries[i].repeatable;
        if (entries[i].slot != *slot)
            return lib_fail(kv, DISTKV_CROSS_SLOT,
                            "the keys fall into %zu slots: an atomic batch needs keys of one hash "
                            "tag, as in {tag}key",
                            distkv_batch_slots(batch));
    }
    *native = (struct native_request){
        .header.opcode = NATIVE_BATCH,
        .batch = {.count = batch->count, .ops = buf_bytes(&batch->ops)},
    };
    return DISTKV_OK;
}

int
distkv_batch_commit(distkv *kv, const distkv_batch *batch)
{
    struct native_request native;
    u32 slot;
    bool repeatable;
    int code = batch_request(kv, batch, &native, &slot, &repeatable);
    if (code != DISTKV_OK) return code;
    struct waiter waiter;
    code = lib_call(kv, &native, slot, repeatable, &waiter);
    waiter_deinit(&waiter);
    return code;
}

int
distkv_batch_commit_async(distkv *kv, const distkv_batch *batch, distkv_callback callback,
                          void *arg)
{
    struct native_request native;
    u32 slot;
    bool repeatable;
    int code = batch_request(kv, batch, &native, &slot, &repeatable);
    if (code != DISTKV_OK) return code;
    return lib_start_async(kv, &native, slot, repeatable, callback, arg);
}

/* ---- by parts ---- */

static int
compare_entries(const void *a, const void *b)
{
    const struct batch_entry *ea = a;
    const struct batch_entry *eb = b;
    if (ea->slot != eb->slot) return ea->slot < eb->slot ? -1 : 1;
    return ea->offset < eb->offset ? -1 : 1;
}

struct parts {
    u64 deadline_ns; /* of all of them */
    size_t in_flight;
    size_t done;
    int code;
    char error[160];
};

struct part {
    struct parts *parts;
    u32 count;
};

static void
part_done(void *arg, const struct distkv_result *result)
{
    struct part *part = arg;
    struct parts *parts = part->parts;
    parts->in_flight--;
    if (result->code == DISTKV_OK) {
        parts->done += part->count;
    } else if (parts->code == DISTKV_OK) {
        parts->code = result->code;
        snprintf(parts->error, sizeof(parts->error), "%s", result->error);
    }
    free(part);
}

static int
part_start(struct distkv *kv, const distkv_batch *batch, const struct batch_entry *entries,
           u32 count, struct buf *ops, struct parts *parts)
{
    if (lib_now_ns() >= parts->deadline_ns)
        return lib_fail(kv, DISTKV_TIMED_OUT, "not all parts could be sent within the deadline");
    bool repeatable = true;
    ops->size = 0;
    for (u32 i = 0; i < count; i++) {
        repeatable = repeatable && entries[i].repeatable;
        if (!lib_reserve(kv, ops, entries[i].size) ||
            !buf_append(ops, batch->ops.data + entries[i].offset, entries[i].size))
            return lib_fail(kv, DISTKV_NO_MEMORY, "no memory for the batch");
    }
    struct part *part = malloc(sizeof(*part));
    if (part == NULL) return lib_fail(kv, DISTKV_NO_MEMORY, "out of memory");
    *part = (struct part){.parts = parts, .count = count};
    struct native_request native = {.header.opcode = NATIVE_BATCH,
                                    .batch = {.count = count, .ops = buf_bytes(ops)}};
    int code = lib_start_async_until(kv, &native, entries[0].slot, repeatable, parts->deadline_ns,
                                     part_done, part);
    if (code != DISTKV_OK)
        free(part);
    else
        parts->in_flight++;
    return code;
}

int
distkv_batch_commit_parts(distkv *kv, const distkv_batch *batch, size_t *done_out)
{
    if (done_out != NULL) *done_out = 0;
    if (kv->in_process)
        return lib_fail(kv, DISTKV_INVALID, "a blocking call from within a callback");
    if (batch->count == 0) return lib_fail(kv, DISTKV_INVALID, "the batch is empty");
    struct buf sorted, ops;
    buf_init(&sorted, &kv->budget);
    buf_init(&ops, &kv->budget);
    if (!lib_reserve(kv, &sorted, batch->index.size) ||
        !buf_append(&sorted, batch->index.data, batch->index.size))
        return lib_fail(kv, DISTKV_NO_MEMORY, "no memory for the batch");
    struct batch_entry *entries = batch_entries(&sorted);
    qsort(entries, batch->count, sizeof(*entries), compare_entries);
    struct parts parts = {.deadline_ns = request_deadline(kv), .code = DISTKV_OK};
    int refused = DISTKV_OK;
    for (u32 first = 0, end; first < batch->count && refused == DISTKV_OK; first = end) {
        end = first + 1;
        while (end < batch->count && entries[end].slot == entries[first].slot)
            end++;
        refused = part_start(kv, batch, entries + first, end - first, &ops, &parts);
        while (parts.in_flight >= BATCH_PARTS_IN_FLIGHT)
            distkv_process(kv, -1);
    }
    while (parts.in_flight > 0)
        distkv_process(kv, -1);
    buf_deinit(&sorted);
    buf_deinit(&ops);
    if (done_out != NULL) *done_out = parts.done;
    if (parts.code != DISTKV_OK) return lib_fail(kv, parts.code, "%s", parts.error);
    return refused;
}
