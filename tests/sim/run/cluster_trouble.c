/* SPDX-License-Identifier: MIT
 *
 * cluster_trouble.c -- what goes wrong in a cluster, and when.
 *
 * The fault budget
 *   Any number of nodes may lose their power, be killed, stand still or be cut off, at once and
 *   again: they come back with their disks.
 *   One disk at a time is lost (wiped, or with its machine): W - 1 with W = 2, and never more than
 *   what a majority of group0's voters survives. The next one is lost when the cluster has got over
 *   the last: no plan is under way, nobody who was lost is in a row, group0 has three voters again.
 *   A cluster keeps three members at least; but where it shrinks, two of three stay for a while. One
 *   of the three may be lost then as long as all are members: whoever leaves has what it had. (Not
 *   when only the last step is left: while that is under way they may be two already.)
 *   What rots counts as a lost disk, until it was found and is mended.
 *
 * Links fail between nodes only: clients reach everybody who runs. One partition lasts at a time;
 * one slow link besides. Each trouble is numbered in its family (sim_fault_inject), so that --off
 * and --skip leave it out and shrinking works.
 */
#include "cluster.h"

#include <stdio.h>

#include "cluster/group0_internal.h"

#define REMOVE_AFTER_NS (2 * NS_PER_S)
#define VOTE_KEPT_NS    (9 * NS_PER_S)
#define NODES_MAX       7u
#define LITE_NODES_MAX  5u

static struct {
    u64 next_ns;
    u64 heal_ns; /* when the partition ends; 0: there is none */
    u64 slow_ns; /* and the slow link */
    struct cluster_node *slow_a, *slow_b;
    u64 clocks_ns;             /* when clocks are set right; 0: they are */
    struct cluster_node *lost; /* is to be forgotten: DISTKV.REMOVE ... DEAD */
    u64 forget_ns;
    bool replace;                /* and then another one joins */
    struct cluster_node *leaver; /* is to be asked to go */
    struct leaver leaver_told;
    u64 shrink_loss_ns; /* when one is lost while another one leaves; 0: none is */
} now;

static const enum sim_fault family_of[] = {
    [TROUBLE_POWER] = SIM_FAULT_POWER_CUT,   [TROUBLE_KILL] = SIM_FAULT_KILL,
    [TROUBLE_RESTART] = SIM_FAULT_KILL,      [TROUBLE_BLACKOUT] = SIM_FAULT_POWER_CUT,
    [TROUBLE_WIPE] = SIM_FAULT_MACHINE_LOST, [TROUBLE_LOSE] = SIM_FAULT_MACHINE_LOST,
    [TROUBLE_JOIN] = SIM_FAULT_MEMBERS,      [TROUBLE_LEAVE] = SIM_FAULT_MEMBERS,
    [TROUBLE_ISOLATE] = SIM_FAULT_LINK_CUT,  [TROUBLE_HALVES] = SIM_FAULT_LINK_CUT,
    [TROUBLE_BRIDGE] = SIM_FAULT_LINK_CUT,   [TROUBLE_ONE_WAY] = SIM_FAULT_LINK_CUT,
    [TROUBLE_PAIR] = SIM_FAULT_LINK_CUT,     [TROUBLE_SLOW] = SIM_FAULT_LINK_SLOW,
    [TROUBLE_PAUSE] = SIM_FAULT_SHARD_STALL, [TROUBLE_SKEW] = SIM_FAULT_CLOCK_STEP,
    [TROUBLE_STEP] = SIM_FAULT_CLOCK_STEP,   [TROUBLE_ROT] = SIM_FAULT_BIT_ROT,
};
static_assert(ARRAY_COUNT(family_of) == TROUBLE_COUNT, "a family each");

static u64
lasts_ns(void)
{
    return cluster_now_ns() + prng_range(&run->prng, 100 * NS_PER_MS, run->cluster->knobs.lasts_ns);
}

/* One whose process runs and who is to stay; NULL: there is none. */
static struct cluster_node *
running_draw(void)
{
    struct cluster_run *c = run->cluster;
    struct cluster_node *found = NULL;
    u64 count = 0;
    for (u32 i = 0; i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        if (node->state != NODE_RUNS || node->stopping) continue;
        if (prng_below(&run->prng, ++count) == 0) found = node;
    }
    return found;
}

/* ---- what a loss asks for ---- */

static bool
loss_allowed(void)
{
    struct cluster_run *c = run->cluster;
    if (c->lost != 0 && cluster_is_settled()) c->lost = 0;
    const struct topology *newest = cluster_topology_newest();
    return c->lost == 0 && newest != NULL && newest->member_count >= 3 && cluster_is_settled();
}

/* Three members by whoever leads, of which one leaves, and all run and see each other. */
static bool
shrink_loss_allowed(void)
{
    struct cluster_run *c = run->cluster;
    const struct group0 *group0 = cluster_group_leader();
    if (c->lost != 0 || now.heal_ns != 0 || group0 == NULL) return false;
    const struct topology *topology = group0->topology;
    u32 leaving = 0, voters = 0, running = 0;
    if (topology == NULL || topology->member_count != 3) return false;
    if (topology->stage == STAGE_READ_NEXT && topology_fenced(topology)) return false;
    for (u32 i = 0; i < 3; i++)
        leaving += topology->members[i].state == PLACEMENT_LEAVING;
    for (u32 i = 0; i < group0->raft.peer_count; i++)
        voters += group0->raft.peers[i].roles == RAFT_VOTER;
    for (u32 i = 0; i < c->node_count; i++)
        running += c->nodes[i].state == NODE_RUNS && !c->nodes[i].stopping &&
                   topology_member_by_id(topology, c->nodes[i].id) != NULL;
    /* Who is away for long has no vote, until it is back: not in a short run. */
    bool votes = voters == 3 || c->knobs.trouble_ns < VOTE_KEPT_NS;
    return leaving == 1 && votes && running == 3;
}

static bool
lose(bool wipe, bool shrinks)
{
    struct cluster_run *c = run->cluster;
    if (shrinks ? !shrink_loss_allowed() : !loss_allowed()) return false;
    struct cluster_node *node = running_draw();
    if (node == NULL || node->leaving) return false;
    cluster_node_crash(node, true);
    c->lost = node->index + 1;
    c->losses++;
    if (wipe) {
        node->disks++;
        node->back_ns = lasts_ns();
        return true;
    }
    node->state = NODE_LOST;
    now.lost = node;
    now.forget_ns = cluster_now_ns() + REMOVE_AFTER_NS + prng_below(&run->prng, 3 * NS_PER_S);
    now.replace = prng_chance(&run->prng, 2, 3) || cluster_running() < MAX(3u, c->knobs.replicas);
    return true;
}

bool
cluster_rot_is_there(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++)
        if (c->nodes[i].rot_wanted != 0) return true; /* any moment */
    if (c->rot.file == 0) return false;
    struct cluster_node *node = &c->nodes[c->rot_node];
    const struct topology *newest = cluster_topology_newest();
    bool there = node->disks == c->rot_disks && node->state != NODE_LOST &&
                 node->state != NODE_GONE &&
                 (newest == NULL || topology_member_by_id(newest, node->id) != NULL) &&
                 rot_is_there(&c->rot);
    if (!there) c->rot.file = 0;
    return there;
}

u64
cluster_rot_pause_ns(void)
{
    const struct cluster_run *c = run->cluster;
    return !c->troubles && !c->calm && c->rot.file != 0 ? 100 * NS_PER_MS : 0;
}

/* Where nobody reads it, the scrub is to find it before the run ends. */
static void
rot_look(void)
{
    struct cluster_run *c = run->cluster;
    if (cluster_now_ns() < c->scrub_ns || !cluster_rot_is_there()) return;
    c->scrub_ns = cluster_now_ns() + 5 * NS_PER_S;
    memset(c->nodes[c->rot_node].scrub_wanted, 1, sizeof(c->nodes[0].scrub_wanted));
}

static bool
rot(void)
{
    struct cluster_run *c = run->cluster;
    if (!loss_allowed() || !cluster_mends(cluster_topology_newest())) return false;
    struct cluster_node *node = running_draw();
    if (node == NULL || node->leaving) return false;
    node->rot_wanted = 1 + (u32)prng_below(&run->prng, node->config->core_count);
    c->lost = node->index + 1;
    return true;
}

static bool
join(void)
{
    if (cluster_running() >= (run->cluster->knobs.lite ? LITE_NODES_MAX : NODES_MAX)) return false;
    struct cluster_node *node = cluster_node_new();
    if (node == NULL) return false;
    node->back_ns = cluster_now_ns();
    return true;
}

/* Where two are left, one more is to come. */
static bool
refill_wanted(void)
{
    const struct topology *newest = cluster_topology_newest();
    return run->cluster->knobs.shrinks && newest != NULL && newest->member_count < 3;
}

static void
refill(void)
{
    const struct cluster_run *c = run->cluster;
    if (!refill_wanted() || now.lost != NULL || c->node_count == CLUSTER_NODES_MAX) return;
    const struct topology *newest = cluster_topology_newest();
    for (u32 i = 0; i < c->node_count; i++) { /* one that is on its way */
        const struct cluster_node *node = &c->nodes[i];
        bool member = topology_member_by_id(newest, node->id) != NULL;
        if (!member && (node->state == NODE_DOWN || (node->state == NODE_RUNS && !node->leaving)))
            return;
    }
    (void)join();
}

/* Of three settled ones one may go where the cluster is to shrink. */
static bool
may_shrink(const struct topology *newest)
{
    return run->cluster->knobs.shrinks && newest->member_count == 3 && loss_allowed() &&
           run->cluster->node_count + 2 <= CLUSTER_NODES_MAX;
}

static bool
leave(void)
{
    struct cluster_run *c = run->cluster;
    const struct topology *newest = cluster_topology_newest();
    if (now.leaver != NULL || newest == NULL) return false;
    if (may_shrink(newest)) {
        now.leaver = running_draw();
        now.leaver_told = (struct leaver){.asked = false};
        if (now.leaver != NULL && prng_chance(&run->prng, 2, 3))
            now.shrink_loss_ns = cluster_now_ns() + prng_below(&run->prng, 6 * NS_PER_S);
        return now.leaver != NULL;
    }
    if (newest->member_count <= 3) return false;
    struct member_seen members[CLUSTER_NODES_MAX] = {0};
    for (u32 i = 0; i < c->node_count; i++) {
        const struct cluster_node *node = &c->nodes[i];
        const struct topology_member *member = topology_member_by_id(newest, node->id);
        members[i].normal = member != NULL && member->state == PLACEMENT_NORMAL;
        members[i].told = node->leaving;
    }
    if (!one_more_may_leave(members, c->node_count) || c->lost != 0) return false;
    now.leaver = running_draw();
    now.leaver_told = (struct leaver){.asked = false};
    return now.leaver != NULL;
}

/* Asks somebody for a change of the members; looked at again until it was done. */
static void
remove_step(void)
{
    struct cluster_run *c = run->cluster;
    if (c->remove_wanted) return;
    if (now.lost != NULL && cluster_now_ns() >= now.forget_ns) {
        const struct topology *newest = cluster_topology_newest();
        if (newest != NULL && topology_member_by_id(newest, now.lost->id) == NULL) {
            now.lost = NULL;
            if (now.replace) (void)join();
            return;
        }
        struct cluster_node *at = running_draw();
        if (at == NULL || newest == NULL) return;
        snprintf(c->remove_text, sizeof(c->remove_text), "DISTKV.REMOVE %s DEAD", now.lost->id);
        c->remove_at = at->index;
        c->remove_wanted = true;
        now.forget_ns = cluster_now_ns() + 500 * NS_PER_MS;
        return;
    }
    if (now.leaver == NULL) return;
    const struct topology *newest = cluster_topology_newest();
    const struct topology_member *found =
        newest != NULL ? topology_member_by_id(newest, now.leaver->id) : NULL;
    enum leaver_standing standing = STANDING_MEMBER;
    if (newest != NULL && found == NULL) standing = STANDING_NONE;
    if (found != NULL && found->state == PLACEMENT_LEAVING) standing = STANDING_LEAVES;
    enum leaver_state leaver = leaver_answered(&now.leaver_told, c->remove_answer, standing);
    if (leaver == LEAVER_GOES) now.leaver->leaving = true;
    if (now.leaver->leaving || leaver == LEAVER_STAYS) {
        now.leaver = NULL;
        return;
    }
    struct cluster_node *at = running_draw();
    if (at == NULL) return;
    snprintf(c->remove_text, sizeof(c->remove_text), "DISTKV.REMOVE %s FORCE", now.leaver->id);
    c->remove_at = at->index;
    c->remove_wanted = true;
    now.leaver_told.asked = true;
}

/* ---- links ---- */

static struct cluster_node *
live_at(u32 index)
{
    struct cluster_node *node = &run->cluster->nodes[index];
    bool there = node->state == NODE_RUNS || node->state == NODE_DOWN;
    return there ? node : NULL;
}

static void
link_cut(u32 a, u32 b, bool one_way)
{
    const struct cluster_run *c = run->cluster;
    if (a == b || live_at(a) == NULL || live_at(b) == NULL) return;
    if (one_way)
        sim_link_cut_one_way(run->sim, c->nodes[a].machine, c->nodes[b].machine);
    else
        sim_link_cut(run->sim, c->nodes[a].machine, c->nodes[b].machine);
}

static void
links_heal(void)
{
    const struct cluster_run *c = run->cluster;
    for (u32 a = 0; a < c->node_count; a++)
        for (u32 b = 0; b < a; b++)
            sim_link_heal(run->sim, c->nodes[a].machine, c->nodes[b].machine);
    now.heal_ns = 0;
}

static void
slow_heal(void)
{
    if (now.slow_ns != 0) sim_link_slow_set(run->sim, now.slow_a->machine, now.slow_b->machine, 0);
    now.slow_ns = 0;
}

static bool
links_cut(enum cluster_trouble trouble)
{
    const struct cluster_run *c = run->cluster;
    struct prng *prng = &run->prng;
    struct cluster_node *one = running_draw(), *other = running_draw();
    if (now.heal_ns != 0 || one == NULL || other == NULL) return false;
    now.heal_ns = lasts_ns();
    u64 sides = prng_u64(prng);
    bool hears = prng_chance(prng, 1, 2);
    if (trouble == TROUBLE_PAIR) link_cut(one->index, other->index, prng_chance(prng, 1, 4));
    for (u32 a = 0; a < c->node_count && trouble != TROUBLE_PAIR; a++) {
        for (u32 b = 0; b < c->node_count; b++) {
            bool parted = (sides >> a & 1) != (sides >> b & 1);
            if (trouble == TROUBLE_BRIDGE && (a == one->index || b == one->index)) parted = false;
            if (trouble == TROUBLE_ISOLATE) parted = a == one->index;
            if (trouble == TROUBLE_ONE_WAY) parted = hears ? a == one->index : b == one->index;
            if (parted) link_cut(a, b, trouble == TROUBLE_ONE_WAY);
        }
    }
    return true;
}

static bool
link_slow(void)
{
    struct cluster_node *a = running_draw(), *b = running_draw();
    if (now.slow_ns != 0 || a == NULL || b == NULL || a == b) return false;
    now.slow_a = a;
    now.slow_b = b;
    now.slow_ns = lasts_ns();
    sim_link_slow_set(run->sim, a->machine, b->machine, prng_range(&run->prng, 5, 800) * NS_PER_MS);
    return true;
}

/* ---- processes and clocks ---- */

static bool
pause_one(void)
{
    struct cluster_node *node = running_draw();
    if (node == NULL) return false;
    u64 ns = prng_range(&run->prng, 50, 1 + MAX(60u, run->cluster->knobs.lasts_ns / NS_PER_MS)) *
             NS_PER_MS;
    for (u32 i = 0; i < node->config->core_count; i++)
        sim_node_shard_stall(node->machine, i, ns);
    return true;
}

static void
clock_set(struct cluster_node *node, i64 skew_ms)
{
    struct cluster_run *c = run->cluster;
    sim_node_clock_step(node->machine, skew_ms - node->skew_ms);
    node->skew_ms = skew_ms;
    c->skew_least_ms = MIN(c->skew_least_ms, skew_ms);
    c->skew_most_ms = MAX(c->skew_most_ms, skew_ms);
}

static bool
clock_wrong(bool far)
{
    struct cluster_node *node = running_draw();
    if (node == NULL) return false;
    i64 most = far ? 4000 : 120; /* two that differ by 240 ms are within what is allowed */
    clock_set(node, (i64)prng_below(&run->prng, (u64)(2 * most + 1)) - most);
    if (far) {
        run->cluster->skewed = true;
        if (now.clocks_ns == 0) now.clocks_ns = lasts_ns();
    }
    return true;
}

static void
clocks_right(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++)
        if (c->nodes[i].skew_ms != 0) clock_set(&c->nodes[i], 0);
    now.clocks_ns = 0;
}

static bool
end_one(enum cluster_trouble trouble)
{
    struct cluster_node *node = running_draw();
    if (node == NULL) return false;
    u64 back_ns = prng_chance(&run->prng, 1, 3) ? cluster_now_ns() + NS_PER_MS : lasts_ns();
    if (trouble != TROUBLE_RESTART &&
        prng_chance(&run->prng, run->cluster->knobs.event_part, 100)) {
        u64 n = prng_below(&run->prng, 1ull << prng_range(&run->prng, 0, 12));
        bool power = trouble == TROUBLE_POWER;
        if (cluster_node_crash_at(node, power, n, back_ns - cluster_now_ns())) return true;
    }
    node->back_ns = back_ns;
    if (trouble == TROUBLE_RESTART)
        cluster_node_stop(node);
    else
        cluster_node_crash(node, trouble == TROUBLE_POWER);
    return true;
}

static bool
blackout(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        if (node->state != NODE_RUNS || node->stopping) continue;
        cluster_node_crash(node, true);
        node->back_ns = prng_chance(&run->prng, 1, 2) ? cluster_now_ns() + NS_PER_MS : lasts_ns();
    }
    return true;
}

static bool
trouble_make(enum cluster_trouble trouble)
{
    switch (trouble) {
    case TROUBLE_POWER:
    case TROUBLE_KILL:
    case TROUBLE_RESTART:
        return end_one(trouble);
    case TROUBLE_BLACKOUT:
        return blackout();
    case TROUBLE_WIPE:
    case TROUBLE_LOSE:
        return lose(trouble == TROUBLE_WIPE, false);
    case TROUBLE_JOIN:
        return join();
    case TROUBLE_LEAVE:
        return leave();
    case TROUBLE_ISOLATE:
    case TROUBLE_HALVES:
    case TROUBLE_BRIDGE:
    case TROUBLE_ONE_WAY:
    case TROUBLE_PAIR:
        return links_cut(trouble);
    case TROUBLE_SLOW:
        return link_slow();
    case TROUBLE_PAUSE:
        return pause_one();
    case TROUBLE_SKEW:
    case TROUBLE_STEP:
        return clock_wrong(trouble == TROUBLE_STEP);
    case TROUBLE_ROT:
        return rot();
    case TROUBLE_COUNT:
        break;
    }
    return false;
}

/* ---- in time ---- */

static void
trouble_draw(void)
{
    struct cluster_run *c = run->cluster;
    u64 sum = 0;
    for (u32 i = 0; i < TROUBLE_COUNT; i++)
        sum += c->knobs.weights[i];
    if (sum == 0) return;
    u64 draw = prng_below(&run->prng, sum);
    u32 trouble = 0;
    while (draw >= c->knobs.weights[trouble])
        draw -= c->knobs.weights[trouble++];
    if (!sim_fault_inject(run->sim, family_of[trouble])) return;
    bool made = trouble_make((enum cluster_trouble)trouble);
    c->happened[trouble] += made;
    if (made && run->options->log)
        fprintf(stderr, "%12llu trouble: %s\n", (unsigned long long)(cluster_now_ns() / 1000),
                cluster_trouble_names[trouble]);
}

static void
next_draw(void)
{
    u64 between_ns = run->cluster->knobs.between_ns;
    now.next_ns = cluster_now_ns() + prng_range(&run->prng, between_ns / 4, 2 * between_ns);
}

void
cluster_trouble_init(void)
{
    memset(&now, 0, sizeof(now)); /* what an earlier run has left */
}

void
cluster_trouble_begin(void)
{
    run->cluster->troubles = true;
    next_draw();
}

void
cluster_trouble_step(void)
{
    u64 ns = cluster_now_ns();
    remove_step();
    refill();
    if (now.shrink_loss_ns != 0 && ns >= now.shrink_loss_ns) {
        bool wipe = prng_chance(&run->prng, 1, 2);
        if (run->cluster->troubles && lose(wipe, true)) {
            run->cluster->shrink_losses++;
            now.shrink_loss_ns = 0;
            if (run->options->log)
                fprintf(stderr, "%12llu trouble: %s while three become two\n",
                        (unsigned long long)(cluster_now_ns() / 1000), wipe ? "wipe" : "lose");
        } else if (!run->cluster->troubles || ns >= now.shrink_loss_ns + 3 * NS_PER_S) {
            now.shrink_loss_ns = 0;
        }
    }
    if (!run->cluster->troubles) rot_look();
    if (now.heal_ns != 0 && ns >= now.heal_ns) links_heal();
    if (now.slow_ns != 0 && ns >= now.slow_ns) slow_heal();
    if (now.clocks_ns != 0 && ns >= now.clocks_ns) clocks_right();
    if (!run->cluster->troubles || ns < now.next_ns) return;
    trouble_draw();
    next_draw();
}

const char *
cluster_members_unsettled(bool plan)
{
    return members_unsettled(plan, now.lost != NULL || refill_wanted(), now.leaver != NULL);
}

void
cluster_trouble_end(void)
{
    struct cluster_run *c = run->cluster;
    c->troubles = false;
    cluster_nodes_cut_end();
    links_heal();
    slow_heal();
    clocks_right();
    sim_faults_end(run->sim);
    for (u32 i = 0; i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        if (node->state == NODE_DOWN || node->stopping) node->back_ns = cluster_now_ns() + 1;
    }
    if (now.lost != NULL) now.forget_ns = cluster_now_ns();
    /* Where fewer than three are left, one more comes. */
    now.replace = now.replace || c->node_count < CLUSTER_NODES_MAX;
}
