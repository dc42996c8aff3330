/* SPDX-License-Identifier: MIT
 *
 * cmd_flush.c -- FLUSHDB and FLUSHALL: of a node by itself a deleted range on each shard; in a
 * cluster see flush_cluster.c.
 */
#include "base/fault.h"
#include "server/cmd.h"
#include "server/flush_cluster.h"

struct flush_call {
    u16 first, last; /* keyspaces */
    bool wrote;      /* some of it is done, whatever becomes of the rest */
    status st;
};

/* A command on a fiber that has read and not yet written would write what was flushed, and a
 * transaction over several keyspaces would see some of them flushed: so no key may be locked, and
 * none gets locked before all keyspaces are done. Locks are held for reads of the disk and waits
 * for room; when they take longer than this, the flush is refused and has done nothing here. */
#define FLUSH_LOCKS_NS_MAX (5 * NS_PER_S)

MAY_YIELD static status
flush_keyspace(struct shard *shard, u16 keyspace, u64 *seq)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, &shard->budget);
    status st = ST_NO_MEMORY;
    if (lsm_batch_delete_range(&batch, keyspace, shard->token_first, shard->token_last))
        st = lsm_write_try(shard->lsm, &batch, seq);
    if (status_is(st, ST_WOULD_WAIT)) st = lsm_write(shard->lsm, &batch, seq);
    lsm_batch_deinit(&batch);
    return st;
}

MAY_YIELD static void
flush_here(void *arg)
{
    struct flush_call *call = arg;
    struct shard *shard = shard_self();
    if (!ok(call->st)) return; /* refused by a shard before */
    u64 seq = 0;
    call->st = keylock_acquire_all(&shard->locks, io_now_ns() + FLUSH_LOCKS_NS_MAX);
    shard->stats->lock_waits = shard->locks.waits;
    if (!ok(call->st)) {
        MARK("server.flush.refused");
        return;
    }
    for (u16 keyspace = call->first; keyspace <= call->last && ok(call->st); keyspace++) {
        call->st = flush_keyspace(shard, keyspace, &seq);
        call->wrote |= ok(call->st);
    }
    keylock_release_all(&shard->locks);
    if (ok(call->st)) call->st = lsm_wait_durable(shard->lsm, seq);
}

MAY_YIELD static void
flush(struct exec *x, u16 first, u16 last)
{
    if (x->arg_count > 2 ||
        (x->arg_count == 2 && !cmd_arg_is(x, 1, "async") && !cmd_arg_is(x, 1, "sync"))) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    if (x->shard->server->cluster != NULL) {
        if (x->shard->cluster == NULL)
            exec_fail(x, ST_UNAVAILABLE); /* not yet, or not any more */
        else
            flush_cluster(x, first, last);
        return;
    }
    struct flush_call call = {.first = first, .last = last, .st = ST_OK};
    status st = shard_for_all(x->shard, flush_here, &call);
    if (ok(call.st)) call.st = st;
    x->wrote = call.wrote; /* without room for the reply it is not refused */
    if (ok(call.st))
        resp_ok(x->reply);
    else
        exec_fail(x, call.st);
}

MAY_YIELD void
cmd_flushdb(struct exec *x)
{
    flush(x, x->keyspace, x->keyspace);
}

MAY_YIELD void
cmd_flushall(struct exec *x)
{
    flush(x, 0, LIMIT_KEYSPACES_CLIENT - 1);
}
