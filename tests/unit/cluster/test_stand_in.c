/* SPDX-License-Identifier: MIT
 *
 * test_stand_in.c -- who stands in for home replicas that are gone. Pure.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#include "cluster/stand_in.h"

#define MEMBERS 8u

static struct topology_member members[MEMBERS];
static struct topology topology;
static u32 gone; /* bits of numbers */

static bool
alive(const void *arg, u32 member)
{
    (void)arg;
    return (gone >> member & 1) == 0;
}

/* Numbers 1 to count, without racks. */
static void
begin(u32 count)
{
    memset(members, 0, sizeof(members));
    for (u32 i = 0; i < count; i++)
        members[i] = (struct topology_member){.number = i + 1, .state = PLACEMENT_NORMAL};
    topology = (struct topology){.members = members, .member_count = count};
    gone = 0;
}

/* A quorum of 1, 2, 3, of which those in `gone` have answered no. */
static void
quorum_of(struct quorum *quorum, u32 need)
{
    const u32 homes[] = {1, 2, 3};
    quorum_init(quorum);
    quorum_set_add(quorum, homes, 3, need);
    for (u32 i = 0; i < 3; i++)
        if (!alive(NULL, homes[i])) (void)quorum_answer(quorum, homes[i], QUORUM_NO);
}

static void
each_who_is_gone_has_another_one_who_counts_once(void **state)
{
    (void)state;
    for (u32 count = 3; count <= MEMBERS; count++)
        for (u32 bits = 0; bits < 1u << count; bits++) {
            begin(count);
            gone = bits << 1;
            struct quorum quorum;
            struct stand_ins stand_ins;
            quorum_of(&quorum, 3);
            stand_ins_choose(&topology, bits, alive, NULL, &quorum, &stand_ins);
            u32 living = 0, homes_gone = 0, seen = 0;
            for (u32 number = 4; number <= count; number++)
                living += alive(NULL, number);
            for (u32 i = 0; i < 3; i++)
                homes_gone += !alive(NULL, i + 1);
            assert_int_equal(stand_ins.count, MIN(living, homes_gone));
            assert_int_equal(quorum.count, 3);
            for (u32 i = 0; i < 3; i++) {
                u32 member = quorum.members[i];
                assert_false((seen >> member & 1) != 0);
                seen |= 1u << member;
                if (stand_ins.targets[i] == 0) {
                    assert_int_equal(member, i + 1);
                    continue;
                }
                assert_int_equal(stand_ins.targets[i], i + 1);
                assert_true(member > 3 && alive(NULL, member) && !alive(NULL, i + 1));
                assert_int_equal(quorum.answers[i], QUORUM_PENDING);
            }
            bool enough = homes_gone < 3 && stand_ins.count == homes_gone;
            assert_int_equal(quorum_state(&quorum), enough ? QUORUM_OPEN : QUORUM_LOST);
        }
}

static u32
chosen_first(u32 partition)
{
    struct quorum quorum;
    struct stand_ins stand_ins;
    quorum_of(&quorum, 3);
    stand_ins_choose(&topology, partition, alive, NULL, &quorum, &stand_ins);
    for (u32 i = 0; i < quorum.count; i++)
        if (stand_ins.targets[i] != 0) return quorum.members[i];
    return 0;
}

static void
partitions_have_others_and_always_the_same(void **state)
{
    (void)state;
    begin(MEMBERS);
    gone = 1u << 2;
    u32 counts[MEMBERS + 1] = {0};
    for (u32 partition = 0; partition < 80; partition++) {
        u32 member = chosen_first(partition);
        assert_int_equal(chosen_first(partition), member);
        counts[member]++;
    }
    for (u32 number = 4; number <= MEMBERS; number++)
        assert_true(counts[number] >= 10);
}

static void
the_nearest_to_who_is_gone_comes_first(void **state)
{
    (void)state;
    begin(MEMBERS);
    for (u32 i = 0; i < MEMBERS; i++) {
        snprintf(members[i].datacenter, sizeof(members[i].datacenter), "%s", i < 6 ? "a" : "b");
        snprintf(members[i].rack, sizeof(members[i].rack), "r%u", i % 3);
    }
    gone = 1u << 2; /* a, r1: as 5 */
    for (u32 partition = 0; partition < 20; partition++)
        assert_int_equal(chosen_first(partition), 5);
    gone |= 1u << 5;
    for (u32 partition = 0; partition < 20; partition++) {
        u32 member = chosen_first(partition);
        assert_true(member == 4 || member == 6);
    }
    gone |= 1u << 4 | 1u << 6; /* of the other data center, in the rack of this name: no better */
    u32 seen = 0;
    for (u32 partition = 0; partition < 20; partition++)
        seen |= 1u << chosen_first(partition);
    assert_int_equal(seen, 1u << 7 | 1u << 8);
}

static void
who_comes_or_goes_does_not_stand_in(void **state)
{
    (void)state;
    begin(5);
    gone = 1u << 1;
    members[3].state = PLACEMENT_JOINING;
    members[4].state = PLACEMENT_LEAVING;
    for (u32 partition = 0; partition < 10; partition++)
        assert_int_equal(chosen_first(partition), 0);
    members[4].state = PLACEMENT_NORMAL;
    assert_int_equal(chosen_first(0), 5);
}

/* While a plan is under way: in each set it is in the place of whom it stands in for, and who is a
 * home replica of either set stands in for nobody. */
static void
in_two_sets_a_stand_in_has_the_places_of_one(void **state)
{
    (void)state;
    begin(6);
    const u32 current[] = {1, 2, 3}, next[] = {1, 2, 4};
    struct quorum quorum;
    struct stand_ins stand_ins;
    quorum_init(&quorum);
    quorum_set_add(&quorum, current, 3, 2);
    quorum_set_add(&quorum, next, 3, 2);
    gone = 1u << 2 | 1u << 3 | 1u << 4;
    for (u32 number = 2; number <= 4; number++)
        (void)quorum_answer(&quorum, number, QUORUM_NO);
    stand_ins_choose(&topology, 0, alive, NULL, &quorum, &stand_ins);
    assert_int_equal(stand_ins.count, 2);
    assert_int_equal(stand_ins.targets[1], 2); /* in both */
    assert_int_equal(stand_ins.targets[2], 3); /* in the first */
    (void)quorum_answer(&quorum, 1, QUORUM_YES);
    (void)quorum_answer(&quorum, quorum.members[2], QUORUM_YES);
    assert_int_equal(quorum_state(&quorum), QUORUM_OPEN); /* the next set has one */
    (void)quorum_answer(&quorum, quorum.members[1], QUORUM_YES);
    assert_int_equal(quorum_state(&quorum), QUORUM_MET);
}

/* Reads of a set of which enough live are to meet what is acknowledged. */
static void
in_a_set_of_which_enough_live_nobody_stands_in(void **state)
{
    (void)state;
    begin(7);
    const u32 current[] = {1, 2, 3}, next[] = {1, 2, 4};
    struct quorum quorum;
    struct stand_ins stand_ins;
    quorum_init(&quorum);
    quorum_set_add(&quorum, current, 3, 2);
    quorum_set_add(&quorum, next, 3, 2);
    gone = 1u << 2 | 1u << 3;
    (void)quorum_answer(&quorum, 2, QUORUM_NO);
    (void)quorum_answer(&quorum, 3, QUORUM_NO);
    stand_ins_choose(&topology, 0, alive, NULL, &quorum, &stand_ins);
    assert_int_equal(stand_ins.targets[1], 2);
    (void)quorum_answer(&quorum, 1, QUORUM_YES);
    (void)quorum_answer(&quorum, quorum.members[1], QUORUM_YES);
    assert_int_equal(quorum_state(&quorum), QUORUM_OPEN); /* the next set needs 4 */
    (void)quorum_answer(&quorum, 4, QUORUM_YES);
    assert_int_equal(quorum_state(&quorum), QUORUM_MET);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_who_is_gone_has_another_one_who_counts_once),
        cmocka_unit_test(partitions_have_others_and_always_the_same),
        cmocka_unit_test(the_nearest_to_who_is_gone_comes_first),
        cmocka_unit_test(who_comes_or_goes_does_not_stand_in),
        cmocka_unit_test(in_two_sets_a_stand_in_has_the_places_of_one),
        cmocka_unit_test(in_a_set_of_which_enough_live_nobody_stands_in),
    };
    return cmocka_run_group_tests_name("stand_in", tests, NULL, NULL);
}
