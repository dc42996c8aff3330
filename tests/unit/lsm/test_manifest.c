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

static void
trees_that_make_no_sense_are_refused(void **state)
{
    static const char *const expected[] = {
        "tables of a run overlap",
        "table newer than the state",
        "tiers out of order",
        "blob file is not listed",
        "table viewed outside its tokens",
        "table of another keyspace in a run",
        "deleted ranges out of order",
        "blob files out of order",
        "run of an unknown keyspace",
        "table without entries",
    };
    for (u32 i = 0; i < ARRAY_COUNT(expected); i++) {
        struct sample s;
        sample_fill(&s);
        switch (i) {
        case 0:
            s.metas[1].token_first = 900;
            s.tables[1].view_first = 994;
            break;
        case 1:
            s.metas[3].seq_max = 1001;
            break;
        case 2:
            s.runs[0].tier = 9;
            break;
        case 3:
            s.metas[1].blob_refs[0].file_id = 99;
            break;
        case 4:
            s.tables[2].view_last = 1000;
            break;
        case 5:
            s.metas[4].keyspace = 1;
            break;
        case 6:
            s.ranges[1].seq = 1;
            break;
        case 7:
            s.blobs[1].file_id = 100;
            break;
        case 8:
            s.runs[3].keyspace = LIMIT_KEYSPACES;
            break;
        case 9:
            s.metas[0].entry_count = 0;
            s.metas[0].delete_count = s.metas[0].expiring_count = 0;
            break;
        }
        u64 size;
        const char *what = "";
        u8 *data = encode(&s.manifest, &size);
        assert_true(status_is(decode(data, size, &what), ST_CORRUPT));
        assert_string_equal(what, expected[i]);
        free(data);
    }
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
        cmocka_unit_test(trees_that_make_no_sense_are_refused),
        cmocka_unit_test(a_newer_format_is_unsupported_not_corrupt),
        cmocka_unit_test(decoding_without_memory_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
