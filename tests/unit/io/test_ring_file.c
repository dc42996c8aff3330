/* SPDX-License-Identifier: MIT
 *
 * test_ring_file.c -- files, names and locks on a real disk and in memory; punts to io-wq.
 */
#include "fault_count.h"
#include "ring_fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/fiber.h"
#include "io/file.h"
#include "io/ring_internal.h"

#define BLOCK  IO_ALIGNMENT
#define BLOCKS 64u

static char root[256];

static const char *
path_of(const char *name)
{
    static __thread char paths[4][512];
    static __thread u32 next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", root, name);
    return path;
}

static u8 *
block_new(u32 size, u64 seed)
{
    u8 *block = mem_alloc_aligned(io_budget(), size, BLOCK);
    EXPECT(block != NULL);
    for (u32 i = 0; i < size; i++)
        block[i] = (u8)((seed + i) * 2654435761u >> 13);
    return block;
}

static void
remove_all(void *arg, const char *name)
{
    status st = io_file_unlink(path_of(name));
    if (!ok(st)) st = io_dir_remove(path_of(name));
    EXPECT(ok(st));
}

/* ---- contents ---- */

static status
main_contents(void *arg)
{
    struct io_file *file;
    EXPECT(status_is(io_file_open(path_of("a"), IO_OPEN_READ, &file), ST_NOT_FOUND));
    EXPECT(ok(io_file_open(path_of("a"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    struct io_file *twice;
    EXPECT(
        status_is(io_file_open(path_of("a"), IO_OPEN_WRITE | IO_OPEN_CREATE, &twice), ST_EXISTS));
    EXPECT(ok(io_file_fill(file, BLOCKS * BLOCK)));
    u64 size = 0;
    EXPECT(ok(io_file_size(file, &size)));
    EXPECT(size == BLOCKS * BLOCK);

    u8 *out = block_new(BLOCK, 1);
    u8 *in = block_new(BLOCK, 2);
    for (u32 i = 0; i < 8; i++) {
        memset(out, (int)i + 1, BLOCK);
        EXPECT(ok(io_file_write(file, IO_CLASS_LOG, out, BLOCK, i * 3 * BLOCK, i % 2 == 0)));
    }
    EXPECT(ok(io_file_sync(file)));
    for (u32 i = 0; i < 8; i++) {
        EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, BLOCK, i * 3 * BLOCK)));
        EXPECT(in[0] == i + 1 && in[BLOCK - 1] == i + 1);
        EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, BLOCK, (i * 3 + 1) * BLOCK)));
        EXPECT(in[0] == 0 && in[BLOCK - 1] == 0);
    }
    EXPECT(status_is(io_file_read(file, IO_CLASS_READ, in, BLOCK, BLOCKS * BLOCK), ST_END));
    EXPECT(status_is(io_file_read(file, IO_CLASS_READ, in, BLOCK, MIB(900)), ST_END));

    EXPECT(ok(io_file_truncate(file, 2 * BLOCK)));
    EXPECT(ok(io_file_size(file, &size)));
    EXPECT(size == 2 * BLOCK);
    EXPECT(ok(io_file_allocate(file, 16 * BLOCK)));
    EXPECT(ok(io_file_size(file, &size)));
    EXPECT(size == 16 * BLOCK);
    EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, BLOCK, 15 * BLOCK)));
    EXPECT(in[7] == 0);

    struct io_stats stats;
    io_stats_get(&stats);
    EXPECT(stats.writes >= 8 && stats.reads >= 16 && stats.syncs >= 1);
    EXPECT(stats.io_in_flight == 0 && stats.io_queued == 0);
    io_file_close(file);
    mem_free(io_budget(), out, BLOCK);
    mem_free(io_budget(), in, BLOCK);
    EXPECT(ok(io_dir_list(root, remove_all, NULL)));
    return ST_OK;
}

static void
what_was_written_is_read_back(void **state)
{
    ring_run_main(1, main_contents, NULL);
}

/* Reads of any units: each at another place of a block, over the ends of blocks. */
static status
main_units(void *arg)
{
    struct io_file *file;
    const u32 size = 6 * BLOCK;
    EXPECT(ok(io_file_open(path_of("units"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    u8 *out = block_new(size, 3), *in = block_new(size, 4);
    EXPECT(ok(io_file_fill(file, size)));
    EXPECT(ok(io_file_write(file, IO_CLASS_LOG, out, size, 0, true)));
    u32 unit = io_file_read_unit(file);
    EXPECT(unit >= 512 && unit <= BLOCK && (unit & (unit - 1)) == 0);
    for (u32 first = 0; first < size; first += unit) {
        for (u32 span = unit; span <= 2 * BLOCK && first + span <= size; span += unit) {
            memset(in, 0xEE, span + 1);
            EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, span, first)));
            EXPECT(memcmp(in, out + first, span) == 0 && in[span] == 0xEE);
        }
    }
    EXPECT(status_is(io_file_read(file, IO_CLASS_READ, in, 2 * unit, size - unit), ST_END));
    io_file_close(file);
    mem_free(io_budget(), out, size);
    mem_free(io_budget(), in, size);
    EXPECT(ok(io_dir_list(root, remove_all, NULL)));
    return ST_OK;
}

static void
reads_begin_and_end_at_any_unit(void **state)
{
    ring_run_main(1, main_units, NULL);
}

/* The same where the kernel stops short, between the units of a read, too. */
static status
main_units_stopped(void *arg)
{
    fault_armed_set(true);
    status st = main_units(arg);
    fault_armed_set(false);
    return st;
}

static void
reads_of_units_that_stop_short_go_on(void **state)
{
    u64 stops = fault_count("io.ring_file.stopped_short");
    ring_run_main(1, main_units_stopped, NULL);
    assert_true(fault_count("io.ring_file.stopped_short") - stops > 10);
}

/* ---- large and many ---- */

#define LARGE_BYTES (3u * LIMIT_IO_BYTES + 5 * BLOCK)

/* As on a file system without direct I/O, where a transfer goes on in the middle of a block. */
static void
make_buffered(struct io_file *file)
{
    int flags = fcntl(file->fd, F_GETFL);
    EXPECT(flags >= 0 && fcntl(file->fd, F_SETFL, flags & ~O_DIRECT) == 0);
    file->direct = false;
}

/* arg: not NULL: buffered. */
static status
main_large(void *arg)
{
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("large"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    if (arg != NULL) make_buffered(file);
    u8 *out = block_new(LARGE_BYTES, 3);
    u8 *in = block_new(LARGE_BYTES, 4);
    EXPECT(ok(io_file_write(file, IO_CLASS_COMPACTION, out, LARGE_BYTES, 7 * BLOCK, true)));
    EXPECT(ok(io_file_read(file, IO_CLASS_STREAM, in, LARGE_BYTES, 7 * BLOCK)));
    EXPECT(memcmp(in, out, LARGE_BYTES) == 0);
    /* A read that begins inside and ends outside. */
    EXPECT(status_is(io_file_read(file, IO_CLASS_READ, in, 8 * BLOCK, LARGE_BYTES), ST_END));
    /* The same, of a file that ends within a block, and one that ends just there. */
    EXPECT(ftruncate(file->fd, 5 * BLOCK + 904) == 0);
    EXPECT(status_is(io_file_read(file, IO_CLASS_READ, in, 8 * BLOCK, 0), ST_END));
    EXPECT(status_is(io_file_read(file, IO_CLASS_READ, in, BLOCK, 5 * BLOCK), ST_END));
    EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, 5 * BLOCK, 0)));
    io_file_close(file);
    mem_free(io_budget(), out, LARGE_BYTES);
    mem_free(io_budget(), in, LARGE_BYTES);
    EXPECT(ok(io_file_unlink(path_of("large"))));
    return ST_OK;
}

/* The kernel writes the part below the limit and says so: the rest is asked for again, and its
 * failure is the operation's. */
static status
main_short(void *arg)
{
    const struct rlimit *before = arg;
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("short"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_allocate(file, 16 * BLOCK)));
    u8 *out = block_new(8 * BLOCK, 5);
    u8 *in = block_new(8 * BLOCK, 6);
    struct rlimit limit = {.rlim_cur = 12 * BLOCK, .rlim_max = before->rlim_max};
    EXPECT(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    EXPECT(!ok(io_file_write(file, IO_CLASS_LOG, out, 8 * BLOCK, 8 * BLOCK, true)));
    EXPECT(status_is(io_file_allocate(file, 64 * BLOCK), ST_NO_SPACE));
    EXPECT(status_is(io_file_truncate(file, 64 * BLOCK), ST_NO_SPACE));
    EXPECT(setrlimit(RLIMIT_FSIZE, before) == 0);
    EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, 8 * BLOCK, 8 * BLOCK)));
    EXPECT(memcmp(in, out, 4 * BLOCK) == 0); /* so it was a short write, not a refused one */
    EXPECT(in[4 * BLOCK] == 0);
    EXPECT(ok(io_file_write(file, IO_CLASS_LOG, out, 8 * BLOCK, 8 * BLOCK, true)));
    io_file_close(file);
    mem_free(io_budget(), out, 8 * BLOCK);
    mem_free(io_budget(), in, 8 * BLOCK);
    EXPECT(ok(io_file_unlink(path_of("short"))));
    return ST_OK;
}

static void
what_the_kernel_left_over_is_asked_for_again(void **state)
{
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    ring_run_main(1, main_short, &before);
    signal(SIGXFSZ, SIG_DFL);
}

static void
descriptors_come_back(void *arg)
{
    fiber_sleep_ns(50 * NS_PER_MS);
    CHECK(setrlimit(RLIMIT_NOFILE, arg) == 0);
}

/* No descriptor is left: that passes, and is not the disk's fault. A file says so, for its caller
 * tries again; a sync of names waits, for behind a rename there is no again. */
static status
main_descriptors(void *arg)
{
    struct rlimit *before = arg;
    struct io_file *file;
    struct rlimit limit = {.rlim_cur = 3, .rlim_max = before->rlim_max};
    EXPECT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    status opened = io_file_open(path_of("many"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    EXPECT(ok(fiber_spawn(FIBER_FOREGROUND, "descriptors", descriptors_come_back, before)));
    status synced = io_dir_sync(root);
    EXPECT(setrlimit(RLIMIT_NOFILE, before) == 0);
    EXPECT(status_is(opened, ST_NO_MEMORY) && ok(synced));
    EXPECT(ok(io_file_open(path_of("many"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    io_file_close(file);
    EXPECT(ok(io_file_unlink(path_of("many"))));
    return ST_OK;
}

static void
without_a_descriptor_there_is_no_memory_for_a_file(void **state)
{
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    ring_run_main(1, main_descriptors, &before);
}

static bool large_is_direct;

/* As main_large, with a kernel that stops short of what it was asked for, between two blocks and
 * within one, again and again. */
static status
main_stopped(void *arg)
{
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("kind"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    large_is_direct = file->direct;
    io_file_close(file);
    EXPECT(ok(io_file_unlink(path_of("kind"))));
    fault_armed_set(true);
    status st = main_large(arg);
    fault_armed_set(false);
    return st;
}

static void
transfers_that_stop_short_go_on_where_they_stopped(void **state)
{
    static bool buffered;
    for (u32 i = 0; i < 2; i++) {
        u64 stops = fault_count("io.ring_file.stopped_short");
        u64 parts = fault_count("io.core_op.part");
        u64 again = fault_count("io.core_op.block_again");
        ring_run_main(1, main_stopped, i == 0 ? NULL : &buffered);
        stops = fault_count("io.ring_file.stopped_short") - stops;
        parts = fault_count("io.core_op.part") - parts;
        again = fault_count("io.core_op.block_again") - again;
        assert_true(stops > 10);
        /* Of a direct file's transfers some stopped within a block, some between two. */
        if (i == 0 && large_is_direct) assert_true(again > 3 && again + 3 < parts);
        if (i == 1) assert_int_equal(again, 0);
    }
}

static void
a_large_request_is_cut_and_put_together(void **state)
{
    static bool buffered;
    ring_run_main(1, main_large, NULL);
    ring_run_main(1, main_large, &buffered);
}

#define MANY 1000u

static u32 many_done;

static void
many_finished(struct io_op *op)
{
    EXPECT(ok(op->result));
    many_done++;
}

static status
main_many(void *arg)
{
    struct io_file *file;
    char name[16];
    snprintf(name, sizeof(name), "many%u", io_shard_index());
    EXPECT(ok(io_file_open(path_of(name), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_fill(file, BLOCKS * BLOCK)));
    size_t ops_bytes = MANY * sizeof(struct io_op);
    struct io_op *ops = mem_alloc_zero(io_budget(), ops_bytes);
    u8 *block = block_new(BLOCK, 5);
    many_done = 0;
    u64 in_flight_max = 0;
    for (u32 i = 0; i < MANY; i++) {
        ops[i].done = many_finished;
        enum io_class class = i % IO_CLASS_COUNT;
        u64 offset = (u64)(i % BLOCKS) * BLOCK;
        if (i % 3 == 0)
            io_file_write_start(file, &ops[i], class, block, BLOCK, offset, false);
        else
            io_file_read_start(file, &ops[i], class, block, BLOCK, offset);
    }
    EXPECT(many_done == 0); /* never from inside the start */
    while (many_done < MANY) {
        fiber_yield();
        struct io_stats stats;
        io_stats_get(&stats);
        in_flight_max = MAX(in_flight_max, stats.io_in_flight);
    }
    EXPECT(in_flight_max > 16 && in_flight_max <= LIMIT_IO_IN_FLIGHT);
    io_file_close(file);
    mem_free(io_budget(), ops, ops_bytes);
    mem_free(io_budget(), block, BLOCK);
    EXPECT(ok(io_file_unlink(path_of(name))));
    return ST_OK;
}

static void
many_requests_stay_under_the_limit_and_all_finish(void **state)
{
    ring_run_main(1, main_many, NULL);
}

/* Reads of one turn. The disk has the first at once, and each further batch that is as large as
 * what it has already, eight at most. */
static status
main_leaving(void *arg)
{
    static const u32 in_flight[] = {1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 16, 16};
    enum { COUNT = ARRAY_COUNT(in_flight) };
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("leaving"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_fill(file, BLOCKS * BLOCK)));
    struct io_op *ops = mem_alloc_zero(io_budget(), COUNT * sizeof(*ops));
    u8 *block = block_new(BLOCK, 5);
    many_done = 0;
    for (u32 i = 0; i < COUNT; i++) {
        ops[i].done = many_finished;
        io_file_read_start(file, &ops[i], IO_CLASS_READ, block, BLOCK, (u64)i % BLOCKS * BLOCK);
        struct io_stats stats;
        io_stats_get(&stats);
        EXPECT(stats.io_in_flight == in_flight[i]);
        EXPECT(stats.io_queued == i + 1 - in_flight[i]);
    }
    while (many_done < COUNT)
        fiber_yield();
    io_file_close(file);
    mem_free(io_budget(), ops, COUNT * sizeof(*ops));
    mem_free(io_budget(), block, BLOCK);
    EXPECT(ok(io_file_unlink(path_of("leaving"))));
    return ST_OK;
}

static void
a_disk_with_little_to_do_does_not_wait_for_the_turns_end(void **state)
{
    ring_run_main(1, main_leaving, NULL);
}

static struct io_file *bulk_file;
static struct io_op *bulk_ops;
static u8 *bulk_block;

/* Its reads are bulk though nobody says so. */
static void
reads_much(void *arg)
{
    for (u32 i = 0; i < MANY; i++) {
        bulk_ops[i].done = many_finished;
        io_file_read_start(bulk_file, &bulk_ops[i], IO_CLASS_READ, bulk_block, BLOCK,
                           (u64)(i % BLOCKS) * BLOCK);
    }
}

static status
main_bulk(void *arg)
{
    EXPECT(ok(io_file_open(path_of("bulk"), IO_OPEN_WRITE | IO_OPEN_CREATE, &bulk_file)));
    EXPECT(ok(io_file_fill(bulk_file, BLOCKS * BLOCK)));
    size_t ops_bytes = MANY * sizeof(struct io_op);
    bulk_ops = mem_alloc_zero(io_budget(), ops_bytes);
    bulk_block = block_new(BLOCK, 5);
    u8 *block = block_new(BLOCK, 5);
    many_done = 0;
    EXPECT(ok(fiber_spawn(FIBER_BULK, "bulk", reads_much, NULL)));
    struct io_stats stats;
    do {
        fiber_yield();
        io_stats_get(&stats);
    } while (stats.io_in_flight == 0);
    EXPECT(stats.io_queued > 0);
    EXPECT(ok(io_file_read(bulk_file, IO_CLASS_READ, block, BLOCK, 0)));
    EXPECT(many_done < MANY / 2); /* it did not stand behind them */
    u64 in_flight_max = 0;
    while (many_done < MANY) {
        fiber_yield();
        io_stats_get(&stats);
        in_flight_max = MAX(in_flight_max, stats.io_in_flight);
    }
    EXPECT(in_flight_max <= LIMIT_IO_IN_FLIGHT / 2);
    io_file_close(bulk_file);
    mem_free(io_budget(), bulk_ops, ops_bytes);
    mem_free(io_budget(), bulk_block, BLOCK);
    mem_free(io_budget(), block, BLOCK);
    EXPECT(ok(io_file_unlink(path_of("bulk"))));
    return ST_OK;
}

static void
a_small_read_does_not_wait_behind_bulk(void **state)
{
    ring_run_main(1, main_bulk, NULL);
}

/* ---- names ---- */

static char listed[256];

static void
lists(void *arg, const char *name)
{
    strcat(listed, name);
    strcat(listed, " ");
}

static void
create(const char *path)
{
    struct io_file *file;
    status st = io_file_open(path, IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    EXPECT(ok(st));
    if (ok(st)) io_file_close(file);
}

static status
main_names(void *arg)
{
    struct io_file *file;
    EXPECT(ok(io_dir_make(path_of("d"))));
    EXPECT(status_is(io_dir_make(path_of("d")), ST_EXISTS));
    create(path_of("d/b"));
    create(path_of("d/a"));
    create(path_of("d/c"));
    EXPECT(ok(io_dir_sync(path_of("d"))));
    EXPECT(ok(io_file_rename(path_of("d/c"), path_of("d/b"))));
    EXPECT(ok(io_file_link(path_of("d/a"), path_of("d/z"))));
    EXPECT(status_is(io_file_link(path_of("d/a"), path_of("d/z")), ST_EXISTS));
    listed[0] = 0;
    EXPECT(ok(io_dir_list(path_of("d"), lists, NULL)));
    EXPECT(strcmp(listed, "a b z ") == 0);
    EXPECT(!ok(io_dir_remove(path_of("d"))));
    EXPECT(status_is(io_file_unlink(path_of("d/nothing")), ST_NOT_FOUND));
    EXPECT(status_is(io_file_open(path_of("d"), IO_OPEN_READ, &file), ST_INVALID));
    EXPECT(status_is(io_dir_list(path_of("nothing"), lists, NULL), ST_NOT_FOUND));
    EXPECT(ok(io_file_unlink(path_of("d/a"))));
    EXPECT(ok(io_file_unlink(path_of("d/b"))));
    EXPECT(ok(io_file_unlink(path_of("d/z"))));
    EXPECT(ok(io_dir_remove(path_of("d"))));
    u64 free_bytes = 0, total_bytes = 0;
    EXPECT(ok(io_disk_free(root, &free_bytes, &total_bytes)));
    EXPECT(free_bytes > 0 && total_bytes >= free_bytes);
    return ST_OK;
}

/* With no more than that many bytes of memory left: what a listing of root says. */
static status
list_with(u64 left)
{
    u64 taken = budget_available(io_budget()) - left;
    EXPECT(budget_take(io_budget(), taken));
    listed[0] = 0;
    status st = io_dir_list(root, lists, NULL);
    budget_give(io_budget(), taken);
    return st;
}

static status
main_without_memory(void *arg)
{
    struct io_file *file;
    create(path_of("only"));
    u64 used = io_budget()->used_bytes;
    EXPECT(status_is(list_with(0), ST_NO_MEMORY));
    EXPECT(fault_count("io.ring_name.list_block_no_memory") == 1);
    EXPECT(status_is(list_with(KIB(32)), ST_NO_MEMORY)); /* no more than the kernel's answer */
    EXPECT(fault_count("io.ring_name.list_no_memory") == 1);
    EXPECT(strcmp(listed, "") == 0);
    EXPECT(ok(list_with(KIB(64))));
    EXPECT(strcmp(listed, "only ") == 0);
    u64 taken = budget_available(io_budget());
    EXPECT(budget_take(io_budget(), taken));
    EXPECT(status_is(io_file_open(path_of("only"), IO_OPEN_READ, &file), ST_NO_MEMORY));
    budget_give(io_budget(), taken);
    EXPECT(fault_count("io.ring_file.no_memory") == 1);
    EXPECT(io_budget()->used_bytes == used);
    EXPECT(ok(io_file_unlink(path_of("only"))));
    return ST_OK;
}

static void
without_memory_nothing_is_listed_or_opened_and_nothing_is_lost(void **state)
{
    ring_run_main(1, main_without_memory, NULL);
}

/* ---- removed files ---- */

static u64
sum_of(const char *name)
{
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of(name), IO_OPEN_READ, &file)));
    u8 *in = block_new(LARGE_BYTES, 1);
    EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, LARGE_BYTES, 0)));
    u64 sum = 0;
    for (u32 i = 0; i < LARGE_BYTES; i++)
        sum = sum * 31 + in[i];
    mem_free(io_budget(), in, LARGE_BYTES);
    io_file_close(file);
    return sum;
}

static struct io_file *
removed_new(const char *name, const char *other)
{
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of(name), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    u8 *out = block_new(LARGE_BYTES, 9);
    EXPECT(ok(io_file_write(file, IO_CLASS_STREAM, out, LARGE_BYTES, 0, false)));
    mem_free(io_budget(), out, LARGE_BYTES);
    if (other != NULL) EXPECT(ok(io_file_link(path_of(name), path_of(other))));
    return file;
}

#define REMOVED_BYTES MIB(5)
static bool removed_closed;

static void
close_removed(void *arg)
{
    io_file_close_removed(arg);
    removed_closed = true;
}

static status
main_removed(void *arg)
{
    /* What has another name keeps every byte. */
    struct io_file *file = removed_new("one", "other");
    u64 sum = sum_of("one");
    EXPECT(ok(io_file_unlink(path_of("one"))));
    io_file_close_removed(file);
    EXPECT(sum_of("other") == sum);
    EXPECT(ok(io_file_unlink(path_of("other"))));

    /* What has none becomes shorter and shorter, slowly, where there is room enough. */
    u64 disk_free, disk_total;
    EXPECT(ok(io_disk_free(root, &disk_free, &disk_total)));
    if (disk_free < GIB(3)) return ST_OK;
    file = removed_new("gone", NULL);
    EXPECT(ok(io_file_allocate(file, REMOVED_BYTES)));
    int fd = open(path_of("gone"), O_RDONLY | O_CLOEXEC); /* file is closed before we know of it */
    EXPECT(fd >= 0);
    EXPECT(ok(io_file_unlink(path_of("gone"))));
    removed_closed = false;
    u64 start_ns = io_now_ns();
    EXPECT(ok(fiber_spawn(FIBER_BACKGROUND, "close", close_removed, file)));
    u64 before = REMOVED_BYTES;
    u32 steps = 0;
    while (!removed_closed) {
        struct stat stat = {0};
        EXPECT(fstat(fd, &stat) == 0);
        u64 size = (u64)stat.st_size;
        EXPECT(size <= before);
        steps += size < before;
        before = size;
        fiber_sleep_ns(NS_PER_MS);
    }
    close(fd);
    EXPECT(steps >= 3);
    EXPECT(io_now_ns() - start_ns >= 3 * 8 * NS_PER_MS);
    return ST_OK;
}

static void
a_removed_file_goes_little_by_little(void **state)
{
    ring_run_main(1, main_removed, NULL);
}

static void
names_are_made_moved_listed_and_removed(void **state)
{
    ring_run_main(1, main_names, NULL);
}

static status
main_memory(void *arg)
{
    struct io_file *file;
    EXPECT(ok(io_dir_make(":memory:/d")));
    EXPECT(ok(io_file_open(":memory:/d/f", IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_fill(file, 8 * BLOCK)));
    u8 *out = block_new(BLOCK, 6);
    u8 *in = block_new(BLOCK, 7);
    EXPECT(ok(io_file_write(file, IO_CLASS_LOG, out, BLOCK, 2 * BLOCK, true)));
    struct io_op op = {.done = NULL};
    io_file_read_start(file, &op, IO_CLASS_READ, in, BLOCK, 2 * BLOCK);
    EXPECT(!op.finished);
    EXPECT(ok(io_op_wait(&op)));
    EXPECT(memcmp(in, out, BLOCK) == 0);
    EXPECT(ok(io_file_sync(file)));
    io_file_close(file);
    listed[0] = 0;
    EXPECT(ok(io_dir_list(":memory:/d", lists, NULL)));
    EXPECT(strcmp(listed, "f ") == 0);
    EXPECT(ok(io_file_unlink(":memory:/d/f")));
    EXPECT(ok(io_dir_lock(":memory:")));
    mem_free(io_budget(), out, BLOCK);
    mem_free(io_budget(), in, BLOCK);
    return ST_OK;
}

static void
files_in_memory_behave_alike(void **state)
{
    ring_run_main(1, main_memory, NULL);
}

static status
main_nowhere(void *arg)
{
    u64 free_bytes, total_bytes;
    EXPECT(status_is(io_dir_lock(path_of("nowhere")), ST_NOT_FOUND));
    EXPECT(status_is(io_disk_free(path_of("nowhere"), &free_bytes, &total_bytes), ST_NOT_FOUND));
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("left"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_unlink(path_of("left"))));
    return ST_OK; /* with the file open: the shard closes it */
}

static void
what_is_not_there_is_told_and_what_is_left_open_is_closed(void **state)
{
    u64 before = fault_count("io.ring_file.left_open");
    ring_run_main(1, main_nowhere, NULL);
    assert_true(fault_count("io.ring_file.left_open") == before + 1);
}

/* ---- locks ---- */

static status
main_locks(void *arg)
{
    EXPECT(ok(io_dir_lock(root)));
    EXPECT(ok(io_dir_lock(root))); /* of the same node */
    io_dir_unlock(root);
    /* The ring has the lock from here on. */
    struct io_file *file;
    char name[16];
    snprintf(name, sizeof(name), "held%u", io_shard_index());
    EXPECT(ok(io_file_open(path_of(name), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    io_file_close(file);
    EXPECT(ok(io_file_unlink(path_of(name))));
    *(_Atomic u32 *)arg += 1;
    io_wait_stop();
    return ST_OK;
}

static status
main_is_refused(void *arg)
{
    u64 start = io_now_ns();
    status st = io_dir_lock(root);
    EXPECT(io_now_ns() - start >= 900 * NS_PER_MS);
    return st;
}

/* Not a moment later, as the kernel takes rings down: who has ended in order has nothing under way.
 */
static bool
lock_is_free(void)
{
    int fd = open(path_of("LOCK"), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    bool is_free = flock(fd, LOCK_EX | LOCK_NB) == 0;
    close(fd);
    return is_free;
}

/* Taken and given back again and again: the rings follow. */
static status
main_locks_again(void *arg)
{
    for (u32 i = 0; i < 5; i++) {
        struct io_file *file;
        EXPECT(ok(io_dir_lock(root)));
        EXPECT(ok(io_file_open(path_of("held"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
        EXPECT(!lock_is_free());
        io_dir_unlock(root);
        EXPECT(lock_is_free()); /* though the file is open */
        io_file_close(file);
        EXPECT(ok(io_file_unlink(path_of("held"))));
    }
    return ST_OK;
}

static void
a_directory_that_is_given_back_is_free_at_once(void **state)
{
    ring_run_main(1, main_locks_again, NULL);
    assert_true(lock_is_free());
}

static void
a_directory_belongs_to_one_node_at_a_time(void **state)
{
    _Atomic u32 locked = 0;
    struct io_node_config config = ring_config(2, main_locks, &locked);
    struct io_node *node;
    assert_true(ok(io_node_start(&config, &node)));
    while (atomic_load(&locked) < 2)
        usleep(1000);
    struct io_node_config second = ring_config(1, main_is_refused, NULL);
    status st = ring_run_config(&second);
    assert_int_equal(st.code, SC_LOCKED);
    io_node_stop(node);
    assert_true(ok(io_node_join(node)));
    assert_true(lock_is_free());
    atomic_store(&locked, 0);
    assert_true(ok(io_node_start(&config, &node)));
    io_node_stop(node);
    assert_true(ok(io_node_join(node)));
    assert_int_equal(atomic_load(&locked), 2);
}

/* ---- the hot path never falls to a worker ---- */

static char trace_root[256]; /* an instance of our own: nobody else's events are touched */

/* Returns -1 without tracefs. */
static int
trace_open(const char *name, int flags)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", trace_root, name);
    return open(path, flags | O_CLOEXEC);
}

static bool
trace_write(const char *name, const char *text)
{
    int fd = trace_open(name, O_WRONLY | O_TRUNC);
    if (fd < 0) return false;
    bool wrote = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return wrote;
}

static bool
trace_begin(void)
{
    static const char *const roots[] = {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"};
    for (u32 i = 0; i < ARRAY_COUNT(roots); i++) {
        snprintf(trace_root, sizeof(trace_root), "%s/instances/distkv-%d", roots[i], getpid());
        if (mkdir(trace_root, 0700) != 0) continue;
        if (trace_write("events/io_uring/io_uring_queue_async_work/enable", "1")) return true;
        rmdir(trace_root);
    }
    return false;
}

/* Lines look like "  shard-0-123  [000] ..... 1.0: io_uring_queue_async_work: ... opcode WRITE". */
static u32
trace_count(int thread_id, const char *opcode_a, const char *opcode_b)
{
    static char text[1 << 20];
    int fd = trace_open("trace", O_RDONLY);
    EXPECT(fd >= 0);
    size_t used = 0;
    ssize_t got;
    while (fd >= 0 && (got = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
        used += (size_t)got;
    if (fd >= 0) close(fd);
    text[used] = '\0';
    char who[32];
    snprintf(who, sizeof(who), "-%d ", thread_id);
    u32 count = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (strstr(line, "io_uring_queue_async_work:") == NULL || strstr(line, who) == NULL)
            continue;
        if (strstr(line, opcode_a) != NULL || strstr(line, opcode_b) != NULL) count++;
    }
    return count;
}

static status
main_hot(void *arg)
{
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("hot"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_fill(file, 1024 * BLOCK)));
    u8 *block = block_new(4 * BLOCK, 8);
    /* The fill was punted, which shows that we would see it. */
    EXPECT(trace_count(gettid(), "opcode FSYNC", "opcode FALLOCATE") >= 2);
    EXPECT(trace_write("trace", ""));
    for (u32 i = 0; i < 255; i++) {
        EXPECT(ok(io_file_write(file, IO_CLASS_LOG, block, 4 * BLOCK, i * 4 * BLOCK, true)));
        EXPECT(ok(io_file_read(file, IO_CLASS_READ, block, BLOCK, i * 4 * BLOCK)));
    }
    *(u32 *)arg = trace_count(gettid(), "opcode READ", "opcode WRITE");
    io_file_close(file);
    mem_free(io_budget(), block, 4 * BLOCK);
    EXPECT(ok(io_file_unlink(path_of("hot"))));
    return ST_OK;
}

static void
writes_inside_the_filled_range_never_go_to_a_worker(void **state)
{
    if (!trace_begin()) {
        print_message("skipped: no tracefs here (mount it and run as root)\n");
        skip();
    }
    u32 punts = 0;
    ring_run_main(1, main_hot, &punts);
    rmdir(trace_root);
    assert_int_equal(punts, 0);
}

/* ---- the kernel's cache ---- */

#define CACHED_GROUP KIB(256)
#define CACHED_BOUND MIB(32)

struct cached {
    struct io_op op;
    bool done;
};

static void
cached_done(struct io_op *op)
{
    CONTAINER_OF(op, struct cached, op)->done = true;
}

static MAY_YIELD void
cached_write(struct io_file *file, const u8 *data, u32 size, u64 offset)
{
    struct cached cached = {.op.done = cached_done};
    u64 dirty = file->cached.dirty_bytes;
    io_file_write_cached_start(file, &cached.op, IO_CLASS_LOG, data, size, offset);
    EXPECT(!cached.done); /* not inside the call, but it is written already */
    EXPECT(!file->direct || file->cached.dirty_bytes == MIN(dirty + size, CACHED_BOUND));
    while (!cached.done)
        fiber_yield();
    EXPECT(ok(cached.op.result));
}

static status
main_cached(void *arg)
{
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("cached"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_fill(file, MIB(40))));
    u8 *out = block_new(CACHED_GROUP, 3);
    u8 *in = block_new(CACHED_GROUP, 4);
    /* Of 40 MiB that no sync took, the last eight go to the disk. */
    for (u64 at = 0; at < MIB(40); at += CACHED_GROUP) {
        memset(out, (int)(at / CACHED_GROUP) + 1, CACHED_GROUP);
        cached_write(file, out, CACHED_GROUP, at);
    }
    /* Others see it before it was synced, and afterwards; direct writes stand beside it. */
    for (u32 synced = 0; synced < 2; synced++) {
        memset(out, 200 + (int)synced, BLOCK);
        EXPECT(ok(io_file_write(file, IO_CLASS_LOG, out, BLOCK, MIB(2), synced == 1)));
        for (u64 at = 0; at < MIB(40); at += MIB(1)) {
            u8 first = (u8)(at == MIB(2) ? 200 + synced : at / CACHED_GROUP + 1);
            EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, CACHED_GROUP, at)));
            EXPECT(in[0] == first && in[CACHED_GROUP - 1] == (u8)(at / CACHED_GROUP + 1));
        }
        EXPECT(ok(io_file_sync(file)));
        EXPECT(file->cached.dirty_bytes == 0);
    }
    cached_write(file, out, BLOCK, 0); /* there is room again */
    io_file_close(file);
    mem_free(io_budget(), out, CACHED_GROUP);
    mem_free(io_budget(), in, CACHED_GROUP);
    EXPECT(ok(io_file_unlink(path_of("cached"))));
    return ST_OK;
}

static void
what_the_cache_takes_is_done_at_once_and_bounded(void **state)
{
    ring_run_main(1, main_cached, NULL);
}

/* ---- no descriptor left ---- */

static void
descriptors_leave(const struct rlimit *before, u32 count)
{
    int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT(lowest >= 0 && close(lowest) == 0);
    struct rlimit limit = {.rlim_cur = (rlim_t)lowest + count, .rlim_max = before->rlim_max};
    EXPECT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static status
main_without_descriptors(void *arg)
{
    const struct rlimit *before = arg;
    struct io_file *file;
    EXPECT(ok(io_file_open(path_of("few"), IO_OPEN_WRITE | IO_OPEN_CREATE, &file)));
    EXPECT(ok(io_file_fill(file, 2 * BLOCK)));
    u8 *out = block_new(BLOCK, 3), *in = block_new(BLOCK, 4);
    descriptors_leave(before, 0);
    EXPECT(!ok(io_dir_lock(root)));
    struct io_file *another;
    EXPECT(!ok(io_file_open(path_of("another"), IO_OPEN_WRITE | IO_OPEN_CREATE, &another)));
    for (u32 i = 0; i < 2; i++) { /* and it is not tried again */
        struct cached cached = {.op.done = cached_done};
        io_file_write_cached_start(file, &cached.op, IO_CLASS_LOG, out, BLOCK, i * BLOCK);
        while (!cached.done)
            fiber_yield();
        EXPECT(ok(cached.op.result));
        EXPECT(file->cached.dirty_bytes == 0 && (!file->direct || file->cached.refused));
        EXPECT(setrlimit(RLIMIT_NOFILE, before) == 0);
    }
    descriptors_leave(before, 1); /* for the directory, and none for the lock in it */
    EXPECT(!ok(io_dir_lock(root)));
    EXPECT(setrlimit(RLIMIT_NOFILE, before) == 0);
    EXPECT(ok(io_dir_lock(root))); /* nothing of the attempts is left */
    io_dir_unlock(root);
    for (u32 i = 0; i < 2; i++) {
        EXPECT(ok(io_file_read(file, IO_CLASS_READ, in, BLOCK, i * BLOCK)));
        EXPECT(memcmp(in, out, BLOCK) == 0);
    }
    io_file_close(file);
    mem_free(io_budget(), out, BLOCK);
    mem_free(io_budget(), in, BLOCK);
    EXPECT(ok(io_file_unlink(path_of("few"))));
    return ST_OK;
}

static void
without_a_descriptor_the_cache_is_done_without_and_a_lock_is_refused(void **state)
{
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    ring_run_main(1, main_without_descriptors, &before);
}

static int
setup(void **state)
{
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof(root), "%s/distkv-file-XXXXXX", base != NULL ? base : "/tmp");
    return mkdtemp(root) == NULL;
}

static int
teardown(void **state)
{
    char lock[300];
    snprintf(lock, sizeof(lock), "%s/LOCK", root);
    unlink(lock);
    return rmdir(root);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read_back),
        cmocka_unit_test(reads_begin_and_end_at_any_unit),
        cmocka_unit_test(reads_of_units_that_stop_short_go_on),
        cmocka_unit_test(a_large_request_is_cut_and_put_together),
        cmocka_unit_test(what_the_kernel_left_over_is_asked_for_again),
        cmocka_unit_test(without_a_descriptor_there_is_no_memory_for_a_file),
        cmocka_unit_test(transfers_that_stop_short_go_on_where_they_stopped),
        cmocka_unit_test(many_requests_stay_under_the_limit_and_all_finish),
        cmocka_unit_test(a_disk_with_little_to_do_does_not_wait_for_the_turns_end),
        cmocka_unit_test(a_small_read_does_not_wait_behind_bulk),
        cmocka_unit_test(a_removed_file_goes_little_by_little),
        cmocka_unit_test(names_are_made_moved_listed_and_removed),
        cmocka_unit_test(without_memory_nothing_is_listed_or_opened_and_nothing_is_lost),
        cmocka_unit_test(files_in_memory_behave_alike),
        cmocka_unit_test(what_the_cache_takes_is_done_at_once_and_bounded),
        cmocka_unit_test(without_a_descriptor_the_cache_is_done_without_and_a_lock_is_refused),
        cmocka_unit_test(what_is_not_there_is_told_and_what_is_left_open_is_closed),
        cmocka_unit_test(a_directory_belongs_to_one_node_at_a_time),
        cmocka_unit_test(a_directory_that_is_given_back_is_free_at_once),
        cmocka_unit_test(writes_inside_the_filled_range_never_go_to_a_worker),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
