/* SPDX-License-Identifier: MIT
 *
 * core_conn.h -- the part of a connection that both backends share: who it is, what the session is
 * given and when, and how it ends. Private to src/io.
 *
 *     net.h            implemented in core_conn.c, but for names and for making connections
 *     core_conn_*      called by a backend when something came or went
 *     backend_conn_*   called by the common code, resolved at link time
 *
 * A backend embeds struct io_conn as the first member of its own connection, and struct core_net in
 * its shard.
 *
 *   state      receive            send               leaves by
 *   OPEN       wanted, given      what may go        io_conn_close, the peer's end, an error
 *   FLUSHING   stopped            what may go        all sent -> LINGERING; timer -> SHUT
 *   LINGERING  wanted, thrown away none              the peer's end, timer -> SHUT
 *   SHUT       stopped            stopped            both ended -> closed() and freed, by a task
 *
 * An OPEN connection that waits for room for a large frame (core_room.c) is not received from.
 *
 * Lingering: closing a socket that has unread bytes sends a reset, which may destroy the last reply
 * on its way. So after the last byte we only shut the sending side, and wait a moment for the peer.
 *
 * A peer that only closes its sending side still gets what is held for the log. When it is released
 * after that, io_conn_send_until sends it, and the end comes with the last byte.
 */
#ifndef DISTKV_IO_CORE_CONN_H
#define DISTKV_IO_CORE_CONN_H

#include "base/buf.h"
#include "io/core.h"
#include "io/core_output.h"
#include "io/net.h"

/* Received at once without a large frame being wanted: the ring's provided buffers. Also what any
 * session may have before it without coming round to it. */
#define CONN_PIECE_BYTES 8192u

enum conn_state { CONN_OPEN, CONN_FLUSHING, CONN_LINGERING, CONN_SHUT };

/* Who waits for room comes in this order. Those that grow have had room for less of the same frame:
 * the sooner they are done, the sooner there is more. */
enum room_class { ROOM_FIRST, ROOM_GROWS, ROOM_NEW, ROOM_CLASSES };

struct core_room {
    struct list waiting[ROOM_CLASSES]; /* struct io_conn.room_link */
    struct list holders;               /* struct io_conn.hold_link: who has input, longest first */
    struct io_timer timer;             /* armed while anybody waits or has memory of frames */
    struct io_task task;
    bool posted;
    u32 count; /* connections with room_had */
    u32 ended; /* of the holders, since others wait or need the memory */
};

/* Bits of io_conn.paused. */
#define CONN_PAUSED_SESSION 1u
#define CONN_PAUSED_ROOM    2u

/* The connections of one shard. What clients send in parts and what they do not read may take no
 * more than these shares, children of the shard's budget, so that they never starve the store.
 */
struct core_net {
    struct io_shard *shard;
    struct list conns; /* struct io_conn.link */
    /* Large frames have a budget of their own; the shares of small input and of output are there
     * whatever those take (budget_reserve). */
    struct budget input_budget, frame_budget, output_budget;
    struct core_output_spares output_spares;
    u64 conn_id_last;
    struct core_room room;
};

struct io_conn {
    struct list link; /* core_net.conns */
    struct core_net *net;
    const struct io_conn_events *events;
    void *user;
    u64 id;
    enum conn_state state;
    bool opened;
    u8 paused;     /* CONN_PAUSED_* */
    bool giving;   /* input is before the session */
    bool room_had; /* for a part of the frame at the front */
    bool peer_ended;
    bool end_told;   /* to the session */
    bool flush_held; /* the peer closed its sending side: it may still read held replies */
    bool again_posted;
    bool close_posted;
    status why;
    struct buf input;  /* left over by the session */
    size_t want_bytes; /* the frame at the front, 0: not known */
    u64 received;      /* bytes of all that came; see io_conn_arrived */
    struct list hold_link, room_link;
    u64 room_ns;      /* since when it waits; or of the last look whether more came, 0: none */
    u64 room_arrived; /* io_conn_arrived then */
    struct core_output output;
    struct io_timer timer; /* of flushing and lingering */
    struct io_task again_task;
    struct io_task close_task;
};

void core_net_init(struct core_net *net, struct io_shard *shard);
/* The shard ends: aborts every connection. */
void core_net_shut(struct core_net *net);
/* The figures that its budgets know. */
void core_net_stats(const struct core_net *net, struct io_stats *out);

/* conn is the backend's, zeroed. */
void core_conn_init(struct io_conn *conn, struct core_net *net,
                    const struct io_conn_events *events);
/* The session's first call. A failure shuts conn. */
MUST_CHECK status core_conn_open(struct io_conn *conn, void *arg);
/* Frees what conn holds; the memory of conn itself is the backend's. */
void core_conn_deinit(struct io_conn *conn);

/* ---- receiving ---- */

/* Whether bytes or the end should come now. */
bool core_conn_receives(const struct io_conn *conn);
/* Asks the backend for it. */
void core_conn_receive_later(struct io_conn *conn);
/* The rest of a large frame is wanted: it should go straight into the input. */
bool core_conn_wants_direct(const struct io_conn *conn);
/* Makes room for it. False: there is none now, and core_conn_receives comes true when there is. */
MUST_CHECK bool core_conn_direct_reserve(struct io_conn *conn);
/* Bytes that lie anywhere. */
void core_conn_arrived(struct io_conn *conn, struct bytes data);
/* A receive into the input has ended: bytes were put behind it, or could not be given while more
 * might be. */
void core_conn_input_grown(struct io_conn *conn);
/* The peer has closed its sending side. */
void core_conn_peer_ended(struct io_conn *conn);

/* ---- core_room.c ---- */

void core_room_init(struct core_net *net);
/* Puts what came behind what is held of its input. false: no memory. */
MUST_CHECK bool core_room_keep(struct io_conn *conn, struct bytes data);
/* Frees what is held of its input. */
void core_room_input_free(struct io_conn *conn);
/* Whether what comes may come in many pieces at once. */
bool core_room_is_ample(const struct core_net *net);
/* What a frame that was taken has left, a few bytes of the next one in all of its memory, is cut to
 * what the next one wants. Returns the bytes given back. */
u64 core_room_trim(struct io_conn *conn);
/* Its memory, or some of it, was given back. */
void core_room_freed(struct io_conn *conn);
/* The frame that it had room for is taken. */
void core_room_done(struct io_conn *conn);
/* Waits no longer. */
void core_room_leave(struct io_conn *conn);
/* No memory for what conn sends: counts it. */
void core_room_starved(struct io_conn *conn);

/* ---- sending, the end ---- */

/* Sending is over, and bytes of it went. */
void core_conn_sent(struct io_conn *conn, u32 bytes);
/* The one way to SHUT. The first reason stays. */
void core_conn_shut(struct io_conn *conn, status why);
/* Posts the last task of a connection that is shut once nothing is active. */
void core_conn_shut_check(struct io_conn *conn);

/* ---- what a backend brings ---- */

/* There is something to send and nothing under way: soon. May come again before it is done. */
void backend_conn_send(struct io_conn *conn);
/* core_conn_receives came true. May come again, also while a receive is active. */
void backend_conn_receive(struct io_conn *conn);
/* No more now; what is on its way may still arrive. */
void backend_conn_receive_stop(struct io_conn *conn);
/* Enough for now: as above, but what waits to be armed stays so. */
void backend_conn_receive_cut(struct io_conn *conn);
/* Somebody is writing behind the input. */
bool backend_conn_input_busy(const struct io_conn *conn);
/* Nothing was sent so far and nothing will be but this, if it goes without waiting and memory. */
void backend_conn_last_words(struct io_conn *conn, struct bytes text);
/* Nothing will be sent any more; the peer is to learn of it. */
void backend_conn_shut_send(struct io_conn *conn);
/* Both directions end, what is active ends soon. */
void backend_conn_shut(struct io_conn *conn);
/* Requests refer to conn. */
bool backend_conn_active(const struct io_conn *conn);
/* Calls core_conn_deinit. */
void backend_conn_free(struct io_conn *conn);

#endif
