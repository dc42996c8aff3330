/* SPDX-License-Identifier: MIT
 *
 * bench_log.c -- question: what does the log add to a SET besides the wait for the disk? The log
 * lies in the memory of the shard (":memory:"), and what is measured is the core's work alone.
 *
 *   append.N    log_append of a record with one operation of N bytes of payload: header, checksum,
 *               copy into blocks. Waiting for room does not count
 *   whole.N     the same with all that follows until it is "on the disk": checksums of blocks, the
 *               requests, their ends, and the copy that stands for the disk
 *   batch.N     lsm_batch_put of one operation with a value of N bytes
 *   check.N     lsm_ops_check of it, which recovery and replicas do to what they are given
 *   block.crc   log_block_crc of one block, as each block of a group is given one
 *   copy.N      the bound of append.N: memcpy of the same bytes
 *
 *     bench_log [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>

#include "io/file.h"
#include "io/io.h"
#include "lsm/batch.h"
#include "lsm/log.h"
#include "lsm/log_format.h"
#include "micro.h"

#define DIR               ":memory:/log"
#define SEGMENT_BYTES     MIB(32)
#define RECYCLE_MAX       4u
#define PAYLOAD_BYTES_MAX KIB(16)
#define OPS               64u /* of a batch that is checked */

static u8 payload[PAYLOAD_BYTES_MAX];

/* ---- the log ---- */

struct appends {
    struct log *log;
    u64 seq;
    u32 bytes;
    bool whole; /* waiting counts */
};

static void
durable(void *arg, u64 durable_seq, bool failed)
{
    MICRO_CHECK(!failed);
}

/* Nothing is to be kept: what is before the newest segment may be used again. */
MAY_YIELD static void
make_room(struct appends *appends)
{
    if (!appends->whole) micro_stop();
    log_wait_room(appends->log);
    log_release(appends->log, log_segment_started(appends->log));
    if (!appends->whole) micro_go();
}

MAY_YIELD static void
append_run(void *arg, u64 count)
{
    struct appends *appends = arg;
    for (u64 i = 0; i < count; i++) {
        struct log_record record = {.kind = LOG_RECORD_BATCH,
                                    .seq_first = appends->seq + 1,
                                    .version = appends->seq + 1,
                                    .count = 1};
        status st = log_append(appends->log, &record, BYTES(payload, appends->bytes));
        while (status_is(st, ST_WOULD_WAIT)) {
            make_room(appends);
            st = log_append(appends->log, &record, BYTES(payload, appends->bytes));
        }
        micro_must(st, "log_append");
        appends->seq++;
    }
    if (appends->whole) log_drain(appends->log);
}

MAY_YIELD static void
drain_before(void *arg, u64 count)
{
    struct appends *appends = arg;
    log_drain(appends->log);
    log_release(appends->log, log_segment_started(appends->log));
}

MAY_YIELD static void
measure_appends(struct log *log)
{
    static const u32 sizes[] = {64, 148, 1072, PAYLOAD_BYTES_MAX};
    struct appends appends = {.log = log};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        char name[64];
        appends.bytes = sizes[i];
        for (u32 whole = 0; whole < 2; whole++) {
            appends.whole = whole == 1;
            snprintf(name, sizeof(name), "%s.%u", whole == 1 ? "whole" : "append", sizes[i]);
            micro_measure(&(struct micro_case){.name = name,
                                               .run = append_run,
                                               .prepare = drain_before,
                                               .arg = &appends,
                                               .bytes = sizes[i]});
        }
        snprintf(name, sizeof(name), "copy.%u", sizes[i]);
        micro_measure_copy(name, sizes[i]);
    }
}

static void
block_crc_run(void *arg, u64 count)
{
    for (u64 i = 0; i < count; i++)
        micro_keep(log_block_crc(payload, 7, i * LOG_BLOCK_BYTES));
}

/* ---- batches ---- */

struct batches {
    struct lsm_batch batch;
    const struct micro_key *keys; /* OPS of them */
    u32 value_bytes;
};

static void
batch_put_one(struct batches *batches, u32 i)
{
    const struct micro_key *key = &batches->keys[i];
    MICRO_CHECK(lsm_batch_put(&batches->batch, 0, key->token, micro_key_bytes(key),
                              BYTES(payload, batches->value_bytes), 0));
}

/* One operation each, as a SET has. */
static void
batch_run(void *arg, u64 count)
{
    struct batches *batches = arg;
    for (u64 i = 0; i < count; i++) {
        lsm_batch_clear(&batches->batch);
        batch_put_one(batches, i % OPS);
        micro_keep_all(batches->batch.ops.data);
    }
}

static void
check_prepare(void *arg, u64 count)
{
    struct batches *batches = arg;
    lsm_batch_clear(&batches->batch);
    for (u32 i = 0; i < OPS; i++)
        batch_put_one(batches, i);
}

static void
check_run(void *arg, u64 count)
{
    const struct batches *batches = arg;
    for (u64 i = 0; i < count; i += OPS)
        micro_must(lsm_ops_check(buf_bytes(&batches->batch.ops), OPS, 0, 0, UINT64_MAX),
                   "lsm_ops_check");
}

MAY_YIELD static void
measure_batches(void)
{
    static const u32 sizes[] = {100, 1024};
    struct batches batches = {.keys = micro_keys(0, OPS)};
    lsm_batch_init(&batches.batch, io_budget());
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        char name[64];
        batches.value_bytes = sizes[i];
        snprintf(name, sizeof(name), "batch.%u", sizes[i]);
        micro_measure(&(struct micro_case){.name = name, .run = batch_run, .arg = &batches});
        snprintf(name, sizeof(name), "check.%u", sizes[i]);
        micro_measure(&(struct micro_case){.name = name,
                                           .run = check_run,
                                           .prepare = check_prepare,
                                           .arg = &batches,
                                           .count_unit = OPS});
    }
    lsm_batch_deinit(&batches.batch);
}

MAY_YIELD static void
measure_all(void)
{
    micro_text(payload, sizeof(payload), 1);
    micro_must(io_dir_make(DIR), "directory");
    struct log_config config = {.dir = DIR,
                                .durability = LSM_DURABILITY_GROUP,
                                .segment_bytes = SEGMENT_BYTES,
                                .recycle_max = RECYCLE_MAX,
                                .budget = io_budget(),
                                .durable = durable};
    struct log *log;
    micro_must(log_open(&config, 0, NULL, &log), "log_open");
    measure_appends(log);
    micro_measure(
        &(struct micro_case){.name = "block.crc", .run = block_crc_run, .bytes = LOG_BLOCK_BYTES});
    measure_batches();
    log_close(log);
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    micro_on_shard(1, measure_all);
    return micro_end();
}
