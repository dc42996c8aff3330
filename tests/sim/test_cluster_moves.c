/* SPDX-License-Identifier: MIT
 *
 * test_cluster_moves.c -- joins and leaves of whole nodes on the simulated link, under writes: many
 * at once, given up and begun again, and with whoever leads the cluster dying in each stage.
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
#include "base/hash.h"
#include "cluster/cluster.h"
#include "cluster_rig.h"
#include "server/route.h"

#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#else
#define SEED_COUNT 2u
#endif
#define WAIT_NS (90 * NS_PER_S)

/* ---- the cluster ---- */

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1 + (rig->shard_count + node) % 2);
}

/* The test's argument is the rate of moves. */
static void
configure_paced(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->move_rate_bytes = *(const u64 *)rig->arg;
}

static struct rig
rig_of(u64 seed, void (*story)(struct rig *rig), u32 node_count, u32 late_count)
{
    struct rig rig = {.shard_count = (u32)(seed % 2) + 1,
                      .node_count = node_count,
                      .late_count = late_count,
                      .configure = configure,
                      .story = story};
    sim_options_default(&rig.options, seed);
    return rig;
}

/* What shard 0 of the node goes by; NULL: none yet, or it does not run. */
static const struct topology *
topology_of(const struct rig *rig, u32 node)
{
    return cluster_rig_topology(rig, node);
}

static u32
leader_of(const struct rig *rig)
{
    for (u32 i = 0; i < rig->node_count; i++) {
        struct group0_stats stats;
        if (topology_of(rig, i) == NULL) continue;
        group0_stats_get(rig->nodes[i].server->cluster->shards[0]->group0, &stats);
        if (stats.leads) return i;
    }
    return 0;
}

static MAY_YIELD void
remove_node(struct rig_client *client, const char *id)
{
    struct native_request request = {
        .header.opcode = NATIVE_CLUSTER,
        .cluster = {.function = NATIVE_CLUSTER_REMOVE, .node = BYTES(id, strlen(id))}};
    struct native_reply reply = rig_native_call(client, &request);
    CHECK(reply.header.status == NATIVE_ST_OK);
}

/* Until these nodes (a bit each) know so many members, all in their places. */
static MAY_YIELD void
settle(struct rig *rig, u32 nodes, u32 members)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    for (u32 i = 0; i < rig->node_count; i++)
        while ((nodes >> i & 1) && !cluster_rig_knows(rig, i, members)) {
            if (io_now_ns() > deadline_ns) sim_log_dump(rig->sim);
            CHECK(io_now_ns() < deadline_ns);
            fiber_sleep_ns(10 * NS_PER_MS);
        }
}

/* ---- the load ---- */

#define WRITE_KEYS 40u

struct writer {
    u32 number, node;
    bool ending;
    u32 acknowledged, unknown, refused;
    u32 values[WRITE_KEYS];
    bool vague[WRITE_KEYS]; /* of an unknown outcome once: that write may be done at any time */
};

static MAY_YIELD void
write_on(struct rig *rig, void *arg)
{
    struct writer *writer = arg;
    struct rig_client client;
    rig_connect_to(rig, writer->node, &client);
    for (u32 i = 1; !writer->ending; i++) {
        u32 key = i % WRITE_KEYS;
        struct bytes reply = rig_call(&client, "SET w%u:%u %u", writer->number, key, i);
        if (rig_is(reply, "+OK\r\n")) {
            writer->values[key] = i;
            writer->acknowledged++;
        } else if (reply.size > 8 && memcmp(reply.data, "-UNKNOWN", 8) == 0) {
            writer->vague[key] = true;
            writer->unknown++;
        } else {
            fprintf(stderr, "refused: %.*s\n", (int)reply.size, (const char *)reply.data);
            writer->refused++;
        }
    }
    rig_disconnect(&client);
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

static MAY_YIELD void
expect_written(struct rig *rig, u32 node, const struct writer *writers, u32 count)
{
    struct rig_client client;
    char key[32], value[32];
    rig_connect_to(rig, node, &client);
    for (u32 i = 0; i < count; i++)
        for (u32 k = 0; k < WRITE_KEYS; k++) {
            if (writers[i].values[k] == 0 || writers[i].vague[k]) continue;
            snprintf(key, sizeof(key), "w%u:%u", writers[i].number, k);
            snprintf(value, sizeof(value), "%u", writers[i].values[k]);
            expect_get(&client, key, value);
        }
    rig_disconnect(&client);
}

static MAY_YIELD void
writers_begin(struct rig *rig, struct writer *writers, u32 count)
{
    for (u32 i = 0; i < count; i++)
        rig_spawn(rig, write_on, &writers[i]);
}

static MAY_YIELD void
writers_end(struct rig *rig, struct writer *writers, u32 count)
{
    for (u32 i = 0; i < count; i++)
        writers[i].ending = true;
    rig_wait_spawned(rig);
    for (u32 i = 0; i < count; i++)
        CHECK(writers[i].acknowledged > 100 && writers[i].refused == 0);
}

/* ---- what is where ---- */

/* The version that the node's own store has of the key; 0: none. */
static u64
version_at(struct rig *rig, u32 node, const char *key)
{
    struct bytes name = BYTES(key, strlen(key));
    u64 token = hash_token(name), version, seq;
    const struct server *server = rig->nodes[node].server;
    u32 shard = partition_shard(token_partition(token, PARTITION_COUNT_DEFAULT),
                                server->shard_count, PARTITION_COUNT_DEFAULT);
    status st = lsm_newest_try(server->shards[shard]->lsm, 0, token, name, 0, &version, &seq);
    CHECK(ok(st) || status_is(st, ST_NOT_FOUND)); /* so little is in memory */
    return ok(st) ? version : 0;
}

/* All replicas of the key have the same, and have it themselves. */
static void
expect_on_all_replicas(struct rig *rig, const struct topology *topology, const char *key)
{
    struct topology_row row;
    u64 token = hash_token(BYTES(key, strlen(key))), first = 0;
    topology_row(topology, 0, token_partition(token, topology->partition_count), &row);
    CHECK(row.count == 3);
    for (u32 i = 0; i < row.count; i++)
        for (u32 node = 0; node < rig->node_count; node++) {
            const struct server *server = rig->nodes[node].server;
            if (server == NULL || cluster_member(server->cluster) != row.write[i]) continue;
            u64 version = version_at(rig, node, key);
            if (version == 0 || (first != 0 && version != first))
                fprintf(stderr, "n%u has version %llu of %s, not %llu\n", node + 1,
                        (unsigned long long)version, key, (unsigned long long)first);
            CHECK(version != 0 && (first == 0 || version == first));
            first = version;
        }
    CHECK(first != 0);
}

/* How often KEYS names each of k0 .. k(count - 1); how many it names in all. */
static MAY_YIELD u32
keys_listed(struct rig_client *client, u32 *times, u32 count)
{
    struct bytes reply = rig_call(client, "KEYS *");
    memset(times, 0, count * sizeof(*times));
    CHECK(reply.size > 4 && reply.data[0] == '*');
    const char *at = (const char *)reply.data, *end = at + reply.size;
    u32 listed = (u32)strtoul(at + 1, NULL, 10), seen = 0;
    for (at = memchr(at, '\n', (size_t)(end - at)); at != NULL && at + 1 < end;) {
        const char *name = memchr(at + 1, '\n', (size_t)(end - at - 1)); /* behind $LENGTH */
        CHECK(name != NULL);
        if (name[1] == 'k') {
            u32 number = (u32)strtoul(name + 2, NULL, 10);
            CHECK(number < count);
            times[number]++;
        }
        seen++;
        at = memchr(name + 1, '\n', (size_t)(end - name - 1));
    }
    CHECK(seen == listed);
    return listed;
}

/* ---- eight join and two leave ---- */

#define MANY_KEYS 600u

/* Of three nodes two leave as eight join. No request fails, no key is lost, none is there twice,
 * and who is to hold it does. */
static MAY_YIELD void
many_story(struct rig *rig)
{
    static u32 times[MANY_KEYS];
    struct rig_client client, admin;
    char key[32], value[32];
    u32 all = (1u << 11) - 1, stay = all & ~6u;
    settle(rig, 7, 3);
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < MANY_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    struct writer writers[] = {{.number = 0, .node = 0},
                               {.number = 1, .node = 0},
                               {.number = 2, .node = 3},
                               {.number = 3, .node = 4}};
    writers_begin(rig, writers, 2);
    for (u32 i = 3; i < 11; i++)
        rig_start_begin(rig, i);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (topology_of(rig, 0)->member_count < 11 && io_now_ns() < deadline_ns)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(topology_of(rig, 0)->member_count == 11);
    while ((topology_of(rig, 3) == NULL || topology_of(rig, 4) == NULL) &&
           io_now_ns() < deadline_ns)
        fiber_sleep_ns(NS_PER_MS);
    writers_begin(rig, &writers[2], 2);
    rig_native_connect(rig, 0, 0, &admin);
    remove_node(&admin, "n2");
    remove_node(&admin, "n3");
    for (u32 i = 0; i < MANY_KEYS; i += 3) /* meanwhile */
        CHECK(rig_is(rig_call(&client, i % 2 == 0 ? "DEL k%u" : "SET k%u new", i),
                     i % 2 == 0 ? ":1\r\n" : "+OK\r\n"));
    settle(rig, stay, 9);
    writers_end(rig, writers, ARRAY_COUNT(writers));
    for (u32 i = 0; i < ARRAY_COUNT(writers); i++)
        CHECK(writers[i].unknown == 0);
    rig_disconnect(&client);
    rig_disconnect(&admin);

    u32 keys = ARRAY_COUNT(writers) * WRITE_KEYS;
    for (u32 i = 0; i < MANY_KEYS; i++)
        keys += i % 6 != 0;
    for (u32 node = 0; node < 11; node++) {
        if (!(stay >> node & 1)) continue;
        rig_connect_to(rig, node, &client);
        for (u32 i = node % 3; i < MANY_KEYS; i += 3) {
            snprintf(key, sizeof(key), "k%u", i);
            snprintf(value, sizeof(value), i % 3 == 0 ? "new" : "v%u", i);
            expect_get(&client, key, i % 6 == 0 ? "" : value);
        }
        CHECK(keys_listed(&client, times, MANY_KEYS) == keys);
        for (u32 i = 0; i < MANY_KEYS; i++)
            CHECK(times[i] == (i % 6 != 0));
        snprintf(value, sizeof(value), ":%u\r\n", keys);
        CHECK(rig_is(rig_call(&client, "DBSIZE"), value));
        rig_disconnect(&client);
        expect_written(rig, node, writers, ARRAY_COUNT(writers));
    }
    const struct topology *topology = topology_of(rig, 0);
    for (u32 i = 0; i < MANY_KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        expect_on_all_replicas(rig, topology, key); /* what was deleted: its tombstone */
    }
}

static void
eight_join_and_two_leave_at_once_and_no_key_is_lost_or_doubled(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, many_story, 11, 8);
        rig_run(&rig);
    }
}

/* ---- a leave that is begun again ---- */

#define LEAVE_KEYS 400u
#define LEAVE_RATE KIB(128)

/* Some of those who gain have fetched, not this one. */
static bool
is_late_gainer(const struct topology *topology, u32 number)
{
    const struct topology_member *self = topology_member(topology, number);
    bool others = false;
    for (u32 i = 0; i < topology->member_count; i++)
        others |= topology->members[i].fetched;
    return others && self != NULL && !self->fetched && topology_gainer(topology, number);
}

/* One leaves; somebody who gains by that dies before it has all, and the plan is given up. Until
 * the next one everything is written anew, where those who had fetched do not hold it yet: they
 * have to fetch again. */
static MAY_YIELD void
leave_again_story(struct rig *rig)
{
    static char filler[2000];
    memset(filler, 'x', sizeof(filler) - 1);
    struct rig_client client;
    char key[32];
    settle(rig, 15, 4);
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < LEAVE_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u %s", i, filler), "+OK\r\n"));
    rig_disconnect(&client);
    u32 dead = 0;
    struct rig_client admin;
    rig_native_connect(rig, 0, 0, &admin);
    remove_node(&admin, "n4");
    rig_disconnect(&admin);
    u64 deadline_ns = io_now_ns() + WAIT_NS, session = 0;
    for (;;) {
        const struct topology *topology = topology_of(rig, 3);
        CHECK(topology != NULL && io_now_ns() < deadline_ns);
        for (dead = 0; dead < 3; dead++)
            if (topology->stage == STAGE_WRITE_BOTH &&
                is_late_gainer(topology, cluster_member(rig->nodes[dead].server->cluster)))
                break;
        session = topology->session;
        if (dead < 3) break;
        fiber_sleep_ns(NS_PER_MS);
    }
    rig_crash(rig, dead);
    while (topology_of(rig, 3)->session == session) {
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    CHECK(topology_of(rig, 3)->stage == STAGE_NONE); /* given up, and it is still there */
    CHECK(topology_of(rig, 3)->member_count == 4);
    rig_connect_to(rig, 3, &client);
    for (u32 i = 0; i < LEAVE_KEYS; i++) {
        bool gone = i % 4 == 0;
        struct bytes reply = rig_call(&client, gone ? "DEL k%u" : "SET k%u new", i);
        CHECK(rig_is(reply, gone ? ":1\r\n" : "+OK\r\n"));
    }
    rig_disconnect(&client);
    rig_start(rig, dead);
    settle(rig, 7, 3);
    fiber_sleep_ns(3 * NS_PER_S); /* hints for who was dead */
    /* Nothing else has brought it to who gained: there was no read, and trees take minutes. */
    for (u32 i = 0; i < LEAVE_KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        expect_on_all_replicas(rig, topology_of(rig, 0), key);
    }
    for (u32 node = 0; node < 3; node++) {
        rig_connect_to(rig, node, &client);
        for (u32 i = 0; i < LEAVE_KEYS; i++) {
            snprintf(key, sizeof(key), "k%u", i);
            expect_get(&client, key, i % 4 == 0 ? "" : "new");
        }
        rig_disconnect(&client);
    }
}

static void
a_leave_that_was_given_up_fetches_everything_again(void **state)
{
    (void)state;
    u64 rate = LEAVE_RATE;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, leave_again_story, 4, 0);
        rig.configure = configure_paced;
        rig.arg = &rate;
        rig_run(&rig);
    }
}

/* ---- who is lost while three become two ---- */

#define SHRINK_RATE KIB(32)

static MAY_YIELD u32
remove_with(struct rig *rig, u32 node, const char *id, u8 flags)
{
    struct rig_client admin;
    struct native_request request = {.header.opcode = NATIVE_CLUSTER,
                                     .cluster = {.function = NATIVE_CLUSTER_REMOVE,
                                                 .flags = flags,
                                                 .node = BYTES(id, strlen(id))}};
    rig_native_connect(rig, node, 0, &admin);
    u32 answer = rig_native_call(&admin, &request).header.status;
    rig_disconnect(&admin);
    return answer;
}

/* The third one leaves, by force, and the first one is lost while the others gain. All that was
 * acknowledged is on those two; they take writes again, and the lost one can be taken out. */
static MAY_YIELD void
shrink_story(struct rig *rig)
{
    static char filler[2000];
    memset(filler, 'x', sizeof(filler) - 1);
    struct rig_client client;
    char key[32], value[32];
    settle(rig, 7, 3);
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < LEAVE_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u %s", i, filler), "+OK\r\n"));
    rig_disconnect(&client);
    CHECK(remove_with(rig, 0, "n3", NATIVE_CLUSTER_FORCE) == NATIVE_ST_OK);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (topology_of(rig, 1)->stage != STAGE_WRITE_BOTH) {
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    fiber_sleep_ns(3 * NS_PER_S); /* the voters are chosen each second */
    CHECK(topology_of(rig, 1)->stage == STAGE_WRITE_BOTH);
    rig_connect_to(rig, 1, &client);
    struct bytes before = rig_call(&client, "CLUSTER INFO");
    CHECK(memmem(before.data, before.size, "cluster_state:ok", 16) != NULL);
    rig_crash(rig, 0);
    /* Of the next row one is left, so nothing can be written until the plan is given up. */
    bool failed = false;
    while (!rig_is(rig_call(&client, "SET k0 new"), "+OK\r\n")) {
        struct bytes info = rig_call(&client, "CLUSTER INFO");
        failed |= memmem(info.data, info.size, "cluster_state:fail", 18) != NULL;
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    CHECK(failed);
    for (u32 i = 0; i < LEAVE_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u new%u", i, i), "+OK\r\n"));
    rig_disconnect(&client);
    CHECK(remove_with(rig, 1, "n1", NATIVE_CLUSTER_DEAD) == NATIVE_ST_OK);
    settle(rig, 2, 1);
    rig_connect_to(rig, 1, &client);
    for (u32 i = 0; i < LEAVE_KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        snprintf(value, sizeof(value), "new%u", i);
        expect_get(&client, key, value);
    }
    rig_disconnect(&client);
}

static void
who_is_lost_while_three_become_two_can_be_taken_out(void **state)
{
    (void)state;
    u64 rate = SHRINK_RATE;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, shrink_story, 3, 0);
        rig.configure = configure_paced;
        rig.arg = &rate;
        rig_run(&rig);
    }
}

/* ---- what not every replica has ---- */

#define FEW_KEYS    120u
#define FEW_VERSION 4096u

/* A read asks one replica. */
static void
configure_read_one(struct rig *rig, u32 node, struct server_config *config)
{
    configure(rig, node, config);
    config->write_quorum = 2;
    config->read_quorum = 1;
}

static struct topology_row
few_row(const struct topology *topology, u32 number, u64 *token_out)
{
    char key[32];
    struct topology_row row;
    u32 size = (u32)snprintf(key, sizeof(key), "f%u", number);
    *token_out = hash_token(BYTES(key, size));
    topology_row(topology, 0, token_partition(*token_out, topology->partition_count), &row);
    return row;
}

/* As all but the first replica have acknowledged them, which was away for so long that no hints are
 * left. */
static MAY_YIELD void
few_write(struct shard *shard, void *arg)
{
    (void)arg;
    struct cluster_shard *cluster = shard->cluster;
    u64 first, last, token, seq;
    lsm_tokens(cluster->lsm, &first, &last);
    for (u32 i = 0; i < FEW_KEYS; i++) {
        char key[32];
        struct topology_row row = few_row(cluster->topology, i, &token);
        u32 self = cluster_member(cluster->cluster);
        if (token < first || token > last || row.write[0] == self) continue;
        CHECK(row.count == 3 && topology_row_has(&row, self));
        u32 size = (u32)snprintf(key, sizeof(key), "f%u", i);
        struct lsm_batch batch;
        lsm_batch_init(&batch, &cluster->budget);
        batch.version = FEW_VERSION + i;
        CHECK(lsm_batch_put(&batch, 0, token, BYTES(key, size), BYTES("v", 1), 0));
        status st = lsm_write(cluster->lsm, &batch, &seq);
        CHECK(ok(st));
        lsm_batch_deinit(&batch);
    }
}

/* Whoever gains asks the first one, and that is not enough: two have each key when the move ends,
 * as before. (Trees compare replicas minutes later.) */
static MAY_YIELD void
few_story(struct rig *rig)
{
    u32 gained = 0;
    settle(rig, 7, 3);
    for (u32 node = 0; node < 3; node++)
        for (u32 shard = 0; shard < rig->nodes[node].config->core_count; shard++)
            rig_on_node(rig, node, shard, few_write, NULL);
    rig_start(rig, 3);
    settle(rig, 15, 4);
    for (u32 i = 0; i < FEW_KEYS; i++) {
        char key[32];
        u64 token;
        struct topology_row row = few_row(topology_of(rig, 0), i, &token);
        u32 holders = 0, size = (u32)snprintf(key, sizeof(key), "f%u", i);
        CHECK(size < sizeof(key));
        for (u32 node = 0; node < 4; node++) {
            if (!topology_row_has(&row, cluster_member(rig->nodes[node].server->cluster))) continue;
            bool has = version_at(rig, node, key) == FEW_VERSION + i;
            CHECK(node < 3 || has);
            gained += node == 3;
            holders += has;
        }
        CHECK(holders >= 2);
    }
    CHECK(gained > FEW_KEYS / 2);
}

static void
who_gains_has_what_a_write_quorum_had_where_reads_ask_one(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, few_story, 4, 1);
        rig.configure = configure_read_one;
        rig.on_all_nodes = true;
        rig_run(&rig);
    }
}

/* ---- who leads dies ---- */

struct stage_point {
    u8 stage;
    bool fenced, leaves; /* instead of joining */
};

static bool
is_at(const struct rig *rig, u32 leader, const struct stage_point *point, u64 epoch)
{
    const struct topology *topology = topology_of(rig, leader);
    if (topology == NULL || topology->epoch <= epoch || topology->stage != point->stage)
        return false;
    return point->stage == STAGE_NONE || topology_fenced(topology) == point->fenced;
}

/* As soon as the leader has that stage it loses its power, under writes. */
static MAY_YIELD void
leader_dies_story(struct rig *rig)
{
    const struct stage_point *point = *(const struct stage_point *const *)rig->arg;
    u32 before = rig->node_count - rig->late_count, last = rig->node_count - 1;
    settle(rig, (1u << before) - 1, before);
    u32 leader = leader_of(rig), after = point->leaves ? before - 1 : before + 1;
    struct rig_client client;
    rig_connect_to(rig, leader, &client);
    for (u32 i = 0; i < 300; i++)
        CHECK(rig_is(rig_call(&client, "SET k%u v%u", i, i), "+OK\r\n"));
    rig_disconnect(&client);
    struct writer writers[] = {{.number = 0, .node = (leader + 1) % 3},
                               {.number = 1, .node = (leader + 2) % 3}};
    writers_begin(rig, writers, ARRAY_COUNT(writers));
    u64 epoch = topology_of(rig, leader)->epoch, deadline_ns = io_now_ns() + WAIT_NS;
    if (point->leaves) {
        rig_native_connect(rig, (leader + 1) % 3, 0, &client);
        remove_node(&client, "n4");
        rig_disconnect(&client);
    } else {
        rig_start_begin(rig, last);
    }
    while (!is_at(rig, leader, point, epoch) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(NS_PER_MS / 4);
    CHECK(is_at(rig, leader, point, epoch));
    rig_crash(rig, leader);
    fiber_sleep_ns(NS_PER_S);
    rig_start(rig, leader);
    u32 nodes = point->leaves ? (1u << last) - 1 : (1u << rig->node_count) - 1;
    settle(rig, nodes, after);
    fiber_sleep_ns(500 * NS_PER_MS);
    writers_end(rig, writers, ARRAY_COUNT(writers));
    for (u32 node = 0; node < rig->node_count; node++) {
        char key[32], value[32];
        if (!(nodes >> node & 1)) continue;
        expect_written(rig, node, writers, ARRAY_COUNT(writers));
        rig_connect_to(rig, node, &client);
        for (u32 i = node; i < 300; i += 2) {
            snprintf(key, sizeof(key), "k%u", i);
            snprintf(value, sizeof(value), "v%u", i);
            expect_get(&client, key, value);
        }
        rig_disconnect(&client);
    }
}

static void
whoever_leads_may_die_in_each_stage_under_writes(void **state)
{
    (void)state;
    static const struct stage_point points[] = {
        {STAGE_NONE, false, false}, /* the one that joins is known, and no plan yet */
        {STAGE_WRITE_BOTH, false, false}, {STAGE_WRITE_BOTH, true, false},
        {STAGE_READ_NEXT, false, false},  {STAGE_READ_NEXT, true, false},
        {STAGE_NONE, false, true},        {STAGE_WRITE_BOTH, false, true},
        {STAGE_WRITE_BOTH, true, true},   {STAGE_READ_NEXT, false, true},
        {STAGE_READ_NEXT, true, true},
    };
    for (u32 i = 0; i < ARRAY_COUNT(points); i += EVERY(4)) {
        const struct stage_point *point = &points[i];
        struct rig rig = rig_of(i + 1, leader_dies_story, 4, point->leaves ? 0 : 1);
        rig.arg = &point;
        rig_run(&rig);
    }
}

/* ---- one topology ---- */

#define EPOCHS_MAX 256u

struct watch {
    struct rig *rig;
    bool ending;
    u64 states[EPOCHS_MAX]; /* by epoch: what all go by */
    u64 rings[EPOCHS_MAX];  /* and what clients are told of it */
    u64 shown[RIG_NODES_MAX][2];
    u32 looks, answers;
};

/* Every shard goes by what the members have agreed on, and by nothing older than before. */
static MAY_YIELD void
watch_shards(struct rig *rig, void *arg)
{
    struct watch *watch = arg;
    while (!watch->ending) {
        for (u32 i = 0; i < rig->node_count; i++) {
            const struct server *server = rig->nodes[i].server;
            if (server == NULL || !server_ready(server)) continue;
            for (u32 shard = 0; shard < server->shard_count; shard++) {
                const struct topology *topology = server->cluster->shards[shard]->topology;
                if (topology == NULL) continue;
                u64 epoch = topology->epoch;
                CHECK(epoch < EPOCHS_MAX && epoch >= watch->shown[i][shard]);
                CHECK(watch->states[epoch] == 0 || watch->states[epoch] == topology->state_id);
                watch->states[epoch] = topology->state_id;
                watch->shown[i][shard] = epoch;
                watch->looks++;
            }
        }
        fiber_sleep_ns(NS_PER_MS);
    }
}

/* Of all that it says but who lives: that is what each node sees by itself. */
static u64
ring_hash(struct bytes json)
{
    static const char alive[] = "\"alive\":";
    u64 hash = 0;
    while (json.size != 0) {
        const u8 *at = memmem(json.data, json.size, alive, sizeof(alive) - 1);
        size_t size = at == NULL ? json.size : (size_t)(at - json.data);
        hash = hash_bytes(json.data, size, hash);
        const u8 *next = at == NULL ? NULL : memchr(at, '}', json.size - size);
        json = next == NULL ? BYTES(NULL, 0) : BYTES(next, json.size - (size_t)(next - json.data));
    }
    return hash;
}

/* Clients of each node and shard are told one ring for one epoch. */
static MAY_YIELD void
watch_answers(struct rig *rig, void *arg)
{
    struct watch *watch = arg;
    struct rig_client clients[6];
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        rig_native_connect(rig, i % 3, i / 3 % rig->nodes[i % 3].server->shard_count, &clients[i]);
    while (!watch->ending)
        for (u32 i = 0; i < ARRAY_COUNT(clients); i++) {
            struct native_request request = {.header.opcode = NATIVE_CLUSTER,
                                             .cluster.function = NATIVE_CLUSTER_RING};
            struct native_reply reply = rig_native_call(&clients[i], &request);
            CHECK(reply.header.status == NATIVE_ST_OK && reply.cluster.number < EPOCHS_MAX);
            u64 hash = ring_hash(reply.cluster.json), *known = &watch->rings[reply.cluster.number];
            CHECK(*known == 0 || *known == hash);
            *known = hash;
            watch->answers++;
        }
    for (u32 i = 0; i < ARRAY_COUNT(clients); i++)
        rig_disconnect(&clients[i]);
}

static MAY_YIELD void
one_topology_story(struct rig *rig)
{
    static struct watch watch;
    struct rig_client admin;
    watch = (struct watch){.rig = rig};
    settle(rig, 7, 3);
    rig_spawn(rig, watch_shards, &watch);
    rig_spawn(rig, watch_answers, &watch);
    rig_start_begin(rig, 3);
    rig_start_begin(rig, 4);
    settle(rig, 31, 5);
    rig_native_connect(rig, 1, 0, &admin);
    remove_node(&admin, "n5");
    settle(rig, 15, 4);
    rig_disconnect(&admin);
    fiber_sleep_ns(100 * NS_PER_MS);
    watch.ending = true;
    rig_wait_spawned(rig);
    u32 epochs = 0, told = 0;
    for (u32 i = 0; i < EPOCHS_MAX; i++) {
        epochs += watch.states[i] != 0;
        told += watch.rings[i] != 0;
    }
    CHECK(epochs > 12 && told > 8 && watch.looks > 1000 && watch.answers > 100);
}

static void
all_shards_and_their_clients_go_by_one_topology_at_each_epoch(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, one_topology_story, 5, 2);
        rig_run(&rig);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eight_join_and_two_leave_at_once_and_no_key_is_lost_or_doubled),
        cmocka_unit_test(a_leave_that_was_given_up_fetches_everything_again),
        cmocka_unit_test(who_is_lost_while_three_become_two_can_be_taken_out),
        cmocka_unit_test(who_gains_has_what_a_write_quorum_had_where_reads_ask_one),
        cmocka_unit_test(whoever_leads_may_die_in_each_stage_under_writes),
        cmocka_unit_test(all_shards_and_their_clients_go_by_one_topology_at_each_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
