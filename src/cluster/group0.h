/* SPDX-License-Identifier: MIT
 *
 * group0.h -- the Raft group that all members of a cluster belong to, and the topology that it
 * agrees on. Runs on shard 0 of each node: the pure core of src/raft with its log and its snapshots
 * in a keyspace of the store (KEYSPACE_SYSTEM), its messages through peer.h.
 *
 * Three to seven members vote, chosen over racks as evenly as can be; the others learn. The leader
 * sees to that, adds who joins, and removes who has left.
 *
 * A member that has lost its log (another incarnation, an empty directory) must not go on under its
 * old number: it has voted, and does not remember how. It joins as a new member that replaces the
 * old one.
 */
#ifndef DISTKV_CLUSTER_GROUP0_H
#define DISTKV_CLUSTER_GROUP0_H

#include "cluster/peer.h"
#include "cluster/topology.h"
#include "lsm/lsm.h"

struct group0;

struct group0_options {
    struct lsm *lsm; /* of shard 0; its log is synced at each commit (LSM_DURABILITY_GROUP), or the
                      * node is a new member after each start */
    struct peers *peers;
    struct budget *budget;
    /* Called as a callback on shard 0 with each new topology; holds it if it keeps it. */
    void (*changed)(void *arg, struct topology *topology);
    /* Whether the member was heard from of late: for whom the barrier waits. */
    bool (*alive)(void *arg, u32 member);
    /* The oldest epoch that any shard of that member still works with, as far as it is known here;
     * 0: not known. */
    u64 (*epoch_of)(void *arg, u32 member);
    /* Whether a member that leaves has something to hand on to others before it goes, when it was
     * heard last; NULL: nobody has. */
    bool (*keeps)(void *arg, u32 member);
    /* Whether the member said, when it was heard last, that it takes no writes; NULL: nobody does. */
    bool (*stuck)(void *arg, u32 member);
    /* Whether the member is known to know TOPOLOGY_PLAN: one that does not would stop at it. NULL:
     * all do. */
    bool (*knows_plan)(void *arg, u32 member);
    void *arg;
    /* Where the others reach this node, and seeds, which may know them; valid as long as group0 is
     * open. Port 0: the topology is right about it. */
    struct peer_address address;
    const struct peer_address *seeds;
    u32 seed_count;
    u64 keeps_ns;         /* it is waited for so long at most; 0: HINTS_WINDOW_MS */
    u32 snapshot_entries; /* a snapshot is taken behind so many; 0: 256 */
};

/* Loads what is there. When group0_member is 0 then: either group0_found, or group0_join. The
 * number and the addresses of members are told to `peers` here (of this shard; others are the
 * caller's). A member's topology is shown (changed) when half of the other members have said that
 * this directory is none from an older copy; ST_DENIED: it is one. ST_NOT_FOUND: they have taken us
 * out. */
MAY_YIELD MUST_CHECK status group0_open(const struct group0_options *options, struct group0 **out);
MAY_YIELD void group0_close(struct group0 *group0);
/* Our number; 0 while we belong to no cluster: to none ever, or not yet (joined, and stopped before
 * the log had come: group0_join goes on where that ended), or not any more. */
u32 group0_member(const struct group0 *group0);
/* Of this node: kept with the rest, made anew where nothing was kept. Never 0. */
u64 group0_incarnation(const struct group0 *group0);

/* A new cluster with this node as its only member. */
MAY_YIELD MUST_CHECK status group0_found(struct group0 *group0,
                                         const struct topology_command *command);
/* Asks the seeds, one after the other, until one has taken us in or the deadline has passed: as
 * JOINING, when it has our log. self: without a number. reason: what the last one said. */
MAY_YIELD MUST_CHECK status group0_join(struct group0 *group0, const struct topology_member *self,
                                        const struct peer_address *seeds, u32 seed_count,
                                        u64 deadline_ns, char reason[TOPOLOGY_REASON_BYTES]);

/* Makes a command real, whoever leads: state ids are filled in; `fill` is called with the present
 * topology before each attempt and says what to ask for (ST_EXISTS: nothing is to be done any
 * more: ST_OK then). What it says but ST_OK counts when the topology is not older than this call;
 * why it says so it may write to `reason`, which it finds empty.
 * ST_UNKNOWN_OUTCOME when the deadline passed with an attempt under way. */
MAY_YIELD MUST_CHECK status group0_change(struct group0 *group0,
                                          status (*fill)(void *arg, const struct topology *present,
                                                         struct topology_command *command),
                                          void *arg, u64 deadline_ns,
                                          char reason[TOPOLOGY_REASON_BYTES]);
/* At least as new as when the call began (a read barrier). */
MAY_YIELD MUST_CHECK status group0_barrier(struct group0 *group0, u64 deadline_ns);
/* The present one; valid until the next yield unless held. NULL: none yet. */
struct topology *group0_topology(const struct group0 *group0);

/* The others have decided something that this program does not know, and the topology here is no
 * longer theirs: this node has to stop, and to be upgraded. */
bool group0_is_outdated(const struct group0 *group0);

/* Other members know of a later start of this member than its directory does: that was put back
 * from an older copy. Nothing of it is to be shown; this node has to stop. */
bool group0_is_rolled_back(const struct group0 *group0);
#define GROUP0_ROLLED_BACK                                                                         \
    "other members know of a later start than this directory does: it was put back from an older " \
    "copy; empty it and start this node again"
/* Too few other members have answered yet to know that it is none. Nothing is to be shown. */
bool group0_is_proving(const struct group0 *group0);

/* Gives the leadership to another voter that is alive and has kept up. False: we do not lead, or
 * there is nobody; to be repeated until we do not lead. */
bool group0_give_lead(struct group0 *group0);

bool group0_leads(const struct group0 *group0);
/* Who votes, of both sets while they change. How many. */
#define GROUP0_VOTERS_BOTH 18u
u32 group0_voters(const struct group0 *group0, u32 out[GROUP0_VOTERS_BOTH]);

struct group0_stats {
    u64 term, commit, applied, log_entries, snapshots;
    u32 leader; /* 0: none known */
    bool leads, votes;
    bool plan_settled; /* leads: there is no plan, and nothing to plan */
    /* leads: no plan is begun while this member does not answer, or none ends, where it leaves,
     * before it has handed on what it keeps; or none goes on before it has followed, which one that
     * lives and takes no writes may not; 0: none */
    u32 plan_waits_for;
    bool failed; /* the store's log is: this member takes no part until it starts again */
};
void group0_stats_get(const struct group0 *group0, struct group0_stats *out);

#endif
