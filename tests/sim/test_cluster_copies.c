/* SPDX-License-Identifier: MIT
 *
 * test_cluster_copies.c -- a node's disk is replaced by an older copy of itself: what it would say
 * is not what was acknowledged, and it is not believed. Clusters of three whole nodes.
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
#define SEED_COUNT 2u
#else
#define SEED_COUNT 8u
#endif
#define NODES   3u
#define LAST    (NODES - 1)
#define WAIT_NS (60 * NS_PER_S)

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 2);
}

static void
run_seeds(void (*story)(struct rig *rig))
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = 2,
                          .node_count = NODES,
                          .late_count = 1, /* its disk is copied while it is empty */
                          .configure = configure,
                          .story = story};
        sim_options_default(&rig.options, seed);
        rig_run(&rig);
    }
}

/* ---- what a story does ---- */

static struct sim_disk *
copy_of(const struct rig *rig, u32 node)
{
    CHECK(!sim_node_running(rig->nodes[node].machine));
    return sim_disk_copy_new(sim_node_disk(rig->nodes[node].machine));
}

static void
put_back(const struct rig *rig, u32 node, struct sim_disk *copy)
{
    CHECK(!sim_node_running(rig->nodes[node].machine));
    sim_disk_copy_put(copy, sim_node_disk(rig->nodes[node].machine));
}

/* For the last time. */
static void
put_back_last(const struct rig *rig, u32 node, struct sim_disk *copy)
{
    put_back(rig, node, copy);
    sim_disk_copy_free(copy);
}

/* Until it is done: whoever is dead may be asked once more. */
static MAY_YIELD void
write_value(struct rig *rig, u32 node, const char *value)
{
    u64 deadline_ns = io_now_ns() + WAIT_NS;
    bool done = false;
    while (!done) {
        CHECK(io_now_ns() < deadline_ns);
        struct rig_client client;
        rig_connect_to(rig, node, &client);
        done = rig_is(rig_call(&client, "SET k %s", value), "+OK\r\n");
        rig_disconnect(&client);
        fiber_sleep_ns(50 * NS_PER_MS);
    }
}

/* Whatever it is asked for, it does not say "old". An error is right, and the end, too. missed: it
 * was away when the value was written, and may say so where it is asked alone. */
static MAY_YIELD void
expect_never_old(struct rig *rig, u32 node, bool missed)
{
    static const char *const levels[] = {"ONE", "QUORUM", "DEFAULT"};
    struct rig_client client;
    if (!ok(rig_try_connect(rig, node, &client))) return;
    for (u32 i = missed ? 1 : 0; i < ARRAY_COUNT(levels); i++) {
        struct bytes reply = rig_call(&client, "DISTKV.CONSISTENCY %s", levels[i]);
        if (reply.size > 0) reply = rig_call(&client, "GET k");
        CHECK(!rig_is(reply, "$3\r\nold\r\n"));
        if (reply.size == 0) break;
    }
    rig_disconnect(&client);
}

static MAY_YIELD void
expect_new(struct rig *rig, u32 node)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "GET k"), "$3\r\nnew\r\n"));
    rig_disconnect(&client);
}

static MAY_YIELD void
expect_refused(struct rig *rig, u32 node, u64 wait_ns)
{
    u64 deadline_ns = io_now_ns() + wait_ns;
    while (sim_node_running(rig->nodes[node].machine) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    CHECK(!sim_node_running(rig->nodes[node].machine));
    CHECK(status_is(sim_node_result(rig->nodes[node].machine), ST_DENIED));
    const char *why = server_failure(rig->nodes[node].server);
    CHECK(strstr(why, "an older copy; empty it and start this node again") != NULL);
    CHECK(strstr(why, status_text(ST_DENIED)) == NULL); /* no matter of permissions */
    rig_crash(rig, node);                               /* only its memory */
}

static u32
member_of(const struct rig *rig, u32 node)
{
    return cluster_member(rig->nodes[node].server->cluster);
}

/* All three are in, and the value is "old". An empty disk, for later. */
static MAY_YIELD struct sim_disk *
begin(struct rig *rig)
{
    struct sim_disk *empty = copy_of(rig, LAST);
    rig_start(rig, LAST);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    write_value(rig, 0, "old");
    fiber_sleep_ns(NS_PER_S); /* all three have it */
    return empty;
}

/* A wiped disk is another member, and has what was acknowledged. */
static MAY_YIELD void
rebuild(struct rig *rig, struct sim_disk *empty, u32 number)
{
    put_back(rig, LAST, empty);
    rig_start(rig, LAST);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    CHECK(member_of(rig, LAST) > number);
    for (u32 i = 0; i < NODES; i++)
        expect_new(rig, i);
    sim_disk_copy_free(empty);
}

/* ---- stories ---- */

/* The last node's disk is put back after a run in which it was one of two that have acknowledged a
 * write, and the other one of these is away: nobody who is there has the value, but one of them
 * knows that there was such a run. */
static MAY_YIELD void
put_back_story(struct rig *rig)
{
    struct sim_disk *empty = begin(rig);
    u32 number = member_of(rig, LAST);
    rig_crash(rig, LAST);
    struct sim_disk *copy = copy_of(rig, LAST);
    rig_start(rig, LAST);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    CHECK(member_of(rig, LAST) == number);
    rig_crash(rig, 0);
    write_value(rig, 1, "new");
    rig_crash(rig, LAST);
    put_back_last(rig, LAST, copy);
    rig_crash(rig, 1);
    rig_start_begin(rig, 0);
    rig_start_begin(rig, LAST);
    for (u32 i = 0; i < 40; i++) {
        expect_never_old(rig, 0, true);
        expect_never_old(rig, LAST, false);
        fiber_sleep_ns(50 * NS_PER_MS);
    }
    expect_refused(rig, LAST, 5 * NS_PER_S);
    rig_start(rig, 1);
    while (!cluster_rig_knows(rig, 0, NODES) || !cluster_rig_knows(rig, 1, NODES))
        fiber_sleep_ns(50 * NS_PER_MS);
    fiber_sleep_ns(2 * NS_PER_S);
    expect_new(rig, 0);
    expect_new(rig, 1);
    rig_start_begin(rig, LAST); /* and so again */
    expect_refused(rig, LAST, 5 * NS_PER_S);
    rebuild(rig, empty, number);
}

static void
a_disk_that_is_put_back_is_not_believed(void **state)
{
    run_seeds(put_back_story);
}

/* Exactly one run, in which nothing was written, is enough to be noticed; none is none. */
static MAY_YIELD void
one_run_story(struct rig *rig)
{
    struct sim_disk *empty = begin(rig);
    u32 number = member_of(rig, LAST);
    for (u32 i = 0; i < 3; i++) {
        rig_crash(rig, LAST);
        struct sim_disk *same = copy_of(rig, LAST);
        put_back_last(rig, LAST, same);
        rig_start(rig, LAST);
        cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
        CHECK(member_of(rig, LAST) == number);
    }
    rig_crash(rig, LAST);
    struct sim_disk *copy = copy_of(rig, LAST);
    rig_start(rig, LAST);
    rig_crash(rig, LAST);
    put_back_last(rig, LAST, copy);
    write_value(rig, 0, "new");
    rig_start_begin(rig, LAST);
    expect_refused(rig, LAST, 5 * NS_PER_S);
    rebuild(rig, empty, number);
}

static void
one_run_is_noticed_and_none_is_harmless(void **state)
{
    run_seeds(one_run_story);
}

/* Who is there knows of no later start, as it was away then: that cannot be seen. It is seen as
 * soon as one comes who knows. */
static MAY_YIELD void
late_story(struct rig *rig)
{
    struct sim_disk *empty = begin(rig);
    u32 number = member_of(rig, LAST);
    rig_crash(rig, LAST);
    struct sim_disk *copy = copy_of(rig, LAST);
    rig_crash(rig, 0);
    rig_start(rig, LAST);
    write_value(rig, 1, "new");
    rig_crash(rig, LAST);
    put_back_last(rig, LAST, copy);
    rig_crash(rig, 1);
    rig_start_begin(rig, 0);
    rig_start(rig, LAST);
    fiber_sleep_ns(3 * NS_PER_S);
    CHECK(sim_node_running(rig->nodes[LAST].machine));
    rig_start_begin(rig, 1);
    expect_refused(rig, LAST, 10 * NS_PER_S);
    while (!cluster_rig_knows(rig, 0, NODES) || !cluster_rig_knows(rig, 1, NODES))
        fiber_sleep_ns(50 * NS_PER_MS);
    fiber_sleep_ns(2 * NS_PER_S);
    rebuild(rig, empty, number);
}

static void
who_knows_of_a_later_start_ends_it_when_it_comes(void **state)
{
    run_seeds(late_story);
}

/* The copy is from when the node had a name and no number yet: who asks to be let in with it is
 * taken for the member that it was. */
static MAY_YIELD void
before_story(struct rig *rig)
{
    struct sim_disk *empty = copy_of(rig, LAST);
    rig_crash(rig, 0); /* whom it asks */
    rig_start_begin(rig, LAST);
    fiber_sleep_ns(2 * NS_PER_S);
    rig_crash(rig, LAST);
    struct sim_disk *copy = copy_of(rig, LAST);
    rig_start(rig, 0);
    rig_start(rig, LAST);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    u32 number = member_of(rig, LAST);
    write_value(rig, 0, "new");
    rig_crash(rig, LAST);
    put_back_last(rig, LAST, copy);
    rig_start_begin(rig, LAST);
    expect_refused(rig, LAST, 10 * NS_PER_S);
    rebuild(rig, empty, number);
}

static void
a_copy_from_before_it_was_a_member_is_noticed_when_it_joins(void **state)
{
    run_seeds(before_story);
}

static MAY_YIELD void
expect_old_at_one(struct rig *rig, u32 node)
{
    struct rig_client client;
    rig_connect_to(rig, node, &client);
    CHECK(rig_is(rig_call(&client, "DISTKV.CONSISTENCY ONE"), "+OK\r\n"));
    CHECK(rig_is(rig_call(&client, "GET k"), "$3\r\nold\r\n"));
    rig_disconnect(&client);
}

/* A node whose disk is full counts for reads, and so it does when it starts: its start is made when
 * there is room. */
static MAY_YIELD void
full_story(struct rig *rig)
{
    struct sim_disk *empty = begin(rig);
    u32 number = member_of(rig, LAST);
    rig_crash(rig, LAST);
    struct sim_disk *copy = copy_of(rig, LAST);
    sim_disk_capacity_set(sim_node_disk(rig->nodes[LAST].machine), 1);
    rig_start(rig, LAST);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    expect_old_at_one(rig, LAST);
    /* Nothing of that run is anywhere: the same disk as before, and not too old. */
    rig_crash(rig, LAST);
    sim_disk_capacity_set(sim_node_disk(rig->nodes[LAST].machine), GIB(16));
    put_back(rig, LAST, copy);
    rig_start(rig, LAST);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    write_value(rig, 0, "new");
    rig_crash(rig, LAST);
    put_back_last(rig, LAST, copy);
    rig_start_begin(rig, LAST);
    expect_refused(rig, LAST, 5 * NS_PER_S);
    rebuild(rig, empty, number);
}

static void
a_full_disk_does_not_keep_a_node_from_being_read(void **state)
{
    run_seeds(full_story);
}

/* Below its reserve it makes its start at once, as that is of the reserve. */
static MAY_YIELD void
reserve_story(struct rig *rig)
{
    struct sim_disk *empty = begin(rig);
    u32 number = member_of(rig, LAST);
    struct server_config *config = rig->nodes[LAST].config;
    u64 reserve = config->disk_reserve_bytes;
    rig_crash(rig, LAST);
    struct sim_disk *copy = copy_of(rig, LAST);
    config->disk_reserve_bytes = GIB(1024);
    rig_start(rig, LAST);
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    expect_old_at_one(rig, LAST);
    write_value(rig, 0, "new");
    rig_crash(rig, LAST);
    config->disk_reserve_bytes = reserve;
    put_back_last(rig, LAST, copy);
    rig_start_begin(rig, LAST);
    expect_refused(rig, LAST, 5 * NS_PER_S);
    rebuild(rig, empty, number);
}

static void
a_disk_below_its_reserve_that_is_put_back_is_not_believed(void **state)
{
    run_seeds(reserve_story);
}

/* The whole cluster loses its power again and again, also while its nodes start: what was made
 * durable and not told yet is nobody's old copy. The first one up is ready for who waits for that,
 * and shows nothing. */
static MAY_YIELD void
all_story(struct rig *rig)
{
    struct sim_disk *empty = begin(rig);
    for (u32 round = 0; round < 6; round++) {
        for (u32 i = 0; i < NODES; i++)
            rig_crash(rig, i);
        rig_start_begin(rig, round % NODES);
        fiber_sleep_ns(round * 700 * NS_PER_MS);
        if (round > 2) {
            CHECK(server_ready(rig->nodes[round % NODES].server));
            expect_never_old(rig, round % NODES, false);
        }
        for (u32 i = 0; i < NODES; i++)
            if (i != round % NODES) rig_start_begin(rig, i);
        fiber_sleep_ns((round * 37 + 5) * NS_PER_MS);
    }
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    write_value(rig, 0, "new");
    for (u32 i = 0; i < NODES; i++)
        expect_new(rig, i);
    sim_disk_copy_free(empty);
}

static void
a_cluster_without_power_comes_back(void **state)
{
    run_seeds(all_story);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_disk_that_is_put_back_is_not_believed),
        cmocka_unit_test(one_run_is_noticed_and_none_is_harmless),
        cmocka_unit_test(who_knows_of_a_later_start_ends_it_when_it_comes),
        cmocka_unit_test(a_copy_from_before_it_was_a_member_is_noticed_when_it_joins),
        cmocka_unit_test(a_full_disk_does_not_keep_a_node_from_being_read),
        cmocka_unit_test(a_disk_below_its_reserve_that_is_put_back_is_not_believed),
        cmocka_unit_test(a_cluster_without_power_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
