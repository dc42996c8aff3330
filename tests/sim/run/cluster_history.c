/* SPDX-License-Identifier: MIT
 *
 * cluster_history.c -- the whole of one seed of a cluster.
 *
 *   found      one node founds, the others join; the fixed keys are written
 *   trouble    clients work, and whatever the seed draws goes wrong, several things at once
 *   heal       nothing goes wrong any more: who is down starts, who is lost is taken out, and in
 *              bounded time the cluster is settled and no hint is left
 *   work       clients go on: every request is answered, and none is refused
 *   converge   counters count, every key is read at level ALL, and then the stores of the replicas
 *              hold the same
 *   stop       every node ends in order and leaves no memory
 *   judge      what clients were told of each key is what a register shows; in a sloppy keyspace it
 *              was written, and what is there in the end is the last of what was acknowledged
 *
 * Convergence. What no hint has kept is mended by reading, or where replicas compare their trees.
 * They do that by themselves in minutes, so `converge` reads everything at ALL; or, as the seed
 * draws, asks every node to compare, and the stores are the same before anybody reads.
 */
#include "cluster.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "io/sim_internal.h"

#define FOUND_NS_MAX    (300 * NS_PER_S)
#define SETTLE_NS_MAX   (300 * NS_PER_S)
#define SETTLED_NS      NS_PER_S
#define DRAIN_NS_MAX    (300 * NS_PER_S)
#define WORK_NS_MAX     (120 * NS_PER_S)
#define AUDIT_NS_MAX    (600 * NS_PER_S)
#define STOP_NS_MAX     (300 * NS_PER_S)
#define REPAIR_NS_MAX   (600 * NS_PER_S)
#define CONVERGE_ROUNDS 5u
#define TEND_NS         (20 * NS_PER_MS)
#define EVENTS_MAX      60000000ull
/* Of the trouble of a lite run: clients that hardly pause, or moves between many nodes, would make
 * a few seeds four times as dear as most. */
#define LITE_EVENTS_MAX 150000u

bool
cluster_step(void)
{
    u64 *tend_ns = &run->cluster->tend_ns;
    if (run_over()) return false;
    if (!sim_step(run->sim)) { /* all have ended, then */
        cluster_nodes_tend();
        for (u32 i = 0; i < run->cluster->node_count; i++)
            if (run->cluster->nodes[i].server != NULL)
                violated("deadlock", "nothing will ever happen again");
        return false;
    }
    cluster_nodes_cut_look();
    if (sim_event_count(run->sim) > EVENTS_MAX) {
        violated("endless", "%llu events, and no end",
                 (unsigned long long)sim_event_count(run->sim));
        return false;
    }
    if (cluster_now_ns() >= *tend_ns) {
        *tend_ns = cluster_now_ns() + TEND_NS;
        cluster_nodes_tend();
        if (!run_over()) cluster_trouble_step();
        if (!run_over()) cluster_inspect_step();
    }
    return !run_over();
}

bool
cluster_run_until(bool (*condition)(void), u64 ns)
{
    u64 deadline_ns = cluster_now_ns() + ns, look_ns = 0;
    while (!run_over() && cluster_now_ns() < deadline_ns) {
        if (cluster_now_ns() >= look_ns) {
            if (condition()) return true;
            look_ns = cluster_now_ns() + TEND_NS;
        }
        if (!cluster_step()) break;
    }
    return !run_over() && condition();
}

static bool
never(void)
{
    return false;
}

/* ---- phases ---- */

static bool
filled(void)
{
    return run->cluster->audit_ended;
}

static void
found(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->knobs.nodes; i++)
        (void)cluster_node_new();
    for (u32 i = 0; i < c->knobs.nodes; i++)
        cluster_node_start(&c->nodes[i]);
    if (!cluster_run_until(cluster_is_settled, FOUND_NS_MAX) && !run_over())
        violated("not_founded", "after %llu s: %s", (unsigned long long)(FOUND_NS_MAX / NS_PER_S),
                 cluster_why_unsettled());
    c->founded = true;
    if (c->knobs.sloppy && !run_over()) cluster_make_sloppy();
}

static void
clients_start(void)
{
    struct cluster_run *c = run->cluster;
    c->clients_machine = sim_node_new(run->sim, "10.0.9.1");
    struct io_node_config config = {.shard_count = 1,
                                    .memory_bytes = MIB(256),
                                    .shard_main = cluster_clients_main,
                                    .arg = NULL};
    status st = sim_node_start(c->clients_machine, &config);
    CHECK(ok(st));
    if (!cluster_run_until(filled, FOUND_NS_MAX) && !run_over())
        violated("not_filled", "the fixed keys cannot be written");
}

/* The chances of what fails by itself: of the whole trouble, and not of how a cluster is made. */
static void
chances_set(bool on)
{
    const struct sim_options *drawn = &run->sim_options;
    struct sim_options *options = &run->sim->options;
    sim_buggify_set(run->sim, on && drawn->buggify);
    options->alloc_ppm = on ? drawn->alloc_ppm : 0;
    options->shard_stall_ppm = on ? drawn->shard_stall_ppm : 0;
    options->disk.stall_ppm = on ? drawn->disk.stall_ppm : 0;
    options->net.refuse_ppm = on ? drawn->net.refuse_ppm : 0;
    options->net.reset_ppm = on ? drawn->net.reset_ppm : 0;
    options->net.half_open_ppm = on ? drawn->net.half_open_ppm : 0;
    options->net.stall_ppm = on ? drawn->net.stall_ppm : 0;
    const struct sim_disk_options *disk = &drawn->disk;
    if (on)
        sim_error_rates_set(run->sim, disk->read_error_ppm, disk->write_error_ppm,
                            disk->sync_error_ppm);
    else
        sim_error_rates_set(run->sim, 0, 0, 0);
    run->faulty =
        on &&
        disk->read_error_ppm + disk->write_error_ppm + disk->sync_error_ppm + drawn->alloc_ppm > 0;
}

static bool
enough_has_happened(void)
{
    return run->cluster->knobs.lite && sim_event_count(run->sim) > LITE_EVENTS_MAX;
}

static void
trouble(void)
{
    struct cluster_run *c = run->cluster;
    c->works = true;
    chances_set(true);
    cluster_trouble_begin();
    (void)cluster_run_until(enough_has_happened, c->knobs.trouble_ns);
}

static bool
enough_members(void)
{
    const struct topology *newest = cluster_topology_newest();
    return newest != NULL && newest->member_count >= MIN(3u, run->cluster->knobs.nodes);
}

/* What a failed disk has left of a store is over with a restart. */
static void
restart_all(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count && !run_over(); i++) {
        struct cluster_node *node = &c->nodes[i];
        if (node->server == NULL || node->stopping) continue;
        node->back_ns = cluster_now_ns() + NS_PER_MS;
        cluster_node_stop(node);
    }
    run->faulty = false;
}

static bool
stays_settled(void)
{
    return settled_for_long(&run->cluster->settled_ns, cluster_is_settled(), cluster_now_ns(),
                            SETTLED_NS);
}

static void
heal(void)
{
    struct cluster_run *c = run->cluster;
    bool was_faulty = run->faulty;
    cluster_trouble_end();
    c->settled_ns = 0;
    chances_set(false);
    run->faulty = was_faulty;
    if (was_faulty) restart_all();
    if (!cluster_run_until(stays_settled, SETTLE_NS_MAX)) {
        if (!run_over())
            violated("not_settled", "%llu s after the last fault: %s",
                     (unsigned long long)(SETTLE_NS_MAX / NS_PER_S), cluster_why_unsettled());
        return;
    }
    if (!enough_members()) violated("members", "fewer than three members are left");
    c->lost = 0;
    if (!run_over() && !cluster_run_until(cluster_hints_drained, DRAIN_NS_MAX) && !run_over())
        violated("hints", "hints are left %llu s after the last fault",
                 (unsigned long long)(DRAIN_NS_MAX / NS_PER_S));
    c->calm = true;
    c->calm_ns = cluster_now_ns();
    c->answered = c->refused_calm = 0;
}

static bool
worked(void)
{
    return run->cluster->answered >= run->cluster->knobs.after;
}

static void
work(void)
{
    struct cluster_run *c = run->cluster;
    c->answered = 0;
    if (!cluster_run_until(worked, WORK_NS_MAX) && !run_over())
        violated("no_progress", "%llu requests were done in %llu s, and nothing fails",
                 (unsigned long long)c->answered, (unsigned long long)(WORK_NS_MAX / NS_PER_S));
    if (!run_over() && c->refused_calm > 0)
        violated("refusals", "%llu requests failed, and nothing else does",
                 (unsigned long long)c->refused_calm);
    c->works = false;
    (void)cluster_run_until(never, 200 * NS_PER_MS);
}

static bool
audited(void)
{
    return run->cluster->audit_ended;
}

/* By their trees alone: nobody reads before all is equal. */
static void
repair(void)
{
    char why[256] = "";
    u64 pause_ns;
    for (u32 round = 0; repair_round(round, &pause_ns) && !run_over(); round++) {
        (void)cluster_run_until(never, pause_ns);
        cluster_repairs_begin();
        if (!cluster_run_until(cluster_repairs_done, REPAIR_NS_MAX) && !run_over())
            violated("repair", "trees are not compared in %llu s",
                     (unsigned long long)(REPAIR_NS_MAX / NS_PER_S));
        if (!run_over() && cluster_stores_equal(why, sizeof(why))) return;
    }
    if (!run_over()) violated("convergence", "by trees: %s", why);
}

static void
converge(void)
{
    struct cluster_run *c = run->cluster;
    char why[256] = "";
    if (c->knobs.repairs) repair();
    for (u32 round = 0; round < CONVERGE_ROUNDS && !run_over(); round++) {
        c->audit_ended = false;
        c->audit_wanted = true;
        if (!cluster_run_until(audited, AUDIT_NS_MAX)) {
            if (!run_over()) violated("audit", "the keys cannot be read");
            return;
        }
        (void)cluster_run_until(never, 200 * NS_PER_MS);
        if (!run_over() && cluster_stores_equal(why, sizeof(why))) return;
    }
    if (!run_over()) violated("convergence", "%s", why);
}

static bool
all_stopped(void)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++)
        if (c->nodes[i].server != NULL) return false;
    return !sim_node_running(c->clients_machine);
}

static void
stop(void)
{
    struct cluster_run *c = run->cluster;
    run->stop = true;
    for (u32 i = 0; i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        node->back_ns = 0;
        if (node_to_be_stopped(node->server != NULL, node->stopping)) cluster_node_stop(node);
    }
    if (!cluster_run_until(all_stopped, STOP_NS_MAX) && !run_over())
        violated("stop_hangs", "a node has not stopped after %llu s",
                 (unsigned long long)(STOP_NS_MAX / NS_PER_S));
}

/* ---- the whole ---- */

void
cluster_history_run(void)
{
    struct cluster_run *c = calloc(1, sizeof(*c));
    CHECK(c != NULL);
    run->cluster = c;
    cluster_knobs_draw(&c->knobs, &run->sim_options, run->options);
    run->sim = sim_new(&run->sim_options);
    sim_trace_print_set(run->sim, run->options->trace);
    sim_audits_set(run->sim, SIM_AUDIT_ONE_IN);
    sim_leaks_forbid(run->sim);
    chances_set(false);
    cluster_nodes_init();
    cluster_trouble_init();
    cluster_inspect_init();
    cluster_keys_make();
    found();
    if (!run_over()) clients_start();
    if (!run_over()) trouble();
    if (!run_over()) heal();
    if (!run_over()) work();
    if (!run_over()) converge();
    if (!run_over()) stop();
    if (!run_over()) cluster_judge();
}

void
cluster_history_free(void)
{
    run->stop = true;
    sim_free(run->sim);
    cluster_nodes_free();
    cluster_keys_free();
    free(run->cluster);
}

void
cluster_report(void)
{
    const struct cluster_run *c = run->cluster;
    static const char *const states[] = {"unused", "runs", "down", "lost", "gone"};
    cluster_knobs_print(&c->knobs);
    fprintf(stderr, "happened ");
    for (u32 i = 0; i < TROUBLE_COUNT; i++)
        if (c->happened[i] > 0)
            fprintf(stderr, " %s %llu", cluster_trouble_names[i],
                    (unsigned long long)c->happened[i]);
    if (c->shrink_losses > 0) fprintf(stderr, " lost-while-shrinking %u", c->shrink_losses);
    fprintf(stderr, "\ntrees     of two replicas compared %llu times, and equal %llu times\n",
            (unsigned long long)c->trees_compared, (unsigned long long)c->trees_equal);
    for (u32 i = 0; i < c->node_count; i++) {
        const struct cluster_node *node = &c->nodes[i];
        const struct topology *topology = cluster_topology_of(node);
        fprintf(
            stderr, "%-9s %s%s, starts %llu, disks %u, epoch %llu stage %u members %u\n", node->id,
            states[node->state], node->leaving ? ", leaving" : "", (unsigned long long)node->starts,
            node->disks + 1, topology == NULL ? 0ull : (unsigned long long)topology->epoch,
            topology == NULL ? 0 : topology->stage, topology == NULL ? 0 : topology->member_count);
    }
    if (c->failed_key != 0) cluster_key_print(c->failed_key - 1, c->failed_op);
}
