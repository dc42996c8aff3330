/* SPDX-License-Identifier: MIT
 *
 * engine_rocksdb.c -- RocksDB through its C API; each worker is a thread. Leveled compaction, Bloom
 * filters of 10 bits a key, direct I/O, everything else as it comes, but what --dynamic-levels says.
 * Its memory is the same as ours: two memtables and a block cache; index and filter blocks lie
 * beside them, as is its default.
 */
#include "engine.h"

#include <pthread.h>
#include <rocksdb/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static rocksdb_t *db;
static rocksdb_writeoptions_t *write_options;
static rocksdb_readoptions_t *read_options;

static const char *
version(void)
{
    return ENGINE_BENCH_ROCKSDB;
}

static void
must(char *error, const char *what)
{
    if (error != NULL) die(what, error);
}

static int
run(const struct engine_config *c, void (*fn)(void *arg), void *arg)
{
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options, 1);
    u64 memtable = MIN(c->memory_bytes / 4, MIB(64));
    rocksdb_options_set_write_buffer_size(options, memtable);
    rocksdb_options_set_level_compaction_dynamic_level_bytes(options, c->dynamic_levels != 0);
    rocksdb_options_set_use_direct_reads(options, c->buffered == 0);
    rocksdb_options_set_use_direct_io_for_flush_and_compaction(options, c->buffered == 0);
    rocksdb_options_set_compression(options, c->codec == CODEC_LZ4 ? rocksdb_lz4_compression
                                                                   : rocksdb_no_compression);
    rocksdb_block_based_table_options_t *tables = rocksdb_block_based_options_create();
    rocksdb_cache_t *cache = rocksdb_cache_create_lru(c->memory_bytes - 2 * memtable);
    rocksdb_block_based_options_set_block_cache(tables, cache);
    rocksdb_block_based_options_set_filter_policy(tables, rocksdb_filterpolicy_create_bloom(10));
    rocksdb_options_set_block_based_table_factory(options, tables);
    write_options = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(write_options, 0);
    rocksdb_writeoptions_disable_WAL(write_options, c->log == 0);
    read_options = rocksdb_readoptions_create();
    char *error = NULL;
    db = rocksdb_open(options, c->dir, &error);
    must(error, "open");
    fn(arg);
    rocksdb_close(db);
    return 0;
}

/* ---- workers ---- */

struct worker {
    pthread_t thread;
    void (*fn)(void *arg, u32 index);
    void *arg;
    u32 index;
};

static void *
worker_main(void *arg)
{
    struct worker *worker = arg;
    worker->fn(worker->arg, worker->index);
    return NULL;
}

static void
workers(u32 count, void (*fn)(void *arg, u32 index), void *arg)
{
    struct worker *all = calloc(count, sizeof(*all));
    if (all == NULL) die("workers", "no memory");
    for (u32 i = 0; i < count; i++) {
        all[i] = (struct worker){.fn = fn, .arg = arg, .index = i};
        if (pthread_create(&all[i].thread, NULL, worker_main, &all[i]) != 0)
            die("workers", "no thread");
    }
    for (u32 i = 0; i < count; i++)
        pthread_join(all[i].thread, NULL);
    free(all);
}

static void
turn(void)
{
}

static void
pause_ms(u32 ms)
{
    usleep(ms * 1000);
}

/* ---- operations ---- */

static void
put(const u8 *key, u32 key_bytes, const u8 *value, u32 value_bytes)
{
    char *error = NULL;
    rocksdb_put(db, write_options, (const char *)key, key_bytes, (const char *)value, value_bytes,
                &error);
    must(error, "put");
}

static bool
get(const u8 *key, u32 key_bytes, u8 *value, u32 capacity, u32 *value_bytes)
{
    char *error = NULL;
    rocksdb_pinnableslice_t *slice =
        rocksdb_get_pinned(db, read_options, (const char *)key, key_bytes, &error);
    must(error, "get");
    if (slice == NULL) return false;
    size_t size;
    const char *data = rocksdb_pinnableslice_value(slice, &size);
    *value_bytes = (u32)size;
    memcpy(value, data, MIN(size, capacity));
    rocksdb_pinnableslice_destroy(slice);
    return true;
}

static u64
scan(const u8 *key, u32 key_bytes, u64 limit, u64 *entries)
{
    rocksdb_readoptions_t *options = rocksdb_readoptions_create();
    if (limit > 1000) rocksdb_readoptions_set_readahead_size(options, MIB(2));
    rocksdb_iterator_t *it = rocksdb_create_iterator(db, options);
    if (key != NULL)
        rocksdb_iter_seek(it, (const char *)key, key_bytes);
    else
        rocksdb_iter_seek_to_first(it);
    u64 bytes = 0;
    for (*entries = 0; *entries < limit && rocksdb_iter_valid(it); ++*entries) {
        size_t k, v;
        (void)rocksdb_iter_key(it, &k);
        (void)rocksdb_iter_value(it, &v);
        bytes += k + v;
        rocksdb_iter_next(it);
    }
    char *error = NULL;
    rocksdb_iter_get_error(it, &error);
    must(error, "scan");
    rocksdb_iter_destroy(it);
    rocksdb_readoptions_destroy(options);
    return bytes;
}

static void
flush(void)
{
    char *error = NULL;
    rocksdb_flushoptions_t *options = rocksdb_flushoptions_create();
    rocksdb_flush(db, options, &error);
    must(error, "flush");
    rocksdb_flushoptions_destroy(options);
}

static u64
property(const char *name)
{
    u64 value = 0;
    return rocksdb_property_int(db, name, &value) == 0 ? value : 0;
}

static void
figures(struct engine_figures *out)
{
    out->resident = property("rocksdb.estimate-table-readers-mem");
    out->runs = property("rocksdb.num-files-at-level0") + 1;
    for (u32 i = 1; i < 7; i++) {
        char name[64];
        snprintf(name, sizeof(name), "rocksdb.num-files-at-level%u", i);
        if (property(name) > 0 && i < 6) out->runs++;
    }
    out->settled = property("rocksdb.num-running-compactions") == 0 &&
                   property("rocksdb.num-running-flushes") == 0 &&
                   property("rocksdb.compaction-pending") == 0 &&
                   property("rocksdb.mem-table-flush-pending") == 0;
    snprintf(out->more, sizeof(out->more), "tables %llu MB, live data estimated %llu MB",
             (unsigned long long)property("rocksdb.live-sst-files-size") / 1000000,
             (unsigned long long)property("rocksdb.estimate-live-data-size") / 1000000);
}

const struct engine engine_rocksdb = {.name = "rocksdb",
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
