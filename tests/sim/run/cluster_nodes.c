/* SPDX-License-Identifier: MIT
 *
 * cluster_nodes.c -- the machines of a cluster and the processes on them.
 *
 * A machine that has lost its disk is the same machine with another directory. A machine that is
 * lost for good is never started again; what replaces it is another one, with another name.
 */
#include "cluster.h"

#include <stdio.h>
#include <stdlib.h>

#include "cluster/group0_internal.h"
#include "cluster/topology.h"
#include "server/shard.h"

#define SECRET    "the secret of the simulated cluster"
#define SEEDS_MAX 4u

void
cluster_nodes_init(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < CLUSTER_NODES_MAX; i++) {
        struct cluster_node *node = &c->nodes[i];
        node->index = i;
        snprintf(node->host, sizeof(node->host), "10.0.0.%u", i + 1);
        snprintf(node->id, sizeof(node->id), "n%u", i + 1);
    }
}

struct cluster_node *
cluster_node_new(void)
{
    struct cluster_run *c = run->cluster;
    if (c->node_count == CLUSTER_NODES_MAX) return NULL;
    struct cluster_node *node = &c->nodes[c->node_count++];
    node->machine = sim_node_new(run->sim, node->host);
    node->config = calloc(1, sizeof(*node->config));
    CHECK(node->config != NULL);
    node->state = NODE_DOWN;
    return node;
}

/* ---- a process ---- */

static void
seeds_write(const struct cluster_node *node, char *out, size_t size)
{
    const struct cluster_run *c = run->cluster;
    size_t at = 0;
    u32 written = 0;
    out[0] = '\0';
    for (u32 i = 0; i < c->node_count && written < SEEDS_MAX; i++) {
        const struct cluster_node *other = &c->nodes[i];
        bool there = other->state == NODE_RUNS || other->state == NODE_DOWN;
        if (other == node || !there || other->leaving) continue;
        at += (size_t)snprintf(out + at, size - at, "%s%s:%u", at > 0 ? "," : "", other->host,
                               CLUSTER_PORT);
        written++;
    }
}

static void
config_fill(struct cluster_node *node)
{
    const struct cluster_knobs *knobs = &run->cluster->knobs;
    struct server_config *config = node->config;
    char dir[32], error[OPTION_ERROR_BYTES];
    snprintf(dir, sizeof(dir), "/data%u", node->disks);
    u32 shards = (u32)prng_range(&run->prng, 1, knobs->shards_max);
    config_init_for_test(config, dir, shards);
    snprintf(config->address, sizeof(config->address), "%s:%u", node->host, CLUSTER_PORT);
    snprintf(config->node_id, sizeof(config->node_id), "%s", node->id);
    snprintf(config->cluster_secret, sizeof(config->cluster_secret), SECRET);
    if (knobs->racks) snprintf(config->rack, sizeof(config->rack), "r%u", node->index % 3);
    bool founds = node->index == 0 && node->disks == 0 && !run->cluster->founded;
    if (!founds) seeds_write(node, config->seed_nodes, sizeof(config->seed_nodes));
    config->replicas = knobs->replicas;
    config->write_quorum = knobs->write_quorum;
    config->read_quorum = knobs->read_quorum;
    config->cluster_timeout_ms = knobs->timeout_ms;
    config->disk_reserve_bytes = MIB(1);
    status st = config_resolve(config, error, sizeof(error));
    CHECK(ok(st) && config->clustered);
    config->memory_bytes = knobs->memory_per_shard * shards;
}

static MAY_YIELD void
operator_main(void *arg)
{
    struct cluster_node *node = arg;
    struct prng prng;
    prng_init(&prng, run->options->seed * 31 + node->index * 1000 + node->starts);
    while (!io_stopping()) {
        fiber_sleep_ns(prng_range(&prng, 100 * NS_PER_MS, 3 * NS_PER_S));
        if (io_stopping() || !server_ready(node->server) || run->cluster->calm) continue;
        struct server_action_call call = {.server = node->server,
                                          .action = prng_chance(&prng, 1, 3) ? SERVER_ACTION_COMPACT
                                                                             : SERVER_ACTION_FLUSH};
        server_action_call(&call);
        run->stats.flushes += ok(call.result);
    }
}

static MAY_YIELD status
node_main(void *arg)
{
    struct cluster_node *node = arg;
    status st = fiber_spawn(FIBER_BACKGROUND, "inspector", cluster_inspect_main, node);
    CHECK(ok(st));
    if (run->cluster->knobs.operates) {
        st = fiber_spawn(FIBER_BACKGROUND, "operator", operator_main, node);
        CHECK(ok(st));
    }
    return server_shard_main(node->server);
}

void
cluster_node_start(struct cluster_node *node)
{
    CHECK(node->server == NULL);
    config_fill(node);
    node->starts++;
    node->state = NODE_RUNS;
    node->stopping = node->may_fail = false;
    node->topologies_bytes = 0;
    run->stats.starts++;
    node->server = server_new(node->config, (u32)(100 * node->index + node->starts));
    CHECK(node->server != NULL);
    struct io_node_config config = {.shard_count = node->config->core_count,
                                    .memory_bytes = node->config->memory_bytes,
                                    .shard_main = node_main,
                                    .arg = node};
    status st = sim_node_start(node->machine, &config);
    CHECK(ok(st));
}

static void
process_forget(struct cluster_node *node)
{
    if (run->cluster->cut == node->index + 1) cluster_nodes_cut_end();
    memset(node->look_wanted, 0, sizeof(node->look_wanted));
    node->repair_wanted = false;
    node->rot_wanted = 0;
    memset(node->scrub_wanted, 0, sizeof(node->scrub_wanted));
    server_free(node->server);
    node->server = NULL;
    if (node->state == NODE_RUNS) node->state = NODE_DOWN;
}

void
cluster_node_crash(struct cluster_node *node, bool power)
{
    sim_crash_keeps_all_set(run->sim, !power);
    sim_node_crash(node->machine);
    *(power ? &run->stats.power_cuts : &run->stats.kills) += 1;
    process_forget(node);
    if (run->cluster->cut != 0) sim_crash_keeps_all_set(run->sim, !run->cluster->cut_power);
}

/* ---- crashes at an event ---- */

bool
cluster_node_crash_at(struct cluster_node *node, bool power, u64 n, u64 away_ns)
{
    struct cluster_run *c = run->cluster;
    if (c->cut != 0) return false;
    c->cut = node->index + 1;
    c->cut_power = power;
    c->cut_ns = away_ns;
    sim_crash_keeps_all_set(run->sim, !power);
    sim_node_crash_at(node->machine, SIM_POINT_EVENT, n);
    return true;
}

void
cluster_nodes_cut_end(void)
{
    sim_faults_clear(run->sim);
    run->cluster->cut = 0;
}

void
cluster_nodes_cut_look(void)
{
    struct cluster_run *c = run->cluster;
    if (c->cut == 0 || !sim_crashed(run->sim)) return;
    struct cluster_node *node = &c->nodes[c->cut - 1];
    bool recovering = !server_ready(node->server);
    run->stats.crashes_at_events += !recovering;
    run->stats.recoveries_cut += recovering;
    run->stats.recoveries_cut_at_events += recovering;
    run->stats.recoveries_cut_again += recovering && c->cut_last;
    *(c->cut_power ? &run->stats.power_cuts : &run->stats.kills) += 1;
    c->cut_last = recovering;
    node->back_ns = cluster_now_ns() + c->cut_ns;
    process_forget(node);
}

/* A process that begins may be cut while it recovers. */
static void
recovery_cut_maybe(struct cluster_node *node)
{
    const struct cluster_run *c = run->cluster;
    const struct cluster_knobs *knobs = &c->knobs;
    bool powers = knobs->weights[TROUBLE_POWER] > 0, kills = knobs->weights[TROUBLE_KILL] > 0;
    if (!c->troubles || c->cut != 0 || !(powers || kills)) return;
    if (!prng_chance(&run->prng, c->cut_last ? 50 : knobs->recovery_cut_part, 100)) return;
    bool power = powers && (!kills || prng_chance(&run->prng, 1, 2));
    u64 n = prng_below(&run->prng, 1ull << prng_range(&run->prng, 2, 10));
    if (!sim_fault_inject(run->sim, power ? SIM_FAULT_POWER_CUT : SIM_FAULT_KILL)) return;
    (void)cluster_node_crash_at(node, power, n, 10 * NS_PER_MS);
}

void
cluster_node_stop(struct cluster_node *node)
{
    if (run->cluster->cut == node->index + 1) cluster_nodes_cut_end();
    node->stopping = true;
    node->may_fail = run->faulty;
    run->stats.stops++;
    sim_node_stop(node->machine);
}

/* It has ended by itself, or because it was asked to. */
static void
process_ended(struct cluster_node *node)
{
    status st = sim_node_result(node->machine);
    char why[256];
    snprintf(why, sizeof(why), "%s", server_failure(node->server));
    const struct topology *newest = cluster_topology_newest();
    bool out = strstr(why, "taken out") != NULL ||
               (node->leaving && newest != NULL && topology_member_by_id(newest, node->id) == NULL);
    /* Where fibers are refused by chance, a start may be, too. */
    bool short_of = status_is(st, ST_NO_MEMORY) && run->sim_options.buggify;
    if (!ok(st) && !short_of && !out && !run->faulty && !node->may_fail)
        violated("ended", "node %s has ended by itself: %s (%s)", node->id, status_text(st), why);
    process_forget(node);
    if (out) {
        node->state = NODE_GONE;
    } else if (node->back_ns == 0) {
        run->stats.starts_failed += !node->stopping;
        if (!run->stop) node->back_ns = cluster_now_ns() + NS_PER_S;
    }
}

/* A topology counts what it has by itself, since any shard may give it back (topology.h). */
static void
topology_add(void *arg, const void *data, u64 size)
{
    const struct topology *topology = data;
    u64 *bytes = arg;
    if (size != sizeof(*topology)) return;
    bool is_one = topology->current.budget == &topology->own && topology->own.parent == NULL;
    if (is_one) *bytes += topology->own.used_bytes;
}

/* The budgets of the shards count every byte that the process has, but for topologies. These are
 * looked for among its blocks only when there is more or less of them than at the last look. */
static void
memory_check(struct cluster_node *node)
{
    i64 uncounted = memory_uncounted(node->machine);
    if (uncounted == (i64)node->topologies_bytes) return;
    node->topologies_bytes = 0;
    sim_node_memory_each(node->machine, topology_add, &node->topologies_bytes);
    if (uncounted != (i64)node->topologies_bytes)
        violated("memory",
                 "of the %llu bytes of node %s the budgets do not count %lld; %llu of topologies",
                 (unsigned long long)sim_node_memory_bytes(node->machine), node->id,
                 (long long)uncounted, (unsigned long long)node->topologies_bytes);
}

bool
cluster_node_ready(const struct cluster_node *node)
{
    return node->server != NULL && !node->stopping && sim_node_running(node->machine) &&
           server_ready(node->server);
}

void
cluster_nodes_tend(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        if (node->server != NULL && !sim_node_running(node->machine)) process_ended(node);
        if (node->server != NULL) memory_check(node);
        if (run_over()) return;
        if (node->state == NODE_DOWN && node->server == NULL && node->back_ns != 0 &&
            cluster_now_ns() >= node->back_ns) {
            node->back_ns = 0;
            cluster_node_start(node);
            recovery_cut_maybe(node);
        }
        if (!node->leaving || node->server == NULL || node->stopping) continue;
        const struct topology *newest = cluster_topology_newest();
        if (newest != NULL && topology_member_by_id(newest, node->id) == NULL)
            cluster_node_stop(node);
    }
}

/* ---- what they know ---- */

static const struct cluster_shard *
shard_zero(const struct cluster_node *node)
{
    if (!cluster_node_ready(node) || node->server->cluster == NULL) return NULL;
    return node->server->cluster->shards[0];
}

const struct topology *
cluster_topology_of(const struct cluster_node *node)
{
    const struct cluster_shard *shard = shard_zero(node);
    return shard == NULL ? NULL : shard->topology;
}

const struct topology *
cluster_topology_newest(void)
{
    const struct cluster_run *c = run->cluster;
    const struct topology *newest = NULL;
    for (u32 i = 0; i < c->node_count; i++) {
        const struct topology *topology = cluster_topology_of(&c->nodes[i]);
        if (topology != NULL && (newest == NULL || topology->epoch > newest->epoch))
            newest = topology;
    }
    return newest;
}

struct cluster_node *
cluster_node_of(const struct topology *topology, u32 member)
{
    struct cluster_run *c = run->cluster;
    const struct topology_member *found = topology_member(topology, member);
    for (u32 i = 0; found != NULL && i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        if (strcmp(node->id, found->node_id) == 0 && cluster_node_ready(node) &&
            cluster_member(node->server->cluster) == member)
            return node;
    }
    return NULL;
}

u32
cluster_running(void)
{
    const struct cluster_run *c = run->cluster;
    u32 count = 0;
    for (u32 i = 0; i < c->node_count; i++)
        count += c->nodes[i].state == NODE_RUNS && !c->nodes[i].leaving;
    return count;
}

static const char *
member_unsettled(const struct topology *newest, const struct topology_member *member)
{
    if (member->state != PLACEMENT_NORMAL) return "a member joins or leaves";
    const struct cluster_node *node = cluster_node_of(newest, member->number);
    if (node == NULL) return "a member does not run";
    const struct server *server = node->server;
    for (u32 i = 0; i < server->shard_count; i++) {
        const struct cluster_shard *shard = server->cluster->shards[i];
        if (shard == NULL || shard->topology == NULL || shard->topology->epoch != newest->epoch)
            return "a shard does not know the newest topology";
        if (shard->topology->state_id != newest->state_id) {
            violated("topology", "two states of epoch %llu", (unsigned long long)newest->epoch);
            return "topologies differ";
        }
        u64 wall_ms = sim_node_wall_ns(node->machine) / NS_PER_MS;
        if (!stamps_settled(replicator_ahead_ms(shard->replicator, wall_ms)))
            return "somebody's stamps are ahead of the clocks";
    }
    for (u32 i = 0; i < newest->member_count; i++)
        if (!cluster_alive(server->cluster, newest->members[i].number))
            return "somebody believes another one dead";
    return NULL;
}

const struct group0 *
cluster_group_leader(void)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        const struct cluster_shard *shard = shard_zero(&c->nodes[i]);
        if (shard == NULL || shard->group0 == NULL) continue;
        struct group0_stats stats;
        group0_stats_get(shard->group0, &stats);
        if (stats.leads) return shard->group0;
    }
    return NULL;
}

static const char *
group_unsettled(const struct topology *newest)
{
    const struct group0 *group0 = cluster_group_leader();
    if (group0 == NULL) return "nobody leads group0";
    u32 voters = 0;
    for (u32 p = 0; p < group0->raft.peer_count; p++) {
        const struct raft_peer *peer = &group0->raft.peers[p];
        if (topology_member(newest, (u32)peer->id) == NULL) return "who left is in group0";
        if (peer->roles != RAFT_VOTER && peer->roles != RAFT_LEARNER)
            return "group0 changes its voters";
        voters += peer->roles == RAFT_VOTER;
    }
    return voters < MIN(3u, newest->member_count) ? "group0 has too few voters" : NULL;
}

const char *
cluster_why_unsettled(void)
{
    const struct cluster_run *c = run->cluster;
    const struct topology *newest = cluster_topology_newest();
    if (newest == NULL) return "nobody runs";
    const char *members = cluster_members_unsettled(newest->stage != STAGE_NONE);
    if (members != NULL) return members;
    size_t places = (size_t)newest->current.partition_count * newest->current.width;
    for (size_t i = 0; i < places; i++)
        if (newest->current.ids[i] & TOPOLOGY_GONE) return "places of somebody who is gone";
    if (topology_mending(newest) != 0) return "a member that mends";
    if (cluster_rot_is_there()) return "damage that nobody has mended";
    for (u32 i = 0; i < newest->member_count; i++) {
        const char *why = member_unsettled(newest, &newest->members[i]);
        if (why != NULL) return why;
    }
    for (u32 i = 0; i < c->node_count; i++) {
        const struct cluster_node *node = &c->nodes[i];
        bool member = topology_member_by_id(newest, node->id) != NULL;
        const char *why = node_unsettled(node->state, node->back_ns, member);
        if (why != NULL) return why;
    }
    return group_unsettled(newest);
}

bool
cluster_is_settled(void)
{
    return cluster_why_unsettled() == NULL;
}

void
cluster_nodes_free(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        if (c->nodes[i].server != NULL) server_free(c->nodes[i].server);
        free(c->nodes[i].config);
    }
}
