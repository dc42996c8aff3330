/* SPDX-License-Identifier: MIT
 *
 * cluster_client.c -- a client of a cluster: one connection to one node at a time, one request at a
 * time, in RESP or in native frames; what the answer says was done.
 *
 *   RESP     +OK, $..., :1      done
 *            -UNKNOWN           nobody knows
 *            any other error    nothing was done, for a request of one key
 *   native   OK, NOT_FOUND      done
 *            UNKNOWN_OUTCOME    nobody knows
 *            any other status   nothing was done
 *
 * A connection that ends before the answer: nobody knows. A node without place for a client, or for
 * what it sends, says so and closes (place_is_refused): likewise.
 */
#include "cluster.h"

#include <stdio.h>
#include <stdlib.h>

#include "proto/native.h"
#include "proto/resp.h"
#include "values.h"

#define CONNECT_NS (2 * NS_PER_S)
/* After this much longer than the cluster's own limit a client gives up. */
#define PATIENCE_NS (20 * NS_PER_S)

/* ---- connections ---- */

static status
opened(struct io_conn *conn, void *arg)
{
    io_conn_user_set(conn, arg);
    return ST_OK;
}

static size_t
received(struct io_conn *conn, struct bytes data)
{
    struct cluster_client *client = io_conn_user(conn);
    bool fits = buf_append(&client->in, data.data, data.size);
    CHECK(fits);
    fiber_queue_wake_all(&client->queue);
    return data.size;
}

static void
drained(struct io_conn *conn)
{
    (void)conn;
}

static void
closed(struct io_conn *conn, status why)
{
    struct cluster_client *client = io_conn_user(conn);
    (void)why;
    client->conn = NULL;
    fiber_queue_wake_all(&client->queue);
}

static const struct io_conn_events events = {
    .opened = opened,
    .received = received,
    .drained = drained,
    .closed = closed,
};

void
cluster_client_init(struct cluster_client *client, u32 id, bool native)
{
    *client = (struct cluster_client){.id = id, .native = native};
    prng_init(&client->prng, run->options->seed * 7919 + 100 + id);
    fiber_queue_init(&client->queue);
    buf_init(&client->in, io_budget());
}

MAY_YIELD bool
cluster_connect(struct cluster_client *client, u32 node)
{
    client->node = node;
    client->level = REPLICATE_DEFAULT;
    client->selected = 0;
    client->in.size = 0;
    client->connected_ns = cluster_now_ns();
    run->stats.connections++;
    status st = io_connect(run->cluster->nodes[node].host, CLUSTER_PORT, &events, client,
                           io_now_ns() + CONNECT_NS, &client->conn);
    if (ok(st)) return client->conn != NULL;
    client->conn = NULL;
    run->stats.connects_failed++;
    return false;
}

MAY_YIELD void
cluster_disconnect(struct cluster_client *client)
{
    if (client->conn != NULL) io_conn_close(client->conn, IO_CLOSE_ABORT);
    while (client->conn != NULL)
        (void)!ok(fiber_queue_wait(&client->queue, FIBER_FOREVER));
    buf_clear(&client->in, 0);
}

static bool
out_send(struct cluster_client *client, struct buf *out)
{
    bool sent = client->conn != NULL && io_conn_write(client->conn, out->data, out->size);
    buf_deinit(out);
    return sent;
}

/* What of client->in are so many whole answers; 0: not all of it is there. */
static size_t
resp_size(struct bytes data, u32 count)
{
    size_t at = 0;
    for (i64 wanted = count; wanted > 0; wanted--) {
        struct resp_reply reply;
        size_t consumed;
        status st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
        if (status_is(st, ST_INCOMPLETE)) return 0;
        CHECK(ok(st));
        at += consumed;
        if (reply.kind == RESP_REPLY_ARRAY) wanted += reply.integer;
    }
    return at;
}

static size_t
native_size(struct bytes data)
{
    struct native_header header;
    struct bytes body;
    size_t consumed, wanted;
    status st = native_frame_decode(data, &header, &body, &consumed, &wanted);
    if (status_is(st, ST_INCOMPLETE)) return 0;
    CHECK(ok(st));
    return consumed;
}

/* The bytes of so many answers; size 0: there will be none. */
static MAY_YIELD struct bytes
answer_wait(struct cluster_client *client, u32 count)
{
    u64 begun_ns = cluster_now_ns();
    u64 limit_ns = run->cluster->knobs.timeout_ms * NS_PER_MS + PATIENCE_NS;
    for (;;) {
        struct bytes in = buf_bytes(&client->in);
        if (place_is_refused(client->native, in)) {
            client->in.size = 0;
            if (client->conn != NULL) io_conn_close(client->conn, IO_CLOSE_ABORT);
            return BYTES(NULL, 0);
        }
        size_t size = client->native ? native_size(in) : resp_size(in, count);
        if (size != 0) return BYTES(in.data, size);
        if (client->conn == NULL || run_over()) return BYTES(NULL, 0);
        if (cluster_now_ns() >= begun_ns + limit_ns) {
            /* Who only listens hears nothing of a power cut: what was asked before counts not. */
            if (run->cluster->calm && begun_ns >= run->cluster->calm_ns)
                violated("no_answer", "client %u has waited %llu s for node %u, and nothing fails",
                         client->id, (unsigned long long)((cluster_now_ns() - begun_ns) / NS_PER_S),
                         client->node);
            io_conn_close(client->conn, IO_CLOSE_ABORT);
        }
        (void)!ok(fiber_queue_wait(&client->queue, io_now_ns() + NS_PER_S));
    }
}

/* ---- values ---- */

static void
value_fill(u8 *out, const struct cluster_client *client, const struct cluster_part *part)
{
    value_make(out, part->size, part->key->index, client->id, part->number, false);
}

/* The number of the write whose value this is; 0 and a violation: of none. */
static u64
value_number(const struct cluster_key *key, struct bytes content)
{
    if (content.size < VALUE_HEAD_BYTES || !value_is_right(content, key->index)) {
        violated("foreign_value", "%s holds %zu bytes that were never written to it", key->name,
                 content.size);
        return 0;
    }
    return load_u64(content.data + 16);
}

/* ---- RESP ---- */

static void
resp_words(struct resp_writer *w, u32 count, const char *const *words)
{
    resp_array(w, count);
    for (u32 i = 0; i < count; i++)
        resp_bulk_text(w, words[i]);
}

static void
resp_put(struct resp_writer *w, const struct cluster_client *client,
         const struct cluster_part *part)
{
    u8 value[4096];
    CHECK(part->size <= sizeof(value));
    value_fill(value, client, part);
    resp_bulk_text(w, part->key->name);
    resp_bulk(w, BYTES(value, part->size));
}

static void
resp_words_of(struct resp_writer *w, const char *text)
{
    char copy[96];
    snprintf(copy, sizeof(copy), "%s", text);
    const char *words[8];
    u32 count = 0;
    char *rest = copy;
    for (char *word = strsep(&rest, " "); word != NULL && count < 8; word = strsep(&rest, " "))
        words[count++] = word;
    resp_words(w, count, words);
}

static struct bytes
context_of(const struct cluster_request *request)
{
    if (request->seen == NULL) return BYTES(NULL, 0);
    return BYTES(request->seen->context, request->seen->context_size);
}

static void
context_take(struct cluster_seen *seen, struct bytes context)
{
    CHECK(context.size <= sizeof(seen->context));
    memcpy(seen->context, context.data, context.size);
    seen->context_size = (u32)context.size;
}

/* A value that stands there; 0 and a violation: of no write. */
static void
sibling_take(struct cluster_seen *seen, const struct cluster_key *key, struct bytes content)
{
    CHECK(seen->count < ARRAY_COUNT(seen->numbers));
    seen->numbers[seen->count++] = value_number(key, content);
}

static void
resp_encode_request(struct buf *out, const struct cluster_client *client,
                    const struct cluster_request *request)
{
    struct resp_writer w = {.out = out, .version = 2};
    char number[32];
    switch (request->kind) {
    case CLUSTER_GET:
        resp_words(&w, 2, (const char *[]){"GET", request->parts[0].key->name});
        break;
    case CLUSTER_DELETE:
        resp_words(&w, 2, (const char *[]){"DEL", request->parts[0].key->name});
        break;
    case CLUSTER_INCREMENT:
        resp_words(&w, 2, (const char *[]){"INCR", request->parts[0].key->name});
        break;
    case CLUSTER_MGET:
        resp_array(&w, request->count + 1);
        resp_bulk_text(&w, "MGET");
        for (u32 i = 0; i < request->count; i++)
            resp_bulk_text(&w, request->parts[i].key->name);
        break;
    case CLUSTER_MSET:
        resp_array(&w, 2 * request->count + 1);
        resp_bulk_text(&w, "MSET");
        for (u32 i = 0; i < request->count; i++)
            resp_put(&w, client, &request->parts[i]);
        break;
    case CLUSTER_PUT:
        resp_array(&w, request->expire_ms != 0 ? 5 : 3);
        resp_bulk_text(&w, "SET");
        resp_put(&w, client, &request->parts[0]);
        if (request->expire_ms == 0) break;
        snprintf(number, sizeof(number), "%llu", (unsigned long long)request->expire_ms);
        resp_bulk_text(&w, "PX");
        resp_bulk_text(&w, number);
        break;
    case CLUSTER_SCAN:
        snprintf(number, sizeof(number), "%llu", (unsigned long long)request->cursor);
        resp_words(&w, 4, (const char *[]){"SCAN", number, "COUNT", "20"});
        break;
    case CLUSTER_REMOVE:
        resp_words_of(&w, request->text);
        break;
    case CLUSTER_KEYSPACE:
        CHECK(!"a native request");
        break;
    case CLUSTER_SIBLINGS_GET:
        resp_words(&w, 2, (const char *[]){"DISTKV.GET", request->parts[0].key->name});
        break;
    case CLUSTER_SIBLINGS_PUT:
        resp_array(&w, request->seen != NULL ? 4 : 3);
        resp_bulk_text(&w, "DISTKV.PUT");
        resp_put(&w, client, &request->parts[0]);
        if (request->seen != NULL) resp_bulk(&w, context_of(request));
        break;
    case CLUSTER_SIBLINGS_DELETE:
        resp_array(&w, 3);
        resp_bulk_text(&w, "DISTKV.DEL");
        resp_bulk_text(&w, request->parts[0].key->name);
        resp_bulk(&w, context_of(request));
        break;
    case CLUSTER_BATCH:
        if (request->watches)
            resp_words(&w, 2, (const char *[]){"WATCH", request->parts[0].key->name});
        resp_words(&w, 1, (const char *[]){"MULTI"});
        for (u32 i = 0; i < request->count; i++) {
            resp_array(&w, 3);
            resp_bulk_text(&w, "SET");
            resp_put(&w, client, &request->parts[i]);
        }
        resp_words(&w, 1, (const char *[]){"EXEC"});
        break;
    }
    CHECK(!w.failed);
}

/* How many answers that has. */
static u32
answers_of(const struct cluster_client *client, const struct cluster_request *request)
{
    if (client->native || request->kind != CLUSTER_BATCH) return 1;
    return request->count + 2 + request->watches;
}

/* A value of a key, or nothing. */
static void
resp_found(struct cluster_part *part, const struct resp_reply *reply)
{
    part->told = true;
    part->found = reply->kind == RESP_REPLY_NULL ? 0 : value_number(part->key, reply->text);
}

static enum cluster_answer
resp_error_means(struct cluster_request *request, struct bytes text)
{
    snprintf(request->error, sizeof(request->error), "%.*s", (int)MIN(text.size, 90u),
             (const char *)text.data);
    if (strncmp(request->error, "UNKNOWN", 7) == 0) return ANSWER_UNKNOWN;
    /* What part of it was done nobody knows. */
    if (request->count > 1) return ANSWER_UNKNOWN;
    return ANSWER_REFUSED;
}

static enum cluster_answer
resp_page(struct cluster_request *request, struct bytes data, size_t at, i64 left)
{
    struct resp_reply reply;
    size_t consumed;
    char number[32];
    status st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
    CHECK(ok(st) && left == 2 && reply.kind == RESP_REPLY_BULK);
    snprintf(number, sizeof(number), "%.*s", (int)MIN(reply.text.size, 24u),
             (const char *)reply.text.data);
    request->cursor = strtoull(number, NULL, 10);
    at += consumed;
    st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
    CHECK(ok(st) && reply.kind == RESP_REPLY_ARRAY);
    for (i64 keys = reply.integer; keys > 0; keys--) {
        at += consumed;
        st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
        CHECK(ok(st));
        if (!request->found(request->arg, reply.text)) break;
    }
    return ANSWER_OK;
}

/* EXEC's, which is the last one of several: all of it was done, or nothing. */
static enum cluster_answer
resp_exec(struct cluster_request *request, struct bytes data)
{
    struct resp_reply reply;
    size_t at = 0, consumed;
    for (u32 left = request->count + 1 + request->watches; left > 0; left--, at += consumed) {
        status st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
        CHECK(ok(st));
    }
    status st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
    CHECK(ok(st));
    if (reply.kind == RESP_REPLY_ERROR) {
        enum cluster_answer means = resp_error_means(request, reply.text);
        return strncmp(request->error, "UNKNOWN", 7) == 0 ? means : ANSWER_REFUSED;
    }
    request->aborted = reply.kind == RESP_REPLY_NULL;
    CHECK(request->aborted ? request->watches
                           : reply.kind == RESP_REPLY_ARRAY && reply.integer == request->count);
    return request->aborted ? ANSWER_REFUSED : ANSWER_OK;
}

/* [context, [value, ...]] */
static enum cluster_answer
resp_siblings(struct cluster_request *request, struct bytes data)
{
    struct resp_reply reply;
    size_t at = 0, consumed;
    status st = resp_read(data, &reply, &consumed);
    CHECK(ok(st) && reply.kind == RESP_REPLY_ARRAY && reply.integer == 2);
    at += consumed;
    st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
    CHECK(ok(st) && reply.kind == RESP_REPLY_BULK);
    context_take(request->seen, reply.text);
    at += consumed;
    st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
    CHECK(ok(st) && reply.kind == RESP_REPLY_ARRAY);
    request->seen->count = 0;
    for (i64 left = reply.integer; left > 0; left--) {
        at += consumed;
        st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
        CHECK(ok(st) && reply.kind == RESP_REPLY_BULK);
        sibling_take(request->seen, request->parts[0].key, reply.text);
    }
    return ANSWER_OK;
}

static enum cluster_answer
resp_decode(struct cluster_request *request, struct bytes data)
{
    struct resp_reply reply;
    size_t consumed;
    if (request->kind == CLUSTER_BATCH) return resp_exec(request, data);
    status st = resp_read(data, &reply, &consumed);
    CHECK(ok(st));
    if (reply.kind == RESP_REPLY_ERROR) return resp_error_means(request, reply.text);
    request->integer = reply.integer;
    if (request->kind == CLUSTER_GET) resp_found(&request->parts[0], &reply);
    if (request->kind == CLUSTER_SCAN) return resp_page(request, data, consumed, reply.integer);
    if (request->kind == CLUSTER_SIBLINGS_GET) return resp_siblings(request, data);
    if (request->kind != CLUSTER_MGET) return ANSWER_OK;
    size_t at = consumed;
    CHECK(reply.kind == RESP_REPLY_ARRAY && reply.integer == (i64)request->count);
    for (u32 i = 0; i < request->count; i++, at += consumed) {
        st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
        CHECK(ok(st));
        resp_found(&request->parts[i], &reply);
    }
    return ANSWER_OK;
}

/* ---- native ---- */

static struct native_op
native_op_of(const struct cluster_client *client, const struct cluster_request *request, u32 part,
             u8 *value)
{
    const struct cluster_part *from = &request->parts[part];
    struct native_op op = {.kind = NATIVE_OP_DELETE,
                           .key = BYTES(from->key->name, from->key->size)};
    bool deletes = request->kind == CLUSTER_DELETE || request->kind == CLUSTER_SIBLINGS_DELETE;
    if (deletes || from->deletes) return op;
    value_fill(value, client, from);
    op.kind = NATIVE_OP_PUT;
    op.value = BYTES(value, from->size);
    op.expiry = request->expire_ms != 0 ? NATIVE_EXPIRY_AFTER : NATIVE_EXPIRY_NONE;
    op.expiry_ms = request->expire_ms;
    return op;
}

static void
native_encode_request(struct buf *out, struct cluster_client *client,
                      const struct cluster_request *request)
{
    u8 value[4096];
    struct native_request frame;
    struct buf ops;
    memset(&frame, 0, sizeof(frame));
    buf_init(&ops, io_budget());
    frame.header.request_id = ++client->request_id;
    frame.header.keyspace = (u16)client->keyspace;
    switch (request->kind) {
    case CLUSTER_GET:
        frame.header.opcode = NATIVE_GET;
        frame.get.key = BYTES(request->parts[0].key->name, request->parts[0].key->size);
        break;
    case CLUSTER_PUT:
    case CLUSTER_DELETE:
        frame.header.opcode = request->kind == CLUSTER_PUT ? NATIVE_PUT : NATIVE_DELETE;
        frame.op = native_op_of(client, request, 0, value);
        break;
    case CLUSTER_BATCH:
        frame.header.opcode = NATIVE_BATCH;
        for (u32 i = 0; i < request->count; i++) {
            struct native_op op = native_op_of(client, request, i, value);
            bool added = native_batch_add(&ops, &op);
            CHECK(added);
        }
        frame.batch.count = request->count;
        frame.batch.ops = buf_bytes(&ops);
        break;
    case CLUSTER_KEYSPACE:
        frame.header.opcode = NATIVE_CLUSTER;
        frame.cluster = (struct native_cluster){.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                                .flags = NATIVE_CLUSTER_CREATE,
                                                .keyspace = CLUSTER_SIBLINGS,
                                                .conflict = CONFLICT_SIBLINGS,
                                                .name = BYTES_LITERAL("siblings")};
        if (run->cluster->knobs.sibling_fewer) {
            frame.cluster.replicas = 2;
            frame.cluster.write_quorum = 2;
            frame.cluster.read_quorum = 2;
        }
        break;
    case CLUSTER_SIBLINGS_GET:
        frame.header.opcode = NATIVE_GET_SIBLINGS;
        frame.get.key = BYTES(request->parts[0].key->name, request->parts[0].key->size);
        break;
    case CLUSTER_SIBLINGS_PUT:
    case CLUSTER_SIBLINGS_DELETE: {
        struct native_op op = native_op_of(client, request, 0, value);
        frame.header.opcode = NATIVE_PUT_SIBLINGS;
        frame.siblings.kind = op.kind;
        frame.siblings.key = op.key;
        frame.siblings.value = op.value;
        frame.siblings.context = context_of(request);
        break;
    }
    case CLUSTER_MGET:
    case CLUSTER_MSET:
    case CLUSTER_INCREMENT:
    case CLUSTER_SCAN:
    case CLUSTER_REMOVE:
        CHECK(!"not a native request here");
    }
    if (native_opcode_writes(frame.header.opcode) && prng_chance(&client->prng, 1, 3)) {
        frame.id.word[0] = prng_u64(&client->prng) | 1;
        frame.id.word[1] = client->id;
    }
    bool encoded = native_request_encode(out, &frame);
    CHECK(encoded);
    buf_deinit(&ops);
}

static enum cluster_answer
native_decode(struct cluster_client *client, struct cluster_request *request, struct bytes data)
{
    struct native_header header;
    struct native_reply reply;
    struct bytes body;
    size_t consumed, wanted;
    status st = native_frame_decode(data, &header, &body, &consumed, &wanted);
    if (ok(st)) st = native_reply_decode(&header, body, &reply);
    CHECK(ok(st) && header.request_id == client->request_id);
    snprintf(request->error, sizeof(request->error), "%s", native_status_name(header.status));
    client->closing = header.status == NATIVE_ST_CLOSING;
    if (header.status == NATIVE_ST_UNKNOWN_OUTCOME) return ANSWER_UNKNOWN;
    bool reads = request->kind == CLUSTER_GET;
    bool absent = reads && header.status == NATIVE_ST_NOT_FOUND;
    if (header.status != NATIVE_ST_OK && !absent) return ANSWER_REFUSED;
    if (reads) {
        struct cluster_part *part = &request->parts[0];
        part->told = true;
        part->found = absent ? 0 : value_number(part->key, reply.get.value);
        client->version = absent ? 0 : reply.get.version;
    } else if (request->kind == CLUSTER_SIBLINGS_GET) {
        struct bytes values = reply.siblings.values;
        struct native_sibling sibling;
        context_take(request->seen, reply.siblings.context);
        request->seen->count = 0;
        while (native_sibling_next(&values, &sibling))
            sibling_take(request->seen, request->parts[0].key, sibling.value);
    } else if (request->kind != CLUSTER_KEYSPACE) {
        client->version = reply.written.version;
    }
    return ANSWER_OK;
}

/* ---- both ---- */

static const char *const level_texts[] = {"DISTKV.CONSISTENCY DEFAULT", "DISTKV.CONSISTENCY ONE",
                                          "DISTKV.CONSISTENCY QUORUM", "DISTKV.CONSISTENCY ALL"};

/* False: it was refused, or the connection has ended. */
static MAY_YIELD bool
level_set(struct cluster_client *client, u32 level)
{
    if (client->native || client->level == level) return client->conn != NULL;
    struct buf out;
    buf_init(&out, io_budget());
    struct resp_writer w = {.out = &out, .version = 2};
    resp_words_of(&w, level_texts[level]);
    CHECK(!w.failed);
    if (!out_send(client, &out)) return false;
    struct bytes answer = answer_wait(client, 1);
    bool set = level_is_taken(answer);
    if (answer.size == 0) return false;
    buf_consume(&client->in, answer.size);
    if (set) client->level = level;
    return set && client->conn != NULL;
}

/* Likewise. */
static MAY_YIELD bool
keyspace_select(struct cluster_client *client)
{
    if (client->native || client->selected == client->keyspace) return client->conn != NULL;
    char text[32];
    snprintf(text, sizeof(text), "SELECT %u", client->keyspace);
    struct buf out;
    buf_init(&out, io_budget());
    struct resp_writer w = {.out = &out, .version = 2};
    resp_words_of(&w, text);
    CHECK(!w.failed);
    if (!out_send(client, &out)) return false;
    struct bytes answer = answer_wait(client, 1);
    if (answer.size == 0) return false;
    if (answer.data[0] == '+') client->selected = client->keyspace;
    buf_consume(&client->in, answer.size);
    return client->selected == client->keyspace && client->conn != NULL;
}

MAY_YIELD enum cluster_answer
cluster_ask(struct cluster_client *client, struct cluster_request *request)
{
    if (!keyspace_select(client)) return ANSWER_REFUSED;           /* it was never sent */
    if (!level_set(client, request->level)) return ANSWER_REFUSED; /* likewise */
    struct buf out;
    buf_init(&out, io_budget());
    if (client->native)
        native_encode_request(&out, client, request);
    else
        resp_encode_request(&out, client, request);
    run->stats.requests++;
    if (!out_send(client, &out)) return ANSWER_UNKNOWN;
    struct bytes answer = answer_wait(client, answers_of(client, request));
    if (answer.size == 0) return ANSWER_NONE;
    enum cluster_answer means =
        client->native ? native_decode(client, request, answer) : resp_decode(request, answer);
    buf_consume(&client->in, answer.size);
    run->stats.answers += means == ANSWER_OK;
    run->stats.refusals += means == ANSWER_REFUSED;
    run->stats.unknown += means == ANSWER_UNKNOWN;
    return means;
}
