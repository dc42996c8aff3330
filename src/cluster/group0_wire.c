/* SPDX-License-Identifier: MIT
 *
 * group0_wire.c -- keys, values and bodies of frames of group0 as bytes. Pure; every size is
 * checked against what is there before it is used. Values and bodies begin with a version, 1.
 */
#include "base/hash.h"
#include "cluster/group0_internal.h"

enum { VERSION = 1 };
#define TAG_BYTES (sizeof(GROUP0_TAG) - 1)

/* ---- keys ---- */

static void
store_big(u8 *out, u64 value, u32 bytes)
{
    for (u32 i = 0; i < bytes; i++)
        out[i] = (u8)(value >> (8 * (bytes - 1 - i)));
}

static u64
load_big(const u8 *data, u32 bytes)
{
    u64 value = 0;
    for (u32 i = 0; i < bytes; i++)
        value = value << 8 | data[i];
    return value;
}

static u32
key_bytes(u8 kind)
{
    return (u32)TAG_BYTES + 1 +
           (kind == GROUP0_KEY_CHUNK    ? 12
            : kind == GROUP0_KEY_LOG    ? 8
            : kind == GROUP0_KEY_STARTS ? 4
                                        : 0);
}

struct group0_key
group0_key(enum group0_key_kind kind, u64 index, u32 number)
{
    struct group0_key key = {.size = key_bytes((u8)kind)};
    memcpy(key.bytes, GROUP0_TAG, TAG_BYTES);
    key.bytes[TAG_BYTES] = (u8)kind;
    if (kind == GROUP0_KEY_LOG || kind == GROUP0_KEY_CHUNK)
        store_big(key.bytes + TAG_BYTES + 1, index, 8);
    if (kind == GROUP0_KEY_CHUNK) store_big(key.bytes + TAG_BYTES + 9, number, 4);
    if (kind == GROUP0_KEY_STARTS) store_big(key.bytes + TAG_BYTES + 1, number, 4);
    return key;
}

bool
group0_key_parse(struct bytes key, u8 *kind, u64 *index, u32 *number)
{
    if (key.size <= TAG_BYTES || memcmp(key.data, GROUP0_TAG, TAG_BYTES) != 0) return false;
    *kind = key.data[TAG_BYTES];
    *index = 0;
    *number = 0;
    if (key.size != key_bytes(*kind)) return false;
    if (key.size >= TAG_BYTES + 9) *index = load_big(key.data + TAG_BYTES + 1, 8);
    if (*kind == GROUP0_KEY_STARTS) *number = (u32)load_big(key.data + TAG_BYTES + 1, 4);
    if (key.size >= TAG_BYTES + 13) *number = (u32)load_big(key.data + TAG_BYTES + 9, 4);
    return true;
}

u64
group0_token(void)
{
    return hash_token(BYTES(GROUP0_TAG, TAG_BYTES));
}

/* ---- values ---- */

static bool
begins_right(struct bytes bytes, size_t size)
{
    return bytes.size >= size && bytes.data[0] == VERSION && bytes.data[1] == 0 &&
           bytes.data[2] == 0 && bytes.data[3] == 0;
}

static bool
name_ends(const char *name)
{
    return memchr(name, 0, TOPOLOGY_NAME_BYTES) != NULL;
}

/* version, zero x 3 | member : u32 | incarnation : u64 | cluster id : u64 | node id : 64 */
void
group0_identity_encode(const struct group0_identity *identity, u8 out[GROUP0_IDENTITY_BYTES])
{
    memset(out, 0, GROUP0_IDENTITY_BYTES);
    out[0] = VERSION;
    store_u32(out + 4, identity->member);
    store_u64(out + 8, identity->incarnation);
    store_u64(out + 16, identity->cluster_id);
    memcpy(out + 24, identity->node_id, strlen(identity->node_id));
}

status
group0_identity_decode(struct bytes bytes, struct group0_identity *out)
{
    if (bytes.size != GROUP0_IDENTITY_BYTES || !begins_right(bytes, bytes.size)) return ST_CORRUPT;
    struct group0_identity identity = {.member = load_u32(bytes.data + 4),
                                       .incarnation = load_u64(bytes.data + 8),
                                       .cluster_id = load_u64(bytes.data + 16)};
    memcpy(identity.node_id, bytes.data + 24, TOPOLOGY_NAME_BYTES);
    if (!name_ends(identity.node_id) || identity.incarnation == 0) return ST_CORRUPT;
    if ((identity.member == 0) != (identity.cluster_id == 0)) return ST_CORRUPT;
    *out = identity;
    return ST_OK;
}

/* version, zero x 7 | term : u64 | vote : u64 */
void
group0_hard_encode(struct raft_hard_state hard, u8 out[GROUP0_HARD_BYTES])
{
    memset(out, 0, 8);
    out[0] = VERSION;
    store_u64(out + 8, hard.term);
    store_u64(out + 16, hard.vote);
}

status
group0_hard_decode(struct bytes bytes, struct raft_hard_state *out)
{
    if (bytes.size != GROUP0_HARD_BYTES || !begins_right(bytes, bytes.size)) return ST_CORRUPT;
    *out = (struct raft_hard_state){load_u64(bytes.data + 8), load_u64(bytes.data + 16)};
    return ST_OK;
}

/* version, zero x 7 | index : u64 */
void
group0_commit_encode(u64 index, u8 out[GROUP0_COMMIT_BYTES])
{
    memset(out, 0, 8);
    out[0] = VERSION;
    store_u64(out + 8, index);
}

status
group0_commit_decode(struct bytes bytes, u64 *out)
{
    if (bytes.size != GROUP0_COMMIT_BYTES || !begins_right(bytes, bytes.size)) return ST_CORRUPT;
    *out = load_u64(bytes.data + 8);
    return ST_OK;
}

/* version, zero x 3 | chunks : u32 | index : u64 | term : u64 | bytes : u64 | configuration */
bool
group0_base_encode(const struct group0_base *base, struct buf *out)
{
    u8 header[GROUP0_BASE_HEADER] = {VERSION};
    store_u32(header + 4, base->chunk_count);
    store_u64(header + 8, base->index);
    store_u64(header + 16, base->term);
    store_u64(header + 24, base->bytes);
    if (!buf_reserve(out, sizeof(header) + base->config.size)) return false;
    return buf_append(out, header, sizeof(header)) &&
           buf_append(out, base->config.data, base->config.size);
}

status
group0_base_decode(struct bytes bytes, struct group0_base *out)
{
    if (!begins_right(bytes, GROUP0_BASE_HEADER)) return ST_CORRUPT;
    struct group0_base base = {
        .chunk_count = load_u32(bytes.data + 4),
        .index = load_u64(bytes.data + 8),
        .term = load_u64(bytes.data + 16),
        .bytes = load_u64(bytes.data + 24),
        .config = BYTES(bytes.data + GROUP0_BASE_HEADER, bytes.size - GROUP0_BASE_HEADER),
    };
    if (base.index == 0 || base.term == 0 || base.bytes > GROUP0_TOPOLOGY_BYTES_MAX)
        return ST_CORRUPT;
    if (base.chunk_count != (base.bytes + GROUP0_CHUNK_BYTES - 1) / GROUP0_CHUNK_BYTES)
        return ST_CORRUPT;
    *out = base;
    return ST_OK;
}

/* version, zero x 3 | kind : u8, zero x 3 | term : u64 | data */
void
group0_log_encode(u64 term, u8 kind, u8 out[GROUP0_LOG_HEADER])
{
    memset(out, 0, 8);
    out[0] = VERSION;
    out[4] = kind;
    store_u64(out + 8, term);
}

status
group0_log_decode(struct bytes bytes, u64 *term, u8 *kind, struct bytes *data)
{
    if (!begins_right(bytes, GROUP0_LOG_HEADER)) return ST_CORRUPT;
    if (bytes.data[4] >= RAFT_ENTRY_KIND_COUNT || load_u64(bytes.data + 8) == 0) return ST_CORRUPT;
    *kind = bytes.data[4];
    *term = load_u64(bytes.data + 8);
    *data = BYTES(bytes.data + GROUP0_LOG_HEADER, bytes.size - GROUP0_LOG_HEADER);
    return ST_OK;
}

/* ---- bodies of frames ---- */

static void
reason_copy(char out[TOPOLOGY_REASON_BYTES], const u8 *data, size_t size)
{
    size = MIN(size, (size_t)TOPOLOGY_REASON_BYTES - 1);
    if (size > 0) memcpy(out, data, size);
    out[size] = 0;
    for (size_t i = 0; i < size; i++) /* it goes to logs and terminals */
        if ((u8)out[i] < ' ' || out[i] == 127) out[i] = '?';
}

/* version, host's size : u8 each | port : u16 | shards : u32 | host; then the message */
u32
group0_envelope_encode(const struct peer_address *address, u8 out[GROUP0_ENVELOPE_BYTES_MAX])
{
    size_t size = address->port != 0 ? strlen(address->host) : 0;
    CHECK(size < PEER_HOST_BYTES);
    out[0] = VERSION;
    out[1] = (u8)size;
    store_u16(out + 2, address->port);
    store_u32(out + 4, address->port != 0 ? address->shard_count : 0);
    if (size > 0) memcpy(out + 8, address->host, size);
    return (u32)(8 + size);
}

status
group0_envelope_decode(struct bytes bytes, struct peer_address *address_out,
                       struct bytes *message_out)
{
    if (bytes.size < 8 || bytes.data[0] != VERSION) return ST_CORRUPT;
    size_t size = bytes.data[1];
    if (size >= PEER_HOST_BYTES || size > bytes.size - 8) return ST_CORRUPT;
    struct peer_address address = {.port = load_u16(bytes.data + 2),
                                   .shard_count = load_u32(bytes.data + 4)};
    if (size > 0) memcpy(address.host, bytes.data + 8, size);
    if ((address.port == 0) != (size == 0) || address.shard_count > LIMIT_SHARDS) return ST_CORRUPT;
    if ((address.port == 0) != (address.shard_count == 0)) return ST_CORRUPT;
    if (memchr(address.host, 0, size) != NULL) return ST_CORRUPT;
    *address_out = address;
    *message_out = BYTES(bytes.data + 8 + size, bytes.size - 8 - size);
    return ST_OK;
}

static MUST_CHECK bool
address_put(const struct peer_address *address, struct buf *out)
{
    u8 bytes[GROUP0_ENVELOPE_BYTES_MAX];
    return buf_append(out, bytes, group0_envelope_encode(address, bytes));
}

/* version, asks : u8 each, zero x 2 | member : u32 | address, as an envelope | starts; then places
 */
#define TOLD_HEADER 8u

bool
group0_told_encode(const struct group0_told *told, struct buf *out)
{
    u8 header[TOLD_HEADER] = {VERSION, told->asks}, starts[STARTS_BYTES_MAX];
    store_u32(header + 4, told->member);
    return buf_append(out, header, sizeof(header)) && address_put(&told->address, out) &&
           buf_append(out, starts, starts_encode(&told->own, starts));
}

status
group0_told_decode(struct bytes bytes, struct group0_told *out)
{
    if (bytes.size < TOLD_HEADER || bytes.data[0] != VERSION || bytes.data[1] > 1 ||
        load_u16(bytes.data + 2) != 0)
        return ST_CORRUPT;
    struct group0_told told = {.asks = bytes.data[1] != 0, .member = load_u32(bytes.data + 4)};
    struct bytes rest = BYTES(bytes.data + TOLD_HEADER, bytes.size - TOLD_HEADER);
    size_t size;
    status st = group0_envelope_decode(rest, &told.address, &rest);
    if (ok(st)) st = starts_decode(rest, &told.own, &size);
    if (!ok(st)) return st;
    if (told.member == 0 || told.address.port == 0) return ST_CORRUPT;
    told.others = BYTES(rest.data + size, rest.size - size);
    *out = told;
    return ST_OK;
}

/* member : u32 | address, as an envelope */
bool
group0_place_put(const struct group0_place *place, struct buf *out)
{
    u8 member[4];
    store_u32(member, place->member);
    return buf_append(out, member, sizeof(member)) && address_put(&place->address, out);
}

status
group0_place_take(struct bytes *bytes, struct group0_place *out)
{
    if (bytes->size == 0) return ST_NOT_FOUND;
    if (bytes->size < 4) return ST_CORRUPT;
    struct group0_place place = {.member = load_u32(bytes->data)};
    struct bytes rest = BYTES(bytes->data + 4, bytes->size - 4);
    status st = group0_envelope_decode(rest, &place.address, &rest);
    if (!ok(st)) return st;
    if (place.member == 0 || place.address.port == 0) return ST_CORRUPT;
    *bytes = rest;
    *out = place;
    return ST_OK;
}

/* version, zero x 3 | result : u8, zero x 3 | leader : u32 | reason's size : u32 | index : u64 |
 * reason */
#define OUTCOME_HEADER 24u

bool
group0_outcome_encode(const struct group0_outcome *outcome, struct buf *out)
{
    size_t size = strlen(outcome->reason);
    u8 header[OUTCOME_HEADER] = {VERSION, 0, 0, 0, outcome->result};
    store_u32(header + 8, outcome->leader);
    store_u32(header + 12, (u32)size);
    store_u64(header + 16, outcome->index);
    if (!buf_reserve(out, sizeof(header) + size)) return false;
    return buf_append(out, header, sizeof(header)) && buf_append(out, outcome->reason, size);
}

status
group0_outcome_decode(struct bytes bytes, struct group0_outcome *out)
{
    if (!begins_right(bytes, OUTCOME_HEADER)) return ST_CORRUPT;
    u32 size = load_u32(bytes.data + 12);
    if (bytes.data[4] >= GROUP0_RESULT_COUNT || size != bytes.size - OUTCOME_HEADER)
        return ST_CORRUPT;
    out->result = bytes.data[4];
    out->leader = load_u32(bytes.data + 8);
    out->index = load_u64(bytes.data + 16);
    reason_copy(out->reason, bytes.data + OUTCOME_HEADER, size);
    return ST_OK;
}

/* version, zero x 3 | member : u32 | cluster id : u64 | reason's size : u32 | topology's size : u32
 * | reason | topology */
#define WELCOME_HEADER 24u

bool
group0_welcome_encode(const struct group0_welcome *welcome, struct buf *out)
{
    size_t size = strlen(welcome->reason);
    u8 header[WELCOME_HEADER] = {VERSION};
    store_u32(header + 4, welcome->member);
    store_u64(header + 8, welcome->cluster_id);
    store_u32(header + 16, (u32)size);
    store_u32(header + 20, (u32)welcome->topology.size);
    if (!buf_reserve(out, sizeof(header) + size + welcome->topology.size)) return false;
    return buf_append(out, header, sizeof(header)) && buf_append(out, welcome->reason, size) &&
           buf_append(out, welcome->topology.data, welcome->topology.size);
}

status
group0_welcome_decode(struct bytes bytes, struct group0_welcome *out)
{
    if (!begins_right(bytes, WELCOME_HEADER)) return ST_CORRUPT;
    u64 size = load_u32(bytes.data + 16), topology = load_u32(bytes.data + 20);
    if (size + topology != bytes.size - WELCOME_HEADER) return ST_CORRUPT;
    out->member = load_u32(bytes.data + 4);
    out->cluster_id = load_u64(bytes.data + 8);
    reason_copy(out->reason, bytes.data + WELCOME_HEADER, size);
    out->topology = BYTES(bytes.data + WELCOME_HEADER + size, topology);
    if ((out->member == 0) != (out->cluster_id == 0)) return ST_CORRUPT;
    return ST_OK;
}

/* version, zero x 3 | configuration's size : u32 | from, to, term, index, log_term, total, offset :
 * u64 each | configuration | data */
#define CHUNK_HEADER 64u

bool
group0_chunk_encode(const struct group0_chunk *chunk, struct buf *out)
{
    u8 header[CHUNK_HEADER] = {VERSION};
    store_u32(header + 4, (u32)chunk->config.size);
    const u64 numbers[7] = {chunk->from,     chunk->to,    chunk->term,  chunk->index,
                            chunk->log_term, chunk->total, chunk->offset};
    for (u32 i = 0; i < 7; i++)
        store_u64(header + 8 + 8 * i, numbers[i]);
    if (!buf_reserve(out, sizeof(header) + chunk->config.size)) return false;
    return buf_append(out, header, sizeof(header)) &&
           buf_append(out, chunk->config.data, chunk->config.size);
}

status
group0_chunk_decode(struct bytes bytes, struct group0_chunk *out)
{
    if (!begins_right(bytes, CHUNK_HEADER)) return ST_CORRUPT;
    u64 config = load_u32(bytes.data + 4);
    if (config > bytes.size - CHUNK_HEADER || config > RAFT_CONFIG_BYTES(RAFT_MEMBERS_MAX))
        return ST_CORRUPT;
    u64 numbers[7];
    for (u32 i = 0; i < 7; i++)
        numbers[i] = load_u64(bytes.data + 8 + 8 * i);
    struct group0_chunk chunk = {
        .from = numbers[0],
        .to = numbers[1],
        .term = numbers[2],
        .index = numbers[3],
        .log_term = numbers[4],
        .total = numbers[5],
        .offset = numbers[6],
        .config = BYTES(bytes.data + CHUNK_HEADER, config),
        .data = BYTES(bytes.data + CHUNK_HEADER + config, bytes.size - CHUNK_HEADER - config),
    };
    if (chunk.total == 0 || chunk.total > GROUP0_TOPOLOGY_BYTES_MAX || chunk.data.size == 0)
        return ST_CORRUPT;
    if (chunk.offset > chunk.total || chunk.data.size > chunk.total - chunk.offset)
        return ST_CORRUPT;
    *out = chunk;
    return ST_OK;
}
