/* SPDX-License-Identifier: MIT
 *
 * test_cluster_multi.c -- what concerns many keys at once in a cluster of whole nodes, on the
 * simulated link: transactions through any node, what WATCH notices, and FLUSHALL.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "cluster_rig.h"
#include "server/route.h"

#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#define REFUSALS   4u
#else
#define REFUSALS   25u
#define SEED_COUNT 3u
#endif
#define NODES   3u
#define WAIT_NS (60 * NS_PER_S)

/* ---- the cluster ---- */

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1 + (rig->shard_count + node) % 2);
}

static MAY_YIELD void
wait_settled(struct rig *rig)
{
    cluster_rig_settle(rig, rig->node_count, rig->node_count, WAIT_NS);
}

static void
run_seeds(void (*story)(struct rig *rig), u32 node_count)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {
            .shard_count = (u32)(seed % 2) + 1, .node_count = node_count, .configure = configure};
        sim_options_default(&rig.options, seed);
        rig.story = story;
        rig_run(&rig);
    }
}

static void
expect(struct bytes reply, const char *expected, const char *what)
{
    if (!rig_is(reply, expected))
        fprintf(stderr, "%s: '%.*s', not '%s'\n", what, (int)MIN(reply.size, 300u),
                (const char *)reply.data, expected);
    CHECK(rig_is(reply, expected));
}

/* A story's lines: the client's number, the command, the reply. */
struct line {
    u32 client;
    const char *command, *reply;
};

static MAY_YIELD void
run_lines(struct rig_client *clients, const struct line *lines, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        struct bytes reply = rig_call(&clients[lines[i].client], "%s", lines[i].command);
        expect(reply, lines[i].reply, lines[i].command);
    }
}

static MAY_YIELD void
connect_all(struct rig *rig, struct rig_client *clients)
{
    for (u32 i = 0; i < NODES; i++)
        rig_connect_to(rig, i, &clients[i]);
}

static MAY_YIELD void
disconnect_all(struct rig_client *clients)
{
    for (u32 i = 0; i < NODES; i++)
        rig_disconnect(&clients[i]);
}

/* ---- stories ---- */

#define QUEUED "+QUEUED\r\n"
#define OK     "+OK\r\n"

static MAY_YIELD void
any_node_story(struct rig *rig)
{
    static const struct line before[] = {
        {0, "SET {t}x old", OK},
        {1, "EXEC", "-ERR EXEC without MULTI\r\n"},
        {1, "DISCARD", "-ERR DISCARD without MULTI\r\n"},
        {1, "MULTI", OK},
        {1, "MULTI", "-ERR MULTI calls can not be nested\r\n"},
        {1, "EXEC", "*0\r\n"},
        {1, "MULTI", OK},
        {1, "PING", QUEUED},
        {1, "EXEC", "*1\r\n+PONG\r\n"},
        {1, "MULTI", OK},
        {1, "SET {t}x new", QUEUED},
        {1, "DISCARD", OK},
        {2, "GET {t}x", "$3\r\nold\r\n"},
        {2, "MULTI", OK},
        {2, "SET {t}x 1", QUEUED},
        {2, "SET elsewhere 1", "-CROSSSLOT Keys in request don't hash to the same slot\r\n"},
        {2, "EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n"},
        {2, "MULTI", OK},
        {2, "KEYS *", "-ERR Command not allowed inside a transaction\r\n"},
        {2, "EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n"},
        {2, "MULTI", OK},
        {2, "SELECT 1", "-ERR SELECT is not possible inside a transaction in a cluster\r\n"},
        {2, "EXEC", "-EXECABORT Transaction discarded because of previous errors.\r\n"},
        {2, "MULTI", OK},
        {2, "COPY {t}x {t}y DB 1",
         "-ERR COPY to another database is not possible inside a transaction in a cluster\r\n"},
        {2, "DISCARD", OK},
        {2, "MULTI", OK},
        {2, "DISTKV.GET {t}x", "-ERR keys that keep siblings take no part in transactions\r\n"},
        {2, "DISCARD", OK},
        {2, "GET {t}x", "$3\r\nold\r\n"},
    };
    wait_settled(rig);
    struct rig_client clients[NODES];
    connect_all(rig, clients);
    run_lines(clients, before, ARRAY_COUNT(before));
    for (u32 i = 0; i < 30; i++) {
        /* Of other slots, so that each node is the first replica of some. */
        struct rig_client *c = &clients[i % NODES];
        char expected[200];
        CHECK(rig_is(rig_call(c, "MULTI"), OK));
        CHECK(rig_is(rig_call(c, "SET {%u}a %u", i, i), QUEUED));
        CHECK(rig_is(rig_call(c, "INCR {%u}a", i), QUEUED));
        CHECK(rig_is(rig_call(c, "ECHO between"), QUEUED));
        CHECK(rig_is(rig_call(c, "MGET {%u}a {%u}b", i, i), QUEUED));
        CHECK(rig_is(rig_call(c, "APPEND {%u}b xy", i), QUEUED));
        CHECK(rig_is(rig_call(c, "INCR {%u}b", i), QUEUED));
        CHECK(rig_is(rig_call(c, "DEL {%u}a {%u}c", i, i), QUEUED));
        int digits = snprintf(expected, sizeof(expected), "%u", i + 1);
        snprintf(expected, sizeof(expected),
                 "*7\r\n+OK\r\n:%u\r\n$7\r\nbetween\r\n*2\r\n$%d\r\n%u\r\n$-1\r\n:2\r\n"
                 "-ERR value is not an integer or out of range\r\n:1\r\n",
                 i + 1, digits, i + 1);
        expect(rig_call(c, "EXEC"), expected, "EXEC with PING in it");
        expect(rig_call(&clients[(i + 1) % NODES], "MGET {%u}a {%u}b", i, i),
               "*2\r\n$-1\r\n$2\r\nxy\r\n", "MGET elsewhere");
        /* The same without anything of the connection. */
        c = &clients[(i + 2) % NODES];
        CHECK(rig_is(rig_call(c, "MULTI"), OK));
        CHECK(rig_is(rig_call(c, "GET {%u}b", i), QUEUED));
        CHECK(rig_is(rig_call(c, "SET {%u}b z", i), QUEUED));
        expect(rig_call(c, "EXEC"), "*2\r\n$2\r\nxy\r\n+OK\r\n", "EXEC");
        expect(rig_call(&clients[i % NODES], "GET {%u}b", i), "$1\r\nz\r\n", "GET");
        /* One that fails when it runs, as on a node by itself. */
        c = &clients[(i + 1) % NODES];
        CHECK(rig_is(rig_call(c, "MULTI"), OK));
        CHECK(rig_is(rig_call(c, "SET {%u}b y", i), QUEUED));
        CHECK(rig_is(rig_call(c, "MSET {%u}b 1 {%u}c", i, i), QUEUED));
        CHECK(rig_is(rig_call(c, "MSETNX {%u}d 1 {%u}c", i, i), QUEUED));
        expect(rig_call(c, "EXEC"),
               "*3\r\n+OK\r\n-ERR wrong number of arguments for 'mset' command\r\n"
               "-ERR wrong number of arguments for 'msetnx' command\r\n",
               "EXEC of half a pair");
    }
    disconnect_all(clients);
}

static void
transactions_run_through_any_node(void **state)
{
    (void)state;
    run_seeds(any_node_story, NODES);
}

static MAY_YIELD void
watch_story(struct rig *rig)
{
    static const struct line lines[] = {
        /* unchanged */
        {0, "SET {w}a 1", OK},
        {1, "WATCH {w}a {w}absent", OK},
        {1, "MULTI", OK},
        {1, "WATCH {w}a", "-ERR WATCH inside MULTI is not allowed\r\n"},
        {1, "SET {w}b 2", QUEUED},
        {1, "EXEC", "*1\r\n+OK\r\n"},
        {2, "GET {w}b", "$1\r\n2\r\n"},
        /* overwritten through another node, even with the same value */
        {1, "WATCH {w}a", OK},
        {2, "SET {w}a 1", OK},
        {1, "MULTI", OK},
        {1, "SET {w}b lost", QUEUED},
        {1, "EXEC", "*-1\r\n"},
        {0, "GET {w}b", "$1\r\n2\r\n"},
        /* with a command of the connection in it */
        {1, "WATCH {w}a", OK},
        {0, "INCR {w}a", ":2\r\n"},
        {1, "MULTI", OK},
        {1, "PING", QUEUED},
        {1, "SET {w}b lost", QUEUED},
        {1, "EXEC", "*-1\r\n"},
        /* UNWATCH, and EXEC itself, forget */
        {1, "WATCH {w}a", OK},
        {0, "INCR {w}a", ":3\r\n"},
        {1, "UNWATCH", OK},
        {1, "MULTI", OK},
        {1, "GET {w}a", QUEUED},
        {1, "EXEC", "*1\r\n$1\r\n3\r\n"},
        /* came to be */
        {0, "WATCH {w}c", OK},
        {2, "SET {w}c 1", OK},
        {0, "MULTI", OK},
        {0, "SET {w}b lost", QUEUED},
        {0, "EXEC", "*-1\r\n"},
        /* came and went */
        {0, "WATCH {w}d", OK},
        {2, "SET {w}d 1", OK},
        {1, "DEL {w}d", ":1\r\n"},
        {0, "MULTI", OK},
        {0, "SET {w}b lost", QUEUED},
        {0, "EXEC", "*-1\r\n"},
        /* was deleted before, and stays so */
        {1, "WATCH {w}d", OK},
        {1, "MULTI", OK},
        {1, "SET {w}b 3", QUEUED},
        {1, "EXEC", "*1\r\n+OK\r\n"},
        /* went */
        {0, "WATCH {w}c", OK},
        {1, "DEL {w}c", ":1\r\n"},
        {0, "MULTI", OK},
        {0, "SET {w}b lost", QUEUED},
        {0, "EXEC", "*-1\r\n"},
        /* its own change counts, too; what is watched need not be of the same database */
        {2, "SELECT 1", OK},
        {2, "WATCH {w}a", OK},
        {2, "SELECT 0", OK},
        {2, "MULTI", OK},
        {2, "SET {w}b 4", QUEUED},
        {2, "EXEC", "*1\r\n+OK\r\n"},
        {2, "SELECT 1", OK},
        {2, "WATCH {w}a", OK},
        {2, "SET {w}a 1", OK},
        {2, "SELECT 0", OK},
        {2, "MULTI", OK},
        {2, "SET {w}b lost", QUEUED},
        {2, "EXEC", "*-1\r\n"},
        {0, "GET {w}b", "$1\r\n4\r\n"},
        {0, "WATCH {w}a", OK},
        {0, "WATCH other", "-CROSSSLOT Keys in request don't hash to the same slot\r\n"},
        {0, "UNWATCH", OK},
        /* a level that reads one replica only */
        {0, "DISTKV.CONSISTENCY ONE", OK},
        {0, "WATCH {w}a", OK},
        {1, "SET {w}a 5", OK},
        {0, "MULTI", OK},
        {0, "SET {w}b lost", QUEUED},
        {0, "EXEC", "*-1\r\n"},
    };
    wait_settled(rig);
    struct rig_client clients[NODES];
    connect_all(rig, clients);
    run_lines(clients, lines, ARRAY_COUNT(lines));
    /* A time to live that ends counts as a change. */
    CHECK(rig_is(rig_call(&clients[0], "SET {w}e 1 PX 300"), OK));
    CHECK(rig_is(rig_call(&clients[1], "WATCH {w}e"), OK));
    fiber_sleep_ns(400 * NS_PER_MS);
    CHECK(rig_is(rig_call(&clients[1], "MULTI"), OK));
    CHECK(rig_is(rig_call(&clients[1], "SET {w}b lost"), QUEUED));
    expect(rig_call(&clients[1], "EXEC"), "*-1\r\n", "expired meanwhile");
    disconnect_all(clients);
}

static void
watch_notices_changes_through_any_node(void **state)
{
    (void)state;
    run_seeds(watch_story, NODES);
}

/* An absent key has nothing to be known by once its tombstone is gone: not for long. */
static MAY_YIELD void
old_watch_story(struct rig *rig)
{
    static const struct line lines[] = {
        {0, "SET {o}there 1", OK}, {0, "WATCH {o}there", OK},    {1, "WATCH {o}never", OK},
        {2, "SET {o}gone 1", OK},  {2, "DEL {o}gone", ":1\r\n"}, {2, "WATCH {o}gone", OK},
    };
    static const char *const replies[NODES] = {"*1\r\n+OK\r\n", "*-1\r\n", "*1\r\n+OK\r\n"};
    wait_settled(rig);
    struct rig_client clients[NODES];
    connect_all(rig, clients);
    run_lines(clients, lines, ARRAY_COUNT(lines));
    fiber_sleep_ns(61 * NS_PER_S);
    for (u32 i = 0; i < NODES; i++) {
        CHECK(rig_is(rig_call(&clients[i], "MULTI"), OK));
        CHECK(rig_is(rig_call(&clients[i], "SET {o}b %u", i), QUEUED));
        expect(rig_call(&clients[i], "EXEC"), replies[i], "EXEC of an old watch");
    }
    disconnect_all(clients);
}

static void
an_absent_key_is_watched_for_a_minute(void **state)
{
    (void)state;
    run_seeds(old_watch_story, NODES);
}

/* ---- many at once ---- */

struct counting {
    u32 node;
    bool watches;
    u32 done, aborted;
};

/* Adds one by optimistic locking. False: somebody else was there. */
static MAY_YIELD bool
add_watched(struct rig_client *client, const char *key)
{
    int size = 0;
    u32 value = 0;
    CHECK(rig_is(rig_call(client, "WATCH %s", key), OK));
    struct bytes reply = rig_call(client, "GET %s", key);
    CHECK(reply.size > 0 && reply.data[0] == '$');
    (void)sscanf((const char *)reply.data, "$%d\r\n%u", &size, &value);
    CHECK(rig_is(rig_call(client, "MULTI"), OK));
    CHECK(rig_is(rig_call(client, "SET %s %u", key, value + 1), QUEUED));
    reply = rig_call(client, "EXEC");
    if (rig_is(reply, "*-1\r\n")) return false;
    expect(reply, "*1\r\n+OK\r\n", "EXEC");
    return true;
}

static MAY_YIELD void
count_up(struct rig *rig, void *arg)
{
    struct counting *counting = arg;
    struct rig_client client;
    rig_connect_to(rig, counting->node, &client);
    while (counting->done < 25) {
        bool added = true;
        if (counting->watches)
            added = add_watched(&client, "counter");
        else
            CHECK(rig_call(&client, "INCR counter").data[0] == ':');
        *(added ? &counting->done : &counting->aborted) += 1;
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
counting_story(struct rig *rig)
{
    wait_settled(rig);
    struct counting countings[8];
    for (u32 i = 0; i < ARRAY_COUNT(countings); i++) {
        countings[i] = (struct counting){.node = i % NODES, .watches = i < 5};
        rig_spawn(rig, count_up, &countings[i]);
    }
    rig_wait_spawned(rig);
    u32 aborted = 0;
    for (u32 i = 0; i < ARRAY_COUNT(countings); i++)
        aborted += countings[i].aborted;
    CHECK(aborted > 0);
    struct rig_client client;
    rig_connect_to(rig, 1, &client);
    expect(rig_call(&client, "GET counter"), "$3\r\n200\r\n", "GET counter");
    rig_disconnect(&client);
}

static void
optimistic_increments_from_all_nodes_are_all_counted(void **state)
{
    (void)state;
    run_seeds(counting_story, NODES);
}

/* Pairs that are always written together are never seen apart. */
struct pairing {
    u32 node;
    bool reads, *ending;
    u32 done, refused, unknown;
};

static MAY_YIELD void
write_pairs(struct rig *rig, void *arg)
{
    struct pairing *pairing = arg;
    struct rig_client client;
    rig_connect_to(rig, pairing->node, &client);
    for (u32 i = 1; !*pairing->ending; i++) {
        u32 key = i % 4;
        CHECK(rig_is(rig_call(&client, "MULTI"), OK));
        if (pairing->reads) {
            CHECK(rig_is(rig_call(&client, "GET {%u}a", key), QUEUED));
            CHECK(rig_is(rig_call(&client, "GET {%u}b", key), QUEUED));
        } else {
            CHECK(rig_is(rig_call(&client, "SET {%u}a %u.%u", key, pairing->node, i), QUEUED));
            CHECK(rig_is(rig_call(&client, "SET {%u}b %u.%u", key, pairing->node, i), QUEUED));
        }
        struct bytes reply = rig_call(&client, "EXEC");
        CHECK(reply.size > 4);
        if (reply.data[0] == '-') {
            bool unknown = memcmp(reply.data, "-UNKNOWN", 8) == 0;
            *(unknown ? &pairing->unknown : &pairing->refused) += 1;
            continue;
        }
        size_t half = (reply.size - 4) / 2; /* behind "*2\r\n" */
        CHECK(memcmp(reply.data, "*2\r\n", 4) == 0 && 4 + 2 * half == reply.size &&
              memcmp(reply.data + 4, reply.data + 4 + half, half) == 0);
        pairing->done++;
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
pairs_story(struct rig *rig)
{
    wait_settled(rig);
    bool ending = false;
    struct pairing pairings[6];
    for (u32 i = 0; i < ARRAY_COUNT(pairings); i++) {
        pairings[i] = (struct pairing){.node = i % NODES, .reads = i >= NODES, .ending = &ending};
        rig_spawn(rig, write_pairs, &pairings[i]);
    }
    fiber_sleep_ns(NS_PER_S);
    ending = true;
    rig_wait_spawned(rig);
    for (u32 i = 0; i < ARRAY_COUNT(pairings); i++)
        CHECK(pairings[i].done > 20 && pairings[i].refused == 0 && pairings[i].unknown == 0);
}

static void
no_transaction_sees_half_of_another(void **state)
{
    (void)state;
    run_seeds(pairs_story, NODES);
}

/* ---- failures ---- */

/* Who is asked first for the key. */
static u32
first_node_of(const struct rig *rig, const char *key)
{
    const struct topology *topology = cluster_rig_topology(rig, 0);
    struct topology_row row;
    u32 count;
    u64 token = hash_token(BYTES(key, strlen(key)));
    topology_row(topology, 0, token_partition(token, topology->partition_count), &row);
    const u32 *members = topology_row_read(&row, &count);
    CHECK(count > 0);
    for (u32 i = 0; i < rig->node_count; i++)
        if (cluster_member(rig->nodes[i].server->cluster) == members[0]) return i;
    CHECK(!"a member that is no node");
    return 0;
}

/* The node that ran WATCH, and would run EXEC, loses its power between the two: what changes
 * meanwhile is noticed by whoever runs it then, and nothing is noticed where nothing changed. */
static MAY_YIELD void
failover_story(struct rig *rig)
{
    wait_settled(rig);
    for (u32 changes = 0; changes < 2; changes++) {
        char key[16];
        snprintf(key, sizeof(key), "{f%u}a", changes);
        u32 first = first_node_of(rig, key);
        struct rig_client watcher, other;
        rig_connect_to(rig, (first + 1) % NODES, &watcher);
        rig_connect_to(rig, (first + 2) % NODES, &other);
        CHECK(rig_is(rig_call(&other, "SET %s 1", key), OK));
        CHECK(rig_is(rig_call(&watcher, "WATCH %s", key), OK));
        rig_crash(rig, first);
        fiber_sleep_ns(2 * NS_PER_S);
        if (changes) CHECK(rig_is(rig_call(&other, "SET %s 2", key), OK));
        CHECK(rig_is(rig_call(&watcher, "MULTI"), OK));
        CHECK(rig_is(rig_call(&watcher, "APPEND %s x", key), QUEUED));
        expect(rig_call(&watcher, "EXEC"), changes ? "*-1\r\n" : "*1\r\n:2\r\n", "EXEC");
        rig_start(rig, first);
        wait_settled(rig);
        /* Now the first one runs again what others did meanwhile. */
        CHECK(rig_is(rig_call(&watcher, "WATCH %s", key), OK));
        CHECK(rig_is(rig_call(&watcher, "MULTI"), OK));
        CHECK(rig_is(rig_call(&watcher, "APPEND %s y", key), QUEUED));
        expect(rig_call(&watcher, "EXEC"), changes ? "*1\r\n:2\r\n" : "*1\r\n:3\r\n", "EXEC");
        rig_disconnect(&watcher);
        rig_disconnect(&other);
    }
}

static void
a_watch_outlives_the_node_that_read_for_it(void **state)
{
    (void)state;
    run_seeds(failover_story, NODES);
}

/* Whether a pair reads alike through the node. */
static MAY_YIELD bool
pair_is_whole(struct rig_client *client, u32 key)
{
    struct bytes reply = rig_call(client, "MGET {%u}a {%u}b", key, key);
    CHECK(reply.size > 12 && memcmp(reply.data, "*2\r\n", 4) == 0);
    size_t half = (reply.size - 4) / 2;
    return 4 + 2 * half == reply.size && memcmp(reply.data + 4, reply.data + 4 + half, half) == 0;
}

/* The replica that runs EXEC is the one that has not got the change yet, and the connection's level
 * asks one replica only. */
static MAY_YIELD void
late_change_story(struct rig *rig)
{
    wait_settled(rig);
    u32 first = first_node_of(rig, "late"), changer = (first + 1) % NODES;
    struct rig_client watcher, other;
    rig_connect_to(rig, (first + 2) % NODES, &watcher);
    rig_connect_to(rig, changer, &other);
    CHECK(rig_is(rig_call(&watcher, "DISTKV.CONSISTENCY ONE"), OK));
    for (u32 i = 0; i < 3; i++) {
        CHECK(rig_is(rig_call(&other, "SET late old"), OK));
        fiber_sleep_ns(NS_PER_S);
        CHECK(rig_is(rig_call(&watcher, "WATCH late"), OK));
        sim_link_slow_set(rig->sim, rig->nodes[first].machine, rig->nodes[changer].machine,
                          150 * NS_PER_MS);
        CHECK(rig_is(rig_call(&other, "SET late new"), OK));
        CHECK(rig_is(rig_call(&watcher, "MULTI"), OK));
        CHECK(rig_is(rig_call(&watcher, "SET late lost"), QUEUED));
        expect(rig_call(&watcher, "EXEC"), "*-1\r\n", "EXEC over a change that is late");
        sim_link_slow_set(rig->sim, rig->nodes[first].machine, rig->nodes[changer].machine, 0);
        fiber_sleep_ns(NS_PER_S);
        expect(rig_call(&other, "GET late"), "$3\r\nnew\r\n", "GET late");
    }
    rig_disconnect(&watcher);
    rig_disconnect(&other);
}

static void
a_change_that_one_replica_lacks_is_noticed(void **state)
{
    (void)state;
    run_seeds(late_change_story, NODES);
}

/* One node loses its power under a load of transactions: each replica has them whole, so in the end
 * everybody has. (Before that, one of an unknown outcome may be on one replica only, of which some
 * reads know.) */
static MAY_YIELD void
crash_story(struct rig *rig)
{
    wait_settled(rig);
    bool ending = false;
    struct pairing pairings[] = {{.node = 0, .ending = &ending}, {.node = 1, .ending = &ending}};
    for (u32 i = 0; i < ARRAY_COUNT(pairings); i++)
        rig_spawn(rig, write_pairs, &pairings[i]);
    fiber_sleep_ns(300 * NS_PER_MS);
    rig_crash(rig, 2);
    fiber_sleep_ns(2 * NS_PER_S);
    rig_start(rig, 2);
    wait_settled(rig);
    ending = true;
    rig_wait_spawned(rig);
    for (u32 i = 0; i < ARRAY_COUNT(pairings); i++)
        CHECK(pairings[i].done > 20 && pairings[i].refused == 0);
    for (u32 node = 0; node < NODES; node++) {
        struct rig_client client;
        rig_connect_to(rig, node, &client);
        CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ALL"), OK));
        u64 deadline_ns = io_now_ns() + WAIT_NS;
        for (u32 key = 0; key < 4; key++)
            while (!pair_is_whole(&client, key)) {
                CHECK(io_now_ns() < deadline_ns);
                fiber_sleep_ns(50 * NS_PER_MS);
            }
        rig_disconnect(&client);
    }
}

static void
transactions_are_whole_through_a_power_cut(void **state)
{
    (void)state;
    run_seeds(crash_story, NODES);
}

/* ---- an allocation is refused ---- */

/* Replies stay in step, and a transaction is done as a whole or not at all. */
struct refusal {
    u64 n;
    bool happened;
    u32 done, refused, unknown, closed;
};

static MAY_YIELD void
refused_exec(struct rig *rig, struct rig_client *client, u32 round)
{
    struct refusal *refusal = rig->arg;
    static const char *const lines[] = {"ECHO 0",        "WATCH {r}w",   "MULTI", "INCR {r}a",
                                        "APPEND {r}b x", "ECHO between", "EXEC",  "ECHO 1"};
    u32 skipped = round % 2 == 0 ? 5 : ARRAY_COUNT(lines); /* without the connection's */
    CHECK(buf_reserve(&client->in, KIB(16)));
    for (u32 i = 0; i < ARRAY_COUNT(lines); i++)
        if (i != skipped) rig_send(client, "%s", lines[i]);
    sim_fail_at(rig->sim, SIM_POINT_ALLOC, refusal->n, 1 + refusal->n % 5, ST_NO_MEMORY);
    for (u32 i = 0; i < ARRAY_COUNT(lines); i++) {
        if (i == skipped) continue;
        struct bytes reply = rig_read(client);
        if (reply.size == 0) {
            refusal->closed++;
            break;
        }
        if (i == 0) CHECK(reply.data[0] == '-' || rig_is(reply, "$1\r\n0\r\n"));
        if (i == 7) CHECK(reply.data[0] == '-' || rig_is(reply, "$1\r\n1\r\n"));
        if (i != 6) continue;
        if (reply.data[0] == '*')
            refusal->done++;
        else if (memcmp(reply.data, "-UNKNOWN", 8) == 0)
            refusal->unknown++;
        else
            refusal->refused++;
    }
    refusal->happened = sim_failed(rig->sim);
    sim_faults_clear(rig->sim);
}

static MAY_YIELD void
refused_story(struct rig *rig)
{
    struct refusal *refusal = rig->arg;
    wait_settled(rig);
    char a[64], b[64];
    for (u32 round = 0; round < 2 * NODES; round++) {
        struct rig_client client;
        rig_connect_to(rig, round % NODES, &client);
        refused_exec(rig, &client, round);
        rig_disconnect(&client);
        fiber_sleep_ns(2 * NS_PER_S); /* whoever had none has closed something, perhaps */
        rig_connect_to(rig, 0, &client);
        /* One of an unknown outcome may be on one replica only. */
        CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ALL"), OK));
        int size = 0;
        u32 count = 0;
        struct bytes reply = rig_call(&client, "GET {r}a");
        snprintf(a, sizeof(a), "%.*s", (int)reply.size, (const char *)reply.data);
        (void)sscanf(a, "$%d\r\n%u", &size, &count);
        snprintf(b, sizeof(b), ":%u\r\n", count);
        expect(rig_call(&client, "STRLEN {r}b"), b, a); /* as many as there are increments */
        CHECK(count >= refusal->done &&
              count <= refusal->done + refusal->unknown + refusal->closed);
        rig_disconnect(&client);
    }
}

static void
without_memory_a_transaction_is_whole_or_refused(void **state)
{
    (void)state;
    u32 refused = 0, done = 0;
    for (u64 n = 1; n <= REFUSALS; n++) {
        struct refusal refusal = {.n = 5 * n - 4};
        struct rig rig = {
            .shard_count = 1, .node_count = NODES, .configure = configure, .arg = &refusal};
        sim_options_default(&rig.options, n % 7 + 1);
        rig.story = refused_story;
        rig_run(&rig);
        refused += refusal.refused;
        done += refusal.done;
    }
    assert_true(refused > 0 && done > 0);
}

/* The outcome is unknown, and there is no memory to say so: then nothing is said, and not that
 * nothing was done. Any allocation may be the one that is refused meanwhile; every fourth time it
 * is one of the last before the answer, else hardly any would be the answer's. */
#define UNSURE_REFUSALS 160u

struct unsure {
    u32 unknown, closed;
};

static MAY_YIELD i32
count_of(struct rig *rig)
{
    struct rig_client client;
    char text[64];
    int size = 0, count = 0;
    rig_connect_to(rig, first_node_of(rig, "{r}a"), &client);
    struct bytes reply = rig_call(&client, "GET {r}a");
    snprintf(text, sizeof(text), "%.*s", (int)reply.size, (const char *)reply.data);
    (void)sscanf(text, "$%d\r\n%d", &size, &count);
    rig_disconnect(&client);
    return count;
}

static MAY_YIELD void
unsure_story(struct rig *rig)
{
    static const char *const lines[] = {"DISTKV.CONSISTENCY ALL", "MULTI", NULL, "ECHO x", "EXEC"};
    struct unsure *unsure = rig->arg;
    wait_settled(rig);
    u64 took_ns = 0;
    u32 first = first_node_of(rig, "{r}a"), other = (first + 1) % NODES;
    for (u32 n = 0; n < UNSURE_REFUSALS; n++) {
        i32 before = count_of(rig);
        struct rig_client client;
        rig_connect_to(rig, first, &client);
        for (u32 i = 0; i < ARRAY_COUNT(lines); i++) {
            if (i + 1 == ARRAY_COUNT(lines))
                sim_link_cut(rig->sim, rig->nodes[first].machine, rig->nodes[other].machine);
            char line[32];
            snprintf(line, sizeof(line), "SET {r}a 1%03u", n);
            rig_send(&client, "%s", lines[i] == NULL ? line : lines[i]);
            if (i + 1 < ARRAY_COUNT(lines)) (void)rig_read(&client);
        }
        CHECK(buf_reserve(&client.in, KIB(16)));
        u64 began_ns = io_now_ns();
        bool late = n % 4 == 3;
        fiber_sleep_ns(late ? took_ns - 10 * NS_PER_MS : 200 * NS_PER_MS);
        sim_fail_at(rig->sim, SIM_POINT_ALLOC, late ? n / 4 % 8 : n, 1, ST_NO_MEMORY);
        struct bytes reply = rig_read(&client);
        took_ns = io_now_ns() - began_ns;
        sim_faults_clear(rig->sim);
        bool refused = reply.size > 0 && memcmp(reply.data, "-OOM", 4) == 0;
        unsure->unknown += reply.size > 0 && memcmp(reply.data, "-UNKNOWN", 8) == 0;
        unsure->closed += reply.size == 0;
        sim_link_heal(rig->sim, rig->nodes[first].machine, rig->nodes[other].machine);
        rig_disconnect(&client);
        wait_settled(rig);
        if (refused) CHECK(count_of(rig) == before);
    }
}

static void
without_memory_an_unknown_outcome_is_not_a_refusal(void **state)
{
    (void)state;
    struct unsure unsure = {0};
    struct rig rig = {
        .shard_count = 1, .node_count = NODES, .configure = configure, .arg = &unsure};
    sim_options_default(&rig.options, 1);
    rig.story = unsure_story;
    rig_run(&rig);
    assert_true(unsure.unknown > 0 && unsure.closed > 0);
}

/* ---- what is told of keys is durable ---- */

struct told {
    const char *command, *before; /* and its reply before the write */
    const char *write;
};

static MAY_YIELD void
key_is_durable(struct shard *shard, void *arg)
{
    u64 version, seq;
    status st =
        lsm_newest_try(shard->lsm, 0, hash_token(BYTES("k", 1)), BYTES("k", 1), 0, &version, &seq);
    CHECK(ok(st)); /* of a tombstone, too */
    *(bool *)arg = seq <= lsm_durable_seq(shard->lsm);
}

static MAY_YIELD void
told_story(struct rig *rig)
{
    static const struct told all[] = {
        {"SCAN 0", "*2\r\n$1\r\n0\r\n*0\r\n", "SET k 1"},
        {"SCAN 0", "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n", "DEL k"},
        {"KEYS *", "*0\r\n", "SET k 2"},
        {"RANDOMKEY", "$1\r\nk\r\n", "DEL k"},
        {"DBSIZE", ":0\r\n", "SET k 3"},
    };
    struct rig_client reader, writer;
    wait_settled(rig);
    rig_connect_to(rig, 0, &reader);
    rig_connect_to(rig, 0, &writer);
    for (u32 i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        expect(rig_call(&reader, "%s", all[i].command), all[i].before, all[i].command);
        rig_send(&writer, "%s", all[i].write);
        while (rig_is(rig_call(&reader, "%s", all[i].command), all[i].before))
            continue; /* until the write is seen */
        bool durable = false;
        rig_on_node(rig, 0, 0, key_is_durable, &durable);
        if (!durable) fprintf(stderr, "%s: %s too early\n", all[i].command, all[i].write);
        CHECK(durable);
        CHECK(rig_read(&writer).data[0] != '-');
    }
    rig_disconnect(&reader);
    rig_disconnect(&writer);
}

static void
configure_small(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1);
}

static void
scans_and_counts_tell_only_what_is_durable(void **state)
{
    (void)state;
    struct rig rig = {.shard_count = 1,
                      .node_count = 1,
                      .configure = configure_small,
                      .story = told_story,
                      .on_all_nodes = true};
    sim_options_default(&rig.options, 5);
    rig.options.disk.latency_ns_min = rig.options.disk.latency_ns_max = 60 * NS_PER_MS;
    rig_run(&rig);
}

/* ---- FLUSHDB and FLUSHALL ---- */

#define FLUSHED 600u

static MAY_YIELD void
fill(struct rig_client *clients, u32 first, u32 count)
{
    for (u32 i = 0; i < count; i++)
        CHECK(rig_is(rig_call(&clients[i % NODES], "SET k%u v PX 10000000", first + i), OK));
}

static MAY_YIELD void
expect_size(struct rig_client *client, u32 size)
{
    char expected[32];
    snprintf(expected, sizeof(expected), ":%u\r\n", size);
    expect(rig_call(client, "DBSIZE"), expected, "DBSIZE");
}

/* Until each replica by itself has none of a database's keys any more. */
static MAY_YIELD void
wait_empty(struct rig *rig, u32 node, u32 database)
{
    struct rig_client client;
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "SELECT %u", database), OK));
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), OK));
    while (!rig_is(rig_call(&client, "DBSIZE"), ":0\r\n")) {
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
flush_story(struct rig *rig)
{
    static const struct line lines[] = {
        {0, "FLUSHDB", OK}, /* of nothing */
        {0, "FLUSHDB NOW", "-ERR syntax error\r\n"},
        {1, "SELECT 1", OK},
        {1, "SET other 1", OK},
        {0, "MSET {big}a 1 {big}b 2 {big}c 3", OK},
    };
    static const struct line after[] = {
        {1, "GET other", "$1\r\n1\r\n"},
        {2, "SET k1 again", OK},
        {0, "INCR k2", ":1\r\n"},
        {2, "WATCH k3", OK},
        {2, "MULTI", OK},
        {2, "SET k3 v", QUEUED},
        {2, "EXEC", "*1\r\n+OK\r\n"},
    };
    wait_settled(rig);
    struct rig_client clients[NODES], flusher;
    connect_all(rig, clients);
    run_lines(clients, lines, ARRAY_COUNT(lines));
    CHECK(rig_is(rig_call(&clients[1], "SELECT 0"), OK));
    fill(clients, 0, FLUSHED);
    expect_size(&clients[2], FLUSHED + 3);
    CHECK(rig_is(rig_call(&clients[1], "WATCH k7"), OK));
    rig_connect_to(rig, 2, &flusher);
    expect(rig_call(&flusher, "FLUSHDB ASYNC"), OK, "FLUSHDB");
    for (u32 i = 0; i < NODES; i++)
        expect_size(&clients[i], 0);
    CHECK(rig_is(rig_call(&clients[1], "MULTI"), OK));
    CHECK(rig_is(rig_call(&clients[1], "SET k7 lost"), QUEUED));
    expect(rig_call(&clients[1], "EXEC"), "*-1\r\n", "EXEC of what was flushed");
    CHECK(rig_is(rig_call(&clients[1], "SELECT 1"), OK));
    run_lines(clients, after, ARRAY_COUNT(after));
    expect_size(&clients[0], 3);
    expect(rig_call(&flusher, "FLUSHALL"), OK, "FLUSHALL");
    for (u32 i = 0; i < NODES; i++)
        expect_size(&clients[i], 0); /* clients[1] is in database 1 */
    rig_disconnect(&flusher);
    disconnect_all(clients);
    for (u32 i = 0; i < NODES; i++)
        for (u32 database = 0; database < 2; database++)
            wait_empty(rig, i, database);
}

static void
what_is_flushed_is_gone_through_any_node(void **state)
{
    (void)state;
    run_seeds(flush_story, NODES);
}

/* One node is away. Some keys lie on its disk, and of others there are hints for it: none of them
 * comes back with it. */
static MAY_YIELD void
flush_without_one_story(struct rig *rig)
{
    wait_settled(rig);
    struct rig_client clients[NODES];
    connect_all(rig, clients);
    fill(clients, 0, FLUSHED / 2);
    disconnect_all(clients);
    rig_crash(rig, 2);
    fiber_sleep_ns(2 * NS_PER_S);
    rig_connect_to(rig, 0, &clients[0]);
    rig_connect_to(rig, 1, &clients[1]);
    rig_connect_to(rig, 0, &clients[2]);
    fill(clients, FLUSHED / 2, FLUSHED / 2);
    expect_size(&clients[1], FLUSHED);
    expect(rig_call(&clients[0], "FLUSHALL"), OK, "FLUSHALL");
    expect_size(&clients[1], 0);
    CHECK(rig_is(rig_call(&clients[1], "SET k5 new"), OK));
    disconnect_all(clients);
    rig_start(rig, 2);
    connect_all(rig, clients);
    for (u32 round = 0; round < 4; round++) {
        for (u32 i = 0; i < NODES; i++)
            expect_size(&clients[i], 1);
        for (u32 i = 0; i < FLUSHED; i++)
            expect(rig_call(&clients[(i + round) % NODES], "GET k%u", i),
                   i == 5 ? "$3\r\nnew\r\n" : "$-1\r\n", "GET of what was flushed");
        if (round == 1)
            for (u32 i = 0; i < NODES; i++)
                CHECK(rig_call(&clients[i], "DISTKV.REPAIR").data[0] == '+');
        fiber_sleep_ns(2 * NS_PER_S);
    }
    CHECK(rig_is(rig_call(&clients[0], "DEL k5"), ":1\r\n"));
    disconnect_all(clients);
    for (u32 i = 0; i < NODES; i++)
        wait_empty(rig, i, 0);
}

static void
what_is_flushed_does_not_come_back_with_a_node_that_was_away(void **state)
{
    (void)state;
    run_seeds(flush_without_one_story, NODES);
}

/* A node fails while it is flushed, and writers go on: what was there before is gone, what is
 * acknowledged afterwards stays. */
struct flush_load {
    bool ending, flushed;
    u32 before, after; /* keys w0 to w(before) were written before the end of the flush */
};

static MAY_YIELD void
write_through(struct rig *rig, void *arg)
{
    struct flush_load *load = arg;
    struct rig_client client;
    rig_connect_to(rig, 1, &client);
    while (!load->ending) {
        bool flushed = load->flushed; /* before it is sent */
        u32 number = flushed ? load->after : load->before;
        struct bytes reply = rig_call(&client, "SET %c%u v", flushed ? 'a' : 'w', number);
        if (rig_is(reply, OK)) *(flushed ? &load->after : &load->before) += 1;
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
flush_through_crash_story(struct rig *rig)
{
    wait_settled(rig);
    struct rig_client clients[NODES];
    connect_all(rig, clients);
    fill(clients, 0, FLUSHED);
    rig_disconnect(&clients[2]);
    struct flush_load load = {.ending = false};
    rig_spawn(rig, write_through, &load);
    rig_send(&clients[0], "FLUSHALL");
    fiber_sleep_ns(3 * NS_PER_MS);
    rig_crash(rig, 2);
    expect(rig_read(&clients[0]), OK, "FLUSHALL while a node fails");
    load.flushed = true;
    rig_start(rig, 2);
    wait_settled(rig);
    fiber_sleep_ns(NS_PER_S);
    load.ending = true;
    rig_wait_spawned(rig);
    CHECK(load.before > 0 && load.after > 0);
    for (u32 i = 0; i < FLUSHED; i++)
        expect(rig_call(&clients[i % 2], "GET k%u", i), "$-1\r\n", "GET of what was flushed");
    for (u32 i = 0; i < load.after; i++)
        expect(rig_call(&clients[i % 2], "GET a%u", i), "$1\r\nv\r\n", "GET of what came later");
    rig_disconnect(&clients[0]);
    rig_disconnect(&clients[1]);
}

static void
a_flush_goes_on_when_a_node_fails(void **state)
{
    (void)state;
    run_seeds(flush_through_crash_story, NODES);
}

/* Who flushes has not got the keys yet. */
static MAY_YIELD void
late_keys_story(struct rig *rig)
{
    wait_settled(rig);
    struct rig_client clients[NODES];
    connect_all(rig, clients);
    sim_link_slow_set(rig->sim, rig->nodes[0].machine, rig->nodes[1].machine, 150 * NS_PER_MS);
    for (u32 i = 0; i < 20; i++)
        CHECK(rig_is(rig_call(&clients[1], "SET k%u v", i), OK));
    expect(rig_call(&clients[0], "FLUSHALL"), OK, "FLUSHALL");
    for (u32 i = 0; i < 20; i++)
        expect(rig_call(&clients[2], "GET k%u", i), "$-1\r\n", "GET of what was flushed");
    sim_link_slow_set(rig->sim, rig->nodes[0].machine, rig->nodes[1].machine, 0);
    disconnect_all(clients);
}

static void
a_flush_finds_what_its_node_lacks(void **state)
{
    (void)state;
    run_seeds(late_keys_story, NODES);
}

/* Who has flushed loses its power as soon as it has said so, and nobody can ask it. */
static MAY_YIELD void
flush_then_gone_story(struct rig *rig)
{
    wait_settled(rig);
    u32 first = first_node_of(rig, "alone");
    struct rig_client client, other;
    rig_connect_to(rig, first, &client);
    rig_connect_to(rig, (first + 1) % NODES, &other);
    CHECK(rig_is(rig_call(&client, "SET alone v"), OK));
    fiber_sleep_ns(NS_PER_S);
    for (u32 i = 0; i < NODES; i++)
        if (i != first)
            sim_link_slow_set(rig->sim, rig->nodes[first].machine, rig->nodes[i].machine,
                              150 * NS_PER_MS);
    expect(rig_call(&client, "FLUSHALL"), OK, "FLUSHALL");
    rig_crash(rig, first);
    rig_disconnect(&client);
    expect(rig_call(&other, "GET alone"), "$-1\r\n", "GET of what was flushed");
    rig_disconnect(&other);
}

static void
what_was_flushed_is_so_though_who_did_it_is_gone(void **state)
{
    (void)state;
    run_seeds(flush_then_gone_story, NODES);
}

static void
configure_all_write(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->write_quorum = NODES;
    config->read_quorum = 1;
}

/* One replica may answer a read, so each must know of the flush once it is said to be done: here
 * the flush itself reads no other one. */
static MAY_YIELD void
flush_all_write_story(struct rig *rig)
{
    wait_settled(rig);
    u32 first = first_node_of(rig, "alone");
    struct rig_client client, other;
    rig_connect_to(rig, first, &client);
    rig_connect_to(rig, (first + 1) % NODES, &other);
    CHECK(rig_is(rig_call(&client, "SET alone v"), OK));
    for (u32 i = 0; i < NODES; i++)
        if (i != first)
            sim_link_slow_set(rig->sim, rig->nodes[first].machine, rig->nodes[i].machine,
                              150 * NS_PER_MS);
    expect(rig_call(&client, "FLUSHALL"), OK, "FLUSHALL");
    CHECK(rig_is(rig_call(&other, "DISTKV.CONSISTENCY ONE"), OK));
    expect(rig_call(&other, "GET alone"), "$-1\r\n", "GET of what was flushed");
    rig_disconnect(&client);
    rig_disconnect(&other);
}

static void
a_flush_has_reached_as_many_as_a_write_does(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                          .node_count = NODES,
                          .configure = configure_all_write};
        sim_options_default(&rig.options, seed);
        rig.story = flush_all_write_story;
        rig_run(&rig);
    }
}

static MAY_YIELD void
flush_refused_story(struct rig *rig)
{
    wait_settled(rig);
    struct rig_client clients[NODES];
    connect_all(rig, clients);
    fill(clients, 0, 20);
    rig_disconnect(&clients[1]);
    rig_disconnect(&clients[2]);
    rig_crash(rig, 1);
    rig_crash(rig, 2);
    fiber_sleep_ns(2 * NS_PER_S);
    struct bytes reply = rig_call(&clients[0], "FLUSHALL");
    CHECK(reply.size > 12 && memcmp(reply.data, "-NOREPLICAS ", 12) == 0);
    rig_start_begin(rig, 1);
    rig_start_begin(rig, 2);
    wait_settled(rig);
    expect_size(&clients[0], 20);
    rig_disconnect(&clients[0]);
}

static void
a_flush_without_a_quorum_does_nothing(void **state)
{
    (void)state;
    run_seeds(flush_refused_story, NODES);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(transactions_run_through_any_node),
        cmocka_unit_test(watch_notices_changes_through_any_node),
        cmocka_unit_test(an_absent_key_is_watched_for_a_minute),
        cmocka_unit_test(optimistic_increments_from_all_nodes_are_all_counted),
        cmocka_unit_test(no_transaction_sees_half_of_another),
        cmocka_unit_test(a_watch_outlives_the_node_that_read_for_it),
        cmocka_unit_test(a_change_that_one_replica_lacks_is_noticed),
        cmocka_unit_test(transactions_are_whole_through_a_power_cut),
        cmocka_unit_test(without_memory_a_transaction_is_whole_or_refused),
        cmocka_unit_test(without_memory_an_unknown_outcome_is_not_a_refusal),
        cmocka_unit_test(scans_and_counts_tell_only_what_is_durable),
        cmocka_unit_test(what_is_flushed_is_gone_through_any_node),
        cmocka_unit_test(what_is_flushed_does_not_come_back_with_a_node_that_was_away),
        cmocka_unit_test(a_flush_goes_on_when_a_node_fails),
        cmocka_unit_test(a_flush_finds_what_its_node_lacks),
        cmocka_unit_test(what_was_flushed_is_so_though_who_did_it_is_gone),
        cmocka_unit_test(a_flush_has_reached_as_many_as_a_write_does),
        cmocka_unit_test(a_flush_without_a_quorum_does_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
