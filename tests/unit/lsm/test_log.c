/* SPDX-License-Identifier: MIT
 *
 * test_log.c -- the log on the simulated disk: power cuts and failures at every request, damage at
 * every byte. The model is two numbers: the last record that was handed over, and the last one that
 * was told durable. What recovery yields must begin at the first record, have no gap, and end
 * between the two.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../fewer.h"
#include "base/crc.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/log_internal.h"

#define DIR "/log"

struct model {
    /* what to do */
    struct log_config config;
    u64 segment_first;
    u32 records;  /* how many to append */
    u32 size_max; /* of a payload */
    u64 seed;
    u32 pause_every; /* appends between waits for durability; 0: never */
    bool idle;       /* wait for the seal before the end */
    bool rotate_release;
    bool rotate_goes_on; /* appends before the rotation is over */
    /* what happened */
    u64 appended, durable;
    u64 recovered_first, recovered; /* by the last opening */
    bool failed, failed_callback;
    status open_status;
    struct log *log;
    u64 segment_rotated;
    u64 tail_number, tail_end; /* when all was durable */
    u64 look_ns;
};

static void
on_durable(void *arg, u64 seq, bool failed)
{
    struct model *model = arg;
    CHECK(seq >= model->durable);
    CHECK(seq <= model->appended);
    if (model->failed_callback) CHECK(false);
    model->durable = seq;
    if (failed) model->failed_callback = true;
}

/* Every byte of a record follows from its number. */
static u32
record_make(u64 seed, u64 seq, u32 size_max, u8 *out)
{
    struct prng prng;
    prng_init(&prng, seed * 1000003 + seq);
    u32 size = (u32)prng_range(&prng, 1, size_max);
    for (u32 i = 0; i < MIN(size, 256u); i++)
        out[i] = (u8)(seq + i * 31);
    for (u32 i = 256; i < size; i += 256) /* and so on: megabytes of them */
        memcpy(out + i, out, MIN(size - i, 256u));
    return size;
}

static status
on_replay(void *arg, const struct log_record *record, struct bytes payload)
{
    struct model *model = arg;
    if (record->seq_first <= model->config.seq_flushed) return ST_OK; /* tables have it */
    if (model->recovered_first == 0) model->recovered_first = record->seq_first;
    if (model->recovered != 0) CHECK(record->seq_first == model->recovered + 1);
    static u8 expected[1 << 21];
    u32 size = record_make(model->seed, record->seq_first, model->size_max, expected);
    CHECK(bytes_equal(payload, BYTES(expected, size)));
    CHECK(record->version == record->seq_first * 10);
    model->recovered = record->seq_first + record->count - 1;
    return ST_OK;
}

static status
open_log(struct model *model)
{
    status st = io_dir_make(DIR);
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    st = io_dir_sync("/");
    if (!ok(st)) return st;
    model->config.dir = DIR;
    model->config.budget = io_budget();
    model->config.durable = on_durable;
    model->config.arg = model;
    model->recovered = model->recovered_first = 0;
    model->failed_callback = false;
    u64 durable = model->durable;
    model->durable = 0;
    st = log_open(&model->config, model->segment_first, on_replay, &model->log);
    model->open_status = st;
    model->durable = MAX(durable, model->durable);
    if (ok(st)) CHECK(log_check(model->log));
    return st;
}

static status
rotate(struct log *log, u64 *segment_out)
{
    status st = log_rotate(log, segment_out);
    return ok(st) ? log_rotate_wait(log, *segment_out) : st;
}

static status
append_some(struct model *model)
{
    static u8 payload[1 << 21];
    for (u32 i = 0; i < model->records; i++) {
        u64 seq = model->appended + 1;
        struct log_record record = {
            .kind = LOG_RECORD_BATCH, .seq_first = seq, .version = seq * 10, .count = 1};
        u32 size = record_make(model->seed, seq, model->size_max, payload);
        model->appended = seq; /* it may become durable inside the call's turn */
        status st = log_append(model->log, &record, BYTES(payload, size));
        while (status_is(st, ST_WOULD_WAIT)) {
            log_wait_room(model->log);
            st = log_append(model->log, &record, BYTES(payload, size));
        }
        if (!ok(st)) {
            model->appended = seq - 1;
            model->failed = true;
            return st;
        }
        CHECK(log_check(model->log));
        if (model->pause_every != 0 && i % model->pause_every == 0) {
            while (!log_failed(model->log) && log_durable_seq(model->log) < seq)
                fiber_sleep_ns(10 * NS_PER_US);
        }
        if (model->rotate_goes_on && i % 7 == 6) {
            u64 segment;
            st = log_rotate(model->log, &segment);
            if (!ok(st)) {
                model->failed = true;
                return st;
            }
        }
        if (model->rotate_release && i % 7 == 6) {
            st = rotate(model->log, &model->segment_rotated);
            if (!ok(st)) {
                model->failed = true;
                return st;
            }
        }
    }
    return ST_OK;
}

static status
writer(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    model->appended = model->recovered != 0 ? model->recovered : model->appended;
    st = append_some(model);
    if (ok(st)) log_drain(model->log);
    if (ok(st) && model->idle) fiber_sleep_ns(20 * NS_PER_MS);
    log_close(model->log);
    return model->failed ? ST_OK : st;
}

static status
reader(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (ok(st)) log_close(model->log);
    return st;
}

static struct model
model_make(u64 seed, u32 records, u32 size_max)
{
    return (struct model){
        .seed = seed,
        .records = records,
        .size_max = size_max,
        .config = {.durability = LSM_DURABILITY_GROUP,
                   .sync_interval_ms = 5,
                   .segment_bytes = 16 * LOG_BLOCK_BYTES},
    };
}

/* The heart of it: nothing durable is lost, nothing comes back that was not there. */
static void
check_recovered(const struct model *model)
{
    assert_true(ok(model->open_status));
    assert_true(model->recovered >= model->durable);
    assert_true(model->recovered <= model->appended);
    if (model->recovered > 0) assert_int_equal(model->recovered_first, 1);
}

static void
records_of_all_sizes_come_back(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 8; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        struct sim *sim = sim_new(&options);
        struct model model = model_make(seed, 300, seed % 2 == 0 ? 200 : 9000);
        assert_true(ok(sim_run(sim, 1, writer, &model)));
        assert_int_equal(model.durable, 300);
        model.records = 100;
        assert_true(ok(sim_run(sim, 1, writer, &model)));
        assert_int_equal(model.recovered, 300);
        assert_true(ok(sim_run(sim, 1, reader, &model)));
        assert_int_equal(model.recovered, 400);
        check_recovered(&model);
        sim_free(sim);
    }
}

static void
records_larger_than_a_write_come_back(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 3);
    struct sim *sim = sim_new(&options);
    struct model model = model_make(3, 12, 1500000);
    model.config.segment_bytes = MIB(4);
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    assert_true(ok(sim_run(sim, 1, reader, &model)));
    assert_int_equal(model.recovered, 12);
    sim_free(sim);
}

/* Power fails at the n-th request, for every n; then again while recovery runs; then it must
 * open. */
static void
power_cuts(u64 seed, bool pause, enum lsm_durability durability, bool second_cut)
{
    for (u64 n = 0;; n++) {
        struct sim_options options;
        sim_options_default(&options, seed + n);
        options.disk.torn_ppm = n % 2 == 0 ? 300000 : 0;
        struct sim *sim = sim_new(&options);
        struct model model = model_make(seed, 40, 6000);
        model.config.durability = durability;
        model.pause_every = pause ? 3 : 0;
        sim_crash_at(sim, SIM_POINT_IO, n);
        status st = sim_run(sim, 1, writer, &model);
        bool cut = sim_crashed(sim);
        assert_true(cut ? status_is(st, ST_CANCELED) : ok(st));
        if (durability == LSM_DURABILITY_PERIODIC) model.durable = 0; /* not promised */
        if (second_cut && cut) {
            sim_crash_at(sim, SIM_POINT_IO, 3 + n % 11);
            (void)ok(sim_run(sim, 1, reader, &model));
            if (!sim_crashed(sim)) check_recovered(&model);
        }
        sim_faults_clear(sim);
        st = sim_run(sim, 1, reader, &model);
        if (!ok(st)) {
            sim_log_dump(sim);
            print_message("seed %llu cut at %llu\n", (unsigned long long)seed,
                          (unsigned long long)n);
        }
        assert_true(ok(st));
        check_recovered(&model);
        /* And it takes more, which come back after what was there. */
        model.appended = model.recovered;
        model.durable = model.recovered;
        model.records = 5;
        assert_true(ok(sim_run(sim, 1, writer, &model)));
        assert_true(ok(sim_run(sim, 1, reader, &model)));
        assert_int_equal(model.recovered, model.appended);
        sim_free(sim);
        if (!cut) break;
    }
}

static void
no_power_cut_takes_what_was_durable(void **state)
{
    (void)state;
    power_cuts(1, false, LSM_DURABILITY_GROUP, false);
    power_cuts(2, true, LSM_DURABILITY_GROUP, false);
}

static void
a_second_cut_during_recovery_takes_nothing_either(void **state)
{
    (void)state;
    power_cuts(3, false, LSM_DURABILITY_GROUP, true);
    power_cuts(4, true, LSM_DURABILITY_GROUP, true);
}

static void
periodic_loses_at_most_the_last_interval_and_never_reports_damage(void **state)
{
    (void)state;
    power_cuts(5, false, LSM_DURABILITY_PERIODIC, false);
    power_cuts(6, true, LSM_DURABILITY_PERIODIC, true);
}

/* The n-th request fails: the log fails for good, and what was durable is there afterwards. */
static void
every_failed_request_is_survived(void **state)
{
    (void)state;
    for (u64 n = 0;; n++) {
        struct sim_options options;
        sim_options_default(&options, n);
        struct sim *sim = sim_new(&options);
        struct model model = model_make(7, 40, 6000);
        model.pause_every = 4;
        sim_fail_at(sim, SIM_POINT_IO, n, 1, ST_IO_ERROR);
        (void)ok(sim_run(sim, 1, writer, &model));
        bool failed = sim_failed(sim);
        sim_faults_clear(sim);
        status st = sim_run(sim, 1, reader, &model);
        if (!ok(st)) sim_log_dump(sim);
        assert_true(ok(st));
        assert_true(model.recovered >= model.durable);
        sim_free(sim);
        if (!failed) break;
    }
}

/* Records that come in one turn are one group, which does not wait for more. */
static status
group_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    for (u32 round = 0; round < 3; round++) {
        struct log_stats before, after;
        log_stats(model->log, &before);
        st = append_some(model);
        CHECK(ok(st));
        while (log_durable_seq(model->log) < model->appended) /* nobody asks for it */
            fiber_sleep_ns(10 * NS_PER_US);
        log_stats(model->log, &after);
        CHECK(after.writes == before.writes + 1);
    }
    log_close(model->log);
    return ST_OK;
}

static void
what_a_turn_brings_is_one_write(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 8);
    struct sim *sim = sim_new(&options);
    struct model model = model_make(8, 20, 100);
    assert_true(ok(sim_run(sim, 1, group_body, &model)));
    sim_free(sim);
}

/* The disk begins with half of what a large turn brings while the rest is still coming. */
static status
half_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    for (u32 round = 0; round < 3; round++) {
        struct log_stats before, after;
        log_stats(model->log, &before);
        st = append_some(model);
        CHECK(ok(st));
        CHECK(model->log->in_flight_count == 1 && model->log->fill != NULL);
        u64 left = list_entry(list_first(&model->log->in_flight), struct log_write, link)->size;
        CHECK(round == 0 || (left >= 4 * LOG_BLOCK_BYTES && left <= 7 * LOG_BLOCK_BYTES));
        while (log_durable_seq(model->log) < model->appended)
            fiber_sleep_ns(10 * NS_PER_US);
        log_stats(model->log, &after);
        CHECK(after.writes == before.writes + 2);
        fiber_sleep_ns(5 * NS_PER_MS); /* the seal is written */
    }
    log_close(model->log);
    return ST_OK;
}

static void
half_of_a_large_turn_leaves_early(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 8);
    struct sim *sim = sim_new(&options);
    struct model model = model_make(8, 400, 100);       /* some eleven blocks */
    model.config.segment_bytes = 256 * LOG_BLOCK_BYTES; /* groups of up to sixteen */
    assert_true(ok(sim_run(sim, 1, half_body, &model)));
    sim_free(sim);
}

static status
poison_body(void *arg)
{
    struct sim *sim = arg;
    struct model model = model_make(9, 10, 100);
    status st = open_log(&model);
    if (!ok(st)) return st;
    st = append_some(&model);
    CHECK(ok(st));
    log_drain(model.log);
    u64 durable = log_durable_seq(model.log);
    CHECK(durable == 10);
    fiber_sleep_ns(10 * NS_PER_MS); /* the seal is written */
    sim_fail_at(sim, SIM_POINT_WRITE, 0, 1, ST_IO_ERROR);
    model.records = 1;
    st = append_some(&model);
    CHECK(ok(st));
    log_drain(model.log);
    CHECK(log_failed(model.log) && model.failed_callback);
    sim_faults_clear(sim);
    fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(log_durable_seq(model.log) == durable); /* W4: not even when the disk is well again */
    struct log_record record = {.kind = LOG_RECORD_BATCH, .seq_first = 12, .count = 1};
    CHECK(status_is(log_append(model.log, &record, BYTES("x", 1)), ST_READ_ONLY));
    u64 segment;
    CHECK(status_is(log_rotate(model.log, &segment), ST_READ_ONLY));
    log_close(model.log);
    return ST_OK;
}

static void
a_failed_write_fails_the_log_for_good(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, poison_body, sim)));
    sim_free(sim);
}

/* ---- damage ---- */

static char segments[16][64];
static u32 segment_count;

static void
file_each(void *arg, const char *path)
{
    (void)arg;
    if (strncmp(path, DIR "/l", 6) != 0) return;
    assert_true(segment_count < ARRAY_COUNT(segments));
    snprintf(segments[segment_count++], sizeof(segments[0]), "%s", path);
}

static void
segments_list(struct sim_disk *disk)
{
    segment_count = 0;
    sim_disk_each_file(disk, file_each, NULL);
}

static u64 damage_reports;
static u64 damage_offset;

static void
on_damage(void *arg, const char *file, u64 offset, const char *what)
{
    (void)arg;
    CHECK(file != NULL && what != NULL);
    damage_reports++;
    damage_offset = offset;
}

/* What recovery would yield, without changing anything. */
static status
look(struct model *model)
{
    struct log_recovered found = {0};
    struct log_reader_report report = {.fn = on_damage};
    model->recovered = model->recovered_first = 0;
    status st = log_recover(DIR, model->segment_first, false, io_budget(), on_replay, model,
                            &report, &found);
    log_recovered_deinit(&found, io_budget());
    return st;
}

static status
timed_look_body(void *arg)
{
    struct model *model = arg;
    u64 start_ns = io_now_ns();
    status st = look(model);
    model->look_ns = io_now_ns() - start_ns;
    return st;
}

/* A disk on which every request takes a millisecond. Two segments are read to their ends: the one
 * with records, and the one that is ready, which must not be attested. */
static void
recovery_has_several_reads_under_way(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 12);
    options.disk.latency_ns_min = options.disk.latency_ns_max = NS_PER_MS;
    struct sim *sim = sim_new(&options);
    struct model model = model_make(12, 240, 120000);
    model.config.segment_bytes = MIB(32);
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    assert_true(ok(sim_run(sim, 1, timed_look_body, &model)));
    assert_int_equal(model.recovered, 240);
    u64 pieces = 2 * MIB(32) / KIB(256);
    assert_true(model.look_ns < pieces * NS_PER_MS / 2);
    sim_free(sim);
}

static status
small_budget_body(void *arg)
{
    struct model *model = arg;
    struct budget budget;
    budget_init(&budget, "small", MIB(64), io_budget());
    void *taken = mem_alloc(&budget, MIB(64) - KIB(400));
    CHECK(taken != NULL);
    struct log_recovered found = {0};
    status st = log_recover(DIR, 0, false, &budget, on_replay, model, NULL, &found);
    CHECK(budget.used_bytes_max > MIB(64) - KIB(144)); /* a piece was had, and no second one */
    log_recovered_deinit(&found, &budget);
    mem_free(&budget, taken, MIB(64) - KIB(400));
    CHECK(budget.used_bytes == 0);
    return st;
}

static void
recovery_makes_do_with_little_memory(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 13);
    struct sim *sim = sim_new(&options);
    struct model model = model_make(13, 60, 9000);
    model.config.segment_bytes = MIB(1);
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    assert_true(ok(sim_run(sim, 1, small_budget_body, &model)));
    assert_int_equal(model.recovered, 60);
    sim_free(sim);
}

struct flips {
    struct model model;
    struct sim_disk *disk;
    u32 step;
    u64 detected, harmless;
};

static status
flip_body(void *arg)
{
    struct flips *flips = arg;
    status st = look(&flips->model);
    CHECK(ok(st) && flips->model.recovered == flips->model.durable);
    for (u32 i = 0; i < segment_count; i++) {
        u64 size = 0;
        st = sim_disk_file_size(flips->disk, segments[i], &size);
        CHECK(ok(st));
        for (u64 at = 0; at < size; at += flips->step) {
            u8 mask = (u8)(1u << at % 8);
            st = sim_disk_flip(flips->disk, segments[i], at, mask);
            CHECK(ok(st));
            st = look(&flips->model);
            if (status_is(st, ST_CORRUPT)) {
                flips->detected++;
            } else {
                CHECK(ok(st) && flips->model.recovered == flips->model.durable);
                flips->harmless++;
            }
            st = sim_disk_flip(flips->disk, segments[i], at, mask);
            CHECK(ok(st));
        }
    }
    CHECK(ok(look(&flips->model)));
    return ST_OK;
}

/* One bit in every byte (of every eighth, with AddressSanitizer), one at a time: recovery says so,
 * or nothing acknowledged was in it. */
static void
damage_at_every_byte_is_found_or_harmless(void **state)
{
    (void)state;
    const u32 step = 8 / FEWER(8);
    for (u32 clean = 0; clean < 2; clean++) {
        struct sim_options options;
        sim_options_default(&options, 5);
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct flips flips = {.model = model_make(5, 12, 3000), .step = step};
        flips.model.config.segment_bytes = 8 * LOG_BLOCK_BYTES;
        flips.model.idle = clean == 0;
        assert_true(ok(sim_run(sim, 1, writer, &flips.model)));
        assert_int_equal(flips.model.durable, 12);
        flips.disk = sim_node_disk(node);
        segments_list(flips.disk);
        assert_true(segment_count >= 2);
        assert_true(ok(sim_run(sim, 1, flip_body, &flips)));
        assert_true(flips.detected > 3 * LOG_BLOCK_BYTES / step);
        sim_free(sim);
    }
}

static status
unlink_body(void *arg)
{
    status st = io_file_unlink(arg);
    return ok(st) ? io_dir_sync(DIR) : st;
}

static status
shorten(const char *path, u64 size)
{
    struct io_file *file;
    status st = io_file_open(path, IO_OPEN_WRITE, &file);
    if (!ok(st)) return st;
    st = io_file_truncate(file, size);
    if (ok(st)) st = io_file_sync(file);
    io_file_close(file);
    return st;
}

static status
truncate_body(void *arg)
{
    return shorten(arg, 2 * LOG_BLOCK_BYTES);
}

static status
empty_body(void *arg)
{
    return shorten(arg, 0);
}

static status
look_body(void *arg)
{
    return look(arg);
}

static void
a_lost_or_shortened_segment_is_damage(void **state)
{
    (void)state;
    for (u32 which = 0; which < 4; which++) {
        struct sim_options options;
        sim_options_default(&options, 6);
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct model model = model_make(6, 150, 3000);
        assert_true(ok(sim_run(sim, 1, writer, &model)));
        segments_list(sim_node_disk(node));
        assert_true(segment_count >= 4);
        char *victim = segments[which / 2]; /* the first, or one in the middle */
        assert_true(ok(sim_run(sim, 1, which % 2 == 0 ? unlink_body : truncate_body, victim)));
        status st = sim_run(sim, 1, reader, &model);
        assert_true(status_is(st, ST_CORRUPT));
        assert_true(sim_log_contains(sim, victim));
        sim_free(sim);
    }
}

/* The header of segment `arg` says another last number of the one before it, well formed. */
static status
forge_header_body(void *arg)
{
    static _Alignas(LOG_BLOCK_BYTES) u8 data[LOG_BLOCK_BYTES];
    struct io_file *file;
    status st = io_file_open(arg, IO_OPEN_WRITE, &file);
    if (!ok(st)) return st;
    st = io_file_read(file, IO_CLASS_READ, data, sizeof(data), 0);
    struct log_block block;
    struct log_segment_header header;
    memcpy(&block, data, sizeof(block));
    memcpy(&header, data + sizeof(block), sizeof(header));
    header.predecessor_seq--;
    memcpy(data + sizeof(block), &header, sizeof(header));
    block.crc = log_block_crc(data, block.segment, 0);
    memcpy(data, &block, sizeof(block));
    if (ok(st)) st = io_file_write(file, IO_CLASS_LOG, data, sizeof(data), 0, true);
    io_file_close(file);
    return st;
}

static void
a_segment_that_ends_elsewhere_than_the_next_one_says_is_damage(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 6);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct model model = model_make(6, 150, 3000);
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    segments_list(sim_node_disk(node));
    assert_true(segment_count >= 4);
    assert_true(ok(sim_run(sim, 1, forge_header_body, segments[2])));
    assert_true(status_is(sim_run(sim, 1, reader, &model), ST_CORRUPT));
    assert_true(sim_log_contains(sim, "end of a segment is not where the next one says"));
    assert_true(sim_log_contains(sim, segments[1]));
    sim_free(sim);
}

/* Nothing behind it is there to tell: its own header does. */
static void
a_shortened_newest_segment_is_damage(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 6);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct model model = model_make(6, 6, 3000);
    model.pause_every = 1; /* several writes, the later ones are cut off */
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    assert_int_equal(model.durable, 6);
    segments_list(sim_node_disk(node));
    assert_true(segment_count >= 1);
    assert_true(ok(sim_run(sim, 1, truncate_body, segments[0])));
    assert_true(status_is(sim_run(sim, 1, reader, &model), ST_CORRUPT));
    assert_true(sim_log_contains(sim, segments[0]));
    damage_reports = 0;
    assert_true(status_is(sim_run(sim, 1, look_body, &model), ST_CORRUPT));
    assert_int_equal(damage_reports, 1);
    assert_int_equal(damage_offset, 2 * LOG_BLOCK_BYTES);
    /* Not even its header is left. */
    assert_true(ok(sim_run(sim, 1, empty_body, segments[0])));
    assert_true(status_is(sim_run(sim, 1, reader, &model), ST_CORRUPT));
    assert_true(status_is(sim_run(sim, 1, look_body, &model), ST_CORRUPT));
    assert_int_equal(damage_reports, 2);
    assert_int_equal(damage_offset, 0);
    sim_free(sim);
}

static void
verification_names_the_damaged_block(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 6);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct model model = model_make(6, 60, 3000);
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    damage_reports = 0;
    segments_list(sim_node_disk(node));
    assert_true(ok(sim_disk_flip(sim_node_disk(node), segments[0], 3 * LOG_BLOCK_BYTES + 77, 4)));
    assert_true(status_is(sim_run(sim, 1, look_body, &model), ST_CORRUPT));
    assert_int_equal(damage_reports, 1);
    assert_int_equal(damage_offset, 3 * LOG_BLOCK_BYTES);
    sim_free(sim);
}

/* ---- segments ---- */

static status
recycle_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    for (u32 round = 0; round < 30; round++) {
        st = append_some(model);
        CHECK(ok(st));
        st = rotate(model->log, &model->segment_first);
        CHECK(ok(st));
        CHECK(log_durable_seq(model->log) == model->appended); /* the header is a barrier */
        log_release(model->log, model->segment_first);
        struct log_stats stats;
        log_stats(model->log, &stats);
        CHECK(stats.segments <= 5);
    }
    log_close(model->log);
    return ST_OK;
}

static void
recycled_segments_never_show_their_past(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 8);
    struct sim *sim = sim_new(&options);
    struct model model = model_make(8, 20, 2000);
    assert_true(ok(sim_run(sim, 1, recycle_body, &model)));
    assert_true(sim_mark_count(sim, "lsm.log.recycled") > 10);
    /* Everything was released, so there is nothing to replay: old records must not be seen. */
    struct model after = model_make(8, 3, 2000);
    after.segment_first = model.segment_first;
    after.appended = after.durable = model.appended;
    assert_true(ok(sim_run(sim, 1, reader, &after)));
    assert_int_equal(after.recovered, 0);
    sim_free(sim);
}

/* Several segments between two releases, as a memtable larger than a segment has them. */
static status
recycle_many_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    struct log_stats stats;
    for (u32 round = 0; round < 30; round++) {
        st = append_some(model);
        CHECK(ok(st));
        st = rotate(model->log, &model->segment_first);
        CHECK(ok(st));
        log_release(model->log, model->segment_first);
        log_stats(model->log, &stats);
        CHECK(stats.segments <= 8); /* current, ready, six that wait */
    }
    CHECK(stats.segments >= 5);
    log_recycled_remove(model->log, LOG_RECYCLE_LEAST);
    log_stats(model->log, &stats);
    CHECK(stats.segments <= 3);
    log_close(model->log);
    return ST_OK;
}

static void
several_segments_between_releases_need_no_new_files(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 8);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct model model = model_make(8, 150, 2000); /* three segments a round */
    model.config.recycle_max = 6;
    assert_true(ok(sim_run(sim, 1, recycle_many_body, &model)));
    assert_true(sim_mark_count(sim, "lsm.log.recycled") > 80);
    assert_true(sim_mark_count(sim, "lsm.log.made") <= 8);
    segments_list(sim_node_disk(node));
    assert_true(segment_count <= 3); /* the others' files are gone */
    /* Their names at once, their blocks little by little. */
    assert_true(sim_mark_count(sim, "io.sim_file.closed_removed") >= 3);
    sim_free(sim);
}

#define KEPT_MAX 16u
struct kept {
    struct model *model;
    char names[KEPT_MAX][LOG_NAME_BYTES + 1];
    u32 count;
    u32 crcs[KEPT_MAX];
};

static void
kept_each(void *arg, const char *name)
{
    struct kept *kept = arg;
    u64 number;
    if (!log_name_parse(name, &number)) return;
    CHECK(kept->count < KEPT_MAX);
    memcpy(kept->names[kept->count++], name, LOG_NAME_BYTES + 1);
}

static u32
kept_crc(const char *path)
{
    struct io_file *file;
    CHECK(ok(io_file_open(path, IO_OPEN_READ, &file)));
    u64 size;
    CHECK(ok(io_file_size(file, &size)));
    ALIGNED(4096) static u8 block[LOG_BLOCK_BYTES];
    u32 crc = 0;
    for (u64 at = 0; at < size; at += LOG_BLOCK_BYTES) {
        CHECK(ok(io_file_read(file, IO_CLASS_READ, block, LOG_BLOCK_BYTES, at)));
        crc = crc32c(crc, block, LOG_BLOCK_BYTES);
    }
    io_file_close(file);
    return crc;
}

/* A second name for each segment, which shows what becomes of the file. */
static status
kept_body(void *arg)
{
    struct kept *kept = arg;
    CHECK(ok(io_dir_make("/kept")));
    CHECK(ok(io_dir_list(DIR, kept_each, kept)));
    char from[64], to[64];
    for (u32 i = 0; i < kept->count; i++) {
        snprintf(from, sizeof(from), DIR "/%s", kept->names[i]);
        snprintf(to, sizeof(to), "/kept/%s", kept->names[i]);
        CHECK(ok(io_file_link(from, to)));
        kept->crcs[i] = kept_crc(to);
    }
    status st = recycle_body(kept->model);
    for (u32 i = 0; i < kept->count; i++) {
        snprintf(to, sizeof(to), "/kept/%s", kept->names[i]);
        CHECK(kept_crc(to) == kept->crcs[i]);
    }
    kept->count = 0;
    CHECK(ok(io_dir_list(DIR, kept_each, kept)));
    return st;
}

/* A write of a killed process may be on its way to any file that it had: to its last segment, to
 * the one that was ready, and to one that was released. */
static void
what_an_opening_finds_is_never_written_again(void **state)
{
    (void)state;
    for (u32 released = 0; released < 2; released++) {
        struct sim_options options;
        sim_options_default(&options, 8);
        struct sim *sim = sim_new(&options);
        struct model model = model_make(8, released ? 150 : 60, 2000);
        if (released) model.config.recycle_max = 3;
        sim_crash_keeps_all_set(sim, true);
        assert_true(ok(sim_run(sim, 1, released ? recycle_many_body : writer, &model)));
        struct kept kept = {.model = &model};
        assert_true(ok(sim_run(sim, 1, kept_body, &kept)));
        assert_true(sim_mark_count(sim, "lsm.log.recycled") > 10); /* of its own */
        assert_in_range(kept.count, 2, 5);                         /* the others went */
        sim_free(sim);
    }
}

/* The first one has the room that its larger predecessor had (log_carry.c), and goes when it is
 * released. */
static void
a_larger_segment_does_not_stay_when_segments_are_to_be_smaller(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 8);
    struct sim *sim = sim_new(&options);
    struct model model = model_make(8, 20, 2000);
    model.config.segment_bytes = 64 * LOG_BLOCK_BYTES;
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    assert_int_equal(sim_mark_count(sim, "lsm.log.other_size_not_reused"), 0);
    model.config.segment_bytes = LOG_SEGMENT_BYTES_MIN;
    assert_true(ok(sim_run(sim, 1, recycle_body, &model)));
    assert_int_equal(sim_mark_count(sim, "lsm.log.other_size_not_reused"), 1);
    sim_free(sim);
}

/* Recovery reads it, should its name come back: it is not to be found with fewer blocks. */
static void
a_segment_that_was_not_released_is_removed_whole(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 8);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct model model = model_make(8, 60, 2000);
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    segments_list(sim_node_disk(node));
    model.config.segment_bytes *= 2; /* those that are there cannot serve again */
    u64 before = sim_mark_count(sim, "lsm.log.segment_not_begun");
    char last[sizeof(segments[0])];
    memcpy(last, segments[segment_count - 1], sizeof(last));
    assert_true(ok(sim_run(sim, 1, reader, &model)));
    assert_true(sim_mark_count(sim, "lsm.log.segment_not_begun") > before);
    segments_list(sim_node_disk(node));
    for (u32 i = 0; i < segment_count; i++)
        assert_string_not_equal(segments[i], last);
    assert_int_equal(sim_mark_count(sim, "io.sim_file.closed_removed"), 0);
    sim_free(sim);
}

struct space {
    struct sim_disk *disk;
    struct model model;
};

static status
space_body(void *arg)
{
    struct space *space = arg;
    struct model *model = &space->model;
    status st = open_log(model);
    if (!ok(st)) return st;
    fiber_sleep_ns(NS_PER_MS);
    sim_disk_capacity_set(space->disk, 1);
    st = append_some(model);
    CHECK(status_is(st, ST_NO_SPACE) && log_no_space(model->log) && !log_failed(model->log));
    log_drain(model->log);
    CHECK(log_durable_seq(model->log) == model->appended); /* what was taken is safe */
    u64 segment;
    CHECK(status_is(log_rotate(model->log, &segment), ST_NO_SPACE));
    sim_disk_capacity_set(space->disk, GIB(1));
    fiber_sleep_ns(2 * NS_PER_S);
    CHECK(!log_no_space(model->log));
    model->failed = false;
    st = append_some(model);
    CHECK(ok(st));
    log_close(model->log);
    return ST_OK;
}

static void
a_full_disk_refuses_and_goes_on_when_there_is_space(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 8);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct space space = {.disk = sim_node_disk(node), .model = model_make(8, 100, 3000)};
    assert_true(ok(sim_run(sim, 1, space_body, &space)));
    assert_true(sim_mark_count(sim, "lsm.log.space_returned") > 0);
    assert_true(ok(sim_run(sim, 1, reader, &space.model)));
    assert_int_equal(space.model.recovered, space.model.appended);
    sim_free(sim);
}

/* Whether a segment is the last one is not known before the next one could not be made; until then its
 * end is kept, too. What frees may have it. */
static status
last_room_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    struct log *log = model->log;
    while (log->ready == NULL)
        fiber_sleep_ns(NS_PER_MS);
    u64 first = log->current->number;
    u32 size = model->size_max;
    log->queue_bytes_max = MIB(1); /* all in one turn: nobody makes a segment meanwhile */
    for (model->records = 1; ok(log_append_check(log, size, false));) {
        st = append_some(model);
        CHECK(ok(st));
    }
    CHECK(log->current->number == first + 1 && log->ready == NULL);
    CHECK(status_is(log_append_check(log, size, false), ST_WOULD_WAIT));
    CHECK(log->current->end < log->config.segment_bytes);
    CHECK(ok(log_append_check(log, size, true)));
    log_wait_room(log);
    while (log->ready == NULL)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(ok(log_append_check(log, size, false)));
    log_close(log);
    return ST_OK;
}

static void
the_end_is_kept_until_the_next_segment_is_there(void **state)
{
    (void)state;
    for (u32 size = 100; size < 3000; size += 290) {
        struct sim_options options;
        sim_options_default(&options, 8);
        struct sim *sim = sim_new(&options);
        struct model model = model_make(8, 0, size);
        model.config.segment_bytes = LOG_SEGMENT_BYTES_MIN;
        assert_true(ok(sim_run(sim, 1, last_room_body, &model)));
        sim_free(sim);
    }
}

static void
a_full_disk_does_not_keep_a_log_from_opening(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 9);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct model model = model_make(9, 100, 3000);
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    sim_disk_capacity_set(sim_node_disk(node), 1);
    assert_true(ok(sim_run(sim, 1, reader, &model)));
    assert_int_equal(model.recovered, 100);
    assert_true(ok(sim_run(sim, 1, reader, &model)));
    sim_disk_capacity_set(sim_node_disk(node), GIB(1));
    assert_true(ok(sim_run(sim, 1, writer, &model)));
    sim_free(sim);
}

static status
kill_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    st = append_some(model);
    CHECK(ok(st));
    log_drain(model->log);
    model->tail_number = model->log->current->number;
    model->tail_end = model->log->current->end;
    io_stop();
    for (;;)
        fiber_sleep_ns(NS_PER_S); /* until the power is cut */
}

static void
kill_now(void *arg)
{
    sim_node_crash(arg);
}

static void
periodic_survives_a_killed_process(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 10);
    options.disk.crash_keeps_all = true;
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct model model = model_make(10, 30, 3000);
    model.config.durability = LSM_DURABILITY_PERIODIC;
    model.config.sync_interval_ms = 10000;
    sim_at(sim, 3 * NS_PER_S, kill_now, node);
    assert_true(status_is(sim_run(sim, 1, kill_body, &model), ST_CANCELED));
    assert_int_equal(model.durable, 30);
    assert_true(ok(sim_run(sim, 1, reader, &model)));
    assert_int_equal(model.recovered, 30);
    sim_free(sim);
}

/* A change of segments is made of several steps; whichever is the last one, what was acknowledged
 * is in the one segment or in the other. */
static void
a_killed_process_loses_nothing_while_periodic_changes_segments(void **state)
{
    (void)state;
    u64 changes = 0, copies = 0;
    for (u32 pause = 1; pause <= 3; pause++) {
        bool cut = true;
        for (u64 n = 0; cut; n++) {
            struct sim_options options;
            sim_options_default(&options, 11 + n);
            options.disk.crash_keeps_all = true;
            struct sim *sim = sim_new(&options);
            struct model model = model_make(11, 60, 1500);
            model.config.durability = LSM_DURABILITY_PERIODIC;
            model.config.sync_interval_ms = 10000;
            model.config.segment_bytes = 64 * LOG_BLOCK_BYTES;
            model.pause_every = pause;
            model.rotate_goes_on = true;
            sim_crash_at(sim, SIM_POINT_IO, n);
            (void)ok(sim_run(sim, 1, writer, &model));
            cut = sim_crashed(sim);
            changes += sim_mark_count(sim, "lsm.log.change");
            copies += sim_mark_count(sim, "lsm.log.change_copies");
            sim_faults_clear(sim);
            assert_true(ok(sim_run(sim, 1, reader, &model)));
            check_recovered(&model);
            sim_free(sim);
        }
    }
    assert_true(changes > 100 && copies > 100);
}

/* Any write fails, that of a copy among them: nothing that was acknowledged before is gone. */
static void
a_write_that_fails_while_periodic_changes_segments_is_survived(void **state)
{
    (void)state;
    u64 failed_copies = 0;
    bool failed = true;
    for (u64 n = 0; failed; n++) {
        struct sim_options options;
        sim_options_default(&options, 12);
        struct sim *sim = sim_new(&options);
        struct model model = model_make(12, 60, 1500);
        model.config.durability = LSM_DURABILITY_PERIODIC;
        model.config.sync_interval_ms = 10000;
        model.config.segment_bytes = 64 * LOG_BLOCK_BYTES;
        model.pause_every = 1;
        model.rotate_goes_on = true;
        sim_fail_at(sim, SIM_POINT_WRITE, n, 1, ST_IO_ERROR);
        (void)ok(sim_run(sim, 1, writer, &model));
        failed = sim_failed(sim);
        failed_copies += sim_mark_count(sim, "lsm.log.copy_failed");
        sim_faults_clear(sim);
        assert_true(ok(sim_run(sim, 1, reader, &model)));
        check_recovered(&model);
        sim_free(sim);
    }
    assert_true(failed_copies > 0);
}

/* Each request takes a millisecond here. The change of segments takes several of them one after
 * the other, and a writer waits for its own only. */
static status
change_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    st = append_some(model);
    CHECK(ok(st));
    fiber_sleep_ns(100 * NS_PER_MS);
    u64 before = log_segment_started(model->log), begun_ns = io_now_ns(), segment;
    st = log_rotate(model->log, &segment);
    CHECK(ok(st) && segment > before);
    st = append_some(model);
    CHECK(ok(st));
    while (log_durable_seq(model->log) < model->appended)
        fiber_sleep_ns(10 * NS_PER_US);
    CHECK(io_now_ns() - begun_ns < 3 * NS_PER_MS / 2);
    CHECK(log_segment_started(model->log) == before);
    st = log_rotate_wait(model->log, segment);
    CHECK(ok(st) && log_segment_started(model->log) == segment);
    CHECK(io_now_ns() - begun_ns > 3 * NS_PER_MS);
    st = append_some(model);
    CHECK(ok(st));
    log_close(model->log);
    return ST_OK;
}

static void
nobody_waits_while_periodic_changes_segments(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 12);
    options.disk.latency_ns_min = options.disk.latency_ns_max = NS_PER_MS;
    struct sim *sim = sim_new(&options);
    struct model model = model_make(12, 10, 1000);
    model.config.durability = LSM_DURABILITY_PERIODIC;
    model.config.sync_interval_ms = 100000;
    model.config.segment_bytes = MIB(1);
    assert_true(ok(sim_run(sim, 1, change_body, &model)));
    assert_int_equal(sim_mark_count(sim, "lsm.log.change_copies"), 1);
    assert_true(ok(sim_run(sim, 1, reader, &model)));
    assert_int_equal(model.recovered, 30);
    sim_free(sim);
}

/* How long until all is durable that is appended now. */
static MAY_YIELD u64
append_time_ns(struct model *model)
{
    u64 begun_ns = io_now_ns();
    status st = append_some(model);
    CHECK(ok(st));
    while (log_durable_seq(model->log) < model->appended)
        fiber_sleep_ns(10 * NS_PER_US);
    return io_now_ns() - begun_ns;
}

static status
group_change_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    CHECK(append_time_ns(model) >= NS_PER_MS);
    fiber_sleep_ns(100 * NS_PER_MS);
    u64 segment;
    st = log_rotate(model->log, &segment);
    CHECK(ok(st));
    u64 behind_header_ns = append_time_ns(model);
    CHECK(log_segment_started(model->log) == segment);
    CHECK(behind_header_ns >= NS_PER_MS && behind_header_ns < 3 * NS_PER_MS / 2);
    log_close(model->log);
    return ST_OK;
}

/* A header waits for the end of the segment before, and nobody waits for a header: what follows it
 * is under way beside it, and acknowledged after it. */
static void
what_follows_a_header_is_under_way_beside_it(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 12);
    options.disk.latency_ns_min = options.disk.latency_ns_max = NS_PER_MS;
    struct sim *sim = sim_new(&options);
    struct model model = model_make(12, 10, 1000);
    model.config.segment_bytes = MIB(1);
    assert_true(ok(sim_run(sim, 1, group_change_body, &model)));
    assert_true(ok(sim_run(sim, 1, reader, &model)));
    assert_int_equal(model.recovered, 20);
    sim_free(sim);
}

/* ---- what is readable and not on the platter ---- */

struct doubt {
    struct sim *sim;
    enum sim_point point;
    bool killed_again;      /* the second process, too, before it has written anything */
    struct sim_disk *fills; /* not NULL: there is no space for a segment any more */
    struct sim_node *node;
    struct model model;
};

static MAY_YIELD void
sleep_until_killed(void)
{
    for (;;)
        fiber_sleep_ns(NS_PER_S);
}

/* Writes, some of it durable, then the disk fails to keep the rest, then the process is killed. */
static status
doubt_body(void *arg)
{
    struct doubt *doubt = arg;
    struct model *model = &doubt->model;
    status st = open_log(model);
    if (!ok(st)) return st;
    model->records = 10;
    st = append_some(model);
    CHECK(ok(st));
    fiber_sleep_ns(100 * NS_PER_MS); /* written, synced and sealed */
    CHECK(log_durable_seq(model->log) == 10);
    if (doubt->fills != NULL) {
        sim_disk_capacity_set(doubt->fills, 1);
        st = rotate(model->log, &model->segment_rotated);
        CHECK(ok(st));
        model->records = 2;
        st = append_some(model);
        CHECK(ok(st));
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    sim_fail_at(doubt->sim, doubt->point, 0, 1, ST_IO_ERROR);
    st = append_some(model);
    CHECK(ok(st));
    while (!log_failed(model->log))
        fiber_sleep_ns(NS_PER_MS);
    sleep_until_killed();
    return ST_OK;
}

/* Finds what is readable, and goes on. */
static status
trust_body(void *arg)
{
    struct doubt *doubt = arg;
    struct model *model = &doubt->model;
    model->durable = 0; /* the last process' word, but for what follows */
    status st = open_log(model);
    if (!ok(st)) return st;
    CHECK(log_durable_seq(model->log) == model->recovered);
    if (doubt->fills != NULL) {
        fiber_sleep_ns(NS_PER_S / 2);
        CHECK(log_no_space(model->log));
        sim_disk_capacity_set(doubt->fills, GIB(1));
        fiber_sleep_ns(NS_PER_S);
        CHECK(!log_no_space(model->log));
    }
    model->appended = model->durable = model->recovered;
    if (!doubt->killed_again) {
        model->records = 5;
        st = append_some(model);
        CHECK(ok(st));
        fiber_sleep_ns(100 * NS_PER_MS);
        model->durable = model->appended;
    }
    sleep_until_killed();
    return ST_OK;
}

/* A sync or a durable write fails, and says so once. The next process reads what looks well,
 * takes it for durable and writes behind it; then the power fails, and the disk forgets what it
 * had said it could not keep. */
static void
what_the_disk_failed_to_keep(enum lsm_durability durability, enum sim_point point,
                             u64 segment_bytes_again, bool killed_again, bool fills)
{
    for (u64 seed = 1; seed <= FEWER(40); seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct doubt doubt = {.sim = sim, .point = point, .killed_again = killed_again};
        if (fills) doubt.fills = sim_node_disk(node);
        doubt.model = model_make(seed, 0, seed % 2 == 0 ? 300 : 4000);
        doubt.model.config.segment_bytes = 32 * LOG_BLOCK_BYTES;
        doubt.model.config.durability = durability;
        sim_crash_keeps_all_set(sim, true);
        sim_at(sim, 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, doubt_body, &doubt), ST_CANCELED));
        sim_faults_clear(sim);
        assert_true(doubt.model.durable >= 10);
        u64 promised = durability == LSM_DURABILITY_GROUP ? doubt.model.durable : 10;

        doubt.model.config.segment_bytes = segment_bytes_again;
        sim_crash_keeps_all_set(sim, false);
        sim_at(sim, sim_now_ns(sim) + 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, trust_body, &doubt), ST_CANCELED));
        assert_true(doubt.model.recovered >= promised);

        status st = sim_run(sim, 1, reader, &doubt.model);
        if (!ok(st)) {
            print_message("seed %llu\n", (unsigned long long)seed);
            sim_log_dump(sim);
        }
        check_recovered(&doubt.model);
        assert_true(ok(sim_run(sim, 1, look_body, &doubt.model)));
        sim_free(sim);
    }
}

static void
what_a_failed_sync_lost_is_not_missed_later(void **state)
{
    (void)state;
    enum lsm_durability periodic = LSM_DURABILITY_PERIODIC;
    u64 same = 32 * LOG_BLOCK_BYTES;
    what_the_disk_failed_to_keep(periodic, SIM_POINT_SYNC, same, false, false);
    what_the_disk_failed_to_keep(periodic, SIM_POINT_SYNC, same, true, false);
    what_the_disk_failed_to_keep(periodic, SIM_POINT_WRITE, same, false, false);
    /* Segments that are too small now for what is to be saved. */
    what_the_disk_failed_to_keep(periodic, SIM_POINT_SYNC, 8 * LOG_BLOCK_BYTES, false, false);
}

static void
what_a_failed_durable_write_lost_is_not_missed_later(void **state)
{
    (void)state;
    enum lsm_durability group = LSM_DURABILITY_GROUP;
    what_the_disk_failed_to_keep(group, SIM_POINT_WRITE, 32 * LOG_BLOCK_BYTES, false, false);
    what_the_disk_failed_to_keep(group, SIM_POINT_WRITE, 32 * LOG_BLOCK_BYTES, true, false);
}

static void
what_is_in_doubt_is_saved_when_there_is_space_again(void **state)
{
    (void)state;
    enum lsm_durability periodic = LSM_DURABILITY_PERIODIC;
    what_the_disk_failed_to_keep(periodic, SIM_POINT_SYNC, 32 * LOG_BLOCK_BYTES, false, true);
    what_the_disk_failed_to_keep(periodic, SIM_POINT_SYNC, 8 * LOG_BLOCK_BYTES, false, true);
}

/* As trust_body, but the power fails while the first of the new segment is under way. */
static status
trust_cut_short_body(void *arg)
{
    struct doubt *doubt = arg;
    struct model *model = &doubt->model;
    model->durable = 0;
    status st = open_log(model);
    if (!ok(st)) return st;
    fiber_sleep_ns(NS_PER_S / 2);
    CHECK(log_durable_seq(model->log) == model->recovered && log_no_space(model->log));
    sim_disk_capacity_set(doubt->fills, GIB(1));
    fiber_sleep_ns(2 * NS_PER_S);
    CHECK(!log_no_space(model->log));
    model->appended = model->recovered;
    model->durable = 10; /* the rest is safe with the header */
    model->records = 1;
    sim_at(doubt->sim, sim_now_ns(doubt->sim) + NS_PER_MS / 2, kill_now, doubt->node);
    for (u32 i = 0; i < 4; i++) {
        st = append_some(model);
        CHECK(ok(st));
        fiber_sleep_ns(NS_PER_US * 10);
    }
    sleep_until_killed();
    return ST_OK;
}

/* What is saved when there is space again is attested by the header of its segment alone, not by
 * what is under way beside the header: a power cut may keep that, and take the header. */
static void
what_is_saved_is_attested_by_nothing_beside_the_header(void **state)
{
    (void)state;
    u32 taken = 0;
    for (u64 seed = 1; seed <= FEWER(80); seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.disk.latency_ns_min = NS_PER_MS / 10;
        options.disk.latency_ns_max = NS_PER_MS;
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct doubt doubt = {.sim = sim, .point = SIM_POINT_SYNC, .node = node};
        doubt.model = model_make(seed, 0, 300);
        struct model *model = &doubt.model;
        model->config.segment_bytes = 32 * LOG_BLOCK_BYTES;
        model->config.durability = LSM_DURABILITY_PERIODIC;
        doubt.fills = sim_node_disk(node);
        sim_crash_keeps_all_set(sim, true);
        sim_at(sim, 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, doubt_body, &doubt), ST_CANCELED));
        sim_faults_clear(sim);

        model->config.durability = LSM_DURABILITY_GROUP;
        sim_crash_keeps_all_set(sim, false);
        u64 begun = sim_mark_count(sim, "lsm.log.segment_not_begun");
        assert_true(status_is(sim_run(sim, 1, trust_cut_short_body, &doubt), ST_CANCELED));
        status st = sim_run(sim, 1, reader, model);
        if (!ok(st)) {
            print_message("seed %llu\n", (unsigned long long)seed);
            sim_log_dump(sim);
        }
        check_recovered(model);
        taken += sim_mark_count(sim, "lsm.log.segment_not_begun") > begun;
        sim_free(sim);
    }
    assert_true(taken > 0);
}

static status
unsynced_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (!ok(st)) return st;
    st = append_some(model);
    CHECK(ok(st));
    log_drain(model->log);
    sleep_until_killed();
    return ST_OK;
}

/* What is saved may leave its segment little room. Whoever writes first when there is space again
 * is told what holds: a promise (log_reserve), too, that is kept at once. */
static status
space_returns_body(void *arg)
{
    struct doubt *doubt = arg;
    struct model *model = &doubt->model;
    status st = open_log(model);
    if (!ok(st)) return st;
    CHECK(model->recovered == model->appended);
    fiber_sleep_ns(NS_PER_S / 2);
    CHECK(log_no_space(model->log));
    sim_disk_capacity_set(doubt->fills, GIB(1));
    while (log_no_space(model->log))
        fiber_sleep_ns(NS_PER_MS);
    size_t size = model->size_max;
    bool small = sizeof(struct log_record) + size <= LOG_BLOCK_PAYLOAD_BYTES;
    while (status_is(st = small ? log_reserve(model->log, size)
                                : log_append_check(model->log, size, false),
                     ST_WOULD_WAIT))
        log_wait_room(model->log);
    CHECK(ok(st));
    u64 awaited = sim_mark_count(doubt->sim, "lsm.log.segment_awaited");
    model->records = 1;
    st = append_some(model);
    CHECK(ok(st) && sim_mark_count(doubt->sim, "lsm.log.segment_awaited") == awaited);
    model->records = 20;
    st = append_some(model);
    CHECK(ok(st));
    log_close(model->log);
    return ST_OK;
}

static void
what_is_saved_when_there_is_space_again_may_leave_no_room(void **state)
{
    (void)state;
    for (u32 n = 1; n <= 40; n++) {
        struct sim_options options;
        sim_options_default(&options, n);
        options.disk.crash_keeps_all = true;
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct doubt doubt = {.sim = sim, .fills = sim_node_disk(node)};
        struct model *model = &doubt.model;
        *model = model_make(n, n / 2, n % 2 == 0 ? 3000 : 12000);
        model->config.durability = LSM_DURABILITY_PERIODIC;
        model->config.sync_interval_ms = 3600 * 1000;
        sim_at(sim, 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, unsynced_body, model), ST_CANCELED));
        sim_disk_capacity_set(doubt.fills, 1);
        assert_true(ok(sim_run(sim, 1, space_returns_body, &doubt)));
        assert_true(ok(sim_run(sim, 1, reader, model)));
        assert_int_equal(model->recovered, model->appended);
        sim_free(sim);
    }
}

/* A flush that cannot change segments does not wait for a sync: after a power cut tables may hold
 * more than the log does. Numbers go on behind what the tables hold, and what is left of the log
 * in its last, unattested blocks must not stand in one segment with them. */
static void
numbers_go_on_behind_the_tables_when_the_log_lost_its_end(void **state)
{
    (void)state;
    u32 shorter[2] = {0}; /* runs in which the log kept something that is not attested, not all */
    for (u64 seed = 1; seed <= 80; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        bool synced = seed % 2 == 0; /* the first ten records are */
        struct doubt doubt = {.sim = sim, .point = SIM_POINT_SYNC};
        doubt.model = model_make(seed, 10, seed % 4 < 2 ? 300 : 4000);
        struct model *model = &doubt.model;
        model->config.durability = LSM_DURABILITY_PERIODIC;
        model->config.segment_bytes = 32 * LOG_BLOCK_BYTES;
        if (!synced) model->config.sync_interval_ms = 3600 * 1000;
        sim_at(sim, 3 * NS_PER_S, kill_now, node);
        status st =
            synced ? sim_run(sim, 1, doubt_body, &doubt) : sim_run(sim, 1, unsynced_body, model);
        assert_true(status_is(st, ST_CANCELED));
        sim_faults_clear(sim);
        u64 flushed = model->appended;
        assert_int_equal(flushed, synced ? 20 : 10);

        assert_true(ok(sim_run(sim, 1, look_body, model)));
        shorter[synced] += model->recovered > (synced ? 10 : 0) && model->recovered < flushed;
        model->segment_first = 1; /* the manifest names it */
        model->config.seq_flushed = flushed;
        model->records = 5;
        for (u32 i = 0; i < 2; i++) { /* the second finds what the first left */
            st = sim_run(sim, 1, reader, model);
            if (!ok(st)) {
                print_message("seed %llu, start %u\n", (unsigned long long)seed, i);
                sim_log_dump(sim);
            }
            assert_true(ok(st));
            assert_int_equal(model->recovered, 0);
        }
        assert_true(ok(sim_run(sim, 1, writer, model)));
        assert_int_equal(model->appended, flushed + 5);
        assert_true(ok(sim_run(sim, 1, reader, model)));
        assert_int_equal(model->recovered_first, flushed + 1);
        assert_int_equal(model->recovered, flushed + 5);
        sim_free(sim);
    }
    assert_true(shorter[0] > 0 && shorter[1] > 0);
}

/* As above, but tables hold all of what the disk forgets: it is not missed, and still the segment
 * that comes next must not say that it follows the end of it. */
static void
what_tables_hold_is_not_missed_when_the_disk_forgets_it(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(40); seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct doubt doubt = {.sim = sim, .point = SIM_POINT_SYNC};
        struct model *model = &doubt.model;
        *model = model_make(seed, 0, seed % 2 == 0 ? 300 : 4000);
        model->config.segment_bytes = 32 * LOG_BLOCK_BYTES;
        model->config.durability = LSM_DURABILITY_PERIODIC;
        sim_crash_keeps_all_set(sim, true);
        sim_at(sim, 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, doubt_body, &doubt), ST_CANCELED));
        sim_faults_clear(sim);

        u64 flushed = model->appended;
        model->segment_first = 1; /* the manifest names it */
        model->config.seq_flushed = flushed;
        model->records = 5;
        sim_crash_keeps_all_set(sim, false);
        sim_at(sim, sim_now_ns(sim) + 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, unsynced_body, model), ST_CANCELED));

        assert_true(ok(sim_run(sim, 1, reader, model)));
        assert_int_equal(model->recovered_first, flushed + 1);
        assert_int_equal(model->recovered, flushed + 5);
        sim_free(sim);
    }
}

/* Any request may be the one that fails, headers of segments too. */
static status
fail_body(void *arg)
{
    struct model *model = arg;
    status st = open_log(model);
    if (ok(st)) (void)ok(append_some(model));
    sleep_until_killed();
    return st;
}

static void
what_any_failed_request_lost_is_not_missed_later(void **state)
{
    (void)state;
    for (u32 i = 0; i < 8; i++) {
        for (u64 n = 0;; n++) {
            struct sim_options options;
            sim_options_default(&options, i * 1000 + n);
            struct sim *sim = sim_new(&options);
            struct sim_node *node = sim_node_new(sim, "10.0.0.1");
            struct doubt doubt = {.sim = sim, .killed_again = i % 4 >= 2};
            struct model *model = &doubt.model;
            *model = model_make(i, 40, 6000);
            model->pause_every = 4;
            model->config.durability = i % 2 == 0 ? LSM_DURABILITY_GROUP : LSM_DURABILITY_PERIODIC;
            sim_fail_at(sim, SIM_POINT_IO, n, 1, ST_IO_ERROR);
            sim_crash_keeps_all_set(sim, true);
            sim_at(sim, 3 * NS_PER_S, kill_now, node);
            assert_true(status_is(sim_run(sim, 1, fail_body, model), ST_CANCELED));
            bool failed = sim_failed(sim);
            sim_faults_clear(sim);
            u64 durable = model->durable;

            sim_crash_keeps_all_set(sim, false);
            sim_at(sim, 6 * NS_PER_S, kill_now, node);
            assert_true(status_is(sim_run(sim, 1, trust_body, &doubt), ST_CANCELED));
            assert_true(model->recovered >= durable);
            if (!ok(sim_run(sim, 1, reader, model))) {
                print_message("case %u, request %llu\n", i, (unsigned long long)n);
                sim_log_dump(sim);
            }
            check_recovered(model);
            sim_free(sim);
            if (!failed) break;
        }
    }
}

/* The process that saves what is in doubt ends at its n-th request, for every n, and so does the
 * one after it. A crash of processes alone takes nothing that was acknowledged. */
static void
saving_what_is_in_doubt_may_end_anywhere(enum lsm_durability durability, enum sim_point point,
                                         bool power)
{
    for (u64 n = 0;; n++) {
        struct sim_options options;
        sim_options_default(&options, n);
        options.buggify = n % 3 == 0; /* small buffers */
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct doubt doubt = {.sim = sim, .point = point};
        doubt.model = model_make(n + 1, 0, 4000);
        doubt.model.config.segment_bytes = 32 * LOG_BLOCK_BYTES;
        doubt.model.config.durability = durability;
        struct model *model = &doubt.model;
        sim_crash_keeps_all_set(sim, true);
        sim_at(sim, 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, doubt_body, &doubt), ST_CANCELED));
        sim_faults_clear(sim);
        bool group = durability == LSM_DURABILITY_GROUP;
        u64 promised = power && !group ? 10 : model->durable;

        sim_crash_keeps_all_set(sim, !power);
        sim_crash_at(sim, SIM_POINT_IO, n);
        (void)ok(sim_run(sim, 1, reader, model));
        bool cut = sim_crashed(sim);
        sim_crash_at(sim, SIM_POINT_IO, n * 7 % 23);
        (void)ok(sim_run(sim, 1, reader, model));
        sim_faults_clear(sim);

        sim_crash_keeps_all_set(sim, false);
        model->durable = promised;
        sim_at(sim, sim_now_ns(sim) + 3 * NS_PER_S, kill_now, node);
        doubt.killed_again = n % 2 == 0;
        assert_true(status_is(sim_run(sim, 1, trust_body, &doubt), ST_CANCELED));
        assert_true(model->recovered >= promised);
        if (!ok(sim_run(sim, 1, reader, model))) {
            print_message("cut at %llu\n", (unsigned long long)n);
            sim_log_dump(sim);
        }
        check_recovered(model);
        sim_free(sim);
        if (!cut) break;
    }
}

static void
no_end_of_a_process_takes_what_is_being_saved(void **state)
{
    (void)state;
    for (u32 power = 0; power < 2; power++) {
        saving_what_is_in_doubt_may_end_anywhere(LSM_DURABILITY_PERIODIC, SIM_POINT_SYNC, power);
        saving_what_is_in_doubt_may_end_anywhere(LSM_DURABILITY_GROUP, SIM_POINT_WRITE, power);
    }
}

/* The seal of an idle log: also in what was acknowledged last, before a kill, damage is found. */
static void
damage_to_the_last_acknowledged_write_is_found(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 11);
    struct sim *sim = sim_new(&options);
    struct sim_node *node = sim_node_new(sim, "10.0.0.1");
    struct flips flips = {.model = model_make(11, 9, 3000), .step = 211};
    sim_at(sim, 3 * NS_PER_S, kill_now, node);
    assert_true(status_is(sim_run(sim, 1, kill_body, &flips.model), ST_CANCELED));
    assert_int_equal(flips.model.durable, 9);
    assert_true(sim_mark_count(sim, "lsm.log.sealed") > 0);
    flips.disk = sim_node_disk(node);
    segments_list(flips.disk);
    assert_true(ok(sim_run(sim, 1, flip_body, &flips)));
    assert_true(flips.detected > 0);
    sim_free(sim);
}

/* Wherever in a segment it lies, also when the segment is full with it. */
static void
damage_to_the_last_block_of_an_idle_log_is_found(void **state)
{
    (void)state;
    for (u32 records = 5; records < 45; records++) {
        struct sim_options options;
        sim_options_default(&options, records);
        struct sim *sim = sim_new(&options);
        struct sim_node *node = sim_node_new(sim, "10.0.0.1");
        struct model model = model_make(records, records, 3000);
        model.pause_every = 1; /* a block each, or two */
        sim_at(sim, 3 * NS_PER_S, kill_now, node);
        assert_true(status_is(sim_run(sim, 1, kill_body, &model), ST_CANCELED));
        assert_int_equal(model.durable, records);
        char path[LSM_PATH_BYTES];
        log_path(path, DIR, model.tail_number);
        u64 offset = model.tail_end - LOG_BLOCK_BYTES + sizeof(struct log_block);
        assert_true(ok(sim_disk_flip(sim_node_disk(node), path, offset, 4)));
        assert_true(status_is(sim_run(sim, 1, reader, &model), ST_CORRUPT));
        sim_free(sim);
    }
}

static void
names_are_parsed_strictly(void **state)
{
    (void)state;
    u64 number = 0;
    assert_true(log_name_parse("l00000000000000ff", &number));
    assert_int_equal(number, 255);
    const char *bad[] = {"",
                         "l",
                         "l0000000000000000",
                         "l00000000000000FF",
                         "l00000000000000f",
                         "t00000000000000ff",
                         "l00000000000000ff0",
                         "l.new"};
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++)
        assert_false(log_name_parse(bad[i], &number));
    char path[LSM_PATH_BYTES];
    log_path(path, "/a", 0xabc);
    assert_string_equal(path, "/a/l0000000000000abc");
}

/* Rare paths made common: seeds with BUGGIFY, disk errors and a cut at a random request. */
static void
swarm(void **state)
{
    (void)state;
    for (u64 seed = 100; seed < 400; seed++) {
        struct sim_options options;
        sim_options_swarm(&options, seed);
        options.disk.sync_error_ppm = options.disk.read_error_ppm = 0;
        options.disk.look_error_ppm = 0;
        struct sim *sim = sim_new(&options);
        struct prng prng;
        prng_init(&prng, seed);
        struct model model =
            model_make(seed, (u32)prng_range(&prng, 1, 80), (u32)prng_range(&prng, 1, 9000));
        model.pause_every = (u32)prng_below(&prng, 5);
        model.rotate_release = prng_chance(&prng, 1, 3);
        sim_crash_at(sim, SIM_POINT_IO, prng_below(&prng, 80));
        (void)ok(sim_run(sim, 1, writer, &model));
        sim_faults_clear(sim);
        status st = sim_run(sim, 1, reader, &model);
        bool refused = status_is(st, ST_IO_ERROR) || status_is(st, ST_NO_SPACE);
        if (!ok(st) && !refused) {
            print_message("seed %llu\n", (unsigned long long)seed);
            sim_log_dump(sim);
        }
        assert_true(ok(st) || refused);
        if (ok(st)) assert_true(model.recovered >= model.durable);
        sim_free(sim);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_of_all_sizes_come_back),
        cmocka_unit_test(records_larger_than_a_write_come_back),
        cmocka_unit_test(recovery_has_several_reads_under_way),
        cmocka_unit_test(recovery_makes_do_with_little_memory),
        cmocka_unit_test(what_a_turn_brings_is_one_write),
        cmocka_unit_test(half_of_a_large_turn_leaves_early),
        cmocka_unit_test(a_failed_write_fails_the_log_for_good),
        cmocka_unit_test(no_power_cut_takes_what_was_durable),
        cmocka_unit_test(a_second_cut_during_recovery_takes_nothing_either),
        cmocka_unit_test(periodic_loses_at_most_the_last_interval_and_never_reports_damage),
        cmocka_unit_test(periodic_survives_a_killed_process),
        cmocka_unit_test(a_killed_process_loses_nothing_while_periodic_changes_segments),
        cmocka_unit_test(a_write_that_fails_while_periodic_changes_segments_is_survived),
        cmocka_unit_test(nobody_waits_while_periodic_changes_segments),
        cmocka_unit_test(what_follows_a_header_is_under_way_beside_it),
        cmocka_unit_test(every_failed_request_is_survived),
        cmocka_unit_test(what_a_failed_sync_lost_is_not_missed_later),
        cmocka_unit_test(what_a_failed_durable_write_lost_is_not_missed_later),
        cmocka_unit_test(what_is_in_doubt_is_saved_when_there_is_space_again),
        cmocka_unit_test(what_is_saved_is_attested_by_nothing_beside_the_header),
        cmocka_unit_test(what_is_saved_when_there_is_space_again_may_leave_no_room),
        cmocka_unit_test(numbers_go_on_behind_the_tables_when_the_log_lost_its_end),
        cmocka_unit_test(what_tables_hold_is_not_missed_when_the_disk_forgets_it),
        cmocka_unit_test(what_any_failed_request_lost_is_not_missed_later),
        cmocka_unit_test(no_end_of_a_process_takes_what_is_being_saved),
        cmocka_unit_test(damage_at_every_byte_is_found_or_harmless),
        cmocka_unit_test(damage_to_the_last_acknowledged_write_is_found),
        cmocka_unit_test(damage_to_the_last_block_of_an_idle_log_is_found),
        cmocka_unit_test(a_lost_or_shortened_segment_is_damage),
        cmocka_unit_test(a_segment_that_ends_elsewhere_than_the_next_one_says_is_damage),
        cmocka_unit_test(a_shortened_newest_segment_is_damage),
        cmocka_unit_test(verification_names_the_damaged_block),
        cmocka_unit_test(recycled_segments_never_show_their_past),
        cmocka_unit_test(several_segments_between_releases_need_no_new_files),
        cmocka_unit_test(what_an_opening_finds_is_never_written_again),
        cmocka_unit_test(a_larger_segment_does_not_stay_when_segments_are_to_be_smaller),
        cmocka_unit_test(a_segment_that_was_not_released_is_removed_whole),
        cmocka_unit_test(a_full_disk_refuses_and_goes_on_when_there_is_space),
        cmocka_unit_test(the_end_is_kept_until_the_next_segment_is_there),
        cmocka_unit_test(a_full_disk_does_not_keep_a_log_from_opening),
        cmocka_unit_test(names_are_parsed_strictly),
        cmocka_unit_test(swarm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
