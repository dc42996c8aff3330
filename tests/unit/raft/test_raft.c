/* SPDX-License-Identifier: MIT
 *
 * test_raft.c -- the rules of src/raft as small stories. In a trace: units of time (a tick is 10),
 * who becomes what, and messages but heartbeats as "index+entries". Names of cases that others got
 * wrong follow the list of such cases: what they are about is in the first words.
 */
#include "raft_rig.h"

#include <stdio.h>
#include <stdlib.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static struct rig rig;

static void
expect_well(void)
{
    if (rig.failure[0] != 0) fail_msg("%s", rig.failure);
}

static void
expect_trace(const char *expected)
{
    expect_well();
    if (strcmp(rig.trace, expected) != 0) fail_msg("the story is another one:\n%s", rig.trace);
}

static void
story_begins(void)
{
    rig.telling = true;
    rig.trace_size = 0;
    rig.trace[0] = 0;
}

/* A group that has a leader and an empty wire; its id. */
static u64
group_of(u32 voters)
{
    rig_init(&rig, 1);
    rig_start(&rig, voters);
    for (u32 i = 0; i < 100 && rig_leader(&rig) == NULL; i++)
        rig_run(&rig, UNIT_TICK);
    rig_run(&rig, 10 * UNIT_TICK);
    expect_well();
    assert_non_null(rig_leader(&rig));
    return rig_leader(&rig)->id;
}

static u64
another(u64 than)
{
    return than == 1 ? 2 : 1;
}

static u64
third(u64 than, u64 and)
{
    return 6 - than - and;
}

static void
expect_ok(status st)
{
    if (!ok(st)) fail_msg("%s", status_text(st));
}

static void
expect_status(status st, status wanted)
{
    assert_string_equal(status_text(st), status_text(wanted));
}

/* ---- hand-made messages ---- */

static struct raft_message messages[64];
static struct raft_entry entries[128];
static struct raft_read_state reads[READS_MAX];
static struct raft_ready ready;

static struct raft_ready *
fresh(void)
{
    ready = (struct raft_ready){.messages = messages,
                                .messages_max = ARRAY_COUNT(messages),
                                .entries = entries,
                                .entries_max = ARRAY_COUNT(entries),
                                .reads = reads,
                                .reads_max = READS_MAX};
    return &ready;
}

static void
write_is_durable(struct raft *raft)
{
    u64 sequence = ready.sequence, index = ready.persist_index;
    if (sequence != 0) raft_persisted(raft, sequence, index, fresh());
}

static struct raft_message
from_to(u8 type, u64 from, u64 to, u64 term)
{
    return (struct raft_message){.type = type, .from = from, .to = to, .term = term};
}

static void
a_leader_is_elected(void **state)
{
    (void)state;
    rig_init(&rig, 1);
    rig.telling = true;
    rig_start(&rig, 0xe);
    rig_run(&rig, 145);
    expect_trace(" 136 n1 pre-candidate, term 1\n"
                 " 136 n1->n2 pre-vote? term 2 index 1+0\n"
                 " 136 n1->n3 pre-vote? term 2 index 1+0\n"
                 " 137 n2->n1 pre-vote term 2 index 0+0\n"
                 " 137 n3->n1 pre-vote term 2 index 0+0\n"
                 " 138 n1 candidate, term 2\n"
                 " 138 n1->n2 vote? term 2 index 1+0\n"
                 " 138 n1->n3 vote? term 2 index 1+0\n"
                 " 139 n2 follower, term 2\n"
                 " 139 n3 follower, term 2\n"
                 " 139 n2->n1 vote term 2 index 0+0\n"
                 " 139 n3->n1 vote term 2 index 0+0\n"
                 " 140 n1 leader, term 2\n"
                 " 140 n1->n2 append term 2 index 1+1\n"
                 " 140 n1->n3 append term 2 index 1+1\n"
                 " 141 n2->n1 appended term 2 index 2+0\n"
                 " 141 n3->n1 appended term 2 index 2+0\n"
                 " 142 n1->n2 append term 2 index 2+0\n" /* the news that it is committed */
                 " 143 n2->n1 appended term 2 index 2+0\n");
}

static void
a_new_member_learns_then_votes(void **state)
{
    (void)state;
    u64 leader = group_of(0xe);
    expect_status(rig_change(&rig, leader, RAFT_PROMOTE, 4), ST_CONFLICT); /* learners first */
    story_begins();
    expect_ok(rig_change(&rig, leader, RAFT_ADD_LEARNER, 4));
    rig_run(&rig, 5 * UNIT_TICK);
    expect_ok(rig_change(&rig, leader, RAFT_PROMOTE, 4));
    expect_status(rig_change(&rig, leader, RAFT_REMOVE, 4), ST_OVERLOADED); /* one at a time */
    assert_true(raft_config_is_joint(&rig.nodes[leader].raft));
    rig_run(&rig, 5 * UNIT_TICK);
    assert_false(raft_config_is_joint(&rig.nodes[leader].raft)); /* left without being asked */
    assert_true(raft_is_voter(&rig.nodes[4].raft));
    expect_well();
}

/* 29 */
static void
no_read_before_the_leader_has_committed_in_its_term(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader), last = third(leader, other);
    rig_crash(&rig, leader, 100000);
    /* The next one is elected, but nobody takes its first entry. */
    while (rig_leader(&rig) == NULL && rig.now < 10000)
        rig_run(&rig, 1);
    struct node *next = rig_leader(&rig);
    assert_non_null(next);
    rig_cut_both(&rig, other, last, true);
    expect_status(rig_read(&rig, next->id), ST_WOULD_WAIT);
    assert_false(raft_lease_valid(&next->raft, rig.now));
    rig_cut_both(&rig, other, last, false);
    rig_run(&rig, 10 * UNIT_TICK);
    expect_ok(rig_read(&rig, rig_leader(&rig)->id));
    u64 done = rig.reads_done;
    rig_run(&rig, 5);
    assert_int_equal(rig.reads_done, done + 1);
    expect_well();
}

/* 30 */
static void
a_read_that_waits_when_leadership_changes_is_to_be_asked_anew(void **state)
{
    (void)state;
    struct node *leader = &rig.nodes[group_of(0xe)];
    struct raft_message message =
        from_to(RAFT_HEARTBEAT, another(leader->id), leader->id, leader->raft.term + 1);
    expect_ok(raft_read(&leader->raft, 71, rig.now, fresh()));
    u64 round = leader->raft.round;
    assert_int_equal(ready.read_count, 0);
    /* An answer to an earlier round is none to this one. */
    struct raft_message late =
        from_to(RAFT_HEARTBEAT_REPLY, another(leader->id), leader->id, leader->raft.term);
    late.round = round - 1;
    expect_ok(raft_step(&leader->raft, &late, rig.now, fresh()));
    assert_int_equal(ready.read_count, 0);
    /* Nor to one that was never asked. */
    late.round = round + 1;
    expect_ok(raft_step(&leader->raft, &late, rig.now, fresh()));
    assert_int_equal(ready.read_count, 0);
    expect_ok(raft_step(&leader->raft, &message, rig.now, fresh()));
    assert_int_equal(ready.read_count, 1);
    assert_int_equal(ready.reads[0].id, 71);
    expect_status(ready.reads[0].result, ST_CONFLICT);
}

/* Of the judge: votes of long ago make a leader, which need not have what a later term has
 * committed, though it is an entry of a term before its own. */
static void
who_comes_to_lead_by_votes_of_long_ago_may_lack_what_was_committed_since(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), voter = another(leader), late = third(leader, voter);
    rig_cut_both(&rig, leader, voter, true);
    rig_cut_both(&rig, leader, late, true);
    expect_ok(rig_propose(&rig, leader)); /* nobody else has it */
    for (u32 i = 0; i < 200 * UNIT_TICK; i++) {
        rig_run(&rig, 1);
        if (rig.nodes[late].raft.role == RAFT_CANDIDATE && rig.nodes[voter].raft.vote == late)
            break;
        if (rig.nodes[voter].raft.role == RAFT_CANDIDATE) {
            u64 swap = voter;
            voter = late;
            late = swap;
        }
    }
    assert_int_equal(rig.nodes[voter].raft.vote, late);
    u64 term = rig.nodes[late].raft.term;
    rig_stop(&rig, late, 400 * UNIT_TICK); /* the vote is on its way */
    rig_cut_both(&rig, leader, voter, false);
    rig_run(&rig, 300 * UNIT_TICK);
    assert_non_null(rig_leader(&rig));
    assert_int_equal(rig_leader(&rig)->id, leader);
    assert_true(rig.nodes[leader].raft.term > term);
    assert_true(rig.nodes[leader].raft.commit > rig.nodes[late].raft.last_index);
    u32 led = 0;
    for (u32 i = 0; i < 200 * UNIT_TICK; i++) {
        rig_run(&rig, 1);
        led += rig.nodes[late].raft.role == RAFT_LEADER && rig.nodes[late].raft.term == term;
    }
    assert_true(led > 0);
    expect_well();
}

/* 31: between the question whether its lease is valid and the answer a leader stands still. */
static void
a_leader_that_stood_still_is_told_so_when_it_asks_again(void **state)
{
    (void)state;
    struct node *old = &rig.nodes[group_of(0xe)];
    assert_true(raft_lease_valid(&old->raft, rig_clock(&rig, old->id)));
    u64 leases = rig.leases_done, seen = old->machine.index;
    rig_stop(&rig, old->id, 40 * TICKS_VOTE * UNIT_TICK);
    struct node *next = old;
    while (next == old && rig.now < 10000) {
        rig_run(&rig, 1);
        for (u64 id = 1; id <= 3; id++)
            if (id != old->id && rig.nodes[id].raft.role == RAFT_LEADER) next = &rig.nodes[id];
    }
    assert_true(next != old);
    expect_ok(rig_propose(&rig, next->id));
    rig_run(&rig, old->stopped_until - rig.now - 1);
    assert_true(next->machine.index > seen);
    /* It goes on: nothing has told it of the other one, and what it would answer is old. */
    old->stopped_until = 0;
    assert_int_equal(old->raft.role, RAFT_LEADER);
    assert_int_equal(old->machine.index, seen);
    assert_false(raft_lease_valid(&old->raft, rig_clock(&rig, old->id)));
    assert_int_equal(rig.leases_done, leases);
    rig_run(&rig, 20 * UNIT_TICK);
    assert_int_equal(old->machine.index, next->machine.index);
    expect_well();
}

/* 32: the leader's clock is as slow as may be, all others' as fast. Its lease is over before one of
 * them leads, whenever it is cut off, for how long they ever have heard it. */
static void
a_slow_clock_keeps_no_lease_beyond_an_election_of_fast_ones(void **state)
{
    (void)state;
    u64 leases = 0;
    for (u64 phase = 0; phase < 3 * UNIT_TICK; phase++) {
        u64 leader = group_of(0xe);
        for (u64 id = 1; id <= 3; id++)
            rig.nodes[id].tick_units = id == leader ? UNIT_TICK + 1 : UNIT_TICK - 1;
        rig_run(&rig, 50 * UNIT_TICK + phase);
        assert_int_equal(rig_leader(&rig)->id, leader);
        u64 before = rig.leases_done, term = rig.nodes[leader].raft.term;
        for (u64 id = 1; id <= 3; id++)
            rig_cut_both(&rig, leader, id, true);
        while (rig_leader(&rig) == NULL || rig_leader(&rig)->raft.term == term) {
            rig_run(&rig, 1);
            rig_lease_read(&rig, leader);
            assert_true(rig.now < 10000);
        }
        assert_false(raft_lease_valid(&rig.nodes[leader].raft, rig_clock(&rig, leader)));
        leases += rig.leases_done - before;
        expect_well();
    }
    assert_true(leases > 30 * UNIT_TICK * TICKS_VOTE / 2);
}

/* 31, 32 */
static void
a_lease_ends_by_the_clock_though_no_tick_came(void **state)
{
    (void)state;
    u64 leader = group_of(0xe);
    struct raft *raft = &rig.nodes[leader].raft;
    assert_true(raft_lease_valid(raft, rig.now));
    /* Suspended and resumed: no tick, no message, only the clock tells, which went on. */
    assert_false(raft_lease_valid(raft, rig.now + rig.lease_units + 1));
}

static void
a_lease_is_given_up_for_good_when_somebody_was_told_to_campaign(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    rig_cut(&rig, leader, other, true); /* it never hears of it */
    expect_ok(rig_transfer(&rig, leader, other));
    rig_run(&rig, 3 * TICKS_VOTE * UNIT_TICK);
    rig_cut(&rig, leader, other, false);
    struct node *node = rig_leader(&rig);
    if (node->id == leader) assert_false(raft_lease_valid(&node->raft, rig.now));
    expect_well();
}

/* 31, S6: whoever may have extended a lease votes for nobody while it runs. */
static struct raft_message
asks_for_a_vote(u8 type, u64 from, struct raft *of)
{
    struct raft_message ask = from_to(type, from, of->options.id, of->term + 1);
    ask.index = of->last_index;
    ask.log_term = of->last_term;
    return ask;
}

static void
who_has_restarted_votes_for_nobody_while_a_lease_may_run(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader), last = third(leader, other);
    rig_cut_both(&rig, leader, last, true); /* the lonely one is to campaign */
    rig_run(&rig, TICKS_VOTE * UNIT_TICK);
    rig_crash(&rig, other, 1);
    rig_run(&rig, 2); /* it is back, and has heard nobody */
    struct raft *raft = &rig.nodes[other].raft;
    assert_true(rig.nodes[other].up);
    assert_true(raft_lease_valid(&rig.nodes[leader].raft, rig.now));
    struct raft_message pre = asks_for_a_vote(RAFT_PRE_VOTE, last, raft);
    expect_ok(raft_step(raft, &pre, rig.now, fresh()));
    assert_int_equal(ready.message_count, 0);
    struct raft_message vote = asks_for_a_vote(RAFT_VOTE, last, raft);
    expect_ok(raft_step(raft, &vote, rig.now, fresh()));
    assert_int_equal(ready.message_count, 0);
    assert_int_equal(raft->vote == last, false);
    /* When no lease can run any more it does. */
    for (u32 i = 0; i < TICKS_VOTE; i++)
        raft_tick(raft, rig.now, fresh());
    pre = asks_for_a_vote(RAFT_PRE_VOTE, last, raft);
    expect_ok(raft_step(raft, &pre, rig.now, fresh()));
    assert_int_equal(ready.message_count, 1);
    assert_false(ready.messages[0].reject);
}

static void
who_hears_a_leader_votes_for_nobody_else(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader), last = third(leader, other);
    struct raft *raft = &rig.nodes[other].raft;
    rig_cut_both(&rig, leader, last, true);
    rig_run(&rig, 30 * UNIT_TICK); /* the lonely one has asked more than once */
    assert_int_equal(rig_leader(&rig)->id, leader);
    assert_true(raft_lease_valid(&rig.nodes[leader].raft, rig.now));
    u64 term = raft->term;
    struct raft_message vote = asks_for_a_vote(RAFT_VOTE, last, raft);
    expect_ok(raft_step(raft, &vote, rig.now, fresh()));
    assert_int_equal(ready.message_count, 0);
    assert_int_equal(raft->term, term);
    expect_well();
}

/* 33 */
static void
a_removed_member_disturbs_nobody(void **state)
{
    (void)state;
    u64 leader = group_of(0x1e), other = another(leader);
    u64 term = rig.nodes[leader].raft.term;
    rig_cut(&rig, leader, other, true); /* it does not hear of its removal */
    expect_ok(rig_change(&rig, leader, RAFT_REMOVE, other));
    rig_run(&rig, 10 * UNIT_TICK);
    rig_cut(&rig, leader, other, false);
    rig_run(&rig, 200 * UNIT_TICK);
    assert_int_equal(rig_leader(&rig)->id, leader);
    assert_int_equal(rig_leader(&rig)->raft.term, term);
    struct raft_member members[PEERS_MAX];
    assert_int_equal(raft_members(&rig.nodes[leader].raft, members), 3);
    expect_well();
}

/* 33: two of three voters are replaced at once. At any moment of that somebody loses its power, or
 * all do, or a part is cut off from the rest while both are asked to write. The group is well
 * again, and has the old voters or the new ones. */
struct trouble {
    const char *name;
    u8 crash; /* a bit for each: the leader, the two that were voters, the two that come */
    u8 cut;
};

static const struct trouble troubles[] = {
    {"the leader crashes", 1, 0},
    {"one that goes crashes", 2, 0},
    {"the one that stays crashes", 4, 0},
    {"one that comes crashes", 8, 0},
    {"the other that comes crashes", 16, 0},
    {"all crash", 31, 0},
    {"the leader and who comes are alone", 0, 1 + 8 + 16},
    {"the leader and one that comes are alone", 0, 1 + 8},
    {"the leader is alone and crashes", 1, 1},
    {"the old ones are alone, and the one that stays crashes", 4, 1 + 2},
};

static void
change_of_voters_in_trouble(const struct trouble *trouble, u64 moment)
{
    u64 leader = group_of(0xe), other = another(leader);
    u64 ids[] = {leader, other, third(leader, other), 4, 5};
    for (u64 id = 4; id <= 5; id++) {
        expect_ok(rig_change(&rig, leader, RAFT_ADD_LEARNER, id));
        rig_run(&rig, 5 * UNIT_TICK);
    }
    struct raft_change changes[] = {
        {RAFT_PROMOTE, 4}, {RAFT_PROMOTE, 5}, {RAFT_REMOVE, other}, {RAFT_REMOVE, leader}};
    if (moment % 2) rig_run(&rig, 1 + moment / 2 % UNIT_TICK); /* heartbeats lie elsewhere */
    expect_ok(rig_changes(&rig, leader, changes, ARRAY_COUNT(changes)));
    expect_ok(rig_propose(&rig, leader));
    if (moment > 0) rig_run(&rig, moment - 1);
    for (u32 i = 0; i < ARRAY_COUNT(ids); i++) {
        for (u32 k = 0; k < ARRAY_COUNT(ids); k++)
            if ((trouble->cut >> i & 1) != (trouble->cut >> k & 1))
                rig_cut(&rig, ids[i], ids[k], true);
        if (trouble->crash >> i & 1) rig_crash(&rig, ids[i], 1 + moment * 37 % 200);
    }
    for (u32 i = 0; i < 40 && rig.failure[0] == 0; i++) {
        rig_run(&rig, UNIT_TICK);
        for (u64 id = 1; id <= 5; id++) {
            status st = rig_propose(&rig, id);
            (void)st; /* only leaders take it, of both sides */
        }
    }
    if (rig.failure[0] == 0) rig_calm(&rig);
    if (rig.failure[0] != 0)
        fail_msg("%s at %llu: %s", trouble->name, (unsigned long long)moment, rig.failure);
    struct raft_member members[PEERS_MAX];
    struct raft *raft = &rig_leader(&rig)->raft;
    u32 count = raft_members(raft, members), voters = 0;
    for (u32 i = 0; i < count; i++)
        if (members[i].roles == RAFT_VOTER) voters |= 1u << members[i].id;
    assert_false(raft_config_is_joint(raft));
    assert_true(voters == 0xe || voters == (0x3e & ~(1u << leader | 1u << other)));
}

static void
a_change_of_voters_survives_any_trouble_at_any_moment(void **state)
{
    (void)state;
    for (u32 i = 0; i < ARRAY_COUNT(troubles); i++)
        for (u64 moment = 0; moment < 30; moment++)
            change_of_voters_in_trouble(&troubles[i], moment);
}

/* Two of three voters are replaced. The leader is the only one that has the configuration without
 * itself when it loses its power, and so does the other one that goes. Those who are to decide need
 * the vote of one of these two, and their logs are shorter. */
static void
who_alone_has_the_configuration_that_takes_it_out_campaigns(void **state)
{
    (void)state;
    u32 met = 0;
    for (u64 moment = 0; moment < 3 * UNIT_TICK; moment++) {
        u64 leader = group_of(0xe), other = another(leader);
        u64 stay[] = {third(leader, other), 4, 5};
        for (u64 id = 4; id <= 5; id++) {
            expect_ok(rig_change(&rig, leader, RAFT_ADD_LEARNER, id));
            rig_run(&rig, 5 * UNIT_TICK);
        }
        struct raft_change changes[] = {
            {RAFT_PROMOTE, 4}, {RAFT_PROMOTE, 5}, {RAFT_REMOVE, other}, {RAFT_REMOVE, leader}};
        expect_ok(rig_changes(&rig, leader, changes, ARRAY_COUNT(changes)));
        rig_run(&rig, moment);
        for (u64 id = 1; id <= 5; id++)
            if (id != leader) rig_cut_both(&rig, leader, id, true);
        rig_run(&rig, UNIT_TICK); /* what it has appended is durable */
        bool alone = !raft_config_is_joint(&rig.nodes[leader].raft);
        for (u32 i = 0; i < ARRAY_COUNT(stay); i++)
            alone = alone && raft_config_is_joint(&rig.nodes[stay[i]].raft);
        if (!alone) continue;
        met++;
        rig_crash(&rig, other, 1000 * UNIT_TICK);
        rig_crash(&rig, leader, UNIT_TICK);
        for (u64 id = 1; id <= 5; id++)
            if (id != leader) rig_cut_both(&rig, leader, id, false);
        rig_run(&rig, 200 * UNIT_TICK);
        expect_well();
        assert_non_null(rig_leader(&rig));
        struct raft *raft = &rig_leader(&rig)->raft;
        assert_false(raft_config_is_joint(raft));
        assert_true(raft->config_index <= raft->commit && raft_is_voter(raft));
    }
    assert_true(met > 0);
}

static void
a_leader_that_removes_itself_leads_until_that_is_committed(void **state)
{
    (void)state;
    u64 leader = group_of(0xe);
    expect_ok(rig_change(&rig, leader, RAFT_REMOVE, leader));
    rig_run(&rig, 60 * UNIT_TICK);
    struct node *next = rig_leader(&rig);
    assert_non_null(next);
    assert_int_not_equal(next->id, leader);
    assert_null(rig.nodes[leader].raft.role == RAFT_LEADER ? &rig : NULL);
    struct raft_member members[PEERS_MAX];
    assert_int_equal(raft_members(&next->raft, members), 2);
    expect_well();
}

/* 34 */
static void
a_learner_never_counts(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader), last = third(leader, other);
    expect_ok(rig_change(&rig, leader, RAFT_ADD_LEARNER, 4));
    rig_run(&rig, 5 * UNIT_TICK);
    rig_cut_both(&rig, leader, other, true);
    rig_cut_both(&rig, leader, last, true);
    u64 commit = rig.nodes[leader].raft.commit;
    expect_ok(rig_propose(&rig, leader));
    rig_run(&rig, 3 * UNIT_TICK);
    assert_int_equal(rig.nodes[4].raft.last_index, commit + 1); /* the learner has it */
    assert_int_equal(rig.nodes[leader].raft.commit, commit);
    /* Nor does it keep a leader in office. */
    rig_run(&rig, 25 * UNIT_TICK);
    assert_int_not_equal(rig.nodes[leader].raft.role, RAFT_LEADER);
    expect_well();
}

/* 36 */
static void
a_vote_is_durable_before_it_is_told(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    struct raft *raft = &rig.nodes[other].raft;
    struct raft_message ask = from_to(RAFT_VOTE, third(leader, other), other, raft->term + 1);
    ask.index = raft->last_index;
    ask.log_term = raft->last_term;
    expect_ok(raft_step(raft, &ask, rig.now, fresh())); /* it hears a leader: not a word */
    assert_int_equal(ready.message_count, 0);
    assert_int_equal(ready.sequence, 0);
    ask.force = true; /* the leader's own wish */
    expect_ok(raft_step(raft, &ask, rig.now, fresh()));
    assert_true(ready.hard_changed);
    assert_int_equal(ready.hard.vote, ask.from);
    assert_int_equal(ready.message_count, 1);
    assert_false(ready.messages[0].reject);
    assert_int_equal(ready.messages[0].after, ready.sequence);
    assert_int_not_equal(ready.sequence, 0);
    /* Nobody else in this term. */
    ask.from = leader;
    expect_ok(raft_step(raft, &ask, rig.now, fresh()));
    assert_true(ready.messages[0].reject);
}

static void
nobody_campaigns_while_something_is_being_written(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    struct raft *raft = &rig.nodes[other].raft;
    u64 value = 7, term = raft->term;
    struct raft_entry entry = {raft->last_index + 1, term, RAFT_ENTRY_DATA, BYTES(&value, 8)};
    struct raft_message append = from_to(RAFT_APPEND, leader, other, term);
    append.index = raft->last_index;
    append.log_term = raft->last_term;
    append.entries = &entry;
    append.entry_count = 1;
    expect_ok(raft_step(raft, &append, rig.now, fresh()));
    u64 sequence = ready.sequence, index = ready.persist_index;
    assert_int_equal(ready.messages[0].after, sequence); /* nor is it acknowledged */
    for (u32 i = 0; i < 10 * TICKS_VOTE; i++)
        raft_tick(raft, rig.now, fresh());
    struct raft_message now = from_to(RAFT_TIMEOUT_NOW, leader, other, term);
    expect_ok(raft_step(raft, &now, rig.now, fresh()));
    assert_int_equal(raft->role, RAFT_FOLLOWER);
    assert_int_equal(raft->term, term);
    raft_persisted(raft, sequence, index, fresh());
    raft_tick(raft, rig.now, fresh());
    assert_int_equal(raft->role, RAFT_PRE_CANDIDATE);
}

static void
what_was_voided_while_being_written_is_not_acknowledged(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader), last = third(leader, other);
    struct raft *raft = &rig.nodes[other].raft;
    u64 value = 7, term = raft->term, index = raft->last_index;
    struct raft_entry entry = {index + 1, term, RAFT_ENTRY_DATA, BYTES(&value, 8)};
    struct raft_message append = from_to(RAFT_APPEND, leader, other, term);
    append.index = index;
    append.log_term = raft->last_term;
    append.entries = &entry;
    append.entry_count = 1;
    expect_ok(raft_step(raft, &append, rig.now, fresh()));
    u64 first = ready.sequence, upto = ready.persist_index;
    entry.term = term + 1; /* another leader replaces it */
    append.from = last;
    append.term = term + 1;
    expect_ok(raft_step(raft, &append, rig.now, fresh()));
    u64 second = ready.sequence;
    assert_int_equal(ready.append_first, index + 1);
    raft_persisted(raft, first, upto, fresh());
    assert_int_equal(raft->persisted, index);
    raft_persisted(raft, second, index + 1, fresh());
    assert_int_equal(raft->persisted, index + 1);
}

/* 37 */
static void
a_refused_append_changes_nothing(void **state)
{
    (void)state;
    u64 leader = group_of(0xe);
    struct raft *raft = &rig.nodes[leader].raft;
    u64 last = raft->last_index, uncommitted = raft->uncommitted_bytes;
    rig.refuse = 1000;
    expect_status(rig_propose(&rig, leader), ST_NO_MEMORY);
    assert_int_equal(raft->last_index, last);
    assert_int_equal(raft->uncommitted_bytes, uncommitted);
    rig.refuse = 0;
    expect_ok(rig_propose(&rig, leader));
    rig_run(&rig, 5 * UNIT_TICK);
    assert_int_equal(rig.nodes[another(leader)].machine.index, last + 1);
    expect_well();
}

/* 39 */
static void
who_lacks_what_is_compacted_gets_a_snapshot_even_twice(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    for (u32 round = 0; round < 2; round++) {
        rig_cut_both(&rig, leader, other, true);
        for (u32 i = 0; i < 20; i++) {
            expect_ok(rig_propose(&rig, leader));
            rig_run(&rig, 3);
        }
        rig_compact(&rig, leader);
        expect_ok(rig_propose(&rig, leader));
        rig_run(&rig, 5);
        rig_cut_both(&rig, leader, other, false);
        rig_run(&rig, 10 * UNIT_TICK);
        assert_int_equal(rig.snapshots_done, round + 1);
        assert_int_equal(rig.nodes[other].machine.index, rig.nodes[leader].machine.index);
    }
    expect_well();
}

static void
a_snapshot_older_than_the_log_is_not_installed(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    struct raft *raft = &rig.nodes[other].raft;
    struct raft_message snapshot = from_to(RAFT_SNAPSHOT, leader, other, raft->term);
    snapshot.index = snapshot.log_term = 1;
    snapshot.config = BYTES(rig.nodes[leader].memory.config, rig.nodes[leader].memory.config_size);
    expect_ok(raft_step(raft, &snapshot, rig.now, fresh()));
    assert_false(ready.install);
    assert_int_equal(ready.messages[0].index, raft->commit);
}

/* 42 */
static void
in_a_triangle_with_one_side_cut_the_leader_stays(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), term = rig.nodes[leader].raft.term;
    rig_cut_both(&rig, leader, another(leader), true);
    rig_run(&rig, 300 * UNIT_TICK);
    assert_int_equal(rig_leader(&rig)->id, leader);
    assert_int_equal(rig_leader(&rig)->raft.term, term);
    expect_well();
}

static void
of_five_the_only_one_that_reaches_all_leads_in_the_end(void **state)
{
    (void)state;
    u64 leader = group_of(0x3e), hub = another(leader);
    for (u64 a = 1; a <= 5; a++)
        for (u64 b = 1; b <= 5; b++)
            if (a != b && a != hub && b != hub) rig_cut(&rig, a, b, true);
    rig_run(&rig, 80 * UNIT_TICK);
    assert_int_equal(rig_leader(&rig)->id, hub);
    u64 term = rig_leader(&rig)->raft.term;
    rig_run(&rig, 300 * UNIT_TICK);
    assert_int_equal(rig_leader(&rig)->raft.term, term);
    expect_well();
}

static void
who_returns_from_isolation_does_not_disturb(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader), term = rig.nodes[leader].raft.term;
    rig_cut_both(&rig, leader, other, true);
    rig_cut_both(&rig, third(leader, other), other, true);
    rig_run(&rig, 300 * UNIT_TICK);
    assert_int_equal(rig.nodes[other].raft.term, term);
    memset(rig.blocked, 0, sizeof(rig.blocked));
    rig_run(&rig, 50 * UNIT_TICK);
    assert_int_equal(rig_leader(&rig)->id, leader);
    assert_int_equal(rig_leader(&rig)->raft.term, term);
    expect_well();
}

static void
a_leader_that_is_heard_but_hears_nobody_steps_down(void **state)
{
    (void)state;
    u64 leader = group_of(0xe);
    for (u64 id = 1; id <= 3; id++)
        rig_cut(&rig, id, leader, true);
    rig_run(&rig, 80 * UNIT_TICK);
    assert_non_null(rig_leader(&rig));
    assert_int_not_equal(rig_leader(&rig)->id, leader);
    assert_int_not_equal(rig.nodes[leader].raft.role, RAFT_LEADER);
    expect_well();
}

/* 43 */
static void
a_sleeping_group_whose_leader_died_wakes_and_elects(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    rig_quiesce(&rig, leader);
    rig_run(&rig, 300 * UNIT_TICK);
    assert_true(rig.nodes[other].raft.quiescent);
    assert_int_equal(rig.wire_count, 0);
    u64 term = rig.nodes[leader].raft.term;
    assert_int_equal(rig.nodes[other].raft.term, term);
    rig_crash(&rig, leader, 100000);
    rig_wake(&rig, other, true);
    rig_wake(&rig, third(leader, other), true);
    rig_run(&rig, 2 * TICKS_VOTE * UNIT_TICK);
    assert_non_null(rig_leader(&rig));
    expect_well();
}

/* 44 */
static void
a_leader_whose_disk_stalls_steps_down(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader), began = rig.now;
    struct node *stalled = &rig.nodes[leader];
    stalled->disk_free_at = rig.now + 100000;
    expect_ok(rig_propose(&rig, leader));
    rig_run(&rig, 3);
    assert_int_equal(rig.nodes[other].raft.last_index, stalled->raft.last_index);
    u64 index = stalled->raft.last_index, applied = stalled->machine.index;
    while (stalled->raft.role == RAFT_LEADER && rig.now < began + 100 * UNIT_TICK)
        rig_run(&rig, 1);
    assert_in_range(rig.now - began, TICKS_VOTE * UNIT_TICK, (2 * TICKS_VOTE + 2) * UNIT_TICK);
    /* From then on it answers nothing by itself. */
    assert_false(raft_lease_valid(&stalled->raft, rig_clock(&rig, leader)));
    expect_status(rig_propose(&rig, leader), ST_CONFLICT);
    assert_true(stalled->raft.persisted < index);
    assert_int_equal(stalled->machine.index, applied);
    rig_run(&rig, 40 * UNIT_TICK);
    assert_non_null(rig_leader(&rig));
    assert_int_not_equal(rig_leader(&rig)->id, leader);
    assert_int_not_equal(stalled->raft.role, RAFT_LEADER);
    /* What it had sent before is decided, and others go on. */
    expect_ok(rig_propose(&rig, rig_leader(&rig)->id));
    rig_run(&rig, 5 * UNIT_TICK);
    assert_true(rig_leader(&rig)->machine.index > index);
    expect_well();
}

/* 45 */
static void
too_much_that_is_uncommitted_is_refused(void **state)
{
    (void)state;
    u64 leader = group_of(0xe);
    for (u64 id = 1; id <= 3; id++)
        rig_cut_both(&rig, leader, id, true);
    u32 taken = 0;
    while (ok(rig_propose(&rig, leader)) && taken < 1000)
        taken++;
    assert_int_equal(taken, rig.uncommitted_bytes / 8);
    expect_status(rig_propose(&rig, leader), ST_OVERLOADED);
    memset(rig.blocked, 0, sizeof(rig.blocked));
    rig_run(&rig, 20 * UNIT_TICK);
    expect_ok(rig_propose(&rig, rig_leader(&rig)->id));
    expect_well();
}

static void
an_entry_over_its_limit_is_refused(void **state)
{
    (void)state;
    u64 leader = group_of(0xe);
    u8 data[65] = {0};
    struct raft_entry entry = {.kind = RAFT_ENTRY_DATA, .data = BYTES(data, sizeof(data))};
    expect_status(raft_propose(&rig.nodes[leader].raft, &entry, 1, fresh()), ST_TOO_LARGE);
}

/* 46 */
static void
a_transfer_loses_nothing(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    expect_ok(rig_propose(&rig, leader));
    story_begins();
    expect_ok(rig_transfer(&rig, leader, other)); /* which lacks the last entry */
    expect_status(rig_propose(&rig, leader), ST_OVERLOADED);
    rig_run(&rig, 2 * UNIT_TICK);
    assert_int_equal(rig_leader(&rig)->id, other);
    assert_int_equal(rig_leader(&rig)->machine.index, rig_leader(&rig)->raft.last_index);
    expect_trace(" 241 n2->n1 appended term 2 index 3+0\n"
                 " 241 n3->n1 appended term 2 index 3+0\n"
                 " 242 n1->n2 append term 2 index 3+0\n"
                 " 242 n1->n3 append term 2 index 3+0\n"
                 " 242 n1->n2 campaign term 2 index 0+0\n"
                 " 243 n2->n1 appended term 2 index 3+0\n"
                 " 243 n3->n1 appended term 2 index 3+0\n"
                 " 243 n2 candidate, term 3\n"
                 " 243 n2->n1 vote? term 3 index 3+0\n"
                 " 243 n2->n3 vote? term 3 index 3+0\n"
                 " 244 n1 follower, term 3\n"
                 " 244 n3 follower, term 3\n"
                 " 244 n1->n2 vote term 3 index 0+0\n"
                 " 244 n3->n2 vote term 3 index 0+0\n"
                 " 245 n2 leader, term 3\n"
                 " 245 n2->n1 append term 3 index 3+1\n"
                 " 245 n2->n3 append term 3 index 3+1\n"
                 " 246 n1->n2 appended term 3 index 4+0\n"
                 " 246 n3->n2 appended term 3 index 4+0\n"
                 " 247 n2->n1 append term 3 index 4+0\n"
                 " 248 n1->n2 appended term 3 index 4+0\n");
}

/* Figure 8 of the paper. */
static void
an_entry_of_an_earlier_term_is_not_committed_by_counting(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    struct raft *raft = &rig.nodes[leader].raft;
    u64 commit = raft->commit, old = raft->term;
    for (u64 id = 1; id <= 3; id++)
        rig_cut_both(&rig, leader, id, true);
    expect_ok(rig_propose(&rig, leader)); /* of the old term, nowhere else */
    rig_run(&rig, 30 * UNIT_TICK);        /* it steps down */
    u64 orphan = raft->last_index;
    while (raft->role != RAFT_LEADER) { /* leads again, by a vote that is made up */
        raft_tick(raft, rig.now, fresh());
        write_is_durable(raft);
        struct raft_message vote =
            from_to(raft->role == RAFT_CANDIDATE ? RAFT_VOTE_REPLY : RAFT_PRE_VOTE_REPLY, other,
                    leader, raft->role == RAFT_CANDIDATE ? raft->term : raft->term + 1);
        if (raft->role == RAFT_FOLLOWER) continue;
        expect_ok(raft_step(raft, &vote, rig.now, fresh()));
        write_is_durable(raft);
    }
    assert_true(raft->term > old);
    struct raft_message held = from_to(RAFT_APPEND_REPLY, other, leader, raft->term);
    held.index = orphan; /* two of three have it */
    expect_ok(raft_step(raft, &held, rig.now, fresh()));
    assert_int_equal(raft->commit, commit);
    held.index = raft->last_index; /* and an entry of this term: now both are */
    expect_ok(raft_step(raft, &held, rig.now, fresh()));
    assert_int_equal(raft->commit, raft->last_index);
}

static void
what_no_right_peer_sends_is_refused_and_changes_nothing(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    struct raft *raft = &rig.nodes[other].raft;
    u64 term = raft->term, last = raft->last_index;
    struct raft_message message = from_to(99, leader, other, term);
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT);
    message = from_to(RAFT_APPEND, leader, 99, term);
    expect_status(raft_step(raft, &message, 0, fresh()), ST_INVALID);
    message = from_to(RAFT_APPEND, third(leader, other), other, term); /* a second leader */
    message.index = last;
    message.log_term = raft->last_term;
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT);

    struct raft_entry entry = {last + 2, term, RAFT_ENTRY_DATA, BYTES(NULL, 0)};
    message.from = leader;
    message.entries = &entry;
    message.entry_count = 1;
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT); /* a gap */
    entry.index = last + 1;
    entry.term = term + 1; /* of the future */
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT);
    entry.term = term;
    entry.kind = RAFT_ENTRY_CONFIG; /* a configuration of nothing */
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT);
    assert_int_equal(raft->last_index, last);
    /* Numbers that nobody counts up to: the next one would be zero. */
    message = from_to(RAFT_HEARTBEAT, leader, other, UINT64_MAX);
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT);
    message.term = RAFT_NUMBER_MAX + 1;
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT);
    assert_int_equal(raft->term, term);
    message = from_to(RAFT_APPEND, leader, other, term);
    message.index = UINT64_MAX;
    message.log_term = term;
    expect_status(raft_step(raft, &message, 0, fresh()), ST_CORRUPT);
    /* What is committed stays, whatever a leader says. */
    struct raft_entry other_entry = {raft->commit, term + 1, RAFT_ENTRY_DATA, BYTES(NULL, 0)};
    message = from_to(RAFT_APPEND, leader, other, term + 1);
    message.index = raft->commit - 1;
    message.log_term = 1;
    message.entries = &other_entry;
    message.entry_count = 1;
    expect_ok(raft_step(raft, &message, 0, fresh()));
    assert_int_equal(ready.messages[0].index, raft->commit);
    assert_int_equal(raft->last_index, last);
}

static void
bytes_that_are_no_configuration_are_refused(void **state)
{
    (void)state;
    struct raft_member members[4], good[3] = {
                                       {1, RAFT_VOTER | RAFT_VOTER_OLD},
                                       {5, RAFT_VOTER_OLD | RAFT_LEARNER_NEXT},
                                       {9, RAFT_LEARNER},
                                   };
    u8 bytes[RAFT_CONFIG_BYTES(3)], bad[RAFT_CONFIG_BYTES(3)];
    struct bytes encoded = raft_config_encode(good, 3, bytes);
    u32 count;
    expect_ok(raft_config_decode(encoded, 4, members, &count));
    assert_int_equal(count, 3);
    expect_status(raft_config_decode(encoded, 2, members, &count), ST_CORRUPT);
    for (size_t size = 0; size < encoded.size; size++)
        expect_status(raft_config_decode(BYTES(bytes, size), 4, members, &count), ST_CORRUPT);
    /* Every byte, every value: decoded to something right, or refused. */
    for (size_t at = 0; at < sizeof(bytes); at++)
        for (u32 value = 0; value < 256; value++) {
            memcpy(bad, bytes, sizeof(bytes));
            bad[at] = (u8)value;
            u8 again[RAFT_CONFIG_BYTES(4)];
            if (!ok(raft_config_decode(BYTES(bad, sizeof(bad)), 4, members, &count))) continue;
            assert_true(
                bytes_equal(raft_config_encode(members, count, again), BYTES(bad, sizeof(bad))));
        }
    struct raft_member none[2] = {{1, RAFT_LEARNER}, {2, RAFT_VOTER_OLD}}; /* no voter is left */
    store_u16(bad, 2);
    for (u32 i = 0; i < 2; i++) {
        store_u64(bad + 2 + 9 * i, none[i].id);
        bad[2 + 9 * i + 8] = none[i].roles;
    }
    expect_status(raft_config_decode(BYTES(bad, RAFT_CONFIG_BYTES(2)), 4, members, &count),
                  ST_CORRUPT);
}

static void
the_last_voter_stays(void **state)
{
    (void)state;
    u64 leader = group_of(0x2);
    expect_status(rig_change(&rig, leader, RAFT_REMOVE, leader), ST_INVALID);
    expect_status(rig_change(&rig, leader, RAFT_DEMOTE, leader), ST_INVALID);
    expect_ok(rig_propose(&rig, leader)); /* and nothing hangs behind it */
    rig_run(&rig, UNIT_TICK);
    assert_int_equal(rig.nodes[leader].machine.index, rig.nodes[leader].raft.last_index);
}

static void
no_more_is_sent_ahead_than_allowed(void **state)
{
    (void)state;
    u64 leader = group_of(0xe), other = another(leader);
    rig_cut(&rig, other, leader, true); /* it gets all, its answers do not arrive */
    struct raft_peer *peer = &rig.nodes[leader].raft.peers[other - 1];
    assert_int_equal(peer->state, RAFT_PEER_REPLICATE);
    for (u32 i = 0; i < 30; i++)
        expect_ok(rig_propose(&rig, leader));
    assert_int_equal(peer->inflight_count, rig.inflight_max);
    rig_cut(&rig, other, leader, false);
    rig_run(&rig, 10 * UNIT_TICK);
    assert_int_equal(peer->inflight_count, 0);
    assert_int_equal(peer->match, rig.nodes[leader].raft.last_index);
    expect_well();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_leader_is_elected),
        cmocka_unit_test(a_new_member_learns_then_votes),
        cmocka_unit_test(no_read_before_the_leader_has_committed_in_its_term),
        cmocka_unit_test(a_read_that_waits_when_leadership_changes_is_to_be_asked_anew),
        cmocka_unit_test(who_comes_to_lead_by_votes_of_long_ago_may_lack_what_was_committed_since),
        cmocka_unit_test(a_leader_that_stood_still_is_told_so_when_it_asks_again),
        cmocka_unit_test(a_slow_clock_keeps_no_lease_beyond_an_election_of_fast_ones),
        cmocka_unit_test(a_lease_ends_by_the_clock_though_no_tick_came),
        cmocka_unit_test(a_lease_is_given_up_for_good_when_somebody_was_told_to_campaign),
        cmocka_unit_test(who_has_restarted_votes_for_nobody_while_a_lease_may_run),
        cmocka_unit_test(who_hears_a_leader_votes_for_nobody_else),
        cmocka_unit_test(a_removed_member_disturbs_nobody),
        cmocka_unit_test(a_change_of_voters_survives_any_trouble_at_any_moment),
        cmocka_unit_test(who_alone_has_the_configuration_that_takes_it_out_campaigns),
        cmocka_unit_test(a_leader_that_removes_itself_leads_until_that_is_committed),
        cmocka_unit_test(a_learner_never_counts),
        cmocka_unit_test(a_vote_is_durable_before_it_is_told),
        cmocka_unit_test(nobody_campaigns_while_something_is_being_written),
        cmocka_unit_test(what_was_voided_while_being_written_is_not_acknowledged),
        cmocka_unit_test(a_refused_append_changes_nothing),
        cmocka_unit_test(who_lacks_what_is_compacted_gets_a_snapshot_even_twice),
        cmocka_unit_test(a_snapshot_older_than_the_log_is_not_installed),
        cmocka_unit_test(in_a_triangle_with_one_side_cut_the_leader_stays),
        cmocka_unit_test(of_five_the_only_one_that_reaches_all_leads_in_the_end),
        cmocka_unit_test(who_returns_from_isolation_does_not_disturb),
        cmocka_unit_test(a_leader_that_is_heard_but_hears_nobody_steps_down),
        cmocka_unit_test(a_sleeping_group_whose_leader_died_wakes_and_elects),
        cmocka_unit_test(a_leader_whose_disk_stalls_steps_down),
        cmocka_unit_test(too_much_that_is_uncommitted_is_refused),
        cmocka_unit_test(an_entry_over_its_limit_is_refused),
        cmocka_unit_test(a_transfer_loses_nothing),
        cmocka_unit_test(an_entry_of_an_earlier_term_is_not_committed_by_counting),
        cmocka_unit_test(what_no_right_peer_sends_is_refused_and_changes_nothing),
        cmocka_unit_test(bytes_that_are_no_configuration_are_refused),
        cmocka_unit_test(the_last_voter_stays),
        cmocka_unit_test(no_more_is_sent_ahead_than_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
