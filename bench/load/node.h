/* SPDX-License-Identifier: MIT
 *
 * node.h -- servers that this program starts itself: a temporary node of DistKV, and the
 * fixed-reply responder. Each is a child process, ended by its process id; it also ends when this
 * program dies.
 */
#ifndef DISTKV_BENCH_NODE_H
#define DISTKV_BENCH_NODE_H

#include <stdatomic.h>
#include <sys/types.h>

#include "base/types.h"

struct child {
    pid_t pid; /* 0: none */
    u16 port;
    char directory[512]; /* of the node's data; "": none */
};

/* distkv-server beside this program (or ../sbin of it), on a free port of the loopback, with a
 * directory of its own in the current one. cores: "" for all. False: error says why, nothing is
 * left behind. */
MUST_CHECK bool node_start(struct child *child, const char *cores, const _Atomic bool *interrupted,
                           char *error, size_t error_size);
MUST_CHECK bool responder_start(struct child *child, bool pinned, u32 core, char *error,
                                size_t error_size);
/* Ends it and removes its directory. */
void child_stop(struct child *child);

#endif
