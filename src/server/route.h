/* SPDX-License-Identifier: MIT
 *
 * route.h -- in a node of a cluster: which node runs a command with keys, and sending it there.
 *
 *   session -> request -> route_start
 *                this node holds the partition, and may run it -> request_start, as ever
 *                another one does -> PEER_FORWARD to its shard -> there a request without a session
 *                                 <- the reply's bytes         <- route_answer
 *              -> finished -> route_finished -> the session
 *
 * Where. A plain read, and a write that reads nothing before (SET, SETEX, MSET), run on any replica
 * of the key's partition: here, when this node is one. What reads before it writes (INCR, SET NX,
 * DEL with its count) runs on the first replica of the partition that lives in this node's view, so
 * that two of them meet at one lock. While nothing fails that is the same node for everybody; when
 * views differ (a failure, a partition of the network, a move) two nodes may run such commands at
 * once, and then one's effect may be lost.
 *
 * Again. What certainly was not done (no connection, the other one refused it), and what changes
 * nothing, is tried with the next living replica, until the deadline. Not so a write that reads
 * before it writes, when who was asked is only busy, or the way there is: that one lives and runs
 * others' meanwhile, so it is waited for, or the client is told OVERLOADED (route.c has which is
 * which). A write that may have been sent and was not answered has an unknown outcome, and that is
 * what the client is told.
 *
 * No loops. A request that came from a peer runs where it came to or is refused with WRONG_EPOCH;
 * it is never sent on.
 *
 * A node that drains (cluster_operate.c) is passed over by all others and by itself, as long as
 * another replica lives. Before it says so it takes nothing on, until what runs there has ended: so
 * two nodes run no command that reads before it writes at once for that.
 *
 * Where siblings are kept, who runs a write stores it before anybody gets it. So a node that takes
 * no writes (a full disk) is passed over by those just so, from when it is known to be. Others go on
 * there: it need not be one of the W.
 *
 * Keyspaces are made when they are first used: the request waits for it.
 *
 * A transaction goes as a whole: EXEC as what reads before it writes, WATCH as a read
 * (multi_cluster.c).
 *
 * Several keys (MGET, MSET, DEL ...): each is a part with a route of its own, ROUTE_PARTS at a
 * time.
 */
#ifndef DISTKV_SERVER_ROUTE_H
#define DISTKV_SERVER_ROUTE_H

#include "cluster/cluster.h"
#include "server/request.h"

#define ROUTE_PARTS 64u

/* In place of request_start: of a command with keys of one slot (a blind one: of one partition).
 * token: of its first key. false: no memory; nothing was started. */
MUST_CHECK bool route_start(struct request *request, u64 token);
/* Of one whose keys may lie anywhere. */
MUST_CHECK bool route_start_parts(struct request *request);
/* It has run on a shard of this node. false: it goes on otherwise. */
MUST_CHECK bool route_finished(struct request *request);
/* All parts that were started have come back; false: there are more. */
MUST_CHECK bool route_parts_done(struct request *request);
void route_free(struct request *request);
/* It does not run on this node any more. */
void route_coordinates_end(struct request *request);

/* ---- for those that came from a peer ---- */

void route_open(struct shard *shard);
/* The request is done: its reply goes to who asked, and it is freed. */
void route_answer(struct request *request);

#endif
