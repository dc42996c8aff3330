/* SPDX-License-Identifier: MIT
 *
 * resp.h -- RESP2 and RESP3: commands in, replies out. Pure: bytes to structs and back.
 *
 * Requests are arrays of bulk strings, or inline lines (with the quoting rules of redis-cli).
 * Parsing is resumable: when a command is incomplete the parser remembers what it has seen, so a
 * command of n bytes that arrives in k pieces costs O(n + k). Nothing is copied: arguments are
 * offsets into the bytes given, which must start at the command's first byte on every call.
 */
#ifndef DISTKV_PROTO_RESP_H
#define DISTKV_PROTO_RESP_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/status.h"

#define RESP_INLINE_BYTES_MAX (64u << 10)
#define RESP_ARGS_MAX         (1u << 20) /* as Redis up to 6; later ones take INT_MAX */
/* One argument: a value, with room to say exactly by how much it is too large. */
#define RESP_BULK_BYTES_MAX (512u << 20)
/* What Redis allows before authentication; with these the error texts say so. */
#define RESP_ARGS_MAX_UNAUTHENTICATED       10u
#define RESP_BULK_BYTES_MAX_UNAUTHENTICATED (16u << 10)

struct resp_arg {
    u32 offset; /* from the command's first byte */
    u32 size;
};

struct resp_parser {
    /* the command, complete after RESP_COMMAND */
    struct buf args; /* struct resp_arg[arg_count] */
    u32 arg_count;
    bool inline_command; /* args point into unquoted */
    struct buf unquoted;
    /* where to go on */
    bool started;  /* the array's head has been read */
    bool complete; /* the next call begins a new command by itself */
    u32 args_expected;
    u32 args_per_call; /* the caller's; 0: no bound. After so many a call ends, see resp_parse */
    size_t scanned;    /* bytes of whole elements */
    size_t searched;   /* bytes behind scanned that hold no line end */
    char error[96];    /* after RESP_ERROR: "Protocol error: ...", to be sent behind "ERR " */
};

enum resp_result {
    RESP_COMMAND,    /* *consumed bytes make one command; arg_count may be 0 (an empty line) */
    RESP_INCOMPLETE, /* *wanted: bytes that the command needs at least, counted from its start */
    RESP_ERROR,      /* protocol error: reply "-ERR " and parser.error, then close */
    RESP_NO_MEMORY,
};

void resp_parser_init(struct resp_parser *parser, struct budget *budget);
void resp_parser_deinit(struct resp_parser *parser);
/* Forgets the command at hand. */
void resp_parser_reset(struct resp_parser *parser);
/* Gives back all memory if no command is at hand. */
void resp_parser_trim(struct resp_parser *parser);
/* data begins with the command's first byte and is not empty. args_max, bulk_max: tighter limits
 * before authentication, at most RESP_ARGS_MAX and RESP_BULK_BYTES_MAX. Memory grows with the
 * bytes that have arrived, never with a length that was promised. RESP_INCOMPLETE with *wanted not
 * above data.size: args_per_call have been read, and the next call goes on. */
enum resp_result resp_parse(struct resp_parser *parser, struct bytes data, u32 args_max,
                            u32 bulk_max, size_t *consumed, size_t *wanted);
/* True when no half command is remembered: the caller may pass over commands by itself. */
static inline bool
resp_parser_is_fresh(const struct resp_parser *parser)
{
    return parser->complete || (!parser->started && parser->searched == 0);
}

/* "GET key" and "SET key value" as all clients write them, which is most of what comes. */
struct resp_plain {
    bool set;
    struct bytes key; /* 1 to LIMIT_KEY_BYTES */
    struct bytes value;
    size_t size; /* of the whole request */
};
/* False for everything else: other commands, incomplete ones, unusual forms, errors. What it takes,
 * resp_parse takes to mean the same. */
bool resp_parse_plain(struct bytes data, struct resp_plain *out);

/* Argument i of a complete command; data as given to resp_parse. */
static inline struct bytes
resp_arg(const struct resp_parser *parser, struct bytes data, u32 i)
{
    const struct resp_arg *arg = (const struct resp_arg *)(const void *)parser->args.data + i;
    const u8 *base = parser->inline_command ? parser->unquoted.data : data.data;
    return BYTES(base + arg->offset, arg->size);
}

/* ---- replies: appended to a buf; false when memory is out (the buf keeps what it had) ---- */

struct resp_writer {
    struct buf *out;
    u8 version;  /* 2 or 3 */
    bool failed; /* an append failed: the connection must be closed */
};

void resp_simple(struct resp_writer *w, const char *text); /* +text */
void resp_ok(struct resp_writer *w);
void resp_error(struct resp_writer *w, const char *format, ...)
    PRINTF_LIKE(2, 3); /* -ERR ...; CR, LF become spaces */
void resp_integer(struct resp_writer *w, i64 value);
void resp_bulk(struct resp_writer *w, struct bytes value);
void resp_bulk_text(struct resp_writer *w, const char *text);
void resp_null(struct resp_writer *w);       /* $-1 or _ */
void resp_null_array(struct resp_writer *w); /* *-1 or _ */
void resp_array(struct resp_writer *w, u32 count);
void resp_map(struct resp_writer *w, u32 pairs); /* RESP2: an array of twice as many */
void resp_set(struct resp_writer *w, u32 count);
void resp_push(struct resp_writer *w, u32 count);
void resp_bool(struct resp_writer *w, bool value); /* RESP2: an integer */
void resp_double(struct resp_writer *w, double value);
void resp_verbatim(struct resp_writer *w, const char *kind, struct bytes text); /* RESP2: bulk */

/* Reads one reply (client side, tests): resumable only from its start. */
enum resp_reply_kind {
    RESP_REPLY_SIMPLE,
    RESP_REPLY_ERROR,
    RESP_REPLY_INTEGER,
    RESP_REPLY_BULK,
    RESP_REPLY_NULL,
    RESP_REPLY_ARRAY,
    RESP_REPLY_MAP,
    RESP_REPLY_SET,
    RESP_REPLY_PUSH,
    RESP_REPLY_BOOL,
    RESP_REPLY_DOUBLE,
    RESP_REPLY_VERBATIM,
};
struct resp_reply {
    enum resp_reply_kind kind;
    struct bytes text; /* simple, error, bulk, verbatim, double */
    i64 integer;       /* integer, bool; elements (pairs for maps) of aggregates */
};
/* Reads the next element's head (aggregates: their members follow). ST_OK, ST_INCOMPLETE,
 * ST_CORRUPT. */
status resp_read(struct bytes data, struct resp_reply *out, size_t *consumed);

#endif
