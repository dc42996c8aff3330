/* SPDX-License-Identifier: MIT
 *
 * client.c -- a client's life: connect, greet, ask while the pipeline has room, read answers, go;
 * and again until the run is over.
 *
 *   fiber        connects, draws requests, sends them, pauses, ends the connection one way or
 *                another: waits for every answer, or goes in the middle
 *   callbacks    match what arrives with what was asked (client_resp.c, client_native.c)
 *
 * What has no answer when its connection ends is of unknown outcome, but for native writes with an
 * idempotency id, which are sent again over the next connection. When the server's process ends,
 * the history cuts all connections at that very moment: what a dead server had still sent counts
 * as not received, so that the judgement of its life can begin.
 */
#include "client.h"

#include <stdlib.h>

#include "calm.h"
#include "lsm/lsm.h"

#define SERVER_HOST "10.0.0.1"
#define SERVER_PORT 8080
/* A client gives up a connection after this long without an answer. */
#define PATIENCE_NS      (60 * NS_PER_S)
#define PATIENCE_CALM_NS (120 * NS_PER_S)
#define AGAIN_MAX        3u

void
text_add(struct text *text, const void *data, size_t size)
{
    if (text->size + size > text->capacity) {
        text->capacity = MAX(2 * text->capacity, text->size + size + 256);
        text->data = realloc(text->data, text->capacity);
        CHECK(text->data != NULL);
    }
    if (size > 0) memcpy(text->data + text->size, data, size);
    text->size += size;
}

bool
client_flush_out(struct client *client)
{
    bool sent = client->conn != NULL && !client->cut &&
                io_conn_write(client->conn, client->out.data, client->out.size);
    client->out.size = 0;
    return sent;
}

/* ---- what has no answer ---- */

static void
forget(struct request *request)
{
    check_unknown(request);
    request_drop(request);
}

static void
pending_drop(struct client *client, bool again)
{
    struct list *node;
    while ((node = list_first(&client->pending)) != NULL) {
        struct request *request = list_entry(node, struct request, link);
        bool has_id = (request->idempotency[0] | request->idempotency[1]) != 0;
        if (again && has_id && request->attempts < AGAIN_MAX) {
            list_del(&request->link);
            list_push_back(&client->again, &request->link);
        } else {
            forget(request);
        }
    }
    client->pending_count = 0;
    client->swap = SWAP_NOT;
    check_scan_stop(client);
}

static void
again_drop(struct client *client)
{
    struct list *node;
    while ((node = list_first(&client->again)) != NULL)
        forget(list_entry(node, struct request, link));
}

void
clients_cut(void)
{
    for (u32 i = 0; i < run->client_count; i++) {
        struct client *client = run->clients[i];
        if (client->conn != NULL) client->cut = true;
        pending_drop(client, false);
        again_drop(client);
    }
}

/* ---- callbacks ---- */

static status
opened(struct io_conn *conn, void *arg)
{
    struct client *client = arg;
    io_conn_user_set(conn, client);
    client->conn = conn;
    client->cut = client->broken = client->greeted = client->paused = client->leaving = false;
    client->connection = (u32)++run->stats.connections;
    return ST_OK;
}

static size_t
received(struct io_conn *conn, struct bytes data)
{
    struct client *client = io_conn_user(conn);
    if (client->cut || client->broken || run_over()) return data.size;
    u64 before = client->pending_count;
    size_t size = client->native ? native_received(client, data) : resp_received(client, data);
    if (client->pending_count != before || client->broken) fiber_queue_wake_all(&client->queue);
    return size;
}

static void
drained(struct io_conn *conn)
{
    (void)conn;
}

static void
closed(struct io_conn *conn, status why)
{
    struct client *client = io_conn_user(conn);
    (void)why;
    client->conn = NULL;
    pending_drop(client, !client->cut && client->native && !run->stop);
    fiber_queue_wake_all(&client->queue);
}

const struct io_conn_events client_events = {
    .opened = opened,
    .received = received,
    .drained = drained,
    .closed = closed,
};

/* ---- sending ---- */

static bool
usable(const struct client *client)
{
    return client->conn != NULL && !client->cut && !client->broken && !run_over();
}

/* The planted mistake: a write is answered that never was done. */
static bool
loses(struct client *client, const struct request *request)
{
    if (request->kind != REQUEST_STEP) return false;
    const struct model_step *step = &request->ops[0]->steps[0];
    return step->kind == MODEL_PUT && step->flags == 0 &&
           flaw_strikes(client, RUN_FLAW_LOST_WRITE, 20);
}

static bool
request_send(struct client *client, struct request *request)
{
    client->out.size = 0;
    if (loses(client, request)) {
        check_begin(request);
        check_end(request);
        request_drop(request);
        return true;
    }
    if (client->native)
        native_encode(client, request);
    else
        resp_encode(client, request);
    check_log(client, request, "asks");
    check_begin(request);
    if (request->kind == REQUEST_WATCH) client->watched = request->begun;
    if (request->kind == REQUEST_EXEC) check_watch_sent(client, request);
    list_push_back(&client->pending, &request->link);
    client->pending_count++;
    return !client->broken && client_flush_out(client);
}

/* Returns when an answer came, the connection ended, or the time is over. */
static MAY_YIELD void
wait_some(struct client *client, u64 duration_ns)
{
    (void)!ok(fiber_queue_wait(&client->queue, io_now_ns() + duration_ns));
}

/* Whether the oldest request has waited too long. */
static bool
patience_over(struct client *client)
{
    struct list *first = list_first(&client->pending);
    if (first == NULL || client->paused) return false;
    const struct request *request = list_entry(first, struct request, link);
    struct patience_rule rule = {
        .calm = run->calm,
        .calm_ns = run->calm_ns,
        .patience_ns = PATIENCE_NS,
        .answer_ns_max = PATIENCE_CALM_NS,
    };
    if (client->native && run->knobs.patience_ms != 0)
        rule.patience_ns = run->knobs.patience_ms * NS_PER_MS;
    u64 now_ns = sim_now_ns(run->sim);
    enum patience patience = patience_of(&rule, request->sent_ns, now_ns);
    if (patience == PATIENCE_WRONGED)
        violated("no_answer", "client %u has waited %llu s for an answer, though nothing fails",
                 client->id, (unsigned long long)((now_ns - request->sent_ns) / NS_PER_S));
    return patience != PATIENCE_WAITS;
}

static MAY_YIELD void
wait_for_answers(struct client *client, u32 most)
{
    u64 pause_ns = NS_PER_S;
    if (client->native && run->knobs.patience_ms != 0)
        pause_ns = MIN(pause_ns, run->knobs.patience_ms * NS_PER_MS);
    while (usable(client) && client->pending_count > most) {
        wait_some(client, pause_ns);
        if (patience_over(client)) client->broken = true;
    }
}

static MAY_YIELD bool
greet(struct client *client)
{
    if (client->native || prng_chance(&client->prng, 2, 3)) {
        struct request *hello = request_make(REQUEST_HELLO);
        hello->text = prng_chance(&client->prng, 1, 2) ? "HELLO 3" : "HELLO 2";
        client->resp = hello->text[6] == '3' ? 3 : 2;
        if (!request_send(client, hello)) return false;
        if (client->native) wait_for_answers(client, 0);
    }
    client->keyspace = run->objects[prng_below(&client->prng, run->object_count)].keyspace;
    if (!client->native && client->keyspace != 0) {
        static const char *const selects[LIMIT_KEYSPACES] = {
            "SELECT 0",  "SELECT 1",  "SELECT 2",  "SELECT 3", "SELECT 4",  "SELECT 5",
            "SELECT 6",  "SELECT 7",  "SELECT 8",  "SELECT 9", "SELECT 10", "SELECT 11",
            "SELECT 12", "SELECT 13", "SELECT 14", "SELECT 15"};
        struct request *select = request_make(REQUEST_HELLO);
        select->text = selects[client->keyspace];
        if (!request_send(client, select)) return false;
        wait_for_answers(client, 0);
    }
    return usable(client);
}

/* The next page of a scan comes before anything else now and then, else it would have no end. */
static struct request *
next_request(struct client *client)
{
    bool pages = client->scan.active &&
                 (client->scan.snapshot != 0 || client->scan.given || client->scan.cursor != 0);
    if (pages && client->swap == SWAP_NOT && client->pending_count == 0)
        return request_make(REQUEST_SCAN);
    return workload_next(client);
}

/* Between requests: mostly at once, so that pipelines fill. */
static MAY_YIELD void
breathe(struct client *client)
{
    struct prng *prng = &client->prng;
    u64 draw = prng_below(prng, 200);
    if (draw < 20) {
        fiber_sleep_ns(prng_below(prng, 2 * NS_PER_MS));
    } else if (draw == 20) {
        fiber_sleep_ns(prng_below(prng, 200 * NS_PER_MS));
    } else if (draw == 21 && run->knobs.slow_readers) { /* reads nothing for a while */
        io_conn_pause(client->conn);
        client->paused = true;
        u64 until_ns = io_now_ns() + prng_below(prng, 3 * NS_PER_S);
        while (usable(client) && io_now_ns() < until_ns)
            fiber_sleep_ns(20 * NS_PER_MS);
        client->paused = false;
        if (client->conn != NULL) io_conn_resume(client->conn);
    }
}

static bool
may_ask(void)
{
    return !run->stop && run->serving && run->stats.requests < run->ops_goal;
}

static MAY_YIELD void
converse(struct client *client)
{
    struct prng *prng = &client->prng;
    u64 life = prng_chance(prng, 1, 3) ? prng_range(prng, 1, 20) : prng_range(prng, 20, 400);
    client->depth = prng_chance(prng, 1, 2) ? 1 : (u32)prng_range(prng, 1, run->knobs.depth_max);
    for (u64 i = 0; i < life && usable(client) && !client->leaving && may_ask();) {
        if (client->pending_count >= client->depth) {
            wait_for_answers(client, client->depth - 1);
            continue;
        }
        struct request *request = next_request(client);
        if (request == NULL) {
            if (client->pending_count > 0)
                wait_for_answers(client, client->pending_count - 1);
            else
                fiber_sleep_ns(prng_range(prng, 20 * NS_PER_US, NS_PER_MS));
            i += prng_chance(prng, 1, 8); /* not for ever */
            continue;
        }
        i++;
        if (!request_send(client, request)) client->broken = true;
        if (usable(client)) breathe(client);
    }
}

static MAY_YIELD void
hang_up(struct client *client)
{
    bool in_the_middle = prng_chance(&client->prng, run->knobs.cut_part, 100);
    if (!in_the_middle) wait_for_answers(client, 0);
    if (client->conn != NULL) {
        bool flush = !client->cut && !client->broken && !in_the_middle;
        io_conn_close(client->conn, flush ? IO_CLOSE_FLUSH : IO_CLOSE_ABORT);
    }
    while (client->conn != NULL)
        wait_some(client, NS_PER_S);
}

static MAY_YIELD bool
connect_to_server(struct client *client)
{
    struct io_conn *conn;
    status st = io_connect(SERVER_HOST, SERVER_PORT, &client_events, client,
                           io_now_ns() + 2 * NS_PER_S, &conn);
    if (ok(st)) return true;
    run->stats.connects_failed++;
    return false;
}

void
client_main(void *arg)
{
    struct client *client = arg;
    fiber_queue_init(&client->queue);
    while (!run->stop && !run_over()) {
        if (!may_ask()) {
            fiber_sleep_ns(prng_range(&client->prng, NS_PER_MS, 5 * NS_PER_MS));
            continue;
        }
        if (!connect_to_server(client)) {
            fiber_sleep_ns(prng_range(&client->prng, NS_PER_MS, 20 * NS_PER_MS));
            continue;
        }
        if (usable(client) && greet(client)) converse(client);
        hang_up(client);
    }
    again_drop(client);
    run->clients_running--;
}

/* ---- the auditor: reads every key, once, when the history wants it ---- */

static struct request *
audit_request(struct client *client, u32 index)
{
    const struct key *key = &run->keys[index];
    struct request *request = request_make(REQUEST_STEP);
    struct model_op *op = check_op(client, key->object, 1);
    op->steps[0] = (struct model_step){.kind = MODEL_GET, .key = (u8)key->index};
    request->ops[request->op_count++] = op;
    return request;
}

/* Under a load that refuses some, the keys that are left come again. */
static MAY_YIELD void
audit(struct client *client)
{
    for (u32 i = 0; i < run->key_count && usable(client) && run->audits; i++) {
        if (run->audit_seen[i]) continue;
        wait_for_answers(client, 16);
        while (usable(client) && !check_has_room(&run->objects[run->keys[i].object], false))
            wait_some(client, NS_PER_MS);
        if (!usable(client)) return;
        if (!request_send(client, audit_request(client, i))) client->broken = true;
    }
    wait_for_answers(client, 0);
}

static void
client_auditor_main(void *arg)
{
    struct client *client = arg;
    fiber_queue_init(&client->queue);
    while (!run->stop && !run_over()) {
        fiber_sleep_ns(10 * NS_PER_MS);
        if (!run->audits || !run->serving) continue;
        if (!connect_to_server(client)) continue;
        if (usable(client) && greet(client)) audit(client);
        hang_up(client);
    }
    again_drop(client);
    run->clients_running--;
}

/* ---- machines ---- */

static MAY_YIELD void
spawn(struct client *client)
{
    void (*fn)(void *arg) = client->hostile   ? client_hostile_main
                            : client->auditor ? client_auditor_main
                                              : client_main;
    while (!ok(fiber_spawn(FIBER_FOREGROUND, "client", fn, client)))
        fiber_sleep_ns(NS_PER_MS); /* an allocation was refused */
}

MAY_YIELD status
clients_shard_main(void *arg)
{
    const u32 *machine = arg;
    for (u32 i = *machine; i < run->client_count; i += run->knobs.machines)
        spawn(run->clients[i]);
    io_wait_stop();
    return ST_OK;
}

void
clients_make(void)
{
    const struct knobs *knobs = &run->knobs;
    run->client_count = knobs->resp_clients + knobs->native_clients + knobs->hostile_clients + 1;
    run->clients_running = run->client_count;
    run->clients = calloc(run->client_count, sizeof(*run->clients));
    CHECK(run->clients != NULL);
    for (u32 i = 0; i < run->client_count; i++) {
        struct client *client = calloc(1, sizeof(*client));
        CHECK(client != NULL);
        run->clients[i] = client;
        client->id = i + 1;
        client->native =
            i >= knobs->resp_clients && i < knobs->resp_clients + knobs->native_clients;
        client->auditor = i + 1 == run->client_count;
        client->native |= client->auditor;
        client->hostile = i >= knobs->resp_clients + knobs->native_clients && !client->auditor;
        u64 seed = run->options->seed * 1000003 + i;
        if (run->options->flaw == RUN_FLAW_ADDRESS) seed += (uintptr_t)__builtin_frame_address(0);
        prng_init(&client->prng, seed);
        list_init(&client->pending);
        list_init(&client->again);
    }
}

void
clients_free(void)
{
    for (u32 i = 0; i < run->client_count; i++) {
        struct client *client = run->clients[i];
        pending_drop(client, false);
        again_drop(client);
        free(client->out.data);
        free(client);
    }
    free(run->clients);
}
