/* SPDX-License-Identifier: MIT
 *
 * test_scan.c -- scans of a whole engine: in order, at a snapshot, over flushes and compactions
 * that happen meanwhile, with large values, tombstones and TTL; exact counts; random keys.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "base/hash.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"

/* CHECK, because cmocka's jumps do not leave fibers well. */
#define EXPECT(cond) CHECK(cond)
#define KEYS         500u

static struct lsm *lsm;

static struct bytes
key_of(u32 i, char *buffer)
{
    return BYTES(buffer, (size_t)snprintf(buffer, 32, i % 5 == 0 ? "{tag}%05u" : "key:%u", i));
}

static void
write_one(u32 i, u32 size, u64 expire_ms, bool deleted)
{
    static u8 value[KIB(32)];
    memset(value, (int)('a' + i % 26), size);
    char name[32];
    struct bytes key = key_of(i, name);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    if (deleted)
        EXPECT(lsm_batch_delete(&batch, 0, hash_token(key), key));
    else
        EXPECT(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, size), expire_ms));
    u64 seq;
    EXPECT(ok(lsm_write(lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
}

static u32
size_of(u32 i)
{
    return i % 7 == 0 ? 9000 : i % 3 * 50;
}

static void
open_store(u64 memtable_bytes)
{
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(64);
    options.memtable_bytes = memtable_bytes;
    options.scrub_bytes_per_s = 0;
    struct lsm_place place = {.dir = "/store", .token_last = UINT64_MAX};
    EXPECT(ok(lsm_open(&place, &options, &lsm)));
}

/* Walks a scan to its end; returns how many, checks order and values. */
static u32
walk(struct lsm_scan *scan, bool want_value)
{
    u64 token_before = 0;
    u8 key_before[LIMIT_KEY_BYTES];
    size_t key_before_size = 0;
    u32 count = 0;
    for (;;) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        status st = lsm_scan_next(scan, want_value, &token, &key, &value);
        if (status_is(st, ST_END)) break;
        EXPECT(ok(st));
        EXPECT(token == hash_token(key));
        EXPECT(count == 0 ||
               entry_compare_key(token_before, BYTES(key_before, key_before_size), token, key) < 0);
        u32 i = 0;
        const char *digits = (const char *)key.data + (key.data[0] == '{' ? 5 : 4);
        for (const char *c = digits; c < (const char *)key.data + key.size; c++)
            i = i * 10 + (u32)(*c - '0');
        EXPECT(value.value.size == size_of(i));
        if (want_value && value.value.size > 0) {
            EXPECT(value.value.data[0] == 'a' + i % 26);
            EXPECT(value.value.data[value.value.size - 1] == 'a' + i % 26);
        }
        lsm_value_release(&value);
        token_before = token;
        key_before_size = key.size;
        memcpy(key_before, key.data, key.size);
        count++;
    }
    u64 token;
    struct bytes key;
    struct lsm_value value;
    EXPECT(status_is(lsm_scan_next(scan, false, &token, &key, &value), ST_END));
    lsm_scan_close(scan);
    return count;
}

static struct lsm_scan *
scan_all(struct lsm_snapshot *snapshot)
{
    struct lsm_scan *scan;
    EXPECT(ok(lsm_scan_open(lsm, snapshot, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan)));
    return scan;
}

static status
whole_life(void *arg)
{
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(2));
    u64 count;
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == 0);
    u8 random_key[LIMIT_KEY_BYTES];
    size_t random_size;
    u64 random_seq;
    EXPECT(status_is(lsm_random_key(lsm, 0, 7, 0, random_key, &random_size, &random_seq),
                     ST_NOT_FOUND));

    for (u32 i = 0; i < KEYS; i++)
        write_one(i, size_of(i), 0, false);
    EXPECT(walk(scan_all(NULL), true) == KEYS);
    struct lsm_snapshot *snapshot = lsm_snapshot_open(lsm);
    EXPECT(snapshot != NULL);
    for (u32 i = 0; i < KEYS; i += 2)
        write_one(i, 0, 0, true);
    EXPECT(walk(scan_all(NULL), true) == KEYS / 2);
    EXPECT(walk(scan_all(snapshot), true) == KEYS);
    EXPECT(ok(lsm_flush(lsm)));
    EXPECT(walk(scan_all(NULL), false) == KEYS / 2);
    EXPECT(walk(scan_all(snapshot), true) == KEYS);
    EXPECT(ok(lsm_compact(lsm)));
    EXPECT(walk(scan_all(NULL), true) == KEYS / 2);
    EXPECT(walk(scan_all(snapshot), true) == KEYS);
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == KEYS / 2);
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == KEYS / 2); /* known by now */
    lsm_snapshot_close(snapshot);

    /* TTL: what expires leaves the count without a write. */
    write_one(0, size_of(0), io_wall_ms() + 5000, false);
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == KEYS / 2 + 1);
    fiber_sleep_ns(6 * NS_PER_S);
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == KEYS / 2);

    for (u32 i = 0; i < 20; i++) {
        EXPECT(ok(lsm_random_key(lsm, 0, io_random(), 0, random_key, &random_size, &random_seq)));
        struct bytes key = BYTES(random_key, random_size);
        struct lsm_value value;
        EXPECT(ok(lsm_get(lsm, NULL, 0, hash_token(key), key, &value)));
        lsm_value_release(&value);
    }
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
scans_see_what_their_snapshot_saw(void **state)
{
    assert_true(ok(sim_run_main(1, 1, whole_life, NULL)));
}

/* A scan that is slower than writes, flushes and compactions around it. */
static status
slow_scan(void *arg)
{
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(1));
    for (u32 i = 0; i < KEYS; i++)
        write_one(i, size_of(i), 0, false);
    struct lsm_scan *scan = scan_all(NULL);
    u32 seen = 0;
    for (;;) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        status st = lsm_scan_next(scan, true, &token, &key, &value);
        if (status_is(st, ST_END)) break;
        EXPECT(ok(st));
        lsm_value_release(&value);
        seen++;
        for (u32 i = 0; i < 5; i++) {
            u32 at = (seen * 7 + i * 11) % KEYS;
            write_one(at, size_of(at), 0, i == 0);
        }
        if (seen % 50 == 0) EXPECT(ok(lsm_flush(lsm)));
        if (seen % 170 == 0) EXPECT(ok(lsm_compact(lsm)));
    }
    lsm_scan_close(scan);
    EXPECT(seen == KEYS);
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
a_slow_scan_loses_its_memtables_but_not_its_place(void **state)
{
    for (u64 seed = 1; seed <= 5; seed++)
        assert_true(ok(sim_run_main(seed, 1, slow_scan, NULL)));
}

static status
bounded_scans(void *arg)
{
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(2));
    for (u32 i = 0; i < KEYS; i++)
        write_one(i, size_of(i), 0, false);
    EXPECT(ok(lsm_flush(lsm)));
    /* Inside a tag the order is that of the keys' bytes. */
    u64 tag = hash_token(BYTES_LITERAL("{tag}"));
    struct lsm_scan *scan;
    EXPECT(ok(lsm_scan_open(lsm, NULL, 0, tag, BYTES(NULL, 0), tag, &scan)));
    EXPECT(walk(scan, true) == KEYS / 5);
    EXPECT(ok(lsm_scan_open(lsm, NULL, 0, tag, BYTES_LITERAL("{tag}00250"), tag, &scan)));
    EXPECT(walk(scan, true) == KEYS / 10);
    EXPECT(ok(lsm_scan_open(lsm, NULL, 0, tag, BYTES_LITERAL("{tag}00251"), tag, &scan)));
    EXPECT(walk(scan, true) == KEYS / 10 - 1);
    EXPECT(ok(lsm_scan_open(lsm, NULL, 1, 0, BYTES(NULL, 0), UINT64_MAX, &scan)));
    EXPECT(walk(scan, true) == 0); /* another keyspace */
    EXPECT(status_is(lsm_scan_open(lsm, NULL, LIMIT_KEYSPACES, 0, BYTES(NULL, 0), 0, &scan),
                     ST_INVALID));
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
scans_begin_and_end_where_they_are_told(void **state)
{
    assert_true(ok(sim_run_main(1, 1, bounded_scans, NULL)));
}

/* What a scan that pauses shows until its end; each pause is a place to go on at, for another scan
 * as well. */
static u32
walk_with_pauses(u64 step, bool anew, u32 *pauses)
{
    struct lsm_scan *scan = scan_all(NULL);
    lsm_scan_step(scan, step);
    u32 shown = 0;
    u64 token, token_before = 0;
    struct bytes key;
    u8 before[LIMIT_KEY_BYTES];
    size_t before_size = 0;
    struct lsm_value value;
    status st;
    for (;;) {
        st = lsm_scan_next(scan, false, &token, &key, &value);
        if (status_is(st, ST_END)) break;
        EXPECT(ok(st) || status_is(st, ST_PAUSED));
        EXPECT(token == hash_token(key));
        EXPECT(entry_compare_key(token_before, BYTES(before, before_size), token, key) < 0);
        shown += ok(st);
        token_before = token;
        before_size = key.size;
        memcpy(before, key.data, key.size);
        if (ok(st)) continue;
        (*pauses)++;
        if (!anew) continue;
        lsm_scan_close(scan);
        EXPECT(ok(lsm_scan_open(lsm, NULL, 0, token_before, BYTES(before, before_size), UINT64_MAX,
                                &scan)));
        lsm_scan_step(scan, step);
    }
    lsm_scan_close(scan);
    return shown;
}

/* Keys that were deleted, have expired, or have a newer version that the scan does not see. */
static status
many_dead(void *arg)
{
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(2));
    for (u32 i = 0; i < KEYS; i++)
        write_one(i, 1, i % 2 == 0 ? io_wall_ms() + 1000 : 0, false);
    for (u32 i = 0; i < KEYS; i++)
        if (i % 50 != 1 && i % 2 == 1) write_one(i, 0, 0, true);
    for (u32 i = 0; i < 100; i++) /* of one key many versions */
        write_one(3, 1, 0, i == 99);
    fiber_sleep_ns(2 * NS_PER_S);
    u8 key[LIMIT_KEY_BYTES];
    size_t size;
    u64 seq;
    for (u32 round = 0; round < 2; round++) {
        u32 pauses = 0;
        EXPECT(walk_with_pauses(0, false, &pauses) == KEYS / 50 && pauses == 0);
        EXPECT(walk_with_pauses(20, false, &pauses) == KEYS / 50);
        EXPECT(round == 1 || pauses >= KEYS / 20 / 2);
        pauses = 0;
        EXPECT(walk_with_pauses(20, true, &pauses) == KEYS / 50);
        EXPECT(round == 1 || pauses >= KEYS / 20 / 2);
        pauses = 0;
        EXPECT(walk_with_pauses(1, true, &pauses) == KEYS / 50);
        EXPECT(round == 1 || pauses >= KEYS / 3);
        u32 found = 0, given_up = 0;
        for (u32 i = 0; i < 200; i++) {
            status st = lsm_random_key(lsm, 0, io_random(), 20, key, &size, &seq);
            EXPECT(ok(st) || status_is(st, ST_PAUSED));
            found += ok(st);
            given_up += !ok(st);
        }
        EXPECT(found > 0 && (round == 1 || given_up > 0));
        EXPECT(ok(lsm_flush(lsm)));
    }
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
a_scan_that_has_passed_over_many_dead_keys_says_where_it_is(void **state)
{
    assert_true(ok(sim_run_main(1, 1, many_dead, NULL)));
}

/* Some keys expire while a snapshot is open. */
static status
frozen_clock(void *arg)
{
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(2));
    for (u32 i = 0; i < KEYS; i++) {
        u64 expire_ms = i % 4 == 0 ? io_wall_ms() + 50000 : i % 4 == 1 ? io_wall_ms() + 1000 : 0;
        write_one(i, size_of(i), expire_ms, false);
    }
    fiber_sleep_ns(2 * NS_PER_S);
    struct lsm_snapshot *snapshot = lsm_snapshot_open(lsm);
    EXPECT(snapshot != NULL);
    for (u32 round = 0; round < 3; round++) {
        struct lsm_scan *scan = scan_all(snapshot);
        lsm_scan_freeze_clock(scan);
        EXPECT(walk(scan, true) == KEYS / 4 * 3);
        EXPECT(walk(scan_all(snapshot), true) == (round == 0 ? KEYS / 4 * 3 : KEYS / 2));
        fiber_sleep_ns(60 * NS_PER_S);
        /* What the snapshot sees is kept, even by a merge that drops expired values. */
        EXPECT(ok(lsm_compact(lsm)));
    }
    lsm_snapshot_close(snapshot);
    EXPECT(ok(lsm_compact(lsm)));
    /* Taken while a merge is under way, whatever the clock says: what it drops had expired for it. */
    fiber_mutex_lock(&lsm->levels->compact_mutex);
    lsm->levels->expired_ms = io_wall_ms() + 1000000;
    snapshot = lsm_snapshot_open(lsm);
    lsm->levels->expired_ms = 0;
    fiber_mutex_unlock(&lsm->levels->compact_mutex);
    EXPECT(snapshot != NULL && snapshot->wall_ms >= io_wall_ms() + 1000000);
    lsm_snapshot_close(snapshot);
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
a_frozen_clock_shows_what_lived_at_the_snapshot(void **state)
{
    assert_true(ok(sim_run_main(1, 1, frozen_clock, NULL)));
}

/* Tables are looked through for what has expired each second. By a clock that was ahead meanwhile nothing
 * was dropped, nor by what was flushed and merged then, so it says nothing about what a snapshot shows. */
static status
clock_ahead(void *arg)
{
    struct sim_node *node = arg;
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(2));
    for (u32 i = 0; i < KEYS; i++)
        write_one(i, size_of(i), 0, false);
    EXPECT(ok(lsm_flush(lsm)));
    fiber_sleep_ns(10 * NS_PER_S); /* whatever merges has begun */
    u64 day_ms = 24 * 3600 * (u64)1000;
    u64 before_ms = io_wall_ms();
    sim_node_clock_step(node, (i64)day_ms);
    fiber_sleep_ns(10 * NS_PER_S);
    EXPECT(io_wall_ms() >= before_ms + day_ms);
    for (u32 i = 0; i < KEYS; i += 2)
        write_one(i, size_of(i), io_wall_ms() + day_ms, false);
    EXPECT(ok(lsm_flush(lsm)) && ok(lsm_compact(lsm)));
    sim_node_clock_step(node, -(i64)day_ms);
    fiber_sleep_ns(NS_PER_MS);
    EXPECT(io_wall_ms() < before_ms + day_ms);
    for (u32 i = 0; i < KEYS; i += 3)
        write_one(i, size_of(i), io_wall_ms() + day_ms / 2, false);
    struct lsm_snapshot *snapshot = lsm_snapshot_open(lsm);
    EXPECT(snapshot != NULL && snapshot->wall_ms <= io_wall_ms());
    struct lsm_scan *scan = scan_all(snapshot);
    lsm_scan_freeze_clock(scan);
    EXPECT(walk(scan, true) == KEYS);
    lsm_snapshot_close(snapshot);
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
a_clock_that_was_ahead_hides_nothing(void **state)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, clock_ahead, sim_node_new(sim, "10.0.0.1"))));
    sim_free(sim);
}

/* Counted while the clock is ahead, and again when it is right. */
static status
counted_ahead(void *arg)
{
    struct sim_node *node = arg;
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(2));
    u64 hour_ms = 3600 * (u64)1000;
    for (u32 i = 0; i < KEYS; i++)
        write_one(i, size_of(i), i % 5 == 0 ? io_wall_ms() + hour_ms : 0, false);
    sim_node_clock_step(node, (i64)(2 * hour_ms));
    fiber_sleep_ns(NS_PER_MS);
    u64 count;
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == KEYS / 5 * 4);
    EXPECT(lsm->count_known[0].valid);
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == KEYS / 5 * 4);
    sim_node_clock_step(node, -(i64)(2 * hour_ms));
    fiber_sleep_ns(NS_PER_MS);
    EXPECT(ok(lsm_count_exact(lsm, 0, &count)) && count == KEYS);
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
a_count_by_a_clock_that_was_ahead_is_not_kept(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, counted_ahead, sim_node_new(sim, "10.0.0.1"))));
    sim_free(sim);
}

/* A third is deleted, a third has expired; flushes lie between. */
static status
whole_scan(void *arg)
{
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(2));
    for (u32 i = 0; i < KEYS; i++)
        write_one(i, size_of(i), i % 3 == 1 ? io_wall_ms() + 1000 : 0, false);
    EXPECT(ok(lsm_flush(lsm)));
    for (u32 i = 0; i < KEYS; i += 3)
        write_one(i, 0, 0, true);
    fiber_sleep_ns(2 * NS_PER_S);
    EXPECT(walk(scan_all(NULL), true) == KEYS / 3);
    for (u32 round = 0; round < 2; round++) {
        u32 deleted = 0, expired = 0, live = 0;
        struct lsm_scan *scan = scan_all(NULL);
        lsm_scan_whole(scan);
        u64 token;
        struct bytes key;
        struct lsm_value value;
        while (ok(lsm_scan_next(scan, true, &token, &key, &value))) {
            EXPECT(value.version != 0 && token == hash_token(key));
            if (lsm_scan_deleted(scan))
                deleted++;
            else if (value.expire_ms != 0)
                expired++;
            else
                live++;
        }
        lsm_scan_close(scan);
        EXPECT(deleted == (KEYS + 2) / 3 && expired == (KEYS + 1) / 3 && live == KEYS / 3);
        EXPECT(ok(lsm_flush(lsm)));
    }
    /* A deleted range hides what it covers here, too. */
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    EXPECT(lsm_batch_delete_range(&batch, 0, 0, UINT64_MAX));
    u64 seq;
    EXPECT(ok(lsm_write(lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
    struct lsm_scan *scan = scan_all(NULL);
    lsm_scan_whole(scan);
    EXPECT(walk(scan, false) == 0);
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
a_whole_scan_shows_tombstones_and_what_has_expired(void **state)
{
    assert_true(ok(sim_run_main(1, 1, whole_scan, NULL)));
}

/* ---- over damage ---- */

#define MANY 4000u

struct damage {
    struct sim_disk *disk;
    char kind;      /* of the file: 't' or 'b' */
    char path[600]; /* the newest one */
    u32 per_mille;  /* of it: where a bit flips */
};

static void
newest_each(void *arg, const char *path)
{
    struct damage *damage = arg;
    if (strrchr(path, '/')[1] == damage->kind && strcmp(path, damage->path) > 0)
        snprintf(damage->path, sizeof(damage->path), "%s", path);
}

/* One bit flips in the newest file of the kind. */
static void
damage_newest(struct damage *damage)
{
    u64 size;
    sim_disk_each_file(damage->disk, newest_each, damage);
    EXPECT(ok(sim_disk_file_size(damage->disk, damage->path, &size)));
    EXPECT(ok(sim_disk_flip(damage->disk, damage->path, size * damage->per_mille / 1000, 1)));
}

struct seen {
    u32 live, deleted;
    u64 damage;
};

/* Each third key was deleted. */
static status
look(bool passes, bool much, struct seen *seen)
{
    *seen = (struct seen){0};
    struct lsm_scan *scan = scan_all(NULL);
    lsm_scan_whole(scan);
    if (passes) lsm_scan_pass_damage(scan);
    if (much) lsm_scan_much(scan);
    u64 token;
    struct bytes key;
    struct lsm_value value;
    status st;
    while (ok(st = lsm_scan_next(scan, true, &token, &key, &value))) {
        u32 i = 0;
        for (size_t at = 4; at < key.size; at++)
            if (key.data[at] >= '0' && key.data[at] <= '9') i = i * 10 + key.data[at] - '0';
        EXPECT(lsm_scan_deleted(scan) == (i % 3 == 0));
        seen->live += !lsm_scan_deleted(scan);
        seen->deleted += lsm_scan_deleted(scan);
        /* The cursors are opened anew, also just before a gap. */
        if ((seen->live + seen->deleted) % 5 == 0) lsm_scan_detach(scan);
    }
    seen->damage = lsm_scan_damage(scan);
    lsm_scan_close(scan);
    return st;
}

/* All are in one run, a third is deleted in a newer one: where a block of that is lost, a key that
 * was deleted is not to be alive again. */
static status
damaged_body(void *arg)
{
    struct damage *damage = arg;
    struct seen seen, before;
    EXPECT(ok(io_dir_make("/store")));
    open_store(MIB(4));
    for (u32 i = 0; i < MANY; i++)
        write_one(i, i == 8 ? 9000 : 60, 0, false);
    EXPECT(ok(lsm_flush(lsm)));
    for (u32 i = 0; i < MANY; i += 3)
        write_one(i, 0, 0, true);
    EXPECT(ok(lsm_flush(lsm)));
    EXPECT(status_is(look(true, true, &before), ST_END));
    EXPECT(before.live + before.deleted == MANY && before.damage == 0);

    damage_newest(damage);
    if (damage->kind == 'b') {
        EXPECT(status_is(look(false, false, &seen), ST_CORRUPT));
        EXPECT(status_is(look(true, false, &seen), ST_END));
        EXPECT(seen.damage == 1 && seen.live == before.live - 1 && seen.deleted == before.deleted);
        EXPECT(ok(lsm_close(lsm)));
        return ST_OK;
    }
    for (u32 much = 0; much < 2; much++) {
        EXPECT(status_is(look(false, much, &seen), ST_CORRUPT));
        struct lsm_stats stats;
        lsm_stats_get(lsm, &stats);
        u64 met = stats.corruptions;
        EXPECT(status_is(look(true, much, &seen), ST_END));
        EXPECT(seen.damage == 1);
        EXPECT(seen.live < before.live && seen.deleted < before.deleted);
        EXPECT(seen.live + seen.deleted > MANY / 2);
        lsm_stats_get(lsm, &stats);
        EXPECT(stats.corruptions > met);
    }
    EXPECT(ok(lsm_close(lsm)));
    return ST_OK;
}

static void
run_damaged(char kind, u32 per_mille)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    struct damage damage = {
        .disk = sim_node_disk(sim_node_new(sim, "10.0.0.1")), .kind = kind, .per_mille = per_mille};
    assert_true(ok(sim_run(sim, 1, damaged_body, &damage)));
    sim_free(sim);
}

static void
a_scan_over_damage_shows_the_rest_and_nothing_that_was_deleted(void **state)
{
    static const u32 places[] = {5, 100, 333, 500, 600}; /* from the first block on */
    for (u32 i = 0; i < ARRAY_COUNT(places); i++)
        run_damaged('t', places[i]);
    run_damaged('b', 500);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scans_see_what_their_snapshot_saw),
        cmocka_unit_test(a_slow_scan_loses_its_memtables_but_not_its_place),
        cmocka_unit_test(scans_begin_and_end_where_they_are_told),
        cmocka_unit_test(a_scan_that_has_passed_over_many_dead_keys_says_where_it_is),
        cmocka_unit_test(a_frozen_clock_shows_what_lived_at_the_snapshot),
        cmocka_unit_test(a_clock_that_was_ahead_hides_nothing),
        cmocka_unit_test(a_count_by_a_clock_that_was_ahead_is_not_kept),
        cmocka_unit_test(a_whole_scan_shows_tombstones_and_what_has_expired),
        cmocka_unit_test(a_scan_over_damage_shows_the_rest_and_nothing_that_was_deleted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
