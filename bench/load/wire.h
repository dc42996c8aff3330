/* SPDX-License-Identifier: MIT
 *
 * wire.h -- requests as bytes, bytes as replies, for RESP and the native protocol. Pure.
 *
 * A request is written straight into what will be sent; a reply is read where it lies. RESP answers
 * in order, so its replies name no request; native ones carry the number that was given.
 */
#ifndef DISTKV_BENCH_WIRE_H
#define DISTKV_BENCH_WIRE_H

#include "base/status.h"
#include "load/settings.h"
#include "load/value.h"

#define WIRE_HEAD_BYTES 128u
#define WIRE_KEY_BYTES  (KEY_PREFIX_MAX + KEY_DIGITS)

struct text {
    u32 size;
    char data[WIRE_HEAD_BYTES];
};

struct wire {
    enum protocol protocol;
    const struct values *values;
    u64 ttl_ms;
    u16 database;
    u32 prefix_size;
    char prefix[KEY_PREFIX_MAX];
    struct text heads[OP_COUNT]; /* RESP: all up to the key's digits */
    struct text set_middle;      /* RESP, values of one size: between digits and value */
    bool numbers;                /* RESP: values are numbers, which set_middle holds as well */
    struct text set_end;         /* RESP: behind the value */
    u8 *scratch;                 /* native: one value */
};

struct request {
    enum op op;
    u64 key;
    u32 version;    /* of the value that is written */
    u32 value_size; /* value_size() of these */
    u32 entries;    /* of a scan */
    u64 id;         /* native; not 0 */
};

enum reply_kind {
    REPLY_OK,
    REPLY_VALUE,
    REPLY_NONE, /* no such key */
    REPLY_INTEGER,
    REPLY_ENTRIES, /* of a scan */
    REPLY_ERROR,
};

struct reply {
    enum reply_kind kind;
    u64 id;             /* native */
    struct bytes value; /* VALUE; ERROR: the first word; ENTRIES: see native_scan_next */
    struct bytes text;  /* ERROR: all of it */
    u32 entries;
    i64 integer;
};

/* scratch holds the largest value; only the native protocol needs it. */
void wire_init(struct wire *wire, const struct settings *settings, const struct values *values,
               u8 *scratch);
/* No request of this kind takes more. */
size_t wire_request_max(const struct wire *wire, enum op op);
/* Returns the end of what it wrote. */
u8 *wire_request(const struct wire *wire, const struct request *request, u8 *out);
/* The first reply in data. ST_INCOMPLETE: *wanted_out bytes are needed at least; ST_CORRUPT: this
 * is not the protocol. */
MUST_CHECK status wire_reply(const struct wire *wire, struct bytes data, struct reply *out,
                             size_t *consumed_out, size_t *wanted_out);
/* What a new connection says first: *replies_out replies come to it (0: nothing need be said). At
 * most WIRE_HELLO_BYTES; returns its size. */
#define WIRE_HELLO_BYTES 2048u
size_t wire_hello(const struct wire *wire, const struct settings *settings, u8 *out,
                  u32 *replies_out);
/* A native HELLO that asks what is known of other places, too; returns its size. */
size_t wire_hello_topology(const struct settings *settings, u8 out[WIRE_HELLO_BYTES]);
/* prefix and digits; returns the size. */
size_t wire_key(const struct wire *wire, u64 number, u8 out[WIRE_KEY_BYTES]);
/* The number in such a key. */
MUST_CHECK bool wire_key_number(const struct wire *wire, struct bytes key, u64 *number_out);

#endif
