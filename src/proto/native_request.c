/* SPDX-License-Identifier: MIT
 *
 * native_request.c -- requests of the native protocol, read and written.
 *
 * A decoder reads every field, then asks once whether all were there and nothing is left over, then
 * judges the values. `error` gets a sentence about the first thing that is wrong, for the reply.
 */
#include "proto/native.h"

#include "proto/native_codec.h"

/* An operation without its key and value; see docs/native-protocol.md. */
#define OP_FIXED_BYTES 28u

static status
refuse(const char **error, status st, const char *text)
{
    if (error != NULL) *error = text;
    return st;
}

static status
key_check(struct bytes key, const char **error)
{
    if (key.size == 0) return refuse(error, ST_INVALID, "key is empty");
    static_assert(LIMIT_KEY_BYTES == 1024, "the text names it");
    if (key.size > LIMIT_KEY_BYTES)
        return refuse(error, ST_TOO_LARGE, "key is longer than 1024 bytes");
    return ST_OK;
}

/* ---- operations ---- */

status
native_op_check(const struct native_op *op, const char **error)
{
    if (op->kind != NATIVE_OP_PUT && op->kind != NATIVE_OP_DELETE)
        return refuse(error, ST_INVALID, "unknown kind of operation");
    if (op->condition > NATIVE_IF_VERSION) return refuse(error, ST_INVALID, "unknown condition");
    if (op->expiry > NATIVE_EXPIRY_KEEP) return refuse(error, ST_INVALID, "unknown kind of expiry");
    if (op->condition != NATIVE_IF_VERSION && op->version != 0)
        return refuse(error, ST_INVALID, "a version without its condition");
    bool timed = op->expiry == NATIVE_EXPIRY_AFTER || op->expiry == NATIVE_EXPIRY_AT;
    if (timed != (op->expiry_ms != 0))
        return refuse(error, ST_INVALID, "an expiry time of zero, or one without its kind");
    status st = key_check(op->key, error);
    if (!ok(st)) return st;
    static_assert(LIMIT_VALUE_BYTES == 1048576, "the text names it");
    if (op->value.size > LIMIT_VALUE_BYTES)
        return refuse(error, ST_TOO_LARGE, "value is longer than 1048576 bytes");
    if (op->kind == NATIVE_OP_DELETE) {
        if (op->condition == NATIVE_IF_ABSENT)
            return refuse(error, ST_INVALID, "a delete of a key that must be absent");
        if (op->expiry != NATIVE_EXPIRY_NONE || op->value.size != 0)
            return refuse(error, ST_INVALID, "a delete with a value or an expiry");
    }
    return ST_OK;
}

static struct native_op
read_op(struct reader *r)
{
    struct native_op op;
    op.kind = read_u8(r);
    op.condition = read_u8(r);
    op.expiry = read_u8(r);
    read_zeros(r, 1);
    u16 key_size = read_u16(r);
    read_zeros(r, 2);
    u32 value_size = read_u32(r);
    op.version = read_u64(r);
    op.expiry_ms = read_u64(r);
    op.key = read_bytes(r, key_size);
    op.value = read_bytes(r, value_size);
    return op;
}

static void
write_op(struct writer *w, const struct native_op *op)
{
    CHECK(ok(native_op_check(op, NULL)));
    if (!buf_reserve(w->out, OP_FIXED_BYTES + op->key.size + op->value.size)) w->failed = true;
    write_u8(w, op->kind);
    write_u8(w, op->condition);
    write_u8(w, op->expiry);
    write_zeros(w, 1);
    write_u16(w, (u16)op->key.size);
    write_zeros(w, 2);
    write_u32(w, (u32)op->value.size);
    write_u64(w, op->version);
    write_u64(w, op->expiry_ms);
    write_span(w, op->key);
    write_span(w, op->value);
}

bool
native_batch_add(struct buf *ops, const struct native_op *op)
{
    size_t start = ops->size;
    struct writer w = {.out = ops};
    write_op(&w, op);
    if (w.failed) ops->size = start;
    return !w.failed;
}

bool
native_batch_next(struct bytes *ops, struct native_op *out)
{
    if (ops->size == 0) return false;
    struct reader r = reader_of(*ops);
    *out = read_op(&r);
    CHECK(!r.failed); /* native_request_decode has walked them */
    *ops = BYTES(r.data, r.size);
    return true;
}

static status
batch_check(u32 count, struct bytes ops, const char **error)
{
    if (count == 0) return refuse(error, ST_INVALID, "a batch without operations");
    if (count > LIMIT_BATCH_OPS)
        return refuse(error, ST_TOO_LARGE, "a batch of more than 65536 operations");
    static_assert(LIMIT_BATCH_OPS == 65536 && LIMIT_BATCH_BYTES == 8388608, "the texts name them");
    if (ops.size > LIMIT_BATCH_BYTES)
        return refuse(error, ST_TOO_LARGE, "a batch of more than 8388608 bytes");
    struct reader r = reader_of(ops);
    for (u32 i = 0; i < count; i++) {
        struct native_op op = read_op(&r);
        if (r.failed) return refuse(error, ST_INVALID, "malformed batch");
        status st = native_op_check(&op, error);
        if (!ok(st)) return st;
    }
    if (r.size != 0) return refuse(error, ST_INVALID, "malformed batch");
    return ST_OK;
}

/* ---- CLUSTER ---- */

status
native_cluster_check(const struct native_cluster *cluster, const char **error)
{
    /* What a function does not take is not given. */
    static const struct {
        u8 flags;
        u8 node, name; /* 0 none, 1 may be, 2 must be */
        bool options, weight;
    } takes[] = {
        [NATIVE_CLUSTER_STATUS] = {0},
        [NATIVE_CLUSTER_RING] = {0},
        [NATIVE_CLUSTER_REMOVE] = {.flags = NATIVE_CLUSTER_DEAD | NATIVE_CLUSTER_FORCE |
                                            NATIVE_CLUSTER_UNDO,
                                   .node = 2},
        [NATIVE_CLUSTER_WEIGHT] = {.node = 2, .weight = true},
        [NATIVE_CLUSTER_REPAIR] = {.node = 1},
        [NATIVE_CLUSTER_KEYSPACES] = {0},
        [NATIVE_CLUSTER_KEYSPACE_SET] = {.flags = NATIVE_CLUSTER_CREATE | NATIVE_CLUSTER_SLOPPY |
                                                  NATIVE_CLUSTER_NOT_SLOPPY,
                                         .name = 2,
                                         .options = true},
        [NATIVE_CLUSTER_KEYSPACE_FIND] = {.name = 2},
        [NATIVE_CLUSTER_DRAIN] = {.flags = NATIVE_CLUSTER_UNDO, .node = 2},
    };
    if (cluster->function == 0 || cluster->function >= ARRAY_COUNT(takes))
        return refuse(error, ST_UNSUPPORTED, "unknown function of CLUSTER");
    u32 f = cluster->function;
    if ((cluster->flags & ~takes[f].flags) != 0)
        return refuse(error, ST_UNSUPPORTED, "unknown flags of CLUSTER");
    if (cluster->node.size > NATIVE_CLUSTER_NAME_BYTES_MAX ||
        cluster->name.size > NATIVE_CLUSTER_NAME_BYTES_MAX)
        return refuse(error, ST_INVALID, "ids and names have at most 63 bytes");
    if ((cluster->node.size == 0 && takes[f].node == 2) ||
        (cluster->name.size == 0 && takes[f].name == 2))
        return refuse(error, ST_INVALID, "an id or a name is missing");
    bool options = cluster->conflict != 0 || cluster->replicas != 0 || cluster->write_quorum != 0 ||
                   cluster->read_quorum != 0 || cluster->keyspace != 0;
    if ((cluster->node.size != 0 && takes[f].node == 0) ||
        (cluster->name.size != 0 && takes[f].name == 0) || (options && !takes[f].options) ||
        (cluster->weight != 0 && !takes[f].weight))
        return refuse(error, ST_INVALID, "the function does not take that");
    const u8 either = NATIVE_CLUSTER_SLOPPY | NATIVE_CLUSTER_NOT_SLOPPY;
    if ((cluster->flags & either) == either)
        return refuse(error, ST_INVALID, "a keyspace is sloppy or not");
    if ((cluster->flags & NATIVE_CLUSTER_UNDO) != 0 && cluster->flags != NATIVE_CLUSTER_UNDO)
        return refuse(error, ST_INVALID, "a node is removed, or that is undone");
    if (cluster->conflict > 1) return refuse(error, ST_INVALID, "unknown kind of conflict");
    return ST_OK;
}

static status
decode_cluster(struct reader *r, struct native_request *out, const char **error)
{
    struct native_cluster *cluster = &out->cluster;
    cluster->function = read_u8(r);
    cluster->flags = read_u8(r);
    cluster->conflict = read_u8(r);
    cluster->replicas = read_u8(r);
    cluster->write_quorum = read_u8(r);
    cluster->read_quorum = read_u8(r);
    cluster->keyspace = read_u16(r);
    cluster->weight = read_u32(r);
    u8 node_size = read_u8(r);
    u8 name_size = read_u8(r);
    read_zeros(r, 2);
    cluster->node = read_bytes(r, node_size);
    cluster->name = read_bytes(r, name_size);
    if (!reader_done(r)) return refuse(error, ST_INVALID, "malformed CLUSTER");
    return native_cluster_check(cluster, error);
}

static void
encode_cluster(struct writer *w, const struct native_cluster *cluster)
{
    CHECK(ok(native_cluster_check(cluster, NULL)));
    write_u8(w, cluster->function);
    write_u8(w, cluster->flags);
    write_u8(w, cluster->conflict);
    write_u8(w, cluster->replicas);
    write_u8(w, cluster->write_quorum);
    write_u8(w, cluster->read_quorum);
    write_u16(w, cluster->keyspace);
    write_u32(w, cluster->weight);
    write_u8(w, (u8)cluster->node.size);
    write_u8(w, (u8)cluster->name.size);
    write_zeros(w, 2);
    write_span(w, cluster->node);
    write_span(w, cluster->name);
}

/* ---- decoding ---- */

static struct native_id
read_id(struct reader *r)
{
    struct native_id id;
    id.word[0] = read_u64(r);
    id.word[1] = read_u64(r);
    return id;
}

static status
decode_hello(struct reader *r, struct native_request *out, const char **error)
{
    out->hello.version_min = read_u8(r);
    out->hello.version_max = read_u8(r);
    u8 name_size = read_u8(r);
    u8 user_size = read_u8(r);
    u8 password_size = read_u8(r);
    read_zeros(r, 3);
    out->hello.features = read_u64(r);
    out->hello.client_name = read_bytes(r, name_size);
    out->hello.user = read_bytes(r, user_size);
    out->hello.password = read_bytes(r, password_size);
    if (!reader_done(r)) return refuse(error, ST_INVALID, "malformed HELLO");
    if (out->hello.version_min > out->hello.version_max)
        return refuse(error, ST_INVALID, "an empty range of versions");
    return ST_OK;
}

static status
decode_scan(struct reader *r, struct native_request *out, const char **error)
{
    out->scan.snapshot = read_u64(r);
    out->scan.token_first = read_u64(r);
    out->scan.token_last = read_u64(r);
    out->scan.entries_max = read_u32(r);
    out->scan.bytes_max = read_u32(r);
    out->scan.flags = read_u8(r);
    out->scan.match = read_u8(r);
    u8 given = read_u8(r);
    read_zeros(r, 1);
    u16 key_size = read_u16(r);
    u16 pattern_size = read_u16(r);
    out->scan.after.token = read_u64(r);
    out->scan.after.key = read_bytes(r, key_size);
    out->scan.pattern = read_bytes(r, pattern_size);
    out->scan.after.given = given == 1;
    if (!reader_done(r) || given > 1) return refuse(error, ST_INVALID, "malformed SCAN");
    if (given == 0 && (out->scan.after.token != 0 || key_size != 0))
        return refuse(error, ST_INVALID, "malformed SCAN");
    if (key_size > LIMIT_KEY_BYTES)
        return refuse(error, ST_TOO_LARGE, "position's key is longer than 1024 bytes");
    if (pattern_size > NATIVE_PATTERN_BYTES_MAX)
        return refuse(error, ST_TOO_LARGE, "pattern is longer than 1024 bytes");
    if (out->scan.token_first > out->scan.token_last)
        return refuse(error, ST_INVALID, "an empty range of tokens");
    if (out->scan.entries_max == 0) return refuse(error, ST_INVALID, "a page without entries");
    if ((out->scan.flags & ~NATIVE_SCAN_KEYS_ONLY) != 0)
        return refuse(error, ST_UNSUPPORTED, "unknown scan flags");
    if (out->scan.match > NATIVE_MATCH_GLOB)
        return refuse(error, ST_UNSUPPORTED, "unknown kind of match");
    if (out->scan.match == NATIVE_MATCH_ALL && pattern_size != 0)
        return refuse(error, ST_INVALID, "a pattern without its kind");
    return ST_OK;
}

static status
decode_siblings(struct reader *r, struct native_request *out, const char **error)
{
    out->id = read_id(r);
    out->siblings.kind = read_u8(r);
    read_zeros(r, 1);
    u16 key_size = read_u16(r);
    u32 context_size = read_u32(r);
    out->siblings.key = read_bytes(r, key_size);
    out->siblings.context = read_bytes(r, context_size);
    out->siblings.value = read_rest(r);
    if (!reader_done(r)) return refuse(error, ST_INVALID, "malformed write");
    struct native_op op = {
        .kind = out->siblings.kind, .key = out->siblings.key, .value = out->siblings.value};
    if (context_size > NATIVE_CONTEXT_BYTES_MAX)
        return refuse(error, ST_TOO_LARGE, "context is longer than 8192 bytes");
    return native_op_check(&op, error);
}

static status
decode_expire(struct reader *r, struct native_request *out, const char **error)
{
    out->id = read_id(r);
    out->expire.expiry = read_u8(r);
    read_zeros(r, 7);
    out->expire.expiry_ms = read_u64(r);
    out->expire.key = read_rest(r);
    if (!reader_done(r)) return refuse(error, ST_INVALID, "malformed EXPIRE");
    if (out->expire.expiry > NATIVE_EXPIRY_AT)
        return refuse(error, ST_INVALID, "unknown kind of expiry");
    if ((out->expire.expiry != NATIVE_EXPIRY_NONE) != (out->expire.expiry_ms != 0))
        return refuse(error, ST_INVALID, "an expiry time of zero, or one without its kind");
    return key_check(out->expire.key, error);
}

static status
decode_body(struct reader *r, struct native_request *out, const char **error)
{
    switch ((enum native_opcode)out->header.opcode) {
    case NATIVE_HELLO:
        return decode_hello(r, out, error);
    case NATIVE_PING:
        out->ping.payload = read_rest(r);
        if (out->ping.payload.size > NATIVE_PING_BYTES_MAX)
            return refuse(error, ST_TOO_LARGE, "payload is longer than 4096 bytes");
        return ST_OK;
    case NATIVE_GET:
    case NATIVE_GET_SIBLINGS:
        out->get.key = read_rest(r);
        return key_check(out->get.key, error);
    case NATIVE_TTL:
        out->ttl.key = read_rest(r);
        return key_check(out->ttl.key, error);
    case NATIVE_PUT:
    case NATIVE_DELETE:
        out->id = read_id(r);
        out->op = read_op(r);
        if (!reader_done(r)) return refuse(error, ST_INVALID, "malformed write");
        if ((out->op.kind == NATIVE_OP_PUT) != (out->header.opcode == NATIVE_PUT))
            return refuse(error, ST_INVALID, "the operation is not the opcode's");
        return native_op_check(&out->op, error);
    case NATIVE_PUT_SIBLINGS:
        return decode_siblings(r, out, error);
    case NATIVE_BATCH:
        out->id = read_id(r);
        out->batch.count = read_u32(r);
        out->batch.ops = read_rest(r);
        if (r->failed) return refuse(error, ST_INVALID, "malformed batch");
        return batch_check(out->batch.count, out->batch.ops, error);
    case NATIVE_SCAN:
        return decode_scan(r, out, error);
    case NATIVE_SNAPSHOT_OPEN:
        out->snapshot_open.lease_ms = read_u32(r);
        break;
    case NATIVE_SNAPSHOT_CLOSE:
        out->snapshot_close.snapshot = read_u64(r);
        break;
    case NATIVE_EXPIRE:
        return decode_expire(r, out, error);
    case NATIVE_COUNT: {
        u8 exact = read_u8(r);
        if (exact > 1) return refuse(error, ST_INVALID, "malformed COUNT");
        out->count.exact = exact == 1;
        break;
    }
    case NATIVE_STATUS:
        break;
    case NATIVE_CLUSTER:
        return decode_cluster(r, out, error);
    case NATIVE_TOPOLOGY:
        out->topology.epoch = read_u64(r);
        break;
    }
    if (!reader_done(r)) return refuse(error, ST_INVALID, "malformed body");
    return ST_OK;
}

status
native_request_decode(const struct native_header *header, struct bytes body,
                      struct native_request *out, const char **error)
{
    if ((header->flags & ~NATIVE_LEVEL_MASK) != 0 || header->status != 0)
        return refuse(error, ST_INVALID, "a reply where a request was expected");
    if (!native_opcode_known(header->opcode))
        return refuse(error, ST_UNSUPPORTED, "unknown opcode");
    if (header->keyspace >= LIMIT_KEYSPACES_CLIENT)
        return refuse(error, ST_INVALID, "keyspace is out of range");
    struct native_request request = {.header = *header};
    struct reader r = reader_of(body);
    status st = decode_body(&r, &request, error);
    if (!ok(st)) return st;
    *out = request;
    return ST_OK;
}

/* ---- encoding ---- */

static void
write_id(struct writer *w, const struct native_id *id)
{
    write_u64(w, id->word[0]);
    write_u64(w, id->word[1]);
}

static void
encode_hello(struct writer *w, const struct native_request *request)
{
    CHECK(request->hello.client_name.size <= NATIVE_NAME_BYTES_MAX);
    CHECK(request->hello.user.size <= NATIVE_NAME_BYTES_MAX);
    CHECK(request->hello.password.size <= NATIVE_NAME_BYTES_MAX);
    write_u8(w, request->hello.version_min);
    write_u8(w, request->hello.version_max);
    write_u8(w, (u8)request->hello.client_name.size);
    write_u8(w, (u8)request->hello.user.size);
    write_u8(w, (u8)request->hello.password.size);
    write_zeros(w, 3);
    write_u64(w, request->hello.features);
    write_span(w, request->hello.client_name);
    write_span(w, request->hello.user);
    write_span(w, request->hello.password);
}

static void
encode_scan(struct writer *w, const struct native_request *request)
{
    const struct native_position *after = &request->scan.after;
    struct bytes after_key = after->given ? after->key : BYTES(NULL, 0);
    CHECK(after_key.size <= LIMIT_KEY_BYTES);
    CHECK(request->scan.pattern.size <= NATIVE_PATTERN_BYTES_MAX);
    write_u64(w, request->scan.snapshot);
    write_u64(w, request->scan.token_first);
    write_u64(w, request->scan.token_last);
    write_u32(w, request->scan.entries_max);
    write_u32(w, request->scan.bytes_max);
    write_u8(w, request->scan.flags);
    write_u8(w, request->scan.match);
    write_u8(w, after->given ? 1 : 0);
    write_zeros(w, 1);
    write_u16(w, (u16)after_key.size);
    write_u16(w, (u16)request->scan.pattern.size);
    write_u64(w, after->given ? after->token : 0);
    write_span(w, after_key);
    write_span(w, request->scan.pattern);
}

static void
encode_body(struct writer *w, const struct native_request *request)
{
    switch ((enum native_opcode)request->header.opcode) {
    case NATIVE_HELLO:
        encode_hello(w, request);
        break;
    case NATIVE_PING:
        CHECK(request->ping.payload.size <= NATIVE_PING_BYTES_MAX);
        write_span(w, request->ping.payload);
        break;
    case NATIVE_GET:
    case NATIVE_GET_SIBLINGS:
        write_span(w, request->get.key);
        break;
    case NATIVE_TTL:
        write_span(w, request->ttl.key);
        break;
    case NATIVE_PUT:
    case NATIVE_DELETE:
        CHECK((request->op.kind == NATIVE_OP_PUT) == (request->header.opcode == NATIVE_PUT));
        write_id(w, &request->id);
        write_op(w, &request->op);
        break;
    case NATIVE_PUT_SIBLINGS:
        CHECK(request->siblings.context.size <= NATIVE_CONTEXT_BYTES_MAX);
        CHECK(request->siblings.key.size <= LIMIT_KEY_BYTES);
        write_id(w, &request->id);
        write_u8(w, request->siblings.kind);
        write_zeros(w, 1);
        write_u16(w, (u16)request->siblings.key.size);
        write_u32(w, (u32)request->siblings.context.size);
        write_span(w, request->siblings.key);
        write_span(w, request->siblings.context);
        write_span(w, request->siblings.value);
        break;
    case NATIVE_BATCH:
        CHECK(request->batch.ops.size <= LIMIT_BATCH_BYTES);
        write_id(w, &request->id);
        write_u32(w, request->batch.count);
        write_span(w, request->batch.ops);
        break;
    case NATIVE_SCAN:
        encode_scan(w, request);
        break;
    case NATIVE_SNAPSHOT_OPEN:
        write_u32(w, request->snapshot_open.lease_ms);
        break;
    case NATIVE_SNAPSHOT_CLOSE:
        write_u64(w, request->snapshot_close.snapshot);
        break;
    case NATIVE_EXPIRE:
        write_id(w, &request->id);
        write_u8(w, request->expire.expiry);
        write_zeros(w, 7);
        write_u64(w, request->expire.expiry_ms);
        write_span(w, request->expire.key);
        break;
    case NATIVE_COUNT:
        write_u8(w, request->count.exact ? 1 : 0);
        break;
    case NATIVE_STATUS:
        break;
    case NATIVE_CLUSTER:
        encode_cluster(w, &request->cluster);
        break;
    case NATIVE_TOPOLOGY:
        write_u64(w, request->topology.epoch);
        break;
    }
}

bool
native_request_encode(struct buf *out, const struct native_request *request)
{
    CHECK(native_opcode_known(request->header.opcode));
    CHECK((request->header.flags & ~NATIVE_LEVEL_MASK) == 0 && request->header.status == 0);
    size_t start;
    if (!native_frame_begin(out, &request->header, &start)) return false;
    struct writer w = {.out = out};
    encode_body(&w, request);
    if (w.failed) {
        out->size = start;
        return false;
    }
    native_frame_end(out, start);
    return true;
}
