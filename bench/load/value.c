/* SPDX-License-Identifier: MIT
 *
 * value.c -- see value.h. The check chooses the pieces of the pool and what is mixed into them, so
 * that writing and judging walk the same pieces; judging only gathers differences, without a branch
 * a word.
 */
#include "load/value.h"

#include "base/prng.h"

/* The pool is the same in all runs, or they could not read each other's values. */
#define POOL_SEED 0x6469737476616c75ull
/* In each stretch of this size the compressible part is one repeated word. */
#define STRETCH_BYTES 128u

static inline u64
mix64(u64 x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

void
values_init(struct values *values, u32 size_min, u32 size_max, u32 compressible, u32 run)
{
    CHECK(size_min <= size_max && compressible <= 100);
    values->size_min = size_min;
    values->size_max = size_max;
    values->compressible = compressible;
    values->run = run & 0xffffffu;
    u64 state = POOL_SEED;
    u32 words = STRETCH_BYTES / 8, dull = (words * compressible + 50) / 100;
    for (u32 i = 0; i < ARRAY_COUNT(values->pool); i++) {
        u64 noise = splitmix64(&state);
        values->pool[i] = i % words < dull ? 0 : noise;
    }
}

u32
value_size(const struct values *values, u64 key, u32 version)
{
    if (values->size_min == values->size_max) return values->size_min;
    u64 span = values->size_max - values->size_min + 1;
    return values->size_min + (u32)(mix64(key * 0x9e3779b97f4a7c15ull + version) % span);
}

static u64
head_check(u64 key, u64 stamp, u64 size)
{
    return mix64(mix64(mix64(key + 0x9e3779b97f4a7c15ull) ^ stamp) + size);
}

/* The pool's words for piece n, and what to mix into them. */
static inline const u64 *
piece_of(const struct values *values, u64 check, u64 n, u64 *mix_out)
{
    u64 word = mix64(check + n * 0x9e3779b97f4a7c15ull);
    *mix_out = word;
    return values->pool + (word >> 32) % (VALUE_POOL_BYTES / 8);
}

static void
content_write(const struct values *values, u64 check, u8 *out, size_t size)
{
    for (u64 n = 0; size > 0; n++) {
        u64 mix;
        const u64 *pool = piece_of(values, check, n, &mix);
        size_t piece = MIN(size, VALUE_PIECE_BYTES);
        size_t i = 0;
        for (; i + 8 <= piece; i += 8)
            store_u64(out + i, pool[i / 8] ^ mix);
        u64 last = pool[i / 8] ^ mix;
        memcpy(out + i, &last, piece - i);
        out += piece;
        size -= piece;
    }
}

static bool
content_is(const struct values *values, u64 check, const u8 *data, size_t size)
{
    u64 differs = 0;
    for (u64 n = 0; size > 0; n++) {
        u64 mix;
        const u64 *pool = piece_of(values, check, n, &mix);
        size_t piece = MIN(size, VALUE_PIECE_BYTES);
        size_t i = 0;
        for (; i + 8 <= piece; i += 8)
            differs |= load_u64(data + i) ^ pool[i / 8] ^ mix;
        u64 last = pool[i / 8] ^ mix, got = last;
        memcpy(&got, data + i, piece - i);
        differs |= last ^ got;
        data += piece;
        size -= piece;
    }
    return differs == 0;
}

void
value_write(const struct values *values, u64 key, u32 version, u8 *out, u32 size)
{
    u64 stamp = version | (u64)values->run << 32 | (u64)values->compressible << 56;
    u64 check = head_check(key, stamp, size);
    if (size < VALUE_HEAD_BYTES) {
        content_write(values, check, out, size);
        return;
    }
    store_u64(out, check);
    store_u64(out + 8, key);
    store_u64(out + 16, stamp);
    content_write(values, check, out + VALUE_HEAD_BYTES, size - VALUE_HEAD_BYTES);
}

enum value_verdict
value_judge(const struct values *values, u64 key, struct bytes value, struct value_stamp *stamp_out)
{
    if (value.size < VALUE_HEAD_BYTES) return VALUE_BROKEN;
    u64 check = load_u64(value.data);
    u64 owner = load_u64(value.data + 8);
    u64 stamp = load_u64(value.data + 16);
    if (check != head_check(owner, stamp, value.size)) return VALUE_BROKEN;
    /* Another pool made it: then the head alone is judged. */
    if (stamp >> 56 == values->compressible &&
        !content_is(values, check, value.data + VALUE_HEAD_BYTES, value.size - VALUE_HEAD_BYTES))
        return VALUE_BROKEN;
    *stamp_out = (struct value_stamp){
        .key = owner, .version = (u32)stamp, .run = (u32)(stamp >> 32) & 0xffffffu};
    return owner == key ? VALUE_RIGHT : VALUE_FOREIGN;
}
