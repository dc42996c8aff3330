/* SPDX-License-Identifier: MIT
 *
 * peer_replica.c -- see peer_replica.h.
 */
#include "proto/peer_replica.h"

#include "proto/native_codec.h"

size_t
peer_write_head(const struct peer_write *write, u8 *out)
{
    memset(out, 0, PEER_WRITE_HEAD_BYTES);
    store_u64(out, write->version);
    store_u32(out + 8, write->partition);
    store_u32(out + 12, write->count);
    out[16] = write->flags;
    store_u32(out + 20, write->session);
    return PEER_WRITE_HEAD_BYTES;
}

size_t
peer_wrote_encode(const struct peer_wrote *wrote, u8 *out)
{
    store_u64(out, wrote->newer);
    return PEER_WROTE_BYTES;
}

size_t
peer_read_head(const struct peer_read *read, u8 *out)
{
    memset(out, 0, PEER_READ_HEAD_BYTES);
    store_u32(out, read->partition);
    out[4] = read->want;
    return PEER_READ_HEAD_BYTES;
}

size_t
peer_found_head(const struct peer_found *found, u8 *out)
{
    memset(out, 0, PEER_FOUND_HEAD_BYTES);
    store_u64(out, found->version);
    store_u64(out + 8, found->expire_ms);
    out[16] = found->found;
    return PEER_FOUND_HEAD_BYTES;
}

status
peer_write_decode(struct bytes body, struct peer_write *out)
{
    struct reader r = reader_of(body);
    struct peer_write write = {.version = read_u64(&r)};
    write.partition = read_u32(&r);
    write.count = read_u32(&r);
    write.flags = read_u8(&r);
    read_zeros(&r, 3);
    write.session = read_u32(&r);
    write.ops = read_rest(&r);
    bool stands_in = write.flags & PEER_WRITE_STAND_IN;
    bool names = stands_in || (write.flags & PEER_WRITE_TREE);
    if (!reader_done(&r) || names != (write.session != 0) ||
        (stands_in && write.flags != PEER_WRITE_STAND_IN) || write.version == 0 ||
        write.count == 0 || write.count > LIMIT_BATCH_OPS ||
        (write.flags & ~PEER_WRITE_FLAGS_KNOWN) != 0 || write.partition >= SLOT_COUNT ||
        write.ops.size == 0 || write.ops.size > LIMIT_BATCH_BYTES)
        return ST_INVALID;
    *out = write;
    return ST_OK;
}

status
peer_wrote_decode(struct bytes body, struct peer_wrote *out)
{
    struct reader r = reader_of(body);
    struct peer_wrote wrote = {.newer = read_u64(&r)};
    if (!reader_done(&r)) return ST_INVALID;
    *out = wrote;
    return ST_OK;
}

status
peer_read_decode(struct bytes body, struct peer_read *out)
{
    struct reader r = reader_of(body);
    struct peer_read read = {.partition = read_u32(&r)};
    read.want = read_u8(&r);
    read_zeros(&r, 3);
    read.key = read_rest(&r);
    if (!reader_done(&r) || read.partition >= SLOT_COUNT || read.want > PEER_WANT_VALUE ||
        read.key.size == 0 || read.key.size > LIMIT_KEY_BYTES)
        return ST_INVALID;
    *out = read;
    return ST_OK;
}

status
peer_found_decode(struct bytes body, struct peer_found *out)
{
    struct reader r = reader_of(body);
    struct peer_found found = {.version = read_u64(&r)};
    found.expire_ms = read_u64(&r);
    u8 flag = read_u8(&r);
    read_zeros(&r, 7);
    found.value = read_rest(&r);
    found.found = flag == 1;
    if (!reader_done(&r) || flag > 1 || (flag == 0 && found.value.size > 0) ||
        (flag == 1 && found.version == 0) || found.value.size > LIMIT_VALUE_BYTES)
        return ST_INVALID;
    *out = found;
    return ST_OK;
}
