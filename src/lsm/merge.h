/* SPDX-License-Identifier: MIT
 *
 * merge.h -- merges cursors into one in entry order, by a loser tree on tokens. Serves scans,
 * compaction and counting. All versions come out; who reads decides which one counts.
 */
#ifndef DISTKV_LSM_MERGE_H
#define DISTKV_LSM_MERGE_H

#include "base/mem.h"
#include "lsm/entry.h"

#define MERGE_SOURCES_MAX 256u

/* Takes over the source cursors (closes them, also on error). NULL out of memory is
 * ST_NO_MEMORY. */
MUST_CHECK status merge_cursor_open(struct cursor *const *sources, u32 count, struct budget *budget,
                                    struct cursor **out);

#endif
