/* SPDX-License-Identifier: MIT
 *
 * test_lsm_edges.c -- the engine where one of its limits meets another: thousands of deleted
 * ranges and a crash, a full disk and a restart, a long call and the end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../fewer.h"
#include "base/crc.h"
#include "base/hash.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/log_format.h"
#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"
#include "lsm/piece_io.h"
#include "lsm/range_list.h"

#define DIR "/store"

struct world {
    struct sim *sim;
    struct sim_disk *disk;
    struct lsm_options options;
    struct lsm *lsm;
    u32 keys; /* written by the body before */
    u64 seq;
    u64 read_bytes; /* by the disk, while the body looked */
    u64 kill_after_ns;
    u32 end_value_bytes; /* of what fills the log */
    u32 deleted;         /* keys, from the first on */
};

static void
world_init_disk(struct world *w, u64 seed, u32 evict_chance)
{
    *w = (struct world){0};
    struct sim_options options;
    sim_options_default(&options, seed);
    options.disk.evict_chance = evict_chance;
    w->sim = sim_new(&options);
    w->disk = sim_node_disk(sim_node_new(w->sim, "10.0.0.1"));
    lsm_options_default(&w->options);
    w->options.memory_bytes = MIB(24);
    w->options.memtable_bytes = KIB(256);
    w->options.log_segment_bytes = KIB(256);
    w->options.disk_reserve_bytes = 0;
    w->options.scrub_bytes_per_s = 0;
}

static void
world_init(struct world *w, u64 seed)
{
    world_init_disk(w, seed, 0);
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

static u32
key_make(u32 index, char *out)
{
    return (u32)snprintf(out, 32, "key-%u", index);
}

static status
put(struct world *w, u32 index, u32 value_size)
{
    static u8 value[KIB(4)];
    CHECK(value_size <= sizeof(value));
    char text[32];
    struct bytes key = BYTES(text, key_make(index, text));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, value_size), 0));
    status st = lsm_write(w->lsm, &batch, &w->seq);
    lsm_batch_deinit(&batch);
    return st;
}

static status
get(struct world *w, u32 index, u64 *seq_out)
{
    char text[32];
    struct bytes key = BYTES(text, key_make(index, text));
    struct lsm_value value = {0};
    status st = lsm_get(w->lsm, NULL, 0, hash_token(key), key, &value);
    if (seq_out != NULL) *seq_out = value.seq;
    if (ok(st)) lsm_value_release(&value);
    return st;
}

static status
delete_all(struct world *w)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete_range(&batch, 0, 0, UINT64_MAX));
    status st = lsm_write(w->lsm, &batch, &w->seq);
    lsm_batch_deinit(&batch);
    return st;
}

/* ---- deleted ranges ---- */

static status
ranges_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 round = 0; round < 2; round++) {
        CHECK(ok(put(w, 1, 10)));
        for (u32 i = 0; i < LEVELS_RANGES_MAX - 100; i++)
            CHECK(ok(delete_all(w)));
        if (round == 0) CHECK(ok(lsm_flush(w->lsm)));
    }
    CHECK(ok(put(w, 2, 10)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

static status
ranges_reopen(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    CHECK(status_is(get(w, 1, NULL), ST_NOT_FOUND));
    CHECK(ok(get(w, 2, NULL)));
    CHECK(ok(delete_all(w)));
    CHECK(ok(put(w, 2, 10)));
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

static void
as_many_ranges_as_were_accepted_are_recovered(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    (void)ok(sim_run(w.sim, 1, ranges_body, &w));
    assert_true(sim_crashed(w.sim));
    sim_faults_clear(w.sim);
    assert_true(ok(sim_run(w.sim, 1, ranges_reopen, &w)));
    assert_true(ok(sim_run(w.sim, 1, ranges_reopen, &w)));
    sim_free(w.sim);
}

static status
endless_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    u32 refused = 0;
    for (u32 i = 0; i < 5 * LEVELS_RANGES_MAX; i++) {
        status st = delete_all(w);
        if (ok(st)) continue;
        CHECK(status_is(st, ST_OVERLOADED));
        CHECK(++refused < 1000);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    return lsm_close(w->lsm);
}

static void
everything_can_be_deleted_again_and_again(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 2);
    assert_true(ok(sim_run(w.sim, 1, endless_body, &w)));
    sim_free(w.sim);
}

static status
number_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 round = 0; round < 2; round++) {
        CHECK(ok(put(w, 1, 10)));
        if (round == 1) CHECK(ok(lsm_flush(w->lsm)));
        CHECK(ok(delete_all(w)));
        u64 seq = 0;
        CHECK(status_is(get(w, 1, &seq), ST_NOT_FOUND));
        CHECK(seq == w->seq);
    }
    return lsm_close(w->lsm);
}

static void
what_a_range_deletes_answers_with_its_number(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 3);
    assert_true(ok(sim_run(w.sim, 1, number_body, &w)));
    sim_free(w.sim);
}

/* A merge drops what a range has deleted, and the range with it, while a scan goes on that began
 * before: it still reads the tables of then, and what they hold stays deleted. */
static status
range_under_a_scan_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 i = 0; i < 200; i++)
        CHECK(ok(put(w, i, KIB(2))));
    CHECK(ok(lsm_flush(w->lsm)));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete_range(&batch, 0, UINT64_MAX / 2 + 1, UINT64_MAX));
    CHECK(ok(lsm_write(w->lsm, &batch, &w->seq)));
    lsm_batch_deinit(&batch);
    CHECK(ok(put(w, 200, KIB(2)))); /* or there was nothing to flush */
    CHECK(ok(lsm_flush(w->lsm)));
    struct lsm_scan *scan;
    CHECK(ok(lsm_scan_open(w->lsm, NULL, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan)));
    lsm_scan_much(scan); /* or it opens the tables of now when it has become long */
    u64 token = 0;
    struct bytes key;
    struct lsm_value value;
    CHECK(ok(lsm_scan_next(scan, true, &token, &key, &value)));
    CHECK(w->lsm->levels->table_entries == 201);
    CHECK(ok(lsm_compact(w->lsm)));
    CHECK(w->lsm->levels->table_entries < 150);
    status st;
    u32 found = 1;
    while (ok(st = lsm_scan_next(scan, true, &token, &key, &value))) {
        CHECK(token <= UINT64_MAX / 2 || (key.size == 7 && memcmp(key.data, "key-200", 7) == 0));
        found++;
    }
    CHECK(status_is(st, ST_END) && found == w->lsm->levels->table_entries);
    lsm_scan_close(scan);
    return lsm_close(w->lsm);
}

static void
what_a_range_has_deleted_stays_so_for_who_scans_while_it_is_merged_away(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1);
    assert_true(ok(sim_run(w.sim, 1, range_under_a_scan_body, &w)));
    sim_free(w.sim);
}

/* ---- a full disk ---- */

static status
full_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    fiber_sleep_ns(NS_PER_S);
    sim_disk_capacity_set(w->disk, 1);
    status st = ST_OK;
    while (ok(st) && w->keys < 20000) {
        st = put(w, w->keys, 200);
        if (ok(st)) w->keys++;
    }
    CHECK(status_is(st, ST_NO_SPACE));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

static status
full_reopen(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    for (u32 i = 0; i < w->keys; i++)
        CHECK(ok(get(w, i, NULL)));
    sim_disk_capacity_set(w->disk, GIB(1));
    fiber_sleep_ns(5 * NS_PER_S);
    for (u32 i = 0; i < 5000; i++)
        CHECK(ok(put(w, i, 200)));
    for (u32 i = 0; i < w->keys; i++)
        CHECK(ok(get(w, i, NULL)));
    return lsm_close(w->lsm);
}

static void
a_store_on_a_full_disk_opens_and_reads(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 4);
    (void)ok(sim_run(w.sim, 1, full_body, &w));
    assert_true(sim_crashed(w.sim));
    sim_faults_clear(w.sim);
    sim_disk_capacity_set(w.disk, 1);
    assert_true(ok(sim_run(w.sim, 1, full_reopen, &w)));
    sim_free(w.sim);
}

/* ---- deletes on a full disk ---- */

static status
delete_one(struct world *w, u32 index)
{
    char text[32];
    struct bytes key = BYTES(text, key_make(index, text));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete(&batch, 0, hash_token(key), key));
    status st = lsm_write(w->lsm, &batch, &w->seq);
    lsm_batch_deinit(&batch);
    return st;
}

static void
disk_fill(struct world *w)
{
    sim_disk_capacity_set(w->disk, sim_disk_used_bytes(w->disk));
}

/* Until no write is taken; what was is durable. */
static void
write_until_full(struct world *w)
{
    for (u32 i = 0; i < 4000; i++) {
        CHECK(ok(put(w, w->keys, KIB(1))));
        w->keys++;
    }
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    fiber_sleep_ns(5 * NS_PER_S); /* what was merged is gone */
    disk_fill(w);
    u64 last_ns = io_now_ns();
    while (io_now_ns() < last_ns + 20 * NS_PER_S) {
        status st = put(w, w->keys, KIB(1));
        if (ok(st)) {
            w->keys++;
            last_ns = io_now_ns();
            continue;
        }
        CHECK(status_is(st, ST_NO_SPACE));
        fiber_sleep_ns(NS_PER_S / 2); /* segments that were kept for a new life pay for a flush */
    }
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
}

static void
writes_resume(struct world *w)
{
    u64 end = io_now_ns() + 60 * NS_PER_S;
    status st = put(w, 0, 10);
    while (!ok(st) && io_now_ns() < end) {
        CHECK(status_is(st, ST_NO_SPACE));
        fiber_sleep_ns(NS_PER_S / 10);
        st = put(w, 0, 10);
    }
    CHECK(ok(st) && ok(get(w, 0, NULL)));
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.state == LSM_STATE_OK);
    fiber_sleep_ns(5 * NS_PER_S); /* and all of the room is there */
}

static status
delete_all_when_full_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    write_until_full(w);
    CHECK(status_is(put(w, 0, 10), ST_NO_SPACE));
    u64 used = sim_disk_used_bytes(w->disk);
    CHECK(ok(delete_all(w)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    CHECK(status_is(get(w, 1, NULL), ST_NOT_FOUND));
    if (w->kill_after_ns != 0) {
        fiber_sleep_ns(w->kill_after_ns);
        sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
        fiber_sleep_ns(10 * NS_PER_S);
    }
    writes_resume(w);
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.table_bytes < KIB(64) && sim_disk_used_bytes(w->disk) < used / 2);
    for (u32 i = 1; i < w->keys; i++)
        CHECK(status_is(get(w, i, NULL), ST_NOT_FOUND));
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

static void
world_init_full(struct world *w, u64 seed)
{
    world_init(w, seed);
    w->options.codec_upper = w->options.codec_last = LSM_CODEC_NONE; /* values are zeros */
}

static void
deleting_everything_makes_room_on_a_full_disk(void **state)
{
    (void)state;
    const enum lsm_durability durabilities[] = {LSM_DURABILITY_GROUP, LSM_DURABILITY_PERIODIC};
    for (u32 i = 0; i < ARRAY_COUNT(durabilities); i++) {
        struct world w;
        world_init_full(&w, 40 + i);
        w.options.durability = durabilities[i];
        assert_true(ok(sim_run(w.sim, 1, delete_all_when_full_body, &w)));
        assert_true(sim_mark_count(w.sim, "lsm.write.deletes_when_full") > 0);
        sim_free(w.sim);
    }
}

static status
all_deleted_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    for (u32 i = 0; i < w->keys; i++)
        CHECK(status_is(get(w, i, NULL), ST_NOT_FOUND));
    writes_resume(w);
    for (u32 i = 1; i < w->keys; i++)
        CHECK(status_is(get(w, i, NULL), ST_NOT_FOUND));
    return lsm_close(w->lsm);
}

/* The process is killed at any moment while the room comes back, and the disk stays as full as it
 * is. */
static void
what_was_deleted_on_a_full_disk_stays_deleted(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(24); seed++) {
        struct world w;
        world_init_full(&w, 50 + seed);
        w.kill_after_ns = seed * seed * 5 * NS_PER_MS;
        (void)ok(sim_run(w.sim, 1, delete_all_when_full_body, &w));
        assert_true(sim_crashed(w.sim));
        sim_faults_clear(w.sim);
        assert_true(ok(sim_run(w.sim, 1, all_deleted_body, &w)));
        sim_free(w.sim);
    }
}

/* Another program takes all but half of the reserve. */
static status
delete_keys_when_full_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    while (w->keys < 8000) {
        CHECK(ok(put(w, w->keys, KIB(1))));
        w->keys++;
    }
    CHECK(ok(lsm_compact(w->lsm)));
    u64 reserve = w->options.disk_reserve_bytes;
    sim_disk_capacity_set(w->disk, sim_disk_used_bytes(w->disk) + reserve * 3 / 4);
    fiber_sleep_ns(3 * NS_PER_S);
    CHECK(status_is(put(w, 0, 10), ST_NO_SPACE));
    for (u32 i = 0; i < w->keys; i++)
        if (i % 4 != 0) CHECK(ok(delete_one(w, i)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    writes_resume(w);
    for (u32 i = 0; i < w->keys; i++)
        CHECK(status_is(get(w, i, NULL), i % 4 != 0 ? ST_NOT_FOUND : ST_OK));
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

static void
deleting_keys_makes_room_on_a_full_disk(void **state)
{
    (void)state;
    struct world w;
    world_init_full(&w, 80);
    w.options.disk_reserve_bytes = MIB(12);
    assert_true(ok(sim_run(w.sim, 1, delete_keys_when_full_body, &w)));
    assert_true(sim_mark_count(w.sim, "lsm.state.deletes_merged") > 0);
    sim_free(w.sim);
}

/* As Raft's log does: a few keys, again and again. */
static status
put_of_reserve(struct world *w, u32 index)
{
    char text[32];
    struct bytes key = BYTES(text, key_make(index % 16, text));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_put(&batch, KEYSPACE_SYSTEM, hash_token(key), key, key, 0));
    batch.of_reserve = true;
    status st = lsm_write(w->lsm, &batch, &w->seq);
    lsm_batch_deinit(&batch);
    return ok(st) ? lsm_wait_durable(w->lsm, w->seq) : st;
}

/* However much of it comes, it leaves to deletes and merges what they need. */
static status
reserve_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    while (w->keys < 16000) {
        CHECK(ok(put(w, w->keys, KIB(1))));
        w->keys++;
    }
    CHECK(ok(lsm_compact(w->lsm)));
    u64 reserve = w->options.disk_reserve_bytes;
    /* Segments that were kept for a new life go at first. */
    for (u32 i = 0; i < 10 && !status_is(put(w, 0, 10), ST_NO_SPACE); i++) {
        sim_disk_capacity_set(w->disk, sim_disk_used_bytes(w->disk) + reserve * 3 / 4);
        fiber_sleep_ns(3 * NS_PER_S);
    }
    u64 used = sim_disk_used_bytes(w->disk), most = used, flushes = w->lsm->stats.flushes;
    for (u32 i = 0; i < 2000; i++) {
        CHECK(status_is(put(w, 0, 10), ST_NO_SPACE));
        status st = put_of_reserve(w, i);
        for (u32 tries = 0; status_is(st, ST_NO_SPACE) && tries < 500; tries++) {
            fiber_sleep_ns(10 * NS_PER_MS);
            st = put_of_reserve(w, i);
        }
        CHECK(ok(st));
        most = MAX(most, sim_disk_used_bytes(w->disk));
    }
    CHECK(lsm_is_stuck(w->lsm) && !lsm_reserve_is_stuck(w->lsm));
    CHECK(most <= used + reserve / 4 + 2 * w->options.log_segment_bytes);
    CHECK(w->lsm->stats.flushes > flushes + 5);
    for (u32 i = 0; i < w->keys; i++)
        if (i % 4 != 0) CHECK(ok(delete_one(w, i)));
    writes_resume(w);
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

/* Where nothing has room any more, that has none either. */
static status
no_reserve_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    fiber_sleep_ns(NS_PER_S);
    disk_fill(w);
    fiber_sleep_ns(2 * NS_PER_S);
    status st = ST_OK;
    u32 taken = 0;
    for (; ok(st) && taken < 20000; taken++)
        st = put_of_reserve(w, taken);
    CHECK(status_is(st, ST_NO_SPACE) && lsm_reserve_is_stuck(w->lsm));
    fiber_sleep_ns(5 * NS_PER_S);
    CHECK(ok(delete_one(w, 0)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_disk_capacity_set(w->disk, GIB(1));
    fiber_sleep_ns(3 * NS_PER_S);
    CHECK(ok(put_of_reserve(w, 0)) && ok(put(w, 0, 10)));
    return lsm_close(w->lsm);
}

static void
what_is_of_the_reserve_leaves_most_of_it(void **state)
{
    (void)state;
    const enum lsm_durability durabilities[] = {LSM_DURABILITY_GROUP, LSM_DURABILITY_PERIODIC};
    for (u32 i = 0; i < ARRAY_COUNT(durabilities); i++) {
        struct world w;
        world_init_full(&w, 84 + i);
        w.options.durability = durabilities[i];
        w.options.disk_reserve_bytes = MIB(12);
        w.options.memtable_bytes = MIB(1); /* the log asks late for a flush */
        assert_true(ok(sim_run(w.sim, 1, reserve_body, &w)));
        assert_true(sim_mark_count(w.sim, "lsm.write.of_reserve") > 0);
        sim_free(w.sim);
        world_init_full(&w, 86 + i);
        w.options.durability = durabilities[i];
        w.options.disk_reserve_bytes = MIB(12);
        assert_true(ok(sim_run(w.sim, 1, no_reserve_body, &w)));
        sim_free(w.sim);
    }
}

/* The log ends before a memtable is full: what does not free leaves its end alone. */
static status
log_end_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    fiber_sleep_ns(NS_PER_S);
    disk_fill(w);
    status st = ST_OK;
    while (ok(st) && w->keys < 20000) {
        st = put(w, w->keys, w->end_value_bytes);
        if (ok(st)) w->keys++;
    }
    CHECK(status_is(st, ST_NO_SPACE) && w->lsm->state == LSM_STATE_OK);
    /* What the last of them left of a block goes to the disk with it. */
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    CHECK(ok(delete_one(w, 0)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    CHECK(status_is(get(w, 0, NULL), ST_NOT_FOUND) && ok(get(w, 1, NULL)));
    sim_disk_capacity_set(w->disk, GIB(1));
    fiber_sleep_ns(3 * NS_PER_S);
    CHECK(ok(put(w, 0, 10)));
    return lsm_close(w->lsm);
}

static void
the_log_keeps_its_end_for_deletes(void **state)
{
    (void)state;
    for (u32 bytes = KIB(1); bytes < KIB(4); bytes += 300) {
        struct world w;
        world_init_full(&w, 81);
        w.options.memtable_bytes = MIB(4);
        w.end_value_bytes = bytes;
        assert_true(ok(sim_run(w.sim, 1, log_end_body, &w)));
        assert_true(sim_mark_count(w.sim, "lsm.log.last_room_kept") > 0);
        sim_free(w.sim);
    }
}

/* What fills the disk is the log itself, and it ends before a memtable is full. */
static status
log_is_all_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (; w->keys < 1000; w->keys++)
        CHECK(ok(put(w, w->keys, KIB(1))));
    CHECK(w->lsm->stats.flushes == 0);
    /* Room for the tables, whose values are all alike, and not for a segment. */
    sim_disk_capacity_set(w->disk, sim_disk_used_bytes(w->disk) + w->options.log_segment_bytes / 2);
    status st = ST_OK;
    for (; ok(st) && w->keys < 4000; w->keys += ok(st))
        st = put(w, w->keys, KIB(1));
    CHECK(status_is(st, ST_NO_SPACE));
    fiber_sleep_ns(5 * NS_PER_S);
    CHECK(w->lsm->stats.flushes > 0);
    CHECK(ok(put(w, w->keys, KIB(1))));
    for (u32 i = 0; i <= w->keys; i++)
        CHECK(ok(get(w, i, NULL)));
    return lsm_close(w->lsm);
}

static void
a_log_that_fills_the_disk_is_flushed(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 82);
    w.options.memtable_bytes = MIB(8);
    w.options.codec_upper = LSM_CODEC_LZ4;
    assert_true(ok(sim_run(w.sim, 1, log_is_all_body, &w)));
    assert_true(sim_mark_count(w.sim, "lsm.state.flushed_for_room") > 0);
    sim_free(w.sim);
}

/* Nothing is left for a flush: deletes are taken as far as log and memtable go, then refused, and
 * all that was said holds after a power cut. */
static status
delete_too_much_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    write_until_full(w);
    status st = ST_OK;
    while (ok(st) && w->deleted < w->keys) {
        st = delete_one(w, w->deleted);
        if (ok(st)) w->deleted++;
        if (w->deleted % 16 == 0) CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    }
    CHECK(ok(st) || status_is(st, ST_NO_SPACE));
    CHECK(w->deleted > 0);
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

static status
deleted_so_far_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    for (u32 i = 0; i < w->keys; i++)
        CHECK(status_is(get(w, i, NULL), i < w->deleted ? ST_NOT_FOUND : ST_OK));
    return lsm_close(w->lsm);
}

static void
deletes_are_refused_when_nothing_is_left_for_them(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(6); seed++) {
        struct world w;
        world_init_full(&w, 90 + seed);
        (void)ok(sim_run(w.sim, 1, delete_too_much_body, &w));
        assert_true(sim_crashed(w.sim));
        sim_faults_clear(w.sim);
        (void)ok(sim_run(w.sim, 1, deleted_so_far_body, &w)); /* it closes with a full disk */
        sim_disk_capacity_set(w.disk, GIB(1));
        assert_true(ok(sim_run(w.sim, 1, deleted_so_far_body, &w)));
        sim_free(w.sim);
    }
}

/* ---- failures while the log is replayed ---- */

static status
replay_fill_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (w->keys = 0; w->keys < 300; w->keys++)
        CHECK(ok(put(w, w->keys, 2000)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

static status
replay_failing_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return st;
}

static status
replay_check_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    for (u32 i = 0; i < w->keys; i++)
        CHECK(ok(get(w, i, NULL)));
    return lsm_close(w->lsm);
}

/* ---- a write that failed, and what is seen of it ---- */

static status
failed_write_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (w->keys = 0; w->keys < 20; w->keys++)
        CHECK(ok(put(w, w->keys, 2000)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_fail_at(w->sim, SIM_POINT_WRITE, 0, 1, ST_IO_ERROR);
    for (u32 i = 0; i < 5; i++)
        (void)!ok(put(w, w->keys + i, 2000));
    CHECK(!ok(lsm_wait_durable(w->lsm, w->seq)));
    (void)!ok(lsm_close(w->lsm)); /* it has failed; the process ends, the machine does not */
    return ST_OK;
}

/* Its page may show the bytes to the first read of the next opening, and not to the second. */
static void
an_opening_goes_by_one_of_what_a_failed_write_shows(void **state)
{
    (void)state;
    u64 changed = 0;
    for (u64 seed = 1; seed <= 60; seed++) {
        struct world w;
        world_init_disk(&w, seed, 24);
        assert_true(ok(sim_run(w.sim, 1, failed_write_body, &w)));
        sim_faults_clear(w.sim);
        status st = sim_run(w.sim, 1, replay_check_body, &w);
        changed += sim_mark_count(w.sim, "lsm.log.carry_changed");
        assert_true(ok(st));
        sim_free(w.sim);
    }
    assert_true(changed > 0);
}

/* Replaying more than a memtable flushes. Any sync of that may fail, for want of space as well,
 * after which opening goes on; which manifest holds may be unknown then, and the files of both
 * must stay. */
static void
replaying_survives_any_failed_sync(void **state)
{
    (void)state;
    const status errors[] = {ST_NO_SPACE, ST_IO_ERROR};
    for (u32 i = 0; i < ARRAY_COUNT(errors); i++) {
        bool failed = true;
        for (u64 n = 0; failed; n++) {
            struct world w;
            world_init(&w, n);
            w.options.memtable_bytes = MIB(1);
            w.options.log_segment_bytes = MIB(1);
            w.options.blob_threshold_bytes = 1024;
            sim_crash_keeps_all_set(w.sim, n % 2 == 0);
            (void)ok(sim_run(w.sim, 1, replay_fill_body, &w));
            w.options.memtable_bytes = KIB(256);
            sim_fail_at(w.sim, SIM_POINT_SYNC, n, 1, errors[i]);
            (void)ok(sim_run(w.sim, 1, replay_failing_body, &w));
            failed = sim_failed(w.sim);
            sim_faults_clear(w.sim);
            status st = sim_run(w.sim, 1, replay_check_body, &w);
            if (!ok(st)) {
                print_message("%s at sync %u\n", status_text(errors[i]), (unsigned)n);
                sim_log_dump(w.sim);
            }
            assert_true(ok(st));
            sim_free(w.sim);
        }
    }
}

/* The same for allocations, also those with which the end of the old log is written once more. */
static void
replaying_survives_any_refused_allocation(void **state)
{
    (void)state;
    bool refused = true;
    for (u64 n = 0; refused; n++) {
        struct world w;
        world_init(&w, 1); /* the same each time, so that each allocation has its turn */
        w.options.memtable_bytes = KIB(256);
        sim_crash_keeps_all_set(w.sim, true);
        (void)ok(sim_run(w.sim, 1, replay_fill_body, &w));
        sim_fail_at(w.sim, SIM_POINT_ALLOC, n, 1, ST_NO_MEMORY);
        (void)ok(sim_run(w.sim, 1, replay_failing_body, &w));
        refused = sim_failed(w.sim);
        sim_faults_clear(w.sim);
        assert_true(ok(sim_run(w.sim, 1, replay_check_body, &w)));
        sim_free(w.sim);
    }
}

#define BATCH_OPS 6u

static status
batches_put(struct world *w, u32 count)
{
    static u8 value[3000];
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    status st = ST_OK;
    for (u32 i = 0; i < count && ok(st); i++) {
        lsm_batch_clear(&batch);
        for (u32 j = 0; j < BATCH_OPS; j++) {
            char text[32];
            struct bytes key = BYTES(text, key_make(w->keys++, text));
            CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, 3000), 0));
        }
        st = lsm_write(w->lsm, &batch, &w->seq);
    }
    lsm_batch_deinit(&batch);
    return st;
}

static status
batches_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    CHECK(ok(batches_put(w, 2)));
    fiber_sleep_ns(NS_PER_S);
    sim_fail_at(w->sim, SIM_POINT_SYNC, 0, 1, ST_IO_ERROR);
    CHECK(ok(batches_put(w, 9)));
    fiber_sleep_ns(NS_PER_S); /* the sync fails */
    sim_crash_keeps_all_set(w->sim, true);
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

static status
batches_check_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    u32 found = 0;
    for (u32 i = 0; i < w->keys; i++) {
        st = get(w, i, NULL);
        CHECK(ok(st) || status_is(st, ST_NOT_FOUND));
        if (!ok(st)) continue;
        CHECK(found == i); /* a prefix */
        found++;
    }
    CHECK(found >= 2 * BATCH_OPS);
    CHECK(found % BATCH_OPS == 0); /* of whole batches */
    return lsm_close(w->lsm);
}

static status
open_close_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    return ok(st) ? lsm_close(w->lsm) : st;
}

/* The memtables are smaller now than what is replayed, and the disk holds less of the log than can
 * be read; the power fails at the n-th request of the opening. */
static void
a_power_cut_while_replaying_leaves_whole_batches(void **state)
{
    (void)state;
    bool cut = true;
    for (u64 n = 0; cut; n++) {
        struct world w;
        world_init(&w, n);
        w.options.durability = LSM_DURABILITY_PERIODIC;
        w.options.sync_interval_ms = 100;
        w.options.log_segment_bytes = MIB(1);
        (void)ok(sim_run(w.sim, 1, batches_body, &w));
        sim_faults_clear(w.sim);
        w.options.memtable_bytes = KIB(64);
        sim_crash_keeps_all_set(w.sim, false);
        sim_crash_at(w.sim, SIM_POINT_IO, n);
        (void)ok(sim_run(w.sim, 1, open_close_body, &w));
        cut = sim_crashed(w.sim);
        sim_faults_clear(w.sim);
        if (!ok(sim_run(w.sim, 1, batches_check_body, &w))) {
            sim_log_dump(w.sim);
            fail();
        }
        sim_free(w.sim);
    }
}

/* ---- the end of long calls ---- */

struct call {
    struct world *world;
    status result;
    bool compact, started, ended;
};

static void
call_fiber(void *arg)
{
    struct call *call = arg;
    call->started = true;
    u64 count;
    call->result = call->compact ? lsm_compact(call->world->lsm)
                                 : lsm_count_exact(call->world->lsm, 0, &count);
    call->ended = true;
}

static status
closing_body(void *arg)
{
    struct world *w = arg;
    for (u32 round = 0; round < 2; round++) {
        CHECK(ok(open_store(w)));
        for (u32 i = 0; i < 6000; i++)
            CHECK(ok(put(w, i, 1000)));
        CHECK(ok(lsm_flush(w->lsm)));
        struct call call = {.world = w, .compact = round == 0};
        CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "call", call_fiber, &call)));
        while (!call.started)
            fiber_yield();
        fiber_sleep_ns(NS_PER_MS / 2);
        CHECK(!call.ended);
        CHECK(ok(lsm_close(w->lsm)));
        CHECK(call.ended);
        CHECK(status_is(call.result, call.compact ? ST_CANCELED : ST_CLOSED));
    }
    return ST_OK;
}

static void
closing_does_not_wait_for_a_compaction_or_a_count(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 5);
    assert_true(ok(sim_run(w.sim, 1, closing_body, &w)));
    sim_free(w.sim);
}

/* ---- a count without memory ---- */

#define COUNT_KEYS 4000u
/* The scan, its snapshot and where it begins. */
#define COUNT_OPENS 6u

/* Each allocation of a long scan is refused once, so that all are that it makes on its way, for
 * each table that it comes to, too: it goes on without reading ahead. */
static status
count_refused_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 i = 0; i < COUNT_KEYS; i++)
        CHECK(ok(put(w, i, 1000)));
    CHECK(ok(lsm_flush(w->lsm)));
    u32 refused = 0, n = 0;
    for (bool failed = true; failed; n++) {
        CHECK(ok(put(w, 0, 1000))); /* or the count is known already */
        u64 count = 0;
        sim_fail_at(w->sim, SIM_POINT_ALLOC, n, 1, ST_NO_MEMORY);
        status st = lsm_count_exact(w->lsm, 0, &count);
        failed = sim_failed(w->sim);
        sim_faults_clear(w->sim);
        CHECK(ok(st) ? count == COUNT_KEYS : status_is(st, ST_NO_MEMORY));
        refused += !ok(st);
    }
    CHECK(n > 3 * COUNT_OPENS);
    CHECK(refused <= COUNT_OPENS);
    return lsm_close(w->lsm);
}

static void
a_count_goes_on_when_memory_runs_short_meanwhile(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 8);
    assert_true(ok(sim_run(w.sim, 1, count_refused_body, &w)));
    assert_true(sim_mark_count(w.sim, "lsm.scan.no_memory_ahead") > 0);
    sim_free(w.sim);
}

/* Who asks while the store closes, at every moment of that. */
struct late {
    struct world *world;
    bool closing, ended;
    u32 answered;
};

static void
late_fiber(void *arg)
{
    struct late *late = arg;
    struct lsm *lsm = late->world->lsm;
    while (!late->ended) {
        bool closing = late->closing;
        struct lsm_snapshot *snapshot = lsm_snapshot_open(lsm);
        CHECK((snapshot == NULL) == closing);
        if (snapshot != NULL) lsm_snapshot_close(snapshot);
        struct lsm_scan *scan;
        status st = lsm_scan_open(lsm, NULL, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan);
        CHECK(closing ? status_is(st, ST_CLOSED) : ok(st));
        if (ok(st)) lsm_scan_close(scan);
        u64 count;
        st = lsm_count_exact(lsm, 1, &count);
        CHECK(ok(st) || status_is(st, ST_CLOSED));
        closing = late->closing;
        u64 version, seq;
        st = lsm_newest(lsm, 0, hash_token(BYTES_LITERAL("a")), BYTES_LITERAL("a"), 0, &version,
                        &seq);
        CHECK(status_is(st, closing ? ST_CLOSED : ST_NOT_FOUND));
        late->answered += closing;
        if (!late->ended) fiber_yield();
    }
}

static status
late_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 i = 0; i < 100; i++)
        CHECK(ok(put(w, i, 1000)));
    struct late late = {.world = w};
    CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "late", late_fiber, &late)));
    fiber_yield();
    late.closing = true;
    status st = lsm_close(w->lsm);
    late.ended = true;
    fiber_yield();
    CHECK(late.answered > 0);
    return st;
}

static void
whoever_asks_while_a_store_closes_is_told(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        struct world w;
        world_init(&w, seed);
        assert_true(ok(sim_run(w.sim, 1, late_body, &w)));
        sim_free(w.sim);
    }
}

/* ---- a long log over a small memtable ---- */

static status
lone_writes_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    static struct lsm_stats stats;
    u64 longest = 0;
    for (u32 i = 0; i < 1000; i++) {
        CHECK(ok(put(w, i, 10)));
        CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
        fiber_sleep_ns(5 * NS_PER_MS);
        lsm_stats_get(w->lsm, &stats);
        longest = MAX(longest, stats.log_bytes_to_replay);
    }
    /* A block each at least: 4 MB, had nothing asked for a flush. */
    CHECK(stats.memtable_bytes < w->options.memtable_bytes);
    CHECK(stats.flushes > 0);
    CHECK(longest < 2 * 4 * w->options.log_segment_bytes);
    return lsm_close(w->lsm);
}

static void
lone_small_writes_do_not_make_a_long_log(void **state)
{
    struct world w;
    world_init(&w, 6);
    assert_true(ok(sim_run(w.sim, 1, lone_writes_body, &w)));
    sim_free(w.sim);
}

struct restart {
    struct world *w;
    bool writes;
    bool last;
    u64 segments;
};

static status
restart_body(void *arg)
{
    struct restart *restart = arg;
    struct world *w = restart->w;
    CHECK(ok(open_store(w)));
    for (u32 i = 0; i < w->keys; i++)
        CHECK(ok(get(w, i, NULL)));
    if (restart->writes || w->keys == 0) {
        CHECK(ok(put(w, w->keys, 10)));
        CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
        w->keys++;
        if (!restart->writes) CHECK(ok(lsm_flush(w->lsm)));
    }
    if (restart->last) {
        fiber_sleep_ns(NS_PER_S);
        static struct lsm_stats stats;
        lsm_stats_get(w->lsm, &stats);
        restart->segments = stats.log_segments;
        return lsm_close(w->lsm);
    }
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

/* Each start takes a segment of its own. */
static void
a_process_that_dies_again_and_again_does_not_leave_a_segment_each(void **state)
{
    (void)state;
    for (u32 writes = 0; writes < 2; writes++) {
        struct world w;
        world_init(&w, 6);
        sim_crash_keeps_all_set(w.sim, true);
        struct restart restart = {.w = &w, .writes = writes != 0};
        for (u32 i = 0; i < 12; i++) {
            (void)ok(sim_run(w.sim, 1, restart_body, &restart));
            assert_true(sim_crashed(w.sim));
            sim_faults_clear(w.sim);
        }
        restart.last = true;
        for (u32 i = 0; i < 2; i++) { /* what it has left is enough for the next one */
            assert_true(ok(sim_run(w.sim, 1, restart_body, &restart)));
            assert_in_range(restart.segments, 2, 4 + 2); /* four, the current and the next one */
        }
        sim_free(w.sim);
    }
}

/* ---- when memtables are flushed ---- */

static status
steady_writes_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    u64 early = 0;
    enum { WRITES = 2048 };
    for (u32 i = 0; i < WRITES; i++) {
        CHECK(ok(put(w, i, KIB(1))));
        early += w->lsm->flushing &&
                 log_segment_started(w->lsm->log) < w->lsm->flushing_state.log_segment_first;
        fiber_sleep_ns(NS_PER_MS / 4); /* a flush is done long before the next is due */
    }
    /* Some went on while the log changed its segment. */
    CHECK(early > 0);
    static struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    /* Each flush took most of a memtable: none came again for what the one before had taken. */
    u64 whole = WRITES * (u64)KIB(1) / w->options.memtable_bytes;
    CHECK(stats.flushes >= whole - 2 && stats.flushes <= whole + whole / 2);
    return lsm_close(w->lsm);
}

static void
a_memtable_is_flushed_once_and_before_it_is_full(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 7);
    assert_true(ok(sim_run(w.sim, 1, steady_writes_body, &w)));
    sim_free(w.sim);
}

/* ---- held writes ---- */

struct held {
    struct world *w;
    u32 index;
    u32 *done;
};

static void
write_held(void *arg)
{
    struct held *held = arg;
    CHECK(ok(put(held->w, held->index, KIB(2))));
    ++*held->done;
}

static status
try_put(struct world *w, u32 index)
{
    char text[32];
    struct bytes key = BYTES(text, key_make(index, text));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(NULL, 0), 0));
    u64 seq;
    status st = lsm_write_try(w->lsm, &batch, &seq);
    lsm_batch_deinit(&batch);
    return st;
}

static status
held_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    CHECK(ok(put(w, 0, 10)));
    /* Some of the writers wait for room in the memtables when the hold begins. */
    enum { WRITERS = 400 };
    static struct held held[WRITERS];
    u32 done = 0;
    for (u32 i = 0; i < WRITERS; i++) {
        held[i] = (struct held){.w = w, .index = 1 + i, .done = &done};
        CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "writer", write_held, &held[i])));
    }
    while (sim_mark_count(w->sim, "lsm.write.memtable_full") == 0)
        fiber_yield();
    CHECK(done < WRITERS);
    u32 before = done;
    lsm_writes_hold(w->lsm);
    lsm_writes_hold(w->lsm);
    struct lsm_snapshot *snapshot = lsm_snapshot_open(w->lsm);
    CHECK(snapshot != NULL);
    CHECK(status_is(try_put(w, 0), ST_WOULD_WAIT));
    fiber_sleep_ns(101 * NS_PER_MS); /* counted from the beginning of the turn, the hold is not */
    lsm_writes_release(w->lsm);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(get(w, 0, NULL)));
    CHECK(status_is(try_put(w, 0), ST_WOULD_WAIT));
    CHECK(done == before && lsm_snapshot_seq(snapshot) == w->seq);
    lsm_writes_release(w->lsm);
    while (done < WRITERS)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(ok(try_put(w, 0)));
    lsm_snapshot_close(snapshot);
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.writes_held_ns.count == 1 && stats.writes_held_ns.max >= 100 * NS_PER_MS);
    return lsm_close(w->lsm);
}

static void
held_writes_show_nothing_until_all_are_released(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 7);
    assert_true(ok(sim_run(w.sim, 1, held_body, &w)));
    sim_free(w.sim);
}

/* ---- a record that the log's buffers take only when they are empty ---- */

struct crowd {
    struct world *w;
    bool ends;
    u32 writing;
    u64 longest_ns; /* a small write */
};

static void
crowd_main(void *arg)
{
    struct crowd *crowd = arg;
    for (u32 i = 0; !crowd->ends; i++) {
        u64 begun_ns = io_now_ns();
        CHECK(ok(put(crowd->w, i % 1000, KIB(1))));
        crowd->longest_ns = MAX(crowd->longest_ns, io_now_ns() - begun_ns);
        if (i % 8 == 7) fiber_yield();
    }
    crowd->writing--;
}

static status
large_write(struct world *w, u32 values, u64 deadline_ns)
{
    static u8 value[KIB(4)];
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    for (u32 i = 0; i < values; i++) {
        char text[32];
        struct bytes key = BYTES(text, key_make(5000 + i, text));
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, KIB(4)), 0));
    }
    u64 seq;
    status st = lsm_write_until(w->lsm, &batch, deadline_ns, &seq);
    lsm_batch_deinit(&batch);
    return st;
}

static void
large_main(void *arg)
{
    struct crowd *crowd = arg;
    CHECK(ok(large_write(crowd->w, 200, FIBER_FOREVER)));
    crowd->writing--;
}

static status
crowd_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    struct crowd crowd = {.w = w};
    while (crowd.writing++ < 8)
        CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "small", crowd_main, &crowd)));
    crowd.writing--;
    fiber_sleep_ns(10 * NS_PER_MS);
    /* One; then three that go in turn, and one that has no time. */
    u64 begun_ns = io_now_ns();
    CHECK(ok(large_write(w, 200, begun_ns + NS_PER_S)));
    for (u32 i = 0; i < 3; i++, crowd.writing++)
        CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "large", large_main, &crowd)));
    CHECK(status_is(large_write(w, 200, io_now_ns() + 1), ST_TIMED_OUT));
    begun_ns = io_now_ns();
    while (crowd.writing > 8) {
        CHECK(io_now_ns() - begun_ns < 2 * NS_PER_S);
        fiber_sleep_ns(NS_PER_MS);
    }
    crowd.ends = true;
    while (crowd.writing > 0)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(crowd.longest_ns < NS_PER_S);
    CHECK(sim_mark_count(w->sim, "lsm.write.large_in_turn") > 0);
    return lsm_close(w->lsm);
}

static void
a_large_write_has_its_turn_beside_small_ones(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 7);
    w.options.memtable_bytes = MIB(4);
    w.options.log_segment_bytes = MIB(2);
    assert_true(ok(sim_run(w.sim, 1, crowd_body, &w)));
    sim_free(w.sim);
}

/* ---- who waits for a memtable, while others owe their time to compaction ---- */

static status
indebted_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    /* A hold stands for a memtable that is full while its flush runs: either is asked before the
     * pressure is, and ends when the store says so. */
    struct lsm *lsm = w->lsm;
    u64 begun_ns = io_now_ns();
    lsm->admit_ns = begun_ns + 5 * NS_PER_S;
    struct lsm_batch large = {0};
    lsm->large = &large;
    CHECK(status_is(large_write(w, 1, begun_ns + 50 * NS_PER_MS), ST_TIMED_OUT));
    CHECK(io_now_ns() - begun_ns < 100 * NS_PER_MS);
    /* And without a deadline: soon after it could go on. */
    lsm->large = NULL;
    begun_ns = io_now_ns();
    CHECK(ok(put(w, 1, 10)));
    CHECK(io_now_ns() - begun_ns < 100 * NS_PER_MS);
    return lsm_close(lsm);
}

static void
who_waits_for_room_does_not_wait_for_the_debt_of_others(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 8);
    assert_true(ok(sim_run(w.sim, 1, indebted_body, &w)));
    sim_free(w.sim);
}

static status
open_and_close_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    return ok(st) ? lsm_close(w->lsm) : st;
}

static void
newest_segment(void *arg, const char *name)
{
    u64 number;
    if (log_name_parse(name, &number)) *(u64 *)arg = number; /* names ascend */
}

/* Segments begin behind more numbers than anybody has, with the right checksum. */
static status
numbers_forged_body(void *arg)
{
    (void)arg;
    u64 newest = 0;
    status st = io_dir_list(DIR, newest_segment, &newest);
    u8 *block = mem_alloc_aligned(io_budget(), LOG_BLOCK_BYTES, IO_ALIGNMENT);
    CHECK(block != NULL && newest > 0);
    for (u64 number = 1; ok(st) && number <= newest; number++) {
        char path[LSM_PATH_BYTES];
        log_path(path, DIR, number);
        struct io_file *file;
        if (!ok(io_file_open(path, IO_OPEN_WRITE, &file))) continue;
        st = io_file_read(file, IO_CLASS_READ, block, LOG_BLOCK_BYTES, 0);
        struct log_block head;
        memcpy(&head, block, sizeof(head));
        if (ok(st) && head.segment == number && head.kind == LOG_BLOCK_HEADER) {
            struct log_segment_header header;
            memcpy(&header, block + sizeof(head), sizeof(header));
            header.seq_base += 100;
            header.predecessor_seq += 100;
            memcpy(block + sizeof(head), &header, sizeof(header));
            store_u32(block, log_block_crc(block, number, 0));
            st = io_file_write(file, IO_CLASS_LOG, block, LOG_BLOCK_BYTES, 0, true);
        }
        io_file_close(file);
    }
    mem_free(io_budget(), block, LOG_BLOCK_BYTES);
    return st;
}

static void
a_log_behind_missing_numbers_is_refused(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 8);
    assert_true(ok(sim_run(w.sim, 1, open_and_close_body, &w)));
    assert_true(ok(sim_run(w.sim, 1, open_and_close_body, &w)));
    assert_true(ok(sim_run(w.sim, 1, numbers_forged_body, &w)));
    assert_true(status_is(sim_run(w.sim, 1, open_and_close_body, &w), ST_CORRUPT));
    sim_free(w.sim);
}

/* ---- a log that somebody removed ---- */

static status
life_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 i = 0; i < 10; i++)
        CHECK(ok(put(w, w->keys++, 100)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

struct segments {
    u64 numbers[16];
    u32 count;
};

static void
segment_add(void *arg, const char *name)
{
    struct segments *segments = arg;
    u64 number;
    if (!log_name_parse(name, &number)) return;
    CHECK(segments->count < ARRAY_COUNT(segments->numbers));
    segments->numbers[segments->count++] = number;
}

static status
log_unlink_body(void *arg)
{
    struct segments *segments = arg;
    char path[LSM_PATH_BYTES];
    status st = io_dir_list(DIR, segment_add, segments);
    for (u32 i = 0; ok(st) && i < segments->count; i++) {
        log_path(path, DIR, segments->numbers[i]);
        st = io_file_unlink(path);
    }
    return st;
}

static void
missing_note(void *arg, const char *file, u64 offset, const char *what)
{
    (void)offset;
    assert_non_null(strstr(file, DIR "/l"));
    assert_non_null(strstr(what, "missing"));
    *(u32 *)arg += 1;
}

static status
missing_verify_body(void *arg)
{
    u64 files, bytes;
    return lsm_verify(DIR, missing_note, arg, &files, &bytes);
}

/* Killed before anything was flushed, a store is in its log alone. Without it, it is not taken for
 * a new one. */
static void
a_store_whose_log_was_removed_is_refused(void **state)
{
    (void)state;
    for (u32 lives = 0; lives <= 3; lives++) {
        for (u32 kind = 0; kind < 2; kind++) {
            struct world w;
            struct segments removed = {0};
            u32 missing = 0;
            world_init(&w, lives);
            w.options.durability = kind == 0 ? LSM_DURABILITY_GROUP : LSM_DURABILITY_PERIODIC;
            assert_true(ok(sim_run(w.sim, 1, open_and_close_body, &w))); /* nothing in it */
            for (u32 i = 0; i < lives; i++)
                (void)ok(sim_run(w.sim, 1, life_body, &w));
            assert_true(ok(sim_run(w.sim, 1, log_unlink_body, &removed)));
            assert_true(removed.count > 0);
            assert_true(status_is(sim_run(w.sim, 1, open_and_close_body, &w), ST_CORRUPT));
            assert_true(status_is(sim_run(w.sim, 1, missing_verify_body, &missing), ST_CORRUPT));
            assert_int_equal(missing, 1);
            sim_free(w.sim);
        }
    }
}

/* ---- a record for another store ---- */

#define LOWER_LAST (UINT64_MAX / 2)

/* Of the lower half of the tokens. */
static status
open_lower(struct world *w)
{
    status st = io_dir_make(DIR);
    if (ok(st)) st = io_dir_sync("/");
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    struct lsm_place place = {.dir = DIR, .token_first = 0, .token_last = LOWER_LAST};
    return lsm_open(&place, &w->options, &w->lsm);
}

static status
lower_body(void *arg)
{
    struct world *w = arg;
    char text[32];
    u32 index = 0;
    while (hash_token(BYTES(text, key_make(index, text))) > LOWER_LAST)
        index++;
    CHECK(ok(open_lower(w)));
    CHECK(ok(put(w, index, 10)));
    CHECK(ok(lsm_wait_durable(w->lsm, w->seq)));
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

/* The first record of a block is now for a key of the upper half, with the right checksums. */
static void
record_move(u8 *block, u64 number, u64 offset)
{
    struct log_block head;
    memcpy(&head, block, sizeof(head));
    u8 *at = block + sizeof(head) + head.record_first;
    struct log_record record;
    memcpy(&record, at, sizeof(record));
    CHECK(record.count == 1);
    store_u64(at + sizeof(record) + offsetof(struct log_op, token), UINT64_MAX);
    u32 crc = crc32c((u32)record.seq_first, at + 4, sizeof(record) - 4);
    store_u32(at, crc32c(crc, at + sizeof(record), record.size - sizeof(record)));
    store_u32(block, log_block_crc(block, number, offset));
}

static status
record_moved_body(void *arg)
{
    u32 *moved = arg;
    u64 newest = 0;
    status st = io_dir_list(DIR, newest_segment, &newest);
    u8 *block = mem_alloc_aligned(io_budget(), LOG_BLOCK_BYTES, IO_ALIGNMENT);
    CHECK(block != NULL);
    for (u64 number = 1; ok(st) && number <= newest; number++) {
        char path[LSM_PATH_BYTES];
        log_path(path, DIR, number);
        struct io_file *file;
        if (!ok(io_file_open(path, IO_OPEN_WRITE, &file))) continue;
        for (u64 offset = LOG_BLOCK_BYTES; ok(st) && *moved == 0; offset += LOG_BLOCK_BYTES) {
            struct log_block head;
            if (!ok(io_file_read(file, IO_CLASS_READ, block, LOG_BLOCK_BYTES, offset))) break;
            memcpy(&head, block, sizeof(head));
            if (head.segment != number) break;
            if (head.kind != LOG_BLOCK_RECORDS || head.record_first == LOG_NO_RECORD) continue;
            record_move(block, number, offset);
            st = io_file_write(file, IO_CLASS_LOG, block, LOG_BLOCK_BYTES, offset, true);
            ++*moved;
        }
        io_file_close(file);
    }
    mem_free(io_budget(), block, LOG_BLOCK_BYTES);
    return st;
}

static status
lower_again_body(void *arg)
{
    struct world *w = arg;
    status st = open_lower(w);
    return ok(st) ? lsm_close(w->lsm) : st;
}

static void
a_record_for_another_store_is_damage(void **state)
{
    (void)state;
    struct world w;
    u32 moved = 0;
    world_init(&w, 9);
    assert_true(status_is(sim_run(w.sim, 1, lower_body, &w), ST_CANCELED));
    assert_true(ok(sim_run(w.sim, 1, record_moved_body, &moved)));
    assert_int_equal(moved, 1);
    assert_true(status_is(sim_run(w.sim, 1, lower_again_body, &w), ST_CORRUPT));
    assert_int_equal(sim_mark_count(w.sim, "lsm.replay.foreign_operation"), 1);
    sim_free(w.sim);
}

/* ---- how much a scan reads ---- */

#define NARROW_KEYS  2400u
#define NARROW_PARTS 64u

/* A part of the tokens costs a part of the bytes, however many runs there are and however far the
 * scan reads ahead: who copies a store partition by partition would else read it many times. */
static status
narrow_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (u32 i = 0; i < NARROW_KEYS; i++) {
        CHECK(ok(put(w, i, KIB(1))));
        if (i % (NARROW_KEYS / 3) == NARROW_KEYS / 3 - 1) CHECK(ok(lsm_flush(w->lsm)));
    }
    u64 step = UINT64_MAX / NARROW_PARTS + 1;
    struct io_stats before, after;
    io_stats_get(&before);
    u32 found = 0;
    for (u32 part = 0; part < NARROW_PARTS; part++) {
        struct lsm_scan *scan;
        u64 first = part * step;
        CHECK(ok(lsm_scan_open(w->lsm, NULL, 0, first, BYTES(NULL, 0), first + step - 1, &scan)));
        lsm_scan_much(scan);
        u64 token;
        struct bytes key;
        struct lsm_value value;
        status st;
        while (ok(st = lsm_scan_next(scan, true, &token, &key, &value))) {
            CHECK(token >= first && token <= first + step - 1 && value.value.size == KIB(1));
            found++;
        }
        CHECK(status_is(st, ST_END));
        lsm_scan_close(scan);
    }
    io_stats_get(&after);
    CHECK(found == NARROW_KEYS);
    w->read_bytes = after.read_bytes - before.read_bytes;
    return lsm_close(w->lsm);
}

static void
a_scan_of_a_few_tokens_reads_little_else(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 3);
    w.options.memory_bytes = MIB(64);
    w.options.memtable_bytes = MIB(4); /* so that it is flushed when the body says so */
    w.options.log_segment_bytes = MIB(4);
    assert_true(ok(sim_run(w.sim, 1, narrow_body, &w)));
    u64 data = (u64)NARROW_KEYS * KIB(1);
    assert_true(w.read_bytes >= data && w.read_bytes <= 2 * data);
    sim_free(w.sim);
}

/* Closing needs a fiber, and there is none until the shard has nothing else to do. */
static status
closes_at_the_end_body(void *arg)
{
    (void)arg;
    struct io_file *file;
    status st = io_file_open(":memory:/t", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    struct file_closer *closer = file_closer_new(":memory:/t");
    CHECK(closer != NULL);
    u64 rest = budget_available(io_budget());
    CHECK(budget_take(io_budget(), rest));
    file_closer_close(closer, file, true);
    budget_give(io_budget(), rest);
    return ST_OK;
}

static void
a_shard_does_not_end_before_its_files_are_closed(void **state)
{
    struct world w;
    world_init(&w, 7);
    assert_true(ok(sim_run(w.sim, 1, closes_at_the_end_body, NULL)));
    assert_true(sim_mark_count(w.sim, "lsm.file_closer.no_fiber") > 0);
    sim_free(w.sim);
}

/* ---- memtables that readers hold ---- */

/* A write into a memtable of which somebody holds a value while it is flushed. */
static status
put_held(struct world *w, struct lsm_value *value)
{
    status st = put(w, 0, KIB(4));
    if (!ok(st)) return st;
    char text[32];
    struct bytes key = BYTES(text, key_make(0, text));
    CHECK(ok(lsm_get(w->lsm, NULL, 0, hash_token(key), key, value)));
    return lsm_flush(w->lsm);
}

static status
readers_hold_body(void *arg)
{
    struct world *w = arg;
    enum { READERS = 64 };
    static struct lsm_value values[READERS];
    CHECK(ok(open_store(w)));
    for (u32 round = 0; round < 2; round++) {
        u32 held = 0;
        status st;
        while (ok(st = put_held(w, &values[held])))
            CHECK(++held < READERS);
        CHECK(status_is(st, ST_NO_MEMORY));
        CHECK(status_is(try_put(w, 0), ST_NO_MEMORY));
        for (u32 i = 0; i < held; i++)
            lsm_value_release(&values[i]);
        CHECK(ok(put(w, 0, KIB(4))));
        CHECK(ok(lsm_flush(w->lsm)));
    }
    return lsm_close(w->lsm);
}

static void
a_write_that_readers_leave_no_memory_for_is_refused_until_they_let_go(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 6);
    assert_true(ok(sim_run(w.sim, 1, readers_hold_body, &w)));
    assert_int_equal(sim_mark_count(w.sim, "lsm.write.held_for_good"), 4);
    sim_free(w.sim);
}

/* ---- what is absent without a trace ---- */

static u64
dropped_seq_of(const struct world *w, u16 keyspace)
{
    return lsm_dropped_seq(w->lsm, keyspace, BYTES_LITERAL("absent"));
}

/* A table of one keyspace goes as a whole: whoever watches an absent key of another one is not told
 * that somebody may have written it. */
static status
dropped_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    for (u16 keyspace = 0; keyspace < 2; keyspace++) {
        struct bytes key = BYTES_LITERAL("there");
        CHECK(lsm_batch_put(&batch, keyspace, hash_token(key), key, key, 0));
    }
    CHECK(ok(lsm_write(w->lsm, &batch, &w->seq)));
    lsm_batch_deinit(&batch);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(dropped_seq_of(w, 0) == 0 && dropped_seq_of(w, 1) == 0);
    u64 written = w->seq;
    CHECK(ok(delete_all(w))); /* of keyspace 0 */
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(lsm_compact(w->lsm)));
    CHECK(dropped_seq_of(w, 0) >= written - 1); /* it may have been one of these */
    CHECK(dropped_seq_of(w, 1) == 0);
    return lsm_close(w->lsm);
}

static void
a_dropped_table_tells_nothing_about_other_keyspaces(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 5);
    assert_true(ok(sim_run(w.sim, 1, dropped_body, &w)));
    assert_true(sim_mark_count(w.sim, "lsm.prune.table_dropped") > 0);
    sim_free(w.sim);
}

/* ---- a flush that fails for long is not told each time ---- */

static status
flush_without_memory_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    CHECK(ok(put(w, 0, KIB(4))));
    u64 taken = budget_available(&w->lsm->budget);
    CHECK(budget_take(&w->lsm->budget, taken));
    CHECK(status_is(lsm_flush(w->lsm), ST_NO_MEMORY));
    fiber_sleep_ns(2 * NS_PER_S); /* it is tried again */
    budget_give(&w->lsm->budget, taken);
    fiber_sleep_ns(NS_PER_S);
    CHECK(ok(lsm_flush(w->lsm)));
    return lsm_close(w->lsm);
}

static void
a_flush_that_fails_for_long_is_told_once(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 7);
    assert_true(ok(sim_run(w.sim, 1, flush_without_memory_body, &w)));
    assert_true(sim_mark_count(w.sim, "lsm.levels.flush_failed") > 20);
    assert_true(sim_log_contains(w.sim, "flush failed"));
    assert_true(sim_log_contains(w.sim, "failures=1"));
    assert_false(sim_log_contains(w.sim, "failures=2")); /* nor 20 to 29 */
    sim_free(w.sim);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_many_ranges_as_were_accepted_are_recovered),
        cmocka_unit_test(what_a_range_has_deleted_stays_so_for_who_scans_while_it_is_merged_away),
        cmocka_unit_test(everything_can_be_deleted_again_and_again),
        cmocka_unit_test(what_a_range_deletes_answers_with_its_number),
        cmocka_unit_test(a_store_on_a_full_disk_opens_and_reads),
        cmocka_unit_test(deleting_everything_makes_room_on_a_full_disk),
        cmocka_unit_test(what_was_deleted_on_a_full_disk_stays_deleted),
        cmocka_unit_test(deleting_keys_makes_room_on_a_full_disk),
        cmocka_unit_test(what_is_of_the_reserve_leaves_most_of_it),
        cmocka_unit_test(the_log_keeps_its_end_for_deletes),
        cmocka_unit_test(a_log_that_fills_the_disk_is_flushed),
        cmocka_unit_test(deletes_are_refused_when_nothing_is_left_for_them),
        cmocka_unit_test(an_opening_goes_by_one_of_what_a_failed_write_shows),
        cmocka_unit_test(replaying_survives_any_failed_sync),
        cmocka_unit_test(replaying_survives_any_refused_allocation),
        cmocka_unit_test(a_power_cut_while_replaying_leaves_whole_batches),
        cmocka_unit_test(closing_does_not_wait_for_a_compaction_or_a_count),
        cmocka_unit_test(a_count_goes_on_when_memory_runs_short_meanwhile),
        cmocka_unit_test(whoever_asks_while_a_store_closes_is_told),
        cmocka_unit_test(lone_small_writes_do_not_make_a_long_log),
        cmocka_unit_test(a_process_that_dies_again_and_again_does_not_leave_a_segment_each),
        cmocka_unit_test(a_memtable_is_flushed_once_and_before_it_is_full),
        cmocka_unit_test(held_writes_show_nothing_until_all_are_released),
        cmocka_unit_test(a_large_write_has_its_turn_beside_small_ones),
        cmocka_unit_test(who_waits_for_room_does_not_wait_for_the_debt_of_others),
        cmocka_unit_test(a_log_behind_missing_numbers_is_refused),
        cmocka_unit_test(a_store_whose_log_was_removed_is_refused),
        cmocka_unit_test(a_record_for_another_store_is_damage),
        cmocka_unit_test(a_scan_of_a_few_tokens_reads_little_else),
        cmocka_unit_test(a_shard_does_not_end_before_its_files_are_closed),
        cmocka_unit_test(a_write_that_readers_leave_no_memory_for_is_refused_until_they_let_go),
        cmocka_unit_test(a_flush_that_fails_for_long_is_told_once),
        cmocka_unit_test(a_dropped_table_tells_nothing_about_other_keyspaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
