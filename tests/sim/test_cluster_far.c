/* SPDX-License-Identifier: MIT
 *
 * test_cluster_far.c -- members that share no partition: they are pinged once a second, and all
 * that waits for what a ping brings takes no longer than among near ones. Seven whole nodes on the
 * simulated link; each key has one replica, so nobody is a partner of anybody, and only whoever
 * leads group0 has near members: the voters, which are all seven.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cluster/cluster.h"
#include "cluster_rig.h"

#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#else
#define SEED_COUNT 3u
#endif
#define NODES   7u
#define WAIT_NS (60 * NS_PER_S)

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1);
    config->replicas = config->write_quorum = config->read_quorum = 1;
}

static void
run_seeds(void (*story)(struct rig *rig))
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {
            .shard_count = 1, .node_count = NODES, .configure = configure, .on_all_nodes = true};
        sim_options_default(&rig.options, seed);
        rig.story = story;
        rig_run(&rig);
    }
}

static struct cluster_shard *
shard_of(const struct rig *rig, u32 node)
{
    return rig->nodes[node].server->cluster->shards[0];
}

static u32
number_of(const struct rig *rig, u32 node)
{
    return cluster_member(rig->nodes[node].server->cluster);
}

static bool
leads(const struct rig *rig, u32 node)
{
    return group0_leads(shard_of(rig, node)->group0);
}

/* All have forgotten whom they waited for, and whom they had to tell. */
static MAY_YIELD void
wait_calm(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fiber_sleep_ns(6 * NS_PER_S);
}

/* A node that does not lead, other than that one. */
static u32
other_than(const struct rig *rig, u32 not )
{
    u32 node = 0;
    while (node == not || leads(rig, node))
        node++;
    return node;
}

/* How long it takes until the node believes so of the other one. */
static MAY_YIELD u64
until_alive_is(const struct rig *rig, u32 node, u32 member, bool alive, u64 limit_ns)
{
    u64 began_ns = io_now_ns();
    while (cluster_alive(rig->nodes[node].server->cluster, member) != alive) {
        CHECK(io_now_ns() - began_ns < limit_ns);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    return io_now_ns() - began_ns;
}

/* ---- stories ---- */

static MAY_YIELD void
calm_story(struct rig *rig)
{
    u64 before[NODES];
    struct liveness_stats stats;
    wait_calm(rig);
    for (u32 i = 0; i < NODES; i++) {
        liveness_stats_get(&shard_of(rig, i)->liveness, &stats);
        CHECK(stats.near == (leads(rig, i) ? NODES - 1 : 0));
        CHECK(stats.alive == NODES - 1);
        before[i] = stats.pings;
    }
    fiber_sleep_ns(20 * NS_PER_S);
    for (u32 i = 0; i < NODES; i++) {
        liveness_stats_get(&shard_of(rig, i)->liveness, &stats);
        u64 pings = stats.pings - before[i], each = leads(rig, i) ? 10 * 20 : 20;
        CHECK(pings >= (each - each / 20 - 1) * (NODES - 1));
        CHECK(pings <= (each + each / 20 + 1) * (NODES - 1));
        CHECK(cluster_oldest(rig->nodes[i].server->cluster,
                             shard_of(rig, i)->topology->stage_epoch) != 0);
    }
}

static void
the_far_are_pinged_once_a_second(void **state)
{
    (void)state;
    run_seeds(calm_story);
}

/* Whoever asks it for something does not wait for five of its pings. */
static MAY_YIELD void
dead_story(struct rig *rig)
{
    wait_calm(rig);
    u32 dead = other_than(rig, NODES), asks = other_than(rig, dead), idle = asks + 1;
    while (idle == dead || leads(rig, idle))
        idle++;
    u32 number = number_of(rig, dead);
    char key[32];
    struct rig_client client;
    cluster_rig_key(rig, dead, 0, key, sizeof(key));
    rig_connect_to(rig, asks, &client);
    CHECK(rig_is(rig_call(&client, "SET %s v", key), "+OK\r\n"));
    rig_crash(rig, dead);
    u64 began_ns = io_now_ns();
    struct bytes reply = rig_call(&client, "GET %s", key);
    CHECK(reply.size != 0 && reply.data[0] == '-');
    CHECK(!cluster_alive(rig->nodes[asks].server->cluster, number));
    CHECK(io_now_ns() - began_ns < NS_PER_S);
    /* Whoever does not finds out, too: in its time. */
    (void)until_alive_is(rig, idle, number, false, 6 * NS_PER_S);
    CHECK(io_now_ns() - began_ns > 3 * NS_PER_S);
    rig_start(rig, dead);
    (void)until_alive_is(rig, asks, number, true, 2 * NS_PER_S);
    (void)until_alive_is(rig, idle, number, true, 2 * NS_PER_S);
    reply = rig_call(&client, "GET %s", key);
    CHECK(rig_is(reply, "$1\r\nv\r\n"));
    rig_disconnect(&client);
}

static void
a_far_one_that_does_not_answer_a_request_is_soon_known_to_be_dead(void **state)
{
    (void)state;
    run_seeds(dead_story);
}

static void
drain_here(struct shard *shard, void *arg)
{
    const bool *undo = arg;
    CHECK(ok(cluster_drain(shard->cluster, *undo)));
}

/* That requests are to go elsewhere, and that they need not any more. */
static MAY_YIELD void
drain_story(struct rig *rig)
{
    wait_calm(rig);
    u32 drained = other_than(rig, NODES), number = number_of(rig, drained);
    for (u32 round = 0; round < 4; round++) {
        bool on = round % 2 == 0, undo = !on;
        rig_on_node(rig, drained, 0, drain_here, &undo);
        while (cluster_drained(rig->nodes[drained].server->cluster, number) != on)
            fiber_sleep_ns(NS_PER_MS);
        u64 began_ns = io_now_ns();
        for (u32 i = 0; i < NODES; i++)
            while (cluster_drained(rig->nodes[i].server->cluster, number) != on)
                fiber_sleep_ns(10 * NS_PER_MS);
        CHECK(io_now_ns() - began_ns < 200 * NS_PER_MS);
        fiber_sleep_ns(NS_PER_S + round * 370 * NS_PER_MS); /* and who was told has time to end */
    }
}

static void
far_ones_are_told_at_once_that_a_node_is_drained(void **state)
{
    (void)state;
    run_seeds(drain_story);
}

/* A change of quorums waits until every member is known to work with those before. */
static MAY_YIELD void
barrier_story(struct rig *rig)
{
    wait_calm(rig);
    u32 node = other_than(rig, NODES);
    u64 epoch = shard_of(rig, node)->topology->epoch;
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "SELECT 3"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "SET k v"), "+OK\r\n")); /* makes the keyspace: an epoch */
    u32 leader = 0;
    while (!leads(rig, leader))
        leader++;
    u64 began_ns = io_now_ns();
    for (u32 i = 0; i < NODES; i++)
        while (cluster_epoch_of(shard_of(rig, leader), number_of(rig, i)) <= epoch)
            fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(io_now_ns() - began_ns < 300 * NS_PER_MS);
    rig_disconnect(&client);
}

static void
who_leads_knows_the_epochs_of_far_ones_as_soon_as_they_have_them(void **state)
{
    (void)state;
    run_seeds(barrier_story);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_far_are_pinged_once_a_second),
        cmocka_unit_test(a_far_one_that_does_not_answer_a_request_is_soon_known_to_be_dead),
        cmocka_unit_test(far_ones_are_told_at_once_that_a_node_is_drained),
        cmocka_unit_test(who_leads_knows_the_epochs_of_far_ones_as_soon_as_they_have_them),
    };
    return cmocka_run_group_tests_name("cluster_far", tests, NULL, NULL);
}
