/* SPDX-License-Identifier: MIT
 *
 * test_seam.c -- is the seam under src/io in the right place? One shard, one file, a power cut at a
 * random moment: put, crash, recover, a thousand seeds.
 *
 * The subject is the least log that can be right: blocks of 4 KiB with sequence number and CRC in a
 * file that was filled before, up to four durable writes in flight, acknowledged in order. The
 * model beside it remembers what was put and what was acknowledged, outlives the cuts, and demands
 * of every recovery a prefix without gaps that holds everything acknowledged.
 *
 * Two broken logs prove that the rig can fail: one acknowledges before the write is done, one
 * leaves the durability out. Both must be caught.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/crc.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/sim.h"

#define BLOCK_BYTES  4096u
#define BLOCK_COUNT  64u
#define WRITES_MAX   4u /* in flight */
#define CUTS         3u /* a seed */
#define SEED_COUNT   1000u
#define RECORD_MAGIC 0x646f6372u

enum flaw { FLAW_NONE, FLAW_ACK_EARLY, FLAW_NOT_DURABLE };

/* Outlives the power cuts. */
struct model {
    struct prng prng;
    enum flaw flaw;
    u64 values[BLOCK_COUNT];
    u64 put_count;   /* records handed to the log */
    u64 acked_count; /* of them acknowledged, in order */
    const char *violation;
};

struct record {
    u32 crc; /* of the rest */
    u32 magic;
    u64 seq;
    u64 value;
    u8 rest[BLOCK_BYTES - 24];
};
static_assert(sizeof(struct record) == BLOCK_BYTES, "one record fills one block");

struct put {
    struct io_op op;
    struct log *log;
    u64 seq;
    struct record *record;
};

struct log {
    struct model *model;
    struct io_file *file;
    struct put puts[WRITES_MAX];
    bool done[BLOCK_COUNT];
    u64 done_count; /* all before it are done */
    struct fiber_queue room;
    status failure;
};

/* ---- the log ---- */

static u32
record_crc(const struct record *record)
{
    return crc32c(0, (const u8 *)record + 4, sizeof(*record) - 4);
}

static void
put_done(struct io_op *op)
{
    struct put *put = CONTAINER_OF(op, struct put, op);
    struct log *log = put->log;
    if (!ok(op->result)) log->failure = op->result;
    log->done[put->seq] = true;
    while (log->done_count < BLOCK_COUNT && log->done[log->done_count])
        log->done_count++;
    if (log->model->flaw != FLAW_ACK_EARLY)
        log->model->acked_count = MAX(log->model->acked_count, log->done_count);
    fiber_queue_wake_all(&log->room);
}

static MAY_YIELD void
log_put(struct log *log, u64 value)
{
    struct model *model = log->model;
    u64 seq = model->put_count;
    while (seq >= WRITES_MAX && !log->done[seq - WRITES_MAX])
        (void)!ok(fiber_queue_wait(&log->room, FIBER_FOREVER));
    struct put *put = &log->puts[seq % WRITES_MAX];
    put->op.done = put_done;
    put->log = log;
    put->seq = seq;
    memset(put->record, (int)(value & 0xff), sizeof(*put->record));
    put->record->magic = RECORD_MAGIC;
    put->record->seq = seq;
    put->record->value = value;
    put->record->crc = record_crc(put->record);
    model->values[seq] = value;
    model->put_count++;
    io_file_write_start(log->file, &put->op, IO_CLASS_LOG, put->record, BLOCK_BYTES,
                        seq * BLOCK_BYTES, model->flaw != FLAW_NOT_DURABLE);
    if (model->flaw == FLAW_ACK_EARLY) model->acked_count = model->put_count;
}

/* The file appears under its name only when it is whole. */
static MAY_YIELD status
log_file_open(struct io_file **out)
{
    status st = io_dir_make("/data");
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    st = io_dir_sync("/");
    if (!ok(st)) return st;
    st = io_file_open("/data/log", IO_OPEN_WRITE, out);
    if (!status_is(st, ST_NOT_FOUND)) return st;

    st = io_file_unlink("/data/log.new");
    if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return st;
    struct io_file *file;
    st = io_file_open("/data/log.new", IO_OPEN_WRITE | IO_OPEN_CREATE, &file);
    if (!ok(st)) return st;
    st = io_file_fill(file, BLOCK_COUNT * BLOCK_BYTES);
    if (ok(st)) st = io_file_rename("/data/log.new", "/data/log");
    if (ok(st)) st = io_dir_sync("/data");
    if (!ok(st)) {
        io_file_close(file);
        return st;
    }
    *out = file;
    return ST_OK;
}

/* Reads the prefix, holds it against the model, and clears what may lie beyond the cut. */
static MAY_YIELD status
log_recover(struct log *log)
{
    struct model *model = log->model;
    struct record *record = log->puts[0].record;
    u64 count = 0;
    for (; count < BLOCK_COUNT; count++) {
        status st =
            io_file_read(log->file, IO_CLASS_READ, record, BLOCK_BYTES, count * BLOCK_BYTES);
        if (!ok(st)) return st;
        if (record->magic != RECORD_MAGIC || record->crc != record_crc(record) ||
            record->seq != count)
            break;
        if (count >= model->put_count) {
            model->violation = "a record that was never put";
            return ST_CORRUPT;
        }
        if (record->value != model->values[count]) {
            model->violation = "a wrong value";
            return ST_CORRUPT;
        }
    }
    if (count < model->acked_count) {
        model->violation = "an acknowledged record is lost";
        return ST_CORRUPT;
    }
    memset(record, 0, BLOCK_BYTES);
    for (u64 i = count; i < MIN(count + WRITES_MAX, (u64)BLOCK_COUNT); i++) {
        status st =
            io_file_write(log->file, IO_CLASS_LOG, record, BLOCK_BYTES, i * BLOCK_BYTES, true);
        if (!ok(st)) return st;
    }
    for (u64 i = 0; i < count; i++)
        log->done[i] = true;
    log->done_count = model->put_count = model->acked_count = count;
    return ST_OK;
}

/* ---- one life of the process ---- */

static MAY_YIELD status
process_run(struct log *log)
{
    status st = log_file_open(&log->file);
    if (!ok(st)) return st;
    st = log_recover(log);
    u64 puts = prng_below(&log->model->prng, BLOCK_COUNT / 2);
    for (u64 i = 0; ok(st) && i < puts && log->model->put_count < BLOCK_COUNT; i++) {
        log_put(log, prng_u64(&log->model->prng));
        if (prng_chance(&log->model->prng, 1, 4))
            fiber_sleep_ns(prng_below(&log->model->prng, 300 * NS_PER_US));
    }
    io_file_close(log->file); /* waits for the writes */
    return ok(st) ? log->failure : st;
}

static status
process_main(void *arg)
{
    struct budget *budget = io_budget();
    struct log *log = mem_alloc_zero(budget, sizeof(*log));
    if (log == NULL) return ST_NO_MEMORY;
    log->model = arg;
    log->failure = ST_OK;
    fiber_queue_init(&log->room);
    status st = ST_OK;
    for (u32 i = 0; i < WRITES_MAX; i++) {
        log->puts[i].record = mem_alloc_aligned(budget, BLOCK_BYTES, IO_ALIGNMENT);
        if (log->puts[i].record == NULL) st = ST_NO_MEMORY;
    }
    if (ok(st)) st = process_run(log);
    for (u32 i = 0; i < WRITES_MAX; i++)
        mem_free(budget, log->puts[i].record, BLOCK_BYTES);
    mem_free(budget, log, sizeof(*log));
    return st;
}

/* ---- one seed ---- */

struct outcome {
    const char *violation;
    u64 trace_hash;
    u32 cuts;
};

static struct outcome
seed_run(u64 seed, enum flaw flaw)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    options.memory_bytes = MIB(8);
    if (seed % 2 == 1) options.disk.torn_ppm = 200000;
    struct sim *sim = sim_new(&options);
    struct model model = {.flaw = flaw};
    prng_init(&model.prng, seed);
    struct outcome outcome = {0};
    for (u32 i = 0; i <= CUTS && model.violation == NULL; i++) {
        if (i < CUTS) {
            bool event = prng_chance(&model.prng, 1, 2);
            sim_crash_at(sim, event ? SIM_POINT_EVENT : SIM_POINT_IO,
                         prng_below(&model.prng, event ? 150 : 60));
        } else {
            sim_faults_clear(sim);
        }
        status st = sim_run(sim, 1, process_main, &model);
        if (status_is(st, ST_CANCELED)) {
            outcome.cuts++;
        } else if (!ok(st) && model.violation == NULL) {
            model.violation = status_text(st);
        }
    }
    outcome.violation = model.violation;
    outcome.trace_hash = sim_trace_hash(sim);
    sim_free(sim);
    return outcome;
}

static u32
seeds_violating(enum flaw flaw, bool print)
{
    u32 count = 0;
    u32 cuts = 0;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct outcome outcome = seed_run(seed, flaw);
        cuts += outcome.cuts;
        if (outcome.violation == NULL) continue;
        if (print) print_error("seed %u: %s\n", (unsigned)seed, outcome.violation);
        count++;
    }
    assert_true(cuts > SEED_COUNT); /* the power did fail, and often */
    return count;
}

static void
a_thousand_seeds_of_put_crash_recover_lose_nothing(void **state)
{
    (void)state;
    assert_int_equal(seeds_violating(FLAW_NONE, true), 0);
}

static void
a_log_that_acknowledges_before_its_write_is_done_is_caught(void **state)
{
    (void)state;
    assert_true(seeds_violating(FLAW_ACK_EARLY, false) > 0);
}

static void
a_log_without_durable_writes_is_caught(void **state)
{
    (void)state;
    assert_true(seeds_violating(FLAW_NOT_DURABLE, false) > 0);
}

static void
the_same_seed_gives_the_same_trace(void **state)
{
    (void)state;
    u64 last = 0;
    for (u64 seed = 1; seed <= 20; seed++) {
        struct outcome first = seed_run(seed, FLAW_NONE);
        struct outcome second = seed_run(seed, FLAW_NONE);
        assert_true(first.trace_hash == second.trace_hash);
        assert_true(first.trace_hash != last);
        last = first.trace_hash;
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thousand_seeds_of_put_crash_recover_lose_nothing),
        cmocka_unit_test(a_log_that_acknowledges_before_its_write_is_done_is_caught),
        cmocka_unit_test(a_log_without_durable_writes_is_caught),
        cmocka_unit_test(the_same_seed_gives_the_same_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
