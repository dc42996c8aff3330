/* SPDX-License-Identifier: MIT
 *
 * test_table_forged.c -- tables that are wrong though every checksum is right, as a wrong writer
 * would make them: verification finds each, and says what; reading one is safe. And several damaged
 * places of one table: each is told, once.
 *
 * The table has no codec, entries of small tokens, a run of one token over several blocks, and
 * entries of larger tokens:
 *
 *     | tokens 0, 1, 2, ... | token RUN, RUN, RUN, ... | tokens RUN + 1, ... |
 */
#include "table_fixture.h"

#include "lsm/table_internal.h"

#define PATH       FIXTURE_DIR "/t0000000000000001"
#define RUN        100000u
#define PART       300u /* entries of each of the three */
#define VALUE_SIZE 60u

static struct budget budget;
static struct table_stats stats;
static struct sim *sim;

/* The file in memory, and where the arrays of its index are. */
struct image {
    struct table_meta meta; /* what the manifest says */
    u8 *data;
    struct table_footer *footer;
    u8 *index, *tokens, *offsets, *run_blocks, *run_ends, *separators;
    u32 block_count, run_count;
};

static void
image_locate(struct image *image)
{
    image->footer = (void *)(image->data + image->meta.file_bytes - TABLE_FOOTER_BYTES);
    image->index = image->data + image->footer->block_bytes;
    struct table_index_header header;
    memcpy(&header, image->index, sizeof(header));
    u32 n = image->block_count = header.block_count;
    u32 r = image->run_count = header.run_count;
    image->tokens = image->index + sizeof(header);
    image->offsets = image->tokens + 8 * (size_t)n;
    image->run_blocks = image->offsets + 4 * (size_t)(n + 1);
    image->run_ends = image->run_blocks + 4 * (size_t)r;
    image->separators = image->run_ends + 4 * (size_t)r + n + 1;
}

static u32
offset_of(const struct image *image, u32 block)
{
    return load_u32(image->offsets + 4 * (size_t)block);
}

static u64
token_of(const struct image *image, u32 block)
{
    return load_u64(image->tokens + 8 * (size_t)block);
}

/* The block that a separator belongs to. */
static u32
run_block(const struct image *image, u32 run)
{
    return load_u32(image->run_blocks + 4 * (size_t)run);
}

/* ---- checksums are put right ---- */

static void
block_seal(struct image *image, u32 block)
{
    u32 at = offset_of(image, block), end = offset_of(image, block + 1);
    store_u32(image->data + at,
              crc32c(table_place_seed(1, at), image->data + at + 4, end - at - 4));
}

static void
footer_seal(struct image *image)
{
    u64 at = image->meta.file_bytes - TABLE_FOOTER_BYTES;
    image->footer->crc = crc32c(table_place_seed(1, at), image->footer, TABLE_FOOTER_BYTES - 4);
}

static void
index_seal(struct image *image)
{
    u64 at = image->footer->block_bytes;
    image->footer->index_crc =
        crc32c(table_place_seed(1, at), image->index, image->footer->index_bytes);
    footer_seal(image);
}

/* ---- forgeries ---- */

static void
index_without_a_header(struct image *image)
{
    image->footer->index_bytes = sizeof(struct table_index_header) - 1;
    index_seal(image);
}

static void
more_entries_than_there_are(struct image *image)
{
    image->footer->entry_count++;
    image->meta.entry_count++;
    footer_seal(image);
}

static void
a_later_number_than_any_entry_has(struct image *image)
{
    image->footer->seq_max++;
    image->meta.seq_max++;
    footer_seal(image);
}

/* The tokens of block 2 begin behind the first one of block 1, and before its last one. */
static void
a_block_before_the_end_of_the_last(struct image *image)
{
    u64 token = token_of(image, 1) + 1;
    u8 *raw = image->data + offset_of(image, 2) + sizeof(struct table_block_header);
    assert_int_equal(load_u64(raw + offsetof(struct table_raw_header, token_base)),
                     token_of(image, 2));
    assert_true(token < token_of(image, 2));
    store_u64(raw + offsetof(struct table_raw_header, token_base), token);
    store_u64(image->tokens + 16, token);
    block_seal(image, 2);
    index_seal(image);
}

/* What the last block of the run holds has a token of its own now, and the separator is there. */
static void
a_separator_where_none_belongs(struct image *image)
{
    u32 block = run_block(image, image->run_count - 1);
    u8 *raw = image->data + offset_of(image, block) + sizeof(struct table_block_header);
    assert_true(token_of(image, block) == RUN && token_of(image, block - 1) == RUN);
    store_u64(raw + offsetof(struct table_raw_header, token_base), RUN + 1);
    store_u64(image->tokens + 8 * (size_t)block, RUN + 1);
    block_seal(image, block);
    index_seal(image);
}

static void
a_separator_that_says_same_key(struct image *image)
{
    store_u32(image->run_ends, load_u32(image->run_ends) ^ TABLE_RUN_SAME_KEY);
    index_seal(image);
}

static void
a_separator_behind_its_block(struct image *image)
{
    memset(image->separators, 0xff, load_u32(image->run_ends) & ~TABLE_RUN_SAME_KEY);
    index_seal(image);
}

static void
a_separator_before_the_last_key(struct image *image)
{
    memset(image->separators, 0, load_u32(image->run_ends) & ~TABLE_RUN_SAME_KEY);
    index_seal(image);
}

static const struct {
    void (*forge)(struct image *image);
    const char *what, *mark;
} forgeries[] = {
    {index_without_a_header, "index", "lsm.table.index_short"},
    {more_entries_than_there_are, "entry counts", "lsm.table_verify.counts"},
    {a_later_number_than_any_entry_has, "ranges of the entries", "lsm.table_verify.ranges"},
    {a_block_before_the_end_of_the_last, "order of blocks", "lsm.table_verify.block_order"},
    {a_separator_where_none_belongs, "index separators", "lsm.table_verify.separator_missing"},
    {a_separator_that_says_same_key, "index separators", "lsm.table_verify.separator_kind"},
    {a_separator_behind_its_block, "index separators", "lsm.table_verify.separator_high"},
    {a_separator_before_the_last_key, "index separators", "lsm.table_verify.separator_low"},
};

/* ---- each of them ---- */

static void
entries_make(struct fixture *f)
{
    u8 value[VALUE_SIZE];
    for (u32 i = 0; i < 3 * PART; i++) {
        char key[32];
        int size = snprintf(key, sizeof(key), "key-%06u", i);
        u64 token = i < PART ? i : i < 2 * PART ? RUN : RUN + i;
        memset(value, (int)i, sizeof(value));
        fixture_add(f, token, BYTES(key, (size_t)size), BYTES(value, sizeof(value)), i + 1, i + 1,
                    0, ENTRY_PUT);
    }
    fixture_sort(f);
}

/* Every key and the whole of it: right, absent, or damage. */
MAY_YIELD static void
read_all(const struct fixture *f, const struct table_meta *meta)
{
    struct table *table;
    status st = table_open(FIXTURE_DIR, meta, &budget, &stats, &table);
    if (!ok(st)) {
        assert_true(status_is(st, ST_CORRUPT));
        return;
    }
    for (u32 i = 0; i < f->count; i++) {
        const struct entry *want = &f->entries[i];
        struct entry out;
        struct block *pin;
        st = table_get(table, NULL, want->token, want->key, UINT64_MAX, false, &out, &pin);
        assert_true(ok(st) || status_is(st, ST_CORRUPT) || status_is(st, ST_NOT_FOUND));
        if (!ok(st)) continue;
        entry_assert_equal(&out, want);
        block_cache_unpin(pin);
    }
    struct cursor *cursor;
    assert_true(ok(table_cursor_open(table, NULL, UINT64_MAX, IO_CLASS_COMPACTION, 64 << 10,
                                     &budget, &cursor)));
    u32 count = 0;
    st = cursor->ops->seek(cursor, 0, BYTES(NULL, 0));
    for (; ok(st) && cursor->valid; count++)
        st = cursor->ops->next(cursor);
    assert_true(ok(st) || status_is(st, ST_CORRUPT));
    assert_true(count <= f->count);
    cursor->ops->close(cursor);
    table_unref(table);
}

static status
forged_body(void *arg)
{
    (void)arg;
    struct fixture f = {0};
    entries_make(&f);
    struct image image = {0};
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &image.meta)));
    struct table_meta meta = image.meta;
    u32 size = (u32)meta.file_bytes;
    assert_true(size <= LIMIT_IO_BYTES);
    u8 *good = mem_alloc_aligned(&budget, size, IO_ALIGNMENT);
    image.data = mem_alloc_aligned(&budget, size, IO_ALIGNMENT);
    struct io_file *file;
    assert_true(ok(io_file_open(PATH, IO_OPEN_WRITE, &file)));
    assert_true(ok(io_file_read(file, IO_CLASS_READ, good, size, 0)));
    for (u32 i = 0; i < ARRAY_COUNT(forgeries); i++) {
        memcpy(image.data, good, size);
        image.meta = meta;
        image_locate(&image);
        assert_true(image.block_count > 10 && image.run_count > 2 && run_block(&image, 0) > 3);
        forgeries[i].forge(&image);
        assert_true(ok(io_file_write(file, IO_CLASS_READ, image.data, size, 0, false)));
        u64 offset = UINT64_MAX, passed = sim_mark_count(sim, forgeries[i].mark);
        const char *what = "";
        status st = table_verify(FIXTURE_DIR, &image.meta, 0, &budget, &offset, &what);
        assert_true(status_is(st, ST_CORRUPT));
        assert_string_equal(what, forgeries[i].what);
        assert_true(offset < size);
        assert_int_equal(sim_mark_count(sim, forgeries[i].mark), passed + 1);
        read_all(&f, &image.meta);
    }
    io_file_close(file);
    mem_free(&budget, good, size);
    mem_free(&budget, image.data, size);
    fixture_free(&f);
    return ST_OK;
}

static void
what_a_wrong_writer_did_is_found_behind_right_checksums(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    budget_init(&budget, "test", MIB(64), NULL);
    sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, forged_body, NULL)));
    sim_free(sim);
    assert_int_equal(budget.used_bytes, 0);
}

/* ---- several places of one table ---- */

struct told {
    u32 count;
    u64 offsets[2 * PLACES_MAX];
    const char *whats[2 * PLACES_MAX];
};

static struct told told;

static void
note(void *arg, u64 offset, const char *what)
{
    (void)arg;
    assert_true(told.count < ARRAY_COUNT(told.offsets));
    told.offsets[told.count] = offset;
    told.whats[told.count++] = what;
}

MAY_YIELD static status
told_of(const struct table_meta *meta)
{
    struct places places = {.each = note};
    told.count = 0;
    status st = table_verify_all(FIXTURE_DIR, meta, &budget, &places);
    assert_true(places.count == told.count);
    return st;
}

static void
told_next(u32 *at, u64 offset, const char *what)
{
    assert_true(*at < told.count);
    assert_int_equal(told.offsets[*at], offset);
    assert_string_equal(told.whats[*at], what);
    ++*at;
}

/* A table of entries_make, and its bytes in memory. */
static struct io_file *
image_open(struct fixture *f, struct image *image)
{
    entries_make(f);
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    assert_true(ok(table_build(f, 1, LSM_CODEC_NONE, 10, &budget, &image->meta)));
    u32 size = (u32)image->meta.file_bytes;
    image->data = mem_alloc_aligned(&budget, size, IO_ALIGNMENT);
    struct io_file *file;
    assert_true(ok(io_file_open(PATH, IO_OPEN_WRITE, &file)));
    assert_true(ok(io_file_read(file, IO_CLASS_READ, image->data, size, 0)));
    image_locate(image);
    return file;
}

static void
image_write(const struct image *image, struct io_file *file)
{
    u32 size = (u32)image->meta.file_bytes;
    assert_true(ok(io_file_write(file, IO_CLASS_READ, image->data, size, 0, false)));
}

static void
image_close(struct fixture *f, struct image *image, struct io_file *file)
{
    io_file_close(file);
    mem_free(&budget, image->data, image->meta.file_bytes);
    fixture_free(f);
}

/* In blocks of all three parts, two of them neighbours inside the run, the first and the last. */
static status
several_body(void *arg)
{
    struct sim_disk *disk = arg;
    struct fixture f = {0};
    struct image image = {0};
    struct io_file *file = image_open(&f, &image);
    assert_true(ok(told_of(&image.meta)));
    assert_int_equal(told.count, 0);

    u32 begin = run_block(&image, 0) - 1; /* the run begins in it: its separators, behind it */
    u32 run = run_block(&image, 4), last = image.block_count - 1;
    const u32 blocks[] = {0, 2, begin, begin + 2, run, run + 1, last};
    assert_true(begin > 3 && run > begin + 4 && run + 3 < last);
    for (u32 i = 0; i < ARRAY_COUNT(blocks); i++)
        image.data[offset_of(&image, blocks[i]) + 50] ^= 1;
    u32 other = run + 3; /* its checksum is right, its token is not that of the index */
    u8 *raw = image.data + offset_of(&image, other) + sizeof(struct table_block_header);
    raw[offsetof(struct table_raw_header, token_base)] ^= 1;
    block_seal(&image, other);
    u64 filter = image.footer->block_bytes + image.footer->index_bytes;
    assert_true(image.footer->filter_bytes > 0);
    image.data[filter] ^= 1;
    u64 padding = filter + image.footer->filter_bytes;
    assert_true(padding < image.meta.file_bytes - TABLE_FOOTER_BYTES);
    image.data[padding] ^= 1;
    image_write(&image, file);
    u32 unread = run + 2; /* and its disk sector, which may be its neighbours', too */
    u64 sector = align_down(offset_of(&image, unread) + 2048, 512);
    assert_true(sector > offset_of(&image, unread));
    assert_true(sector + 512 < offset_of(&image, unread + 1));
    assert_true(ok(sim_disk_latent(disk, PATH, sector)));

    assert_true(status_is(told_of(&image.meta), ST_CORRUPT));
    u32 at = 0;
    told_next(&at, filter, "filter");
    told_next(&at, 0, "block checksum");
    told_next(&at, offset_of(&image, 2), "block checksum");
    told_next(&at, offset_of(&image, begin), "block checksum");
    told_next(&at, offset_of(&image, begin + 2), "block checksum");
    told_next(&at, offset_of(&image, run), "block checksum");
    told_next(&at, offset_of(&image, run + 1), "block checksum");
    told_next(&at, offset_of(&image, unread), "cannot be read");
    told_next(&at, offset_of(&image, other), "first token of block");
    told_next(&at, offset_of(&image, last), "block checksum");
    told_next(&at, padding, "padding");
    assert_int_equal(told.count, at);

    image.index[20] ^= 1; /* which tells where the blocks are */
    image_write(&image, file);
    assert_true(status_is(told_of(&image.meta), ST_CORRUPT));
    at = 0;
    told_next(&at, image.footer->block_bytes, "index");
    assert_int_equal(told.count, at);
    image_close(&f, &image, file);
    return ST_OK;
}

/* What is wrong with the index is told once, and hides no block that is damaged, too. */
static status
forged_and_damaged_body(void *arg)
{
    (void)arg;
    struct fixture f = {0};
    struct image image = {0};
    struct io_file *file = image_open(&f, &image);
    u32 last = image.block_count - 1;
    u64 filter = image.footer->block_bytes + image.footer->index_bytes;
    /* Those of two blocks are wrong. */
    memset(image.separators, 0xff, load_u32(image.run_ends + 4) & ~TABLE_RUN_SAME_KEY);
    memset(image.data + filter, 0, image.footer->filter_bytes);
    image.footer->filter_crc =
        crc32c(table_place_seed(1, filter), image.data + filter, image.footer->filter_bytes);
    image.data[offset_of(&image, last) + 50] ^= 1;
    index_seal(&image);
    image_write(&image, file);
    assert_true(status_is(told_of(&image.meta), ST_CORRUPT));
    u32 at = 0;
    told_next(&at, filter, "filter misses a key");
    told_next(&at, image.footer->block_bytes, "index separators");
    told_next(&at, offset_of(&image, last), "block checksum");
    assert_int_equal(told.count, at);
    image_close(&f, &image, file);
    return ST_OK;
}

/* More damaged blocks than are told. */
static status
wiped_body(void *arg)
{
    (void)arg;
    struct fixture f = {0};
    static u8 value[3500];
    for (u32 i = 0; i < PLACES_MAX + 20; i++) {
        char key[32];
        int size = snprintf(key, sizeof(key), "key-%06u", i);
        fixture_add(&f, i, BYTES(key, (size_t)size), BYTES(value, sizeof(value)), i + 1, i + 1, 0,
                    ENTRY_PUT);
    }
    struct table_meta meta;
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    assert_true(ok(table_build(&f, 1, LSM_CODEC_NONE, 10, &budget, &meta)));
    struct io_file *file;
    assert_true(ok(io_file_open(PATH, IO_OPEN_WRITE, &file)));
    u8 *zeros = mem_alloc_aligned(&budget, IO_ALIGNMENT, IO_ALIGNMENT);
    memset(zeros, 0, IO_ALIGNMENT);
    for (u64 at = 0; at < (PLACES_MAX + 20) * sizeof(value); at += IO_ALIGNMENT)
        assert_true(ok(io_file_write(file, IO_CLASS_READ, zeros, IO_ALIGNMENT, at, false)));
    io_file_close(file);
    mem_free(&budget, zeros, IO_ALIGNMENT);
    assert_true(status_is(told_of(&meta), ST_CORRUPT));
    assert_int_equal(told.count, PLACES_MAX + 1);
    for (u32 i = 0; i < PLACES_MAX; i++) {
        assert_string_equal(told.whats[i], "block checksum");
        assert_true(i == 0 || told.offsets[i] > told.offsets[i - 1]);
    }
    assert_non_null(strstr(told.whats[PLACES_MAX], "and more"));
    fixture_free(&f);
    return ST_OK;
}

static void
each_damaged_place_of_a_table_is_told_once(void **state)
{
    (void)state;
    status (*const bodies[])(void *arg) = {several_body, forged_and_damaged_body, wiped_body};
    for (u32 i = 0; i < ARRAY_COUNT(bodies); i++) {
        struct sim_options options;
        sim_options_default(&options, 1);
        budget_init(&budget, "test", MIB(64), NULL);
        sim = sim_new(&options);
        struct sim_disk *disk = sim_node_disk(sim_node_new(sim, "10.0.0.1"));
        assert_true(ok(sim_run(sim, 1, bodies[i], disk)));
        sim_free(sim);
        assert_int_equal(budget.used_bytes, 0);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_wrong_writer_did_is_found_behind_right_checksums),
        cmocka_unit_test(each_damaged_place_of_a_table_is_told_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
