/* SPDX-License-Identifier: MIT
 *
 * node_rig.c -- see node_rig.h.
 */
#include "node_rig.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define CLIENTS_HOST "10.0.0.2"
#define LOOK_NS      (5 * NS_PER_MS)
#define WAIT_NS_MAX  (3600 * NS_PER_S)

/* ---- the node ---- */

static MAY_YIELD void
run_actions(void *arg)
{
    struct rig_node *node = arg;
    struct rig *rig = node->rig;
    u32 index = io_shard_index();
    while (!io_stopping() && (node->index == 0 || rig->on_all_nodes)) {
        if (rig->action.wanted && rig->action.node == node->index && rig->action.shard == index) {
            rig->action.fn(shard_self(), rig->action.arg);
            rig->action.wanted = false;
        }
        fiber_sleep_ns(LOOK_NS);
    }
}

static status
node_main(void *arg)
{
    struct rig_node *node = arg;
    /* Of the kind that always finds a fiber. */
    status st = fiber_spawn(FIBER_BACKGROUND, "actions", run_actions, node);
    CHECK(ok(st));
    return server_shard_main(node->server);
}

MAY_YIELD void
rig_on_shard(struct rig *rig, u32 shard, void (*fn)(struct shard *shard, void *arg), void *arg)
{
    rig_on_node(rig, 0, shard, fn, arg);
}

MAY_YIELD void
rig_on_node(struct rig *rig, u32 node, u32 shard, void (*fn)(struct shard *shard, void *arg),
            void *arg)
{
    CHECK(!rig->action.wanted && (node == 0 || rig->on_all_nodes));
    rig->action.node = node;
    rig->action.fn = fn;
    rig->action.arg = arg;
    rig->action.shard = shard;
    rig->action.wanted = true;
    while (rig->action.wanted)
        fiber_sleep_ns(LOOK_NS);
}

/* ---- the clients ---- */

static status
opened(struct io_conn *conn, void *arg)
{
    io_conn_user_set(conn, arg);
    return ST_OK;
}

static size_t
client_received(struct io_conn *conn, struct bytes data)
{
    struct rig_client *client = io_conn_user(conn);
    bool fits = buf_append(&client->in, data.data, data.size);
    CHECK(fits);
    fiber_queue_wake_all(&client->queue);
    return data.size;
}

static void
drained(struct io_conn *conn)
{
    (void)conn;
}

static void
closed(struct io_conn *conn, status why)
{
    (void)why;
    struct rig_client *client = io_conn_user(conn);
    client->conn = NULL;
    fiber_queue_wake_all(&client->queue);
}

static const struct io_conn_events client_events = {
    .opened = opened,
    .received = client_received,
    .drained = drained,
    .closed = closed,
};

MAY_YIELD status
rig_try_connect(struct rig *rig, u32 node, struct rig_client *client)
{
    *client = (struct rig_client){.rig = rig};
    buf_init(&client->in, io_budget());
    fiber_queue_init(&client->queue);
    return io_connect(rig->nodes[node].host, RIG_NODE_PORT, &client_events, client,
                      io_now_ns() + 10 * NS_PER_S, &client->conn);
}

MAY_YIELD void
rig_connect_to(struct rig *rig, u32 node, struct rig_client *client)
{
    status st = rig_try_connect(rig, node, client);
    CHECK(ok(st));
}

MAY_YIELD void
rig_connect(struct rig *rig, struct rig_client *client)
{
    rig_connect_to(rig, 0, client);
}

MAY_YIELD void
rig_disconnect(struct rig_client *client)
{
    if (client->conn != NULL) io_conn_close(client->conn, IO_CLOSE_FLUSH);
    while (client->conn != NULL)
        (void)!ok(fiber_queue_wait(&client->queue, FIBER_FOREVER));
    buf_deinit(&client->in);
}

/* The size of the first whole reply; 0: not all of it is there. */
static size_t
reply_size(struct bytes data)
{
    size_t at = 0;
    for (i64 wanted = 1; wanted > 0; wanted--) {
        struct resp_reply reply;
        size_t consumed;
        status st = resp_read(BYTES(data.data + at, data.size - at), &reply, &consumed);
        if (status_is(st, ST_INCOMPLETE)) return 0;
        CHECK(ok(st));
        at += consumed;
        if (reply.kind == RESP_REPLY_ARRAY || reply.kind == RESP_REPLY_SET) wanted += reply.integer;
        if (reply.kind == RESP_REPLY_MAP) wanted += 2 * reply.integer;
    }
    return at;
}

static void
send_words(struct rig_client *client, char *words)
{
    struct buf out;
    buf_init(&out, io_budget());
    struct resp_writer w = {.out = &out, .version = 2};
    u32 count = 1;
    for (const char *c = words; *c != '\0'; c++)
        if (*c == ' ') count++;
    resp_array(&w, count);
    char *rest = words;
    for (char *word = strsep(&rest, " "); word != NULL; word = strsep(&rest, " "))
        resp_bulk_text(&w, word);
    CHECK(!w.failed);
    if (client->conn != NULL && !io_conn_write(client->conn, out.data, out.size))
        CHECK(!"no memory for a request");
    buf_deinit(&out);
}

void
rig_send(struct rig_client *client, const char *format, ...)
{
    char words[2048];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(words, sizeof(words), format, args);
    va_end(args);
    CHECK(size > 0 && (size_t)size < sizeof(words));
    send_words(client, words);
}

MAY_YIELD struct bytes
rig_read(struct rig_client *client)
{
    buf_consume(&client->in, client->taken);
    client->taken = 0;
    while ((client->taken = reply_size(buf_bytes(&client->in))) == 0 && client->conn != NULL)
        (void)!ok(fiber_queue_wait(&client->queue, FIBER_FOREVER));
    return BYTES(client->in.data, client->taken);
}

MAY_YIELD struct bytes
rig_call(struct rig_client *client, const char *format, ...)
{
    char words[2048];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(words, sizeof(words), format, args);
    va_end(args);
    CHECK(size > 0 && (size_t)size < sizeof(words));
    send_words(client, words);
    return rig_read(client);
}

bool
rig_is(struct bytes reply, const char *expected)
{
    return bytes_equal(reply, BYTES(expected, strlen(expected)));
}

void
rig_key_of_shard(const struct rig *rig, u32 shard, const char *name, char *out, size_t size)
{
    for (u32 tag = 0;; tag++) {
        int length = snprintf(out, size, "{%u}%s", tag, name);
        CHECK(length > 0 && (size_t)length < size);
        u64 token = hash_token(BYTES(out, (size_t)length));
        if (partition_shard(token_partition(token, PARTITION_COUNT_DEFAULT), rig->shard_count,
                            PARTITION_COUNT_DEFAULT) == shard)
            return;
    }
}

/* ---- fibers of the clients' machine ---- */

static MAY_YIELD void
run_spawned(void *arg)
{
    struct rig_spawn *spawn = arg;
    spawn->fn(spawn->rig, spawn->arg);
    spawn->rig->running--;
    fiber_queue_wake_all(&spawn->rig->ended);
}

void
rig_spawn(struct rig *rig, void (*fn)(struct rig *rig, void *arg), void *arg)
{
    CHECK(rig->spawned < RIG_SPAWNS_MAX);
    struct rig_spawn *spawn = &rig->spawns[rig->spawned++];
    *spawn = (struct rig_spawn){.rig = rig, .fn = fn, .arg = arg};
    rig->running++;
    status st = fiber_spawn(FIBER_BACKGROUND, "story", run_spawned, spawn);
    CHECK(ok(st));
}

MAY_YIELD void
rig_wait_spawned(struct rig *rig)
{
    while (rig->running > 0)
        (void)!ok(fiber_queue_wait(&rig->ended, FIBER_FOREVER));
    rig->spawned = 0;
}

static status
clients_main(void *arg)
{
    struct rig *rig = arg;
    fiber_queue_init(&rig->ended);
    rig->story(rig);
    rig_wait_spawned(rig);
    rig->story_ended = true;
    return ST_OK;
}

/* ---- the nodes, from outside ---- */

static void
node_start(struct rig_node *node)
{
    struct rig *rig = node->rig;
    node->server = server_new(node->config, node->index + 1);
    CHECK(node->server != NULL);
    if (node->index == 0) rig->server = node->server;
    struct io_node_config config = {.shard_count = node->config->core_count,
                                    .memory_bytes = node->config->memory_bytes,
                                    .shard_main = node_main,
                                    .arg = node};
    status st = sim_node_start(node->machine, &config);
    CHECK(ok(st));
}

static void
node_forget(struct rig_node *node)
{
    if (node->server != NULL) server_free(node->server);
    node->server = NULL;
}

static void
node_open(struct rig *rig, u32 index)
{
    struct rig_node *node = &rig->nodes[index];
    *node = (struct rig_node){.rig = rig, .index = index};
    snprintf(node->host, sizeof(node->host), "10.0.%u.%u", rig->node_count > 1, index + 1);
    node->machine = sim_node_new(rig->sim, node->host);
    node->config = mem_raw_alloc(sizeof(*node->config), 64);
    CHECK(node->config != NULL);
    config_init_for_test(node->config, "/data", rig->shard_count);
    snprintf(node->config->address, sizeof(node->config->address), "%s:%u", node->host,
             RIG_NODE_PORT);
    node->config->endpoint = (struct config_endpoint){.host = "0.0.0.0", .port = RIG_NODE_PORT};
    if (rig->configure != NULL) rig->configure(rig, index, node->config);
    if (index < rig->node_count - rig->late_count) node_start(node);
}

static void
do_wanted(void *arg)
{
    struct rig_node *node = arg;
    if (node->crash_wanted) {
        sim_node_crash(node->machine);
        node_forget(node);
    }
    if (node->start_wanted) node_start(node);
    node->crash_wanted = node->start_wanted = false;
}

MAY_YIELD void
rig_crash(struct rig *rig, u32 index)
{
    struct rig_node *node = &rig->nodes[index];
    node->crash_wanted = true;
    sim_at(rig->sim, sim_now_ns(rig->sim), do_wanted, node);
    while (node->crash_wanted)
        fiber_sleep_ns(NS_PER_MS);
}

MAY_YIELD void
rig_start_begin(struct rig *rig, u32 index)
{
    struct rig_node *node = &rig->nodes[index];
    node->start_wanted = true;
    sim_at(rig->sim, sim_now_ns(rig->sim), do_wanted, node);
    while (node->start_wanted)
        fiber_sleep_ns(NS_PER_MS);
}

MAY_YIELD void
rig_start(struct rig *rig, u32 index)
{
    rig_start_begin(rig, index);
    while (!server_ready(rig->nodes[index].server))
        fiber_sleep_ns(NS_PER_MS);
}

/* ---- a run ---- */

static bool
are_ready(void *arg)
{
    struct rig *rig = arg;
    for (u32 i = 0; i < rig->node_count; i++)
        if (rig->nodes[i].server != NULL && !server_ready(rig->nodes[i].server) &&
            sim_node_running(rig->nodes[i].machine))
            return false;
    return true;
}

static bool
have_ended(void *arg)
{
    struct rig *rig = arg;
    return !sim_node_running(rig->clients);
}

static bool
have_stopped(void *arg)
{
    struct rig *rig = arg;
    for (u32 i = 0; i < rig->node_count; i++)
        if (sim_node_running(rig->nodes[i].machine)) return false;
    return true;
}

static void
wait_until(struct rig *rig, bool (*condition)(void *arg), const char *what)
{
    if (sim_run_until(rig->sim, condition, rig, sim_now_ns(rig->sim) + WAIT_NS_MAX)) return;
    sim_log_dump(rig->sim);
    fprintf(stderr, "seed %llu: %s\n", (unsigned long long)rig->options.seed, what);
    CHECK(!"the story does not end");
}

void
rig_run(struct rig *rig)
{
    if (rig->node_count == 0) rig->node_count = 1;
    rig->sim = sim_new(&rig->options);
    sim_audits_set(rig->sim, SIM_AUDIT_ONE_IN);
    for (u32 i = 0; i < rig->node_count; i++)
        node_open(rig, i);
    rig->clients = sim_node_new(rig->sim, CLIENTS_HOST);
    wait_until(rig, are_ready, "a node does not start");
    for (u32 i = 0; i < rig->node_count - rig->late_count; i++)
        CHECK(sim_node_running(rig->nodes[i].machine));

    struct io_node_config clients = {
        .shard_count = 1, .memory_bytes = MIB(256), .shard_main = clients_main, .arg = rig};
    status st = sim_node_start(rig->clients, &clients);
    CHECK(ok(st));
    wait_until(rig, have_ended, "the story does not end");
    CHECK(rig->story_ended && ok(sim_node_result(rig->clients)));

    for (u32 i = 0; i < rig->node_count; i++)
        if (sim_node_running(rig->nodes[i].machine)) sim_node_stop(rig->nodes[i].machine);
    wait_until(rig, have_stopped, "a node does not stop");
    for (u32 i = 0; i < rig->node_count; i++) {
        struct rig_node *node = &rig->nodes[i];
        CHECK(node->server == NULL || ok(sim_node_result(node->machine)));
    }
    sim_free(rig->sim);
    for (u32 i = 0; i < rig->node_count; i++) {
        node_forget(&rig->nodes[i]);
        mem_raw_free(rig->nodes[i].config, sizeof(*rig->nodes[i].config));
    }
}
