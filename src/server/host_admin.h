/* SPDX-License-Identifier: MIT
 *
 * host_admin.h -- the admin address: figures and health over HTTP, off the data cores.
 *
 *   GET /metrics   Prometheus text
 *   GET /status    the same in short, as JSON
 *   GET /livez     200 while every shard's loop turns, else 503
 *   GET /readyz    200 while requests should be sent here, else 503 and why
 *
 * One thread of its own. Figures are copied from the shards by io_node_ask and kept for 100 ms,
 * so that many scrapers cost no more than one. Health never asks a shard: it looks at heartbeats.
 */
#ifndef DISTKV_SERVER_HOST_ADMIN_H
#define DISTKV_SERVER_HOST_ADMIN_H

#include "server/server.h"

struct host_admin;

struct host_admin_config {
    const struct server_config *config;
    struct server *server;
    struct io_node *node;
    u64 started_ns; /* host_now_ns at the start of the process */
};

/* Starts serving; error says why it cannot. Everything in config must outlive it. */
MUST_CHECK status host_admin_start(const struct host_admin_config *config, struct host_admin **out,
                                   char *error, size_t error_size);
/* Before io_node_join. admin may be NULL. */
void host_admin_stop(struct host_admin *admin);

/* The resident set of this process and the largest it ever was, in bytes; 0 when the kernel does
 * not say. */
void host_resident(u64 *now_out, u64 *max_out);

#endif
