/* SPDX-License-Identifier: MIT
 *
 * test_levels.c -- flushes, compactions, snapshots, deleted ranges, TTL and blob files of a store's
 * levels against a model that keeps everything, by random histories.
 */
#include "../../fewer.h"
#include "levels_fixture.h"

static struct rig rig;

static void
rig_reset(u64 seed, u32 blob_threshold)
{
    memset(&rig, 0, sizeof(rig));
    prng_init(&rig.prng, seed);
    rig.blob_threshold = blob_threshold;
}

static u32
random_size(struct rig *r)
{
    switch (prng_below(&r->prng, 10)) {
    case 0:
        return 0;
    case 1:
        return (u32)prng_below(&r->prng, 3000);
    default:
        return (u32)prng_below(&r->prng, 200);
    }
}

static void
random_step(struct rig *r)
{
    switch (prng_below(&r->prng, 12)) {
    case 0:
        if (r->model.range_count < 40 && prng_chance(&r->prng, 1, 3)) {
            u64 first = prng_u64(&r->prng), last = prng_u64(&r->prng);
            if (prng_chance(&r->prng, 1, 4)) {
                first = 0;
                last = UINT64_MAX;
            }
            rig_range(r, MIN(first, last), MAX(first, last));
        }
        break;
    case 1:
        if (r->model.snapshot_count < 6) rig_snapshot(r);
        break;
    case 2:
        if (r->model.snapshot_count > 0)
            rig_snapshot_close(r, (u32)prng_below(&r->prng, r->model.snapshot_count));
        break;
    case 3:
        EXPECT(ok(rig_flush(r)));
        break;
    case 4:
        if (prng_chance(&r->prng, 1, 4)) EXPECT(ok(levels_compact_all(r->levels)));
        break;
    default:
        for (u32 i = 0; i < 20; i++) {
            u32 key = (u32)prng_below(&r->prng, MODEL_KEYS);
            u64 expire = 0;
            if (prng_chance(&r->prng, 1, 8)) expire = io_wall_ms() + prng_below(&r->prng, 20) - 10;
            rig_write(r, key, random_size(r), expire, prng_chance(&r->prng, 1, 5));
        }
        break;
    }
}

static status
random_history(void *arg)
{
    EXPECT(ok(io_dir_make(STORE_DIR)));
    EXPECT(ok(rig_open(&rig)));
    bool background = prng_chance(&rig.prng, 1, 2);
    if (background) levels_start(rig.levels);
    for (u32 i = 0; i < 300; i++) {
        random_step(&rig);
        if (i % 20 == 0) rig_compare(&rig);
        if (background) fiber_sleep_ns(prng_below(&rig.prng, 20 * NS_PER_MS));
        if (i % 97 == 96) {
            EXPECT(ok(rig_flush(&rig)));
            if (background) levels_stop(rig.levels);
            rig.model.snapshot_count = 0; /* they end with the process */
            rig_close(&rig);
            EXPECT(ok(rig_open(&rig)));
            rig_compare(&rig);
            if (background) levels_start(rig.levels);
        }
    }
    EXPECT(ok(rig_flush(&rig)));
    while (rig.model.snapshot_count > 0)
        rig_snapshot_close(&rig, 0);
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig);
    if (background) levels_stop(rig.levels);
    EXPECT(rig.failed_count == 0);
    rig_close(&rig);
    return ST_OK;
}

static void
random_histories_read_as_the_model_says(void **state)
{
    for (u64 seed = 1; seed <= FEWER(12); seed++) {
        rig_reset(seed, 4096);
        assert_true(ok(sim_run_main(seed, 1, random_history, NULL)));
    }
}

static void
random_histories_with_blob_files_read_as_the_model_says(void **state)
{
    for (u64 seed = 101; seed <= 100 + FEWER(12); seed++) {
        rig_reset(seed, 100);
        assert_true(ok(sim_run_main(seed, 1, random_history, NULL)));
    }
}

/* With every rare path made common: tiny slices, early merges, many tables a flush. */
static void
random_histories_under_buggify_read_as_the_model_says(void **state)
{
    for (u64 seed = 201; seed <= 200 + FEWER(30); seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.buggify = true;
        struct sim *sim = sim_new(&options);
        rig_reset(seed, seed % 2 == 0 ? 100 : 4096);
        assert_true(ok(sim_run(sim, 1, random_history, NULL)));
        sim_free(sim);
    }
}

/* ---- what a full compaction leaves ---- */

static status
compacted_store(void *arg)
{
    EXPECT(ok(io_dir_make(STORE_DIR)));
    EXPECT(ok(rig_open(&rig)));
    for (u32 round = 0; round < 5; round++) {
        for (u32 key = 0; key < MODEL_KEYS; key++)
            rig_write(&rig, key, 1000, 0, round == 4 && key % 2 == 1);
        EXPECT(ok(rig_flush(&rig)));
    }
    EXPECT(ok(levels_compact_all(rig.levels)));
    rig_compare(&rig);
    struct lsm_stats stats = {0};
    levels_stats(rig.levels, &stats);
    EXPECT(stats.runs_max == 1);
    EXPECT(stats.table_entries == MODEL_KEYS / 2);
    EXPECT(stats.compaction_dropped_overwritten == MODEL_KEYS * 4);
    EXPECT(stats.compaction_dropped_deleted == MODEL_KEYS / 2);
    EXPECT(stats.blob_live_bytes >= MODEL_KEYS / 2 * 1000);
    EXPECT(levels_count_estimate(rig.levels, 0) == MODEL_KEYS / 2);
    /* Nothing is left of what was merged. */
    EXPECT(stats.blob_bytes < 2 * stats.blob_live_bytes);

    rig_range(&rig, 0, UINT64_MAX);
    rig_compare(&rig);
    EXPECT(ok(rig_flush(&rig)));
    EXPECT(ok(levels_compact_all(rig.levels)));
    levels_stats(rig.levels, &stats);
    EXPECT(stats.tables == 0 && stats.blob_bytes == 0);
    EXPECT(range_list_count(&rig.levels->ranges) == 0);
    rig_close(&rig);
    return ST_OK;
}

static void
a_full_compaction_leaves_one_run_of_live_entries(void **state)
{
    rig_reset(1, 500);
    assert_true(ok(sim_run_main(1, 1, compacted_store, NULL)));
}

/* ---- ids, ranges of foreign keyspaces ---- */

static status
reopened_many_times(void *arg)
{
    EXPECT(ok(io_dir_make(STORE_DIR)));
    u64 id_last = 0;
    for (u32 round = 0; round < 10; round++) {
        EXPECT(ok(rig_open(&rig)));
        u64 id = levels_file_id_new(rig.levels);
        EXPECT(id > id_last);
        id_last = id;
        rig_write(&rig, round, 10, 0, false);
        EXPECT(ok(rig_flush(&rig)));
        rig_compare(&rig);
        rig_close(&rig);
    }
    return ST_OK;
}

static void
file_ids_are_never_used_again(void **state)
{
    rig_reset(1, 4096);
    assert_true(ok(sim_run_main(1, 1, reopened_many_times, NULL)));
}

static status
without_manifest(void *arg)
{
    EXPECT(ok(io_dir_make(STORE_DIR)));
    EXPECT(ok(rig_open(&rig)));
    rig_write(&rig, 1, 10, 0, false);
    EXPECT(ok(rig_flush(&rig)));
    rig_close(&rig);
    EXPECT(ok(io_file_unlink(STORE_DIR "/manifest")));
    EXPECT(status_is(rig_open(&rig), ST_CORRUPT));
    return ST_OK;
}

static void
a_store_without_its_manifest_is_refused(void **state)
{
    rig_reset(1, 4096);
    assert_true(ok(sim_run_main(1, 1, without_manifest, NULL)));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_compaction_leaves_one_run_of_live_entries),
        cmocka_unit_test(random_histories_read_as_the_model_says),
        cmocka_unit_test(random_histories_with_blob_files_read_as_the_model_says),
        cmocka_unit_test(random_histories_under_buggify_read_as_the_model_says),
        cmocka_unit_test(file_ids_are_never_used_again),
        cmocka_unit_test(a_store_without_its_manifest_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
