/* SPDX-License-Identifier: MIT
 *
 * cut.h -- snapshots of all shards that show one instant: for KEYS and for exports.
 *
 * The promise. When a write was sent after another one was acknowledged, a cut that shows the later
 * one shows the earlier one too, whichever shards the two are on.
 *
 * How. No write may become visible anywhere between the moments at which the shards' snapshots are
 * taken; so writes are held on all shards, and only then the snapshots are taken:
 *
 *   home              shard 0                        every shard
 *   cut_open -mail->  a round, for all cuts
 *                     that wait by then:  -- mail ->  hold its writes (lsm_writes_hold)
 *                                         <- mail --
 *                     all of them hold:   -- mail ->  take a snapshot for each cut, let writes go on
 *                                         <- mail --
 *            <-mail-  done
 *   then from shard to shard: wait until what the snapshot shows is durable; writes go on meanwhile
 *
 * Invariants
 *   C1  A snapshot counts only if its shard has held its writes since before the last shard began
 *       to, and until the snapshot was taken. So what any of them shows was visible before the
 *       moment at which all held, and what was visible then is in all of them.
 *   C2  No shard holds its writes longer than CUT_HOLD_NS_MAX, whatever the others do: a timer of
 *       its own ends the hold, and the round has failed. It is tried again, CUT_TRIES times in all,
 *       then the cut is refused.
 *   C3  One round at a time, and after each one writes run at least CUT_REST times as long as it
 *       took: writes get on however many cuts are asked for, and all that wait share a round.
 *
 * Only mails and callbacks take part, so a shard without a free fiber does, too. With one shard
 * there is nothing to hold: a snapshot is an instant.
 */
#ifndef DISTKV_SERVER_CUT_H
#define DISTKV_SERVER_CUT_H

#include "server/shard.h"

#define CUT_HOLD_NS_MAX (100 * NS_PER_MS)
#define CUT_TRIES       8u
#define CUT_REST        3u
/* Cuts of one round; more wait for the next. Bounds the time of taking. */
#define CUT_ROUND_MAX 32u

/* On the fiber of whoever wants it. */
struct cut {
    struct io_mail mail;
    struct list link; /* of shard 0's cuts: waiting, then round */
    struct durable_wait durable;
    struct fiber_queue queue; /* at home, until it is back */
    u32 home;
    u32 at; /* the shard that it visits */
    bool back;
    status st;
    status of_shard[LIMIT_SHARDS];
    struct lsm_snapshot *snapshots[LIMIT_SHARDS]; /* each belongs to its shard's store */
};

/* ok: one snapshot of each shard. ST_OVERLOADED: no instant could be had; nothing is held then. */
MAY_YIELD MUST_CHECK status cut_open(struct shard *shard, struct cut *cut);
/* Closes the snapshots that are still in it; whoever takes one over leaves NULL. */
MAY_YIELD void cut_close(struct cut *cut);

/* The shard's part, for its whole life. */
MUST_CHECK bool cuts_init(struct shard *shard);
void cuts_deinit(struct shard *shard);

#endif
