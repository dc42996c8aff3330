/* SPDX-License-Identifier: MIT
 *
 * core_conn.c -- the life of a connection between backend and session; states in core_conn.h.
 */
#include "io/core_conn.h"

#include "base/fault.h"

/* Of the shard's memory: unfinished requests, and unread replies. */
#define CONN_INPUT_SHARE  8u
#define CONN_OUTPUT_SHARE 8u
/* Of the shard's memory, for small input and for output: theirs as soon as there is a connection.
 */
#define CONN_INPUT_RESERVE_SHARE  32u
#define CONN_OUTPUT_RESERVE_SHARE 64u
/* One frame of any size that is allowed always fits. */
#define CONN_INPUT_BYTES_MIN (CONN_INPUT_MAX_BYTES / 4 * 5)
#define CONN_FLUSH_NS_MAX    (3 * NS_PER_S)
#define CONN_LINGER_NS_MAX   (500 * NS_PER_MS)
/* A session that has not come round to what it was given is given no more than this. */
#define CONN_INPUT_BACKLOG_MAX (64u << 10)

void
core_net_init(struct core_net *net, struct io_shard *shard)
{
    net->shard = shard;
    list_init(&net->conns);
    core_room_init(net);
    core_output_spares_init(&net->output_spares);
    struct budget *budget = &shard->budget;
    u64 input_bytes = MAX(budget->limit_bytes / CONN_INPUT_SHARE, CONN_INPUT_BYTES_MIN);
    budget_init(&net->input_budget, "input", input_bytes, budget);
    budget_init(&net->frame_budget, "large frames", input_bytes, budget);
    budget_init(&net->output_budget, "output", budget->limit_bytes / CONN_OUTPUT_SHARE, budget);
}

void
core_net_shut(struct core_net *net)
{
    list_for_each_safe (link, &net->conns) {
        core_conn_shut(list_entry(link, struct io_conn, link), ST_OK);
    }
}

void
core_net_stats(const struct core_net *net, struct io_stats *out)
{
    out->input_bytes = net->input_budget.used_bytes;
    out->frame_bytes = net->frame_budget.used_bytes;
}

/* ---- receiving ---- */

/* What may lie before a session that does not come round to it. Where others have the rest, all
 * connections together have half of what is kept for small input: the other half is for the ends of
 * requests. */
static size_t
conn_backlog_max(const struct core_net *net)
{
    const struct budget *input = &net->input_budget;
    u64 count = MAX(net->shard->stats.connections, 1u);
    if (!core_room_is_ample(net))
        return (size_t)MIN(input->reserved_bytes / 2 / count, CONN_INPUT_BACKLOG_MAX);
    return (size_t)CLAMP(input->limit_bytes / 4 / count, CONN_PIECE_BYTES, CONN_INPUT_BACKLOG_MAX);
}

static void
conn_starve(struct io_conn *conn)
{
    core_room_starved(conn);
    if (conn->state == CONN_OPEN) core_conn_shut(conn, ST_NO_MEMORY);
}

bool
core_conn_receives(const struct io_conn *conn)
{
    if (conn->peer_ended) return false;
    if (conn->state != CONN_OPEN) return conn->state == CONN_LINGERING;
    if (conn->paused != 0) return false;
    /* A session that works off a backlog turn by turn gets no more on top: a fast sender would
     * otherwise add a pool of buffers in every turn. conn_again_run asks again. */
    return !conn->again_posted || conn->input.size <= conn_backlog_max(conn->net);
}

void
core_conn_receive_later(struct io_conn *conn)
{
    if (core_conn_receives(conn)) backend_conn_receive(conn);
}

bool
core_conn_wants_direct(const struct io_conn *conn)
{
    /* Not for a little: of a frame whose end is not known yet only the next few bytes are wanted,
     * and there may be many such. */
    return conn->state == CONN_OPEN && conn->want_bytes > conn->input.size &&
           conn->want_bytes - conn->input.size > CONN_PIECE_BYTES;
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
conn_input_free(struct io_conn *conn)
{
    if (conn->input.capacity == 0) return;
    core_room_input_free(conn);
    if (conn->room_had) core_room_done(conn);
    core_room_freed(conn);
}

/* Nobody will read it any more. */
static void
conn_input_drop(struct io_conn *conn)
{
    if (!conn->giving && !backend_conn_input_busy(conn)) conn_input_free(conn);
}

static void
conn_give_input(struct io_conn *conn)
{
    /* The kernel is writing behind the bytes; they are given when it has finished. */
    if (backend_conn_input_busy(conn)) return;
    conn->giving = true;
    size_t consumed = conn_give(conn, buf_bytes(&conn->input));
    conn->giving = false;
    buf_consume(&conn->input, consumed);
    if (consumed > 0 && conn->room_had) core_room_done(conn);
    if (conn->state != CONN_OPEN || conn->input.size == 0) {
        conn_input_free(conn);
    } else if (consumed > 0 && conn->net->shard->stats.connections_waiting > 0) {
        (void)core_room_trim(conn);
        core_room_freed(conn);
    }
}

/* Whether the session is not to be called now: it has asked for a pause or for its next turn. */
static bool
conn_holds_back(const struct io_conn *conn)
{
    return conn->paused != 0 || conn->again_posted;
}

void
core_conn_arrived(struct io_conn *conn, struct bytes data)
{
    if (conn->state != CONN_OPEN) {
        MARK("io.conn.input_ignored");
        return;
    }
    bool given = conn->input.size == 0 && !conn_holds_back(conn);
    if (given) {
        size_t consumed = conn_give(conn, data);
        if (conn->state != CONN_OPEN) return;
        data = BYTES(data.data + consumed, data.size - consumed);
    }
    if (data.size > 0 && !core_room_keep(conn, data)) {
        conn_starve(conn);
        return;
    }
    if (!given && conn_holds_back(conn)) {
        if (conn->input.size > conn_backlog_max(conn->net)) {
            MARK("io.conn.backlog_full");
            backend_conn_receive_cut(conn);
        }
        return;
    }
    if (!given) {
        if (conn->input.size < conn->want_bytes) return;
        conn_give_input(conn);
    }
    /* The rest of a large frame comes without a copy, once this receive has ended. */
    if (core_conn_wants_direct(conn)) backend_conn_receive_cut(conn);
}

void
core_conn_input_grown(struct io_conn *conn)
{
    if (conn->state != CONN_OPEN) {
        conn_input_drop(conn);
        return;
    }
    if (!conn_holds_back(conn) && conn->input.size > 0 && conn->input.size >= conn->want_bytes)
        conn_give_input(conn);
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

void
core_conn_peer_ended(struct io_conn *conn)
{
    conn->peer_ended = true;
    if (conn->state == CONN_OPEN) {
        conn_end_tell(conn);
    } else if (conn->state == CONN_LINGERING) {
        core_conn_shut(conn, ST_OK);
    }
}

static void
conn_again_run(struct io_task *task)
{
    struct io_conn *conn = CONTAINER_OF(task, struct io_conn, again_task);
    conn->again_posted = false;
    if (conn->state != CONN_OPEN || conn->paused != 0) return;
    if (conn->input.size > 0 && conn->input.size >= conn->want_bytes) conn_give_input(conn);
    conn_end_tell(conn);
    core_conn_receive_later(conn);
}

void
io_conn_want(struct io_conn *conn, size_t frame_bytes)
{
    CHECK(frame_bytes <= CONN_INPUT_MAX_BYTES);
    conn->want_bytes = frame_bytes;
}

void
io_conn_again(struct io_conn *conn)
{
    if (conn->again_posted || conn->state != CONN_OPEN) return;
    conn->again_posted = true;
    core_task_post(conn->net->shard, &conn->again_task);
}

void
io_conn_pause(struct io_conn *conn)
{
    if (conn->paused & CONN_PAUSED_SESSION) return;
    core_room_leave(conn); /* and asks anew once it goes on */
    conn->paused |= CONN_PAUSED_SESSION;
    backend_conn_receive_stop(conn);
}

void
io_conn_resume(struct io_conn *conn)
{
    if (!(conn->paused & CONN_PAUSED_SESSION)) return;
    conn->paused &= (u8)~CONN_PAUSED_SESSION;
    io_conn_again(conn);
}

/* ---- sending ---- */

static void
conn_send_later(struct io_conn *conn)
{
    if (conn->state > CONN_FLUSHING || conn->output.sending > 0) return;
    if (core_output_sendable(&conn->output) > 0) backend_conn_send(conn);
}

u8 *
io_conn_reserve(struct io_conn *conn, size_t size)
{
    return core_output_reserve(&conn->output, size);
}

void
io_conn_commit(struct io_conn *conn, size_t size)
{
    core_output_commit(&conn->output, size);
    conn_send_later(conn);
}

bool
io_conn_write(struct io_conn *conn, const void *data, size_t size)
{
    if (!core_output_write(&conn->output, data, size)) return false;
    conn_send_later(conn);
    return true;
}

bool
io_conn_piece_fits(const struct io_conn *conn, size_t size)
{
    const struct budget *budget = conn->output.budget;
    return budget->used_bytes + size <= budget->limit_bytes / 2;
}

bool
io_conn_write_piece(struct io_conn *conn, const void *data, size_t size)
{
    if (io_conn_piece_fits(conn, size) && io_conn_write(conn, data, size)) return true;
    MARK("io.conn.piece_waits");
    conn->output.was_high = true;
    return false;
}

u64
io_conn_written(const struct io_conn *conn)
{
    return conn->output.written;
}

void
io_conn_send_until(struct io_conn *conn, u64 position)
{
    core_output_send_until(&conn->output, position);
    conn_send_later(conn);
}

size_t
io_conn_pending(const struct io_conn *conn)
{
    return core_output_pending(&conn->output);
}

bool
io_conn_output_full(struct io_conn *conn)
{
    return core_output_full(&conn->output);
}

/* FLUSHING and nothing left that may go. */
static void
conn_flushed_check(struct io_conn *conn)
{
    if (conn->state != CONN_FLUSHING || conn->output.sending > 0) return;
    if (core_output_sendable(&conn->output) > 0) return;
    if (conn->flush_held && io_conn_pending(conn) > 0) return; /* released later, or the timer */
    if (conn->peer_ended) {
        core_conn_shut(conn, ST_OK);
        return;
    }
    conn->state = CONN_LINGERING;
    backend_conn_shut_send(conn);
    io_timer_arm(&conn->timer, io_now_ns() + CONN_LINGER_NS_MAX);
    core_conn_receive_later(conn);
}

void
core_conn_sent(struct io_conn *conn, u32 bytes)
{
    conn->output.sending = 0;
    if (bytes > 0) {
        conn->net->shard->stats.sent_bytes += bytes;
        core_output_advance(&conn->output, bytes);
    }
    if (core_output_drained(&conn->output) && conn->state == CONN_OPEN) conn->events->drained(conn);
    conn_send_later(conn);
    conn_flushed_check(conn);
    core_conn_shut_check(conn);
}

/* ---- the end of a connection ---- */

void
core_conn_shut_check(struct io_conn *conn)
{
    if (conn->state != CONN_SHUT || conn->close_posted || backend_conn_active(conn)) return;
    conn->close_posted = true;
    core_task_post(conn->net->shard, &conn->close_task);
}

void
core_conn_shut(struct io_conn *conn, status why)
{
    if (conn->state == CONN_SHUT) return;
    conn->state = CONN_SHUT;
    if (ok(conn->why)) conn->why = why;
    io_timer_cancel(&conn->timer);
    core_room_leave(conn);
    backend_conn_shut(conn);
    conn_input_drop(conn);
    core_conn_shut_check(conn);
}

static void
conn_timer_fire(struct io_timer *timer)
{
    struct io_conn *conn = CONTAINER_OF(timer, struct io_conn, timer);
    bool late = conn->state == CONN_FLUSHING && !conn->peer_ended;
    if (late) MARK("io.conn.flush_late");
    core_conn_shut(conn, late ? ST_TIMED_OUT : ST_OK);
}

void
io_conn_close(struct io_conn *conn, enum io_close_mode mode)
{
    if (mode == IO_CLOSE_ABORT) {
        core_conn_shut(conn, ST_OK);
        return;
    }
    if (conn->state != CONN_OPEN) return;
    conn->state = CONN_FLUSHING;
    core_room_leave(conn);
    backend_conn_receive_stop(conn);
    conn_input_drop(conn);
    io_timer_arm(&conn->timer, io_now_ns() + CONN_FLUSH_NS_MAX);
    conn_send_later(conn);
    conn_flushed_check(conn);
}

static void
conn_close_run(struct io_task *task)
{
    struct io_conn *conn = CONTAINER_OF(task, struct io_conn, close_task);
    if (conn->again_posted) list_del(&conn->again_task.link);
    if (conn->opened) conn->events->closed(conn, conn->why);
    backend_conn_free(conn);
}

/* ---- the beginning ---- */

/* As long as there are connections. Who finds no memory for it does without. */
static void
conn_reserve(struct core_net *net)
{
    u64 bytes = net->shard->budget.limit_bytes;
    (void)!budget_reserve(&net->input_budget, bytes / CONN_INPUT_RESERVE_SHARE);
    (void)!budget_reserve(&net->output_budget, bytes / CONN_OUTPUT_RESERVE_SHARE);
}

static void
conn_unreserve(struct core_net *net)
{
    core_output_spares_free(&net->output_spares, &net->output_budget);
    budget_unreserve(&net->input_budget);
    budget_unreserve(&net->output_budget);
}

void
core_conn_init(struct io_conn *conn, struct core_net *net, const struct io_conn_events *events)
{
    conn->net = net;
    conn->events = events;
    conn->id = ++net->conn_id_last;
    conn->why = ST_OK;
    conn->again_task.run = conn_again_run;
    conn->close_task.run = conn_close_run;
    io_timer_init(&conn->timer, conn_timer_fire);
    list_init(&conn->hold_link);
    list_init(&conn->room_link);
    buf_init(&conn->input, &net->input_budget);
    core_output_init(&conn->output, net->shard, &net->output_budget, &net->output_spares);
    if (list_empty(&net->conns)) conn_reserve(net);
    list_push_back(&net->conns, &conn->link);
    net->shard->stats.connections++;
}

void
core_conn_deinit(struct io_conn *conn)
{
    core_output_deinit(&conn->output);
    conn_input_free(conn);
    list_del(&conn->link);
    struct core_net *net = conn->net;
    net->shard->stats.connections--;
    if (list_empty(&net->conns)) conn_unreserve(net);
}

status
core_conn_open(struct io_conn *conn, void *arg)
{
    status st = conn->events->opened(conn, arg);
    if (!ok(st)) {
        MARK("io.conn.refused");
        if (status_is(st, ST_NO_MEMORY) && conn->events->refusal.size != 0)
            backend_conn_last_words(conn, conn->events->refusal);
        core_conn_shut(conn, st);
        return st;
    }
    conn->opened = true;
    core_conn_receive_later(conn);
    return ST_OK;
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
