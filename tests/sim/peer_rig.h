/* SPDX-License-Identifier: MIT
 *
 * peer_rig.h -- several nodes that talk to each other by cluster/peer.h, each a machine of its own
 * on the simulated link. What a node does is the test's: its shard_main.
 *
 *     static MAY_YIELD status node_main(struct peer_rig_node *node)       on each shard
 *     {
 *         struct peers *peers;
 *         status st = peer_rig_peers_open(node, &peers);    listens; knows all nodes of the rig
 *         if (!ok(st)) return st;
 *         peers_handler_set(peers, PEER_WRITE, ...);
 *         peer_rig_serve(node);                             runs jobs until the node is to stop
 *         peers_close(peers);
 *         return ST_OK;                                     the rig checks: no memory is left
 *     }
 *
 *     struct peer_rig rig = {.node_count = 3, .shard_count = 2, .shard_main = node_main};
 *     sim_options_default(&rig.options, seed);
 *     peer_rig_open(&rig);                     all machines there, all nodes started
 *     peer_rig_do(&rig, 0, 1, fn, arg);        fn(node, arg) on a fiber of node 0, shard 1; the
 *                                              world turns until it has returned
 *     peer_rig_crash(&rig, 2, false);
 *     peer_rig_start(&rig, 2);                 another incarnation of the same node
 *     peer_rig_close(&rig);                    stops in order and checks that each could
 *
 * Node i is the member i + 1 at 10.0.0.(i + 1), port 7100.
 */
#ifndef DISTKV_TESTS_SIM_PEER_RIG_H
#define DISTKV_TESTS_SIM_PEER_RIG_H

#include "cluster/peer.h"
#include "io/io.h"
#include "io/sim.h"

#define PEER_RIG_NODES_MAX  9u
#define PEER_RIG_SHARDS_MAX 4u
#define PEER_RIG_PORT       7100u
#define PEER_RIG_CLUSTER    0xc1u

struct peer_rig;
struct peer_rig_node;

typedef void (*peer_rig_fn)(struct peer_rig_node *node, void *arg);

/* Something to do on a fiber of a shard. */
struct peer_rig_job {
    struct list link; /* shard->jobs until it begins */
    struct peer_rig_node *node;
    peer_rig_fn fn;
    void *arg;
    u64 starts; /* of the node, when it was given */
    bool ended;
};

struct peer_rig_shard {
    struct budget budget; /* of the peers */
    struct peers *peers;  /* of the running process; NULL: not open */
    void *user;           /* the test's */
    struct list jobs;     /* that have not begun */
    u32 jobs_running;
    bool ready; /* peer_rig_serve was reached */
};

struct peer_rig_node {
    struct peer_rig *rig;
    u32 index;
    char host[24];
    struct sim_node *machine;
    /* What it says of itself at the next start; the incarnation counts starts. */
    struct peer_identity identity;
    u8 secret[PEER_SECRET_BYTES];
    u64 starts;
    u32 requests_max; /* 0: the default */
    u64 budget_bytes; /* of each shard's peers */
    status (*admit)(void *arg, const struct peer_identity *peer);
    struct peer_rig_shard shards[PEER_RIG_SHARDS_MAX];
};

struct peer_rig {
    /* the test's */
    struct sim_options options;
    u32 node_count, shard_count;
    status (*shard_main)(struct peer_rig_node *node);
    void *arg;
    u64 memory_bytes;     /* of a node; 0: 256 MiB */
    bool started_by_test; /* peer_rig_open starts none */

    /* state */
    struct sim *sim;
    struct peer_rig_node nodes[PEER_RIG_NODES_MAX];
    bool cut[PEER_RIG_NODES_MAX][PEER_RIG_NODES_MAX]; /* who does not reach whom */
};

void peer_rig_open(struct peer_rig *rig);
/* Ends what runs; each node has to end well and leave nothing. */
void peer_rig_close(struct peer_rig *rig);

/* Starts node's process and waits until each shard serves; what fails fails the test. */
void peer_rig_start(struct peer_rig *rig, u32 node);
bool peer_rig_runs(const struct peer_rig *rig, u32 node);
/* In order, and waits for the end. */
void peer_rig_stop(struct peer_rig *rig, u32 node);
/* The power fails, or only the process ends. */
void peer_rig_crash(struct peer_rig *rig, u32 node, bool process_only);
void peer_rig_cut(struct peer_rig *rig, u32 a, u32 b);
void peer_rig_heal(struct peer_rig *rig, u32 a, u32 b);
/* Cuts the link, or heals it if it is cut. */
void peer_rig_link_flip(struct peer_rig *rig, u32 a, u32 b);
void peer_rig_heal_all(struct peer_rig *rig);
/* From all others, and back. */
void peer_rig_isolate(struct peer_rig *rig, u32 node);
void peer_rig_rejoin(struct peer_rig *rig, u32 node);

/* Lets the world turn. */
void peer_rig_run(struct peer_rig *rig, u64 ns);
/* ... until the condition comes true, at most for so long. */
bool peer_rig_run_until(struct peer_rig *rig, bool (*condition)(void *arg), void *arg, u64 ns);
/* Runs fn on a fiber and waits for its end; false: the process ended before. */
bool peer_rig_do(struct peer_rig *rig, u32 node, u32 shard, peer_rig_fn fn, void *arg);
/* The same without waiting. job: the test's memory, until it has ended or the node has. */
void peer_rig_give(struct peer_rig *rig, u32 node, u32 shard, struct peer_rig_job *job,
                   peer_rig_fn fn, void *arg);
bool peer_rig_job_over(const struct peer_rig_job *job);

/* ---- on the node's own fibers ---- */

MAY_YIELD MUST_CHECK status peer_rig_peers_open(struct peer_rig_node *node, struct peers **out);
/* Runs the jobs of this shard until the node is to stop and all have ended. */
MAY_YIELD void peer_rig_serve(struct peer_rig_node *node);
struct peers *peer_rig_peers(const struct peer_rig_node *node);
void peer_rig_address(const struct peer_rig *rig, u32 node, struct peer_address *out);

#endif
