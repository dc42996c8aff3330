/* SPDX-License-Identifier: MIT
 *
 * test_hints_key.c -- names of hints in the store: each lies in the partition of its write, those
 * of a run lie together in the order of versions, and no bytes decode to what nobody wrote.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "cluster/hints_internal.h"

static struct hint_tag tags[PARTITION_COUNT_DEFAULT];

static void
each_partition_has_a_tag_of_its_own(void **state)
{
    (void)state;
    hint_tags_find(0, PARTITION_COUNT_DEFAULT, tags);
    for (u32 i = 0; i < PARTITION_COUNT_DEFAULT; i++) {
        u8 bytes[HINT_KEY_BYTES];
        struct hint_key key = {
            .target = i + 1, .kind = HINT_KIND_WRITE, .version = 1, .count = 1, .parts = 1};
        struct bytes name = BYTES(bytes, hint_key_encode(&tags[i], &key, bytes));
        assert_int_equal(token_partition(hash_token(name), PARTITION_COUNT_DEFAULT), i);
    }
}

/* Stored names must not change: with another number of cores, or another release. */
static void
a_tag_is_the_same_for_every_share_of_the_partitions(void **state)
{
    (void)state;
    static struct hint_tag some[PARTITION_COUNT_DEFAULT];
    hint_tags_find(0, PARTITION_COUNT_DEFAULT, tags);
    for (u32 first = 0; first < PARTITION_COUNT_DEFAULT; first += 1365) {
        u32 count = MIN(1365u, PARTITION_COUNT_DEFAULT - first);
        hint_tags_find(first, count, some);
        assert_memory_equal(some, tags + first, count * sizeof(*some));
    }
    assert_int_equal(tags[0].size, 4);
    assert_memory_equal(tags[0].text, "2977", 4);
    assert_memory_equal(tags[4095].text, "9023", 4);
}

static struct hint_key
random_key(struct prng *prng)
{
    struct hint_key key = {
        .target = (u32)prng_range(prng, 1, prng_chance(prng, 1, 2) ? 3 : UINT32_MAX),
        .kind = HINT_KIND_WRITE,
        .version = prng_range(prng, 1, prng_chance(prng, 1, 2) ? 300 : UINT64_MAX),
        .keyspace = (u16)prng_below(prng, LIMIT_KEYSPACES_CLIENT),
        .count = (u32)prng_range(prng, 1, LIMIT_BATCH_OPS),
        .parts = (u16)prng_range(prng, 1, HINT_PARTS_MAX)};
    key.part = (u16)prng_below(prng, key.parts);
    return key;
}

static void
names_decode_to_what_they_were_made_of_and_sort_by_version(void **state)
{
    (void)state;
    struct prng prng;
    prng_init(&prng, 1);
    hint_tags_find(0, PARTITION_COUNT_DEFAULT, tags);
    for (u32 i = 0; i < 20000; i++) {
        const struct hint_tag *tag = &tags[prng_below(&prng, PARTITION_COUNT_DEFAULT)];
        struct hint_key a = random_key(&prng), b = random_key(&prng), out;
        u8 a_bytes[HINT_KEY_BYTES], b_bytes[HINT_KEY_BYTES], run[HINT_KEY_BYTES];
        u32 a_size = hint_key_encode(tag, &a, a_bytes), b_size = hint_key_encode(tag, &b, b_bytes);
        assert_true(a_size <= HINT_KEY_BYTES);
        assert_true(hint_key_decode(tag, BYTES(a_bytes, a_size), &out));
        assert_int_equal(out.target, a.target);
        assert_true(out.version == a.version);
        assert_int_equal(out.keyspace, a.keyspace);
        assert_int_equal(out.count, a.count);
        assert_int_equal(out.part, a.part);
        assert_int_equal(out.parts, a.parts);
        u32 run_size = hint_key_run(tag, a.target, run);
        assert_true(run_size < a_size && memcmp(run, a_bytes, run_size) == 0);
        if (a.target == b.target)
            assert_true(a.version == b.version || (memcmp(a_bytes, b_bytes, MIN(a_size, b_size)) <
                                                   0) == (a.version < b.version));
        /* A marker lies behind all of its run. */
        struct hint_key marker = {.target = a.target, .kind = HINT_KIND_MARKER};
        u32 marker_size = hint_key_encode(tag, &marker, b_bytes);
        assert_true(hint_key_decode(tag, BYTES(b_bytes, marker_size), &out));
        assert_int_equal(out.kind, HINT_KIND_MARKER);
        assert_true(memcmp(a_bytes, b_bytes, marker_size) < 0);
        /* Cut off, or longer, or of another partition: nothing of ours. */
        for (u32 size = 0; size < a_size; size++)
            assert_false(hint_key_decode(tag, BYTES(a_bytes, size), &out));
        if (tag != &tags[7]) assert_false(hint_key_decode(&tags[7], BYTES(a_bytes, a_size), &out));
    }
}

static void
what_nobody_writes_does_not_decode(void **state)
{
    (void)state;
    hint_tags_find(0, 1, tags);
    const struct hint_key bad[] = {
        {.target = 0, .kind = HINT_KIND_WRITE, .version = 1, .count = 1, .parts = 1},
        {.target = 1, .kind = HINT_KIND_WRITE, .version = 0, .count = 1, .parts = 1},
        {.target = 1, .kind = HINT_KIND_WRITE, .version = 1, .count = 0, .parts = 1},
        {.target = 1, .kind = HINT_KIND_WRITE, .version = 1, .count = 1, .parts = 0},
        {.target = 1, .kind = HINT_KIND_WRITE, .version = 1, .count = 1, .part = 1, .parts = 1},
        {.target = 1,
         .kind = HINT_KIND_WRITE,
         .version = 1,
         .count = LIMIT_BATCH_OPS + 1,
         .parts = 1},
        {.target = 1,
         .kind = HINT_KIND_WRITE,
         .version = 1,
         .count = 1,
         .parts = HINT_PARTS_MAX + 1},
        {.target = 1,
         .kind = HINT_KIND_WRITE,
         .version = 1,
         .count = 1,
         .parts = 1,
         .keyspace = 16},
        {.target = 1, .kind = 3, .version = 1, .count = 1, .parts = 1},
    };
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++) {
        u8 bytes[HINT_KEY_BYTES];
        struct hint_key out;
        u32 size = hint_key_encode(&tags[0], &bad[i], bytes);
        assert_false(hint_key_decode(&tags[0], BYTES(bytes, size), &out));
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_partition_has_a_tag_of_its_own),
        cmocka_unit_test(a_tag_is_the_same_for_every_share_of_the_partitions),
        cmocka_unit_test(names_decode_to_what_they_were_made_of_and_sort_by_version),
        cmocka_unit_test(what_nobody_writes_does_not_decode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
