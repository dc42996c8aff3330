/* SPDX-License-Identifier: MIT
 *
 * cluster_info.c -- CLUSTER. A node by itself owns all slots and is reached at the address that the
 * asking connection has used, so that a client behind a forwarded port finds it again.
 *
 * So it is where resp-cluster is off; else see cluster_resp.h.
 *
 * In a cluster the members are listed at their addresses; of each run of slots the first member
 * that reads go to is the master, the others are its replicas. Any of them takes any request.
 */
#include <stdio.h>

#include "server/cluster_resp.h"
#include "server/cluster_view.h"
#include "server/cmd.h"
#include "server/session.h"

struct self {
    char host[CLUSTER_RESP_HOST_BYTES];
    u32 port;
    const char *name;
};

static struct self
self_of(const struct exec *x)
{
    struct self self = {.name = x->shard->server->node_name, .port = (u32)x->shard->server->port};
    cluster_resp_local(x, self.host);
    return self;
}

/* ---- in a cluster ---- */

/* The slots of a run of partitions that have the same row; from partition *at on, which moves. */
struct run {
    struct topology_row row;
    const u32 *members;
    u32 count;
    u32 slot_first, slot_last;
};

static bool
next_run(const struct topology *topology, u32 *at, struct run *out)
{
    u32 slots = SLOT_COUNT / topology->partition_count;
    if (*at >= topology->partition_count) return false;
    topology_row(topology, 0, *at, &out->row);
    out->members = topology_row_read(&out->row, &out->count);
    out->slot_first = *at * slots;
    for ((*at)++; *at < topology->partition_count; (*at)++) {
        struct topology_row row;
        u32 count;
        topology_row(topology, 0, *at, &row);
        const u32 *members = topology_row_read(&row, &count);
        if (count != out->count || memcmp(members, out->members, count * sizeof(*members)) != 0)
            break;
    }
    out->slot_last = *at * slots - 1;
    return true;
}

static u32
count_alive(const struct cluster *cluster, const u32 *members, u32 count)
{
    u32 alive = 0;
    for (u32 i = 0; i < count; i++)
        alive += cluster_alive(cluster, members[i]);
    return alive;
}

/* What is about to move is written to both rows, and read from one. */
static bool
partition_ok(const struct cluster *cluster, const struct topology *topology, u32 partition)
{
    struct topology_row row;
    topology_row(topology, 0, partition, &row);
    u32 alive = count_alive(cluster, row.write, row.count);
    u32 next_alive = count_alive(cluster, row.write_next, row.next_count);
    if (alive < row.write_quorum) return false;
    if (row.next_count != 0 && next_alive < row.write_next_quorum) return false;
    return (row.read_next ? next_alive : alive) >= row.read_quorum;
}

static void
members_info(struct exec *x, const struct topology *topology)
{
    const struct cluster *cluster = x->shard->server->cluster;
    u32 ok_slots = 0, masters = 0;
    for (u32 p = 0; p < topology->partition_count; p++)
        if (partition_ok(cluster, topology, p)) ok_slots += SLOT_COUNT / topology->partition_count;
    for (u32 i = 0; i < topology->member_count; i++)
        masters += topology->members[i].state != PLACEMENT_JOINING;
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
                     topology->member_count, masters, (unsigned long long)topology->epoch,
                     (unsigned long long)topology->epoch);
    resp_verbatim(x->reply, "txt", BYTES(text, (size_t)n));
}

static void
members_nodes(struct exec *x, const struct topology *topology)
{
    const struct cluster *cluster = x->shard->server->cluster;
    struct buf out;
    buf_init(&out, x->budget);
    for (u32 i = 0; i < topology->member_count; i++) {
        const struct topology_member *member = &topology->members[i];
        char name[41];
        cluster_node_name(member->node_id, name);
        bool self = member->number == cluster_member(cluster);
        bool alive = cluster_alive(cluster, member->number);
        cmd_text(&out, "%s %s:%u@%u %smaster%s - 0 0 %llu %s", name, member->host,
                 member->client_port, member->peer_port, self ? "myself," : "",
                 alive ? "" : ",fail", (unsigned long long)topology->epoch,
                 alive ? "connected" : "disconnected");
        struct run run;
        u32 at = 0, first = 0, next = 0;
        bool open = false;
        while (next_run(topology, &at, &run)) { /* neighbours that it is the first of are one */
            bool own = run.count != 0 && run.members[0] == member->number;
            if (open && !own) cmd_text(&out, next - 1 == first ? " %u" : " %u-%u", first, next - 1);
            if (own && !open) first = run.slot_first;
            open = own;
            next = run.slot_last + 1;
        }
        if (open) cmd_text(&out, " %u-%u", first, next - 1);
        cmd_text(&out, "\n");
    }
    resp_verbatim(x->reply, "txt", buf_bytes(&out));
    buf_deinit(&out);
}

static void
members_slots(struct exec *x, const struct topology *topology)
{
    struct run run;
    u32 runs = 0, at = 0;
    while (next_run(topology, &at, &run))
        runs++;
    resp_array(x->reply, runs);
    at = 0;
    while (next_run(topology, &at, &run)) {
        resp_array(x->reply, 2 + run.count);
        resp_integer(x->reply, run.slot_first);
        resp_integer(x->reply, run.slot_last);
        for (u32 i = 0; i < run.count; i++) {
            const struct topology_member *member = topology_member(topology, run.members[i]);
            char name[41] = "";
            if (member != NULL) cluster_node_name(member->node_id, name);
            resp_array(x->reply, 4);
            resp_bulk_text(x->reply, member == NULL ? "" : member->host);
            resp_integer(x->reply, member == NULL ? 0 : member->client_port);
            resp_bulk_text(x->reply, name);
            resp_map(x->reply, 0);
        }
    }
}

static void
members_shards(struct exec *x, const struct topology *topology)
{
    const struct cluster *cluster = x->shard->server->cluster;
    struct run run;
    u32 runs = 0, at = 0;
    while (next_run(topology, &at, &run))
        runs++;
    resp_array(x->reply, runs);
    at = 0;
    while (next_run(topology, &at, &run)) {
        resp_map(x->reply, 2);
        resp_bulk_text(x->reply, "slots");
        resp_array(x->reply, 2);
        resp_integer(x->reply, run.slot_first);
        resp_integer(x->reply, run.slot_last);
        resp_bulk_text(x->reply, "nodes");
        resp_array(x->reply, run.count);
        for (u32 i = 0; i < run.count; i++) {
            const struct topology_member *member = topology_member(topology, run.members[i]);
            const char *host = member == NULL ? "" : member->host;
            char name[41] = "";
            if (member != NULL) cluster_node_name(member->node_id, name);
            resp_map(x->reply, 7);
            resp_bulk_text(x->reply, "id");
            resp_bulk_text(x->reply, name);
            resp_bulk_text(x->reply, "port");
            resp_integer(x->reply, member == NULL ? 0 : member->client_port);
            resp_bulk_text(x->reply, "ip");
            resp_bulk_text(x->reply, host);
            resp_bulk_text(x->reply, "endpoint");
            resp_bulk_text(x->reply, host);
            resp_bulk_text(x->reply, "role");
            resp_bulk_text(x->reply, i == 0 ? "master" : "replica");
            resp_bulk_text(x->reply, "replication-offset");
            resp_integer(x->reply, 0);
            resp_bulk_text(x->reply, "health");
            resp_bulk_text(x->reply, cluster_alive(cluster, run.members[i]) ? "online" : "fail");
        }
    }
}

/* true: it has been answered by what the members are. */
static bool
answered(struct exec *x, void (*reply)(struct exec *x, const struct topology *topology))
{
    if (x->shard->cluster == NULL) return false;
    const struct topology *topology = cluster_topology(x->shard->cluster);
    if (topology == NULL)
        exec_fail(x, ST_UNAVAILABLE);
    else
        reply(x, topology);
    return true;
}

/* true: resp-cluster has it answered otherwise. */
static bool
for_cluster_clients(struct exec *x, void (*reply)(struct exec *x))
{
    if (x->shard->config->resp_cluster == CONFIG_RESP_CLUSTER_OFF) return false;
    reply(x);
    return true;
}

/* ---- the commands ---- */

void
cmd_cluster_info(struct exec *x)
{
    if (for_cluster_clients(x, cluster_resp_info)) return;
    if (answered(x, members_info)) return;
    /* As Redis, without cluster_enabled: INFO has it. */
    static const char text[] = "cluster_state:ok\r\n"
                               "cluster_slots_assigned:16384\r\n"
                               "cluster_slots_ok:16384\r\n"
                               "cluster_slots_pfail:0\r\n"
                               "cluster_slots_fail:0\r\n"
                               "cluster_known_nodes:1\r\n"
                               "cluster_size:1\r\n"
                               "cluster_current_epoch:1\r\n"
                               "cluster_my_epoch:1\r\n"
                               "cluster_stats_messages_sent:0\r\n"
                               "cluster_stats_messages_received:0\r\n"
                               "total_cluster_links_buffer_limit_exceeded:0\r\n";
    resp_verbatim(x->reply, "txt", BYTES(text, sizeof(text) - 1));
}

void
cmd_cluster_myid(struct exec *x)
{
    if (for_cluster_clients(x, cluster_resp_myid)) return;
    resp_bulk_text(x->reply, x->shard->server->node_name);
}

/* Any node reads from a quorum, whatever a connection has said. */
void
cmd_readonly(struct exec *x)
{
    if (x->shard->config->resp_cluster == CONFIG_RESP_CLUSTER_OFF)
        resp_error(x->reply, "ERR This instance has cluster support disabled");
    else
        resp_simple(x->reply, "OK");
}

void
cmd_cluster_keyslot(struct exec *x)
{
    resp_integer(x->reply, hash_slot(x->args[2]));
}

void
cmd_cluster_nodes(struct exec *x)
{
    if (for_cluster_clients(x, cluster_resp_nodes)) return;
    if (answered(x, members_nodes)) return;
    struct self self = self_of(x);
    char line[256];
    int n = snprintf(line, sizeof(line), "%s %s:%u@%u myself,master - 0 0 1 connected 0-%u\n",
                     self.name, self.host, self.port, self.port, SLOT_COUNT - 1);
    resp_verbatim(x->reply, "txt", BYTES(line, (size_t)n));
}

void
cmd_cluster_slots(struct exec *x)
{
    if (for_cluster_clients(x, cluster_resp_slots)) return;
    if (answered(x, members_slots)) return;
    struct self self = self_of(x);
    resp_array(x->reply, 1);
    resp_array(x->reply, 3);
    resp_integer(x->reply, 0);
    resp_integer(x->reply, SLOT_COUNT - 1);
    resp_array(x->reply, 4);
    resp_bulk_text(x->reply, self.host);
    resp_integer(x->reply, self.port);
    resp_bulk_text(x->reply, self.name);
    resp_map(x->reply, 0);
}

void
cmd_cluster_shards(struct exec *x)
{
    if (for_cluster_clients(x, cluster_resp_shards)) return;
    if (answered(x, members_shards)) return;
    struct self self = self_of(x);
    resp_array(x->reply, 1);
    resp_map(x->reply, 2);
    resp_bulk_text(x->reply, "slots");
    resp_array(x->reply, 2);
    resp_integer(x->reply, 0);
    resp_integer(x->reply, SLOT_COUNT - 1);
    cluster_resp_shard_node(x, self.name, self.host, self.port, true);
}
