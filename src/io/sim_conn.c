/* SPDX-License-Identifier: MIT
 *
 * sim_conn.c -- net.h of the simulated link: the ends of connections. What a session sees of them
 * is core_conn.c, as in the server; how the network behaves is told in sim_net.h.
 */
#include "io/sim_net.h"

#include <stdio.h>
#include <stdlib.h>

#define PORT_FIRST  20000u
#define SEND_BYTES  (1u << 20) /* of one send */
#define TURN_PIECES 64u        /* given to a session in one turn */
#define SYN_NS      NS_PER_S
#define SYN_RETRIES 6u

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
    u32 retries;
    struct line *line;
    status failed; /* why there is no line */
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

static struct sim_conn *
sim_conn_of(struct io_conn *conn)
{
    return (struct sim_conn *)conn;
}

/* ---- receiving ---- */

/* How many of at most size bytes come at once. */
static u32
piece_size(struct sim *sim, u32 size)
{
    const struct sim_net_options *net = &sim->options.net;
    if (net->single_bytes) return 1;
    return sim_ppm(&sim->prng_net, net->split_ppm) ? (u32)sim_draw(&sim->prng_net, 1, size) : size;
}

static void
conn_receive_data(struct sim_conn *conn, struct pipe *pipe)
{
    struct sim *sim = sim_current;
    struct io_conn *core = &conn->core;
    u32 size = (u32)MIN(pipe->used_bytes, (u64)CONN_PIECE_BYTES);
    if (core_conn_wants_direct(core)) {
        if (!core_conn_direct_reserve(core)) return;
        size = piece_size(sim, (u32)(core->want_bytes - core->input.size));
        size = sim_pipe_take(pipe, core->input.data + core->input.size, size);
        core->input.size += size;
        core->received += size;
        core->net->shard->stats.received_bytes += size;
        core_conn_input_grown(core);
        return;
    }
    /* A block of its own size, so that reading behind its end is noticed. */
    size = piece_size(sim, size);
    u8 *piece = malloc(size);
    CHECK(piece != NULL);
    size = sim_pipe_take(pipe, piece, size);
    core->net->shard->stats.received_bytes += size;
    core->received += size;
    core_conn_arrived(core, BYTES(piece, size));
    free(piece);
}

static void
receive_run(struct sim_arrival *arrival)
{
    struct sim_conn *conn = CONTAINER_OF(arrival, struct sim_conn, receive);
    struct io_conn *core = &conn->core;
    struct pipe *pipe = &conn->line->pipes[1 - conn->end];
    u32 count = 0;
    bool late = false;
    while (core->state != CONN_SHUT && count < TURN_PIECES && !list_empty(&pipe->arrived)) {
        if (!core_conn_receives(core)) {
            /* What was on its way when the session said stop. */
            if (late || count == 0 || !prng_chance(&sim_current->prng_net, 1, 4)) return;
            late = true;
        }
        struct segment *segment = list_entry(list_first(&pipe->arrived), struct segment, link);
        enum segment_kind kind = segment->kind;
        if (kind == SEGMENT_DATA) {
            conn_receive_data(conn, pipe);
            count++;
            continue;
        }
        if (late) return;
        sim_segment_free(pipe, segment);
        if (kind == SEGMENT_END) {
            core_conn_peer_ended(core);
        } else {
            core_conn_shut(core, ST_CLOSED);
        }
    }
    core_conn_receive_later(core);
}

void
backend_conn_receive(struct io_conn *core)
{
    struct sim_conn *conn = sim_conn_of(core);
    if (!list_empty(&conn->line->pipes[1 - conn->end].arrived))
        sim_conn_arrive(conn, &conn->receive);
}

/* receive_run asks before each piece. */
void
backend_conn_receive_stop(struct io_conn *core)
{
    (void)core;
}

u64
io_conn_arrived(const struct io_conn *conn)
{
    return conn->received;
}

void
backend_conn_receive_cut(struct io_conn *core)
{
    (void)core;
}

bool
backend_conn_input_busy(const struct io_conn *core)
{
    (void)core;
    return false;
}

enum io_conn_peer
io_conn_peer_look(const struct io_conn *conn)
{
    const struct sim_conn *own = (const struct sim_conn *)conn;
    enum io_conn_peer peer = conn->peer_ended ? IO_PEER_ENDED : IO_PEER_THERE;
    list_for_each (pos, &own->line->pipes[1 - own->end].arrived) {
        enum segment_kind kind = list_entry(pos, struct segment, link)->kind;
        if (kind == SEGMENT_RESET) return IO_PEER_GONE;
        if (kind == SEGMENT_END) peer = IO_PEER_ENDED;
    }
    return peer;
}

/* ---- sending ---- */

/* The send under way ends: with an error, or with as many bytes as were taken. */
static void
conn_send_over(struct sim_conn *conn)
{
    sim_conn_arrive(conn, &conn->sent);
}

void
sim_conn_send_fail(struct sim_conn *conn, status why)
{
    if (conn->core.output.sending == 0) return;
    conn->send_failed = why;
    conn_send_over(conn);
}

/* The next bytes of the send under way, into a segment. */
static void
conn_send_take(struct sim_conn *conn, u8 *target, u32 size)
{
    conn->send_bytes += size;
    while (size > 0) {
        const struct iovec *piece = &conn->pieces[conn->send_piece];
        u32 part = (u32)MIN((size_t)size, piece->iov_len - conn->send_offset);
        memcpy(target, (const u8 *)piece->iov_base + conn->send_offset, part);
        target += part;
        size -= part;
        conn->send_offset += part;
        if (conn->send_offset < piece->iov_len) return;
        conn->send_piece++;
        conn->send_offset = 0;
    }
}

static void
conn_send_pump(struct sim_conn *conn)
{
    struct sim *sim = sim_current;
    struct pipe *pipe = &conn->line->pipes[conn->end];
    u32 capacity = sim->options.net.pipe_bytes;
    for (;;) {
        u32 left = conn->core.output.sending - conn->send_bytes;
        u32 room = (u32)(capacity - MIN((u64)capacity, pipe->used_bytes));
        /* A trickle of room would be sent byte by byte for ever (the silly window of RFC 813). */
        if (left > 0 && (room == 0 || (room < left && room < capacity / 4))) return;
        if (left == 0) break;
        u32 size = MIN(left, room);
        if (sim_ppm(&sim->prng_net, sim->options.net.split_ppm))
            size = (u32)sim_draw(&sim->prng_net, 1, size);
        conn_send_take(conn, sim_pipe_push(sim, pipe, SEGMENT_DATA, size), size);
        /* A signal, say: fewer bytes than asked for. */
        if (prng_chance(&sim->prng_net, 1, 64)) break;
    }
    conn_send_over(conn);
}

/* One end learns of it, the other hears nothing more. */
static void
line_half_open(struct sim *sim, struct sim_conn *conn, struct prng *prng)
{
    struct line *line = conn->line;
    u32 end = (u32)prng_below(prng, 2);
    status why = prng_chance(prng, 1, 2) ? ST_TIMED_OUT : ST_CLOSED;
    line->silent[end] = true;
    line->pipes[end].ended = true;
    sim_pipe_lose_some(sim, &line->pipes[end]);
    line->pipes[1 - end].black = prng_chance(prng, 1, 2);
    if (end == conn->end) {
        sim_conn_send_fail(conn, why);
    } else {
        sim_line_end_fail(line, end, why);
    }
}

/* Whether the connection breaks before this send. */
static bool
conn_breaks(struct sim_conn *conn)
{
    struct sim *sim = sim_current;
    const struct sim_net_options *net = &sim->options.net;
    if (sim_fault_chance(sim, SIM_FAULT_NET_RESET, net->reset_ppm) &&
        sim_fault_take(sim, SIM_FAULT_NET_RESET, "line %llu, %s to %s",
                       (unsigned long long)conn->line->number, conn->local, conn->peer)) {
        sim_line_reset(sim, conn->line, conn->end);
        sim_conn_send_fail(conn, ST_CLOSED);
        return true;
    }
    if (!sim_fault_chance(sim, SIM_FAULT_NET_HALF_OPEN, net->half_open_ppm)) return false;
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_NET_HALF_OPEN);
    if (!sim_fault_take(sim, SIM_FAULT_NET_HALF_OPEN, "line %llu, %s to %s",
                        (unsigned long long)conn->line->number, conn->local, conn->peer))
        return false;
    line_half_open(sim, conn, &prng);
    return !ok(conn->send_failed);
}

static void
send_run(struct io_task *task)
{
    struct sim_conn *conn = CONTAINER_OF(task, struct sim_conn, send_task);
    struct core_output *output = &conn->core.output;
    conn->send_posted = false;
    if (conn->core.state > CONN_FLUSHING || output->sending > 0) return;
    u32 total;
    conn->send_pieces = core_output_gather(output, SEND_BYTES, conn->pieces, SEND_PIECES, &total);
    if (conn->send_pieces == 0) return;
    output->sending = total;
    conn->send_piece = 0;
    conn->send_offset = 0;
    conn->send_bytes = 0;
    conn->send_failed = ST_OK;
    if (conn->line->pipes[conn->end].ended) {
        sim_conn_send_fail(conn, ST_CLOSED);
        return;
    }
    if (conn_breaks(conn)) return;
    /* The kernel copies what it has no room for yet, or reads it later. */
    if (prng_chance(&sim_current->prng_net, 1, 2)) {
        conn->copy = malloc(total);
        CHECK(conn->copy != NULL);
        conn_send_take(conn, conn->copy, total);
        conn->pieces[0] = (struct iovec){.iov_base = conn->copy, .iov_len = total};
        conn->send_piece = 0;
        conn->send_offset = 0;
        conn->send_bytes = 0;
    }
    conn_send_pump(conn);
}

void
backend_conn_send(struct io_conn *core)
{
    struct sim_conn *conn = sim_conn_of(core);
    if (conn->send_posted) return;
    conn->send_posted = true;
    core_task_post(core->net->shard, &conn->send_task);
}

static void
room_run(struct sim_arrival *arrival)
{
    struct sim_conn *conn = CONTAINER_OF(arrival, struct sim_conn, room);
    bool over = list_linked(&conn->sent.link) || conn->line->pipes[conn->end].ended;
    if (conn->core.output.sending > 0 && !over) conn_send_pump(conn);
}

static void
sent_run(struct sim_arrival *arrival)
{
    struct sim_conn *conn = CONTAINER_OF(arrival, struct sim_conn, sent);
    free(conn->copy);
    conn->copy = NULL;
    if (!ok(conn->send_failed)) core_conn_shut(&conn->core, conn->send_failed);
    core_conn_sent(&conn->core, conn->send_bytes);
    if (conn->send_shut && io_conn_pending(&conn->core) == 0)
        sim_line_end(sim_current, conn->line, conn->end);
}

void
sim_conn_shut_send(struct io_conn *core)
{
    struct sim_conn *conn = sim_conn_of(core);
    conn->send_shut = true;
    if (core->state != CONN_SHUT && io_conn_pending(core) == 0)
        sim_line_end(sim_current, conn->line, conn->end);
}

/* ---- the end of a connection ---- */

bool
backend_conn_active(const struct io_conn *core)
{
    return core->output.sending > 0;
}

void
backend_conn_last_words(struct io_conn *core, struct bytes text)
{
    struct sim_conn *conn = sim_conn_of(core);
    struct pipe *pipe = &conn->line->pipes[conn->end];
    if (pipe->ended) return;
    memcpy(sim_pipe_push(sim_current, pipe, SEGMENT_DATA, (u32)text.size), text.data, text.size);
}

void
backend_conn_shut_send(struct io_conn *core)
{
    struct sim_conn *conn = sim_conn_of(core);
    sim_line_end(sim_current, conn->line, conn->end);
}

void
backend_conn_shut(struct io_conn *core)
{
    struct sim_conn *conn = sim_conn_of(core);
    sim_line_end(sim_current, conn->line, conn->end);
    if (core->output.sending > 0) conn_send_over(conn);
}

/* Takes the connection from its line; the memory is the node's. quiet: the peer is not told. */
static void
conn_detach(struct sim_conn *conn, bool quiet)
{
    struct sim *sim = sim_current;
    struct line *line = conn->line;
    struct pipe *incoming = &line->pipes[1 - conn->end];
    list_del(&conn->receive.link);
    list_del(&conn->room.link);
    list_del(&conn->sent.link);
    list_del(&conn->error.link);
    free(conn->copy);
    conn->copy = NULL;
    quiet = quiet || line->silent[conn->end];
    if (!quiet && sim_pipe_unread(incoming)) sim_line_reset(sim, line, conn->end);
    sim_segments_free(incoming, &incoming->arrived);
    line->ends[conn->end] = NULL;
    sim_pipe_roomy(incoming); /* on into the void */
    sim_line_check(sim, line);
}

void
backend_conn_free(struct io_conn *core)
{
    struct sim_conn *conn = sim_conn_of(core);
    if (conn->send_posted) list_del(&conn->send_task.link);
    conn_detach(conn, false);
    core_conn_deinit(core);
    mem_free(&core->net->shard->budget, conn, sizeof(*conn));
}

static void
error_run(struct sim_arrival *arrival)
{
    struct sim_conn *conn = CONTAINER_OF(arrival, struct sim_conn, error);
    core_conn_shut(&conn->core, conn->error_why);
}

/* ---- the beginning ---- */

static status
conn_open(struct sim_shard *shard, struct line *line, u32 end, const char *local, const char *peer,
          const struct io_conn_events *events, void *arg, struct io_conn **out)
{
    struct sim_conn *conn = mem_alloc_zero(&shard->core.budget, sizeof(*conn));
    if (conn == NULL) return ST_NO_MEMORY;
    core_conn_init(&conn->core, &shard->net, events);
    conn->line = line;
    conn->end = end;
    snprintf(conn->local, sizeof(conn->local), "%s", local);
    snprintf(conn->peer, sizeof(conn->peer), "%s", peer);
    conn->send_task.run = send_run;
    conn->receive.run = receive_run;
    conn->room.run = room_run;
    conn->sent.run = sent_run;
    conn->error.run = error_run;
    list_init(&conn->receive.link);
    list_init(&conn->room.link);
    list_init(&conn->sent.link);
    list_init(&conn->error.link);
    line->ends[end] = conn;
    status st = core_conn_open(&conn->core, arg);
    if (!ok(st)) return st;
    if (out != NULL) *out = &conn->core;
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
        if (line->ends[1] == NULL) sim_line_give_up(shard->node->sim, line, 1);
    }
    list_del(&accept->link);
    free(accept);
}

static bool
host_is_local(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

static struct sim_node *
connect_target(const struct connect *connect)
{
    struct sim_node *own = connect->shard->node;
    if (host_is_local(connect->host)) return own;
    list_for_each (pos, &own->sim->nodes) {
        struct sim_node *node = list_entry(pos, struct sim_node, link);
        if (strcmp(node->host, connect->host) == 0) return node;
    }
    return NULL;
}

/* One of the listeners on the port, at random: the kernel spreads connections. */
static struct io_listener *
listener_find(struct sim_node *node, u16 port)
{
    struct io_listener *found = NULL;
    u64 count = 0;
    for (u32 i = 0; i < node->shard_count; i++) {
        list_for_each (pos, &node->shards[i].listeners) {
            struct io_listener *listener = list_entry(pos, struct io_listener, link);
            if (listener->port != port) continue;
            if (prng_below(&node->sim->prng_net, ++count) == 0) found = listener;
        }
    }
    return found;
}

static void
client_name(const struct line *line, char *name, size_t size)
{
    (void)snprintf(name, size, "%.64s:%u", line->nodes[0]->host,
                   (unsigned)(40000 + line->number % 20000));
}

static void
connect_meets(struct connect *connect, struct io_listener *listener)
{
    struct sim_shard *shard = connect->shard;
    struct accept *accept = calloc(1, sizeof(*accept));
    CHECK(accept != NULL);
    connect->line = sim_line_new(shard->node->sim, shard->node, listener->shard->node);
    accept->shard = listener->shard;
    accept->line = connect->line;
    accept->listener_id = listener->id;
    accept->arrival.run = accept_run;
    client_name(connect->line, accept->peer, sizeof(accept->peer));
    list_push_back(&listener->shard->node->accepts, &accept->link);
    sim_arrive(listener->shard, &accept->arrival);
}

static void
connect_fires(struct sim_event *event)
{
    struct connect *connect = CONTAINER_OF(event, struct connect, event);
    struct sim_shard *shard = connect->shard;
    struct sim *sim = shard->node->sim;
    struct sim_node *target = connect_target(connect);
    bool lost = target != NULL && (target->power_off || sim_link_is_cut(sim, target, shard->node) ||
                                   sim_link_is_cut(sim, shard->node, target));
    if (lost && !connect->abandoned && connect->retries <= SYN_RETRIES) {
        sim_trace(sim, shard, SIM_KIND_NET, connect->port, "connect port,retries", connect->port,
                  connect->retries, 0);
        u64 wait_ns = SYN_NS << connect->retries++;
        sim_event_schedule(sim, &connect->event, sim->now_ns + wait_ns + sim_net_delay_ns(sim));
        return;
    }
    connect->failed = lost ? ST_TIMED_OUT : ST_CLOSED;
    struct io_listener *listener =
        lost || target == NULL ? NULL : listener_find(target, connect->port);
    bool refused = sim_fault_chance(sim, SIM_FAULT_NET_REFUSE, sim->options.net.refuse_ppm) &&
                   sim_fault_take(sim, SIM_FAULT_NET_REFUSE, "%s to %s:%u", shard->node->host,
                                  connect->host, (unsigned)connect->port);
    sim_trace(sim, shard, SIM_KIND_NET, listener != NULL, "connect port,listens", connect->port,
              listener != NULL, 0);
    if (listener != NULL && !refused && !connect->abandoned) connect_meets(connect, listener);
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
    if (connect->line != NULL) sim_line_give_up(sim_current, connect->line, 0);
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
    sim_event_schedule(sim, &connect->event, sim->now_ns + sim_net_delay_ns(sim));

    while (!connect->finished) {
        status st = fiber_queue_wait(&connect->queue, deadline_ns);
        if (status_is(st, ST_TIMED_OUT) && !connect->finished) {
            connect->abandoned = true; /* connect_run frees it, soon */
            if (connect->event.scheduled) {
                sim_event_cancel(sim, &connect->event);
                sim_event_schedule(sim, &connect->event, sim->now_ns);
            }
            return ST_TIMED_OUT;
        }
    }
    struct line *line = connect->line;
    status st = connect->failed;
    list_del(&connect->link);
    free(connect);
    if (line == NULL) return st;
    char local[80], peer[80];
    client_name(line, local, sizeof(local));
    snprintf(peer, sizeof(peer), "%.64s:%u", host, (unsigned)port);
    line->pending[0] = false;
    st = conn_open(shard, line, 0, local, peer, events, arg, out);
    if (!ok(st) && line->ends[0] == NULL) sim_line_give_up(sim, line, 0);
    return st;
}

/* ---- listening ---- */

static bool
node_listens(const struct sim_node *node)
{
    for (u32 i = 0; i < node->shard_count; i++)
        if (list_empty(&node->shards[i].listeners)) return false;
    return true;
}

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
    listener->id = ++shard->net.conn_id_last;
    listener->port =
        port != 0 ? port : (u16)(PORT_FIRST + shard->node->port_last++ % (40000 - PORT_FIRST));
    snprintf(listener->host, sizeof(listener->host), "%s", host);
    list_push_back(&shard->listeners, &listener->link);
    if (node_listens(shard->node)) sim_node_started_set(shard->node);
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
io_conn_peer_name(const struct io_conn *conn, char *name, size_t size)
{
    (void)snprintf(name, size, "%s", ((const struct sim_conn *)conn)->peer);
}

void
io_conn_local_name(const struct io_conn *conn, char *name, size_t size)
{
    (void)snprintf(name, size, "%s", ((const struct sim_conn *)conn)->local);
}

/* ---- the ends of shards, nodes and the world ---- */

void
sim_net_shut(struct sim_shard *shard)
{
    /* no yield: listeners of the simulator are gone at once. */
    while (!list_empty(&shard->listeners))
        io_listener_close(list_entry(list_first(&shard->listeners), struct io_listener, link));
    core_net_shut(&shard->net);
}

bool
sim_net_busy(const struct sim_shard *shard)
{
    return !list_empty(&shard->net.conns) || !list_empty(&shard->listeners) ||
           !list_empty(&shard->node->connects) || !list_empty(&shard->node->accepts);
}

/* Without power nothing is said; a process that is killed has its sockets closed. */
static void
conn_drop(struct sim *sim, struct sim_conn *conn, bool power)
{
    struct line *line = conn->line;
    struct pipe *pipe = &line->pipes[conn->end];
    if (power) {
        sim_pipe_lose_some(sim, pipe);
        pipe->ended = true;
    } else {
        sim_line_end(sim, line, conn->end);
    }
    conn_detach(conn, power);
}

/* An end that was about to be. */
static void
pending_drop(struct sim *sim, struct line *line, u32 end, bool power)
{
    if (!power) {
        sim_line_give_up(sim, line, end);
        return;
    }
    line->pending[end] = false;
    line->pipes[end].ended = true;
    sim_segments_free(&line->pipes[1 - end], &line->pipes[1 - end].arrived);
    sim_line_check(sim, line);
}

void
sim_net_drop(struct sim_node *node, bool power)
{
    struct sim *sim = node->sim;
    while (!list_empty(&node->connects)) {
        struct connect *connect = list_entry(list_first(&node->connects), struct connect, link);
        sim_event_cancel(sim, &connect->event);
        list_del(&connect->arrival.link);
        list_del(&connect->link);
        if (connect->line != NULL) pending_drop(sim, connect->line, 0, power);
        free(connect);
    }
    while (!list_empty(&node->accepts)) {
        struct accept *accept = list_entry(list_first(&node->accepts), struct accept, link);
        list_del(&accept->arrival.link);
        list_del(&accept->link);
        pending_drop(sim, accept->line, 1, power);
        free(accept);
    }
    for (u32 i = 0; i < node->shard_count; i++) {
        struct list *conns = &node->shards[i].net.conns;
        while (!list_empty(conns)) {
            struct io_conn *core = list_entry(list_first(conns), struct io_conn, link);
            list_del(&core->link);
            conn_drop(sim, sim_conn_of(core), power);
        }
    }
}

void
sim_net_hurry(struct sim *sim)
{
    u64 latest_ns = sim->now_ns + sim->options.net.latency_ns_max;
    sim_lines_hurry(sim, latest_ns);
    list_for_each (pos, &sim->nodes) {
        list_for_each (at, &list_entry(pos, struct sim_node, link)->connects) {
            struct connect *connect = list_entry(at, struct connect, link);
            if (!connect->event.scheduled || connect->event.time_ns <= latest_ns) continue;
            sim_event_cancel(sim, &connect->event);
            sim_event_schedule(sim, &connect->event, latest_ns);
        }
    }
}
