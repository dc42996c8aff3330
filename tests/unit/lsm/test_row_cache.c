/* SPDX-License-Identifier: MIT
 *
 * test_row_cache.c -- the row cache against a naive model: a cache may forget anything, but what it
 * returns is always the newest that was put or written since. Then what makes it a cache.
 */
#include "lsm/cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"

#define MODEL_KEYS 2000u

struct model_row {
    bool present;
    u64 version;
    u32 value_size;
    u8 fill;
};

static struct entry
entry_make(u64 i, u64 version, u8 fill, u32 value_size, char *key, u8 *value)
{
    int size = snprintf(key, 32, "row:%llu", (unsigned long long)i);
    memset(value, fill, value_size);
    return (struct entry){
        .token = hash_token(BYTES(key, (size_t)size)),
        .key = BYTES(key, (size_t)size),
        .value = BYTES(value, value_size),
        .version = version,
        .seq = version * 2,
        .expire_ms = version % 3 == 0 ? version : 0,
        .kind = ENTRY_PUT,
    };
}

static void
it_never_returns_what_the_model_does_not_hold(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(8), NULL);
    struct row_cache *cache = row_cache_new(&budget, KIB(256));
    assert_non_null(cache);
    static struct model_row model[2][MODEL_KEYS];
    static u8 value[20000];
    char key[32];
    struct prng prng;
    prng_init(&prng, 1);
    u64 version = 1, hits = 0;
    for (u32 step = 0; step < 200000; step++) {
        u32 i = (u32)prng_below(&prng, prng_chance(&prng, 1, 2) ? 100 : MODEL_KEYS);
        u16 keyspace = (u16)prng_below(&prng, 2);
        struct model_row *row = &model[keyspace][i];
        u32 action = (u32)prng_below(&prng, 1000);
        version++;
        u32 value_size = (u32)prng_below(&prng, 600);
        struct entry entry = entry_make(i, version, (u8)version, value_size, key, value);
        u64 hash = hash_key(entry.key, 0);
        if (action < 600) {
            struct entry out;
            if (!row_cache_get(cache, keyspace, hash, entry.key, &out)) continue;
            hits++;
            assert_true(row->present);
            assert_int_equal(out.version, row->version);
            assert_int_equal(out.seq, row->version * 2);
            assert_int_equal(out.expire_ms, row->version % 3 == 0 ? row->version : 0);
            assert_int_equal(out.value.size, row->value_size);
            assert_true(bytes_equal(out.key, entry.key));
            assert_int_equal(out.token, entry.token);
            for (u32 b = 0; b < row->value_size; b++)
                assert_int_equal(out.value.data[b], row->fill);
        } else if (action < 950) {
            struct entry out;
            if (prng_chance(&prng, 1, 4) && row_cache_get(cache, keyspace, hash, entry.key, &out)) {
                entry.version = row->version - 1; /* an older one must not win */
                row_cache_put(cache, keyspace, hash, &entry);
                continue;
            }
            row_cache_put(cache, keyspace, hash, &entry);
            *row = (struct model_row){true, version, (u32)entry.value.size, (u8)version};
        } else if (action < 980) {
            /* As a write of the key, now and then an older one or a delete. */
            if (action < 960) entry.version = row->version - 1;
            if (action % 3 == 0) entry.kind = ENTRY_DELETE;
            bool newest = entry.kind == ENTRY_PUT && entry.version == version;
            row_cache_write(cache, keyspace, hash, &entry);
            if (newest && row->present)
                *row = (struct model_row){true, version, (u32)entry.value.size, (u8)version};
            else
                row->present = false;
        } else if (action < 998) {
            entry.kind = ENTRY_DELETE;
            row_cache_write(cache, keyspace, hash, &entry);
            row->present = false;
        } else if (action == 998) {
            row_cache_clear(cache);
            memset(model, 0, sizeof(model));
        } else {
            row_cache_limit_set(cache, KIB(64) + prng_below(&prng, KIB(512)));
        }
        struct cache_stats stats;
        row_cache_stats(cache, &stats);
        assert_true(stats.bytes <= budget.used_bytes);
        if (step % 2000 == 0) assert_true(row_cache_check(cache));
    }
    assert_true(hits > 10000);
    row_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

static struct row_cache *
cache_of_one(struct budget *budget, const struct entry *entry)
{
    budget_init(budget, "test", MIB(8), NULL);
    struct row_cache *cache = row_cache_new(budget, KIB(256));
    assert_non_null(cache);
    row_cache_put(cache, 0, hash_key(entry->key, 0), entry);
    return cache;
}

/* Writes it and says whether it is there now, as it was written. */
static bool
is_written(struct row_cache *cache, const struct entry *entry)
{
    struct entry out;
    row_cache_write(cache, 0, hash_key(entry->key, 0), entry);
    if (!row_cache_get(cache, 0, hash_key(entry->key, 0), entry->key, &out)) return false;
    assert_int_equal(out.version, entry->version);
    assert_int_equal(out.seq, entry->seq);
    assert_int_equal(out.expire_ms, entry->expire_ms);
    assert_int_equal(out.kind, ENTRY_PUT);
    assert_true(bytes_equal(out.value, entry->value));
    return true;
}

static void
a_write_of_a_cached_key_keeps_it_hot(void **unused)
{
    struct budget budget;
    static u8 value[20000];
    char key[32];
    struct entry entry = entry_make(1, 10, 1, 100, key, value);
    struct row_cache *cache = cache_of_one(&budget, &entry);
    entry = entry_make(1, 11, 2, 100, key, value);
    assert_true(is_written(cache, &entry));
    entry = entry_make(1, 12, 3, 99, key, value); /* in the same place, and shorter */
    assert_true(is_written(cache, &entry));
    entry = entry_make(1, 13, 4, 5000, key, value);
    assert_true(is_written(cache, &entry));
    entry = entry_make(1, 14, 5, 0, key, value);
    assert_true(is_written(cache, &entry));
    entry = entry_make(2, 15, 5, 100, key, value);
    assert_false(is_written(cache, &entry)); /* another key, which nobody has read */
    row_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

static void
what_a_write_may_not_be_the_newest_of_is_not_seen_again(void **unused)
{
    static u8 value[20000];
    char key[32];
    const struct entry row = entry_make(1, 10, 1, 100, key, value);
    for (u32 which = 0; which < 7; which++) {
        struct budget budget;
        struct entry cached = row, entry = entry_make(1, 11, 2, 100, key, value);
        if (which == 0) entry.version = 9; /* a replica's, late */
        if (which == 1) entry.version = 10;
        if (which == 2) entry.kind = ENTRY_DELETE;
        if (which == 3) entry.flags = ENTRY_BLOB;
        if (which == 4) entry.value = BYTES(value, 16385);
        if (which == 5) { /* it would fit in the old one's place */
            cached.value = BYTES(value, 16384);
            entry.value = BYTES(value, 16385);
        }
        if (which == 6) { /* nothing is there; perhaps a deleted range hides more */
            cached.kind = ENTRY_DELETE;
            cached.version = 0;
        }
        struct row_cache *cache = cache_of_one(&budget, &cached);
        assert_false(is_written(cache, &entry));
        row_cache_free(cache);
        assert_int_equal(budget.used_bytes, 0);
    }
}

static void
it_stays_below_its_limit_and_accounts_every_byte(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    const u64 limit = MIB(4);
    struct row_cache *cache = row_cache_new(&budget, limit);
    u64 base = budget.used_bytes;
    static u8 value[1000];
    char key[32];
    struct cache_stats stats;
    u64 overhead = base;
    for (u64 i = 0; i < 50000; i++) {
        struct entry entry = entry_make(i, 1, 1, 1000, key, value);
        row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
        row_cache_stats(cache, &stats);
        assert_true(stats.bytes <= limit);
        overhead = budget.used_bytes - stats.bytes; /* the cache's own struct */
    }
    assert_true(overhead < 1024);
    assert_true(stats.bytes > limit * 9 / 10);
    assert_true(stats.evictions > 40000);
    row_cache_limit_set(cache, 0);
    while (row_cache_step(cache)) {
    }
    row_cache_stats(cache, &stats);
    assert_int_equal(stats.entries, 0);
    row_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

/* However many there are, and of whatever size: nobody is to wait for them. */
static void
it_is_cleared_in_steps(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(256), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(128));
    static u8 value[ROW_CACHE_VALUE_BYTES_MAX];
    char key[32];
    const u64 rows = 4096;
    for (u64 i = 0; i < rows; i++) {
        struct entry entry = entry_make(i, 1, 1, sizeof(value), key, value);
        row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
    }
    struct cache_stats before, stats;
    row_cache_stats(cache, &before);
    assert_true(before.entries == rows);
    row_cache_clear(cache);
    row_cache_limit_set(cache, MIB(1));
    row_cache_stats(cache, &stats);
    assert_true(before.entries - stats.entries <= 64);
    for (u64 i = 0; i < rows; i++) {
        struct entry out, entry = entry_make(i, 1, 1, 0, key, value);
        assert_false(row_cache_get(cache, 0, hash_key(entry.key, 0), entry.key, &out));
    }
    u64 steps = 0;
    for (bool more = true; more; steps++) {
        before = stats;
        more = row_cache_step(cache);
        row_cache_stats(cache, &stats);
        assert_true(before.entries - stats.entries <= 128);
    }
    assert_int_equal(stats.entries, 0);
    assert_true(steps >= rows / 128);
    row_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

/* Rows that were asked for, and cleared, beside new ones while there is less room: what is left of the old
 * ones stays in front (row_cache_check). */
static void
new_rows_come_while_old_ones_go(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(4));
    static u8 value[1000];
    char key[32];
    struct entry out;
    for (u64 i = 0; i < 2000; i++) {
        struct entry entry = entry_make(i, 1, 1, sizeof(value), key, value);
        row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
        for (u32 hit = 0; hit < 3; hit++)
            assert_true(row_cache_get(cache, 0, hash_key(entry.key, 0), entry.key, &out));
    }
    row_cache_clear(cache);
    row_cache_limit_set(cache, KIB(512));
    for (u64 i = 0; i < 3000; i++) {
        struct entry entry = entry_make(i % 700, 1, 2, sizeof(value), key, value);
        row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
        assert_true(row_cache_check(cache));
    }
    row_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

static void
one_scan_does_not_empty_it(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(1));
    static u8 value[100];
    char key[32];
    struct entry out;
    const u64 hot = 1000;
    for (u32 round = 0; round < 4; round++) {
        for (u64 i = 0; i < hot; i++) {
            struct entry entry = entry_make(i, 1, 1, 100, key, value);
            if (!row_cache_get(cache, 0, hash_key(entry.key, 0), entry.key, &out))
                row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
        }
    }
    for (u64 i = 0; i < 50000; i++) { /* each once: many times what fits */
        struct entry entry = entry_make(1000000 + i, 1, 1, 100, key, value);
        row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
    }
    u64 left = 0;
    for (u64 i = 0; i < hot; i++) {
        struct entry entry = entry_make(i, 1, 1, 100, key, value);
        left += row_cache_get(cache, 0, hash_key(entry.key, 0), entry.key, &out);
    }
    assert_true(left >= hot * 9 / 10);
    row_cache_free(cache);
}

/* Half as many keys again as fit, in turn: each is pushed out before it is asked for again. */
static void
a_round_of_too_many_keys_keeps_what_fits(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(1));
    static u8 value[100];
    char key[32];
    struct entry out;
    const u64 keys = 6500;
    u64 hits = 0;
    for (u32 round = 0; round < 6; round++) {
        hits = 0;
        for (u64 i = 0; i < keys; i++) {
            struct entry entry = entry_make(i, 1, 1, 100, key, value);
            bool hit = row_cache_get(cache, 0, hash_key(entry.key, 0), entry.key, &out);
            hits += hit;
            if (!hit) row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
        }
        row_cache_limit_set(cache, MIB(1)); /* as happens all the time */
    }
    assert_true(hits > keys / 2);
    assert_true(row_cache_check(cache));
    row_cache_free(cache);
}

static void
blobs_and_large_values_stay_outside(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(8), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(4));
    static u8 value[ROW_CACHE_VALUE_BYTES_MAX + 1];
    char key[32];
    struct entry out;
    struct entry entry = entry_make(1, 1, 1, sizeof(value), key, value);
    u64 hash = hash_key(entry.key, 0);
    row_cache_put(cache, 0, hash, &entry);
    assert_false(row_cache_get(cache, 0, hash, entry.key, &out));
    entry.value.size = sizeof(struct blob_pointer);
    entry.flags = ENTRY_BLOB;
    row_cache_put(cache, 0, hash, &entry);
    assert_false(row_cache_get(cache, 0, hash, entry.key, &out));
    entry.flags = 0;
    entry.value.size = ROW_CACHE_VALUE_BYTES_MAX;
    row_cache_put(cache, 0, hash, &entry);
    assert_true(row_cache_get(cache, 0, hash, entry.key, &out));
    row_cache_free(cache);
}

static void
absence_and_deletes_are_rows_too(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(8), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(4));
    struct entry none = {.token = 3, .key = BYTES_LITERAL("nobody"), .kind = ENTRY_DELETE};
    row_cache_put(cache, 0, 77, &none);
    struct entry out;
    assert_true(row_cache_get(cache, 0, 77, none.key, &out));
    assert_int_equal(out.kind, ENTRY_DELETE);
    assert_int_equal(out.version, 0);
    assert_false(row_cache_get(cache, 1, 77, none.key, &out)); /* another keyspace */
    row_cache_clear(cache);
    assert_false(row_cache_get(cache, 0, 77, none.key, &out));
    row_cache_free(cache);
}

static void
a_full_budget_only_makes_it_smaller(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", KIB(64), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(4));
    static u8 value[500];
    char key[32];
    struct entry out;
    u64 last_hit = 0;
    for (u64 i = 0; i < 2000; i++) {
        struct entry entry = entry_make(i, 1, 1, 500, key, value);
        row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
        last_hit += row_cache_get(cache, 0, hash_key(entry.key, 0), entry.key, &out);
        assert_true(budget.used_bytes <= KIB(64));
    }
    assert_true(last_hit > 1900);
    assert_true(row_cache_check(cache));
    row_cache_free(cache);
    assert_int_equal(budget.used_bytes, 0);
}

/* Other users of the memory leave room for a row at a time, so that rows are not what is given up:
 * the index stays as it is, or a row that is larger than what eight others give back stays out. */
static void
it_stays_right_when_others_take_the_memory(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(4), NULL);
    struct row_cache *cache = row_cache_new(&budget, MIB(4));
    u64 others = budget_available(&budget);
    assert_true(budget_take(&budget, others));
    static u8 value[4000];
    char key[32];
    struct entry out;
    for (u64 i = 0; i < 3000; i++) {
        budget_give(&budget, 256);
        others -= 256;
        struct entry entry = entry_make(i, 1, (u8)i, 20, key, value);
        row_cache_put(cache, 0, hash_key(entry.key, 0), &entry);
        u64 rest = budget_available(&budget);
        assert_true(budget_take(&budget, rest));
        others += rest;
    }
    u32 found = 0;
    for (u64 i = 0; i < 3000; i++) {
        struct entry entry = entry_make(i, 1, (u8)i, 20, key, value);
        if (!row_cache_get(cache, 0, hash_key(entry.key, 0), entry.key, &out)) continue;
        found++;
        assert_int_equal(out.value.data[19], (u8)i);
    }
    assert_true(found > 1000);
    struct entry large = entry_make(5000, 1, 7, sizeof(value), key, value);
    row_cache_put(cache, 0, hash_key(large.key, 0), &large);
    assert_false(row_cache_get(cache, 0, hash_key(large.key, 0), large.key, &out));
    assert_true(row_cache_check(cache));
    row_cache_free(cache);
    assert_int_equal(budget.used_bytes, others);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_never_returns_what_the_model_does_not_hold),
        cmocka_unit_test(a_write_of_a_cached_key_keeps_it_hot),
        cmocka_unit_test(what_a_write_may_not_be_the_newest_of_is_not_seen_again),
        cmocka_unit_test(it_stays_below_its_limit_and_accounts_every_byte),
        cmocka_unit_test(it_is_cleared_in_steps),
        cmocka_unit_test(new_rows_come_while_old_ones_go),
        cmocka_unit_test(one_scan_does_not_empty_it),
        cmocka_unit_test(a_round_of_too_many_keys_keeps_what_fits),
        cmocka_unit_test(blobs_and_large_values_stay_outside),
        cmocka_unit_test(absence_and_deletes_are_rows_too),
        cmocka_unit_test(a_full_budget_only_makes_it_smaller),
        cmocka_unit_test(it_stays_right_when_others_take_the_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
