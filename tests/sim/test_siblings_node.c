/* SPDX-License-Identifier: MIT
 *
 * test_siblings_node.c -- a keyspace that keeps siblings as RESP clients of whole nodes see it:
 * DISTKV.GET, DISTKV.PUT, DISTKV.DEL, and what plain commands do there.
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
#include "cluster/cluster.h"
#include "cluster_rig.h"
#include "proto/native.h"

#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 2u
#else
#define SEED_COUNT 4u
#endif
#define NODES   3u
#define WAIT_NS (60 * NS_PER_S)

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1 + (rig->shard_count + node) % 3);
}

/* All shards of all nodes know all members, and the keyspace if there is to be one. */
static bool
is_settled(struct rig *rig, u32 keyspace)
{
    if (!cluster_rig_is_settled(rig, NODES, NODES)) return false;
    for (u32 i = 0; keyspace != 0 && i < NODES; i++) {
        const struct server *server = rig->nodes[i].server;
        for (u32 shard = 0; shard < server->shard_count; shard++) {
            const struct topology *topology = server->cluster->shards[shard]->topology;
            if (topology->keyspaces[keyspace].conflict != CONFLICT_SIBLINGS) return false;
        }
    }
    return true;
}

static MAY_YIELD void
wait_settled(struct rig *rig, u32 keyspace)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (!is_settled(rig, keyspace) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(is_settled(rig, keyspace));
}

static struct rig
rig_of(u64 seed, void (*story)(struct rig *rig))
{
    struct rig rig = {.shard_count = (u32)(seed % 3),
                      .node_count = NODES,
                      .configure = configure,
                      .on_all_nodes = true};
    sim_options_default(&rig.options, seed);
    rig.story = story;
    if (rig.shard_count == 0) rig.shard_count = 3;
    return rig;
}

/* ---- what comes ---- */

struct got {
    char context[512];
    u32 count;
    char values[8][32];
};

static const char *
take_bulk(const char *at, char *out, size_t size)
{
    CHECK(*at == '$');
    size_t length = strtoul(at + 1, NULL, 10);
    CHECK(length < size);
    at = strchr(at, '\n') + 1;
    memcpy(out, at, length);
    out[length] = 0;
    return at + length + 2;
}

static MAY_YIELD void
get_siblings(struct rig_client *client, const char *key, struct got *out)
{
    char text[2048];
    struct bytes reply = rig_call(client, "DISTKV.GET %s", key);
    CHECK(reply.size < sizeof(text));
    memcpy(text, reply.data, reply.size);
    text[reply.size] = 0;
    if (strncmp(text, "*2\r\n", 4) != 0) fprintf(stderr, "DISTKV.GET %s: %s", key, text);
    CHECK(strncmp(text, "*2\r\n", 4) == 0);
    const char *at = take_bulk(text + 4, out->context, sizeof(out->context));
    CHECK(*at == '*');
    out->count = (u32)strtoul(at + 1, NULL, 10);
    at = strchr(at, '\n') + 1;
    CHECK(out->count <= ARRAY_COUNT(out->values));
    for (u32 i = 0; i < out->count; i++)
        at = take_bulk(at, out->values[i], sizeof(out->values[i]));
}

static bool
has(const struct got *got, const char *value)
{
    for (u32 i = 0; i < got->count; i++)
        if (strcmp(got->values[i], value) == 0) return true;
    return false;
}

static bool
begins(struct bytes reply, const char *expected)
{
    return reply.size >= strlen(expected) && memcmp(reply.data, expected, strlen(expected)) == 0;
}

#define EXPECT(client, expected, ...)                                                              \
    do {                                                                                           \
        struct bytes reply_ = rig_call(client, __VA_ARGS__);                                       \
        if (!begins(reply_, expected))                                                             \
            fprintf(stderr, "%s:%d: %.*s\n", __FILE__, __LINE__, (int)reply_.size,                 \
                    (const char *)reply_.data);                                                    \
        CHECK(begins(reply_, expected));                                                           \
    } while (0)

/* ---- stories ---- */

static MAY_YIELD void
keyspace_make(struct shard *shard, void *arg)
{
    u16 *number = arg;
    struct cluster_keyspace wanted = {.create = true,
                                      .number = CLUSTER_KEYSPACE_ANY,
                                      .conflict = CONFLICT_SIBLINGS,
                                      .name = "carts"};
    status st = cluster_keyspace_set(shard->cluster, &wanted, io_now_ns() + WAIT_NS);
    CHECK(ok(st));
    *number = wanted.number;
}

static MAY_YIELD void
begin(struct rig *rig, struct rig_client clients[NODES])
{
    wait_settled(rig, 0);
    for (u32 i = 0; i < NODES; i++)
        rig_connect_to(rig, i, &clients[i]);
    for (u32 i = 1; i < NODES; i++) { /* the second time it is there */
        u16 number = 0;
        rig_on_node(rig, i, 0, keyspace_make, &number);
        CHECK(number == 15);
    }
    wait_settled(rig, 15);
    for (u32 i = 0; i < NODES; i++)
        EXPECT(&clients[i], "+OK\r\n", "SELECT 15");
}

static MAY_YIELD void
end(struct rig_client clients[NODES])
{
    for (u32 i = 0; i < NODES; i++)
        rig_disconnect(&clients[i]);
}

static MAY_YIELD void
contexts_story(struct rig *rig)
{
    struct rig_client clients[NODES];
    struct got got, old;
    begin(rig, clients);
    for (u32 i = 0; i < 12; i++) {
        char key[16];
        snprintf(key, sizeof(key), "cart%u", i);
        struct rig_client *a = &clients[i % NODES], *b = &clients[(i + 1) % NODES];
        get_siblings(a, key, &got);
        CHECK(got.count == 0);
        EXPECT(a, "+OK\r\n", "DISTKV.PUT %s apples", key);
        get_siblings(b, key, &old);
        CHECK(old.count == 1 && has(&old, "apples"));
        EXPECT(b, "+OK\r\n", "DISTKV.PUT %s pears", key);
        for (u32 node = 0; node < NODES; node++) {
            get_siblings(&clients[node], key, &got);
            CHECK(got.count == 2 && has(&got, "apples") && has(&got, "pears"));
            EXPECT(&clients[node], "$5\r\npears\r\n", "GET %s", key); /* the later one */
        }
        EXPECT(a, "+OK\r\n", "DISTKV.PUT %s plums %s", key, old.context); /* apples are replaced */
        get_siblings(b, key, &got);
        CHECK(got.count == 2 && has(&got, "plums") && has(&got, "pears"));
        /* Who deletes what is not there any more deletes nothing. */
        EXPECT(b, "+OK\r\n", "DISTKV.DEL %s %s", key, old.context);
        get_siblings(b, key, &got);
        CHECK(got.count == 2 && has(&got, "plums") && has(&got, "pears"));
        EXPECT(a, "$5\r\nplums\r\n", "GET %s", key);
        EXPECT(b, "+OK\r\n", "DISTKV.DEL %s %s", key, got.context);
        get_siblings(a, key, &got);
        CHECK(got.count == 0);
        EXPECT(a, "$-1\r\n", "GET %s", key);
        EXPECT(a, "+OK\r\n", "DISTKV.PUT %s figs %s", key, got.context);
        get_siblings(b, key, &got);
        CHECK(got.count == 1 && has(&got, "figs"));
    }
    EXPECT(&clients[0], "-ERR this is no context", "DISTKV.PUT cart0 x 0102");
    EXPECT(&clients[0], "-ERR this is no context", "DISTKV.PUT cart0 x xyz");
    EXPECT(&clients[0], "-ERR this is no context", "DISTKV.DEL cart0 012");
    EXPECT(&clients[0], "-ERR syntax", "DISTKV.PUT cart0 x y z");
    end(clients);
}

static MAY_YIELD void
plain_story(struct rig *rig)
{
    struct rig_client clients[NODES];
    struct got got;
    begin(rig, clients);
    struct rig_client *a = &clients[0], *b = &clients[1], *c = &clients[2];
    EXPECT(a, "+OK\r\n", "DISTKV.PUT k one");
    EXPECT(b, "+OK\r\n", "DISTKV.PUT k two");
    /* A plain write has seen what it reads first. */
    EXPECT(c, "+OK\r\n", "SET k three");
    get_siblings(a, "k", &got);
    CHECK(got.count == 1 && has(&got, "three"));
    EXPECT(b, "$-1\r\n", "SET k four NX");
    EXPECT(b, ":9\r\n", "APPEND k more");
    EXPECT(a, "$9\r\nthreemore\r\n", "GETSET k five");
    for (u32 i = 0; i < 9; i++) {
        char expected[16];
        snprintf(expected, sizeof(expected), ":%u\r\n", i + 1);
        EXPECT(&clients[i % NODES], expected, "INCR n");
    }
    EXPECT(a, "+OK\r\n", "MSET x 1 y 2 z 3");
    EXPECT(b, "*4\r\n$1\r\n1\r\n$1\r\n2\r\n$-1\r\n$1\r\n3\r\n", "MGET x y w z");
    EXPECT(c, ":2\r\n", "DEL x y w");
    EXPECT(a, "$-1\r\n", "GET x");
    EXPECT(a, ":3\r\n", "DBSIZE"); /* k, n and z: what was deleted is not counted */
    EXPECT(b, "*2\r\n$1\r\n0\r\n*1\r\n$1\r\nz\r\n", "SCAN 0 MATCH z COUNT 1000");
    /* What cannot be. */
    EXPECT(a, "-ERR nothing expires", "SET k six EX 10");
    EXPECT(a, "-ERR nothing expires", "EXPIRE k 10");
    EXPECT(a, "+OK\r\n", "SET {k}1 v");
    EXPECT(a, "-ERR a keyspace that keeps siblings takes one key", "RENAME {k}1 {k}2");
    EXPECT(a, "$4\r\nfive\r\n", "GET k");
    for (u32 i = 0; i < 32; i++)
        EXPECT(&clients[i % NODES], "+OK\r\n", "DISTKV.PUT full v%u", i);
    EXPECT(a, "-ERR the key has too many siblings", "DISTKV.PUT full more");
    EXPECT(a, "+OK\r\n", "SET full all");
    EXPECT(a, "+OK\r\n", "SELECT 0");
    EXPECT(a, "-ERR this keyspace keeps no siblings", "DISTKV.GET k");
    EXPECT(a, "-ERR this keyspace keeps no siblings", "DISTKV.PUT k v");
    EXPECT(a, "$-1\r\n", "GET k");
    end(clients);
}

/* A connection to who has lost its power is found to be none when it is used again. */
static MAY_YIELD void
connections_renew(struct rig_client *client)
{
    EXPECT(client, "+OK\r\n", "DISTKV.CONSISTENCY ALL");
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (!begins(rig_call(client, "GET k"), "$") && io_now_ns() < deadline_ns)
        fiber_sleep_ns(50 * NS_PER_MS);
    EXPECT(client, "$", "GET k");
    EXPECT(client, "+OK\r\n", "DISTKV.CONSISTENCY DEFAULT");
}

/* The power fails on one node after the other; what was written is there, and none is a sibling of
 * what it has replaced. */
static MAY_YIELD void
crash_story(struct rig *rig)
{
    struct rig_client clients[NODES];
    struct got got;
    begin(rig, clients);
    EXPECT(&clients[0], "+OK\r\n", "DISTKV.PUT k v0");
    EXPECT(&clients[1], "+OK\r\n", "DISTKV.PUT k w");
    for (u32 i = 0; i < NODES; i++) {
        rig_crash(rig, i);
        fiber_sleep_ns(2 * NS_PER_S); /* until it is known: what is in flight to it is unknown */
        struct rig_client *other = &clients[(i + 1) % NODES];
        get_siblings(other, "k", &got);
        CHECK(got.count == (i == 0 ? 2u : 1u));
        EXPECT(other, "+OK\r\n", "DISTKV.PUT k v%u %s", i + 1, got.context);
        rig_start(rig, i);
        wait_settled(rig, 15);
        rig_disconnect(&clients[i]);
        rig_connect_to(rig, i, &clients[i]);
        EXPECT(&clients[i], "+OK\r\n", "SELECT 15");
        for (u32 node = 0; node < NODES; node++)
            connections_renew(&clients[node]);
        get_siblings(&clients[i], "k", &got);
        CHECK(got.count == 1);
    }
    end(clients);
}

/* ---- a full disk ---- */

#define FULL 2u /* the node */

static void
configure_full(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->disk_reserve_bytes = MIB(1);
}

/* Until every node knows that one takes no writes, or does. */
static MAY_YIELD void
wait_stuck(struct rig *rig, bool stuck)
{
    u32 member = cluster_member(rig->nodes[FULL].server->cluster), known = 0;
    for (u64 end_ns = io_now_ns() + WAIT_NS; known < NODES && io_now_ns() < end_ns;) {
        known = 0;
        for (u32 i = 0; i < NODES; i++)
            known += cluster_stuck(rig->nodes[i].server->cluster, member) == stuck;
        if (known < NODES) fiber_sleep_ns(10 * NS_PER_MS);
    }
    CHECK(known == NODES);
}

/* Who makes a dot stores it first. So no node whose disk is full is asked to, though it is the
 * first replica of a third of the keys, and lives: not by others, and not by its own clients. */
static MAY_YIELD void
full_disk_story(struct rig *rig)
{
    struct rig_client clients[NODES];
    struct got got;
    begin(rig, clients);
    struct sim_disk *disk = sim_node_disk(rig->nodes[FULL].machine);
    sim_disk_capacity_set(disk, sim_disk_used_bytes(disk));
    wait_stuck(rig, true);
    for (u32 i = 0; i < 30; i++) {
        for (u32 node = 0; node < NODES; node++)
            EXPECT(&clients[node], "+OK\r\n", "DISTKV.PUT cart%u v%u", i, node);
        get_siblings(&clients[i % NODES], "cart0", &got);
        CHECK(got.count == NODES);
        EXPECT(&clients[i % NODES], ":1\r\n", "INCR n%u", i);
    }
    sim_disk_capacity_set(disk, GIB(64));
    wait_stuck(rig, false);
    for (u32 i = 0; i < 30; i++)
        EXPECT(&clients[i % NODES], ":2\r\n", "INCR n%u", i);
    end(clients);
}

/* ---- a shard that is behind ---- */

#define BEHIND    2u /* the node; its shard 1 hears of nothing while shard 0 stands still */
#define STANDS_NS (300 * NS_PER_MS) /* others do not take it for dead: it would be unknown */

enum {
    LATE_FIRST = 9,
    LATE_SCANNED = LATE_FIRST,
    LATE_FLUSHED,
    LATE_COPIED,
    LATE_SIBLINGS,
    LATE_END
};

static MAY_YIELD void
late_make(struct shard *shard, void *arg)
{
    (void)arg;
    for (u16 number = LATE_FIRST; number < LATE_END; number++) {
        struct cluster_keyspace wanted = {.create = true,
                                          .number = number,
                                          .conflict = number == LATE_SIBLINGS ? CONFLICT_SIBLINGS
                                                                              : CONFLICT_LWW};
        snprintf(wanted.name, sizeof(wanted.name), "late%u", number);
        status st = cluster_keyspace_set(shard->cluster, &wanted, io_now_ns() + WAIT_NS);
        CHECK(ok(st) && wanted.number == number);
    }
}

static bool
late_known(const struct rig *rig, u32 node, u32 shard)
{
    const struct topology *topology = rig->nodes[node].server->cluster->shards[shard]->topology;
    for (u32 number = LATE_SIBLINGS; number < LATE_END; number++)
        if (!topology->keyspaces[number].used) return false;
    return true;
}

static MAY_YIELD void
connect_to_shard(struct rig *rig, u32 node, u32 shard, u32 keyspace, struct rig_client *client)
{
    for (;;) {
        rig_connect_to(rig, node, client);
        struct bytes id = rig_call(client, "CLIENT ID"); /* the shard is in the last six bits */
        CHECK(id.size > 1 && id.data[0] == ':');
        if (strtoull((const char *)id.data + 1, NULL, 10) % 64 == shard) break;
        rig_disconnect(client);
    }
    EXPECT(client, "+OK\r\n", "SELECT %u", keyspace);
}

static MAY_YIELD void
expect_late(struct rig_client *client, const char *what, const char *expected)
{
    struct bytes reply = rig_read(client);
    if (!begins(reply, expected))
        fprintf(stderr, "%s: %.*s\n", what, (int)reply.size, (const char *)reply.data);
    CHECK(begins(reply, expected));
}

static void
find_begin(struct rig_client *client, u32 number)
{
    char name[16];
    int length = snprintf(name, sizeof(name), "late%u", number);
    struct native_request request = {
        .header.opcode = NATIVE_CLUSTER,
        .cluster = {.function = NATIVE_CLUSTER_KEYSPACE_FIND, .name = BYTES(name, (size_t)length)}};
    rig_native_send(client, &request);
}

static MAY_YIELD void
expect_found(struct rig_client *client, u32 number)
{
    struct native_reply reply;
    CHECK(rig_native_reply(client, &reply));
    CHECK(reply.header.status == NATIVE_ST_OK && reply.cluster.number == number);
}

/* Keyspaces were made, and hold keys, and the shard that is asked does not know it yet. */
static MAY_YIELD void
late_story(struct rig *rig)
{
    struct rig_client writer, putter, finder, behind[3];
    char key[16];
    wait_settled(rig, 0);
    cluster_rig_key(rig, BEHIND, 1, key, sizeof(key)); /* that shard is to write it first */
    connect_to_shard(rig, 0, 0, 0, &writer);
    connect_to_shard(rig, 0, 0, LATE_SIBLINGS, &putter);
    connect_to_shard(rig, BEHIND, 1, LATE_SCANNED, &behind[0]);
    connect_to_shard(rig, BEHIND, 1, LATE_FLUSHED, &behind[1]);
    connect_to_shard(rig, BEHIND, 1, 0, &behind[2]);
    rig_native_connect(rig, BEHIND, 1, &finder);
    EXPECT(&writer, "+OK\r\n", "SET %s v", key);

    sim_node_shard_stall(rig->nodes[BEHIND].machine, 0, STANDS_NS);
    rig_on_node(rig, 0, 0, late_make, NULL);
    CHECK(late_known(rig, 0, 0));
    for (u32 number = LATE_SCANNED; number <= LATE_FLUSHED; number++) {
        EXPECT(&writer, "+OK\r\n", "SELECT %u", number);
        EXPECT(&writer, "+OK\r\n", "SET full v");
    }
    rig_send(&putter, "DISTKV.PUT %s v", key);
    rig_send(&behind[0], "DBSIZE");
    rig_send(&behind[1], "FLUSHDB");
    rig_send(&behind[2], "COPY %s %s DB %u", key, key, (u32)LATE_COPIED);
    find_begin(&finder, LATE_SCANNED);
    fiber_sleep_ns(100 * NS_PER_MS);
    CHECK(!late_known(rig, BEHIND, 1)); /* they were asked while it was behind */
    expect_late(&putter, "DISTKV.PUT", "+OK\r\n");
    expect_late(&behind[0], "DBSIZE", ":1\r\n");
    expect_late(&behind[1], "FLUSHDB", "+OK\r\n");
    expect_late(&behind[2], "COPY", ":1\r\n");
    expect_found(&finder, LATE_SCANNED);
    EXPECT(&writer, "$-1\r\n", "GET full"); /* flushed */
    rig_disconnect(&writer);
    rig_disconnect(&putter);
    rig_disconnect(&finder);
    for (u32 i = 0; i < ARRAY_COUNT(behind); i++)
        rig_disconnect(&behind[i]);
}

/* What waits until it is known whether its target was made holds up nobody who writes the same key
 * in yet another keyspace. */
static MAY_YIELD void
late_copy_story(struct rig *rig)
{
    struct rig_client copier, writer;
    char key[16];
    wait_settled(rig, 0);
    cluster_rig_key(rig, BEHIND, 1, key, sizeof(key));
    connect_to_shard(rig, BEHIND, 1, 0, &copier);
    connect_to_shard(rig, BEHIND, 1, 1, &writer);
    EXPECT(&copier, "+OK\r\n", "SET %s v", key);
    EXPECT(&writer, ":1\r\n", "INCR %s", key); /* and the keyspace is known */
    sim_node_shard_stall(rig->nodes[BEHIND].machine, 0, STANDS_NS);
    rig_on_node(rig, 0, 0, late_make, NULL);
    rig_send(&copier, "COPY %s %s DB 2 DB %u", key, key, (u32)LATE_COPIED);
    fiber_sleep_ns(50 * NS_PER_MS);
    EXPECT(&writer, ":2\r\n", "INCR %s", key);
    CHECK(!late_known(rig, BEHIND, 1));
    expect_late(&copier, "COPY", ":1\r\n");
    EXPECT(&copier, "+OK\r\n", "SELECT %u", (u32)LATE_COPIED);
    EXPECT(&copier, "$1\r\nv\r\n", "GET %s", key);
    rig_disconnect(&copier);
    rig_disconnect(&writer);
}

/* A plain SET may run on any replica where the last write wins, and not where siblings are kept:
 * which of the two it is, the shard that takes it does not know yet. */
static MAY_YIELD void
late_set_story(struct rig *rig)
{
    struct rig_client client;
    char key[16];
    wait_settled(rig, 0);
    cluster_rig_key(rig, 0, 1, key, sizeof(key)); /* that node is to write it */
    connect_to_shard(rig, BEHIND, 1, LATE_SIBLINGS, &client);
    sim_node_shard_stall(rig->nodes[BEHIND].machine, 0, STANDS_NS);
    rig_on_node(rig, 0, 0, late_make, NULL);
    u64 before = cluster_rig_forwarded(rig, 0);
    rig_send(&client, "SET %s v", key);
    fiber_sleep_ns(100 * NS_PER_MS);
    CHECK(!late_known(rig, BEHIND, 1) && cluster_rig_forwarded(rig, 0) == before);
    expect_late(&client, "SET", "+OK\r\n");
    CHECK(cluster_rig_forwarded(rig, 0) == before + 1);
    EXPECT(&client, "$1\r\nv\r\n", "GET %s", key);
    rig_disconnect(&client);
}

/* The shard that has the key is behind the shard that the client speaks to: it has a topology on
 * the way that is older than the keyspace, and the next one comes only when that was taken. */
static MAY_YIELD void
late_owner_story(struct rig *rig)
{
    struct rig_client clients[2];
    char key[16];
    wait_settled(rig, 0);
    cluster_rig_key(rig, BEHIND, 1, key, sizeof(key)); /* that shard is to write it first */
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        connect_to_shard(rig, BEHIND, 2, LATE_SIBLINGS, &clients[i]);
    sim_node_shard_stall(rig->nodes[BEHIND].machine, 1, STANDS_NS);
    rig_on_node(rig, 0, 0, late_make, NULL);
    for (u32 i = 0; i < 100 && !late_known(rig, BEHIND, 2); i++)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(late_known(rig, BEHIND, 2) && !late_known(rig, BEHIND, 1));
    rig_send(&clients[0], "DISTKV.PUT %s v", key);
    rig_send(&clients[1], "DISTKV.GET other{%s}", key);
    fiber_sleep_ns(50 * NS_PER_MS);
    CHECK(!late_known(rig, BEHIND, 1));
    expect_late(&clients[0], "DISTKV.PUT", "+OK\r\n");
    expect_late(&clients[1], "DISTKV.GET", "*2\r\n");
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        rig_disconnect(&clients[i]);
}

static void
run_story(void (*story)(struct rig *rig))
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, story);
        rig_run(&rig);
    }
}

static void
contexts_replace_what_was_read(void **state)
{
    (void)state;
    run_story(contexts_story);
}

static void
plain_commands_replace_all_siblings(void **state)
{
    (void)state;
    run_story(plain_story);
}

static void
siblings_outlive_power_cuts(void **state)
{
    (void)state;
    run_story(crash_story);
}

static void
run_late(void (*story)(struct rig *rig), u32 shard_count)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, story);
        rig.shard_count = shard_count;
        rig_run(&rig);
    }
}

static void
a_shard_that_is_behind_does_not_answer_as_if_nothing_were_there(void **state)
{
    (void)state;
    run_late(late_story, 2);
}

static void
a_copy_that_waits_holds_up_no_other_keyspace(void **state)
{
    (void)state;
    run_late(late_copy_story, 2);
}

static void
a_write_that_was_taken_before_its_keyspace_was_known_runs_where_others_do(void **state)
{
    (void)state;
    run_late(late_set_story, 2);
}

static void
a_shard_that_does_not_know_the_keyspace_yet_is_waited_for(void **state)
{
    (void)state;
    run_late(late_owner_story, 3);
}

static void
a_node_whose_disk_is_full_makes_no_siblings_and_refuses_none(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, full_disk_story);
        rig.configure = configure_full;
        rig_run(&rig);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contexts_replace_what_was_read),
        cmocka_unit_test(plain_commands_replace_all_siblings),
        cmocka_unit_test(siblings_outlive_power_cuts),
        cmocka_unit_test(a_node_whose_disk_is_full_makes_no_siblings_and_refuses_none),
        cmocka_unit_test(a_shard_that_is_behind_does_not_answer_as_if_nothing_were_there),
        cmocka_unit_test(a_copy_that_waits_holds_up_no_other_keyspace),
        cmocka_unit_test(a_write_that_was_taken_before_its_keyspace_was_known_runs_where_others_do),
        cmocka_unit_test(a_shard_that_does_not_know_the_keyspace_yet_is_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
