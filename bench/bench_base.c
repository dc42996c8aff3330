/* SPDX-License-Identifier: MIT
 *
 * bench_base.c -- question: what do the small things cost that every request does once or twice:
 * finding its slot, token and hash, a checksum, a figure for the histograms, the time?
 *
 *   token.*         hash_token_and_key of a key of so many bytes, with or without a hash tag
 *   slot.*          hash_slot alone, as a client or a router asks for it
 *   hash_key.16     XXH3 of the key for the caches; the bound of token.16 is this and slot.16
 *   partition       from token to partition to shard
 *   crc32c.*        of so many bytes
 *   hash_bytes.*    XXH3 of so many bytes, for the same comparison
 *   crc_then_hash.* both, one after the other, as a block that is written goes through them; more
 *                   than their sum is what one does to the other
 *   copy.*          memcpy of so many: the bound of all these
 *   histogram       one recording, of latencies between a microsecond and a millisecond
 *   clock           clock_gettime through the vDSO: what reading the time once a turn saves
 *   wait            the fence that other programs put between two operations
 *
 *     bench_base [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>
#include <time.h>

#include "base/crc.h"
#include "base/hash.h"
#include "base/histogram.h"
#include "base/prng.h"
#include "micro.h"

#define KEYS           256u /* different ones, a power of two */
#define KEY_BYTES_MAX  256u
#define PARTITIONS     4096u
#define SHARDS         6u
#define DATA_BYTES_MAX KIB(64)

/* ---- keys ---- */

struct key_case {
    u32 size;
    u8 keys[KEYS][KEY_BYTES_MAX];
};

static struct key_case *
key_case(u32 size, bool tag)
{
    static struct key_case c;
    c.size = size;
    for (u32 i = 0; i < KEYS; i++) {
        u8 *key = c.keys[i];
        micro_text(key, KEY_BYTES_MAX, i + 1);
        for (u32 j = 0; j < size; j++)
            key[j] = (u8)('a' + key[j] % 26);
        if (tag) memcpy(key, "{user10}", 8);
    }
    return &c;
}

static void
token_run(void *arg, u64 count)
{
    const struct key_case *c = arg;
    u64 sum = 0;
    for (u64 i = 0; i < count; i++) {
        u64 hash;
        sum += hash_token_and_key(BYTES(c->keys[i % KEYS], c->size), &hash);
        sum += hash;
    }
    micro_keep(sum);
}

static void
slot_run(void *arg, u64 count)
{
    const struct key_case *c = arg;
    u64 sum = 0;
    for (u64 i = 0; i < count; i++)
        sum += hash_slot(BYTES(c->keys[i % KEYS], c->size));
    micro_keep(sum);
}

static void
hash_key_run(void *arg, u64 count)
{
    const struct key_case *c = arg;
    u64 sum = 0;
    for (u64 i = 0; i < count; i++)
        sum += hash_key(BYTES(c->keys[i % KEYS], c->size), 0);
    micro_keep(sum);
}

static void
partition_run(void *arg, u64 count)
{
    const u64 *tokens = arg;
    u64 sum = 0;
    u32 partitions = PARTITIONS, shards = SHARDS;
    __asm__ volatile("" : "+r"(partitions), "+r"(shards)); /* settings, not constants */
    for (u64 i = 0; i < count; i++)
        sum += partition_shard(token_partition(tokens[i % KEYS], partitions), shards, partitions);
    micro_keep(sum);
}

static void
measure_keys(void)
{
    micro_measure(
        &(struct micro_case){.name = "token.16", .run = token_run, .arg = key_case(16, false)});
    micro_measure(
        &(struct micro_case){.name = "token.16.tag", .run = token_run, .arg = key_case(16, true)});
    micro_measure(
        &(struct micro_case){.name = "token.256", .run = token_run, .arg = key_case(256, false)});
    micro_measure(
        &(struct micro_case){.name = "slot.16", .run = slot_run, .arg = key_case(16, false)});
    micro_measure(
        &(struct micro_case){.name = "slot.256", .run = slot_run, .arg = key_case(256, false)});
    micro_measure(&(struct micro_case){
        .name = "hash_key.16", .run = hash_key_run, .arg = key_case(16, false)});
    static u64 tokens[KEYS];
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 i = 0; i < KEYS; i++)
        tokens[i] = prng_u64(&prng);
    micro_measure(&(struct micro_case){.name = "partition", .run = partition_run, .arg = tokens});
}

/* ---- bytes ---- */

static u8 data[DATA_BYTES_MAX];

static void
crc_run(void *arg, u64 count)
{
    u32 bytes = *(const u32 *)arg;
    for (u64 i = 0; i < count; i++)
        micro_keep(crc32c((u32)i, data, bytes));
}

static void
hash_bytes_run(void *arg, u64 count)
{
    u32 bytes = *(const u32 *)arg;
    for (u64 i = 0; i < count; i++)
        micro_keep(hash_bytes(data, bytes, i));
}

static void
crc_then_hash_run(void *arg, u64 count)
{
    u32 bytes = *(const u32 *)arg;
    for (u64 i = 0; i < count; i++) {
        micro_keep(crc32c((u32)i, data, bytes));
        micro_keep(hash_bytes(data, bytes, i));
    }
}

static void
measure_bytes(void)
{
    static const u32 sizes[] = {44, 100, 1024, 4096, DATA_BYTES_MAX};
    micro_text(data, sizeof(data), 1);
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        u32 size = sizes[i];
        char name[64];
        snprintf(name, sizeof(name), "crc32c.%u", size);
        micro_measure(
            &(struct micro_case){.name = name, .run = crc_run, .arg = &size, .bytes = size});
        snprintf(name, sizeof(name), "hash_bytes.%u", size);
        micro_measure(
            &(struct micro_case){.name = name, .run = hash_bytes_run, .arg = &size, .bytes = size});
        snprintf(name, sizeof(name), "crc_then_hash.%u", size);
        micro_measure(&(struct micro_case){
            .name = name, .run = crc_then_hash_run, .arg = &size, .bytes = size});
        snprintf(name, sizeof(name), "copy.%u", size);
        micro_measure_copy(name, size);
    }
}

/* ---- figures and time ---- */

struct recordings {
    struct histogram histogram;
    u64 values[KEYS];
};

static void
histogram_run(void *arg, u64 count)
{
    struct recordings *recordings = arg;
    for (u64 i = 0; i < count; i++)
        histogram_record(&recordings->histogram, recordings->values[i % KEYS]);
}

static void
clock_run(void *arg, u64 count)
{
    for (u64 i = 0; i < count; i++) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        micro_keep((u64)now.tv_nsec);
    }
}

static void
wait_run(void *arg, u64 count)
{
    for (u64 i = 0; i < count; i++)
        micro_wait();
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    measure_keys();
    measure_bytes();
    static struct recordings recordings;
    struct prng prng;
    prng_init(&prng, 2);
    for (u32 i = 0; i < KEYS; i++)
        recordings.values[i] = NS_PER_US << prng_below(&prng, 10);
    for (u32 i = 0; i < KEYS; i++)
        recordings.values[i] += prng_below(&prng, recordings.values[i]);
    micro_measure(
        &(struct micro_case){.name = "histogram", .run = histogram_run, .arg = &recordings});
    micro_measure(&(struct micro_case){.name = "clock", .run = clock_run});
    micro_measure(&(struct micro_case){.name = "wait", .run = wait_run});
    return micro_end();
}
