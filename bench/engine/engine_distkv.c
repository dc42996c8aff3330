/* SPDX-License-Identifier: MIT
 *
 * engine_distkv.c -- the engine of this project on one shard; each worker is a fiber.
 */
#include "engine.h"

#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "io/fiber.h"
#include "io/file.h"
#include "io/io.h"
#include "lsm/lsm.h"

static const struct engine_config *config;
static void (*body)(void *arg);
static void *body_arg;
static struct lsm *lsm;

static const char *
version(void)
{
    return DISTKV_VERSION;
}

static void
must(status st, const char *what)
{
    if (!ok(st)) die(what, status_text(st));
}

static status
shard_main(void *arg)
{
    (void)arg;
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = config->memory_bytes;
    options.durability = config->log ? LSM_DURABILITY_PERIODIC : LSM_DURABILITY_NONE;
    options.codec_upper = config->codec == CODEC_LZ4 ? LSM_CODEC_LZ4 : LSM_CODEC_NONE;
    options.codec_last = options.codec_upper;
    options.scrub_bytes_per_s = 0;
    const struct lsm_place place = {.dir = config->dir, .token_last = UINT64_MAX};
    must(lsm_open(&place, &options, &lsm), "open");
    body(body_arg);
    must(lsm_close(lsm), "close");
    return ST_OK;
}

static int
run(const struct engine_config *c, void (*fn)(void *arg), void *arg)
{
    config = c;
    body = fn;
    body_arg = arg;
    /* What is above the store's share is for fibers and buffers of the workers. */
    struct io_node_config node_config = {.shard_count = 1,
                                         .memory_bytes = c->memory_bytes + MIB(64),
                                         .fiber_count_max = (u32)c->workers + 64,
                                         .shard_main = shard_main};
    struct io_node *node;
    must(io_node_start(&node_config, &node), "start");
    return ok(io_node_join(node)) ? 0 : 1;
}

/* ---- workers ---- */

static struct fiber_queue ended;
static u32 running, next_index;
static void (*worker_fn)(void *arg, u32 index);

MAY_YIELD static void
worker_main(void *arg)
{
    worker_fn(arg, next_index++);
    if (--running == 0) fiber_queue_wake_all(&ended);
}

MAY_YIELD static void
workers(u32 count, void (*fn)(void *arg, u32 index), void *arg)
{
    fiber_queue_init(&ended);
    worker_fn = fn;
    running = count;
    next_index = 0;
    for (u32 i = 0; i < count; i++)
        must(fiber_spawn(FIBER_FOREGROUND, "bench", worker_main, arg), "spawn");
    while (running > 0)
        (void)fiber_queue_wait(&ended, FIBER_FOREVER);
}

/* The last get waited for the disk: it has let the others go on meanwhile, and the next is likely
 * to be the disk's next read. That does not wait for the turns of everybody, or the disk would. */
static bool get_waited;

static void
turn(void)
{
    if (!get_waited) fiber_yield();
}

static void
pause_ms(u32 ms)
{
    fiber_sleep_ns(ms * NS_PER_MS);
}

/* ---- operations ---- */

MAY_YIELD static void
put(const u8 *key, u32 key_bytes, const u8 *value, u32 value_bytes)
{
    /* Shared by all workers: no other runs between the fill and the try. */
    static struct lsm_batch shared;
    if (shared.ops.budget == NULL) lsm_batch_init(&shared, io_budget());
    struct bytes k = BYTES(key, key_bytes);
    lsm_batch_clear(&shared);
    if (!lsm_batch_put(&shared, 0, hash_token(k), k, BYTES(value, value_bytes), 0))
        die("put", "no memory");
    u64 seq;
    status st = lsm_write_try(lsm, &shared, &seq);
    if (!ok(st)) {
        struct lsm_batch own = shared; /* it waits; others fill one of their own */
        lsm_batch_init(&shared, io_budget());
        while (status_is(st, ST_WOULD_WAIT) || status_is(st, ST_OVERLOADED)) {
            if (status_is(st, ST_OVERLOADED)) fiber_sleep_ns(NS_PER_MS);
            st = lsm_write(lsm, &own, &seq);
        }
        must(st, "put");
        lsm_batch_deinit(&own);
    }
    /* As much as a put of RocksDB promises without a sync: the kernel has it. */
    if (config->log) must(lsm_wait_durable(lsm, seq), "put");
}

MAY_YIELD static bool
get(const u8 *key, u32 key_bytes, u8 *value, u32 capacity, u32 *value_bytes)
{
    struct bytes k = BYTES(key, key_bytes);
    struct lsm_value got;
    struct lsm_aim aim = {.keyspace = 0};
    aim.token = hash_token_and_key(k, &aim.key_hash);
    /* What the server does with the requests of a pipeline: the cache misses of one overlap with
     * the work for the others in flight. What an aim found is stale after a yield, so each step
     * begins anew. */
    if (!get_waited) {
        lsm_aim_1(lsm, &aim);
        fiber_yield();
        lsm_aim_1(lsm, &aim);
        lsm_aim_2(lsm, &aim, false);
        fiber_yield();
    }
    lsm_aim_1(lsm, &aim);
    lsm_aim_2(lsm, &aim, false);
    lsm_aim_3(&aim, false);
    status st = lsm_get_aimed(lsm, &aim, k, &got);
    bool waits = status_is(st, ST_WOULD_WAIT);
    if (waits) st = lsm_get(lsm, NULL, 0, aim.token, k, &got);
    get_waited = waits;
    if (status_is(st, ST_NOT_FOUND)) return false;
    must(st, "get");
    *value_bytes = (u32)got.value.size;
    memcpy(value, got.value.data, MIN(got.value.size, capacity));
    lsm_value_release(&got);
    return true;
}

MAY_YIELD static u64
scan(const u8 *key, u32 key_bytes, u64 limit, u64 *entries)
{
    struct bytes from = key != NULL ? BYTES(key, key_bytes) : BYTES("", 0);
    u64 token = key != NULL ? hash_token(from) : 0;
    struct lsm_scan *s;
    must(lsm_scan_open(lsm, NULL, 0, token, from, UINT64_MAX, &s), "scan");
    u64 bytes = 0;
    struct bytes k;
    struct lsm_value v;
    *entries = 0;
    while (*entries < limit) {
        status st = lsm_scan_next(s, true, &token, &k, &v);
        if (status_is(st, ST_END)) break;
        must(st, "scan");
        bytes += k.size + v.value.size;
        ++*entries;
        if (*entries % 64 == 0 && fiber_should_yield()) fiber_yield();
    }
    lsm_scan_close(s);
    return bytes;
}

MAY_YIELD static void
flush(void)
{
    must(lsm_flush(lsm), "flush");
}

static void
figures(struct engine_figures *out)
{
    struct lsm_stats s;
    lsm_stats_get(lsm, &s);
    out->reads = s.table_reads + s.blob_reads;
    out->resident = s.index_bytes + s.filter_bytes;
    out->runs = s.runs_max;
    /* What is owed may stay: a small tier waits for more of its size. */
    static u64 written;
    out->settled =
        s.compactions_active == 0 && s.flush_bytes + s.compaction_written_bytes == written;
    written = s.flush_bytes + s.compaction_written_bytes;
    snprintf(out->more, sizeof(out->more),
             "tables %llu, %llu MB; blobs %llu MB, %llu MB of it live; "
             "log %llu MB in %llu writes; written by flush %llu MB, "
             "compaction %llu MB; row cache %llu MB, block cache %llu MB",
             (unsigned long long)s.tables, (unsigned long long)s.table_bytes / 1000000,
             (unsigned long long)s.blob_bytes / 1000000,
             (unsigned long long)s.blob_live_bytes / 1000000,
             (unsigned long long)s.log_bytes / 1000000, (unsigned long long)s.log_writes,
             (unsigned long long)s.flush_bytes / 1000000,
             (unsigned long long)s.compaction_written_bytes / 1000000,
             (unsigned long long)s.row_cache_bytes / 1000000,
             (unsigned long long)s.block_cache_bytes / 1000000);
}

const struct engine engine_distkv = {.name = "distkv",
                                     .version = version,
                                     .run = run,
                                     .workers = workers,
                                     .put = put,
                                     .get = get,
                                     .scan = scan,
                                     .turn = turn,
                                     .pause_ms = pause_ms,
                                     .flush = flush,
                                     .figures = figures};
