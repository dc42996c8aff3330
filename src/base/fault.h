/* SPDX-License-Identifier: MIT
 *
 * fault.h -- places where the simulator may make a rare path common, and places that it must
 * reach. Both are resolved at link time: the server's versions (fault_none.c) do nothing.
 *
 *     if (BUGGIFY("lsm.memtable.tiny")) ...      after FoundationDB's flow/Buggify.h
 *     MARK("lsm.log.tail_cut");                  after TigerBeetle's testing/marks.zig
 *
 * Names are stable: layer.noun.what.
 */
#ifndef DISTKV_BASE_FAULT_H
#define DISTKV_BASE_FAULT_H

#include "base/types.h"

bool fault_buggify(const char *site);
void fault_mark(const char *mark);

#define BUGGIFY(site) UNLIKELY(fault_buggify(site))
#define MARK(mark)    fault_mark(mark)

#endif
