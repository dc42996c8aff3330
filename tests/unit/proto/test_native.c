/* SPDX-License-Identifier: MIT
 *
 * test_native.c -- native frames: every request and reply comes back as it went in, and no byte of
 * a frame can be lost or flipped without being noticed.
 */
#include "base/crc.h"
#include "proto/native.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static struct budget budget;
static struct buf out, part, more;

static int
setup(void **state)
{
    (void)state;
    budget_init(&budget, "test", MIB(64), NULL);
    buf_init(&out, &budget);
    buf_init(&part, &budget);
    buf_init(&more, &budget);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    buf_deinit(&out);
    buf_deinit(&part);
    buf_deinit(&more);
    return budget.used_bytes == 0 ? 0 : -1;
}

static void
assert_bytes(struct bytes got, const char *expected)
{
    assert_int_equal(got.size, strlen(expected));
    if (got.size > 0) assert_memory_equal(got.data, expected, got.size);
}

static struct native_op
op_put(const char *key, const char *value)
{
    return (struct native_op){.kind = NATIVE_OP_PUT,
                              .key = BYTES(key, strlen(key)),
                              .value = BYTES(value, strlen(value))};
}

static struct native_header
header_of(enum native_opcode opcode)
{
    return (struct native_header){.opcode = (u8)opcode,
                                  .request_id = 0x1122334455667788ull,
                                  .epoch = 7,
                                  .timeout_ms = 1500,
                                  .keyspace = 3};
}

/* One request of each opcode into out; returns how many. */
static u32
encode_all_requests(void)
{
    u32 count = 0;
    struct native_id id = {{0xaaaaaaaaaaaaaaaaull, 5}};
#define ENCODE(op, ...)                                                                            \
    do {                                                                                           \
        struct native_request request = {.header = header_of(op), __VA_ARGS__};                    \
        assert_true(native_request_encode(&out, &request));                                        \
        count++;                                                                                   \
    } while (0)
    ENCODE(NATIVE_HELLO, .hello = {.version_min = 1,
                                   .version_max = 2,
                                   .client_name = BYTES_LITERAL("test"),
                                   .user = BYTES_LITERAL("u"),
                                   .password = BYTES_LITERAL("pw")});
    ENCODE(NATIVE_PING, .ping = {.payload = BYTES_LITERAL("hello")});
    ENCODE(NATIVE_GET, .get = {.key = BYTES_LITERAL("k1")});
    ENCODE(NATIVE_PUT, .id = id,
           .op = {.kind = NATIVE_OP_PUT,
                  .condition = NATIVE_IF_VERSION,
                  .version = 99,
                  .expiry = NATIVE_EXPIRY_AFTER,
                  .expiry_ms = 1000,
                  .key = BYTES_LITERAL("k2"),
                  .value = BYTES_LITERAL("v2")});
    ENCODE(NATIVE_DELETE, .id = id,
           .op = {.kind = NATIVE_OP_DELETE,
                  .condition = NATIVE_IF_PRESENT,
                  .key = BYTES_LITERAL("k3")});
    part.size = 0;
    struct native_op op = op_put("{t}a", "1");
    assert_true(native_batch_add(&part, &op));
    op = op_put("{t}b", "");
    assert_true(native_batch_add(&part, &op));
    op = (struct native_op){.kind = NATIVE_OP_DELETE, .key = BYTES_LITERAL("{t}c")};
    assert_true(native_batch_add(&part, &op));
    ENCODE(NATIVE_BATCH, .id = id, .batch = {.count = 3, .ops = buf_bytes(&part)});
    ENCODE(NATIVE_SCAN, .scan = {.snapshot = 4,
                                 .token_first = 10,
                                 .token_last = UINT64_MAX,
                                 .after = {.given = true, .token = 11, .key = BYTES_LITERAL("k")},
                                 .entries_max = 100,
                                 .bytes_max = 4096,
                                 .flags = NATIVE_SCAN_KEYS_ONLY,
                                 .match = NATIVE_MATCH_PREFIX,
                                 .pattern = BYTES_LITERAL("user:")});
    ENCODE(NATIVE_SNAPSHOT_OPEN, .snapshot_open = {.lease_ms = 60000});
    ENCODE(NATIVE_SNAPSHOT_CLOSE, .snapshot_close = {.snapshot = 12});
    ENCODE(NATIVE_TTL, .ttl = {.key = BYTES_LITERAL("k4")});
    ENCODE(NATIVE_EXPIRE, .id = id,
           .expire = {.expiry = NATIVE_EXPIRY_AT, .expiry_ms = 123456, .key = BYTES_LITERAL("k5")});
    ENCODE(NATIVE_COUNT, .count = {.exact = true});
    ENCODE(NATIVE_STATUS, .ping = {.payload = BYTES(NULL, 0)});
    ENCODE(NATIVE_GET_SIBLINGS, .get = {.key = BYTES_LITERAL("k6")});
    ENCODE(NATIVE_PUT_SIBLINGS, .id = id,
           .siblings = {.kind = NATIVE_OP_PUT,
                        .key = BYTES_LITERAL("k7"),
                        .context = BYTES_LITERAL("seen"),
                        .value = BYTES_LITERAL("v7")});
    ENCODE(NATIVE_CLUSTER, .cluster = {.function = NATIVE_CLUSTER_KEYSPACE_SET,
                                       .flags = NATIVE_CLUSTER_CREATE | NATIVE_CLUSTER_NOT_SLOPPY,
                                       .conflict = 1,
                                       .replicas = 2,
                                       .keyspace = NATIVE_CLUSTER_KEYSPACE_ANY,
                                       .name = BYTES_LITERAL("orders")});
    ENCODE(NATIVE_TOPOLOGY, .topology = {.epoch = 41});
    return count;
}

static void
requests_come_back_as_they_went_in(void **state)
{
    (void)state;
    u32 count = encode_all_requests();
    assert_int_equal(count, NATIVE_OPCODE_MAX);
    struct bytes rest = buf_bytes(&out);
    for (u32 opcode = 1; opcode <= count; opcode++) {
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted;
        struct native_request r;
        const char *error = NULL;
        assert_true(ok(native_frame_decode(rest, &header, &body, &consumed, &wanted)));
        assert_true(ok(native_request_decode(&header, body, &r, &error)));
        assert_null(error);
        assert_int_equal(r.header.opcode, opcode);
        assert_true(r.header.request_id == 0x1122334455667788ull);
        assert_int_equal(r.header.epoch, 7);
        assert_int_equal(r.header.timeout_ms, 1500);
        assert_int_equal(r.header.keyspace, 3);
        assert_int_equal(native_id_given(&r.id), native_opcode_writes(opcode));
        switch ((enum native_opcode)opcode) {
        case NATIVE_HELLO:
            assert_int_equal(r.hello.version_max, 2);
            assert_bytes(r.hello.client_name, "test");
            assert_bytes(r.hello.user, "u");
            assert_bytes(r.hello.password, "pw");
            break;
        case NATIVE_PING:
            assert_bytes(r.ping.payload, "hello");
            break;
        case NATIVE_GET:
            assert_bytes(r.get.key, "k1");
            break;
        case NATIVE_PUT:
            assert_int_equal(r.op.condition, NATIVE_IF_VERSION);
            assert_int_equal(r.op.version, 99);
            assert_int_equal(r.op.expiry_ms, 1000);
            assert_bytes(r.op.key, "k2");
            assert_bytes(r.op.value, "v2");
            break;
        case NATIVE_DELETE:
            assert_int_equal(r.op.condition, NATIVE_IF_PRESENT);
            assert_bytes(r.op.key, "k3");
            break;
        case NATIVE_BATCH: {
            static const char *const keys[] = {"{t}a", "{t}b", "{t}c"};
            struct native_op op;
            u32 i = 0;
            for (struct bytes ops = r.batch.ops; native_batch_next(&ops, &op); i++)
                assert_bytes(op.key, keys[i]);
            assert_int_equal(i, 3);
            break;
        }
        case NATIVE_SCAN:
            assert_int_equal(r.scan.snapshot, 4);
            assert_true(r.scan.token_last == UINT64_MAX);
            assert_true(r.scan.after.given);
            assert_int_equal(r.scan.after.token, 11);
            assert_bytes(r.scan.after.key, "k");
            assert_bytes(r.scan.pattern, "user:");
            break;
        case NATIVE_SNAPSHOT_OPEN:
            assert_int_equal(r.snapshot_open.lease_ms, 60000);
            break;
        case NATIVE_SNAPSHOT_CLOSE:
            assert_int_equal(r.snapshot_close.snapshot, 12);
            break;
        case NATIVE_TTL:
            assert_bytes(r.ttl.key, "k4");
            break;
        case NATIVE_EXPIRE:
            assert_int_equal(r.expire.expiry_ms, 123456);
            assert_bytes(r.expire.key, "k5");
            break;
        case NATIVE_COUNT:
            assert_true(r.count.exact);
            break;
        case NATIVE_STATUS:
            break;
        case NATIVE_GET_SIBLINGS:
            assert_bytes(r.get.key, "k6");
            break;
        case NATIVE_PUT_SIBLINGS:
            assert_int_equal(r.siblings.kind, NATIVE_OP_PUT);
            assert_bytes(r.siblings.key, "k7");
            assert_bytes(r.siblings.context, "seen");
            assert_bytes(r.siblings.value, "v7");
            break;
        case NATIVE_CLUSTER:
            assert_int_equal(r.cluster.function, NATIVE_CLUSTER_KEYSPACE_SET);
            assert_int_equal(r.cluster.keyspace, NATIVE_CLUSTER_KEYSPACE_ANY);
            assert_bytes(r.cluster.name, "orders");
            break;
        case NATIVE_TOPOLOGY:
            assert_int_equal(r.topology.epoch, 41);
            break;
        }
        rest = BYTES(rest.data + consumed, rest.size - consumed);
    }
    assert_int_equal(rest.size, 0);
}

static struct native_reply
reply_to(enum native_opcode opcode)
{
    struct native_header request = header_of(opcode);
    return (struct native_reply){.header = native_reply_header(&request, 8)};
}

/* Two nodes, four partitions of two places; the last one has one replica only. */
static void
topology_of(struct native_topology_reply *topology)
{
    static const u16 rows[] = {0, 1, 1, 0, 0, 1, 1, NATIVE_TOPOLOGY_NOBODY};
    part.size = 0;
    more.size = 0;
    struct native_node node = {.id = BYTES_LITERAL("n1"),
                               .host = BYTES_LITERAL("10.0.0.1"),
                               .port = 8080,
                               .shard_count = 4,
                               .shard_port = 8081};
    assert_true(native_topology_add_node(&part, &node));
    node = (struct native_node){.id = BYTES_LITERAL("n2"),
                                .host = BYTES_LITERAL("10.0.0.2"),
                                .port = 8080,
                                .shard_count = 2};
    assert_true(native_topology_add_node(&part, &node));
    for (u32 i = 0; i < ARRAY_COUNT(rows); i++)
        assert_true(native_topology_add_place(&more, rows[i]));
    *topology = (struct native_topology_reply){.epoch = 42,
                                               .node_count = 2,
                                               .width = 2,
                                               .partition_count = 4,
                                               .nodes = buf_bytes(&part),
                                               .rows = buf_bytes(&more)};
}

/* One reply of each opcode into out, and an error. */
static void
encode_all_replies(void)
{
    struct native_reply reply = reply_to(NATIVE_HELLO);
    part.size = 0;
    more.size = 0;
    struct native_node node = {.id = BYTES_LITERAL("node1"),
                               .host = BYTES_LITERAL("127.0.0.1"),
                               .port = 8080,
                               .shard_count = 2};
    assert_true(native_hello_add_node(&part, &node));
    struct native_slot_range range = {.slot_first = 0, .slot_last = 8191};
    assert_true(native_hello_add_range(&more, &range));
    range = (struct native_slot_range){.slot_first = 8192, .slot_last = 16383, .shard = 1};
    assert_true(native_hello_add_range(&more, &range));
    reply.hello = (struct native_hello_reply){.version = 1,
                                              .run_id = 77,
                                              .connection_id = 5,
                                              .time_ms = 1000,
                                              .key_bytes_max = LIMIT_KEY_BYTES,
                                              .value_bytes_max = LIMIT_VALUE_BYTES,
                                              .batch_ops_max = LIMIT_BATCH_OPS,
                                              .batch_bytes_max = LIMIT_BATCH_BYTES,
                                              .body_bytes_max = NATIVE_BODY_BYTES_MAX,
                                              .in_flight_max = 1024,
                                              .idempotency_ms = 60000,
                                              .keyspaces = 16,
                                              .partition_count = 4096,
                                              .node_id = BYTES_LITERAL("node1"),
                                              .server_version = BYTES_LITERAL("0.1.0"),
                                              .node_count = 1,
                                              .range_count = 2,
                                              .nodes = buf_bytes(&part),
                                              .ranges = buf_bytes(&more)};
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_PING);
    reply.ping.payload = BYTES_LITERAL("hello");
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_GET);
    reply.get.version = 1;
    reply.get.expire_ms = 2;
    reply.get.value = BYTES_LITERAL("value");
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_PUT);
    reply.header.flags |= NATIVE_FLAG_REPLAYED;
    reply.written.version = 3;
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_DELETE);
    reply.written.existed = true;
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_BATCH);
    reply.written.version = 4;
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_SCAN);
    part.size = 0;
    struct native_scan_entry entry = {.version = 1,
                                      .expire_ms = 9,
                                      .key = BYTES_LITERAL("a"),
                                      .value = BYTES_LITERAL("one"),
                                      .has_value = true};
    assert_true(native_scan_add(&part, &entry));
    assert_int_equal(part.size, native_scan_entry_bytes(1, 3));
    entry = (struct native_scan_entry){.key = BYTES_LITERAL("b"), .value = BYTES(NULL, 1000)};
    assert_true(native_scan_add(&part, &entry));
    reply.scan.more = true;
    reply.scan.next =
        (struct native_position){.given = true, .token = 6, .key = BYTES_LITERAL("b")};
    reply.scan.count = 2;
    reply.scan.entries = buf_bytes(&part);
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_SNAPSHOT_OPEN);
    reply.snapshot_open.snapshot = 21;
    reply.snapshot_open.lease_ms = 60000;
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_SNAPSHOT_CLOSE);
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_TTL);
    reply.ttl.remaining_ms = 55;
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_EXPIRE);
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_COUNT);
    reply.count.count = 1234567;
    reply.count.exact = true;
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_STATUS);
    reply.status.json = BYTES_LITERAL("{}");
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_GET_SIBLINGS);
    reply.siblings.version = 66;
    reply.siblings.context = BYTES_LITERAL("seen");
    reply.siblings.count = 2;
    part.size = 0;
    struct native_sibling sibling = {.version = 5, .value = BYTES_LITERAL("one")};
    assert_true(native_sibling_add(&part, &sibling));
    sibling = (struct native_sibling){.version = 6, .value = BYTES_LITERAL("")};
    assert_true(native_sibling_add(&part, &sibling));
    reply.siblings.values = buf_bytes(&part);
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_PUT_SIBLINGS);
    reply.written.version = 67;
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_CLUSTER);
    reply.cluster.number = 15;
    reply.cluster.json = BYTES_LITERAL("{\"a\":1}");
    assert_true(native_reply_encode(&out, &reply));
    reply = reply_to(NATIVE_TOPOLOGY);
    topology_of(&reply.topology);
    assert_true(native_reply_encode(&out, &reply));
    struct native_header request = header_of(NATIVE_PUT);
    assert_true(native_reply_error(&out, &request, NATIVE_ST_CONFLICT, 17, 8, "key exists"));
}

static void
replies_come_back_as_they_went_in(void **state)
{
    (void)state;
    encode_all_replies();
    struct bytes rest = buf_bytes(&out);
    u32 seen = 0;
    while (rest.size > 0) {
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted;
        struct native_reply r;
        assert_true(ok(native_frame_decode(rest, &header, &body, &consumed, &wanted)));
        assert_true(ok(native_reply_decode(&header, body, &r)));
        assert_true(r.header.request_id == 0x1122334455667788ull);
        assert_int_equal(r.header.epoch, 8);
        rest = BYTES(rest.data + consumed, rest.size - consumed);
        seen++;
        if (r.header.status != NATIVE_ST_OK) {
            assert_int_equal(r.header.status, NATIVE_ST_CONFLICT);
            assert_int_equal(r.error.detail, 17);
            assert_bytes(r.error.text, "key exists");
            continue;
        }
        switch ((enum native_opcode)r.header.opcode) {
        case NATIVE_HELLO: {
            assert_int_equal(r.hello.run_id, 77);
            assert_int_equal(r.hello.idempotency_ms, 60000);
            assert_bytes(r.hello.server_version, "0.1.0");
            struct bytes nodes = r.hello.nodes;
            struct native_node node;
            assert_true(native_hello_next_node(&nodes, &node));
            assert_bytes(node.host, "127.0.0.1");
            assert_int_equal(node.port, 8080);
            assert_false(native_hello_next_node(&nodes, &node));
            struct bytes ranges = r.hello.ranges;
            struct native_slot_range range;
            assert_true(native_hello_next_range(&ranges, &range));
            assert_true(native_hello_next_range(&ranges, &range));
            assert_int_equal(range.slot_last, 16383);
            assert_int_equal(range.shard, 1);
            assert_false(native_hello_next_range(&ranges, &range));
            break;
        }
        case NATIVE_PING:
            assert_bytes(r.ping.payload, "hello");
            break;
        case NATIVE_GET:
            assert_int_equal(r.get.version, 1);
            assert_int_equal(r.get.expire_ms, 2);
            assert_bytes(r.get.value, "value");
            break;
        case NATIVE_PUT:
            assert_int_equal(r.written.version, 3);
            assert_true(r.header.flags & NATIVE_FLAG_REPLAYED);
            break;
        case NATIVE_DELETE:
            assert_true(r.written.existed);
            break;
        case NATIVE_SCAN: {
            struct bytes entries = r.scan.entries;
            struct native_scan_entry e;
            assert_true(native_scan_next(&entries, &e));
            assert_bytes(e.key, "a");
            assert_bytes(e.value, "one");
            assert_int_equal(e.expire_ms, 9);
            assert_true(native_scan_next(&entries, &e));
            assert_false(e.has_value);
            assert_null(e.value.data);
            assert_int_equal(e.value.size, 1000);
            assert_false(native_scan_next(&entries, &e));
            assert_true(r.scan.next.given);
            assert_bytes(r.scan.next.key, "b");
            break;
        }
        case NATIVE_SNAPSHOT_OPEN:
            assert_int_equal(r.snapshot_open.snapshot, 21);
            break;
        case NATIVE_TTL:
            assert_int_equal(r.ttl.remaining_ms, 55);
            break;
        case NATIVE_COUNT:
            assert_int_equal(r.count.count, 1234567);
            break;
        case NATIVE_STATUS:
            assert_bytes(r.status.json, "{}");
            break;
        case NATIVE_GET_SIBLINGS: {
            struct native_sibling one;
            struct bytes values = r.siblings.values;
            assert_int_equal(r.siblings.version, 66);
            assert_bytes(r.siblings.context, "seen");
            assert_int_equal(r.siblings.count, 2);
            assert_true(native_sibling_next(&values, &one));
            assert_int_equal(one.version, 5);
            assert_bytes(one.value, "one");
            assert_true(native_sibling_next(&values, &one));
            assert_int_equal(one.value.size, 0);
            assert_false(native_sibling_next(&values, &one));
            break;
        }
        case NATIVE_PUT_SIBLINGS:
            assert_int_equal(r.written.version, 67);
            break;
        case NATIVE_CLUSTER:
            assert_int_equal(r.cluster.number, 15);
            assert_bytes(r.cluster.json, "{\"a\":1}");
            break;
        case NATIVE_TOPOLOGY: {
            struct native_node one;
            struct bytes nodes = r.topology.nodes;
            assert_int_equal(r.topology.epoch, 42);
            assert_int_equal(r.topology.node_count, 2);
            assert_true(native_hello_next_node(&nodes, &one));
            assert_bytes(one.id, "n1");
            assert_int_equal(one.shard_port, 8081);
            assert_true(native_hello_next_node(&nodes, &one));
            assert_bytes(one.host, "10.0.0.2");
            assert_int_equal(one.shard_port, 0);
            assert_false(native_hello_next_node(&nodes, &one));
            assert_int_equal(native_topology_node(&r.topology, 1, 0), 1);
            assert_int_equal(native_topology_node(&r.topology, 2, 1), 1);
            assert_int_equal(native_topology_node(&r.topology, 3, 1), NATIVE_TOPOLOGY_NOBODY);
            break;
        }
        case NATIVE_BATCH:
        case NATIVE_EXPIRE:
        case NATIVE_SNAPSHOT_CLOSE:
            break;
        }
    }
    assert_int_equal(seen, NATIVE_OPCODE_MAX + 1);
}

/* Calls fn for each frame in out. */
static void
for_each_frame(void (*fn)(struct bytes frame))
{
    struct bytes rest = buf_bytes(&out);
    while (rest.size > 0) {
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted;
        assert_true(ok(native_frame_decode(rest, &header, &body, &consumed, &wanted)));
        fn(BYTES(rest.data, consumed));
        rest = BYTES(rest.data + consumed, rest.size - consumed);
    }
}

static void
refuse_every_truncation(struct bytes frame)
{
    for (size_t have = 0; have < frame.size; have++) {
        u8 *copy = malloc(have + 1);
        assert_non_null(copy);
        memcpy(copy, frame.data, have);
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted = 0;
        status st = native_frame_decode(BYTES(copy, have), &header, &body, &consumed, &wanted);
        assert_true(status_is(st, ST_INCOMPLETE));
        assert_int_equal(wanted, have < NATIVE_HEADER_BYTES ? NATIVE_HEADER_BYTES : frame.size);
        free(copy);
    }
}

static void
refuse_every_flipped_bit(struct bytes frame)
{
    u8 *copy = malloc(frame.size);
    assert_non_null(copy);
    memcpy(copy, frame.data, frame.size);
    for (size_t bit = 0; bit < frame.size * 8; bit++) {
        copy[bit / 8] ^= (u8)(1u << (bit % 8));
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted;
        status st =
            native_frame_decode(BYTES(copy, frame.size), &header, &body, &consumed, &wanted);
        assert_true(status_is(st, ST_CORRUPT));
        copy[bit / 8] ^= (u8)(1u << (bit % 8));
    }
    free(copy);
}

static void
truncated_frames_are_incomplete(void **state)
{
    (void)state;
    encode_all_requests();
    encode_all_replies();
    for_each_frame(refuse_every_truncation);
}

static void
every_flipped_bit_is_noticed(void **state)
{
    (void)state;
    encode_all_requests();
    encode_all_replies();
    for_each_frame(refuse_every_flipped_bit);
}

/* The checksum is right, but the body is a byte shorter or longer than its opcode demands. Bodies
 * that end with a span of any length (payload, key, value) may still read; nothing may crash. */
static void
decode_resized(struct bytes frame, size_t body_size)
{
    struct native_header header;
    struct bytes body;
    size_t consumed, wanted;
    assert_true(ok(native_frame_decode(frame, &header, &body, &consumed, &wanted)));
    u8 *copy = malloc(body_size + 1);
    assert_non_null(copy);
    memset(copy, 0x5a, body_size + 1);
    if (body.size > 0) memcpy(copy, body.data, MIN(body.size, body_size));
    header.body_size = (u32)body_size;
    header.body_crc = crc32c(0, copy, body_size);
    assert_true(native_body_check(&header, BYTES(copy, body_size)));
    struct native_request request;
    struct native_reply reply;
    const char *error = NULL;
    status st;
    if (header.flags & NATIVE_FLAG_REPLY) {
        st = native_reply_decode(&header, BYTES(copy, body_size), &reply);
    } else {
        st = native_request_decode(&header, BYTES(copy, body_size), &request, &error);
        assert_int_equal(ok(st), error == NULL);
    }
    bool free_end = header.opcode == NATIVE_PING || header.opcode == NATIVE_GET ||
                    header.opcode == NATIVE_TTL || header.opcode == NATIVE_EXPIRE ||
                    header.opcode == NATIVE_STATUS || header.opcode == NATIVE_PUT_SIBLINGS ||
                    header.status != NATIVE_ST_OK ||
                    (header.opcode == NATIVE_CLUSTER && (header.flags & NATIVE_FLAG_REPLY) != 0 &&
                     body_size >= 8);
    if (header.opcode == NATIVE_GET_SIBLINGS && !(header.flags & NATIVE_FLAG_REPLY))
        free_end = true;
    if (body_size != body.size && !free_end) assert_false(ok(st));
    free(copy);
}

static void
resize_body(struct bytes frame)
{
    size_t body_size = frame.size - NATIVE_HEADER_BYTES;
    for (size_t size = 0; size <= body_size + 3; size++)
        decode_resized(frame, size);
}

static void
bodies_of_a_wrong_length_are_invalid(void **state)
{
    (void)state;
    encode_all_requests();
    encode_all_replies();
    for_each_frame(resize_body);
}

/* Whether a change of what topology_of makes still decodes. */
static bool
topology_reads(void (*change)(struct native_topology_reply *topology))
{
    struct native_reply reply = reply_to(NATIVE_TOPOLOGY);
    topology_of(&reply.topology);
    change(&reply.topology);
    out.size = 0;
    assert_true(native_reply_encode(&out, &reply));
    struct native_header header;
    struct bytes body;
    size_t consumed, wanted;
    assert_true(ok(native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted)));
    return ok(native_reply_decode(&header, body, &reply));
}

static void
leave_as_it_is(struct native_topology_reply *topology)
{
    (void)topology;
}

static void
tell_nothing_new(struct native_topology_reply *topology)
{
    *topology = (struct native_topology_reply){.epoch = 42};
}

static void
name_a_node_that_is_none(struct native_topology_reply *topology)
{
    (void)topology;
    more.data[4] = 2;
}

static void
name_a_node_twice(struct native_topology_reply *topology)
{
    (void)topology;
    more.data[0] = 1;
}

static void
leave_a_hole_in_a_row(struct native_topology_reply *topology)
{
    (void)topology;
    more.data[0] = more.data[1] = 0xff;
}

static void
have_partitions_of_no_whole_slots(struct native_topology_reply *topology)
{
    topology->partition_count = 3;
    topology->rows.size = 12;
}

static void
have_rows_without_places(struct native_topology_reply *topology)
{
    topology->width = 0;
    topology->rows.size = 0;
}

static void
have_nodes_that_are_not_there(struct native_topology_reply *topology)
{
    topology->node_count = 3;
}

static void
have_ports_above_the_last(struct native_topology_reply *topology)
{
    (void)topology;
    part.data[6] = part.data[7] = 0xff;
}

static void
a_topology_that_leads_nowhere_is_refused(void **state)
{
    (void)state;
    assert_true(topology_reads(leave_as_it_is));
    assert_true(topology_reads(tell_nothing_new));
    assert_false(topology_reads(name_a_node_that_is_none));
    assert_false(topology_reads(name_a_node_twice));
    assert_false(topology_reads(leave_a_hole_in_a_row));
    assert_false(topology_reads(have_partitions_of_no_whole_slots));
    assert_false(topology_reads(have_rows_without_places));
    assert_false(topology_reads(have_nodes_that_are_not_there));
    assert_false(topology_reads(have_ports_above_the_last));
}

static status
decode_put(const struct native_op *op, const char **error)
{
    return native_op_check(op, error);
}

static void
operations_out_of_bounds_are_refused_with_a_sentence(void **state)
{
    (void)state;
    static u8 large[LIMIT_VALUE_BYTES + 1];
    const char *error = NULL;
    struct native_op op = op_put("k", "v");
    assert_true(ok(decode_put(&op, &error)));
    op.key = BYTES(large, 0);
    assert_true(status_is(decode_put(&op, &error), ST_INVALID));
    assert_string_equal(error, "key is empty");
    op.key = BYTES(large, LIMIT_KEY_BYTES);
    op.value = BYTES(large, LIMIT_VALUE_BYTES);
    assert_true(ok(decode_put(&op, &error)));
    op.key = BYTES(large, LIMIT_KEY_BYTES + 1);
    assert_true(status_is(decode_put(&op, &error), ST_TOO_LARGE));
    assert_string_equal(error, "key is longer than 1024 bytes");
    op.key = BYTES(large, 1);
    op.value = BYTES(large, LIMIT_VALUE_BYTES + 1);
    assert_true(status_is(decode_put(&op, &error), ST_TOO_LARGE));
    assert_string_equal(error, "value is longer than 1048576 bytes");
    op = op_put("k", "v");
    op.expiry = NATIVE_EXPIRY_AFTER;
    assert_true(status_is(decode_put(&op, &error), ST_INVALID));
    op = op_put("k", "v");
    op.version = 1;
    assert_true(status_is(decode_put(&op, &error), ST_INVALID));
    op = op_put("k", "v");
    op.kind = NATIVE_OP_DELETE;
    assert_true(status_is(decode_put(&op, &error), ST_INVALID));
    op.value = BYTES(NULL, 0);
    assert_true(ok(decode_put(&op, &error)));
    op.condition = NATIVE_IF_ABSENT;
    assert_true(status_is(decode_put(&op, &error), ST_INVALID));
    op.condition = 4;
    assert_true(status_is(decode_put(&op, &error), ST_INVALID));
    op.kind = 3;
    assert_true(status_is(decode_put(&op, &error), ST_INVALID));
}

static void
a_batch_that_lies_about_its_count_is_refused(void **state)
{
    (void)state;
    struct native_op op = op_put("k", "v");
    assert_true(native_batch_add(&part, &op));
    static const u32 counts[] = {0, 2, LIMIT_BATCH_OPS, LIMIT_BATCH_OPS + 1, UINT32_MAX};
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        struct native_request request = {.header = header_of(NATIVE_BATCH),
                                         .batch = {counts[i], buf_bytes(&part)}};
        out.size = 0;
        assert_true(native_request_encode(&out, &request));
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted;
        assert_true(ok(native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted)));
        assert_false(ok(native_request_decode(&header, body, &request, NULL)));
    }
}

/* Overwrites two bytes of the header and makes its checksum right again. */
static void
patch_header(size_t offset, const void *data, size_t size)
{
    memcpy(out.data + offset, data, size);
    store_u32(out.data + 44, crc32c(0, out.data, 44));
}

static void
what_a_newer_peer_sends_can_be_stepped_over(void **state)
{
    (void)state;
    struct native_request request = {.header = header_of(NATIVE_PING)};
    struct native_header header;
    struct bytes body;
    size_t consumed = 0, wanted;
    assert_true(native_request_encode(&out, &request));
    patch_header(4, "\x02", 1);
    status st = native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted);
    assert_true(status_is(st, ST_UNSUPPORTED));
    assert_int_equal(consumed, NATIVE_HEADER_BYTES);
    assert_true(header.request_id == request.header.request_id);
    assert_int_equal(header.version, 2);
    patch_header(4, "\x01", 1);
    patch_header(6, "\x00\x80", 2); /* a flag of tomorrow */
    st = native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted);
    assert_true(status_is(st, ST_UNSUPPORTED));
    patch_header(6, "\x00\x00", 2);
    patch_header(5, "\x63", 1);
    const char *error = NULL;
    assert_true(ok(native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted)));
    assert_true(status_is(native_request_decode(&header, body, &request, &error), ST_UNSUPPORTED));
    assert_string_equal(error, "unknown opcode");
    assert_string_equal(native_opcode_name(99), "?");
    patch_header(5, "\x02", 1);
    patch_header(28, "\xd0\xff\xff\x00", 4); /* 16 MiB with the header */
    st = native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted);
    assert_true(status_is(st, ST_INCOMPLETE));
    assert_int_equal(wanted, NATIVE_FRAME_BYTES_MAX);
    patch_header(28, "\xd1\xff\xff\x00", 4); /* a byte more */
    st = native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted);
    assert_true(status_is(st, ST_CORRUPT));
}

static void
keyspaces_out_of_range_are_refused(void **state)
{
    (void)state;
    struct native_header header = header_of(NATIVE_PING);
    struct native_request request;
    const char *error;
    header.keyspace = LIMIT_KEYSPACES_CLIENT - 1;
    assert_true(ok(native_request_decode(&header, BYTES(NULL, 0), &request, &error)));
    header.keyspace = LIMIT_KEYSPACES_CLIENT;
    assert_true(
        status_is(native_request_decode(&header, BYTES(NULL, 0), &request, &error), ST_INVALID));
    assert_string_equal(error, "keyspace is out of range");
    header = header_of(NATIVE_PING);
    header.flags = NATIVE_FLAG_REPLY;
    assert_true(
        status_is(native_request_decode(&header, BYTES(NULL, 0), &request, &error), ST_INVALID));
}

static void
the_first_byte_tells_the_protocols_apart(void **state)
{
    (void)state;
    struct native_request request = {.header = header_of(NATIVE_PING)};
    assert_true(native_request_encode(&out, &request));
    assert_int_equal(out.data[0], NATIVE_FIRST_BYTE);
    assert_int_equal(load_u32(out.data), NATIVE_MAGIC);
    struct native_header header;
    assert_true(status_is(native_header_decode(BYTES_LITERAL("*1\r\n"), &header), ST_CORRUPT));
    assert_true(status_is(native_header_decode(BYTES_LITERAL("\xd5"
                                                             "DX"),
                                               &header),
                          ST_CORRUPT));
    assert_true(status_is(native_header_decode(BYTES_LITERAL("\xd5"
                                                             "DK"),
                                               &header),
                          ST_INCOMPLETE));
    assert_true(status_is(native_header_decode(BYTES(NULL, 0), &header), ST_INCOMPLETE));
}

static void
a_topology_with_a_hole_is_refused(void **state)
{
    (void)state;
    static const struct native_slot_range holes[][2] = {
        {{0, 8191, 0, 0}, {8193, 16383, 0, 0}}, /* a slot of nobody's */
        {{0, 8191, 0, 0}, {8191, 16383, 0, 0}}, /* a slot of two */
        {{0, 8191, 0, 0}, {8192, 16384, 0, 0}}, /* a slot too many */
        {{0, 8191, 0, 0}, {8192, 16382, 0, 0}}, /* the last one is missing */
        {{0, 8191, 0, 0}, {8192, 16383, 1, 0}}, /* a node that is not there */
    };
    for (size_t i = 0; i < ARRAY_COUNT(holes); i++) {
        part.size = 0;
        more.size = 0;
        out.size = 0;
        struct native_node node = {.port = 1, .shard_count = 1};
        assert_true(native_hello_add_node(&part, &node));
        assert_true(native_hello_add_range(&more, &holes[i][0]));
        assert_true(native_hello_add_range(&more, &holes[i][1]));
        struct native_reply reply = reply_to(NATIVE_HELLO);
        reply.hello = (struct native_hello_reply){.version = 1,
                                                  .in_flight_max = 1,
                                                  .node_count = 1,
                                                  .range_count = 2,
                                                  .nodes = buf_bytes(&part),
                                                  .ranges = buf_bytes(&more)};
        assert_true(native_reply_encode(&out, &reply));
        struct native_header header;
        struct bytes body;
        size_t consumed, wanted;
        assert_true(ok(native_frame_decode(buf_bytes(&out), &header, &body, &consumed, &wanted)));
        assert_true(status_is(native_reply_decode(&header, body, &reply), ST_INVALID));
    }
}

static void
a_frame_that_does_not_fit_leaves_no_piece(void **state)
{
    (void)state;
    budget.limit_bytes = 600;
    static u8 value[4096];
    struct native_request request = {.header = header_of(NATIVE_PUT), .op = op_put("k", "")};
    request.op.value = BYTES(value, sizeof(value));
    assert_false(native_request_encode(&out, &request));
    assert_int_equal(out.size, 0);
    budget.limit_bytes = MIB(1);
    assert_true(native_request_encode(&out, &request));
}

static void
every_status_has_a_name_on_both_sides(void **state)
{
    (void)state;
    for (u32 i = 0; i <= NATIVE_ST_MAX; i++)
        assert_string_not_equal(native_status_name(i), "?");
    assert_string_equal(native_status_name(NATIVE_ST_MAX + 1), "?");
    assert_true(status_is(native_status_to_base(9999), ST_UNSUPPORTED));
    for (i32 code = 0; code < STATUS_CODE_COUNT; code++) {
        status st = {code};
        assert_int_equal(ok(st), native_status_of(st) == NATIVE_ST_OK);
    }
    assert_true(native_status_retryable(NATIVE_ST_OVERLOADED));
    assert_false(native_status_retryable(NATIVE_ST_UNKNOWN_OUTCOME));
    assert_false(native_status_retryable(NATIVE_ST_CONFLICT));
    assert_false(native_status_retryable(NATIVE_ST_FULL));
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(requests_come_back_as_they_went_in),
        T(replies_come_back_as_they_went_in),
        T(truncated_frames_are_incomplete),
        T(every_flipped_bit_is_noticed),
        T(bodies_of_a_wrong_length_are_invalid),
        T(a_topology_that_leads_nowhere_is_refused),
        T(operations_out_of_bounds_are_refused_with_a_sentence),
        T(a_batch_that_lies_about_its_count_is_refused),
        T(what_a_newer_peer_sends_can_be_stepped_over),
        T(keyspaces_out_of_range_are_refused),
        T(the_first_byte_tells_the_protocols_apart),
        T(a_topology_with_a_hole_is_refused),
        T(a_frame_that_does_not_fit_leaves_no_piece),
        T(every_status_has_a_name_on_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
