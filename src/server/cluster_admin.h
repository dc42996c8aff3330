/* SPDX-License-Identifier: MIT
 *
 * cluster_admin.h -- operators' requests about a whole cluster: see cluster_admin.c, native.h.
 */
#ifndef DISTKV_SERVER_CLUSTER_ADMIN_H
#define DISTKV_SERVER_CLUSTER_ADMIN_H

#include "server/shard.h"

/* Other nodes may ask this one. */
void cluster_admin_open(struct shard *shard);

#endif
