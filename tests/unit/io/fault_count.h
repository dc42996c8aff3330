/* SPDX-License-Identifier: MIT
 *
 * fault_count.h -- see fault_count.c.
 */
#ifndef DISTKV_TESTS_UNIT_IO_FAULT_COUNT_H
#define DISTKV_TESTS_UNIT_IO_FAULT_COUNT_H

#include "base/types.h"

/* Before the node starts, or on its only shard. */
void fault_armed_set(bool armed);
/* How often the mark was passed, or the site fired. */
u64 fault_count(const char *name);

#endif
