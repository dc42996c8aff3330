/* SPDX-License-Identifier: MIT
 *
 * test_trees.c -- replicas that have missed something, and hints that were dropped: comparing hash
 * trees brings them together, and unites what keeps siblings; what is deleted is collected when all
 * have it, not before, and stays deleted. Whole nodes on the simulated link.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "base/limits.h"
#include "cluster/hints_internal.h"
#include "cluster_rig.h"
#include "server/route.h"
#include "trees_look.h"

/* Of each story. */
#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#else
#define SEED_COUNT 2u
#endif
#define NODES             3u
#define KEYS              200u
#define SIBLINGS_KEYSPACE 15u
#define SIBLINGS_KEYS     40u
#define WAIT_NS           (300 * NS_PER_S)

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1 + (rig->shard_count + node) % 2);
}

/* The least that a node may have. */
static void
configure_small(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 1);
    config->memory_bytes = MIB(32);
}

/* ---- waiting for conditions ---- */

static MAY_YIELD void
wait_settled(struct rig *rig, u32 node_count)
{
    cluster_rig_settle(rig, node_count, node_count, WAIT_NS);
}

static void
stats_of(const struct rig *rig, u32 node, struct trees_stats *out)
{
    trees_stats_get(rig->nodes[node].server->cluster->shards[0], out);
}

/* Asks the node to compare all that it has, and waits until it has. */
static MAY_YIELD void
repair(struct rig *rig, u32 node)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "DISTKV.REPAIR"), "+OK\r\n"));
    rig_disconnect(&client);
    struct trees_stats stats;
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    do {
        fiber_sleep_ns(20 * NS_PER_MS);
        stats_of(rig, node, &stats);
    } while (stats.repairing && io_now_ns() < deadline_ns);
    CHECK(!stats.repairing && stats.repair_done == stats.repair_total);
}

/* The same; how many comparisons did not take place, or not to the end. */
static MAY_YIELD u64
repair_missed(struct rig *rig, u32 node)
{
    struct trees_stats stats;
    repair(rig, node);
    stats_of(rig, node, &stats);
    return stats.repair_missed;
}

/* ---- what a node holds ---- */

struct content {
    u64 live;                               /* a hash of all that is neither deleted nor expired */
    u32 entries, live_count, gone, foreign; /* foreign: of partitions that it does not hold */
};

static void
content_add(struct shard *shard, void *arg)
{
    struct content *content = arg;
    const struct cluster_shard *cluster = shard->cluster;
    const struct topology *topology = cluster->topology;
    struct lsm_scan *scan;
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        status st =
            lsm_scan_open(cluster->lsm, NULL, keyspace, 0, BYTES(NULL, 0), UINT64_MAX, &scan);
        CHECK(ok(st));
        lsm_scan_whole(scan);
        u64 token;
        struct bytes key;
        struct lsm_value value;
        while (ok(st = lsm_scan_next(scan, true, &token, &key, &value))) {
            bool gone =
                lsm_scan_deleted(scan) || (value.expire_ms != 0 && value.expire_ms <= io_wall_ms());
            content->entries++;
            content->gone += gone;
            content->live_count += !gone;
            if (!gone)
                content->live += hash_key(key, value.version + keyspace) ^
                                 hash_bytes(value.value.data, value.value.size, 1);
            if (!topology_holds(topology, cluster_member(cluster->cluster),
                                token_partition(token, topology->partition_count)))
                content->foreign++;
        }
        CHECK(status_is(st, ST_END));
        lsm_scan_close(scan);
    }
}

static MAY_YIELD struct content
content_of(struct rig *rig, u32 node)
{
    struct content content = {0};
    for (u32 i = 0; i < rig->nodes[node].server->shard_count; i++)
        rig_on_node(rig, node, i, content_add, &content);
    return content;
}

static MAY_YIELD bool
contents_are_equal(struct rig *rig, u32 count)
{
    struct content first = content_of(rig, 0);
    bool equal = true;
    for (u32 i = 1; i < count; i++) {
        struct content other = content_of(rig, i);
        equal = equal && other.live == first.live && other.live_count == first.live_count;
    }
    return equal;
}

/* ---- making replicas miss something ---- */

/* As if the disks had no room for them. */
static void
hints_off(struct rig *rig, u32 node)
{
    const struct server *server = rig->nodes[node].server;
    for (u32 i = 0; i < server->shard_count; i++)
        server->cluster->shards[i]->hints->options.disk_bytes_max = 0;
}

static MAY_YIELD void
expect_ok(struct rig_client *client, const char *command, u32 number, const char *rest)
{
    struct bytes reply = rig_call(client, "%s k%u%s", command, number, rest);
    if (reply.size == 0 || reply.data[0] == '-')
        fprintf(stderr, "%s k%u: %.*s\n", command, number, (int)reply.size,
                (const char *)reply.data);
    CHECK(reply.size > 0 && reply.data[0] != '-');
}

/* Keys in all the ways in which they can be; on the nodes that live. */
static MAY_YIELD void
write_some(struct rig *rig, u32 node, u32 from, u32 to, const char *value)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    char rest[64];
    for (u32 i = from; i < to; i++) {
        snprintf(rest, sizeof(rest), i % 8 == 3 ? " %s%u EX 100" : " %s%u", value, i);
        expect_ok(&client, "SET", i, rest);
        if (i % 8 == 5) expect_ok(&client, "DEL", i, "");
    }
    rig_disconnect(&client);
}

/* And the others have noticed. */
static MAY_YIELD void
crash(struct rig *rig, u32 node)
{
    u32 other = node == 0 ? 1 : 0;
    const struct topology *topology = rig->nodes[other].server->cluster->shards[0]->topology;
    char id[TOPOLOGY_NAME_BYTES];
    snprintf(id, sizeof(id), "n%u", node + 1);
    u32 number = topology_member_by_id(topology, id)->number;
    rig_crash(rig, node);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    for (u32 i = 0; i < rig->node_count && io_now_ns() < deadline_ns; i++)
        while (i != node && cluster_alive(rig->nodes[i].server->cluster, number) &&
               io_now_ns() < deadline_ns)
            fiber_sleep_ns(10 * NS_PER_MS);
}

static struct rig
rig_of(u64 seed, void (*story)(struct rig *rig))
{
    struct rig rig = {.shard_count = (u32)(seed % 2),
                      .node_count = NODES,
                      .configure = configure,
                      .on_all_nodes = true};
    sim_options_default(&rig.options, seed);
    rig.story = story;
    if (rig.shard_count == 0) rig.shard_count = 2;
    return rig;
}

/* ---- stories ---- */

/* A node is away, and hints for it do not fit anywhere. */
static MAY_YIELD void
missed_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    write_some(rig, 0, 0, KEYS, "a");
    hints_off(rig, 0);
    hints_off(rig, 1);
    crash(rig, 2);
    write_some(rig, 1, KEYS / 2, 2 * KEYS, "b");
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    CHECK(!contents_are_equal(rig, NODES));
    fiber_sleep_ns(6 * NS_PER_S); /* what is young is left to its writers */
    repair(rig, 0);
    struct trees_stats stats;
    stats_of(rig, 0, &stats);
    CHECK(stats.failures == 0 && stats.leaves_differing > 0);
    CHECK(stats.entries_sent > 0 && stats.entries_received == 0);
    CHECK(contents_are_equal(rig, NODES));
    /* Nothing differs now, so nothing is sent. */
    u64 sent = stats.entries_sent, leaves = stats.leaves_differing;
    repair(rig, 2);
    repair(rig, 0);
    stats_of(rig, 0, &stats);
    CHECK(stats.entries_sent == sent && stats.leaves_differing == leaves);
    stats_of(rig, 2, &stats);
    CHECK(stats.entries_sent == 0 && stats.entries_received == 0 && stats.leaves_differing == 0);
    /* Once more, with trees that were known before: and it is the one who asks that lacks it. */
    crash(rig, 2);
    write_some(rig, 0, KEYS / 4, KEYS, "c");
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    fiber_sleep_ns(6 * NS_PER_S);
    repair(rig, 2);
    stats_of(rig, 2, &stats);
    CHECK(stats.entries_received > 0 && stats.entries_sent == 0);
    CHECK(contents_are_equal(rig, NODES));
    write_some(rig, 1, 0, KEYS, "d");
    repair(rig, 0);
    CHECK(contents_are_equal(rig, NODES));
}

#define LONG_KEYS      4000u
#define LONG_KEY_BYTES 900u

static MAY_YIELD void
write_long(struct rig *rig, u32 from, u32 to)
{
    struct rig_client client;
    static char filling[LONG_KEY_BYTES + 1];
    memset(filling, 'x', LONG_KEY_BYTES);
    rig_connect_to(rig, 0, &client);
    for (u32 i = from; i < to; i++)
        CHECK(rig_is(rig_call(&client, "SET {one}%s%u v", filling, i), "+OK\r\n"));
    rig_disconnect(&client);
}

static MAY_YIELD u64
repair_time(struct rig *rig)
{
    u64 began_ns = io_now_ns();
    repair(rig, 0);
    return io_now_ns() - began_ns;
}

/* One key of a leaf differs. To find it both sides list the leaf, at the rate of all comparing. */
static MAY_YIELD void
paced_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    hints_off(rig, 0);
    hints_off(rig, 1);
    write_long(rig, 0, LONG_KEYS);
    crash(rig, 2);
    write_long(rig, LONG_KEYS, LONG_KEYS + 1);
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    fiber_sleep_ns(6 * NS_PER_S); /* what is young is left to its writers */
    u64 lists_ns = repair_time(rig);
    struct trees_stats stats;
    stats_of(rig, 0, &stats);
    CHECK(stats.leaves_differing == 1 && stats.entries_sent == 1);
    /* The same leaf was written to again, but does not differ. */
    write_long(rig, LONG_KEYS + 1, LONG_KEYS + 2);
    fiber_sleep_ns(6 * NS_PER_S);
    u64 reads_ns = repair_time(rig);
    stats_of(rig, 0, &stats);
    CHECK(stats.leaves_differing == 1);
    /* Two lists, and a rest as long: who is asked to compare rests half of its time. */
    u64 list_ns = (u64)LONG_KEYS * LONG_KEY_BYTES * NS_PER_S / TREES_BYTES_PER_S;
    CHECK(lists_ns - reads_ns > 4 * list_ns);
}

static void
leaves_are_listed_at_the_rate_of_comparing(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, paced_story);
        rig_run(&rig);
    }
}

#define LARGE_KEYS 20u

struct large {
    u32 bytes; /* of a value */
    u32 asks;  /* the node that lacks them, or one that has them */
};

/* An answer to who asks for entries has room for some of these only. */
static MAY_YIELD void
large_story(struct rig *rig)
{
    const struct large *large = rig->arg;
    wait_settled(rig, NODES);
    hints_off(rig, 0);
    hints_off(rig, 1);
    crash(rig, 2);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    char size[16];
    snprintf(size, sizeof(size), ":%u\r\n", large->bytes);
    for (u32 i = 0; i < LARGE_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "SETRANGE {one}k%u %u x", i, large->bytes - 1), size));
    rig_disconnect(&client);
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    fiber_sleep_ns(6 * NS_PER_S); /* what is young is left to its writers */
    CHECK(content_of(rig, 2).live_count == 0);
    CHECK(repair_missed(rig, large->asks) == 0);
    CHECK(content_of(rig, 2).live_count == LARGE_KEYS && contents_are_equal(rig, NODES));
    struct trees_stats stats;
    stats_of(rig, large->asks, &stats);
    CHECK(stats.failures == 0 && stats.entries_received + stats.entries_sent == LARGE_KEYS);
}

static void
all_that_a_replica_lacks_is_fetched_however_large(void **state)
{
    (void)state;
    struct large large = {.bytes = KIB(256), .asks = 2};
    for (u32 i = 0; i < 2 * SEED_COUNT; i++) {
        struct rig rig = rig_of(1 + i / 2, large_story);
        rig.arg = &large;
        if (i % 2 == 1) rig.configure = configure_small;
        rig_run(&rig);
    }
}

/* Values that are about as large as any. */
static void
the_least_memory_is_enough_for_the_largest_values(void **state)
{
    (void)state;
    for (u32 asks = 0; asks < NODES; asks += 2) {
        struct large large = {.bytes = LIMIT_VALUE_BYTES - 64, .asks = asks};
        struct rig rig = rig_of(1, large_story);
        rig.arg = &large;
        rig.configure = configure_small;
        rig_run(&rig);
    }
}

/* What a clock that runs ahead takes for expired is brought, and asked for, as the value that it
 * is. */
static MAY_YIELD void
expired_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    hints_off(rig, 0);
    hints_off(rig, 1);
    for (u32 pulls = 0; pulls < 2; pulls++) {
        crash(rig, 2);
        struct rig_client client;
        rig_connect_to(rig, 1, &client);
        for (u32 i = 0; i < KEYS; i++)
            expect_ok(&client, "SET", i, pulls ? " pulled EX 3000" : " pushed EX 3000");
        rig_disconnect(&client);
        rig_start(rig, 2);
        wait_settled(rig, NODES);
        fiber_sleep_ns(6 * NS_PER_S); /* what is young is left to its writers */
        CHECK(content_of(rig, 2).live != content_of(rig, 1).live);
        sim_node_clock_step(rig->nodes[0].machine, 3600 * 1000);
        CHECK(content_of(rig, 0).live_count == 0);
        repair(rig, pulls ? 2 : 0);
        CHECK(content_of(rig, 1).live_count == KEYS);
        CHECK(content_of(rig, 2).live == content_of(rig, 1).live);
        sim_node_clock_step(rig->nodes[0].machine, -3600 * 1000);
    }
}

static MAY_YIELD void
siblings_make(struct shard *shard, void *arg)
{
    (void)arg;
    struct cluster_keyspace wanted = {.create = true,
                                      .number = SIBLINGS_KEYSPACE,
                                      .conflict = CONFLICT_SIBLINGS,
                                      .name = "carts"};
    status st = cluster_keyspace_set(shard->cluster, &wanted, io_now_ns() + WAIT_NS);
    CHECK(ok(st));
}

static bool
siblings_known(const struct rig *rig)
{
    for (u32 i = 0; i < NODES; i++) {
        const struct server *server = rig->nodes[i].server;
        for (u32 shard = 0; shard < server->shard_count; shard++)
            if (!server->cluster->shards[shard]->topology->keyspaces[SIBLINGS_KEYSPACE].used)
                return false;
    }
    return true;
}

/* Blindly, and with whoever is there. */
static MAY_YIELD void
put_siblings(struct rig *rig, u32 node, const char *value)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "SELECT %u", SIBLINGS_KEYSPACE), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), "+OK\r\n"));
    for (u32 i = 0; i < SIBLINGS_KEYS; i++)
        CHECK(rig_is(rig_call(&client, "DISTKV.PUT k%u %s", i, value), "+OK\r\n"));
    rig_disconnect(&client);
}

static MAY_YIELD void
await_alive(const struct rig *rig, u32 node, u32 count)
{
    const struct server *server = rig->nodes[node].server;
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    for (;;) {
        const struct topology *topology = server->cluster->shards[0]->topology;
        u32 alive = 0;
        for (u32 i = 0; i < topology->member_count; i++)
            alive += cluster_alive(server->cluster, topology->members[i].number);
        if (alive == count) return;
        CHECK(io_now_ns() < deadline_ns);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
}

/* Each key to one node, while the others have no power; no hint is kept. */
static MAY_YIELD void
put_siblings_alone(struct rig *rig, u32 node, const char *value)
{
    for (u32 i = 0; i < NODES; i++)
        if (i != node) rig_crash(rig, i);
    hints_off(rig, node);
    await_alive(rig, node, 1);
    put_siblings(rig, node, value);
    for (u32 i = 0; i < NODES; i++)
        if (i != node) rig_start(rig, i);
    wait_settled(rig, NODES);
}

static MAY_YIELD void
siblings_begin(struct rig *rig)
{
    wait_settled(rig, NODES);
    rig_on_node(rig, 0, 0, siblings_make, NULL);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while (!siblings_known(rig) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
}

/* Of each key, as one replica has them. */
static MAY_YIELD void
expect_siblings(struct rig *rig, u32 node, const char *const *values, u32 count)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "SELECT %u", SIBLINGS_KEYSPACE), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), "+OK\r\n"));
    for (u32 i = 0; i < SIBLINGS_KEYS; i++) {
        struct bytes reply = rig_call(&client, "DISTKV.GET k%u", i);
        for (u32 at = 0; at < count; at++)
            CHECK(memmem(reply.data, reply.size, values[at], strlen(values[at])) != NULL);
    }
    rig_disconnect(&client);
}

/* One node has one value of each key, another one another, the third has none. */
static MAY_YIELD void
siblings_story(struct rig *rig)
{
    siblings_begin(rig);
    put_siblings_alone(rig, 2, "apples");
    put_siblings_alone(rig, 0, "pears");
    CHECK(content_of(rig, 0).live_count == SIBLINGS_KEYS);
    CHECK(content_of(rig, 1).live_count == 0);
    CHECK(content_of(rig, 2).live_count == SIBLINGS_KEYS);
    CHECK(!contents_are_equal(rig, NODES));
    /* The one with the higher versions tells, or the one with the lower ones asks; what both have
     * then is new, and goes to the others when it is not young any more. */
    u32 asks = rig->shard_count == 1 ? 0 : 2;
    for (u32 round = 0; round < 4 && !contents_are_equal(rig, NODES); round++) {
        fiber_sleep_ns(6 * NS_PER_S);
        repair(rig, asks);
    }
    CHECK(contents_are_equal(rig, NODES));
    static const char *const values[] = {"apples", "pears"};
    expect_siblings(rig, 1, values, ARRAY_COUNT(values));
}

static void
sets_that_differ_are_united_by_trees(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 2; seed++) { /* one for each direction */
        struct rig rig = rig_of(seed, siblings_story);
        rig_run(&rig);
    }
}

static MAY_YIELD void
repair_all(struct rig *rig)
{
    for (u32 i = 0; i < NODES; i++)
        repair(rig, i);
}

static MAY_YIELD u64
live_of_all(struct rig *rig)
{
    u64 live = 0;
    for (u32 i = 0; i < NODES; i++)
        live = live * 31 + content_of(rig, i).live;
    return live;
}

/* Each node has a value that no other has. What two have united is as young as what a client
 * writes: whoever compares before it no longer is brings nothing. N replicas need N rounds. */
static MAY_YIELD void
siblings_steps_story(struct rig *rig)
{
    static const char *const values[NODES] = {"apples", "pears", "plums"};
    siblings_begin(rig);
    for (u32 i = 0; i < NODES; i++)
        put_siblings_alone(rig, i, values[i]);
    fiber_sleep_ns(6 * NS_PER_S);
    u64 began_ns = io_now_ns();
    repair_all(rig);
    u64 live = live_of_all(rig);
    repair(rig, 0);
    CHECK(io_now_ns() - began_ns < TREES_FRESH_MS * NS_PER_MS);
    CHECK(live_of_all(rig) == live && !contents_are_equal(rig, NODES));
    for (u32 round = 1; round < NODES; round++) {
        fiber_sleep_ns(6 * NS_PER_S);
        repair_all(rig);
    }
    CHECK(contents_are_equal(rig, NODES));
    for (u32 i = 0; i < NODES; i++)
        expect_siblings(rig, i, values, NODES);
}

static void
sets_of_three_replicas_are_united_step_by_step(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, siblings_steps_story);
        rig_run(&rig);
    }
}

static void
what_has_expired_by_one_clock_is_brought_as_it_is(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 2; seed++) {
        struct rig rig = rig_of(seed, expired_story);
        rig_run(&rig);
    }
}

static void
what_a_replica_missed_without_hints_is_brought_by_trees(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, missed_story);
        rig_run(&rig);
    }
}

/* Nodes lose their power while they compare: the one that asks, or one that is asked. */
static MAY_YIELD void
killed_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    write_some(rig, 0, 0, KEYS, "a");
    for (u32 round = 0; round < 3; round++) {
        for (u32 i = 0; i < NODES; i++)
            hints_off(rig, i);
        crash(rig, 2);
        write_some(rig, 1, round * 30, round * 30 + KEYS, "b");
        rig_start(rig, 2);
        wait_settled(rig, NODES);
        fiber_sleep_ns(6 * NS_PER_S);
        struct rig_client client;
        rig_connect_to(rig, round % 2 == 0 ? 0 : 2, &client);
        CHECK(rig_is(rig_call(&client, "DISTKV.REPAIR"), "+OK\r\n"));
        rig_disconnect(&client);
        fiber_sleep_ns((30 + 150 * round) * NS_PER_MS);
        u32 victim = round == 1 ? 0 : 2;
        crash(rig, victim);
        rig_start(rig, victim);
        wait_settled(rig, NODES);
        repair(rig, 1);
        CHECK(contents_are_equal(rig, NODES));
    }
}

static void
power_failures_while_comparing_lose_nothing(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, killed_story);
        rig_run(&rig);
    }
}

/* ---- a look of a test's own ---- */

struct look {
    struct cluster_shard *shard;
    bool looked, ended, closed;
};

static void
looker_main(void *arg)
{
    struct look *look = arg;
    struct tree_view view = {.partition = look->shard->trees->first};
    look->looked = trees_look(look->shard->trees, 0, &view);
    look->ended = true;
}

static void
closer_main(void *arg)
{
    struct look *look = arg;
    trees_close(look->shard);
    look->closed = true;
}

/* Somebody is looking, and waits, as for a scan, when the node closes its trees. */
static MAY_YIELD void
look_and_close(struct shard *shard, void *arg)
{
    (void)arg;
    struct look look = {.shard = shard->cluster};
    struct trees *t = look.shard->trees;
    fiber_mutex_lock(&t->resolving);
    CHECK(ok(fiber_spawn(FIBER_BACKGROUND, "looker", looker_main, &look)));
    fiber_sleep_ns(NS_PER_MS);
    CHECK(ok(fiber_spawn(FIBER_BACKGROUND, "closer", closer_main, &look)));
    fiber_sleep_ns(10 * NS_PER_S);
    CHECK(!look.ended && !look.closed);
    fiber_mutex_unlock(&t->resolving);
    while (!look.ended || !look.closed)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(look.looked && look.shard->trees == NULL);
}

static MAY_YIELD void
look_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    rig_on_node(rig, 1, 0, look_and_close, NULL);
}

static void
trees_are_not_closed_while_somebody_looks(void **state)
{
    (void)state;
    struct rig rig = rig_of(1, look_story);
    rig_run(&rig);
}

/* ---- what a repair could not compare ---- */

/* A replica that is dead, and one that is believed alive and does not answer. */
static MAY_YIELD void
absent_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    write_some(rig, 0, 0, KEYS, "a");
    CHECK(repair_missed(rig, 0) == 0);
    crash(rig, 2);
    await_alive(rig, 0, NODES - 1);
    CHECK(repair_missed(rig, 0) != 0);
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    CHECK(repair_missed(rig, 0) == 0);
    sim_link_cut(rig->sim, rig->nodes[0].machine, rig->nodes[2].machine);
    struct trees_stats before, after;
    stats_of(rig, 0, &before);
    CHECK(repair_missed(rig, 0) != 0);
    stats_of(rig, 0, &after);
    CHECK(after.failures > before.failures);
    sim_link_heal(rig->sim, rig->nodes[0].machine, rig->nodes[2].machine);
    wait_settled(rig, NODES);
    CHECK(repair_missed(rig, 0) == 0);
}

static void
a_repair_says_what_it_could_not_compare(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, absent_story);
        rig_run(&rig);
    }
}

/* ---- trees that have taken all their memory ---- */

#define FULL_KEYS 3000u /* in more partitions than the least memory holds trees of */

static void
trees_are_full(struct shard *shard, void *arg)
{
    (void)arg;
    struct budget *budget = &shard->cluster->trees->budget;
    CHECK(budget_available(budget) < sizeof(struct tree));
    budget->limit_bytes = budget->used_bytes; /* what is left depends on sizes */
}

static MAY_YIELD void
fill_trees(struct rig *rig)
{
    wait_settled(rig, NODES);
    struct rig_client client;
    rig_connect_to(rig, 0, &client);
    for (u32 i = 0; i < FULL_KEYS; i++)
        expect_ok(&client, "SET", i, " v");
    rig_disconnect(&client);
    CHECK(repair_missed(rig, 0) == 0);
    for (u32 i = 0; i < NODES; i++)
        rig_on_node(rig, i, 0, trees_are_full, NULL);
}

/* A keyspace that had nothing until then is compared, and the node settled, as before. */
static MAY_YIELD void
full_story(struct rig *rig)
{
    fill_trees(rig);
    struct rig_client client;
    rig_connect_to(rig, 1, &client);
    CHECK(rig_is(rig_call(&client, "SELECT 1"), "+OK\r\n"));
    for (u32 i = 0; i < KEYS; i++)
        expect_ok(&client, "SET", i, " w");
    rig_disconnect(&client);
    u64 version = hlc_version_at(io_wall_ms());
    struct trees_stats stats = {0};
    for (u32 round = 0; round < 20 && stats.settled_version < version; round++) {
        fiber_sleep_ns(2 * NS_PER_S);
        for (u32 i = 0; i < NODES; i++)
            CHECK(repair_missed(rig, i) == 0);
        fiber_sleep_ns(NS_PER_S);
        stats_of(rig, 0, &stats);
    }
    CHECK(stats.failures == 0 && stats.settled_version >= version);
}

static void
full_trees_leave_room_for_another_keyspace(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, full_story);
        rig.configure = configure_small;
        rig.shard_count = 1;
        rig_run(&rig);
    }
}

/* ---- collecting ---- */

static void
compact(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(ok(lsm_flush(shard->cluster->lsm)));
    CHECK(ok(lsm_compact(shard->cluster->lsm)));
}

/* All that may be collected is. */
static MAY_YIELD void
compact_all(struct rig *rig)
{
    for (u32 i = 0; i < rig->node_count; i++)
        for (u32 j = 0; rig->nodes[i].server != NULL && j < rig->nodes[i].server->shard_count; j++)
            rig_on_node(rig, i, j, compact, NULL);
}

/* The least of all shards of the node. */
static u64
purge_below(const struct rig *rig, u32 node)
{
    const struct server *server = rig->nodes[node].server;
    u64 least = UINT64_MAX;
    for (u32 i = 0; i < server->shard_count; i++)
        least = MIN(least, lsm_purge_below(server->cluster->shards[i]->lsm, 0));
    return least;
}

/* Until all may collect what was written before now. */
static MAY_YIELD void
wait_purge(struct rig *rig)
{
    u64 version = hlc_version_at(io_wall_ms()), deadline_ns = io_now_ns() + 1200 * NS_PER_S;
    bool all = false;
    while (!all && io_now_ns() < deadline_ns) {
        fiber_sleep_ns(2 * NS_PER_S);
        for (u32 i = 0; i < rig->node_count; i++)
            repair(rig, i);
        fiber_sleep_ns(TREES_GRACE_NS + 12 * NS_PER_S);
        all = true;
        for (u32 i = 0; i < rig->node_count; i++)
            all = all && purge_below(rig, i) >= version;
    }
    CHECK(all);
}

static MAY_YIELD void
expect_gone(struct rig *rig, u32 node, u32 from, u32 to)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    for (u32 i = from; i < to; i++) {
        struct bytes reply = rig_call(&client, "GET k%u", i);
        if (!rig_is(reply, "$-1\r\n"))
            fprintf(stderr, "GET k%u on node %u: %.*s\n", i, node, (int)reply.size,
                    (const char *)reply.data);
        CHECK(rig_is(reply, "$-1\r\n"));
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
delete_some(struct rig *rig, u32 node, u32 from, u32 to)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    for (u32 i = from; i < to; i++)
        expect_ok(&client, "DEL", i, "");
    rig_disconnect(&client);
}

/* What expires a little later than it is written. */
static MAY_YIELD void
write_expiring(struct rig *rig, u32 node, u32 from, u32 to)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    for (u32 i = from; i < to; i++)
        expect_ok(&client, "SET", i, " x EX 5");
    rig_disconnect(&client);
}

/* A replica is away for far longer than anybody keeps hints, while half of its keys are deleted and
 * the others get a new value, which expires. */
static MAY_YIELD void
away_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    write_some(rig, 0, 0, KEYS, "a");
    compact_all(rig);
    hints_off(rig, 0);
    hints_off(rig, 1);
    crash(rig, 2);
    delete_some(rig, 0, 0, KEYS / 2);
    write_expiring(rig, 1, KEYS / 2, KEYS);
    fiber_sleep_ns(TREES_FIRST_NS);
    for (u32 i = 0; i < 2; i++)
        repair(rig, i);
    fiber_sleep_ns(TREES_GRACE_NS + 12 * NS_PER_S);
    repair(rig, 0);
    compact_all(rig);
    for (u32 i = 0; i < 2; i++) {
        struct content content = content_of(rig, i);
        CHECK(content.gone == KEYS && purge_below(rig, i) == 0); /* the third may lack it */
    }
    rig_start(rig, 2);
    wait_settled(rig, NODES);
    CHECK(content_of(rig, 2).live_count > 0);
    expect_gone(rig, 2, 0, KEYS);
    wait_purge(rig);
    for (u32 i = 0; i < NODES; i++) {
        if (i == 1) continue; /* one that has not collected yet */
        for (u32 j = 0; j < rig->nodes[i].server->shard_count; j++)
            rig_on_node(rig, i, j, compact, NULL);
    }
    CHECK(content_of(rig, 0).entries == 0 && content_of(rig, 2).entries == 0);
    CHECK(content_of(rig, 1).gone == KEYS);
    /* That is no difference, neither to trees nor to reads. */
    struct trees_stats before, after;
    stats_of(rig, 0, &before);
    repair(rig, 0);
    for (u32 i = 0; i < NODES; i++)
        expect_gone(rig, i, 0, KEYS);
    stats_of(rig, 0, &after);
    CHECK(after.leaves_differing == before.leaves_differing && after.failures == before.failures);
    CHECK(content_of(rig, 0).entries == 0 && content_of(rig, 2).entries == 0);
    compact_all(rig);
    for (u32 i = 0; i < NODES; i++)
        CHECK(content_of(rig, i).entries == 0);
    for (u32 i = 0; i < NODES; i++)
        expect_gone(rig, i, 0, KEYS);
}

static void
a_replica_that_was_away_for_long_brings_nothing_back(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, away_story);
        rig_run(&rig);
    }
}

/* ---- a repair that waits for room ---- */

#define COMPARES 0u /* a node */

static struct {
    u32 lacks, has; /* the others, in the order of their numbers: they are compared in that */
    struct bytes key;
    u64 token, version; /* of the deletion that one node alone has */
    u32 partition;
    bool read_done, read_found, compared, mended;
    status read;
} waiting;

static u32
shard_of_key(const struct rig *rig, u32 node)
{
    const struct server *server = rig->nodes[node].server;
    return partition_shard(waiting.partition, server->shard_count,
                           server->cluster->shards[0]->topology->partition_count);
}

static MAY_YIELD void
on_key(struct rig *rig, u32 node, void (*fn)(struct shard *shard, void *arg))
{
    rig_on_node(rig, node, shard_of_key(rig, node), fn, NULL);
}

/* As a coordinator leaves it that loses its power before it has told anybody. */
static void
delete_alone(struct shard *shard, void *arg)
{
    (void)arg;
    struct lsm_batch batch;
    u64 seq;
    lsm_batch_init(&batch, io_budget());
    /* Nothing is under way: a new stamp. */
    batch.version = waiting.version = replicator_oldest_to_come(shard->cluster->replicator);
    CHECK(lsm_batch_delete(&batch, 0, waiting.token, waiting.key));
    CHECK(ok(lsm_write(shard->cluster->lsm, &batch, &seq)));
    CHECK(ok(lsm_wait_durable(shard->cluster->lsm, seq)));
    lsm_batch_deinit(&batch);
}

static void
writes_hold(struct shard *shard, void *arg)
{
    (void)arg;
    lsm_writes_hold(shard->cluster->lsm);
}

static void
writes_release(struct shard *shard, void *arg)
{
    (void)arg;
    lsm_writes_release(shard->cluster->lsm);
}

static void
trees_wait(struct shard *shard, void *arg)
{
    (void)arg;
    fiber_mutex_lock(&shard->cluster->trees->resolving);
}

static void
trees_go_on(struct shard *shard, void *arg)
{
    (void)arg;
    fiber_mutex_unlock(&shard->cluster->trees->resolving);
}

static MAY_YIELD void
read_main(void *arg)
{
    struct replicate_value value;
    waiting.read = replicate_read(arg, REPLICATE_QUORUM, 0, waiting.token, waiting.key,
                                  io_now_ns() + 8 * NS_PER_S, &value);
    waiting.read_found = ok(waiting.read) && value.found;
    replicate_value_release(&value);
    waiting.read_done = true;
}

static void
read_begins(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "read", read_main, shard->cluster->replicator)));
}

static MAY_YIELD void
compare_main(void *arg)
{
    struct trees_exchanged done;
    trees_exchange(arg, waiting.partition, 1, true, &done);
    waiting.mended = done.mended;
    waiting.compared = true;
}

static void
compare_begins(struct shard *shard, void *arg)
{
    (void)arg;
    CHECK(ok(fiber_spawn(FIBER_BACKGROUND, "compare", compare_main, shard->cluster->trees)));
}

/* Whoever compares is brought a deletion that waits for room in its store: it comes there after the
 * one who lacks it was compared, and before the one who has it is. All of them are then like it,
 * and yet one of them lacks it. */
static MAY_YIELD void
waiting_story(struct rig *rig)
{
    memset(&waiting, 0, sizeof(waiting));
    waiting.key = BYTES_LITERAL("k0");
    waiting.token = hash_token(waiting.key);
    wait_settled(rig, NODES);
    write_some(rig, 0, 0, 1, "a");
    fiber_sleep_ns(2 * TREES_FIRST_NS); /* the next rounds are minutes away */
    struct server *compares = rig->nodes[COMPARES].server;
    const struct topology *topology = compares->cluster->shards[0]->topology;
    waiting.partition = token_partition(waiting.token, topology->partition_count);
    u32 numbers[] = {topology_member_by_id(topology, "n2")->number,
                     topology_member_by_id(topology, "n3")->number};
    waiting.lacks = numbers[0] < numbers[1] ? 1 : 2;
    waiting.has = 3 - waiting.lacks;
    on_key(rig, waiting.has, delete_alone);
    struct sim_node *lacks = rig->nodes[waiting.lacks].machine;
    struct sim_node *has = rig->nodes[waiting.has].machine;
    sim_link_cut(rig->sim, lacks, has);
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    while ((cluster_alive(rig->nodes[waiting.has].server->cluster, MIN(numbers[0], numbers[1])) ||
            cluster_oldest(compares->cluster, topology->stage_epoch) <= waiting.version) &&
           io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(io_now_ns() < deadline_ns);

    on_key(rig, COMPARES, writes_hold);
    on_key(rig, waiting.has, read_begins);
    fiber_sleep_ns(200 * NS_PER_MS);
    CHECK(!waiting.read_done);
    on_key(rig, waiting.has, trees_wait);
    on_key(rig, COMPARES, compare_begins);
    fiber_sleep_ns(500 * NS_PER_MS);
    CHECK(!waiting.compared);
    on_key(rig, COMPARES, writes_release);
    fiber_sleep_ns(200 * NS_PER_MS);
    CHECK(waiting.read_done && ok(waiting.read) && !waiting.read_found);
    on_key(rig, waiting.has, trees_go_on);
    while (!waiting.compared && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(waiting.compared && !waiting.mended);
    const struct trees *trees = compares->cluster->shards[shard_of_key(rig, COMPARES)]->trees;
    CHECK(trees->settled[waiting.partition - trees->first].last <= waiting.version);
    CHECK(content_of(rig, waiting.lacks).live_count == 1);

    sim_link_heal(rig->sim, lacks, has);
    wait_settled(rig, NODES);
    repair(rig, COMPARES);
    for (u32 i = 0; i < NODES; i++)
        CHECK(content_of(rig, i).live_count == 0);
    CHECK(trees->settled[waiting.partition - trees->first].last <= waiting.version);
    repair(rig, COMPARES);
    CHECK(trees->settled[waiting.partition - trees->first].last > waiting.version);
}

static void
what_is_brought_while_replicas_are_compared_settles_nothing(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, waiting_story);
        rig_run(&rig);
    }
}

/* ---- moves ---- */

static MAY_YIELD void
wait_clean(struct rig *rig)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    bool clean = false;
    while (!clean && io_now_ns() < deadline_ns) {
        fiber_sleep_ns(NS_PER_S);
        clean = true;
        for (u32 i = 0; i < rig->node_count; i++)
            for (u32 j = 0; j < rig->nodes[i].server->shard_count; j++)
                clean = clean && trees_are_clean(rig->nodes[i].server->cluster->shards[j]);
    }
    CHECK(clean);
}

/* Two join under deletes; who loses partitions has nothing of them afterwards, and what was deleted
 * before, while and after is gone for good. */
static MAY_YIELD void
moved_story(struct rig *rig)
{
    wait_settled(rig, NODES);
    write_some(rig, 0, 0, 2 * KEYS, "a");
    compact_all(rig);
    delete_some(rig, 1, 0, KEYS);
    for (u32 i = NODES; i < rig->node_count; i++)
        rig_start_begin(rig, i);
    delete_some(rig, 0, KEYS, KEYS + 20);
    wait_settled(rig, rig->node_count);
    u32 foreign = 0;
    for (u32 i = 0; i < NODES; i++)
        foreign += content_of(rig, i).foreign;
    CHECK(foreign > 0);
    wait_clean(rig);
    u32 entries = 0;
    for (u32 i = 0; i < rig->node_count; i++) {
        struct content content = content_of(rig, i);
        CHECK(content.foreign == 0);
        entries += content.live_count;
    }
    CHECK(entries > 0);
    fiber_sleep_ns(110 * NS_PER_S); /* what expires has */
    wait_purge(rig);
    compact_all(rig);
    for (u32 i = 0; i < rig->node_count; i++)
        CHECK(content_of(rig, i).gone == 0);
    for (u32 i = 0; i < rig->node_count; i++)
        expect_gone(rig, i, 0, KEYS + 20);
}

static void
losers_are_empty_after_a_move(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, moved_story);
        rig.node_count = NODES + 2;
        rig.late_count = 2;
        rig_run(&rig);
    }
}

/* The same where trees have taken all their memory. */
static MAY_YIELD void
full_moved_story(struct rig *rig)
{
    fill_trees(rig);
    rig_start_begin(rig, NODES);
    wait_settled(rig, NODES + 1);
    wait_clean(rig);
    for (u32 i = 0; i < rig->node_count; i++)
        CHECK(content_of(rig, i).foreign == 0);
}

static void
losers_with_full_trees_are_empty_after_a_move(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = rig_of(seed, full_moved_story);
        rig.configure = configure_small;
        rig.shard_count = 1;
        rig.node_count = NODES + 1;
        rig.late_count = 1;
        rig_run(&rig);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_replica_missed_without_hints_is_brought_by_trees),
        cmocka_unit_test(all_that_a_replica_lacks_is_fetched_however_large),
        cmocka_unit_test(the_least_memory_is_enough_for_the_largest_values),
        cmocka_unit_test(what_has_expired_by_one_clock_is_brought_as_it_is),
        cmocka_unit_test(sets_that_differ_are_united_by_trees),
        cmocka_unit_test(sets_of_three_replicas_are_united_step_by_step),
        cmocka_unit_test(leaves_are_listed_at_the_rate_of_comparing),
        cmocka_unit_test(power_failures_while_comparing_lose_nothing),
        cmocka_unit_test(trees_are_not_closed_while_somebody_looks),
        cmocka_unit_test(a_repair_says_what_it_could_not_compare),
        cmocka_unit_test(full_trees_leave_room_for_another_keyspace),
        cmocka_unit_test(a_replica_that_was_away_for_long_brings_nothing_back),
        cmocka_unit_test(what_is_brought_while_replicas_are_compared_settles_nothing),
        cmocka_unit_test(losers_are_empty_after_a_move),
        cmocka_unit_test(losers_with_full_trees_are_empty_after_a_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
