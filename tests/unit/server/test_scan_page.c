/* SPDX-License-Identifier: MIT
 *
 * test_scan_page.c -- SCAN's promise: a key that is there during the whole scan is returned,
 * whatever else is written and deleted, whoever else scans, and wherever its calls go. A model of a
 * keyspace is scanned by several readers at once; nothing is remembered between their calls but the
 * cursor, so what holds here holds over restarts and on other nodes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "server/scan_page.h"

#define KEYS_MAX    40000u
#define READERS     3u
#define LARGE_COUNT 65536u

struct key {
    u64 token;
    char text[40];
    u32 size;
    bool there;
    u32 gone_at; /* the last step at which it was not there */
    bool found[READERS];
};

static struct key keys[KEYS_MAX];
static u32 key_count, step;
static struct prng prng;

static int
compare(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    if (x->token != y->token) return x->token < y->token ? -1 : 1;
    return strcmp(x->text, y->text);
}

static void
make_keys(u32 spread, u32 tags, u32 tag_keys)
{
    key_count = step = 0;
    memset(keys, 0, sizeof(keys));
    for (u32 i = 0; i < spread + tags * tag_keys; i++) {
        struct key *key = &keys[key_count++];
        int size = i < spread ? snprintf(key->text, sizeof(key->text), "k%u", i)
                              : snprintf(key->text, sizeof(key->text), "{t%u}%u",
                                         (i - spread) / tag_keys, (i - spread) % tag_keys);
        key->size = (u32)size;
        key->token = hash_token(BYTES(key->text, key->size));
        key->there = true;
    }
    qsort(keys, key_count, sizeof(*keys), compare);
}

struct reader {
    u64 cursor;
    u32 begun_at, calls, returned;
};

/* One call; returns how many keys it read. */
static u32
call(struct reader *reader, u32 number, u64 count, u32 size)
{
    static u8 data[SCAN_PAGE_BYTES_MAX];
    struct scan_page page;
    if (reader->cursor == 0) {
        for (u32 i = 0; i < key_count; i++)
            keys[i].found[number] = false;
        *reader = (struct reader){.begun_at = step};
    }
    scan_page_init(&page, reader->cursor, count, data, size);
    u64 end = SCAN_BUCKETS;
    u32 read = 0;
    for (u32 i = 0; i < key_count; i++) {
        const struct key *key = &keys[i];
        if (!key->there || key->token < scan_page_token(&page)) continue;
        read++;
        if (scan_page_take(&page, key->token, BYTES(key->text, key->size))) continue;
        end = scan_bucket(key->token);
        break;
    }
    assert_false(page.too_small);
    u64 next = scan_page_end(&page, end);
    assert_true(next == 0 || next > reader->cursor); /* each call gets on */
    assert_true(next < 1ull << 53);
    u32 seen = 0;
    for (u32 at = 0; at < page.used; seen++) {
        u32 length = load_u16(data + at);
        struct key wanted = {.size = length};
        memcpy(wanted.text, data + at + 2, length);
        wanted.token = hash_token(BYTES(wanted.text, length));
        struct key *key = bsearch(&wanted, keys, key_count, sizeof(*keys), compare);
        assert_non_null(key);
        assert_false(key->found[number]); /* of keys that stay, none comes twice */
        key->found[number] = key->there;
        at += 2 + length;
    }
    assert_int_equal(seen, page.keys);
    reader->returned += seen;
    reader->calls++;
    reader->cursor = next;
    return read;
}

static void
judge(const struct reader *reader, u32 number)
{
    for (u32 i = 0; i < key_count; i++)
        if (keys[i].there && keys[i].gone_at <= reader->begun_at)
            assert_true(keys[i].found[number]);
}

static void
scan_whole(struct reader *reader, u64 count, u32 size)
{
    *reader = (struct reader){.cursor = 0};
    do
        (void)call(reader, 0, count, size);
    while (reader->cursor != 0);
    judge(reader, 0);
    assert_int_equal(reader->returned, key_count);
}

static void
what_stays_is_returned_whatever_else_happens(void **state)
{
    for (u64 seed = 1; seed <= 6; seed++) {
        prng_init(&prng, seed);
        make_keys(500, 3, 3000);
        struct reader readers[READERS] = {{.cursor = 0}};
        u32 scans = 0;
        while (scans < 9) {
            step++;
            for (u32 i = 0; i < 20; i++) {
                struct key *key = &keys[prng_below(&prng, key_count)];
                if (prng_below(&prng, 2) == 0) { /* half of the keys are left alone */
                    key = &keys[prng_below(&prng, key_count / 2) * 2];
                    key->there = !key->there;
                    key->gone_at = step;
                    for (u32 r = 0; r < READERS; r++)
                        key->found[r] = false;
                }
            }
            u32 number = (u32)prng_below(&prng, READERS);
            struct reader *reader = &readers[number];
            step++;
            (void)call(reader, number, 1 + prng_below(&prng, 40), SCAN_PAGE_BYTES_MIN);
            if (reader->cursor != 0) continue;
            judge(reader, number);
            scans++;
        }
    }
}

static void
keys_that_are_spread_are_read_once(void **state)
{
    make_keys(10000, 0, 0);
    struct reader reader = {.cursor = 0};
    u32 read = 0;
    do
        read += call(&reader, 0, 10, SCAN_PAGE_BYTES_MIN);
    while (reader.cursor != 0);
    judge(&reader, 0);
    assert_int_equal(reader.returned, 10000);
    assert_in_range(reader.calls, 980, 1001);
    assert_int_equal(read, 10000 + reader.calls - 1); /* each call meets the next one's first */
}

static void
a_long_tag_takes_few_calls(void **state)
{
    make_keys(0, 1, KEYS_MAX);
    struct reader reader;
    scan_whole(&reader, 10, SCAN_PAGE_BYTES_MAX);
    assert_in_range(reader.calls, 8, 30); /* and not one for each 2,048 keys or less */
    scan_whole(&reader, LARGE_COUNT, SCAN_PAGE_BYTES_MAX);
    assert_int_equal(reader.calls, 1);
    scan_whole(&reader, LARGE_COUNT, SCAN_PAGE_BYTES_MIN); /* as many as fit */
    assert_in_range(reader.calls, 6, 40);
}

static void
a_page_that_may_end_early_gives_up_what_it_has_of_a_bucket(void **state)
{
    make_keys(0, 2, 1000);
    static u8 data[SCAN_PAGE_BYTES_MIN];
    struct scan_page page;
    scan_page_init(&page, 0, LARGE_COUNT, data, sizeof(data));
    u32 taken = 0;
    while (taken < 1500) {
        assert_true(
            scan_page_take(&page, keys[taken].token, BYTES(keys[taken].text, keys[taken].size)));
        taken++;
    }
    assert_false(scan_page_may_end(&page, 0));
    u64 bucket = scan_bucket(keys[1000].token);
    assert_true(scan_page_may_end(&page, bucket));
    assert_int_equal(scan_page_end(&page, bucket), scan_cursor(bucket, 0));
    assert_int_equal(page.keys, 1000);
}

static void
a_cursor_that_nobody_made_begins_anew(void **state)
{
    static u8 data[SCAN_PAGE_BYTES_MIN];
    struct scan_page page;
    for (u32 bit = 53; bit < 64; bit++) {
        scan_page_init(&page, 1ull << bit | 12345, 10, data, sizeof(data));
        assert_int_equal(scan_page_token(&page), 0);
        assert_int_equal(page.from, 0);
    }
}

/* Its cursors were tokens whose last 12 bits are 0. */
static void
a_cursor_of_the_version_before_begins_anew(void **state)
{
    static u8 data[SCAN_PAGE_BYTES_MIN];
    struct scan_page page;
    for (u32 bit = 12; bit < 64; bit++) {
        u64 cursor = 0x123456789abcdull << bit & ~0xfffull;
        scan_page_init(&page, 1ull << bit, 10, data, sizeof(data));
        assert_int_equal(scan_page_token(&page), 0);
        scan_page_init(&page, cursor, 10, data, sizeof(data));
        assert_int_equal(scan_page_token(&page), 0);
        assert_int_equal(page.from, 0);
        assert_int_equal(scan_page_size(cursor, 10), scan_page_size(0, 10));
    }
}

/* Keys of one rank are returned together, so there must be room for all of them. */
static void
the_keys_of_one_rank_must_fit(void **state)
{
    static u8 data[SCAN_PAGE_BYTES_LEAST];
    struct scan_page page;
    make_keys(0, 1, 2000);
    const struct key *key = &keys[1000];
    struct bytes text = BYTES(key->text, key->size);
    scan_page_init(&page, scan_cursor(scan_bucket(key->token), scan_rank(text)), 10, data,
                   sizeof(data));
    bool taken = true;
    for (u32 i = 0; i < 200 && taken; i++)
        taken = scan_page_take(&page, key->token, text);
    assert_false(taken);
    assert_true(page.too_small);
    assert_int_equal(page.till, page.from + 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_stays_is_returned_whatever_else_happens),
        cmocka_unit_test(keys_that_are_spread_are_read_once),
        cmocka_unit_test(a_long_tag_takes_few_calls),
        cmocka_unit_test(a_page_that_may_end_early_gives_up_what_it_has_of_a_bucket),
        cmocka_unit_test(a_cursor_that_nobody_made_begins_anew),
        cmocka_unit_test(a_cursor_of_the_version_before_begins_anew),
        cmocka_unit_test(the_keys_of_one_rank_must_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
