/* SPDX-License-Identifier: MIT
 *
 * bench_fixed_reply.c -- question: how much of a request's cost is neither the server's nor the
 * client's own? A server on one shard that reads no request but its connection's first and answers
 * each with the same bytes: what a client measures against it is the client, the runtime and the
 * TCP stack. Expected on loopback, 50 connections: bounded by the stack at one request at a time
 * (3 to 5 us of the server's core each), several million a second with 64 in the pipeline.
 *
 *     bench_fixed_reply [port] [core, -1 for any] [bytes of a GET's value] [bytes of a request]
 *     distkv-bench --server 127.0.0.1:PORT --workload get --pipeline 16 --cores 1
 */
#include <stdio.h>
#include <stdlib.h>

#include "load/responder.h"

static void
listening(u16 port, void *arg)
{
    printf("listening on 127.0.0.1:%u\n", port);
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    long core = argc > 2 ? strtol(argv[2], NULL, 10) : -1;
    struct responder_config config = {
        .port = argc > 1 ? (u16)strtoul(argv[1], NULL, 10) : 0,
        .pinned = core >= 0,
        .core = core >= 0 ? (u32)core : 0,
        .reply_bytes = argc > 3 ? (u32)strtoul(argv[3], NULL, 10) : 100,
        .request_bytes = argc > 4 ? (u32)strtoul(argv[4], NULL, 10) : 0,
        .spin_us = 20,
    };
    status st = responder_run(&config, listening, NULL);
    if (!ok(st)) fprintf(stderr, "bench_fixed_reply: %s\n", status_text(st));
    return ok(st) ? 0 : 1;
}
