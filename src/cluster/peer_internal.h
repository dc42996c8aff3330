/* SPDX-License-Identifier: MIT
 *
 * peer_internal.h -- the transport between nodes, from inside: src/cluster/peer*.c alone.
 *
 *   peer.c        life of a shard's transport, members, deadlines, keepalive, frames
 *   peer_call.c   links: connections that this shard made, and the calls on them
 *   peer_serve.c  guests: connections that were made to it, and the requests from them
 *
 * Invariants
 *   L1  A call is under way on one link (owner set, in one slot), or its end is due (in `ended`),
 *       or it is the caller's alone. Whoever takes it from one to the next does so whole.
 *   L2  A slot is taken from the start of a call until its answer is here or the connection is gone,
 *       also when nobody waits for the answer any more: so no more requests are under way at the
 *       peer than it allows, and an answer never meets another call.
 *   L3  Frames of calls lie in `waiting` exactly while the link is not OPEN; no call on it has
 *       maybe_sent set then.
 *   L4  A link or a guest is freed only where nothing of io may call it any more: after closed, or
 *       when there is no connection and no fiber that makes one.
 */
#ifndef DISTKV_CLUSTER_PEER_INTERNAL_H
#define DISTKV_CLUSTER_PEER_INTERNAL_H

#include "base/buf.h"
#include "cluster/peer.h"
#include "io/net.h"
#include "io/task.h"
#include "io/timer.h"
#include "proto/peer.h"

#define PEER_MEMBERS_MAX          1024u
#define PEER_REQUESTS_MAX_DEFAULT 1024u
/* Of those that a connection may have under way, the part that is left to pings. */
#define PEER_PINGS_PART 128u
/* What a peer says is no more than this to us: of slots on a link. */
#define PEER_SLOTS_MAX      16384u
#define PEER_SLOTS_MIN      16u
#define PEER_SEEDS_MAX      64u
#define PEER_STRANGERS_MAX  256u /* guests that have not proved anything yet */
#define PEER_SPARE_MAX      1024u
#define PEER_HANDSHAKE_SPAN (4u << 10)
/* Frames that wait for a connection: above it a call is refused. One frame more may lie there. */
#define PEER_WAITING_BYTES (256u << 10)

static_assert(NATIVE_HEADER_BYTES + PEER_BODY_BYTES_MAX <= CONN_INPUT_MAX_BYTES,
              "a largest frame may be wanted");
static_assert(PEER_HANDSHAKE_BYTES_MAX <= PEER_HANDSHAKE_SPAN, "who is let in gets as far");

#define PEER_CONNECT_NS   NS_PER_S
#define PEER_DELAY_NS_MIN (50 * NS_PER_MS)
#define PEER_DELAY_NS_MAX NS_PER_S
#define PEER_LACK_NS_MAX  (200 * NS_PER_MS)
#define PEER_LOG_NS       NS_PER_S
/* A member that does not know yet that it is one is called again and again until it does. */
#define PEER_LOG_NEW_NS (60 * NS_PER_S)

/* Time without a word is counted in ticks, not on the clock: a shard that was itself stopped for a
 * while has had one tick then, and what came meanwhile is still to be given to it. */
#define PEER_TICK_NS          (250 * NS_PER_MS)
#define PEER_TICKS_HANDSHAKE  8u   /* in it no answer has come: give up, as below */
#define PEER_TICKS_STRANGER   20u  /* has not proved anything for 5 s since it came */
#define PEER_TICKS_PING       2u   /* something is owed and nothing comes: ask */
#define PEER_TICKS_SUSPECT    4u   /* ... and calls have timed out: give up */
#define PEER_TICKS_SILENT     8u   /* ... give up */
#define PEER_TICKS_IDLE       60u  /* nothing is owed: ask all the same */
#define PEER_TICKS_SEED       40u  /* 10 s without a call */
#define PEER_TICKS_GUEST      240u /* a peer asks after 15 s at the latest */
#define PEER_TIMEOUTS_SUSPECT 4u
static_assert(PEER_TICKS_GUEST > 3 * PEER_TICKS_IDLE, "who is there has asked by then");

struct peer_slot {
    struct peer_call *call; /* NULL: nobody waits for the answer any more; or the slot is free */
    u32 turn;               /* upper half of the request id; 0: free */
    u32 next_free;          /* index + 1; 0: the last */
};

enum peer_link_state {
    LINK_IDLE,       /* no connection */
    LINK_DELAYED,    /* no connection; calls wait for one; the timer is armed */
    LINK_CONNECTING, /* a fiber is in io_connect */
    LINK_GREETING,   /* HELLO was sent */
    LINK_PROVING,    /* PROOF was sent */
    LINK_OPEN,
    LINK_CLOSING, /* closed is to come */
};

/* From this shard to one of another node, or to a seed. */
struct peer_link {
    struct list link; /* peers->links */
    struct peers *peers;
    struct peer_address address;
    u32 member; /* 0: a seed */
    u32 shard;
    bool retired; /* no table has it: it ends with its last call */

    enum peer_link_state state;
    struct io_conn *conn;
    u64 identity_turn; /* with which HELLO was sent */
    struct io_timer timer;
    u64 retry_at_ns, delay_ns, opened_ns;
    u8 hello[PEER_HELLO_BYTES_MAX]; /* as it was sent */
    u32 hello_size;

    struct peer_slot *slots;
    u32 slot_count, slots_used, slot_free, turn;
    u32 requests_max;
    struct buf waiting;

    /* since something was last received */
    u32 ticks;       /* while something is owed */
    u32 idle_ticks;  /* without */
    u32 timeouts;    /* calls */
    bool posted;     /* and nothing came since */
    bool pinged;     /* its answer is owed */
    bool was_behind; /* at the last tick output was left over */
    u64 arrived, sent;
};

enum peer_guest_state { GUEST_STRANGER, GUEST_GREETED, GUEST_OPEN, GUEST_CLOSING };

struct peer_guest {
    struct list link; /* peers->guests */
    struct peers *peers;
    struct io_conn *conn;
    enum peer_guest_state state;
    bool paused;
    struct peer_identity from;
    struct list requests; /* struct peer_request.link */
    u32 under_way;
    u32 ticks; /* without a word; until OPEN: since the begin */
    u64 arrived;
    u8 hello[PEER_HELLO_BYTES_MAX], answer[PEER_HELLO_BYTES_MAX]; /* as they were sent */
    u32 hello_size, answer_size;
};

struct peer_request {
    struct list link; /* guest->requests; peers->spare_requests */
    struct peers *peers;
    struct peer_guest *guest; /* NULL: gone */
    struct native_header header;
    u64 deadline_ns;
};

struct peer_member {
    u32 number;
    struct peer_address address;
    struct peer_link *links[]; /* address.shard_count; NULL: none yet */
};

struct peer_handler_entry {
    peer_handler fn;
    void *arg;
};

struct peers {
    /* configuration */
    struct peers_options options;
    struct io_listener *listener;
    struct peer_handler_entry handlers[256];

    /* state */
    bool closing;
    u64 identity_turn;            /* counts peers_identity_set */
    struct peer_member **members; /* by number, ascending */
    u32 member_count, member_capacity;
    struct list links, guests;
    u32 seeds, strangers, connecting;
    struct heap deadlines; /* struct peer_call.timer */
    struct io_timer deadline_timer;
    u64 call_order;
    struct list ended; /* struct peer_call.link: done is due */
    struct io_task ended_task;
    struct list running; /* those of them that this run of the task has taken */
    struct io_timer tick_timer;
    struct fiber_queue gone; /* peers_close waits for the last */
    struct fiber_queue room; /* peer_room_await */
    struct list spare_requests;
    u32 spare_count;
    u32 requests_alive; /* not answered yet; they outlive peers_close */
    bool closed;
    bool taken_out; /* peers_taken_out */
    u64 log_at_ns;
    u64 log_new_at_ns; /* of those that have no cluster yet */
    struct peers_stats stats;
};

/* ---- peer.c ---- */

struct bytes peers_secret(const struct peers *peers);
/* What this node says of itself now, with a fresh nonce; returns its bytes. */
u32 peers_hello(struct peers *peers, u32 shard, u32 requests_max, u8 out[PEER_HELLO_BYTES_MAX]);
void peers_tick_arm(struct peers *peers);
/* Counts a refusal and says so, at most once a second. */
void peers_refused(struct peers *peers, const struct io_conn *conn, const char *why);
/* The same of a node that has no cluster yet: at most once a minute. */
void peers_refused_new(struct peers *peers, const struct io_conn *conn);
/* Something ended: peers_close may go on. */
void peers_ended(struct peers *peers);
void peers_check_free(struct peers *peers);
/* ST_OK: the peer of these words is one that this node talks to; otherwise why says why not.
 * ST_NOT_FOUND: it was a member once. */
MUST_CHECK status peers_admits(struct peers *peers, const struct peer_hello *hello,
                               struct peer_identity *out, const char **why);

struct peer_member *peers_member_find(const struct peers *peers, u32 number);
size_t peer_parts_bytes(const struct bytes *parts, u32 part_count);
/* false: no memory. */
MUST_CHECK bool peer_frame_append(struct buf *out, const struct native_header *header,
                                  const struct bytes *parts, u32 part_count);
MUST_CHECK bool peer_frame_send(struct peers *peers, struct io_conn *conn,
                                const struct native_header *header, const struct bytes *parts,
                                u32 part_count);

/* ---- peer_call.c ---- */

extern const struct io_conn_events peer_link_events;
/* Ends its calls with why, closes it, and no new ones come. */
void peer_link_drop(struct peer_link *link, status why);
void peer_link_tick(struct peer_link *link);
void peer_link_doubt(struct peer_link *link);
/* The deadlines that have passed. */
void peer_calls_expire(struct io_timer *timer);
void peer_calls_ended_run(struct io_task *task);

/* ---- peer_serve.c ---- */

extern const struct io_conn_events peer_guest_events;
void peer_guest_close(struct peer_guest *guest);
void peer_guest_tick(struct peer_guest *guest);

#endif
