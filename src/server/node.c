/* SPDX-License-Identifier: MIT
 *
 * node.c -- the life of a node on its shards.
 *
 *   shard 0          prepares the data directory, tells the others
 *   every shard      takes its budgets, opens its store
 *   in a cluster     shard 0 enters it: founds, joins or comes back; then the others
 *   when all have    listens; ready
 *   io_wait_stop     stops listening and reading, lets what is in flight end, closes connections
 *   when all have    closes its store (flushed: nothing to replay)
 *   shard 0          releases the directory when all others have closed theirs
 *
 * The shards meet in three places, "opened", "drained" and "closed": each sends a mail to shard 0,
 * which sends one to all when the last has come. A shard that fails before "opened" still comes, so
 * that nobody waits for it; the node then stops. A store stays open until every shard is drained,
 * because the connections of the others have requests in it.
 */
#include <stdio.h>

#include "base/log.h"
#include "cluster/cluster.h"
#include "server/cluster_admin.h"
#include "server/cluster_resp.h"
#include "server/cluster_view.h"
#include "server/cut.h"
#include "server/native.h"
#include "server/route.h"
#include "server/session.h"

/* Of a shard's memory: connections, requests, replies in hand; the store; the rest is the io
 * layer's buffers, fibers and slack. */
#define SHARE_CONNECTIONS 8u /* an eighth, and at least CONNECTIONS_BYTES_MIN */
#define SHARE_STORE_NUM   11u
#define SHARE_STORE_DEN   16u
#define SHARE_STACKS      16u /* of workers for light requests */
/* Of the former, in eighths: see struct shard. */
#define SHARE_LARGE 4u
#define SHARE_KEPT  2u
/* GETSET of a long value holds three at once: the one that came or its copy, the one to be
 * answered, and the batch. Buffers have a quarter to spare. */
#define CONNECTIONS_BYTES_MIN (4u * (u64)(LIMIT_VALUE_BYTES + LIMIT_KEY_BYTES + 4096u))

#define DRAIN_NS        (4 * NS_PER_S) /* the host's limit is 5 s for everything */
#define LISTEN_TRIES    20u
#define LISTEN_RETRY_NS (100 * NS_PER_MS)

/* ---- made by the host ---- */

/* One per shard, in its shard_main's frame: fibers do not move. */
struct meeting {
    struct io_mail mail;
    struct server *server;
    u32 shard;
    struct fiber_queue queue;
    bool go;
    status st;
};

/* Shard 0's side. */
struct host_of_meeting {
    struct meeting *come[LIMIT_SHARDS];
    u32 count;
    status st;
};

/* Written and read by shard 0 only. */
struct meeting_place {
    struct host_of_meeting opened, entered, drained, closed;
};

struct server *
server_new(struct server_config *config, u32 pid)
{
    struct server *server = mem_raw_alloc(sizeof(*server), 16);
    struct meeting_place *meetings = mem_raw_alloc(sizeof(*meetings), 16);
    if (server == NULL || meetings == NULL) {
        if (server != NULL) mem_raw_free(server, sizeof(*server));
        if (meetings != NULL) mem_raw_free(meetings, sizeof(*meetings));
        return NULL;
    }
    memset(server, 0, sizeof(*server));
    memset(meetings, 0, sizeof(*meetings));
    server->meetings = meetings;
    server->config = config;
    server->pid = pid;
    server->shard_count = config->core_count;
    return server;
}

void
server_free(struct server *server)
{
    if (server == NULL) return;
    mem_raw_free(server->meetings, sizeof(*server->meetings));
    mem_raw_free(server, sizeof(*server));
}

bool
server_ready(const struct server *server)
{
    return server->ready;
}

enum server_not_ready_why { NOT_DRAINED = 1, NOT_STUCK, NOT_CLOCK, NOT_ALONE, NOT_COUNT };

const char *
server_not_ready(const struct server *server)
{
    static const char *const reasons[NOT_COUNT] = {
        [NOT_DRAINED] = "drained",
        [NOT_STUCK] =
            "takes no writes: its disk is full, slow, or has failed, or its memory is full",
        [NOT_CLOCK] = "its clock differs from most others' by more than 250 ms",
        [NOT_ALONE] = "most nodes of its cluster do not answer it",
    };
    if (!server->ready) return "starting or stopping";
    return reasons[server->not_ready % NOT_COUNT];
}

void
server_not_ready_look(struct server *server)
{
    const struct cluster *cluster = server->cluster;
    if (cluster == NULL) return;
    u8 ill = atomic_load(&cluster->ill);
    u32 why = 0;
    if ((ill & CLUSTER_ILL_ALONE) != 0) why = NOT_ALONE;
    if ((ill & CLUSTER_ILL_CLOCK) != 0) why = NOT_CLOCK;
    if ((ill & CLUSTER_ILL_STUCK) != 0) why = NOT_STUCK;
    if (atomic_load(&cluster->drain) != CLUSTER_DRAIN_NONE) why = NOT_DRAINED;
    server->not_ready = why;
}

u16
server_port(const struct server *server)
{
    return (u16)server->port;
}

const char *
server_failure(const struct server *server)
{
    return server->failure;
}

const char *
server_node_id(const struct server *server)
{
    return server->layout.node_id;
}

const char *
server_run_id(const struct server *server)
{
    return server->run_id;
}

void
server_resident_set(struct server *server, u64 resident_bytes)
{
    server->resident_bytes = resident_bytes;
}

u32
server_shutdown_wanted(const struct server *server)
{
    return server->shutdown_wanted;
}

/* format: of text, and of st's own where text does not say it already. */
static void
fail(struct server *server, const char *format, const char *text, status st)
{
    /* The first reason counts; the shards that stop because of it have no better one. */
    if (atomic_exchange(&server->failing, true)) return;
    snprintf(server->failure, sizeof(server->failure), format, text, status_text(st));
}

/* ---- meeting ---- */

static void
deliver_go(struct io_mail *mail)
{
    struct meeting *meeting = CONTAINER_OF(mail, struct meeting, mail);
    meeting->go = true;
    fiber_queue_wake_all(&meeting->queue);
}

static void
come(struct host_of_meeting *host, struct meeting *meeting)
{
    u32 shard_count = meeting->server->shard_count;
    host->come[host->count++] = meeting;
    if (ok(host->st)) host->st = meeting->st;
    if (host->count < shard_count) return;
    for (u32 i = 0; i < shard_count; i++) {
        struct meeting *other = host->come[i];
        other->st = host->st;
        other->mail.deliver = deliver_go;
        io_mail_send(other->shard, &other->mail);
    }
}

static void
deliver_opened(struct io_mail *mail)
{
    struct meeting *meeting = CONTAINER_OF(mail, struct meeting, mail);
    come(&meeting->server->meetings->opened, meeting);
}

static void
deliver_entered(struct io_mail *mail)
{
    struct meeting *meeting = CONTAINER_OF(mail, struct meeting, mail);
    come(&meeting->server->meetings->entered, meeting);
}

static void
deliver_drained(struct io_mail *mail)
{
    struct meeting *meeting = CONTAINER_OF(mail, struct meeting, mail);
    come(&meeting->server->meetings->drained, meeting);
}

static void
deliver_closed(struct io_mail *mail)
{
    struct meeting *meeting = CONTAINER_OF(mail, struct meeting, mail);
    come(&meeting->server->meetings->closed, meeting);
}

/* Returns when every shard has come; the first failure of any. */
MAY_YIELD static status
meet(struct server *server, status mine, void (*deliver)(struct io_mail *mail))
{
    struct meeting meeting = {.server = server, .shard = io_shard_index(), .st = mine};
    fiber_queue_init(&meeting.queue);
    meeting.mail.deliver = deliver;
    list_init(&meeting.mail.link);
    io_mail_send(0, &meeting.mail);
    while (!meeting.go) {
        status st = fiber_queue_wait(&meeting.queue, FIBER_FOREVER);
        CHECK(ok(st));
    }
    return meeting.st;
}

/* ---- opening ---- */

/* A shard's part of it. */
static u64
scrub_rate(const struct server *server)
{
    return server->config->scrub_rate_bytes / MAX(server->shard_count, 1u);
}

static void
store_options(const struct server *server, struct lsm_options *out)
{
    const struct server_config *config = server->config;
    lsm_options_default(out);
    out->durability = (enum lsm_durability)config->durability;
    out->sync_interval_ms = (u32)config->sync_interval_ms;
    out->codec_upper = (enum lsm_codec)config->codec;
    out->codec_last = (enum lsm_codec)config->codec_last;
    out->blob_threshold_bytes = (u32)config->blob_threshold_bytes;
    out->scrub_bytes_per_s = scrub_rate(server);
    out->disk_reserve_bytes = config->disk_reserve_bytes;
    out->outside_versions = config->clustered;
    out->mends = config->clustered; /* until there is a topology that says whether it does */
    out->memory_bytes = io_budget()->limit_bytes / SHARE_STORE_DEN * SHARE_STORE_NUM;
}

static void
make_ids(struct server *server)
{
    static const char digits[] = "0123456789abcdef";
    u8 random[20];
    io_entropy(random, sizeof(random));
    memcpy(&server->run_number, random, sizeof(server->run_number));
    if (server->run_number == 0) server->run_number = 1;
    for (u32 i = 0; i < 20; i++) {
        server->run_id[2 * i] = digits[random[i] >> 4];
        server->run_id[2 * i + 1] = digits[random[i] & 15];
    }
    /* The same node has the same name after each start. */
    cluster_node_name(server->layout.node_id, server->node_name);
    server->start_wall_ms = io_wall_ms();
}

/* Before the others go on: what a cluster is told of this node. */
static status
prepare_cluster(struct server *server)
{
    const struct server_config *config = server->config;
    struct cluster_options options;
    memset(&options, 0, sizeof(options));
    const char *secret = config->cluster_secret;
    cluster_secret_make(BYTES(secret, strlen(secret)), options.secret);
    snprintf(options.node_id, sizeof(options.node_id), "%s", server->layout.node_id);
    snprintf(options.host, sizeof(options.host), "%s", config->peer_endpoint.host);
    snprintf(options.rack, sizeof(options.rack), "%s", config->rack);
    snprintf(options.datacenter, sizeof(options.datacenter), "%s", config->datacenter);
    options.client_port = config->endpoint.port;
    options.shard_ports = config->shard_port != 0;
    options.peer_port = config->peer_endpoint.port;
    options.shard_count = server->shard_count;
    options.partition_count = server->layout.partition_count;
    options.weight = (u32)config->virtual_nodes;
    options.member_replaced = (u32)config->replaces;
    options.replicas = (u32)config->replicas;
    options.write_quorum = (u32)config->write_quorum;
    options.read_quorum = (u32)config->read_quorum;
    options.move_bytes_per_s = config->move_rate_bytes;
    for (u32 i = 0; i < config->seed_count; i++) {
        struct peer_address *seed = &options.seeds[options.seed_count++];
        memcpy(seed->host, config->seeds[i].host, sizeof(seed->host));
        seed->port = config->seeds[i].peer_port;
        seed->shard_count = 1;
    }
    if (!ok(hints_disk_bytes(config->data_dir, HINTS_DISK_PERCENT, server->shard_count,
                             &options.hints_disk_bytes)))
        options.hints_disk_bytes = GIB(1) / server->shard_count; /* little on any disk */
    server->cluster = cluster_new(&options);
    if (server->cluster != NULL) return ST_OK;
    fail(server, "%s: %s", "the node cannot begin its part in a cluster", ST_NO_MEMORY);
    return ST_NO_MEMORY;
}

MAY_YIELD static status
prepare(struct server *server)
{
    const struct server_config *config = server->config;
    struct lsm_options options;
    store_options(server, &options);
    char error[512] = "";
    status st = store_prepare(server->config->data_dir, server->config->node_id,
                              server->shard_count, &options, &server->layout, error, sizeof(error));
    if (!ok(st)) {
        fail(server, "cannot open the data directory: %s (%s)",
             error[0] != '\0' ? error : server->config->data_dir, st);
        return st;
    }
    make_ids(server);
    return config->clustered ? prepare_cluster(server) : ST_OK;
}

/* Keys of clients: a node that has some cannot begin in a cluster. */
static bool
store_is_empty(const struct shard *shard)
{
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++)
        if (lsm_count_estimate(shard->lsm, keyspace) != 0) return false;
    return true;
}

MAY_YIELD static status
open_store(struct shard *shard)
{
    struct server *server = shard->server;
    const struct lsm_place place = {
        .dir = server->layout.shards[shard->index].dir,
        .token_first = server->layout.shards[shard->index].token_first,
        .token_last = server->layout.shards[shard->index].token_last,
    };
    struct lsm_options options;
    store_options(server, &options);
    shard->token_first = place.token_first;
    shard->token_last = place.token_last;
    shard->scrub_rate = options.scrub_bytes_per_s;
    status st = lsm_open(&place, &options, &shard->lsm);
    if (!ok(st)) {
        fail(server, "cannot open the store %s: %s; the log of this node says more", place.dir, st);
        return st;
    }
    lsm_on_durable(shard->lsm, shard_durable, shard);
    if (!store_is_empty(shard)) server->has_keys = true;
    return ST_OK;
}

void
shard_config_look(struct shard *shard)
{
    struct server *server = shard->server;
    u64 generation = config_generation(server->config); /* before what belongs to it */
    if (generation == shard->config_generation || shard->lsm == NULL) return;
    shard->config_generation = generation;
    u64 rate = scrub_rate(server);
    if (rate != shard->scrub_rate) { /* a pass begins anew with it */
        shard->scrub_rate = rate;
        lsm_scrub_rate_set(shard->lsm, rate);
    }
    if (server->cluster != NULL) /* the node's: whichever shard sees it first */
        cluster_move_rate_set(server->cluster, server->config->move_rate_bytes);
}

static void
cluster_open_here(struct shard *shard)
{
    route_open(shard);
    cluster_admin_open(shard);
}

/* Nothing of ours is at work for the cluster any more: nothing is begun, since the shard drains.
 * One that never served, because the node stops while others of its shards still enter, has
 * requests of other nodes under way all the same. */
MAY_YIELD static void
leave_cluster(struct shard *shard)
{
    if (shard->cluster == NULL) return;
    while (shard->admin_answers != 0 || shard->keyspaces_made)
        fiber_sleep_ns(5 * NS_PER_MS);
    cluster_shard_close(shard->cluster);
    shard->cluster = NULL;
}

static void
fail_to_enter(struct server *server, const char *reason, status st)
{
    /* A port that is taken, and what the cluster decided: the reason is all that there is to say,
     * and "permission denied" behind it would send people to look at the files. */
    bool told = status_is(st, ST_EXISTS) || status_is(st, ST_INVALID) || status_is(st, ST_DENIED);
    if (told && reason[0] != '\0')
        fail(server, "cannot enter the cluster: %s", reason, st);
    else
        fail(server, "cannot enter the cluster: %s (%s)", reason, st);
}

/* Returns when this shard can serve as one of a cluster's. */
MAY_YIELD static status
enter_cluster(struct shard *shard)
{
    struct server *server = shard->server;
    if (server->cluster == NULL) return ST_OK;
    if (shard->index != 0) {
        char reason[TOPOLOGY_REASON_BYTES];
        status st = cluster_shard_open(server->cluster, shard->lsm, &shard->cluster, reason);
        if (ok(st)) cluster_open_here(shard);
        if (!ok(st) && !status_is(st, ST_CANCELED)) fail_to_enter(server, reason, st);
        return st;
    }
    bool empty = !server->has_keys;
    status st = cluster_start(server->cluster, shard->lsm, empty, &shard->cluster);
    if (ok(st)) cluster_open_here(shard);
    bool stopped = status_is(st, ST_CANCELED) && io_stopping();
    if (!ok(st) && !stopped) fail_to_enter(server, server->cluster->reason, st);
    return st;
}

MUST_CHECK static status
init(struct shard *shard, struct server *server)
{
    memset(shard, 0, sizeof(*shard));
    shard->server = server;
    shard->config = server->config;
    shard->index = io_shard_index();
    list_init(&shard->durable_waits);
    list_init(&shard->sessions);
    list_init(&shard->monitors);
    for (u32 class = 0; class < WORK_CLASSES; class ++)
        list_init(&shard->starved[class]);
    for (u32 calls = 0; calls < 2; calls++)
        list_init(&shard->memory_turn[calls].waiting);
    keylock_table_init(&shard->locks);
    for (u32 i = 0; i < SHARD_ORDER_BUCKETS; i++)
        list_init(&shard->order[i]);
    list_init(&shard->order_ready);
    for (u32 i = 0; i < LIMIT_SHARDS; i++)
        list_init(&shard->trains[i]);
    u64 bytes = MAX(io_budget()->limit_bytes / SHARE_CONNECTIONS, CONNECTIONS_BYTES_MIN);
    budget_init(&shard->budget, "connections", bytes, io_budget());
    budget_init(&shard->large_budget, "large requests", bytes / 8 * SHARE_LARGE, &shard->budget);
    budget_init(&shard->kept_budget, "kept for clients", bytes / 8 * SHARE_KEPT, &shard->budget);
    /* Half of the latter is for what waits, see request.c. */
    workers_init(&shard->workers, io_budget()->limit_bytes / SHARE_STACKS,
                 shard->large_budget.limit_bytes / 2);
    lsm_batch_init(&shard->batch, &shard->budget);
    buf_init(&shard->reply, &shard->budget);
    buf_init(&shard->args, &shard->budget);
    slowlog_init(&shard->slowlog, &shard->budget, shard->index, server->shard_count);
    shard->stats = mem_alloc_zero(io_budget(), sizeof(*shard->stats));
    if (shard->stats == NULL) return ST_NO_MEMORY;
    shard->stats->shard = shard->index;
    shard->stats_reset_wall_ms = io_wall_ms();
    if (!native_state_init(shard) || !cuts_init(shard)) return ST_NO_MEMORY;
    return ST_OK;
}

static void
deinit(struct shard *shard)
{
    cluster_kept_free(shard);
    cuts_deinit(shard);
    native_state_deinit(shard);
    slowlog_deinit(&shard->slowlog);
    lsm_batch_deinit(&shard->batch);
    buf_deinit(&shard->reply);
    buf_deinit(&shard->args);
    mem_free(io_budget(), shard->stats, sizeof(*shard->stats));
}

MAY_YIELD static status
listen_at(struct shard *shard, u16 port, struct io_listener **out)
{
    struct server *server = shard->server;
    const char *host = server->config->endpoint.host;
    status st = ST_OK;
    for (u32 i = 0; i < LISTEN_TRIES; i++) { /* a predecessor may be about to let go of it */
        st = io_listen(host, port, &session_events, shard, out);
        if (ok(st) || !status_is(st, ST_EXISTS) || io_stopping()) break;
        fiber_sleep_ns(LISTEN_RETRY_NS);
    }
    if (!ok(st)) {
        char text[CONFIG_HOST_BYTES + 64];
        snprintf(text, sizeof(text), "%s:%u: %s", host, port, io_listen_why(st));
        fail(server, "cannot listen on %s", text, st);
    }
    return st;
}

/* With port 0 shard 0 picks one and the others take the same, so they listen after it. */
MAY_YIELD static status
listen_on(struct shard *shard)
{
    struct server *server = shard->server;
    const struct config_endpoint *endpoint = &server->config->endpoint;
    u16 port = endpoint->port;
    if (shard->index != 0) {
        while (server->port == 0) {
            if (io_stopping()) return ST_OK;
            fiber_sleep_ns(NS_PER_MS);
        }
        port = (u16)server->port;
    }
    status st = listen_at(shard, port, &shard->listener);
    if (ok(st) && server->config->shard_port != 0)
        st = listen_at(shard, (u16)(server->config->shard_port + shard->index),
                       &shard->own_listener);
    if (ok(st) && shard->index == 0) server->port = io_listener_port(shard->listener);
    return st;
}

/* ---- the end ---- */

static void
stop_reading(struct shard *shard)
{
    list_for_each (node, &shard->sessions) {
        struct session *s = list_entry(node, struct session, link);
        if (s->conn != NULL) io_conn_pause(s->conn);
    }
}

/* So that nobody else's requests wait for what this node would have run. All shards go on meanwhile
 * as before. */
MAY_YIELD static void
hand_over(struct shard *shard)
{
    struct server *server = shard->server;
    if (shard->cluster == NULL) return;
    if (shard->index == 0) {
        cluster_hand_over(shard->cluster);
        atomic_store(&server->handed_over, true);
    }
    while (!atomic_load(&server->handed_over))
        fiber_sleep_ns(NS_PER_MS);
}

/* What is in flight may end, replies that wait for the log may go, then connections close. */
MAY_YIELD static void
drain(struct shard *shard, u64 deadline)
{
    shard->draining = true;
    io_timer_cancel(&shard->sweep);
    io_timer_cancel(&shard->rate);
    if (shard->listener != NULL) io_listener_close(shard->listener);
    if (shard->own_listener != NULL) io_listener_close(shard->own_listener);
    stop_reading(shard);
    while ((shard->request_count != 0 || shard->workers.fibers != 0 ||
            !list_empty(&shard->durable_waits)) &&
           io_clock_ns() < deadline) {
        (void)fiber_queue_wait(&shard->workers.idle, io_clock_ns() + 5 * NS_PER_MS);
    }
    list_for_each_safe (node, &shard->sessions) {
        struct session *s = list_entry(node, struct session, link);
        session_close(s);
    }
    while (shard->session_count != 0 && io_clock_ns() < deadline)
        fiber_sleep_ns(NS_PER_MS);
    list_for_each_safe (node, &shard->sessions) {
        struct session *s = list_entry(node, struct session, link);
        session_abort(s);
    }
    /* Requests that are still on fibers use the session and the store: they end first. */
    while (shard->session_count != 0 || shard->request_count != 0 || shard->workers.fibers != 0)
        fiber_sleep_ns(NS_PER_MS);
}

MAY_YIELD static status
serve(struct shard *shard)
{
    struct server *server = shard->server;
    status st = listen_on(shard);
    if (!ok(st)) {
        io_stop();
    } else {
        session_sweep_start(shard);
        u32 listening = atomic_fetch_add(&server->shards_ready, 1) + 1;
        if (listening == server->shard_count && !io_stopping()) {
            server->ready = true;
            log_debug("server", "every shard listens node=%s port=%u shards=%u",
                      server->layout.node_id, (u32)server->port, server->shard_count);
        }
        io_wait_stop();
    }
    server->ready = false;
    u64 deadline = io_clock_ns() + DRAIN_NS;
    hand_over(shard);
    drain(shard, deadline);
    return st;
}

/* By itself: an error. */
static status
why_stopped(struct shard *shard)
{
    struct server *server = shard->server;
    if (server->cluster == NULL || shard->index != 0) return ST_OK;
    if (atomic_load(&server->cluster->taken_out) || atomic_load(&server->cluster->rolled_back)) {
        fail(server, "%s", server->cluster->reason, ST_DENIED);
        return ST_DENIED;
    }
    if (!atomic_load(&server->cluster->outdated)) return ST_OK;
    fail(server, "%s: upgrade this node (%s)",
         "the cluster has decided what this version does not know", ST_UNSUPPORTED);
    return ST_UNSUPPORTED;
}

/* ---- preparing: the others wait for shard 0 ---- */

MAY_YIELD static status
wait_for_layout(struct shard *shard, status *prepared)
{
    struct server *server = shard->server;
    if (shard->index == 0) {
        if (ok(*prepared)) *prepared = prepare(server);
        atomic_store(&server->prepared, ok(*prepared) ? 1u : 2u);
        return *prepared;
    }
    /* A control path that runs once: looking now and then is plainer than one more mail. */
    while (atomic_load(&server->prepared) == 0)
        fiber_sleep_ns(NS_PER_MS);
    return atomic_load(&server->prepared) == 1 ? ST_OK : ST_CANCELED;
}

/* The budget is fresh and its least size is checked; but the machine may have no memory. The others
 * must not wait for this shard. */
MAY_YIELD static status
give_up(struct server *server)
{
    status st = ST_NO_MEMORY;
    fail(server, "%s: %s", "a shard cannot begin", st);
    if (io_shard_index() == 0) atomic_store(&server->prepared, 2);
    (void)meet(server, st, deliver_opened);
    (void)meet(server, st, deliver_closed);
    return st;
}

MAY_YIELD status
server_shard_main(void *arg)
{
    struct server *server = arg;
    struct shard *shard = mem_alloc_aligned(io_budget(), sizeof(*shard), 64);
    if (shard == NULL) return give_up(server);
    status st = init(shard, server);
    if (!ok(st)) fail(server, "%s: %s", "a shard cannot begin", st);
    io_shard_user_set(shard);
    server->shards[shard->index] = shard;

    status prepared = st;
    status layout = wait_for_layout(shard, &prepared);
    if (ok(st)) st = layout;
    if (ok(st)) st = open_store(shard);
    status all = meet(server, st, deliver_opened), entered = all;
    if (ok(all)) st = enter_cluster(shard);
    if (ok(all)) entered = meet(server, st, deliver_entered);
    if (ok(entered)) {
        st = serve(shard);
    } else if (ok(all)) {
        /* Other nodes have asked those shards already that were in the cluster first. */
        drain(shard, io_clock_ns() + DRAIN_NS);
    }
    if (ok(all)) (void)meet(server, st, deliver_drained); /* all go on, whatever became of one */
    if (ok(entered) && ok(st)) st = why_stopped(shard);
    leave_cluster(shard);
    if (shard->lsm != NULL) {
        native_snapshots_sweep(shard, true);
        bool synced = lsm_durability(shard->lsm) == LSM_DURABILITY_GROUP;
        status closed = lsm_close(shard->lsm);
        shard->lsm = NULL;
        bool no_room = status_is(closed, ST_NO_SPACE) || status_is(closed, ST_NO_MEMORY);
        if (no_room && synced) {
            /* Nor is it a failure of this stop: what was acknowledged is in the log. */
            log_warning("shard",
                        "no %s to write out what was written last; the log is replayed at the next "
                        "start",
                        status_is(closed, ST_NO_SPACE) ? "space" : "memory");
            closed = ST_OK;
        }
        if (ok(st)) st = closed;
    }
    if (status_is(st, ST_CANCELED) && io_stopping()) st = ST_OK; /* before it was in its cluster */
    status others = meet(server, st, deliver_closed);
    (void)others; /* io_node_join hears of it from the shard that failed */
    if (shard->index == 0 && ok(prepared)) store_release(server->config->data_dir);
    if (shard->index == 0) cluster_free(server->cluster);
    deinit(shard);
    io_shard_user_set(NULL);
    mem_free(io_budget(), shard, sizeof(*shard));
    return st;
}
