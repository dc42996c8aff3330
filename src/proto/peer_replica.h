/* SPDX-License-Identifier: MIT
 *
 * peer_replica.h -- what coordinators and replicas say to each other: the bodies of PEER_WRITE and
 * PEER_READ and of their answers. Pure: bytes to structs and back. Heads are encoded into a small
 * array and sent in front of operations, key or value as they lie, so these are copied once, into
 * the connection's output.
 *
 *   PEER_WRITE  | version: 8 | partition: 4 | count: 4 | flags: 1 | 0: 3 | session: 4 | operations |
 *     answer    | newer: 8 |
 *   PEER_READ   | partition: 4 | want: 1 | 0: 3 | key |
 *     answer    | version: 8 | expire_ms: 8 | found: 1 | 0: 7 | value, if it was wanted and found |
 *
 * What has expired is found, with its expiry: whoever asks goes by a clock of its own.
 *
 * The keyspace is the header's. Answers with another status than OK have no body; the epoch of
 * their header is that of who answers. Operations are encoded as a store's log has them
 * (docs/data-files.md), which is none of this file's business: count of them, at least one.
 *
 * docs/peer-protocol.md has the handshake and the frames.
 */
#ifndef DISTKV_PROTO_PEER_REPLICA_H
#define DISTKV_PROTO_PEER_REPLICA_H

#include "base/limits.h"
#include "base/status.h"

#define PEER_WRITE_HEAD_BYTES   24u
#define PEER_WROTE_BYTES        8u
#define PEER_READ_HEAD_BYTES    8u
#define PEER_FOUND_HEAD_BYTES   24u
#define PEER_REPLICA_HEAD_BYTES 24u /* of each of them, at most */

enum peer_write_flags {
    /* A value that lives elsewhere already: nobody asks whether there is a newer one. */
    PEER_WRITE_REPAIR = 1 << 0,
    /* One that was kept for a replica that was absent. Where what would hide it may have been
     * collected it is refused (NATIVE_ST_CONFLICT). */
    PEER_WRITE_HINT = 1 << 1,
    /* Found by comparing trees in a session of who is asked: taken however old it is. */
    PEER_WRITE_TREE = 1 << 2,
    /* The only operation is a state of a key that keeps siblings: the union of it and what is there
     * is written. (Also without the flag where the receiver's topology says that it does.) */
    PEER_WRITE_MERGE = 1 << 3,
    /* The receiver is no home replica: it is to keep a hint for the member that the field of the
     * session names, and to answer when that is durable. Alone. */
    PEER_WRITE_STAND_IN = 1 << 4,
};
#define PEER_WRITE_FLAGS_KNOWN                                                                     \
    (PEER_WRITE_REPAIR | PEER_WRITE_HINT | PEER_WRITE_TREE | PEER_WRITE_MERGE | PEER_WRITE_STAND_IN)

struct peer_write {
    u64 version;   /* not 0 */
    u32 partition; /* of the topology's count; all operations lie in it */
    u32 count;     /* 1 to LIMIT_BATCH_OPS */
    u8 flags;      /* enum peer_write_flags */
    u32 session;   /* with TREE; the target with STAND_IN; 0 without */
    struct bytes ops;
};

struct peer_wrote {
    /* Of all keys of the batch the highest version above its own that this replica has; 0: none. */
    u64 newer;
};

enum peer_want { PEER_WANT_DIGEST = 0, PEER_WANT_VALUE = 1 };

struct peer_read {
    u32 partition;
    u8 want; /* enum peer_want */
    struct bytes key;
};

struct peer_found {
    u64 version; /* the highest that this replica knows of the key, also of a tombstone; 0: none */
    u64 expire_ms;
    bool found; /* a digest does not say */
    struct bytes value;
};

/* Into out, which has room for PEER_REPLICA_HEAD_BYTES; returns the size. What follows the head is
 * sent behind it. */
size_t peer_write_head(const struct peer_write *write, u8 *out);
size_t peer_wrote_encode(const struct peer_wrote *wrote, u8 *out);
size_t peer_read_head(const struct peer_read *read, u8 *out);
size_t peer_found_head(const struct peer_found *found, u8 *out);

/* Any bytes: ST_INVALID. Spans point into body. */
MUST_CHECK status peer_write_decode(struct bytes body, struct peer_write *out);
MUST_CHECK status peer_wrote_decode(struct bytes body, struct peer_wrote *out);
MUST_CHECK status peer_read_decode(struct bytes body, struct peer_read *out);
MUST_CHECK status peer_found_decode(struct bytes body, struct peer_found *out);

#endif
