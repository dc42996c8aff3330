/* SPDX-License-Identifier: MIT
 *
 * rot.h -- a bit that flips where a cluster is to mend it.
 */
#ifndef DISTKV_TESTS_SIM_RUN_ROT_H
#define DISTKV_TESTS_SIM_RUN_ROT_H

#include "base/prng.h"
#include "io/sim.h"
#include "lsm/lsm.h"
#include "lsm/table.h"

/* Of a block of any table of a client's keyspace; the file's path. False: the store has no table.
 */
bool rot_table(struct lsm *lsm, struct sim_disk *disk, struct prng *prng,
               char path_out[LSM_PATH_BYTES]);

#endif
