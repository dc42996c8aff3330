/* SPDX-License-Identifier: MIT
 *
 * values.h -- what keys hold: every content that was written or seen has a number. Pure.
 *
 * Values describe themselves (after Harry, Cassandra's): a head names the object and the write, a
 * checksum covers the rest, so that any read can be judged on the spot: whether the bytes are
 * whole, and whether they were ever written to a key of that object. What is too small for a head,
 * numbers and texts that grow are judged by the model alone.
 *
 *   | magic 4 | crc32c of the rest 4 | object 4 | client 4 | number 8 | size 4 | body ... |
 */
#ifndef DISTKV_TESTS_SIM_RUN_VALUES_H
#define DISTKV_TESTS_SIM_RUN_VALUES_H

#include "base/types.h"

#define VALUE_ABSENT     0u
#define VALUE_HEAD_BYTES 28u
struct value {
    u64 hash;
    u32 size;
    u32 next; /* in its bucket */
    u8 *data; /* NULL: empty */
};

struct values {
    struct value *all; /* [0]: absent */
    u32 count, capacity;
    u32 *buckets;
    u32 bucket_count;
};

void values_init(struct values *values);
void values_deinit(struct values *values);
/* The number of this content, a new one if need be; never VALUE_ABSENT. */
u32 values_intern(struct values *values, struct bytes content);
/* VALUE_ABSENT: never seen. */
u32 values_find(const struct values *values, struct bytes content);
static inline u32
values_size(const struct values *values, u32 value)
{
    return values->all[value].size;
}
static inline struct bytes
values_content(const struct values *values, u32 value)
{
    return BYTES(values->all[value].data, values->all[value].size);
}
/* "12 bytes, object 3, client 2, write 17" */
void values_describe(const struct values *values, u32 value, char *out, size_t size);

/* Fills out with size bytes that say who wrote them; under VALUE_HEAD_BYTES: with bytes that are as
 * different as there is room for. */
void value_make(u8 *out, u32 size, u32 object, u32 client, u64 number, bool compressible);
/* Whether bytes of this size can be judged alone, and then whether they are right for object. */
bool value_is_right(struct bytes content, u32 object);

#endif
