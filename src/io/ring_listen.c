/* SPDX-License-Identifier: MIT
 *
 * ring_listen.c -- making connections: listeners with a multishot accept, and connects.
 *
 * Accepted sockets are ordinary descriptors that are then put into the registered table, not
 * direct descriptors: their names can be asked for and they can be shut down. They are blocking on
 * purpose, since a send that must wait would answer EAGAIN otherwise. TCP_NODELAY and keepalive
 * are set on the listener, from which Linux copies them to every socket that it accepts.
 *
 * SO_REUSEPORT lets every shard listen on the port, but also any other process of the same user: a
 * second server would quietly take half of the connections. So the first listener of a node on a
 * port first binds a socket without the option, which fails when anybody else listens there.
 *
 * When descriptors or memory run out, the listener pauses a little and goes on: the connections
 * wait in the backlog.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>

#include "base/fault.h"
#include "base/log.h"

#define LISTEN_BACKLOG  4096
#define ACCEPT_PAUSE_NS (100 * NS_PER_MS)
/* Of a connection that says nothing: when the kernel asks its peer for a sign of life (CONFIG GET
 * tcp-keepalive tells the same), how often then, and after how many questions it is cut off. A
 * machine that has lost its power or its network ends nothing. */
#define KEEPALIVE_IDLE_S  300
#define KEEPALIVE_AGAIN_S 100
#define KEEPALIVE_TIMES   3

struct io_listener {
    struct list link; /* shard->listeners */
    struct ring_shard *shard;
    const struct io_conn_events *events;
    void *arg;
    int fd;
    u16 port;
    struct ring_port *shared; /* in the node's table */
    bool closing;
    bool orphan; /* the shard ends: freed by the last completion */
    bool warned;
    u64 refused_ns; /* of log_seldom */
    struct ring_req accept_req;
    struct io_timer timer; /* of a pause */
    struct fiber_queue closed_queue;
};

/* ---- addresses ---- */

static status
address_parse(const char *host, u16 port, struct sockaddr_storage *address, socklen_t *length)
{
    memset(address, 0, sizeof(*address));
    struct sockaddr_in *in = (struct sockaddr_in *)address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)address;
    if (inet_pton(AF_INET, host, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        *length = sizeof(*in);
        return ST_OK;
    }
    if (inet_pton(AF_INET6, host, &in6->sin6_addr) == 1) {
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        *length = sizeof(*in6);
        return ST_OK;
    }
    return MARKED("io.ring_listen.no_address", ST_INVALID);
}

static bool
option_set(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

static bool
option_on(int fd, int level, int name)
{
    return option_set(fd, level, name, 1);
}

static bool
keepalive_on(int fd)
{
    return option_on(fd, SOL_SOCKET, SO_KEEPALIVE) &&
           option_set(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S) &&
           option_set(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_AGAIN_S) &&
           option_set(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_TIMES);
}

/* ---- ports of the node ---- */

/* Binds, for a moment, a socket that does not share. Returns 0 or a negative errno. */
static int
port_probe(const struct sockaddr_storage *address, socklen_t length)
{
    int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    int result = 0;
    if (!option_on(fd, SOL_SOCKET, SO_REUSEADDR) ||
        (address->ss_family == AF_INET6 && !option_on(fd, IPPROTO_IPV6, IPV6_V6ONLY)) ||
        bind(fd, (const struct sockaddr *)address, length) != 0)
        result = -errno;
    close(fd);
    return result;
}

/* probe: somebody else might have it. Returns 0 or a negative errno. */
static int
port_acquire(struct io_node *node, const struct sockaddr_storage *address, socklen_t length,
             bool probe, struct ring_port **out)
{
    int result = -ENFILE; /* more ports than a node listens on */
    struct ring_port *unused = NULL;
    pthread_mutex_lock(&node->mutex);
    for (u32 i = 0; i < RING_PORTS_MAX; i++) {
        struct ring_port *port = &node->ports[i];
        if (port->count == 0) {
            unused = port;
        } else if (memcmp(&port->address, address, sizeof(*address)) == 0) {
            port->count++;
            *out = port;
            result = 0;
            goto unlock;
        }
    }
    if (unused == NULL) goto unlock;
    result = probe ? port_probe(address, length) : 0;
    if (result != 0) goto unlock;
    unused->address = *address;
    unused->count = 1;
    *out = unused;
unlock:
    pthread_mutex_unlock(&node->mutex);
    return result;
}

static void
port_release(struct io_node *node, struct ring_port *port)
{
    if (port == NULL) return;
    pthread_mutex_lock(&node->mutex);
    CHECK(port->count > 0);
    port->count--;
    pthread_mutex_unlock(&node->mutex);
}

/* ---- listening ---- */

static void
listener_accept(struct io_listener *listener)
{
    struct io_uring_sqe *sqe = ring_sqe(listener->shard);
    io_uring_prep_multishot_accept(sqe, listener->fd, NULL, NULL, SOCK_CLOEXEC);
    ring_req_arm(listener->shard, sqe, &listener->accept_req);
}

static void
listener_free(struct io_listener *listener)
{
    close(listener->fd);
    port_release(listener->shard->host, listener->shared);
    list_del(&listener->link);
    mem_free(&listener->shard->core.budget, listener, sizeof(*listener));
}

static void
listener_pause(struct io_listener *listener, int error)
{
    MARK("io.ring_listen.paused");
    listener->shard->core.stats.connections_refused++;
    if (!listener->warned)
        log_warning("io", "cannot accept, trying again every 100 ms port=%u error=%s",
                    listener->port, strerror(error));
    listener->warned = true;
    io_timer_arm(&listener->timer, io_now_ns() + ACCEPT_PAUSE_NS);
}

/* The client was told, if it could be (io_conn_events.refusal). */
static void
listener_refused(struct io_listener *listener, status st)
{
    MARK("io.ring_listen.refused");
    struct ring_shard *shard = listener->shard;
    shard->core.stats.connections_refused++;
    if (!log_seldom(&listener->refused_ns, io_now_ns())) return;
    log_warning("io", "refusing connections port=%u refused=%llu why=%s", listener->port,
                (unsigned long long)shard->core.stats.connections_refused, status_text(st));
}

static void
listener_accepted(struct io_listener *listener, int fd)
{
    struct ring_shard *shard = listener->shard;
    if (listener->closing) {
        MARK("io.ring_listen.accepted_late");
        close(fd);
        return;
    }
    listener->warned = false;
    status st = ring_conn_open(shard, fd, listener->events, listener->arg, NULL);
    if (ok(st))
        shard->core.stats.connections_accepted++;
    else
        listener_refused(listener, st);
}

static void
listener_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct io_listener *listener = CONTAINER_OF(req, struct io_listener, accept_req);
    if (result >= 0) listener_accepted(listener, result);
    if (flags & IORING_CQE_F_MORE) return;
    if (listener->closing) {
        if (listener->orphan)
            listener_free(listener);
        else
            fiber_queue_wake_all(&listener->closed_queue);
        return;
    }
    if (result >= 0 || result == -ECONNABORTED || result == -EINTR)
        listener_accept(listener);
    else
        listener_pause(listener, -result);
}

static void
listener_resume(struct io_timer *timer)
{
    listener_accept(CONTAINER_OF(timer, struct io_listener, timer));
}

/* A bound and listening socket, or a negative errno. */
static int
listener_socket(const struct sockaddr_storage *address, socklen_t length)
{
    int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    bool set = option_on(fd, SOL_SOCKET, SO_REUSEADDR) && option_on(fd, SOL_SOCKET, SO_REUSEPORT) &&
               option_on(fd, IPPROTO_TCP, TCP_NODELAY) && keepalive_on(fd);
    /* "::" and "0.0.0.0" are two listeners. */
    if (set && address->ss_family == AF_INET6) set = option_on(fd, IPPROTO_IPV6, IPV6_V6ONLY);
    if (set && bind(fd, (const struct sockaddr *)address, length) == 0 &&
        listen(fd, LISTEN_BACKLOG) == 0)
        return fd;
    MARK("io.ring_listen.not_bound");
    int error = errno;
    close(fd);
    return -error;
}

static u16
socket_port(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0) return 0;
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

static void
address_port_set(struct sockaddr_storage *address, u16 port)
{
    if (address->ss_family == AF_INET6)
        ((struct sockaddr_in6 *)address)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)address)->sin_port = htons(port);
}

/* A listening socket whose port is in the node's table, or a negative errno. */
static int
listener_bind(struct io_node *node, struct sockaddr_storage *address, socklen_t length, bool fixed,
              struct ring_port **shared_out)
{
    /* A port that the kernel picks is nobody else's; the other shards come later and find it. */
    int result = fixed ? port_acquire(node, address, length, true, shared_out) : 0;
    if (result < 0) return result;
    int fd = listener_socket(address, length);
    if (fd < 0) {
        if (fixed) port_release(node, *shared_out);
        return fd;
    }
    if (fixed) return fd;
    address_port_set(address, socket_port(fd));
    result = port_acquire(node, address, length, false, shared_out);
    if (result == 0) return fd;
    close(fd);
    return result;
}

status
io_listen(const char *host, u16 port, const struct io_conn_events *events, void *arg,
          struct io_listener **out)
{
    struct ring_shard *shard = ring_current();
    struct sockaddr_storage address;
    socklen_t length;
    status st = address_parse(host, port, &address, &length);
    if (!ok(st)) return st;
    struct ring_port *shared = NULL;
    int fd = listener_bind(shard->host, &address, length, port != 0, &shared);
    if (fd < 0) {
        MARK("io.ring_listen.failed");
        /* What the first two say the caller tells, who perhaps tries again first. */
        if (fd != -EADDRINUSE && fd != -EADDRNOTAVAIL)
            log_error("io", "cannot listen host=%s port=%u error=%s", host, port, strerror(-fd));
        return fd == -EADDRINUSE ? ST_EXISTS : fd == -EADDRNOTAVAIL ? ST_INVALID : ST_IO_ERROR;
    }
    struct io_listener *listener = mem_alloc_zero(&shard->core.budget, sizeof(*listener));
    if (listener == NULL) {
        MARK("io.ring_listen.no_memory");
        close(fd);
        port_release(shard->host, shared);
        return ST_NO_MEMORY;
    }
    listener->shard = shard;
    listener->shared = shared;
    listener->events = events;
    listener->arg = arg;
    listener->fd = fd;
    listener->port = socket_port(fd);
    listener->accept_req.complete = listener_complete;
    io_timer_init(&listener->timer, listener_resume);
    fiber_queue_init(&listener->closed_queue);
    list_push_back(&shard->listeners, &listener->link);
    listener_accept(listener);
    *out = listener;
    return ST_OK;
}

u16
io_listener_port(const struct io_listener *listener)
{
    return listener->port;
}

static void
listener_end(struct io_listener *listener)
{
    listener->closing = true;
    io_timer_cancel(&listener->timer);
    ring_req_cancel(listener->shard, &listener->accept_req);
}

MAY_YIELD void
io_listener_close(struct io_listener *listener)
{
    CHECK(!listener->closing);
    listener_end(listener);
    while (listener->accept_req.active)
        (void)fiber_queue_wait(&listener->closed_queue, FIBER_FOREVER);
    listener_free(listener);
}

void
ring_listeners_shut(struct ring_shard *shard)
{
    list_for_each_safe (link, &shard->listeners) {
        struct io_listener *listener = list_entry(link, struct io_listener, link);
        listener->orphan = true;
        listener_end(listener);
        if (!listener->accept_req.active) listener_free(listener);
    }
}

/* ---- connecting ---- */

struct connect_wait {
    struct ring_wait wait;
    struct ring_shard *shard;
    struct io_timer timer;
};

static void
connect_expire(struct io_timer *timer)
{
    struct connect_wait *connect_wait = CONTAINER_OF(timer, struct connect_wait, timer);
    ring_req_cancel(connect_wait->shard, &connect_wait->wait.req);
}

/* Of this machine, not of the peer: memory or descriptors. */
static bool
is_lack(int error)
{
    return error == ENOMEM || error == ENOBUFS || error == EMFILE || error == ENFILE ||
           error == EAGAIN;
}

MAY_YIELD status
io_connect(const char *host, u16 port, const struct io_conn_events *events, void *arg,
           u64 deadline_ns, struct io_conn **out)
{
    struct ring_shard *shard = ring_current();
    struct sockaddr_storage address;
    socklen_t length;
    status st = address_parse(host, port, &address, &length);
    if (!ok(st)) return st;
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        MARK("io.ring_listen.no_socket");
        return is_lack(errno) ? ST_NO_MEMORY : ST_IO_ERROR;
    }
    (void)option_on(fd, IPPROTO_TCP, TCP_NODELAY); /* slower without, not wrong */

    struct connect_wait connect_wait = {.shard = shard};
    struct io_uring_sqe *sqe = ring_sqe(shard);
    io_uring_prep_connect(sqe, fd, (const struct sockaddr *)&address, length);
    ring_wait_arm(shard, sqe, &connect_wait.wait);
    io_timer_init(&connect_wait.timer, connect_expire);
    if (deadline_ns != FIBER_FOREVER) io_timer_arm(&connect_wait.timer, deadline_ns);
    i32 result = ring_wait_for(&connect_wait.wait);
    io_timer_cancel(&connect_wait.timer);
    if (result < 0) {
        MARK("io.ring_listen.not_connected");
        close(fd);
        if (result == -ECANCELED || result == -ETIMEDOUT)
            return MARKED("io.ring_listen.connect_timed_out", ST_TIMED_OUT);
        if (is_lack(-result)) return MARKED("io.ring_listen.connect_lacks", ST_NO_MEMORY);
        return result == -ECONNREFUSED || result == -ECONNRESET ? ST_CLOSED : ST_IO_ERROR;
    }
    return ring_conn_open(shard, fd, events, arg, out);
}
