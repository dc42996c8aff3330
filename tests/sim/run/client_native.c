/* SPDX-License-Identifier: MIT
 *
 * client_native.c -- requests as native frames, and what their replies tell.
 *
 * Replies come in any order and name their request. A write that carries an idempotency id and lost
 * its connection is sent again over the next one, if that leads to the same process of the server
 * (HELLO's run id); so it may have been done by either attempt, but only once.
 */
#include "client.h"

#include <stdlib.h>

#include "proto/native.h"

/* ---- requests ---- */

static struct bytes
key_of(const struct model_op *op, u32 index)
{
    return key_bytes(&run->keys[run->objects[op->object].key_first + index]);
}

static struct native_op
op_of(const struct model_op *op, const struct model_step *step)
{
    struct native_op out = {.kind = NATIVE_OP_DELETE, .key = key_of(op, step->key)};
    if (step->flags & MODEL_IF_ABSENT) out.condition = NATIVE_IF_ABSENT;
    if (step->flags & MODEL_IF_PRESENT) out.condition = NATIVE_IF_PRESENT;
    if (step->flags & MODEL_IF_VERSION) {
        out.condition = NATIVE_IF_VERSION;
        out.version = step->version;
    }
    if (step->kind != MODEL_PUT) return out;
    out.kind = NATIVE_OP_PUT;
    out.value = values_content(&run->values, step->value);
    if (step->ttl_ms != 0) {
        out.expiry = NATIVE_EXPIRY_AFTER;
        out.expiry_ms = step->ttl_ms;
    } else if (step->flags & MODEL_KEEP_TTL) {
        out.expiry = NATIVE_EXPIRY_KEEP;
    }
    return out;
}

static void
step_frame(const struct model_op *op, struct native_request *out)
{
    const struct model_step *step = &op->steps[0];
    switch (step->kind) {
    case MODEL_GET:
        out->header.opcode = NATIVE_GET;
        out->get.key = key_of(op, step->key);
        break;
    case MODEL_TTL:
        out->header.opcode = NATIVE_TTL;
        out->ttl.key = key_of(op, step->key);
        break;
    case MODEL_EXPIRE:
        out->header.opcode = NATIVE_EXPIRE;
        out->expire.key = key_of(op, step->key);
        out->expire.expiry = NATIVE_EXPIRY_AFTER;
        out->expire.expiry_ms = step->ttl_ms;
        break;
    default:
        out->op = op_of(op, step);
        out->header.opcode = step->kind == MODEL_PUT ? NATIVE_PUT : NATIVE_DELETE;
        break;
    }
}

static void
scan_frame(struct client *client, struct native_request *out)
{
    const struct scan *scan = &client->scan;
    out->header.opcode = NATIVE_SCAN;
    out->header.keyspace = scan->keyspace;
    out->scan.snapshot = scan->snapshot;
    out->scan.token_last = UINT64_MAX;
    out->scan.entries_max = (u32)prng_range(&client->prng, 1, 50);
    out->scan.bytes_max = (u32)prng_range(&client->prng, 1, 100000);
    if (scan->values == NULL && prng_chance(&client->prng, 1, 2))
        out->scan.flags = NATIVE_SCAN_KEYS_ONLY;
    if (!scan->given) return;
    out->scan.after = (struct native_position){
        .given = true, .token = scan->token, .key = BYTES(scan->after, scan->after_size)};
}

static void
other_frame(struct client *client, struct native_request *out)
{
    if (prng_chance(&client->prng, 1, 2)) {
        out->header.opcode = NATIVE_STATUS;
    } else {
        out->header.opcode = NATIVE_PING;
        out->ping.payload = BYTES_LITERAL("hello");
    }
}

static bool
frame_make(struct client *client, struct request *request, struct native_request *out,
           struct buf *ops)
{
    const struct model_op *op = request->op_count > 0 ? request->ops[0] : NULL;
    if (op != NULL) out->header.keyspace = run->objects[op->object].keyspace;
    switch (request->kind) {
    case REQUEST_STEP:
        step_frame(op, out);
        break;
    case REQUEST_BATCH:
        out->header.opcode = NATIVE_BATCH;
        u32 count = op->step_count;
        if (count > 1 && flaw_strikes(client, RUN_FLAW_HALF_BATCH, 2)) count--;
        for (u32 i = 0; i < count; i++) {
            struct native_op one = op_of(op, &op->steps[i]);
            if (!native_batch_add(ops, &one)) return false;
        }
        out->batch.count = count;
        out->batch.ops = buf_bytes(ops);
        break;
    case REQUEST_SCAN:
        scan_frame(client, out);
        break;
    case REQUEST_COUNT:
        out->header.opcode = NATIVE_COUNT;
        out->header.keyspace = client->keyspace;
        out->count.exact = true;
        break;
    case REQUEST_SNAPSHOT:
        out->header.opcode = NATIVE_SNAPSHOT_OPEN;
        out->snapshot_open.lease_ms = (u32)prng_range(&client->prng, 1000, 60000);
        break;
    case REQUEST_HELLO:
        out->header.opcode = NATIVE_HELLO;
        out->hello.version_min = out->hello.version_max = NATIVE_VERSION;
        out->hello.client_name = BYTES_LITERAL("distkv-sim");
        break;
    default:
        other_frame(client, out);
        break;
    }
    return true;
}

void
native_encode(struct client *client, struct request *request)
{
    struct native_request frame;
    memset(&frame, 0, sizeof(frame));
    struct buf out, ops;
    buf_init(&out, io_budget());
    buf_init(&ops, io_budget());
    bool fits = frame_make(client, request, &frame, &ops);
    request->id = ++client->id_last;
    frame.header.request_id = request->id;
    if (native_opcode_writes(frame.header.opcode)) {
        if (request->attempts == 0 && prng_chance(&client->prng, 3, 4)) {
            request->idempotency[0] = prng_u64(&client->prng);
            request->idempotency[1] = (u64)client->id << 32 | request->id;
        }
        memcpy(frame.id.word, request->idempotency, sizeof(frame.id.word));
        if (request->attempts > 0)
            frame.header.age_ms =
                (u32)MAX((sim_now_ns(run->sim) - request->sent_ns) / NS_PER_MS, 1u);
    }
    if (prng_chance(&client->prng, 1, 20))
        frame.header.timeout_ms = (u32)prng_range(&client->prng, 1, 200);
    request->attempts++;
    if (fits && native_request_encode(&out, &frame))
        text_add(&client->out, out.data, out.size);
    else
        client->broken = true; /* no memory: it is not sent */
    buf_deinit(&out);
    buf_deinit(&ops);
}

/* ---- replies ---- */

enum verdict { ANSWERED, REFUSED, UNKNOWN, WRONG };

static enum verdict
status_verdict(u32 code)
{
    switch ((enum native_status)code) {
    case NATIVE_ST_OVERLOADED:
    case NATIVE_ST_TIMED_OUT:
    case NATIVE_ST_NO_SPACE:
    case NATIVE_ST_NO_MEMORY:
    case NATIVE_ST_FULL:
    case NATIVE_ST_READ_ONLY:
    case NATIVE_ST_IO_ERROR:
    case NATIVE_ST_DAMAGED:
    case NATIVE_ST_CLOSING:
    case NATIVE_ST_SNAPSHOT_GONE:
    case NATIVE_ST_TOO_LARGE:
    case NATIVE_ST_UNAVAILABLE:
        return REFUSED;
    case NATIVE_ST_UNKNOWN_OUTCOME:
        return UNKNOWN;
    case NATIVE_ST_OK:
        return ANSWERED;
    case NATIVE_ST_NOT_FOUND:
    case NATIVE_ST_CONFLICT:
    case NATIVE_ST_INVALID:
    case NATIVE_ST_UNSUPPORTED:
    case NATIVE_ST_BAD_FRAME:
    case NATIVE_ST_CROSS_SLOT:
    case NATIVE_ST_UNAUTHENTICATED:
    case NATIVE_ST_WRONG_EPOCH:
        break;
    }
    return WRONG;
}

static void
knows_number(struct model_step *step, i64 number)
{
    step->known |= MODEL_KNOWS_NUMBER;
    step->result_number = number;
}

static void
knows_value(struct model_step *step, u32 value, u64 version)
{
    step->known |= MODEL_KNOWS_VALUE;
    step->result_value = value;
    if (value == VALUE_ABSENT) return;
    step->known |= MODEL_KNOWS_VERSION;
    step->result_version = version;
}

static enum verdict
step_read(struct client *client, struct model_op *op, const struct native_reply *reply)
{
    struct model_step *step = &op->steps[0];
    u32 code = reply->header.status;
    bool is_ok = code == NATIVE_ST_OK;
    switch (step->kind) {
    case MODEL_GET:
        if (!is_ok && code != NATIVE_ST_NOT_FOUND) return status_verdict(code);
        if (is_ok && flaw_strikes(client, RUN_FLAW_STALE_READ, 20)) is_ok = false;
        knows_value(step, is_ok ? check_value(op, step->key, reply->get.value) : VALUE_ABSENT,
                    is_ok ? reply->get.version : 0);
        return ANSWERED;
    case MODEL_TTL:
        if (!is_ok && code != NATIVE_ST_NOT_FOUND) return status_verdict(code);
        knows_number(step, !is_ok                      ? MODEL_TTL_GONE
                           : reply->ttl.expire_ms == 0 ? MODEL_TTL_NONE
                                                       : (i64)reply->ttl.remaining_ms);
        return ANSWERED;
    case MODEL_EXPIRE:
        if (!is_ok && code != NATIVE_ST_NOT_FOUND) return status_verdict(code);
        knows_number(step, is_ok);
        break;
    case MODEL_PUT:
        if (!is_ok && code != NATIVE_ST_CONFLICT) return status_verdict(code);
        knows_number(step, is_ok);
        break;
    default: /* a delete without a condition may be blind: it does not tell what was there */
        if (!is_ok && code != NATIVE_ST_CONFLICT) return status_verdict(code);
        if (step->flags != 0) knows_number(step, is_ok);
        return ANSWERED;
    }
    if (!is_ok || reply->written.version == 0) return ANSWERED;
    step->known |= MODEL_KNOWS_VERSION;
    step->result_version = reply->written.version;
    return ANSWERED;
}

static enum verdict
batch_read(struct model_op *op, const struct native_reply *reply)
{
    u32 code = reply->header.status;
    if (code != NATIVE_ST_OK && code != NATIVE_ST_CONFLICT) return status_verdict(code);
    op->all = code == NATIVE_ST_OK ? MODEL_ALL_DONE : MODEL_ALL_UNDONE;
    struct model_step *last = &op->steps[op->step_count - 1];
    if (code != NATIVE_ST_OK || last->kind != MODEL_PUT || reply->written.version == 0)
        return ANSWERED;
    last->known |= MODEL_KNOWS_VERSION;
    last->result_version = reply->written.version;
    return ANSWERED;
}

/* An entry of a page, of which the value is known, is a read of its key while the page was made. */
static void
entry_read(struct client *client, const struct request *request,
           const struct native_scan_entry *entry)
{
    struct scan *scan = &client->scan;
    check_scan_found(client, entry->key);
    if (run_over()) return;
    const struct key *key = key_find(scan->keyspace, entry->key);
    struct object *object = &run->objects[key->object];
    if (!entry->has_value) return;
    struct model_op *op = check_op(client, key->object, 1);
    op->connection = 0;
    u32 value = check_value(op, key->index, entry->value);
    if (scan->values != NULL) {
        scan->values[key - run->keys] = value;
        scan->versions[key - run->keys] = entry->version;
    } else if (check_has_room(object, false) && scan->epoch == run->starts) {
        op->steps[0] = (struct model_step){.kind = MODEL_GET, .key = (u8)key->index};
        knows_value(&op->steps[0], value, entry->version);
        model_invoke(&object->model, op, request->begun, request->sent_ns);
        model_return(&object->model, op, run->position + 1, sim_now_ns(run->sim));
        return;
    }
    free(op);
}

static enum verdict
page_read(struct client *client, const struct request *request, const struct native_reply *reply)
{
    struct scan *scan = &client->scan;
    if (reply->header.status != NATIVE_ST_OK) {
        check_scan_stop(client);
        return status_verdict(reply->header.status);
    }
    struct bytes entries = reply->scan.entries;
    struct native_scan_entry entry;
    while (native_scan_next(&entries, &entry) && !run_over())
        entry_read(client, request, &entry);
    run->position++; /* the reads have returned */
    scan->given = reply->scan.more;
    if (!scan->given) {
        if (scan->values != NULL)
            check_instant_end(client);
        else
            check_scan_end(client, true);
    } else {
        scan->token = reply->scan.next.token;
        scan->after_size = (u32)reply->scan.next.key.size;
        memcpy(scan->after, reply->scan.next.key.data, scan->after_size);
        if (++scan->pages > 10000)
            violated("scan_endless", "client %u: a scan does not come to its end", client->id);
    }
    return ANSWERED;
}

static enum verdict
snapshot_read(struct client *client, const struct request *request,
              const struct native_reply *reply)
{
    struct scan *scan = &client->scan;
    if (reply->header.status != NATIVE_ST_OK) {
        check_scan_stop(client);
        return status_verdict(reply->header.status);
    }
    scan->snapshot = reply->snapshot_open.snapshot;
    scan->begun = request->begun;
    scan->begun_ns = request->sent_ns;
    scan->opened = ++run->position;
    scan->opened_ns = sim_now_ns(run->sim);
    return ANSWERED;
}

static enum verdict
count_read(struct client *client, const struct request *request, const struct native_reply *reply)
{
    if (reply->header.status != NATIVE_ST_OK) return status_verdict(reply->header.status);
    u64 least, most, count = reply->count.count;
    check_count_bounds(client->keyspace, request->begun, &least, &most);
    if (count < least || count > most)
        violated("count", "client %u: COUNT of keyspace %u is %llu, %llu to %llu are there",
                 client->id, client->keyspace, (unsigned long long)count, (unsigned long long)least,
                 (unsigned long long)most);
    return ANSWERED;
}

/* Writes that may be sent again, now that it is known whom this connection leads to. */
static void
greeting_read(struct client *client, const struct native_reply *reply)
{
    if (reply->header.status != NATIVE_ST_OK) {
        client->broken = true;
        return;
    }
    client->greeted = true;
    bool same = client->run_id == reply->hello.run_id;
    client->run_id = reply->hello.run_id;
    list_for_each_safe (node, &client->again) {
        struct request *request = list_entry(node, struct request, link);
        list_del(&request->link);
        if (!same) {
            check_unknown(request);
            request_drop(request);
            continue;
        }
        run->stats.resends++;
        native_encode(client, request);
        list_push_back(&client->pending, &request->link);
        client->pending_count++;
    }
}

static enum verdict
reply_read(struct client *client, struct request *request, const struct native_reply *reply)
{
    switch (request->kind) {
    case REQUEST_STEP:
        return step_read(client, request->ops[0], reply);
    case REQUEST_BATCH:
        return batch_read(request->ops[0], reply);
    case REQUEST_SCAN:
        return page_read(client, request, reply);
    case REQUEST_SNAPSHOT:
        return snapshot_read(client, request, reply);
    case REQUEST_COUNT:
        return count_read(client, request, reply);
    case REQUEST_HELLO:
        greeting_read(client, reply);
        return ANSWERED;
    default:
        return status_verdict(reply->header.status);
    }
}

static void
settle(struct client *client, struct request *request, const struct native_reply *reply)
{
    enum verdict verdict = reply_read(client, request, reply);
    /* A second attempt that is refused says nothing of the first. */
    if (verdict == REFUSED && request->attempts > 1) verdict = UNKNOWN;
    if (reply->header.flags & NATIVE_FLAG_REPLAYED) run->stats.replays++;
    if (reply->header.status == NATIVE_ST_CLOSING) client->leaving = true;
    if (client->auditor && request->op_count == 1)
        check_audited(request->ops[0], verdict == ANSWERED);
    if (request->kind == REQUEST_STEP && client->swap == SWAP_READS && verdict == ANSWERED) {
        client->swap = SWAP_HAS_READ;
        client->swap_value = request->ops[0]->steps[0].result_value;
        client->swap_version = request->ops[0]->steps[0].result_version;
    }
    static const char *const words[] = {"is answered", "is refused", "does not know", "is wrong"};
    check_log(client, request, words[verdict]);
    switch (verdict) {
    case ANSWERED:
        check_end(request);
        break;
    case REFUSED:
        check_refused(request);
        break;
    case UNKNOWN:
        check_unknown(request);
        break;
    case WRONG:
        violated("reply", "client %u: native request %llu, %s, is answered with %s: %.*s",
                 client->id, (unsigned long long)request->id, request_names[request->kind],
                 native_status_name(reply->header.status), (int)MIN(reply->error.text.size, 200u),
                 reply->error.text.data == NULL ? "" : (const char *)reply->error.text.data);
        check_unknown(request);
        client->broken = true;
        break;
    }
}

static void
frame_took(struct client *client, const struct native_header *header, struct bytes body)
{
    struct request *request = NULL;
    list_for_each (node, &client->pending) {
        struct request *each = list_entry(node, struct request, link);
        if (each->id == header->request_id) request = each;
    }
    if (request == NULL) {
        if (header->request_id == 0 && header->status != NATIVE_ST_OK) {
            client->broken = true; /* refused at the door */
            return;
        }
        violated("reply_unasked", "client %u gets a reply with id %llu, which does not wait",
                 client->id, (unsigned long long)header->request_id);
        return;
    }
    struct native_reply reply;
    status st = native_reply_decode(header, body, &reply);
    if (!ok(st)) {
        violated("reply_bytes", "client %u: the reply to request %llu does not read: %s",
                 client->id, (unsigned long long)request->id, status_text(st));
        return;
    }
    settle(client, request, &reply);
    client->pending_count--;
    request_drop(request);
    if (flaw_strikes(client, RUN_FLAW_TWO_REPLIES, 20)) frame_took(client, header, body);
}

size_t
native_received(struct client *client, struct bytes data)
{
    size_t at = 0;
    while (at < data.size && !client->broken && !run_over()) {
        struct bytes rest = BYTES(data.data + at, data.size - at);
        if (rest.data[0] == '-') { /* too many clients: said in RESP, before a word was spoken */
            client->broken = true;
            break;
        }
        struct native_header header;
        struct bytes body;
        size_t consumed = 0, wanted = 0;
        status st = native_frame_decode(rest, &header, &body, &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) {
            io_conn_want(client->conn, wanted);
            break;
        }
        if (!ok(st)) {
            violated("reply_bytes", "client %u is sent bytes that are no frame", client->id);
            break;
        }
        frame_took(client, &header, body);
        at += consumed;
    }
    if (client->out.size > 0 && !client->broken && !client_flush_out(client))
        client->broken = true; /* what is sent again */
    return client->broken || run_over() ? data.size : at;
}
