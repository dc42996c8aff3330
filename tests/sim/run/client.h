/* SPDX-License-Identifier: MIT
 *
 * client.h -- one client of the simulated node: a fiber on a machine of its own, with one
 * connection at a time, over which it speaks RESP or native frames as any client would.
 */
#ifndef DISTKV_TESTS_SIM_RUN_CLIENT_H
#define DISTKV_TESTS_SIM_RUN_CLIENT_H

#include "io/net.h"
#include "run.h"

#define REQUEST_OPS_MAX  64u
#define REQUEST_KEYS_MAX 8u /* objects of MGET and the like */

enum request_kind {
    REQUEST_STEP,     /* one step */
    REQUEST_VALUES,   /* MGET: an element a step, over all operations */
    REQUEST_EXEC,     /* MULTI, one operation, EXEC */
    REQUEST_ALL,      /* MSET: +OK when everything is done */
    REQUEST_SUM,      /* DEL: how many were there */
    REQUEST_ALL_NX,   /* MSETNX */
    REQUEST_CLEAR,    /* FLUSHDB */
    REQUEST_BATCH,    /* native: one operation */
    REQUEST_SCAN,     /* one page */
    REQUEST_KEYS,     /* KEYS * */
    REQUEST_COUNT,    /* how many keys */
    REQUEST_SNAPSHOT, /* SNAPSHOT_OPEN */
    REQUEST_WATCH,    /* WATCH, before a REQUEST_EXEC that expects */
    REQUEST_OTHER,    /* its answer only has to be one */
    REQUEST_HELLO,
};

struct request {
    struct list link; /* client.pending, or client.again */
    enum request_kind kind;
    u32 op_count;
    struct model_op *ops[REQUEST_OPS_MAX];
    u64 begun; /* position */
    u64 sent_ns;
    u32 preludes; /* answers that come before the one that counts: MULTI, QUEUED */
    bool spoiled; /* one of them was an error */
    bool stale;   /* EXEC: when it was sent, its watched key had surely changed */
    u64 count_least, count_most;
    /* native */
    u64 id;
    u64 idempotency[2];
    u32 attempts;
    /* OTHER */
    const char *text; /* a line of words, or NULL */
};

/* A scan, page after page. */
struct scan {
    bool active;
    u16 keyspace;
    u64 begun; /* position */
    u64 cursor;
    u8 *seen; /* by key: how often */
    u32 pages;
    /* KEYS, snapshots: what is shown is of one moment */
    u8 *sure; /* by key: enum presence_effect at position sure_since */
    u64 sure_since;
    u64 opened; /* position of the answer of KEYS or SNAPSHOT_OPEN */
    /* native */
    u64 snapshot;
    u64 begun_ns, opened_ns, epoch;
    u32 *values; /* by key, in a snapshot */
    u64 *versions;
    bool given;
    u64 token;
    u32 after_size;
    u8 after[LIMIT_KEY_BYTES];
};

struct text {
    u8 *data;
    size_t size, capacity;
};

struct client {
    u32 id; /* from 1 */
    bool native, hostile, auditor;
    struct prng prng;
    struct fiber_queue queue;

    /* the connection */
    struct io_conn *conn;
    u32 connection; /* its number in the run */
    bool cut;       /* the server that it led to is gone: nothing that it brings counts */
    bool broken;    /* an answer made no sense, or no memory, or enough of it: close */
    u8 resp;
    u16 keyspace;
    u32 depth;
    u64 received_bytes;
    bool paused;

    struct list pending; /* struct request, in order of sending */
    u32 pending_count;
    struct list again; /* native writes to be sent again */
    u64 id_last;
    u64 run_id; /* of the server that HELLO told of */
    bool greeted;
    bool leaving; /* the server wants another connection */

    u64 numbers; /* of its operations */
    struct scan scan;
    struct text out;

    /* compare and swap: see workload.c */
    enum swap_stage { SWAP_NOT, SWAP_WATCHES, SWAP_WATCHED, SWAP_READS, SWAP_HAS_READ } swap;
    struct key *swap_key;
    u32 swap_value;
    u64 swap_version;
    u64 watched;  /* position of WATCH; 0: none */
    u64 watching; /* position of its answer */
};

void client_main(void *arg); /* of fibers */
void client_hostile_main(void *arg);
/* From outside of the simulated machines: the server's process has ended. */
void clients_cut(void);
void clients_make(void);
void clients_free(void);
status clients_shard_main(void *arg); /* of the clients' machines */

extern const struct io_conn_events client_events;
/* Sends client->out; false: the connection is done for. */
MUST_CHECK bool client_flush_out(struct client *client);
void client_sent(struct client *client, struct request *request);
void text_add(struct text *text, const void *data, size_t size);

/* workload.c: what to do next; NULL: nothing fits now. */
struct request *workload_next(struct client *client);
struct request *request_make(enum request_kind kind);
void request_drop(struct request *request);

/* client_resp.c, client_native.c: bytes of a request into client->out; what has come back. */
void resp_encode(struct client *client, struct request *request);
size_t resp_received(struct client *client, struct bytes data);
void native_encode(struct client *client, struct request *request);
size_t native_received(struct client *client, struct bytes data);

/* Whether the mistake that the run was asked for is made now, once in so many times. */
bool flaw_strikes(struct client *client, enum run_flaw flaw, u64 one_in);

/* ---- check.c ---- */

struct model_op *check_op(struct client *client, u32 object, u32 steps);
extern const char *const request_names[];
void check_log(const struct client *client, const struct request *request, const char *what);
void check_begin(struct request *request);
void check_end(struct request *request); /* answered: the steps' results are filled in */
void check_refused(struct request *request);
void check_unknown(struct request *request);
/* Its steps were done each alone, and nobody knows with which answers. */
void check_apart(struct client *client, struct request *request);
/* Operations that may be under way on an object besides: is there room for one more? */
bool check_has_room(const struct object *object, bool changes);
/* The auditor has asked for a key; what is damaged beyond the promise is refused. */
void check_audited(const struct model_op *op, bool answered);
/* Bytes that a key was found to hold; the number, or VALUE_ABSENT and a violation. */
u32 check_value(const struct model_op *op, u32 key, struct bytes content);
/* Whether such an end of a process may take what was acknowledged. */
bool check_end_loses(bool orderly, bool power);
void check_epoch_end(bool orderly, bool power, u64 now_ns);
void check_scan_begin(struct client *client, u16 keyspace);
void check_scan_judge(const struct client *client, bool once);
void check_scan_end(struct client *client, bool once); /* and stops it */
void check_scan_stop(struct client *client);
void check_scan_found(struct client *client, struct bytes key);
/* Behind check_scan_begin. */
void check_instant_begin(struct client *client);
void check_instant_end(struct client *client);
/* Of an EXEC that expects: when it is sent, and when it tells that a key has changed, or that it
 * was done. */
void check_watch_sent(struct client *client, struct request *request);
void check_watch_aborted(struct client *client, struct request *request);
void check_watch_done(struct client *client, struct request *request);
/* Keys of a keyspace that were surely there, and that may have been, since a position. */
void check_count_bounds(u16 keyspace, u64 since, u64 *least, u64 *most);

#endif
