/* SPDX-License-Identifier: MIT
 *
 * hints_replay.c -- the fiber that counts what an earlier life left, sends hints to targets that
 * live again, lets go of those that are too old, and deletes. See hints.h, hints_internal.h.
 *
 *   pass     all runs of one target, in the order of the store, so that one scan reads on and on;
 *            it is begun anew where hints of others lie between
 *   deliver  read -> PEER_WRITE, many in flight -> acknowledged by all whom it is for
 *   delete   ended -> a batch of deletions -> durable -> no longer counted (I2)
 *
 * A pass is given up when the target dies, refuses or does not answer, and tried again after a time
 * that doubles from 100 ms to 5 s. What was sent then stays as it is. A run that is for others,
 * too, of whom one is dead, is passed over, and waits for that time; so does a hint in parts that
 * there is no memory for as one.
 *
 * Whom a hint is for is decided when it is sent, by the topology of then: the target if it is in
 * the row, else all of the row, of which none may miss it; while a plan is under way all of the
 * next row, too (route_find).
 *
 * Nobody waits for this: the fiber is of the background class, and sends no faster than
 * replay_bytes_per_s.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "cluster/hints_internal.h"
#include "cluster/hlc.h"
#include "io/io.h"
#include "lsm/batch.h"
#include "proto/peer.h"
#include "proto/peer_replica.h"

#define JOINED_KEEP_BYTES KIB(64)

/* ---- deleting ---- */

static void
sent_free(struct hint_sent *sent)
{
    struct hints *h = sent->h;
    list_del(&sent->link);
    h->outstanding--;
    buf_deinit(&sent->ops);
    mem_free(h->options.budget, sent, sizeof(*sent) + sent->call_count * sizeof(struct hint_call));
}

/* Once its deletion is durable. */
static void
sent_account(struct hint_sent *sent)
{
    struct hints *h = sent->h;
    switch (sent->fate) {
    case HINT_REROUTED:
        h->stats.rerouted++;
        h->stats.replayed++;
        h->stats.replayed_bytes += sent->bytes;
        break;
    case HINT_DELIVERED:
        h->stats.replayed++;
        h->stats.replayed_bytes += sent->bytes;
        break;
    case HINT_EXPIRED:
        h->stats.expired++;
        break;
    case HINT_STALE:
        h->stats.stale++;
        break;
    case HINT_DAMAGED:
        h->stats.damaged++;
        break;
    case HINT_ORPHANED:
        h->stats.orphaned++;
        break;
    }
    hint_run_uncount(h, sent->run, sent->bytes);
    sent_free(sent);
}

/* All its parts; false: no memory. */
static bool
deletion_put(const struct hint_sent *sent, struct lsm_batch *batch)
{
    const struct hints *h = sent->h;
    struct hint_key key = sent->key;
    for (key.part = 0; key.part < sent->key.part; key.part++) {
        u8 bytes[HINT_KEY_BYTES];
        struct bytes name =
            BYTES(bytes, hint_key_encode(hint_tag_of(h, sent->run->partition), &key, bytes));
        if (!lsm_batch_delete(batch, KEYSPACE_HINTS, hash_token(name), name)) return false;
    }
    return true;
}

/* Deletes what has ended. False: the store does not take it now. */
static MAY_YIELD bool
ended_delete(struct hints *h)
{
    if (list_empty(&h->ended)) return true;
    if (!hint_markers_write(h)) return false; /* I3 */
    struct lsm_batch batch;
    struct list taken;
    list_init(&taken);
    lsm_batch_init(&batch, h->options.budget);
    bool put = true;
    while (put && !list_empty(&h->ended) && batch.count < HINTS_DELETE_OPS) {
        struct hint_sent *sent = list_entry(list_first(&h->ended), struct hint_sent, link);
        put = deletion_put(sent, &batch);
        if (!put) break;
        list_del(&sent->link);
        list_push_back(&taken, &sent->link);
    }
    u64 seq = 0;
    status st = batch.count > 0 ? lsm_write(h->options.lsm, &batch, &seq) : ST_NO_MEMORY;
    lsm_batch_deinit(&batch);
    if (!ok(st)) {
        MARK("cluster.hints.delete_refused");
        list_splice_back(&h->ended, &taken);
        return false;
    }
    list_for_each (pos, &taken)
        list_entry(pos, struct hint_sent, link)->delete_seq = seq;
    list_splice_back(&h->deleting, &taken);
    return true;
}

static void
deleted_account(struct hints *h)
{
    u64 durable = lsm_durable_seq(h->options.lsm);
    while (!list_empty(&h->deleting)) {
        struct hint_sent *sent = list_entry(list_first(&h->deleting), struct hint_sent, link);
        if (sent->delete_seq > durable) return;
        sent_account(sent);
    }
}

/* ---- what comes back ---- */

static void
sent_end(struct hint_sent *sent)
{
    struct hints *h = sent->h;
    list_del(&sent->link);
    h->in_flight--;
    h->in_flight_bytes -= sent->bytes;
    if (sent->fate == HINT_STALE) {
        hint_run_lost(h, sent->run, sent->key.version);
    } else if (sent->failed || sent->refused) {
        h->stats.failed++;
        sent->run->target->failed |= sent->failed;
        sent->run->pass_oldest = MIN(sent->run->pass_oldest, sent->key.version);
        list_init(&sent->link);
        sent_free(sent);
        fiber_queue_wake_all(&h->wake);
        return;
    }
    list_push_back(&h->ended, &sent->link);
    fiber_queue_wake_all(&h->wake);
}

static void sent_answered(struct hint_sent *sent);

static void
call_done(struct peer_call *peer_call, status st, const struct native_header *header,
          struct bytes body)
{
    (void)body;
    struct hint_call *call = CONTAINER_OF(peer_call, struct hint_call, call);
    struct hint_sent *sent = call->sent;
    call->under_way = false;
    if (!ok(st)) {
        sent->failed = true;
    } else {
        switch ((enum native_status)header->status) {
        case NATIVE_ST_OK:
            break;
        case NATIVE_ST_CONFLICT:
            MARK("cluster.hints.stale");
            sent->fate = HINT_STALE;
            break;
        case NATIVE_ST_INVALID: /* perhaps its clock, or its topology */
            MARK("cluster.hints.refused");
            sent->refused = true;
            break;
        default:
            sent->failed = true;
            break;
        }
    }
    sent_answered(sent);
}

/* A state of a key that keeps siblings, on its way into our own store. */
struct own_merge {
    struct hint_sent *sent;
    struct lsm_batch batch;
};

static void
own_merge_free(struct hints *h, struct own_merge *merge)
{
    lsm_batch_deinit(&merge->batch);
    mem_free(h->options.budget, merge, sizeof(*merge));
    h->merging--;
}

static MAY_YIELD void
own_merge_main(void *arg)
{
    struct own_merge *merge = arg;
    struct hint_sent *sent = merge->sent; /* waited for: calls_cancel */
    struct hints *h = sent->h;
    status st = h->own.merge == NULL
                    ? ST_CLOSED
                    : h->own.merge(h->own.arg, &merge->batch, io_now_ns() + HINTS_CALL_NS);
    if (!ok(st)) sent->failed = true;
    own_merge_free(h, merge);
    sent_answered(sent);
}

static void
own_merge_start(struct hint_sent *sent, struct bytes ops)
{
    struct hints *h = sent->h;
    struct own_merge *merge = mem_alloc_zero(h->options.budget, sizeof(*merge));
    if (merge == NULL) {
        sent->failed = true;
        return;
    }
    h->merging++;
    merge->sent = sent;
    lsm_batch_init(&merge->batch, h->options.budget);
    merge->batch.count = sent->key.count;
    merge->batch.version = sent->key.version;
    if (buf_append(&merge->batch.ops, ops.data, ops.size) &&
        ok(fiber_spawn(FIBER_BACKGROUND, "hint-merge", own_merge_main, merge))) {
        sent->pending++;
        return;
    }
    sent->failed = true;
    own_merge_free(h, merge);
}

/* Into our own store. The deletion comes later in the same log, so it is not durable before this
 * is. */
static void
own_write(struct hint_sent *sent, struct bytes ops)
{
    struct hints *h = sent->h;
    if (h->topology->keyspaces[sent->key.keyspace].conflict == CONFLICT_SIBLINGS) {
        own_merge_start(sent, ops);
        return;
    }
    if (sent->key.version < lsm_purge_below(h->options.lsm, sent->key.keyspace)) {
        sent->fate = HINT_STALE;
        return;
    }
    /* It may be from before a restart, and our store may never have had it (R2 in
     * replicate_internal.h). */
    if (h->own.observe == NULL || !h->own.observe(h->own.arg, sent->key.version)) {
        sent->refused = true;
        return;
    }
    struct lsm_batch batch = {.ops = {.data = (u8 *)(uintptr_t)ops.data, .size = ops.size},
                              .count = sent->key.count,
                              .version = sent->key.version};
    u64 seq;
    if (!ok(lsm_write_try(h->options.lsm, &batch, &seq))) sent->failed = true;
}

/* Calls those who were not yet, up to the end-th. */
static void
sent_call(struct hint_sent *sent, struct bytes ops, u32 end)
{
    struct hints *h = sent->h;
    u8 head[PEER_REPLICA_HEAD_BYTES];
    struct peer_write write = {.version = sent->key.version,
                               .partition = sent->partition,
                               .count = sent->key.count,
                               .flags = PEER_WRITE_REPAIR | PEER_WRITE_HINT};
    struct bytes parts[] = {BYTES(head, peer_write_head(&write, head)), ops};
    struct native_header header = {
        .opcode = PEER_WRITE, .epoch = sent->epoch, .keyspace = sent->key.keyspace};
    sent->pending++; /* until all have begun */
    for (; sent->called < end; sent->called++) {
        struct hint_call *call = &sent->calls[sent->called];
        const struct topology_member *member = topology_member(h->topology, call->member);
        call->sent = sent;
        if (call->member == h->self) {
            own_write(sent, ops);
        } else if (member == NULL || member->shard_count == 0) {
            sent->failed = true;
        } else {
            call->under_way = true;
            sent->pending++;
            peer_call_init(&call->call, call_done);
            peer_call_start(
                h->options.peers, &call->call, member->number,
                partition_shard(sent->run->partition, member->shard_count, PARTITION_COUNT_DEFAULT),
                &header, parts, ARRAY_COUNT(parts), io_now_ns() + HINTS_CALL_NS);
        }
    }
    sent_answered(sent);
}

/* One of those who were called has answered, or all have been called. */
static void
sent_answered(struct hint_sent *sent)
{
    struct hints *h = sent->h;
    if (--sent->pending > 0) return;
    bool good = !sent->failed && !sent->refused && sent->fate != HINT_STALE && !h->closing;
    if (!good || sent->called == sent->call_count) {
        sent_end(sent);
    } else if (h->topology->epoch != sent->epoch) {
        sent->failed = true; /* others may be meant now */
        sent_end(sent);
    } else {
        sent_call(sent, buf_bytes(&sent->ops), sent->call_count);
    }
}

static MAY_YIELD void
calls_cancel(struct hints *h)
{
    while (h->merging > 0)
        (void)fiber_queue_wait(&h->wake, io_now_ns() + HINTS_BURST_NS);
    while (!list_empty(&h->flying)) {
        struct hint_sent *sent = list_entry(list_first(&h->flying), struct hint_sent, link);
        for (u32 i = 0; i < sent->call_count; i++)
            if (sent->calls[i].under_way) {
                peer_call_cancel(h->options.peers, &sent->calls[i].call);
                sent->calls[i].under_way = false;
            }
        sent->failed = true;
        sent_end(sent);
    }
}

/* ---- whom it is for ---- */

static bool
is_alive(const struct hints *h, u32 member)
{
    return member == h->self || h->options.alive == NULL ||
           h->options.alive(h->options.arg, member);
}

/* Whom a hint is sent to, each once. */
struct route {
    u32 count, members[QUORUM_MEMBERS_MAX];
    u32 first; /* so many are to have it before the others get it */
    bool rerouted;
};

static bool
among(const u32 *members, u32 count, u32 member)
{
    for (u32 i = 0; i < count; i++)
        if (members[i] == member) return true;
    return false;
}

static void
route_add(struct route *route, const u32 *members, u32 count)
{
    for (u32 i = 0; i < count; i++)
        if (!among(route->members, route->count, members[i]))
            route->members[route->count++] = members[i];
}

/* While a plan is under way, what too few had to be read may not come to be read in the present row
 * and be missing in the next one, from which whoever gains it has fetched already: so who is new
 * there gets it first, and the target last. False: no such keyspace. */
static bool
route_find(const struct hints *h, u32 target, u16 keyspace, u32 partition, struct route *out)
{
    if (!h->topology->keyspaces[keyspace].used) return false;
    struct topology_row row;
    topology_row(h->topology, keyspace, partition, &row);
    *out = (struct route){0};
    for (u32 i = 0; i < row.next_count; i++)
        if (!among(row.write, row.count, row.write_next[i])) route_add(out, &row.write_next[i], 1);
    out->first = out->count;
    route_add(out, row.write_next, row.next_count);
    out->rerouted =
        !among(row.write, row.count, target) && !among(row.write_next, row.next_count, target);
    if (out->rerouted)
        route_add(out, row.write, row.count);
    else
        route_add(out, &target, 1);
    return true;
}

/* Whether the member holds any of the run's partition. */
static bool
run_held(const struct hints *h, const struct hint_run *run, u32 member)
{
    u32 count = h->topology->partition_count;
    u32 first =
        token_partition(partition_token_first(run->partition, PARTITION_COUNT_DEFAULT), count);
    u32 last =
        token_partition(partition_token_last(run->partition, PARTITION_COUNT_DEFAULT), count);
    for (u32 i = first; i <= last; i++)
        if (topology_holds(h->topology, member, i)) return true;
    return false;
}

/* Whether a pass has anything to do in the run: who is dead and holds it, waits. */
static bool
run_wanted(const struct hints *h, const struct hint_run *run, bool alive)
{
    if (run->waiting == 0) return false;
    return alive || !run_held(h, run, run->target->member);
}

/* ---- one hint ---- */

/* A hint as it was read. */
struct hint_read {
    struct hint_run *run;
    struct hint_key key; /* part: how many of the parts there are */
    struct bytes ops;    /* not all of them when it has expired */
    u64 bytes;           /* as it was counted */
    bool expired;
};

static u64
expired_below(const struct hints *h)
{
    u64 wall = io_wall_ms();
    return hlc_version_at(wall - MIN(wall, h->options.window_ms));
}

static struct hint_sent *
sent_new(struct hints *h, const struct hint_read *read, u32 calls, enum hint_fate fate)
{
    size_t size = sizeof(struct hint_sent) + calls * sizeof(struct hint_call);
    struct hint_sent *sent = mem_alloc_zero(h->options.budget, size);
    if (sent == NULL) return MARKED("cluster.hints.sent_no_memory", NULL);
    sent->h = h;
    sent->run = read->run;
    sent->key = read->key;
    sent->bytes = read->bytes;
    sent->fate = fate;
    sent->call_count = calls;
    buf_init(&sent->ops, h->options.budget);
    list_init(&sent->link);
    h->outstanding++;
    return sent;
}

/* Gone without a word to anybody, but repair. ST_CANCELED: no memory. */
static status
given_up(struct hints *h, const struct hint_read *read, enum hint_fate fate)
{
    struct hint_sent *sent = sent_new(h, read, 0, fate);
    if (sent == NULL) return ST_CANCELED;
    if (fate != HINT_ORPHANED) hint_run_lost(h, read->run, read->key.version);
    list_push_back(&h->ended, &sent->link);
    return ST_OK;
}

/* False: no memory. */
static bool
hint_send(struct hints *h, const struct hint_read *read, u32 partition, const struct route *to)
{
    struct hint_sent *sent =
        sent_new(h, read, to->count, to->rerouted ? HINT_REROUTED : HINT_DELIVERED);
    if (sent == NULL) return false;
    bool later = to->first > 0 && to->first < to->count;
    if (later && !buf_append(&sent->ops, read->ops.data, read->ops.size)) {
        MARK("cluster.hints.later_no_memory");
        sent_free(sent);
        return false;
    }
    sent->epoch = h->topology->epoch;
    sent->partition = partition;
    for (u32 i = 0; i < to->count; i++)
        sent->calls[i].member = to->members[i];
    list_push_back(&h->flying, &sent->link);
    h->in_flight++;
    h->in_flight_bytes += sent->bytes;
    sent_call(sent, read->ops, later ? to->first : to->count);
    return true;
}

static bool
all_live(const struct hints *h, const struct route *to)
{
    bool live = to->count > 0;
    for (u32 i = 0; i < to->count; i++)
        live = live && is_alive(h, to->members[i]);
    return live;
}

/* Sent, or gone. ST_CANCELED: the pass is to be given up; ST_WOULD_WAIT: the run is to be passed
 * over. */
static status
deliver(struct hints *h, const struct hint_read *read)
{
    const struct hint_key *key = &read->key;
    if (read->expired) return given_up(h, read, HINT_EXPIRED);
    u64 first = partition_token_first(read->run->partition, PARTITION_COUNT_DEFAULT);
    u64 last = partition_token_last(read->run->partition, PARTITION_COUNT_DEFAULT);
    struct bytes rest = read->ops;
    struct lsm_op op;
    bool bad;
    if (key->part < key->parts ||
        !ok(lsm_ops_check(read->ops, key->count, key->keyspace, first, last)) ||
        !lsm_op_next(&rest, &op, &bad)) {
        MARK("cluster.hints.damaged");
        return given_up(h, read, HINT_DAMAGED);
    }
    u32 partition = token_partition(op.header.token, h->topology->partition_count);
    struct route to;
    if (!route_find(h, key->target, key->keyspace, partition, &to))
        return given_up(h, read, HINT_ORPHANED);
    if (all_live(h, &to)) return hint_send(h, read, partition, &to) ? ST_OK : ST_CANCELED;
    if (!to.rerouted && !is_alive(h, key->target)) {
        read->run->target->failed = true;
        return ST_CANCELED;
    }
    h->passed_over = true;
    return MARKED("cluster.hints.passed_over", ST_WOULD_WAIT);
}

/* ---- a pass ---- */

static bool
pass_over(const struct hints *h)
{
    return h->closing || h->passing->failed;
}

/* Each has one copy, in what is called. */
static u64
in_flight_bytes_max(const struct hints *h)
{
    return MIN((u64)HINTS_IN_FLIGHT_BYTES, h->options.budget->limit_bytes / 4);
}

/* Deletes and accounts; waits until another hint may be on its way. False: give the pass up. */
static MAY_YIELD bool
pace(struct hints *h)
{
    for (;;) {
        deleted_account(h);
        u64 now = io_now_ns(), until = now + HINTS_TICK_NS;
        if (pass_over(h)) return false;
        if (h->in_flight < HINTS_IN_FLIGHT && h->in_flight_bytes < in_flight_bytes_max(h) &&
            h->outstanding < HINTS_OUTSTANDING) {
            if (now >= h->pace_ns) return true;
            until = h->pace_ns;
        }
        if (!ended_delete(h)) {
            h->passing->failed = true;
            return false;
        }
        if (h->outstanding >= HINTS_OUTSTANDING && !list_empty(&h->deleting)) {
            u64 seq = list_entry(list_first(&h->deleting), struct hint_sent, link)->delete_seq;
            if (!ok(lsm_wait_durable(h->options.lsm, seq))) h->passing->failed = true;
            continue;
        }
        (void)fiber_queue_wait(&h->wake, until);
    }
}

static void
paced(struct hints *h, u64 bytes)
{
    u64 now = io_now_ns();
    /* What was not used is lost, but for a little. */
    u64 from = MAX(h->pace_ns, now - MIN(now, HINTS_BURST_NS));
    h->pace_ns = from + bytes * NS_PER_S / h->options.replay_bytes_per_s;
}

/* Until nothing is outstanding: answers, deletions, their durability. */
static MAY_YIELD void
drain(struct hints *h)
{
    while (h->outstanding > 0) {
        deleted_account(h);
        if (h->closing) calls_cancel(h);
        bool deleted = ended_delete(h);
        if (!list_empty(&h->deleting)) {
            u64 seq = list_entry(list_first(&h->deleting), struct hint_sent, link)->delete_seq;
            /* A log that failed: nothing will be durable any more. */
            bool durable = ok(lsm_wait_durable(h->options.lsm, seq));
            if (!durable && h->closing) break;
            if (durable) continue;
        }
        if (!deleted && h->closing) break;
        if (h->outstanding > 0) (void)fiber_queue_wait(&h->wake, io_now_ns() + HINTS_TICK_NS);
    }
}

/* What is left when the node ends: deleted by another life. */
static void
outstanding_free(struct hints *h)
{
    list_splice_back(&h->ended, &h->deleting);
    while (!list_empty(&h->ended))
        sent_free(list_entry(list_first(&h->ended), struct hint_sent, link));
}

/* Where the next run of the pass is that has something to do; partition_count: nowhere. */
static u32
pass_next(const struct hints *h, u32 from)
{
    for (u32 i = from; i < h->partition_count; i++) {
        struct hint_run *run = hint_run_find(h, h->partition_first + i, h->passing->member);
        if (run == NULL) continue;
        if (h->passing_run != NULL ? run == h->passing_run : run_wanted(h, run, h->passing_alive))
            return i;
    }
    return h->partition_count;
}

/* The first of a run, or what lies behind `after`. */
static MAY_YIELD status
pass_scan_open(struct hints *h, u32 partition, const struct hint_key *after, struct lsm_scan **out)
{
    u8 bytes[HINT_KEY_BYTES];
    const struct hint_tag *tag = hint_tag_of(h, partition);
    u32 size = after == NULL ? hint_key_run(tag, h->passing->member, bytes)
                             : hint_key_encode(tag, after, bytes);
    struct bytes name = BYTES(bytes, size);
    return lsm_scan_open(h->options.lsm, NULL, KEYSPACE_HINTS, hash_token(name), name, UINT64_MAX,
                         out);
}

static bool
same_write(const struct hint_key *a, const struct hint_key *b)
{
    return a->target == b->target && a->kind == b->kind && a->version == b->version &&
           a->keyspace == b->keyspace && a->count == b->count && a->parts == b->parts;
}

/* The other parts of a hint, of which the first has been read. ST_END: they are not all there, and
 * the scan has passed what comes then. All are counted, though there be no memory to have them as
 * one (ST_NO_MEMORY); what has expired needs none. */
static MAY_YIELD status
parts_read(struct hints *h, struct lsm_scan *scan, const struct hint_tag *tag,
           struct hint_read *read)
{
    bool fits = read->expired || buf_append(&h->joined, read->ops.data, read->ops.size);
    while (read->key.part < read->key.parts) {
        u64 token;
        struct bytes name;
        struct lsm_value value;
        status st = lsm_scan_next(scan, true, &token, &name, &value);
        if (!ok(st)) return st;
        struct hint_key key;
        if (!hint_key_decode(tag, name, &key) || !same_write(&key, &read->key) ||
            key.part != read->key.part)
            return ST_END;
        if (fits && !read->expired)
            fits = buf_append(&h->joined, value.value.data, value.value.size);
        /* The pass goes on for long, and all else of the cluster wants this memory. */
        if (!fits) buf_clear(&h->joined, 0);
        read->bytes += value.value.size + HINT_ENTRY_BYTES;
        read->key.part++;
    }
    read->ops = buf_bytes(&h->joined);
    return fits ? ST_OK : ST_NO_MEMORY;
}

/* Of a life with more memory, or of fewer shards: it waits for such a one, or until it has expired,
 * and the others go on. It may be all that there is of a write (stand_in.h). */
static void
too_large(struct hints *h, struct hint_read *read)
{
    MARK("cluster.hints.too_large");
    h->passed_over = true;
    read->run->pass_oldest = MIN(read->run->pass_oldest, read->key.version);
    if (log_seldom(&h->too_large_told_ns, io_now_ns()))
        log_warning("cluster",
                    "no memory to send a write that is kept for a member: it waits member=%u "
                    "bytes=%llu shard=%u",
                    read->key.target, (unsigned long long)read->bytes, h->options.shard);
}

/* A hint of which an entry was read. *behind: the scan is to begin anew behind it. ST_CANCELED: the
 * pass is given up; ST_WOULD_WAIT: the run is passed over. */
static MAY_YIELD status
pass_hint(struct hints *h, struct lsm_scan *scan, struct hint_read *read, bool *behind)
{
    status st = ST_END;
    read->expired = read->key.version < expired_below(h);
    if (read->key.part == 0) {
        read->key.part = 1;
        st = read->key.parts == 1 ? ST_OK
                                  : parts_read(h, scan, hint_tag_of(h, read->run->partition), read);
    }
    *behind = status_is(st, ST_END);
    if (ok(st)) {
        st = deliver(h, read);
    } else if (status_is(st, ST_NO_MEMORY) && read->key.part == read->key.parts) {
        too_large(h, read);
        st = ST_OK;
    } else if (*behind) {
        MARK("cluster.hints.torn");
        read->key.part = read->key.parts; /* whatever is there of it */
        st = given_up(h, read, HINT_DAMAGED);
    }
    buf_clear(&h->joined, JOINED_KEEP_BYTES);
    if (ok(st))
        paced(h, read->bytes);
    else /* the oldest of what is left of the run */
        read->run->pass_oldest = MIN(read->run->pass_oldest, read->key.version);
    return st;
}

/* One scan of a pass, from the run at *at on. ST_OK: it is to begin anew, at *at, or behind *after
 * if *behind. ST_END: nothing is left. ST_CANCELED: the pass is given up. */
static MAY_YIELD status
pass_scan(struct hints *h, struct lsm_scan *scan, u32 *at, struct hint_key *after, bool *behind)
{
    *behind = false;
    for (;;) {
        if (!pace(h)) return ST_CANCELED;
        if (fiber_should_yield()) fiber_yield();
        u64 token;
        struct bytes name;
        struct lsm_value value;
        status st = lsm_scan_next(scan, true, &token, &name, &value);
        if (!ok(st)) return st;
        u32 partition = token_partition(token, PARTITION_COUNT_DEFAULT);
        if (!hints_own_partition(h, partition)) return ST_END;
        struct hint_read read = {.bytes = value.value.size + HINT_ENTRY_BYTES, .ops = value.value};
        u32 place = partition - h->partition_first;
        bool ours = hint_key_decode(hint_tag_of(h, partition), name, &read.key) &&
                    read.key.target == h->passing->member && read.key.kind == HINT_KIND_WRITE;
        if (!ours || place != *at) {
            /* The run at *at has no more; the next one may begin just here. */
            *at = pass_next(h, *at + 1);
            if (!ours || place != *at) return ST_OK;
        }
        read.run = hint_run_find(h, partition, h->passing->member);
        if (h->passing_run != NULL && read.key.version >= expired_below(h)) {
            read.run->pass_oldest = MIN(read.run->pass_oldest, read.key.version);
            return ST_END;
        }
        if (hint_queue_has(h, read.run, read.key.version)) continue; /* not all of it is there */
        *after = read.key;
        after->part = HINT_PARTS_MAX;
        st = pass_hint(h, scan, &read, behind);
        if (status_is(st, ST_WOULD_WAIT)) {
            *at = pass_next(h, *at + 1);
            return ST_OK;
        }
        if (!ok(st) || *behind) return st;
    }
}

/* All that the scans read. ST_END: everything was seen. */
static MAY_YIELD status
pass_scans(struct hints *h)
{
    u32 at = pass_next(h, 0);
    struct hint_key after;
    bool behind = false, damaged = false;
    while (at < h->partition_count) {
        struct lsm_scan *scan;
        status st = pass_scan_open(h, h->partition_first + at, behind ? &after : NULL, &scan);
        if (!ok(st)) return st;
        st = pass_scan(h, scan, &at, &after, &behind);
        lsm_scan_close(scan);
        if (status_is(st, ST_CORRUPT)) {
            /* What lies behind is brought; of this run nobody knows what is missing. */
            MARK("cluster.hints.unreadable");
            h->unreadable = damaged = true;
            struct hint_run *run = hint_run_find(h, h->partition_first + at, h->passing->member);
            hint_run_lost(h, run, run->version_oldest);
            at = pass_next(h, at + 1);
            behind = false;
        } else if (!ok(st)) {
            return status_is(st, ST_END) && damaged ? ST_CORRUPT : st;
        }
    }
    return damaged ? ST_CORRUPT : ST_END;
}

/* Over all runs of the target; or over one, of which only what has expired is let go. */
static MAY_YIELD void
pass(struct hints *h, struct hint_target *target, struct hint_run *only)
{
    h->passing = target;
    h->passing_run = only;
    h->passing_alive = is_alive(h, target->member);
    target->failed = h->passed_over = false;
    for (u32 i = 0; i < h->partition_count; i++) {
        struct hint_run *run = hint_run_find(h, h->partition_first + i, target->member);
        if (run != NULL) run->pass_oldest = hint_queue_oldest(h, run);
    }
    u64 failed = h->stats.failed, replayed = h->stats.replayed;
    status st = pass_scans(h);
    buf_clear(&h->joined, 0);
    drain(h);
    bool whole = status_is(st, ST_END);
    /* Of runs that were not wanted nothing was seen. */
    for (u32 i = 0; whole && i < h->partition_count; i++) {
        struct hint_run *run = hint_run_find(h, h->partition_first + i, target->member);
        if (run != NULL && (only == NULL ? h->passing_alive : run == only))
            run->version_oldest = run->pass_oldest;
    }
    h->passing = NULL;
    if (only != NULL) return;
    if (whole && !target->failed && !h->passed_over && h->stats.failed == failed)
        target->backoff_ns = 0;
    else if (h->stats.replayed > replayed)
        target->backoff_ns = HINTS_TICK_NS;
    else
        target->backoff_ns = CLAMP(2 * target->backoff_ns, HINTS_TICK_NS, HINTS_BACKOFF_NS_MAX);
    target->retry_ns = io_now_ns() + MAX(target->backoff_ns, HINTS_TICK_NS);
}

static bool
pass_due(const struct hints *h, const struct hint_target *target)
{
    if (h->topology == NULL || target->waiting == 0 || io_now_ns() < target->retry_ns) return false;
    bool alive = is_alive(h, target->member);
    if (alive) return true;
    for (u32 i = 0; i < h->partition_count; i++) {
        const struct hint_run *run = hint_run_find(h, h->partition_first + i, target->member);
        if (run != NULL && run_wanted(h, run, false)) return true;
    }
    return false;
}

/* ---- time and topology go on ---- */

/* The first run of which something has expired; NULL: none. */
static struct hint_run *
expired_find(const struct hints *h, u64 below)
{
    for (u32 i = 0; i < h->partition_count; i++)
        for (struct hint_run *run = h->runs[i]; run != NULL; run = run->next)
            if (run->waiting > 0 && run->version_oldest < below) return run;
    return NULL;
}

static MAY_YIELD void
expire(struct hints *h)
{
    u64 below = expired_below(h);
    struct hint_run *run;
    /* Each pass ends with a version_oldest that is right, or could not be made: then later. */
    while (!h->closing && h->topology != NULL && (run = expired_find(h, below)) != NULL) {
        pass(h, run->target, run);
        if (run->waiting > 0 && run->version_oldest < below) return;
    }
}

/* Who has left needs no repair: whoever came in its place has fetched what a quorum has. And who
 * holds no replica himself, as a stand-in, compares nothing, and never learns that it is mended. */
static void
leavers_forget(struct hints *h)
{
    if (h->topology == NULL) return;
    for (u32 i = 0; i < h->partition_count; i++)
        for (struct hint_run *run = h->runs[i]; run != NULL; run = run->next)
            if (run->repair && (topology_member(h->topology, run->target->member) == NULL ||
                                !run_held(h, run, h->self))) {
                run->repair = false;
                h->markers_due = true;
            }
}

/* ---- what an earlier life left ---- */

/* One entry. False: no memory. */
static bool
load_entry(struct hints *h, u32 partition, struct bytes name, const struct lsm_value *value,
           struct hint_key *last, u32 *last_partition)
{
    struct hint_key key;
    if (!hint_key_decode(hint_tag_of(h, partition), name, &key) ||
        (key.kind == HINT_KIND_MARKER && value->value.size != 8)) {
        MARK("cluster.hints.load_damaged");
        h->stats.damaged++;
        return true;
    }
    if (key.kind == HINT_KIND_MARKER) {
        struct hint_run *run = key.target == 0 ? &h->all : hint_run_get(h, partition, key.target);
        if (run == NULL) return false;
        u64 version = load_u64(value->value.data);
        if (key.target == 0) run->partition = partition;
        if (!run->repair) hint_run_lost(h, run, version);
        run->repair_oldest = MIN(run->repair_oldest, version);
        /* When the last one was dropped nobody knows: before now. */
        run->repair_newest = MAX(run->repair_newest, hlc_version_at(io_wall_ms()));
        run->marked = true;
        run->marked_version = version;
        return true;
    }
    struct hint_run *run = hint_run_get(h, partition, key.target);
    if (run == NULL) return false;
    u64 bytes = value->value.size + HINT_ENTRY_BYTES;
    hint_run_count(h, run, key.version, bytes);
    if (*last_partition == partition && same_write(last, &key)) hint_run_uncount(h, run, 0);
    *last = key;
    *last_partition = partition;
    return true;
}

/* From a place on; moves it. ST_END: all is loaded. */
static MAY_YIELD status
load_scan(struct hints *h, u64 *token, u8 *name, u32 *name_size, struct hint_key *last,
          u32 *last_partition)
{
    struct lsm_scan *scan;
    status st = lsm_scan_open(h->options.lsm, NULL, KEYSPACE_HINTS, *token, BYTES(name, *name_size),
                              UINT64_MAX, &scan);
    if (!ok(st)) return st;
    while (!h->closing) {
        struct bytes key;
        struct lsm_value value;
        st = lsm_scan_next(scan, true, token, &key, &value);
        if (!ok(st)) break;
        memcpy(name, key.data, key.size);
        *name_size = (u32)key.size;
        u32 partition = token_partition(*token, PARTITION_COUNT_DEFAULT);
        if (!hints_own_partition(h, partition)) {
            st = ST_END;
            break;
        }
        if (value.seq <= h->open_seq &&
            !load_entry(h, partition, key, &value, last, last_partition)) {
            st = ST_NO_MEMORY;
            break;
        }
        if (*name_size < LIMIT_KEY_BYTES) name[(*name_size)++] = 0; /* the next name there can be */
        if (fiber_should_yield()) fiber_yield();
    }
    lsm_scan_close(scan);
    return h->closing ? ST_CLOSED : st;
}

static MAY_YIELD void
load(struct hints *h)
{
    u8 name[LIMIT_KEY_BYTES];
    u64 token = 0;
    u32 name_size = 0;
    struct hint_key last = {0};
    u32 last_partition = UINT32_MAX;
    while (!h->closing) {
        status st = load_scan(h, &token, name, &name_size, &last, &last_partition);
        if (status_is(st, ST_END)) break;
        if (status_is(st, ST_CORRUPT)) {
            u32 partition = token_partition(token, PARTITION_COUNT_DEFAULT);
            log_warning("cluster",
                        "hints cannot be read; replicas need repair partition=%u shard=%u",
                        partition, h->options.shard);
            h->unreadable = true;
            hint_run_lost(h, &h->all, 1);
            if (partition + 1 >= h->partition_first + h->partition_count) break;
            token = partition_token_first(partition + 1, PARTITION_COUNT_DEFAULT);
            name_size = 0;
            continue;
        }
        (void)fiber_queue_wait(&h->wake, io_now_ns() + HINTS_TICK_NS);
    }
    h->loaded = !h->closing;
}

/* ---- the fiber ---- */

static MAY_YIELD void
turn(struct hints *h, u64 *expire_ns)
{
    hint_store_go_on(h);
    leavers_forget(h);
    (void)hint_markers_write(h);
    if (io_now_ns() >= *expire_ns) {
        expire(h);
        *expire_ns = io_now_ns() + HINTS_EXPIRE_NS;
    }
    /* Only this fiber takes targets away, and not here. */
    list_for_each (pos, &h->targets) {
        struct hint_target *target = list_entry(pos, struct hint_target, link);
        if (!h->closing && pass_due(h, target)) pass(h, target, NULL);
    }
    hint_runs_prune(h);
}

MAY_YIELD void
hints_main(void *arg)
{
    struct hints *h = arg;
    load(h);
    u64 expire_ns = 0;
    while (!h->closing) {
        turn(h, &expire_ns);
        if (h->closing) break;
        bool idle = list_empty(&h->targets) && !h->markers_due && list_empty(&h->queue);
        (void)fiber_queue_wait(&h->wake, idle ? FIBER_FOREVER : io_now_ns() + HINTS_TICK_NS);
    }
    outstanding_free(h);
    h->main_ended = true;
    fiber_queue_wake_all(&h->idle);
}
