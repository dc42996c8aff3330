/* SPDX-License-Identifier: MIT
 *
 * native_codec.h -- reading and writing the fields of a frame's body; private to src/proto.
 *
 * A reader that runs short latches `failed` and yields zeros, so a decoder reads all its fields and
 * asks once. A span is taken only when its bytes are there: nothing is ever sized by a claim.
 */
#ifndef DISTKV_PROTO_NATIVE_CODEC_H
#define DISTKV_PROTO_NATIVE_CODEC_H

#include "proto/native.h"

struct reader {
    const u8 *data;
    size_t size; /* bytes left */
    bool failed;
};

static inline struct reader
reader_of(struct bytes bytes)
{
    return (struct reader){.data = bytes.data, .size = bytes.size};
}

static inline struct bytes
read_bytes(struct reader *r, size_t size)
{
    if (r->failed || size > r->size) {
        r->failed = true;
        return BYTES(NULL, 0);
    }
    struct bytes span = BYTES(r->data, size);
    if (size > 0) r->data += size;
    r->size -= size;
    return span;
}

static inline struct bytes
read_rest(struct reader *r)
{
    return read_bytes(r, r->size);
}

static inline u8
read_u8(struct reader *r)
{
    struct bytes span = read_bytes(r, 1);
    return r->failed ? 0 : span.data[0];
}

static inline u16
read_u16(struct reader *r)
{
    struct bytes span = read_bytes(r, 2);
    return r->failed ? 0 : load_u16(span.data);
}

static inline u32
read_u32(struct reader *r)
{
    struct bytes span = read_bytes(r, 4);
    return r->failed ? 0 : load_u32(span.data);
}

static inline u64
read_u64(struct reader *r)
{
    struct bytes span = read_bytes(r, 8);
    return r->failed ? 0 : load_u64(span.data);
}

/* Reserved bytes: written as zero, refused otherwise, so that they can mean something one day. */
static inline void
read_zeros(struct reader *r, size_t size)
{
    struct bytes span = read_bytes(r, size);
    for (size_t i = 0; i < span.size; i++)
        if (span.data[i] != 0) r->failed = true;
}

/* Everything was there, and nothing is left. */
static inline bool
reader_done(const struct reader *r)
{
    return !r->failed && r->size == 0;
}

struct writer {
    struct buf *out;
    bool failed; /* no memory */
};

static inline void
write_bytes(struct writer *w, const void *data, size_t size)
{
    if (!w->failed && !buf_append(w->out, data, size)) w->failed = true;
}

static inline void
write_span(struct writer *w, struct bytes span)
{
    write_bytes(w, span.data, span.size);
}

static inline void
write_u8(struct writer *w, u8 value)
{
    write_bytes(w, &value, 1);
}

static inline void
write_u16(struct writer *w, u16 value)
{
    write_bytes(w, &value, 2);
}

static inline void
write_u32(struct writer *w, u32 value)
{
    write_bytes(w, &value, 4);
}

static inline void
write_u64(struct writer *w, u64 value)
{
    write_bytes(w, &value, 8);
}

static inline void
write_zeros(struct writer *w, size_t size)
{
    static const u8 zeros[8];
    CHECK(size <= sizeof(zeros));
    write_bytes(w, zeros, size);
}

#endif
