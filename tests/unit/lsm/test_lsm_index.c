/* SPDX-License-Identifier: MIT
 *
 * test_lsm_index.c -- a store whose indexes use up its memory, as long keys of a few hash tags make
 * them: what would make more of them is refused before that, and what gives room back is taken,
 * whatever else there is no memory for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/hash.h"
#include "io/file.h"
#include "io/io.h"
#include "io/sim.h"
#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"

#define DIR       "/store"
#define TAGS      16u
#define KEY_BYTES 1000u
#define KEYS_MAX  60000u
#define BATCH     20u
#define WAIT_NS   (60 * NS_PER_S)

struct world {
    struct sim *sim;
    struct lsm_options options;
    struct lsm *lsm;
    u32 keys; /* written */
    u64 index_bytes;
};

static void
world_init(struct world *w, u64 seed, u64 memory_bytes)
{
    *w = (struct world){0};
    struct sim_options options;
    sim_options_default(&options, seed);
    w->sim = sim_new(&options);
    (void)sim_node_new(w->sim, "10.0.0.1");
    lsm_options_default(&w->options);
    w->options.memory_bytes = memory_bytes;
    w->options.codec_last = LSM_CODEC_NONE;
    w->options.disk_reserve_bytes = 0;
    w->options.scrub_bytes_per_s = 0;
}

static status
open_store(struct world *w)
{
    status st = io_dir_make(DIR);
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    st = io_dir_sync("/");
    if (!ok(st)) return st;
    struct lsm_place place = {.dir = DIR, .token_first = 0, .token_last = UINT64_MAX};
    return lsm_open(&place, &w->options, &w->lsm);
}

/* Long, and different at the end only: each block of a table has a whole one in the index. */
static struct bytes
key_of(u32 index, u64 *token_out)
{
    static char text[KEY_BYTES + 1];
    snprintf(text, sizeof(text), "{%u}%0*u", index % TAGS, (int)(KEY_BYTES - 5), index);
    struct bytes key = BYTES(text, strlen(text));
    *token_out = hash_token(key);
    return key;
}

/* BATCH of them from this one on. */
static status
write_keys(struct world *w, u32 first, bool deletes)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    for (u32 i = first; i < first + BATCH; i++) {
        u64 token;
        struct bytes key = key_of(i, &token);
        CHECK(deletes ? lsm_batch_delete(&batch, 0, token, key)
                      : lsm_batch_put(&batch, 0, token, key, BYTES("0123456789", 10), 0));
    }
    u64 seq;
    status st = lsm_write_until(w->lsm, &batch, io_now_ns() + 10 * NS_PER_S, &seq);
    lsm_batch_deinit(&batch);
    return st;
}

static status
delete_all(struct world *w, u16 keyspace)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    CHECK(lsm_batch_delete_range(&batch, keyspace, 0, UINT64_MAX));
    u64 seq;
    status st = lsm_write_until(w->lsm, &batch, io_now_ns() + 10 * NS_PER_S, &seq);
    lsm_batch_deinit(&batch);
    return st;
}

static status
get(struct world *w, u32 index)
{
    u64 token;
    struct bytes key = key_of(index, &token);
    struct lsm_value value;
    status st = lsm_get(w->lsm, NULL, 0, token, key, &value);
    if (ok(st)) lsm_value_release(&value);
    return st;
}

static u64
index_bytes(struct world *w)
{
    struct lsm_stats stats;
    lsm_stats_get(w->lsm, &stats);
    return stats.index_bytes;
}

/* Until writes have been refused for a second. */
static void
fill(struct world *w)
{
    u32 refused = 0;
    while (refused < 10 && w->keys < KEYS_MAX) {
        status st = write_keys(w, w->keys, false);
        if (ok(st)) {
            w->keys += BATCH;
            refused = 0;
            continue;
        }
        CHECK(status_is(st, ST_FULL) || status_is(st, ST_NO_MEMORY) ||
              status_is(st, ST_OVERLOADED));
        refused += status_is(st, ST_FULL);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    CHECK(refused == 10);
}

/* Until one is taken. */
static void
wait_for_room(struct world *w)
{
    u64 end = io_now_ns() + WAIT_NS;
    status st;
    while (!ok(st = write_keys(w, KEYS_MAX, false)) && io_now_ns() < end)
        fiber_sleep_ns(100 * NS_PER_MS);
    CHECK(ok(st));
}

static status
full_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    fill(w);
    CHECK(w->keys > 1000);
    /* Nothing is stuck: what was taken can be flushed. */
    CHECK(!w->lsm->no_memory_flush);
    CHECK(ok(lsm_flush(w->lsm)));
    for (u32 i = 0; i < w->keys; i += 97)
        CHECK(ok(get(w, i)));
    for (u32 i = 0; i < w->keys; i += BATCH) {
        u64 end = io_now_ns() + WAIT_NS;
        status st;
        /* A merge may have what a flush needs now, and be slow. */
        while (!ok(st = write_keys(w, i, true)) && io_now_ns() < end)
            fiber_sleep_ns(20 * NS_PER_MS);
        CHECK(ok(st));
    }
    wait_for_room(w);

    u32 before = w->keys;
    w->keys = 0;
    fill(w);
    CHECK(w->keys > before / 2);
    CHECK(ok(delete_all(w, 0)));
    CHECK(status_is(get(w, 0), ST_NOT_FOUND));
    wait_for_room(w);
    CHECK(lsm_check(w->lsm));
    return lsm_close(w->lsm);
}

static void
a_store_full_of_indexes_refuses_writes_and_takes_deletes(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 1, MIB(8));
    assert_true(ok(sim_run(w.sim, 1, full_body, &w)));
    sim_free(w.sim);
}

static status
border_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    u64 *bytes = &w->lsm->levels->table_stats.index_bytes, own = *bytes;
    u64 limit = w->lsm->budget.limit_bytes / 8 * LSM_INDEX_EIGHTHS;
    *bytes = limit; /* as if there were tables */
    CHECK(ok(write_keys(w, 0, false)));
    *bytes = limit + 1;
    CHECK(status_is(write_keys(w, 0, false), ST_FULL));
    fiber_sleep_ns(NS_PER_S);
    *bytes = limit - limit / 16;
    CHECK(status_is(write_keys(w, 0, false), ST_FULL));
    *bytes = limit - limit / 8;
    CHECK(ok(write_keys(w, 0, false)));
    fiber_sleep_ns(NS_PER_S);
    *bytes = limit;
    CHECK(ok(write_keys(w, 0, false)));
    *bytes = own;
    return lsm_close(w->lsm);
}

static void
a_store_is_not_full_of_indexes_and_has_room_by_turns(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 6, MIB(16));
    assert_true(ok(sim_run(w.sim, 1, border_body, &w)));
    sim_free(w.sim);
}

/* A store that has more memory than it will have, and something in its log. */
static status
rich_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    while (w->keys < 14000) {
        status st = write_keys(w, w->keys, false);
        w->keys += ok(st) ? BATCH : 0;
        if (!ok(st)) fiber_sleep_ns(10 * NS_PER_MS);
    }
    CHECK(ok(lsm_compact(w->lsm)));
    w->index_bytes = index_bytes(w);
    for (u32 i = 0; i < 100 / BATCH; i++, w->keys += BATCH)
        CHECK(ok(write_keys(w, w->keys, false)));
    CHECK(ok(lsm_wait_durable(w->lsm, lsm_seq_last(w->lsm))));
    sim_crash_at(w->sim, SIM_POINT_EVENT, 0);
    fiber_sleep_ns(10 * NS_PER_S);
    return ST_OK;
}

/* Its indexes have nearly all of its memory, and somebody takes what a flush would need. */
static status
poor_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    struct budget *budget = &w->lsm->budget;
    for (u32 i = 0; i < w->keys; i += 97)
        CHECK(ok(get(w, i)));
    CHECK(status_is(write_keys(w, w->keys, false), ST_FULL));
    CHECK(ok(delete_all(w, 1))); /* the log has its buffers from here on */
    CHECK(ok(lsm_wait_durable(w->lsm, lsm_seq_last(w->lsm))));
    u64 taken = budget_available(budget) - KIB(40); /* for readers */
    CHECK(budget_take(budget, taken));
    lsm_flush_request(w->lsm);
    u64 end = io_now_ns() + NS_PER_S;
    while (!w->lsm->no_memory_flush && io_now_ns() < end)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(w->lsm->no_memory_flush);
    CHECK(status_is(write_keys(w, w->keys, false), ST_FULL));
    CHECK(ok(get(w, BATCH)));
    CHECK(ok(delete_all(w, 0)));
    CHECK(status_is(get(w, BATCH), ST_NOT_FOUND));
    budget_give(budget, taken);
    wait_for_room(w);
    CHECK(!w->lsm->no_memory_flush);
    return lsm_close(w->lsm);
}

static void
a_store_without_memory_for_its_flush_takes_what_deletes_everything(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 2, MIB(16));
    (void)ok(sim_run(w.sim, 1, rich_body, &w));
    assert_true(sim_crashed(w.sim));
    sim_faults_clear(w.sim);
    w.options.memory_bytes = w.index_bytes + MIB(2);
    assert_true(ok(sim_run(w.sim, 1, poor_body, &w)));
    sim_free(w.sim);
}

/* Until no more are taken. Only they find the memory that somebody has taken, no flush does. */
static status
fill_with_deletes(struct world *w, u16 keyspace, u64 *taken)
{
    struct budget *budget = &w->lsm->budget;
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    for (u32 i = 0; i < BATCH; i++) {
        u64 token;
        struct bytes key = key_of(i, &token);
        CHECK(lsm_batch_delete(&batch, keyspace, token, key));
    }
    status st = ST_OK;
    u64 end = io_now_ns() + WAIT_NS;
    while (!status_is(st, ST_NO_MEMORY) && io_now_ns() < end) {
        budget_give(budget, *taken);
        u64 seq;
        st = lsm_write_try(w->lsm, &batch, &seq);
        *taken = budget_available(budget) - KIB(40); /* for readers */
        CHECK(budget_take(budget, *taken));
        fiber_sleep_ns(NS_PER_MS);
    }
    lsm_batch_deinit(&batch);
    return st;
}

/* A flush finds no memory, and deletes have filled the memtable meanwhile. */
static status
full_memtable_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (; w->keys < 10 * BATCH; w->keys += BATCH)
        CHECK(ok(write_keys(w, w->keys, false)));
    CHECK(ok(lsm_wait_durable(w->lsm, lsm_seq_last(w->lsm))));
    struct budget *budget = &w->lsm->budget;
    u64 taken = budget_available(budget) - KIB(40);
    CHECK(budget_take(budget, taken));
    lsm_flush_request(w->lsm);
    u64 end = io_now_ns() + NS_PER_S;
    while (!w->lsm->no_memory_flush && io_now_ns() < end)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(w->lsm->no_memory_flush);

    /* Those of two keyspaces, so that it is not only the next delete that does not fit. */
    for (u16 keyspace = 0; keyspace < 2; keyspace++)
        CHECK(status_is(fill_with_deletes(w, keyspace, &taken), ST_NO_MEMORY));
    u64 active = 0;
    for (u32 i = 0; i < 2; i++)
        active += memtable_used_bytes(w->lsm->keyspaces[i].active);
    CHECK(active >= w->lsm->memtable_limit_bytes && w->lsm->no_memory_flush);
    CHECK(ok(delete_all(w, 0)));
    CHECK(status_is(get(w, BATCH), ST_NOT_FOUND));
    budget_give(budget, taken);
    wait_for_room(w);
    return lsm_close(w->lsm);
}

static void
a_full_memtable_keeps_no_range_from_being_deleted(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 4, MIB(16));
    assert_true(ok(sim_run(w.sim, 1, full_memtable_body, &w)));
    assert_true(sim_mark_count(w.sim, "lsm.write.memtable_full") > 0);
    sim_free(w.sim);
}

/* All memory is with caches, or with somebody else, when it closes. */
static status
close_body(void *arg)
{
    struct world *w = arg;
    CHECK(ok(open_store(w)));
    for (; w->keys < 100 * BATCH; w->keys += BATCH)
        CHECK(ok(write_keys(w, w->keys, false)));
    CHECK(ok(lsm_flush(w->lsm)));
    CHECK(ok(write_keys(w, 0, false)));
    CHECK(ok(lsm_wait_durable(w->lsm, lsm_seq_last(w->lsm))));
    for (u32 i = 0; i < w->keys; i++)
        CHECK(ok(get(w, i)));
    struct cache_stats blocks;
    block_cache_stats(w->lsm->block_cache, &blocks);
    CHECK(blocks.bytes > MIB(1));
    u64 taken = budget_available(io_budget());
    CHECK(budget_take(io_budget(), taken));
    status st = lsm_close(w->lsm);
    budget_give(io_budget(), taken);
    return st;
}

static void
a_store_that_closes_gives_what_it_caches_to_its_last_flush(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 5, MIB(16));
    assert_true(ok(sim_run(w.sim, 1, close_body, &w)));
    assert_true(sim_mark_count(w.sim, "lsm.flush.no_memory") > 0);
    sim_free(w.sim);
}

static status
reopen_body(void *arg)
{
    struct world *w = arg;
    status st = open_store(w);
    if (!ok(st)) return st;
    for (u32 i = 0; i < w->keys; i += 97)
        CHECK(ok(get(w, i)));
    (void)ok(lsm_close(w->lsm)); /* what it has no memory to flush stays in its log */
    return ST_OK;
}

/* With ever less memory: it opens, or says that memory is what it lacks; never anything else. */
static void
a_store_opens_with_hardly_more_memory_than_its_indexes_need(void **state)
{
    (void)state;
    struct world w;
    world_init(&w, 3, MIB(16));
    (void)ok(sim_run(w.sim, 1, rich_body, &w));
    assert_true(sim_crashed(w.sim));
    sim_faults_clear(w.sim);
    status st = ST_OK;
    u64 least = 0;
    for (u64 more = MIB(3); ok(st); more -= KIB(128)) {
        w.options.memory_bytes = w.index_bytes + more;
        st = sim_run(w.sim, 1, reopen_body, &w);
        if (ok(st)) least = more;
        if (more == 0) break;
    }
    assert_true(ok(st) || status_is(st, ST_NO_MEMORY));
    print_message("indexes of %llu KiB, opened with %llu KiB more\n",
                  (unsigned long long)w.index_bytes / 1024, (unsigned long long)least / 1024);
    assert_true(least > 0 && least <= MIB(1) + KIB(512));
    assert_true(sim_mark_count(w.sim, "lsm.levels.indexes_too_large") > 0);
    w.options.memory_bytes = MIB(16);
    assert_true(ok(sim_run(w.sim, 1, reopen_body, &w)));
    sim_free(w.sim);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_store_full_of_indexes_refuses_writes_and_takes_deletes),
        cmocka_unit_test(a_store_is_not_full_of_indexes_and_has_room_by_turns),
        cmocka_unit_test(a_store_without_memory_for_its_flush_takes_what_deletes_everything),
        cmocka_unit_test(a_full_memtable_keeps_no_range_from_being_deleted),
        cmocka_unit_test(a_store_that_closes_gives_what_it_caches_to_its_last_flush),
        cmocka_unit_test(a_store_opens_with_hardly_more_memory_than_its_indexes_need),
    };
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* run one by its name */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
