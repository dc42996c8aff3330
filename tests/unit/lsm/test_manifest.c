/* SPDX-License-Identifier: MIT
 *
 * test_manifest.c -- what is encoded is decoded; every flipped bit and every cut is refused; bytes
 * that are checksummed right but make no sense are refused, too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/crc.h"
#include "base/prng.h"
#include "lsm/manifest.h"

static struct budget budget;

struct sample {
    struct manifest manifest;
    struct table_meta metas[8];
    struct manifest_run runs[4];
    struct manifest_table tables[8];
    struct manifest_blob blobs[3];
    struct range_delete ranges[2];
};

static void
sample_fill(struct sample *s)
{
    memset(s, 0, sizeof(*s));
    s->manifest.state = (struct levels_state){7, 1000, 99000};
    s->manifest.generation = 42;
    s->manifest.file_id_next = (u64)1 << 46 | 500;
    s->manifest.token_last = UINT64_MAX;
    for (u32 i = 0; i < 3; i++)
        s->blobs[i] = (struct manifest_blob){100 + i, KIB(64), i, UINT64_MAX};
    for (u32 i = 0; i < 8; i++) {
        struct table_meta *meta = &s->metas[i];
        *meta = (struct table_meta){.file_id = 10 + i,
                                    .file_bytes = KIB(64),
                                    .file_hash = 0x1234 + i,
                                    .token_first = i % 2 * 1000,
                                    .token_last = i % 2 * 1000 + 999,
                                    .seq_min = 1 + i,
                                    .seq_max = 900 + i,
                                    .version_min = 10,
                                    .version_max = 9000,
                                    .expire_min_ms = 5,
                                    .expire_max_ms = 6,
                                    .entry_count = 30,
                                    .delete_count = 3,
                                    .expiring_count = 2,
                                    .data_bytes = 4000,
                                    .keyspace = i < 6 ? 0 : 3,
                                    .codec = LSM_CODEC_LZ4,
                                    .filter_bits = 14,
                                    .blob_ref_count = i % 3};
        for (u32 j = 0; j < meta->blob_ref_count; j++)
            meta->blob_refs[j] = (struct table_blob_ref){100 + j, 17};
        s->tables[i] = (struct manifest_table){meta, meta->token_first + 5, meta->token_last - 5};
    }
    for (u32 i = 0; i < 4; i++)
        s->runs[i] = (struct manifest_run){i < 3 ? 0 : 3, i == 2 ? RUN_TIER_LAST : (u8)i, 2};
    for (u32 i = 0; i < 2; i++)
        s->ranges[i] = (struct range_delete){i, 100, 50, 60 + i, 2};
    s->manifest.runs = s->runs;
    s->manifest.tables = s->tables;
    s->manifest.blobs = s->blobs;
    s->manifest.ranges = s->ranges;
    s->manifest.run_count = 4;
    s->manifest.table_count = 8;
    s->manifest.blob_count = 3;
    s->manifest.range_count = 2;
}

static u8 *
encode(const struct manifest *manifest, u64 *size)
{
    *size = manifest_encoded_size(manifest);
    u8 *data = malloc(*size);
    manifest_encode(manifest, data);
    return data;
}

static status
decode(const u8 *data, u64 size, const char **what)
{
    struct manifest out;
    u64 offset;
    status st = manifest_decode(BYTES(data, size), &budget, &out, &offset, what);
    if (ok(st)) manifest_free(&out);
    assert_int_equal(budget.used_bytes, 0);
    return st;
}

static void
what_is_encoded_is_decoded(void **state)
{
    struct sample s;
    sample_fill(&s);
    u64 size, size_again, offset;
    u8 *data = encode(&s.manifest, &size);
    struct manifest out;
    const char *what = NULL;
    assert_true(ok(manifest_decode(BYTES(data, size), &budget, &out, &offset, &what)));
    assert_int_equal(out.state.seq_flushed, 1000);
    assert_int_equal(out.generation, 42);
    assert_int_equal(out.file_id_next, s.manifest.file_id_next);
    assert_int_equal(out.table_count, 8);
    assert_int_equal(out.tables[7].meta->file_hash, 0x1234 + 7);
    assert_int_equal(out.tables[5].meta->blob_refs[1].file_id, 101);
    assert_int_equal(out.ranges[1].seq, 61);
    u8 *again = encode(&out, &size_again);
    assert_int_equal(size, size_again);
    assert_memory_equal(data, again, size);
    manifest_free(&out);
    free(again);
    free(data);
}

static void
an_empty_store_has_a_manifest(void **state)
{
    struct manifest manifest = {.token_last = UINT64_MAX};
    u64 size;
    const char *what;
    u8 *data = encode(&manifest, &size);
    assert_true(ok(decode(data, size, &what)));
    free(data);
}

static void
every_flipped_bit_is_found(void **state)
{
    struct sample s;
    sample_fill(&s);
    u64 size;
    const char *what;
    u8 *data = encode(&s.manifest, &size);
    for (u64 bit = 0; bit < size * 8; bit++) {
        data[bit / 8] ^= (u8)(1u << bit % 8);
        assert_false(ok(decode(data, size, &what)));
        data[bit / 8] ^= (u8)(1u << bit % 8);
    }
    free(data);
}

static void
every_cut_is_found(void **state)
{
    struct sample s;
    sample_fill(&s);
    u64 size;
    const char *what;
    u8 *data = encode(&s.manifest, &size);
    for (u64 cut = 0; cut < size; cut++)
        assert_true(status_is(decode(data, cut, &what), ST_CORRUPT));
    free(data);
}

/* Makes all checksums right again after a change. */
static void
seal(u8 *data)
{
    struct manifest_header header;
    memcpy(&header, data, sizeof(header));
    for (u64 at = sizeof(header); at + sizeof(struct manifest_part) <= header.size;) {
        struct manifest_part part;
        memcpy(&part, data + at, sizeof(part));
        if (part.size > header.size - at - sizeof(part)) break;
        part.crc = crc32c(part.kind, data + at + sizeof(part), part.size);
        memcpy(data + at, &part, sizeof(part));
        at += sizeof(part) + part.size;
    }
    header.content_crc = crc32c(0, data + sizeof(header), header.size - sizeof(header));
    header.header_crc = crc32c(0, &header, offsetof(struct manifest_header, header_crc));
    memcpy(data, &header, sizeof(header));
}

static void
random_bytes_with_right_checksums_do_no_harm(void **state)
{
    struct prng prng;
    prng_init(&prng, 5);
    struct sample s;
    sample_fill(&s);
    u64 size;
    const char *what;
    u8 *data = encode(&s.manifest, &size);
    u8 *copy = malloc(size);
    for (u32 round = 0; round < 100000; round++) {
        memcpy(copy, data, size);
        for (u32 i = 0; i < 3; i++)
            copy[prng_range(&prng, sizeof(struct manifest_header), size - 1)] =
                prng_chance(&prng, 1, 2) ? 0xff : (u8)prng_u64(&prng);
        seal(copy);
        status st = decode(copy, size, &what);
        assert_true(ok(st) || status_is(st, ST_CORRUPT));
    }
    free(copy);
    free(data);
}

/* ---- each check, by its own words ---- */

struct contradiction {
    const char *what;
    void (*make)(struct sample *s);
};

#define MAKE(name, ...)                                                                            \
    static void name(struct sample *s)                                                             \
    {                                                                                              \
        __VA_ARGS__;                                                                               \
    }

MAKE(store_reversed, s->manifest.token_first = 2; s->manifest.token_last = 1)
MAKE(blobs_unordered, s->blobs[1].file_id = 100)
MAKE(blob_reversed, s->blobs[0].token_first = 2; s->blobs[0].token_last = 1)
MAKE(range_unknown, s->ranges[0].keyspace = LIMIT_KEYSPACES)
MAKE(range_reversed, s->ranges[0].token_first = 101)
MAKE(range_new, s->ranges[1].seq = 1001)
MAKE(ranges_unordered, s->ranges[1].seq = 1)
MAKE(run_unknown, s->runs[3].keyspace = LIMIT_KEYSPACES)
MAKE(run_tier_unknown, s->runs[1].tier = RUN_TIER_MAX + 1)
MAKE(run_empty, s->runs[1].table_count = 0)
MAKE(run_missing, s->runs[3].table_count = 3)
MAKE(keyspaces_unordered, s->runs[2].keyspace = 4; s->metas[4].keyspace = s->metas[5].keyspace = 4)
MAKE(tiers_unordered, s->runs[0].tier = 9)
MAKE(two_last_runs, s->runs[1].tier = RUN_TIER_LAST)
MAKE(tables_overlap, s->metas[1].token_first = 900; s->tables[1].view_first = 994)
MAKE(table_left, s->runs[3].table_count = 1)
MAKE(table_foreign, s->metas[4].keyspace = 1)
MAKE(table_reversed, s->metas[2].token_first = s->metas[2].token_last + 1)
MAKE(view_empty, s->tables[2].view_first = s->tables[2].view_last + 1)
MAKE(view_outside, s->tables[2].view_last = 1000)
MAKE(view_outside_before, s->tables[3].view_first = s->metas[3].token_first - 1)
MAKE(table_seqs, s->metas[2].seq_min = s->metas[2].seq_max + 1)
MAKE(table_versions, s->metas[2].version_min = s->metas[2].version_max + 1)
MAKE(table_new, s->metas[3].seq_max = 1001)
MAKE(table_codec, s->metas[0].codec = LSM_CODEC_COUNT)
MAKE(table_empty, s->metas[0].entry_count = 0; s->metas[0].delete_count = 0;
     s->metas[0].expiring_count = 0)
MAKE(table_counts, s->metas[0].delete_count = s->metas[0].entry_count + 1)
MAKE(table_expiring, s->metas[0].expiring_count = s->metas[0].entry_count + 1)
MAKE(table_expiry, s->metas[0].expire_min_ms = s->metas[0].expire_max_ms + 1)
MAKE(blob_unlisted, s->metas[1].blob_refs[0].file_id = 99)

static const struct contradiction contradictions[] = {
    {"store with its tokens reversed", store_reversed},
    {"blob files out of order", blobs_unordered},
    {"blob file with its tokens reversed", blob_reversed},
    {"deleted range of an unknown keyspace", range_unknown},
    {"deleted range with its tokens reversed", range_reversed},
    {"deleted range newer than the state", range_new},
    {"deleted ranges out of order", ranges_unordered},
    {"run of an unknown keyspace", run_unknown},
    {"run of an unknown tier", run_tier_unknown},
    {"run without tables", run_empty},
    {"run with missing tables", run_missing},
    {"keyspaces out of order", keyspaces_unordered},
    {"tiers out of order", tiers_unordered},
    {"tiers out of order", two_last_runs},
    {"tables of a run overlap", tables_overlap},
    {"table without a run", table_left},
    {"table of another keyspace in a run", table_foreign},
    {"table with its tokens reversed", table_reversed},
    {"table with an empty view", view_empty},
    {"table viewed outside its tokens", view_outside},
    {"table viewed outside its tokens", view_outside_before},
    {"table with its sequence numbers reversed", table_seqs},
    {"table with its versions reversed", table_versions},
    {"table newer than the state", table_new},
    {"table with an unknown codec", table_codec},
    {"table without entries", table_empty},
    {"table with impossible counts", table_counts},
    {"table with impossible counts", table_expiring},
    {"table with its expiry reversed", table_expiry},
    {"blob file is not listed", blob_unlisted},
};

static void
each_contradiction_is_refused_by_its_own_words(void **state)
{
    (void)state;
    for (u32 i = 0; i < ARRAY_COUNT(contradictions); i++) {
        struct sample s;
        sample_fill(&s);
        contradictions[i].make(&s);
        u64 size;
        const char *what = "";
        u8 *data = encode(&s.manifest, &size);
        assert_true(status_is(decode(data, size, &what), ST_CORRUPT));
        assert_string_equal(what, contradictions[i].what);
        free(data);
    }
}

/* Those of a count that no sample has. The checks hold for what is made in memory, too. */
static void
more_than_there_may_be_is_refused(void **state)
{
    (void)state;
    static struct range_delete ranges[RANGE_LIST_MAX + 1];
    struct manifest manifest = {.ranges = ranges, .range_count = RANGE_LIST_MAX + 1};
    u32 index;
    assert_string_equal(manifest_check(&manifest, &index), "too many deleted ranges");
    struct sample s;
    sample_fill(&s);
    s.metas[0].blob_ref_count = TABLE_BLOB_REFS_MAX + 1;
    assert_string_equal(manifest_check(&s.manifest, &index), "table with too many blob files");
}

/* What is wrong in the bytes themselves. Parts are numbered from 0. */
enum where { AT_HEADER, AT_PART, AT_RECORD };

struct forgery {
    const char *what;
    enum where where;
    u32 part;
    u32 offset; /* there */
    u64 value;
    u32 size;
    enum { SEAL_ALL, SEAL_OUTSIDE, SEAL_HEADER, SEAL_NOTHING } seal; /* what is made right again */
};

#define HEADER(field)               AT_HEADER, 0, offsetof(struct manifest_header, field)
#define PART(number, field)         AT_PART, number, offsetof(struct manifest_part, field)
#define RECORD(number, type, field) AT_RECORD, number, offsetof(struct type, field)

static const struct forgery forgeries[] = {
    {"not a manifest", HEADER(magic), 'X', 1, SEAL_NOTHING},
    {"bad header checksum", HEADER(header_crc), 1, 4, SEAL_NOTHING},
    {"reserved bytes are set", HEADER(reserved), 1, 1, SEAL_HEADER},
    {"unknown parts", HEADER(part_count), 9, 4, SEAL_HEADER},
    {"cut short", HEADER(size), 8, 8, SEAL_HEADER},
    {"cut short", HEADER(size), UINT64_MAX, 8, SEAL_HEADER},
    {"bad content checksum", HEADER(content_crc), 1, 4, SEAL_HEADER},
    {"part header is cut short", HEADER(size), sizeof(struct manifest_header) + 1, 8, SEAL_OUTSIDE},
    {"parts out of order", PART(0, kind), 99, 4, SEAL_OUTSIDE},
    {"part is cut short", PART(4, size), 1u << 30, 4, SEAL_OUTSIDE},
    {"bad part checksum", PART(1, crc), 1, 4, SEAL_OUTSIDE},
    {"part with too few records", PART(1, count), 1u << 30, 4, SEAL_OUTSIDE},
    {"part with a partial record", PART(1, count), 3, 4, SEAL_OUTSIDE},
    {"part with a partial record", PART(2, count), 1, 4, SEAL_OUTSIDE},
    {"more than one state", PART(0, count), 0, 8, SEAL_ALL},
    {"record is cut short", RECORD(2, manifest_table_record, blob_ref_count), TABLE_BLOB_REFS_MAX,
     2, SEAL_ALL},
    {"table with too many blob files", RECORD(2, manifest_table_record, blob_ref_count),
     TABLE_BLOB_REFS_MAX + 1, 2, SEAL_ALL},
    {"reserved bytes are set", RECORD(0, manifest_state_record, reserved), 1, 1, SEAL_ALL},
    {"reserved bytes are set", RECORD(1, manifest_run_record, reserved), 1, 1, SEAL_ALL},
    {"reserved bytes are set", RECORD(2, manifest_table_record, reserved), 1, 1, SEAL_ALL},
    {"reserved bytes are set", RECORD(2, manifest_table_record, entries_all_expire), 2, 1,
     SEAL_ALL},
    {"reserved bytes are set", RECORD(4, manifest_range_record, reserved), 1, 1, SEAL_ALL},
};

static u64
place_of(const u8 *data, const struct forgery *forgery)
{
    u64 at = 0;
    if (forgery->where == AT_HEADER) return forgery->offset;
    at = sizeof(struct manifest_header);
    for (u32 i = 0; i < forgery->part; i++) {
        struct manifest_part part;
        memcpy(&part, data + at, sizeof(part));
        at += sizeof(part) + part.size;
    }
    if (forgery->where == AT_RECORD) at += sizeof(struct manifest_part);
    return at + forgery->offset;
}

static void
seal_header(u8 *data)
{
    struct manifest_header header;
    memcpy(&header, data, sizeof(header));
    header.header_crc = crc32c(0, &header, offsetof(struct manifest_header, header_crc));
    memcpy(data, &header, sizeof(header));
}

/* All but the checksums of parts. */
static void
seal_outside(u8 *data, u64 size)
{
    struct manifest_header header;
    memcpy(&header, data, sizeof(header));
    u64 end = MIN(header.size, size);
    header.content_crc = crc32c(0, data + sizeof(header), end - sizeof(header));
    memcpy(data, &header, sizeof(header));
    seal_header(data);
}

static void
forge(u8 *data, u64 size, const struct forgery *forgery)
{
    memcpy(data + place_of(data, forgery), &forgery->value, forgery->size);
    if (forgery->seal == SEAL_ALL) seal(data);
    if (forgery->seal == SEAL_OUTSIDE) seal_outside(data, size);
    if (forgery->seal == SEAL_HEADER) seal_header(data);
}

static void
each_forgery_is_refused_by_its_own_words(void **state)
{
    (void)state;
    for (u32 i = 0; i < ARRAY_COUNT(forgeries); i++) {
        struct sample s;
        sample_fill(&s);
        u64 size;
        const char *what = "";
        u8 *data = encode(&s.manifest, &size);
        forge(data, size, &forgeries[i]);
        struct manifest_header header;
        memcpy(&header, data, sizeof(header));
        if (header.size >= sizeof(header)) size = MIN(size, header.size); /* nothing behind it */
        assert_true(status_is(decode(data, size, &what), ST_CORRUPT));
        assert_string_equal(what, forgeries[i].what);
        free(data);
    }
}

/* The rest changes what is there by its size. */
static void
what_is_too_long_or_too_short_is_refused_by_its_own_words(void **state)
{
    (void)state;
    struct manifest manifest = {.token_last = UINT64_MAX};
    u64 size;
    const char *what = "";
    u8 *data = encode(&manifest, &size);
    assert_true(status_is(decode(data, sizeof(struct manifest_header) - 1, &what), ST_CORRUPT));
    assert_string_equal(what, "shorter than its header");

    u8 *longer = calloc(1, size + 8);
    memcpy(longer, data, size);
    longer[size] = 1;
    assert_true(status_is(decode(longer, size + 8, &what), ST_CORRUPT));
    assert_string_equal(what, "bytes after the end are set");
    u64 all = size + 8;
    memcpy(longer + offsetof(struct manifest_header, size), &all, sizeof(all));
    seal_outside(longer, all);
    assert_true(status_is(decode(longer, all, &what), ST_CORRUPT));
    assert_string_equal(what, "bytes after the last part");
    free(longer);
    free(data);
}

static void
a_newer_format_is_unsupported_not_corrupt(void **state)
{
    struct manifest manifest = {.token_last = UINT64_MAX};
    u64 size;
    const char *what;
    u8 *data = encode(&manifest, &size);
    struct manifest_header header;
    memcpy(&header, data, sizeof(header));
    header.format = MANIFEST_FORMAT + 1;
    header.header_crc = crc32c(0, &header, offsetof(struct manifest_header, header_crc));
    memcpy(data, &header, sizeof(header));
    assert_true(status_is(decode(data, size, &what), ST_UNSUPPORTED));
    free(data);
}

static void
decoding_without_memory_says_so(void **state)
{
    struct sample s;
    sample_fill(&s);
    u64 size, offset;
    u8 *data = encode(&s.manifest, &size);
    for (u64 limit = 0; limit < sizeof(s); limit += 64) {
        struct budget tiny;
        budget_init(&tiny, "tiny", limit, NULL);
        struct manifest out;
        const char *what;
        status st = manifest_decode(BYTES(data, size), &tiny, &out, &offset, &what);
        assert_true(ok(st) || status_is(st, ST_NO_MEMORY));
        if (ok(st)) manifest_free(&out);
        assert_int_equal(tiny.used_bytes, 0);
    }
    free(data);
}

int
main(void)
{
    budget_init(&budget, "test", MIB(64), NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_encoded_is_decoded),
        cmocka_unit_test(an_empty_store_has_a_manifest),
        cmocka_unit_test(every_flipped_bit_is_found),
        cmocka_unit_test(every_cut_is_found),
        cmocka_unit_test(random_bytes_with_right_checksums_do_no_harm),
        cmocka_unit_test(each_contradiction_is_refused_by_its_own_words),
        cmocka_unit_test(more_than_there_may_be_is_refused),
        cmocka_unit_test(each_forgery_is_refused_by_its_own_words),
        cmocka_unit_test(what_is_too_long_or_too_short_is_refused_by_its_own_words),
        cmocka_unit_test(a_newer_format_is_unsupported_not_corrupt),
        cmocka_unit_test(decoding_without_memory_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
