/* SPDX-License-Identifier: MIT
 *
 * test_load_places.c -- which place of a cluster a connection of distkv-bench goes to.
 */
#include "load/places.h"

#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

static struct budget budget;
static struct buf nodes, rows;

static int
setup(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&nodes, &budget);
    buf_init(&rows, &budget);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    buf_deinit(&nodes);
    buf_deinit(&rows);
    return 0;
}

static void
add_node(const char *host, u16 port, u16 shard_port, u16 shards)
{
    struct native_node node = {.id = BYTES_LITERAL("n"),
                               .host = BYTES(host, strlen(host)),
                               .port = port,
                               .shard_port = shard_port,
                               .shard_count = shards};
    assert_true(native_topology_add_node(&nodes, &node));
}

/* Of 16 partitions the first `first` belong to node 0, the others to node 1. */
static bool
take(struct places *places, u32 node_count, u32 first)
{
    for (u32 p = 0; p < 16; p++)
        assert_true(native_topology_add_place(&rows, p < first ? 0 : 1));
    struct native_topology_reply reply = {.epoch = 1,
                                          .node_count = (u16)node_count,
                                          .width = 1,
                                          .partition_count = 16,
                                          .nodes = buf_bytes(&nodes),
                                          .rows = buf_bytes(&rows)};
    return places_take(places, &reply, "127.0.0.9");
}

static void
cores_with_ports_are_places_of_their_own(void **state)
{
    (void)state;
    struct places places;
    add_node("10.0.0.1", 8080, 8081, 4);
    add_node("", 9090, 0, 4); /* empty: where the reply came from */
    assert_true(take(&places, 2, 12));
    assert_int_equal(places.count, 5);
    assert_string_equal(places.list[2].host, "10.0.0.1");
    assert_int_equal(places.list[2].port, 8083);
    assert_string_equal(places.list[4].host, "127.0.0.9");
    assert_int_equal(places.list[4].port, 9090);
    /* shards have four partitions each; the last one's belong to the other node */
    u32 slots = SLOT_COUNT / 16;
    assert_int_equal(places_of(&places, 0), 0);
    assert_int_equal(places_of(&places, 4 * slots), 1);
    assert_int_equal(places_of(&places, 11 * slots), 2);
    assert_int_equal(places_of(&places, 12 * slots), 4);
    assert_int_equal(places_of(&places, SLOT_COUNT - 1), 4);
    assert_int_equal(places.list[3].share, 0);
    places_free(&places);
}

static void
connections_are_dealt_by_the_share_of_the_keys(void **state)
{
    (void)state;
    struct places places;
    add_node("10.0.0.1", 8080, 8081, 4);
    add_node("10.0.0.2", 8080, 0, 1);
    assert_true(take(&places, 2, 12));
    u32 counts[5] = {0};
    for (u32 i = 0; i < 32; i++)
        counts[places_home(&places, i, 32)]++;
    for (u32 i = 0; i < 5; i++) /* nobody goes where no key lies */
        assert_int_equal(counts[i], i == 3 ? 0 : 8);
    for (u32 i = 0; i < 7; i++) /* not two for each of the four */
        assert_int_equal(places_home(&places, i, 7), PLACE_NOWHERE);
    places_free(&places);
}

static void
one_place_is_none(void **state)
{
    (void)state;
    struct places places;
    add_node("10.0.0.1", 8080, 0, 4);
    assert_true(take(&places, 1, 16));
    assert_int_equal(places_home(&places, 0, 100), PLACE_NOWHERE);
    places_free(&places);
    struct places nothing = {0};
    assert_int_equal(places_home(&nothing, 0, 100), PLACE_NOWHERE);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(cores_with_ports_are_places_of_their_own),
        T(connections_are_dealt_by_the_share_of_the_keys),
        T(one_place_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
