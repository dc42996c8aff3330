/* SPDX-License-Identifier: MIT
 *
 * native_reply.c -- replies of the native protocol, read (by the client) and written (by the
 * server).
 *
 * Lists inside a reply (nodes, slot ranges, scan entries) are walked whole when the reply is
 * decoded; the functions that take one after another afterwards cannot fail.
 */
#include "proto/native.h"

#include "proto/native_codec.h"

/* ---- lists: nodes, ranges, entries ---- */

static struct native_node
read_node(struct reader *r)
{
    struct native_node node;
    u8 id_size = read_u8(r);
    u8 host_size = read_u8(r);
    node.port = read_u16(r);
    node.shard_count = read_u16(r);
    node.shard_port = read_u16(r);
    node.id = read_bytes(r, id_size);
    node.host = read_bytes(r, host_size);
    return node;
}

bool
native_topology_add_node(struct buf *nodes, const struct native_node *node)
{
    CHECK(node->id.size <= NATIVE_NAME_BYTES_MAX);
    CHECK(node->host.size <= NATIVE_NAME_BYTES_MAX);
    size_t start = nodes->size;
    struct writer w = {.out = nodes};
    write_u8(&w, (u8)node->id.size);
    write_u8(&w, (u8)node->host.size);
    write_u16(&w, node->port);
    write_u16(&w, node->shard_count);
    write_u16(&w, node->shard_port);
    write_span(&w, node->id);
    write_span(&w, node->host);
    if (w.failed) nodes->size = start;
    return !w.failed;
}

bool
native_hello_add_node(struct buf *nodes, const struct native_node *node)
{
    CHECK(node->shard_port == 0); /* older clients refuse it there */
    return native_topology_add_node(nodes, node);
}

bool
native_hello_next_node(struct bytes *nodes, struct native_node *out)
{
    if (nodes->size == 0) return false;
    struct reader r = reader_of(*nodes);
    *out = read_node(&r);
    CHECK(!r.failed);
    *nodes = BYTES(r.data, r.size);
    return true;
}

static struct native_slot_range
read_range(struct reader *r)
{
    struct native_slot_range range;
    range.slot_first = read_u16(r);
    range.slot_last = read_u16(r);
    range.node = read_u16(r);
    range.shard = read_u16(r);
    return range;
}

bool
native_hello_add_range(struct buf *ranges, const struct native_slot_range *range)
{
    size_t start = ranges->size;
    struct writer w = {.out = ranges};
    write_u16(&w, range->slot_first);
    write_u16(&w, range->slot_last);
    write_u16(&w, range->node);
    write_u16(&w, range->shard);
    if (w.failed) ranges->size = start;
    return !w.failed;
}

bool
native_hello_next_range(struct bytes *ranges, struct native_slot_range *out)
{
    if (ranges->size == 0) return false;
    struct reader r = reader_of(*ranges);
    *out = read_range(&r);
    CHECK(!r.failed);
    *ranges = BYTES(r.data, r.size);
    return true;
}

static bool
nodes_check(struct bytes nodes, u32 count, bool shard_ports)
{
    struct reader r = reader_of(nodes);
    for (u32 i = 0; i < count && !r.failed; i++) {
        struct native_node node = read_node(&r);
        if (node.shard_port != 0 &&
            (!shard_ports || node.shard_port + MAX(node.shard_count, 1u) - 1u > UINT16_MAX))
            return false;
    }
    return reader_done(&r);
}

/* Every slot in exactly one range, in order; nodes that exist. */
static bool
ranges_check(struct bytes ranges, u32 count, u32 node_count)
{
    struct reader r = reader_of(ranges);
    u32 slot_next = 0;
    for (u32 i = 0; i < count; i++) {
        struct native_slot_range range = read_range(&r);
        if (r.failed) return false;
        if (range.slot_first != slot_next || range.slot_last < range.slot_first) return false;
        if (range.slot_last >= SLOT_COUNT || range.node >= node_count) return false;
        slot_next = (u32)range.slot_last + 1;
    }
    return reader_done(&r) && (count == 0 || slot_next == SLOT_COUNT);
}

/* ---- TOPOLOGY ---- */

bool
native_topology_add_place(struct buf *rows, u16 node)
{
    struct writer w = {.out = rows};
    write_u16(&w, node);
    return !w.failed;
}

u16
native_topology_node(const struct native_topology_reply *topology, u32 partition, u32 place)
{
    CHECK(partition < topology->partition_count && place < topology->width);
    return load_u16(topology->rows.data + 2 * ((size_t)partition * topology->width + place));
}

/* Nodes that exist, each once in a row, and nobody only at a row's end. */
static bool
rows_check(const struct native_topology_reply *topology)
{
    for (u32 partition = 0; partition < topology->partition_count; partition++) {
        u16 row[NATIVE_TOPOLOGY_WIDTH_MAX];
        for (u32 i = 0; i < topology->width; i++) {
            row[i] = native_topology_node(topology, partition, i);
            if (row[i] == NATIVE_TOPOLOGY_NOBODY) continue;
            if (row[i] >= topology->node_count) return false;
            if (i > 0 && row[i - 1] == NATIVE_TOPOLOGY_NOBODY) return false;
            for (u32 k = 0; k < i; k++)
                if (row[k] == row[i]) return false;
        }
    }
    return true;
}

static bool
decode_topology(struct reader *r, struct native_topology_reply *topology)
{
    topology->epoch = read_u64(r);
    topology->node_count = read_u16(r);
    topology->width = read_u8(r);
    read_zeros(r, 1);
    topology->partition_count = read_u32(r);
    u32 nodes_size = read_u32(r);
    topology->nodes = read_bytes(r, nodes_size);
    topology->rows = read_rest(r);
    if (r->failed) return false;
    u32 partitions = topology->partition_count;
    if (topology->node_count == 0)
        return partitions == 0 && topology->width == 0 && nodes_size == 0 &&
               topology->rows.size == 0;
    if (topology->node_count > NATIVE_NODES_MAX) return false;
    if (topology->width == 0 || topology->width > NATIVE_TOPOLOGY_WIDTH_MAX) return false;
    if (partitions == 0 || partitions > SLOT_COUNT || SLOT_COUNT % partitions != 0) return false;
    if (topology->rows.size != 2 * (size_t)partitions * topology->width) return false;
    return nodes_check(topology->nodes, topology->node_count, true) && rows_check(topology);
}

static void
encode_topology(struct writer *w, const struct native_topology_reply *topology)
{
    CHECK(topology->rows.size == 2 * (size_t)topology->partition_count * topology->width);
    write_u64(w, topology->epoch);
    write_u16(w, topology->node_count);
    write_u8(w, topology->width);
    write_zeros(w, 1);
    write_u32(w, topology->partition_count);
    write_u32(w, (u32)topology->nodes.size);
    write_span(w, topology->nodes);
    write_span(w, topology->rows);
}

enum { ENTRY_FLAG_VALUE = 1 << 0 };

static struct native_scan_entry
read_entry(struct reader *r)
{
    struct native_scan_entry entry;
    u8 flags = read_u8(r);
    u16 key_size = read_u16(r);
    u32 value_size = read_u32(r);
    entry.version = read_u64(r);
    entry.expire_ms = read_u64(r);
    entry.key = read_bytes(r, key_size);
    entry.has_value = (flags & ENTRY_FLAG_VALUE) != 0;
    entry.value = entry.has_value ? read_bytes(r, value_size) : BYTES(NULL, value_size);
    if ((flags & ~ENTRY_FLAG_VALUE) != 0) r->failed = true;
    return entry;
}

bool
native_scan_add(struct buf *entries, const struct native_scan_entry *entry)
{
    CHECK(entry->key.size <= LIMIT_KEY_BYTES);
    CHECK(entry->value.size <= LIMIT_VALUE_BYTES);
    size_t start = entries->size;
    struct writer w = {.out = entries};
    write_u8(&w, entry->has_value ? ENTRY_FLAG_VALUE : 0);
    write_u16(&w, (u16)entry->key.size);
    write_u32(&w, (u32)entry->value.size);
    write_u64(&w, entry->version);
    write_u64(&w, entry->expire_ms);
    write_span(&w, entry->key);
    if (entry->has_value) write_span(&w, entry->value);
    if (w.failed) entries->size = start;
    return !w.failed;
}

bool
native_scan_next(struct bytes *entries, struct native_scan_entry *out)
{
    if (entries->size == 0) return false;
    struct reader r = reader_of(*entries);
    *out = read_entry(&r);
    CHECK(!r.failed);
    *entries = BYTES(r.data, r.size);
    return true;
}

static struct native_sibling
read_sibling(struct reader *r)
{
    struct native_sibling sibling = {.version = read_u64(r)};
    sibling.value = read_bytes(r, read_u32(r));
    return sibling;
}

bool
native_sibling_add(struct buf *values, const struct native_sibling *sibling)
{
    CHECK(sibling->value.size <= LIMIT_VALUE_BYTES);
    size_t start = values->size;
    struct writer w = {.out = values};
    write_u64(&w, sibling->version);
    write_u32(&w, (u32)sibling->value.size);
    write_span(&w, sibling->value);
    if (w.failed) values->size = start;
    return !w.failed;
}

bool
native_sibling_next(struct bytes *values, struct native_sibling *out)
{
    if (values->size == 0) return false;
    struct reader r = reader_of(*values);
    *out = read_sibling(&r);
    CHECK(!r.failed);
    *values = BYTES(r.data, r.size);
    return true;
}

static bool
siblings_check(struct bytes values, u32 count)
{
    struct reader r = reader_of(values);
    for (u32 i = 0; i < count; i++) {
        struct native_sibling sibling = read_sibling(&r);
        if (r.failed || sibling.value.size > LIMIT_VALUE_BYTES) return false;
    }
    return reader_done(&r);
}

static bool
entries_check(struct bytes entries, u32 count)
{
    struct reader r = reader_of(entries);
    for (u32 i = 0; i < count; i++) {
        struct native_scan_entry entry = read_entry(&r);
        if (r.failed) return false;
        if (entry.key.size == 0 || entry.key.size > LIMIT_KEY_BYTES) return false;
        if (entry.value.size > LIMIT_VALUE_BYTES) return false;
    }
    return reader_done(&r);
}

/* ---- decoding ---- */

static bool
decode_hello(struct reader *r, struct native_hello_reply *hello)
{
    hello->version = read_u8(r);
    hello->shard = read_u8(r);
    hello->keyspaces = read_u16(r);
    hello->partition_count = read_u32(r);
    hello->features = read_u64(r);
    hello->run_id = read_u64(r);
    hello->connection_id = read_u64(r);
    hello->time_ms = read_u64(r);
    hello->key_bytes_max = read_u32(r);
    hello->value_bytes_max = read_u32(r);
    hello->batch_ops_max = read_u32(r);
    hello->batch_bytes_max = read_u32(r);
    hello->body_bytes_max = read_u32(r);
    hello->in_flight_max = read_u32(r);
    hello->idempotency_ms = read_u32(r);
    hello->node_count = read_u16(r);
    u8 node_id_size = read_u8(r);
    u8 server_version_size = read_u8(r);
    hello->range_count = read_u32(r);
    u32 nodes_size = read_u32(r);
    hello->cluster_id = (hello->features & NATIVE_FEATURE_CLUSTER) != 0 ? read_u64(r) : 0;
    hello->node_id = read_bytes(r, node_id_size);
    hello->server_version = read_bytes(r, server_version_size);
    hello->nodes = read_bytes(r, nodes_size);
    hello->ranges = read_rest(r);
    if (r->failed || hello->node_count > NATIVE_NODES_MAX) return false;
    if (hello->range_count > SLOT_COUNT || hello->in_flight_max == 0) return false;
    return nodes_check(hello->nodes, hello->node_count, false) &&
           ranges_check(hello->ranges, hello->range_count, hello->node_count);
}

static bool
decode_scan(struct reader *r, struct native_reply *out)
{
    u8 more = read_u8(r);
    read_zeros(r, 1);
    u16 key_size = read_u16(r);
    out->scan.count = read_u32(r);
    out->scan.next.token = read_u64(r);
    out->scan.next.key = read_bytes(r, key_size);
    out->scan.entries = read_rest(r);
    out->scan.more = more == 1;
    out->scan.next.given = more == 1;
    if (r->failed || more > 1 || key_size > LIMIT_KEY_BYTES) return false;
    if (more == 0 && (key_size != 0 || out->scan.next.token != 0)) return false;
    return entries_check(out->scan.entries, out->scan.count);
}

static bool
decode_siblings(struct reader *r, struct native_reply *out)
{
    out->siblings.version = read_u64(r);
    u16 context_size = read_u16(r);
    read_zeros(r, 2);
    out->siblings.count = read_u32(r);
    out->siblings.context = read_bytes(r, context_size);
    out->siblings.values = read_rest(r);
    if (r->failed || context_size > NATIVE_CONTEXT_BYTES_MAX) return false;
    return siblings_check(out->siblings.values, out->siblings.count);
}

static bool
decode_body(struct reader *r, struct native_reply *out)
{
    switch ((enum native_opcode)out->header.opcode) {
    case NATIVE_HELLO:
        if (!decode_hello(r, &out->hello)) return false;
        break;
    case NATIVE_PING:
        out->ping.payload = read_rest(r);
        break;
    case NATIVE_GET:
        out->get.version = read_u64(r);
        out->get.expire_ms = read_u64(r);
        out->get.value = read_rest(r);
        break;
    case NATIVE_GET_SIBLINGS:
        if (!decode_siblings(r, out)) return false;
        break;
    case NATIVE_PUT:
    case NATIVE_DELETE:
    case NATIVE_BATCH:
    case NATIVE_PUT_SIBLINGS:
    case NATIVE_EXPIRE: {
        out->written.version = read_u64(r);
        u8 existed = read_u8(r);
        if (existed > 1) return false;
        out->written.existed = existed == 1;
        break;
    }
    case NATIVE_TTL:
        out->ttl.version = read_u64(r);
        out->ttl.expire_ms = read_u64(r);
        out->ttl.remaining_ms = read_u64(r);
        break;
    case NATIVE_SCAN:
        if (!decode_scan(r, out)) return false;
        break;
    case NATIVE_SNAPSHOT_OPEN:
        out->snapshot_open.snapshot = read_u64(r);
        out->snapshot_open.lease_ms = read_u32(r);
        out->snapshot_open.time_ms = read_u64(r);
        break;
    case NATIVE_COUNT: {
        out->count.count = read_u64(r);
        u8 exact = read_u8(r);
        if (exact > 1) return false;
        out->count.exact = exact == 1;
        break;
    }
    case NATIVE_STATUS:
        out->status.json = read_rest(r);
        break;
    case NATIVE_CLUSTER:
        out->cluster.number = read_u64(r);
        out->cluster.json = read_rest(r);
        break;
    case NATIVE_TOPOLOGY:
        if (!decode_topology(r, &out->topology)) return false;
        break;
    case NATIVE_SNAPSHOT_CLOSE:
        break;
    }
    return reader_done(r);
}

status
native_reply_decode(const struct native_header *header, struct bytes body, struct native_reply *out)
{
    if ((header->flags & NATIVE_FLAG_REPLY) == 0 || (header->flags & NATIVE_LEVEL_MASK) != 0)
        return ST_INVALID;
    struct native_reply reply = {.header = *header};
    struct reader r = reader_of(body);
    if (header->status != NATIVE_ST_OK) {
        reply.error.detail = read_u64(&r);
        reply.error.text = read_rest(&r);
        if (r.failed || reply.error.text.size > NATIVE_ERROR_TEXT_BYTES_MAX) return ST_INVALID;
        *out = reply;
        return ST_OK;
    }
    if (!native_opcode_known(header->opcode)) return ST_UNSUPPORTED;
    if (!decode_body(&r, &reply)) return ST_INVALID;
    *out = reply;
    return ST_OK;
}

/* ---- encoding ---- */

static void
encode_hello(struct writer *w, const struct native_hello_reply *hello)
{
    CHECK(hello->node_id.size <= NATIVE_NAME_BYTES_MAX);
    CHECK(hello->server_version.size <= NATIVE_NAME_BYTES_MAX);
    write_u8(w, hello->version);
    write_u8(w, hello->shard);
    write_u16(w, hello->keyspaces);
    write_u32(w, hello->partition_count);
    write_u64(w, hello->features);
    write_u64(w, hello->run_id);
    write_u64(w, hello->connection_id);
    write_u64(w, hello->time_ms);
    write_u32(w, hello->key_bytes_max);
    write_u32(w, hello->value_bytes_max);
    write_u32(w, hello->batch_ops_max);
    write_u32(w, hello->batch_bytes_max);
    write_u32(w, hello->body_bytes_max);
    write_u32(w, hello->in_flight_max);
    write_u32(w, hello->idempotency_ms);
    write_u16(w, hello->node_count);
    write_u8(w, (u8)hello->node_id.size);
    write_u8(w, (u8)hello->server_version.size);
    write_u32(w, hello->range_count);
    write_u32(w, (u32)hello->nodes.size);
    if ((hello->features & NATIVE_FEATURE_CLUSTER) != 0) write_u64(w, hello->cluster_id);
    write_span(w, hello->node_id);
    write_span(w, hello->server_version);
    write_span(w, hello->nodes);
    write_span(w, hello->ranges);
}

static void
encode_scan(struct writer *w, const struct native_reply *reply)
{
    const struct native_position *next = &reply->scan.next;
    CHECK(next->given == reply->scan.more);
    struct bytes key = next->given ? next->key : BYTES(NULL, 0);
    CHECK(key.size <= LIMIT_KEY_BYTES);
    write_u8(w, reply->scan.more ? 1 : 0);
    write_zeros(w, 1);
    write_u16(w, (u16)key.size);
    write_u32(w, reply->scan.count);
    write_u64(w, next->given ? next->token : 0);
    write_span(w, key);
    write_span(w, reply->scan.entries);
}

static void
encode_body(struct writer *w, const struct native_reply *reply)
{
    switch ((enum native_opcode)reply->header.opcode) {
    case NATIVE_HELLO:
        encode_hello(w, &reply->hello);
        break;
    case NATIVE_PING:
        write_span(w, reply->ping.payload);
        break;
    case NATIVE_GET:
        write_u64(w, reply->get.version);
        write_u64(w, reply->get.expire_ms);
        write_span(w, reply->get.value);
        break;
    case NATIVE_GET_SIBLINGS:
        CHECK(reply->siblings.context.size <= NATIVE_CONTEXT_BYTES_MAX);
        write_u64(w, reply->siblings.version);
        write_u16(w, (u16)reply->siblings.context.size);
        write_zeros(w, 2);
        write_u32(w, reply->siblings.count);
        write_span(w, reply->siblings.context);
        write_span(w, reply->siblings.values);
        break;
    case NATIVE_PUT:
    case NATIVE_DELETE:
    case NATIVE_BATCH:
    case NATIVE_PUT_SIBLINGS:
    case NATIVE_EXPIRE:
        write_u64(w, reply->written.version);
        write_u8(w, reply->written.existed ? 1 : 0);
        break;
    case NATIVE_TTL:
        write_u64(w, reply->ttl.version);
        write_u64(w, reply->ttl.expire_ms);
        write_u64(w, reply->ttl.remaining_ms);
        break;
    case NATIVE_SCAN:
        encode_scan(w, reply);
        break;
    case NATIVE_SNAPSHOT_OPEN:
        write_u64(w, reply->snapshot_open.snapshot);
        write_u32(w, reply->snapshot_open.lease_ms);
        write_u64(w, reply->snapshot_open.time_ms);
        break;
    case NATIVE_COUNT:
        write_u64(w, reply->count.count);
        write_u8(w, reply->count.exact ? 1 : 0);
        break;
    case NATIVE_STATUS:
        write_span(w, reply->status.json);
        break;
    case NATIVE_CLUSTER:
        write_u64(w, reply->cluster.number);
        write_span(w, reply->cluster.json);
        break;
    case NATIVE_TOPOLOGY:
        encode_topology(w, &reply->topology);
        break;
    case NATIVE_SNAPSHOT_CLOSE:
        break;
    }
}

bool
native_reply_encode(struct buf *out, const struct native_reply *reply)
{
    CHECK((reply->header.flags & NATIVE_FLAG_REPLY) != 0);
    size_t start;
    if (!native_frame_begin(out, &reply->header, &start)) return false;
    struct writer w = {.out = out};
    if (reply->header.status != NATIVE_ST_OK) {
        write_u64(&w, reply->error.detail);
        write_bytes(&w, reply->error.text.data,
                    MIN(reply->error.text.size, NATIVE_ERROR_TEXT_BYTES_MAX));
    } else {
        CHECK(native_opcode_known(reply->header.opcode));
        encode_body(&w, reply);
    }
    if (w.failed) {
        out->size = start;
        return false;
    }
    native_frame_end(out, start);
    return true;
}

bool
native_reply_error(struct buf *out, const struct native_header *request,
                   enum native_status native_status, u64 detail, u64 epoch, const char *text)
{
    CHECK(native_status != NATIVE_ST_OK);
    struct native_reply reply = {.header = native_reply_header(request, epoch)};
    reply.header.status = (u16)native_status;
    reply.error.detail = detail;
    reply.error.text = BYTES(text, strlen(text));
    return native_reply_encode(out, &reply);
}
