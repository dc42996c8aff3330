/* SPDX-License-Identifier: MIT
 *
 * test_lsm_versions.c -- versions from outside, in any order: what a replica sees.
 *
 * The model of a key is the highest version that came, and what it was. Writes draw theirs from
 * around a clock, so many are below what is there, some come twice, and some lie far above; ranges
 * are deleted at such versions, too. Flushes, merges, openings and snapshots come between, and
 * gets, scans, counts and lsm_newest are compared.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../fewer.h"
#include "base/hash.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/lsm_internal.h"
#include "lsm/range_list.h"

#define DIR       "/store"
#define KEYS      24u
#define HISTORY   16u
#define SNAPSHOTS 3u

struct cell {
    u64 version, expire_ms;
    u32 id;        /* of the value; 0: none */
    bool by_range; /* deleted by one */
};

struct change {
    bool range;
    u32 key;
    struct cell cell;
    u64 token_first, token_last;
};

struct world {
    struct sim *sim;
    struct sim_disk *disk;
    struct lsm_options options;
    struct lsm *lsm;
    struct prng prng;
    u64 seq;
    u64 clock;
    u32 id_last;
    struct cell now[KEYS];
    struct change history[HISTORY];
    u32 history_count;
    struct lsm_snapshot *snapshots[SNAPSHOTS];
    struct cell seen[SNAPSHOTS][KEYS];
    u64 hidden; /* writes that nobody can see */
};

static void
world_init(struct world *w, u64 seed)
{
    *w = (struct world){.clock = 1000};
    struct sim_options options;
    sim_options_default(&options, seed);
    options.buggify = seed % 2 == 0;
    w->sim = sim_new(&options);
    w->disk = sim_node_disk(sim_node_new(w->sim, "10.0.0.1"));
    prng_init(&w->prng, seed);
    lsm_options_default(&w->options);
    w->options.memory_bytes = MIB(24);
    w->options.memtable_bytes = KIB(256);
    w->options.log_segment_bytes = KIB(256);
    w->options.disk_reserve_bytes = 0;
    w->options.scrub_bytes_per_s = 0;
    w->options.blob_threshold_bytes = seed % 3 == 0 ? 64 : 4096;
    w->options.outside_versions = true;
}

static status
open_store(struct world *w)
{
    status st = io_dir_make(DIR);
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    st = io_dir_sync("/");
    if (!ok(st)) return st;
    struct lsm_place place = {.dir = DIR, .token_first = 0, .token_last = UINT64_MAX};
    return lsm_open(&place, &w->options, &w->lsm);
}

static struct bytes
key_of(u32 index)
{
    static char texts[KEYS][16];
    int size = snprintf(texts[index], sizeof(texts[index]), index % 4 == 0 ? "{t}%u" : "key-%u",
                        (unsigned)index);
    return BYTES(texts[index], size);
}

static struct bytes
value_of(u32 id)
{
    static u8 value[512];
    memset(value, (int)id, sizeof(value));
    store_u32(value, id);
    return BYTES(value, 4 + id % 300);
}

static status
write_change(struct world *w, const struct change *change)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    struct bytes key = key_of(change->key);
    if (change->range)
        CHECK(lsm_batch_delete_range(&batch, 0, change->token_first, change->token_last));
    else if (change->cell.id == 0)
        CHECK(lsm_batch_delete(&batch, 0, hash_token(key), key));
    else
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, value_of(change->cell.id),
                            change->cell.expire_ms));
    batch.version = change->cell.version;
    status st = lsm_write(w->lsm, &batch, &w->seq);
    lsm_batch_deinit(&batch);
    return st;
}

static void
model_apply(struct world *w, const struct change *change)
{
    for (u32 i = 0; i < KEYS; i++) {
        u64 token = hash_token(key_of(i));
        if (change->range ? token < change->token_first || token > change->token_last
                          : i != change->key)
            continue;
        if (change->cell.version > w->now[i].version)
            w->now[i] = change->cell;
        else
            w->hidden++;
    }
}

static struct change
change_draw(struct world *w)
{
    if (w->history_count > 0 && prng_chance(&w->prng, 1, 10))
        return w->history[prng_below(&w->prng, MIN(w->history_count, HISTORY))];
    w->clock += 1;
    u64 at = w->clock;
    if (prng_chance(&w->prng, 1, 2)) at -= prng_below(&w->prng, 40);
    if (prng_chance(&w->prng, 1, 10)) at += prng_below(&w->prng, 40);
    struct change change = {.key = (u32)prng_below(&w->prng, KEYS)};
    change.cell.version = at << 20 | ++w->id_last; /* each its own */
    if (prng_chance(&w->prng, 1, 12)) {
        u64 a = hash_token(key_of((u32)prng_below(&w->prng, KEYS)));
        u64 b = hash_token(key_of((u32)prng_below(&w->prng, KEYS)));
        change.range = change.cell.by_range = true;
        change.token_first = prng_chance(&w->prng, 1, 6) ? 0 : MIN(a, b);
        change.token_last = prng_chance(&w->prng, 1, 6) ? UINT64_MAX : MAX(a, b);
    } else if (prng_chance(&w->prng, 3, 4)) {
        change.cell.id = w->id_last;
        if (prng_chance(&w->prng, 1, 4))
            change.cell.expire_ms = io_wall_ms() + prng_below(&w->prng, 100);
    }
    w->history[w->history_count++ % HISTORY] = change;
    return change;
}

static bool
lives(const struct cell *cell, u64 wall_ms)
{
    return cell->id != 0 && (cell->expire_ms == 0 || cell->expire_ms > wall_ms);
}

/* No time passes while nothing sleeps, so the clock needs no leeway; but a read of the disk may. */
static void
check_get(struct world *w, u32 key, const struct lsm_snapshot *snapshot, const struct cell *cell)
{
    struct bytes name = key_of(key);
    struct lsm_value value;
    bool lived = lives(cell, io_wall_ms());
    status st = ST_WOULD_WAIT;
    if (snapshot == NULL && prng_chance(&w->prng, 1, 2))
        st = lsm_get_try(w->lsm, 0, hash_token(name), name, &value);
    if (status_is(st, ST_WOULD_WAIT))
        st = lsm_get(w->lsm, snapshot, 0, hash_token(name), name, &value);
    if (lived != lives(cell, io_wall_ms())) {
        if (ok(st)) lsm_value_release(&value);
        return;
    }
    CHECK(ok(st) == lived);
    if (!ok(st)) {
        CHECK(status_is(st, ST_NOT_FOUND));
        /* Of what a range has deleted there may be no trace, or an older tombstone. */
        CHECK(cell->by_range ? value.version <= cell->version : value.version == cell->version);
        return;
    }
    CHECK(value.version == cell->version && value.expire_ms == cell->expire_ms);
    CHECK(bytes_equal(value.value, value_of(cell->id)));
    lsm_value_release(&value);
}

/* As it is stored, whatever the clock says. What was there without a wait stays, too. */
static MAY_YIELD void
check_whole(struct world *w, u32 key)
{
    struct bytes name = key_of(key);
    struct lsm_value value;
    const struct cell *cell = &w->now[key];
    status st = ST_WOULD_WAIT;
    if (prng_chance(&w->prng, 1, 2)) {
        struct lsm_stats before, after;
        lsm_stats_get(w->lsm, &before);
        fiber_no_yield_begin();
        st = lsm_get_whole_try(w->lsm, 0, hash_token(name), name, &value);
        fiber_no_yield_end();
        lsm_stats_get(w->lsm, &after);
        CHECK(after.gets == before.gets + !status_is(st, ST_WOULD_WAIT));
        if (ok(st) && prng_chance(&w->prng, 1, 8)) CHECK(ok(lsm_flush(w->lsm)));
    }
    if (status_is(st, ST_WOULD_WAIT)) st = lsm_get_whole(w->lsm, 0, hash_token(name), name, &value);
    CHECK(ok(st) == (cell->id != 0));
    if (!ok(st)) {
        CHECK(status_is(st, ST_NOT_FOUND));
        return;
    }
    CHECK(value.version == cell->version && value.expire_ms == cell->expire_ms);
    CHECK(bytes_equal(value.value, value_of(cell->id)));
    lsm_value_release(&value);
}

static void
check_newest(struct world *w, u32 key)
{
    struct bytes name = key_of(key);
    u64 version = w->now[key].version;
    u64 floors[] = {0, version, version == 0 ? 0 : version - 1, version + 1, UINT64_MAX};
    u64 floor = floors[prng_below(&w->prng, ARRAY_COUNT(floors))];
    u64 newest = 0, seq = 0;
    status st = lsm_newest_try(w->lsm, 0, hash_token(name), name, floor, &newest, &seq);
    if (status_is(st, ST_WOULD_WAIT))
        st = lsm_newest(w->lsm, 0, hash_token(name), name, floor, &newest, &seq);
    CHECK(ok(st) == (version > floor));
    CHECK(ok(st) ? newest == version : status_is(st, ST_NOT_FOUND));
    if (!ok(st)) return;
    CHECK(seq > 0 && seq <= lsm_seq_last(w->lsm));
    struct lsm_value value;
    if (!lives(&w->now[key], io_wall_ms()) ||
        !ok(lsm_get(w->lsm, NULL, 0, hash_token(name), name, &value)))
        return;
    CHECK(value.seq == seq);
    lsm_value_release(&value);
}

static void
check_scan(struct world *w, struct lsm_snapshot *snapshot, const struct cell *cells)
{
    u64 before = io_wall_ms();
    struct lsm_scan *scan;
    CHECK(ok(lsm_scan_open(w->lsm, snapshot, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan)));
    bool found[KEYS] = {false};
    u64 token;
    struct bytes name;
    struct lsm_value value;
    status st;
    while (ok(st = lsm_scan_next(scan, true, &token, &name, &value))) {
        u32 key = KEYS;
        for (u32 i = 0; i < KEYS; i++)
            if (bytes_equal(name, key_of(i))) key = i;
        CHECK(key < KEYS && !found[key]);
        found[key] = true;
        CHECK(value.version == cells[key].version);
        CHECK(bytes_equal(value.value, value_of(cells[key].id)));
    }
    CHECK(status_is(st, ST_END));
    lsm_scan_close(scan);
    for (u32 i = 0; i < KEYS; i++)
        if (lives(&cells[i], before) == lives(&cells[i], io_wall_ms()))
            CHECK(found[i] == lives(&cells[i], before));
}

static MAY_YIELD void
snapshots_change(struct world *w)
{
    u32 i = (u32)prng_below(&w->prng, SNAPSHOTS);
    if (w->snapshots[i] != NULL) {
        lsm_snapshot_close(w->snapshots[i]);
        w->snapshots[i] = NULL;
        return;
    }
    w->snapshots[i] = lsm_snapshot_open(w->lsm);
    CHECK(w->snapshots[i] != NULL);
    memcpy(w->seen[i], w->now, sizeof(w->now));
}

static MAY_YIELD void
reopen(struct world *w)
{
    for (u32 i = 0; i < SNAPSHOTS; i++) {
        if (w->snapshots[i] != NULL) lsm_snapshot_close(w->snapshots[i]);
        w->snapshots[i] = NULL;
    }
    CHECK(ok(lsm_close(w->lsm)));
    CHECK(ok(open_store(w)));
    u64 highest = 0;
    for (u32 i = 0; i < KEYS; i++)
        highest = MAX(highest, w->now[i].version);
    CHECK(lsm_version_last(w->lsm) >= highest);
}

static status
random_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 step = 0; step < 700; step++) {
        if (prng_chance(&w->prng, 1, 2)) {
            struct change change = change_draw(w);
            status st = write_change(w, &change);
            /* Ranges stay, and a rare path lowers how many there may be. */
            CHECK(ok(st) || (change.range && status_is(st, ST_OVERLOADED)));
            if (ok(st)) model_apply(w, &change);
        }
        if (prng_chance(&w->prng, 1, 25)) CHECK(ok(lsm_flush(w->lsm)));
        if (prng_chance(&w->prng, 1, 60)) CHECK(ok(lsm_compact(w->lsm)));
        if (prng_chance(&w->prng, 1, 100)) reopen(w);
        if (prng_chance(&w->prng, 1, 20)) snapshots_change(w);
        if (prng_chance(&w->prng, 1, 5)) fiber_sleep_ns(prng_below(&w->prng, 20) * NS_PER_MS);
        u32 key = (u32)prng_below(&w->prng, KEYS);
        check_get(w, key, NULL, &w->now[key]);
        check_newest(w, key);
        check_whole(w, key);
        for (u32 i = 0; i < SNAPSHOTS; i++)
            if (w->snapshots[i] != NULL) check_get(w, key, w->snapshots[i], &w->seen[i][key]);
        if (prng_chance(&w->prng, 1, 20)) check_scan(w, NULL, w->now);
        u32 at = (u32)prng_below(&w->prng, SNAPSHOTS);
        if (w->snapshots[at] != NULL && prng_chance(&w->prng, 1, 10))
            check_scan(w, w->snapshots[at], w->seen[at]);
    }
    reopen(w);
    check_scan(w, NULL, w->now);
    for (u32 key = 0; key < KEYS; key++)
        check_get(w, key, NULL, &w->now[key]);
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

static void
the_highest_version_wins_in_whatever_order_they_come(void **state)
{
    (void)state;
    u64 hidden = 0;
    for (u64 seed = 1; seed <= FEWER(60); seed++) {
        struct world w;
        world_init(&w, seed);
        assert_true(ok(sim_run(w.sim, 1, random_body, &w)));
        hidden += w.hidden;
        sim_free(w.sim);
    }
    assert_true(hidden > FEWER(1000));
}

/* ---- small stories ---- */

static void
write_cell(struct world *w, u32 key, u64 version, u32 id, u64 expire_ms)
{
    struct change change = {.key = key, .cell = {version, expire_ms, id}};
    CHECK(ok(write_change(w, &change)));
}

static void
expect(struct world *w, u32 key, u64 version, u32 id)
{
    struct cell cell = {.version = version, .id = id};
    check_get(w, key, NULL, &cell);
}

static status
late_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    write_cell(w, 1, 100, 0, 0);
    write_cell(w, 2, 100, 7, io_wall_ms() + 5);
    fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(ok(lsm_compact(w->lsm)));
    reopen(w);
    CHECK(ok(lsm_compact(w->lsm)));
    write_cell(w, 1, 90, 8, 0);
    write_cell(w, 2, 90, 9, 0);
    expect(w, 1, 100, 0);
    expect(w, 2, 100, 0);

    /* Allowed, it goes with the next merge, but not while an older one lies in memory. */
    lsm_purge_allow(w->lsm, 0, 200, UINT64_MAX);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(lsm_compact(w->lsm)));
    expect(w, 1, 100, 0);
    expect(w, 2, 100, 0);
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.table_entries == 0);
    return lsm_close(w->lsm);
}

static void
what_hides_older_versions_stays_until_none_can_come(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, late_body, &w)));
    sim_free(w.sim);
}

/* What expires later than is allowed stays, expired or not; and what was allowed is taken back. */
static status
forget_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    u64 soon = io_wall_ms() + 5;
    write_cell(w, 1, 100, 7, soon);
    fiber_sleep_ns(10 * NS_PER_MS);
    lsm_purge_allow(w->lsm, 0, 200, soon);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(lsm_compact(w->lsm)));
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.table_entries == 1);
    lsm_purge_allow(w->lsm, 0, 201, soon + 1);
    CHECK(lsm_purge_below(w->lsm, 0) == 201);
    lsm_purge_forget(w->lsm);
    CHECK(lsm_purge_below(w->lsm, 0) == 0);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(lsm_compact(w->lsm)));
    write_cell(w, 1, 90, 8, 0);
    expect(w, 1, 100, 0);
    lsm_purge_allow(w->lsm, 0, 150, soon + 1); /* less than before, but that was taken back */
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(lsm_compact(w->lsm)));
    expect(w, 1, 100, 0);
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.table_entries == 0);
    return lsm_close(w->lsm);
}

static void
what_may_be_purged_can_be_taken_back(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, forget_body, &w)));
    sim_free(w.sim);
}

static status
marks_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    u64 marks[4] = {0}, token = hash_token(key_of(1));
    lsm_marks_set(w->lsm, 0, marks, 56);
    write_cell(w, 1, 100, 7, 0);
    for (u32 i = 0; i < 256; i++)
        CHECK((marks[i / 64] >> i % 64 & 1) == (i == token >> 56));
    memset(marks, 0, sizeof(marks));
    struct change range = {.range = true,
                           .cell = {.version = 50},
                           .token_first = 3ull << 56,
                           .token_last = 70ull << 56};
    CHECK(ok(write_change(w, &range)));
    for (u32 i = 0; i < 256; i++)
        CHECK((marks[i / 64] >> i % 64 & 1) == (i >= 3 && i <= 70));
    lsm_marks_set(w->lsm, 0, NULL, 0);
    memset(marks, 0, sizeof(marks));
    write_cell(w, 1, 101, 7, 0);
    for (u32 i = 0; i < 4; i++)
        CHECK(marks[i] == 0);
    return lsm_close(w->lsm);
}

static void
marks_tell_where_was_written(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, marks_body, &w)));
    sim_free(w.sim);
}

/* The upper half of the tokens is not wanted any more, and then it is again. */
static u32
entries_in(struct world *w, u64 first, u64 last)
{
    struct lsm_scan *scan;
    CHECK(ok(lsm_scan_open(w->lsm, NULL, 0, first, BYTES(NULL, 0), last, &scan)));
    lsm_scan_whole(scan);
    u32 count = 0;
    u64 token;
    struct bytes key;
    struct lsm_value value;
    while (ok(lsm_scan_next(scan, true, &token, &key, &value)))
        count++;
    lsm_scan_close(scan);
    return count;
}

static status
drop_body(void *arg)
{
    struct world *w = arg;
    const u64 middle = (u64)1 << 63;
    CHECK(ok(open_store(w)));
    u32 upper = 0, one = UINT32_MAX;
    for (u32 key = 0; key < KEYS; key++) {
        write_cell(w, key, 100, 7, 0);
        if (hash_token(key_of(key)) < middle) continue;
        upper++;
        one = key;
    }
    CHECK(upper > 0 && upper < KEYS);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(lsm_compact(w->lsm)));
    write_cell(w, one, 120, 0, 0); /* deleted, above what lies in the last level */
    CHECK(ok(lsm_flush(w->lsm)));
    u64 bits = 2;
    lsm_drop_set(w->lsm, 0, &bits, 63);
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (entries_in(w, middle, UINT64_MAX) > 0 && io_now_ns() < until_ns)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(entries_in(w, middle, UINT64_MAX) == 0);
    CHECK(entries_in(w, 0, middle - 1) == KEYS - upper);
    bits = 0;
    lsm_drop_set(w->lsm, 0, &bits, 63);
    struct cell none = {0};
    check_get(w, one, NULL, &none);
    write_cell(w, one, 90, 8, 0); /* nothing of what was there hides it */
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(lsm_compact(w->lsm)));
    expect(w, one, 90, 8);
    lsm_drop_set(w->lsm, 0, NULL, 0);
    return lsm_close(w->lsm);
}

static void
what_nobody_wants_goes_and_does_not_hide_what_comes_later(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, drop_body, &w)));
    sim_free(w.sim);
}

/* One table, nothing below it, and an owner that does not mend: the one merge that begins after the call
 * leaves nothing, as lsm_drop_set says. */
static status
drop_alone_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    lsm_mends_set(w->lsm, 0, false);
    for (u32 key = 0; key < KEYS; key++)
        write_cell(w, key, 100, 7, 0);
    CHECK(ok(lsm_flush(w->lsm)));
    u64 bits = 3;
    lsm_drop_set(w->lsm, 0, &bits, 63);
    u64 until_ns = io_now_ns() + 10 * NS_PER_S;
    while (entries_in(w, 0, UINT64_MAX) > 0 && io_now_ns() < until_ns)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(entries_in(w, 0, UINT64_MAX) == 0);
    lsm_drop_set(w->lsm, 0, NULL, 0);
    return lsm_close(w->lsm);
}

static void
a_table_of_which_nothing_is_wanted_is_not_moved(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, drop_alone_body, &w)));
    sim_free(w.sim);
}

/* A range at version 50, its neighbour at 120 right after: as one range at 120 they would delete
 * what had version 100 under the first. */
static status
neighbours_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    write_cell(w, 1, 100, 7, 0);
    write_cell(w, 2, 110, 8, 0);
    u64 middle = hash_token(key_of(1));
    struct change low = {.range = true, .cell = {.version = 50}, .token_last = middle};
    struct change high = {.range = true,
                          .cell = {.version = 120},
                          .token_first = middle + 1,
                          .token_last = UINT64_MAX};
    CHECK(ok(write_change(w, &low)));
    CHECK(ok(write_change(w, &high)));
    CHECK(ok(lsm_compact(w->lsm)));
    expect(w, 1, 100, 7);
    reopen(w);
    expect(w, 1, 100, 7);
    return lsm_close(w->lsm);
}

static void
neighbouring_ranges_of_different_versions_stay_two(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, neighbours_body, &w)));
    sim_free(w.sim);
}

static status
newest_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 key = 0; key < KEYS; key++)
        write_cell(w, key, 100 + key, 1 + key, 0);
    CHECK(ok(lsm_compact(w->lsm)));
    reopen(w);
    struct lsm_stats before, after;
    lsm_stats_get(w->lsm, &before);
    u64 version, seq;
    for (u32 key = 0; key < KEYS; key++)
        CHECK(status_is(
            lsm_newest_try(w->lsm, 0, hash_token(key_of(key)), key_of(key), 1000, &version, &seq),
            ST_NOT_FOUND));
    /* A key that no filter knows is not looked for on the disk either. */
    struct bytes other = BYTES_LITERAL("never written");
    status st = lsm_newest(w->lsm, 0, hash_token(other), other, 0, &version, &seq);
    CHECK(status_is(st, ST_NOT_FOUND));
    lsm_stats_get(w->lsm, &after);
    CHECK(after.table_reads == before.table_reads);
    CHECK(after.gets == before.gets);

    st = lsm_newest_try(w->lsm, 0, hash_token(key_of(3)), key_of(3), 50, &version, &seq);
    CHECK(status_is(st, ST_WOULD_WAIT));
    CHECK(ok(lsm_newest(w->lsm, 0, hash_token(key_of(3)), key_of(3), 50, &version, &seq)));
    CHECK(version == 103);
    return lsm_close(w->lsm);
}

static void
asking_for_a_higher_version_reads_no_disk_in_the_usual_case(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, newest_body, &w)));
    sim_free(w.sim);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_highest_version_wins_in_whatever_order_they_come),
        cmocka_unit_test(what_hides_older_versions_stays_until_none_can_come),
        cmocka_unit_test(what_may_be_purged_can_be_taken_back),
        cmocka_unit_test(marks_tell_where_was_written),
        cmocka_unit_test(what_nobody_wants_goes_and_does_not_hide_what_comes_later),
        cmocka_unit_test(a_table_of_which_nothing_is_wanted_is_not_moved),
        cmocka_unit_test(neighbouring_ranges_of_different_versions_stay_two),
        cmocka_unit_test(asking_for_a_higher_version_reads_no_disk_in_the_usual_case),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
