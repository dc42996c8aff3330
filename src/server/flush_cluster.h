/* SPDX-License-Identifier: MIT
 *
 * flush_cluster.h -- FLUSHDB and FLUSHALL in a cluster.
 */
#ifndef DISTKV_SERVER_FLUSH_CLUSTER_H
#define DISTKV_SERVER_FLUSH_CLUSTER_H

#include "server/exec.h"

/* Keys in one request from another node; all in one partition. */
#define FLUSH_KEYS_MAX 1024u

/* Deletes all keys of the keyspaces, and replies. */
MAY_YIELD void flush_cluster(struct exec *x, u16 first, u16 last);

#endif
