/* SPDX-License-Identifier: MIT
 *
 * ring_net.c -- connections of the real backend.
 *
 * Receiving. Idle connections have a multishot receive on the shard's provided buffers and no
 * memory of their own. The session is given the bytes where the kernel put them; only what it
 * leaves over is copied to the connection's input, and the buffer goes back at once. A frame that
 * the session wants whole and of which more than a buffer is still to come is received by one-shot
 * requests straight into the input. When the provided buffers run out, the receive ends with
 * ENOBUFS even if the socket has nothing to read; it is armed again at the end of the turn, when
 * the buffers that this turn used are back.
 *
 * Sending. Output is a list of chunks; at the end of a turn what may go is one send, or one
 * gathering sendmsg, and there is never more than one in flight, or bytes could interleave.
 *
 * What a session sees of it, and the states of a connection: core_conn.c.
 *
 * A connection is freed only when neither request is active, so a late completion always finds it.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>

#include "base/fault.h"
#include "base/log.h"
#include "io/core_conn.h"

#define CONN_VECTORS        8u
#define CONN_SEND_BYTES_MAX (1u << 20)

static_assert(CONN_PIECE_BYTES == RING_BUFFER_BYTES, "one piece is one provided buffer");

struct ring_conn {
    struct io_conn core;   /* first */
    struct list send_link; /* shard->conns_send, or none */
    struct list recv_link; /* shard->conns_recv, or none */
    int fd;
    i32 slot;
    bool receiving_direct; /* the active receive goes into input */
    bool sends_small;      /* the last receive did not; false: there was none */
    struct ring_req recv_req;
    struct ring_req send_req;
    struct iovec vectors[CONN_VECTORS];
    struct msghdr message;
};

static struct ring_conn *
ring_conn_of(struct io_conn *conn)
{
    return (struct ring_conn *)conn;
}

static struct ring_shard *
conn_shard(const struct ring_conn *conn)
{
    return (struct ring_shard *)conn->core.net->shard;
}

static status
conn_errno_status(int error)
{
    switch (error) {
    case 0:
        return ST_OK;
    case ETIMEDOUT:
        return ST_TIMED_OUT;
    case ECONNRESET:
    case EPIPE:
    case ECONNREFUSED:
    case ENOTCONN:
    case ECONNABORTED:
        return ST_CLOSED;
    case ENOMEM:
    case ENOBUFS:
        return ST_NO_MEMORY;
    case ECANCELED:
        return ST_CANCELED;
    default:
        return ST_IO_ERROR;
    }
}

/* ---- provided buffers ---- */

static void
buffer_give(struct ring_shard *shard, u32 id)
{
    io_uring_buf_ring_add(shard->buffer_ring, shard->buffers + (size_t)id * RING_BUFFER_BYTES,
                          RING_BUFFER_BYTES, (u16)id, io_uring_buf_ring_mask(shard->buffer_count),
                          0);
    io_uring_buf_ring_advance(shard->buffer_ring, 1);
}

static size_t
buffer_ring_bytes(const struct ring_shard *shard)
{
    return shard->buffer_count * sizeof(struct io_uring_buf);
}

status
ring_net_init(struct ring_shard *shard)
{
    core_net_init(&shard->net, &shard->core);
    list_init(&shard->conns_send);
    list_init(&shard->conns_recv);
    list_init(&shard->listeners);
    /* A sixty-fourth of the memory, as a power of two of buffers. */
    u32 count = RING_BUFFERS_MIN;
    while (count < RING_BUFFERS_MAX &&
           (u64)count * 2 * RING_BUFFER_BYTES <= shard->core.budget.limit_bytes / 64)
        count *= 2;
    shard->buffer_count = count;
    struct budget *budget = &shard->core.budget;
    shard->buffers = mem_alloc_aligned(budget, (size_t)count * RING_BUFFER_BYTES, 4096);
    shard->buffer_ring = mem_alloc_aligned(budget, buffer_ring_bytes(shard), 4096);
    if (shard->buffers == NULL || shard->buffer_ring == NULL)
        return MARKED("io.ring_net.buffers_no_memory", ST_NO_MEMORY);
    io_uring_buf_ring_init(shard->buffer_ring);
    struct io_uring_buf_reg reg = {.ring_addr = (u64)(uintptr_t)shard->buffer_ring,
                                   .ring_entries = count,
                                   .bgid = RING_BUFFER_GROUP};
    int result = io_uring_register_buf_ring(&shard->uring, &reg, 0);
    if (result < 0) {
        MARK("io.ring_net.no_buffers");
        log_error("io", "receive buffers cannot be registered error=%s", strerror(-result));
        return ring_errno_status(-result);
    }
    for (u32 i = 0; i < count; i++)
        buffer_give(shard, i);
    return ST_OK;
}

/* After the ring was closed: the kernel writes into buffers until then. */
void
ring_net_deinit(struct ring_shard *shard)
{
    struct budget *budget = &shard->core.budget;
    if (shard->buffers != NULL)
        mem_free(budget, shard->buffers, (size_t)shard->buffer_count * RING_BUFFER_BYTES);
    if (shard->buffer_ring != NULL) mem_free(budget, shard->buffer_ring, buffer_ring_bytes(shard));
    shard->buffers = NULL;
    shard->buffer_ring = NULL;
}

/* ---- receiving ---- */

void
backend_conn_receive(struct io_conn *core)
{
    struct ring_conn *conn = ring_conn_of(core);
    if (conn->recv_req.active || list_linked(&conn->recv_link)) return;
    list_push_back(&conn_shard(conn)->conns_recv, &conn->recv_link);
}

void
backend_conn_receive_cut(struct io_conn *core)
{
    struct ring_conn *conn = ring_conn_of(core);
    ring_req_cancel(conn_shard(conn), &conn->recv_req);
}

void
backend_conn_receive_stop(struct io_conn *core)
{
    list_del(&ring_conn_of(core)->recv_link);
    backend_conn_receive_cut(core);
}

bool
backend_conn_input_busy(const struct io_conn *core)
{
    const struct ring_conn *conn = (const struct ring_conn *)core;
    return conn->recv_req.active && conn->receiving_direct;
}

static void
conn_receive_arm(struct ring_conn *conn)
{
    struct ring_shard *shard = conn_shard(conn);
    struct buf *input = &conn->core.input;
    bool direct = core_conn_wants_direct(&conn->core);
    if (direct && !core_conn_direct_reserve(&conn->core)) return; /* it waits for room */
    struct io_uring_sqe *sqe = ring_sqe(shard);
    bool many = conn->sends_small && core_room_is_ample(&shard->net);
    conn->receiving_direct = direct;
    conn->sends_small = !direct;
    if (direct) {
        /* Not MSG_WAITALL: of who sends in small pieces the kernel polls so often, and then a
         * worker waits, of which there are few. */
        io_uring_prep_recv(sqe, conn->fd, input->data + input->size,
                           conn->core.want_bytes - input->size, 0);
    } else {
        /* One arming brings up to 32 buffers before anybody can say that it is enough: so one at a
         * time when memory is short, and where a large frame may begin, of which the rest is to
         * come without a copy. */
        if (many)
            io_uring_prep_recv_multishot(sqe, conn->fd, NULL, 0, 0);
        else
            io_uring_prep_recv(sqe, conn->fd, NULL, 0, 0);
        sqe->flags |= IOSQE_BUFFER_SELECT;
        sqe->buf_group = RING_BUFFER_GROUP;
    }
    ring_sqe_file(sqe, conn->fd, conn->slot);
    ring_req_arm(shard, sqe, &conn->recv_req);
}

static void
conn_recv_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct ring_conn *conn = CONTAINER_OF(req, struct ring_conn, recv_req);
    struct ring_shard *shard = conn_shard(conn);
    struct io_conn *core = &conn->core;
    if (result > 0) {
        shard->core.stats.received_bytes += (u32)result;
        core->received += (u32)result;
        if (flags & IORING_CQE_F_BUFFER) {
            u32 id = flags >> IORING_CQE_BUFFER_SHIFT;
            core_conn_arrived(core, BYTES(shard->buffers + (size_t)id * RING_BUFFER_BYTES, result));
            buffer_give(shard, id);
        } else {
            core->input.size += (u32)result;
            core_conn_input_grown(core);
        }
    } else {
        if (flags & IORING_CQE_F_BUFFER) buffer_give(shard, flags >> IORING_CQE_BUFFER_SHIFT);
        if (result == -ENOBUFS) {
            MARK("io.ring_net.receive_stalled");
            shard->core.stats.receive_stalls++;
        } else if (result != 0 && result != -ECANCELED && result != -EINTR && result != -EAGAIN) {
            MARK("io.ring_net.receive_failed");
            core_conn_shut(core, conn_errno_status(-result));
        }
        /* What could not be given while the kernel might write behind it. */
        if (conn->receiving_direct) core_conn_input_grown(core);
        if (result == 0) core_conn_peer_ended(core);
    }
    if (flags & IORING_CQE_F_MORE) return;
    core_conn_receive_later(core);
    core_conn_shut_check(core);
}

u64
io_conn_arrived(const struct io_conn *conn)
{
    const struct ring_conn *ring = (const struct ring_conn *)conn;
    struct tcp_info info = {0};
    socklen_t size = sizeof(info);
    bool told = getsockopt(ring->fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
                size >= offsetof(struct tcp_info, tcpi_bytes_received) + sizeof(u64);
    return MAX(told ? info.tcpi_bytes_received : 0, conn->received);
}

/* No request of the ring waits for it: sessions pause for microseconds, again and again, and each
 * time it would have to be made and taken back. */
enum io_conn_peer
io_conn_peer_look(const struct io_conn *conn)
{
    struct pollfd look = {.fd = ((const struct ring_conn *)conn)->fd, .events = POLLRDHUP};
    if (poll(&look, 1, 0) <= 0) return IO_PEER_THERE;
    if (look.revents & (POLLHUP | POLLERR)) return IO_PEER_GONE;
    return look.revents & POLLRDHUP ? IO_PEER_ENDED : IO_PEER_THERE;
}

/* ---- sending ---- */

void
backend_conn_send(struct io_conn *core)
{
    struct ring_conn *conn = ring_conn_of(core);
    if (!list_linked(&conn->send_link))
        list_push_back(&conn_shard(conn)->conns_send, &conn->send_link);
}

static void
conn_send_arm(struct ring_conn *conn)
{
    struct core_output *output = &conn->core.output;
    u32 total;
    u32 count =
        core_output_gather(output, CONN_SEND_BYTES_MAX, conn->vectors, CONN_VECTORS, &total);
    if (count == 0) return;
    struct io_uring_sqe *sqe = ring_sqe(conn_shard(conn));
    if (count == 1) {
        io_uring_prep_send(sqe, conn->fd, conn->vectors[0].iov_base, total,
                           MSG_NOSIGNAL | MSG_WAITALL);
    } else {
        conn->message = (struct msghdr){.msg_iov = conn->vectors, .msg_iovlen = count};
        io_uring_prep_sendmsg(sqe, conn->fd, &conn->message, MSG_NOSIGNAL | MSG_WAITALL);
    }
    ring_sqe_file(sqe, conn->fd, conn->slot);
    output->sending = total;
    ring_req_arm(conn_shard(conn), sqe, &conn->send_req);
}

static void
conn_send_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct ring_conn *conn = CONTAINER_OF(req, struct ring_conn, send_req);
    if (result <= 0 && result != -EINTR && result != -EAGAIN) {
        MARK("io.ring_net.send_failed");
        core_conn_shut(&conn->core, result == 0 ? ST_CLOSED : conn_errno_status(-result));
    }
    core_conn_sent(&conn->core, result > 0 ? (u32)result : 0);
}

void
ring_net_flush(struct ring_shard *shard)
{
    struct list *link;
    while ((link = list_pop_front(&shard->conns_recv)) != NULL) {
        struct ring_conn *conn = list_entry(link, struct ring_conn, recv_link);
        if (!conn->recv_req.active && conn->core.state != CONN_SHUT) conn_receive_arm(conn);
    }
    while ((link = list_pop_front(&shard->conns_send)) != NULL) {
        struct ring_conn *conn = list_entry(link, struct ring_conn, send_link);
        if (!conn->send_req.active && conn->core.state != CONN_SHUT) conn_send_arm(conn);
    }
}

/* ---- beginning and end ---- */

bool
backend_conn_active(const struct io_conn *core)
{
    const struct ring_conn *conn = (const struct ring_conn *)core;
    return conn->recv_req.active || conn->send_req.active;
}

/* The socket is new: what fits into its buffer goes at once, and nobody waits. */
static void
last_words(int fd, struct bytes text)
{
    if (text.size != 0) (void)!send(fd, text.data, text.size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void
backend_conn_last_words(struct io_conn *core, struct bytes text)
{
    last_words(ring_conn_of(core)->fd, text);
}

void
backend_conn_shut_send(struct io_conn *core)
{
    shutdown(ring_conn_of(core)->fd, SHUT_WR);
}

void
backend_conn_shut(struct io_conn *core)
{
    struct ring_conn *conn = ring_conn_of(core);
    struct ring_shard *shard = conn_shard(conn);
    list_del(&conn->recv_link);
    list_del(&conn->send_link);
    shutdown(conn->fd, SHUT_RDWR);
    ring_req_cancel(shard, &conn->recv_req);
    ring_req_cancel(shard, &conn->send_req);
}

void
backend_conn_free(struct io_conn *core)
{
    struct ring_conn *conn = ring_conn_of(core);
    struct ring_shard *shard = conn_shard(conn);
    core_conn_deinit(core);
    ring_slot_give(shard, conn->slot);
    close(conn->fd);
    mem_free(&shard->core.budget, conn, sizeof(*conn));
}

status
ring_conn_open(struct ring_shard *shard, int fd, const struct io_conn_events *events, void *arg,
               struct io_conn **out)
{
    struct ring_conn *conn = mem_alloc_zero(&shard->core.budget, sizeof(*conn));
    if (conn == NULL) {
        MARK("io.ring_net.no_memory");
        last_words(fd, events->refusal);
        close(fd);
        return ST_NO_MEMORY;
    }
    core_conn_init(&conn->core, &shard->net, events);
    conn->fd = fd;
    conn->slot = shard->sockets_have_slots ? ring_slot_take(shard, fd) : -1;
    conn->recv_req.complete = conn_recv_complete;
    conn->send_req.complete = conn_send_complete;
    list_init(&conn->send_link);
    list_init(&conn->recv_link);
    status st = core_conn_open(&conn->core, arg);
    if (!ok(st)) return st;
    if (out != NULL) *out = &conn->core;
    return ST_OK;
}

void
ring_net_shut(struct ring_shard *shard)
{
    shard->net_shut = true;
    ring_listeners_shut(shard);
    core_net_shut(&shard->net);
}

/* ---- who it is ---- */

static void
address_name(const struct sockaddr_storage *address, char *name, size_t size)
{
    char host[INET6_ADDRSTRLEN] = "?";
    u16 port = 0;
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        port = ntohs(in->sin_port);
    } else if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        port = ntohs(in6->sin6_port);
    }
    snprintf(name, size, address->ss_family == AF_INET6 ? "[%s]:%u" : "%s:%u", host, port);
}

void
io_conn_peer_name(const struct io_conn *conn, char *name, size_t size)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    const struct ring_conn *ring = (const struct ring_conn *)conn;
    if (getpeername(ring->fd, (struct sockaddr *)&address, &length) != 0) address.ss_family = 0;
    address_name(&address, name, size);
}

void
io_conn_local_name(const struct io_conn *conn, char *name, size_t size)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    const struct ring_conn *ring = (const struct ring_conn *)conn;
    if (getsockname(ring->fd, (struct sockaddr *)&address, &length) != 0) address.ss_family = 0;
    address_name(&address, name, size);
}
