/* SPDX-License-Identifier: MIT
 *
 * exec.c -- see exec.h.
 *
 * Why both ways are atomic. A try never yields between its first read and lsm_write_try, and it
 * does not write a key that somebody on a fiber has locked. A run on a fiber holds the locks of all
 * the keys that its command names from before its first read until its batch is visible. Plain
 * reads take no locks: a batch becomes visible as a whole. When writes are held (cut.h) a try finds
 * out at its lsm_write_try, has done nothing, and waits on a fiber like for anything else.
 *
 * In a cluster every run has to ask other nodes, so there is no try. Reads are of a quorum of the
 * replicas, the batch goes to all of them (replicate.h); what comes back is durable there.
 *
 * In a keyspace that keeps siblings a handler reads the sibling of the highest clock, and its write
 * replaces what it has read: all siblings that were there. One that has read nothing reads first.
 * Such a run writes one key, and nothing expires.
 */
#include "server/exec.h"

#include "base/fault.h"
#include "cluster/cluster.h"
#include "cluster/siblings.h"
#include "server/command_table.h"
#include "server/native.h"

/* From so many writes on they are found by a hash table. */
#define EXEC_OPS_LINEAR 16u
/* After so many reads and writes a run asks whether its turn is over. */
#define EXEC_STEPS_PER_LOOK 64u
/* A run of which something expires again and again. */
#define EXPIRY_TRIES 100u

struct scratch {
    struct list link;
    size_t size;
    u8 pad[8]; /* keeps the bytes 16-aligned */
};

void
exec_init(struct exec *x, struct shard *shard, struct budget *budget, struct resp_writer *reply)
{
    memset(x, 0, sizeof(*x));
    x->shard = shard;
    x->budget = budget;
    x->reply = reply;
    list_init(&x->scratch);
    buf_init(&x->ops, budget);
    buf_init(&x->op_index, budget);
    buf_init(&x->context, budget);
}

static void
drop_value(struct exec *x)
{
    if (x->siblings_held) dvvset_deinit(&x->siblings);
    x->siblings_held = false;
    if (x->replicated_held) replicate_value_release(&x->replicated);
    x->replicated_held = false;
    if (!x->value_held) return;
    lsm_value_release(&x->value);
    x->value_held = false;
}

static void
clear(struct exec *x)
{
    drop_value(x);
    struct list *node;
    while ((node = list_pop_front(&x->scratch)) != NULL) {
        struct scratch *block = list_entry(node, struct scratch, link);
        mem_free(x->budget, block, block->size);
    }
    x->committed = x->undecided = NULL;
    x->op_count = 0;
    x->ops.size = 0;
    x->op_index.size = 0;
    x->stopped = false;
    x->failure = ST_OK;
    x->refusal = NULL;
    x->context_from = EXEC_CONTEXT_NONE;
    x->context.size = 0;
    x->seq = 0;
    x->has_read = false;
    x->read_until_ms = UINT64_MAX;
    x->hits = 0;
    x->misses = 0;
}

void
exec_deinit(struct exec *x)
{
    clear(x);
    buf_deinit(&x->ops);
    buf_deinit(&x->op_index);
    buf_deinit(&x->context);
}

void
exec_fail(struct exec *x, status why)
{
    if (!x->stopped) x->failure = why;
    x->stopped = true;
}

void
exec_refuse(struct exec *x, status why, const char *words)
{
    if (!x->stopped) x->refusal = words;
    exec_fail(x, why);
}

bool
exec_reply_too_large(struct exec *x)
{
    u64 limit = x->shard->config->client_output_limit_bytes;
    if (limit == 0 || x->reply->out->size <= limit) return false;
    exec_fail(x, ST_TOO_LARGE);
    return true;
}

u8 *
exec_alloc(struct exec *x, size_t size)
{
    struct scratch *block = mem_alloc(x->budget, sizeof(*block) + size);
    if (block == NULL) {
        exec_fail(x, ST_NO_MEMORY);
        return NULL;
    }
    block->size = sizeof(*block) + size;
    list_push_back(&x->scratch, &block->link);
    return (u8 *)(block + 1);
}

MAY_YIELD bool
exec_turn(struct exec *x)
{
    if (x->stopped) return false;
    if (LIKELY(++x->steps % EXEC_STEPS_PER_LOOK != 0 || !fiber_should_yield())) return true;
    if (x->waits)
        fiber_yield();
    else
        exec_fail(x, ST_WOULD_WAIT); /* goes on, that is: begins again, on a fiber */
    return x->waits;
}

void
exec_memory_had(struct exec *x)
{
    if (x->memory_turn == NULL || !*x->memory_turn) return;
    memory_turn_give(x->shard, x->work);
    *x->memory_turn = false;
}

bool
exec_copy(struct exec *x, struct bytes source, struct bytes *out)
{
    u8 *copy = exec_alloc(x, source.size);
    if (copy == NULL) return false;
    if (source.size != 0) memcpy(copy, source.data, source.size);
    *out = BYTES(copy, source.size);
    return true;
}

/* ---- the command's own writes ---- */

static struct exec_op *
op_at(const struct exec *x, u32 i)
{
    return (struct exec_op *)(void *)x->ops.data + i;
}

static bool
op_is(const struct exec_op *op, u16 keyspace, u64 token, struct bytes key)
{
    return op->token == token && op->keyspace == keyspace && bytes_equal(op->key, key);
}

/* The place of the key in the hash table: its entry, or the free one where it belongs. */
static u32 *
index_slot(const struct exec *x, u16 keyspace, u64 token, struct bytes key)
{
    u32 *table = (u32 *)(void *)x->op_index.data;
    u32 mask = (u32)(x->op_index.size / sizeof(u32)) - 1;
    u32 at = (u32)exec_key_hash(keyspace, key) & mask;
    while (table[at] != 0 && !op_is(op_at(x, table[at] - 1), keyspace, token, key))
        at = (at + 1) & mask;
    return &table[at];
}

static struct exec_op *
find_op(const struct exec *x, u16 keyspace, u64 token, struct bytes key)
{
    if (x->op_index.size != 0) {
        u32 found = *index_slot(x, keyspace, token, key);
        return found == 0 ? NULL : op_at(x, found - 1);
    }
    for (u32 i = x->op_count; i-- > 0;)
        if (op_is(op_at(x, i), keyspace, token, key)) return op_at(x, i);
    return NULL;
}

/* (Re)builds the hash table for twice as many writes as there are. */
static bool
index_grow(struct exec *x)
{
    size_t slots = 64;
    while (slots < (size_t)x->op_count * 4)
        slots *= 2;
    x->op_index.size = 0;
    if (!buf_reserve(&x->op_index, slots * sizeof(u32))) return false;
    memset(x->op_index.data, 0, slots * sizeof(u32));
    x->op_index.size = slots * sizeof(u32);
    for (u32 i = 0; i < x->op_count; i++) {
        const struct exec_op *op = op_at(x, i);
        *index_slot(x, op->keyspace, op->token, op->key) = i + 1;
    }
    return true;
}

/* One write per key is kept: the last. */
static bool
add_op(struct exec *x, const struct exec_op *op)
{
    if (x->stopped) return false;
    struct exec_op *there = find_op(x, op->keyspace, op->token, op->key);
    if (there != NULL) {
        *there = *op;
        return true;
    }
    if (x->op_count >= LIMIT_BATCH_OPS) {
        exec_fail(x, ST_TOO_LARGE);
        return false;
    }
    if (!buf_append(&x->ops, op, sizeof(*op))) goto no_memory;
    x->op_count++;
    if (x->op_count > EXEC_OPS_LINEAR) {
        if ((size_t)x->op_count * 2 * sizeof(u32) > x->op_index.size) {
            if (!index_grow(x)) goto no_memory;
        } else {
            *index_slot(x, op->keyspace, op->token, op->key) = x->op_count;
        }
    }
    return true;
no_memory:
    exec_fail(x, ST_NO_MEMORY);
    return false;
}

MAY_YIELD bool
exec_put_in(struct exec *x, u16 keyspace, struct bytes key, struct bytes value, u64 expire_ms)
{
    CHECK(value.size <= LIMIT_VALUE_BYTES); /* the door: command handlers */
    if (!exec_turn(x)) return false;
    struct exec_op op = {.key = key,
                         .value = value,
                         .token = hash_token(key),
                         .expire_ms = expire_ms,
                         .keyspace = keyspace};
    if (expire_ms != 0 && expire_ms <= x->now_ms) {
        op.deletes = true;
        op.value = BYTES(NULL, 0);
        op.expire_ms = 0;
    }
    return add_op(x, &op);
}

MAY_YIELD bool
exec_delete_in(struct exec *x, u16 keyspace, struct bytes key)
{
    if (!exec_turn(x)) return false;
    struct exec_op op = {
        .key = key, .token = hash_token(key), .keyspace = keyspace, .deletes = true};
    return add_op(x, &op);
}

/* ---- reading ---- */

/* The sibling of the highest clock; what was seen stays for a write of the same key. */
static enum exec_found
get_latest(struct exec *x, u16 keyspace, struct bytes key, bool count, struct exec_value *out)
{
    dvvset_init(&x->siblings, x->budget);
    x->siblings_held = true;
    x->context_from = EXEC_CONTEXT_NONE;
    x->context.size = 0;
    status st = dvvset_decode(x->replicated.value, &x->siblings);
    if (ok(st)) st = dvv_vector_encode(dvvset_context(&x->siblings), &x->context);
    if (!ok(st)) {
        exec_fail(x, st);
        return EXEC_STOP;
    }
    x->context_from = EXEC_CONTEXT_READ;
    x->context_keyspace = keyspace;
    x->context_key = key;
    const struct dvv_value *latest = dvvset_latest(&x->siblings);
    bool live = latest != NULL && (latest->flags & DVV_DELETED) == 0;
    if (count) *(live ? &x->hits : &x->misses) += 1;
    *out = (struct exec_value){.version = x->replicated.version};
    if (live) out->value = latest->data;
    return live ? EXEC_FOUND : EXEC_ABSENT;
}

MAY_YIELD static enum exec_found
get_replicated(struct exec *x, u16 keyspace, u64 token, struct bytes key, bool count,
               struct exec_value *out)
{
    struct replicate_value *value = &x->replicated;
    status st = replicate_read(x->shard->cluster->replicator, (enum replicate_level)x->level,
                               keyspace, token, key, x->deadline_ns, value);
    x->replicated_held = x->has_read = true;
    if (!ok(st)) {
        exec_fail(x, st);
        return EXEC_STOP;
    }
    if (value->siblings) return get_latest(x, keyspace, key, count, out);
    *out = (struct exec_value){.version = value->version};
    if (count) *(value->found ? &x->hits : &x->misses) += 1;
    if (!value->found) return EXEC_ABSENT;
    if (value->expire_ms != 0) x->read_until_ms = MIN(x->read_until_ms, value->expire_ms);
    out->value = value->value;
    out->expire_ms = value->expire_ms;
    return EXEC_FOUND;
}

MAY_YIELD enum exec_found
exec_get_in(struct exec *x, u16 keyspace, struct bytes key, bool count, struct exec_value *out)
{
    if (x->stopped) return EXEC_STOP;
    drop_value(x);
    u64 token = hash_token(key);
    if (x->op_count != 0) {
        const struct exec_op *op = find_op(x, keyspace, token, key);
        if (op != NULL) {
            if (count) *(op->deletes ? &x->misses : &x->hits) += 1;
            *out = (struct exec_value){.value = op->value, .expire_ms = op->expire_ms};
            return op->deletes ? EXEC_ABSENT : EXEC_FOUND;
        }
    }
    if (!exec_turn(x)) return EXEC_STOP;
    if (x->shard->cluster != NULL) return get_replicated(x, keyspace, token, key, count, out);
    struct lsm *lsm = x->shard->lsm;
    status st = ST_OK;
    if (x->given == NULL) memset(&x->value, 0, sizeof(x->value));
    if (x->given != NULL)
        st = *x->given;
    else if (!x->waits)
        st = lsm_get_try(lsm, keyspace, token, key, &x->value);
    else if (!exec_ahead_take(x, keyspace, key, &x->value, &st))
        st = lsm_get(lsm, NULL, keyspace, token, key, &x->value);
    if (ok(st)) {
        x->value_held = true;
        if (x->value.expire_ms != 0) x->read_until_ms = MIN(x->read_until_ms, x->value.expire_ms);
        x->seq = MAX(x->seq, x->value.seq);
        if (count) x->hits++;
        *out = (struct exec_value){.value = x->value.value,
                                   .expire_ms = x->value.expire_ms,
                                   .version = x->value.version,
                                   .seq = x->value.seq,
                                   .key_seq = x->value.key_seq};
        return EXEC_FOUND;
    }
    if (status_is(st, ST_NOT_FOUND)) {
        x->seq = MAX(x->seq, x->value.seq);
        if (count) x->misses++;
        *out = (struct exec_value){
            .version = x->value.version, .seq = x->value.seq, .key_seq = x->value.key_seq};
        return EXEC_ABSENT;
    }
    exec_fail(x, st);
    return EXEC_STOP;
}

/* ---- siblings ---- */

#define NO_SIBLINGS "this keyspace keeps no siblings"

static bool
keeps_siblings(const struct exec *x, u16 keyspace)
{
    return x->shard->cluster != NULL && replicate_siblings(x->shard->cluster->replicator, keyspace);
}

/* False: refused. A keyspace that is not known here yet may keep them: whoever knows that it was
 * made has sent this. */
static bool
siblings_demand(struct exec *x, u16 keyspace)
{
    if (keeps_siblings(x, keyspace)) return true;
    const struct cluster_shard *cluster = x->shard->cluster;
    if (cluster != NULL && !replicate_knows(cluster->replicator, keyspace))
        exec_fail(x, ST_WOULD_WAIT);
    else
        exec_refuse(x, ST_UNSUPPORTED, NO_SIBLINGS);
    return false;
}

MAY_YIELD bool
exec_get_siblings(struct exec *x, u16 keyspace, struct bytes key, const struct dvvset **out)
{
    struct exec_value latest;
    if (!siblings_demand(x, keyspace)) return false;
    if (exec_get_in(x, keyspace, key, true, &latest) == EXEC_STOP) return false;
    if (!x->siblings_held) exec_fail(x, ST_OVERLOADED); /* it began to keep them just now */
    *out = &x->siblings;
    return !x->stopped;
}

bool
exec_put_siblings(struct exec *x, u16 keyspace, struct bytes key, struct bytes context,
                  const struct bytes *value)
{
    if (!siblings_demand(x, keyspace)) return false;
    struct dvv_vector seen;
    dvv_vector_init(&seen, x->budget);
    status st = context.size == 0 ? ST_OK : dvv_vector_decode(context, &seen);
    dvv_vector_deinit(&seen);
    if (status_is(st, ST_CORRUPT)) {
        exec_refuse(x, ST_INVALID, "this is no context");
        return false;
    }
    x->context.size = 0;
    if (ok(st) && !buf_append(&x->context, context.data, context.size)) st = ST_NO_MEMORY;
    if (!ok(st)) {
        exec_fail(x, st);
        return false;
    }
    x->context_from = EXEC_CONTEXT_GIVEN;
    x->context_keyspace = keyspace;
    x->context_key = key;
    return value != NULL ? exec_put_in(x, keyspace, key, *value, 0)
                         : exec_delete_in(x, keyspace, key);
}

/* False: refused, in words. */
static bool
siblings_fit(struct exec *x)
{
    const char *words = NULL;
    if (x->op_count != 1)
        words = "a keyspace that keeps siblings takes one key at a time";
    else if (op_at(x, 0)->expire_ms != 0)
        words = "nothing expires in a keyspace that keeps siblings";
    if (words != NULL) exec_refuse(x, ST_UNSUPPORTED, words);
    return words == NULL;
}

/* The run's only write: replaces what was read of the key, or what the client said. */
MAY_YIELD static status
write_siblings(struct exec *x)
{
    if (!siblings_fit(x)) return x->failure;
    const struct exec_op *op = op_at(x, 0);
    bool seen = x->context_from != EXEC_CONTEXT_NONE && x->context_keyspace == op->keyspace &&
                bytes_equal(x->context_key, op->key);
    struct exec_value latest;
    if (!seen && get_replicated(x, op->keyspace, op->token, op->key, false, &latest) == EXEC_STOP)
        return x->failure;
    drop_value(x);
    /* What others write from now on it has not seen, so that it stays. */
    if (io_now_ns() >= x->begin_ns) return ST_UNAVAILABLE;
    struct dvv_vector context;
    dvv_vector_init(&context, x->budget);
    status st = ST_OK;
    if (x->context.size != 0) st = dvv_vector_decode(buf_bytes(&x->context), &context);
    struct replicate_put put = {.keyspace = op->keyspace,
                                .token = op->token,
                                .key = op->key,
                                .context = x->context.size != 0 ? &context : NULL,
                                .deletes = op->deletes,
                                .value = op->value};
    if (ok(st))
        st = replicate_put(x->shard->cluster->replicator, (enum replicate_level)x->level, &put,
                           x->deadline_ns, &x->version);
    dvv_vector_deinit(&context);
    static_assert(LIMIT_DVV_SIBLINGS_WRITE == 32 && LIMIT_SIBLINGS_WRITE_BYTES == 131072,
                  "the text names them");
    if (status_is(st, ST_TOO_LARGE))
        exec_refuse(x, st,
                    "the key has too many siblings: at most 32, and 131072 bytes of all together");
    else if (status_is(st, ST_INVALID))
        exec_refuse(x, st, "this context has seen what the key does not have: read the key again");
    return st;
}

/* ---- running ---- */

MAY_YIELD static bool
build_batch(struct exec *x, struct lsm_batch *batch)
{
    for (u32 i = 0; i < x->op_count; i++) {
        const struct exec_op *op = op_at(x, i);
        if (x->waits && !exec_turn(x)) return false;
        bool fits = op->deletes ? lsm_batch_delete(batch, op->keyspace, op->token, op->key)
                                : lsm_batch_put(batch, op->keyspace, op->token, op->key, op->value,
                                                op->expire_ms);
        if (!fits) return false;
    }
    return true;
}

static void
written(struct exec *x, u64 seq)
{
    x->wrote = true;
    x->seq = MAX(x->seq, seq);
    if (x->committed != NULL) x->committed(x);
}

/* Replicas may have it: it is not to run again for want of memory, nor to be told as not done. */
static void
undecided(struct exec *x)
{
    x->wrote = true;
    if (x->undecided != NULL) x->undecided(x);
}

/* What cannot be answered is not done either: it may find memory for its reply when it runs again.
 */
static void
need_reply(struct exec *x)
{
    if (x->reply->failed && x->op_count != 0 && ok(x->failure)) exec_fail(x, ST_NO_MEMORY);
}

static void
refusal_reply(struct exec *x)
{
    if (x->command->flags & COMMAND_NATIVE)
        native_refusal(x->args[0], x->reply, x->failure, x->refusal);
    else
        resp_error(x->reply, "ERR %s", x->refusal);
}

/* After the handler: a failure becomes the only reply. */
static void
finish(struct exec *x, size_t reply_start)
{
    struct shard_stats *stats = x->shard->stats;
    if (ok(x->failure) && x->shard->store_failed && x->seq > lsm_durable_seq(x->shard->lsm))
        x->failure = ST_UNKNOWN_OUTCOME; /* it tells of something that may never become durable */
    if (!ok(x->failure)) {
        x->reply->out->size = reply_start;
        x->reply->failed = false;
        if (x->refusal != NULL)
            refusal_reply(x);
        else
            exec_failure_reply(x->command, x->args, x->reply, x->failure);
        /* What was read decides nothing any more. */
        x->seq = 0;
    } else {
        stats->keyspace_hits += x->hits;
        stats->keyspace_misses += x->misses;
    }
    drop_value(x);
}

/* Calls each(arg, hash) for every key that the run may touch. */
static void
for_each_key(struct exec *x, void (*each)(void *arg, u64 hash), void *arg)
{
    command_for_each_key_hash(x, each, arg);
}

static bool
takes_locks(const struct exec *x)
{
    return (x->command->flags & COMMAND_WRITE) != 0 || x->command->place == PLACE_EXEC;
}

struct lock_probe {
    const struct keylock_table *table;
    bool held;
};

static void
probe_key(void *arg, u64 hash)
{
    struct lock_probe *probe = arg;
    if (keylock_find(probe->table, hash)) probe->held = true;
}

bool
exec_try(struct exec *x, void (*handler)(struct exec *x))
{
    size_t reply_start = x->reply->out->size;
    struct shard *shard = x->shard;
    if (shard->server->cluster != NULL) return false;
    x->waits = false;
    x->now_ms = io_wall_ms();

    if (UNLIKELY(shard->locks.held != 0) && takes_locks(x)) {
        struct lock_probe probe = {.table = &shard->locks};
        for_each_key(x, probe_key, &probe);
        if (probe.held) return false;
    }
    handler(x);
    drop_value(x);
    need_reply(x);
    if (ok(x->failure) && x->op_count != 0) {
        lsm_batch_clear(&shard->batch);
        u64 seq = 0;
        status st = ST_NO_MEMORY;
        /* no yield: x->waits is not set */
        if (build_batch(x, &shard->batch)) st = lsm_write_try(shard->lsm, &shard->batch, &seq);
        if (ok(st))
            written(x, seq);
        else
            exec_fail(x, st);
        if (shard->batch.ops.capacity > KIB(256)) buf_clear(&shard->batch.ops, 0);
    }
    if (status_is(x->failure, ST_WOULD_WAIT)) {
        x->reply->out->size = reply_start;
        x->reply->failed = false;
        clear(x);
        return false;
    }
    finish(x, reply_start);
    return true;
}

bool
exec_given(struct exec *x, void (*handler)(struct exec *x), status st, struct lsm_value *value)
{
    size_t reply_start = x->reply->out->size;
    if (status_is(st, ST_WOULD_WAIT) || status_is(st, ST_NO_MEMORY)) return false;
    x->waits = false;
    x->now_ms = io_wall_ms();
    x->given = &st;
    x->value = *value;
    handler(x);
    x->given = NULL;
    CHECK(x->op_count == 0);
    finish(x, reply_start);
    return true;
}

struct lock_list {
    struct buf hashes; /* u64[] */
    bool failed;
};

static void
collect_key(void *arg, u64 hash)
{
    struct lock_list *list = arg;
    if (!buf_append(&list->hashes, &hash, sizeof(hash))) list->failed = true;
}

/* Shell sort: no recursion, no memory, and the lists are short or already nearly sorted. */
MAY_YIELD static void
sort_hashes(u64 *hashes, u32 count)
{
    for (u32 gap = count / 2; gap > 0; gap = gap == 2 ? 1 : (u32)((u64)gap * 5 / 11)) {
        if (count > EXEC_STEPS_PER_LOOK && fiber_should_yield()) fiber_yield();
        for (u32 i = gap; i < count; i++) {
            u64 value = hashes[i];
            u32 j = i;
            for (; j >= gap && hashes[j - gap] > value; j -= gap)
                hashes[j] = hashes[j - gap];
            hashes[j] = value;
        }
    }
}

/* Its writes go to the replicas. ST_CONFLICT: what it was made of has expired meanwhile. */
MAY_YIELD static status
write_replicated(struct exec *x, struct lsm_batch *batch)
{
    if (x->shard->cluster == NULL) return ST_WOULD_WAIT; /* not yet, or not any more */
    if (io_wall_ms() >= x->read_until_ms) return ST_CONFLICT;
    /* What others read and write next must meet it, and what is flushed is flushed: nobody stands
     * in for a replica. */
    enum replicate_level level = (enum replicate_level)x->level;
    if (level == REPLICATE_DEFAULT && (x->has_read || x->blind)) level = REPLICATE_HOMES;
    return replicate_write(x->shard->cluster->replicator, level, batch, x->begin_ns, x->deadline_ns,
                           &x->version);
}

/* One attempt, under the locks. True: a value that was read has expired before the writes were
 * there, and others have seen that; so it is to begin again. For that matter EXEC's reads are of
 * one moment as well. */
MAY_YIELD static bool
run_once(struct exec *x, void (*handler)(struct exec *x))
{
    x->now_ms = io_wall_ms();
    if (x->shard->cluster == NULL) exec_ahead_start(x);
    handler(x);
    exec_ahead_stop(x);
    drop_value(x);
    need_reply(x);
    if (BUGGIFY("server.exec.late_write")) fiber_sleep_ns(NS_PER_MS);
    if (!ok(x->failure)) return false;
    if (x->op_count == 0)
        return x->command->place == PLACE_EXEC && io_wall_ms() >= x->read_until_ms;
    struct lsm_batch batch;
    lsm_batch_init(&batch, x->budget);
    if (x->read_until_ms != UINT64_MAX && x->shard->cluster == NULL)
        batch.until_ms = x->read_until_ms;
    u64 seq = 0;
    status st = ST_NO_MEMORY;
    if (keeps_siblings(x, op_at(x, 0)->keyspace))
        st = write_siblings(x);
    else if (build_batch(x, &batch))
        st = x->shard->server->cluster != NULL ? write_replicated(x, &batch)
                                               : lsm_write(x->shard->lsm, &batch, &seq);
    lsm_batch_deinit(&batch);
    if (status_is(st, ST_UNKNOWN_OUTCOME)) undecided(x);
    if (ok(st))
        written(x, seq);
    else if (!status_is(st, ST_CONFLICT))
        exec_fail(x, st);
    return status_is(st, ST_CONFLICT);
}

MAY_YIELD void
exec_wait(struct exec *x, void (*handler)(struct exec *x))
{
    size_t reply_start = x->reply->out->size;
    struct shard *shard = x->shard;
    struct keylock *locks = NULL;
    size_t locks_size = 0;
    u32 lock_count = 0;
    struct lock_list keys = {.failed = false};
    buf_init(&keys.hashes, x->budget);
    clear(x);
    x->waits = true;

    if (takes_locks(x)) {
        for_each_key(x, collect_key, &keys);
        u64 *hashes = (u64 *)(void *)keys.hashes.data;
        u32 count = (u32)(keys.hashes.size / sizeof(u64));
        sort_hashes(hashes, count);
        for (u32 i = 0; i < count; i++)
            if (i == 0 || hashes[i] != hashes[lock_count - 1]) hashes[lock_count++] = hashes[i];
        locks_size = lock_count * sizeof(*locks);
        if (lock_count != 0) locks = mem_alloc(x->budget, locks_size);
        if (keys.failed || (lock_count != 0 && locks == NULL)) {
            lock_count = 0;
            exec_fail(x, ST_NO_MEMORY);
        } else if (lock_count != 0) {
            keylock_acquire(&shard->locks, hashes, locks, lock_count);
            shard->stats->lock_waits = shard->locks.waits;
        }
    }
    if (BUGGIFY("server.exec.late_run")) fiber_sleep_ns(NS_PER_MS);
    for (u32 tries = 1; ok(x->failure) && run_once(x, handler); tries++) {
        MARK("server.exec.expired_meanwhile");
        clear(x);
        x->reply->out->size = reply_start;
        x->reply->failed = false;
        if (tries == EXPIRY_TRIES) exec_fail(x, ST_OVERLOADED);
    }
    if (lock_count != 0) keylock_release(&shard->locks, locks, lock_count);
    mem_free(x->budget, locks, locks_size);
    buf_deinit(&keys.hashes);
    finish(x, reply_start);
}

void
exec_failure_reply(const struct command *command, const struct bytes *args,
                   struct resp_writer *reply, status why)
{
    if (command->flags & COMMAND_NATIVE)
        native_failure(args[0], reply, why);
    else
        exec_error_reply(reply, why);
}

void
exec_error_reply(struct resp_writer *reply, status why)
{
    switch ((enum status_code)why.code) {
    case SC_NO_SPACE:
        resp_error(reply,
                   "MISCONF No space left on this node: writes are refused until space returns, "
                   "reads go on");
        return;
    case SC_READ_ONLY:
        resp_error(reply,
                   "MISCONF The store has failed: this node takes no more writes until it is "
                   "restarted, its log says why; reads go on");
        return;
    case SC_OVERLOADED:
    case SC_WOULD_WAIT:
    case SC_TIMED_OUT:
        resp_error(reply, "BUSY This node is overloaded, try again later");
        return;
    case SC_NO_MEMORY:
    case SC_FULL:
        resp_error(reply, "OOM command not allowed when used memory > 'maxmemory'.");
        return;
    case SC_CORRUPT:
        resp_error(reply,
                   "ERR the stored data is damaged: a checksum does not match or the disk cannot "
                   "read it, see the log of this node");
        return;
    case SC_IO_ERROR:
    case SC_DENIED:
    case SC_MOUNTED_READ_ONLY:
    case SC_NOT_DIRECTORY:
        resp_error(reply, "ERR reading from the disk failed, see the log of this node");
        return;
    case SC_TOO_LARGE:
        resp_error(reply,
                   "ERR the request or its reply is over a size limit: at most %u writes and "
                   "%u bytes at once, and client-output-limit bytes of reply",
                   LIMIT_BATCH_OPS, LIMIT_BATCH_BYTES);
        return;
    case SC_UNAVAILABLE:
        resp_error(reply, "NOREPLICAS Not enough good replicas: nothing was done, try again later");
        return;
    case SC_UNKNOWN_OUTCOME:
        if (shard_self()->cluster != NULL) {
            resp_error(reply, "UNKNOWN It is not known whether the write took effect: not enough "
                              "replicas have answered in time");
            return;
        }
        resp_error(reply,
                   "MISCONF Errors writing to the log: it is not known whether the write took "
                   "effect");
        return;
    case SC_CLOSED:
        resp_error(reply, "ERR this node is shutting down");
        return;
    case SC_OK:
    case SC_NOT_FOUND:
    case SC_END:
    case SC_INCOMPLETE:
    case SC_CANCELED:
    case SC_EXISTS:
    case SC_CONFLICT:
    case SC_INVALID:
    case SC_LOCKED:
    case SC_UNSUPPORTED:
    case SC_PAUSED:
    case STATUS_CODE_COUNT:
        break;
    }
    resp_error(reply, "ERR %s", status_text(why));
}
