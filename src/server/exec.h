/* SPDX-License-Identifier: MIT
 *
 * exec.h -- one execution of one command (or transaction) on the shard that owns its keys.
 *
 * A handler reads its arguments, calls exec_get, exec_put and exec_delete, and writes its reply;
 * it never sees the store. The same handler runs in two ways:
 *
 *   exec_try   in the receive path. Nothing yields. When anything would have to wait, reply and
 *              writes are thrown away and the caller runs the command again by
 *   exec_wait  on a fiber: the keys of a writing command are locked, reads may go to the disk,
 *              the write may wait for room.
 *
 * A GET that only has to wait for a block of a table is finished by exec_given instead, in the
 * callback that has read it (request.c).
 *
 * So a handler may run twice and must have no effect but its reply and its writes. Writes are kept
 * aside and become one batch at the end: all of a command, or of a transaction, or nothing. Reads
 * see the command's own writes.
 *
 * exec->seq: what the reply tells is safe once this number is durable.
 */
#ifndef DISTKV_SERVER_EXEC_H
#define DISTKV_SERVER_EXEC_H

#include "proto/resp.h"
#include "cluster/replicate.h"
#include "server/shard.h"

struct command;
struct session;

struct exec_op {
    struct bytes key;
    struct bytes value;
    u64 token;
    u64 expire_ms;
    u16 keyspace;
    bool deletes;
};

struct exec {
    /* the caller's */
    struct shard *shard;
    struct budget *budget;
    struct work *work;       /* of the worker that runs it; NULL where nobody asks */
    bool *memory_turn;       /* whether it has the shard's, or NULL: exec_memory_had */
    struct session *session; /* commands of the connection only; NULL when keys are elsewhere */
    const struct command *command;
    const struct bytes *args;
    u32 arg_count;
    u16 keyspace;
    struct resp_writer *reply;
    void *extra;      /* a transaction, a decoded frame */
    u64 connected_ns; /* native: since when the connection that asks is there */
    bool moved;       /* native: an earlier attempt may have been sent to another member */
    u64 deadline_ns;  /* in a cluster: how long it may wait for replicas */
    u64 begin_ns;     /* and until when its writes may be stamped */
    u8 level;         /* enum replicate_level */
    bool blind;       /* DEL reads nothing */

    /* state */
    bool waits;          /* on a fiber: may yield */
    bool stopped;        /* the handler must return: would wait, or failure is set */
    status failure;      /* of the store */
    bool wrote;          /* a batch is in the store, or may be, whatever becomes of the reply */
    u32 steps;           /* reads and writes of this run: long ones make room for others */
    u64 seq;             /* see above */
    u64 now_ms;          /* wall clock of this run */
    bool has_read;       /* in a cluster: what it writes is made of what it has read */
    u64 read_until_ms;   /* when the first of the values that were read expires; UINT64_MAX: none */
    struct buf ops;      /* struct exec_op[op_count] */
    struct buf op_index; /* u32[], a hash table over ops, once there are many */
    u32 op_count;
    struct list scratch; /* memory of this run */
    /* Called once the writes are visible, before their locks are given back; for replies that need
     * to know what was written. May be set by the handler. */
    void (*committed)(struct exec *x);
    void (*undecided)(struct exec *x); /* likewise, when nobody knows whether they are done */
    u64 version;                       /* in a cluster: of what was written */
    struct lsm_value value;
    bool value_held;
    struct replicate_value replicated; /* in a cluster */
    bool replicated_held;
    /* In a keyspace that keeps siblings: what was read last, and what the next write of context_key
     * has seen of it. */
    struct dvvset siblings;
    bool siblings_held;
    enum exec_context { EXEC_CONTEXT_NONE, EXEC_CONTEXT_READ, EXEC_CONTEXT_GIVEN } context_from;
    u16 context_keyspace;
    struct bytes context_key;
    struct buf context;       /* encoded; empty: it has seen nothing */
    const char *refusal;      /* instead of the failure's own words */
    struct exec_ahead *ahead; /* NULL: reads as it is asked */
    const status *given;      /* what the first read has brought, in value; NULL: nothing has */
    u64 hits, misses;
};

enum exec_found { EXEC_FOUND, EXEC_ABSENT, EXEC_STOP };

struct exec_value {
    struct bytes value; /* until the next exec_get of this run */
    u64 expire_ms;
    u64 version; /* 0 for one written in this run */
    u64 seq;
    u64 key_seq; /* see lsm_value */
};

/* budget: for what the run holds; the reply has its own. */
void exec_init(struct exec *x, struct shard *shard, struct budget *budget,
               struct resp_writer *reply);
void exec_deinit(struct exec *x);

/* false: it would have to wait; reply and writes are as they were before. */
MUST_CHECK bool exec_try(struct exec *x, void (*handler)(struct exec *x));
/* A plain read whose key was read before (lsm_read_start): st and value, which is taken over.
 * false: it has to wait once more; nothing is written to the reply. */
MUST_CHECK bool exec_given(struct exec *x, void (*handler)(struct exec *x), status st,
                           struct lsm_value *value);
MAY_YIELD void exec_wait(struct exec *x, void (*handler)(struct exec *x));

/* ---- for handlers ---- */

/* EXEC_STOP: return at once. Counts hits and misses when count is set. On EXEC_ABSENT seq,
 * key_seq and version are those of the tombstone, or 0. */
MAY_YIELD enum exec_found exec_get_in(struct exec *x, u16 keyspace, struct bytes key, bool count,
                                      struct exec_value *out);
static inline enum exec_found
exec_get(struct exec *x, struct bytes key, struct exec_value *out)
{
    return exec_get_in(x, x->keyspace, key, true, out);
}
/* The same for a look before a write: not counted. */
static inline enum exec_found
exec_look(struct exec *x, struct bytes key, struct exec_value *out)
{
    return exec_get_in(x, x->keyspace, key, false, out);
}

/* key and value must stay until the end of the run (arguments do; else exec_copy). expire_ms in
 * the past writes a delete. false: return at once. */
MAY_YIELD MUST_CHECK bool exec_put_in(struct exec *x, u16 keyspace, struct bytes key,
                                      struct bytes value, u64 expire_ms);
MAY_YIELD MUST_CHECK bool exec_delete_in(struct exec *x, u16 keyspace, struct bytes key);
static inline bool
exec_put(struct exec *x, struct bytes key, struct bytes value, u64 expire_ms)
{
    return exec_put_in(x, x->keyspace, key, value, expire_ms);
}
static inline bool
exec_delete(struct exec *x, struct bytes key)
{
    return exec_delete_in(x, x->keyspace, key);
}
/* All siblings, valid as exec_get's value is. A keyspace that keeps none: refused. */
MAY_YIELD MUST_CHECK bool exec_get_siblings(struct exec *x, u16 keyspace, struct bytes key,
                                            const struct dvvset **out);
/* Replaces what the (encoded) context has seen; an empty one has seen nothing. NULL: deletes. */
MAY_YIELD MUST_CHECK bool exec_put_siblings(struct exec *x, u16 keyspace, struct bytes key,
                                            struct bytes context, const struct bytes *value);
/* A step of a run that may have many: lets others run when its turn is over. False: return at once
 * (where it cannot wait the run begins again on a fiber). */
MAY_YIELD MUST_CHECK bool exec_turn(struct exec *x);
/* Memory until the end of the run; NULL: return at once. */
MUST_CHECK u8 *exec_alloc(struct exec *x, size_t size);
/* It has all the memory that it needs: if it had the turn for that, others have it now. */
void exec_memory_had(struct exec *x);
/* false: return at once. */
MUST_CHECK bool exec_copy(struct exec *x, struct bytes source, struct bytes *out);
/* Stops with a failure of the store's kind. */
void exec_fail(struct exec *x, status why);
/* The same, in words of its own. */
void exec_refuse(struct exec *x, status why, const char *words);
/* Whether the reply has outgrown what one connection may hold; fails with ST_TOO_LARGE then. */
bool exec_reply_too_large(struct exec *x);

/* ---- exec_ahead.c, for exec.c ---- */

/* When the command goes through many keys; then exec_ahead_take in their order. */
void exec_ahead_start(struct exec *x);
/* false: it is to be read. */
MAY_YIELD MUST_CHECK bool exec_ahead_take(struct exec *x, u16 keyspace, struct bytes key,
                                          struct lsm_value *out, status *st_out);
MAY_YIELD void exec_ahead_stop(struct exec *x);

/* The reply for a status of the store, in the protocol of the command. */
void exec_failure_reply(const struct command *command, const struct bytes *args,
                        struct resp_writer *reply, status why);
/* The same for RESP. */
void exec_error_reply(struct resp_writer *reply, status why);
/* For locks and for the order within a connection. */
static inline u64
exec_key_hash(u16 keyspace, struct bytes key)
{
    return hash_key(key, keyspace + 1u);
}

#endif
