/* SPDX-License-Identifier: MIT
 *
 * test_merge.c -- merging any number of sorted sources gives what sorting all of them gives.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/prng.h"
#include "lsm/merge.h"

static struct budget budget;

struct array_cursor {
    struct cursor base;
    const struct entry *entries;
    u32 count, at;
    u32 fail_at; /* of the calls to next; UINT32_MAX: never */
    u32 *closed;
};

static void
array_show(struct array_cursor *c)
{
    c->base.valid = c->at < c->count;
    if (c->base.valid) c->base.entry = c->entries[c->at];
}

static status
array_seek(struct cursor *base, u64 token, struct bytes key)
{
    struct array_cursor *c = CONTAINER_OF(base, struct array_cursor, base);
    c->at = 0;
    while (c->at < c->count &&
           entry_compare_key(c->entries[c->at].token, c->entries[c->at].key, token, key) < 0)
        c->at++;
    array_show(c);
    return ST_OK;
}

static status
array_next(struct cursor *base)
{
    struct array_cursor *c = CONTAINER_OF(base, struct array_cursor, base);
    if (c->fail_at-- == 0) return ST_IO_ERROR;
    c->at++;
    array_show(c);
    return ST_OK;
}

static void
array_close(struct cursor *base)
{
    (*CONTAINER_OF(base, struct array_cursor, base)->closed)++;
}

static const struct cursor_ops array_ops = {array_seek, array_next, array_close};

static const char names[4][2] = {"a", "b", "c", "d"};

static int
compare(const void *a, const void *b)
{
    return entry_compare(a, b);
}

static struct entry
random_entry(struct prng *prng, u64 seq)
{
    return (struct entry){.token = prng_below(prng, 10),
                          .key = BYTES(names[prng_below(prng, 4)], 1),
                          .version = prng_below(prng, 3),
                          .seq = seq,
                          .kind = ENTRY_PUT};
}

static void
merging_gives_what_sorting_gives(void **state)
{
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 round = 0; round < 3000; round++) {
        u32 sources = (u32)prng_below(&prng, 20), closed = 0, total = 0;
        static struct entry entries[20][20], all[400];
        static struct array_cursor cursors[20];
        struct cursor *list[20];
        u64 seq = 1;
        for (u32 i = 0; i < sources; i++) {
            u32 count = (u32)prng_below(&prng, 20);
            for (u32 j = 0; j < count; j++)
                all[total++] = entries[i][j] = random_entry(&prng, seq++);
            qsort(entries[i], count, sizeof(struct entry), compare);
            cursors[i] = (struct array_cursor){.base = {.ops = &array_ops},
                                               .entries = entries[i],
                                               .count = count,
                                               .fail_at = UINT32_MAX,
                                               .closed = &closed};
            list[i] = &cursors[i].base;
        }
        qsort(all, total, sizeof(struct entry), compare);
        struct cursor *merge;
        assert_true(ok(merge_cursor_open(list, sources, &budget, &merge)));
        for (u32 pass = 0; pass < 3; pass++) {
            u64 token = pass == 0 ? 0 : prng_below(&prng, 12);
            struct bytes key = pass == 0 ? BYTES(NULL, 0) : BYTES(names[prng_below(&prng, 4)], 1);
            u32 at = 0;
            while (at < total && entry_compare_key(all[at].token, all[at].key, token, key) < 0)
                at++;
            assert_true(ok(merge->ops->seek(merge, token, key)));
            for (; at < total; at++) {
                assert_true(merge->valid);
                assert_int_equal(merge->entry.seq, all[at].seq);
                assert_true(ok(merge->ops->next(merge)));
            }
            assert_false(merge->valid);
        }
        merge->ops->close(merge);
        assert_int_equal(closed, sources);
    }
    assert_int_equal(budget.used_bytes, 0);
}

static void
a_failing_source_is_an_error_and_never_an_end(void **state)
{
    struct prng prng;
    prng_init(&prng, 2);
    struct entry entries[2][10];
    for (u32 i = 0; i < 2; i++) {
        for (u32 j = 0; j < 10; j++) {
            entries[i][j] = random_entry(&prng, i * 10 + j + 1);
            entries[i][j].token = j;
        }
    }
    u32 closed = 0;
    struct array_cursor cursors[2];
    struct cursor *list[2];
    for (u32 i = 0; i < 2; i++) {
        cursors[i] = (struct array_cursor){.base = {.ops = &array_ops},
                                           .entries = entries[i],
                                           .count = 10,
                                           .fail_at = i == 0 ? 4 : UINT32_MAX,
                                           .closed = &closed};
        list[i] = &cursors[i].base;
    }
    struct cursor *merge;
    assert_true(ok(merge_cursor_open(list, 2, &budget, &merge)));
    assert_true(ok(merge->ops->seek(merge, 0, BYTES(NULL, 0))));
    status st = ST_OK;
    u32 seen = 0;
    while (merge->valid && ok(st = merge->ops->next(merge)))
        seen++;
    assert_true(status_is(st, ST_IO_ERROR));
    assert_true(seen < 20);
    merge->ops->close(merge);
    assert_int_equal(closed, 2);
}

static void
without_memory_the_sources_are_closed(void **state)
{
    struct budget none;
    budget_init(&none, "none", 1, NULL);
    u32 closed = 0;
    struct array_cursor cursor = {.base = {.ops = &array_ops}, .closed = &closed};
    struct cursor *list[1] = {&cursor.base}, *merge;
    assert_true(status_is(merge_cursor_open(list, 1, &none, &merge), ST_NO_MEMORY));
    assert_int_equal(closed, 1);
}

int
main(void)
{
    budget_init(&budget, "test", MIB(1), NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging_gives_what_sorting_gives),
        cmocka_unit_test(a_failing_source_is_an_error_and_never_an_end),
        cmocka_unit_test(without_memory_the_sources_are_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
