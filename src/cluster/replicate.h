/* SPDX-License-Identifier: MIT
 *
 * replicate.h -- reads and writes of keys that live on several nodes: the coordinator's side and
 * the replica's.
 *
 * The coordinator is a replica of the partition, on the shard that owns it there: it stamps and
 * applies without a message, and its own store is one of the N. (A request that comes to another
 * node or shard is forwarded to it as a whole: see the server.)
 *
 *   write   stamp (hlc.h) -> own store and the other replicas side by side
 *           -> acknowledged by W, counted in `current`, and in `next` while a plan is under way
 *   read    own store and R - 1 others, which send a digest (version, kind, expiry)
 *           -> all agree: the own value. Not so: the newest is fetched, the others are mended
 *              before the answer (read repair), so that what was read once is read again.
 *              Who is late is not waited for, be it the own disk: one more is asked
 *
 * In keyspaces with `conflict = lww`: versions are unique: two members have different stamps, and a
 * member stamps upwards. The highest wins everywhere, so replicas agree whatever order they saw.
 * Writes are blind. A replica that has a higher version of the key applies the write all the same
 * (it is lost in the order) and says so; the coordinator then stamps above it and writes again,
 * before it acknowledges: what is acknowledged is the newest when it is.
 *
 * In keyspaces with `conflict = siblings` an entry is a set of values with what is known of their
 * past (siblings.h). The coordinator adds a value to its own set (replicate_put), and brings the
 * others the whole set once that is durable here; whoever receives one writes the union of it and
 * its own. A read is of R whole sets, and its answer the union.
 *
 * In a sloppy keyspace other members stand in for home replicas that are gone, where fewer than W
 * live (stand_in.h). They keep the write as a hint, and count once that is durable. Reads go to
 * home replicas all the same: what is acknowledged so they show when the hint has come.
 *
 * Outcomes of writes. ST_OK: durable (as the store's durability says) on W replicas of each set.
 * ST_UNAVAILABLE: too few replicas are alive; nothing was sent, nothing was done.
 * ST_UNKNOWN_OUTCOME: sent, and too few have answered in time: it may become visible, and once it
 * was read by a quorum it stays. Of reads: ST_UNAVAILABLE when too few have answered.
 *
 * A replica refuses a request whose epoch is before its stage (more than a stage behind while that
 * is not fenced, see topology.h), or for a partition that it does not hold: NATIVE_ST_WRONG_EPOCH.
 */
#ifndef DISTKV_CLUSTER_REPLICATE_H
#define DISTKV_CLUSTER_REPLICATE_H

#include "cluster/dvvset.h"
#include "cluster/hints.h"
#include "cluster/hlc.h"
#include "cluster/peer.h"
#include "cluster/topology.h"
#include "lsm/lsm.h"

/* After an opening no version is stamped for so long, writes wait: what was sent to others before a
 * crash need not be durable here, and its version must not be given again. At most (while the wall
 * clock is behind what was stamped before) for so long. */
#define REPLICATE_QUIET_MS     300u
#define REPLICATE_QUIET_MS_MAX 1500u
/* And this far above what the store has: for a wall clock that was set back meanwhile. */
#define REPLICATE_FLOOR_MS 500u

struct replicator; /* of one shard */

struct replicator_options {
    struct lsm *lsm;
    struct peers *peers;
    struct budget *budget;
    u32 shard;
    /* Whether calls to the member are worth an attempt. May change at any time. */
    bool (*alive)(void *arg, u32 member);
    /* A write waits for the member, which may be one of whom little is heard: whether it is alive
     * is to be known soon. NULL: nothing is done. */
    void (*waits_for)(void *arg, u32 member);
    /* Whether others say that this node's wall clock is ahead: what it shows then is not kept over
     * a restart, which may come with the right one. NULL: never. */
    bool (*clock_is_ahead)(void *arg);
    void *arg;
    /* What replicas miss is kept there, and it is told the topology; closed after this. NULL: only
     * counted. */
    struct hints *hints;
};

MUST_CHECK status replicator_open(const struct replicator_options *options,
                                  struct replicator **out);
/* Before the peers and the store are closed. */
MAY_YIELD void replicator_close(struct replicator *replicator);
/* self: the own number. Holds the topology. Writes that began under the one before go on; see
 * replicator_epoch. */
void replicator_topology_set(struct replicator *replicator, struct topology *topology, u32 self);
/* The oldest epoch that a request under way here began with: other nodes' writes to this replica,
 * calls that outlive their request and hints among them. */
u64 replicator_epoch(const struct replicator *replicator);
/* No write of a lower version is under way here, will be begun here, or is kept here for a replica
 * that lacks it; 0: not known. The least of all members' answers (of all their shards; who does not
 * answer counts as 0), once each replica has what the others have up to there, is what
 * lsm_purge_allow may be told. */
u64 replicator_oldest_version(struct replicator *replicator);
/* The same without what was dropped: no write of a lower version will be sent from here to anybody,
 * also not after a restart with a wall clock that was set back. 0: not known (yet). Who has
 * compared what replicas hold needs to know no more (trees.h). */
u64 replicator_oldest_to_come(struct replicator *replicator);
/* Of what is about to be written here by other ways than the replicator's: what is stamped from
 * then on is higher. False: the member's clock is ahead, and it may not be written yet. */
MUST_CHECK bool replicator_observe(struct replicator *replicator, u64 version, u32 member);
/* By how much the stamps are ahead of the wall clock, since it was; above HLC_AHEAD_MS_MAX the
 * peers refuse them. */
u64 replicator_ahead_ms(const struct replicator *replicator, u64 wall_ms);
/* Not for REPLICATE_QUIET_MS after an opening, and longer while the clock is ahead; until then what
 * needs a stamp waits. */
bool replicator_may_stamp(const struct replicator *replicator);

/* ---- for trees ---- */

/* Names a time of half a minute to a minute here. A write that an exchange of trees has found is
 * taken however old its version is, if it names one that is not over: so it cannot have been on its
 * way while what hid it was collected. Never 0. */
u32 replicator_session(const struct replicator *replicator);
/* Changes whenever a repair of the partition, or a write that was long on its way, has come to the
 * store, and now and then without. */
u32 replicator_repairs(const struct replicator *replicator, u32 partition);
/* What another replica has of one key, into the own store: the highest version wins, or sets are
 * united where the keyspace keeps siblings. *seq_out: must be durable before anybody is told. */
MAY_YIELD MUST_CHECK status replicate_store(struct replicator *replicator, u16 keyspace,
                                            u32 partition, const struct lsm_batch *batch,
                                            u64 *seq_out);

enum replicate_level {
    REPLICATE_DEFAULT, /* the keyspace's W and R */
    REPLICATE_ONE,
    REPLICATE_QUORUM,
    REPLICATE_ALL,
    REPLICATE_HOMES,           /* as DEFAULT, and nobody stands in for a home replica */
    REPLICATE_COUNT_BASE = 16, /* + n: n replicas, or all if there are fewer */
};

struct replicate_value {
    bool found;    /* false: absent, deleted or expired; version is the tombstone's or 0 */
    bool siblings; /* value is an encoded set, also of a key that never was; found says nothing */
    u64 version, expire_ms;
    struct lsm_value own; /* when the own value is the answer */
    struct buf copy;      /* when another replica's is */
    struct bytes value;
};

/* The key must lie in this shard's store, and this member must hold its partition and know its
 * keyspace (else ST_WOULD_WAIT: a topology is on its way, from another shard or node). out is
 * initialised by the call; replicate_value_release gives it back in any case. */
MAY_YIELD MUST_CHECK status replicate_read(struct replicator *replicator,
                                           enum replicate_level level, u16 keyspace, u64 token,
                                           struct bytes key, u64 deadline_ns,
                                           struct replicate_value *out);
void replicate_value_release(struct replicate_value *value);

/* All operations of the batch lie in one partition and keyspace; none deletes a range.
 * batch->version is filled in. Atomic on each replica. *version_out: what it was acknowledged as.
 * Its operations may be taken: it is empty then (calls go on after the acknowledgement).
 * ST_WOULD_WAIT: this member does not hold the partition (any more), or does not know the keyspace
 * yet; nothing was done.
 * begin_ns: from then on it is not stamped (again): ST_UNAVAILABLE when nothing was sent.
 * ST_TIMED_OUT: the deadline had passed before anything was sent. */
MAY_YIELD MUST_CHECK status replicate_write(struct replicator *replicator,
                                            enum replicate_level level, struct lsm_batch *batch,
                                            u64 begin_ns, u64 deadline_ns, u64 *version_out);

/* ---- keyspaces that keep siblings ---- */

/* By the present topology. There replicate_read answers with an encoded set, found or not, and
 * what is written is written by the functions below. */
bool replicate_siblings(const struct replicator *replicator, u16 keyspace);
/* Whether the present topology has the keyspace. If not, and somebody asks for its keys, one that
 * has is on its way here: ST_WOULD_WAIT, as replicate_read says. */
bool replicate_knows(const struct replicator *replicator, u16 keyspace);

struct replicate_put {
    u16 keyspace;
    u64 token;
    struct bytes key;
    /* What the writer has seen, all of which the value replaces; NULL: nothing. */
    const struct dvv_vector *context;
    bool deletes; /* what was seen; no value takes its place */
    struct bytes value;
};
/* As replicate_write. Besides: ST_TOO_LARGE: the key has as many siblings, bytes or actors as it
 * may have; nothing was done. ST_INVALID: the keyspace keeps none, or the context has seen writes
 * that this member does not know to be its own: a read makes out which. */
MAY_YIELD MUST_CHECK status replicate_put(struct replicator *replicator, enum replicate_level level,
                                          const struct replicate_put *put, u64 deadline_ns,
                                          u64 *version_out);

/* What another store has of a key: an entry as it was sent. */
struct replicate_state {
    u16 keyspace;
    u64 token;
    struct bytes key;
    bool found; /* false: deleted by the store's means; nothing is written */
    u64 version;
    struct bytes value;
    u32 from; /* the member, or 0; for the log */
};
/* Into this store: the union with what it has. *seq_out: when it is durable here. ST_TIMED_OUT: by
 * the deadline there was no room for it, and nothing was done. */
MAY_YIELD MUST_CHECK status replicate_merge(struct replicator *replicator,
                                            const struct replicate_state *state, u64 deadline_ns,
                                            u64 *seq_out);

struct replicate_stats {
    u64 reads, reads_local, digests, digest_mismatches, repairs;
    u64 writes, restamped, unknown, unavailable;
    u64 replica_reads, replica_writes, wrong_epoch;
    u64 hedged;          /* reads that asked one more because an answer was late */
    u64 retries_refused; /* others that were not asked: too many were already (base/retry.h) */
    u64 missed;          /* replicas that did not get a write that went to others */
    u64 stood_in;        /* of the writes: acknowledged, and fewer than W by home replicas */
    u64 unions;          /* states that neither the own store nor another one had */
    u64 clocks_refused;  /* versions too far ahead of the wall clock */
};
void replicate_stats_get(const struct replicator *replicator, struct replicate_stats *out);

#endif
