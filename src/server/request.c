/* SPDX-License-Identifier: MIT
 *
 * request.c -- see request.h.
 */
#include "server/request.h"

#include "base/fault.h"

#include "server/native.h"
#include "server/session.h"

struct request *
request_new(struct shard *shard, const struct command *command, const struct bytes *args,
            u32 arg_count)
{
    if (shard->request_count >= SHARD_REQUESTS_MAX) return NULL;
    if (shard->request_count > 0 && BUGGIFY("server.request.table_full")) return NULL;
    size_t memory = sizeof(struct request) + arg_count * sizeof(struct bytes);
    for (u32 i = 0; i < arg_count; i++)
        memory += args[i].size;
    /* The last quarter is for the replies of those that are under way; a write is copied into a
     * batch, whose buffer grows by doubling. */
    const struct budget *budget = &shard->budget;
    u64 need = command->flags & COMMAND_WRITE ? 3 * memory : memory;
    if (shard->request_count != 0 && budget->used_bytes + need > budget->limit_bytes / 4 * 3)
        return NULL;
    struct request *request = mem_alloc(&shard->budget, memory);
    if (request == NULL) return NULL;
    memset(request, 0, sizeof(*request));
    request->memory = memory;
    request->command = command;
    request->args = (struct bytes *)(request + 1);
    request->arg_count = arg_count;
    u8 *to = (u8 *)(request->args + arg_count);
    for (u32 i = 0; i < arg_count; i++) {
        if (args[i].size != 0) memcpy(to, args[i].data, args[i].size);
        request->args[i] = BYTES(to, args[i].size);
        to += args[i].size;
    }
    list_init(&request->link);
    list_init(&request->work.link);
    list_init(&request->durable.link);
    list_init(&request->order_link);
    list_init(&request->followers);
    list_init(&request->follower_link);
    request->home = shard->index;
    request->owner = shard->index;
    request->resp = 2;
    request->start_ns = io_clock_ns();
    request->writes = (command->flags & COMMAND_WRITE) != 0;
    shard->request_count++;
    shard->stats->requests_pending = shard->request_count;
    return request;
}

struct bytes
request_reply(const struct request *request)
{
    if (request->inline_size != 0) return BYTES(request->inline_reply, request->inline_size);
    return buf_bytes(&request->reply);
}

bool
request_reply_set(struct request *request, struct bytes reply)
{
    if (reply.size > REQUEST_INLINE_REPLY)
        return buf_append(&request->reply, reply.data, reply.size);
    request->inline_size = (u32)reply.size;
    if (reply.size > 0) memcpy(request->inline_reply, reply.data, reply.size);
    return true;
}

/* ---- the end ---- */

static void
release(struct request *request)
{
    struct shard *shard = shard_self();
    CHECK(request->home == shard->index);
    if (request->parts != NULL)
        mem_free(&shard->budget, request->parts, request->part_count * sizeof(*request->parts));
    mem_free(&shard->budget, request, request->memory);
    CHECK(shard->request_count > 0);
    shard->request_count--;
    shard->stats->requests_pending = shard->request_count;
    session_place_free(shard);
    if (shard->request_count == 0) fiber_queue_wake_all(&shard->idle);
}

static void
deliver_release(struct io_mail *mail)
{
    release(CONTAINER_OF(mail, struct request, mail));
}

static void
deliver_free_reply(struct io_mail *mail)
{
    struct request *request = CONTAINER_OF(mail, struct request, mail);
    buf_deinit(&request->reply);
    request->mail.deliver = deliver_release;
    io_mail_send(request->home, &request->mail);
}

void
request_free(struct request *request)
{
    CHECK(!list_linked(&request->link));
    if (request->reply.budget != NULL && request->reply.capacity != 0) {
        if (request->owner != request->home) {
            request->mail.deliver = deliver_free_reply;
            io_mail_send(request->owner, &request->mail);
            return;
        }
        buf_deinit(&request->reply);
    }
    release(request);
}

/* ---- splitting by owner ---- */

/* The reply of a command whose parts have all come back. */
static void
gather(struct request *request)
{
    struct shard *shard = shard_self();
    buf_init(&request->reply, &shard->budget);
    struct resp_writer w = {.out = &request->reply, .version = request->resp};
    struct request *failed = NULL;
    i64 sum = 0;
    for (u32 i = 0; i < request->part_count; i++) {
        struct request *part = request->parts[i];
        if (part == NULL) continue;
        if (part->unknown) request->unknown = true;
        struct resp_reply head = {.kind = RESP_REPLY_ERROR};
        size_t consumed = 0;
        status st = resp_read(request_reply(part), &head, &consumed);
        if (!ok(st) || head.kind == RESP_REPLY_ERROR) failed = part;
        if (head.kind == RESP_REPLY_INTEGER) sum += head.integer;
    }
    if (failed != NULL) {
        struct bytes reply = request_reply(failed);
        if (!buf_append(&request->reply, reply.data, reply.size)) w.failed = true;
    } else if (request->command->place == PLACE_SPLIT_SUM) {
        resp_integer(&w, sum);
    } else if (request->command->place == PLACE_SPLIT_OK) {
        resp_simple(&w, "OK");
    } else {
        u64 limit = shard->config->client_output_limit_bytes;
        size_t at[LIMIT_SHARDS] = {0};
        u32 first, last, step;
        command_key_range(request->command, request->arg_count, &first, &last, &step);
        resp_array(&w, (last - first) / step + 1);
        for (u32 i = first; i <= last; i += step) {
            u32 owner = shard_of_token(shard->server, hash_token(request->args[i]));
            struct bytes reply = request_reply(request->parts[owner]);
            struct resp_reply element;
            size_t consumed;
            if (at[owner] == 0) { /* skips the array's head */
                status st = resp_read(reply, &element, &consumed);
                CHECK(ok(st) && element.kind == RESP_REPLY_ARRAY);
                at[owner] = consumed;
            }
            struct bytes rest = BYTES(reply.data + at[owner], reply.size - at[owner]);
            status st = resp_read(rest, &element, &consumed);
            CHECK(ok(st));
            if (!buf_append(&request->reply, rest.data, consumed)) w.failed = true;
            at[owner] += consumed;
            if (limit != 0 && request->reply.size > limit) w.failed = true;
            if (w.failed) break;
        }
    }
    if (w.failed) {
        request->reply.size = 0;
        w.failed = false;
        exec_error_reply(&w, ST_NO_MEMORY);
    }
    for (u32 i = 0; i < request->part_count; i++)
        if (request->parts[i] != NULL) request_free(request->parts[i]);
}

/* At home: the outcome is there. */
static void
finished(struct request *request)
{
    if (request->waiter != NULL) {
        request->done = true;
        fiber_queue_wake_all(request->waiter);
        return;
    }
    struct request *parent = request->parent;
    if (parent == NULL) {
        session_request_done(request);
        return;
    }
    CHECK(parent->parts_left > 0);
    if (--parent->parts_left == 0) {
        gather(parent);
        session_request_done(parent);
    }
}

static void
deliver_finished(struct io_mail *mail)
{
    finished(CONTAINER_OF(mail, struct request, mail));
}

/* ---- running, at the owner ----
 *
 * Mails come in the order in which the connection sent them, and what can run at once runs then. So
 * the commands of one connection on one key get out of order only when one of them has to wait for
 * a fiber. Such a one stands in shard->order until it ran; a later one of the same connection and
 * key that may not pass it becomes its follower. (Home need not hold back commands on one key,
 * which would cost each of a pipeline of INCRs a write of the log.) Followers are run from a list,
 * not by each other: there may be hundreds. */

/* The last one here that request must not pass, or NULL. */
static struct request *
order_find(struct shard *shard, const struct request *request)
{
    if (request->key_hash == 0) return NULL;
    const struct list *bucket = &shard->order[request->key_hash % SHARD_ORDER_BUCKETS];
    for (struct list *node = bucket->prev; node != bucket; node = node->prev) {
        struct request *before = list_entry(node, struct request, order_link);
        if (before->session == request->session && before->key_hash == request->key_hash &&
            before != request && (before->writes || request->writes))
            return before;
    }
    return NULL;
}

static void
order_enter(struct shard *shard, struct request *request)
{
    if (request->key_hash == 0 || list_linked(&request->order_link)) return;
    list_push_back(&shard->order[request->key_hash % SHARD_ORDER_BUCKETS], &request->order_link);
}

static void run_here(struct request *request, struct shard *shard);

/* It ran: it stands in nobody's way any more. */
static void
order_leave(struct shard *shard, struct request *request)
{
    list_del(&request->order_link);
    list_splice_back(&shard->order_ready, &request->followers);
}

static void
order_run_ready(struct shard *shard)
{
    if (shard->order_runs) return;
    shard->order_runs = true;
    struct list *node;
    while ((node = list_pop_front(&shard->order_ready)) != NULL)
        run_here(list_entry(node, struct request, follower_link), shard);
    shard->order_runs = false;
}

static void
send_back(struct request *request)
{
    if (request->reply.size <= REQUEST_INLINE_REPLY) {
        request->inline_size = (u32)request->reply.size;
        memcpy(request->inline_reply, request->reply.data, request->reply.size);
        buf_deinit(&request->reply);
    }
    request->mail.deliver = deliver_finished;
    io_mail_send(request->home, &request->mail);
}

static void
reply_is_safe(struct durable_wait *wait, bool failed)
{
    struct request *request = CONTAINER_OF(wait, struct request, durable);
    if (failed) request->unknown = true; /* it may be already: there was no room for the reply */
    request->seq = 0; /* this store's; the home shard would wait for its own to come so far */
    send_back(request);
}

static void
ran(struct request *request, struct shard *shard)
{
    order_leave(shard, request);
    bool local = request->owner == request->home && request->parent == NULL;
    if (local && request->waiter == NULL) {
        finished(request);
        return;
    }
    request->durable.fn = reply_is_safe;
    if (request->seq != 0 && durable_lost(shard, request->seq))
        request->unknown = true;
    else if (request->seq != 0 && durable_wait_start(shard, &request->durable, request->seq))
        return;
    request->seq = 0;
    send_back(request);
}

static void
exec_of_request(struct exec *x, struct request *request, struct resp_writer *w, struct shard *shard)
{
    *w = (struct resp_writer){.out = &request->reply, .version = request->resp};
    exec_init(x, shard, w);
    x->command = request->command;
    x->args = request->args;
    x->arg_count = request->arg_count;
    x->keyspace = request->keyspace;
    x->extra = request->extra;
}

static void
keep_outcome(struct request *request, struct exec *x, struct resp_writer *w)
{
    request->seq = x->seq;
    if (!w->failed) return;
    request->reply.size = 0;
    w->failed = false;
    if (x->wrote) { /* it took effect, and there is no room to say so */
        request->unknown = true;
        return;
    }
    exec_failure_reply(request->command, request->args, w, ST_NO_MEMORY);
    if (request->reply.size == 0) request->unknown = true; /* not even room for that: close */
}

/* Memory for a batch or a reply comes back as others end. Only what has changed nothing runs again.
 */
#define MEMORY_TRIES    100u
#define MEMORY_RETRY_NS (5 * NS_PER_MS)

static MAY_YIELD void
run_waiting(struct request *request, struct exec *x, struct resp_writer *w, struct shard *shard)
{
    for (u32 tries = 1;; tries++) {
        exec_wait(x, request->command->handler);
        bool short_of_memory = w->failed || status_is(x->failure, ST_NO_MEMORY);
        if (!short_of_memory || x->wrote || tries == MEMORY_TRIES) return;
        if (shard->request_count < 2) return; /* nobody will give any back */
        MARK("server.request.memory_awaited");
        exec_deinit(x);
        buf_deinit(&request->reply);
        buf_init(&request->reply, &shard->budget);
        fiber_sleep_ns(MEMORY_RETRY_NS);
        exec_of_request(x, request, w, shard);
    }
}

MAY_YIELD static void
run_on_fiber(struct work *work)
{
    struct request *request = CONTAINER_OF(work, struct request, work);
    struct shard *shard = shard_self();
    struct exec x;
    struct resp_writer w;
    exec_of_request(&x, request, &w, shard);
    if (BUGGIFY("server.request.late_fiber")) fiber_sleep_ns(2 * NS_PER_MS);
    shard->stats->requests_fiber++;
    if (request->command->flags & COMMAND_NATIVE && native_too_late(request->args[0], request)) {
        native_failure(request->args[0], &w, ST_TIMED_OUT);
    } else if (request->command->place == PLACE_FIBER || request->command->place == PLACE_HOME) {
        x.session = request->session;
        x.waits = true;
        x.now_ms = io_wall_ms();
        request->command->handler(&x);
        if (!ok(x.failure)) {
            request->reply.size = 0;
            w.failed = false;
            exec_failure_reply(request->command, request->args, &w, x.failure);
        }
    } else if (request->at_home) {
        x.session = request->session;
        session_exec_on_fiber(&x, request);
    } else {
        run_waiting(request, &x, &w, shard);
    }
    keep_outcome(request, &x, &w);
    exec_deinit(&x);
    ran(request, shard);
    order_run_ready(shard);
}

static void
no_fiber(struct request *request, struct shard *shard)
{
    struct resp_writer w = {.out = &request->reply, .version = request->resp};
    shard->stats->requests_refused++;
    exec_failure_reply(request->command, request->args, &w, ST_OVERLOADED);
    ran(request, shard);
}

static void
go_on_fiber(struct request *request, struct shard *shard)
{
    request->work.run = run_on_fiber;
    if (!shard_work(shard, &request->work)) no_fiber(request, shard);
}

static void
run_here(struct request *request, struct shard *shard)
{
    struct exec x;
    struct resp_writer w;
    exec_of_request(&x, request, &w, shard);
    bool done = exec_try(&x, request->command->handler);
    if (done) keep_outcome(request, &x, &w);
    exec_deinit(&x);
    if (done) {
        ran(request, shard);
    } else {
        order_enter(shard, request);
        go_on_fiber(request, shard);
    }
}

static void
deliver_run(struct io_mail *mail)
{
    struct request *request = CONTAINER_OF(mail, struct request, mail);
    struct shard *shard = shard_self();
    buf_init(&request->reply, &shard->budget);
    struct request *before = order_find(shard, request);
    if (before != NULL) {
        order_enter(shard, request);
        list_push_back(&before->followers, &request->follower_link);
        return;
    }
    run_here(request, shard);
    order_run_ready(shard);
}

static void
deliver_no_fiber(struct io_mail *mail)
{
    no_fiber(CONTAINER_OF(mail, struct request, mail), shard_self());
}

void
request_start(struct request *request)
{
    struct shard *shard = shard_self();
    if (request->owner != shard->index || request->parent != NULL || request->waiter != NULL) {
        if (request->owner != shard->index) shard->stats->requests_forwarded++;
        request->mail.deliver = deliver_run;
        io_mail_send(request->owner, &request->mail);
        return;
    }
    buf_init(&request->reply, &shard->budget);
    request->work.run = run_on_fiber;
    request->work.calls = request->at_home; /* EXEC asks the owner of its keys */
    if (shard_work(shard, &request->work)) return;
    request->mail.deliver = deliver_no_fiber; /* done is never called from inside start */
    io_mail_send(shard->index, &request->mail);
}

MAY_YIELD void
request_call(struct request *request)
{
    struct fiber_queue queue;
    fiber_queue_init(&queue);
    request->waiter = &queue;
    request_start(request);
    while (!request->done) {
        status st = fiber_queue_wait(&queue, FIBER_FOREVER);
        CHECK(ok(st));
    }
}

bool
request_start_parts(struct shard *shard, struct request *request)
{
    u32 count = shard->server->shard_count;
    request->parts = mem_alloc_zero(&shard->budget, count * sizeof(*request->parts));
    if (request->parts == NULL) return false;
    request->part_count = count;

    u32 first, last, step;
    command_key_range(request->command, request->arg_count, &first, &last, &step);
    struct buf args; /* of one part at a time: struct bytes[] */
    buf_init(&args, &shard->budget);
    bool fits = true;
    for (u32 owner = 0; owner < count && fits; owner++) {
        args.size = 0;
        fits = buf_append(&args, &request->args[0], sizeof(struct bytes));
        for (u32 i = first; i <= last && fits; i += step)
            if (shard_of_token(shard->server, hash_token(request->args[i])) == owner)
                fits = buf_append(&args, &request->args[i], step * sizeof(struct bytes));
        u32 part_args = (u32)(args.size / sizeof(struct bytes));
        if (!fits || part_args == 1) continue;
        struct request *part = request_new(
            shard, request->command, (const struct bytes *)(const void *)args.data, part_args);
        fits = part != NULL;
        if (part == NULL) break;
        part->parent = request;
        part->owner = owner;
        part->keyspace = request->keyspace;
        part->resp = request->resp;
        request->parts[owner] = part;
        request->parts_left++;
    }
    buf_deinit(&args);
    if (!fits) {
        for (u32 i = 0; i < count; i++)
            if (request->parts[i] != NULL) request_free(request->parts[i]);
        mem_free(&shard->budget, request->parts, count * sizeof(*request->parts));
        request->parts = NULL;
        return false;
    }
    for (u32 i = 0; i < count; i++)
        if (request->parts[i] != NULL) request_start(request->parts[i]);
    return true;
}
