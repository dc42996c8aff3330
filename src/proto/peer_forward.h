/* SPDX-License-Identifier: MIT
 *
 * peer_forward.h -- what one node has another one run: the bodies of PEER_FORWARD and of its
 * answers. Pure: bytes to structs and back.
 *
 *   offset size
 *        0    1  version: 2
 *        1    1  RESP version of the client: 2 or 3; 0: the only argument is a native frame
 *        2    1  level (enum replicate_level)
 *        3    1  kind: 0 a command, 1 EXEC, 2 WATCH, 3 UNLINK of keys of one partition,
 *                 without a look at them; 128 added: a native write that comes again, whose
 *                 earlier attempt may have been sent to another member
 *        4    4  since when the client's connection is there, milliseconds
 *        8    8  until when it may begin: wall clock of who sends, milliseconds
 *       16    4  number of arguments
 *      EXEC and WATCH only:
 *                watched keys (4), commands (4; 0 of WATCH)
 *                for each watched key: version (8), keyspace (2), flags (1), 0 (1)
 *                for each command: number of its arguments (4)
 *                for each argument its size (4) and its bytes
 *
 * The arguments of EXEC are the watched keys, and then those of the commands one behind the other.
 *
 * The answer with status OK is the reply as the client gets it. That of WATCH, when it is not an
 * error, is followed by what the keys are: version (8), flags (1), 0 (7) each.
 */
#ifndef DISTKV_PROTO_PEER_FORWARD_H
#define DISTKV_PROTO_PEER_FORWARD_H

#include "base/buf.h"
#include "base/status.h"

#define PEER_FORWARD_ARGS_MAX (1u << 20)

enum peer_forward_kind {
    PEER_FORWARD_COMMAND,
    PEER_FORWARD_EXEC,
    PEER_FORWARD_WATCH,
    PEER_FORWARD_FLUSH
};

/* Of a watched key. */
#define PEER_WATCH_PRESENT 1u /* it was there */
#define PEER_WATCH_OLD     2u /* so long ago that what hides a change may have been collected */

struct peer_watch {
    u64 version;
    u16 keyspace;
    u8 flags;
};

struct peer_forward {
    u8 resp, level;
    enum peer_forward_kind kind;
    bool moved; /* see above: 128 */
    u32 age_ms;
    u64 until_ms;
    u32 arg_count;
    u32 watch_count, command_count;
    /* decoded, encoded yet */
    struct bytes watches, counts, args;
};

/* The head of a command: its arguments follow by peer_forward_arg. */
MUST_CHECK bool peer_forward_begin(struct buf *out, const struct peer_forward *forward);
/* Of EXEC and WATCH, behind that: first all watches, then the counts of all commands, then
 * arguments. */
MUST_CHECK bool peer_forward_watch(struct buf *out, const struct peer_watch *watch);
MUST_CHECK bool peer_forward_count(struct buf *out, u32 arg_count);
MUST_CHECK bool peer_forward_arg(struct buf *out, struct bytes arg);

/* Any bytes: ST_INVALID. Everything is checked but what the arguments mean: sizes fit, and the
 * counts make arg_count. What decodes encodes to the same bytes. */
MUST_CHECK status peer_forward_decode(struct bytes body, struct peer_forward *out);
/* Of one that was decoded: spans into the body, arg_count of them. */
void peer_forward_args(const struct peer_forward *forward, struct bytes *out);
struct peer_watch peer_forward_watch_at(const struct peer_forward *forward, u32 i);
u32 peer_forward_count_at(const struct peer_forward *forward, u32 i);

/* What WATCH answers behind its reply. */
MUST_CHECK bool peer_watched_encode(struct buf *out, const struct peer_watch *watch);
/* The reply is +OK and as many keys: else ST_INVALID. */
MUST_CHECK status peer_watched_check(struct bytes reply, u32 count);
struct peer_watch peer_watched_at(struct bytes reply, u32 i);

#endif
