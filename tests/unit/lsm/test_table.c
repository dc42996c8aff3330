/* SPDX-License-Identifier: MIT
 *
 * test_table.c -- tables from end to end on the simulated disk: what was written is read back by
 * key, in order and by verification, with every codec and shape of keys; what is damaged is found;
 * what fails, fails cleanly.
 */
#include "../../fewer.h"
#include "table_fixture.h"

#include "lsm/piece_io.h"
#include "lsm/table_internal.h"

#define SEED 11u

static struct budget budget;
static struct table_stats stats;

/* ---- the loop over everything ---- */

MAY_YIELD static void
gets_check(const struct fixture *f, struct table *table, struct block_cache *cache)
{
    for (u32 i = 0; i < f->count; i++) {
        const struct entry *want = &f->entries[i];
        assert_true(table_may_contain(table, want->token, hash_key(want->key, 0)));
        const u64 seqs[] = {UINT64_MAX, want->seq, want->seq - 1};
        for (u32 s = 0; s < ARRAY_COUNT(seqs); s++) {
            struct entry out;
            struct block *pin = NULL;
            status st = table_get(table, cache, want->token, want->key, seqs[s], true, &out, &pin);
            /* Versions of one key are neighbours: the first one that is old enough. */
            u32 at = i;
            while (at > 0 && entry_compare_key(f->entries[at - 1].token, f->entries[at - 1].key,
                                               want->token, want->key) == 0)
                at--;
            while (at < f->count && f->entries[at].seq > seqs[s] &&
                   entry_compare_key(f->entries[at].token, f->entries[at].key, want->token,
                                     want->key) == 0)
                at++;
            bool exists =
                at < f->count && entry_compare_key(f->entries[at].token, f->entries[at].key,
                                                   want->token, want->key) == 0;
            if (!exists) {
                assert_true(status_is(st, ST_NOT_FOUND));
                continue;
            }
            assert_true(ok(st));
            entry_assert_equal(&out, &f->entries[at]);
            block_cache_unpin(pin);
            st = table_get_try(table, cache, want->token, want->key, seqs[s], &out, &pin);
            assert_true(ok(st));
            entry_assert_equal(&out, &f->entries[at]);
            block_cache_unpin(pin);
        }
    }
    u64 found = 0;
    for (u32 i = 0; i < 200; i++) {
        char key[32];
        int size = snprintf(key, sizeof(key), "nobody:%u", i);
        struct bytes name = BYTES(key, (size_t)size);
        struct entry out;
        struct block *pin;
        status st = table_get(table, cache, hash_token(name), name, UINT64_MAX, true, &out, &pin);
        assert_true(status_is(st, ST_NOT_FOUND));
        found += table_may_contain(table, hash_token(name), hash_key(name, 0));
    }
    if (table->filter != NULL) assert_true(found < 20);
}

MAY_YIELD static void
cursor_check(const struct fixture *f, struct table *table, struct block_cache *cache,
             u32 read_ahead_bytes)
{
    struct cursor *cursor;
    assert_true(ok(table_cursor_open(table, cache, UINT64_MAX, IO_CLASS_COMPACTION,
                                     read_ahead_bytes, &budget, &cursor)));
    assert_true(ok(cursor->ops->seek(cursor, 0, BYTES(NULL, 0))));
    for (u32 i = 0; i < f->count; i++) {
        assert_true(cursor->valid);
        entry_assert_equal(&cursor->entry, &f->entries[i]);
        assert_true(ok(cursor->ops->next(cursor)));
    }
    assert_false(cursor->valid);
    assert_true(ok(cursor->ops->next(cursor)));
    assert_false(cursor->valid);
    struct prng prng;
    prng_init(&prng, 5);
    for (u32 round = 0; round < 50; round++) { /* seeks to keys, and to what is between them */
        u32 i = (u32)prng_below(&prng, f->count);
        const struct entry *target = &f->entries[i];
        u8 key[LIMIT_KEY_BYTES + 1];
        memcpy(key, target->key.data, target->key.size);
        key[target->key.size] = 0;
        bool after = prng_chance(&prng, 1, 2);
        struct bytes wanted = BYTES(key, target->key.size + (after ? 1 : 0));
        u32 at = 0;
        while (at < f->count && entry_compare_key(f->entries[at].token, f->entries[at].key,
                                                  target->token, wanted) < 0)
            at++;
        assert_true(ok(cursor->ops->seek(cursor, target->token, wanted)));
        assert_int_equal(cursor->valid, at < f->count);
        for (u32 n = 0; n < 5 && cursor->valid; n++, at++) {
            entry_assert_equal(&cursor->entry, &f->entries[at]);
            assert_true(ok(cursor->ops->next(cursor)));
        }
    }
    u8 beyond[LIMIT_KEY_BYTES + 1];
    memset(beyond, 0xff, sizeof(beyond));
    assert_true(ok(cursor->ops->seek(cursor, UINT64_MAX, BYTES(beyond, sizeof(beyond)))));
    assert_false(cursor->valid);
    cursor->ops->close(cursor);
}

MAY_YIELD static void
whole_check(const struct fixture *f, enum lsm_codec codec, u32 filter_bits)
{
    struct table_meta meta;
    assert_true(ok(table_build(f, 1, codec, filter_bits, &budget, &meta)));
    assert_int_equal(meta.entry_count, f->count);
    assert_int_equal(meta.token_first, f->entries[0].token);
    assert_int_equal(meta.token_last, f->entries[f->count - 1].token);
    u64 offset;
    const char *what = NULL;
    status st = table_verify(FIXTURE_DIR, &meta, 0, &budget, &offset, &what);
    if (!ok(st)) print_message("%s: %s\n", status_name(st), what);
    assert_true(ok(st));
    struct table *table;
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
    assert_true((table->filter != NULL) == (filter_bits > 0));
    struct block_cache *cache = block_cache_new(&budget, MIB(64));
    gets_check(f, table, cache);
    cursor_check(f, table, cache, 0);
    cursor_check(f, table, cache, 64 << 10);
    cursor_check(f, table, NULL, 512 << 10);
    table->unlink_on_close = true;
    block_cache_free(cache);
    table_unref(table);
}

/* ---- round trips ---- */

static status
small_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 1, "user", 300, 3, 200);
    for (enum lsm_codec codec = LSM_CODEC_NONE; codec < LSM_CODEC_COUNT; codec++) {
        whole_check(&f, codec, codec == LSM_CODEC_LZ4 ? 0 : 10);
        fiber_sleep_ns(NS_PER_S); /* the file is closed and removed in the background */
    }
    fixture_free(&f);
    return ST_OK;
}

static status
one_entry_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_add(&f, 7, BYTES_LITERAL("k"), BYTES(NULL, 0), 1, 2, 0, ENTRY_PUT);
    whole_check(&f, LSM_CODEC_NONE, 14);
    fixture_free(&f);
    return ST_OK;
}

/* Keys of 1 and of 1,024 bytes, the lowest and highest token, empty and the largest values. */
static status
extremes_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    u8 *large = malloc(LIMIT_VALUE_BYTES);
    struct prng prng;
    prng_init(&prng, 3);
    for (u32 i = 0; i < LIMIT_VALUE_BYTES; i += 8)
        store_u64(large + i, i % 4096 == 0 ? prng_u64(&prng) : i);
    u8 key[LIMIT_KEY_BYTES];
    memset(key, 0xff, sizeof(key));
    struct fixture f = {0};
    const u64 tokens[] = {0, 1, 1ull << 32, UINT64_MAX - 1, UINT64_MAX};
    u64 seq = 1;
    for (u32 t = 0; t < ARRAY_COUNT(tokens); t++) {
        fixture_add(&f, tokens[t], BYTES(key, 1), BYTES(large, 0), seq, seq, 0, ENTRY_PUT);
        seq++;
        fixture_add(&f, tokens[t], BYTES(key, LIMIT_KEY_BYTES), BYTES(large, LIMIT_VALUE_BYTES),
                    UINT64_MAX - seq, seq, UINT64_MAX, ENTRY_PUT);
        seq++;
        fixture_add(&f, tokens[t], BYTES(key, 512), BYTES(large, 5000 * t), UINT64_MAX,
                    UINT64_MAX - 1, 1, ENTRY_PUT);
        fixture_add(&f, tokens[t], BYTES(key, 512), BYTES(large, 0), 0, 0, 0, ENTRY_DELETE);
    }
    fixture_sort(&f);
    for (enum lsm_codec codec = LSM_CODEC_NONE; codec < LSM_CODEC_COUNT; codec++) {
        struct table_meta meta;
        assert_true(ok(table_build(&f, 1 + codec, codec, 10, &budget, &meta)));
        u64 offset;
        const char *what;
        assert_true(ok(table_verify(FIXTURE_DIR, &meta, 0, &budget, &offset, &what)));
        struct table *table;
        assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
        cursor_check(&f, table, NULL, 16 << 10);
        for (u32 i = 0; i < f.count; i++) {
            struct entry out;
            struct block *pin;
            assert_true(ok(table_get(table, NULL, f.entries[i].token, f.entries[i].key,
                                     f.entries[i].seq, false, &out, &pin)));
            entry_assert_equal(&out, &f.entries[i]);
            block_cache_unpin(pin);
        }
        table_unref(table);
    }
    fixture_free(&f);
    free(large);
    return ST_OK;
}

/* One token, 10,000 keys: and the blocks looked at per get stay one. */
static status
run_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 2, "before", 200, 1, 60);
    fixture_fill(&f, 3, "{tag}", 10000, 1, 60);
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    u64 offset;
    const char *what;
    assert_true(ok(table_verify(FIXTURE_DIR, &meta, 0, &budget, &offset, &what)));
    struct table *table;
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
    assert_true(table->index->run_count > 100);
    stats.reads = 0;
    for (u32 i = 0; i < f.count; i += 7) {
        struct entry out;
        struct block *pin;
        assert_true(ok(table_get(table, NULL, f.entries[i].token, f.entries[i].key, UINT64_MAX,
                                 false, &out, &pin)));
        entry_assert_equal(&out, &f.entries[i]);
        block_cache_unpin(pin);
    }
    assert_int_equal(stats.reads, (f.count + 6) / 7);
    assert_true(stats.read_bytes > 0);
    cursor_check(&f, table, NULL, 64 << 10);
    table_unref(table);
    fixture_free(&f);
    return ST_OK;
}

/* Hundreds of versions of a key: they span blocks, and every snapshot finds its own. */
static status
versions_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    for (u32 k = 0; k < 4; k++) {
        char key[] = "{t}key0";
        key[6] = (char)('0' + k);
        u8 value[100];
        memset(value, (int)k, sizeof(value));
        for (u64 v = 1; v <= 200; v++)
            fixture_add(&f, 99, BYTES(key, 7), BYTES(value, v % 100), 1000 + v, v * 3, 0,
                        ENTRY_PUT);
    }
    fixture_sort(&f);
    whole_check(&f, LSM_CODEC_NONE, 10);
    fiber_sleep_ns(NS_PER_S);
    whole_check(&f, LSM_CODEC_LZ4, 10);
    fixture_free(&f);
    return ST_OK;
}

/* ---- what the reads cost ---- */

/* With a codec, too, of values that do not shrink. */
static void
cost_check(enum lsm_codec codec)
{
    struct fixture f = {0};
    fixture_fill(&f, 4, "cost", 2000, 1, 300);
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 i = 0; i < f.count; i++) {
        struct bytes value = f.entries[i].value;
        for (size_t at = 0; at + 8 <= value.size; at += 8)
            store_u64((u8 *)(uintptr_t)value.data + at, prng_u64(&prng));
    }
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1 + codec, codec, 10, &budget, &meta)));
    struct table *table;
    memset(&stats, 0, sizeof(stats));
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
    for (u32 i = 0; i < f.count; i++) {
        u64 bytes = stats.read_bytes, reads = stats.reads;
        struct entry out;
        struct block *pin;
        assert_true(ok(table_get(table, NULL, f.entries[i].token, f.entries[i].key, UINT64_MAX,
                                 false, &out, &pin)));
        block_cache_unpin(pin);
        assert_int_equal(stats.reads, reads + 1);
        assert_in_range(stats.read_bytes - bytes, 512, 8192);
    }
    /* Packed: what the records need plus a few percent. */
    assert_true(meta.file_bytes < meta.data_bytes + meta.data_bytes / 4 + 16384);
    assert_true(stats.index_bytes < meta.file_bytes / 100);
    table_unref(table);
    assert_int_equal(stats.index_bytes, 0);
    assert_int_equal(stats.filter_bytes, 0);
    fixture_free(&f);
}

static status
cost_body(void *arg)
{
    (void)arg;
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    for (enum lsm_codec codec = LSM_CODEC_NONE; codec < LSM_CODEC_COUNT; codec++)
        cost_check(codec);
    return ST_OK;
}

static status
memory_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 5, "memory", 20000, 1, 40);
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 16, &budget, &meta)));
    struct budget small;
    budget_init(&small, "small", 2000, NULL);
    struct table *table;
    assert_true(status_is(table_open(FIXTURE_DIR, &meta, &small, &stats, &table), ST_NO_MEMORY));
    assert_int_equal(small.used_bytes, 0);
    budget_init(&small, "small", KIB(32), NULL); /* room for the index, not for the filter */
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &small, &stats, &table)));
    assert_null(table->filter);
    struct entry out;
    struct block *pin;
    assert_true(ok(table_get(table, NULL, f.entries[5].token, f.entries[5].key, UINT64_MAX, false,
                             &out, &pin)));
    block_cache_unpin(pin);
    table_unref(table);
    assert_int_equal(small.used_bytes, 0);
    fixture_free(&f);
    return ST_OK;
}

static status
refused_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_add(&f, 2, BYTES_LITERAL("b"), BYTES(NULL, 0), 1, 1, 0, ENTRY_PUT);
    fixture_add(&f, 1, BYTES_LITERAL("a"), BYTES(NULL, 0), 1, 1, 0, ENTRY_PUT);
    struct table_meta meta;
    assert_true(status_is(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta), ST_INVALID));
    fixture_free(&f);
    struct fixture none = {0};
    assert_true(status_is(table_build(&none, 1, LSM_CODEC_NONE, 10, &budget, &meta), ST_INVALID));
    struct io_file *file; /* nothing is left of both */
    assert_true(status_is(io_file_open(FIXTURE_DIR "/t0000000000000001", IO_OPEN_READ, &file),
                          ST_NOT_FOUND));
    return ST_OK;
}

/* Closing with a window on its way: the memory of the test's budget is back at once. */
static status
early_close_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 6, "early", 3000, 1, 300);
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    struct table *table;
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
    struct cursor *cursor;
    assert_true(ok(table_cursor_open(table, NULL, UINT64_MAX, IO_CLASS_COMPACTION, 64 << 10,
                                     &budget, &cursor)));
    assert_true(ok(cursor->ops->seek(cursor, 0, BYTES(NULL, 0))));
    assert_true(cursor->valid);
    cursor->ops->close(cursor);
    table_unref(table);
    assert_int_equal(budget.used_bytes, 0);
    fixture_free(&f);
    return ST_OK;
}

static void
run(status (*body)(void *arg))
{
    budget_init(&budget, "test", MIB(256), NULL);
    memset(&stats, 0, sizeof(stats));
    assert_true(ok(sim_run_main(SEED, 1, body, NULL)));
    assert_int_equal(budget.used_bytes, 0);
}

static void
tables_give_back_what_was_written_with_every_codec(void **unused)
{
    run(small_body);
}

/* Tiny blocks, tiny pieces, tiny windows: the borders are everywhere. */
static void
borders_everywhere_change_nothing(void **unused)
{
    for (u64 seed = 1; seed <= 8; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.buggify = true;
        budget_init(&budget, "test", MIB(256), NULL);
        struct sim *sim = sim_new(&options);
        assert_true(ok(sim_run(sim, 1, seed % 2 ? small_body : versions_body, NULL)));
        sim_free(sim);
        assert_int_equal(budget.used_bytes, 0);
    }
}

static void
a_table_of_one_entry_is_whole(void **unused)
{
    run(one_entry_body);
}

static void
largest_and_smallest_keys_values_and_tokens_survive(void **unused)
{
    run(extremes_body);
}

static void
a_run_of_one_token_is_searched_in_memory(void **unused)
{
    run(run_body);
}

static void
versions_of_a_key_span_blocks(void **unused)
{
    run(versions_body);
}

static void
a_point_read_is_one_request_of_at_most_8_kib(void **unused)
{
    run(cost_body);
}

static void
without_memory_the_filter_goes_first(void **unused)
{
    run(memory_body);
}

static void
a_writer_refuses_disorder_and_emptiness(void **unused)
{
    run(refused_body);
}

static status
outside_body(void *arg)
{
    (void)arg;
    struct io_file *file;
    status st = io_dir_make(FIXTURE_DIR);
    if (ok(st)) st = io_file_open(FIXTURE_DIR "/x", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    st = io_file_fill(file, 8 * IO_ALIGNMENT);
    u8 target[64];
    CHECK(status_is(piece_read(file, IO_ALIGNMENT, IO_CLASS_READ, &budget, target,
                               IO_ALIGNMENT - 32, sizeof(target)),
                    ST_CORRUPT));
    /* More than there is, though it was promised. */
    CHECK(status_is(piece_read(file, 16 * IO_ALIGNMENT, IO_CLASS_READ, &budget, target,
                               12 * IO_ALIGNMENT, sizeof(target)),
                    ST_CORRUPT));
    struct piece_reader *reader;
    st = piece_reader_open(file, 16 * IO_ALIGNMENT, IO_CLASS_READ, IO_ALIGNMENT, &budget, &reader);
    if (!ok(st)) return st;
    const u8 *data;
    CHECK(ok(piece_reader_get(reader, 0, 100, &data)));
    CHECK(status_is(piece_reader_get(reader, 16 * IO_ALIGNMENT, 1, &data), ST_CORRUPT));
    CHECK(status_is(piece_reader_get(reader, 12 * IO_ALIGNMENT, 1, &data), ST_CORRUPT));
    piece_reader_close(reader);
    io_file_close(file);
    return ST_OK;
}

/* Of every class, so with few and with many windows, forward and with jumps. */
static status
reader_body(void *arg)
{
    (void)arg;
    const u32 pages = 400;
    struct piece_writer writer;
    status st = io_dir_make(FIXTURE_DIR);
    if (!ok(st)) return st;
    st = piece_writer_open(&writer, FIXTURE_DIR "/x", IO_CLASS_STREAM, &budget);
    static u32 page[IO_ALIGNMENT / sizeof(u32)];
    for (u32 i = 0; ok(st) && i < pages * ARRAY_COUNT(page); i += ARRAY_COUNT(page)) {
        for (u32 j = 0; j < ARRAY_COUNT(page); j++)
            page[j] = i + j;
        st = piece_writer_append(&writer, BYTES(page, sizeof(page)));
    }
    if (ok(st)) st = piece_writer_finish(&writer);
    struct io_file *file;
    if (ok(st)) st = io_file_open(FIXTURE_DIR "/x", IO_OPEN_READ, &file);
    if (!ok(st)) return st;
    struct prng prng;
    prng_init(&prng, 1);
    const u64 bytes = pages * IO_ALIGNMENT;
    for (u32 i = 0; i < IO_CLASS_COUNT; i++) {
        struct piece_reader *reader;
        u64 used = budget.used_bytes, used_max = 0;
        st = piece_reader_open(file, bytes, (enum io_class)i, 4 * IO_ALIGNMENT, &budget, &reader);
        if (!ok(st)) return st;
        u64 offset = 0;
        for (u32 step = 0; step < 4000; step++) {
            u32 size = 4 * (1 + (u32)prng_below(&prng, prng_chance(&prng, 1, 50) ? 20000 : 1500));
            if (prng_chance(&prng, 1, 200)) offset = align_down(prng_below(&prng, bytes), 4);
            if (size > bytes - offset) offset = 0;
            const u8 *data;
            CHECK(ok(piece_reader_get(reader, offset, size, &data)));
            used_max = MAX(used_max, budget.used_bytes - used);
            for (u32 at = 0; at < size; at += 4) {
                u32 word;
                memcpy(&word, data + at, sizeof(word));
                CHECK(word == (offset + at) / 4);
            }
            offset += size;
        }
        piece_reader_close(reader);
        /* The joint buffer, the reader itself, and windows of 16 KiB. */
        u64 windows = i == IO_CLASS_STREAM ? 8 : 2;
        CHECK(used_max >= windows * 4 * IO_ALIGNMENT);
        CHECK(used_max <= windows * 4 * IO_ALIGNMENT + KIB(128));
    }
    io_file_close(file);
    return ST_OK;
}

/* One sector cannot be read: what does not lie in it can, whatever is read ahead. */
static status
lost_sector_body(void *arg)
{
    struct sim_disk *disk = arg;
    const u64 bytes = 100 * IO_ALIGNMENT, lost = 50 * IO_ALIGNMENT + 512;
    struct piece_writer writer;
    status st = io_dir_make(FIXTURE_DIR);
    if (ok(st)) st = piece_writer_open(&writer, FIXTURE_DIR "/x", IO_CLASS_STREAM, &budget);
    for (u32 i = 0; ok(st) && i < bytes / 4; i++)
        st = piece_writer_append(&writer, BYTES(&i, sizeof(i)));
    if (ok(st)) st = piece_writer_finish(&writer);
    struct io_file *file;
    if (ok(st)) st = io_file_open(FIXTURE_DIR "/x", IO_OPEN_READ, &file);
    if (!ok(st)) return st;
    CHECK(io_file_read_unit(file) == 512);
    CHECK(ok(sim_disk_latent(disk, FIXTURE_DIR "/x", lost)));
    for (u32 size = 512; size <= 128 * 512; size *= 2) {
        struct piece_reader *reader;
        st = piece_reader_open(file, bytes, IO_CLASS_STREAM, 8 * IO_ALIGNMENT, &budget, &reader);
        if (!ok(st)) return st;
        u32 failed = 0;
        for (u64 offset = 0; offset + size <= bytes; offset += size) {
            const u8 *data;
            st = piece_reader_get(reader, offset, size, &data);
            bool meets = offset <= lost && lost < offset + size;
            CHECK(meets ? status_is(st, ST_IO_ERROR) : ok(st));
            failed += meets;
            for (u32 at = 0; !meets && at < size; at += 4) {
                u32 word;
                memcpy(&word, data + at, sizeof(word));
                CHECK(word == (offset + at) / 4);
            }
        }
        CHECK(failed == 1);
        piece_reader_close(reader);
    }
    io_file_close(file);
    return ST_OK;
}

static void
a_sector_that_cannot_be_read_costs_what_lies_in_it(void **unused)
{
    struct sim_options options;
    sim_options_default(&options, SEED);
    budget_init(&budget, "test", MIB(256), NULL);
    struct sim *sim = sim_new(&options);
    struct sim_disk *disk = sim_node_disk(sim_node_new(sim, "10.0.0.1"));
    assert_true(ok(sim_run(sim, 1, lost_sector_body, disk)));
    sim_free(sim);
    assert_int_equal(budget.used_bytes, 0);
}

static void
a_reader_gives_the_bytes_of_the_file(void **unused)
{
    run(reader_body);
}

static void
what_lies_outside_of_a_file_is_damage(void **unused)
{
    run(outside_body);
}

static void
a_cursor_may_be_closed_while_it_reads(void **unused)
{
    run(early_close_body);
}

/* ---- damage ---- */

struct damage {
    struct fixture fixture;
    enum lsm_codec codec; /* of fail_body */
    struct table_meta meta;
};

/* Whatever is damaged: verification sees it, and reads give the right answer or an error. */
MAY_YIELD static void
damage_check(struct damage *damage)
{
    u64 offset = 0;
    const char *what = NULL;
    status st = table_verify(FIXTURE_DIR, &damage->meta, 0, &budget, &offset, &what);
    assert_true(status_is(st, ST_CORRUPT));
    assert_non_null(what);
    assert_true(offset < damage->meta.file_bytes);
    struct table *table;
    st = table_open(FIXTURE_DIR, &damage->meta, &budget, &stats, &table);
    if (!ok(st)) {
        assert_true(status_is(st, ST_CORRUPT));
        return;
    }
    for (u32 i = 0; i < damage->fixture.count; i += 5) {
        const struct entry *want = &damage->fixture.entries[i];
        struct entry out;
        struct block *pin;
        st = table_get(table, NULL, want->token, want->key, want->seq, false, &out, &pin);
        assert_true(ok(st) || status_is(st, ST_CORRUPT));
        if (!ok(st)) continue;
        entry_assert_equal(&out, want);
        block_cache_unpin(pin);
    }
    struct cursor *cursor;
    assert_true(ok(table_cursor_open(table, NULL, UINT64_MAX, IO_CLASS_COMPACTION, 64 << 10,
                                     &budget, &cursor)));
    st = cursor->ops->seek(cursor, 0, BYTES(NULL, 0));
    for (u32 i = 0; ok(st) && cursor->valid; i++) {
        assert_true(i < damage->fixture.count);
        entry_assert_equal(&cursor->entry, &damage->fixture.entries[i]);
        st = cursor->ops->next(cursor);
    }
    assert_true(ok(st) || status_is(st, ST_CORRUPT));
    cursor->ops->close(cursor);
    table_unref(table);
}

static status
flip_body(void *arg)
{
    struct damage damage = {0};
    fixture_fill(&damage.fixture, 9, "{x}flip", 20, 2, 80);
    fixture_fill(&damage.fixture, 10, "flip", 20, 1, 80);
    fixture_sort(&damage.fixture);
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    enum lsm_codec codec = LSM_CODEC_LZ4;
    assert_true(ok(table_build(&damage.fixture, 1, codec, 10, &budget, &damage.meta)));
    assert_int_equal(damage.meta.file_bytes, 8192);
    u8 *page = mem_alloc_aligned(&budget, 4096, 4096);
    struct io_file *file;
    assert_true(ok(io_file_open(FIXTURE_DIR "/t0000000000000001", IO_OPEN_WRITE, &file)));
    for (u64 byte = 0; byte < damage.meta.file_bytes; byte++) {
        u64 first = align_down(byte, 4096);
        u8 mask = (u8)(1u << (byte * 5 % 8));
        assert_true(ok(io_file_read(file, IO_CLASS_READ, page, 4096, first)));
        page[byte - first] ^= mask;
        assert_true(ok(io_file_write(file, IO_CLASS_READ, page, 4096, first, false)));
        damage_check(&damage);
        page[byte - first] ^= mask;
        assert_true(ok(io_file_write(file, IO_CLASS_READ, page, 4096, first, false)));
    }
    io_file_close(file);
    mem_free(&budget, page, 4096);
    u64 offset;
    const char *what;
    assert_true(ok(table_verify(FIXTURE_DIR, &damage.meta, 0, &budget, &offset, &what)));
    /* A manifest that tells something else about a good file. */
    damage.meta.file_hash++;
    assert_true(
        status_is(table_verify(FIXTURE_DIR, &damage.meta, 0, &budget, &offset, &what), ST_CORRUPT));
    damage.meta.file_hash--;
    damage.meta.entry_count++;
    damage_check(&damage);
    damage.meta.entry_count--;
    damage.meta.file_bytes += 4096; /* cut off */
    damage_check(&damage);
    damage.meta.file_bytes -= 4096;
    fixture_free(&damage.fixture);
    return ST_OK;
}

static void
a_flipped_bit_in_any_byte_of_a_table_is_detected(void **unused)
{
    run(flip_body);
}

/* The file ends before the block, though it was whole when the table was opened. */
static status
cut_off_body(void *arg)
{
    (void)arg;
    struct fixture f = {0};
    fixture_fill(&f, 14, "cut", 200, 1, 100);
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    struct table *table;
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
    struct io_file *file;
    assert_true(ok(io_file_open(FIXTURE_DIR "/t0000000000000001", IO_OPEN_WRITE, &file)));
    assert_true(ok(io_file_truncate(file, 8192)));
    io_file_close(file);
    const struct entry *first = &f.entries[0], *last = &f.entries[f.count - 1];
    struct entry out;
    struct block *pin;
    assert_true(
        ok(table_get(table, NULL, first->token, first->key, first->seq, false, &out, &pin)));
    block_cache_unpin(pin);
    assert_true(status_is(
        table_get(table, NULL, last->token, last->key, last->seq, false, &out, &pin), ST_CORRUPT));
    table_unref(table);
    fixture_free(&f);
    return ST_OK;
}

static void
a_block_that_was_cut_off_is_damage(void **unused)
{
    run(cut_off_body);
}

/* The decoders alone, with every bit. */
static status
decode_body(void *arg)
{
    struct fixture f = {0};
    fixture_fill(&f, 13, "bits", 100, 1, 100);
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    u32 size = (u32)meta.file_bytes;
    u8 *data = mem_alloc_aligned(&budget, size, 4096);
    struct io_file *file;
    assert_true(ok(io_file_open(FIXTURE_DIR "/t0000000000000001", IO_OPEN_READ, &file)));
    assert_true(ok(io_file_read(file, IO_CLASS_READ, data, size, 0)));
    io_file_close(file);
    assert_int_equal(hash_bytes(data, size, 0), meta.file_hash);
    struct table_footer *footer = malloc(sizeof(*footer));
    const char *what;
    struct bytes page = BYTES(data + size - 4096, 4096);
    assert_true(ok(table_footer_decode(page, 1, size, footer, &what)));
    assert_false(ok(table_footer_decode(page, 2, size, footer, &what)));
    struct table_meta decoded;
    table_footer_to_meta(footer, &decoded);
    assert_true(table_footer_matches(footer, &meta));
    assert_int_equal(decoded.data_bytes, meta.data_bytes);
    for (u32 bit = 0; bit < 4096 * 8; bit++) {
        data[size - 4096 + bit / 8] ^= (u8)(1u << (bit % 8));
        assert_true(status_is(table_footer_decode(page, 1, size, footer, &what), ST_CORRUPT));
        data[size - 4096 + bit / 8] ^= (u8)(1u << (bit % 8));
    }
    struct table_block_header header;
    memcpy(&header, data, sizeof(header));
    struct bytes stored = BYTES(data, sizeof(header) + header.stored_size);
    assert_true(ok(table_block_check(stored, 1, 0, &header)));
    assert_false(ok(table_block_check(stored, 1, 1, &header))); /* from another place */
    assert_false(ok(table_block_check(stored, 2, 0, &header)));
    for (u32 bit = 0; bit < stored.size * 8; bit++) {
        data[bit / 8] ^= (u8)(1u << (bit % 8));
        assert_true(status_is(table_block_check(stored, 1, 0, &header), ST_CORRUPT));
        data[bit / 8] ^= (u8)(1u << (bit % 8));
    }
    /* Damage that no checksum guards: nothing may be read outside (ASan watches). */
    struct prng prng;
    prng_init(&prng, 14);
    for (u32 round = 0; round < 3000; round++) {
        u8 *raw = malloc(header.raw_size);
        memcpy(raw, data + sizeof(header), header.raw_size);
        for (u32 i = 0; i < 1 + round % 5; i++)
            raw[prng_below(&prng, header.raw_size)] ^= (u8)prng_u64(&prng);
        struct table_block view;
        if (ok(table_block_open(BYTES(raw, header.raw_size), &view))) {
            (void)!ok(table_block_iterate(&view, NULL, NULL));
            u32 at;
            if (ok(table_block_seek(&view, f.entries[3].token, f.entries[3].key, &at)))
                assert_true(at <= view.count);
        }
        free(raw);
    }
    free(footer);
    mem_free(&budget, data, size);
    fixture_free(&f);
    return ST_OK;
}

static void
every_flipped_bit_of_a_block_or_footer_fails_its_checksum(void **unused)
{
    run(decode_body);
}

/* ---- failing requests ---- */

static status
fail_body(void *arg)
{
    struct damage *damage = arg;
    status st = io_dir_make(FIXTURE_DIR);
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    st = table_build(&damage->fixture, 1, damage->codec, 10, &budget, &damage->meta);
    if (!ok(st)) return st;
    u64 offset;
    const char *what;
    st = table_verify(FIXTURE_DIR, &damage->meta, 0, &budget, &offset, &what);
    if (!ok(st)) return st;
    struct table *table;
    st = table_open(FIXTURE_DIR, &damage->meta, &budget, &stats, &table);
    if (!ok(st)) return st;
    const struct entry *want = &damage->fixture.entries[damage->fixture.count / 2];
    struct entry out;
    struct block *pin;
    st = table_get(table, NULL, want->token, want->key, want->seq, false, &out, &pin);
    if (ok(st)) {
        entry_assert_equal(&out, want);
        block_cache_unpin(pin);
        struct cursor *cursor;
        st = table_cursor_open(table, NULL, UINT64_MAX, IO_CLASS_COMPACTION, 16 << 10, &budget,
                               &cursor);
        if (ok(st)) {
            u32 seen = 0;
            st = cursor->ops->seek(cursor, 0, BYTES(NULL, 0));
            for (; ok(st) && cursor->valid; seen++)
                st = cursor->ops->next(cursor);
            if (ok(st)) assert_int_equal(seen, damage->fixture.count);
            cursor->ops->close(cursor);
        }
    }
    table_unref(table);
    return st;
}

static void
the_nth_request_fails(enum sim_point point, status error, u32 keys, u32 value_max)
{
    struct damage damage = {.codec = value_max > 400 ? LSM_CODEC_LZ4 : LSM_CODEC_NONE};
    fixture_fill(&damage.fixture, 12, "fail", keys, 1, value_max);
    for (u64 n = 0;; n++) {
        budget_init(&budget, "test", MIB(256), NULL);
        struct sim_options options;
        sim_options_default(&options, SEED + n);
        struct sim *sim = sim_new(&options);
        sim_fail_at(sim, point, n, 1, error);
        status st = sim_run(sim, 1, fail_body, &damage);
        bool failed = sim_failed(sim);
        sim_free(sim);
        assert_int_equal(budget.used_bytes, 0);
        if (!failed) {
            assert_true(ok(st));
            assert_true(n > 0);
            break;
        }
        /* Only removing the closed file may fail without being noticed. */
        if (!ok(st)) assert_true(status_is(st, error) || status_is(st, ST_CORRUPT));
    }
    fixture_free(&damage.fixture);
}

static void
any_failing_read_write_sync_or_name_is_returned(void **unused)
{
    the_nth_request_fails(SIM_POINT_READ, ST_IO_ERROR, 300, 400);
    the_nth_request_fails(SIM_POINT_WRITE, ST_NO_SPACE, 300, 400);
    the_nth_request_fails(SIM_POINT_SYNC, ST_IO_ERROR, 300, 400);
    the_nth_request_fails(SIM_POINT_NAME, ST_NO_SPACE, 300, 400);
}

static void
any_failing_allocation_is_returned(void **unused)
{
    the_nth_request_fails(SIM_POINT_ALLOC, ST_NO_MEMORY, 300, 400);
    the_nth_request_fails(SIM_POINT_ALLOC, ST_NO_MEMORY, 8, 60000); /* blocks of their own */
}

/* Errors, delays and tiny sizes as the seed draws them: an error or the truth, nothing else. */
static void
a_swarm_of_faults_never_gives_a_wrong_answer(void **unused)
{
    struct damage damage = {0};
    fixture_fill(&damage.fixture, 18, "swarm", 400, 2, 300);
    u32 good = 0;
    for (u64 seed = 1; seed <= FEWER(40); seed++) {
        struct sim_options options;
        sim_options_swarm(&options, seed);
        budget_init(&budget, "test", MIB(256), NULL);
        struct sim *sim = sim_new(&options);
        good += ok(sim_run(sim, 1, fail_body, &damage));
        sim_free(sim);
        assert_int_equal(budget.used_bytes, 0);
    }
    assert_true(good > 0);
    fixture_free(&damage.fixture);
}

/* ---- power cuts ---- */

struct cut {
    struct fixture fixture;
    struct table_meta metas[3];
    u32 kept; /* tables whose finish and directory sync returned ok */
};

static status
cut_write_body(void *arg)
{
    struct cut *cut = arg;
    budget_init(&budget, "test", MIB(256), NULL);
    status st = io_dir_make(FIXTURE_DIR);
    if (ok(st)) st = io_dir_sync("/");
    for (u32 i = 0; ok(st) && i < ARRAY_COUNT(cut->metas); i++) {
        st = table_build(&cut->fixture, i + 1, LSM_CODEC_NONE, 10, &budget, &cut->metas[i]);
        if (ok(st)) st = io_dir_sync(FIXTURE_DIR);
        if (ok(st)) cut->kept = i + 1;
    }
    return st;
}

static status
cut_read_body(void *arg)
{
    struct cut *cut = arg;
    budget_init(&budget, "test", MIB(256), NULL);
    for (u32 i = 0; i < cut->kept; i++) {
        u64 offset;
        const char *what;
        assert_true(ok(table_verify(FIXTURE_DIR, &cut->metas[i], 0, &budget, &offset, &what)));
    }
    return ST_OK;
}

static void
a_finished_table_survives_every_power_cut(void **unused)
{
    struct cut cut = {0};
    fixture_fill(&cut.fixture, 15, "cut", 1200, 1, 400);
    for (u64 n = 0;; n++) {
        cut.kept = 0;
        struct sim_options options;
        sim_options_default(&options, SEED + n);
        options.disk.torn_ppm = 200000;
        struct sim *sim = sim_new(&options);
        sim_crash_at(sim, SIM_POINT_IO, n);
        status st = sim_run(sim, 1, cut_write_body, &cut);
        bool crashed = sim_crashed(sim);
        assert_true(crashed || ok(st));
        sim_faults_clear(sim); /* one that has not come must not come now */
        assert_true(ok(sim_run(sim, 1, cut_read_body, &cut)));
        sim_free(sim);
        if (!crashed) break;
        assert_true(n < 10000);
    }
    assert_int_equal(cut.kept, ARRAY_COUNT(cut.metas));
    fixture_free(&cut.fixture);
}

/* ---- the edges of the runtime ---- */

static status
pace_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 16, "pace", 2000, 1, 300);
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    u64 offset;
    const char *what;
    u64 start_ns = io_now_ns();
    assert_true(
        ok(table_verify(FIXTURE_DIR, &meta, meta.file_bytes / 10, &budget, &offset, &what)));
    u64 took_ns = io_now_ns() - start_ns;
    assert_in_range(took_ns, 9 * NS_PER_S, 11 * NS_PER_S);
    fixture_free(&f);
    return ST_OK;
}

static void
verification_keeps_to_its_rate(void **unused)
{
    run(pace_body);
}

/* Cuts the file while it is being opened. */
struct cutter {
    u64 file_bytes, sleep_ns;
    bool done;
};

static void
cutter_main(void *arg)
{
    struct cutter *cutter = arg;
    fiber_sleep_ns(cutter->sleep_ns);
    struct io_file *file;
    assert_true(ok(io_file_open(FIXTURE_DIR "/t0000000000000001", IO_OPEN_WRITE, &file)));
    assert_true(ok(io_file_truncate(file, cutter->file_bytes)));
    io_file_close(file);
    cutter->done = true;
}

static status
cut_while_opened_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 17, "cut", 10, 1, 30);
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    struct cutter cutter = {.file_bytes = meta.file_bytes - 4096, .sleep_ns = *(u64 *)arg};
    assert_true(ok(fiber_spawn(FIBER_FOREGROUND, "cutter", cutter_main, &cutter)));
    struct table *table = NULL;
    status st = table_open(FIXTURE_DIR, &meta, &budget, &stats, &table);
    while (!cutter.done)
        fiber_sleep_ns(NS_PER_MS);
    assert_true(ok(st) || status_is(st, ST_CORRUPT));
    if (ok(st)) table_unref(table);
    fixture_free(&f);
    fiber_sleep_ns(NS_PER_S);
    assert_int_equal(budget.used_bytes, 0);
    return ST_OK;
}

/* Its size is still right, and its end is not there any more. */
static void
a_table_that_is_cut_while_it_is_opened_is_damage(void **unused)
{
    u64 cut_off = 0;
    for (u64 sleep_ns = 0; sleep_ns < 400 * NS_PER_US; sleep_ns += 4 * NS_PER_US) {
        struct sim_options options;
        sim_options_default(&options, sleep_ns);
        budget_init(&budget, "test", MIB(256), NULL);
        struct sim *sim = sim_new(&options);
        assert_true(ok(sim_run(sim, 1, cut_while_opened_body, &sleep_ns)));
        cut_off += sim_mark_count(sim, "lsm.table.footer_cut_off");
        sim_free(sim);
    }
    assert_true(cut_off > 0);
}

static void
nap(void *arg)
{
    fiber_sleep_ns(5 * NS_PER_MS);
}

static status
no_fiber_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 17, "nofiber", 10, 1, 30);
    struct table_meta meta;
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    struct table *table;
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
    while (ok(fiber_spawn(FIBER_BACKGROUND, "nap", nap, NULL)))
        ;
    table->unlink_on_close = true;
    table_unref(table);
    assert_int_equal(budget.used_bytes, 0);
    fiber_sleep_ns(NS_PER_S);
    struct io_file *file;
    assert_true(status_is(io_file_open(FIXTURE_DIR "/t0000000000000001", IO_OPEN_READ, &file),
                          ST_NOT_FOUND));
    fixture_free(&f);
    return ST_OK;
}

static void
closing_waits_for_a_free_fiber(void **unused)
{
    run(no_fiber_body);
}

/* ---- the index alone ---- */

static void
interpolation_finds_what_halving_finds(void **unused)
{
    struct prng prng;
    prng_init(&prng, 21);
    for (u32 shape = 0; shape < 4; shape++) {
        for (u32 n = 1; n < 20000; n = n * 3 + 1) {
            u64 *tokens = malloc(n * sizeof(u64));
            u64 at = prng_below(&prng, 1000);
            for (u32 i = 0; i < n; i++) {
                if (shape == 0) at += prng_u64(&prng) / n / 2;
                if (shape == 1) at += prng_below(&prng, 3);
                if (shape == 2) at += 1ull << prng_below(&prng, 45);
                if (shape == 3) at += i == n / 2 ? UINT64_MAX / 2 : prng_below(&prng, 2);
                tokens[i] = at;
            }
            struct table_index index = {.block_count = n, .tokens = tokens};
            for (u32 round = 0; round < 300; round++) {
                u64 token = round % 3 == 0   ? prng_u64(&prng)
                            : round % 3 == 1 ? tokens[prng_below(&prng, n)]
                                             : tokens[prng_below(&prng, n)] + 1;
                u32 want = 0;
                u32 lo = 0, hi = n;
                while (lo < hi) {
                    u32 middle = (lo + hi) / 2;
                    if (tokens[middle] <= token)
                        lo = middle + 1;
                    else
                        hi = middle;
                }
                want = lo;
                assert_int_equal(table_index_upper_bound(&index, token), want);
            }
            free(tokens);
        }
    }
}

/* Index sections with runs of one token: what is found in the packed form is what is found in the
 * section, and each block lies where it lay. */
static void
a_packed_index_tells_the_same(void **unused)
{
    struct prng prng;
    prng_init(&prng, 22);
    for (u32 n = 1; n < 5000; n = n * 2 + 1) {
        u32 separator_bytes = 0;
        u64 *tokens = malloc(n * 8);
        u64 *offsets = malloc((n + 1) * 8);
        u32 *run_blocks = malloc(n * 4), *run_ends = malloc(n * 4);
        u8 *separators = malloc(n * 2);
        u32 runs = 0;
        offsets[0] = 0;
        for (u32 i = 0; i < n; i++) {
            bool same = i > 0 && prng_chance(&prng, 1, 3);
            tokens[i] = i == 0 ? 5 : tokens[i - 1] + (same ? 0 : 1 + prng_below(&prng, 1000));
            offsets[i + 1] = offsets[i] + 17 + prng_below(&prng, TABLE_BLOCK_BYTES - 17);
            if (!same) continue;
            store_u16(separators + separator_bytes, __builtin_bswap16((u16)i)); /* rising */
            separator_bytes += 2;
            run_blocks[runs] = i;
            run_ends[runs++] = separator_bytes | (i % 5 == 0 ? TABLE_RUN_SAME_KEY : 0);
        }

        u64 bytes = table_index_bytes(n, runs, separator_bytes);
        u8 *section = aligned_alloc(64, align_up(bytes, 64));
        struct table_index_header header = {n, runs, separator_bytes, 0};
        u8 *p = section;
        memcpy(p, &header, sizeof(header));
        memcpy(p += sizeof(header), tokens, n * 8);
        p += n * 8;
        for (u32 i = 0; i <= n; i++, p += 4)
            store_u32(p, (u32)offsets[i]);
        memcpy(p, run_blocks, runs * 4);
        memcpy(p += runs * 4, run_ends, runs * 4);
        p += runs * 4;
        for (u32 i = 0; i <= n; i++)
            *p++ = (u8)(offsets[i] >> 32);
        memcpy(p, separators, separator_bytes);
        struct table_index index;
        assert_true(ok(table_index_decode(BYTES(section, bytes), offsets[n], &index)));

        u64 packed_bytes = table_index_packed_bytes(&index);
        assert_true(packed_bytes > 0 && packed_bytes <= bytes);
        u8 *memory = aligned_alloc(64, align_up(packed_bytes, 64));
        struct table_index packed;
        table_index_pack(&index, memory, &packed);
        for (u32 i = 0; i <= n; i++)
            assert_int_equal(table_index_offset(&packed, i), offsets[i]);
        for (u32 i = 0; i < 3 * n; i++) {
            u8 key[2];
            store_u16(key, __builtin_bswap16((u16)(i / 3 + i % 3 - 1)));
            u64 token = tokens[i / 3] + (i % 7 == 0 ? 1 : 0);
            assert_int_equal(table_index_find(&packed, token, BYTES(key, 2)),
                             table_index_find(&index, token, BYTES(key, 2)));
        }
        free(memory);
        free(section);
        free(separators);
        free(run_ends);
        free(run_blocks);
        free(offsets);
        free(tokens);
    }
}

/* The block that begins latest of its group may begin 65,535 bytes behind it, and not one more. */
static void
an_index_of_large_blocks_stays_as_it_is(void **unused)
{
    for (u32 more = 0; more < 2; more++) {
        u64 tokens[TABLE_INDEX_GROUP + 3];
        u32 low[TABLE_INDEX_GROUP + 4];
        u8 high[TABLE_INDEX_GROUP + 4] = {0};
        u32 n = TABLE_INDEX_GROUP + 3;
        for (u32 i = 0; i <= n; i++) {
            if (i < n) tokens[i] = i;
            low[i] = i * 100;
            if (i >= TABLE_INDEX_GROUP - 1) low[i] = UINT16_MAX + more;
            if (i >= TABLE_INDEX_GROUP) low[i] += 1000000 + i * 17;
        }
        struct table_index index = {.block_count = n,
                                    .tokens = tokens,
                                    .offsets_low = low,
                                    .offsets_high = high,
                                    .block_bytes = low[n]};
        u64 bytes = table_index_packed_bytes(&index);
        assert_true((bytes > 0) == (more == 0));
        if (bytes == 0) continue;
        u8 *memory = aligned_alloc(64, align_up(bytes, 64));
        struct table_index packed;
        table_index_pack(&index, memory, &packed);
        for (u32 i = 0; i <= n; i++)
            assert_int_equal(table_index_offset(&packed, i), low[i]);
        free(memory);
    }
}

/* What stays in memory of a table: 13 bytes a block in the file are 10.5, and of a filter that was
 * announced to hold twice the keys about a half is kept, also when a few more than a half came. */
static status
resident_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct fixture f = {0};
    fixture_fill(&f, 5, "user", 4000, 1, 1000);
    struct table_writer_options options = {
        .dir = FIXTURE_DIR,
        .file_id = 1,
        .filter_bits = 10,
        .entry_count_max = 2 * f.count - f.count / 50,
        .io_class = IO_CLASS_COMPACTION,
        .budget = &budget,
    };
    struct table_writer *writer;
    assert_true(ok(table_writer_open(&options, &writer)));
    for (u32 i = 0; i < f.count; i++)
        assert_true(ok(table_writer_add(writer, &f.entries[i])));
    struct table_meta meta;
    assert_true(ok(table_writer_finish(writer, &meta)));
    u64 used = budget.used_bytes;
    struct table *table;
    memset(&stats, 0, sizeof(stats));
    assert_true(ok(table_open(FIXTURE_DIR, &meta, &budget, &stats, &table)));
    u64 blocks = table->index->block_count;
    assert_true(blocks > 500);
    assert_true(stats.index_bytes <= blocks * 21 / 2 + 32);
    assert_true(stats.filter_bytes * 8 <= f.count * 11);
    assert_true(stats.filter_bytes * 8 >= f.count * 9);
    assert_in_range(budget.used_bytes - used, stats.index_bytes + stats.filter_bytes,
                    stats.index_bytes + stats.filter_bytes + 8192);
    table->unlink_on_close = true;
    table_unref(table);
    fixture_free(&f);
    return ST_OK;
}

static void
an_open_table_keeps_little_in_memory(void **unused)
{
    run(resident_body);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(interpolation_finds_what_halving_finds),
        cmocka_unit_test(a_packed_index_tells_the_same),
        cmocka_unit_test(an_index_of_large_blocks_stays_as_it_is),
        cmocka_unit_test(an_open_table_keeps_little_in_memory),
        cmocka_unit_test(tables_give_back_what_was_written_with_every_codec),
        cmocka_unit_test(borders_everywhere_change_nothing),
        cmocka_unit_test(a_table_of_one_entry_is_whole),
        cmocka_unit_test(largest_and_smallest_keys_values_and_tokens_survive),
        cmocka_unit_test(a_run_of_one_token_is_searched_in_memory),
        cmocka_unit_test(versions_of_a_key_span_blocks),
        cmocka_unit_test(a_point_read_is_one_request_of_at_most_8_kib),
        cmocka_unit_test(without_memory_the_filter_goes_first),
        cmocka_unit_test(a_writer_refuses_disorder_and_emptiness),
        cmocka_unit_test(a_reader_gives_the_bytes_of_the_file),
        cmocka_unit_test(a_sector_that_cannot_be_read_costs_what_lies_in_it),
        cmocka_unit_test(what_lies_outside_of_a_file_is_damage),
        cmocka_unit_test(a_cursor_may_be_closed_while_it_reads),
        cmocka_unit_test(a_flipped_bit_in_any_byte_of_a_table_is_detected),
        cmocka_unit_test(a_block_that_was_cut_off_is_damage),
        cmocka_unit_test(every_flipped_bit_of_a_block_or_footer_fails_its_checksum),
        cmocka_unit_test(any_failing_read_write_sync_or_name_is_returned),
        cmocka_unit_test(any_failing_allocation_is_returned),
        cmocka_unit_test(a_swarm_of_faults_never_gives_a_wrong_answer),
        cmocka_unit_test(a_finished_table_survives_every_power_cut),
        cmocka_unit_test(verification_keeps_to_its_rate),
        cmocka_unit_test(a_table_that_is_cut_while_it_is_opened_is_damage),
        cmocka_unit_test(closing_waits_for_a_free_fiber),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
