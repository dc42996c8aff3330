/* SPDX-License-Identifier: MIT
 *
 * test_memfs.c -- files in memory: the functions of file.h on ":memory:" paths, and their budget.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "io/file.h"
#include "io/memfs.h"
#include "io/sim.h"

struct fixture {
    struct budget root;
    struct memfs fs;
    u8 block[8192];
    u8 back[8192];
};

static int
setup(void **state)
{
    static struct fixture fixture;
    memset(&fixture, 0, sizeof(fixture));
    budget_init(&fixture.root, "root", MIB(2), NULL);
    memfs_init(&fixture.fs, &fixture.root, UINT64_MAX);
    for (u32 i = 0; i < sizeof(fixture.block); i++)
        fixture.block[i] = (u8)(i * 31 + 7);
    *state = &fixture;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;
    memfs_deinit(&f->fs);
    assert_int_equal(f->root.used_bytes, 0);
    return 0;
}

static struct memfs_file *
create(struct fixture *f, const char *path)
{
    struct memfs_file *file;
    assert_true(ok(memfs_open(&f->fs, path, IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    return file;
}

static void
what_is_written_is_read_and_holes_are_zeros(void **state)
{
    struct fixture *f = *state;
    struct memfs_file *file = create(f, ":memory:/a");
    assert_true(ok(memfs_write(file, f->block, 8192, MEMFS_CHUNK_BYTES - 4096)));
    assert_true(ok(memfs_read(file, f->back, 8192, MEMFS_CHUNK_BYTES - 4096)));
    assert_memory_equal(f->back, f->block, 8192);
    assert_true(ok(memfs_read(file, f->back, 4096, 0)));
    for (u32 i = 0; i < 4096; i++)
        assert_int_equal(f->back[i], 0);
    assert_int_equal(memfs_size(file), MEMFS_CHUNK_BYTES + 4096);
    assert_true(status_is(memfs_read(file, f->back, 8192, MEMFS_CHUNK_BYTES), ST_END));
    assert_true(status_is(memfs_read(file, f->back, 4096, UINT64_MAX - 4095), ST_END));
    memfs_close(file);
}

static void
a_truncated_file_grows_again_with_zeros(void **state)
{
    struct fixture *f = *state;
    struct memfs_file *file = create(f, ":memory:/a");
    assert_true(ok(memfs_write(file, f->block, 8192, 0)));
    assert_true(ok(memfs_truncate(file, 4096)));
    assert_true(ok(memfs_truncate(file, 8192)));
    assert_true(ok(memfs_read(file, f->back, 8192, 0)));
    assert_memory_equal(f->back, f->block, 4096);
    for (u32 i = 4096; i < 8192; i++)
        assert_int_equal(f->back[i], 0);
    assert_true(ok(memfs_fill(file, 8192)));
    assert_true(ok(memfs_read(file, f->back, 4096, 0)));
    assert_int_equal(f->back[5], 0);
    memfs_close(file);
}

static void
names_are_as_on_a_disk(void **state)
{
    struct fixture *f = *state;
    struct memfs_file *file, *other;
    assert_true(status_is(memfs_open(&f->fs, ":memory:/a", IO_OPEN_READ, &file), ST_NOT_FOUND));
    assert_true(status_is(memfs_open(&f->fs, ":memory:/d/a", IO_OPEN_CREATE, &file), ST_NOT_FOUND));
    assert_true(status_is(memfs_dir_make(&f->fs, ":memory:"), ST_EXISTS));
    assert_true(ok(memfs_dir_make(&f->fs, ":memory:/d/")));
    assert_true(status_is(memfs_dir_make(&f->fs, ":memory:/d"), ST_EXISTS));
    assert_true(status_is(memfs_open(&f->fs, ":memory:/d", IO_OPEN_READ, &file), ST_INVALID));
    file = create(f, ":memory://d//a");
    assert_true(status_is(memfs_open(&f->fs, ":memory:/d/a", IO_OPEN_CREATE, &other), ST_EXISTS));
    assert_true(status_is(memfs_dir_remove(&f->fs, ":memory:/d"), ST_EXISTS));
    assert_true(ok(memfs_link(&f->fs, ":memory:/d/a", ":memory:/b")));
    assert_true(status_is(memfs_link(&f->fs, ":memory:/d/a", ":memory:/b"), ST_EXISTS));
    assert_true(ok(memfs_write(file, f->block, 4096, 0)));
    assert_true(ok(memfs_open(&f->fs, ":memory:/b", IO_OPEN_READ, &other)));
    assert_true(ok(memfs_read(other, f->back, 4096, 0)));
    assert_memory_equal(f->back, f->block, 4096);
    memfs_close(other);
    /* Removed while open: it lives until it is closed. */
    assert_true(ok(memfs_unlink(&f->fs, ":memory:/b")));
    assert_true(ok(memfs_unlink(&f->fs, ":memory:/d/a")));
    assert_true(ok(memfs_read(file, f->back, 4096, 0)));
    assert_true(ok(memfs_dir_remove(&f->fs, ":memory:/d")));
    assert_true(status_is(memfs_unlink(&f->fs, ":memory:/d/a"), ST_NOT_FOUND));
    memfs_close(file);
}

static void
mistakes_with_names_are_refused(void **state)
{
    struct fixture *f = *state;
    struct memfs_file *file = create(f, ":memory:/a");
    assert_true(ok(memfs_dir_make(&f->fs, ":memory:/d")));
    struct memfs_file *other;
    assert_true(status_is(memfs_open(&f->fs, "/disk/a", IO_OPEN_READ, &other), ST_INVALID));
    assert_true(status_is(memfs_rename(&f->fs, ":memory:/d", ":memory:/e"), ST_UNSUPPORTED));
    assert_true(status_is(memfs_rename(&f->fs, ":memory:/a", ":memory:/d"), ST_INVALID));
    assert_true(status_is(memfs_link(&f->fs, ":memory:/d", ":memory:/e"), ST_INVALID));
    assert_true(status_is(memfs_link(&f->fs, ":memory:/x", ":memory:/e"), ST_NOT_FOUND));
    assert_true(status_is(memfs_unlink(&f->fs, ":memory:/d"), ST_INVALID));
    assert_true(status_is(memfs_dir_make(&f->fs, ":memory:/x/y"), ST_NOT_FOUND));
    assert_true(status_is(memfs_dir_remove(&f->fs, ":memory:/x"), ST_NOT_FOUND));
    assert_true(status_is(memfs_dir_sync(&f->fs, ":memory:/x"), ST_NOT_FOUND));
    assert_true(ok(memfs_dir_sync(&f->fs, ":memory:/d")));
    assert_true(status_is(memfs_dir_remove(&f->fs, ":memory:/a"), ST_INVALID));
    assert_true(status_is(memfs_write(file, f->block, 4096, UINT64_MAX - 4095), ST_NO_SPACE));
    assert_true(status_is(memfs_allocate(file, UINT64_MAX - 4095), ST_NO_SPACE));
    assert_true(ok(memfs_dir_remove(&f->fs, ":memory:/d")));
    memfs_close(file);
}

static void
rename_replaces_what_stands_there(void **state)
{
    struct fixture *f = *state;
    struct memfs_file *a = create(f, ":memory:/a"), *b = create(f, ":memory:/b"), *read;
    assert_true(ok(memfs_write(a, f->block, 4096, 0)));
    assert_true(ok(memfs_write(b, f->block, 8192, 0)));
    memfs_close(a);
    memfs_close(b);
    u64 used = f->root.used_bytes;
    assert_true(ok(memfs_rename(&f->fs, ":memory:/a", ":memory:/b")));
    assert_true(f->root.used_bytes < used);
    assert_true(ok(memfs_open(&f->fs, ":memory:/b", IO_OPEN_READ, &read)));
    assert_int_equal(memfs_size(read), 4096);
    memfs_close(read);
    assert_true(status_is(memfs_rename(&f->fs, ":memory:/a", ":memory:/c"), ST_NOT_FOUND));
    assert_true(status_is(memfs_rename(&f->fs, ":memory:/b", ":memory:/x/c"), ST_NOT_FOUND));
}

static char listed[256];

static void
list_each(void *arg, const char *name)
{
    struct fixture *f = arg;
    strncat(listed, name, sizeof(listed) - strlen(listed) - 1);
    strncat(listed, " ", sizeof(listed) - strlen(listed) - 1);
    /* What lists may also remove. */
    char path[64];
    snprintf(path, sizeof(path), ":memory:/d/%s", name);
    if (name[0] == 'b') assert_true(ok(memfs_unlink(&f->fs, path)));
}

static void
a_directory_lists_its_own_entries_in_order(void **state)
{
    struct fixture *f = *state;
    assert_true(ok(memfs_dir_make(&f->fs, ":memory:/d")));
    assert_true(ok(memfs_dir_make(&f->fs, ":memory:/d/sub")));
    memfs_close(create(f, ":memory:/d/c"));
    memfs_close(create(f, ":memory:/d/a"));
    memfs_close(create(f, ":memory:/d/b"));
    memfs_close(create(f, ":memory:/d/sub/x"));
    memfs_close(create(f, ":memory:/da"));
    listed[0] = '\0';
    assert_true(ok(memfs_dir_list(&f->fs, ":memory:/d", list_each, f)));
    assert_string_equal(listed, "a b c sub ");
    listed[0] = '\0';
    assert_true(ok(memfs_dir_list(&f->fs, ":memory:/d", list_each, f)));
    assert_string_equal(listed, "a c sub ");
    assert_true(status_is(memfs_dir_list(&f->fs, ":memory:/no", list_each, f), ST_NOT_FOUND));
}

static void
a_full_budget_is_a_full_disk_and_room_comes_back(void **state)
{
    struct fixture *f = *state;
    struct memfs_file *file = create(f, ":memory:/a");
    status st = ST_OK;
    u64 offset = 0;
    for (; ok(st) && offset < MIB(4); offset += 4096)
        st = memfs_write(file, f->block, 4096, offset);
    assert_true(status_is(st, ST_NO_SPACE));
    u64 size = memfs_size(file);
    assert_true(size > MIB(1));
    assert_true(ok(memfs_write(file, f->block, 4096, 0))); /* overwriting needs nothing */
    assert_true(status_is(memfs_allocate(file, MIB(4)), ST_NO_SPACE));
    assert_int_equal(memfs_size(file), size);
    u64 free_bytes, total_bytes;
    assert_true(ok(memfs_disk_free(&f->fs, &free_bytes, &total_bytes)));
    assert_true(free_bytes < MEMFS_CHUNK_BYTES * 2);
    assert_int_equal(total_bytes, MIB(2));
    assert_true(ok(memfs_truncate(file, 0)));
    assert_true(ok(memfs_write(file, f->block, 8192, 0)));
    memfs_close(file);
}

static void
a_file_that_finds_no_memory_is_not_made(void **state)
{
    struct fixture *f = *state;
    u64 rest = f->root.limit_bytes - f->root.used_bytes;
    assert_true(budget_take(&f->root, rest));
    struct memfs_file *file;
    u32 flags = IO_OPEN_WRITE | IO_OPEN_CREATE;
    assert_true(status_is(memfs_open(&f->fs, ":memory:/a", flags, &file), ST_NO_SPACE));
    budget_give(&f->root, rest);
    assert_true(status_is(memfs_open(&f->fs, ":memory:/a", 0, &file), ST_NOT_FOUND));
    memfs_close(create(f, ":memory:/a"));
}

static void
every_function_refuses(struct fixture *f, const char *path)
{
    struct memfs_file *file;
    assert_true(status_is(memfs_open(&f->fs, path, IO_OPEN_CREATE, &file), ST_INVALID));
    assert_true(status_is(memfs_rename(&f->fs, path, ":memory:/b"), ST_INVALID));
    assert_true(status_is(memfs_rename(&f->fs, ":memory:/b", path), ST_INVALID));
    assert_true(status_is(memfs_link(&f->fs, path, ":memory:/b"), ST_INVALID));
    assert_true(status_is(memfs_link(&f->fs, ":memory:/b", path), ST_INVALID));
    assert_true(status_is(memfs_unlink(&f->fs, path), ST_INVALID));
    assert_true(status_is(memfs_dir_make(&f->fs, path), ST_INVALID));
    assert_true(status_is(memfs_dir_remove(&f->fs, path), ST_INVALID));
    assert_true(status_is(memfs_dir_sync(&f->fs, path), ST_INVALID));
    assert_true(status_is(memfs_dir_list(&f->fs, path, NULL, NULL), ST_INVALID));
}

static void
paths_that_are_too_long_or_foreign_are_refused(void **state)
{
    struct fixture *f = *state;
    struct memfs_file *file;
    char path[MEMFS_PATH_BYTES + 32];
    memset(path, 'a', sizeof(path));
    memcpy(path, ":memory:/", 9);
    path[sizeof(path) - 1] = '\0';
    every_function_refuses(f, path);
    every_function_refuses(f, ":memory:x");
    assert_true(status_is(memfs_open(&f->fs, ":memory:", IO_OPEN_CREATE, &file), ST_INVALID));
}

/* Through file.h: each shard has names of its own. */
static status
shards_main(void *arg)
{
    u32 *found = arg;
    struct io_file *file;
    if (io_shard_index() == 0) {
        status st = io_file_open(":memory:/a", IO_OPEN_CREATE | IO_OPEN_WRITE, &file);
        if (!ok(st)) return st;
        st = io_file_fill(file, 65536);
        u64 size = 0;
        if (ok(st)) st = io_file_size(file, &size);
        void *buffer = mem_alloc_aligned(io_budget(), 8192, IO_ALIGNMENT);
        if (buffer == NULL) return ST_NO_MEMORY;
        memset(buffer, 9, 8192);
        if (ok(st)) st = io_file_write(file, IO_CLASS_LOG, buffer, 8192, 4096, true);
        memset(buffer, 0, 8192);
        if (ok(st)) st = io_file_read(file, IO_CLASS_READ, buffer, 8192, 4096);
        if (size != 65536 || ((u8 *)buffer)[8191] != 9) st = ST_CORRUPT;
        mem_free(io_budget(), buffer, 8192);
        io_file_close(file);
        fiber_sleep_ns(10 * NS_PER_MS);
        return st;
    }
    fiber_sleep_ns(5 * NS_PER_MS);
    status st = io_file_open(":memory:/a", IO_OPEN_READ, &file);
    if (ok(st)) (*found)++;
    return status_is(st, ST_NOT_FOUND) ? ST_OK : ST_EXISTS;
}

static void
shards_do_not_see_each_others_names(void **state)
{
    (void)state;
    u32 found = 0;
    assert_true(ok(sim_run_main(3, 3, shards_main, &found)));
    assert_int_equal(found, 0);
}

#define FS_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        FS_TEST(what_is_written_is_read_and_holes_are_zeros),
        FS_TEST(a_truncated_file_grows_again_with_zeros),
        FS_TEST(names_are_as_on_a_disk),
        FS_TEST(mistakes_with_names_are_refused),
        FS_TEST(rename_replaces_what_stands_there),
        FS_TEST(a_directory_lists_its_own_entries_in_order),
        FS_TEST(a_full_budget_is_a_full_disk_and_room_comes_back),
        FS_TEST(a_file_that_finds_no_memory_is_not_made),
        FS_TEST(paths_that_are_too_long_or_foreign_are_refused),
        cmocka_unit_test(shards_do_not_see_each_others_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
