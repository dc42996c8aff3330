/* SPDX-License-Identifier: MIT
 *
 * test_hints.c -- writes kept for absent replicas, between nodes on the simulated link: small
 * stories, then seeds.
 *
 * A seed is a cluster of three to five nodes whose clients only write and delete: nothing is read,
 * so that no read repairs anything. Nodes lose power or their process, links are cut, shards stall;
 * now and then somebody who knows too much collects tombstones, as far as all replicas are equal
 * and every node's replicator_oldest_version allows. At the end all is healed, and once no hint
 * waits:
 *
 *   J1  All replicas of a key have the same version and value. Excused: a write whose coordinator
 *       crashed before the calls had ended (nobody may know that somebody missed it).
 *   J2  No replica has an older value than the newest write that was acknowledged: nothing that
 *       was deleted or overwritten is back.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../seeds.h"
#include "base/hash.h"
#include "cluster/hints_internal.h"
#include "lsm/batch.h"
#include "lsm/levels_internal.h"
#include "lsm/lsm_internal.h"
#include "replica_world.h"

#define KEYS_ALL_OVER 100u /* the first so many keys: fewer lie in none of some partitions */
#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 10u
#else
#define SEED_COUNT 60u
#endif

static struct hints_stats reached;

static void
reached_add(const struct replica_app *app)
{
    struct hints_stats stats;
    hints_stats_get(app->hints, &stats);
    reached.added += stats.added;
    reached.replayed += stats.replayed;
    reached.failed += stats.failed;
    reached.dropped += stats.dropped;
    reached.stale += stats.stale;
}

/* Some of the keys from first on, by a node that holds them; every fifth one is deleted. */
static void
write_keys(u32 node, u32 first, u32 count, u64 id)
{
    for (u32 key = first; key < first + count; key++) {
        struct world_op op = {.node = node, .key = key, .id = key % 5 == 4 ? 0 : id + key};
        assert_true(ok(world_write(&op)));
    }
}

/* How many of the keys the members of their rows do not all have alike. */
static u32
unlike(u32 first, u32 count)
{
    u32 found = 0;
    for (u32 key = first; key < first + count; key++) {
        struct topology_row row;
        world_row(key, &row);
        struct world_look one = world_look_at(row.write[0] - 1, key);
        bool same = one.version != 0;
        for (u32 i = 1; i < row.count; i++) {
            struct world_look other = world_look_at(row.write[i] - 1, key);
            same = same && other.version == one.version && other.id == one.id;
        }
        found += !same;
    }
    return found;
}

/* ---- hints ---- */

static bool
all_loaded(void *arg)
{
    (void)arg;
    return world_hints().loaded;
}

static bool
some_replayed(void *arg)
{
    return world_hints().replayed >= *(u64 *)arg;
}

/* Nobody reaches the node, and everybody knows. */
static void
away(u32 node)
{
    peer_rig_isolate(&world.rig, node);
    world.down[node] = true;
}

static void
back(u32 node)
{
    peer_rig_rejoin(&world.rig, node);
    world.down[node] = false;
}

static void
story_go(void)
{
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2)); /* REPLICATE_QUIET_MS_MAX */
}

/* ---- stories ---- */

static void
a_dead_replica_has_all_it_missed_without_a_read(void **state)
{
    (void)state;
    world_open(1, 3, 3, 2);
    story_go();
    write_keys(0, 0, 40, 1000);
    peer_rig_run(&world.rig, MS(100));
    world_crash(2);
    write_keys(0, 0, 100, 2000);
    write_keys(1, 50, 100, 3000);
    struct hints_stats sum = world_hints();
    assert_int_equal(sum.waiting, 200);
    assert_true(sum.waiting_bytes > 200 * 100);
    struct hints_target target;
    assert_true(hints_target_next(world.apps[0][0].hints, 0, &target));
    assert_int_equal(target.member, 3);
    assert_true(target.waiting > 0 && target.repairs_due == 0);
    assert_false(hints_target_next(world.apps[0][0].hints, 3, &target));
    world_start(2);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(3)));
    assert_int_equal(unlike(0, 150), 0);
    sum = world_hints();
    assert_int_equal(sum.replayed, 200);
    assert_int_equal(sum.waiting_bytes, 0);
    assert_int_equal(sum.repairs_due, 0);
    assert_false(hints_target_next(world.apps[0][0].hints, 0, &target));
    world_close();
}

static void
hints_survive_a_restart_of_who_keeps_them(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    story_go();
    away(2);
    write_keys(0, 0, 100, 1000);
    peer_rig_run(&world.rig, MS(100));
    world_crash(0);
    peer_rig_run(&world.rig, MS(100));
    world_start(0);
    assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(1)));
    assert_int_equal(world_hints_of(0).waiting, 100);
    back(2);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(10)));
    assert_int_equal(unlike(0, 100), 0);
    /* And what was delivered is gone for good. */
    peer_rig_stop(&world.rig, 0);
    world_start(0);
    assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(1)));
    assert_int_equal(world_hints_of(0).waiting, 0);
    world_close();
}

static void
replay_goes_on_after_a_crash_of_either_side(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.replay_bytes_per_s = KIB(40);
    story_go();
    away(2);
    write_keys(0, 0, 200, 1000);
    peer_rig_run(&world.rig, MS(100));
    back(2);
    for (u32 round = 0; round < 3; round++) {
        u64 so_many = world_hints_of(0).replayed + 30;
        assert_true(peer_rig_run_until(&world.rig, some_replayed, &so_many, SECONDS(20)));
        u32 node = round % 2 == 0 ? 2 : 0;
        peer_rig_crash(&world.rig, node, false); /* nobody knows */
        peer_rig_run(&world.rig, MS(700));
        assert_true(world_hints().waiting > 0 || node == 0);
        world_start(node);
    }
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(60)));
    assert_int_equal(unlike(0, 200), 0);
    assert_int_equal(world_hints().repairs_due, 0);
    world_close();
}

struct repairs {
    u32 node, count;
    u64 version_oldest;
    bool mend;
};

static u64
repairs_due(const struct hints *hints)
{
    struct hints_stats stats;
    hints_stats_get(hints, &stats);
    return stats.repairs_due;
}

/* Of one target, or of all that the partition has; what does not reach so far, or is another's,
 * changes nothing. */
static void
repair_mend(struct hints *hints, const struct hints_repair *repair, bool every)
{
    u64 due = repairs_due(hints), later = hlc_version_at(io_wall_ms() + 1000);
    u32 target = every ? HINTS_EVERY : repair->target;
    hints_repaired(hints, repair->partition, target, repair->version_oldest - 1);
    hints_repaired(hints, repair->partition, repair->target - 1, later);
    CHECK(repairs_due(hints) == due);
    hints_repaired(hints, repair->partition, target, later);
    CHECK(repairs_due(hints) == due - 1);
}

static void
repairs_run(struct peer_rig_node *node, void *arg)
{
    struct repairs *repairs = arg;
    struct hints *hints = world_app(node)->hints;
    struct hints_repair repair;
    u64 cursor = 0;
    repairs->count = 0;
    repairs->version_oldest = UINT64_MAX;
    while (hints_repair_next(hints, &cursor, &repair)) {
        CHECK(repair.target == 3);
        repairs->count++;
        repairs->version_oldest = MIN(repairs->version_oldest, repair.version_oldest);
        if (repairs->mend) repair_mend(hints, &repair, repairs->count % 2 == 0);
    }
}

static void
what_does_not_fit_is_known_to_need_repair(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.disk_bytes_max[0] = 4000; /* node 0 coordinates all */
    story_go();
    away(2);
    struct world_op first = {.key = 5, .id = 29};
    assert_true(ok(world_write(&first))); /* 20,000 bytes */
    write_keys(0, 0, 100, 1000);
    struct hints_stats sum = world_hints();
    assert_true(sum.dropped > 50 && sum.waiting > 0 && sum.waiting_bytes <= 4000);
    assert_true(sum.repairs_due > 50);
    assert_int_equal(hints_oldest_version(world.apps[0][0].hints), first.version);
    /* Known after a restart, too. */
    peer_rig_run(&world.rig, MS(500));
    for (u32 round = 0; round < 2; round++) {
        world_crash(0);
        world_start(0);
        assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(1)));
        assert_int_equal(world_hints_of(0).repairs_due, round == 0 ? sum.repairs_due : 0);
        struct repairs repairs = {.mend = true};
        CHECK(peer_rig_do(&world.rig, 0, 0, repairs_run, &repairs));
        assert_int_equal(repairs.count, round == 0 ? sum.repairs_due : 0);
        if (round == 0) assert_int_equal(repairs.version_oldest, first.version);
        assert_int_equal(world_hints_of(0).repairs_due, 0);
        assert_true(hints_oldest_version(world.apps[0][0].hints) > first.version);
        peer_rig_run(&world.rig, MS(500));
    }
    /* What did fit arrives. */
    back(2);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(10)));
    assert_int_equal(unlike(0, 100), (u32)sum.dropped - 1);
    world_close();
}

static void
a_hint_for_who_has_left_goes_to_who_holds_the_key(void **state)
{
    (void)state;
    world_open(1, 4, 4, 1);
    story_go();
    struct topology_row rows[100];
    away(2);
    u32 count = 0;
    for (u32 key = 0; key < 100; key++) {
        world_row(key, &rows[key]);
        bool theirs = false;
        for (u32 i = 0; i < rows[key].count; i++)
            theirs = theirs || rows[key].write[i] == 3;
        if (!theirs) continue;
        struct world_op op = {.key = key, .id = 1000 + key};
        op.node = rows[key].write[0] != 3 ? rows[key].write[0] - 1 : rows[key].write[1] - 1;
        assert_true(ok(world_write(&op)));
        count++;
    }
    assert_int_equal(world_hints().waiting, count);
    /* The fourth node takes its places. Nobody fetches: hints alone bring what it has. */
    world_topology_keep();
    world_apply((struct topology_command){.kind = TOPOLOGY_MEMBER_FORGET, .member = {.number = 3}});
    world.topology = replica_rig_plan(world.topology, 2);
    peer_rig_crash(&world.rig, 2, false);
    world_topology_tell();
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(10)));
    struct hints_stats sum = world_hints();
    assert_int_equal(sum.rerouted, count);
    for (u32 key = 0; key < 100; key++) {
        bool theirs = false;
        for (u32 i = 0; i < rows[key].count; i++)
            theirs = theirs || rows[key].write[i] == 3;
        if (theirs) assert_int_equal(unlike(key, 1), 0);
    }
    world_close();
}

/* Of who has left: what goes to replicas of which one is dead waits, and nothing else does. */
static void
a_hint_for_dead_replicas_stands_in_nobodys_way(void **state)
{
    (void)state;
    world_open(1, 5, 5, 1);
    story_go();
    away(2);
    bool written[100] = {false};
    for (u32 key = 0; key < 100; key++) {
        struct topology_row row;
        world_row(key, &row);
        struct world_op op = {.key = key, .id = 1000 + key};
        for (u32 i = 0; i < row.count; i++) {
            if (row.write[i] == 3) written[key] = true;
            if (row.write[i] == 1 || row.write[i] > 3) op.node = row.write[i] - 1;
        }
        if (written[key]) assert_true(ok(world_write(&op)));
    }
    world_topology_keep();
    world_apply((struct topology_command){.kind = TOPOLOGY_MEMBER_FORGET, .member = {.number = 3}});
    world.topology = replica_rig_plan(world.topology, 2);
    peer_rig_crash(&world.rig, 2, false);
    away(1);
    world_topology_tell();
    peer_rig_run(&world.rig, SECONDS(20));
    u32 waiting = 0, delivered = 0;
    for (u32 key = 0; key < 100; key++) {
        struct topology_row row;
        world_row(key, &row);
        bool dead = false;
        for (u32 i = 0; i < row.count; i++)
            dead = dead || row.write[i] == 2;
        waiting += written[key] && dead;
        if (!written[key] || dead) continue;
        assert_int_equal(unlike(key, 1), 0);
        delivered++;
    }
    assert_true(waiting > 5 && delivered > 5);
    assert_int_equal(world_hints().waiting, waiting);
    back(1);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    assert_int_equal(world_hints().rerouted, waiting + delivered);
    world_close();
}

/* What too few had must not be complete in the present row before it is in the next one, for which
 * it was fetched already. */
static void
while_a_plan_is_under_way_the_next_row_comes_first(void **state)
{
    (void)state;
    world_open(1, 4, 3, 1);
    story_go();
    away(2);
    write_keys(0, 0, KEYS_ALL_OVER, 1000);
    world_topology_keep();
    world_apply((struct topology_command){.kind = TOPOLOGY_MEMBER_ADD,
                                          .member = replica_rig_member(3, world.rig.shard_count)});
    world_apply((struct topology_command){.kind = TOPOLOGY_PLAN, .session = 2});
    peer_rig_cut(&world.rig, 0, 3); /* the new one; nobody knows */
    back(2);
    world_topology_tell();
    peer_rig_run(&world.rig, SECONDS(15));
    u32 gained = 0;
    for (u32 key = 0; key < KEYS_ALL_OVER; key++) {
        struct topology_row row;
        world_row(key, &row);
        assert_int_equal(row.next_count, 3);
        bool gains = false;
        for (u32 i = 0; i < 3; i++)
            gains = gains || row.write_next[i] == 4;
        gained += gains;
        if (gains) assert_int_equal(world_look_at(2, key).version, 0);
    }
    assert_true(gained > 10 && gained < KEYS_ALL_OVER);
    peer_rig_heal(&world.rig, 0, 3);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    assert_int_equal(unlike(0, KEYS_ALL_OVER), 0);
    for (u32 key = 0; key < KEYS_ALL_OVER; key++) {
        struct topology_row row;
        world_row(key, &row);
        for (u32 i = 0; i < 3; i++)
            assert_true(world_look_at(row.write_next[i] - 1, key).version ==
                        world_look_at(2, key).version);
    }
    world_close();
}

static void
after_its_window_a_hint_goes_and_repair_is_due(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.window_ms = 5000;
    story_go();
    away(2);
    struct world_op old = {.key = 1, .id = 1};
    assert_true(ok(world_write(&old)));
    peer_rig_run(&world.rig, SECONDS(5));
    struct world_op young = {.key = 1, .id = 2}, other = {.key = 2, .id = 3};
    assert_true(ok(world_write(&young)) && ok(world_write(&other)));
    peer_rig_run(&world.rig, SECONDS(4));
    /* They are looked for every ten seconds. Those that are in their window stay. */
    for (u32 i = 0; i < 20 && world_hints_of(0).expired == 0; i++)
        peer_rig_run(&world.rig, SECONDS(1));
    struct hints_stats sum = world_hints_of(0);
    assert_true(sum.expired >= 1 && sum.expired + sum.waiting == 3);
    assert_int_equal(sum.repairs_due, sum.expired == 3 ? 2 : 1);
    assert_int_equal(hints_oldest_version(world.apps[0][0].hints), old.version);
    peer_rig_run(&world.rig, SECONDS(20));
    sum = world_hints_of(0);
    assert_int_equal(sum.expired, 3);
    assert_int_equal(sum.repairs_due, 2);
    back(2);
    peer_rig_run(&world.rig, SECONDS(2));
    assert_int_equal(world_look_at(2, 1).version, 0);
    assert_int_equal(world_hints_of(0).replayed, 0);
    world_close();
}

/* A put that only a hint of node 0 has for node 2, and a deletion that everybody has. */
static struct world_op
deleted_with_a_hint_left(void)
{
    struct world_op put = {.key = 1, .id = 7};
    away(2);
    assert_true(ok(world_write(&put)));
    peer_rig_run(&world.rig, MS(200));
    /* Node 0 and node 2 do not reach each other from here on; node 1 reaches both. */
    peer_rig_heal(&world.rig, 1, 2);
    world.down[2] = false;
    struct world_op gone = {.node = 1, .key = 1};
    assert_true(ok(world_write(&gone)));
    peer_rig_run(&world.rig, MS(500));
    for (u32 node = 0; node < 3; node++)
        assert_int_equal(world_look_at(node, 1).version, gone.version);
    return put;
}

static void
what_was_deleted_stays_so_though_an_older_hint_comes_later(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    story_go();
    struct world_op put = deleted_with_a_hint_left();
    peer_rig_run(&world.rig, MS(KEEP_LATE_MS)); /* without the hint nothing would be in the way */
    u64 below = world_oldest(replicator_oldest_version);
    assert_true(below > 0 && below <= put.version);
    for (u32 node = 0; node < 3; node++)
        world_collect(node, below);
    assert_true(world_look_at(2, 1).version > put.version);
    peer_rig_heal(&world.rig, 0, 2);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    assert_int_equal(world_look_at(2, 1).id, 0);
    assert_int_equal(world_hints_of(0).replayed, 1);
    assert_int_equal(world_hints_of(0).stale, 0);
    /* Now nothing is in the way any more, nor can it be on its way to a stand-in. */
    peer_rig_run(&world.rig, MS(KEEP_LATE_MS));
    assert_true(world_oldest(replicator_oldest_version) > world_look_at(2, 1).version);
    world_close();
}

static void
a_hint_below_what_was_collected_is_refused(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    story_go();
    struct world_op put = deleted_with_a_hint_left();
    world_collect(2, world_look_at(2, 1).version + 1); /* which nobody has allowed */
    assert_int_equal(world_look_at(2, 1).version, 0);
    peer_rig_heal(&world.rig, 0, 2);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    assert_int_equal(world_look_at(2, 1).id, 0);
    struct hints_stats sum = world_hints_of(0);
    assert_int_equal(sum.stale, 1);
    assert_int_equal(sum.repairs_due, 1);
    assert_int_equal(hints_oldest_version(world.apps[0][0].hints), put.version);
    world_close();
}

static bool
fewer_wait(void *arg)
{
    return world_hints_of(0).waiting < *(const u64 *)arg;
}

/* The power fails whenever a hint has just ceased to count: it does not come back, for by then what
 * hides it may be collected, and a replica that is started anew does not know any more what it has
 * collected. */
static void
a_hint_counts_until_no_power_cut_brings_it_back(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.rig.options.disk.latency_ns_min = MS(5); /* so long a deletion may be lost */
    world.rig.options.disk.latency_ns_max = MS(10);
    world.replay_bytes_per_s = KIB(40); /* and the next ones are answered meanwhile */
    story_go();
    sim_crash_keeps_all_set(world.rig.sim, false);
    away(2);
    write_keys(0, 0, 60, 1000);
    u64 waiting = world_hints_of(0).waiting;
    assert_int_equal(waiting, 60);
    back(2);
    u32 cuts = 0;
    for (; waiting > 0; cuts++) {
        assert_true(peer_rig_run_until(&world.rig, fewer_wait, &waiting, SECONDS(20)));
        waiting = world_hints_of(0).waiting;
        world_crash(0);
        world_start(0);
        assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(20)));
        assert_true(world_hints_of(0).waiting <= waiting);
        waiting = world_hints_of(0).waiting;
    }
    assert_true(cuts > 2);
    world_close();
}

static void
hold_run(struct peer_rig_node *node, void *arg)
{
    struct lsm *lsm = world_app(node)->lsm;
    if (*(const bool *)arg)
        lsm_writes_hold(lsm);
    else
        lsm_writes_release(lsm);
}

/* A write that its coordinator's own store had no room for; what it keeps of it for itself is all
 * that it has of that version over a restart, from which on its clock is behind. Whatever it
 * acknowledges is above what it has. */
static void
a_hint_for_the_own_store_from_before_a_restart_moves_the_clock(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.replay_bytes_per_s = 10; /* the first one that is sent is all for half a minute */
    story_go();
    away(1);
    write_keys(0, 2, 1, 1000);
    back(1);
    peer_rig_run(&world.rig, SECONDS(8));
    assert_true(world_look_at(1, 2).version != 0);
    away(2);
    bool held = true;
    assert_true(peer_rig_do(&world.rig, 0, 0, hold_run, &held));
    struct world_op put = {.key = 1, .id = 7, .level = REPLICATE_ONE};
    assert_true(ok(world_write(&put)));
    held = false;
    assert_true(peer_rig_do(&world.rig, 0, 0, hold_run, &held));
    peer_rig_run(&world.rig, SECONDS(1));
    struct hints_target own;
    assert_true(hints_target_next(world.apps[0][0].hints, 0, &own));
    assert_true(own.member == 1 && own.waiting == 1);
    assert_int_equal(world_look_at(0, 1).version, 0);

    away(1);
    world_crash(0);
    sim_node_clock_step(world.rig.nodes[0].machine, -60 * 1000);
    world_start(0);
    peer_rig_run(&world.rig, SECONDS(5));
    struct world_op later = {.key = 1, .id = 8, .level = REPLICATE_ONE};
    assert_true(ok(world_write(&later)));
    assert_int_equal(world_look_at(0, 1).version, later.version);
    assert_true(hints_target_next(world.apps[0][0].hints, 0, &own));
    assert_true(own.member == 1 && own.waiting == 1); /* until its time has come */
    world_close();
}

static void
write_held(u32 key)
{
    bool held = true;
    assert_true(peer_rig_do(&world.rig, 0, 0, hold_run, &held));
    struct world_op put = {.key = key, .id = 7, .level = REPLICATE_ONE};
    assert_true(ok(world_write(&put)));
    held = false;
    assert_true(peer_rig_do(&world.rig, 0, 0, hold_run, &held));
    peer_rig_run(&world.rig, SECONDS(1));
}

static void
self_run(struct peer_rig_node *node, void *arg)
{
    struct hints *hints = world_app(node)->hints;
    hints_topology_set(hints, hints->topology, *(const u32 *)arg);
}

/* What an earlier life left may be counted before it is known who we are. */
static void
what_waits_for_the_own_store_waits_for_nobody_else(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.replay_bytes_per_s = 10; /* the first one that is sent is all for half a minute */
    story_go();
    away(1);
    write_keys(0, 2, 1, 1000);
    assert_true(hints_wait_for_others(world.apps[0][0].hints));
    back(1);
    peer_rig_run(&world.rig, SECONDS(60));
    assert_int_equal(world_hints_of(0).waiting, 0);
    assert_false(hints_wait_for_others(world.apps[0][0].hints));

    write_held(1);
    write_held(3);
    assert_true(world_hints_of(0).waiting > 0);
    assert_false(hints_wait_for_others(world.apps[0][0].hints));
    u32 other = 2, own = 1;
    assert_true(peer_rig_do(&world.rig, 0, 0, self_run, &other));
    assert_true(hints_wait_for_others(world.apps[0][0].hints));
    assert_true(peer_rig_do(&world.rig, 0, 0, self_run, &own));
    assert_false(hints_wait_for_others(world.apps[0][0].hints));
    world_close();
}

#define LARGE_OPS 8u

static struct bytes
large_key(u32 i)
{
    static char names[LARGE_OPS][16];
    int size = snprintf(names[i], sizeof(names[i]), "{large}%u", (unsigned)i);
    return BYTES(names[i], size);
}

/* The last batch that fits LIMIT_BATCH_BYTES: its hint does not, together with its keys. */
static void
large_put(struct lsm_batch *batch)
{
    u32 size = (u32)(LIMIT_BATCH_BYTES / LARGE_OPS - sizeof(struct log_op) - large_key(0).size);
    u8 *value = mem_alloc(io_budget(), size);
    CHECK(value != NULL);
    for (u32 i = 0; i < LARGE_OPS; i++) {
        memset(value, (int)i, size);
        CHECK(
            lsm_batch_put(batch, 0, hash_token(large_key(i)), large_key(i), BYTES(value, size), 0));
    }
    CHECK(batch->ops.size == LIMIT_BATCH_BYTES);
    mem_free(io_budget(), value, size);
}

static void
large_run(struct peer_rig_node *node, void *arg)
{
    struct world_op *op = arg;
    struct replica_app *app = world_app(node);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    large_put(&batch);
    op->st = replicate_write(app->replicator, op->level, &batch, UINT64_MAX,
                             io_now_ns() + SECONDS(5), &op->version);
    lsm_batch_deinit(&batch);
}

struct large_look {
    u32 found;
    u64 version;
    bool damaged;
};

static void
large_look_run(struct peer_rig_node *node, void *arg)
{
    struct large_look *look = arg;
    struct replica_app *app = world_app(node);
    for (u32 i = 0; i < LARGE_OPS; i++) {
        struct lsm_value value;
        if (!ok(lsm_get(app->lsm, NULL, 0, hash_token(large_key(i)), large_key(i), &value)))
            continue;
        look->found++;
        look->version = value.version;
        for (size_t at = 0; at < value.value.size; at++)
            look->damaged = look->damaged || value.value.data[at] != i;
        lsm_value_release(&value);
    }
}

static void
the_largest_batch_arrives_as_one(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.memtable_bytes = MIB(24);
    world.rig.memory_bytes = MIB(512);
    story_go();
    away(2);
    struct world_op op = {.key = 0};
    CHECK(peer_rig_do(&world.rig, 0, 0, large_run, &op));
    assert_true(ok(op.st));
    write_keys(0, 0, 20, 1000);
    assert_int_equal(world_hints_of(0).waiting, 21);
    peer_rig_run(&world.rig, SECONDS(2));
    assert_int_equal(world_hints_of(0).queued_bytes, 0);
    u64 bytes = world_hints_of(0).waiting_bytes;
    peer_rig_crash(&world.rig, 0, true);
    world_start(0);
    assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(5)));
    assert_int_equal(world_hints_of(0).waiting, 21);
    assert_int_equal(world_hints_of(0).waiting_bytes, bytes);
    back(2);
    for (u32 i = 0; i < 200 && !world_delivered(NULL); i++) {
        struct large_look look = {0};
        CHECK(peer_rig_do(&world.rig, 2, 0, large_look_run, &look));
        assert_true(look.found == 0 || look.found == LARGE_OPS);
        peer_rig_run(&world.rig, MS(50));
    }
    assert_true(world_delivered(NULL));
    struct large_look look = {0};
    CHECK(peer_rig_do(&world.rig, 2, 0, large_look_run, &look));
    assert_int_equal(look.found, LARGE_OPS);
    assert_int_equal(look.version, op.version);
    assert_false(look.damaged);
    assert_int_equal(unlike(0, 20), 0);
    assert_int_equal(world_hints_of(0).damaged, 0);
    world_close();
}

/* One in parts, as large as can be, and 20 small ones, for who is away, and a shard that was
 * started again with less memory than the large one takes. */
static void
less_memory_go(void)
{
    world.memtable_bytes = MIB(24);
    world.rig.memory_bytes = MIB(512);
    story_go();
    away(2);
    struct world_op op = {.key = 0};
    CHECK(peer_rig_do(&world.rig, 0, 0, large_run, &op));
    assert_true(ok(op.st));
    write_keys(0, 0, 20, 1000);
    peer_rig_run(&world.rig, SECONDS(2));
    assert_int_equal(world_hints_of(0).queued_bytes, 0);
    peer_rig_crash(&world.rig, 0, true);
    world.hint_memory_bytes = MIB(4);
    world_start(0);
    assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(5)));
    assert_int_equal(world_hints_of(0).waiting, 21);
}

static bool
too_large_told(void *arg)
{
    (void)arg;
    return world.apps[0][0].hints->too_large_told_ns != 0;
}

static void
a_hint_that_does_not_fit_any_more_is_in_nobodys_way(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.replay_bytes_per_s = MIB(1); /* the large one keeps a pass waiting for 8 s */
    less_memory_go();
    back(2);
    assert_true(peer_rig_run_until(&world.rig, too_large_told, NULL, SECONDS(20)));
    assert_true(world.hint_budgets[0][0].used_bytes < KIB(256));
    u64 small = 20;
    assert_true(peer_rig_run_until(&world.rig, some_replayed, &small, SECONDS(20)));
    assert_int_equal(unlike(0, 20), 0);
    peer_rig_run(&world.rig, SECONDS(20));
    assert_int_equal(world_hints_of(0).waiting, 1);
    assert_int_equal(world_hints_of(0).replayed, 20);
    assert_true(world_hints_of(0).waiting_bytes > LIMIT_BATCH_BYTES);
    /* And nothing of it is lost. */
    peer_rig_crash(&world.rig, 0, true);
    world.hint_memory_bytes = 0;
    world_start(0);
    assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(5)));
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    struct large_look look = {0};
    CHECK(peer_rig_do(&world.rig, 2, 0, large_look_run, &look));
    assert_int_equal(look.found, LARGE_OPS);
    assert_false(look.damaged);
    assert_int_equal(world_hints_of(0).waiting_bytes, 0);
    world_close();
}

static bool
none_waits(void *arg)
{
    (void)arg;
    return world_hints_of(0).waiting == 0;
}

static void
a_hint_that_does_not_fit_any_more_expires_as_all_do(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.window_ms = 20000;
    less_memory_go();
    assert_true(peer_rig_run_until(&world.rig, none_waits, NULL, SECONDS(60)));
    struct hints_stats stats = world_hints_of(0);
    assert_int_equal(stats.expired, 21);
    assert_int_equal(stats.waiting_bytes, 0);
    assert_true(hints_oldest_waiting(world.apps[0][0].hints) == UINT64_MAX);
    world_close();
}

/* A hint of two store batches, while the store takes nothing. */
static struct hint_run *
large_queue(struct replica_app *app, struct lsm_batch *batch)
{
    lsm_batch_init(batch, io_budget());
    large_put(batch);
    batch->version = hlc_version_at(io_wall_ms());
    lsm_writes_hold(app->lsm);
    hints_add(app->hints, 3, batch);
    fiber_sleep_ns(NS_PER_MS);
    struct hint_run *run = hint_run_find(
        app->hints, token_partition(hash_token(large_key(0)), PARTITION_COUNT_DEFAULT), 3);
    CHECK(run != NULL && run->waiting == 1 && run->queued == 1 && !list_empty(&app->hints->queue));
    return run;
}

static MAY_YIELD void
queue_go(struct replica_app *app)
{
    lsm_writes_release(app->lsm);
    while (app->hints->storing || !list_empty(&app->hints->queue))
        fiber_sleep_ns(NS_PER_MS);
}

static void
half_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct replica_app *app = world_app(node);
    struct hints *h = app->hints;
    static struct budget tight;
    struct budget *budget = h->options.budget;
    budget_init(&tight, "tight", MIB(64), budget);
    h->options.budget = &tight;
    struct lsm_batch batch;
    struct hint_run *run = large_queue(app, &batch);
    tight.limit_bytes = 0; /* the second batch finds no memory */
    queue_go(app);
    h->options.budget = budget;
    CHECK(h->stats.dropped == 1 && run->repair);
    /* One more of the same run, which fits. */
    lsm_batch_clear(&batch);
    struct bytes key = large_key(0);
    CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES_LITERAL("small"), 0));
    batch.version = hlc_version_at(io_wall_ms());
    hints_add(h, 3, &batch);
    lsm_batch_deinit(&batch);
}

/* What is there of it counts, so that what comes after it does when that has been found and has
 * gone. */
static void
a_hint_that_was_stored_in_part_takes_no_others_place(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.memtable_bytes = MIB(24);
    world.rig.memory_bytes = MIB(512);
    story_go();
    away(2);
    CHECK(peer_rig_do(&world.rig, 0, 0, half_run, NULL));
    struct hints_stats stats = world_hints_of(0);
    assert_int_equal(stats.waiting, 2);
    assert_true(stats.waiting_bytes > 7 * LIMIT_VALUE_BYTES);
    assert_true(stats.waiting_bytes < LIMIT_BATCH_BYTES);
    back(2);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(20)));
    stats = world_hints_of(0);
    assert_int_equal(stats.damaged, 1);
    assert_int_equal(stats.replayed, 1);
    assert_int_equal(stats.waiting_bytes, 0);
    world_crash(0);
    world_start(0);
    assert_true(peer_rig_run_until(&world.rig, all_loaded, NULL, SECONDS(5)));
    assert_int_equal(world_hints_of(0).waiting, 0);
    world_close();
}

static void
uncounted_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct replica_app *app = world_app(node);
    struct hints *h = app->hints;
    struct lsm_batch batch;
    struct hint_run *run = large_queue(app, &batch);
    u32 partition = run->partition;
    hint_run_uncount(h, run, 0); /* as by one that could not be read when hints were counted */
    hint_runs_prune(h);
    CHECK(hint_run_find(h, partition, 3) == run);
    queue_go(app);
    CHECK(h->stats.dropped == 0);
    hint_runs_prune(h);
    CHECK(hint_run_find(h, partition, 3) == NULL);
    lsm_batch_deinit(&batch);
}

static void
a_run_stays_while_the_queue_names_it(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.memtable_bytes = MIB(24);
    world.rig.memory_bytes = MIB(512);
    story_go();
    away(2);
    CHECK(peer_rig_do(&world.rig, 0, 0, uncounted_run, NULL));
    world_close();
}

static void
full_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct replica_app *app = world_app(node);
    struct hints *h = app->hints;
    u64 more = app->lsm->budget.limit_bytes / 16 * 7; /* as if many tables had come */
    app->lsm->levels->table_stats.index_bytes += more;
    CHECK(lsm_index_is_full(app->lsm));
    u32 lost = 0;
    for (u32 i = 0; i < h->partition_count; i++)
        for (struct hint_run *run = h->runs[i]; run != NULL; run = run->next, lost++)
            hint_run_lost(h, run, run->version_oldest);
    CHECK(lost > 0);
    u64 end = io_now_ns() + SECONDS(10);
    while (h->markers_due && io_now_ns() < end)
        fiber_sleep_ns(MS(10));
    CHECK(!h->markers_due);
    app->lsm->levels->table_stats.index_bytes -= more;
}

/* Else nothing is deleted of what has been delivered: room would wait for room. */
static void
a_store_full_of_indexes_takes_the_markers_of_what_needs_repair(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    story_go();
    away(2);
    write_keys(0, 0, 20, 1000);
    CHECK(peer_rig_do(&world.rig, 0, 0, full_run, NULL));
    assert_int_equal(sim_mark_count(world.rig.sim, "cluster.hints.marker_refused"), 0);
    world_close();
}

/* As much memory as a shard's part of the cluster has on the smallest node; twelve members are away,
 * and the store takes nothing. */
static void
least_run(struct peer_rig_node *node, void *arg)
{
    struct replica_app *app = world_app(node);
    struct hints *h = app->hints;
    static struct budget tight;
    struct budget *budget = h->options.budget;
    budget_init(&tight, "tight", MIB(4), budget);
    h->options.budget = &tight;
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    lsm_writes_hold(app->lsm);
    static const u8 value[40];
    for (u32 i = 0; i < 60000; i++) {
        char name[24];
        struct bytes key = BYTES(name, snprintf(name, sizeof(name), "least:%u", (unsigned)i));
        lsm_batch_clear(&batch);
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, sizeof(value)), 0));
        batch.version = hlc_version_at(io_wall_ms()) + i * HLC_STAMPS;
        hints_add(h, 2 + i % 12, &batch);
    }
    *(u64 *)arg = tight.used_bytes_max;
    CHECK(h->stats.dropped > 0 && h->all.repair);
    queue_go(app);
    CHECK(h->stats.dropped < h->stats.added);
    h->options.budget = budget;
    lsm_batch_deinit(&batch);
}

/* Reads, comparisons and streams have the rest. */
static void
hints_leave_half_of_the_memory_to_others(void **state)
{
    (void)state;
    u64 most = 0;
    world_open(1, 3, 3, 1);
    story_go();
    away(2);
    CHECK(peer_rig_do(&world.rig, 0, 0, least_run, &most));
    assert_in_range(most, MIB(1), MIB(2) + KIB(64));
    world_close();
}

/* As many hints as fast as can be, without the writes that they would be of. */
#define MANY       8000u
#define MANY_BYTES 1000u

static void
many_run(struct peer_rig_node *node, void *arg)
{
    u32 *done = arg;
    static const u8 value[MANY_BYTES];
    struct replica_app *app = world_app(node);
    struct lsm_batch batch;
    lsm_batch_init(&batch, io_budget());
    for (; *done < MANY; (*done)++) {
        char name[24];
        struct bytes key = BYTES(name, snprintf(name, sizeof(name), "many:%u", (unsigned)*done));
        lsm_batch_clear(&batch);
        CHECK(lsm_batch_put(&batch, 0, hash_token(key), key, BYTES(value, sizeof(value)), 0));
        batch.version = hlc_version_at(io_wall_ms()) + *done * HLC_STAMPS;
        hints_add(app->hints, 3, &batch);
        if (*done % 64 == 0) fiber_sleep_ns(NS_PER_MS);
    }
    lsm_batch_deinit(&batch);
}

/* 30 s of 5,000 writes/s of 1 KB are to be there within 10 s, from two coordinators: 7.5 MB/s of
 * each. It may not take all of that, since the same disks and the same network serve clients. */
static void
replay_brings_twenty_megabytes_a_second(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    world.memtable_bytes = MIB(4);
    story_go();
    away(2);
    u32 done = 0;
    CHECK(peer_rig_do(&world.rig, 0, 0, many_run, &done));
    assert_int_equal(world_hints_of(0).waiting, MANY);
    assert_int_equal(world_hints_of(0).dropped, 0);
    back(2);
    u64 one = 1;
    assert_true(peer_rig_run_until(&world.rig, some_replayed, &one, SECONDS(5)));
    u64 began = sim_now_ns(world.rig.sim);
    assert_true(peer_rig_run_until(&world.rig, world_delivered, NULL, SECONDS(5)));
    u64 took = sim_now_ns(world.rig.sim) - began;
    u64 rate = (u64)MANY * MANY_BYTES * NS_PER_S / took;
    if (getenv("SIM_STATS") != NULL)
        fprintf(stderr, "replayed at %llu KB/s\n", (unsigned long long)rate / 1000);
    assert_true(rate >= 20000000);
    /* And not as fast as it can. */
    assert_true(rate <= HINTS_REPLAY_BYTES_PER_S * 5 / 4);
    world_close();
}

/* ---- seeds ---- */

#define SEED_KEYS_MAX 12u

static u32 seed_keys;

static u64 collected; /* bounds */

static void
op_begin(void)
{
    struct prng *prng = &world.prng;
    u32 key = (u32)prng_below(prng, seed_keys);
    struct topology_row row;
    world_row(key, &row);
    u32 node = row.write[prng_below(prng, row.count)] - 1;
    if (!world_runs(node)) return;
    world_op_begin(node, key, prng_chance(prng, 1, 3) ? 0 : world.op_count + 1);
}

static void
seed_crash(u32 node)
{
    struct world_crash_times times = {.away_ms_min = 1, .away_ms_max = 3000, .known_ms_max = 300};
    if (world_runs(node)) world_crash_begin(node, times);
}

static void
seed_nodes_turn(void)
{
    struct prng *prng = &world.prng;
    (void)world_nodes_turn();
    if (prng_chance(prng, 1, 25)) seed_crash((u32)prng_below(prng, world.rig.node_count));
    u32 a = (u32)prng_below(prng, world.rig.node_count);
    u32 b = (u32)prng_below(prng, world.rig.node_count);
    if (a == b || !prng_chance(prng, 1, 10)) return;
    peer_rig_link_flip(&world.rig, a, b);
    if (prng_chance(prng, 1, 3) && world_runs(a))
        sim_node_shard_stall(world.rig.nodes[a].machine,
                             (u32)prng_below(prng, world.rig.shard_count),
                             MS(prng_range(prng, 1, 60)));
}

/* Whether everybody has the same of a key; *newest: the highest version that anybody has. */
static bool
alike(u32 key, u64 *newest)
{
    struct topology_row row;
    world_row(key, &row);
    bool same = true;
    u64 first = 0;
    for (u32 i = 0; i < row.count; i++) {
        u64 version = world_look_at(row.write[i] - 1, key).version;
        if (i == 0) first = version;
        same = same && version == first;
        *newest = MAX(*newest, version);
    }
    return same;
}

/* Collects as far as hints allow, when every replica has what the others have. */
static void
collector_turn(void)
{
    struct prng *prng = &world.prng;
    if (!prng_chance(prng, 1, 15)) return;
    for (u32 i = 0; i < world.rig.node_count; i++)
        if (!world_runs(i)) return;
    u64 below = world_oldest(replicator_oldest_version), newest = 0;
    if (below == 0) return;
    /* Only what a hint brings may be missing anywhere. */
    for (u32 key = 0; key < seed_keys; key++) {
        for (u32 i = 0; i < world.rig.node_count; i++)
            if (!world_runs(i)) return;
        if (!alike(key, &newest)) return;
    }
    u32 node = (u32)prng_below(prng, world.rig.node_count);
    world_collect(node, below);
    collected++;
}

static const struct world_op *
op_of_id(u64 id)
{
    return id >= 1 && id <= world.op_count ? &world.ops[id - 1] : NULL;
}

/* Whether the write of the version that somebody has may be missing elsewhere. */
static bool
excused(u32 key, const struct world_look *look)
{
    const struct world_op *op = op_of_id(look->id);
    if (op != NULL) return op->excused;
    for (u32 i = 0; i < world.op_count; i++)
        if (world.ops[i].key == key && world.ops[i].id == 0 && world.ops[i].excused &&
            (!world.ops[i].ended || !ok(world.ops[i].st) || world.ops[i].version == look->version))
            return true;
    return false;
}

/* Whether a deletion whose outcome is unknown may have come after the write: once it was collected
 * nothing tells of it. */
static bool
maybe_deleted(const struct world_op *write)
{
    for (u32 i = 0; i < world.op_count; i++)
        if (world.ops[i].key == write->key && world.ops[i].id == 0 &&
            (!world.ops[i].ended || !ok(world.ops[i].st)) &&
            world.ops[i].begun_ns + world.ops[i].deadline_ns >= write->begun_ns)
            return true;
    return false;
}

static void
judge_key(u32 key)
{
    struct topology_row row;
    world_row(key, &row);
    const struct world_op *acknowledged = world_acknowledged(key);
    struct world_look newest = {0}, looks[LIMIT_PLACEMENT_REPLICAS];
    for (u32 i = 0; i < row.count; i++) {
        looks[i] = world_look_at(row.write[i] - 1, key);
        if (looks[i].version > newest.version) newest = looks[i];
    }
    for (u32 i = 0; i < row.count; i++) {
        bool collectable = newest.id == 0 && looks[i].id == 0;
        if (looks[i].version != newest.version && !collectable && !excused(key, &newest))
            VIOLATED("key %u: node %u has version %llu (value %llu), others %llu (%llu)", key,
                     row.write[i], (unsigned long long)looks[i].version,
                     (unsigned long long)looks[i].id, (unsigned long long)newest.version,
                     (unsigned long long)newest.id);
        if (acknowledged == NULL || looks[i].version >= acknowledged->version) continue;
        bool gone = looks[i].id == 0 &&
                    (acknowledged->id == 0 || (newest.id == 0 && maybe_deleted(acknowledged)));
        if (!gone && !acknowledged->excused && !excused(key, &newest))
            VIOLATED("key %u: node %u has version %llu (value %llu), %llu (%llu) was acknowledged",
                     key, row.write[i], (unsigned long long)looks[i].version,
                     (unsigned long long)looks[i].id, (unsigned long long)acknowledged->version,
                     (unsigned long long)acknowledged->id);
    }
}

/* A value is gone everywhere, of which only a deletion can tell whose outcome nobody knows. */
static void
a_deletion_of_unknown_outcome_may_be_collected_without_a_trace(void **state)
{
    (void)state;
    world_open(1, 3, 3, 1);
    story_go();
    struct world_op *put = &world.ops[0], *deletion = &world.ops[1];
    *put = (struct world_op){.node = 0, .key = 1, .id = 1};
    *deletion = (struct world_op){.node = 1, .key = 1};
    assert_true(ok(world_write(put)));
    assert_true(ok(world_write(deletion)));
    peer_rig_run(&world.rig, MS(100));
    for (u32 node = 0; node < 3; node++) {
        world_collect(node, world_look_at(node, 1).version + 1);
        assert_int_equal(world_look_at(node, 1).version, 0);
    }
    world.op_count = 2;
    deletion->st = ST_TIMED_OUT;
    judge_key(1);
    assert_string_equal(world.violation, "");
    /* It counts as long as it may be done. */
    deletion->deadline_ns = 0;
    deletion->begun_ns = put->begun_ns - 1;
    judge_key(1);
    assert_string_not_equal(world.violation, "");
    world.violation[0] = 0;
    world.op_count = 1;
    judge_key(1);
    assert_string_not_equal(world.violation, "");
    world_close();
}

static bool
seed_run(u64 seed)
{
    u32 nodes = seed % 4 == 0 ? 5 : seed % 4 == 1 ? 4 : 3;
    world_open(seed, nodes, nodes, seed % 5 == 0 ? 2 : 1);
    world.memtable_bytes = KIB(256);
    world.ends = reached_add;
    struct prng *prng = &world.prng;
    world.optimist = prng_chance(prng, 1, 4);
    seed_keys = prng_chance(prng, 1, 2) ? 2 : SEED_KEYS_MAX;
    if (prng_chance(prng, 1, 3)) world.replay_bytes_per_s = prng_range(prng, 500, 40000);
    world_draw();
    peer_rig_open(&world.rig);
    peer_rig_run(&world.rig, SECONDS(2));
    u32 most = (u32)prng_range(prng, 60, 200);
    for (u32 turn = 0; turn < 2000 && world.op_count < most; turn++) {
        if (prng_chance(prng, 1, 2)) op_begin();
        seed_nodes_turn();
        collector_turn();
        peer_rig_run(&world.rig, MS(prng_below(prng, prng_chance(prng, 1, 10) ? 1500 : 60)));
    }
    world_heal();
    struct hints_stats sum = world_hints();
    if (sum.repairs_due > 0 || sum.damaged > 0 || sum.orphaned > 0 || sum.expired > 0)
        VIOLATED("dropped %llu, stale %llu, damaged %llu, repairs due %llu",
                 (unsigned long long)sum.dropped, (unsigned long long)sum.stale,
                 (unsigned long long)sum.damaged, (unsigned long long)sum.repairs_due);
    for (u32 key = 0; key < seed_keys; key++)
        judge_key(key);
    return world_judge();
}

/* SIM_STATS=1 counts. */
static void
replicas_become_equal_without_a_read_whatever_fails(void **state)
{
    (void)state;
    struct seeds seeds = seeds_chosen(SEED_COUNT);
    reached = (struct hints_stats){0};
    collected = 0;
    u32 failed = seeds_run(&seeds, 5, seed_run);
    if (getenv("SIM_STATS") != NULL)
        fprintf(stderr,
                "added %llu replayed %llu failed %llu dropped %llu stale %llu collected %llu\n",
                (unsigned long long)reached.added, (unsigned long long)reached.replayed,
                (unsigned long long)reached.failed, (unsigned long long)reached.dropped,
                (unsigned long long)reached.stale, (unsigned long long)collected);
    assert_int_equal(failed, 0);
    if (seeds_count(&seeds) < SEED_COUNT) return;
    /* Nothing of this is left out by all seeds. */
    assert_true(reached.added > 100 && reached.replayed > 100 && reached.failed > 10);
    assert_true(collected > 10);
}

int
main(void)
{
    signal(SIGABRT, world_on_abort);
    const struct CMUnitTest stories[] = {
        cmocka_unit_test(a_dead_replica_has_all_it_missed_without_a_read),
        cmocka_unit_test(hints_survive_a_restart_of_who_keeps_them),
        cmocka_unit_test(replay_goes_on_after_a_crash_of_either_side),
        cmocka_unit_test(what_does_not_fit_is_known_to_need_repair),
        cmocka_unit_test(a_hint_for_who_has_left_goes_to_who_holds_the_key),
        cmocka_unit_test(a_hint_for_dead_replicas_stands_in_nobodys_way),
        cmocka_unit_test(while_a_plan_is_under_way_the_next_row_comes_first),
        cmocka_unit_test(after_its_window_a_hint_goes_and_repair_is_due),
        cmocka_unit_test(what_was_deleted_stays_so_though_an_older_hint_comes_later),
        cmocka_unit_test(a_hint_below_what_was_collected_is_refused),
        cmocka_unit_test(a_hint_counts_until_no_power_cut_brings_it_back),
        cmocka_unit_test(a_hint_for_the_own_store_from_before_a_restart_moves_the_clock),
        cmocka_unit_test(what_waits_for_the_own_store_waits_for_nobody_else),
        cmocka_unit_test(the_largest_batch_arrives_as_one),
        cmocka_unit_test(a_hint_that_does_not_fit_any_more_is_in_nobodys_way),
        cmocka_unit_test(a_hint_that_does_not_fit_any_more_expires_as_all_do),
        cmocka_unit_test(a_hint_that_was_stored_in_part_takes_no_others_place),
        cmocka_unit_test(a_run_stays_while_the_queue_names_it),
        cmocka_unit_test(hints_leave_half_of_the_memory_to_others),
        cmocka_unit_test(a_store_full_of_indexes_takes_the_markers_of_what_needs_repair),
        cmocka_unit_test(replay_brings_twenty_megabytes_a_second),
        cmocka_unit_test(a_deletion_of_unknown_outcome_may_be_collected_without_a_trace),
    };
    const struct CMUnitTest seeds[] = {
        cmocka_unit_test(replicas_become_equal_without_a_read_whatever_fails),
    };
    int failed = 0;
    if (!seeds_is_one()) failed += cmocka_run_group_tests_name("stories", stories, NULL, NULL);
    failed += cmocka_run_group_tests_name("seeds", seeds, NULL, NULL);
    return failed;
}
