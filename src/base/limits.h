/* SPDX-License-Identifier: MIT
 *
 * limits.h -- every fixed limit of the system and what it costs; the rest is derived from these.
 */
#ifndef DISTKV_BASE_LIMITS_H
#define DISTKV_BASE_LIMITS_H

#include "base/types.h"

/* What a client may store; checked at the door with an exact error. */
#define LIMIT_KEY_BYTES   1024u
#define LIMIT_VALUE_BYTES (1u << 20)

/* Redis Cluster slots, and ring partitions: a partition is a power-of-two run of slots. */
#define SLOT_COUNT              16384u
#define SLOT_BITS               14u
#define PARTITION_COUNT_DEFAULT 4096u

/* Keyspaces that clients reach (RESP by SELECT 0..15), those that nodes keep for themselves behind
 * them, and how many a store holds at all. */
#define LIMIT_KEYSPACES_CLIENT 16u
#define KEYSPACE_SYSTEM        16u /* what the node must not forget: Raft's log, incarnations */
#define KEYSPACE_HINTS         17u /* writes kept for absent replicas */
#define LIMIT_KEYSPACES        18u

/* Shards of one node: mailboxes are one SPSC ring per ordered pair, 8 KiB each, so 64 shards cost
 * 32 MiB. */
#define LIMIT_SHARDS 64u

/* O_DIRECT alignment of buffers, sizes and offsets; also the size of a log block. */
#define IO_ALIGNMENT 4096u
/* One request to the disk: XFS splits larger ones, and a huge one starves its neighbours. */
#define LIMIT_IO_BYTES (512u << 10)
/* Requests in flight on one device across all rings: submission sleeps above nr_requests (256). */
#define LIMIT_IO_IN_FLIGHT 128u

/* Operations in one atomic batch, and its encoded bytes: a batch is one log record and must fit in
 * an empty memtable of the smallest allowed size. */
#define LIMIT_BATCH_OPS   65536u
#define LIMIT_BATCH_BYTES (8u << 20)

static_assert(SLOT_COUNT == 1u << SLOT_BITS, "a slot is the top bits of a token");
static_assert(SLOT_COUNT % PARTITION_COUNT_DEFAULT == 0, "a partition is a whole run of slots");
static_assert(LIMIT_BATCH_BYTES > LIMIT_VALUE_BYTES + LIMIT_KEY_BYTES + 256,
              "a batch holds at least one largest entry with its header");

#endif
