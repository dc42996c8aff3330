/* SPDX-License-Identifier: MIT
 *
 * test_memtable.c -- against a sorted array as the model: the same entries go into both, and every
 * read of the memtable must be what the array says. Few keys and tokens, so that versions and runs
 * of one token are common; then many, so that trees grow and split.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <stdlib.h>

#include "base/prng.h"
#include "lsm/memtable.h"

static struct budget budget;

static struct memtable *
make(u64 capacity)
{
    budget_init(&budget, "test", GIB(1), NULL);
    struct memtable *memtable = memtable_new(&budget, 1000, UINT64_MAX - 1000, capacity);
    assert_non_null(memtable);
    return memtable;
}

static void
drop(struct memtable *memtable)
{
    assert_true(memtable_check(memtable));
    memtable_unref(memtable);
    assert_int_equal(budget.used_bytes, 0);
}

#define MODEL_MAX 20000u
struct model_entry {
    u64 token, version, seq;
    char key[16];
    u32 value;
    bool deleted;
};
static struct model_entry model[MODEL_MAX];
static u32 model_count;

static int
model_compare(const void *a, const void *b)
{
    const struct model_entry *x = a, *y = b;
    int order = entry_compare_key(x->token, BYTES(x->key, strlen(x->key)), y->token,
                                  BYTES(y->key, strlen(y->key)));
    if (order != 0) return order;
    if (x->version != y->version) return x->version > y->version ? -1 : 1;
    return x->seq > y->seq ? -1 : x->seq < y->seq;
}

static const struct leaf *hint; /* for the next put */

static void
put(struct memtable *memtable, u64 token, u32 key, u64 version, u64 seq, bool keep_older)
{
    struct model_entry *m = &model[model_count++];
    assert_true(model_count < MODEL_MAX);
    *m = (struct model_entry){.token = token, .version = version, .seq = seq, .value = (u32)seq};
    snprintf(m->key, sizeof(m->key), "key%u", key);
    struct entry entry = {
        .token = token,
        .key = BYTES(m->key, strlen(m->key)),
        .value = BYTES(&m->value, sizeof(m->value)),
        .version = version,
        .seq = seq,
        .kind = ENTRY_PUT,
    };
    memtable_insert_near(memtable, &entry, keep_older, hint);
}

static const struct model_entry *
model_get(u64 token, const char *key, u64 seq_max)
{
    const struct model_entry *best = NULL;
    for (u32 i = 0; i < model_count; i++) {
        const struct model_entry *m = &model[i];
        if (m->token != token || strcmp(m->key, key) != 0 || m->seq > seq_max) continue;
        if (best == NULL || m->version > best->version ||
            (m->version == best->version && m->seq > best->seq))
            best = m;
    }
    return best;
}

static void
fill_random(struct memtable *memtable, u64 seed, u32 count, u32 tokens, u32 keys, bool late)
{
    struct prng prng;
    prng_init(&prng, seed);
    model_count = 0;
    for (u32 i = 0; i < count; i++) {
        u64 token = 1000 + prng_below(&prng, tokens) * ((UINT64_MAX - 5000) / tokens);
        /* A replica's write may come late: with a lower version than what is there. */
        u64 version = 100 + i / 2;
        if (late && prng_chance(&prng, 1, 4)) version = prng_below(&prng, version);
        put(memtable, token, (u32)prng_below(&prng, keys), version, i + 1, true);
    }
}

static void
compare_gets(struct memtable *memtable, u64 seed, u32 count)
{
    struct prng prng;
    prng_init(&prng, seed);
    for (u32 i = 0; i < count; i++) {
        const struct model_entry *m = &model[prng_below(&prng, model_count)];
        u64 seq_max = prng_chance(&prng, 1, 2) ? UINT64_MAX : prng_below(&prng, model_count + 2);
        const struct model_entry *expected = model_get(m->token, m->key, seq_max);
        struct entry got;
        bool found = memtable_get(memtable, m->token, BYTES(m->key, strlen(m->key)), seq_max, &got);
        assert_int_equal(found, expected != NULL);
        if (!found) continue;
        assert_int_equal(got.seq, expected->seq);
        assert_int_equal(got.version, expected->version);
        assert_int_equal(load_u32(got.value.data), expected->value);
    }
}

static void
every_snapshot_sees_the_newest_version_below_it(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        struct memtable *memtable = make(MIB(8));
        fill_random(memtable, seed, 600, 8, 20, true);
        compare_gets(memtable, seed, 2000);
        drop(memtable);
    }
}

static void
trees_grow_over_many_tokens(void **state)
{
    (void)state;
    struct memtable *memtable = make(MIB(16));
    fill_random(memtable, 7, 10000, 5000, 100, false);
    compare_gets(memtable, 8, 500);
    drop(memtable);
}

/* Hints are taken for many, then all are put: leaves split between the two. */
static void
what_is_put_by_a_hint_is_where_it_belongs(void **state)
{
    (void)state;
    enum { TOGETHER = 200 };
    for (u64 seed = 1; seed <= 4; seed++) {
        struct prng prng;
        prng_init(&prng, seed);
        struct memtable *memtable = make(seed % 2 == 0 ? MIB(8) : MIB(64));
        u32 tokens = seed < 3 ? 20000 : 50; /* and runs of one token */
        model_count = 0;
        for (u32 round = 0; round < 60; round++) {
            u64 chosen[TOGETHER];
            const struct leaf *hints[TOGETHER];
            for (u32 i = 0; i < TOGETHER; i++) {
                chosen[i] = 1000 + prng_below(&prng, tokens);
                hints[i] = memtable_prefetch_leaf(memtable, chosen[i]);
            }
            for (u32 i = 0; i < TOGETHER; i++) {
                u64 seq = model_count + 1;
                hint = hints[i];
                put(memtable, chosen[i], (u32)prng_below(&prng, 200), seq, seq, true);
            }
            hint = NULL;
            assert_true(memtable_check(memtable));
        }
        compare_gets(memtable, seed, 300);
        drop(memtable);
    }
}

static void
a_long_run_of_one_token_is_ordered_by_key(void **state)
{
    (void)state;
    struct memtable *memtable = make(MIB(16));
    model_count = 0;
    for (u32 i = 0; i < 15000; i++)
        put(memtable, 5000, i, i + 1, i + 1, false);
    compare_gets(memtable, 9, 300);
    drop(memtable);
}

/* The first leaf of a tree splits again and again, below everything that it held at first. */
static void
keys_that_come_in_descending_order_are_found(void **state)
{
    (void)state;
    for (u32 one_token = 0; one_token < 2; one_token++) {
        struct memtable *memtable = make(MIB(16));
        model_count = 0;
        for (u32 i = 0; i < 5000; i++) {
            u64 token = one_token ? 5000 : 10000 - i;
            put(memtable, token, 20000 - i, i + 1, i + 1, false);
        }
        for (u32 i = 0; i < model_count; i++) {
            const struct model_entry *m = &model[i];
            struct entry got;
            assert_true(
                memtable_get(memtable, m->token, BYTES(m->key, strlen(m->key)), UINT64_MAX, &got));
            assert_int_equal(got.seq, m->seq);
        }
        drop(memtable);
    }
}

static void
a_cursor_shows_every_version_in_order(void **state)
{
    (void)state;
    struct memtable *memtable = make(MIB(16));
    fill_random(memtable, 3, 5000, 50, 40, false);
    qsort(model, model_count, sizeof(model[0]), model_compare);
    struct cursor *cursor = memtable_cursor_open(memtable, &budget);
    assert_non_null(cursor);
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 round = 0; round < 50; round++) {
        u32 start = round == 0 ? 0 : (u32)prng_below(&prng, model_count);
        struct bytes key = BYTES(model[start].key, strlen(model[start].key));
        while (start > 0 && model[start - 1].token == model[start].token &&
               strcmp(model[start - 1].key, model[start].key) == 0)
            start--;
        assert_true(ok(cursor->ops->seek(cursor, round == 0 ? 0 : model[start].token,
                                         round == 0 ? BYTES(NULL, 0) : key)));
        for (u32 i = start; i < model_count; i++) {
            assert_true(cursor->valid);
            assert_int_equal(cursor->entry.seq, model[i].seq);
            assert_true(bytes_equal(cursor->entry.key, BYTES(model[i].key, strlen(model[i].key))));
            assert_true(ok(cursor->ops->next(cursor)));
        }
        assert_false(cursor->valid);
    }
    assert_true(ok(cursor->ops->seek(cursor, UINT64_MAX, BYTES(NULL, 0))));
    assert_false(cursor->valid);
    cursor->ops->close(cursor);
    drop(memtable);
}

static void
a_cursor_survives_insertions(void **state)
{
    (void)state;
    struct prng prng;
    prng_init(&prng, 11);
    struct memtable *memtable = make(MIB(16));
    model_count = 0;
    for (u32 i = 0; i < 2000; i++) /* even tokens stay; odd ones come while we read */
        put(memtable, 10000 + 2 * (u64)i, 0, i + 1, i + 1, false);
    struct cursor *cursor = memtable_cursor_open(memtable, &budget);
    assert_non_null(cursor);
    assert_true(ok(cursor->ops->seek(cursor, 0, BYTES(NULL, 0))));
    u32 even = 0;
    u64 previous = 0;
    for (u32 i = 0; cursor->valid; i++) {
        assert_true(cursor->entry.token > previous);
        previous = cursor->entry.token;
        if (previous % 2 == 0) even++;
        if (model_count < 8000)
            put(memtable, 10001 + 2 * prng_below(&prng, 2000), (u32)prng_below(&prng, 1) + 1,
                5000 + i, 5000 + i, false);
        assert_true(ok(cursor->ops->next(cursor)));
    }
    assert_int_equal(even, 2000);
    memtable_ref(memtable);
    memtable_unref(memtable);
    cursor->ops->close(cursor);
    drop(memtable);
}

static void
a_cursor_keeps_the_memtable(void **state)
{
    (void)state;
    struct memtable *memtable = make(MIB(1));
    model_count = 0;
    put(memtable, 2000, 1, 1, 1, false);
    struct cursor *cursor = memtable_cursor_open(memtable, &budget);
    memtable_unref(memtable);
    assert_true(ok(cursor->ops->seek(cursor, 0, BYTES(NULL, 0))));
    assert_true(cursor->valid);
    assert_int_equal(cursor->entry.token, 2000);
    cursor->ops->close(cursor);
    assert_int_equal(budget.used_bytes, 0);
}

static void
without_a_snapshot_older_versions_go(void **state)
{
    (void)state;
    struct memtable *memtable = make(MIB(1));
    model_count = 0;
    put(memtable, 2000, 1, 1, 1, false);
    put(memtable, 2000, 1, 2, 2, true);
    assert_int_equal(memtable_entry_count(memtable), 2);
    put(memtable, 2000, 1, 3, 3, false);
    assert_int_equal(memtable_entry_count(memtable), 1);
    struct entry entry;
    assert_false(memtable_get(memtable, 2000, BYTES("key1", 4), 2, &entry));
    put(memtable, 2000, 1, 2, 4, true); /* late: nobody can see it */
    assert_int_equal(memtable_entry_count(memtable), 1);
    assert_int_equal(memtable_seq_max(memtable), 4);
    assert_int_equal(memtable_seq_min(memtable), 1);
    assert_int_equal(memtable_version_max(memtable), 3);
    drop(memtable);
}

/* Whatever was admitted fits, and what is refused takes nothing beyond the budget. */
static struct entry
get_of_key(struct memtable *memtable, u32 key)
{
    char text[16];
    int size = snprintf(text, sizeof(text), "key%u", key);
    struct entry entry;
    assert_true(memtable_get(memtable, 5000, BYTES(text, (size_t)size), UINT64_MAX, &entry));
    return entry;
}

static void
which_keys_were_read_is_remembered(void **state)
{
    (void)state;
    struct memtable *memtable = make(MIB(1));
    model_count = 0;
    for (u32 i = 0; i < 3; i++)
        put(memtable, 5000, i, i + 1, i + 1, false);
    struct entry entry = get_of_key(memtable, 1);
    assert_false(memtable_was_read(&entry)); /* that is for the reader to say */
    memtable_read_note(&entry);
    entry = get_of_key(memtable, 1);
    assert_true(memtable_was_read(&entry));
    assert_int_equal(entry.flags, 0);
    entry = get_of_key(memtable, 0);
    assert_false(memtable_was_read(&entry));

    put(memtable, 5000, 1, 11, 11, false);
    put(memtable, 5000, 2, 12, 12, false);
    entry = get_of_key(memtable, 1);
    assert_int_equal(entry.seq, 11);
    assert_true(memtable_was_read(&entry));
    entry = get_of_key(memtable, 2);
    assert_false(memtable_was_read(&entry));

    put(memtable, 6000, 0, 13, 13, false);
    const struct record *record =
        memtable_prefetch_record(memtable_prefetch_leaf(memtable, 6000), 6000, false);
    assert_true(memtable_get_found(record, BYTES("key0", 4), &entry));
    assert_true(memtable_was_read(&entry));
    assert_int_equal(entry.flags, 0);
    drop(memtable);
}

static void
what_fits_can_be_inserted(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 10; seed++) {
        struct prng prng;
        prng_init(&prng, seed);
        struct memtable *memtable = make(KIB(512));
        budget.limit_bytes = KIB(512) + KIB(64);
        u64 seq = 0;
        static u8 value[65536];
        for (;;) {
            u32 count = (u32)prng_range(&prng, 1, 60);
            u32 size = (u32)prng_below(&prng, prng_chance(&prng, 1, 10) ? 3000 : 50);
            if (!memtable_fits(memtable, (u64)count * (8 + size), count)) break;
            u64 before = memtable_used_bytes(memtable);
            for (u32 i = 0; i < count; i++) {
                u64 key = prng_u64(&prng);
                struct entry entry = {
                    .token = prng_range(&prng, 1000, UINT64_MAX - 1000),
                    .key = BYTES(&key, 8),
                    .value = BYTES(value, size),
                    .version = ++seq,
                    .seq = seq,
                    .kind = ENTRY_PUT,
                };
                memtable_insert(memtable, &entry, false);
            }
            assert_int_equal(memtable_used_bytes(memtable), before);
        }
        assert_true(memtable_used_bytes(memtable) <= KIB(512) + KIB(64));
        assert_true(memtable_used_bytes(memtable) > KIB(256));
        drop(memtable);
    }
}

/* Puts values of these sizes in turn until nothing fits; returns the bytes of keys and values. */
static u64
fill(struct memtable *memtable, const u32 *sizes, u32 size_count)
{
    static u8 value[MIB(1)];
    u64 bytes = 0;
    for (u64 seq = 1;; seq++) {
        u32 size = sizes[seq % size_count];
        if (!memtable_fits(memtable, 8 + size, 1)) return bytes;
        struct entry entry = {
            .token = 1000 + seq * 0x9e3779b97f4a7c15u % (UINT64_MAX - 2000),
            .key = BYTES(&seq, 8),
            .value = BYTES(value, size),
            .version = seq,
            .seq = seq,
            .kind = ENTRY_PUT,
        };
        memtable_insert(memtable, &entry, false);
        bytes += 8 + size;
    }
}

static void
a_large_memtable_is_filled_with_values(void **state)
{
    (void)state;
    static const u32 sizes[][2] = {
        {1000, 1000}, {700 << 10, 1000}, {1 << 20, 1000}, {300 << 10, 200 << 10}};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct memtable *memtable = make(MIB(32));
        u64 bytes = fill(memtable, sizes[i], 2);
        assert_true(memtable_used_bytes(memtable) <= MIB(32));
        assert_true(bytes > MIB(32) / 100 * 85);
        drop(memtable);
    }
}

static void
a_large_memtable_with_little_in_it_takes_little(void **state)
{
    (void)state;
    struct memtable *memtable = make(MIB(128));
    assert_true(memtable_fits(memtable, 100, 1));
    assert_true(memtable_used_bytes(memtable) < MIB(3));
    drop(memtable);
}

static void
a_memtable_leaves_its_large_pages_to_the_next(void **state)
{
    (void)state;
    static const u32 sizes[] = {1000};
    struct memtable *memtable = make(MIB(32));
    struct memtable_pages pages;
    memtable_pages_init(&pages, &budget);
    memtable_pages_use(memtable, &pages);
    u64 bytes = fill(memtable, sizes, 1);
    u32 count = (u32)(memtable_used_bytes(memtable) / MEM_PAGE_BYTES);
    assert_true(memtable_check(memtable));
    memtable_unref(memtable);
    assert_in_range(pages.count, count - 2, count);
    assert_int_equal(budget.used_bytes, pages.count * MEM_PAGE_BYTES);

    /* The next one needs no more, and what it leaves is there again. */
    u32 left = pages.count;
    u64 highest = budget.used_bytes_max;
    for (u32 round = 0; round < 3; round++) {
        memtable = memtable_new(&budget, 1000, UINT64_MAX - 1000, MIB(32));
        assert_non_null(memtable);
        memtable_pages_use(memtable, &pages);
        assert_int_equal(fill(memtable, sizes, 1), bytes);
        assert_int_equal(pages.count, 0);
        assert_true(memtable_check(memtable));
        memtable_unref(memtable);
        assert_int_equal(pages.count, left);
        assert_true(budget.used_bytes_max <= highest + MEM_PAGE_BYTES);
    }

    /* What nobody takes goes, by and by; the first call has seen no time without use. */
    memtable_pages_trim(&pages);
    assert_int_equal(pages.count, left);
    memtable_pages_trim(&pages);
    assert_in_range(pages.count, left / 2, left - 1);
    for (u32 i = 0; i < 100; i++)
        memtable_pages_trim(&pages);
    assert_int_equal(pages.count, 0);
    assert_int_equal(budget.used_bytes, 0);
}

static void
pages_that_were_left_are_not_in_the_way_of_others(void **state)
{
    (void)state;
    static const u32 sizes[] = {1000}, large[] = {1 << 20};
    struct memtable *memtable = make(MIB(32));
    struct memtable_pages pages;
    memtable_pages_init(&pages, &budget);
    memtable_pages_use(memtable, &pages);
    (void)fill(memtable, sizes, 1);
    memtable_unref(memtable);
    assert_true(pages.count > 8);

    memtable = memtable_new(&budget, 1000, UINT64_MAX - 1000, MIB(32));
    assert_non_null(memtable);
    memtable_pages_use(memtable, &pages);
    budget.limit_bytes = budget.used_bytes + KIB(64);
    assert_true(fill(memtable, large, 1) > MIB(8)); /* such values lie outside of large pages */
    drop(memtable);
}

static void
no_memory_is_an_answer(void **state)
{
    (void)state;
    budget_init(&budget, "test", 100, NULL);
    assert_null(memtable_new(&budget, 0, 10, MIB(1)));
    assert_int_equal(budget.used_bytes, 0);
    budget.limit_bytes = KIB(8);
    struct memtable *memtable = memtable_new(&budget, 0, UINT64_MAX, KIB(256));
    assert_non_null(memtable);
    assert_false(memtable_fits(memtable, KIB(64), 1));
    budget.limit_bytes = budget.used_bytes;
    assert_null(memtable_cursor_open(memtable, &budget));
    memtable_unref(memtable);
    assert_int_equal(budget.used_bytes, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_snapshot_sees_the_newest_version_below_it),
        cmocka_unit_test(trees_grow_over_many_tokens),
        cmocka_unit_test(what_is_put_by_a_hint_is_where_it_belongs),
        cmocka_unit_test(a_long_run_of_one_token_is_ordered_by_key),
        cmocka_unit_test(keys_that_come_in_descending_order_are_found),
        cmocka_unit_test(a_cursor_shows_every_version_in_order),
        cmocka_unit_test(a_cursor_survives_insertions),
        cmocka_unit_test(a_cursor_keeps_the_memtable),
        cmocka_unit_test(without_a_snapshot_older_versions_go),
        cmocka_unit_test(which_keys_were_read_is_remembered),
        cmocka_unit_test(what_fits_can_be_inserted),
        cmocka_unit_test(a_large_memtable_is_filled_with_values),
        cmocka_unit_test(a_large_memtable_with_little_in_it_takes_little),
        cmocka_unit_test(a_memtable_leaves_its_large_pages_to_the_next),
        cmocka_unit_test(pages_that_were_left_are_not_in_the_way_of_others),
        cmocka_unit_test(no_memory_is_an_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
