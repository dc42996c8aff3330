/* SPDX-License-Identifier: MIT
 *
 * replicate.c -- opening, closing, topology, waiting for the own log. See replicate.h,
 * replicate_internal.h.
 *
 * Waiting for the log. A store tells one listener of what has become durable, and that one is the
 * server. So one fiber here waits for the first in a queue of waiting writes, and then answers all
 * that the log has reached.
 */
#include "base/hash.h"
#include "cluster/replicate_internal.h"
#include "io/io.h"

/* ---- waiting for the log ---- */

/* Answers all that wait up to what is durable; failed: the rest, too. */
static void
durable_answer(struct replicator *r, bool failed)
{
    u64 durable = lsm_durable_seq(r->options.lsm);
    while (!list_empty(&r->durable)) {
        struct durable_wait *first = list_entry(list_first(&r->durable), struct durable_wait, link);
        bool is_durable = first->seq <= durable;
        if (!is_durable && !failed) break;
        list_del(&first->link);
        first->done(first, is_durable);
    }
}

static MAY_YIELD void
watcher_main(void *arg)
{
    struct replicator *r = arg;
    while (!r->closing || !list_empty(&r->durable) || r->serving > 0) {
        if (list_empty(&r->durable)) {
            (void)fiber_queue_wait(&r->durable_wake, FIBER_FOREVER);
            continue;
        }
        u64 seq = list_entry(list_first(&r->durable), struct durable_wait, link)->seq;
        status st = lsm_wait_durable(r->options.lsm, seq);
        durable_answer(r, !ok(st));
    }
    r->watcher_ended = true;
    fiber_queue_wake_all(&r->idle);
}

void
durable_await(struct replicator *r, struct durable_wait *wait, u64 seq)
{
    wait->seq = seq;
    list_init(&wait->link);
    if (seq <= lsm_durable_seq(r->options.lsm)) {
        wait->done(wait, true);
        return;
    }
    list_push_back(&r->durable, &wait->link);
    fiber_queue_wake_all(&r->durable_wake);
}

/* ---- opening and closing ---- */

status
replicator_open(const struct replicator_options *options, struct replicator **out)
{
    struct replicator *r = mem_alloc_zero(options->budget, sizeof(*r));
    if (r == NULL) return ST_NO_MEMORY;
    r->options = *options;
    lsm_tokens(options->lsm, &r->token_first, &r->token_last);
    fiber_gate_init(&r->gate);
    list_init(&r->coordinated);
    list_init(&r->attempts);
    list_init(&r->durable);
    fiber_queue_init(&r->changed);
    fiber_queue_init(&r->durable_wake);
    fiber_queue_init(&r->idle);
    for (u32 i = 0; i < HOLD_BUCKETS; i++)
        list_init(&r->holds[i]);
    fiber_queue_init(&r->hold_freed);
    fiber_queue_init(&r->lease_done);
    r->hedge_ns = HEDGE_NS_START;
    retry_init(&r->retries);
    io_entropy(&r->session_secret, sizeof(r->session_secret));
    status st = fiber_spawn(FIBER_FOREGROUND, "replica-log", watcher_main, r);
    if (!ok(st)) {
        mem_free(options->budget, r, sizeof(*r));
        return st;
    }
    clock_open(r);
    serve_open(r);
    struct hints_own own = {.observe = clock_observe_hint, .merge = siblings_merge_hint, .arg = r};
    if (options->hints != NULL) hints_own_set(options->hints, &own);
    *out = r;
    return ST_OK;
}

MAY_YIELD void
replicator_close(struct replicator *r)
{
    if (r == NULL) return;
    r->closing = true;
    serve_close(r);
    if (r->options.hints != NULL) hints_own_set(r->options.hints, NULL);
    fiber_queue_wake_all(&r->changed);
    list_for_each (pos, &r->attempts)
        fiber_queue_wake_all(&list_entry(pos, struct write_attempt, link)->wake);
    fiber_gate_close(&r->gate);
    /* Nobody waits for what is still under way. */
    list_for_each_safe (pos, &r->attempts) {
        struct write_attempt *attempt = list_entry(pos, struct write_attempt, link);
        attempt->references++; /* while its calls are looked at */
        attempt_cancel(attempt);
        attempt_unref(attempt);
    }
    fiber_queue_wake_all(&r->clock_wake);
    fiber_queue_wake_all(&r->durable_wake);
    while (r->serving > 0 || !list_empty(&r->attempts) || !r->watcher_ended || r->clock_runs) {
        fiber_queue_wake_all(&r->durable_wake);
        (void)fiber_queue_wait(&r->idle, io_now_ns() + AGAIN_NS);
    }
    if (r->topology != NULL) topology_release(r->topology);
    siblings_close(r);
    mem_free(r->options.budget, r, sizeof(*r));
}

/* ---- topology ---- */

void
replicator_topology_set(struct replicator *r, struct topology *topology, u32 self)
{
    topology_hold(topology);
    if (r->topology != NULL) topology_release(r->topology);
    r->topology = topology;
    r->self = self;
    const struct topology_member *member = topology_member(topology, self);
    if (member != NULL) r->hlc.stamp = member->stamp;
    if (r->options.hints != NULL) hints_topology_set(r->options.hints, topology, self);
    fiber_queue_wake_all(&r->changed);
}

u64
replicator_epoch(const struct replicator *r)
{
    u64 epoch = r->topology == NULL ? 0 : r->topology->epoch;
    if (!list_empty(&r->coordinated))
        epoch = list_entry(list_first(&r->coordinated), struct coordinated, link)->epoch;
    /* Calls go on after the answer, and a hint is a write that is late: arriving when a plan has
     * gone on they would complete in one row what the other one lacks. */
    list_for_each (pos, &r->attempts)
        epoch = MIN(epoch, list_entry(pos, struct write_attempt, link)->epoch);
    if (r->options.hints != NULL) epoch = MIN(epoch, hints_epoch(r->options.hints));
    return epoch;
}

/* What is told of this shard. Whom others ask to stand in gets what was stamped a moment ago: that
 * must not be below it (R4). */
static u64
promise(struct replicator *r, u64 oldest)
{
    u64 wall_ms = io_wall_ms();
    u64 late = hlc_version_at(wall_ms - MIN(wall_ms, KEEP_LATE_MS));
    oldest = MIN(oldest, MAX(late, r->promised));
    r->promised = MAX(r->promised, oldest);
    return oldest;
}

u64
replicator_oldest_version(struct replicator *r)
{
    /* What is stamped from here on is higher. (Nothing is before REPLICATE_QUIET_MS have passed.)
     */
    u64 oldest = hlc_next(&r->hlc, io_wall_ms());
    if (r->options.hints != NULL) oldest = MIN(oldest, hints_oldest_version(r->options.hints));
    list_for_each (pos, &r->attempts)
        oldest = MIN(oldest, list_entry(pos, struct write_attempt, link)->version);
    return promise(r, oldest);
}

u64
replicator_oldest_to_come(struct replicator *r)
{
    /* Across a restart, too, whatever the wall clock says then. */
    u64 oldest = MIN(hlc_next(&r->hlc, io_wall_ms()), r->clock_marked);
    if (r->options.hints != NULL) oldest = MIN(oldest, hints_oldest_waiting(r->options.hints));
    list_for_each (pos, &r->attempts)
        oldest = MIN(oldest, list_entry(pos, struct write_attempt, link)->version);
    return promise(r, oldest);
}

static u32
session_at(const struct replicator *r, u64 turn)
{
    return (u32)(hash_bytes(&turn, sizeof(turn), r->session_secret) >> 32) | 1;
}

u32
replicator_session(const struct replicator *r)
{
    return session_at(r, io_now_ns() / SESSION_NS);
}

bool
replicate_session_is_open(const struct replicator *r, u32 session)
{
    u64 turn = io_now_ns() / SESSION_NS;
    return session == session_at(r, turn) || (turn > 0 && session == session_at(r, turn - 1));
}

u32
replicator_repairs(const struct replicator *r, u32 partition)
{
    return r->repair_marks[partition % REPAIR_MARKS];
}

void
coordinated_begin(struct replicator *r, struct coordinated *c)
{
    /* Epochs only grow, so the list stays in order. */
    c->epoch = r->topology == NULL ? 0 : r->topology->epoch;
    list_push_back(&r->coordinated, &c->link);
}

void
coordinated_begin_at(struct replicator *r, struct coordinated *c, u64 epoch)
{
    c->epoch = MIN(epoch, r->topology == NULL ? 0 : r->topology->epoch);
    struct list *prev = r->coordinated.prev;
    while (prev != &r->coordinated && list_entry(prev, struct coordinated, link)->epoch > c->epoch)
        prev = prev->prev;
    list_insert_between(&c->link, prev, prev->next);
}

void
coordinated_end(struct coordinated *c)
{
    list_del(&c->link);
}

MAY_YIELD bool
topology_await(struct replicator *r, u64 epoch, bool wait_newer, u64 deadline_ns)
{
    u64 until = io_now_ns() + AGAIN_NS;
    for (;;) {
        u64 now = io_now_ns();
        if (r->closing || now >= deadline_ns) return false;
        if (r->topology != NULL && r->topology->epoch > epoch) return true;
        if (!wait_newer && now >= until) return true;
        (void)fiber_queue_wait(&r->changed, wait_newer ? deadline_ns : MIN(until, deadline_ns));
    }
}

bool
replicate_shard(const struct topology *topology, u32 number, u64 token, u32 *shard_out)
{
    const struct topology_member *member = topology_member(topology, number);
    if (member == NULL || member->shard_count == 0) return false;
    *shard_out = partition_shard(token_partition(token, PARTITION_COUNT_DEFAULT),
                                 member->shard_count, PARTITION_COUNT_DEFAULT);
    return true;
}

bool
replicate_knows(const struct replicator *r, u16 keyspace)
{
    return r->topology != NULL && keyspace < LIMIT_KEYSPACES_CLIENT &&
           r->topology->keyspaces[keyspace].used;
}

bool
replicate_row(const struct replicator *r, u16 keyspace, u64 token, u32 *partition_out,
              struct topology_row *out)
{
    const struct topology *topology = r->topology;
    if (!replicate_knows(r, keyspace) || topology->partition_count == 0) return false;
    u32 partition = token_partition(token, topology->partition_count);
    topology_row(topology, keyspace, partition, out);
    *partition_out = partition;
    return out->count > 0;
}

u32
replicate_need(enum replicate_level level, u32 wanted, u32 replicas, u32 places, u32 count)
{
    switch (level) {
    case REPLICATE_DEFAULT:
    case REPLICATE_HOMES:
        return topology_quorum(wanted, replicas, places, count);
    case REPLICATE_ONE:
        return 1;
    case REPLICATE_QUORUM:
        return topology_quorum(replicas / 2 + 1, replicas, places, count);
    case REPLICATE_ALL:
        return count;
    case REPLICATE_COUNT_BASE:
        break;
    }
    u32 asked = (u32)level - REPLICATE_COUNT_BASE;
    return CLAMP(asked, 1u, count);
}

/* ---- the own store ---- */

static MAY_YIELD status
whole(struct lsm *lsm, bool waits, u16 keyspace, u64 token, struct bytes key, struct lsm_value *out)
{
    return waits ? lsm_get_whole(lsm, keyspace, token, key, out)
                 : lsm_get_whole_try(lsm, keyspace, token, key, out);
}

static MAY_YIELD status
newest_above(struct lsm *lsm, bool waits, u16 keyspace, u64 token, struct bytes key, u64 floor,
             u64 *version_out, u64 *seq_out)
{
    return waits ? lsm_newest(lsm, keyspace, token, key, floor, version_out, seq_out)
                 : lsm_newest_try(lsm, keyspace, token, key, floor, version_out, seq_out);
}

static MAY_YIELD status
read_own(struct replicator *r, bool waits, u16 keyspace, u64 token, struct bytes key,
         struct own_read *out)
{
    struct lsm *lsm = r->options.lsm;
    struct own_read read = {0};
    status st = whole(lsm, waits, keyspace, token, key, &read.value);
    if (status_is(st, ST_NOT_FOUND)) {
        /* A range that deletes everything has a version, too, and get does not tell it of a key
         * that never was. Asked first and read then: what is found later may be newer, never
         * older than what is told. */
        u64 newest = 0, seq = 0;
        st = newest_above(lsm, waits, keyspace, token, key, read.value.version, &newest, &seq);
        if (status_is(st, ST_NOT_FOUND)) {
            read.version = read.value.version;
            read.seq = read.value.seq;
            *out = read;
            return ST_OK;
        }
        if (!ok(st)) return st;
        read.value = (struct lsm_value){0};
        st = whole(lsm, waits, keyspace, token, key, &read.value);
        if (status_is(st, ST_NOT_FOUND)) {
            read.version = MAX(newest, read.value.version);
            read.seq = MAX(seq, read.value.seq);
            *out = read;
            return ST_OK;
        }
    }
    if (!ok(st)) return st;
    read.found = true;
    read.version = read.value.version;
    read.seq = read.value.seq;
    read.expire_ms = read.value.expire_ms;
    *out = read;
    return ST_OK;
}

MAY_YIELD status
own_read(struct replicator *r, u16 keyspace, u64 token, struct bytes key, struct own_read *out)
{
    return read_own(r, true, keyspace, token, key, out);
}

status
own_read_try(struct replicator *r, u16 keyspace, u64 token, struct bytes key, struct own_read *out)
{
    /* no yield: nothing of it waits. */
    return read_own(r, false, keyspace, token, key, out);
}

void
replicate_stats_get(const struct replicator *r, struct replicate_stats *out)
{
    *out = r->stats;
    out->retries_refused = r->retries.refused;
}
