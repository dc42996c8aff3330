/* SPDX-License-Identifier: MIT
 *
 * native.c -- frames of the native protocol, and the names of its numbers.
 *
 * The header has a checksum of its own so that a length is believed only when it is whole: a
 * flipped bit in it would otherwise make the reader wait for megabytes that never come. The body's
 * checksum lies inside the header's range, so header and body cannot be mixed between frames.
 *
 * The header's layout is the same in all versions of the protocol; that is what lets a server step
 * over a frame of a newer one and say so.
 */
#include "proto/native.h"

#include "base/crc.h"

struct ONDISK native_header_wire {
    u32 magic;
    u8 version;
    u8 opcode;
    u16 flags;
    u64 request_id;
    u64 epoch;
    u32 timeout_ms;
    u32 body_size;
    u16 keyspace;
    u16 status;
    u32 body_crc;
    u32 age_ms;
    u32 header_crc;
};
static_assert(sizeof(struct native_header_wire) == NATIVE_HEADER_BYTES, "as documented");
static_assert(offsetof(struct native_header_wire, header_crc) == 44, "as documented");

/* ---- names ---- */

bool
native_opcode_known(u32 opcode)
{
    switch (opcode) {
#define X(name, number) case number:
        NATIVE_OPCODE_LIST(X)
#undef X
        return true;
    default:
        return false;
    }
}

const char *
native_opcode_name(u32 opcode)
{
    switch (opcode) {
#define X(name, number)                                                                            \
    case number:                                                                                   \
        return #name;
        NATIVE_OPCODE_LIST(X)
#undef X
    default:
        return "?";
    }
}

const char *
native_status_name(u32 native_status)
{
    switch (native_status) {
#define X(name, number, code, again)                                                               \
    case number:                                                                                   \
        return #name;
        NATIVE_STATUS_LIST(X)
#undef X
    default:
        return "?";
    }
}

status
native_status_to_base(u32 native_status)
{
    switch (native_status) {
#define X(name, number, code, again)                                                               \
    case number:                                                                                   \
        return ST_##code;
        NATIVE_STATUS_LIST(X)
#undef X
    default:
        return ST_UNSUPPORTED;
    }
}

bool
native_status_retryable(u32 native_status)
{
    switch (native_status) {
#define X(name, number, code, again)                                                               \
    case number:                                                                                   \
        return again;
        NATIVE_STATUS_LIST(X)
#undef X
    default:
        return false;
    }
}

enum native_status
native_status_of(status st)
{
    switch ((enum status_code)st.code) {
    case SC_OK:
        return NATIVE_ST_OK;
    case SC_NOT_FOUND:
        return NATIVE_ST_NOT_FOUND;
    case SC_EXISTS:
    case SC_CONFLICT:
        return NATIVE_ST_CONFLICT;
    case SC_INVALID:
        return NATIVE_ST_INVALID;
    case SC_TOO_LARGE:
        return NATIVE_ST_TOO_LARGE;
    case SC_UNSUPPORTED:
        return NATIVE_ST_UNSUPPORTED;
    case SC_CORRUPT:
        return NATIVE_ST_DAMAGED;
    case SC_WOULD_WAIT:
    case SC_OVERLOADED:
        return NATIVE_ST_OVERLOADED;
    case SC_TIMED_OUT:
        return NATIVE_ST_TIMED_OUT;
    case SC_NO_SPACE:
        return NATIVE_ST_NO_SPACE;
    case SC_NO_MEMORY:
        return NATIVE_ST_NO_MEMORY;
    case SC_FULL:
        return NATIVE_ST_FULL;
    case SC_READ_ONLY:
        return NATIVE_ST_READ_ONLY;
    case SC_CLOSED:
    case SC_LOCKED:
        return NATIVE_ST_CLOSING;
    case SC_UNAVAILABLE:
        return NATIVE_ST_UNAVAILABLE;
    case SC_UNKNOWN_OUTCOME:
        return NATIVE_ST_UNKNOWN_OUTCOME;
    case SC_END:
    case SC_INCOMPLETE:
    case SC_CANCELED:
    case SC_IO_ERROR:
    case SC_DENIED:
    case SC_MOUNTED_READ_ONLY:
    case SC_NOT_DIRECTORY:
    case SC_PAUSED:
    case STATUS_CODE_COUNT:
        break;
    }
    return NATIVE_ST_IO_ERROR;
}

bool
native_opcode_writes(u32 opcode)
{
    return opcode == NATIVE_PUT || opcode == NATIVE_DELETE || opcode == NATIVE_BATCH ||
           opcode == NATIVE_EXPIRE || opcode == NATIVE_PUT_SIBLINGS;
}

/* ---- frames ---- */

static bool
magic_possible(struct bytes data)
{
    static const u8 magic[4] = {NATIVE_FIRST_BYTE, 'D', 'K', 'V'};
    static_assert(NATIVE_MAGIC == (NATIVE_FIRST_BYTE | 'D' << 8 | 'K' << 16 | 'V' << 24),
                  "one magic, spelt twice");
    size_t size = MIN(data.size, sizeof(magic));
    return size == 0 || memcmp(data.data, magic, size) == 0;
}

status
native_header_decode(struct bytes data, struct native_header *out)
{
    if (!magic_possible(data)) return ST_CORRUPT;
    if (data.size < NATIVE_HEADER_BYTES) return ST_INCOMPLETE;
    struct native_header_wire wire;
    memcpy(&wire, data.data, sizeof(wire));
    u32 crc = crc32c(0, data.data, offsetof(struct native_header_wire, header_crc));
    if (wire.header_crc != crc) return ST_CORRUPT;
    if (wire.body_size > NATIVE_FRAME_BYTES_MAX - NATIVE_HEADER_BYTES) return ST_CORRUPT;
    *out = (struct native_header){
        .version = wire.version,
        .opcode = wire.opcode,
        .flags = wire.flags,
        .request_id = wire.request_id,
        .epoch = wire.epoch,
        .timeout_ms = wire.timeout_ms,
        .body_size = wire.body_size,
        .keyspace = wire.keyspace,
        .status = wire.status,
        .body_crc = wire.body_crc,
        .age_ms = wire.age_ms,
    };
    if (wire.version != NATIVE_VERSION || (wire.flags & ~NATIVE_FLAGS_KNOWN) != 0)
        return ST_UNSUPPORTED;
    return ST_OK;
}

bool
native_body_check(const struct native_header *header, struct bytes body)
{
    return body.size == header->body_size && crc32c(0, body.data, body.size) == header->body_crc;
}

status
native_frame_decode(struct bytes data, struct native_header *header, struct bytes *body,
                    size_t *consumed, size_t *wanted)
{
    struct native_header decoded;
    status st = native_header_decode(data, &decoded);
    if (status_is(st, ST_INCOMPLETE)) {
        *wanted = NATIVE_HEADER_BYTES;
        return st;
    }
    if (!ok(st) && !status_is(st, ST_UNSUPPORTED)) return st;
    size_t size = (size_t)NATIVE_HEADER_BYTES + decoded.body_size;
    if (data.size < size) {
        *wanted = size;
        return ST_INCOMPLETE;
    }
    struct bytes span = BYTES(data.data + NATIVE_HEADER_BYTES, decoded.body_size);
    if (!native_body_check(&decoded, span)) return ST_CORRUPT;
    *header = decoded;
    *body = span;
    *consumed = size;
    return st;
}

bool
native_frame_begin(struct buf *out, const struct native_header *header, size_t *start_out)
{
    struct native_header_wire wire = {
        .magic = NATIVE_MAGIC,
        .version = NATIVE_VERSION,
        .opcode = header->opcode,
        .flags = header->flags,
        .request_id = header->request_id,
        .epoch = header->epoch,
        .timeout_ms = header->timeout_ms,
        .keyspace = header->keyspace,
        .status = header->status,
        .age_ms = header->age_ms,
    };
    size_t start = out->size;
    if (!buf_append(out, &wire, sizeof(wire))) return false;
    *start_out = start;
    return true;
}

void
native_frame_end(struct buf *out, size_t start)
{
    CHECK(out->size - start >= NATIVE_HEADER_BYTES);
    size_t body_size = out->size - start - NATIVE_HEADER_BYTES;
    CHECK(body_size <= NATIVE_FRAME_BYTES_MAX - NATIVE_HEADER_BYTES);
    u8 *frame = out->data + start;
    struct native_header_wire wire;
    memcpy(&wire, frame, sizeof(wire));
    wire.body_size = (u32)body_size;
    wire.body_crc = crc32c(0, frame + NATIVE_HEADER_BYTES, body_size);
    wire.header_crc = 0;
    memcpy(frame, &wire, sizeof(wire));
    wire.header_crc = crc32c(0, frame, offsetof(struct native_header_wire, header_crc));
    memcpy(frame, &wire, sizeof(wire));
}

void
native_frame_patch(u8 *frame, u64 epoch, u32 timeout_ms, u32 age_ms)
{
    struct native_header_wire wire;
    memcpy(&wire, frame, sizeof(wire));
    CHECK(wire.magic == NATIVE_MAGIC);
    wire.epoch = epoch;
    wire.timeout_ms = timeout_ms;
    wire.age_ms = age_ms;
    memcpy(frame, &wire, sizeof(wire));
    wire.header_crc = crc32c(0, frame, offsetof(struct native_header_wire, header_crc));
    memcpy(frame, &wire, sizeof(wire));
}

struct native_header
native_reply_header(const struct native_header *request, u64 epoch)
{
    return (struct native_header){
        .opcode = request->opcode,
        .flags = NATIVE_FLAG_REPLY,
        .request_id = request->request_id,
        .epoch = epoch,
        .keyspace = request->keyspace,
        .status = NATIVE_ST_OK,
    };
}
