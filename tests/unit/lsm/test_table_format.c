/* SPDX-License-Identifier: MIT
 *
 * test_table_format.c -- each comparison of the decoders of blocks and indexes: from bytes that are
 * right, one thing is made wrong at a time, the checksum is put right, and it is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/crc.h"
#include "lsm/codec.h"
#include "lsm/table_format.h"

#define FILE_ID 7u
#define OFFSET  4096u

/* ---- stored blocks ---- */

struct stored {
    struct table_block_header header;
    u8 payload[64];
};

static status
stored_check(struct stored *stored, size_t size)
{
    struct table_block_header out;
    stored->header.crc =
        crc32c(table_place_seed(FILE_ID, OFFSET), (const u8 *)stored + sizeof(stored->header.crc),
               size - sizeof(stored->header.crc));
    return table_block_check(BYTES(stored, size), FILE_ID, OFFSET, &out);
}

static void
headers_of_blocks_are_checked_behind_their_checksum(void **state)
{
    (void)state;
    const struct stored good = {.header = {.stored_size = 64, .raw_size = 64}};
    struct stored bad = good;
    assert_true(ok(stored_check(&bad, sizeof(bad))));

    struct table_block_header out;
    assert_true(status_is(table_block_check(BYTES(&good, 15), FILE_ID, OFFSET, &out), ST_CORRUPT));
    assert_true(status_is(stored_check(&bad, sizeof(bad) - 1), ST_CORRUPT)); /* not its size */
    bad.header.codec = LSM_CODEC_COUNT;
    assert_true(status_is(stored_check(&bad, sizeof(bad)), ST_CORRUPT));
    for (u32 i = 0; i < sizeof(bad.header.reserved); i++) {
        bad = good;
        bad.header.reserved[i] = 1;
        assert_true(status_is(stored_check(&bad, sizeof(bad)), ST_CORRUPT));
    }
    bad = good;
    bad.header.raw_size = 65; /* what is not compressed has one size */
    assert_true(status_is(stored_check(&bad, sizeof(bad)), ST_CORRUPT));
    bad.header.codec = LSM_CODEC_LZ4;
    assert_true(ok(stored_check(&bad, sizeof(bad))));
    bad.header.raw_size = sizeof(struct table_raw_header);
    assert_true(status_is(stored_check(&bad, sizeof(bad)), ST_CORRUPT));
    bad.header.raw_size = TABLE_RAW_BYTES_MAX;
    assert_true(ok(stored_check(&bad, sizeof(bad))));
    bad.header.raw_size = TABLE_RAW_BYTES_MAX + 1;
    assert_true(status_is(stored_check(&bad, sizeof(bad)), ST_CORRUPT));
}

/* ---- raw blocks ---- */

/* Two records of six bytes behind the head, then the arrays: offsets, and token deltas of a byte.
 */
struct raw {
    struct table_raw_header header;
    u8 records[2][6]; /* flags, size of key, of value, version, seq, key */
    u16 offsets[2];
    u8 tokens[2];
} __attribute__((packed));

static const struct raw good_raw = {
    .header = {.token_base = 100, .version_base = 10, .seq_base = 20, .count = 2, .token_width = 1},
    .records = {{0, 1, 0, 0, 0, 'a'}, {0, 1, 0, 0, 0, 'b'}},
    .offsets = {28, 34},
    .tokens = {0, 1},
};

static status
raw_open(const struct raw *raw, struct table_block *block)
{
    return table_block_open(BYTES(raw, sizeof(*raw)), block);
}

/* Of a block whose arrays are where they should be. */
static status
raw_iterate(const struct raw *raw)
{
    struct table_block block;
    assert_true(ok(raw_open(raw, &block)));
    return table_block_iterate(&block, NULL, NULL);
}

static void
heads_of_raw_blocks_are_checked(void **state)
{
    (void)state;
    struct table_block block;
    struct raw bad = good_raw;
    assert_true(ok(raw_open(&bad, &block)));
    size_t head = sizeof(bad.header);
    assert_true(status_is(table_block_open(BYTES(&bad, head), &block), ST_CORRUPT));
    assert_true(
        status_is(table_block_open(BYTES(&bad, TABLE_RAW_BYTES_MAX + 1), &block), ST_CORRUPT));
    bad.header.count = 0;
    assert_true(status_is(raw_open(&bad, &block), ST_CORRUPT));
    bad.header.count = TABLE_BLOCK_ENTRIES + 1;
    assert_true(status_is(raw_open(&bad, &block), ST_CORRUPT));
    bad.header.count = 100; /* the arrays do not fit */
    assert_true(status_is(raw_open(&bad, &block), ST_CORRUPT));
    bad = good_raw;
    bad.header.token_width = 9;
    assert_true(status_is(raw_open(&bad, &block), ST_CORRUPT));
    bad = good_raw;
    bad.header.reserved = 1;
    assert_true(status_is(raw_open(&bad, &block), ST_CORRUPT));
}

struct change {
    u32 at; /* of the second record, which ends where the records do */
    u8 byte;
};

static void
records_are_checked(void **state)
{
    (void)state;
    assert_true(ok(raw_iterate(&good_raw)));
    static const struct change changes[] = {
        {0, 8},                    /* a flag that there is not */
        {0, 1 << 7},               /* another one */
        {0, 3},                    /* a deleted blob */
        {0, TABLE_RECORD_BLOB},    /* a pointer of no bytes */
        {0, TABLE_RECORD_EXPIRES}, /* whose expiry is the key: then no key is left */
        {1, 0},                    /* no key */
        {1, 2},                    /* a key that ends behind the block */
        {1, 0x80},                 /* a size that goes on */
        {2, 1},                    /* a value that ends behind the block */
        {4, 0x80},                 /* a number that goes on into the key, and no key is left */
    };
    for (u32 i = 0; i < ARRAY_COUNT(changes); i++) {
        struct raw bad = good_raw;
        bad.records[1][changes[i].at] = changes[i].byte;
        assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    }
    struct raw bad = good_raw;
    memcpy(bad.records[1], (u8[]){0, 1, 0, 0x80, 0x80, 0x80}, 6); /* the version has no end */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    memcpy(bad.records[1], (u8[]){0, 1, 0, 0, 0x80, 0x80}, 6); /* nor the number */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    memcpy(bad.records[1], (u8[]){TABLE_RECORD_EXPIRES, 1, 0, 0, 0, 0}, 6); /* expires at 0 */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    memcpy(bad.records[1], (u8[]){TABLE_RECORD_EXPIRES, 1, 0, 0, 0, 0x80}, 6); /* at no end */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    memcpy(bad.records[1], (u8[]){TABLE_RECORD_DELETE, 1, 1, 0, 0, 0}, 6); /* with a value */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
}

static void
the_order_of_records_is_checked(void **state)
{
    (void)state;
    struct raw bad = good_raw;
    bad.offsets[0] = 27; /* in the head */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    bad.offsets[0] = 34; /* the second one twice */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    bad = good_raw;
    bad.offsets[1] = 40; /* behind the records */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    bad = good_raw;
    bad.tokens[0] = 1; /* not the base */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    bad = good_raw;
    bad.tokens[1] = 0;
    assert_true(ok(raw_iterate(&bad))); /* b behind a */
    bad.records[1][5] = 'a';
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
    bad = good_raw;
    bad.header.count = 1; /* then the arrays are shorter, and something lies before them */
    assert_true(status_is(raw_iterate(&bad), ST_CORRUPT));
}

/* ---- index ---- */

/* Three blocks of 100 bytes, the third one goes on with the token of the second. */
struct section {
    struct table_index_header header;
    u64 tokens[3];
    u32 low[4], run_blocks[1], run_ends[1];
    u8 high[4];
    u8 separators[2];
} __attribute__((packed, aligned(8)));
/* Without the padding of the alignment. */
#define SECTION_BYTES (offsetof(struct section, separators) + 2u)

static const struct section good_section = {
    .header = {.block_count = 3, .run_count = 1, .separator_bytes = 2},
    .tokens = {1, 5, 5},
    .low = {0, 100, 200, 300},
    .run_blocks = {2},
    .run_ends = {2},
    .separators = "ab",
};

static bool
refused(const struct section *section)
{
    struct table_index index;
    status st = table_index_decode(BYTES(section, SECTION_BYTES), 300, &index);
    return status_is(st, ST_CORRUPT);
}

static void
indexes_are_checked(void **state)
{
    (void)state;
    struct table_index index;
    struct section bad = good_section;
    assert_int_equal(SECTION_BYTES, table_index_bytes(3, 1, 2));
    assert_true(ok(table_index_decode(BYTES(&bad, SECTION_BYTES), 300, &index)));
    assert_true(status_is(table_index_decode(BYTES(&bad, 15), 300, &index), ST_CORRUPT));
    assert_true(
        status_is(table_index_decode(BYTES(&bad, SECTION_BYTES - 1), 300, &index), ST_CORRUPT));
    assert_true(status_is(table_index_decode(BYTES(&bad, SECTION_BYTES), 301, &index), ST_CORRUPT));
#define WRONG(field, value)                                                                        \
    do {                                                                                           \
        bad = good_section;                                                                        \
        bad.field = value;                                                                         \
        assert_true(refused(&bad));                                                                \
    } while (0)
    WRONG(header.block_count, 0);
    WRONG(header.block_count, 2);
    WRONG(header.run_count, 3); /* as many as blocks */
    WRONG(header.separator_bytes, 3);
    WRONG(header.reserved, 1);
    WRONG(low[0], 1);
    WRONG(low[1], 0);   /* a block of nothing */
    WRONG(low[1], 16);  /* of a header alone */
    WRONG(low[1], 250); /* that ends before it begins: the next one */
    WRONG(high[1], 1);  /* 4 GiB */
    WRONG(tokens[0], 6);
    WRONG(tokens[2], 4);
    WRONG(run_blocks[0], 0);
    WRONG(run_blocks[0], 1); /* then the third has none, though it goes on */
    WRONG(run_blocks[0], 3);
    WRONG(run_ends[0], 0);
    WRONG(run_ends[0], 3);
    WRONG(run_ends[0], 1); /* bytes of no separator */
#undef WRONG
    /* A block, or a separator, that no writer makes. */
    bad = good_section;
    u64 far = TABLE_RAW_BYTES_MAX + sizeof(struct table_block_header) + 201;
    bad.low[3] = (u32)far;
    assert_true(status_is(table_index_decode(BYTES(&bad, SECTION_BYTES), far, &index), ST_CORRUPT));
    bad.low[3]--;
    assert_true(ok(table_index_decode(BYTES(&bad, SECTION_BYTES), far - 1, &index)));
    static struct {
        struct section section;
        u8 more[LIMIT_KEY_BYTES];
    } ALIGNED(8) large;
    large.section = good_section;
    large.section.run_ends[0] = large.section.header.separator_bytes = LIMIT_KEY_BYTES + 1;
    size_t size = table_index_bytes(3, 1, LIMIT_KEY_BYTES + 1);
    assert_true(size <= sizeof(large));
    assert_true(status_is(table_index_decode(BYTES(&large, size), 300, &index), ST_CORRUPT));
    large.section.run_ends[0] = large.section.header.separator_bytes = LIMIT_KEY_BYTES;
    assert_true(ok(table_index_decode(BYTES(&large, size - 1), 300, &index)));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_of_blocks_are_checked_behind_their_checksum),
        cmocka_unit_test(heads_of_raw_blocks_are_checked),
        cmocka_unit_test(records_are_checked),
        cmocka_unit_test(the_order_of_records_is_checked),
        cmocka_unit_test(indexes_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
