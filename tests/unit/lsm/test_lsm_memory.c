/* SPDX-License-Identifier: MIT
 *
 * test_lsm_memory.c -- a store whose files are in memory, at the limit of what it can hold: what is
 * written again and again is never refused, and what is deleted gives its room back.
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
#include "io/io.h"
#include "io/sim.h"
#include "lsm/lsm_internal.h"

#define MEMORY_BYTES MIB(16)
#define KEYS_MAX     100000u
#define ROOM_WAIT_NS (5 * NS_PER_S)

struct world {
    struct sim *sim;
    struct lsm *lsm;
    struct prng prng;
    u32 value_bytes;
    u32 held;               /* keys that a full store held */
    u32 versions[KEYS_MAX]; /* 0: not there */
    u8 value[KIB(64)];
};

static struct world world; /* large */

static void
world_init(u64 seed, u32 value_bytes)
{
    memset(&world, 0, sizeof(world));
    struct sim_options options;
    sim_options_default(&options, seed);
    options.memory_bytes = MEMORY_BYTES;
    world.sim = sim_new(&options);
    (void)sim_node_new(world.sim, "10.0.0.1");
    prng_init(&world.prng, seed);
    world.value_bytes = value_bytes;
}

/* As a node gives it to the store of a shard. */
static void
open_store(struct world *w)
{
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = io_budget()->limit_bytes / 16 * 11;
    struct lsm_place place = {.dir = ":memory:", .token_first = 0, .token_last = UINT64_MAX};
    CHECK(ok(lsm_open(&place, &options, &w->lsm)));
}

static struct bytes
key_of(u32 index, char text[static 32])
{
    return BYTES(text, (size_t)snprintf(text, 32, "key-%u", index));
}

static status
put(struct world *w, u32 index)
{
    CHECK(index < KEYS_MAX);
    u32 version = w->versions[index] + 1;
    for (u32 i = 0; i < w->value_bytes; i += 8) { /* nothing that can be compressed */
        u64 random = prng_u64(&w->prng);
        memcpy(w->value + i, &random, sizeof(random));
    }
    memcpy(w->value, &version, sizeof(version));
    char text[32];
    struct bytes key = key_of(index, text);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(w->value, w->value_bytes), 0));
    u64 seq;
    status st = lsm_write(w->lsm, &batch, &seq);
    lsm_batch_deinit(&batch);
    if (ok(st)) w->versions[index] = version;
    return st;
}

static status
del(struct world *w, u32 index)
{
    char text[32];
    struct bytes key = key_of(index, text);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete(&batch, 0, hash_token(key), key));
    u64 seq;
    status st = lsm_write(w->lsm, &batch, &seq);
    lsm_batch_deinit(&batch);
    if (ok(st)) w->versions[index] = 0;
    return st;
}

static void
check_all(struct world *w, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        char text[32];
        struct bytes key = key_of(i, text);
        struct lsm_value value = {0};
        status st = lsm_get(w->lsm, NULL, 0, hash_token(key), key, &value);
        if (w->versions[i] == 0) {
            CHECK(status_is(st, ST_NOT_FOUND));
            continue;
        }
        CHECK(ok(st) && value.value.size == w->value_bytes);
        CHECK(memcmp(value.value.data, &w->versions[i], sizeof(w->versions[i])) == 0);
        lsm_value_release(&value);
    }
}

/* New keys, from first on, until one is refused for good. */
static u32
fill(struct world *w, u32 first)
{
    u32 next = first;
    for (u32 refused = 0; refused < 20;) {
        status st = put(w, next);
        CHECK(ok(st) || status_is(st, ST_NO_SPACE));
        if (ok(st)) {
            next++;
            refused = 0;
        } else {
            refused++;
            fiber_sleep_ns(100 * NS_PER_MS);
        }
    }
    return next;
}

static void
wait_for_room(struct world *w, u32 index)
{
    u64 end = io_now_ns() + ROOM_WAIT_NS;
    status st;
    while (status_is(st = put(w, index), ST_NO_SPACE) && io_now_ns() < end)
        fiber_sleep_ns(100 * NS_PER_MS);
    CHECK(ok(st));
}

/* ---- written again and again ---- */

static status
overwrite_body(void *arg)
{
    struct world *w = arg;
    open_store(w);
    u32 keys = w->held;
    u32 rounds = FEWER(32);
    for (u64 i = 0; i < (u64)rounds * MEMORY_BYTES / 4 / w->value_bytes; i++) {
        status st = put(w, i < keys ? (u32)i : (u32)prng_below(&w->prng, keys));
        CHECK(ok(st));
        CHECK(io_budget()->used_bytes <= io_budget()->limit_bytes);
    }
    check_all(w, keys);
    return lsm_close(w->lsm);
}

/* Of a quarter of the memory, small values and such that are kept apart. */
static void
what_is_written_again_and_again_is_never_refused(void **state)
{
    (void)state;
    static const u32 sizes[] = {200, 1024, 6000, 40000};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        world_init(i + 1, sizes[i]);
        world.held = (u32)(MEMORY_BYTES / 4 / sizes[i]);
        assert_true(ok(sim_run(world.sim, 1, overwrite_body, &world)));
        sim_free(world.sim);
    }
}

/* ---- full, and deleted ---- */

static status
full_body(void *arg)
{
    struct world *w = arg;
    open_store(w);
    u32 count = w->held = fill(w, 0);
    check_all(w, count);
    for (u32 i = 0; i < count; i++)
        CHECK(ok(del(w, i)));
    wait_for_room(w, 0);

    /* It holds as much again, and when half of that goes, half of it comes. */
    u32 again = fill(w, 1);
    CHECK(again >= count - count / 8);
    for (u32 i = 0; i < again; i += 2)
        CHECK(ok(del(w, i)));
    check_all(w, again);
    wait_for_room(w, 0);
    u32 more = fill(w, again) - again;
    CHECK(more >= again / 2 - again / 8);
    check_all(w, again + more);
    return lsm_close(w->lsm);
}

static void
what_is_deleted_from_a_full_store_gives_its_room_back(void **state)
{
    (void)state;
    static const u32 sizes[] = {200, 1024, 6000};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        world_init(i + 1, sizes[i]);
        assert_true(ok(sim_run(world.sim, 1, full_body, &world)));
        u64 bytes = (u64)world.held * sizes[i];
        print_message("%u B: %u values, %u %% of the memory\n", sizes[i], world.held,
                      (u32)(bytes * 100 / MEMORY_BYTES));
        assert_true(bytes >= MEMORY_BYTES * 3 / 10);
        sim_free(world.sim);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_again_and_again_is_never_refused),
        cmocka_unit_test(what_is_deleted_from_a_full_store_gives_its_room_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
