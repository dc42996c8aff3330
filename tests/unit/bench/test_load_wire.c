/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "base/hash.h"
#include "load/wire.h"
#include "proto/native.h"
#include "proto/resp.h"

static struct settings settings;
static struct values values;
static struct wire wire;
static u8 scratch[4096], out[8192];
static const char *workload = "mixed";

static void
set_up(const char *size, u64 protocol, u64 ttl_ms)
{
    char error[OPTION_ERROR_BYTES];
    settings_defaults(&settings);
    settings.workload = 0;
    while (strcmp(workload_names[settings.workload], workload) != 0)
        settings.workload++;
    snprintf(settings.value_size, sizeof(settings.value_size), "%s", size);
    settings.protocol = protocol;
    settings.ttl_ms = ttl_ms;
    assert_true(settings_finish(&settings, error, sizeof(error)));
    values_init(&values, settings.value_min, settings.value_max, 0, 5);
    wire_init(&wire, &settings, &values, scratch);
}

static size_t
request_bytes(enum op op, u64 key)
{
    struct request request = {.op = op, .key = key, .version = 3, .entries = 17, .id = 99};
    request.value_size = value_size(&values, key, 3);
    memset(out, 0xee, sizeof(out));
    size_t size = (size_t)(wire_request(&wire, &request, out) - out);
    assert_true(size <= wire_request_max(&wire, op));
    assert_true(out[size] == 0xee);
    return size;
}

static void
resp_words(enum op op, const char *const *words, u32 count)
{
    struct budget budget;
    budget_init(&budget, "test", MIB(1), NULL);
    struct resp_parser parser;
    resp_parser_init(&parser, &budget);
    size_t size = request_bytes(op, 1234567), consumed, wanted;
    assert_int_equal(resp_parse(&parser, BYTES(out, size), RESP_ARGS_MAX, RESP_BULK_BYTES_MAX,
                                &consumed, &wanted),
                     RESP_COMMAND);
    assert_int_equal(consumed, size);
    assert_int_equal(parser.arg_count, count);
    for (u32 i = 0; i < count; i++) {
        struct bytes arg = resp_arg(&parser, BYTES(out, size), i);
        if (words[i] == NULL) { /* the value */
            struct value_stamp stamp;
            assert_int_equal(value_judge(&values, 1234567, arg, &stamp), VALUE_RIGHT);
            continue;
        }
        assert_true(bytes_equal(arg, BYTES(words[i], strlen(words[i]))));
    }
    resp_parser_deinit(&parser);
    assert_int_equal(budget.used_bytes, 0);
}

static void
resp_requests_are_commands(void **state)
{
    static const char *const key = "key:000001234567";
    static const char *const sizes[] = {"24", "100", "24-999", "1000-4096"};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        set_up(sizes[i], PROTOCOL_RESP, 0);
        resp_words(OP_SET, (const char *const[]){"SET", key, NULL}, 3);
        resp_words(OP_INSERT, (const char *const[]){"SET", key, NULL}, 3);
        set_up(sizes[i], PROTOCOL_RESP, 60000);
        resp_words(OP_SET, (const char *const[]){"SET", key, NULL, "PX", "60000"}, 5);
    }
    resp_words(OP_GET, (const char *const[]){"GET", key}, 2);
    resp_words(OP_DELETE, (const char *const[]){"DEL", key}, 2);
    resp_words(OP_INCR, (const char *const[]){"INCR", key}, 2);
    resp_words(OP_PING, (const char *const[]){"PING"}, 1);
}

/* What --load writes there can be counted up. */
static void
incr_fills_with_numbers(void **state)
{
    static const char *const key = "key:000001234567";
    static const char *const sizes[] = {"100", "8-999"};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        workload = "incr";
        set_up(sizes[i], PROTOCOL_RESP, 0);
        resp_words(OP_SET, (const char *const[]){"SET", key, "0"}, 3);
        resp_words(OP_INCR, (const char *const[]){"INCR", key}, 2);
        set_up(sizes[i], PROTOCOL_RESP, 60000);
        resp_words(OP_SET, (const char *const[]){"SET", key, "0", "PX", "60000"}, 5);
        workload = "mixed";
    }
}

static void
keys_are_numbers_behind_a_prefix(void **state)
{
    static const u64 numbers[] = {0, 1, 99, 100, 999999, 1000000, 123456789012, 999999999999};
    set_up("100", PROTOCOL_RESP, 0);
    for (u32 i = 0; i < ARRAY_COUNT(numbers); i++) {
        u8 key[WIRE_KEY_BYTES];
        char wanted[32];
        size_t size = wire_key(&wire, numbers[i], key);
        snprintf(wanted, sizeof(wanted), "key:%012llu", (unsigned long long)numbers[i]);
        assert_true(bytes_equal(BYTES(key, size), BYTES(wanted, strlen(wanted))));
        u64 number;
        assert_true(wire_key_number(&wire, BYTES(key, size), &number) && number == numbers[i]);
        assert_false(wire_key_number(&wire, BYTES(key, size - 1), &number));
        key[size - 1] = 'x';
        assert_false(wire_key_number(&wire, BYTES(key, size), &number));
    }
}

static void
native_is(enum op op, u32 opcode, struct native_request *request)
{
    struct native_header header;
    struct bytes body;
    size_t consumed, wanted;
    size_t size = request_bytes(op, 1234567);
    assert_true(ok(native_frame_decode(BYTES(out, size), &header, &body, &consumed, &wanted)));
    assert_int_equal(consumed, size);
    assert_int_equal(header.opcode, opcode);
    assert_int_equal(header.request_id, 99);
    assert_true(ok(native_request_decode(&header, body, request, NULL)));
}

static void
native_requests_are_frames(void **state)
{
    struct native_request request;
    struct value_stamp stamp;
    struct bytes key = BYTES_LITERAL("key:000001234567");
    set_up("24-4000", PROTOCOL_NATIVE, 5000);
    native_is(OP_SET, NATIVE_PUT, &request);
    assert_true(bytes_equal(request.op.key, key));
    assert_int_equal(value_judge(&values, 1234567, request.op.value, &stamp), VALUE_RIGHT);
    assert_int_equal(request.op.expiry, NATIVE_EXPIRY_AFTER);
    assert_int_equal(request.op.expiry_ms, 5000);
    native_is(OP_INSERT, NATIVE_PUT, &request);
    native_is(OP_GET, NATIVE_GET, &request);
    assert_true(bytes_equal(request.get.key, key));
    native_is(OP_DELETE, NATIVE_DELETE, &request);
    native_is(OP_PING, NATIVE_PING, &request);
    native_is(OP_SCAN, NATIVE_SCAN, &request);
    assert_int_equal(request.scan.entries_max, 17);
    assert_true(request.scan.token_first == hash_token(key));
}

/* The reply that data begins with, after it was incomplete at every shorter length. */
static struct reply
reply_of(const void *data, size_t size)
{
    struct reply reply = {0};
    size_t consumed = 0, wanted = 0;
    for (size_t cut = 0; cut < size; cut++) {
        status st = wire_reply(&wire, BYTES(data, cut), &reply, &consumed, &wanted);
        assert_true(status_is(st, ST_INCOMPLETE));
        assert_true(wanted > cut && wanted <= size);
    }
    assert_true(ok(wire_reply(&wire, BYTES(data, size), &reply, &consumed, &wanted)));
    assert_int_equal(consumed, size);
    return reply;
}

#define REPLY(text) reply_of(text, sizeof(text) - 1)

static void
resp_replies_are_read_at_every_cut(void **state)
{
    set_up("100", PROTOCOL_RESP, 0);
    assert_int_equal(REPLY("+OK\r\n").kind, REPLY_OK);
    assert_int_equal(REPLY("+PONG\r\n").kind, REPLY_OK);
    assert_int_equal(REPLY("$-1\r\n").kind, REPLY_NONE);
    assert_int_equal(REPLY("_\r\n").kind, REPLY_NONE);
    struct reply reply = REPLY(":-17\r\n");
    assert_true(reply.kind == REPLY_INTEGER && reply.integer == -17);
    reply = REPLY("$5\r\na\r\nbc\r\n");
    assert_true(reply.kind == REPLY_VALUE && bytes_equal(reply.value, BYTES_LITERAL("a\r\nbc")));
    reply = REPLY("$0\r\n\r\n");
    assert_true(reply.kind == REPLY_VALUE && reply.value.size == 0);
    reply = REPLY("-OOM command not allowed\r\n");
    assert_int_equal(reply.kind, REPLY_ERROR);
    assert_true(bytes_equal(reply.value, BYTES_LITERAL("OOM")));
    assert_true(bytes_equal(reply.text, BYTES_LITERAL("OOM command not allowed")));
}

static void
what_is_no_reply_is_corrupt(void **state)
{
    static const char *const bad[] = {
        "$5\r\nabcdefg",     "$x\r\n",   "hello\r\n", "$99999999999\r\n",
        "*1\r\n$1\r\na\r\n", "$3\rxabc", "$\r\n\r\n"};
    set_up("100", PROTOCOL_RESP, 0);
    for (u32 i = 0; i < ARRAY_COUNT(bad); i++) {
        struct reply reply;
        size_t consumed, wanted;
        status st = wire_reply(&wire, BYTES(bad[i], strlen(bad[i])), &reply, &consumed, &wanted);
        if (!status_is(st, ST_CORRUPT)) fail_msg("taken: %s", bad[i]);
    }
}

static void
native_replies_are_read(void **state)
{
    struct budget budget;
    struct buf buf;
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&buf, &budget);
    set_up("100", PROTOCOL_NATIVE, 0);
    struct native_reply get = {
        .header = {.opcode = NATIVE_GET, .flags = NATIVE_FLAG_REPLY, .request_id = 7},
        .get = {.version = 1, .value = BYTES_LITERAL("abc")}};
    assert_true(native_reply_encode(&buf, &get));
    struct reply reply = reply_of(buf.data, buf.size);
    assert_true(reply.kind == REPLY_VALUE && reply.id == 7);
    assert_true(bytes_equal(reply.value, BYTES_LITERAL("abc")));

    buf.size = 0;
    struct native_header asked = {.opcode = NATIVE_GET, .request_id = 8};
    assert_true(native_reply_error(&buf, &asked, NATIVE_ST_NOT_FOUND, 0, 0, "none"));
    assert_int_equal(reply_of(buf.data, buf.size).kind, REPLY_NONE);

    buf.size = 0;
    assert_true(native_reply_error(&buf, &asked, NATIVE_ST_OVERLOADED, 0, 0, "busy"));
    reply = reply_of(buf.data, buf.size);
    assert_true(reply.kind == REPLY_ERROR && reply.id == 8);
    assert_true(bytes_equal(reply.value, BYTES_LITERAL("OVERLOADED")));

    buf.data[buf.size - 1] ^= 1;
    size_t consumed, wanted;
    assert_true(
        status_is(wire_reply(&wire, buf_bytes(&buf), &reply, &consumed, &wanted), ST_CORRUPT));
    buf_deinit(&buf);
}

static void
a_connection_begins_with_what_it_needs(void **state)
{
    u8 hello[WIRE_HELLO_BYTES];
    u32 replies;
    set_up("100", PROTOCOL_RESP, 0);
    assert_int_equal(wire_hello(&wire, &settings, hello, &replies), 0);
    assert_int_equal(replies, 0);
    snprintf(settings.password, sizeof(settings.password), "secret");
    settings.database = 12;
    static const char wanted[] =
        "*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n*2\r\n$6\r\nSELECT\r\n$2\r\n12\r\n";
    size_t size = wire_hello(&wire, &settings, hello, &replies);
    assert_true(bytes_equal(BYTES(hello, size), BYTES_LITERAL(wanted)));
    assert_int_equal(replies, 2);
    snprintf(settings.user, sizeof(settings.user), "joe");
    size = wire_hello(&wire, &settings, hello, &replies);
    static const char with_user[] = "*3\r\n$4\r\nAUTH\r\n$3\r\njoe\r\n$6\r\nsecret\r\n";
    assert_true(size > sizeof(with_user) - 1);
    assert_memory_equal(hello, with_user, sizeof(with_user) - 1);

    struct native_header header;
    struct native_request request;
    struct bytes body;
    size_t consumed, more;
    set_up("100", PROTOCOL_NATIVE, 0);
    size = wire_hello(&wire, &settings, hello, &replies);
    assert_int_equal(replies, 1);
    assert_true(ok(native_frame_decode(BYTES(hello, size), &header, &body, &consumed, &more)));
    assert_true(ok(native_request_decode(&header, body, &request, NULL)));
    assert_int_equal(header.opcode, NATIVE_HELLO);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resp_requests_are_commands),
        cmocka_unit_test(incr_fills_with_numbers),
        cmocka_unit_test(keys_are_numbers_behind_a_prefix),
        cmocka_unit_test(native_requests_are_frames),
        cmocka_unit_test(resp_replies_are_read_at_every_cut),
        cmocka_unit_test(what_is_no_reply_is_corrupt),
        cmocka_unit_test(native_replies_are_read),
        cmocka_unit_test(a_connection_begins_with_what_it_needs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
