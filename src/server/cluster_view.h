/* SPDX-License-Identifier: MIT
 *
 * cluster_view.h -- what operators and clients are told of a cluster.
 */
#ifndef DISTKV_SERVER_CLUSTER_VIEW_H
#define DISTKV_SERVER_CLUSTER_VIEW_H

#include "cluster/cluster.h"
#include "proto/peer_admin.h"
#include "server/exec.h"

/* Of one member, as this node sees it. */
struct cluster_view_member {
    u32 number;
    bool alive, ill;
    u8 why;      /* enum cluster_ill, without ALONE */
    u64 seen_ms; /* ago; UINT64_MAX: never */
    u64 rtt_us;
    u64 epoch;
    i64 clock_ms;
    u32 held, first;  /* partitions that it holds; those that it is the first of */
    u32 mending;      /* that it lost by damage, and has not got back */
    u32 at_risk;      /* that have a quorum, and had none without it, in any keyspace */
    u32 at_risk_seen; /* the last of them, plus 1: 0 is none */
    /* By keyspace: partitions that it has and too few others have who live, as it does not; and
     * those of them that somebody waits for who gains them. */
    u16 missed[LIMIT_KEYSPACES_CLIENT], waited[LIMIT_KEYSPACES_CLIENT];
    bool drained;
    const struct peer_figures *figures; /* NULL: not asked, or it did not answer */
};

/* Partitions. */
struct cluster_view_counts {
    u32 unavailable; /* with fewer living members than a quorum */
    u32 degraded;    /* with fewer than all */
    u32 lost;        /* with no member at all: they begin empty when the next move ends */
};

struct cluster_view {
    struct group0_stats group0;
    struct cluster_view_counts any; /* of any keyspace */
    struct cluster_view_counts keyspaces[LIMIT_KEYSPACES_CLIENT];
    bool proving; /* this node does not know yet whether it may believe its directory */
    bool left;    /* it is no member any more */
    u32 count;
    struct cluster_view_member members[]; /* by ascending number */
};

extern const char *const cluster_stage_names[3];
extern const char *const cluster_conflict_names[2];

/* Whether the member of this id lives, as far as is known here. One that does is not called dead by
 * mistake: it would lose what only it has. */
bool cluster_named_alive(const struct cluster_shard *shard, const char *node_id);

/* What a shard that serves nothing yet shows of its cluster, too: who the members are, as far as
 * its directory says, to be released. NULL: the run has failed. */
MAY_YIELD struct topology *cluster_view_topology(struct exec *x);

/* On a fiber of any shard: asks shard 0. The memory is the run's; NULL: it has failed. topology:
 * what it is about, to be released. */
MAY_YIELD struct cluster_view *cluster_view_take(struct exec *x, struct topology **topology_out);

/* The object for STATUS; out may end up cut when memory is short. */
MAY_YIELD MUST_CHECK status cluster_json(struct exec *x, struct buf *out);
/* Without the last brace: of what was taken. */
void cluster_view_json(const struct exec *x, const struct topology *topology,
                       const struct cluster_view *view, struct buf *out);
/* Lines for INFO. */
void cluster_info_lines(const struct shard *shard, struct buf *out);

/* The first of the ports that the member's shards have for clients; 0: they have none. */
u16 cluster_view_shard_port(const struct server *server, const struct topology_member *member);

/* 40 hex digits, the same for the same node id. */
void cluster_node_name(const char *node_id, char out[41]);

#endif
