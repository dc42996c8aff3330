/* SPDX-License-Identifier: MIT
 *
 * test_range_list.c -- deleted ranges: who is covered, what may be forgotten. The second half
 * compares long random histories with a list that forgets nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/prng.h"
#include "lsm/range_list.h"

static struct budget budget;

static struct range_delete
range(u64 first, u64 last, u64 version, u64 seq)
{
    return (struct range_delete){
        .token_first = first, .token_last = last, .version = version, .seq = seq, .keyspace = 1};
}

static void
add(struct range_list *list, struct range_delete r, const u64 *snapshots, u32 count)
{
    assert_true(ok(range_list_add(list, &r, snapshots, count)));
    assert_true(range_list_check(list));
}

static void
a_range_covers_what_is_older_inside_it(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    add(&list, range(10, 20, 100, 7), NULL, 0);
    assert_non_null(range_list_find(&list, 1, 10, 99, 3, UINT64_MAX));
    assert_non_null(range_list_find(&list, 1, 20, 100, 6, UINT64_MAX));
    assert_null(range_list_find(&list, 1, 9, 99, 3, UINT64_MAX));
    assert_null(range_list_find(&list, 1, 21, 99, 3, UINT64_MAX));
    assert_null(range_list_find(&list, 0, 15, 99, 3, UINT64_MAX));  /* another keyspace */
    assert_null(range_list_find(&list, 1, 15, 101, 3, UINT64_MAX)); /* a newer write */
    assert_null(range_list_find(&list, 1, 15, 100, 8, UINT64_MAX));
    assert_null(range_list_find(&list, 1, 15, 99, 3, 6)); /* a reader before it */
    range_list_deinit(&list);
}

static void
an_older_range_inside_a_newer_one_is_shadowed_but_persists_alone(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    add(&list, range(0, UINT64_MAX, 10, 5), NULL, 0);
    add(&list, range(0, UINT64_MAX, 20, 9), NULL, 0);
    assert_int_equal(list.active_count, 1);
    assert_int_equal(list.shadowed_count, 1);
    /* A manifest with the boundary between the two must still have the first. */
    struct range_delete out[2];
    assert_int_equal(range_list_persistent(&list, 7, out), 1);
    assert_int_equal(out[0].seq, 5);
    assert_int_equal(range_list_coalesce(&list, 7, NULL, 0), 0);
    assert_int_equal(range_list_coalesce(&list, 9, NULL, 0), 1);
    assert_int_equal(range_list_persistent(&list, 9, out), 1);
    assert_int_equal(out[0].seq, 9);
    range_list_deinit(&list);
}

static void
a_snapshot_between_two_ranges_keeps_both(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    u64 snapshot = 6;
    add(&list, range(0, 100, 10, 5), NULL, 0);
    add(&list, range(0, 100, 20, 9), &snapshot, 1);
    assert_int_equal(list.active_count, 2);
    assert_non_null(range_list_find(&list, 1, 50, 9, 4, 6));
    assert_int_equal(range_list_coalesce(&list, 9, &snapshot, 1), 0);
    assert_int_equal(range_list_coalesce(&list, 9, NULL, 0), 1);
    range_list_deinit(&list);
}

static void
a_reader_that_began_before_the_shadowing_range_still_sees_the_older(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    add(&list, range(0, 100, 10, 5), NULL, 0);
    add(&list, range(0, 100, 20, 9), NULL, 0);
    assert_int_equal(list.shadowed_count, 1);
    assert_non_null(range_list_find(&list, 1, 50, 9, 4, 7));
    assert_null(range_list_find(&list, 1, 50, 9, 4, 4));
    range_list_deinit(&list);
}

static void
neighbours_deleted_one_after_the_other_become_one(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    for (u64 i = 0; i < 100; i++)
        add(&list, range(i * 10, i * 10 + 9, 50 + i, 5 + i), NULL, 0);
    assert_int_equal(range_list_coalesce(&list, 1000, NULL, 0), 99);
    assert_int_equal(list.active_count, 1);
    assert_int_equal(list.active[0].token_first, 0);
    assert_int_equal(list.active[0].token_last, 999);
    add(&list, range(1000, 1009, 500, 200), NULL, 0); /* something was written in between */
    assert_int_equal(range_list_coalesce(&list, 1000, NULL, 0), 0);
    range_list_deinit(&list);
}

static void
ranges_of_other_stores_are_not_merged(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    add(&list, range(0, 9, 50, 5), NULL, 0);
    add(&list, range(10, 19, 900, 6), NULL, 0);
    list.merge_seq_min = 7;
    assert_int_equal(range_list_coalesce(&list, 1000, NULL, 0), 0);
    add(&list, range(100, 109, 901, 7), NULL, 0);
    add(&list, range(110, 119, 902, 8), NULL, 0);
    assert_int_equal(range_list_coalesce(&list, 1000, NULL, 0), 1);
    range_list_deinit(&list);
}

static void
the_list_is_bounded(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    for (u64 i = 0; i < LEVELS_RANGES_MAX; i++) {
        struct range_delete r = range(i * 100, i * 100 + 1, 10 + i, 10 + 2 * i);
        assert_true(ok(range_list_add(&list, &r, NULL, 0)));
    }
    struct range_delete more = range(0, 1, UINT64_MAX, UINT64_MAX);
    assert_true(status_is(range_list_add(&list, &more, NULL, 0), ST_OVERLOADED));
    range_list_deinit(&list);
}

static void
without_memory_nothing_changes(void **state)
{
    struct budget tiny;
    budget_init(&tiny, "tiny", 16, NULL);
    struct range_list list;
    range_list_init(&list, &tiny);
    struct range_delete r = range(0, 1, 1, 1);
    assert_true(status_is(range_list_add(&list, &r, NULL, 0), ST_NO_MEMORY));
    assert_int_equal(range_list_count(&list), 0);
    range_list_deinit(&list);
}

static bool
covers_nothing(void *arg, const struct range_delete *r)
{
    return r->seq > *(u64 *)arg;
}

static void
only_persistent_ranges_expire(void **state)
{
    struct range_list list;
    range_list_init(&list, &budget);
    add(&list, range(0, 9, 10, 5), NULL, 0);
    add(&list, range(20, 29, 20, 9), NULL, 0);
    u64 until = 100;
    assert_int_equal(range_list_expire(&list, 7, covers_nothing, &until), 1);
    assert_int_equal(list.active[0].seq, 9);
    range_list_deinit(&list);
}

/* A history of ranges, snapshots and flushes; questions about random entries are answered by the
 * list and by one that keeps everything. */
static void
random_histories_answer_like_a_list_that_forgets_nothing(void **state)
{
    for (u64 seed = 1; seed <= 200; seed++) {
        struct prng prng;
        prng_init(&prng, seed);
        struct range_list list;
        range_list_init(&list, &budget);
        struct range_delete all[200];
        u32 all_count = 0;
        u64 snapshots[8];
        u32 snapshot_count = 0;
        u64 seq = 1, flushed = 0;
        for (u32 step = 0; step < 200; step++) {
            switch (prng_below(&prng, 6)) {
            case 0:
            case 1: {
                u64 first = prng_below(&prng, 20);
                struct range_delete r = range(first, first + prng_below(&prng, 20), seq * 10, seq);
                add(&list, r, snapshots, snapshot_count);
                all[all_count++] = r;
                seq++;
                break;
            }
            case 2:
                seq += prng_below(&prng, 3);
                break;
            case 3:
                if (snapshot_count < 8) snapshots[snapshot_count++] = seq - 1;
                break;
            case 4:
                if (snapshot_count > 0) {
                    u32 at = (u32)prng_below(&prng, snapshot_count);
                    memmove(snapshots + at, snapshots + at + 1,
                            (snapshot_count - at - 1) * sizeof(u64));
                    snapshot_count--;
                }
                break;
            case 5:
                flushed = prng_range(&prng, flushed, seq - 1);
                range_list_coalesce(&list, flushed, snapshots, snapshot_count);
                break;
            }
            /* Readers are the snapshots and the newest state; a store has no entry with a seq that
             * a range has. */
            for (u32 q = 0; q < 20; q++) {
                u64 token = prng_below(&prng, 45), entry_seq = prng_below(&prng, seq + 1);
                u64 reader = snapshot_count > 0 && prng_chance(&prng, 1, 2)
                                 ? snapshots[prng_below(&prng, snapshot_count)]
                                 : UINT64_MAX;
                if (reader < entry_seq) continue;
                bool is_range = false, expect = false;
                for (u32 i = 0; i < all_count; i++) {
                    is_range |= all[i].seq == entry_seq;
                    expect |= all[i].seq <= reader &&
                              range_covers(&all[i], 1, token, entry_seq * 10, entry_seq);
                }
                if (is_range) continue;
                bool found = range_list_find(&list, 1, token, entry_seq * 10, entry_seq, reader);
                assert_int_equal(found, expect);
            }
        }
        range_list_deinit(&list);
    }
    assert_int_equal(budget.used_bytes, 0);
}

int
main(void)
{
    budget_init(&budget, "test", MIB(64), NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_range_covers_what_is_older_inside_it),
        cmocka_unit_test(an_older_range_inside_a_newer_one_is_shadowed_but_persists_alone),
        cmocka_unit_test(a_snapshot_between_two_ranges_keeps_both),
        cmocka_unit_test(a_reader_that_began_before_the_shadowing_range_still_sees_the_older),
        cmocka_unit_test(neighbours_deleted_one_after_the_other_become_one),
        cmocka_unit_test(ranges_of_other_stores_are_not_merged),
        cmocka_unit_test(the_list_is_bounded),
        cmocka_unit_test(without_memory_nothing_changes),
        cmocka_unit_test(only_persistent_ranges_expire),
        cmocka_unit_test(random_histories_answer_like_a_list_that_forgets_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
