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
 *   state      receive            send               leaves by
 *   OPEN       armed, given       what may go        io_conn_close, the peer's end, an error
 *   FLUSHING   ending             what may go        all sent -> LINGERING; timer -> SHUT
 *   LINGERING  armed, thrown away none               the peer's end, timer -> SHUT
 *   SHUT       ending             ending             both ended -> closed() and freed, by a task
 *
 * Lingering: closing a socket that has unread bytes sends a reset, which may destroy the last reply
 * on its way. So after the last byte we only shut the sending side, and wait a moment for the peer.
 *
 * A peer that only closes its sending side still gets what is held for the log. When it is released
 * after that, io_conn_send_until sends it, and the end comes with the last byte.
 *
 * An io_conn is freed only when neither request is active, so a late completion always finds it.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>

#include "base/buf.h"
#include "base/log.h"

#define CONN_VECTORS        8u
#define CONN_SEND_BYTES_MAX (1u << 20)
#define CHUNK_FIRST_BYTES   (4u << 10) /* with its header */
#define CHUNK_NEXT_BYTES    (16u << 10)
/* Of the shard's memory: unfinished requests, and unread replies. */
#define CONN_INPUT_SHARE  8u
#define CONN_OUTPUT_SHARE 8u
/* One frame of any size that is allowed always fits. */
#define CONN_INPUT_BYTES_MIN (CONN_INPUT_MAX_BYTES / 4 * 5)
#define CONN_FLUSH_NS_MAX    (3 * NS_PER_S)
#define CONN_LINGER_NS_MAX   (500 * NS_PER_MS)
/* A session that has not come round to what it was given is given no more than this. */
#define CONN_INPUT_BACKLOG_MAX (64u << 10)

enum conn_state { CONN_OPEN, CONN_FLUSHING, CONN_LINGERING, CONN_SHUT };

struct conn_chunk {
    struct list link;
    u32 size; /* of data */
    u32 used; /* filled */
    u32 sent; /* acknowledged by the kernel */
    u32 reserved_zero;
    u8 data[];
};

struct io_conn {
    struct list link;      /* shard->conns */
    struct list send_link; /* shard->conns_send, or none */
    struct list recv_link; /* shard->conns_recv, or none */
    struct ring_shard *shard;
    const struct io_conn_events *events;
    void *user;
    u64 id;
    int fd;
    i32 slot;
    enum conn_state state;
    bool opened;
    bool paused;
    bool peer_ended;
    bool end_told;   /* to the session */
    bool flush_held; /* the peer closed its sending side: it may still read held replies */
    bool again_posted;
    bool close_posted;
    bool receiving_direct; /* the active receive goes into input */
    bool was_high;         /* output passed CONN_OUTPUT_HIGH_BYTES; drained is owed */
    bool reserved;         /* the last chunk is being filled */
    status why;

    struct ring_req recv_req;
    struct buf input;  /* left over by the session */
    size_t want_bytes; /* the frame at the front, 0: not known */
    u64 received;      /* by us; see io_conn_arrived */

    struct ring_req send_req;
    struct list chunks; /* struct conn_chunk.link */
    u64 written;
    u64 sent;
    u64 send_until;
    u32 send_bytes; /* in flight */
    struct iovec vectors[CONN_VECTORS];
    struct msghdr message;

    struct io_timer timer; /* of flushing and lingering */
    struct core_task again_task;
    struct core_task close_task;
};

static void conn_shut(struct io_conn *conn, status why);
static void conn_flushed_check(struct io_conn *conn);

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
    list_init(&shard->conns);
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
    u64 input_bytes = MAX(budget->limit_bytes / CONN_INPUT_SHARE, CONN_INPUT_BYTES_MIN);
    budget_init(&shard->input_budget, "input", input_bytes, budget);
    budget_init(&shard->output_budget, "output", budget->limit_bytes / CONN_OUTPUT_SHARE, budget);
    shard->buffers = mem_alloc_aligned(budget, (size_t)count * RING_BUFFER_BYTES, 4096);
    shard->buffer_ring = mem_alloc_aligned(budget, buffer_ring_bytes(shard), 4096);
    if (shard->buffers == NULL || shard->buffer_ring == NULL) return ST_NO_MEMORY;
    io_uring_buf_ring_init(shard->buffer_ring);
    struct io_uring_buf_reg reg = {.ring_addr = (u64)(uintptr_t)shard->buffer_ring,
                                   .ring_entries = count,
                                   .bgid = RING_BUFFER_GROUP};
    int result = io_uring_register_buf_ring(&shard->uring, &reg, 0);
    if (result < 0) {
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

/* What may lie before a session that does not come round to it. */
static size_t
conn_backlog_max(const struct ring_shard *shard)
{
    u64 share = shard->input_budget.limit_bytes / 4 / MAX(shard->core.stats.connections, 1u);
    return (size_t)CLAMP(share, RING_BUFFER_BYTES, CONN_INPUT_BACKLOG_MAX);
}

static void
conn_starve(struct io_conn *conn)
{
    conn->shard->core.stats.connections_starved++;
    conn_shut(conn, ST_NO_MEMORY);
}

static void
conn_receive_later(struct io_conn *conn)
{
    if (conn->recv_req.active || list_linked(&conn->recv_link)) return;
    bool wanted = conn->state == CONN_OPEN ? !conn->paused : conn->state == CONN_LINGERING;
    /* A session that works off a backlog turn by turn gets no more on top: a fast sender would
     * otherwise add a pool of buffers in every turn. conn_again_run asks again. */
    if (conn->state == CONN_OPEN && conn->again_posted &&
        conn->input.size > conn_backlog_max(conn->shard))
        wanted = false;
    if (wanted && !conn->peer_ended) list_push_back(&conn->shard->conns_recv, &conn->recv_link);
}

/* Much of one frame is known to come: straight into the input. Not for a little: of a frame whose
 * end is not known yet only the next few bytes are, and there may be many such. */
static bool
conn_wants_direct(const struct io_conn *conn)
{
    return conn->want_bytes > conn->input.size &&
           conn->want_bytes - conn->input.size > RING_BUFFER_BYTES;
}

static void
conn_receive_arm(struct io_conn *conn)
{
    struct ring_shard *shard = conn->shard;
    bool direct = conn->state == CONN_OPEN && conn_wants_direct(conn);
    /* The last eighth is for the ends of small requests. */
    const struct budget *budget = &shard->input_budget;
    bool room = budget->used_bytes + conn->want_bytes <= budget->limit_bytes / 8 * 7;
    if (direct && (!room || !buf_reserve(&conn->input, conn->want_bytes - conn->input.size))) {
        conn_starve(conn);
        return;
    }
    struct io_uring_sqe *sqe = ring_sqe(shard);
    conn->receiving_direct = direct;
    if (direct) {
        io_uring_prep_recv(sqe, conn->fd, conn->input.data + conn->input.size,
                           conn->want_bytes - conn->input.size, MSG_WAITALL);
    } else {
        /* One arming brings up to 32 buffers before anybody can say that it is enough: when memory
         * is short, one at a time. */
        if (budget->used_bytes <= budget->limit_bytes / 4)
            io_uring_prep_recv_multishot(sqe, conn->fd, NULL, 0, 0);
        else
            io_uring_prep_recv(sqe, conn->fd, NULL, 0, 0);
        sqe->flags |= IOSQE_BUFFER_SELECT;
        sqe->buf_group = RING_BUFFER_GROUP;
    }
    ring_sqe_file(sqe, conn->fd, conn->slot);
    ring_req_arm(shard, sqe, &conn->recv_req);
}

/* The session has its turn; returns what it consumed. */
static size_t
conn_give(struct io_conn *conn, struct bytes data)
{
    conn->want_bytes = 0;
    size_t consumed = conn->events->received(conn, data);
    CHECK(consumed <= data.size);
    return consumed;
}

static void
conn_give_input(struct io_conn *conn)
{
    /* The kernel is writing behind the bytes; they are given when it has finished. */
    if (conn->recv_req.active && conn->receiving_direct) return;
    size_t consumed = conn_give(conn, buf_bytes(&conn->input));
    buf_consume(&conn->input, consumed);
    if (conn->input.size == 0) buf_clear(&conn->input, 0);
}

/* Whether the session is not to be called now: it has asked for a pause or for its next turn. */
static bool
conn_holds_back(const struct io_conn *conn)
{
    return conn->paused || conn->again_posted;
}

static void
conn_bytes_arrived(struct io_conn *conn, struct bytes data)
{
    if (conn->state != CONN_OPEN) return; /* thrown away */
    if (conn->input.size == 0 && !conn_holds_back(conn)) {
        size_t consumed = conn_give(conn, data);
        if (conn->state != CONN_OPEN || consumed == data.size) goto want;
        data = BYTES(data.data + consumed, data.size - consumed);
        if (!buf_append(&conn->input, data.data, data.size)) {
            conn_starve(conn);
            return;
        }
        goto want;
    }
    if (!buf_append(&conn->input, data.data, data.size)) {
        conn_starve(conn);
        return;
    }
    if (conn_holds_back(conn)) {
        if (conn->input.size > conn_backlog_max(conn->shard))
            ring_req_cancel(conn->shard, &conn->recv_req);
        return;
    }
    if (conn->input.size < conn->want_bytes) return;
    conn_give_input(conn);
want:
    /* The rest of a large frame comes without a copy, once this receive has ended. */
    if (conn->state == CONN_OPEN && conn_wants_direct(conn))
        ring_req_cancel(conn->shard, &conn->recv_req);
}

/* Not before the session has come round to all that was sent. */
static void
conn_end_tell(struct io_conn *conn)
{
    if (!conn->peer_ended || conn->end_told || conn->state != CONN_OPEN) return;
    if (conn->events->ended == NULL) {
        conn->flush_held = true;
        io_conn_close(conn, IO_CLOSE_FLUSH);
    } else if (!conn_holds_back(conn)) {
        conn->end_told = true;
        conn->events->ended(conn);
    }
}

static void
conn_peer_ended(struct io_conn *conn)
{
    conn->peer_ended = true;
    if (conn->state == CONN_OPEN) {
        conn_end_tell(conn);
    } else if (conn->state == CONN_LINGERING) {
        conn_shut(conn, ST_OK);
    }
}

static void
conn_shut_check(struct io_conn *conn)
{
    if (conn->state != CONN_SHUT || conn->close_posted) return;
    if (conn->recv_req.active || conn->send_req.active) return;
    conn->close_posted = true;
    core_task_post(&conn->shard->core, &conn->close_task);
}

static void
conn_recv_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct io_conn *conn = CONTAINER_OF(req, struct io_conn, recv_req);
    struct ring_shard *shard = conn->shard;
    if (result > 0) {
        shard->core.stats.received_bytes += (u32)result;
        conn->received += (u32)result;
        if (flags & IORING_CQE_F_BUFFER) {
            u32 id = flags >> IORING_CQE_BUFFER_SHIFT;
            conn_bytes_arrived(conn,
                               BYTES(shard->buffers + (size_t)id * RING_BUFFER_BYTES, result));
            buffer_give(shard, id);
        } else {
            conn->input.size += (u32)result;
            if (conn->state == CONN_OPEN && !conn_holds_back(conn) &&
                conn->input.size >= conn->want_bytes)
                conn_give_input(conn);
        }
    } else {
        if (flags & IORING_CQE_F_BUFFER) buffer_give(shard, flags >> IORING_CQE_BUFFER_SHIFT);
        if (result == -ENOBUFS)
            shard->core.stats.receive_stalls++;
        else if (result != 0 && result != -ECANCELED && result != -EINTR && result != -EAGAIN)
            conn_shut(conn, conn_errno_status(-result));
        /* What could not be given while the kernel might write behind it. */
        if (conn->receiving_direct && conn->state == CONN_OPEN && !conn_holds_back(conn) &&
            conn->input.size > 0 && conn->input.size >= conn->want_bytes)
            conn_give_input(conn);
        if (result == 0) conn_peer_ended(conn);
    }
    if (flags & IORING_CQE_F_MORE) return;
    conn_receive_later(conn);
    conn_shut_check(conn);
}

static void
conn_again_run(struct core_task *task)
{
    struct io_conn *conn = CONTAINER_OF(task, struct io_conn, again_task);
    conn->again_posted = false;
    if (conn->state != CONN_OPEN || conn->paused) return;
    if (conn->input.size > 0 && conn->input.size >= conn->want_bytes) conn_give_input(conn);
    conn_end_tell(conn);
    conn_receive_later(conn);
}

void
io_conn_want(struct io_conn *conn, size_t frame_bytes)
{
    CHECK(frame_bytes <= CONN_INPUT_MAX_BYTES);
    conn->want_bytes = frame_bytes;
}

u64
io_conn_arrived(const struct io_conn *conn)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof(info);
    bool told = getsockopt(conn->fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
                size >= offsetof(struct tcp_info, tcpi_bytes_received) + sizeof(u64);
    return MAX(told ? info.tcpi_bytes_received : 0, conn->received);
}

void
io_conn_again(struct io_conn *conn)
{
    if (conn->again_posted || conn->state != CONN_OPEN) return;
    conn->again_posted = true;
    core_task_post(&conn->shard->core, &conn->again_task);
}

void
io_conn_pause(struct io_conn *conn)
{
    if (conn->paused) return;
    conn->paused = true;
    list_del(&conn->recv_link);
    ring_req_cancel(conn->shard, &conn->recv_req);
}

void
io_conn_resume(struct io_conn *conn)
{
    if (!conn->paused) return;
    conn->paused = false;
    io_conn_again(conn);
}

/* ---- output ---- */

static u64
conn_sendable(const struct io_conn *conn)
{
    u64 until = MIN(conn->written, conn->send_until);
    u64 from = conn->sent + conn->send_bytes;
    return until > from ? until - from : 0;
}

static void
conn_send_later(struct io_conn *conn)
{
    if (conn->state > CONN_FLUSHING || conn->send_req.active) return;
    if (list_linked(&conn->send_link) || conn_sendable(conn) == 0) return;
    list_push_back(&conn->shard->conns_send, &conn->send_link);
}

/* How much one connection may be owed: as long as there is plenty, much; else its fair share. */
static size_t
conn_output_limit(const struct ring_shard *shard)
{
    u64 limit = shard->output_budget.limit_bytes, used = shard->output_budget.used_bytes;
    if (used <= limit / 4) return CONN_OUTPUT_HIGH_BYTES;
    u64 share = limit / 4 / MAX(shard->core.stats.connections, 1u);
    return (size_t)CLAMP(share, CHUNK_FIRST_BYTES, CONN_OUTPUT_HIGH_BYTES);
}

static void
chunk_free(struct io_conn *conn, struct conn_chunk *chunk)
{
    list_del(&chunk->link);
    mem_free(&conn->shard->output_budget, chunk, sizeof(*chunk) + chunk->size);
}

static struct conn_chunk *
chunk_last(const struct io_conn *conn)
{
    return list_empty(&conn->chunks) ? NULL
                                     : list_entry(conn->chunks.prev, struct conn_chunk, link);
}

u8 *
io_conn_reserve(struct io_conn *conn, size_t size)
{
    struct conn_chunk *chunk = chunk_last(conn);
    if (chunk == NULL || chunk->size - chunk->used < size) {
        if (size > CONN_INPUT_MAX_BYTES * 2) return NULL;
        bool roomy = conn_output_limit(conn->shard) >= CONN_OUTPUT_LOW_BYTES;
        size_t bytes = chunk == NULL || !roomy ? CHUNK_FIRST_BYTES : CHUNK_NEXT_BYTES;
        if (size > bytes - sizeof(*chunk))
            bytes = (size_t)align_up(size + sizeof(*chunk), CHUNK_FIRST_BYTES);
        /* The last eighth is for small replies: they must not fail because of long ones. */
        const struct budget *budget = &conn->shard->output_budget;
        if (bytes > CHUNK_FIRST_BYTES && budget->used_bytes + bytes > budget->limit_bytes / 8 * 7)
            return NULL;
        chunk = mem_alloc(&conn->shard->output_budget, bytes);
        if (chunk == NULL) return NULL;
        *chunk = (struct conn_chunk){.size = (u32)(bytes - sizeof(*chunk))};
        list_push_back(&conn->chunks, &chunk->link);
    }
    conn->reserved = true;
    return chunk->data + chunk->used;
}

void
io_conn_commit(struct io_conn *conn, size_t size)
{
    struct conn_chunk *chunk = chunk_last(conn);
    CHECK(conn->reserved && chunk != NULL);
    CHECK(size <= chunk->size - chunk->used);
    conn->reserved = false;
    chunk->used += (u32)size;
    conn->written += size;
    if (conn->written - conn->sent > CONN_OUTPUT_HIGH_BYTES) conn->was_high = true;
    conn_send_later(conn);
}

bool
io_conn_write(struct io_conn *conn, const void *data, size_t size)
{
    const u8 *from = data;
    /* What fits goes into the last chunk, the rest into one more. */
    struct conn_chunk *chunk = chunk_last(conn);
    if (chunk != NULL && chunk->used < chunk->size && chunk->size - chunk->used < size) {
        size_t room = chunk->size - chunk->used;
        /* Nothing is written when there is no memory for the rest. */
        if (io_conn_reserve(conn, size - room) == NULL) return false;
        struct conn_chunk *next = chunk_last(conn);
        if (next != chunk) {
            memcpy(chunk->data + chunk->used, from, room);
            chunk->used += (u32)room;
            conn->written += room;
            from += room;
            size -= room;
        }
    }
    u8 *to = io_conn_reserve(conn, size);
    if (to == NULL) return false;
    if (size > 0) memcpy(to, from, size);
    io_conn_commit(conn, size);
    return true;
}

bool
io_conn_write_piece(struct io_conn *conn, const void *data, size_t size)
{
    const struct budget *budget = &conn->shard->output_budget;
    if (budget->used_bytes + size <= budget->limit_bytes / 2 && io_conn_write(conn, data, size))
        return true;
    conn->was_high = true;
    return false;
}

u64
io_conn_written(const struct io_conn *conn)
{
    return conn->written;
}

void
io_conn_send_until(struct io_conn *conn, u64 position)
{
    conn->send_until = MAX(position, conn->sent + conn->send_bytes);
    conn_send_later(conn);
}

size_t
io_conn_pending(const struct io_conn *conn)
{
    return conn->written - conn->sent;
}

bool
io_conn_output_full(struct io_conn *conn)
{
    if (io_conn_pending(conn) <= conn_output_limit(conn->shard)) return false;
    conn->was_high = true;
    return true;
}

static void
conn_send_arm(struct io_conn *conn)
{
    u64 left = MIN(conn_sendable(conn), CONN_SEND_BYTES_MAX);
    if (left == 0) return;
    u32 count = 0;
    u32 total = 0;
    list_for_each (link, &conn->chunks) {
        struct conn_chunk *chunk = list_entry(link, struct conn_chunk, link);
        u32 bytes = (u32)MIN(left - total, chunk->used - chunk->sent);
        if (bytes == 0) continue;
        conn->vectors[count++] =
            (struct iovec){.iov_base = chunk->data + chunk->sent, .iov_len = bytes};
        total += bytes;
        if (count == CONN_VECTORS || total == left) break;
    }
    struct io_uring_sqe *sqe = ring_sqe(conn->shard);
    if (count == 1) {
        io_uring_prep_send(sqe, conn->fd, conn->vectors[0].iov_base, total,
                           MSG_NOSIGNAL | MSG_WAITALL);
    } else {
        conn->message = (struct msghdr){.msg_iov = conn->vectors, .msg_iovlen = count};
        io_uring_prep_sendmsg(sqe, conn->fd, &conn->message, MSG_NOSIGNAL | MSG_WAITALL);
    }
    ring_sqe_file(sqe, conn->fd, conn->slot);
    conn->send_bytes = total;
    ring_req_arm(conn->shard, sqe, &conn->send_req);
}

static void
conn_output_advance(struct io_conn *conn, u32 moved)
{
    conn->sent += moved;
    while (moved > 0) {
        struct conn_chunk *chunk = list_entry(conn->chunks.next, struct conn_chunk, link);
        u32 bytes = MIN(moved, chunk->used - chunk->sent);
        chunk->sent += bytes;
        moved -= bytes;
        if (chunk->sent < chunk->used) break;
        if (chunk == chunk_last(conn) && conn->reserved) break;
        chunk_free(conn, chunk);
    }
}

static void
conn_send_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct io_conn *conn = CONTAINER_OF(req, struct io_conn, send_req);
    conn->send_bytes = 0;
    if (result > 0) {
        conn->shard->core.stats.sent_bytes += (u32)result;
        conn_output_advance(conn, (u32)result);
    } else if (result != -EINTR && result != -EAGAIN) {
        conn_shut(conn, result == 0 ? ST_CLOSED : conn_errno_status(-result));
    }
    if (conn->was_high && io_conn_pending(conn) < CONN_OUTPUT_LOW_BYTES) {
        conn->was_high = false;
        if (conn->state == CONN_OPEN) conn->events->drained(conn);
    }
    conn_send_later(conn);
    conn_flushed_check(conn);
    conn_shut_check(conn);
}

void
ring_net_flush(struct ring_shard *shard)
{
    struct list *link;
    while ((link = list_pop_front(&shard->conns_recv)) != NULL) {
        struct io_conn *conn = list_entry(link, struct io_conn, recv_link);
        if (!conn->recv_req.active && conn->state != CONN_SHUT) conn_receive_arm(conn);
    }
    while ((link = list_pop_front(&shard->conns_send)) != NULL) {
        struct io_conn *conn = list_entry(link, struct io_conn, send_link);
        if (!conn->send_req.active && conn->state != CONN_SHUT) conn_send_arm(conn);
    }
}

/* ---- the end of a connection ---- */

/* The one way to SHUT. The first reason stays. */
static void
conn_shut(struct io_conn *conn, status why)
{
    if (conn->state == CONN_SHUT) return;
    conn->state = CONN_SHUT;
    if (ok(conn->why)) conn->why = why;
    io_timer_cancel(&conn->timer);
    list_del(&conn->recv_link);
    list_del(&conn->send_link);
    shutdown(conn->fd, SHUT_RDWR);
    ring_req_cancel(conn->shard, &conn->recv_req);
    ring_req_cancel(conn->shard, &conn->send_req);
    conn_shut_check(conn);
}

/* FLUSHING and nothing left that may go. */
static void
conn_flushed_check(struct io_conn *conn)
{
    if (conn->state != CONN_FLUSHING || conn->send_req.active || conn_sendable(conn) > 0) return;
    if (conn->flush_held && conn->written > conn->sent) return; /* released later, or the timer */
    if (conn->peer_ended) {
        conn_shut(conn, ST_OK);
        return;
    }
    conn->state = CONN_LINGERING;
    shutdown(conn->fd, SHUT_WR);
    io_timer_arm(&conn->timer, io_now_ns() + CONN_LINGER_NS_MAX);
    conn_receive_later(conn);
}

static void
conn_timer_fire(struct io_timer *timer)
{
    struct io_conn *conn = CONTAINER_OF(timer, struct io_conn, timer);
    bool late = conn->state == CONN_FLUSHING && !conn->peer_ended;
    conn_shut(conn, late ? ST_TIMED_OUT : ST_OK);
}

void
io_conn_close(struct io_conn *conn, enum io_close_mode mode)
{
    if (mode == IO_CLOSE_ABORT) {
        conn_shut(conn, ST_OK);
        return;
    }
    if (conn->state != CONN_OPEN) return;
    conn->state = CONN_FLUSHING;
    list_del(&conn->recv_link);
    ring_req_cancel(conn->shard, &conn->recv_req);
    io_timer_arm(&conn->timer, io_now_ns() + CONN_FLUSH_NS_MAX);
    conn_send_later(conn);
    conn_flushed_check(conn);
}

static void
conn_free(struct io_conn *conn)
{
    struct ring_shard *shard = conn->shard;
    while (!list_empty(&conn->chunks))
        chunk_free(conn, list_entry(conn->chunks.next, struct conn_chunk, link));
    buf_deinit(&conn->input);
    ring_slot_give(shard, conn->slot);
    close(conn->fd);
    list_del(&conn->link);
    shard->core.stats.connections--;
    mem_free(&shard->core.budget, conn, sizeof(*conn));
}

static void
conn_close_run(struct core_task *task)
{
    struct io_conn *conn = CONTAINER_OF(task, struct io_conn, close_task);
    if (conn->again_posted) list_del(&conn->again_task.link);
    if (conn->opened) conn->events->closed(conn, conn->why);
    conn_free(conn);
}

/* ---- the beginning ---- */

status
ring_conn_open(struct ring_shard *shard, int fd, const struct io_conn_events *events, void *arg,
               struct io_conn **out)
{
    struct io_conn *conn = mem_alloc_zero(&shard->core.budget, sizeof(*conn));
    if (conn == NULL) {
        close(fd);
        return ST_NO_MEMORY;
    }
    conn->shard = shard;
    conn->events = events;
    conn->id = ++shard->conn_id_last;
    conn->fd = fd;
    conn->slot = ring_slot_take(shard, fd);
    conn->send_until = UINT64_MAX;
    conn->recv_req.complete = conn_recv_complete;
    conn->send_req.complete = conn_send_complete;
    conn->again_task.run = conn_again_run;
    conn->close_task.run = conn_close_run;
    io_timer_init(&conn->timer, conn_timer_fire);
    buf_init(&conn->input, &shard->input_budget);
    list_init(&conn->chunks);
    list_init(&conn->send_link);
    list_init(&conn->recv_link);
    list_push_back(&shard->conns, &conn->link);
    shard->core.stats.connections++;

    status st = events->opened(conn, arg);
    if (!ok(st)) {
        conn_shut(conn, st);
        return st;
    }
    conn->opened = true;
    conn_receive_later(conn);
    if (out != NULL) *out = conn;
    return ST_OK;
}

void
ring_net_shut(struct ring_shard *shard)
{
    shard->net_shut = true;
    ring_listeners_shut(shard);
    list_for_each_safe (link, &shard->conns) {
        conn_shut(list_entry(link, struct io_conn, link), ST_OK);
    }
}

/* ---- who it is ---- */

void
io_conn_user_set(struct io_conn *conn, void *user)
{
    conn->user = user;
}

void *
io_conn_user(const struct io_conn *conn)
{
    return conn->user;
}

u64
io_conn_id(const struct io_conn *conn)
{
    return conn->id;
}

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
    if (getpeername(conn->fd, (struct sockaddr *)&address, &length) != 0) address.ss_family = 0;
    address_name(&address, name, size);
}

void
io_conn_local_name(const struct io_conn *conn, char *name, size_t size)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    if (getsockname(conn->fd, (struct sockaddr *)&address, &length) != 0) address.ss_family = 0;
    address_name(&address, name, size);
}
