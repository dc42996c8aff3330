/* SPDX-License-Identifier: MIT
 *
 * test_cluster_admin.c -- operating a cluster of whole nodes on the simulated link: operators'
 * requests by the native protocol to any node, keyspaces of other replicas and quorums, draining.
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
#include "cluster/group0_internal.h"
#include "cluster_rig.h"
#include "proto/native.h"
#include "server/route.h"

#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#else
#define SEED_COUNT 3u
#endif
#define NODES   3u
#define KEYS    60u
#define WAIT_NS (60 * NS_PER_S)

/* ---- the cluster ---- */

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1 + (rig->shard_count + node) % 2);
}

static void
run_seeds_of(void (*story)(struct rig *rig), u32 node_count, u32 late_count, void *arg)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                          .node_count = node_count,
                          .late_count = late_count,
                          .configure = configure,
                          .arg = arg};
        sim_options_default(&rig.options, seed);
        rig.story = story;
        rig_run(&rig);
    }
}

static void
run_seeds(void (*story)(struct rig *rig), u32 node_count, u32 late_count)
{
    run_seeds_of(story, node_count, late_count, NULL);
}

/* ---- native requests ---- */

static MAY_YIELD struct native_reply
ask(struct rig_client *client, struct native_cluster cluster)
{
    struct native_request request = {.header.opcode = NATIVE_CLUSTER, .cluster = cluster};
    return rig_native_call(client, &request);
}

static MAY_YIELD u32
key_op(struct rig_client *client, u8 opcode, u16 keyspace, u32 level, const char *key,
       const char *value)
{
    struct native_request request = {.header.opcode = opcode, .header.keyspace = keyspace};
    request.header.flags = (u16)(level << NATIVE_LEVEL_SHIFT);
    struct bytes name = BYTES(key, strlen(key));
    if (opcode == NATIVE_GET)
        request.get.key = name;
    else
        request.op = (struct native_op){
            .kind = NATIVE_OP_PUT, .key = name, .value = BYTES(value, strlen(value))};
    struct native_reply reply = rig_native_call(client, &request);
    if (opcode == NATIVE_GET && reply.header.status == NATIVE_ST_OK)
        CHECK(bytes_equal(reply.get.value, BYTES(value, strlen(value))));
    return reply.header.status;
}

/* The text of "name": in a flat place of the JSON. */
static bool
says(struct native_reply reply, const char *text)
{
    struct bytes json = reply.cluster.json;
    size_t size = strlen(text);
    for (size_t at = 0; at + size <= json.size; at++)
        if (memcmp(json.data + at, text, size) == 0) return true;
    return false;
}

static void
expect_refused(struct native_reply reply, u32 code, const char *text)
{
    if (reply.header.status != code || !bytes_equal(reply.error.text, BYTES(text, strlen(text))))
        fprintf(stderr, "status %u: %.*s\n", reply.header.status, (int)reply.error.text.size,
                (const char *)reply.error.text.data);
    CHECK(reply.header.status == code);
    CHECK(bytes_equal(reply.error.text, BYTES(text, strlen(text))));
}

/* ---- keyspaces ---- */

/* Which nodes have the key in their stores: a bit each. */
static u32
holders(struct rig *rig, u32 node_count, u16 keyspace, const char *key)
{
    struct bytes name = BYTES(key, strlen(key));
    u64 token = hash_token(name);
    u32 bits = 0;
    for (u32 i = 0; i < node_count; i++) {
        const struct server *server = rig->nodes[i].server;
        if (server == NULL) continue;
        u32 shard = partition_shard(token_partition(token, PARTITION_COUNT_DEFAULT),
                                    server->shard_count, PARTITION_COUNT_DEFAULT);
        u64 version, seq;
        status st =
            lsm_newest_try(server->shards[shard]->lsm, keyspace, token, name, 0, &version, &seq);
        CHECK(ok(st) || status_is(st, ST_NOT_FOUND)); /* so little is in memory */
        if (ok(st)) bits |= 1u << i;
    }
    return bits;
}

/* Where the topology says that it lies. */
static u32
places(struct rig *rig, u32 node_count, u16 keyspace, const char *key)
{
    const struct topology *topology = cluster_rig_topology(rig, 0);
    struct topology_row row;
    u64 token = hash_token(BYTES(key, strlen(key)));
    topology_row(topology, keyspace, token_partition(token, topology->partition_count), &row);
    u32 bits = 0;
    for (u32 i = 0; i < row.count; i++)
        for (u32 node = 0; node < node_count; node++)
            if (cluster_member(rig->nodes[node].server->cluster) == row.write[i])
                bits |= 1u << node;
    return bits;
}

static MAY_YIELD u16
keyspace_make(struct rig_client *client, const char *name, u8 replicas, u8 write, u8 read)
{
    struct native_reply reply =
        ask(client, (struct native_cluster){.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                            .flags = NATIVE_CLUSTER_CREATE,
                                            .keyspace = NATIVE_CLUSTER_KEYSPACE_ANY,
                                            .replicas = replicas,
                                            .write_quorum = write,
                                            .read_quorum = read,
                                            .name = BYTES(name, strlen(name))});
    CHECK(reply.header.status == NATIVE_ST_OK);
    return (u16)reply.cluster.number;
}

/* One copy, two, and as many as the cluster has: each key lies where its keyspace says, a join
 * takes it along, and who is gone is missed by those who had him alone. */
static MAY_YIELD void
replicas_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client clients[NODES];
    char key[16];
    for (u32 i = 0; i < NODES; i++)
        rig_connect_to(rig, i, &clients[i]);
    u16 spaces[3] = {0};
    spaces[1] = keyspace_make(&clients[1], "single", 1, 1, 1);
    spaces[2] = keyspace_make(&clients[2], "pair", 2, 2, 1);
    CHECK(spaces[1] == 15 && spaces[2] == 14);
    for (u32 s = 0; s < 3; s++)
        for (u32 i = 0; i < KEYS; i++) {
            snprintf(key, sizeof(key), "k%u", i);
            CHECK(key_op(&clients[i % NODES], NATIVE_PUT, spaces[s], 0, key, key) == NATIVE_ST_OK);
        }
    fiber_sleep_ns(500 * NS_PER_MS); /* the third copy of a write that two acknowledged */
    u32 lonely[NODES] = {0};
    for (u32 s = 0; s < 3; s++)
        for (u32 i = 0; i < KEYS; i++) {
            snprintf(key, sizeof(key), "k%u", i);
            u32 at = places(rig, NODES, spaces[s], key);
            CHECK((u32)__builtin_popcount(at) == (s == 0 ? 3u : s));
            CHECK(holders(rig, NODES, spaces[s], key) == at);
            if (s == 1) lonely[__builtin_ctz(at)]++;
        }
    for (u32 i = 0; i < NODES; i++)
        CHECK(lonely[i] > 5); /* spread */

    rig_start_begin(rig, NODES); /* a fourth joins */
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    u32 moved = 0;
    for (u32 s = 0; s < 3; s++)
        for (u32 i = 0; i < KEYS; i++) {
            snprintf(key, sizeof(key), "k%u", i);
            u32 at = places(rig, NODES + 1, spaces[s], key);
            CHECK((holders(rig, NODES + 1, spaces[s], key) & at) == at);
            moved += s == 1 && at == 1u << NODES;
            for (u32 node = 0; node < NODES; node++)
                CHECK(key_op(&clients[node], NATIVE_GET, spaces[s], 0, key, key) == NATIVE_ST_OK);
        }
    CHECK(moved > 3);

    rig_crash(rig, NODES);
    fiber_sleep_ns(2 * NS_PER_S);
    for (u32 i = 0; i < KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        bool gone = places(rig, NODES, spaces[1], key) == 0;
        u32 code = key_op(&clients[i % NODES], NATIVE_GET, spaces[1], 0, key, key);
        CHECK(code == (gone ? NATIVE_ST_UNAVAILABLE : NATIVE_ST_OK));
        CHECK(key_op(&clients[i % NODES], NATIVE_GET, spaces[0], 0, key, key) == NATIVE_ST_OK);
        bool half = __builtin_popcount(places(rig, NODES, spaces[2], key)) < 2;
        CHECK(key_op(&clients[i % NODES], NATIVE_GET, spaces[2], 0, key, key) == NATIVE_ST_OK);
        code = key_op(&clients[i % NODES], NATIVE_PUT, spaces[2], 0, key, key);
        CHECK(code == (half ? NATIVE_ST_UNAVAILABLE : NATIVE_ST_OK));
    }
    rig_start(rig, NODES);
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    for (u32 i = 0; i < NODES; i++)
        rig_disconnect(&clients[i]);
}

static void
keyspaces_have_their_own_replicas_and_quorums(void **state)
{
    (void)state;
    run_seeds(replicas_story, NODES + 1, 1);
}

static MAY_YIELD void
keyspaces_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client, resp;
    rig_connect_to(rig, 1, &client);
    rig_connect_to(rig, 2, &resp);
    struct native_reply reply =
        ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_KEYSPACES});
    CHECK(reply.header.status == NATIVE_ST_OK && says(reply, "\"name\":\"0\""));
    CHECK(!says(reply, "\"name\":\"5\""));
    /* One that nobody has made is made by its first use, as keyspace 0 is. */
    CHECK(rig_is(rig_call(&resp, "SELECT 5"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&resp, "DBSIZE"), ":0\r\n"));
    CHECK(rig_is(rig_call(&resp, "GET a"), "$-1\r\n"));
    CHECK(rig_is(rig_call(&resp, "SET a 1"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&resp, "DBSIZE"), ":1\r\n"));
    CHECK(rig_is(rig_call(&resp, "COPY a {a}b DB 0"), ":1\r\n"));
    CHECK(key_op(&client, NATIVE_GET, 5, 0, "a", "1") == NATIVE_ST_OK);
    CHECK(key_op(&client, NATIVE_GET, 0, 0, "{a}b", "1") == NATIVE_ST_OK);
    reply = ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_KEYSPACE_FIND,
                                                 .name = BYTES_LITERAL("5")});
    CHECK(reply.header.status == NATIVE_ST_OK && reply.cluster.number == 5);
    CHECK(says(reply, "{\"number\":5,\"name\":\"5\",\"replicas\":3,\"write_quorum\":2,"
                      "\"read_quorum\":2,\"conflict\":\"lww\",\"sloppy\":false}"));
    struct native_cluster sloppy = {.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                    .flags = NATIVE_CLUSTER_SLOPPY,
                                    .name = BYTES_LITERAL("5")};
    for (u32 i = 0; i < 2; i++) {
        CHECK(ask(&client, sloppy).header.status == NATIVE_ST_OK);
        reply = ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_KEYSPACES});
        CHECK(says(reply, i == 0 ? "\"sloppy\":true" : "\"sloppy\":false"));
        CHECK(says(reply, "\"sloppy\":true") == (i == 0));
        sloppy.flags = NATIVE_CLUSTER_NOT_SLOPPY;
    }
    struct native_cluster set = {.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                 .flags = NATIVE_CLUSTER_CREATE,
                                 .replicas = 2,
                                 .keyspace = NATIVE_CLUSTER_KEYSPACE_ANY,
                                 .name = BYTES_LITERAL("orders")};
    CHECK(ask(&client, set).cluster.number == 15);
    CHECK(ask(&client, set).cluster.number == 15); /* a retry */
    set.replicas = 3;
    expect_refused(ask(&client, set), NATIVE_ST_INVALID,
                   "keyspace 15 has this name, and is another one");
    CHECK(rig_is(rig_call(&resp, "COPY a {a}b DB 15"),
                 "-ERR in a cluster COPY goes to a keyspace that was used before, and has as many "
                 "replicas\r\n"));
    set.name = BYTES_LITERAL("5");
    set.keyspace = 6;
    expect_refused(ask(&client, set), NATIVE_ST_INVALID,
                   "keyspace 5 has this name, and is another one");
    set.name = BYTES_LITERAL("9");
    expect_refused(ask(&client, set), NATIVE_ST_INVALID, "'9' is the name of keyspace 9");
    set.name = BYTES_LITERAL("a\"b");
    expect_refused(ask(&client, set), NATIVE_ST_INVALID,
                   "names of keyspaces have letters, digits, '.', '_' and '-'");
    set.name = BYTES_LITERAL("seven");
    set.keyspace = 7;
    set.replicas = 4;
    expect_refused(ask(&client, set), NATIVE_ST_INVALID,
                   "a keyspace has at least one replica, and at most as many as the cluster keeps");
    set = (struct native_cluster){
        .function = NATIVE_CLUSTER_KEYSPACE_SET, .read_quorum = 1, .name = BYTES_LITERAL("orders")};
    CHECK(ask(&client, set).cluster.number == 15);
    set.replicas = 3;
    expect_refused(ask(&client, set), NATIVE_ST_INVALID, "the number of replicas cannot change");
    set.name = BYTES_LITERAL("nobody");
    expect_refused(ask(&client, set), NATIVE_ST_NOT_FOUND, "no keyspace has this name");
    rig_disconnect(&client);
    rig_disconnect(&resp);
}

static void
keyspaces_are_made_by_their_first_use_or_by_an_operator(void **state)
{
    (void)state;
    run_seeds(keyspaces_story, NODES, 0);
}

/* Nobody makes one where a member may be of a version that stops when it meets it. */
static MAY_YIELD void
sloppy_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client;
    rig_crash(rig, 2);
    rig_crash(rig, 0);
    rig_start(rig, 0);
    rig_connect_to(rig, 0, &client); /* which has not heard of the third one in this life */
    const char *refusal = "n3 has not shown that it knows sloppy keyspaces: upgrade it, start it "
                          "if it is down, and ask again";
    struct native_cluster set = {.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                 .flags = NATIVE_CLUSTER_SLOPPY,
                                 .name = BYTES_LITERAL("0")};
    struct native_cluster made = {.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                  .flags = NATIVE_CLUSTER_SLOPPY | NATIVE_CLUSTER_CREATE,
                                  .keyspace = NATIVE_CLUSTER_KEYSPACE_ANY,
                                  .name = BYTES_LITERAL("events")};
    expect_refused(ask(&client, set), NATIVE_ST_INVALID, refusal);
    expect_refused(ask(&client, made), NATIVE_ST_INVALID, refusal);
    struct native_reply reply =
        ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_KEYSPACES});
    CHECK(!says(reply, "\"sloppy\":true"));
    CHECK(keyspace_make(&client, "strict", 3, 2, 2) == 15);

    rig_start(rig, 2);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    CHECK(ask(&client, set).header.status == NATIVE_ST_OK);
    rig_disconnect(&client);

    /* Where there is one, all know it: what is first used while somebody is down is made. */
    rig_crash(rig, 2);
    rig_crash(rig, 0);
    rig_start(rig, 0);
    rig_connect_to(rig, 0, &client);
    CHECK(rig_is(rig_call(&client, "SELECT 5"), "+OK\r\n"));
    rig_disconnect(&client);
    rig_start(rig, 2);
}

static void
nothing_is_made_sloppy_before_all_have_shown_that_they_know_it(void **state)
{
    (void)state;
    run_seeds(sloppy_story, NODES, 0);
}

/* ---- levels ---- */

static MAY_YIELD void
levels_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 level = NATIVE_LEVEL_DEFAULT; level <= NATIVE_LEVEL_ALL; level++)
        CHECK(key_op(&client, NATIVE_PUT, 0, level, "k", "v") == NATIVE_ST_OK);
    rig_crash(rig, 2);
    fiber_sleep_ns(2 * NS_PER_S);
    CHECK(key_op(&client, NATIVE_PUT, 0, NATIVE_LEVEL_QUORUM, "k", "v") == NATIVE_ST_OK);
    CHECK(key_op(&client, NATIVE_PUT, 0, NATIVE_LEVEL_ALL, "k", "v") == NATIVE_ST_UNAVAILABLE);
    CHECK(key_op(&client, NATIVE_GET, 0, NATIVE_LEVEL_ALL, "k", "v") == NATIVE_ST_UNAVAILABLE);
    rig_crash(rig, 1);
    fiber_sleep_ns(2 * NS_PER_S);
    CHECK(key_op(&client, NATIVE_GET, 0, NATIVE_LEVEL_DEFAULT, "k", "v") == NATIVE_ST_UNAVAILABLE);
    CHECK(key_op(&client, NATIVE_GET, 0, NATIVE_LEVEL_ONE, "k", "v") == NATIVE_ST_OK);
    CHECK(key_op(&client, NATIVE_PUT, 0, NATIVE_LEVEL_ONE, "k", "w") == NATIVE_ST_OK);
    rig_start_begin(rig, 1);
    rig_start_begin(rig, 2);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    rig_disconnect(&client);
}

static void
a_frame_says_how_many_replicas_it_waits_for(void **state)
{
    (void)state;
    run_seeds(levels_story, NODES, 0);
}

/* ---- draining ---- */

struct counting {
    u32 node, done;
    bool ending;
};

static MAY_YIELD void
count_up(struct rig *rig, void *arg)
{
    struct counting *counting = arg;
    struct rig_client client;
    rig_connect_to(rig, counting->node, &client);
    while (!counting->ending) {
        struct bytes reply = rig_call(&client, "INCR {c}%u", counting->done % 4);
        CHECK(reply.size > 0 && reply.data[0] == ':');
        counting->done++;
    }
    rig_disconnect(&client);
}

static u32
leader_of(const struct rig *rig)
{
    for (u32 i = 0; i < NODES; i++) {
        struct group0_stats stats;
        group0_stats_get(rig->nodes[i].server->cluster->shards[0]->group0, &stats);
        if (stats.leads) return i;
    }
    return NODES;
}

/* Increments from all nodes go on while one after the other is drained: none is lost, none refused,
 * and in the end nobody needs the drained one. */
static MAY_YIELD void
drain_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    u32 drained = leader_of(rig);
    while (drained == NODES) {
        fiber_sleep_ns(50 * NS_PER_MS);
        drained = leader_of(rig);
    }
    struct counting countings[NODES * 2];
    for (u32 i = 0; i < ARRAY_COUNT(countings); i++) {
        countings[i] = (struct counting){.node = i % NODES};
        rig_spawn(rig, count_up, &countings[i]);
    }
    fiber_sleep_ns(200 * NS_PER_MS);
    struct rig_client client;
    char name[8];
    rig_connect_to(rig, (drained + 1) % NODES, &client);
    snprintf(name, sizeof(name), "n%u", drained + 1);
    struct native_cluster drain = {.function = NATIVE_CLUSTER_DRAIN,
                                   .node = BYTES(name, strlen(name))};
    CHECK(ask(&client, drain).header.status == NATIVE_ST_OK);
    const struct cluster *cluster = rig->nodes[drained].server->cluster;
    u64 deadline_ns = io_now_ns() + 10 * NS_PER_S;
    while ((atomic_load(&cluster->drain) != CLUSTER_DRAIN_DONE || leader_of(rig) == drained ||
            leader_of(rig) == NODES) &&
           io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(atomic_load(&cluster->drain) == CLUSTER_DRAIN_DONE);
    CHECK(leader_of(rig) != drained && leader_of(rig) != NODES);
    fiber_sleep_ns(500 * NS_PER_MS); /* pings have told everybody */
    u64 before = cluster_rig_forwarded(rig, drained);
    fiber_sleep_ns(300 * NS_PER_MS);
    CHECK(cluster_rig_forwarded(rig, drained) == before);
    struct native_reply reply =
        ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_STATUS});
    CHECK(says(reply, "\"drained\":true"));
    for (u32 i = 0; i < ARRAY_COUNT(countings); i++)
        countings[i].ending = true;
    rig_wait_spawned(rig);
    u64 total = 0, expected = 0;
    struct rig_client resp;
    rig_connect_to(rig, drained, &resp);
    for (u32 i = 0; i < 4; i++) {
        struct bytes value = rig_call(&resp, "GET {c}%u", i);
        CHECK(value.size > 4 && value.data[0] == '$');
        const u8 *at = (const u8 *)memchr(value.data, '\n', value.size) + 1;
        u64 number = 0;
        for (; *at >= '0' && *at <= '9'; at++)
            number = number * 10 + (u64)(*at - '0');
        total += number;
    }
    for (u32 i = 0; i < ARRAY_COUNT(countings); i++) {
        CHECK(countings[i].done > 50);
        expected += countings[i].done;
    }
    CHECK(total == expected);
    drain.flags = NATIVE_CLUSTER_UNDO;
    CHECK(ask(&client, drain).header.status == NATIVE_ST_OK);
    fiber_sleep_ns(500 * NS_PER_MS);
    reply = ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_STATUS});
    CHECK(!says(reply, "\"drained\":true"));
    rig_disconnect(&client);
    rig_disconnect(&resp);
}

static void
a_drained_node_is_missed_by_nobody_and_loses_no_increment(void **state)
{
    (void)state;
    run_seeds(drain_story, NODES, 0);
}

/* ---- restarts ---- */

#define RESTART_KEYS 16u
/* Of a request while a node is restarted: less than a shard waits before it stamps, and less than
 * who is refused a connection waits for the next attempt. */
#define RESTART_NS_MAX (40 * NS_PER_MS)
static_assert(REPLICATE_QUIET_MS * NS_PER_MS > RESTART_NS_MAX, "else it shows nothing");

struct timed {
    struct counting counting;
    u64 longest_ns;
};

static MAY_YIELD void
count_up_in_time(struct rig *rig, void *arg)
{
    struct timed *timed = arg;
    struct rig_client client;
    rig_connect_to(rig, timed->counting.node, &client);
    while (!timed->counting.ending) {
        u64 begin_ns = io_now_ns();
        struct bytes reply = rig_call(&client, "INCR k%u", timed->counting.done % RESTART_KEYS);
        CHECK(reply.size > 0 && reply.data[0] == ':');
        timed->counting.done++;
        timed->longest_ns = MAX(timed->longest_ns, io_now_ns() - begin_ns);
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
timed_end(struct rig *rig, struct timed *timed, u32 count, u64 *total)
{
    for (u32 i = 0; i < count; i++)
        timed[i].counting.ending = true;
    rig_wait_spawned(rig);
    for (u32 i = 0; i < count; i++) {
        CHECK(timed[i].counting.done > 50);
        if (timed[i].longest_ns >= RESTART_NS_MAX)
            fprintf(stderr, "n%u took %llu us\n", timed[i].counting.node + 1,
                    (unsigned long long)(timed[i].longest_ns / NS_PER_US));
        CHECK(timed[i].longest_ns < RESTART_NS_MAX);
        *total += timed[i].counting.done;
    }
}

/* Commands that read before they write go on at the other nodes while one stops in order, is away
 * and comes back, and at itself as soon as it is: nobody waits until it may stamp. */
static MAY_YIELD void
restart_story(struct rig *rig)
{
    const u32 restarted = 1;
    struct rig_node *node = &rig->nodes[restarted];
    struct timed others[2] = {{.counting.node = 0}, {.counting.node = 2}};
    struct timed own[2] = {{.counting.node = restarted}, {.counting.node = restarted}};
    struct rig_client client;
    u64 expected = 0, total = 0;
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fiber_sleep_ns(NS_PER_S); /* all of them stamp */
    for (u32 i = 0; i < ARRAY_COUNT(others); i++)
        rig_spawn(rig, count_up_in_time, &others[i]);
    fiber_sleep_ns(200 * NS_PER_MS);
    sim_node_stop(node->machine);
    while (sim_node_running(node->machine))
        fiber_sleep_ns(NS_PER_MS);
    CHECK(ok(sim_node_result(node->machine)));
    rig_crash(rig, restarted); /* what a stopped process leaves is durable */
    rig_start(rig, restarted);
    for (u32 i = 0; i < ARRAY_COUNT(own); i++)
        rig_spawn(rig, count_up_in_time, &own[i]);
    fiber_sleep_ns(NS_PER_S);
    CHECK(!cluster_drained(node->server->cluster, cluster_member(node->server->cluster)));
    for (u32 i = 0; i < ARRAY_COUNT(own); i++)
        own[i].counting.ending = true;
    timed_end(rig, others, ARRAY_COUNT(others), &expected);
    timed_end(rig, own, ARRAY_COUNT(own), &expected);

    rig_connect_to(rig, restarted, &client);
    for (u32 i = 0; i < RESTART_KEYS; i++) {
        struct bytes value = rig_call(&client, "INCRBY k%u 0", i);
        CHECK(value.size > 1 && value.data[0] == ':');
        total += strtoull((const char *)value.data + 1, NULL, 10);
    }
    rig_disconnect(&client);
    if (total != expected)
        fprintf(stderr, "%llu of %llu\n", (unsigned long long)total, (unsigned long long)expected);
    CHECK(total == expected);
}

static void
a_restart_in_order_holds_nobody_up(void **state)
{
    (void)state;
    run_seeds(restart_story, NODES, 0);
}

/* What a node coordinates does not end before it has to stop: it gives the lead away all the same,
 * and tells everybody. */
static MAY_YIELD void
slow_stop_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    u32 stopped = leader_of(rig);
    while (stopped == NODES) {
        fiber_sleep_ns(50 * NS_PER_MS);
        stopped = leader_of(rig);
    }
    struct rig_node *node = &rig->nodes[stopped];
    const struct cluster *other = rig->nodes[(stopped + 1) % NODES].server->cluster;
    u32 member = cluster_member(node->server->cluster);
    node->server->cluster->shards[0]->coordinating++;
    u64 began_ns = io_now_ns();
    sim_node_stop(node->machine);
    while (!cluster_drained(other, member) && io_now_ns() - began_ns < CLUSTER_HAND_OVER_NS)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(cluster_drained(other, member));
    while (sim_node_running(node->machine))
        fiber_sleep_ns(NS_PER_MS);
    CHECK(io_now_ns() - began_ns < 2 * CLUSTER_HAND_OVER_NS);
    u32 leaders = 0;
    for (u32 i = 0; i < NODES; i++) {
        struct group0_stats stats;
        if (i == stopped) continue;
        group0_stats_get(rig->nodes[i].server->cluster->shards[0]->group0, &stats);
        leaders += stats.leads;
    }
    CHECK(leaders == 1);
    rig_crash(rig, stopped);
    rig_start(rig, stopped);
}

static void
who_stops_gives_the_lead_away_whatever_goes_on(void **state)
{
    (void)state;
    run_seeds(slow_stop_story, NODES, 0);
}

static u64
term_of(struct rig *rig)
{
    u64 term = 0;
    for (u32 i = 0; i < NODES; i++) {
        struct group0_stats stats;
        if (!sim_node_running(rig->nodes[i].machine)) continue;
        group0_stats_get(rig->nodes[i].server->cluster->shards[0]->group0, &stats);
        term = MAX(term, stats.term);
    }
    return term;
}

/* Who gets the lead from one that stops, and stops too, gives it to somebody else: once each, not
 * to and fro until the last is gone. */
static MAY_YIELD void
stops_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    while (leader_of(rig) == NODES)
        fiber_sleep_ns(50 * NS_PER_MS);
    u64 before = term_of(rig);
    for (u32 i = 0; i < NODES; i++)
        sim_node_stop(rig->nodes[i].machine);
    for (u32 i = 0; i < NODES; i++)
        while (sim_node_running(rig->nodes[i].machine))
            fiber_sleep_ns(NS_PER_MS);
    for (u32 i = 0; i < NODES; i++) {
        rig_crash(rig, i); /* what a stopped process leaves is durable */
        rig_start(rig, i);
    }
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    /* One for each handing over, and the elections of those who start. */
    CHECK(term_of(rig) <= before + NODES + 3);
}

static void
nodes_that_stop_together_give_the_lead_away_once(void **state)
{
    (void)state;
    run_seeds(stops_story, NODES, 0);
}

/* Of INCRs that are sent on and on, whatever becomes of them. */
struct tolerant {
    struct counting counting;
    u32 asked;
};

static MAY_YIELD void
count_up_as_can_be(struct rig *rig, void *arg)
{
    struct tolerant *tolerant = arg;
    struct rig_client client;
    while (!ok(rig_try_connect(rig, tolerant->counting.node, &client)))
        fiber_sleep_ns(5 * NS_PER_MS);
    while (!tolerant->counting.ending) {
        struct bytes reply = rig_call(&client, "INCR k%u", tolerant->asked % RESTART_KEYS);
        CHECK(reply.size > 0);
        if (reply.data[0] == ':') tolerant->counting.done++;
        tolerant->asked++;
    }
    rig_disconnect(&client);
}

static MAY_YIELD u64
counted(struct rig *rig, u32 node)
{
    struct rig_client client;
    u64 total = 0;
    rig_connect_to(rig, node, &client);
    for (u32 i = 0; i < RESTART_KEYS; i++) {
        struct bytes value = rig_call(&client, "INCRBY k%u 0", i);
        CHECK(value.size > 1 && value.data[0] == ':');
        total += strtoull((const char *)value.data + 1, NULL, 10);
    }
    rig_disconnect(&client);
    return total;
}

/* All nodes start again, one soon after the other, so that none may stamp yet: who may first must
 * not run what another one has read for already, and waits to write. */
static MAY_YIELD void
restarts_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fiber_sleep_ns(5 * NS_PER_S); /* no clock is ahead */
    struct tolerant clients[NODES * 2];
    u64 least = 0, most = 0;
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        clients[i] = (struct tolerant){.counting.node = i % NODES};
    for (u32 i = 0; i < NODES; i++) {
        rig_crash(rig, i);
        rig_start_begin(rig, i);
        for (u32 j = i; j < ARRAY_COUNT(clients); j += NODES)
            rig_spawn(rig, count_up_as_can_be, &clients[j]);
        fiber_sleep_ns(REPLICATE_QUIET_MS / NODES * NS_PER_MS);
    }
    fiber_sleep_ns(3 * NS_PER_S);
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        clients[i].counting.ending = true;
    rig_wait_spawned(rig);
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++) {
        least += clients[i].counting.done;
        most += clients[i].asked;
    }
    u64 total = counted(rig, 0);
    if (total < least || total > most)
        fprintf(stderr, "%llu, not %llu to %llu\n", (unsigned long long)total,
                (unsigned long long)least, (unsigned long long)most);
    CHECK(least > 1000 && total >= least && total <= most);
}

static void
no_increment_is_lost_when_all_nodes_start_again(void **state)
{
    (void)state;
    run_seeds(restarts_story, NODES, 0);
}

/* ---- members ---- */

static MAY_YIELD void
members_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client;
    char key[16];
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i < 500; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        CHECK(key_op(&client, NATIVE_PUT, 0, 0, key, key) == NATIVE_ST_OK);
    }
    struct native_reply reply =
        ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_STATUS});
    CHECK(reply.header.status == NATIVE_ST_OK);
    CHECK(reply.cluster.number == cluster_rig_topology(rig, 1)->epoch);
    CHECK(says(reply, "\"node_id\":\"n1\"") && says(reply, "\"node_id\":\"n3\""));
    CHECK(says(reply, "\"move\":null") && says(reply, "\"version\":\"" DISTKV_VERSION "\""));
    CHECK(says(reply, "\"writes\":500,")); /* of the node that was asked */
    reply = ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_RING});
    CHECK(says(reply, "\"ranges\":[{\"first\":0,"));

    struct native_cluster repair = {.function = NATIVE_CLUSTER_REPAIR};
    CHECK(ask(&client, repair).header.status == NATIVE_ST_OK);
    u64 repair_ns = io_now_ns() + WAIT_NS;
    do {
        fiber_sleep_ns(100 * NS_PER_MS);
        reply = ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_STATUS});
    } while (says(reply, "\"repair_running\":1") && io_now_ns() < repair_ns);
    CHECK(!says(reply, "\"repair_running\":1") && !says(reply, "\"repair_partitions\":0,"));
    repair.node = BYTES_LITERAL("n9");
    expect_refused(ask(&client, repair), NATIVE_ST_NOT_FOUND, "no member has this id");

    /* A fourth one, with twice the weight: it has everything, the others two thirds. */
    rig_start_begin(rig, NODES);
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    struct native_cluster weight = {
        .function = NATIVE_CLUSTER_WEIGHT, .weight = 450, .node = BYTES_LITERAL("n4")};
    CHECK(ask(&client, weight).header.status == NATIVE_ST_OK);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    do {
        fiber_sleep_ns(100 * NS_PER_MS);
        reply = ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_STATUS});
    } while (!says(reply, "\"settled\":true") && io_now_ns() < deadline_ns);
    CHECK(says(reply, "\"settled\":true"));
    u32 share = 0;
    const struct topology *topology = cluster_rig_topology(rig, 1);
    u32 fourth = topology_member_by_id(topology, "n4")->number;
    for (u32 p = 0; p < topology->partition_count; p++) {
        struct topology_row row;
        topology_row(topology, 0, p, &row);
        for (u32 i = 0; i < row.count; i++)
            share += row.write[i] == fourth;
    }
    CHECK(share + 1 >= topology->partition_count); /* even within one */
    weight.node = BYTES_LITERAL("n9");
    expect_refused(ask(&client, weight), NATIVE_ST_NOT_FOUND, "no member has this id");
    weight.node = BYTES_LITERAL("n4");
    weight.weight = 0;
    expect_refused(ask(&client, weight), NATIVE_ST_INVALID, "a node has 1 to 65535 virtual nodes");

    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .flags = NATIVE_CLUSTER_DEAD,
                                     .node = BYTES_LITERAL("n4")};
    expect_refused(ask(&client, removal), NATIVE_ST_INVALID,
                   "this node answers: stop it first, or remove it as one that lives");
    removal.flags = 0;
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    for (u32 i = 0; i < 500; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        CHECK(key_op(&client, NATIVE_GET, 0, 0, key, key) == NATIVE_ST_OK);
    }

    /* Who was removed, and starts again with what it had, hears why it does not come up. */
    rig_crash(rig, NODES);
    rig_start_begin(rig, NODES);
    deadline_ns = io_now_ns() + WAIT_NS;
    while (sim_node_running(rig->nodes[NODES].machine) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(!sim_node_running(rig->nodes[NODES].machine));
    CHECK(strstr(server_failure(rig->nodes[NODES].server), "was taken out of the cluster") != NULL);
    rig_crash(rig, NODES); /* what it has ended with is no failure of the test */
    rig_disconnect(&client);
}

static void
record_fails(struct shard *shard, void *arg)
{
    struct cluster *cluster = arg; /* of the node; the shard is not open yet */
    (void)shard;
    group0_fail(cluster->shards[0]->group0, ST_IO_ERROR, "a write");
}

/* Its disk fails while it joins: it asks nobody any more, so it ends, and says why. */
static MAY_YIELD void
failed_join_story(struct rig *rig)
{
    struct rig_node *node = &rig->nodes[NODES];
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    for (u32 i = 0; i < NODES; i++)
        sim_link_cut(rig->sim, rig->nodes[i].machine, node->machine);
    rig_start_begin(rig, NODES);
    fiber_sleep_ns(5 * NS_PER_S);
    CHECK(sim_node_running(node->machine)); /* the others may come yet */
    rig_on_node(rig, NODES, 0, record_fails, node->server->cluster);
    fiber_sleep_ns(5 * NS_PER_S);
    CHECK(!sim_node_running(node->machine));
    CHECK(strstr(server_failure(node->server), "the record of the cluster has failed") != NULL);
    rig_crash(rig, NODES); /* what it has ended with is no failure of the test */
}

/* Stories of one more node that comes later, with one shard and with two. */
static void
late_seeds_run(void (*story)(struct rig *rig))
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                          .node_count = NODES + 1,
                          .late_count = 1,
                          .story = story,
                          .configure = configure,
                          .on_all_nodes = true};
        sim_options_default(&rig.options, seed);
        rig_run(&rig);
    }
}

static void
who_fails_while_it_joins_ends(void **state)
{
    (void)state;
    late_seeds_run(failed_join_story);
}

/* A shard 0 whose memory is full just when it hears of a member, and soon after is not. */
struct fullness {
    void (*changed)(void *arg, struct topology *topology);
    u32 times;
};

static struct fullness fullness;

static void
changed_without_memory(void *arg, struct topology *topology)
{
    struct cluster_shard *shard = arg;
    u64 limit_bytes = shard->budget.limit_bytes;
    bool comes = topology->member_count > shard->topology->member_count;
    if (comes) shard->budget.limit_bytes = shard->budget.used_bytes;
    fullness.changed(arg, topology);
    shard->budget.limit_bytes = limit_bytes;
    fullness.times += comes;
}

static void
fill_when_one_comes(struct shard *shard, void *arg)
{
    (void)arg;
    struct group0_options *options = &shard->cluster->group0->options;
    fullness.changed = options->changed;
    options->changed = changed_without_memory;
}

static void
forget_address(struct shard *shard, void *arg)
{
    struct cluster_shard *cluster = shard->cluster;
    u64 limit_bytes = cluster->budget.limit_bytes;
    peers_member_remove(cluster->peers, *(const u32 *)arg);
    cluster->budget.limit_bytes = cluster->budget.used_bytes;
    group0_addresses_update(cluster->group0, cluster->topology);
    cluster->budget.limit_bytes = limit_bytes;
    CHECK(peers_member_address(cluster->peers, *(const u32 *)arg) == NULL);
}

static MAY_YIELD void
expect_address_again(struct rig *rig, u32 node, u32 member)
{
    const struct cluster_shard *shard = rig->nodes[node].server->cluster->shards[0];
    u64 deadline_ns = io_now_ns() + 5 * NS_PER_S;
    rig_on_node(rig, node, 0, forget_address, &member);
    while (peers_member_address(shard->peers, member) == NULL && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(peers_member_address(shard->peers, member) != NULL);
}

/* One finds no memory, another one says that it is elsewhere. */
static void
forget_one_hear_another(struct shard *shard, void *arg)
{
    struct cluster_shard *cluster = shard->cluster;
    u32 *members = arg;
    forget_address(shard, &members[0]);
    struct peer_address elsewhere = *peers_member_address(cluster->peers, members[1]);
    elsewhere.port++;
    group0_address_heard(cluster->group0, members[1], cluster->topology->epoch + 1, &elsewhere);
}

/* What lacked memory is tried again, and nothing else is set to what the topology knows. (Who leads
 * knows the newest one.) */
static MAY_YIELD void
lack_of_one_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    u32 node = 0, members[2];
    while (rig->nodes[node].server->cluster->shards[0]->group0->raft.role == RAFT_LEADER)
        node++;
    for (u32 i = 0; i < 2; i++)
        members[i] = cluster_member(rig->nodes[(node + 1 + i) % NODES].server->cluster);
    const struct peers *peers = rig->nodes[node].server->cluster->shards[0]->peers;
    u16 port = peers_member_address(peers, members[1])->port;
    rig_on_node(rig, node, 0, forget_one_hear_another, members);
    fiber_sleep_ns(300 * NS_PER_MS); /* some ticks */
    CHECK(peers_member_address(peers, members[0]) != NULL);
    CHECK(peers_member_address(peers, members[1])->port == port + 1);
}

static void
who_is_heard_elsewhere_stays_there_while_another_one_lacks_memory(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                          .node_count = NODES,
                          .configure = configure,
                          .on_all_nodes = true};
        sim_options_default(&rig.options, seed);
        rig.story = lack_of_one_story;
        rig_run(&rig);
    }
}

static MAY_YIELD void
full_shard_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fullness.times = 0;
    for (u32 i = 0; i < NODES; i++)
        rig_on_node(rig, i, 0, fill_when_one_comes, NULL);
    rig_start_begin(rig, NODES);
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    CHECK(fullness.times == NODES);
    u32 last = cluster_member(rig->nodes[NODES].server->cluster);
    for (u32 i = 0; i < NODES; i++)
        expect_address_again(rig, i, last);
}

static void
a_shard_that_has_no_memory_for_who_joins_takes_it_in_later(void **state)
{
    (void)state;
    late_seeds_run(full_shard_story);
}

static void
nodes_are_weighed_and_removed_by_any_other(void **state)
{
    (void)state;
    run_seeds(members_story, NODES + 1, 1);
}

/* ---- who leaves, and keeps what was written for others ---- */

#define LEAVER 4u /* of five; two of the others were away */

enum leave_end {
    LEAVE_DELIVERS,
    LEAVE_FORCED,
    LEAVE_FORCED_SILENT, /* it stands still at that moment */
    LEAVE_DIES,
    LEAVE_ENDS,
};

static u64
hints_of(const struct rig *rig, u32 node)
{
    const struct server *server = rig->nodes[node].server;
    u64 waiting = 0;
    for (u32 s = 0; s < server->shard_count; s++) {
        struct hints_stats stats;
        hints_stats_get(server->cluster->shards[s]->hints, &stats);
        waiting += stats.waiting;
    }
    return waiting;
}

static void
lead_away(struct shard *shard, void *arg)
{
    (void)arg;
    (void)group0_give_lead(shard->cluster->group0);
}

/* Whoever leads is one that was never away, and reaches all. */
static MAY_YIELD void
lead_by_the_first_two(struct rig *rig)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    for (;;) {
        bool led = false;
        for (u32 i = 0; i < 2; i++)
            led = led || group0_leads(rig->nodes[i].server->cluster->shards[0]->group0);
        if (led) break;
        CHECK(io_now_ns() < deadline_ns);
        for (u32 i = 2; i <= LEAVER; i++)
            rig_on_node(rig, i, 0, lead_away, NULL);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
}

static MAY_YIELD bool
is_member(struct rig *rig, const char *node_id)
{
    return topology_member_by_id(cluster_rig_topology(rig, 0), node_id) != NULL;
}

/* It stands in for two that are away, leaves, and does not reach them when they are back. */
static MAY_YIELD void
leaver_story(struct rig *rig)
{
    enum leave_end end = *(const enum leave_end *)rig->arg;
    cluster_rig_settle(rig, LEAVER + 1, LEAVER + 1, WAIT_NS);
    struct rig_client client;
    char key[16], waits[32];
    rig_connect_to(rig, 0, &client);
    struct native_cluster set = {.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                 .flags = NATIVE_CLUSTER_SLOPPY,
                                 .name = BYTES_LITERAL("0")};
    CHECK(ask(&client, set).header.status == NATIVE_ST_OK);
    lead_by_the_first_two(rig);
    for (u32 i = 2; i < LEAVER; i++)
        rig_crash(rig, i);
    fiber_sleep_ns(2 * NS_PER_S);
    bool written[KEYS] = {0};
    for (u32 i = 0; i < KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        written[i] = key_op(&client, NATIVE_PUT, 0, 0, key, key) == NATIVE_ST_OK;
    }
    CHECK(hints_of(rig, LEAVER) > 0);
    for (u32 i = 2; i < LEAVER; i++) {
        sim_link_cut(rig->sim, rig->nodes[i].machine, rig->nodes[LEAVER].machine);
        rig_start(rig, i);
    }

    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .node = BYTES_LITERAL("n5")};
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    u32 number = topology_member_by_id(cluster_rig_topology(rig, 0), "n5")->number;
    snprintf(waits, sizeof(waits), "\"plan_waits_for\":%u,", number);
    struct native_reply reply;
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    do {
        fiber_sleep_ns(100 * NS_PER_MS);
        reply = ask(&client, (struct native_cluster){.function = NATIVE_CLUSTER_STATUS});
    } while ((!says(reply, waits) || !says(reply, "\"stage\":\"read_next\"")) &&
             io_now_ns() < deadline_ns);
    CHECK(says(reply, waits) && says(reply, "\"state\":\"leaving\""));
    fiber_sleep_ns(20 * NS_PER_S);
    CHECK(is_member(rig, "n5") && hints_of(rig, LEAVER) > 0);

    removal.flags = NATIVE_CLUSTER_FORCE;
    if (end == LEAVE_FORCED_SILENT) {
        for (u32 i = 0; i < rig->nodes[LEAVER].config->core_count; i++)
            sim_node_shard_stall(rig->nodes[LEAVER].machine, i, 2 * NS_PER_S);
        while (cluster_alive(rig->nodes[0].server->cluster, number))
            fiber_sleep_ns(10 * NS_PER_MS);
    }
    if (end == LEAVE_FORCED || end == LEAVE_FORCED_SILENT)
        CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    if (end == LEAVE_DIES) rig_crash(rig, LEAVER);
    for (u32 i = 2; i < LEAVER && end == LEAVE_DELIVERS; i++)
        sim_link_heal(rig->sim, rig->nodes[i].machine, rig->nodes[LEAVER].machine);
    deadline_ns = io_now_ns() + WAIT_NS;
    while (is_member(rig, "n5") && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(!is_member(rig, "n5"));
    if (end != LEAVE_DIES) CHECK((hints_of(rig, LEAVER) == 0) == (end == LEAVE_DELIVERS));
    cluster_rig_settle(rig, LEAVER, LEAVER, WAIT_NS);
    for (u32 i = 0; i < KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        if (written[i]) CHECK(key_op(&client, NATIVE_GET, 0, 0, key, key) == NATIVE_ST_OK);
    }
    rig_disconnect(&client);
}

static void
who_leaves_delivers_what_it_keeps_for_others_first(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++)
        for (u32 end = 0; end < LEAVE_ENDS; end++) {
            enum leave_end how = (enum leave_end)end;
            struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                              .node_count = LEAVER + 1,
                              .configure = configure,
                              .on_all_nodes = true,
                              .arg = &how};
            sim_options_default(&rig.options, seed);
            rig.story = leaver_story;
            rig_run(&rig);
        }
}

/* A key has three replicas. */
static MAY_YIELD void
few_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client;
    char key[16];
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        CHECK(key_op(&client, NATIVE_PUT, 0, 0, key, key) == NATIVE_ST_OK);
    }
    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .node = BYTES_LITERAL("n3")};
    expect_refused(ask(&client, removal), NATIVE_ST_INVALID,
                   "2 nodes would be left, and a key has 3 replicas: add a node first, or use "
                   "force");
    CHECK(cluster_rig_topology(rig, 0)->member_count == NODES);

    /* What is lost is lost: it can always be taken out. */
    removal.flags = NATIVE_CLUSTER_DEAD;
    rig_crash(rig, 2);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    struct native_reply reply;
    do {
        fiber_sleep_ns(100 * NS_PER_MS);
        reply = ask(&client, removal);
    } while (reply.header.status != NATIVE_ST_OK && io_now_ns() < deadline_ns);
    CHECK(reply.header.status == NATIVE_ST_OK);
    cluster_rig_settle(rig, 2, 2, WAIT_NS);

    removal.node = BYTES_LITERAL("n2");
    removal.flags = 0;
    expect_refused(ask(&client, removal), NATIVE_ST_INVALID,
                   "1 node would be left, and a key has 3 replicas: add a node first, or use "
                   "force");
    removal.flags = NATIVE_CLUSTER_FORCE;
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    cluster_rig_settle(rig, 1, 1, WAIT_NS);
    for (u32 i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        CHECK(key_op(&client, NATIVE_GET, 0, 0, key, key) == NATIVE_ST_OK);
        CHECK(key_op(&client, NATIVE_PUT, 0, 0, key, "new") == NATIVE_ST_OK);
    }
    rig_disconnect(&client);
}

static void
fewer_nodes_than_replicas_are_left_by_force_or_for_a_dead_one_only(void **state)
{
    (void)state;
    run_seeds(few_story, NODES, 0);
}

static bool
refused_with(struct native_reply reply, const char *begin)
{
    size_t size = strlen(begin);
    return reply.header.status == NATIVE_ST_INVALID && reply.error.text.size >= size &&
           memcmp(reply.error.text.data, begin, size) == 0;
}

/* Told so by who did not hear that it stays, or before it has heard that it is to leave. */
static void
expect_not_at_once(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(status_is(cluster_leave_at_once(shard->cluster), ST_OVERLOADED));
}

/* All but the first are asked to leave, and the first is lost before they have. */
static MAY_YIELD void
stay_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client;
    char key[16];
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        CHECK(key_op(&client, NATIVE_PUT, 0, 0, key, key) == NATIVE_ST_OK);
    }
    /* Within a tick: by its next removal it may not go at once for that. */
    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .flags = NATIVE_CLUSTER_FORCE,
                                     .node = BYTES_LITERAL("n3")};
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    removal.flags = NATIVE_CLUSTER_UNDO;
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    fiber_sleep_ns(NS_PER_S);
    CHECK(!atomic_load(&rig->nodes[2].server->cluster->leaves_at_once));
    rig_on_node(rig, 0, 0, expect_not_at_once, NULL);

    removal.flags = NATIVE_CLUSTER_FORCE;
    removal.node = BYTES_LITERAL("n2");
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    removal.node = BYTES_LITERAL("n3");
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    rig_crash(rig, 0);

    /* n2 or n3, whichever came first. */
    const char *refusal = "member 1 is the last one that holds everything: its data would be lost; "
                          "first take back that 'n";
    struct native_cluster dead = {.function = NATIVE_CLUSTER_REMOVE,
                                  .flags = NATIVE_CLUSTER_DEAD,
                                  .node = BYTES_LITERAL("n1")};
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    struct native_reply reply;
    do {
        fiber_sleep_ns(100 * NS_PER_MS);
        reply = ask(&client, dead);
    } while (!refused_with(reply, refusal) && io_now_ns() < deadline_ns);
    CHECK(refused_with(reply, refusal));

    removal.flags = NATIVE_CLUSTER_UNDO;
    removal.node = BYTES_LITERAL("nobody");
    expect_refused(ask(&client, removal), NATIVE_ST_NOT_FOUND, "no member has this id");
    removal.node = BYTES_LITERAL("n2");
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK); /* is there already */
    CHECK(ask(&client, dead).header.status == NATIVE_ST_OK);
    while (!cluster_rig_knows(rig, 1, 1) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(100 * NS_PER_MS);
    const struct topology *topology = cluster_rig_topology(rig, 1);
    CHECK(topology->member_count == 1 && topology->members[0].state == PLACEMENT_NORMAL);
    CHECK(!atomic_load(&rig->nodes[1].server->cluster->leaves_at_once));
    for (u32 i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        CHECK(key_op(&client, NATIVE_GET, 0, 0, key, key) == NATIVE_ST_OK);
        CHECK(key_op(&client, NATIVE_PUT, 0, 0, key, "new") == NATIVE_ST_OK);
    }
    rig_disconnect(&client);
}

static void
who_leaves_stays_instead_of_one_that_is_lost(void **state)
{
    (void)state;
    run_seeds(stay_story, NODES, 0);
}

/* Faster than it looks at itself: what the force said of the first removal is not true of the
 * second one. */
static MAY_YIELD void
leave_anew_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    struct rig_client client;
    rig_connect_to(rig, 1, &client);
    static const u8 flags[] = {NATIVE_CLUSTER_FORCE, NATIVE_CLUSTER_UNDO, 0};
    for (u32 i = 0; i < ARRAY_COUNT(flags); i++) {
        struct native_cluster removal = {
            .function = NATIVE_CLUSTER_REMOVE, .flags = flags[i], .node = BYTES_LITERAL("n4")};
        CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    }
    u64 epoch = cluster_rig_topology(rig, 1)->epoch, deadline_ns = io_now_ns() + WAIT_NS;
    while (cluster_rig_topology(rig, NODES)->epoch < epoch && io_now_ns() < deadline_ns)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(cluster_rig_topology(rig, NODES)->epoch >= epoch);
    CHECK(!atomic_load(&rig->nodes[NODES].server->cluster->leaves_at_once));
    rig_disconnect(&client);
}

static void
who_leaves_anew_does_not_go_at_once_for_a_force_that_was_undone(void **state)
{
    (void)state;
    run_seeds(leave_anew_story, NODES + 1, 0);
}

static MAY_YIELD void
snapshots_soon(struct shard *shard, void *arg)
{
    (void)arg;
    shard->cluster->group0->options.snapshot_entries = 1;
}

static void
cut_last(struct rig *rig, bool cut)
{
    for (u32 i = 0; i < NODES; i++)
        (cut ? sim_link_cut : sim_link_heal)(rig->sim, rig->nodes[i].machine,
                                             rig->nodes[NODES].machine);
}

/* And it sees nothing of the undoing, which lies inside a snapshot. */
static MAY_YIELD void
leave_anew_unseen_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    const struct cluster *cluster = rig->nodes[NODES].server->cluster;
    struct rig_client client;
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i < NODES; i++)
        rig_on_node(rig, i, 0, snapshots_soon, NULL);
    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .flags = NATIVE_CLUSTER_FORCE,
                                     .node = BYTES_LITERAL("n4")};
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    CHECK(atomic_load(&cluster->leaves_at_once));
    cut_last(rig, true);
    removal.flags = NATIVE_CLUSTER_UNDO;
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    removal.flags = 0;
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    fiber_sleep_ns(5 * NS_PER_S); /* the log is cut */
    u64 epoch = cluster_rig_topology(rig, 1)->epoch, deadline_ns = io_now_ns() + WAIT_NS;
    u64 snapshots = cluster->shards[0]->group0->snapshots;
    CHECK(atomic_load(&cluster->leaves_at_once));
    cut_last(rig, false);
    while (cluster_rig_topology(rig, NODES)->epoch < epoch && io_now_ns() < deadline_ns)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(cluster_rig_topology(rig, NODES)->epoch >= epoch);
    CHECK(cluster->shards[0]->group0->snapshots > snapshots);
    CHECK(!atomic_load(&cluster->leaves_at_once));
    rig_disconnect(&client);
}

static void
who_leaves_anew_does_not_go_at_once_though_it_saw_no_undoing(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                          .node_count = NODES + 1,
                          .configure = configure,
                          .on_all_nodes = true};
        sim_options_default(&rig.options, seed);
        rig.story = leave_anew_unseen_story;
        rig_run(&rig);
    }
}

/* Nor is who does not answer told of a force that was undone meanwhile. */
static MAY_YIELD void
force_undone_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    struct rig_client client, other;
    rig_connect_to(rig, 1, &client);
    rig_connect_to(rig, 2, &other);
    cut_last(rig, true);
    struct native_request request = {.header.opcode = NATIVE_CLUSTER,
                                     .cluster = {.function = NATIVE_CLUSTER_REMOVE,
                                                 .flags = NATIVE_CLUSTER_FORCE,
                                                 .node = BYTES_LITERAL("n4")}};
    rig_native_send(&client, &request);
    fiber_sleep_ns(2 * NS_PER_S);
    request.cluster.flags = NATIVE_CLUSTER_UNDO;
    CHECK(ask(&other, request.cluster).header.status == NATIVE_ST_OK);
    struct native_reply reply;
    CHECK(rig_native_reply(&client, &reply));
    expect_refused(reply, NATIVE_ST_UNAVAILABLE, "its removal was taken back meanwhile");
    cut_last(rig, false);
    cluster_rig_settle(rig, NODES + 1, NODES + 1, WAIT_NS);
    CHECK(!atomic_load(&rig->nodes[NODES].server->cluster->leaves_at_once));
    rig_disconnect(&client);
    rig_disconnect(&other);
}

static void
who_does_not_answer_is_told_of_no_force_that_was_undone(void **state)
{
    (void)state;
    run_seeds(force_undone_story, NODES + 1, 0);
}

/* Ends by itself, with a word of why, and is asked for nothing more. */
static MAY_YIELD void
expect_taken_out(struct rig *rig, u32 node)
{
    u64 deadline_ns = io_now_ns() + 15 * NS_PER_S;
    while (sim_node_running(rig->nodes[node].machine) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(!sim_node_running(rig->nodes[node].machine));
    CHECK(strstr(server_failure(rig->nodes[node].server), "was taken out of the cluster") != NULL);
    CHECK(strstr(server_failure(rig->nodes[node].server), status_text(ST_DENIED)) == NULL);
    rig_crash(rig, node); /* what it has ended with is no failure of the test */
}

static MAY_YIELD void
joiner_story(struct rig *rig)
{
    u64 pause_ns = *(const u64 *)rig->arg;
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    rig_start_begin(rig, NODES);
    const struct topology *topology;
    while ((topology = cluster_rig_topology(rig, 0)) == NULL || topology->member_count <= NODES)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(topology_member_by_id(topology, "n4")->state == PLACEMENT_JOINING);
    fiber_sleep_ns(pause_ns);
    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .node = BYTES_LITERAL("n4")};
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    expect_taken_out(rig, NODES);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    rig_disconnect(&client);
}

static void
who_is_removed_while_it_joins_says_so_and_stops(void **state)
{
    (void)state;
    static u64 pauses_ns[] = {0, 300 * NS_PER_MS, 700 * NS_PER_MS}; /* not in yet, and in */
    for (u32 i = 0; i < ARRAY_COUNT(pauses_ns); i++)
        run_seeds_of(joiner_story, NODES + 1, 1, &pauses_ns[i]);
}

/* Nobody reaches it, and it is called dead; then it is back. */
static MAY_YIELD void
unreached_story(struct rig *rig)
{
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < 2; i++)
        sim_link_cut(rig->sim, rig->nodes[i].machine, rig->nodes[2].machine);
    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .flags = NATIVE_CLUSTER_DEAD,
                                     .node = BYTES_LITERAL("n3")};
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (ask(&client, removal).header.status != NATIVE_ST_OK && io_now_ns() < deadline_ns)
        fiber_sleep_ns(100 * NS_PER_MS);
    cluster_rig_settle(rig, 2, 2, WAIT_NS);
    CHECK(sim_node_running(rig->nodes[2].machine));
    for (u32 i = 0; i < 2; i++)
        sim_link_heal(rig->sim, rig->nodes[i].machine, rig->nodes[2].machine);
    expect_taken_out(rig, 2);
    rig_disconnect(&client);
}

static void
who_is_back_after_it_was_called_dead_says_so_and_stops(void **state)
{
    (void)state;
    run_seeds(unreached_story, NODES, 0);
}

static MAY_YIELD bool
status_has(struct rig_client *client, const char *text)
{
    return says(ask(client, (struct native_cluster){.function = NATIVE_CLUSTER_STATUS}), text);
}

static MAY_YIELD void
remove_wait(struct rig *rig, const char *node_id)
{
    u64 deadline_ns = io_now_ns() + 30 * NS_PER_S;
    while (is_member(rig, node_id) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(!is_member(rig, node_id));
}

/* A member that takes no writes, for want of room alone, follows the cluster all the same: it gives
 * to who joins, which is how it gets room, and may leave. Only what would give something to it
 * waits, and says so. */
static MAY_YIELD void
full_member_story(struct rig *rig)
{
    bool gains = *(const bool *)rig->arg;
    struct server_config *config = rig->nodes[2].config;
    u64 reserve = config->disk_reserve_bytes;
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    rig_crash(rig, 2);
    config->disk_reserve_bytes = GIB(1024);
    rig_start(rig, 2);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fiber_sleep_ns(2 * NS_PER_S);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    CHECK(status_has(&client, "\"stuck\":true"));
    rig_start(rig, 3);
    cluster_rig_settle(rig, NODES + 1, NODES + 1, 30 * NS_PER_S);
    CHECK(status_has(&client, "\"stuck\":true"));
    struct native_cluster removal = {.function = NATIVE_CLUSTER_REMOVE,
                                     .node = gains ? BYTES_LITERAL("n2") : BYTES_LITERAL("n3")};
    u32 number = topology_member_by_id(cluster_rig_topology(rig, 0), "n3")->number;
    CHECK(ask(&client, removal).header.status == NATIVE_ST_OK);
    if (gains) {
        char waits[32];
        snprintf(waits, sizeof(waits), "\"plan_waits_for\":%u,", number);
        fiber_sleep_ns(10 * NS_PER_S);
        CHECK(is_member(rig, "n2") && cluster_rig_topology(rig, 0)->stage == STAGE_NONE);
        CHECK(status_has(&client, waits));
        rig_crash(rig, 2);
        config->disk_reserve_bytes = reserve;
        rig_start(rig, 2);
    }
    remove_wait(rig, gains ? "n2" : "n3");
    rig_disconnect(&client);
}

static void
a_member_that_takes_no_writes_holds_up_no_plan_but_to_give_it_more(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        bool gains = i == 1;
        run_seeds_of(full_member_story, NODES + 1, 1, &gains);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keyspaces_have_their_own_replicas_and_quorums),
        cmocka_unit_test(keyspaces_are_made_by_their_first_use_or_by_an_operator),
        cmocka_unit_test(nothing_is_made_sloppy_before_all_have_shown_that_they_know_it),
        cmocka_unit_test(a_frame_says_how_many_replicas_it_waits_for),
        cmocka_unit_test(a_drained_node_is_missed_by_nobody_and_loses_no_increment),
        cmocka_unit_test(a_restart_in_order_holds_nobody_up),
        cmocka_unit_test(who_stops_gives_the_lead_away_whatever_goes_on),
        cmocka_unit_test(nodes_that_stop_together_give_the_lead_away_once),
        cmocka_unit_test(no_increment_is_lost_when_all_nodes_start_again),
        cmocka_unit_test(nodes_are_weighed_and_removed_by_any_other),
        cmocka_unit_test(who_fails_while_it_joins_ends),
        cmocka_unit_test(a_shard_that_has_no_memory_for_who_joins_takes_it_in_later),
        cmocka_unit_test(who_is_heard_elsewhere_stays_there_while_another_one_lacks_memory),
        cmocka_unit_test(who_leaves_delivers_what_it_keeps_for_others_first),
        cmocka_unit_test(who_is_removed_while_it_joins_says_so_and_stops),
        cmocka_unit_test(who_is_back_after_it_was_called_dead_says_so_and_stops),
        cmocka_unit_test(a_member_that_takes_no_writes_holds_up_no_plan_but_to_give_it_more),
        cmocka_unit_test(fewer_nodes_than_replicas_are_left_by_force_or_for_a_dead_one_only),
        cmocka_unit_test(who_leaves_stays_instead_of_one_that_is_lost),
        cmocka_unit_test(who_leaves_anew_does_not_go_at_once_for_a_force_that_was_undone),
        cmocka_unit_test(who_leaves_anew_does_not_go_at_once_though_it_saw_no_undoing),
        cmocka_unit_test(who_does_not_answer_is_told_of_no_force_that_was_undone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
