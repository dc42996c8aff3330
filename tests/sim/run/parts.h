/* SPDX-License-Identifier: MIT
 *
 * parts.h -- what a refusal leaves open. Pure.
 *
 * A refusal says that nothing was done, but for requests that several owners do, each its part: one
 * may refuse when another has done its part already. Of MSET and DEL every part is an operation of
 * its own, so with a single operation there is a single owner. FLUSHDB goes from shard to shard,
 * whatever is there: it has parts on shards where the judge knows of no key at all.
 */
#ifndef DISTKV_TESTS_SIM_RUN_PARTS_H
#define DISTKV_TESTS_SIM_RUN_PARTS_H

#include "base/types.h"

/* Whether operations of a request that was refused may have been done all the same. */
static inline bool
parts_may_be_done(bool flush, u32 operations, u32 shards)
{
    return flush ? shards > 1 : operations > 1;
}

#endif
