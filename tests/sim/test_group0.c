/* SPDX-License-Identifier: MIT
 *
 * test_group0.c -- whole clusters of one to five nodes on the simulated link that agree on their
 * topology, each with a store, peers and group0 on one shard. A seed is a history: nodes are
 * started, stopped, lose their power or their disks, links are cut and heal, and from every member
 * changes are asked for. Then all faults end.
 *
 *     SIM_SEED=17 build/bin/test_group0        that seed alone, with what the nodes had to say
 *     SIM_FIRST=1 SIM_SEEDS=1000 ...           others
 *
 * Changes. Each member counts in a field of its own (its client port): so it is seen whether what
 * was acknowledged is there, and whether anything was done twice.
 *
 * Checked
 *   agreement   all that members show as epoch n is one state; a member shows later epochs only,
 *               after a power cut too
 *   kept        a change that was acknowledged is in the state that the member who asked shows then,
 *               and in all later ones, up to the last
 *   once        no change is applied twice, though it was sent again
 *   barrier     behind it everything is seen that had been acknowledged when it began
 *   progress    soon after the faults end every node is a member, all show one state, plans have
 *               ended, voters are as many as they should be, and each member can change something
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../fewer.h"
#include "../seeds.h"
#include "base/hash.h"
#include "cluster/group0_internal.h"
#include "lsm/store.h"
#include "peer_rig.h"
#include "proto/peer.h"
#include "raft/raft_codec.h"

#ifdef __SANITIZE_ADDRESS__
#define SEEDS_DEFAULT 15 /* four times as slow */
#else
#define SEEDS_DEFAULT 150
#endif
#define MS(n)       ((u64)(n)*NS_PER_MS)
#define SECONDS(n)  ((u64)(n)*NS_PER_S)
#define KEEPS_NS    SECONDS(60)
#define NODES       5u
#define CHAIN_MAX   8192u
#define NUMBERS_MAX 256u

/* Of a node; outside of all nodes, so that a crash does not take it. */
struct app {
    struct peer_rig_node *node;
    struct store_layout layout;
    struct lsm *lsm;
    struct group0 *group0; /* while it is open */
    struct budget budget;
    u32 wipes;
    bool founder, founded;
    bool twin;                          /* has been given the id of the first node */
    char reason[TOPOLOGY_REASON_BYTES]; /* why it could not join */
    bool stop;
    u32 fibers;
    u64 shown; /* newest epoch that this disk's member has shown */
    u64 life_shown;
    enum lsm_durability durability;
    bool disk_failed;     /* in this life */
    bool fetches_nothing; /* what it gains: no plan that gives it anything ends */
    bool is_damaged;      /* it does not open; what it says then is in opened */
    status opened;
    /* its requests, one at a time of each kind */
    struct peer_rig_job change_job, barrier_job;
    bool changing, reading;
    u32 lane; /* the member that counts */
    u16 value;
    u64 deadline_ns;
    status result;
    u64 barrier_floor;
};

static struct app apps[NODES];
static u32 snapshot_entries;
static bool disks_fail;
static bool errors_now; /* of disks */
static struct peer_rig rig;

/* What all agree on: by epoch. */
static struct {
    u64 state_id;
    u16 counts[NUMBERS_MAX];
} chain[CHAIN_MAX];
static u64 chain_last;
static u16 acknowledged[NUMBERS_MAX];
static u64 acknowledged_epoch;
static u64 changes_done, changes_unknown, barriers_done, joins_done, snapshots_seen;
static u64 failures_seen;
static u64 seed_now;
static char violation[256];

static void PRINTF_LIKE(1, 2) violated(const char *format, ...)
{
    va_list list;
    if (violation[0] != 0) return;
    va_start(list, format);
    vsnprintf(violation, sizeof(violation), format, list);
    va_end(list);
}

/* ---- what a node tells ---- */

static void
app_changed(void *arg, struct topology *topology)
{
    struct app *app = arg;
    u64 epoch = topology->epoch;
    if (!topology_check(topology)) violated("n%u shows a state that is none", app->node->index);
    if (epoch >= CHAIN_MAX) {
        violated("too many epochs");
        return;
    }
    if (epoch < app->shown || epoch < app->life_shown)
        violated("agreement: n%u shows epoch %llu after %llu", app->node->index,
                 (unsigned long long)epoch, (unsigned long long)app->shown);
    app->shown = app->life_shown = epoch;
    if (chain[epoch].state_id != 0) {
        if (chain[epoch].state_id != topology->state_id)
            violated("agreement: n%u has another state of epoch %llu", app->node->index,
                     (unsigned long long)epoch);
        return;
    }
    chain[epoch].state_id = topology->state_id;
    chain_last = MAX(chain_last, epoch);
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        if (member->number < NUMBERS_MAX) chain[epoch].counts[member->number] = member->client_port;
    }
}

static struct app *
app_of_member(u32 number)
{
    for (u32 i = 0; i < rig.node_count; i++)
        if (sim_node_running(rig.nodes[i].machine) && apps[i].group0 != NULL &&
            apps[i].group0->identity.member == number)
            return &apps[i];
    return NULL;
}

static u32 deaf; /* a member that nothing of raft's reaches; 0: none */

static bool
app_alive(void *arg, u32 member)
{
    return member != deaf && app_of_member(member) != NULL;
}

static u32 keeper; /* a member that always has something to hand on; 0: none */

static bool
app_keeps(void *arg, u32 member)
{
    (void)arg;
    return member == keeper;
}

static u32 unaware; /* a member of a version before, which does not know TOPOLOGY_PLAN; 0: none */

static bool
app_knows_plan(void *arg, u32 member)
{
    (void)arg;
    return member != unaware;
}

static u64
app_epoch_of(void *arg, u32 member)
{
    struct app *app = app_of_member(member);
    struct topology *topology = app != NULL ? group0_topology(app->group0) : NULL;
    return topology != NULL ? topology->epoch : 0;
}

/* ---- what a node is ---- */

static void
self_fill(struct app *app, struct topology_member *self)
{
    *self = (struct topology_member){
        .weight = 150, .client_port = 1000, .peer_port = PEER_RIG_PORT, .shard_count = 1};
    snprintf(self->node_id, sizeof(self->node_id), "n%u", app->twin ? 0 : app->node->index);
    snprintf(self->host, sizeof(self->host), "%s", app->node->host);
    snprintf(self->rack, sizeof(self->rack), "r%u", app->node->index % 3);
    snprintf(self->datacenter, sizeof(self->datacenter), "dc");
}

static MAY_YIELD void
join_main(void *arg)
{
    struct app *app = arg;
    struct peer_address seeds[NODES];
    struct topology_member self;
    char reason[TOPOLOGY_REASON_BYTES];
    self_fill(app, &self);
    u32 count = 0;
    for (u32 i = 0; i < rig.node_count; i++)
        if (i != app->node->index) peer_rig_address(&rig, i, &seeds[count++]);
    while (!app->stop && group0_member(app->group0) == 0) {
        status st = group0_join(app->group0, &self, seeds, count, io_now_ns() + SECONDS(2), reason);
        if (ok(st)) joins_done++;
        memcpy(app->reason, reason, sizeof(reason));
        if (status_is(st, ST_CONFLICT)) violated("n%u cannot join: %s", app->node->index, reason);
        fiber_sleep_ns(MS(20));
    }
    app->fibers--;
}

static status
fetched_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    struct app *app = arg;
    const struct topology_member *self = topology_member(present, app->group0->identity.member);
    if (present->stage != STAGE_WRITE_BOTH || self == NULL || self->fetched) return ST_EXISTS;
    if (!topology_fenced(present)) return ST_EXISTS;
    if (!topology_gainer(present, self->number)) return ST_EXISTS;
    command->kind = TOPOLOGY_FETCHED;
    command->member.number = self->number;
    command->session = present->session;
    return ST_OK;
}

/* Gains by plans what there is to gain: nothing, at once. */
static MAY_YIELD void
fetch_main(void *arg)
{
    struct app *app = arg;
    char reason[TOPOLOGY_REASON_BYTES];
    while (!app->stop) {
        if (group0_topology(app->group0) != NULL && !app->fetches_nothing &&
            group0_topology(app->group0)->stage == STAGE_WRITE_BOTH) {
            status st =
                group0_change(app->group0, fetched_fill, app, io_now_ns() + MS(500), reason);
            (void)st; /* again in a moment */
        }
        fiber_sleep_ns(MS(50));
    }
    app->fibers--;
}

static MAY_YIELD status
found(struct app *app)
{
    struct topology_command command = {
        .cluster_id = 0xc1 + seed_now, .partition_count = 64, .replicas = 3};
    self_fill(app, &command.member);
    status st = group0_found(app->group0, &command);
    if (ok(st)) app->founded = true;
    return st;
}

static MAY_YIELD status
app_open(struct app *app, struct peers *peers)
{
    struct group0_options options = {.lsm = app->lsm,
                                     .peers = peers,
                                     .budget = &app->budget,
                                     .changed = app_changed,
                                     .alive = app_alive,
                                     .epoch_of = app_epoch_of,
                                     .keeps = app_keeps,
                                     .keeps_ns = KEEPS_NS,
                                     .knows_plan = app_knows_plan,
                                     .arg = app,
                                     .snapshot_entries = snapshot_entries};
    struct group0 *group0;
    status st;
    app->stop = false;
    app->fibers = 0;
    do { /* memory is refused by chance */
        app->life_shown = 0;
        st = group0_open(&options, &group0);
        if (status_is(st, ST_NO_MEMORY)) fiber_sleep_ns(MS(1));
    } while (status_is(st, ST_NO_MEMORY));
    if (!ok(st)) return st;
    app->group0 = group0;
    if (app->founder && !app->founded && group0_member(group0) == 0) {
        while (st = found(app), status_is(st, ST_NO_MEMORY) && ok(group0->failed))
            fiber_sleep_ns(MS(1));
        if (!ok(app->group0->failed)) st = ST_OK; /* it is taken down, and begins anew */
    } else if (group0_member(group0) == 0) {
        st = fiber_spawn(FIBER_FOREGROUND, "join", join_main, app);
        app->fibers += ok(st);
    }
    if (ok(st)) st = fiber_spawn(FIBER_FOREGROUND, "fetch", fetch_main, app);
    app->fibers += ok(st);
    return st;
}

static MAY_YIELD status
node_main(struct peer_rig_node *node)
{
    struct app *app = &apps[node->index];
    struct peer_rig_shard *shard = &node->shards[0];
    struct store_layout *layout = &app->layout;
    struct lsm_options lsm_options;
    char dir[32], error[160];
    app->group0 = NULL;
    budget_init(&app->budget, "group0", MIB(64), io_budget());
    lsm_options_default(&lsm_options);
    lsm_options.memory_bytes = MIB(24);
    lsm_options.memtable_bytes = KIB(256);
    lsm_options.scrub_bytes_per_s = 0;
    lsm_options.disk_reserve_bytes = 0;
    lsm_options.durability = app->durability;
    snprintf(dir, sizeof(dir), "data%u", app->wipes);
    status st = store_prepare(dir, NULL, 1, &lsm_options, layout, error, sizeof(error));
    if (!ok(st)) return st;
    struct lsm_place place = {.dir = layout->shards[0].dir,
                              .token_first = layout->shards[0].token_first,
                              .token_last = layout->shards[0].token_last};
    st = lsm_open(&place, &lsm_options, &app->lsm);
    if (!ok(st)) return st;

    struct peers_options options = {.budget = &shard->budget};
    memcpy(options.secret, node->secret, sizeof(options.secret));
    peer_rig_address(&rig, node->index, &options.listen);
    st = peers_open(&options, &shard->peers);
    CHECK(ok(st));
    st = app_open(app, shard->peers);
    if (status_is(st, ST_CANCELED) && io_stopping()) st = ST_OK; /* it waited for the others */
    app->opened = st;
    if (ok(st) || app->is_damaged)
        peer_rig_serve(node);
    else if (!errors_now)
        violated("n%u does not open: %s", node->index, status_text(st));
    shard->ready = true;
    app->stop = true;
    while (app->fibers > 0)
        fiber_sleep_ns(MS(1));
    struct group0 *group0 = app->group0;
    app->group0 = NULL;
    if (group0 != NULL) {
        snapshots_seen += group0->snapshots;
        group0_close(group0);
    }
    peers_close(shard->peers);
    CHECK(app->budget.used_bytes == 0);
    static struct lsm_stats stats; /* too large for a fiber */
    lsm_stats_get(app->lsm, &stats);
    if (stats.state == LSM_STATE_FAILED) app->disk_failed = true;
    status closed = lsm_close(app->lsm);
    store_release(dir);
    if (errors_now && status_is(closed, ST_IO_ERROR))
        app->disk_failed = true; /* by the last flush */
    if (rig.options.alloc_ppm > 0 && status_is(closed, ST_NO_MEMORY)) closed = ST_OK;
    /* What a failed disk did to it is not this test's question. */
    bool excused = app->disk_failed || app->is_damaged;
    return excused || (ok(st) && ok(closed)) ? ST_OK : ok(st) ? closed : st;
}

/* ---- what is asked of a node ---- */

static status
count_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    struct app *app = arg;
    const struct topology_member *member = topology_member(present, app->lane);
    if (member == NULL) return ST_NOT_FOUND;
    if (member->client_port >= app->value) return ST_EXISTS;
    command->kind = TOPOLOGY_MEMBER_SET;
    command->member = *member;
    command->member.client_port = app->value;
    return ST_OK;
}

static MAY_YIELD void
change_main(struct peer_rig_node *node, void *arg)
{
    struct app *app = arg;
    char reason[TOPOLOGY_REASON_BYTES];
    struct topology *topology = group0_topology(app->group0);
    const struct topology_member *self =
        topology != NULL ? topology_member(topology, app->group0->identity.member) : NULL;
    app->result = ST_CLOSED;
    if (self == NULL) return;
    app->lane = self->number;
    if (app->value <= self->client_port) app->value = self->client_port;
    app->value++;
    u64 deadline_ns = io_now_ns() + app->deadline_ns;
    app->result = group0_change(app->group0, count_fill, app, deadline_ns, reason);
    if (status_is(app->result, ST_UNKNOWN_OUTCOME)) changes_unknown++;
    if (status_is(app->result, ST_INVALID)) violated("n%u is refused: %s", node->index, reason);
    if (!ok(app->result)) return;
    changes_done++;
    acknowledged[app->lane] = app->value;
    topology = group0_topology(app->group0);
    self = topology_member(topology, app->lane);
    if (io_now_ns() < deadline_ns && ok(app->group0->failed) &&
        (self == NULL || self->client_port < app->value))
        violated("kept: n%u does not see what it was told is done", node->index);
    acknowledged_epoch = MAX(acknowledged_epoch, topology->epoch);
}

static MAY_YIELD void
barrier_main(struct peer_rig_node *node, void *arg)
{
    struct app *app = arg;
    u64 floor = acknowledged_epoch;
    if (!ok(group0_barrier(app->group0, io_now_ns() + SECONDS(2)))) return;
    barriers_done++;
    struct topology *topology = group0_topology(app->group0);
    if (floor > 0 && (topology == NULL || topology->epoch < floor))
        violated("barrier: n%u shows epoch %llu, acknowledged was %llu", node->index,
                 topology != NULL ? (unsigned long long)topology->epoch : 0ull,
                 (unsigned long long)floor);
}

static bool
serves(u32 i)
{
    return sim_node_running(rig.nodes[i].machine) && apps[i].group0 != NULL &&
           rig.nodes[i].shards[0].ready;
}

static void
ask(u32 i, u64 deadline_ns)
{
    struct app *app = &apps[i];
    if (app->changing && !peer_rig_job_over(&app->change_job)) return;
    app->changing = serves(i);
    if (!app->changing) return;
    app->deadline_ns = deadline_ns;
    peer_rig_give(&rig, i, 0, &app->change_job, change_main, app);
}

static void
ask_barrier(u32 i)
{
    struct app *app = &apps[i];
    if (app->reading && !peer_rig_job_over(&app->barrier_job)) return;
    app->reading = serves(i);
    if (app->reading) peer_rig_give(&rig, i, 0, &app->barrier_job, barrier_main, app);
}

/* ---- what happens ---- */

static bool cut[NODES][NODES];

static void
cut_set(u32 a, u32 b, bool on)
{
    if (a == b || cut[a][b] == on) return;
    cut[a][b] = cut[b][a] = on;
    if (on)
        peer_rig_cut(&rig, a, b);
    else
        peer_rig_heal(&rig, a, b);
}

static void
heal_all(void)
{
    for (u32 a = 0; a < rig.node_count; a++)
        for (u32 b = 0; b < a; b++)
            cut_set(a, b, false);
}

static bool
is_proven(void *arg)
{
    struct app *app = arg;
    return !group0_is_proving(app->group0);
}

static void
start(u32 i)
{
    if (sim_node_running(rig.nodes[i].machine)) return;
    apps[i].changing = apps[i].reading = apps[i].disk_failed = false;
    if (errors_now) sim_error_rates_set(rig.sim, 0, 0, 0);
    errors_now = false;
    peer_rig_start(&rig, i);
}

static void
crash(u32 i, bool process_only)
{
    if (!sim_node_running(rig.nodes[i].machine)) return;
    peer_rig_crash(&rig, i, process_only);
    apps[i].group0 = NULL;
}

/* A member whose store has failed takes no part; its process ends and begins anew. */
static void
failed_ones_end(void)
{
    static struct lsm_stats stats;
    for (u32 i = 0; i < rig.node_count; i++) {
        if (!serves(i)) continue;
        lsm_stats_get(apps[i].lsm, &stats); /* group0 learns of it by its next write */
        if (ok(apps[i].group0->failed) && stats.state != LSM_STATE_FAILED) continue;
        failures_seen++;
        crash(i, false);
    }
}

static bool
all_are_members(void)
{
    for (u32 i = 0; i < rig.node_count; i++)
        if (!serves(i) || group0_member(apps[i].group0) == 0) return false;
    return true;
}

/* The budget of faults: one disk at a time, when all others are there and agree. */
static void
wipe(u32 i)
{
    if (rig.node_count < 3 || !all_are_members()) return;
    for (u32 k = 0; k < rig.node_count; k++)
        if (group0_topology(apps[k].group0)->state_id !=
                group0_topology(apps[0].group0)->state_id ||
            group0_topology(apps[k].group0)->member_count != rig.node_count)
            return;
    for (u32 a = 0; a < rig.node_count; a++)
        for (u32 b = 0; b < a; b++)
            if (cut[a][b]) return;
    if (raft_config_is_joint(&apps[i].group0->raft)) return;
    u32 voters = 0;
    for (u32 k = 0; k < apps[i].group0->raft.peer_count; k++)
        voters += (apps[i].group0->raft.peers[k].roles & RAFT_VOTER) != 0;
    if (voters < 3) return;
    crash(i, false);
    apps[i].wipes++;
    apps[i].shown = 0;
    apps[i].value = 0;
}

/* ---- in the end ---- */

static bool
voters_are_right(struct group0 *group0)
{
    struct raft *raft = &group0->raft;
    u32 voters = 0, wanted = rig.node_count % 2 == 0 ? rig.node_count - 1 : rig.node_count;
    for (u32 i = 0; i < raft->peer_count; i++)
        voters += raft->peers[i].roles == RAFT_VOTER;
    if (raft_config_is_joint(raft) || raft->peer_count != rig.node_count) return false;
    return voters == wanted || (rig.node_count == 2 && voters == 2);
}

static bool
is_well(void *arg)
{
    if (violation[0] != 0) return true;
    if (!all_are_members()) return false;
    const struct topology *first = group0_topology(apps[0].group0);
    if (first->stage != STAGE_NONE || first->member_count != rig.node_count) return false;
    for (u32 i = 0; i < first->member_count; i++)
        if (first->members[i].state != PLACEMENT_NORMAL) return false;
    for (u32 i = 0; i < rig.node_count; i++) {
        struct group0 *group0 = apps[i].group0;
        if (group0_topology(group0)->state_id != first->state_id) return false;
        if (!voters_are_right(group0)) return false;
    }
    return true;
}

static bool
all_have_changed(void *arg)
{
    for (u32 i = 0; i < rig.node_count; i++)
        if (!peer_rig_job_over(&apps[i].change_job)) return false;
    return true;
}

static void
tell_where_all_stand(void)
{
    for (u32 i = 0; i < rig.node_count; i++) {
        struct group0 *group0 = apps[i].group0;
        if (!serves(i)) {
            printf("  n%u is down\n", i);
            continue;
        }
        struct topology *topology = group0_topology(group0);
        printf("  n%u member %u(%u) %s term %llu log %llu..%llu commit %llu applied %llu, epoch "
               "%llu stage %u members %u:",
               i, group0->identity.member, group0_member(group0), raft_role_name(group0->raft.role),
               (unsigned long long)group0->raft.term, (unsigned long long)group0->base_index + 1,
               (unsigned long long)group0_log_last(group0), (unsigned long long)group0->raft.commit,
               (unsigned long long)group0->applied,
               topology != NULL ? (unsigned long long)topology->epoch : 0ull,
               topology != NULL ? topology->stage : 0,
               topology != NULL ? topology->member_count : 0);
        for (u32 k = 0; group0->running && k < group0->raft.peer_count; k++)
            printf(" %llu:%u/%u@%llu", (unsigned long long)group0->raft.peers[k].id,
                   group0->raft.peers[k].roles, group0->raft.peers[k].state,
                   (unsigned long long)group0->raft.peers[k].match);
        printf("\n");
    }
}

static void
calm(void)
{
    sim_faults_end(rig.sim);
    errors_now = false;
    failed_ones_end();
    heal_all();
    for (u32 i = 0; i < rig.node_count; i++)
        start(i);
    if (!peer_rig_run_until(&rig, is_well, NULL, SECONDS(120))) violated("progress: not well");
    if (violation[0] != 0) return;
    u64 done = changes_done;
    for (u32 i = 0; i < rig.node_count; i++) {
        while (apps[i].changing && !peer_rig_job_over(&apps[i].change_job))
            peer_rig_run(&rig, MS(10));
        done = changes_done;
    }
    for (u32 i = 0; i < rig.node_count; i++)
        ask(i, SECONDS(20));
    if (!peer_rig_run_until(&rig, all_have_changed, NULL, SECONDS(30)) ||
        changes_done != done + rig.node_count)
        violated("progress: %llu of %u changes are done", (unsigned long long)(changes_done - done),
                 rig.node_count);
    if (!peer_rig_run_until(&rig, is_well, NULL, SECONDS(30))) violated("progress: not equal");
}

static void
judge_chain(void)
{
    u16 counts[NUMBERS_MAX] = {0};
    for (u64 epoch = 1; epoch <= chain_last; epoch++) {
        if (chain[epoch].state_id == 0) continue; /* all that had it skipped it by a snapshot */
        for (u32 n = 1; n < NUMBERS_MAX; n++) {
            u16 count = chain[epoch].counts[n];
            if (count == 0 && counts[n] == 0) continue;
            if (count != 0 && count < counts[n])
                violated("once: member %u counts %u after %u", n, count, counts[n]);
            if (count != 0) counts[n] = count;
            if (count == 0) counts[n] = 0; /* gone */
        }
    }
    const struct topology *last = group0_topology(apps[0].group0);
    for (u32 i = 0; i < last->member_count; i++) {
        const struct topology_member *member = &last->members[i];
        if (member->client_port < acknowledged[member->number])
            violated("kept: member %u counts %u, acknowledged was %u", member->number,
                     member->client_port, acknowledged[member->number]);
    }
}

static void
happen(struct prng *prng)
{
    u32 a = (u32)prng_below(prng, rig.node_count), b = (u32)prng_below(prng, rig.node_count);
    switch (prng_below(prng, 16)) {
    case 0:
    case 1:
        crash(a, prng_chance(prng, 1, 2));
        break;
    case 2:
    case 3:
    case 4:
        start(a);
        break;
    case 5:
        cut_set(a, b, true);
        break;
    case 6: /* alone */
        for (b = 0; b < rig.node_count; b++)
            cut_set(a, b, true);
        break;
    case 7:
        heal_all();
        break;
    case 8:
        wipe(a);
        break;
    case 9:
        if (sim_node_running(rig.nodes[a].machine) && prng_chance(prng, 1, 2))
            peer_rig_stop(&rig, a);
        break;
    case 10: /* the power of all */
        if (!prng_chance(prng, 1, 4)) break;
        for (b = 0; b < rig.node_count; b++)
            crash(b, false);
        break;
    case 11:
        if (!disks_fail || !all_are_members()) break;
        errors_now = true;
        sim_error_rates_set(rig.sim, 0, 20000, 20000);
        break;
    default:
        ask_barrier(b);
        break;
    }
    failed_ones_end();
    for (u64 i = prng_below(prng, 4); i > 0; i--)
        ask((u32)prng_below(prng, rig.node_count), prng_range(prng, MS(10), SECONDS(3)));
}

static void
history(u64 seed, bool telling)
{
    struct prng prng;
    prng_init(&prng, seed);
    memset(apps, 0, sizeof(apps));
    memset(chain, 0, sizeof(chain));
    memset(acknowledged, 0, sizeof(acknowledged));
    memset(cut, 0, sizeof(cut));
    chain_last = acknowledged_epoch = 0;
    violation[0] = 0;
    seed_now = seed;
    keeper = deaf = 0;
    rig = (struct peer_rig){.node_count = 1 + (u32)prng_below(&prng, NODES),
                            .shard_count = 1,
                            .shard_main = node_main,
                            .started_by_test = true,
                            .memory_bytes = MIB(160)};
    sim_options_default(&rig.options, seed);
    rig.options.time_ns_max = SECONDS(3600);
    rig.options.print_log = telling;
    if (prng_chance(&prng, 1, 3)) rig.options.net.reset_ppm = (u32)prng_below(&prng, 5000);
    if (prng_chance(&prng, 1, 3)) rig.options.net.stall_ppm = (u32)prng_below(&prng, 5000);
    rig.options.net.stall_ns_max = SECONDS(1);
    if (prng_chance(&prng, 1, 4)) rig.options.disk.stall_ppm = (u32)prng_below(&prng, 3000);
    rig.options.disk.stall_ns = SECONDS(3);
    if (prng_chance(&prng, 1, 3)) rig.options.alloc_ppm = (u32)prng_below(&prng, 3000);
    disks_fail = prng_chance(&prng, 1, 4);
    snapshot_entries = 2 + (u32)prng_below(&prng, prng_chance(&prng, 1, 2) ? 8 : 100);
    errors_now = false;
    peer_rig_open(&rig);
    for (u32 i = 0; i < rig.node_count; i++)
        apps[i].node = &rig.nodes[i];
    apps[0].founder = true;
    start(0);
    u64 steps = 15 + prng_below(&prng, 40);
    for (u64 i = 0; i < steps && violation[0] == 0; i++) {
        peer_rig_run(&rig, prng_below(&prng, prng_chance(&prng, 1, 4) ? SECONDS(4) : MS(400)));
        happen(&prng);
    }
    if (violation[0] == 0) calm();
    if (violation[0] == 0) judge_chain();
    if (violation[0] != 0) tell_where_all_stand();
    peer_rig_close(&rig);
}

/* ---- stories ---- */

static void
story_begins(u32 nodes)
{
    memset(apps, 0, sizeof(apps));
    memset(chain, 0, sizeof(chain));
    memset(acknowledged, 0, sizeof(acknowledged));
    memset(cut, 0, sizeof(cut));
    chain_last = acknowledged_epoch = 0;
    violation[0] = 0;
    seed_now = 7;
    keeper = deaf = 0;
    snapshot_entries = 0;
    disks_fail = errors_now = false;
    rig = (struct peer_rig){.node_count = nodes,
                            .shard_count = 1,
                            .shard_main = node_main,
                            .started_by_test = true,
                            .memory_bytes = MIB(160)};
    sim_options_default(&rig.options, seed_now);
    peer_rig_open(&rig);
    for (u32 i = 0; i < nodes; i++)
        apps[i].node = &rig.nodes[i];
    apps[0].founder = true;
}

static void
expect_well(void)
{
    if (!peer_rig_run_until(&rig, is_well, NULL, SECONDS(120))) {
        tell_where_all_stand();
        fail_msg("not well in the end");
    }
    if (violation[0] != 0) fail_msg("%s", violation);
}

static void
all_start(void)
{
    for (u32 i = 0; i < rig.node_count; i++)
        start(i);
    expect_well();
}

static void
story_ends(void)
{
    if (violation[0] != 0) fail_msg("%s", violation);
    peer_rig_close(&rig);
}

static u32
leader_index(void)
{
    for (u32 i = 0; i < rig.node_count; i++)
        if (serves(i) && apps[i].group0->raft.role == RAFT_LEADER) return i;
    fail_msg("nobody leads");
    return 0;
}

static void
change_on(u32 i)
{
    u64 done = changes_done;
    ask(i, SECONDS(20));
    while (!peer_rig_job_over(&apps[i].change_job))
        peer_rig_run(&rig, MS(10));
    assert_int_equal(changes_done, done + 1);
}

static void
a_wiped_node_comes_back_as_a_new_member(void **state)
{
    story_begins(3);
    all_start();
    u32 old = group0_member(apps[1].group0);
    u64 incarnation = group0_incarnation(apps[1].group0);
    wipe(1);
    assert_false(serves(1));
    start(1);
    expect_well();
    u32 new = group0_member(apps[1].group0);
    assert_true(new > old);
    assert_int_not_equal(group0_incarnation(apps[1].group0), incarnation);
    const struct topology *topology = group0_topology(apps[0].group0);
    assert_null(topology_member(topology, old));
    assert_int_equal(topology_member_by_id(topology, "n1")->number, new);
    assert_int_equal(topology->member_count, 3);
    change_on(1);
    story_ends();
}

static void
whoever_starts_without_a_synced_log_is_a_new_member(void **state)
{
    story_begins(3);
    apps[2].durability = LSM_DURABILITY_PERIODIC;
    all_start();
    u32 old = group0_member(apps[2].group0);
    peer_rig_stop(&rig, 2);
    apps[2].shown = 0; /* another member */
    apps[2].value = 0;
    start(2);
    expect_well();
    assert_true(group0_member(apps[2].group0) > old);
    assert_null(topology_member(group0_topology(apps[0].group0), old));
    story_ends();
}

/* One and the same number as before where the log is synced, and at once what was shown before. */
static void
a_node_that_starts_again_begins_with_what_it_showed(void **state)
{
    story_begins(3);
    all_start();
    change_on(1);
    u32 number = group0_member(apps[1].group0);
    u64 epoch = group0_topology(apps[1].group0)->epoch;
    for (u32 i = 0; i < 3; i++)
        crash(i, false);
    start(1);
    assert_false(is_proven(&apps[1])); /* nobody says that its disk is the one that it had */
    assert_false(apps[1].group0->running);
    start(0);
    assert_true(peer_rig_run_until(&rig, is_proven, &apps[1], SECONDS(1)));
    assert_int_equal(group0_member(apps[1].group0), number);
    assert_true(group0_topology(apps[1].group0)->epoch >= epoch);
    start(2);
    expect_well();
    story_ends();
}

static void
forgets_starts(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    peers_handler_set(node->shards[0].peers, PEER_STARTED, NULL, NULL);
}

static void
a_member_of_an_earlier_version_has_nothing_against_a_start(void **state)
{
    story_begins(2);
    all_start();
    assert_true(peer_rig_do(&rig, 0, 0, forgets_starts, NULL));
    peer_rig_stop(&rig, 1);
    start(1);
    assert_true(is_proven(&apps[1]));
    change_on(1);
    story_ends();
}

/* Too far behind to tell what came in between, it keeps what a majority has found fine. */
static void
who_was_away_for_many_starts_learns_of_the_newest(void **state)
{
    story_begins(3);
    all_start();
    peer_rig_stop(&rig, 2);
    for (u32 i = 0; i < STARTS_IDS_MAX + 4; i++) {
        crash(1, false);
        start(1);
        assert_true(peer_rig_run_until(&rig, is_proven, &apps[1], SECONDS(2)));
    }
    start(2);
    peer_rig_run(&rig, SECONDS(3));
    crash(0, false);
    crash(1, false);
    start(1); /* and only that one is there */
    assert_true(peer_rig_run_until(&rig, is_proven, &apps[1], SECONDS(2)));
    start(0);
    expect_well();
    story_ends();
}

/* It lags so far that it has never heard of the one who leads now, nor where that one is. */
static void
who_lags_learns_where_a_new_leader_is(void **state)
{
    story_begins(4);
    start(0);
    start(1);
    peer_rig_run(&rig, SECONDS(10));
    u32 lagging = 1 - leader_index();
    peer_rig_stop(&rig, lagging);
    start(2);
    start(3);
    peer_rig_run(&rig, SECONDS(10));
    assert_int_equal(apps[2].group0->raft.leader != 0, true);
    u32 first = leader_index();
    for (u32 i = 0; i < 4; i++)
        cut_set(first, i, true); /* one of those whom it does not know takes over */
    peer_rig_run(&rig, SECONDS(10));
    start(lagging);
    peer_rig_run(&rig, SECONDS(10));
    u32 second = first == 0 || !serves(0) ? 2 : 0;
    assert_int_equal(group0_topology(apps[lagging].group0)->epoch,
                     group0_topology(apps[second].group0)->epoch);
    heal_all();
    expect_well();
    story_ends();
}

/* ---- what there was no memory for ---- */

#define NEW_ENTRIES 1000u

/* What somebody who has been elected without the hearer says to it first. Its commands are of no
 * state that there ever was: whoever applies them changes nothing. */
static struct {
    u32 to; /* member */
    u64 term, index, log_term;
} new_leader;

static void
new_leader_speaks(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct app *app = &apps[node->index];
    struct group0 *group0 = app->group0;
    struct buf data, bytes;
    buf_init(&data, &app->budget);
    buf_init(&bytes, &app->budget);
    struct topology_command command = {
        .kind = TOPOLOGY_FENCE, .state_before = 0xdead, .state_after = 0xdeae};
    CHECK(topology_command_encode(&command, &data));
    static struct raft_entry entries[NEW_ENTRIES];
    for (u32 i = 0; i < NEW_ENTRIES; i++)
        entries[i] = (struct raft_entry){.index = new_leader.index + 1 + i,
                                         .term = new_leader.term,
                                         .kind = RAFT_ENTRY_DATA,
                                         .data = buf_bytes(&data)};
    struct raft_message message = {.type = RAFT_APPEND,
                                   .from = group0_member(group0),
                                   .to = new_leader.to,
                                   .term = new_leader.term,
                                   .index = new_leader.index,
                                   .log_term = new_leader.log_term,
                                   .entries = entries,
                                   .entry_count = NEW_ENTRIES};
    CHECK(raft_message_encode(&message, &bytes));
    u8 envelope[GROUP0_ENVELOPE_BYTES_MAX];
    u32 size = group0_envelope_encode(&(struct peer_address){.port = 0}, envelope);
    struct bytes parts[] = {BYTES(envelope, size), buf_bytes(&bytes)};
    struct native_header header = {.opcode = PEER_RAFT};
    peer_post(peer_rig_peers(node), new_leader.to, 0, &header, parts, ARRAY_COUNT(parts));
    buf_deinit(&bytes);
    buf_deinit(&data);
}

/* The first that it hears of a term are entries that it has no room for. The term is as true as if
 * it had, and lies in the store before the entries do that are sent again. */
static void
a_term_is_kept_though_its_entries_found_no_memory(void **state)
{
    story_begins(3);
    all_start();
    u32 leader = leader_index(), hearer = (leader + 1) % 3, speaker = (leader + 2) % 3;
    struct raft *raft = &apps[hearer].group0->raft;
    new_leader.to = group0_member(apps[hearer].group0);
    new_leader.term = 1; /* long over: two who follow have no connection yet */
    assert_true(peer_rig_do(&rig, speaker, 0, new_leader_speaks, NULL));
    cut_set(leader, hearer, true);
    peer_rig_run(&rig, MS(200)); /* what was on its way is there */
    u64 last = raft->last_index;
    new_leader.term = raft->term + 1;
    new_leader.index = last;
    new_leader.log_term = raft->last_term;
    u64 limit = apps[hearer].budget.limit_bytes;
    apps[hearer].budget.limit_bytes = apps[hearer].budget.used_bytes + KIB(16);
    assert_true(peer_rig_do(&rig, speaker, 0, new_leader_speaks, NULL));
    peer_rig_run(&rig, MS(100));
    assert_int_equal(raft->term, new_leader.term);
    assert_int_equal(raft->last_index, last);
    apps[hearer].budget.limit_bytes = limit;
    assert_true(peer_rig_do(&rig, speaker, 0, new_leader_speaks, NULL));
    peer_rig_run(&rig, MS(200));
    assert_int_equal(raft->last_term, new_leader.term);
    assert_int_equal(raft->persisted, raft->last_index);
    crash(hearer, false);
    start(hearer);
    if (violation[0] != 0) fail_msg("%s", violation);
    assert_true(apps[hearer].group0->raft.term >= new_leader.term);
    heal_all();
    expect_well();
    story_ends();
}

/* ---- what a later version may decide ---- */

static void
newer_done(struct group0 *group0, struct group0_proposal *proposal,
           const struct group0_outcome *outcome)
{
    (void)group0;
    (void)proposal;
    (void)outcome;
}

static void
newer_run(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    static struct group0_proposal proposal;
    proposal = (struct group0_proposal){.done = newer_done};
    struct group0 *group0 = apps[node->index].group0;
    struct topology_command command = {.kind = TOPOLOGY_FENCE,
                                       .state_before = group0_topology(group0)->state_id,
                                       .state_after = io_random()};
    struct buf bytes;
    buf_init(&bytes, &apps[node->index].budget);
    CHECK(topology_command_encode(&command, &bytes));
    bytes.data[1] = 200; /* a kind that there is not yet */
    struct group0_outcome outcome;
    CHECK(group0_propose(group0, &command, buf_bytes(&bytes), &proposal, &outcome));
    buf_deinit(&bytes);
}

static bool
nobody_takes_part(void *arg)
{
    (void)arg;
    for (u32 i = 0; i < rig.node_count; i++)
        if (!group0_is_outdated(apps[i].group0)) return false;
    return true;
}

/* To pass it over would be another topology than theirs who know it. */
static void
whoever_does_not_know_a_command_takes_no_part(void **state)
{
    (void)state;
    story_begins(3);
    all_start();
    u64 epochs[3], applied[3];
    struct group0_stats stats;
    for (u32 i = 0; i < 3; i++) {
        group0_stats_get(apps[i].group0, &stats);
        epochs[i] = group0_topology(apps[i].group0)->epoch;
        applied[i] = stats.applied;
        assert_false(group0_is_outdated(apps[i].group0));
    }
    assert_true(peer_rig_do(&rig, leader_index(), 0, newer_run, NULL));
    assert_true(peer_rig_run_until(&rig, nobody_takes_part, NULL, SECONDS(5)));
    peer_rig_run(&rig, SECONDS(10));
    for (u32 i = 0; i < 3; i++) {
        group0_stats_get(apps[i].group0, &stats);
        assert_true(stats.failed);
        assert_int_equal(stats.applied, applied[i]);
        assert_int_equal(group0_topology(apps[i].group0)->epoch, epochs[i]);
    }
    story_ends();
}

static bool
takes_no_part(void *arg)
{
    const struct app *app = arg;
    return app->group0 != NULL && group0_is_outdated(app->group0);
}

/* It joins one that votes, whose log begins behind a snapshot of a format that there is not yet:
 * the others have been upgraded, and it was not. */
static void
whoever_gets_a_snapshot_of_a_later_format_takes_no_part(void **state)
{
    (void)state;
    story_begins(2);
    snapshot_entries = 2;
    start(0);
    peer_rig_run(&rig, SECONDS(2));
    for (u32 i = 0; i < 4; i++)
        change_on(0);
    struct group0 *first = apps[0].group0;
    assert_non_null(first->base_blob);
    assert_int_equal(first->base_blob->data[0], 1);
    first->base_blob->data[0] = 4;
    first->options.snapshot_entries = UINT32_MAX; /* no newer one, of our format */
    start(1);
    assert_true(peer_rig_run_until(&rig, takes_no_part, &apps[1], SECONDS(20)));
    peer_rig_run(&rig, SECONDS(10));
    struct group0_stats stats;
    group0_stats_get(apps[1].group0, &stats);
    assert_true(stats.failed);
    assert_int_equal(stats.applied, 0);
    assert_null(group0_topology(apps[1].group0));
    assert_int_equal(apps[1].shown, 0);
    assert_false(group0_is_outdated(first));
    story_ends();
}

static bool
is_planned(void *arg)
{
    struct group0 *group0 = apps[leader_index()].group0;
    return group0_topology(group0)->stage == *(const u8 *)arg;
}

/* Who joins and dies: writes go to its places as well until the plan is given up, 5 s later. There
 * is no other plan before it is back, and that one does not wait for anything else. */
static void
what_a_dead_joiner_was_to_get_is_given_up(void **state)
{
    u8 both = STAGE_WRITE_BOTH, none = STAGE_NONE;
    story_begins(4);
    for (u32 i = 0; i < 3; i++)
        start(i);
    peer_rig_run(&rig, SECONDS(10));
    apps[3].fetches_nothing = true;
    start(3);
    assert_true(peer_rig_run_until(&rig, is_planned, &both, SECONDS(20)));
    peer_rig_run(&rig, SECONDS(1));
    u32 number = group0_member(apps[3].group0);
    crash(3, false);
    peer_rig_run(&rig, MS(4500));
    assert_true(is_planned(&both));
    assert_true(peer_rig_run_until(&rig, is_planned, &none, SECONDS(3)));
    for (u32 i = 0; i < 100; i++) {
        peer_rig_run(&rig, MS(100));
        assert_true(is_planned(&none));
    }
    struct group0_stats stats;
    group0_stats_get(apps[leader_index()].group0, &stats);
    assert_int_equal(stats.plan_waits_for, number);
    assert_int_equal(topology_member(group0_topology(apps[leader_index()].group0), number)->state,
                     PLACEMENT_JOINING);
    apps[3].fetches_nothing = false;
    start(3);
    expect_well();
    group0_stats_get(apps[leader_index()].group0, &stats);
    assert_int_equal(stats.plan_waits_for, 0);
    change_on(3);
    story_ends();
}

/* A member that does not answer for some seconds is waited for: it does not come back to a cluster
 * that refuses it. After 6 s the others go on. */
static void
who_is_silent_for_a_moment_is_waited_for(void **state)
{
    u8 none = STAGE_NONE;
    story_begins(5);
    for (u32 i = 0; i < 4; i++)
        start(i);
    peer_rig_run(&rig, SECONDS(10));
    u32 silent = leader_index() == 3 ? 2 : 3;
    apps[4].fetches_nothing = true;
    start(4);
    u8 both = STAGE_WRITE_BOTH;
    assert_true(peer_rig_run_until(&rig, is_planned, &both, SECONDS(20)));
    peer_rig_run(&rig, SECONDS(1)); /* fenced */
    crash(silent, false);
    apps[4].fetches_nothing = false;
    u64 began = sim_now_ns(rig.sim);
    peer_rig_run(&rig, SECONDS(4));
    assert_true(is_planned(&both));
    assert_true(peer_rig_run_until(&rig, is_planned, &none, SECONDS(6)));
    assert_true(sim_now_ns(rig.sim) - began >= SECONDS(5));
    start(silent);
    expect_well();
    story_ends();
}

static void
raft_ignored(void *arg, struct peer_request *request, const struct peer_identity *from,
             const struct native_header *header, struct bytes body)
{
    if (request != NULL) peer_reply(request, NATIVE_ST_UNAVAILABLE, 0, NULL, 0);
}

static void
goes_deaf(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct peers *peers = node->shards[0].peers;
    deaf = group0_member(apps[node->index].group0);
    peers_handler_set(peers, PEER_RAFT, raft_ignored, NULL);
    peers_handler_set(peers, PEER_RAFT_SNAPSHOT, raft_ignored, NULL);
}

static bool
votes(u32 number)
{
    const struct raft_peer *peer = raft_peer_find(&apps[leader_index()].group0->raft, number);
    return peer != NULL && (peer->roles & RAFT_VOTER) != 0;
}

/* Its ports are blocked, say, and it calls others as before: so it asks for votes all the time. It
 * is waited for no longer than who is silent. */
static void
who_speaks_and_is_not_reached_is_not_waited_for(void **state)
{
    u8 both = STAGE_WRITE_BOTH, none = STAGE_NONE;
    story_begins(5);
    for (u32 i = 0; i < 4; i++)
        start(i);
    peer_rig_run(&rig, SECONDS(10));
    u32 first = leader_index(), one = first;
    do /* of those who vote */
        one = (one + 1) % 4;
    while (!votes(group0_member(apps[one].group0)));
    apps[4].fetches_nothing = true;
    start(4);
    assert_true(peer_rig_run_until(&rig, is_planned, &both, SECONDS(20)));
    peer_rig_run(&rig, SECONDS(1)); /* fenced */
    assert_true(peer_rig_do(&rig, one, 0, goes_deaf, NULL));
    apps[4].fetches_nothing = false;
    peer_rig_run(&rig, SECONDS(4));
    assert_true(is_planned(&both));
    assert_true(peer_rig_run_until(&rig, is_planned, &none, SECONDS(6)));
    assert_int_equal(leader_index(), first);
    assert_int_equal(apps[one].group0->raft.leader, 0); /* it looks for one */
    peer_rig_stop(&rig, one);
    deaf = 0;
    start(one);
    expect_well();
    story_ends();
}

static void
who_speaks_and_is_not_reached_loses_its_vote(void **state)
{
    story_begins(4);
    for (u32 i = 0; i < 4; i++)
        start(i);
    peer_rig_run(&rig, SECONDS(10));
    u32 one = leader_index(), spare = 0;
    do
        one = (one + 1) % 4;
    while (!votes(group0_member(apps[one].group0)));
    while (votes(group0_member(apps[spare].group0)))
        spare++;
    assert_true(peer_rig_do(&rig, one, 0, goes_deaf, NULL));
    peer_rig_run(&rig, SECONDS(8));
    assert_true(votes(deaf));
    peer_rig_run(&rig, SECONDS(7));
    assert_false(votes(deaf));
    assert_true(votes(group0_member(apps[spare].group0)));
    peer_rig_stop(&rig, one);
    deaf = 0;
    start(one);
    expect_well();
    story_ends();
}

/* How far nodes differ in the first two places of rows. */
static u32
two_places_differ(void)
{
    const struct topology *topology = group0_topology(apps[leader_index()].group0);
    u32 most = 0, least = UINT32_MAX;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 count = 0;
        for (u32 p = 0; p < topology->partition_count; p++)
            for (u32 k = 0; k < 2; k++)
                count += placement_row(&topology->current, p)[k] == topology->members[i].number;
        most = MAX(most, count);
        least = MIN(least, count);
    }
    return most - least;
}

/* Who does not know the present kind of plan would stop at it. */
static void
plans_are_of_a_kind_that_all_members_know(void **state)
{
    u8 none = STAGE_NONE;
    story_begins(3);
    unaware = 2;
    for (u32 i = 0; i < 3; i++)
        start(i);
    peer_rig_run(&rig, SECONDS(10));
    assert_true(is_planned(&none));
    assert_true(two_places_differ() > 1);
    unaware = 0; /* it is upgraded; then something changes */
    change_on(0);
    peer_rig_run(&rig, SECONDS(10));
    assert_true(is_planned(&none));
    assert_true(two_places_differ() <= 1);
    expect_well();
    story_ends();
}

static u32 unwanted;

static status
unwanted_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    if (topology_member(present, unwanted) == NULL) return ST_EXISTS;
    command->kind = *(const u8 *)arg;
    command->member.number = unwanted;
    return ST_OK;
}

static MAY_YIELD void
unwanted_main(struct peer_rig_node *node, void *arg)
{
    char reason[TOPOLOGY_REASON_BYTES];
    status st = group0_change(apps[node->index].group0, unwanted_fill, arg,
                              io_now_ns() + SECONDS(20), reason);
    if (!ok(st)) violated("%s: %s", status_text(st), reason);
}

static bool
unwanted_is_out(void *arg)
{
    struct group0 *group0 = apps[leader_index()].group0;
    if (topology_member(group0_topology(group0), unwanted) != NULL) return false;
    for (u32 i = 0; i < group0->raft.peer_count; i++)
        if (group0->raft.peers[i].id == unwanted) return false;
    return !raft_config_is_joint(&group0->raft);
}

/* One of three dies for good. The two that are left decide without it, and can lose nobody more. */
static void
a_forgotten_voter_leaves_the_group(void **state)
{
    u8 kind = TOPOLOGY_MEMBER_FORGET;
    story_begins(4);
    all_start();
    u32 leader = leader_index(), dead = leader == 3 ? 2 : 3;
    for (u32 i = 0; i < 4; i++) /* a voter */
        if (i != leader && raft_is_voter(&apps[i].group0->raft)) dead = i;
    unwanted = group0_member(apps[dead].group0);
    crash(dead, false);
    assert_true(peer_rig_do(&rig, leader, 0, unwanted_main, &kind));
    assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(30)));
    peer_rig_run(&rig, SECONDS(5));
    struct raft *raft = &apps[leader_index()].group0->raft;
    u32 voters = 0;
    for (u32 i = 0; i < raft->peer_count; i++)
        voters += raft->peers[i].roles == RAFT_VOTER;
    assert_int_equal(voters, 3); /* the one who learned has its place */
    change_on(leader_index());
    story_ends();
}

static void
who_leaves_is_taken_out_and_hears_of_it(void **state)
{
    u8 kind = TOPOLOGY_MEMBER_LEAVE;
    story_begins(4);
    all_start();
    u32 leader = leader_index(), leaving = (leader + 1) % 4;
    unwanted = group0_member(apps[leaving].group0);
    peer_rig_give(&rig, leaving, 0, &apps[leaving].change_job, unwanted_main, &kind);
    assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(60)));
    peer_rig_run(&rig, SECONDS(1));
    assert_int_equal(group0_member(apps[leaving].group0), 0);
    assert_null(topology_member(group0_topology(apps[leaving].group0), unwanted));
    change_on(leader_index());
    story_ends();
}

static u32
voters_of(u32 i)
{
    const struct raft *raft = &apps[i].group0->raft;
    u32 voters = 0;
    for (u32 k = 0; k < raft->peer_count; k++)
        voters += raft->peers[k].roles == RAFT_VOTER;
    return voters;
}

static bool
all_show_stage(void *arg)
{
    for (u32 i = 0; i < rig.node_count; i++) {
        const struct topology *topology = group0_topology(apps[i].group0);
        if (topology == NULL || topology->stage != *(const u8 *)arg) return false;
    }
    return true;
}

static MAY_YIELD void
forget_main(struct peer_rig_node *node, void *arg)
{
    u8 kind = TOPOLOGY_MEMBER_FORGET;
    char reason[TOPOLOGY_REASON_BYTES];
    *(status *)arg = group0_change(apps[node->index].group0, unwanted_fill, &kind,
                                   io_now_ns() + SECONDS(20), reason);
}

static MAY_YIELD void
lead_main(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    if (!group0_give_lead(apps[node->index].group0)) violated("nobody to lead");
}

/* A founder whom two have joined, just as reads have come to use what these have fetched: alone it
 * is a read quorum of the places before. Its disk is lost. The plan does not end without it by
 * itself, for it may only be cut off, but once it is given up, as is done with any that is lost. */
static void
a_founder_that_is_lost_as_reads_move_on_is_given_up(void **state)
{
    (void)state;
    u8 both = STAGE_WRITE_BOTH, next = STAGE_READ_NEXT;
    for (u32 wiped = 0; wiped < 2; wiped++) {
        story_begins(3);
        apps[1].fetches_nothing = apps[2].fetches_nothing = true;
        for (u32 i = 0; i < 3; i++)
            start(i);
        assert_true(peer_rig_run_until(&rig, all_show_stage, &both, SECONDS(10)));
        peer_rig_run(&rig, SECONDS(3));
        assert_int_equal(voters_of(0), 3);
        if (wiped) { /* whoever leads is asked about another one then */
            assert_true(peer_rig_do(&rig, 0, 0, lead_main, NULL));
            peer_rig_run(&rig, SECONDS(1));
            assert_int_not_equal(leader_index(), 0);
        }
        apps[1].fetches_nothing = apps[2].fetches_nothing = false;
        assert_true(peer_rig_run_until(&rig, all_show_stage, &next, SECONDS(5)));
        unwanted = group0_member(apps[0].group0);
        status st = ST_OK;
        assert_true(peer_rig_do(&rig, 1, 0, forget_main, &st));
        assert_true(status_is(st, ST_INVALID)); /* it lives */
        assert_true(all_show_stage(&next));
        wipe(0);
        assert_false(serves(0));
        peer_rig_run(&rig, SECONDS(20));
        assert_true(is_planned(&next));
        struct group0_stats stats;
        group0_stats_get(apps[leader_index()].group0, &stats);
        assert_int_equal(stats.plan_waits_for, unwanted);
        if (wiped)
            start(0);
        else
            assert_true(peer_rig_do(&rig, 1, 0, forget_main, &st) && ok(st));
        assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(30)));
        if (!wiped) start(0);
        expect_well();
        assert_true(group0_member(apps[0].group0) > unwanted);
        change_on(0);
        story_ends();
    }
}

/* It hands on nothing: it is waited for, and named, but not for ever, and not once it is dead. Who
 * only stays keeps what it likes. */
static void
who_leaves_and_keeps_something_is_waited_for(void **state)
{
    u8 kind = TOPOLOGY_MEMBER_LEAVE;
    for (u32 i = 0; i < 3; i++) {
        bool dies = i == 1, stays = i == 2;
        story_begins(5);
        all_start();
        u32 leader = leader_index(), leaving = (leader + 1) % 5;
        unwanted = group0_member(apps[leaving].group0);
        keeper = stays ? group0_member(apps[(leader + 2) % 5].group0) : unwanted;
        peer_rig_give(&rig, leaving, 0, &apps[leaving].change_job, unwanted_main, &kind);
        if (!stays) {
            peer_rig_run(&rig, KEEPS_NS - SECONDS(5));
            assert_false(unwanted_is_out(NULL));
            struct group0_stats stats;
            group0_stats_get(apps[leader_index()].group0, &stats);
            assert_int_equal(stats.plan_waits_for, unwanted);
        }
        if (dies) crash(leaving, false);
        assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(25)));
        change_on(leader_index());
        story_ends();
    }
}

/* ---- fewer than three stay ---- */

static bool
somebody_leads(void *arg)
{
    for (u32 i = 0; i < rig.node_count; i++)
        if (serves(i) && apps[i].group0->raft.role == RAFT_LEADER) return true;
    return false;
}

static bool
voters_are(void *arg)
{
    return voters_of(leader_index()) == *(const u32 *)arg;
}

static MAY_YIELD void
leave_main(struct peer_rig_node *node, void *arg)
{
    u8 kind = TOPOLOGY_MEMBER_LEAVE;
    char reason[TOPOLOGY_REASON_BYTES];
    *(status *)arg = group0_change(apps[node->index].group0, unwanted_fill, &kind,
                                   io_now_ns() + SECONDS(20), reason);
}

static void
told_to_leave(u32 i)
{
    status st;
    unwanted = group0_member(apps[i].group0);
    assert_true(peer_rig_do(&rig, leader_index(), 0, leave_main, &st) && ok(st));
}

/* Three, of which one or two leave, and what they give away takes its time. Whichever is lost
 * meanwhile: the others decide, and can take it out. */
static void
who_is_lost_while_fewer_than_three_stay_is_taken_out(void **state)
{
    (void)state;
    u8 both = STAGE_WRITE_BOTH;
    for (u32 round = 0; round < 6; round++) {
        u32 leaving = 1 + round % 2, three = 3;
        story_begins(3);
        all_start();
        for (u32 i = 0; i < 3; i++)
            apps[i].fetches_nothing = true;
        u32 leader = leader_index(), lost = round / 2, other = (lost + 1) % 3;
        for (u32 k = 1; k <= leaving; k++) /* the last: the leader, where two do */
            told_to_leave((leader + k + (leaving == 2)) % 3);
        assert_true(peer_rig_run_until(&rig, is_planned, &both, SECONDS(10)));
        peer_rig_run(&rig, SECONDS(5));
        assert_true(voters_are(&three));
        unwanted = group0_member(apps[lost].group0);
        const struct topology *topology = group0_topology(apps[lost].group0);
        bool last = topology_last_normal(topology, unwanted);
        crash(lost, false);
        peer_rig_run(&rig, SECONDS(8));
        assert_true(somebody_leads(NULL));
        if (!last) { /* that one may not be called dead */
            status st = ST_OK;
            assert_true(peer_rig_do(&rig, other, 0, forget_main, &st) && ok(st));
            assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(30)));
            change_on(leader_index());
        }
        story_ends();
    }
}

static MAY_YIELD void
stay_main(struct peer_rig_node *node, void *arg)
{
    u8 kind = TOPOLOGY_MEMBER_STAY;
    char reason[TOPOLOGY_REASON_BYTES];
    *(status *)arg = group0_change(apps[node->index].group0, unwanted_fill, &kind,
                                   io_now_ns() + SECONDS(20), reason);
}

/* Of three two leave, and the third is lost: whatever it was to take over it never says that it has,
 * and as the last one that stays it cannot be called dead. One of the others stays, and it can. */
static void
the_only_one_that_stays_is_lost_and_another_one_stays_instead(void **state)
{
    (void)state;
    u8 both = STAGE_WRITE_BOTH, none = STAGE_NONE;
    for (u32 round = 0; round < 4; round++) {
        bool begun = round % 2 == 1, leads = round < 2;
        story_begins(3);
        all_start();
        for (u32 i = 0; i < 3; i++)
            apps[i].fetches_nothing = true;
        u32 leader = leader_index(), lost = leads ? leader : (leader + 1) % 3;
        u32 stays = (lost + 1) % 3, leaves = (lost + 2) % 3;
        told_to_leave(stays);
        told_to_leave(leaves);
        if (begun) assert_true(peer_rig_run_until(&rig, is_planned, &both, SECONDS(10)));
        u32 dead = group0_member(apps[lost].group0), kept = group0_member(apps[stays].group0);
        crash(lost, false);
        assert_true(peer_rig_run_until(&rig, somebody_leads, NULL, SECONDS(20)));
        for (u32 i = 0; i < 3; i++)
            apps[i].fetches_nothing = false;
        peer_rig_run(&rig, SECONDS(20));
        assert_true(is_planned(&none)); /* given up, and none is begun */
        status st = ST_OK;
        unwanted = dead;
        assert_true(peer_rig_do(&rig, leaves, 0, forget_main, &st));
        assert_true(status_is(st, ST_INVALID));
        unwanted = kept;
        assert_true(peer_rig_do(&rig, leaves, 0, stay_main, &st) && ok(st));
        unwanted = dead;
        assert_true(peer_rig_do(&rig, leaves, 0, forget_main, &st) && ok(st));
        assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(30)));
        peer_rig_run(&rig, SECONDS(30));
        const struct topology *topology = group0_topology(apps[stays].group0);
        assert_int_equal(topology->member_count, 1);
        assert_int_equal(topology->members[0].number, kept);
        assert_int_equal(topology->members[0].state, PLACEMENT_NORMAL);
        change_on(stays);
        story_ends();
    }
}

/* They are stopped in the moment in which they are out, as whoever asked for it may do. */
static void
those_who_stay_decide_without_those_who_have_left(void **state)
{
    (void)state;
    for (u32 round = 0; round < 4; round++) {
        u32 count = 1 + round % 2, one = 1, two = 2;
        story_begins(3);
        all_start();
        u32 leader = leader_index(), leaving[2], stays = round < 2 ? leader : (leader + 2) % 3;
        for (u32 k = 0; k < count; k++) { /* with who leads, or without */
            leaving[k] = (leader + k + (round < 2)) % 3;
            told_to_leave(leaving[k]);
        }
        for (u32 k = 0; k < count; k++) {
            u64 end = sim_now_ns(rig.sim) + SECONDS(60);
            while (topology_member(group0_topology(apps[stays].group0), unwanted) != NULL) {
                assert_true(sim_now_ns(rig.sim) < end);
                peer_rig_run(&rig, MS(1));
            }
            /* The lead was handed on: nobody waits for an election. */
            assert_int_not_equal(apps[leaving[k]].group0->raft.role, RAFT_LEADER);
            crash(leaving[k], true);
        }
        assert_true(peer_rig_run_until(&rig, somebody_leads, NULL, SECONDS(10)));
        assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(10)));
        assert_true(peer_rig_run_until(&rig, voters_are, count == 1 ? &two : &one, SECONDS(10)));
        change_on(leader_index());
        story_ends();
    }
}

static status
abandon_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    (void)arg;
    if (present->stage == STAGE_NONE) return ST_EXISTS;
    command->kind = TOPOLOGY_ABANDON;
    command->session = present->session;
    return ST_OK;
}

static MAY_YIELD void
abandon_main(struct peer_rig_node *node, void *arg)
{
    char reason[TOPOLOGY_REASON_BYTES];
    *(status *)arg = group0_change(apps[node->index].group0, abandon_fill, NULL,
                                   io_now_ns() + SECONDS(5), reason);
}

/* They vote, were told to leave as they joined, and have nothing: nothing is to move, and the plan
 * that lets them go ends as it begins. */
static void
those_who_stay_decide_without_those_who_leave_with_nothing(void **state)
{
    (void)state;
    u8 both = STAGE_WRITE_BOTH;
    for (u32 led = 0; led < 2; led++) {
        u32 one = 1, three = 3;
        story_begins(3);
        for (u32 i = 0; i < 3; i++)
            apps[i].fetches_nothing = true;
        for (u32 i = 0; i < 3; i++)
            start(i);
        assert_true(peer_rig_run_until(&rig, all_show_stage, &both, SECONDS(10)));
        assert_true(peer_rig_run_until(&rig, voters_are, &three, SECONDS(10)));
        if (led) { /* by one of them */
            assert_true(peer_rig_do(&rig, leader_index(), 0, lead_main, NULL));
            peer_rig_run(&rig, SECONDS(1));
            assert_int_not_equal(leader_index(), 0);
        }
        told_to_leave(1);
        told_to_leave(2);
        status st = ST_OK;
        assert_true(peer_rig_do(&rig, 0, 0, abandon_main, &st) && ok(st));
        u64 end = sim_now_ns(rig.sim) + SECONDS(60);
        for (u32 i = 1; i < 3; i++) {
            while (group0_topology(apps[0].group0)->member_count > 1) {
                assert_true(sim_now_ns(rig.sim) < end);
                peer_rig_run(&rig, MS(1));
            }
            assert_int_not_equal(apps[i].group0->raft.role, RAFT_LEADER);
            crash(i, true);
        }
        assert_true(peer_rig_run_until(&rig, somebody_leads, NULL, SECONDS(10)));
        assert_true(peer_rig_run_until(&rig, voters_are, &one, SECONDS(10)));
        change_on(0);
        story_ends();
    }
}

/* Reads use the new places already, and one of the two that stay dies. Whoever leaves is not let
 * go: the other one could not even be told that this one is lost. */
static void
who_leaves_is_not_let_go_while_those_who_stay_are_no_majority(void **state)
{
    (void)state;
    u8 next = STAGE_READ_NEXT, none = STAGE_NONE;
    for (u32 lost = 0; lost < 2; lost++) {
        story_begins(3);
        all_start();
        u32 leader = leader_index(), leaving = (leader + 1) % 3, dies = (leader + 2) % 3;
        keeper = group0_member(apps[leaving].group0);
        told_to_leave(leaving);
        assert_true(peer_rig_run_until(&rig, is_planned, &next, SECONDS(20)));
        peer_rig_run(&rig, SECONDS(3));
        u32 dead = group0_member(apps[dies].group0);
        crash(dies, false);
        keeper = 0;
        peer_rig_run(&rig, SECONDS(20));
        assert_true(is_planned(&next));
        struct group0_stats stats;
        group0_stats_get(apps[leader_index()].group0, &stats);
        assert_int_equal(stats.plan_waits_for, dead);
        if (lost) {
            unwanted = dead;
            status st = ST_OK;
            assert_true(peer_rig_do(&rig, leaving, 0, forget_main, &st) && ok(st));
        } else {
            start(dies);
        }
        assert_true(peer_rig_run_until(&rig, is_planned, &none, SECONDS(30)));
        assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(30)));
        peer_rig_run(&rig, SECONDS(1));
        assert_int_equal(group0_member(apps[leaving].group0), 0);
        change_on(leader_index());
        story_ends();
    }
}

static status
nothing_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    return ST_EXISTS; /* as far as it can see */
}

/* W and R of the first keyspace. */
struct quorums_asked {
    u8 write, read;
    status st;
    char reason[TOPOLOGY_REASON_BYTES];
};

static status
quorums_fill(void *arg, const struct topology *present, struct topology_command *command)
{
    const struct quorums_asked *asked = arg;
    command->kind = TOPOLOGY_KEYSPACE_SET;
    command->options = present->keyspaces[0];
    if (command->options.write_quorum == asked->write &&
        command->options.read_quorum == asked->read)
        return ST_EXISTS;
    command->options.write_quorum = asked->write;
    command->options.read_quorum = asked->read;
    return ST_OK;
}

static MAY_YIELD void
quorums_main(struct peer_rig_node *node, void *arg)
{
    struct quorums_asked *asked = arg;
    asked->st = group0_change(apps[node->index].group0, quorums_fill, asked,
                              io_now_ns() + SECONDS(5), asked->reason);
}

/* Who was cut off before the first change would write to two replicas, and who has seen the second
 * one read from the third. */
static void
quorums_change_again_only_when_all_know_the_last_change(void **state)
{
    (void)state;
    struct quorums_asked first = {.write = 3, .read = 2}, second = {.write = 3, .read = 1};
    story_begins(3);
    all_start();
    u32 lonely = (leader_index() + 1) % 3, asked = (leader_index() + 2) % 3;
    for (u32 i = 0; i < 3; i++)
        cut_set(lonely, i, true);
    assert_true(peer_rig_do(&rig, asked, 0, quorums_main, &first));
    assert_true(ok(first.st)); /* it knows those before */
    assert_true(peer_rig_do(&rig, asked, 0, quorums_main, &second));
    assert_true(status_is(second.st, ST_TIMED_OUT)); /* it lives, and is waited for */
    u32 number = group0_member(apps[lonely].group0);
    peer_rig_stop(&rig, lonely);
    assert_true(peer_rig_do(&rig, asked, 0, quorums_main, &second));
    assert_true(status_is(second.st, ST_INVALID));
    assert_non_null(strstr(second.reason, "does not answer"));
    assert_int_equal(group0_topology(apps[asked].group0)->keyspaces[0].read_quorum, 2);
    assert_non_null(topology_member(group0_topology(apps[asked].group0), number));
    heal_all();
    start(lonely);
    peer_rig_run(&rig, SECONDS(5));
    assert_true(peer_rig_do(&rig, asked, 0, quorums_main, &second));
    assert_true(ok(second.st));
    expect_well();
    story_ends();
}

struct reached {
    u32 node;
    u64 index, epoch;
};

static bool
has_appended(void *arg)
{
    const struct reached *reached = arg;
    return apps[reached->node].group0->raft.last_index > reached->index;
}

static bool
has_shown(void *arg)
{
    const struct reached *reached = arg;
    return group0_topology(apps[reached->node].group0)->epoch > reached->epoch;
}

static void
alone_set(u32 i, bool on)
{
    for (u32 k = 0; k < 3; k++)
        cut_set(i, k, on);
}

/* Nobody tells it what became of its change, and nobody answers whether its topology is the newest;
 * but it was done, as its own topology shows. */
static void
who_sees_its_change_done_does_not_say_that_it_was_not(void **state)
{
    (void)state;
    for (u32 i = 0; i < 12; i++) {
        story_begins(3);
        all_start();
        u32 leader = leader_index(), asks = (leader + 1) % 3;
        struct reached appended = {.node = leader, .index = apps[leader].group0->raft.last_index};
        struct reached shown = {.node = asks, .epoch = group0_topology(apps[asks].group0)->epoch};
        u64 done = changes_done;
        ask(asks, SECONDS(15));
        assert_true(peer_rig_run_until(&rig, has_appended, &appended, SECONDS(2)));
        alone_set(asks, true);
        peer_rig_run(&rig, SECONDS(4) + i * MS(130)); /* the attempt has ended */
        alone_set(asks, false);
        assert_true(peer_rig_run_until(&rig, has_shown, &shown, SECONDS(8)));
        alone_set(asks, true);
        while (!peer_rig_job_over(&apps[asks].change_job))
            peer_rig_run(&rig, MS(10));
        assert_int_equal(changes_done, done + 1);
        heal_all();
        expect_well();
        story_ends();
    }
}

static bool
all_but_one_are_members(void *arg)
{
    const u32 *lost = arg;
    for (u32 i = 0; i < rig.node_count; i++) {
        if (i == *lost) continue;
        if (!serves(i) || !is_proven(&apps[i]) || group0_member(apps[i].group0) == 0) return false;
    }
    return true;
}

/* Who is cut off from those who lead lets it wait for as long as it asks. */
static void
who_joins_asks_all_seeds_whatever_the_first_one_does(void **state)
{
    (void)state;
    story_begins(4);
    for (u32 i = 0; i < 3; i++)
        start(i);
    peer_rig_run(&rig, SECONDS(10));
    cut_set(0, 1, true);
    cut_set(0, 2, true);
    start(3);
    u32 lonely = 0;
    assert_true(peer_rig_run_until(&rig, all_but_one_are_members, &lonely, SECONDS(20)));
    heal_all();
    expect_well();
    story_ends();
}

/* ---- who was taken in and does not know it ---- */

static bool
is_taken_in(void *arg)
{
    const u32 *joining = arg;
    for (u32 i = 0; i < *joining; i++) {
        const struct topology *topology = serves(i) ? group0_topology(apps[i].group0) : NULL;
        if (topology != NULL && topology->member_count == *joining + 1) return true;
    }
    return false;
}

/* The last one of the rig loses its power as the first of the others shows it as a member. */
static void
loses_its_power_as_it_is_taken_in(void)
{
    u32 joining = rig.node_count - 1;
    for (u32 i = 0; i < joining; i++)
        start(i);
    peer_rig_run(&rig, SECONDS(10));
    start(joining);
    assert_true(peer_rig_run_until(&rig, is_taken_in, &joining, SECONDS(5)));
    assert_int_equal(apps[joining].group0->identity.member, 0);
    crash(joining, false);
}

/* One is lost for good, and one or both of the other two start again. Each of these needs half of
 * the three others: so it needs the one that joined, which has to hear that it is a member, though
 * nobody leads who could take it in. */
static void
who_was_taken_in_hears_of_it_though_nobody_leads(void **state)
{
    (void)state;
    for (u32 again = 1; again <= 2; again++) {
        story_begins(4);
        loses_its_power_as_it_is_taken_in();
        peer_rig_run(&rig, SECONDS(1)); /* all three know */
        u64 incarnation = topology_member(group0_topology(apps[0].group0), 4)->incarnation;
        u32 lost = leader_index();
        crash(lost, false);
        for (u32 i = 1; i <= again; i++)
            crash((lost + i) % 3, false);
        for (u32 i = 1; i <= again; i++)
            start((lost + i) % 3);
        assert_false(is_proven(&apps[(lost + 1) % 3]));
        start(3);
        assert_true(peer_rig_run_until(&rig, all_but_one_are_members, &lost, SECONDS(20)));
        assert_int_equal(group0_member(apps[3].group0), 4);
        assert_true(group0_incarnation(apps[3].group0) == incarnation);
        change_on((lost + 1) % 3);
        start(lost);
        expect_well();
        story_ends();
    }
}

/* No machine is lost: the only member has taken in a second one, whom alone it may ask. */
static void
the_second_member_hears_of_it_from_a_first_one_that_waits_for_it(void **state)
{
    (void)state;
    story_begins(2);
    loses_its_power_as_it_is_taken_in();
    crash(0, false);
    start(0);
    assert_false(is_proven(&apps[0]));
    start(1);
    expect_well();
    assert_int_equal(group0_member(apps[1].group0), 2);
    story_ends();
}

/* One that has an empty disk is another one: nobody has taken that in, and it vouches for nobody. */
static void
who_was_taken_in_and_is_wiped_says_nothing_for_those_who_wait(void **state)
{
    (void)state;
    story_begins(4);
    loses_its_power_as_it_is_taken_in();
    peer_rig_run(&rig, SECONDS(1));
    apps[3].wipes++;
    u32 lost = leader_index(), waiting = (lost + 1) % 3;
    crash(lost, false);
    crash(waiting, false);
    start(waiting);
    start(3);
    peer_rig_run(&rig, SECONDS(20));
    assert_false(is_proven(&apps[waiting]));
    assert_int_equal(apps[3].group0->identity.member, 0);
    start(lost);
    expect_well();
    assert_int_equal(group0_member(apps[3].group0), 5);
    story_ends();
}

/* What a member that lags knows is not said before the leader was asked: who was taken out
 * meanwhile is taken in again, as another one. */
static void
who_was_taken_in_hears_what_the_leader_knows(void **state)
{
    (void)state;
    u8 kind = TOPOLOGY_MEMBER_FORGET;
    story_begins(4);
    loses_its_power_as_it_is_taken_in();
    peer_rig_run(&rig, SECONDS(1));
    u32 leader = leader_index(), lagging = (leader + 1) % 3, third = (leader + 2) % 3;
    cut_set(lagging, leader, true);
    cut_set(lagging, third, true);
    unwanted = 4;
    assert_true(peer_rig_do(&rig, leader, 0, unwanted_main, &kind));
    assert_true(peer_rig_run_until(&rig, unwanted_is_out, NULL, SECONDS(30)));
    assert_non_null(topology_member(group0_topology(apps[lagging].group0), 4));
    for (u32 i = 0; i < 3; i++)
        cut_set(3, i, i != lagging);
    start(3);
    peer_rig_run(&rig, MS(600)); /* it has asked */
    cut_set(lagging, leader, false);
    cut_set(lagging, third, false);
    peer_rig_run(&rig, SECONDS(5));
    heal_all();
    expect_well();
    assert_int_equal(group0_member(apps[3].group0), 5);
    story_ends();
}

/* ---- the log in memory and the log on the disk ---- */

static MAY_YIELD void
expect_disk_as_memory(struct app *app)
{
    struct group0 *group0 = app->group0;
    struct lsm_scan *scan;
    u64 token;
    u32 found = 0;
    while (group0->next.count > 0 || group0->written + 1 < group0->next_number)
        fiber_sleep_ns(MS(1));
    status st = lsm_scan_open(app->lsm, NULL, KEYSPACE_SYSTEM, group0->token,
                              BYTES_LITERAL(GROUP0_TAG), group0->token, &scan);
    CHECK(ok(st));
    for (;;) {
        struct bytes key, data;
        struct lsm_value value;
        u64 index, term;
        u32 number;
        u8 kind;
        st = lsm_scan_next(scan, true, &token, &key, &value);
        if (!ok(st)) break;
        if (!group0_key_parse(key, &kind, &index, &number) || kind != GROUP0_KEY_LOG) continue;
        const struct group0_item *item = group0_log_at(group0, index);
        CHECK(item != NULL && ok(group0_log_decode(value.value, &term, &kind, &data)));
        CHECK(term == item->term && kind == item->kind);
        CHECK(bytes_equal(data, BYTES(item->data, item->size)));
        found++;
    }
    CHECK(status_is(st, ST_END));
    lsm_scan_close(scan);
    CHECK(found == group0->item_count);
}

/* Entries behind `index`, as a leader of the term would send them. Commands of no state that there
 * ever was: whoever applies them changes nothing. */
static MAY_YIELD status
take_entries(struct app *app, u64 term, u64 index, u32 count, u64 free_bytes)
{
    struct group0 *group0 = app->group0;
    struct raft_entry entries[8];
    struct buf data[8];
    CHECK(count <= ARRAY_COUNT(entries));
    for (u32 i = 0; i < count; i++) {
        struct topology_command command = {
            .kind = TOPOLOGY_FENCE, .state_before = 0xdead, .state_after = term * 100 + i + 1};
        buf_init(&data[i], io_budget());
        CHECK(topology_command_encode(&command, &data[i]));
        entries[i] = (struct raft_entry){.index = index + 1 + i,
                                         .term = term,
                                         .kind = RAFT_ENTRY_DATA,
                                         .data = buf_bytes(&data[i])};
    }
    u64 log_term;
    CHECK(ok(group0_storage.term(group0, index, &log_term)));
    struct raft_message message = {.type = RAFT_APPEND,
                                   .from = group0_member(apps[leader_index()].group0),
                                   .to = group0_member(group0),
                                   .term = term,
                                   .index = index,
                                   .log_term = log_term,
                                   .entries = entries,
                                   .entry_count = count};
    bool begun = group0_input_begin(group0);
    CHECK(begun);
    u64 limit = app->budget.limit_bytes;
    app->budget.limit_bytes = app->budget.used_bytes + free_bytes;
    status st = raft_step(&group0->raft, &message, io_now_ns(), &group0->ready);
    app->budget.limit_bytes = limit;
    group0_input_end(group0);
    for (u32 i = 0; i < count; i++)
        buf_deinit(&data[i]);
    return st;
}

/* Refused at each allocation that it makes, one after the other, until it is taken. */
static MAY_YIELD void
appends_run_short(struct peer_rig_node *node, void *arg)
{
    struct app *app = &apps[node->index];
    struct group0 *group0 = app->group0;
    u64 index = group0_log_last(group0);
    u32 *refused = arg;
    for (u32 round = 0; round < 2; round++) {
        /* First new ones, then fewer in place of the last ones of these. */
        u64 behind = index + round * 2, term = group0->raft.term + round;
        u32 count = round == 0 ? 5 : 2;
        for (u64 free_bytes = 0;; free_bytes += 8) {
            u64 last = group0_log_last(group0), last_term = group0->raft.last_term;
            status st = take_entries(app, term, behind, count, free_bytes);
            expect_disk_as_memory(app);
            if (ok(st)) break;
            CHECK(status_is(st, ST_NO_MEMORY));
            CHECK(group0_log_last(group0) == last && group0->raft.last_index == last);
            CHECK(group0->raft.last_term == last_term);
            (*refused)++;
        }
        CHECK(group0_log_last(group0) == behind + count && group0->raft.last_term == term);
        CHECK(group0->raft.persisted == behind + count);
    }
}

static void
a_refused_append_leaves_memory_and_disk_equal(void **state)
{
    (void)state;
    u32 refused = 0;
    story_begins(3);
    all_start();
    u32 short_one = (leader_index() + 1) % 3;
    alone_set(short_one, true);
    peer_rig_run(&rig, MS(200)); /* what was on its way is there */
    assert_true(peer_rig_do(&rig, short_one, 0, appends_run_short, &refused));
    assert_true(refused > 20);
    heal_all();
    expect_well();
    story_ends();
}

enum log_damage { LOG_GARBLED, LOG_GAP, LOG_SHORT, LOG_DAMAGE_COUNT };

/* In the store of a member, behind its back. */
static MAY_YIELD void
log_is_damaged(struct peer_rig_node *node, void *arg)
{
    struct app *app = &apps[node->index];
    struct group0 *group0 = app->group0;
    struct lsm_batch batch;
    u64 first = group0->base_index + 1, last = group0->commit_mark, seq;
    CHECK(last > first + 2);
    u8 garbled[GROUP0_LOG_HEADER] = {0xff};
    struct group0_key middle = group0_key(GROUP0_KEY_LOG, (first + last) / 2, 0);
    struct group0_key end = group0_key(GROUP0_KEY_LOG, last, 0);
    struct bytes key = BYTES(middle.bytes, middle.size);
    lsm_batch_init(&batch, io_budget());
    bool fits;
    switch (*(const enum log_damage *)arg) {
    case LOG_GARBLED:
        fits = lsm_batch_put(&batch, KEYSPACE_SYSTEM, group0->token, key,
                             BYTES(garbled, sizeof(garbled)), 0);
        break;
    case LOG_GAP:
        fits = lsm_batch_delete(&batch, KEYSPACE_SYSTEM, group0->token, key);
        break;
    default: /* what was decided is missing at the end */
        CHECK(last == group0_log_last(group0));
        fits = lsm_batch_delete(&batch, KEYSPACE_SYSTEM, group0->token, BYTES(end.bytes, end.size));
        break;
    }
    CHECK(fits);
    status st = lsm_write(app->lsm, &batch, &seq);
    if (ok(st)) st = lsm_wait_durable(app->lsm, seq);
    CHECK(ok(st));
    lsm_batch_deinit(&batch);
}

/* Damage within the log is not cut off with all that comes behind it: the member does not open, now
 * or later, the others go on, and emptied it has all again from them. */
static void
who_has_a_damaged_log_takes_no_part_and_is_rebuilt(void **state)
{
    (void)state;
    for (enum log_damage damage = 0; damage < LOG_DAMAGE_COUNT; damage++) {
        story_begins(3);
        all_start();
        for (u32 i = 0; i < 4; i++)
            change_on(i % 3);
        expect_well();
        u32 ill = (leader_index() + 1) % 3, other = (ill + 1) % 3;
        u32 number = group0_member(apps[ill].group0);
        apps[ill].is_damaged = true;
        assert_true(peer_rig_do(&rig, ill, 0, log_is_damaged, &damage));
        for (u32 i = 0; i < 2; i++) {
            peer_rig_stop(&rig, ill);
            start(ill);
            assert_true(status_is(apps[ill].opened, ST_CORRUPT));
            assert_null(apps[ill].group0);
            change_on(other);
        }
        assert_non_null(topology_member(group0_topology(apps[other].group0), number));
        peer_rig_stop(&rig, ill);
        apps[ill].is_damaged = false;
        apps[ill].wipes++;
        apps[ill].shown = 0; /* another member */
        apps[ill].value = 0;
        start(ill);
        expect_well();
        assert_true(group0_member(apps[ill].group0) > number);
        change_on(ill);
        story_ends();
    }
}

static MAY_YIELD void
writes_stop(struct peer_rig_node *node, void *arg)
{
    lsm_writes_hold(apps[node->index].lsm);
}

static MAY_YIELD void
writes_go_on(struct peer_rig_node *node, void *arg)
{
    lsm_writes_release(apps[node->index].lsm);
}

/* Whose disk stands still does not keep the lead, nor says that anything is done that others may
 * see otherwise; with its disk it is a member like any other. */
static void
a_leader_whose_disk_stands_still_is_followed_by_another(void **state)
{
    (void)state;
    story_begins(3);
    all_start();
    u32 stalled = leader_index(), other = (stalled + 1) % 3;
    u64 done = changes_done;
    assert_true(peer_rig_do(&rig, stalled, 0, writes_stop, NULL));
    ask(stalled, SECONDS(2));
    peer_rig_run(&rig, SECONDS(5));
    assert_true(peer_rig_job_over(&apps[stalled].change_job));
    assert_true(status_is(apps[stalled].result, ST_UNKNOWN_OUTCOME));
    assert_int_equal(changes_done, done);
    assert_int_not_equal(apps[stalled].group0->raft.role, RAFT_LEADER);
    u32 next = leader_index();
    assert_int_not_equal(next, stalled);
    u64 term = apps[next].group0->raft.term, shown = apps[stalled].shown;
    change_on(other);
    change_on(3 - stalled - other);
    peer_rig_run(&rig, SECONDS(5));
    assert_int_equal(apps[next].group0->raft.term, term); /* nobody disturbs */
    assert_int_equal(apps[stalled].shown, shown);         /* nothing that is not durable here */
    assert_true(apps[next].shown > shown);
    assert_true(peer_rig_do(&rig, stalled, 0, writes_go_on, NULL));
    expect_well();
    change_on(stalled);
    story_ends();
}

/* It answers, and does not follow: nothing goes on without it, and it is named, before a plan and
 * during one, as long as that is so. */
static void
who_lives_and_writes_nothing_is_waited_for_and_named(void **state)
{
    (void)state;
    for (u32 during = 0; during < 2; during++) {
        u8 both = STAGE_WRITE_BOTH, none = STAGE_NONE;
        story_begins(4);
        for (u32 i = 0; i < 3; i++)
            start(i);
        peer_rig_run(&rig, SECONDS(10));
        u32 stalled = leader_index() == 2 ? 1 : 2;
        if (!during) assert_true(peer_rig_do(&rig, stalled, 0, writes_stop, NULL));
        apps[3].fetches_nothing = during;
        start(3);
        if (during) {
            assert_true(peer_rig_run_until(&rig, is_planned, &both, SECONDS(20)));
            assert_true(peer_rig_do(&rig, stalled, 0, writes_stop, NULL));
            apps[3].fetches_nothing = false;
        }
        peer_rig_run(&rig, SECONDS(20));
        struct group0_stats stats;
        group0_stats_get(apps[leader_index()].group0, &stats);
        assert_int_equal(stats.plan_waits_for, group0_member(apps[stalled].group0));
        assert_int_equal(is_planned(&none), !during);
        assert_true(peer_rig_do(&rig, stalled, 0, writes_go_on, NULL));
        expect_well();
        group0_stats_get(apps[leader_index()].group0, &stats);
        assert_int_equal(stats.plan_waits_for, 0);
        change_on(stalled);
        story_ends();
    }
}

/* ---- who leads dies ---- */

struct moment {
    u64 epoch;    /* as soon as one shows this epoch; */
    bool earlier; /* or as soon as the entry that makes it is in the leader's log, undecided */
};

static bool
is_at_moment(void *arg)
{
    const struct moment *moment = arg;
    if (!moment->earlier) return chain_last >= moment->epoch;
    if (chain_last + 1 < moment->epoch) return false;
    for (u32 i = 0; i < rig.node_count; i++) {
        if (!serves(i) || !apps[i].group0->running) continue;
        struct raft *raft = &apps[i].group0->raft;
        if (raft->role == RAFT_LEADER && raft->last_index > raft->commit) return true;
    }
    return false;
}

static bool
plan_is_over(void *arg)
{
    for (u32 i = 0; i < rig.node_count; i++) {
        const struct topology *topology = serves(i) ? group0_topology(apps[i].group0) : NULL;
        if (topology == NULL || topology->state_id != chain[chain_last].state_id) continue;
        if (topology->stage != STAGE_NONE || (unwanted != 0 && topology_member(topology, unwanted)))
            return false;
        for (u32 k = 0; k < topology->member_count; k++)
            if (topology->members[k].state != PLACEMENT_NORMAL) return false;
        return true;
    }
    return false;
}

/* The leader dies as its k-th step of a plan is done, or just before that is decided, and comes
 * back at once or when the others have gone on without it. false: there is no such step. */
static bool
leader_dies_in_a_plan(u8 kind, u32 step, bool earlier, bool process_only, u64 away_ns)
{
    struct peer_rig_job job;
    story_begins(4);
    unwanted = 0;
    for (u32 i = 0; i < (kind == TOPOLOGY_MEMBER_LEAVE ? 4u : 3u); i++)
        start(i);
    if (kind == TOPOLOGY_MEMBER_LEAVE)
        expect_well();
    else
        peer_rig_run(&rig, SECONDS(10));
    struct moment moment = {.epoch = chain_last + step, .earlier = earlier};
    u32 leaving = (leader_index() + 1) % 4;
    if (kind == TOPOLOGY_MEMBER_LEAVE) {
        unwanted = group0_member(apps[leaving].group0);
        peer_rig_give(&rig, leaving, 0, &job, unwanted_main, &kind);
    } else {
        start(3);
    }
    bool reached = peer_rig_run_until(&rig, is_at_moment, &moment, SECONDS(20));
    if (reached) {
        u32 leader = leader_index();
        crash(leader, process_only);
        peer_rig_run(&rig, away_ns);
        start(leader);
    }
    if (kind == TOPOLOGY_MEMBER_LEAVE) {
        if (!peer_rig_run_until(&rig, plan_is_over, NULL, SECONDS(120))) violated("not over");
        peer_rig_run(&rig, SECONDS(12));
        if (!unwanted_is_out(NULL)) violated("who leaves is in the group");
    } else if (!peer_rig_run_until(&rig, is_well, NULL, SECONDS(120))) {
        violated("not well");
    }
    if (violation[0] == 0 && kind != TOPOLOGY_MEMBER_LEAVE) judge_chain();
    if (violation[0] != 0) {
        tell_where_all_stand();
        fail_msg("step %u%s: %s", step, earlier ? ", undecided" : "", violation);
    }
    change_on(leader_index());
    story_ends();
    return reached;
}

static void
whoever_leads_may_die_at_each_step_of_a_plan(void **state)
{
    (void)state;
    static const u8 kinds[] = {TOPOLOGY_MEMBER_ADD, TOPOLOGY_MEMBER_LEAVE};
    for (u32 i = 0; i < ARRAY_COUNT(kinds); i++) {
        u32 step = 0, reached = 4;
        while (reached > 0) {
            step++;
            reached = 0;
            for (u32 k = step % EVERY(4); k < 4; k += EVERY(4))
                reached += leader_dies_in_a_plan(kinds[i], step, k & 1, (step + k / 2) % 2,
                                                 k & 2 ? SECONDS(15) : SECONDS(1));
        }
        /* The member is added or told to leave, PLAN, FENCE, FETCHED, ADVANCE, FENCE, ADVANCE. */
        assert_in_range(step, 8, 40);
    }
}

static MAY_YIELD void
nothing_main(struct peer_rig_node *node, void *arg)
{
    char reason[TOPOLOGY_REASON_BYTES];
    *(status *)arg = group0_change(apps[node->index].group0, nothing_fill, NULL,
                                   io_now_ns() + SECONDS(5), reason);
}

/* It may have been undone since. */
static void
who_is_cut_off_does_not_say_that_there_is_nothing_to_do(void **state)
{
    status st = ST_CLOSED;
    story_begins(3);
    all_start();
    u32 lonely = (leader_index() + 1) % 3;
    for (u32 i = 0; i < 3; i++)
        cut_set(lonely, i, true);
    assert_true(peer_rig_do(&rig, lonely, 0, nothing_main, &st));
    assert_true(status_is(st, ST_TIMED_OUT));
    heal_all();
    assert_true(peer_rig_do(&rig, lonely, 0, nothing_main, &st));
    assert_true(ok(st));
    story_ends();
}

static void
a_second_node_of_one_id_is_refused(void **state)
{
    story_begins(3);
    apps[2].twin = true;
    start(0);
    start(1);
    start(2);
    peer_rig_run(&rig, SECONDS(20));
    assert_int_equal(group0_topology(apps[0].group0)->member_count, 2);
    assert_int_equal(group0_member(apps[2].group0), 0);
    assert_non_null(strstr(apps[2].reason, "alive"));
    story_ends();
}

/* Whatever the number of cores: shard 0 owns the first partition, and a slot of 0 lies there. */
static void
all_keys_lie_in_the_first_partition(void **state)
{
    static const u32 partitions[] = {1, 64, PARTITION_COUNT_DEFAULT, SLOT_COUNT};
    static const u8 kinds[] = {GROUP0_KEY_IDENTITY, GROUP0_KEY_HARD, GROUP0_KEY_COMMIT,
                               GROUP0_KEY_BASE,     GROUP0_KEY_LOG,  GROUP0_KEY_CHUNK};
    for (u32 i = 0; i < ARRAY_COUNT(kinds); i++) {
        struct group0_key key = group0_key(kinds[i], 0x0102030405060708u, 9);
        struct bytes bytes = BYTES(key.bytes, key.size);
        u8 kind;
        u64 index;
        u32 number_;
        assert_true(hash_token(bytes) == group0_token());
        assert_int_equal(hash_slot(bytes), 0);
        for (u32 k = 0; k < ARRAY_COUNT(partitions); k++)
            assert_int_equal(token_partition(hash_token(bytes), partitions[k]), 0);
        assert_true(group0_key_parse(bytes, &kind, &index, &number_));
        assert_int_equal(kind, kinds[i]);
        assert_true(index == 0 || index == 0x0102030405060708u);
        assert_true(number_ == 0 || number_ == 9);
    }
    assert_int_equal(partition_shard(0, LIMIT_SHARDS, SLOT_COUNT), 0);
}

static void
whatever_happens_all_agree(void **state)
{
    struct seeds seeds = seeds_chosen(SEEDS_DEFAULT);
    u64 failed = 0, most = seeds_number("SIM_FAILURES", 10);
    for (u64 seed = seeds.first; seed <= seeds.last; seed++) {
        history(seed, seeds_is_one());
        if (violation[0] == 0) continue;
        printf("seed %llu: %s\n    SIM_SEED=%llu build/bin/test_group0\n", (unsigned long long)seed,
               violation, (unsigned long long)seed);
        fflush(stdout);
        if (++failed == most) break;
    }
    printf("changes %llu, of unknown outcome %llu, barriers %llu, joins %llu, snapshots %llu, "
           "failed stores %llu\n",
           (unsigned long long)changes_done, (unsigned long long)changes_unknown,
           (unsigned long long)barriers_done, (unsigned long long)joins_done,
           (unsigned long long)snapshots_seen, (unsigned long long)failures_seen);
    assert_int_equal(failed, 0);
    /* A sweep in which nothing happens proves nothing. */
    u64 count = seeds_count(&seeds);
    if (count > 100)
        assert_true(changes_done > count && barriers_done > count && joins_done > count / 2 &&
                    changes_unknown > count / 10);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_keys_lie_in_the_first_partition),
        cmocka_unit_test(a_wiped_node_comes_back_as_a_new_member),
        cmocka_unit_test(whoever_starts_without_a_synced_log_is_a_new_member),
        cmocka_unit_test(a_node_that_starts_again_begins_with_what_it_showed),
        cmocka_unit_test(a_member_of_an_earlier_version_has_nothing_against_a_start),
        cmocka_unit_test(who_was_away_for_many_starts_learns_of_the_newest),
        cmocka_unit_test(a_refused_append_leaves_memory_and_disk_equal),
        cmocka_unit_test(who_has_a_damaged_log_takes_no_part_and_is_rebuilt),
        cmocka_unit_test(a_leader_whose_disk_stands_still_is_followed_by_another),
        cmocka_unit_test(who_lives_and_writes_nothing_is_waited_for_and_named),
        cmocka_unit_test(whoever_leads_may_die_at_each_step_of_a_plan),
        cmocka_unit_test(who_lags_learns_where_a_new_leader_is),
        cmocka_unit_test(what_a_dead_joiner_was_to_get_is_given_up),
        cmocka_unit_test(plans_are_of_a_kind_that_all_members_know),
        cmocka_unit_test(who_is_silent_for_a_moment_is_waited_for),
        cmocka_unit_test(who_speaks_and_is_not_reached_is_not_waited_for),
        cmocka_unit_test(who_speaks_and_is_not_reached_loses_its_vote),
        cmocka_unit_test(a_forgotten_voter_leaves_the_group),
        cmocka_unit_test(a_founder_that_is_lost_as_reads_move_on_is_given_up),
        cmocka_unit_test(who_leaves_and_keeps_something_is_waited_for),
        cmocka_unit_test(who_leaves_is_taken_out_and_hears_of_it),
        cmocka_unit_test(who_is_lost_while_fewer_than_three_stay_is_taken_out),
        cmocka_unit_test(the_only_one_that_stays_is_lost_and_another_one_stays_instead),
        cmocka_unit_test(those_who_stay_decide_without_those_who_have_left),
        cmocka_unit_test(those_who_stay_decide_without_those_who_leave_with_nothing),
        cmocka_unit_test(who_leaves_is_not_let_go_while_those_who_stay_are_no_majority),
        cmocka_unit_test(who_is_cut_off_does_not_say_that_there_is_nothing_to_do),
        cmocka_unit_test(quorums_change_again_only_when_all_know_the_last_change),
        cmocka_unit_test(who_sees_its_change_done_does_not_say_that_it_was_not),
        cmocka_unit_test(who_joins_asks_all_seeds_whatever_the_first_one_does),
        cmocka_unit_test(who_was_taken_in_hears_of_it_though_nobody_leads),
        cmocka_unit_test(the_second_member_hears_of_it_from_a_first_one_that_waits_for_it),
        cmocka_unit_test(who_was_taken_in_and_is_wiped_says_nothing_for_those_who_wait),
        cmocka_unit_test(who_was_taken_in_hears_what_the_leader_knows),
        cmocka_unit_test(a_second_node_of_one_id_is_refused),
        cmocka_unit_test(a_term_is_kept_though_its_entries_found_no_memory),
        cmocka_unit_test(whatever_happens_all_agree),
        cmocka_unit_test(whoever_does_not_know_a_command_takes_no_part),
        cmocka_unit_test(whoever_gets_a_snapshot_of_a_later_format_takes_no_part),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
