/* SPDX-License-Identifier: MIT
 *
 * starts.c -- see starts.h.
 */
#include "cluster/starts.h"

#include <string.h>

enum { VERSION = 1 };

enum starts_verdict
starts_judge(const struct starts *known, const struct starts *own)
{
    if (known->count == 0) return STARTS_FINE;
    if (own->count < known->count) return STARTS_ROLLED_BACK;
    u64 since = own->count - known->count;
    if (since >= own->id_count) return STARTS_UNRELATED;
    return own->ids[since] == known->ids[0] ? STARTS_FINE : STARTS_ROLLED_BACK;
}

void
starts_add(struct starts *starts, u64 id)
{
    starts->id_count = MIN(starts->id_count + 1, STARTS_IDS_MAX);
    memmove(starts->ids + 1, starts->ids, (starts->id_count - 1) * sizeof(starts->ids[0]));
    starts->ids[0] = id;
    starts->count++;
}

struct starts
starts_newest(const struct starts *starts)
{
    if (starts->count == 0) return (struct starts){0};
    return (struct starts){.count = starts->count, .id_count = 1, .ids = {starts->ids[0]}};
}

u32
starts_encode(const struct starts *starts, u8 out[STARTS_BYTES_MAX])
{
    memset(out, 0, STARTS_HEADER_BYTES);
    out[0] = VERSION;
    out[1] = (u8)starts->id_count;
    store_u64(out + 8, starts->count);
    for (u32 i = 0; i < starts->id_count; i++)
        store_u64(out + STARTS_HEADER_BYTES + 8 * i, starts->ids[i]);
    return STARTS_HEADER_BYTES + 8 * starts->id_count;
}

static bool
begins_right(const u8 *data)
{
    static const u8 zero[6];
    return data[0] == VERSION && memcmp(data + 2, zero, sizeof(zero)) == 0;
}

status
starts_decode(struct bytes bytes, struct starts *out, size_t *size_out)
{
    if (bytes.size < STARTS_HEADER_BYTES || !begins_right(bytes.data)) return ST_CORRUPT;
    struct starts starts = {.id_count = bytes.data[1], .count = load_u64(bytes.data + 8)};
    size_t size = STARTS_HEADER_BYTES + 8 * (size_t)starts.id_count;
    if (starts.id_count > STARTS_IDS_MAX || starts.id_count > starts.count) return ST_CORRUPT;
    if ((starts.id_count == 0) != (starts.count == 0) || bytes.size < size) return ST_CORRUPT;
    for (u32 i = 0; i < starts.id_count; i++)
        starts.ids[i] = load_u64(bytes.data + STARTS_HEADER_BYTES + 8 * i);
    *out = starts;
    *size_out = size;
    return ST_OK;
}

u32
starts_told_encode(const struct starts_told *told, u8 out[STARTS_TOLD_BYTES_MAX])
{
    memset(out, 0, 8);
    out[0] = VERSION;
    out[1] = told->remember;
    u32 size = 8 + starts_encode(&told->yours, out + 8);
    return size + starts_encode(&told->own, out + size);
}

status
starts_told_decode(struct bytes bytes, struct starts_told *out)
{
    if (bytes.size < 8 || !begins_right(bytes.data) || bytes.data[1] > 1) return ST_CORRUPT;
    struct starts_told told = {.remember = bytes.data[1] != 0};
    struct bytes rest = BYTES(bytes.data + 8, bytes.size - 8);
    size_t size;
    status st = starts_decode(rest, &told.yours, &size);
    if (!ok(st)) return st;
    rest = BYTES(rest.data + size, rest.size - size);
    st = starts_decode(rest, &told.own, &size);
    if (!ok(st)) return st;
    if (size != rest.size) return ST_CORRUPT;
    *out = told;
    return ST_OK;
}

void
starts_answer_encode(enum starts_verdict verdict, u8 out[STARTS_ANSWER_BYTES])
{
    memset(out, 0, STARTS_ANSWER_BYTES);
    out[0] = VERSION;
    out[1] = (u8)verdict;
}

status
starts_answer_decode(struct bytes bytes, enum starts_verdict *out)
{
    if (bytes.size != STARTS_ANSWER_BYTES || !begins_right(bytes.data)) return ST_CORRUPT;
    if (bytes.data[1] >= STARTS_VERDICT_COUNT) return ST_CORRUPT;
    *out = (enum starts_verdict)bytes.data[1];
    return ST_OK;
}
