/* SPDX-License-Identifier: MIT
 *
 * rot.h -- a bit that flips where a cluster is to mend it, and whether it still may be met.
 */
#ifndef DISTKV_TESTS_SIM_RUN_ROT_H
#define DISTKV_TESTS_SIM_RUN_ROT_H

#include "base/prng.h"
#include "io/sim.h"
#include "lsm/lsm.h"
#include "lsm/table.h"

/* The file that has it, and not its path: a change of the number of shards gives it other names. */
struct rot {
    const struct sim_disk *disk;
    u64 file; /* 0: none has */
};

/* Of a block of any table of a client's keyspace. False: the store has no table. */
bool rot_table(struct lsm *lsm, struct sim_disk *disk, struct prng *prng, struct rot *out);

/* Whether any store may read it: the file has a name. */
bool rot_is_there(const struct rot *rot);

#endif
