/* SPDX-License-Identifier: MIT
 *
 * test_run_set.c -- what run_set_check accepts and what it refuses, on runs of tables that exist as
 * their figures only.
 */
#include "lsm/run_set.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

struct slot_spec {
    u64 token_first, token_last, seq_min, seq_max;
};

static struct run_set *
set_new(void)
{
    struct run_set *set = calloc(1, sizeof(*set) + 4 * sizeof(set->runs[0]));
    assert_non_null(set);
    set->ref_count = 1;
    return set;
}

/* Behind those that are there. */
static void
add_run(struct run_set *set, u8 tier, const struct slot_spec *specs, u32 count)
{
    struct run *run = calloc(1, sizeof(*run) + count * sizeof(run->slots[0]));
    assert_non_null(run);
    run->ref_count = 1;
    run->tier = tier;
    run->count = count;
    for (u32 i = 0; i < count; i++) {
        struct level_table *file = calloc(1, sizeof(*file));
        struct table *table = calloc(1, sizeof(*table));
        assert_true(file != NULL && table != NULL);
        table->meta.seq_min = specs[i].seq_min;
        table->meta.seq_max = specs[i].seq_max;
        file->table = table;
        file->ref_count = 1;
        run->slots[i] = (struct run_slot){
            .file = file, .token_first = specs[i].token_first, .token_last = specs[i].token_last};
    }
    set->runs[set->run_count++] = run;
    for (u32 i = 1; i <= LIMIT_KEYSPACES; i++)
        set->tree_first[i] = set->run_count;
}

static bool
check_and_free(struct run_set *set)
{
    bool right = run_set_check(set);
    for (u32 i = 0; i < set->run_count; i++) {
        for (u32 j = 0; j < set->runs[i]->count; j++) {
            free(set->runs[i]->slots[j].file->table);
            free(set->runs[i]->slots[j].file);
        }
        free(set->runs[i]);
    }
    free(set);
    return right;
}

static void
numbers_fall_from_run_to_run(void **state)
{
    (void)state;
    for (u32 right = 0; right < 2; right++) {
        struct run_set *set = set_new();
        add_run(set, 0, &(struct slot_spec){10, 20, right ? 6 : 1, right ? 9 : 4}, 1);
        add_run(set, 1, &(struct slot_spec){15, 30, 5, 8}, 1);
        assert_true(check_and_free(set) == (right == 1));
    }
}

/* What of two runs lay at token 15 is in the last level. Then what was left of the older one, on
 * both sides, became one table that spans the gap, and all that it holds came before. */
static void
a_table_may_span_a_slice_that_the_last_level_has_from_later_runs(void **state)
{
    (void)state;
    struct run_set *set = set_new();
    add_run(set, 0, &(struct slot_spec){10, 20, 14, 25}, 1);
    add_run(set, RUN_TIER_LAST, &(struct slot_spec){15, 15, 30, 31}, 1);
    assert_true(check_and_free(set));
}

static void
slots_are_disjoint_and_the_last_level_comes_last(void **state)
{
    (void)state;
    struct run_set *set = set_new();
    add_run(set, 0, (struct slot_spec[]){{10, 20, 1, 1}, {20, 30, 2, 2}}, 2);
    assert_false(check_and_free(set));
    set = set_new();
    add_run(set, RUN_TIER_LAST, &(struct slot_spec){10, 20, 1, 1}, 1);
    add_run(set, 0, &(struct slot_spec){30, 40, 2, 2}, 1);
    assert_false(check_and_free(set));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_fall_from_run_to_run),
        cmocka_unit_test(a_table_may_span_a_slice_that_the_last_level_has_from_later_runs),
        cmocka_unit_test(slots_are_disjoint_and_the_last_level_comes_last),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
