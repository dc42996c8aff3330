/* SPDX-License-Identifier: MIT
 *
 * bench_proto.c -- question: what do reading a request and writing its reply cost, over RESP and
 * over the native protocol? Keys of 16 bytes, values of 100, sixteen requests in one input, as a
 * pipeline brings them. Per request.
 *
 *   resp.get.plain    resp_parse_plain of "GET key": the way that nearly all requests go
 *   resp.set.plain    of "SET key value"
 *   resp.get.parse    resp_parse of the same, as what is not plain goes
 *   resp.set.parse
 *   resp.mget.parse   resp_parse of an MGET of 100 keys
 *   resp.bulk         the reply to a GET
 *   resp.ok           that to a SET
 *   resp.integer      that to an INCR
 *   native.get.decode frame and request of a GET, two checksums included
 *   native.put.decode of a PUT
 *   native.get.encode the client's side of it
 *   native.put.encode
 *   native.get.reply  the reply to a GET, two checksums included
 *   native.put.reply  that to a PUT
 *   copy.N            memcpy of as many bytes as a GET or a SET has in RESP
 *
 * A checksum of 44 bytes of header costs what crc32c.44 of bench_base says.
 *
 *     bench_proto [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>

#include "micro.h"
#include "proto/native.h"
#include "proto/resp.h"

#define TOGETHER     16u
#define MGET_KEYS    100u
#define VALUE_BYTES  100u
#define GET_BYTES    36u
#define SET_BYTES    143u
#define OUTPUT_BYTES KIB(64)

static struct budget budget;
static struct micro_key *keys;
static u8 value[VALUE_BYTES];
static struct buf out; /* room enough, emptied again and again */

static struct bytes
the_value(void)
{
    return BYTES(value, VALUE_BYTES);
}

/* Empty before it has to grow. */
static void
out_clear_when_full(void)
{
    if (out.size > OUTPUT_BYTES - KIB(1)) {
        micro_keep_all(out.data);
        out.size = 0;
    }
}

/* ---- RESP ---- */

struct input {
    struct buf bytes;
    struct resp_parser parser;
    u32 requests;
};

static void
append(struct buf *buf, struct bytes bytes)
{
    MICRO_CHECK(buf_append(buf, bytes.data, bytes.size));
}

static void
append_bulk(struct buf *buf, struct bytes bytes)
{
    char head[32];
    int size = snprintf(head, sizeof(head), "$%zu\r\n", bytes.size);
    append(buf, BYTES(head, size));
    append(buf, bytes);
    append(buf, BYTES_LITERAL("\r\n"));
}

static void
input_begin(struct input *input, u32 requests)
{
    buf_init(&input->bytes, &budget);
    resp_parser_init(&input->parser, &budget);
    input->requests = requests;
}

static void
input_end(struct input *input)
{
    resp_parser_deinit(&input->parser);
    buf_deinit(&input->bytes);
}

static void
plain_run(void *arg, u64 count)
{
    const struct input *input = arg;
    for (u64 i = 0; i < count; i += input->requests) {
        struct bytes rest = buf_bytes(&input->bytes);
        for (u32 j = 0; j < input->requests; j++) {
            struct resp_plain plain;
            MICRO_CHECK(resp_parse_plain(rest, &plain));
            micro_keep(plain.key.data[0]);
            rest = BYTES(rest.data + plain.size, rest.size - plain.size);
        }
    }
}

static void
parse_run(void *arg, u64 count)
{
    struct input *input = arg;
    for (u64 i = 0; i < count; i += input->requests) {
        struct bytes rest = buf_bytes(&input->bytes);
        for (u32 j = 0; j < input->requests; j++) {
            size_t consumed, wanted;
            MICRO_CHECK(resp_parse(&input->parser, rest, RESP_ARGS_MAX, RESP_BULK_BYTES_MAX,
                                   &consumed, &wanted) == RESP_COMMAND);
            micro_keep(resp_arg(&input->parser, rest, 1).data[0]);
            rest = BYTES(rest.data + consumed, rest.size - consumed);
        }
    }
}

static void
measure_requests(const char *what, struct input *input, bool plain)
{
    char name[64];
    u32 bytes = (u32)(input->bytes.size / input->requests);
    struct micro_case c = {.name = name,
                           .run = plain_run,
                           .arg = input,
                           .count_unit = input->requests,
                           .bytes = bytes};
    if (plain) {
        snprintf(name, sizeof(name), "resp.%s.plain", what);
        micro_measure(&c);
    }
    snprintf(name, sizeof(name), "resp.%s.parse", what);
    c.run = parse_run;
    micro_measure(&c);
}

static void
measure_resp_requests(void)
{
    struct input input;
    input_begin(&input, TOGETHER);
    for (u32 i = 0; i < TOGETHER; i++) {
        append(&input.bytes, BYTES_LITERAL("*2\r\n$3\r\nGET\r\n"));
        append_bulk(&input.bytes, micro_key_bytes(&keys[i]));
    }
    measure_requests("get", &input, true);
    input_end(&input);

    input_begin(&input, TOGETHER);
    for (u32 i = 0; i < TOGETHER; i++) {
        append(&input.bytes, BYTES_LITERAL("*3\r\n$3\r\nSET\r\n"));
        append_bulk(&input.bytes, micro_key_bytes(&keys[i]));
        append_bulk(&input.bytes, the_value());
    }
    measure_requests("set", &input, true);
    input_end(&input);

    input_begin(&input, 1);
    append(&input.bytes, BYTES_LITERAL("*101\r\n$4\r\nMGET\r\n"));
    for (u32 i = 0; i < MGET_KEYS; i++)
        append_bulk(&input.bytes, micro_key_bytes(&keys[i]));
    measure_requests("mget", &input, false);
    input_end(&input);
}

static void
bulk_run(void *arg, u64 count)
{
    struct resp_writer writer = {.out = &out, .version = 2};
    for (u64 i = 0; i < count; i++) {
        out_clear_when_full();
        resp_bulk(&writer, the_value());
    }
    MICRO_CHECK(!writer.failed);
}

static void
ok_run(void *arg, u64 count)
{
    struct resp_writer writer = {.out = &out, .version = 2};
    for (u64 i = 0; i < count; i++) {
        out_clear_when_full();
        resp_ok(&writer);
    }
    MICRO_CHECK(!writer.failed);
}

static void
integer_run(void *arg, u64 count)
{
    struct resp_writer writer = {.out = &out, .version = 2};
    for (u64 i = 0; i < count; i++) {
        out_clear_when_full();
        resp_integer(&writer, (i64)(i * 7919));
    }
    MICRO_CHECK(!writer.failed);
}

/* ---- native ---- */

struct native_case {
    struct native_request request;
    struct native_header header; /* of the request as it arrived */
    struct buf frames;           /* TOGETHER of the request */
};

static void
encode_run(void *arg, u64 count)
{
    const struct native_case *c = arg;
    for (u64 i = 0; i < count; i++) {
        out_clear_when_full();
        MICRO_CHECK(native_request_encode(&out, &c->request));
    }
}

static void
decode_run(void *arg, u64 count)
{
    const struct native_case *c = arg;
    for (u64 i = 0; i < count; i += TOGETHER) {
        struct bytes rest = buf_bytes(&c->frames);
        for (u32 j = 0; j < TOGETHER; j++) {
            struct native_header header;
            struct native_request request;
            struct bytes body;
            size_t consumed, wanted;
            micro_must(native_frame_decode(rest, &header, &body, &consumed, &wanted), "frame");
            micro_must(native_request_decode(&header, body, &request, NULL), "request");
            micro_keep(request.header.request_id);
            rest = BYTES(rest.data + consumed, rest.size - consumed);
        }
    }
}

static void
reply_run(void *arg, u64 count)
{
    const struct native_case *c = arg;
    bool get = c->header.opcode == NATIVE_GET;
    for (u64 i = 0; i < count; i++) {
        out_clear_when_full();
        struct native_reply reply = {.header = native_reply_header(&c->header, 7)};
        if (get) {
            reply.get.version = i;
            reply.get.value = the_value();
        } else {
            reply.written.version = i;
        }
        MICRO_CHECK(native_reply_encode(&out, &reply));
    }
}

static void
measure_native(const char *what, const struct native_request *request)
{
    struct native_case c = {.request = *request};
    buf_init(&c.frames, &budget);
    for (u32 i = 0; i < TOGETHER; i++)
        MICRO_CHECK(native_request_encode(&c.frames, request));
    micro_must(native_header_decode(buf_bytes(&c.frames), &c.header), "header");
    char name[64];
    snprintf(name, sizeof(name), "native.%s.decode", what);
    micro_measure(&(struct micro_case){.name = name,
                                       .run = decode_run,
                                       .arg = &c,
                                       .count_unit = TOGETHER,
                                       .bytes = (u32)(c.frames.size / TOGETHER)});
    snprintf(name, sizeof(name), "native.%s.encode", what);
    micro_measure(&(struct micro_case){.name = name, .run = encode_run, .arg = &c});
    snprintf(name, sizeof(name), "native.%s.reply", what);
    micro_measure(&(struct micro_case){.name = name, .run = reply_run, .arg = &c});
    buf_deinit(&c.frames);
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    budget_init(&budget, "bench", MIB(64), NULL);
    keys = micro_keys(0, MGET_KEYS);
    micro_text(value, VALUE_BYTES, 1);
    buf_init(&out, &budget);
    MICRO_CHECK(buf_reserve(&out, OUTPUT_BYTES));

    measure_resp_requests();
    micro_measure(&(struct micro_case){.name = "resp.bulk", .run = bulk_run});
    micro_measure(&(struct micro_case){.name = "resp.ok", .run = ok_run});
    micro_measure(&(struct micro_case){.name = "resp.integer", .run = integer_run});

    struct bytes key = micro_key_bytes(&keys[0]);
    measure_native("get", &(struct native_request){
                              .header = {.opcode = NATIVE_GET, .request_id = 5, .epoch = 7},
                              .get = {.key = key}});
    measure_native("put", &(struct native_request){
                              .header = {.opcode = NATIVE_PUT, .request_id = 5, .epoch = 7},
                              .id = {{3, 4}},
                              .op = {.kind = NATIVE_OP_PUT, .key = key, .value = the_value()}});
    char name[64];
    snprintf(name, sizeof(name), "copy.%u", GET_BYTES);
    micro_measure_copy(name, GET_BYTES);
    snprintf(name, sizeof(name), "copy.%u", SET_BYTES);
    micro_measure_copy(name, SET_BYTES);
    buf_deinit(&out);
    return micro_end();
}
