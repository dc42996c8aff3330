/* SPDX-License-Identifier: MIT
 *
 * hold.h -- a request that a shard coordinates, of the epoch and for as long as a test says:
 * barriers of group0 wait for it. It says nothing to anybody.
 */
#ifndef DISTKV_TESTS_SIM_HOLD_H
#define DISTKV_TESTS_SIM_HOLD_H

#include "cluster/replicate.h"

struct hold; /* of the shard's memory */

/* On the replicator's shard, both. */
struct hold *hold_begin(struct replicator *replicator, u64 epoch);
void hold_end(struct hold *hold);

#endif
