/* SPDX-License-Identifier: MIT
 *
 * test_damage.c -- what a store knows of its damage, and how its owner lets go of it:
 * lsm_damage_next, lsm_mends_set, lsm_drop_set. Each key is written once; in the newest run each
 * third is deleted. One bit of the block that holds a key flips, on the disk.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "../../fewer.h"
#include "base/hash.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"
#include "lsm/table_format.h"

/* CHECK, because cmocka's jumps do not leave fibers well. */
#define EXPECT(cond) CHECK(cond)
#define KEYS         4000u
#define DIR          "/store"
#define SHIFT        61u
#define STRETCHES    8u
#define LARGE_BYTES  6000u /* of a value that is kept apart */
#define LOST_BYTES   512u  /* the disk's sector */

static struct sim *sim;
static struct sim_disk *disk;
static struct lsm *lsm;
static bool outside_versions;

/* ---- a store ---- */

static struct bytes
key_of(u32 i)
{
    static char texts[4][32];
    static u32 next;
    char *text = texts[next++ % 4];
    return BYTES(text, (size_t)snprintf(text, 32, "key:%u", i));
}

static u64
token_of(u32 i)
{
    return hash_token(key_of(i));
}

static struct bytes
value_of(u32 i)
{
    static u8 value[LARGE_BYTES];
    memset(value, (int)('a' + i % 26), sizeof(value));
    store_u32(value, i);
    return BYTES(value, i % 500 == 7 ? LARGE_BYTES : 60);
}

static void
open_store(void)
{
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(64);
    options.memtable_bytes = MIB(4);
    options.scrub_bytes_per_s = 0;
    options.outside_versions = outside_versions;
    struct lsm_place place = {.dir = DIR, .token_last = UINT64_MAX};
    EXPECT(ok(lsm_open(&place, &options, &lsm)));
    lsm->levels->slice_bytes = KIB(64); /* a sweep of several slices */
}

static void
reopen(void)
{
    EXPECT(ok(lsm_close(lsm)));
    open_store();
}

static void
write_in(u16 keyspace, u32 i, bool deleted, u64 version)
{
    struct bytes key = key_of(i);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    batch.version = version;
    if (deleted)
        EXPECT(lsm_batch_delete(&batch, keyspace, hash_token(key), key));
    else
        EXPECT(lsm_batch_put(&batch, keyspace, hash_token(key), key, value_of(i), 0));
    u64 seq;
    EXPECT(ok(lsm_write(lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
}

static bool
is_deleted(u32 i)
{
    return i % 3 == 0;
}

/* All in the last level. */
static void
fill_last(u16 keyspace)
{
    for (u32 i = 0; i < KEYS; i++)
        write_in(keyspace, i, false, outside_versions ? 100 + i : 0);
    EXPECT(ok(lsm_compact(lsm)));
}

/* In a run above a third is deleted, and a third written again. */
static void
fill_above(u16 keyspace)
{
    for (u32 i = 0; i < KEYS; i++)
        if (i % 3 != 2) write_in(keyspace, i, is_deleted(i), outside_versions ? 100000 + i : 0);
    EXPECT(ok(lsm_flush(lsm)));
}

static void
fill_new(void)
{
    EXPECT(ok(io_dir_make(DIR)));
    open_store();
    fill_last(0);
    fill_above(0);
}

/* ---- damage ---- */

struct place {
    struct table *table;
    u32 block;
    u64 first, last; /* its tokens */
};

/* Where the key lies, in the newest run (0), the one before it and so on. */
static struct place
place_of(u16 keyspace, u32 run, u32 i)
{
    struct run_set *set = lsm->levels->current;
    EXPECT(run < run_set_tree_count(set, keyspace));
    const struct run_slot *slot = run_find(run_set_tree_run(set, keyspace, run), token_of(i));
    EXPECT(slot != NULL);
    struct table *table = slot->file->table;
    u32 block = table_index_find(table->index, token_of(i), key_of(i));
    const struct table_index *index = table->index;
    return (struct place){.table = table,
                          .block = block,
                          .first = index->tokens[block],
                          .last = block + 1 < index->block_count ? index->tokens[block + 1]
                                                                 : table->meta.token_last};
}

static void
flip(const char *path, u64 offset)
{
    EXPECT(ok(sim_disk_flip(disk, path, offset, 1)));
}

static void
damage(const struct place *place)
{
    char path[LSM_PATH_BYTES];
    table_path(path, DIR, place->table->meta.file_id);
    flip(path, table_index_offset(place->table->index, place->block) + 40);
}

/* As damage(), but the disk says that it cannot read it: a sector that has nothing else. */
static void
lose(const struct place *place)
{
    char path[LSM_PATH_BYTES];
    table_path(path, DIR, place->table->meta.file_id);
    EXPECT(io_file_read_unit(place->table->file) == LOST_BYTES);
    u64 sector = align_up(table_index_offset(place->table->index, place->block), LOST_BYTES);
    EXPECT(sector + LOST_BYTES <= table_index_offset(place->table->index, place->block + 1));
    EXPECT(ok(sim_disk_latent(disk, path, sector)));
}

/* A key whose block there holds tokens of one stretch only, or of two. */
static u32
key_in_block_of(u32 run, u32 stretches, bool deleted)
{
    for (u32 i = 1000; i < KEYS; i++) {
        if (is_deleted(i) != deleted || i % 500 == 7 || (i % 3 == 1 && run > 0)) continue;
        struct place place = place_of(0, run, i);
        if ((place.last >> SHIFT) - (place.first >> SHIFT) + 1 == stretches) return i;
    }
    EXPECT(false);
    return 0;
}

/* The value's record, where it is kept apart. */
static struct blob_pointer
pointer_of(u32 i)
{
    struct entry entry;
    struct levels_pin pin = {0};
    struct bytes key = key_of(i);
    EXPECT(ok(levels_get(lsm->levels, 0, token_of(i), key, hash_key(key, 0), UINT64_MAX, 0, &entry,
                         &pin)));
    EXPECT(entry.flags & ENTRY_BLOB);
    struct blob_pointer pointer;
    memcpy(&pointer, entry.value.data, sizeof(pointer));
    levels_unpin(&pin);
    return pointer;
}

static u64
damage_value(u32 i)
{
    struct blob_pointer pointer = pointer_of(i);
    char path[LSM_PATH_BYTES];
    blob_path(path, DIR, pointer.file_id);
    flip(path, pointer.offset + 1000);
    return pointer.file_id;
}

/* ---- looking ---- */

static status
get_in(u16 keyspace, u32 i)
{
    struct lsm_value value;
    status st = lsm_get(lsm, NULL, keyspace, token_of(i), key_of(i), &value);
    if (!ok(st)) return st;
    EXPECT(bytes_equal(value.value, value_of(i)));
    lsm_value_release(&value);
    return st;
}

static status
get(u32 i)
{
    return get_in(0, i);
}

/* How many entries there are, tombstones too. */
static u32
entries_of(u16 keyspace, u64 first, u64 last)
{
    struct lsm_scan *scan;
    EXPECT(ok(lsm_scan_open(lsm, NULL, keyspace, first, BYTES(NULL, 0), last, &scan)));
    lsm_scan_whole(scan);
    lsm_scan_pass_damage(scan);
    u32 count = 0;
    u64 token;
    struct bytes key;
    struct lsm_value value;
    status st;
    while (ok(st = lsm_scan_next(scan, false, &token, &key, &value)))
        count++;
    EXPECT(status_is(st, ST_END));
    lsm_scan_close(scan);
    return count;
}

/* Until the next call; a fiber's stack has no room for it. */
static const struct lsm_stats *
stats(void)
{
    static struct lsm_stats out;
    lsm_stats_get(lsm, &out);
    return &out;
}

/* One stretch is known, and it is this. */
static void
expect_stretch(u16 keyspace, u64 first, u64 last)
{
    u64 first_told, last_told;
    EXPECT(lsm_damage_next(lsm, keyspace, 0, &first_told, &last_told));
    EXPECT(first_told == first && last_told == last);
    EXPECT(lsm_damage_next(lsm, keyspace, last, &first_told, &last_told) && last_told == last);
    EXPECT(!lsm_damage_next(lsm, keyspace, last + 1, &first_told, &last_told));
    EXPECT(!lsm_damage_next(lsm, keyspace + 1, 0, &first_told, &last_told));
}

static bool
is_damaged(u16 keyspace)
{
    u64 first, last;
    return lsm_damage_next(lsm, keyspace, 0, &first, &last);
}

/* ---- the owner ---- */

static u64 bits;

static bool
is_dropped(u64 token)
{
    return bits >> (token >> SHIFT) & 1;
}

/* All that the damage may hold is let go of. */
static void
drop_damage(u16 keyspace)
{
    u64 first, last;
    for (u64 at = 0; lsm_damage_next(lsm, keyspace, at, &first, &last); at = last + 1) {
        for (u64 stretch = first >> SHIFT; stretch <= last >> SHIFT; stretch++)
            bits |= (u64)1 << stretch;
        if (last == UINT64_MAX) break;
    }
    EXPECT(bits != 0);
    EXPECT(ok(lsm_flush(lsm)));
    lsm_drop_set(lsm, keyspace, &bits, SHIFT);
}

static u32
entries_dropped(u16 keyspace)
{
    u32 count = 0;
    for (u64 i = 0; i < STRETCHES; i++)
        if (bits >> i & 1)
            count += entries_of(keyspace, i << SHIFT, (i << SHIFT) + (((u64)1 << SHIFT) - 1));
    return count;
}

/* Until the tree merges as any other. What was deleted is not to show at any moment. */
static void
wait_mended(u16 keyspace)
{
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (lsm->levels->trees[keyspace].broken || is_damaged(keyspace) ||
           levels_cleaning(lsm->levels)) {
        for (u32 i = 0; i < KEYS; i += 3 * 37)
            EXPECT(!ok(get_in(keyspace, i)));
        EXPECT(io_now_ns() < until_ns);
        fiber_sleep_ns(NS_PER_MS);
    }
}

/* What was not dropped is there byte for byte, and nothing else is. */
static void
expect_rest(u16 keyspace)
{
    for (u32 i = 0; i < KEYS; i++) {
        bool there = !is_deleted(i) && !is_dropped(token_of(i));
        status st = get_in(keyspace, i);
        EXPECT(there ? ok(st) : status_is(st, ST_NOT_FOUND));
    }
    EXPECT(entries_dropped(keyspace) == 0);
}

/* It was let go of, and comes back from elsewhere, with another key deleted. */
static void
bring_back(u16 keyspace)
{
    u64 dropped = bits;
    bits = 0;
    lsm_drop_set(lsm, keyspace, &bits, SHIFT);
    for (u32 i = 0; i < KEYS; i++)
        if (dropped >> (token_of(i) >> SHIFT) & 1 && !is_deleted(i))
            write_in(keyspace, i, false, outside_versions ? 100 + i : 0);
    EXPECT(ok(lsm_compact(lsm)));
    expect_rest(keyspace);
    lsm_drop_set(lsm, keyspace, NULL, 0);
}

static void
close_whole(void)
{
    EXPECT(stats()->state == LSM_STATE_OK && stats()->damaged_files == 0);
    EXPECT(lsm_check(lsm));
    EXPECT(ok(lsm_close(lsm)));
    u64 files, bytes;
    EXPECT(ok(lsm_verify(DIR, NULL, NULL, &files, &bytes)));
}

static void
run(status (*body)(void *arg), void *arg)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    bits = 0;
    sim = sim_new(&options);
    disk = sim_node_disk(sim_node_new(sim, "10.0.0.1"));
    assert_true(ok(sim_run(sim, 1, body, arg)));
    sim_free(sim);
    outside_versions = false;
}

/* ---- what is known ---- */

enum met { MET_GET, MET_SCAN, MET_LONG_SCAN, MET_SCRUB, MET_MERGE, MET_COUNT };

static void
scan_over(bool much)
{
    struct lsm_scan *scan;
    EXPECT(ok(lsm_scan_open(lsm, NULL, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan)));
    if (much) lsm_scan_much(scan);
    u64 token;
    struct bytes key;
    struct lsm_value value;
    status st;
    while (ok(st = lsm_scan_next(scan, false, &token, &key, &value)))
        continue;
    EXPECT(status_is(st, ST_CORRUPT));
    lsm_scan_close(scan);
}

static void
scrub(void)
{
    u64 passes = stats()->scrub_passes;
    lsm_scrub_rate_set(lsm, GIB(1));
    while (stats()->scrub_passes == passes)
        fiber_sleep_ns(10 * NS_PER_S);
    lsm_scrub_rate_set(lsm, 0);
}

static void
meet(enum met met, u32 i)
{
    switch (met) {
    case MET_GET:
        EXPECT(status_is(get(i), ST_CORRUPT));
        break;
    case MET_SCAN:
    case MET_LONG_SCAN:
        scan_over(met == MET_LONG_SCAN);
        break;
    case MET_SCRUB:
        scrub();
        break;
    case MET_MERGE:
    case MET_COUNT:
        EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
        break;
    }
}

static status
told_body(void *arg)
{
    enum met met = *(enum met *)arg;
    fill_new();
    lsm->levels->slice_bytes = MIB(64); /* a merge takes all or nothing */
    lsm_mends_set(lsm, 0, true);
    u32 key = key_in_block_of(0, 1, true);
    struct place place = place_of(0, 0, key);
    damage(&place);
    EXPECT(lsm_damage_epoch(lsm) == 0 && !is_damaged(0));
    meet(met, key);
    expect_stretch(0, place.first, place.last);
    EXPECT(lsm_damage_epoch(lsm) == 1);
    meet(met, key);
    meet(MET_GET, key);
    EXPECT(lsm_damage_epoch(lsm) == 1);
    expect_stretch(0, place.first, place.last);

    /* Another block of the same file. */
    u32 other = key_in_block_of(0, 2, true);
    struct place second = place_of(0, 0, other);
    EXPECT(second.table == place.table && second.block != place.block);
    damage(&second);
    meet(MET_GET, other);
    EXPECT(lsm_damage_epoch(lsm) == 2 && stats()->damaged_files == 1);
    u64 first, last;
    EXPECT(lsm_damage_next(lsm, 0, second.last, &first, &last));
    EXPECT(first == second.first && last == second.last);
    return lsm_close(lsm);
}

static void
damage_is_told_by_its_tokens_whoever_met_it(void **state)
{
    (void)state;
    for (enum met met = MET_GET; met < MET_COUNT; met++)
        run(told_body, &met);
}

static status
told_value_body(void *arg)
{
    (void)arg;
    fill_new();
    u32 key = 1507, other = 3007; /* of the upper run */
    EXPECT(ok(get(key)));
    u64 file_id = damage_value(key);
    EXPECT(damage_value(other) == file_id);
    meet(MET_GET, key);
    expect_stretch(0, token_of(key), token_of(key));
    meet(MET_GET, key);
    EXPECT(lsm_damage_epoch(lsm) == 1);
    meet(MET_GET, other);
    EXPECT(lsm_damage_epoch(lsm) == 2 && stats()->damaged_files == 1);
    /* The scrub does not know whose it is: all that the file may hold, where a table points to it.
     */
    scrub();
    EXPECT(lsm_damage_epoch(lsm) == 3);
    const struct level_blob *blob = level_blob_find(lsm->levels, file_id);
    expect_stretch(0, blob->token_first, blob->token_last);
    return lsm_close(lsm);
}

/* Its index on the disk, while the one in memory is good. */
static status
told_whole_body(void *arg)
{
    (void)arg;
    fill_new();
    const struct table *table = place_of(0, 0, 0).table;
    char path[LSM_PATH_BYTES];
    table_path(path, DIR, table->meta.file_id);
    flip(path, table->index->block_bytes + 20);
    scrub();
    expect_stretch(0, table->meta.token_first, table->meta.token_last);
    EXPECT(ok(get(1)));
    return lsm_close(lsm);
}

/* More than a list has room for: the last one becomes larger, and all is covered. */
static status
told_many_body(void *arg)
{
    (void)arg;
    fill_new();
    for (u32 i = 3; i < KEYS; i += 99) {
        struct place place = place_of(0, 0, i);
        damage(&place);
        (void)!ok(get(i)); /* two flips in one block mend it */
    }
    u64 epoch = lsm_damage_epoch(lsm);
    EXPECT(epoch >= GAPS_MAX);
    for (u32 i = 3; i < KEYS; i += 99) {
        u64 first, last;
        if (!status_is(get(i), ST_CORRUPT)) continue;
        EXPECT(lsm_damage_next(lsm, 0, token_of(i), &first, &last) && first <= token_of(i));
    }
    EXPECT(lsm_damage_epoch(lsm) == epoch);
    return lsm_close(lsm);
}

static void
damage_of_values_and_of_what_is_no_block_is_told_and_no_list_is_too_short(void **state)
{
    (void)state;
    run(told_value_body, NULL);
    run(told_whole_body, NULL);
    run(told_many_body, NULL);
}

/* ---- waiting ---- */

/* A merge in one slice, of which nothing is done. */
static void
wait_for_mending(void)
{
    u64 slice_bytes = lsm->levels->slice_bytes;
    lsm->levels->slice_bytes = MIB(64);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    EXPECT(lsm->levels->trees[0].waits);
    lsm->levels->slice_bytes = slice_bytes;
}

static status
waits_body(void *arg)
{
    bool mends = *(bool *)arg;
    fill_new();
    lsm_mends_set(lsm, 0, mends);
    u32 key = key_in_block_of(0, 1, true);
    struct place place = place_of(0, 0, key);
    damage(&place);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    EXPECT(stats()->state == (mends ? LSM_STATE_OK : LSM_STATE_FAILED));
    EXPECT(sim_log_contains(sim, "until it is mended") == mends);
    if (!mends) return lsm_close(lsm), ST_OK;
    expect_stretch(0, place.first, place.last);

    /* Both hold damage, or might: nothing is merged, whoever asks. */
    u64 merges = stats()->compactions, read = stats()->compaction_read_bytes;
    fiber_sleep_ns(30 * NS_PER_S);
    EXPECT(run_set_tree_count(lsm->levels->current, 0) == 2);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    EXPECT(stats()->compactions == merges && stats()->compaction_read_bytes == read);
    EXPECT(stats()->compactions_active == 0 && !levels_cleaning(lsm->levels));
    EXPECT(status_is(get(key), ST_CORRUPT));
    for (u32 i = 0; i < KEYS; i++)
        if (token_of(i) < place.first || token_of(i) > place.last)
            EXPECT(is_deleted(i) ? status_is(get(i), ST_NOT_FOUND) : ok(get(i)));

    lsm_mends_set(lsm, 0, true);
    EXPECT(stats()->state == LSM_STATE_OK);
    lsm_mends_set(lsm, 0, false);
    EXPECT(stats()->state == LSM_STATE_FAILED);
    EXPECT(strstr(stats()->failure, "damaged table met while compacting keyspace 0") != NULL);
    (void)!ok(lsm_close(lsm));
    return ST_OK;
}

static void
a_merge_that_meets_damage_waits_for_who_mends_and_fails_the_store_else(void **state)
{
    (void)state;
    for (bool mends = false;; mends = true) {
        run(waits_body, &mends);
        if (mends) break;
    }
}

/* ---- what cannot be read ---- */

/* A scan to its end; false: an I/O error ended it. */
static bool
scan_ends(bool passes, status expected)
{
    struct lsm_scan *scan;
    EXPECT(ok(lsm_scan_open(lsm, NULL, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan)));
    lsm_scan_much(scan);
    if (passes) lsm_scan_pass_damage(scan);
    u64 token;
    struct bytes key;
    struct lsm_value value;
    status st;
    while (ok(st = lsm_scan_next(scan, true, &token, &key, &value)))
        continue;
    lsm_scan_close(scan);
    EXPECT(status_is(st, expected) || status_is(st, ST_IO_ERROR));
    return status_is(st, expected);
}

/* It is an I/O error at first. */
static void
meet_unreadable(enum met met, u32 i)
{
    switch (met) {
    case MET_GET:
        EXPECT(status_is(get(i), ST_IO_ERROR));
        break;
    case MET_SCAN:
    case MET_LONG_SCAN:
        EXPECT(!scan_ends(met == MET_LONG_SCAN, ST_END));
        break;
    case MET_SCRUB:
        scrub();
        break;
    case MET_MERGE:
    case MET_COUNT:
        EXPECT(status_is(lsm_compact(lsm), ST_IO_ERROR));
        break;
    }
}

static status
unreadable_body(void *arg)
{
    enum met met = *(enum met *)arg;
    fill_new();
    lsm->levels->slice_bytes = MIB(64); /* a merge takes all or nothing */
    lsm_mends_set(lsm, 0, true);
    u32 key = key_in_block_of(0, 1, true);
    struct place place = place_of(0, 0, key);
    lose(&place);
    u64 met_ns = io_now_ns();
    meet_unreadable(met, key);
    EXPECT(met == MET_SCRUB || !is_damaged(0));
    while (!is_damaged(0)) {
        EXPECT(io_now_ns() - met_ns < 100 * NS_PER_S);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    EXPECT(io_now_ns() - met_ns >= 2 * NS_PER_S); /* not on one failure */
    expect_stretch(0, place.first, place.last);
    EXPECT(lsm_damage_epoch(lsm) == 1 && stats()->damaged_files == 1);
    EXPECT(sim_log_contains(sim, "what cannot be read is damage from now on"));

    /* Whoever meets it now meets damage, and nothing else is refused, not even what lies in the
     * same reads. */
    EXPECT(status_is(get(key), ST_CORRUPT));
    for (u32 i = 0; i < KEYS; i++)
        if (token_of(i) < place.first || token_of(i) > place.last)
            EXPECT(is_deleted(i) ? status_is(get(i), ST_NOT_FOUND) : ok(get(i)));
    u32 outside = 0, shown = 0;
    for (u32 i = 0; i < KEYS; i++)
        outside += token_of(i) < place.first || token_of(i) > place.last;
    if (place.first > 0) shown += entries_of(0, 0, place.first - 1);
    if (place.last < UINT64_MAX) shown += entries_of(0, place.last + 1, UINT64_MAX);
    EXPECT(shown == outside && entries_of(0, place.first, place.last) == 0);
    EXPECT(scan_ends(true, ST_END) && scan_ends(false, ST_CORRUPT));
    EXPECT(lsm_damage_epoch(lsm) == 1);

    /* A merge waits, and the one that drops goes on behind it. */
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    EXPECT(stats()->state == LSM_STATE_OK);
    drop_damage(0);
    wait_mended(0);
    expect_rest(0);
    bring_back(0);
    close_whole();
    return ST_OK;
}

static void
what_cannot_be_read_is_damage_whoever_met_it(void **state)
{
    (void)state;
    for (enum met met = MET_GET; met < MET_COUNT; met++)
        run(unreadable_body, &met);
}

/* Where nobody mends, the store says what is wrong, as with a wrong checksum, instead of trying the
 * same merge until so much is unmerged that all writes are refused. */
static status
unreadable_alone_body(void *arg)
{
    (void)arg;
    fill_new();
    u32 key = key_in_block_of(0, 1, true);
    struct place place = place_of(0, 0, key);
    lose(&place);
    EXPECT(status_is(get(key), ST_IO_ERROR));
    fiber_sleep_ns(NS_PER_S + NS_PER_S / 2);
    reopen(); /* while it is looked at */
    EXPECT(status_is(lsm_compact(lsm), ST_IO_ERROR));
    EXPECT(stats()->state == LSM_STATE_OK);
    fiber_sleep_ns(10 * NS_PER_S);
    EXPECT(stats()->damaged_files == 1);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    EXPECT(stats()->state == LSM_STATE_FAILED);
    return lsm_close(lsm), ST_OK;
}

static status
unreadable_value_body(void *arg)
{
    bool by_scrub = *(bool *)arg;
    fill_new();
    u32 key = 1507;
    struct blob_pointer pointer = pointer_of(key);
    char path[LSM_PATH_BYTES];
    blob_path(path, DIR, pointer.file_id);
    EXPECT(ok(sim_disk_latent(disk, path, pointer.offset + 3000)));
    const struct level_blob *blob = level_blob_find(lsm->levels, pointer.file_id);
    if (by_scrub)
        scrub();
    else
        EXPECT(status_is(get(key), ST_IO_ERROR));
    fiber_sleep_ns(10 * NS_PER_S);
    if (by_scrub)
        expect_stretch(0, blob->token_first, blob->token_last);
    else
        expect_stretch(0, token_of(key), token_of(key));
    EXPECT(status_is(get(key), ST_CORRUPT) && ok(get(3007)));
    EXPECT(scan_ends(true, ST_END));
    return lsm_close(lsm);
}

static void
what_cannot_be_read_is_told_for_values_too_and_where_nobody_mends(void **state)
{
    (void)state;
    run(unreadable_alone_body, NULL);
    for (bool by_scrub = false;; by_scrub = true) {
        run(unreadable_value_body, &by_scrub);
        if (by_scrub) break;
    }
}

/* A disk that fails each read, for a moment or for long, has no damaged tables. */
static status
dead_disk_body(void *arg)
{
    u64 dead_ns = *(u64 *)arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    lsm_scrub_rate_set(lsm, GIB(1));
    u32 key = key_in_block_of(1, 1, false);
    sim_error_rates_set(sim, 1000000, 0, 0);
    u64 until_ns = io_now_ns() + dead_ns;
    do {
        EXPECT(status_is(get(key), ST_IO_ERROR));
        EXPECT(!ok(lsm_compact(lsm)));
        fiber_sleep_ns(300 * NS_PER_MS);
    } while (io_now_ns() < until_ns);
    sim_error_rates_set(sim, 0, 0, 0);
    fiber_sleep_ns(200 * NS_PER_S);
    EXPECT(!is_damaged(0) && stats()->corruptions == 0 && stats()->damaged_files == 0);
    EXPECT(ok(lsm_compact(lsm)));
    expect_rest(0);
    close_whole();
    return ST_OK;
}

/* Nor is it a file of which nothing can be read. */
static status
dead_file_body(void *arg)
{
    (void)arg;
    fill_new();
    u32 key = key_in_block_of(0, 1, true);
    struct place place = place_of(0, 0, key);
    char path[LSM_PATH_BYTES];
    table_path(path, DIR, place.table->meta.file_id);
    for (u64 at = 0; at < place.table->meta.file_bytes; at += IO_ALIGNMENT)
        EXPECT(ok(sim_disk_latent(disk, path, at)));
    for (u32 i = 0; i < 20; i++) {
        EXPECT(status_is(get(key), ST_IO_ERROR));
        fiber_sleep_ns(NS_PER_S);
    }
    EXPECT(!is_damaged(0) && stats()->damaged_files == 0);
    return lsm_close(lsm);
}

static void
a_disk_that_reads_nothing_has_no_damaged_tables(void **state)
{
    (void)state;
    for (u64 dead_ns = 0; dead_ns <= 60 * NS_PER_S; dead_ns += 20 * NS_PER_S)
        run(dead_disk_body, &dead_ns);
    run(dead_file_body, NULL);
}

/* ---- merging while it waits ---- */

#define WAITING_FLUSHES 300u

struct waiting {
    bool outside; /* outside_versions */
    u32 run;      /* where the damage is */
    u64 crash;    /* after so many requests; 0: none */
};

/* What was written: whether a key is deleted, and whether that has not been flushed yet. */
static struct model {
    bool gone[KEYS], unsure[KEYS];
    struct place place;
    struct prng prng;
    u64 version;
} model;

static bool
is_known_damaged(u64 token)
{
    u64 first, last;
    return lsm_damage_next(lsm, 0, token, &first, &last) && first <= token;
}

/* stretch: its keys only; STRETCHES: any. */
static void
model_flush_in(u64 stretch)
{
    u32 written[20];
    for (u32 j = 0; j < ARRAY_COUNT(written); j++) {
        u32 i;
        do
            i = written[j] = prng_u64(&model.prng) % KEYS;
        while (stretch != STRETCHES && token_of(i) >> SHIFT != stretch);
        bool gone = prng_u64(&model.prng) % 2;
        model.unsure[i] = true;
        write_in(0, i, gone, outside_versions ? model.version++ : 0);
        model.gone[i] = gone;
    }
    EXPECT(ok(lsm_flush(lsm)));
    for (u32 j = 0; j < ARRAY_COUNT(written); j++)
        model.unsure[written[j]] = false;
}

static void
model_flush(void)
{
    model_flush_in(STRETCHES);
}

/* A stretch without the damage. */
static void
model_delete_range(void)
{
    u64 stretch = (model.place.first >> SHIFT) + 2;
    EXPECT(stretch < STRETCHES || stretch - 4 < STRETCHES);
    if (stretch >= STRETCHES) stretch -= 4;
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    if (outside_versions) batch.version = model.version++;
    EXPECT(lsm_batch_delete_range(&batch, 0, stretch << SHIFT,
                                  (stretch << SHIFT) + (((u64)1 << SHIFT) - 1)));
    u64 seq;
    EXPECT(ok(lsm_write(lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
    for (u32 i = 0; i < KEYS; i++)
        model.gone[i] = model.gone[i] || token_of(i) >> SHIFT == stretch;
}

/* Nothing is wrong; what lies with the damage may be refused, be it. */
static void
expect_model(struct lsm_snapshot *snapshot, const bool *gone, bool damaged)
{
    for (u32 i = 0; i < KEYS; i++) {
        struct lsm_value value;
        if (model.unsure[i]) continue;
        status st = lsm_get(lsm, snapshot, 0, token_of(i), key_of(i), &value);
        if (ok(st)) {
            EXPECT(bytes_equal(value.value, value_of(i)));
            lsm_value_release(&value);
        }
        if (damaged && status_is(st, ST_CORRUPT) && is_known_damaged(token_of(i))) continue;
        bool there = !gone[i] && !is_dropped(token_of(i));
        EXPECT(there ? ok(st) : status_is(st, ST_NOT_FOUND));
    }
}

static void
model_begin(const struct waiting *waiting)
{
    outside_versions = waiting->outside;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    model = (struct model){.version = 1000000};
    prng_init(&model.prng, 1 + waiting->crash);
    for (u32 i = 0; i < KEYS; i++)
        model.gone[i] = is_deleted(i);
    model.place = place_of(0, waiting->run, key_in_block_of(waiting->run, 1, waiting->run == 0));
    damage(&model.place);
    wait_for_mending();
}

static void
model_mended(void)
{
    drop_damage(0);
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (lsm->levels->trees[0].broken || is_damaged(0) || levels_cleaning(lsm->levels)) {
        for (u32 i = 0; i < KEYS; i += 37)
            EXPECT(!model.gone[i] || model.unsure[i] || !ok(get(i)));
        EXPECT(io_now_ns() < until_ns);
        fiber_sleep_ns(NS_PER_MS);
    }
    expect_model(NULL, model.gone, false);
    EXPECT(entries_dropped(0) == 0);
}

static status
waiting_body(void *arg)
{
    const struct waiting *waiting = arg;
    static bool seen[KEYS];
    model_begin(waiting);
    u64 merges = stats()->compactions;
    struct lsm_snapshot *snapshot = NULL;
    u32 runs_max = 0;
    for (u32 n = 0; n < WAITING_FLUSHES; n++) {
        if (n == 100) model_delete_range();
        if (n == 150) {
            snapshot = lsm_snapshot_open(lsm);
            EXPECT(snapshot != NULL);
            memcpy(seen, model.gone, sizeof(seen));
        }
        model_flush();
        runs_max = MAX(runs_max, run_set_tree_count(lsm->levels->current, 0));
        if (n % 50 == 49) expect_model(NULL, model.gone, true);
    }
    EXPECT(lsm->levels->trees[0].waits && is_damaged(0));
    EXPECT(runs_max < 40 && stats()->compactions > merges + 30);
    expect_model(snapshot, seen, true);
    lsm_snapshot_close(snapshot);
    fiber_sleep_ns(30 * NS_PER_S);
    EXPECT(run_set_tree_count(lsm->levels->current, 0) < 24);
    EXPECT(entries_of(0, 0, UINT64_MAX) > 0);
    expect_model(NULL, model.gone, true);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT) && lsm_check(lsm));
    expect_stretch(0, model.place.first, model.place.last); /* where it was, as it was */

    model_mended();
    EXPECT(ok(lsm_compact(lsm)));
    EXPECT(run_set_tree_count(lsm->levels->current, 0) == 1);
    expect_model(NULL, model.gone, false);
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

static void
however_long_a_keyspace_waits_it_has_few_runs_and_reads_right(void **state)
{
    (void)state;
    for (u32 i = 0; i < 4; i++) {
        struct waiting waiting = {.outside = i & 1, .run = i >> 1};
        run(waiting_body, &waiting);
    }
}

/* Power fails in the middle. */
static status
waiting_crash_body(void *arg)
{
    const struct waiting *waiting = arg;
    model_begin(waiting);
    lsm->levels->fanout = 3;
    EXPECT(ok(io_dir_sync("/")));
    sim_crash_at(sim, SIM_POINT_IO, waiting->crash);
    for (u32 n = 0; n < 40; n++)
        model_flush();
    return lsm_close(lsm);
}

static status
waiting_again_body(void *arg)
{
    (void)arg;
    open_store();
    EXPECT(lsm_check(lsm));
    lsm_mends_set(lsm, 0, true);
    expect_model(NULL, model.gone, true);
    (void)entries_of(0, 0, UINT64_MAX);
    EXPECT(is_damaged(0));
    for (u32 n = 0; n < 20; n++)
        model_flush();
    expect_model(NULL, model.gone, true);
    model_mended();
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

static void
a_crash_while_it_waits_changes_nothing(void **state)
{
    (void)state;
    u32 crashes = 0;
    for (u64 n = 1; n < 700; n += 23 * EVERY(3)) {
        struct waiting waiting = {.outside = n & 1, .run = n / 2 & 1, .crash = n};
        struct sim_options options;
        sim_options_default(&options, n);
        bits = 0;
        sim = sim_new(&options);
        disk = sim_node_disk(sim_node_new(sim, "10.0.0.1"));
        (void)!ok(sim_run(sim, 1, waiting_crash_body, &waiting));
        crashes += sim_crashed(sim);
        sim_faults_clear(sim);
        assert_true(ok(sim_run(sim, 1, waiting_again_body, NULL)));
        sim_free(sim);
    }
    outside_versions = false;
    assert_true(crashes > 20 / EVERY(3));
}

static status
write_status(u16 keyspace, u32 i)
{
    struct bytes key = key_of(i);
    struct lsm_batch batch;
    u64 seq;
    lsm_batch_init(&batch, io_budget());
    EXPECT(lsm_batch_put(&batch, keyspace, hash_token(key), key, value_of(i), 0));
    status st = lsm_write(lsm, &batch, &seq);
    lsm_batch_deinit(&batch);
    return st;
}

/* A merge of tiers fails by something of which it is not known where it lies. */
static status
stuck_body(void *arg)
{
    (void)arg;
    struct waiting waiting = {.run = 0};
    model_begin(&waiting);
    model_flush();
    struct table *table = place_of(0, 0, 0).table;
    table->meta.entry_count++;
    lsm->levels->table_entries++;
    u64 failures = stats()->corruptions;
    u32 count = 0;
    while (ok(write_status(0, 1))) {
        EXPECT(++count < 2 * LEVELS_RUNS_MAX);
        EXPECT(ok(lsm_flush(lsm)));
    }
    EXPECT(stats()->corruptions == failures + 1 && lsm->levels->trees[0].stuck);
    EXPECT(run_set_tree_count(lsm->levels->current, 0) == LEVELS_RUNS_MAX);
    /* Others are written to, and it can be read, so it can be mended. */
    EXPECT(status_is(write_status(0, 1), ST_OVERLOADED));
    EXPECT(ok(write_status(16, 1)) && ok(lsm_flush(lsm)));
    EXPECT(stats()->state == LSM_STATE_OK);
    EXPECT(entries_of(0, 0, UINT64_MAX) > 0);
    model.gone[1] = false;
    expect_model(NULL, model.gone, true);

    table->meta.entry_count--;
    lsm->levels->table_entries--;
    model_mended();
    fiber_sleep_ns(30 * NS_PER_S);
    EXPECT(run_set_tree_count(lsm->levels->current, 0) < 24 && !lsm->levels->trees[0].stuck);
    EXPECT(ok(write_status(0, 1)));
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

/* So many runs when it begins to wait that nothing was written any more. */
static status
late_body(void *arg)
{
    (void)arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    u32 key = key_in_block_of(1, 1, false);
    struct place place = place_of(0, 1, key);
    damage(&place);
    EXPECT(!ok(get(key)) && is_damaged(0));
    struct table *table = place_of(0, 0, 0).table;
    table->meta.entry_count++;
    lsm->levels->table_entries++;
    fiber_mutex_lock(&lsm->levels->compact_mutex);
    while (ok(write_status(0, KEYS)))
        EXPECT(ok(lsm_flush(lsm)));
    EXPECT(status_is(write_status(16, 1), ST_OVERLOADED));
    u64 merges = stats()->compactions;
    lsm->levels->fanout = 1000; /* only all of it is merged, or nothing */
    lsm->levels->slice_bytes = MIB(64);
    fiber_mutex_unlock(&lsm->levels->compact_mutex);
    EXPECT(status_is(levels_compact_all(lsm->levels), ST_CORRUPT)); /* nothing is flushed */
    EXPECT(lsm->levels->trees[0].waits && stats()->compactions == merges);
    EXPECT(ok(write_status(16, 1)) && ok(write_status(0, KEYS)));
    table->meta.entry_count--;
    lsm->levels->table_entries--;
    return lsm_close(lsm);
}

static void
a_keyspace_that_waits_and_cannot_be_merged_refuses_writes_and_no_scan(void **state)
{
    (void)state;
    run(stuck_body, NULL);
    run(late_body, NULL);
}

/* More damage is met meanwhile: it is known from then on, and what is not damaged goes on. */
static status
more_damage_body(void *arg)
{
    (void)arg;
    struct waiting waiting = {.run = 1};
    model_begin(&waiting);
    model_flush();
    model_flush_in(model.place.first >> SHIFT);
    u64 epoch = lsm_damage_epoch(lsm);
    struct table *table = run_set_tree_run(lsm->levels->current, 0, 0)->slots[0].file->table;
    struct place second = {.table = table};
    damage(&second);
    u64 id = run_set_tree_run(lsm->levels->current, 0, 0)->id;
    for (u32 n = 0; n < 100; n++)
        model_flush();
    fiber_sleep_ns(30 * NS_PER_S);
    EXPECT(lsm_damage_epoch(lsm) > epoch && !lsm->levels->trees[0].stuck);
    EXPECT(run_set_find(lsm->levels->current, id) != NULL);
    EXPECT(run_set_tree_count(lsm->levels->current, 0) < 24);
    expect_model(NULL, model.gone, true);
    EXPECT(stats()->state == LSM_STATE_OK && stats()->damaged_files == 2);
    model_mended();
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

static void
damage_that_a_keyspace_meets_while_it_waits_is_gone_around(void **state)
{
    (void)state;
    run(more_damage_body, NULL);
}

/* ---- letting go ---- */

struct letting_go {
    bool cached; /* the block cache has the block as it was */
    bool merged; /* a merge has met the damage before */
    u32 run;     /* where it is */
};

static status
drop_body(void *arg)
{
    const struct letting_go *go = arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    u32 key = key_in_block_of(go->run, 1, go->run == 0);
    struct place place = place_of(0, go->run, key);
    u64 seq_max = place.table->meta.seq_max;
    status before = go->cached ? get(key) : ST_OK;
    EXPECT(!go->cached || go->run == 1 ? ok(before) : status_is(before, ST_NOT_FOUND));
    damage(&place);
    if (go->cached) {
        row_cache_clear(lsm->row_cache);
        status st = get(key);
        EXPECT(ok(st) == ok(before));
        EXPECT(!is_damaged(0));
        scrub();
    } else {
        EXPECT(status_is(get(key), ST_CORRUPT));
    }
    if (go->merged) EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    EXPECT(stats()->damaged_files == 1);
    expect_stretch(0, place.first, place.last);
    u64 live = lsm_count_estimate(lsm, 0);
    drop_damage(0);
    wait_mended(0);
    expect_rest(0);
    EXPECT(lsm_dropped_seq(lsm, 0, key_of(key)) >= seq_max);
    EXPECT(lsm_count_estimate(lsm, 0) <= live && lsm_count_estimate(lsm, 0) > 0);
    EXPECT(stats()->table_entries > 0 && stats()->table_entries < KEYS);
    EXPECT(stats()->damaged_files == 0);
    bring_back(0);
    close_whole();
    return ST_OK;
}

/* One table that could become part of the last level as it is. */
static status
alone_body(void *arg)
{
    (void)arg;
    EXPECT(ok(io_dir_make(DIR)));
    open_store();
    lsm->levels->slice_bytes = MIB(64);
    lsm_mends_set(lsm, 0, true);
    for (u32 i = 0; i < KEYS; i++)
        if (!is_deleted(i)) write_in(0, i, false, 0);
    EXPECT(ok(lsm_flush(lsm)));
    u32 key = key_in_block_of(0, 1, false);
    struct place place = place_of(0, 0, key);
    damage(&place);
    EXPECT(status_is(get(key), ST_CORRUPT));
    drop_damage(0);
    wait_mended(0);
    expect_rest(0);
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

static void
what_is_damaged_goes_with_all_of_its_tokens_and_nothing_older_shows(void **state)
{
    (void)state;
    run(alone_body, NULL);
    for (u32 i = 0; i < 8; i++) {
        struct letting_go go = {.cached = i & 1, .merged = i >> 1 & 1, .run = i >> 2 & 1};
        run(drop_body, &go);
    }
}

/* The block holds tokens of two stretches, one of which is dropped. */
static status
partly_body(void *arg)
{
    bool slices = *(bool *)arg; /* the dropped part goes with its own */
    fill_new();
    if (!slices) lsm->levels->slice_bytes = MIB(64);
    lsm_mends_set(lsm, 0, true);
    u32 key = key_in_block_of(0, 2, true);
    struct place place = place_of(0, 0, key);
    damage(&place);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    bits = (u64)1 << (place.first >> SHIFT);
    lsm_drop_set(lsm, 0, &bits, SHIFT);
    fiber_sleep_ns(20 * NS_PER_S);
    EXPECT(lsm->levels->trees[0].waits && stats()->state == LSM_STATE_OK);
    expect_stretch(0, slices ? place.last >> SHIFT << SHIFT : place.first, place.last);
    EXPECT(lsm_damage_epoch(lsm) == 1);
    for (u32 i = 0; i < KEYS; i += 3)
        EXPECT(!ok(get(i)));
    drop_damage(0);
    EXPECT(bits == ((u64)1 << (place.first >> SHIFT) | (u64)1 << (place.last >> SHIFT)));
    wait_mended(0);
    expect_rest(0);
    bring_back(0);
    close_whole();
    return ST_OK;
}

static void
damage_of_which_a_part_is_kept_waits_again(void **state)
{
    (void)state;
    for (bool slices = false;; slices = true) {
        run(partly_body, &slices);
        if (slices) break;
    }
}

/* The part of the block that was dropped is written again, while the other one waits. */
static status
view_body(void *arg)
{
    (void)arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    struct place place = place_of(0, 0, key_in_block_of(0, 2, true));
    u64 border = place.last >> SHIFT << SHIFT;
    damage(&place);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    bits = (u64)1 << (place.first >> SHIFT);
    lsm_drop_set(lsm, 0, &bits, SHIFT);
    fiber_sleep_ns(20 * NS_PER_S);
    EXPECT(lsm->levels->trees[0].waits);
    expect_stretch(0, border, place.last);
    bits = 0;
    lsm_drop_set(lsm, 0, &bits, SHIFT);
    u32 written = 0;
    for (u32 i = 0; i < KEYS; i++) {
        if (token_of(i) < place.first || token_of(i) >= border) continue;
        write_in(0, i, false, 0);
        written++;
    }
    u32 behind = entries_of(0, place.last + 1, UINT64_MAX);
    EXPECT(written > 0 && entries_of(0, place.first, UINT64_MAX) == written + behind);
    lsm_drop_set(lsm, 0, NULL, 0);
    return lsm_close(lsm);
}

static void
a_scan_leaves_out_no_more_than_damage_may_hold_where_it_is_in_view(void **state)
{
    (void)state;
    run(view_body, NULL);
}

/* ---- the same, with values apart ---- */

static status
value_body(void *arg)
{
    bool second = *(bool *)arg;
    fill_new();
    lsm->levels->slice_bytes = MIB(64); /* so that no value moves but for its file's damage */
    lsm_mends_set(lsm, 0, true);
    u32 key = 1507, other = 7; /* of the upper run */
    EXPECT(token_of(key) >> SHIFT != token_of(other) >> SHIFT);
    u64 file_id = damage_value(key);
    EXPECT(status_is(get(key), ST_CORRUPT));
    expect_stretch(0, token_of(key), token_of(key));
    if (second) EXPECT(damage_value(other) == file_id);
    drop_damage(0);
    if (second) {
        /* It is not known until the values that stay are written anew. */
        fiber_sleep_ns(20 * NS_PER_S);
        EXPECT(lsm->levels->trees[0].waits && lsm_damage_epoch(lsm) == 2);
        u64 first, last;
        EXPECT(lsm_damage_next(lsm, 0, token_of(other), &first, &last));
        EXPECT(first == token_of(other) && last == first);
        drop_damage(0);
    }
    wait_mended(0);
    EXPECT(level_blob_find(lsm->levels, file_id) == NULL);
    EXPECT(lsm->levels->blob_live_bytes <= lsm->levels->blob_bytes);
    expect_rest(0);
    bring_back(0);
    close_whole();
    return ST_OK;
}

/* All pointers to a blob file are in the block that is left out. */
static status
pointers_body(void *arg)
{
    (void)arg;
    fill_new();
    u32 key = 1507;
    write_in(0, key, false, 0);
    EXPECT(ok(lsm_flush(lsm)));
    lsm_mends_set(lsm, 0, true);
    struct place place = place_of(0, 0, key);
    EXPECT(place.table->meta.blob_ref_count == 1);
    u64 file_id = place.table->meta.blob_refs[0].file_id;
    damage(&place);
    EXPECT(status_is(get(key), ST_CORRUPT));
    drop_damage(0);
    wait_mended(0);
    EXPECT(level_blob_find(lsm->levels, file_id) == NULL);
    expect_rest(0);
    close_whole();
    return ST_OK;
}

static void
a_damaged_value_goes_with_its_file_and_the_others_of_it_stay(void **state)
{
    (void)state;
    for (bool second = false;; second = true) {
        run(value_body, &second);
        if (second) break;
    }
    run(pointers_body, NULL);
}

/* ---- beside others, and after others ---- */

static status
keyspaces_body(void *arg)
{
    (void)arg;
    EXPECT(ok(io_dir_make(DIR)));
    open_store();
    fill_last(0);
    fill_last(3);
    fill_above(0);
    fill_above(3);
    u32 key = key_in_block_of(0, 1, true);
    struct place places[] = {place_of(0, 0, key), place_of(3, 0, key)};
    for (u32 i = 0; i < 2; i++) {
        lsm_mends_set(lsm, i == 0 ? 0 : 3, true);
        damage(&places[i]);
    }
    EXPECT(status_is(get_in(3, key), ST_CORRUPT));
    expect_stretch(3, places[1].first, places[1].last);
    EXPECT(!is_damaged(0));
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    EXPECT(status_is(get(key), ST_CORRUPT));
    drop_damage(3);
    wait_mended(3);
    expect_rest(3);
    /* Nothing of the other one was dropped. */
    expect_stretch(0, places[0].first, places[0].last);
    EXPECT(status_is(get(key), ST_CORRUPT));
    lsm_drop_set(lsm, 3, NULL, 0);
    bits = 0;
    drop_damage(0);
    wait_mended(0);
    expect_rest(0);
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

static void
each_keyspace_is_mended_by_itself(void **state)
{
    (void)state;
    run(keyspaces_body, NULL);
}

/* Nothing is known of it after a restart, wherever the merge that drops had come. */
static status
restart_body(void *arg)
{
    u32 yields = *(u32 *)arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    u32 key = key_in_block_of(0, 1, true);
    struct place place = place_of(0, 0, key);
    damage(&place);
    EXPECT(status_is(lsm_compact(lsm), ST_CORRUPT));
    drop_damage(0);
    for (u32 i = 0; i < yields; i++)
        fiber_sleep_ns(200 * NS_PER_US);
    reopen();
    EXPECT(!is_damaged(0) && lsm_damage_epoch(lsm) == 0);
    lsm_mends_set(lsm, 0, true);
    for (u32 i = 0; i < KEYS; i += 3)
        EXPECT(!ok(get(i)));
    status st = lsm_compact(lsm);
    EXPECT(ok(st) == !is_damaged(0));
    if (!ok(st)) {
        EXPECT(status_is(st, ST_CORRUPT) && lsm->levels->trees[0].waits);
        drop_damage(0);
    } else {
        lsm_drop_set(lsm, 0, &bits, SHIFT);
        while (levels_cleaning(lsm->levels))
            fiber_sleep_ns(NS_PER_MS);
    }
    wait_mended(0);
    expect_rest(0);
    bring_back(0);
    close_whole();
    return ST_OK;
}

static void
a_restart_forgets_what_is_damaged_until_it_is_met_again(void **state)
{
    (void)state;
    for (u32 yields = 0; yields < 60; yields += 4)
        run(restart_body, &yields);
}

/* From the key's block on, all that its table has. */
static void
damage_from(struct place place)
{
    for (; place.block < place.table->index->block_count; place.block++)
        damage(&place);
}

/* The stretches are wanted again while the merge is on its way, which has left out many blocks at
 * once and has yet to come to what older runs have of their tokens. */
static status
wanted_body(void *arg)
{
    u32 waits = *(u32 *)arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    lsm->levels->slice_bytes = MIB(64); /* one slice */
    damage_from(place_of(0, 0, key_in_block_of(0, 1, true)));
    (void)entries_of(0, 0, UINT64_MAX); /* meets all of it */
    drop_damage(0);
    for (u32 i = 0; i < waits; i++)
        fiber_sleep_ns(50 * NS_PER_US);
    bits = 0;
    lsm_drop_set(lsm, 0, &bits, SHIFT);
    fiber_sleep_ns(5 * NS_PER_S);
    for (u32 i = 0; i < KEYS; i += 3)
        EXPECT(!ok(get(i)));
    if (!is_damaged(0)) EXPECT(entries_of(0, 0, UINT64_MAX) < KEYS);
    return lsm_close(lsm);
}

static void
what_is_wanted_again_meanwhile_is_gone_whole_or_damaged_as_before(void **state)
{
    (void)state;
    for (u32 waits = 0; waits < 120; waits += EVERY(7))
        run(wanted_body, &waits);
}

/* A merge that drops has begun and holds still; the key is in a later slice. */
static struct level_tree *
hold_while_dropping(u32 key)
{
    struct level_tree *tree = &lsm->levels->trees[0];
    u64 first = place_of(0, 0, key).first;
    for (;;) {
        fiber_mutex_lock(&lsm->levels->compact_mutex);
        if (tree->sweeps[0].active) break;
        fiber_mutex_unlock(&lsm->levels->compact_mutex);
        fiber_sleep_ns(10 * NS_PER_US);
    }
    EXPECT(tree->sweeps[0].drops && tree->sweeps[0].token_next <= first);
    return tree;
}

/* Its block lies in the last stretch but one, so that there are tokens on both sides that are kept.
 */
static u32
late_deleted(void)
{
    u32 key = 0;
    for (u32 i = 0; i < KEYS; i += 3) {
        struct place place = place_of(0, 0, i);
        if (place.first >> SHIFT == STRETCHES - 2 && place.last >> SHIFT == STRETCHES - 2) key = i;
    }
    EXPECT(token_of(key) >> SHIFT == STRETCHES - 2);
    return key;
}

struct beside {
    bool before;  /* it was in memory at the call of lsm_drop_set, and may be of any token */
    bool again;   /* it came later, and then that was called once more for the same */
    u64 failures; /* out: of merges, and of reads when before */
};

/* An older version comes to a run beside the merge. */
static status
beside_body(void *arg)
{
    struct beside *beside = arg;
    outside_versions = true;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    u32 key = late_deleted();
    struct place place = place_of(0, 0, key);
    damage(&place);
    wait_for_mending();
    drop_damage(0);
    if (beside->before) {
        lsm_drop_set(lsm, 0, NULL, 0);
        write_in(0, key, false, 50);
        lsm_drop_set(lsm, 0, &bits, SHIFT);
    }
    struct level_tree *tree = hold_while_dropping(key);
    for (u32 i = 0; i < 100; i++)
        if (!is_dropped(token_of(KEYS + i))) write_in(0, KEYS + i, false, 50);
    EXPECT(ok(lsm_flush(lsm)));
    if (beside->again) lsm_drop_set(lsm, 0, &bits, SHIFT);
    u64 failures = stats()->corruptions;
    fiber_mutex_unlock(&lsm->levels->compact_mutex);
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (tree->broken && io_now_ns() < until_ns) {
        if (beside->before) EXPECT(!ok(get(key)));
        fiber_sleep_ns(100 * NS_PER_US);
    }
    EXPECT(!tree->broken);
    beside->failures = stats()->corruptions - failures;
    wait_mended(0);
    expect_rest(0);
    close_whole();
    return ST_OK;
}

static void
damage_is_not_left_out_beside_a_run_that_may_hold_older_versions(void **state)
{
    (void)state;
    struct beside before = {.before = true}, after = {.before = false}, again = {.again = true};
    run(beside_body, &before);
    run(beside_body, &after);
    run(beside_body, &again);
    /* What came later holds nothing back. */
    assert_int_equal(after.failures, 0);
    assert_int_equal(again.failures, 0);
}

/* When all is to be dropped that the damage may hold there are as many runs as a keyspace can have,
 * and an older version of what is damaged lies in the newest. */
static status
outgrown_body(void *arg)
{
    (void)arg;
    outside_versions = true;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    u32 key = late_deleted();
    struct place place = place_of(0, 0, key);
    damage(&place);
    wait_for_mending();
    fiber_mutex_lock(&lsm->levels->compact_mutex);
    for (u32 n = KEYS; run_set_tree_count(lsm->levels->current, 0) < LEVELS_RUNS_MAX - 1; n++) {
        if (token_of(n) <= place.last) continue; /* a merge does not come as far */
        write_in(0, n, false, 50);
        EXPECT(ok(lsm_flush(lsm)));
    }
    write_in(0, key, false, 50);
    drop_damage(0);
    EXPECT(run_set_tree_count(lsm->levels->current, 0) == LEVELS_RUNS_MAX);
    fiber_mutex_unlock(&lsm->levels->compact_mutex);
    wait_mended(0);
    expect_rest(0);
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

static void
however_many_runs_there_are_one_merge_drops_of_all(void **state)
{
    (void)state;
    run(outgrown_body, NULL);
}

/* The merge that drops has a long way to go, and with each of its slices something is flushed. */
static status
long_body(void *arg)
{
    (void)arg;
    EXPECT(ok(io_dir_make(DIR)));
    open_store();
    lsm->levels->slice_bytes = 1536; /* several times as many flushes as there may be runs */
    fill_last(0);
    fill_above(0);
    lsm_mends_set(lsm, 0, true);
    u32 key = late_deleted();
    struct place place = place_of(0, 0, key);
    damage(&place);
    wait_for_mending();
    drop_damage(0);
    struct level_tree *tree = hold_while_dropping(key);
    lsm->levels->slice_bytes = KIB(64); /* of other merges */
    u64 failures = stats()->corruptions;
    u32 runs_max = 0, flushes = 0;
    for (u32 n = KEYS; tree->broken; n++) {
        if (is_dropped(token_of(n))) continue;
        write_in(0, n, false, 0);
        fiber_mutex_unlock(&lsm->levels->compact_mutex);
        EXPECT(ok(lsm_flush(lsm)));
        status st = get(key);
        EXPECT(!ok(st));
        failures += status_is(st, ST_CORRUPT);
        fiber_mutex_lock(&lsm->levels->compact_mutex);
        runs_max = MAX(runs_max, run_set_tree_count(lsm->levels->current, 0));
        flushes++;
    }
    EXPECT(flushes > LEVELS_RUNS_MAX && runs_max < LEVELS_RUNS_MAX / 2);
    EXPECT(stats()->corruptions == failures); /* at once */
    fiber_mutex_unlock(&lsm->levels->compact_mutex);
    wait_mended(0);
    expect_rest(0);
    lsm_drop_set(lsm, 0, NULL, 0);
    close_whole();
    return ST_OK;
}

static void
what_is_flushed_while_the_damage_goes_becomes_few_runs(void **state)
{
    (void)state;
    run(long_body, NULL);
}

/* So many runs come meanwhile that tiers would be merged in any other tree. */
static status
only_body(void *arg)
{
    (void)arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    u32 key = late_deleted();
    struct place place = place_of(0, 0, key);
    damage(&place);
    wait_for_mending();
    drop_damage(0);
    struct level_tree *tree = hold_while_dropping(key);
    lsm->levels->fanout = 2; /* that would be more urgent */
    for (u32 n = 0; n < 30; n++) {
        if (is_dropped(token_of(KEYS + n))) continue;
        write_in(0, KEYS + n, false, 0);
        EXPECT(ok(lsm_flush(lsm)));
    }
    fiber_mutex_unlock(&lsm->levels->compact_mutex);
    while (tree->broken) {
        for (u32 i = 0; i < PICK_SWEEPS_MAX; i++)
            EXPECT(!tree->sweeps[i].active || tree->sweeps[i].drops);
        fiber_sleep_ns(10 * NS_PER_US);
    }
    wait_mended(0);
    expect_rest(0);
    fiber_sleep_ns(30 * NS_PER_S);
    EXPECT(run_set_tree_count(lsm->levels->current, 0) < 30); /* as any other again */
    close_whole();
    return ST_OK;
}

static void
a_few_runs_do_not_hold_up_the_merge_that_drops(void **state)
{
    (void)state;
    run(only_body, NULL);
}

/* Two stores have each a half of the same files; what is damaged lies in both. */
static status
shared_body(void *arg)
{
    u32 run = *(u32 *)arg; /* of the damaged table */
    const u64 middle = (u64)1 << 63;
    fill_new();
    /* Nearest to the middle: deleted, and of the last level alone. */
    u32 nearest[2] = {UINT32_MAX, UINT32_MAX};
    for (u32 i = 0; i < KEYS; i++) {
        if (i % 3 == 1 || token_of(i) < middle) continue;
        u32 *best = &nearest[i % 3 / 2];
        if (*best == UINT32_MAX || token_of(i) < token_of(*best)) *best = i;
    }
    struct place place = place_of(0, run, nearest[run]);
    damage(&place);
    u64 first = MAX(place.first, middle), last = place.last;
    EXPECT(ok(lsm_close(lsm)));
    EXPECT(ok(io_dir_make("/half")));
    const char *source = DIR;
    EXPECT(ok(levels_split(&source, 1, "/half", middle, UINT64_MAX)));
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(64);
    options.memtable_bytes = MIB(4);
    options.scrub_bytes_per_s = 0;
    struct lsm_place half = {.dir = "/half", .token_first = middle, .token_last = UINT64_MAX};
    EXPECT(ok(lsm_open(&half, &options, &lsm)));
    lsm_mends_set(lsm, 0, true);
    (void)entries_of(0, middle, UINT64_MAX);
    expect_stretch(0, first, last);
    EXPECT(last - middle < (u64)1 << SHIFT);
    u64 dropped = 1; /* counted from the middle */
    lsm_drop_set(lsm, 0, &dropped, SHIFT);
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (is_damaged(0) || levels_cleaning(lsm->levels)) {
        for (u32 i = 0; i < KEYS; i += 3)
            if (token_of(i) >= middle) EXPECT(!ok(get(i)));
        EXPECT(io_now_ns() < until_ns);
        fiber_sleep_ns(NS_PER_MS);
    }
    bits = (u64)1 << (middle >> SHIFT);
    for (u32 i = 0; i < KEYS; i++) {
        bool there = token_of(i) >= middle && !is_deleted(i) && !is_dropped(token_of(i));
        EXPECT(token_of(i) < middle || (there ? ok(get(i)) : status_is(get(i), ST_NOT_FOUND)));
    }
    EXPECT(entries_dropped(0) == 0);
    lsm_drop_set(lsm, 0, NULL, 0);
    EXPECT(stats()->damaged_files == 0 && lsm_check(lsm));
    return lsm_close(lsm);
}

/* What is damaged lies in the other store's part. */
static status
elsewhere_body(void *arg)
{
    (void)arg;
    fill_new();
    u32 near = 2; /* any of the last level but in the last block of its table */
    while (place_of(0, 1, near).last == place_of(0, 1, near).table->meta.token_last)
        near += 3;
    struct place place = place_of(0, 1, near);
    const u64 middle = place.last + 1;
    damage(&place);
    EXPECT(ok(lsm_close(lsm)));
    EXPECT(ok(io_dir_make("/half")));
    const char *source = DIR;
    EXPECT(ok(levels_split(&source, 1, "/half", middle, UINT64_MAX)));
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(64);
    options.memtable_bytes = MIB(4);
    options.scrub_bytes_per_s = MIB(64);
    struct lsm_place half = {.dir = "/half", .token_first = middle, .token_last = UINT64_MAX};
    EXPECT(ok(lsm_open(&half, &options, &lsm)));
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (stats()->corruptions == 0 || stats()->damaged_files != 0) {
        EXPECT(io_now_ns() < until_ns);
        fiber_sleep_ns(NS_PER_MS);
    }
    for (u32 i = 0; i < KEYS; i++)
        EXPECT(token_of(i) < middle || is_deleted(i) || ok(get(i)));
    /* And that was all: what comes later goes through the tiers again. */
    u64 written = stats()->compaction_written_bytes, last_bytes = stats()->table_bytes;
    for (u32 round = 0, i = 0; round < 8; round++, i++) {
        while (token_of(i) < middle)
            i++;
        write_in(0, i, false, 0);
        EXPECT(ok(lsm_flush(lsm)));
        fiber_sleep_ns(NS_PER_S);
    }
    EXPECT(stats()->compaction_written_bytes - written < 4 * last_bytes);
    return lsm_close(lsm);
}

static void
what_is_damaged_of_another_store_is_let_go_of(void **state)
{
    (void)state;
    run(elsewhere_body, NULL);
}

static void
of_a_table_that_two_stores_have_each_knows_and_loses_its_own_tokens(void **state)
{
    (void)state;
    for (u32 table = 0; table < 2; table++)
        run(shared_body, &table);
}

/* An open snapshot keeps what it sees of the rest, and a scan that is under way the old files. */
static status
snapshot_body(void *arg)
{
    (void)arg;
    fill_new();
    lsm_mends_set(lsm, 0, true);
    u32 key = key_in_block_of(0, 1, true);
    struct place place = place_of(0, 0, key);
    damage(&place);
    EXPECT(status_is(get(key), ST_CORRUPT));
    struct lsm_snapshot *snapshot = lsm_snapshot_open(lsm);
    EXPECT(snapshot != NULL);
    u32 kept = 1;
    while (is_deleted(kept) || token_of(kept) >> SHIFT == place.first >> SHIFT)
        kept++;
    write_in(0, kept, true, 0);
    struct levels_pin pin;
    levels_pin_runs(lsm->levels, &pin);
    drop_damage(0);
    wait_mended(0);
    struct lsm_value value;
    EXPECT(ok(lsm_get(lsm, snapshot, 0, token_of(kept), key_of(kept), &value)));
    lsm_value_release(&value);
    EXPECT(status_is(get(kept), ST_NOT_FOUND));
    EXPECT(stats()->damaged_files == 1); /* it is open yet */
    levels_unpin(&pin);
    lsm_snapshot_close(snapshot);
    EXPECT(stats()->damaged_files == 0);
    return lsm_close(lsm);
}

/* The first key of the table behind that one, in the order of the table; KEYS: there is none. */
static u32
next_in_table(u32 i)
{
    u32 next = KEYS;
    for (u32 j = 0; j < KEYS; j++)
        if (j % 3 != 2 && token_of(j) > token_of(i) &&
            (next == KEYS || token_of(j) < token_of(next)))
            next = j;
    return next;
}

/* The key's only version in the table is the last one in its block, and newer than the snapshot;
 * the next block, of other keys, is damaged. */
static status
next_block_body(void *arg)
{
    (void)arg;
    EXPECT(ok(io_dir_make(DIR)));
    open_store();
    fill_last(0);
    struct lsm_snapshot *snapshot = NULL;
    for (u32 rest = 0; rest < 2; rest++) {
        for (u32 i = rest; i < KEYS; i += 3)
            write_in(0, i, false, 0);
        if (rest == 0) snapshot = lsm_snapshot_open(lsm);
    }
    EXPECT(snapshot != NULL && ok(lsm_flush(lsm)));
    u32 key = 1, next = next_in_table(1);
    while (next == KEYS || place_of(0, 0, key).block == place_of(0, 0, next).block) {
        key += 3;
        EXPECT(key < KEYS);
        next = next_in_table(key);
    }
    struct place place = place_of(0, 0, next);
    damage(&place);
    struct lsm_value value;
    EXPECT(ok(lsm_get(lsm, snapshot, 0, token_of(key), key_of(key), &value)));
    lsm_value_release(&value);
    EXPECT(!is_damaged(0) && status_is(get(next), ST_CORRUPT));
    lsm_snapshot_close(snapshot);
    return lsm_close(lsm);
}

static void
a_snapshot_reads_beside_a_damaged_block_of_others(void **state)
{
    (void)state;
    run(next_block_body, NULL);
}

static void
snapshots_see_what_was_not_let_go_of(void **state)
{
    (void)state;
    run(snapshot_body, NULL);
}

/* The owner asks again and again, and a slice takes longer than that: it is done all the same, as
 * what is to be dropped is the same. */
static status
again_body(void *arg)
{
    (void)arg;
    static u8 value[1000];
    EXPECT(ok(io_dir_make(DIR)));
    open_store();
    lsm->levels->slice_bytes = LEVELS_SLICE_BYTES;
    lsm_mends_set(lsm, 0, true);
    struct prng prng;
    prng_init(&prng, 1);
    for (u32 i = 0; i < 6000; i++) {
        for (u32 j = 0; j < sizeof(value); j++)
            value[j] = (u8)prng_u64(&prng);
        struct bytes key = key_of(i);
        struct lsm_batch batch;
        u64 seq;
        lsm_batch_init(&batch, io_budget());
        EXPECT(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, sizeof(value)), 0));
        EXPECT(ok(lsm_write(lsm, &batch, &seq)));
        lsm_batch_deinit(&batch);
    }
    EXPECT(ok(lsm_compact(lsm)));
    struct place place = place_of(0, 0, 4321);
    damage(&place);
    EXPECT(status_is(get(4321), ST_CORRUPT));
    drop_damage(0);
    u64 begun_ns = io_now_ns();
    while (is_damaged(0) || entries_dropped(0) != 0) {
        EXPECT(io_now_ns() - begun_ns < 20 * NS_PER_S);
        fiber_sleep_ns(100 * NS_PER_MS);
        lsm_drop_set(lsm, 0, &bits, SHIFT);
    }
    EXPECT(io_now_ns() - begun_ns >= 150 * NS_PER_MS);
    return lsm_close(lsm);
}

static void
who_asks_again_for_the_same_does_not_hold_up_what_is_under_way(void **state)
{
    (void)state;
    bits = 0;
    run(again_body, NULL);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_damaged_of_another_store_is_let_go_of),
        cmocka_unit_test(who_asks_again_for_the_same_does_not_hold_up_what_is_under_way),
        cmocka_unit_test(damage_is_told_by_its_tokens_whoever_met_it),
        cmocka_unit_test(damage_of_values_and_of_what_is_no_block_is_told_and_no_list_is_too_short),
        cmocka_unit_test(a_merge_that_meets_damage_waits_for_who_mends_and_fails_the_store_else),
        cmocka_unit_test(what_cannot_be_read_is_damage_whoever_met_it),
        cmocka_unit_test(what_cannot_be_read_is_told_for_values_too_and_where_nobody_mends),
        cmocka_unit_test(a_disk_that_reads_nothing_has_no_damaged_tables),
        cmocka_unit_test(however_long_a_keyspace_waits_it_has_few_runs_and_reads_right),
        cmocka_unit_test(a_crash_while_it_waits_changes_nothing),
        cmocka_unit_test(a_keyspace_that_waits_and_cannot_be_merged_refuses_writes_and_no_scan),
        cmocka_unit_test(damage_that_a_keyspace_meets_while_it_waits_is_gone_around),
        cmocka_unit_test(what_is_damaged_goes_with_all_of_its_tokens_and_nothing_older_shows),
        cmocka_unit_test(damage_of_which_a_part_is_kept_waits_again),
        cmocka_unit_test(a_scan_leaves_out_no_more_than_damage_may_hold_where_it_is_in_view),
        cmocka_unit_test(a_damaged_value_goes_with_its_file_and_the_others_of_it_stay),
        cmocka_unit_test(each_keyspace_is_mended_by_itself),
        cmocka_unit_test(a_restart_forgets_what_is_damaged_until_it_is_met_again),
        cmocka_unit_test(what_is_wanted_again_meanwhile_is_gone_whole_or_damaged_as_before),
        cmocka_unit_test(damage_is_not_left_out_beside_a_run_that_may_hold_older_versions),
        cmocka_unit_test(however_many_runs_there_are_one_merge_drops_of_all),
        cmocka_unit_test(what_is_flushed_while_the_damage_goes_becomes_few_runs),
        cmocka_unit_test(a_few_runs_do_not_hold_up_the_merge_that_drops),
        cmocka_unit_test(of_a_table_that_two_stores_have_each_knows_and_loses_its_own_tokens),
        cmocka_unit_test(a_snapshot_reads_beside_a_damaged_block_of_others),
        cmocka_unit_test(snapshots_see_what_was_not_let_go_of),
    };
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* run one by its name */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
