/* SPDX-License-Identifier: MIT
 *
 * cluster_resp.h -- CLUSTER for Redis Cluster clients, where resp-cluster is node or cores.
 */
#ifndef DISTKV_SERVER_CLUSTER_RESP_H
#define DISTKV_SERVER_CLUSTER_RESP_H

#include "server/exec.h"

/* Where the asking connection has reached this node: an address as Redis writes it. */
#define CLUSTER_RESP_HOST_BYTES 64u
void cluster_resp_local(const struct exec *x, char out[CLUSTER_RESP_HOST_BYTES]);

/* Of a map of CLUSTER SHARDS: "nodes", the only one of these slots. */
void cluster_resp_shard_node(struct exec *x, const char *id, const char *host, u32 port,
                             bool alive);

/* The replies that the shard keeps of these. */
void cluster_kept_free(struct shard *shard);
void cluster_resp_info(struct exec *x);
void cluster_resp_myid(struct exec *x);
void cluster_resp_nodes(struct exec *x);
void cluster_resp_slots(struct exec *x);
void cluster_resp_shards(struct exec *x);

#endif
