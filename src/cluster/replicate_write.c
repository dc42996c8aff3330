/* SPDX-License-Identifier: MIT
 *
 * replicate_write.c -- coordinating writes. See replicate.h, replicate_internal.h.
 *
 * An attempt is one version of the batch, counted by one row of one topology:
 *
 *   stamp -> calls to the living replicas -> own store -> wait -> decided
 *
 *   what comes                               what follows
 *   W answers (of each set)                  acknowledged; calls go on, what fails then is missed
 *   a replica has a newer version            given up; another attempt, stamped above it
 *   a replica has a newer topology           given up; another attempt when we have it, too
 *   too many have failed, and we have a      given up; another attempt by the rows of that
 *   newer topology than the attempt
 *   too many have failed, or the deadline    unknown, if it may have been done anywhere
 *
 * In a sloppy keyspace others have the places of home replicas that are gone, where too few live
 * (stand_in.h). Who is gone has missed the write all the same, and this node keeps it, too.
 *
 * An attempt does not begin while the peers have more to take than they do: a client that writes
 * faster than they take it is slowed down, and nothing of what waits was done yet. For a few of them,
 * without whom there are W, it is not waited long.
 *
 * Several attempts of one request may be under way: the older ones are lost in the order of
 * versions, whenever they arrive. An attempt that was given up counts for nothing, so that what is
 * acknowledged was the newest on W replicas when they answered.
 */
#include "base/fault.h"
#include "cluster/replicate_internal.h"
#include "cluster/stand_in.h"
#include "io/io.h"
#include "lsm/batch.h"
#include "lsm/entry.h"

/* For so long a write waits for room before a replica without which there are enough. */
#define FEW_FULL_NS (50 * NS_PER_MS)
/* For so long one whose quorum is lost for the others' indexes for who has not answered. */
#define FULL_NS (100 * NS_PER_MS)

/* ---- the life of an attempt ---- */

static size_t
attempt_bytes(u32 calls)
{
    return sizeof(struct write_attempt) + calls * sizeof(struct write_call);
}

void
attempt_unref(struct write_attempt *attempt)
{
    CHECK(attempt->references > 0);
    if (--attempt->references > 0) return;
    struct replicator *r = attempt->r;
    list_del(&attempt->link);
    lsm_batch_deinit(&attempt->taken);
    mem_free(r->options.budget, attempt, attempt_bytes(attempt->call_count));
    if (r->closing) fiber_queue_wake_all(&r->idle);
}

/* The member did not get a write that others have, or may have: it is kept for it. */
static void
missed(const struct write_attempt *attempt, u32 member, const struct lsm_batch *batch)
{
    struct replicator *r = attempt->r;
    r->stats.missed++;
    if (!attempt->repair && r->options.hints != NULL) hints_add(r->options.hints, member, batch);
}

/* Who is in somebody's place has missed nothing himself; of whom he is for attempt_decide has taken
 * note. */
static bool
stands_in(const struct write_attempt *attempt, u32 member)
{
    return attempt->calls[quorum_find(&attempt->quorum, member)].target != 0;
}

static void
attempt_answer(struct write_attempt *attempt, u32 member, enum quorum_answer answer)
{
    if (!quorum_answer(&attempt->quorum, member, answer)) return;
    if (answer == QUORUM_NO && attempt->decided && !attempt->given_up &&
        !stands_in(attempt, member))
        missed(attempt, member, attempt->batch);
    fiber_queue_wake_all(&attempt->wake);
}

static void
own_durable(struct durable_wait *wait, bool durable)
{
    struct write_attempt *attempt = CONTAINER_OF(wait, struct write_attempt, own);
    attempt_answer(attempt, attempt->r->self, durable ? QUORUM_YES : QUORUM_NO);
    attempt_unref(attempt);
}

/* What the answer of a replica means. */
static enum quorum_answer
call_judge(struct write_attempt *attempt, u32 member, const struct native_header *header,
           struct bytes body)
{
    struct replicator *r = attempt->r;
    switch ((enum native_status)header->status) {
    case NATIVE_ST_OK:
        break;
    case NATIVE_ST_WRONG_EPOCH:
        MARK("cluster.replicate.wrong_epoch");
        attempt->wrong_epoch = true;
        attempt->epoch_seen = MAX(attempt->epoch_seen, header->epoch);
        return QUORUM_NO;
    case NATIVE_ST_UNKNOWN_OUTCOME:
    case NATIVE_ST_IO_ERROR:
        attempt->maybe_done = true;
        return QUORUM_NO;
    default: /* refused: not done */
        return QUORUM_NO;
    }
    attempt->maybe_done = true;
    struct peer_wrote wrote;
    if (!ok(peer_wrote_decode(body, &wrote))) return QUORUM_NO;
    if (wrote.newer <= attempt->version) return QUORUM_YES;
    /* Done, and lost in the order: not counted. Above what we may not follow we cannot stamp. */
    MARK("cluster.replicate.newer");
    if (version_observe(r, wrote.newer, "newer", member))
        attempt->newer = MAX(attempt->newer, wrote.newer);
    return QUORUM_NO;
}

static void
call_done(struct peer_call *peer_call, status st, const struct native_header *header,
          struct bytes body)
{
    struct write_call *call = CONTAINER_OF(peer_call, struct write_call, call);
    struct write_attempt *attempt = call->attempt;
    call->under_way = false;
    *load_of(attempt->r, call->member) -= 1;
    enum quorum_answer answer = QUORUM_NO;
    if (ok(st))
        answer = call_judge(attempt, call->member, header, body);
    else if (peer_call->maybe_sent)
        attempt->maybe_done = true;
    u32 bit = 1u << (u32)(call - attempt->calls);
    if (is_busy(peer_call, st, header)) attempt->busy |= bit;
    if (ok(st) && header->status == NATIVE_ST_FULL) attempt->full |= bit;
    attempt_answer(attempt, call->member, answer);
    attempt_unref(attempt);
}

void
attempt_cancel(struct write_attempt *attempt)
{
    for (u32 i = 0; i < attempt->call_count; i++) {
        struct write_call *call = &attempt->calls[i];
        if (!call->under_way) continue;
        peer_call_cancel(attempt->r->options.peers, &call->call);
        call->under_way = false;
        *load_of(attempt->r, call->member) -= 1;
        attempt_answer(attempt, call->member, QUORUM_NO);
        attempt_unref(attempt);
    }
}

static struct write_attempt *
attempt_new(struct replicator *r, const struct quorum *quorum, const struct stand_ins *stand_ins,
            const struct lsm_batch *batch, u64 version, u64 epoch, u64 deadline_ns)
{
    struct write_attempt *attempt = mem_alloc_zero(r->options.budget, attempt_bytes(quorum->count));
    if (attempt == NULL) return MARKED("cluster.replicate.no_memory", NULL);
    attempt->r = r;
    attempt->references = 1;
    attempt->version = version;
    attempt->epoch = epoch;
    attempt->deadline_ns = deadline_ns;
    attempt->quorum = *quorum;
    attempt->batch = batch;
    attempt->call_count = quorum->count; /* some of them stay unused */
    if (stand_ins != NULL)
        for (u32 i = 0; i < quorum->count; i++)
            attempt->calls[i].target = stand_ins->targets[i];
    fiber_queue_init(&attempt->wake);
    list_init(&attempt->own.link);
    lsm_batch_init(&attempt->taken, r->options.budget);
    list_push_back(&r->attempts, &attempt->link);
    return attempt;
}

/* Calls everybody who is still pending, but us. no yield. */
static void
attempt_send(struct write_attempt *attempt, const struct topology *topology, u16 keyspace,
             u64 token, u32 partition, bool repair)
{
    struct replicator *r = attempt->r;
    attempt->repair = repair;
    attempt->keyspace = keyspace;
    attempt->partition = partition;
    u8 head[PEER_REPLICA_HEAD_BYTES];
    struct peer_write write = {.version = attempt->version,
                               .partition = partition,
                               .count = attempt->batch->count,
                               .flags = (repair ? PEER_WRITE_REPAIR : 0) |
                                        (attempt->merges ? PEER_WRITE_MERGE : 0)};
    struct bytes parts[] = {BYTES(head, peer_write_head(&write, head)),
                            buf_bytes(&attempt->batch->ops)};
    struct native_header header = {
        .opcode = PEER_WRITE, .epoch = attempt->epoch, .keyspace = keyspace};
    /* The same with the name of whom it is kept for. */
    u8 keep_head[PEER_REPLICA_HEAD_BYTES];
    struct bytes keep_parts[] = {BYTES(keep_head, sizeof(keep_head)), parts[1]};
    u64 until = MAX(attempt->deadline_ns, io_now_ns() + WRITE_CALL_NS_MIN);
    for (u32 i = 0; i < attempt->quorum.count; i++) {
        u32 member = attempt->quorum.members[i];
        u32 shard;
        if (member == r->self || attempt->quorum.answers[i] != QUORUM_PENDING) continue;
        if (!replicate_shard(topology, member, token, &shard)) {
            (void)quorum_answer(&attempt->quorum, member, QUORUM_NO);
            continue;
        }
        struct write_call *call = &attempt->calls[i];
        u32 target = call->target;
        *call = (struct write_call){
            .attempt = attempt, .member = member, .target = target, .under_way = true};
        attempt->references++;
        *load_of(r, member) += 1;
        if (UNLIKELY(target != 0)) {
            write.flags = PEER_WRITE_STAND_IN;
            write.session = target;
            if (r->options.waits_for != NULL) r->options.waits_for(r->options.arg, member);
            keep_parts[0].size = peer_write_head(&write, keep_head);
        }
        peer_call_init(&call->call, call_done);
        peer_call_start(r->options.peers, &call->call, member, shard, &header,
                        target != 0 ? keep_parts : parts, ARRAY_COUNT(parts), until);
    }
}

/* Nothing of it can be seen: deletions, and what expired before all that lies below the version was
 * settled (tree.h), by our clock, too. */
static bool
only_gone(struct bytes ops, u64 purge_below)
{
    u64 expired_ms = MIN(hlc_wall_ms(purge_below), io_wall_ms());
    struct lsm_op op;
    bool bad;
    while (lsm_op_next(&ops, &op, &bad)) {
        u64 expire_ms = op.header.expire_ms;
        bool expired = expire_ms != 0 && expire_ms < expired_ms;
        if (op.header.kind != ENTRY_DELETE && !expired) return false;
    }
    return true;
}

bool
write_is_stale(const struct replicator *r, u16 keyspace, u64 version, struct bytes ops, bool repair)
{
    u64 purge_below = lsm_purge_below(r->options.lsm, keyspace);
    return version < purge_below && !(repair && only_gone(ops, purge_below));
}

/* A mend is as old as what was read, and may have waited since. */
static status
own_try(struct write_attempt *attempt, u64 *seq_out)
{
    struct replicator *r = attempt->r;
    if (write_is_stale(r, attempt->keyspace, attempt->version, buf_bytes(&attempt->batch->ops),
                       attempt->repair))
        return MARKED("cluster.replicate.own_stale", ST_CONFLICT);
    return lsm_write_try(r->options.lsm, attempt->batch, seq_out);
}

/* Our own store, when we are one of them. Waits for room while the others have not decided. */
static MAY_YIELD void
attempt_own(struct write_attempt *attempt)
{
    struct replicator *r = attempt->r;
    u32 at = quorum_find(&attempt->quorum, r->self);
    if (at == QUORUM_MEMBERS_MAX || attempt->quorum.answers[at] != QUORUM_PENDING) return;
    struct lsm *lsm = r->options.lsm;
    const struct lsm_batch *batch = attempt->batch;
    u64 seq;
    status st = attempt->merges
                    ? siblings_merge_op(r, attempt->batch, r->self, attempt->deadline_ns, &seq)
                    : own_try(attempt, &seq);
    while (!attempt->merges && status_is(st, ST_WOULD_WAIT)) {
        u64 now = io_now_ns();
        if (r->closing || now >= attempt->deadline_ns || attempt->newer != 0 ||
            quorum_state(&attempt->quorum) != QUORUM_OPEN)
            break;
        lsm_turn_take(lsm, batch);
        (void)fiber_queue_wait(&attempt->wake, MIN(now + ROOM_NS, attempt->deadline_ns));
        st = own_try(attempt, &seq);
    }
    lsm_turn_leave(lsm, batch);
    if (!ok(st)) {
        if (own_is_busy(r, st)) attempt->busy |= 1u << at;
        if (status_is(st, ST_FULL)) attempt->full |= 1u << at;
        attempt_answer(attempt, r->self, QUORUM_NO);
        return;
    }
    if (attempt->repair) repair_note(r, attempt->partition);
    attempt->maybe_done = true;
    attempt->references++;
    attempt->own.done = own_durable;
    durable_await(r, &attempt->own, seq); /* R1 */
}

static MAY_YIELD void
attempt_wait(struct write_attempt *attempt)
{
    struct replicator *r = attempt->r;
    while (quorum_state(&attempt->quorum) == QUORUM_OPEN && attempt->newer == 0 &&
           attempt->epoch_seen <= attempt->epoch && !r->closing &&
           io_now_ns() < attempt->deadline_ns)
        (void)fiber_queue_wait(&attempt->wake, attempt->deadline_ns);
}

/* The quorum is lost for some are full. Those who have not answered are likely to be so as well: what
 * they say is soon here, and tells that nothing was done. */
static MAY_YIELD void
attempt_wait_full(struct write_attempt *attempt)
{
    struct replicator *r = attempt->r;
    u64 until_ns = MIN(io_now_ns() + FULL_NS, attempt->deadline_ns);
    while (attempt->full != 0 && !attempt->maybe_done && attempt->newer == 0 &&
           attempt->epoch_seen <= attempt->epoch && !r->closing &&
           quorum_state(&attempt->quorum) == QUORUM_LOST &&
           quorum_count(&attempt->quorum, QUORUM_PENDING) > 0 && io_now_ns() < until_ns)
        (void)fiber_queue_wait(&attempt->wake, until_ns);
}

/* The coordinator goes. Who has failed so far has missed it; for the others the operations stay.
 * What was certainly done nowhere must not become visible by a hint. */
static void
attempt_decide(struct write_attempt *attempt, struct lsm_batch *batch)
{
    if (!attempt->maybe_done && quorum_count(&attempt->quorum, QUORUM_PENDING) == 0)
        attempt->given_up = true;
    for (u32 i = 0; !attempt->given_up && i < attempt->quorum.count; i++) {
        u32 target = attempt->calls[i].target;
        if (target != 0 || attempt->quorum.answers[i] == QUORUM_NO)
            missed(attempt, target != 0 ? target : attempt->quorum.members[i], batch);
    }
    attempt->decided = true;
    if (quorum_count(&attempt->quorum, QUORUM_PENDING) == 0) return;
    attempt->taken = *batch;
    attempt->batch = &attempt->taken;
    lsm_batch_init(batch, batch->ops.budget);
    batch->version = attempt->taken.version;
}

/* ---- writes of clients ---- */

struct write {
    struct replicator *r;
    enum replicate_level level;
    struct lsm_batch *batch;
    u64 begin_ns, deadline_ns;
    u16 keyspace;
    u64 token;
    bool maybe_done;   /* by an attempt that was given up */
    bool spreads;      /* the batch has its version, and is durable here: write_spread */
    bool full;         /* the last attempt has not begun, for want of room before others */
    u64 full_until_ns; /* so long for room before those without whom W is met; 0: none lacks it */
};

/* When another attempt may do better. */
enum again {
    AGAIN_AT_ONCE,
    AGAIN_WITH_ROOM,  /* before those who are called */
    AGAIN_WITH_NEWER, /* when somebody's topology has come to us */
    AGAIN_LATER,      /* ... or they have got ours */
};

/* All operations in one partition of one shard and keyspace: what the caller promised. */
static bool
batch_first(const struct lsm_batch *batch, u16 *keyspace_out, u64 *token_out)
{
    struct bytes rest = buf_bytes(&batch->ops);
    struct lsm_op op;
    bool bad;
    if (batch->count == 0 || !lsm_op_next(&rest, &op, &bad)) return false;
    *keyspace_out = op.header.keyspace;
    *token_out = op.header.token;
    return true;
}

/* The sets and what each needs; who is not worth an attempt has failed already. */
static void
write_quorum(const struct write *w, const struct topology_row *row, struct quorum *out)
{
    const struct topology_keyspace *keyspace = &w->r->topology->keyspaces[w->keyspace];
    quorum_init(out);
    quorum_set_add(out, row->write, row->count,
                   replicate_need(w->level, keyspace->write_quorum, keyspace->replicas, row->places,
                                  row->count));
    if (row->next_count > 0)
        quorum_set_add(out, row->write_next, row->next_count,
                       replicate_need(w->level, keyspace->write_quorum, keyspace->replicas,
                                      row->next_places, row->next_count));
    for (u32 i = 0; i < out->count; i++)
        if (!is_alive(w->r, out->members[i])) out->answers[i] = QUORUM_NO;
}

/* Not we: what is written here is no hint for anybody, though we hold no replica of the keyspace.
 */
static bool
may_stand_in(const void *arg, u32 member)
{
    const struct replicator *r = arg;
    return member != r->self && is_alive(r, member);
}

/* Too few live. In a sloppy keyspace others may do. */
static bool
stood_in(const struct write *w, u32 partition, struct quorum *quorum, struct stand_ins *out)
{
    const struct topology *topology = w->r->topology;
    bool strict =
        w->level == REPLICATE_QUORUM || w->level == REPLICATE_ALL || w->level == REPLICATE_HOMES;
    if (!topology->keyspaces[w->keyspace].sloppy || strict) return false;
    stand_ins_choose(topology, partition, may_stand_in, w->r, quorum, out);
    if (quorum_state(quorum) == QUORUM_LOST) return false;
    return MARKED("cluster.replicate.stood_in", true);
}

static bool
takes_no_more(const struct write *w, const struct quorum *quorum, u32 index)
{
    u32 member = quorum->members[index], shard;
    return member != w->r->self && quorum->answers[index] == QUORUM_PENDING &&
           replicate_shard(w->r->topology, member, w->token, &shard) &&
           peer_calls_full(w->r->options.peers, member, shard);
}

/* Whether some of those who would be called can take no more, and are to be waited for: W cannot be
 * met without them, or not for long yet. */
static bool
lacks_room(struct write *w, const struct quorum *quorum)
{
    bool lacks = false;
    for (u32 i = 0; i < quorum->count; i++)
        lacks = lacks || takes_no_more(w, quorum, i);
    if (LIKELY(!lacks)) return false;
    struct quorum others = *quorum;
    for (u32 i = 0; i < quorum->count; i++)
        if (takes_no_more(w, quorum, i)) others.answers[i] = QUORUM_NO;
    if (quorum_state(&others) == QUORUM_LOST) return true;
    if (w->full_until_ns == 0) w->full_until_ns = io_now_ns() + FEW_FULL_NS;
    return io_now_ns() < w->full_until_ns;
}

/* ST_WOULD_WAIT: another attempt may do better, and when. */
static MAY_YIELD status
write_attempt(struct write *w, u64 *version_out, u64 *epoch_out, enum again *again_out)
{
    struct replicator *r = w->r;
    struct topology_row row;
    u32 partition;
    *again_out = AGAIN_LATER;
    *epoch_out = r->topology == NULL ? 0 : r->topology->epoch;
    if (!replicate_row(r, w->keyspace, w->token, &partition, &row)) return ST_CANCELED;
    if (!w->spreads && !topology_holds(r->topology, r->self, partition)) return ST_CANCELED;
    struct quorum quorum;
    struct stand_ins others;
    const struct stand_ins *stand_ins = NULL;
    write_quorum(w, &row, &quorum);
    if (quorum_state(&quorum) == QUORUM_LOST) {
        if (!stood_in(w, partition, &quorum, &others)) return ST_UNAVAILABLE;
        stand_ins = &others;
    } else if (lacks_room(w, &quorum)) {
        *again_out = AGAIN_WITH_ROOM;
        w->full = true;
        return ST_WOULD_WAIT;
    }
    w->full = false;
    w->full_until_ns = 0;

    /* No yield from the look at the topology to the calls. */
    u64 version = w->spreads ? w->batch->version : hlc_next(&r->hlc, io_wall_ms());
    w->batch->version = version;
    struct write_attempt *attempt =
        attempt_new(r, &quorum, stand_ins, w->batch, version, r->topology->epoch, w->deadline_ns);
    if (attempt == NULL) return ST_NO_MEMORY;
    attempt->merges = w->spreads;
    if (w->spreads) (void)quorum_answer(&attempt->quorum, r->self, QUORUM_YES);
    attempt_send(attempt, r->topology, w->keyspace, w->token, partition, false);
    attempt_own(attempt);
    attempt_wait(attempt);
    attempt_wait_full(attempt);

    status st;
    if (attempt->newer != 0) {
        r->stats.restamped++;
        *again_out = AGAIN_AT_ONCE;
        st = ST_WOULD_WAIT;
    } else if (attempt->epoch_seen > attempt->epoch) {
        *again_out = AGAIN_WITH_NEWER;
        st = ST_WOULD_WAIT;
    } else if (quorum_state(&attempt->quorum) == QUORUM_MET) {
        *version_out = version;
        r->stats.stood_in += stand_ins != NULL;
        st = ST_OK;
    } else if (attempt->wrong_epoch && quorum_state(&attempt->quorum) == QUORUM_LOST) {
        st = ST_WOULD_WAIT; /* a replica that is behind us: soon it is not */
    } else if (quorum_state(&attempt->quorum) == QUORUM_LOST &&
               r->topology->epoch > attempt->epoch) {
        /* Two of a row may have left by the end of a plan, and nobody asks that row any more. */
        MARK("cluster.replicate.row_is_over");
        *again_out = AGAIN_AT_ONCE;
        st = ST_WOULD_WAIT;
    } else {
        st = lost_why(&attempt->quorum, attempt->busy, attempt->full);
    }
    w->maybe_done =
        w->maybe_done || attempt->maybe_done || quorum_count(&attempt->quorum, QUORUM_PENDING) > 0;
    if (status_is(st, ST_WOULD_WAIT)) {
        attempt->given_up = attempt->decided = true;
    } else {
        attempt_decide(attempt, w->batch);
    }
    /* Nobody looks at the operations of what was given up. */
    if (attempt->given_up) attempt->batch = &attempt->taken;
    attempt_unref(attempt);
    return st;
}

/* No attempt begins any more. */
static status
ended(const struct write *w)
{
    if (w->r->closing) return ST_CLOSED;
    if (w->full) return MARKED("cluster.replicate.no_room", ST_OVERLOADED);
    return io_now_ns() < w->deadline_ns ? ST_UNAVAILABLE : ST_TIMED_OUT;
}

static MAY_YIELD status
write_until(struct write *w, struct coordinated *c, u64 *version_out)
{
    struct replicator *r = w->r;
    for (;;) {
        if (!stamp_await(r, w->begin_ns)) return ended(w);
        if (r->closing) return ended(w);
        /* Who asked has given up, and may have seen others' writes since: no stamp above those. */
        if (io_now_ns() >= w->begin_ns) return MARKED("cluster.replicate.too_late", ended(w));
        coordinated_end(c);
        coordinated_begin(r, c);
        u64 epoch;
        enum again again;
        status st = write_attempt(w, version_out, &epoch, &again);
        if (!status_is(st, ST_WOULD_WAIT)) return st;
        if (r->closing || io_now_ns() >= w->begin_ns) return ended(w);
        if (again == AGAIN_AT_ONCE) continue;
        if (again == AGAIN_WITH_ROOM)
            peer_room_await(r->options.peers, w->begin_ns);
        else if (!topology_await(r, epoch, again == AGAIN_WITH_NEWER, w->begin_ns))
            return ended(w);
    }
}

MAY_YIELD status
replicate_write(struct replicator *r, enum replicate_level level, struct lsm_batch *batch,
                u64 begin_ns, u64 deadline_ns, u64 *version_out)
{
    struct write w = {.r = r,
                      .level = level,
                      .batch = batch,
                      .begin_ns = MIN(begin_ns, deadline_ns),
                      .deadline_ns = deadline_ns};
    if (!batch_first(batch, &w.keyspace, &w.token)) return ST_INVALID;
    if (!fiber_gate_enter(&r->gate)) return ST_CLOSED;
    r->stats.writes++;
    struct coordinated c;
    coordinated_begin(r, &c);
    status st = write_until(&w, &c, version_out);
    coordinated_end(&c);
    fiber_gate_leave(&r->gate);
    if (ok(st)) return st;
    /* Whatever the reason: once it may have been done somewhere, nobody knows whether it was. */
    if (w.maybe_done) st = ST_UNKNOWN_OUTCOME;
    if (status_is(st, ST_CANCELED)) st = ST_WOULD_WAIT;
    if (status_is(st, ST_UNKNOWN_OUTCOME)) r->stats.unknown++;
    if (status_is(st, ST_UNAVAILABLE)) r->stats.unavailable++;
    return st;
}

bool
write_possible(const struct replicator *r, enum replicate_level level, u16 keyspace,
               const struct topology_row *row)
{
    struct write w = {.r = (struct replicator *)(uintptr_t)r, .level = level, .keyspace = keyspace};
    struct quorum quorum;
    write_quorum(&w, row, &quorum);
    return quorum_state(&quorum) != QUORUM_LOST;
}

MAY_YIELD status
write_spread(struct replicator *r, enum replicate_level level, struct lsm_batch *batch,
             struct coordinated *c, u64 deadline_ns, u64 *version_out)
{
    struct write w = {.r = r,
                      .level = level,
                      .batch = batch,
                      .begin_ns = deadline_ns, /* it has its version */
                      .deadline_ns = deadline_ns,
                      .spreads = true};
    if (!batch_first(batch, &w.keyspace, &w.token)) return ST_INVALID;
    return write_until(&w, c, version_out);
}

/* ---- mending ---- */

/* How many of the row must have a value so that every read by a majority meets it, and so every one
 * by the keyspace's R where that is as many. Reads by fewer are promised nothing of what others
 * have read: for them all replicas would have to have it, and one that is dead would end all reads.
 * Of two places one would do for every read, but not when its disk is lost: where what is
 * acknowledged survives that, what was read does, too. Of those who are asked this costs nothing
 * more; of the other set it would be a dead or slow gainer who ends, or delays, all reads. */
static u32
hold_need(const struct topology_keyspace *keyspace, u32 places, u32 count, bool asked)
{
    u32 read = topology_quorum(keyspace->replicas / 2 + 1u, keyspace->replicas, places, count);
    u32 write = topology_quorum(keyspace->write_quorum, keyspace->replicas, places, count);
    u32 need = MAX(places + 1 - MIN(read, places), asked ? MIN(write, 2u) : 1u);
    return CLAMP(need, 1u, MAX(count, 1u));
}

/* Who has it, in both sets while a plan is under way. */
static void
hold_quorum(const struct replicator *r, const struct topology_row *row, const struct mend *mend,
            struct quorum *out)
{
    const struct topology_keyspace *keyspace = &r->topology->keyspaces[mend->keyspace];
    quorum_init(out);
    quorum_set_add(out, row->write, row->count,
                   hold_need(keyspace, row->places, row->count, !row->read_next));
    if (row->next_count > 0)
        quorum_set_add(out, row->write_next, row->next_count,
                       hold_need(keyspace, row->next_places, row->next_count, row->read_next));
    for (u32 i = 0; i < mend->have_count; i++)
        (void)quorum_answer(out, mend->have[i], QUORUM_YES);
}

bool
replicate_held(const struct replicator *r, const struct topology_row *row, const struct mend *mend)
{
    struct quorum quorum;
    hold_quorum(r, row, mend, &quorum);
    return quorum_state(&quorum) == QUORUM_MET;
}

/* all: do not spare those of whom it is not known. */
static void
mend_quorum(const struct replicator *r, const struct topology_row *row, const struct mend *mend,
            bool all, struct quorum *out)
{
    hold_quorum(r, row, mend, out);
    /* Of the others only those who are known to lack it, unless these are too few. */
    struct quorum few = *out;
    for (u32 i = 0; i < few.count; i++) {
        bool lacks = false;
        for (u32 j = 0; j < mend->lack_count; j++)
            lacks = lacks || mend->lack[j] == few.members[i];
        if (few.answers[i] == QUORUM_PENDING && (!lacks || !is_alive(r, few.members[i])))
            few.answers[i] = QUORUM_NO;
    }
    bool enough = !all && quorum_state(&few) != QUORUM_LOST;
    for (u32 i = 0; i < out->count; i++)
        if (!is_alive(r, out->members[i]) && out->answers[i] == QUORUM_PENDING)
            out->answers[i] = QUORUM_NO;
    if (enough) *out = few;
}

static MAY_YIELD status
mend_attempt(struct replicator *r, const struct topology_row *row, u32 partition, u64 epoch,
             const struct mend *mend, bool all, u64 deadline_ns)
{
    struct lsm_batch batch;
    lsm_batch_init(&batch, r->options.budget);
    bool added = mend->found ? lsm_batch_put(&batch, mend->keyspace, mend->token, mend->key,
                                             mend->value, mend->expire_ms)
                             : lsm_batch_delete(&batch, mend->keyspace, mend->token, mend->key);
    batch.version = mend->version;
    struct quorum quorum;
    mend_quorum(r, row, mend, all, &quorum);
    struct write_attempt *attempt =
        added ? attempt_new(r, &quorum, NULL, &batch, mend->version, epoch, deadline_ns) : NULL;
    if (attempt == NULL) {
        lsm_batch_deinit(&batch);
        return ST_NO_MEMORY;
    }
    r->stats.repairs++;
    attempt->merges = mend->merges;
    attempt_send(attempt, r->topology, mend->keyspace, mend->token, partition, true);
    attempt_own(attempt);
    attempt_wait(attempt);
    bool met = quorum_state(&attempt->quorum) == QUORUM_MET;
    bool stale = attempt->epoch_seen > attempt->epoch;
    /* It is a read that fails for it, and may ask others. */
    status why = lost_why(&attempt->quorum, attempt->busy | attempt->full, 0);
    attempt_decide(attempt, &batch);
    attempt_unref(attempt);
    lsm_batch_deinit(&batch);
    if (met && !stale) return ST_OK;
    return stale ? ST_WOULD_WAIT : why;
}

MAY_YIELD status
replicate_mend(struct replicator *r, const struct topology_row *row, u32 partition, u64 epoch,
               const struct mend *mend, u64 deadline_ns)
{
    status st = mend_attempt(r, row, partition, epoch, mend, false, deadline_ns);
    /* Who was to be mended has failed: others may live. */
    bool over = r->closing || r->topology->epoch != epoch || io_now_ns() >= deadline_ns;
    bool failed = status_is(st, ST_UNAVAILABLE) || status_is(st, ST_OVERLOADED);
    if (!failed || over) return st;
    MARK("cluster.replicate.mend_others");
    return mend_attempt(r, row, partition, epoch, mend, true, deadline_ns);
}
