/* SPDX-License-Identifier: MIT
 *
 * test_base.c -- the small modules of src/base that everything stands on: known vectors where a
 * standard gives them, models beside the subject where none does.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/arena.h"
#include "base/buf.h"
#include "base/crc.h"
#include "base/hash.h"
#include "base/heap.h"
#include "base/histogram.h"
#include "base/list.h"
#include "base/mem.h"
#include "base/prng.h"
#include "base/retry.h"
#include "base/status.h"
#include "base/utf8.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

/* ---- status ---- */

static void
every_status_has_a_name_and_a_text(void **state)
{
    (void)state;
    for (i32 code = 0; code < STATUS_CODE_COUNT; code++) {
        status st = {code};
        assert_true(strlen(status_name(st)) > 1);
        assert_true(strlen(status_text(st)) > 1);
    }
    assert_true(ok(ST_OK));
    assert_false(ok(ST_CORRUPT));
    assert_string_equal(status_name(ST_CORRUPT), "CORRUPT");
}

/* ---- UTF-8 ---- */

static void
what_is_no_utf8_is_escaped(void **state)
{
    (void)state;
    static const struct {
        const char *text, *shown;
    } cases[] = {
        {"", ""},
        {"/a b\n", "/a b\n"},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"a\xff\xc3", "a\\xff\\xc3"},
        {"\xc3(", "\\xc3("},
        {"\xc0\xaf", "\\xc0\\xaf"},                   /* too long a form */
        {"\xe0\x80\xaf", "\\xe0\\x80\\xaf"},          /* another */
        {"\xed\xa0\x80", "\\xed\\xa0\\x80"},          /* a surrogate */
        {"\xf4\x90\x80\x80", "\\xf4\\x90\\x80\\x80"}, /* above the last one */
    };
    char out[64];
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        utf8_escape(cases[i].text, out, sizeof(out));
        assert_string_equal(out, cases[i].shown);
    }
    /* Whole sequences, whole escapes, or nothing of them. */
    utf8_escape("ab\xc3\xa9", out, 4);
    assert_string_equal(out, "ab");
    utf8_escape("a\xff", out, 5);
    assert_string_equal(out, "a");
    utf8_escape("a\xff", out, 6);
    assert_string_equal(out, "a\\xff");
}

/* ---- bytes ---- */

static void
bytes_compare_as_unsigned_and_shorter_first(void **state)
{
    (void)state;
    assert_true(bytes_compare(BYTES_LITERAL("a"), BYTES_LITERAL("b")) < 0);
    assert_true(bytes_compare(BYTES_LITERAL("a"), BYTES_LITERAL("ab")) < 0);
    assert_true(bytes_compare(BYTES_LITERAL("\xff"), BYTES_LITERAL("\x01")) > 0);
    assert_int_equal(bytes_compare(BYTES(NULL, 0), BYTES(NULL, 0)), 0);
    assert_true(bytes_compare(BYTES(NULL, 0), BYTES_LITERAL("x")) < 0);
    assert_true(bytes_equal(BYTES_LITERAL("k\0v"), BYTES_LITERAL("k\0v")));
    assert_false(bytes_equal(BYTES_LITERAL("k\0v"), BYTES_LITERAL("k\0w")));
}

/* ---- checksums ---- */

static void
crc32c_matches_the_published_vectors(void **state)
{
    (void)state;
    /* RFC 3720, appendix B.4. */
    u8 zeros[32] = {0};
    u8 ones[32];
    u8 ascending[32];
    memset(ones, 0xff, sizeof(ones));
    for (u8 i = 0; i < 32; i++)
        ascending[i] = i;
    assert_int_equal(crc32c(0, zeros, 32), 0x8a9136aau);
    assert_int_equal(crc32c(0, ones, 32), 0x62a8ab43u);
    assert_int_equal(crc32c(0, ascending, 32), 0x46dd794eu);
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283u);
}

static void
crc32c_continues_over_pieces(void **state)
{
    (void)state;
    u8 data[1000];
    struct prng prng;
    prng_init(&prng, 1);
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (u8)prng_u64(&prng);
    u32 whole = crc32c(7, data, sizeof(data));
    for (size_t cut = 0; cut <= sizeof(data); cut += 37)
        assert_int_equal(crc32c(crc32c(7, data, cut), data + cut, sizeof(data) - cut), whole);
}

#ifdef __x86_64__
/* Which parts of the registers are not as a process begins with (XGETBV with 1). */
static u64
registers_in_use(void)
{
    u32 low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
    return (u64)high << 32 | low;
}
#endif

/* What comes behind a checksum took several times as long. */
static void
crc32c_leaves_no_wide_register_in_use(void **state)
{
    (void)state;
#ifdef __x86_64__
    u32 a = 0, b, c, d;
    bool told = __builtin_cpu_supports("avx") && __get_cpuid_count(13, 1, &a, &b, &c, &d) &&
                (a & 1u << 2) != 0;
    if (!told) skip();
    static u8 data[4096];
    u32 crc = crc32c(0, data, sizeof(data));
    u64 used = registers_in_use();
    assert_int_not_equal(crc, 0);
    assert_int_equal(used & 1u << 2, 0);
#else
    skip();
#endif
}

static void
crc16_matches_the_cluster_specification(void **state)
{
    (void)state;
    assert_int_equal(crc16_xmodem("123456789", 9), 0x31c3);
    assert_int_equal(crc16_xmodem("", 0), 0);
}

/* ---- slots and tokens ---- */

static void
slots_are_those_of_redis_cluster(void **state)
{
    (void)state;
    /* CLUSTER KEYSLOT of redis-server. */
    assert_int_equal(hash_slot(BYTES_LITERAL("foo")), 12182);
    assert_int_equal(hash_slot(BYTES_LITERAL("somekey")), 11058);
    assert_int_equal(hash_slot(BYTES_LITERAL("foo{hash_tag}")), 2515);
    assert_int_equal(hash_slot(BYTES_LITERAL("bar{hash_tag}")), 2515);
}

static void
hash_tags_follow_the_first_braces(void **state)
{
    (void)state;
    assert_true(bytes_equal(hash_tag(BYTES_LITERAL("a{b}c")), BYTES_LITERAL("b")));
    assert_true(bytes_equal(hash_tag(BYTES_LITERAL("a{}c{d}")), BYTES_LITERAL("a{}c{d}")));
    assert_true(bytes_equal(hash_tag(BYTES_LITERAL("a{{b}}c")), BYTES_LITERAL("{b")));
    assert_true(bytes_equal(hash_tag(BYTES_LITERAL("a{b}{c}")), BYTES_LITERAL("b")));
    assert_true(bytes_equal(hash_tag(BYTES_LITERAL("a{b")), BYTES_LITERAL("a{b")));
    assert_true(bytes_equal(hash_tag(BYTES_LITERAL("}a{")), BYTES_LITERAL("}a{")));
    assert_true(bytes_equal(hash_tag(BYTES_LITERAL("")), BYTES_LITERAL("")));
}

static void
a_token_carries_its_slot_and_depends_on_the_tag_alone(void **state)
{
    (void)state;
    char key[32];
    for (int i = 0; i < 1000; i++) {
        struct bytes k = BYTES(key, (size_t)snprintf(key, sizeof(key), "key:%d", i));
        assert_int_equal(token_slot(hash_token(k)), hash_slot(k));
    }
    assert_true(hash_token(BYTES_LITERAL("x{t}1")) == hash_token(BYTES_LITERAL("y{t}22")));
    assert_true(hash_token(BYTES_LITERAL("t")) == hash_token(BYTES_LITERAL("y{t}22")));
    assert_true(hash_key(BYTES_LITERAL("x{t}1"), 0) != hash_key(BYTES_LITERAL("y{t}22"), 0));
}

static void
partitions_and_shards_cover_all_tokens_without_overlap(void **state)
{
    (void)state;
    for (u32 shards = 1; shards <= LIMIT_SHARDS; shards++) {
        u32 partitions = PARTITION_COUNT_DEFAULT;
        assert_int_equal(shard_partition_first(0, shards, partitions), 0);
        assert_int_equal(shard_partition_first(shards, shards, partitions), partitions);
        for (u32 p = 0; p < partitions; p++) {
            u32 s = partition_shard(p, shards, partitions);
            assert_true(s < shards);
            assert_true(shard_partition_first(s, shards, partitions) <= p);
            assert_true(shard_partition_first(s + 1, shards, partitions) > p);
        }
    }
    u64 next = 0;
    for (u32 p = 0; p < PARTITION_COUNT_DEFAULT; p++) {
        assert_true(partition_token_first(p, PARTITION_COUNT_DEFAULT) == next);
        u64 last = partition_token_last(p, PARTITION_COUNT_DEFAULT);
        assert_int_equal(token_partition(next, PARTITION_COUNT_DEFAULT), p);
        assert_int_equal(token_partition(last, PARTITION_COUNT_DEFAULT), p);
        next = last + 1;
    }
    assert_true(next == 0); /* wrapped: the last token is the largest u64 */
}

/* ---- prng ---- */

static void
a_seed_gives_one_stream_for_ever(void **state)
{
    (void)state;
    struct prng a, b;
    prng_init(&a, 42);
    prng_init(&b, 42);
    for (int i = 0; i < 100; i++)
        assert_true(prng_u64(&a) == prng_u64(&b));
    /* Pinned: a change of the generator would silently change every recorded seed. */
    prng_init(&a, 0);
    assert_true(prng_u64(&a) == 0x99ec5f36cb75f2b4ull);
}

static void
bounded_draws_stay_in_bounds_and_reach_them(void **state)
{
    (void)state;
    struct prng prng;
    prng_init(&prng, 3);
    u32 seen = 0;
    for (int i = 0; i < 1000; i++) {
        u64 v = prng_range(&prng, 10, 13);
        assert_in_range(v, 10, 13);
        seen |= 1u << (v - 10);
    }
    assert_int_equal(seen, 15);
    (void)prng_range(&prng, 0, UINT64_MAX);
    int hits = 0;
    for (int i = 0; i < 10000; i++)
        hits += prng_chance(&prng, 1, 4);
    assert_in_range(hits, 2300, 2700);
    assert_false(prng_chance(&prng, 0, 1));
    assert_true(prng_chance(&prng, 1, 1));
}

/* ---- budgets and memory ---- */

static void
a_taking_counts_in_every_ancestor_or_nowhere(void **state)
{
    (void)state;
    struct budget root, child, leaf;
    budget_init(&root, "root", 100, NULL);
    budget_init(&child, "child", 80, &root);
    budget_init(&leaf, "leaf", 1000, &child);
    assert_true(budget_take(&leaf, 80));
    assert_int_equal(root.used_bytes, 80);
    assert_int_equal(budget_available(&leaf), 0);
    assert_false(budget_take(&leaf, 1));
    assert_int_equal(leaf.used_bytes, 80);
    assert_true(budget_take(&root, 20));
    assert_false(budget_take(&root, 1));
    budget_give(&leaf, 80);
    assert_int_equal(root.used_bytes, 20);
    assert_int_equal(leaf.used_bytes, 0);
    assert_int_equal(leaf.used_bytes_max, 80);
    /* Overflowing sizes are refused, not wrapped. */
    assert_false(budget_take(&leaf, UINT64_MAX));
}

static void
what_is_reserved_is_there_whatever_others_take(void **state)
{
    (void)state;
    struct budget root, child, leaf, other;
    budget_init(&root, "root", 100, NULL);
    budget_init(&child, "child", 60, &root);
    budget_init(&leaf, "leaf", 40, &child);
    budget_init(&other, "other", 100, &root);
    assert_true(budget_reserve(&child, 30));
    assert_int_equal(root.used_bytes, 30);
    assert_int_equal(root.spare_bytes, 30);
    assert_false(budget_take(&other, 71));
    assert_true(budget_take(&other, 70));
    assert_int_equal(budget_available(&leaf), 30);
    assert_true(budget_take(&leaf, 30));
    assert_int_equal(root.used_bytes, 100);
    assert_int_equal(root.spare_bytes, 0);
    assert_false(budget_take(&leaf, 1));
    /* Above it all take from the same. */
    budget_give(&other, 20);
    assert_true(budget_take(&leaf, 10));
    assert_int_equal(root.used_bytes, 90);
    assert_false(budget_take(&other, 11));
    budget_give(&leaf, 25);
    assert_int_equal(child.used_bytes, 15);
    assert_int_equal(root.used_bytes, 80);
    assert_int_equal(root.spare_bytes, 15);
    assert_int_equal(budget_available(&leaf), 25); /* its own limit */
    assert_int_equal(budget_available(&child), 35);
    budget_give(&leaf, 15);
    budget_unreserve(&child);
    assert_int_equal(root.used_bytes, 50);
    assert_int_equal(root.spare_bytes, 0);
    assert_false(budget_reserve(&child, 51));
    assert_true(budget_take(&child, 50));
    assert_int_equal(root.used_bytes, 100);
}

static void
what_a_parent_counts_is_taken_over_by_its_child(void **state)
{
    (void)state;
    struct budget root, child;
    budget_init(&root, "root", 2000, NULL);
    budget_init(&child, "child", 1000, &root);
    struct buf buf;
    buf_init(&buf, &root);
    assert_true(buf_append(&buf, "abc", 3));
    size_t capacity = buf.capacity;
    u64 used = root.used_bytes;
    assert_true(buf_move(&buf, &child));
    assert_int_equal(child.used_bytes, capacity);
    assert_int_equal(root.used_bytes, used);
    struct buf second;
    buf_init(&second, &root);
    assert_true(buf_reserve(&second, 1000));
    assert_false(buf_move(&second, &child));
    assert_ptr_equal(second.budget, &root);
    buf_deinit(&second);
    buf_deinit(&buf);
    assert_int_equal(child.used_bytes, 0);
    assert_int_equal(root.used_bytes, 0);
}

static void
a_refused_allocation_leaves_everything_as_it_was(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", 1000, NULL);
    u8 *block = mem_alloc(&budget, 600);
    assert_non_null(block);
    memset(block, 7, 600);
    assert_null(mem_alloc(&budget, 401));
    assert_null(mem_realloc(&budget, block, 600, 1001));
    assert_int_equal(block[599], 7);
    block = mem_realloc(&budget, block, 600, 1000);
    assert_non_null(block);
    assert_int_equal(block[599], 7);
    block = mem_realloc(&budget, block, 1000, 10);
    assert_int_equal(budget.used_bytes, 10);
    assert_int_equal(block[9], 7);
    mem_free(&budget, block, 10);
    mem_free(&budget, NULL, 99);
    assert_int_equal(budget.used_bytes, 0);
    void *aligned = mem_alloc_aligned(&budget, 100, 64);
    assert_int_equal((uintptr_t)aligned % 64, 0);
    mem_free(&budget, aligned, 100);
    u8 *zero = mem_alloc_zero(&budget, 33);
    for (int i = 0; i < 33; i++)
        assert_int_equal(zero[i], 0);
    mem_free(&budget, zero, 33);
}

static void
an_arena_aligns_and_ends(void **state)
{
    (void)state;
    ALIGNED(16) u8 memory[64];
    struct arena arena;
    arena_init(&arena, memory, sizeof(memory));
    assert_ptr_equal(arena_alloc(&arena, 1, 1), memory);
    assert_ptr_equal(arena_alloc(&arena, 8, 8), memory + 8);
    assert_ptr_equal(arena_alloc(&arena, 48, 1), memory + 16);
    assert_int_equal(arena_left(&arena), 0);
    assert_null(arena_alloc(&arena, 1, 1));
    assert_null(arena_alloc(&arena, SIZE_MAX, 1));
    arena_reset(&arena);
    assert_non_null(arena_alloc(&arena, 64, 16));
}

static void
a_buffer_grows_keeps_and_refuses(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", 4096, NULL);
    struct buf buf;
    buf_init(&buf, &budget);
    for (int i = 0; i < 1000; i++)
        assert_true(buf_append(&buf, "xy", 2));
    assert_int_equal(buf.size, 2000);
    size_t before = buf.capacity;
    assert_false(buf_reserve(&buf, 100000));
    assert_false(buf_reserve(&buf, SIZE_MAX));
    assert_int_equal(buf.capacity, before);
    assert_int_equal(buf.size, 2000);
    buf_consume(&buf, 1999);
    assert_int_equal(buf.size, 1);
    assert_int_equal(buf.data[0], 'y');
    buf_clear(&buf, 1u << 20);
    assert_int_equal(buf.capacity, before);
    buf_clear(&buf, 0);
    assert_int_equal(budget.used_bytes, 0);
    buf_deinit(&buf);
}

static void
a_buffer_of_known_size_has_little_to_spare_and_gives_back_what_it_has(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", 1000000 + 8192, NULL);
    struct buf buf;
    buf_init(&buf, &budget);
    assert_true(buf_append(&buf, "xyz", 3));
    assert_false(buf_reserve(&buf, 1000000)); /* a quarter more */
    assert_true(buf_reserve_close(&buf, 1000000));
    assert_in_range(buf.capacity, 1000003, 1000003 + 8192);
    assert_int_equal(buf.capacity, budget.used_bytes);
    size_t before = buf.capacity;
    assert_true(buf_reserve_close(&buf, 1000000));
    assert_false(buf_reserve_close(&buf, 1100000));
    assert_false(buf_reserve_close(&buf, SIZE_MAX));
    buf_trim(&buf, 900000);
    assert_int_equal(buf.capacity, before);
    buf_trim(&buf, 10000);
    assert_in_range(buf.capacity, 10003, 10003 + 8192);
    assert_int_equal(buf.capacity, budget.used_bytes);
    assert_memory_equal(buf.data, "xyz", 3);
    buf_deinit(&buf);
    assert_int_equal(budget.used_bytes, 0);
}

/* ---- list ---- */

struct item {
    struct list link;
    int value;
};

static void
lists_push_pop_splice_and_forget(void **state)
{
    (void)state;
    struct list a, b;
    struct item items[6];
    list_init(&a);
    list_init(&b);
    for (int i = 0; i < 6; i++) {
        items[i].value = i;
        list_push_back(i < 3 ? &a : &b, &items[i].link);
    }
    list_splice_back(&a, &b);
    assert_true(list_empty(&b));
    list_splice_back(&a, &b);
    list_del(&items[2].link);
    list_del(&items[2].link); /* twice is harmless */
    assert_false(list_linked(&items[2].link));
    int expected[] = {0, 1, 3, 4, 5};
    int n = 0;
    list_for_each (node, &a)
        assert_int_equal(list_entry(node, struct item, link)->value, expected[n++]);
    assert_int_equal(n, 5);
    list_for_each_safe (node, &a)
        list_del(node);
    assert_null(list_pop_front(&a));
    list_push_front(&a, &items[1].link);
    list_push_front(&a, &items[0].link);
    assert_ptr_equal(list_pop_front(&a), &items[0].link);
}

/* ---- heap ---- */

struct heap_item {
    struct heap_node node;
    u64 key;
    bool in;
};

static bool
heap_item_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct heap_item *x = (const struct heap_item *)a;
    const struct heap_item *y = (const struct heap_item *)b;
    return x->key != y->key ? x->key < y->key : x < y;
}

static void
a_heap_agrees_with_a_naive_model(void **state)
{
    (void)state;
    enum { COUNT = 200 };
    static struct heap_item items[COUNT];
    struct heap heap;
    struct prng prng;
    heap_init(&heap, heap_item_before);
    prng_init(&prng, 9);
    for (int step = 0; step < 20000; step++) {
        struct heap_item *item = &items[prng_below(&prng, COUNT)];
        if (item->in) {
            heap_remove(&heap, &item->node);
        } else {
            item->key = prng_below(&prng, 50);
            heap_insert(&heap, &item->node);
        }
        item->in = !item->in;
        struct heap_item *first = NULL;
        for (int i = 0; i < COUNT; i++)
            if (items[i].in && (first == NULL || heap_item_before(&items[i].node, &first->node)))
                first = &items[i];
        assert_ptr_equal(heap_first(&heap), first == NULL ? NULL : &first->node);
    }
}

/* ---- histogram ---- */

static void
histogram_buckets_are_tight_and_in_order(void **state)
{
    (void)state;
    u32 last = 0;
    for (u64 v = 0; v < 100000; v++) {
        u32 b = histogram_bucket(v);
        assert_true(b == last || b == last + 1);
        last = b;
        assert_true(histogram_bucket_last(b) >= v);
        assert_true(b == 0 || histogram_bucket_last(b - 1) < v);
        assert_true(histogram_bucket_last(b) - v <= v / 32 + 1);
    }
    assert_int_equal(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
}

static void
histogram_percentiles_are_within_a_step(void **state)
{
    (void)state;
    static struct histogram h, other;
    assert_int_equal(histogram_percentile(&h, 500000), 0);
    for (u64 v = 1; v <= 10000; v++)
        histogram_record(v % 2 == 0 ? &h : &other, v * 1000);
    histogram_merge(&h, &other);
    assert_int_equal(h.count, 10000);
    assert_int_equal(h.min, 1000);
    assert_int_equal(h.max, 10000000);
    u64 p50 = histogram_percentile(&h, 500000);
    assert_in_range(p50, 5000000, 5000000 + 5000000 / 16);
    assert_int_equal(histogram_percentile(&h, 1000000), 10000000);
    assert_int_equal(histogram_count_until(&h, UINT64_MAX), 10000);
    u64 below = histogram_count_until(&h, 1u << 22);
    assert_in_range(below, 4000, 4194);
}

static void
a_tenth_of_all_is_repeated_and_one_burst(void **state)
{
    (void)state;
    struct retry_budget budget;
    retry_init(&budget);
    for (u32 i = 0; i < 5000; i++)
        retry_earn(&budget); /* no more than a burst is kept */
    for (u32 i = 0; i < RETRY_BURST; i++)
        assert_true(retry_take(&budget));
    assert_false(retry_take(&budget));
    u32 repeated = 0;
    for (u32 i = 0; i < 10000; i++) { /* each would be repeated, twice */
        retry_earn(&budget);
        repeated += retry_take(&budget);
        repeated += retry_take(&budget);
    }
    assert_int_equal(repeated, 10000 / RETRY_SHARE);
    assert_int_equal(budget.taken, RETRY_BURST + repeated);
    assert_int_equal(budget.refused, 1 + 20000 - repeated);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_a_name_and_a_text),
        cmocka_unit_test(what_is_no_utf8_is_escaped),
        cmocka_unit_test(bytes_compare_as_unsigned_and_shorter_first),
        cmocka_unit_test(crc32c_matches_the_published_vectors),
        cmocka_unit_test(crc32c_continues_over_pieces),
        cmocka_unit_test(crc32c_leaves_no_wide_register_in_use),
        cmocka_unit_test(crc16_matches_the_cluster_specification),
        cmocka_unit_test(slots_are_those_of_redis_cluster),
        cmocka_unit_test(hash_tags_follow_the_first_braces),
        cmocka_unit_test(a_token_carries_its_slot_and_depends_on_the_tag_alone),
        cmocka_unit_test(partitions_and_shards_cover_all_tokens_without_overlap),
        cmocka_unit_test(a_seed_gives_one_stream_for_ever),
        cmocka_unit_test(bounded_draws_stay_in_bounds_and_reach_them),
        cmocka_unit_test(a_taking_counts_in_every_ancestor_or_nowhere),
        cmocka_unit_test(what_is_reserved_is_there_whatever_others_take),
        cmocka_unit_test(what_a_parent_counts_is_taken_over_by_its_child),
        cmocka_unit_test(a_refused_allocation_leaves_everything_as_it_was),
        cmocka_unit_test(an_arena_aligns_and_ends),
        cmocka_unit_test(a_buffer_grows_keeps_and_refuses),
        cmocka_unit_test(a_buffer_of_known_size_has_little_to_spare_and_gives_back_what_it_has),
        cmocka_unit_test(lists_push_pop_splice_and_forget),
        cmocka_unit_test(a_heap_agrees_with_a_naive_model),
        cmocka_unit_test(a_tenth_of_all_is_repeated_and_one_burst),
        cmocka_unit_test(histogram_buckets_are_tight_and_in_order),
        cmocka_unit_test(histogram_percentiles_are_within_a_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
