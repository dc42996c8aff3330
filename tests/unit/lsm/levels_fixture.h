/* SPDX-License-Identifier: MIT
 *
 * levels_fixture.h -- a store's levels without the rest of the store, beside a model of it.
 *
 * The model keeps every version of every key, every deleted range and the open snapshots, and
 * answers what a reader must see. The store under test is filled through memtables and flushes,
 * as lsm.c does it.
 */
#ifndef DISTKV_TESTS_LEVELS_FIXTURE_H
#define DISTKV_TESTS_LEVELS_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/levels_internal.h"
#include "lsm/merge.h"

#define MODEL_KEYS     64u
#define MODEL_VERSIONS 40000u
#define MODEL_RANGES   256u
#define STORE_DIR      "/store"

/* CHECK, because cmocka's jumps do not leave fibers well. */
#define EXPECT(cond) CHECK(cond)

struct model_version {
    u64 seq, version, expire_ms;
    u32 key;
    u32 value_size;
    bool deleted;
};

struct model {
    struct model_version versions[MODEL_VERSIONS];
    u32 version_count;
    struct range_delete ranges[MODEL_RANGES];
    u32 range_count;
    u64 seq_last;
    u64 snapshots[16];
    u32 snapshot_count;
};

struct rig {
    struct model model;
    struct levels *levels;
    struct memtable *memtable; /* what is not flushed */
    struct levels_state state;
    struct levels_config config;
    struct prng prng;
    status failed;
    u32 failed_count;
    u32 blob_threshold;
};

static inline struct bytes
model_key(u32 key, u8 *buffer)
{
    int size = snprintf((char *)buffer, 32, "key-%u", key);
    return BYTES(buffer, (size_t)size);
}

/* A few keys share their token, as keys of one hash tag do. */
static inline u64
model_token(u32 key)
{
    u32 tag = key % 8 == 7 ? key - 1 : key;
    u64 state = tag + 1;
    return splitmix64(&state);
}

static inline void
model_value(u64 seq, u32 size, u8 *buffer)
{
    u64 state = seq;
    for (u32 i = 0; i < size; i++) {
        if (i % 8 == 0) splitmix64(&state);
        buffer[i] = (u8)(state >> (i % 8 * 8));
    }
}

/* The winner for a reader at seq, before TTL; NULL: nothing, or deleted. */
static inline const struct model_version *
model_get(const struct model *model, u32 key, u64 seq, u64 wall_ms)
{
    const struct model_version *best = NULL;
    for (u32 i = 0; i < model->version_count; i++) {
        const struct model_version *v = &model->versions[i];
        if (v->key != key || v->seq > seq) continue;
        if (best == NULL || v->version > best->version ||
            (v->version == best->version && v->seq > best->seq))
            best = v;
    }
    if (best == NULL || best->deleted) return NULL;
    if (best->expire_ms != 0 && best->expire_ms <= wall_ms) return NULL;
    for (u32 i = 0; i < model->range_count; i++) {
        const struct range_delete *r = &model->ranges[i];
        if (r->seq <= seq && range_covers(r, 0, model_token(key), best->version, best->seq))
            return NULL;
    }
    return best;
}

static inline const u64 *
rig_snapshots(void *arg, u32 *count_out)
{
    struct rig *rig = arg;
    *count_out = rig->model.snapshot_count;
    return rig->model.snapshots;
}

static inline void
rig_failed(void *arg, status why, const char *text)
{
    struct rig *rig = arg;
    rig->failed = why;
    rig->failed_count++;
}

static inline void
rig_memtable_new(struct rig *rig)
{
    /* Twice: the one allocation that a test lets fail may be this one. */
    rig->memtable = memtable_new(io_budget(), 0, UINT64_MAX, MIB(8));
    if (rig->memtable == NULL) rig->memtable = memtable_new(io_budget(), 0, UINT64_MAX, MIB(8));
    EXPECT(rig->memtable != NULL);
}

static inline status
rig_open(struct rig *rig)
{
    struct lsm_options options = {.durability = LSM_DURABILITY_GROUP,
                                  .memory_bytes = MIB(64),
                                  .codec_upper = LSM_CODEC_NONE,
                                  .codec_last = LSM_CODEC_LZ4,
                                  .blob_threshold_bytes = rig->blob_threshold,
                                  .memtable_bytes = KIB(32)};
    rig->config = (struct levels_config){.dir = STORE_DIR,
                                         .token_first = 0,
                                         .token_last = UINT64_MAX,
                                         .options = options,
                                         .budget = io_budget(),
                                         .snapshots = rig_snapshots,
                                         .failed = rig_failed,
                                         .arg = rig};
    rig->config.block_cache = block_cache_new(io_budget(), MIB(1));
    EXPECT(rig->config.block_cache != NULL);
    status st = levels_open(&rig->config, &rig->levels, &rig->state);
    if (!ok(st)) {
        block_cache_free(rig->config.block_cache);
        rig->levels = NULL;
        return st;
    }
    levels_collect_orphans(rig->levels);
    rig_memtable_new(rig);
    return ST_OK;
}

static inline void
rig_close(struct rig *rig)
{
    if (rig->levels == NULL) return;
    EXPECT(levels_check(rig->levels));
    memtable_unref(rig->memtable);
    levels_close(rig->levels);
    block_cache_free(rig->config.block_cache);
    rig->levels = NULL;
}

static inline void
rig_write(struct rig *rig, u32 key, u32 value_size, u64 expire_ms, bool deleted)
{
    struct model *model = &rig->model;
    EXPECT(model->version_count < MODEL_VERSIONS);
    u64 seq = ++model->seq_last;
    model->versions[model->version_count++] =
        (struct model_version){seq, seq * 16, expire_ms, key, value_size, deleted};
    u8 name[32];
    static u8 value[KIB(64)];
    model_value(seq, value_size, value);
    struct entry entry = {.token = model_token(key),
                          .key = model_key(key, name),
                          .value = deleted ? BYTES(NULL, 0) : BYTES(value, value_size),
                          .version = seq * 16,
                          .seq = seq,
                          .expire_ms = deleted ? 0 : expire_ms,
                          .kind = deleted ? ENTRY_DELETE : ENTRY_PUT};
    size_t size = entry.key.size + entry.value.size;
    EXPECT(memtable_fits(rig->memtable, size, 1) || memtable_fits(rig->memtable, size, 1));
    memtable_insert(rig->memtable, &entry, true);
}

static inline void
rig_range(struct rig *rig, u64 first, u64 last)
{
    struct model *model = &rig->model;
    u64 seq = ++model->seq_last;
    EXPECT(model->range_count < MODEL_RANGES);
    model->ranges[model->range_count++] = (struct range_delete){
        .token_first = first, .token_last = last, .version = seq * 16, .seq = seq};
    status st = levels_range_delete(rig->levels, 0, first, last, seq * 16, seq);
    if (status_is(st, ST_NO_MEMORY))
        st = levels_range_delete(rig->levels, 0, first, last, seq * 16, seq);
    EXPECT(ok(st));
}

static inline status
rig_flush(struct rig *rig)
{
    struct levels_flush input = {0, rig->memtable};
    struct levels_state state = rig->state;
    state.seq_flushed = rig->model.seq_last;
    state.version_max = rig->model.seq_last * 16;
    state.log_segment_first++;
    status st = levels_flush(rig->levels, &input, 1, &state, 0);
    if (!ok(st)) return st;
    rig->state = state;
    memtable_unref(rig->memtable);
    rig_memtable_new(rig);
    return ST_OK;
}

static inline void
rig_snapshot(struct rig *rig)
{
    EXPECT(rig->model.snapshot_count < ARRAY_COUNT(rig->model.snapshots));
    rig->model.snapshots[rig->model.snapshot_count++] = rig->model.seq_last;
}

static inline void
rig_snapshot_close(struct rig *rig, u32 at)
{
    struct model *model = &rig->model;
    memmove(model->snapshots + at, model->snapshots + at + 1,
            (model->snapshot_count - at - 1) * sizeof(u64));
    model->snapshot_count--;
}

/* Reads one key as lsm.c does. *out_seq: of what was found live, else 0. */
static inline status
rig_get(struct rig *rig, u32 key, u64 seq_max, u64 *out_seq)
{
    u8 name[32];
    struct bytes bytes = model_key(key, name);
    u64 token = model_token(key);
    struct entry entry = {0}, found;
    *out_seq = 0;
    bool have = memtable_get(rig->memtable, token, bytes, seq_max, &entry);
    struct levels_pin pin = {0};
    status st = levels_get(rig->levels, 0, token, bytes, hash_key(bytes, 0), seq_max,
                           have ? entry.version : 0, &found, &pin);
    if (ok(st)) {
        EXPECT(!have || found.version > entry.version);
        entry = found;
        have = true;
    } else if (!status_is(st, ST_NOT_FOUND)) {
        return st;
    }
    st = ST_OK;
    if (have && entry.kind == ENTRY_PUT && !entry_expired(&entry, io_wall_ms()) &&
        !levels_range_covers(rig->levels, 0, token, entry.version, entry.seq, seq_max)) {
        void *buffer = NULL;
        size_t buffer_size = 0;
        struct bytes value = entry.value;
        if (entry.flags & ENTRY_BLOB)
            st = levels_blob_read(rig->levels, &entry, &buffer, &buffer_size, &value);
        if (ok(st)) {
            static u8 expect[KIB(64)];
            model_value(entry.seq, (u32)value.size, expect);
            EXPECT(bytes_equal(value, BYTES(expect, value.size)));
            *out_seq = entry.seq;
        }
        mem_free(io_budget(), buffer, buffer_size);
    }
    levels_unpin(&pin);
    return st;
}

/* Everything that any reader may see is as the model says: by point reads and by a scan. */
static inline void
rig_compare(struct rig *rig)
{
    struct model *model = &rig->model;
    for (u32 i = 0; i <= model->snapshot_count; i++) {
        u64 seq = i < model->snapshot_count ? model->snapshots[i] : UINT64_MAX;
        for (u32 key = 0; key < MODEL_KEYS; key++) {
            const struct model_version *expect = model_get(model, key, seq, io_wall_ms());
            u64 found;
            EXPECT(ok(rig_get(rig, key, seq, &found)));
            u64 wanted = expect == NULL ? 0 : expect->seq;
            if (found == wanted) continue;
            /* It may have expired while the read was under way. */
            expect = model_get(model, key, seq, io_wall_ms());
            wanted = expect == NULL ? 0 : expect->seq;
            if (found != wanted)
                fprintf(stderr, "key %u reader %llu found %llu wanted %llu\n", key,
                        (unsigned long long)seq, (unsigned long long)found,
                        (unsigned long long)wanted);
            EXPECT(found == wanted);
        }
    }
    EXPECT(levels_check(rig->levels));
}

#endif
