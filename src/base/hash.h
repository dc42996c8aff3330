/* SPDX-License-Identifier: MIT
 *
 * hash.h -- slots, tokens and key hashes.
 *
 *   token, 64 bits:  | slot: 14 | XXH3 of the hash tag, or of the whole key without one: 50 |
 *
 * Keys are ordered by (keyspace, token, key bytes) everywhere. Keys of one hash tag share a token,
 * so long runs of one token are legal. Filters and caches hash the whole key (hash_key).
 */
#ifndef DISTKV_BASE_HASH_H
#define DISTKV_BASE_HASH_H

#include "base/limits.h"
#include "base/types.h"

/* The bytes that decide the slot: between the first '{' and the first '}' after it when there is
 * at least one byte between them, else the whole key (Redis Cluster specification). */
struct bytes hash_tag(struct bytes key);
u32 hash_slot(struct bytes key);
u64 hash_token(struct bytes key);
/* XXH3 of the whole key, seeded: for filters, caches and hash tables. */
u64 hash_key(struct bytes key, u64 seed);
/* hash_token(key), and hash_key(key, 0) beside it for little more. */
u64 hash_token_and_key(struct bytes key, u64 *key_hash_out);
u64 hash_bytes(const void *data, size_t size, u64 seed);

static inline u32
token_slot(u64 token)
{
    return (u32)(token >> (64 - SLOT_BITS));
}

/* The partition of a token when the ring has partition_count partitions (a power of two). */
static inline u32
token_partition(u64 token, u32 partition_count)
{
    return token_slot(token) / (SLOT_COUNT / partition_count);
}

/* The first token of a partition; the last one is the next partition's first minus one. */
static inline u64
partition_token_first(u32 partition, u32 partition_count)
{
    return (u64)partition * (SLOT_COUNT / partition_count) << (64 - SLOT_BITS);
}

static inline u64
partition_token_last(u32 partition, u32 partition_count)
{
    return partition_token_first(partition, partition_count) +
           (((u64)(SLOT_COUNT / partition_count) << (64 - SLOT_BITS)) - 1);
}

/* Shards own contiguous runs of partitions, as equal as can be: shard s owns
 * [shard_partition_first(s), shard_partition_first(s + 1)). */
static inline u32
shard_partition_first(u32 shard, u32 shard_count, u32 partition_count)
{
    return (u32)((u64)shard * partition_count / shard_count);
}

/* The inverse: the largest s with shard_partition_first(s) <= partition. */
static inline u32
partition_shard(u32 partition, u32 shard_count, u32 partition_count)
{
    return (u32)((((u64)partition + 1) * shard_count - 1) / partition_count);
}

#endif
