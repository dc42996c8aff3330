/* SPDX-License-Identifier: MIT
 *
 * dvvset_codec.c -- the bytes of sets and contexts. Every size is checked before anything is taken
 * for it; what decodes would encode to the same bytes.
 */
#include "cluster/dvvset.h"

enum { KIND_CONTEXT = 1, KIND_SET = 2 };

struct ONDISK context_header {
    u8 kind;
    u8 zero;
    u16 entry_count;
};

struct ONDISK set_header {
    u8 kind;
    u8 zero;
    u16 entry_count;
    u16 value_count;
    u16 zeros;
};

struct ONDISK entry_bytes {
    u64 incarnation;
    u64 counter;
    u32 partition;
};

struct ONDISK value_bytes {
    u16 entry;
    u8 flags;
    u8 zero;
    u32 size;
    u64 counter;
    u64 version;
};

static_assert(sizeof(struct context_header) == 4 && sizeof(struct set_header) == 8,
              "as documented");
static_assert(sizeof(struct entry_bytes) == 20 && sizeof(struct value_bytes) == 24, "likewise");

/* ---- encoding ---- */

static void
put(struct buf *out, const void *data, size_t size)
{
    bool there = buf_append(out, data, size);
    CHECK(there); /* reserved */
}

static void
put_entries(struct buf *out, const struct dvv_vector *vector)
{
    for (u32 i = 0; i < vector->count; i++) {
        const struct dvv_entry *entry = &vector->entries[i];
        struct entry_bytes bytes = {.incarnation = entry->actor.incarnation,
                                    .counter = entry->counter,
                                    .partition = entry->actor.partition};
        put(out, &bytes, sizeof(bytes));
    }
}

status
dvv_vector_encode(const struct dvv_vector *vector, struct buf *out)
{
    struct context_header header = {.kind = KIND_CONTEXT, .entry_count = (u16)vector->count};
    if (!buf_reserve(out, sizeof(header) + vector->count * sizeof(struct entry_bytes)))
        return ST_NO_MEMORY;
    put(out, &header, sizeof(header));
    put_entries(out, vector);
    return ST_OK;
}

status
dvvset_encode(const struct dvvset *set, struct buf *out)
{
    size_t size = sizeof(struct set_header) + set->seen.count * sizeof(struct entry_bytes);
    for (u32 i = 0; i < set->count; i++)
        size += sizeof(struct value_bytes) + set->values[i].data.size;
    if (!buf_reserve(out, size)) return ST_NO_MEMORY;
    struct set_header header = {
        .kind = KIND_SET, .entry_count = (u16)set->seen.count, .value_count = (u16)set->count};
    put(out, &header, sizeof(header));
    put_entries(out, &set->seen);
    u16 entry = 0;
    for (u32 i = 0; i < set->count; i++) {
        const struct dvv_value *value = &set->values[i];
        /* Both are in the order of actors, and every dot was seen. */
        while (set->seen.entries[entry].actor.incarnation != value->actor.incarnation ||
               set->seen.entries[entry].actor.partition != value->actor.partition)
            entry++;
        struct value_bytes bytes = {.entry = entry,
                                    .flags = value->flags,
                                    .size = (u32)value->data.size,
                                    .counter = value->counter,
                                    .version = value->version};
        put(out, &bytes, sizeof(bytes));
        if (value->data.size > 0) put(out, value->data.data, value->data.size);
    }
    return ST_OK;
}

/* ---- decoding ---- */

static bool
take(struct bytes *rest, void *out, size_t size)
{
    if (rest->size < size) return false;
    memcpy(out, rest->data, size);
    rest->data += size;
    rest->size -= size;
    return true;
}

static status
take_entries(struct bytes *rest, u32 count, struct dvv_vector *vector)
{
    if (count > LIMIT_DVV_ACTORS || rest->size < count * sizeof(struct entry_bytes))
        return ST_CORRUPT;
    if (count == 0) return ST_OK;
    vector->entries = mem_alloc(vector->budget, count * sizeof(*vector->entries));
    if (vector->entries == NULL) return ST_NO_MEMORY;
    vector->capacity = count;
    for (u32 i = 0; i < count; i++) {
        struct entry_bytes bytes;
        if (!take(rest, &bytes, sizeof(bytes))) return ST_CORRUPT;
        struct dvv_entry entry = {
            .actor = {.incarnation = bytes.incarnation, .partition = bytes.partition},
            .counter = bytes.counter};
        vector->entries[vector->count++] = entry;
    }
    return ST_OK;
}

static status
take_value(struct bytes *rest, struct dvvset *set)
{
    struct value_bytes bytes;
    if (!take(rest, &bytes, sizeof(bytes))) return ST_CORRUPT;
    if (bytes.entry >= set->seen.count || bytes.zero != 0) return ST_CORRUPT;
    if (bytes.size > rest->size) return ST_CORRUPT;
    set->values[set->count++] = (struct dvv_value){.actor = set->seen.entries[bytes.entry].actor,
                                                   .counter = bytes.counter,
                                                   .version = bytes.version,
                                                   .flags = bytes.flags,
                                                   .data = BYTES(rest->data, bytes.size)};
    rest->data += bytes.size;
    rest->size -= bytes.size;
    return ST_OK;
}

static status
take_set(struct bytes rest, struct dvvset *set)
{
    struct set_header header;
    if (!take(&rest, &header, sizeof(header))) return ST_CORRUPT;
    if (header.kind != KIND_SET || header.zero != 0 || header.zeros != 0) return ST_CORRUPT;
    if (header.value_count > LIMIT_DVV_SIBLINGS) return ST_CORRUPT;
    status st = take_entries(&rest, header.entry_count, &set->seen);
    if (!ok(st)) return st;
    if (rest.size < header.value_count * sizeof(struct value_bytes)) return ST_CORRUPT;
    if (header.value_count > 0) {
        set->values = mem_alloc(set->seen.budget, header.value_count * sizeof(*set->values));
        if (set->values == NULL) return ST_NO_MEMORY;
        set->capacity = header.value_count;
    }
    for (u32 i = 0; i < header.value_count; i++) {
        st = take_value(&rest, set);
        if (!ok(st)) return st;
    }
    /* Order, bounds and dots: what holds of every set holds of this one. */
    return rest.size == 0 && dvvset_check(set) ? ST_OK : ST_CORRUPT;
}

/* out is set only when it is ok. */
status
dvvset_decode(struct bytes bytes, struct dvvset *out)
{
    struct dvvset set;
    dvvset_init(&set, out->seen.budget);
    status st = take_set(bytes, &set);
    if (ok(st)) {
        dvvset_deinit(out);
        *out = set;
    } else {
        dvvset_deinit(&set);
    }
    return st;
}

status
dvv_vector_decode(struct bytes bytes, struct dvv_vector *out)
{
    struct dvvset set; /* a set without values: one check for both */
    dvvset_init(&set, out->budget);
    struct context_header header;
    status st = ST_CORRUPT;
    if (take(&bytes, &header, sizeof(header)) && header.kind == KIND_CONTEXT && header.zero == 0)
        st = take_entries(&bytes, header.entry_count, &set.seen);
    if (ok(st) && (bytes.size != 0 || !dvvset_check(&set))) st = ST_CORRUPT;
    if (ok(st)) {
        dvv_vector_deinit(out);
        *out = set.seen;
    } else {
        dvvset_deinit(&set);
    }
    return st;
}
