/* SPDX-License-Identifier: MIT
 *
 * stand_in.h -- who takes a write in place of home replicas that are gone, in a sloppy keyspace.
 * Pure.
 *
 *   coordinator                          stand-in                         home replica
 *     fewer than W live
 *     PEER_WRITE, STAND_IN, for whom --> a hint for it, durable
 *     <-- counts as that one of W
 *                                        it lives again: the hint is replayed -->
 *
 * Each home replica that does not answer has one stand-in, as far as there are nodes, and each node
 * stands in for one: so W confirmations are those of W nodes. It has the place of whom it stands in
 * for in the quorum: in both sets of a move, where that one is in both and W live in neither. One
 * home replica (of each set) must confirm it, too: hints do not last, and what only stand-ins had
 * would be nowhere then.
 *
 * Who it is. Members that are in their places and live, and are no home replica of the partition
 * (of neither set), in the order of their numbers, in a circle that begins elsewhere for each
 * partition. Of these the first in the rack of whom it stands in for; if there is none, the first
 * in its data center; else the first. The coordinator, which need not be a home replica where a
 * keyspace has fewer of them, is none of them: it would write to its own store what is no hint.
 *
 * Nobody stands in, in a set of which W home replicas live: reads by R of it meet all that is
 * acknowledged then.
 */
#ifndef DISTKV_CLUSTER_STAND_IN_H
#define DISTKV_CLUSTER_STAND_IN_H

#include "cluster/quorum.h"
#include "cluster/topology.h"

struct stand_ins {
    u32 count;
    u32 targets[QUORUM_MEMBERS_MAX]; /* by index in the quorum: whom it stands in for; 0: nobody */
};

/* Of those who have answered QUORUM_NO in a set that is lost by that, each that somebody can stand
 * in for is replaced by him, who is pending. */
void stand_ins_choose(const struct topology *topology, u32 partition,
                      bool (*alive)(const void *arg, u32 member), const void *arg,
                      struct quorum *quorum, struct stand_ins *out);

#endif
