/* SPDX-License-Identifier: MIT
 *
 * session_resp.c -- RESP: from bytes to commands, and the decision where and when each one runs.
 *
 * The usual case is short: parse, look up, try, append the reply. Everything else is a reason to
 * leave that path: not complete (ask for more), not now (S1 to S3 of session.h: stall), not here
 * or not without waiting (a struct request).
 */
#include "base/fault.h"

#include "server/cmd.h"
#include "server/multi.h"
#include "server/number.h"
#include "server/route.h"
#include "server/session.h"

#include <ctype.h>
#include <stdio.h>

/* What is answered at home at once; it fits in a chunk of output of the smaller kind
 * (core_output.c).
 */
#define HOME_REPLY_BYTES 4000u
/* The parser's memory for any usual request. */
#define PARSER_SMALL_BYTES (16u << 10)

/* Arguments that are looked at to refuse a command, whatever it is: its name, that of its part, and
 * what the words of the refusal show. */
#define ARGS_HEAD 64u

enum dispatch {
    DISPATCH_DONE,  /* answered, or a request was started */
    DISPATCH_STALL, /* not now: the same bytes come again */
};

struct call {
    struct session *s;
    const struct command *command;
    const struct bytes *args;
    u32 arg_count;
    u64 start_ns;
    u32 keys; /* estimate: request_keys */
    bool silent;
    bool waits; /* it was tried in this turn, and has to wait */
};

/* ---- replies ---- */

/* A place for a reply that has to wait behind what is under way. It is taken before the command
 * runs: what has taken effect must be answered. NULL: no place now. */
static struct request *
reply_slot(struct call *call)
{
    struct request *slot =
        request_new(call->s->shard, call->command, NULL, 0, 1, call->s->pending_count);
    if (slot == NULL) return NULL;
    buf_init(&slot->reply, &call->s->shard->budget);
    slot->session = call->s;
    slot->silent = call->silent;
    slot->done = true;
    return slot;
}

/* Puts the reply into its slot, at the end of the line. A reply that finds no memory is an
 * overload refusal if the command changed nothing; else its outcome becomes unknown. wrote: it has,
 * as EXEC may, which is no writing command by itself. */
static void
answer_later(struct call *call, struct request *slot, struct resp_writer *w, bool wrote, u64 seq)
{
    struct session *s = call->s;
    bool kept = !w->failed && request_reply_set(slot, buf_bytes(w->out));
    if (kept && !request_reply_settle(slot, s->shard)) MARK("server.session.unsettled");
    if (!kept) {
        w->out->size = 0;
        exec_error_reply(w, ST_NO_MEMORY);
        if (wrote || (call->command->flags & COMMAND_WRITE) || w->failed ||
            !request_reply_set(slot, buf_bytes(w->out)))
            slot->unknown = true;
    }
    slot->seq = seq;
    list_push_back(&s->pending, &slot->link);
    s->pending_count++;
}

/* An answer that needs nothing but itself: only given when nothing is under way. */
static void
answer_now(struct call *call, const struct resp_writer *w)
{
    CHECK(list_empty(&call->s->pending));
    if (w->failed) {
        session_abort(call->s);
        return;
    }
    if (!call->silent) session_write(call->s, buf_bytes(w->out), 0);
}

/* A long one (COMMAND DOCS) goes out as the client and the memory for output allow, as those of
 * requests do. What changes something answers in a few bytes; this has changed nothing. */
static void
answer_long(struct call *call, struct resp_writer *w)
{
    struct request *slot = w->failed ? NULL : reply_slot(call);
    if (slot != NULL) {
        answer_later(call, slot, w, false, 0);
        session_deliver(call->s);
        return;
    }
    w->failed = false;
    w->out->size = 0;
    exec_error_reply(w, ST_NO_MEMORY);
    answer_now(call, w);
}

static void
start(struct session *s, struct request *request)
{
    request->early = s->pending_count != 0;
    list_push_back(&s->pending, &request->link);
    s->pending_count++;
    request_start(request);
}

static struct request *
new_request(struct call *call, u32 owner, u64 key_hash)
{
    struct session *s = call->s;
    struct request *request = request_new(s->shard, call->command, call->args, call->arg_count,
                                          call->keys, s->pending_count);
    if (request == NULL) return NULL;
    request->session = s;
    request->owner = owner;
    request->key_hash = key_hash;
    request->keyspace = s->keyspace;
    request->level = s->level;
    request->resp = s->resp;
    request->silent = call->silent;
    request->start_ns = call->start_ns;
    return request;
}

/* No place for a request. Somebody will free one, or nobody has one and it does not fit. */
static enum dispatch
no_place(struct call *call, struct resp_writer *w)
{
    struct session *s = call->s;
    struct shard *shard = s->shard;
    size_t bytes = 0;
    for (u32 i = 0; i < call->arg_count; i++)
        bytes += call->args[i].size;
    if (session_stall_for_place(s, bytes, call->keys)) return DISPATCH_STALL;
    shard->stats->requests_refused++;
    w->out->size = 0;
    exec_error_reply(w, ST_NO_MEMORY);
    if (call->command->place == PLACE_EXEC) session_multi_free(s); /* refused: it is over */
    answer_now(call, w);
    return DISPATCH_DONE;
}

/* ---- where and when ---- */

/* S1: whether one that is under way stands in the way of this one. A key of another shard has its
 * order there: its owner gets the commands in order and keeps them so (request.c). */
static bool
conflicts(const struct session *s, u64 key_hash, bool writes)
{
    list_for_each (node, &s->pending) {
        const struct request *request = list_entry(node, struct request, link);
        if (request->done) continue;
        if (request->key_hash == 0) return true; /* S2 */
        /* In a cluster two attempts of one may be under way to different nodes. */
        if (request->owner != s->shard->index && s->shard->server->cluster == NULL) continue;
        if (request->key_hash == key_hash && (writes || request->writes)) return true;
    }
    return false;
}

static enum dispatch
run_on_fiber(struct call *call, struct resp_writer *w)
{
    struct request *request = new_request(call, call->s->shard->index, 0);
    if (request == NULL) return no_place(call, w);
    start(call->s, request);
    return DISPATCH_DONE;
}

static enum dispatch
run_at_home(struct call *call, struct resp_writer *w)
{
    struct session *s = call->s;
    struct exec x;
    exec_init(&x, s->shard, &s->shard->budget, w);
    x.session = s;
    x.command = call->command;
    x.args = call->args;
    x.arg_count = call->arg_count;
    x.keyspace = s->keyspace;
    x.now_ms = io_wall_ms();
    call->command->handler(&x);
    bool waits = status_is(x.failure, ST_WOULD_WAIT);
    if (!ok(x.failure)) {
        w->out->size = 0;
        w->failed = false;
        if (!waits) exec_error_reply(w, x.failure);
    }
    exec_deinit(&x);
    if (waits) return run_on_fiber(call, w); /* it is long */
    /* What turned replies off or on counts for its own reply, too. */
    if (call->command->handler == cmd_client_reply || call->command->handler == cmd_reset)
        call->silent = s->reply_off || s->reply_skip;
    if (w->out->size > (w->failed ? 256u : HOME_REPLY_BYTES))
        answer_long(call, w);
    else
        answer_now(call, w);
    if (s->close_after) session_close(s);
    return DISPATCH_DONE;
}

/* By owner. */
static enum dispatch
start_split(struct call *call, struct resp_writer *w)
{
    struct session *s = call->s;
    struct request *request = new_request(call, s->shard->index, 0);
    if (request == NULL) return no_place(call, w);
    list_push_back(&s->pending, &request->link);
    s->pending_count++;
    bool reads = call->command->place == PLACE_SPLIT_ARRAY;
    if (call->keys > (reads ? REQUEST_KEYS_AT_ONCE : REQUEST_KEYS_AT_ONCE_OTHERS)) {
        request_start_stretches(request);
        return DISPATCH_DONE;
    }
    if (request_start_parts(s->shard, request)) return DISPATCH_DONE;
    list_del(&request->link);
    s->pending_count--;
    request_free(request);
    return no_place(call, w);
}

/* Tries here, else makes a request. */
static enum dispatch
run_on_owner(struct call *call, struct resp_writer *w, u32 owner, u64 key_hash, void *extra,
             bool at_home)
{
    struct session *s = call->s;
    struct shard *shard = s->shard;
    if (owner == shard->index && !at_home) {
        struct request *slot = NULL;
        if (!list_empty(&s->pending)) {
            if (!request_memory_scarce(shard)) slot = reply_slot(call);
            if (slot == NULL) return no_place(call, w);
        }
        struct exec x;
        exec_init(&x, shard, &shard->budget, w);
        x.command = call->command;
        x.args = call->args;
        x.arg_count = call->arg_count;
        x.keyspace = s->keyspace;
        x.extra = extra;
        /* Much is not tried in a turn that is over, though everything were in memory. */
        bool late = call->keys > REQUEST_KEYS_LIGHT && fiber_should_yield();
        bool done = !late && !call->waits && exec_try(&x, call->command->handler);
        u64 seq = x.seq;
        bool in_pieces = call->command->place == PLACE_SPLIT_ARRAY &&
                         (w->failed || status_is(x.failure, ST_TOO_LARGE));
        /* A request can wait for memory, and its reply for the client. */
        bool memory = !w->failed && !status_is(x.failure, ST_NO_MEMORY);
        exec_deinit(&x);
        bool roomy = memory && (slot != NULL || session_has_room(s, w->out->size));
        /* Those before it need the memory: it is put off (request.h). */
        bool early = slot != NULL && w->out->size > REQUEST_INLINE_REPLY &&
                     (request_memory_scarce(shard) || !request_reply_may_wait(shard, w->out->size));
        if (in_pieces || (done && !x.wrote && (!roomy || early))) {
            w->failed = false;
            w->out->size = 0;
            done = false;
        }
        if (done) {
            shard->stats->tried_inline++;
            if (extra != NULL) session_exec_done(s, call->command);
            if (!roomy && !w->failed && !call->silent) slot = reply_slot(call);
            if (slot != NULL) {
                answer_later(call, slot, w, x.wrote, seq);
                if (!roomy) session_deliver(s);
            } else if (w->failed) { /* it took effect, and there is no room to say so */
                session_abort(s);
            } else if (!call->silent) {
                session_write(s, buf_bytes(w->out), seq);
            }
            return DISPATCH_DONE;
        }
        if (slot != NULL) request_free(slot);
        if (call->command->place == PLACE_SPLIT_ARRAY) return start_split(call, w);
    }
    struct request *request = new_request(call, at_home ? shard->index : owner, key_hash);
    if (request == NULL) {
        if (call->command->place == PLACE_WATCH) session_exec_done(s, call->command);
        return no_place(call, w);
    }
    request->extra = extra;
    request->at_home = at_home;
    start(s, request);
    return DISPATCH_DONE;
}

/* Many connections may have fewer each, so that what they are owed then fits and nobody waits
 * behind a queue of thousands that one client filled. */
static u32
requests_max(const struct shard *shard)
{
    u32 share = SHARD_REQUESTS_MAX / 2 / MAX(shard->session_count, 1u);
    return CLAMP(share, 8u, SESSION_REQUESTS_MAX);
}

/* In a cluster: a key's node may be another one. Started before it is pending, and never done from
 * inside of that. */
static enum dispatch
start_routed(struct call *call, struct resp_writer *w, u64 token, u64 key_hash, bool parts)
{
    struct session *s = call->s;
    struct request *request = new_request(call, s->shard->index, key_hash);
    if (request == NULL) {
        if (call->command->place == PLACE_WATCH) session_exec_done(s, call->command);
        return no_place(call, w);
    }
    request->connected_ns = s->created_ns;
    if (call->command->place > PLACE_SPLIT_ARRAY) session_exec_attach(s, request);
    bool started = parts ? route_start_parts(request) : route_start(request, token);
    if (!started) {
        request_free(request);
        if (call->command->place == PLACE_WATCH) session_exec_done(s, call->command);
        return no_place(call, w);
    }
    list_push_back(&s->pending, &request->link);
    s->pending_count++;
    return DISPATCH_DONE;
}

static enum dispatch
run_on_keys(struct call *call, struct resp_writer *w)
{
    struct session *s = call->s;
    const struct server *server = s->shard->server;
    u32 first, last, step;
    command_key_range(call->command, call->arg_count, &first, &last, &step);
    u64 token = hash_token(call->args[first]);
    u32 owner = shard_of_token(server, token);
    if (first == last) {
        u64 hash = exec_key_hash(s->keyspace, call->args[first]) | 1;
        if (!list_empty(&s->pending) &&
            (s->pending_count >= requests_max(s->shard) ||
             conflicts(s, hash, (call->command->flags & COMMAND_WRITE) != 0))) {
            session_stall(s, SESSION_WAITS_ORDER);
            return DISPATCH_STALL;
        }
        if (server->cluster != NULL) return start_routed(call, w, token, hash, false);
        return run_on_owner(call, w, owner, hash, NULL, false);
    }
    bool split = call->command->place != PLACE_KEYS;
    bool one_owner = true;
    for (u32 i = first + step; i <= last; i += step) {
        u64 other = hash_token(call->args[i]);
        if (!split && token_slot(other) != token_slot(token)) {
            resp_error(w, "CROSSSLOT Keys in request don't hash to the same slot");
            answer_now(call, w);
            return DISPATCH_DONE;
        }
        if (shard_of_token(server, other) != owner) one_owner = false;
    }
    if (server->cluster != NULL) return start_routed(call, w, token, 0, split);
    bool too_many = split && call->command->place != PLACE_SPLIT_ARRAY &&
                    call->keys > REQUEST_KEYS_AT_ONCE_OTHERS;
    /* Elsewhere as a part, which can go on in stretches when there is no memory for all of it. */
    if (call->command->place == PLACE_SPLIT_ARRAY && owner != s->shard->index) one_owner = false;
    if (one_owner && !too_many) return run_on_owner(call, w, owner, 0, NULL, false);
    return start_split(call, w);
}

static enum dispatch
run(struct call *call, struct resp_writer *w)
{
    struct session *s = call->s;
    switch (call->command->place) {
    case PLACE_KEYS:
    case PLACE_SPLIT_SUM:
    case PLACE_SPLIT_OK:
    case PLACE_SPLIT_ARRAY:
        return run_on_keys(call, w);
    case PLACE_FIBER:
        return run_on_fiber(call, w);
    case PLACE_EXEC:
    case PLACE_WATCH: {
        u32 owner;
        void *extra;
        bool at_home;
        if (session_exec_prepare(s, call->command, call->args, call->arg_count, w, &owner, &extra,
                                 &at_home)) {
            u64 token;
            call->keys = session_exec_keys(s);
            if (session_exec_routed(s, &token) && !at_home)
                return start_routed(call, w, token, 0, false);
            return run_on_owner(call, w, owner, 0, extra, at_home);
        }
        answer_now(call, w);
        return DISPATCH_DONE;
    }
    case PLACE_HOME:
    case PLACE_CONTAINER:
        break;
    }
    return run_at_home(call, w);
}

/* ---- refusals ---- */

static void
refuse_unknown(struct resp_writer *w, const struct bytes *args, u32 arg_count)
{
    char rest[160];
    size_t used = 0;
    rest[0] = '\0';
    for (u32 i = 1; i < MIN(arg_count, ARGS_HEAD) && used < 128; i++) {
        int room = (int)MIN(128 - used, args[i].size);
        int n =
            snprintf(rest + used, sizeof(rest) - used, "'%.*s' ", room, (const char *)args[i].data);
        if (n > 0) used = MIN(used + (size_t)n, sizeof(rest) - 1);
    }
    resp_error(w, "ERR unknown command '%.*s', with args beginning with: %s",
               (int)MIN(args[0].size, 128u), (const char *)args[0].data, rest);
}

static bool
watches_too_many(const struct command *command, u32 arg_count)
{
    return command->place == PLACE_WATCH && arg_count - 1 > MULTI_WATCHES_MAX;
}

/* The command of a call, or an error written to w. *rejected: the command whose arguments are too
 * few or too many. */
static const struct command *
look_up(const struct session *s, struct resp_writer *w, const struct bytes *args, u32 arg_count,
        const struct command **rejected)
{
    const struct command *command = command_find(args[0]);
    if (command == NULL) {
        refuse_unknown(w, args, arg_count);
        return NULL;
    }
    if (arg_count > 1 && (command->place == PLACE_CONTAINER || command->handler == cmd_command)) {
        const struct command *sub = command_find_sub(command, args[1]);
        if (sub == NULL) {
            char upper[32];
            size_t i = 0;
            for (; command->name[i] != '\0' && i + 1 < sizeof(upper); i++)
                upper[i] = (char)toupper((unsigned char)command->name[i]);
            upper[i] = '\0';
            resp_error(w, "ERR unknown subcommand '%.*s'. Try %s HELP.",
                       (int)MIN(args[1].size, 128u), (const char *)args[1].data, upper);
            return NULL;
        }
        command = sub;
    }
    if (!command_arity_fits(command, arg_count)) {
        resp_error(w, "ERR wrong number of arguments for '%s' command", command->name);
        *rejected = command;
        return NULL;
    }
    /* What is refused in any case is refused before it has cost anybody much. */
    if (watches_too_many(command, arg_count)) {
        if (session_in_multi(s))
            multi_refuse_nested_watch(w);
        else
            multi_refuse_watches(w);
        *rejected = command;
        return NULL;
    }
    if (command->handler == cmd_msetnx && arg_count / 2 > LIMIT_BATCH_OPS) {
        exec_error_reply(w, ST_TOO_LARGE);
        *rejected = command;
        return NULL;
    }
    return command;
}

/* Keys at the door, and the values of pairs: each shard sees some of them only, and one that refuses
 * would come too late for the others. A queued MSET with half a pair, or too large a value, is
 * answered when it runs (half a pair: as in Redis). */
static bool
args_fit(struct resp_writer *w, const struct command *command, const struct bytes *args,
         u32 arg_count, bool queued)
{
    u32 first, last, step;
    command_key_range(command, arg_count, &first, &last, &step);
    if (!queued && step > 1 && last >= first && (arg_count - first) % step != 0) {
        resp_error(w, "ERR wrong number of arguments for '%s' command", command->name);
        return false;
    }
    for (u32 i = first; i <= last && last >= first; i += step) {
        if (args[i].size == 0) {
            resp_error(w, "ERR key is empty: a key has 1 to %u bytes", LIMIT_KEY_BYTES);
            return false;
        }
        if (args[i].size > LIMIT_KEY_BYTES) {
            resp_error(w, "ERR key is too large: %zu bytes, a key has 1 to %u bytes", args[i].size,
                       LIMIT_KEY_BYTES);
            return false;
        }
        if (!queued && step > 1 && !cmd_value_fits(w, args[i + 1].size)) return false;
    }
    return true;
}

/* EXEC itself was refused: the transaction is over, if there was one, and the reply says why. A
 * prefix that tells more than ERR belongs to the reason, as in Redis. There may be no memory to say
 * it. */
static void
abort_exec(struct session *s, struct resp_writer *w)
{
    session_multi_free(s);
    if (w->failed) return;
    char reason[128];
    struct bytes text = buf_bytes(w->out);
    size_t skip = memcmp(text.data, "-ERR ", 5) == 0 ? 5 : 1, end = 2; /* "\r\n" */
    size_t size = MIN(text.size - skip - end, sizeof(reason) - 1);
    memcpy(reason, text.data + skip, size);
    reason[size] = '\0';
    w->out->size = 0;
    resp_error(w, "EXECABORT Transaction discarded because of: %s", reason);
}

void
session_skip_goes_on(struct session *s)
{
    s->reply_skip = s->reply_skip_next;
    s->reply_skip_next = false;
}

/* One complete command. */
static enum dispatch
dispatch(struct session *s, const struct bytes *args, u32 arg_count, u64 start_ns, bool waits)
{
    struct shard *shard = s->shard;
    shard->reply.size = 0;
    struct resp_writer w = {.out = &shard->reply, .version = s->resp};
    struct call call = {
        .s = s, .args = args, .arg_count = arg_count, .start_ns = start_ns, .waits = waits};

    const struct command *rejected = NULL;
    const struct command *command = look_up(s, &w, args, arg_count, &rejected);
    bool single_key = command != NULL && command->place <= PLACE_SPLIT_ARRAY &&
                      !session_in_multi(s) && session_is_let_in(s);
    if (single_key) {
        u32 first, last, step;
        command_key_range(command, arg_count, &first, &last, &step);
        single_key = first == last;
    }
    if (!single_key && !list_empty(&s->pending)) { /* S2 */
        session_stall(s, SESSION_WAITS_ORDER);
        return DISPATCH_STALL;
    }
    call.silent = s->reply_off || s->reply_skip;

    /* What is no command is told so before the password is asked for, as in Redis. */
    bool refused = command == NULL;
    if (!refused && !session_is_let_in(s) && !(command->flags & COMMAND_NO_AUTH)) {
        resp_error(&w, "NOAUTH Authentication required.");
        refused = true;
    }
    if (!refused && !args_fit(&w, command, args, arg_count, session_in_multi(s))) refused = true;
    if (!refused && session_in_multi(s) && command->flags & COMMAND_NO_MULTI) {
        resp_error(&w, "ERR Command not allowed inside a transaction");
        refused = true;
    }

    enum dispatch result = DISPATCH_DONE;
    bool counted = false;
    if (refused) {
        if (!list_empty(&s->pending)) {
            session_stall(s, SESSION_WAITS_ORDER);
            return DISPATCH_STALL;
        }
        if (command != NULL) rejected = command;
        /* WATCH inside MULTI is refused and spoils nothing, however many keys it names. */
        bool watch = rejected != NULL && watches_too_many(rejected, arg_count);
        if (text_is(args[0], "exec")) {
            abort_exec(s, &w);
        } else if (session_in_multi(s) && !watch) {
            session_multi_spoil(s);
        }
        shard_count_error(shard, buf_bytes(w.out));
        if (rejected != NULL) shard->stats->commands[command_index(rejected)].rejected++;
        answer_now(&call, &w);
    } else {
        call.command = command;
        call.keys = request_keys(command, arg_count);
        u16 keyspace = s->keyspace;
        if (session_in_multi(s) && !(command->flags & COMMAND_MULTI_NOW)) {
            session_multi_queue(s, command, args, arg_count, &w);
            answer_now(&call, &w);
        } else {
            u32 before = s->pending_count;
            s->last_command = command; /* CLIENT INFO shows itself */
            result = run(&call, &w);
            counted = result == DISPATCH_STALL || s->pending_count != before;
        }
        if (UNLIKELY(shard->monitor_shards != 0) && result == DISPATCH_DONE &&
            !(command->flags & COMMAND_ADMIN))
            monitor_feed(shard, s, keyspace, command, args, arg_count);
        /* What became a request is counted when it ends (slots of finished ones: here). */
        if (!counted || (result == DISPATCH_DONE && w.out->size != 0))
            session_account(s, command, args, arg_count, start_ns, buf_bytes(w.out));
    }
    if (result == DISPATCH_DONE) session_skip_goes_on(s);
    return result;
}

/* ---- parsing ---- */

/* The first arguments as spans, in the shard's scratch. */
static const struct bytes *
spread_first(struct session *s, struct bytes data, u32 count)
{
    struct buf *args = &s->shard->args;
    args->size = 0;
    if (!buf_reserve(args, count * sizeof(struct bytes))) return NULL;
    struct bytes *spans = (struct bytes *)(void *)args->data;
    for (u32 i = 0; i < count; i++)
        spans[i] = resp_arg(&s->parser, data, i);
    return spans;
}

/* All of them, but for a command that is refused by how many there are or by its name: a million
 * spans are some 50 ms. */
static const struct bytes *
spread_args(struct session *s, struct bytes data)
{
    u32 count = s->parser.arg_count;
    if (LIKELY(count <= ARGS_HEAD)) return spread_first(s, data, count);
    const struct bytes *head = spread_first(s, data, ARGS_HEAD);
    if (head == NULL) return NULL;
    s->shard->reply.size = 0;
    struct resp_writer w = {.out = &s->shard->reply, .version = s->resp};
    const struct command *rejected = NULL;
    if (look_up(s, &w, head, count, &rejected) == NULL) return head;
    return spread_first(s, data, count);
}

static void
protocol_error(struct session *s, const char *text)
{
    struct shard *shard = s->shard;
    shard->reply.size = 0;
    struct resp_writer w = {.out = &shard->reply, .version = s->resp};
    resp_error(&w, "ERR %s", text);
    shard->stats->errors[SERVER_ERROR_PROTOCOL]++;
    session_write(s, buf_bytes(w.out), 0);
    session_close(s);
}

/* No memory to read even the head of a request: one who is told can come back, one whose
 * connection just ends looks for the mistake in the network. Takes nothing from the budget that
 * is used up. */
void
session_resp_no_memory(struct session *s)
{
    static const char text[] = "-OOM this node has no memory for one more request, come back "
                               "later or give it more (memory)\r\n";
    s->shard->stats->requests_refused++;
    session_refusal_log(s->shard, "no memory for a request");
    session_write(s, BYTES(text, sizeof(text) - 1), 0);
    session_close(s);
}

/* Thousands of idle connections must not keep, each a little, what newcomers need. */
static void
parser_trim(struct session *s)
{
    const struct budget *budget = &s->shard->budget;
    if (budget->used_bytes > budget->limit_bytes / 2) resp_parser_trim(&s->parser);
}

/* "POST / HTTP/1.1" and "Host:" come from a browser that was tricked into talking to us, in
 * whatever case it writes them. */
static bool
is_http(const struct bytes *args)
{
    return text_is(args[0], "post") || text_is(args[0], "host:");
}

/* What is said to a request that could not even be read goes behind the answers of those before
 * it: would it become theirs, what they have done would count as refused. */
static bool
waits_for_answers(struct session *s)
{
    if (list_empty(&s->pending)) return false;
    session_stall(s, SESSION_WAITS_ORDER);
    resp_parser_reset(&s->parser);
    return true;
}

size_t
session_resp_received(struct session *s, struct bytes data)
{
    size_t at = 0;
    u64 clock_ns = io_clock_ns();
    while (at < data.size && !s->closing) {
        if (at != 0 && fiber_should_yield()) {
            io_conn_again(s->conn);
            break;
        }
        struct bytes rest = BYTES(data.data + at, data.size - at);
        bool waits = false;
        if (session_may_express(s)) {
            size_t taken = session_express(s, rest, &clock_ns, &waits);
            at += taken;
            if (s->stall != SESSION_RUNS) break;
            if (s->conn != NULL && io_conn_output_full(s->conn)) break;
            if (taken != 0) continue;
        }
        bool let_in = session_is_let_in(s);
        u32 args_max = let_in ? RESP_ARGS_MAX : RESP_ARGS_MAX_UNAUTHENTICATED;
        u32 bulk_max = let_in ? REQUEST_BYTES_MAX : RESP_BULK_BYTES_MAX_UNAUTHENTICATED;
        size_t consumed = 0, wanted = 0;
        enum resp_result result =
            resp_parse(&s->parser, rest, args_max, bulk_max, &consumed, &wanted);
        if (result == RESP_INCOMPLETE && wanted <= rest.size) { /* many arguments: others first */
            io_conn_again(s->conn);
            break;
        }
        if (result == RESP_INCOMPLETE) {
            if (wanted > REQUEST_BYTES_MAX) {
                if (waits_for_answers(s)) break;
                protocol_error(s, "Protocol error: request is larger than 16 MiB");
                break;
            }
            /* Half a request of very many arguments is a list of them, too. */
            const struct budget *budget = &s->shard->budget;
            if (s->parser.args.capacity > PARSER_SMALL_BYTES &&
                budget->used_bytes > budget->limit_bytes / 2) {
                if (waits_for_answers(s)) break;
                session_resp_no_memory(s);
                return data.size;
            }
            io_conn_want(s->conn, wanted);
            s->unfinished_wanted = wanted;
            break;
        }
        if (result == RESP_ERROR || result == RESP_NO_MEMORY) {
            if (waits_for_answers(s)) break;
            if (result == RESP_ERROR)
                protocol_error(s, s->parser.error);
            else
                session_resp_no_memory(s);
            return data.size;
        }
        if (s->parser.arg_count != 0) {
            const struct bytes *args = spread_args(s, rest);
            if (args == NULL) {
                if (waits_for_answers(s)) break;
                session_resp_no_memory(s);
                return data.size;
            }
            if (is_http(args)) {
                s->shard->stats->errors[SERVER_ERROR_PROTOCOL]++;
                session_abort(s);
                return data.size;
            }
            if (dispatch(s, args, s->parser.arg_count, clock_ns, waits) == DISPATCH_STALL) {
                resp_parser_reset(&s->parser);
                break;
            }
            clock_ns = io_clock_ns();
        } else {
            /* An EXEC under way may yet find a CLIENT REPLY SKIP, which this uses up. */
            if (session_in_multi(s) && waits_for_answers(s)) break;
            session_skip_goes_on(s);
        }
        at += consumed;
        if (s->stall != SESSION_RUNS) break;
        if (s->conn != NULL && io_conn_output_full(s->conn)) break;
    }
    if (s->shard->args.capacity > KIB(256)) buf_clear(&s->shard->args, 0);
    if (s->shard->reply.capacity > KIB(256)) buf_clear(&s->shard->reply, 0);
    parser_trim(s);
    return s->closing ? data.size : at;
}
