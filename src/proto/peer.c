/* SPDX-License-Identifier: MIT
 *
 * peer.c -- see peer.h. Bodies are bounded and read whole before anything of them is believed.
 */
#include "proto/peer.h"

#include "proto/native_codec.h"

const char *
peer_opcode_name(u32 opcode)
{
    switch (opcode) {
#define X(name, number)                                                                            \
    case number:                                                                                   \
        return #name;
        PEER_OPCODE_LIST(X)
#undef X
    default:
        return "?";
    }
}

size_t
peer_hello_encode(const struct peer_hello *hello, u8 out[PEER_HELLO_BYTES_MAX])
{
    const char *end = memchr(hello->node_id, 0, PEER_NODE_ID_BYTES - 1);
    size_t id_size = end != NULL ? (size_t)(end - hello->node_id) : PEER_NODE_ID_BYTES - 1;
    u8 *at = out;
    *at++ = hello->version_min;
    *at++ = hello->version_max;
    store_u16(at, hello->shard);
    store_u32(at + 2, hello->features);
    store_u32(at + 6, hello->requests_max);
    store_u32(at + 10, hello->member);
    store_u64(at + 14, hello->cluster_id);
    store_u64(at + 22, hello->incarnation);
    at += 30;
    memcpy(at, hello->nonce, PEER_NONCE_BYTES);
    at += PEER_NONCE_BYTES;
    *at++ = (u8)id_size;
    memcpy(at, hello->node_id, id_size);
    return (size_t)(at - out) + id_size;
}

status
peer_hello_decode(struct bytes body, struct peer_hello *out, size_t *size_out)
{
    struct reader r = reader_of(body);
    struct peer_hello hello = {.version_min = read_u8(&r)};
    hello.version_max = read_u8(&r);
    hello.shard = read_u16(&r);
    hello.features = read_u32(&r);
    hello.requests_max = read_u32(&r);
    hello.member = read_u32(&r);
    hello.cluster_id = read_u64(&r);
    hello.incarnation = read_u64(&r);
    struct bytes nonce = read_bytes(&r, PEER_NONCE_BYTES);
    struct bytes id = read_bytes(&r, read_u8(&r));
    if (r.failed || id.size >= PEER_NODE_ID_BYTES) return ST_INVALID;
    if (hello.version_min > hello.version_max || hello.version_min == 0) return ST_INVALID;
    if (hello.cluster_id == 0 && hello.member != 0) return ST_INVALID;
    /* It goes into logs: printable, and no 0 within. */
    for (size_t i = 0; i < id.size; i++)
        if (id.data[i] <= ' ' || id.data[i] > '~') return ST_INVALID;
    memcpy(hello.nonce, nonce.data, PEER_NONCE_BYTES);
    if (id.size > 0) memcpy(hello.node_id, id.data, id.size);
    *out = hello;
    *size_out = body.size - r.size;
    return ST_OK;
}

u8
peer_version_choose(const struct peer_hello *ours, const struct peer_hello *theirs)
{
    u8 version = MIN(ours->version_max, theirs->version_max);
    return version >= ours->version_min && version >= theirs->version_min ? version : 0;
}

void
peer_proof(struct bytes secret, enum peer_direction direction, struct bytes hello_connects,
           struct bytes hello_listens, u8 out[HMAC_BYTES])
{
    /* Sizes go along, so that no two pairs of hellos are the same bytes. */
    u8 head[9];
    head[0] = (u8)direction;
    store_u32(head + 1, (u32)hello_connects.size);
    store_u32(head + 5, (u32)hello_listens.size);
    struct bytes parts[] = {BYTES_LITERAL("distkv peer 1"), BYTES(head, sizeof(head)),
                            hello_connects, hello_listens};
    hmac_sha256(secret, parts, ARRAY_COUNT(parts), out);
}
