/* SPDX-License-Identifier: MIT
 *
 * test_compaction.c -- flushes and compactions while disks fail and power is lost, and the cases in
 * which storage engines have resurrected or lost keys, one test each.
 */
#include "levels_fixture.h"

#include "../../fewer.h"
#include "base/crc.h"
#include "base/fault.h"
#include "lsm/table_format.h"

static struct rig rig;
static struct sim *world;
static u64 acked_seq; /* flushed, as far as the owner was told */

static void
rig_reset(u64 seed, u32 blob_threshold)
{
    memset(&rig, 0, sizeof(rig));
    prng_init(&rig.prng, seed);
    rig.blob_threshold = blob_threshold;
    acked_seq = 0;
}

/* What a reopened store must hold: everything up to the seq that its manifest names. */
static void
model_cut(struct model *model, u64 seq)
{
    u32 kept = 0;
    for (u32 i = 0; i < model->version_count; i++) {
        if (model->versions[i].seq <= seq) model->versions[kept++] = model->versions[i];
    }
    model->version_count = kept;
    kept = 0;
    for (u32 i = 0; i < model->range_count; i++) {
        if (model->ranges[i].seq <= seq) model->ranges[kept++] = model->ranges[i];
    }
    model->range_count = kept;
    model->seq_last = seq;
    model->snapshot_count = 0;
}

/* ---- failures at every place ---- */

/* Flushes, merges, deletes; stops at the first flush that fails. Compactions may fail. */
static void
busy_life(void)
{
    for (u32 round = 0; round < 6; round++) {
        for (u32 i = 0; i < 40; i++) {
            u32 key = (u32)prng_below(&rig.prng, MODEL_KEYS);
            rig_write(&rig, key, (u32)prng_below(&rig.prng, 600), 0, prng_chance(&rig.prng, 1, 4));
        }
        if (round == 2) rig_range(&rig, 0, UINT64_MAX / 3);
        if (!ok(rig_flush(&rig))) return;
        acked_seq = rig.model.seq_last;
        if (round % 2 == 1) (void)!ok(levels_compact_all(rig.levels));
    }
}

static void
reopen_and_compare(void)
{
    EXPECT(ok(rig_open(&rig)));
    EXPECT(rig.state.seq_flushed >= acked_seq);
    model_cut(&rig.model, rig.state.seq_flushed);
    rig_compare(&rig);
    /* And it works on. */
    for (u32 key = 0; key < 10; key++)
        rig_write(&rig, key, 50, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig);
    rig_close(&rig);
    u64 files, bytes;
    struct levels_state state;
    EXPECT(ok(levels_verify(STORE_DIR, NULL, NULL, &files, &bytes, &state)));
    EXPECT(files > 0 && state.seq_flushed == rig.model.seq_last);
}

struct failure {
    enum sim_point point;
    u64 n, count;
    status error;
};

static status
life_with_failure(void *arg)
{
    const struct failure *failure = arg;
    EXPECT(ok(io_dir_make(STORE_DIR)));
    EXPECT(ok(rig_open(&rig)));
    sim_fail_at(world, failure->point, failure->n, failure->count, failure->error);
    busy_life();
    /* Whatever failed, what is there can be read, except while reads themselves fail. */
    bool hit = sim_failed(world);
    sim_faults_clear(world);
    rig_compare(&rig);
    rig_close(&rig);
    reopen_and_compare();
    return hit ? ST_OK : ST_END;
}

static void
fail_everywhere(enum sim_point point, status error, u64 count, u64 stride)
{
    for (u64 n = 0;; n += stride) {
        struct sim_options options;
        sim_options_default(&options, 7);
        world = sim_new(&options);
        rig_reset(7, 300);
        struct failure failure = {point, n, count, error};
        status st = sim_run(world, 1, life_with_failure, &failure);
        sim_free(world);
        if (status_is(st, ST_END)) {
            print_message("%llu places\n", (unsigned long long)n);
            break;
        }
        assert_true(ok(st));
    }
}

static void
any_read_may_fail(void **state)
{
    fail_everywhere(SIM_POINT_READ, ST_IO_ERROR, 1, 2);
}

static void
any_write_may_fail(void **state)
{
    fail_everywhere(SIM_POINT_WRITE, ST_IO_ERROR, 1, 1);
}

static void
any_sync_may_fail(void **state)
{
    fail_everywhere(SIM_POINT_SYNC, ST_IO_ERROR, 1, 1);
}

static void
the_disk_may_fill_at_any_write_and_stay_full(void **state)
{
    fail_everywhere(SIM_POINT_WRITE, ST_NO_SPACE, 1000000, 3);
}

static void
any_name_operation_may_fail(void **state)
{
    fail_everywhere(SIM_POINT_NAME, ST_IO_ERROR, 1, 1);
}

static void
any_allocation_may_fail(void **state)
{
    fail_everywhere(SIM_POINT_ALLOC, ST_NO_MEMORY, 1, 7);
}

static void
count_data_file(void *arg, const char *name)
{
    bool is_blob;
    u64 id;
    if (levels_parse_name(name, &is_blob, &id)) (*(u32 *)arg)++;
}

static status
flush_without_memory(void *arg)
{
    EXPECT(ok(io_dir_make(STORE_DIR)));
    EXPECT(ok(rig_open(&rig)));
    rig_write(&rig, 1, 2000, 0, false); /* apart */
    sim_fail_at(world, SIM_POINT_ALLOC, *(const u64 *)arg, 1, ST_NO_MEMORY);
    status st = rig_flush(&rig);
    bool hit = sim_failed(world);
    sim_faults_clear(world);
    fiber_sleep_ns(100 * NS_PER_MS); /* files are removed in the background */
    u32 files = 0;
    EXPECT(ok(io_dir_list(STORE_DIR, count_data_file, &files)));
    EXPECT(files == (ok(st) ? 2 : 0));
    rig_close(&rig);
    return hit ? ST_OK : ST_END;
}

/* It is tried again and again, and each try would leave as much. */
static void
a_flush_without_memory_leaves_no_files(void **state)
{
    (void)state;
    u64 not_listed = 0;
    status st = ST_OK;
    for (u64 n = 0; ok(st); n++) {
        struct sim_options options;
        sim_options_default(&options, 7);
        world = sim_new(&options);
        rig_reset(7, 300);
        st = sim_run(world, 1, flush_without_memory, &n);
        not_listed += sim_mark_count(world, "lsm.run_set.blob_no_memory");
        sim_free(world);
    }
    assert_true(status_is(st, ST_END));
    assert_true(not_listed > 0);
}

/* ---- power cuts at every place ---- */

static status
life_until_cut(void *arg)
{
    EXPECT(ok(io_dir_make(STORE_DIR)));
    EXPECT(ok(io_dir_sync("/")));
    EXPECT(ok(rig_open(&rig)));
    sim_crash_at(world, SIM_POINT_IO, *(u64 *)arg);
    busy_life();
    rig_close(&rig);
    return ST_OK;
}

static status
life_after_cut(void *arg)
{
    rig.levels = NULL;
    reopen_and_compare();
    return ST_OK;
}

static void
power_may_be_lost_at_any_request(void **state)
{
    for (u64 n = 0;; n++) {
        struct sim_options options;
        sim_options_default(&options, 1000 + n);
        options.disk.torn_ppm = 200000;
        world = sim_new(&options);
        rig_reset(9, 300);
        status st = sim_run(world, 1, life_until_cut, &n);
        bool cut = sim_crashed(world);
        sim_faults_clear(world);
        assert_true(cut ? status_is(st, ST_CANCELED) : ok(st));
        assert_true(ok(sim_run(world, 1, life_after_cut, NULL)));
        sim_free(world);
        if (!cut) {
            print_message("%llu places\n", (unsigned long long)n);
            break;
        }
    }
}

/* ---- lessons ---- */

static status
lesson_open(void)
{
    EXPECT(ok(io_dir_make(STORE_DIR)));
    return rig_open(&rig);
}

/* All that there is is deleted: by keys, in the middle of which a range takes what is left. */
static status
emptied_body(void *arg)
{
    bool by_range = *(bool *)arg;
    EXPECT(ok(lesson_open()));
    rig.levels->slice_bytes = KIB(16);
    for (u32 round = 0; round < 2; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, 2000, 0, round == 1 && !by_range);
        EXPECT(ok(rig_flush(&rig)));
        if (round == 0) EXPECT(ok(levels_compact_all(rig.levels)));
    }
    levels_start(rig.levels);
    levels_clean(rig.levels);
    u64 until_ns = io_now_ns() + 20 * NS_PER_S;
    for (bool begun = false; by_range && !begun;) {
        fiber_mutex_lock(&rig.levels->compact_mutex);
        begun = rig.levels->trees[0].sweeps[0].active;
        if (begun) {
            rig_range(&rig, 0, UINT64_MAX);
            EXPECT(ok(rig_flush(&rig)));
        }
        fiber_mutex_unlock(&rig.levels->compact_mutex);
        fiber_sleep_ns(10 * NS_PER_US);
        EXPECT(io_now_ns() < until_ns);
    }
    while (levels_cleaning(rig.levels)) {
        EXPECT(io_now_ns() < until_ns);
        fiber_sleep_ns(NS_PER_MS);
    }
    EXPECT(run_set_tree_count(rig.levels->current, 0) == 0);
    rig_compare(&rig);
    levels_stop(rig.levels);
    rig_close(&rig);
    return ST_OK;
}

static void
a_merge_that_empties_a_keyspace_ends(void **state)
{
    (void)state;
    for (bool by_range = false;; by_range = true) {
        rig_reset(1, 0);
        assert_true(ok(sim_run_main(1, 1, emptied_body, &by_range)));
        if (by_range) break;
    }
}

/* ScyllaDB #1745 and others: a tombstone must stay while an older run has what it deletes. */
static status
tombstone_over_older_run(void *arg)
{
    EXPECT(ok(lesson_open()));
    rig.levels->fanout = 2;
    rig.levels->tier_bytes = 1;
    for (u32 key = 0; key < MODEL_KEYS; key++)
        rig_write(&rig, key, 500, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    EXPECT(ok(levels_compact_all(rig.levels))); /* the values are in the last level */
    rig_write(&rig, 3, 0, 0, true);
    EXPECT(ok(rig_flush(&rig)));
    rig_write(&rig, 4, 10, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    /* The two tiers are merged without the last level below them. */
    levels_start(rig.levels);
    fiber_sleep_ns(5 * NS_PER_S);
    levels_stop(rig.levels);
    rig_compare(&rig);
    rig_close(&rig);
    return ST_OK;
}

static void
a_tombstone_stays_while_an_older_run_has_its_key(void **state)
{
    rig_reset(1, 4096);
    assert_true(ok(sim_run_main(1, 1, tombstone_over_older_run, NULL)));
}

struct opener {
    struct fiber_queue done;
    bool ended;
};

static void
open_snapshots_meanwhile(void *arg)
{
    struct opener *opener = arg;
    for (u32 i = 0; i < 5; i++) {
        fiber_sleep_ns(NS_PER_MS / 4);
        rig_snapshot(&rig);
        for (u32 key = 0; key < MODEL_KEYS; key += 3)
            rig_write(&rig, key, 100, 0, i % 2 == 0);
    }
    opener->ended = true;
    fiber_queue_wake_all(&opener->done);
}

/* RocksDB 7.1, 6.27: snapshots that come and go while a compaction runs. */
static status
snapshots_during_compaction(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 round = 0; round < 4; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, 2000, 0, round == 2);
        EXPECT(ok(rig_flush(&rig)));
        rig_snapshot(&rig);
    }
    struct opener opener = {.ended = false};
    fiber_queue_init(&opener.done);
    EXPECT(ok(fiber_spawn(FIBER_FOREGROUND, "opener", open_snapshots_meanwhile, &opener)));
    EXPECT(ok(levels_compact_all(rig.levels)));
    while (!opener.ended)
        (void)!ok(fiber_queue_wait(&opener.done, FIBER_FOREVER));
    rig_compare(&rig);
    EXPECT(ok(rig_flush(&rig)));
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig);
    while (rig.model.snapshot_count > 0)
        rig_snapshot_close(&rig, 0);
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig);
    rig_close(&rig);
    return ST_OK;
}

static void
snapshots_opened_during_a_compaction_read_right(void **state)
{
    rig_reset(1, 4096);
    assert_true(ok(sim_run_main(3, 1, snapshots_during_compaction, NULL)));
}

/* RocksDB 8.7, 6.0: damage is never taken for the end of a table. */
static char victim[LSM_PATH_BYTES];
static u64 victim_id;

static status
write_two_runs(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 round = 0; round < 2; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, 1000, 0, false);
        EXPECT(ok(rig_flush(&rig)));
    }
    const struct run *run = rig.levels->current->runs[0];
    victim_id = run->slots[0].file->table->meta.file_id;
    table_path(victim, STORE_DIR, victim_id);
    rig_close(&rig);
    return ST_OK;
}

static status
compact_damaged(void *arg)
{
    EXPECT(ok(rig_open(&rig)));
    struct run_set *before = rig.levels->current;
    EXPECT(status_is(levels_compact_all(rig.levels), ST_CORRUPT));
    EXPECT(rig.levels->current == before); /* the inputs stay */
    EXPECT(status_is(rig.failed, ST_CORRUPT));
    u64 found;
    u32 readable = 0;
    for (u32 key = 0; key < MODEL_KEYS; key++) {
        status st = rig_get(&rig, key, UINT64_MAX, &found);
        EXPECT(ok(st) || status_is(st, ST_CORRUPT));
        if (ok(st)) {
            EXPECT(found == model_get(&rig.model, key, UINT64_MAX, 0)->seq);
            readable++;
        }
    }
    EXPECT(readable > 0 && readable < MODEL_KEYS);
    rig_close(&rig);
    return ST_OK;
}

/* As if a merge did not see the last entry of a table. */
static status
compact_with_one_unread(void *arg)
{
    EXPECT(ok(rig_open(&rig)));
    struct run_set *before = rig.levels->current;
    before->runs[1]->slots[0].file->table->meta.entry_count++;
    EXPECT(status_is(levels_compact_all(rig.levels), ST_CORRUPT));
    EXPECT(rig.levels->current == before); /* the inputs stay */
    EXPECT(status_is(rig.failed, ST_CORRUPT));
    before->runs[1]->slots[0].file->table->meta.entry_count--;
    rig_close(&rig);
    return ST_OK;
}

static void
a_merge_that_has_not_read_everything_replaces_nothing(void **state)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    world = sim_new(&options);
    rig_reset(1, 4096);
    assert_true(ok(sim_run(world, 1, write_two_runs, NULL)));
    assert_true(ok(sim_run(world, 1, compact_with_one_unread, NULL)));
    sim_free(world);
}

/* end: of the raw block */
typedef void (*forge_fn)(struct table_raw_header *raw, u8 *end);

/* Numbers that nobody has given yet. */
static void
forge_numbers(struct table_raw_header *raw, u8 *end)
{
    raw->seq_base += 1ull << 40;
}

/* The last token, as the sum wraps, is 0: below the first one, where the slice begins. */
static void
forge_token(struct table_raw_header *raw, u8 *end)
{
    EXPECT(raw->token_width == 8 && raw->token_base != 0);
    store_u64(end - 8, 0 - raw->token_base);
}

/* Makes the first block another one whose checksum is right. */
static status
forge(void *arg)
{
    forge_fn change = *(forge_fn *)arg;
    struct io_file *file;
    static ALIGNED(IO_ALIGNMENT) u8 data[2 * IO_ALIGNMENT];
    EXPECT(ok(io_file_open(victim, IO_OPEN_WRITE, &file)));
    EXPECT(ok(io_file_read(file, IO_CLASS_READ, data, sizeof(data), 0)));
    struct table_block_header *header = (struct table_block_header *)(void *)data;
    struct table_raw_header *raw = (struct table_raw_header *)(void *)(header + 1);
    EXPECT(header->codec == LSM_CODEC_NONE && header->stored_size < sizeof(data) - 16);
    change(raw, (u8 *)raw + header->stored_size);
    header->crc = crc32c(table_place_seed(victim_id, 0), data + sizeof(header->crc),
                         sizeof(*header) - sizeof(header->crc) + header->stored_size);
    EXPECT(ok(io_file_write(file, IO_CLASS_READ, data, sizeof(data), 0, true)));
    io_file_close(file);
    return ST_OK;
}

static status
compact_forged(void *arg)
{
    EXPECT(ok(rig_open(&rig)));
    struct run_set *before = rig.levels->current;
    EXPECT(status_is(levels_compact_all(rig.levels), ST_CORRUPT));
    EXPECT(rig.levels->current == before); /* the inputs stay */
    EXPECT(status_is(rig.failed, ST_CORRUPT));
    rig_close(&rig);
    EXPECT(ok(rig_open(&rig))); /* and the manifest is one that can be opened */
    rig_close(&rig);
    return ST_OK;
}

static void
story_of_forging(forge_fn change)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    world = sim_new(&options);
    rig_reset(1, 4096);
    assert_true(ok(sim_run(world, 1, write_two_runs, NULL)));
    assert_true(ok(sim_run(world, 1, forge, &change)));
    assert_true(ok(sim_run(world, 1, compact_forged, NULL)));
    sim_free(world);
}

static void
a_merge_takes_no_number_that_nobody_has_given(void **state)
{
    story_of_forging(forge_numbers);
}

static void
a_merge_takes_no_token_outside_of_its_slice(void **state)
{
    story_of_forging(forge_token);
}

static u32 reported;
static void
count_report(void *arg, const char *file, u64 offset, const char *what)
{
    if (strcmp(file, victim) == 0) reported++;
}

static status
verify_damaged(void *arg)
{
    u64 files, bytes;
    struct levels_state state;
    EXPECT(status_is(levels_verify(STORE_DIR, count_report, NULL, &files, &bytes, &state),
                     ST_CORRUPT));
    EXPECT(reported == 1);
    return ST_OK;
}

static void
a_damaged_input_stops_its_compaction_and_reads_go_on(void **state)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    world = sim_new(&options);
    struct sim_node *node = sim_node_new(world, "10.0.0.1"); /* the one that sim_run takes */
    rig_reset(1, 4096);
    assert_true(ok(sim_run(world, 1, write_two_runs, NULL)));
    assert_true(ok(sim_disk_flip(sim_node_disk(node), victim, IO_ALIGNMENT * 2 + 100, 0x10)));
    assert_true(ok(sim_run(world, 1, compact_damaged, NULL)));
    reported = 0;
    assert_true(ok(sim_run(world, 1, verify_damaged, NULL)));
    sim_free(world);
}

/* RocksDB's richest source of bugs: a range delete and writes around it. */
static status
range_and_newer_writes(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 key = 0; key < MODEL_KEYS; key++)
        rig_write(&rig, key, 300, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    rig_snapshot(&rig);
    rig_range(&rig, 0, UINT64_MAX);
    for (u32 key = 0; key < MODEL_KEYS; key += 2)
        rig_write(&rig, key, 300, 0, false);
    rig_compare(&rig); /* in memory */
    EXPECT(ok(rig_flush(&rig)));
    rig_compare(&rig); /* in a run */
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig); /* under a snapshot */
    EXPECT(range_list_count(&rig.levels->ranges) == 1);
    rig_snapshot_close(&rig, 0);
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig);
    EXPECT(rig.levels->table_entries == MODEL_KEYS / 2);
    EXPECT(range_list_count(&rig.levels->ranges) == 0);
    rig_close(&rig);
    return ST_OK;
}

static void
a_range_delete_spares_newer_writes_and_snapshots(void **state)
{
    rig_reset(1, 4096);
    assert_true(ok(sim_run_main(1, 1, range_and_newer_writes, NULL)));
}

/* ScyllaDB #6600: an expired table must not uncover what lies beneath. */
static status
expired_over_older(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 key = 0; key < MODEL_KEYS; key++)
        rig_write(&rig, key, 100, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    for (u32 key = 0; key < MODEL_KEYS; key += 2)
        rig_write(&rig, key, 100, io_wall_ms() + 500, false);
    EXPECT(ok(rig_flush(&rig)));
    rig_compare(&rig);
    levels_start(rig.levels);
    fiber_sleep_ns(5 * NS_PER_S); /* expired; pruning has looked several times */
    rig_compare(&rig);
    EXPECT(rig.levels->tables == 2);
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig);
    EXPECT(rig.levels->table_entries == MODEL_KEYS / 2);
    /* With nothing beneath, a wholly expired table goes without being read. */
    for (u32 key = 100; key < 120; key++)
        rig_write(&rig, key, 100, io_wall_ms() + 500, false);
    EXPECT(ok(rig_flush(&rig)));
    levels_stop(rig.levels);
    rig_close(&rig);
    return ST_OK;
}

static void
expired_tables_do_not_uncover_what_lies_beneath(void **state)
{
    rig_reset(1, 4096);
    assert_true(ok(sim_run_main(1, 1, expired_over_older, NULL)));
}

/* A reader that holds its run set reads on while everything under it is replaced. */
static status
reader_outlives_compaction(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 round = 0; round < 3; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, 2000, 0, false);
        EXPECT(ok(rig_flush(&rig)));
    }
    struct cursor *cursors[16];
    u32 count;
    EXPECT(ok(levels_cursors_open(rig.levels, 0, UINT64_MAX, true, NULL, cursors, 16, &count)));
    EXPECT(count == 3);
    struct cursor *merge;
    EXPECT(ok(merge_cursor_open(cursors, count, io_budget(), &merge)));
    EXPECT(ok(merge->ops->seek(merge, 0, BYTES(NULL, 0))));
    rig_range(&rig, 0, UINT64_MAX);
    EXPECT(ok(rig_flush(&rig)));
    EXPECT(ok(levels_compact_all(rig.levels)));
    EXPECT(rig.levels->tables == 0);
    u32 entries = 0;
    while (merge->valid) {
        struct entry entry = merge->entry;
        if (entry.flags & ENTRY_BLOB) {
            void *buffer;
            size_t size;
            struct bytes value;
            EXPECT(ok(levels_blob_read(rig.levels, &entry, &buffer, &size, &value)));
            EXPECT(value.size == 2000);
            mem_free(io_budget(), buffer, size);
        }
        entries++;
        EXPECT(ok(merge->ops->next(merge)));
    }
    EXPECT(entries == 3 * MODEL_KEYS);
    merge->ops->close(merge);
    EXPECT(rig.levels->blob_count == 0);
    rig_close(&rig);
    return ST_OK;
}

static void
a_reader_keeps_the_files_that_it_reads(void **state)
{
    rig_reset(1, 1000);
    assert_true(ok(sim_run_main(1, 1, reader_outlives_compaction, NULL)));
}

/* ---- files and their readers ---- */

struct named {
    u32 tables, blobs;
};

static void
count_file(void *arg, const char *name)
{
    struct named *named = arg;
    named->tables += name[0] == 't';
    named->blobs += name[0] == 'b';
}

/* In the directory is what the run set uses: all of that, and nothing else. */
static void
expect_files_as_named(void)
{
    struct named named = {0};
    EXPECT(ok(io_dir_list(STORE_DIR, count_file, &named)));
    EXPECT(named.tables == rig.levels->tables && named.blobs == rig.levels->blob_count);
    EXPECT(levels_check(rig.levels));
}

struct reader {
    struct cursor *merge;
    u32 entries;
};

static void
reader_open(struct reader *reader)
{
    struct cursor *cursors[16];
    u32 count;
    EXPECT(ok(levels_cursors_open(rig.levels, 0, UINT64_MAX, true, NULL, cursors, 16, &count)));
    EXPECT(ok(merge_cursor_open(cursors, count, io_budget(), &reader->merge)));
    EXPECT(ok(reader->merge->ops->seek(reader->merge, 0, BYTES(NULL, 0))));
    reader->entries = 0;
}

/* Up to so many more; the values that lie in blob files, too. */
static void
reader_read(struct reader *reader, u32 most)
{
    for (; most > 0 && reader->merge->valid; most--, reader->entries++) {
        struct entry entry = reader->merge->entry;
        if (entry.flags & ENTRY_BLOB) {
            void *buffer;
            size_t size;
            struct bytes value;
            EXPECT(ok(levels_blob_read(rig.levels, &entry, &buffer, &size, &value)));
            mem_free(io_budget(), buffer, size);
        }
        EXPECT(ok(reader->merge->ops->next(reader->merge)));
    }
}

static void
write_all_and_flush(u32 size)
{
    for (u32 key = 0; key < MODEL_KEYS; key++)
        rig_write(&rig, key, size, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    acked_seq = rig.model.seq_last;
}

/* Tables and blob files are replaced and deleted while somebody reads them, and go with the last
 * one. */
static status
readers_until_cut(void *arg)
{
    struct reader first, second;
    EXPECT(ok(lesson_open()));
    EXPECT(ok(io_dir_sync("/")));
    sim_crash_at(world, SIM_POINT_IO, *(u64 *)arg);
    for (u32 round = 0; round < 3; round++)
        write_all_and_flush(600);
    reader_open(&first);
    reader_read(&first, MODEL_KEYS);
    EXPECT(ok(levels_compact_all(rig.levels)));
    write_all_and_flush(200);
    reader_open(&second);
    rig_range(&rig, 0, UINT64_MAX / 2);
    EXPECT(ok(rig_flush(&rig)));
    acked_seq = rig.model.seq_last;
    EXPECT(ok(levels_compact_all(rig.levels)));
    reader_read(&first, UINT32_MAX);
    EXPECT(first.entries == 3 * MODEL_KEYS);
    first.merge->ops->close(first.merge);
    write_all_and_flush(500);
    EXPECT(ok(levels_compact_all(rig.levels)));
    reader_read(&second, UINT32_MAX);
    EXPECT(second.entries == 2 * MODEL_KEYS);
    second.merge->ops->close(second.merge);
    fiber_sleep_ns(NS_PER_S); /* what nobody uses is closed, and removed */
    expect_files_as_named();
    rig_close(&rig);
    return ST_OK;
}

static status
files_after_cut(void *arg)
{
    rig.levels = NULL;
    EXPECT(ok(rig_open(&rig)));
    EXPECT(rig.state.seq_flushed >= acked_seq);
    model_cut(&rig.model, rig.state.seq_flushed);
    rig_compare(&rig);
    levels_collect_orphans(rig.levels);
    expect_files_as_named();
    rig_compare(&rig);
    rig_close(&rig);
    reopen_and_compare();
    return ST_OK;
}

static void
files_go_with_their_last_reader_and_power_may_be_lost_at_any_request(void **state)
{
    for (u64 n = 0;; n += EVERY(5)) {
        struct sim_options options;
        sim_options_default(&options, 2000 + n);
        world = sim_new(&options);
        rig_reset(9, 300);
        status st = sim_run(world, 1, readers_until_cut, &n);
        bool cut = sim_crashed(world);
        sim_faults_clear(world);
        assert_true(cut ? status_is(st, ST_CANCELED) : ok(st));
        assert_true(ok(sim_run(world, 1, files_after_cut, NULL)));
        sim_free(world);
        if (cut) continue;
        print_message("%llu places\n", (unsigned long long)n);
        assert_true(n > 100);
        break;
    }
}

/* Space comes back slice by slice, and values of blob files with it. */
static status
overwritten_for_long(void *arg)
{
    EXPECT(ok(lesson_open()));
    levels_start(rig.levels);
    u64 worst = 0;
    for (u32 round = 0; round < 60; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, 4000, 0, false);
        levels_user_bytes(rig.levels, MODEL_KEYS * 4000);
        EXPECT(ok(rig_flush(&rig)));
        fiber_sleep_ns(50 * NS_PER_MS);
        if (round < 20) continue;
        worst = MAX(worst, rig.levels->table_bytes + rig.levels->blob_bytes);
        EXPECT(rig.levels->runs_max < 24);
    }
    rig_compare(&rig);
    levels_stop(rig.levels);
    EXPECT(rig.levels->compactions > 0);
    /* Every key is in every flush: the tiers hold up to a fanout of whole copies. */
    EXPECT(worst < 14 * MODEL_KEYS * 4000);
    EXPECT(levels_pressure(rig.levels) < 100);
    rig_close(&rig);
    return ST_OK;
}

static void
space_stays_bounded_under_overwrites(void **state)
{
    rig_reset(1, 1000);
    assert_true(ok(sim_run_main(1, 1, overwritten_for_long, NULL)));
}

/* ---- changing the partitions ---- */

static void
split_into(const char *source, const char *target, u64 first, u64 last)
{
    EXPECT(ok(io_dir_make(target)));
    EXPECT(ok(levels_split(&source, 1, target, first, last)));
}

static u64
count_entries(const char *dir, u64 first, u64 last, u64 *key_sum)
{
    struct levels_config config = rig.config;
    config.dir = dir;
    config.token_first = first;
    config.token_last = last;
    config.block_cache = block_cache_new(io_budget(), MIB(1));
    struct levels *levels;
    struct levels_state state;
    EXPECT(ok(levels_open(&config, &levels, &state)));
    EXPECT(ok(levels_compact_all(levels))); /* parts what is shared */
    struct cursor *cursor;
    u32 count;
    u64 entries = 0;
    EXPECT(ok(levels_cursors_open(levels, 0, UINT64_MAX, false, NULL, &cursor, 1, &count)));
    if (count == 1) {
        EXPECT(ok(cursor->ops->seek(cursor, 0, BYTES(NULL, 0))));
        while (cursor->valid) {
            EXPECT(cursor->entry.token >= first && cursor->entry.token <= last);
            entries++;
            *key_sum += hash_key(cursor->entry.key, 0);
            EXPECT(ok(cursor->ops->next(cursor)));
        }
        cursor->ops->close(cursor);
    }
    EXPECT(levels_check(levels));
    levels_collect_orphans(levels);
    levels_close(levels);
    block_cache_free(config.block_cache);
    return entries;
}

static status
split_and_join(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 round = 0; round < 3; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, 700, 0, false);
        EXPECT(ok(rig_flush(&rig)));
    }
    rig_close(&rig);
    u64 half = (u64)1 << 63, sum = 0, sum_joined = 0;
    split_into(STORE_DIR, "/a", 0, half - 1);
    split_into(STORE_DIR, "/b", half, UINT64_MAX);
    /* Joined again before and after the halves were compacted. */
    const char *halves[2] = {"/b", "/a"};
    EXPECT(ok(io_dir_make("/joined")));
    EXPECT(ok(levels_split(halves, 2, "/joined", 0, UINT64_MAX)));
    u64 a = count_entries("/a", 0, half - 1, &sum), b = count_entries("/b", half, UINT64_MAX, &sum);
    EXPECT(a > 0 && b > 0 && a + b == MODEL_KEYS);
    EXPECT(count_entries("/joined", 0, UINT64_MAX, &sum_joined) == MODEL_KEYS);
    EXPECT(sum_joined == sum);
    EXPECT(ok(io_dir_make("/again")));
    EXPECT(ok(levels_split(halves, 2, "/again", 0, UINT64_MAX)));
    sum_joined = 0;
    EXPECT(count_entries("/again", 0, UINT64_MAX, &sum_joined) == MODEL_KEYS);
    EXPECT(sum_joined == sum);
    return ST_OK;
}

static void
stores_are_split_and_joined_without_copying(void **state)
{
    rig_reset(1, 500);
    assert_true(ok(sim_run_main(1, 1, split_and_join, NULL)));
}

/* A store of nothing but so many deleted ranges, none of which hides another. */
static void
store_of_ranges(const char *dir, u64 token_first, u64 token_last, u32 count, u64 seq)
{
    struct range_delete *ranges = calloc(count, sizeof(*ranges));
    assert_non_null(ranges);
    for (u32 i = 0; i < count; i++) {
        u64 token = token_first + 2 * (u64)i;
        ranges[i] = (struct range_delete){
            .token_first = token, .token_last = token, .version = seq + i, .seq = seq + i};
    }
    struct manifest manifest = {.state = {.seq_flushed = seq + count},
                                .generation = 1,
                                .token_first = token_first,
                                .token_last = token_last,
                                .ranges = ranges,
                                .range_count = count};
    bool known;
    EXPECT(ok(io_dir_make(dir)));
    EXPECT(ok(manifest_write(dir, &manifest, io_budget(), &known)));
    free(ranges);
}

static status
ranges_joined(void *arg)
{
    (void)arg;
    const u64 half = (u64)1 << 63;
    const u32 count = RANGE_LIST_MAX / 2;
    store_of_ranges("/few", 0, half - 1, count, 1);
    store_of_ranges("/rest", half, UINT64_MAX, count, 1 + count);
    store_of_ranges("/more", half, UINT64_MAX, count + 1, 1 + count);
    store_of_ranges("/wide", half - 1, UINT64_MAX, 1, 1 + count);
    const char *fits[2] = {"/few", "/rest"}, *many[2] = {"/few", "/more"};
    const char *overlap[2] = {"/wide", "/few"};
    EXPECT(ok(io_dir_make("/target")));
    EXPECT(status_is(levels_split(overlap, 2, "/target", 0, UINT64_MAX), ST_CORRUPT));
    EXPECT(status_is(levels_split(many, 2, "/target", 0, UINT64_MAX), ST_OVERLOADED));
    EXPECT(ok(levels_split(fits, 2, "/target", 0, UINT64_MAX)));
    return ST_OK;
}

static void
stores_that_do_not_go_together_are_not_joined(void **state)
{
    assert_true(ok(sim_run_main(1, 1, ranges_joined, NULL)));
}

/* ---- pacing ---- */

static status
pace_life(void *arg)
{
    EXPECT(ok(lesson_open()));
    rig.levels->fanout = 2;
    rig.levels->tier_bytes = MIB(4); /* two runs are no pressure */
    levels_start(rig.levels);
    u64 bytes = 0;
    for (u32 round = 0; round < 2; round++) {
        if (round > 0) fiber_sleep_ns(60 * NS_PER_S); /* it could have saved up for all of it */
        for (u32 key = 0; key < MODEL_KEYS; key++, bytes += KIB(60))
            rig_write(&rig, key, KIB(60), 0, false);
        EXPECT(ok(rig_flush(&rig)));
    }
    u64 start_ns = io_now_ns();
    while (rig.levels->compactions == 0)
        fiber_sleep_ns(NS_PER_MS);
    u64 took_ns = io_now_ns() - start_ns;
    u64 paced = bytes - COMPACTION_AHEAD_BYTES;
    EXPECT(took_ns >= paced * NS_PER_S / COMPACTION_IDLE_BYTES_PER_S * 9 / 10);
    EXPECT(took_ns < 10 * NS_PER_S);
    levels_stop(rig.levels);
    rig_close(&rig);
    return ST_OK;
}

static void
compaction_does_not_save_up_for_a_burst(void **state)
{
    rig_reset(1, MIB(1));
    struct sim_options options;
    sim_options_default(&options, 1);
    options.disk.latency_ns_min = options.disk.latency_ns_max = 10 * NS_PER_US;
    options.turn_ns_min = options.turn_ns_max = NS_PER_US;
    struct sim *sim = sim_new(&options);
    (void)sim_node_new(sim, "10.0.0.1");
    assert_true(ok(sim_run(sim, 1, pace_life, NULL)));
    sim_free(sim);
}

/* ---- beats: nobody waits for a merge ---- */

#define BEAT_RUNS 4u
#define BEAT_KEYS 900u

static struct {
    u64 turns, gap_ns_max;
    bool ends, ended, merged;
} beat;

/* Wants its turn all the time, and notes how long it did not get it. */
static void
beat_watch(void *arg)
{
    u64 last_ns = io_clock_ns();
    while (!beat.ends) {
        fiber_yield();
        u64 now_ns = io_clock_ns();
        beat.gap_ns_max = MAX(beat.gap_ns_max, now_ns - last_ns);
        beat.turns++;
        last_ns = now_ns;
    }
    beat.ended = true;
}

static void
beat_merge(void *arg)
{
    EXPECT(ok(levels_compact_all(rig.levels)));
    beat.merged = true;
}

static status
beat_life(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 round = 0; round < BEAT_RUNS; round++) {
        for (u32 key = 0; key < BEAT_KEYS; key++)
            rig_write(&rig, key, 8, 0, false);
        EXPECT(ok(rig_flush(&rig)));
    }
    memset(&beat, 0, sizeof(beat));
    EXPECT(ok(fiber_spawn(FIBER_FOREGROUND, "watch", beat_watch, NULL)));
    EXPECT(ok(fiber_spawn(FIBER_BACKGROUND, "merge", beat_merge, NULL)));
    while (!beat.merged)
        fiber_sleep_ns(NS_PER_MS);
    beat.ends = true;
    while (!beat.ended)
        fiber_sleep_ns(NS_PER_MS);
    EXPECT(rig.levels->compactions > 0);
    rig_close(&rig);
    return ST_OK;
}

/* On the simulated link each question whether a turn is over costs some 3 us, so that a merge of
 * thousands of entries that finds its blocks in memory takes many beats of 500 us. One that went on
 * would hold up the others for all of them. */
static void
a_merge_leaves_the_processor_after_each_beat(void **state)
{
    rig_reset(1, MIB(1));
    struct sim_options options;
    sim_options_default(&options, 1);
    options.disk.latency_ns_min = options.disk.latency_ns_max = 10 * NS_PER_US;
    options.turn_ns_min = options.turn_ns_max = NS_PER_US;
    struct sim *sim = sim_new(&options);
    (void)sim_node_new(sim, "10.0.0.1");
    assert_true(ok(sim_run(sim, 1, beat_life, NULL)));
    sim_free(sim);
    assert_true(beat.turns > 1000);
    assert_true(beat.gap_ns_max < 1 * NS_PER_MS); /* 0.55; without the yield 6 */
}

/* ---- memory ---- */

#define CROWD_RUNS 40u

static status
crowd_life(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 round = 0; round < CROWD_RUNS; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, KIB(10), 0, false);
        EXPECT(ok(rig_flush(&rig)));
    }
    rig.levels->slice_bytes =
        LEVELS_SLICE_BYTES; /* all of it, so that the windows would be whole */
    /* More than there is: two windows for each run. */
    EXPECT(budget_available(io_budget()) < CROWD_RUNS * 2ull * COMPACTION_READ_AHEAD_BYTES);
    levels_start(rig.levels);
    fiber_sleep_ns(60 * NS_PER_S);
    levels_stop(rig.levels);
    EXPECT(run_set_tree_count(rig.levels->current, 0) < CROWD_RUNS / 4);
    rig_compare(&rig);
    rig_close(&rig);
    return ST_OK;
}

/* Else it fails again and again, and when there are so many runs that writers are refused, for
 * good. */
static void
many_runs_are_merged_with_little_memory(void **state)
{
    rig_reset(1, MIB(1));
    struct sim_options options;
    sim_options_default(&options, 1);
    options.memory_bytes = MIB(16);
    struct sim *sim = sim_new(&options);
    (void)sim_node_new(sim, "10.0.0.1");
    assert_true(ok(sim_run(sim, 1, crowd_life, NULL)));
    sim_free(sim);
}

/* Of all runs of its keyspace. */
static u32
table_count(void)
{
    const struct run_set *set = rig.levels->current;
    u32 count = 0;
    for (u32 i = 0; i < run_set_tree_count(set, 0); i++)
        count += run_set_tree_run(set, 0, i)->count;
    return count;
}

static status
short_life(void *arg)
{
    EXPECT(ok(lesson_open()));
    rig.levels->slice_bytes = MIB(4);
    for (u32 round = 0; round < CROWD_RUNS; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, KIB(10), 0, false);
        EXPECT(ok(rig_flush(&rig)));
    }
    /* In a slice of this sweep there is no memory, for as long as it takes to try many times. */
    u64 taken = budget_available(io_budget()) - KIB(40);
    EXPECT(budget_take(io_budget(), taken));
    levels_start(rig.levels);
    fiber_sleep_ns(60 * NS_PER_S);
    budget_give(io_budget(), taken);
    fiber_sleep_ns(120 * NS_PER_S);
    levels_stop(rig.levels);
    EXPECT(run_set_tree_count(rig.levels->current, 0) < CROWD_RUNS / 4);
    EXPECT(table_count() <= MODEL_KEYS / 4);
    rig_compare(&rig);
    rig_close(&rig);
    return ST_OK;
}

/* Else each key gets a table of its own, or a sweep does not end. */
static void
a_merge_that_lacked_memory_for_long_has_its_width_again(void **state)
{
    rig_reset(1, MIB(1));
    struct sim_options options;
    sim_options_default(&options, 1);
    options.memory_bytes = MIB(64);
    world = sim_new(&options);
    (void)sim_node_new(world, "10.0.0.1");
    assert_true(ok(sim_run(world, 1, short_life, NULL)));
    assert_true(sim_mark_count(world, "lsm.compaction.narrower") > 2);
    sim_free(world);
}

/* ---- room ---- */

/* Values are kept apart in one file of which a table points to nearly all, and then to half. */
static status
room_body(void *arg)
{
    struct sim_disk *disk = arg;
    EXPECT(ok(lesson_open()));
    rig.levels->slice_bytes = MIB(64); /* all is one slice */
    for (u32 key = 0; key < MODEL_KEYS; key++)
        rig_write(&rig, key, 60000, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    rig_write(&rig, 1, 10, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    EXPECT(rig.levels->blob_bytes > MIB(3));
    u64 used = sim_disk_used_bytes(disk);
    sim_disk_capacity_set(disk, used + MIB(1) + KIB(256));
    EXPECT(ok(levels_compact_all(rig.levels)) && rig.failed_count == 0);
    EXPECT(sim_disk_used_bytes(disk) < used + KIB(64));
    for (u32 key = 0; key < MODEL_KEYS / 2; key++)
        rig_write(&rig, key, 10, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    EXPECT(ok(levels_compact_all(rig.levels)));
    /* Now half of the file is garbage: what is left of it is to be written again. */
    sim_disk_capacity_set(disk, sim_disk_used_bytes(disk) + MIB(2));
    EXPECT(status_is(levels_compact_all(rig.levels), ST_NO_SPACE));
    EXPECT(sim_mark_count(world, "lsm.output.blob_collected") == 0);
    rig_compare(&rig);
    sim_disk_capacity_set(disk, sim_disk_used_bytes(disk) + MIB(4));
    EXPECT(ok(levels_compact_all(rig.levels)));
    EXPECT(sim_mark_count(world, "lsm.output.blob_collected") > 0);
    EXPECT(rig.levels->blob_bytes < MIB(2) + KIB(64));
    rig_compare(&rig);
    rig_close(&rig);
    return ST_OK;
}

static void
a_merge_needs_room_for_what_it_writes_not_for_what_it_points_to(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    world = sim_new(&options);
    rig_reset(1, 4096);
    struct sim_disk *disk = sim_node_disk(sim_node_new(world, "10.0.0.1"));
    assert_true(ok(sim_run(world, 1, room_body, disk)));
    sim_free(world);
}

/* ---- scrubbing ---- */

static status
scrub_life(void *arg)
{
    EXPECT(ok(lesson_open()));
    for (u32 key = 0; key < MODEL_KEYS; key++)
        rig_write(&rig, key, 2000, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    levels_start(rig.levels);
    levels_scrub_rate_set(rig.levels, MIB(8));
    fiber_sleep_ns(200 * NS_PER_S);
    EXPECT(rig.levels->scrub_passes >= 2);
    EXPECT(rig.levels->corruptions == 0);
    levels_stop(rig.levels);
    rig_close(&rig);
    return ST_OK;
}

static void
scrubbing_goes_over_everything_again_and_again(void **state)
{
    rig_reset(1, 1000);
    assert_true(ok(sim_run_main(1, 1, scrub_life, NULL)));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tombstone_stays_while_an_older_run_has_its_key),
        cmocka_unit_test(snapshots_opened_during_a_compaction_read_right),
        cmocka_unit_test(a_damaged_input_stops_its_compaction_and_reads_go_on),
        cmocka_unit_test(a_merge_that_has_not_read_everything_replaces_nothing),
        cmocka_unit_test(a_merge_takes_no_number_that_nobody_has_given),
        cmocka_unit_test(a_merge_takes_no_token_outside_of_its_slice),
        cmocka_unit_test(a_merge_that_empties_a_keyspace_ends),
        cmocka_unit_test(a_range_delete_spares_newer_writes_and_snapshots),
        cmocka_unit_test(expired_tables_do_not_uncover_what_lies_beneath),
        cmocka_unit_test(a_reader_keeps_the_files_that_it_reads),
        cmocka_unit_test(files_go_with_their_last_reader_and_power_may_be_lost_at_any_request),
        cmocka_unit_test(space_stays_bounded_under_overwrites),
        cmocka_unit_test(stores_are_split_and_joined_without_copying),
        cmocka_unit_test(stores_that_do_not_go_together_are_not_joined),
        cmocka_unit_test(compaction_does_not_save_up_for_a_burst),
        cmocka_unit_test(a_merge_leaves_the_processor_after_each_beat),
        cmocka_unit_test(a_merge_that_lacked_memory_for_long_has_its_width_again),
        cmocka_unit_test(many_runs_are_merged_with_little_memory),
        cmocka_unit_test(a_merge_needs_room_for_what_it_writes_not_for_what_it_points_to),
        cmocka_unit_test(scrubbing_goes_over_everything_again_and_again),
        cmocka_unit_test(any_read_may_fail),
        cmocka_unit_test(any_write_may_fail),
        cmocka_unit_test(any_sync_may_fail),
        cmocka_unit_test(any_name_operation_may_fail),
        cmocka_unit_test(the_disk_may_fill_at_any_write_and_stay_full),
        cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(a_flush_without_memory_leaves_no_files),
        cmocka_unit_test(power_may_be_lost_at_any_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
