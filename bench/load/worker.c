/* SPDX-License-Identifier: MIT
 *
 * worker.c -- one thread of the client. See worker.h for what it does; here is how a request goes:
 *
 *   connection_fill / pace_run      decide what is sent, and when
 *     request_issue                 draws key and kind, writes the bytes, notes a flight
 *   connection_received             reads replies, ends flights
 *     flight_end                    counts, records, judges
 *     connection_fill               sends on, once all of them are here
 *
 * Nothing is allocated for a request. The clock is read once for what is received at once and once
 * for what is sent at once.
 */
#include "load/worker.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "io/io.h"
#include "proto/native.h"

#define MAINTENANCE_NS (50 * NS_PER_MS)
#define CONNECT_NS     (5 * NS_PER_S)
#define RECONNECT_NS   (200 * NS_PER_MS) /* between tries, and how long one may take */
/* At most this much is reserved in one piece of the output. */
#define BATCH_BYTES_MAX (64u << 10)
/* Requests that may be sent before replies are looked at again. */
#define PACE_BATCH 256u
/* A version that is never written: this key is not judged by age. */
#define VERSION_UNJUDGED UINT32_MAX
/* Tries to find a key without a write under way. */
#define OWN_KEY_TRIES 64u
/* Draws of a key that lies where its connection goes; after that any will do. */
#define HOME_TRIES 4096u

/* ---- errors ---- */

static void
error_add(struct worker *worker, u64 count, const char *name, const char *text)
{
    errors_add(&worker->errors, count, BYTES(name, strlen(name)), BYTES(text, strlen(text)));
}

static void
wrong_add(struct worker *worker, const char *name, u64 key, const char *format, u64 a, u64 b)
{
    char text[ERROR_TEXT_MAX];
    int used = snprintf(text, sizeof(text), "key %llu: ", (unsigned long long)key);
    snprintf(text + used, sizeof(text) - (size_t)used, format, (unsigned long long)a,
             (unsigned long long)b);
    errors_add(&worker->wrong, 1, BYTES(name, strlen(name)), BYTES(text, strlen(text)));
}

/* Nothing more is read from it or sent on it. */
static void
connection_end(struct connection *c)
{
    c->state = CONN_ENDING;
    io_conn_close(c->io, IO_CLOSE_ABORT);
}

/* ---- what is written, strictly ---- */

static bool
is_strict(const struct plan *plan, u64 key)
{
    return plan->sent != NULL && key < plan->settings->key_count;
}

static void
unjudge(struct plan *plan, u64 key)
{
    if (is_strict(plan, key)) atomic_store(&plan->acknowledged[key], VERSION_UNJUDGED);
}

/* Whether the connection goes to where the key lies. */
static bool
at_home(const struct connection *c, u64 key)
{
    const struct worker *worker = c->worker;
    u8 text[WIRE_KEY_BYTES];
    if (c->home == PLACE_NOWHERE) return true;
    u32 slot = hash_slot(BYTES(text, wire_key(&worker->wire, key, text)));
    return places_of(worker->plan->places, slot) == c->home;
}

static u64
pick(struct connection *c)
{
    struct worker *worker = c->worker;
    u64 key = keys_pick(&worker->keys, &worker->prng);
    for (u32 i = 0; i < HOME_TRIES && !at_home(c, key); i++)
        key = keys_pick(&worker->keys, &worker->prng);
    return key;
}

/* Another key near this one that is the connection's own, none of whose writes is under way; one
 * that lies where the connection goes, if there is one near. */
static u64
own_key(const struct connection *c, u64 key)
{
    const struct plan *plan = c->worker->plan;
    u64 all = plan->settings->connections, count = plan->settings->key_count;
    key = key - key % all + c->number;
    if (key >= count) key -= all;
    u64 anywhere = UINT64_MAX;
    for (u32 i = 0; i < OWN_KEY_TRIES; i++) {
        u32 done = atomic_load_explicit(&plan->acknowledged[key], memory_order_relaxed);
        u32 sent = atomic_load_explicit(&plan->sent[key], memory_order_relaxed);
        bool free = done == sent || done == VERSION_UNJUDGED;
        if (free || plan->settings->protocol == PROTOCOL_RESP) {
            if (at_home(c, key)) return key;
            if (anywhere == UINT64_MAX) anywhere = key;
        }
        key += all;
        if (key >= count) key = c->number;
    }
    return anywhere != UINT64_MAX ? anywhere : key;
}

static u32
next_version(struct worker *worker, u64 key)
{
    struct plan *plan = worker->plan;
    if (!is_strict(plan, key)) return (u32)++worker->write_count;
    /* Only the key's connection writes it, so nobody else counts it up. */
    u32 version = atomic_load_explicit(&plan->sent[key], memory_order_relaxed) + 1;
    if (version == VERSION_UNJUDGED) version = 1;
    atomic_store(&plan->sent[key], version);
    return version;
}

/* ---- sending ---- */

static bool
may_send(const struct worker *worker, u64 now_ns)
{
    const struct plan *plan = worker->plan;
    if (atomic_load_explicit(&plan->stop, memory_order_relaxed)) return false;
    switch (worker->phase) {
    case PHASE_IDLE:
        return false;
    case PHASE_LOAD:
        return true;
    case PHASE_RUN:
        break;
    }
    return plan->settings->count > 0 ? worker->remaining > 0 : now_ns < plan_end_ns(plan);
}

/* What the next request of this connection is; false: there is none. */
static bool
request_draw(struct connection *c, struct request *request, struct flight *flight)
{
    struct worker *worker = c->worker;
    struct plan *plan = worker->plan;
    const struct settings *settings = plan->settings;
    if (worker->phase == PHASE_LOAD) {
        if (c->load_number >= settings->key_count) return false;
        request->op = OP_SET;
        request->key = c->load_number;
        c->load_number += settings->connections;
    } else if (c->follow_count > 0) {
        const struct follow *follow = &c->follows[c->follow_first];
        c->follow_first = (c->follow_first + 1) & worker->flight_mask;
        c->follow_count--;
        request->op = OP_SET;
        request->key = follow->key;
        flight->first_ns = follow->first_ns;
    } else {
        request->op = settings_pick(settings, (u32)(prng_u64(&worker->prng) >> 48));
        flight->rmw = request->op == OP_RMW;
        if (request->op == OP_INSERT)
            request->key = keys_insert(&worker->keys);
        else if (request->op != OP_PING)
            request->key = pick(c);
        if (request->op == OP_RMW || request->op == OP_SET)
            if (is_strict(plan, request->key)) request->key = own_key(c, request->key);
        if (request->op == OP_RMW) request->op = OP_GET;
        if (request->op == OP_SCAN)
            request->entries = 1 + (u32)prng_below(&worker->prng, settings->scan_length);
    }
    if (request->op == OP_SET || request->op == OP_INSERT) {
        request->version = next_version(worker, request->key);
        request->value_size = value_size(plan->values, request->key, request->version);
    } else if (request->op == OP_GET && is_strict(plan, request->key)) {
        flight->floor = atomic_load(&plan->acknowledged[request->key]);
    }
    return true;
}

static bool
has_room(const struct connection *c)
{
    const struct worker *worker = c->worker;
    return c->state == CONN_UP && c->flying < worker->plan->settings->depth &&
           !c->flights[c->next & worker->flight_mask].busy;
}

/* Writes one request at out and returns its end, or NULL: there is nothing more to send. */
static u8 *
request_issue(struct connection *c, u64 start_ns, u64 now_ns, u8 *out)
{
    struct worker *worker = c->worker;
    struct request request = {.id = c->next + 1};
    struct flight flight = {.start_ns = start_ns, .busy = true};
    if (!request_draw(c, &request, &flight)) return NULL;
    flight.key = request.key;
    flight.version = request.version;
    flight.op = (u8)request.op;
    flight.entries = (u16)request.entries;
    if (c->flying == 0) c->progress_ns = now_ns;
    c->flights[c->next & worker->flight_mask] = flight;
    c->next++;
    c->flying++;
    worker->flying++;
    if (worker->remaining > 0 && start_ns >= plan_measure_ns(worker->plan)) worker->remaining--;
    return wire_request(&worker->wire, &request, out);
}

static void
out_of_memory(struct connection *c)
{
    error_add(c->worker, 1, "client memory", "the client ran out of memory for what it sends");
    connection_end(c);
}

/* Closed loop: a whole pipeline of requests. */
static void
connection_fill(struct connection *c)
{
    struct worker *worker = c->worker;
    u32 wanted = worker->plan->settings->depth;
    if (worker->phase == PHASE_LOAD) wanted = MAX(wanted, LOAD_DEPTH);
    u64 now_ns = io_clock_ns();
    while (wanted > 0 && may_send(worker, now_ns)) {
        size_t room = (size_t)wanted * worker->request_max;
        if (room > BATCH_BYTES_MAX) room = MAX(BATCH_BYTES_MAX, worker->request_max);
        u8 *begin = io_conn_reserve(c->io, room);
        if (begin == NULL) {
            out_of_memory(c);
            return;
        }
        u8 *at = begin, *last = begin + room - worker->request_max;
        while (wanted > 0 && at <= last && may_send(worker, now_ns)) {
            u8 *end = request_issue(c, now_ns, now_ns, at);
            if (end == NULL) {
                wanted = 0;
                break;
            }
            at = end;
            wanted--;
        }
        io_conn_commit(c->io, (size_t)(at - begin));
        worker->counters.sent_bytes += (u64)(at - begin);
    }
}

/* ---- the open loop ---- */

static bool
is_open_loop(const struct worker *worker)
{
    return worker->phase == PHASE_RUN && worker->plan->settings->rate > 0;
}

/* When this worker's n-th request is due. */
static u64
due_ns(const struct worker *worker, u64 n)
{
    unsigned __int128 k = (unsigned __int128)n * worker->count + worker->index;
    return worker->plan->begin_ns + (u64)(k * NS_PER_S / worker->plan->settings->rate);
}

/* Whether a request is still to come, at *due_out. */
static bool
pace_next(const struct worker *worker, u64 *due_out)
{
    if (worker->gave_up) return false;
    *due_out = due_ns(worker, worker->due_index);
    return may_send(worker, *due_out);
}

static struct connection *
connection_with_room(struct worker *worker)
{
    for (u32 i = 0; i < worker->connection_count; i++) {
        struct connection *c = &worker->connections[worker->turn];
        worker->turn = worker->turn + 1 == worker->connection_count ? 0 : worker->turn + 1;
        if (has_room(c)) return c;
    }
    return NULL;
}

/* Sends what is due. */
static void
pace_run(struct worker *worker)
{
    u64 due;
    u64 now_ns = io_clock_ns();
    for (u32 sent = 0; pace_next(worker, &due); sent++) {
        if (due > now_ns || sent == PACE_BATCH) {
            /* After a batch: in the next turn, when replies have been seen. */
            io_timer_arm(&worker->pace, due);
            return;
        }
        struct connection *c = connection_with_room(worker);
        if (c == NULL) {
            worker->blocked = true;
            return;
        }
        u8 *begin = io_conn_reserve(c->io, worker->request_max);
        if (begin == NULL) {
            out_of_memory(c);
            continue;
        }
        /* Writes that belong to reads go first, and do not count as requests of the schedule. */
        bool follows = c->follow_count > 0;
        u8 *end = request_issue(c, follows ? now_ns : due, now_ns, begin);
        io_conn_commit(c->io, (size_t)(end - begin));
        worker->counters.sent_bytes += (u64)(end - begin);
        if (follows) continue;
        if (due >= plan_measure_ns(worker->plan) && !worker->blocked)
            latency_record(&worker->late, now_ns - due);
        worker->due_index++;
    }
}

static void
pace_fire(struct io_timer *timer)
{
    pace_run(CONTAINER_OF(timer, struct worker, pace));
}

/* Room has come. What was due meanwhile was late through no fault of this client. */
static void
pace_resume(struct worker *worker)
{
    if (!worker->blocked) return;
    pace_run(worker);
    u64 due;
    if (pace_next(worker, &due) && due <= io_clock_ns()) return;
    worker->blocked = false;
}

/* The write of an RMW, at once where there is room. */
static void
follow_send(struct connection *c)
{
    struct worker *worker = c->worker;
    while (c->follow_count > 0 && has_room(c)) {
        u64 now_ns = io_clock_ns();
        u8 *begin = io_conn_reserve(c->io, worker->request_max);
        if (begin == NULL) {
            out_of_memory(c);
            return;
        }
        u8 *end = request_issue(c, now_ns, now_ns, begin);
        io_conn_commit(c->io, (size_t)(end - begin));
        worker->counters.sent_bytes += (u64)(end - begin);
    }
}

/* ---- judging ---- */

static void
judge_value(struct worker *worker, const struct flight *flight, struct bytes value)
{
    struct plan *plan = worker->plan;
    struct value_stamp stamp;
    worker->counters.verified++;
    switch (value_judge(plan->values, flight->key, value, &stamp)) {
    case VALUE_BROKEN:
        wrong_add(worker, "broken value", flight->key, "%llu bytes that were not written so",
                  value.size, 0);
        return;
    case VALUE_FOREIGN:
        wrong_add(worker, "foreign value", flight->key, "got the value of key %llu", stamp.key, 0);
        return;
    case VALUE_RIGHT:
        break;
    }
    if (!is_strict(plan, flight->key) || flight->floor == VERSION_UNJUDGED) return;
    bool ours = stamp.run == plan->values->run;
    u32 version = ours ? stamp.version : 0; /* an earlier run's is older than any of ours */
    if (version < flight->floor)
        wrong_add(worker, "stale value", flight->key,
                  "got version %llu after %llu was acknowledged", version, flight->floor);
    else if (version > atomic_load(&plan->sent[flight->key]))
        wrong_add(worker, "foreign value", flight->key, "got version %llu, never written", version,
                  0);
}

static void
judge_miss(struct worker *worker, const struct flight *flight)
{
    struct plan *plan = worker->plan;
    worker->counters.verified++;
    bool floor =
        is_strict(plan, flight->key) && flight->floor > 0 && flight->floor != VERSION_UNJUDGED;
    if (floor || atomic_load_explicit(&plan->all_there, memory_order_relaxed))
        wrong_add(worker, "lost key", flight->key, "it was written and is not there", 0, 0);
}

/* Entries of a scan: of our keys, whole, in the order of their tokens, none before the first. */
static void
judge_scan(struct worker *worker, const struct flight *flight, const struct reply *reply)
{
    struct bytes entries = reply->value;
    struct native_scan_entry entry;
    u8 start[WIRE_KEY_BYTES];
    u64 token = hash_token(BYTES(start, wire_key(&worker->wire, flight->key, start)));
    if (reply->entries > flight->entries)
        wrong_add(worker, "scan too long", flight->key, "%llu entries instead of %llu",
                  reply->entries, flight->entries);
    while (native_scan_next(&entries, &entry)) {
        worker->counters.verified++;
        u64 number = 0;
        struct value_stamp stamp;
        u64 next = hash_token(entry.key);
        if (next < token)
            wrong_add(worker, "scan out of order", flight->key, "token %llx behind %llx", next,
                      token);
        token = next;
        /* Other keys may lie in the same keyspace. */
        if (!wire_key_number(&worker->wire, entry.key, &number)) continue;
        if (value_judge(worker->plan->values, number, entry.value, &stamp) != VALUE_RIGHT)
            wrong_add(worker, "broken value", number, "in a scan of %llu entries", reply->entries,
                      0);
    }
}

/* ---- the end of a request ---- */

static bool
reply_fits(enum op op, enum reply_kind kind)
{
    switch (op) {
    case OP_PING:
    case OP_SET:
    case OP_INSERT:
        return kind == REPLY_OK;
    case OP_GET:
        return kind == REPLY_VALUE || kind == REPLY_NONE;
    case OP_DELETE:
        return kind == REPLY_INTEGER || kind == REPLY_OK || kind == REPLY_NONE;
    case OP_INCR:
        return kind == REPLY_INTEGER;
    case OP_SCAN:
        return kind == REPLY_ENTRIES;
    case OP_RMW:
    case OP_COUNT:
        break;
    }
    return false;
}

/* What never got a good reply: its write may have been done, or may yet be. */
static void
flight_failed(struct connection *c, const struct flight *flight)
{
    struct worker *worker = c->worker;
    if (flight->op == OP_SET) unjudge(worker->plan, flight->key);
    if (flight->op == OP_INSERT) keys_insert_done(&worker->keys, flight->key);
    if (flight->op == OP_INSERT || worker->phase == PHASE_LOAD)
        atomic_store_explicit(&worker->plan->all_there, false, memory_order_relaxed);
}

static void
flight_record(struct worker *worker, const struct flight *flight, u64 now_ns)
{
    if (worker->phase != PHASE_RUN) return;
    u64 measure_ns = plan_measure_ns(worker->plan);
    if (flight->first_ns >= measure_ns && flight->first_ns != 0)
        latency_record(worker->latency[OP_RMW], now_ns - flight->first_ns);
    if (flight->start_ns < measure_ns) return;
    latency_record(worker->latency[flight->op], now_ns - flight->start_ns);
    worker->counters.answered++;
    worker->counters.last_ns = now_ns;
}

static void
flight_end(struct connection *c, const struct flight *flight, const struct reply *reply, u64 now_ns)
{
    struct worker *worker = c->worker;
    struct plan *plan = worker->plan;
    enum op op = (enum op)flight->op;
    if (UNLIKELY(!reply_fits(op, reply->kind))) {
        if (reply->kind == REPLY_ERROR)
            errors_add(&worker->errors, 1, reply->value, reply->text);
        else
            error_add(worker, 1, "unexpected reply", op_names[op]);
        flight_failed(c, flight);
        return;
    }
    flight_record(worker, flight, now_ns);
    bool verify = plan->settings->verify != VERIFY_NO;
    switch (op) {
    case OP_GET:
        if (reply->kind == REPLY_NONE) worker->counters.misses++;
        if (verify && reply->kind == REPLY_NONE) judge_miss(worker, flight);
        if (verify && reply->kind == REPLY_VALUE) judge_value(worker, flight, reply->value);
        break;
    case OP_SET:
        if (worker->phase == PHASE_LOAD) worker->counters.loaded++;
        if (is_strict(plan, flight->key) &&
            atomic_load_explicit(&plan->acknowledged[flight->key], memory_order_relaxed) !=
                VERSION_UNJUDGED)
            atomic_store(&plan->acknowledged[flight->key], flight->version);
        break;
    case OP_INSERT:
        keys_insert_done(&worker->keys, flight->key);
        break;
    case OP_SCAN:
        worker->counters.entries += reply->entries;
        if (verify) judge_scan(worker, flight, reply);
        break;
    case OP_PING:
    case OP_DELETE:
    case OP_INCR:
    case OP_RMW:
    case OP_COUNT:
        break;
    }
    if (flight->rmw) {
        u32 at = (c->follow_first + c->follow_count++) & worker->flight_mask;
        c->follows[at] = (struct follow){.key = flight->key, .first_ns = flight->start_ns};
    }
}

/* ---- connections ---- */

static void
finish_check(struct worker *worker)
{
    if (worker->flying > 0 || worker->phase == PHASE_IDLE || worker->finished) return;
    if (worker->phase == PHASE_LOAD) {
        bool all = true;
        for (u32 i = 0; i < worker->connection_count && all; i++)
            all = worker->connections[i].load_number >= worker->plan->settings->key_count;
        if (!all && !atomic_load(&worker->plan->stop)) return;
    } else {
        u64 due = io_clock_ns();
        bool more = is_open_loop(worker) ? pace_next(worker, &due) : may_send(worker, due);
        if (more) return;
    }
    atomic_store(&worker->finished, true);
}

static void
protocol_failed(struct connection *c, const char *why)
{
    error_add(c->worker, 1, "protocol error", why);
    connection_end(c);
}

static void
connection_up(struct connection *c)
{
    c->state = CONN_UP;
    if (is_open_loop(c->worker))
        pace_resume(c->worker);
    else
        connection_fill(c);
}

static void
hello_reply(struct connection *c, const struct reply *reply)
{
    if (reply->kind == REPLY_ERROR) {
        size_t shown = MIN(reply->text.size, sizeof(c->worker->problem) - 1);
        memcpy(c->worker->problem, reply->text.data, shown);
        c->worker->problem[shown] = '\0';
        errors_add(&c->worker->errors, 1, reply->value, reply->text);
        connection_end(c);
        return;
    }
    if (--c->hello_replies == 0) connection_up(c);
}

/* The flight that a reply belongs to; NULL: none. */
static struct flight *
flight_of(struct connection *c, const struct reply *reply)
{
    const struct worker *worker = c->worker;
    u64 serial = c->first;
    if (worker->wire.protocol == PROTOCOL_NATIVE) {
        serial = reply->id - 1;
        if (reply->id == 0 || serial >= c->next || c->next - serial > worker->flight_mask + 1ull)
            return NULL;
    }
    if (c->flying == 0) return NULL;
    struct flight *flight = &c->flights[serial & worker->flight_mask];
    return flight->busy ? flight : NULL;
}

static void
reply_take(struct connection *c, const struct reply *reply, u64 now_ns)
{
    struct flight *flight = flight_of(c, reply);
    if (flight == NULL) {
        if (reply->kind == REPLY_ERROR)
            errors_add(&c->worker->errors, 1, reply->value, reply->text);
        protocol_failed(c, "a reply to nothing that was asked");
        return;
    }
    flight->busy = false;
    c->first++;
    c->flying--;
    c->worker->flying--;
    flight_end(c, flight, reply, now_ns);
}

static size_t
connection_received(struct io_conn *io, struct bytes data)
{
    struct connection *c = io_conn_user(io);
    struct worker *worker = c->worker;
    u64 now_ns = io_clock_ns();
    size_t used = 0;
    c->progress_ns = now_ns;
    while (used < data.size && c->state != CONN_ENDING) {
        struct reply reply;
        size_t consumed, wanted;
        status st = wire_reply(&worker->wire, BYTES(data.data + used, data.size - used), &reply,
                               &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) {
            io_conn_want(io, MIN(wanted, CONN_INPUT_MAX_BYTES));
            break;
        }
        if (!ok(st)) {
            protocol_failed(c, "what was received is not the protocol");
            return data.size;
        }
        used += consumed;
        if (c->state == CONN_HELLO)
            hello_reply(c, &reply);
        else
            reply_take(c, &reply, now_ns);
    }
    worker->counters.received_bytes += used;
    if (c->state == CONN_ENDING) return data.size;
    if (c->state != CONN_UP) return used;
    if (is_open_loop(worker)) {
        if (c->follow_count > 0) follow_send(c);
        pace_resume(worker);
    } else if (c->flying == 0) {
        connection_fill(c);
    }
    if (worker->flying == 0) finish_check(worker);
    return used;
}

static status
connection_opened(struct io_conn *io, void *arg)
{
    struct connection *c = arg;
    u8 hello[WIRE_HELLO_BYTES];
    io_conn_user_set(io, c);
    c->io = io;
    c->flying = 0;
    c->next = c->first = 0;
    c->follow_first = c->follow_count = 0;
    c->lost_told = false;
    c->progress_ns = io_clock_ns();
    memset(c->flights, 0, (c->worker->flight_mask + 1ull) * sizeof(*c->flights));
    c->state = CONN_HELLO;
    size_t size = wire_hello(&c->worker->wire, c->worker->plan->settings, hello, &c->hello_replies);
    if (size > 0 && !io_conn_write(io, hello, size)) return ST_NO_MEMORY;
    if (c->hello_replies == 0) connection_up(c);
    return ST_OK;
}

/* Counts what was under way as failed, once. */
static void
connection_lose(struct connection *c, const char *name, const char *text)
{
    struct worker *worker = c->worker;
    if (c->lost_told) return;
    c->lost_told = true;
    error_add(worker, MAX(c->flying, 1u), name, text);
    for (u32 i = 0; i <= worker->flight_mask && c->flying > 0; i++) {
        struct flight *flight = &c->flights[i];
        if (!flight->busy) continue;
        flight->busy = false;
        c->flying--;
        worker->flying--;
        flight_failed(c, flight);
    }
    c->follow_count = 0;
}

static void
connection_closed(struct io_conn *io, status why)
{
    struct connection *c = io_conn_user(io);
    c->io = NULL;
    c->state = CONN_DOWN;
    if (io_stopping()) return;
    connection_lose(c, "connection lost", ok(why) ? "closed by the server" : status_text(why));
}

static void
connection_drained(struct io_conn *io)
{
}

static const struct io_conn_events EVENTS = {.opened = connection_opened,
                                             .received = connection_received,
                                             .drained = connection_drained,
                                             .closed = connection_closed};

static MAY_YIELD status
connection_open(struct connection *c, u64 wait_ns)
{
    struct plan *plan = c->worker->plan;
    struct io_conn *io;
    if (c->home != PLACE_NOWHERE) {
        const struct place *place = &plan->places->list[c->home];
        status st = io_connect(place->host, place->port, &EVENTS, c, io_now_ns() + wait_ns, &io);
        if (ok(st)) return st; /* else it is gone: the others forward what it had */
    }
    return io_connect(plan->host, plan->port, &EVENTS, c, io_now_ns() + wait_ns, &io);
}

MAY_YIELD void
worker_connect(void *arg)
{
    struct worker *worker = arg;
    for (u32 i = 0; i < worker->connection_count; i++) {
        status st = connection_open(&worker->connections[i], CONNECT_NS);
        if (!ok(st)) {
            snprintf(worker->problem, sizeof(worker->problem), "%s",
                     status_is(st, ST_CLOSED) ? "connection refused" : status_text(st));
            return;
        }
    }
    u64 deadline_ns = io_now_ns() + worker->plan->settings->timeout_ms * NS_PER_MS;
    for (u32 i = 0; i < worker->connection_count;) {
        const struct connection *c = &worker->connections[i];
        if (c->state == CONN_UP) {
            i++;
            continue;
        }
        if (c->state == CONN_DOWN && worker->problem[0] == '\0')
            snprintf(worker->problem, sizeof(worker->problem), "the server closed the connection");
        if (io_now_ns() > deadline_ns && worker->problem[0] == '\0')
            snprintf(worker->problem, sizeof(worker->problem), "no answer to the first words");
        if (worker->problem[0] != '\0' || io_stopping()) return;
        fiber_sleep_ns(NS_PER_MS);
    }
}

/* ---- phases ---- */

static void
phase_begin(struct worker *worker, enum phase phase)
{
    worker->phase = phase;
    atomic_store(&worker->finished, false);
    if (is_open_loop(worker)) {
        pace_run(worker);
        return;
    }
    for (u32 i = 0; i < worker->connection_count; i++)
        if (worker->connections[i].state == CONN_UP) connection_fill(&worker->connections[i]);
    finish_check(worker);
}

void
worker_load(void *arg)
{
    phase_begin(arg, PHASE_LOAD);
}

void
worker_run(void *arg)
{
    struct worker *worker = arg;
    u64 count = worker->plan->settings->count;
    worker->remaining = count / worker->count + (worker->index < count % worker->count ? 1 : 0);
    phase_begin(worker, PHASE_RUN);
}

void
worker_sample(void *arg)
{
    struct sample *sample = arg;
    const struct worker *worker = sample->worker;
    sample->counters = worker->counters;
    sample->errors = worker->errors.total;
    sample->wrong = worker->wrong.total;
    memset(&sample->latency, 0, sizeof(sample->latency));
    for (u32 op = 0; op < OP_RMW; op++)
        if (worker->latency[op] != NULL) latency_merge(&sample->latency, worker->latency[op]);
}

/* ---- upkeep ---- */

static void
timeouts_check(struct worker *worker, u64 now_ns)
{
    u64 timeout_ns = worker->plan->settings->timeout_ms * NS_PER_MS;
    for (u32 i = 0; i < worker->connection_count; i++) {
        struct connection *c = &worker->connections[i];
        bool waits = c->state == CONN_HELLO || (c->state == CONN_UP && c->flying > 0);
        if (!waits || now_ns < c->progress_ns + timeout_ns || c->lost_told) continue;
        connection_lose(c, "timeout", "no reply in time");
        connection_end(c);
    }
}

/* Requests that were due and could not be sent, long after the end. */
static void
backlog_check(struct worker *worker, u64 now_ns)
{
    const struct plan *plan = worker->plan;
    u64 due;
    if (!is_open_loop(worker) || plan->settings->count > 0 || worker->gave_up) return;
    u64 end_ns = plan_end_ns(plan), patience_ns = plan->settings->timeout_ms * NS_PER_MS;
    if (end_ns == PLAN_NEVER || now_ns < end_ns + patience_ns) return;
    if (!pace_next(worker, &due)) return;
    u64 unsent = (end_ns - due) * plan->settings->rate / worker->count / NS_PER_S + 1;
    worker->gave_up = true;
    error_add(worker, unsent, "not sent", "no connection had room until long after the end");
}

MAY_YIELD status
worker_main(void *arg)
{
    struct worker *worker = (struct worker *)arg + io_shard_index();
    u64 reconnect_ns = 0;
    while (!io_stopping()) {
        fiber_sleep_ns(MAINTENANCE_NS);
        if (worker->phase == PHASE_IDLE) continue;
        u64 now_ns = io_clock_ns();
        timeouts_check(worker, now_ns);
        backlog_check(worker, now_ns);
        for (u32 i = 0; i < worker->connection_count && now_ns >= reconnect_ns; i++) {
            struct connection *c = &worker->connections[i];
            if (c->state != CONN_DOWN || io_stopping()) continue;
            worker->counters.reconnects++;
            if (!ok(connection_open(c, RECONNECT_NS))) reconnect_ns = io_clock_ns() + RECONNECT_NS;
        }
        finish_check(worker);
    }
    io_timer_cancel(&worker->pace);
    return ST_OK;
}

/* ---- birth ---- */

static bool
connection_init(struct connection *c, struct worker *worker, u32 number)
{
    const struct plan *plan = worker->plan;
    *c = (struct connection){.worker = worker, .number = number, .load_number = number};
    c->home = plan->settings->order == KEYS_SEQUENTIAL
                  ? PLACE_NOWHERE
                  : places_home(plan->places, number, (u32)plan->settings->connections);
    u64 slots = worker->flight_mask + 1ull;
    c->flights = calloc(slots, sizeof(*c->flights));
    if (c->flights == NULL) return false;
    c->follows =
        settings_has(worker->plan->settings, OP_RMW) ? calloc(slots, sizeof(*c->follows)) : NULL;
    return c->follows != NULL || !settings_has(worker->plan->settings, OP_RMW);
}

static u64
power_of_two_from(u64 least)
{
    u64 value = 1;
    while (value < least)
        value *= 2;
    return value;
}

bool
worker_init(struct worker *worker, struct plan *plan, u32 index, u32 count)
{
    const struct settings *settings = plan->settings;
    *worker = (struct worker){.plan = plan, .index = index, .count = count};
    prng_init(&worker->prng, settings->seed * LIMIT_SHARDS + index);
    worker->flight_mask = (u32)power_of_two_from(MAX(settings->depth, LOAD_DEPTH)) - 1;
    io_timer_init(&worker->pace, pace_fire);
    u64 all = settings->connections;
    worker->connection_count = (u32)(all / count + (index < all % count ? 1 : 0));
    worker->connections = calloc(worker->connection_count, sizeof(*worker->connections));
    if (worker->connections == NULL) return false;
    for (u32 i = 0; i < worker->connection_count; i++)
        if (!connection_init(&worker->connections[i], worker, index + i * count)) return false;

    u64 window_bits = power_of_two_from((u64)worker->connection_count * settings->depth + 64);
    u64 *window = calloc(window_bits / 64, sizeof(*window));
    u8 *scratch = malloc(settings->value_max + 1);
    if (window == NULL || scratch == NULL) {
        free(window);
        free(scratch);
        return false;
    }
    keys_init(&worker->keys, settings->order, settings->key_count, settings->zipf_theta, index,
              count, window, window_bits);
    wire_init(&worker->wire, settings, plan->values, scratch);
    for (u32 op = 0; op < OP_COUNT; op++) {
        bool loads = op == OP_SET && settings->load;
        bool follows = (op == OP_GET || op == OP_SET) && settings_has(settings, OP_RMW);
        if (!loads && !follows && !settings_has(settings, (enum op)op)) continue;
        if (op != OP_RMW)
            worker->request_max =
                MAX(worker->request_max, (u32)wire_request_max(&worker->wire, (enum op)op));
        worker->latency[op] = calloc(1, sizeof(struct latency));
        if (worker->latency[op] == NULL) return false;
    }
    return true;
}

void
worker_deinit(struct worker *worker)
{
    for (u32 i = 0; i < worker->connection_count && worker->connections != NULL; i++) {
        free(worker->connections[i].flights);
        free(worker->connections[i].follows);
    }
    free(worker->connections);
    free(worker->keys.window);
    free(worker->wire.scratch);
    for (u32 op = 0; op < OP_COUNT; op++)
        free(worker->latency[op]);
}
