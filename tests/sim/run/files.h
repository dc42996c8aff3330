/* SPDX-License-Identifier: MIT
 *
 * files.h -- which keys a file of a running store is asked for. Apart from the rest, since the
 * engine's own names would meet those of run.h.
 */
#ifndef DISTKV_TESTS_SIM_RUN_FILES_H
#define DISTKV_TESTS_SIM_RUN_FILES_H

#include "base/types.h"

struct server;

/* Whether a read of a key with that token may look into the table, or the blob file, of that id. */
bool file_serves(const struct server *server, bool is_blob, u64 file_id, u16 keyspace, u64 token);

#endif
