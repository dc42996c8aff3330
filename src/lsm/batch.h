/* SPDX-License-Identifier: MIT
 *
 * batch.h -- the operations of a batch as they are encoded, for who passes batches on: the log's
 * recovery, and nodes that send them to each other.
 *
 *   | struct log_op | key | value | struct log_op | ...
 */
#ifndef DISTKV_LSM_BATCH_H
#define DISTKV_LSM_BATCH_H

#include "base/hash.h"
#include "lsm/log.h"
#include "lsm/lsm.h"

/* Walks encoded operations. false: the end, or (with *bad set) not an operation. */
struct lsm_op {
    struct log_op header;
    struct bytes key, value;
};
bool lsm_op_next(struct bytes *rest, struct lsm_op *out, bool *bad);

/* Any bytes: whether they are count puts and deletes of the keyspace, with the tokens that their
 * keys have, between the two. (What deletes a range is not.) ST_INVALID. */
MUST_CHECK status lsm_ops_check(struct bytes ops, u32 count, u16 keyspace, u64 token_first,
                                u64 token_last);

#endif
