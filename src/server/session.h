/* SPDX-License-Identifier: MIT
 *
 * session.h -- one client's connection: what it has said, what it is owed, in which order.
 *
 * Order (RESP). Replies leave in the order of the requests. What may overlap is decided so:
 *
 *   S1  A command of one key starts while others of this connection are under way, unless one of
 *       them has the same key and one of the two writes; of a key of another shard, it starts and
 *       waits at its owner for those before it. So each key sees the commands of one
 *       connection in their order; different keys may be written in another order than asked
 *       when the first one has to wait (for a disk, for another shard).
 *   S2  Every other command (several keys, the connection's own state, the whole node) starts when
 *       nothing is under way, and nothing starts before it is done.
 *   S3  What cannot start stays in the input: reading pauses.
 *
 * Native requests start at once and are answered as they end; a client that needs an order waits
 * for the reply.
 *
 * Durability. A reply is appended to the output at once and held there (io_conn_send_until) until
 * what it tells is durable. `holds` remembers from which position on the output waits for which
 * sequence number; both ascend.
 *
 * Life. The session lives until its connection is closed and its last request has come back.
 */
#ifndef DISTKV_SERVER_SESSION_H
#define DISTKV_SERVER_SESSION_H

#include "io/net.h"
#include "proto/resp.h"
#include "server/request.h"
#include "server/shard.h"

enum session_protocol { SESSION_NEW, SESSION_RESP, SESSION_NATIVE };

/* Why a session does not read on. */
enum session_stall {
    SESSION_RUNS,
    SESSION_WAITS_ORDER, /* S1, S2: for one of its own requests */
    SESSION_WAITS_PLACE, /* for a place for a request: in one of shard->starved */
    SESSION_WAITS_OUTPUT /* for the client to read what it is owed */
};

/* A shard that does nothing for so long has stood still. */
#define SESSION_STOOD_NS (1 * NS_PER_S)

struct session_hold {
    u64 position;
    u64 seq;
};

struct transaction; /* multi.c */

struct session {
    /* fixed */
    struct shard *shard;
    struct io_conn *conn; /* NULL once closed */
    u64 id;               /* unique in the node */
    u64 created_ms;       /* wall */
    u64 created_ns;
    struct list link; /* shard->sessions */
    /* So long its requests may wait for memory, on any shard: until its client goes. Who has only
     * said that no more will come has a little longer, and mostly gone, too. */
    _Atomic u64 wanted_until_ns;

    /* protocol */
    enum session_protocol protocol;
    u8 resp; /* 2 or 3 */
    u16 keyspace;
    bool authenticated; /* see session_is_let_in */
    bool closing;       /* no further command is read */
    bool close_after;   /* close when the reply at hand has been sent */
    bool ended;         /* the client sends no more: close when it has all replies */
    bool leaving;       /* the same was seen while it does not read: sweep_paused */
    bool close_held;    /* closing, but held output has to go first: io_conn_close would drop it */
    bool reply_off, reply_skip_next, reply_skip;
    u8 level; /* in a cluster: enum replicate_level, see DISTKV.CONSISTENCY */
    bool no_evict;
    bool monitor;
    struct list monitor_link; /* shard->monitors */
    struct resp_parser parser;
    struct buf name, lib_name, lib_version;

    /* order */
    struct list pending; /* requests in order of arrival (RESP), or in any (native) */
    u32 pending_count;
    enum session_stall stall;
    bool paused;
    struct list starved_link;
    u64 starved_ns;    /* since when nothing of it found a place; 0: it is not so */
    u64 no_room_ns;    /* since when the sweep has seen a reply wait for others' output; or 0 */
    bool wants_memory; /* one of these for long: counted in server->memory_wanted */
    struct fiber_queue drained; /* a streaming reply waits for the client */
    bool piecewise;             /* the first of pending is a long reply, of which a part is sent */
    u64 client_wait_ns;         /* since when a long reply waits for the client; 0: none does */
    u64 client_wait_owed;       /* what the client was owed then */
    u32 round;                  /* see may_go_on */

    /* durability */
    struct session_hold holds[SESSION_HOLDS];
    u32 hold_first, hold_count;
    struct durable_wait durable;

    /* transaction */
    struct transaction *multi; /* NULL: not in MULTI, nothing watched */

    /* figures, timeouts */
    u64 active_ns;     /* last time that bytes came or went */
    u64 pending_bytes; /* output at the last sweep */
    u64 commands;
    const struct command *last_command;
    u64 received_bytes;
    /* Of the request at the front, of which a part has come; see sweep_unfinished. */
    u64 unfinished_wanted;  /* bytes that it needs at least; 0: there is none */
    u64 unfinished_ns;      /* since when it has this time */
    u64 unfinished_arrived; /* bytes of the connection then */
    bool unfinished_seen;   /* the above is valid */
    /* Native, in a cluster: how long what is read has waited (session_native.c). */
    u64 read_bytes; /* of the connection, by us */
    u64 waits_ns;   /* what is read next may be here since then; 0: it is read as it comes */
    u64 mark_bytes; /* so many of the connection had come at mark_ns */
    u64 mark_ns;
    char peer[64]; /* "address:port", asked for at the first slow request; empty until then */
};

extern const struct io_conn_events session_events;

/* Appends to the output; held until seq is durable (0: now). Closes when memory is out. */
void session_write(struct session *s, struct bytes reply, u64 seq);
/* Whether session_write should be given so much, or a request should send it in pieces. */
bool session_has_room(const struct session *s, size_t size);
/* Sends what is due of the requests that are done. */
void session_deliver(struct session *s);
/* From request.c: the request's outcome is there. */
void session_request_done(struct request *request);
/* The same: it is to run again once its reply is the next. */
void session_request_put_off(struct request *request);
/* A request has ended, or left from here: somebody who waits for a place may go on. */
void session_place_free(struct shard *shard);
/* Stops reading until there may be a place for a request of this size. false: others that end do
 * not make it; it is to be refused. */
MUST_CHECK bool session_stall_for_place(struct session *s, size_t bytes, u32 keys);
/* Stops reading; the next input is looked at when the reason is gone. */
void session_stall(struct session *s, enum session_stall why);
/* Closes once what is owed has been sent. */
void session_close(struct session *s);
/* Whether the shard has stood still for a second or more since the connection was made: what comes
 * over it may have been sent before, to lie in a socket until now. Of a node by itself: never. */
bool session_stood_since(const struct session *s);
void session_abort(struct session *s);
/* Says in the log that clients are refused, and how many so far; not for each of thousands. */
void session_refusal_log(struct shard *shard, const char *why);
/* On a fiber, for replies made in pieces: sends what x->reply holds and waits while the client is
 * slow. false: the connection is gone. The request must be at the head of its session. */
MAY_YIELD MUST_CHECK bool session_stream(struct exec *x);
/* The same for bytes of the caller's, behind those. The work may have left (work.h): the caller
 * calls work_return once it has given the bytes' memory back. */
MAY_YIELD MUST_CHECK bool session_stream_bytes(struct exec *x, struct bytes bytes);
/* Whether the shard's sessions and what they have under way are as they are counted, and its
 * budgets within each other. */
bool session_all_check(const struct shard *shard);
/* Arms the timer that looks for idle and stuck connections. */
void session_sweep_start(struct shard *shard);
/* Counts, slow log, latency monitor, for a command that has ended. */
void session_account(struct session *s, const struct command *command, const struct bytes *args,
                     u32 arg_count, u64 start_ns, struct bytes reply);
void session_log_slow(struct session *s, const struct command *command, const struct bytes *args,
                      u32 arg_count, u64 us);
void session_peer(const struct session *s, char *out, size_t size);
/* One line of CLIENT LIST, without its end. */
size_t session_describe(const struct session *s, char *out, size_t size);

/* session_resp.c */
/* Arguments of one command that are read in a turn: some milliseconds. */
#define SESSION_TURN_ARGS 32768u
size_t session_resp_received(struct session *s, struct bytes data);
/* CLIENT REPLY SKIP counts for what comes next, be it an empty request (as in Redis). */
void session_skip_goes_on(struct session *s);
/* Says so, counts it and closes. */
void session_resp_no_memory(struct session *s);
/* session_express.c: whether the lane is open at all, and what it takes of the front of data; 0:
 * nothing, and *waits says whether because a GET in front has to wait for the disk. *clock_ns: of
 * the last look at the clock. */
bool session_may_express(const struct session *s);
size_t session_express(struct session *s, struct bytes data, u64 *clock_ns, bool *waits);
/* session_native.c */
size_t session_native_received(struct session *s, struct bytes data);
/* The same as session_resp_no_memory; input: the beginning of the frame. */
void session_native_no_memory(struct session *s, struct bytes input);
/* It stops reading: what comes from now on waits. */
void session_native_waits(struct session *s);
bool native_state_init(struct shard *shard);
void native_state_deinit(struct shard *shard);

/* multi.c */
void session_multi_free(struct session *s);
bool session_in_multi(const struct session *s);
/* So many commands are queued; -1: not in MULTI. */
i32 session_multi_count(const struct session *s);
/* RESP: whether it may run commands: it has said the password, or none is asked for (any more). */
static inline bool
session_is_let_in(const struct session *s)
{
    return s->authenticated || !config_has_password(s->shard->config);
}
/* Queues a command and replies QUEUED. */
void session_multi_queue(struct session *s, const struct command *command, const struct bytes *args,
                         u32 arg_count, struct resp_writer *w);
/* A command was refused while queueing: EXEC will abort. */
void session_multi_spoil(struct session *s);
/* Before EXEC or WATCH starts. false: it has been answered. *at_home: commands of the connection
 * are queued, so that it runs on a fiber here. *extra goes into the run. */
MUST_CHECK bool session_exec_prepare(struct session *s, const struct command *command,
                                     const struct bytes *args, u32 arg_count, struct resp_writer *w,
                                     u32 *owner, void **extra, bool *at_home);
/* After that, in a cluster: whether another node may have to run it, and where its keys lie. What
 * was made for it takes it along. */
bool session_exec_routed(const struct session *s, u64 *token_out);
void session_exec_attach(const struct session *s, struct request *request);
/* How many keys EXEC or WATCH may have to read. */
u32 session_exec_keys(const struct session *s);
MAY_YIELD void session_exec_on_fiber(struct exec *x, struct request *request);
/* It is over, or was not started after all. */
void session_exec_done(struct session *s, const struct command *command);

/* monitor.c */
void monitor_feed(struct shard *shard, const struct session *s, u16 keyspace,
                  const struct command *command, const struct bytes *args, u32 arg_count);
MAY_YIELD void monitor_start(struct session *s);
void monitor_stop(struct session *s);

#endif
