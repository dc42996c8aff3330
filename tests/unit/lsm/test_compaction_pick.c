/* SPDX-License-Identifier: MIT
 *
 * test_compaction_pick.c -- pictures of a tree in, decisions out, both as text; then a year of
 * flushes in a model of the whole tree, to see that shape, debt and pressure stay in bounds.
 *
 *   runs, newest first:  "0:10 0:12 1:90* last:1000"   tier:bytes, * owned by sweep 0, ! damaged
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "lsm/compaction_pick.h"

struct picture {
    struct pick_run runs[128];
    struct pick_sweep sweeps[PICK_SWEEPS_MAX];
    struct pick_tree tree;
};

static void
picture_of(const char *text, struct picture *p)
{
    memset(p, 0, sizeof(*p));
    p->tree =
        (struct pick_tree){.runs = p->runs, .sweeps = p->sweeps, .fanout = 4, .tier_bytes = 10};
    char copy[512];
    snprintf(copy, sizeof(copy), "%s", text);
    char *save = NULL;
    for (char *word = strtok_r(copy, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save)) {
        if (strcmp(word, "force") == 0) {
            p->tree.force_last = true;
        } else if (strcmp(word, "rewrite") == 0) {
            p->tree.rewrite_last = true;
        } else if (strcmp(word, "waits") == 0) {
            p->tree.waits = true;
        } else if (strncmp(word, "last:", 5) == 0) {
            p->tree.last_bytes = strtoull(word + 5, NULL, 10);
        } else {
            struct pick_run *run = &p->runs[p->tree.run_count++];
            run->tier = (u8)strtoul(word, &word, 10);
            run->bytes = strtoull(word + 1, &word, 10);
            run->owner = *word == '*';
            run->damaged = *word == '!';
            if (run->owner) p->sweeps[0] = (struct pick_sweep){true, run->tier == 9, run->tier};
        }
    }
}

static void
decision(const struct pick_tree *tree, char *text, size_t size)
{
    struct pick pick;
    compaction_pick(tree, &pick);
    switch (pick.kind) {
    case PICK_NONE:
        snprintf(text, size, "nothing");
        break;
    case PICK_CONTINUE:
        snprintf(text, size, "continue %u", pick.sweep);
        break;
    case PICK_TIER:
        snprintf(text, size, "runs %u+%u to tier %u", pick.first, pick.count, pick.tier_out);
        break;
    case PICK_LAST:
        snprintf(text, size, "runs %u+%u to last", pick.first, pick.count);
        break;
    }
}

struct decided {
    const char *tree, *decision;
};

static void
expect_decisions(const struct decided *cases, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        struct picture p;
        char text[64];
        picture_of(cases[i].tree, &p);
        decision(&p.tree, text, sizeof(text));
        if (strcmp(text, cases[i].decision) != 0) print_message("tree: %s\n", cases[i].tree);
        assert_string_equal(text, cases[i].decision);
    }
}

static void
decisions(void **state)
{
    static const struct decided cases[] = {
        {"", "nothing"},
        {"0:10", "nothing"},
        {"0:10 0:10 0:10 last:1000", "nothing"},
        /* A full tier becomes one run of the next. */
        {"0:10 0:10 0:10 0:10 last:1000", "runs 0+4 to tier 1"},
        {"0:10 0:10 0:10 0:10 0:10 1:40 last:1000", "runs 0+5 to tier 1"},
        /* Small runs stay among themselves. */
        {"0:1 0:1 0:1 0:1 last:1000", "runs 0+4 to tier 0"},
        {"1:20 1:5 1:5 1:5 last:1000", "runs 0+4 to tier 1"},
        {"0:10 1:40 1:40 1:40 1:40 last:10000", "runs 1+4 to tier 2"},
        /* On a tie the smaller merge goes first. */
        {"0:10 0:10 0:10 0:10", "runs 0+4 to tier 1"},
        {"0:10 0:10 1:40 1:40", "runs 0+4 to last"},
        /* A quarter of the last level. */
        {"0:10 1:240 last:1000", "runs 0+2 to last"},
        {"0:10 1:230 last:1000", "nothing"},
        /* However few runs hold it: flushes that came while the last level was busy. */
        {"2:900 last:1000", "runs 0+1 to last"},
        /* One flush over a tiny last level does not rewrite it. */
        {"0:10 last:10", "nothing"},
        {"0:10 0:10 last:10", "runs 0+2 to last"},
        /* What a sweep owns is left alone, and so is everything newer when going down. */
        {"0:10 1:40* 1:40* 1:40* 1:40* last:9999", "continue 0"},
        {"0:10 0:10 0:10 0:10 0:10 0:10 1:40* 1:40* 1:40* 1:40* last:9999", "runs 0+6 to tier 1"},
        /* Everything at once. */
        {"0:1 force last:1000", "runs 0+1 to last"},
        {"0:1 0:1 0:1 0:1 0:1 1:3 force last:1000", "runs 0+6 to last"},
        {"0:1 1:9* force last:1000", "continue 0"},
        {"rewrite last:1000", "runs 0+0 to last"},
        {"rewrite", "nothing"},
        {"force last:1000", "nothing"},
    };
    expect_decisions(cases, ARRAY_COUNT(cases));
}

/* The output stands before older runs of its tier that are on their way into the last level. */
static void
tiers_ascend_with_age(void **state)
{
    (void)state;
    struct picture p;
    char text[64];
    picture_of("0:10 0:10 0:10 0:10 0:10 0:10 0:10* 0:10* last:9999", &p);
    p.sweeps[0].into_last = true;
    decision(&p.tree, text, sizeof(text));
    assert_string_equal(text, "runs 0+6 to tier 0");
}

/* What is not damaged is merged among its neighbours, and nothing goes to the last level. */
static void
a_tree_that_waits_is_merged_around_what_is_damaged(void **state)
{
    static const struct decided cases[] = {
        {"waits 0:10 0:10 0:10 0:10 last:1000", "runs 0+4 to tier 1"},
        {"waits 0:1 0:1 0:1 0:1 last:1000", "runs 0+4 to tier 0"},
        {"waits 0:10 0:10 0:10! 0:10 last:1000", "nothing"},
        {"waits 0:10 0:10 1:40 1:40 1:40 1:40 1:40!", "runs 2+4 to tier 1"},
        {"waits 0:10! 0:10 0:10 0:10 0:10 0:10! last:1000", "runs 1+4 to tier 0"},
        {"waits 0:10! 0:10 0:10 0:10 0:10 2:10! last:1000", "runs 1+4 to tier 1"},
        {"waits 0:10! 1:40 1:40 1:40 1:40", "runs 1+4 to tier 2"},
        /* Before a damaged run of their tier, size tells what is merged with what. */
        {"waits 0:1 0:1 0:1 0:40 0:1!", "nothing"},
        {"waits 0:1 0:1 0:1 0:1 0:40 0:1!", "runs 0+4 to tier 0"},
        {"waits 0:1 0:40 0:40 0:40 0:40 0:1!", "runs 1+4 to tier 0"},
        {"waits 0:1 0:1 0:1 0:1 0:1 0:40* 0:40* 0:40* 0:40* 0:1!", "runs 0+5 to tier 0"},
        /* Beside a sweep that mends it nothing begins yet. */
        {"waits 0:1 0:1 0:1 0:1 0:1 0:1 0:1 0:1 0:1 9:40* last:1000", "continue 0"},
        /* However much there is, and whoever asks. */
        {"waits 2:900 last:10", "nothing"},
        {"waits rewrite last:1000", "nothing"},
        {"waits 0:1 0:1 0:1 0:1! rewrite last:10", "nothing"},
    };
    (void)state;
    expect_decisions(cases, ARRAY_COUNT(cases));
}

/* The first sweep mends, and what is flushed since is merged when it is much, without a break. */
static void
a_tree_that_is_mended_has_not_too_many_runs(void **state)
{
    (void)state;
    struct picture p;
    char text[64];
    picture_of("waits 0:1 9:40* last:1000", &p);
    p.tree.run_count = 72;
    p.runs[71] = p.runs[1];
    for (u32 i = 0; i < 71; i++)
        p.runs[i] = (struct pick_run){.bytes = 1};
    decision(&p.tree, text, sizeof(text));
    assert_string_equal(text, "continue 0");
    p.tree.run_count = 73;
    p.runs[72] = p.runs[71];
    p.runs[71] = p.runs[0];
    decision(&p.tree, text, sizeof(text));
    assert_string_equal(text, "runs 0+72 to tier 1");
    p.sweeps[1] = (struct pick_sweep){.active = true};
    for (u32 i = 20; i < 72; i++)
        p.runs[i].owner = 2;
    p.tree.run_count = 40;
    p.runs[39] = p.runs[72];
    decision(&p.tree, text, sizeof(text));
    assert_string_equal(text, "continue 1");
    p.tree.run_count = 73;
    p.runs[39].owner = 2;
    decision(&p.tree, text, sizeof(text));
    assert_string_equal(text, "continue 1");
}

/* A year of flushes before a damaged run of the lowest tier, or of a higher one. */
static void
however_long_a_tree_waits_its_runs_are_few(void **state)
{
    (void)state;
    for (u8 tier = 0; tier <= 3; tier++) {
        struct picture p;
        picture_of("waits 0:10!", &p);
        p.runs[0].tier = tier;
        p.tree.fanout = PICK_FANOUT;
        u64 flushed = 0, written = 0;
        u32 runs_max = 0;
        for (u32 flush = 0; flush < 20000; flush++) {
            memmove(p.runs + 1, p.runs, p.tree.run_count * sizeof(p.runs[0]));
            p.runs[0] = (struct pick_run){.bytes = 10};
            p.tree.run_count++;
            flushed += 10;
            written += 10;
            struct pick pick;
            for (compaction_pick(&p.tree, &pick); pick.kind != PICK_NONE;
                 compaction_pick(&p.tree, &pick)) {
                assert_int_equal(pick.kind, PICK_TIER);
                assert_true(pick.first + pick.count < p.tree.run_count);
                u64 bytes = 0;
                for (u32 i = 0; i < pick.count; i++)
                    bytes += p.runs[pick.first + i].bytes;
                written += bytes;
                p.runs[pick.first] = (struct pick_run){.bytes = bytes, .tier = pick.tier_out};
                memmove(p.runs + pick.first + 1, p.runs + pick.first + pick.count,
                        (p.tree.run_count - pick.first - pick.count) * sizeof(p.runs[0]));
                p.tree.run_count -= pick.count - 1;
            }
            runs_max = MAX(runs_max, p.tree.run_count);
            for (u32 i = 0; i + 1 < p.tree.run_count; i++)
                assert_true(p.runs[i].tier <= p.runs[i + 1].tier);
        }
        assert_true(p.runs[p.tree.run_count - 1].damaged);
        assert_true(written < flushed * 8);
        assert_true(runs_max <= 40);
    }
}

/* Flush after flush with merges carried out at once: the shape of the design. */
static void
shape_and_write_amplification_stay_in_bounds(void **state)
{
    struct picture p;
    picture_of("", &p);
    p.tree.fanout = PICK_FANOUT;
    const u64 live = 5000; /* distinct bytes, 10 a flush: 500 memtables */
    u64 flushed = 0, written = 0;
    u32 runs_max = 0, pressure_max = 0;
    for (u32 flush = 0; flush < 20000; flush++) {
        memmove(p.runs + 1, p.runs, p.tree.run_count * sizeof(p.runs[0]));
        p.runs[0] = (struct pick_run){.bytes = 10};
        p.tree.run_count++;
        flushed += 10;
        written += 10;
        for (;;) {
            struct pick pick;
            compaction_pick(&p.tree, &pick);
            if (pick.kind == PICK_NONE) break;
            u64 bytes = 0;
            for (u32 i = 0; i < pick.count; i++)
                bytes += p.runs[pick.first + i].bytes;
            if (pick.kind == PICK_LAST) {
                /* Uniform overwrites: most of it is in the last level already. */
                p.tree.last_bytes = MIN(p.tree.last_bytes + bytes, live);
                written += p.tree.last_bytes;
                p.tree.run_count = pick.first;
                continue;
            }
            assert_int_equal(pick.kind, PICK_TIER);
            written += bytes;
            p.runs[pick.first] = (struct pick_run){.bytes = bytes, .tier = pick.tier_out};
            memmove(p.runs + pick.first + 1, p.runs + pick.first + pick.count,
                    (p.tree.run_count - pick.first - pick.count) * sizeof(p.runs[0]));
            p.tree.run_count -= pick.count - 1;
        }
        runs_max = MAX(runs_max, p.tree.run_count);
        pressure_max = MAX(pressure_max, compaction_pressure(&p.tree));
        if (flush > 5000) assert_true(p.tree.last_bytes == live);
    }
    print_message("write amplification %.1f, at most %u runs\n", (double)written / (double)flushed,
                  runs_max);
    assert_true(written < flushed * 8);
    assert_true(runs_max <= 20);
    assert_int_equal(pressure_max, 0);
}

static void
pressure_and_debt_rise_without_a_step(void **state)
{
    struct picture p;
    picture_of("last:1000", &p);
    u32 pressure = 0;
    u64 debt = 0;
    for (u32 runs = 1; runs <= 100; runs++) {
        p.runs[runs - 1] = (struct pick_run){.bytes = 10};
        p.tree.run_count = runs;
        u32 now = compaction_pressure(&p.tree);
        assert_true(now >= pressure && now - pressure <= 40);
        assert_true(compaction_debt(&p.tree) >= debt);
        pressure = now;
        debt = compaction_debt(&p.tree);
    }
    assert_int_equal(pressure, 1000);
}

static void
slices_hold_about_their_target(void **state)
{
    assert_int_equal(compaction_slice_width(100, 0, UINT64_MAX, 64), 0);
    u64 width = compaction_slice_width(6400, 0, UINT64_MAX, 64);
    assert_true(width == (u64)1 << 57); /* 128 slices for a hundred targets */
    /* The same bytes in an eighth of the tokens need slices an eighth as wide. */
    assert_true(compaction_slice_width(6400, 0, UINT64_MAX / 8, 64) == (u64)1 << 54);
    assert_int_equal(compaction_slice_last(5, 0), UINT64_MAX);
    assert_int_equal(compaction_slice_last(5, 4), 7);
    assert_int_equal(compaction_slice_last(UINT64_MAX, (u64)1 << 57), UINT64_MAX);
    /* One hot token: the width has a floor. */
    assert_true(compaction_slice_width(UINT64_MAX, 7, 7, 1) >= 1u << 19);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decisions),
        cmocka_unit_test(tiers_ascend_with_age),
        cmocka_unit_test(a_tree_that_waits_is_merged_around_what_is_damaged),
        cmocka_unit_test(a_tree_that_is_mended_has_not_too_many_runs),
        cmocka_unit_test(however_long_a_tree_waits_its_runs_are_few),
        cmocka_unit_test(shape_and_write_amplification_stay_in_bounds),
        cmocka_unit_test(pressure_and_debt_rise_without_a_step),
        cmocka_unit_test(slices_hold_about_their_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
