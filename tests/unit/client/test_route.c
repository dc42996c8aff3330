/* SPDX-License-Identifier: MIT
 *
 * test_route.c -- libdistkv in a cluster: who is asked, how the topology is followed, and that no
 * write is done twice or lost because there is more than one server. The map first, by itself.
 */
#include "client/lib_map.h"
#include "distkv.h"
#include "fake_server.h"

#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define SERVERS 3

static u64
now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / 1000000;
}

/* ---- the map ---- */

static struct budget budget;
static struct buf nodes, rows;

static void
add_node(const char *id, u16 port, u16 shard_port, u16 shards)
{
    struct native_node node = {.id = BYTES(id, strlen(id)),
                               .host = BYTES_LITERAL("10.0.0.1"),
                               .port = port,
                               .shard_port = shard_port,
                               .shard_count = shards};
    assert_true(native_topology_add_node(&nodes, &node));
}

/* The first of partition p is node p % node_count, and so on. */
static struct native_topology_reply
topology_of(u32 node_count, u32 partitions, u32 width)
{
    for (u32 p = 0; p < partitions; p++)
        for (u32 i = 0; i < width; i++)
            assert_true(native_topology_add_place(
                &rows, i < node_count ? (u16)((p + i) % node_count) : NATIVE_TOPOLOGY_NOBODY));
    return (struct native_topology_reply){.epoch = 5,
                                          .node_count = (u16)node_count,
                                          .width = (u8)width,
                                          .partition_count = partitions,
                                          .nodes = buf_bytes(&nodes),
                                          .rows = buf_bytes(&rows)};
}

static int
map_setup(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(16), NULL);
    buf_init(&nodes, &budget);
    buf_init(&rows, &budget);
    return 0;
}

static int
map_teardown(void **state)
{
    (void)state;
    buf_deinit(&nodes);
    buf_deinit(&rows);
    assert_int_equal(budget.used_bytes, 0);
    return 0;
}

static void
a_key_leads_to_the_replicas_of_its_partition(void **state)
{
    (void)state;
    add_node("a", 1000, 0, 1);
    add_node("b", 2000, 2001, 4);
    add_node("c", 3000, 0, 1);
    struct native_topology_reply reply = topology_of(3, 4096, 2);
    struct lib_map map = {0};
    assert_true(lib_map_take(&map, &budget, &reply));
    /* CRC16 of "123456789" is 0x31c3, the well-known check; the tag decides, not the key. */
    u32 slot = hash_slot(BYTES_LITERAL("{123456789}x"));
    assert_int_equal(slot, 0x31c3);
    u32 partition = slot / 4;
    assert_int_equal(lib_map_node(&map, slot, 0), partition % 3);
    assert_int_equal(lib_map_node(&map, slot, 1), (partition + 1) % 3);
    assert_int_equal(lib_map_node(&map, slot, 2), LIB_MAP_NOBODY);
    assert_int_equal(lib_map_node(&map, 0, 0), 0);
    assert_int_equal(lib_map_node(&map, SLOT_COUNT - 1, 0), 4095 % 3);
    assert_int_equal(lib_map_node(&map, SLOT_COUNT, 0), LIB_MAP_NOBODY);
    assert_string_equal(map.nodes[1].id, "b");
    assert_int_equal(map.nodes[1].shard_port, 2001);
    /* the shards of a node have contiguous runs of partitions, as on the server */
    assert_int_equal(lib_map_shard(&map, 1, 0), 0);
    assert_int_equal(lib_map_shard(&map, 1, 4095), 0);
    assert_int_equal(lib_map_shard(&map, 1, 4096), 1);
    assert_int_equal(lib_map_shard(&map, 1, SLOT_COUNT - 1), 3);
    assert_int_equal(lib_map_shard(&map, 0, SLOT_COUNT - 1), 0);
    lib_map_deinit(&map, &budget);
}

static void
a_newer_map_takes_the_place_of_the_one_before(void **state)
{
    (void)state;
    add_node("a", 1000, 0, 1);
    add_node("b", 2000, 0, 1);
    struct native_topology_reply reply = topology_of(2, 4096, 3);
    struct lib_map map = {0};
    assert_int_equal(lib_map_node(&map, 0, 0), LIB_MAP_NOBODY);
    assert_true(lib_map_take(&map, &budget, &reply));
    assert_int_equal(lib_map_node(&map, 0, 2), LIB_MAP_NOBODY);
    nodes.size = rows.size = 0;
    add_node("b", 2000, 0, 1);
    reply = topology_of(1, 16, 1);
    reply.epoch = 6;
    assert_true(lib_map_take(&map, &budget, &reply));
    assert_int_equal(map.node_count, 1);
    assert_int_equal(map.epoch, 6);
    assert_string_equal(map.nodes[0].id, "b");
    for (u32 slot = 0; slot < SLOT_COUNT; slot++)
        assert_int_equal(lib_map_node(&map, slot, 0), 0);
    /* without memory it is as it was */
    struct budget small;
    budget_init(&small, "small", 8, NULL);
    assert_false(lib_map_take(&map, &small, &reply));
    assert_int_equal(lib_map_node(&map, 9, 0), 0);
    lib_map_deinit(&map, &budget);
}

static void
of_more_nodes_than_there_is_room_for_the_first_are_known(void **state)
{
    (void)state;
    for (u32 i = 0; i < 100; i++)
        add_node("n", 1, 0, 1);
    struct native_topology_reply reply = topology_of(100, 4096, 1);
    struct lib_map map = {0};
    assert_true(lib_map_take(&map, &budget, &reply));
    assert_int_equal(map.node_count, LIB_MAP_NODES_MAX);
    assert_int_equal(lib_map_node(&map, 4 * 63, 0), 63);
    assert_int_equal(lib_map_node(&map, 4 * 64, 0), LIB_MAP_NOBODY);
    lib_map_deinit(&map, &budget);
}

/* ---- a handle and several servers ---- */

static struct fake_server *servers[SERVERS];
static struct fake_cluster together;
static distkv *kv;

static int
setup(void **state)
{
    (void)state;
    together.count = SERVERS;
    together.epoch = 7;
    together.id = 0x77;
    for (u32 i = 0; i < SERVERS; i++) {
        servers[i] = together.members[i] = fake_server_start(0);
        servers[i]->member = i;
        servers[i]->run_id = 100 + i;
    }
    for (u32 i = 0; i < SERVERS; i++)
        servers[i]->cluster = &together;
    char error[DISTKV_ERROR_BYTES];
    assert_int_equal(distkv_connect(servers[0]->address, NULL, &kv, error), DISTKV_OK);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    if (kv != NULL) distkv_close(kv);
    for (u32 i = 0; i < SERVERS; i++)
        if (servers[i] != NULL) fake_server_stop(servers[i]);
    return 0;
}

/* A key whose first replica is the server. */
static const char *
key_of(u32 server)
{
    static char key[16];
    for (u32 i = 0;; i++) {
        int size = snprintf(key, sizeof(key), "k%u", i);
        if (hash_slot(BYTES(key, (size_t)size)) / 4 % SERVERS == server) return key;
    }
}

static int
put_if(u32 server, int condition)
{
    const char *key = key_of(server);
    struct distkv_write write = {.condition = condition};
    return distkv_put(kv, key, strlen(key), "v", 1, &write, NULL);
}

/* Reads one of 500 keys. Each server has a store of its own: the key may be there or not. */
static void
ask(u32 i)
{
    char key[16];
    int size = snprintf(key, sizeof(key), "y%u", i % 500);
    struct distkv_value value;
    int code = distkv_get(kv, key, (size_t)size, &value);
    assert_true(code == DISTKV_OK || code == DISTKV_NOT_FOUND);
    distkv_value_free(&value);
}

/* For those who ask for seconds: without a pause they would keep two processors busy. */
static void
ask_calmly(u32 i)
{
    ask(i);
    usleep(1000);
}

/* Asks for so long, and then until hundreds in a row were not sent to the server. */
static void
ask_until_left(u32 server, u32 least_ms)
{
    u64 begin = now_ms();
    u32 elsewhere = 0;
    for (u32 i = 0; now_ms() < begin + least_ms || elsewhere < 400; i++) {
        int before = servers[server]->keyed;
        ask_calmly(i);
        elsewhere = servers[server]->keyed == before ? elsewhere + 1 : 0;
        assert_true(now_ms() < begin + 60000);
    }
}

/* Goes on until the handle is connected with all of them. */
static void
reach_all(void)
{
    u64 deadline = now_ms() + 60000;
    for (u32 i = 0; i < SERVERS; i++) {
        while (true) {
            int before = servers[i]->keyed;
            assert_int_equal(put_if(i, DISTKV_ALWAYS), DISTKV_OK);
            if (servers[i]->keyed > before) break;
            assert_true(now_ms() < deadline);
        }
    }
}

static void
requests_go_to_the_first_replica(void **state)
{
    (void)state;
    reach_all();
    int elsewhere[SERVERS], keyed[SERVERS];
    for (u32 i = 0; i < SERVERS; i++) {
        elsewhere[i] = servers[i]->elsewhere;
        keyed[i] = servers[i]->keyed;
    }
    for (u32 i = 0; i < 300; i++) {
        char key[16];
        int size = snprintf(key, sizeof(key), "x%u", i);
        assert_int_equal(distkv_put(kv, key, (size_t)size, "v", 1, NULL, NULL), DISTKV_OK);
    }
    for (u32 i = 0; i < SERVERS; i++) {
        assert_int_equal(servers[i]->elsewhere, elsewhere[i]);
        assert_in_range(servers[i]->keyed, keyed[i] + 60, keyed[i] + 140);
    }
    /* what has no key goes where the user said */
    for (u32 i = 0; i < 10; i++)
        assert_int_equal(distkv_ping(kv), DISTKV_OK);
    assert_in_range(servers[0]->requests - servers[0]->keyed, 10, 14);
}

/* Whoever was named is a member no longer: what has no key goes to one that is. */
static void
what_has_no_key_does_not_go_to_who_was_taken_out(void **state)
{
    (void)state;
    struct distkv *other;
    char error[DISTKV_ERROR_BYTES];
    assert_int_equal(distkv_connect(servers[2]->address, NULL, &other, error), DISTKV_OK);
    assert_int_equal(distkv_ping(other), DISTKV_OK);
    together.count = 2; /* the last one leaves */
    together.epoch = 9;
    int before = servers[2]->requests;
    u64 deadline = now_ms() + 60000;
    for (u32 away = 0; away < 20; away++) {
        struct distkv_value value;
        assert_int_equal(distkv_get(other, "k", 1, &value), DISTKV_NOT_FOUND);
        distkv_value_free(&value);
        assert_int_equal(distkv_ping(other), DISTKV_OK);
        if (servers[2]->requests != before) away = 0;
        before = servers[2]->requests;
        usleep(1000);
        assert_true(now_ms() < deadline);
    }
    distkv_close(other);
}

/* Closes what the handle has open with the server: it says HELLO again. */
static void
shake_off(u32 server)
{
    servers[server]->drop_before_writes = 1;
    int hellos = servers[server]->hellos;
    u64 deadline = now_ms() + 60000;
    while (servers[server]->hellos == hellos) {
        (void)put_if(server, DISTKV_ALWAYS);
        assert_true(now_ms() < deadline);
    }
}

/* All servers are of another cluster: of a lower epoch, with other places. */
static void
a_cluster_that_was_founded_anew_is_followed(void **state)
{
    (void)state;
    reach_all();
    struct fake_cluster anew = {.count = 1, .epoch = 2, .id = 0x99, .members = {servers[0]}};
    for (u32 i = 0; i < SERVERS; i++)
        servers[i]->cluster = &anew;
    for (u32 i = 0; i < SERVERS; i++)
        shake_off(i);
    u64 deadline = now_ms() + 60000;
    for (u32 i = 0, quiet = 0; quiet < 500; i++, quiet++) {
        int before = servers[1]->keyed + servers[2]->keyed;
        ask_calmly(i);
        if (servers[1]->keyed + servers[2]->keyed != before) quiet = 0;
        assert_true(now_ms() < deadline);
    }
    /* It is followed from its epoch on. */
    anew.count = 2;
    anew.members[1] = servers[1];
    anew.epoch = 3;
    int before_it = servers[1]->keyed;
    for (u32 i = 0; servers[1]->keyed == before_it; i++) {
        ask_calmly(i);
        assert_true(now_ms() < deadline);
    }
    distkv_close(kv);
    kv = NULL;
    for (u32 i = 0; i < SERVERS; i++)
        servers[i]->cluster = &together;
}

/* One was taken out, and is a cluster of its own by now, of a high epoch: nobody goes there. */
static void
who_is_of_another_cluster_leads_nobody_away(void **state)
{
    (void)state;
    reach_all();
    struct fake_cluster alone = {.count = 1, .epoch = 500, .id = 0x55, .members = {servers[2]}};
    servers[2]->cluster = &alone;
    shake_off(2);
    together.count = 2;
    together.epoch = 9;
    ask_until_left(2, 3000);
    distkv_close(kv);
    kv = NULL;
    servers[2]->cluster = &together;
}

static void
a_new_epoch_is_fetched_once_however_many_replies_tell_of_it(void **state)
{
    (void)state;
    reach_all();
    int fetched = servers[0]->topologies + servers[1]->topologies + servers[2]->topologies;
    assert_int_equal(fetched, 1);
    together.count = 2; /* the last one leaves */
    together.epoch = 9;
    ask_until_left(2, 2500);
    assert_int_equal(servers[0]->topologies + servers[1]->topologies + servers[2]->topologies, 2);
}

static void
an_epoch_that_nobody_can_tell_of_is_asked_for_once_a_second(void **state)
{
    (void)state;
    reach_all();
    servers[1]->claims = 1000;
    u64 begin = now_ms();
    for (u32 i = 0; now_ms() < begin + 2600; i++)
        ask_calmly(i);
    u64 seconds = (now_ms() - begin) / 1000;
    assert_in_range(servers[0]->topologies + servers[1]->topologies + servers[2]->topologies, 2,
                    2 + seconds);
}

static void
the_server_that_was_named_may_go(void **state)
{
    (void)state;
    reach_all();
    fake_server_stop(servers[0]);
    servers[0] = NULL;
    for (u32 i = 0; i < 200; i++) {
        char key[16];
        int size = snprintf(key, sizeof(key), "z%u", i);
        assert_int_equal(distkv_put(kv, key, (size_t)size, "v", 1, NULL, NULL), DISTKV_OK);
    }
    assert_int_equal(distkv_ping(kv), DISTKV_OK);
}

static void
a_write_that_may_be_done_once_stays_with_the_server_that_had_it(void **state)
{
    (void)state;
    reach_all();
    int done = servers[1]->writes_done;
    int others = servers[0]->writes_done + servers[2]->writes_done;
    servers[1]->drop_after_writes = 1;
    assert_int_equal(put_if(1, DISTKV_IF_PRESENT), DISTKV_OK);
    assert_int_equal(servers[1]->writes_done, done + 1);
    assert_int_equal(servers[1]->writes_replayed, 1);
    assert_int_equal(servers[0]->writes_done + servers[2]->writes_done, others);
    /* a plain write, too, as long as that server is there */
    servers[1]->drop_after_writes = 1;
    assert_int_equal(put_if(1, DISTKV_ALWAYS), DISTKV_OK);
    assert_int_equal(servers[1]->writes_replayed, 2);
    assert_int_equal(servers[0]->writes_done + servers[2]->writes_done, others);
}

struct outcome {
    int code;
    bool ended;
};

static void
note(void *arg, const struct distkv_result *result)
{
    *(struct outcome *)arg = (struct outcome){.code = result->code, .ended = true};
}

/* Sends a write to server 1, which does it and dies before it says so. */
static int
put_and_lose_the_server(int condition)
{
    reach_all();
    distkv_set_timeout(kv, 60000);
    servers[1]->silent = 1;
    int seen = servers[1]->requests;
    struct outcome outcome = {0};
    struct distkv_write write = {.condition = condition};
    const char *key = key_of(1);
    assert_int_equal(distkv_put_async(kv, key, strlen(key), "v", 1, &write, note, &outcome),
                     DISTKV_OK);
    u64 deadline = now_ms() + 60000;
    while (servers[1]->requests == seen && now_ms() < deadline)
        distkv_process(kv, 1);
    assert_true(servers[1]->requests > seen);
    fake_server_stop(servers[1]);
    servers[1] = NULL;
    u64 begin = now_ms();
    while (!outcome.ended)
        distkv_process(kv, 100);
    assert_in_range(now_ms() - begin, 0, 30000); /* before the deadline of a minute */
    return outcome.code;
}

static void
a_conditional_write_whose_server_is_gone_is_unknown_and_not_done_elsewhere(void **state)
{
    (void)state;
    reach_all();
    int others = servers[0]->writes_done + servers[2]->writes_done;
    assert_int_equal(put_and_lose_the_server(DISTKV_IF_PRESENT), DISTKV_UNKNOWN_OUTCOME);
    assert_in_range(servers[0]->writes_done + servers[2]->writes_done, others, others + 2);
}

static void
a_plain_write_whose_server_is_gone_is_done_by_another_one(void **state)
{
    (void)state;
    assert_int_equal(put_and_lose_the_server(DISTKV_ALWAYS), DISTKV_OK);
}

/* A write of its own key that the server does not answer. */
static void
put_later(u32 server, struct outcome *outcome)
{
    const char *key = key_of(server);
    assert_int_equal(distkv_put_async(kv, key, strlen(key), "v", 1, NULL, note, outcome),
                     DISTKV_OK);
}

static void
who_waits_for_one_server_stands_in_nobodys_way(void **state)
{
    (void)state;
    enum { WRITES = 200 };
    static struct outcome outcomes[WRITES + 1]; /* told in any case */
    memset(outcomes, 0, sizeof(outcomes));
    distkv_close(kv);
    struct distkv_options options;
    distkv_options_init(&options);
    options.timeout_ms = 60000;
    options.connect_timeout_ms = 5000;
    assert_int_equal(distkv_connect(servers[0]->address, &options, &kv, NULL), DISTKV_OK);
    reach_all();
    /* Many writes were sent to server 1, which ends their connection and takes its time with the
     * next one: whether they were done is to be asked there. */
    servers[1]->silent = 1;
    int seen = servers[1]->requests;
    for (u32 i = 0; i < WRITES; i++)
        put_later(1, &outcomes[i]);
    u64 deadline = now_ms() + 60000;
    while (servers[1]->requests < seen + WRITES && now_ms() < deadline)
        distkv_process(kv, 1);
    assert_int_equal(servers[1]->requests, seen + WRITES);
    servers[1]->mute = 1;
    servers[1]->silent = 0;
    servers[1]->drop_before_writes = 1;
    int hellos = servers[1]->connections;
    put_later(1, &outcomes[WRITES]);
    while (servers[1]->connections == hellos && now_ms() < deadline)
        distkv_process(kv, 1);
    /* Meanwhile the others answer: before that one is given up, after 5 s. */
    u64 begin = now_ms();
    for (u32 i = 0; i < 100; i++)
        assert_int_equal(put_if(2, DISTKV_ALWAYS), DISTKV_OK);
    assert_in_range(now_ms() - begin, 0, 4000);
    servers[1]->mute = 0;
    deadline = now_ms() + 60000;
    for (u32 i = 0; i <= WRITES; i++) {
        while (!outcomes[i].ended && now_ms() < deadline)
            distkv_process(kv, 10);
        assert_true(outcomes[i].ended);
        assert_int_equal(outcomes[i].code, DISTKV_OK);
    }
}

enum { SLOW_VALUE_BYTES = 1 << 20, SLOW_VALUES = 2 };

/* Whether the connection has stayed. */
static bool
writes_over_a_slow_line(const char *value)
{
    reach_all();
    int connections = servers[1]->connections;
    static struct outcome outcomes[SLOW_VALUES]; /* told in any case */
    memset(outcomes, 0, sizeof(outcomes));
    const char *key = key_of(1);
    u64 begin = now_ms();
    for (u32 i = 0; i < SLOW_VALUES; i++)
        assert_int_equal(distkv_put_async(kv, key, strlen(key), value, SLOW_VALUE_BYTES, NULL, note,
                                          &outcomes[i]),
                         DISTKV_OK);
    for (u32 i = 0; i < SLOW_VALUES; i++) {
        while (!outcomes[i].ended)
            distkv_process(kv, 100);
        assert_int_equal(outcomes[i].code, DISTKV_OK);
    }
    assert_true(now_ms() - begin >= 2000); /* longer than silence is borne */
    return servers[1]->connections == connections;
}

/* Of three times once: on a busy machine it may say nothing for as long as silence is borne. */
static void
a_slow_line_is_not_silent(void **state)
{
    (void)state;
    distkv_close(kv);
    servers[1]->slow_us = 120 * 1000;
    struct distkv_options options;
    distkv_options_init(&options);
    options.timeout_ms = 60000;
    assert_int_equal(distkv_connect(servers[0]->address, &options, &kv, NULL), DISTKV_OK);
    char *value = calloc(1, SLOW_VALUE_BYTES);
    assert_non_null(value);
    bool stayed = false;
    for (u32 i = 0; i < 3 && !stayed; i++)
        stayed = writes_over_a_slow_line(value);
    assert_true(stayed);
    free(value);
}

/* What a server says of others is not believed so far that memory runs out. */
static void
more_shards_than_anybody_has_are_not_connected_to(void **state)
{
    (void)state;
    distkv_close(kv);
    servers[0]->shards = 60000;
    struct distkv_options options;
    distkv_options_init(&options);
    options.memory_bytes_max = MIB(4);
    assert_int_equal(distkv_connect(servers[0]->address, &options, &kv, NULL), DISTKV_OK);
    for (u32 i = 0; i < 100; i++)
        ask(i);
    reach_all(); /* at their own ports */
}

/* Its epoch is always 1, and its shards may be others after a start. */
static void
a_node_by_itself_is_asked_again_after_each_start(void **state)
{
    (void)state;
    reach_all(); /* so this handle has its map, and asks no more */
    distkv_close(kv);
    together.count = 1;
    together.epoch = 1;
    int topologies = servers[0]->topologies;
    assert_int_equal(distkv_connect(servers[0]->address, NULL, &kv, NULL), DISTKV_OK);
    for (u32 start = 1; start <= 2; start++) {
        u64 deadline = now_ms() + 60000;
        while (servers[0]->topologies < topologies + (int)start && now_ms() < deadline)
            ask_calmly(0);
        assert_int_equal(servers[0]->topologies, topologies + (int)start);
        servers[0]->run_id = 200 + start;
        servers[0]->drop_before_writes = 1;
        assert_int_equal(put_if(0, DISTKV_ALWAYS), DISTKV_OK);
    }
}

static void
a_server_that_says_nothing_is_passed_by(void **state)
{
    (void)state;
    reach_all();
    distkv_set_timeout(kv, 60000);
    servers[1]->silent = 1;
    struct distkv_value value;
    u64 begin = now_ms();
    const char *key = key_of(1);
    /* The one that it has got is given up after a second and a half. */
    int code = distkv_get(kv, key, strlen(key), &value);
    assert_true(code == DISTKV_OK || code == DISTKV_NOT_FOUND);
    distkv_value_free(&value);
    assert_in_range(now_ms() - begin, 1000, 20000); /* before the deadline */
}

/* The handle anew: the first server's kernel takes little of what its server does not read, and no
 * answer to HELLO is soon no server. (A busy machine may take that long to answer, now and then.) */
static void
connect_impatiently(void)
{
    distkv_close(kv);
    kv = NULL;
    servers[1]->slow_us = 1;
    struct distkv_options options;
    distkv_options_init(&options);
    options.timeout_ms = 60000;
    options.connect_timeout_ms = 300;
    u64 deadline = now_ms() + 60000;
    while (distkv_connect(servers[0]->address, &options, &kv, NULL) != DISTKV_OK)
        assert_true(now_ms() < deadline);
    reach_all();
}

/* It may have lain in a socket all the time: only after so long the server refuses it. */
static void
a_write_goes_elsewhere_when_the_first_does_not_do_it_any_more(void **state)
{
    (void)state;
    connect_impatiently();
    servers[1]->silent = servers[1]->mute = 1;
    int done = servers[0]->writes_done + servers[2]->writes_done;
    u64 begin = now_ms();
    assert_int_equal(put_if(1, DISTKV_ALWAYS), DISTKV_OK);
    assert_in_range(now_ms() - begin, NATIVE_ELSEWHERE_MS, 40000); /* before the deadline */
    assert_int_equal(servers[0]->writes_done + servers[2]->writes_done, done + 1);
}

static void
what_was_not_delivered_when_a_server_is_given_up_does_not_come_later(void **state)
{
    (void)state;
    enum { VALUE_BYTES = 1 << 20 };
    connect_impatiently();
    char *value = calloc(1, VALUE_BYTES);
    assert_non_null(value);
    servers[1]->stands = 1;
    int keyed = servers[1]->keyed;
    const char *key = key_of(1);
    assert_int_equal(distkv_put(kv, key, strlen(key), value, VALUE_BYTES, NULL, NULL), DISTKV_OK);
    distkv_close(kv);
    kv = NULL;
    servers[1]->stands = 0;
    u64 deadline = now_ms() + 60000;
    while (servers[1]->ended < servers[1]->connections && now_ms() < deadline)
        usleep(1000);
    assert_int_equal(servers[1]->ended, servers[1]->connections); /* so all has been read */
    assert_int_equal(servers[1]->keyed, keyed);
    free(value);
}

int
main(void)
{
#define M(name) cmocka_unit_test_setup_teardown(name, map_setup, map_teardown)
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        M(a_key_leads_to_the_replicas_of_its_partition),
        M(a_newer_map_takes_the_place_of_the_one_before),
        M(of_more_nodes_than_there_is_room_for_the_first_are_known),
        T(requests_go_to_the_first_replica),
        T(what_has_no_key_does_not_go_to_who_was_taken_out),
        T(a_cluster_that_was_founded_anew_is_followed),
        T(who_is_of_another_cluster_leads_nobody_away),
        T(a_new_epoch_is_fetched_once_however_many_replies_tell_of_it),
        T(an_epoch_that_nobody_can_tell_of_is_asked_for_once_a_second),
        T(the_server_that_was_named_may_go),
        T(a_write_that_may_be_done_once_stays_with_the_server_that_had_it),
        T(a_conditional_write_whose_server_is_gone_is_unknown_and_not_done_elsewhere),
        T(a_plain_write_whose_server_is_gone_is_done_by_another_one),
        T(who_waits_for_one_server_stands_in_nobodys_way),
        T(a_slow_line_is_not_silent),
        T(more_shards_than_anybody_has_are_not_connected_to),
        T(a_node_by_itself_is_asked_again_after_each_start),
        T(a_server_that_says_nothing_is_passed_by),
        T(a_write_goes_elsewhere_when_the_first_does_not_do_it_any_more),
        T(what_was_not_delivered_when_a_server_is_given_up_does_not_come_later),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
