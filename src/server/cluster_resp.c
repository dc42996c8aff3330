/* SPDX-License-Identifier: MIT
 *
 * cluster_resp.c -- what Redis Cluster clients are told, so that they go straight to whoever has a
 * key (resp-cluster node or cores). For them there is one *place* for each address:
 *
 *   node    a place is a node, at its data port
 *   cores   a place is a shard of a node, at its own port: the data port + 1 + its number. A member
 *           whose shards are not known to have ports is one place, as above
 *
 * and a slot belongs to the place of the first replica of its partition that lives and that is not
 * being drained; on that node, to the shard that has the partition.
 *
 * What clients were seen to need (each of these has broken one):
 *   - An address for each place: they tell connections apart by host and port, not by id.
 *   - Never an empty host. A node by itself tells the one that the asking connection has reached.
 *   - All 16,384 slots, of which each belongs to one place. Slots of a partition whose replicas are
 *     all gone belong to the first of them: whoever is asked says NOREPLICAS.
 *   - No replicas. A place that is master of some slots and replica of others makes clients that
 *     read from replicas stumble; and any node reads from a quorum anyway.
 *   - One `myself`: the place of the shard that has accepted the connection, whichever port it was.
 *   - No MOVED is ever needed or sent: every port takes every request, and forwards it.
 *
 * The slots of a shard are contiguous as far as its node is their first replica. A node by itself
 * has one run for each of its shards. Where several nodes share the partitions there are a few
 * hundred (three nodes: 258), up to 4,096 (placement.h, P8): about 90 bytes each in SLOTS, 6 in
 * NODES.
 *
 * Clients ask all at once: when they start, and when a node goes. So each shard keeps the replies
 * that it has made, by what went into them (struct seen: the epoch, who lives, who is drained, who
 * has ports), and sends them again as they are. What is kept of another state is dropped with the
 * next question. A node by itself keeps none: it tells each connection the address it has reached.
 */
#include "server/cluster_resp.h"

#include <stdio.h>

#include "server/cluster_view.h"
#include "server/cmd.h"
#include "server/session.h"

/* Of a member, once for the whole reply: it may change any time. */
struct seen {
    u8 alive, drained;
    u16 shard_port; /* 0: its shards have no ports */
};

struct map {
    const struct shard *shard;
    const struct topology *topology; /* NULL: a node by itself */
    u32 node_count;
    u32 partition_count;
    struct seen *seen; /* node_count; NULL: a node by itself */
    u64 digest;        /* of all that replies are made of; 0: a node by itself */
    u32 *owners;       /* of each partition: node * LIMIT_SHARDS + shard */
};

/* Of a line of NODES, without slots. */
#define NODES_LINE_BYTES (TOPOLOGY_NAME_BYTES + 192u)

struct place {
    char host[TOPOLOGY_NAME_BYTES];
    u32 port, peer_port;
    char id[41];
    bool alive, self;
};

void
cluster_resp_local(const struct exec *x, char out[CLUSTER_RESP_HOST_BYTES])
{
    char local[CLUSTER_RESP_HOST_BYTES] = "";
    if (x->session->conn != NULL) io_conn_local_name(x->session->conn, local, sizeof(local));
    char *colon = strrchr(local, ':');
    if (colon != NULL) *colon = '\0';
    size_t size = strlen(local);
    const char *host = local;
    if (size > 2 && local[0] == '[' && local[size - 1] == ']') { /* IPv6, as Redis: bare */
        local[size - 1] = '\0';
        host++;
    }
    if (host[0] == '\0') host = x->shard->config->endpoint.host; /* it has just been closed */
    snprintf(out, CLUSTER_RESP_HOST_BYTES, "%s", host);
}

/* 0: the shards of this node have no ports. */
static u32
shard_port(const struct map *map, u32 node)
{
    const struct server_config *config = map->shard->server->config;
    if (config->resp_cluster != CONFIG_RESP_CLUSTER_CORES) return 0;
    return map->seen == NULL ? config->shard_port : map->seen[node].shard_port;
}

static u32
shard_count(const struct map *map, u32 node)
{
    return map->topology == NULL ? map->shard->server->shard_count
                                 : map->topology->members[node].shard_count;
}

static u32
place_count(const struct map *map, u32 node)
{
    return shard_port(map, node) == 0 ? 1 : shard_count(map, node);
}

static void
place_id(const char *node_id, bool shards, u32 shard, char out[41])
{
    char name[CONFIG_NODE_ID_BYTES + 16];
    if (shards)
        snprintf(name, sizeof(name), "%s shard %u", node_id, shard);
    else
        snprintf(name, sizeof(name), "%s", node_id);
    cluster_node_name(name, out);
}

static struct place
place_of(const struct exec *x, const struct map *map, u32 node, u32 shard)
{
    struct server *server = map->shard->server;
    struct place place = {.alive = true, .self = true};
    u32 port = shard_port(map, node);
    bool shards = port != 0;
    if (map->topology == NULL) {
        cluster_resp_local(x, place.host);
        place.port = place.peer_port = server->port;
        place_id(server->layout.node_id, shards, shard, place.id);
    } else {
        const struct topology_member *member = &map->topology->members[node];
        place.self = member->number == cluster_member(server->cluster);
        place.alive = map->seen[node].alive;
        snprintf(place.host, sizeof(place.host), "%s", member->host);
        place.port = member->client_port;
        place.peer_port = member->peer_port;
        place_id(member->node_id, shards, shard, place.id);
    }
    if (!shards) return place;
    place.port = port + shard;
    place.self = place.self && shard == map->shard->index;
    if (map->topology != NULL) place.peer_port += shard;
    return place;
}
static_assert(CLUSTER_RESP_HOST_BYTES <= TOPOLOGY_NAME_BYTES, "place_of copies");

/* The first of its partition that requests go to. */
static u32
owner_node(const struct map *map, u32 partition)
{
    struct topology_row row;
    u32 count, fallback = 0;
    topology_row(map->topology, 0, partition, &row);
    const u32 *members = topology_row_read(&row, &count);
    for (u32 i = count; i-- > 0;) {
        const struct topology_member *member = topology_member(map->topology, members[i]);
        if (member != NULL) fallback = (u32)(member - map->topology->members);
    }
    for (u32 drained = 0; drained < 2; drained++) {
        for (u32 i = 0; i < count; i++) {
            const struct topology_member *member = topology_member(map->topology, members[i]);
            if (member == NULL) continue;
            u32 node = (u32)(member - map->topology->members);
            if (map->seen[node].alive && map->seen[node].drained <= drained) return node;
        }
    }
    return fallback;
}

/* Who is there, and the digest. false: the run has failed. */
MUST_CHECK static bool
map_look(struct exec *x, struct map *map)
{
    const struct server *server = x->shard->server;
    *map = (struct map){
        .shard = x->shard, .node_count = 1, .partition_count = server->layout.partition_count};
    if (server->cluster == NULL) return true;
    map->topology = x->shard->cluster == NULL ? NULL : cluster_topology(x->shard->cluster);
    if (map->topology == NULL || map->topology->member_count == 0) {
        exec_fail(x, ST_UNAVAILABLE);
        return false;
    }
    map->node_count = map->topology->member_count;
    map->partition_count = map->topology->partition_count;
    size_t bytes = map->node_count * sizeof(*map->seen);
    map->seen = (struct seen *)(void *)exec_alloc(x, bytes);
    if (map->seen == NULL) return false;
    for (u32 i = 0; i < map->node_count; i++) {
        const struct topology_member *member = &map->topology->members[i];
        map->seen[i] = (struct seen){.alive = cluster_alive(server->cluster, member->number),
                                     .drained = cluster_drained(server->cluster, member->number),
                                     .shard_port = cluster_view_shard_port(server, member)};
    }
    map->digest =
        hash_bytes(map->seen, bytes, map->topology->state_id ^ server->config->resp_cluster);
    if (map->digest == 0) map->digest = 1;
    return true;
}

MUST_CHECK static bool
map_fill(struct exec *x, struct map *map)
{
    x->shard->stats->cluster_maps++;
    map->owners = (u32 *)(void *)exec_alloc(x, map->partition_count * sizeof(*map->owners));
    if (map->owners == NULL) return false;
    for (u32 p = 0; p < map->partition_count; p++) {
        u32 node = map->topology == NULL ? 0 : owner_node(map, p);
        u32 shard = shard_port(map, node) == 0
                        ? 0
                        : partition_shard(p, shard_count(map, node), map->partition_count);
        map->owners[p] = node * LIMIT_SHARDS + shard;
    }
    return true;
}

/* The next partitions in a row that belong to one place: from *at on, which moves behind them. */
static bool
next_run(const struct map *map, u32 *at, u32 *slot_first, u32 *slot_last)
{
    u32 slots = SLOT_COUNT / map->partition_count;
    if (*at >= map->partition_count) return false;
    u32 owner = map->owners[*at];
    *slot_first = *at * slots;
    while (*at < map->partition_count && map->owners[*at] == owner)
        (*at)++;
    *slot_last = *at * slots - 1;
    return true;
}

/* The same of one place. Only partitions of its shard are looked at: see partition_shard. */
static bool
next_run_of(const struct map *map, u32 node, u32 shard, u32 *at, u32 *slot_first, u32 *slot_last)
{
    u32 slots = SLOT_COUNT / map->partition_count;
    u64 places = place_count(map, node), owner = node * LIMIT_SHARDS + shard;
    u32 end = (u32)((shard + 1) * map->partition_count / places);
    *at = MAX(*at, (u32)(shard * map->partition_count / places));
    while (*at < end && map->owners[*at] != owner)
        (*at)++;
    if (*at >= end) return false;
    *slot_first = *at * slots;
    while (*at < end && map->owners[*at] == owner)
        (*at)++;
    *slot_last = *at * slots - 1;
    return true;
}

/* ---- replies that are kept ---- */

enum kept_kind { KEPT_INFO, KEPT_NODES, KEPT_SLOTS, KEPT_SHARDS, KEPT_KINDS };

struct cluster_kept {
    u64 digest;                        /* of all */
    struct buf replies[KEPT_KINDS][2]; /* in RESP2 and RESP3; empty: none is kept */
};

void
cluster_kept_free(struct shard *shard)
{
    struct cluster_kept *kept = shard->cluster_kept;
    if (kept == NULL) return;
    for (u32 i = 0; i < KEPT_KINDS; i++)
        for (u32 version = 0; version < 2; version++)
            buf_deinit(&kept->replies[i][version]);
    mem_free(&shard->budget, kept, sizeof(*kept));
    shard->cluster_kept = NULL;
}

/* Where the reply is kept, or will be. NULL: there is no memory for that. */
static struct buf *
kept_place(struct exec *x, const struct map *map, enum kept_kind kind)
{
    struct shard *shard = x->shard;
    if (map->digest == 0) return NULL;
    if (shard->cluster_kept != NULL && shard->cluster_kept->digest != map->digest)
        cluster_kept_free(shard);
    if (shard->cluster_kept == NULL) {
        shard->cluster_kept = mem_alloc_zero(&shard->budget, sizeof(*shard->cluster_kept));
        if (shard->cluster_kept == NULL) return NULL;
        shard->cluster_kept->digest = map->digest;
        for (u32 i = 0; i < KEPT_KINDS; i++)
            for (u32 version = 0; version < 2; version++)
                buf_init(&shard->cluster_kept->replies[i][version], &shard->budget);
    }
    return &shard->cluster_kept->replies[kind][x->reply->version == 3];
}

/* Sends what is kept, or has it made, and keeps that. Nothing yields in between. */
static void
answer(struct exec *x, enum kept_kind kind, void (*make)(struct exec *x, const struct map *map))
{
    struct map map;
    if (!map_look(x, &map)) return;
    struct buf *kept = kept_place(x, &map, kind), *out = x->reply->out;
    if (kept != NULL && kept->size > 0) {
        if (!buf_append(out, kept->data, kept->size)) x->reply->failed = true;
        return;
    }
    if (!map_fill(x, &map)) return;
    size_t before = out->size;
    make(x, &map);
    if (kept != NULL && !x->reply->failed && !x->stopped)
        (void)!buf_append(kept, out->data + before, out->size - before);
}

/* ---- the commands ---- */

static void
make_info(struct exec *x, const struct map *map)
{
    u32 places = 0, masters = 0, ok_slots = 0, at = 0, first, last;
    while (next_run(map, &at, &first, &last)) {
        u32 owner = map->owners[first / (SLOT_COUNT / map->partition_count)];
        struct place place = place_of(x, map, owner / LIMIT_SHARDS, owner % LIMIT_SHARDS);
        if (place.alive) ok_slots += last - first + 1;
    }
    for (u32 node = 0; node < map->node_count; node++) {
        for (u32 shard = 0; shard < place_count(map, node); shard++) {
            at = 0;
            places++;
            masters += next_run_of(map, node, shard, &at, &first, &last);
        }
    }
    u64 epoch = map->topology == NULL ? 1 : map->topology->epoch;
    char text[512];
    int n = snprintf(text, sizeof(text),
                     "cluster_state:%s\r\n"
                     "cluster_slots_assigned:16384\r\n"
                     "cluster_slots_ok:%u\r\n"
                     "cluster_slots_pfail:0\r\n"
                     "cluster_slots_fail:%u\r\n"
                     "cluster_known_nodes:%u\r\n"
                     "cluster_size:%u\r\n"
                     "cluster_current_epoch:%llu\r\n"
                     "cluster_my_epoch:%llu\r\n"
                     "cluster_stats_messages_sent:0\r\n"
                     "cluster_stats_messages_received:0\r\n"
                     "total_cluster_links_buffer_limit_exceeded:0\r\n",
                     ok_slots == SLOT_COUNT ? "ok" : "fail", ok_slots, SLOT_COUNT - ok_slots,
                     places, masters, (unsigned long long)epoch, (unsigned long long)epoch);
    resp_verbatim(x->reply, "txt", BYTES(text, (size_t)n));
}

void
cluster_resp_info(struct exec *x)
{
    answer(x, KEPT_INFO, make_info);
}

void
cluster_resp_myid(struct exec *x)
{
    const struct server *server = x->shard->server;
    char id[41];
    place_id(server->layout.node_id, server->config->shard_port != 0, x->shard->index, id);
    resp_bulk_text(x->reply, id);
}

static void
make_nodes(struct exec *x, const struct map *map)
{
    u64 epoch = map->topology == NULL ? 1 : map->topology->epoch;
    struct buf out;
    buf_init(&out, x->budget);
    /* All of it first: a map that is cut would be believed. */
    size_t most = map->partition_count * sizeof(" 16383-16383");
    for (u32 node = 0; node < map->node_count; node++)
        most += (size_t)place_count(map, node) * NODES_LINE_BYTES;
    if (!buf_reserve(&out, most)) {
        exec_fail(x, ST_NO_MEMORY);
        return;
    }
    for (u32 node = 0; node < map->node_count; node++) {
        for (u32 shard = 0; shard < place_count(map, node); shard++) {
            struct place place = place_of(x, map, node, shard);
            cmd_text(&out, "%s %s:%u@%u %smaster%s - 0 0 %llu %s", place.id, place.host, place.port,
                     place.peer_port, place.self ? "myself," : "", place.alive ? "" : ",fail",
                     (unsigned long long)epoch, place.alive ? "connected" : "disconnected");
            u32 at = 0, first, last;
            while (next_run_of(map, node, shard, &at, &first, &last))
                cmd_text(&out, first == last ? " %u" : " %u-%u", first, last);
            cmd_text(&out, "\n");
        }
    }
    resp_verbatim(x->reply, "txt", buf_bytes(&out));
    buf_deinit(&out);
}

void
cluster_resp_nodes(struct exec *x)
{
    answer(x, KEPT_NODES, make_nodes);
}

static void
make_slots(struct exec *x, const struct map *map)
{
    u32 runs = 0, at = 0, first, last;
    while (next_run(map, &at, &first, &last))
        runs++;
    resp_array(x->reply, runs);
    u32 owner_before = UINT32_MAX;
    struct place place = {.port = 0};
    at = 0;
    while (next_run(map, &at, &first, &last)) {
        u32 owner = map->owners[first / (SLOT_COUNT / map->partition_count)];
        if (owner != owner_before)
            place = place_of(x, map, owner / LIMIT_SHARDS, owner % LIMIT_SHARDS);
        owner_before = owner;
        resp_array(x->reply, 3);
        resp_integer(x->reply, first);
        resp_integer(x->reply, last);
        resp_array(x->reply, 4);
        resp_bulk_text(x->reply, place.host);
        resp_integer(x->reply, place.port);
        resp_bulk_text(x->reply, place.id);
        resp_map(x->reply, 0);
    }
}

void
cluster_resp_slots(struct exec *x)
{
    answer(x, KEPT_SLOTS, make_slots);
}

void
cluster_resp_shard_node(struct exec *x, const char *id, const char *host, u32 port, bool alive)
{
    resp_bulk_text(x->reply, "nodes");
    resp_array(x->reply, 1);
    resp_map(x->reply, 7);
    resp_bulk_text(x->reply, "id");
    resp_bulk_text(x->reply, id);
    resp_bulk_text(x->reply, "port");
    resp_integer(x->reply, port);
    resp_bulk_text(x->reply, "ip");
    resp_bulk_text(x->reply, host);
    resp_bulk_text(x->reply, "endpoint");
    resp_bulk_text(x->reply, host);
    resp_bulk_text(x->reply, "role");
    resp_bulk_text(x->reply, "master");
    resp_bulk_text(x->reply, "replication-offset");
    resp_integer(x->reply, 0);
    resp_bulk_text(x->reply, "health");
    resp_bulk_text(x->reply, alive ? "online" : "fail");
}

static void
make_shards(struct exec *x, const struct map *map)
{
    u32 places = 0;
    for (u32 node = 0; node < map->node_count; node++)
        places += place_count(map, node);
    resp_array(x->reply, places);
    for (u32 node = 0; node < map->node_count; node++) {
        for (u32 shard = 0; shard < place_count(map, node); shard++) {
            struct place place = place_of(x, map, node, shard);
            u32 runs = 0, at = 0, first, last;
            while (next_run_of(map, node, shard, &at, &first, &last))
                runs++;
            resp_map(x->reply, 2);
            resp_bulk_text(x->reply, "slots");
            resp_array(x->reply, 2 * runs);
            at = 0;
            while (next_run_of(map, node, shard, &at, &first, &last)) {
                resp_integer(x->reply, first);
                resp_integer(x->reply, last);
            }
            cluster_resp_shard_node(x, place.id, place.host, place.port, place.alive);
        }
    }
}

void
cluster_resp_shards(struct exec *x)
{
    answer(x, KEPT_SHARDS, make_shards);
}
