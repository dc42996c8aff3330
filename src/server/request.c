/* SPDX-License-Identifier: MIT
 *
 * request.c -- see request.h.
 */
#include "server/request.h"

#include "base/fault.h"

#include "server/native.h"
#include "server/route.h"
#include "server/session.h"

/* So many GETs at once read a block without a fiber: as many reads as the disk takes. Completions
 * are all handled in one turn. */
#define BLOCK_READS_MAX LIMIT_IO_IN_FLIGHT

/* ---- places ---- */

u32
request_keys(const struct command *command, u32 arg_count)
{
    if (command->flags & COMMAND_HEAVY) return REQUEST_KEYS_MANY;
    u32 first, last, step;
    command_key_range(command, arg_count, &first, &last, &step);
    return last < first ? 1 : (last - first) / step + 1;
}

/* What is not for small requests. */
static u64
others_have(const struct shard *shard)
{
    return shard->large_budget.used_bytes + shard->kept_budget.used_bytes;
}

/* What is. */
static u64
small_have(const struct shard *shard)
{
    return shard->budget.used_bytes - others_have(shard);
}

/* Whether it may be taken in beside what is there. Of the memory that is not in other hands a
 * quarter is for the replies of those that are under way; of that for large ones half. */
static bool
has_place(const struct shard *shard, enum work_class class, bool large, u64 bytes)
{
    if (shard->request_count >= SHARD_REQUESTS_MAX) return false;
    if (shard->request_count > 0 && BUGGIFY("server.request.table_full")) return false;
    if (class == WORK_HEAVY && shard->heavy_count >= SHARD_HEAVY_REQUESTS_MAX) return false;
    if (large && shard->large_count != 0 &&
        shard->large_budget.used_bytes + bytes > shard->large_budget.limit_bytes / 2)
        return false;
    if (large || shard->request_count == 0) return true;
    u64 room = shard->budget.limit_bytes - others_have(shard);
    u64 limit = class == WORK_LIGHT ? room / 4 * 3 : room / 2;
    return small_have(shard) + bytes <= limit;
}

bool
request_may_fit_later(const struct shard *shard, size_t bytes, bool large)
{
    /* What needs most of the memory might wait for ever. */
    const struct budget *budget = large ? &shard->large_budget : &shard->budget;
    if (bytes > budget->limit_bytes / 4) return false;
    if (shard->request_count + shard->guest_count != 0) return true;
    /* Large frames of others, of which one may be its own. */
    struct io_stats io;
    io_stats_get(&io);
    return io.connections_frames > 1;
}

static struct request *
request_alloc(struct shard *shard, const struct command *command, size_t bytes, u32 arg_count,
              u32 keys, bool large, enum work_class class)
{
    size_t memory = sizeof(struct request) + arg_count * sizeof(struct bytes) + bytes;
    struct request *request = mem_alloc(large ? &shard->large_budget : &shard->budget, memory);
    if (request == NULL) return NULL;
    memset(request, 0, sizeof(*request));
    request->memory = memory;
    request->command = command;
    request->args = (struct bytes *)(request + 1);
    request->arg_count = arg_count;
    request->keys = keys;
    request->large = large;
    work_init(&request->work);
    request->work.class = class;
    request->work.units = (u16)CLAMP(keys, 1, class == WORK_HEAVY ? WORK_UNITS_MAX : 1);
    list_init(&request->link);
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
    shard->heavy_count += class == WORK_HEAVY;
    shard->large_count += large;
    shard->stats->requests_pending = shard->request_count;
    return request;
}

struct request *
request_new(struct shard *shard, const struct command *command, const struct bytes *args,
            u32 arg_count, u32 keys, u32 under_way)
{
    enum work_class class = keys + under_way > REQUEST_KEYS_LIGHT ? WORK_HEAVY : WORK_LIGHT;
    bool large = keys > REQUEST_KEYS_LIGHT;
    size_t bytes = 0;
    for (u32 i = 0; i < arg_count; i++)
        bytes += args[i].size;
    /* A write is copied into a batch. */
    u64 need = sizeof(struct request) + arg_count * sizeof(struct bytes) + bytes;
    if (command->flags & COMMAND_WRITE) need = 3 * need;
    if (!has_place(shard, class, large, need)) return NULL;
    struct request *request = request_alloc(shard, command, bytes, arg_count, keys, large, class);
    if (request == NULL) return NULL;
    u8 *to = (u8 *)(request->args + arg_count);
    for (u32 i = 0; i < arg_count; i++) {
        if (args[i].size != 0) memcpy(to, args[i].data, args[i].size);
        request->args[i] = BYTES(to, args[i].size);
        to += args[i].size;
    }
    return request;
}

struct request *
request_new_part(struct request *whole, u32 owner, u32 arg_count, u32 keys)
{
    struct shard *shard = shard_self();
    struct request *part =
        request_alloc(shard, whole->command, 0, arg_count, keys, whole->large, whole->work.class);
    if (part == NULL) return NULL;
    part->part = true;
    part->owner = owner;
    part->keyspace = whole->keyspace;
    part->resp = whole->resp;
    part->work.flow = whole->work.flow;
    part->start_ns = whole->start_ns;
    part->wanted_until_ns = whole->wanted_until_ns;
    return part;
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

void
request_refuse_without_memory(struct request *request)
{
    static const char words[] = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    static_assert(sizeof(words) <= REQUEST_INLINE_REPLY, "it needs none");
    request->inline_size = sizeof(words) - 1;
    memcpy(request->inline_reply, words, request->inline_size);
}

/* ---- the end ---- */

static void
release(struct request *request)
{
    struct shard *shard = shard_self();
    CHECK(request->home == shard->index);
    route_coordinates_end(request);
    route_free(request);
    if (request->parts != NULL)
        mem_free(&shard->budget, request->parts, request->part_count * sizeof(*request->parts));
    CHECK(shard->request_count > 0);
    shard->request_count--;
    shard->heavy_count -= request->work.class == WORK_HEAVY;
    shard->large_count -= request->large;
    shard->stats->requests_pending = shard->request_count;
    mem_free(request->large ? &shard->large_budget : &shard->budget, request, request->memory);
    session_place_free(shard);
    if (shard->request_count == 0) fiber_queue_wake_all(&shard->workers.idle);
}

static void
deliver_release(struct io_mail *mail)
{
    release(CONTAINER_OF(mail, struct request, mail));
}

/* At the owner, when another shard is the home: from when it comes until its reply has gone. */
static void
guest_comes(const struct request *request, struct shard *shard)
{
    if (request->home != shard->index) shard->guest_count++;
}

static void
guest_leaves(const struct request *request, struct shard *shard)
{
    if (request->home == shard->index) return;
    CHECK(shard->guest_count > 0);
    shard->guest_count--;
    session_place_free(shard); /* the memory of its reply may be enough for one */
}

static void
deliver_free_reply(struct io_mail *mail)
{
    struct request *request = CONTAINER_OF(mail, struct request, mail);
    buf_deinit(&request->reply);
    guest_leaves(request, shard_self());
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

void
request_finish(struct request *request)
{
    if (!route_finished(request)) return;
    if (request->peer != NULL) {
        route_answer(request);
        return;
    }
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
    if (--parent->parts_left != 0) return;
    if (parent->route != NULL ? route_parts_done(parent) : request_parts_done(parent))
        session_request_done(parent);
}

static void
deliver_finished(struct io_mail *mail)
{
    request_finish(CONTAINER_OF(mail, struct request, mail));
}

/* ---- running, at the owner ----
 *
 * Mails come in the order in which the connection sent them, and what can run at once runs then. So
 * the commands of one connection on one key get out of order only when one of them has to wait for
 * a fiber. Such a one stands in shard->order until it ran; a later one of the same connection and
 * key that may not pass it becomes its follower. (Home need not hold back commands on one key,
 * which would cost each of a pipeline of INCRs a write of the log.) Followers are run from a list,
 * not by each other: there may be hundreds. */

/* The last one here, of those before it, that request must not pass, or NULL. There may be more,
 * such as several reads before a write: it is asked again when that one has left. */
static struct request *
order_find(struct shard *shard, const struct request *request)
{
    if (request->key_hash == 0) return NULL;
    const struct list *bucket = &shard->order[request->key_hash % SHARD_ORDER_BUCKETS];
    const struct list *from = list_linked(&request->order_link) ? &request->order_link : bucket;
    for (struct list *node = from->prev; node != bucket; node = node->prev) {
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
    while ((node = list_pop_front(&shard->order_ready)) != NULL) {
        struct request *request = list_entry(node, struct request, follower_link);
        struct request *before = order_find(shard, request);
        if (before == NULL) {
            run_here(request, shard);
            continue;
        }
        MARK("server.request.order_waits_again");
        list_push_back(&before->followers, &request->follower_link);
    }
    shard->order_runs = false;
}

static void
send_back(struct request *request)
{
    if (request->reply.size <= REQUEST_INLINE_REPLY) {
        if (request->reply.size > 0) { /* else it is there (read_aimed), or there was no memory */
            request->inline_size = (u32)request->reply.size;
            memcpy(request->inline_reply, request->reply.data, request->reply.size);
        }
        buf_deinit(&request->reply);
        guest_leaves(request, shard_self());
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
        request_finish(request);
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
    exec_init(x, shard, request_budget(request, shard), w);
    x->command = request->command;
    x->args = request->args;
    x->arg_count = request->arg_count;
    x->keyspace = request->keyspace;
    x->extra = request->extra;
    x->connected_ns = request->connected_ns;
    x->moved = request->moved;
    x->deadline_ns = request->deadline_ns;
    x->begin_ns = request->begin_ns != 0 ? request->begin_ns : request->deadline_ns;
    x->level = request->level;
    x->blind = request->blind;
}

/* It has changed nothing. Native, and without room even to say so, the connection ends: the next
 * reply would answer this request. */
static void
refuse(struct request *request, struct resp_writer *w, status why)
{
    exec_failure_reply(request->command, request->args, w, why);
    if (request->reply.size != 0) return;
    if (request->command->flags & COMMAND_NATIVE)
        request->unknown = true;
    else
        request_refuse_without_memory(request);
}

static void
keep_outcome(struct request *request, struct exec *x, struct resp_writer *w)
{
    request->seq = x->seq;
    request->failure = w->failed ? ST_NO_MEMORY : x->failure;
    if (!w->failed) return;
    request->reply.size = 0;
    w->failed = false;
    if (x->wrote) { /* it took effect, and there is no room to say so */
        request->unknown = true;
        return;
    }
    refuse(request, w, ST_NO_MEMORY);
}

/* ---- putting off what is early (request.h) ---- */

/* What is neither large nor kept may borrow from the shares of these while they have no use for
 * it. Not for early replies: those before them may need that memory, would wait for these, and
 * these for them. */
bool
request_memory_scarce(const struct shard *shard)
{
    u64 shares = shard->large_budget.limit_bytes + shard->kept_budget.limit_bytes;
    return small_have(shard) > shard->budget.limit_bytes - shares;
}

static void
deliver_put_off(struct io_mail *mail)
{
    session_request_put_off(CONTAINER_OF(mail, struct request, mail));
}

/* At the owner: it stays where it is in shard->order. */
static void
put_off(struct request *request)
{
    MARK("server.request.put_off");
    buf_deinit(&request->reply);
    request->mail.deliver = deliver_put_off;
    io_mail_send(request->home, &request->mail);
}

/* Before it runs. */
static bool
is_too_early(const struct request *request, const struct shard *shard)
{
    return request->early &&
           (request_memory_scarce(shard) || BUGGIFY("server.request.memory_scarce"));
}

/* What a reply of so many bytes takes, as a buffer grows (buf.h). */
static u64
reply_room(u64 bytes)
{
    return bytes + bytes / 4 + KIB(8);
}

bool
request_reply_may_wait(const struct shard *shard, size_t bytes)
{
    if (bytes <= REQUEST_REPLY_SHORT_BYTES) return true;
    const struct budget *large = &shard->large_budget;
    u64 left = large->limit_bytes - MIN(large->limit_bytes, large->used_bytes);
    return reply_room(bytes) + reply_room(LIMIT_VALUE_BYTES) <= left;
}

bool
request_reply_settle(struct request *request, struct shard *shard)
{
    struct buf *reply = &request->reply;
    if (reply->size <= REQUEST_REPLY_SHORT_BYTES || reply->budget == &shard->large_budget)
        return true;
    if (buf_move(reply, &shard->large_budget)) return true;
    /* Where it was, as long as half of what small requests may have is left to them. */
    u64 room = shard->budget.limit_bytes - others_have(shard);
    if (small_have(shard) <= room / 4) return true;
    return MARKED("server.request.unsettled", false);
}

/* After it ran: what has changed something cannot run again. */
static bool
was_too_early(struct request *request, const struct exec *x, const struct resp_writer *w,
              struct shard *shard)
{
    if (!request->early || x->wrote) return false;
    if (w->failed || status_is(x->failure, ST_NO_MEMORY)) return true;
    if (request->reply.size <= REQUEST_INLINE_REPLY) return false;
    bool kept =
        request_reply_may_wait(shard, request->reply.size) && request_reply_settle(request, shard);
    return !kept || request_memory_scarce(shard);
}

/* Memory for a batch or a reply comes back as others end. Only what has changed nothing runs again;
 * large requests one at a time, or each would take what the others wait for. So does a small one
 * with a long reply, in their memory, and who has waited long enough. They are patient: others may
 * be sending what they have to their clients, which are given less time meanwhile. But each has its
 * time from when it came, whoever was before it. */
#define MEMORY_TRIES    100u
#define MEMORY_RETRY_NS (5 * NS_PER_MS)
/* What has its memory on all shards cannot see who else has it there: a merge, for one. */
#define MEMORY_UNSEEN_PATIENCE_NS (5 * NS_PER_S)

/* Whether others have memory here that will come back: requests of this shard and of other ones,
 * what clients are still owed for those that have ended, and large ones that are being sent. For a
 * while it is taken for granted of what needs memory of every shard. */
static bool
others_owe_memory(const struct shard *shard, const struct request *request, u64 waiting_since_ns)
{
    if (request->command->place == PLACE_FIBER &&
        io_now_ns() - waiting_since_ns < MEMORY_UNSEEN_PATIENCE_NS)
        return true;
    u32 own = request->part && request->home == shard->index ? 2 : 1; /* the whole is here, too */
    if (shard->request_count + shard->guest_count > own) return true;
    struct io_stats io;
    io_stats_get(&io);
    return io.output_bytes != 0 || io.connections_frames != 0;
}

/* The node stops, which is to take less time than others may need; or a command that asks all
 * shards has begun its reply and failed, or nobody wants it any more. */
static bool
is_over(const struct request *request, const struct shard *shard)
{
    if (shard->draining) return MARKED("server.request.memory_draining", true);
    if (request->wanted_until_ns != NULL && io_now_ns() >= atomic_load(request->wanted_until_ns))
        return MARKED("server.request.memory_unwanted", true);
    const struct session *s = request->session;
    return request->command->place == PLACE_FIBER && (s->conn == NULL || s->closing);
}

/* turn: whether it has the memory's, which a command that streams gives back when it has what it
 * needs (exec_memory_had). */
MAY_YIELD static void
run_once(struct request *request, struct exec *x, struct resp_writer *w, bool *turn)
{
    if (request->command->place != PLACE_FIBER) {
        exec_wait(x, request->command->handler);
        return;
    }
    x->session = request->session;
    x->work = &request->work;
    x->memory_turn = turn;
    x->waits = true;
    x->now_ms = io_wall_ms();
    request->command->handler(x);
    if (ok(x->failure)) return;
    request->reply.size = 0;
    w->failed = false;
    exec_failure_reply(request->command, request->args, w, x->failure);
}

/* false: it is to be put off. */
static MAY_YIELD bool
run_waiting(struct request *request, struct exec *x, struct resp_writer *w, struct shard *shard)
{
    bool alone = false;
    u64 deadline_ns = FIBER_FOREVER, since_ns = 0;
    for (u32 tries = 1;; tries++) {
        run_once(request, x, w, &alone);
        if (was_too_early(request, x, w, shard)) return false;
        bool settled = request_reply_settle(request, shard);
        bool short_of_memory = !settled || w->failed || status_is(x->failure, ST_NO_MEMORY);
        if (!short_of_memory || x->wrote || io_now_ns() >= deadline_ns) break;
        bool read_part = (request->parent != NULL || request->part) &&
                         request->command->place == PLACE_SPLIT_ARRAY;
        if (read_part) break; /* request_parts.c sees to it */
        if (tries == 1) {
            since_ns = io_now_ns();
            deadline_ns =
                MAX(request->start_ns + MEMORY_PATIENCE_NS, since_ns + MEMORY_PATIENCE_MIN_NS);
        }
        if (is_over(request, shard) || !others_owe_memory(shard, request, since_ns)) break;
        MARK("server.request.memory_awaited");
        if (w->failed || !settled) request->long_reply = true;
        exec_deinit(x);
        buf_deinit(&request->reply);
        buf_init(&request->reply, request_budget(request, shard));
        if ((request->large || request->long_reply || tries >= MEMORY_TRIES) && !alone) {
            alone = memory_turn_take(shard, &request->work, request->wanted_until_ns, deadline_ns);
            if (!alone) {
                exec_of_request(x, request, w, shard);
                exec_fail(x, ST_NO_MEMORY);
                exec_failure_reply(request->command, request->args, w, ST_NO_MEMORY);
                break;
            }
        }
        fiber_sleep_ns(MEMORY_RETRY_NS);
        exec_of_request(x, request, w, shard);
    }
    if (alone) memory_turn_give(shard, &request->work);
    return true;
}

MAY_YIELD static void
run_on_fiber(struct work *work)
{
    struct request *request = CONTAINER_OF(work, struct request, work);
    struct shard *shard = shard_self();
    struct exec x;
    struct resp_writer w;
    if (is_too_early(request, shard)) {
        put_off(request);
        return;
    }
    exec_of_request(&x, request, &w, shard);
    if (BUGGIFY("server.request.late_fiber")) fiber_sleep_ns(2 * NS_PER_MS);
    shard->stats->requests_fiber++;
    if (request->command->flags & COMMAND_NATIVE && native_too_late(request->args[0], request)) {
        native_failure(request->args[0], &w, ST_TIMED_OUT);
    } else if (request->in_stretches || request->command->place == PLACE_HOME ||
               (request->command->place == PLACE_FIBER &&
                !(request->command->flags & COMMAND_READONLY))) {
        x.session = request->session;
        x.work = work;
        x.waits = true;
        x.now_ms = io_wall_ms();
        if (request->in_stretches)
            request_run_stretches(&x, request);
        else
            request->command->handler(&x);
        if (!ok(x.failure)) {
            request->reply.size = 0;
            w.failed = false;
            exec_failure_reply(request->command, request->args, &w, x.failure);
        }
    } else if (request->at_home) {
        x.session = request->session;
        session_exec_on_fiber(&x, request);
    } else if (!run_waiting(request, &x, &w, shard)) {
        exec_deinit(&x);
        put_off(request);
        return;
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
    request->failure = ST_OVERLOADED;
    request->unrun = true;
    refuse(request, &w, ST_OVERLOADED);
    ran(request, shard);
}

static void
go_on_fiber(struct request *request, struct shard *shard)
{
    request->work.run = run_on_fiber;
    shard->stats->requests_heavy += request->work.class == WORK_HEAVY;
    if (!work_start(&shard->workers, &request->work)) no_fiber(request, shard);
}

/* ---- a GET that waits for one block of a table, and for nothing else: without a fiber ---- */

static bool
is_plain_read(const struct request *request)
{
    return request->command->handler == cmd_get && request->parent == NULL && !request->part &&
           request->route == NULL;
}

/* What is unusual goes on as it would have gone without: on a fiber, which finds the block in the
 * cache. */
static void
block_came(void *arg, status st, struct lsm_value *value)
{
    struct request *request = arg;
    struct shard *shard = shard_self();
    struct exec x;
    struct resp_writer w;
    shard->block_reads--;
    exec_of_request(&x, request, &w, shard);
    bool done = exec_given(&x, request->command->handler, st, value);
    bool early = done && was_too_early(request, &x, &w, shard);
    bool memory = !w.failed && !status_is(x.failure, ST_NO_MEMORY);
    if (done && !early && memory && request_reply_settle(request, shard)) {
        keep_outcome(request, &x, &w);
        exec_deinit(&x);
        ran(request, shard);
        order_run_ready(shard);
        return;
    }
    exec_deinit(&x);
    if (early) {
        put_off(request);
        return;
    }
    request->reply.size = 0;
    go_on_fiber(request, shard);
    order_run_ready(shard);
}

/* false: it needs a fiber. Work that is heavy, or waits for its turn, keeps its order. */
static bool
read_block(struct request *request, struct shard *shard)
{
    if (!is_plain_read(request) || request->work.class != WORK_LIGHT ||
        shard->server->cluster != NULL || shard->block_reads >= BLOCK_READS_MAX ||
        !work_has_room(&shard->workers, WORK_LIGHT) || is_too_early(request, shard))
        return false;
    struct bytes key = request->args[1];
    if (!lsm_read_start(shard->lsm, request->keyspace, hash_token(key), key, block_came, request))
        return false;
    shard->block_reads++;
    shard->stats->requests_block++;
    return true;
}

static void
run_here(struct request *request, struct shard *shard)
{
    struct exec x;
    struct resp_writer w;
    exec_of_request(&x, request, &w, shard);
    /* A large one may take long even when it finds everything in memory: not in a turn that is
     * over. */
    bool done =
        !(request->large && fiber_should_yield()) && exec_try(&x, request->command->handler);
    bool early = done && was_too_early(request, &x, &w, shard);
    bool memory = !w.failed && !status_is(x.failure, ST_NO_MEMORY);
    if (done && !early) memory = request_reply_settle(request, shard) && memory;
    if (done && !early && !memory && !x.wrote) { /* a fiber can wait for it */
        done = false;
        w.failed = false;
        request->reply.size = 0;
    }
    if (done && !early) keep_outcome(request, &x, &w);
    exec_deinit(&x);
    if (done && !early) {
        ran(request, shard);
        return;
    }
    order_enter(shard, request);
    if (early)
        put_off(request);
    else if (!read_block(request, shard))
        go_on_fiber(request, shard);
}

static void
deliver_run(struct io_mail *mail)
{
    struct request *request = CONTAINER_OF(mail, struct request, mail);
    struct shard *shard = shard_self();
    guest_comes(request, shard);
    buf_init(&request->reply, request_budget(request, shard));
    struct request *before = order_find(shard, request);
    if (before != NULL) {
        order_enter(shard, request);
        list_push_back(&before->followers, &request->follower_link);
        return;
    }
    run_here(request, shard);
    order_run_ready(shard);
}

/* ---- trains: what one connection's input has brought for one owner ---- */

/* Plain reads that are done together: their cache misses overlap. */
#define TRAIN_READS_MAX 16u
/* With its head and end it fits inside of a request. */
#define TRAIN_VALUE_BYTES_MAX (REQUEST_INLINE_REPLY - 16u)

/* Answers a GET of a key in memory without the detours of exec_try. false: it changed nothing. */
static bool
read_aimed(struct request *request, const struct lsm_aim *aim, struct shard *shard)
{
    struct lsm_value value;
    value.seq = 0;
    status st = lsm_get_aimed(shard->lsm, aim, request->args[1], &value);
    bool found = ok(st);
    if (!found && !status_is(st, ST_NOT_FOUND)) return false;
    if (found && value.value.size > TRAIN_VALUE_BYTES_MAX) return false;
    shard->reply.size = 0;
    struct resp_writer w = {.out = &shard->reply, .version = request->resp};
    if (found)
        resp_bulk(&w, value.value);
    else
        resp_null(&w);
    if (w.failed || !request_reply_set(request, buf_bytes(w.out))) return false;
    *(found ? &shard->stats->keyspace_hits : &shard->stats->keyspace_misses) += 1;
    request->seq = value.seq;
    ran(request, shard);
    return true;
}

/* Takes the plain reads at the front of a train that need not wait for others, and runs them.
 * Nothing is written meanwhile: see lsm_aim_1. */
static u32
run_reads(struct list *train, struct shard *shard)
{
    struct request *requests[TRAIN_READS_MAX];
    struct lsm_aim aims[TRAIN_READS_MAX];
    u32 count = 0;
    if (shard->store_failed) return 0;
    list_for_each (node, train) {
        struct request *request = list_entry(node, struct request, follower_link);
        if (count == TRAIN_READS_MAX || !is_plain_read(request) ||
            order_find(shard, request) != NULL)
            break;
        struct lsm_aim *aim = &aims[count];
        aim->keyspace = request->keyspace;
        aim->token = hash_token_and_key(request->args[1], &aim->key_hash);
        lsm_aim_1(shard->lsm, aim);
        requests[count++] = request;
    }
    if (count > 1) MARK("server.request.train");
    for (u32 i = 0; i < count; i++)
        lsm_aim_2(shard->lsm, &aims[i], false);
    for (u32 i = 0; i < count; i++)
        lsm_aim_3(&aims[i], false);
    for (u32 i = 0; i < count; i++) {
        list_del(&requests[i]->follower_link);
        guest_comes(requests[i], shard);
        buf_init(&requests[i]->reply, request_budget(requests[i], shard));
        if (!read_aimed(requests[i], &aims[i], shard)) run_here(requests[i], shard);
    }
    return count;
}

static void
deliver_train(struct io_mail *mail)
{
    struct request *first = CONTAINER_OF(mail, struct request, mail);
    struct shard *shard = shard_self();
    struct list train;
    list_init(&train);
    list_splice_back(&train, &first->followers);
    list_push_front(&train, &first->follower_link);
    while (!list_empty(&train)) {
        if (run_reads(&train, shard) != 0) continue;
        struct list *node = list_pop_front(&train);
        deliver_run(&list_entry(node, struct request, follower_link)->mail);
    }
}

void
request_trains_form(struct shard *shard)
{
    CHECK(!shard->trains_form);
    shard->trains_form = true;
}

void
request_trains_send(struct shard *shard)
{
    shard->trains_form = false;
    for (; shard->train_owners != 0; shard->train_owners &= shard->train_owners - 1) {
        u32 owner = (u32)__builtin_ctzll(shard->train_owners);
        struct list *train = &shard->trains[owner];
        struct request *first = list_entry(list_pop_front(train), struct request, follower_link);
        list_splice_back(&first->followers, train);
        first->mail.deliver = deliver_train;
        io_mail_send(owner, &first->mail);
    }
}

static void
deliver_resume(struct io_mail *mail)
{
    struct request *request = CONTAINER_OF(mail, struct request, mail);
    struct shard *shard = shard_self();
    buf_init(&request->reply, request_budget(request, shard));
    go_on_fiber(request, shard);
    order_run_ready(shard);
}

void
request_resume(struct request *request)
{
    CHECK(request->put_off);
    request->put_off = false;
    request->early = false;
    request->mail.deliver = deliver_resume; /* also at home: nothing is done from inside here */
    io_mail_send(request->owner, &request->mail);
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
    if (request->session != NULL) {
        request->work.flow = request->session->id;
        request->wanted_until_ns = &request->session->wanted_until_ns;
    }
    if (request->owner != shard->index || request->parent != NULL || request->part) {
        if (request->owner != shard->index) shard->stats->requests_forwarded++;
        if (request->owner != shard->index && shard->trains_form) {
            list_push_back(&shard->trains[request->owner], &request->follower_link);
            shard->train_owners |= 1ull << request->owner;
            return;
        }
        request->mail.deliver = deliver_run;
        io_mail_send(request->owner, &request->mail);
        return;
    }
    buf_init(&request->reply, request_budget(request, shard));
    request->work.run = run_on_fiber;
    request->work.calls = request->at_home || request->in_stretches || /* asks the owners */
                          (request->writes && request->command->place == PLACE_FIBER);
    if (read_block(request, shard)) return;
    shard->stats->requests_heavy += request->work.class == WORK_HEAVY;
    if (work_start(&shard->workers, &request->work)) return;
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
    request_wait(request);
}

MAY_YIELD void
request_wait(struct request *request)
{
    while (!request->done) {
        status st = fiber_queue_wait(request->waiter, FIBER_FOREVER);
        CHECK(ok(st));
    }
}
