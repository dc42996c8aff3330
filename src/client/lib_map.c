/* SPDX-License-Identifier: MIT
 *
 * lib_map.c -- see lib_map.h.
 */
#include "client/lib_map.h"

#include "base/hash.h"

#include <stdio.h>

#define ROW_NOBODY 255u
static_assert(LIB_MAP_NODES_MAX <= ROW_NOBODY, "an index is a byte");

static void
copy_name(char out[NATIVE_NAME_BYTES_MAX + 1], struct bytes name)
{
    snprintf(out, NATIVE_NAME_BYTES_MAX + 1, "%.*s", (int)name.size, (const char *)name.data);
}

static void
rows_free(struct lib_map *map, struct budget *budget)
{
    if (map->rows != NULL) mem_free(budget, map->rows, (size_t)map->partition_count * map->width);
    map->rows = NULL;
}

bool
lib_map_take(struct lib_map *map, struct budget *budget, const struct native_topology_reply *reply)
{
    CHECK(reply->node_count > 0 && reply->width > 0 && reply->partition_count > 0);
    u8 *rows = mem_alloc(budget, (size_t)reply->partition_count * reply->width);
    if (map->nodes == NULL)
        map->nodes = mem_alloc_zero(budget, LIB_MAP_NODES_MAX * sizeof(*map->nodes));
    if (rows == NULL || map->nodes == NULL) {
        if (rows != NULL) mem_free(budget, rows, (size_t)reply->partition_count * reply->width);
        return false;
    }
    rows_free(map, budget);
    map->epoch = reply->epoch;
    map->node_count = MIN(reply->node_count, LIB_MAP_NODES_MAX);
    map->width = reply->width;
    map->partition_count = reply->partition_count;
    map->rows = rows;
    struct bytes nodes = reply->nodes;
    struct native_node node;
    for (u32 i = 0; i < map->node_count && native_hello_next_node(&nodes, &node); i++) {
        struct lib_map_node *out = &map->nodes[i];
        copy_name(out->id, node.id);
        copy_name(out->host, node.host);
        out->port = node.port;
        out->shard_count = CLAMP(node.shard_count, 1u, LIMIT_SHARDS);
        /* Each shard would get a connection: not of more than there are. */
        out->shard_port = node.shard_count <= LIMIT_SHARDS ? node.shard_port : 0;
    }
    for (u32 partition = 0; partition < map->partition_count; partition++) {
        for (u32 place = 0; place < map->width; place++) {
            u32 there = native_topology_node(reply, partition, place);
            *rows++ = there < map->node_count ? (u8)there : ROW_NOBODY;
        }
    }
    return true;
}

void
lib_map_deinit(struct lib_map *map, struct budget *budget)
{
    rows_free(map, budget);
    if (map->nodes != NULL) mem_free(budget, map->nodes, LIB_MAP_NODES_MAX * sizeof(*map->nodes));
    *map = (struct lib_map){0};
}

static u32
partition_of(const struct lib_map *map, u32 slot)
{
    return slot / (SLOT_COUNT / map->partition_count);
}

u32
lib_map_node(const struct lib_map *map, u32 slot, u32 place)
{
    if (map->rows == NULL || place >= map->width || slot >= SLOT_COUNT) return LIB_MAP_NOBODY;
    u32 there = map->rows[(size_t)partition_of(map, slot) * map->width + place];
    return there == ROW_NOBODY ? LIB_MAP_NOBODY : there;
}

u32
lib_map_shard(const struct lib_map *map, u32 node, u32 slot)
{
    CHECK(node < map->node_count);
    return partition_shard(partition_of(map, slot), map->nodes[node].shard_count,
                           map->partition_count);
}
