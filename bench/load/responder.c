/* SPDX-License-Identifier: MIT
 *
 * responder.c -- see responder.h. It runs on the loop and the connections of the server (src/io)
 * and does nothing that a server could leave out: replies are prepared, many in a row, and what it
 * knows of a connection fits in the connection's pointer.
 */
#include "load/responder.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "io/io.h"
#include "io/net.h"
#include "proto/resp.h"

#define REPLIES_PREPARED 64u
#define REPLY_BYTES_MAX  (1u << 20)

struct responder {
    struct responder_config config;
    /* REPLIES_PREPARED of each */
    u8 *bulks, *oks;
    size_t bulk_bytes, ok_bytes; /* of one */
    _Atomic u16 port;
};

/* What io_conn_user points to: the size of a request and which reply it gets, in one word. */
struct peer {
    u32 request_bytes;
    bool bulk;
};
static_assert(sizeof(struct peer) <= sizeof(void *), "kept in the pointer itself");

static struct responder responder;
static struct io_node *_Atomic node;

static status
opened(struct io_conn *conn, void *arg)
{
    io_conn_user_set(conn, NULL);
    return ST_OK;
}

/* Reads one whole request; false: it is not all here, or no RESP (then the connection ends). */
static bool
learn(struct io_conn *conn, struct bytes data, struct peer *peer)
{
    struct resp_parser parser;
    resp_parser_init(&parser, io_budget());
    size_t consumed = 0, wanted = 0;
    enum resp_result result =
        resp_parse(&parser, data, RESP_ARGS_MAX, RESP_BULK_BYTES_MAX, &consumed, &wanted);
    if (result == RESP_COMMAND && parser.arg_count > 0) {
        struct bytes name = resp_arg(&parser, data, 0);
        peer->request_bytes =
            responder.config.request_bytes > 0 ? responder.config.request_bytes : (u32)consumed;
        peer->bulk = bytes_equal(name, BYTES_LITERAL("GET"));
    }
    resp_parser_deinit(&parser);
    if (result == RESP_COMMAND && peer->request_bytes > 0) return true;
    if (result == RESP_INCOMPLETE)
        io_conn_want(conn, MIN(wanted, CONN_INPUT_MAX_BYTES));
    else
        io_conn_close(conn, IO_CLOSE_ABORT);
    return false;
}

static size_t
received(struct io_conn *conn, struct bytes data)
{
    struct peer peer = {0};
    void *user = io_conn_user(conn);
    memcpy(&peer, &user, sizeof(peer));
    if (peer.request_bytes == 0) {
        if (!learn(conn, data, &peer)) return 0;
        memcpy(&user, &peer, sizeof(peer));
        io_conn_user_set(conn, user);
    }
    size_t count = data.size / peer.request_bytes;
    size_t one = peer.bulk ? responder.bulk_bytes : responder.ok_bytes;
    const u8 *replies = peer.bulk ? responder.bulks : responder.oks;
    for (size_t left = count; left > 0;) {
        size_t now = MIN(left, REPLIES_PREPARED);
        if (!io_conn_write(conn, replies, now * one)) {
            io_conn_close(conn, IO_CLOSE_ABORT);
            break;
        }
        left -= now;
    }
    if (peer.request_bytes > data.size - count * peer.request_bytes)
        io_conn_want(conn, MIN(peer.request_bytes, CONN_INPUT_MAX_BYTES));
    return count * peer.request_bytes;
}

static void
drained(struct io_conn *conn)
{
}

static void
closed(struct io_conn *conn, status why)
{
}

static const struct io_conn_events EVENTS = {
    .opened = opened, .received = received, .drained = drained, .closed = closed};

static bool
prepare(void)
{
    char head[32];
    int size = snprintf(head, sizeof(head), "$%u\r\n", responder.config.reply_bytes);
    responder.bulk_bytes = (size_t)size + responder.config.reply_bytes + 2;
    responder.ok_bytes = 5;
    responder.bulks = mem_alloc(io_budget(), responder.bulk_bytes * REPLIES_PREPARED);
    responder.oks = mem_alloc(io_budget(), responder.ok_bytes * REPLIES_PREPARED);
    if (responder.bulks == NULL || responder.oks == NULL) return false;
    for (u32 i = 0; i < REPLIES_PREPARED; i++) {
        u8 *bulk = responder.bulks + i * responder.bulk_bytes;
        memcpy(bulk, head, (size_t)size);
        memset(bulk + size, 'x', responder.config.reply_bytes);
        memcpy(bulk + size + responder.config.reply_bytes, "\r\n", 2);
        memcpy(responder.oks + i * responder.ok_bytes, "+OK\r\n", 5);
    }
    return true;
}

static MAY_YIELD status
serve(void *arg)
{
    if (!prepare()) return ST_NO_MEMORY;
    struct io_listener *listener;
    status st = io_listen("127.0.0.1", responder.config.port, &EVENTS, NULL, &listener);
    if (ok(st)) {
        atomic_store(&responder.port, io_listener_port(listener));
        io_wait_stop();
        io_listener_close(listener);
    }
    mem_free(io_budget(), responder.bulks, responder.bulk_bytes * REPLIES_PREPARED);
    mem_free(io_budget(), responder.oks, responder.ok_bytes * REPLIES_PREPARED);
    return st;
}

static void
on_signal(int number)
{
    struct io_node *running = atomic_load(&node);
    if (running != NULL) io_node_stop(running);
}

status
responder_run(const struct responder_config *config, void (*listening)(u16 port, void *arg),
              void *arg)
{
    if (config->reply_bytes > REPLY_BYTES_MAX) return ST_TOO_LARGE;
    responder.config = *config;
    struct io_node_config node_config = {.shard_count = 1,
                                         .cores = config->pinned ? &config->core : NULL,
                                         .memory_bytes = MIB(256) + config->reply_bytes * 4096ull,
                                         .spin_us = config->spin_us,
                                         .shard_main = serve};
    struct io_node *started;
    status st = io_node_start(&node_config, &started);
    if (!ok(st)) return st;
    atomic_store(&node, started);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    while (atomic_load(&responder.port) == 0 && !io_node_ended(started))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    if (!io_node_ended(started)) listening(atomic_load(&responder.port), arg);
    st = io_node_join(started);
    atomic_store(&node, NULL);
    return st;
}
