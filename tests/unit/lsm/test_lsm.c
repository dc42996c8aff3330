/* SPDX-License-Identifier: MIT
 *
 * test_lsm.c -- the engine end to end, against a model.
 *
 * The model is the list of operations in the order of their sequence numbers. The engine's state
 * after any crash must be what the first P operations give, for one P: not less than what was told
 * durable, and at the end of a batch. So the whole state is compared, key by key, by gets and by a
 * scan, before and after flushes, compactions, snapshots, closings and power cuts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../fewer.h"
#include "base/hash.h"
#include "base/prng.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/lsm_internal.h"

#define DIR       "/store"
#define KEYS      120u
#define OPS_MAX   60000u
#define VALUE_MAX 9000u

struct op {
    u16 key;
    u8 kind; /* enum entry_kind */
    bool batch_end;
    u32 value_size;
    u64 token_first, token_last;
};

struct world {
    struct sim *sim;
    struct sim_disk *disk;
    struct lsm_options options;
    struct lsm *lsm;
    struct prng prng;
    const char *dir;
    u32 steps;
    bool rude; /* errors are expected */
    bool no_maintenance;
    /* the model */
    struct op ops[OPS_MAX]; /* by seq; 0 is unused */
    u64 op_count;
    u64 durable;
    u64 reopened;
};

static struct world world; /* large */

static u32
key_make(u32 index, u8 *out)
{
    /* A third of the keys share a tag: one token. */
    char text[64];
    int size = snprintf(text, sizeof(text), index % 3 == 0 ? "{tag}key-%u" : "key-%u", index);
    memcpy(out, text, (size_t)size);
    return (u32)size;
}

static struct bytes
key_bytes(u32 index)
{
    static u8 keys[KEYS][64];
    static u32 sizes[KEYS];
    if (sizes[index] == 0) sizes[index] = key_make(index, keys[index]);
    return BYTES(keys[index], sizes[index]);
}

static u8
value_byte(u64 seq, u32 i)
{
    return (u8)(seq * 7 + i * 13 + (i >> 8));
}

static void
on_durable(void *arg, u64 seq, bool failed)
{
    struct world *w = arg;
    (void)failed;
    CHECK(seq >= w->durable);
    w->durable = seq;
}

/* The operation that decides a key after the first seq ones; 0: none. */
static u64
model_find(const struct world *w, u32 key, u64 seq)
{
    u64 token = hash_token(key_bytes(key));
    for (; seq > 0; seq--) {
        const struct op *op = &w->ops[seq];
        if (op->kind == ENTRY_DELETE_RANGE) {
            if (token >= op->token_first && token <= op->token_last) return seq;
        } else if (op->key == key) {
            return seq;
        }
    }
    return 0;
}

static void
value_check(const struct world *w, u64 seq, struct bytes value)
{
    CHECK(value.size == w->ops[seq].value_size);
    for (u32 i = 0; i < value.size; i += i < 64 ? 1 : 61)
        CHECK(value.data[i] == value_byte(seq, i));
}

static void
get_check(struct world *w, u32 key, const struct lsm_snapshot *snapshot)
{
    u64 seq = snapshot != NULL ? lsm_snapshot_seq(snapshot) : w->op_count;
    struct lsm_value value = {0};
    struct bytes name = key_bytes(key);
    u64 token = hash_token(name);
    status st = ST_WOULD_WAIT;
    if (snapshot == NULL) st = lsm_get_try(w->lsm, 0, token, name, &value);
    if (status_is(st, ST_WOULD_WAIT)) {
        st = lsm_get(w->lsm, snapshot, 0, token, name, &value);
        /* Others write while we wait: the newest is asked for again. */
        if (snapshot == NULL) seq = w->op_count;
    }
    u64 expected = model_find(w, key, seq);
    bool live = expected != 0 && w->ops[expected].kind == ENTRY_PUT;
    if (w->rude && !ok(st) && !status_is(st, ST_NOT_FOUND)) return;
    CHECK(live ? ok(st) : status_is(st, ST_NOT_FOUND));
    if (!live) return;
    CHECK(value.seq == expected);
    value_check(w, expected, value.value);
    lsm_value_release(&value);
}

static void
scan_check(struct world *w, struct lsm_snapshot *snapshot)
{
    u64 seq = snapshot != NULL ? lsm_snapshot_seq(snapshot) : w->op_count;
    struct lsm_scan *scan;
    status st = lsm_scan_open(w->lsm, snapshot, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan);
    if (!ok(st)) {
        CHECK(w->rude);
        return;
    }
    u32 live = 0;
    for (u32 i = 0; i < KEYS; i++) {
        u64 found = model_find(w, i, seq);
        live += found != 0 && w->ops[found].kind == ENTRY_PUT;
    }
    u64 token, token_before = 0;
    struct bytes key;
    u8 key_before[64];
    u32 key_before_size = 0;
    struct lsm_value value;
    u32 count = 0;
    for (;;) {
        st = lsm_scan_next(scan, true, &token, &key, &value);
        if (!ok(st)) break;
        if (count++ > 0)
            CHECK(entry_compare_key(token_before, BYTES(key_before, key_before_size), token, key) <
                  0);
        u32 index = 0;
        while (index < KEYS && !bytes_equal(key_bytes(index), key))
            index++;
        CHECK(index < KEYS);
        u64 found = model_find(w, index, seq);
        if (found == 0 || w->ops[found].kind != ENTRY_PUT)
            fprintf(stderr, "scan at %llu shows key %u seq %llu, decided by %llu of kind %u\n",
                    (unsigned long long)seq, index, (unsigned long long)value.seq,
                    (unsigned long long)found, w->ops[found].kind);
        CHECK(found != 0 && w->ops[found].kind == ENTRY_PUT);
        value_check(w, found, value.value);
        token_before = token;
        memcpy(key_before, key.data, key.size);
        key_before_size = (u32)key.size;
    }
    lsm_scan_close(scan);
    if (!status_is(st, ST_END)) {
        CHECK(w->rude);
        return;
    }
    CHECK(count == live);
}

static void
state_check(struct world *w)
{
    for (u32 i = 0; i < KEYS; i++)
        get_check(w, i, NULL);
    scan_check(w, NULL);
    CHECK(lsm_check(w->lsm));
}

/* ---- doing ---- */

static status
open_store(struct world *w)
{
    status st;
    if (strncmp(w->dir, ":memory:", 8) != 0) {
        st = io_dir_make(w->dir);
        if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
        st = io_dir_sync("/");
        if (!ok(st)) return st;
    }
    struct lsm_place place = {.dir = w->dir, .token_first = 0, .token_last = UINT64_MAX};
    st = lsm_open(&place, &w->options, &w->lsm);
    if (!ok(st)) return st;
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.seq_last >= w->durable);
    CHECK(stats.seq_last <= w->op_count);
    CHECK(stats.seq_last == 0 || w->ops[stats.seq_last].batch_end);
    w->op_count = stats.seq_last;
    w->durable = lsm_durable_seq(w->lsm);
    CHECK(w->durable == w->op_count); /* what recovery yields counts as durable */
    lsm_on_durable(w->lsm, on_durable, w);
    return ST_OK;
}

/* Adds what is in the batch to the model before the engine sees it: durability may come early. */
static status
write_batch(struct world *w, struct lsm_batch *batch, const struct op *ops)
{
    u64 before = w->op_count;
    for (u32 i = 0; i < batch->count; i++) {
        CHECK(w->op_count + 1 < OPS_MAX);
        w->ops[++w->op_count] = ops[i];
    }
    w->ops[w->op_count].batch_end = true;
    u64 seq = 0;
    status st = lsm_write_try(w->lsm, batch, &seq);
    if (status_is(st, ST_WOULD_WAIT)) st = lsm_write(w->lsm, batch, &seq);
    if (ok(st)) {
        CHECK(seq == w->op_count);
    } else {
        w->op_count = before;
    }
    return st;
}

static status
write_random(struct world *w)
{
    static u8 value[VALUE_MAX];
    struct op ops[8];
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    u32 count = prng_chance(&w->prng, 1, 4) ? (u32)prng_range(&w->prng, 2, 8) : 1;
    bool done = true;
    if (prng_chance(&w->prng, 1, 80)) {
        u64 a = prng_u64(&w->prng), b = prng_u64(&w->prng);
        ops[0] = (struct op){.kind = ENTRY_DELETE_RANGE,
                             .token_first = MIN(a, b),
                             .token_last = prng_chance(&w->prng, 1, 10) ? UINT64_MAX : MAX(a, b)};
        done = lsm_batch_delete_range(&batch, 0, ops[0].token_first, ops[0].token_last);
        count = 0;
    }
    for (u32 i = 0; i < count && done; i++) {
        u32 key = (u32)prng_below(&w->prng, KEYS);
        u64 token = hash_token(key_bytes(key));
        ops[i] = (struct op){.key = (u16)key, .kind = ENTRY_PUT};
        if (prng_chance(&w->prng, 1, 5)) {
            ops[i].kind = ENTRY_DELETE;
            done = lsm_batch_delete(&batch, 0, token, key_bytes(key));
            continue;
        }
        u32 size = (u32)prng_below(&w->prng, prng_chance(&w->prng, 1, 8) ? VALUE_MAX : 300);
        for (u32 j = 0; j < size; j++)
            value[j] = value_byte(w->op_count + 1 + i, j);
        ops[i].value_size = size;
        done = lsm_batch_put(&batch, 0, token, key_bytes(key), BYTES(value, size), 0);
    }
    status st = done ? write_batch(w, &batch, ops) : ST_NO_MEMORY;
    lsm_batch_deinit(&batch);
    return st;
}

static status
step(struct world *w)
{
    u64 dice = prng_below(&w->prng, 1000);
    if (dice < 700 || w->no_maintenance) return write_random(w);
    if (dice < 900) {
        get_check(w, (u32)prng_below(&w->prng, KEYS), NULL);
        return ST_OK;
    }
    if (dice < 920) {
        if (w->op_count == 0) return ST_OK;
        return lsm_wait_durable(w->lsm, prng_range(&w->prng, 1, w->op_count));
    }
    if (dice < 940) {
        scan_check(w, NULL);
        return ST_OK;
    }
    if (dice < 970) {
        struct lsm_snapshot *snapshot = lsm_snapshot_open(w->lsm);
        CHECK(snapshot != NULL);
        status st = ST_OK;
        for (u32 i = 0; i < 30 && ok(st); i++)
            st = write_random(w);
        if (prng_chance(&w->prng, 1, 3)) (void)ok(lsm_flush(w->lsm));
        for (u32 i = 0; i < KEYS; i += 3)
            get_check(w, i, snapshot);
        scan_check(w, snapshot);
        lsm_snapshot_close(snapshot);
        return st;
    }
    if (dice < 985) return lsm_flush(w->lsm);
    if (dice < 990) return lsm_compact(w->lsm);
    if (dice < 995) {
        fiber_sleep_ns(prng_below(&w->prng, 50 * NS_PER_MS));
        return ST_OK;
    }
    status st = lsm_close(w->lsm);
    w->lsm = NULL;
    if (ok(st)) {
        w->durable = MAX(w->durable, w->options.durability == LSM_DURABILITY_NONE ||
                                             strncmp(w->dir, ":memory:", 8) == 0
                                         ? w->durable
                                         : w->op_count);
        w->reopened++;
        st = open_store(w);
    }
    return st;
}

static status
work(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    for (u32 i = 0; ok(st) && i < w->steps; i++) {
        st = step(w);
        if (w->rude && w->lsm != NULL) st = ST_OK;
        if (!w->rude) CHECK(ok(st));
    }
    if (w->lsm == NULL) return st;
    if (ok(st)) state_check(w);
    st = lsm_close(w->lsm);
    w->lsm = NULL;
    return st;
}

static status
reopen(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    state_check(w);
    st = lsm_close(w->lsm);
    w->lsm = NULL;
    return st;
}

static void
world_init(u64 seed, struct sim *sim)
{
    memset(&world, 0, sizeof(world));
    world.sim = sim;
    world.disk = sim_node_disk(sim_node_new(sim, "10.0.0.1"));
    world.dir = DIR;
    prng_init(&world.prng, seed);
    lsm_options_default(&world.options);
    world.options.memory_bytes = MIB(24);
    world.options.memtable_bytes = KIB(256);
    world.options.log_segment_bytes = KIB(256);
    world.options.disk_reserve_bytes = 0;
    world.options.scrub_bytes_per_s = seed % 2 == 0 ? 0 : MIB(8);
    world.options.codec_upper = (enum lsm_codec)(seed % LSM_CODEC_COUNT);
    world.options.codec_last = (enum lsm_codec)(seed / 3 % LSM_CODEC_COUNT);
    world.steps = 400;
}

static struct sim *
sim_make(u64 seed)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    return sim_new(&options);
}

static void
what_was_written_is_read(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(12); seed++) {
        struct sim *sim = sim_make(seed);
        world_init(seed, sim);
        world.steps = 1500;
        status st = sim_run(sim, 1, work, &world);
        if (!ok(st)) sim_log_dump(sim);
        assert_true(ok(st));
        world.durable = world.op_count;
        assert_true(ok(sim_run(sim, 1, reopen, &world)));
        sim_free(sim);
    }
}

static void
power_cuts_take_nothing_durable(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(60); seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.disk.torn_ppm = seed % 2 == 0 ? 200000 : 0;
        struct sim *sim = sim_new(&options);
        world_init(seed, sim);
        for (u32 round = 0; round < 4; round++) {
            sim_crash_at(sim, SIM_POINT_IO, prng_below(&world.prng, round % 2 == 0 ? 900 : 60));
            status st = sim_run(sim, 1, work, &world);
            bool cut = sim_crashed(sim);
            world.lsm = NULL;
            sim_faults_clear(sim);
            if (!ok(st) && !cut) {
                print_message("seed %llu round %u: %s\n", (unsigned long long)seed, round,
                              status_name(st));
                sim_log_dump(sim);
            }
            assert_true(ok(st) || cut);
            if (ok(st)) world.durable = world.op_count;
        }
        status st = sim_run(sim, 1, reopen, &world);
        if (!ok(st)) {
            print_message("seed %llu: %s\n", (unsigned long long)seed, status_name(st));
            sim_log_dump(sim);
        }
        assert_true(ok(st));
        sim_free(sim);
    }
}

/* The n-th request fails. What the store says afterwards may be an error, never something wrong;
 * and when the disk is well again everything durable is there. */
static void
every_failed_request_is_survived(void **state)
{
    (void)state;
    const status errors[] = {ST_IO_ERROR, ST_NO_SPACE};
    for (u32 kind = 0; kind < 2; kind++) {
        for (u64 n = 0; n < 400; n += 3) {
            struct sim *sim = sim_make(n);
            world_init(n, sim);
            world.rude = true;
            world.steps = 120;
            sim_fail_at(sim, kind == 0 ? SIM_POINT_IO : SIM_POINT_WRITE, n, 1 + n % 3,
                        errors[kind]);
            (void)ok(sim_run(sim, 1, work, &world));
            world.lsm = NULL;
            sim_faults_clear(sim);
            world.rude = false;
            status st = sim_run(sim, 1, reopen, &world);
            if (!ok(st)) {
                print_message("request %llu: %s\n", (unsigned long long)n, status_name(st));
                sim_log_dump(sim);
            }
            assert_true(ok(st));
            sim_free(sim);
        }
    }
}

static void
memory_that_runs_out_is_survived(void **state)
{
    (void)state;
    for (u64 n = 0; n < 600; n += 7) {
        struct sim *sim = sim_make(n);
        world_init(n, sim);
        world.rude = true;
        world.steps = 100;
        sim_fail_at(sim, SIM_POINT_ALLOC, n * 3, 2, ST_NO_MEMORY);
        (void)ok(sim_run(sim, 1, work, &world));
        world.lsm = NULL;
        sim_faults_clear(sim);
        world.rude = false;
        assert_true(ok(sim_run(sim, 1, reopen, &world)));
        sim_free(sim);
    }
}

/* Rare paths made common, slow and stalling disks, cuts. */
static void
swarm(void **state)
{
    (void)state;
    for (u64 seed = 1000; seed < 1000 + FEWER(60); seed++) {
        struct sim_options options;
        sim_options_swarm(&options, seed);
        options.disk.read_error_ppm = options.disk.write_error_ppm = 0;
        options.disk.look_error_ppm = 0;
        options.disk.sync_error_ppm = options.disk.no_space_ppm = 0;
        struct sim *sim = sim_new(&options);
        world_init(seed, sim);
        for (u32 round = 0; round < 3; round++) {
            world.rude = true;
            sim_crash_at(sim, SIM_POINT_EVENT, prng_below(&world.prng, 20000));
            (void)ok(sim_run(sim, 1, work, &world));
            world.lsm = NULL;
            sim_faults_clear(sim);
        }
        sim_faults_end(sim); /* a disk without space may refuse to open */
        status st = sim_run(sim, 1, reopen, &world);
        if (!ok(st)) {
            print_message("seed %llu: %s\n", (unsigned long long)seed, status_name(st));
            sim_log_dump(sim);
        }
        assert_true(ok(st));
        sim_free(sim);
    }
}

static void
periodic_and_none_keep_what_they_promise(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 6; seed++) {
        struct sim *sim = sim_make(seed);
        world_init(seed, sim);
        world.options.durability = seed % 2 == 0 ? LSM_DURABILITY_PERIODIC : LSM_DURABILITY_NONE;
        world.options.sync_interval_ms = 5;
        assert_true(ok(sim_run(sim, 1, work, &world)));
        world.durable = world.op_count; /* a clean end loses nothing */
        assert_true(ok(sim_run(sim, 1, reopen, &world)));
        /* And another durability finds what the one before left, log or no log. */
        world.options.durability = LSM_DURABILITY_GROUP;
        assert_true(ok(sim_run(sim, 1, work, &world)));
        world.durable = world.op_count;
        sim_crash_at(sim, SIM_POINT_IO, 150);
        (void)ok(sim_run(sim, 1, work, &world));
        world.lsm = NULL;
        sim_faults_clear(sim);
        world.options.durability = LSM_DURABILITY_NONE;
        assert_true(ok(sim_run(sim, 1, reopen, &world)));
        world.options.durability = LSM_DURABILITY_GROUP;
        world.durable = world.op_count;
        assert_true(ok(sim_run(sim, 1, reopen, &world)));
        sim_free(sim);
    }
}

static void
everything_in_memory(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    world_init(1, sim);
    world.dir = ":memory:";
    world.steps = 1500;
    assert_true(ok(sim_run(sim, 1, work, &world)));
    sim_free(sim);
}

static status
put_one(struct lsm *lsm, u16 keyspace, const char *key, const char *value, u64 expire_ms)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    struct bytes name = BYTES(key, strlen(key));
    CHECK(lsm_batch_put(&batch, keyspace, hash_token(name), name, BYTES(value, strlen(value)),
                        expire_ms));
    u64 seq;
    status st = lsm_write(lsm, &batch, &seq);
    if (ok(st)) st = lsm_wait_durable(lsm, seq);
    lsm_batch_deinit(&batch);
    return st;
}

static status
get_one(struct lsm *lsm, u16 keyspace, const char *key, const char *expected)
{
    struct bytes name = BYTES(key, strlen(key));
    struct lsm_value value;
    status st = lsm_get(lsm, NULL, keyspace, hash_token(name), name, &value);
    if (!ok(st)) return st;
    CHECK(bytes_equal(value.value, BYTES(expected, strlen(expected))));
    lsm_value_release(&value);
    return ST_OK;
}

static status
expiry_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    CHECK(ok(st));
    st = put_one(w->lsm, 0, "short", "x", io_wall_ms() + 1000);
    CHECK(ok(st));
    st = put_one(w->lsm, 0, "long", "y", io_wall_ms() + 1000000);
    CHECK(ok(st));
    for (u32 round = 0; round < 3; round++) {
        CHECK(ok(get_one(w->lsm, 0, "short", "x")));
        CHECK(ok(get_one(w->lsm, 0, "long", "y")));
        if (round == 0) CHECK(ok(lsm_flush(w->lsm)));
        if (round == 1) CHECK(ok(lsm_compact(w->lsm)));
    }
    fiber_sleep_ns(2 * NS_PER_S);
    CHECK(status_is(get_one(w->lsm, 0, "short", "x"), ST_NOT_FOUND)); /* from the row cache, too */
    CHECK(ok(get_one(w->lsm, 0, "long", "y")));
    u64 count = 0;
    CHECK(ok(lsm_count_exact(w->lsm, 0, &count)) && count == 1);
    return lsm_close(w->lsm);
}

static void
expired_keys_are_gone_everywhere(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    world_init(1, sim);
    assert_true(ok(sim_run(sim, 1, expiry_body, &world)));
    sim_free(sim);
}

static status
keyspaces_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    CHECK(ok(st));
    char text[32];
    for (u16 i = 0; i < LIMIT_KEYSPACES; i++) {
        snprintf(text, sizeof(text), "value-%u", i);
        CHECK(ok(put_one(w->lsm, i, "same", text, 0)));
    }
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete_range(&batch, 3, 0, UINT64_MAX));
    u64 seq;
    CHECK(ok(lsm_write(w->lsm, &batch, &seq)));
    lsm_batch_deinit(&batch);
    w->op_count = w->durable = seq;
    w->ops[seq].batch_end = true;
    for (u32 round = 0; round < 3; round++) {
        for (u16 i = 0; i < LIMIT_KEYSPACES; i++) {
            snprintf(text, sizeof(text), "value-%u", i);
            st = get_one(w->lsm, i, "same", text);
            CHECK(i == 3 ? status_is(st, ST_NOT_FOUND) : ok(st));
        }
        if (round == 0) CHECK(ok(lsm_flush(w->lsm)));
        if (round == 1) {
            CHECK(ok(lsm_close(w->lsm)));
            CHECK(ok(open_store(w)));
            struct lsm_stats stats;
            lsm_stats_get(w->lsm, &stats);
            CHECK(stats.recovery_records == 0); /* a clean end leaves nothing to replay */
            CHECK(stats.keys_estimate > 0 && stats.keys_estimate <= LIMIT_KEYSPACES);
        }
    }
    return lsm_close(w->lsm);
}

static void
keyspaces_do_not_meet(void **state)
{
    (void)state;
    struct sim *sim = sim_make(2);
    world_init(2, sim);
    assert_true(ok(sim_run(sim, 1, keyspaces_body, &world)));
    sim_free(sim);
}

static status
space_body(void *arg)
{
    struct world *w = arg;
    w->no_maintenance = true;
    status st = open_store(w);
    CHECK(ok(st));
    fiber_sleep_ns(NS_PER_S);
    sim_disk_capacity_set(w->disk, 1);
    u32 written = 0;
    do {
        st = step(w);
        written++;
    } while (ok(st) && written < 20000);
    CHECK(status_is(st, ST_NO_SPACE));
    for (u32 i = 0; i < KEYS; i++)
        get_check(w, i, NULL); /* reads go on */
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.state != LSM_STATE_FAILED);
    sim_disk_capacity_set(w->disk, GIB(1));
    fiber_sleep_ns(5 * NS_PER_S);
    for (u32 i = 0; i < 300; i++) {
        st = step(w);
        CHECK(ok(st));
    }
    state_check(w);
    return lsm_close(w->lsm);
}

static void
a_full_disk_stops_writes_and_they_resume(void **state)
{
    (void)state;
    struct sim *sim = sim_make(3);
    world_init(3, sim);
    assert_true(ok(sim_run(sim, 1, space_body, &world)));
    world.durable = world.op_count;
    world.lsm = NULL;
    assert_true(ok(sim_run(sim, 1, reopen, &world)));
    sim_free(sim);
}

static status
failed_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    CHECK(ok(st));
    CHECK(ok(put_one(w->lsm, 0, "kept", "v", 0)));
    fiber_sleep_ns(10 * NS_PER_MS);
    sim_fail_at(w->sim, SIM_POINT_WRITE, 0, 1, ST_IO_ERROR);
    st = put_one(w->lsm, 0, "lost", "v", 0);
    CHECK(status_is(st, ST_UNKNOWN_OUTCOME));
    sim_faults_clear(w->sim);
    CHECK(status_is(put_one(w->lsm, 0, "more", "v", 0), ST_READ_ONLY));
    CHECK(ok(get_one(w->lsm, 0, "kept", "v")));
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.state == LSM_STATE_FAILED && stats.failure[0] != '\0');
    CHECK(status_is(lsm_flush(w->lsm), ST_IO_ERROR));
    CHECK(!ok(lsm_close(w->lsm)));
    return ST_OK;
}

static void
a_failed_log_makes_the_store_read_only(void **state)
{
    (void)state;
    struct sim *sim = sim_make(4);
    world_init(4, sim);
    world.op_count = 100; /* the model is not used */
    for (u32 i = 0; i < 100; i++)
        world.ops[i].batch_end = true;
    assert_true(ok(sim_run(sim, 1, failed_body, &world)));
    sim_free(sim);
}

static status
large_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    CHECK(ok(st));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    static u8 value[LIMIT_VALUE_BYTES];
    struct bytes key = BYTES_LITERAL("large");
    CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, sizeof(value)), 0));
    u64 seq;
    CHECK(status_is(lsm_write(w->lsm, &batch, &seq), ST_TOO_LARGE)); /* 256 KiB of memtable */
    CHECK(status_is(lsm_write_try(w->lsm, &batch, &seq), ST_TOO_LARGE));
    lsm_batch_deinit(&batch);
    CHECK(ok(put_one(w->lsm, 0, "small", "v", 0)));
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

static void
a_batch_that_never_fits_is_refused_at_once(void **state)
{
    (void)state;
    struct sim *sim = sim_make(5);
    world_init(5, sim);
    assert_true(ok(sim_run(sim, 1, large_body, &world)));
    sim_free(sim);
}

static status
small_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    CHECK(ok(st));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    static u8 value[1000];
    u64 seq = 0;
    const u32 count = 30000; /* 30 MB: twice the memory */
    for (u32 i = 0; i < count; i++) {
        char key[32];
        struct bytes name = BYTES(key, (size_t)sprintf(key, "k%u", i));
        memcpy(value, &i, sizeof(i));
        lsm_batch_clear(&batch);
        CHECK(lsm_batch_put(&batch, 0, hash_token(name), name, BYTES(value, sizeof(value)), 0));
        do {
            st = lsm_write(w->lsm, &batch, &seq);
            if (status_is(st, ST_OVERLOADED)) fiber_sleep_ns(10 * NS_PER_MS);
        } while (status_is(st, ST_OVERLOADED));
        CHECK(ok(st));
    }
    w->op_count = OPS_MAX - 1;
    CHECK(ok(lsm_wait_durable(w->lsm, seq)));
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    CHECK(stats.flushes > 5);
    CHECK(w->lsm->budget.used_bytes_max <= w->options.memory_bytes);
    for (u32 i = 0; i < count; i += 7) {
        char key[32];
        struct bytes name = BYTES(key, (size_t)sprintf(key, "k%u", i));
        struct lsm_value got;
        st = lsm_get(w->lsm, NULL, 0, hash_token(name), name, &got);
        CHECK(ok(st) && got.value.size == sizeof(value) && load_u32(got.value.data) == i);
        lsm_value_release(&got);
    }
    CHECK(lsm_check(w->lsm));
    lsm_batch_deinit(&batch);
    st = lsm_close(w->lsm);
    CHECK(ok(st));
    return ST_OK;
}

/* The smallest store that the server makes, with more data than memory. */
static void
sixteen_mebibytes_are_enough(void **state)
{
    (void)state;
    struct sim *sim = sim_make(6);
    world_init(6, sim);
    lsm_options_default(&world.options);
    world.options.memory_bytes = MIB(16);
    world.options.disk_reserve_bytes = 0;
    world.op_count = OPS_MAX - 1;
    assert_true(ok(sim_run(sim, 1, small_body, &world)));
    sim_free(sim);
}

static void
write_values(struct lsm *lsm, u32 first, u32 count)
{
    static u8 value[4000];
    for (u32 i = first; i < first + count; i++) {
        char key[32];
        snprintf(key, sizeof(key), "key%u", i);
        struct bytes name = BYTES(key, strlen(key));
        struct lsm_batch batch;
        u64 seq;
        lsm_batch_init(&batch, io_budget());
        CHECK(lsm_batch_put(&batch, 0, hash_token(name), name, BYTES(value, sizeof(value)), 0));
        CHECK(ok(lsm_write(lsm, &batch, &seq)));
        lsm_batch_deinit(&batch);
    }
}

static status
pages_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    write_values(w->lsm, 0, 4000); /* 16 MB: one memtable */
    CHECK(ok(lsm_flush(w->lsm)));
    u32 left = w->lsm->memtable_pages.count;
    u64 taken = w->lsm->memtable_budget.used_bytes;
    CHECK(left >= 5 && taken == left * MEM_PAGE_BYTES);
    write_values(w->lsm, 4000, 3000);
    CHECK(w->lsm->memtable_pages.count < left / 2);
    CHECK(w->lsm->memtable_budget.used_bytes_max <= taken + MIB(4)); /* nothing was held twice */
    CHECK(lsm_check(w->lsm));
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(w->lsm->memtable_pages.count >= 5);
    fiber_sleep_ns(60 * NS_PER_S); /* nobody writes: nobody needs them */
    CHECK(w->lsm->memtable_pages.count == 0);
    write_values(w->lsm, 0, 4000);
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(w->lsm->memtable_pages.count > 0);
    return lsm_close(w->lsm); /* it returns all memory */
}

static void
a_flushed_memtable_leaves_large_pages_for_a_while(void **state)
{
    (void)state;
    struct sim *sim = sim_make(8);
    world_init(8, sim);
    lsm_options_default(&world.options);
    world.options.memtable_bytes = MIB(24);
    world.options.disk_reserve_bytes = 0;
    world.op_count = OPS_MAX - 1;
    assert_true(ok(sim_run(sim, 1, pages_body, &world)));
    sim_free(sim);
}

static void
compacting_main(void *arg)
{
    struct world *w = arg;
    while (w->steps > 0) {
        status st = lsm_compact(w->lsm);
        CHECK(ok(st));
        fiber_yield();
    }
    w->no_maintenance = true; /* ended */
}

static status
emptied_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    CHECK(ok(fiber_spawn(FIBER_BACKGROUND, "compacting", compacting_main, w)));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete_range(&batch, 0, 0, UINT64_MAX));
    for (w->steps = 40; w->steps > 1; w->steps--) {
        u64 seq;
        CHECK(ok(put_one(w->lsm, 0, "one", "1", 0)));
        CHECK(ok(put_one(w->lsm, 0, "two", "2", 0)));
        CHECK(ok(lsm_flush(w->lsm)));
        fiber_sleep_ns(prng_below(&w->prng, NS_PER_MS));
        CHECK(ok(lsm_write(w->lsm, &batch, &seq)));
        CHECK(ok(lsm_flush(w->lsm)));
    }
    lsm_batch_deinit(&batch);
    w->steps = 0;
    while (!w->no_maintenance)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

/* The tables of a deleted range are dropped whole, also from under a merge that was at its end. */
static void
compacting_what_a_range_empties_is_no_damage(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct sim *sim = sim_make(seed);
        world_init(seed, sim);
        world.steps = 1;
        world.op_count = OPS_MAX - 1;
        assert_true(ok(sim_run(sim, 1, emptied_body, &world)));
        sim_free(sim);
    }
}

/* 50 of 200 keys, written again after a range that deleted all. */
static status
estimated_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete_range(&batch, 0, 0, UINT64_MAX));
    char key[16];
    for (u32 round = 0; round < 4; round++) {
        for (u32 i = 0; i < 200; i++) {
            snprintf(key, sizeof(key), "key %u", i);
            CHECK(ok(put_one(w->lsm, 0, key, "1", 0)));
            if (round == 0) CHECK(ok(put_one(w->lsm, 1, key, "1", 0)));
        }
        if (round == 3) CHECK(ok(lsm_flush(w->lsm)));
        CHECK(lsm_count_estimate(w->lsm, 0) == 200);
        u64 seq;
        CHECK(ok(lsm_write(w->lsm, &batch, &seq)));
        CHECK(lsm_count_estimate(w->lsm, 0) == 0);
        CHECK(lsm_count_estimate(w->lsm, 1) == 200);
        for (u32 i = 0; i < 100; i++) {
            snprintf(key, sizeof(key), "key %u", i % 50);
            CHECK(ok(put_one(w->lsm, 0, key, "2", 0)));
        }
        CHECK(lsm_count_estimate(w->lsm, 0) == 50);
        if (round == 1) CHECK(ok(lsm_flush(w->lsm)));
        CHECK(lsm_count_estimate(w->lsm, 0) == 50);
        CHECK(ok(lsm_write(w->lsm, &batch, &seq)));
        CHECK(lsm_count_estimate(w->lsm, 0) == 0);
    }
    lsm_batch_deinit(&batch);
    return lsm_close(w->lsm);
}

static void
the_estimate_forgets_what_a_range_deleted(void **state)
{
    (void)state;
    struct sim *sim = sim_make(1);
    world_init(1, sim);
    assert_true(ok(sim_run(sim, 1, estimated_body, &world)));
    sim_free(sim);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(power_cuts_take_nothing_durable),
        cmocka_unit_test(keyspaces_do_not_meet),
        cmocka_unit_test(expired_keys_are_gone_everywhere),
        cmocka_unit_test(everything_in_memory),
        cmocka_unit_test(a_failed_log_makes_the_store_read_only),
        cmocka_unit_test(a_batch_that_never_fits_is_refused_at_once),
        cmocka_unit_test(a_full_disk_stops_writes_and_they_resume),
        cmocka_unit_test(periodic_and_none_keep_what_they_promise),
        cmocka_unit_test(compacting_what_a_range_empties_is_no_damage),
        cmocka_unit_test(the_estimate_forgets_what_a_range_deleted),
        cmocka_unit_test(every_failed_request_is_survived),
        cmocka_unit_test(memory_that_runs_out_is_survived),
        cmocka_unit_test(sixteen_mebibytes_are_enough),
        cmocka_unit_test(a_flushed_memtable_leaves_large_pages_for_a_while),
        cmocka_unit_test(swarm),
    };
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* run one by its name */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
