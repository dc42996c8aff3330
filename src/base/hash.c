/* SPDX-License-Identifier: MIT
 *
 * hash.c -- see hash.h. What is computed here is stored (tokens order the tables), so it never
 * changes.
 */
#include "base/hash.h"

#include "base/crc.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

struct bytes
hash_tag(struct bytes key)
{
    if (key.size < 3) return key;
    const u8 *open = memchr(key.data, '{', key.size);
    if (open == NULL) return key;
    const u8 *first = open + 1;
    size_t rest = (size_t)(key.data + key.size - first);
    const u8 *close = memchr(first, '}', rest);
    if (close == NULL || close == first) return key;
    return BYTES(first, (size_t)(close - first));
}

u32
hash_slot(struct bytes key)
{
    struct bytes tag = hash_tag(key);
    return crc16_xmodem(tag.data, tag.size) & (SLOT_COUNT - 1);
}

u64
hash_token(struct bytes key)
{
    struct bytes tag = hash_tag(key);
    u64 slot = crc16_xmodem(tag.data, tag.size) & (SLOT_COUNT - 1);
    return slot << (64 - SLOT_BITS) | XXH3_64bits(tag.data, tag.size) >> SLOT_BITS;
}

u64
hash_key(struct bytes key, u64 seed)
{
    return XXH3_64bits_withSeed(key.data, key.size, seed);
}

u64
hash_token_and_key(struct bytes key, u64 *key_hash_out)
{
    u64 hash = XXH3_64bits(key.data, key.size); /* which is what seed 0 gives */
    *key_hash_out = hash;
    struct bytes tag = hash_tag(key);
    u64 slot = crc16_xmodem(tag.data, tag.size) & (SLOT_COUNT - 1);
    if (tag.size != key.size) hash = XXH3_64bits(tag.data, tag.size);
    return slot << (64 - SLOT_BITS) | hash >> SLOT_BITS;
}

u64
hash_bytes(const void *data, size_t size, u64 seed)
{
    return XXH3_64bits_withSeed(data, size, seed);
}
