/* SPDX-License-Identifier: MIT
 *
 * fuzz_native.c -- any bytes as native frames, and as bodies of frames whose checksums are right
 * (which the fuzzer would hardly ever find by itself). What decodes must encode to the same bytes.
 *
 *   first byte 0: raw frames follow
 *   else:         opcode, status, then the body: of a request when status is 0, and of a reply
 */
#include "base/crc.h"
#include "proto/native.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
walk_request(const struct native_request *request)
{
    if (request->header.opcode != NATIVE_BATCH) return;
    struct bytes ops = request->batch.ops;
    struct native_op op;
    u32 count = 0;
    while (native_batch_next(&ops, &op)) {
        CHECK(ok(native_op_check(&op, NULL)));
        count++;
    }
    CHECK(count == request->batch.count);
}

static void
walk_reply(const struct native_reply *reply)
{
    if (reply->header.status != NATIVE_ST_OK) return;
    if (reply->header.opcode == NATIVE_SCAN) {
        struct bytes entries = reply->scan.entries;
        struct native_scan_entry entry;
        u32 count = 0;
        while (native_scan_next(&entries, &entry))
            count++;
        CHECK(count == reply->scan.count);
    } else if (reply->header.opcode == NATIVE_GET_SIBLINGS) {
        struct bytes values = reply->siblings.values;
        struct native_sibling sibling;
        u32 count = 0;
        while (native_sibling_next(&values, &sibling))
            count++;
        CHECK(count == reply->siblings.count);
    } else if (reply->header.opcode == NATIVE_TOPOLOGY) {
        const struct native_topology_reply *topology = &reply->topology;
        struct bytes nodes = topology->nodes;
        struct native_node node;
        u32 count = 0;
        while (native_hello_next_node(&nodes, &node))
            count++;
        CHECK(count == topology->node_count);
        for (u32 i = 0; i < topology->partition_count; i++) {
            for (u32 place = 0; place < topology->width; place++) {
                u16 there = native_topology_node(topology, i, place);
                CHECK(there < topology->node_count || there == NATIVE_TOPOLOGY_NOBODY);
            }
        }
    } else if (reply->header.opcode == NATIVE_HELLO) {
        struct bytes nodes = reply->hello.nodes;
        struct bytes ranges = reply->hello.ranges;
        struct native_node node;
        struct native_slot_range range;
        u32 count = 0;
        while (native_hello_next_node(&nodes, &node))
            count++;
        CHECK(count == reply->hello.node_count);
        while (native_hello_next_range(&ranges, &range))
            CHECK(range.node < reply->hello.node_count);
    }
}

static void
check_same_body(struct budget *budget, const struct buf *frame, struct bytes body)
{
    (void)budget;
    struct native_header header;
    struct bytes again;
    size_t consumed, wanted;
    CHECK(ok(native_frame_decode(buf_bytes(frame), &header, &again, &consumed, &wanted)));
    CHECK(consumed == frame->size);
    CHECK(bytes_equal(again, body));
}

static void
try_body(const struct native_header *header, struct bytes body)
{
    struct budget budget;
    budget_init(&budget, "fuzz", MIB(64), NULL);
    struct buf frame;
    buf_init(&frame, &budget);
    struct native_request request;
    struct native_reply reply;
    const char *error = NULL;
    if ((header->flags & NATIVE_FLAG_REPLY) == 0) {
        status st = native_request_decode(header, body, &request, &error);
        CHECK(ok(st) == (error == NULL));
        if (ok(st)) {
            walk_request(&request);
            CHECK(native_request_encode(&frame, &request));
            check_same_body(&budget, &frame, body);
        }
    } else if (ok(native_reply_decode(header, body, &reply))) {
        walk_reply(&reply);
        CHECK(native_reply_encode(&frame, &reply));
        check_same_body(&budget, &frame, body);
    }
    buf_deinit(&frame);
    CHECK(budget.used_bytes == 0);
}

static void
try_frames(struct bytes data)
{
    while (true) {
        struct native_header header;
        struct bytes body;
        size_t consumed = 0, wanted = 0;
        status st = native_frame_decode(data, &header, &body, &consumed, &wanted);
        if (status_is(st, ST_INCOMPLETE)) CHECK(wanted > data.size);
        if (!ok(st) && !status_is(st, ST_UNSUPPORTED)) return;
        CHECK(consumed >= NATIVE_HEADER_BYTES && consumed <= data.size);
        if (ok(st)) try_body(&header, body);
        data = BYTES(data.data + consumed, data.size - consumed);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && data[0] == 0) {
        try_frames(BYTES(data + 1, size - 1));
    } else if (size >= 3) {
        struct bytes body = BYTES(data + 3, size - 3);
        struct native_header header = {.opcode = data[1],
                                       .status = 0,
                                       .body_size = (u32)body.size,
                                       .body_crc = crc32c(0, body.data, body.size)};
        if (data[2] == 0) try_body(&header, body);
        header.flags = NATIVE_FLAG_REPLY;
        header.status = data[2];
        try_body(&header, body);
    }
    return 0;
}
