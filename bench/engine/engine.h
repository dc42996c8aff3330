/* SPDX-License-Identifier: MIT
 *
 * engine.h -- what engine_bench wants of a storage engine: open, put, get, scan, some workers that
 * run at the same time, and the figures of its background work.
 */
#ifndef DISTKV_BENCH_ENGINE_H
#define DISTKV_BENCH_ENGINE_H

#include "base/histogram.h"
#include "base/types.h"

enum codec { CODEC_NONE, CODEC_LZ4 };

struct engine_config {
    char dir[512];      /* exists and is empty, or holds what the same engine left there */
    u64 memory_bytes;   /* caches and memtables together */
    u64 value_bytes;    /* the largest */
    u64 codec;          /* enum codec */
    u64 log;            /* bool; never synced for each write */
    u64 buffered;       /* bool; RocksDB: through the kernel's page cache */
    u64 dynamic_levels; /* bool; RocksDB: level sizes follow from that of the last */
    u64 workers;
};

struct engine_figures {
    u64 reads;      /* disk reads for gets, where the engine knows; else 0 */
    u64 resident;   /* index and filter bytes in memory */
    u64 runs;       /* most sorted runs that a get may meet */
    bool settled;   /* nothing is left for the background */
    char more[384]; /* anything worth printing */
};

struct engine {
    const char *name;
    const char *(*version)(void);
    /* Runs fn(arg) where the other functions may be called. The process ends with it. */
    int (*run)(const struct engine_config *config, void (*fn)(void *arg), void *arg);
    /* Runs fn(arg, i) for i in [0, count) at the same time and returns when all have. */
    void (*workers)(u32 count, void (*fn)(void *arg, u32 index), void *arg);
    void (*put)(const u8 *key, u32 key_bytes, const u8 *value, u32 value_bytes);
    /* False: not there. At most capacity bytes are copied to value. */
    bool (*get)(const u8 *key, u32 key_bytes, u8 *value, u32 capacity, u32 *value_bytes);
    /* From key on, or from the start when key is NULL; at most limit entries. Returns the bytes of
     * keys and values. */
    u64 (*scan)(const u8 *key, u32 key_bytes, u64 limit, u64 *entries);
    void (*turn)(void); /* after every operation: lets others run where that is not by itself */
    void (*pause_ms)(u32 ms);
    void (*flush)(void); /* memtables become tables */
    void (*figures)(struct engine_figures *out);
};

extern const struct engine engine_distkv;
extern const struct engine engine_rocksdb;

/* Prints what went wrong and ends the process: a benchmark that fails has no result. */
_Noreturn void die(const char *what, const char *why);

#endif
