/* SPDX-License-Identifier: MIT
 *
 * values.c -- see values.h.
 */
#include "values.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/crc.h"
#include "base/hash.h"
#include "base/prng.h"

#define VALUE_MAGIC 0x56736b44u /* "DksV" */

void
values_init(struct values *values)
{
    *values = (struct values){.capacity = 256, .bucket_count = 256, .count = 1};
    values->all = calloc(values->capacity, sizeof(*values->all));
    values->buckets = calloc(values->bucket_count, sizeof(*values->buckets));
    CHECK(values->all != NULL && values->buckets != NULL);
}

void
values_deinit(struct values *values)
{
    for (u32 i = 0; i < values->count; i++)
        free(values->all[i].data);
    free(values->all);
    free(values->buckets);
}

static u32
find(const struct values *values, struct bytes content, u64 hash)
{
    for (u32 i = values->buckets[hash % values->bucket_count]; i != 0; i = values->all[i].next) {
        const struct value *value = &values->all[i];
        if (value->hash != hash || value->size != content.size) continue;
        if (content.size == 0 || memcmp(value->data, content.data, content.size) == 0) return i;
    }
    return VALUE_ABSENT;
}

u32
values_find(const struct values *values, struct bytes content)
{
    return find(values, content, hash_bytes(content.data, content.size, 1));
}

static void
grow(struct values *values)
{
    values->capacity *= 2;
    values->all = realloc(values->all, values->capacity * sizeof(*values->all));
    free(values->buckets);
    values->bucket_count = values->capacity;
    values->buckets = calloc(values->bucket_count, sizeof(*values->buckets));
    CHECK(values->all != NULL && values->buckets != NULL);
    for (u32 i = 1; i < values->count; i++) {
        u32 *bucket = &values->buckets[values->all[i].hash % values->bucket_count];
        values->all[i].next = *bucket;
        *bucket = i;
    }
}

u32
values_intern(struct values *values, struct bytes content)
{
    u64 hash = hash_bytes(content.data, content.size, 1);
    u32 there = find(values, content, hash);
    if (there != VALUE_ABSENT) return there;
    if (values->count == values->capacity) grow(values);
    u32 *bucket = &values->buckets[hash % values->bucket_count];
    struct value *value = &values->all[values->count];
    *value = (struct value){.hash = hash, .size = (u32)content.size, .next = *bucket};
    if (content.size > 0) {
        value->data = malloc(content.size);
        CHECK(value->data != NULL);
        memcpy(value->data, content.data, content.size);
    }
    *bucket = values->count;
    return values->count++;
}

/* ---- values that describe themselves ---- */

void
value_make(u8 *out, u32 size, u32 object, u32 client, u64 number, bool compressible)
{
    u64 seed = number * 0x9e3779b97f4a7c15ull ^ ((u64)object << 32 | client);
    u32 from = size < VALUE_HEAD_BYTES ? 0 : VALUE_HEAD_BYTES;
    u64 word = splitmix64(&seed);
    for (u32 i = from; i < size; i++) {
        if ((i - from) % 8 == 0 && i != from && !(compressible && i % 64 != 0))
            word = splitmix64(&seed);
        out[i] = (u8)(word >> (8 * ((i - from) % 8)));
    }
    if (size < VALUE_HEAD_BYTES) return;
    store_u32(out, VALUE_MAGIC);
    store_u32(out + 8, object);
    store_u32(out + 12, client);
    store_u64(out + 16, number);
    store_u32(out + 24, size);
    store_u32(out + 4, crc32c(0, out + 8, size - 8));
}

bool
value_is_right(struct bytes content, u32 object)
{
    if (content.size < VALUE_HEAD_BYTES) return true;
    return load_u32(content.data) == VALUE_MAGIC && load_u32(content.data + 8) == object &&
           load_u32(content.data + 24) == content.size &&
           load_u32(content.data + 4) == crc32c(0, content.data + 8, content.size - 8);
}

void
values_describe(const struct values *values, u32 value, char *out, size_t size)
{
    if (value == VALUE_ABSENT) {
        snprintf(out, size, "absent");
        return;
    }
    const struct value *entry = &values->all[value];
    const u8 *data = entry->data;
    if (data != NULL && entry->size >= VALUE_HEAD_BYTES && load_u32(data) == VALUE_MAGIC) {
        snprintf(out, size, "#%u: %u bytes by client %u, write %llu", value, entry->size,
                 load_u32(data + 12), (unsigned long long)load_u64(data + 16));
        return;
    }
    char text[25] = "";
    for (u32 i = 0; data != NULL && i < entry->size && i < sizeof(text) - 1; i++)
        text[i] = data[i] > ' ' && data[i] < 127 ? (char)data[i] : '.';
    snprintf(out, size, "#%u: %u bytes %s", value, entry->size, text);
}
