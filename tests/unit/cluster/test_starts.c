/* SPDX-License-Identifier: MIT
 *
 * test_starts.c -- whether a member runs with the directory that it had, by the starts in it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/prng.h"
#include "cluster/starts.h"

static struct prng prng;

static void
expect_same(const struct starts *a, const struct starts *b)
{
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->id_count, b->id_count);
    for (u32 i = 0; i < a->id_count; i++)
        assert_true(a->ids[i] == b->ids[i]);
}

/* So many starts more. */
static struct starts
after(struct starts starts, u32 count)
{
    for (u32 i = 0; i < count; i++)
        starts_add(&starts, prng_u64(&prng));
    return starts;
}

static enum starts_verdict
judge(const struct starts *told, const struct starts *own)
{
    struct starts known = starts_newest(told);
    return starts_judge(&known, own);
}

static void
who_goes_on_from_what_is_known_is_fine(void **state)
{
    struct starts none = {0}, told = after(none, 5), later;
    assert_int_equal(told.count, 5);
    assert_int_equal(judge(&none, &none), STARTS_FINE);
    assert_int_equal(judge(&none, &told), STARTS_FINE); /* never heard of it */
    /* The same again, or the power failed before the others were told: of one, of a few. */
    for (u32 i = 0; i < STARTS_IDS_MAX; i++) {
        later = after(told, i);
        assert_int_equal(judge(&told, &later), STARTS_FINE);
    }
}

static void
an_older_copy_is_noticed_however_often_it_was_started_since(void **state)
{
    struct starts none = {0}, copy = after(none, 5), told = after(copy, 1), later;
    assert_int_equal(judge(&told, &copy), STARTS_ROLLED_BACK); /* after one run */
    told = after(told, 20);
    assert_int_equal(judge(&told, &copy), STARTS_ROLLED_BACK);
    assert_int_equal(judge(&told, &none), STARTS_ROLLED_BACK); /* from before there were any */
    told = after(copy, 1);
    for (u32 i = 0; i < STARTS_IDS_MAX; i++) {
        later = after(copy, 1 + i);
        assert_int_equal(judge(&told, &later), STARTS_ROLLED_BACK);
    }
}

static void
nobody_can_tell_of_starts_that_nobody_has_kept(void **state)
{
    struct starts none = {0}, told = after(none, 5), later = after(told, STARTS_IDS_MAX);
    assert_int_equal(later.id_count, STARTS_IDS_MAX);
    assert_int_equal(judge(&told, &later), STARTS_UNRELATED);
    later = after(later, 1000);
    assert_int_equal(later.id_count, STARTS_IDS_MAX);
    assert_int_equal(judge(&told, &later), STARTS_UNRELATED);
}

static void
what_is_sent_and_stored_reads_as_it_was(void **state)
{
    struct starts none = {0}, read;
    u8 bytes[STARTS_TOLD_BYTES_MAX + 1] = {0};
    size_t size;
    for (u32 i = 0; i <= STARTS_IDS_MAX + 2; i++) {
        struct starts starts = after(none, i);
        u32 encoded = starts_encode(&starts, bytes);
        assert_true(ok(starts_decode(BYTES(bytes, encoded), &read, &size)));
        assert_int_equal(size, encoded);
        expect_same(&read, &starts);
        for (u32 less = 0; less < encoded; less++)
            assert_true(status_is(starts_decode(BYTES(bytes, less), &read, &size), ST_CORRUPT));
    }
    struct starts_told told = {.remember = true, .yours = after(none, 1), .own = after(none, 9)};
    struct starts_told heard;
    u32 encoded = starts_told_encode(&told, bytes);
    assert_true(ok(starts_told_decode(BYTES(bytes, encoded), &heard)));
    assert_true(heard.remember);
    expect_same(&heard.yours, &told.yours);
    expect_same(&heard.own, &told.own);
    assert_false(ok(starts_told_decode(BYTES(bytes, encoded + 1), &heard)));
    for (u32 less = 0; less < encoded; less++)
        assert_false(ok(starts_told_decode(BYTES(bytes, less), &heard)));
    bytes[0] = 2; /* a version that there is not yet */
    assert_false(ok(starts_told_decode(BYTES(bytes, encoded), &heard)));

    for (u32 i = 0; i < STARTS_VERDICT_COUNT; i++) {
        enum starts_verdict verdict;
        starts_answer_encode((enum starts_verdict)i, bytes);
        assert_true(ok(starts_answer_decode(BYTES(bytes, STARTS_ANSWER_BYTES), &verdict)));
        assert_int_equal(verdict, i);
        bytes[1] = STARTS_VERDICT_COUNT;
        assert_false(ok(starts_answer_decode(BYTES(bytes, STARTS_ANSWER_BYTES), &verdict)));
    }
}

static void
what_nobody_writes_does_not_read(void **state)
{
    struct starts none = {0}, starts = after(none, 3), read;
    u8 bytes[STARTS_BYTES_MAX];
    size_t size;
    u32 encoded = starts_encode(&starts, bytes);
    static const struct {
        u32 at;
        u8 value;
    } wrong[] = {{0, 2}, {1, 0}, {1, STARTS_IDS_MAX + 1}, {1, 4}, {2, 1}, {7, 1}, {8, 2}};
    for (u32 i = 0; i < ARRAY_COUNT(wrong); i++) {
        u8 was = bytes[wrong[i].at];
        bytes[wrong[i].at] = wrong[i].value;
        assert_true(status_is(starts_decode(BYTES(bytes, encoded), &read, &size), ST_CORRUPT));
        bytes[wrong[i].at] = was;
    }
    assert_true(ok(starts_decode(BYTES(bytes, encoded), &read, &size)));
}

int
main(void)
{
    prng_init(&prng, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_goes_on_from_what_is_known_is_fine),
        cmocka_unit_test(an_older_copy_is_noticed_however_often_it_was_started_since),
        cmocka_unit_test(nobody_can_tell_of_starts_that_nobody_has_kept),
        cmocka_unit_test(what_is_sent_and_stored_reads_as_it_was),
        cmocka_unit_test(what_nobody_writes_does_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
