/* SPDX-License-Identifier: MIT
 *
 * session.c -- see session.h: opening and closing, output and its holds, limits and timeouts. What
 * the bytes mean is session_resp.c's and session_native.c's.
 */
#include "server/session.h"

#include <stdio.h>

#include "base/fault.h"
#include "base/log.h"
#include "server/native.h"

/* A client that takes nothing of what it is owed for so long is closed. */
#define OUTPUT_STUCK_NS (60 * NS_PER_S)
/* A longer reply is written as the client and the memory for output allow, in pieces. */
#define REPLY_SHORT_BYTES 256u
#define REPLY_PIECE_BYTES (16u << 10)
/* A stream that finds no memory for its next piece asks again. One that waits for its client while
 * too many others do (K3 of work.h), or while others need the memory, does so no longer than this.
 */
#define STREAM_RETRY_NS   (5 * NS_PER_MS)
#define STREAM_CROWDED_NS (1 * NS_PER_S)
/* Who has taken so much meanwhile has that time again. */
#define STREAM_CROWDED_BYTES KIB(64)
#define STREAM_KEEP_BYTES    KIB(64)
/* The sweep over idle connections: so many, so often. */
#define SWEEP_SESSIONS  1024u
#define SWEEP_PERIOD_NS (200 * NS_PER_MS)
#define RATE_PERIOD_NS  NS_PER_S
/* The least that must come of an unfinished request in a minute. */
#define UNFINISHED_BYTES_MIN 1024u
/* What a turn always takes from a connection: see may_go_on. */
#define TURN_SMALL_BYTES (8u << 10)

/* ---- durability ---- */

static void holds_released(struct durable_wait *wait, bool failed);

/* Nobody knows what became of the writes behind the held replies, so none of them is sent. */
static void
holds_lost(struct session *s)
{
    s->closing = true;
    io_conn_close(s->conn, IO_CLOSE_FLUSH);
}

/* Lets out what is safe by now, waits for the next stage. */
static void
holds_advance(struct session *s)
{
    while (s->hold_count > 0) {
        struct session_hold *hold = &s->holds[s->hold_first];
        if (durable_lost(s->shard, hold->seq)) {
            holds_lost(s);
            return;
        }
        if (durable_wait_start(s->shard, &s->durable, hold->seq)) {
            io_conn_send_until(s->conn, hold->position);
            return;
        }
        s->hold_first = (s->hold_first + 1) % SESSION_HOLDS;
        s->hold_count--;
    }
    io_conn_send_until(s->conn, UINT64_MAX);
    if (s->close_held) io_conn_close(s->conn, IO_CLOSE_FLUSH);
}

static void
holds_released(struct durable_wait *wait, bool failed)
{
    struct session *s = CONTAINER_OF(wait, struct session, durable);
    if (s->conn == NULL) return;
    if (failed)
        holds_lost(s);
    else
        holds_advance(s);
}

static void
hold(struct session *s, u64 position, u64 seq)
{
    if (s->hold_count == 0) {
        if (!durable_wait_start(s->shard, &s->durable, seq)) return;
        io_conn_send_until(s->conn, position);
    }
    u32 last = (s->hold_first + s->hold_count + SESSION_HOLDS - 1) % SESSION_HOLDS;
    if (s->hold_count > 0 && s->holds[last].seq >= seq) return; /* behind a later one already */
    if (s->hold_count == SESSION_HOLDS) {
        s->holds[last].seq = seq; /* merged: a little of it waits longer than it must */
        return;
    }
    u32 next = (s->hold_first + s->hold_count) % SESSION_HOLDS;
    s->holds[next] = (struct session_hold){.position = position, .seq = seq};
    s->hold_count++;
}

/* ---- output ---- */

void
session_write(struct session *s, struct bytes reply, u64 seq)
{
    if (s->conn == NULL || s->closing || reply.size == 0) return;
    if (seq != 0 && durable_lost(s->shard, seq)) {
        holds_lost(s);
        return;
    }
    u64 position = io_conn_written(s->conn);
    u64 limit = s->shard->config->client_output_limit_bytes;
    size_t owed = io_conn_pending(s->conn);
    if (limit != 0 && owed != 0 && owed + reply.size > limit + CONN_OUTPUT_HIGH_BYTES) {
        s->shard->stats->clients_output_closed++;
        session_abort(s);
        return;
    }
    if (seq != 0) hold(s, position, seq);
    if (!io_conn_write(s->conn, reply.data, reply.size)) {
        s->shard->stats->clients_output_closed++;
        session_abort(s);
        return;
    }
    s->active_ns = io_now_ns();
}

/* ---- long replies: piece by piece, as the client takes them ---- */

static bool
output_full(const struct session *s)
{
    return s->conn != NULL && io_conn_output_full(s->conn);
}

/* It has waited for memory that clients that read slowly hold for long, or does so no longer: they
 * are given less time then. */
static void
want_memory(struct session *s, bool wants)
{
    if (s->wants_memory == wants) return;
    s->wants_memory = wants;
    if (wants)
        atomic_fetch_add(&s->shard->server->memory_wanted, 1);
    else
        atomic_fetch_sub(&s->shard->server->memory_wanted, 1);
}

/* Whether nothing more is to be read from it for now. Native replies are written as they come, but
 * not into one of which a part has gone. */
static bool
output_blocked(const struct session *s)
{
    return output_full(s) || (s->piecewise && s->protocol == SESSION_NATIVE);
}

/* Writes what the client and the memory allow; true when nothing is left, or nobody wants it. */
static bool
write_pieces(struct session *s, struct bytes reply, size_t *written, u64 seq)
{
    while (*written < reply.size) {
        if (s->conn == NULL || s->closing) return true;
        if (seq != 0 && durable_lost(s->shard, seq)) {
            holds_lost(s);
            return true;
        }
        size_t size = MIN(reply.size - *written, REPLY_PIECE_BYTES);
        if (output_full(s)) return false;
        if (seq != 0) hold(s, io_conn_written(s->conn), seq);
        if (!io_conn_write_piece(s->conn, reply.data + *written, size)) return false;
        *written += size;
        s->active_ns = io_now_ns();
    }
    return true;
}

/* Something is left: because the client is slow, or others have the memory. */
static void
note_client_wait(struct session *s)
{
    if (s->client_wait_ns != 0 || io_conn_pending(s->conn) == 0) return;
    s->client_wait_ns = io_now_ns();
    s->client_wait_owed = io_conn_pending(s->conn);
}

MAY_YIELD bool
session_stream_bytes(struct exec *x, struct bytes bytes)
{
    struct session *s = x->session;
    struct workers *workers = &s->shard->workers;
    size_t written = CONTAINER_OF(x->work, struct request, work)->silent ? bytes.size : 0;
    bool left = x->work->away;
    u64 no_room_ns = 0;
    while (!write_pieces(s, bytes, &written, x->seq)) {
        note_client_wait(s);
        bool of_client = io_conn_pending(s->conn) != 0;
        if (of_client) no_room_ns = 0;
        if (!of_client && no_room_ns == 0) no_room_ns = io_now_ns();
        want_memory(s, no_room_ns != 0 && io_now_ns() - no_room_ns > STREAM_CROWDED_NS);
        if (!left) left = work_leave(workers, x->work, WORK_AWAY_CLIENT);
        u64 deadline_ns = FIBER_FOREVER;
        if (!of_client) deadline_ns = io_now_ns() + STREAM_RETRY_NS;
        if (of_client && !left) deadline_ns = io_now_ns() + STREAM_CROWDED_NS;
        status st = fiber_queue_wait(&s->drained, deadline_ns);
        if (!ok(st) && of_client && !left && s->conn != NULL) {
            s->shard->stats->clients_output_closed++;
            session_abort(s);
        }
    }
    want_memory(s, false);
    return s->conn != NULL && !s->closing;
}

MAY_YIELD bool
session_stream(struct exec *x)
{
    if (x->reply->failed) exec_fail(x, ST_NO_MEMORY);
    if (x->session->conn == NULL || x->session->closing || x->reply->failed) return false;
    bool there = session_stream_bytes(x, buf_bytes(x->reply->out));
    buf_clear(x->reply->out, x->work->away ? 0 : STREAM_KEEP_BYTES);
    work_return(&x->shard->workers, x->work);
    return there && x->session->conn != NULL && !x->session->closing;
}

void
session_close(struct session *s)
{
    if (s->conn == NULL || s->closing) return;
    s->closing = true;
    if (s->hold_count != 0) {
        s->close_held = true; /* the log answers soon, one way or the other */
        io_conn_pause(s->conn);
        return;
    }
    io_conn_close(s->conn, IO_CLOSE_FLUSH);
}

void
session_abort(struct session *s)
{
    if (s->conn == NULL) return;
    s->closing = true;
    io_conn_close(s->conn, IO_CLOSE_ABORT);
}

/* ---- reading and not reading ---- */

void
session_stall(struct session *s, enum session_stall why)
{
    if (s->stall == SESSION_RUNS) s->shard->stats->clients_paused++;
    s->stall = why;
    session_native_waits(s);
    if (s->conn != NULL) io_conn_pause(s->conn);
}

bool
session_stall_for_place(struct session *s, size_t bytes, u32 keys)
{
    struct shard *shard = s->shard;
    if (s->pending_count != 0) {
        session_stall(s, SESSION_WAITS_ORDER);
        return true;
    }
    bool large = keys > REQUEST_KEYS_LIGHT;
    if (!request_may_fit_later(shard, bytes, large)) return false;
    bool told = shard->request_count + shard->guest_count != 0; /* when there is a place */
    if (!told && s->starved_ns != 0 && io_now_ns() - s->starved_ns > MEMORY_PATIENCE_NS)
        return false;
    CHECK(!list_linked(&s->starved_link));
    if (s->starved_ns == 0) s->starved_ns = io_now_ns();
    list_push_back(&shard->starved[large ? WORK_HEAVY : WORK_LIGHT], &s->starved_link);
    session_stall(s, SESSION_WAITS_PLACE);
    return true;
}

static void
run_on(struct session *s)
{
    if (s->stall == SESSION_RUNS) return;
    list_del(&s->starved_link);
    want_memory(s, false);
    s->stall = SESSION_RUNS;
    s->shard->stats->clients_paused--;
    if (s->leaving && !s->ended && s->conn != NULL) {
        s->leaving = false; /* what comes now has its own time */
        atomic_store(&s->wanted_until_ns, UINT64_MAX);
    }
    if (s->conn != NULL && !s->closing && !s->shard->draining) io_conn_resume(s->conn);
}

void
session_place_free(struct shard *shard)
{
    /* With the last one goes who would wake the others. */
    bool more;
    do {
        more = false;
        for (u32 class = 0; class < WORK_CLASSES; class ++) {
            struct list *node = list_pop_front(&shard->starved[class]);
            if (node == NULL) continue;
            run_on(list_entry(node, struct session, starved_link));
            more = true;
        }
    } while (more && shard->request_count + shard->guest_count == 0);
}

static void
session_free(struct session *s)
{
    CHECK(s->conn == NULL && s->pending_count == 0);
    struct shard *shard = s->shard;
    durable_wait_cancel(&s->durable);
    if (s->stall != SESSION_RUNS) shard->stats->clients_paused--;
    list_del(&s->starved_link);
    session_multi_free(s);
    monitor_stop(s);
    resp_parser_deinit(&s->parser);
    buf_deinit(&s->name);
    buf_deinit(&s->lib_name);
    buf_deinit(&s->lib_version);
    if (shard->sweep_next == &s->link) shard->sweep_next = s->link.next;
    list_del(&s->link);
    shard->session_count--;
    mem_free(io_budget(), s, sizeof(*s));
}

bool
session_all_check(const struct shard *shard)
{
    u32 sessions = 0, requests = 0;
    list_for_each (link, &shard->sessions) {
        const struct session *s = list_entry(link, struct session, link);
        u32 pending = 0;
        list_for_each (node, &s->pending) {
            if (list_entry(node, struct request, link)->session != s) return false;
            pending++;
        }
        if (pending != s->pending_count || s->hold_count > SESSION_HOLDS) return false;
        if (list_linked(&s->starved_link) != (s->stall == SESSION_WAITS_PLACE)) return false;
        if (s->wants_memory && s->stall != SESSION_WAITS_PLACE && s->pending_count == 0)
            return false;
        sessions++;
        requests += pending;
    }
    const struct budget *all = &shard->budget, *large = &shard->large_budget;
    return sessions == shard->session_count && requests <= shard->request_count &&
           shard->heavy_count <= shard->request_count &&
           shard->large_count <= shard->request_count && all->used_bytes <= all->limit_bytes &&
           large->used_bytes <= large->limit_bytes &&
           large->used_bytes + shard->kept_budget.used_bytes <= all->used_bytes;
}

/* false: the client must take some of it first. */
static bool
deliver(struct session *s, struct request *request)
{
    if (request->silent) return true;
    struct bytes reply = request_reply(request);
    if (reply.size > REPLY_SHORT_BYTES)
        return write_pieces(s, reply, &request->delivered, request->seq);
    session_write(s, reply, request->seq);
    return true;
}

/* Sends the replies that are due, in order. */
static void
deliver_done(struct session *s)
{
    s->piecewise = false;
    for (;;) {
        struct list *first = list_first(&s->pending);
        if (first == NULL) break;
        struct request *request = list_entry(first, struct request, link);
        if (request->put_off) request_resume(request);
        if (request->owner == s->shard->index) request->early = false;
        if (!request->done) break;
        if (request->unknown && s->conn != NULL) {
            s->closing = true;
            io_conn_close(s->conn, IO_CLOSE_FLUSH);
        }
        if (!deliver(s, request)) {
            s->piecewise = true;
            note_client_wait(s);
            return;
        }
        list_del(&request->link);
        s->pending_count--;
        request_free(request);
    }
    s->no_room_ns = 0;
    if (s->stall != SESSION_WAITS_PLACE) want_memory(s, false);
    AUDIT("server.session.delivered", session_all_check(s->shard));
    if (s->close_after) session_close(s);
}

/* After requests have ended, or the client has read some: what may go on now. The session may be
 * gone afterwards. */
static void
go_on(struct session *s)
{
    deliver_done(s);
    if (s->conn == NULL) {
        if (s->pending_count == 0) session_free(s);
        return;
    }
    if (s->ended && s->pending_count == 0) session_close(s);
    if (s->stall != SESSION_WAITS_ORDER && s->stall != SESSION_WAITS_OUTPUT) return;
    run_on(s);
    if (output_blocked(s)) session_stall(s, SESSION_WAITS_OUTPUT);
}

void
session_request_done(struct request *request)
{
    struct session *s = request->session;
    request->done = true;
    if (request->command->place == PLACE_EXEC || request->command->place == PLACE_WATCH)
        session_exec_done(s, request->command);
    /* CLIENT REPLY SKIP within EXEC counts for what comes behind that. */
    if (s->reply_skip_next) session_skip_goes_on(s);
    session_account(s, request->command, request->args, request->arg_count, request->start_ns,
                    request_reply(request));
    if (s->protocol == SESSION_NATIVE) {
        /* Answers go out as they come; not into one that has begun. */
        list_del(&request->link);
        struct list *first = s->piecewise ? s->pending.next : &s->pending;
        list_insert_between(&request->link, first, first->next);
    }
    go_on(s);
}

void
session_deliver(struct session *s)
{
    deliver_done(s);
}

bool
session_has_room(const struct session *s, size_t size)
{
    return size <= REPLY_SHORT_BYTES || s->conn == NULL || io_conn_piece_fits(s->conn, size);
}

void
session_request_put_off(struct request *request)
{
    request->put_off = true;
    if (list_first(&request->session->pending) == &request->link) request_resume(request);
}

/* ---- accounts ---- */

void
session_log_slow(struct session *s, const struct command *command, const struct bytes *args,
                 u32 arg_count, u64 us)
{
    struct shard *shard = s->shard;
    /* Under overload every request is slow: the kernel is asked once. */
    if (s->peer[0] == '\0') session_peer(s, s->peer, sizeof(s->peer));
    slowlog_add(&shard->slowlog, shard->config->slowlog_max_len, io_wall_ms() / 1000, us, command,
                args, arg_count, s->peer, buf_bytes(&s->name));
}

void
session_account(struct session *s, const struct command *command, const struct bytes *args,
                u32 arg_count, u64 start_ns, struct bytes reply)
{
    struct shard *shard = s->shard;
    u64 end_ns = io_clock_ns();
    u64 ns = end_ns > start_ns ? end_ns - start_ns : 0;
    bool failed = s->protocol == SESSION_RESP && reply.size != 0 && reply.data[0] == '-';
    if (s->protocol == SESSION_NATIVE) failed = native_reply_failed(reply);
    s->commands++;
    s->last_command = command;
    shard_count_command(shard, command_index(command), ns, failed);
    if (failed && s->protocol == SESSION_RESP) shard_count_error(shard, reply);
    if (failed && s->protocol == SESSION_NATIVE) shard->stats->errors[native_error_kind(reply)]++;

    i64 slower_us = config_slowlog_us(shard->config);
    u64 us = ns / NS_PER_US;
    /* EXEC skips it only where its commands are logged one by one, as in Redis. */
    bool skip = command->flags & COMMAND_SKIP_SLOWLOG && command->place != PLACE_EXEC;
    if (UNLIKELY(slower_us >= 0 && us >= (u64)slower_us) && !skip && s->protocol == SESSION_RESP)
        session_log_slow(s, command, args, arg_count, us);
    u64 threshold_ms = shard->config->latency_monitor_threshold_ms;
    if (UNLIKELY(threshold_ms != 0 && us / 1000 >= threshold_ms))
        latency_add(&shard->latency,
                    command->flags & COMMAND_FAST ? LATENCY_FAST_COMMAND : LATENCY_COMMAND,
                    io_wall_ms() / 1000, us / 1000);
}

void
session_peer(const struct session *s, char *out, size_t size)
{
    if (s->conn != NULL)
        io_conn_peer_name(s->conn, out, size);
    else
        snprintf(out, size, "?:0");
}

size_t
session_describe(const struct session *s, char *out, size_t size)
{
    char peer[64] = "?:0", local[64] = "?:0";
    session_peer(s, peer, sizeof(peer));
    if (s->conn != NULL) io_conn_local_name(s->conn, local, sizeof(local));
    char flags[8] = "N";
    if (s->monitor)
        snprintf(flags, sizeof(flags), "O");
    else if (session_in_multi(s))
        snprintf(flags, sizeof(flags), "x");
    u64 wall_ms = io_wall_ms(), now = io_now_ns();
    int n = snprintf(
        out, size,
        "id=%llu addr=%s laddr=%s fd=%u name=%.*s age=%llu idle=%llu flags=%s db=%u sub=0 psub=0 "
        "ssub=0 multi=%d qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 "
        "omem=%zu tot-mem=%zu events=r cmd=%s user=default redir=-1 resp=%u lib-name=%.*s "
        "lib-ver=%.*s",
        (unsigned long long)s->id, peer, local, 8 + (u32)(s->id >> 6) % 60000, (int)s->name.size,
        (const char *)s->name.data,
        (unsigned long long)((wall_ms - MIN(wall_ms, s->created_ms)) / 1000),
        (unsigned long long)((now - MIN(now, s->active_ns)) / NS_PER_S), flags, s->keyspace,
        session_multi_count(s), s->conn != NULL ? io_conn_pending(s->conn) : 0,
        sizeof(*s) + (s->conn != NULL ? io_conn_pending(s->conn) : 0),
        s->last_command != NULL ? s->last_command->name : "NULL", s->resp, (int)s->lib_name.size,
        (const char *)s->lib_name.data, (int)s->lib_version.size,
        (const char *)s->lib_version.data);
    return n < 0 ? 0 : MIN((size_t)n, size - 1);
}

/* ---- idle and stuck connections ---- */

/* A request that has begun keeps memory until it ends. So it must go on: in each time limit_ns
 * enough of it must come, or whoever sends a byte now and then keeps megabytes. Enough is a
 * sixteenth of the request a minute, so that it is whole in about a quarter of an hour however slow
 * the line is. What has arrived only the kernel knows: a large request is received in one piece. So
 * it is asked once in a time, and only about requests that take so long. */
static void
sweep_unfinished(struct session *s, u64 now_ns, u64 limit_ns)
{
    if (!s->unfinished_seen) {
        s->unfinished_arrived = io_conn_arrived(s->conn);
        s->unfinished_seen = true;
        return;
    }
    if (now_ns - MIN(now_ns, s->unfinished_ns) <= limit_ns) return;
    u64 arrived = io_conn_arrived(s->conn);
    u64 a_minute = MAX(s->unfinished_wanted / 16, UNFINISHED_BYTES_MIN);
    u64 enough = MAX(a_minute * (limit_ns / NS_PER_MS) / 60000, 1u);
    if (arrived - s->unfinished_arrived >= enough) {
        s->unfinished_arrived = arrived;
        s->unfinished_ns = s->active_ns = now_ns;
        return;
    }
    s->shard->stats->clients_request_timed_out++;
    session_close(s);
}

/* Waits for a place for a request, or with a reply for which there is no memory for output, though
 * its client has taken all that came before. */
static void
sweep_waiting(struct session *s, u64 now_ns)
{
    bool no_place = s->stall == SESSION_WAITS_PLACE;
    bool no_room = s->piecewise && io_conn_pending(s->conn) == 0;
    if (no_room && s->no_room_ns == 0) s->no_room_ns = now_ns;
    if (!no_room) s->no_room_ns = 0;
    u64 since_ns = no_place ? s->starved_ns : s->no_room_ns;
    if (since_ns == 0 || now_ns - MIN(now_ns, since_ns) <= STREAM_CROWDED_NS) return;
    MARK("server.session.starved_long");
    want_memory(s, true);
}

/* Who does not read does not see that its client has gone. Of a client that has only closed its
 * sending side all is still done and answered, but nothing waits for long any more. */
static void
sweep_paused(struct session *s)
{
    switch (io_conn_peer_look(s->conn)) {
    case IO_PEER_THERE:
        return;
    case IO_PEER_ENDED:
        if (s->leaving) return;
        MARK("server.session.leaves_while_paused");
        s->leaving = true;
        atomic_store(&s->wanted_until_ns, io_now_ns() + MEMORY_PATIENCE_MIN_NS);
        return;
    case IO_PEER_GONE:
        MARK("server.session.gone_while_paused");
        session_abort(s);
        return;
    }
}

static void
sweep_one(struct session *s, u64 now_ns, u64 timeout_ns, u64 request_ns)
{
    if (s->conn == NULL) return;
    size_t owed = io_conn_pending(s->conn);
    bool small = owed <= CONN_OUTPUT_HIGH_BYTES && s->stall != SESSION_WAITS_OUTPUT;
    if (owed < s->pending_bytes || small) {
        if (owed != 0 && owed != s->pending_bytes) s->active_ns = now_ns;
    } else if (now_ns - MIN(now_ns, s->active_ns) > OUTPUT_STUCK_NS) {
        s->shard->stats->clients_output_closed++;
        session_abort(s);
        return;
    }
    s->pending_bytes = owed;
    /* Any progress is enough for what is owed above. A long reply holds more than that: so much of
     * it must be taken in each such time, or enough for the next piece to go. */
    if (owed == 0) s->client_wait_ns = 0;
    if (s->client_wait_ns != 0 && owed + STREAM_CROWDED_BYTES <= s->client_wait_owed) {
        s->client_wait_ns = now_ns;
        s->client_wait_owed = owed;
    }
    u64 patience_ns = s->shard->server->memory_wanted != 0 ? STREAM_CROWDED_NS : OUTPUT_STUCK_NS;
    if (s->client_wait_ns != 0 && now_ns - MIN(now_ns, s->client_wait_ns) > patience_ns) {
        s->shard->stats->clients_output_closed++;
        session_abort(s);
        return;
    }
    if (s->piecewise && owed == 0) go_on(s); /* it was the memory */
    if (s->conn == NULL) return;
    sweep_waiting(s, now_ns);
    if (s->stall != SESSION_RUNS && !s->closing) sweep_paused(s);
    if (s->pending_count != 0 || s->stall != SESSION_RUNS || s->closing) return;
    if (io_conn_waits_for_room(s->conn)) { /* that is our time, not the client's */
        s->active_ns = s->unfinished_ns = now_ns;
        s->unfinished_seen = false;
        return;
    }
    if (s->unfinished_wanted != 0 && request_ns != 0) {
        /* It is not idle, but has no more time than if it were. */
        sweep_unfinished(s, now_ns, timeout_ns != 0 ? MIN(timeout_ns, request_ns) : request_ns);
        return;
    }
    if (timeout_ns == 0 || s->monitor) return;
    if (now_ns - MIN(now_ns, s->active_ns) > timeout_ns) {
        s->shard->stats->clients_timed_out++;
        session_close(s);
    }
}

/* In a cluster: whether this shard has just stood still for longer than anybody waits for an answer
 * (a stopped process, a machine that was suspended). What lies in its sockets may be as old. Others
 * have answered those clients since, and written; done now it would be the newest of all. */
static bool
stood_still(const struct shard *shard, u64 now_ns)
{
    if (shard->server->cluster == NULL) return false;
    u64 patience_ns = shard->config->cluster_timeout_ms * NS_PER_MS + SWEEP_PERIOD_NS;
    return now_ns - MIN(now_ns, shard->swept_ns) > patience_ns;
}

/* The sweep comes more often than that, so this misses no pause. */
static void
pause_note(struct shard *shard, u64 now_ns)
{
    if (shard->server->cluster == NULL || now_ns - MIN(now_ns, shard->swept_ns) <= SESSION_STOOD_NS)
        return;
    shard->stood_ns = now_ns;
}

bool
session_stood_since(const struct session *s)
{
    struct shard *shard = s->shard;
    pause_note(shard, io_now_ns());
    return UNLIKELY(shard->stood_ns != 0) && s->created_ns <= shard->stood_ns;
}

/* So all clients begin anew. Those that are let in now may have come while it stood, too. */
static void
sweep_pause(struct shard *shard, u64 now_ns)
{
    MARK("server.session.stood_still");
    log_warning("server", "stood still ms=%llu clients=%u: they are cut off",
                (unsigned long long)((now_ns - shard->swept_ns) / NS_PER_MS), shard->session_count);
    shard->stood_until_ns = now_ns + SWEEP_PERIOD_NS;
    shard->swept_ns = now_ns;
    list_for_each_safe (node, &shard->sessions) {
        struct session *s = list_entry(node, struct session, link);
        if (s->conn != NULL) session_abort(s);
    }
}

static void
sweep(struct io_timer *timer)
{
    struct shard *shard = CONTAINER_OF(timer, struct shard, sweep);
    pause_note(shard, io_now_ns());
    if (stood_still(shard, io_now_ns())) sweep_pause(shard, io_now_ns());
    shard->swept_ns = io_now_ns();
    u64 timeout_ns = shard->config->timeout_s * NS_PER_S;
    u64 request_ns = shard->config->request_timeout_ms * NS_PER_MS;
    u64 now_ns = io_now_ns();
    u32 count = MIN(shard->session_count, SWEEP_SESSIONS);
    for (u32 i = 0; i < count; i++) {
        if (shard->sweep_next == &shard->sessions) shard->sweep_next = shard->sessions.next;
        struct list *node = shard->sweep_next;
        if (node == &shard->sessions) break;
        shard->sweep_next = node->next;
        sweep_one(list_entry(node, struct session, link), now_ns, timeout_ns, request_ns);
    }
    if (shard->request_count + shard->guest_count == 0) session_place_free(shard);
    native_snapshots_sweep(shard, false);
    shard_config_look(shard);
    if (shard->index == 0) server_not_ready_look(shard->server);
    if (!shard->draining) io_timer_arm(timer, now_ns + SWEEP_PERIOD_NS);
}

static u64
per_second(u64 now, u64 before, u64 elapsed_ns)
{
    /* A counter that was reset in between starts at 0 again. */
    return (now >= before ? now - before : now) * 1000 / MAX(elapsed_ns / NS_PER_MS, 1);
}

static void
rate(struct io_timer *timer)
{
    struct shard *shard = CONTAINER_OF(timer, struct shard, rate);
    struct shard_stats *stats = shard->stats;
    struct io_stats io;
    io_stats_get(&io);
    u64 now_ns = io_now_ns();
    u64 elapsed_ns = now_ns - shard->rate_ns;
    stats->commands_per_s = per_second(stats->commands_total, shard->rate_commands, elapsed_ns);
    stats->received_bytes_per_s = per_second(io.received_bytes, shard->rate_received, elapsed_ns);
    stats->sent_bytes_per_s = per_second(io.sent_bytes, shard->rate_sent, elapsed_ns);
    shard->rate_ns = now_ns;
    shard->rate_commands = stats->commands_total;
    shard->rate_received = io.received_bytes;
    shard->rate_sent = io.sent_bytes;
    if (!shard->draining) io_timer_arm(timer, now_ns + RATE_PERIOD_NS);
}

void
session_sweep_start(struct shard *shard)
{
    shard->rate_ns = io_now_ns();
    io_timer_init(&shard->rate, rate);
    io_timer_arm(&shard->rate, io_now_ns() + RATE_PERIOD_NS);
    shard->sweep_next = &shard->sessions;
    shard->swept_ns = io_now_ns();
    io_timer_init(&shard->sweep, sweep);
    io_timer_arm(&shard->sweep, io_now_ns() + SWEEP_PERIOD_NS);
}

/* ---- events of the connection ---- */

void
session_refusal_log(struct shard *shard, const char *why)
{
    if (!log_seldom(&shard->refusal_ns, io_now_ns())) return;
    log_warning("server", "refusing clients clients_refused=%llu requests_refused=%llu why=%s",
                (unsigned long long)shard->stats->clients_refused,
                (unsigned long long)shard->stats->requests_refused, why);
}

static const char refusal[] = "-ERR max number of clients reached\r\n";

static status
opened(struct io_conn *conn, void *arg)
{
    struct shard *shard = arg;
    io_conn_user_set(conn, NULL);
    if (shard->draining || io_now_ns() < shard->stood_until_ns) return ST_CLOSED;
    u32 clients = atomic_fetch_add(&shard->server->clients, 1);
    u64 limit = shard->config->maxclients;
    /* Of the shard's memory: when big requests have taken what is for requests, a client can still
     * connect and ask why. maxclients bounds it. */
    struct session *s = NULL;
    if (limit == 0 || clients < limit) s = mem_alloc_zero(io_budget(), sizeof(*s));
    if (s == NULL) {
        shard->stats->clients_refused++;
        session_refusal_log(shard, limit != 0 && clients >= limit ? "more than maxclients"
                                                                  : "no memory for a session");
        if (!io_conn_write(conn, refusal, sizeof(refusal) - 1)) {
            MARK("server.session.refused_without_memory");
            atomic_fetch_sub(&shard->server->clients, 1); /* closed is not called */
            return ST_NO_MEMORY;
        }
        io_conn_close(conn, IO_CLOSE_FLUSH);
        return ST_OK;
    }
    s->shard = shard;
    s->conn = conn;
    s->id = io_conn_id(conn) << 6 | shard->index;
    s->created_ms = io_wall_ms();
    s->created_ns = s->active_ns = io_now_ns();
    atomic_init(&s->wanted_until_ns, UINT64_MAX);
    s->resp = 2;
    s->authenticated = !config_has_password(shard->config);
    list_init(&s->pending);
    list_init(&s->monitor_link);
    list_init(&s->starved_link);
    list_init(&s->durable.link);
    s->durable.fn = holds_released;
    fiber_queue_init(&s->drained);
    resp_parser_init(&s->parser, &shard->budget);
    s->parser.args_per_call = SESSION_TURN_ARGS;
    buf_init(&s->name, &shard->budget);
    buf_init(&s->lib_name, &shard->budget);
    buf_init(&s->lib_version, &shard->budget);
    list_push_back(&shard->sessions, &s->link);
    shard->session_count++;
    io_conn_user_set(conn, s);
    return ST_OK;
}

/* Whether a connection that has sent much may have it looked at in this turn. Small requests always
 * are. Much of it could take the whole turn, and those that are asked first each time would have
 * all of it: so each has its run once in a round, and a round ends when nobody who waited is left.
 * One may run in any case, however long the turn has been. */
static bool
may_go_on(struct session *s)
{
    struct shard *shard = s->shard;
    u64 now_ns = io_now_ns();
    if (shard->turn_ns != now_ns) {
        if (shard->turn_waits == 0) shard->round++;
        shard->turn_ns = now_ns;
        shard->turn_runs = shard->turn_waits = 0;
    }
    if (s->round == shard->round) return false; /* had its run */
    if (shard->turn_runs != 0 && fiber_should_yield()) {
        shard->turn_waits++;
        return false;
    }
    shard->turn_runs++;
    s->round = shard->round;
    return true;
}

static size_t
received(struct io_conn *conn, struct bytes data)
{
    struct session *s = io_conn_user(conn);
    if (s == NULL || s->closing) return data.size;
    if (data.size == 0) return 0;
    if (stood_still(s->shard, io_now_ns())) { /* before the timer came */
        sweep_pause(s->shard, io_now_ns());
        return data.size;
    }
    s->active_ns = io_now_ns();
    if (s->protocol == SESSION_NEW) {
        bool native = data.data[0] == NATIVE_FIRST_BYTE;
        s->protocol = native ? SESSION_NATIVE : SESSION_RESP;
        *(native ? &s->shard->stats->clients_native : &s->shard->stats->clients_resp) += 1;
    }
    if (s->stall != SESSION_RUNS) return 0;
    if (output_blocked(s)) {
        session_stall(s, SESSION_WAITS_OUTPUT);
        return 0;
    }
    if (data.size > TURN_SMALL_BYTES && !may_go_on(s)) {
        io_conn_again(conn);
        return 0;
    }
    bool unfinished = s->unfinished_wanted != 0;
    s->unfinished_wanted = 0;
    request_trains_form(s->shard);
    size_t consumed = s->protocol == SESSION_NATIVE ? session_native_received(s, data)
                                                    : session_resp_received(s, data);
    request_trains_send(s->shard);
    if (UNLIKELY(s->starved_ns != 0)) {
        bool starved = s->stall == SESSION_WAITS_PLACE;
        if (!starved || consumed != 0) s->starved_ns = starved ? io_now_ns() : 0;
    }
    if (s->unfinished_wanted != 0 && (!unfinished || consumed != 0)) {
        s->unfinished_ns = io_now_ns();
        s->unfinished_seen = false;
    }
    if (s->conn != NULL && !s->closing && s->stall == SESSION_RUNS && output_full(s))
        session_stall(s, SESSION_WAITS_OUTPUT);
    return consumed;
}

static void
drained(struct io_conn *conn)
{
    struct session *s = io_conn_user(conn);
    if (s == NULL) return;
    s->active_ns = io_now_ns();
    s->client_wait_ns = 0;
    fiber_queue_wake_all(&s->drained);
    if (s->piecewise)
        go_on(s);
    else if (s->stall == SESSION_WAITS_OUTPUT)
        run_on(s);
}

/* `printf 'GET k\r\n' | nc` has its answer, too. */
static void
ended(struct io_conn *conn)
{
    struct session *s = io_conn_user(conn);
    if (s == NULL) {
        io_conn_close(conn, IO_CLOSE_FLUSH);
        return;
    }
    s->ended = true;
    atomic_store(&s->wanted_until_ns, io_now_ns() + MEMORY_PATIENCE_MIN_NS);
    if (s->pending_count == 0) session_close(s);
}

/* Others wait for the memory of what has come from it. Who is at work for it, or waits for others,
 * is not to blame. */
static void
holds_up(struct session *s)
{
    u64 now_ns = io_now_ns();
    if (s->stall == SESSION_WAITS_OUTPUT || s->client_wait_ns != 0) {
        u64 since_ns = s->client_wait_ns != 0 ? s->client_wait_ns : s->active_ns;
        if (now_ns - MIN(now_ns, since_ns) <= STREAM_CROWDED_NS) return;
        s->shard->stats->clients_output_closed++;
        session_abort(s);
    } else if (s->stall == SESSION_RUNS && s->pending_count == 0) {
        s->shard->stats->clients_request_timed_out++;
        session_close(s);
    }
}

static void
crowded(struct io_conn *conn, enum io_crowd what, struct bytes input)
{
    struct session *s = io_conn_user(conn);
    if (s == NULL || s->closing) return;
    switch (what) {
    case IO_CROWD_WAITS:
        session_native_waits(s);
        break;
    case IO_CROWD_HOLDS_UP:
        holds_up(s);
        break;
    case IO_CROWD_GIVES_UP:
        if (s->pending_count != 0) /* no word may go before the answers of those */
            session_close(s);
        else if (s->protocol == SESSION_NATIVE)
            session_native_no_memory(s, input);
        else
            session_resp_no_memory(s);
        break;
    }
}

static void
closed(struct io_conn *conn, status why)
{
    struct session *s = io_conn_user(conn);
    /* Who was refused is not waited for when the node stops, and may outlast the shard. */
    struct shard *shard = shard_self();
    if (shard != NULL) atomic_fetch_sub(&shard->server->clients, 1);
    if (s == NULL) return;
    if (s->protocol == SESSION_NATIVE) shard->stats->clients_native--;
    if (s->protocol == SESSION_RESP) shard->stats->clients_resp--;
    s->conn = NULL;
    atomic_store(&s->wanted_until_ns, 0);
    s->closing = true;
    durable_wait_cancel(&s->durable);
    if (s->stall == SESSION_WAITS_PLACE) run_on(s); /* for nothing any more */
    fiber_queue_wake_all(&s->drained);
    go_on(s);
}

const struct io_conn_events session_events = {
    .opened = opened,
    .received = received,
    .drained = drained,
    .ended = ended,
    .closed = closed,
    .crowded = crowded,
    .refusal = {(const u8 *)refusal, sizeof(refusal) - 1},
};
