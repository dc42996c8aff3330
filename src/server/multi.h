/* SPDX-License-Identifier: MIT
 *
 * multi.h -- a transaction, for those who carry it elsewhere: multi.c runs it, multi_cluster.c
 * takes it to another node, route.c sends it.
 *
 * It belongs to a session; what came from another node to a request, in one piece.
 */
#ifndef DISTKV_SERVER_MULTI_H
#define DISTKV_SERVER_MULTI_H

#include "proto/peer_forward.h"
#include "server/cmd.h"
#include "server/session.h"

/* What one connection may queue. */
#define MULTI_BYTES_MAX    (LIMIT_BATCH_BYTES + (4u << 20))
#define MULTI_COMMANDS_MAX LIMIT_BATCH_OPS
#define MULTI_WATCHES_MAX  4096u
#define MULTI_WATCH_CHAINS 64u /* where a key is looked for: of so many, that of its hash */
/* More than that. */
void multi_refuse_watches(struct resp_writer *w);
void multi_refuse_nested_watch(struct resp_writer *w);

struct queued {
    struct list link;
    const struct command *command;
    size_t memory;
    u32 arg_count;
    u16 keyspace;
    bool at_home;
    size_t reply_start, reply_size; /* in the owner's reply */
    const struct bytes *args;
    struct bytes spans[]; /* of a session's: these, and the bytes behind them */
};

struct watch {
    struct list link;
    struct watch *chain_next; /* a session's: of the same chain */
    u64 hash;
    size_t memory;
    u64 mark; /* sequence number; in a cluster the version */
    u64 since_ns;
    u16 keyspace;
    bool present;
    bool filled;
    bool old; /* in a cluster: see multi_cluster.c */
    struct bytes key;
};

struct transaction {
    struct list queue; /* struct queued */
    struct list watches;
    struct watch *watch_chains[MULTI_WATCH_CHAINS];
    u32 count, home_count, watch_count;
    u32 keys; /* of all that is queued */
    size_t memory;
    u32 slot;
    bool slot_known;
    bool queueing; /* between MULTI and EXEC */
    bool spoiled;
    bool assembled; /* the owner leaves the array's head to home */
    bool aborted;   /* a watched key has changed */
    u16 keyspace;
};

static inline u64
transaction_token(const struct transaction *tx)
{
    return (u64)tx->slot << (64 - SLOT_BITS);
}
bool transaction_writes(const struct transaction *tx);
/* Takes the slot of the keys; false: another one than before. */
MUST_CHECK bool transaction_slot_fits(struct transaction *tx, const struct command *command,
                                      const struct bytes *args, u32 arg_count);

/* ---- multi_cluster.c ---- */

/* Whether a command may be queued, or keys of the keyspace be watched; else the reply says why not.
 * By itself a node takes all. */
MUST_CHECK bool multi_may_queue(const struct session *s, const struct command *command,
                                const struct bytes *args, u32 arg_count, struct resp_writer *w);
/* What a key that is watched is now: fills it in, or compares. */
MAY_YIELD MUST_CHECK bool multi_watch_here(struct exec *x, struct watch *watch);
MAY_YIELD MUST_CHECK bool multi_unchanged(struct exec *x, const struct watch *watch);
/* Whether the answer so far could come back from another node; fails with ST_TOO_LARGE if not. */
MUST_CHECK bool multi_reply_fits(struct exec *x);
/* EXEC's commands with keys, or WATCH, as another node is asked for them. forward: what is the
 * same for every command. */
MUST_CHECK bool multi_encode(struct buf *out, struct peer_forward *forward,
                             const struct transaction *tx, bool watches);
/* The number of keys of one that came; false: it is none that can run here. */
MUST_CHECK bool multi_check(const struct peer_forward *forward, const struct bytes *args,
                            u64 *token_out, u32 *keys_out);
/* That was checked. NULL: no memory. args must stay. */
MUST_CHECK struct transaction *multi_decode(struct budget *budget,
                                            const struct peer_forward *forward,
                                            const struct bytes *args, u16 keyspace);
void multi_decoded_free(struct budget *budget, struct transaction *tx);
/* What WATCH has found: behind its reply, and from there into the session's. */
MUST_CHECK bool multi_watched_encode(struct buf *out, const struct transaction *tx);
MUST_CHECK status multi_watched_take(struct transaction *tx, struct bytes reply);

#endif
