/* SPDX-License-Identifier: MIT
 *
 * test_topology.c -- commands, rows and bytes of the topology. The last third runs random histories
 * of members that join, leave, die, are replaced, while plans are made, fetched, advanced and
 * abandoned, beside a model of the data: writes that were acknowledged by just their quorums, and
 * gainers that fetch from just a read quorum. After every step every write must be seen by every
 * read quorum, of coordinators that are a stage behind, too, and of members that were cut off long
 * ago. SIM_FIRST and SIM_SEEDS choose seeds, SIM_SEED one: then nothing else is run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#include "../../fewer.h"
#include "../../seeds.h"
#include "base/prng.h"
#include "cluster/topology.h"

static struct budget budget;

/* The topology that a test goes on with, and what the last command was answered. */
struct world {
    struct topology *now;
    u64 state_next;
    char reason[TOPOLOGY_REASON_BYTES];
};

static int
setup(void **state)
{
    (void)state;
    budget_init(&budget, "test", GIB(1), NULL);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    assert_int_equal(budget.used_bytes, 0);
    return 0;
}

/* ---- helpers ---- */

static void
bytes_of(const struct topology *topology, struct buf *out)
{
    buf_init(out, &budget);
    assert_true(topology_encode(topology, out));
}

static void
assert_same(const struct topology *a, const struct topology *b)
{
    struct buf left, right;
    bytes_of(a, &left);
    bytes_of(b, &right);
    assert_true(bytes_equal(buf_bytes(&left), buf_bytes(&right)));
    buf_deinit(&left);
    buf_deinit(&right);
}

static struct topology *
decoded(const struct topology *topology)
{
    struct buf bytes;
    bytes_of(topology, &bytes);
    struct topology *copy;
    assert_true(ok(topology_decode(buf_bytes(&bytes), &budget, &copy)));
    buf_deinit(&bytes);
    assert_same(copy, topology);
    return copy;
}

static struct topology_command
through_bytes(const struct topology_command *command)
{
    struct buf first, second;
    buf_init(&first, &budget);
    buf_init(&second, &budget);
    struct topology_command copy;
    assert_true(topology_command_encode(command, &first));
    assert_true(ok(topology_command_decode(buf_bytes(&first), &copy)));
    assert_true(topology_command_encode(&copy, &second));
    assert_true(bytes_equal(buf_bytes(&first), buf_bytes(&second)));
    buf_deinit(&first);
    buf_deinit(&second);
    return copy;
}

/* Applies it to the state and to a decoded copy: the same comes of both; and a refusal or another
 * state changes nothing. */
static status
world_apply(struct world *world, struct topology_command command)
{
    command.state_before = world->now->state_id;
    command.state_after = ++world->state_next;
    struct topology *copy = decoded(world->now);
    struct topology_command other = through_bytes(&command);
    char reason[TOPOLOGY_REASON_BYTES];
    struct topology *next, *next_of_copy;
    status st = topology_apply(world->now, &command, NULL, &next, world->reason);
    assert_true(status_is(topology_apply(copy, &other, NULL, &next_of_copy, reason), st));
    assert_string_equal(reason, world->reason);
    assert_same(copy, world->now);
    assert_true(ok(st) || status_is(st, ST_INVALID));
    assert_int_equal(ok(st), reason[0] == 0);
    assert_int_equal(ok(st), next != NULL);
    if (ok(st)) {
        assert_true(topology_check(next));
        assert_same(next, next_of_copy);
        assert_int_equal(next->epoch, world->now->epoch + 1);
        struct topology *never;
        assert_true(status_is(topology_apply(next, &command, NULL, &never, reason), ST_EXISTS));
        assert_null(never);
        command.state_after = UINT64_MAX;
        assert_true(status_is(topology_apply(next, &command, NULL, &never, reason), ST_CONFLICT));
        assert_null(never);
        topology_release(world->now);
        topology_release(next_of_copy);
        world->now = next;
    }
    topology_release(copy);
    return st;
}

static void
apply_ok(struct world *world, struct topology_command command)
{
    status st = world_apply(world, command);
    if (!ok(st)) fail_msg("refused: %s", world->reason);
}

static void
apply_refused(struct world *world, struct topology_command command, const char *reason)
{
    assert_true(status_is(world_apply(world, command), ST_INVALID));
    assert_string_equal(world->reason, reason);
}

static struct topology_member
node(const char *name, u64 incarnation, const char *rack, const char *datacenter)
{
    struct topology_member member = {
        .weight = 150, .incarnation = incarnation, .peer_port = 9080, .shard_count = 2};
    snprintf(member.node_id, sizeof(member.node_id), "%s", name);
    snprintf(member.host, sizeof(member.host), "host-%s", name);
    snprintf(member.rack, sizeof(member.rack), "%s", rack);
    snprintf(member.datacenter, sizeof(member.datacenter), "%s", datacenter);
    return member;
}

static struct topology_command
found(struct topology_member member, u32 partitions, u32 replicas)
{
    return (struct topology_command){.kind = TOPOLOGY_FOUND,
                                     .cluster_id = 77,
                                     .partition_count = partitions,
                                     .replicas = replicas,
                                     .member = member};
}

static struct topology_command
add(struct topology_member member)
{
    return (struct topology_command){.kind = TOPOLOGY_MEMBER_ADD, .member = member};
}

static struct topology_command
of(u8 kind, u32 number)
{
    return (struct topology_command){.kind = kind, .member = {.number = number}};
}

static struct topology_command
step(u8 kind, u64 session)
{
    return (struct topology_command){.kind = kind, .session = session};
}

static struct topology_command
fetched(u32 number, u64 session)
{
    return (struct topology_command){
        .kind = TOPOLOGY_FETCHED, .member = {.number = number}, .session = session};
}

static void
world_init(struct world *world)
{
    *world = (struct world){.now = topology_new(&budget)};
    assert_non_null(world->now);
    assert_true(topology_check(world->now));
}

static void
fetch_all(struct world *world)
{
    for (u32 number; (number = topology_unfetched(world->now)) != 0;)
        apply_ok(world, fetched(number, world->now->session));
}

/* A command that begins a stage, and the fence of that. */
static void
begin_stage(struct world *world, u8 kind, u64 session)
{
    apply_ok(world, step(kind, session));
    assert_false(topology_fenced(world->now));
    apply_ok(world, step(TOPOLOGY_FENCE, session));
    assert_true(topology_fenced(world->now));
}

static void
plan_through(struct world *world, u64 session)
{
    begin_stage(world, TOPOLOGY_PLAN, session);
    fetch_all(world);
    begin_stage(world, TOPOLOGY_ADVANCE, session);
    apply_ok(world, step(TOPOLOGY_ADVANCE, session));
}

/* A cluster of so many NORMAL members, "n1" on, all of one rack. */
static void
world_grow(struct world *world, u32 count, u32 partitions, u32 replicas)
{
    world_init(world);
    apply_ok(world, found(node("n1", 1, "", ""), partitions, replicas));
    for (u32 i = 2; i <= count; i++) {
        char name[16];
        snprintf(name, sizeof(name), "n%u", i);
        apply_ok(world, add(node(name, i, "", "")));
    }
    if (count > 1) plan_through(world, 1);
}

static void
world_deinit(struct world *world)
{
    topology_release(world->now);
}

/* ---- the foundation ---- */

static void
the_first_member_holds_everything_at_once(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    apply_refused(&world, step(TOPOLOGY_PLAN, 1), "there is no cluster yet");
    apply_refused(&world, found(node("n1", 1, "r", "d"), 100, 3),
                  "the number of partitions is a power of two up to 16384");
    apply_refused(&world, found(node("n1", 1, "r", "d"), 16, 8), "there are 1 to 7 replicas");
    apply_refused(&world, found(node("", 1, "r", "d"), 16, 3),
                  "a node id has 1 to 63 printable characters");
    struct topology_command command = found(node("n1", 1, "r", "d"), 16, 3);
    command.options.write_quorum = 4;
    apply_refused(&world, command, "the write quorum is from 1 to the number of replicas");
    command.options.write_quorum = 3;
    apply_ok(&world, command);
    apply_refused(&world, command, "there is a cluster already");

    const struct topology *now = world.now;
    assert_int_equal(now->epoch, 1);
    assert_int_equal(now->stage_epoch_before, 1);
    assert_int_equal(now->members[0].number, 1);
    assert_int_equal(now->members[0].state, PLACEMENT_NORMAL);
    assert_string_equal(now->keyspaces[0].name, "0");
    assert_int_equal(now->keyspaces[0].conflict, CONFLICT_LWW);
    assert_int_equal(now->keyspaces[0].replicas, 3);
    assert_int_equal(now->keyspaces[0].write_quorum, 3);
    assert_int_equal(now->keyspaces[0].read_quorum, 2);
    for (u32 k = 1; k < LIMIT_KEYSPACES_CLIENT; k++)
        assert_false(now->keyspaces[k].used);
    for (u32 p = 0; p < 16; p++) {
        struct topology_row row;
        topology_row(now, 0, p, &row);
        assert_int_equal(row.count, 1);
        assert_int_equal(row.next_count, 0);
        assert_int_equal(row.write[0], 1);
        assert_int_equal(row.write_quorum, 1); /* one node with N = 3 answers */
        assert_int_equal(row.read_quorum, 1);
        assert_true(topology_holds(now, 1, p));
        assert_false(topology_holds(now, 2, p));
    }
    assert_false(topology_holds(now, 1, 16));
    assert_false(topology_holds(now, 0, 0)); /* empty places are nobody's */
    struct topology_row row;
    topology_row(now, LIMIT_KEYSPACES_CLIENT, 0, &row);
    assert_int_equal(row.count, 0);
    topology_row(now, 0, 16, &row);
    assert_int_equal(row.count, 0);
    world_deinit(&world);
}

/* ---- quorums ---- */

static void
quorums_that_overlap_do_so_in_every_row(void **state)
{
    (void)state;
    for (u32 n = 1; n <= LIMIT_PLACEMENT_REPLICAS; n++)
        for (u32 w = 1; w <= n; w++)
            for (u32 r = 1; r <= n; r++)
                for (u32 places = 1; places <= 3 * n; places++)
                    for (u32 count = 1; count <= places; count++) {
                        u32 write = topology_quorum(w, n, places, count);
                        u32 read = topology_quorum(r, n, places, count);
                        assert_in_range(write, 1, count);
                        if (places == n && count == n) assert_int_equal(write, w);
                        if (places <= n) assert_true(write <= w);
                        if (w + r > n) assert_true(write + read > count);
                        /* A write of the full row, then some are gone; one of its W is left. */
                        u32 full = topology_quorum(w, n, places, places);
                        if (w + r > n && full > places - count)
                            assert_true(full - (places - count) + read > count);
                    }
    assert_int_equal(topology_quorum(2, 3, 1, 1), 1);
    assert_int_equal(topology_quorum(2, 3, 2, 2), 2);
    assert_int_equal(topology_quorum(2, 3, 3, 3), 2);
    assert_int_equal(topology_quorum(2, 3, 3, 2), 2); /* forgotten: not two of two by chance */
    assert_int_equal(topology_quorum(2, 3, 3, 1), 1);
    assert_int_equal(topology_quorum(2, 3, 6, 6), 4);
    assert_int_equal(topology_quorum(2, 3, 0, 0), 1); /* never 0: nobody would acknowledge */
    assert_int_equal(topology_quorum(1, 5, 1, 1), 1);
}

static void
quorums_change_only_so_that_old_and_new_overlap(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 1, 16, 3);
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = 7};
    set.options = world.now->keyspaces[0];
    apply_refused(&world, set, "keyspace 0 is called '0'");
    snprintf(set.options.name, sizeof(set.options.name), "7");
    apply_ok(&world, set);
    set.keyspace = 3;
    snprintf(set.options.name, sizeof(set.options.name), "3");
    apply_ok(&world, set);
    apply_refused(&world, set, "nothing changes");
    set.options.write_quorum = 1;
    set.options.read_quorum = 3; /* old writes 2, new reads 3; new writes 1, old reads 2 */
    apply_refused(&world, set,
                  "the quorums before and after must overlap: raise one of them, repair, then "
                  "lower the other");
    set.options.write_quorum = 2;
    apply_ok(&world, set);
    set.options.write_quorum = 1;
    apply_ok(&world, set);
    set.options.read_quorum = 1; /* gives the overlap up */
    apply_ok(&world, set);
    set.options.conflict = CONFLICT_SIBLINGS;
    apply_refused(&world, set, "how conflicts are resolved cannot change");
    set.options.conflict = CONFLICT_LWW;
    set.options.replicas = 2;
    apply_refused(&world, set, "the number of replicas cannot change");
    set.options.replicas = 4;
    apply_refused(&world, set,
                  "a keyspace has at least one replica, and at most as many as the cluster keeps");
    set.options.replicas = 3;
    snprintf(set.options.name, sizeof(set.options.name), "7");
    apply_refused(&world, set, "keyspace 7 is called '7'");
    snprintf(set.options.name, sizeof(set.options.name), "orders");
    apply_ok(&world, set);
    assert_string_equal(world.now->keyspaces[3].name, "orders");
    set.keyspace = LIMIT_KEYSPACES_CLIENT;
    apply_refused(&world, set, "there are 16 keyspaces");
    world_deinit(&world);
}

/* ---- joins and leaves ---- */

static void
two_nodes_join_one_at_once(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 1, 16, 3);
    apply_ok(&world, add(node("n2", 2, "", "")));
    apply_ok(&world, add(node("n3", 3, "", "")));
    assert_int_equal(topology_member(world.now, 3)->state, PLACEMENT_JOINING);
    assert_int_equal(topology_member_by_id(world.now, "n3")->number, 3);
    apply_refused(&world, step(TOPOLOGY_PLAN, 0), "a plan has a session");
    apply_ok(&world, step(TOPOLOGY_PLAN, 9));
    u64 epoch = world.now->epoch;
    assert_int_equal(world.now->stage, STAGE_WRITE_BOTH);
    assert_int_equal(world.now->stage_epoch, epoch);
    assert_int_equal(world.now->stage_epoch_before, 1);
    apply_refused(&world, step(TOPOLOGY_PLAN, 10), "there is a plan already");

    struct topology_row row;
    topology_row(world.now, 0, 5, &row);
    assert_int_equal(row.count, 1);
    assert_int_equal(row.next_count, 3);
    assert_int_equal(row.write_quorum, 1);
    assert_int_equal(row.write_next_quorum, 2);
    assert_int_equal(row.read_quorum, 1);
    u32 count;
    assert_int_equal(topology_row_read(&row, &count)[0], 1);
    assert_int_equal(count, 1);
    assert_true(topology_holds(world.now, 3, 5)); /* is about to */
    assert_true(topology_gains(world.now, 3, 0, 5));
    assert_false(topology_gains(world.now, 1, 0, 5));
    assert_true(topology_gainer(world.now, 2));
    assert_false(topology_gainer(world.now, 1));

    apply_refused(&world, step(TOPOLOGY_ADVANCE, 9), "the stage is not fenced yet");
    apply_refused(&world, fetched(2, 9), "the stage is not fenced yet");
    apply_refused(&world, step(TOPOLOGY_FENCE, 8), "the plan of this session has ended");
    apply_ok(&world, step(TOPOLOGY_FENCE, 9));
    assert_int_equal(world.now->stage_epoch, epoch);
    assert_int_equal(world.now->stage_epoch_before, epoch);
    apply_refused(&world, step(TOPOLOGY_FENCE, 9), "the stage is fenced already");
    apply_refused(&world, step(TOPOLOGY_ADVANCE, 9), "member 2 has not fetched everything");
    apply_refused(&world, fetched(2, 8), "the plan of this session has ended");
    apply_refused(&world, fetched(1, 9), "member 1 gains nothing");
    apply_ok(&world, fetched(2, 9));
    apply_refused(&world, fetched(2, 9), "member 2 has said so already");
    apply_refused(&world, step(TOPOLOGY_ADVANCE, 9), "member 3 has not fetched everything");
    apply_ok(&world, fetched(3, 9));
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 9));
    assert_int_equal(world.now->stage, STAGE_READ_NEXT);
    assert_int_equal(world.now->stage_epoch_before, epoch);
    topology_row(world.now, 0, 5, &row);
    assert_true(row.read_next);
    assert_int_equal(row.write_quorum, 1);
    assert_int_equal(row.read_quorum, 2);
    apply_refused(&world, step(TOPOLOGY_ABANDON, 9),
                  "reads use the next placement already: the plan can only go on");
    apply_refused(&world, fetched(2, 9), "everything was fetched already");
    apply_refused(&world, step(TOPOLOGY_ADVANCE, 9), "the stage is not fenced yet");
    apply_ok(&world, step(TOPOLOGY_FENCE, 9));
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 9));
    assert_int_equal(world.now->stage, STAGE_NONE);
    assert_int_equal(world.now->session, 0);
    for (u32 number = 1; number <= 3; number++)
        assert_int_equal(topology_member(world.now, number)->state, PLACEMENT_NORMAL);
    apply_refused(&world, step(TOPOLOGY_ADVANCE, 9), "there is no plan");
    apply_refused(&world, step(TOPOLOGY_FENCE, 9), "there is no plan");
    apply_refused(&world, step(TOPOLOGY_PLAN, 10), "there is nothing to plan");
    world_deinit(&world);
}

static void
one_joins_while_another_leaves(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_ok(&world, add(node("n4", 4, "", "")));
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 1));
    apply_refused(&world, of(TOPOLOGY_MEMBER_LEAVE, 1), "member 1 is leaving already");
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    apply_ok(&world, add(node("n5", 5, "", ""))); /* for the next plan */
    assert_true(topology_gainer(world.now, 4));
    assert_false(topology_gainer(world.now, 2));
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 5);
    assert_non_null(topology_member(world.now, 1)); /* writes still meet its quorum */
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));
    assert_null(topology_member(world.now, 1));
    assert_int_equal(topology_member(world.now, 4)->state, PLACEMENT_NORMAL);
    assert_int_equal(topology_member(world.now, 5)->state, PLACEMENT_JOINING);
    plan_through(&world, 6);
    assert_int_equal(topology_member(world.now, 5)->state, PLACEMENT_NORMAL);
    world_deinit(&world);
}

static void
the_last_one_that_holds_everything_stays(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 1, 16, 3);
    apply_ok(&world, add(node("n2", 2, "", "")));
    apply_refused(&world, of(TOPOLOGY_MEMBER_LEAVE, 1),
                  "member 1 is the last one that holds everything");
    apply_refused(&world, of(TOPOLOGY_MEMBER_FORGET, 1),
                  "member 1 is the last one that holds everything: its data would be lost");
    struct topology_member other = node("n1", 9, "", "");
    other.replaces = 1;
    apply_refused(&world, add(other),
                  "member 1 is the last one that holds everything: its data would be lost");
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 2)); /* no plan has it: gone at once */
    assert_int_equal(world.now->member_count, 1);
    apply_refused(&world, of(TOPOLOGY_MEMBER_LEAVE, 2), "there is no member 2");
    world_deinit(&world);
}

/* Refused as before, but the end of the plan makes it one of several: where others join for it, and
 * have fetched. */
static void
the_last_one_is_followed_by_who_has_fetched(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 1, 16, 3);
    assert_true(topology_last_normal(world.now, 1));
    apply_ok(&world, add(node("n2", 2, "", "")));
    assert_false(topology_last_normal(world.now, 2));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    fetch_all(&world);
    assert_false(topology_last_is_followed(world.now, 1));
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));
    apply_ok(&world, add(node("n3", 3, "", ""))); /* not of this plan */
    assert_true(topology_last_is_followed(world.now, 1));
    assert_false(topology_last_is_followed(world.now, 2));
    assert_false(topology_last_is_followed(world.now, 0));
    apply_refused(&world, of(TOPOLOGY_MEMBER_FORGET, 1),
                  "member 1 is the last one that holds everything: its data would be lost");
    apply_ok(&world, step(TOPOLOGY_FENCE, 5));
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));
    assert_false(topology_last_normal(world.now, 1));
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 1));
    assert_true(topology_last_normal(world.now, 2));
    world_deinit(&world);

    world_grow(&world, 2, 16, 3);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 2)); /* and what it has goes with it */
    apply_ok(&world, add(node("n3", 3, "", "")));
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 3));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 5);
    assert_true(topology_last_normal(world.now, 1));
    assert_false(topology_last_is_followed(world.now, 1));
    world_deinit(&world);
}

/* With W = 2 of three, {n2, n3} may have a write that n1 does not have. */
static void
in_a_row_that_gets_shorter_everybody_fetches(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 2));
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 3));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    assert_true(topology_gains(world.now, 1, 0, 0));
    assert_int_equal(topology_unfetched(world.now), 1);
    apply_refused(&world, step(TOPOLOGY_ADVANCE, 5), "member 1 has not fetched everything");
    apply_ok(&world, fetched(1, 5));
    begin_stage(&world, TOPOLOGY_ADVANCE, 5);
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));
    assert_int_equal(world.now->member_count, 1);
    world_deinit(&world);
}

static void
abandoned_plans_leave_nothing_behind(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_ok(&world, add(node("n4", 4, "", "")));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 4)); /* the plan has it: not at once */
    assert_int_equal(topology_member(world.now, 4)->state, PLACEMENT_LEAVING);
    apply_ok(&world, fetched(4, 5));
    apply_refused(&world, step(TOPOLOGY_ABANDON, 4), "the plan of this session has ended");
    apply_ok(&world, step(TOPOLOGY_ABANDON, 5));
    assert_int_equal(world.now->stage, STAGE_NONE);
    assert_false(topology_member(world.now, 4)->fetched);
    assert_false(topology_holds(world.now, 4, 0));
    assert_int_equal(world.now->stage_epoch, world.now->epoch);
    apply_ok(&world, step(TOPOLOGY_PLAN, 6)); /* moves nothing: it is gone at once */
    assert_int_equal(world.now->stage, STAGE_NONE);
    assert_null(topology_member(world.now, 4));
    world_deinit(&world);
}

static u8
state_of(const struct world *world, u32 number)
{
    return topology_member(world->now, number)->state;
}

/* Before a plan, while one takes what it has, and while one does not. */
static void
a_leave_is_taken_back(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_refused(&world, of(TOPOLOGY_MEMBER_STAY, 2), "member 2 is not leaving");
    apply_refused(&world, of(TOPOLOGY_MEMBER_STAY, 9), "there is no member 9");
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 2));
    u64 stage_epoch = world.now->stage_epoch;
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 2));
    assert_int_equal(state_of(&world, 2), PLACEMENT_NORMAL);
    assert_int_equal(world.now->stage_epoch, stage_epoch); /* there is no plan */
    apply_refused(&world, step(TOPOLOGY_PLAN, 5), "there is nothing to plan");

    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 2));
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 3));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    apply_ok(&world, fetched(1, 5));
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 3));
    assert_int_equal(world.now->stage, STAGE_NONE); /* it would have had no place */
    assert_int_equal(world.now->stage_epoch, world.now->epoch);
    assert_false(topology_member(world.now, 1)->fetched);
    assert_int_equal(state_of(&world, 2), PLACEMENT_LEAVING);
    assert_int_equal(state_of(&world, 3), PLACEMENT_NORMAL);
    plan_through(&world, 6);
    assert_null(topology_member(world.now, 2));
    assert_true(topology_holds(world.now, 3, 0));

    apply_ok(&world, add(node("n4", 4, "", "")));
    begin_stage(&world, TOPOLOGY_PLAN, 7);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 3)); /* for the next plan */
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 3));
    assert_int_equal(world.now->stage, STAGE_WRITE_BOTH);
    world_deinit(&world);
}

static void
a_leave_is_not_taken_back_once_reads_use_the_places_of_others(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 4, 16, 3);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 4));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 5);
    apply_refused(&world, of(TOPOLOGY_MEMBER_STAY, 4),
                  "reads use the places of others already: member 4 goes; let it join again when "
                  "it has left, with an empty directory");
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 3)); /* for the next plan */
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 3));
    assert_int_equal(state_of(&world, 3), PLACEMENT_NORMAL);
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));
    assert_null(topology_member(world.now, 4));
    world_deinit(&world);
}

/* Who was told to leave as it joined joins again, for whom it did; who lost its copies has its
 * places. */
static void
a_leave_that_is_taken_back_leads_to_what_was_before(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    struct topology_member other = node("n4", 4, "", "");
    other.replaces = 3;
    apply_ok(&world, add(other));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 4));
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 4));
    assert_int_equal(state_of(&world, 4), PLACEMENT_JOINING);
    assert_int_equal(world.now->stage, STAGE_WRITE_BOTH);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 4));
    apply_ok(&world, step(TOPOLOGY_ABANDON, 5));
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 4));
    assert_int_equal(state_of(&world, 4), PLACEMENT_JOINING);
    assert_int_equal(topology_member(world.now, 4)->replaces, 3);
    plan_through(&world, 6);
    assert_int_equal(state_of(&world, 4), PLACEMENT_NORMAL);

    struct topology_command lost = of(TOPOLOGY_LOST, 2);
    lost.partition_count = 16;
    apply_ok(&world, lost);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 2));
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 2));
    assert_int_equal(state_of(&world, 2), PLACEMENT_NORMAL);
    world_deinit(&world);
}

/* The only one that stays is lost: no plan gets on without it, and it cannot be called dead. */
static void
the_last_one_is_given_up_once_another_one_stays(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 2));
    apply_ok(&world, of(TOPOLOGY_MEMBER_LEAVE, 3));
    apply_refused(&world, of(TOPOLOGY_MEMBER_FORGET, 1),
                  "member 1 is the last one that holds everything: its data would be lost; "
                  "first take back that 'n2' leaves");
    struct topology_member other = node("n1", 9, "", "");
    other.replaces = 1;
    apply_refused(&world, add(other),
                  "member 1 is the last one that holds everything: its data would be lost; "
                  "first take back that 'n2' leaves");
    apply_ok(&world, of(TOPOLOGY_MEMBER_STAY, 2));
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 1));
    plan_through(&world, 5);
    assert_int_equal(world.now->member_count, 1);
    assert_int_equal(state_of(&world, 2), PLACEMENT_NORMAL);
    assert_true(topology_holds(world.now, 2, 0));
    world_deinit(&world);
}

static bool
is_in(void *arg, u32 number)
{
    return (*(const u64 *)arg >> number & 1) != 0;
}

/* Who keeps reading from the old places is left behind only where a quorum of them knows better. */
static void
readers_of_the_old_places_hold_up_the_end(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 1, 16, 3);
    u64 knows = 1 << 2 | 1 << 3;
    assert_true(topology_may_leave_behind(world.now, is_in, &knows)); /* there is no plan */
    apply_ok(&world, add(node("n2", 2, "", "")));
    apply_ok(&world, add(node("n3", 3, "", "")));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 5);
    /* The only one of each row that there was is a read quorum. */
    assert_false(topology_may_leave_behind(world.now, is_in, &knows));
    knows = 1 << 1 | 1 << 3;
    assert_true(topology_may_leave_behind(world.now, is_in, &knows));
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));

    apply_ok(&world, add(node("n4", 4, "", "")));
    begin_stage(&world, TOPOLOGY_PLAN, 6);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 6);
    knows = 1 << 1 | 1 << 2;
    assert_true(topology_may_leave_behind(world.now, is_in, &knows)); /* one of three lacks it */
    knows = 1 << 1 | 1 << 4;
    assert_false(topology_may_leave_behind(world.now, is_in, &knows)); /* two of three */
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 3));
    assert_true(topology_may_leave_behind(world.now, is_in, &knows)); /* one of two, R = 2 */
    world_deinit(&world);
}

/* Where all three are asked, two who are left behind would still answer reads at level QUORUM. */
static void
readers_by_a_majority_hold_up_the_end_where_all_are_asked(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    struct topology_command set = {
        .kind = TOPOLOGY_KEYSPACE_SET,
        .options = {.replicas = 3, .write_quorum = 2, .read_quorum = 3, .name = "0"}};
    apply_ok(&world, set);
    apply_ok(&world, add(node("n4", 4, "", "")));
    begin_stage(&world, TOPOLOGY_PLAN, 6);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 6);
    u64 knows = 1 << 1 | 1 << 2 | 1 << 4;
    assert_true(topology_may_leave_behind(world.now, is_in, &knows));
    knows = 1 << 1 | 1 << 4;
    assert_false(topology_may_leave_behind(world.now, is_in, &knows));
    world_deinit(&world);
}

/* ---- the dead ---- */

static void
the_places_of_a_forgotten_one_count_until_they_are_given_away(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 2));
    assert_null(topology_member(world.now, 2));
    struct topology_row row;
    topology_row(world.now, 0, 4, &row);
    assert_int_equal(row.count, 2);
    assert_int_equal(row.places, 3);
    assert_int_equal(row.write_quorum, 2); /* one of the two alone may not have what 2 had */
    assert_int_equal(row.read_quorum, 2);
    assert_false(topology_holds(world.now, 2, 4));
    plan_through(&world, 5);
    topology_row(world.now, 0, 4, &row);
    assert_int_equal(row.count, 2);
    assert_int_equal(row.places, 2);
    world_deinit(&world);
}

static struct topology_command
lost(u32 number, u32 first, u32 count)
{
    return (struct topology_command){.kind = TOPOLOGY_LOST,
                                     .member = {.number = number},
                                     .partition_first = first,
                                     .partition_count = count};
}

static void
who_lost_a_part_holds_it_again_after_the_next_plan(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_refused(&world, lost(2, 15, 2), "there are 16 partitions");
    apply_refused(&world, of(TOPOLOGY_MENDED, 2), "member 2 has lost nothing");
    u64 stage_epoch = world.now->stage_epoch;
    apply_ok(&world, lost(2, 4, 2));
    assert_true(world.now->stage_epoch > stage_epoch);
    assert_int_equal(world.now->stage_epoch_before, stage_epoch);
    assert_int_equal(topology_mending(world.now), 2);
    apply_refused(&world, lost(2, 4, 2), "member 2 holds none of these");
    assert_true(topology_holds(world.now, 2, 3));
    assert_false(topology_holds(world.now, 2, 4));
    assert_false(topology_holds(world.now, 2, 5));
    assert_true(topology_holds(world.now, 2, 6));
    struct topology_row row;
    topology_row(world.now, 0, 4, &row);
    assert_int_equal(row.count, 2);
    assert_int_equal(row.places, 3);
    assert_int_equal(row.write_quorum, 2); /* one of the two alone may not have what 2 had */
    assert_int_equal(row.read_quorum, 2);
    /* Nothing is planned before what damage has left is removed. */
    apply_refused(&world, step(TOPOLOGY_PLAN, 5), "member 2 removes what was damaged");
    apply_ok(&world, lost(2, 4, 3)); /* more of it */
    apply_ok(&world, of(TOPOLOGY_MENDED, 2));
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    apply_refused(&world, lost(2, 1, 1), "a plan is under way");
    for (u32 p = 0; p < 16; p++) {
        assert_int_equal(topology_gains(world.now, 2, 0, p), p >= 4 && p <= 6);
        assert_false(topology_gains(world.now, 1, 0, p));
        assert_false(topology_gains(world.now, 3, 0, p));
    }
    apply_refused(&world, step(TOPOLOGY_ADVANCE, 5), "member 2 has not fetched everything");
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 5);
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));
    topology_row(world.now, 0, 4, &row);
    assert_int_equal(row.count, 3);
    world_deinit(&world);
}

static void
nobody_loses_what_the_others_may_lack(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    struct topology_row row;
    topology_row(world.now, 0, 7, &row);
    /* One after the other, whatever they lost. */
    char reason[64];
    snprintf(reason, sizeof(reason), "member %u is mended first", row.write[1]);
    apply_ok(&world, lost(row.write[1], 7, 1));
    apply_refused(&world, lost(row.write[0], 6, 1), reason);
    apply_ok(&world, of(TOPOLOGY_MENDED, row.write[1]));
    apply_refused(&world, lost(row.write[0], 6, 1), reason);
    plan_through(&world, 5);
    /* A keyspace of one copy: that one stays; W = 1 of three: all do. */
    struct topology_command set = {
        .kind = TOPOLOGY_KEYSPACE_SET,
        .keyspace = 1,
        .options = {.replicas = 1, .write_quorum = 1, .read_quorum = 1, .name = "one"}};
    apply_ok(&world, set);
    topology_row(world.now, 0, 7, &row);
    apply_refused(&world, lost(row.write[0], 7, 1), "too few others have partition 7");
    assert_true(topology_may_lose(world.now, row.write[2], 7));
    set.keyspace = 2;
    set.options = (struct topology_keyspace){
        .replicas = 3, .write_quorum = 1, .read_quorum = 3, .name = "fast"};
    apply_ok(&world, set);
    assert_false(topology_may_lose(world.now, row.write[2], 7));
    world_deinit(&world);

    /* Two of three have each write: of two who are left none can be spared. All or nothing. */
    world_grow(&world, 4, 16, 3);
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 2));
    u32 spared = 0, short_of = 0;
    for (u32 p = 0; p < 16; p++) {
        topology_row(world.now, 0, p, &row);
        if (row.count == 3)
            spared = p;
        else
            short_of = p;
    }
    topology_row(world.now, 0, short_of, &row);
    assert_false(topology_may_lose(world.now, row.write[0], short_of));
    u32 first = MIN(spared, short_of), last = MAX(spared, short_of);
    assert_true(
        status_is(world_apply(&world, lost(row.write[0], first, last - first + 1)), ST_INVALID));
    assert_int_equal(topology_mending(world.now), 0);
    world_deinit(&world);

    /* W = N, R = 1: who still asks the member alone would miss what the others alone have. */
    struct topology_keyspace all = {.replicas = 3, .write_quorum = 3, .read_quorum = 1};
    assert_false(topology_may_spare(&all, 3, 3));
    all.read_quorum = 2;
    assert_true(topology_may_spare(&all, 3, 3));
    all.write_quorum = 2;
    assert_true(topology_may_spare(&all, 3, 3));
    assert_true(topology_may_spare(&all, 2, 2));
    assert_false(topology_may_spare(&all, 3, 2));
    assert_false(topology_may_spare(&all, 1, 1));
}

/* Whoever is forgotten meanwhile is gone, and its replacement takes the places that it lost, too.
 */
static void
who_lost_a_part_may_be_forgotten_and_replaced(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 4, 16, 3);
    u32 held = 0;
    for (u32 p = 0; p < 16; p++)
        held += topology_holds(world.now, 2, p);
    u32 p = 0;
    while (!topology_holds(world.now, 2, p))
        p++;
    apply_ok(&world, lost(2, p, 1));
    struct topology_member wiped = node("n2", 99, "", "");
    wiped.replaces = 2;
    apply_ok(&world, add(wiped));
    assert_int_equal(topology_mending(world.now), 0);
    plan_through(&world, 5);
    u32 taken = 0;
    for (u32 i = 0; i < 16; i++)
        taken += topology_holds(world.now, 5, i);
    assert_int_equal(taken, held);
    assert_true(topology_holds(world.now, 5, p));
    world_deinit(&world);
}

/* Wiped, it comes back under its node id: as another member, in the same places. */
static void
a_wiped_disk_comes_back_as_a_replacement(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 5, 64, 3);
    struct placement before = world.now->current;
    u32 ids[64 * 3];
    memcpy(ids, before.ids, sizeof(ids));
    struct topology_member wiped = node("n2", 99, "", "");
    apply_refused(&world, add(node("n2", 2, "", "")), "'n2' is member 2 already");
    apply_refused(&world, add(wiped),
                  "'n2' is member 2, whose data this node does not have: it must join as its "
                  "replacement");
    struct topology_command set = {.kind = TOPOLOGY_MEMBER_SET, .member = wiped};
    apply_refused(&world, set,
                  "'n2' is member 2, whose data this node does not have: it must join as its "
                  "replacement");
    wiped.replaces = 3;
    apply_refused(&world, add(wiped),
                  "'n2' is member 2, whose data this node does not have: it must join as its "
                  "replacement");
    wiped.replaces = 6;
    wiped.node_id[1] = 'x';
    apply_refused(&world, add(wiped), "6 never was a member");
    wiped.replaces = 0;
    apply_refused(&world, add(wiped), "member 2, 'n2', listens at these ports");
    wiped.node_id[1] = '2';
    wiped.replaces = 2;
    apply_ok(&world, add(wiped)); /* at the same address: 2 is gone */
    assert_null(topology_member(world.now, 2));
    const struct topology_member *member = topology_member_by_id(world.now, "n2");
    assert_int_equal(member->number, 6);
    assert_int_equal(member->stamp, 5); /* not that of 2 */
    assert_int_equal(member->replaces, 2);
    struct topology_member third = node("n7", 7, "", "");
    third.replaces = 2;
    apply_refused(&world, add(third), "member 6 replaces member 2 already");

    /* It dies before it was ever given anything: who replaces it gets the places of 2. */
    third.replaces = 6;
    apply_ok(&world, add(third));
    assert_int_equal(topology_member_by_id(world.now, "n7")->replaces, 2);
    begin_stage(&world, TOPOLOGY_PLAN, 5);
    for (u32 k = 0; k < ARRAY_COUNT(ids); k++)
        assert_int_equal(world.now->next.ids[k], ids[k] == 2 ? 7 : ids[k]);
    for (u32 number = 1; number <= 5; number++)
        assert_false(topology_gainer(world.now, number));
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 5);
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 5));
    assert_int_equal(topology_member(world.now, 7)->replaces, 0);
    world_deinit(&world);
}

static void
a_plan_ends_when_a_gainer_is_forgotten(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_ok(&world, add(node("n4", 4, "", "")));
    apply_ok(&world, step(TOPOLOGY_PLAN, 5));
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 3)); /* gains nothing: the plan goes on */
    assert_int_equal(world.now->stage, STAGE_WRITE_BOTH);
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 4));
    assert_int_equal(world.now->stage, STAGE_NONE);
    assert_int_equal(world.now->stage_epoch, world.now->epoch);

    /* Later it can only go on; the dead one's places stay marked. */
    apply_ok(&world, add(node("n5", 5, "", "")));
    begin_stage(&world, TOPOLOGY_PLAN, 6);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 6);
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 5));
    assert_int_equal(world.now->stage, STAGE_READ_NEXT);
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 6));
    struct topology_row row;
    topology_row(world.now, 0, 0, &row);
    assert_int_equal(row.count, 2);
    assert_int_equal(row.places, 3);
    world_deinit(&world);
}

static void
stamps_come_back_as_late_as_can_be(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 1, 1, 1);
    for (u32 i = 1; i < 2 * TOPOLOGY_STAMPS; i++) {
        apply_ok(&world, add(node("n2", i + 1, "", "")));
        const struct topology_member *member = topology_member(world.now, i + 1);
        /* 0 is taken all the time. */
        assert_int_equal(member->stamp, (i - 1) % (TOPOLOGY_STAMPS - 1) + 1);
        apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, i + 1));
    }
    world_deinit(&world);
}

/* ---- addresses, names, data centers ---- */

static void
members_change_their_address_but_not_who_they_are(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 2, 16, 3);
    struct topology_command set = {.kind = TOPOLOGY_MEMBER_SET, .member = node("n2", 2, "", "")};
    apply_refused(&world, set, "nothing changes");
    snprintf(set.member.host, sizeof(set.member.host), "host-n1");
    apply_refused(&world, set, "member 1, 'n1', listens at these ports");
    set.member.peer_port = 9081; /* 9080 and 9081 are its shards' */
    apply_refused(&world, set, "member 1, 'n1', listens at these ports");
    set.member.peer_port = 9082;
    set.member.shard_count = 65;
    apply_refused(&world, set, "a node has 1 to 64 shards");
    set.member.shard_count = 4;
    snprintf(set.member.rack, sizeof(set.member.rack), "r9");
    apply_ok(&world, set);
    assert_string_equal(topology_member(world.now, 2)->host, "host-n1");
    assert_string_equal(topology_member(world.now, 2)->rack, "r9");
    snprintf(set.member.datacenter, sizeof(set.member.datacenter), "other");
    apply_refused(&world, set, "a member stays in its data center, ''");
    set.member.number = 1;
    apply_refused(&world, set, "member 1 is not 'n2'");
    apply_refused(&world, add(node("copy", 2, "", "")),
                  "member 2 has this incarnation: was its directory copied?");
    struct topology_command weight = of(TOPOLOGY_WEIGHT_SET, 2);
    apply_refused(&world, weight, "a node has 1 to 65535 virtual nodes");
    weight.member.weight = 150;
    apply_refused(&world, weight, "nothing changes");
    weight.member.weight = 75;
    apply_ok(&world, weight);
    struct topology_command odd = {.kind = 99};
    struct buf buf;
    buf_init(&buf, &budget);
    assert_false(topology_command_encode(&odd, &buf));
    odd = add(node("n3", 3, "", ""));
    memset(odd.member.rack, 'r', sizeof(odd.member.rack)); /* does not end */
    assert_false(topology_command_encode(&odd, &buf));
    assert_int_equal(buf.size, 0);
    buf_deinit(&buf);
    world_deinit(&world);
}

/* A log may have a plan of before: it is applied as it was, whoever reads it. */
static void
a_plan_of_before_is_dealt_as_it_was(void **state)
{
    (void)state;
    for (u32 i = 0; i < 2; i++) {
        struct world world;
        world_grow(&world, 1, 64, 1);
        apply_ok(&world, add(node("n2", 2, "", "")));
        apply_ok(&world, step(i == 0 ? TOPOLOGY_PLAN_IN_ORDER : TOPOLOGY_PLAN, 1));
        u32 gained_low = 0, gained = 0;
        for (u32 p = 0; p < 64; p++) {
            gained += topology_gains(world.now, 2, 0, p);
            gained_low += p < 32 && topology_gains(world.now, 2, 0, p);
        }
        assert_int_equal(gained, 32);
        assert_int_equal(gained_low, i == 0 ? 32 : 16);
        world_deinit(&world);
    }
}

/* Partitions of a keyspace that a member holds. */
static u32
holds_of_keyspace(const struct topology *now, u32 keyspace, u32 number)
{
    u32 count = 0;
    for (u32 p = 0; p < now->partition_count; p++) {
        struct topology_row row;
        topology_row(now, keyspace, p, &row);
        count += topology_row_has(&row, number);
    }
    return count;
}

/* A keyspace of fewer replicas is on the first places of rows. Where only their order changes its
 * data moves as any does, and that of the others stays. */
static void
an_order_that_changes_is_a_move_for_fewer_replicas(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    apply_ok(&world, found(node("n1", 1, "", ""), 64, 3));
    apply_ok(&world, add(node("n2", 2, "", "")));
    apply_ok(&world, add(node("n3", 3, "", "")));
    begin_stage(&world, TOPOLOGY_PLAN_SCATTERED, 1);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 1);
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 1));
    apply_refused(&world, step(TOPOLOGY_PLAN_SCATTERED, 2), "there is nothing to plan");
    apply_ok(&world,
             (struct topology_command){
                 .kind = TOPOLOGY_KEYSPACE_SET,
                 .keyspace = 1,
                 .options = {.replicas = 2, .write_quorum = 2, .read_quorum = 1, .name = "two"}});
    u32 before[4], most = 0, least = 64;
    for (u32 n = 1; n <= 3; n++) {
        before[n] = holds_of_keyspace(world.now, 1, n);
        most = MAX(most, before[n]);
        least = MIN(least, before[n]);
    }
    assert_true(most - least > 10);

    begin_stage(&world, TOPOLOGY_PLAN, 2);
    u32 gained = 0;
    for (u32 p = 0; p < 64; p++) {
        struct topology_row row;
        topology_row(world.now, 1, p, &row);
        assert_true(row.count == 2 && row.next_count == 2 && row.write_next_quorum == 2);
        for (u32 n = 1; n <= 3; n++) {
            bool gains = topology_gains(world.now, n, 1, p);
            assert_int_equal(gains,
                             topology_row_has_or_will(&row, n) && !topology_row_has(&row, n));
            assert_false(topology_gains(world.now, n, 0, p));
            gained += gains;
        }
    }
    assert_in_range(gained, most - 43, most - 42 + 2);
    char reason[TOPOLOGY_REASON_BYTES];
    u32 number = topology_unfetched(world.now);
    assert_true(number != 0);
    snprintf(reason, sizeof(reason), "member %u has not fetched everything", number);
    apply_refused(&world, step(TOPOLOGY_ADVANCE, 2), reason);
    fetch_all(&world);
    begin_stage(&world, TOPOLOGY_ADVANCE, 2);
    apply_ok(&world, step(TOPOLOGY_ADVANCE, 2));
    for (u32 n = 1; n <= 3; n++) {
        assert_in_range(holds_of_keyspace(world.now, 1, n), 42, 43);
        assert_int_equal(holds_of_keyspace(world.now, 0, n), 64);
    }
    apply_refused(&world, step(TOPOLOGY_PLAN, 3), "there is nothing to plan");
    world_deinit(&world);
}

/* Whatever the order in which they came, and though a name may come before others. */
static void
data_centers_and_racks_are_kept_apart_by_their_names(void **state)
{
    (void)state;
    struct world world;
    world_init(&world);
    apply_ok(&world, found(node("a1", 1, "r1", "west"), 64, 3));
    apply_ok(&world, add(node("a2", 2, "r2", "west")));
    apply_ok(&world, add(node("a3", 3, "r3", "west")));
    apply_ok(&world, add(node("a4", 4, "r3", "west")));
    plan_through(&world, 1);
    apply_ok(&world, add(node("b1", 5, "r1", "east")));
    apply_ok(&world, add(node("b2", 6, "r2", "east")));
    apply_ok(&world, add(node("b3", 7, "r1", "east")));
    apply_refused(&world, add(node("c1", 8, "r1", "north")),
                  "at most 7 replicas of a key in all data centers together");
    plan_through(&world, 2);
    assert_int_equal(world.now->current.width, 6);
    for (u32 p = 0; p < 64; p++) {
        struct topology_row row;
        topology_row(world.now, 0, p, &row);
        assert_int_equal(row.count, 6);
        assert_int_equal(row.write_quorum, 4);
        u32 racks = 0;
        for (u32 k = 0; k < 6; k++) {
            const struct topology_member *member = topology_member(world.now, row.write[k]);
            assert_string_equal(member->datacenter, k < 3 ? "east" : "west");
            if (k >= 3) racks |= 1u << (member->rack[1] - '0');
        }
        assert_int_equal(racks, 0xe); /* three racks of west hold everything each */
    }
    world_deinit(&world);
}

static void
a_thousand_members_and_no_more(void **state)
{
    (void)state;
    struct topology *now = topology_new(&budget), *next;
    char reason[TOPOLOGY_REASON_BYTES];
    struct topology_command command = found(node("n", 1, "", ""), 4096, 3);
    for (u32 i = 1; i <= LIMIT_PLACEMENT_NODES + 1; i++) {
        command.state_before = now->state_id;
        command.state_after = i;
        snprintf(command.member.node_id, sizeof(command.member.node_id), "n%u", i);
        snprintf(command.member.host, sizeof(command.member.host), "h%u", i);
        snprintf(command.member.rack, sizeof(command.member.rack), "r%u", i % 50);
        command.member.incarnation = i;
        status st = topology_apply(now, &command, NULL, &next, reason);
        command.kind = TOPOLOGY_MEMBER_ADD;
        if (i > LIMIT_PLACEMENT_NODES) {
            assert_true(status_is(st, ST_INVALID));
            assert_string_equal(reason, "a cluster has at most 1024 members");
            continue;
        }
        assert_true(ok(st));
        topology_release(now);
        now = next;
    }
    assert_true(topology_check(now));
    topology_release(now);
}

/* ---- memory and bytes ---- */

/* With a byte more each time until it works: a refusal changes nothing and keeps nothing. */
static void
too_little_memory_is_a_refusal(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    apply_ok(&world, add(node("n4", 4, "", "")));
    struct topology_command command = step(TOPOLOGY_PLAN, 5);
    command.state_before = world.now->state_id;
    command.state_after = 1000;
    u32 refused = 0;
    struct topology *next = NULL;
    char reason[TOPOLOGY_REASON_BYTES];
    for (budget.limit_bytes = 0;; budget.limit_bytes += 64) {
        status st = topology_apply(world.now, &command, NULL, &next, reason);
        if (ok(st)) break;
        assert_true(status_is(st, ST_NO_MEMORY));
        refused++;
    }
    budget.limit_bytes = GIB(1);
    assert_true(refused > 50);
    struct buf bytes;
    bytes_of(next, &bytes);
    struct topology *copy = NULL;
    refused = 0;
    for (budget.limit_bytes = budget.used_bytes;; budget.limit_bytes += 64) {
        status st = topology_decode(buf_bytes(&bytes), &budget, &copy);
        if (ok(st)) break;
        assert_true(status_is(st, ST_NO_MEMORY));
        refused++;
    }
    budget.limit_bytes = GIB(1);
    assert_true(refused > 20);
    topology_hold(copy);
    topology_release(copy);
    assert_same(copy, next);
    topology_release(copy);
    topology_release(next);
    buf_deinit(&bytes);
    world_deinit(&world);
}

/* It is no damage, which would be asked for again, and it is not read as something else. */
static void
what_a_later_version_wrote_is_told_from_damage(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    struct buf bytes;
    bytes_of(world.now, &bytes);
    struct topology *copy = NULL;
    u64 used = budget.used_bytes;
    for (u32 format = 0; format <= UINT8_MAX; format++) {
        if (format == 1) continue;
        bytes.data[0] = (u8)format;
        status st = topology_decode(buf_bytes(&bytes), &budget, &copy);
        assert_true(status_is(st, format <= 3 ? ST_CORRUPT : ST_UNSUPPORTED));
        assert_null(copy);
        assert_int_equal(budget.used_bytes, used);
    }
    /* Whatever stands behind it. */
    bytes.data[0] = 4;
    assert_true(status_is(topology_decode(BYTES(bytes.data, 1), &budget, &copy), ST_UNSUPPORTED));
    buf_deinit(&bytes);
    world_deinit(&world);
}

static void
only_who_lost_a_part_makes_the_latest_format(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    struct buf bytes;
    u8 formats[] = {1, 3, 3, 1};
    for (u32 i = 0; i < ARRAY_COUNT(formats); i++) {
        if (i == 1) apply_ok(&world, lost(2, 4, 1));
        if (i == 2) apply_ok(&world, of(TOPOLOGY_MENDED, 2));
        if (i == 3) plan_through(&world, 5);
        bytes_of(world.now, &bytes);
        assert_int_equal(bytes.data[0], formats[i]);
        buf_deinit(&bytes);
    }
    world_deinit(&world);
}

/* So nodes that do not know sloppy keyspaces can be there until one is made, and again when none
 * is.
 */
static void
only_what_is_sloppy_is_of_the_later_format(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = 5};
    set.options = world.now->keyspaces[0];
    snprintf(set.options.name, sizeof(set.options.name), "5");
    struct buf bytes;
    for (u32 sloppy = 0; sloppy < 4; sloppy++) {
        set.options.sloppy = sloppy % 2 == 1;
        buf_init(&bytes, &budget);
        assert_true(topology_command_encode(&set, &bytes));
        assert_int_equal(bytes.data[0], set.options.sloppy ? 2 : 1);
        struct topology_command same;
        assert_true(ok(topology_command_decode(buf_bytes(&bytes), &same)));
        assert_int_equal(same.options.sloppy, set.options.sloppy);
        buf_deinit(&bytes);
        apply_ok(&world, set);
        assert_int_equal(world.now->keyspaces[5].sloppy, set.options.sloppy);
        bytes_of(world.now, &bytes);
        assert_int_equal(bytes.data[0], set.options.sloppy ? 2 : 1);
        struct topology *copy = NULL;
        assert_true(ok(topology_decode(buf_bytes(&bytes), &budget, &copy)));
        assert_same(copy, world.now);
        topology_release(copy);
        buf_deinit(&bytes);
    }
    apply_refused(&world, set, "nothing changes");
    world_deinit(&world);
}

/* Who makes dots of its own must have what was acknowledged of them before. */
static void
what_keeps_siblings_is_not_sloppy(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 16, 3);
    struct topology_command set = {.kind = TOPOLOGY_KEYSPACE_SET, .keyspace = 5};
    set.options = world.now->keyspaces[0];
    set.options.conflict = CONFLICT_SIBLINGS;
    set.options.sloppy = true;
    snprintf(set.options.name, sizeof(set.options.name), "5");
    apply_refused(&world, set, "a keyspace that keeps siblings cannot be sloppy");
    world_deinit(&world);
}

/* What decodes after a change of a byte is valid and encodes to the same; what is cut never does.
 */
static void
every_byte_is_checked(void **state)
{
    (void)state;
    struct world world;
    world_grow(&world, 3, 2, 3);
    apply_ok(&world, add(node("n4", 4, "r", "")));
    apply_ok(&world, of(TOPOLOGY_MEMBER_FORGET, 2));
    apply_ok(&world, step(TOPOLOGY_PLAN, 5));
    struct buf bytes;
    bytes_of(world.now, &bytes);
    struct topology *copy;
    for (size_t i = 0; i < bytes.size; i++) {
        assert_true(status_is(topology_decode(BYTES(bytes.data, i), &budget, &copy), ST_CORRUPT));
        u8 was = bytes.data[i];
        for (u32 bit = 0; bit < 8; bit++) {
            bytes.data[i] = was ^ (u8)(1u << bit);
            if (!ok(topology_decode(buf_bytes(&bytes), &budget, &copy))) continue;
            assert_true(topology_check(copy));
            struct buf again;
            bytes_of(copy, &again);
            assert_true(bytes_equal(buf_bytes(&again), buf_bytes(&bytes)));
            buf_deinit(&again);
            topology_release(copy);
        }
        bytes.data[i] = was;
    }
    assert_true(buf_append(&bytes, "", 1));
    assert_true(status_is(topology_decode(buf_bytes(&bytes), &budget, &copy), ST_CORRUPT));
    buf_clear(&bytes, 0);
    struct topology_command command = found(node("n1", 1, "r", "d"), 16, 3), out;
    assert_true(topology_command_encode(&command, &bytes));
    for (size_t i = 0; i < bytes.size; i++)
        assert_true(status_is(topology_command_decode(BYTES(bytes.data, i), &out), ST_CORRUPT));
    buf_deinit(&bytes);
    world_deinit(&world);
}

/* Each breaks one of what topology.c promises of itself. */
static void
break_order(struct topology *t)
{
    t->members[1].number = t->members[0].number;
}
static void
break_stamp(struct topology *t)
{
    t->members[1].stamp = t->members[0].stamp;
}
static void
break_node_id(struct topology *t)
{
    memcpy(t->members[1].node_id, t->members[0].node_id, TOPOLOGY_NAME_BYTES);
}
static void
break_incarnation(struct topology *t)
{
    t->members[1].incarnation = t->members[0].incarnation;
}
static void
break_normal(struct topology *t)
{
    for (u32 i = 0; i < t->member_count; i++)
        t->members[i].state = PLACEMENT_LEAVING;
}
static void
break_joining(struct topology *t)
{
    t->members[0].state = PLACEMENT_JOINING; /* and holds something */
}
static void
break_hole(struct topology *t)
{
    t->current.ids[0] = PLACEMENT_NONE;
}
static void
break_stranger(struct topology *t)
{
    t->current.ids[0] = t->next_number;
}
static void
break_gone_member(struct topology *t)
{
    t->next.ids[0] |= TOPOLOGY_GONE;
}
static void
break_mending(struct topology *t)
{
    t->members[0].mending = true; /* there is a plan */
}
static void
break_twice(struct topology *t)
{
    t->next.ids[1] = t->next.ids[0];
}
static void
break_session(struct topology *t)
{
    t->session = 0;
}
static void
break_stage(struct topology *t)
{
    t->stage = STAGE_NONE;
}
static void
break_epoch(struct topology *t)
{
    t->stage_epoch = t->epoch + 1;
}
static void
break_fence(struct topology *t)
{
    t->members[3].fetched = true;
}
static void
break_keyspace(struct topology *t)
{
    t->keyspaces[0].write_quorum = 4;
}
static void
break_keyspace_name(struct topology *t)
{
    t->keyspaces[2] = t->keyspaces[0];
}
static void
break_datacenters(struct topology *t)
{
    snprintf(t->members[0].datacenter, TOPOLOGY_NAME_BYTES, "a");
    snprintf(t->members[1].datacenter, TOPOLOGY_NAME_BYTES, "b");
}

static void
who_gains_asks_one_of_any_write_quorum(void **state)
{
    (void)state;
    static struct topology topology;
    struct topology_keyspace *options = &topology.keyspaces[0];
    options->used = true;
    for (u32 n = 1; n <= LIMIT_PLACEMENT_REPLICAS; n++)
        for (u32 w = 1; w <= n; w++)
            for (u32 r = 1; r <= n; r++)
                for (u32 places = 1; places <= 3 * n; places++)
                    for (u32 count = 1; count <= places; count++) {
                        options->replicas = (u8)n;
                        options->write_quorum = (u8)w;
                        options->read_quorum = (u8)r;
                        struct topology_row row = {.places = places, .count = count};
                        u32 asked = topology_fetch_quorum(&topology, 0, &row);
                        u32 read = topology_quorum(r, n, places, count), gone = places - count;
                        u32 full = topology_quorum(w, n, places, places);
                        assert_in_range(asked, read, count);
                        if (w + r > n) assert_int_equal(asked, read);
                        /* Fewer are gone than have a write: one of those is asked. */
                        if (full > gone) assert_true(full - gone + asked > count);
                    }
    *options = (struct topology_keyspace){
        .used = true, .replicas = 3, .write_quorum = 2, .read_quorum = 1};
    struct topology_row row = {.places = 3, .count = 3};
    assert_int_equal(topology_fetch_quorum(&topology, 0, &row), 2);
    row.count = 1; /* the others were given up */
    assert_int_equal(topology_fetch_quorum(&topology, 0, &row), 1);
    row.count = 0;
    assert_int_equal(topology_fetch_quorum(&topology, 0, &row), 0);
    options->write_quorum = 1;
    row.count = 3;
    assert_int_equal(topology_fetch_quorum(&topology, 0, &row), 3);
}

static void
invariants_are_seen_broken(void **state)
{
    (void)state;
    void (*const breaks[])(struct topology * t) = {
        break_order,       break_stamp,       break_node_id,  break_incarnation,
        break_normal,      break_joining,     break_hole,     break_stranger,
        break_twice,       break_gone_member, break_session,  break_stage,
        break_epoch,       break_fence,       break_keyspace, break_keyspace_name,
        break_datacenters, break_mending};
    struct world world;
    world_grow(&world, 3, 4, 3);
    apply_ok(&world, add(node("n4", 4, "", "")));
    apply_ok(&world, step(TOPOLOGY_PLAN, 5));
    for (u32 i = 0; i < ARRAY_COUNT(breaks); i++) {
        struct topology *copy = decoded(world.now);
        breaks[i](copy);
        if (topology_check(copy)) fail_msg("break %u was not seen", i);
        topology_release(copy);
    }
    world_deinit(&world);
}

/* ---- random histories ---- */

enum { WRITES_MAX = 6, PARTITIONS_MAX = 16, NUMBERS_MAX = 64, HISTORIES = 300 };

/* One acknowledged write each, by whom it is on: bits of numbers. Some members may be cut off from
 * who leads, for any time: they keep the topology of that moment, coordinate by it, and answer as
 * replicas by it. */
struct history {
    struct world world;
    struct prng prng;
    struct topology
        *before;          /* some coordinators still work with it; NULL: the barrier was passed */
    struct topology *old; /* of those who are cut off; NULL: nobody is */
    u64 cut;              /* bits */
    u64 writes[PARTITIONS_MAX][WRITES_MAX];
    u32 write_count[PARTITIONS_MAX];
    u64 alive;
    bool majorities; /* in all keyspaces: else nobody can be spared, and nothing is lost */
    bool all_write;  /* W = N, R = 1 */
    bool weak;       /* W + R = N: reads may miss a write, whoever gains may not (T3) */
    u64 session_next;
    u32 steps[TOPOLOGY_MEMBER_STAY + 1]; /* that did something, by kind */
    u32 refused;
    u32 cut_writes, cut_reads; /* that a quorum took or could have answered */
    u32 held_up;               /* steps that waited for who is cut off */
    char violation[160];
};

static u64
bit(u32 number)
{
    assert_true(number < NUMBERS_MAX);
    return (u64)1 << number;
}

static u64
row_bits(const u32 *ids, u32 count)
{
    u64 bits = 0;
    for (u32 k = 0; k < count; k++)
        bits |= bit(ids[k]);
    return bits;
}

/* `count` of those that are in the set; all of them when there are fewer. */
static u64
some_of(struct prng *prng, u64 set, u32 count)
{
    while ((u32)__builtin_popcountll(set) > count) {
        u64 one = (u64)1 << prng_below(prng, 64);
        set &= ~one;
    }
    return set;
}

static bool
takes(const struct topology *replica, u32 number, const struct topology *coordinator, u32 partition)
{
    return replica != NULL && replica->cluster_id != 0 &&
           coordinator->epoch >= replica->stage_epoch_before &&
           topology_holds(replica, number, partition);
}

/* Who may answer that coordinator for the partition: by the topology that it has, or may have. */
static u64
answering(const struct history *history, const struct topology *coordinator, u32 partition)
{
    u64 bits = 0;
    for (u32 number = 1; number < history->world.now->next_number; number++) {
        bool cut = (history->cut & bit(number)) != 0;
        bool one = cut ? takes(history->old, number, coordinator, partition)
                       : takes(history->world.now, number, coordinator, partition) ||
                             takes(history->before, number, coordinator, partition);
        if (one) bits |= bit(number);
    }
    return bits & history->alive;
}

static bool
history_write(struct history *history, const struct topology *as, u32 partition)
{
    struct topology_row row;
    topology_row(as, 0, partition, &row);
    u64 takers = answering(history, as, partition);
    u64 now = row_bits(row.write, row.count) & takers;
    u64 then = row_bits(row.write_next, row.next_count) & takers;
    if (row.count == 0 || (u32)__builtin_popcountll(now) < row.write_quorum) return false;
    u64 on = some_of(&history->prng, now, row.write_quorum);
    if (as->stage != STAGE_NONE) {
        if ((u32)__builtin_popcountll(then) < row.write_next_quorum) return false;
        /* The quorums are counted apart, though one replica may count in both. */
        on |= some_of(&history->prng, then, row.write_next_quorum);
    }
    u32 at = history->write_count[partition] < WRITES_MAX
                 ? history->write_count[partition]++
                 : (u32)prng_below(&history->prng, WRITES_MAX);
    history->writes[partition][at] = on;
    return true;
}

/* Returns how many partitions can be read at all. */
static u32
reads_see_all(struct history *history, const struct topology *as)
{
    u32 readable = 0;
    for (u32 p = 0; p < as->partition_count; p++) {
        struct topology_row row;
        topology_row(as, 0, p, &row);
        u32 count;
        const u32 *ids = topology_row_read(&row, &count);
        u64 asked = row_bits(ids, count) & answering(history, as, p);
        readable += (u32)__builtin_popcountll(asked) >= row.read_quorum;
        for (u32 i = 0; i < history->write_count[p]; i++) {
            u32 without = (u32)__builtin_popcountll(asked & ~history->writes[p][i]);
            if (without >= row.read_quorum && !history->weak && history->violation[0] == 0)
                snprintf(history->violation, sizeof(history->violation),
                         "partition %u: a read quorum of %u does not see a write, epoch %llu of "
                         "%llu",
                         p, row.read_quorum, (unsigned long long)as->epoch,
                         (unsigned long long)history->world.now->epoch);
        }
    }
    return readable;
}

/* Who may be a source of the partition: whoever is cut off does not know the fence. Who fetches
 * has what it has itself. */
static u64
sources_of(const struct history *history, const struct topology_row *row)
{
    return row_bits(row->write, row->count) & history->alive & ~history->cut;
}

static bool
may_fetch(const struct history *history, u32 number)
{
    const struct topology *now = history->world.now;
    if ((history->cut & bit(number)) != 0) return false;
    for (u32 p = 0; p < now->partition_count; p++) {
        struct topology_row row;
        topology_row(now, 0, p, &row);
        if (topology_gains(now, number, 0, p) &&
            (u32)__builtin_popcountll(sources_of(history, &row)) <
                topology_fetch_quorum(now, 0, &row))
            return false;
    }
    return true;
}

/* From other members of the current row for each write apart: the worst that can happen. Each has
 * one that lives, and so whoever gains has it then. */
static void
history_fetch(struct history *history, const struct topology *as, u32 number)
{
    for (u32 p = 0; p < as->partition_count; p++) {
        if (!topology_gains(as, number, 0, p)) continue;
        struct topology_row row;
        topology_row(as, 0, p, &row);
        for (u32 i = 0; i < history->write_count[p]; i++) {
            u64 asked = some_of(&history->prng, sources_of(history, &row),
                                topology_fetch_quorum(as, 0, &row));
            if ((asked & history->writes[p][i]) != 0)
                history->writes[p][i] |= bit(number);
            else if (row.count != 0 && history->violation[0] == 0)
                snprintf(history->violation, sizeof(history->violation),
                         "partition %u: %u gains it and does not get a write, epoch %llu", p,
                         number, (unsigned long long)as->epoch);
        }
    }
}

/* Who holds what it should not removes it, once it knows. */
static void
history_clean(struct history *history)
{
    const struct topology *now = history->world.now;
    for (u32 p = 0; p < now->partition_count; p++)
        for (u32 number = 1; number < now->next_number; number++)
            if (!topology_holds(now, number, p) && (history->cut & bit(number)) == 0)
                for (u32 i = 0; i < history->write_count[p]; i++)
                    history->writes[p][i] &= ~bit(number);
}

static void
history_barrier(struct history *history)
{
    topology_release(history->before);
    history->before = NULL;
}

static void
history_heal(struct history *history)
{
    topology_release(history->old);
    history->old = NULL;
    history->cut = 0;
    if (history->world.now->stage == STAGE_NONE) history_clean(history);
}

/* One or two are cut off, or they come back, which they do knowing everything. */
static void
history_cut(struct history *history)
{
    struct prng *prng = &history->prng;
    struct topology *now = history->world.now;
    if (history->old != NULL) {
        if (prng_chance(prng, 1, 20)) history_heal(history);
        return;
    }
    if (now->member_count < 2 || !prng_chance(prng, 1, 10)) return;
    history_barrier(history);
    topology_hold(now);
    history->old = now;
    for (u64 i = prng_range(prng, 1, 2); i > 0; i--)
        history->cut |= bit(now->members[prng_below(prng, now->member_count)].number);
}

static bool
is_not_cut(void *arg, u32 number)
{
    const struct history *history = arg;
    return (history->cut & bit(number)) == 0;
}

/* What the leader, or who fetches, looks at before it asks for the step. */
static bool
step_is_due(struct history *history, const struct topology_command *command)
{
    const struct topology *now = history->world.now;
    if (command->kind == TOPOLOGY_FETCHED) return may_fetch(history, command->member.number);
    if (command->kind == TOPOLOGY_LOST || command->kind == TOPOLOGY_MENDED)
        return is_not_cut(history, command->member.number); /* it asks itself */
    if (command->kind == TOPOLOGY_ADVANCE && now->stage == STAGE_READ_NEXT)
        return topology_may_leave_behind(now, is_not_cut, history);
    return true;
}

/* No more of a row may be gone than still leaves one of any write quorum. */
static bool
may_die(const struct topology *now, u32 number)
{
    for (u32 p = 0; p < now->partition_count; p++) {
        struct topology_row row;
        topology_row(now, 0, p, &row);
        u64 in_row = row_bits(row.write, row.count),
            in_next = row_bits(row.write_next, row.next_count);
        u32 gone = row.places - row.count + ((in_row & bit(number)) != 0);
        u32 gone_next = row.next_places - row.next_count + ((in_next & bit(number)) != 0);
        u32 wanted = now->keyspaces[0].write_quorum;
        if (gone >= topology_quorum(wanted, 3, row.places, row.places)) return false;
        if (row.next_places > 0 &&
            gone_next >= topology_quorum(wanted, 3, row.next_places, row.next_places))
            return false;
    }
    return true;
}

/* Something to say, sensible more often than not. */
static struct topology_command
history_command(struct history *history)
{
    struct prng *prng = &history->prng;
    const struct topology *now = history->world.now;
    struct topology_command command = {.kind = (u8)prng_range(prng, 1, TOPOLOGY_MEMBER_STAY)};
    if (now->stage != STAGE_NONE && prng_chance(prng, 1, 3))
        command.kind = prng_chance(prng, 1, 2) ? TOPOLOGY_FETCHED : TOPOLOGY_ADVANCE;
    if (now->stage != STAGE_NONE && !topology_fenced(now) && prng_chance(prng, 1, 3))
        command.kind = TOPOLOGY_FENCE;
    command.cluster_id = 1;
    command.session = now->session != 0 ? now->session : ++history->session_next;
    if (prng_chance(prng, 1, 20)) command.session ^= 1;
    command.partition_count = PARTITIONS_MAX;
    command.replicas = 3;
    if (history->majorities && now->cluster_id != 0 && now->member_count < 4 &&
        prng_chance(prng, 1, 3))
        command.kind = TOPOLOGY_MEMBER_ADD;
    if (history->majorities && now->stage == STAGE_NONE && now->member_count > 2 &&
        prng_chance(prng, 1, 4))
        command.kind = TOPOLOGY_LOST;
    if (command.kind == TOPOLOGY_LOST) {
        command.partition_first = (u32)prng_below(prng, PARTITIONS_MAX);
        command.partition_count = (u32)prng_range(prng, 1, 3);
    }
    command.keyspace = (u32)prng_below(prng, 18);
    command.options = now->keyspaces[command.keyspace % LIMIT_KEYSPACES_CLIENT];
    if (now->cluster_id == 0 && history->all_write)
        command.options = (struct topology_keyspace){.write_quorum = 3, .read_quorum = 1};
    if (now->cluster_id == 0 && history->weak)
        command.options = (struct topology_keyspace){.write_quorum = 2, .read_quorum = 1};
    if (!command.options.used && now->cluster_id != 0) {
        command.options.replicas = history->majorities ? 3 : (u8)prng_range(prng, 1, 3);
        command.options.write_quorum =
            history->majorities ? 2 : (u8)prng_range(prng, 1, command.options.replicas);
        snprintf(command.options.name, sizeof(command.options.name), "%u", command.keyspace);
    }
    /* Keyspace 0 keeps the quorums that it was founded with. */
    if (command.keyspace > 0 && now->cluster_id != 0)
        command.options.read_quorum = history->majorities ? 2 : (u8)prng_below(prng, 4);
    char name[16], rack[4];
    snprintf(name, sizeof(name), "n%u", (u32)prng_range(prng, 1, 12));
    snprintf(rack, sizeof(rack), "r%u", (u32)prng_below(prng, 3));
    u32 number =
        now->member_count > 0 ? now->members[prng_below(prng, now->member_count)].number : 1;
    if (command.kind == TOPOLOGY_FETCHED && topology_unfetched(now) != 0)
        number = topology_unfetched(now);
    if (topology_mending(now) != 0 && prng_chance(prng, 1, 4)) command.kind = TOPOLOGY_MENDED;
    if (command.kind == TOPOLOGY_MENDED && topology_mending(now) != 0)
        number = topology_mending(now);
    while (command.kind == TOPOLOGY_LOST &&
           command.partition_first + command.partition_count < now->partition_count &&
           (!topology_holds(now, number, command.partition_first) ||
            !topology_may_lose(now, number, command.partition_first)))
        command.partition_first++; /* one that may be lost, if there is one */
    const struct topology_member *member = topology_member(now, number);
    if (command.kind == TOPOLOGY_MEMBER_ADD || member == NULL) {
        command.member = node(name, prng_u64(prng), rack, "");
        if (prng_chance(prng, 1, 3)) command.member.replaces = number;
        if (prng_chance(prng, 1, 3) && topology_member_by_id(now, name) != NULL)
            command.member.replaces = topology_member_by_id(now, name)->number;
    } else {
        command.member = *member;
        if (prng_chance(prng, 1, 2)) snprintf(command.member.rack, 4, "%s", rack);
        if (prng_chance(prng, 1, 10)) command.member.incarnation++;
        if (prng_chance(prng, 1, 10)) command.member.number++;
    }
    if (prng_chance(prng, 1, 4)) command.member.weight = (u32)prng_below(prng, 400);
    return command;
}

/* Whether a replica dies by it, and which: as forgotten or as replaced. */
static u32
command_kills(const struct topology_command *command)
{
    if (command->kind == TOPOLOGY_MEMBER_FORGET) return command->member.number;
    return command->kind == TOPOLOGY_MEMBER_ADD ? command->member.replaces : 0;
}

static void
history_step(struct history *history)
{
    struct topology *now = history->world.now;
    struct topology_command command = history_command(history);
    u32 dies = command_kills(&command);
    const struct topology_member *victim = dies != 0 ? topology_member(now, dies) : NULL;
    if (victim != NULL && !may_die(now, dies)) return;
    history_cut(history);
    /* The leader changes a stage only when all that it reaches have the one before. */
    history_barrier(history);
    /* Who lost something knows it by now, and removes it; before it says that it has. */
    if (topology_mending(now) != 0 &&
        (command.kind == TOPOLOGY_MENDED || prng_chance(&history->prng, 1, 2)))
        history_clean(history);
    if (!step_is_due(history, &command)) {
        history->held_up++;
        return;
    }
    topology_hold(now);
    status st = world_apply(&history->world, command);
    if (!ok(st)) {
        topology_release(now);
        history->refused++;
        return;
    }
    history->before = now;
    history->steps[command.kind]++;
    now = history->world.now;
    if (command.kind == TOPOLOGY_FETCHED)
        history_fetch(history, history->before, command.member.number);
    if (victim != NULL) {
        history->alive &= ~bit(dies);
        history->cut &= ~bit(dies);
    }
    if (command.kind == TOPOLOGY_MEMBER_ADD || command.kind == TOPOLOGY_FOUND)
        history->alive |= bit(now->next_number - 1);
    if (now->stage == STAGE_NONE && history->before->stage != STAGE_NONE) history_clean(history);
    for (u32 p = 0; p < now->partition_count; p++) {
        if (prng_chance(&history->prng, 1, 4)) (void)history_write(history, now, p);
        if (prng_chance(&history->prng, 1, 4)) (void)history_write(history, history->before, p);
        if (history->cut != 0 && prng_chance(&history->prng, 1, 4))
            history->cut_writes += history_write(history, history->old, p);
    }
    (void)reads_see_all(history, now);
    if (history->before->cluster_id != 0) (void)reads_see_all(history, history->before);
    if (history->cut != 0) history->cut_reads += reads_see_all(history, history->old);
}

/* Nobody who leaves and nobody who is gone is in it, and places are empty only where nodes lack. */
static void
next_is_valid(const struct topology *now)
{
    if (now->stage != STAGE_WRITE_BOTH || now->epoch != now->stage_epoch) return;
    u32 stay = 0;
    for (u32 i = 0; i < now->member_count; i++)
        stay += now->members[i].state != PLACEMENT_LEAVING;
    for (u32 p = 0; p < now->partition_count; p++) {
        struct topology_row row;
        topology_row(now, 0, p, &row);
        assert_int_equal(row.next_count, MIN(3u, stay));
        assert_int_equal(row.next_places, row.next_count);
        for (u32 k = 0; k < row.next_count; k++)
            assert_int_not_equal(topology_member(now, row.write_next[k])->state, PLACEMENT_LEAVING);
    }
}

static void
acknowledged_writes_are_seen_through_random_histories(void **state)
{
    (void)state;
    u32 steps[TOPOLOGY_MEMBER_STAY + 1] = {0};
    u32 refused = 0, cut_writes = 0, cut_reads = 0, held_up = 0, failed = 0;
    struct seeds seeds = seeds_chosen(FEWER(HISTORIES));
    for (u64 seed = seeds.first; seed <= seeds.last && failed < 5; seed++) {
        struct history *history = test_calloc(1, sizeof(*history));
        prng_init(&history->prng, seed);
        history->majorities = seed % 2 == 0;
        history->all_write = seed % 8 == 0;
        history->weak = seed % 8 == 4;
        world_init(&history->world);
        for (u32 i = 0;
             i < 250 && history->world.now->next_number < NUMBERS_MAX && history->violation[0] == 0;
             i++) {
            history_step(history);
            next_is_valid(history->world.now);
        }
        for (u32 kind = 0; kind <= TOPOLOGY_MEMBER_STAY; kind++)
            steps[kind] += history->steps[kind];
        refused += history->refused;
        cut_writes += history->cut_writes;
        cut_reads += history->cut_reads;
        held_up += history->held_up;
        if (history->violation[0] != 0)
            print_error("seed %llu: %s\n", (unsigned long long)seed, history->violation);
        failed += history->violation[0] != 0;
        history_barrier(history);
        topology_release(history->old);
        world_deinit(&history->world);
        test_free(history);
    }
    assert_int_equal(failed, 0);
    if (seeds_count(&seeds) < HISTORIES) return;
    for (u32 kind = TOPOLOGY_FOUND; kind <= TOPOLOGY_MEMBER_STAY; kind++)
        if (steps[kind] < 100) fail_msg("command %u did something %u times", kind, steps[kind]);
    assert_true(refused > 1000 && cut_writes > 1000 && cut_reads > 1000 && held_up > 100);
}

int
main(void)
{
    /* With a seed or seeds chosen, only these. */
    const struct CMUnitTest histories[] = {
        cmocka_unit_test(acknowledged_writes_are_seen_through_random_histories),
    };
    if (seeds_are_chosen())
        return cmocka_run_group_tests_name("histories", histories, setup, teardown);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_member_holds_everything_at_once),
        cmocka_unit_test(quorums_that_overlap_do_so_in_every_row),
        cmocka_unit_test(who_gains_asks_one_of_any_write_quorum),
        cmocka_unit_test(quorums_change_only_so_that_old_and_new_overlap),
        cmocka_unit_test(two_nodes_join_one_at_once),
        cmocka_unit_test(one_joins_while_another_leaves),
        cmocka_unit_test(the_last_one_that_holds_everything_stays),
        cmocka_unit_test(the_last_one_is_followed_by_who_has_fetched),
        cmocka_unit_test(in_a_row_that_gets_shorter_everybody_fetches),
        cmocka_unit_test(abandoned_plans_leave_nothing_behind),
        cmocka_unit_test(a_leave_is_taken_back),
        cmocka_unit_test(a_leave_is_not_taken_back_once_reads_use_the_places_of_others),
        cmocka_unit_test(a_leave_that_is_taken_back_leads_to_what_was_before),
        cmocka_unit_test(the_last_one_is_given_up_once_another_one_stays),
        cmocka_unit_test(readers_of_the_old_places_hold_up_the_end),
        cmocka_unit_test(readers_by_a_majority_hold_up_the_end_where_all_are_asked),
        cmocka_unit_test(the_places_of_a_forgotten_one_count_until_they_are_given_away),
        cmocka_unit_test(who_lost_a_part_holds_it_again_after_the_next_plan),
        cmocka_unit_test(nobody_loses_what_the_others_may_lack),
        cmocka_unit_test(who_lost_a_part_may_be_forgotten_and_replaced),
        cmocka_unit_test(a_wiped_disk_comes_back_as_a_replacement),
        cmocka_unit_test(a_plan_ends_when_a_gainer_is_forgotten),
        cmocka_unit_test(stamps_come_back_as_late_as_can_be),
        cmocka_unit_test(members_change_their_address_but_not_who_they_are),
        cmocka_unit_test(a_plan_of_before_is_dealt_as_it_was),
        cmocka_unit_test(an_order_that_changes_is_a_move_for_fewer_replicas),
        cmocka_unit_test(data_centers_and_racks_are_kept_apart_by_their_names),
        cmocka_unit_test(a_thousand_members_and_no_more),
        cmocka_unit_test(too_little_memory_is_a_refusal),
        cmocka_unit_test(what_a_later_version_wrote_is_told_from_damage),
        cmocka_unit_test(only_what_is_sloppy_is_of_the_later_format),
        cmocka_unit_test(only_who_lost_a_part_makes_the_latest_format),
        cmocka_unit_test(what_keeps_siblings_is_not_sloppy),
        cmocka_unit_test(every_byte_is_checked),
        cmocka_unit_test(invariants_are_seen_broken),
        cmocka_unit_test(acknowledged_writes_are_seen_through_random_histories),
    };
    return cmocka_run_group_tests_name("topology", tests, setup, teardown);
}
