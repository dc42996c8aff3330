/* SPDX-License-Identifier: MIT
 *
 * sim_conn.c -- net.h of the simulated link: byte streams between the shards of all nodes.
 *
 *   io_conn A --output--> segments on their way --> arrived --> input --> io_conn B
 *             <---------------------- the other pipe of the line ------------------
 *
 * A line joins two ends and outlives either of them. Each direction is a pipe that holds at most
 * options.net.pipe_bytes between the sender's output and the receiver's input; segments have random
 * sizes and delays but keep their order, and what arrives is cut again, down to one byte.
 *
 *   state      receives   sends            leaves by
 *   OPEN       yes        what may go      io_conn_close, the peer's end, a reset
 *   FLUSHING   no         what may go      all sent -> end of stream, SHUT; timer -> SHUT
 *   SHUT       no         nothing          a task calls closed() and frees
 *
 * A machine that loses power resets its lines at once or (like a host that is gone) says nothing,
 * so that the peer learns of it only when it sends.
 */
#include "io/sim_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/crc.h"
#include "io/net.h"

#define CONN_FLUSH_NS_MAX      (3 * NS_PER_S)
#define CONN_INPUT_BACKLOG_MAX (64u << 10)
#define PORT_FIRST             20000u

enum conn_state { CONN_OPEN, CONN_FLUSHING, CONN_SHUT };
enum segment_kind { SEGMENT_DATA, SEGMENT_END, SEGMENT_RESET };

struct segment {
    struct list link; /* pipe.under_way, then pipe.arrived */
    struct sim_event event;
    struct line *line;
    u32 from; /* end that sent it */
    enum segment_kind kind;
    u32 size;
    u32 taken; /* of size, by the receiver */
    u8 data[];
};

struct pipe {
    struct list under_way;
    struct list arrived;
    u64 used_bytes;
    u64 time_ns; /* when the last segment arrives */
    bool ended;  /* end or reset was sent */
};

/* libc's memory: it belongs to no node. */
struct line {
    struct list link; /* sim.pipes */
    struct sim_node *nodes[2];
    struct io_conn *ends[2];
    bool pending[2];      /* this end does not exist yet */
    bool lingers[2];      /* this end closed in order: what comes for it is thrown away */
    struct pipe pipes[2]; /* by sending end */
};

struct io_conn {
    struct list link; /* sim_shard.connections */
    struct sim_shard *shard;
    struct line *line;
    u32 end;
    const struct io_conn_events *events;
    void *user;
    u64 id;
    char peer[80], local[80];
    enum conn_state state;
    bool opened, paused, again_posted, send_posted, close_posted, was_high, reserved, peer_ended;
    status why;
    struct buf input;
    size_t want_bytes;
    u64 arrived;
    struct buf output; /* from head on: from position sent */
    size_t head;
    u64 sent, send_until;
    struct io_timer timer;
    struct core_task again_task, send_task, close_task;
    struct sim_arrival receive; /* segments have arrived */
    struct sim_arrival room;    /* the pipe has room again */
};

struct io_listener {
    struct list link; /* sim_shard.listeners */
    struct sim_shard *shard;
    const struct io_conn_events *events;
    void *arg;
    u64 id;
    u16 port;
    char host[64];
};

/* A connect under way. */
struct connect {
    struct list link; /* sim_node.connects */
    struct sim_event event;
    struct sim_arrival arrival;
    struct sim_shard *shard;
    char host[64];
    u16 port;
    struct line *line;
    bool finished, abandoned;
    struct fiber_queue queue;
};

/* Its news for the listening shard. */
struct accept {
    struct list link; /* sim_node.accepts, of the listening node */
    struct sim_arrival arrival;
    struct sim_shard *shard;
    struct line *line;
    u64 listener_id;
    char peer[80];
};

struct sim_cut {
    struct list link; /* sim.cuts */
    struct sim_node *a, *b;
};

static void conn_shut(struct io_conn *conn, status why);
static void conn_send_later(struct io_conn *conn);

/* ---- lines and segments ---- */

static bool
nodes_cut(const struct sim *sim, const struct sim_node *a, const struct sim_node *b)
{
    list_for_each (pos, &sim->cuts) {
        const struct sim_cut *cut = list_entry(pos, struct sim_cut, link);
        if ((cut->a == a && cut->b == b) || (cut->a == b && cut->b == a)) return true;
    }
    return false;
}

static u64
net_delay_ns(struct sim *sim)
{
    return sim_draw(&sim->prng_net, sim->options.net.latency_ns_min,
                    sim->options.net.latency_ns_max);
}

static void
segments_free(struct sim *sim, struct list *segments)
{
    while (!list_empty(segments)) {
        struct segment *segment = list_entry(list_first(segments), struct segment, link);
        sim_event_cancel(sim, &segment->event);
        list_del(&segment->link);
        free(segment);
    }
}

/* Frees the line once nobody will look at it. */
static void
line_check(struct sim *sim, struct line *line)
{
    if (line->ends[0] != NULL || line->ends[1] != NULL) return;
    if (line->pending[0] || line->pending[1]) return;
    for (u32 i = 0; i < 2; i++) {
        segments_free(sim, &line->pipes[i].under_way);
        segments_free(sim, &line->pipes[i].arrived);
    }
    list_del(&line->link);
    free(line);
}

static void segment_arrives(struct sim_event *event);

static void
line_send(struct sim *sim, struct line *line, u32 from, enum segment_kind kind, const u8 *data,
          u32 size)
{
    struct pipe *pipe = &line->pipes[from];
    if (pipe->ended) return;
    struct segment *segment = calloc(1, sizeof(*segment) + size);
    CHECK(segment != NULL);
    segment->line = line;
    segment->from = from;
    segment->kind = kind;
    segment->size = size;
    if (size > 0) memcpy(segment->data, data, size);
    segment->event.kind = SIM_KIND_NET;
    segment->event.fire = segment_arrives;
    list_push_back(&pipe->under_way, &segment->link);
    pipe->used_bytes += size;
    pipe->ended = kind != SEGMENT_DATA;
    pipe->time_ns = MAX(sim->now_ns + net_delay_ns(sim), pipe->time_ns + 1);
    sim_event_schedule(sim, &segment->event, pipe->time_ns);
}

/* An end that will never exist. */
static void
line_give_up(struct sim *sim, struct line *line, u32 end)
{
    line->pending[end] = false;
    segments_free(sim, &line->pipes[1 - end].arrived);
    line_send(sim, line, end, SEGMENT_RESET, NULL, 0);
    line_check(sim, line);
}

static void
segment_arrives(struct sim_event *event)
{
    struct sim *sim = sim_current;
    struct segment *segment = CONTAINER_OF(event, struct segment, event);
    struct line *line = segment->line;
    struct pipe *pipe = &line->pipes[segment->from];
    bool first = list_first(&pipe->under_way) == &segment->link;
    if (!first || nodes_cut(sim, line->nodes[0], line->nodes[1])) {
        /* Held up by a cut, or behind one that is: order is kept. */
        sim_event_schedule(sim, event, sim->now_ns + NS_PER_MS + net_delay_ns(sim));
        return;
    }
    struct io_conn *target = line->ends[1 - segment->from];
    sim_trace(sim, target != NULL ? target->shard : NULL, SIM_KIND_NET,
              crc32c((u32)segment->kind, segment->data, segment->size));
    list_del(&segment->link);
    if (target != NULL && target->state == CONN_OPEN) {
        list_push_back(&pipe->arrived, &segment->link);
        if (!list_linked(&target->receive.link)) sim_arrive(target->shard, &target->receive);
        return;
    }
    if (line->pending[1 - segment->from]) {
        list_push_back(&pipe->arrived, &segment->link);
        return;
    }
    /* Nobody is there any more. */
    u32 from = segment->from;
    bool data = segment->kind == SEGMENT_DATA;
    pipe->used_bytes -= segment->size - segment->taken;
    free(segment);
    if (data && target == NULL && !line->lingers[1 - from] && line->ends[from] != NULL)
        line_send(sim, line, 1 - from, SEGMENT_RESET, NULL, 0);
    if (data && line->ends[from] != NULL && !list_linked(&line->ends[from]->room.link))
        sim_arrive(line->ends[from]->shard, &line->ends[from]->room);
}

/* ---- receiving ---- */

static void
conn_give(struct io_conn *conn)
{
    conn->want_bytes = 0;
    size_t consumed = conn->events->received(conn, buf_bytes(&conn->input));
    CHECK(consumed <= conn->input.size);
    buf_consume(&conn->input, consumed);
    if (conn->input.size == 0) buf_clear(&conn->input, 0);
}

static bool
conn_holds_back(const struct io_conn *conn)
{
    return conn->paused || conn->again_posted;
}

/* Moves bytes of a segment to the input; true when the segment is used up. */
static bool
conn_take(struct io_conn *conn, struct pipe *pipe, struct segment *segment)
{
    struct sim *sim = conn->shard->node->sim;
    u32 size = segment->size - segment->taken;
    if (size > 1 && sim_ppm(&sim->prng_net, sim->options.net.split_ppm))
        size = (u32)sim_draw(&sim->prng_net, 1, size);
    if (!buf_append(&conn->input, segment->data + segment->taken, size)) {
        conn_shut(conn, ST_NO_MEMORY);
        return false;
    }
    segment->taken += size;
    pipe->used_bytes -= size;
    conn->arrived += size;
    conn->shard->core.stats.received_bytes += size;
    struct io_conn *sender = conn->line->ends[1 - conn->end];
    if (sender != NULL && !list_linked(&sender->room.link))
        sim_arrive(sender->shard, &sender->room);
    return segment->taken == segment->size;
}

static void
receive_run(struct sim_arrival *arrival)
{
    struct io_conn *conn = CONTAINER_OF(arrival, struct io_conn, receive);
    struct pipe *pipe = &conn->line->pipes[1 - conn->end];
    while (conn->state == CONN_OPEN && !list_empty(&pipe->arrived)) {
        struct segment *segment = list_entry(list_first(&pipe->arrived), struct segment, link);
        if (segment->kind == SEGMENT_DATA) {
            if (conn->paused && conn->input.size > 0) return;
            if (conn_holds_back(conn) && conn->input.size > CONN_INPUT_BACKLOG_MAX) return;
            bool whole = conn_take(conn, pipe, segment);
            if (conn->state != CONN_OPEN) return;
            if (whole) {
                list_del(&segment->link);
                free(segment);
            }
            if (!conn_holds_back(conn) && conn->input.size >= conn->want_bytes) conn_give(conn);
            if (whole) continue;
            if (conn->state == CONN_OPEN && !list_linked(&conn->receive.link))
                sim_arrive(conn->shard, &conn->receive); /* the rest in the next turn */
            return;
        }
        if (conn->paused && segment->kind == SEGMENT_END) return;
        bool reset = segment->kind == SEGMENT_RESET;
        list_del(&segment->link);
        free(segment);
        conn->peer_ended = true;
        if (reset) {
            conn_shut(conn, ST_CLOSED);
        } else {
            io_conn_close(conn, IO_CLOSE_FLUSH);
        }
    }
}

static void
again_run(struct core_task *task)
{
    struct io_conn *conn = CONTAINER_OF(task, struct io_conn, again_task);
    conn->again_posted = false;
    if (conn->state != CONN_OPEN || conn->paused) return;
    if (conn->input.size > 0 && conn->input.size >= conn->want_bytes) conn_give(conn);
    bool more = !list_empty(&conn->line->pipes[1 - conn->end].arrived);
    if (conn->state == CONN_OPEN && more && !list_linked(&conn->receive.link))
        sim_arrive(conn->shard, &conn->receive);
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
    return conn->arrived;
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
    conn->paused = true;
}

void
io_conn_resume(struct io_conn *conn)
{
    if (!conn->paused) return;
    conn->paused = false;
    io_conn_again(conn);
}

/* ---- sending ---- */

static u64
conn_sendable(const struct io_conn *conn)
{
    u64 until = MIN(io_conn_written(conn), conn->send_until);
    return until > conn->sent ? until - conn->sent : 0;
}

static void
conn_send_later(struct io_conn *conn)
{
    if (conn->state == CONN_SHUT || conn->send_posted || conn_sendable(conn) == 0) return;
    conn->send_posted = true;
    core_task_post(&conn->shard->core, &conn->send_task);
}

static void
conn_flushed_check(struct io_conn *conn)
{
    if (conn->state != CONN_FLUSHING || conn_sendable(conn) > 0) return;
    line_send(conn->shard->node->sim, conn->line, conn->end, SEGMENT_END, NULL, 0);
    conn->line->lingers[conn->end] = true;
    conn_shut(conn, ST_OK);
}

/* Moves the rest to the front only now and then. */
static void
output_consume(struct io_conn *conn, size_t size)
{
    conn->head += size;
    if (conn->head < conn->output.size && conn->head < CONN_OUTPUT_HIGH_BYTES) return;
    buf_consume(&conn->output, conn->head);
    conn->head = 0;
    if (conn->output.size == 0) buf_clear(&conn->output, 0);
}

static void
send_run(struct core_task *task)
{
    struct io_conn *conn = CONTAINER_OF(task, struct io_conn, send_task);
    struct sim *sim = conn->shard->node->sim;
    struct pipe *pipe = &conn->line->pipes[conn->end];
    conn->send_posted = false;
    if (conn->state == CONN_SHUT || conn->reserved) return; /* the commit comes back here */
    u64 room =
        sim->options.net.pipe_bytes - MIN((u64)sim->options.net.pipe_bytes, pipe->used_bytes);
    u64 size = MIN(conn_sendable(conn), room);
    /* A trickle of room would be sent byte by byte for ever (the silly window of RFC 813). */
    bool silly = size < conn_sendable(conn) && room < sim->options.net.pipe_bytes / 4;
    if (size > 0 && !silly) {
        if (sim_ppm(&sim->prng_net, sim->options.net.reset_ppm)) {
            line_send(sim, conn->line, conn->end, SEGMENT_RESET, NULL, 0);
            conn_shut(conn, ST_CLOSED);
            return;
        }
        if (sim_ppm(&sim->prng_net, sim->options.net.split_ppm))
            size = sim_draw(&sim->prng_net, 1, size);
        line_send(sim, conn->line, conn->end, SEGMENT_DATA, conn->output.data + conn->head,
                  (u32)size);
        output_consume(conn, size);
        conn->sent += size;
        conn->shard->core.stats.sent_bytes += size;
        if (size < room) conn_send_later(conn);
    }
    if (conn->was_high && io_conn_pending(conn) < CONN_OUTPUT_LOW_BYTES) {
        conn->was_high = false;
        if (conn->state == CONN_OPEN) conn->events->drained(conn);
    }
    conn_flushed_check(conn);
}

static void
room_run(struct sim_arrival *arrival)
{
    conn_send_later(CONTAINER_OF(arrival, struct io_conn, room));
}

u8 *
io_conn_reserve(struct io_conn *conn, size_t size)
{
    if (size > CONN_INPUT_MAX_BYTES * 2) return NULL;
    if (!buf_reserve(&conn->output, MAX(size, (size_t)1))) return NULL;
    conn->reserved = true;
    return conn->output.data + conn->output.size;
}

void
io_conn_commit(struct io_conn *conn, size_t size)
{
    CHECK(conn->reserved);
    CHECK(size <= conn->output.capacity - conn->output.size);
    conn->reserved = false;
    conn->output.size += size;
    if (io_conn_pending(conn) > CONN_OUTPUT_HIGH_BYTES) conn->was_high = true;
    conn_send_later(conn);
}

bool
io_conn_write(struct io_conn *conn, const void *data, size_t size)
{
    u8 *to = io_conn_reserve(conn, size);
    if (to == NULL) return false;
    if (size > 0) memcpy(to, data, size);
    io_conn_commit(conn, size);
    return true;
}

bool
io_conn_write_piece(struct io_conn *conn, const void *data, size_t size)
{
    if (io_conn_write(conn, data, size)) return true;
    conn->was_high = true;
    return false;
}

u64
io_conn_written(const struct io_conn *conn)
{
    return conn->sent + io_conn_pending(conn);
}

void
io_conn_send_until(struct io_conn *conn, u64 position)
{
    conn->send_until = MAX(position, conn->sent);
    conn_send_later(conn);
}

bool
io_conn_output_full(struct io_conn *conn)
{
    return io_conn_pending(conn) > CONN_OUTPUT_HIGH_BYTES;
}

size_t
io_conn_pending(const struct io_conn *conn)
{
    return conn->output.size - conn->head;
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
    if (!conn->line->lingers[conn->end] && !conn->peer_ended)
        line_send(conn->shard->node->sim, conn->line, conn->end, SEGMENT_RESET, NULL, 0);
    if (conn->close_posted) return;
    conn->close_posted = true;
    core_task_post(&conn->shard->core, &conn->close_task);
}

static void
timer_fire(struct io_timer *timer)
{
    conn_shut(CONTAINER_OF(timer, struct io_conn, timer), ST_TIMED_OUT);
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
    io_timer_arm(&conn->timer, io_now_ns() + CONN_FLUSH_NS_MAX);
    if (conn_sendable(conn) > 0) {
        conn_send_later(conn);
    } else {
        conn_flushed_check(conn);
    }
}

/* Takes the connection from its line; the memory is the node's. */
static void
conn_detach(struct io_conn *conn)
{
    struct sim *sim = conn->shard->node->sim;
    struct line *line = conn->line;
    u32 from = 1 - conn->end;
    list_del(&conn->link);
    list_del(&conn->receive.link);
    list_del(&conn->room.link);
    segments_free(sim, &line->pipes[from].arrived);
    line->pipes[from].used_bytes = 0;
    list_for_each (pos, &line->pipes[from].under_way) {
        line->pipes[from].used_bytes += list_entry(pos, struct segment, link)->size;
    }
    line->ends[conn->end] = NULL;
    /* Who waits for room in this pipe may go on, into the void. */
    if (line->ends[from] != NULL && !list_linked(&line->ends[from]->room.link))
        sim_arrive(line->ends[from]->shard, &line->ends[from]->room);
    line_check(sim, line);
}

static void
close_run(struct core_task *task)
{
    struct io_conn *conn = CONTAINER_OF(task, struct io_conn, close_task);
    struct sim_shard *shard = conn->shard;
    if (conn->again_posted) list_del(&conn->again_task.link);
    if (conn->send_posted) list_del(&conn->send_task.link);
    if (conn->opened) conn->events->closed(conn, conn->why);
    conn_detach(conn);
    buf_deinit(&conn->input);
    buf_deinit(&conn->output);
    shard->core.stats.connections--;
    mem_free(&shard->core.budget, conn, sizeof(*conn));
}

/* ---- the beginning ---- */

static status
conn_open(struct sim_shard *shard, struct line *line, u32 end, const char *local, const char *peer,
          const struct io_conn_events *events, void *arg, struct io_conn **out)
{
    struct io_conn *conn = mem_alloc_zero(&shard->core.budget, sizeof(*conn));
    if (conn == NULL) return ST_NO_MEMORY;
    conn->shard = shard;
    conn->line = line;
    conn->end = end;
    conn->events = events;
    conn->id = ++shard->conn_id_last;
    snprintf(conn->local, sizeof(conn->local), "%s", local);
    snprintf(conn->peer, sizeof(conn->peer), "%s", peer);
    conn->send_until = UINT64_MAX;
    conn->why = ST_OK;
    conn->again_task.run = again_run;
    conn->send_task.run = send_run;
    conn->close_task.run = close_run;
    conn->receive.run = receive_run;
    conn->room.run = room_run;
    list_init(&conn->receive.link);
    list_init(&conn->room.link);
    io_timer_init(&conn->timer, timer_fire);
    buf_init(&conn->input, &shard->core.budget);
    buf_init(&conn->output, &shard->core.budget);
    list_push_back(&shard->connections, &conn->link);
    shard->core.stats.connections++;
    line->ends[end] = conn;

    status st = events->opened(conn, arg);
    if (!ok(st)) {
        conn_shut(conn, st);
        return st;
    }
    conn->opened = true;
    if (conn->state == CONN_OPEN && !list_empty(&line->pipes[1 - end].arrived))
        sim_arrive(shard, &conn->receive);
    if (out != NULL) *out = conn;
    return ST_OK;
}

static void
accept_run(struct sim_arrival *arrival)
{
    struct accept *accept = CONTAINER_OF(arrival, struct accept, arrival);
    struct sim_shard *shard = accept->shard;
    struct line *line = accept->line;
    const struct io_listener *found = NULL;
    list_for_each (pos, &shard->listeners) {
        const struct io_listener *listener = list_entry(pos, struct io_listener, link);
        if (listener->id == accept->listener_id) found = listener;
    }
    line->pending[1] = false;
    status st = ST_CLOSED;
    if (found != NULL) {
        char local[80];
        snprintf(local, sizeof(local), "%s:%u", shard->node->host, (unsigned)found->port);
        st = conn_open(shard, line, 1, local, accept->peer, found->events, found->arg, NULL);
    }
    if (ok(st)) {
        shard->core.stats.connections_accepted++;
    } else {
        shard->core.stats.connections_refused++;
        if (line->ends[1] == NULL) line_give_up(shard->node->sim, line, 1);
    }
    list_del(&accept->link);
    free(accept);
}

static bool
host_is_local(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

/* One of the listeners on the port, at random: the kernel spreads connections. */
static struct io_listener *
listener_find(struct sim *sim, const struct connect *connect)
{
    struct io_listener *found = NULL;
    u64 count = 0;
    list_for_each (node_pos, &sim->nodes) {
        struct sim_node *node = list_entry(node_pos, struct sim_node, link);
        bool here = host_is_local(connect->host) ? node == connect->shard->node
                                                 : strcmp(node->host, connect->host) == 0;
        if (!here || nodes_cut(sim, node, connect->shard->node)) continue;
        for (u32 i = 0; i < node->shard_count; i++) {
            list_for_each (pos, &node->shards[i].listeners) {
                struct io_listener *listener = list_entry(pos, struct io_listener, link);
                if (listener->port != connect->port) continue;
                if (prng_below(&sim->prng_net, ++count) == 0) found = listener;
            }
        }
    }
    return found;
}

static void
connect_fires(struct sim_event *event)
{
    struct connect *connect = CONTAINER_OF(event, struct connect, event);
    struct sim_shard *shard = connect->shard;
    struct sim *sim = shard->node->sim;
    struct io_listener *listener = listener_find(sim, connect);
    bool refused = sim_ppm(&sim->prng_net, sim->options.net.refuse_ppm);
    sim_trace(sim, shard, SIM_KIND_NET, listener != NULL);
    if (listener != NULL && !refused && !connect->abandoned) {
        struct line *line = calloc(1, sizeof(*line));
        struct accept *accept = calloc(1, sizeof(*accept));
        CHECK(line != NULL && accept != NULL);
        line->nodes[0] = shard->node;
        line->nodes[1] = listener->shard->node;
        line->pending[0] = line->pending[1] = true;
        for (u32 i = 0; i < 2; i++) {
            list_init(&line->pipes[i].under_way);
            list_init(&line->pipes[i].arrived);
        }
        list_push_back(&sim->pipes, &line->link);
        accept->shard = listener->shard;
        accept->line = line;
        accept->listener_id = listener->id;
        accept->arrival.run = accept_run;
        snprintf(accept->peer, sizeof(accept->peer), "%.64s:%u", shard->node->host,
                 (unsigned)(40000 + sim->event_count % 20000));
        list_push_back(&listener->shard->node->accepts, &accept->link);
        sim_arrive(listener->shard, &accept->arrival);
        connect->line = line;
    }
    sim_arrive(shard, &connect->arrival);
}

static void
connect_run(struct sim_arrival *arrival)
{
    struct connect *connect = CONTAINER_OF(arrival, struct connect, arrival);
    connect->finished = true;
    if (!connect->abandoned) {
        fiber_queue_wake_all(&connect->queue);
        return;
    }
    if (connect->line != NULL) line_give_up(sim_current, connect->line, 0);
    list_del(&connect->link);
    free(connect);
}

MAY_YIELD status
io_connect(const char *host, u16 port, const struct io_conn_events *events, void *arg,
           u64 deadline_ns, struct io_conn **out)
{
    struct sim_shard *shard = sim_shard_current();
    struct sim *sim = shard->node->sim;
    struct connect *connect = calloc(1, sizeof(*connect));
    CHECK(connect != NULL);
    connect->shard = shard;
    connect->port = port;
    snprintf(connect->host, sizeof(connect->host), "%s", host);
    connect->event.kind = SIM_KIND_NET;
    connect->event.shard = shard;
    connect->event.fire = connect_fires;
    connect->arrival.run = connect_run;
    list_init(&connect->arrival.link);
    fiber_queue_init(&connect->queue);
    list_push_back(&shard->node->connects, &connect->link);
    sim_event_schedule(sim, &connect->event, sim->now_ns + net_delay_ns(sim));

    while (!connect->finished) {
        status st = fiber_queue_wait(&connect->queue, deadline_ns);
        if (status_is(st, ST_TIMED_OUT) && !connect->finished) {
            connect->abandoned = true; /* connect_run frees it */
            return ST_TIMED_OUT;
        }
    }
    struct line *line = connect->line;
    list_del(&connect->link);
    free(connect);
    if (line == NULL) return ST_CLOSED;
    char peer[80];
    snprintf(peer, sizeof(peer), "%.64s:%u", host, (unsigned)port);
    line->pending[0] = false;
    status st = conn_open(shard, line, 0, shard->node->host, peer, events, arg, out);
    if (!ok(st) && line->ends[0] == NULL) line_give_up(sim, line, 0);
    return st;
}

/* ---- listening ---- */

status
io_listen(const char *host, u16 port, const struct io_conn_events *events, void *arg,
          struct io_listener **out)
{
    struct sim_shard *shard = sim_shard_current();
    struct io_listener *listener = mem_alloc_zero(&shard->core.budget, sizeof(*listener));
    if (listener == NULL) return ST_NO_MEMORY;
    listener->shard = shard;
    listener->events = events;
    listener->arg = arg;
    listener->id = ++shard->conn_id_last;
    listener->port =
        port != 0 ? port : (u16)(PORT_FIRST + shard->node->port_last++ % (40000 - PORT_FIRST));
    snprintf(listener->host, sizeof(listener->host), "%s", host);
    list_push_back(&shard->listeners, &listener->link);
    *out = listener;
    return ST_OK;
}

u16
io_listener_port(const struct io_listener *listener)
{
    return listener->port;
}

MAY_YIELD void
io_listener_close(struct io_listener *listener)
{
    list_del(&listener->link);
    mem_free(&listener->shard->core.budget, listener, sizeof(*listener));
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

void
io_conn_peer_name(const struct io_conn *conn, char *name, size_t size)
{
    (void)snprintf(name, size, "%s", conn->peer);
}

void
io_conn_local_name(const struct io_conn *conn, char *name, size_t size)
{
    (void)snprintf(name, size, "%s", conn->local);
}

/* ---- the ends of shards, nodes and the world ---- */

void
sim_net_shut(struct sim_shard *shard)
{
    /* no yield: listeners of the simulator are gone at once. */
    while (!list_empty(&shard->listeners))
        io_listener_close(list_entry(list_first(&shard->listeners), struct io_listener, link));
    list_for_each_safe (pos, &shard->connections) {
        conn_shut(list_entry(pos, struct io_conn, link), ST_OK);
    }
}

bool
sim_net_busy(const struct sim_shard *shard)
{
    return !list_empty(&shard->connections) || !list_empty(&shard->listeners) ||
           !list_empty(&shard->node->connects) || !list_empty(&shard->node->accepts);
}

void
sim_net_drop(struct sim_node *node)
{
    struct sim *sim = node->sim;
    bool silent = prng_chance(&sim->prng_net, 1, 2);
    while (!list_empty(&node->connects)) {
        struct connect *connect = list_entry(list_first(&node->connects), struct connect, link);
        sim_event_cancel(sim, &connect->event);
        list_del(&connect->arrival.link);
        list_del(&connect->link);
        if (connect->line != NULL) line_give_up(sim, connect->line, 0);
        free(connect);
    }
    while (!list_empty(&node->accepts)) {
        struct accept *accept = list_entry(list_first(&node->accepts), struct accept, link);
        list_del(&accept->arrival.link);
        list_del(&accept->link);
        line_give_up(sim, accept->line, 1);
        free(accept);
    }
    for (u32 i = 0; i < node->shard_count; i++) {
        struct sim_shard *shard = &node->shards[i];
        while (!list_empty(&shard->connections)) {
            struct io_conn *conn =
                list_entry(list_first(&shard->connections), struct io_conn, link);
            if (!silent) line_send(sim, conn->line, conn->end, SEGMENT_RESET, NULL, 0);
            conn_detach(conn);
        }
    }
}

void
sim_net_init(struct sim *sim)
{
    list_init(&sim->pipes);
    list_init(&sim->cuts);
}

void
sim_net_free(struct sim *sim)
{
    while (!list_empty(&sim->pipes)) {
        struct line *line = list_entry(list_first(&sim->pipes), struct line, link);
        line->pending[0] = line->pending[1] = false;
        CHECK(line->ends[0] == NULL && line->ends[1] == NULL);
        line_check(sim, line);
    }
    while (!list_empty(&sim->cuts)) {
        struct sim_cut *cut = list_entry(list_first(&sim->cuts), struct sim_cut, link);
        list_del(&cut->link);
        free(cut);
    }
}

void
sim_link_cut(struct sim *sim, struct sim_node *a, struct sim_node *b)
{
    if (nodes_cut(sim, a, b)) return;
    struct sim_cut *cut = calloc(1, sizeof(*cut));
    CHECK(cut != NULL);
    cut->a = a;
    cut->b = b;
    list_push_back(&sim->cuts, &cut->link);
}

void
sim_link_heal(struct sim *sim, struct sim_node *a, struct sim_node *b)
{
    list_for_each_safe (pos, &sim->cuts) {
        struct sim_cut *cut = list_entry(pos, struct sim_cut, link);
        bool same = (cut->a == a && cut->b == b) || (cut->a == b && cut->b == a);
        if (!same) continue;
        list_del(&cut->link);
        free(cut);
    }
}
