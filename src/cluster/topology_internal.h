/* SPDX-License-Identifier: MIT
 *
 * topology_internal.h -- what the three parts of the topology share: topology.c (state, questions,
 * invariants), topology_apply.c (commands), topology_codec.c (bytes).
 */
#ifndef DISTKV_CLUSTER_TOPOLOGY_INTERNAL_H
#define DISTKV_CLUSTER_TOPOLOGY_INTERNAL_H

#include "cluster/topology.h"

/* Numbers end where TOPOLOGY_GONE begins. Epochs never get there; bytes may claim that they did. */
#define TOPOLOGY_NUMBER_MAX (TOPOLOGY_GONE - 1)
#define TOPOLOGY_EPOCH_MAX  ((u64)1 << 62)

/* Ends within its bytes, and all of it can be printed without quotes. Empty ones pass. */
bool topology_name_ok(const char name[TOPOLOGY_NAME_BYTES]);
/* Writes all of target: equal names are equal bytes. */
void topology_name_copy(char target[TOPOLOGY_NAME_BYTES], const char *source);
/* What holds of a member by itself, but for its number, stamp and state. NULL: all is well. */
const char *topology_member_fault(const struct topology_member *member);
/* NULL: all is well. replicas_max: the topology's. */
const char *topology_keyspace_fault(const struct topology_keyspace *keyspace, u32 replicas_max);

/* Index among the members; member_count: none. */
u32 topology_find(const struct topology *topology, u32 number);
/* A copy with one reference and room for one more member; NULL: no memory. */
MUST_CHECK struct topology *topology_copy(const struct topology *topology);
MUST_CHECK bool topology_members_reserve(struct topology *topology, u32 capacity);
/* Rows with undefined content. */
MUST_CHECK bool topology_placement_init(struct topology *topology, u32 width,
                                        struct placement *out);
static inline size_t
topology_ids_bytes(const struct placement *placement)
{
    return (size_t)placement->partition_count * placement->width * sizeof(u32);
}
/* How many data centers the members are in. */
u32 topology_datacenter_count(const struct topology *topology);

#endif
