/* SPDX-License-Identifier: MIT
 *
 * client_resp.c -- requests as RESP commands, and what their replies tell.
 *
 * Replies come in the order of the requests, so the first request that waits is the one that is
 * answered. A reply is judged only once it is there as a whole: it is laid out flat, an element
 * after the other, aggregates before their members.
 */
#include "client.h"
#include "parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "proto/resp.h"

/* ---- commands ---- */

static void
head(struct client *client, u32 words)
{
    char text[24];
    int n = snprintf(text, sizeof(text), "*%u\r\n", words);
    text_add(&client->out, text, (size_t)n);
}

static void
word(struct client *client, struct bytes bytes)
{
    char text[24];
    int n = snprintf(text, sizeof(text), "$%zu\r\n", bytes.size);
    text_add(&client->out, text, (size_t)n);
    text_add(&client->out, bytes.data, bytes.size);
    text_add(&client->out, "\r\n", 2);
}

static void
word_text(struct client *client, const char *text)
{
    word(client, BYTES(text, strlen(text)));
}

static void
word_number(struct client *client, i64 number)
{
    char text[24];
    int n = snprintf(text, sizeof(text), "%lld", (long long)number);
    word(client, BYTES(text, n));
}

static void
word_key(struct client *client, const struct model_op *op, u32 index)
{
    word(client, key_bytes(&run->keys[run->objects[op->object].key_first + index]));
}

static void
word_value(struct client *client, const struct model_step *step)
{
    word(client, values_content(&run->values, step->value));
}

/* SETNX, SETEX and GETSET say the same as SET with options: either, by the operation's number. */
static void
put_encode(struct client *client, const struct model_op *op, const struct model_step *step)
{
    u32 flags = step->flags;
    bool other = op->number % 2 == 0;
    if (other && flags == MODEL_IF_ABSENT && step->ttl_ms == 0) {
        head(client, 3);
        word_text(client, "SETNX");
        word_key(client, op, step->key);
        word_value(client, step);
        return;
    }
    if (other && flags == MODEL_GET_OLD && step->ttl_ms == 0) {
        head(client, 3);
        word_text(client, "GETSET");
        word_key(client, op, step->key);
        word_value(client, step);
        return;
    }
    if (other && flags == 0 && step->ttl_ms != 0) {
        head(client, 4);
        word_text(client, "PSETEX");
        word_key(client, op, step->key);
        word_number(client, (i64)step->ttl_ms);
        word_value(client, step);
        return;
    }
    u32 words = 3 + !!(flags & (MODEL_IF_ABSENT | MODEL_IF_PRESENT)) + !!(flags & MODEL_GET_OLD) +
                !!(flags & MODEL_KEEP_TTL) + 2 * (step->ttl_ms != 0);
    head(client, words);
    word_text(client, "SET");
    word_key(client, op, step->key);
    word_value(client, step);
    if (flags & MODEL_IF_ABSENT) word_text(client, "NX");
    if (flags & MODEL_IF_PRESENT) word_text(client, "XX");
    if (flags & MODEL_GET_OLD) word_text(client, "GET");
    if (flags & MODEL_KEEP_TTL) word_text(client, "KEEPTTL");
    if (step->ttl_ms != 0) {
        word_text(client, "PX");
        word_number(client, (i64)step->ttl_ms);
    }
}

static void
plain_encode(struct client *client, const struct model_op *op, const struct model_step *step,
             const char *name)
{
    head(client, 2);
    word_text(client, name);
    word_key(client, op, step->key);
}

static void
step_encode(struct client *client, const struct model_op *op, const struct model_step *step)
{
    switch ((enum model_kind)step->kind) {
    case MODEL_GET:
        plain_encode(client, op, step, "GET");
        break;
    case MODEL_PUT:
        put_encode(client, op, step);
        break;
    case MODEL_DELETE:
        plain_encode(client, op, step, "DEL");
        break;
    case MODEL_GETDEL:
        plain_encode(client, op, step, "GETDEL");
        break;
    case MODEL_APPEND:
        head(client, 3);
        word_text(client, "APPEND");
        word_key(client, op, step->key);
        word_value(client, step);
        break;
    case MODEL_INCR:
        head(client, 3);
        word_text(client, "INCRBY");
        word_key(client, op, step->key);
        word_number(client, step->number);
        break;
    case MODEL_STRLEN:
        plain_encode(client, op, step, "STRLEN");
        break;
    case MODEL_EXPIRE:
        head(client, 3);
        word_text(client, "PEXPIRE");
        word_key(client, op, step->key);
        word_number(client, (i64)step->ttl_ms);
        break;
    case MODEL_PERSIST:
        plain_encode(client, op, step, "PERSIST");
        break;
    case MODEL_TTL:
        plain_encode(client, op, step, "PTTL");
        break;
    case MODEL_RENAME:
    case MODEL_RENAMENX:
    case MODEL_COPY:
        head(client, 3 + !!(step->flags & MODEL_REPLACE));
        word_text(client, step->kind == MODEL_RENAME     ? "RENAME"
                          : step->kind == MODEL_RENAMENX ? "RENAMENX"
                                                         : "COPY");
        word_key(client, op, step->key);
        word_key(client, op, step->key2);
        if (step->flags & MODEL_REPLACE) word_text(client, "REPLACE");
        break;
    case MODEL_EXPECT:
    case MODEL_CLEAR:
        break;
    }
}

static void
many_encode(struct client *client, const struct request *request, const char *name, bool values)
{
    u32 words = 1;
    for (u32 i = 0; i < request->op_count; i++)
        words += request->ops[i]->step_count * (values ? 2u : 1u);
    head(client, words);
    word_text(client, name);
    for (u32 i = 0; i < request->op_count; i++) {
        const struct model_op *op = request->ops[i];
        for (u32 k = 0; k < op->step_count; k++) {
            word_key(client, op, op->steps[k].key);
            if (values) word_value(client, &op->steps[k]);
        }
    }
}

static void
exec_encode(struct client *client, struct request *request)
{
    const struct model_op *op = request->ops[0];
    head(client, 1);
    word_text(client, "MULTI");
    request->preludes = 1;
    for (u32 i = 0; i < op->step_count; i++) {
        if (op->steps[i].kind == MODEL_EXPECT) continue;
        step_encode(client, op, &op->steps[i]);
        request->preludes++;
    }
    head(client, 1);
    word_text(client, "EXEC");
}

static void
scan_encode(struct client *client)
{
    u64 count = prng_range(&client->prng, 1, 40);
    head(client, 4);
    word_text(client, "SCAN");
    char text[24];
    int n = snprintf(text, sizeof(text), "%llu", (unsigned long long)client->scan.cursor);
    word(client, BYTES(text, n));
    word_text(client, "COUNT");
    word_number(client, (i64)count);
}

static void
words_encode(struct client *client, const char *line)
{
    if (prng_chance(&client->prng, 1, 4)) { /* as somebody with telnet does */
        text_add(&client->out, line, strlen(line));
        text_add(&client->out, "\r\n", 2);
        return;
    }
    u32 words = 1;
    for (const char *at = line; *at != '\0'; at++)
        words += *at == ' ';
    head(client, words);
    for (const char *at = line; words > 0; words--) {
        size_t size = strcspn(at, " ");
        word(client, BYTES(at, size));
        at += size + 1;
    }
}

void
resp_encode(struct client *client, struct request *request)
{
    switch (request->kind) {
    case REQUEST_STEP:
        step_encode(client, request->ops[0], &request->ops[0]->steps[0]);
        break;
    case REQUEST_VALUES:
        many_encode(client, request, "MGET", false);
        break;
    case REQUEST_ALL:
        many_encode(client, request, "MSET", true);
        break;
    case REQUEST_SUM:
        many_encode(client, request, "DEL", false);
        break;
    case REQUEST_ALL_NX:
        many_encode(client, request, "MSETNX", true);
        break;
    case REQUEST_EXEC:
        exec_encode(client, request);
        break;
    case REQUEST_CLEAR:
        words_encode(client, "FLUSHDB");
        break;
    case REQUEST_SCAN:
        scan_encode(client);
        break;
    case REQUEST_KEYS:
        words_encode(client, "KEYS *");
        break;
    case REQUEST_COUNT:
        words_encode(client, "DBSIZE");
        break;
    case REQUEST_WATCH:
        head(client, 2);
        word_text(client, "WATCH");
        word(client, key_bytes(client->swap_key));
        break;
    case REQUEST_OTHER:
    case REQUEST_HELLO:
        words_encode(client, request->text);
        break;
    case REQUEST_BATCH:
    case REQUEST_SNAPSHOT:
        break;
    }
}

/* ---- replies ---- */

static struct resp_reply *elements; /* of the reply at hand, flat */
static u32 element_count, element_capacity;

/* Lays out one whole reply. ST_INCOMPLETE: *wanted bytes at least. */
static status
layout(struct bytes data, size_t *consumed, size_t *wanted)
{
    u64 left = 1;
    size_t at = 0;
    element_count = 0;
    while (left > 0) {
        struct bytes rest = BYTES(data.data + at, data.size - at);
        struct resp_reply element;
        size_t size;
        status st = resp_read(rest, &element, &size);
        *wanted = data.size + 1;
        if (status_is(st, ST_INCOMPLETE) && rest.size > 3 && rest.data[0] == '$') {
            const u8 *end = memchr(rest.data, '\n', rest.size);
            if (end != NULL)
                *wanted = at + (size_t)(end - rest.data) + 1 +
                          strtoull((const char *)rest.data + 1, NULL, 10) + 2;
        }
        if (!ok(st)) return st;
        if (element_count == element_capacity) {
            element_capacity = MAX(256u, 2 * element_capacity);
            elements = realloc(elements, element_capacity * sizeof(*elements));
            CHECK(elements != NULL);
        }
        elements[element_count++] = element;
        at += size;
        left--;
        if (element.kind == RESP_REPLY_ARRAY || element.kind == RESP_REPLY_SET ||
            element.kind == RESP_REPLY_PUSH)
            left += (u64)element.integer;
        if (element.kind == RESP_REPLY_MAP) left += 2 * (u64)element.integer;
    }
    *consumed = at;
    return ST_OK;
}

enum verdict { ANSWERED, REFUSED, UNKNOWN, APART, GONE, WRONG };

static bool
begins(const struct resp_reply *reply, const char *text)
{
    size_t size = strlen(text);
    return reply->text.size >= size && memcmp(reply->text.data, text, size) == 0;
}

static enum verdict
error_verdict(const struct resp_reply *reply)
{
    static const char *const refusals[] = {
        "BUSY ",
        "OOM ",
        "MISCONF ",
        "EXECABORT ",
        "ERR the stored data is damaged",
        "ERR reading from the disk failed",
        "ERR the request or its reply is over",
    };
    if (memmem(reply->text.data, reply->text.size, "it is not known whether", 23) != NULL)
        return UNKNOWN;
    /* At the door, for want of memory: what was asked may have an answer of its own no more. */
    if (begins(reply, "ERR max number of clients")) return GONE;
    for (u32 i = 0; i < ARRAY_COUNT(refusals); i++)
        if (begins(reply, refusals[i])) return REFUSED;
    return WRONG;
}

static void
knows_number(struct model_step *step, i64 number)
{
    step->known |= MODEL_KNOWS_NUMBER;
    step->result_number = number;
}

static enum verdict
value_read(struct model_op *op, struct model_step *step, const struct resp_reply *reply)
{
    if (reply->kind != RESP_REPLY_BULK && reply->kind != RESP_REPLY_NULL) return WRONG;
    step->known |= MODEL_KNOWS_VALUE;
    step->result_value =
        reply->kind == RESP_REPLY_NULL ? VALUE_ABSENT : check_value(op, step->key, reply->text);
    return ANSWERED;
}

static enum verdict
get_read(struct client *client, struct model_op *op, struct model_step *step,
         const struct resp_reply *reply)
{
    static const struct resp_reply nothing = {.kind = RESP_REPLY_NULL};
    bool stale = reply->kind == RESP_REPLY_BULK && flaw_strikes(client, RUN_FLAW_STALE_READ, 20);
    return value_read(op, step, stale ? &nothing : reply);
}

static enum verdict
step_read(struct client *client, struct model_op *op, struct model_step *step,
          const struct resp_reply *reply)
{
    bool is_ok = reply->kind == RESP_REPLY_SIMPLE && begins(reply, "OK");
    bool is_number = reply->kind == RESP_REPLY_INTEGER;
    if (reply->kind == RESP_REPLY_ERROR) {
        bool own = (step->kind == MODEL_INCR && (begins(reply, "ERR value is not an integer") ||
                                                 begins(reply, "ERR increment or decrement"))) ||
                   ((step->kind == MODEL_RENAME || step->kind == MODEL_RENAMENX) &&
                    begins(reply, "ERR no such key"));
        if (!own) return error_verdict(reply);
        knows_number(step, MODEL_FAILED);
        return ANSWERED;
    }
    switch ((enum model_kind)step->kind) {
    case MODEL_GET:
        return get_read(client, op, step, reply);
    case MODEL_GETDEL:
        return value_read(op, step, reply);
    case MODEL_PUT:
        if (step->flags & MODEL_GET_OLD) return value_read(op, step, reply);
        if (!is_ok && !is_number && reply->kind != RESP_REPLY_NULL) return WRONG;
        knows_number(step, is_number ? reply->integer : is_ok);
        return ANSWERED;
    case MODEL_RENAME:
        if (!is_ok) return WRONG;
        knows_number(step, 1);
        return ANSWERED;
    case MODEL_DELETE:
    case MODEL_APPEND:
    case MODEL_INCR:
    case MODEL_STRLEN:
    case MODEL_EXPIRE:
    case MODEL_PERSIST:
    case MODEL_TTL:
    case MODEL_RENAMENX:
    case MODEL_COPY:
        if (!is_number) return WRONG;
        knows_number(step, reply->integer);
        return ANSWERED;
    case MODEL_EXPECT:
    case MODEL_CLEAR:
        break;
    }
    return WRONG;
}

static enum verdict
values_read(struct request *request)
{
    u32 at = 1;
    if (elements[0].kind == RESP_REPLY_ERROR) return error_verdict(&elements[0]);
    if (elements[0].kind != RESP_REPLY_ARRAY) return WRONG;
    for (u32 i = 0; i < request->op_count; i++) {
        struct model_op *op = request->ops[i];
        for (u32 k = 0; k < op->step_count; k++, at++) {
            if (at >= element_count) return WRONG;
            enum verdict verdict = value_read(op, &op->steps[k], &elements[at]);
            if (verdict != ANSWERED) return verdict;
        }
    }
    return at == element_count ? ANSWERED : WRONG;
}

static enum verdict
exec_read(struct client *client, struct request *request)
{
    struct model_op *op = request->ops[0];
    bool expects = op->steps[0].kind == MODEL_EXPECT;
    /* MULTI itself was refused, so its commands were done one by one. */
    if (request->spoiled && begins(&elements[0], "ERR EXEC without MULTI")) return APART;
    if (elements[0].kind == RESP_REPLY_ERROR) return error_verdict(&elements[0]);
    if (request->spoiled) return WRONG;
    if (elements[0].kind == RESP_REPLY_NULL && expects) {
        check_watch_aborted(client, request);
        return REFUSED;
    }
    if (elements[0].kind != RESP_REPLY_ARRAY) return WRONG;
    check_watch_done(client, request);
    run->stats.execs++;
    u32 at = 1;
    for (u32 i = 0; i < op->step_count; i++) {
        if (op->steps[i].kind == MODEL_EXPECT) continue;
        if (at >= element_count) return WRONG;
        enum verdict verdict = step_read(client, op, &op->steps[i], &elements[at++]);
        if (verdict != ANSWERED) return WRONG;
    }
    return at == element_count ? ANSWERED : WRONG;
}

/* Of what several owners do, some may have done their part: parts.h. */
static enum verdict
parts_verdict(const struct request *request)
{
    enum verdict verdict = error_verdict(&elements[0]);
    bool may = parts_may_be_done(request->kind == REQUEST_CLEAR, request->op_count, run->shards);
    return verdict == REFUSED && may ? UNKNOWN : verdict;
}

static enum verdict
sum_read(struct request *request)
{
    if (elements[0].kind == RESP_REPLY_ERROR) return parts_verdict(request);
    if (elements[0].kind != RESP_REPLY_INTEGER) return WRONG;
    i64 keys = 0, sum = elements[0].integer;
    for (u32 i = 0; i < request->op_count; i++)
        keys += request->ops[i]->step_count;
    if (sum < 0 || sum > keys) return WRONG;
    for (u32 i = 0; i < request->op_count && (sum == 0 || sum == keys); i++)
        for (u32 k = 0; k < request->ops[i]->step_count; k++)
            knows_number(&request->ops[i]->steps[k], sum != 0);
    return ANSWERED;
}

static enum verdict
scan_page_read(struct client *client)
{
    if (elements[0].kind == RESP_REPLY_ERROR) {
        check_scan_stop(client);
        return error_verdict(&elements[0]);
    }
    if (element_count < 3 || elements[0].integer != 2 || elements[1].kind != RESP_REPLY_BULK)
        return WRONG;
    for (u32 i = 3; i < element_count; i++)
        check_scan_found(client, elements[i].text);
    char text[24] = "";
    memcpy(text, elements[1].text.data, MIN(elements[1].text.size, sizeof(text) - 1));
    client->scan.cursor = strtoull(text, NULL, 10);
    if (client->scan.cursor == 0) {
        check_scan_end(client, false);
    } else if (++client->scan.pages > 10000) {
        violated("scan_endless", "client %u: a scan does not come to its end", client->id);
    }
    return ANSWERED;
}

static enum verdict
keys_read(struct client *client)
{
    if (elements[0].kind == RESP_REPLY_ERROR) {
        check_scan_stop(client);
        return error_verdict(&elements[0]);
    }
    if (elements[0].kind != RESP_REPLY_ARRAY) return WRONG;
    for (u32 i = 1; i < element_count; i++)
        if (elements[i].kind != RESP_REPLY_NULL) check_scan_found(client, elements[i].text);
    if (run_over()) return ANSWERED;
    check_scan_judge(client, true);
    client->scan.opened = ++run->position;
    client->scan.opened_ns = sim_now_ns(run->sim);
    check_instant_end(client);
    return ANSWERED;
}

static enum verdict
count_read(struct client *client, const struct request *request)
{
    if (elements[0].kind == RESP_REPLY_ERROR) return error_verdict(&elements[0]);
    if (elements[0].kind != RESP_REPLY_INTEGER) return WRONG;
    u64 least, most;
    check_count_bounds(client->keyspace, request->begun, &least, &most);
    u64 count = (u64)elements[0].integer;
    if (count < least || count > most)
        violated("count", "client %u: DBSIZE of keyspace %u is %llu, %llu to %llu are there",
                 client->id, client->keyspace, (unsigned long long)count, (unsigned long long)least,
                 (unsigned long long)most);
    return ANSWERED;
}

static enum verdict
reply_read(struct client *client, struct request *request)
{
    const struct resp_reply *first = &elements[0];
    switch (request->kind) {
    case REQUEST_STEP:
        return step_read(client, request->ops[0], &request->ops[0]->steps[0], first);
    case REQUEST_VALUES:
        return values_read(request);
    case REQUEST_EXEC:
        return exec_read(client, request);
    case REQUEST_ALL:
    case REQUEST_CLEAR:
        if (first->kind == RESP_REPLY_ERROR) return parts_verdict(request);
        if (first->kind != RESP_REPLY_SIMPLE) return WRONG;
        for (u32 i = 0; i < request->op_count; i++)
            for (u32 k = 0; k < request->ops[i]->step_count; k++)
                knows_number(&request->ops[i]->steps[k], 1);
        return ANSWERED;
    case REQUEST_SUM:
        return sum_read(request);
    case REQUEST_ALL_NX:
        if (first->kind == RESP_REPLY_ERROR) return error_verdict(first);
        if (first->kind != RESP_REPLY_INTEGER) return WRONG;
        request->ops[0]->all = first->integer == 1 ? MODEL_ALL_DONE : MODEL_ALL_UNDONE;
        return ANSWERED;
    case REQUEST_SCAN:
        return scan_page_read(client);
    case REQUEST_KEYS:
        return keys_read(client);
    case REQUEST_COUNT:
        return count_read(client, request);
    case REQUEST_WATCH:
        if (first->kind == RESP_REPLY_ERROR) return error_verdict(first);
        client->swap = SWAP_WATCHED;
        client->watching = run->position + 1; /* check_end */
        return ANSWERED;
    case REQUEST_OTHER:
        return ANSWERED;
    case REQUEST_HELLO:
        if (first->kind == RESP_REPLY_ERROR) client->broken = true;
        client->greeted = true;
        return ANSWERED;
    case REQUEST_BATCH:
    case REQUEST_SNAPSHOT:
        break;
    }
    return WRONG;
}

static void
settle(struct client *client, struct request *request, enum verdict verdict)
{
    struct bytes text = elements[0].text;
    if (request->kind == REQUEST_STEP && client->swap == SWAP_READS && verdict == ANSWERED) {
        client->swap = SWAP_HAS_READ;
        client->swap_value = request->ops[0]->steps[0].result_value;
    }
    static const char *const words[] = {"is answered", "is refused",    "does not know",
                                        "takes apart", "is thrown out", "is wrong"};
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
    case APART:
        check_apart(client, request);
        break;
    case GONE:
        check_unknown(request);
        client->broken = true;
        break;
    case WRONG: {
        char command[256] = "";
        if (request->op_count > 0)
            model_step_describe(run->model, &request->ops[0]->steps[0], command, sizeof(command));
        violated("reply", "client %u: %s %s is answered with %c%.*s", client->id,
                 request_names[request->kind], request->text != NULL ? request->text : command,
                 "+-:$_*%~>#,="[elements[0].kind], (int)MIN(text.size, 200u),
                 text.data == NULL ? "" : (const char *)text.data);
        check_unknown(request);
        client->broken = true;
        break;
    }
    }
}

/* One whole reply for the first request that waits. */
static void
reply_took(struct client *client)
{
    struct list *first = list_first(&client->pending);
    if (first == NULL) {
        /* A refusal at the door, as with too many clients, comes without a request. */
        if (elements[0].kind != RESP_REPLY_ERROR)
            violated("reply_twice", "client %u gets a reply and has asked for nothing", client->id);
        client->broken = true;
        return;
    }
    struct request *request = list_entry(first, struct request, link);
    if (request->preludes > 0) {
        request->preludes--;
        if (elements[0].kind == RESP_REPLY_ERROR) request->spoiled = true;
        return;
    }
    enum verdict verdict = reply_read(client, request);
    settle(client, request, verdict);
    client->pending_count--;
    request_drop(request);
    if (flaw_strikes(client, RUN_FLAW_TWO_REPLIES, 20)) reply_took(client);
}

size_t
resp_received(struct client *client, struct bytes data)
{
    size_t at = 0;
    while (at < data.size && !client->broken && !run_over()) {
        struct bytes rest = BYTES(data.data + at, data.size - at);
        size_t consumed = 0, wanted = 0;
        status st = layout(rest, &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) {
            io_conn_want(client->conn, wanted);
            break;
        }
        if (!ok(st)) {
            violated("reply_bytes", "client %u is sent bytes that are no RESP", client->id);
            break;
        }
        reply_took(client);
        at += consumed;
    }
    return client->broken || run_over() ? data.size : at;
}
