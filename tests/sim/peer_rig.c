/* SPDX-License-Identifier: MIT
 *
 * peer_rig.c -- see peer_rig.h.
 */
#include "peer_rig.h"

#include <stdio.h>
#include <string.h>

#include "io/fiber.h"

#define LOOK_NS     (NS_PER_MS)
#define WAIT_NS_MAX (600 * NS_PER_S)

/* ---- on the nodes ---- */

static struct peer_rig_shard *
own_shard(struct peer_rig_node *node)
{
    return &node->shards[io_shard_index()];
}

struct peers *
peer_rig_peers(const struct peer_rig_node *node)
{
    return node->shards[io_shard_index()].peers;
}

void
peer_rig_address(const struct peer_rig *rig, u32 node, struct peer_address *out)
{
    *out = (struct peer_address){.port = PEER_RIG_PORT, .shard_count = rig->shard_count};
    (void)snprintf(out->host, sizeof(out->host), "%s", rig->nodes[node].host);
}

MAY_YIELD status
peer_rig_peers_open(struct peer_rig_node *node, struct peers **out)
{
    struct peer_rig *rig = node->rig;
    struct peer_rig_shard *shard = own_shard(node);
    struct peers_options options = {.self = node->identity,
                                    .budget = &shard->budget,
                                    .requests_max = node->requests_max,
                                    .admit = node->admit,
                                    .arg = node};
    memcpy(options.secret, node->secret, sizeof(options.secret));
    peer_rig_address(rig, node->index, &options.listen);
    status st = peers_open(&options, &shard->peers);
    if (!ok(st)) return st;
    for (u32 i = 0; i < rig->node_count; i++) {
        struct peer_address address;
        peer_rig_address(rig, i, &address);
        while (!peers_member_set(shard->peers, i + 1, &address)) /* memory is refused by chance */
            fiber_sleep_ns(LOOK_NS);
    }
    *out = shard->peers;
    return ST_OK;
}

static MAY_YIELD void
run_job(void *arg)
{
    struct peer_rig_job *job = arg;
    struct peer_rig_shard *shard = own_shard(job->node);
    job->fn(job->node, job->arg);
    job->ended = true; /* from here on it may be gone */
    shard->jobs_running--;
}

MAY_YIELD void
peer_rig_serve(struct peer_rig_node *node)
{
    struct peer_rig_shard *shard = own_shard(node);
    shard->ready = true;
    while (!io_stopping() || shard->jobs_running > 0) {
        while (!list_empty(&shard->jobs)) {
            struct list *first = list_first(&shard->jobs);
            list_del(first);
            shard->jobs_running++;
            if (ok(fiber_spawn(FIBER_FOREGROUND, "job", run_job,
                               list_entry(first, struct peer_rig_job, link))))
                continue;
            shard->jobs_running--; /* memory is refused by chance */
            list_push_front(&shard->jobs, first);
            break;
        }
        fiber_sleep_ns(LOOK_NS);
    }
}

static MAY_YIELD status
rig_shard_main(void *arg)
{
    struct peer_rig_node *node = arg;
    struct peer_rig_shard *shard = own_shard(node);
    budget_init(&shard->budget, "peers", node->budget_bytes, io_budget());
    status st = node->rig->shard_main(node);
    shard->peers = NULL;
    CHECK(shard->budget.used_bytes == 0);
    return st;
}

/* ---- from outside ---- */

static void
give_up(struct peer_rig *rig, const char *what)
{
    sim_log_dump(rig->sim);
    fprintf(stderr, "seed %llu: %s\n", (unsigned long long)rig->options.seed, what);
    CHECK(!"the rig cannot go on");
}

void
peer_rig_run(struct peer_rig *rig, u64 ns)
{
    sim_run_until_ns(rig->sim, sim_now_ns(rig->sim) + ns);
}

bool
peer_rig_run_until(struct peer_rig *rig, bool (*condition)(void *arg), void *arg, u64 ns)
{
    return sim_run_until(rig->sim, condition, arg, sim_now_ns(rig->sim) + ns);
}

static bool
node_serves(void *arg)
{
    struct peer_rig_node *node = arg;
    if (!sim_node_running(node->machine)) return true;
    for (u32 i = 0; i < node->rig->shard_count; i++)
        if (!node->shards[i].ready) return false;
    return true;
}

static bool
node_has_ended(void *arg)
{
    struct peer_rig_node *node = arg;
    return !sim_node_running(node->machine);
}

void
peer_rig_start(struct peer_rig *rig, u32 index)
{
    struct peer_rig_node *node = &rig->nodes[index];
    node->starts++;
    node->identity.incarnation = node->starts;
    for (u32 i = 0; i < rig->shard_count; i++) {
        node->shards[i] = (struct peer_rig_shard){.peers = NULL};
        list_init(&node->shards[i].jobs);
    }
    struct io_node_config config = {.shard_count = rig->shard_count,
                                    .memory_bytes =
                                        rig->memory_bytes != 0 ? rig->memory_bytes : MIB(256),
                                    .shard_main = rig_shard_main,
                                    .arg = node};
    status st = sim_node_start(node->machine, &config);
    CHECK(ok(st));
    if (!peer_rig_run_until(rig, node_serves, node, WAIT_NS_MAX) || node_has_ended(node))
        give_up(rig, "a node does not start");
}

void
peer_rig_stop(struct peer_rig *rig, u32 index)
{
    struct peer_rig_node *node = &rig->nodes[index];
    sim_node_stop(node->machine);
    if (!peer_rig_run_until(rig, node_has_ended, node, WAIT_NS_MAX))
        give_up(rig, "a node does not stop");
    if (!ok(sim_node_result(node->machine))) give_up(rig, "a node has failed");
}

void
peer_rig_crash(struct peer_rig *rig, u32 index, bool process_only)
{
    sim_crash_keeps_all_set(rig->sim, process_only);
    sim_node_crash(rig->nodes[index].machine);
}

void
peer_rig_cut(struct peer_rig *rig, u32 a, u32 b)
{
    sim_link_cut(rig->sim, rig->nodes[a].machine, rig->nodes[b].machine);
    rig->cut[a][b] = rig->cut[b][a] = true;
}

void
peer_rig_heal(struct peer_rig *rig, u32 a, u32 b)
{
    sim_link_heal(rig->sim, rig->nodes[a].machine, rig->nodes[b].machine);
    rig->cut[a][b] = rig->cut[b][a] = false;
}

void
peer_rig_link_flip(struct peer_rig *rig, u32 a, u32 b)
{
    if (rig->cut[a][b])
        peer_rig_heal(rig, a, b);
    else
        peer_rig_cut(rig, a, b);
}

void
peer_rig_heal_all(struct peer_rig *rig)
{
    for (u32 a = 0; a < rig->node_count; a++)
        for (u32 b = 0; b < a; b++)
            if (rig->cut[a][b]) peer_rig_heal(rig, a, b);
}

void
peer_rig_isolate(struct peer_rig *rig, u32 node)
{
    for (u32 i = 0; i < rig->node_count; i++)
        if (i != node) peer_rig_cut(rig, i, node);
}

void
peer_rig_rejoin(struct peer_rig *rig, u32 node)
{
    for (u32 i = 0; i < rig->node_count; i++)
        if (i != node) peer_rig_heal(rig, i, node);
}

bool
peer_rig_runs(const struct peer_rig *rig, u32 node)
{
    return sim_node_running(rig->nodes[node].machine);
}

void
peer_rig_give(struct peer_rig *rig, u32 index, u32 shard, struct peer_rig_job *job, peer_rig_fn fn,
              void *arg)
{
    struct peer_rig_node *node = &rig->nodes[index];
    *job = (struct peer_rig_job){.node = node, .fn = fn, .arg = arg, .starts = node->starts};
    list_push_back(&node->shards[shard].jobs, &job->link);
}

bool
peer_rig_job_over(const struct peer_rig_job *job)
{
    return job->ended || job->starts != job->node->starts || !sim_node_running(job->node->machine);
}

static bool
job_is_over(void *arg)
{
    return peer_rig_job_over(arg);
}

bool
peer_rig_do(struct peer_rig *rig, u32 index, u32 shard, peer_rig_fn fn, void *arg)
{
    struct peer_rig_job job;
    peer_rig_give(rig, index, shard, &job, fn, arg);
    if (!peer_rig_run_until(rig, job_is_over, &job, WAIT_NS_MAX))
        give_up(rig, "a job does not end");
    return job.ended;
}

void
peer_rig_open(struct peer_rig *rig)
{
    CHECK(rig->node_count <= PEER_RIG_NODES_MAX && rig->shard_count <= PEER_RIG_SHARDS_MAX);
    rig->sim = sim_new(&rig->options);
    sim_audits_set(rig->sim, SIM_AUDIT_ONE_IN);
    for (u32 i = 0; i < rig->node_count; i++) {
        struct peer_rig_node *node = &rig->nodes[i];
        *node = (struct peer_rig_node){
            .rig = rig,
            .index = i,
            .identity = {.cluster_id = PEER_RIG_CLUSTER, .member = i + 1},
            .budget_bytes = MIB(64),
        };
        memset(node->secret, 's', sizeof(node->secret));
        (void)snprintf(node->host, sizeof(node->host), "10.0.0.%u", i + 1);
        (void)snprintf(node->identity.node_id, sizeof(node->identity.node_id), "node-%u", i + 1);
        node->machine = sim_node_new(rig->sim, node->host);
    }
    for (u32 i = 0; i < rig->node_count && !rig->started_by_test; i++)
        peer_rig_start(rig, i);
}

void
peer_rig_close(struct peer_rig *rig)
{
    for (u32 i = 0; i < rig->node_count; i++) {
        if (sim_node_running(rig->nodes[i].machine)) peer_rig_stop(rig, i);
        CHECK(sim_node_memory_bytes(rig->nodes[i].machine) == 0);
    }
    sim_free(rig->sim);
}
