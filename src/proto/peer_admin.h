/* SPDX-License-Identifier: MIT
 *
 * peer_admin.h -- what nodes tell and do for operators who ask another node: the bodies of
 * PEER_ADMIN and of its answer. Pure: bytes to structs and back.
 *
 *   PEER_ADMIN  | function: 1 | 0: 7 |
 *     answer    | version: 1 | size of the program's version: 1 | 0: 6 | figures: 8 each, in the
 *                 order of the list below | the program's version |
 *
 * Every function answers with the figures as they are afterwards.
 */
#ifndef DISTKV_PROTO_PEER_ADMIN_H
#define DISTKV_PROTO_PEER_ADMIN_H

#include "base/buf.h"
#include "base/status.h"

enum peer_admin_function {
    PEER_ADMIN_FIGURES = 1,
    PEER_ADMIN_REPAIR = 2, /* begins one, of what this node holds */
    PEER_ADMIN_DRAIN = 3,
    PEER_ADMIN_DRAIN_UNDO = 4,
    PEER_ADMIN_LEAVE = 5, /* though this node keeps what it has not handed on: it leaves by force */
};

/* Of all shards of the node together. */
#define PEER_FIGURES_LIST(X)                                                                       \
    X(uptime_ms)                                                                                   \
    X(keys)                                                                                        \
    X(data_bytes) /* tables, large values, log */                                                  \
    X(memory_bytes)                                                                                \
    X(memory_limit_bytes)                                                                          \
    X(connections)                                                                                 \
    X(commands_per_s)                                                                              \
    X(commands)                                                                                    \
    X(errors)                                                                                      \
    X(reads) /* of keys, by clients of this node and forwarded to it, and how long they took */    \
    X(read_p50_us)                                                                                 \
    X(read_p99_us)                                                                                 \
    X(writes)                                                                                      \
    X(write_p50_us)                                                                                \
    X(write_p99_us)                                                                                \
    X(requests_pending)                                                                            \
    X(hints_waiting)                                                                               \
    X(hints_bytes)                                                                                 \
    X(hints_oldest_ms) /* age; 0: none wait */                                                     \
    X(hints_given_up)                                                                              \
    X(corruptions)      /* damaged blocks met since the start */                                   \
    X(damaged_files)    /* in which they were, as long as they are there */                        \
    X(fetch_session)    /* of the plan that it fetches by, or did last; 0: none */                 \
    X(fetch_partitions) /* to be fetched, a keyspace's each */                                     \
    X(fetch_done)                                                                                  \
    X(fetch_bytes)                                                                                 \
    X(fetch_ms)          /* since the fetch began */                                               \
    X(fetch_failed_from) /* the member that does not serve what this one gains; 0: none */         \
    X(repair_partitions) /* of the repair that runs, or ran last */                                \
    X(repair_done)                                                                                 \
    X(repair_missed)  /* comparisons with a replica that did not take place, or not to the end */  \
    X(repair_damaged) /* ... and those that a damaged block of this node or of another prevents */ \
    X(repair_running)                                                                              \
    X(repair_differing) /* leaves of trees that differed, since the start */                       \
    X(repair_keys)      /* sent and received */                                                    \
    X(repair_round_ms)  /* since a round has ended on all shards; UINT64_MAX: not yet */           \
    X(leads)            /* group0 */                                                               \
    X(plan_settled)     /* leads: there is nothing to plan */                                      \
    X(plan_waits_for)   /* leads: the member that a plan waits for */                              \
    X(drains)

struct peer_figures {
#define X(name) u64 name;
    PEER_FIGURES_LIST(X)
#undef X
    struct bytes version;
};

#define PEER_ADMIN_BYTES         8u
#define PEER_ADMIN_VERSION_BYTES 63u

void peer_admin_encode(enum peer_admin_function function, u8 out[PEER_ADMIN_BYTES]);
MUST_CHECK bool peer_figures_encode(const struct peer_figures *figures, struct buf *out);
/* Any bytes: ST_INVALID; an unknown function ST_UNSUPPORTED. What decodes encodes to the same
 * bytes. */
MUST_CHECK status peer_admin_decode(struct bytes body, enum peer_admin_function *out);
MUST_CHECK status peer_figures_decode(struct bytes body, struct peer_figures *out);

#endif
