/* SPDX-License-Identifier: MIT
 *
 * test_retain.c -- which versions survive. Stories first, then every small history: whatever is
 * dropped, each reader sees what it saw before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "base/prng.h"
#include "lsm/retain.h"

static struct budget budget;
static struct range_list no_ranges;

#define NOW 1000u

static struct entry
version(u64 seq, u8 kind, u64 expire_ms)
{
    return (struct entry){.token = 5,
                          .key = BYTES_LITERAL("k"),
                          .version = seq * 10,
                          .seq = seq,
                          .kind = kind,
                          .expire_ms = expire_ms};
}

static struct retain
retain_of(const u64 *snapshots, u32 count, const struct range_list *ranges, bool bottom)
{
    return (struct retain){.token_last = UINT64_MAX,
                           .snapshots = snapshots,
                           .snapshot_count = count,
                           .ranges = ranges,
                           .range_seq_limit = UINT64_MAX,
                           .bottom = bottom,
                           .version_outside = UINT64_MAX,
                           .expire_below_ms = UINT64_MAX,
                           .wall_ms = NOW};
}

/* "k" keep, "p" pend, "o" overwritten, "d" deleted, "e" expired, "f" foreign; newest first. */
static void
judge(struct retain *retain, const struct entry *entries, u32 count, char *answers)
{
    static const char letters[] = {'k', 'p', 'o', 'd', 'e', 'f'};
    for (u32 i = 0; i < count; i++) {
        bool changed;
        answers[i] = letters[retain_next(retain, &entries[i], &changed)];
        assert_int_equal(changed, i == 0);
    }
    answers[count] = 0;
}

#define EXPECT_ANSWERS(retain, expected, ...)                                                      \
    do {                                                                                           \
        struct entry entries[] = {__VA_ARGS__};                                                    \
        char answers[16];                                                                          \
        judge(&(retain), entries, ARRAY_COUNT(entries), answers);                                  \
        assert_string_equal(answers, expected);                                                    \
    } while (0)

#define PUT(seq)           version(seq, ENTRY_PUT, 0)
#define EXPIRED(seq)       version(seq, ENTRY_PUT, NOW)
#define EXPIRES_LATER(seq) version(seq, ENTRY_PUT, NOW + 1)
#define DEL(seq)           version(seq, ENTRY_DELETE, 0)

static void
only_the_newest_stays_without_snapshots(void **state)
{
    struct retain r = retain_of(NULL, 0, &no_ranges, false);
    EXPECT_ANSWERS(r, "koo", PUT(9), DEL(5), PUT(2));
}

static void
a_snapshot_keeps_the_version_that_it_sees(void **state)
{
    u64 snapshots[] = {3, 6};
    struct retain r = retain_of(snapshots, 2, &no_ranges, false);
    EXPECT_ANSWERS(r, "kkoko", PUT(9), PUT(6), PUT(4), PUT(3), PUT(2));
}

static void
a_tombstone_stays_above_the_bottom(void **state)
{
    struct retain r = retain_of(NULL, 0, &no_ranges, false);
    EXPECT_ANSWERS(r, "ko", DEL(9), PUT(2));
}

static void
a_tombstone_at_the_bottom_waits_for_what_is_older(void **state)
{
    struct retain r = retain_of(NULL, 0, &no_ranges, true);
    EXPECT_ANSWERS(r, "po", DEL(9), PUT(2));
    u64 snapshot = 4;
    r = retain_of(&snapshot, 1, &no_ranges, true);
    EXPECT_ANSWERS(r, "pk", DEL(9), PUT(2));
}

static void
a_tombstone_stays_when_something_older_may_be_elsewhere(void **state)
{
    struct retain r = retain_of(NULL, 0, &no_ranges, true);
    r.version_outside = 90;
    EXPECT_ANSWERS(r, "k", DEL(9));
    r = retain_of(NULL, 0, &no_ranges, true);
    r.version_outside = 91;
    EXPECT_ANSWERS(r, "p", DEL(9));
}

static void
an_expired_value_is_a_tombstone_unless_a_snapshot_sees_it(void **state)
{
    struct retain r = retain_of(NULL, 0, &no_ranges, true);
    EXPECT_ANSWERS(r, "po", EXPIRED(9), PUT(2));
    r = retain_of(NULL, 0, &no_ranges, true);
    EXPECT_ANSWERS(r, "k", EXPIRES_LATER(9));
    u64 snapshot = 9;
    r = retain_of(&snapshot, 1, &no_ranges, true);
    EXPECT_ANSWERS(r, "k", EXPIRED(9));
    r = retain_of(NULL, 0, &no_ranges, false);
    EXPECT_ANSWERS(r, "k", EXPIRED(9));
}

static void
an_older_write_that_came_later_is_seen_by_nobody(void **state)
{
    /* A replica may deliver version 80 after version 90. */
    struct entry late = PUT(12);
    late.version = 80;
    u64 snapshots[] = {9, 12, 13};
    struct retain r = retain_of(snapshots, 3, &no_ranges, false);
    EXPECT_ANSWERS(r, "ko", PUT(9), late);
}

static void
ranges_drop_what_they_cover_but_for_snapshots(void **state)
{
    struct range_list ranges;
    range_list_init(&ranges, &budget);
    struct range_delete all = {.token_last = UINT64_MAX, .version = 70, .seq = 7};
    assert_true(ok(range_list_add(&ranges, &all, NULL, 0)));
    struct retain r = retain_of(NULL, 0, &ranges, false);
    EXPECT_ANSWERS(r, "d", PUT(6));
    r = retain_of(NULL, 0, &ranges, false);
    EXPECT_ANSWERS(r, "ko", PUT(8), PUT(6));
    u64 snapshot = 6;
    r = retain_of(&snapshot, 1, &ranges, false);
    EXPECT_ANSWERS(r, "k", PUT(6));
    r = retain_of(NULL, 0, &ranges, false);
    r.range_seq_limit = 6; /* not persistent yet */
    EXPECT_ANSWERS(r, "k", PUT(6));
    range_list_deinit(&ranges);
}

static void
entries_of_other_stores_are_dropped(void **state)
{
    struct retain r = retain_of(NULL, 0, &no_ranges, false);
    r.token_first = 6;
    EXPECT_ANSWERS(r, "f", PUT(6));
}

/* What a reader sees among the entries that have not been dropped; 0: nothing. */
static u64
seen(const struct entry *entries, const bool *kept, u32 count, u64 reader)
{
    for (u32 i = 0; i < count; i++) {
        if (!kept[i] || entries[i].seq > reader) continue;
        if (entries[i].kind == ENTRY_DELETE || entry_expired(&entries[i], NOW)) return 0;
        return entries[i].seq;
    }
    return 0;
}

static void
every_reader_sees_the_same_before_and_after(void **state)
{
    struct prng prng;
    prng_init(&prng, 4);
    for (u32 round = 0; round < 200000; round++) {
        u64 snapshots[4];
        u32 snapshot_count = (u32)prng_below(&prng, 4), count = 0;
        u64 at = 0;
        for (u32 i = 0; i < snapshot_count; i++)
            snapshots[i] = at += prng_below(&prng, 4);
        struct entry entries[7];
        u64 seq = 12;
        while (count < 7 && seq > 1) {
            seq -= prng_range(&prng, 1, 3) < seq ? prng_range(&prng, 1, 3) : 1;
            if (seq == 0 || seq > 12) break;
            entries[count++] = version(seq, prng_chance(&prng, 1, 3) ? ENTRY_DELETE : ENTRY_PUT,
                                       prng_chance(&prng, 1, 3) ? NOW : 0);
            if (entries[count - 1].kind == ENTRY_DELETE) entries[count - 1].expire_ms = 0;
        }
        bool before[7], after[7];
        struct retain r =
            retain_of(snapshots, snapshot_count, &no_ranges, prng_chance(&prng, 1, 2));
        i32 pending = -1;
        for (u32 i = 0; i < count; i++) {
            bool changed;
            before[i] = true;
            after[i] = false;
            switch (retain_next(&r, &entries[i], &changed)) {
            case RETAIN_KEEP:
                after[i] = true;
                if (pending >= 0) after[pending] = true;
                pending = -1;
                break;
            case RETAIN_PEND:
                pending = (i32)i;
                break;
            default:
                break;
            }
        }
        for (u32 i = 0; i <= snapshot_count; i++) {
            u64 reader = i < snapshot_count ? snapshots[i] : UINT64_MAX;
            assert_int_equal(seen(entries, after, count, reader),
                             seen(entries, before, count, reader));
        }
    }
}

int
main(void)
{
    budget_init(&budget, "test", MIB(1), NULL);
    range_list_init(&no_ranges, &budget);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_the_newest_stays_without_snapshots),
        cmocka_unit_test(a_snapshot_keeps_the_version_that_it_sees),
        cmocka_unit_test(a_tombstone_stays_above_the_bottom),
        cmocka_unit_test(a_tombstone_at_the_bottom_waits_for_what_is_older),
        cmocka_unit_test(a_tombstone_stays_when_something_older_may_be_elsewhere),
        cmocka_unit_test(an_expired_value_is_a_tombstone_unless_a_snapshot_sees_it),
        cmocka_unit_test(an_older_write_that_came_later_is_seen_by_nobody),
        cmocka_unit_test(ranges_drop_what_they_cover_but_for_snapshots),
        cmocka_unit_test(entries_of_other_stores_are_dropped),
        cmocka_unit_test(every_reader_sees_the_same_before_and_after),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
