/* SPDX-License-Identifier: MIT
 *
 * lib_connection.c -- sockets of libdistkv: connecting, the handshake, sending, receiving.
 *
 *   CLOSED --timer--> CONNECTING --writable--> HELLO --reply--> READY
 *      ^                  |                      |                |
 *      +------------------+----------------------+----------------+   connection_break
 *
 * A name with several addresses (localhost is often ::1 and 127.0.0.1) is tried address by address
 * without a pause; only a whole round that failed counts as a failure and begins a pause, which
 * doubles with each round and is blurred by a quarter so that clients do not return in step. A
 * handshake alone is no success: there are servers, and what stands before them, that answer it and
 * close at the next request, each time. Only a connection that has answered a caller, or has stood
 * for as long as the longest pause, is made anew at once and begins with the shortest pause again.
 *
 * Names are resolved by getaddrinfo, which may wait; give numbers where that matters.
 */
#include "client/lib_internal.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define CONNECTION_IOV_MAX 64
#define SERVERS_BYTES      ((LIB_SERVERS_MAX + LIB_MAP_NODES_MAX) * sizeof(struct server))
/* Requests that the window allows before the server has named its own limit. */
#define CONNECTION_READ_BYTES (64u << 10)
#define CONNECTION_READS_MAX  16u
/* A receive buffer above this is given back when it is empty; smaller ones when memory is short. */
#define CONNECTION_KEEP_BYTES (256u << 10)

/* ---- the list of servers ---- */

/* "host:port", "[v6]:port", "host", "[v6]" into host and port. */
static bool
parse_server(struct server *server, const char *text, size_t size)
{
    while (size > 0 && (*text == ' ' || *text == '\t')) {
        text++;
        size--;
    }
    while (size > 0 && (text[size - 1] == ' ' || text[size - 1] == '\t'))
        size--;
    if (size == 0 || size >= sizeof(server->name)) return false;
    snprintf(server->name, sizeof(server->name), "%.*s", (int)size, text);
    const char *host = server->name;
    const char *port = NULL;
    size_t host_size;
    if (host[0] == '[') {
        const char *end = strchr(++host, ']');
        if (end == NULL) return false;
        host_size = (size_t)(end - host);
        if (end[1] == ':')
            port = end + 2;
        else if (end[1] != '\0')
            return false;
    } else {
        const char *colon = strchr(host, ':');
        if (colon != NULL && strchr(colon + 1, ':') != NULL) return false; /* bare IPv6 */
        host_size = colon != NULL ? (size_t)(colon - host) : strlen(host);
        if (colon != NULL) port = colon + 1;
    }
    if (host_size == 0 || host_size >= sizeof(server->host)) return false;
    snprintf(server->host, sizeof(server->host), "%.*s", (int)host_size, host);
    if (port == NULL) port = LIB_PORT_DEFAULT;
    char *end;
    long number = strtol(port, &end, 10);
    if (*port < '0' || *port > '9' || *end != '\0' || number < 1 || number > 65535) return false;
    snprintf(server->port, sizeof(server->port), "%ld", number);
    return true;
}

bool
server_init(struct distkv *kv, struct server *server)
{
    u32 count = kv->options.connections_per_server;
    if (server->shard_port != 0)
        count =
            server->shard_count * MAX(1u, MIN(count, LIB_CONNECTIONS_MAX / server->shard_count));
    server->serial = ++kv->server_serial;
    server->connections = mem_alloc_zero(&kv->budget, count * sizeof(struct connection));
    if (server->connections == NULL) return false;
    server->connection_count = count;
    for (u32 i = 0; i < count; i++) {
        struct connection *connection = &server->connections[i];
        connection->kv = kv;
        connection->server = server;
        connection->fd = -1;
        connection->timer.connection = connection;
        list_init(&connection->unsent);
        list_init(&connection->sent);
        buf_init(&connection->in, &kv->budget);
        connection->backoff_ms = kv->options.reconnect_min_ms;
        if (server->named) lib_timer_set(kv, &connection->timer, lib_now_ns());
    }
    return true;
}

void
server_deinit(struct distkv *kv, struct server *server)
{
    for (u32 c = 0; c < server->connection_count && server->connections != NULL; c++) {
        struct connection *connection = &server->connections[c];
        lib_timer_stop(kv, &connection->timer);
        if (connection->fd >= 0) close(connection->fd);
        buf_deinit(&connection->in);
    }
    if (server->connections != NULL)
        mem_free(&kv->budget, server->connections,
                 server->connection_count * sizeof(struct connection));
    *server = (struct server){0};
}

int
connections_init(struct distkv *kv, const char *servers, char *error)
{
    kv->servers = mem_alloc_zero(&kv->budget, SERVERS_BYTES);
    if (kv->servers == NULL) return DISTKV_NO_MEMORY;
    for (const char *p = servers; *p != '\0';) {
        size_t size = strcspn(p, ",");
        if (kv->server_count == LIB_SERVERS_MAX ||
            !parse_server(&kv->servers[kv->server_count], p, size)) {
            if (error != NULL)
                snprintf(error, DISTKV_ERROR_BYTES,
                         "\"%.*s\" is not host:port (and at most %u servers may be named)",
                         (int)MIN(size, 100), p, LIB_SERVERS_MAX);
            return DISTKV_INVALID;
        }
        kv->servers[kv->server_count].named = true;
        if (!server_init(kv, &kv->servers[kv->server_count])) return DISTKV_NO_MEMORY;
        kv->server_count++;
        p += size;
        if (*p == ',') p++;
    }
    if (kv->server_count > 0) return DISTKV_OK;
    if (error != NULL) snprintf(error, DISTKV_ERROR_BYTES, "no server is named");
    return DISTKV_INVALID;
}

void
connections_deinit(struct distkv *kv)
{
    if (kv->servers == NULL) return;
    for (u32 s = 0; s < kv->server_count; s++)
        server_deinit(kv, &kv->servers[s]);
    mem_free(&kv->budget, kv->servers, SERVERS_BYTES);
    kv->servers = NULL;
}

bool
connections_give_back(struct distkv *kv)
{
    bool any = false;
    for (u32 s = 0; s < kv->server_count; s++) {
        for (u32 c = 0; c < kv->servers[s].connection_count; c++) {
            struct buf *in = &kv->servers[s].connections[c].in;
            if (in->size != 0 || in->capacity == 0) continue; /* a reply in it may be at hand */
            buf_deinit(in);
            any = true;
        }
    }
    return any;
}

bool
lib_reserve(struct distkv *kv, struct buf *buf, size_t extra)
{
    return buf_reserve(buf, extra) || (connections_give_back(kv) && buf_reserve(buf, extra));
}

/* ---- breaking ---- */

static void
connection_backoff(struct connection *connection)
{
    struct distkv *kv = connection->kv;
    u64 pause_us = (u64)connection->backoff_ms * 1000;
    pause_us += prng_below(&kv->prng, pause_us / 4 + 1);
    connection->backoff_ms = MIN(connection->backoff_ms * 2, kv->options.reconnect_max_ms);
    lib_timer_set(kv, &connection->timer, lib_now_ns() + pause_us * NS_PER_US);
}

/* What the kernel has not got rid of is not to reach the server later: its requests may be done by
 * another one then. */
static void
forget_output(struct connection *connection)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    if (connection->fd >= 0)
        (void)setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
}

static bool
has_worked(const struct connection *connection)
{
    u64 longest_ns = (u64)connection->kv->options.reconnect_max_ms * NS_PER_MS;
    return connection->answered || lib_now_ns() - connection->ready_ns >= longest_ns;
}

void
connection_break(struct connection *connection, const char *format, ...)
{
    struct distkv *kv = connection->kv;
    char why[160];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof(why), format, args);
    va_end(args);
    snprintf(kv->connect_error, sizeof(kv->connect_error), "%.90s: %s", connection->server->name,
             why);

    bool was_ready = connection->state == CONNECTION_READY;
    bool at_once = was_ready && has_worked(connection);
    if (!list_empty(&connection->sent) || connection->unsent_offset > 0) forget_output(connection);
    if (connection->fd >= 0) close(connection->fd); /* leaves the epoll set by itself */
    connection->fd = -1;
    connection->state = CONNECTION_CLOSED;
    connection->writable_wanted = connection->leaving = connection->silent = false;
    lib_timer_stop(kv, &connection->timer);
    /* Kept for the next one: callers would have taken it by then. */
    connection->in.size = 0;
    buf_trim(&connection->in, CONNECTION_READ_BYTES);

    struct list unsent, sent;
    list_init(&unsent);
    list_init(&sent);
    list_splice_back(&unsent, &connection->unsent);
    list_splice_back(&sent, &connection->sent);
    bool begun = connection->unsent_offset > 0;
    connection->unsent_offset = 0;
    connection->in_flight = 0;
    for (struct list *link; (link = list_pop_front(&sent)) != NULL;)
        request_on_lost(kv, list_entry(link, struct request, link), true, kv->connect_error);
    for (struct list *link; (link = list_pop_front(&unsent)) != NULL; begun = false)
        request_on_lost(kv, list_entry(link, struct request, link), begun, kv->connect_error);

    if (was_ready) route_on_broken(kv);
    if (connection->server->retired) {
        kv->retired = true;
    } else if (at_once) {
        connection->backoff_ms = kv->options.reconnect_min_ms;
        lib_timer_set(kv, &connection->timer, lib_now_ns());
    } else {
        connection_backoff(connection);
    }
}

void
connection_leave(struct connection *connection)
{
    connection->leaving = true;
    connection->kv->leaving = true;
}

void
connections_leave(struct distkv *kv)
{
    kv->leaving = false;
    for (u32 s = 0; s < kv->server_count; s++) {
        for (u32 c = 0; c < kv->servers[s].connection_count; c++) {
            struct connection *connection = &kv->servers[s].connections[c];
            if (!connection->leaving) continue;
            if (connection->in_flight == 0)
                connection_break(connection, "the server wants another connection");
            else
                kv->leaving = true;
        }
    }
}

/* A whole one, over all addresses. */
static void
round_failed(struct connection *connection)
{
    connection->failed_once = true;
    connection->server->down = true;
    connection->server->gone = false;
}

/* Somebody listens at the address, and no handshake comes about: an attempt has failed as well. Then
 * connection_break, and with true connection_go_on. A server that asks for another password is the
 * one that is meant: no other is asked. */
static bool
handshake_failed(struct connection *connection)
{
    connection->unreached = true;
    connection->address_next++;
    if (connection->address_next < connection->address_count && !connection->denied) return true;
    connection->address_next = 0;
    connection->unreached = false;
    round_failed(connection);
    return false;
}

/* Broken: the next address now, without the pause. */
static void
connection_go_on(struct connection *connection, bool more)
{
    if (more && !connection->server->retired)
        lib_timer_set(connection->kv, &connection->timer, lib_now_ns());
}

/* An attempt has failed: the next address now, or all of them again after a pause. */
static void
attempt_failed(struct connection *connection, u32 address_count, const char *what, int error)
{
    connection->address_next++;
    bool more = connection->address_next < address_count;
    if (error != ECONNREFUSED) connection->unreached = true;
    if (!more) {
        connection->address_next = 0;
        round_failed(connection);
        connection->server->gone = !connection->unreached;
        connection->unreached = false;
    }
    connection_break(connection, "%s: %s", what, strerror(error));
    connection_go_on(connection, more);
}

/* ---- connecting ---- */

static void
connection_watch(struct connection *connection, bool writable)
{
    struct epoll_event event = {.events = EPOLLIN | (writable ? (u32)EPOLLOUT : 0),
                                .data.ptr = connection};
    int rc = epoll_ctl(connection->kv->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
    CHECK(rc == 0);
    connection->writable_wanted = writable;
}

static void
attempt_start(struct connection *connection)
{
    struct distkv *kv = connection->kv;
    connection->denied = false;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    const struct server *server = connection->server;
    char port[16];
    snprintf(port, sizeof(port), "%s", server->port);
    if (server->shard_port != 0)
        snprintf(port, sizeof(port), "%u",
                 server->shard_port +
                     (u32)(connection - server->connections) % server->shard_count);
    int rc = getaddrinfo(server->host, port, &hints, &found);
    if (rc != 0) {
        round_failed(connection);
        connection->address_next = 0;
        connection_break(connection, "cannot resolve the name: %s", gai_strerror(rc));
        return;
    }
    u32 count = 0;
    struct addrinfo *chosen = found;
    for (struct addrinfo *a = found; a != NULL; a = a->ai_next)
        if (count++ == connection->address_next) chosen = a;
    connection->address_count = count;
    int fd = socket(chosen->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = connection};
    if (fd < 0 || (connect(fd, chosen->ai_addr, chosen->ai_addrlen) != 0 && errno != EINPROGRESS) ||
        epoll_ctl(kv->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        int error = errno;
        if (fd >= 0) close(fd);
        freeaddrinfo(found);
        attempt_failed(connection, count, "cannot connect", error);
        return;
    }
    freeaddrinfo(found);
    connection->fd = fd;
    connection->written = connection->taken = 0;
    connection->writable_wanted = true;
    connection->state = CONNECTION_CONNECTING;
    lib_timer_set(kv, &connection->timer,
                  lib_now_ns() + (u64)kv->options.connect_timeout_ms * NS_PER_MS);
}

void
connection_on_timer(struct connection *connection)
{
    switch (connection->state) {
    case CONNECTION_CLOSED:
        attempt_start(connection);
        break;
    case CONNECTION_CONNECTING:
        attempt_failed(connection, connection->address_count, "cannot connect", ETIMEDOUT);
        break;
    case CONNECTION_HELLO: {
        bool more = handshake_failed(connection);
        connection_break(connection, "no answer to the handshake within %u ms",
                         connection->kv->options.connect_timeout_ms);
        connection_go_on(connection, more);
        break;
    }
    case CONNECTION_READY:
        route_on_silence(connection);
        break;
    }
}

static void
copy_text(char *target, size_t size, struct bytes text)
{
    snprintf(target, size, "%.*s", (int)MIN(text.size, size - 1), (const char *)text.data);
}

static void
on_hello(struct request *request, int code, const char *error, const struct native_reply *reply)
{
    struct connection *connection = request->arg;
    struct distkv *kv = connection->kv;
    if (code != DISTKV_OK || reply->hello.version != NATIVE_VERSION) {
        if (code == DISTKV_DENIED) kv->denied = connection->denied = true;
        connection->refused =
            true; /* connection_receive breaks it when it is done with the bytes */
        snprintf(kv->connect_error, sizeof(kv->connect_error), "%s", error);
        return;
    }
    const struct native_hello_reply *hello = &reply->hello;
    route_on_hello(connection, hello);
    connection->state = CONNECTION_READY;
    connection->answered = false;
    connection->ready_ns = lib_now_ns();
    connection->address_next = 0;
    connection->run_id = hello->run_id;
    connection->in_flight_max = MIN(hello->in_flight_max, LIB_PENDING_MAX);
    connection->idempotency_ms = hello->idempotency_ms;
    lib_timer_stop(kv, &connection->timer);
    kv->epoch = MAX(kv->epoch, reply->header.epoch);

    struct distkv_server_info *info = &connection->server->info;
    *info = (struct distkv_server_info){.run_id = hello->run_id,
                                        .epoch = reply->header.epoch,
                                        .nodes = hello->node_count,
                                        .partitions = hello->partition_count,
                                        .in_flight_max = hello->in_flight_max,
                                        .idempotency_ms = hello->idempotency_ms};
    snprintf(info->server, sizeof(info->server), "%s", connection->server->name);
    copy_text(info->node_id, sizeof(info->node_id), hello->node_id);
    copy_text(info->version, sizeof(info->version), hello->server_version);
    struct bytes nodes = hello->nodes;
    struct native_node node;
    while (native_hello_next_node(&nodes, &node))
        if (bytes_equal(node.id, hello->node_id)) info->shards = node.shard_count;
    route_on_epoch(connection, reply->header.epoch);
    route_on_known(connection);
}

static void
hello_start(struct connection *connection)
{
    struct distkv *kv = connection->kv;
    struct native_request native = {
        .header.opcode = NATIVE_HELLO,
        .hello = {.version_min = NATIVE_VERSION,
                  .version_max = NATIVE_VERSION,
                  .features = NATIVE_FEATURE_TOPOLOGY | NATIVE_FEATURE_CLUSTER,
                  .client_name = BYTES(kv->client_name, strlen(kv->client_name)),
                  .user = BYTES(kv->user, strlen(kv->user)),
                  .password = BYTES(kv->password, strlen(kv->password))},
    };
    struct request *request = request_new(kv, &native, 0, true);
    if (request == NULL) {
        round_failed(connection);
        connection_break(connection, "out of memory");
        return;
    }
    request->own = true;
    request->done = on_hello;
    request->arg = connection;
    connection->state = CONNECTION_HELLO;
    connection->in_flight_max = 1;
    request_assign(request, connection);
    connection_flush(connection);
}

static void
on_connected(struct connection *connection)
{
    int error = 0;
    socklen_t size = sizeof(error);
    if (getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (error != 0) {
        attempt_failed(connection, connection->address_count, "cannot connect", error);
        return;
    }
    /* Neither is vital: without them calls are slower, or a dead peer is noticed later. */
    int on = 1;
    (void)setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(connection->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    connection_watch(connection, false);
    connection->received_ns = lib_now_ns();
    hello_start(connection);
}

/* ---- sending ---- */

/* Moves what has been written whole to the sent list. */
static void
account_written(struct connection *connection, size_t written)
{
    written += connection->unsent_offset;
    u64 now = lib_now_ns();
    while (!list_empty(&connection->unsent)) {
        struct request *request = list_entry(list_first(&connection->unsent), struct request, link);
        if (written < request->frame.size) break;
        written -= request->frame.size;
        list_del(&request->link);
        list_push_back(&connection->sent, &request->link);
        request->state = REQUEST_SENT;
        request->sent_ns = now;
    }
    connection->unsent_offset = written;
}

bool
connection_moves(struct connection *connection)
{
    int left = 0;
    if (ioctl(connection->fd, SIOCOUTQ, &left) != 0 || left <= 0) return false;
    u64 taken = connection->written - MIN(connection->written, (u64)left);
    bool moves = taken > connection->taken;
    connection->taken = taken;
    return moves;
}

void
connection_flush(struct connection *connection)
{
    while (connection->fd >= 0 && !list_empty(&connection->unsent)) {
        struct iovec iov[CONNECTION_IOV_MAX];
        int count = 0;
        size_t bytes = 0;
        list_for_each (link, &connection->unsent) {
            struct request *request = list_entry(link, struct request, link);
            size_t skip = count == 0 ? connection->unsent_offset : 0;
            iov[count].iov_base = request->frame.data + skip;
            iov[count].iov_len = request->frame.size - skip;
            bytes += iov[count].iov_len;
            if (++count == CONNECTION_IOV_MAX) break;
        }
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
        ssize_t written = sendmsg(connection->fd, &message, MSG_NOSIGNAL);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0 && errno != EAGAIN) {
            connection_break(connection, "cannot send: %s", strerror(errno));
            return;
        }
        if (written > 0) {
            connection->written += (u64)written;
            account_written(connection, (size_t)written);
        }
        if (written < 0 || (size_t)written < bytes) {
            if (!connection->writable_wanted) connection_watch(connection, true);
            return;
        }
    }
    if (connection->fd >= 0 && connection->writable_wanted) connection_watch(connection, false);
}

/* ---- receiving ---- */

/* A frame that is whole. False: the connection is to be broken; *why says for what. */
static bool
on_frame(struct connection *connection, const struct native_header *header, struct bytes body,
         const char **why)
{
    struct native_reply reply;
    status st = native_reply_decode(header, body, &reply);
    if (!ok(st)) {
        *why = "a reply that does not read as the protocol demands";
        return false;
    }
    if (header->request_id == 0) {
        *why = header->status == NATIVE_ST_OVERLOADED ? "the server had no memory for a frame"
                                                      : "the server refused a frame as damaged";
        return false;
    }
    connection->kv->epoch = MAX(connection->kv->epoch, header->epoch);
    connection->kv->reply_run_id = connection->run_id;
    if (connection->state == CONNECTION_READY) route_on_epoch(connection, header->epoch);
    /* Not found: it came after the deadline, and its caller has been told. */
    struct request *request = request_find(connection->kv, header->request_id);
    if (request == NULL || !request->own) connection->answered = true;
    if (request == NULL || request->connection != connection) return true;
    if (request->opcode != header->opcode || request->state != REQUEST_SENT) {
        *why = "a reply to another request than was sent";
        return false;
    }
    request_on_reply(connection->kv, request, &reply);
    *why = connection->refused ? "refused" : NULL;
    return !connection->refused;
}

/* Why what has come is no frame. A server without place for another client says so in RESP and
 * closes, before it knows what that client speaks. out: for that text. */
static const char *
why_no_frame(const struct connection *connection, struct bytes rest, char *out, size_t size)
{
    if (connection->state != CONNECTION_HELLO) return "a damaged frame from the server";
    if (rest.data[0] != '-') return "what answers there does not speak DistKV's native protocol";
    size_t length = 0;
    while (length < rest.size && rest.data[length] >= ' ' && rest.data[length] <= '~')
        length++;
    snprintf(out, size, "the server refuses: %.*s", (int)length - 1, (const char *)rest.data + 1);
    return out;
}

/* Asked again it would be sent again, for nothing: who asked is told. The rest of it is on its way, so
 * the connection is of no more use. */
static void
reply_too_large(struct connection *connection)
{
    struct native_header header;
    struct request *request = NULL;
    if (ok(native_header_decode(buf_bytes(&connection->in), &header)))
        request = request_find(connection->kv, header.request_id);
    if (request != NULL && !request->own && request->connection == connection &&
        request->state == REQUEST_SENT)
        request_on_no_memory(connection->kv, request);
    connection_break(connection, "a reply is larger than the memory limit allows");
}

/* All whole frames in the buffer. False: the connection is broken. */
static bool
take_frames(struct connection *connection)
{
    struct buf *in = &connection->in;
    size_t taken = 0;
    while (true) {
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted = 0;
        struct bytes rest = BYTES(in->data + taken, in->size - taken);
        status st = native_frame_decode(rest, &header, &body, &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) {
            buf_consume(in, taken);
            if (in->size == 0) buf_clear(in, CONNECTION_KEEP_BYTES);
            if (wanted > in->size && !lib_reserve(connection->kv, in, wanted - in->size)) {
                reply_too_large(connection);
                return false;
            }
            return true;
        }
        const char *why = NULL;
        char text[128];
        bool fine = false;
        if (ok(st))
            fine = on_frame(connection, &header, body, &why);
        else if (status_is(st, ST_UNSUPPORTED))
            why = "the server's protocol has a version or flags that this library does not know";
        else
            why = why_no_frame(connection, rest, text, sizeof(text));
        if (!fine) {
            bool more = connection->state == CONNECTION_HELLO && handshake_failed(connection);
            if (connection->refused) {
                snprintf(text, sizeof(text), "%.127s", connection->kv->connect_error);
                connection->refused = false;
                connection_break(connection, "%s", text);
            } else {
                connection_break(connection, "%s", why);
            }
            connection_go_on(connection, more);
            return false;
        }
        taken += consumed;
    }
}

static void
connection_receive(struct connection *connection)
{
    for (u32 i = 0; i < CONNECTION_READS_MAX; i++) {
        struct buf *in = &connection->in;
        if (!buf_reserve(in, CONNECTION_READ_BYTES) && in->capacity == in->size &&
            !lib_reserve(connection->kv, in, CONNECTION_READ_BYTES)) {
            connection_break(connection, "no memory for a reply");
            return;
        }
        size_t room = in->capacity - in->size;
        ssize_t got = recv(connection->fd, in->data + in->size, room, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            bool more = connection->state == CONNECTION_HELLO && handshake_failed(connection);
            if (got == 0)
                connection_break(connection, "the server closed the connection");
            else
                connection_break(connection, "cannot receive: %s", strerror(errno));
            connection_go_on(connection, more);
            return;
        }
        in->size += (size_t)got;
        connection->received_ns = lib_now_ns();
        connection->silent = false;
        if (!take_frames(connection)) return;
        if ((size_t)got < room) return;
    }
}

void
connection_on_event(struct connection *connection, u32 events)
{
    if (connection->fd < 0) return; /* broken earlier in this turn */
    if (connection->state == CONNECTION_CONNECTING) {
        on_connected(connection);
        return;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) connection_receive(connection);
    if ((events & EPOLLOUT) && connection->fd >= 0) connection_flush(connection);
}
