/* SPDX-License-Identifier: MIT
 *
 * request.h -- a command that could not be answered at once: it waits on a fiber, runs on another
 * shard, or is finished and waits for its turn behind one of those.
 *
 *   home (the connection's shard)                 owner (of the key)
 *   request_new: arguments are copied
 *   request_start  -- mail ------------------->   exec_try, else a worker fiber: exec_wait
 *                                                 the reply waits for the log (durable_wait)
 *   request_done   <------------------- mail --   small replies inside, large ones lent
 *   reply to the connection, in order
 *                  -- mail, large replies ---->   frees the reply
 *   request_free   <------------------- mail --
 *
 * With home == owner there are no mails, and the reply does not wait for the log here: the
 * connection's output is held instead (session.h).
 *
 * The memory is the home's; the owner may use it between the mails. Places are bounded by
 * SHARD_REQUESTS_MAX and the budget of the connections: whoever finds none reads no further from
 * its connection until one is free.
 */
#ifndef DISTKV_SERVER_REQUEST_H
#define DISTKV_SERVER_REQUEST_H

#include "proto/resp.h"
#include "server/command_table.h"
#include "server/exec.h"
#include "server/shard.h"

#define REQUEST_INLINE_REPLY 256u

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
    struct fiber_queue *waiter; /* a fiber at home waits for it (request_call) */
    u64 start_ns;
    u64 key_hash; /* of its only key, or 0 */
    size_t memory;
    bool done;
    bool writes;
    bool silent;  /* CLIENT REPLY OFF */
    bool at_home; /* EXEC with commands of the connection: see multi.c */
    /* the owner's, while the request waits there: see request.c */
    struct list order_link;    /* shard->order, in order of arrival */
    struct list followers;     /* of the same connection and key: run after this one */
    struct list follower_link; /* in the followers of another, or shard->order_ready */
    /* what to run */
    const struct command *command;
    struct bytes *args;
    void *extra;
    u32 arg_count;
    u32 home, owner;
    u16 keyspace;
    u8 resp;
    /* the outcome */
    bool unknown;     /* the log failed before the reply was safe */
    u64 seq;          /* the reply may go when it is durable; 0 when it is */
    struct buf reply; /* the owner's memory */
    u32 inline_size;
    u8 inline_reply[REQUEST_INLINE_REPLY];
};

/* NULL: no place or no memory. Counted until request_free. */
MUST_CHECK struct request *request_new(struct shard *shard, const struct command *command,
                                       const struct bytes *args, u32 arg_count);
/* Starts it on request->owner (PLACE_FIBER: here). request_done is called later, never from
 * inside. */
void request_start(struct request *request);
/* Makes parts, one for each owner, and starts them. false: no memory; nothing was started. */
MUST_CHECK bool request_start_parts(struct shard *shard, struct request *request);
/* From a fiber at home: starts it and waits. The caller frees it. */
MAY_YIELD void request_call(struct request *request);
void request_free(struct request *request);
struct bytes request_reply(const struct request *request);
/* Copies a reply into a request of this shard that never runs; false: no memory. */
MUST_CHECK bool request_reply_set(struct request *request, struct bytes reply);

#endif
