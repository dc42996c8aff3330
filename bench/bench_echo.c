/* SPDX-License-Identifier: MIT
 *
 * bench_echo.c -- question: what does the runtime itself cost a request? One shard answers fixed
 * frames with themselves; a client in another thread keeps a number of frames in flight on each of
 * its connections. Expected on a 2.5 GHz Xeon, loopback, 32 connections, 64 bytes: the TCP stack
 * takes about 4.5 us of the server's time per frame without pipelining; with 32 frames in flight
 * some millions of frames a second.
 *
 *     bench_echo [connections] [frames in flight] [frame bytes] [seconds]
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/histogram.h"
#include "io/fiber.h"
#include "io/io.h"
#include "io/net.h"
#include "load/machine.h"

static u32 frame_bytes = 64;
static _Atomic u16 port;
static struct io_stats server_stats;

/* ---- the server ---- */

static status
echo_opened(struct io_conn *conn, void *arg)
{
    return ST_OK;
}

static size_t
echo_received(struct io_conn *conn, struct bytes data)
{
    size_t whole = data.size - data.size % frame_bytes;
    for (size_t at = 0; at < whole; at += frame_bytes) {
        if (!io_conn_write(conn, data.data + at, frame_bytes)) {
            io_conn_close(conn, IO_CLOSE_ABORT);
            break;
        }
    }
    return whole;
}

static void
echo_drained(struct io_conn *conn)
{
}

static void
echo_closed(struct io_conn *conn, status why)
{
}

static const struct io_conn_events events = {.opened = echo_opened,
                                             .received = echo_received,
                                             .drained = echo_drained,
                                             .closed = echo_closed};

static status
serve(void *arg)
{
    struct io_listener *listener;
    status st = io_listen("127.0.0.1", 0, &events, NULL, &listener);
    if (!ok(st)) return st;
    atomic_store(&port, io_listener_port(listener));
    io_wait_stop();
    io_stats_get(&server_stats);
    io_listener_close(listener);
    return ST_OK;
}

/* ---- the client ---- */

struct client {
    int fd;
    u64 sent_ns;
    size_t wanted; /* bytes of this round still to come */
};

static struct histogram latencies;

static void
client_round(struct client *client, const u8 *frames, size_t bytes)
{
    client->sent_ns = clock_now_ns();
    client->wanted = bytes;
    if (send(client->fd, frames, bytes, MSG_NOSIGNAL) != (ssize_t)bytes) {
        perror("send");
        exit(1);
    }
}

static u64
client_run(u32 conns, u32 depth, u64 duration_ns)
{
    size_t bytes = (size_t)depth * frame_bytes;
    u8 *frames = calloc(1, bytes);
    u8 *got = malloc(1 << 20);
    struct client *clients = calloc(conns, sizeof(*clients));
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atomic_load(&port))};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    for (u32 i = 0; i < conns; i++) {
        int one = 1;
        clients[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(clients[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        if (connect(clients[i].fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
            perror("connect");
            exit(1);
        }
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, clients[i].fd, &event);
    }
    for (u32 i = 0; i < conns; i++)
        client_round(&clients[i], frames, bytes);
    u64 done = 0;
    u64 end_ns = clock_now_ns() + duration_ns;
    while (clock_now_ns() < end_ns) {
        struct epoll_event ready[256];
        int count = epoll_wait(epoll_fd, ready, 256, 100);
        for (int i = 0; i < count; i++) {
            struct client *client = &clients[ready[i].data.u32];
            ssize_t n = recv(client->fd, got, 1 << 20, MSG_DONTWAIT);
            if (n <= 0) continue;
            client->wanted -= (size_t)n;
            if (client->wanted > 0) continue;
            histogram_record(&latencies, clock_now_ns() - client->sent_ns);
            done += depth;
            client_round(client, frames, bytes);
        }
    }
    for (u32 i = 0; i < conns; i++)
        close(clients[i].fd);
    close(epoll_fd);
    free(clients);
    free(frames);
    free(got);
    return done;
}

int
main(int argc, char **argv)
{
    u32 conns = argc > 1 ? (u32)atoi(argv[1]) : 32;
    u32 depth = argc > 2 ? (u32)atoi(argv[2]) : 1;
    frame_bytes = argc > 3 ? (u32)atoi(argv[3]) : 64;
    u64 seconds = argc > 4 ? (u64)atoi(argv[4]) : 3;
    if (conns == 0 || depth == 0 || frame_bytes == 0 || seconds == 0) return 2;

    u32 core = 0;
    struct io_node_config config = {.shard_count = 1,
                                    .cores = &core,
                                    .memory_bytes = MIB(256),
                                    .spin_us = 20,
                                    .shard_main = serve};
    struct io_node *node;
    if (!ok(io_node_start(&config, &node))) return 1;
    while (atomic_load(&port) == 0 && !io_node_ended(node))
        usleep(1000);
    u64 start_ns = clock_now_ns();
    u64 frames = client_run(conns, depth, seconds * NS_PER_S);
    u64 elapsed_ns = clock_now_ns() - start_ns;
    io_node_stop(node);
    if (!ok(io_node_join(node))) return 1;

    double per_second = (double)frames * 1e9 / (double)elapsed_ns;
    printf("connections=%u in_flight=%u bytes=%u frames_per_s=%.0f shard_us_per_frame=%.2f "
           "enters_per_frame=%.2f\n",
           conns, depth, frame_bytes, per_second,
           (double)server_stats.busy_ns / 1e3 / (double)frames,
           (double)server_stats.ring_enters / (double)frames);
    printf("round trip us: p50=%.1f p99=%.1f p99.9=%.1f max=%.1f\n",
           (double)histogram_percentile(&latencies, 500000) / 1e3,
           (double)histogram_percentile(&latencies, 990000) / 1e3,
           (double)histogram_percentile(&latencies, 999000) / 1e3, (double)latencies.max / 1e3);
    return 0;
}
