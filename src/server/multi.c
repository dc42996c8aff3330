/* SPDX-License-Identifier: MIT
 *
 * multi.c -- MULTI, EXEC, DISCARD, WATCH, UNWATCH.
 *
 * All keys of a transaction, watched ones included, have one slot, so one shard owns them: it runs
 * the queued commands as one execution (exec.h) with one batch, atomic and isolated. Queued
 * commands that belong to the connection (PING, CLIENT, INFO, ...) have no part in that: they run
 * afterwards at home, and EXEC's reply is put together in the order of the queue. SELECT counts
 * while queueing. What spans shards (FLUSHALL, KEYS, ...) is refused at the door
 * (COMMAND_NO_MULTI), because it could not be in order.
 *
 * WATCH remembers for each key the sequence number of its newest version, or that it was absent
 * and the shard's last sequence number then. EXEC compares under the locks: a live key must have
 * the same number; an absent one must still be absent, without a tombstone of its own younger than
 * the watch (FLUSHALL changes no key that was absent), and the store must not have dropped one that
 * may have been this key's (lsm_dropped_seq).
 * Sequence numbers are never given twice, so a changed key always aborts. An unchanged one never
 * does, but for two rare cases: it is absent, and since the WATCH another key of the same hash mark
 * was written, deleted, and merged away, or a whole table of its keyspace went, because all in it
 * was deleted or had expired. A key that had a time to live and has expired since counts
 * as changed, as in Redis.
 */
#include "server/multi.h"

#include "server/native.h"
#include "server/number.h"
#include "server/route.h"

bool
session_in_multi(const struct session *s)
{
    return s->multi != NULL && s->multi->queueing;
}

i32
session_multi_count(const struct session *s)
{
    return session_in_multi(s) ? (i32)s->multi->count : -1;
}

static struct transaction *
transaction_of(struct session *s)
{
    if (s->multi != NULL) return s->multi;
    struct transaction *tx = mem_alloc_zero(&s->shard->kept_budget, sizeof(*tx));
    if (tx == NULL) return NULL;
    list_init(&tx->queue);
    list_init(&tx->watches);
    s->multi = tx;
    return tx;
}

static struct watch **
watch_chain(struct transaction *tx, u64 hash)
{
    return &tx->watch_chains[hash % MULTI_WATCH_CHAINS];
}

static void
drop_watch(struct session *s, struct watch *watch)
{
    struct watch **at = watch_chain(s->multi, watch->hash);
    while (*at != watch)
        at = &(*at)->chain_next;
    *at = watch->chain_next;
    list_del(&watch->link);
    s->multi->watch_count--;
    s->shard->stats->watches--;
    mem_free(&s->shard->kept_budget, watch, watch->memory);
}

static void
drop_watches(struct session *s)
{
    if (s->multi == NULL) return;
    struct list *node;
    while ((node = list_first(&s->multi->watches)) != NULL)
        drop_watch(s, list_entry(node, struct watch, link));
}

void
session_multi_free(struct session *s)
{
    struct transaction *tx = s->multi;
    if (tx == NULL) return;
    struct list *node;
    while ((node = list_pop_front(&tx->queue)) != NULL) {
        struct queued *queued = list_entry(node, struct queued, link);
        mem_free(&s->shard->kept_budget, queued, queued->memory);
    }
    drop_watches(s);
    mem_free(&s->shard->kept_budget, tx, sizeof(*tx));
    s->multi = NULL;
}

void
session_multi_spoil(struct session *s)
{
    s->multi->spoiled = true;
}

bool
transaction_slot_fits(struct transaction *tx, const struct command *command,
                      const struct bytes *args, u32 arg_count)
{
    u32 first, last, step;
    command_key_range(command, arg_count, &first, &last, &step);
    for (u32 i = first; i <= last && last >= first; i += step) {
        u32 slot = hash_slot(args[i]);
        if (tx->slot_known && slot != tx->slot) return false;
        tx->slot = slot;
        tx->slot_known = true;
        tx->keys++;
    }
    return true;
}

void
session_multi_queue(struct session *s, const struct command *command, const struct bytes *args,
                    u32 arg_count, struct resp_writer *w)
{
    struct transaction *tx = s->multi;
    if (!multi_may_queue(s, command, args, arg_count, w)) {
        tx->spoiled = true;
        return;
    }
    if (!transaction_slot_fits(tx, command, args, arg_count)) {
        tx->spoiled = true;
        resp_error(w, "CROSSSLOT Keys in request don't hash to the same slot");
        return;
    }
    size_t memory = sizeof(struct queued) + arg_count * sizeof(struct bytes);
    for (u32 i = 0; i < arg_count; i++)
        memory += args[i].size;
    struct queued *queued = NULL;
    if (tx->memory + memory <= MULTI_BYTES_MAX && tx->count < MULTI_COMMANDS_MAX)
        queued = mem_alloc(&s->shard->kept_budget, memory);
    if (queued == NULL) {
        tx->spoiled = true;
        exec_error_reply(w, tx->memory + memory > MULTI_BYTES_MAX || tx->count >= MULTI_COMMANDS_MAX
                                ? ST_TOO_LARGE
                                : ST_NO_MEMORY);
        return;
    }
    queued->command = command;
    queued->memory = memory;
    queued->arg_count = arg_count;
    queued->keyspace = tx->keyspace;
    queued->at_home = command->place > PLACE_SPLIT_ARRAY;
    queued->args = queued->spans;
    u8 *to = (u8 *)(queued->spans + arg_count);
    for (u32 i = 0; i < arg_count; i++) {
        if (args[i].size != 0) memcpy(to, args[i].data, args[i].size);
        queued->spans[i] = BYTES(to, args[i].size);
        to += args[i].size;
    }
    list_push_back(&tx->queue, &queued->link);
    tx->memory += memory;
    tx->count++;
    if (queued->at_home) tx->home_count++;
    i64 db;
    if (command->handler == cmd_select && number_parse_i64(args[1], &db) && db >= 0 &&
        db < LIMIT_KEYSPACES_CLIENT)
        tx->keyspace = (u16)db;
    resp_simple(w, "QUEUED");
}

/* ---- commands of the connection ---- */

void
cmd_multi(struct exec *x)
{
    if (session_in_multi(x->session)) {
        resp_error(x->reply, "ERR MULTI calls can not be nested");
        return;
    }
    struct transaction *tx = transaction_of(x->session);
    if (tx == NULL) {
        /* What is pipelined behind it was meant to happen as one, and must not one by one. */
        exec_fail(x, ST_NO_MEMORY);
        x->session->close_after = true;
        return;
    }
    tx->queueing = true;
    tx->keyspace = x->session->keyspace;
    resp_ok(x->reply);
}

void
cmd_discard(struct exec *x)
{
    if (!session_in_multi(x->session)) {
        resp_error(x->reply, "ERR DISCARD without MULTI");
        return;
    }
    session_multi_free(x->session);
    resp_ok(x->reply);
}

void
cmd_unwatch(struct exec *x)
{
    struct transaction *tx = x->session->multi;
    if (tx != NULL && tx->count == 0 && !tx->queueing)
        session_multi_free(x->session);
    else
        drop_watches(x->session); /* from the queue: EXEC still walks over it */
    resp_ok(x->reply);
}

/* ---- WATCH ---- */

/* At the owner: fills in what the keys are now. */
MAY_YIELD void
cmd_watch(struct exec *x)
{
    struct transaction *tx = x->extra;
    list_for_each (node, &tx->watches) {
        struct watch *watch = list_entry(node, struct watch, link);
        if (watch->filled) continue;
        if (x->shard->server->cluster != NULL) {
            if (!multi_watch_here(x, watch)) return;
            continue;
        }
        struct exec_value value;
        enum exec_found found = exec_get_in(x, watch->keyspace, watch->key, false, &value);
        if (found == EXEC_STOP) return;
        watch->present = found == EXEC_FOUND;
        watch->mark = watch->present ? value.seq : lsm_seq_last(x->shard->lsm);
    }
    list_for_each (node, &tx->watches)
        list_entry(node, struct watch, link)->filled = true;
    resp_ok(x->reply);
}

MAY_YIELD static bool
unchanged(struct exec *x, const struct watch *watch)
{
    if (x->shard->server->cluster != NULL) return multi_unchanged(x, watch);
    struct exec_value value;
    enum exec_found found = exec_get_in(x, watch->keyspace, watch->key, false, &value);
    if (found == EXEC_STOP) return false;
    if (found == EXEC_FOUND) return watch->present && value.seq == watch->mark;
    return !watch->present && value.key_seq <= watch->mark &&
           lsm_dropped_seq(x->shard->lsm, watch->keyspace, watch->key) <= watch->mark;
}

/* Thousands are watched, and thousands are looked for in one turn. */
static bool
is_watched(struct transaction *tx, u16 keyspace, struct bytes key, u64 hash)
{
    for (const struct watch *watch = *watch_chain(tx, hash); watch != NULL;
         watch = watch->chain_next)
        if (watch->hash == hash && watch->keyspace == keyspace && bytes_equal(watch->key, key))
            return true;
    return false;
}

void
multi_refuse_watches(struct resp_writer *w)
{
    static_assert(MULTI_WATCHES_MAX == 4096, "the words below");
    resp_error(w, "ERR too many keys are watched: a connection has at most 4096");
}

void
multi_refuse_nested_watch(struct resp_writer *w)
{
    resp_error(w, "ERR WATCH inside MULTI is not allowed");
}

static bool
prepare_watch(struct session *s, const struct bytes *args, u32 arg_count, struct resp_writer *w)
{
    if (session_in_multi(s)) {
        multi_refuse_nested_watch(w);
        return false;
    }
    if (arg_count - 1 > MULTI_WATCHES_MAX) { /* though one be named twice: each is looked for */
        multi_refuse_watches(w);
        return false;
    }
    const struct command *command = command_find(BYTES_LITERAL("watch"));
    if (!multi_may_queue(s, command, args, arg_count, w)) return false;
    struct transaction *tx = transaction_of(s);
    if (tx == NULL) {
        exec_error_reply(w, ST_NO_MEMORY);
        return false;
    }
    struct transaction probe = {.slot = tx->slot, .slot_known = tx->slot_known};
    if (!transaction_slot_fits(&probe, command, args, arg_count)) {
        resp_error(w, "CROSSSLOT Keys in request don't hash to the same slot");
        return false;
    }
    for (u32 i = 1; i < arg_count; i++) {
        u64 hash = exec_key_hash(s->keyspace, args[i]);
        if (is_watched(tx, s->keyspace, args[i], hash)) continue;
        size_t memory = sizeof(struct watch) + args[i].size;
        struct watch *watch = NULL;
        bool many = tx->watch_count >= MULTI_WATCHES_MAX;
        if (!many) watch = mem_alloc(&s->shard->kept_budget, memory);
        if (watch == NULL) {
            if (many)
                multi_refuse_watches(w);
            else
                exec_error_reply(w, ST_NO_MEMORY);
            session_exec_done(s, command);
            return false;
        }
        memset(watch, 0, sizeof(*watch));
        watch->memory = memory;
        watch->hash = hash;
        watch->keyspace = s->keyspace;
        watch->since_ns = io_now_ns();
        memcpy(watch + 1, args[i].data, args[i].size);
        watch->key = BYTES(watch + 1, args[i].size);
        struct watch **chain = watch_chain(tx, hash);
        watch->chain_next = *chain;
        *chain = watch;
        list_push_back(&tx->watches, &watch->link);
        tx->watch_count++;
        s->shard->stats->watches++;
    }
    tx->slot = probe.slot;
    tx->slot_known = probe.slot_known;
    return true;
}

/* ---- EXEC ---- */

static bool
prepare_exec(struct session *s, struct resp_writer *w)
{
    struct transaction *tx = s->multi;
    if (!session_in_multi(s)) {
        resp_error(w, "ERR EXEC without MULTI");
        return false;
    }
    if (tx->spoiled) {
        resp_error(w, "EXECABORT Transaction discarded because of previous errors.");
        session_multi_free(s);
        return false;
    }
    return true;
}

bool
session_exec_prepare(struct session *s, const struct command *command, const struct bytes *args,
                     u32 arg_count, struct resp_writer *w, u32 *owner, void **extra, bool *at_home)
{
    bool go =
        command->place == PLACE_WATCH ? prepare_watch(s, args, arg_count, w) : prepare_exec(s, w);
    if (!go) return false;
    struct transaction *tx = s->multi;
    const struct server *server = s->shard->server;
    *owner = tx->slot_known ? shard_of_token(server, transaction_token(tx)) : s->shard->index;
    *extra = tx;
    tx->assembled = tx->home_count != 0;
    *at_home = command->place == PLACE_EXEC && tx->assembled;
    return true;
}

bool
session_exec_routed(const struct session *s, u64 *token_out)
{
    *token_out = transaction_token(s->multi);
    return s->shard->server->cluster != NULL && s->multi->slot_known;
}

void
session_exec_attach(const struct session *s, struct request *request)
{
    request->extra = s->multi;
    request->writes = request->command->place == PLACE_EXEC && transaction_writes(s->multi);
}

u32
session_exec_keys(const struct session *s)
{
    return s->multi->keys + s->multi->watch_count;
}

void
session_exec_done(struct session *s, const struct command *command)
{
    if (command->place == PLACE_EXEC) {
        session_multi_free(s);
        return;
    }
    if (s->multi == NULL) return;
    list_for_each_safe (node, &s->multi->watches) {
        struct watch *watch = list_entry(node, struct watch, link);
        if (!watch->filled) drop_watch(s, watch);
    }
    if (s->multi->watch_count == 0) session_multi_free(s);
}

/* At the owner of the keys. */
MAY_YIELD void
cmd_exec(struct exec *x)
{
    struct transaction *tx = x->extra;
    tx->aborted = false;
    list_for_each (node, &tx->watches) {
        bool same = unchanged(x, list_entry(node, struct watch, link));
        if (x->stopped) return;
        if (same) continue;
        tx->aborted = true;
        resp_null_array(x->reply);
        return;
    }
    if (!tx->assembled) resp_array(x->reply, tx->count - tx->home_count);

    const struct command *command = x->command;
    const struct bytes *args = x->args;
    u32 arg_count = x->arg_count;
    u16 keyspace = x->keyspace;
    list_for_each (node, &tx->queue) {
        struct queued *queued = list_entry(node, struct queued, link);
        if (queued->at_home) continue;
        x->command = queued->command;
        x->args = queued->args;
        x->arg_count = queued->arg_count;
        x->keyspace = queued->keyspace;
        queued->reply_start = x->reply->out->size;
        queued->command->handler(x);
        queued->reply_size = x->reply->out->size - queued->reply_start;
        if (x->stopped || exec_reply_too_large(x) || !multi_reply_fits(x)) break;
    }
    x->command = command;
    x->args = args;
    x->arg_count = arg_count;
    x->keyspace = keyspace;
}

/* COPY ... DB n writes to another keyspace, that of the last of them: there may be half a million.
 * What is no number of one it refuses. */
static void
copy_each_target(const struct exec *x, void (*each)(void *arg, u64 hash), void *arg)
{
    i64 db;
    for (u32 i = x->arg_count - 1; i >= 4; i--) {
        if (!text_is(x->args[i - 1], "db") || !number_parse_i64(x->args[i], &db) || db < 0 ||
            db >= LIMIT_KEYSPACES_CLIENT)
            continue;
        each(arg, exec_key_hash((u16)db, x->args[2]));
        return;
    }
}

void
command_for_each_key_hash(struct exec *x, void (*each)(void *arg, u64 hash), void *arg)
{
    u32 first, last, step;
    if (x->command->flags & COMMAND_NATIVE) {
        native_for_each_key(x, each, arg);
        return;
    }
    if (x->command->place != PLACE_EXEC) {
        command_key_range(x->command, x->arg_count, &first, &last, &step);
        for (u32 i = first; i <= last && last >= first; i += step)
            each(arg, exec_key_hash(x->keyspace, x->args[i]));
        if (x->command->handler == cmd_copy) copy_each_target(x, each, arg);
        return;
    }
    const struct transaction *tx = x->extra;
    list_for_each (node, &tx->watches) {
        const struct watch *watch = list_entry(node, struct watch, link);
        each(arg, exec_key_hash(watch->keyspace, watch->key));
    }
    list_for_each (node, &tx->queue) {
        struct queued *queued = list_entry(node, struct queued, link);
        if (queued->at_home) continue;
        struct exec inner = {.command = queued->command,
                             .args = queued->args,
                             .arg_count = queued->arg_count,
                             .keyspace = queued->keyspace};
        command_for_each_key_hash(&inner, each, arg); /* once: EXEC is never queued */
    }
}

bool
transaction_writes(const struct transaction *tx)
{
    list_for_each (node, &tx->queue) {
        const struct queued *queued = list_entry(node, struct queued, link);
        if (!queued->at_home && queued->command->flags & COMMAND_WRITE) return true;
    }
    return false;
}

/* In a cluster: wherever that is. */
MAY_YIELD static void
call_routed(struct request *there, const struct session *s, struct transaction *tx)
{
    struct fiber_queue queue;
    fiber_queue_init(&queue);
    there->waiter = &queue;
    there->connected_ns = s->created_ns;
    there->level = s->level;
    there->writes = transaction_writes(tx);
    if (route_start(there, transaction_token(tx))) {
        request_wait(there);
        return;
    }
    buf_init(&there->reply, &s->shard->budget);
    struct resp_writer w = {.out = &there->reply, .version = there->resp};
    exec_error_reply(&w, ST_NO_MEMORY);
    there->failure = ST_NO_MEMORY;
}

/* The owner's replies, from an array of them; false: it is none, but an error or nil. */
static bool
take_array(struct transaction *tx, struct bytes reply)
{
    struct resp_reply head;
    size_t at, consumed;
    status st = resp_read(reply, &head, &at);
    if (!ok(st) || head.kind != RESP_REPLY_ARRAY || head.integer != tx->count - tx->home_count)
        return false;
    list_for_each (node, &tx->queue) {
        struct queued *queued = list_entry(node, struct queued, link);
        if (queued->at_home) continue;
        queued->reply_start = at;
        for (i64 wanted = 1; wanted > 0; wanted--, at += consumed) {
            st = resp_read(BYTES(reply.data + at, reply.size - at), &head, &consumed);
            if (!ok(st)) return false;
            if (head.kind == RESP_REPLY_ARRAY) wanted += head.integer;
        }
        queued->reply_size = at - queued->reply_start;
    }
    return at == reply.size;
}

/* Runs the owner's part, wherever it is, and leaves its reply in *data. When there is no memory for
 * that, x->reply has failed, and x->wrote says whether it took effect all the same. */
MAY_YIELD static bool
run_keys(struct exec *x, struct request *request, struct transaction *tx, struct buf *data)
{
    struct shard *shard = x->shard;
    u64 token;
    bool routed = session_exec_routed(request->session, &token);
    u32 owner = tx->slot_known && !routed ? shard_of_token(shard->server, token) : shard->index;
    if (owner == shard->index && !routed) {
        struct resp_writer w = {.out = data, .version = request->resp};
        struct exec inner;
        exec_init(&inner, shard, x->budget, &w);
        inner.command = request->command;
        inner.args = request->args;
        inner.arg_count = request->arg_count;
        inner.keyspace = request->keyspace;
        inner.extra = tx;
        exec_wait(&inner, cmd_exec);
        x->reply->failed = w.failed;
        x->wrote = inner.wrote;
        x->seq = MAX(x->seq, inner.seq);
        bool done = ok(inner.failure);
        exec_deinit(&inner);
        return done;
    }
    struct request *there = request_new_part(request, owner, request->arg_count, request->keys);
    if (there == NULL) {
        struct resp_writer w = {.out = data, .version = request->resp};
        exec_error_reply(&w, ST_NO_MEMORY);
        return false;
    }
    memcpy(there->args, request->args, request->arg_count * sizeof(*request->args));
    there->extra = tx;
    tx->assembled = !routed; /* another node answers with the whole array */
    if (routed)
        call_routed(there, request->session, tx);
    else
        request_call(there);
    struct bytes reply = request_reply(there);
    /* What a queued command answers is not EXEC's failure, though the reply may begin with it. */
    bool done = !there->unknown && ok(there->failure);
    if (routed) done = done && take_array(tx, reply);
    if (there->unknown) request->unknown = true;
    bool maybe = there->unknown || status_is(there->failure, ST_UNKNOWN_OUTCOME);
    x->wrote = maybe || (done && !tx->aborted && transaction_writes(tx));
    if (!buf_append(data, reply.data, reply.size)) x->reply->failed = true;
    request_free(there);
    return done;
}

MAY_YIELD void
session_exec_on_fiber(struct exec *x, struct request *request)
{
    struct transaction *tx = request->extra;
    struct buf data;
    buf_init(&data, &x->shard->budget);
    bool done = run_keys(x, request, tx, &data);
    if (x->reply->failed) {
        buf_deinit(&data);
        return;
    }
    if (!done || tx->aborted) {
        if (data.size == 0)
            exec_error_reply(x->reply, ST_NO_MEMORY);
        else if (!buf_append(x->reply->out, data.data, data.size))
            x->reply->failed = true;
        buf_deinit(&data);
        return;
    }
    struct session *s = request->session;
    x->session = s;
    x->waits = true;
    x->now_ms = io_wall_ms();
    tx->queueing = false; /* its commands see a connection outside MULTI */
    resp_array(x->reply, tx->count);
    list_for_each (node, &tx->queue) {
        if (x->reply->failed) break;
        if (fiber_should_yield()) fiber_yield(); /* what has keys is done, and its locks are free */
        struct queued *queued = list_entry(node, struct queued, link);
        if (!queued->at_home) {
            if (!buf_append(x->reply->out, data.data + queued->reply_start, queued->reply_size))
                x->reply->failed = true;
            continue;
        }
        x->command = queued->command;
        x->args = queued->args;
        x->arg_count = queued->arg_count;
        x->keyspace = s->keyspace;
        size_t start = x->reply->out->size;
        queued->command->handler(x);
        if (!ok(x->failure)) {
            x->reply->out->size = start;
            exec_error_reply(x->reply, x->failure);
            x->failure = ST_OK;
            x->stopped = false;
        }
    }
    buf_deinit(&data);
}
