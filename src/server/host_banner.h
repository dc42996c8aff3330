/* SPDX-License-Identifier: MIT
 *
 * host_banner.h -- what a person reads at a terminal once the node serves: what runs where, and
 * what to try next, so that it can be pasted into another terminal.
 */
#ifndef DISTKV_SERVER_HOST_BANNER_H
#define DISTKV_SERVER_HOST_BANNER_H

#include "server/config.h"

struct host_banner {
    const struct server_config *config;
    const char *node_id;
    const char *address; /* of clients, with the port */
    const char *memory;
    u16 port;
    u64 ready_ms; /* from the start on */
};

/* To stderr; nothing when that is no terminal. */
void host_banner_print(const struct host_banner *banner);

#endif
