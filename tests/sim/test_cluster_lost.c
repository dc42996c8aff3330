/* SPDX-License-Identifier: MIT
 *
 * test_cluster_lost.c -- whole nodes on the simulated link, one of which is lost, and had the only
 * copy of something: for good (removed, replaced, or wiped), or until it comes back.
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
#include "cluster_rig.h"

#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#else
#define SEED_COUNT 2u
#endif
#define WAIT_NS (90 * NS_PER_S)
/* In the status: of no keyspace a partition is unavailable. */
#define WHOLE "\"partition_count\":4096,\"partitions_unavailable\":0,\"partitions_degraded\":0,"

/* ---- the cluster ---- */

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1 + (rig->shard_count + node) % 2);
}

/* Nobody who is gone has a place any more, as far as the node knows. */
static bool
is_whole(const struct rig *rig, u32 node)
{
    const struct topology *topology = cluster_rig_topology(rig, node);
    for (u32 p = 0; topology != NULL && p < topology->partition_count; p++) {
        struct topology_row row;
        topology_row(topology, 0, p, &row);
        if (row.count < row.places) return false;
    }
    return topology != NULL;
}

/* Until these nodes (a bit each) know so many members, all in their places. */
static MAY_YIELD void
settle(struct rig *rig, u32 nodes, u32 members)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    for (u32 i = 0; i < rig->node_count; i++)
        while ((nodes >> i & 1) && !(cluster_rig_knows(rig, i, members) && is_whole(rig, i))) {
            if (io_now_ns() > deadline_ns) sim_log_dump(rig->sim);
            CHECK(io_now_ns() < deadline_ns);
            fiber_sleep_ns(10 * NS_PER_MS);
        }
}

static MAY_YIELD void
expect_get(struct rig_client *client, const char *key, const char *value)
{
    char expected[4096];
    snprintf(expected, sizeof(expected), "$%zu\r\n%s\r\n", strlen(value), value);
    struct bytes reply = rig_call(client, "GET %s", key);
    bool right = rig_is(reply, value[0] == 0 ? "$-1\r\n" : expected);
    if (!right)
        fprintf(stderr, "GET %s: %.*s, not %s\n", key, (int)reply.size, (const char *)reply.data,
                value);
    CHECK(right);
}

/* ---- keyspaces ---- */

#define LOST_KEYS 60u
#define LOST_NODE 2u
#define LAST_NODE 4u /* starts late */

enum loss_end {
    LOSS_REMOVED,
    LOSS_REPLACED,
    LOSS_WIPED,        /* it comes back with an empty disk, as another incarnation */
    LOSS_COMES_BACK,   /* after a move has waited for it */
    LOSS_REMOVED_LATE, /* while a move waits for it */
};

/* All copies of each partition of the first are of one node. */
static const struct native_cluster loss_keyspaces[] = {
    {.replicas = 1,
     .write_quorum = 1,
     .read_quorum = 1,
     .keyspace = 12,
     .name = BYTES_LITERAL("one")},
    {.replicas = 2,
     .write_quorum = 2,
     .read_quorum = 2,
     .keyspace = 13,
     .name = BYTES_LITERAL("two")},
    {.replicas = 3,
     .write_quorum = 3,
     .read_quorum = 3,
     .keyspace = 14,
     .name = BYTES_LITERAL("all")},
    {.replicas = 1, .conflict = 1, .keyspace = 15, .name = BYTES_LITERAL("carts")},
};

static MAY_YIELD void
loss_keyspaces_make(struct rig *rig)
{
    struct rig_client client;
    rig_native_connect(rig, 0, 0, &client);
    for (u32 i = 0; i < ARRAY_COUNT(loss_keyspaces); i++) {
        struct native_request request = {.header.opcode = NATIVE_CLUSTER,
                                         .cluster = loss_keyspaces[i]};
        request.cluster.function = NATIVE_CLUSTER_KEYSPACE_SET;
        request.cluster.flags = NATIVE_CLUSTER_CREATE;
        CHECK(rig_native_call(&client, &request).header.status == NATIVE_ST_OK);
    }
    rig_disconnect(&client);
    client = (struct rig_client){0};
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i <= ARRAY_COUNT(loss_keyspaces); i++) {
        CHECK(rig_is(rig_call(&client, "SELECT %u", i == 0 ? 0 : 11 + i), "+OK\r\n"));
        for (u32 k = 0; k < LOST_KEYS; k++)
            CHECK(rig_is(rig_call(&client, "SET k%u v%u", k, k), "+OK\r\n"));
    }
    rig_disconnect(&client);
}

/* The members that hold the key in a keyspace of one replica: its only home. */
static u32
only_home(const struct topology *topology, u32 key)
{
    char name[32];
    int size = snprintf(name, sizeof(name), "k%u", key);
    struct topology_row row;
    u64 token = hash_token(BYTES(name, (size_t)size));
    topology_row(topology, 12, token_partition(token, topology->partition_count), &row);
    CHECK(row.count == 1);
    return row.write[0];
}

/* Each node has all but what is lost, and takes that anew. */
static MAY_YIELD void
expect_all_but_lost(struct rig *rig, u32 nodes, const bool *lost)
{
    struct rig_client client;
    char key[32], value[32];
    for (u32 node = 0; node < rig->node_count; node++) {
        if (!(nodes >> node & 1)) continue;
        rig_connect_to(rig, node, &client);
        for (u32 i = 0; i <= ARRAY_COUNT(loss_keyspaces); i++) {
            bool single = i == 1 || i == ARRAY_COUNT(loss_keyspaces);
            CHECK(rig_is(rig_call(&client, "SELECT %u", i == 0 ? 0 : 11 + i), "+OK\r\n"));
            for (u32 k = 0; k < LOST_KEYS; k++) {
                snprintf(key, sizeof(key), "k%u", k);
                snprintf(value, sizeof(value), "v%u", k);
                expect_get(&client, key, single && lost[k] ? "" : value);
            }
        }
        rig_disconnect(&client);
    }
    rig_connect_to(rig, 1, &client);
    for (u32 i = 12; i <= 15; i += 3) {
        CHECK(rig_is(rig_call(&client, "SELECT %u", i), "+OK\r\n"));
        for (u32 k = 0; k < LOST_KEYS; k++)
            CHECK(rig_is(rig_call(&client, "SET k%u new", k), "+OK\r\n"));
        snprintf(value, sizeof(value), ":%u\r\n", LOST_KEYS);
        CHECK(rig_is(rig_call(&client, "DBSIZE"), value));
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
remove_dead(struct rig *rig, const char *id)
{
    struct rig_client client;
    rig_native_connect(rig, 0, 0, &client);
    struct native_request request = {.header.opcode = NATIVE_CLUSTER,
                                     .cluster = {.function = NATIVE_CLUSTER_REMOVE,
                                                 .flags = NATIVE_CLUSTER_DEAD,
                                                 .node = BYTES(id, strlen(id))}};
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    for (;;) { /* until it is known to be dead */
        struct native_reply reply = rig_native_call(&client, &request);
        if (reply.header.status == NATIVE_ST_OK) break;
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    rig_disconnect(&client);
}

static MAY_YIELD bool
status_says(struct rig *rig, u32 node, const char *text)
{
    struct rig_client client;
    struct native_request request = {.header.opcode = NATIVE_CLUSTER,
                                     .cluster.function = NATIVE_CLUSTER_STATUS};
    rig_native_connect(rig, node, 0, &client);
    struct native_reply reply = rig_native_call(&client, &request);
    struct bytes json = reply.cluster.json;
    bool says = reply.header.status == NATIVE_ST_OK &&
                memmem(json.data, json.size, text, strlen(text)) != NULL;
    rig_disconnect(&client);
    return says;
}

/* Of the keyspace, what the gainer is to fetch and cannot while one is dead: of each partition as
 * many as are to be asked besides. */
static u32
missing_of(const struct topology *topology, u32 keyspace, u32 gainer, u32 dead)
{
    u32 count = 0;
    for (u32 p = 0; p < topology->partition_count; p++) {
        if (!topology_gains(topology, gainer, keyspace, p)) continue;
        struct topology_row row;
        u32 have = 0;
        topology_row(topology, keyspace, p, &row);
        u32 wanted = topology_fetch_quorum(topology, keyspace, &row);
        for (u32 i = 0; i < row.count; i++)
            have += row.write[i] != dead;
        count += wanted - MIN(have, wanted);
    }
    return count;
}

/* Until nodes fetch by a plan. */
static MAY_YIELD struct topology *
plan_of(struct rig *rig, u64 deadline_ns)
{
    for (;;) {
        const struct server *server = rig->nodes[LAST_NODE].server;
        bool ready = server != NULL && server_ready(server);
        struct topology *topology = ready ? server->cluster->shards[0]->topology : NULL;
        if (topology != NULL && topology->stage == STAGE_WRITE_BOTH && topology_fenced(topology))
            return topology;
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(NS_PER_MS);
    }
}

/* Whoever misses most of the keyspace; *total: what all miss. */
static u32
waiter_find(const struct rig *rig, const struct topology *topology, u32 keyspace, u32 dead,
            u32 *total)
{
    u32 best = LOST_NODE, most = 0;
    *total = 0;
    for (u32 node = 0; node < rig->node_count; node++) {
        if (node == LOST_NODE) continue;
        u32 number = cluster_member(rig->nodes[node].server->cluster);
        u32 count = missing_of(topology, keyspace, number, dead);
        *total += count;
        if (count > most) best = node;
        most = MAX(most, count);
    }
    CHECK(most >= 50);
    return best;
}

/* It has everything that it gains, but so many partitions. */
static bool
has_all_but(const struct cluster *cluster, u64 session, u32 count)
{
    u64 partitions = atomic_load(&cluster->fetch_partitions);
    return atomic_load(&cluster->fetch_session) == session && partitions != 0 &&
           atomic_load(&cluster->fetch_done) + count == partitions;
}

/* Who misses most of the keyspace has everything else that it gains; and it is said. */
static MAY_YIELD void
expect_waits_of(struct rig *rig, const struct topology *topology, u32 keyspace, u32 dead)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS, session = topology->session;
    const char *name = topology->keyspaces[keyspace].name;
    u32 total, all = 0, waiter = waiter_find(rig, topology, keyspace, dead, &total);
    const struct cluster *cluster = rig->nodes[waiter].server->cluster;
    u32 count = missing_of(topology, keyspace, cluster_member(cluster), dead);
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (topology->keyspaces[k].used)
            all += missing_of(topology, k, cluster_member(cluster), dead);
    while (!has_all_but(cluster, session, all)) {
        if (io_now_ns() > deadline_ns) sim_log_dump(rig->sim);
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    fiber_sleep_ns(3 * NS_PER_S); /* it tries again, and fetches nothing twice */
    CHECK(has_all_but(cluster, session, all));
    CHECK(cluster_rig_topology(rig, LAST_NODE)->stage == STAGE_WRITE_BOTH);
    char text[160];
    snprintf(text, sizeof(text), "keyspace=%u name=%s partitions=%u from=n3", keyspace, name,
             count);
    CHECK(sim_log_contains(rig->sim, text));
    snprintf(text, sizeof(text), "{\"keyspace\":%u,\"name\":\"%s\",\"node\":%u,\"partitions\":%u}",
             keyspace, name, dead, total);
    CHECK(status_says(rig, 1, text));
}

static MAY_YIELD void
expect_waits(struct rig *rig, u32 dead)
{
    struct topology *topology = plan_of(rig, io_now_ns() + WAIT_NS);
    topology_hold(topology);
    expect_waits_of(rig, topology, 12, dead); /* N = 1 */
    expect_waits_of(rig, topology, 14, dead); /* N = R = 3 */
    expect_waits_of(rig, topology, 15, dead); /* siblings */
    topology_release(topology);
    CHECK(!status_says(rig, 1, WHOLE));
}

static MAY_YIELD void
loss_story(struct rig *rig)
{
    enum loss_end end = *(const enum loss_end *)rig->arg;
    bool lost[LOST_KEYS], none[LOST_KEYS] = {false};
    struct sim_disk *empty = sim_disk_copy_new(sim_node_disk(rig->nodes[LAST_NODE].machine));
    settle(rig, 15, 4);
    loss_keyspaces_make(rig);
    u32 number = cluster_member(rig->nodes[LOST_NODE].server->cluster), count = 0;
    for (u32 k = 0; k < LOST_KEYS; k++) {
        lost[k] = only_home(cluster_rig_topology(rig, 0), k) == number;
        count += lost[k];
    }
    CHECK(count > 3 && count < LOST_KEYS / 2);
    fiber_sleep_ns(NS_PER_S);
    rig_crash(rig, LOST_NODE);
    u32 all = 31 & ~(1u << LOST_NODE);
    if (end == LOSS_WIPED) {
        sim_disk_copy_put(empty, sim_node_disk(rig->nodes[LOST_NODE].machine));
        rig_start(rig, LOST_NODE);
        settle(rig, 15, 4);
    } else if (end == LOSS_REPLACED) {
        rig->nodes[LAST_NODE].config->replaces = number;
        rig_start(rig, LAST_NODE);
        settle(rig, all, 4);
    } else if (end == LOSS_REMOVED) {
        remove_dead(rig, "n3");
        settle(rig, all & 15, 3);
    } else {
        fiber_sleep_ns(2 * NS_PER_S);
        rig_start_begin(rig, LAST_NODE);
        expect_waits(rig, number);
        if (end == LOSS_COMES_BACK) {
            rig_start(rig, LOST_NODE);
            settle(rig, 31, 5);
        } else {
            remove_dead(rig, "n3");
            settle(rig, all, 4);
        }
    }
    CHECK(sim_log_contains(rig->sim, "begins empty keyspace=12 name=one") ==
          (end != LOSS_COMES_BACK));
    expect_all_but_lost(rig, (end == LOSS_WIPED || end == LOSS_REMOVED) ? 11 : all,
                        end == LOSS_COMES_BACK ? none : lost);
    if (end == LOSS_REMOVED) { /* and so go all moves */
        rig_start(rig, LAST_NODE);
        settle(rig, all, 4);
    }
    CHECK(status_says(rig, 1, WHOLE) && status_says(rig, 0, "\"missing\":[]"));
    sim_disk_copy_free(empty);
}

static void
run_with(u64 seed, void (*story)(struct rig *rig), u32 node_count,
         void (*configured)(struct rig *rig, u32 node, struct server_config *config), void *arg)
{
    struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                      .node_count = node_count,
                      .late_count = 1,
                      .configure = configured,
                      .story = story,
                      .arg = arg};
    sim_options_default(&rig.options, seed);
    rig_run(&rig);
}

static void
run(u64 seed, void (*story)(struct rig *rig), u32 node_count, void *arg)
{
    run_with(seed, story, node_count, configure, arg);
}

static void
loss_run(enum loss_end end)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++)
        run(seed, loss_story, 5, &end);
}

static void
what_only_a_lost_node_had_begins_empty_and_moves_go_on(void **state)
{
    (void)state;
    loss_run(LOSS_REMOVED);
    loss_run(LOSS_REPLACED);
    loss_run(LOSS_WIPED);
}

static void
what_only_a_dead_node_has_waits_for_it_alone_and_is_named(void **state)
{
    (void)state;
    loss_run(LOSS_COMES_BACK);
    loss_run(LOSS_REMOVED_LATE);
}

/* ---- who gains asks more than a read does ---- */

static void
configure_one_of_each(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->write_quorum = config->read_quorum = 1;
}

/* W = R = 1: everything can be read and written without the dead one, but what it alone may have
 * taken is not there. It is named, and nobody says how long that takes. */
static MAY_YIELD void
loose_wait_story(struct rig *rig)
{
    settle(rig, 15, 4);
    u32 number = cluster_member(rig->nodes[LOST_NODE].server->cluster);
    rig_crash(rig, LOST_NODE);
    fiber_sleep_ns(2 * NS_PER_S);
    rig_start_begin(rig, LAST_NODE);
    struct topology *topology = plan_of(rig, io_now_ns() + WAIT_NS);
    topology_hold(topology);
    expect_waits_of(rig, topology, 0, number);
    topology_release(topology);
    CHECK(status_says(rig, 1, "\"left_ms\":null"));
    CHECK(status_says(rig, 1, "\"partitions_unavailable\":0,"));
    CHECK(status_says(rig, 1, "\"missing\":[]"));
    rig_start(rig, LOST_NODE);
    settle(rig, 31, 5);
}

static void
who_is_waited_for_is_named_though_everything_can_be_read(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++)
        run_with(seed, loose_wait_story, 5, configure_one_of_each, NULL);
}

/* ---- who was taken out is waited for by nobody ---- */

/* The one that leads. */
static struct group0_stats
lead_stats(const struct rig *rig)
{
    struct group0_stats stats = {0};
    for (u32 node = 0; node < 3 && !stats.leads; node++)
        group0_stats_get(rig->nodes[node].server->cluster->shards[0]->group0, &stats);
    return stats;
}

static MAY_YIELD void
joiner_removed_story(struct rig *rig)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    settle(rig, 7, 3);
    rig_start_begin(rig, 3);
    while (topology_member_by_id(cluster_rig_topology(rig, 0), "n4") == NULL) {
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(NS_PER_MS / 4);
    }
    u32 number = topology_member_by_id(cluster_rig_topology(rig, 0), "n4")->number;
    rig_crash(rig, 3);
    while (lead_stats(rig).plan_waits_for != number) {
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    remove_dead(rig, "n4");
    for (u32 i = 0; i < 100; i++) {
        bool gone = topology_member_by_id(cluster_rig_topology(rig, 0), "n4") == NULL;
        CHECK(!gone || lead_stats(rig).plan_waits_for == 0);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    settle(rig, 7, 3);
    CHECK(status_says(rig, 1, "\"plan_waits_for\":0"));
}

static void
nobody_waits_for_a_joiner_that_was_taken_out(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++)
        run(seed, joiner_removed_story, 4, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_only_a_lost_node_had_begins_empty_and_moves_go_on),
        cmocka_unit_test(what_only_a_dead_node_has_waits_for_it_alone_and_is_named),
        cmocka_unit_test(who_is_waited_for_is_named_though_everything_can_be_read),
        cmocka_unit_test(nobody_waits_for_a_joiner_that_was_taken_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
