/* SPDX-License-Identifier: MIT
 *
 * wire.c -- requests and replies as bytes.
 *
 * A RESP request is a prepared head that ends with the key's prefix, twelve digits, and what
 * follows; for the usual replies (+OK, a bulk string) the general reader is not asked. Native
 * frames are made by src/proto, in place: the buf that it appends to is the send buffer itself.
 */
#include "load/wire.h"

#include <stdio.h>

#include "base/hash.h"
#include "proto/native.h"
#include "proto/resp.h"

/* Longer than any length in decimal, with its frame. */
#define NUMBER_BYTES 32u
/* A page of a scan: what its entries take, with their heads, but no more than this; at least one
 * entry comes. A server sets memory aside for what is asked for. */
#define SCAN_BYTES_MAX   (4u << 20)
#define SCAN_ENTRY_BYTES 128u

static void
text_add(struct text *text, const void *data, size_t size)
{
    CHECK(text->size + size <= sizeof(text->data));
    memcpy(text->data + text->size, data, size);
    text->size += (u32)size;
}

static void
text_print(struct text *text, const char *format, u64 number)
{
    char line[WIRE_HEAD_BYTES];
    /* The formats are this file's. */
    int size = snprintf(line, sizeof(line), format, (unsigned long long)number);
    text_add(text, line, (size_t)size);
}

static void
head_init(struct wire *wire, enum op op, const char *head)
{
    struct text *text = &wire->heads[op];
    text_add(text, head, strlen(head));
    text_print(text, "\r\n$%llu\r\n", wire->prefix_size + KEY_DIGITS);
    text_add(text, wire->prefix, wire->prefix_size);
}

void
wire_init(struct wire *wire, const struct settings *settings, const struct values *values,
          u8 *scratch)
{
    *wire = (struct wire){.protocol = (enum protocol)settings->protocol,
                          .values = values,
                          .ttl_ms = settings->ttl_ms,
                          .database = (u16)settings->database,
                          .prefix_size = (u32)strlen(settings->key_prefix),
                          .scratch = scratch};
    memcpy(wire->prefix, settings->key_prefix, wire->prefix_size);
    if (wire->protocol != PROTOCOL_RESP) return;
    text_add(&wire->heads[OP_PING], "*1\r\n$4\r\nPING\r\n", 14);
    head_init(wire, OP_GET, "*2\r\n$3\r\nGET");
    head_init(wire, OP_DELETE, "*2\r\n$3\r\nDEL");
    head_init(wire, OP_INCR, "*2\r\n$4\r\nINCR");
    const char *set = wire->ttl_ms > 0 ? "*5\r\n$3\r\nSET" : "*3\r\n$3\r\nSET";
    head_init(wire, OP_SET, set);
    head_init(wire, OP_INSERT, set);
    wire->numbers = settings_has(settings, OP_INCR);
    if (wire->numbers)
        text_print(&wire->set_middle, "\r\n$1\r\n%llu", 0);
    else if (values->size_min == values->size_max)
        text_print(&wire->set_middle, "\r\n$%llu\r\n", values->size_min);
    text_add(&wire->set_end, "\r\n", 2);
    if (wire->ttl_ms > 0) {
        char number[NUMBER_BYTES];
        int size = snprintf(number, sizeof(number), "%llu", (unsigned long long)wire->ttl_ms);
        text_print(&wire->set_end, "$2\r\nPX\r\n$%llu\r\n", (u64)size);
        text_add(&wire->set_end, number, (size_t)size);
        text_add(&wire->set_end, "\r\n", 2);
    }
}

/* ---- keys ---- */

static inline void
digits_put(u8 *out, u64 number)
{
    static const char pairs[] =
        "00010203040506070809101112131415161718192021222324252627282930313233"
        "34353637383940414243444546474849505152535455565758596061626364656667"
        "68697071727374757677787980818283848586878889909192939495969798"
        "99";
    u32 high = (u32)(number / 1000000), low = (u32)(number % 1000000);
    memcpy(out + 0, pairs + high / 10000 * 2, 2);
    memcpy(out + 2, pairs + high / 100 % 100 * 2, 2);
    memcpy(out + 4, pairs + high % 100 * 2, 2);
    memcpy(out + 6, pairs + low / 10000 * 2, 2);
    memcpy(out + 8, pairs + low / 100 % 100 * 2, 2);
    memcpy(out + 10, pairs + low % 100 * 2, 2);
}

size_t
wire_key(const struct wire *wire, u64 number, u8 out[WIRE_KEY_BYTES])
{
    memcpy(out, wire->prefix, wire->prefix_size);
    digits_put(out + wire->prefix_size, number);
    return wire->prefix_size + KEY_DIGITS;
}

bool
wire_key_number(const struct wire *wire, struct bytes key, u64 *number_out)
{
    if (key.size != wire->prefix_size + KEY_DIGITS) return false;
    if (memcmp(key.data, wire->prefix, wire->prefix_size) != 0) return false;
    u64 number = 0;
    for (size_t i = wire->prefix_size; i < key.size; i++) {
        if (key.data[i] < '0' || key.data[i] > '9') return false;
        number = number * 10 + (u64)(key.data[i] - '0');
    }
    *number_out = number;
    return true;
}

/* ---- requests ---- */

size_t
wire_request_max(const struct wire *wire, enum op op)
{
    size_t value = op == OP_SET || op == OP_INSERT ? wire->values->size_max : 0;
    return value + WIRE_KEY_BYTES + 2 * WIRE_HEAD_BYTES + NUMBER_BYTES;
}

static inline u8 *
put_text(u8 *out, const struct text *text)
{
    memcpy(out, text->data, text->size);
    return out + text->size;
}

static u8 *
resp_request(const struct wire *wire, const struct request *request, u8 *out)
{
    out = put_text(out, &wire->heads[request->op]);
    if (request->op == OP_PING) return out;
    digits_put(out, request->key);
    out += KEY_DIGITS;
    if (request->op != OP_SET && request->op != OP_INSERT) {
        memcpy(out, "\r\n", 2);
        return out + 2;
    }
    if (wire->set_middle.size > 0)
        out = put_text(out, &wire->set_middle);
    else
        out += snprintf((char *)out, NUMBER_BYTES, "\r\n$%u\r\n", request->value_size);
    if (wire->numbers) return put_text(out, &wire->set_end);
    value_write(wire->values, request->key, request->version, out, request->value_size);
    return put_text(out + request->value_size, &wire->set_end);
}

static u8 *
native_request(const struct wire *wire, const struct request *request, u8 *out)
{
    u8 key_data[WIRE_KEY_BYTES];
    struct bytes key = BYTES(key_data, wire_key(wire, request->key, key_data));
    struct native_request frame = {
        .header = {.request_id = request->id, .keyspace = wire->database}};
    switch (request->op) {
    case OP_PING:
        frame.header.opcode = NATIVE_PING;
        frame.ping.payload = BYTES(NULL, 0);
        break;
    case OP_GET:
        frame.header.opcode = NATIVE_GET;
        frame.get.key = key;
        break;
    case OP_SET:
    case OP_INSERT:
        value_write(wire->values, request->key, request->version, wire->scratch,
                    request->value_size);
        frame.header.opcode = NATIVE_PUT;
        frame.op = (struct native_op){.kind = NATIVE_OP_PUT,
                                      .expiry = wire->ttl_ms > 0 ? NATIVE_EXPIRY_AFTER
                                                                 : NATIVE_EXPIRY_NONE,
                                      .expiry_ms = wire->ttl_ms,
                                      .key = key,
                                      .value = BYTES(wire->scratch, request->value_size)};
        break;
    case OP_DELETE:
        frame.header.opcode = NATIVE_DELETE;
        frame.op = (struct native_op){.kind = NATIVE_OP_DELETE, .key = key};
        break;
    case OP_SCAN:
        frame.header.opcode = NATIVE_SCAN;
        frame.scan.token_first = hash_token(key);
        frame.scan.token_last = UINT64_MAX;
        frame.scan.entries_max = request->entries;
        frame.scan.bytes_max = (u32)MIN(
            (u64)request->entries * (wire->values->size_max + SCAN_ENTRY_BYTES), SCAN_BYTES_MAX);
        break;
    case OP_INCR:
    case OP_RMW:
    case OP_COUNT:
        CHECK(!"not sent over the native protocol");
    }
    /* The capacity is there, so the buf neither grows nor needs a budget. */
    struct buf buf = {.data = out, .capacity = wire_request_max(wire, request->op)};
    CHECK(native_request_encode(&buf, &frame) && buf.data == out);
    return out + buf.size;
}

u8 *
wire_request(const struct wire *wire, const struct request *request, u8 *out)
{
    return wire->protocol == PROTOCOL_RESP ? resp_request(wire, request, out)
                                           : native_request(wire, request, out);
}

/* ---- replies ---- */

static struct bytes
first_word(struct bytes text)
{
    const u8 *space = text.size == 0 ? NULL : memchr(text.data, ' ', text.size);
    return space == NULL ? text : BYTES(text.data, space - text.data);
}

static status
resp_reply_general(struct bytes data, struct reply *out, size_t *consumed_out)
{
    struct resp_reply reply;
    status st = resp_read(data, &reply, consumed_out);
    if (!ok(st)) return st;
    switch (reply.kind) {
    case RESP_REPLY_SIMPLE:
        out->kind = REPLY_OK;
        return ST_OK;
    case RESP_REPLY_ERROR:
        out->kind = REPLY_ERROR;
        out->text = reply.text;
        out->value = first_word(reply.text);
        return ST_OK;
    case RESP_REPLY_BULK:
    case RESP_REPLY_VERBATIM:
        out->kind = REPLY_VALUE;
        out->value = reply.text;
        return ST_OK;
    case RESP_REPLY_NULL:
        out->kind = REPLY_NONE;
        return ST_OK;
    case RESP_REPLY_INTEGER:
    case RESP_REPLY_BOOL:
        out->kind = REPLY_INTEGER;
        out->integer = reply.integer;
        return ST_OK;
    case RESP_REPLY_DOUBLE:
    case RESP_REPLY_ARRAY:
    case RESP_REPLY_MAP:
    case RESP_REPLY_SET:
    case RESP_REPLY_PUSH:
        break;
    }
    return ST_CORRUPT; /* nothing that we ask for is answered so */
}

static status
resp_reply(struct bytes data, struct reply *out, size_t *consumed_out, size_t *wanted_out)
{
    *wanted_out = data.size + 1;
    if (data.size < 3) return ST_INCOMPLETE;
    const u8 *at = data.data;
    if (at[0] == '+' && data.size >= 5 && memcmp(at, "+OK\r\n", 5) == 0) {
        out->kind = REPLY_OK;
        *consumed_out = 5;
        return ST_OK;
    }
    if (at[0] != '$' || at[1] == '-') return resp_reply_general(data, out, consumed_out);
    size_t i = 1, size = 0;
    for (; i < data.size && at[i] >= '0' && at[i] <= '9'; i++) {
        size = size * 10 + (size_t)(at[i] - '0');
        if (size > VALUE_BYTES_MAX * 2) return ST_CORRUPT;
    }
    if (i + 2 > data.size) return ST_INCOMPLETE;
    if (i == 1 || at[i] != '\r' || at[i + 1] != '\n') return ST_CORRUPT;
    size_t total = i + 2 + size + 2;
    if (data.size < total) {
        *wanted_out = total;
        return ST_INCOMPLETE;
    }
    if (at[total - 2] != '\r' || at[total - 1] != '\n') return ST_CORRUPT;
    out->kind = REPLY_VALUE;
    out->value = BYTES(at + i + 2, size);
    *consumed_out = total;
    return ST_OK;
}

static status
native_reply(struct bytes data, struct reply *out, size_t *consumed_out, size_t *wanted_out)
{
    struct native_header header;
    struct bytes body;
    status st = native_frame_decode(data, &header, &body, consumed_out, wanted_out);
    if (!ok(st)) return status_is(st, ST_INCOMPLETE) ? st : ST_CORRUPT;
    struct native_reply reply;
    if (!ok(native_reply_decode(&header, body, &reply))) return ST_CORRUPT;
    out->id = header.request_id;
    if (header.status == NATIVE_ST_NOT_FOUND) {
        out->kind = REPLY_NONE;
        return ST_OK;
    }
    if (header.status != NATIVE_ST_OK) {
        const char *name = native_status_name(header.status);
        out->kind = REPLY_ERROR;
        out->value = BYTES(name, strlen(name));
        out->text = reply.error.text;
        return ST_OK;
    }
    if (header.opcode == NATIVE_GET) {
        out->kind = REPLY_VALUE;
        out->value = reply.get.value;
    } else if (header.opcode == NATIVE_SCAN) {
        out->kind = REPLY_ENTRIES;
        out->value = reply.scan.entries;
        out->entries = reply.scan.count;
    } else {
        out->kind = REPLY_OK;
    }
    return ST_OK;
}

status
wire_reply(const struct wire *wire, struct bytes data, struct reply *out, size_t *consumed_out,
           size_t *wanted_out)
{
    if (data.size == 0) {
        *wanted_out = 1;
        return ST_INCOMPLETE;
    }
    return wire->protocol == PROTOCOL_RESP ? resp_reply(data, out, consumed_out, wanted_out)
                                           : native_reply(data, out, consumed_out, wanted_out);
}

/* ---- the beginning of a connection ---- */

static size_t
resp_hello(const struct settings *settings, u8 *out, u32 *replies_out)
{
    char *text = (char *)out;
    size_t used = 0;
    const char *user = settings->user, *password = settings->password;
    *replies_out = 0;
    if (password[0] != '\0') {
        used += (size_t)snprintf(text, WIRE_HELLO_BYTES, "*%d\r\n$4\r\nAUTH\r\n",
                                 user[0] != '\0' ? 3 : 2);
        if (user[0] != '\0')
            used += (size_t)snprintf(text + used, WIRE_HELLO_BYTES - used, "$%zu\r\n%s\r\n",
                                     strlen(user), user);
        used += (size_t)snprintf(text + used, WIRE_HELLO_BYTES - used, "$%zu\r\n%s\r\n",
                                 strlen(password), password);
        (*replies_out)++;
    }
    if (settings->database > 0) {
        char number[NUMBER_BYTES];
        int size = snprintf(number, sizeof(number), "%llu", (unsigned long long)settings->database);
        used += (size_t)snprintf(text + used, WIRE_HELLO_BYTES - used,
                                 "*2\r\n$6\r\nSELECT\r\n$%d\r\n%s\r\n", size, number);
        (*replies_out)++;
    }
    CHECK(used < WIRE_HELLO_BYTES);
    return used;
}

static size_t
native_hello(const struct settings *settings, u16 database, u64 features, u8 *out)
{
    struct native_request frame = {
        .header = {.opcode = NATIVE_HELLO, .request_id = 1, .keyspace = database},
        .hello = {.version_min = NATIVE_VERSION,
                  .version_max = NATIVE_VERSION,
                  .features = features,
                  .client_name = BYTES_LITERAL("distkv-bench"),
                  .user = BYTES(settings->user, strlen(settings->user)),
                  .password = BYTES(settings->password, strlen(settings->password))}};
    struct buf buf = {.data = out, .capacity = WIRE_HELLO_BYTES};
    CHECK(native_request_encode(&buf, &frame) && buf.data == out);
    return buf.size;
}

size_t
wire_hello_topology(const struct settings *settings, u8 out[WIRE_HELLO_BYTES])
{
    return native_hello(settings, 0, NATIVE_FEATURE_TOPOLOGY, out);
}

size_t
wire_hello(const struct wire *wire, const struct settings *settings, u8 *out, u32 *replies_out)
{
    if (wire->protocol == PROTOCOL_RESP) return resp_hello(settings, out, replies_out);
    *replies_out = 1;
    return native_hello(settings, wire->database, 0, out);
}
