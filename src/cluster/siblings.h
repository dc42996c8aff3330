/* SPDX-License-Identifier: MIT
 *
 * siblings.h -- what a key of a keyspace with `conflict = siblings` is in the store, and how two
 * states of it become one. Pure; replicate_siblings.c puts it to work.
 *
 * An entry's value is an encoded set (dvvset.h); its version is a stamp as everywhere. Sets alone
 * decide what a key is. Versions only order the states that are met in stores, logs, hints, trees
 * and pages, all of which take the higher for the newer:
 *
 *   V1  Two states of a key with the same version are the same set.
 *   V2  Of two states of which one contains the other (has seen all that it has, and more), the
 *       store that makes the greater one gives it a higher version than any that it was made of.
 *
 * So when a store that has (own, a) meets (other, b) and makes the union of both:
 *
 *   the union is     version
 *   both             the higher: several replicas made the same union, and stamped it each; when
 *                    they have met all have the highest
 *   own only         a if it is above b; else a new stamp, above both
 *   the other only   b if it is above a; else a new stamp
 *   neither          a new stamp
 *
 * Unions are commutative, associative and idempotent (D2 of dvvset.h), so replicas that have met
 * the same writes have equal bytes, in whichever order and however often they came. Their versions
 * may differ until they meet once more, and only grow, to the highest, without another stamp.
 *
 * A deleted key is a set without values: what was seen stays, so that what was deleted does not
 * come back from who missed that. A value that the delete has not seen stays beside it.
 *
 * Bounds. A write is refused (ST_TOO_LARGE) when its set would have more than
 * LIMIT_DVV_SIBLINGS_WRITE values, LIMIT_SIBLINGS_WRITE_BYTES in all, or LIMIT_DVV_ACTORS actors.
 * Unions may be larger, so that replicas which took all that they may can still meet: each live
 * value was accepted by one replica, which has it among its own for as long as it lives, so the
 * union of N replicas has at most N times what one may take.
 *
 * A value that was in the keyspace when it still was lww is met as a set, too: as written by actor
 * (0, partition) with the version as its counter, so that the newest of these replaces the older
 * ones wherever they meet. Where the store has nothing, a tombstone or a deleted range the set is
 * empty, which says nothing about anything; the version counts all the same, for what is written
 * must be above it.
 */
#ifndef DISTKV_CLUSTER_SIBLINGS_H
#define DISTKV_CLUSTER_SIBLINGS_H

#include "cluster/dvvset.h"
#include "cluster/placement.h"

#define LIMIT_SIBLINGS_WRITE_BYTES (128u << 10)
static_assert(LIMIT_PLACEMENT_REPLICAS * LIMIT_SIBLINGS_WRITE_BYTES + LIMIT_DVV_ACTORS * 32u <=
                  LIMIT_VALUE_BYTES,
              "what all replicas of a key can have together is a value of the store");
static_assert(LIMIT_DVV_SIBLINGS >= LIMIT_PLACEMENT_REPLICAS * LIMIT_DVV_SIBLINGS_WRITE,
              "likewise");

/* An entry as a store or a peer has it. */
struct siblings_entry {
    bool found; /* false: absent (version 0), or deleted by the store's means */
    u64 version;
    struct bytes value;
};

/* Which partition the actors of a token are of: it does not depend on the number of cores. */
u32 siblings_partition(u64 token);

/* An actor is an incarnation of a node with a partition, in a generation: a node that finds that
 * it has forgotten dots of its own goes on as the next one. */
#define SIBLINGS_GENERATION_SHIFT 12u
#define SIBLINGS_GENERATION_MAX   ((1u << 20) - 1)
static_assert(PARTITION_COUNT_DEFAULT == 1u << SIBLINGS_GENERATION_SHIFT, "partitions lie below");

static inline struct dvv_actor
siblings_actor(u64 incarnation, u32 partition, u32 generation)
{
    return (struct dvv_actor){.incarnation = incarnation,
                              .partition = partition | generation << SIBLINGS_GENERATION_SHIFT};
}
/* Whether `other` has seen more of an actor of the incarnation than `own` has; *generation_out: the
 * latest such. */
bool siblings_forgot(const struct dvv_vector *own, const struct dvv_vector *other, u64 incarnation,
                     u32 *generation_out);
/* The encoded set of an entry. */
MUST_CHECK status siblings_bytes(const struct siblings_entry *entry, u64 token, struct buf *out);
/* The union of two encoded sets, into out, which is neither. ST_CORRUPT, ST_TOO_LARGE. */
MUST_CHECK status siblings_union(struct bytes a, struct bytes b, struct buf *out);

static inline bool
siblings_empty(struct bytes set)
{
    return set.size <= 8; /* no actor, so no value: dvvset.h, "bytes" */
}

enum siblings_version {
    SIBLINGS_KEEP, /* own's: nothing changes */
    SIBLINGS_TAKE, /* the other's */
    SIBLINGS_STAMP /* a new one, above both */
};
/* The table above, for encoded sets. */
enum siblings_version siblings_version_of(struct bytes own, u64 own_version, struct bytes other,
                                          u64 other_version, struct bytes both);

#endif
