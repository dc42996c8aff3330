/* SPDX-License-Identifier: MIT
 *
 * table_fixture.h -- what the tests of tables and blob files share: entries made from a seed.
 */
#ifndef DISTKV_TESTS_TABLE_FIXTURE_H
#define DISTKV_TESTS_TABLE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/sim.h"
#include "lsm/table_format.h"

#define FIXTURE_DIR "/t"

/* Sorted entries with memory of their own (of the test, not of the shard). */
struct fixture {
    struct entry *entries;
    u32 count, capacity;
};

static inline void
fixture_add(struct fixture *f, u64 token, struct bytes key, struct bytes value, u64 version,
            u64 seq, u64 expire_ms, u8 kind)
{
    if (f->count == f->capacity) {
        f->capacity = f->capacity == 0 ? 64 : f->capacity * 2;
        f->entries = realloc(f->entries, f->capacity * sizeof(f->entries[0]));
    }
    u8 *copy = malloc(key.size + value.size);
    memcpy(copy, key.data, key.size);
    if (value.size > 0) memcpy(copy + key.size, value.data, value.size);
    f->entries[f->count++] = (struct entry){
        .token = token,
        .key = BYTES(copy, key.size),
        .value = BYTES(copy + key.size, value.size),
        .version = version,
        .seq = seq,
        .expire_ms = expire_ms,
        .kind = kind,
    };
}

static inline int
fixture_compare(const void *a, const void *b)
{
    return entry_compare(a, b);
}

static inline void
fixture_sort(struct fixture *f)
{
    qsort(f->entries, f->count, sizeof(f->entries[0]), fixture_compare);
}

static inline void
fixture_free(struct fixture *f)
{
    for (u32 i = 0; i < f->count; i++)
        free((void *)(uintptr_t)f->entries[i].key.data);
    free(f->entries);
    *f = (struct fixture){0};
}

/* keys keys "prefix:i" with 1 to versions_max versions each and values of up to value_max bytes. */
static inline void
fixture_fill(struct fixture *f, u64 seed, const char *prefix, u32 keys, u32 versions_max,
             u32 value_max)
{
    struct prng prng;
    prng_init(&prng, seed);
    u8 *value = malloc(value_max + 1);
    for (u32 i = 0; i < keys; i++) {
        char key[64];
        int size = snprintf(key, sizeof(key), "%s:%u", prefix, i);
        struct bytes name = BYTES(key, (size_t)size);
        u32 versions = 1 + (u32)prng_below(&prng, versions_max);
        for (u32 v = 0; v < versions; v++) {
            u64 seq = (u64)i * versions_max + v + 1;
            bool gone = prng_chance(&prng, 1, 10);
            u32 value_size = gone ? 0 : (u32)prng_below(&prng, value_max + 1);
            memset(value, (int)(i + v), value_size);
            if (value_size > 8) store_u64(value, prng_u64(&prng));
            u64 expire = prng_chance(&prng, 1, 5) ? 1700000000000ull + i : 0;
            fixture_add(f, hash_token(name), name, BYTES(value, value_size),
                        (1700000000000ull << 16) + seq * 7, seq, expire,
                        gone ? ENTRY_DELETE : ENTRY_PUT);
        }
    }
    free(value);
    fixture_sort(f);
}

static inline void
entry_assert_equal(const struct entry *a, const struct entry *b)
{
    assert_int_equal(a->token, b->token);
    assert_int_equal(a->key.size, b->key.size);
    assert_memory_equal(a->key.data, b->key.data, a->key.size);
    assert_int_equal(a->value.size, b->value.size);
    if (a->value.size > 0) assert_memory_equal(a->value.data, b->value.data, a->value.size);
    assert_int_equal(a->version, b->version);
    assert_int_equal(a->seq, b->seq);
    assert_int_equal(a->expire_ms, b->expire_ms);
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->flags, b->flags);
}

MAY_YIELD static inline status
table_build(const struct fixture *f, u64 file_id, enum lsm_codec codec, u32 filter_bits,
            struct budget *budget, struct table_meta *meta)
{
    struct table_writer_options options = {
        .dir = FIXTURE_DIR,
        .file_id = file_id,
        .keyspace = 3,
        .codec = codec,
        .filter_bits = filter_bits,
        .entry_count_max = f->count,
        .io_class = IO_CLASS_COMPACTION,
        .budget = budget,
    };
    struct table_writer *writer;
    status st = table_writer_open(&options, &writer);
    if (!ok(st)) return st;
    for (u32 i = 0; i < f->count; i++) {
        st = table_writer_add(writer, &f->entries[i]);
        if (!ok(st)) break;
    }
    status finished = table_writer_finish(writer, meta);
    return ok(st) ? finished : st;
}

/* The answer that a read at seq_max must give; NULL: not found. */
static inline const struct entry *
fixture_get(const struct fixture *f, u64 token, struct bytes key, u64 seq_max)
{
    for (u32 i = 0; i < f->count; i++) {
        const struct entry *entry = &f->entries[i];
        if (entry_compare_key(entry->token, entry->key, token, key) == 0 && entry->seq <= seq_max)
            return entry;
    }
    return NULL;
}

#endif
