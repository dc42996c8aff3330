/* SPDX-License-Identifier: MIT
 *
 * peer.h -- what nodes of a cluster say to each other: opcodes, and the bodies of the handshake.
 * Pure: bytes to structs and back.
 *
 * Frames are those of native.h (header checks, sizes, checksums), with opcodes from 64 on, which a
 * client's connection does not know; a connection between nodes knows no other. Whoever connects
 * asks, the other end answers: a node that is to ask back makes a connection of its own.
 *
 *   who connects                                         who listens
 *   PEER_HELLO  struct peer_hello               ----->
 *               <-----   reply: struct peer_hello of the other side, and its proof
 *   PEER_PROOF  the proof of the first          ----->
 *               <-----   reply, without a body: calls may begin
 *
 * A proof is HMAC-SHA256, with the cluster's secret as the key, over a label, the direction (1: of
 * who connects, 2: of who listens), and both hellos as they were sent: so over both random
 * challenges, both identities and all else that was said. What is refused is answered by a reply
 * with another status than OK and no body, and the connection is closed.
 *
 * Calls carry a request id that is not 0 and get one reply. With id 0 a frame is posted: no reply.
 * Id PEER_KEEPALIVE_ID with PEER_PING is the transport's own question whether the other is there.
 *
 * docs/peer-protocol.md describes each body byte by byte.
 */
#ifndef DISTKV_PROTO_PEER_H
#define DISTKV_PROTO_PEER_H

#include "base/hmac.h"
#include "proto/native.h"

#define PEER_VERSION       1u
#define PEER_NONCE_BYTES   32u
#define PEER_NODE_ID_BYTES 64u /* with the final 0 */
/* A frame, its header included, has to fit in what a connection may want. */
#define PEER_BODY_BYTES_MAX (NATIVE_FRAME_BYTES_MAX - NATIVE_HEADER_BYTES)
#define PEER_KEEPALIVE_ID   UINT64_MAX

/* The numbers are the protocol's. */
#define PEER_OPCODE_LIST(X)                                                                        \
    X(HELLO, 64)                                                                                   \
    X(PROOF, 65)                                                                                   \
    X(JOIN, 66)                                                                                    \
    X(PING, 67)                                                                                    \
    X(RAFT, 68)                                                                                    \
    X(RAFT_SNAPSHOT, 69)                                                                           \
    X(PROPOSE, 70)                                                                                 \
    X(WRITE, 71)                                                                                   \
    X(READ, 72)                                                                                    \
    X(FORWARD, 73)                                                                                 \
    X(STREAM, 74)                                                                                  \
    X(TREE, 75)                                                                                    \
    X(ADMIN, 78)                                                                                   \
    X(STARTED, 79)                                                                                 \
    X(ADDRESS, 80)

enum peer_opcode {
#define X(name, number) PEER_##name = number,
    PEER_OPCODE_LIST(X)
#undef X
};
#define PEER_OPCODE_MIN 64u
static_assert(PEER_OPCODE_MIN > NATIVE_OPCODE_MAX, "a client's opcode is none of a peer");

const char *peer_opcode_name(u32 opcode); /* "HELLO"; "?" when unknown */

/* What a node says of itself first. */
struct peer_hello {
    u8 version_min, version_max;
    u16 shard;        /* of who listens: the one that is meant */
    u32 features;     /* none defined yet: 0; unknown ones are not used */
    u32 requests_max; /* that may be under way on this connection; 0 from who connects */
    u32 member;       /* 0: none yet */
    u64 cluster_id;   /* 0: no member of one yet */
    u64 incarnation;
    u8 nonce[PEER_NONCE_BYTES];
    char node_id[PEER_NODE_ID_BYTES]; /* ends with a 0 */
};

/* The most that a body of the handshake has, and a frame with it. */
#define PEER_HELLO_BYTES_MAX     (4u + 4u + 4u + 4u + 8u + 8u + PEER_NONCE_BYTES + 1u + 63u)
#define PEER_HANDSHAKE_BYTES_MAX (NATIVE_HEADER_BYTES + PEER_HELLO_BYTES_MAX + HMAC_BYTES)

/* Returns the size; out has room for PEER_HELLO_BYTES_MAX. */
size_t peer_hello_encode(const struct peer_hello *hello, u8 out[PEER_HELLO_BYTES_MAX]);
/* *size_out: of what was read; what follows is the caller's (the proof of an answer). ST_INVALID.
 * A version that is not known here is no fault of the bytes: see peer_version_choose. */
MUST_CHECK status peer_hello_decode(struct bytes body, struct peer_hello *out, size_t *size_out);
/* The highest version that both speak; 0: none. */
u8 peer_version_choose(const struct peer_hello *ours, const struct peer_hello *theirs);

enum peer_direction { PEER_CONNECTS = 1, PEER_LISTENS = 2 };

/* The hellos as they were sent: whoever connects first, however this process looks at it. */
void peer_proof(struct bytes secret, enum peer_direction direction, struct bytes hello_connects,
                struct bytes hello_listens, u8 out[HMAC_BYTES]);

#endif
