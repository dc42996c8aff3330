/* SPDX-License-Identifier: MIT
 *
 * replicate_stand_in.c -- the stand-in: what a home replica that is gone should have got is kept
 * here for it, as a hint. See stand_in.h, hints.h.
 *
 * What may be collected (docs/cluster-internals.md) is below all that any shard has told that it
 * may yet send. A write that is on its way to be kept here is under way at its coordinator, so it
 * is told of there; once it is kept, here. Told before it came, and there after it had come, it
 * would be in neither: so what is older than what this shard has told is refused (R4). What is told
 * lags behind the clock, so that this befalls only what has lain somewhere for long.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "cluster/replicate_internal.h"
#include "io/io.h"
#include "lsm/batch.h"

enum native_status
keep_judge(struct replicator *r, u32 from, u16 keyspace, u64 epoch, const struct peer_write *write)
{
    const struct topology *topology = r->topology;
    /* A keyspace or a member that is not known here yet: whoever asks has a newer topology. If the
     * keyspace is not sloppy here, one of us is behind. */
    if (topology == NULL || epoch < topology->stage_epoch_before || !replicate_knows(r, keyspace) ||
        !topology->keyspaces[keyspace].sloppy || write->session >= topology->next_number)
        return NATIVE_ST_WRONG_EPOCH;
    if (write->partition >= topology->partition_count || write->session == r->self ||
        topology->keyspaces[keyspace].conflict != CONFLICT_LWW)
        return NATIVE_ST_INVALID;
    /* A hint lies in one partition of the store's, wherever those of the topology end. */
    struct bytes rest = write->ops;
    struct lsm_op op;
    bool bad;
    if (!lsm_op_next(&rest, &op, &bad)) return NATIVE_ST_INVALID;
    u32 partition = token_partition(op.header.token, PARTITION_COUNT_DEFAULT);
    u64 first = MAX(r->token_first, partition_token_first(partition, PARTITION_COUNT_DEFAULT));
    u64 last = MIN(r->token_last, partition_token_last(partition, PARTITION_COUNT_DEFAULT));
    if (token_partition(op.header.token, topology->partition_count) != write->partition ||
        !ok(lsm_ops_check(write->ops, write->count, keyspace, first, last)))
        return NATIVE_ST_INVALID;
    if (!version_observe(r, write->version, "stand-in", from)) return NATIVE_ST_INVALID;
    return r->options.hints != NULL ? NATIVE_ST_OK : NATIVE_ST_NO_SPACE;
}

static status
keep_now(struct replicator *r, const struct peer_write *write, u64 *seq_out)
{
    if (write->version < r->promised) return MARKED("cluster.stand_in.late", ST_CONFLICT); /* R4 */
    struct lsm_batch batch = {
        .ops = {.data = (u8 *)(uintptr_t)write->ops.data, .size = write->ops.size},
        .count = write->count,
        .version = write->version};
    return hints_keep(r->options.hints, write->session, &batch, seq_out);
}

status
keep_try(struct replicator *r, const struct peer_write *write, u64 *seq_out)
{
    /* The largest not in somebody's callback. */
    if (write->ops.size > LIMIT_VALUE_BYTES) return ST_WOULD_WAIT;
    return keep_now(r, write, seq_out);
}

MAY_YIELD status
keep_until(struct replicator *r, const struct peer_write *write, u64 deadline_ns, u64 *seq_out)
{
    for (;;) {
        if (r->closing) return ST_CLOSED;
        if (io_now_ns() >= deadline_ns) return ST_TIMED_OUT;
        status st = keep_now(r, write, seq_out);
        if (!status_is(st, ST_WOULD_WAIT)) return st;
        fiber_sleep_ns(ROOM_NS);
    }
}
