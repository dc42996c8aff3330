/* SPDX-License-Identifier: MIT
 *
 * test_codec.c -- round trips, what does not fit, and bytes that were never compressed.
 */
#include "lsm/codec.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/prng.h"

#define RAW_BYTES 16384u

static void
text_fill(struct prng *prng, u8 *data, u32 size)
{
    static const char *const words[] = {"alpha ", "beta ", "gamma ", "delta ", "0123456789"};
    for (u32 at = 0; at < size;) {
        const char *word = words[prng_below(prng, ARRAY_COUNT(words))];
        for (u32 i = 0; word[i] != 0 && at < size; i++)
            data[at++] = (u8)word[i];
    }
}

static void
round_trip(enum lsm_codec codec, struct budget *budget, const u8 *raw, u32 size, bool must_fit)
{
    size_t state_size = codec_state_bytes(codec);
    void *state = state_size > 0 ? mem_alloc(budget, state_size) : NULL;
    u8 *packed = malloc(size);
    u8 *back = malloc(size);
    u32 written = codec_compress(codec, state, raw, size, packed, size);
    if (must_fit) assert_true(written > 0 && written < size);
    if (written > 0) {
        assert_true(ok(codec_decompress(codec, budget, BYTES(packed, written), back, size)));
        assert_memory_equal(raw, back, size);
        /* Another raw size is an error, and nothing is written past the target (ASan watches). */
        u8 *less = malloc(size - 1);
        assert_false(ok(codec_decompress(codec, budget, BYTES(packed, written), less, size - 1)));
        free(less);
        u8 *more = malloc(size + 1);
        assert_false(ok(codec_decompress(codec, budget, BYTES(packed, written), more, size + 1)));
        free(more);
        if (written > 1) {
            status st = codec_decompress(codec, budget, BYTES(packed, written - 1), back, size);
            assert_false(ok(st));
        }
    }
    free(packed);
    free(back);
    mem_free(budget, state, state_size);
}

static void
every_codec_gives_back_what_it_was_given(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct prng prng;
    prng_init(&prng, 7);
    u8 *raw = malloc(RAW_BYTES);
    for (enum lsm_codec codec = LSM_CODEC_LZ4; codec < LSM_CODEC_COUNT; codec++) {
        for (u32 size = 64; size <= RAW_BYTES; size = size * 2 + (size & 1)) {
            text_fill(&prng, raw, size);
            round_trip(codec, &budget, raw, size, size >= 1024);
            memset(raw, 'x', size);
            round_trip(codec, &budget, raw, size, true);
        }
    }
    free(raw);
    assert_int_equal(budget.used_bytes, 0);
}

static void
noise_does_not_shrink_and_says_so(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct prng prng;
    prng_init(&prng, 8);
    u8 raw[4096], packed[4096];
    for (u32 i = 0; i < sizeof(raw); i++)
        raw[i] = (u8)prng_u64(&prng);
    for (enum lsm_codec codec = LSM_CODEC_NONE; codec < LSM_CODEC_COUNT; codec++) {
        size_t size = codec_state_bytes(codec);
        void *state = size > 0 ? mem_alloc(&budget, size) : NULL;
        assert_int_equal(
            codec_compress(codec, state, raw, sizeof(raw), packed, sizeof(raw) - sizeof(raw) / 8),
            0);
        mem_free(&budget, state, size);
    }
    assert_int_equal(budget.used_bytes, 0);
}

static void
hostile_bytes_are_refused_within_bounds(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(64), NULL);
    struct prng prng;
    prng_init(&prng, 9);
    for (u32 round = 0; round < 2000; round++) {
        u32 size = 1 + (u32)prng_below(&prng, 300);
        u32 raw_size = 1 + (u32)prng_below(&prng, 2000);
        u8 *source = malloc(size), *target = malloc(raw_size);
        for (u32 i = 0; i < size; i++)
            source[i] = (u8)prng_u64(&prng);
        for (enum lsm_codec codec = LSM_CODEC_LZ4; codec < LSM_CODEC_COUNT; codec++) {
            status st = codec_decompress(codec, &budget, BYTES(source, size), target, raw_size);
            assert_true(ok(st) || status_is(st, ST_CORRUPT));
        }
        free(source);
        free(target);
    }
    assert_int_equal(budget.used_bytes, 0);
}

static void
sizes_and_codecs_that_cannot_be_are_refused(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(1), NULL);
    u8 source[16] = {0}, target[16];
    struct bytes some = BYTES(source, 16);
    assert_true(status_is(codec_decompress(LSM_CODEC_NONE, &budget, some, target, 15), ST_CORRUPT));
    assert_true(status_is(codec_decompress(LSM_CODEC_LZ4, &budget, some, target, 0), ST_CORRUPT));
    assert_true(
        status_is(codec_decompress(LSM_CODEC_COUNT, &budget, some, target, 16), ST_CORRUPT));
}

static void
a_budget_without_room_is_no_memory_not_corrupt(void **unused)
{
    struct budget budget;
    budget_init(&budget, "test", 1024, NULL);
    u8 source[16] = {0}, target[16];
    status st = codec_decompress(LSM_CODEC_DEFLATE, &budget, BYTES(source, 16), target, 16);
    assert_true(status_is(st, ST_NO_MEMORY));
    assert_string_equal(codec_name(LSM_CODEC_NONE), "none");
    assert_string_equal(codec_name(LSM_CODEC_LZ4), "lz4");
    assert_string_equal(codec_name(LSM_CODEC_DEFLATE), "deflate");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_codec_gives_back_what_it_was_given),
        cmocka_unit_test(noise_does_not_shrink_and_says_so),
        cmocka_unit_test(hostile_bytes_are_refused_within_bounds),
        cmocka_unit_test(sizes_and_codecs_that_cannot_be_are_refused),
        cmocka_unit_test(a_budget_without_room_is_no_memory_not_corrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
