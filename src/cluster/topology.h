/* SPDX-License-Identifier: MIT
 *
 * topology.h -- what the members of a cluster agree on: who they are, which partition lies where,
 * which keyspaces there are, and how far a change of these has got. Pure: a state, commands that
 * change it, and their bytes. group0.h makes every member apply the same commands in one order.
 *
 * Commands are compare-and-append: each names the state that it was made for and the state that it
 * makes (random ids). Applied to another state it does nothing (ST_CONFLICT: look again, decide
 * again); applied to the state that it makes it was done before (ST_EXISTS). So a retry is safe.
 *
 * Moves. When members join, leave or change their weight, one plan at a time takes the placement to
 * the next one, in stages that all partitions go through together:
 *
 *   STAGE_NONE        one placement: `current`
 *   STAGE_WRITE_BOTH  writes meet their quorum in current and in next; reads use current; who gains
 *                     partitions fetches their data (in sessions named by `session`)
 *   STAGE_READ_NEXT   writes still meet both; reads use next
 *   then next becomes current (STAGE_NONE), and who holds what it should not removes it
 *
 * Each step makes a new epoch. The leader makes it only when every living member is known to have
 * the epoch before (a barrier), so two members are never more than one stage apart, and a replica
 * refuses requests of an epoch that is more than one stage away from its own (`stage_epoch`).
 * STAGE_READ_NEXT comes when all gainers have said that they are done (`fetched`).
 *
 * A topology that was published is never changed: apply makes a copy.
 */
#ifndef DISTKV_CLUSTER_TOPOLOGY_H
#define DISTKV_CLUSTER_TOPOLOGY_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/status.h"
#include "cluster/placement.h"

#define TOPOLOGY_NAME_BYTES   64u /* ids, hosts, racks, names of keyspaces; with the final 0 */
#define TOPOLOGY_REASON_BYTES 160u

enum topology_stage { STAGE_NONE, STAGE_WRITE_BOTH, STAGE_READ_NEXT };

enum topology_conflict { CONFLICT_LWW, CONFLICT_SIBLINGS };

struct topology_member {
    u32 number;      /* from 1 on, never used again; also the id in group0 and in placements */
    u16 stamp;       /* 0 to 1,023: what its versions end in (hlc.h); no two members share one */
    u8 state;        /* enum placement_state */
    bool fetched;    /* has everything that the present plan gives it */
    u32 weight;      /* virtual nodes */
    u64 incarnation; /* random; another one after any loss of state */
    char node_id[TOPOLOGY_NAME_BYTES];
    char host[TOPOLOGY_NAME_BYTES];
    char rack[TOPOLOGY_NAME_BYTES];
    char datacenter[TOPOLOGY_NAME_BYTES];
    u16 client_port;
    u16 peer_port;
    u32 shard_count;
    u32 replaces; /* the number of a dead member whose place it takes; 0: none */
};

struct topology_keyspace {
    bool used;
    u8 conflict; /* enum topology_conflict */
    u8 replicas; /* N, at most topology.replicas: the first N of a row */
    u8 write_quorum, read_quorum;
    char name[TOPOLOGY_NAME_BYTES];
};

struct topology {
    /* what members agree on */
    u64 cluster_id;
    u64 state_id;
    u64 epoch; /* grows by one with each command that did something */
    /* The epochs of the last change of a stage and of the one before: who is behind the second is
     * refused. */
    u64 stage_epoch, stage_epoch_before;
    u64 session; /* of the present plan; 0: none */
    u32 partition_count;
    u32 replicas; /* width of placements in each data center */
    u32 next_number;
    u8 stage;
    struct topology_keyspace keyspaces[LIMIT_KEYSPACES_CLIENT];
    u32 member_count;
    struct topology_member *members; /* by ascending number */
    struct placement current;
    struct placement next; /* ids NULL in STAGE_NONE */
    /* not encoded */
    struct budget *budget;
    _Atomic u32 references;
};

/* One, with one reference; no cluster yet (cluster_id 0). NULL: no memory. */
MUST_CHECK struct topology *topology_new(struct budget *budget);
/* From any thread. */
void topology_hold(struct topology *topology);
void topology_release(struct topology *topology);

/* ---- questions ---- */

/* NULL: no such member. */
const struct topology_member *topology_member(const struct topology *topology, u32 number);
const struct topology_member *topology_member_by_id(const struct topology *topology,
                                                    const char *node_id);

/* Where a key's replicas are. */
struct topology_row {
    u32 write[LIMIT_PLACEMENT_REPLICAS];      /* of current */
    u32 write_next[LIMIT_PLACEMENT_REPLICAS]; /* of next; its quorum is to be met, too */
    u32 count;                                /* of write */
    u32 next_count;                           /* of write_next; 0 in STAGE_NONE */
    bool read_next;                           /* reads use write_next */
};
void topology_row(const struct topology *topology, u32 keyspace, u32 partition,
                  struct topology_row *out);
static inline const u32 *
topology_row_read(const struct topology_row *row, u32 *count_out)
{
    *count_out = row->read_next ? row->next_count : row->count;
    return row->read_next ? row->write_next : row->write;
}
/* Whether the member holds (or is about to hold) the partition, in any keyspace. */
bool topology_holds(const struct topology *topology, u32 number, u32 partition);

/* ---- commands ---- */

enum topology_command_kind {
    TOPOLOGY_FOUND = 1,     /* the first command of a cluster: id, its options, its first member */
    TOPOLOGY_MEMBER_ADD,    /* JOINING; several may be joining at once */
    TOPOLOGY_MEMBER_SET,    /* address, ports, shards, incarnation of one that is there */
    TOPOLOGY_MEMBER_LEAVE,  /* LEAVING */
    TOPOLOGY_MEMBER_FORGET, /* a dead one: gone at once; its places are given to others */
    TOPOLOGY_WEIGHT_SET,
    TOPOLOGY_KEYSPACE_SET, /* makes or changes one; conflict cannot change */
    TOPOLOGY_PLAN,         /* computes next from the members' states: STAGE_WRITE_BOTH. Nothing to
                            * move: members' states become final at once */
    TOPOLOGY_FETCHED,      /* member, session */
    TOPOLOGY_ADVANCE,      /* to the next stage; refused while a gainer has not fetched */
    TOPOLOGY_ABANDON,      /* STAGE_WRITE_BOTH only: back to current */
};

struct topology_command {
    u64 state_before, state_after;
    u8 kind;
    /* what the kind needs of: */
    struct topology_member member; /* FOUND, MEMBER_*: by node_id or number; WEIGHT_SET; FETCHED */
    u64 cluster_id;                /* FOUND */
    u64 session; /* PLAN: the new one, not 0; FETCHED, ADVANCE, ABANDON: the present */
    u32 partition_count, replicas; /* FOUND */
    u32 keyspace;                  /* KEYSPACE_SET */
    struct topology_keyspace options;
};

MUST_CHECK bool topology_command_encode(const struct topology_command *command, struct buf *out);
/* Any bytes: ST_CORRUPT. */
MUST_CHECK status topology_command_decode(struct bytes bytes, struct topology_command *out);

/* A new topology, with one reference. ST_CONFLICT, ST_EXISTS: see above. ST_INVALID: refused, for
 * the reason; *next_out is then NULL but the refusal is the same on every member. ST_NO_MEMORY. */
MUST_CHECK status topology_apply(const struct topology *topology,
                                 const struct topology_command *command, struct topology **next_out,
                                 char reason[TOPOLOGY_REASON_BYTES]);

/* ---- bytes of a whole one ---- */

MUST_CHECK bool topology_encode(const struct topology *topology, struct buf *out);
/* Any bytes: ST_CORRUPT, ST_NO_MEMORY. */
MUST_CHECK status topology_decode(struct bytes bytes, struct budget *budget, struct topology **out);
/* Invariants, for tests. */
bool topology_check(const struct topology *topology);

#endif
