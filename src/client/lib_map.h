/* SPDX-License-Identifier: MIT
 *
 * lib_map.h -- what libdistkv knows of a cluster: its nodes, and of each partition who runs its
 * requests. Pure: made from the reply to TOPOLOGY, asked by slot.
 */
#ifndef DISTKV_CLIENT_LIB_MAP_H
#define DISTKV_CLIENT_LIB_MAP_H

#include "base/mem.h"
#include "proto/native.h"

/* Of a larger cluster those that come first are known; what others run is forwarded to them. */
#define LIB_MAP_NODES_MAX 64u
#define LIB_MAP_NOBODY    UINT32_MAX

struct lib_map_node {
    char id[NATIVE_NAME_BYTES_MAX + 1];
    char host[NATIVE_NAME_BYTES_MAX + 1]; /* empty: where the reply came from */
    u16 port;
    u16 shard_port; /* shard i listens at this + i, too; 0: none does */
    u32 shard_count;
};

struct lib_map {
    u64 epoch; /* 0: nothing is known */
    u32 node_count;
    u32 width;
    u32 partition_count;
    struct lib_map_node *nodes; /* LIB_MAP_NODES_MAX of them */
    u8 *rows;                   /* indexes of nodes, width for each partition; 255: nobody */
};

/* Takes over a decoded reply that tells of nodes. false: no memory; the map is as it was. */
MUST_CHECK bool lib_map_take(struct lib_map *map, struct budget *budget,
                             const struct native_topology_reply *reply);
void lib_map_deinit(struct lib_map *map, struct budget *budget);
/* Who runs requests of the slot when those at the places before do not answer. LIB_MAP_NOBODY:
 * nobody who is known, or there is no such place. */
u32 lib_map_node(const struct lib_map *map, u32 slot, u32 place);
/* On which shard of that node. */
u32 lib_map_shard(const struct lib_map *map, u32 node, u32 slot);

#endif
