/* SPDX-License-Identifier: MIT
 *
 * native_write.c -- GET, TTL and the writes of the native protocol: PUT, DELETE, BATCH, EXPIRE.
 *
 * A write's reply names the version that it got, which is known only when it is visible; so the
 * reply is made in exec's committed hook, and with it the outcome is kept for retries, before the
 * locks of the keys are given back: a retry that was waiting for them finds it.
 */
#include "server/native.h"

#include "base/fault.h"
#include "server/session.h"

/* ---- frames ---- */

bool
native_decode(struct exec *x, struct native_request *out)
{
    struct bytes frame = x->args[0];
    struct native_header header;
    const char *error = "malformed request";
    status st = native_header_decode(frame, &header);
    CHECK(ok(st)); /* the session has checked it */
    struct bytes body = BYTES(frame.data + NATIVE_HEADER_BYTES, frame.size - NATIVE_HEADER_BYTES);
    st = native_request_decode(&header, body, out, &error);
    CHECK(ok(st));
    return true;
}

void
native_reply(struct exec *x, const struct native_reply *reply)
{
    if (!native_reply_encode(x->reply->out, reply)) x->reply->failed = true;
}

void
native_error(struct exec *x, const struct native_request *request, enum native_status native_status,
             u64 detail, const char *text)
{
    if (!native_reply_error(x->reply->out, &request->header, native_status, detail, native_epoch(),
                            text))
        x->reply->failed = true;
}

void
native_failure(struct bytes frame, struct resp_writer *reply, status why)
{
    native_refusal(frame, reply, why, status_text(why));
}

void
native_refusal(struct bytes frame, struct resp_writer *reply, status why, const char *words)
{
    struct native_header header;
    status st = native_header_decode(frame, &header);
    CHECK(ok(st));
    enum native_status code = native_status_of(why);
    if (status_is(why, ST_CORRUPT)) code = NATIVE_ST_DAMAGED;
    if (!native_reply_error(reply->out, &header, code, 0, native_epoch(), words))
        reply->failed = true;
}

static enum native_status
status_of_reply(struct bytes reply)
{
    struct native_header header;
    status st = native_header_decode(reply, &header);
    return ok(st) ? (enum native_status)header.status : NATIVE_ST_OK;
}

bool
native_reply_failed(struct bytes reply)
{
    enum native_status code = status_of_reply(reply);
    return code != NATIVE_ST_OK && code != NATIVE_ST_NOT_FOUND && code != NATIVE_ST_CONFLICT;
}

enum server_error_kind
native_error_kind(struct bytes reply)
{
    enum native_status code = status_of_reply(reply);
    if (code == NATIVE_ST_OVERLOADED || code == NATIVE_ST_TIMED_OUT) return SERVER_ERROR_BUSY;
    if (code == NATIVE_ST_NO_MEMORY || code == NATIVE_ST_FULL) return SERVER_ERROR_OOM;
    if (code == NATIVE_ST_NO_SPACE || code == NATIVE_ST_READ_ONLY ||
        code == NATIVE_ST_UNKNOWN_OUTCOME)
        return SERVER_ERROR_MISCONF;
    if (code == NATIVE_ST_CROSS_SLOT) return SERVER_ERROR_CROSSSLOT;
    if (code == NATIVE_ST_UNAUTHENTICATED) return SERVER_ERROR_NOAUTH;
    return SERVER_ERROR_OTHER;
}

bool
native_too_late(struct bytes frame, const struct request *request)
{
    struct native_header header;
    status st = native_header_decode(frame, &header);
    return ok(st) && header.timeout_ms != 0 &&
           io_clock_ns() > request->start_ns + header.timeout_ms * NS_PER_MS;
}

static struct native_reply
reply_to(const struct native_request *request)
{
    struct native_reply reply;
    memset(&reply, 0, sizeof(reply));
    reply.header = native_reply_header(&request->header, native_epoch());
    return reply;
}

/* ---- idempotency ---- */

/* An age was measured by another machine's clock, which may be wrong by one part in so many. */
#define CLOCKS_DIFFER 1000u
#define DONE_BYTES    (2 * NATIVE_IDS * sizeof(struct native_done))

static u32
bucket_of(const struct native_id *id)
{
    return (u32)(hash_bytes(id, sizeof(*id), 0x6964) % NATIVE_ID_BUCKETS);
}

/* No wall clock, which may be set. */
static u64
steady_ms(void)
{
    return io_now_ns() / NS_PER_MS;
}

static struct native_done *
find_done(struct native_state *state, const struct native_id *id)
{
    for (u32 at = state->buckets[bucket_of(id)]; at != 0;) {
        struct native_done *done = &state->done[at - 1];
        if (memcmp(&done->id, id, sizeof(*id)) == 0) return done;
        at = done->next;
    }
    return NULL;
}

static void
unlink_done(struct native_state *state, u32 index)
{
    struct native_done *done = &state->done[index];
    if (!native_id_given(&done->id)) return;
    u32 *at = &state->buckets[bucket_of(&done->id)];
    while (*at != index + 1) {
        CHECK(*at != 0);
        at = &state->done[*at - 1].next;
    }
    *at = done->next;
    memset(done, 0, sizeof(*done));
}

static void
forget(struct native_state *state, u32 index)
{
    state->forgotten_ms = MAX(state->forgotten_ms, state->done[index].at_ms);
    state->retry_forgotten_ms = MAX(state->retry_forgotten_ms, state->done[index].before_ms);
    unlink_done(state, index);
}

/* Where the next outcome goes: first attempts and retries have a ring each. */
static u32
place_of_next(struct native_state *state, bool retry)
{
    /* As if the rings were short. */
    if (BUGGIFY("server.native.forgets_early")) state->next = 0;
    if (BUGGIFY("server.native.forgets_retries")) {
        state->retry_next = 0;
        forget(state, NATIVE_IDS);
    }
    u32 *next = retry ? &state->retry_next : &state->next;
    u32 index = (retry ? NATIVE_IDS : 0) + *next;
    *next = (*next + 1) % NATIVE_IDS;
    forget(state, index);
    return index;
}

static void
keep_done(struct exec *x, const struct native_request *request, enum native_status outcome, u64 seq,
          u64 version, bool existed)
{
    if (!native_id_given(&request->id)) return;
    struct native_state *state = x->shard->native;
    u32 age_ms = request->header.age_ms;
    u64 now = steady_ms();
    u32 index = place_of_next(state, age_ms != 0);
    u32 *bucket = &state->buckets[bucket_of(&request->id)];
    state->done[index] = (struct native_done){.id = request->id,
                                              .at_ms = now,
                                              .seq = seq,
                                              .version = version,
                                              .outcome = (u8)outcome,
                                              .existed = existed,
                                              .next = *bucket};
    if (age_ms != 0) {
        u64 least_ms = age_ms - age_ms / CLOCKS_DIFFER - 1;
        state->done[index].before_ms = now - MIN(now, least_ms) + 1;
    }
    *bucket = index + 1;
}

bool
native_state_init(struct shard *shard)
{
    shard->native = mem_alloc_zero(io_budget(), sizeof(*shard->native));
    if (shard->native == NULL) return false;
    shard->native->begun_ms = steady_ms();
    shard->native->done = mem_alloc_zero(io_budget(), DONE_BYTES);
    return shard->native->done != NULL;
}

void
native_state_deinit(struct shard *shard)
{
    if (shard->native == NULL) return;
    if (shard->native->done != NULL) mem_free(io_budget(), shard->native->done, DONE_BYTES);
    mem_free(io_budget(), shard->native, sizeof(*shard->native));
    shard->native = NULL;
}

/* ---- reading ---- */

MAY_YIELD void
native_get(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    struct exec_value value;
    enum exec_found found = exec_get_in(x, request.header.keyspace, request.get.key, true, &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT) {
        native_error(x, &request, NATIVE_ST_NOT_FOUND, 0, "");
        return;
    }
    struct native_reply reply = reply_to(&request);
    reply.get.version = value.version;
    reply.get.expire_ms = value.expire_ms;
    reply.get.value = value.value;
    native_reply(x, &reply);
}

MAY_YIELD void
native_ttl(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    struct exec_value value;
    enum exec_found found = exec_get_in(x, request.header.keyspace, request.ttl.key, true, &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT) {
        native_error(x, &request, NATIVE_ST_NOT_FOUND, 0, "");
        return;
    }
    struct native_reply reply = reply_to(&request);
    reply.ttl.version = value.version;
    reply.ttl.expire_ms = value.expire_ms;
    if (value.expire_ms > x->now_ms) reply.ttl.remaining_ms = value.expire_ms - x->now_ms;
    native_reply(x, &reply);
}

/* ---- writing ---- */

static struct bytes
last_key(const struct native_request *request)
{
    if (request->header.opcode == NATIVE_EXPIRE) return request->expire.key;
    if (request->header.opcode == NATIVE_GET_SIBLINGS) return request->get.key;
    if (request->header.opcode == NATIVE_PUT_SIBLINGS) return request->siblings.key;
    if (request->header.opcode != NATIVE_BATCH) return request->op.key;
    struct native_op op = {.kind = 0};
    struct bytes ops = request->batch.ops;
    while (native_batch_next(&ops, &op)) {
    }
    return op.key;
}

static void
reply_written(struct exec *x, const struct native_request *request, u64 version, bool existed,
              u16 flags)
{
    struct native_reply reply = reply_to(request);
    reply.header.flags |= flags;
    reply.written.version = version;
    reply.written.existed = existed;
    native_reply(x, &reply);
}

/* x->extra: non-NULL when a deleted key was there. */
static void
committed(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    struct bytes key = last_key(&request);
    struct lsm_value value;
    memset(&value, 0, sizeof(value));
    if (x->shard->cluster != NULL) {
        reply_written(x, &request, x->version, x->extra != NULL, 0);
        keep_done(x, &request, NATIVE_ST_OK, 0, x->version, x->extra != NULL);
        return;
    }
    /* It was written a moment ago, so it is in the memtable: no wait, and also found when it is a
     * tombstone (the version is filled in then, too). */
    status st = lsm_get_try(x->shard->lsm, request.header.keyspace, hash_token(key), key, &value);
    u64 version = ok(st) || status_is(st, ST_NOT_FOUND) ? value.version : 0;
    if (ok(st)) lsm_value_release(&value);
    bool existed = x->extra != NULL;
    reply_written(x, &request, version, existed, 0);
    keep_done(x, &request, NATIVE_ST_OK, x->seq, version, existed);
}

/* Whether it would do twice what it did once. */
static bool
is_repeatable(const struct native_request *request)
{
    u8 opcode = request->header.opcode;
    if (opcode == NATIVE_PUT || opcode == NATIVE_DELETE)
        return request->op.condition == NATIVE_IF_ANY;
    if (opcode != NATIVE_BATCH) return false;
    struct native_op op = {.kind = 0};
    struct bytes ops = request->batch.ops;
    bool repeatable = true;
    while (native_batch_next(&ops, &op))
        repeatable = repeatable && op.condition == NATIVE_IF_ANY;
    return repeatable;
}

/* Replicas may have it or not. What may be done twice is done again when it comes again; for the
 * rest that stays the answer. */
static void
undecided(struct exec *x)
{
    struct native_request request;
    if (native_decode(x, &request) && !is_repeatable(&request))
        keep_done(x, &request, NATIVE_ST_UNKNOWN_OUTCOME, 0, 0, false);
}

static void
hooks_set(struct exec *x)
{
    x->committed = committed;
    x->undecided = undecided;
    x->extra = NULL;
}

/* Whether an id that is not known may be one that was forgotten: the write was first sent so long
 * ago that its outcome may have been among those. Its age is that at the moment when it was sent
 * again; how long it has been under way since, nobody knows, but no longer than its connection is
 * there. (A client sends nothing again before it has heard on that connection, from HELLO, that it
 * leads to the same process.) And an age may be rounded. */
static u64
first_sent_ms(u32 age_ms, u64 connected_ns)
{
    u64 now = steady_ms();
    u64 under_way_ms = now - MIN(now, connected_ns / NS_PER_MS);
    u64 elapsed_ms = (u64)age_ms + age_ms / CLOCKS_DIFFER + under_way_ms + 1;
    return now - MIN(now, elapsed_ms);
}

static bool
may_be_forgotten(const struct exec *x, u32 age_ms)
{
    const struct native_state *state = x->shard->native;
    return state->forgotten_ms != 0 &&
           first_sent_ms(age_ms, x->connected_ns) <= state->forgotten_ms;
}

u64
native_first_ns(u32 age_ms, u64 connected_ns)
{
    return MAX(first_sent_ms(age_ms, connected_ns) * NS_PER_MS, 1u);
}

/* In a cluster: whether an id that is not known here may be known, or have been, elsewhere: to the
 * member that its node had run it by before, or to the process that was here before. */
static bool
may_be_elsewhere(const struct exec *x, const struct native_request *request)
{
    if (x->shard->server->cluster == NULL || is_repeatable(request)) return false;
    u64 sent_ms = first_sent_ms(request->header.age_ms, x->connected_ns);
    return x->moved || sent_ms <= x->shard->native->begun_ms;
}

/* The same of a first attempt: only a retry can have been done before it. It was sent no earlier
 * than its connection was made; so it was sent after all of which a retry was forgotten, or it came
 * on a connection that is older than one of those. */
static bool
retry_may_be_forgotten(const struct exec *x)
{
    u64 forgotten_ms = x->shard->native->retry_forgotten_ms;
    return forgotten_ms != 0 && x->connected_ns / NS_PER_MS <= forgotten_ms;
}

/* The answers that say that nothing was written, and never will be. */
static void
refuse_done(struct exec *x, const struct native_request *request, enum native_status outcome,
            u64 version, u16 flags)
{
    bool conflict = outcome == NATIVE_ST_CONFLICT;
    struct native_reply reply = reply_to(request);
    reply.header.flags |= flags;
    reply.header.status = (u16)outcome;
    reply.error.detail = version;
    reply.error.text = conflict ? BYTES_LITERAL("condition not met") : BYTES(NULL, 0);
    native_reply(x, &reply);
}

/* True: this id was answered before, and is again; or nobody knows whether it was. */
static bool
replayed(struct exec *x, const struct native_request *request)
{
    if (!native_id_given(&request->id)) return false;
    const struct native_done *done = find_done(x->shard->native, &request->id);
    if (done == NULL) {
        u32 age_ms = request->header.age_ms;
        if (age_ms == 0) {
            if (!retry_may_be_forgotten(x)) return false;
            native_error(x, request, NATIVE_ST_CLOSING, 0,
                         "this connection is too old for writes with an id: open another one");
            return true;
        }
        const char *why = "sent again, and this server may have forgotten the first attempt";
        if (!may_be_forgotten(x, age_ms)) {
            if (!may_be_elsewhere(x, request)) return false;
            MARK("server.native.maybe_done_elsewhere");
            why = "sent again, and another node may have done the first attempt";
        }
        native_error(x, request, NATIVE_ST_UNKNOWN_OUTCOME, 0, why);
        return true;
    }
    if (done->outcome == NATIVE_ST_UNKNOWN_OUTCOME) {
        native_error(x, request, NATIVE_ST_UNKNOWN_OUTCOME, 0,
                     "sent again, and nobody knows what became of the first attempt");
        return true;
    }
    x->seq = MAX(x->seq, done->seq);
    if (done->outcome != NATIVE_ST_OK) {
        refuse_done(x, request, (enum native_status)done->outcome, done->version,
                    NATIVE_FLAG_REPLAYED);
        return true;
    }
    reply_written(x, request, done->version, done->existed, NATIVE_FLAG_REPLAYED);
    return true;
}

/* Checks the condition and adds the write; false: stop, replied or failed. */
MAY_YIELD static bool
apply(struct exec *x, const struct native_request *request, const struct native_op *op,
      bool *existed)
{
    u16 keyspace = request->header.keyspace;
    struct exec_value old = {.version = 0};
    enum exec_found found = EXEC_ABSENT;
    if (op->condition != NATIVE_IF_ANY || op->expiry == NATIVE_EXPIRY_KEEP) {
        found = exec_get_in(x, keyspace, op->key, false, &old);
        if (found == EXEC_STOP) return false;
    }
    bool holds = true;
    switch ((enum native_condition)op->condition) {
    case NATIVE_IF_ANY:
        break;
    case NATIVE_IF_ABSENT:
        holds = found == EXEC_ABSENT;
        break;
    case NATIVE_IF_PRESENT:
        holds = found == EXEC_FOUND;
        break;
    case NATIVE_IF_VERSION:
        holds = found == EXEC_FOUND && old.version == op->version;
        break;
    }
    if (!holds) {
        x->op_count = 0; /* all or nothing: what the batch has added before is dropped */
        x->ops.size = 0;
        x->op_index.size = 0;
        x->committed = NULL;
        u64 version = found == EXEC_FOUND ? old.version : 0;
        refuse_done(x, request, NATIVE_ST_CONFLICT, version, 0);
        keep_done(x, request, NATIVE_ST_CONFLICT, x->seq, version, false);
        return false;
    }
    if (found == EXEC_FOUND) *existed = true;
    if (op->kind == NATIVE_OP_DELETE) return exec_delete_in(x, keyspace, op->key);
    u64 expire_ms = 0;
    switch ((enum native_expiry)op->expiry) {
    case NATIVE_EXPIRY_NONE:
        break;
    case NATIVE_EXPIRY_AFTER:
        if (__builtin_add_overflow(x->now_ms, op->expiry_ms, &expire_ms)) expire_ms = UINT64_MAX;
        break;
    case NATIVE_EXPIRY_AT:
        expire_ms = MAX(op->expiry_ms, 1u);
        break;
    case NATIVE_EXPIRY_KEEP:
        expire_ms = found == EXEC_FOUND ? old.expire_ms : 0;
        break;
    }
    return exec_put_in(x, keyspace, op->key, op->value, expire_ms);
}

MAY_YIELD static void
write_one(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request) || replayed(x, &request)) return;
    bool existed = false;
    hooks_set(x);
    if (!apply(x, &request, &request.op, &existed)) return;
    if (request.op.kind == NATIVE_OP_DELETE && existed) x->extra = x;
}

MAY_YIELD void
native_put(struct exec *x)
{
    write_one(x);
}

MAY_YIELD void
native_delete(struct exec *x)
{
    write_one(x);
}

MAY_YIELD void
native_batch(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request) || replayed(x, &request)) return;
    hooks_set(x);
    struct native_op op;
    struct bytes ops = request.batch.ops;
    bool existed = false;
    while (native_batch_next(&ops, &op))
        if (!apply(x, &request, &op, &existed)) return;
}

MAY_YIELD void
native_get_siblings(struct exec *x)
{
    struct native_request request;
    const struct dvvset *set;
    if (!native_decode(x, &request) ||
        !exec_get_siblings(x, request.header.keyspace, request.get.key, &set))
        return;
    struct buf context, values;
    buf_init(&context, x->budget);
    buf_init(&values, x->budget);
    struct native_reply reply = reply_to(&request);
    reply.siblings.version = x->replicated.version;
    status st = dvv_vector_encode(dvvset_context(set), &context);
    for (u32 i = 0; i < set->count && ok(st); i++) {
        const struct dvv_value *value = &set->values[i];
        if (value->flags & DVV_DELETED) continue;
        struct native_sibling sibling = {.version = value->version, .value = value->data};
        if (!native_sibling_add(&values, &sibling)) st = ST_NO_MEMORY;
        reply.siblings.count++;
    }
    reply.siblings.context = buf_bytes(&context);
    reply.siblings.values = buf_bytes(&values);
    if (ok(st))
        native_reply(x, &reply);
    else
        exec_fail(x, st);
    buf_deinit(&context);
    buf_deinit(&values);
}

MAY_YIELD void
native_put_siblings(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request) || replayed(x, &request)) return;
    hooks_set(x);
    bool puts = request.siblings.kind == NATIVE_OP_PUT;
    if (!exec_put_siblings(x, request.header.keyspace, request.siblings.key,
                           request.siblings.context, puts ? &request.siblings.value : NULL))
        return;
}

MAY_YIELD void
native_expire(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request) || replayed(x, &request)) return;
    struct exec_value value;
    enum exec_found found =
        exec_get_in(x, request.header.keyspace, request.expire.key, false, &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT) {
        refuse_done(x, &request, NATIVE_ST_NOT_FOUND, 0, 0);
        keep_done(x, &request, NATIVE_ST_NOT_FOUND, x->seq, 0, false);
        return;
    }
    u64 expire_ms = 0;
    if (request.expire.expiry == NATIVE_EXPIRY_AFTER &&
        __builtin_add_overflow(x->now_ms, request.expire.expiry_ms, &expire_ms))
        expire_ms = UINT64_MAX;
    if (request.expire.expiry == NATIVE_EXPIRY_AT) expire_ms = MAX(request.expire.expiry_ms, 1u);
    struct bytes copy;
    if (!exec_copy(x, value.value, &copy)) return;
    hooks_set(x);
    if (!exec_put_in(x, request.header.keyspace, request.expire.key, copy, expire_ms)) return;
}

bool
native_token(const struct native_request *request, u64 *token_out, u32 *keys_out)
{
    switch ((enum native_opcode)request->header.opcode) {
    case NATIVE_GET:
    case NATIVE_TTL:
        *token_out = hash_token(request->get.key);
        return true;
    case NATIVE_PUT:
    case NATIVE_DELETE:
        *token_out = hash_token(request->op.key);
        return true;
    case NATIVE_GET_SIBLINGS:
        *token_out = hash_token(request->get.key);
        return true;
    case NATIVE_PUT_SIBLINGS:
        *token_out = hash_token(request->siblings.key);
        return true;
    case NATIVE_EXPIRE:
        *token_out = hash_token(request->expire.key);
        return true;
    case NATIVE_BATCH: {
        struct native_op op;
        struct bytes ops = request->batch.ops;
        u32 keys = 0;
        while (native_batch_next(&ops, &op)) {
            u64 token = hash_token(op.key);
            if (keys++ != 0 && token_slot(token) != token_slot(*token_out)) return false;
            *token_out = token;
        }
        *keys_out = keys;
        return true;
    }
    case NATIVE_HELLO:
    case NATIVE_PING:
    case NATIVE_SCAN:
    case NATIVE_SNAPSHOT_OPEN:
    case NATIVE_SNAPSHOT_CLOSE:
    case NATIVE_COUNT:
    case NATIVE_STATUS:
    case NATIVE_CLUSTER:
    case NATIVE_TOPOLOGY:
        break;
    }
    return false;
}

void
native_for_each_key(struct exec *x, void (*each)(void *arg, u64 hash), void *arg)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    u16 keyspace = request.header.keyspace;
    if (request.header.opcode != NATIVE_BATCH) {
        each(arg, exec_key_hash(keyspace, last_key(&request)));
        return;
    }
    struct native_op op;
    struct bytes ops = request.batch.ops;
    while (native_batch_next(&ops, &op))
        each(arg, exec_key_hash(keyspace, op.key));
}
