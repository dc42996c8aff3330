/* SPDX-License-Identifier: MIT
 *
 * lib_internal.h -- the insides of libdistkv.
 *
 *   call -> request -> [waiting] -> connection: [unsent] -> [sent] -> reply -> completed -> callback
 *                          ^                        |          |
 *                          +------ delayed <--------+----------+   refused, or the connection broke
 *
 * A request owns its encoded frame for as long as it lives: sending it again is handing the same
 * bytes to another connection, and sending many is one writev over their frames. It is on exactly
 * one list at a time (enum request_state), and until it has ended it has one timer: its deadline,
 * or the end of its pause.
 *
 * A reply is handed on at once, from distkv_process, while its bytes lie in the connection's
 * buffer. What the library itself ends (deadlines, broken connections) waits on `completed` until
 * distkv_process runs its callback: so no callback runs inside a call that starts something.
 */
#ifndef DISTKV_CLIENT_LIB_INTERNAL_H
#define DISTKV_CLIENT_LIB_INTERNAL_H

#include "distkv.h"

#include "base/heap.h"
#include "base/list.h"
#include "base/prng.h"
#include "base/retry.h"
#include "client/lib_map.h"
#include "proto/native.h"

#define LIB_SERVERS_MAX     64u /* that may be named */
#define LIB_CONNECTIONS_MAX 64u /* to one server */
static_assert(LIMIT_SHARDS <= LIB_CONNECTIONS_MAX, "each shard of a server may have one");
#define LIB_PORT_DEFAULT "8080"
/* Instead of a slot: of a request without a key. */
#define LIB_ANYWHERE      UINT32_MAX
#define LIB_SHARD_UNKNOWN UINT32_MAX
/* Pauses before a refused request is sent again. */
#define LIB_RETRY_MIN_MS 2u
#define LIB_RETRY_MAX_MS 500u
/* A handle holds no more calls than this; with it the hash table stays small. */
#define LIB_PENDING_MAX (1u << 20)
/* Memory that calls leave to the library: what a connection begins with, and a map that is new. */
#define LIB_OWN_BYTES KIB(128)

enum request_state {
    REQUEST_WAITING,   /* kv->waiting: for a connection with room */
    REQUEST_DELAYED,   /* on no list; its timer says when it goes on */
    REQUEST_UNSENT,    /* connection->unsent */
    REQUEST_SENT,      /* connection->sent */
    REQUEST_COMPLETED, /* kv->completed */
};

struct request;
struct connection;

/* reply: NULL when the library itself ended the request. */
typedef void (*request_done)(struct request *request, int code, const char *error,
                             const struct native_reply *reply);

/* One thing that happens at a time: to a request or to a connection; else it is one of the
 * handle's. */
struct lib_timer {
    struct heap_node node; /* in kv->timers while armed */
    bool armed;
    u64 at_ns;
    struct request *request; /* one of the two */
    struct connection *connection;
};

struct request {
    struct list link;
    struct lib_timer timer;
    struct request *hash_next;
    struct connection *connection; /* UNSENT, SENT */
    enum request_state state;
    u8 opcode;
    bool own;        /* the library's: HELLO, PING, TOPOLOGY. It has no deadline */
    bool repeatable; /* may be done twice without harm */
    bool ambiguous;  /* a change that may have been done by an attempt whose reply was lost */
    u32 slot;
    u32 attempts;
    u64 id;
    u64 deadline_ns;
    u64 sent_ns;       /* the last time */
    u64 first_sent_ns; /* the first attempt that may have been done */
    u64 first_run_id;  /* the server's start that saw it */
    struct server *first_server;
    u64 first_serial; /* of first_server, whose place may be another one's by now */
    /* the last attempt's */
    struct server *last_server;
    u64 last_serial, last_run_id;
    u64 pinned_run_id; /* the only start of a server that knows what it speaks of; 0: any does */
    struct buf frame;
    /* the outcome, while COMPLETED */
    int code;
    char error[160];
    /* whom to tell */
    request_done done;
    void *arg;
    distkv_callback callback;
    void *callback_arg;
};

enum connection_state {
    CONNECTION_CLOSED, /* its timer begins the next attempt; not armed: nobody wants it */
    CONNECTION_CONNECTING,
    CONNECTION_HELLO,
    CONNECTION_READY,
};

struct connection {
    struct distkv *kv;
    struct server *server;
    enum connection_state state;
    int fd;
    bool writable_wanted;   /* EPOLLOUT is on: the socket is full */
    bool failed_once;       /* for distkv_connect: a whole attempt has failed */
    struct lib_timer timer; /* next attempt, the end of this one, or a look at silence */
    u32 backoff_ms;
    u32 address_next; /* which of the host's addresses the next attempt takes */
    u32 address_count;
    bool unreached; /* one of them was not refused: it did not answer */
    bool refused;   /* by the handshake's reply: about to be broken */
    bool denied;    /* by this attempt's server */
    bool leaving;   /* the server wants another one: ends when nothing is in flight */
    bool answered;  /* a request of a caller */
    u64 ready_ns;   /* when it became READY */
    struct list unsent, sent;
    size_t unsent_offset; /* bytes of the first unsent frame that are written */
    u32 in_flight;        /* requests on both lists */
    u32 in_flight_max;
    u64 run_id;
    u64 received_ns; /* when bytes last came */
    u32 idempotency_ms;
    /* lib_route.c */
    u32 shard;          /* of the node, that serves it; LIB_SHARD_UNKNOWN */
    bool tells;         /* TOPOLOGY may be asked for, and is worth it */
    bool silent;        /* owes an answer and has not said a word for a while */
    u64 written, taken; /* bytes: by us, and by the other side's kernel when it was last looked */
    u64 epoch;          /* of its last reply */
    u64 cluster;        /* whose it is; 0: none's, or not known */
    struct buf in;
};

struct server {
    char name[128]; /* as given */
    char host[256];
    char port[16];
    u16 shard_port; /* connection i goes to the port of shard i % shard_count; 0: all to port */
    u32 shard_count;
    bool named;   /* by the user; else by the map */
    bool mapped;  /* the map names it */
    bool retired; /* no longer: its connections end */
    bool down;    /* the last attempt to connect has failed */
    bool gone;    /* because nobody listens at any of its addresses */
    bool several; /* it was more than one node */
    bool changed; /* it is another one than before: see route_on_known */
    bool outside; /* named, and the map does not have it: it was taken out */
    u64 serial;   /* of all that this handle has had */
    u32 connection_count;
    struct connection *connections; /* NULL: this place is free */
    struct distkv_server_info info;
};

struct distkv {
    struct distkv_options options;
    char client_name[NATIVE_NAME_BYTES_MAX + 1];
    char user[NATIVE_NAME_BYTES_MAX + 1];
    char password[NATIVE_NAME_BYTES_MAX + 1];
    struct budget budget;
    struct prng prng;
    struct retry_budget retries; /* of requests that were refused */
    int epoll_fd;
    int timer_fd;
    u64 timer_armed_ns;     /* 0: not armed */
    struct server *servers; /* places for those that are named and for those of the map */
    u32 server_count;
    u64 server_serial;
    u64 epoch;
    /* lib_route.c */
    struct lib_map map;
    u64 map_cluster;                               /* whose it is; 0: not known */
    struct server *map_servers[LIB_MAP_NODES_MAX]; /* by index of the map's nodes; NULL: no room */
    u64 epoch_told;                                /* the newest that a node has told */
    u64 fetched_ns;                                /* when the map was last asked for; 0: never */
    struct request *fetch;                         /* that asks for it now */
    char fetch_host[256];                          /* where */
    u64 fetch_cluster;                             /* whose that is */
    struct lib_timer fetch_timer;
    struct lib_timer elsewhere_timer; /* a write that waits for that may go elsewhere */
    bool retired;                     /* a server may be, and have ended */
    u64 pin_run_id;                   /* of the next request: its pinned_run_id */
    u64 reply_run_id;                 /* of the server whose reply is at hand */
    /* requests */
    struct heap timers;
    struct list waiting, completed;
    struct request **table; /* by id: those that are sent */
    u32 table_size, table_used;
    u64 id_next;
    size_t pending;                 /* with a callback still to come, blocking calls included */
    u64 callbacks;                  /* how many requests have told their end */
    bool in_process;                /* callbacks run only then */
    bool closing;                   /* nothing more can be started */
    bool denied;                    /* a server refused user or password */
    bool leaving;                   /* a connection may be */
    char error[DISTKV_ERROR_BYTES]; /* of the last call */
    char connect_error[DISTKV_ERROR_BYTES]; /* of the last connection that failed */
};

u64 lib_now_ns(void);
int lib_code_of(u32 native_status);
PRINTF_LIKE(3, 4) int lib_fail(struct distkv *kv, int code, const char *format, ...);

/* ---- lib_connection.c ---- */

MUST_CHECK int connections_init(struct distkv *kv, const char *servers, char *error);
void connections_deinit(struct distkv *kv);
/* The first timer, events of the socket, and what is to be sent. */
void connection_on_timer(struct connection *connection);
void connection_on_event(struct connection *connection, u32 events);
void connection_flush(struct connection *connection);
/* Whether what was sent is still on its way, and has come further since this was last asked. */
bool connection_moves(struct connection *connection);
/* Closes it; its requests are sent again or ended. */
PRINTF_LIKE(2, 3) void connection_break(struct connection *connection, const char *format, ...);
/* A server's connections; they are opened when they are wanted (those of named ones at once). */
MUST_CHECK bool server_init(struct distkv *kv, struct server *server);
void server_deinit(struct distkv *kv, struct server *server);
/* Receive buffers that are empty are the handle's when memory is short. False: there was none. */
bool connections_give_back(struct distkv *kv);
/* buf_reserve of the handle's memory, with theirs. */
MUST_CHECK bool lib_reserve(struct distkv *kv, struct buf *buf, size_t extra);
/* The server wants another connection: it gets no more requests. */
void connection_leave(struct connection *connection);
/* Ends those of which that was said and that have nothing in flight. */
void connections_leave(struct distkv *kv);

/* ---- lib_route.c ---- */

/* A connection that was ready is gone: the map may be another cluster's now. */
void route_on_broken(struct distkv *kv);
/* A ready connection with room for the request, or NULL. */
struct connection *route_choose(struct distkv *kv, const struct request *request);
/* Something was put on it; and its timer while it is ready. */
void route_watch(struct connection *connection);
void route_on_silence(struct connection *connection);
/* What a server says at the handshake, before and after server->info is set. */
void route_on_hello(struct connection *connection, const struct native_hello_reply *hello);
void route_on_known(struct connection *connection);
/* Of each reply. */
void route_on_epoch(struct connection *connection, u64 epoch);
void route_on_timer(struct distkv *kv);
/* One of the library's own requests ended without a reply. */
void route_on_lost(struct distkv *kv, const struct request *request);
/* Frees servers that are gone; while no event of theirs is at hand. */
void route_sweep(struct distkv *kv);

/* ---- lib_request.c ---- */

/* A request with its frame. Fails with NULL when memory is out. The header's id, keyspace, and
 * idempotency id are filled in. */
MUST_CHECK struct request *request_new(struct distkv *kv, struct native_request *native, u32 slot,
                                       bool repeatable);
void request_free(struct distkv *kv, struct request *request);
/* From here on done will be called, once. */
void request_start(struct distkv *kv, struct request *request, u64 deadline_ns, request_done done,
                   void *arg);
/* Of a call that begins now. */
u64 request_deadline(const struct distkv *kv);
void request_assign(struct request *request, struct connection *connection);
/* The connection of a request that was not written (begun: not even in part) or not answered has
 * gone. */
void request_on_lost(struct distkv *kv, struct request *request, bool begun, const char *why);
void request_on_reply(struct distkv *kv, struct request *request, const struct native_reply *reply);
/* Its reply is larger than the memory that is left; it was sent. */
void request_on_no_memory(struct distkv *kv, struct request *request);
void request_on_timer(struct distkv *kv, struct request *request);
PRINTF_LIKE(4, 5)
void request_end(struct distkv *kv, struct request *request, int code, const char *format, ...);
struct request *request_find(struct distkv *kv, u64 id);
void requests_dispatch(struct distkv *kv);
/* Runs the callbacks of what has completed; how many. */
int requests_run_completed(struct distkv *kv);
void requests_cancel_all(struct distkv *kv);

/* ---- timers: lib.c ---- */

void lib_timer_set(struct distkv *kv, struct lib_timer *timer, u64 at_ns);
void lib_timer_stop(struct distkv *kv, struct lib_timer *timer);

/* ---- blocking: lib_calls.c ---- */

struct waiter {
    bool finished;
    int code;
    char error[160];
    struct native_reply reply;
    struct buf body;
    struct distkv *kv;
    u64 run_id; /* of the server that has answered */
    /* NULL, or is told in place of who waits that it has ended; frees what the waiter is part of. */
    void (*left)(void *arg);
    void *left_arg;
};

/* Sends and waits; the reply in waiter, whose body is to be freed with waiter_deinit. */
MUST_CHECK int lib_call(struct distkv *kv, struct native_request *native, u32 slot, bool repeatable,
                        struct waiter *waiter);
void waiter_deinit(struct waiter *waiter);
/* For scans: start now, wait later. */
MUST_CHECK int lib_call_start(struct distkv *kv, struct native_request *native, u32 slot,
                              bool repeatable, struct waiter *waiter);
int lib_call_wait(struct distkv *kv, struct waiter *waiter);

MUST_CHECK int lib_start_async(struct distkv *kv, struct native_request *native, u32 slot,
                               bool repeatable, distkv_callback callback, void *arg);
/* For a call of several requests: its deadline is that of each of them. */
MUST_CHECK int lib_start_async_until(struct distkv *kv, struct native_request *native, u32 slot,
                                     bool repeatable, u64 deadline_ns, distkv_callback callback,
                                     void *arg);
/* One operation from the arguments of the public calls. */
MUST_CHECK int lib_make_op(struct native_op *op, u8 kind, const void *key, size_t key_size,
                           const void *value, size_t value_size, const struct distkv_write *write,
                           const char **error);
static inline bool
lib_op_repeatable(const struct native_op *op)
{
    return op->condition == NATIVE_IF_ANY;
}

#endif
