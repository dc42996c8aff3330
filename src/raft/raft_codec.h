/* SPDX-License-Identifier: MIT
 *
 * raft_codec.h -- messages between replicas as bytes. Pure. It stands here and not in src/proto,
 * which is the layer below and does not know what a message means.
 *
 * Little-endian; a message has one encoding, and what decodes encodes to the same bytes:
 *
 *   offset size
 *        0    1  version: 1
 *        1    1  type: enum raft_message_type
 *        2    1  flags: 1 reject, 2 force, 4 quiesce
 *        3    1  zero
 *        4    4  entries (APPEND), or bytes of the configuration (SNAPSHOT); else zero
 *        8   64  from, to, term, index, log_term, commit, hint, round: u64 each
 *       72       APPEND: each entry as { term : u64, kind : u8, zero : u8 x 3, size : u32, bytes };
 *                their indexes follow the message's. SNAPSHOT: the configuration
 *
 * What `after` says stays here: it is about the sender's disk.
 */
#ifndef DISTKV_RAFT_RAFT_CODEC_H
#define DISTKV_RAFT_RAFT_CODEC_H

#include "base/buf.h"
#include "raft/raft.h"

#define RAFT_CODEC_HEADER_BYTES 72u
#define RAFT_CODEC_ENTRY_BYTES  16u

/* Appends to out; false when the budget refuses, and out is as it was. */
MUST_CHECK bool raft_message_encode(const struct raft_message *message, struct buf *out);
/* Any bytes: ST_CORRUPT for what no encoding makes, ST_TOO_LARGE for more than entries_max entries.
 * What out points to is entries and bytes: both must stay. */
MUST_CHECK status raft_message_decode(struct bytes bytes, struct raft_entry *entries,
                                      u32 entries_max, struct raft_message *out);

#endif
