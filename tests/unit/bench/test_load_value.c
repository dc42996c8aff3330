/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cmocka.h>

#include <lz4.h>
#include <stdlib.h>

#include "load/value.h"

#define KEY 42u

static struct values values;
static u8 value[3 * VALUE_PIECE_BYTES];

static struct bytes
written(u64 key, u32 version)
{
    u32 size = value_size(&values, key, version);
    assert_true(size <= sizeof(value));
    value_write(&values, key, version, value, size);
    return BYTES(value, size);
}

static enum value_verdict
judged(u64 key, struct bytes bytes)
{
    struct value_stamp stamp;
    return value_judge(&values, key, bytes, &stamp);
}

static void
a_value_is_right_for_its_key_only(void **state)
{
    static const u32 sizes[] = {24, 25, 31, 32, 100, 4096 + 24, 4096 + 25, 3 * 4096};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        values_init(&values, sizes[i], sizes[i], 0, 77);
        struct value_stamp stamp;
        struct bytes bytes = written(KEY, 9);
        assert_int_equal(value_judge(&values, KEY, bytes, &stamp), VALUE_RIGHT);
        assert_int_equal(stamp.version, 9);
        assert_int_equal(stamp.run, 77);
        assert_int_equal(value_judge(&values, KEY + 1, bytes, &stamp), VALUE_FOREIGN);
        assert_int_equal(stamp.key, KEY);
    }
}

static void
every_changed_bit_is_noticed(void **state)
{
    values_init(&values, 150, 150, 30, 1);
    struct bytes bytes = written(KEY, 1);
    for (u32 bit = 0; bit < 150 * 8; bit++) {
        value[bit / 8] ^= (u8)(1u << bit % 8);
        /* The head names the compressible part: a value of another pool is judged by its head,
         * which the check covers. */
        assert_int_equal(judged(KEY, bytes), VALUE_BROKEN);
        value[bit / 8] ^= (u8)(1u << bit % 8);
    }
    assert_int_equal(judged(KEY, bytes), VALUE_RIGHT);
}

static void
a_cut_value_is_noticed_at_every_length(void **state)
{
    values_init(&values, 200, 200, 0, 1);
    written(KEY, 1);
    for (u32 size = 0; size < 200; size++)
        assert_int_equal(judged(KEY, BYTES(value, size)), VALUE_BROKEN);
    value[200] = 0;
    assert_int_equal(judged(KEY, BYTES(value, 201)), VALUE_BROKEN);
}

static void
half_of_one_and_half_of_another_version_is_noticed(void **state)
{
    values_init(&values, 9000, 9000, 0, 1);
    u8 *old = malloc(9000);
    assert_non_null(old);
    memcpy(old, written(KEY, 1).data, 9000);
    struct bytes bytes = written(KEY, 2);
    memcpy(value + 5000, old + 5000, 4000);
    assert_int_equal(judged(KEY, bytes), VALUE_BROKEN);
    free(old);
}

static void
values_of_other_runs_and_options_are_readable(void **state)
{
    values_init(&values, 500, 500, 50, 1);
    written(KEY, 3);
    values_init(&values, 10, 100, 0, 2);
    struct value_stamp stamp;
    assert_int_equal(value_judge(&values, KEY, BYTES(value, 500), &stamp), VALUE_RIGHT);
    assert_int_equal(stamp.run, 1);
}

static void
sizes_cover_their_range(void **state)
{
    values_init(&values, 30, 39, 0, 1);
    u32 seen[10] = {0};
    for (u32 version = 0; version < 1000; version++) {
        u32 size = value_size(&values, KEY, version);
        assert_in_range(size, 30, 39);
        assert_int_equal(size, value_size(&values, KEY, version));
        seen[size - 30]++;
    }
    for (u32 i = 0; i < 10; i++)
        assert_in_range(seen[i], 60, 140);
}

/* A thousand values together, as a table of a server would hold them. */
static double
compressed_part(u32 compressible)
{
    values_init(&values, 1000, 1000, compressible, 1);
    int size = 1000 * 1000, bound = LZ4_compressBound(size);
    char *from = malloc((size_t)size), *to = malloc((size_t)bound);
    assert_true(from != NULL && to != NULL);
    for (u32 i = 0; i < 1000; i++)
        value_write(&values, i, 1, (u8 *)from + (size_t)i * 1000, 1000);
    int got = LZ4_compress_default(from, to, size, bound);
    free(from);
    free(to);
    return (double)got / size;
}

static void
values_compress_by_the_part_that_was_asked_for(void **state)
{
    assert_true(compressed_part(0) > 0.98);
    double half = compressed_part(50);
    assert_true(half > 0.45 && half < 0.62);
    assert_true(compressed_part(100) < 0.1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_value_is_right_for_its_key_only),
        cmocka_unit_test(every_changed_bit_is_noticed),
        cmocka_unit_test(a_cut_value_is_noticed_at_every_length),
        cmocka_unit_test(half_of_one_and_half_of_another_version_is_noticed),
        cmocka_unit_test(values_of_other_runs_and_options_are_readable),
        cmocka_unit_test(sizes_cover_their_range),
        cmocka_unit_test(values_compress_by_the_part_that_was_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
