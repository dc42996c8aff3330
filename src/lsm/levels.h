/* SPDX-License-Identifier: MIT
 *
 * levels.h -- what of a store lies in files: for each keyspace a tree of runs, the list of deleted
 * token ranges, and the manifest that makes changes to them atomic.
 *
 * Lazy leveling. A run is a set of tables with disjoint tokens. Flushes put runs into tier 0; a
 * tier with LEVELS_FANOUT runs is merged into one run of the next tier; the last level is one run,
 * cut at fixed power-of-two token slices, into which the tiers are merged slice by slice when they
 * reach a quarter of its size. Runs of one tree cover disjoint, ordered intervals of sequence
 * numbers, so newest first is by seq_max.
 *
 * Readers take a reference to the run set (struct run_set, immutable) before they yield; changes
 * install a new one. A file is removed when neither the manifest, nor a reader, nor a snapshot's
 * scan refers to it, and only after the manifest without it is durable. After a failed manifest
 * write nothing is removed any more and the store fails: which manifest holds is unknown.
 */
#ifndef DISTKV_LSM_LEVELS_H
#define DISTKV_LSM_LEVELS_H

#include "lsm/cache.h"
#include "lsm/lsm.h"
#include "lsm/memtable.h"
#include "lsm/table.h"

struct levels;

/* What the owner (lsm.c) lends and is told. */
struct levels_config {
    const char *dir;
    u64 token_first, token_last;
    struct lsm_options options;
    struct budget *budget; /* indexes, filters, buffers */
    bool in_memory;        /* files, too, take from the shard's budget */
    struct row_cache *row_cache;
    struct block_cache *block_cache;
    /* The sequence numbers of all open snapshots, ascending; *count_out of them. The pointer stays
     * valid until the next yield. */
    const u64 *(*snapshots)(void *arg, u32 *count_out);
    /* This memtable has been written, and will be a run next. It may yield. NULL: nobody wants to
     * know. */
    void (*written)(void *arg, u16 keyspace, struct memtable *memtable);
    /* An error that the store cannot go on with (a failed manifest, a corrupt table met while
     * compacting). ST_NO_SPACE is reported here, too, and ST_OK when it is over. */
    void (*failed)(void *arg, status why, const char *text);
    void *arg;
};

/* What the manifest says about the rest of the store. */
struct levels_state {
    u64 log_segment_first; /* the oldest log segment that recovery must replay; 0: a new store */
    u64 seq_flushed;       /* every operation up to this is in tables */
    u64 version_max;       /* the highest version ever in tables */
};

/* Reads the manifest, opens every table (index, filter), removes files that nobody names (but not
 * blob files: levels_collect_orphans, after the log was replayed). */
MAY_YIELD MUST_CHECK status levels_open(const struct levels_config *config, struct levels **out,
                                        struct levels_state *state_out);
MAY_YIELD void levels_close(struct levels *levels);
MAY_YIELD void levels_collect_orphans(struct levels *levels);
/* Background fibers: compaction, scrub. */
void levels_start(struct levels *levels);
/* Tells them, and levels_compact_all, to end soon; levels_stop waits for the fibers. */
void levels_stop_begin(struct levels *levels);
MAY_YIELD void levels_stop(struct levels *levels);

/* ---- reading ---- */

/* Whether a run may hold a higher version of any key. */
bool levels_runs_hold_above(const struct levels *levels, u16 keyspace, u64 version);
/* The same, or a range may delete one. */
bool levels_may_hold_above(const struct levels *levels, u16 keyspace, u64 version);

struct levels_pin { /* keeps an entry's bytes */
    struct block *block;
    struct run_set *runs;
};

/* The newest version with seq <= seq_max in all runs. version_floor: the caller has a version (from
 * a memtable) already; runs that cannot hold a higher one are not looked at, and an entry that is
 * not higher is not returned. Range deletes are applied: a covered entry comes back as kind
 * ENTRY_DELETE. ST_NOT_FOUND when there is nothing. try: the newest of all, or ST_WOULD_WAIT;
 * levels_read_start begins where that had to stop. */
MUST_CHECK status levels_get_try(struct levels *levels, u16 keyspace, u64 token, struct bytes key,
                                 u64 key_hash, u64 version_floor, struct entry *out,
                                 struct levels_pin *pin);
MAY_YIELD MUST_CHECK status levels_get(struct levels *levels, u16 keyspace, u64 token,
                                       struct bytes key, u64 key_hash, u64 seq_max,
                                       u64 version_floor, struct entry *out,
                                       struct levels_pin *pin);
void levels_unpin(struct levels_pin *pin);

/* A look at the runs that is under way; private. */
struct levels_get {
    struct levels *levels;
    u16 keyspace;
    u64 token;
    struct bytes key;
    u64 key_hash;
    u64 seq_max;
    bool found;
    bool has_floor;
    u64 floor; /* entries must have a higher version */
    struct entry best;
    struct block *pin;
};

/* levels_get of the newest version, without a fiber: one block is read. The caller's; stays in
 * place, as the key's bytes do, until done. */
#define LEVELS_READ_CANDIDATES 6u
struct levels_read {
    void (*done)(struct levels_read *read); /* set by the caller; a callback */
    /* The outcome, in done: as of levels_get. ST_WOULD_WAIT: one more block has to be read. */
    status result;
    struct entry entry;
    struct levels_pin pin;

    /* private */
    struct levels_get get;
    struct run_set *set;
    struct table *candidates[LEVELS_READ_CANDIDATES]; /* that may hold the key: newest first */
    u32 count, next;
    struct table_read table_read;
};
/* For a key that no memtable has. false: it is not begun; levels_get it is. */
MUST_CHECK bool levels_read_start(struct levels *levels, struct levels_read *read, u16 keyspace,
                                  u64 token, struct bytes key, u64 key_hash);
/* Keeps the set of runs as it is now, and with it every deleted range that covers something in it
 * (or in memtables that are flushed meanwhile). For whoever reads memtables and runs over yields.
 */
void levels_pin_runs(struct levels *levels, struct levels_pin *pin);
/* Fetches a value that is kept apart; see blob_read for the buffer. */
MAY_YIELD MUST_CHECK status levels_blob_read(struct levels *levels, const struct entry *entry,
                                             void **buffer_out, size_t *buffer_size_out,
                                             struct bytes *value_out);
/* Cursors over every run of the keyspace, up to token_last, to be merged with those of the
 * memtables. They hold the run set. count_out at most max. long_scan: read ahead, past the cache.
 * gaps: where to write which damage they have passed over; NULL: damage is an error. */
MAY_YIELD MUST_CHECK status levels_cursors_open(struct levels *levels, u16 keyspace, u64 token_last,
                                                bool long_scan, struct gap_list *gaps,
                                                struct cursor **cursors, u32 max, u32 *count_out);

/* ---- deleted token ranges ---- */

/* Takes effect at once for reads; persisted with the next manifest (until then the log has it).
 * Neighbouring and covered ranges are merged. ST_OVERLOADED above LEVELS_RANGES_MAX. */
MUST_CHECK status levels_range_delete(struct levels *levels, u16 keyspace, u64 token_first,
                                      u64 token_last, u64 version, u64 seq);
/* Nothing below this version will come any more, and what came is in runs: see lsm_purge_allow. */
/* See lsm_drop_set. */
void levels_drop_set(struct levels *levels, u16 keyspace, const u64 *bits, u32 shift, u64 seq_last);
void levels_mends_set(struct levels *levels, u16 keyspace, bool mends);
void levels_purge_allow(struct levels *levels, u16 keyspace, u64 version_below,
                        u64 expire_below_ms);
/* Merges everything down once, in the background, and what the last level can do without goes. */
void levels_clean(struct levels *levels);
/* Whether that, or something like it, is still under way. */
bool levels_cleaning(const struct levels *levels);
/* How many there are with higher numbers, needed or not. */
u32 levels_range_count(const struct levels *levels, u64 seq_above);
/* Whether an entry is deleted by a range that a reader at seq_max sees. */
bool levels_range_covers(const struct levels *levels, u16 keyspace, u64 token, u64 version, u64 seq,
                         u64 seq_max);
/* The same; if so, *version and *seq become the range's. */
bool levels_range_find(const struct levels *levels, u16 keyspace, u64 token, u64 *version, u64 *seq,
                       u64 seq_max);

/* See lsm_dropped_seq. */
u64 levels_dropped_seq(const struct levels *levels, u16 keyspace, struct bytes key);
/* By which clock a merge under way drops what has expired, and did not know of a snapshot that is
 * opened now; 0: none is. What was dropped before is gone for that, whatever its clock. */
u64 levels_expired_ms(const struct levels *levels);

/* ---- flushing ---- */

struct levels_flush {
    u16 keyspace;
    struct memtable *memtable;
};

/* Writes the memtables as new runs (values from the blob threshold on go to blob files; what no
 * snapshot needs is dropped), then installs them and the new state with one manifest write. On
 * ok the memtables' content is in the runs. ST_NO_SPACE leaves everything as it was. ranges_seq:
 * the ranges deleted up to there are there after a crash, be it in the log, so what they cover need
 * not be written. */
MAY_YIELD MUST_CHECK status levels_flush(struct levels *levels, const struct levels_flush *inputs,
                                         u32 count, const struct levels_state *state,
                                         u64 ranges_seq);
/* The state alone. */
MAY_YIELD MUST_CHECK status levels_state_set(struct levels *levels,
                                             const struct levels_state *state);
/* Merges everything into the last level. */
MAY_YIELD MUST_CHECK status levels_compact_all(struct levels *levels);

/* How much compaction lags, 0 to 1000: 0 nothing to do, 1000 writes must be refused. Writers slow
 * down smoothly in between (lsm.c turns it into an admission rate). */
u32 levels_pressure(const struct levels *levels);
/* The keyspaces, a bit each, to which nothing can be written: scans could not merge more runs. */
u32 levels_full(const struct levels *levels);
/* How near the end of the space is, for who measures it (lsm.c, of files in memory): 0 far, from
 * LEVELS_SPACE_NEAR on everything is merged down without waiting for credit and counts as pressure,
 * at LEVELS_SPACE_FULL however little it may give. */
#define LEVELS_SPACE_NEAR 500u
#define LEVELS_SPACE_FULL 800u
void levels_space_set(struct levels *levels, u32 pressure);
/* Whether merging what is there may yet give room. */
bool levels_merges_ahead(const struct levels *levels);
/* Of files in memory: the room that a merge takes for a while. */
u64 levels_merge_bytes(const struct levels *levels);
/* Bytes the user wrote: earns compaction its beats. */
void levels_user_bytes(struct levels *levels, u64 bytes);

/* ---- figures and checks ---- */

void levels_stats(const struct levels *levels, struct lsm_stats *out); /* fills its fields */
/* Of the tables that are open: what cannot be given back as long as they are there. */
u64 levels_index_bytes(const struct levels *levels);
/* Filters give way to indexes. */
void levels_filters_fit(struct levels *levels);
u64 levels_count_estimate(const struct levels *levels, u16 keyspace);
/* Of so many newer puts, how many are probably of keys that are not in the last level. */
u64 levels_count_new(const struct levels *levels, u16 keyspace, u64 puts);
/* See lsm_damage_next. */
bool levels_damage_next(const struct levels *levels, u16 keyspace, u64 token, u64 *first_out,
                        u64 *last_out);
u64 levels_damage_epoch(const struct levels *levels);
void levels_scrub_rate_set(struct levels *levels, u64 bytes_per_s);
/* Disjointness, order, seq intervals, references. */
bool levels_check(const struct levels *levels);

/* ---- for store.h: changing the partitions of a data directory ---- */

/* Makes in target_dir (existing, empty) a store of [token_first, token_last] out of clean closed
 * stores: hard links to every file that overlaps and a manifest that names them. Of none, an empty
 * store. Syncs all. */
MAY_YIELD MUST_CHECK status levels_split(const char *const *source_dirs, u32 source_count,
                                         const char *target_dir, u64 token_first, u64 token_last);
/* Checks manifest, tables and blob files of a closed store (lsm_verify adds the log). */
MAY_YIELD MUST_CHECK status levels_verify(
    const char *dir, void (*report)(void *arg, const char *file, u64 offset, const char *what),
    void *arg, u64 *files_out, u64 *bytes_out, struct levels_state *state_out);

#endif
