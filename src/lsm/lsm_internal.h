/* SPDX-License-Identifier: MIT
 *
 * lsm_internal.h -- struct lsm, for the files of src/lsm and their tests.
 *
 *   lsm.c       opening, recovery, closing, snapshots' list, state, figures, verification
 *   lsm_write.c admission, batches into log and memtables, the flush fiber
 *   lsm_read.c  point reads
 *   scan.c      scans, exact counts, random keys
 *   snapshot.c  snapshots
 *   batch.c     encoding of batches, and their iterator
 *   log*.c memtable.c levels.c ...   what the above stand on
 *
 * How a reader collects its sources
 *   1. the active memtable of the keyspace, then the flushing one (either may be NULL): look
 *      (memtable_get) or open cursors, which hold references;
 *   2. then the run set of levels (levels_get, levels_cursors_open).
 *   In this order and without a yield before step 2 has begun, so that a flush that ends in between
 *   can only show an entry twice (in the memtable and in its run: equal (version, seq), take
 *   either), never hide it. Of the versions with seq <= seq_max the highest (version, seq) counts;
 *   then levels_range_covers, then the kind, then entry_expired by io_wall_ms.
 *   The sequence number a reader without a snapshot sees up to is lsm->seq_last.
 *
 * Long readers and memory. A memtable whose content has been flushed lives on while a cursor holds
 * it, and its memory is missing to writers. A scan therefore stands in lsm->scans, and the store
 * calls lsm_scan_detach on each when a flush has ended: the scan closes its cursors (now, or when
 * its running call ends) and opens them anew, at the place after the last key that it returned and
 * with its old snapshot, in its next call. So what a scan returns is always a copy of its own.
 */
#ifndef DISTKV_LSM_LSM_INTERNAL_H
#define DISTKV_LSM_LSM_INTERNAL_H

#include "io/timer.h"
#include "lsm/batch.h"
#include "lsm/cache.h"
#include "lsm/levels.h"
#include "lsm/log.h"
#include "lsm/lsm.h"
#include "lsm/memtable.h"

/* Writes of a key bump one of these by its hash; a reader that went to disk compares before it
 * puts its row into the cache. */
#define LSM_WRITE_MARKS 1024u

struct lsm_keyspace {
    struct memtable *active;   /* NULL: nothing written since the last switch */
    struct memtable *flushing; /* immutable; NULL: none */
    u64 delete_count;          /* in the active one: for estimates */
    /* lsm_purge_allow: the version and the time, and what must be flushed before they count; 0:
     * nothing waits */
    u64 purge_below, purge_expire_ms, purge_seq;
    u64 purge_allowed; /* the highest since lsm_purge_forget */
    u64 *marks;        /* lsm_marks_set; NULL: nobody wants them */
    u32 marks_shift;
};

struct lsm_snapshot {
    struct lsm *lsm;
    u64 seq;
    u64 wall_ms;      /* its moment; what had expired by then may be gone, what had not is kept */
    struct list link; /* lsm->snapshots, ascending by seq */
};

struct lsm_scan; /* scan.c */

/* Owned by one shard. */
struct lsm {
    /* configuration, fixed by lsm_open */
    char dir[LSM_PATH_BYTES];
    u64 token_first, token_last;
    struct lsm_options options;
    u64 memtable_limit_bytes; /* of the active set; the flushing one may be as large */
    u64 batch_bytes_max;      /* what fits into an empty memtable and a log segment */

    /* memory: everything below is taken from budget, a child of the shard's */
    struct budget budget;
    struct budget memtable_budget; /* child of budget: all memtables, flushed and held ones, too */
    struct memtable_pages memtable_pages;
    u64 memory_reserve; /* of the shard's: see lsm_memory_check; 0: files are not in memory */

    /* parts */
    struct log *log; /* NULL: no durability, or in memory */
    struct levels *levels;
    struct row_cache *row_cache;
    struct block_cache *block_cache;
    struct lsm_keyspace keyspaces[LIMIT_KEYSPACES];

    /* numbers */
    u64 seq_last;     /* of the last operation that is visible */
    u64 seq_flushed;  /* everything up to this is in tables */
    u64 version_last; /* the clock: no entry has a higher one */

    /* readers */
    struct {
        bool valid;
        u64 seq;        /* exact while lsm->seq_last is this */
        u64 expired_ms; /* ... and the clock shows this at least: what it had expired by */
        u64 count;
    } count_known[LIMIT_KEYSPACES]; /* scan.c: what lsm_count_exact found last */
    struct list snapshots;          /* struct lsm_snapshot, ascending by seq */
    u64 *snapshot_seqs;             /* the same as an array, rebuilt when asked for */
    u32 snapshot_count, snapshot_capacity;
    bool snapshot_seqs_stale;
    struct list scans; /* struct lsm_scan, by its own link: scan.c */
    u32 write_marks[LSM_WRITE_MARKS];
    u32 range_marks;        /* range deletes so far */
    struct fiber_gate gate; /* every call that may yield is inside */
    u8 *try_buffer;         /* LSM_TRY_BYTES: what lsm_get_try returns from a block */

    /* writers and flushing */
    u64 admit_ns; /* when the next write may enter, under compaction pressure */
    bool flush_wanted, flush_running;
    bool replaying; /* inside lsm_open: the log is being read */
    bool stopping;
    struct levels_state flush_state;    /* what the manifest says */
    struct levels_state flushing_state; /* what it will say after the flush of the flushing set */
    bool flushing;                      /* there is such a set, be it only of range deletes */
    struct fiber_queue flush_wake;      /* the flush fiber waits here */
    struct fiber_queue room_wake;       /* writers wait for a memtable here */
    struct fiber_queue flushed_wake;    /* lsm_flush waits here */
    struct fiber_queue durable_wake;
    struct fiber_queue stop_wake; /* the tending fiber, and a flush that waits to retry */
    u32 fibers;                   /* own background fibers that run */
    struct fiber_queue fibers_wake;

    /* state */
    enum lsm_state state;
    /* Whose turn it is at the log's buffers, of those that need much of them; others wait for it.
     * NULL: nobody's. */
    const struct lsm_batch *large;
    u32 writes_held;    /* holds that were not released: nothing becomes visible */
    u64 writes_held_ns; /* since when */
    status failure;
    char failure_text[160];
    bool no_space_levels, no_space_disk, no_space_flush; /* why state is NO_SPACE */
    bool disk_near;                                      /* the disk is nearly at its reserve */
    bool merge_awaited;   /* files in memory have to be merged before they may become more */
    u64 reserve_taken;    /* by batches of the reserve, since the memtables were switched */
    u64 deletes_full_seq; /* the newest delete that was taken on a full disk, until it is merged */
    bool no_memory_flush; /* a flush found no memory for its tables: writes wait for it */
    bool index_full_told; /* lsm_index_is_full, in the log */
    void (*durable_fn)(void *arg, u64 durable_seq, bool failed);
    void *durable_arg;

    /* figures */
    struct lsm_stats stats;               /* the counters that lsm.c itself keeps */
    u64 cache_row_share;                  /* of 1024: the rows' of what is left to both caches */
    u64 cache_row_hits, cache_block_hits; /* at the last look */
};

#define LSM_TRY_BYTES 65536u

/* Whether its directory is one that ends with the process; lsm.c. */
bool lsm_in_memory(const struct lsm *lsm);
/* Whether keys may be deleted though lsm_index_is_full; lsm.c. */
bool lsm_index_takes_deletes(const struct lsm *lsm);
/* Looks at the room that files in memory have left; lsm.c. */
void lsm_memory_check(struct lsm *lsm);
/* NO_SPACE, and yet there is room for what is of the reserve; lsm_write.c. */
bool lsm_gives_reserve(const struct lsm *lsm);
/* Wakes the flush fiber; lsm_write.c. */
void lsm_flush_request(struct lsm *lsm);

/* ---- for scan.c ---- */

/* Ascending, *count_out of them; valid until the next yield or snapshot call. */
const u64 *lsm_snapshot_seqs(void *lsm, u32 *count_out);
/* Implemented by scan.c: closes the scan's cursors as told above. */
void lsm_scan_detach(struct lsm_scan *scan);
/* Calls lsm_scan_detach for all; implemented by scan.c, which knows the link. */
void lsm_scans_detach(struct lsm *lsm);
/* Keeps a block of budget memory in value's pins, freed by lsm_value_release. buffer is taken, also
 * on failure (false: no memory). */
MUST_CHECK bool lsm_value_pin_buffer(struct lsm_value *value, struct budget *budget, void *buffer,
                                     size_t buffer_size);

/* ---- between lsm.c, lsm_write.c and lsm_read.c ---- */

/* The first reason stays. */
void lsm_fail(struct lsm *lsm, status why, const char *text);
/* Derives state from the reasons. */
void lsm_state_update(struct lsm *lsm);
/* Whether the log's length asks for a flush. */
bool lsm_log_is_long(const struct lsm *lsm);
/* Memtables into tables, whatever they hold; once at a time. wait: for space and memory. */
MAY_YIELD MUST_CHECK status lsm_flush_now(struct lsm *lsm, bool wait);
void lsm_flush_fiber(void *arg);
void lsm_memtables_free(struct lsm *lsm);
/* For levels_flush: what was read in a memtable that goes gets a row. */
MAY_YIELD void lsm_rows_inherit(void *lsm, u16 keyspace, struct memtable *memtable);
/* For log_open: one record into the memtables. */
MAY_YIELD MUST_CHECK status lsm_replay(void *lsm, const struct log_record *record,
                                       struct bytes payload);
/* Gives the caches what the rest leaves: sets their limits. */
void lsm_caches_balance(struct lsm *lsm);
/* The same, and they are below them then; with turns for others between. */
MAY_YIELD void lsm_caches_trim(struct lsm *lsm);

/* ---- invariants ---- */

bool lsm_check(struct lsm *lsm);

#endif
