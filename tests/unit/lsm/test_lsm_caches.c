/* SPDX-License-Identifier: MIT
 *
 * test_lsm_caches.c -- the memory of a store goes to the cache that makes use of it: rows that fit
 * end up in the row cache, in whatever order they are asked for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/cache.h"
#include "lsm/lsm_internal.h"

#define DIR           "/store"
#define VALUE_BYTES   100u
#define BALANCE_EVERY 500u

struct world {
    u32 keys;
    u32 passes;
    bool at_random;
    u64 row_percent; /* of the last pass: what the row cache answered */
};

static struct bytes
key_make(u32 index, char *out)
{
    return BYTES(out, (size_t)snprintf(out, 32, "key-%u", index));
}

static void
put(struct lsm *lsm, u32 index)
{
    static const u8 value[VALUE_BYTES];
    char text[32];
    struct bytes key = key_make(index, text);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, VALUE_BYTES), 0));
    u64 seq;
    status st = ST_OVERLOADED;
    while (status_is(st, ST_OVERLOADED)) {
        st = lsm_write(lsm, &batch, &seq);
        if (status_is(st, ST_OVERLOADED)) fiber_sleep_ns(NS_PER_MS);
    }
    CHECK(ok(st));
    lsm_batch_deinit(&batch);
}

static void
get(struct lsm *lsm, u32 index)
{
    char text[32];
    struct bytes key = key_make(index, text);
    struct lsm_value value = {0};
    status st = lsm_get_try(lsm, 0, hash_token(key), key, &value);
    if (status_is(st, ST_WOULD_WAIT)) st = lsm_get(lsm, NULL, 0, hash_token(key), key, &value);
    CHECK(ok(st));
    lsm_value_release(&value);
}

static status
passes_body(void *arg)
{
    struct world *w = arg;
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(16);
    options.memtable_bytes = KIB(256);
    options.durability = LSM_DURABILITY_NONE;
    options.disk_reserve_bytes = 0;
    options.scrub_bytes_per_s = 0;
    status st = io_dir_make(DIR);
    if (!ok(st)) return st;
    struct lsm_place place = {.dir = DIR, .token_first = 0, .token_last = UINT64_MAX};
    struct lsm *lsm;
    st = lsm_open(&place, &options, &lsm);
    if (!ok(st)) return st;
    for (u32 i = 0; i < w->keys; i++)
        put(lsm, i);
    st = lsm_compact(lsm);
    if (!ok(st)) return st;

    struct prng prng;
    prng_init(&prng, 1);
    struct lsm_stats before, after;
    for (u32 pass = 0; pass < w->passes; pass++) {
        lsm_stats_get(lsm, &before);
        for (u32 i = 0; i < w->keys; i++) {
            get(lsm, w->at_random ? (u32)prng_below(&prng, w->keys) : i);
            if (i % BALANCE_EVERY == 0) lsm_caches_balance(lsm);
        }
    }
    lsm_stats_get(lsm, &after);
    w->row_percent = (after.gets_row_cache - before.gets_row_cache) * 100 / w->keys;
    CHECK(row_cache_check(lsm->row_cache) && block_cache_check(lsm->block_cache));
    return lsm_close(lsm);
}

static u64
row_percent(u32 keys, u32 passes, bool at_random)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    sim_node_new(sim, "10.0.0.1");
    struct world w = {.keys = keys, .passes = passes, .at_random = at_random};
    assert_true(ok(sim_run(sim, 1, passes_body, &w)));
    sim_free(sim);
    return w.row_percent;
}

/* About 5 MB of rows, half of what there is for both caches. */
static void
rows_that_fit_are_all_rows(void **state)
{
    (void)state;
    assert_in_range(row_percent(22000, 4, false), 99, 100);
    assert_in_range(row_percent(22000, 10, true), 99, 100);
}

/* About 8 MB: they fit when the row cache has nearly everything, and the blocks do not. */
static void
rows_that_nearly_fit_push_out_the_blocks(void **state)
{
    (void)state;
    assert_in_range(row_percent(36000, 12, false), 99, 100);
    assert_in_range(row_percent(36000, 12, true), 97, 100);
}

/* ---- what one does not use is lent ---- */

#define FILLED_BLOCK_BYTES 8192u
#define FILLED_ROW_BYTES   900u

struct filler {
    struct lsm *lsm;
    u64 rows, blocks; /* so many have come */
};

static struct cache_stats
rows_of(const struct filler *f)
{
    struct cache_stats stats;
    row_cache_stats(f->lsm->row_cache, &stats);
    return stats;
}

static struct cache_stats
blocks_of(const struct filler *f)
{
    struct cache_stats stats;
    block_cache_stats(f->lsm->block_cache, &stats);
    return stats;
}

static u64
both_limits(const struct filler *f)
{
    return rows_of(f).limit_bytes + blocks_of(f).limit_bytes;
}

/* A miss as reads make them: what it brings, and now and then a look at the limits. */
static MAY_YIELD void
fill(struct filler *f, u64 count, bool row, bool block)
{
    static const u8 value[FILLED_ROW_BYTES];
    u64 both = both_limits(f);
    for (u64 i = 0; i < count; i++) {
        if (row) {
            char text[32];
            struct entry entry = {
                .key = key_make((u32)f->rows++, text),
                .value = BYTES(value, sizeof(value)),
                .version = 1,
                .kind = ENTRY_PUT,
            };
            row_cache_put(f->lsm->row_cache, 0, hash_key(entry.key, 0), &entry);
        }
        if (block) {
            u64 offset = f->blocks++ * FILLED_BLOCK_BYTES;
            struct block *b = block_new(&f->lsm->budget, UINT64_MAX, offset, FILLED_BLOCK_BYTES);
            CHECK(b != NULL);
            memset(b->data, 0, FILLED_BLOCK_BYTES);
            block_cache_insert(f->lsm->block_cache, b);
            block_cache_unpin(b);
        }
        if (i % 50 != 0) continue;
        lsm_caches_trim(f->lsm);
        CHECK(both_limits(f) <= both + both / 100); /* indexes of caches and the like come and go */
        CHECK(rows_of(f).bytes + blocks_of(f).bytes <= both_limits(f));
    }
}

static MAY_YIELD struct filler
filler_open(void)
{
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(16);
    options.memtable_bytes = KIB(256);
    options.disk_reserve_bytes = 0;
    status st = io_dir_make(DIR);
    CHECK(ok(st));
    struct lsm_place place = {.dir = DIR, .token_first = 0, .token_last = UINT64_MAX};
    struct filler f = {0};
    st = lsm_open(&place, &options, &f.lsm);
    CHECK(ok(st));
    return f;
}

static status
rows_late_body(void *arg)
{
    (void)arg;
    struct filler f = filler_open();
    u64 share = rows_of(&f).limit_bytes;
    fill(&f, 3000, false, true);
    CHECK(blocks_of(&f).bytes > both_limits(&f) * 8 / 10);
    /* Each miss brings a block as well, and many times as much of them. */
    fill(&f, 20000, true, true);
    CHECK(rows_of(&f).bytes > share * 9 / 10);
    CHECK(rows_of(&f).limit_bytes > share * 9 / 10);
    return lsm_close(f.lsm);
}

/* Blocks fill in a moment and rows take long: those have their share all the same when they come. */
static void
what_rows_do_not_use_yet_is_lent_to_the_blocks(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, rows_late_body, NULL)));
}

static status
blocks_late_body(void *arg)
{
    (void)arg;
    struct filler f = filler_open();
    u64 share = blocks_of(&f).limit_bytes;
    fill(&f, 30000, true, false);
    CHECK(rows_of(&f).bytes > both_limits(&f) * 8 / 10);
    fill(&f, 3000, true, true);
    CHECK(blocks_of(&f).bytes > share * 9 / 10);
    CHECK(blocks_of(&f).limit_bytes > share * 9 / 10);
    return lsm_close(f.lsm);
}

static void
what_blocks_do_not_use_yet_is_lent_to_the_rows(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, blocks_late_body, NULL)));
}

static MAY_YIELD void
hit_rows(struct filler *f, u32 count)
{
    u64 before = rows_of(f).hits;
    for (u64 i = f->rows; rows_of(f).hits < before + count; i--) {
        CHECK(i > 0);
        char text[32];
        struct entry entry;
        struct bytes key = key_make((u32)i - 1, text);
        (void)row_cache_get(f->lsm->row_cache, 0, hash_key(key, 0), key, &entry);
    }
}

static MAY_YIELD void
hit_blocks(struct filler *f, u32 count)
{
    u64 before = blocks_of(f).hits;
    for (u64 i = f->blocks; blocks_of(f).hits < before + count; i--) {
        CHECK(i > 0);
        struct block *b =
            block_cache_get(f->lsm->block_cache, UINT64_MAX, (i - 1) * FILLED_BLOCK_BYTES);
        if (b != NULL) block_cache_unpin(b);
    }
}

static status
gains_body(void *arg)
{
    (void)arg;
    struct filler f = filler_open();
    fill(&f, 20000, true, true);
    lsm_caches_balance(f.lsm);
    u64 share = f.lsm->cache_row_share;
    hit_rows(&f, 10);
    lsm_caches_balance(f.lsm); /* a few hits: a small step */
    u64 small = f.lsm->cache_row_share - share;
    CHECK(small > 0);
    fill(&f, 1000, true, true);
    share = f.lsm->cache_row_share;
    hit_rows(&f, 500);
    lsm_caches_balance(f.lsm);
    CHECK(f.lsm->cache_row_share - share >= 3 * small);
    fill(&f, 2000, true, true);
    share = f.lsm->cache_row_share;
    hit_blocks(&f, 100);
    lsm_caches_balance(f.lsm); /* each hit is one of a few bytes, and rows have many */
    CHECK(share - f.lsm->cache_row_share >= 3 * small);
    return lsm_close(f.lsm);
}

static void
the_border_moves_fast_where_one_gains_much_more(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, gains_body, NULL)));
}

/* ---- rows and memtables ---- */

static MAY_YIELD status
get_aimed(struct lsm *lsm, struct lsm_value *out)
{
    struct bytes key = BYTES("k", 1);
    struct lsm_aim aim = {.keyspace = 0};
    aim.token = hash_token_and_key(key, &aim.key_hash);
    lsm_aim_1(lsm, &aim);
    lsm_aim_2(lsm, &aim, false);
    lsm_aim_3(&aim, false);
    *out = (struct lsm_value){0};
    status st = lsm_get_aimed(lsm, &aim, key, out);
    return status_is(st, ST_WOULD_WAIT) ? lsm_get(lsm, NULL, 0, aim.token, key, out) : st;
}

/* expected: NULL, not found. rows: of which the cache is to answer. */
static MAY_YIELD void
expect_aimed(struct lsm *lsm, const char *expected, u64 rows)
{
    struct lsm_stats before, after;
    lsm_stats_get(lsm, &before);
    struct lsm_value value;
    status st = get_aimed(lsm, &value);
    CHECK(expected == NULL ? status_is(st, ST_NOT_FOUND) : ok(st));
    CHECK(expected == NULL || bytes_equal(value.value, BYTES(expected, strlen(expected))));
    lsm_value_release(&value);
    lsm_stats_get(lsm, &after);
    CHECK(after.gets - before.gets == 1);
    CHECK(after.gets_row_cache - before.gets_row_cache == rows);
}

static MAY_YIELD void
write_one(struct lsm *lsm, const char *value, u64 version)
{
    struct bytes key = BYTES("k", 1);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    batch.version = version;
    CHECK(value != NULL
              ? lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, strlen(value)), 0)
              : lsm_batch_delete_range(&batch, 0, 0, UINT64_MAX));
    u64 seq;
    status st = lsm_write(lsm, &batch, &seq);
    CHECK(ok(st));
    lsm_batch_deinit(&batch);
}

static MAY_YIELD struct lsm *
rows_open(void)
{
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(16);
    options.disk_reserve_bytes = 0;
    options.outside_versions = true;
    status st = io_dir_make(DIR);
    CHECK(ok(st));
    struct lsm_place place = {.dir = DIR, .token_first = 0, .token_last = UINT64_MAX};
    struct lsm *lsm;
    st = lsm_open(&place, &options, &lsm);
    CHECK(ok(st));
    return lsm;
}

static MAY_YIELD void
flush(struct lsm *lsm)
{
    status st = lsm_flush(lsm);
    CHECK(ok(st));
}

static status
rows_first_body(void *arg)
{
    (void)arg;
    struct lsm *lsm = rows_open();
    write_one(lsm, "new", 20);
    flush(lsm);
    expect_aimed(lsm, "new", 0); /* from its table */
    expect_aimed(lsm, "new", 1);
    write_one(lsm, "older", 10); /* came late: in memory, and of no account */
    expect_aimed(lsm, "new", 0); /* looked up again */
    expect_aimed(lsm, "new", 1);
    write_one(lsm, "newest", 30); /* writes the row, too */
    expect_aimed(lsm, "newest", 1);
    flush(lsm);
    expect_aimed(lsm, "newest", 1); /* what was hot before is hot after */
    write_one(lsm, NULL, 40);
    expect_aimed(lsm, NULL, 0);
    return lsm_close(lsm);
}

/* What a row tells is the newest, whatever older versions memtables have: it is looked at first. */
static void
a_row_is_looked_at_before_memtables(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, rows_first_body, NULL)));
}

static status
rows_inherited_body(void *arg)
{
    (void)arg;
    struct lsm *lsm = rows_open();
    write_one(lsm, "read", 10);
    expect_aimed(lsm, "read", 0);
    flush(lsm);
    expect_aimed(lsm, "read", 1);

    row_cache_clear(lsm->row_cache);
    write_one(lsm, "not read", 20);
    flush(lsm);
    expect_aimed(lsm, "not read", 0);

    row_cache_clear(lsm->row_cache);
    write_one(lsm, "read", 30);
    expect_aimed(lsm, "read", 0);
    write_one(lsm, "written again", 31);
    flush(lsm);
    expect_aimed(lsm, "written again", 1);
    return lsm_close(lsm);
}

/* A memtable answers without a row; so that the disk is not asked for each key that it had, those
 * that were read get one when it goes. */
static void
what_was_read_in_a_memtable_has_a_row_when_that_is_flushed(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, rows_inherited_body, NULL)));
}

static status
not_inherited_body(void *arg)
{
    (void)arg;
    struct lsm *lsm = rows_open();
    write_one(lsm, "deleted", 10);
    expect_aimed(lsm, "deleted", 0);
    write_one(lsm, NULL, 20);
    flush(lsm);
    expect_aimed(lsm, NULL, 0);

    write_one(lsm, "high", 50);
    flush(lsm);
    row_cache_clear(lsm->row_cache);
    write_one(lsm, "low", 40); /* came late */
    expect_aimed(lsm, "high", 0);
    row_cache_clear(lsm->row_cache);
    flush(lsm);
    expect_aimed(lsm, "high", 0);
    return lsm_close(lsm);
}

static void
what_is_not_the_newest_has_no_row_when_its_memtable_is_flushed(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, not_inherited_body, NULL)));
}

static void
flush_beside(void *arg)
{
    flush(arg);
}

/* Until a flush is under way, and has not ended. */
static MAY_YIELD void
flush_begin(struct lsm *lsm)
{
    status st = fiber_spawn(FIBER_BACKGROUND, "flush", flush_beside, lsm);
    CHECK(ok(st));
    while (lsm->keyspaces[0].flushing == NULL)
        fiber_yield();
}

static status
written_meanwhile_body(void *arg)
{
    (void)arg;
    struct lsm *lsm = rows_open();
    write_one(lsm, "old", 10);
    expect_aimed(lsm, "old", 0);
    flush_begin(lsm);
    write_one(lsm, "new", 20);
    flush(lsm); /* that one, and another: the key has been read */
    expect_aimed(lsm, "new", 1);

    row_cache_clear(lsm->row_cache);
    write_one(lsm, "old", 30);
    expect_aimed(lsm, "old", 0);
    flush_begin(lsm);
    write_one(lsm, NULL, 40);
    while (lsm->keyspaces[0].flushing != NULL)
        fiber_yield();
    expect_aimed(lsm, NULL, 0);
    return lsm_close(lsm);
}

static void
what_is_written_or_deleted_while_a_memtable_is_flushed_counts(void **state)
{
    (void)state;
    assert_true(ok(sim_run_main(1, 1, written_meanwhile_body, NULL)));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_that_fit_are_all_rows),
        cmocka_unit_test(rows_that_nearly_fit_push_out_the_blocks),
        cmocka_unit_test(what_rows_do_not_use_yet_is_lent_to_the_blocks),
        cmocka_unit_test(what_blocks_do_not_use_yet_is_lent_to_the_rows),
        cmocka_unit_test(the_border_moves_fast_where_one_gains_much_more),
        cmocka_unit_test(a_row_is_looked_at_before_memtables),
        cmocka_unit_test(what_was_read_in_a_memtable_has_a_row_when_that_is_flushed),
        cmocka_unit_test(what_is_not_the_newest_has_no_row_when_its_memtable_is_flushed),
        cmocka_unit_test(what_is_written_or_deleted_while_a_memtable_is_flushed_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
