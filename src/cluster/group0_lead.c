/* SPDX-License-Identifier: MIT
 *
 * group0_lead.c -- what the leader sees to, a few times a second, one step at a time:
 *
 *   members    who is in the topology and not in the group becomes a learner; who is not in the
 *              topology any more leaves the group
 *   voters     chosen by group0_voters.c; one joint change takes out and in, and only when those
 *              who come in have caught up
 *   plans      begun when something asks for one, and taken from stage to stage behind barriers and
 *              fences; given up when somebody who gains by one is gone
 *
 * How long somebody is waited for. Who is silent for a moment (a stopped process, a machine that
 * swaps) is to be there for the next stage: a barrier waits for it, because what it coordinates is
 * refused once the stage before is fenced. So a barrier goes on without it only after ABSENT_NS,
 * and a plan that gives it something is given up before that, after GIVE_UP_NS: writes need its
 * half of the quorum as long as the plan lasts. Nobody begins a plan that gives something to
 * somebody who does not answer at that moment, or takes no writes. Who leaves is not let go while
 * it keeps hints for others, which it may have acknowledged as a stand-in: so long as it lives, and
 * no longer than hints are kept (leaver_keeping). Nor is it let go while it votes and those who stay
 * and answer are no majority without it: they could decide nothing any more, not even that one of
 * them is dead (stayers_decide).
 *
 * Each step is a compare-and-append command or a configuration that raft serialises: two leaders
 * that overlap, or one that repeats itself, do no harm. A step that is refused is looked at again.
 */
#include "cluster/group0_internal.h"

#include "base/log.h"
#include "cluster/hints.h"
#include "io/io.h"

/* So long somebody is silent before another one gets the vote. */
#define DEAD_NS (10 * NS_PER_S)
/* So long somebody is silent before a barrier goes on without it. From then on what it does is up
 * to the others: they refuse who is more than a stage behind. */
#define ABSENT_NS (6 * NS_PER_S)
/* So long somebody is silent who gains by a plan and has not fetched, before that is given up. */
#define GIVE_UP_NS (5 * NS_PER_S)
static_assert(GIVE_UP_NS < ABSENT_NS,
              "no stage is fenced for somebody who is about to be given up");
/* Those who join at the same time get one plan. */
#define PLAN_DELAY_NS (1 * NS_PER_S)
/* A learner that is to vote lacks no more than this. */
#define BEHIND_MAX  64u
#define CHANGES_MAX 32u

static bool
leads(const struct group0 *group0)
{
    return group0_works(group0) && group0->raft.role == RAFT_LEADER && group0->topology != NULL;
}

static bool
is_alive(const struct group0 *group0, u32 member)
{
    return member == group0->identity.member || group0->options.alive(group0->options.arg, member);
}

static bool
is_stuck(const struct group0 *group0, u32 member)
{
    return group0->options.stuck != NULL && group0->options.stuck(group0->options.arg, member);
}

/* Since when it has answered nothing: of raft here, or of anything elsewhere (alive). Who has just
 * begun to lead has not had the time to hear of anybody. */
static u64
silent_ns(const struct group0 *group0, u32 member)
{
    if (is_alive(group0, member)) return 0;
    const struct group0_heard *heard = &group0->heard[member % GROUP0_HEARD];
    u64 last = heard->member == member ? heard->at_ns : 0;
    return io_now_ns() - MAX(last, group0->leads_since_ns);
}

/* ---- members and voters ---- */

static bool
config_propose(struct group0 *group0, const struct raft_change *changes, u32 count)
{
    if (count == 0 || !group0_input_begin(group0)) return false;
    status st = raft_propose_config(&group0->raft, changes, count, &group0->ready);
    if (ok(st)) group0_input_end(group0);
    return ok(st);
}

/* Somebody who has left hears of it before nobody tells him anything any more. */
static bool
knows_that_it_left(const struct group0 *group0, const struct raft_peer *peer)
{
    return peer->id == group0->identity.member || peer->match >= group0->applied ||
           !is_alive(group0, (u32)peer->id);
}

/* Of those who come and go; true when something was begun. */
static bool
members_adjust(struct group0 *group0)
{
    struct raft_change changes[CHANGES_MAX];
    const struct topology *topology = group0->topology;
    u32 count = 0;
    for (u32 i = 0; i < topology->member_count && count < CHANGES_MAX; i++)
        if (raft_peer_find(&group0->raft, topology->members[i].number) == NULL)
            changes[count++] = (struct raft_change){RAFT_ADD_LEARNER, topology->members[i].number};
    if (config_propose(group0, changes, count)) return true;
    count = 0;
    for (u32 i = 0; i < group0->raft.peer_count && count < CHANGES_MAX; i++) {
        const struct raft_peer *peer = &group0->raft.peers[i];
        if (topology_member(topology, (u32)peer->id) != NULL) continue;
        if (!knows_that_it_left(group0, peer)) continue;
        changes[count++] = (struct raft_change){RAFT_REMOVE, peer->id};
    }
    return config_propose(group0, changes, count);
}

/* Racks of equal names in equal data centers have equal numbers: that of their first member. */
static u32
place_of(const struct topology *topology, u32 at)
{
    for (u32 i = 0; i < at; i++)
        if (strcmp(topology->members[i].rack, topology->members[at].rack) == 0 &&
            strcmp(topology->members[i].datacenter, topology->members[at].datacenter) == 0)
            return i;
    return at;
}

static u32
candidates_make(struct group0 *group0, struct group0_candidate *candidates)
{
    const struct topology *topology = group0->topology;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        const struct raft_peer *peer = raft_peer_find(&group0->raft, member->number);
        bool voter = peer != NULL && (peer->roles & RAFT_VOTER) != 0;
        candidates[i] = (struct group0_candidate){
            .number = member->number,
            .voter = voter,
            .ready = peer != NULL && peer->roles == RAFT_LEARNER &&
                     peer->state == RAFT_PEER_REPLICATE &&
                     peer->match + BEHIND_MAX >= group0->raft.last_index,
            /* Nobody gets a vote while it is silent, nobody loses it for a moment of silence. */
            .alive = voter ? silent_ns(group0, member->number) < DEAD_NS
                           : is_alive(group0, member->number),
            .leaving = member->state == PLACEMENT_LEAVING,
            .place = place_of(topology, i),
        };
    }
    return topology->member_count;
}

/* No more go than come, but for those who are too many: who has the vote keeps it until its
 * successor has caught up. */
static u32
voter_changes(const struct group0_candidate *candidates, u32 count, struct raft_change *changes)
{
    u32 made = 0, promoted = 0, voters = 0, wanted = 0;
    for (u32 i = 0; i < count; i++) {
        const struct group0_candidate *candidate = &candidates[i];
        voters += candidate->voter;
        wanted += candidate->chosen;
        if (!candidate->chosen || candidate->voter || !candidate->ready) continue;
        if (made < CHANGES_MAX / 2)
            changes[made++] = (struct raft_change){RAFT_PROMOTE, candidate->number};
        promoted++;
    }
    u32 may_go = promoted + (voters > wanted ? voters - wanted : 0);
    for (u32 i = 0; i < count && may_go > 0; i++) {
        if (candidates[i].chosen || !candidates[i].voter) continue;
        if (made < CHANGES_MAX)
            changes[made++] = (struct raft_change){RAFT_DEMOTE, candidates[i].number};
        may_go--;
    }
    return made;
}

static bool
voters_adjust(struct group0 *group0)
{
    if (io_now_ns() < group0->voters_at_ns) return false;
    group0->voters_at_ns = io_now_ns() + GROUP0_VOTERS_NS;
    struct raft_change changes[CHANGES_MAX];
    struct buf *memory = &group0->lead_memory;
    u32 count = group0->topology->member_count;
    memory->size = 0;
    if (!buf_reserve(memory, count * sizeof(struct group0_candidate))) return false;
    struct group0_candidate *candidates = (struct group0_candidate *)(void *)memory->data;
    candidates_make(group0, candidates);
    const struct topology *topology = group0->topology;
    bool ends = topology->stage == STAGE_READ_NEXT || topology->epoch == group0->plan_ends_epoch;
    group0_voters_choose(candidates, count, ends);
    return config_propose(group0, changes, voter_changes(candidates, count, changes));
}

/* ---- plans ---- */

static status
plan_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    const struct topology_command *wanted = arg;
    if (present->state_id != wanted->state_before) return ST_EXISTS; /* look again */
    *command = *wanted;
    return ST_OK;
}

static MAY_YIELD status
plan_command(struct group0 *group0, u8 kind, u64 session, char reason[TOPOLOGY_REASON_BYTES])
{
    struct topology_command command = {
        .kind = kind, .session = session, .state_before = group0->topology->state_id};
    return group0_change(group0, plan_fill, &command, io_now_ns() + GROUP0_ATTEMPT_NS, reason);
}

/* member: 0: nobody. */
static void
plan_waits_for_set(struct group0 *group0, u32 member)
{
    if (member != 0 && group0->plan_waits_for != member)
        log_info("group0", "a plan waits for a member that %s member=%u",
                 !is_alive(group0, member)  ? "does not answer"
                 : is_stuck(group0, member) ? "takes no writes"
                                            : "has yet to follow",
                 member);
    group0->plan_waits_for = member;
}

/* Every member has the present epoch, on all its shards, but for those who are silent for so long.
 * Who has not is named when it takes longer than it should: it may live, and take no writes. */
static bool
barrier_is_passed(struct group0 *group0, u64 absent_ns)
{
    const struct topology *topology = group0->topology;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 number = topology->members[i].number;
        if (silent_ns(group0, number) >= absent_ns) continue;
        if (group0->options.epoch_of(group0->options.arg, number) >= topology->epoch) continue;
        if (io_now_ns() >= group0->plan_at_ns) plan_waits_for_set(group0, number);
        return false;
    }
    return true;
}

/* Or was given up by whoever knows that it is gone. */
static bool
knows_present(void *arg, u32 member)
{
    const struct group0 *group0 = arg;
    if (member == group0->given_up_member &&
        group0->topology->session == group0->given_up_session && !is_alive(group0, member))
        return true;
    return group0->options.epoch_of(group0->options.arg, member) >= group0->topology->epoch;
}

/* Nobody begins a plan for members whose disks cannot even follow this log. */
static bool
joiners_are_here(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->state != PLACEMENT_JOINING) continue;
        if (!is_alive(group0, member->number)) {
            group0->plan_waits_for = member->number;
            return false;
        }
        const struct raft_peer *peer = raft_peer_find(&group0->raft, member->number);
        if (peer == NULL) return false;
        if (member->number != group0->identity.member &&
            peer->match + BEHIND_MAX < group0->raft.last_index) {
            if (io_now_ns() >= group0->plan_at_ns) plan_waits_for_set(group0, member->number);
            return false;
        }
    }
    return true;
}

static u8
plan_kind(const struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    for (u32 i = 0; group0->options.knows_plan != NULL && i < topology->member_count; i++)
        if (!group0->options.knows_plan(group0->options.arg, topology->members[i].number))
            return TOPOLOGY_PLAN_SCATTERED;
    return TOPOLOGY_PLAN;
}

/* What the plan would make, here and now, so that not everybody has to find out. */
static MAY_YIELD status
plan_try(struct group0 *group0, u8 kind, u64 session, struct topology **next_out)
{
    struct topology *present = group0->topology;
    struct topology_command command = {.kind = kind,
                                       .session = session,
                                       .state_before = present->state_id,
                                       .state_after = present->state_id ^ 1};
    char reason[TOPOLOGY_REASON_BYTES];
    if (command.state_after == 0) command.state_after = UINT64_MAX;
    topology_hold(present); /* another may come meanwhile */
    status st = topology_apply(present, &command, group0_pause, next_out, reason);
    topology_release(present);
    return st;
}

/* Somebody who gains by the plan, has not fetched, and is silent for as long or longer; 0: nobody.
 */
static u32
gainer_silent(const struct group0 *group0, const struct topology *topology, u64 limit_ns)
{
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->fetched || is_alive(group0, member->number)) continue;
        if (silent_ns(group0, member->number) < limit_ns) continue;
        if (topology_gainer(topology, member->number)) return member->number;
    }
    return 0;
}

/* Somebody who gains by the plan, has not fetched, and takes no writes; 0: nobody. */
static u32
gainer_stuck(const struct group0 *group0, const struct topology *topology)
{
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->fetched || !is_stuck(group0, member->number)) continue;
        if (topology_gainer(topology, member->number)) return member->number;
    }
    return 0;
}

/* A member that leaves, lives, and has not handed on yet what it keeps for others; 0: none, or it
 * was waited for so long that all it had then is of no use any more. (Nobody has it stand in since
 * then, so the time counts on whatever happens.) */
static u32
leaver_keeping(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    u64 limit_ns = group0->options.keeps_ns, now = io_now_ns();
    if (limit_ns == 0) limit_ns = HINTS_WINDOW_MS * NS_PER_MS;
    u32 keeping = 0;
    for (u32 i = 0; i < topology->member_count && keeping == 0; i++) {
        u32 number = topology->members[i].number;
        if (topology->members[i].state != PLACEMENT_LEAVING || group0->options.keeps == NULL ||
            silent_ns(group0, number) >= ABSENT_NS)
            continue;
        if (group0->options.keeps(group0->options.arg, number)) keeping = number;
    }
    if (keeping != 0 && keeping != group0->keeps_member) {
        group0->keeps_member = keeping;
        group0->keeps_since_ns = now;
        log_info("group0", "who leaves has hints to hand on first member=%u", keeping);
    }
    if (keeping != 0 && now - group0->keeps_since_ns >= limit_ns) keeping = 0;
    if (keeping != 0) group0->plan_waits_for = keeping;
    return keeping;
}

/* Whoever has left may be stopped at once, and is not reached any more: the others must be a
 * majority of those who vote now, and of those who will then. */
static bool
stayers_decide(struct group0 *group0)
{
    u32 voters = 0, leaving = 0, living = 0, silent = 0;
    for (u32 i = 0; i < group0->raft.peer_count; i++) {
        const struct raft_peer *peer = &group0->raft.peers[i];
        if ((peer->roles & (RAFT_VOTER | RAFT_VOTER_OLD)) == 0) continue;
        const struct topology_member *member = topology_member(group0->topology, (u32)peer->id);
        voters++;
        if (member == NULL) continue;
        if (member->state == PLACEMENT_LEAVING)
            leaving++;
        else if (is_alive(group0, member->number))
            living++;
        else
            silent = member->number;
    }
    if (leaving == 0 || living > voters / 2) return true;
    plan_waits_for_set(group0, silent);
    return false;
}

/* True: the plan ends by another leader, as this one is out then. */
static bool
leaver_gives_lead(struct group0 *group0)
{
    const struct topology_member *self = topology_member(group0->topology, group0->identity.member);
    return self != NULL && self->state == PLACEMENT_LEAVING && group0_give_lead(group0);
}

/* A plan that ends as it begins lets those who leave go as one does whose reads have moved on. That
 * it would shows before it is made, so the voters are chosen first as for an end: those who help out
 * while fewer than three stay would never be a minority otherwise. True: not yet. */
static bool
end_waits(struct group0 *group0)
{
    return leaver_keeping(group0) != 0 || !stayers_decide(group0) || leaver_gives_lead(group0);
}

static MAY_YIELD void
plan_begin(struct group0 *group0)
{
    u64 epoch = group0->topology->epoch, session = io_entropy_id(0);
    char reason[TOPOLOGY_REASON_BYTES];
    /* Not the epoch that a plan was refused in: it would be again. */
    if (epoch == group0->plan_nothing_epoch || io_now_ns() < group0->plan_at_ns) return;
    u32 mending = topology_mending(group0->topology);
    if (mending != 0) { /* says so when it is done: another epoch */
        group0->plan_waits_for = mending;
        return;
    }
    if (!joiners_are_here(group0) || !barrier_is_passed(group0, ABSENT_NS)) return;
    struct topology *next = NULL;
    u8 kind = plan_kind(group0);
    status st = plan_try(group0, kind, session, &next);
    if (status_is(st, ST_INVALID)) group0->plan_nothing_epoch = epoch;
    u32 missing = ok(st) ? gainer_silent(group0, next, 0) : 0;
    if (ok(st) && missing == 0) missing = gainer_stuck(group0, next);
    bool ends = ok(st) && next->stage == STAGE_NONE; /* nothing is to move */
    topology_release(next);
    if (group0->topology->epoch != epoch) return; /* of another one */
    group0->plan_ends_epoch = ends ? epoch : 0;
    if (ends && end_waits(group0)) {
        group0->plan_at_ns = io_now_ns() + PLAN_DELAY_NS;
        return;
    }
    plan_waits_for_set(group0, missing);
    if (missing != 0 || status_is(st, ST_NO_MEMORY))
        group0->plan_at_ns = io_now_ns() + PLAN_DELAY_NS;
    if (!ok(st) || missing != 0) return;
    st = plan_command(group0, kind, session, reason);
    if (ok(st)) log_info("group0", "plan begun epoch=%llu", (unsigned long long)epoch);
}

/* True: somebody is gone for whom it would wait. What fenced stages refuse stays refused: those who
 * are here have to know this stage before there is another one. */
static MAY_YIELD bool
plan_give_up(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    char reason[TOPOLOGY_REASON_BYTES];
    if (topology->stage != STAGE_WRITE_BOTH) return false;
    u32 silent = gainer_silent(group0, topology, GIVE_UP_NS);
    if (silent == 0) return false;
    if (!barrier_is_passed(group0, GIVE_UP_NS)) return true;
    status st = plan_command(group0, TOPOLOGY_ABANDON, topology->session, reason);
    if (ok(st)) log_warning("group0", "plan given up: a member does not answer member=%u", silent);
    return true;
}

/* True: some are silent who may only be cut off, and would go on reading what the next stage does
 * not write any more. */
static bool
plan_waits_for_old_readers(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    if (topology_may_leave_behind(topology, knows_present, group0)) return false;
    u32 silent = 0;
    for (u32 i = 0; i < topology->member_count && silent == 0; i++)
        if (!knows_present(group0, topology->members[i].number))
            silent = topology->members[i].number;
    plan_waits_for_set(group0, silent);
    return true;
}

static MAY_YIELD void
plan_drive(struct group0 *group0)
{
    const struct topology *topology = group0->topology;
    char reason[TOPOLOGY_REASON_BYTES];
    if (topology->epoch != group0->plan_epoch) {
        group0->plan_epoch = topology->epoch;
        group0->plan_at_ns = io_now_ns() + PLAN_DELAY_NS;
        group0->plan_waits_for = 0;
    }
    if (topology->stage == STAGE_NONE) {
        plan_begin(group0);
        return;
    }
    if (plan_give_up(group0)) return;
    topology = group0->topology; /* as it was: nothing was proposed */
    bool fenced = topology_fenced(topology);
    if (fenced && topology->stage == STAGE_WRITE_BOTH && topology_unfetched(topology) != 0) {
        plan_waits_for_set(group0, gainer_stuck(group0, topology));
        return;
    }
    if (!barrier_is_passed(group0, ABSENT_NS)) return;
    if (fenced && topology->stage == STAGE_READ_NEXT &&
        (plan_waits_for_old_readers(group0) || end_waits(group0)))
        return;
    u8 stage = topology->stage;
    status st =
        plan_command(group0, fenced ? TOPOLOGY_ADVANCE : TOPOLOGY_FENCE, topology->session, reason);
    if (ok(st))
        log_info("group0", "plan: %s",
                 !fenced                     ? "fenced"
                 : stage == STAGE_WRITE_BOTH ? "reads use the new places"
                                             : "done");
    if (status_is(st, ST_INVALID)) log_warning("group0", "a plan does not go on why=%s", reason);
}

/* ---- who leads ---- */

bool
group0_give_lead(struct group0 *group0)
{
    if (!leads(group0)) return false;
    const struct raft *raft = &group0->raft;
    const struct raft_peer *best = NULL;
    for (u32 i = 0; i < raft->peer_count; i++) {
        const struct raft_peer *peer = &raft->peers[i];
        if (peer->id == group0->identity.member || (peer->roles & RAFT_VOTER) == 0 ||
            !is_alive(group0, (u32)peer->id))
            continue;
        if (best == NULL || peer->match > best->match) best = peer;
    }
    if (best == NULL || !group0_input_begin(group0)) return false;
    status st = raft_transfer(&group0->raft, best->id, &group0->ready);
    if (ok(st)) group0_input_end(group0);
    return ok(st);
}

/* ---- the fiber ---- */

void
group0_lead_main(void *arg)
{
    struct group0 *group0 = arg;
    while (!group0->closing && ok(group0->failed)) {
        if (!leads(group0)) {
            (void)fiber_queue_wait(&group0->lead_queue, FIBER_FOREVER);
            continue;
        }
        group0_addresses_update(group0, group0->topology);
        if (!members_adjust(group0)) (void)voters_adjust(group0);
        if (leads(group0)) plan_drive(group0);
        if (leads(group0)) fiber_sleep_ns(GROUP0_LEAD_NS);
    }
    fiber_gate_leave(&group0->gate);
}
