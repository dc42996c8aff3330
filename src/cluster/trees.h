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

#include "base/types.h"

struct cluster_shard;

/* Goes through all partitions of this node, on all its shards, soon and without long pauses. While
 * that is under way a second one changes nothing. From any shard of the node; never waits. */
void trees_repair_start(struct cluster_shard *shard);

/* Of the whole node, from any shard. */
struct trees_stats {
    /* now */
    bool repairing;      /* a repair that was asked for is under way */
    u64 repair_done;     /* of it, or of the last one: partitions (of each keyspace) gone */
    u64 repair_total;    /* through, and to go through; 0: none since the start */
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

#endif
