/* SPDX-License-Identifier: MIT */
#include "cluster_rig.h"

#include <stdio.h>

#include "base/hash.h"
#include "cluster/cluster.h"
#include "server/route.h"

void
cluster_rig_configure(struct rig *rig, u32 node, struct server_config *config, u32 core_count)
{
    snprintf(config->node_id, sizeof(config->node_id), "n%u", node + 1);
    snprintf(config->rack, sizeof(config->rack), "r%u", node + 1);
    snprintf(config->cluster_secret, sizeof(config->cluster_secret), "the secret of the test");
    if (node != 0)
        snprintf(config->seed_nodes, sizeof(config->seed_nodes), "%s:%u", rig->nodes[0].host,
                 RIG_NODE_PORT);
    config->core_count = core_count;
    for (u32 i = 0; i < core_count; i++)
        config->core_list[i] = i;
    config->memory_bytes = MIB(64) * core_count;
    char error[OPTION_ERROR_BYTES];
    status st = config_resolve(config, error, sizeof(error));
    CHECK(ok(st) && config->clustered);
}

const struct topology *
cluster_rig_topology(const struct rig *rig, u32 node)
{
    const struct server *server = rig->nodes[node].server;
    if (server == NULL || !server_ready(server)) return NULL;
    return server->cluster->shards[0]->topology;
}

void
cluster_rig_key(const struct rig *rig, u32 node, u32 shard, char *out, size_t size)
{
    const struct topology *topology = cluster_rig_topology(rig, 0);
    u32 self = cluster_member(rig->nodes[node].server->cluster);
    for (u32 i = 0;; i++) {
        int length = snprintf(out, size, "k%u", i);
        u32 partition =
            token_partition(hash_token(BYTES(out, (size_t)length)), topology->partition_count);
        struct topology_row row;
        u32 count;
        topology_row(topology, 0, partition, &row);
        if (topology_row_read(&row, &count)[0] == self &&
            partition_shard(partition, rig->shard_count, topology->partition_count) == shard)
            return;
    }
}

u64
cluster_rig_forwarded(const struct rig *rig, u32 node)
{
    const struct server *server = rig->nodes[node].server;
    u64 count = 0;
    for (u32 i = 0; i < server->shard_count; i++)
        count += server->shards[i]->stats->cluster_forwarded;
    return count;
}

bool
cluster_rig_knows(const struct rig *rig, u32 node, u32 members)
{
    const struct server *server = rig->nodes[node].server;
    if (server == NULL || !server_ready(server)) return false;
    for (u32 shard = 0; shard < server->shard_count; shard++) {
        const struct topology *topology = server->cluster->shards[shard]->topology;
        if (topology == NULL) return false;
        if (topology->stage != STAGE_NONE || topology->member_count != members) return false;
        for (u32 j = 0; j < members; j++)
            if (topology->members[j].state != PLACEMENT_NORMAL) return false;
    }
    return true;
}

bool
cluster_rig_is_settled(const struct rig *rig, u32 node_count, u32 members)
{
    for (u32 i = 0; i < node_count; i++) {
        if (!cluster_rig_knows(rig, i, members)) return false;
        const struct server *server = rig->nodes[i].server;
        for (u32 shard = 0; shard < server->shard_count; shard++) {
            const struct topology *topology = server->cluster->shards[shard]->topology;
            for (u32 j = 0; j < members; j++)
                if (!cluster_alive(server->cluster, topology->members[j].number)) return false;
        }
    }
    return true;
}

MAY_YIELD void
cluster_rig_settle(struct rig *rig, u32 node_count, u32 members, u64 wait_ns)
{
    u64 deadline_ns = io_now_ns() + wait_ns;
    while (!cluster_rig_is_settled(rig, node_count, members) && io_now_ns() < deadline_ns)
        fiber_sleep_ns(10 * NS_PER_MS);
    if (!cluster_rig_is_settled(rig, node_count, members)) sim_log_dump(rig->sim);
    CHECK(cluster_rig_is_settled(rig, node_count, members));
}

MAY_YIELD void
rig_native_connect(struct rig *rig, u32 node, u32 shard, struct rig_client *client)
{
    for (;;) {
        struct native_request hello = {.header.opcode = NATIVE_HELLO,
                                       .hello = {.version_min = NATIVE_VERSION,
                                                 .version_max = NATIVE_VERSION,
                                                 .features = NATIVE_FEATURE_TOPOLOGY}};
        rig_connect_to(rig, node, client);
        struct native_reply reply = rig_native_call(client, &hello);
        CHECK(reply.header.status == NATIVE_ST_OK);
        if (reply.hello.shard == shard) return;
        rig_disconnect(client);
    }
}

void
rig_native_send(struct rig_client *client, struct native_request *request)
{
    struct buf out;
    buf_init(&out, io_budget());
    request->header.request_id = 7;
    bool fits = native_request_encode(&out, request);
    CHECK(fits && client->conn != NULL);
    fits = io_conn_write(client->conn, out.data, out.size);
    CHECK(fits);
    buf_deinit(&out);
}

MAY_YIELD bool
rig_native_reply(struct rig_client *client, struct native_reply *reply)
{
    struct native_header header;
    struct bytes body;
    size_t consumed = 0, wanted;
    buf_consume(&client->in, client->taken);
    client->taken = 0;
    status st;
    while (status_is(
        st = native_frame_decode(buf_bytes(&client->in), &header, &body, &consumed, &wanted),
        ST_INCOMPLETE)) {
        if (client->conn == NULL) return false;
        (void)!ok(fiber_queue_wait(&client->queue, FIBER_FOREVER));
    }
    CHECK(ok(st));
    client->taken = consumed;
    st = native_reply_decode(&header, body, reply);
    CHECK(ok(st));
    return true;
}

MAY_YIELD struct native_reply
rig_native_call(struct rig_client *client, struct native_request *request)
{
    struct native_reply reply;
    rig_native_send(client, request);
    bool answered = rig_native_reply(client, &reply);
    CHECK(answered);
    return reply;
}
