/* SPDX-License-Identifier: MIT
 *
 * test_engine.c -- the engine on a disk that forgets: put, delete, batch, get, scan, and power cuts
 * at random moments, also during recovery.
 *
 * Strategy. A model outside of the simulated world keeps the history: every batch in the order in
 * which it was handed to the engine, and how many of them the engine called durable. After every
 * cut the whole store is read, by gets and by a scan, and must be the state after the first P
 * batches for some P that is at least the number of durable ones: nothing acknowledged is lost,
 * nothing is torn out of a batch, there is no gap, what was deleted stays deleted. Values name the
 * key and the operation that wrote them, so a wrong one shows where it came from. Memtables and
 * segments are tiny, so that flushes, compactions and recycled segments fall into every run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/mem.h"
#include "io/file.h"
#include "io/sim.h"
#include "lsm/lsm.h"

#define DIR_PATH        "/store"
#define KEY_COUNT       96u
#define BATCH_OPS_MAX   6u
#define HISTORY_MAX     4000u
#define VALUE_BYTES_MAX 6000u
#define CUTS            4u /* a seed */
#define SEED_COUNT      250u

enum flaw { FLAW_NONE, FLAW_CLAIM_EARLY };

struct change {
    u32 key;
    u64 id; /* 0: a deletion */
};

struct change_batch {
    u32 count;
    struct change changes[BATCH_OPS_MAX];
    u64 seq; /* of its last operation; 0: not known */
};

struct model {
    struct prng prng;
    enum flaw flaw;
    struct lsm_options options;
    u64 base[KEY_COUNT]; /* the state before the history */
    struct change_batch history[HISTORY_MAX];
    u32 count;   /* handed to the engine since the last opening */
    u32 durable; /* of them */
    u64 id_last;
    u64 recoveries;
    char violation[256];
};

/* What a value holds: whose it is, and filler. */
struct value_head {
    u64 key;
    u64 id;
    u64 size;
};

static struct model model; /* large */

#define VIOLATED(...)                                                                              \
    do {                                                                                           \
        if (model.violation[0] == '\0')                                                            \
            snprintf(model.violation, sizeof(model.violation), __VA_ARGS__);                       \
    } while (0)

static struct bytes
key_bytes(u32 key, char text[static 32])
{
    /* A quarter of the keys share one token. */
    int size = snprintf(text, 32, key % 4 == 0 ? "{tag}%u" : "key:%u", key);
    return BYTES(text, size);
}

static size_t
value_make(u32 key, u64 id, u8 *out)
{
    u64 draw = hash_bytes(&id, sizeof(id), 7);
    size_t size = sizeof(struct value_head);
    size += draw % 8 == 0 ? draw / 8 % (VALUE_BYTES_MAX - size) : draw / 8 % 200;
    struct value_head head = {.key = key, .id = id, .size = size};
    memcpy(out, &head, sizeof(head));
    memset(out + sizeof(head), (int)(id & 0xff), size - sizeof(head));
    return size;
}

/* The id that a value names; 0 when it is not a value of this key. */
static u64
value_id(u32 key, struct bytes value)
{
    static u8 expected[VALUE_BYTES_MAX];
    struct value_head head;
    if (value.size < sizeof(head)) return 0;
    memcpy(&head, value.data, sizeof(head));
    if (head.key != key || head.id == 0) return 0;
    size_t size = value_make(key, head.id, expected);
    return bytes_equal(value, BYTES(expected, size)) ? head.id : 0;
}

/* ---- the model ---- */

static void
state_apply(u64 state[static KEY_COUNT], const struct change_batch *batch)
{
    for (u32 i = 0; i < batch->count; i++)
        state[batch->changes[i].key] = batch->changes[i].id;
}

static void
model_state(u64 state[static KEY_COUNT])
{
    memcpy(state, model.base, sizeof(model.base));
    for (u32 i = 0; i < model.count; i++)
        state_apply(state, &model.history[i]);
}

/* Called with what was found after a recovery. */
static void
model_recovered(const u64 found[static KEY_COUNT])
{
    u64 state[KEY_COUNT];
    memcpy(state, model.base, sizeof(state));
    bool matched = false;
    for (u32 i = 0; i <= model.count; i++) {
        if (i >= model.durable && memcmp(state, found, sizeof(state)) == 0) {
            matched = true;
            break;
        }
        if (i < model.count) state_apply(state, &model.history[i]);
    }
    if (!matched) {
        memcpy(state, model.base, sizeof(state));
        u32 until = 0;
        for (; until < model.durable; until++)
            state_apply(state, &model.history[until]);
        for (u32 key = 0; key < KEY_COUNT; key++) {
            if (state[key] == found[key]) continue;
            VIOLATED("no prefix of the history: %u batches, %u durable; first key that differs "
                     "from the durable state: %u has id %llu, expected %llu",
                     model.count, model.durable, key, (unsigned long long)found[key],
                     (unsigned long long)state[key]);
        }
        VIOLATED("no prefix of the history of %u batches, %u durable", model.count, model.durable);
    }
    memcpy(model.base, found, sizeof(model.base));
    model.count = 0;
    model.durable = 0;
    model.recoveries++;
}

static void
on_durable(void *arg, u64 seq, bool failed)
{
    (void)arg;
    (void)failed;
    while (model.durable < model.count && model.history[model.durable].seq != 0 &&
           model.history[model.durable].seq <= seq)
        model.durable++;
}

/* ---- the subject ---- */

static MAY_YIELD u64
store_get(struct lsm *lsm, u32 key)
{
    char text[32];
    struct bytes name = key_bytes(key, text);
    struct lsm_value value = {0};
    status st = lsm_get(lsm, NULL, 0, hash_token(name), name, &value);
    if (status_is(st, ST_NOT_FOUND)) return 0;
    if (!ok(st)) {
        VIOLATED("get of key %u: %s", key, status_text(st));
        return 0;
    }
    u64 id = value_id(key, value.value);
    if (id == 0) VIOLATED("key %u has a value that was never written to it", key);
    lsm_value_release(&value);
    return id;
}

static u32
key_number(struct bytes name)
{
    char text[32];
    if (name.size < 5 || name.size >= sizeof(text)) return UINT32_MAX;
    memcpy(text, name.data, name.size);
    text[name.size] = '\0';
    return (u32)strtoul(strchr(text, text[0] == '{' ? '}' : ':') + 1, NULL, 10);
}

static MAY_YIELD void
store_scan(struct lsm *lsm, const u64 expected[static KEY_COUNT], const char *when)
{
    u64 found[KEY_COUNT] = {0};
    struct lsm_scan *scan;
    status st = lsm_scan_open(lsm, NULL, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan);
    if (!ok(st)) {
        VIOLATED("scan cannot be opened %s: %s", when, status_text(st));
        return;
    }
    u64 last_token = 0;
    for (u32 i = 0; i <= KEY_COUNT; i++) {
        u64 token;
        struct bytes name;
        struct lsm_value value = {0};
        st = lsm_scan_next(scan, true, &token, &name, &value);
        if (!ok(st)) break;
        u32 key = key_number(name);
        if (key >= KEY_COUNT) {
            VIOLATED("scan %s gives a key that was never written", when);
            break;
        }
        if (token != hash_token(name) || token < last_token)
            VIOLATED("scan %s is out of order at key %u", when, key);
        last_token = token;
        if (found[key] != 0) VIOLATED("scan %s gives key %u twice", when, key);
        found[key] = value_id(key, value.value);
        if (found[key] == 0) VIOLATED("scan %s: key %u has a foreign value", when, key);
    }
    if (!status_is(st, ST_END)) VIOLATED("scan %s ends with: %s", when, status_text(st));
    lsm_scan_close(scan);
    for (u32 key = 0; key < KEY_COUNT; key++) {
        if (found[key] == expected[key]) continue;
        VIOLATED("scan %s: key %u has id %llu, expected %llu", when, key,
                 (unsigned long long)found[key], (unsigned long long)expected[key]);
    }
}

static MAY_YIELD status
store_write(struct lsm *lsm, struct lsm_batch *batch, u8 *scratch)
{
    struct change_batch *entry = &model.history[model.count];
    entry->count =
        (u32)prng_range(&model.prng, 1, prng_chance(&model.prng, 1, 2) ? 1 : BATCH_OPS_MAX);
    entry->seq = 0;
    lsm_batch_clear(batch);
    for (u32 i = 0; i < entry->count; i++) {
        char text[32];
        struct change *change = &entry->changes[i];
        change->key = (u32)prng_below(&model.prng, KEY_COUNT);
        change->id = prng_chance(&model.prng, 1, 5) ? 0 : ++model.id_last;
        struct bytes name = key_bytes(change->key, text);
        bool added;
        if (change->id == 0) {
            added = lsm_batch_delete(batch, 0, hash_token(name), name);
        } else {
            size_t size = value_make(change->key, change->id, scratch);
            added = lsm_batch_put(batch, 0, hash_token(name), name, BYTES(scratch, size), 0);
        }
        if (!added) return ST_NO_MEMORY;
    }
    model.count++; /* from here on it may be found after a cut */
    u64 seq;
    status st = lsm_write(lsm, batch, &seq);
    if (!ok(st)) {
        model.count--; /* refused: it did nothing */
        return status_is(st, ST_OVERLOADED) ? ST_OK : st;
    }
    entry->seq = seq;
    if (model.flaw == FLAW_CLAIM_EARLY) model.durable = model.count;
    on_durable(NULL, lsm_durable_seq(lsm), false);
    return prng_chance(&model.prng, 1, 8) ? lsm_wait_durable(lsm, seq) : ST_OK;
}

static MAY_YIELD status
store_use(struct lsm *lsm)
{
    u64 expected[KEY_COUNT];
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    u8 *scratch = mem_alloc(io_budget(), VALUE_BYTES_MAX);
    if (scratch == NULL) return ST_NO_MEMORY;
    status st = ST_OK;
    u64 steps = prng_range(&model.prng, 50, 1200);
    for (u64 i = 0; ok(st) && i < steps && model.count < HISTORY_MAX; i++) {
        u64 draw = prng_below(&model.prng, 1000);
        if (draw < 800) {
            st = store_write(lsm, &batch, scratch);
        } else if (draw < 970) {
            u32 key = (u32)prng_below(&model.prng, KEY_COUNT);
            model_state(expected);
            u64 id = store_get(lsm, key);
            if (id != expected[key])
                VIOLATED("get of key %u has id %llu, expected %llu", key, (unsigned long long)id,
                         (unsigned long long)expected[key]);
        } else if (draw < 980) {
            model_state(expected);
            store_scan(lsm, expected, "while running");
        } else if (draw < 984) {
            st = lsm_flush(lsm);
        } else if (draw < 986) {
            st = lsm_compact(lsm);
        } else {
            fiber_sleep_ns(prng_below(&model.prng, 20 * NS_PER_MS));
        }
        if (model.violation[0] != '\0') break;
    }
    mem_free(io_budget(), scratch, VALUE_BYTES_MAX);
    lsm_batch_deinit(&batch);
    return st;
}

static status
process_main(void *arg)
{
    (void)arg;
    status st = io_dir_make(DIR_PATH);
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    st = io_dir_sync("/");
    if (!ok(st)) return st;
    struct lsm_place place = {.dir = DIR_PATH, .token_first = 0, .token_last = UINT64_MAX};
    struct lsm *lsm;
    st = lsm_open(&place, &model.options, &lsm);
    if (!ok(st)) return st;
    lsm_on_durable(lsm, on_durable, NULL);
    u64 found[KEY_COUNT];
    for (u32 key = 0; key < KEY_COUNT; key++)
        found[key] = store_get(lsm, key);
    model_recovered(found);
    store_scan(lsm, found, "after recovery");
    if (model.violation[0] == '\0') st = store_use(lsm);
    status closed = lsm_close(lsm);
    if (ok(st) && ok(closed)) model.durable = model.count;
    return ok(st) ? closed : st;
}

/* ---- one seed ---- */

static void
options_draw(struct sim_options *options, u64 seed)
{
    sim_options_default(options, seed);
    options->memory_bytes = MIB(48);
    options->buggify = prng_chance(&model.prng, 1, 2);
    if (prng_chance(&model.prng, 1, 2))
        options->disk.torn_ppm = (u32)prng_below(&model.prng, 200000);
    if (prng_chance(&model.prng, 1, 4)) options->disk.latency_ns_max = 20 * NS_PER_MS;

    struct lsm_options *lsm = &model.options;
    lsm_options_default(lsm);
    lsm->memory_bytes = MIB(32);
    lsm->memtable_bytes = KIB(64) << prng_below(&model.prng, 4);
    lsm->log_segment_bytes = KIB(64) << prng_below(&model.prng, 4);
    lsm->blob_threshold_bytes = prng_chance(&model.prng, 1, 2) ? 512 : 4096;
    lsm->codec_upper = (enum lsm_codec)prng_below(&model.prng, LSM_CODEC_COUNT);
    lsm->codec_last = (enum lsm_codec)prng_below(&model.prng, LSM_CODEC_COUNT);
    lsm->disk_reserve_bytes = 0;
}

static u64
seed_run(u64 seed, enum flaw flaw)
{
    memset(&model, 0, sizeof(model));
    model.flaw = flaw;
    prng_init(&model.prng, seed);
    struct sim_options options;
    options_draw(&options, seed);
    struct sim *sim = sim_new(&options);
    for (u32 i = 0; i <= CUTS && model.violation[0] == '\0'; i++) {
        if (i < CUTS) {
            bool io = prng_chance(&model.prng, 1, 2);
            /* Early ones fall into the recovery. */
            u64 n = prng_below(&model.prng, prng_chance(&model.prng, 1, 3) ? 100 : 3000);
            sim_crash_at(sim, io ? SIM_POINT_IO : SIM_POINT_EVENT, n);
        } else {
            sim_faults_clear(sim);
        }
        status st = sim_run(sim, 1, process_main, NULL);
        if (!ok(st) && !status_is(st, ST_CANCELED))
            VIOLATED("process ended with: %s", status_text(st));
    }
    u64 hash = sim_trace_hash(sim);
    if (model.violation[0] != '\0' && flaw == FLAW_NONE) {
        sim_log_dump(sim);
        print_error("seed %u: %s\n", (unsigned)seed, model.violation);
    }
    sim_free(sim);
    return hash;
}

static void
seeds_of_writes_and_power_cuts_lose_nothing(void **state)
{
    (void)state;
    const char *only = getenv("SIM_SEED");
    const char *many = getenv("SIM_SEEDS");
    u64 first = only != NULL ? strtoull(only, NULL, 10) : 1;
    u64 last = only != NULL ? first : many != NULL ? strtoull(many, NULL, 10) : SEED_COUNT;
    u64 recoveries = 0;
    for (u64 seed = first; seed <= last; seed++) {
        seed_run(seed, FLAW_NONE);
        assert_string_equal(model.violation, "");
        recoveries += model.recoveries;
    }
    if (only == NULL) assert_true(recoveries > last * 2);
}

static void
a_store_that_claims_durability_early_is_caught(void **state)
{
    (void)state;
    u32 caught = 0;
    for (u64 seed = 1; seed <= 40; seed++) {
        seed_run(seed, FLAW_CLAIM_EARLY);
        caught += model.violation[0] != '\0';
    }
    assert_true(caught > 0);
}

static void
the_same_seed_gives_the_same_trace(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++)
        assert_true(seed_run(seed, FLAW_NONE) == seed_run(seed, FLAW_NONE));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seeds_of_writes_and_power_cuts_lose_nothing),
        cmocka_unit_test(a_store_that_claims_durability_early_is_caught),
        cmocka_unit_test(the_same_seed_gives_the_same_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
