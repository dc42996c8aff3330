/* SPDX-License-Identifier: MIT
 *
 * session_native.c -- the native protocol's side of a session: frames in, and where each request
 * runs. Requests are independent: each starts when it is read, each is answered when it is done.
 */
#include <stdio.h>

#include "base/fault.h"
#include "server/native.h"
#include "server/route.h"
#include "server/session.h"

/* Nothing larger is taken in from somebody who has not said a password. */
#define HELLO_BYTES_MAX 4096u

static_assert(NATIVE_HEADER_BYTES + NATIVE_BODY_BYTES_MAX == REQUEST_BYTES_MAX,
              "a request is as long over both protocols");

static void
refuse(struct session *s, const struct native_header *header, enum native_status code, u64 detail,
       const char *text)
{
    struct buf *out = &s->shard->reply;
    out->size = 0;
    s->shard->stats
        ->errors[code == NATIVE_ST_BAD_FRAME ? SERVER_ERROR_PROTOCOL : SERVER_ERROR_OTHER]++;
    if (!native_reply_error(out, header, code, detail, native_epoch(), text)) {
        session_abort(s);
        return;
    }
    session_write(s, buf_bytes(out), 0);
}

/* What bits mean that a later version has is not known either: the version is told first. */
static void
refuse_unknown(struct session *s, const struct native_header *header)
{
    static_assert(NATIVE_VERSION == 1 && NATIVE_FLAGS_KNOWN == 0xf, "the texts name them");
    if (header->version != NATIVE_VERSION)
        refuse(s, header, NATIVE_ST_UNSUPPORTED, NATIVE_VERSION,
               "this server speaks version 1 of the protocol");
    else
        refuse(s, header, NATIVE_ST_UNSUPPORTED, 0, "unknown flags: this server knows bits 0 to 3");
}

static_assert((u32)NATIVE_LEVEL_ONE == REPLICATE_ONE &&
                  (u32)NATIVE_LEVEL_QUORUM == REPLICATE_QUORUM &&
                  (u32)NATIVE_LEVEL_ALL == REPLICATE_ALL,
              "one numbering");

/* token: of its keys, in a cluster. false: no place; the same frame comes again. */
static bool
start(struct session *s, const struct command *command, const struct bytes *frame, u32 keys,
      u32 owner, const u64 *token, const struct native_header *header, u64 start_ns)
{
    struct shard *shard = s->shard;
    struct request *request = request_new(shard, command, frame, 1, keys, s->pending_count);
    if (request == NULL) {
        if (session_stall_for_place(s, frame->size, keys)) return false;
        shard->stats->requests_refused++;
        refuse(s, header, NATIVE_ST_NO_MEMORY, 0, "no memory for the request");
        return true;
    }
    request->session = s;
    request->owner = owner;
    request->start_ns = start_ns;
    request->connected_ns = s->created_ns;
    request->early = s->pending_count != 0 && token == NULL;
    request->level = (u8)native_level_of(header->flags);
    if (token != NULL) {
        request->keyspace = header->keyspace;
        if (header->timeout_ms != 0)
            request->deadline_ns = io_now_ns() + header->timeout_ms * NS_PER_MS;
        if (request->writes) request->begin_ns = io_now_ns() + NATIVE_BEGIN_NS;
        if (header->age_ms != 0) request->first_ns = native_first_ns(header->age_ms, s->created_ns);
        if (!route_start(request, *token)) {
            request_free(request);
            refuse(s, header, NATIVE_ST_NO_MEMORY, 0, "no memory for the request");
            return true;
        }
    }
    list_push_back(&s->pending, &request->link);
    s->pending_count++;
    if (token == NULL) request_start(request);
    return true;
}

void
session_native_no_memory(struct session *s, struct bytes input)
{
    struct native_header header;
    if (!ok(native_header_decode(input, &header))) memset(&header, 0, sizeof(header));
    s->shard->stats->requests_refused++;
    session_refusal_log(s->shard, "no memory for a request");
    refuse(s, &header, NATIVE_ST_OVERLOADED, 0, "no memory for one more request, come back later");
    session_close(s);
}

/* ---- what has waited (native.h, "Elsewhere") ---- */

static void
mark(struct session *s)
{
    s->mark_ns = io_now_ns();
    s->mark_bytes = io_conn_arrived(s->conn);
}

void
session_native_waits(struct session *s)
{
    if (s->protocol != SESSION_NATIVE || s->shard->server->cluster == NULL || s->conn == NULL ||
        s->waits_ns != 0)
        return;
    mark(s);
    s->waits_ns = s->mark_ns;
}

/* Whether a frame that begins so many bytes behind what was read may have been here for a second.
 * Once all is read that had come by a moment, what is left came after it. */
static bool
has_waited(struct session *s, size_t at)
{
    if (LIKELY(s->waits_ns == 0) || s->conn == NULL) return false;
    if (s->read_bytes + at >= s->mark_bytes) {
        s->waits_ns = s->mark_ns;
        mark(s);
    }
    return io_now_ns() - s->waits_ns > SESSION_STOOD_NS;
}

static void
note_read(struct session *s, size_t consumed, size_t size)
{
    s->read_bytes += consumed;
    if (LIKELY(s->waits_ns == 0) || s->conn == NULL || s->stall != SESSION_RUNS) return;
    bool all = consumed == size || s->unfinished_wanted != 0;
    if (all && io_conn_arrived(s->conn) <= s->read_bytes + (size - consumed)) s->waits_ns = 0;
}

/* One good frame of a request that reads well, which begins at `at`; false as start(). */
static bool
run(struct session *s, const struct native_request *request, struct bytes frame, size_t at,
    u64 start_ns)
{
    struct shard *shard = s->shard;
    const struct command *command = command_native(request->header.opcode);
    u64 token = shard->token_first;
    u32 keys = request_keys(command, 1);
    bool keyed = native_token(request, &token, &keys);
    if (!keyed && request->header.opcode == NATIVE_BATCH) {
        refuse(s, &request->header, NATIVE_ST_CROSS_SLOT, 0,
               "the keys of an atomic batch must have one hash slot");
        return true;
    }
    if (shard->server->cluster != NULL) {
        bool waited = has_waited(s, at);
        if (native_opcode_writes(request->header.opcode) && session_stood_since(s)) {
            MARK("server.session.write_from_before_a_pause");
            refuse(s, &request->header, NATIVE_ST_CLOSING, 0,
                   "this node stood still: write over another connection");
            return true;
        }
        if (native_opcode_writes(request->header.opcode) && waited) {
            MARK("server.session.write_has_waited");
            refuse(s, &request->header, NATIVE_ST_CLOSING, 0,
                   "this waited for what came before it: write over another connection");
            return true;
        }
        if (keyed)
            return start(s, command, &frame, keys, shard->index, &token, &request->header,
                         start_ns);
        if (request->header.opcode == NATIVE_SNAPSHOT_OPEN ||
            request->header.opcode == NATIVE_SNAPSHOT_CLOSE) {
            refuse(s, &request->header, NATIVE_ST_UNSUPPORTED, 0, "not supported in a cluster yet");
            return true;
        }
    }
    u32 owner = shard_of_token(shard->server, token);
    if (command->place == PLACE_FIBER)
        return start(s, command, &frame, keys, shard->index, NULL, &request->header, start_ns);
    bool home = command->place == PLACE_HOME;
    bool late = keys > REQUEST_KEYS_LIGHT && fiber_should_yield();
    if (!home && (owner != shard->index || late))
        return start(s, command, &frame, keys, owner, NULL, &request->header, start_ns);

    shard->reply.size = 0;
    struct resp_writer w = {.out = &shard->reply, .version = 3};
    struct exec x;
    exec_init(&x, shard, &shard->budget, &w);
    x.command = command;
    x.args = &frame;
    x.arg_count = 1;
    x.connected_ns = s->created_ns;
    bool done = true;
    if (home) {
        x.session = s;
        command->handler(&x);
    } else {
        done = exec_try(&x, command->handler);
    }
    u64 seq = x.seq;
    bool memory = !w.failed && !status_is(x.failure, ST_NO_MEMORY);
    exec_deinit(&x);
    bool roomy = memory && session_has_room(s, shard->reply.size);
    if (!home && !x.wrote && !roomy) done = false; /* a request can wait */
    if (!done) return start(s, command, &frame, keys, owner, NULL, &request->header, start_ns);
    shard->stats->tried_inline++;
    if (w.failed) {
        session_abort(s);
        return true;
    }
    session_write(s, buf_bytes(&shard->reply), seq);
    session_account(s, command, &frame, 1, start_ns, buf_bytes(&shard->reply));
    return true;
}

size_t
session_native_received(struct session *s, struct bytes data)
{
    size_t at = 0;
    u64 clock_ns = io_clock_ns();
    while (at < data.size && !s->closing) {
        if (at != 0 && fiber_should_yield()) {
            io_conn_again(s->conn);
            break;
        }
        if (s->pending_count >= SESSION_REQUESTS_MAX) {
            session_stall(s, SESSION_WAITS_ORDER);
            break;
        }
        struct bytes rest = BYTES(data.data + at, data.size - at);
        struct native_header header;
        memset(&header, 0, sizeof(header));
        struct bytes body;
        size_t consumed = 0, wanted = 0;
        status st = native_frame_decode(rest, &header, &body, &consumed, &wanted);
        if (MAX(consumed, wanted) > REQUEST_BYTES_MAX) st = ST_CORRUPT;
        if (status_is(st, ST_INCOMPLETE)) {
            if (!s->authenticated && wanted > HELLO_BYTES_MAX) {
                refuse(s, &header, NATIVE_ST_UNAUTHENTICATED, 0, "say HELLO with a password first");
                session_close(s);
                return data.size;
            }
            io_conn_want(s->conn, wanted);
            s->unfinished_wanted = wanted;
            break;
        }
        if (status_is(st, ST_UNSUPPORTED)) {
            refuse_unknown(s, &header);
            at += consumed;
            continue;
        }
        if (!ok(st)) {
            memset(&header, 0, sizeof(header));
            refuse(s, &header, NATIVE_ST_BAD_FRAME, 0,
                   "bad magic or checksum, or a body over 16773072 bytes");
            session_close(s);
            return data.size;
        }
        struct native_request request;
        const char *error = "malformed request";
        st = native_request_decode(&header, body, &request, &error);
        if (!ok(st)) {
            refuse(s, &header, native_status_of(st), 0, error == NULL ? status_text(st) : error);
        } else if (header.keyspace >= LIMIT_KEYSPACES_CLIENT) {
            refuse(s, &header, NATIVE_ST_INVALID, 0, "keyspace is 0 to 15");
        } else if (!s->authenticated && header.opcode != NATIVE_HELLO) {
            refuse(s, &header, NATIVE_ST_UNAUTHENTICATED, 0, "say HELLO with a password first");
        } else if (!run(s, &request, BYTES(rest.data, consumed), at, clock_ns)) {
            break;
        } else {
            clock_ns = io_clock_ns();
        }
        at += consumed;
        if (s->stall != SESSION_RUNS) break;
        if (s->conn != NULL && io_conn_output_full(s->conn)) break;
    }
    if (s->shard->reply.capacity > KIB(256)) buf_clear(&s->shard->reply, 0);
    note_read(s, at, data.size);
    return s->closing ? data.size : at;
}
