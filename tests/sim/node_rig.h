/* SPDX-License-Identifier: MIT
 *
 * node_rig.h -- a whole node of several shards on the simulated link, and clients that talk RESP to
 * it from another machine: what crosses shards, with every order of turns and mails that a seed
 * gives.
 *
 *     struct rig rig = {.options = ..., .shard_count = 3, .story = story};
 *     rig_run(&rig);          starts the node, runs story(&rig) on a fiber of the clients' machine,
 *                             stops the node in order
 *
 * In a story rig_connect and rig_call are plain calls that wait; rig_spawn starts another fiber
 * beside it. rig_on_shard runs a function on a fiber of one of the node's shards.
 *
 * With node_count there are as many nodes, at 10.0.1.1, 10.0.1.2 ..., and configure says what each
 * of them is told: they become a cluster. A story may crash them and start them again.
 */
#ifndef DISTKV_TESTS_SIM_NODE_RIG_H
#define DISTKV_TESTS_SIM_NODE_RIG_H

#include "base/buf.h"
#include "io/fiber.h"
#include "io/net.h"
#include "io/sim.h"
#include "proto/resp.h"
#include "server/shard.h"

#define RIG_SPAWNS_MAX 16u
#define RIG_NODES_MAX  11u
#define RIG_NODE_PORT  7000u

struct rig;

struct rig_client {
    struct rig *rig;
    struct io_conn *conn; /* NULL: closed */
    struct buf in;
    struct fiber_queue queue;
    size_t taken; /* of in: the reply that the last call returned */
};

struct rig_spawn {
    struct rig *rig;
    void (*fn)(struct rig *rig, void *arg);
    void *arg;
};

struct rig_node {
    struct rig *rig;
    u32 index;
    char host[24];
    struct sim_node *machine;
    struct server_config *config;
    struct server *server; /* NULL: not started */
    bool start_wanted, crash_wanted;
};

struct rig {
    /* the test's */
    struct sim_options options;
    u32 shard_count;
    u32 node_count; /* 0: one, by itself */
    u32 late_count; /* of these, the last ones: the story starts them */
    void (*configure)(struct rig *rig, u32 node, struct server_config *config);
    void (*story)(struct rig *rig);
    void *arg;
    bool on_all_nodes; /* rig_on_node will be called */

    /* state */
    struct sim *sim;
    struct sim_node *clients;
    struct rig_node nodes[RIG_NODES_MAX];
    struct server *server; /* of the first node */
    struct rig_spawn spawns[RIG_SPAWNS_MAX];
    u32 spawned, running;
    struct fiber_queue ended;
    bool story_ended;
    struct { /* what rig_on_shard wants */
        void (*fn)(struct shard *shard, void *arg);
        void *arg;
        u32 node, shard;
        bool wanted;
    } action;
};

/* Fails the test when the node does not start or stop as it should. */
void rig_run(struct rig *rig);

MAY_YIELD void rig_connect(struct rig *rig, struct rig_client *client);
MAY_YIELD void rig_connect_to(struct rig *rig, u32 node, struct rig_client *client);
/* The same where nobody may be listening. */
MAY_YIELD MUST_CHECK status rig_try_connect(struct rig *rig, u32 node, struct rig_client *client);
/* The power fails; it is off when this returns. Then: it is on again, and the node is ready. */
MAY_YIELD void rig_crash(struct rig *rig, u32 node);
MAY_YIELD void rig_start(struct rig *rig, u32 node);
/* Without waiting until it is ready. */
MAY_YIELD void rig_start_begin(struct rig *rig, u32 node);
MAY_YIELD void rig_disconnect(struct rig_client *client);
/* Words parted by blanks. The reply's bytes, until the client's next call; size 0: closed. */
MAY_YIELD struct bytes rig_call(struct rig_client *client, const char *format, ...)
    PRINTF_LIKE(2, 3);
/* The two halves of rig_call. */
void rig_send(struct rig_client *client, const char *format, ...) PRINTF_LIKE(2, 3);
MAY_YIELD struct bytes rig_read(struct rig_client *client);
bool rig_is(struct bytes reply, const char *expected);
void rig_spawn(struct rig *rig, void (*fn)(struct rig *rig, void *arg), void *arg);
/* Until every spawned fiber has returned. */
MAY_YIELD void rig_wait_spawned(struct rig *rig);
MAY_YIELD void rig_on_shard(struct rig *rig, u32 shard, void (*fn)(struct shard *shard, void *arg),
                            void *arg);
/* Of any node, which lives. */
MAY_YIELD void rig_on_node(struct rig *rig, u32 node, u32 shard,
                           void (*fn)(struct shard *shard, void *arg), void *arg);
/* A key of this name whose hash tag makes it one of the shard's. */
void rig_key_of_shard(const struct rig *rig, u32 shard, const char *name, char *out, size_t size);

#endif
