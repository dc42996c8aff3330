/* SPDX-License-Identifier: MIT
 *
 * peer.h -- calls between the shards of the nodes of a cluster.
 *
 *   shard of node A                                 shard of node B
 *   peer_call_start -- frame, one connection ---->  handler of the opcode
 *   call->done     <------------------------------  peer_reply, now or later
 *
 * Frames are native frames (proto/native.h) with opcodes of their own (proto/peer.h). Shard i of a
 * node listens at its peer port + i, so a call reaches the shard that it is for without a hop. A
 * shard keeps at most one connection to each shard of each peer, made at the first call; when it
 * breaks it is made anew at the next, not faster than a delay that grows from 50 ms to 1 s.
 *
 * Who may talk. Both ends prove that they know the cluster's secret, which is never sent: each
 * answers the other's random challenge by an HMAC over both challenges, both identities and its
 * direction. Then each compares cluster ids: 0 is that of a node which wants to join and may call
 * PEER_JOIN only. A stranger, a node of another cluster, or one that names a number or incarnation
 * which the topology gives to another is refused, counted, and logged at a limited rate.
 *
 * Promises
 *   P1  done is called exactly once for each started call, as a callback, never from inside of
 *       peer_call_start or peer_call_cancel (which is the call's end: done is not called after it).
 *   P2  A call that ends without an answer says whether the peer may have seen it
 *       (call->maybe_sent): if not, it was certainly not done there.
 *   P3  Memory is bounded: calls are the caller's memory; frames wait in the output of the
 *       connection up to a bound, above which ST_OVERLOADED is the answer at once. A peer that
 *       sends more requests than it was told at the handshake is cut off.
 *   P4  Nothing that a peer sends may crash a node.
 */
#ifndef DISTKV_CLUSTER_PEER_H
#define DISTKV_CLUSTER_PEER_H

#include "base/heap.h"
#include "base/limits.h"
#include "base/list.h"
#include "base/mem.h"
#include "io/fiber.h"
#include "proto/native.h"

#define PEER_HOST_BYTES   64u
#define PEER_SECRET_BYTES 32u

struct peers;        /* of one shard */
struct peer_request; /* one that came in: the transport's memory, until peer_reply */

struct peer_identity {
    u64 cluster_id; /* 0: no member of one yet */
    u32 member;     /* its number in the topology; 0: none yet */
    u64 incarnation;
    char node_id[64];
};

struct peer_address {
    char host[PEER_HOST_BYTES];
    u16 port; /* of shard 0 */
    u32 shard_count;
};

struct peers_options {
    struct peer_address listen; /* shard_count: of this node; port 0 is allowed for one shard */
    u8 secret[PEER_SECRET_BYTES];
    struct peer_identity self;
    /* Judges a peer that has proved to know the secret; NULL takes all. ST_NOT_FOUND: it was a
     * member once, and it is told so. */
    status (*admit)(void *arg, const struct peer_identity *peer);
    void *arg;
    struct budget *budget; /* everything here counts against it */
    u32 requests_max;      /* of one connection, under way here; 0: 1,024 */
};

/* Listens; ST_EXISTS when the port is taken. On each shard. */
MAY_YIELD MUST_CHECK status peers_open(const struct peers_options *options, struct peers **out);
/* Ends all calls with ST_CLOSED; handlers are not called any more. */
MAY_YIELD void peers_close(struct peers *peers);
u16 peers_port(const struct peers *peers);
/* A peer has said that this node was a member once, and is none any more. Numbers are not given
 * again, so that stays true, however far the peer lags behind. */
bool peers_taken_out(const struct peers *peers);
/* Once this node has become a member. Connections that were made before stay what they were until
 * they are used next. */
void peers_identity_set(struct peers *peers, const struct peer_identity *self);

/* Whom numbers mean; a new address closes the old connections. */
MUST_CHECK bool peers_member_set(struct peers *peers, u32 member,
                                 const struct peer_address *address);
void peers_member_remove(struct peers *peers, u32 member);
/* The member does not seem to live any more. A connection on which nothing is under way is closed:
 * after a power cut the process that comes next would reset it, and whoever uses it first would not
 * know what became of its request. */
void peers_member_doubt(struct peers *peers, u32 member);
/* NULL: not known. */
const struct peer_address *peers_member_address(const struct peers *peers, u32 member);

/* ---- calling ---- */

struct peer_call {
    /* private */
    struct list link;        /* in the list of those whose done is due, or to itself */
    struct heap_node timer;  /* while it is under way and has a deadline */
    struct peer_link *owner; /* NULL: not under way */
    status st;
    u64 order; /* of the starts: decides ties of deadlines */
    u64 request_id;
    u64 deadline_ns;
    /* Set before the start. header and body: of the answer, when st is ok (whatever native status
     * the header has); both valid during the call only. st: ST_TIMED_OUT, ST_CLOSED (no connection,
     * or it broke), ST_OVERLOADED, ST_DENIED (the peer refused us, or is not who it should be),
     * ST_NOT_FOUND (no such member or shard), ST_TOO_LARGE (over PEER_BODY_BYTES_MAX of
     * proto/peer.h).
     */
    void (*done)(struct peer_call *call, status st, const struct native_header *header,
                 struct bytes body);
    bool maybe_sent; /* P2; valid in done */
};

static inline void
peer_call_init(struct peer_call *call,
               void (*done)(struct peer_call *call, status st, const struct native_header *header,
                            struct bytes body))
{
    *call = (struct peer_call){.done = done};
    list_init(&call->link);
}

/* The body is the parts one behind the other, and is copied. header: opcode, epoch, keyspace and
 * age_ms are the caller's; the rest is filled in. deadline_ns: on io_now_ns; what is left of it
 * goes along as the timeout. */
void peer_call_start(struct peers *peers, struct peer_call *call, u32 member, u32 shard,
                     const struct native_header *header, const struct bytes *parts, u32 part_count,
                     u64 deadline_ns);
/* Whether a call would be refused now, as ST_OVERLOADED, for what lies before the peer already. */
bool peer_calls_full(struct peers *peers, u32 member, u32 shard);
/* Waits until there may be room before some peer again, for PEER_ROOM_NS at most: to be asked again. */
#define PEER_ROOM_NS (5 * NS_PER_MS)
MAY_YIELD void peer_room_await(struct peers *peers, u64 until_ns);
/* The same to an address that is no member (a seed), always a connection of its own that is closed
 * when it has been idle for 10 s. */
void peer_call_start_at(struct peers *peers, struct peer_call *call,
                        const struct peer_address *address, u32 shard,
                        const struct native_header *header, const struct bytes *parts,
                        u32 part_count, u64 deadline_ns);
void peer_call_cancel(struct peers *peers, struct peer_call *call);

/* On a fiber. out: initialised; the answer's body is put there. */
MAY_YIELD MUST_CHECK status peer_call_wait(struct peers *peers, u32 member, u32 shard,
                                           const struct native_header *header,
                                           const struct bytes *parts, u32 part_count,
                                           u64 deadline_ns, struct native_header *answer,
                                           struct buf *out, bool *maybe_sent);

/* Without an answer (Raft, gossip): sent if the connection is there and has room, else dropped and
 * counted; a connection that is not there is begun. */
void peer_post(struct peers *peers, u32 member, u32 shard, const struct native_header *header,
               const struct bytes *parts, u32 part_count);

/* ---- being called ---- */

/* Called as a callback. body is valid during the call: who answers later copies what it needs.
 * Exactly one peer_reply for each request, also when the peer is gone by then; none for frames
 * that were posted (request == NULL). from: who asks. */
typedef void (*peer_handler)(void *arg, struct peer_request *request,
                             const struct peer_identity *from, const struct native_header *header,
                             struct bytes body);
void peers_handler_set(struct peers *peers, u8 opcode, peer_handler fn, void *arg);
void peer_reply(struct peer_request *request, enum native_status status, u64 epoch,
                const struct bytes *parts, u32 part_count);
/* When the one who asks has given up: on io_now_ns; UINT64_MAX: never. */
u64 peer_request_deadline_ns(const struct peer_request *request);

/* ---- figures ---- */

struct peers_stats {
    u64 calls, calls_failed, calls_timed_out, posts, posts_dropped;
    u64 requests, requests_under_way, refused; /* refused: handshakes */
    u64 connections;
    u64 sent_bytes, received_bytes;
};
void peers_stats_get(const struct peers *peers, struct peers_stats *out);

#endif
