/* SPDX-License-Identifier: MIT
 *
 * net.h -- byte-stream connections, driven by callbacks.
 *
 * Receiving. `received` is given all bytes that are there and returns how many it consumed; the
 * rest is given again, with what follows, when more has arrived. Two hints: io_conn_want says how
 * many bytes the frame at the front needs in all, so that a large body is received straight into
 * one buffer of that size; io_conn_again asks to be called with the same bytes in the next turn
 * (the caller has used up its quota).
 *
 * Sending. Bytes are appended to the connection's output and go out as one coalesced send a turn,
 * one in flight. Positions count all bytes ever appended. io_conn_send_until holds back what lies
 * at or after a position: a reply that must wait for the log is appended at once and released
 * later, without a fiber.
 *
 *       0 ......... sent ......... send_until ......... written
 *                        may go               held
 *
 * Room. Large frames of all connections share a part of the shard's memory. Who finds no room for
 * one is not read until there is, in the order of coming (core_room.c).
 *
 * Back-pressure. Output counts against the shard's memory, a part of which only small writes may
 * take; io_conn_pending tells how much there is. Above its own limit the session pauses reading
 * (io_conn_pause); `drained` is called when the output has fallen under CONN_OUTPUT_LOW_BYTES after
 * it was above CONN_OUTPUT_HIGH_BYTES.
 */
#ifndef DISTKV_IO_NET_H
#define DISTKV_IO_NET_H

#include "base/status.h"
#include "base/types.h"

#define CONN_OUTPUT_LOW_BYTES  (64u << 10)
#define CONN_OUTPUT_HIGH_BYTES (256u << 10)
/* The most that a frame may want: a largest batch with its header, some slack. */
#define CONN_INPUT_MAX_BYTES (16u << 20)

struct io_conn; /* owned by src/io; valid from opened until closed has returned */

/* What `crowded` tells. */
enum io_crowd {
    /* The connection begins to wait, unread, for room for its frame. */
    IO_CROWD_WAITS,
    /* It has a part of a frame, and nothing, or far too little, has come for three seconds; or it
     * is paused. Others wait for the room. Who is to blame for it is closed. */
    IO_CROWD_HOLDS_UP,
    /* It has waited too long, or there is no memory for a piece of what it sends: the last words,
     * then it is to be closed. */
    IO_CROWD_GIVES_UP,
};

struct io_conn_events {
    /* First call. arg is the listener's (or io_connect's); a status that is not ok closes. */
    status (*opened)(struct io_conn *conn, void *arg);
    /* Returns the number of bytes consumed, at most data.size. data is valid during the call. */
    size_t (*received)(struct io_conn *conn, struct bytes data);
    void (*drained)(struct io_conn *conn);
    /* The peer sends no more, and all that it sent has been given; it may still read. Whoever sets
     * this closes the connection once it has answered. NULL: as io_conn_close(IO_CLOSE_FLUSH), but
     * held output is sent when it is released. */
    void (*ended)(struct io_conn *conn);
    /* Last call, also after io_conn_close. why: ST_OK at the peer's orderly end or our own close,
     * else the error. Not called when opened failed. */
    void (*closed)(struct io_conn *conn, status why);
    /* See there. input: what has come of the frame, valid during the call. NULL: it is
     * never held to go on, and closed when it has waited too long. */
    void (*crowded)(struct io_conn *conn, enum io_crowd what, struct bytes input);
    /* Its frames find room before those of the others: what clients send does not hold it up. */
    bool first;
    /* The last words to a peer for whom there is no memory (opened returned ST_NO_MEMORY, or could
     * not be called): sent past the output if the kernel takes them at once, else not at all. */
    struct bytes refusal;
};

void io_conn_user_set(struct io_conn *conn, void *user);
void *io_conn_user(const struct io_conn *conn);
/* Unique in this shard for the life of the process. */
u64 io_conn_id(const struct io_conn *conn);
/* "address:port", cut to size. */
void io_conn_peer_name(const struct io_conn *conn, char *name, size_t size);
void io_conn_local_name(const struct io_conn *conn, char *name, size_t size);

/* ---- output ---- */

/* size contiguous bytes at the end of the output, to be filled and then committed (fewer may be).
 * NULL when memory is out: the session closes the connection. Only the last reserve is valid. */
MUST_CHECK u8 *io_conn_reserve(struct io_conn *conn, size_t size);
void io_conn_commit(struct io_conn *conn, size_t size);
MUST_CHECK bool io_conn_write(struct io_conn *conn, const void *data, size_t size);
/* The same for a piece of something long: half of the memory for output is left to what is short.
 * After a false `drained` comes if anything is on its way to the client; else try again later. */
MUST_CHECK bool io_conn_write_piece(struct io_conn *conn, const void *data, size_t size);
/* Whether that is likely to be taken now. */
bool io_conn_piece_fits(const struct io_conn *conn, size_t size);
u64 io_conn_written(const struct io_conn *conn);
/* position UINT64_MAX: no hold (the start value). Never moves behind what was sent. */
void io_conn_send_until(struct io_conn *conn, u64 position);
size_t io_conn_pending(const struct io_conn *conn);
/* Whether the session should read no further until `drained`: above CONN_OUTPUT_HIGH_BYTES, or
 * earlier when the outputs of all connections together use much of the memory they may. */
bool io_conn_output_full(struct io_conn *conn);

/* ---- input ---- */

void io_conn_want(struct io_conn *conn, size_t frame_bytes);
/* How many bytes the peer has got here, those that `received` was not given yet included, also the
 * part of a large frame that is still being received. Asks the kernel: not for each request. */
u64 io_conn_arrived(const struct io_conn *conn);
/* What has become of the peer, also while nothing is received from it (io_conn_pause). Asks the
 * kernel: not for each request. */
enum io_conn_peer {
    IO_PEER_THERE, /* as far as is known */
    IO_PEER_ENDED, /* has closed its sending side; what it has sent may not have been received yet */
    IO_PEER_GONE,  /* has closed all */
};
enum io_conn_peer io_conn_peer_look(const struct io_conn *conn);
/* Whether it waits for room, so that what is silent is not the peer. */
bool io_conn_waits_for_room(const struct io_conn *conn);
void io_conn_again(struct io_conn *conn);
void io_conn_pause(struct io_conn *conn);
/* Gives what was left over first. */
void io_conn_resume(struct io_conn *conn);

/* ---- end ---- */

enum io_close_mode {
    IO_CLOSE_FLUSH, /* stop reading, send what may go, then close; held output is dropped */
    IO_CLOSE_ABORT, /* at once */
};
/* closed comes later, never from inside. May be called twice. */
void io_conn_close(struct io_conn *conn, enum io_close_mode mode);

/* ---- making connections ---- */

struct io_listener;

/* Every shard of a node may listen on the same port; the kernel spreads connections over them.
 * host: an IPv4 or IPv6 address. port 0 picks one. */
MUST_CHECK status io_listen(const char *host, u16 port, const struct io_conn_events *events,
                            void *arg, struct io_listener **out);
/* Why io_listen failed, for people. */
static inline const char *
io_listen_why(status st)
{
    if (status_is(st, ST_EXISTS)) return "in use by another process";
    return status_is(st, ST_INVALID) ? "not an address of this machine" : status_text(st);
}
u16 io_listener_port(const struct io_listener *listener);
/* Stops accepting; connections live on. */
MAY_YIELD void io_listener_close(struct io_listener *listener);
/* events->opened is called before this returns ok. CLOSED: refused; TIMED_OUT; IO_ERROR: no way
 * there; INVALID: no address; NO_MEMORY: this machine lacks memory or descriptors. */
MAY_YIELD MUST_CHECK status io_connect(const char *host, u16 port,
                                       const struct io_conn_events *events, void *arg,
                                       u64 deadline_ns, struct io_conn **out);

#endif
