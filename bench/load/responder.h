/* SPDX-License-Identifier: MIT
 *
 * responder.h -- a server that answers every RESP request with the same bytes: as fast as a server
 * on this runtime can be. It is the yardstick of clients, and the bound of servers.
 *
 * It reads the first request of a connection to learn how many bytes a request has, and from then
 * on only counts bytes: all requests of a connection must be of that size. Each GET is answered by
 * a bulk string of reply_bytes, whatever else by +OK; the first request decides for all.
 */
#ifndef DISTKV_BENCH_RESPONDER_H
#define DISTKV_BENCH_RESPONDER_H

#include "base/status.h"
#include "base/types.h"

struct responder_config {
    u16 port; /* 0: any */
    bool pinned;
    u32 core;
    u32 reply_bytes;
    u32 request_bytes; /* 0: as the first request of each connection has */
    u32 spin_us;
};

/* Serves until SIGTERM or SIGINT; listening(port) is called once it does. */
status responder_run(const struct responder_config *config, void (*listening)(u16 port, void *arg),
                     void *arg);

#endif
