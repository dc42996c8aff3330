/* SPDX-License-Identifier: MIT
 *
 * test_tree.c -- hash trees: what is equal and what is not, what counts below a bound, and where
 * leaves lie.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/prng.h"
#include "cluster/tree.h"

#define PARTITIONS 4096u
#define T0         (HLC_EPOCH_MS + ((u64)200000000000))

struct item {
    char key[16];
    u64 version, expire_ms;
    bool deleted;
    u32 leaf;
};

static void
item_random(struct prng *prng, u32 number, struct item *out)
{
    *out = (struct item){.leaf = (u32)prng_below(prng, TREE_LEAVES)};
    snprintf(out->key, sizeof(out->key), "k%u", number);
    u64 ms = T0 + prng_below(prng, 1000000);
    out->version = hlc_version_at(ms) | prng_below(prng, 1u << HLC_MS_SHIFT);
    out->deleted = prng_below(prng, 4) == 0;
    if (!out->deleted && prng_below(prng, 3) == 0) out->expire_ms = ms + prng_below(prng, 1000000);
}

/* The leaves that are not known, as a scan would find them. skip: one that this replica lacks. */
static void
resolve(struct tree *tree, const struct item *items, u32 count, u32 skip)
{
    for (u32 i = 0; i < TREE_LEAVES; i++) {
        if (tree->known >> i & 1) continue;
        struct tree_leaf leaf;
        tree_leaf_init(&leaf);
        for (u32 j = 0; j < count; j++)
            if (j != skip && items[j].leaf == i)
                tree_leaf_add(&leaf, tree->bound, BYTES(items[j].key, strlen(items[j].key)),
                              items[j].version, items[j].deleted, items[j].expire_ms);
        tree_leaf_set(tree, i, &leaf);
    }
}

static void
nothing_has_the_root_0(void **state)
{
    struct tree tree;
    tree_init(&tree, 0);
    resolve(&tree, NULL, 0, UINT32_MAX);
    assert_int_equal(tree_root(&tree), 0);
}

static int
numbers_order(const void *a, const void *b)
{
    u64 one = *(const u64 *)a, two = *(const u64 *)b;
    return (one > two) - (one < two);
}

/* Names that differ in a digit, written at once again and again: a leaf must not be the same sum
 * with the hashes of its keys exchanged, whatever their lengths and the milliseconds are. */
static void
keys_that_are_written_at_once_never_look_as_at_another_time(void **state)
{
    static u64 sums[32768]; /* milliseconds */
    for (u32 length = 1; length <= 20; length++) {
        for (u32 i = 0; i < ARRAY_COUNT(sums); i++) {
            struct tree_leaf leaf;
            tree_leaf_init(&leaf);
            for (u32 k = 0; k < 4; k++) {
                char key[24] = "{group of several}keys";
                key[length - 1] = (char)('0' + k);
                tree_leaf_add(&leaf, 0, BYTES(key, length), hlc_version_at(T0 + i), false, 0);
            }
            sums[i] = leaf.hash;
        }
        qsort(sums, ARRAY_COUNT(sums), sizeof(sums[0]), numbers_order);
        for (u32 i = 1; i < ARRAY_COUNT(sums); i++)
            assert_true(sums[i] != sums[i - 1]);
    }
}

static void
equal_content_in_any_order_is_equal_and_one_difference_shows_in_its_leaf(void **state)
{
    struct prng prng;
    prng_init(&prng, 1);
    struct item items[100];
    for (u32 round = 0; round < 200; round++) {
        for (u32 i = 0; i < ARRAY_COUNT(items); i++)
            item_random(&prng, i, &items[i]);
        struct tree a, b;
        tree_init(&a, 0);
        tree_init(&b, 0);
        resolve(&a, items, ARRAY_COUNT(items), UINT32_MAX);
        u32 changed = (u32)prng_below(&prng, ARRAY_COUNT(items));
        struct item kept = items[changed];
        items[changed] = items[0];
        items[0] = kept;
        resolve(&b, items, ARRAY_COUNT(items), UINT32_MAX);
        assert_int_equal(tree_root(&a), tree_root(&b));
        assert_int_equal(tree_differing(a.hashes, b.hashes), 0);
        /* One is missing, or has another version. */
        u32 other = (u32)prng_below(&prng, ARRAY_COUNT(items));
        bool missing = prng_below(&prng, 2) == 0;
        if (!missing) items[other].version++;
        tree_init(&b, 0);
        resolve(&b, items, ARRAY_COUNT(items), missing ? other : UINT32_MAX);
        assert_true(tree_root(&a) != tree_root(&b));
        assert_true(tree_differing(a.hashes, b.hashes) == (u64)1 << items[other].leaf);
    }
}

/* Below the bound replicas may have collected what is gone, each as much as it likes. */
static void
what_is_gone_below_the_bound_does_not_count(void **state)
{
    struct prng prng;
    prng_init(&prng, 2);
    struct item items[200], kept[200];
    for (u32 round = 0; round < 100; round++) {
        u32 bound = tree_time(T0 + prng_below(&prng, 2200000)), count = 0, counting = 0;
        for (u32 i = 0; i < ARRAY_COUNT(items); i++) {
            item_random(&prng, i, &items[i]);
            bool gone = items[i].deleted || items[i].expire_ms != 0;
            bool collectable = gone && items[i].version < tree_bound_version(bound) &&
                               items[i].expire_ms < tree_bound_ms(bound);
            counting += !collectable;
            if (collectable && prng_below(&prng, 2) == 0) continue;
            kept[count++] = items[i];
        }
        struct tree a, b;
        tree_init(&a, 0);
        resolve(&a, items, ARRAY_COUNT(items), UINT32_MAX);
        tree_bound_raise(&a, bound); /* what falls out is resolved anew, the rest is not */
        resolve(&a, items, ARRAY_COUNT(items), UINT32_MAX);
        tree_init(&b, bound);
        resolve(&b, kept, count, UINT32_MAX);
        assert_int_equal(tree_root(&a), tree_root(&b));
        if (counting == 0) assert_int_equal(tree_root(&a), 0);
    }
}

static void
a_bound_makes_only_those_leaves_unknown_from_which_something_falls(void **state)
{
    struct tree tree;
    struct item items[3] = {
        {.key = "a", .version = hlc_version_at(T0), .deleted = true, .leaf = 3},
        {.key = "b", .version = hlc_version_at(T0), .leaf = 4},
        {.key = "c", .version = hlc_version_at(T0), .expire_ms = T0 + 100000, .leaf = 5}};
    tree_init(&tree, 0);
    resolve(&tree, items, 3, UINT32_MAX);
    tree_bound_raise(&tree, tree_time(T0));
    assert_true(tree.known == UINT64_MAX);
    tree_bound_raise(&tree, tree_time(T0) + 1);
    assert_true(tree.known == (UINT64_MAX & ~((u64)1 << 3)));
    resolve(&tree, items, 3, UINT32_MAX);
    tree_bound_raise(&tree, tree_time(T0 + 100000) + 1);
    assert_true(tree.known == (UINT64_MAX & ~((u64)1 << 5)));
    tree_bound_raise(&tree, 1);
    assert_int_equal(tree.bound, tree_time(T0 + 100000) + 1);
}

static void
leaves_cover_the_tokens_of_their_partition(void **state)
{
    static const u32 counts[] = {1, 2, 64, PARTITIONS, SLOT_COUNT};
    for (u32 i = 0; i < ARRAY_COUNT(counts); i++) {
        u32 count = counts[i], partitions[] = {0, count / 2, count - 1};
        for (u32 j = 0; j < ARRAY_COUNT(partitions); j++) {
            u32 partition = partitions[j];
            u64 next = partition_token_first(partition, count);
            for (u32 leaf = 0; leaf < TREE_LEAVES; leaf++) {
                assert_true(tree_leaf_first(partition, count, leaf) == next);
                next = tree_leaf_last(partition, count, leaf) + 1;
            }
            assert_true(next - 1 == partition_token_last(partition, count));
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_has_the_root_0),
        cmocka_unit_test(keys_that_are_written_at_once_never_look_as_at_another_time),
        cmocka_unit_test(equal_content_in_any_order_is_equal_and_one_difference_shows_in_its_leaf),
        cmocka_unit_test(what_is_gone_below_the_bound_does_not_count),
        cmocka_unit_test(a_bound_makes_only_those_leaves_unknown_from_which_something_falls),
        cmocka_unit_test(leaves_cover_the_tokens_of_their_partition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
