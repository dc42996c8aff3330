/* SPDX-License-Identifier: MIT
 *
 * test_liveness.c -- when members are suspected, and when not. The second half runs nodes that ping
 * each other in steps of a millisecond, over links that delay and cut, with loops that stall.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/prng.h"
#include "cluster/liveness.h"

#define MS 1000000ull

static struct budget budget;

static int
setup(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(1), NULL);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    assert_int_equal(budget.used_bytes, 0);
    return 0;
}

static void
ticks(struct liveness *liveness, u64 from_ms, u64 to_ms)
{
    for (u64 ms = from_ms; ms <= to_ms; ms += 100) {
        liveness_tick(liveness, ms * MS);
        assert_true(liveness_check(liveness));
    }
}

static void
expect_change(struct liveness *liveness, u32 number, u8 from, u8 to)
{
    struct liveness_change change;
    assert_true(liveness_change(liveness, &change));
    assert_int_equal(change.number, number);
    assert_int_equal(change.from, from);
    assert_int_equal(change.to, to);
}

static void
expect_no_change(struct liveness *liveness)
{
    struct liveness_change change;
    assert_false(liveness_change(liveness, &change));
}

static void
silence_is_suspected_after_five_pings_and_death_after_five_seconds(void **state)
{
    (void)state;
    struct liveness liveness;
    liveness_init(&liveness, &budget, 0);
    int seven, three, other;
    assert_true(liveness_add(&liveness, 7, &seven, 0));
    assert_true(liveness_add(&liveness, 3, &three, 0));
    assert_true(liveness_add(&liveness, 7, &other, 400 * MS)); /* is there: no news of it */
    assert_ptr_equal(liveness_arg(&liveness, 7), &seven);
    assert_ptr_equal(liveness_arg(&liveness, 3), &three);
    assert_null(liveness_arg(&liveness, 5));
    ticks(&liveness, 100, 300);
    liveness_heard(&liveness, 3, false, 350 * MS);
    ticks(&liveness, 400, 400);
    expect_no_change(&liveness);
    ticks(&liveness, 500, 500);
    expect_change(&liveness, 7, LIVENESS_ALIVE, LIVENESS_SUSPECT);
    ticks(&liveness, 600, 800);
    expect_no_change(&liveness);
    ticks(&liveness, 900, 900); /* 550 ms */
    expect_change(&liveness, 3, LIVENESS_ALIVE, LIVENESS_SUSPECT);
    liveness_heard(&liveness, 3, true, 910 * MS);
    expect_change(&liveness, 3, LIVENESS_SUSPECT, LIVENESS_ALIVE);
    assert_true(liveness_ill(&liveness, 3));
    ticks(&liveness, 1000, 4900);
    assert_int_equal(liveness_state(&liveness, 7), LIVENESS_SUSPECT);
    ticks(&liveness, 5000, 5000);
    assert_int_equal(liveness_state(&liveness, 7), LIVENESS_DEAD);
    assert_int_equal(liveness_state(&liveness, 3), LIVENESS_SUSPECT);
    liveness_heard(&liveness, 7, false, 5050 * MS);                /* back before anybody asked */
    expect_change(&liveness, 7, LIVENESS_SUSPECT, LIVENESS_ALIVE); /* in a circle: after 3 */
    expect_change(&liveness, 3, LIVENESS_ALIVE, LIVENESS_SUSPECT);
    expect_no_change(&liveness);
    liveness_heard(&liveness, 99, false, 5050 * MS); /* nobody */
    assert_int_equal(liveness_state(&liveness, 99), LIVENESS_DEAD);
    assert_false(liveness_ill(&liveness, 99));
    struct liveness_stats stats;
    liveness_stats_get(&liveness, &stats);
    assert_int_equal(stats.suspected, 3);
    assert_int_equal(stats.died, 1);
    assert_int_equal(stats.recovered, 2);
    assert_int_equal(stats.alive, 1);
    assert_int_equal(stats.suspect, 1);
    assert_int_equal(stats.pauses, 0);
    liveness_deinit(&liveness);
}

static void
the_near_are_pinged_at_each_tick_and_the_dead_at_each_tenth(void **state)
{
    (void)state;
    struct liveness liveness;
    liveness_init(&liveness, &budget, 0);
    for (u32 number = 20; number > 0; number--)
        assert_true(liveness_add(&liveness, number, NULL, 0));
    u32 pings[21] = {0}, number;
    for (u64 ms = 100; ms <= 10000; ms += 100) {
        liveness_tick(&liveness, ms * MS);
        while (liveness_ping(&liveness, &number))
            pings[number]++;
        for (u32 i = 2; i <= 20; i++)
            liveness_heard(&liveness, i, false, ms * MS);
    }
    assert_int_equal(pings[1],
                     49 + 5); /* at each tick before 5,000 ms, then at those that end in 9 */
    for (u32 i = 2; i <= 20; i++)
        assert_int_equal(pings[i], 100);

    /* Who goes while pings are sent takes nobody else's. */
    liveness_tick(&liveness, 10100 * MS);
    assert_true(liveness_ping(&liveness, &number));
    assert_int_equal(number, 2);
    liveness_remove(&liveness, 2);
    liveness_remove(&liveness, 2);
    assert_true(liveness_ping(&liveness, &number));
    assert_int_equal(number, 3);
    assert_true(liveness_check(&liveness));
    liveness_deinit(&liveness);
}

/* A process that was stopped for 10 s finds its answers waiting. */
static void
a_pause_of_our_own_condemns_nobody(void **state)
{
    (void)state;
    for (u32 order = 0; order < 2; order++) {
        struct liveness liveness;
        liveness_init(&liveness, &budget, 0);
        assert_true(liveness_add(&liveness, 1, NULL, 0));
        assert_true(liveness_add(&liveness, 2, NULL, 0));
        ticks(&liveness, 100, 300);
        liveness_heard(&liveness, 1, false, 290 * MS);
        assert_false(liveness_self_ill(&liveness, 300 * MS));
        if (order == 1) liveness_heard(&liveness, 1, false, 10299 * MS);
        liveness_tick(&liveness, 10300 * MS);
        expect_no_change(&liveness);
        assert_true(liveness_self_ill(&liveness, 10300 * MS));
        assert_true(liveness_self_ill(&liveness, 11299 * MS));
        assert_false(liveness_self_ill(&liveness, 11300 * MS));
        /* 2 was silent before: that is not forgotten. 300 ms, and one ping. */
        liveness_tick(&liveness, 10400 * MS);
        expect_change(&liveness, 2, LIVENESS_ALIVE, LIVENESS_SUSPECT);
        liveness_tick(&liveness, 10600 * MS - 1);
        expect_no_change(&liveness);
        liveness_tick(&liveness, 10800 * MS - 2); /* one tick that is late by less is no pause */
        liveness_tick(&liveness, 10900 * MS);
        expect_change(&liveness, 1, LIVENESS_ALIVE, LIVENESS_SUSPECT);
        struct liveness_stats stats;
        liveness_stats_get(&liveness, &stats);
        assert_int_equal(stats.pauses, 1);
        assert_int_equal(stats.paused_ns, 9900 * MS);
        liveness_self_stalled(&liveness, 12000 * MS); /* the disk */
        assert_true(liveness_self_ill(&liveness, 12999 * MS));
        liveness_tick(&liveness, 5 * MS); /* a clock that goes back does no harm */
        liveness_deinit(&liveness);
    }
}

static void
too_little_memory_is_a_refusal(void **state)
{
    (void)state;
    struct budget none;
    budget_init(&none, "none", 0, NULL);
    struct liveness liveness;
    liveness_init(&liveness, &none, 0);
    assert_false(liveness_add(&liveness, 1, NULL, 0));
    assert_true(liveness_check(&liveness));
    liveness_deinit(&liveness);
}

/* ---- many ---- */

enum { MANY = 1000, STEP_MS = 100 };

/* Members 1 to MANY, of whom every eighth is near. */
static void
many_init(struct liveness *liveness)
{
    liveness_init(liveness, &budget, 0);
    for (u32 number = 1; number <= MANY; number++) {
        assert_true(liveness_add(liveness, number, NULL, 0));
        liveness_near_set(liveness, number, number % 8 == 0, 0);
    }
}

/* A tick; whom it pings answers at once, but for one (0: nobody). How many were pinged. */
static u32
many_tick(struct liveness *liveness, u64 ms, u32 silent, u32 *pings)
{
    u32 number, count = 0;
    liveness_tick(liveness, ms * MS);
    while (liveness_ping(liveness, &number)) {
        count++;
        if (pings != NULL) pings[number]++;
        if (number != silent) liveness_heard(liveness, number, false, ms * MS);
    }
    return count;
}

/* 125 near ones at each tick, and a tenth of the 875 far ones. */
static void
the_far_are_pinged_once_a_second_and_as_many_at_each_tick(void **state)
{
    (void)state;
    struct liveness liveness;
    struct liveness_stats stats;
    u32 pings[MANY + 1] = {0};
    many_init(&liveness);
    liveness_stats_get(&liveness, &stats);
    assert_int_equal(stats.near, MANY / 8);
    for (u64 ms = 100; ms <= 10000; ms += STEP_MS)
        assert_in_range(many_tick(&liveness, ms, 0, pings), 125 + 75, 125 + 100);
    for (u32 i = 1; i <= MANY; i++)
        assert_int_equal(pings[i], i % 8 == 0 ? 100 : 10);
    expect_no_change(&liveness);
    /* Half of them go, others come: still nobody is left out, and no tick has many more. */
    for (u32 number = 1; number <= MANY; number += 2)
        liveness_remove(&liveness, number);
    for (u32 number = MANY + 1; number <= MANY + 400; number++) {
        assert_true(liveness_add(&liveness, number, NULL, 10000 * MS));
        liveness_near_set(&liveness, number, false, 10000 * MS);
    }
    assert_true(liveness_check(&liveness));
    for (u64 ms = 10100; ms <= 12000; ms += STEP_MS)
        assert_in_range(many_tick(&liveness, ms, 0, NULL), 125 + 40, 125 + 120);
    liveness_stats_get(&liveness, &stats);
    assert_int_equal(stats.alive, 900);
    liveness_deinit(&liveness);
}

/* When the member, which was heard of last at 2,000 ms, is in the state. */
static u64
found_at(struct liveness *liveness, u32 silent, enum liveness_state wanted)
{
    u64 ms = 100;
    for (; ms <= 2000; ms += STEP_MS)
        (void)many_tick(liveness, ms, 0, NULL);
    liveness_heard(liveness, silent, false, 2000 * MS);
    for (; liveness_state(liveness, silent) != wanted; ms += STEP_MS) {
        assert_true(ms < 20000);
        (void)many_tick(liveness, ms, silent, NULL);
    }
    struct liveness_stats stats;
    liveness_stats_get(liveness, &stats);
    assert_int_equal(stats.alive, MANY - 1);
    return ms - STEP_MS - 2000;
}

static void
the_silence_of_the_far_is_found_after_five_of_their_pings(void **state)
{
    (void)state;
    static const struct {
        u32 number;
        enum liveness_state state;
        u64 ms;
    } cases[] = {{800, LIVENESS_SUSPECT, 500},
                 {801, LIVENESS_SUSPECT, 5000},
                 {800, LIVENESS_DEAD, 5000},
                 {801, LIVENESS_DEAD, 10000}};
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        struct liveness liveness;
        many_init(&liveness);
        assert_int_equal(found_at(&liveness, cases[i].number, cases[i].state), cases[i].ms);
        liveness_deinit(&liveness);
    }
}

static void
who_becomes_near_is_asked_before_it_is_suspected(void **state)
{
    (void)state;
    struct liveness liveness;
    liveness_init(&liveness, &budget, 0);
    assert_true(liveness_add(&liveness, 1, NULL, 0));
    liveness_near_set(&liveness, 1, false, 0);
    liveness_near_set(&liveness, 2, true, 0); /* nobody */
    ticks(&liveness, 100, 900);
    expect_no_change(&liveness);
    liveness_near_set(&liveness, 1, true, 900 * MS);
    ticks(&liveness, 1000, 1300);
    expect_no_change(&liveness);
    ticks(&liveness, 1400, 1400);
    expect_change(&liveness, 1, LIVENESS_ALIVE, LIVENESS_SUSPECT);
    /* Who becomes far stays what it is until it answers. */
    liveness_near_set(&liveness, 1, false, 1400 * MS);
    ticks(&liveness, 1500, 2000);
    expect_no_change(&liveness);
    liveness_heard(&liveness, 1, false, 2000 * MS);
    expect_change(&liveness, 1, LIVENESS_SUSPECT, LIVENESS_ALIVE);
    /* Called near and far in turns, it is found as a far one is. */
    for (u64 ms = 2100; ms < 7000; ms += STEP_MS) {
        liveness_near_set(&liveness, 1, ms / STEP_MS % 4 != 0, ms * MS);
        liveness_tick(&liveness, ms * MS);
        expect_no_change(&liveness);
    }
    liveness_near_set(&liveness, 1, false, 7000 * MS);
    ticks(&liveness, 7000, 7000);
    expect_change(&liveness, 1, LIVENESS_ALIVE, LIVENESS_SUSPECT);
    liveness_deinit(&liveness);
}

/* Nor when it becomes near in the pause, or just before. */
static void
a_pause_of_our_own_condemns_nobody_near_or_far(void **state)
{
    (void)state;
    struct liveness liveness;
    many_init(&liveness);
    u64 ms = 100;
    for (; ms <= 2000; ms += STEP_MS)
        (void)many_tick(&liveness, ms, 0, NULL);
    liveness_near_set(&liveness, 1, true, 2000 * MS);
    ms += 30000; /* we stand still */
    liveness_near_set(&liveness, 2, true, ms * MS);
    for (u64 end = ms + 6000; ms < end; ms += STEP_MS)
        (void)many_tick(&liveness, ms, 0, NULL);
    expect_no_change(&liveness);
    struct liveness_stats stats;
    liveness_stats_get(&liveness, &stats);
    assert_int_equal(stats.pauses, 1);
    assert_int_equal(stats.suspected, 0);
    liveness_deinit(&liveness);
}

/* ---- nodes that ping each other ---- */

enum { NODES = 4, MESSAGES_MAX = 4096 };

struct message {
    u64 at_ms;
    u32 from, to;
    bool answer, ill;
};

struct net {
    struct prng prng;
    u64 now_ms;
    struct liveness nodes[NODES]; /* node i has number i + 1 */
    u64 tick_at_ms[NODES];
    u64 paused_until_ms[NODES];
    bool down[NODES];
    bool cut[NODES][NODES]; /* from, to */
    u8 told[NODES][NODES];  /* what changes said of whom */
    u64 told_at_ms[NODES][NODES];
    u32 suspicions;
    struct message messages[MESSAGES_MAX];
    u32 message_count;
};

static void
net_init(struct net *net, u64 seed)
{
    *net = (struct net){.now_ms = 1000};
    prng_init(&net->prng, seed);
    for (u32 i = 0; i < NODES; i++) {
        liveness_init(&net->nodes[i], &budget, net->now_ms * MS);
        net->tick_at_ms[i] = net->now_ms + prng_below(&net->prng, 100);
        for (u32 j = 0; j < NODES; j++)
            if (i != j) assert_true(liveness_add(&net->nodes[i], j + 1, NULL, net->now_ms * MS));
    }
}

static void
net_deinit(struct net *net)
{
    for (u32 i = 0; i < NODES; i++)
        liveness_deinit(&net->nodes[i]);
}

static void
net_send(struct net *net, u32 from, u32 to, bool answer)
{
    if (net->cut[from][to]) return;
    assert_true(net->message_count < MESSAGES_MAX);
    net->messages[net->message_count++] =
        (struct message){.at_ms = net->now_ms + prng_range(&net->prng, 1, 20),
                         .from = from,
                         .to = to,
                         .answer = answer,
                         .ill = liveness_self_ill(&net->nodes[from], net->now_ms * MS)};
}

static void
node_receive(struct net *net, u32 node)
{
    for (u32 i = 0; i < net->message_count;) {
        struct message message = net->messages[i];
        if (message.to != node || message.at_ms > net->now_ms) {
            i++;
            continue;
        }
        net->messages[i] = net->messages[--net->message_count];
        if (net->down[node]) continue;
        if (message.answer)
            liveness_heard(&net->nodes[node], message.from + 1, message.ill, net->now_ms * MS);
        else
            net_send(net, node, message.from, true);
    }
}

static void
node_tick(struct net *net, u32 node, u32 late_ms_max)
{
    if (net->now_ms < net->tick_at_ms[node] || net->down[node]) return;
    liveness_tick(&net->nodes[node], net->now_ms * MS);
    net->tick_at_ms[node] = net->now_ms + 100 + prng_below(&net->prng, late_ms_max + 1);
    u32 number;
    while (liveness_ping(&net->nodes[node], &number))
        net_send(net, node, number - 1, false);
}

static void
node_changes(struct net *net, u32 node)
{
    struct liveness_change change;
    while (liveness_change(&net->nodes[node], &change)) {
        u32 other = change.number - 1;
        assert_int_equal(change.from, net->told[node][other]);
        assert_int_not_equal(change.from, change.to);
        net->told[node][other] = change.to;
        net->told_at_ms[node][other] = net->now_ms;
        net->suspicions += change.to != LIVENESS_ALIVE;
    }
    assert_true(liveness_check(&net->nodes[node]));
}

static void
net_run(struct net *net, u64 ms, u32 late_ms_max)
{
    for (u64 end = net->now_ms + ms; net->now_ms < end; net->now_ms++)
        for (u32 node = 0; node < NODES; node++) {
            if (net->now_ms < net->paused_until_ms[node]) continue;
            /* A loop that comes back may find either first. */
            bool ticks_first = prng_chance(&net->prng, 1, 2);
            if (ticks_first) node_tick(net, node, late_ms_max);
            node_receive(net, node);
            if (!ticks_first) node_tick(net, node, late_ms_max);
            node_changes(net, node);
        }
}

/* Node 0 stalls at any time for any time; the others answer. */
static void
whoever_stalls_suspects_nobody_for_it(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 40; seed++) {
        struct net *net = test_calloc(1, sizeof(*net));
        net_init(net, seed);
        for (u32 round = 0; round < 20; round++) {
            u64 pause_ms = prng_below(&net->prng, prng_chance(&net->prng, 1, 4) ? 12000 : 700);
            net->paused_until_ms[0] = net->now_ms + pause_ms;
            net_run(net, pause_ms + prng_below(&net->prng, 400), 60);
            for (u32 other = 1; other < NODES; other++)
                assert_int_equal(net->told[0][other], LIVENESS_ALIVE);
        }
        for (u32 node = 1; node < NODES; node++) /* nor do they each other */
            for (u32 other = 1; other < NODES; other++)
                assert_int_equal(net->told_at_ms[node][other], 0);
        for (u32 other = 1; other < NODES; other++)
            assert_int_equal(net->told_at_ms[0][other], 0);
        struct liveness_stats stats;
        liveness_stats_get(&net->nodes[0], &stats);
        assert_true(stats.pauses > 0);
        net_deinit(net);
        test_free(net);
    }
}

static void
a_dead_node_is_found_in_time_by_all(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 40; seed++) {
        struct net *net = test_calloc(1, sizeof(*net));
        net_init(net, seed);
        net_run(net, 1000 + prng_below(&net->prng, 300), 20);
        assert_int_equal(net->suspicions, 0);
        net->down[3] = true;
        u64 down_ms = net->now_ms;
        net_run(net, 780, 20);
        for (u32 node = 0; node < 3; node++) {
            assert_int_equal(net->told[node][3], LIVENESS_SUSPECT);
            /* Its last answer came at most a ping and a round trip before it died. */
            assert_in_range(net->told_at_ms[node][3], down_ms + 340, down_ms + 660);
        }
        net_run(net, 4400, 20);
        for (u32 node = 0; node < 3; node++)
            assert_int_equal(net->told[node][3], LIVENESS_DEAD);
        assert_int_equal(net->suspicions, 6);
        net->down[3] = false; /* the process starts anew, with all that it has to say */
        net_run(net, 1300, 20);
        for (u32 node = 0; node < 3; node++)
            assert_int_equal(net->told[node][3], LIVENESS_ALIVE);
        net_deinit(net);
        test_free(net);
    }
}

static void
a_link_cut_in_one_direction_is_seen_from_both_ends(void **state)
{
    (void)state;
    struct net *net = test_calloc(1, sizeof(*net));
    net_init(net, 1);
    net_run(net, 1000, 20);
    net->cut[0][1] = true;
    net_run(net, 800, 20);
    assert_int_equal(net->told[0][1], LIVENESS_SUSPECT);
    assert_int_equal(net->told[1][0], LIVENESS_SUSPECT);
    assert_int_equal(net->suspicions, 2);
    net->cut[0][1] = false;
    net_run(net, 300, 20);
    assert_int_equal(net->told[0][1], LIVENESS_ALIVE);
    assert_int_equal(net->told[1][0], LIVENESS_ALIVE);
    net_deinit(net);
    test_free(net);
}

/* The others hear that it is ill while it stalls again and again, and that it is well again. */
static void
an_ill_node_says_so(void **state)
{
    (void)state;
    struct net *net = test_calloc(1, sizeof(*net));
    net_init(net, 1);
    net_run(net, 500, 20);
    for (u32 round = 0; round < 10; round++) {
        net->paused_until_ms[2] = net->now_ms + 350;
        net_run(net, 600, 20);
        assert_true(liveness_ill(&net->nodes[0], 3));
        assert_false(liveness_ill(&net->nodes[0], 2));
    }
    assert_int_equal(net->suspicions, 0); /* 350 ms are too short for that */
    net_run(net, 1300, 20);
    assert_false(liveness_ill(&net->nodes[0], 3));
    net_deinit(net);
    test_free(net);
}

/* Everything at once, then peace: whatever was thought of whom, all are alive in the end. */
static void
after_any_disorder_all_find_each_other(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        struct net *net = test_calloc(1, sizeof(*net));
        net_init(net, seed);
        for (u32 round = 0; round < 20; round++) {
            u32 node = (u32)prng_below(&net->prng, NODES),
                other = (u32)prng_below(&net->prng, NODES);
            net->cut[node][other] = prng_chance(&net->prng, 1, 2);
            if (prng_chance(&net->prng, 1, 3))
                net->paused_until_ms[node] = net->now_ms + prng_below(&net->prng, 3000);
            net_run(net, prng_below(&net->prng, 1500), 150);
        }
        memset(net->cut, 0, sizeof(net->cut));
        net_run(net, 5000, 20);
        for (u32 node = 0; node < NODES; node++)
            for (u32 other = 0; other < NODES; other++)
                assert_int_equal(net->told[node][other], LIVENESS_ALIVE);
        net_deinit(net);
        test_free(net);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(silence_is_suspected_after_five_pings_and_death_after_five_seconds),
        cmocka_unit_test(the_near_are_pinged_at_each_tick_and_the_dead_at_each_tenth),
        cmocka_unit_test(a_pause_of_our_own_condemns_nobody),
        cmocka_unit_test(the_far_are_pinged_once_a_second_and_as_many_at_each_tick),
        cmocka_unit_test(the_silence_of_the_far_is_found_after_five_of_their_pings),
        cmocka_unit_test(who_becomes_near_is_asked_before_it_is_suspected),
        cmocka_unit_test(a_pause_of_our_own_condemns_nobody_near_or_far),
        cmocka_unit_test(too_little_memory_is_a_refusal),
        cmocka_unit_test(whoever_stalls_suspects_nobody_for_it),
        cmocka_unit_test(a_dead_node_is_found_in_time_by_all),
        cmocka_unit_test(a_link_cut_in_one_direction_is_seen_from_both_ends),
        cmocka_unit_test(an_ill_node_says_so),
        cmocka_unit_test(after_any_disorder_all_find_each_other),
    };
    return cmocka_run_group_tests_name("liveness", tests, setup, teardown);
}
