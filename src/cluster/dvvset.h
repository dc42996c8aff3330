/* SPDX-License-Identifier: MIT
 *
 * dvvset.h -- the siblings of one key, with what is known of their past: a dotted version vector
 * set. N. Preguica, C. Baquero, P. S. Almeida et al., "Dotted version vectors", 2010; P. S. Almeida
 * et al., "Scalable and accurate causality tracking for eventually consistent stores", 2014.
 *
 *   vector:  actor -> the highest counter seen of it     "everything up to here was seen"
 *   values:  each with its dot (actor, counter)          "of that, this is still alive"
 *
 * The paper lets an actor count 1, 2, 3 on each key and leaves out the dots of values, which follow
 * from their order. Ours come from a counter that an actor shares among all its keys and leases
 * durably, so there are gaps, and each value names its dot.
 *
 * Words. An actor is an incarnation of a node together with a partition; it writes to a key through
 * one replica at a time. A context is the vector that a reader was given with the values it read;
 * a write that brings it back replaces exactly what its writer saw.
 *
 * Promises
 *   D1  A value is dropped only when a write whose writer saw it is known. No concurrent write is
 *       lost, and none stays that was replaced.
 *   D2  dvvset_sync is commutative, associative and idempotent.
 *   D3  There are never more siblings than there are writers that begin each write with the context
 *       of a reply that had all values, their own last one among them. A reply to a write that
 *       gives a context must therefore give the values, too: a vector cannot say "these, and my own
 *       dot".
 *   D4  A write that would leave more than LIMIT_DVV_SIBLINGS_WRITE values is refused, and so is a
 *       sync beyond LIMIT_DVV_SIBLINGS: far above, so that replicas which took all the writes they
 *       may can still meet. More than LIMIT_DVV_ACTORS actors are refused, too (ST_TOO_LARGE).
 *
 * What callers owe
 *   C1  An actor never uses a counter twice. After any loss of state (a wiped or rolled back disk,
 *       a lost lease) a node takes a new incarnation. dvvset_update refuses a counter that is not
 *       above what the set and the context have seen of the actor (ST_CONFLICT): it is a sign of
 *       such a loss, to be answered with a new incarnation.
 *   C2  A context from a client is believed. One that was made up can hide values of that key, and
 *       makes actors look further than they are (C1). Who does not trust clients seals contexts.
 *   C3  dvvset_prune forgets what was seen of actors. That is safe only for an actor that will
 *       never write again, when every replica of the partition has synced with every other since it
 *       stopped, no hint with a value of its is left, and none of its values lives (kept by the
 *       function itself): the conditions of collecting a tombstone. Else a value that was replaced
 *       may come back from the replica that still has it. A context from before is harmless: it
 *       brings the actor back into the vector until the next prune.
 *
 * Memory: the arrays of a set come from its budget; bytes of values are borrowed, from the caller
 * or from the encoding that was decoded, and must outlive the set.
 */
#ifndef DISTKV_CLUSTER_DVVSET_H
#define DISTKV_CLUSTER_DVVSET_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/status.h"

#define LIMIT_DVV_ACTORS         256u
#define LIMIT_DVV_SIBLINGS       256u
#define LIMIT_DVV_SIBLINGS_WRITE 32u
static_assert(LIMIT_DVV_SIBLINGS >= 7 * LIMIT_DVV_SIBLINGS_WRITE,
              "as many as replicas of a key, LIMIT_PLACEMENT_REPLICAS, can have together");

struct dvv_actor {
    u64 incarnation; /* of a node */
    u32 partition;
};

struct dvv_entry {
    struct dvv_actor actor;
    u64 counter; /* the highest seen; at least 1 */
};

enum dvv_flags {
    DVV_DELETED = 1, /* a tombstone; it has no bytes */
};
#define DVV_FLAGS_KNOWN 1u

struct dvv_value {
    struct dvv_actor actor; /* the dot */
    u64 counter;
    u64 version; /* hybrid logical clock */
    u8 flags;    /* enum dvv_flags */
    struct bytes data;
};

/* A vector: by ascending actor. Also what a context is. */
struct dvv_vector {
    struct budget *budget;
    struct dvv_entry *entries;
    u32 count;
    u32 capacity;
};

struct dvvset {
    struct dvv_vector seen;
    struct dvv_value *values; /* by ascending dot */
    u32 count;
    u32 capacity;
};

void dvv_vector_init(struct dvv_vector *vector, struct budget *budget);
void dvv_vector_deinit(struct dvv_vector *vector);
/* 0 when nothing was seen of it. */
u64 dvv_vector_counter(const struct dvv_vector *vector, struct dvv_actor actor);

void dvvset_init(struct dvvset *set, struct budget *budget);
void dvvset_deinit(struct dvvset *set);
/* Invariants, for tests: order, bounds, every dot seen. */
bool dvvset_check(const struct dvvset *set);

/* A write. value names its dot; it replaces what context has seen (NULL: nothing) and stands beside
 * the rest. When it is not ok the set is unchanged. */
MUST_CHECK status dvvset_update(struct dvvset *set, const struct dvv_vector *context,
                                const struct dvv_value *value);
/* What two replicas know, together. out: initialised and empty, neither a nor b; it borrows the
 * bytes of both. When it is not ok out is empty. */
MUST_CHECK status dvvset_sync(const struct dvvset *a, const struct dvvset *b, struct dvvset *out);
/* The context that goes with the values of the set. */
static inline const struct dvv_vector *
dvvset_context(const struct dvvset *set)
{
    return &set->seen;
}

/* Drops the tombstones, which stay seen: so does what they have replaced. For who wants a delete to
 * remove what its writer saw, and nothing to stand for it beside what others wrote meanwhile. */
void dvvset_bury(struct dvvset *set);

/* For readers that want one value: that of the highest clock, tombstones included, so that a key
 * reads as deleted when the delete came last. Equal clocks are told apart by the dot. NULL when
 * there is none. */
const struct dvv_value *dvvset_latest(const struct dvvset *set);
/* Forgets actors that gone() says are gone and that have no value here: C3. Returns how many. */
u32 dvvset_prune(struct dvvset *set, bool (*gone)(struct dvv_actor actor, void *arg), void *arg);

/* ---- bytes ----
 *
 * Little-endian; one encoding for each set, so equal sets have equal hashes.
 *   context:  kind 1, 0 : u8 each | entries : u16 | { incarnation : u64, counter : u64,
 *             partition : u32 } ...
 *   set:      kind 2, 0 : u8 each | entries : u16 | values : u16 | 0 : u16 | entries as above |
 *             { index of the actor's entry : u16, flags : u8, 0 : u8, size : u32, counter : u64,
 *             version : u64, bytes } ...
 * Decoding takes any bytes: ST_CORRUPT for what no encoding makes, ST_NO_MEMORY. */
MUST_CHECK status dvv_vector_encode(const struct dvv_vector *vector, struct buf *out);
MUST_CHECK status dvv_vector_decode(struct bytes bytes, struct dvv_vector *out);
MUST_CHECK status dvvset_encode(const struct dvvset *set, struct buf *out);
MUST_CHECK status dvvset_decode(struct bytes bytes, struct dvvset *out);

#endif
