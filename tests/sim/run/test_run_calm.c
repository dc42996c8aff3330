/* SPDX-License-Identifier: MIT
 *
 * test_run_calm.c -- the rules of the calm (calm.h). Each of these was a mistake of the simulation
 * that some seed showed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "calm.h"
#include "cluster/trees_internal.h"

#define S NS_PER_S

/* Of a node: swarm 1610. */
static void
what_was_sent_before_the_calm_is_given_up_and_not_waited_for(void **state)
{
    (void)state;
    struct patience_rule rule = {.patience_ns = 5 * S, .answer_ns_max = 60 * S};
    assert_int_equal(patience_of(&rule, 10 * S, 15 * S), PATIENCE_WAITS);
    assert_int_equal(patience_of(&rule, 10 * S, 15 * S + 1), PATIENCE_GIVES_UP);

    rule.calm = true;
    rule.calm_ns = 12 * S;
    assert_int_equal(patience_of(&rule, 10 * S, 15 * S), PATIENCE_WAITS);
    assert_int_equal(patience_of(&rule, 10 * S, 15 * S + 1), PATIENCE_GIVES_UP);
    assert_int_equal(patience_of(&rule, 12 * S - 1, 1000 * S), PATIENCE_GIVES_UP);
}

static void
what_is_sent_in_the_calm_must_be_answered(void **state)
{
    (void)state;
    struct patience_rule rule = {
        .calm = true, .calm_ns = 12 * S, .patience_ns = 5 * S, .answer_ns_max = 60 * S};
    assert_int_equal(patience_of(&rule, 12 * S, 20 * S), PATIENCE_WAITS);
    assert_int_equal(patience_of(&rule, 12 * S, 72 * S), PATIENCE_WAITS);
    assert_int_equal(patience_of(&rule, 12 * S, 72 * S + 1), PATIENCE_WRONGED);
}

/* Of a node: swarm 6000182. */
static void
work_is_not_judged_by_its_answers_while_they_are_on_their_way(void **state)
{
    (void)state;
    assert_int_equal(work_state_of(1, true, false), WORK_WAITS);
    assert_int_equal(work_state_of(1, true, true), WORK_WAITS); /* for every answer */
    assert_int_equal(work_state_of(1, false, true), WORK_DONE);
    /* All went in the middle of their pipelines. */
    assert_int_equal(work_state_of(1, false, false), WORK_AGAIN);
    assert_int_equal(work_state_of(2, true, false), WORK_WAITS);
    assert_int_equal(work_state_of(2, false, true), WORK_DONE);
    /* Not for ever: a node that ends all connections answers nothing either. */
    assert_int_equal(work_state_of(WORK_ROUNDS_MAX, true, false), WORK_WAITS);
    assert_int_equal(work_state_of(WORK_ROUNDS_MAX, false, false), WORK_UNANSWERED);
    assert_int_equal(work_state_of(WORK_ROUNDS_MAX, false, true), WORK_DONE);
}

/* Of a cluster: cluster 578. */
static void
a_cluster_is_settled_when_it_stays_so_and_not_for_a_moment(void **state)
{
    (void)state;
    u64 since_ns = 0;
    assert_false(settled_for_long(&since_ns, false, 10 * S, S));
    assert_false(settled_for_long(&since_ns, true, 11 * S, S));
    assert_false(settled_for_long(&since_ns, true, 12 * S - 1, S));
    assert_true(settled_for_long(&since_ns, true, 12 * S, S));
    /* Somebody comes back, is believed alive for having been so, and then is not. */
    assert_false(settled_for_long(&since_ns, false, 12 * S + 1, S));
    assert_false(settled_for_long(&since_ns, true, 12 * S + 2, S));
    assert_false(settled_for_long(&since_ns, true, 13 * S + 1, S));
    assert_true(settled_for_long(&since_ns, true, 13 * S + 2, S));
}

/* cluster 870: half of what is allowed is left for what the clocks are apart. */
static void
stamps_ahead_of_the_clocks_are_waited_for(void **state)
{
    (void)state;
    assert_true(stamps_settled(0));
    assert_true(stamps_settled(HLC_AHEAD_MS_MAX / 2));
    assert_false(stamps_settled(HLC_AHEAD_MS_MAX / 2 + 1));
    assert_false(stamps_settled(10000));
}

/* cluster 393. */
static void
who_is_to_come_back_is_waited_for_and_whoever_runs_is_stopped(void **state)
{
    (void)state;
    assert_non_null(node_unsettled(NODE_DOWN, 5 * S, true));
    assert_non_null(node_unsettled(NODE_DOWN, 5 * S, false));
    assert_non_null(node_unsettled(NODE_RUNS, 0, false));
    assert_null(
        node_unsettled(NODE_DOWN, 0, true)); /* a member that does not run is another rule */
    assert_null(node_unsettled(NODE_RUNS, 0, true));
    assert_null(node_unsettled(NODE_LOST, 5 * S, false));
    assert_null(node_unsettled(NODE_GONE, 5 * S, false));
    assert_true(node_to_be_stopped(true, false));
    assert_false(node_to_be_stopped(true, true));
    assert_false(node_to_be_stopped(false, false));
}

/* cluster-swarm 855. */
static void
what_is_closing_since_before_the_calm_is_left_and_does_not_break_it(void **state)
{
    (void)state;
    struct request_seen seen = {
        .answer = ANSWER_REFUSED, .begun_ns = 20 * S, .connected_ns = 5 * S, .closing = true};
    assert_false(calm_is_broken(&seen, true, 10 * S));
    seen.connected_ns = 10 * S; /* over a connection of the calm it does */
    assert_true(calm_is_broken(&seen, true, 10 * S));
    seen.closing = false;
    seen.connected_ns = 5 * S;
    assert_true(calm_is_broken(&seen, true, 10 * S));
    assert_false(calm_is_broken(&seen, false, 10 * S));
    seen.begun_ns = 10 * S - 1;
    assert_false(calm_is_broken(&seen, true, 10 * S));
    seen.begun_ns = 10 * S;
    assert_true(calm_is_broken(&seen, true, 10 * S));
    seen.aborted = true;
    assert_false(calm_is_broken(&seen, true, 10 * S));
}

/* cluster-swarm 794. */
static void
who_may_have_been_told_to_leave_is_asked_until_it_has_gone(void **state)
{
    (void)state;
    const enum cluster_answer lost[] = {ANSWER_NONE, ANSWER_UNKNOWN};
    for (u32 i = 0; i < ARRAY_COUNT(lost); i++) {
        struct leaver leaver = {.asked = false};
        assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_MEMBER), LEAVER_TO_ASK);
        leaver.asked = true;
        assert_int_equal(leaver_answered(&leaver, lost[i], STANDING_MEMBER), LEAVER_TO_ASK);
        assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_MEMBER), LEAVER_TO_ASK);
        assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_NONE), LEAVER_GOES);
    }
    /* Nothing was in doubt: a refusal is one, and an OK, too, though it is a member yet. */
    struct leaver leaver = {.asked = true};
    assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_MEMBER), LEAVER_STAYS);
    leaver = (struct leaver){.asked = true};
    assert_int_equal(leaver_answered(&leaver, ANSWER_OK, STANDING_MEMBER), LEAVER_GOES);
    /* Not for ever: the first time was not done after all. */
    leaver = (struct leaver){.asked = true};
    assert_int_equal(leaver_answered(&leaver, ANSWER_NONE, STANDING_MEMBER), LEAVER_TO_ASK);
    for (u32 i = 0; i < LEAVER_REFUSALS_MAX; i++)
        assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_MEMBER), LEAVER_TO_ASK);
    assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_MEMBER), LEAVER_STAYS);
}

/* cluster-swarm 3000141: the first time was done, its answer unknown, and it takes long to go. */
static void
who_is_leaving_already_does_not_stay_whatever_refuses_it(void **state)
{
    (void)state;
    struct leaver leaver = {.asked = true};
    assert_int_equal(leaver_answered(&leaver, ANSWER_UNKNOWN, STANDING_MEMBER), LEAVER_TO_ASK);
    for (u32 i = 0; i < LEAVER_REFUSALS_MAX; i++)
        assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_MEMBER), LEAVER_TO_ASK);
    assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_LEAVES), LEAVER_GOES);
    /* Also where nothing was in doubt: somebody else has asked it. */
    leaver = (struct leaver){.asked = true};
    assert_int_equal(leaver_answered(&leaver, ANSWER_REFUSED, STANDING_LEAVES), LEAVER_GOES);
}

/* cluster-swarm 776. */
static void
between_a_plan_and_who_replaces_a_lost_member_nothing_is_settled(void **state)
{
    (void)state;
    assert_non_null(members_unsettled(true, true, false));
    assert_non_null(members_unsettled(false, true, false)); /* forgotten, and not replaced yet */
    assert_non_null(members_unsettled(false, false, true));
    assert_non_null(members_unsettled(true, false, false));
    assert_null(members_unsettled(false, false, false));
}

/* cluster-swarm 770013. */
static void
who_was_told_that_it_may_go_does_not_count_among_those_that_stay(void **state)
{
    (void)state;
    struct member_seen members[5] = {
        {.normal = true}, {.normal = true}, {.normal = true}, {.normal = true}, {.normal = true}};
    assert_true(one_more_may_leave(members, 5));
    members[0].told = true;
    assert_true(one_more_may_leave(members, 5));
    members[3].told = true; /* by those that run both are members as before */
    assert_false(one_more_may_leave(members, 5));
    /* Who joins or leaves by the topology does not count either, and is not taken off twice. */
    members[3].normal = false;
    assert_false(one_more_may_leave(members, 5));
    members[3] = (struct member_seen){.normal = true};
    members[0].normal = false;
    assert_true(one_more_may_leave(members, 5));
}

/* cluster-swarm 30. */
static void
a_level_of_consistency_may_be_refused_like_anything(void **state)
{
    (void)state;
    assert_true(level_is_taken(BYTES("+OK\r\n", 5)));
    assert_false(level_is_taken(BYTES("-OOM no memory\r\n", 16)));
    assert_false(level_is_taken(BYTES(NULL, 0))); /* the connection has ended */
}

/* cluster-swarm 300365. */
static void
who_finds_no_place_is_told_so_in_resp_whatever_it_speaks(void **state)
{
    (void)state;
    assert_true(place_is_refused(true, BYTES("-OOM no memory\r\n", 16)));
    assert_false(place_is_refused(true, BYTES(NULL, 0))); /* nothing has come yet */
    /* To who speaks RESP it is an answer as any other, and frames begin otherwise. */
    assert_false(place_is_refused(false, BYTES("-OOM no memory\r\n", 16)));
    assert_false(place_is_refused(true, BYTES("\xd5\x44\x4b\x56", 4)));
}

/* cluster-swarm 40000718. */
static void
a_frame_that_found_no_memory_is_refused_without_its_id(void **state)
{
    (void)state;
    struct budget budget;
    budget_init(&budget, "test", UINT64_MAX, NULL);
    struct buf out;
    buf_init(&out, &budget);
    struct native_header header = {.opcode = NATIVE_GET};
    assert_true(native_reply_error(&out, &header, NATIVE_ST_OVERLOADED, 0, 0, "no memory"));
    assert_true(place_is_refused(true, buf_bytes(&out)));
    assert_false(place_is_refused(false, buf_bytes(&out)));
    assert_false(place_is_refused(true, BYTES(out.data, NATIVE_HEADER_BYTES - 1))); /* not yet */
    /* To a request it is an answer as any other; and no frame of such a client is a bad one. */
    buf_clear(&out, 0);
    header.request_id = 1;
    assert_true(native_reply_error(&out, &header, NATIVE_ST_OVERLOADED, 0, 0, "no memory"));
    assert_false(place_is_refused(true, buf_bytes(&out)));
    buf_clear(&out, 0);
    header.request_id = 0;
    assert_true(native_reply_error(&out, &header, NATIVE_ST_BAD_FRAME, 0, 0, "no frame"));
    assert_false(place_is_refused(true, buf_bytes(&out)));
    buf_deinit(&out);
}

/* Replicas that each have a part of a set which no other has, as trees go about them: a round is a
 * step of as many as there are replicas, unless what the one before has united is young yet. */
static bool
trees_make_equal(u32 replicas, u32 unanswered, u64 round_ns)
{
    u64 now_ns = 100 * S, united_ns = now_ns, pause_ns;
    u32 steps = 0;
    for (u32 round = 0; repair_round(round, &pause_ns); round++) {
        now_ns += pause_ns;
        bool young = now_ns < united_ns + TREES_FRESH_MS * NS_PER_MS;
        if (!young && round >= unanswered) {
            united_ns = now_ns;
            if (++steps == replicas) return true;
        }
        now_ns += round_ns;
    }
    return false;
}

/* cluster 7009525: three replicas, and rounds of about a second. */
static void
each_round_of_comparing_waits_for_what_the_one_before_has_united(void **state)
{
    (void)state;
    assert_true(trees_make_equal(3, 0, 1250 * NS_PER_MS));
    for (u32 replicas = 2; replicas <= 5; replicas++)
        for (u32 unanswered = 0; unanswered <= 2; unanswered++)
            for (u64 round_ns = 0; round_ns <= 10 * S; round_ns += S / 4)
                assert_true(trees_make_equal(replicas, unanswered, round_ns));
    /* Not for ever. */
    u64 pause_ns;
    u32 rounds = 0;
    while (rounds < 100 && repair_round(rounds, &pause_ns))
        rounds++;
    assert_true(rounds < 100);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_sent_before_the_calm_is_given_up_and_not_waited_for),
        cmocka_unit_test(what_is_sent_in_the_calm_must_be_answered),
        cmocka_unit_test(work_is_not_judged_by_its_answers_while_they_are_on_their_way),
        cmocka_unit_test(a_cluster_is_settled_when_it_stays_so_and_not_for_a_moment),
        cmocka_unit_test(stamps_ahead_of_the_clocks_are_waited_for),
        cmocka_unit_test(who_is_to_come_back_is_waited_for_and_whoever_runs_is_stopped),
        cmocka_unit_test(what_is_closing_since_before_the_calm_is_left_and_does_not_break_it),
        cmocka_unit_test(who_may_have_been_told_to_leave_is_asked_until_it_has_gone),
        cmocka_unit_test(between_a_plan_and_who_replaces_a_lost_member_nothing_is_settled),
        cmocka_unit_test(who_was_told_that_it_may_go_does_not_count_among_those_that_stay),
        cmocka_unit_test(a_level_of_consistency_may_be_refused_like_anything),
        cmocka_unit_test(who_is_leaving_already_does_not_stay_whatever_refuses_it),
        cmocka_unit_test(who_finds_no_place_is_told_so_in_resp_whatever_it_speaks),
        cmocka_unit_test(a_frame_that_found_no_memory_is_refused_without_its_id),
        cmocka_unit_test(each_round_of_comparing_waits_for_what_the_one_before_has_united),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
