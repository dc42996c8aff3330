/* SPDX-License-Identifier: MIT
 *
 * trees.h -- replicas that compare what they hold, and what follows from it: of one shard.
 *
 *   first living member of a row              each other replica of the partition
 *   PEER_TREE  roots of partitions      -->   its own roots; the leaves where they differ
 *   PEER_STREAM  keys of those leaves   <--   (token, key, version), page by page
 *   PEER_TREE  keys that are newer there -->  their entries, written here
 *   PEER_WRITE  what is newer here      -->   as a repair: the higher version wins
 *   PEER_TREE  settled up to            -->   all replicas have everything below that version
 *
 * Every TREES_ROUND_NS each shard goes through the partitions of which this member is the first
 * living one, at a bounded part of its time; on request through all that it holds. A tree costs a
 * write one bit (tree.h).
 *
 * From agreement follows what may be forgotten: tombstones and expired values, once no replica can
 * lack them and nothing older can come (lsm_purge_allow). The argument is in
 * docs/cluster-internals.md.
 */
#ifndef DISTKV_CLUSTER_TREES_H
#define DISTKV_CLUSTER_TREES_H

#include <stdatomic.h>

#include "base/limits.h"
#include "base/types.h"
#include "io/fiber.h"

struct cluster_shard;
struct topology;
struct trees; /* of one shard */

#define TREES_ROUND_NS (600 * NS_PER_S)
/* The first round of a shard, which reads all that there is, once. */
#define TREES_FIRST_NS (60 * NS_PER_S)
/* Between the moment when a shard learns that all replicas have something and that when it may
 * collect what hides older things: longer than what was sent before that is taken. */
#define TREES_GRACE_NS (120 * NS_PER_S)
/* What one shard sends and fetches of entries. */
#define TREES_BYTES_PER_S MIB(32)

/* Goes through all partitions of this node, on all its shards, soon and without long pauses. While
 * that is under way a second one changes nothing. From any shard of the node; never waits. */
void trees_repair_start(struct cluster_shard *shard);

/* Of the whole node, from any shard. */
struct trees_stats {
    /* now */
    bool repairing;      /* a repair that was asked for is under way */
    u64 repair_done;     /* of it, or of the last one: partitions of the ring gone */
    u64 repair_total;    /* through, and to go through; 0: none since the start */
    u64 repair_missed;   /* comparisons with a replica that it owes: dead, or did not answer in time
                          */
    u64 repair_damaged;  /* ... and those that damage, here or there, prevents until it is mended */
    u64 round_age_ms;    /* since a round ended on the shard where that is longest ago; UINT64_MAX:
                          * not yet on all */
    u64 settled_version; /* all that this node holds is settled up to it; 0: not known */
    /* since the start */
    u64 rounds;    /* over all shards */
    u64 exchanges; /* partitions compared with a replica */
    u64 failures;  /* not to the end: a replica did not answer, or not in time */
    u64 leaves_differing;
    u64 entries_sent, entries_received;
    u64 bytes_sent, bytes_received; /* keys and values of those */
    u64 leaves_scanned, entries_scanned;
};
void trees_stats_get(const struct cluster_shard *shard, struct trees_stats *out);
/* How long ago the versions are that are settled; 0 when none are known to be. */
u64 trees_settled_age_ms(const struct trees_stats *stats);

/* ---- between the files of this part ---- */

/* The node's: part of struct cluster. */
struct trees_node {
    _Atomic u64 repair_asked;               /* how often */
    _Atomic u64 repair_ended[LIMIT_SHARDS]; /* which of those each shard has done last */
    _Atomic u64 repair_done, repair_total;  /* partitions */
    _Atomic u64 repair_missed, repair_damaged;
    _Atomic u64 round_ended_ns[LIMIT_SHARDS]; /* 0: none yet */
    _Atomic u64 settled[LIMIT_SHARDS];        /* trees_stats.settled_version */
    _Atomic u64 damage[LIMIT_SHARDS];         /* lsm_damage_epoch */
    _Atomic u64 rounds, exchanges, failures, leaves_differing;
    _Atomic u64 entries_sent, entries_received, bytes_sent, bytes_received;
    _Atomic u64 leaves_scanned, entries_scanned;
};

/* Once peers, store and replicator are open; closed before them. */
MUST_CHECK status trees_open(struct cluster_shard *shard);
MAY_YIELD void trees_close(struct cluster_shard *shard);
/* Whether nothing is here of what this member does not hold (A4); false: not known yet. */
bool trees_are_clean(const struct cluster_shard *shard);
/* The same, for the stage with this epoch. */
bool trees_are_clean_since(const struct cluster_shard *shard, u64 stage_epoch);
/* A topology is about to become the shard's. before: NULL, or the one that it has. */
void trees_topology_comes(struct cluster_shard *shard, const struct topology *before,
                          const struct topology *topology);

#endif
