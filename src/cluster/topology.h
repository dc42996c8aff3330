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
 *                     partitions fetches their data (in sessions named by `session`), but not
 *                     before every living member is known to have this stage: until then there
 *                     are coordinators who write to current alone
 *   STAGE_READ_NEXT   writes still meet both; reads use next
 *   then next becomes current (STAGE_NONE), and who holds what it should not removes it
 *
 * Each step makes a new epoch, and is made by the leader when every living member is known to have
 * the epoch before (a barrier). A replica refuses requests of an epoch before
 * `stage_epoch_before`. When a stage begins that is the stage before, since members learn of the
 * new one at different times. But a member that is believed dead, and is not, may stay behind for
 * as long as it likes; with replicas that would still take its requests it could acknowledge what
 * nobody fetches and nobody reads any more. So each stage of a plan is fenced before it goes on:
 *
 *   barrier   every living member has the stage
 *   FENCE     stage_epoch_before becomes stage_epoch: who knows it refuses all stages before
 *   barrier   every living member has the fence, and nothing from before it is under way there
 *   then gainers fetch, or the next stage comes
 *
 * (STAGE_NONE needs no fence: who is a stage behind it reads where it reads, and writes there,
 * too.) Whoever gains fetches only from sources that know the fence: what was acknowledged by a
 * member left behind was taken by a write quorum before they knew, so some of them have it.
 * STAGE_READ_NEXT comes when all gainers have said that they are done (`fetched`). It ends when,
 * besides, those who do not know its fence are nowhere a read quorum of the current row, nor a
 * majority: they would go on reading there (topology_may_leave_behind).
 *
 * Who is gone. A member that was forgotten will never answer, but it may have been one of the W
 * that a write was acknowledged by. So its places in rows stay, as TOPOLOGY_GONE | number, until
 * the end of the plan that gives them to others: they count where quorums are computed from
 * (places), and nobody asks them (count). A member that joins with `replaces` takes over exactly
 * these places. Forgetting somebody who gains by the present plan in STAGE_WRITE_BOTH abandons the
 * plan, since it can no longer end: a change of the stage, with its barrier.
 *
 * Promises
 *   T1  Numbers are never used again; stamps as late as can be (they are given out in a circle).
 *   T2  Commands are refused alike everywhere: by what the state says, never by memory or order.
 *   T3  A write that W replicas of a row acknowledged lies on as many of the next row when a plan
 *       ends, as far as its holders live: gainers fetch from so many of the current row that one
 *       of any W is among them (or from all of it that are still members, when these are fewer:
 *       topology_fetch_quorum), and in a row that gets shorter everybody is a gainer
 *       (topology_gains).
 *   T4  Quorums that overlap (W + R > N) overlap in every row: topology_quorum.
 *
 * Who lost a part. A member whose store has met damage gives up its copy of the partitions that
 * the damaged block may have held (LOST): its places there are marked as those of somebody gone,
 * so nobody asks it, and it holds nothing there. It is `mending` until its store has removed all
 * that it had of them (MENDED); no plan is made before that, as damage goes only while nothing of
 * the partition is wanted. The next plan gives the places to somebody, to itself as
 * a rule, who fetches as anybody does who gains. It is refused where those who are left could lack
 * what was acknowledged (topology_may_lose).
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
#define TOPOLOGY_STAMPS       1024u
/* In rows, with the number of a member that was forgotten. */
#define TOPOLOGY_GONE (1u << 31)

enum topology_stage { STAGE_NONE, STAGE_WRITE_BOTH, STAGE_READ_NEXT };

enum topology_conflict { CONFLICT_LWW, CONFLICT_SIBLINGS };

struct topology_member {
    u32 number;      /* from 1 on, never used again; also the id in group0 and in placements */
    u16 stamp;       /* 0 to 1,023: what its versions end in (hlc.h); no two members share one */
    u8 state;        /* enum placement_state */
    bool fetched;    /* has everything that the present plan gives it */
    bool mending;    /* has to remove what it had of what it lost; no plan before */
    u32 weight;      /* virtual nodes */
    u64 incarnation; /* random; another one after any loss of state */
    char node_id[TOPOLOGY_NAME_BYTES];
    char host[TOPOLOGY_NAME_BYTES];
    char rack[TOPOLOGY_NAME_BYTES];
    char datacenter[TOPOLOGY_NAME_BYTES];
    u16 client_port;
    u16 peer_port;
    u32 shard_count;
    u32 replaces; /* JOINING: the number of a dead member whose places it takes; 0: none */
};

struct topology_keyspace {
    bool used;
    u8 conflict; /* enum topology_conflict */
    u8 replicas; /* N, at most topology.replicas: the first N of each data center's in a row */
    u8 write_quorum, read_quorum;
    bool sloppy; /* lww only: nodes that hold no replica may stand in for some of W (stand_in.h) */
    char name[TOPOLOGY_NAME_BYTES];
};

struct topology {
    /* what members agree on */
    u64 cluster_id;
    u64 state_id;
    u64 epoch; /* grows by one with each command that did something */
    /* The epochs of the last change of a stage, and of the one before until the fence: then they
     * are the same. Who is behind the second is refused. */
    u64 stage_epoch, stage_epoch_before;
    u64 session; /* of the present plan; 0: none */
    u32 partition_count;
    u32 replicas; /* width of placements in each data center */
    u32 next_number;
    u16 next_stamp;
    u8 stage;
    struct topology_keyspace keyspaces[LIMIT_KEYSPACES_CLIENT];
    u32 member_count;
    struct topology_member *members; /* by ascending number */
    struct placement current;
    struct placement next; /* ids NULL in STAGE_NONE */
    /* not encoded */
    struct budget *budget;
    /* Budgets belong to one shard, and the last reference may be given back on any. So `budget`
     * only bounds what a new topology may take, and it is counted here. Few are alive at once: who
     * holds an old one has a request under way that began with it. */
    struct budget own;
    u32 member_capacity;
    _Atomic u32 references;
};

/* One, with one reference; no cluster yet (cluster_id 0). NULL: no memory. On the shard of the
 * budget, like apply and decode. */
MUST_CHECK struct topology *topology_new(struct budget *budget);
/* From any thread. release: NULL is allowed. */
void topology_hold(struct topology *topology);
void topology_release(struct topology *topology);

/* ---- questions ---- */

/* NULL: no such member. */
const struct topology_member *topology_member(const struct topology *topology, u32 number);
/* Whether both would listen at one port of one machine, for other members. */
bool topology_ports_clash(const struct topology_member *a, const struct topology_member *b);
const struct topology_member *topology_member_by_id(const struct topology *topology,
                                                    const char *node_id);

/* Where a key's replicas are. A row has no more than LIMIT_PLACEMENT_REPLICAS places in all data
 * centers together; a member that would make it wider is refused. */
struct topology_row {
    u32 write[LIMIT_PLACEMENT_REPLICAS];      /* of current */
    u32 write_next[LIMIT_PLACEMENT_REPLICAS]; /* of next; its quorum is to be met, too */
    u32 count;                                /* of write */
    u32 next_count;                           /* of write_next; 0 in STAGE_NONE */
    u32 places, next_places;                  /* the same, with those who are gone */
    bool read_next;                           /* reads use write_next */
    /* By the keyspace's W and R; never 0. The read quorum is of the row that reads use. */
    u32 write_quorum, write_next_quorum, read_quorum;
};
/* By index, no search. Count 0 for a keyspace or a partition that does not exist. */
void topology_row(const struct topology *topology, u32 keyspace, u32 partition,
                  struct topology_row *out);
/* Whether the member holds a copy by the current placement; and whether by that or the next. */
static inline bool
topology_row_has(const struct topology_row *row, u32 member)
{
    for (u32 i = 0; i < row->count; i++)
        if (row->write[i] == member) return true;
    return false;
}
static inline bool
topology_row_has_or_will(const struct topology_row *row, u32 member)
{
    for (u32 i = 0; i < row->next_count; i++)
        if (row->write_next[i] == member) return true;
    return topology_row_has(row, member);
}
static inline const u32 *
topology_row_read(const struct topology_row *row, u32 *count_out)
{
    *count_out = row->read_next ? row->next_count : row->count;
    return row->read_next ? row->write_next : row->write;
}
/* How many answers `wanted` of `replicas` (W or R, of N) means in a row with so many places, of
 * which count are members. Where a row has fewer places than N (a cluster of fewer nodes), or more
 * (several data centers), half of the difference is taken off or added, rounded upwards:
 *
 *     N = 3, W = R = 2    places  1  2  3    6 (two data centers)
 *                         quorum  1  2  2    4
 *
 * Since W and R lose at most half of what is missing each, W + R > N gives a sum above places: what
 * overlapped does so in every row, whichever W and R are. Where fewer are left than a quorum, all
 * that are left are one: the others are gone for good, and what only they had with them. */
static inline u32
topology_quorum(u32 wanted, u32 replicas, u32 places, u32 count)
{
    u32 quorum = wanted;
    if (places < replicas)
        quorum -= MIN(quorum, (replicas - places) / 2);
    else
        quorum += (places - replicas + 1) / 2;
    return MAX(1u, MIN(quorum, MIN(places, count)));
}
/* Whether the member holds (or is about to hold) the partition, in any keyspace: whether it may be
 * asked for it. One row of each placement is looked at. */
bool topology_holds(const struct topology *topology, u32 number, u32 partition);
/* Whether all that was acknowledged of the partition is there without the member's copy, in each
 * keyspace: of the W that took a write one is among those who are left; and what is acknowledged by
 * these alone is seen by whoever still asks the member, where quorums overlap. (Until the next plan
 * all who are left are a quorum, if they are fewer than one. So W - 1 losses are survived as ever,
 * with this one among them.) True where it holds none. Of current. */
bool topology_may_lose(const struct topology *topology, u32 number, u32 partition);
/* The same for a row of so many places, count of them members, of which it is one. */
bool topology_may_spare(const struct topology_keyspace *options, u32 places, u32 count);
/* The first member that is mending; 0: none. */
u32 topology_mending(const struct topology *topology);
/* The first other member that is mending, or has not got back all that it lost; 0: none. Looks at
 * all rows. */
u32 topology_mending_beside(const struct topology *topology, u32 number);
/* Whether the member must fetch the partition of the keyspace before the present plan goes on
 * (T3): it is new among the N, or the row gets shorter. */
bool topology_gains(const struct topology *topology, u32 number, u32 keyspace, u32 partition);
/* How many members of a row (of current) whoever gains the partition asks: a read quorum of it,
 * and where that does not meet every write quorum, so many as do; those who are left, when these
 * are fewer. 0: nobody is left. */
u32 topology_fetch_quorum(const struct topology *topology, u32 keyspace,
                          const struct topology_row *row);
/* Whether it gains anything at all: who does is to say TOPOLOGY_FETCHED. Looks at all rows. */
bool topology_gainer(const struct topology *topology, u32 number);
/* The first that gains and has not fetched; 0: none. Looks at all rows. */
u32 topology_unfetched(const struct topology *topology);
/* Whether coordinators of the stages before are refused by all who know this topology. */
static inline bool
topology_fenced(const struct topology *topology)
{
    return topology->stage_epoch_before == topology->stage_epoch;
}
/* Whether it is the only one that is NORMAL, so that it cannot be taken out; and whether it will not
 * be any more when the plan ends: reads use what others have fetched, who join. */
bool topology_last_normal(const struct topology *topology, u32 number);
bool topology_last_is_followed(const struct topology *topology, u32 number);
/* Whether STAGE_READ_NEXT may end though some members do not know its fence: in no row of current
 * that changes are they a read quorum. Looks at all rows, unless all know. */
bool topology_may_leave_behind(const struct topology *topology,
                               bool (*knows)(void *arg, u32 number), void *arg);

/* ---- commands ---- */

enum topology_command_kind {
    /* The first command of a cluster: id, its options, its first member, which is NORMAL at once.
     * Keyspace 0, named "0": lww, N = replicas, W and R those of options, or a majority of N where
     * they are 0. */
    TOPOLOGY_FOUND = 1,
    /* JOINING; several may be joining at once. With the node_id of one that is there: only another
     * incarnation, and as its replacement. Who is replaced is forgotten by the same command. */
    TOPOLOGY_MEMBER_ADD,
    /* Address, ports, shards, rack (from the next plan on) of one that is there, in the incarnation
     * that it has: another one is a MEMBER_ADD. */
    TOPOLOGY_MEMBER_SET,
    /* LEAVING, and removed at the end of the plan that empties it; at once while it only joins and
     * no plan gives it anything. Not the last NORMAL one. */
    TOPOLOGY_MEMBER_LEAVE,
    /* A dead one: gone at once (see above). Not the last NORMAL one. */
    TOPOLOGY_MEMBER_FORGET,
    TOPOLOGY_WEIGHT_SET, /* from the next plan on */
    /* Makes or changes one. (The others are made when they are first used, with the values of
     * keyspace 0, or by an operator with others before that.) Of one that is there conflict and N
     * cannot change, nor may W and R change so that the old and the new ones do not overlap: raise
     * R, repair, then lower the other. The leader sees to it that no others are in use then.
     * Whether it is sloppy may change at any time. */
    TOPOLOGY_KEYSPACE_SET,
    /* As PLAN, with partitions dealt in their order: as plans were made at first. For logs that
     * have one; nobody proposes it any more. Each member computes a plan by itself, so another way
     * of dealing is another kind, which all members must know before one is proposed. */
    TOPOLOGY_PLAN_IN_ORDER,
    TOPOLOGY_FETCHED, /* member, session; STAGE_WRITE_BOTH, fenced, a gainer only */
    TOPOLOGY_ADVANCE, /* to the next stage; refused while not fenced, or a gainer has not fetched */
    TOPOLOGY_ABANDON, /* STAGE_WRITE_BOTH only: back to current. What was fetched must be removed
                       * before it is fetched again: it may hold what was deleted since */
    TOPOLOGY_FENCE,   /* the stages before are refused from now on. Once in each stage of a plan,
                       * behind its barrier */
    TOPOLOGY_PLAN_SCATTERED, /* as PLAN, with no order of places behind the first: for logs, and
                              * proposed while not all members are known to know PLAN */
    /* The member has no copy any more of partitions [partition_first, + partition_count), as far as
     * it had one: see above. STAGE_NONE only; a change of the stage, so that members look after
     * what they do not hold. Refused if any of them cannot be spared, and while another one has
     * not got back what it lost: of two who wait for each other neither would. */
    TOPOLOGY_LOST,
    TOPOLOGY_MENDED, /* it has nothing left of what it lost */
    TOPOLOGY_PLAN,   /* computes next from the members' states: STAGE_WRITE_BOTH. Nothing to
                      * move: members' states become final at once, if any does. Not while
                      * somebody is mending */
    /* Takes a LEAVE back: what it was before, NORMAL, or JOINING where it holds nothing yet. Ends a
     * plan that takes its places in STAGE_WRITE_BOTH, as FORGET does; in STAGE_READ_NEXT refused: reads
     * use the others' copies, and what comes back would have to be fenced as what goes on is. */
    TOPOLOGY_MEMBER_STAY,
};

struct topology_command {
    u64 state_before, state_after;
    u8 kind;
    /* what the kind needs of: */
    struct topology_member member; /* FOUND, MEMBER_*: by node_id or number; WEIGHT_SET; FETCHED */
    u64 cluster_id;                /* FOUND */
    u64 session; /* PLANs: the new one, not 0; FETCHED, ADVANCE, ABANDON, FENCE: the present */
    u32 partition_first; /* LOST */
    u32 partition_count; /* FOUND, LOST */
    u32 replicas;        /* FOUND */
    u32 keyspace;        /* KEYSPACE_SET */
    struct topology_keyspace options;
};

/* False: no memory, or what decode would refuse (no such kind, a name that does not end or cannot
 * be printed); out is as it was. */
MUST_CHECK bool topology_command_encode(const struct topology_command *command, struct buf *out);
/* Any bytes: ST_CORRUPT. What decodes encodes to the same bytes. */
MUST_CHECK status topology_command_decode(struct bytes bytes, struct topology_command *out);

/* A new topology, with one reference. ST_CONFLICT, ST_EXISTS: see above. ST_INVALID: refused, for
 * the reason; *next_out is then NULL but the refusal is the same on every member. ST_NO_MEMORY.
 * pause: called again and again, for who is to serve others meanwhile, as plans among many members
 * take long; topology and command stay until this returns. NULL: never. */
MUST_CHECK status topology_apply(const struct topology *topology,
                                 const struct topology_command *command, void (*pause)(void),
                                 struct topology **next_out, char reason[TOPOLOGY_REASON_BYTES]);

/* ---- bytes of a whole one ---- */

MUST_CHECK bool topology_encode(const struct topology *topology, struct buf *out);
/* Any bytes: ST_CORRUPT, ST_NO_MEMORY; ST_UNSUPPORTED: a later version has written them. What
 * decodes holds all invariants, and encodes to the same bytes. */
MUST_CHECK status topology_decode(struct bytes bytes, struct budget *budget, struct topology **out);
/* Invariants: what decode demands, and what apply keeps. */
bool topology_check(const struct topology *topology);

#endif
