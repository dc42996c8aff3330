/* SPDX-License-Identifier: MIT
 *
 * lib_request.c -- the life of a request, and what may be sent again.
 *
 * What happens when an attempt ends without an answer (its connection broke after the frame's
 * first byte was written):
 *
 *   a read                               is sent again
 *   a write without a condition          is sent again: doing it twice leaves the same value
 *   a write with a condition             is sent again to the same run of the server, as long as
 *                                        that remembers its id; else its outcome is unknown
 *
 * From the first lost attempt on a write is *ambiguous*: only its own answer can end it otherwise
 * than as DISTKV_UNKNOWN_OUTCOME. A refusal that says "nothing was done" speaks of the last
 * attempt alone.
 */
#include "client/lib_internal.h"

#include <stdarg.h>
#include <stdio.h>

#define TABLE_SIZE_MIN 64u
/* How many requests in the queue may find no connection in one turn, and how long others that would
 * find none are out of it. */
#define QUEUE_LOOKS 64u
#define ASIDE_NS    (20 * NS_PER_MS)
/* How much of the time that a server remembers an id we rely on: its clock and the way there. */
#define IDEMPOTENCY_NUMERATOR   3u
#define IDEMPOTENCY_DENOMINATOR 4u

/* ---- the table of requests by id ---- */

struct request *
request_find(struct distkv *kv, u64 id)
{
    if (kv->table_size == 0) return NULL;
    struct request *request = kv->table[id & (kv->table_size - 1)];
    while (request != NULL && request->id != id)
        request = request->hash_next;
    return request;
}

static bool
table_grow(struct distkv *kv)
{
    u32 size = MAX(kv->table_size * 2, TABLE_SIZE_MIN);
    struct request **table = mem_alloc_zero(&kv->budget, size * sizeof(*table));
    if (table == NULL) return kv->table_size > 0; /* chains grow longer, that is all */
    for (u32 i = 0; i < kv->table_size; i++) {
        for (struct request *request = kv->table[i], *next; request != NULL; request = next) {
            next = request->hash_next;
            request->hash_next = table[request->id & (size - 1)];
            table[request->id & (size - 1)] = request;
        }
    }
    if (kv->table != NULL) mem_free(&kv->budget, kv->table, kv->table_size * sizeof(*table));
    kv->table = table;
    kv->table_size = size;
    return true;
}

static bool
table_add(struct distkv *kv, struct request *request)
{
    if (kv->table_used >= kv->table_size && !table_grow(kv)) return false;
    struct request **slot = &kv->table[request->id & (kv->table_size - 1)];
    request->hash_next = *slot;
    *slot = request;
    kv->table_used++;
    return true;
}

static void
table_remove(struct distkv *kv, struct request *request)
{
    struct request **slot = &kv->table[request->id & (kv->table_size - 1)];
    while (*slot != request)
        slot = &(*slot)->hash_next;
    *slot = request->hash_next;
    kv->table_used--;
}

/* ---- beginning and end ---- */

/* Requests of keys: the others do not wait for replicas by a level. */
static bool
takes_level(u8 opcode)
{
    return native_opcode_writes(opcode) || opcode == NATIVE_GET || opcode == NATIVE_TTL ||
           opcode == NATIVE_GET_SIBLINGS;
}

/* By which a server knows it again. */
static bool
has_id(const struct request *request)
{
    return native_opcode_writes(request->opcode);
}

/* Writes, and changes of the cluster, which have no id. */
static bool
changes_something(const struct request *request)
{
    return has_id(request) || !request->repeatable;
}

static struct request *
request_try(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable)
{
    struct request *request = mem_alloc_zero(&kv->budget, sizeof(*request));
    if (request == NULL) return NULL;
    list_init(&request->link);
    request->timer.request = request;
    request->state = REQUEST_WAITING;
    request->opcode = native->header.opcode;
    request->repeatable = repeatable;
    request->slot = slot;
    request->pinned_run_id = kv->pin_run_id;
    request->id = kv->id_next++;
    buf_init(&request->frame, &kv->budget);
    native->header.request_id = request->id;
    native->header.keyspace = (u16)kv->options.keyspace;
    if (takes_level(request->opcode))
        native->header.flags |= (u16)(kv->options.consistency << NATIVE_LEVEL_SHIFT);
    if (has_id(request)) {
        native->id.word[0] = prng_u64(&kv->prng);
        native->id.word[1] = prng_u64(&kv->prng) | 1; /* never all zero, which means none */
    }
    if (native_request_encode(&request->frame, native) && table_add(kv, request)) return request;
    buf_deinit(&request->frame);
    mem_free(&kv->budget, request, sizeof(*request));
    return NULL;
}

struct request *
request_new(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable)
{
    struct request *request = request_try(kv, native, slot, repeatable);
    if (request == NULL && connections_give_back(kv))
        request = request_try(kv, native, slot, repeatable);
    kv->pin_run_id = 0;
    return request;
}

void
request_free(struct distkv *kv, struct request *request)
{
    lib_timer_stop(kv, &request->timer);
    list_del(&request->link);
    table_remove(kv, request);
    buf_deinit(&request->frame);
    mem_free(&kv->budget, request, sizeof(*request));
}

u64
request_deadline(const struct distkv *kv)
{
    return lib_now_ns() + (u64)kv->options.timeout_ms * NS_PER_MS;
}

void
request_start(struct distkv *kv, struct request *request, u64 deadline_ns, request_done done,
              void *arg)
{
    request->done = done;
    request->arg = arg;
    request->deadline_ns = deadline_ns;
    lib_timer_set(kv, &request->timer, request->deadline_ns);
    list_push_back(&kv->waiting, &request->link);
    kv->pending++;
}

/* Takes it off its connection, if it is on one, and off its list. */
static void
request_detach(struct request *request)
{
    list_del(&request->link);
    if (request->connection != NULL) request->connection->in_flight--;
    request->connection = NULL;
}

/* Tells the outcome and frees. */
static void
request_tell(struct distkv *kv, struct request *request, int code, const char *error,
             const struct native_reply *reply)
{
    if (!request->own) {
        kv->pending--;
        kv->callbacks++;
    }
    request->done(request, code, error, reply);
    request_free(kv, request);
}

void
request_end(struct distkv *kv, struct request *request, int code, const char *format, ...)
{
    CHECK(request->state != REQUEST_COMPLETED);
    request_detach(request);
    lib_timer_stop(kv, &request->timer);
    va_list args;
    va_start(args, format);
    vsnprintf(request->error, sizeof(request->error), format, args);
    va_end(args);
    request->code = code;
    request->state = REQUEST_COMPLETED;
    list_push_back(&kv->completed, &request->link);
}

int
requests_run_completed(struct distkv *kv)
{
    int count = 0;
    for (struct list *link; (link = list_pop_front(&kv->completed)) != NULL; count++) {
        struct request *request = list_entry(link, struct request, link);
        request_tell(kv, request, request->code, request->error, NULL);
    }
    return count;
}

/* ---- sending ---- */

void
request_assign(struct request *request, struct connection *connection)
{
    list_del(&request->link);
    list_push_back(&connection->unsent, &request->link);
    request->state = REQUEST_UNSENT;
    request->connection = connection;
    connection->in_flight++;
    route_watch(connection);
}

/* Whether an ambiguous write may go to this connection's server. */
static bool
repeat_allowed(const struct request *request, const struct connection *connection, u64 now)
{
    if (!request->ambiguous || request->repeatable) return true;
    u64 window_ns = (u64)connection->idempotency_ms * NS_PER_MS * IDEMPOTENCY_NUMERATOR /
                    IDEMPOTENCY_DENOMINATOR;
    return connection->run_id == request->first_run_id && now - request->first_sent_ns < window_ns;
}

static void
request_send(struct distkv *kv, struct request *request, struct connection *connection, u64 now)
{
    u64 left_ms = (request->deadline_ns - now) / NS_PER_MS;
    if (request->attempts == 0 && !request->own) retry_earn(&kv->retries);
    request->attempts++;
    if (!request->ambiguous) { /* earlier attempts were refused: nothing was done */
        request->first_sent_ns = now;
        request->first_run_id = connection->run_id;
        request->first_server = connection->server;
        request->first_serial = connection->server->serial;
    }
    request->last_server = connection->server;
    request->last_serial = connection->server->serial;
    request->last_run_id = connection->run_id;
    /* Only what may have been done has an age. */
    u64 age_ms = request->ambiguous ? (now - request->first_sent_ns) / NS_PER_MS + 1 : 0;
    native_frame_patch(request->frame.data, kv->epoch, (u32)CLAMP(left_ms, 1, UINT32_MAX),
                       (u32)MIN(age_ms, UINT32_MAX));
    request_assign(request, connection);
}

/* Out of the queue for a moment. */
static void
request_step_aside(struct distkv *kv, struct request *request)
{
    u64 until = lib_now_ns() + ASIDE_NS;
    if (until >= request->deadline_ns) return;
    list_del(&request->link);
    request->state = REQUEST_DELAYED;
    lib_timer_set(kv, &request->timer, until);
}

void
requests_dispatch(struct distkv *kv)
{
    u64 now = 0;
    u32 refused = 0, bound = 0;
    if (kv->leaving) connections_leave(kv);
    list_for_each_safe (link, &kv->waiting) {
        struct request *request = list_entry(link, struct request, link);
        struct connection *connection = route_choose(kv, request);
        if (connection == NULL) {
            /* Its connection is full, or none is there. A few others may have more luck; looking
             * at all of a long queue each turn would be quadratic. Those that wait for one server
             * to come back are no reason to pass by the others: they step aside. */
            if (request->ambiguous && ++bound > QUEUE_LOOKS)
                request_step_aside(kv, request);
            else if (!request->ambiguous && ++refused > QUEUE_LOOKS)
                return;
            continue;
        }
        if (now == 0) now = lib_now_ns();
        if (now >= request->deadline_ns) continue; /* its timer is about to tell */
        if (!repeat_allowed(request, connection, now)) {
            request_end(kv, request, DISTKV_UNKNOWN_OUTCOME,
                        "the reply was lost and the server started anew since: whether the "
                        "write took effect is not known");
            continue;
        }
        request_send(kv, request, connection, now);
    }
}

/* ---- what can happen to a request ---- */

void
request_on_lost(struct distkv *kv, struct request *request, bool begun, const char *why)
{
    u32 idempotency_ms = request->connection->idempotency_ms;
    request->connection = NULL; /* the connection has emptied its lists and its count */
    if (request->own) {
        route_on_lost(kv, request);
        request_free(kv, request);
        return;
    }
    if (begun && changes_something(request)) {
        bool known_again = has_id(request) && idempotency_ms != 0;
        request->ambiguous = true;
        if (kv->options.no_write_retry || (!request->repeatable && !known_again)) {
            request_end(kv, request, DISTKV_UNKNOWN_OUTCOME, "%s", why);
            return;
        }
    }
    request->state = REQUEST_WAITING;
    list_push_back(&kv->waiting, &request->link);
}

/* The code that an end without an own answer has. */
static int
unanswered(const struct request *request, int code)
{
    return request->ambiguous ? DISTKV_UNKNOWN_OUTCOME : code;
}

void
request_on_no_memory(struct distkv *kv, struct request *request)
{
    if (changes_something(request)) request->ambiguous = true;
    request_end(kv, request, unanswered(request, DISTKV_NO_MEMORY),
                "the reply is larger than the memory limit allows");
}

void
request_on_timer(struct distkv *kv, struct request *request)
{
    u64 now = lib_now_ns();
    if (now < request->deadline_ns) {
        CHECK(request->state == REQUEST_DELAYED);
        request->state = REQUEST_WAITING;
        list_push_back(&kv->waiting, &request->link);
        lib_timer_set(kv, &request->timer, request->deadline_ns);
        return;
    }
    struct connection *connection = request->connection;
    if (request->state == REQUEST_UNSENT && connection->unsent_offset > 0 &&
        list_first(&connection->unsent) == &request->link) {
        /* Half a frame is out, and for all this time the peer did not take the rest. */
        connection_break(connection, "the server does not read");
        if (request->state != REQUEST_WAITING) return;
        connection = NULL;
    }
    bool silent = request->state == REQUEST_SENT && connection->received_ns < request->sent_ns;
    if (request->state == REQUEST_SENT && changes_something(request)) request->ambiguous = true;
    if (request->attempts == 0 && kv->connect_error[0] != '\0' && route_choose(kv, request) == NULL)
        request_end(kv, request, DISTKV_UNREACHABLE, "%s", kv->connect_error);
    else
        request_end(
            kv, request, unanswered(request, DISTKV_TIMED_OUT), "%s",
            request->ambiguous
                ? "no answer within the deadline: whether the write took effect is not known"
                : "no answer within the deadline");
    if (silent && connection->state == CONNECTION_READY)
        connection_break(connection, "no answer within a request's deadline");
}

/* Pauses a refused request; false when its deadline comes first. */
static bool
request_delay(struct distkv *kv, struct request *request, u64 hint_ms)
{
    u32 doublings = MIN(request->attempts, 8);
    u64 pause_ms = CLAMP((u64)LIB_RETRY_MIN_MS << doublings, LIB_RETRY_MIN_MS, LIB_RETRY_MAX_MS);
    if (hint_ms > 0 && hint_ms < 60000) pause_ms = MAX(pause_ms / 2, hint_ms);
    u64 pause_us = pause_ms * 1000 / 2 + prng_below(&kv->prng, pause_ms * 1000);
    u64 until = lib_now_ns() + pause_us * NS_PER_US;
    if (until >= request->deadline_ns) return false;
    request_detach(request);
    request->state = REQUEST_DELAYED;
    lib_timer_set(kv, &request->timer, until);
    return true;
}

/* What is overloaded, or has lost too much to serve, does not get a multiple of the load. Who
 * stops, starts or is behind the topology sends to others, or to itself in a moment; and what was
 * lost with its connection goes once for each connection, and between those that answer nothing
 * there are pauses. */
static bool
repeat_affordable(struct distkv *kv, u16 native_status)
{
    bool counts = native_status == NATIVE_ST_OVERLOADED || native_status == NATIVE_ST_UNAVAILABLE;
    return !counts || retry_take(&kv->retries);
}

void
request_on_reply(struct distkv *kv, struct request *request, const struct native_reply *reply)
{
    u16 native_status = reply->header.status;
    int code = lib_code_of(native_status);
    char error[160];
    if (native_status == NATIVE_ST_OK)
        error[0] = '\0';
    else if (reply->error.text.size == 0)
        snprintf(error, sizeof(error), "%s", distkv_code_text(code));
    else
        snprintf(error, sizeof(error), "%.*s", (int)MIN(reply->error.text.size, sizeof(error) - 1),
                 (const char *)reply->error.text.data);
    if (native_status == NATIVE_ST_CLOSING) connection_leave(request->connection);
    if (!request->own && native_status_retryable(native_status) &&
        repeat_affordable(kv, native_status) && request_delay(kv, request, reply->error.detail))
        return;
    if (code != DISTKV_OK && code != DISTKV_CONFLICT && code != DISTKV_UNKNOWN_OUTCOME &&
        request->ambiguous)
        code = DISTKV_UNKNOWN_OUTCOME;
    request_detach(request);
    request_tell(kv, request, code, error, reply);
}

/* Of what is unsent the first one may have gone out in part, and no other. */
static void
half_sent_note(struct distkv *kv)
{
    for (u32 s = 0; s < kv->server_count; s++) {
        for (u32 c = 0; c < kv->servers[s].connection_count; c++) {
            const struct connection *connection = &kv->servers[s].connections[c];
            if (connection->unsent_offset == 0 || list_empty(&connection->unsent)) continue;
            struct request *request =
                list_entry(list_first(&connection->unsent), struct request, link);
            if (changes_something(request)) request->ambiguous = true;
        }
    }
}

void
requests_cancel_all(struct distkv *kv)
{
    kv->in_process = true;
    half_sent_note(kv);
    for (u32 i = 0; i < kv->table_size; i++) {
        for (struct request *request = kv->table[i]; request != NULL;
             request = request->hash_next) {
            if (request->own || request->state == REQUEST_COMPLETED) continue;
            if (request->state == REQUEST_SENT && changes_something(request))
                request->ambiguous = true;
            request_end(kv, request, unanswered(request, DISTKV_CANCELED), "the handle was closed");
        }
    }
    kv->closing = true;
    requests_run_completed(kv);
    for (u32 i = 0; i < kv->table_size; i++)
        while (kv->table[i] != NULL) /* our own */
            request_free(kv, kv->table[i]);
    kv->in_process = false;
}
