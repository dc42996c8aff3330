/* SPDX-License-Identifier: MIT
 *
 * replicate_serve.c -- the replica: what coordinators on other nodes ask for. See replicate.h.
 *
 * What memory can answer is answered in the callback; a write that was applied waits for the log
 * without a fiber; what must wait for disk or room copies its body and goes on on a fiber, of which
 * there are at most SERVE_FIBERS_MAX: more are refused.
 *
 * Nothing of a peer's bytes is believed. A refusal says that nothing was done.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "cluster/replicate_internal.h"
#include "io/io.h"
#include "lsm/batch.h"
#include "lsm/entry.h"

/* Keys of a batch that are looked at before it goes on on a fiber, which can pause. */
#define LOOK_OPS 64u
/* Less than WRITE_CALL_NS_MIN, by what clocks differ at the most (HLC_AHEAD_MS_MAX) and more. */
#define LATE_MS 1000u
static_assert(LATE_MS + HLC_AHEAD_MS_MAX < WRITE_CALL_NS_MIN / NS_PER_MS, "a call waits longer");
/* How long a set that is pulled may wait for the clock to have room for another stamp, and for room
 * in the store. */
#define STORE_NS (10 * NS_PER_S)

/* A request that is not answered yet. */
struct serve {
    struct replicator *r;
    struct peer_request *request;
    u64 epoch; /* of the request */
    u32 from;
    u8 opcode;
    u16 keyspace;
    struct bytes body; /* the transport's, or copy's */
    struct buf copy;
    /* a write */
    struct durable_wait wait;
    struct coordinated pin; /* while it is on a fiber: barriers wait for it */
    u64 newer;
    bool merges; /* the key keeps siblings */
    bool keeps;  /* for another member, as a stand-in */
    /* a digest that waits for the log */
    struct peer_found found;
};

static u64
own_epoch(const struct replicator *r)
{
    return r->topology == NULL ? 0 : r->topology->epoch;
}

static void
serve_free(struct serve *serve)
{
    struct replicator *r = serve->r;
    if (list_linked(&serve->pin.link)) coordinated_end(&serve->pin);
    buf_deinit(&serve->copy);
    mem_free(r->options.budget, serve, sizeof(*serve));
    r->serving--;
    if (r->closing) fiber_queue_wake_all(&r->idle);
}

static void
refuse(struct replicator *r, struct peer_request *request, enum native_status why)
{
    if (why == NATIVE_ST_WRONG_EPOCH) r->stats.wrong_epoch++;
    peer_reply(request, why, own_epoch(r), NULL, 0);
}

/* A keyspace with fewer replicas than others is on fewer of the partition's members. */
static bool
holds(const struct replicator *r, u16 keyspace, u32 partition)
{
    const struct topology *topology = r->topology;
    if (!topology_holds(topology, r->self, partition)) return false;
    if (keyspace >= LIMIT_KEYSPACES_CLIENT ||
        topology->keyspaces[keyspace].replicas >= topology->replicas)
        return true;
    struct topology_row row;
    topology_row(topology, keyspace, partition, &row);
    return topology_row_has_or_will(&row, r->self);
}

/* Whether what was asked for is ours to answer. */
static enum native_status
epoch_judge(const struct replicator *r, u64 epoch, u16 keyspace, u32 partition)
{
    const struct topology *topology = r->topology;
    if (topology == NULL || epoch < topology->stage_epoch_before) return NATIVE_ST_WRONG_EPOCH;
    if (partition >= topology->partition_count) return NATIVE_ST_INVALID;
    if (!holds(r, keyspace, partition)) return NATIVE_ST_WRONG_EPOCH;
    return NATIVE_ST_OK;
}

/* ---- writes ---- */

static void
wrote_reply(struct serve *serve)
{
    u8 bytes[PEER_REPLICA_HEAD_BYTES];
    struct peer_wrote wrote = {.newer = serve->newer};
    struct bytes part = BYTES(bytes, peer_wrote_encode(&wrote, bytes));
    serve->r->stats.replica_writes++;
    peer_reply(serve->request, NATIVE_ST_OK, own_epoch(serve->r), &part, 1);
}

static void
wrote_durable(struct durable_wait *wait, bool durable)
{
    struct serve *serve = CONTAINER_OF(wait, struct serve, wait);
    if (durable)
        wrote_reply(serve);
    else
        refuse(serve->r, serve->request, NATIVE_ST_UNKNOWN_OUTCOME);
    serve_free(serve);
}

/* The bytes are whoever has the body's, and are only read. */
static struct lsm_batch
batch_of(const struct peer_write *write)
{
    return (struct lsm_batch){
        .ops = {.data = (u8 *)(uintptr_t)write->ops.data, .size = write->ops.size},
        .count = write->count,
        .version = write->version,
    };
}

static bool
is_stale(const struct serve *serve, const struct peer_write *write)
{
    const struct replicator *r = serve->r;
    if (serve->merges) return false; /* sets are not collected: a late one finds what has seen it */
    if ((write->flags & PEER_WRITE_TREE) && replicate_session_is_open(r, write->session))
        return false;
    bool repair = (write->flags & PEER_WRITE_REPAIR) && !(write->flags & PEER_WRITE_TREE);
    return write_is_stale(r, serve->keyspace, write->version, write->ops, repair);
}

/* Checks and clocks; what is not ours, or no batch, is refused. */
static enum native_status
write_judge(struct serve *serve, const struct native_header *header, struct peer_write *out)
{
    struct replicator *r = serve->r;
    if (!ok(peer_write_decode(serve->body, out)) || serve->keyspace >= LIMIT_KEYSPACES_CLIENT)
        return NATIVE_ST_INVALID;
    if (out->flags & PEER_WRITE_STAND_IN)
        return keep_judge(r, serve->from, serve->keyspace, header->epoch, out);
    enum native_status judged = epoch_judge(r, header->epoch, serve->keyspace, out->partition);
    if (judged != NATIVE_ST_OK) return judged;
    serve->merges = (out->flags & PEER_WRITE_MERGE) != 0 || replicate_siblings(r, serve->keyspace);
    if (serve->merges && out->count != 1) return NATIVE_ST_INVALID;
    u32 count = r->topology->partition_count;
    u64 first = MAX(r->token_first, partition_token_first(out->partition, count));
    u64 last = MIN(r->token_last, partition_token_last(out->partition, count));
    if (!ok(lsm_ops_check(out->ops, out->count, serve->keyspace, first, last)))
        return NATIVE_ST_INVALID;
    if (is_stale(serve, out)) return MARKED("cluster.serve.stale", NATIVE_ST_CONFLICT);
    if (!version_observe(r, out->version, "write", serve->from)) return NATIVE_ST_INVALID;
    return NATIVE_ST_OK;
}

/* Whether whoever compares replicas by now may have taken it that nothing of this version comes any
 * more (A3 in trees_internal.h): what mends us is of any age, and so is what was on its way for
 * longer than its coordinator waited. */
static bool
is_late(const struct peer_write *write)
{
    return (write->flags & PEER_WRITE_REPAIR) != 0 ||
           hlc_wall_ms(write->version) + LATE_MS <= io_wall_ms();
}

/* Raises serve->newer by what the keys have. ST_WOULD_WAIT: not all could be looked at. */
static status
newest_try(struct serve *serve, const struct peer_write *write)
{
    struct bytes rest = write->ops;
    struct lsm_op op;
    bool bad;
    while (lsm_op_next(&rest, &op, &bad)) {
        u64 version, seq;
        status st = lsm_newest_try(serve->r->options.lsm, serve->keyspace, op.header.token, op.key,
                                   MAX(write->version, serve->newer), &version, &seq);
        if (ok(st)) serve->newer = version;
        if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return st;
    }
    return ST_OK;
}

static MAY_YIELD status
newest_wait(struct serve *serve, const struct peer_write *write)
{
    struct bytes rest = write->ops;
    struct lsm_op op;
    bool bad;
    while (lsm_op_next(&rest, &op, &bad)) {
        u64 version, seq;
        status st = lsm_newest(serve->r->options.lsm, serve->keyspace, op.header.token, op.key,
                               MAX(write->version, serve->newer), &version, &seq);
        if (ok(st)) serve->newer = version;
        if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return st;
        if (fiber_should_yield()) fiber_yield();
    }
    return ST_OK;
}

/* In place of a home replica that is gone: as a hint for it. */
static MAY_YIELD void
keep_on_fiber(struct serve *serve)
{
    struct replicator *r = serve->r;
    struct peer_write write;
    u64 seq;
    status st = peer_write_decode(serve->body, &write);
    if (ok(st)) st = keep_until(r, &write, peer_request_deadline_ns(serve->request), &seq);
    if (ok(st)) {
        durable_await(r, &serve->wait, seq);
        return;
    }
    refuse(r, serve->request, native_status_of(st));
    serve_free(serve);
}

/* On a fiber: first what is newer, then the write. Between the two others may write; those are
 * concurrent with this one. */
static MAY_YIELD void
write_on_fiber(struct serve *serve)
{
    struct replicator *r = serve->r;
    struct peer_write write;
    status st = peer_write_decode(serve->body, &write);
    if (ok(st) && io_now_ns() >= peer_request_deadline_ns(serve->request)) st = ST_TIMED_OUT;
    if (ok(st) && !serve->merges && !(write.flags & PEER_WRITE_REPAIR))
        st = newest_wait(serve, &write);
    /* The partition may have gone to others meanwhile, and what is left of it here was removed. Or
     * what hides it was collected. */
    bool held = !ok(st) || holds(r, serve->keyspace, write.partition);
    if (ok(st) && (!held || is_stale(serve, &write))) {
        refuse(r, serve->request, held ? NATIVE_ST_CONFLICT : NATIVE_ST_WRONG_EPOCH);
        serve_free(serve);
        return;
    }
    struct lsm_batch batch;
    u64 seq;
    if (ok(st)) {
        batch = batch_of(&write);
        u64 deadline_ns = peer_request_deadline_ns(serve->request);
        st = serve->merges ? siblings_merge_op(r, &batch, serve->from, deadline_ns, &seq)
                           : lsm_write_until(r->options.lsm, &batch, deadline_ns, &seq);
    }
    /* When it is here, not before: it may have waited for room. */
    if (ok(st) && is_late(&write)) repair_note(r, write.partition);
    if (status_is(st, ST_CORRUPT) || status_is(st, ST_INVALID)) MARK("cluster.serve.bad_state");
    if (!ok(st)) {
        refuse(r, serve->request, native_status_of(st));
        serve_free(serve);
        return;
    }
    durable_await(r, &serve->wait, seq);
}

/* ---- reads ---- */

static void
found_reply(struct replicator *r, struct peer_request *request, const struct peer_found *found)
{
    u8 head[PEER_REPLICA_HEAD_BYTES];
    struct bytes parts[] = {BYTES(head, peer_found_head(found, head)), found->value};
    r->stats.replica_reads++;
    peer_reply(request, NATIVE_ST_OK, own_epoch(r), parts, ARRAY_COUNT(parts));
}

static enum native_status
read_judge(const struct serve *serve, const struct native_header *header, struct peer_read *out)
{
    struct replicator *r = serve->r;
    if (!ok(peer_read_decode(serve->body, out)) || serve->keyspace >= LIMIT_KEYSPACES_CLIENT)
        return NATIVE_ST_INVALID;
    enum native_status judged = epoch_judge(r, header->epoch, serve->keyspace, out->partition);
    if (judged != NATIVE_ST_OK) return judged;
    u64 token = hash_token(out->key);
    if (token < r->token_first || token > r->token_last ||
        token_partition(token, r->topology->partition_count) != out->partition)
        return NATIVE_ST_INVALID;
    return NATIVE_ST_OK;
}

static void
digest_durable(struct durable_wait *wait, bool durable)
{
    struct serve *serve = CONTAINER_OF(wait, struct serve, wait);
    if (durable)
        found_reply(serve->r, serve->request, &serve->found);
    else
        refuse(serve->r, serve->request, NATIVE_ST_IO_ERROR);
    serve_free(serve);
}

/* Answers when the log has what the digest tells of (R1). */
static void
digest_answer(struct serve *serve, u64 version, u64 seq)
{
    serve->found = (struct peer_found){.version = version};
    serve->wait.done = digest_durable;
    durable_await(serve->r, &serve->wait, seq);
}

/* From memory; false: it is there, but not now. */
static bool
read_at_once(struct serve *serve, const struct peer_read *read)
{
    struct replicator *r = serve->r;
    struct lsm *lsm = r->options.lsm;
    u64 token = hash_token(read->key);
    if (read->want == PEER_WANT_DIGEST) {
        u64 version = 0, seq = 0;
        status st = lsm_newest_try(lsm, serve->keyspace, token, read->key, 0, &version, &seq);
        if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return false;
        digest_answer(serve, version, seq);
        return true;
    }
    struct lsm_value value;
    if (!ok(lsm_get_try(lsm, serve->keyspace, token, read->key, &value)))
        return false; /* what is absent is asked for twice: see own_read */
    if (value.seq > lsm_durable_seq(lsm)) return false;
    struct peer_found found = {.version = value.version,
                               .expire_ms = value.expire_ms,
                               .found = true,
                               .value = value.value};
    found_reply(r, serve->request, &found);
    serve_free(serve);
    return true;
}

static MAY_YIELD void
value_on_fiber(struct serve *serve, const struct peer_read *read)
{
    struct replicator *r = serve->r;
    struct own_read own;
    status st = own_read(r, serve->keyspace, hash_token(read->key), read->key, &own);
    if (ok(st)) {
        st = lsm_wait_durable(r->options.lsm, own.seq);
        struct peer_found found = {.version = own.version,
                                   .expire_ms = own.expire_ms,
                                   .found = own.found,
                                   .value = own.found ? own.value.value : BYTES(NULL, 0)};
        if (ok(st)) found_reply(r, serve->request, &found);
        if (own.found) lsm_value_release(&own.value);
    }
    if (!ok(st)) refuse(r, serve->request, native_status_of(st));
    serve_free(serve);
}

static MAY_YIELD void
read_on_fiber(struct serve *serve)
{
    struct replicator *r = serve->r;
    struct peer_read read;
    u64 version = 0, seq = 0;
    status st = peer_read_decode(serve->body, &read);
    if (ok(st) && io_now_ns() >= peer_request_deadline_ns(serve->request)) st = ST_TIMED_OUT;
    if (ok(st) && read.want == PEER_WANT_VALUE) {
        value_on_fiber(serve, &read);
        return;
    }
    if (ok(st))
        st = lsm_newest(r->options.lsm, serve->keyspace, hash_token(read.key), read.key, 0,
                        &version, &seq);
    if (ok(st) || status_is(st, ST_NOT_FOUND)) {
        digest_answer(serve, version, seq);
        return;
    }
    refuse(r, serve->request, native_status_of(st));
    serve_free(serve);
}

/* ---- both ---- */

static MAY_YIELD void
serve_main(void *arg)
{
    struct serve *serve = arg;
    struct replicator *r = serve->r;
    if (serve->keeps)
        keep_on_fiber(serve);
    else if (serve->opcode == PEER_WRITE)
        write_on_fiber(serve);
    else
        read_on_fiber(serve);
    r->serving_fibers--;
}

/* Goes on on a fiber, with a copy of the body. */
static void
serve_later(struct serve *serve)
{
    struct replicator *r = serve->r;
    enum native_status why = NATIVE_ST_OVERLOADED;
    if (r->serving_fibers < SERVE_FIBERS_MAX) {
        if (!buf_append(&serve->copy, serve->body.data, serve->body.size)) {
            why = NATIVE_ST_NO_MEMORY;
        } else {
            serve->body = buf_bytes(&serve->copy);
            if (ok(fiber_spawn(FIBER_FOREGROUND, "replica", serve_main, serve))) {
                r->serving_fibers++;
                /* Accepted by the present topology, and written under a later one: whoever goes by
                 * the epoch (a barrier, a source of what others gain) must know of it. */
                if (serve->opcode == PEER_WRITE) coordinated_begin_at(r, &serve->pin, serve->epoch);
                return;
            }
        }
    }
    MARK("cluster.serve.refused");
    refuse(r, serve->request, why);
    serve_free(serve);
}

static void
keep(struct serve *serve, const struct peer_write *write)
{
    struct replicator *r = serve->r;
    u64 seq;
    status st = keep_try(r, write, &seq);
    if (ok(st)) {
        durable_await(r, &serve->wait, seq);
    } else if (status_is(st, ST_WOULD_WAIT)) {
        serve->keeps = true;
        serve_later(serve);
    } else {
        refuse(r, serve->request, native_status_of(st));
        serve_free(serve);
    }
}

static struct serve *
serve_new(struct replicator *r, struct peer_request *request, const struct peer_identity *from,
          const struct native_header *header, struct bytes body)
{
    if (r->closing) {
        refuse(r, request, NATIVE_ST_CLOSING);
        return NULL;
    }
    struct serve *serve = mem_alloc(r->options.budget, sizeof(*serve));
    if (serve == NULL) {
        refuse(r, request, NATIVE_ST_NO_MEMORY);
        return NULL;
    }
    *serve = (struct serve){.r = r,
                            .request = request,
                            .epoch = header->epoch,
                            .from = from->member,
                            .opcode = header->opcode,
                            .keyspace = header->keyspace,
                            .body = body,
                            .wait = {.done = wrote_durable}};
    list_init(&serve->pin.link);
    buf_init(&serve->copy, r->options.budget);
    r->serving++;
    return serve;
}

static void
on_write(void *arg, struct peer_request *request, const struct peer_identity *from,
         const struct native_header *header, struct bytes body)
{
    if (request == NULL) return; /* nobody would learn what became of it */
    struct replicator *r = arg;
    struct serve *serve = serve_new(r, request, from, header, body);
    if (serve == NULL) return;
    struct peer_write write;
    enum native_status judged = write_judge(serve, header, &write);
    if (judged != NATIVE_ST_OK) {
        refuse(r, request, judged);
        serve_free(serve);
        return;
    }
    if (write.flags & PEER_WRITE_STAND_IN) {
        keep(serve, &write);
        return;
    }
    bool look = !(write.flags & PEER_WRITE_REPAIR);
    if (serve->merges || (look && write.count > LOOK_OPS) ||
        (look && !ok(newest_try(serve, &write)))) {
        serve_later(serve);
        return;
    }
    struct lsm_batch batch = batch_of(&write);
    u64 seq;
    status st = lsm_write_try(r->options.lsm, &batch, &seq);
    if (ok(st)) {
        if (is_late(&write)) repair_note(r, write.partition);
        durable_await(r, &serve->wait, seq);
    } else if (status_is(st, ST_WOULD_WAIT)) {
        serve_later(serve);
    } else {
        refuse(r, request, native_status_of(st));
        serve_free(serve);
    }
}

static void
on_read(void *arg, struct peer_request *request, const struct peer_identity *from,
        const struct native_header *header, struct bytes body)
{
    if (request == NULL) return;
    struct replicator *r = arg;
    struct serve *serve = serve_new(r, request, from, header, body);
    if (serve == NULL) return;
    struct peer_read read;
    enum native_status judged = read_judge(serve, header, &read);
    if (judged != NATIVE_ST_OK) {
        refuse(r, request, judged);
        serve_free(serve);
    } else if (!read_at_once(serve, &read)) {
        serve_later(serve);
    }
}

MAY_YIELD status
replicate_store(struct replicator *r, u16 keyspace, u32 partition, const struct lsm_batch *batch,
                u64 *seq_out)
{
    if (!holds(r, keyspace, partition)) return ST_CANCELED;
    if (keyspace >= LIMIT_KEYSPACES_CLIENT || !version_observe(r, batch->version, "tree", 0))
        return ST_INVALID;
    status st;
    if (!replicate_siblings(r, keyspace)) {
        st = lsm_write(r->options.lsm, batch, seq_out);
    } else {
        if (!fiber_gate_enter(&r->gate)) return ST_CLOSED;
        st = siblings_merge_op(r, batch, 0, io_now_ns() + STORE_NS, seq_out);
        fiber_gate_leave(&r->gate);
    }
    if (ok(st)) repair_note(r, partition);
    return st;
}

void
serve_open(struct replicator *r)
{
    peers_handler_set(r->options.peers, PEER_WRITE, on_write, r);
    peers_handler_set(r->options.peers, PEER_READ, on_read, r);
}

void
serve_close(struct replicator *r)
{
    peers_handler_set(r->options.peers, PEER_WRITE, NULL, NULL);
    peers_handler_set(r->options.peers, PEER_READ, NULL, NULL);
}
