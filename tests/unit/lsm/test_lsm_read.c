/* SPDX-License-Identifier: MIT
 *
 * test_lsm_read.c -- reads without a fiber (lsm_read_start): what becomes of one while its key, its
 * table, its memory or its store changes before the block is there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/log.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/lsm_internal.h"

#define DIR  "/store"
#define KEYS 200u
/* The key that all tests are about. */
#define KEY 77u

struct world {
    struct sim *sim;
    struct sim_disk *disk;
    struct lsm_options options;
    struct lsm *lsm;
};

/* A read that has been started. */
struct reading {
    bool done;
    status st;
    u8 value[64];
    size_t value_size;
};

static struct bytes
key_make(u32 index, char *out)
{
    return BYTES(out, (size_t)snprintf(out, 32, "key-%u", index));
}

static void
write_value(struct world *w, u32 index, const void *value, size_t size, u64 version)
{
    char text[32];
    struct bytes key = key_make(index, text);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    batch.version = version;
    if (value != NULL)
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, size), 0));
    else
        CHECK(lsm_batch_delete(&batch, 0, hash_token(key), key));
    u64 seq;
    CHECK(ok(lsm_write(w->lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
}

static void
put(struct world *w, u32 index, const char *value)
{
    write_value(w, index, value, strlen(value), 0);
}

static void
arrived(void *arg, status st, struct lsm_value *value)
{
    struct reading *reading = arg;
    CHECK(!reading->done && fiber_self() == NULL);
    reading->done = true;
    reading->st = st;
    if (!ok(st)) return;
    CHECK(value->value.size <= sizeof(reading->value));
    memcpy(reading->value, value->value.data, value->value.size);
    reading->value_size = value->value.size;
    lsm_value_release(value);
}

static bool
start(struct world *w, u32 index, struct reading *reading)
{
    static char text[32]; /* stays until it is done */
    struct bytes key = key_make(index, text);
    *reading = (struct reading){.done = false};
    bool started = lsm_read_start(w->lsm, 0, hash_token(key), key, arrived, reading);
    CHECK(!reading->done); /* never from inside */
    return started;
}

static void
finish(struct reading *reading)
{
    while (!reading->done)
        fiber_sleep_ns(NS_PER_MS);
}

static bool
has_read(const struct reading *reading, const char *value)
{
    return ok(reading->st) && reading->value_size == strlen(value) &&
           memcmp(reading->value, value, reading->value_size) == 0;
}

/* What anybody reads now: value, or nothing at all. */
static void
check_now(struct world *w, const char *value)
{
    char text[32];
    struct bytes key = key_make(KEY, text);
    for (u32 i = 0; i < 2; i++) { /* from where it lies, then perhaps from the row cache */
        struct lsm_value out = {0};
        status st = lsm_get(w->lsm, NULL, 0, hash_token(key), key, &out);
        if (value == NULL) {
            CHECK(status_is(st, ST_NOT_FOUND));
            continue;
        }
        CHECK(ok(st) && bytes_equal(out.value, BYTES(value, strlen(value))));
        lsm_value_release(&out);
    }
}

static void
open_store(struct world *w)
{
    status st = io_dir_make(DIR);
    CHECK(ok(st) || status_is(st, ST_EXISTS));
    CHECK(ok(io_dir_sync("/")));
    struct lsm_place place = {.dir = DIR, .token_first = 0, .token_last = UINT64_MAX};
    CHECK(ok(lsm_open(&place, &w->options, &w->lsm)));
}

/* A store with all keys in one table, and nothing in a cache. */
static void
open_cold(struct world *w)
{
    open_store(w);
    for (u32 i = 0; i < KEYS; i++)
        put(w, i, "old");
    CHECK(ok(lsm_close(w->lsm)));
    open_store(w);
}

static u64
table_reads(const struct world *w)
{
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    return stats.table_reads;
}

static void
run(u64 latency_ms, status (*body)(void *arg), struct world *w)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    options.disk.latency_ns_min = options.disk.latency_ns_max = latency_ms * NS_PER_MS;
    *w = (struct world){.sim = sim_new(&options)};
    w->disk = sim_node_disk(sim_node_new(w->sim, "10.0.0.1"));
    lsm_options_default(&w->options);
    w->options.memory_bytes = MIB(24);
    w->options.disk_reserve_bytes = 0;
    w->options.scrub_bytes_per_s = 0;
    w->options.blob_threshold_bytes = KIB(4);
    assert_true(ok(sim_run(w->sim, 1, body, w)));
    sim_free(w->sim);
}

/* ---- what it reads ---- */

static status
plain_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    u64 before = table_reads(w);
    CHECK(start(w, KEY, &reading));
    finish(&reading);
    CHECK(has_read(&reading, "old") && table_reads(w) == before + 1);
    CHECK(!start(w, KEY, &reading));  /* its row is in the cache: nothing is waited for */
    CHECK(!start(w, KEYS, &reading)); /* nor here: the filter says no */

    static const u8 large[KIB(8)];
    write_value(w, KEYS + 1, large, sizeof(large), 0);
    CHECK(!start(w, KEYS + 1, &reading)); /* in a memtable */
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(start(w, KEYS + 1, &reading)); /* the table knows where its value lies */
    finish(&reading);
    CHECK(status_is(reading.st, ST_WOULD_WAIT));
    return lsm_close(w->lsm);
}

static status
large_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    static const u8 large[KIB(100)];
    w->options.blob_threshold_bytes = KIB(512);
    open_store(w);
    write_value(w, KEY, large, sizeof(large), 0);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(!start(w, KEY, &reading)); /* its block is for who can wait for it in pieces */
    return lsm_close(w->lsm);
}

static void
one_block_is_read_and_more_is_left_to_fibers(void **state)
{
    (void)state;
    struct world w;
    run(1, plain_body, &w);
    run(1, large_body, &w);
}

static status
versions_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    w->options.outside_versions = true;
    open_store(w);
    static const char *const values[] = {"newest", "older"};
    for (u32 i = 0; i < 2; i++) {
        write_value(w, KEY, values[i], strlen(values[i]), 100 - i);
        CHECK(ok(lsm_flush(w->lsm)));
    }
    CHECK(ok(lsm_close(w->lsm)));
    open_store(w);
    CHECK(start(w, KEY, &reading)); /* the newer table has the older version */
    finish(&reading);
    CHECK(status_is(reading.st, ST_WOULD_WAIT));
    check_now(w, "newest");
    return lsm_close(w->lsm);
}

static void
a_second_table_is_left_to_fibers(void **state)
{
    (void)state;
    struct world w;
    run(1, versions_body, &w);
}

/* A put of a key whose row is cached writes the row: this one leaves none. */
static MAY_YIELD void
put_cold(struct world *w, const char *value)
{
    write_value(w, KEY, NULL, 0, 0);
    put(w, KEY, value);
}

/* A try in front of it has looked already; the read begins where that had to stop, unless the runs
 * are others by then. */
static status
tried_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    for (u32 i = 0; i < 20; i++) {
        char text[32], value[32];
        struct bytes key = key_make(KEY, text);
        struct lsm_value out = {0};
        u64 before = table_reads(w);
        status st = lsm_get_try(w->lsm, 0, hash_token(key), key, &out);
        CHECK(status_is(st, ST_WOULD_WAIT) && table_reads(w) == before);
        snprintf(value, sizeof(value), i == 0 ? "old" : "new %u", i);
        if (i % 2 == 0) {
            CHECK(start(w, KEY, &reading));
            finish(&reading);
            CHECK(has_read(&reading, value) && table_reads(w) == before + 1);
        }
        snprintf(value, sizeof(value), "new %u", i + 1);
        put_cold(w, value);
        CHECK(ok(lsm_flush(w->lsm)));
        if (i % 4 == 1) CHECK(ok(lsm_compact(w->lsm)));
        if (i % 2 == 0) continue;
        CHECK(start(w, KEY, &reading)); /* what was found out in front of that is of no use */
        finish(&reading);
        CHECK(has_read(&reading, value));
        put_cold(w, value);
        CHECK(ok(lsm_flush(w->lsm)));
    }
    return lsm_close(w->lsm);
}

static void
what_a_try_has_found_out_counts_for_the_same_runs_only(void **state)
{
    (void)state;
    struct world w;
    run(1, tried_body, &w);
}

/* ---- what happens meanwhile ---- */

static status
overwritten_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    CHECK(start(w, KEY, &reading));
    put(w, KEY, "new");
    finish(&reading);
    CHECK(has_read(&reading, "old")); /* it began before */
    check_now(w, "new");              /* and has left no row behind */
    return lsm_close(w->lsm);
}

static status
deleted_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    CHECK(start(w, KEY, &reading));
    write_value(w, KEY, NULL, 0, 0);
    finish(&reading);
    CHECK(has_read(&reading, "old"));
    check_now(w, NULL);
    return lsm_close(w->lsm);
}

static status
range_deleted_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    CHECK(start(w, KEY, &reading));
    struct lsm_batch batch;
    u64 seq;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete_range(&batch, 0, 0, UINT64_MAX));
    CHECK(ok(lsm_write(w->lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
    finish(&reading);
    CHECK(status_is(reading.st, ST_NOT_FOUND) || has_read(&reading, "old"));
    check_now(w, NULL);
    return lsm_close(w->lsm);
}

/* The table leaves the tree, and with the read its file goes. */
static status
compacted_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    put(w, KEY, "new");
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(start(w, KEY + 1, &reading));
    CHECK(ok(lsm_compact(w->lsm)));
    finish(&reading);
    CHECK(has_read(&reading, "old"));
    check_now(w, "new");
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

static status
closed_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    CHECK(start(w, KEY, &reading));
    status st = lsm_close(w->lsm);
    CHECK(has_read(&reading, "old")); /* the end has waited for it */
    return st;
}

static void
what_happens_to_a_key_while_it_is_read_is_seen_by_later_reads(void **state)
{
    (void)state;
    status (*const bodies[])(void *arg) = {overwritten_body, deleted_body, range_deleted_body,
                                           compacted_body};
    for (u32 i = 0; i < ARRAY_COUNT(bodies); i++) {
        struct world w;
        run(50, bodies[i], &w);
    }
}

static void
the_end_of_a_store_waits_for_reads(void **state)
{
    (void)state;
    struct world w;
    run(50, closed_body, &w);
}

/* ---- what fails ---- */

/* A flip in each sector from 100 on, of files whose names begin so. */
static void
spoil_kind(struct world *w, const char *path, const char *kind)
{
    u64 size;
    if (strncmp(path, kind, strlen(kind)) != 0) return;
    CHECK(ok(sim_disk_file_size(w->disk, path, &size)));
    for (u64 at = 100; at < KIB(8) && at < size / 2; at += 512)
        CHECK(ok(sim_disk_flip(w->disk, path, at, 1)));
}

static void
spoil(void *arg, const char *path)
{
    spoil_kind(arg, path, DIR "/t");
}

static status
damaged_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    open_cold(w);
    sim_fail_at(w->sim, SIM_POINT_READ, 0, 1, ST_IO_ERROR);
    CHECK(start(w, KEY, &reading));
    finish(&reading);
    CHECK(status_is(reading.st, ST_IO_ERROR));
    sim_disk_each_file(w->disk, spoil, w);
    CHECK(start(w, KEY, &reading));
    finish(&reading);
    CHECK(status_is(reading.st, ST_CORRUPT));
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.corruptions == 1 && stats.damaged_files == 1);
    return lsm_close(w->lsm);
}

static void
a_block_that_cannot_be_read_or_is_damaged_is_never_an_answer(void **state)
{
    (void)state;
    struct world w;
    run(1, damaged_body, &w);
}

/* What it is called in the directory; there is one. */
static char spoiled_blob[64];

static void
spoil_blob(void *arg, const char *path)
{
    spoil_kind(arg, path, DIR "/b");
    if (strncmp(path, DIR "/b", sizeof(DIR "/b") - 1) == 0)
        (void)snprintf(spoiled_blob, sizeof(spoiled_blob), "%s", path + sizeof(DIR "/") - 1);
}

/* By the file, and by the store that met it. */
static bool
is_told(const struct world *w, u32 times)
{
    char line[160];
    (void)snprintf(line, sizeof(line),
                   "damaged file met dir=" DIR " file=%s while=reading times=%u", spoiled_blob,
                   times);
    bool by_store = sim_log_contains(w->sim, line);
    (void)snprintf(line, sizeof(line), "\" met=%u", times);
    CHECK(by_store == sim_log_contains(w->sim, line));
    return by_store;
}

static void
check_blob_is_refused(struct world *w)
{
    char text[32];
    struct bytes key = key_make(KEY, text);
    struct lsm_value out = {0};
    CHECK(status_is(lsm_get(w->lsm, NULL, 0, hash_token(key), key, &out), ST_CORRUPT));
}

static status
damaged_blob_body(void *arg)
{
    struct world *w = arg;
    static const u8 large[KIB(6)];
    open_store(w);
    write_value(w, KEY, large, sizeof(large), 0);
    CHECK(ok(lsm_close(w->lsm)));
    open_store(w);
    spoiled_blob[0] = '\0';
    sim_disk_each_file(w->disk, spoil_blob, w);
    CHECK(spoiled_blob[0] == 'b');
    for (u32 i = 0; i < 25; i++)
        check_blob_is_refused(w);
    char named[128];
    (void)snprintf(named, sizeof(named),
                   "blob file is damaged file=" DIR "/%s offset=", spoiled_blob);
    CHECK(is_told(w, 1) && sim_log_contains(w->sim, named));
    for (u32 i = 2; i <= 25; i++)
        CHECK(!is_told(w, i));
    fiber_sleep_ns(LOG_SELDOM_NS);
    check_blob_is_refused(w);
    CHECK(is_told(w, 26));
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.corruptions == 26 && stats.damaged_files == 1);
    return lsm_close(w->lsm);
}

static void
a_damaged_value_that_is_read_often_is_told_now_and_then_by_the_name_of_its_file(void **state)
{
    (void)state;
    struct world w;
    run(1, damaged_blob_body, &w);
}

/* Each allocation of a read is refused in turn. */
static status
refused_body(void *arg)
{
    struct world *w = arg;
    struct reading reading;
    u32 refused_at_start = 0, refused_later = 0;
    bool refused = true;
    open_store(w);
    for (u64 n = 0; refused; n++) {
        CHECK(ok(lsm_close(w->lsm)));
        open_store(w);
        put(w, KEY, "old");
        CHECK(ok(lsm_flush(w->lsm)));
        fiber_sleep_ns(10 * NS_PER_S); /* whoever works in the background has done */
        u64 used = w->lsm->budget.used_bytes;
        sim_fail_at(w->sim, SIM_POINT_ALLOC, n, 1, ST_NO_MEMORY);
        bool started = start(w, KEY, &reading);
        if (started) finish(&reading);
        refused = sim_failed(w->sim);
        sim_faults_clear(w->sim);
        if (!started || status_is(reading.st, ST_NO_MEMORY)) {
            *(started ? &refused_later : &refused_at_start) += 1;
            CHECK(w->lsm->budget.used_bytes == used);
        } else {
            CHECK(has_read(&reading, "old"));
        }
        check_now(w, "old");
        CHECK(lsm_check(w->lsm));
    }
    CHECK(refused_at_start >= 2 && refused_later >= 1); /* itself, its buffer; the block */
    return lsm_close(w->lsm);
}

static void
whatever_allocation_of_a_read_is_refused_nothing_is_lost(void **state)
{
    (void)state;
    struct world w;
    run(1, refused_body, &w);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_block_is_read_and_more_is_left_to_fibers),
        cmocka_unit_test(a_second_table_is_left_to_fibers),
        cmocka_unit_test(what_a_try_has_found_out_counts_for_the_same_runs_only),
        cmocka_unit_test(what_happens_to_a_key_while_it_is_read_is_seen_by_later_reads),
        cmocka_unit_test(the_end_of_a_store_waits_for_reads),
        cmocka_unit_test(a_block_that_cannot_be_read_or_is_damaged_is_never_an_answer),
        cmocka_unit_test(
            a_damaged_value_that_is_read_often_is_told_now_and_then_by_the_name_of_its_file),
        cmocka_unit_test(whatever_allocation_of_a_read_is_refused_nothing_is_lost),
    };
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* run one by its name */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
