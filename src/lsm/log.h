/* SPDX-License-Identifier: MIT
 *
 * log.h -- the write-ahead log of one store: group commit into recycled, already-written segments
 * of direct, durable writes. The layout is in log_format.h; docs/data-files.md draws it.
 *
 * Invariants
 *   W1  Records lie in the order of their sequence numbers, over segments, too.
 *   W2  Everything at or below log_durable_seq survives power loss; it only grows, in order, though
 *       up to LOG_WRITES_IN_FLIGHT writes may finish in any order.
 *   W3  A block once written is never written again while its segment is live.
 *   W4  After a failed write the log is failed for good: durable_seq stands still.
 *   W5  Recovery yields a gap-free prefix that holds every durable record. It cuts the log only
 *       where nothing valid beyond attests that the missing bytes were durable.
 *   W6  A segment follows only what is durable for certain: what a sync or a durable write of this
 *       process kept, or what a block attests. What recovery merely could read is written again.
 */
#ifndef DISTKV_LSM_LOG_H
#define DISTKV_LSM_LOG_H

#include "base/mem.h"
#include "lsm/lsm.h"

#define LOG_WRITES_IN_FLIGHT 4u
#define LOG_RECYCLE_LEAST    1u /* segments kept for a new life, besides the one that is ready */

struct log;

/* The header of every record, as the log stores it. Term, index and truncation are Raft's; 0 for
 * everything else. payload: count operations (struct log_op, key, value). */
struct ONDISK log_record {
    u32 crc;  /* CRC32C of the rest of the record, seeded with the low 32 bits of seq_first */
    u32 size; /* of the whole record, header included */
    u8 kind;  /* enum log_record_kind */
    u8 flags;
    u16 keyspace;  /* of all operations, or LOG_KEYSPACE_MIXED */
    u32 partition; /* of all operations, or LOG_PARTITION_MIXED */
    u64 seq_first;
    u64 version;
    u64 term, index;
    u32 count;
    u32 reserved;
};
static_assert(sizeof(struct log_record) == 56, "stored as it is");

enum log_record_kind { LOG_RECORD_BATCH = 1 };
#define LOG_KEYSPACE_MIXED  0xffffu
#define LOG_PARTITION_MIXED 0xffffffffu

/* An operation in a record's payload and in struct lsm_batch: followed by the key, the value. For
 * ENTRY_DELETE_RANGE the value is the last token (8 bytes), token the first, the key empty. */
struct ONDISK log_op {
    u8 kind; /* enum entry_kind */
    u8 flags;
    u16 key_size;
    u32 value_size;
    u16 keyspace;
    u16 reserved;
    u32 reserved2;
    u64 token;
    u64 expire_ms;
};
static_assert(sizeof(struct log_op) == 32, "stored as it is");

struct log_config {
    const char *dir;
    enum lsm_durability durability; /* GROUP or PERIODIC; there is no log for NONE */
    u32 sync_interval_ms;
    u64 segment_bytes;
    u32 recycle_max; /* released segments kept for a new life; 0: one */
    u64 seq_flushed; /* tables hold everything up to this: numbers go on at least from here */
    struct budget *budget;
    void (*durable)(void *arg, u64 durable_seq, bool failed); /* as lsm_on_durable */
    void *arg;
};

/* Replays every record from segment_first on (0: from the oldest), in order, then starts a fresh
 * segment. replay: record is checked; its status, if not ok, ends the recovery. A new segment is
 * never begun inside an old one, and names where its predecessor ended. ST_CONFLICT: the disk gave
 * other bytes than a moment ago; to be tried again from the start. */
MAY_YIELD MUST_CHECK status log_open(const struct log_config *config, u64 segment_first,
                                     status (*replay)(void *arg, const struct log_record *record,
                                                      struct bytes payload),
                                     struct log **out);
MAY_YIELD void
log_close(struct log *log); /* writes and waits for what is buffered, unless failed */

/* Copies the record into the buffer of the next write, which leaves when the turn has brought all
 * that it brings, or half of it, or under a moderate load a little later (log.c, log_pace.h). ST_WOULD_WAIT when the buffers are full (log_wait_room);
 * ST_READ_ONLY when failed. The crc is filled in. */
MUST_CHECK status log_append(struct log *log, const struct log_record *header,
                             struct bytes payload);
MAY_YIELD void log_wait_room(struct log *log);
u64 log_durable_seq(const struct log *log);
/* Of the last operation that a power cut leaves, whatever the durability. */
u64 log_kept_seq(const struct log *log);
bool log_failed(const struct log *log);
/* How long the disk has been at the oldest of its writes; 0: at none. */
u64 log_busy_ns(const struct log *log);
/* True while no segment can be made for want of disk space; tried again each second. */
bool log_no_space(const struct log *log);
/* What log_append would say now to a record of this many payload bytes. While no segment can be
 * made for want of space, the end of the last one is for those that give space back (frees); before
 * it is known whether one can be made, others wait for that (ST_WOULD_WAIT). */
MUST_CHECK status log_append_check(struct log *log, size_t payload_bytes, bool frees);
/* Whether the buffers have too little room for a record that needs much of them: while small ones
 * go on to fill what becomes free, it may never have enough. */
bool log_queue_is_short(const struct log *log, size_t payload_bytes);
/* After ok, log_append of a record of at most this size (less than a block) succeeds if it is the
 * next call, without a yield between. */
MUST_CHECK status log_reserve(struct log *log, size_t payload_bytes);
/* The largest payload that ever fits. */
u64 log_payload_bytes_max(const struct log *log);
/* Whether the directory holds a log at all. */
MAY_YIELD MUST_CHECK status log_exists(const char *dir, bool *out);
/* Waits until all that was appended is durable, or the log failed. */
MAY_YIELD void log_drain(struct log *log);

/* Ends the segment that is being written and returns the number of the next one. All that it will
 * not hold was appended before this returns. ST_NO_SPACE when there is none ready and none can be
 * made. */
MAY_YIELD MUST_CHECK status log_rotate(struct log *log, u64 *segment_out);
/* Waits until that one is surely there after a crash. Until then recovery needs those before. */
MAY_YIELD MUST_CHECK status log_rotate_wait(struct log *log, u64 segment);
/* The newest segment that is surely there after a crash; 0 when there is none. */
u64 log_segment_started(const struct log *log);
/* The first one that the next recovery must find, once it is surely there; else 0. */
u64 log_segment_oldest(const struct log *log);
/* The tables hold everything before segment_first: those segments may be recycled. */
MAY_YIELD void log_release(struct log *log, u64 segment_first);
/* Removes segments that wait for a new life, all but so many: their room is needed. */
MAY_YIELD void log_recycled_remove(struct log *log, u32 kept);

struct log_stats {
    u64 bytes, writes, segments, bytes_to_replay;
    u64 recovery_records, recovery_bytes;
    struct histogram write_ns;
};
void log_stats(const struct log *log, struct log_stats *out);
/* What the next opening would have to read. */
u64 log_bytes_to_replay(const struct log *log);
/* What the segments before the current one take on the disk, about: each is a whole file, however
 * little it holds. */
u64 log_bytes_kept(const struct log *log);
bool log_check(const struct log *log);

/* Reads the segments of a closed store without changing them. */
MAY_YIELD MUST_CHECK status log_verify(const char *dir, u64 segment_first,
                                       void (*report)(void *arg, const char *file, u64 offset,
                                                      const char *what),
                                       void *arg, u64 *files_out, u64 *bytes_out);

#endif
