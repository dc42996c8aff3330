/* SPDX-License-Identifier: MIT
 *
 * cluster_admin.h -- operators' requests about a whole cluster: see cluster_admin.c, native.h.
 */
#ifndef DISTKV_SERVER_CLUSTER_ADMIN_H
#define DISTKV_SERVER_CLUSTER_ADMIN_H

#include "cluster/cluster.h"
#include "server/shard.h"

/* Other nodes may ask this one. */
void cluster_admin_open(struct shard *shard);
/* On shard 0: cluster_remove, and by force the member is told not to be waited for. */
MAY_YIELD MUST_CHECK status cluster_admin_remove(struct server *server, const char *node_id,
                                                 enum cluster_removal how, u64 deadline_ns,
                                                 char reason[TOPOLOGY_REASON_BYTES]);

#endif
