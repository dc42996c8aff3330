/* SPDX-License-Identifier: MIT
 *
 * test_ring_net.c -- connections of the real backend, against ordinary sockets of the test's own
 * thread and against io_connect.
 *
 * The server under test answers lines: "e<text>" comes back as it is; "w<digits>" announces that
 * many bytes after the line, which are wanted whole and answered with their sum; the other letters
 * are explained at line_handle.
 */
#include "ring_fixture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fault_count.h"
#include "io/fiber.h"
#include "io/net.h"
#include "io/timer.h"

/* ---- the server ---- */

struct session {
    struct io_conn *conn;
    struct io_timer timer;
    u32 drained;
    u32 agains;
    bool flooding;
};

static _Atomic u16 port;
static _Atomic u32 open_sessions;
static _Atomic u32 closed_sessions;
static _Atomic int last_why;
static _Atomic u64 budget_used;
static _Atomic u64 budget_used_max;
static _Atomic u64 receive_stalls;
static _Atomic bool refuse_all;
static _Atomic bool may_go_on;
static struct list taken; /* the shard's */

struct taken {
    struct list link;
    size_t size;
};

static void
session_timer(struct io_timer *timer)
{
    struct session *session = CONTAINER_OF(timer, struct session, timer);
    io_conn_resume(session->conn);
    io_conn_send_until(session->conn, UINT64_MAX);
}

static status
session_opened(struct io_conn *conn, void *arg)
{
    EXPECT(arg == &port || arg == NULL);
    if (refuse_all) return ST_OVERLOADED;
    struct session *session = mem_alloc_zero(io_budget(), sizeof(*session));
    if (session == NULL) return ST_NO_MEMORY;
    session->conn = conn;
    io_timer_init(&session->timer, session_timer);
    io_conn_user_set(conn, session);
    atomic_fetch_add(&open_sessions, 1);
    return ST_OK;
}

static void
session_closed(struct io_conn *conn, status why)
{
    struct session *session = io_conn_user(conn);
    io_timer_cancel(&session->timer);
    mem_free(io_budget(), session, sizeof(*session));
    atomic_store(&last_why, why.code);
    atomic_fetch_sub(&open_sessions, 1);
    atomic_fetch_add(&closed_sessions, 1);
}

static void
flood(struct session *session)
{
    static const u8 block[8192] = {'x'};
    while (io_conn_pending(session->conn) < 2 * CONN_OUTPUT_HIGH_BYTES)
        EXPECT(io_conn_write(session->conn, block, sizeof(block)));
}

static void
session_drained(struct io_conn *conn)
{
    struct session *session = io_conn_user(conn);
    session->drained++;
    if (session->flooding && session->drained < 20) {
        flood(session);
    } else if (session->flooding) {
        session->flooding = false;
        EXPECT(io_conn_write(conn, "!", 1));
    }
}

/* Returns the bytes consumed; 0: the line is not all there. */
static size_t
line_handle(struct session *session, struct bytes data)
{
    struct io_conn *conn = session->conn;
    const u8 *end = memchr(data.data, '\n', data.size);
    if (end == NULL) return 0;
    size_t line = (size_t)(end - data.data) + 1;
    switch (data.data[0]) {
    case 'w': { /* the bytes that follow, whole */
        size_t body = (size_t)atol((const char *)data.data + 1);
        if (data.size < line + body) {
            io_conn_want(conn, line + body);
            return 0;
        }
        u64 sum = 0;
        for (size_t i = 0; i < body; i++)
            sum += data.data[line + i];
        char text[32];
        int size = snprintf(text, sizeof(text), "%llu\n", (unsigned long long)sum);
        EXPECT(io_conn_write(conn, text, (size_t)size));
        return line + body;
    }
    case 'p': /* pauses 20 ms, then goes on */
        io_conn_pause(conn);
        io_timer_arm(&session->timer, io_now_ns() + 20 * NS_PER_MS);
        EXPECT(io_conn_write(conn, "paused\n", 7));
        return line;
    case 'h': /* holds what follows for 20 ms */
        EXPECT(io_conn_write(conn, "before\n", 7));
        io_conn_send_until(conn, io_conn_written(conn));
        EXPECT(io_conn_write(conn, "after\n", 6));
        io_timer_arm(&session->timer, io_clock_ns() + 20 * NS_PER_MS);
        return line;
    case 'f': /* a flood with back-pressure, ended by '!' */
        session->flooding = true;
        flood(session);
        return line;
    case 'q': /* a last reply, then the end */
        EXPECT(io_conn_write(conn, "bye\n", 4));
        io_conn_close(conn, IO_CLOSE_FLUSH);
        return line;
    case 'a':
        io_conn_close(conn, IO_CLOSE_ABORT);
        return line;
    case 'n': {
        char name[64];
        io_conn_peer_name(conn, name, sizeof(name) - 1);
        strcat(name, "\n");
        EXPECT(io_conn_write(conn, name, strlen(name)));
        return line;
    }
    case 'm': /* takes all of the memory, and says so with the last of it */
        EXPECT(io_conn_write(conn, "taken\n", 6));
        list_init(&taken);
        for (size_t size = MIB(1); size >= 32; size /= 2) {
            struct taken *block;
            while ((block = mem_alloc(io_budget(), size)) != NULL) {
                block->size = size;
                list_push_back(&taken, &block->link);
            }
        }
        return line;
    case 'g': { /* gives it back */
        struct list *node;
        while ((node = list_pop_front(&taken)) != NULL) {
            struct taken *block = list_entry(node, struct taken, link);
            mem_free(io_budget(), block, block->size);
        }
        EXPECT(io_conn_write(conn, "given\n", 6));
        return line;
    }
    case 'b': /* busy until the test says so: meanwhile nothing is received */
        while (!atomic_load(&may_go_on))
            ;
        return line;
    case 's': /* nothing */
        return line;
    default:
        EXPECT(io_conn_write(conn, data.data, line));
        return line;
    }
}

static size_t
session_received(struct io_conn *conn, struct bytes data)
{
    struct session *session = io_conn_user(conn);
    size_t consumed = 0;
    for (u32 lines = 0; consumed < data.size; lines++) {
        if (lines == 100) { /* as if the quota were over */
            session->agains++;
            io_conn_again(conn);
            break;
        }
        size_t used = line_handle(session, BYTES(data.data + consumed, data.size - consumed));
        if (used == 0) break;
        consumed += used;
    }
    return consumed;
}

static void
session_crowded(struct io_conn *conn, enum io_crowd what, struct bytes input)
{
    (void)input;
    if (what == IO_CROWD_HOLDS_UP) io_conn_close(conn, IO_CLOSE_ABORT);
}

static const struct io_conn_events events = {.opened = session_opened,
                                             .received = session_received,
                                             .drained = session_drained,
                                             .closed = session_closed,
                                             .crowded = session_crowded,
                                             .refusal = BYTES("full\n", 5)};

static status
main_serves(void *arg)
{
    struct io_listener *listener;
    status st = io_listen(arg, atomic_load(&port), &events, &port, &listener);
    if (!ok(st)) return st;
    atomic_store(&port, io_listener_port(listener));
    io_wait_stop();
    struct io_stats stats;
    io_stats_get(&stats);
    EXPECT(stats.cq_overflows == 0);
    atomic_store(&receive_stalls, stats.receive_stalls);
    atomic_store(&budget_used, io_budget()->used_bytes - io_budget()->spare_bytes);
    atomic_store(&budget_used_max, io_budget()->used_bytes_max);
    io_listener_close(listener);
    return ST_OK;
}

static struct io_node *
server_start(const char *host)
{
    static char address[64];
    snprintf(address, sizeof(address), "%s", host);
    atomic_store(&ring_failures, 0);
    atomic_store(&port, 0);
    atomic_store(&open_sessions, 0);
    atomic_store(&closed_sessions, 0);
    atomic_store(&last_why, -1);
    struct io_node_config config = ring_config(1, main_serves, address);
    struct io_node *node;
    assert_true(ok(io_node_start(&config, &node)));
    for (u32 i = 0; i < 60000 && atomic_load(&port) == 0; i++)
        usleep(1000);
    assert_int_not_equal(atomic_load(&port), 0);
    return node;
}

static void
server_stop(struct io_node *node)
{
    io_node_stop(node);
    status st = io_node_join(node);
    assert_int_equal(st.code, SC_OK);
    assert_int_equal(atomic_load(&ring_failures), 0);
    assert_int_equal(atomic_load(&open_sessions), 0);
}

/* ---- the client: plain blocking sockets with a time limit ---- */

static int
client_connect(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atomic_load(&port))};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    struct timeval limit = {.tv_sec = 60};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void
client_send(int fd, const void *data, size_t size)
{
    const u8 *at = data;
    while (size > 0) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
        assert_true(sent > 0);
        at += sent;
        size -= (size_t)sent;
    }
}

static void
client_expect(int fd, const char *text)
{
    char got[256] = {0};
    size_t size = strlen(text);
    assert_true(size < sizeof(got));
    assert_int_equal(recv(fd, got, size, MSG_WAITALL), (ssize_t)size);
    assert_string_equal(got, text);
}

static void
client_expect_end(int fd)
{
    char byte;
    assert_int_equal(recv(fd, &byte, 1, 0), 0);
}

static void
wait_closed(u32 count)
{
    for (u32 i = 0; i < 60000 && atomic_load(&closed_sessions) < count; i++)
        usleep(1000);
    assert_int_equal(atomic_load(&closed_sessions), count);
}

/* ---- tests ---- */

static void
bytes_come_back_in_whatever_pieces_they_arrive(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    client_send(fd, "ehello\n", 7);
    client_expect(fd, "ehello\n");
    for (const char *at = "eslow\n"; *at != '\0'; at++) {
        client_send(fd, at, 1);
        usleep(2000);
    }
    client_expect(fd, "eslow\n");
    int on = 0;
    socklen_t length = sizeof(on);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &length), 0);
    client_send(fd, "n\n", 2);
    client_expect(fd, "127.0.0.1:");
    char rest[16];
    assert_true(recv(fd, rest, sizeof(rest), 0) > 1); /* unread bytes would make a reset of it */
    close(fd);
    wait_closed(1);
    assert_int_equal(atomic_load(&last_why), SC_OK);
    server_stop(node);
}

#define PIPELINED 20000u

static void
a_pipeline_is_answered_in_order(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    static char sent[PIPELINED * 16], got[PIPELINED * 16];
    size_t size = 0;
    for (u32 i = 0; i < PIPELINED; i++)
        size += (size_t)snprintf(sent + size, sizeof(sent) - size, "e%u\n", i);
    /* Both directions at once, or the two would wait for each other. */
    size_t wrote = 0, read = 0;
    while (read < size) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN | (wrote < size ? POLLOUT : 0)};
        assert_int_equal(poll(&poll_fd, 1, 20000), 1);
        if (poll_fd.revents & POLLOUT) {
            ssize_t n = send(fd, sent + wrote, size - wrote, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n > 0) wrote += (size_t)n;
        }
        if (poll_fd.revents & POLLIN) {
            ssize_t n = recv(fd, got + read, sizeof(got) - read, MSG_DONTWAIT);
            assert_true(n > 0);
            read += (size_t)n;
        }
    }
    assert_int_equal(read, size);
    assert_memory_equal(sent, got, size);
    close(fd);
    server_stop(node);
}

static void
a_large_frame_is_received_whole(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    static const size_t sizes[] = {1, 100, 8192, 100000, 3 << 20, 15 << 20};
    u8 *body = malloc(15 << 20);
    assert_non_null(body);
    for (u32 round = 0; round < 2; round++) {
        for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
            u64 sum = 0;
            for (size_t at = 0; at < sizes[i]; at++) {
                body[at] = (u8)(at * 7 + i);
                sum += body[at];
            }
            char line[64], reply[64];
            client_send(fd, line, (size_t)snprintf(line, sizeof(line), "w%zu\n", sizes[i]));
            client_send(fd, body, sizes[i]);
            client_send(fd, "enext\n", 6);
            snprintf(reply, sizeof(reply), "%llu\nenext\n", (unsigned long long)sum);
            client_expect(fd, reply);
        }
    }
    free(body);
    close(fd);
    server_stop(node);
}

static void
a_paused_session_goes_on_where_it_was(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    client_send(fd, "p\ne1\ne2\n", 8);
    client_expect(fd, "paused\n");
    client_send(fd, "e3\n", 3);
    client_expect(fd, "e1\ne2\ne3\n");
    client_send(fd, "p\n", 2);
    client_expect(fd, "paused\n");
    usleep(50 * 1000);
    client_send(fd, "e4\n", 3);
    client_expect(fd, "e4\n");
    close(fd);
    server_stop(node);
}

/* As the shard's. */
static u64
clock_ns(void)
{
    struct timespec now;
    assert_int_equal(clock_gettime(CLOCK_MONOTONIC, &now), 0);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

static void
held_output_goes_when_it_is_released(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    /* On a busy machine we may look later than it is held for: of some times once. */
    bool held = false;
    for (u32 i = 0; i < 20; i++) {
        u64 begun_ns = clock_ns();
        client_send(fd, "h\n", 2);
        client_expect(fd, "before\n");
        char byte;
        held |= recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == -1;
        client_expect(fd, "after\n");
        assert_true(clock_ns() - begun_ns >= 20 * NS_PER_MS);
    }
    assert_true(held);
    int half = client_connect();
    client_send(half, "h\n", 2);
    shutdown(half, SHUT_WR); /* such a client still reads */
    client_expect(half, "before\nafter\n");
    client_expect_end(half);
    close(half);
    wait_closed(1);
    client_send(fd, "h\nq\n", 4); /* held output is dropped by the end */
    client_expect(fd, "before\n");
    client_expect_end(fd);
    close(fd);
    wait_closed(2);
    server_stop(node);
}

static status
main_listens_where_another_does(void *arg)
{
    struct io_listener *listener;
    EXPECT(
        status_is(io_listen("127.0.0.1", atomic_load(&port), &events, NULL, &listener), ST_EXISTS));
    return ST_OK;
}

static void
a_second_node_cannot_share_the_port(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    ring_run_main(1, main_listens_where_another_does, NULL);
    server_stop(node);
}

static void
a_slow_reader_holds_only_its_own_output(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int slow = client_connect();
    client_send(slow, "f\n", 2);
    usleep(50 * 1000);
    int fast = client_connect();
    client_send(fast, "ehere\n", 6);
    client_expect(fast, "ehere\n");
    static char block[1 << 16];
    u64 total = 0;
    char last = 0;
    while (last != '!') {
        ssize_t n = recv(slow, block, sizeof(block), 0);
        assert_true(n > 0);
        total += (u64)n;
        last = block[n - 1];
    }
    assert_true(total > 20 * CONN_OUTPUT_HIGH_BYTES);
    close(slow);
    close(fast);
    server_stop(node);
}

static void
a_client_that_never_reads_is_cut_off_at_the_end(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    client_send(fd, "f\n", 2);
    usleep(20 * 1000);
    server_stop(node); /* main returns; what is left is aborted */
    close(fd);
}

static void
the_last_reply_arrives_although_more_was_sent(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    for (u32 i = 0; i < 20; i++) {
        int fd = client_connect();
        static const char junk[20000] = "q\nignored";
        client_send(fd, junk, sizeof(junk));
        client_expect(fd, "bye\n");
        client_expect_end(fd);
        close(fd);
    }
    wait_closed(20);
    int fd = client_connect();
    client_send(fd, "a\n", 2);
    char byte;
    assert_true(recv(fd, &byte, 1, 0) <= 0);
    close(fd);
    wait_closed(21);
    server_stop(node);
}

#define SPARE_CONNS 100u

static void
look_at_memory(void *arg)
{
    *(u64 *)arg = io_budget()->used_bytes;
}

static u64
memory_used(struct io_node *node)
{
    u64 used = 0;
    assert_true(ok(io_node_call(node, 0, look_at_memory, &used)));
    return used;
}

/* A few of the chunks that replies were in are kept, until the last connection has gone. */
static void
memory_of_replies_is_kept_within_bounds_and_given_back(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fds[SPARE_CONNS];
    close(client_connect());
    wait_closed(1);
    u64 none = memory_used(node);
    for (u32 i = 0; i < SPARE_CONNS; i++)
        fds[i] = client_connect();
    client_send(fds[0], "ex\n", 3);
    client_expect(fds[0], "ex\n");
    u64 idle = memory_used(node);
    for (u32 round = 0; round < 5; round++) {
        for (u32 i = 0; i < SPARE_CONNS; i++)
            client_send(fds[i], "ex\n", 3);
        for (u32 i = 0; i < SPARE_CONNS; i++)
            client_expect(fds[i], "ex\n");
    }
    u64 kept = memory_used(node);
    assert_true(kept <= idle + SPARE_CONNS * KIB(4));
    for (u32 i = 0; i < SPARE_CONNS; i++)
        close(fds[i]);
    wait_closed(1 + SPARE_CONNS);
    assert_int_equal(memory_used(node), none);
    server_stop(node);
}

static void
a_reset_is_told(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    client_send(fd, "ex\n", 3);
    client_expect(fd, "ex\n");
    struct linger hard = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    close(fd);
    wait_closed(1);
    assert_int_equal(atomic_load(&last_why), SC_CLOSED);
    server_stop(node);
}

static void
a_session_that_refuses_is_never_told_closed(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    refuse_all = true;
    int fd = client_connect();
    client_expect_end(fd);
    close(fd);
    refuse_all = false;
    assert_int_equal(atomic_load(&closed_sessions), 0);
    server_stop(node);
}

/* For its connection, or for its session: it reads why it is closed all the same. */
static void
who_finds_no_memory_is_told_so_and_closed(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int first = client_connect();
    client_send(first, "m\n", 2);
    client_expect(first, "taken\n");
    for (u32 i = 0; i < 20; i++) {
        int fd = client_connect();
        client_expect(fd, "full\n");
        client_expect_end(fd);
        close(fd);
    }
    u64 used; /* the operator has figures all the same */
    assert_true(ok(io_node_ask(node, 0, look_at_memory, &used)));
    client_send(first, "g\n", 2);
    client_expect(first, "given\n");
    int fd = client_connect();
    client_send(fd, "ehere\n", 6);
    client_expect(fd, "ehere\n");
    close(fd);
    close(first);
    wait_closed(2);
    server_stop(node);
}

/* ---- room for large frames ---- */

#define ROOM_FRAME (12u << 20) /* a second one finds no room beside it */

static u64 waiting_seen;

static void
waiting_look(void *arg)
{
    (void)arg;
    struct io_stats stats;
    io_stats_get(&stats);
    waiting_seen = stats.connections_waiting;
}

static void
waiting_expect(struct io_node *node, u64 count)
{
    for (u32 i = 0; i < 60000; i++) {
        assert_true(ok(io_node_ask(node, 0, waiting_look, NULL)));
        if (waiting_seen == count) return;
        usleep(1000);
    }
    assert_int_equal(waiting_seen, count);
}

/* The line that asks for so many bytes, and some of them. */
static void
frame_begin(int fd, u32 size, u32 part)
{
    static const u8 ones[ROOM_FRAME] = {0};
    char line[32];
    client_send(fd, line, (size_t)snprintf(line, sizeof(line), "w%u\n", size));
    client_send(fd, ones, part);
}

static void
who_finds_no_room_for_a_large_frame_waits_for_it(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fds[4];
    for (u32 i = 0; i < 4; i++)
        fds[i] = client_connect();
    frame_begin(fds[0], ROOM_FRAME, ROOM_FRAME - 1000);
    frame_begin(fds[1], ROOM_FRAME, 20000);
    waiting_expect(node, 1);
    frame_begin(fds[2], 100000, 20000); /* would fit, but is not the first */
    waiting_expect(node, 2);
    client_send(fds[3], "esmall\n", 7);
    client_expect(fds[3], "esmall\n");
    u8 rest[1000] = {0};
    client_send(fds[0], rest, sizeof(rest));
    client_expect(fds[0], "0\n");
    static const u8 more[ROOM_FRAME - 20000] = {0};
    client_send(fds[1], more, sizeof(more));
    client_send(fds[2], more, 80000);
    client_expect(fds[1], "0\n");
    client_expect(fds[2], "0\n");
    waiting_expect(node, 0);
    for (u32 i = 0; i < 4; i++)
        close(fds[i]);
    wait_closed(4);
    server_stop(node);
    assert_true(atomic_load(&budget_used_max) < MIB(30));
}

static void
who_holds_room_that_others_wait_for_is_cut_off(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int half = client_connect(), gone = client_connect(), fd = client_connect();
    frame_begin(half, ROOM_FRAME, ROOM_FRAME / 2);
    usleep(2500 * 1000);
    assert_int_equal(atomic_load(&closed_sessions), 0); /* nobody waits */
    frame_begin(gone, ROOM_FRAME, 20000);
    waiting_expect(node, 1);
    close(gone); /* and is served first */
    frame_begin(fd, ROOM_FRAME, ROOM_FRAME);
    client_expect(fd, "0\n");
    wait_closed(2);
    close(half);
    close(fd);
    wait_closed(3);
    server_stop(node);
}

static void
who_waits_for_room_ends_with_the_node(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int half = client_connect(), fd = client_connect();
    frame_begin(half, ROOM_FRAME, ROOM_FRAME / 2);
    frame_begin(fd, ROOM_FRAME, 20000);
    waiting_expect(node, 1);
    server_stop(node);
    close(half);
    close(fd);
}

#define IDLE_CONNS 1000u

static void
idle_connections_cost_little(void **state)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < 3 * IDLE_CONNS) skip();
    struct io_node *node = server_start("127.0.0.1");
    static int fds[IDLE_CONNS];
    for (u32 i = 0; i < IDLE_CONNS; i++)
        fds[i] = client_connect();
    /* More senders at once than there are receive buffers. */
    for (u32 round = 0; round < 3; round++) {
        for (u32 i = 0; i < IDLE_CONNS; i++)
            client_send(fds[i], "eping\n", 6);
        for (u32 i = 0; i < IDLE_CONNS; i++)
            client_expect(fds[i], "eping\n");
    }
    assert_int_equal(atomic_load(&open_sessions), IDLE_CONNS);
    io_node_stop(node);
    status st = io_node_join(node);
    assert_true(ok(st));
    for (u32 i = 0; i < IDLE_CONNS; i++)
        close(fds[i]);
    assert_int_equal(atomic_load(&closed_sessions), IDLE_CONNS);
    /* Rings, tables and receive buffers are 2 MiB at most; the rest are connections. */
    assert_true(atomic_load(&budget_used) < MIB(2) + IDLE_CONNS * KIB(2));
}

#define FAST_LINES 40000u
#define FAST_LINE  1000u

/* The session takes 100 lines a turn and asks to be called again; the client never stops. */
static void
a_fast_sender_does_not_pile_up_input(void **state)
{
    struct io_node *node = server_start("127.0.0.1");
    int fd = client_connect();
    static char lines[100 * FAST_LINE];
    memset(lines, 's', sizeof(lines));
    for (u32 i = 0; i < 100; i++)
        lines[(i + 1) * FAST_LINE - 1] = '\n';
    for (u32 i = 0; i < FAST_LINES / 100; i++)
        client_send(fd, lines, sizeof(lines));
    client_send(fd, "edone\n", 6);
    client_expect(fd, "edone\n");
    io_node_stop(node);
    status st = io_node_join(node);
    assert_true(ok(st));
    close(fd);
    assert_int_equal(atomic_load(&ring_failures), 0);
    /* Rings and buffers 2 MiB; one pool of buffers that arrived at once, in a buffer that doubles.
     */
    assert_true(atomic_load(&budget_used_max) < MIB(8));
}

/* More arrives while the shard is busy than it has buffers to receive into: 1 MiB of them. Whoever
 * finds none is served once some are free. */
static void
who_finds_no_buffer_to_receive_into_waits_for_one(void **state)
{
    enum { CLIENTS = 40 };
    struct io_node *node = server_start("127.0.0.1");
    int fds[CLIENTS];
    for (u32 i = 0; i < CLIENTS; i++) {
        fds[i] = client_connect();
        client_send(fds[i], "ehello\n", 7);
        client_expect(fds[i], "ehello\n");
    }
    atomic_store(&may_go_on, false);
    client_send(fds[0], "b\n", 2);
    static char lines[60 * FAST_LINE]; /* what the kernel keeps for a connection */
    memset(lines, 's', sizeof(lines));
    for (u32 i = 0; i < 60; i++)
        lines[(i + 1) * FAST_LINE - 1] = '\n';
    for (u32 i = 0; i < CLIENTS; i++) {
        client_send(fds[i], lines, sizeof(lines));
        client_send(fds[i], "edone\n", 6);
    }
    atomic_store(&may_go_on, true);
    for (u32 i = 0; i < CLIENTS; i++) {
        client_expect(fds[i], "edone\n");
        close(fds[i]);
    }
    wait_closed(CLIENTS);
    server_stop(node);
    assert_true(atomic_load(&receive_stalls) > 0);
}

#define FEW_DESCRIPTORS 64

/* In a process of its own, whose limit is low from the start. Returns its exit code. */
static int
out_of_descriptors_child(void)
{
    struct rlimit few = {.rlim_cur = FEW_DESCRIPTORS, .rlim_max = FEW_DESCRIPTORS};
    if (setrlimit(RLIMIT_NOFILE, &few) != 0) return 1;
    static char address[] = "127.0.0.1";
    struct io_node_config config = ring_config(1, main_serves, address);
    struct io_node *node;
    if (!ok(io_node_start(&config, &node))) return 2;
    while (atomic_load(&port) == 0)
        usleep(1000);
    /* Both ends take one each. Whether the last one that connects is still accepted depends on how
     * many descriptors this process inherited: when it was, a spare one makes room for one more
     * that is connected only. */
    int spare = dup(STDERR_FILENO);
    if (spare < 0) return 8;
    int fds[FEW_DESCRIPTORS];
    u32 count = 0;
    bool spare_used = false;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atomic_load(&port))};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    while (count < FEW_DESCRIPTORS) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0) {
            usleep(250 * 1000);
            if (spare_used || atomic_load(&open_sessions) < count) break;
            spare_used = true;
            close(spare);
            continue;
        }
        fds[count++] = fd;
        if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) return 3;
        usleep(2000);
    }
    if (atomic_load(&open_sessions) >= count) return 4;
    for (u32 i = 0; i < 4; i++)
        close(fds[i]);
    /* Now there is room, and all the others are served. */
    for (u32 i = 4; i < count; i++) {
        char got[8] = {0};
        struct timeval limit = {.tv_sec = 60};
        setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
        if (send(fds[i], "elate\n", 6, MSG_NOSIGNAL) != 6) return 5;
        if (recv(fds[i], got, 6, MSG_WAITALL) != 6 || strcmp(got, "elate\n") != 0) return 6;
    }
    io_node_stop(node);
    return ok(io_node_join(node)) ? 0 : 7;
}

static void
out_of_descriptors_the_listener_waits_and_goes_on(void **state)
{
    atomic_store(&port, 0);
    atomic_store(&open_sessions, 0);
    atomic_store(&ring_failures, 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(out_of_descriptors_child() + (int)atomic_load(&ring_failures) * 16);
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_int_equal(how, 0);
}

/* ---- connecting ---- */

static struct io_conn *outgoing;
static char answer[64];
static size_t answer_size;
static struct fiber_queue answer_queue;
static bool outgoing_closed;

static status
outgoing_opened(struct io_conn *conn, void *arg)
{
    EXPECT(arg == answer);
    return ST_OK;
}

static size_t
outgoing_received(struct io_conn *conn, struct bytes data)
{
    EXPECT(data.size <= sizeof(answer) - answer_size);
    memcpy(answer + answer_size, data.data, data.size);
    answer_size += data.size;
    fiber_queue_wake_all(&answer_queue);
    return data.size;
}

static void
outgoing_drained(struct io_conn *conn)
{
}

static void
outgoing_ended(struct io_conn *conn, status why)
{
    outgoing_closed = true;
    fiber_queue_wake_all(&answer_queue);
}

static const struct io_conn_events outgoing_events = {.opened = outgoing_opened,
                                                      .received = outgoing_received,
                                                      .drained = outgoing_drained,
                                                      .closed = outgoing_ended};

static status
main_connects(void *arg)
{
    const char *host = arg;
    fiber_queue_init(&answer_queue);
    answer_size = 0;
    outgoing_closed = false;
    atomic_store(&port, 0);
    struct io_listener *listener, *second;
    status st = io_listen(host, 0, &events, NULL, &listener);
    if (!ok(st)) return st;
    u16 at = io_listener_port(listener);
    EXPECT(ok(io_listen(host, at, &events, NULL, &second))); /* another shard would do the same */
    io_listener_close(second);
    u64 deadline = io_now_ns() + 60 * NS_PER_S;
    EXPECT(ok(io_connect(host, at, &outgoing_events, answer, deadline, &outgoing)));
    EXPECT(io_conn_write(outgoing, "eover there\n", 12));
    while (answer_size < 12)
        EXPECT(ok(fiber_queue_wait(&answer_queue, deadline)));
    EXPECT(memcmp(answer, "eover there\n", 12) == 0);
    io_conn_close(outgoing, IO_CLOSE_FLUSH);
    while (!outgoing_closed)
        EXPECT(ok(fiber_queue_wait(&answer_queue, deadline)));
    io_listener_close(listener);
    EXPECT(
        status_is(io_connect(host, at, &outgoing_events, answer, deadline, &outgoing), ST_CLOSED));
    EXPECT(status_is(io_connect("nonsense", at, &outgoing_events, answer, deadline, &outgoing),
                     ST_INVALID));
    EXPECT(status_is(io_listen("300.1.1.1", 0, &events, NULL, &listener), ST_INVALID));
    return ST_OK;
}

static void
shards_connect_over_ipv4_and_ipv6(void **state)
{
    static char v4[] = "127.0.0.1", v6[] = "::1";
    ring_run_main(1, main_connects, v4);
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    bool have = fd >= 0 && bind(fd, (struct sockaddr *)&loopback, sizeof(loopback)) == 0;
    if (fd >= 0) close(fd);
    if (have)
        ring_run_main(1, main_connects, v6);
    else
        print_message("IPv6 left out: no ::1 here\n");
}

/* A listener of loopback whose queue is full answers nobody. */
static status
main_connects_in_vain(void *arg)
{
    (void)arg;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(listener >= 0 && bind(listener, (struct sockaddr *)&address, length) == 0);
    EXPECT(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    EXPECT(listen(listener, 0) == 0);
    int waiting[4];
    for (u32 i = 0; i < ARRAY_COUNT(waiting); i++) {
        waiting[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(waiting[i], (struct sockaddr *)&address, length);
    }
    u16 at = ntohs(address.sin_port);
    u64 begun_ns = io_now_ns(), deadline_ns = begun_ns + 100 * NS_PER_MS;
    status st = io_connect("127.0.0.1", at, &outgoing_events, answer, deadline_ns, &outgoing);
    EXPECT(status_is(st, ST_TIMED_OUT));
    EXPECT(io_now_ns() >= deadline_ns);
    for (u32 i = 0; i < ARRAY_COUNT(waiting); i++)
        close(waiting[i]);
    close(listener);

    struct rlimit limit, none;
    EXPECT(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = limit.rlim_max};
    EXPECT(setrlimit(RLIMIT_NOFILE, &none) == 0);
    st = io_connect("127.0.0.1", at, &outgoing_events, answer, FIBER_FOREVER, &outgoing);
    EXPECT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    EXPECT(status_is(st, ST_NO_MEMORY));
    return ST_OK;
}

static void
who_gets_no_answer_or_has_no_descriptor_is_told(void **state)
{
    ring_run_main(1, main_connects_in_vain, NULL);
}

/* ---- the table of registered files ---- */

/* Of the only ring of this process. */
static u32
sockets_in_the_table(void)
{
    u32 count = 0, rings = 0;
    for (int fd = 0; fd < 256; fd++) {
        char path[64], name[64] = {0};
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        if (readlink(path, name, sizeof(name) - 1) < 0 || strstr(name, "[io_uring]") == NULL)
            continue;
        rings++;
        snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
        FILE *file = fopen(path, "r");
        assert_non_null(file);
        char line[256];
        u32 slot;
        while (fgets(line, sizeof(line), file) != NULL)
            count += sscanf(line, " %u: %63s", &slot, name) == 2 &&
                     (strncmp(name, "socket:", 7) == 0 || strcmp(name, "TCP") == 0);
        fclose(file);
    }
    assert_int_equal(rings, 1);
    return count;
}

static u64
nodes_without_slots(void)
{
    return fault_count("io.ring_loop.sockets_without_slots");
}

/* 6.13 and later: there the table makes each request a little cheaper, so it should be used. */
static bool
kernel_closes_at_once(void)
{
    struct utsname name;
    u32 major = 0, minor = 0;
    assert_int_equal(uname(&name), 0);
    assert_int_equal(sscanf(name.release, "%u.%u", &major, &minor), 2);
    return major > 6 || (major == 6 && minor >= 13);
}

/* Two clients, of which one goes while the other waits. */
static void
sockets_are_registered(bool are)
{
    int idle = client_connect(), other = client_connect();
    client_send(idle, "ehere\n", 6);
    client_expect(idle, "ehere\n");
    client_send(other, "ethere\n", 7);
    client_expect(other, "ethere\n");
    assert_int_equal(sockets_in_the_table(), are ? 2 : 0);
    close(other);
    wait_closed(1);
    /* The connection is freed behind its session. */
    for (u32 i = 0; i < 60000 && sockets_in_the_table() > (are ? 1 : 0); i++)
        usleep(1000);
    assert_int_equal(sockets_in_the_table(), are ? 1 : 0);
    client_send(idle, "eagain\n", 7);
    client_expect(idle, "eagain\n");
    close(idle);
}

static void
sockets_are_registered_but_where_a_waiting_request_keeps_what_was_closed(void **state)
{
    u64 before = nodes_without_slots();
    struct io_node *node = server_start("127.0.0.1");
    bool late = nodes_without_slots() != before;
    if (kernel_closes_at_once()) assert_false(late);
    sockets_are_registered(!late);
    server_stop(node);
    if (late) return;
    /* As on an older kernel. The site fires three times out of four. */
    for (u32 i = 0; i < 4 && !late; i++) {
        if (i > 0) server_stop(node);
        fault_armed_set(true);
        node = server_start("127.0.0.1");
        fault_armed_set(false);
        late = nodes_without_slots() != before;
    }
    assert_true(late);
    sockets_are_registered(false);
    server_stop(node);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_back_in_whatever_pieces_they_arrive),
        cmocka_unit_test(a_pipeline_is_answered_in_order),
        cmocka_unit_test(a_large_frame_is_received_whole),
        cmocka_unit_test(a_paused_session_goes_on_where_it_was),
        cmocka_unit_test(held_output_goes_when_it_is_released),
        cmocka_unit_test(a_second_node_cannot_share_the_port),
        cmocka_unit_test(a_slow_reader_holds_only_its_own_output),
        cmocka_unit_test(a_client_that_never_reads_is_cut_off_at_the_end),
        cmocka_unit_test(the_last_reply_arrives_although_more_was_sent),
        cmocka_unit_test(memory_of_replies_is_kept_within_bounds_and_given_back),
        cmocka_unit_test(a_reset_is_told),
        cmocka_unit_test(a_session_that_refuses_is_never_told_closed),
        cmocka_unit_test(who_finds_no_memory_is_told_so_and_closed),
        cmocka_unit_test(who_finds_no_room_for_a_large_frame_waits_for_it),
        cmocka_unit_test(who_holds_room_that_others_wait_for_is_cut_off),
        cmocka_unit_test(who_waits_for_room_ends_with_the_node),
        cmocka_unit_test(idle_connections_cost_little),
        cmocka_unit_test(a_fast_sender_does_not_pile_up_input),
        cmocka_unit_test(who_finds_no_buffer_to_receive_into_waits_for_one),
        cmocka_unit_test(out_of_descriptors_the_listener_waits_and_goes_on),
        cmocka_unit_test(shards_connect_over_ipv4_and_ipv6),
        cmocka_unit_test(who_gets_no_answer_or_has_no_descriptor_is_told),
        cmocka_unit_test(sockets_are_registered_but_where_a_waiting_request_keeps_what_was_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
