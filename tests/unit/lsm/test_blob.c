/* SPDX-License-Identifier: MIT
 *
 * test_blob.c -- blob files on the simulated disk: values of every size, damage, failing requests.
 */
#include "table_fixture.h"

#include "io/fiber.h"

#define SEED 12u

static struct budget budget;

static const u32 sizes[] = {0,    1,     15,     16,     17,      4095,   4096,
                            4097, 65536, 300000, 524288, 1000000, 100000, LIMIT_VALUE_BYTES};

struct stored {
    struct blob_pointer pointers[ARRAY_COUNT(sizes)];
    u64 file_bytes;
};

static struct bytes
key_of(u32 i, u8 *key)
{
    u32 size = i == 0 ? 1 : i == 1 ? LIMIT_KEY_BYTES : 10 + i;
    memset(key, (int)('a' + i), size);
    return BYTES(key, size);
}

static void
value_fill(u32 i, u8 *value)
{
    for (u32 b = 0; b < sizes[i]; b++)
        value[b] = (u8)(b * 7 + b / 251 + i);
}

MAY_YIELD static status
blob_build(struct stored *stored, u32 count)
{
    struct blob_writer *writer;
    status st = blob_writer_open(FIXTURE_DIR, 5, IO_CLASS_COMPACTION, &budget, &writer);
    if (!ok(st)) return st;
    u8 key[LIMIT_KEY_BYTES];
    u8 *value = malloc(LIMIT_VALUE_BYTES);
    u64 expected = blob_writer_bytes(writer);
    for (u32 i = 0; i < count && ok(st); i++) {
        value_fill(i, value);
        struct bytes name = key_of(i, key);
        st = blob_writer_add(writer, i, name, BYTES(value, sizes[i]), &stored->pointers[i]);
        expected += blob_record_bytes(name.size, sizes[i]);
        if (ok(st)) assert_int_equal(blob_writer_bytes(writer), expected);
    }
    free(value);
    status finished = blob_writer_finish(writer, &stored->file_bytes);
    return ok(st) ? finished : st;
}

MAY_YIELD static status
blob_check(const struct stored *stored, u32 count)
{
    struct blob_file *blob;
    status st = blob_open(FIXTURE_DIR, 5, stored->file_bytes, &budget, &blob);
    if (!ok(st)) return st;
    u8 key[LIMIT_KEY_BYTES];
    u8 *value = malloc(LIMIT_VALUE_BYTES);
    for (u32 i = 0; i < count; i++) {
        void *buffer;
        size_t buffer_size;
        struct bytes out;
        status read = blob_read(blob, IO_CLASS_READ, &stored->pointers[i], i, key_of(i, key),
                                &budget, &buffer, &buffer_size, &out);
        if (!ok(read)) {
            st = read;
            continue;
        }
        value_fill(i, value);
        assert_true(bytes_equal(out, BYTES(value, sizes[i])));
        mem_free(&budget, buffer, buffer_size);
    }
    free(value);
    blob_unref(blob);
    return st;
}

static status
round_trip_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct stored stored;
    assert_true(ok(blob_build(&stored, ARRAY_COUNT(sizes))));
    assert_true(ok(blob_check(&stored, ARRAY_COUNT(sizes))));
    u64 offset;
    const char *what;
    assert_true(ok(blob_verify(FIXTURE_DIR, 5, stored.file_bytes, 0, &budget, &offset, &what)));

    struct blob_file *blob;
    assert_true(ok(blob_open(FIXTURE_DIR, 5, stored.file_bytes, &budget, &blob)));
    u8 key[LIMIT_KEY_BYTES];
    void *buffer;
    size_t buffer_size;
    struct bytes out;
    struct bytes name = key_of(5, key);
    /* Another key, another token, and pointers that lead astray. */
    struct blob_pointer pointer = stored.pointers[5];
    assert_true(
        status_is(blob_read(blob, IO_CLASS_READ, &pointer, 5, BYTES_LITERAL("otherotherother"),
                            &budget, &buffer, &buffer_size, &out),
                  ST_CORRUPT));
    assert_true(status_is(
        blob_read(blob, IO_CLASS_READ, &pointer, 6, name, &budget, &buffer, &buffer_size, &out),
        ST_CORRUPT));
    const u64 offsets[] = {0,
                           16,
                           63,
                           pointer.offset + 1,
                           pointer.offset + 16,
                           stored.file_bytes - 16,
                           stored.file_bytes,
                           UINT64_MAX - 15,
                           UINT64_MAX};
    for (u32 i = 0; i < ARRAY_COUNT(offsets); i++) {
        pointer.offset = offsets[i];
        assert_true(status_is(
            blob_read(blob, IO_CLASS_READ, &pointer, 5, name, &budget, &buffer, &buffer_size, &out),
            ST_CORRUPT));
    }
    pointer = stored.pointers[5];
    pointer.size = UINT32_MAX;
    assert_true(status_is(
        blob_read(blob, IO_CLASS_READ, &pointer, 5, name, &budget, &buffer, &buffer_size, &out),
        ST_CORRUPT));
    pointer = stored.pointers[5];
    pointer.crc++;
    assert_true(status_is(
        blob_read(blob, IO_CLASS_READ, &pointer, 5, name, &budget, &buffer, &buffer_size, &out),
        ST_CORRUPT));
    blob->unlink_on_close = true;
    blob_unref(blob);
    fiber_sleep_ns(NS_PER_S);
    struct io_file *file;
    assert_true(status_is(io_file_open(FIXTURE_DIR "/b0000000000000005", IO_OPEN_READ, &file),
                          ST_NOT_FOUND));
    return ST_OK;
}

/* Odd, so that every bit of a byte has its turn. */
#ifdef __SANITIZE_ADDRESS__
#define BITS_APART 31
#else
#define BITS_APART 3
#endif

static status
flip_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    const u32 count = 5; /* the small ones: two pages */
    struct stored stored;
    assert_true(ok(blob_build(&stored, count)));
    assert_int_equal(stored.file_bytes, 4096);
    u8 *page = mem_alloc_aligned(&budget, 4096, 4096);
    struct io_file *file;
    assert_true(ok(io_file_open(FIXTURE_DIR "/b0000000000000005", IO_OPEN_WRITE, &file)));
    for (u64 bit = 0; bit < stored.file_bytes * 8; bit += BITS_APART) {
        u64 byte = bit / 8;
        u8 mask = (u8)(1u << (bit % 8));
        assert_true(ok(io_file_read(file, IO_CLASS_READ, page, 4096, 0)));
        page[byte] ^= mask;
        assert_true(ok(io_file_write(file, IO_CLASS_READ, page, 4096, 0, false)));
        u64 offset;
        const char *what = NULL;
        assert_true(
            status_is(blob_verify(FIXTURE_DIR, 5, stored.file_bytes, 0, &budget, &offset, &what),
                      ST_CORRUPT));
        assert_non_null(what);
        status st = blob_check(&stored, count);
        assert_true(ok(st) || status_is(st, ST_CORRUPT));
        page[byte] ^= mask;
        assert_true(ok(io_file_write(file, IO_CLASS_READ, page, 4096, 0, false)));
    }
    assert_true(ok(blob_check(&stored, count)));
    io_file_close(file);
    mem_free(&budget, page, 4096);
    return ST_OK;
}

/* ---- several damaged records ---- */

struct told {
    u32 count;
    u64 offsets[20];
    const char *whats[20];
};

static void
note(void *arg, u64 offset, const char *what)
{
    struct told *told = arg;
    assert_true(told->count < ARRAY_COUNT(told->offsets));
    told->offsets[told->count] = offset;
    told->whats[told->count++] = what;
}

MAY_YIELD static status
told_of(const struct stored *stored, struct told *told)
{
    struct places places = {.each = note, .arg = told};
    told->count = 0;
    return blob_verify_all(FIXTURE_DIR, 5, stored->file_bytes, &budget, &places);
}

static status
several_body(void *arg)
{
    struct sim_disk *disk = arg;
    const char *path = FIXTURE_DIR "/b0000000000000005";
    const u32 header = sizeof(struct blob_record_header);
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct stored stored;
    assert_true(ok(blob_build(&stored, ARRAY_COUNT(sizes))));
    struct told told;
    assert_true(ok(told_of(&stored, &told)));
    assert_int_equal(told.count, 0);

    /* Where in the record the bit is: 0 its magic, 12 its value's size, the key, the value. */
    const struct {
        u32 record, byte;
        const char *what; /* NULL: a sector that cannot be read */
    } harms[] = {
        {0, 0, "no record"}, /* the first */
        {2, header, "record checksum"},
        {5, header + 15 + 10, "value checksum"}, /* neighbours */
        {6, header + 16 + 4000, "value checksum"},
        {8, 12, "record checksum"},
        {9, header + 19 + 100000, "value checksum"}, /* behind one without a length */
        {11, 600000, NULL},
        {13, 0, "no record"}, /* the last */
    };
    for (u32 i = 0; i < ARRAY_COUNT(harms); i++) {
        u64 offset = stored.pointers[harms[i].record].offset + harms[i].byte;
        assert_true(ok(harms[i].what != NULL ? sim_disk_flip(disk, path, offset, 1)
                                             : sim_disk_latent(disk, path, offset)));
    }
    assert_true(status_is(told_of(&stored, &told), ST_CORRUPT));
    for (u32 i = 0; i < ARRAY_COUNT(harms); i++) {
        assert_true(i < told.count);
        assert_int_equal(told.offsets[i], stored.pointers[harms[i].record].offset);
        assert_string_equal(told.whats[i],
                            harms[i].what != NULL ? harms[i].what : "cannot be read");
    }
    assert_int_equal(told.count, ARRAY_COUNT(harms));

    assert_true(ok(sim_disk_flip(disk, path, stored.file_bytes - 1, 1)));
    assert_true(status_is(told_of(&stored, &told), ST_CORRUPT)); /* where they end is not known */
    assert_int_equal(told.count, 1);
    assert_int_equal(told.offsets[0], stored.file_bytes - IO_ALIGNMENT);
    return ST_OK;
}

static void
each_damaged_record_is_told_once(void **unused)
{
    struct sim_options options;
    sim_options_default(&options, SEED);
    budget_init(&budget, "test", MIB(64), NULL);
    struct sim *sim = sim_new(&options);
    struct sim_disk *disk = sim_node_disk(sim_node_new(sim, "10.0.0.1"));
    assert_true(ok(sim_run(sim, 1, several_body, disk)));
    sim_free(sim);
    assert_int_equal(budget.used_bytes, 0);
}

static status
fail_body(void *arg)
{
    status st = io_dir_make(FIXTURE_DIR);
    if (!ok(st)) return st;
    struct stored stored;
    st = blob_build(&stored, 10);
    if (!ok(st)) return st;
    u64 offset;
    const char *what;
    st = blob_verify(FIXTURE_DIR, 5, stored.file_bytes, 0, &budget, &offset, &what);
    if (!ok(st)) return st;
    return blob_check(&stored, 10);
}

/* ---- files of another size than the manifest says ---- */

static status
size_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct stored stored;
    assert_true(ok(blob_build(&stored, 5)));
    const u64 sizes_told[] = {0, 1, IO_ALIGNMENT - 1, stored.file_bytes + 1, UINT64_MAX};
    for (u32 i = 0; i < ARRAY_COUNT(sizes_told); i++) {
        struct blob_file *blob;
        assert_true(
            status_is(blob_open(FIXTURE_DIR, 5, sizes_told[i], &budget, &blob), ST_CORRUPT));
        u64 offset;
        const char *what = NULL;
        status st = blob_verify(FIXTURE_DIR, 5, sizes_told[i], 0, &budget, &offset, &what);
        assert_true(status_is(st, ST_CORRUPT) && offset == 0);
        assert_string_equal(what, "file size");
    }
    assert_true(ok(blob_check(&stored, 5)));
    return ST_OK;
}

/* It cuts the file to its first page after so long. */
struct cut {
    u64 after_ns;
    bool done;
};

static MAY_YIELD void
cut_main(void *arg)
{
    struct cut *cut = arg;
    struct io_file *file;
    assert_true(ok(io_file_open(FIXTURE_DIR "/b0000000000000005", IO_OPEN_WRITE, &file)));
    fiber_sleep_ns(cut->after_ns);
    assert_true(ok(io_file_truncate(file, IO_ALIGNMENT)));
    io_file_close(file);
    cut->done = true;
}

static status
cut_body(void *arg)
{
    assert_true(ok(io_dir_make(FIXTURE_DIR)));
    struct stored stored;
    u32 before = 0, between = 0, behind = 0;
    /* The size is looked at first and the last page read last: between them, it is this case. */
    for (u64 after_ns = 0; behind == 0; after_ns += 2 * NS_PER_US) {
        struct cut cut = {.after_ns = after_ns};
        u64 offset;
        const char *what = NULL;
        assert_true(ok(blob_build(&stored, 8)));
        assert_true(stored.file_bytes > IO_ALIGNMENT);
        assert_true(ok(fiber_spawn(FIBER_BACKGROUND, "cut", cut_main, &cut)));
        status st = blob_verify(FIXTURE_DIR, 5, stored.file_bytes, 0, &budget, &offset, &what);
        if (ok(st)) {
            behind++;
        } else {
            assert_true(status_is(st, ST_CORRUPT));
            if (offset == 0) before++;
            if (offset == stored.file_bytes - IO_ALIGNMENT) between++;
        }
        while (!cut.done)
            fiber_sleep_ns(NS_PER_US);
        assert_true(ok(io_file_unlink(FIXTURE_DIR "/b0000000000000005")));
    }
    assert_true(before > 0 && between > 0);
    return ST_OK;
}

static void
run(status (*body)(void *arg))
{
    budget_init(&budget, "test", MIB(64), NULL);
    assert_true(ok(sim_run_main(SEED, 1, body, NULL)));
    assert_int_equal(budget.used_bytes, 0);
}

static void
values_come_back_and_only_to_their_owner(void **unused)
{
    run(round_trip_body);
}

static void
flipped_bits_of_a_blob_file_are_detected(void **unused)
{
    run(flip_body);
}

static void
a_size_that_no_file_has_is_refused(void **unused)
{
    run(size_body);
}

static void
a_file_that_is_cut_while_it_is_opened_is_damaged(void **unused)
{
    run(cut_body);
}

static void
the_nth_request_fails(enum sim_point point, status error)
{
    for (u64 n = 0;; n++) {
        budget_init(&budget, "test", MIB(64), NULL);
        struct sim_options options;
        sim_options_default(&options, SEED + n);
        struct sim *sim = sim_new(&options);
        sim_fail_at(sim, point, n, 1, error);
        status st = sim_run(sim, 1, fail_body, NULL);
        bool failed = sim_failed(sim);
        sim_free(sim);
        assert_int_equal(budget.used_bytes, 0);
        if (!failed) {
            assert_true(ok(st));
            assert_true(n > 0);
            return;
        }
        if (!ok(st)) assert_true(status_is(st, error));
    }
}

static void
any_failing_request_or_allocation_is_returned(void **unused)
{
    the_nth_request_fails(SIM_POINT_READ, ST_IO_ERROR);
    the_nth_request_fails(SIM_POINT_WRITE, ST_NO_SPACE);
    the_nth_request_fails(SIM_POINT_SYNC, ST_IO_ERROR);
    the_nth_request_fails(SIM_POINT_NAME, ST_NO_SPACE);
    the_nth_request_fails(SIM_POINT_ALLOC, ST_NO_MEMORY);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_come_back_and_only_to_their_owner),
        cmocka_unit_test(flipped_bits_of_a_blob_file_are_detected),
        cmocka_unit_test(each_damaged_record_is_told_once),
        cmocka_unit_test(a_size_that_no_file_has_is_refused),
        cmocka_unit_test(a_file_that_is_cut_while_it_is_opened_is_damaged),
        cmocka_unit_test(any_failing_request_or_allocation_is_returned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
