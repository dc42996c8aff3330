/* SPDX-License-Identifier: MIT
 *
 * client_hostile.c -- somebody who means no good: garbage, half a request and then silence, lengths
 * that overflow, frames with a wrong checksum, good requests that are damaged on the way, many
 * connections, replies that nobody reads.
 *
 * Nothing that it is answered is judged. What is demanded: the node lives on, keeps within its
 * memory, and the others are served and their keys untouched. So it touches no key of theirs: its
 * good requests are to keys of its own, in a keyspace that nobody counts.
 */
#include "client.h"

#include <stdio.h>

#include "proto/native.h"

#define SERVER_HOST "10.0.0.1"
#define SERVER_PORT 8080

static size_t
hostile_received(struct io_conn *conn, struct bytes data)
{
    struct client *client = io_conn_user(conn);
    client->received_bytes += data.size;
    return data.size;
}

static status
hostile_opened(struct io_conn *conn, void *arg)
{
    struct client *client = arg;
    io_conn_user_set(conn, client);
    client->conn = conn;
    return ST_OK;
}

static void
hostile_drained(struct io_conn *conn)
{
    (void)conn;
}

static void
hostile_closed(struct io_conn *conn, status why)
{
    struct client *client = io_conn_user(conn);
    (void)why;
    client->conn = NULL;
}

static const struct io_conn_events hostile_events = {
    .opened = hostile_opened,
    .received = hostile_received,
    .drained = hostile_drained,
    .closed = hostile_closed,
};

static void
add(struct client *client, const char *text)
{
    text_add(&client->out, text, strlen(text));
}

static void
garbage_add(struct client *client, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        u8 byte = (u8)prng_u64(&client->prng);
        text_add(&client->out, &byte, 1);
    }
}

/* A good frame, or one with a byte changed, or with a length of its own. */
static void
frame_add(struct client *client)
{
    struct native_request request;
    memset(&request, 0, sizeof(request));
    struct buf out;
    buf_init(&out, io_budget());
    request.header.keyspace = 15;
    request.header.request_id = prng_u64(&client->prng);
    request.header.opcode = prng_chance(&client->prng, 1, 2) ? NATIVE_PUT : NATIVE_GET;
    if (request.header.opcode == NATIVE_PUT) {
        request.op.kind = NATIVE_OP_PUT;
        request.op.key = BYTES_LITERAL("hostile");
        request.op.value = BYTES_LITERAL("value");
    } else {
        request.get.key = BYTES_LITERAL("hostile");
    }
    if (native_request_encode(&out, &request)) {
        u64 draw = prng_below(&client->prng, 4);
        if (draw == 0) out.data[prng_below(&client->prng, out.size)] ^= 0x40;
        if (draw == 1) store_u32(out.data + 28, (u32)prng_u64(&client->prng)); /* the body's size */
        size_t size = draw == 2 ? prng_below(&client->prng, out.size) : out.size;
        text_add(&client->out, out.data, size);
    }
    buf_deinit(&out);
}

static void
words_add(struct client *client)
{
    static const char *const lines[] = {
        "*-1\r\n",
        "*2147483647\r\n$3\r\nGET\r\n",
        "*99999999999999999999\r\n",
        "*1\r\n$-5\r\n",
        "*1\r\n$4294967296\r\nx\r\n",
        "*1\r\n$536870912\r\nPING\r\n",
        "*3\r\n$3\r\nSET\r\n$7\r\nhostile\r\n$1048577\r\n",
        "*2\r\n$3\r\nGET\r\n$7\r\nhost",
        "*1\r\n+PING\r\n",
        "\"unbalanced\r\n",
        "\r\n\r\n\r\n",
        "GET\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        "SELECT 15\r\nSET hostile value\r\nAPPEND hostile more\r\nGET hostile\r\n",
        "SELECT 15\r\nMULTI\r\nSET hostile value\r\nNOSUCH\r\nEXEC\r\n",
        "SELECT 15\r\nWATCH hostile\r\nMULTI\r\nGET hostile\r\n",
        "MONITOR\r\n",
        "CLIENT REPLY OFF\r\nPING\r\nPING\r\n",
        "HELLO 7\r\nAUTH a b\r\n",
        "EVAL x 0\r\nSUBSCRIBE a\r\n",
        "SELECT 99\r\nSCAN 18446744073709551615 COUNT 1\r\n",
        "SCAN 4095 COUNT 100000\r\n",
        "OBJECT FREQ x\r\nMEMORY USAGE x\r\nDEBUG SLEEP 9\r\n",
    };
    add(client, lines[prng_below(&client->prng, ARRAY_COUNT(lines))]);
}

static void
attack_draw(struct client *client)
{
    client->out.size = 0;
    u64 draw = prng_below(&client->prng, 6);
    if (draw == 0) {
        garbage_add(client, (size_t)prng_range(&client->prng, 1, 3000));
    } else if (draw < 3) {
        for (u64 i = prng_range(&client->prng, 1, 30); i > 0; i--)
            frame_add(client);
    } else if (draw < 5) {
        for (u64 i = prng_range(&client->prng, 1, 4); i > 0; i--)
            words_add(client);
    } else { /* much to be answered, which nobody will read */
        add(client, "SELECT 15\r\n");
        for (u64 i = prng_range(&client->prng, 1, 300); i > 0; i--)
            add(client, "COMMAND\r\n");
    }
}

void
client_hostile_main(void *arg)
{
    struct client *client = arg;
    fiber_queue_init(&client->queue);
    while (!run->stop && !run_over()) {
        struct io_conn *conn;
        fiber_sleep_ns(prng_range(&client->prng, NS_PER_MS, 300 * NS_PER_MS));
        if (run->calm) continue;
        if (!ok(io_connect(SERVER_HOST, SERVER_PORT, &hostile_events, client,
                           io_now_ns() + NS_PER_S, &conn)))
            continue;
        run->stats.hostile++;
        attack_draw(client);
        bool reads = prng_chance(&client->prng, 1, 2);
        if (client->conn != NULL && !reads) io_conn_pause(client->conn);
        if (client->conn != NULL && client->out.size > 0 &&
            !io_conn_write(client->conn, client->out.data, client->out.size))
            io_conn_close(client->conn, IO_CLOSE_ABORT);
        fiber_sleep_ns(prng_below(
            &client->prng, prng_chance(&client->prng, 1, 4) ? 5 * NS_PER_S : 50 * NS_PER_MS));
        if (client->conn != NULL)
            io_conn_close(client->conn,
                          prng_chance(&client->prng, 1, 2) ? IO_CLOSE_ABORT : IO_CLOSE_FLUSH);
        while (client->conn != NULL)
            fiber_sleep_ns(5 * NS_PER_MS);
    }
    run->clients_running--;
}
