/* SPDX-License-Identifier: MIT
 *
 * test_node.c -- what a node promises over several shards, with every order of turns and mails.
 *
 *     SIM_SEED=17 test_node          one seed again
 *     SIM_SEEDS=500 test_node        more seeds
 *     test_node NAME                 one test
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../fewer.h"
#include "cluster_rig.h"
#include "io/sim_internal.h"
#include "lsm/lsm_internal.h"
#include "server/cut.h"
#include "server/request.h"
#include "server/scan_page.h"
#include "server/session.h"

#define BUSY "-BUSY This node is overloaded, try again later\r\n"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SEED_COUNT    5u
#define REFUSAL_SEEDS 3u
#else
#define SEED_COUNT    60u
#define REFUSAL_SEEDS 15u
#endif

/* What the seeds of a test have met, so that none passes for want of what it is about. */
static struct {
    u64 looks;          /* that saw a chain in the middle of its life */
    u64 lapsed, shared; /* rounds of cuts */
    u64 overtaken;      /* writes that found an earlier read left */
    u64 untold, told;   /* ends of MONITOR that shards were not told of, and that they found out */
    u64 parted;         /* pages of SCAN that were too small for the keys of one rank */
    u64 trains;         /* plain reads done together at another shard */
} met;

/* True when all seeds ran: then everything must have been met. */
static bool
each_seed(void (*run)(u64 seed))
{
    memset(&met, 0, sizeof(met));
    const char *one = getenv("SIM_SEED"), *count = getenv("SIM_SEEDS");
    u64 first = one != NULL ? strtoull(one, NULL, 10) : 1;
    u64 last = one != NULL ? first : count != NULL ? strtoull(count, NULL, 10) : SEED_COUNT;
    for (u64 seed = first; seed <= last; seed++)
        run(seed);
    return one == NULL;
}

/* ---- one instant over all shards ---- */

/* A chain: link n is sent when link n - 1 was acknowledged, and they lie on the shards in turn. So
 * whoever sees link n of one instant sees all links before it. Links are deleted from the front, so
 * there is a first one as well. */

#define CHAINS      4u
#define CHAIN_LINKS 60u
#define CHAIN_KEEP  20u
#define LOOKERS     3u

struct chain {
    u32 number;
    u32 links;   /* acknowledged */
    u32 deleted; /* acknowledged */
};

struct chains {
    struct chain chains[CHAINS];
    u64 seed;
    u32 writing;
};

static void
link_key(const struct rig *rig, const struct chain *chain, u32 n, char *out, size_t size)
{
    char name[32];
    snprintf(name, sizeof(name), "c%u:%u", chain->number, n);
    rig_key_of_shard(rig, (n + chain->number) % rig->shard_count, name, out, size);
}

static MAY_YIELD void
write_chain(struct rig *rig, void *arg)
{
    struct chain *chain = arg;
    struct chains *all = rig->arg;
    struct rig_client client;
    rig_connect(rig, &client);
    char key[64];
    for (u32 n = 1; n <= CHAIN_LINKS; n++) {
        link_key(rig, chain, n, key, sizeof(key));
        CHECK(rig_is(rig_call(&client, "SET %s v", key), "+OK\r\n"));
        chain->links = n;
        if (n <= CHAIN_KEEP) continue;
        link_key(rig, chain, n - CHAIN_KEEP, key, sizeof(key));
        CHECK(rig_is(rig_call(&client, "DEL %s", key), ":1\r\n"));
        chain->deleted = n - CHAIN_KEEP;
    }
    all->writing--;
    rig_disconnect(&client);
}

/* The keys of a reply of KEYS must be links first..last of each chain. */
static void
check_cut(const struct chains *all, struct bytes reply, const struct chain *before)
{
    bool seen[CHAINS][CHAIN_LINKS + 1] = {{false}};
    struct resp_reply head;
    size_t at;
    CHECK(ok(resp_read(reply, &head, &at)) && head.kind == RESP_REPLY_ARRAY);
    for (i64 i = 0; i < head.integer; i++) {
        struct resp_reply one;
        size_t consumed;
        CHECK(ok(resp_read(BYTES(reply.data + at, reply.size - at), &one, &consumed)));
        at += consumed;
        unsigned chain, n;
        char text[64];
        snprintf(text, sizeof(text), "%.*s", (int)one.text.size, (const char *)one.text.data);
        CHECK(sscanf(text, "{%*u}c%u:%u", &chain, &n) == 2 && chain < CHAINS && n <= CHAIN_LINKS);
        CHECK(!seen[chain][n]);
        seen[chain][n] = true;
    }
    for (u32 i = 0; i < CHAINS; i++) {
        u32 first = 0, last = 0;
        bool whole = true;
        for (u32 n = 1; n <= CHAIN_LINKS; n++) {
            if (!seen[i][n]) continue;
            if (first == 0) first = n;
            if (last != 0 && last != n - 1) whole = false;
            last = n;
        }
        /* What was acknowledged before the look is there, or gone. */
        bool fresh = last >= before[i].links && (first == 0 || first > before[i].deleted);
        bool short_enough = last == 0 || last - first <= CHAIN_KEEP;
        if (!whole || !fresh || !short_enough) {
            fprintf(stderr, "seed %llu: chain %u: links %u to %u%s, %u acknowledged before\n",
                    (unsigned long long)all->seed, i, first, last, whole ? "" : " with gaps",
                    before[i].links);
            CHECK(!"not one instant");
        }
        if (last > 0 && last < CHAIN_LINKS) met.looks++;
    }
}

static MAY_YIELD void
look_at_chains(struct rig *rig, void *arg)
{
    (void)arg;
    struct chains *all = rig->arg;
    struct rig_client client;
    rig_connect(rig, &client);
    while (all->writing > 0) {
        struct chain before[CHAINS];
        memcpy(before, all->chains, sizeof(before));
        struct bytes reply = rig_call(&client, "KEYS *");
        if (!rig_is(reply, BUSY)) check_cut(all, reply, before);
    }
    rig_disconnect(&client);
}

/* How long writes were held on a shard. No snapshot stays there: those of a KEYS whose reply has
 * been sent are closed soon. */
struct held {
    u64 count, sum_ns, max_ns;
};

static MAY_YIELD void
look_at_holds(struct shard *shard, void *arg)
{
    struct held *held = arg;
    static struct lsm_stats stats;
    lsm_stats_get(shard->lsm, &stats);
    for (u32 i = 0; i < 100 && stats.snapshots_open != 0; i++) {
        fiber_sleep_ns(10 * NS_PER_MS);
        lsm_stats_get(shard->lsm, &stats);
    }
    *held = (struct held){.count = stats.writes_held_ns.count,
                          .sum_ns = stats.writes_held_ns.sum,
                          .max_ns = stats.writes_held_ns.max};
    CHECK(stats.snapshots_open == 0);
}

static MAY_YIELD void
chains_story(struct rig *rig)
{
    struct chains *all = rig->arg;
    for (u32 i = 0; i < CHAINS; i++) {
        all->chains[i].number = i;
        all->writing++;
        rig_spawn(rig, write_chain, &all->chains[i]);
    }
    for (u32 i = 0; i < LOOKERS; i++)
        rig_spawn(rig, look_at_chains, NULL);
    rig_wait_spawned(rig);
    met.lapsed += sim_mark_count(rig->sim, "server.cut.lapsed");
    met.shared += sim_mark_count(rig->sim, "server.cut.shared");
    for (u32 i = 0; i < rig->shard_count; i++) {
        struct held held;
        rig_on_shard(rig, i, look_at_holds, &held);
    }
}

static void
run_chains(u64 seed)
{
    struct chains all = {.seed = seed};
    struct rig rig = {.shard_count = 2 + (u32)(seed % 3), .story = chains_story, .arg = &all};
    sim_options_default(&rig.options, seed);
    if (seed % 4 == 1) rig.options.turn_ns_max = NS_PER_MS;
    if (seed % 4 == 2) rig.options.mail_ns_max = 5 * NS_PER_MS;
    if (seed % 4 == 3) { /* holds lapse */
        rig.options.mail_ns_max = 50 * NS_PER_MS;
        rig.options.turn_long_ppm = 5000;
    }
    rig_run(&rig);
}

static MAY_YIELD void
late_story(struct rig *rig)
{
    struct rig_client client;
    rig_connect(rig, &client);
    CHECK(rig_is(rig_call(&client, "SET k v"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "KEYS *"), BUSY));
    for (u32 i = 0; i < rig->shard_count; i++) {
        struct held held;
        rig_on_shard(rig, i, look_at_holds, &held);
        CHECK(held.count == CUT_TRIES && held.max_ns < CUT_HOLD_NS_MAX + 5 * NS_PER_MS);
    }
    CHECK(rig_is(rig_call(&client, "SET k w"), "+OK\r\n"));
    rig_disconnect(&client);
}

static void
a_shard_that_answers_late_holds_up_writes_for_a_bounded_time(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 3, .story = late_story};
    sim_options_default(&rig.options, 1);
    rig.options.mail_ns_min = 120 * NS_PER_MS;
    rig.options.mail_ns_max = 150 * NS_PER_MS;
    rig_run(&rig);
}

static MAY_YIELD void
ask_for_cuts(struct rig *rig, void *arg)
{
    (void)arg;
    struct rig_client client;
    rig_connect(rig, &client);
    for (u32 i = 0; i < 100; i++)
        CHECK(rig_is(rig_call(&client, "KEYS nobody"), "*0\r\n"));
    rig_disconnect(&client);
}

static MAY_YIELD void
crowd_story(struct rig *rig)
{
    u64 start_ns = io_now_ns();
    for (u32 i = 0; i < RIG_SPAWNS_MAX; i++)
        rig_spawn(rig, ask_for_cuts, NULL);
    rig_wait_spawned(rig);
    u64 elapsed_ns = io_now_ns() - start_ns;
    for (u32 i = 0; i < rig->shard_count; i++) {
        struct held held;
        rig_on_shard(rig, i, look_at_holds, &held);
        CHECK(held.count > 10 && held.count < 100 * RIG_SPAWNS_MAX);
        CHECK(held.sum_ns <= elapsed_ns / CUT_REST);
    }
}

static void
writes_go_on_however_many_ask_for_snapshots(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 2, .story = crowd_story};
    sim_options_default(&rig.options, 2);
    rig_run(&rig);
}

static void
keys_is_one_instant_over_all_shards(void **state)
{
    (void)state;
    if (!each_seed(run_chains)) return;
    assert_true(met.looks > 100 && met.lapsed > 0 && met.shared > 0);
}

/* ---- KEYS and expiry ---- */

/* Mails take so long that a key of the first shard expires between the pass that counts it and the
 * one that sends it, or before, or after: the time to live decides. */
static MAY_YIELD void
expiry_story(struct rig *rig)
{
    struct rig_client client;
    rig_connect(rig, &client);
    char stays[64], goes[64];
    u32 shown = 0, left_out = 0;
    for (u32 round = 0; round < 60; round++) {
        CHECK(rig_call(&client, "HELLO %u", 2 + round % 2).size > 0);
        for (u32 shard = 0; shard < rig->shard_count; shard++) {
            rig_key_of_shard(rig, shard, "stays", stays, sizeof(stays));
            rig_key_of_shard(rig, shard, "goes", goes, sizeof(goes));
            CHECK(rig_is(rig_call(&client, "SET %s v", stays), "+OK\r\n"));
            CHECK(rig_is(rig_call(&client, "SET %s v PX %u", goes, 10 + 10 * round), "+OK\r\n"));
        }
        struct bytes reply = rig_call(&client, "KEYS *");
        struct resp_reply one;
        size_t at;
        CHECK(ok(resp_read(reply, &one, &at)) && one.kind == RESP_REPLY_ARRAY);
        i64 count = one.integer;
        u32 permanent = 0;
        for (i64 i = 0; i < count; i++) {
            size_t consumed;
            CHECK(ok(resp_read(BYTES(reply.data + at, reply.size - at), &one, &consumed)));
            at += consumed;
            CHECK(one.kind == RESP_REPLY_BULK); /* no null */
            if (one.text.data[one.text.size - 5] == 's') permanent++;
        }
        CHECK(at == reply.size && permanent == rig->shard_count);
        shown += (u32)count - permanent;
        left_out += 2 * permanent - (u32)count;
        CHECK(rig_is(rig_call(&client, "PING"), "+PONG\r\n"));
    }
    CHECK(shown > 20 && left_out > 20);
    rig_disconnect(&client);
}

static void
keys_shows_no_nulls_for_keys_that_expire_meanwhile(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 3, .story = expiry_story};
    sim_options_default(&rig.options, 3);
    rig.options.mail_ns_min = 5 * NS_PER_MS;
    rig.options.mail_ns_max = 20 * NS_PER_MS;
    rig_run(&rig);
}

/* ---- WATCH of an absent key whose traces are gone ---- */

static MAY_YIELD void
compact(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(ok(lsm_compact(shard->lsm)));
}

static MAY_YIELD void
flush_and_wait(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(ok(lsm_flush(shard->lsm)));
    fiber_sleep_ns(60 * NS_PER_S); /* tables of nothing but expired values are dropped */
}

static MAY_YIELD void
look_for_traces(struct shard *shard, void *arg)
{
    struct bytes *key = arg;
    struct lsm_value value = {0};
    status st = lsm_get(shard->lsm, NULL, 0, hash_token(*key), *key, &value);
    CHECK(status_is(st, ST_NOT_FOUND) && value.seq == 0);
}

enum gone {
    GONE_DELETED,
    GONE_EXPIRED,
    GONE_EXPIRED_TABLE,
    GONE_FLUSHED,
    GONE_FLUSHED_TABLE,
    GONE_OTHERS,  /* other keys: the watched one stays untouched */
    GONE_EARLIER, /* it was absent already: FLUSHALL changes nothing of it */
    GONE_COUNT
};

static MAY_YIELD void
watch_story(struct rig *rig)
{
    struct rig_client watcher, other;
    rig_connect(rig, &watcher);
    rig_connect(rig, &other);
    for (u32 how = 0; how < GONE_COUNT; how++) {
        for (u32 shard = 0; shard < rig->shard_count; shard++) {
            char key[64], name[16];
            snprintf(name, sizeof(name), "%u", how);
            rig_key_of_shard(rig, shard, name, key, sizeof(key));
            if (how == GONE_EARLIER) {
                CHECK(rig_is(rig_call(&other, "SET %s v", key), "+OK\r\n"));
                CHECK(rig_is(rig_call(&other, "FLUSHALL"), "+OK\r\n"));
            }
            CHECK(rig_is(rig_call(&watcher, "WATCH %s", key), "+OK\r\n"));
            const char *life = how == GONE_EXPIRED || how == GONE_EXPIRED_TABLE ? " PX 20" : "";
            if (how == GONE_EARLIER) {
                CHECK(rig_is(rig_call(&other, "SET %s2 v", key), "+OK\r\n"));
                CHECK(rig_is(rig_call(&other, "FLUSHALL"), "+OK\r\n"));
            } else if (how == GONE_OTHERS) {
                for (u32 i = 0; i < 20; i++) {
                    CHECK(rig_is(rig_call(&other, "SET %s%u v", key, i), "+OK\r\n"));
                    CHECK(rig_is(rig_call(&other, "DEL %s%u", key, i), ":1\r\n"));
                }
            } else {
                CHECK(rig_is(rig_call(&other, "SET %s v%s", key, life), "+OK\r\n"));
            }
            if (how == GONE_DELETED) CHECK(rig_is(rig_call(&other, "DEL %s", key), ":1\r\n"));
            if (how == GONE_FLUSHED_TABLE) rig_on_shard(rig, shard, compact, NULL);
            if (how == GONE_FLUSHED || how == GONE_FLUSHED_TABLE)
                CHECK(rig_is(rig_call(&other, "FLUSHALL"), "+OK\r\n"));
            fiber_sleep_ns(30 * NS_PER_MS);
            if (how == GONE_EXPIRED_TABLE || how == GONE_FLUSHED_TABLE)
                rig_on_shard(rig, shard, flush_and_wait, NULL);
            else if (how != GONE_EARLIER)
                rig_on_shard(rig, shard, compact, NULL);
            struct bytes bytes = BYTES(key, strlen(key));
            if (how != GONE_EARLIER) rig_on_shard(rig, shard, look_for_traces, &bytes);
            CHECK(rig_is(rig_call(&watcher, "MULTI"), "+OK\r\n"));
            CHECK(rig_is(rig_call(&watcher, "SET %s mine", key), "+QUEUED\r\n"));
            struct bytes reply = rig_call(&watcher, "EXEC");
            bool done = rig_is(reply, "*1\r\n+OK\r\n");
            CHECK(done || rig_is(reply, "*-1\r\n"));
            if (done != (how == GONE_OTHERS || how == GONE_EARLIER)) {
                fprintf(stderr, "case %u on shard %u: %s\n", how, shard, done ? "done" : "aborted");
                CHECK(!"EXEC decides wrongly");
            }
        }
    }
    rig_disconnect(&other);
    rig_disconnect(&watcher);
}

static void
exec_aborts_when_a_key_came_and_went_without_a_trace(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 2, .story = watch_story};
    sim_options_default(&rig.options, 4);
    rig_run(&rig);
}

/* ---- FLUSHALL and commands that wait between reading and writing ---- */

static MAY_YIELD void
flush_store(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(ok(lsm_flush(shard->lsm)));
}

struct flushes {
    u32 rounds;
    u32 refused, before, after; /* RENAMENX: before or after FLUSHALL */
};

/* RENAMENX reads two cold keys, one after the other, and then writes; FLUSHALL comes meanwhile. */
static MAY_YIELD void
flush_story(struct rig *rig)
{
    struct rig_client renamer, flusher;
    rig_connect(rig, &renamer);
    rig_connect(rig, &flusher);
    struct flushes *count = rig->arg;
    for (u32 round = 0; round < count->rounds; round++) {
        char from[64];
        u32 shard = round % rig->shard_count;
        rig_key_of_shard(rig, shard, "from", from, sizeof(from));
        CHECK(rig_is(rig_call(&renamer, "SET %s v", from), "+OK\r\n"));
        rig_on_shard(rig, shard, flush_store, NULL);
        CHECK(rig_is(rig_call(&renamer, "SET %s2 v", from), "+OK\r\n"));
        CHECK(rig_is(rig_call(&renamer, "DEL %s2", from), ":1\r\n"));
        rig_on_shard(rig, shard, flush_store, NULL);
        bool first = round % 5 == 4;
        if (first) rig_send(&flusher, "FLUSHALL");
        if (first) fiber_sleep_ns(round / 5 * NS_PER_MS / 4);
        rig_send(&renamer, "RENAMENX %s %s2", from, from);
        if (!first) fiber_sleep_ns(round / 2 * 100 * NS_PER_MS);
        struct bytes reply = first ? rig_read(&flusher) : rig_call(&flusher, "FLUSHALL");
        bool flushed = rig_is(reply, "+OK\r\n");
        CHECK(flushed || rig_is(reply, BUSY));
        bool renamed = rig_is(rig_read(&renamer), ":1\r\n");
        bool there = rig_is(rig_call(&renamer, "EXISTS %s2", from), ":1\r\n");
        /* One after the other, in either order. */
        if (flushed ? there : !renamed || !there) {
            fprintf(stderr, "round %u: %s, %s, and then the key is %s\n", round,
                    renamed ? "renamed" : "not renamed", flushed ? "flushed" : "not flushed",
                    there ? "there" : "not there");
            CHECK(!"no order explains it");
        }
        *(!flushed ? &count->refused : renamed ? &count->before : &count->after) += 1;
        CHECK(rig_is(rig_call(&flusher, "FLUSHALL"), "+OK\r\n"));
    }
    rig_disconnect(&flusher);
    rig_disconnect(&renamer);
}

static struct flushes
run_flushes(u32 rounds, u64 disk_ms)
{
    struct flushes count = {.rounds = rounds};
    struct rig rig = {.shard_count = 2, .story = flush_story, .arg = &count};
    sim_options_default(&rig.options, 5);
    rig.options.disk.latency_ns_min = disk_ms * NS_PER_MS;
    rig.options.disk.latency_ns_max = disk_ms * NS_PER_MS * 3 / 2;
    rig_run(&rig);
    return count;
}

static void
flushall_takes_its_turn_among_commands_that_wait(void **state)
{
    (void)state;
    struct flushes count = run_flushes(30, 300);
    assert_true(count.before > 0 && count.after > 0 && count.refused == 0);
}

static void
flushall_is_refused_when_commands_wait_too_long(void **state)
{
    (void)state;
    struct flushes count = run_flushes(6, 4000);
    assert_true(count.refused > 0);
}

/* Longer than FLUSHALL waits for locks. */
static MAY_YIELD void
locks_hold(struct shard *shard, void *arg)
{
    bool *held = arg;
    CHECK(ok(keylock_acquire_all(&shard->locks, io_now_ns() + NS_PER_S)));
    *held = true;
    fiber_sleep_ns(8 * NS_PER_S);
    keylock_release_all(&shard->locks);
}

static MAY_YIELD void
second_shard_holds(struct rig *rig, void *arg)
{
    rig_on_shard(rig, 1, locks_hold, arg);
}

static MAY_YIELD void
half_flush_story(struct rig *rig)
{
    struct rig_client client;
    char keys[2][64];
    bool held = false;
    rig_connect(rig, &client);
    for (u32 i = 0; i < 2; i++) {
        rig_key_of_shard(rig, i, "key", keys[i], sizeof(keys[i]));
        CHECK(rig_is(rig_call(&client, "SET %s v", keys[i]), "+OK\r\n"));
    }
    rig_spawn(rig, second_shard_holds, &held);
    while (!held)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(rig_is(rig_call(&client, "FLUSHALL"), BUSY));
    CHECK(rig_is(rig_call(&client, "EXISTS %s", keys[0]), ":0\r\n"));
    CHECK(rig_is(rig_call(&client, "EXISTS %s", keys[1]), ":1\r\n"));
    rig_wait_spawned(rig);
    CHECK(rig_is(rig_call(&client, "FLUSHALL"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "EXISTS %s", keys[1]), ":0\r\n"));
    rig_disconnect(&client);
}

static void
flushall_that_one_shard_refuses_has_emptied_those_before(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 2, .story = half_flush_story};
    sim_options_default(&rig.options, 6);
    rig_run(&rig);
}

/* ---- what expires while a command waits ---- */

struct expiry_race {
    bool writes;    /* the transaction */
    bool seen_gone; /* somebody saw the key expired before the transaction was there */
};

static MAY_YIELD void
look_for_end(struct rig *rig, void *arg)
{
    struct expiry_race *race = arg;
    struct rig_client client;
    char key[64];
    rig_key_of_shard(rig, 0, "k", key, sizeof(key));
    rig_connect(rig, &client);
    fiber_sleep_ns(250 * NS_PER_MS);
    bool gone = rig_is(rig_call(&client, "GET %s:short", key), "$-1\r\n");
    bool undone = rig_is(rig_call(&client, "EXISTS %s:done", key), ":0\r\n");
    race->seen_gone = gone && undone;
    rig_disconnect(&client);
}

/* A transaction reads a key that soon expires, and then one that is on a slow disk. */
static MAY_YIELD void
expiry_race_story(struct rig *rig)
{
    struct expiry_race *race = rig->arg;
    struct rig_client client;
    char key[64];
    rig_key_of_shard(rig, 0, "k", key, sizeof(key));
    rig_connect(rig, &client);
    CHECK(rig_is(rig_call(&client, "SET %s:cold c", key), "+OK\r\n"));
    rig_on_shard(rig, 0, flush_store, NULL);
    rig_send(&client, "SET %s:short s PX 700", key); /* durable after half a second */
    CHECK(rig_is(rig_read(&client), "+OK\r\n"));
    rig_spawn(rig, look_for_end, race);
    rig_send(&client, "MULTI");
    rig_send(&client, "GET %s:short", key);
    rig_send(&client, "GET %s:cold", key);
    rig_send(&client, race->writes ? "SET %s:done 1" : "GET %s:short", key);
    for (u32 i = 0; i < 4; i++)
        CHECK(rig_read(&client).data[0] == '+');
    rig_send(&client, "EXEC");
    struct bytes reply = rig_read(&client);
    rig_wait_spawned(rig);
    CHECK(race->seen_gone);
    const char *gone =
        race->writes ? "*3\r\n$-1\r\n$1\r\nc\r\n+OK\r\n" : "*3\r\n$-1\r\n$1\r\nc\r\n$-1\r\n";
    const char *there = "*3\r\n$1\r\ns\r\n$1\r\nc\r\n$1\r\ns\r\n";
    if (!rig_is(reply, gone) && (race->writes || !rig_is(reply, there))) {
        fprintf(stderr, "%.*s\n", (int)reply.size, (const char *)reply.data);
        CHECK(!"it read what had expired before it took effect");
    }
    rig_disconnect(&client);
}

static void
a_transaction_does_not_read_what_expires_before_it_takes_effect(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        struct expiry_race race = {.writes = i == 0};
        struct rig rig = {.shard_count = 1, .story = expiry_race_story, .arg = &race};
        sim_options_default(&rig.options, 7);
        rig.options.disk.latency_ns_min = 500 * NS_PER_MS;
        rig.options.disk.latency_ns_max = 510 * NS_PER_MS;
        rig_run(&rig);
    }
}

/* ---- what is told of keys is durable ---- */

struct told {
    const char *command, *before, *after; /* its reply to what is durable, and after that */
    const char *write;
};

static MAY_YIELD void
all_is_durable(struct shard *shard, void *arg)
{
    *(bool *)arg = lsm_durable_seq(shard->lsm) == lsm_seq_last(shard->lsm);
}

/* Asks, beside a write that takes half a second to be durable, until the answer is another one. */
static MAY_YIELD void
told_of(struct rig *rig, struct rig_client *reader, struct rig_client *writer,
        const struct told *told)
{
    CHECK(rig_is(rig_call(reader, "%s", told->command), told->before));
    rig_send(writer, "%s", told->write);
    u32 asked = 0;
    while (rig_is(rig_call(reader, "%s", told->command), told->before))
        CHECK(++asked < 100);
    bool durable = false;
    rig_on_shard(rig, 0, all_is_durable, &durable);
    if (!durable) fprintf(stderr, "%s tells of %s too early\n", told->command, told->write);
    CHECK(durable);
    CHECK(rig_read(writer).data[0] != '-');
    CHECK(rig_is(rig_call(reader, "%s", told->command), told->after));
}

static MAY_YIELD void
told_story(struct rig *rig)
{
    static const struct told all[] = {
        {"SCAN 0", "*2\r\n$1\r\n0\r\n*0\r\n", "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n", "SET k 1"},
        {"SCAN 0", "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n", "*2\r\n$1\r\n0\r\n*0\r\n", "DEL k"},
        {"RANDOMKEY", "$-1\r\n", "$1\r\nk\r\n", "SET k 2"},
        {"RANDOMKEY", "$1\r\nk\r\n", "$-1\r\n", "DEL k"},
        {"DBSIZE", ":0\r\n", ":1\r\n", "SET k 3"},
        {"DBSIZE", ":1\r\n", ":0\r\n", "DEL k"},
    };
    struct rig_client reader, writer;
    rig_connect(rig, &reader);
    rig_connect(rig, &writer);
    for (u32 i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        told_of(rig, &reader, &writer, &all[i]);
    rig_disconnect(&reader);
    rig_disconnect(&writer);
}

static void
scans_and_counts_tell_only_what_is_durable(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = told_story};
    sim_options_default(&rig.options, 3);
    rig.options.disk.latency_ns_min = rig.options.disk.latency_ns_max = 500 * NS_PER_MS;
    rig_run(&rig);
}

/* ---- an allocation is refused: replies stay in step ---- */

#define LONG_PART  "0123456789012345678901234567890123456789"
#define LONG_VALUE LONG_PART LONG_PART LONG_PART LONG_PART LONG_PART LONG_PART LONG_PART LONG_PART

/* A pipeline of which each command has a reply of its own, so that a lost one shows. */
static const struct line {
    const char *command, *reply;
} lines[] = {
    {"ECHO 0", "$1\r\n0\r\n"},
    {"SET %s:a v", "+OK\r\n"},
    {"ECHO 1", "$1\r\n1\r\n"},
    {"GET %s:cold", "$4\r\ncold\r\n"},
    {"SET %s:b w GET", "$-1\r\n"},
    {"ECHO 2", "$1\r\n2\r\n"},
    {"APPEND %s:cold -and-more", ":13\r\n"},
    {"CONFIG RESETSTAT", "+OK\r\n"},
    {"ECHO 3", "$1\r\n3\r\n"},
    {"MULTI", "+OK\r\n"},
    {"SET %s:x 1", "+QUEUED\r\n"},
    {"SET %s:y " LONG_VALUE " GET", "+QUEUED\r\n"},
    {"GET %s:y", "+QUEUED\r\n"}, /* its reply needs memory, when the writes are done */
    {"EXEC", "*3\r\n+OK\r\n$-1\r\n$320\r\n" LONG_VALUE "\r\n"},
    {"ECHO 4", "$1\r\n4\r\n"},
    {"MULTI", "+OK\r\n"},
    {"SET %s:p 1", "+QUEUED\r\n"},
    {"ECHO p", "+QUEUED\r\n"},
    {"GETSET %s:q 2", "+QUEUED\r\n"},
    {"EXEC", "*3\r\n+OK\r\n$1\r\np\r\n$-1\r\n"},
    {"ECHO 5", "$1\r\n5\r\n"},
    {"MGET %s:a %s:b", "*2\r\n$1\r\nv\r\n$1\r\nw\r\n"},
    {"DEL %s:a", ":1\r\n"},
    {"ECHO 6", "$1\r\n6\r\n"},
};

struct refusal {
    u32 shard; /* which owns the keys; clients may be on the other one */
    u64 seed, n, count;
    bool happened;
    u32 closed, refused; /* connections, commands */
};

/* Whether a pair of keys is there: both or neither. */
static MAY_YIELD bool
pair_is_there(struct rig_client *client, const char *key, const char *names)
{
    struct bytes reply;
    do {
        reply = rig_call(client, "EXISTS %s:%c %s:%c", key, names[0], key, names[1]);
    } while (reply.size > 0 && reply.data[0] == '-');
    CHECK(rig_is(reply, ":2\r\n") || rig_is(reply, ":0\r\n"));
    return reply.data[1] == '2';
}

/* What was done or refused is so; what was not answered may be either. */
static MAY_YIELD void
check_outcome(struct rig *rig, const char *key, const char *names, struct bytes reply)
{
    struct rig_client client;
    rig_connect(rig, &client);
    bool there = pair_is_there(&client, key, names);
    if (reply.size > 0 && there != (reply.data[0] == '*')) {
        const struct refusal *refusal = rig->arg;
        fprintf(stderr, "seed %llu, allocations from %llu on, %llu of them: %s is answered '%c'\n",
                (unsigned long long)refusal->seed, (unsigned long long)refusal->n,
                (unsigned long long)refusal->count, names, (char)reply.data[0]);
        CHECK(!"done and refused");
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
refusal_story(struct rig *rig)
{
    struct refusal *refusal = rig->arg;
    struct rig_client client;
    char key[32], first[2] = {0};
    rig_key_of_shard(rig, refusal->shard, "k", key, sizeof(key));
    rig_connect(rig, &client);
    while (!rig_is(rig_call(&client, "SET %s:cold cold", key), "+OK\r\n"))
        fiber_sleep_ns(NS_PER_MS);
    rig_on_shard(rig, refusal->shard, flush_store, NULL);
    CHECK(buf_reserve(&client.in, KIB(16)));
    for (u32 i = 0; i < ARRAY_COUNT(lines); i++)
        rig_send(&client, lines[i].command, key, key);
    /* From here on the client itself takes none, or little. */
    sim_fail_at(rig->sim, SIM_POINT_ALLOC, refusal->n, refusal->count, ST_NO_MEMORY);
    u32 exec = 0;
    for (u32 i = 0; i < ARRAY_COUNT(lines); i++) {
        struct bytes reply = rig_read(&client);
        if (reply.size == 0) {
            refusal->closed++;
            break;
        }
        bool is_exec = strcmp(lines[i].command, "EXEC") == 0;
        if (is_exec) first[exec++] = (char)reply.data[0];
        if (rig_is(reply, lines[i].reply)) continue;
        refusal->refused++;
        bool follows = refusal->refused > 1; /* from what an earlier one did not do */
        if (reply.data[0] == '-' || (follows && !is_exec && lines[i].command[0] != 'E')) continue;
        fprintf(stderr, "seed %llu, allocations from %llu on, %llu: '%s' is answered with '%.*s'\n",
                (unsigned long long)refusal->seed, (unsigned long long)refusal->n,
                (unsigned long long)refusal->count, lines[i].command, (int)MIN(reply.size, 60u),
                (const char *)reply.data);
        CHECK(!"the reply of another request, or of none");
    }
    refusal->happened = sim_failed(rig->sim);
    sim_faults_clear(rig->sim);
    check_outcome(rig, key, "xy", BYTES(&first[0], first[0] != 0));
    check_outcome(rig, key, "pq", BYTES(&first[1], first[1] != 0));
    rig_disconnect(&client);
}

static void
replies_stay_in_step_whatever_allocation_is_refused(void **state)
{
    (void)state;
    u32 closed = 0, refused = 0;
    for (u64 seed = 1; seed <= REFUSAL_SEEDS; seed++) {
        struct refusal refusal = {.happened = true};
        for (u64 n = 0; refusal.happened; n++) {
            refusal = (struct refusal){
                .n = n / 2, .count = 1 + seed % 3, .shard = (u32)(n & 1), .seed = seed};
            struct rig rig = {.shard_count = 2, .story = refusal_story, .arg = &refusal};
            sim_options_default(&rig.options, seed);
            rig.options.buggify = seed > 3; /* refusals of other kinds, too: no fiber, no place */
            rig.options.disk.latency_ns_min = NS_PER_MS;
            rig.options.disk.latency_ns_max = 2 * NS_PER_MS;
            rig_run(&rig);
            closed += refusal.closed;
            refused += refusal.refused;
        }
    }
    assert_true(closed > 20 && refused > 20);
}

/* ---- a native request of another shard, without memory even to say so ---- */

struct unsaid {
    u64 n, count;
    bool happened;
    u32 closed;
};

static MAY_YIELD void
unsaid_story(struct rig *rig)
{
    struct unsaid *unsaid = rig->arg;
    char key[32];
    struct rig_client client;
    rig_key_of_shard(rig, 1, "k", key, sizeof(key));
    rig_connect(rig, &client);
    CHECK(rig_is(rig_call(&client, "SET %s value", key), "+OK\r\n"));
    rig_disconnect(&client);
    rig_native_connect(rig, 0, 0, &client);
    struct native_request get = {.header.opcode = NATIVE_GET, .get.key = BYTES(key, strlen(key))};
    CHECK(buf_reserve(&client.in, KIB(16)));
    rig_native_send(&client, &get);
    sim_fail_at(rig->sim, SIM_POINT_ALLOC, unsaid->n, unsaid->count, ST_NO_MEMORY);
    struct native_reply reply;
    if (rig_native_reply(&client, &reply))
        CHECK(reply.header.opcode == NATIVE_GET &&
              (reply.header.status != NATIVE_ST_OK || reply.get.value.size == 5));
    else
        unsaid->closed++;
    unsaid->happened = sim_failed(rig->sim);
    sim_faults_clear(rig->sim);
    rig_disconnect(&client);
}

/* What goes back to the shard of its connection has no byte and no buffer; the connection ends, for
 * the next reply would answer this request. */
static void
a_native_request_without_memory_even_to_say_so_ends_the_connection(void **state)
{
    (void)state;
    u32 closed = 0;
    for (u64 count = 1; count <= 8; count *= 2) {
        struct unsaid unsaid = {.happened = true};
        for (u64 n = 0; unsaid.happened; n++) {
            unsaid = (struct unsaid){.n = n, .count = count};
            struct rig rig = {.shard_count = 2, .story = unsaid_story, .arg = &unsaid};
            sim_options_default(&rig.options, 1);
            rig_run(&rig);
            closed += unsaid.closed;
        }
    }
    assert_true(closed > 0);
}

/* ---- a snapshot whose id nobody hears ---- */

static MAY_YIELD void
leases_count(struct shard *shard, void *arg)
{
    u32 *count = arg;
    for (u32 i = 0; i < NATIVE_SNAPSHOTS_MAX; i++)
        *count += atomic_load(&shard->server->leases[i].id) != 0;
}

static MAY_YIELD void
unheard_story(struct rig *rig)
{
    struct unsaid *unsaid = rig->arg;
    struct rig_client client;
    rig_native_connect(rig, 0, 0, &client);
    struct native_request open = {.header.opcode = NATIVE_SNAPSHOT_OPEN,
                                  .snapshot_open.lease_ms = 300000};
    CHECK(buf_reserve(&client.in, KIB(16)));
    rig_native_send(&client, &open);
    sim_fail_at(rig->sim, SIM_POINT_ALLOC, unsaid->n, unsaid->count, ST_NO_MEMORY);
    struct native_reply reply;
    bool answered = rig_native_reply(&client, &reply);
    unsaid->happened = sim_failed(rig->sim);
    sim_faults_clear(rig->sim);
    u32 leases = 0;
    rig_on_shard(rig, 0, leases_count, &leases);
    /* Whose connection has ended may have had the reply on its way. */
    if (answered) CHECK(leases == (reply.header.status == NATIVE_ST_OK));
    if (!answered) CHECK(leases <= 1);
    unsaid->closed += !answered;
    rig_disconnect(&client);
}

/* One that runs again, since there was no memory for its reply, would open another one each time,
 * and nobody would close those before their leases are over: there are sixteen for all. */
static void
a_snapshot_whose_reply_finds_no_memory_is_closed(void **state)
{
    (void)state;
    for (u64 count = 1; count <= 4; count *= 2) {
        struct unsaid unsaid = {.happened = true};
        for (u64 n = 0; unsaid.happened; n++) {
            unsaid = (struct unsaid){.n = n, .count = count};
            struct rig rig = {.shard_count = 2, .story = unheard_story, .arg = &unsaid};
            sim_options_default(&rig.options, 1);
            rig_run(&rig);
        }
    }
}

/* ---- a start, when there is no memory ---- */

struct starved {
    struct sim *sim;
    struct sim_node *machine;
    struct server_config config;
    u32 came_up, ended;
};

/* Starts and, if it comes up, stops it. False: it did not. */
static bool
starved_start(struct starved *starved, u64 n)
{
    struct server *server = server_new(&starved->config, 1);
    assert_non_null(server);
    struct io_node_config config = {.shard_count = starved->config.core_count,
                                    .memory_bytes = starved->config.memory_bytes,
                                    .shard_main = server_shard_main,
                                    .arg = server};
    if (n != UINT64_MAX) sim_node_refuse_at(starved->machine, n, 1);
    bool begun = ok(sim_node_start(starved->machine, &config));
    while (sim_node_running(starved->machine) && !server_ready(server))
        assert_true(sim_step(starved->sim) && sim_now_ns(starved->sim) < 3600 * NS_PER_S);
    bool up = sim_node_running(starved->machine);
    sim_faults_clear(starved->sim);
    if (up) {
        sim_node_stop(starved->machine);
        while (sim_node_running(starved->machine))
            assert_true(sim_step(starved->sim));
        assert_true(ok(sim_node_result(starved->machine)));
    } else if (begun) { /* else the host tells why */
        assert_true(status_is(sim_node_result(starved->machine), ST_NO_MEMORY));
        assert_non_null(strstr(server_failure(server), status_text(ST_NO_MEMORY)));
    }
    server_free(server);
    assert_int_equal(sim_node_memory_bytes(starved->machine), 0);
    return up;
}

/* The n-th one is refused, for every n until there is no such: the node comes up all the same, or
 * says that it has no memory and ends, all shards of it; the next start finds nothing amiss. */
static void
a_start_is_done_or_ends_with_a_reason_whatever_allocation_is_refused(void **state)
{
    (void)state;
    for (u32 shard_count = 1; shard_count <= 2; shard_count++) {
        struct sim_options options;
        sim_options_default(&options, shard_count);
        struct starved starved = {.sim = sim_new(&options)};
        sim_leaks_forbid(starved.sim);
        starved.machine = sim_node_new(starved.sim, "10.0.0.1");
        config_init_for_test(&starved.config, "/data", shard_count);
        snprintf(starved.config.endpoint.host, sizeof(starved.config.endpoint.host), "10.0.0.1");
        u64 refused = 1, before = 0;
        for (u64 n = 0; refused > before; n++) {
            before = sim_fault_count(starved.sim, SIM_FAULT_ALLOC);
            bool up = starved_start(&starved, n);
            refused = sim_fault_count(starved.sim, SIM_FAULT_ALLOC);
            *(up ? &starved.came_up : &starved.ended) += refused > before;
            assert_true(starved_start(&starved, UINT64_MAX));
        }
        assert_true(starved.ended > 20);
        sim_free(starved.sim);
    }
}

/* ---- the express lane, when the memory for its replies runs out ---- */

#define LANE_KEYS  24u
#define LANE_BYTES 700u /* of each value, so that replies outgrow what the shard has for them */

struct lane {
    u64 n, count;
    bool happened;
};

/* What is refused was not done, what is done was done once, and each is counted once. */
static MAY_YIELD void
lane_story(struct rig *rig)
{
    struct lane *lane = rig->arg;
    struct rig_client client, judge;
    char value[LANE_BYTES + 1];
    rig_connect(rig, &client);
    CHECK(rig_is(rig_call(&client, "CONFIG RESETSTAT"), "+OK\r\n"));
    CHECK(buf_reserve(&client.in, KIB(64)));
    for (u32 i = 0; i < LANE_KEYS * 2; i++) {
        memset(value, 'a' + (int)(i % LANE_KEYS), LANE_BYTES);
        value[LANE_BYTES] = '\0';
        if (i < LANE_KEYS)
            rig_send(&client, "SET key%u %s", i, value);
        else
            rig_send(&client, "GET key%u", i - LANE_KEYS);
    }
    sim_fail_at(rig->sim, SIM_POINT_ALLOC, lane->n, lane->count, ST_NO_MEMORY);
    bool done[LANE_KEYS] = {false};
    u32 answered = 0;
    for (; answered < LANE_KEYS * 2; answered++) {
        struct bytes reply = rig_read(&client);
        if (reply.size == 0) break;
        if (answered < LANE_KEYS) {
            done[answered] = rig_is(reply, "+OK\r\n");
            CHECK(done[answered] || reply.data[0] == '-');
        } else if (reply.data[0] != '-') {
            u32 key = answered - LANE_KEYS;
            CHECK(done[key] ? reply.size > LANE_BYTES && reply.data[6] == 'a' + key
                            : rig_is(reply, "$-1\r\n"));
        }
    }
    lane->happened = sim_failed(rig->sim);
    sim_faults_clear(rig->sim);
    rig_connect(rig, &judge);
    for (u32 i = 0; i < MIN(answered, LANE_KEYS); i++)
        CHECK(rig_is(rig_call(&judge, "EXISTS key%u", i), done[i] ? ":1\r\n" : ":0\r\n"));
    struct bytes stats = rig_call(&judge, "INFO commandstats");
    static const char *const names[] = {"cmdstat_set:calls=", "cmdstat_get:calls="};
    for (u32 i = 0; i < 2; i++) {
        const u8 *at = memmem(stats.data, stats.size, names[i], strlen(names[i]));
        u64 calls = at == NULL ? 0 : strtoull((const char *)at + strlen(names[i]), NULL, 10);
        u32 most = answered < LANE_KEYS * 2 ? LANE_KEYS + 1 : LANE_KEYS;
        CHECK(calls <= most && (answered < LANE_KEYS * 2 || calls == LANE_KEYS));
    }
    stats = rig_call(&judge, "INFO stats");
    const u8 *misses = memmem(stats.data, stats.size, "keyspace_misses:", 16);
    CHECK(misses != NULL && strtoull((const char *)misses + 16, NULL, 10) <= 3 * LANE_KEYS);
    rig_disconnect(&judge);
    rig_disconnect(&client);
}

static void
plain_requests_are_done_and_counted_once_whatever_allocation_is_refused(void **state)
{
    (void)state;
    struct lane lane = {.happened = true};
    for (u64 n = 0; lane.happened; n++) {
        lane = (struct lane){.n = n / 4, .count = 1ull << n % 4 * 2};
        struct rig rig = {.shard_count = 1, .story = lane_story, .arg = &lane};
        sim_options_default(&rig.options, 3);
        rig_run(&rig);
    }
}

/* ---- FLUSHDB, when the memory for its reply runs out ---- */

struct flush_refusal {
    u64 n, count;
    bool happened;
    u32 done, refused, closed;
};

/* One shard: it is done, or refused; not both. */
static MAY_YIELD void
flush_refusal_story(struct rig *rig)
{
    struct flush_refusal *refusal = rig->arg;
    struct rig_client client, judge;
    rig_connect(rig, &client);
    CHECK(rig_is(rig_call(&client, "SET key v"), "+OK\r\n"));
    CHECK(buf_reserve(&client.in, KIB(4)));
    rig_send(&client, "FLUSHDB");
    sim_fail_at(rig->sim, SIM_POINT_ALLOC, refusal->n, refusal->count, ST_NO_MEMORY);
    struct bytes reply = rig_read(&client);
    refusal->happened = sim_failed(rig->sim);
    sim_faults_clear(rig->sim);
    rig_connect(rig, &judge);
    bool there = rig_is(rig_call(&judge, "EXISTS key"), ":1\r\n");
    if (reply.size == 0) {
        refusal->closed++;
    } else if (rig_is(reply, "+OK\r\n")) {
        CHECK(!there);
        refusal->done++;
    } else {
        CHECK(reply.data[0] == '-' && there);
        refusal->refused++;
    }
    rig_disconnect(&judge);
    rig_disconnect(&client);
}

static void
a_flush_is_done_or_refused_whatever_allocation_is_refused(void **state)
{
    (void)state;
    struct flush_refusal refusal = {.happened = true};
    for (u64 n = 0; refusal.happened; n++) {
        refusal.n = n / 3;
        refusal.count = 1 + n % 3;
        struct rig rig = {.shard_count = 1, .story = flush_refusal_story, .arg = &refusal};
        sim_options_default(&rig.options, 7);
        rig_run(&rig);
    }
    assert_true(refusal.done > 0 && refusal.refused > 0 && refusal.closed > 0);
}

/* ---- EXEC, when there is no memory to put its reply aside ---- */

#define ASIDE_LONG LIMIT_VALUE_BYTES
#define ASIDE_MOST 8u

struct aside {
    u32 gets; /* long values in the reply */
    u32 done, refused, closed;
};

/* A reply of more than half of the memory for output is put aside, behind the writes, which takes
 * as much memory again. */
static MAY_YIELD void
aside_story(struct rig *rig)
{
    struct aside *aside = rig->arg;
    struct rig_client client, judge;
    char length[32];
    rig_connect(rig, &client);
    CHECK(buf_reserve(&client.in, (ASIDE_MOST + 1) * ASIDE_LONG));
    snprintf(length, sizeof(length), ":%u\r\n", ASIDE_LONG);
    CHECK(rig_is(rig_call(&client, "SETRANGE {k}long %u x", ASIDE_LONG - 1), length));
    CHECK(rig_is(rig_call(&client, "MULTI"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "SET {k}key v"), "+QUEUED\r\n"));
    for (u32 i = 0; i < aside->gets; i++)
        CHECK(rig_is(rig_call(&client, "GET {k}long"), "+QUEUED\r\n"));
    struct bytes reply = rig_call(&client, "EXEC");
    rig_connect(rig, &judge);
    bool there = rig_is(rig_call(&judge, "EXISTS {k}key"), ":1\r\n");
    if (reply.size == 0) {
        CHECK(there); /* allowed either way; but that it is there is what this test is about */
        aside->closed++;
    } else if (reply.data[0] == '*') {
        CHECK(there && reply.size > aside->gets * ASIDE_LONG);
        aside->done++;
    } else {
        CHECK(reply.data[0] == '-' && !there);
        aside->refused++;
    }
    rig_disconnect(&judge);
    rig_disconnect(&client);
}

static void
a_transaction_that_has_written_is_not_refused_for_want_of_room_for_its_reply(void **state)
{
    (void)state;
    struct aside aside = {0};
    for (aside.gets = 1; aside.gets <= ASIDE_MOST; aside.gets++) {
        struct rig rig = {.shard_count = 1, .story = aside_story, .arg = &aside};
        sim_options_default(&rig.options, 7);
        rig_run(&rig);
    }
    assert_true(aside.done > 0 && aside.refused > 0 && aside.closed > 0);
}

/* ---- a write behind several reads that wait ---- */

/* Both reads go to the disk on a fiber each, and the later one may end first: the write behind them
 * must wait for the earlier one as well. */
static MAY_YIELD void
reads_story(struct rig *rig)
{
    struct rig_client client;
    rig_connect(rig, &client);
    for (u32 round = 0; round < 24; round++) {
        char key[64], name[16];
        u32 shard = round % rig->shard_count;
        snprintf(name, sizeof(name), "k%u", round);
        rig_key_of_shard(rig, shard, name, key, sizeof(key));
        while (!rig_is(rig_call(&client, "SET %s old", key), "+OK\r\n"))
            fiber_sleep_ns(NS_PER_MS);
        rig_on_shard(rig, shard, flush_store, NULL);
        rig_send(&client, "STRLEN %s", key);
        rig_send(&client, "STRLEN %s", key);
        rig_send(&client, "SET %s longer", key);
        for (u32 i = 0; i < 2; i++) {
            struct bytes reply = rig_read(&client);
            if (rig_is(reply, ":3\r\n") || rig_is(reply, BUSY)) continue;
            fprintf(stderr, "seed %llu, round %u, read %u: %.*s\n",
                    (unsigned long long)rig->options.seed, round, i, (int)reply.size,
                    (const char *)reply.data);
            CHECK(!"it read what was written behind it");
        }
        struct bytes reply = rig_read(&client);
        CHECK(rig_is(reply, "+OK\r\n") || rig_is(reply, BUSY));
    }
    met.overtaken += sim_mark_count(rig->sim, "server.request.order_waits_again");
    rig_disconnect(&client);
}

static void
run_reads(u64 seed)
{
    struct rig rig = {.shard_count = 2, .story = reads_story};
    sim_options_default(&rig.options, seed);
    rig.options.buggify = true; /* fibers that begin late */
    rig.options.disk.latency_ns_min = 100 * NS_PER_US;
    rig.options.disk.latency_ns_max = 500 * NS_PER_US;
    rig_run(&rig);
}

static void
a_write_waits_for_every_earlier_read_of_its_key(void **state)
{
    (void)state;
    if (!each_seed(run_reads)) return;
    assert_true(met.overtaken > 0);
}

/* ---- MONITOR ends, and nobody says so ---- */

static void
count_monitored(struct shard *shard, void *arg)
{
    *(u32 *)arg += shard->monitor_shards != 0;
}

static MAY_YIELD u32
monitored(struct rig *rig)
{
    u32 count = 0;
    for (u32 i = 0; i < rig->shard_count; i++)
        rig_on_shard(rig, i, count_monitored, &count);
    return count;
}

static MAY_YIELD void
monitor_story(struct rig *rig)
{
    struct rig_client clients[4], monitor;
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        rig_connect(rig, &clients[i]);
    for (u32 round = 0; round < 10; round++) {
        rig_connect(rig, &monitor);
        (void)rig_call(&monitor, "MONITOR");
        rig_disconnect(&monitor);
        fiber_sleep_ns(NS_PER_S);
        u32 left = monitored(rig);
        met.untold += left != 0;
        /* A command on each shard on which there is anybody. */
        for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
            (void)rig_call(&clients[i], "PING");
        fiber_sleep_ns(100 * NS_PER_MS);
        CHECK(monitored(rig) <= left);
        met.told += left != 0 && monitored(rig) < left;
    }
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        rig_disconnect(&clients[i]);
}

static void
run_monitor(u64 seed)
{
    struct rig rig = {.shard_count = 2, .story = monitor_story};
    sim_options_default(&rig.options, seed);
    rig.options.buggify = true; /* the end is not told */
    rig_run(&rig);
}

static void
shards_that_were_not_told_of_the_end_of_monitor_find_out(void **state)
{
    (void)state;
    if (!each_seed(run_monitor)) return;
    assert_true(met.untold > 0 && met.told > met.untold / 2);
}

/* ---- SCAN of a tag whose keys do not fit into a page ---- */

#define RANK_KEYS       60u
#define RANK_KEY_FORMAT "{t}%0600u" /* two of them do not fit into the least page */

static u32
rank_of(u32 number)
{
    char key[640];
    int size = snprintf(key, sizeof(key), RANK_KEY_FORMAT, number);
    return scan_rank(BYTES(key, (size_t)size));
}

/* Two numbers of the same rank. */
static void
same_rank(u32 *low, u32 *high)
{
    static u32 ranks[8192];
    for (u32 i = 0; i < ARRAY_COUNT(ranks); i++) {
        ranks[i] = rank_of(i);
        for (u32 j = 0; j < i; j++) {
            if (ranks[j] != ranks[i]) continue;
            *low = j;
            *high = i;
            return;
        }
    }
    CHECK(!"a hash without a collision");
}

/* The number of keys from the cursor on. */
static MAY_YIELD u32
scan_from(struct rig_client *client, u64 cursor)
{
    u32 found = 0;
    char text[32];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)cursor);
    for (;;) {
        struct bytes reply = rig_call(client, "SCAN %s COUNT 10", text);
        if (reply.size != 0 && reply.data[0] == '-') continue; /* no fiber, no place */
        int length = 0, keys = 0;
        CHECK(sscanf((const char *)reply.data, "*2\r\n$%d\r\n%31[0-9]\r\n*%d", &length, text,
                     &keys) == 3);
        found += (u32)keys;
        if (strcmp(text, "0") == 0) return found;
    }
}

static MAY_YIELD void
rank_story(struct rig *rig)
{
    u32 low, high;
    same_rank(&low, &high);
    struct rig_client client;
    rig_connect(rig, &client);
    u32 number = 10000;
    for (u32 i = 0; i < RANK_KEYS; i++, number++) {
        while (rank_of(number) < rank_of(low)) /* the two come first */
            number++;
        struct bytes reply;
        do
            reply = rig_call(&client, "SET " RANK_KEY_FORMAT " v",
                             i == 0   ? low
                             : i == 1 ? high
                                      : number);
        while (!rig_is(reply, "+OK\r\n"));
    }
    u64 bucket = scan_bucket(hash_token(BYTES("{t}", 3)));
    for (u32 scans = 0; scans < 20; scans++) {
        CHECK(scan_from(&client, 0) == RANK_KEYS);
        CHECK(scan_from(&client, scan_cursor(bucket, rank_of(low))) == RANK_KEYS);
    }
    met.parted += sim_mark_count(rig->sim, "server.scan.rank_too_large");
    rig_disconnect(&client);
}

static void
run_rank(u64 seed)
{
    struct rig rig = {.shard_count = 2, .story = rank_story};
    sim_options_default(&rig.options, seed);
    rig.options.buggify = true; /* small pages */
    rig_run(&rig);
}

static void
a_scan_returns_the_keys_of_one_rank_together_whatever_room_there_is(void **state)
{
    (void)state;
    if (!each_seed(run_rank)) return;
    assert_true(met.parted > 0);
}

/* ---- pipelines whose keys lie on other shards ---- */

#define FAR_KEYS  5u
#define FAR_ASKED 60u

static MAY_YIELD void
connect_to_first_shard(struct rig *rig, struct rig_client *client)
{
    for (;;) {
        rig_connect(rig, client);
        struct bytes reply = rig_call(client, "CLIENT ID");
        CHECK(reply.size > 1 && reply.data[0] == ':');
        if ((strtoull((const char *)reply.data + 1, NULL, 10) & 63) == 0) return;
        rig_disconnect(client);
    }
}

/* ---- one MONITOR ends while another begins ---- */

static void
not_monitored(struct shard *shard, void *arg)
{
    *(u32 *)arg += (shard->monitor_shards & 1) == 0;
}

static MAY_YIELD void
monitors_story(struct rig *rig)
{
    struct rig_client old, young;
    struct prng prng;
    prng_init(&prng, rig->options.seed);
    for (u32 round = 0; round < 20; round++) {
        connect_to_first_shard(rig, &old);
        connect_to_first_shard(rig, &young);
        while (!rig_is(rig_call(&old, "MONITOR"), "+OK\r\n"))
            ;
        rig_disconnect(&old);
        fiber_sleep_ns(prng_below(&prng, 3 * NS_PER_MS));
        while (!rig_is(rig_call(&young, "MONITOR"), "+OK\r\n"))
            ;
        fiber_sleep_ns(NS_PER_S);
        u32 left = 0;
        for (u32 i = 0; i < rig->shard_count; i++)
            rig_on_shard(rig, i, not_monitored, &left);
        CHECK(left == 0);
        rig_disconnect(&young);
        fiber_sleep_ns(NS_PER_S);
    }
}

static void
run_monitors(u64 seed)
{
    struct rig rig = {.shard_count = 3, .story = monitors_story};
    sim_options_default(&rig.options, seed);
    rig.options.buggify = true; /* no fibers */
    rig_run(&rig);
}

static void
a_monitor_that_begins_while_the_last_one_ends_sees_all_shards(void **state)
{
    (void)state;
    (void)each_seed(run_monitors);
}

/* The client knows what each key holds, as the commands of one connection on one key keep their
 * order. Values of both sizes: those that fit into a request, and those that do not. */
static MAY_YIELD void
far_story(struct rig *rig)
{
    struct rig_client client;
    connect_to_first_shard(rig, &client);
    struct prng prng;
    prng_init(&prng, rig->options.seed);
    u32 length[FAR_KEYS] = {0}, expected[FAR_ASKED];
    char keys[FAR_KEYS][64], text[640], head[16];
    for (u32 i = 0; i < FAR_KEYS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "far%u", i);
        rig_key_of_shard(rig, i == 0 ? 0 : 1 + i % (rig->shard_count - 1), name, keys[i],
                         sizeof(keys[i]));
    }
    for (u32 round = 0; round < 12; round++) {
        if (round % 4 == 3) /* some of them are on the disk only */
            rig_on_shard(rig, 1, flush_store, NULL);
        for (u32 i = 0; i < FAR_ASKED; i++) {
            u32 key = (u32)prng_below(&prng, FAR_KEYS);
            expected[i] = 0;
            if (prng_below(&prng, 4) == 0) {
                length[key] = 1 + (u32)prng_below(&prng, prng_below(&prng, 4) == 0 ? 600 : 90);
                memset(text, 'a' + (int)(length[key] % 26), length[key]);
                rig_send(&client, "SET %s %.*s", keys[key], (int)length[key], text);
            } else {
                expected[i] = length[key] + 1;
                rig_send(&client, "GET %s", keys[key]);
            }
        }
        for (u32 i = 0; i < FAR_ASKED; i++) {
            struct bytes reply = rig_read(&client);
            u32 size = expected[i] - 1;
            if (expected[i] == 0) {
                CHECK(rig_is(reply, "+OK\r\n"));
            } else if (size == 0) {
                CHECK(rig_is(reply, "$-1\r\n"));
            } else {
                size_t n = (size_t)snprintf(head, sizeof(head), "$%u\r\n", size);
                CHECK(reply.size == n + size + 2 && memcmp(reply.data, head, n) == 0);
                CHECK(reply.data[n] == 'a' + size % 26 &&
                      reply.data[n + size - 1] == 'a' + size % 26);
            }
        }
    }
    met.trains += sim_mark_count(rig->sim, "server.request.train");
    rig_disconnect(&client);
}

static void
run_far(u64 seed)
{
    struct rig rig = {.shard_count = 3, .story = far_story};
    sim_options_default(&rig.options, seed);
    rig_run(&rig);
}

static void
a_pipeline_of_far_keys_answers_as_one_by_one(void **state)
{
    (void)state;
    if (!each_seed(run_far)) return;
    assert_true(met.trains > 0);
}

/* ---- memory that others have comes back ---- */

#define OWED_LONG  300000u /* more than a shard keeps room for */
#define OWED_READS 8u

/* Who has memory where the asker needs some, and what the asker needs it for. */
enum owed_case {
    OWED_BY_NOBODY,
    OWED_BY_GUEST,
    OWED_BY_OUTPUT,
    OWED_TO_KEYS,
    OWED_TO_KEYS_UNREAD, /* whose client does not read for a while */
    OWED_CASES
};
#define OWED_KEYS      800u
#define OWED_KEY_BYTES 1000u

struct owed {
    enum owed_case which;
    struct budget *budget; /* of the node's shard: all but a little is taken */
    u64 taken;
};

static void
owed_take(struct shard *shard, void *arg)
{
    struct owed *owed = arg;
    owed->budget = owed->which >= OWED_TO_KEYS ? &shard->large_budget : &shard->budget;
    u64 free_bytes = budget_available(owed->budget);
    CHECK(free_bytes > KIB(32));
    owed->taken = free_bytes - KIB(32);
    CHECK(budget_take(owed->budget, owed->taken));
}

static void
owed_give(struct shard *shard, void *arg)
{
    (void)shard;
    struct owed *owed = arg;
    budget_give(owed->budget, owed->taken);
}

static MAY_YIELD void
owed_comes_back(struct rig *rig, void *arg)
{
    fiber_sleep_ns(100 * NS_PER_MS);
    rig_on_shard(rig, rig->shard_count - 1, owed_give, arg);
}

static void
owed_turn_is_free(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(shard->request_count != 0);
    CHECK(atomic_load(&shard->server->memory_wanted) == 0);
}

static MAY_YIELD void
owed_write_keys(struct rig_client *client)
{
    char name[OWED_KEY_BYTES + 1];
    memset(name, 'k', OWED_KEY_BYTES);
    name[OWED_KEY_BYTES] = '\0';
    for (u32 i = 1; i < OWED_KEYS; i++) {
        name[snprintf(name, sizeof(name), "%u", i)] = 'k';
        CHECK(rig_is(rig_call(client, "SET %s v", name), "+OK\r\n"));
    }
}

static MAY_YIELD void
owed_story(struct rig *rig)
{
    struct owed *owed = rig->arg;
    struct rig_client lazy, asker;
    char key[32], expected[16];
    rig_key_of_shard(rig, rig->shard_count - 1, "long", key, sizeof(key));
    connect_to_first_shard(rig, &asker);
    connect_to_first_shard(rig, &lazy);
    CHECK(rig_is(rig_call(&asker, "SETRANGE %s %u x", key, OWED_LONG - 1), ":300000\r\n"));
    if (owed->which == OWED_TO_KEYS_UNREAD) owed_write_keys(&asker);
    if (owed->which != OWED_BY_NOBODY) {
        io_conn_pause(lazy.conn);
        for (u32 i = 0; i < OWED_READS; i++)
            rig_send(&lazy, "GET %s", key);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    rig_on_shard(rig, rig->shard_count - 1, owed_take, owed);
    if (owed->which != OWED_BY_NOBODY) rig_spawn(rig, owed_comes_back, owed);
    bool keys = owed->which >= OWED_TO_KEYS, unread = owed->which == OWED_TO_KEYS_UNREAD;
    if (unread) io_conn_pause(asker.conn);
    if (keys)
        rig_send(&asker, "KEYS *");
    else
        rig_send(&asker, "GET %s", key);
    if (unread) {
        fiber_sleep_ns(500 * NS_PER_MS);
        rig_on_shard(rig, 0, owed_turn_is_free, NULL);
        io_conn_resume(asker.conn);
    }
    struct bytes reply = rig_read(&asker);
    snprintf(expected, sizeof(expected), "%c%u\r\n", keys ? '*' : '$',
             unread ? OWED_KEYS
             : keys ? 1
                    : OWED_LONG);
    if (owed->which == OWED_BY_NOBODY)
        CHECK(reply.size > 5 && memcmp(reply.data, "-OOM ", 5) == 0);
    else
        CHECK(reply.size > 5 && memcmp(reply.data, expected, strlen(expected)) == 0);
    rig_wait_spawned(rig);
    if (owed->which == OWED_BY_NOBODY) rig_on_shard(rig, rig->shard_count - 1, owed_give, owed);
    io_conn_resume(lazy.conn);
    rig_disconnect(&lazy);
    rig_disconnect(&asker);
}

static void
who_finds_no_memory_waits_while_others_have_some(void **state)
{
    (void)state;
    for (enum owed_case which = 0; which < OWED_CASES; which++) {
        struct owed owed = {.which = which};
        struct rig rig = {
            .shard_count = which == OWED_BY_GUEST ? 2 : 1, .story = owed_story, .arg = &owed};
        sim_options_default(&rig.options, 5);
        rig_run(&rig);
    }
}

/* ---- so many wait for memory, and no more ---- */

/* One has the turn, the others wait for it. */
#define QUEUE_CLIENTS (1 + WORK_WAITING_MAX)
#define QUEUE_SEEDS   FEWER(4u)
#define QUEUE_STAY    32u /* of these; the clients of the others go away */
#define QUEUE_LONG    LIMIT_VALUE_BYTES
/* So much is left for the requests themselves. */
#define QUEUE_REQUESTS_BYTES (QUEUE_CLIENTS * (sizeof(struct request) + 1024u))

struct queue_taken {
    u64 large, kept, rest;
};

static u64
take_all(struct budget *budget)
{
    u64 bytes = budget_available(budget);
    CHECK(budget_take(budget, bytes));
    return bytes;
}

/* A store's memory may be in the hands of a merge, on any shard. */
struct merge_memory {
    u64 taken;
    u64 for_ns; /* 0: for ever */
};

static void
merge_takes_all(struct shard *shard, void *arg)
{
    struct merge_memory *memory = arg;
    memory->taken = take_all(&shard->lsm->budget);
}

static void
merge_gives_back(struct shard *shard, void *arg)
{
    struct merge_memory *memory = arg;
    budget_give(&shard->lsm->budget, memory->taken);
}

static MAY_YIELD void
merge_ends(struct rig *rig, void *arg)
{
    const struct merge_memory *memory = arg;
    fiber_sleep_ns(memory->for_ns);
    rig_on_shard(rig, rig->shard_count - 1, merge_gives_back, arg);
}

static MAY_YIELD void
merge_memory_story(struct rig *rig)
{
    static const char *const ASKED[][2] = {
        {"DBSIZE", ":1\r\n"},
        {"RANDOMKEY", "$"},
        {"SCAN 0 COUNT 1000", "*2\r\n$1\r\n0\r\n*1\r\n"},
        {"KEYS *", "*1\r\n"},
    };
    struct merge_memory *memory = rig->arg;
    struct rig_client client;
    char key[32];
    rig_key_of_shard(rig, rig->shard_count - 1, "key", key, sizeof(key));
    connect_to_first_shard(rig, &client);
    for (u32 i = 0; i < ARRAY_COUNT(ASKED); i++) {
        /* A count that is known already takes no memory. */
        CHECK(rig_is(rig_call(&client, "SET %s %u", key, i), "+OK\r\n"));
        rig_on_shard(rig, rig->shard_count - 1, merge_takes_all, memory);
        if (memory->for_ns != 0) rig_spawn(rig, merge_ends, memory);
        const char *expected = memory->for_ns == 0 ? "-OOM " : ASKED[i][1];
        struct bytes reply = rig_call(&client, "%s", ASKED[i][0]);
        CHECK(reply.size >= strlen(expected));
        CHECK(memcmp(reply.data, expected, strlen(expected)) == 0);
        if (memory->for_ns == 0) rig_on_shard(rig, rig->shard_count - 1, merge_gives_back, memory);
        rig_wait_spawned(rig);
    }
    rig_disconnect(&client);
}

static void
who_asks_all_shards_waits_for_the_memory_of_their_merges(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        struct merge_memory memory = {.for_ns = i == 0 ? NS_PER_S : 0};
        struct rig rig = {.shard_count = 2, .story = merge_memory_story, .arg = &memory};
        sim_options_default(&rig.options, 11);
        rig_run(&rig);
    }
}

/* Requests have places as long as a quarter of what is in no other hands stays free (has_place in
 * request.c). So others must have so much in hand that a reply does not fit into that quarter. */
static void
queue_take(struct shard *shard, void *arg)
{
    struct queue_taken *taken = arg;
    struct budget *budget = &shard->budget;
    taken->large = take_all(&shard->large_budget);
    taken->kept = take_all(&shard->kept_budget);
    u64 others = shard->large_budget.used_bytes + shard->kept_budget.used_bytes;
    u64 limit = (budget->limit_bytes - others) / 4 * 3;
    taken->rest = limit - (budget->used_bytes - others) - QUEUE_REQUESTS_BYTES;
    CHECK(budget_take(budget, taken->rest));
    CHECK(budget_available(budget) < QUEUE_LONG);
    shard->guest_count++; /* whose it is: who is alone does not wait */
}

static void
queue_give(struct shard *shard, void *arg)
{
    struct queue_taken *taken = arg;
    budget_give(&shard->large_budget, taken->large);
    budget_give(&shard->kept_budget, taken->kept);
    budget_give(&shard->budget, taken->rest);
    shard->guest_count--;
}

struct queue_look {
    u32 wanted, waiting; /* who wants memory: has the turn, or waits for it */
};

static void
queue_look(struct shard *shard, void *arg)
{
    struct queue_look *look = arg;
    look->wanted = atomic_load(&shard->server->memory_wanted);
    look->waiting = shard->workers.away[WORK_AWAY_MEMORY];
}

/* One by one: who has just been given the turn counts among those who wait until he goes on, so of
 * many who come at once one more may be refused. */
static MAY_YIELD void
queue_join(struct rig *rig, struct rig_client *client, u32 wanted)
{
    struct queue_look look;
    do {
        fiber_sleep_ns(NS_PER_MS);
        rig_on_shard(rig, 0, queue_look, &look);
        CHECK(client->conn != NULL && client->in.size == 0); /* not answered */
    } while (look.wanted != wanted || look.waiting != wanted - 1);
}

static void
queue_is_full(struct shard *shard, void *arg)
{
    struct queue_look look;
    (void)arg;
    queue_look(shard, &look);
    CHECK(look.waiting == WORK_WAITING_MAX && look.wanted == QUEUE_CLIENTS);
}

static void
queue_has_who_stayed(struct shard *shard, void *arg)
{
    struct queue_look look;
    (void)arg;
    queue_look(shard, &look);
    CHECK(look.wanted == QUEUE_STAY && look.waiting == QUEUE_STAY - 1);
    CHECK(shard->request_count == QUEUE_STAY);
}

static void
queue_is_empty(struct shard *shard, void *arg)
{
    struct queue_look look;
    (void)arg;
    queue_look(shard, &look);
    CHECK(look.waiting == 0 && look.wanted == 0);
}

static bool
is_long(struct bytes reply)
{
    return reply.size > QUEUE_LONG && memcmp(reply.data, "$1048576\r\n", 10) == 0;
}

static MAY_YIELD void
queue_story(struct rig *rig)
{
    struct queue_taken taken;
    struct rig_client *waiting = calloc(QUEUE_CLIENTS, sizeof(*waiting));
    struct rig_client late, other;
    rig_connect(rig, &late);
    rig_connect(rig, &other);
    for (u32 i = 0; i < QUEUE_CLIENTS; i++)
        rig_connect(rig, &waiting[i]);
    CHECK(rig_is(rig_call(&other, "SETRANGE long %u x", QUEUE_LONG - 1), ":1048576\r\n"));
    CHECK(rig_is(rig_call(&other, "SETRANGE taken %u x", QUEUE_LONG - 1), ":1048576\r\n"));
    CHECK(rig_is(rig_call(&other, "SETRANGE first %u x", QUEUE_LONG - 1), ":1048576\r\n"));
    rig_on_shard(rig, 0, queue_take, &taken);
    for (u32 i = 0; i < QUEUE_CLIENTS; i++) {
        rig_send(&waiting[i], i == 0 ? "GETDEL first" : "GET long"); /* who writes waits as well */
        queue_join(rig, &waiting[i], i + 1);
    }
    rig_on_shard(rig, 0, queue_is_full, NULL);

    /* Who comes now is refused, every time, and his connection stays; who needs little is served.
     */
    for (u32 i = 0; i < 3; i++) {
        struct bytes reply = rig_call(&late, "GETDEL taken");
        CHECK(reply.size > 5 && memcmp(reply.data, "-OOM ", 5) == 0);
        CHECK(rig_is(rig_call(&other, "SET small %u", i), "+OK\r\n"));
        CHECK(rig_is(rig_call(&other, "STRLEN small"), ":1\r\n"));
        rig_on_shard(rig, 0, queue_is_full, NULL);
    }

    for (u32 i = QUEUE_STAY; i < QUEUE_CLIENTS; i++)
        io_conn_close(waiting[i].conn, IO_CLOSE_ABORT);
    for (u32 i = QUEUE_STAY; i < QUEUE_CLIENTS; i++)
        rig_disconnect(&waiting[i]);
    fiber_sleep_ns(3 * NS_PER_S); /* for those nobody waits, and no memory has come back yet */
    rig_on_shard(rig, 0, queue_has_who_stayed, NULL);
    rig_on_shard(rig, 0, queue_give, &taken);
    for (u32 i = 0; i < QUEUE_STAY; i++) {
        CHECK(is_long(rig_read(&waiting[i])));
        rig_disconnect(&waiting[i]);
    }
    rig_on_shard(rig, 0, queue_is_empty, NULL);
    CHECK(is_long(rig_call(&late, "GETDEL taken"))); /* nothing of it was done before */
    CHECK(rig_is(rig_call(&late, "STRLEN taken"), ":0\r\n"));
    rig_disconnect(&late);
    rig_disconnect(&other);
    free(waiting);
}

static void
run_queue(u64 seed)
{
    struct rig rig = {.shard_count = 1, .story = queue_story};
    sim_options_default(&rig.options, seed);
    rig_run(&rig);
}

static void
who_finds_too_many_waiting_for_memory_is_refused(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= QUEUE_SEEDS; seed++)
        run_queue(seed);
}

/* Clients that wait for memory, which somebody else has; and one more. */
struct waiters {
    struct queue_taken taken;
    struct rig_client clients[QUEUE_STAY], other;
    u64 sent_ns[QUEUE_STAY];
};

/* Half of the way there rests for rest_ns. */
static MAY_YIELD void
waiters_begin(struct rig *rig, struct waiters *w, u64 rest_ns)
{
    rig_connect(rig, &w->other);
    for (u32 i = 0; i < QUEUE_STAY; i++)
        rig_connect(rig, &w->clients[i]);
    CHECK(rig_is(rig_call(&w->other, "SETRANGE long %u x", QUEUE_LONG - 1), ":1048576\r\n"));
    rig_on_shard(rig, 0, queue_take, &w->taken);
    for (u32 i = 0; i < QUEUE_STAY; i++) {
        rig_send(&w->clients[i], i % 2 == 0 ? "GETDEL long" : "GET long");
        w->sent_ns[i] = io_now_ns();
        queue_join(rig, &w->clients[i], i + 1);
        if (i == QUEUE_STAY / 2 && rest_ns != 0) fiber_sleep_ns(rest_ns);
    }
}

/* All are answered; nothing was done. */
static MAY_YIELD void
waiters_end(struct rig *rig, struct waiters *w)
{
    rig_on_shard(rig, 0, queue_is_empty, NULL);
    rig_on_shard(rig, 0, queue_give, &w->taken);
    for (u32 i = 0; i < QUEUE_STAY; i++)
        rig_disconnect(&w->clients[i]);
    CHECK(is_long(rig_call(&w->other, "GET long")));
    rig_disconnect(&w->other);
}

/* ---- nobody waits for memory while the node stops ---- */

static void
stop_drains(struct shard *shard, void *arg)
{
    const bool *drains = arg;
    shard->draining = *drains;
}

static MAY_YIELD void
stop_story(struct rig *rig)
{
    struct waiters w;
    bool drains = true;
    waiters_begin(rig, &w, 0);
    u64 begun_ns = io_now_ns();
    rig_on_shard(rig, 0, stop_drains, &drains);
    for (u32 i = 0; i < QUEUE_STAY; i++) {
        struct bytes reply = rig_read(&w.clients[i]); /* closed: there is no room for the words */
        CHECK(reply.size > 5 ? memcmp(reply.data, "-OOM ", 5) == 0 : w.clients[i].conn == NULL);
    }
    CHECK(io_now_ns() - begun_ns < NS_PER_S); /* one alone would have been patient for 20 s */
    drains = false;
    rig_on_shard(rig, 0, stop_drains, &drains);
    waiters_end(rig, &w);
}

static void
who_waits_for_memory_does_not_hold_up_the_end(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = stop_story};
    sim_options_default(&rig.options, 7);
    rig_run(&rig);
}

/* ---- who waits for memory has his time from when he came ---- */

#define PATIENT_LATER_NS (2 * NS_PER_S)
#define PATIENT_NS       (25 * NS_PER_S) /* a little more than MEMORY_PATIENCE_NS of request.h */

static MAY_YIELD void
patient_story(struct rig *rig)
{
    struct waiters w;
    waiters_begin(rig, &w, PATIENT_LATER_NS);
    for (u32 i = 0; i < QUEUE_STAY; i++) {
        struct bytes reply = rig_read(&w.clients[i]);
        CHECK(reply.size > 5 && memcmp(reply.data, "-OOM ", 5) == 0);
        CHECK(io_now_ns() - w.sent_ns[i] < PATIENT_NS);
    }
    waiters_end(rig, &w);
}

static void
who_waits_for_memory_does_not_wait_for_the_patience_of_others(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = patient_story};
    sim_options_default(&rig.options, 8);
    rig_run(&rig);
}

/* ---- replies that are early leave what those before them need ---- */

/* The connections of its only shard have some 3 MiB, of which large replies may take the half. */
#define EARLY_MEMORY MIB(25)
#define EARLY_LONG   LIMIT_VALUE_BYTES

static void
early_take(struct shard *shard, void *arg)
{
    u64 *kept = arg;
    *kept = take_all(&shard->kept_budget);
}

static void
early_give(struct shard *shard, void *arg)
{
    const u64 *kept = arg;
    budget_give(&shard->kept_budget, *kept);
}

static MAY_YIELD void
early_story(struct rig *rig)
{
    struct rig_client client;
    rig_connect(rig, &client);
    CHECK(rig_is(rig_call(&client, "SETRANGE first %u x", EARLY_LONG - 1), ":1048576\r\n"));
    rig_on_shard(rig, 0, flush_store, NULL); /* it is on the disk only */
    CHECK(rig_is(rig_call(&client, "SETRANGE second %u x", EARLY_LONG - 1), ":1048576\r\n"));
    u64 kept = 0;
    rig_on_shard(rig, 0, early_take, &kept);
    u64 begun_ns = io_now_ns();
    rig_send(&client, "GET first");
    rig_send(&client, "GET second"); /* has its reply before */
    CHECK(is_long(rig_read(&client)));
    CHECK(is_long(rig_read(&client)));
    CHECK(io_now_ns() - begun_ns < 5 * NS_PER_S);
    rig_on_shard(rig, 0, early_give, &kept);
    rig_disconnect(&client);
}

static void
early_configure(struct rig *rig, u32 node, struct server_config *config)
{
    (void)rig, (void)node;
    config->memory_bytes = EARLY_MEMORY;
}

static void
an_early_reply_does_not_take_what_those_before_it_need(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .configure = early_configure, .story = early_story};
    sim_options_default(&rig.options, 9);
    rig_run(&rig);
}

/* ---- reads of many keys, when their owner has no memory, not even for the words ---- */

#define NO_WORDS_KEYS 200u /* MGET of so many goes in stretches, the others do at once */

struct no_words {
    u64 kept, large, rest;
};

static void
no_words_take(struct shard *shard, void *arg)
{
    struct no_words *taken = arg;
    taken->kept = take_all(&shard->kept_budget);
    taken->large = take_all(&shard->large_budget);
    taken->rest = take_all(&shard->budget);
}

static void
no_words_give(struct shard *shard, void *arg)
{
    struct no_words *taken = arg;
    budget_give(&shard->kept_budget, taken->kept);
    budget_give(&shard->large_budget, taken->large);
    budget_give(&shard->budget, taken->rest);
}

static MAY_YIELD void
no_words_story(struct rig *rig)
{
    struct rig_client client;
    struct no_words taken;
    char *words = malloc(NO_WORDS_KEYS * 32), key[32];
    connect_to_first_shard(rig, &client);
    rig_key_of_shard(rig, 1, "k", key, sizeof(key));
    const char *commands[] = {"MGET", "EXISTS", "MSET"};
    rig_on_shard(rig, 1, no_words_take, &taken);
    for (u32 i = 0; i < ARRAY_COUNT(commands); i++) {
        size_t size = (size_t)snprintf(words, 32, "%s", commands[i]);
        bool values = memcmp(commands[i], "MSET", 4) == 0;
        for (u32 k = 0; k < NO_WORDS_KEYS; k++)
            size += (size_t)sprintf(words + size, values ? " %s v" : " %s", key);
        struct bytes reply = rig_call(&client, "%s", words);
        CHECK(reply.size > 5 && memcmp(reply.data, "-OOM ", 5) == 0);
    }
    CHECK(rig_is(rig_call(&client, "PING"), "+PONG\r\n"));
    rig_on_shard(rig, 1, no_words_give, &taken);
    CHECK(rig_is(rig_call(&client, "GET %s", key), "$-1\r\n"));
    rig_disconnect(&client);
    free(words);
}

static void
who_has_no_room_for_the_words_is_refused_for_want_of_memory(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 2, .story = no_words_story};
    sim_options_default(&rig.options, 10);
    rig_run(&rig);
}

/* ---- long replies about the node itself, when the memory for output is out ---- */

#define DOCS_CLIENTS 200u
#define DOCS_EACH    12u

static MAY_YIELD void
docs_story(struct rig *rig)
{
    struct rig_client *clients = calloc(DOCS_CLIENTS, sizeof(*clients));
    u32 whole = 0;
    for (u32 i = 0; i < DOCS_CLIENTS; i++) {
        rig_connect(rig, &clients[i]);
        io_conn_pause(clients[i].conn);
        for (u32 j = 0; j < DOCS_EACH; j++)
            rig_send(&clients[i], "COMMAND DOCS");
    }
    fiber_sleep_ns(500 * NS_PER_MS);
    for (u32 i = 0; i < DOCS_CLIENTS; i++) {
        if (clients[i].conn != NULL) io_conn_resume(clients[i].conn);
        for (u32 j = 0; j < DOCS_EACH; j++) {
            struct bytes reply = rig_read(&clients[i]);
            CHECK(reply.size > 5);
            if (reply.data[0] == '*') whole++;
            CHECK(reply.data[0] == '*' || memcmp(reply.data, "-OOM ", 5) == 0);
        }
        CHECK(rig_is(rig_call(&clients[i], "PING"), "+PONG\r\n"));
    }
    CHECK(whole > DOCS_CLIENTS);
    for (u32 i = 0; i < DOCS_CLIENTS; i++)
        rig_disconnect(&clients[i]);
    free(clients);
}

static void
long_replies_about_the_node_close_nobody(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = docs_story};
    sim_options_default(&rig.options, 6);
    rig_run(&rig);
}

/* ---- a client that is cut off while its request waits for a place ---- */

struct hoard {
    void *memory;
    size_t bytes;
    u32 requests, paused;
};

/* So much that no request has a place beside another one, and bytes that come still have room. */
static void
hoard_take(struct shard *shard, void *arg)
{
    struct hoard *hoard = arg;
    hoard->bytes = shard->budget.limit_bytes / 8 * 7 - shard->budget.used_bytes;
    hoard->memory = mem_alloc(&shard->budget, hoard->bytes);
    CHECK(hoard->memory != NULL && shard->request_count != 0);
}

static void
hoard_look(struct shard *shard, void *arg)
{
    struct hoard *hoard = arg;
    hoard->requests = shard->request_count;
    hoard->paused = (u32)shard->stats->clients_paused;
}

static void
hoard_give(struct shard *shard, void *arg)
{
    struct hoard *hoard = arg;
    mem_free(&shard->budget, hoard->memory, hoard->bytes);
}

/* As CLIENT KILL does, and whoever owes too much. */
static void
waiting_abort(struct shard *shard, void *arg)
{
    (void)arg;
    list_for_each_safe (node, &shard->sessions) {
        struct session *s = list_entry(node, struct session, link);
        if (s->stall == SESSION_WAITS_PLACE) session_abort(s);
    }
}

/* One request is under way, and the other client's waits until it has ended. */
static MAY_YIELD void
hoard_story(struct rig *rig)
{
    struct hoard hoard = {.memory = NULL};
    struct rig_client busy, waiting;
    sim_audits_set(rig->sim, 1); /* every check of all sessions */
    rig_connect(rig, &busy);
    rig_connect(rig, &waiting);
    rig_send(&busy, "FLUSHALL");
    fiber_sleep_ns(20 * NS_PER_MS);
    rig_on_shard(rig, 0, hoard_take, &hoard);
    rig_send(&waiting, "RANDOMKEY");
    fiber_sleep_ns(20 * NS_PER_MS);
    rig_on_shard(rig, 0, hoard_look, &hoard);
    CHECK(hoard.requests == 1 && hoard.paused == 1);
    rig_on_shard(rig, 0, waiting_abort, NULL);
    fiber_sleep_ns(20 * NS_PER_MS);
    rig_on_shard(rig, 0, hoard_look, &hoard);
    CHECK(hoard.requests == 1 && hoard.paused == 0);
    rig_on_shard(rig, 0, hoard_give, &hoard);
    CHECK(rig_is(rig_read(&busy), "+OK\r\n"));
    rig_disconnect(&waiting);
    rig_disconnect(&busy);
}

static void
who_is_cut_off_while_waiting_for_a_place_waits_for_nothing(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = hoard_story};
    sim_options_default(&rig.options, 1);
    rig.options.disk.latency_ns_min = rig.options.disk.latency_ns_max = 500 * NS_PER_MS;
    rig_run(&rig);
}

/* ---- a client that never reads ---- */

struct crowd {
    u32 sessions;
    u64 owed; /* bytes in memory for clients */
};

static void
crowd_look(struct shard *shard, void *arg)
{
    struct crowd *crowd = arg;
    struct io_stats io;
    io_stats_get(&io);
    *crowd = (struct crowd){.owed = io.output_bytes};
    list_for_each (node, &shard->sessions)
        crowd->sessions++;
}

static MAY_YIELD void
never_reads_story(struct rig *rig)
{
    struct crowd crowd;
    struct rig_client greedy, polite;
    rig_connect(rig, &greedy);
    rig_connect(rig, &polite);
    CHECK(rig_is(rig_call(&polite, "SETRANGE long 299999 x"), ":300000\r\n"));
    io_conn_pause(greedy.conn);
    for (u32 i = 0; i < 64; i++)
        rig_send(&greedy, "GET long");
    for (u32 second = 0; second < 50; second++) { /* it has a minute */
        fiber_sleep_ns(NS_PER_S);
        CHECK(rig_is(rig_call(&polite, "PING"), "+PONG\r\n"));
    }
    rig_on_shard(rig, 0, crowd_look, &crowd);
    CHECK(crowd.sessions == 2 && crowd.owed > 0);
    fiber_sleep_ns(90 * NS_PER_S);
    rig_on_shard(rig, 0, crowd_look, &crowd);
    CHECK(crowd.sessions == 1 && crowd.owed == 0);
    CHECK(rig_is(rig_call(&polite, "PING"), "+PONG\r\n"));
    io_conn_resume(greedy.conn);
    rig_disconnect(&greedy);
    rig_disconnect(&polite);
}

static void
a_client_that_never_reads_is_cut_off_after_a_minute(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = never_reads_story};
    sim_options_default(&rig.options, 12);
    rig_run(&rig);
}

/* ---- and leaves no place for a request ---- */

struct no_place {
    u64 taken;
    u32 wanted, paused;
};

/* Who has the greedy one's reply, has as much of the memory as light requests leave to replies. */
static void
no_place_take(struct shard *shard, void *arg)
{
    struct no_place *place = arg;
    u64 others = shard->large_budget.used_bytes + shard->kept_budget.used_bytes;
    u64 most = (shard->budget.limit_bytes - others) / 4 * 3;
    place->taken = most - (shard->budget.used_bytes - others);
    CHECK(budget_take(&shard->budget, place->taken));
    CHECK(shard->request_count == 1);
}

static void
no_place_look(struct shard *shard, void *arg)
{
    struct no_place *place = arg;
    place->wanted = atomic_load(&shard->server->memory_wanted);
    place->paused = (u32)shard->stats->clients_paused;
}

static void
no_place_give(struct shard *shard, void *arg)
{
    struct no_place *place = arg;
    budget_give(&shard->budget, place->taken);
}

static MAY_YIELD void
no_place_story(struct rig *rig)
{
    struct no_place place;
    struct crowd crowd;
    struct rig_client greedy, polite;
    sim_audits_set(rig->sim, 1);
    rig_connect(rig, &greedy);
    rig_connect(rig, &polite);
    CHECK(rig_is(rig_call(&polite, "SETRANGE long 299999 x"), ":300000\r\n"));
    io_conn_pause(greedy.conn);
    rig_send(&greedy,
             "MGET long long long long long long long long long long long long long long long "
             "long long long long long long long long long long long long long long long");
    fiber_sleep_ns(20 * NS_PER_S);
    rig_on_shard(rig, 0, no_place_take, &place);
    rig_send(&polite, "RANDOMKEY");
    u64 begin_ns = io_now_ns();
    fiber_sleep_ns(500 * NS_PER_MS);
    rig_on_shard(rig, 0, no_place_look, &place);
    CHECK(place.paused == 1 && place.wanted == 0);
    CHECK(rig_is(rig_read(&polite), "$4\r\nlong\r\n"));
    CHECK(io_now_ns() - begin_ns < 2 * NS_PER_S);
    rig_on_shard(rig, 0, no_place_look, &place);
    CHECK(place.paused == 0 && place.wanted == 0);
    rig_on_shard(rig, 0, crowd_look, &crowd);
    CHECK(crowd.sessions == 1);
    rig_on_shard(rig, 0, no_place_give, &place);
    io_conn_resume(greedy.conn);
    rig_disconnect(&greedy);
    rig_disconnect(&polite);
}

static void
who_does_not_read_has_a_second_when_another_finds_no_place(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = no_place_story};
    sim_options_default(&rig.options, 12);
    rig_run(&rig);
}

/* ---- MONITORs that never read ---- */

#define UNREAD_COMMANDS 4000u /* their lines: 8 MB, more than there is for the output of all */

static void
monitor_dropped_look(struct shard *shard, void *arg)
{
    *(u64 *)arg = shard->stats->monitor_dropped;
}

/* In pieces, where they fit. */
static MAY_YIELD void
get_long(struct rig_client *client)
{
    u64 begin_ns = io_now_ns();
    CHECK(rig_call(client, "GET long").size > 300000);
    CHECK(io_now_ns() - begin_ns < NS_PER_S);
}

/* Lines of that, quoted, take most of the memory for output when three have one each. */
static MAY_YIELD void
set_unprintable(struct rig_client *client)
{
    static const char head[] = "*3\r\n$3\r\nSET\r\n$1\r\nz\r\n$450000\r\n";
    static const u8 zeros[450000];
    CHECK(io_conn_write(client->conn, head, sizeof(head) - 1));
    CHECK(io_conn_write(client->conn, zeros, sizeof(zeros)));
    CHECK(io_conn_write(client->conn, "\r\n", 2));
    CHECK(rig_is(rig_read(client), "+OK\r\n"));
}

static MAY_YIELD void
unread_monitor_story(struct rig *rig)
{
    struct crowd crowd;
    struct rig_client monitors[3], writer;
    rig_connect(rig, &writer);
    CHECK(rig_is(rig_call(&writer, "SETRANGE long 299999 x"), ":300000\r\n"));
    for (u32 i = 0; i < ARRAY_COUNT(monitors); i++) {
        rig_connect(rig, &monitors[i]);
        CHECK(rig_is(rig_call(&monitors[i], "MONITOR"), "+OK\r\n"));
        io_conn_pause(monitors[i].conn);
    }
    set_unprintable(&writer);
    get_long(&writer);
    for (u32 i = 0; i < UNREAD_COMMANDS; i++) {
        CHECK(rig_is(rig_call(&writer, "SET key%u %01900u", i, i), "+OK\r\n"));
        if (i % 100 == 0) get_long(&writer);
    }
    u64 dropped;
    rig_on_shard(rig, 0, monitor_dropped_look, &dropped);
    rig_on_shard(rig, 0, crowd_look, &crowd);
    CHECK(dropped > UNREAD_COMMANDS && crowd.owed < MIB(3));
    CHECK(crowd.sessions == 1 + ARRAY_COUNT(monitors));
    for (u32 second = 0; second < 90; second++) { /* they have a minute, whatever others do */
        fiber_sleep_ns(NS_PER_S);
        CHECK(rig_is(rig_call(&writer, "PING"), "+PONG\r\n"));
    }
    rig_on_shard(rig, 0, crowd_look, &crowd);
    CHECK(crowd.sessions == 1 && crowd.owed == 0);
    for (u32 i = 0; i < ARRAY_COUNT(monitors); i++) {
        io_conn_resume(monitors[i].conn);
        rig_disconnect(&monitors[i]);
    }
    rig_disconnect(&writer);
}

static void
monitors_that_never_read_take_no_memory_from_others_and_are_cut_off(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = unread_monitor_story};
    sim_options_default(&rig.options, 12);
    rig_run(&rig);
}

/* ---- large requests for which there is no room ---- */

#define ROOM_VALUE_BYTES 300000u

struct no_room {
    bool native;
    u64 taken;
    u64 waiting, starved;
    u64 timed_out, refused;
};

static MAY_YIELD void
no_room_take(struct shard *shard, void *arg)
{
    (void)shard;
    struct no_room *room = arg;
    struct budget *budget = &sim_shard_current()->net.input_budget;
    room->taken = budget->limit_bytes / 8 * 7 - ROOM_VALUE_BYTES / 2;
    bool fits = budget_take(budget, room->taken);
    CHECK(fits);
}

static MAY_YIELD void
no_room_give(struct shard *shard, void *arg)
{
    (void)shard;
    struct no_room *room = arg;
    budget_give(&sim_shard_current()->net.input_budget, room->taken);
}

static MAY_YIELD void
no_room_look(struct shard *shard, void *arg)
{
    struct no_room *room = arg;
    struct io_stats io;
    io_stats_get(&io);
    room->waiting = io.connections_waiting;
    room->starved = io.connections_starved;
    room->timed_out = shard->stats->clients_request_timed_out + shard->stats->clients_timed_out;
    room->refused = shard->stats->requests_refused;
}

static void
no_room_send(struct rig_client *client, const u8 *value)
{
    static const char head[] = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$300000\r\n";
    CHECK(io_conn_write(client->conn, head, sizeof(head) - 1));
    CHECK(io_conn_write(client->conn, value, ROOM_VALUE_BYTES));
    CHECK(io_conn_write(client->conn, "\r\n", 2));
}

/* Whether its answer is the one that it should be. */
static MAY_YIELD bool
no_room_answered(const struct no_room *room, struct rig_client *client, bool refused)
{
    if (!room->native) {
        struct bytes reply = rig_read(client);
        if (!refused) return rig_is(reply, "+OK\r\n");
        return reply.size > 14 && memcmp(reply.data, "-OOM this node", 14) == 0;
    }
    struct native_reply reply;
    if (!rig_native_reply(client, &reply) || reply.header.request_id != 7) return false;
    return reply.header.status == (refused ? NATIVE_ST_OVERLOADED : NATIVE_ST_OK);
}

/* Twice: once there is room in time, once there is none. */
static MAY_YIELD void
no_room_story(struct rig *rig)
{
    static u8 value[ROOM_VALUE_BYTES];
    struct native_request put = {
        .header.opcode = NATIVE_PUT,
        .op = {.kind = NATIVE_OP_PUT, .key = BYTES("n", 1), .value = BYTES(value, sizeof(value))}};
    struct no_room *room = rig->arg;
    struct rig_client polite, client;
    rig_connect(rig, &polite);
    if (room->native)
        rig_native_connect(rig, 0, 0, &client);
    else
        rig_connect(rig, &client);
    CHECK(rig_is(rig_call(&polite, "CONFIG SET request-timeout 5s timeout 20"), "+OK\r\n"));
    for (u32 round = 0; round < 2; round++) {
        rig_on_shard(rig, 0, no_room_take, room);
        if (room->native)
            rig_native_send(&client, &put);
        else
            no_room_send(&client, value);
        for (u32 second = 0; second < 25; second++) {
            fiber_sleep_ns(NS_PER_S);
            CHECK(rig_is(rig_call(&polite, "PING"), "+PONG\r\n"));
        }
        rig_on_shard(rig, 0, no_room_look, room);
        CHECK(room->waiting == 1 && room->starved + room->timed_out + room->refused == 0);
        if (round == 0) rig_on_shard(rig, 0, no_room_give, room);
        CHECK(no_room_answered(room, &client, round == 1));
        if (round == 1) rig_on_shard(rig, 0, no_room_give, room);
    }
    fiber_sleep_ns(NS_PER_S);
    CHECK(client.conn == NULL);
    rig_on_shard(rig, 0, no_room_look, room);
    rig_disconnect(&client);
    rig_disconnect(&polite);
}

static void
a_large_request_waits_for_room_and_is_refused_after_half_a_minute(void **state)
{
    (void)state;
    for (u32 native = 0; native < 2; native++) {
        struct no_room room = {.native = native};
        struct rig rig = {.shard_count = 1, .story = no_room_story, .arg = &room};
        sim_options_default(&rig.options, 3);
        rig_run(&rig);
        assert_int_equal(room.waiting, 0);
        assert_int_equal(room.timed_out, 0);
        assert_int_equal(room.starved, 1);
        assert_int_equal(room.refused, 1);
    }
}

/* ---- when there is no memory to say no ---- */

struct spent {
    u64 taken, left;
    bool with_words; /* what the shard keeps for the words of a request goes, too */
};

static void
spent_take(struct shard *shard, void *arg)
{
    struct spent *spent = arg;
    buf_clear(&shard->reply, 0);
    if (spent->with_words) buf_clear(&shard->args, 0);
    spent->taken = budget_available(&shard->budget) - spent->left;
    CHECK(budget_take(&shard->budget, spent->taken));
}

static void
spent_give(struct shard *shard, void *arg)
{
    const struct spent *spent = arg;
    budget_give(&shard->budget, spent->taken);
}

static MAY_YIELD void
untold_exec_story(struct rig *rig)
{
    static const char head[] = "*2\r\n$4\r\nEXEC\r\n", tail[] = "$1\r\nx\r\n";
    for (u32 queued = 0; queued < 2; queued++) {
        struct spent spent = {0};
        struct rig_client client;
        rig_connect(rig, &client);
        CHECK(rig_is(rig_call(&client, "ECHO x"), "$1\r\nx\r\n"));
        if (queued != 0) {
            CHECK(rig_is(rig_call(&client, "MULTI"), "+OK\r\n"));
            CHECK(rig_is(rig_call(&client, "SET key x"), "+QUEUED\r\n"));
        }
        CHECK(io_conn_write(client.conn, head, sizeof(head) - 1));
        fiber_sleep_ns(NS_PER_S);
        rig_on_shard(rig, 0, spent_take, &spent);
        CHECK(io_conn_write(client.conn, tail, sizeof(tail) - 1));
        CHECK(rig_read(&client).size == 0); /* closed, with no word */
        rig_on_shard(rig, 0, spent_give, &spent);
        rig_disconnect(&client);
        rig_connect(rig, &client);
        CHECK(rig_is(rig_call(&client, "EXISTS key"), ":0\r\n"));
        rig_disconnect(&client);
    }
}

static void
an_exec_whose_refusal_finds_no_memory_closes_its_connection_only(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = untold_exec_story};
    sim_options_default(&rig.options, 5);
    rig_run(&rig);
}

/* The refusal says that nothing was done: it must not go to the INCR before it, which the other
 * shard is still writing. */
static MAY_YIELD void
told_in_order_story(struct rig *rig)
{
    struct spent *spent = rig->arg;
    struct rig_client client;
    char key[64];
    connect_to_first_shard(rig, &client);
    CHECK(rig_is(rig_call(&client, "ECHO x"), "$1\r\nx\r\n"));
    rig_key_of_shard(rig, 1, "count", key, sizeof(key));
    rig_send(&client, "INCR %s", key);
    if (spent->with_words) { /* for the words of the next request */
        fiber_sleep_ns(20 * NS_PER_MS);
        rig_on_shard(rig, 0, spent_take, spent);
        rig_send(&client, "ECHO x");
    } else { /* or for the rest of a long one */
        rig_on_shard(rig, 0, spent_take, spent);
        CHECK(io_conn_write(client.conn, "*8001\r\n", 7));
        for (u32 i = 0; i < 7000; i++)
            CHECK(io_conn_write(client.conn, "$4\r\nMSET\r\n", 10));
    }
    CHECK(rig_is(rig_read(&client), ":1\r\n"));
    struct bytes reply = rig_read(&client);
    if (spent->with_words) { /* what the INCR held is enough */
        CHECK(rig_is(reply, "$1\r\nx\r\n"));
    } else {
        CHECK(reply.size > 14 && memcmp(reply.data, "-OOM this node", 14) == 0);
        CHECK(rig_read(&client).size == 0);
    }
    rig_on_shard(rig, 0, spent_give, spent);
    rig_disconnect(&client);
}

static void
who_finds_no_memory_for_a_request_first_reads_what_was_done_before(void **state)
{
    (void)state;
    for (u32 with_words = 0; with_words < 2; with_words++) {
        struct spent spent = {.with_words = with_words, .left = with_words ? 0 : MIB(1)};
        struct rig rig = {.shard_count = 2, .story = told_in_order_story, .arg = &spent};
        sim_options_default(&rig.options, 5);
        rig.options.disk.latency_ns_min = 200 * NS_PER_MS;
        rig.options.disk.latency_ns_max = 300 * NS_PER_MS;
        rig_run(&rig);
    }
}

/* ---- GETs that wait for a block of a table, without a fiber ---- */

static MAY_YIELD void
count_block_reads(struct shard *shard, void *arg)
{
    *(u64 *)arg = shard->stats->requests_block;
    CHECK(shard->block_reads == 0 && shard->request_count == 0);
}

/* All of keys are on the disk only. */
static MAY_YIELD void
keys_cold(struct rig *rig, struct rig_client *client, char (*keys)[64], u32 count)
{
    for (u32 i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof(name), "cold%u", i);
        rig_key_of_shard(rig, i % rig->shard_count, name, keys[i], sizeof(keys[i]));
        CHECK(rig_is(rig_call(client, "SET %s old", keys[i]), "+OK\r\n"));
    }
    for (u32 shard = 0; shard < rig->shard_count; shard++)
        rig_on_shard(rig, shard, flush_store, NULL);
}

static MAY_YIELD void
block_reads_story(struct rig *rig)
{
    static const char old[] = "$3\r\nold\r\n";
    char keys[4][64];
    struct rig_client client, gone;
    rig_connect(rig, &client);
    keys_cold(rig, &client, keys, 4);

    for (u32 i = 0; i < 2; i++) { /* on each shard: in order, and each key in its own */
        rig_send(&client, "GET %s", keys[i]);
        rig_send(&client, "GET %s", keys[1 - i]);
        rig_send(&client, "SET %s new", keys[i]);
        rig_send(&client, "GET %s", keys[i]);
        CHECK(rig_is(rig_read(&client), old));
        CHECK(rig_is(rig_read(&client), i == 0 ? old : "$3\r\nnew\r\n"));
        CHECK(rig_is(rig_read(&client), "+OK\r\n"));
        CHECK(rig_is(rig_read(&client), "$3\r\nnew\r\n"));
    }

    keys_cold(rig, &client, keys, 4);
    for (u32 i = 2; i < 4; i++) { /* whoever asked is gone when the block comes */
        rig_connect(rig, &gone);
        rig_send(&gone, "GET %s", keys[i]);
        fiber_sleep_ns(10 * NS_PER_MS);
        rig_disconnect(&gone);
        CHECK(rig_is(rig_call(&client, "GET %s", keys[i]), old));
    }
    fiber_sleep_ns(NS_PER_S);
    for (u32 shard = 0; shard < rig->shard_count; shard++) {
        u64 reads = 0;
        rig_on_shard(rig, shard, count_block_reads, &reads);
        CHECK(reads >= 2); /* of one small table, whose only block is read each time */
    }

    keys_cold(rig, &client, keys, 4);
    for (u32 i = 0; i < 4; i++) /* and the node stops */
        rig_send(&client, "GET %s", keys[i]);
    fiber_sleep_ns(10 * NS_PER_MS);
    rig_disconnect(&client);
}

static MAY_YIELD void
hold_writes(struct shard *shard, void *arg)
{
    (void)arg;
    lsm_writes_hold(shard->lsm);
}

static MAY_YIELD void
release_writes(struct shard *shard, void *arg)
{
    (void)arg;
    lsm_writes_release(shard->lsm);
}

/* A SET and a GET that waits for the disk come at once, and the SET is taken back: it is the one in
 * front that goes on, and as what it is. */
static MAY_YIELD void
set_before_cold_get_story(struct rig *rig)
{
    char keys[2][64];
    struct rig_client client;
    rig_connect(rig, &client);
    keys_cold(rig, &client, keys, 2);
    rig_on_shard(rig, 0, hold_writes, NULL);
    rig_send(&client, "SET %s new", keys[0]);
    rig_send(&client, "GET %s", keys[1]);
    fiber_sleep_ns(NS_PER_S);
    CHECK(sim_mark_count(rig->sim, "server.express.taken_back") != 0);
    rig_on_shard(rig, 0, release_writes, NULL);
    CHECK(rig_is(rig_read(&client), "+OK\r\n"));
    CHECK(rig_is(rig_read(&client), "$3\r\nold\r\n"));
    CHECK(rig_is(rig_call(&client, "GET %s", keys[0]), "$3\r\nnew\r\n"));
    rig_disconnect(&client);
}

static void
a_set_that_is_taken_back_in_front_of_a_cold_get_stays_a_set(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = set_before_cold_get_story};
    sim_options_default(&rig.options, 1);
    rig.options.net.split_ppm = 0; /* both arrive at once */
    rig_run(&rig);
}

static MAY_YIELD void
clock_step_story(struct rig *rig)
{
    struct rig_client client;
    rig_connect(rig, &client);
    sim_node_clock_step(rig->nodes[0].machine, -3600 * 1000);
    struct bytes reply = rig_call(&client, "CLIENT LIST");
    CHECK(memmem(reply.data, reply.size, " age=0 ", 7) != NULL);
    rig_disconnect(&client);
}

static void
no_connection_is_older_than_time_when_the_clock_steps_back(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1, .story = clock_step_story};
    sim_options_default(&rig.options, 1);
    rig_run(&rig);
}

static void
gets_wait_for_blocks_in_order_and_without_a_fiber(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 2, .story = block_reads_story};
    sim_options_default(&rig.options, 1);
    rig.options.disk.latency_ns_min = rig.options.disk.latency_ns_max = 50 * NS_PER_MS;
    rig_run(&rig);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_is_one_instant_over_all_shards),
        cmocka_unit_test(a_shard_that_answers_late_holds_up_writes_for_a_bounded_time),
        cmocka_unit_test(writes_go_on_however_many_ask_for_snapshots),
        cmocka_unit_test(keys_shows_no_nulls_for_keys_that_expire_meanwhile),
        cmocka_unit_test(exec_aborts_when_a_key_came_and_went_without_a_trace),
        cmocka_unit_test(flushall_takes_its_turn_among_commands_that_wait),
        cmocka_unit_test(flushall_is_refused_when_commands_wait_too_long),
        cmocka_unit_test(flushall_that_one_shard_refuses_has_emptied_those_before),
        cmocka_unit_test(a_transaction_does_not_read_what_expires_before_it_takes_effect),
        cmocka_unit_test(scans_and_counts_tell_only_what_is_durable),
        cmocka_unit_test(replies_stay_in_step_whatever_allocation_is_refused),
        cmocka_unit_test(a_native_request_without_memory_even_to_say_so_ends_the_connection),
        cmocka_unit_test(a_snapshot_whose_reply_finds_no_memory_is_closed),
        cmocka_unit_test(a_start_is_done_or_ends_with_a_reason_whatever_allocation_is_refused),
        cmocka_unit_test(plain_requests_are_done_and_counted_once_whatever_allocation_is_refused),
        cmocka_unit_test(a_flush_is_done_or_refused_whatever_allocation_is_refused),
        cmocka_unit_test(
            a_transaction_that_has_written_is_not_refused_for_want_of_room_for_its_reply),
        cmocka_unit_test(a_write_waits_for_every_earlier_read_of_its_key),
        cmocka_unit_test(shards_that_were_not_told_of_the_end_of_monitor_find_out),
        cmocka_unit_test(a_monitor_that_begins_while_the_last_one_ends_sees_all_shards),
        cmocka_unit_test(a_scan_returns_the_keys_of_one_rank_together_whatever_room_there_is),
        cmocka_unit_test(a_pipeline_of_far_keys_answers_as_one_by_one),
        cmocka_unit_test(who_finds_no_memory_waits_while_others_have_some),
        cmocka_unit_test(who_asks_all_shards_waits_for_the_memory_of_their_merges),
        cmocka_unit_test(who_finds_too_many_waiting_for_memory_is_refused),
        cmocka_unit_test(who_waits_for_memory_does_not_hold_up_the_end),
        cmocka_unit_test(who_waits_for_memory_does_not_wait_for_the_patience_of_others),
        cmocka_unit_test(an_early_reply_does_not_take_what_those_before_it_need),
        cmocka_unit_test(who_has_no_room_for_the_words_is_refused_for_want_of_memory),
        cmocka_unit_test(long_replies_about_the_node_close_nobody),
        cmocka_unit_test(who_is_cut_off_while_waiting_for_a_place_waits_for_nothing),
        cmocka_unit_test(a_client_that_never_reads_is_cut_off_after_a_minute),
        cmocka_unit_test(who_does_not_read_has_a_second_when_another_finds_no_place),
        cmocka_unit_test(monitors_that_never_read_take_no_memory_from_others_and_are_cut_off),
        cmocka_unit_test(a_large_request_waits_for_room_and_is_refused_after_half_a_minute),
        cmocka_unit_test(no_connection_is_older_than_time_when_the_clock_steps_back),
        cmocka_unit_test(an_exec_whose_refusal_finds_no_memory_closes_its_connection_only),
        cmocka_unit_test(who_finds_no_memory_for_a_request_first_reads_what_was_done_before),
        cmocka_unit_test(gets_wait_for_blocks_in_order_and_without_a_fiber),
        cmocka_unit_test(a_set_that_is_taken_back_in_front_of_a_cold_get_stays_a_set),
    };
    cmocka_set_test_filter(argc > 1 ? argv[1] : NULL); /* run one by its name */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
