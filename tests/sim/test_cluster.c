/* SPDX-License-Identifier: MIT
 *
 * test_cluster.c -- whole nodes as one store, on the simulated link: three machines, one to three
 * shards each, and clients that speak RESP to any of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "cluster/cluster.h"
#include "cluster/group0_internal.h"
#include "cluster/peer_internal.h"
#include "cluster/trees_internal.h"
#include "cluster_rig.h"
#include "hold.h"
#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"
#include "lsm/table_format.h"
#include "proto/peer.h"
#include "server/route.h"

/* Of each story. */
#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#else
#define SEED_COUNT 3u
#endif
#define NODES      3u
#define KEYS       60u
#define PAGES_KEYS 1200u
#define WAIT_NS    (60 * NS_PER_S)

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1 + (rig->shard_count + node) % 3);
}

static MAY_YIELD void
wait_settled(struct rig *rig, u32 node_count)
{
    cluster_rig_settle(rig, node_count, node_count, WAIT_NS);
}

static struct rig
rig_of(u64 seed, void (*story)(struct rig *rig))
{
    struct rig rig = {.shard_count = (u32)(seed % 3), .node_count = NODES, .configure = configure};
    sim_options_default(&rig.options, seed);
    rig.story = story;
    if (rig.shard_count == 0) rig.shard_count = 3;
    return rig;
}

/* ---- stories ---- */

static MAY_YIELD void
expect_key(struct rig_client *client, const char *key, const char *value)
{
    char expected[4096];
    snprintf(expected, sizeof(expected), "$%zu\r\n%s\r\n", strlen(value), value);
    struct bytes reply = rig_call(client, "GET %s", key);
    if (!rig_is(reply, expected))
        fprintf(stderr, "GET %s: %.*s, not %s\n", key, (int)reply.size, (const char *)reply.data,
                value);
    CHECK(rig_is(reply, expected));
}

static MAY_YIELD void
expect_all_keys(struct rig_client *client)
{
    for (u32 i = 0; i < KEYS; i++) {
        char key[32], value[32];
        snprintf(key, sizeof(key), "k%u", i);
        snprintf(value, sizeof(value), "v%u", i);
        expect_key(client, key, value);
    }
}

static MAY_YIELD void
any_node_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client clients[NODES];
    char key[32], value[32];
    for (u32 i = 0; i < NODES; i++)
        rig_connect_to(rig, i, &clients[i]);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&clients[i % NODES], "SET k%u v%u", i, i), "+OK\r\n"));
    for (u32 i = 0; i < KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        snprintf(value, sizeof(value), "v%u", i);
        for (u32 node = 0; node < NODES; node++)
            expect_key(&clients[node], key, value);
    }
    for (u32 i = 0; i < 30; i++) {
        char expected[32];
        snprintf(expected, sizeof(expected), ":%u\r\n", i + 1);
        CHECK(rig_is(rig_call(&clients[i % NODES], "INCR counter"), expected));
    }
    CHECK(rig_is(rig_call(&clients[0], "MSET a 1 b 2 c 3 d 4 e 5"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&clients[1], "MGET a b x c"),
                 "*4\r\n$1\r\n1\r\n$1\r\n2\r\n$-1\r\n$1\r\n3\r\n"));
    CHECK(rig_is(rig_call(&clients[2], "DEL a b c x"), ":3\r\n"));
    CHECK(rig_is(rig_call(&clients[0], "EXISTS a b c d e"), ":2\r\n"));
    CHECK(rig_is(rig_call(&clients[1], "SET d 5 NX"), "$-1\r\n"));
    /* A pipeline's commands on one key stay in order. */
    for (u32 i = 0; i < 20; i++)
        rig_send(&clients[i % NODES], "APPEND p%u %u", i % NODES, i % 10);
    for (u32 i = 0; i < 20; i++)
        CHECK(rig_read(&clients[i % NODES]).size != 0);
    expect_key(&clients[1], "p0", "0369258");
    for (u32 i = 0; i < NODES; i++)
        rig_disconnect(&clients[i]);
}

static void
any_node_takes_any_command(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, any_node_story);
        rig_run(&rig);
    }
}

/* INCRs from all nodes at once: none is lost. */
struct counting {
    u32 node;
    u32 done;
};

static MAY_YIELD void
count_up(struct rig *rig, void *arg)
{
    struct counting *counting = arg;
    struct rig_client client;
    rig_connect_to(rig, counting->node, &client);
    for (u32 i = 0; i < 50; i++) {
        struct bytes reply = rig_call(&client, "INCR {c}%u", i % 2);
        CHECK(reply.size > 0 && reply.data[0] == ':');
        counting->done++;
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
counting_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct counting countings[6];
    for (u32 i = 0; i < ARRAY_COUNT(countings); i++) {
        countings[i] = (struct counting){.node = i % NODES};
        rig_spawn(rig, count_up, &countings[i]);
    }
    rig_wait_spawned(rig);
    struct rig_client client;
    rig_connect_to(rig, 1, &client);
    expect_key(&client, "{c}0", "150");
    expect_key(&client, "{c}1", "150");
    rig_disconnect(&client);
}

static void
increments_from_all_nodes_are_all_counted(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, counting_story);
        rig_run(&rig);
    }
}

/* The same where a connection takes but few requests at a time. Who runs them lives, so nobody else
 * does in its place. */
#define NARROW 4u

static void
links_narrow(struct rig *rig)
{
    for (u32 node = 0; node < NODES; node++) {
        const struct server *server = rig->nodes[node].server;
        for (u32 shard = 0; shard < server->shard_count; shard++) {
            struct peers *peers = server->cluster->shards[shard]->peers;
            list_for_each (pos, &peers->links)
                list_entry(pos, struct peer_link, link)->requests_max = NARROW;
        }
    }
}

static MAY_YIELD void
narrow_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client clients[NODES];
    for (u32 i = 0; i < NODES; i++) { /* all connections that will be needed are there */
        rig_connect_to(rig, i, &clients[i]);
        CHECK(rig_call(&clients[i], "INCR {c}0").data[0] == ':');
        CHECK(rig_call(&clients[i], "INCR {c}1").data[0] == ':');
    }
    links_narrow(rig);
    struct counting countings[RIG_SPAWNS_MAX];
    for (u32 i = 0; i < ARRAY_COUNT(countings); i++) {
        countings[i] = (struct counting){.node = i % NODES};
        rig_spawn(rig, count_up, &countings[i]);
    }
    rig_wait_spawned(rig);
    char expected[32];
    snprintf(expected, sizeof(expected), "%u", NODES + 25 * (u32)ARRAY_COUNT(countings));
    expect_key(&clients[1], "{c}0", expected);
    expect_key(&clients[2], "{c}1", expected);
    for (u32 i = 0; i < NODES; i++) {
        CHECK(rig->nodes[i].server->cluster->shards[0]->liveness.stats.suspected == 0);
        rig_disconnect(&clients[i]);
    }
}

static void
increments_wait_for_who_runs_them(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, narrow_story);
        rig_run(&rig);
    }
}

/* The power of one node fails under load and comes back: what was acknowledged is read. */
struct writing {
    u32 node;
    bool ending;
    u32 acknowledged, unknown, refused;
    u32 values[KEYS]; /* the last acknowledged; 0: none, or not known */
    bool vague[KEYS]; /* an outcome was unknown once: that write may still be done, at any time */
};

static MAY_YIELD void
write_on(struct rig *rig, void *arg)
{
    struct writing *writing = arg;
    struct rig_client client;
    rig_connect_to(rig, writing->node, &client);
    for (u32 i = 1; !writing->ending; i++) {
        u32 key = i % KEYS;
        struct bytes reply = rig_call(&client, "SET w%u:%u %u", writing->node, key, i);
        if (rig_is(reply, "+OK\r\n")) {
            writing->values[key] = i;
            writing->acknowledged++;
        } else if (reply.size > 8 && memcmp(reply.data, "-UNKNOWN", 8) == 0) {
            writing->values[key] = 0;
            writing->vague[key] = true;
            writing->unknown++;
        } else {
            writing->refused++;
        }
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
crash_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct writing writings[2] = {{.node = 0}, {.node = 1}};
    for (u32 i = 0; i < 2; i++)
        rig_spawn(rig, write_on, &writings[i]);
    fiber_sleep_ns(500 * NS_PER_MS);
    rig_crash(rig, 2);
    fiber_sleep_ns(5 * NS_PER_S);
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    fiber_sleep_ns(500 * NS_PER_MS);
    for (u32 i = 0; i < 2; i++)
        writings[i].ending = true;
    rig_wait_spawned(rig);
    for (u32 node = 0; node < NODES; node++) {
        struct rig_client client;
        rig_connect_to(rig, node, &client);
        for (u32 i = 0; i < 2; i++) {
            CHECK(writings[i].acknowledged > 100);
            CHECK(writings[i].refused == 0);
            for (u32 key = 0; key < KEYS; key++) {
                char name[32], value[32];
                if (writings[i].values[key] == 0) continue;
                snprintf(name, sizeof(name), "w%u:%u", i, key);
                snprintf(value, sizeof(value), "%u", writings[i].values[key]);
                expect_key(&client, name, value);
            }
        }
        rig_disconnect(&client);
    }
}

static void
a_node_that_loses_its_power_stops_nobody(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, crash_story);
        rig_run(&rig);
    }
}

/* One loses its power and is back before anybody has missed it. What others had connected to it is
 * reset when something comes over it: that is not to be a client's request. */
static MAY_YIELD void
quick_restart_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client clients[8];
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++) {
        rig_connect_to(rig, i % 2, &clients[i]);
        for (u32 key = 0; key < KEYS; key++) /* each shard has a connection to each other one */
            CHECK(rig_is(rig_call(&clients[i], "SET q%u:%u 0", i, key), "+OK\r\n"));
    }
    rig_crash(rig, 2);
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    fiber_sleep_ns(500 * NS_PER_MS);
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++) {
        for (u32 key = 0; key < KEYS; key++) /* whoever is the first replica runs it */
            CHECK(rig_is(rig_call(&clients[i], "INCR q%u:%u", i, key), ":1\r\n"));
        rig_disconnect(&clients[i]);
    }
}

static void
a_node_that_is_back_at_once_is_not_asked_over_what_was_before(void **state)
{
    for (u64 seed = 1; seed <= 4 * SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, quick_restart_story);
        rig_run(&rig);
    }
}

/* A fifth node joins under writes, while one is cut off from all but one of the others: believed
 * dead, it stays before the plan, coordinates, and reaches a replica that is within it. */
struct cutting {
    struct rig *rig;
    u32 left, friend;
    bool done, heal;
};

static void
links_change(void *arg)
{
    struct cutting *cutting = arg;
    struct rig *rig = cutting->rig;
    for (u32 i = 0; i < rig->node_count; i++) {
        if (i == cutting->left || i == cutting->friend) continue;
        if (cutting->heal)
            sim_link_heal(rig->sim, rig->nodes[i].machine, rig->nodes[cutting->left].machine);
        else
            sim_link_cut(rig->sim, rig->nodes[i].machine, rig->nodes[cutting->left].machine);
    }
    cutting->done = true;
}

static MAY_YIELD void
leave_behind(struct cutting *cutting, bool heal)
{
    cutting->heal = heal;
    cutting->done = false;
    sim_at(cutting->rig->sim, sim_now_ns(cutting->rig->sim), links_change, cutting);
    while (!cutting->done)
        fiber_sleep_ns(NS_PER_MS);
}

static u32
leader_of(struct rig *rig)
{
    for (u32 i = 0; i < rig->node_count - rig->late_count; i++) {
        struct group0_stats stats;
        group0_stats_get(rig->nodes[i].server->cluster->shards[0]->group0, &stats);
        if (stats.leads) return i;
    }
    return 0;
}

static MAY_YIELD void
expect_written(struct rig *rig, u32 node, const struct writing *writings, u32 count)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    for (u32 i = 0; i < count; i++)
        for (u32 key = 0; key < KEYS; key++) {
            char name[32], value[32];
            if (writings[i].values[key] == 0 || writings[i].vague[key]) continue;
            snprintf(name, sizeof(name), "w%u:%u", writings[i].node, key);
            snprintf(value, sizeof(value), "%u", writings[i].values[key]);
            expect_key(&client, name, value);
        }
    rig_disconnect(&client);
}

static MAY_YIELD void
left_behind_story(struct rig *rig)
{
    wait_settled(rig, rig->node_count - rig->late_count);
    u32 leader = leader_of(rig), joiner = rig->node_count - 1;
    struct cutting cutting = {.rig = rig};
    while (cutting.left == 0 || cutting.left == leader) /* 0 is the seed that the joiner asks */
        cutting.left++;
    while (cutting.friend == leader || cutting.friend == cutting.left)
        cutting.friend ++;
    struct writing writings[] = {
        {.node = cutting.left}, {.node = cutting.friend}, {.node = leader}};
    for (u32 i = 0; i < ARRAY_COUNT(writings); i++)
        rig_spawn(rig, write_on, &writings[i]);
    fiber_sleep_ns(300 * NS_PER_MS);
    leave_behind(&cutting, false);
    u32 before = writings[0].acknowledged;
    fiber_sleep_ns(NS_PER_S);
    rig_start_begin(rig, joiner);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (!cluster_rig_knows(rig, joiner, rig->node_count) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(cluster_rig_knows(rig, joiner, rig->node_count));
    u32 members = rig->nodes[cutting.left].server->cluster->shards[0]->topology->member_count;
    CHECK(members < rig->node_count);                      /* it still knows nothing of it */
    *(u32 *)rig->arg += writings[0].acknowledged - before; /* and works */
    fiber_sleep_ns(500 * NS_PER_MS);
    for (u32 i = 0; i < ARRAY_COUNT(writings); i++)
        writings[i].ending = true;
    rig_wait_spawned(rig);
    expect_written(rig, leader, writings, ARRAY_COUNT(writings));
    expect_written(rig, joiner, writings, ARRAY_COUNT(writings));
    leave_behind(&cutting, true);
    rig->late_count = 0;
    wait_settled(rig, rig->node_count - rig->late_count);
    for (u32 i = 0; i < rig->node_count; i++)
        expect_written(rig, i, writings, ARRAY_COUNT(writings));
}

static void
a_member_left_behind_by_a_join_loses_nothing(void **state)
{
    u32 acknowledged = 0; /* by whoever is cut off, meanwhile; by some seeds */
    for (u64 seed = 1; seed <= SEED_COUNT || (acknowledged == 0 && seed < 10); seed++) {
        struct rig rig = rig_of(seed, left_behind_story);
        rig.arg = &acknowledged;
        rig.node_count = 5;
        rig.late_count = 1;
        rig_run(&rig);
    }
    assert_true(acknowledged > 0);
}

/* All nodes lose their power, and come back with what was acknowledged. */
static MAY_YIELD void
blackout_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    for (u32 i = 0; i < NODES; i++)
        rig_crash(rig, i);
    for (u32 i = 0; i < NODES; i++)
        rig_start_begin(rig, i);
    wait_settled(rig, NODES);
    rig_disconnect(&client);
    rig_connect_to(rig, 2, &client);
    expect_all_keys(&client);
    rig_disconnect(&client);
}

static void
a_cluster_survives_a_blackout(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, blackout_story);
        rig_run(&rig);
    }
}

/* What changes of a node that does not run. */
static void
readdress(struct rig *rig, u32 node)
{
    rig->nodes[node].config->peer_endpoint.port += 100;
}

/* All shards of all nodes know where everybody is. */
static bool
addresses_are_known(const struct rig *rig)
{
    for (u32 i = 0; i < NODES; i++) {
        const struct server *server = rig->nodes[i].server;
        for (u32 shard = 0; shard < server->shard_count; shard++) {
            const struct topology *topology = server->cluster->shards[shard]->topology;
            for (u32 j = 0; j < NODES; j++) {
                const struct topology_member *member =
                    topology_member_by_id(topology, rig->nodes[j].config->node_id);
                if (member == NULL || member->peer_port != rig->nodes[j].config->peer_endpoint.port)
                    return false;
            }
        }
    }
    return true;
}

static MAY_YIELD void
wait_readdressed(struct rig *rig)
{
    wait_settled(rig, NODES);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (!addresses_are_known(rig) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(addresses_are_known(rig));
    wait_settled(rig, NODES);
}

/* Any that the others do not expect. */
static MAY_YIELD void
moves_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    for (u32 i = 0; i < NODES; i++) { /* the leader among them */
        rig_crash(rig, i);
        readdress(rig, i);
        rig_start(rig, i);
        u64 begin_ns = io_now_ns();
        wait_readdressed(rig);
        CHECK(io_now_ns() - begin_ns < 15 * NS_PER_S);
    }
    for (u32 i = 1; i < NODES; i++) { /* a majority at once */
        rig_crash(rig, i);
        readdress(rig, i);
    }
    for (u32 i = 1; i < NODES; i++)
        rig_start_begin(rig, i);
    wait_readdressed(rig);
    rig_disconnect(&client);
    rig_connect_to(rig, 2, &client);
    expect_all_keys(&client);
    rig_disconnect(&client);
}

static void
members_come_back_under_other_addresses(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, moves_story);
        rig_run(&rig);
    }
}

/* Nobody is where anybody knows him, and all but one know where that one is. */
static MAY_YIELD void
all_move_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    for (u32 i = 0; i < NODES; i++)
        rig_crash(rig, i);
    for (u32 i = 0; i < NODES; i++) {
        readdress(rig, i);
        if (i != 0) rig->nodes[i].config->seeds[0].peer_port += 100;
    }
    for (u32 i = 0; i < NODES; i++)
        rig_start_begin(rig, i);
    wait_readdressed(rig);
    rig_disconnect(&client);
    rig_connect_to(rig, 1, &client);
    expect_all_keys(&client);
    rig_disconnect(&client);
}

static void
a_cluster_comes_back_under_other_addresses(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, all_move_story);
        rig_run(&rig);
    }
}

/* Two nodes join under load, at once: not one request fails, and all data is where it should be. */
static MAY_YIELD void
two_join_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < 2000; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    for (u32 i = 0; i < 2000; i += 2)
        CHECK(rig_is(rig_call(&client, "DEL k%u", i), ":1\r\n"));
    struct writing writings[2] = {{.node = 0}, {.node = 1}};
    for (u32 i = 0; i < 2; i++)
        rig_spawn(rig, write_on, &writings[i]);
    rig_start_begin(rig, NODES);
    rig_start_begin(rig, NODES + 1);
    wait_settled(rig, NODES + 2);
    fiber_sleep_ns(200 * NS_PER_MS);
    for (u32 i = 0; i < 2; i++)
        writings[i].ending = true;
    rig_wait_spawned(rig);
    rig_disconnect(&client);
    for (u32 i = 0; i < 2; i++)
        CHECK(writings[i].refused == 0 && writings[i].unknown == 0);
    expect_written(rig, NODES + 1, writings, ARRAY_COUNT(writings));
    rig_connect_to(rig, NODES + 1, &client);
    for (u32 i = 0; i < 2000; i++) {
        char key[32], value[32];
        snprintf(key, sizeof(key), "k%u", i);
        snprintf(value, sizeof(value), "v%u", i);
        if (i % 2 == 0)
            CHECK(rig_is(rig_call(&client, "GET %s", key), "$-1\r\n"));
        else
            expect_key(&client, key, value);
    }
    rig_disconnect(&client);
}

static void
two_join_under_load_and_nobody_notices(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, two_join_story);
        rig.node_count = NODES + 2;
        rig.late_count = 2;
        rig_run(&rig);
    }
}

/* More than one page of each source: its scan stays between them, and what is overwritten and
 * deleted meanwhile is as it should be. */
static MAY_YIELD void
pages_story(struct rig *rig)
{
    static char filler[2000];
    memset(filler, 'x', sizeof(filler) - 1);
    wait_settled(rig, 1);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < PAGES_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET p%u %s%u", i, filler, i), "+OK\r\n"));
    struct writing writing = {.node = 0};
    rig_spawn(rig, write_on, &writing);
    rig_start_begin(rig, 1);
    for (u32 i = 0; i < PAGES_KEYS; i += 2)
        CHECK(rig_is(rig_call(&client, i % 4 == 0 ? "DEL p%u" : "SET p%u new", i),
                     i % 4 == 0 ? ":1\r\n" : "+OK\r\n"));
    wait_settled(rig, 2);
    writing.ending = true;
    rig_wait_spawned(rig);
    rig_disconnect(&client);
    CHECK(writing.refused == 0 && writing.unknown == 0);
    expect_written(rig, 1, &writing, 1);
    CHECK(sim_mark_count(rig->sim, "cluster.fetch.goes_on") > 0);
    rig_connect_to(rig, 1, &client);
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), "+OK\r\n"));
    for (u32 i = 0; i < PAGES_KEYS; i++) {
        char key[32], value[sizeof(filler) + 32];
        snprintf(key, sizeof(key), "p%u", i);
        snprintf(value, sizeof(value), "%s%u", filler, i);
        if (i % 4 == 0)
            CHECK(rig_is(rig_call(&client, "GET %s", key), "$-1\r\n"));
        else
            expect_key(&client, key, i % 2 == 0 ? "new" : value);
    }
    rig_disconnect(&client);
}

static void
who_joins_gets_all_pages_of_what_is_written_meanwhile(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, pages_story);
        rig.node_count = 2;
        rig.late_count = 1;
        rig_run(&rig);
    }
}

/* ---- moves at a rate ---- */

#define PACED_KEYS 600u
#define PACED_RATE KIB(128)

static void
configure_paced(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->move_rate_bytes = *(const u64 *)rig->arg;
}

/* The second node joins, and gains all. Returns its bytes. */
static MAY_YIELD u64
paced_begin(struct rig *rig)
{
    static char filler[2000];
    memset(filler, 'x', sizeof(filler) - 1);
    wait_settled(rig, 1);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < PACED_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET p%u %s", i, filler), "+OK\r\n"));
    rig_disconnect(&client);
    rig_start_begin(rig, 1);
    return PACED_KEYS * (sizeof(filler) - 1);
}

static void
run_paced_at(u64 rate, void (*story)(struct rig *rig), u32 late_count)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, story);
        rig.configure = configure_paced;
        rig.arg = &rate;
        rig.node_count = 1 + late_count;
        rig.late_count = late_count;
        rig_run(&rig);
    }
}

static void
run_paced(void (*story)(struct rig *rig), u32 late_count)
{
    run_paced_at(PACED_RATE, story, late_count);
}

/* Its source keeps the scan between two pages, however slowly these are asked for. */
static MAY_YIELD void
paced_story(struct rig *rig)
{
    u64 bytes = paced_begin(rig);
    u64 began_ns = io_now_ns();
    wait_settled(rig, 2);
    u64 took_ns = io_now_ns() - began_ns;
    CHECK(took_ns >= bytes * NS_PER_S / PACED_RATE);
    CHECK(took_ns < 2 * (bytes * NS_PER_S / PACED_RATE)); /* and agreeing */
    CHECK(sim_mark_count(rig->sim, "cluster.fetch.goes_on") >= bytes / KIB(64) / 4);
}

static void
what_moves_keeps_to_its_rate(void **state)
{
    run_paced(paced_story, 1);
}

/* Some gain at once: whoever has it all gives no more than one of them may take. */
static MAY_YIELD void
paced_source_story(struct rig *rig)
{
    (void)paced_begin(rig);
    for (u32 i = 2; i < rig->node_count; i++)
        rig_start_begin(rig, i);
    u64 began_ns = io_now_ns(), moved = 0;
    cluster_rig_settle(rig, rig->node_count, rig->node_count, 10 * WAIT_NS);
    u64 took_ns = io_now_ns() - began_ns;
    for (u32 i = 1; i < rig->node_count; i++)
        moved += atomic_load(&rig->nodes[i].server->cluster->fetched_bytes);
    u64 least_ns = moved * NS_PER_S / *(const u64 *)rig->arg;
    CHECK(took_ns >= least_ns && took_ns < 2 * least_ns);
}

static void
who_serves_many_keeps_to_the_rate_of_one(void **state)
{
    run_paced(paced_source_story, 2);
}

/* Pages are so small then that nobody waits for longer than he may. */
static void
who_serves_many_keeps_to_a_low_rate(void **state)
{
    run_paced_at(KIB(16), paced_source_story, 6);
}

/* Six gain at once, so that what waits for its turn at the source is more than it serves at a time:
 * clients who look through all keys wait for none of that, but when the places change. */
static MAY_YIELD void
crowd_story(struct rig *rig)
{
    (void)paced_begin(rig);
    for (u32 i = 2; i < rig->node_count; i++)
        rig_start_begin(rig, i);
    struct rig_client client;
    while (!ok(rig_try_connect(rig, 3, &client)))
        fiber_sleep_ns(10 * NS_PER_MS);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    u32 held = 0, counted = 0;
    while (!cluster_rig_is_settled(rig, rig->node_count, rig->node_count)) {
        u64 began_ns = io_now_ns();
        CHECK(began_ns < deadline_ns);
        struct bytes reply = rig_call(&client, "DBSIZE");
        if (reply.size > 0 && reply.data[0] == ':') counted++;
        if (counted > 0) held += io_now_ns() - began_ns > 100 * NS_PER_MS;
        fiber_sleep_ns(50 * NS_PER_MS);
    }
    CHECK(counted > 100 && held <= 3);
    rig_disconnect(&client);
}

static void
scans_do_not_wait_for_what_moves_slowly(void **state)
{
    run_paced(crowd_story, 6);
}

/* change: of a node, who gains, and who has it. */
static MAY_YIELD void
hurried_by(struct rig *rig, void (*change)(struct rig *rig, u32 node))
{
    u64 bytes = paced_begin(rig);
    u64 began_ns = io_now_ns();
    fiber_sleep_ns(2 * NS_PER_S);
    for (u32 i = 0; i < 2; i++)
        change(rig, i);
    wait_settled(rig, 2);
    CHECK(io_now_ns() - began_ns < bytes * NS_PER_S / PACED_RATE);
}

static MAY_YIELD void
change_by_command(struct rig *rig, u32 node)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "CONFIG SET move-rate 0"), "+OK\r\n"));
    rig_disconnect(&client);
}

static MAY_YIELD void
hurried_story(struct rig *rig)
{
    hurried_by(rig, change_by_command);
}

/* As the host does when it has read the config file again. */
static MAY_YIELD void
change_by_file(struct rig *rig, u32 node)
{
    char error[OPTION_ERROR_BYTES];
    status st = config_set(rig->nodes[node].server->config, "move-rate", "0", error, sizeof(error));
    CHECK(ok(st));
}

static MAY_YIELD void
reloaded_story(struct rig *rig)
{
    hurried_by(rig, change_by_file);
}

static void
the_rate_of_moves_is_changed_by_the_file_as_well(void **state)
{
    run_paced(reloaded_story, 1);
}

static void
the_rate_of_moves_is_changed_while_they_go_on(void **state)
{
    run_paced(hurried_story, 1);
}

static MAY_YIELD void
rate_set(struct rig *rig, u32 node, const char *rate)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "CONFIG SET move-rate %s", rate), "+OK\r\n"));
    rig_disconnect(&client);
}

/* A source that was told to go slowly owes nothing for that once it may go fast. */
static MAY_YIELD void
raised_story(struct rig *rig)
{
    wait_settled(rig, 1);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < 20; i++)
        CHECK(rig_is(rig_call(&client, "SETRANGE p%u 64999 x", i), ":65000\r\n"));
    rig_disconnect(&client);
    rate_set(rig, 0, "1KiB"); /* behind each of them a minute is due */
    rig_start_begin(rig, 1);
    while (atomic_load(&rig->nodes[0].server->cluster->serve_at_ns) < io_now_ns() + 60 * NS_PER_S)
        fiber_sleep_ns(10 * NS_PER_MS);
    for (u32 i = 0; i < 2; i++)
        rate_set(rig, i, "64MiB");
    u64 began_ns = io_now_ns();
    wait_settled(rig, 2);
    CHECK(io_now_ns() - began_ns < 3 * NS_PER_S);
}

static void
a_rate_of_before_is_not_waited_for(void **state)
{
    run_paced(raised_story, 1);
}

/* ---- what a source serves to who gains ---- */

#define SOURCE 0u
#define ASKER  1u /* and what holds the plan up; the third node joins, and gains */

/* A request under way, which barriers wait for. */
struct held {
    struct hold *hold;
    u8 stage;    /* begins when the shard learns of this */
    bool before; /* is from before it */
};

static MAY_YIELD void
held_begin(struct shard *shard, void *arg)
{
    struct held *held = arg;
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    const struct topology *topology;
    while ((topology = shard->cluster->topology)->stage != held->stage) {
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(50 * NS_PER_US);
    }
    held->hold =
        hold_begin(shard->cluster->replicator, topology->stage_epoch - (held->before ? 1 : 0));
}

static void
held_end(struct shard *shard, void *arg)
{
    (void)shard;
    hold_end(((struct held *)arg)->hold);
}

struct stream_ask {
    u32 member;
    u64 session, epoch;
    status st;
    u16 answered;
};

static MAY_YIELD void
stream_ask(struct shard *shard, void *arg)
{
    struct stream_ask *ask = arg;
    struct cluster_page page = {.bytes_max = KIB(1)}; /* of the first token */
    u8 head[CLUSTER_PAGE_HEAD_BYTES];
    cluster_page_encode(&page, ask->session, head);
    struct bytes part = BYTES(head, sizeof(head));
    struct native_header header = {.opcode = PEER_STREAM, .epoch = ask->epoch}, answer = {0};
    struct buf out;
    bool maybe_sent;
    buf_init(&out, &shard->budget);
    ask->st = peer_call_wait(shard->cluster->peers, ask->member, 0, &header, &part, 1,
                             io_now_ns() + WAIT_NS, &answer, &out, &maybe_sent);
    ask->answered = answer.status;
    buf_deinit(&out);
}

static MAY_YIELD bool
source_serves(struct rig *rig, u64 session, u64 epoch)
{
    struct stream_ask ask = {.member = cluster_member(rig->nodes[SOURCE].server->cluster),
                             .session = session,
                             .epoch = epoch};
    rig_on_node(rig, ASKER, 0, stream_ask, &ask);
    CHECK(ok(ask.st));
    CHECK(ask.answered == NATIVE_ST_OK || ask.answered == NATIVE_ST_WRONG_EPOCH);
    return ask.answered == NATIVE_ST_OK;
}

/* Waits until the source has that, with nothing from before the stage under way in it, or with. */
static MAY_YIELD const struct topology *
source_awaits(struct rig *rig, u8 stage, bool fenced, bool behind)
{
    const struct cluster *cluster = rig->nodes[SOURCE].server->cluster;
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    for (;;) {
        const struct topology *topology = cluster->shards[0]->topology;
        if (topology->stage == stage && topology_fenced(topology) == fenced &&
            (cluster_own_epoch(cluster) < topology->stage_epoch) == behind)
            return topology;
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(NS_PER_MS);
    }
}

/* Who has not fetched what the source takes alone, or asks by a plan that is over, would take the
 * places of who has it, without all of it. */
static MAY_YIELD void
source_story(struct rig *rig)
{
    static char filler[2000];
    memset(filler, 'x', sizeof(filler) - 1);
    wait_settled(rig, 2);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < PACED_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET p%u %s", i, filler), "+OK\r\n"));
    rig_disconnect(&client);
    rig_start_begin(rig, 2);

    struct held held = {.stage = STAGE_WRITE_BOTH, .before = true};
    rig_on_node(rig, ASKER, 0, held_begin, &held);
    const struct topology *topology = source_awaits(rig, STAGE_WRITE_BOTH, false, false);
    u64 session = topology->session, stage_epoch = topology->stage_epoch;
    for (u32 i = 0; i < 20; i++) { /* nor later, while the fence is not there */
        CHECK(!source_serves(rig, session, stage_epoch));
        fiber_sleep_ns(50 * NS_PER_MS);
    }
    CHECK(source_awaits(rig, STAGE_WRITE_BOTH, false, false)->session == session);
    rig_on_node(rig, ASKER, 0, held_end, &held);

    u64 epoch = source_awaits(rig, STAGE_WRITE_BOTH, true, false)->epoch;
    CHECK(source_serves(rig, session, epoch));
    CHECK(!source_serves(rig, session + 1, epoch));       /* another plan's */
    CHECK(!source_serves(rig, session, stage_epoch - 1)); /* who does not know the stage */
    CHECK(source_serves(rig, session, epoch));
    /* Something from before the stage goes on in the source. */
    rig_on_node(rig, SOURCE, 0, held_begin, &held);
    (void)source_awaits(rig, STAGE_WRITE_BOTH, true, true);
    CHECK(!source_serves(rig, session, epoch));
    rig_on_node(rig, SOURCE, 0, held_end, &held);
    (void)source_awaits(rig, STAGE_WRITE_BOTH, true, false);
    CHECK(source_serves(rig, session, epoch));

    /* All have fetched: what comes in the next stage is not for who begins only then. */
    held = (struct held){.stage = STAGE_READ_NEXT};
    rig_on_node(rig, ASKER, 0, held_begin, &held);
    topology = source_awaits(rig, STAGE_READ_NEXT, true, false);
    CHECK(topology->session == session);
    CHECK(!source_serves(rig, session, topology->epoch));
    CHECK(source_awaits(rig, STAGE_READ_NEXT, true, false)->session == session);
    rig_on_node(rig, ASKER, 0, held_end, &held);
    wait_settled(rig, 3);
    CHECK(!source_serves(rig, session, cluster_rig_topology(rig, SOURCE)->epoch));
}

static void
a_source_serves_who_gains_by_the_present_plan_behind_its_fence(void **state)
{
    (void)state;
    u64 rate = PACED_RATE;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, source_story);
        rig.configure = configure_paced;
        rig.arg = &rate;
        rig.late_count = 1;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* A node comes back with another number of shards, and the others' topology tells of the old one
 * for a while: who looks through all keys meanwhile finds all, or is refused. */
static MAY_YIELD void
reshard_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    char expected[16];
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    rig_disconnect(&client);
    snprintf(expected, sizeof(expected), ":%u\r\n", KEYS);
    u32 whole = 0;
    for (u32 node = 0; node < NODES; node++) {
        struct server_config *config = rig->nodes[node].config;
        rig_crash(rig, node);
        config->core_count = 4 - config->core_count; /* 3 and 1; 2 stays */
        config->memory_bytes = MIB(64) * config->core_count;
        rig_start(rig, node);
        for (u32 i = 0; i < 40; i++) {
            rig_connect_to(rig, i % 2 == 0 ? node : (node + 1) % NODES, &client);
            struct bytes reply = rig_call(&client, "DBSIZE");
            CHECK(reply.size > 0);
            if (reply.data[0] != '-') CHECK(rig_is(reply, expected));
            whole += reply.data[0] != '-';
            rig_disconnect(&client);
            fiber_sleep_ns(5 * NS_PER_MS);
        }
        wait_settled(rig, NODES);
    }
    CHECK(whole > 0);
}

static void
all_keys_are_found_while_a_node_changes_its_shards(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, reshard_story);
        rig_run(&rig);
    }
}

static MAY_YIELD struct native_reply
native_at(struct rig_client *client, enum native_opcode opcode, enum native_level level)
{
    struct native_request request = {.header.opcode = (u8)opcode};
    request.header.flags = (u16)(level << NATIVE_LEVEL_SHIFT);
    request.scan.token_last = UINT64_MAX;
    request.scan.entries_max = 1000;
    request.scan.bytes_max = KIB(64);
    if (opcode == NATIVE_COUNT) request.count.exact = true;
    return rig_native_call(client, &request);
}

/* SCAN, KEYS and DBSIZE follow the connection's level: by ONE a node that is alone shows what it
 * has itself, which by more is not answered. */
static MAY_YIELD void
alone_story(struct rig *rig)
{
    struct rig_client client, native;
    wait_settled(rig, NODES);
    rig_connect_to(rig, 0, &client);
    rig_connect_to(rig, 0, &native);
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ALL"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "SET k v"), "+OK\r\n"));
    rig_crash(rig, 1);
    fiber_sleep_ns(2 * NS_PER_S); /* until that is known */
    CHECK(rig_call(&client, "DBSIZE").data[0] == '-');
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY DEFAULT"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "DBSIZE"), ":1\r\n"));
    rig_crash(rig, 2);
    fiber_sleep_ns(2 * NS_PER_S);
    CHECK(rig_call(&client, "DBSIZE").data[0] == '-');
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "DBSIZE"), ":1\r\n"));
    CHECK(rig_is(rig_call(&client, "KEYS *"), "*1\r\n$1\r\nk\r\n"));
    CHECK(rig_is(rig_call(&client, "RANDOMKEY"), "$1\r\nk\r\n"));
    CHECK(rig_is(rig_call(&client, "SCAN 0 COUNT 1000"), "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n"));
    enum native_opcode both[] = {NATIVE_SCAN, NATIVE_COUNT};
    for (u32 i = 0; i < ARRAY_COUNT(both); i++) {
        struct native_reply reply = native_at(&native, both[i], NATIVE_LEVEL_QUORUM);
        CHECK(reply.header.status == NATIVE_ST_UNAVAILABLE);
        reply = native_at(&native, both[i], NATIVE_LEVEL_ONE);
        CHECK(reply.header.status == NATIVE_ST_OK);
        CHECK((both[i] == NATIVE_SCAN ? reply.scan.count : reply.count.count) == 1);
    }
    rig_disconnect(&client);
    rig_disconnect(&native);
}

static void
scans_and_counts_follow_the_level(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, alone_story);
        rig_run(&rig);
    }
}

/* A peer that answers with keys alone where values were asked for: there is nothing behind them. */
static void
a_key_alone_is_no_entry_of_a_page_with_values(void **state)
{
    (void)state;
    u8 page[1 + 23 + 1] = {[1] = 3, [1 + 17] = 1, [1 + 19] = 7, [1 + 23] = 'k'};
    struct cluster_page_entry entry;
    size_t at = 1;
    assert_true(ok(cluster_page_next(BYTES(page, sizeof(page)), true, &at, &entry)));
    assert_int_equal(entry.entry.value.size, 7);
    at = 1;
    assert_true(
        status_is(cluster_page_next(BYTES(page, sizeof(page)), false, &at, &entry), ST_CORRUPT));
    assert_int_equal(at, 1);
}

/* And what a shard does not have is not absent: who is asked for a page that does not lie on the
 * shard says so. (Where all replicas but one are asked as well, nobody would notice.) */
static MAY_YIELD void
read_all(struct shard *shard, void *arg)
{
    u64 first, last;
    struct buf out;
    struct cluster_page page = {.token_last = UINT64_MAX, .bytes_max = KIB(64)};
    status *outcomes = arg;
    buf_init(&out, &shard->budget);
    outcomes[0] = cluster_page_read(shard->cluster, &page, &out);
    lsm_tokens(shard->lsm, &first, &last);
    page.token = first;
    outcomes[1] = cluster_page_read(shard->cluster, &page, &out);
    page.token_last = last;
    outcomes[2] = cluster_page_read(shard->cluster, &page, &out);
    page.token = 0;
    outcomes[3] = cluster_page_read(shard->cluster, &page, &out);
    buf_deinit(&out);
}

static MAY_YIELD void
page_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    CHECK(rig->nodes[0].config->core_count == 3);
    for (u32 shard = 0; shard < 3; shard++) {
        status outcomes[4];
        rig_on_shard(rig, shard, read_all, outcomes);
        CHECK(status_is(outcomes[0], ST_WOULD_WAIT));
        CHECK(shard == 2 ? ok(outcomes[1]) : status_is(outcomes[1], ST_WOULD_WAIT));
        CHECK(ok(outcomes[2]));
        CHECK(shard == 0 ? ok(outcomes[3]) : status_is(outcomes[3], ST_WOULD_WAIT));
    }
}

static void
a_page_of_another_shard_is_not_empty(void **state)
{
    struct rig rig = rig_of(2, page_story);
    rig_run(&rig);
}

/* Topologies come until group0 is closed, and what they bring must not outlive the node: a node
 * joins, and everybody stops at some moment of it. */
static MAY_YIELD void
stop_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    rig_start_begin(rig, NODES);
    fiber_sleep_ns(*(u64 *)rig->arg);
}

static void
nodes_stop_while_the_topology_changes(void **state)
{
    for (u64 seed = 1; seed <= 4 * SEED_COUNT; seed++) {
        u64 after_ns = seed * 97 * NS_PER_MS;
        struct rig rig = rig_of(seed, stop_story);
        rig.node_count = NODES + 1;
        rig.late_count = 1;
        rig.arg = &after_ns;
        rig_run(&rig);
    }
}

/* The same where the end takes long: the node that joins is far away, and waits for the answer to
 * what it fetches, while keyspaces are made elsewhere, each of which is a topology. */
static void
stop_now(void *arg)
{
    struct rig_node *node = arg;
    sim_node_stop(node->machine);
}

static MAY_YIELD void
stop_far_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    struct rig_node *late = &rig->nodes[NODES];
    for (u32 i = 0; i < NODES; i++)
        sim_link_slow_set(rig->sim, rig->nodes[i].machine, late->machine, 80 * NS_PER_MS);
    rig_start_begin(rig, NODES);
    fiber_sleep_ns(*(u64 *)rig->arg);
    for (u32 i = 1; i < 15; i++) {
        rig_send(&client, "SELECT %u", i);
        rig_send(&client, "SET k v");
        CHECK(rig_read(&client).size > 0 && rig_read(&client).size > 0);
        if (i == 3) sim_at(rig->sim, sim_now_ns(rig->sim), stop_now, late);
    }
    rig_disconnect(&client);
}

static void
a_node_stops_slowly_while_the_topology_changes(void **state)
{
    for (u64 seed = 1; seed <= 4 * SEED_COUNT; seed++) {
        u64 after_ns = 2 * NS_PER_S + seed * 97 * NS_PER_MS;
        struct rig rig = rig_of(seed, stop_far_story);
        rig.node_count = NODES + 1;
        rig.late_count = 1;
        rig.arg = &after_ns;
        rig_run(&rig);
    }
}

/* The others decide something that this version does not know: whatever a node did from then on by
 * its own topology might be wrong. It stops, says why, and does not start again as it is. (All
 * nodes here are of the same version, so all of them do.) */
static void
later_done(struct group0 *group0, struct group0_proposal *proposal,
           const struct group0_outcome *outcome)
{
    (void)group0;
    (void)proposal;
    (void)outcome;
}

static MAY_YIELD void
decide_something_later(struct shard *shard, void *arg)
{
    struct group0 *group0 = shard->cluster->group0;
    struct topology_command command = {.kind = TOPOLOGY_FENCE,
                                       .state_before = group0_topology(group0)->state_id,
                                       .state_after = io_random()};
    struct group0_proposal *proposal = arg;
    struct group0_outcome outcome;
    struct buf bytes;
    buf_init(&bytes, io_budget());
    CHECK(topology_command_encode(&command, &bytes));
    bytes.data[1] = 200; /* a kind that there is not yet */
    *proposal = (struct group0_proposal){.done = later_done};
    CHECK(group0_propose(group0, &command, buf_bytes(&bytes), proposal, &outcome));
    buf_deinit(&bytes);
}

static MAY_YIELD void
expect_stopped(const struct rig *rig, u32 node, u64 wait_ns)
{
    u64 deadline_ns = io_now_ns() + wait_ns;
    while (sim_node_running(rig->nodes[node].machine) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(!sim_node_running(rig->nodes[node].machine));
    CHECK(status_is(sim_node_result(rig->nodes[node].machine), ST_UNSUPPORTED));
    CHECK(strstr(server_failure(rig->nodes[node].server), "upgrade this node") != NULL);
}

static MAY_YIELD void
outdated_story(struct rig *rig)
{
    static struct group0_proposal proposal;
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    CHECK(rig_is(rig_call(&client, "SET before 1"), "+OK\r\n"));
    rig_on_node(rig, leader_of(rig), 0, decide_something_later, &proposal);
    for (u32 i = 0; i < NODES; i++)
        expect_stopped(rig, i, 10 * NS_PER_S);
    CHECK(rig_call(&client, "GET before").size == 0); /* the connection has ended */
    rig_disconnect(&client);
    for (u32 i = 0; i < NODES; i++) {
        rig_crash(rig, i); /* only its memory: it does not run */
        rig_start_begin(rig, i);
        expect_stopped(rig, i, 10 * NS_PER_S);
        rig_crash(rig, i);
    }
}

static void
a_node_stops_when_the_others_decide_what_it_does_not_know(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, outdated_story);
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* One that was not upgraded wants to join: what the log begins behind is of a format that it does
 * not know. (The bytes are made so; no newer snapshot follows.) */
static MAY_YIELD void
snapshots_soon(struct shard *shard, void *arg)
{
    (void)arg;
    shard->cluster->group0->options.snapshot_entries = 1;
}

static MAY_YIELD void
snapshots_later(struct shard *shard, void *arg)
{
    (void)arg;
    struct group0 *group0 = shard->cluster->group0;
    CHECK(group0->base_blob != NULL && group0->base_blob->data[0] == 1);
    group0->base_blob->data[0] = 4;
    group0->options.snapshot_entries = UINT32_MAX;
}

static MAY_YIELD void
outdated_joiner_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    for (u32 i = 0; i < NODES; i++)
        rig_on_node(rig, i, 0, snapshots_soon, NULL);
    rig_connect_to(rig, 0, &client);
    for (u32 i = 1; i < 4; i++) { /* a topology each */
        CHECK(rig_is(rig_call(&client, "SELECT %u", i), "+OK\r\n"));
        CHECK(rig_is(rig_call(&client, "SET k v"), "+OK\r\n"));
    }
    fiber_sleep_ns(2 * NS_PER_S);
    for (u32 i = 0; i < NODES; i++)
        rig_on_node(rig, i, 0, snapshots_later, NULL);
    rig_start_begin(rig, NODES);
    expect_stopped(rig, NODES, 20 * NS_PER_S);
    rig_crash(rig, NODES);
    CHECK(rig_is(rig_call(&client, "SET k w"), "+OK\r\n")); /* the others go on */
    rig_disconnect(&client);
}

static void
a_node_that_cannot_read_the_topology_does_not_join(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, outdated_joiner_story);
        rig.node_count = NODES + 1;
        rig.late_count = 1;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* A node comes back with more shards than the others' topology tells of, and all but the first
 * stand still before they are in the cluster. What others send to the first for them must not be
 * done by a shard that knows of no replicas: what is acknowledged then is there without this node.
 */
#define EARLY_NODES 4u
#define EARLY_KEYS  400u

static MAY_YIELD void
early_wait(const struct server *server)
{
    const struct shard *const *shards = (const struct shard *const *)server->shards;
    while (shards[0] == NULL || shards[0]->cluster == NULL)
        fiber_sleep_ns(100 * NS_PER_US);
}

static MAY_YIELD void
early_story(struct rig *rig)
{
    wait_settled(rig, EARLY_NODES);
    struct rig_client client;
    struct server_config *config = rig->nodes[1].config;
    u32 acknowledged = 0;
    bool done[EARLY_KEYS] = {false};
    rig_crash(rig, 1);
    config->core_count = 4;
    for (u32 i = 0; i < config->core_count; i++)
        config->core_list[i] = i;
    config->memory_bytes = MIB(64) * config->core_count;
    rig_start_begin(rig, 1);
    early_wait(rig->nodes[1].server);
    for (u32 i = 1; i < config->core_count; i++)
        sim_node_shard_stall(rig->nodes[1].machine, i, 20 * NS_PER_MS);
    u64 until_ns = io_now_ns() + 2 * NS_PER_S;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < EARLY_KEYS && io_now_ns() < until_ns; i++) {
        done[i] = rig_is(rig_call(&client, "SET e%u v%u NX", i, i), "+OK\r\n");
        acknowledged += done[i];
    }
    CHECK(acknowledged > 0);
    rig_crash(rig, 1);
    for (u32 i = 0; i < EARLY_KEYS; i++) {
        char key[16], value[16];
        snprintf(key, sizeof(key), "e%u", i);
        snprintf(value, sizeof(value), "v%u", i);
        if (done[i]) expect_key(&client, key, value);
    }
    rig_disconnect(&client);
    rig_start(rig, 1);
    wait_settled(rig, EARLY_NODES);
}

static void
nothing_is_acknowledged_by_a_shard_that_is_not_in_the_cluster_yet(void **state)
{
    for (u64 seed = 1; seed <= 4 * SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, early_story);
        rig.node_count = EARLY_NODES;
        rig_run(&rig);
    }
}

/* SCAN answers in bounded time where the others are far away: with fewer keys, or none, and a
 * cursor. In the end all were shown. */
#define SCAN_TIMEOUT_MS 500u

static void
configure_scan(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->cluster_timeout_ms = SCAN_TIMEOUT_MS;
}

static MAY_YIELD void
slow_scan_story(struct rig *rig)
{
    wait_settled(rig, rig->node_count);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    for (u32 i = 1; i < rig->node_count; i++)
        sim_link_slow_set(rig->sim, rig->nodes[0].machine, rig->nodes[i].machine, 60 * NS_PER_MS);
    u64 seen = 0;
    char cursor[32] = "0";
    do {
        u64 begun_ns = io_now_ns();
        struct bytes reply = rig_call(&client, "SCAN %s COUNT 1000", cursor);
        CHECK(io_now_ns() - begun_ns < 3 * SCAN_TIMEOUT_MS * NS_PER_MS);
        int length = 0;
        CHECK(reply.size > 8 &&
              sscanf((const char *)reply.data, "*2\r\n$%d\r\n%31[0-9]", &length, cursor) == 2);
        for (size_t at = 0; at + 1 < reply.size; at++)
            seen += reply.data[at] == '\n' && reply.data[at + 1] == 'k';
    } while (strcmp(cursor, "0") != 0);
    CHECK(seen >= KEYS); /* twice is allowed */
    for (u32 i = 1; i < rig->node_count; i++)
        sim_link_slow_set(rig->sim, rig->nodes[0].machine, rig->nodes[i].machine, 0);
    rig_disconnect(&client);
}

static void
a_scan_over_slow_links_answers_in_time(void **state)
{
    for (u64 seed = 1; seed <= 2; seed++) {
        struct rig rig = rig_of(seed, slow_scan_story);
        rig.configure = configure_scan;
        rig.node_count = NODES + (u32)seed % 2;
        rig_run(&rig);
    }
}

/* ---- what is wrong with a node ---- */

/* What the first node knows of the last one's own account. */
static u8
told_of_last(const struct rig *rig)
{
    const struct cluster_shard *shard = rig->nodes[0].server->cluster->shards[0];
    const struct cluster_ping *ping =
        cluster_ping_of(shard, cluster_member(rig->nodes[NODES - 1].server->cluster));
    return ping == NULL ? 0 : ping->ill;
}

static MAY_YIELD void
wait_reason(const struct rig *rig, u32 node, const char *word)
{
    for (u64 end = io_now_ns() + WAIT_NS;;) {
        const char *reason = server_not_ready(rig->nodes[node].server);
        if (word == NULL ? reason == NULL : reason != NULL && strstr(reason, word) != NULL) return;
        if (io_now_ns() >= end)
            fprintf(stderr, "node %u is not ready: %s; waited for: %s\n", node,
                    reason == NULL ? "it is" : reason, word == NULL ? "to be" : word);
        CHECK(io_now_ns() < end);
        fiber_sleep_ns(50 * NS_PER_MS);
    }
}

/* Each node is the first replica of some, and is asked for all. */
static MAY_YIELD void
expect_all_served(struct rig *rig, const char *round)
{
    for (u32 i = 0; i < NODES; i++) {
        struct rig_client client;
        rig_connect_to(rig, i, &client);
        for (u32 k = 0; k < 30; k++) {
            CHECK(rig_is(rig_call(&client, "SET k%u v", k), "+OK\r\n"));
            CHECK(rig_is(rig_call(&client, "GET k%u", k), "$1\r\nv\r\n"));
            CHECK(rig_is(rig_call(&client, "INCR %s%u-%u", round, i, k), ":1\r\n"));
        }
        rig_disconnect(&client);
    }
}

/* The last node's clock is set ahead: its writes would be refused, and it and all others say so,
 * until it is right again. Meanwhile others coordinate what it would, asked through it or through
 * themselves, so that no request fails. Then the others are gone: it says that it can do nothing,
 * but not when it is the first one up, since who starts them all one by one would wait for ever. */
static MAY_YIELD void
wrong_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    for (u32 i = 0; i < NODES; i++)
        wait_reason(rig, i, NULL);
    u32 last = NODES - 1;
    const struct cluster *cluster = rig->nodes[last].server->cluster;
    sim_node_clock_step(rig->nodes[last].machine, 2000);
    wait_reason(rig, last, "clock");
    CHECK(atomic_load(&cluster->clock_ahead_ms) > 250);
    fiber_sleep_ns(300 * NS_PER_MS);
    CHECK(told_of_last(rig) == CLUSTER_ILL_CLOCK);
    CHECK(server_not_ready(rig->nodes[0].server) == NULL);
    expect_all_served(rig, "ahead");
    sim_node_clock_step(rig->nodes[last].machine, -2000);
    wait_reason(rig, last, NULL); /* what it stamps goes on from where it was, for two seconds */
    CHECK(atomic_load(&cluster->clock_ahead_ms) == 0);
    fiber_sleep_ns(300 * NS_PER_MS);
    CHECK(told_of_last(rig) == 0);

    sim_node_clock_step(rig->nodes[last].machine, -3600 * 1000);
    wait_reason(rig, last, "clock");
    fiber_sleep_ns(300 * NS_PER_MS);
    CHECK(cluster_clock_behind_ms(cluster) > 3000 * 1000);
    CHECK(told_of_last(rig) == CLUSTER_ILL_CLOCK);
    expect_all_served(rig, "behind");
    sim_node_clock_step(rig->nodes[last].machine, 3600 * 1000);
    wait_reason(rig, last, NULL);
    fiber_sleep_ns(300 * NS_PER_MS);
    CHECK(told_of_last(rig) == 0);

    for (u32 i = 0; i < last; i++)
        rig_crash(rig, i);
    wait_reason(rig, last, "most nodes");
    rig_crash(rig, last);
    rig_start(rig, last);
    fiber_sleep_ns(2 * NS_PER_S);
    wait_reason(rig, last, NULL);
    for (u32 i = 0; i < last; i++)
        rig_start(rig, i);
    wait_settled(rig, NODES);
}

static void
what_is_wrong_with_a_node_is_known(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, wrong_story);
        rig_run(&rig);
    }
}

/* Two of four are ahead of the other two, and nobody can tell who is right: those who are ahead
 * step back, and not all. One at the limit does not come and go. */
static MAY_YIELD void
split_story(struct rig *rig)
{
    wait_settled(rig, 4);
    for (u32 i = 2; i < 4; i++)
        sim_node_clock_step(rig->nodes[i].machine, 2000);
    for (u32 i = 2; i < 4; i++)
        wait_reason(rig, i, "clock");
    fiber_sleep_ns(500 * NS_PER_MS);
    for (u32 i = 0; i < 2; i++)
        CHECK(server_not_ready(rig->nodes[i].server) == NULL);
    expect_all_served(rig, "split");
    for (u32 i = 2; i < 4; i++)
        sim_node_clock_step(rig->nodes[i].machine, -1775);
    fiber_sleep_ns(4 * NS_PER_S); /* stamps, too: 225 ms are more than 200 */
    for (u32 i = 2; i < 4; i++) {
        const char *reason = server_not_ready(rig->nodes[i].server);
        CHECK(reason != NULL && strstr(reason, "clock") != NULL);
        sim_node_clock_step(rig->nodes[i].machine, -225);
    }
    for (u32 i = 2; i < 4; i++)
        wait_reason(rig, i, NULL);
}

static void
of_two_halves_those_whose_clocks_are_ahead_step_back(void **state)
{
    for (u64 seed = 1; seed <= 2; seed++) {
        struct rig rig = rig_of(seed, split_story);
        rig.node_count = 4;
        rig_run(&rig);
    }
}

/* How long an answer is under way is not taken for a clock: 120 ms and 150 are not 270. */
static MAY_YIELD void
slow_answers_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    u32 last = NODES - 1;
    struct cluster *cluster = rig->nodes[last].server->cluster;
    for (u32 i = 0; i < last; i++)
        sim_link_slow_set(rig->sim, rig->nodes[i].machine, rig->nodes[last].machine,
                          150 * NS_PER_MS);
    sim_node_clock_step(rig->nodes[last].machine, 120);
    bool slow = false;
    for (u64 end = io_now_ns() + 5 * NS_PER_S; io_now_ns() < end;) {
        CHECK((atomic_load(&cluster->ill) & CLUSTER_ILL_CLOCK) == 0);
        CHECK((told_of_last(rig) & CLUSTER_ILL_CLOCK) == 0);
        for (u32 i = 0; i < last; i++) {
            u32 member = cluster_member(rig->nodes[i].server->cluster);
            const struct cluster_ping *ping = cluster_ping_of(cluster->shards[0], member);
            CHECK(ping->clock_ms >= -120 && ping->clock_ms <= 0);
            slow |= ping->rtt_ns >= 300 * NS_PER_MS;
        }
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    CHECK(slow);
    sim_node_clock_step(rig->nodes[last].machine, -120);
    for (u32 i = 0; i < last; i++)
        sim_link_slow_set(rig->sim, rig->nodes[i].machine, rig->nodes[last].machine, 0);
    wait_settled(rig, NODES);
}

static void
answers_that_are_slow_say_nothing_of_clocks(void **state)
{
    for (u64 seed = 1; seed <= 2; seed++) {
        struct rig rig = rig_of(seed, slow_answers_story);
        rig_run(&rig);
    }
}

static void
configure_two(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 2);
}

/* Only the second shard has stamped something while the clock was wrong: what it stamps afterwards
 * is refused for as long, though the first shard's stamps are right. */
static MAY_YIELD void
wrong_shard_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    u32 last = NODES - 1;
    struct cluster *cluster = rig->nodes[last].server->cluster;
    char key[16];
    u32 number = 0;
    do {
        snprintf(key, sizeof(key), "k%u", number++);
    } while (hash_token(BYTES(key, strlen(key))) >> 63 == 0);
    sim_node_clock_step(rig->nodes[last].machine, 3000);
    struct rig_client client;
    rig_connect_to(rig, last, &client);
    struct bytes reply = rig_call(&client, "SET %s v", key);
    CHECK(reply.size > 0 && reply.data[0] == '-');
    rig_disconnect(&client);
    sim_node_clock_step(rig->nodes[last].machine, -3000);
    fiber_sleep_ns(300 * NS_PER_MS);
    CHECK(replicator_ahead_ms(cluster->shards[0]->replicator, io_wall_ms()) < 250);
    CHECK(replicator_ahead_ms(cluster->shards[1]->replicator, io_wall_ms()) > 1000);
    CHECK(atomic_load(&cluster->clock_ahead_ms) > 250);
    wait_reason(rig, last, "clock");
    wait_reason(rig, last, NULL);
}

static void
a_clock_that_is_wrong_for_one_shard_is_wrong(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, wrong_shard_story);
        rig.shard_count = 2;
        rig.configure = configure_two;
        rig_run(&rig);
    }
}

/* A disk that takes seconds for a write of the log: the node says that it takes no writes, and no
 * longer than that. */
static MAY_YIELD void
slow_disk_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    bool stuck = false;
    for (u64 end = io_now_ns() + WAIT_NS; !stuck && io_now_ns() < end;) {
        (void)rig_call(&client, "SET k v");
        for (u32 i = 0; i < NODES; i++) {
            const char *reason = server_not_ready(rig->nodes[i].server);
            stuck |= reason != NULL && strstr(reason, "takes no writes") != NULL;
        }
        fiber_sleep_ns(50 * NS_PER_MS);
    }
    CHECK(stuck);
    rig_disconnect(&client);
    sim_faults_end(rig->sim);
    for (u32 i = 0; i < NODES; i++)
        wait_reason(rig, i, NULL);
}

static void
a_disk_that_stalls_is_told(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, slow_disk_story);
        rig.options.disk.stall_ppm = 5000;
        rig.options.disk.stall_ns = 4 * NS_PER_S;
        rig_run(&rig);
    }
}

/* A node joins whose clock is behind, as that of a machine may be that has just started. What it
 * has fetched is of its own future; what it acknowledges is newer all the same. */
#define BEHIND_MS 10000

static void
configure_alone(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->replicas = config->write_quorum = config->read_quorum = 1;
}

static MAY_YIELD void
behind_story(struct rig *rig)
{
    wait_settled(rig, 1);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u old", i), "+OK\r\n"));
    rig_disconnect(&client);
    sim_node_clock_step(rig->nodes[1].machine, -BEHIND_MS);
    rig_start(rig, 1);
    wait_settled(rig, 2);
    const struct topology *topology = cluster_rig_topology(rig, 1);
    u32 self = cluster_member(rig->nodes[1].server->cluster), gained = 0;
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i < KEYS; i++) {
        char key[32];
        int size = snprintf(key, sizeof(key), "k%u", i);
        u64 token = hash_token(BYTES(key, (size_t)size));
        struct topology_row row;
        topology_row(topology, 0, token_partition(token, topology->partition_count), &row);
        if (row.write[0] != self) continue;
        gained++;
        CHECK(rig_is(rig_call(&client, "SET %s new", key), "+OK\r\n"));
        expect_key(&client, key, "new");
    }
    CHECK(gained != 0);
    rig_disconnect(&client);
}

static void
who_joins_with_a_clock_that_is_behind_loses_nothing(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, behind_story);
        rig.node_count = 2;
        rig.late_count = 1;
        rig.configure = configure_alone;
        rig_run(&rig);
    }
}

/* A source has what it stamped while its clock was ahead, and nobody else took: who gains goes on
 * with the other sources, and says that it is this one that does not serve. */
static MAY_YIELD void
future_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    char request[1024] = "MSET";
    for (u32 i = 0, at = 4; i < KEYS; i++)
        at += (u32)snprintf(request + at, sizeof(request) - at, " k%u v", i);
    sim_node_clock_step(rig->nodes[0].machine, 3600 * 1000);
    struct bytes reply = rig_call(&client, "%s", request);
    CHECK(reply.data[0] == '-'); /* the others refuse it */
    rig_disconnect(&client);
    sim_node_clock_step(rig->nodes[0].machine, -3600 * 1000);
    rig_start_begin(rig, NODES);
    wait_settled(rig, NODES + 1);
    const struct cluster *cluster = rig->nodes[NODES].server->cluster;
    u64 failures = 0;
    for (u32 i = 0; i < rig->nodes[NODES].server->shard_count; i++)
        failures += cluster->shards[i]->fetch_failures;
    CHECK(failures != 0);
    CHECK(!sim_log_contains(rig->sim, "what this node gains does not get into its store"));
}

static void
who_gains_does_without_a_source_that_has_writes_of_the_future(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, future_story);
        rig.node_count = NODES + 1;
        rig.late_count = 1;
        rig_run(&rig);
    }
}

/* ---- damage ---- */

#define DAMAGE_KEYS 1500u
#define DAMAGE_LAST (NODES - 1)

static MAY_YIELD void
flush_shard(struct shard *shard, void *arg)
{
    (void)arg;
    status st = lsm_flush(shard->lsm);
    CHECK(ok(st));
}

static MAY_YIELD void
damage_fill(struct rig *rig, u32 node)
{
    static char filler[200];
    memset(filler, 'x', sizeof(filler) - 1);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < DAMAGE_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET d%u %s%u", i, filler, i), "+OK\r\n"));
    rig_disconnect(&client);
    fiber_sleep_ns(2 * NS_PER_S); /* the third replica has it all, too */
    for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++)
        rig_on_node(rig, node, shard, flush_shard, NULL);
}

struct largest {
    const struct sim_disk *disk;
    u64 size;
    char path[600];
};

static void
largest_table(void *arg, const char *path)
{
    struct largest *largest = arg;
    u64 size;
    if (strrchr(path, '/')[1] != 't' || !ok(sim_disk_file_size(largest->disk, path, &size))) return;
    if (size <= largest->size) return;
    largest->size = size;
    snprintf(largest->path, sizeof(largest->path), "%s", path);
}

/* One bit flips in the node's largest table, a third from the beginning; or, with `unreadable`, the
 * disk cannot read the sector any more. */
static bool unreadable;

static void
damage_table(struct rig *rig, u32 node)
{
    struct sim_disk *disk = sim_node_disk(rig->nodes[node].machine);
    struct largest largest = {.disk = disk};
    sim_disk_each_file(disk, largest_table, &largest);
    CHECK(largest.size > KIB(16));
    status st = unreadable ? sim_disk_latent(disk, largest.path, largest.size / 3)
                           : sim_disk_flip(disk, largest.path, largest.size / 3, 1);
    CHECK(ok(st));
}

static MAY_YIELD void
expect_filled(struct rig *rig, u32 node, const char *level)
{
    char key[32], value[256];
    struct rig_client client;
    memset(value, 'x', 199);
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY %s", level), "+OK\r\n"));
    for (u32 i = 0; i < DAMAGE_KEYS; i++) {
        snprintf(key, sizeof(key), "d%u", i);
        snprintf(value + 199, sizeof(value) - 199, "%u", i);
        expect_key(&client, key, value);
    }
    rig_disconnect(&client);
}

static u64
incomplete_of(const struct rig *rig, u32 node)
{
    const struct server *server = rig->nodes[node].server;
    u64 count = 0;
    for (u32 i = 0; i < server->shard_count; i++)
        count += server->cluster->shards[i]->fetch_incomplete;
    return count;
}

/* The second one is lost with its disk, and comes back with an empty one. */
static MAY_YIELD void
rebuild_second(struct rig *rig)
{
    struct server_config *config = rig->nodes[1].config;
    rig_crash(rig, 1);
    snprintf(config->data_dir, sizeof(config->data_dir), "/empty");
    rig_start(rig, 1);
    wait_settled(rig, NODES);
    expect_filled(rig, 1, "DEFAULT");
    expect_filled(rig, 1, "ONE");
}

/* The last one has a damaged block. It is one of two sources: what lies in the block comes from the
 * other one. */
static MAY_YIELD void
damaged_source_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    damage_table(rig, DAMAGE_LAST);
    rebuild_second(rig);
    for (u32 i = 0; i < NODES; i++)
        expect_filled(rig, i, "DEFAULT");
    CHECK(incomplete_of(rig, 1) != 0);
    CHECK(sim_log_contains(rig->sim, "a source has damaged blocks"));
    CHECK(atomic_load(&rig->nodes[1].server->cluster->fetch_failed_from) == 0);
}

static void
a_damaged_block_of_a_source_does_not_hold_up_a_rebuild(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, damaged_source_story);
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* Reads ask one, but not every write is on it: so whoever gains asks two, as above. */
static void
configure_write_two(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->write_quorum = 2;
    config->read_quorum = 1;
}

static void
a_damaged_block_does_not_hold_up_a_rebuild_where_reads_ask_one(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, damaged_source_story);
        rig.configure = configure_write_two;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* One source is enough: it is one without damage. */
static void
configure_read_one(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->write_quorum = NODES;
    config->read_quorum = 1;
}

static MAY_YIELD void
other_source_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    damage_table(rig, DAMAGE_LAST);
    rebuild_second(rig);
    CHECK(incomplete_of(rig, 1) == 0);
}

static void
who_is_rebuilt_asks_first_those_without_damage(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, other_source_story);
        rig.configure = configure_read_one;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* Where there is no other copy, nobody takes the partition without what is damaged, as if it were
 * not there: the move waits, and says for whom. */
static MAY_YIELD void
only_source_story(struct rig *rig)
{
    wait_settled(rig, 1);
    damage_fill(rig, 0);
    damage_table(rig, 0);
    rig_start(rig, 1);
    fiber_sleep_ns(20 * NS_PER_S);
    const struct cluster *cluster = rig->nodes[1].server->cluster;
    CHECK(!cluster_rig_is_settled(rig, 2, 2));
    CHECK(atomic_load(&cluster->fetch_failed_from) == cluster_member(rig->server->cluster));
    CHECK(incomplete_of(rig, 1) == 0);
    CHECK(sim_log_contains(rig->sim, "a source does not serve what we gain from=n1"));
    struct rig_client client;
    u32 refused = 0;
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i < DAMAGE_KEYS; i++) {
        struct bytes reply = rig_call(&client, "GET d%u", i);
        CHECK(!rig_is(reply, "$-1\r\n"));
        refused += reply.data[0] == '-';
    }
    CHECK(refused > 0 && refused < DAMAGE_KEYS / 2);
    rig_disconnect(&client);
}

static void
what_is_damaged_in_the_only_copy_does_not_become_absent(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, only_source_story);
        rig.configure = configure_alone;
        rig.node_count = 2;
        rig.late_count = 1;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* ---- what fails where it is gained ---- */

#define SLOW_BYTES_PER_S KIB(64)

static void
configure_alone_slow(struct rig *rig, u32 node, struct server_config *config)
{
    configure_alone(rig, node, config);
    config->move_rate_bytes = SLOW_BYTES_PER_S;
}

/* As if many tables had come, or had gone again. */
static void
indexes_full_set(struct rig *rig, u32 node, bool full)
{
    const struct server *server = rig->nodes[node].server;
    for (u32 i = 0; i < server->shard_count; i++) {
        struct lsm *lsm = server->cluster->shards[i]->lsm;
        u64 more = lsm->budget.limit_bytes / 16 * 7;
        lsm->levels->table_stats.index_bytes += full ? more : -more;
        CHECK(!full || lsm_index_is_full(lsm));
    }
}

static MAY_YIELD void
second_begins_to_gain(struct rig *rig)
{
    wait_settled(rig, 1);
    damage_fill(rig, 0);
    rig_start_begin(rig, 1);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    const struct topology *topology;
    while (((topology = cluster_rig_topology(rig, 1)) == NULL ||
            topology->stage != STAGE_WRITE_BOTH || !topology_fenced(topology)) &&
           io_now_ns() < deadline_ns)
        fiber_sleep_ns(NS_PER_MS);
}

/* Its store has no room for what it gains: the one that it asks serves all the same. */
static MAY_YIELD void
full_gainer_story(struct rig *rig)
{
    second_begins_to_gain(rig);
    indexes_full_set(rig, 1, true);
    fiber_sleep_ns(20 * NS_PER_S);
    const struct cluster *cluster = rig->nodes[1].server->cluster;
    u64 failures = 0;
    for (u32 i = 0; i < rig->nodes[1].server->shard_count; i++) {
        failures += cluster->shards[i]->fetch_failures;
        CHECK(cluster->shards[i]->fetch_avoid == 0);
    }
    CHECK(failures >= 10 && !cluster_rig_is_settled(rig, 2, 2));
    CHECK(atomic_load(&cluster->fetch_failed_from) == 0);
    CHECK(!sim_log_contains(rig->sim, "a source does not serve"));
    CHECK(sim_log_contains(rig->sim, "what this node gains does not get into its store"));
    indexes_full_set(rig, 1, false);
    wait_settled(rig, 2);
    expect_filled(rig, 1, "DEFAULT");
}

static void
what_the_own_store_refuses_is_told_of_no_source(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, full_gainer_story);
        rig.configure = configure_alone_slow;
        rig.node_count = 2;
        rig.late_count = 1;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* So it is for want of memory, which is told, too. */
static MAY_YIELD void
gainer_without_memory_story(struct rig *rig)
{
    second_begins_to_gain(rig);
    struct cluster_shard *shard = rig->nodes[1].server->cluster->shards[1];
    u64 limit_bytes = shard->budget.limit_bytes;
    shard->budget.limit_bytes = 0;
    fiber_sleep_ns(20 * NS_PER_S);
    CHECK(shard->fetch_failures >= 10);
    CHECK(atomic_load(&shard->cluster->fetch_failed_from) == 0);
    CHECK(!sim_log_contains(rig->sim, "a source does not serve"));
    CHECK(sim_log_contains(rig->sim, "no memory to fetch what this node gains"));
    shard->budget.limit_bytes = limit_bytes;
    wait_settled(rig, 2);
    expect_filled(rig, 1, "DEFAULT");
}

static void
what_there_is_no_memory_to_fetch_is_told_of_no_source(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, gainer_without_memory_story);
        rig.configure = configure_alone_slow;
        rig.shard_count = seed % 2 == 0 ? 1 : 3; /* who gains has three, or two */
        rig.node_count = 2;
        rig.late_count = 1;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* How many the node's stores know of. */
static MAY_YIELD u64
damaged_files(struct rig *rig, u32 node)
{
    u64 files = 0;
    struct lsm_stats stats;
    for (u32 i = 0; i < rig->nodes[node].server->shard_count; i++) {
        lsm_stats_get(rig->nodes[node].server->cluster->shards[i]->lsm, &stats);
        files += stats.damaged_files;
    }
    return files;
}

/* A write may be on one node alone, so nobody is spared, and nothing is mended. */
static void
configure_write_one(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->write_quorum = 1;
    config->read_quorum = NODES;
}

/* Two copies, and one has a damaged block: comparing tells, and does not try again and again what
 * cannot come to an end. All else is compared. */
static MAY_YIELD void
compared_damage_story(struct rig *rig)
{
    wait_settled(rig, 2);
    damage_fill(rig, 1);
    damage_table(rig, 1);
    for (u32 node = 0; node < 2; node++) {
        const struct cluster_shard *shard = rig->nodes[node].server->cluster->shards[0];
        struct rig_client client;
        struct trees_stats trees;
        u64 began_ns = io_now_ns();
        rig_connect_to(rig, node, &client);
        CHECK(rig_is(rig_call(&client, "DISTKV.REPAIR"), "+OK\r\n"));
        rig_disconnect(&client);
        do {
            fiber_sleep_ns(100 * NS_PER_MS);
            trees_stats_get(shard, &trees);
        } while (trees.repairing && io_now_ns() - began_ns < 60 * NS_PER_S);
        CHECK(!trees.repairing && trees.repair_done == trees.repair_total);
        CHECK(io_now_ns() - began_ns < 20 * NS_PER_S);
        CHECK(trees.repair_missed == 0 && trees.repair_damaged != 0);
        CHECK(trees.repair_damaged < trees.repair_total / 2);
    }
    fiber_sleep_ns(30 * NS_PER_S);
    CHECK(damaged_files(rig, 1) == 1);
    CHECK(!sim_log_contains(rig->sim, "these partitions are given up"));
}

static void
what_damage_prevents_comparing_is_told_at_once(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, compared_damage_story);
        rig.configure = configure_write_one;
        rig.node_count = 2;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* ---- what is mended ---- */

static void
run_on_all_nodes(void (*story)(struct rig *rig))
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, story);
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

static bool
is_mended(struct rig *rig)
{
    for (u32 i = 0; i < rig->node_count; i++) {
        const struct topology *topology = rig->nodes[i].server->cluster->shards[0]->topology;
        if (topology == NULL || topology->stage != STAGE_NONE || topology_mending(topology) != 0)
            return false;
        for (u32 p = 0; p < topology->partition_count; p++)
            for (u32 k = 0; k < topology->current.width; k++)
                if ((placement_row(&topology->current, p)[k] & TOPOLOGY_GONE) != 0) return false;
    }
    return true;
}

/* Somebody reads all of it from the node itself, which refuses what is damaged. */
static MAY_YIELD u32
meet_damage(struct rig *rig, u32 node)
{
    struct rig_client client;
    u32 refused = 0;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), "+OK\r\n"));
    for (u32 i = 0; i < DAMAGE_KEYS; i++) {
        struct bytes reply = rig_call(&client, "GET d%u", i);
        CHECK(!rig_is(reply, "$-1\r\n"));
        refused += reply.data[0] == '-';
    }
    rig_disconnect(&client);
    return refused;
}

/* What goes through all of a keyspace sees what reads see: in place of one replica that is damaged
 * others are asked, whoever is asked first. */
static MAY_YIELD void
scanned_damage_story(struct rig *rig)
{
    char all[32];
    wait_settled(rig, NODES);
    u32 damaged = (u32)(io_random() % NODES);
    damage_fill(rig, damaged);
    damage_table(rig, damaged);
    snprintf(all, sizeof(all), ":%u\r\n", DAMAGE_KEYS);
    for (u32 i = 0; i < 2 * NODES; i++) {
        struct rig_client client;
        rig_connect_to(rig, i % NODES, &client);
        CHECK(rig_is(rig_call(&client, "DBSIZE"), all));
        struct bytes keys = rig_call(&client, "KEYS d1*");
        CHECK(keys.size > 6 && memcmp(keys.data, "*611\r\n", 6) == 0);
        rig_disconnect(&client);
    }
    struct rig_client client;
    rig_connect_to(rig, damaged, &client); /* but what it has itself is what it has */
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), "+OK\r\n"));
    if (rig->configure == configure_read_one) CHECK(rig_call(&client, "DBSIZE").data[0] == '-');
    rig_disconnect(&client);
}

static void
all_is_listed_though_a_replica_is_damaged(void **state)
{
    for (u64 seed = 1; seed <= 2 * SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, scanned_damage_story);
        if (seed % 2 == 0) rig.configure = configure_read_one; /* no damage is mended */
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* The node forgets what damage lies in, and has it again from the others. */
static MAY_YIELD void
expect_mended(struct rig *rig, u32 node)
{
    u64 until_ns = io_now_ns() + WAIT_NS;
    while (!sim_log_contains(rig->sim, "these partitions are given up")) {
        CHECK(io_now_ns() < until_ns);
        (void)meet_damage(rig, node);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    while (!is_mended(rig) || damaged_files(rig, node) != 0) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    CHECK(meet_damage(rig, node) == 0);
    expect_filled(rig, node, "ONE");
}

static MAY_YIELD void
mended_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    damage_table(rig, DAMAGE_LAST);
    expect_mended(rig, DAMAGE_LAST);
    rig_crash(rig, DAMAGE_LAST); /* what was brought is durable */
    rig_start(rig, DAMAGE_LAST);
    wait_settled(rig, NODES);
    expect_filled(rig, DAMAGE_LAST, "ONE");
    for (u32 i = 0; i < NODES; i++)
        expect_filled(rig, i, "DEFAULT");
}

static void
a_damaged_block_is_mended_from_replicas(void **state)
{
    run_on_all_nodes(mended_story);
}

/* It has given up what it had, and has not removed it, or not fetched it yet. */
static MAY_YIELD void
mended_over_crashes_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    damage_table(rig, DAMAGE_LAST);
    while (!sim_log_contains(rig->sim, "these partitions are given up"))
        (void)meet_damage(rig, DAMAGE_LAST);
    for (u32 i = 0; i < 3; i++) {
        fiber_sleep_ns(io_random() % (4 * NS_PER_S));
        rig_crash(rig, i == 1 ? 0 : DAMAGE_LAST);
        rig_start(rig, i == 1 ? 0 : DAMAGE_LAST);
    }
    u64 until_ns = io_now_ns() + WAIT_NS;
    while (!is_mended(rig)) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    expect_mended(rig, DAMAGE_LAST);
}

static void
who_mends_may_crash_at_any_step(void **state)
{
    run_on_all_nodes(mended_over_crashes_story);
}

static MAY_YIELD void
compact_shard(struct shard *shard, void *arg)
{
    status *st = arg;
    *st = lsm_compact(shard->lsm);
}

static MAY_YIELD void
compact_all(struct rig *rig, u32 node, status expected)
{
    for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++) {
        status st = ST_OK;
        rig_on_node(rig, node, shard, compact_shard, &st);
        CHECK(ok(st) || status_is(st, expected));
    }
}

/* Merges meet it first, which fail until it counts as damage, and go on when it is mended. */
static MAY_YIELD void
merges_mended_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    compact_all(rig, DAMAGE_LAST, ST_OK);
    damage_fill(rig, DAMAGE_LAST);
    damage_table(rig, DAMAGE_LAST);
    compact_all(rig, DAMAGE_LAST, ST_IO_ERROR);
    fiber_sleep_ns(5 * NS_PER_S);
    expect_mended(rig, DAMAGE_LAST);
    compact_all(rig, DAMAGE_LAST, ST_OK);
    for (u32 i = 0; i < NODES; i++)
        expect_filled(rig, i, "DEFAULT");
}

/* A node that lost its disk is rebuilt, too, while one of the others cannot read a sector. */
static void
a_sector_that_cannot_be_read_is_mended_from_replicas(void **state)
{
    (void)state;
    unreadable = true;
    run_on_all_nodes(mended_story);
    run_on_all_nodes(merges_mended_story);
    run_on_all_nodes(damaged_source_story);
    unreadable = false;
}

/* The others are down, and the one that has the damage has met it. */
static MAY_YIELD void
damage_alone(struct rig *rig)
{
    for (u32 i = 0; i < NODES; i++)
        rig_crash(rig, i);
    damage_table(rig, DAMAGE_LAST);
    rig_start_begin(rig, DAMAGE_LAST);
    fiber_sleep_ns(5 * NS_PER_S);
    compact_all(rig, DAMAGE_LAST, ST_CORRUPT);
}

/* A merge meets the damage while nobody has a topology yet, and the store does not fail. */
static MAY_YIELD void
mended_from_the_start_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    compact_all(rig, DAMAGE_LAST, ST_OK);
    damage_fill(rig, DAMAGE_LAST);
    damage_alone(rig);
    rig_start_begin(rig, 0);
    rig_start_begin(rig, 1);
    wait_settled(rig, NODES);
    expect_mended(rig, DAMAGE_LAST);
}

static void
damage_that_is_met_before_there_is_a_topology_is_mended(void **state)
{
    run_on_all_nodes(mended_from_the_start_story);
}

static MAY_YIELD void
trees_bound(struct shard *shard, void *arg)
{
    struct trees *trees = shard->cluster->trees;
    u64 *limit = arg, before = trees->budget.limit_bytes;
    trees->budget.limit_bytes = *limit;
    *limit = before;
}

/* What compares follows the topology later than what mends. */
static MAY_YIELD void
mended_without_trees_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    damage_alone(rig);
    u64 limits[4] = {0};
    u32 shards = rig->nodes[DAMAGE_LAST].config->core_count;
    CHECK(shards <= ARRAY_COUNT(limits));
    for (u32 shard = 0; shard < shards; shard++)
        rig_on_node(rig, DAMAGE_LAST, shard, trees_bound, &limits[shard]);
    rig_start_begin(rig, 0);
    rig_start_begin(rig, 1);
    wait_settled(rig, NODES);
    fiber_sleep_ns(10 * NS_PER_S);
    CHECK(damaged_files(rig, DAMAGE_LAST) != 0);
    for (u32 shard = 0; shard < shards; shard++)
        rig_on_node(rig, DAMAGE_LAST, shard, trees_bound, &limits[shard]);
    expect_mended(rig, DAMAGE_LAST);
}

static void
who_mends_waits_for_what_compares(void **state)
{
    run_on_all_nodes(mended_without_trees_story);
}

#define TAG_KEYS      600u
#define TAG_PARTITION 1234u

/* Keys of one partition, and of many tokens: what one of them is called. */
static u32
tag_number(u32 index)
{
    static u32 numbers[TAG_KEYS];
    char name[16];
    for (u32 n = 0, found = 0; numbers[TAG_KEYS - 1] == 0; n++) {
        struct bytes key = BYTES(name, (size_t)snprintf(name, sizeof(name), "e%u", n));
        if (token_partition(hash_token(key), PARTITION_COUNT_DEFAULT) == TAG_PARTITION)
            numbers[found++] = n;
    }
    return numbers[index];
}

/* As two of three have acknowledged them. */
static MAY_YIELD void
tag_write(struct shard *shard, void *arg)
{
    (void)arg;
    static char filler[200];
    memset(filler, 'e', sizeof(filler));
    u64 first, last, seq;
    lsm_tokens(shard->lsm, &first, &last);
    for (u32 i = 0; i < TAG_KEYS; i++) {
        char name[16];
        struct bytes key = BYTES(name, (size_t)snprintf(name, sizeof(name), "e%u", tag_number(i)));
        u64 token = hash_token(key);
        if (token < first || token > last) continue;
        struct lsm_batch batch;
        lsm_batch_init(&batch, io_budget());
        batch.version = 4096 + i;
        CHECK(lsm_batch_put(&batch, 0, token, key, BYTES(filler, sizeof(filler)), 0));
        status st = lsm_write(shard->lsm, &batch, &seq);
        CHECK(ok(st));
        lsm_batch_deinit(&batch);
    }
    flush_shard(shard, NULL);
}

static MAY_YIELD u32
tag_found(struct rig *rig, u32 node, const char *level)
{
    struct rig_client client;
    u32 found = 0;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY %s", level), "+OK\r\n"));
    for (u32 i = 0; i < TAG_KEYS; i++) {
        struct bytes reply = rig_call(&client, "GET e%u", tag_number(i));
        found += reply.data[0] == '$' && reply.data[1] != '-';
    }
    rig_disconnect(&client);
    return found;
}

/* The node itself meets what is damaged of them. */
static MAY_YIELD void
tag_scan(struct shard *shard, void *arg)
{
    u32 *damaged = arg;
    struct lsm_scan *scan;
    status st = lsm_scan_open(shard->lsm, NULL, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan);
    CHECK(ok(st));
    u64 token;
    struct bytes key;
    struct lsm_value value;
    while (ok(st))
        st = lsm_scan_next(scan, true, &token, &key, &value);
    *damaged += status_is(st, ST_CORRUPT);
    lsm_scan_close(scan);
}

static MAY_YIELD void
tag_meet(struct rig *rig, u32 node)
{
    u32 damaged = 0;
    for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++)
        rig_on_node(rig, node, shard, tag_scan, &damaged);
    CHECK(damaged == 1);
}

static void
damage_fifth(struct rig *rig, u32 node, u32 fifth)
{
    struct sim_disk *disk = sim_node_disk(rig->nodes[node].machine);
    struct largest largest = {.disk = disk};
    sim_disk_each_file(disk, largest_table, &largest);
    CHECK(largest.size > KIB(16));
    status st = sim_disk_flip(disk, largest.path, largest.size * fifth / 5, 1);
    CHECK(ok(st));
}

/* Two of three have each key, and each of these has one damaged block, with other keys of the
 * partition: whoever gave up all of it would give up the only copy of what the other one lost. */
static MAY_YIELD void
both_damaged_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    for (u32 node = 1; node < NODES; node++)
        for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++)
            rig_on_node(rig, node, shard, tag_write, NULL);
    damage_fifth(rig, 1, 4);
    damage_fifth(rig, 2, 1);
    tag_meet(rig, 2);
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (!sim_log_contains(rig->sim,
                             "damage is not mended from other nodes yet: one of them does "
                             "not say that it has it")) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    fiber_sleep_ns(30 * NS_PER_S);
    CHECK(!sim_log_contains(rig->sim, "these partitions are given up"));
    for (u32 node = 0; node < NODES; node++)
        CHECK(tag_found(rig, node, "QUORUM") == TAG_KEYS);
}

static void
nothing_is_given_up_that_others_cannot_read(void **state)
{
    run_on_all_nodes(both_damaged_story);
}

/* Of three that hold them one takes no writes: without the damaged one there would be no write
 * quorum. What can be done is done when it takes writes again. */
static MAY_YIELD void
damaged_beside_full_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    for (u32 node = 0; node < NODES; node++)
        for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++)
            rig_on_node(rig, node, shard, tag_write, NULL);
    struct server_config *config = rig->nodes[2].config;
    u64 reserve = config->disk_reserve_bytes;
    rig_crash(rig, 2);
    config->disk_reserve_bytes = GIB(1024);
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    fiber_sleep_ns(2 * NS_PER_S); /* its pings tell */
    damage_fifth(rig, 1, 1);
    tag_meet(rig, 1);
    u64 until_ns = io_now_ns() + 60 * NS_PER_S;
    while (!sim_log_contains(rig->sim, "damage is not mended from other nodes yet: one of them "
                                       "takes no writes")) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    fiber_sleep_ns(10 * NS_PER_S);
    CHECK(!sim_log_contains(rig->sim, "these partitions are given up"));
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < TAG_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET e%u new", tag_number(i)), "+OK\r\n"));
    rig_disconnect(&client);
    rig_crash(rig, 2);
    config->disk_reserve_bytes = reserve;
    rig_start(rig, 2);
    until_ns = io_now_ns() + WAIT_NS;
    while (!sim_log_contains(rig->sim, "these partitions are given up") || !is_mended(rig)) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    for (u32 node = 0; node < NODES; node++)
        CHECK(tag_found(rig, node, "QUORUM") == TAG_KEYS);
}

static void
nothing_is_given_up_beside_a_holder_that_takes_no_writes(void **state)
{
    run_on_all_nodes(damaged_beside_full_story);
}

/* What the third one lacked it has before anything is given up: so if the disk of another one is
 * lost just then, nothing is lost with it but what lay in the damaged block. */
static MAY_YIELD void
handed_over_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    for (u32 node = 1; node < NODES; node++)
        for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++)
            rig_on_node(rig, node, shard, tag_write, NULL);
    damage_fifth(rig, 2, 1);
    tag_meet(rig, 2);
    u64 until_ns = io_now_ns() + WAIT_NS;
    while (!sim_log_contains(rig->sim, "these partitions are given up")) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    struct server_config *config = rig->nodes[1].config;
    rig_crash(rig, 1);
    snprintf(config->data_dir, sizeof(config->data_dir), "/empty");
    rig_start(rig, 1);
    wait_settled(rig, NODES);
    while (!is_mended(rig)) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    for (u32 node = 0; node < NODES; node++) {
        u32 found = tag_found(rig, node, "QUORUM");
        CHECK(found > TAG_KEYS * 3 / 4); /* a block has some sixty */
    }
}

static void
others_have_what_can_be_read_before_it_is_given_up(void **state)
{
    run_on_all_nodes(handed_over_story);
}

struct block_of {
    struct rig *rig;
    u32 node, partition;
    u32 flipped;
};

/* A bit of each block of the largest run in which something of the partition lies, and something
 * of the next one. */
static void
block_flip(struct shard *shard, void *arg)
{
    struct block_of *of = arg;
    const struct run_set *set = shard->lsm->levels->current;
    for (u32 i = 0; i < run_set_tree_count(set, 0); i++) {
        const struct run *run = run_set_tree_run(set, 0, i);
        for (u32 j = 0; j < run->count; j++) {
            const struct table *table = run->slots[j].file->table;
            const struct table_index *index = table->index;
            for (u32 block = 0; block + 1 < index->block_count; block++) {
                if (token_partition(index->tokens[block], PARTITION_COUNT_DEFAULT) >
                        of->partition ||
                    token_partition(index->tokens[block + 1], PARTITION_COUNT_DEFAULT) <=
                        of->partition)
                    continue;
                char path[LSM_PATH_BYTES];
                table_path(path, table->dir, table->meta.file_id);
                status st = sim_disk_flip(sim_node_disk(of->rig->nodes[of->node].machine), path,
                                          table_index_offset(index, block) + 40, 1);
                CHECK(ok(st));
                of->flipped++;
            }
        }
    }
}

static MAY_YIELD void
damage_partition(struct rig *rig, u32 node, u32 partition)
{
    struct block_of of = {.rig = rig, .node = node, .partition = partition};
    for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++)
        rig_on_node(rig, node, shard, block_flip, &of);
    CHECK(of.flipped != 0);
}

/* The last partition that the member lost; topology as node 0 has it. */
static u32
last_lost(const struct rig *rig, u32 node)
{
    const struct topology *topology = rig->nodes[0].server->cluster->shards[0]->topology;
    u32 id = TOPOLOGY_GONE | cluster_member(rig->nodes[node].server->cluster), last = 0;
    for (u32 p = 0; p < topology->partition_count; p++)
        for (u32 k = 0; k < topology->current.width; k++)
            if (placement_row(&topology->current, p)[k] == id) last = p;
    return last;
}

/* While it mends, the next block rots, which begins in what it lost and goes on in what it holds;
 * another one cannot read that either. Neither can be removed, and nobody waits for that for ever.
 */
static MAY_YIELD void
mending_in_vain_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    damage_fill(rig, DAMAGE_LAST);
    for (u32 shard = 0; shard < rig->nodes[1].config->core_count; shard++)
        rig_on_node(rig, 1, shard, flush_shard, NULL);
    damage_table(rig, DAMAGE_LAST);
    while (!sim_log_contains(rig->sim, "these partitions are given up"))
        (void)meet_damage(rig, DAMAGE_LAST);
    while (last_lost(rig, DAMAGE_LAST) == 0)
        fiber_sleep_ns(NS_PER_MS);
    u32 last = last_lost(rig, DAMAGE_LAST);
    damage_partition(rig, DAMAGE_LAST, last);
    damage_partition(rig, 1, last + 1);
    rig_crash(rig, 1); /* no cache has it */
    rig_start(rig, 1);
    u64 until_ns = io_now_ns() + 300 * NS_PER_S;
    while (!is_mended(rig)) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(NS_PER_S);
    }
    CHECK(sim_log_contains(rig->sim, "what was given up is taken back"));
    for (u32 i = 0; i < NODES; i++) {
        struct rig_client client;
        rig_connect_to(rig, i, &client);
        for (u32 key = 0; key < DAMAGE_KEYS; key++)
            CHECK(!rig_is(rig_call(&client, "GET d%u", key), "$-1\r\n"));
        rig_disconnect(&client);
    }
}

static void
who_mends_in_vain_holds_up_nobody_for_ever(void **state)
{
    run_on_all_nodes(mending_in_vain_story);
}

/* What only the damaged store has yet: values of old below, and above them tombstones, which the
 * others have collected both. Whatever block is damaged, none of the values comes back. */
#define HIDDEN_KEYS    1500u
#define HIDDEN_VERSION 4096u

struct hidden {
    bool deletes;
    u32 live;
};

static MAY_YIELD void
hidden_write(struct shard *shard, void *arg)
{
    const struct hidden *hidden = arg;
    static char filler[200];
    memset(filler, 'o', sizeof(filler));
    struct cluster_shard *cluster = shard->cluster;
    u64 first, last, seq;
    lsm_tokens(cluster->lsm, &first, &last);
    for (u32 i = 0; i < HIDDEN_KEYS; i++) {
        char name[16];
        struct bytes key = BYTES(name, (size_t)snprintf(name, sizeof(name), "h%u", i));
        u64 token = hash_token(key);
        if (token < first || token > last) continue;
        struct lsm_batch batch;
        lsm_batch_init(&batch, &cluster->budget);
        batch.version = HIDDEN_VERSION + i + (hidden->deletes ? HIDDEN_KEYS : 0);
        CHECK(hidden->deletes
                  ? lsm_batch_delete(&batch, 0, token, key)
                  : lsm_batch_put(&batch, 0, token, key, BYTES(filler, sizeof(filler)), 0));
        status st = lsm_write(cluster->lsm, &batch, &seq);
        CHECK(ok(st));
        lsm_batch_deinit(&batch);
    }
    flush_shard(shard, NULL);
}

static MAY_YIELD void
hidden_count(struct shard *shard, void *arg)
{
    struct hidden *hidden = arg;
    struct lsm_scan *scan;
    status st = lsm_scan_open(shard->lsm, NULL, 0, 0, BYTES(NULL, 0), UINT64_MAX, &scan);
    CHECK(ok(st));
    u64 token;
    struct bytes key;
    struct lsm_value value;
    while (ok(st = lsm_scan_next(scan, true, &token, &key, &value)))
        hidden->live += key.data[0] == 'h';
    lsm_scan_close(scan);
}

static MAY_YIELD void
hidden_on_all(struct rig *rig, void (*what)(struct shard *shard, void *arg), struct hidden *hidden)
{
    for (u32 shard = 0; shard < rig->nodes[DAMAGE_LAST].config->core_count; shard++)
        rig_on_node(rig, DAMAGE_LAST, shard, what, hidden);
}

static MAY_YIELD void
hidden_story(struct rig *rig)
{
    struct hidden hidden = {0};
    wait_settled(rig, NODES);
    hidden_on_all(rig, hidden_write, &hidden);
    hidden.deletes = true;
    hidden_on_all(rig, hidden_write, &hidden);
    damage_fill(rig, DAMAGE_LAST);
    hidden_on_all(rig, hidden_count, &hidden); /* and so the cache has the block, as it was */
    CHECK(hidden.live == 0);
    damage_table(rig, DAMAGE_LAST);
    u64 until_ns = io_now_ns() + WAIT_NS;
    while (!sim_log_contains(rig->sim, "these partitions are given up") && io_now_ns() < until_ns) {
        (void)meet_damage(rig, DAMAGE_LAST);
        hidden_on_all(rig, hidden_count, &hidden);
        CHECK(hidden.live == 0);
        fiber_sleep_ns(NS_PER_S);
    }
    while (!is_mended(rig) || damaged_files(rig, DAMAGE_LAST) != 0) {
        CHECK(io_now_ns() < until_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    hidden_on_all(rig, hidden_count, &hidden);
    CHECK(hidden.live == 0);
    expect_filled(rig, DAMAGE_LAST, "ONE");
}

static void
what_a_damaged_block_hid_does_not_come_back(void **state)
{
    run_on_all_nodes(hidden_story);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_alone_is_no_entry_of_a_page_with_values),
        cmocka_unit_test(any_node_takes_any_command),
        cmocka_unit_test(increments_from_all_nodes_are_all_counted),
        cmocka_unit_test(increments_wait_for_who_runs_them),
        cmocka_unit_test(a_node_that_loses_its_power_stops_nobody),
        cmocka_unit_test(a_node_that_is_back_at_once_is_not_asked_over_what_was_before),
        cmocka_unit_test(a_member_left_behind_by_a_join_loses_nothing),
        cmocka_unit_test(a_cluster_survives_a_blackout),
        cmocka_unit_test(two_join_under_load_and_nobody_notices),
        cmocka_unit_test(who_joins_gets_all_pages_of_what_is_written_meanwhile),
        cmocka_unit_test(who_joins_with_a_clock_that_is_behind_loses_nothing),
        cmocka_unit_test(who_gains_does_without_a_source_that_has_writes_of_the_future),
        cmocka_unit_test(a_damaged_block_of_a_source_does_not_hold_up_a_rebuild),
        cmocka_unit_test(a_damaged_block_does_not_hold_up_a_rebuild_where_reads_ask_one),
        cmocka_unit_test(who_is_rebuilt_asks_first_those_without_damage),
        cmocka_unit_test(what_is_damaged_in_the_only_copy_does_not_become_absent),
        cmocka_unit_test(what_the_own_store_refuses_is_told_of_no_source),
        cmocka_unit_test(what_there_is_no_memory_to_fetch_is_told_of_no_source),
        cmocka_unit_test(what_damage_prevents_comparing_is_told_at_once),
        cmocka_unit_test(all_is_listed_though_a_replica_is_damaged),
        cmocka_unit_test(a_damaged_block_is_mended_from_replicas),
        cmocka_unit_test(a_sector_that_cannot_be_read_is_mended_from_replicas),
        cmocka_unit_test(who_mends_may_crash_at_any_step),
        cmocka_unit_test(who_mends_in_vain_holds_up_nobody_for_ever),
        cmocka_unit_test(nothing_is_given_up_that_others_cannot_read),
        cmocka_unit_test(nothing_is_given_up_beside_a_holder_that_takes_no_writes),
        cmocka_unit_test(others_have_what_can_be_read_before_it_is_given_up),
        cmocka_unit_test(damage_that_is_met_before_there_is_a_topology_is_mended),
        cmocka_unit_test(who_mends_waits_for_what_compares),
        cmocka_unit_test(what_a_damaged_block_hid_does_not_come_back),
        cmocka_unit_test(what_moves_keeps_to_its_rate),
        cmocka_unit_test(who_serves_many_keeps_to_the_rate_of_one),
        cmocka_unit_test(who_serves_many_keeps_to_a_low_rate),
        cmocka_unit_test(scans_do_not_wait_for_what_moves_slowly),
        cmocka_unit_test(the_rate_of_moves_is_changed_while_they_go_on),
        cmocka_unit_test(the_rate_of_moves_is_changed_by_the_file_as_well),
        cmocka_unit_test(a_source_serves_who_gains_by_the_present_plan_behind_its_fence),
        cmocka_unit_test(a_rate_of_before_is_not_waited_for),
        cmocka_unit_test(all_keys_are_found_while_a_node_changes_its_shards),
        cmocka_unit_test(scans_and_counts_follow_the_level),
        cmocka_unit_test(a_page_of_another_shard_is_not_empty),
        cmocka_unit_test(nodes_stop_while_the_topology_changes),
        cmocka_unit_test(a_node_stops_slowly_while_the_topology_changes),
        cmocka_unit_test(a_node_stops_when_the_others_decide_what_it_does_not_know),
        cmocka_unit_test(a_node_that_cannot_read_the_topology_does_not_join),
        cmocka_unit_test(nothing_is_acknowledged_by_a_shard_that_is_not_in_the_cluster_yet),
        cmocka_unit_test(what_is_wrong_with_a_node_is_known),
        cmocka_unit_test(of_two_halves_those_whose_clocks_are_ahead_step_back),
        cmocka_unit_test(answers_that_are_slow_say_nothing_of_clocks),
        cmocka_unit_test(a_clock_that_is_wrong_for_one_shard_is_wrong),
        cmocka_unit_test(a_disk_that_stalls_is_told),
        cmocka_unit_test(a_scan_over_slow_links_answers_in_time),
        cmocka_unit_test(members_come_back_under_other_addresses),
        cmocka_unit_test(a_cluster_comes_back_under_other_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
