/* SPDX-License-Identifier: MIT
 *
 * request_parts.c -- a command whose keys several shards own: split by owner, put together again.
 *
 *   at once     one part for each owner; when the last has come back their replies become one.
 *   stretches   MGET of many keys, or of values for which there was no memory at once: a worker at
 *               home asks for one stretch of the keys after the other and sends the reply as it
 *               grows. So it holds little, whatever the values are, and a client that reads slowly
 *               holds nothing else up. The stretches adapt to the size of the values.
 *
 *               Other commands of very many keys go so because of the time that they take.
 *
 * A part borrows the arguments' bytes from the whole, which stays until its parts are done. Keys of
 * one owner keep their order.
 *
 * Once the reply of stretches has begun, a failure can only be told by closing the connection.
 */
#include "server/request.h"

#include "base/fault.h"

#include "server/session.h"

#define STRETCH_KEYS_FIRST 4u
#define STRETCH_KEYS_MAX   256u
/* Where the reply is short; a turn of some hundred microseconds. */
#define STRETCH_KEYS_OTHERS 512u
/* About so much of the reply at a time. */
#define STRETCH_BYTES (32u << 10)
/* Less is not worth being sent for the memory that it gives back. */
#define STRETCH_BYTES_MIN (4u << 10)
/* Each holds a stretch twice: as parts, and put together. */
#define STRETCH_UNITS    4u
#define STRETCH_RETRY_NS (5 * NS_PER_MS)

static_assert(STRETCH_UNITS <= WORK_UNITS_MAX, "as any work");

/* ---- splitting ---- */

static u32
owner_of(const struct shard *shard, struct bytes key)
{
    return shard_of_token(shard->server, hash_token(key));
}

void
request_parts_free(struct request **parts, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        if (parts[i] != NULL) request_free(parts[i]);
        parts[i] = NULL;
    }
}

/* Makes a part for each owner of the keys from argument `at` up to `last`. parts: NULL for each
 * shard before; after a failure, too. */
MUST_CHECK static bool
parts_make(struct request *request, u32 at, u32 last, u32 step, struct request **parts)
{
    struct shard *shard = shard_self();
    u32 shard_count = shard->server->shard_count;
    u32 counts[LIMIT_SHARDS] = {0};
    for (u32 i = at; i <= last; i += step)
        counts[owner_of(shard, request->args[i])]++;
    for (u32 owner = 0; owner < shard_count; owner++) {
        if (counts[owner] == 0) continue;
        parts[owner] = request_new_part(request, owner, 1 + counts[owner] * step, counts[owner]);
        if (parts[owner] == NULL) {
            request_parts_free(parts, shard_count);
            return false;
        }
        parts[owner]->args[0] = request->args[0];
    }
    u32 used[LIMIT_SHARDS] = {0};
    for (u32 i = at; i <= last; i += step) {
        u32 owner = owner_of(shard, request->args[i]);
        struct bytes *to = &parts[owner]->args[1 + used[owner]++ * step];
        memcpy(to, &request->args[i], step * sizeof(*to));
    }
    return true;
}

/* The elements of the parts' arrays, in the order of the keys. */
MUST_CHECK static bool
append_elements(struct buf *out, const struct request *request, u32 at, u32 last, u32 step,
                struct request **parts)
{
    struct shard *shard = shard_self();
    size_t read[LIMIT_SHARDS] = {0};
    for (u32 i = at; i <= last; i += step) {
        u32 owner = owner_of(shard, request->args[i]);
        struct bytes reply = request_reply(parts[owner]);
        struct resp_reply element;
        size_t consumed;
        if (read[owner] == 0) { /* skips the array's head */
            status st = resp_read(reply, &element, &consumed);
            CHECK(ok(st) && element.kind == RESP_REPLY_ARRAY);
            read[owner] = consumed;
        }
        struct bytes rest = BYTES(reply.data + read[owner], reply.size - read[owner]);
        status st = resp_read(rest, &element, &consumed);
        CHECK(ok(st));
        if (!buf_append(out, rest.data, consumed)) return false;
        read[owner] += consumed;
    }
    return true;
}

/* ---- at once ---- */

bool
request_start_parts(struct shard *shard, struct request *request)
{
    u32 count = shard->server->shard_count;
    request->parts = mem_alloc_zero(&shard->budget, count * sizeof(*request->parts));
    if (request->parts == NULL) return false;
    request->part_count = count;
    u32 first, last, step;
    command_key_range(request->command, request->arg_count, &first, &last, &step);
    if (!parts_make(request, first, last, step, request->parts)) {
        mem_free(&shard->budget, request->parts, count * sizeof(*request->parts));
        request->parts = NULL;
        return false;
    }
    for (u32 i = 0; i < count; i++) {
        if (request->parts[i] == NULL) continue;
        request->parts[i]->parent = request;
        request->parts_left++;
    }
    for (u32 i = 0; i < count; i++)
        if (request->parts[i] != NULL) request_start(request->parts[i]);
    return true;
}

/* Less of it at a time may do. */
static bool
too_much(status why)
{
    return status_is(why, ST_NO_MEMORY) || status_is(why, ST_TOO_LARGE);
}

static struct request *
failed_part(const struct request *request)
{
    struct request *failed = NULL;
    for (u32 i = 0; i < request->part_count; i++) {
        struct request *part = request->parts[i];
        if (part == NULL) continue;
        struct bytes reply = request_reply(part);
        if (part->unknown || reply.size == 0 || reply.data[0] == '-') failed = part;
    }
    return failed;
}

/* Of parts that are all good; false: no memory for it. */
static bool
gather(struct request *request, struct resp_writer *w)
{
    u32 first, last, step;
    command_key_range(request->command, request->arg_count, &first, &last, &step);
    if (request->command->place == PLACE_SPLIT_ARRAY) {
        resp_array(w, (last - first) / step + 1);
        return !w->failed && append_elements(w->out, request, first, last, step, request->parts);
    }
    i64 sum = 0;
    for (u32 i = 0; i < request->part_count; i++) {
        struct resp_reply head;
        size_t consumed;
        if (request->parts[i] == NULL) continue;
        status st = resp_read(request_reply(request->parts[i]), &head, &consumed);
        CHECK(ok(st));
        if (head.kind == RESP_REPLY_INTEGER) sum += head.integer;
    }
    if (request->command->place == PLACE_SPLIT_SUM)
        resp_integer(w, sum);
    else
        resp_ok(w);
    return !w->failed;
}

bool
request_parts_done(struct request *request)
{
    struct shard *shard = shard_self();
    buf_init(&request->reply, request_budget(request, shard));
    struct resp_writer w = {.out = &request->reply, .version = request->resp};
    struct request *failed = failed_part(request);
    status why = failed == NULL ? ST_OK : failed->failure;
    if (failed != NULL && failed->unknown) {
        request->unknown = true;
    } else if (failed == NULL && (!gather(request, &w) || !request_reply_settle(request, shard))) {
        why = ST_NO_MEMORY;
    } else if (failed != NULL && !too_much(why)) {
        struct bytes reply = request_reply(failed);
        if (!buf_append(&request->reply, reply.data, reply.size)) why = ST_NO_MEMORY;
    }
    request_parts_free(request->parts, request->part_count);
    if (!too_much(why)) return true;

    buf_clear(&request->reply, 0);
    w.failed = false;
    if (request->command->place == PLACE_SPLIT_ARRAY) {
        MARK("server.parts.in_stretches");
        request_start_stretches(request);
        return false;
    }
    exec_error_reply(&w, why);
    if (w.failed) request_refuse_without_memory(request);
    return true;
}

/* ---- in stretches ---- */

struct stretches {
    struct request *request;
    u32 step;
    bool begun;      /* something was sent: a failure can only be told by closing */
    bool gone;       /* the client */
    u64 deadline_ns; /* of the wait for memory; 0: it does not wait */
    bool alone;      /* has the shard's memory turn: only until it has its memory (K3 of work.h) */
};

static void
alone_end(struct exec *x, struct stretches *stretches)
{
    if (stretches->alone) memory_turn_give(x->shard, x->work);
    stretches->alone = false;
}

/* Not one key fits beside what others have in hand; they end. false: in vain. */
MAY_YIELD static bool
wait_for_memory(struct exec *x, struct stretches *stretches)
{
    if (stretches->deadline_ns == 0) stretches->deadline_ns = io_now_ns() + MEMORY_PATIENCE_NS;
    if (stretches->alone) {
        fiber_sleep_ns(STRETCH_RETRY_NS);
        return io_now_ns() < stretches->deadline_ns;
    }
    struct buf *out = x->reply->out; /* little is in it: its room is given back meanwhile */
    struct buf little;
    buf_init(&little, out->budget);
    if (buf_append(&little, out->data, out->size)) {
        buf_deinit(out);
        *out = little;
    }
    stretches->alone = memory_turn_take(x->shard, x->work, stretches->request->wanted_until_ns,
                                        stretches->deadline_ns);
    return stretches->alone;
}

/* One value that is too long to be put together with others. */
MAY_YIELD static void
send_long(struct exec *x, struct stretches *stretches, const struct request *part)
{
    struct bytes reply = request_reply(part);
    struct resp_reply head;
    size_t consumed;
    status st = resp_read(reply, &head, &consumed);
    CHECK(ok(st) && head.kind == RESP_REPLY_ARRAY);
    alone_end(x, stretches);
    stretches->begun = true;
    stretches->gone = !session_stream(x) ||
                      !session_stream_bytes(x, BYTES(reply.data + consumed, reply.size - consumed));
}

/* Makes parts for some keys from argument `at` on, and waits for them. */
MAY_YIELD static status
ask(struct stretches *stretches, u32 at, u32 count, struct request **parts)
{
    u32 shard_count = shard_self()->server->shard_count;
    u32 last = at + (count - 1) * stretches->step;
    if (!parts_make(stretches->request, at, last, stretches->step, parts)) return ST_NO_MEMORY;
    struct fiber_queue queue;
    fiber_queue_init(&queue);
    for (u32 i = 0; i < shard_count; i++) {
        if (parts[i] == NULL) continue;
        parts[i]->waiter = &queue;
        request_start(parts[i]);
    }
    status st = ST_OK;
    for (u32 i = 0; i < shard_count; i++) {
        if (parts[i] == NULL) continue;
        request_wait(parts[i]);
        if (parts[i]->unknown) st = ST_UNKNOWN_OUTCOME;
        if (ok(st)) st = parts[i]->failure;
    }
    return st;
}

/* Appends the elements for some keys to the reply, or sends them; or leaves everything as it was.
 */
MAY_YIELD static status
read_stretch(struct exec *x, struct stretches *stretches, u32 at, u32 count)
{
    struct request *parts[LIMIT_SHARDS] = {NULL};
    u32 shard_count = x->shard->server->shard_count;
    u32 last = at + (count - 1) * stretches->step;
    status st = ask(stretches, at, count, parts);
    size_t size = x->reply->out->size;
    const struct request *only = NULL;
    for (u32 i = 0; i < shard_count && count == 1; i++)
        if (parts[i] != NULL) only = parts[i];
    if (ok(st) && only != NULL && request_reply(only).size > STRETCH_BYTES) {
        send_long(x, stretches, only);
    } else if (ok(st) && !append_elements(x->reply->out, stretches->request, at, last,
                                          stretches->step, parts)) {
        x->reply->out->size = size;
        st = ST_NO_MEMORY;
    }
    request_parts_free(parts, shard_count);
    work_return(&x->shard->workers, x->work);
    return st;
}

void
request_start_stretches(struct request *request)
{
    request->in_stretches = true;
    if (request->work.class == WORK_HEAVY) request->work.units = STRETCH_UNITS;
    request_start(request);
}

/* What the next stretch should be, after one of so many keys and bytes. */
static u32
stretch_keys(u32 keys, size_t bytes)
{
    u64 fit = STRETCH_BYTES / MAX(bytes / keys, 1u);
    return (u32)CLAMP(fit, 1u, MIN(keys * 2, STRETCH_KEYS_MAX));
}

MAY_YIELD static void
run_reads(struct exec *x, struct request *request)
{
    struct session *s = request->session;
    u32 at, last;
    struct stretches stretches = {.request = request};
    command_key_range(request->command, request->arg_count, &at, &last, &stretches.step);
    resp_array(x->reply, (last - at) / stretches.step + 1);
    u32 keys = STRETCH_KEYS_FIRST;
    while (at <= last && !stretches.gone && s->conn != NULL && !s->closing) {
        u32 count = MIN(keys, (last - at) / stretches.step + 1);
        size_t size = x->reply->out->size;
        status st = read_stretch(x, &stretches, at, count);
        bool memory = status_is(st, ST_NO_MEMORY) || status_is(st, ST_OVERLOADED);
        if (!memory) {
            alone_end(x, &stretches);
            stretches.deadline_ns = 0;
        }
        if (ok(st)) {
            at += count * stretches.step;
            size_t grown = x->reply->out->size - MIN(size, x->reply->out->size);
            keys = grown == 0 ? 1 : stretch_keys(count, grown); /* 0: it was a long one */
        } else if (count > 1 && (memory || status_is(st, ST_TOO_LARGE))) {
            MARK("server.parts.shorter_stretch");
            keys = 1; /* it was wasted: not again */
            continue;
        } else if (memory && size < STRETCH_BYTES_MIN) {
            if (wait_for_memory(x, &stretches)) continue;
            goto failed;
        } else if (!memory) {
        failed:
            if (stretches.begun)
                session_abort(s);
            else
                exec_fail(x, st);
            break;
        }
        if (ok(st) && x->reply->out->size < STRETCH_BYTES) continue;
        alone_end(x, &stretches);
        stretches.begun = true; /* with what it gives back it may fit */
        stretches.gone = !session_stream(x);
    }
    alone_end(x, &stretches);
}

/* MSET, DEL, EXISTS and the like of very many keys: one stretch after the other, so that none takes
 * a turn of many milliseconds. Each key is on its own anyway. Goes on when the client is gone: what
 * it asked for is done. */
MAY_YIELD static void
run_others(struct exec *x, struct request *request)
{
    struct request *parts[LIMIT_SHARDS] = {NULL};
    u32 shard_count = x->shard->server->shard_count;
    u32 at, last;
    struct stretches stretches = {.request = request};
    command_key_range(request->command, request->arg_count, &at, &last, &stretches.step);
    i64 sum = 0;
    while (at <= last) {
        u32 count = MIN(STRETCH_KEYS_OTHERS, (last - at) / stretches.step + 1);
        status st = ask(&stretches, at, count, parts);
        for (u32 i = 0; i < shard_count && ok(st); i++) {
            if (parts[i] == NULL) continue;
            struct bytes reply = request_reply(parts[i]);
            struct resp_reply head = {.kind = RESP_REPLY_ERROR};
            size_t consumed;
            if (!ok(resp_read(reply, &head, &consumed))) st = ST_UNKNOWN_OUTCOME;
            if (head.kind == RESP_REPLY_INTEGER) sum += head.integer;
            if (head.kind != RESP_REPLY_ERROR) continue;
            /* The command's own, not the store's: a value that is too large. */
            if (!buf_append(x->reply->out, reply.data, reply.size)) x->reply->failed = true;
            request_parts_free(parts, shard_count);
            return;
        }
        request_parts_free(parts, shard_count);
        if (!ok(st)) {
            exec_fail(x, st);
            return;
        }
        at += count * stretches.step;
    }
    if (request->command->place == PLACE_SPLIT_SUM)
        resp_integer(x->reply, sum);
    else
        resp_ok(x->reply);
}

MAY_YIELD void
request_run_stretches(struct exec *x, struct request *request)
{
    if (request->command->place == PLACE_SPLIT_ARRAY)
        run_reads(x, request);
    else
        run_others(x, request);
}
