/* SPDX-License-Identifier: MIT
 *
 * lib_route.c -- which connection a request takes, and how the handle follows the topology.
 *
 * Where. A request with a key goes to the first of its partition's replicas that can be reached (of
 * the shards of that node to the one that has the key, where there is a connection to it); without
 * a map, or while none of them can be reached, to any node: nodes forward what they do not run, so
 * a wrong guess costs one more hop and is never an error. Connections to nodes that were not named
 * are made when the first request wants them; until they are there it goes elsewhere. What has no
 * key goes to a server that was named, if that is a member.
 *
 * What may have been done once (an ambiguous write) waits for the run of the server that had it
 * for as long as that can be reached: there its id is remembered. What may be done twice goes on to
 * another node only when it cannot; request.c says what becomes of the rest. And not sooner than
 * NATIVE_ELSEWHERE_MS after it was sent, unless the process that had it has ended: one that only
 * stood still must not do it when another one has. What the kernel still has of a connection that
 * is given up is dropped with it.
 *
 * Following. Each reply carries the epoch of the topology that its node goes by. When one is newer
 * than the map's, the map is fetched: by one request at a time, not before a moment that differs
 * from handle to handle, and not twice within FETCH_PAUSE_NS. However many replies say so, that
 * is one fetch.
 *
 * Clusters. HELLO tells whose a node is. As long as a connection to one of the map's own cluster is
 * there, only such ones are asked for the map, and only their epochs count: a member that was taken
 * out and is a cluster by itself now leads nobody there. When all that are there are of another
 * one, the cluster was founded anew at these addresses: its map is taken, whatever its epoch.
 *
 * Silence. A node that stands still keeps its connections. When something is owed on one and
 * nothing has come for SILENCE_NS, it is asked with a PING, and requests go elsewhere until
 * something comes; when nothing has for PING_NS more, it is given up. As long as a slow line takes
 * what was sent, it is not silent. Only in a cluster: a server that is the only one is waited for
 * until the deadline.
 */
#include "client/lib_internal.h"

#include "base/hash.h"

#include <stdio.h>

#define FETCH_PAUSE_NS  NS_PER_S
#define FETCH_JITTER_US 250000u
#define SILENCE_NS      (500 * NS_PER_MS)
#define PING_NS         NS_PER_S

/* ---- choosing ---- */

static bool
takes_requests(const struct connection *connection)
{
    return connection->state == CONNECTION_READY && !connection->leaving;
}

static struct connection *
if_room(struct connection *connection)
{
    return connection->in_flight < connection->in_flight_max ? connection : NULL;
}

static void
want(struct connection *connection)
{
    if (connection->state == CONNECTION_CLOSED && !connection->timer.armed)
        lib_timer_set(connection->kv, &connection->timer, lib_now_ns());
}

/* The one that goes to the shard, or another one to this node; NULL: there is none yet. */
static struct connection *
pick(struct server *server, u32 shard, u32 slot)
{
    if (server->shard_port != 0 && shard < server->shard_count) {
        u32 each = server->connection_count / server->shard_count;
        struct connection *own = &server->connections[shard + slot % each * server->shard_count];
        if (takes_requests(own) && !own->silent) return own;
        want(own);
    }
    u32 ready = 0, there = 0;
    for (u32 i = 0; i < server->connection_count; i++) {
        const struct connection *connection = &server->connections[i];
        if (!takes_requests(connection) || connection->silent) continue;
        ready++;
        if (connection->shard == shard) there++;
    }
    if (ready == 0) return NULL;
    u32 wanted = slot % (there > 0 ? there : ready);
    for (u32 i = 0; i < server->connection_count; i++) {
        struct connection *connection = &server->connections[i];
        if (!takes_requests(connection) || connection->silent) continue;
        if (there > 0 && connection->shard != shard) continue;
        if (wanted-- == 0) return connection;
    }
    return NULL;
}

enum { ANY_NAMED = 1, ANY_SILENT = 2, ANY_OUTSIDE = 4 };

/* Of all that are ready and speak, of servers that are members as far as is known. ANY_NAMED: of
 * those that were named only; the others: of these, too. A slot always goes the same way while the
 * connections stay. */
static struct connection *
pick_any(struct distkv *kv, u32 slot, u32 which)
{
    bool silent_too = (which & ANY_SILENT) != 0;
    u32 wanted = 0;
    for (u32 round = 0; round < 2; round++) {
        u32 ready = 0;
        for (u32 s = 0; s < kv->server_count; s++) {
            struct server *server = &kv->servers[s];
            if ((which & ANY_NAMED) != 0 && !server->named) continue;
            if ((which & ANY_OUTSIDE) == 0 && server->outside) continue;
            for (u32 c = 0; c < server->connection_count; c++) {
                struct connection *connection = &server->connections[c];
                if (!takes_requests(connection) || (connection->silent && !silent_too)) continue;
                if (round == 1 && ready == wanted) return connection;
                ready++;
            }
        }
        if (ready == 0) return NULL;
        wanted = slot % ready;
    }
    return NULL;
}

static struct connection *
pick_run(struct distkv *kv, u64 run_id)
{
    struct connection *full = NULL;
    for (u32 s = 0; s < kv->server_count; s++) {
        for (u32 c = 0; c < kv->servers[s].connection_count; c++) {
            struct connection *connection = &kv->servers[s].connections[c];
            if (!takes_requests(connection) || connection->run_id != run_id) continue;
            if (if_room(connection) != NULL) return connection;
            full = connection;
        }
    }
    return full;
}

/* By the map; NULL: none is there yet, or none is known. */
static struct connection *
pick_replica(struct distkv *kv, u32 slot)
{
    for (u32 place = 0; place < kv->map.width; place++) {
        u32 node = lib_map_node(&kv->map, slot, place);
        struct server *server = node == LIB_MAP_NOBODY ? NULL : kv->map_servers[node];
        if (server == NULL) continue;
        struct connection *connection = pick(server, lib_map_shard(&kv->map, node, slot), slot);
        if (connection != NULL) return connection;
        if (server->down) continue;
        for (u32 i = 0; i < server->connection_count && server->shard_port == 0; i++)
            want(&server->connections[i]);
        return NULL; /* it is being connected: meanwhile anybody, and no further ones for this */
    }
    return NULL;
}

/* None to it is ready, but one may be at once. */
static bool
coming_back(const struct server *server)
{
    bool tried = false;
    if (server->down || server->retired) return false;
    for (u32 i = 0; i < server->connection_count; i++) {
        const struct connection *connection = &server->connections[i];
        if (connection->state == CONNECTION_READY) return false;
        tried = tried || connection->state != CONNECTION_CLOSED || connection->timer.armed;
    }
    return tried;
}

static struct connection *
choose(struct distkv *kv, const struct request *request)
{
    struct connection *connection = NULL;
    if (request->ambiguous || request->pinned_run_id != 0) {
        connection =
            pick_run(kv, request->ambiguous ? request->first_run_id : request->pinned_run_id);
        if (connection != NULL) return if_room(connection);
        const struct server *first = request->first_server;
        if (request->ambiguous && first->serial == request->first_serial && coming_back(first))
            return NULL;
    }
    bool keyed = request->slot != LIB_ANYWHERE;
    u32 slot = keyed ? request->slot : 0;
    if (keyed) connection = pick_replica(kv, slot);
    if (connection == NULL) connection = pick_any(kv, slot, keyed ? 0 : ANY_NAMED);
    if (connection == NULL) connection = pick_any(kv, slot, 0);
    if (connection == NULL) connection = pick_any(kv, slot, ANY_OUTSIDE);
    if (connection == NULL) connection = pick_any(kv, slot, ANY_OUTSIDE | ANY_SILENT);
    return connection == NULL ? NULL : if_room(connection);
}

/* Whether the process that had the last attempt has certainly ended. */
static bool
has_ended(const struct request *request)
{
    const struct server *server = request->last_server;
    if (server->serial != request->last_serial) return false;
    if (server->gone) return true;
    for (u32 i = 0; i < server->connection_count && !server->several; i++) {
        const struct connection *connection = &server->connections[i];
        if (connection->state == CONNECTION_READY && connection->run_id != request->last_run_id)
            return true;
    }
    return false;
}

struct connection *
route_choose(struct distkv *kv, const struct request *request)
{
    struct connection *connection = choose(kv, request);
    if (connection == NULL || !request->ambiguous || connection->run_id == request->last_run_id)
        return connection;
    u64 at = request->sent_ns + NATIVE_ELSEWHERE_MS * NS_PER_MS;
    if (lib_now_ns() >= at || has_ended(request)) return connection;
    if (!kv->elsewhere_timer.armed || kv->elsewhere_timer.at_ns > at)
        lib_timer_set(kv, &kv->elsewhere_timer, at);
    connection = pick_run(kv, request->last_run_id);
    return connection == NULL ? NULL : if_room(connection);
}

/* ---- silence ---- */

static void
ping_done(struct request *request, int code, const char *error, const struct native_reply *reply)
{
    (void)request, (void)code, (void)error, (void)reply; /* that bytes came is what counts */
}

void
route_watch(struct connection *connection)
{
    if (connection->kv->map.node_count < 2 || connection->state != CONNECTION_READY ||
        connection->timer.armed)
        return;
    lib_timer_set(connection->kv, &connection->timer, lib_now_ns() + SILENCE_NS);
}

void
route_on_silence(struct connection *connection)
{
    struct distkv *kv = connection->kv;
    u64 now = lib_now_ns();
    if (connection->in_flight == 0) {
        connection->silent = false; /* there was no memory to ask */
        return;
    }
    u64 since = connection->received_ns;
    if (!list_empty(&connection->sent))
        since =
            MAX(since, list_entry(list_first(&connection->sent), struct request, link)->sent_ns);
    if (connection_moves(connection)) {
        /* What lies between us and the question would be taken for silence. */
        connection->silent = false;
        lib_timer_set(kv, &connection->timer, now + SILENCE_NS);
        return;
    }
    if (connection->silent) {
        connection_break(connection, "no answer for %u ms",
                         (u32)((SILENCE_NS + PING_NS) / NS_PER_MS));
        return;
    }
    if (now - MIN(now, since) < SILENCE_NS || list_empty(&connection->sent)) {
        lib_timer_set(kv, &connection->timer, MAX(since, now - SILENCE_NS / 2) + SILENCE_NS);
        return;
    }
    struct native_request native = {.header.opcode = NATIVE_PING};
    struct request *request = request_new(kv, &native, LIB_ANYWHERE, true);
    if (request != NULL) {
        request->own = true;
        request->done = ping_done;
        request_assign(request, connection);
    }
    connection->silent = true;
    lib_timer_set(kv, &connection->timer, now + PING_NS);
}

/* ---- servers that the map names ---- */

static struct server *
server_named(struct distkv *kv, const struct lib_map_node *node, const char *port)
{
    if (node->shard_port != 0) return NULL; /* it has better ones */
    for (u32 s = 0; s < kv->server_count; s++) {
        struct server *server = &kv->servers[s];
        if (!server->named) continue;
        if (strcmp(server->host, node->host) == 0 && strcmp(server->port, port) == 0) return server;
        if (!server->several && strcmp(server->info.node_id, node->id) == 0) return server;
    }
    return NULL;
}

static struct server *
server_known(struct distkv *kv, const struct lib_map_node *node, const char *port)
{
    for (u32 s = 0; s < kv->server_count; s++) {
        struct server *server = &kv->servers[s];
        if (!server->named && !server->retired && server->connections != NULL &&
            strcmp(server->host, node->host) == 0 && strcmp(server->port, port) == 0 &&
            server->shard_port == node->shard_port &&
            (node->shard_port == 0 || server->shard_count == node->shard_count))
            return server;
    }
    return NULL;
}

static struct server *
server_of(struct distkv *kv, const struct lib_map_node *node)
{
    char port[16];
    snprintf(port, sizeof(port), "%u", node->port);
    if (node->host[0] == '\0' || node->port == 0) return NULL;
    struct server *server = server_known(kv, node, port);
    if (server == NULL) server = server_named(kv, node, port);
    if (server != NULL) return server;
    for (u32 s = 0; s < kv->server_count && server == NULL; s++)
        if (!kv->servers[s].named && kv->servers[s].connections == NULL) server = &kv->servers[s];
    if (server == NULL && kv->server_count < LIB_SERVERS_MAX + LIB_MAP_NODES_MAX)
        server = &kv->servers[kv->server_count++];
    if (server == NULL) return NULL;
    *server = (struct server){.shard_port = node->shard_port, .shard_count = node->shard_count};
    bool v6 = strchr(node->host, ':') != NULL;
    snprintf(server->host, sizeof(server->host), "%s", node->host);
    snprintf(server->port, sizeof(server->port), "%s", port);
    snprintf(server->name, sizeof(server->name), "%s%.100s%s:%s", v6 ? "[" : "", node->host,
             v6 ? "]" : "", port);
    return server_init(kv, server) ? server : NULL;
}

/* Its connections end as soon as nothing is in flight on them, and are not made again. */
static void
retire(struct server *server)
{
    server->retired = true;
    for (u32 i = 0; i < server->connection_count; i++) {
        struct connection *connection = &server->connections[i];
        if (connection->state == CONNECTION_CLOSED)
            lib_timer_stop(connection->kv, &connection->timer);
        else if (connection->state == CONNECTION_READY)
            connection_leave(connection);
        else
            connection_break(connection, "the node has left the cluster");
    }
}

/* A name that was given may be that of a node which is none of the cluster's any more. Not the
 * address of several nodes, nor one that has not said who it is. */
static bool
is_outside(const struct distkv *kv, const struct server *server)
{
    const char *id = server->info.node_id;
    if (!server->named || server->mapped || server->several || id[0] == '\0') return false;
    for (u32 i = 0; i < kv->map.node_count; i++)
        if (strcmp(kv->map.nodes[i].id, id) == 0) return false;
    return kv->map.node_count < LIB_MAP_NODES_MAX; /* else it may be one that is not known */
}

static void
servers_follow(struct distkv *kv)
{
    for (u32 s = 0; s < kv->server_count; s++)
        kv->servers[s].mapped = false;
    for (u32 i = 0; i < kv->map.node_count; i++) {
        kv->map_servers[i] = server_of(kv, &kv->map.nodes[i]);
        if (kv->map_servers[i] != NULL) kv->map_servers[i]->mapped = true;
    }
    for (u32 s = 0; s < kv->server_count; s++) {
        struct server *server = &kv->servers[s];
        server->outside = is_outside(kv, server);
        if (!server->named && !server->mapped && !server->retired && server->connections != NULL)
            retire(server);
    }
    kv->retired = true;
}

void
route_sweep(struct distkv *kv)
{
    if (!kv->retired) return;
    kv->retired = false;
    for (u32 s = 0; s < kv->server_count; s++) {
        struct server *server = &kv->servers[s];
        if (!server->retired || server->connections == NULL) continue;
        bool closed = true;
        for (u32 i = 0; i < server->connection_count; i++)
            closed = closed && server->connections[i].state == CONNECTION_CLOSED;
        if (closed)
            server_deinit(kv, server);
        else
            kv->retired = true;
    }
}

/* ---- the map ---- */

static bool
is_foreign(const struct connection *connection)
{
    u64 own = connection->kv->map_cluster;
    return own != 0 && connection->cluster != 0 && connection->cluster != own;
}

/* Whoever has told of the newest topology; of the map's cluster, while anybody of that is there. */
static struct connection *
teller(struct distkv *kv)
{
    struct connection *best = NULL;
    for (u32 s = 0; s < kv->server_count; s++) {
        for (u32 c = 0; c < kv->servers[s].connection_count; c++) {
            struct connection *connection = &kv->servers[s].connections[c];
            if (!takes_requests(connection) || connection->silent || !connection->tells) continue;
            bool foreign = is_foreign(connection);
            if (best == NULL || (is_foreign(best) && !foreign) ||
                (is_foreign(best) == foreign && connection->epoch > best->epoch))
                best = connection;
        }
    }
    return best;
}

static void
fetch_consider(struct distkv *kv)
{
    if (kv->options.no_routing || kv->closing) return;
    if (kv->epoch_told <= kv->map.epoch) {
        const struct connection *told = teller(kv);
        if (told == NULL || !is_foreign(told)) return;
    }
    if (kv->fetch != NULL || kv->fetch_timer.armed) return;
    u64 at = lib_now_ns();
    if (kv->fetched_ns != 0) {
        at = MAX(at, kv->fetched_ns + FETCH_PAUSE_NS);
        at += prng_below(&kv->prng, FETCH_JITTER_US) * NS_PER_US;
    }
    lib_timer_set(kv, &kv->fetch_timer, at);
}

static void
fetch_done(struct request *request, int code, const char *error, const struct native_reply *reply)
{
    (void)error;
    struct distkv *kv = request->arg;
    kv->fetch = NULL;
    if (budget_available(&kv->budget) < LIB_OWN_BYTES) (void)connections_give_back(kv);
    bool other =
        kv->map_cluster != 0 && kv->fetch_cluster != 0 && kv->map_cluster != kv->fetch_cluster;
    if (code == DISTKV_OK && reply->topology.node_count > 0 &&
        (other || reply->topology.epoch > kv->map.epoch) &&
        lib_map_take(&kv->map, &kv->budget, &reply->topology)) {
        for (u32 i = 0; i < kv->map.node_count; i++) /* a node by itself: where it was reached */
            if (kv->map.nodes[i].host[0] == '\0')
                snprintf(kv->map.nodes[i].host, sizeof(kv->map.nodes[i].host), "%s",
                         kv->fetch_host);
        if (other) kv->epoch_told = reply->topology.epoch;
        if (kv->fetch_cluster != 0) kv->map_cluster = kv->fetch_cluster;
        servers_follow(kv);
    }
    fetch_consider(kv);
}

void
route_on_timer(struct distkv *kv)
{
    struct connection *connection = teller(kv);
    bool foreign = connection != NULL && is_foreign(connection);
    struct native_request native = {.header.opcode = NATIVE_TOPOLOGY,
                                    .topology.epoch = foreign ? 0 : kv->map.epoch};
    struct request *request =
        connection == NULL ? NULL : request_new(kv, &native, LIB_ANYWHERE, true);
    kv->fetched_ns = lib_now_ns();
    if (request == NULL) {
        fetch_consider(kv);
        return;
    }
    request->own = true;
    request->done = fetch_done;
    request->arg = kv;
    kv->fetch = request;
    kv->fetch_cluster = connection->cluster;
    snprintf(kv->fetch_host, sizeof(kv->fetch_host), "%.255s", connection->server->host);
    request_assign(request, connection);
}

void
route_on_lost(struct distkv *kv, const struct request *request)
{
    if (kv->fetch != request) return;
    kv->fetch = NULL;
    fetch_consider(kv);
}

void
route_on_broken(struct distkv *kv)
{
    fetch_consider(kv);
}

void
route_on_epoch(struct connection *connection, u64 epoch)
{
    struct distkv *kv = connection->kv;
    connection->epoch = epoch;
    if (!connection->tells || epoch <= kv->epoch_told || is_foreign(connection)) return;
    kv->epoch_told = epoch;
    fetch_consider(kv);
}

void
route_on_hello(struct connection *connection, const struct native_hello_reply *hello)
{
    struct server *server = connection->server;
    struct distkv *kv = connection->kv;
    /* A node by itself has no epochs, but after a start other shards, maybe. */
    if (kv->map.node_count == 1 && connection->run_id != 0 && connection->run_id != hello->run_id)
        kv->map.epoch = kv->epoch_told = 0;
    bool topology = (hello->features & NATIVE_FEATURE_TOPOLOGY) != 0;
    connection->tells = topology && (hello->features & NATIVE_FEATURE_PLACES) != 0;
    connection->shard = topology ? hello->shard : LIB_SHARD_UNKNOWN;
    connection->silent = false;
    connection->cluster = hello->cluster_id;
    struct bytes before = BYTES(server->info.node_id, strlen(server->info.node_id));
    bool other = !bytes_equal(before, hello->node_id);
    if (before.size != 0 && other) server->several = true; /* an address of more than one node */
    server->down = server->gone = false;
    server->changed = other;
}

void
route_on_known(struct connection *connection)
{
    fetch_consider(connection->kv);
    if (!connection->server->changed || connection->kv->map.epoch == 0) return;
    connection->server->changed = false;
    servers_follow(connection->kv);
}
