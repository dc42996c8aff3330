/* SPDX-License-Identifier: MIT
 *
 * lsm.h -- the storage engine of one shard: what the layers above may call.
 *
 * A store holds the keys of one contiguous token range (the partitions that this shard owns) in up
 * to LIMIT_KEYSPACES keyspaces. One log and one memory budget serve all of them; each keyspace in
 * use is a tree of its own: memtables, runs of tables, blob files.
 *
 *   write:  batch -> log buffer + memtable (visible at once) -> group commit -> durable
 *   read:   memtables -> row cache -> filters -> index -> block cache -> one disk read
 *
 * Sequence numbers. Every operation of every batch gets the next number of its store. A number is
 * *durable* when its log record is: lsm_durable_seq. What a read returns may not be durable yet;
 * its number says so, and whoever passes it on to a client first waits until that number is
 * durable, so that nobody sees a value that a power cut could take back.
 *
 * Versions. Every entry carries a version. Of two entries of one key the higher (version, seq)
 * wins, in memtable, reads and compaction alike. The store's own clock (milliseconds << 16 |
 * counter) never goes backwards. Versions from outside may come in any order, and equal ones, which
 * must then be the same write: a tombstone, an expired value and a deleted range hide what is older
 * whenever it comes, so they must stay as long as it may come (lsm_purge_allow). A write that is
 * older than what is there gets its sequence number and becomes durable like any other.
 *
 * Two forms. A *_try function never waits: it answers from memory or says ST_WOULD_WAIT and has
 * then done nothing. Its twin may yield and always answers.
 *
 * Errors of writes: ST_NO_SPACE (disk full; taken again when space returns; batches that only
 * delete are taken as long as there is room for them, those of the reserve as long as the disk is
 * not really full), ST_READ_ONLY (the store has failed,
 * lsm_stats says why; no more writes), ST_OVERLOADED (compaction cannot follow; retry),
 * ST_NO_MEMORY (also when the indexes of tables have a part of the store's memory that leaves
 * little: as on a full disk, what only deletes is taken, and what is of the reserve), ST_TOO_LARGE,
 * ST_WOULD_WAIT (memtable or log buffers are full for now).
 */
#ifndef DISTKV_LSM_LSM_H
#define DISTKV_LSM_LSM_H

#include "base/buf.h"
#include "base/histogram.h"
#include "base/limits.h"
#include "io/fiber.h"

struct lsm;
struct lsm_snapshot;

/* ---- opening ---- */

enum lsm_durability {
    LSM_DURABILITY_GROUP,    /* acknowledged = survives power loss */
    LSM_DURABILITY_PERIODIC, /* survives a crash of the process; synced every interval */
    LSM_DURABILITY_NONE,     /* no log at all */
};

enum lsm_codec { LSM_CODEC_NONE, LSM_CODEC_LZ4, LSM_CODEC_DEFLATE, LSM_CODEC_COUNT };

/* Of a store's memory: what the indexes of its tables may take before writes are refused (lsm.c). */
#define LSM_INDEX_EIGHTHS 3u

struct lsm_options {
    enum lsm_durability durability;
    u32 sync_interval_ms;       /* for PERIODIC */
    u64 memory_bytes;           /* of this store: everything in lsm/ stays below it */
    enum lsm_codec codec_upper; /* tables of the tiers */
    enum lsm_codec codec_last;  /* tables of the last level */
    u32 blob_threshold_bytes;   /* values from here on are kept apart; default 4096 */
    u64 scrub_bytes_per_s;      /* background verification; 0: off */
    u64 disk_reserve_bytes;     /* writes stop (ST_NO_SPACE) below this much free space */
    u64 memtable_bytes;         /* 0: derived from memory_bytes; tests make it tiny */
    u64 log_segment_bytes;      /* 0: derived */
    /* Versions of the clients' keyspaces come from outside (lsm_batch.version), in any order. What
     * hides older ones is then kept until lsm_purge_allow. A store that was ever written so must
     * always be opened so. */
    bool outside_versions;
    bool mends; /* lsm_mends_set of the clients' keyspaces, until it is called */
};

void lsm_options_default(struct lsm_options *options);

/* Where a store lives and what it owns. dir exists already (see store.h). */
struct lsm_place {
    const char *dir;
    u64 token_first;
    u64 token_last; /* included */
};

/* What to do about ST_CORRUPT from lsm_open. */
#define LSM_DAMAGE_ADVICE                                                                          \
    "restore what the log names from a copy of the directory, or in a cluster wipe this node and " \
    "replace it"

/* Recovers what the directory holds, or makes a new store in an empty one. ST_CORRUPT: damage that
 * cannot be an unacknowledged tail; the log names the file, the offset unless all of it is missing,
 * and what to do. */
MAY_YIELD MUST_CHECK status lsm_open(const struct lsm_place *place,
                                     const struct lsm_options *options, struct lsm **out);
/* Waits for users, flushes so that nothing is left to replay, and frees. A failed store is closed
 * without flushing. */
MAY_YIELD status lsm_close(struct lsm *lsm);

/* ---- writing ---- */

/* A batch is applied as a whole or not at all, and by recovery too. Operations are kept encoded as
 * the log stores them (docs/data-files.md). */
struct lsm_batch {
    struct buf ops;
    u32 count;
    /* Wall clock; 0: any time. From then on it is refused with ST_CONFLICT: what it was made of has
     * expired. */
    u64 until_ms;
    /* 0: the store stamps it. Else from another clock, and it may be below what is there already:
     * then nobody sees it. */
    u64 version;
    /* Is also taken below the disk reserve, while nothing else is in the way (lsm_write.c). For what
     * is little, and others wait for. */
    bool of_reserve;
};

void lsm_batch_init(struct lsm_batch *batch, struct budget *budget);
void lsm_batch_deinit(struct lsm_batch *batch);
void lsm_batch_clear(struct lsm_batch *batch);
/* expire_ms: absolute Unix time, 0 for never. token must be hash_token(key). false: no memory. */
MUST_CHECK bool lsm_batch_put(struct lsm_batch *batch, u16 keyspace, u64 token, struct bytes key,
                              struct bytes value, u64 expire_ms);
MUST_CHECK bool lsm_batch_delete(struct lsm_batch *batch, u16 keyspace, u64 token,
                                 struct bytes key);
/* Deletes every key of the keyspace with token_first <= token <= token_last that lies in this
 * store. Constant time; must be the only operation of its batch. */
MUST_CHECK bool lsm_batch_delete_range(struct lsm_batch *batch, u16 keyspace, u64 token_first,
                                       u64 token_last);

/* On ok the batch is visible to reads; *seq_out is the number of its last operation. No yield
 * between the entry and the moment it is visible, so read-then-write_try without a yield between
 * is atomic. */
MUST_CHECK status lsm_write_try(struct lsm *lsm, const struct lsm_batch *batch, u64 *seq_out);
MAY_YIELD MUST_CHECK status lsm_write(struct lsm *lsm, const struct lsm_batch *batch, u64 *seq_out);
/* ST_TIMED_OUT: there was no room before the deadline, and it is not done. */
MAY_YIELD MUST_CHECK status lsm_write_until(struct lsm *lsm, const struct lsm_batch *batch,
                                            u64 deadline_ns, u64 *seq_out);
/* For who tries until there is room and has other things to wait for, too: after ST_WOULD_WAIT, and
 * when it goes on with nothing of it any more. A batch that needs much of the log's buffers has
 * nobody go past it between the two. */
void lsm_turn_take(struct lsm *lsm, const struct lsm_batch *batch);
void lsm_turn_leave(struct lsm *lsm, const struct lsm_batch *batch);

/* Between the two no write becomes visible: a try says ST_WOULD_WAIT, lsm_write waits. Takes effect
 * at once, because no write is ever half visible, and counts: each hold needs its release, soon.
 * Reads, flushes and compaction go on. For one instant over the stores of several shards. */
void lsm_writes_hold(struct lsm *lsm);
void lsm_writes_release(struct lsm *lsm);

/* What the store can do: NONE also in a directory that is kept in memory. */
enum lsm_durability lsm_durability(const struct lsm *lsm);
/* Every operation with seq <= this is as durable as the store's durability demands (PERIODIC: the
 * kernel has it, so a crash of the process does not take it; NONE: everything visible). */
u64 lsm_durable_seq(const struct lsm *lsm);
/* ST_UNKNOWN_OUTCOME when the log failed before seq was durable. */
MAY_YIELD MUST_CHECK status lsm_wait_durable(struct lsm *lsm, u64 seq);
/* ST_TIMED_OUT: it was not before the deadline, and may be later. */
MAY_YIELD MUST_CHECK status lsm_wait_durable_until(struct lsm *lsm, u64 seq, u64 deadline_ns);
/* Called (as a callback) whenever lsm_durable_seq has grown, and once with failed = true when the
 * log failed: what is not durable then never will be known to be. One listener. */
void lsm_on_durable(struct lsm *lsm, void (*fn)(void *arg, u64 durable_seq, bool failed),
                    void *arg);

/* ---- reading ---- */

/* A live (not deleted, not expired) value. value.data stays valid until lsm_value_release for the
 * yielding functions; for *_try (but lsm_get_whole_try) until the next yield or engine call (release
 * is a no-op then). */
struct lsm_value {
    struct bytes value;
    u64 version;
    u64 seq;
    u64 key_seq;   /* the same, but where a range has deleted the key: of the version before that */
    u64 expire_ms; /* 0: never */
    void *pin[2];  /* private */
};

/* ST_NOT_FOUND fills seq, key_seq and version too: the tombstone's, or 0; see "Sequence numbers".
 */
MUST_CHECK status lsm_get_try(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key,
                              struct lsm_value *out);
/* The same for several keys whose cache misses are to overlap: lsm_aim_1 for each of them, then
 * lsm_aim_2 for each, then lsm_aim_3, then lsm_get_aimed for some and at last one lsm_write_aimed
 * for others. Nothing may yield or write between. */
struct lsm_aim {
    u64 token;
    u64 key_hash; /* hash_key(key, 0) */
    u16 keyspace;
    /* private */
    const struct leaf *leaf;
    const struct record *found;
    const struct s3fifo_bucket *bucket;
    bool cached; /* a row of the cache has this hash, nearly always the key's */
};
void lsm_aim_1(const struct lsm *lsm, struct lsm_aim *aim);
void lsm_aim_2(const struct lsm *lsm, struct lsm_aim *aim, bool write);
void lsm_aim_3(struct lsm_aim *aim, bool write);
MUST_CHECK status lsm_get_aimed(struct lsm *lsm, const struct lsm_aim *aim, struct bytes key,
                                struct lsm_value *out);
/* As lsm_write_try; aims: of the keys of the batch's puts, in their order. */
MUST_CHECK status lsm_write_aimed(struct lsm *lsm, const struct lsm_batch *batch,
                                  const struct lsm_aim *aims, u64 *seq_out);
/* snapshot may be NULL: the newest. */
MAY_YIELD MUST_CHECK status lsm_get(struct lsm *lsm, const struct lsm_snapshot *snapshot,
                                    u16 keyspace, u64 token, struct bytes key,
                                    struct lsm_value *out);
/* lsm_get of the newest, without a fiber, where one block has to be read and nothing else: what a
 * get by its own usually waits for. False: it is something else, or there is no memory: lsm_get.
 * Else done is called later, as a callback, with what lsm_get would return and a value that is its
 * own to release. ST_WOULD_WAIT and ST_NO_MEMORY: it is more after all: lsm_get, which finds the
 * block in the cache. The key's bytes stay until then. */
MUST_CHECK bool lsm_read_start(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key,
                               void (*done)(void *arg, status st, struct lsm_value *value),
                               void *arg);
/* The newest, and what has expired is found, too, as long as it is stored. For whoever brings it to
 * another store, where it must be what it is here: that one's clock is another. */
MAY_YIELD MUST_CHECK status lsm_get_whole(struct lsm *lsm, u16 keyspace, u64 token,
                                          struct bytes key, struct lsm_value *out);
/* The same where nothing has to be read from a file; else ST_WOULD_WAIT. Unlike that of another try
 * the value stays until it is released. */
MUST_CHECK status lsm_get_whole_try(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key,
                                    struct lsm_value *out);
void lsm_value_release(struct lsm_value *value);

/* Is there a higher version of the key than floor? ST_OK: the highest, be it of a tombstone, of
 * something expired or of a deleted range; ST_NOT_FOUND: no. No value is fetched, and nothing is
 * read from the disk unless a run holds versions above floor and may hold the key: for a version
 * that was stamped just now it is a look at the memtable. seq_out: its number; see "Sequence
 * numbers". */
MUST_CHECK status lsm_newest_try(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key,
                                 u64 floor, u64 *version_out, u64 *seq_out);
MAY_YIELD MUST_CHECK status lsm_newest(struct lsm *lsm, u16 keyspace, u64 token, struct bytes key,
                                       u64 floor, u64 *version_out, u64 *seq_out);
/* From now on each write sets bit (token - first token of the store) >> shift of marks, until it is
 * NULL. Whoever wants to know what has changed since it looked clears bits before it looks. */
void lsm_marks_set(struct lsm *lsm, u16 keyspace, u64 *marks, u32 shift);
/* Nobody wants what lies where bit (token - first token of the store) >> shift of bits is set: what
 * has been flushed goes, in the background, by one merge that begins after each call; all of a key
 * or nothing. Reads, of snapshots too, may find it until then. The bits are read until a call with
 * NULL, and change right before a call only. What is written to a stretch after its bit was cleared
 * stays; while it is set nobody writes there. */
void lsm_drop_set(struct lsm *lsm, u16 keyspace, const u64 *bits, u32 shift);
/* Whether the owner mends what is damaged in the keyspace: it lets go of all that the damage may
 * hold (lsm_damage_next), by lsm_drop_set, and brings it from elsewhere when nothing is found there
 * any more. Then a merge that meets damage does not fail the store: of the keyspace only what is
 * not damaged is merged, and nothing into the last level, until lsm_drop_set is called for it anew,
 * while reads, writes and flushes go on (writes to it are refused, ST_OVERLOADED, when it has so
 * many runs all the same that a scan could not merge more); and the merge that drops goes on behind
 * damaged blocks and values of which all is dropped, and waits again at others. When
 * nothing is damaged any more it is merged as ever. lsm_options.mends at the opening; where it
 * becomes false while the keyspace waits, the store fails. */
void lsm_mends_set(struct lsm *lsm, u16 keyspace, bool mends);
/* What the store holds: lsm_place. */
void lsm_tokens(const struct lsm *lsm, u64 *first_out, u64 *last_out);
/* No entry has a higher version. */
u64 lsm_version_last(const struct lsm *lsm);

/* Of the last operation that is visible. */
u64 lsm_seq_last(const struct lsm *lsm);
/* A key that was written and went again (deleted, expired) may be absent without a trace: seq 0,
 * once a merge has dropped its tombstone. Then the write's number is at most this. It may be that
 * of another key whose hash falls into the same of 1,024 places, or of a table that was dropped
 * unread. For whoever must know that nobody has written an absent key: ask after the get. */
u64 lsm_dropped_seq(const struct lsm *lsm, u16 keyspace, struct bytes key);

/* A frozen view of the whole store. Holding one keeps old data on disk: be brief. NULL: no memory,
 * or the store is being closed. */
MUST_CHECK struct lsm_snapshot *lsm_snapshot_open(struct lsm *lsm);
void lsm_snapshot_close(struct lsm_snapshot *snapshot);
u64 lsm_snapshot_seq(const struct lsm_snapshot *snapshot);

/* Live entries of a keyspace in (token, key) order. */
struct lsm_scan;

/* From the first entry at or after (token, key); snapshot NULL takes one for the scan's life. */
MAY_YIELD MUST_CHECK status lsm_scan_open(struct lsm *lsm, struct lsm_snapshot *snapshot,
                                          u16 keyspace, u64 token, struct bytes key, u64 token_last,
                                          struct lsm_scan **out);
/* Before the first call of lsm_scan_next: expiry is judged by the moment of the snapshot, not by
 * now, so that whoever scans it twice sees the same twice. */
void lsm_scan_freeze_clock(struct lsm_scan *scan);
/* The same: tombstones and entries that have expired are shown, too; not what a deleted range
 * covers. For whoever copies a store to another one, which must not believe an older version. */
void lsm_scan_whole(struct lsm_scan *scan);
/* The same: most of what there is up to token_last will be read, so it is read ahead from the first
 * call on, past the cache. For whoever wants 64 KiB or more. */
void lsm_scan_much(struct lsm_scan *scan);
/* The same: damage does not end it. What lies in damaged blocks is left out, and so is whatever
 * else there is of their tokens, since it may be older. For whoever has other copies to ask. */
void lsm_scan_pass_damage(struct lsm_scan *scan);
/* How many damaged blocks and values the scan has passed over so far. */
u64 lsm_scan_damage(const struct lsm_scan *scan);
/* Whether what the last call of lsm_scan_next returned is a tombstone. */
bool lsm_scan_deleted(const struct lsm_scan *scan);
/* From now on lsm_scan_next passes over about so many entries, and answers ST_PAUSED when none of
 * them is left to be shown; 0, as at first: over all there are. For whoever is waited for. */
void lsm_scan_step(struct lsm_scan *scan, u64 entries);
/* ST_END after the last one. ST_PAUSED: of what there is up to the token and key, and of the key
 * itself, nothing more is shown; value is not set. A further call goes on behind it, and so does
 * another scan that is opened there, whose first key that may be. The bytes stay valid until the
 * next call. want_value false: value.size is right but a large value is not fetched (data is NULL
 * then). */
MAY_YIELD MUST_CHECK status lsm_scan_next(struct lsm_scan *scan, bool want_value, u64 *token_out,
                                          struct bytes *key_out, struct lsm_value *value_out);
void lsm_scan_close(struct lsm_scan *scan);

/* Live keys: exact by merging everything (reads the keyspace unless it is known), and a guess. */
MAY_YIELD MUST_CHECK status lsm_count_exact(struct lsm *lsm, u16 keyspace, u64 *count_out);
u64 lsm_count_estimate(const struct lsm *lsm, u16 keyspace);
/* A live key near a random token; ST_NOT_FOUND when the keyspace is empty; ST_PAUSED when it has
 * passed over so many entries (see lsm_scan_step) and there was none: another token may do. key_out
 * holds LIMIT_KEY_BYTES. *seq_out: its number; see "Sequence numbers". */
MAY_YIELD MUST_CHECK status lsm_random_key(struct lsm *lsm, u16 keyspace, u64 random, u64 entries,
                                           u8 *key_out, size_t *key_size_out, u64 *seq_out);

/* ---- operating ---- */

/* Everything that is in memory now goes to tables; all runs are merged into the last level. */
MAY_YIELD MUST_CHECK status lsm_flush(struct lsm *lsm);
MAY_YIELD MUST_CHECK status lsm_compact(struct lsm *lsm);
/* With outside_versions: no write of the keyspace below this version will ever come any more, so
 * what only hides such ones may go: tombstones, and values that have expired, if they did so before
 * expire_below_ms. Begins once all that is in memory now has been flushed. Less than before changes
 * nothing; not kept over a restart. */
void lsm_purge_allow(struct lsm *lsm, u16 keyspace, u64 version_below, u64 expire_below_ms);
/* Older writes may come again, to any keyspace of clients: what hides them stays from now on. (What
 * is being merged came before, and goes.) */
void lsm_purge_forget(struct lsm *lsm);
/* What was allowed last, since the opening; 0: nothing. */
u64 lsm_purge_below(const struct lsm *lsm, u16 keyspace);
void lsm_scrub_rate_set(struct lsm *lsm, u64 bytes_per_s);
/* The first stretch of tokens that ends at or after token and of which a damaged block, or a
 * damaged value that is kept apart, may hold something, of files that the keyspace has now:
 * whatever met it, since the opening. Damaged is also what cannot be read any more: it is
 * ST_IO_ERROR for a few seconds, until it is sure that the disk reads the rest of the file, and
 * ST_CORRUPT then. False: there is none. A value that a reader met stands for
 * its token; what else fails its check in a file, for all that the file may hold. More than a few
 * of a file may become one. */
bool lsm_damage_next(const struct lsm *lsm, u16 keyspace, u64 token, u64 *first_out, u64 *last_out);
/* Grows when a stretch is met that was not known. */
u64 lsm_damage_epoch(const struct lsm *lsm);

enum lsm_state { LSM_STATE_OK, LSM_STATE_NO_SPACE, LSM_STATE_FAILED };

struct lsm_stats {
    enum lsm_state state;
    char failure[160]; /* why, when FAILED */
    u64 keys_estimate;
    u64 seq_last, seq_durable;
    u64 gets, gets_memory, gets_row_cache, gets_not_found;
    u64 writes, write_bytes, writes_refused;
    struct histogram writes_held_ns; /* by lsm_writes_hold */
    u64 log_bytes, log_writes, log_segments, log_bytes_to_replay;
    struct histogram log_write_ns;
    u64 memtable_bytes, memtable_bytes_limit, flushes, flush_bytes;
    u64 tables, table_bytes, table_entries, blob_files, blob_bytes, blob_live_bytes;
    u64 runs_max; /* most runs that a read may have to look at */
    u64 index_bytes, filter_bytes;
    u64 row_cache_bytes, row_cache_hits, row_cache_misses;
    u64 block_cache_bytes, block_cache_hits, block_cache_misses;
    u64 filter_probes, filter_negatives, filter_false_positives;
    u64 table_reads, blob_reads;
    u64 compactions_active; /* under way, or to be gone on with once there is room for them */
    u64 compactions, compaction_read_bytes, compaction_written_bytes, compaction_debt_bytes;
    u64 compaction_dropped_overwritten, compaction_dropped_deleted, compaction_dropped_expired;
    u64 snapshots_open;
    u64 scrub_bytes, scrub_passes;
    u64 corruptions;   /* damaged blocks and records met, since the opening */
    u64 damaged_files; /* open ones in which they were: as long as they are there */
    u64 memory_bytes, memory_limit_bytes;
    u64 recovery_ns, recovery_records, recovery_bytes;
};

void lsm_stats_get(const struct lsm *lsm, struct lsm_stats *out);
/* Writes are refused, or the disk has been at one of the log for LSM_STUCK_NS. */
#define LSM_STUCK_NS NS_PER_S
bool lsm_is_stuck(const struct lsm *lsm);
/* Whether the indexes of tables have what they may have of the memory: writes are refused
 * (ST_FULL) until something was deleted and merged. */
bool lsm_index_is_full(const struct lsm *lsm);
/* So are those of the disk reserve (lsm_batch.of_reserve). */
bool lsm_reserve_is_stuck(const struct lsm *lsm);

/* Checks every file of a closed store directory. Each damage is reported (offset: of the first bad
 * byte's block) and counted; returns ST_CORRUPT when there was any. */
MAY_YIELD MUST_CHECK status lsm_verify(const char *dir,
                                       void (*report)(void *arg, const char *file, u64 offset,
                                                      const char *what),
                                       void *arg, u64 *files_out, u64 *bytes_out);

#endif
