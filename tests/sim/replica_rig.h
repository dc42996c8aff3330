/* SPDX-License-Identifier: MIT
 *
 * replica_rig.h -- what tests of replicated keys share, on top of peer_rig.h: a store and a
 * replicator for each shard of a node, and topologies made of the same commands as group0's.
 *
 *     struct topology *now = replica_rig_found(&budget, 16, 3, shard_count);   16 partitions, N = 3
 *     now = replica_rig_grow(now, node_count, shard_count);    all are members, and in their places
 *
 * Who is given a topology lets go of it (topology_release); in a world that crashes, what crashed
 * nodes held nobody gives back, so that at its end replica_rig_free frees whoever holds it.
 */
#ifndef DISTKV_TESTS_REPLICA_RIG_H
#define DISTKV_TESTS_REPLICA_RIG_H

#include "cluster/hints.h"
#include "cluster/replicate.h"
#include "cluster/topology.h"
#include "lsm/lsm.h"
#include "peer_rig.h"

/* The store of a shard in the directory, with versions from outside, and little of everything. */
MAY_YIELD MUST_CHECK status replica_rig_store_open(const char *dir, u32 shard, u32 shard_count,
                                                   u64 memtable_bytes, struct lsm **out);

/* What a shard of a node has. */
struct replica_app {
    struct peers *peers;
    struct lsm *lsm;
    struct hints *hints; /* NULL: none, or not open */
    struct replicator *replicator;
};

/* A store with peers, hints unless `kept` is NULL, and a replicator that knows no topology yet, on
 * this shard; the options' rest is filled in. */
MAY_YIELD MUST_CHECK status replica_rig_app_open(struct peer_rig_node *node, const char *dir,
                                                 u64 memtable_bytes, struct hints_options *kept,
                                                 struct replicator_options *options,
                                                 struct replica_app *app);
MAY_YIELD MUST_CHECK status replica_rig_app_close(struct replica_app *app);

/* Asks that member's shard, which must answer: NATIVE_ST_* of it. */
MAY_YIELD u16 replica_rig_ask(struct peer_rig_node *node, u32 member, u32 shard,
                              const struct native_header *header, const struct bytes *parts,
                              u32 part_count);

/* What comes of the command, which must be allowed; `from` stays. */
struct topology *replica_rig_apply(struct topology *from, struct topology_command command);
/* The same, and lets go of `from`. */
struct topology *replica_rig_apply_on(struct topology *from, struct topology_command command);

/* Node `index` of the rig as a member. */
struct topology_member replica_rig_member(u32 index, u32 shard_count);
struct topology *replica_rig_found(struct budget *budget, u32 partitions, u32 replicas,
                                   u32 shard_count);
/* All nodes up to `members` become members; each of these lets go of `from`. */
struct topology *replica_rig_grow(struct topology *from, u32 members, u32 shard_count);
/* A plan from its beginning to its end; nothing is fetched, since nothing is there. */
struct topology *replica_rig_plan(struct topology *from, u64 session);
/* All that was to be fetched counts as fetched, and the next stage begins. */
struct topology *replica_rig_advance(struct topology *from, u64 session);

void replica_rig_free(struct topology *topology);

#endif
