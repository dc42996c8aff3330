/* SPDX-License-Identifier: MIT
 *
 * group0_write.c -- how what raft wants written gets into the store. Inputs fill the batch `next`;
 * the writing fiber takes it as a whole, writes it as one record of the store's log, waits until
 * that is durable, and tells raft. Meanwhile the next one fills: a group commit of one stage.
 */
#include "cluster/group0_internal.h"

#include "base/log.h"

/* Of a value of a small key, with its key and what a batch adds. */
#define SMALL_BYTES 256u

bool
group0_write_reserve(struct group0 *group0)
{
    return buf_reserve(&group0->next.ops, SMALL_BYTES);
}

bool
group0_put(struct group0 *group0, struct group0_key key, struct bytes value)
{
    return lsm_batch_put(&group0->next, KEYSPACE_SYSTEM, group0->token, BYTES(key.bytes, key.size),
                         value, 0);
}

bool
group0_delete(struct group0 *group0, struct group0_key key)
{
    return lsm_batch_delete(&group0->next, KEYSPACE_SYSTEM, group0->token,
                            BYTES(key.bytes, key.size));
}

u64
group0_write_post(struct group0 *group0)
{
    fiber_queue_wake_one(&group0->writer_queue);
    return group0->next_number;
}

status
group0_write_wait(struct group0 *group0, u64 number)
{
    while (group0->written < number && ok(group0->failed) && !group0->closing)
        (void)fiber_queue_wait(&group0->written_queue, FIBER_FOREVER);
    if (group0->written >= number) return ST_OK;
    return ok(group0->failed) ? ST_CLOSED : group0->failed;
}

/* Refusals that pass: a disk that is really full, compaction that cannot follow, no memory for a
 * memtable (which is called too large a batch when there is no other one; ours are never too
 * large). Raft's own rules see to it that a leader which cannot write for long is one no more. */
static bool
passes(status st)
{
    return status_is(st, ST_NO_SPACE) || status_is(st, ST_OVERLOADED) ||
           status_is(st, ST_NO_MEMORY) || status_is(st, ST_FULL) || status_is(st, ST_WOULD_WAIT) ||
           status_is(st, ST_TOO_LARGE);
}

/* A full disk does not keep a member from following the log (lsm.h): it would hold up every plan,
 * also the one that makes room there. */
static MAY_YIELD status
write_until_done(struct group0 *group0, struct lsm_batch *batch)
{
    u64 seq = 0;
    batch->of_reserve = true;
    for (;;) {
        status st = lsm_write(group0->options.lsm, batch, &seq);
        if (ok(st)) return lsm_wait_durable(group0->options.lsm, seq);
        if (!passes(st) || group0->closing) return st;
        fiber_sleep_ns(GROUP0_RETRY_NS);
    }
}

status
group0_write_chunks(struct group0 *group0, u64 index, struct bytes bytes, u32 *count_out)
{
    struct lsm_batch batch;
    u32 count = 0;
    status st = ST_OK;
    lsm_batch_init(&batch, group0->options.budget);
    for (size_t at = 0; at < bytes.size && ok(st); at += GROUP0_CHUNK_BYTES) {
        struct group0_key key = group0_key(GROUP0_KEY_CHUNK, index, count++);
        size_t size = MIN((size_t)GROUP0_CHUNK_BYTES, bytes.size - at);
        lsm_batch_clear(&batch);
        if (lsm_batch_put(&batch, KEYSPACE_SYSTEM, group0->token, BYTES(key.bytes, key.size),
                          BYTES(bytes.data + at, size), 0))
            st = write_until_done(group0, &batch);
        else
            st = ST_NO_MEMORY;
    }
    lsm_batch_deinit(&batch);
    if (ok(st)) *count_out = count;
    return st;
}

static void
tell_raft(struct group0 *group0, u64 sequence, u64 persist_index)
{
    /* Not an input that may be dropped; nothing of it is written but by an append, which may be
     * refused (a new leader's first entry). */
    if (sequence == 0 || !group0->running) return;
    raft_persisted(&group0->raft, sequence, persist_index, &group0->ready);
    group0_held_send(group0);
    group0_input_end(group0);
}

static MAY_YIELD void
write_next(struct group0 *group0)
{
    struct lsm_batch batch = group0->next;
    u64 number = group0->next_number++;
    u64 sequence = group0->next_sequence, persist_index = group0->next_persist_index;
    lsm_batch_init(&group0->next, group0->options.budget);
    group0->next_sequence = 0;
    status st = write_until_done(group0, &batch);
    lsm_batch_deinit(&batch);
    if (!ok(st)) {
        group0_fail(group0, st, "a write of the log");
        return;
    }
    group0->written = number;
    fiber_queue_wake_all(&group0->written_queue);
    if (group0_works(group0)) tell_raft(group0, sequence, persist_index);
}

void
group0_writer_main(void *arg)
{
    struct group0 *group0 = arg;
    while (!group0->closing && ok(group0->failed)) {
        if (group0->next.count > 0)
            write_next(group0);
        else
            (void)fiber_queue_wait(&group0->writer_queue, FIBER_FOREVER);
    }
    fiber_gate_leave(&group0->gate);
}
