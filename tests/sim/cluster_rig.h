/* SPDX-License-Identifier: MIT
 *
 * cluster_rig.h -- what tests of whole simulated clusters share, on top of node_rig.h: nodes that
 * know a secret and whom to ask, and waiting until all of them agree who is a member; and clients
 * that speak the native protocol.
 */
#ifndef DISTKV_TESTS_CLUSTER_RIG_H
#define DISTKV_TESTS_CLUSTER_RIG_H

#include "node_rig.h"
#include "proto/native.h"

struct topology;

/* A node of its own rack; all but the first one ask the first one to let them in. */
void cluster_rig_configure(struct rig *rig, u32 node, struct server_config *config, u32 core_count);
/* What shard 0 of the node knows; NULL: it does not run, or is not ready. */
const struct topology *cluster_rig_topology(const struct rig *rig, u32 node);
/* A key whose first replica is that node, on that shard of it, by what node 0 knows. */
void cluster_rig_key(const struct rig *rig, u32 node, u32 shard, char *out, size_t size);
/* How many commands the node's shards have run for other nodes. */
u64 cluster_rig_forwarded(const struct rig *rig, u32 node);
/* Each shard of the node knows so many members, all in their places, and nothing that is under way.
 * (In the server a shard's topology is its own thread's; here all are ours.) */
bool cluster_rig_knows(const struct rig *rig, u32 node, u32 members);
/* The first node_count nodes do, and take all members for alive. */
bool cluster_rig_is_settled(const struct rig *rig, u32 node_count, u32 members);
/* Until they do; after wait_ns the test has failed. */
MAY_YIELD void cluster_rig_settle(struct rig *rig, u32 node_count, u32 members, u64 wait_ns);

/* To that shard of the node, with HELLO. */
MAY_YIELD void rig_native_connect(struct rig *rig, u32 node, u32 shard, struct rig_client *client);
/* Native requests over a client's connection. */
void rig_native_send(struct rig_client *client, struct native_request *request);
/* Its bytes lie in the client until the next one. false: the connection has ended. */
MAY_YIELD bool rig_native_reply(struct rig_client *client, struct native_reply *reply);
/* The two, of one that is answered. */
MAY_YIELD struct native_reply rig_native_call(struct rig_client *client,
                                              struct native_request *request);

#endif
