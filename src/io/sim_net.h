/* SPDX-License-Identifier: MIT
 *
 * sim_net.h -- what the two parts of the simulated network share.
 *
 *   sim_line.c   lines, pipes and segments: what is under way between two machines
 *   sim_conn.c   their ends: sending, receiving, connecting, listening
 *
 *   conn A --sending--> segments under way --> arrived --pieces--> conn B
 *             <----------------- the other pipe of the line ----------------
 *
 * A line joins two ends and outlives either of them. Each direction is a pipe that holds at most
 * options.net.pipe_bytes between the sender's output and the receiver's hands; segments have random
 * sizes and delays but keep their order; what arrives is joined and cut again, down to one byte.
 *
 * It behaves as TCP does under Linux:
 *   - A send takes bytes out of the output while the pipe has room and is over in a later turn.
 *   - An end that is closed in order says so behind the last byte; one that is closed with bytes
 *     unread, and the machine of an end that is gone when bytes come for it, answers by a reset.
 *   - A reset overtakes nothing, but bytes that are under way with it may be lost.
 *   - A machine without power answers nothing, nor does one behind a cut link. The sender tries
 *     again, after 200 ms, 400 ms and so on up to 120 s, and gives up after the fifteenth time,
 *     about 924 s. So who only listens never learns of it. When the power is back, what is tried
 *     again finds nobody and is answered by a reset: it belongs to no connection of the new
 *     process.
 *   - A connect tries again, too, from 1 s on, and gives up after 127 s.
 */
#ifndef DISTKV_IO_SIM_NET_H
#define DISTKV_IO_SIM_NET_H

#include "io/core_conn.h"
#include "io/sim_internal.h"

#define SEND_PIECES 8u

enum segment_kind { SEGMENT_DATA, SEGMENT_END, SEGMENT_RESET };

struct segment {
    struct list link; /* pipe.under_way, then pipe.arrived */
    u64 time_ns;
    enum segment_kind kind;
    u32 size;
    u32 taken; /* of size, by the receiver */
    u8 data[];
};

/* One direction. Its event is the arrival of its first segment. */
struct pipe {
    struct sim_event event;
    struct line *line;
    u32 from;              /* end that sends */
    struct list under_way; /* struct segment.link, by time */
    struct list arrived;   /* struct segment.link */
    u64 used_bytes;        /* of both */
    u64 time_ns;           /* when the last segment arrives */
    u32 retries;           /* of the first segment */
    bool ended;            /* end or reset was sent: nothing follows but a reset */
    bool reset;            /* a reset was sent: nothing follows */
    bool black;            /* nothing arrives any more, and nobody is told */
};

/* libc's memory: it belongs to no node. */
struct line {
    struct list link; /* sim.lines */
    u64 number;
    struct sim_node *nodes[2];
    struct sim_conn *ends[2]; /* NULL: not yet or no longer */
    bool pending[2];          /* not yet */
    bool silent[2];           /* the end goes without a word */
    struct pipe pipes[2];     /* by sending end */
};

struct sim_conn {
    struct io_conn core; /* first */
    struct line *line;
    u32 end;
    char peer[80], local[80];

    bool send_posted; /* send_task */
    bool send_shut;   /* the end was sent, or follows the last byte */
    status send_failed;
    u32 send_piece; /* of the send under way: pieces[send_piece] from send_offset on are left */
    size_t send_offset;
    u32 send_pieces;
    u32 send_bytes; /* taken */
    struct iovec pieces[SEND_PIECES];
    u8 *copy; /* of all pieces, when the kernel copies at once */

    struct io_task send_task;
    struct sim_arrival receive; /* segments have arrived */
    struct sim_arrival room;    /* the pipe has room again */
    struct sim_arrival sent;    /* the send under way is over */
    struct sim_arrival error;   /* the machine has given up: error_why */
    status error_why;
};

/* ---- sim_line.c ---- */

bool sim_link_is_cut(const struct sim *sim, const struct sim_node *a, const struct sim_node *b);
u64 sim_net_delay_ns(struct sim *sim);
/* Both ends are pending. */
struct line *sim_line_new(struct sim *sim, struct sim_node *from, struct sim_node *to);
/* Frees the line once nobody will look at it. */
void sim_line_check(struct sim *sim, struct line *line);
/* From this end nothing more follows; or the connection is no more. */
void sim_line_end(struct sim *sim, struct line *line, u32 from);
void sim_line_reset(struct sim *sim, struct line *line, u32 from);
/* An end that will never exist. */
void sim_line_give_up(struct sim *sim, struct line *line, u32 end);
/* The machine of the end learns that the connection is no more. */
void sim_line_end_fail(struct line *line, u32 end, status why);
/* A segment of size bytes at the end of the pipe, to be filled. */
u8 *sim_pipe_push(struct sim *sim, struct pipe *pipe, enum segment_kind kind, u32 size);
/* Whoever sends a reset has dropped what it had not sent yet; how much that was is chance. */
void sim_pipe_lose_some(struct sim *sim, struct pipe *pipe);
/* Moves at most size bytes of what has arrived; returns how many there were. */
u32 sim_pipe_take(struct pipe *pipe, u8 *target, u32 size);
/* The sender may go on. */
void sim_pipe_roomy(struct pipe *pipe);
bool sim_pipe_unread(const struct pipe *pipe);
void sim_segment_free(struct pipe *pipe, struct segment *segment);
void sim_segments_free(struct pipe *pipe, struct list *segments);
/* Links heal, stalls end. */
void sim_lines_hurry(struct sim *sim, u64 latest_ns);

/* ---- sim_conn.c ---- */

/* Ends the send under way. */
void sim_conn_send_fail(struct sim_conn *conn, status why);

static inline struct sim_shard *
sim_conn_shard(const struct sim_conn *conn)
{
    return (struct sim_shard *)conn->core.net->shard;
}

static inline void
sim_conn_arrive(struct sim_conn *conn, struct sim_arrival *arrival)
{
    if (!list_linked(&arrival->link)) sim_arrive(sim_conn_shard(conn), arrival);
}

#endif
