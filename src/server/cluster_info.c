/* SPDX-License-Identifier: MIT
 *
 * cluster_info.c -- CLUSTER for the one node: it owns all slots and is reached at the address that
 * the asking connection has used, so that a client behind a forwarded port finds it again.
 */
#include <stdio.h>

#include "server/cmd.h"
#include "server/session.h"

struct self {
    char host[64];
    u32 port;
    const char *name;
};

static struct self
self_of(const struct exec *x)
{
    struct self self = {.name = x->shard->server->node_name, .port = (u32)x->shard->server->port};
    char local[64] = "";
    if (x->session->conn != NULL) io_conn_local_name(x->session->conn, local, sizeof(local));
    char *colon = strrchr(local, ':');
    if (colon != NULL) *colon = '\0';
    size_t size = strlen(local);
    const char *host = local;
    if (size > 2 && local[0] == '[' && local[size - 1] == ']') { /* IPv6, as Redis: bare */
        local[size - 1] = '\0';
        host++;
    }
    snprintf(self.host, sizeof(self.host), "%s", host);
    return self;
}

void
cmd_cluster_info(struct exec *x)
{
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
    resp_bulk_text(x->reply, x->shard->server->node_name);
}

void
cmd_cluster_keyslot(struct exec *x)
{
    resp_integer(x->reply, hash_slot(x->args[2]));
}

void
cmd_cluster_nodes(struct exec *x)
{
    struct self self = self_of(x);
    char line[256];
    int n = snprintf(line, sizeof(line), "%s %s:%u@%u myself,master - 0 0 1 connected 0-%u\n",
                     self.name, self.host, self.port, self.port, SLOT_COUNT - 1);
    resp_verbatim(x->reply, "txt", BYTES(line, (size_t)n));
}

void
cmd_cluster_slots(struct exec *x)
{
    struct self self = self_of(x);
    resp_array(x->reply, 1);
    resp_array(x->reply, 3);
    resp_integer(x->reply, 0);
    resp_integer(x->reply, SLOT_COUNT - 1);
    resp_array(x->reply, 4);
    resp_bulk_text(x->reply, self.host);
    resp_integer(x->reply, self.port);
    resp_bulk_text(x->reply, self.name);
    resp_array(x->reply, 0);
}

void
cmd_cluster_shards(struct exec *x)
{
    struct self self = self_of(x);
    resp_array(x->reply, 1);
    resp_map(x->reply, 2);
    resp_bulk_text(x->reply, "slots");
    resp_array(x->reply, 2);
    resp_integer(x->reply, 0);
    resp_integer(x->reply, SLOT_COUNT - 1);
    resp_bulk_text(x->reply, "nodes");
    resp_array(x->reply, 1);
    resp_map(x->reply, 7);
    resp_bulk_text(x->reply, "id");
    resp_bulk_text(x->reply, self.name);
    resp_bulk_text(x->reply, "port");
    resp_integer(x->reply, self.port);
    resp_bulk_text(x->reply, "ip");
    resp_bulk_text(x->reply, self.host);
    resp_bulk_text(x->reply, "endpoint");
    resp_bulk_text(x->reply, self.host);
    resp_bulk_text(x->reply, "role");
    resp_bulk_text(x->reply, "master");
    resp_bulk_text(x->reply, "replication-offset");
    resp_integer(x->reply, 0);
    resp_bulk_text(x->reply, "health");
    resp_bulk_text(x->reply, "online");
}
