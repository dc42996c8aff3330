/* SPDX-License-Identifier: MIT
 *
 * request.h -- a command that could not be answered at once: it waits on a fiber, runs on another
 * shard, or is finished and waits for its turn behind one of those.
 *
 *   home (the connection's shard)                 owner (of the key)
 *   request_new: arguments are copied
 *   request_start  -- mail ------------------->   exec_try, else a worker fiber: exec_wait
 *                                                 (or, for a GET, one block: exec_given)
 *                                                 the reply waits for the log (durable_wait)
 *   request_done   <------------------- mail --   small replies inside, large ones lent
 *   reply to the connection, in order
 *                  -- mail, large replies ---->   frees the reply
 *   request_free   <------------------- mail --
 *
 * What one connection's input brings for one owner goes there as a train, in one mail: the first
 * request with the others as its followers. At the owner each of them is a request as any other.
 *
 * With home == owner there are no mails, and the reply does not wait for the log here: the
 * connection's output is held instead (session.h).
 *
 * The memory is the home's; the owner may use it between the mails. Places are bounded by
 * SHARD_REQUESTS_MAX and the budget of the connections: whoever finds none reads no further from
 * its connection until one is free.
 *
 * Light and heavy. A request is estimated before it runs: how many keys it may have to read
 * (request_keys). One of more than REQUEST_KEYS_LIGHT is *large*: it, its run and its reply draw on
 * a budget of their own. A large one, and one of a connection that has that many keys under way
 * already, is *heavy*: it queues with its like (work.h), and takes no place that light ones need.
 *
 * Early. Of a pipeline many requests run at once, and their replies leave in order. One whose reply
 * finds the memory scarce while others before it are to be answered first would hold what those
 * need, so it is *put off*: it leaves the reply and the worker, keeps its place in the order of its
 * key, and runs again when its reply is the next one. So a pipeline of long values is served in
 * turn, however many ask for it; what is first holds its memory until the client has taken it, or
 * is cut off (session.c).
 *
 * Parts. A command over several shards is split by owner, and the replies of the parts are put
 * together (request_parts.c). MGET of many keys goes stretch by stretch, and its reply as it grows.
 */
#ifndef DISTKV_SERVER_REQUEST_H
#define DISTKV_SERVER_REQUEST_H

#include "proto/resp.h"
#include "server/command_table.h"
#include "server/exec.h"
#include "server/shard.h"

#define REQUEST_INLINE_REPLY 256u
/* A longer reply draws on what is for large requests: how long it stays is for its client to say,
 * and many that read slowly are not to take from the small requests of others. */
#define REQUEST_REPLY_SHORT_BYTES (16u << 10)
/* Keys that a connection may have under way as light work. */
#define REQUEST_KEYS_LIGHT 4u
/* MGET of more goes in stretches, see request_parts.c; other commands that are split, of more than
 * the second. */
#define REQUEST_KEYS_AT_ONCE        128u
#define REQUEST_KEYS_AT_ONCE_OTHERS 1024u
/* Since it came; and at least so long since it first found no memory, which may be long after that
 * when its client was slow to take the replies before it. */
#define MEMORY_PATIENCE_NS     (20 * NS_PER_S)
#define MEMORY_PATIENCE_MIN_NS NS_PER_S
/* The estimate for what walks over the keyspace. */
#define REQUEST_KEYS_MANY 1000u

struct request {
    struct io_mail mail;
    struct work work;
    struct durable_wait durable;
    struct list link; /* session->pending, in order of arrival; to itself for parts */
    /* home */
    struct session *session;
    struct request *parent; /* of a part */
    struct request **parts; /* part_count, NULL where no key is owned */
    u32 part_count, parts_left;
    u32 keys; /* estimate */
    bool large;
    bool long_reply;            /* turned out to have one: draws on what is for large ones */
    bool in_stretches;          /* request_parts.c */
    bool part;                  /* made by request_new_part */
    bool early;                 /* others of its connection are to be answered first; see above */
    bool put_off;               /* it waits at home for request_resume */
    struct fiber_queue *waiter; /* a fiber at home waits for it (request_call) */
    const _Atomic u64 *wanted_until_ns; /* its session's, or that of the whole's; or NULL */
    u64 start_ns;
    u64 key_hash; /* of its only key, or 0 */
    size_t memory;
    bool done;
    bool writes;
    bool silent;  /* CLIENT REPLY OFF */
    bool at_home; /* EXEC with commands of the connection: see multi.c */
    bool unrun;   /* there was no fiber for it */
    /* the owner's, while the request waits there: see request.c */
    struct list order_link;    /* shard->order, in order of arrival */
    struct list followers;     /* of the same connection and key: run after this one */
    struct list follower_link; /* in the followers of another, or shard->order_ready */
    /* what to run */
    const struct command *command;
    struct bytes *args;
    void *extra;
    u32 arg_count;
    u64 connected_ns; /* native: the connection's */
    u32 home, owner;
    u16 keyspace;
    u8 resp;
    u8 level;         /* in a cluster: enum replicate_level */
    bool blind;       /* deletes without a look: flush_cluster.c */
    bool coordinates; /* counted in cluster_shard.coordinating */
    /* in a cluster */
    u64 deadline_ns;           /* on io_now_ns; 0: none yet */
    u64 first_ns;              /* a native write that comes again: since when it may be done */
    bool moved;                /* and whether by another member than runs it now */
    u64 begin_ns;              /* a write is not stamped later: NATIVE_BEGIN_NS; 0: the deadline */
    struct route *route;       /* where it runs: route.h */
    struct peer_request *peer; /* a peer asks; there is no session */
    /* the outcome */
    bool unknown;     /* the log failed before the reply was safe */
    status failure;   /* of the store, when the reply is an error because of it */
    size_t delivered; /* of the reply: session.c */
    u64 seq;          /* the reply may go when it is durable; 0 when it is */
    struct buf reply; /* the owner's memory */
    u32 inline_size;
    u8 inline_reply[REQUEST_INLINE_REPLY];
};

/* How many keys a call may have to read: by its arguments, or what the table says of it. */
u32 request_keys(const struct command *command, u32 arg_count);
/* under_way: of the same connection. NULL: no place or no memory. Counted until request_free. */
MUST_CHECK struct request *request_new(struct shard *shard, const struct command *command,
                                       const struct bytes *args, u32 arg_count, u32 keys,
                                       u32 under_way);
/* For work that somebody waits for who has his place already: a part of whole, which owns the
 * arguments' bytes and stays until it is done. NULL: no memory. */
MUST_CHECK struct request *request_new_part(struct request *whole, u32 owner, u32 arg_count,
                                            u32 keys);
/* A request that found no place may be given one when others end: those that are there must leave
 * it room. Or when those that are being sent are whole, or are cut off: that nobody tells. */
bool request_may_fit_later(const struct shard *shard, size_t bytes, bool large);
/* Starts it on request->owner (PLACE_FIBER: here). request_done is called later, never from
 * inside. */
void request_start(struct request *request);
/* Between these two, what is started for other shards is gathered, by owner, and sent as one mail
 * each: a pipeline crosses at once, its reads are done side by side, and its replies come back at
 * once. */
void request_trains_form(struct shard *shard);
void request_trains_send(struct shard *shard);
/* Makes parts, one for each owner, and starts them. false: no memory; nothing was started. */
MUST_CHECK bool request_start_parts(struct shard *shard, struct request *request);
/* Frees those that are there, and leaves NULL in their places. */
void request_parts_free(struct request **parts, u32 count);
/* All parts have come back. false: it goes on otherwise. */
MUST_CHECK bool request_parts_done(struct request *request);
/* At home: one that was put off runs again; it is the next to be answered. */
void request_resume(struct request *request);
/* Whether replies that are not yet due should not be kept in this shard's memory. */
bool request_memory_scarce(const struct shard *shard);
/* As request_start, for what can be split: asks for the keys, and sends the reply, bit by bit. */
void request_start_stretches(struct request *request);
/* That, on a worker at home. */
MAY_YIELD void request_run_stretches(struct exec *x, struct request *request);
/* At home: the outcome is there, be it of a run or of the caller. */
void request_finish(struct request *request);
/* From a fiber at home: starts it and waits. The caller frees it. */
MAY_YIELD void request_call(struct request *request);
/* The second half of that, after request->waiter was set and the request started. */
MAY_YIELD void request_wait(struct request *request);
void request_free(struct request *request);
struct bytes request_reply(const struct request *request);
/* The budget for its run and its reply on this shard. */
static inline struct budget *
request_budget(const struct request *request, struct shard *shard)
{
    return request->large || request->long_reply ? &shard->large_budget : &shard->budget;
}
/* Refuses it for want of memory, where there is not even some for the words. */
void request_refuse_without_memory(struct request *request);
/* Whether a reply of so many bytes may stand behind others that are to be sent first: a long one
 * only if the longest of those would find memory beside it. Else two connections, each with early
 * replies on a shard where the other's first one is due, would wait for one another. */
bool request_reply_may_wait(const struct shard *shard, size_t bytes);
/* A long reply is put where it belongs. false: there is no memory; it stays where it is. */
MUST_CHECK bool request_reply_settle(struct request *request, struct shard *shard);
/* Copies a reply into a request of this shard that never runs; false: no memory. */
MUST_CHECK bool request_reply_set(struct request *request, struct bytes reply);

#endif
