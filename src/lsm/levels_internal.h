/* SPDX-License-Identifier: MIT
 *
 * levels_internal.h -- struct levels, for the files of src/lsm that make up the levels:
 *
 *   levels.c        opening, closing, figures
 *   levels_read.c   reading: one key, values kept apart, cursors
 *   levels_commit.c the only place where the current run set changes
 *   run_set.c run_cursor.c     what readers hold
 *   output.c        writing tables and blob files, dropping what nobody needs
 *   flush.c compaction.c       where changes come from
 *   level_prune.c   dropping whole tables, forgetting ranges
 *   level_damage.c  what is known of damage
 *   level_unreadable.c         whether what cannot be read is damage
 *   compaction_pick.c retain.c range_list.c manifest.c     pure
 *   scrub.c level_verify.c level_split.c
 *
 * Who changes what. The current set is replaced under commit_mutex by levels_commit, after the new
 * manifest is durable. Flushes and compaction run at the same time; all compaction (the background
 * fiber and levels_compact_all) is serialised by compact_mutex.
 */
#ifndef DISTKV_LSM_LEVELS_INTERNAL_H
#define DISTKV_LSM_LEVELS_INTERNAL_H

#include "io/fiber.h"
#include "lsm/compaction_pick.h"
#include "lsm/levels.h"
#include "lsm/range_list.h"
#include "lsm/retain.h"
#include "lsm/run_set.h"

/* What a slice of the last level holds, about; also a table's size. */
#define LEVELS_SLICE_BYTES MIB(64)
/* Where files lie in memory, tables are small: one gives its room back when the last token of it
 * was merged, so a sweep needs room for a slice and for a part of each of its inputs, not for all.
 */
#define MEMORY_SLICES_IN_MEMTABLE 4u
#define MEMORY_TABLES_IN_SLICE    4u
#define MEMORY_SLICE_BYTES_MIN    KIB(64)
#define MEMORY_SWEEP_TABLES       8u /* of which a sweep has merged a part, about */
/* A file is collected when less than this of it is still pointed to. */
#define BLOB_LIVE_PERCENT 80u
/* Blob files that one table refers to, leaving room for its own. */
#define OUTPUT_BLOB_REFS_MAX (TABLE_BLOB_REFS_MAX - 2u)
/* From so many runs on nothing is written to a keyspace: scans merge all of them, and memtables.
 * Others are slow or refused long before; one that waits to be mended comes there only when its
 * merges fail. */
#define LEVELS_RUNS_MAX 200u
/* Of one sweep: all that there are, with what is flushed and being written when LEVELS_RUNS_MAX is
 * reached, as one that drops what is damaged is to take all. Below MERGE_SOURCES_MAX. */
#define SWEEP_RUNS_MAX (LEVELS_RUNS_MAX + 24u)
/* Ids beyond the counter that a manifest reserves. */
#define FILE_ID_SLACK        4096u
#define FILE_ID_COUNTER_BITS 32u

/* See lsm_dropped_seq. */
#define LEVELS_DROP_MARKS 1024u

/* Of a store's memory: what indexes and filters together may take before filters go. The rest is
 * for memtables, the log and what comes and goes. */
#define LEVELS_FILTER_PART 2u
/* A table ends when its index takes this part of the store's memory, so that a merge, which has
 * those of what it reads and of what it writes, can be cut into pieces that there is room for. */
#define LEVELS_INDEX_PART 32u

#define FILTER_BITS_TIER 16u
#define FILTER_BITS_LAST 12u

#define COMPACTION_READ_AHEAD_BYTES ((u32)KIB(256))
/* Bytes merged between two looks at the clock. */
#define COMPACTION_PIECE_BYTES KIB(64)
/* What compaction may do a second while nobody writes. */
#define COMPACTION_IDLE_BYTES_PER_S MIB(32)
/* What it may have earned in advance. Little: it goes on at the rate at which it earns, all the
 * time, instead of taking disk and core from the requests in bursts. */
#define COMPACTION_AHEAD_BYTES ((i64)MIB(2))

struct sweep {
    bool active;
    bool into_last;
    bool whole;     /* rewrites what needs it in the last level, too */
    bool drops;     /* whole, for levels_drop_set, and its owner mends: it leaves out damage */
    bool held_back; /* ... but not from its last slice: newer runs may hold older versions */
    u64 width;      /* of its slices, now */
    u64 width_full; /* ... and when there is memory; 0 of both: everything */
    u32 went_well;  /* steps of this width, less than the full one */
    u8 tier_in, tier_out;
    u64 token_next;    /* everything before is merged */
    u64 output_run_id; /* 0: not begun, or the last level */
};

struct level_tree {
    struct sweep sweeps[PICK_SWEEPS_MAX];
    bool broken;      /* met a corrupt table: no more merging until reopened */
    bool waits;       /* ... or for its owner: then some go on, see level_damage.c */
    bool stuck;       /* ... but only those that drop: it is not known where what one met lies */
    bool drop_due;    /* levels_drop_set: until a sweep begins that drops */
    u64 rewrite_seq;  /* the newest range when the last level was rewritten last */
    bool force_last;  /* levels_compact_all: everything is to go down */
    bool force_whole; /* ... and the last level is to be cleaned once */
    bool clean_due;   /* both, once: until a sweep begins that does it */
    /* Of the puts that sweeps have merged into the last level, how many were of keys that it did
     * not have: what levels_count_estimate expects of those that are still above. Both are halved
     * when they are many, so that old times are forgotten. */
    u64 merged_puts, merged_new;
};

/* What the last levels_get_try that had to wait has found out of a token and a hash: the read that
 * follows begins there. */
struct levels_waited {
    const struct run_set *set; /* the current one, or NULL: nothing is known */
    u64 token, key_hash;
    u16 keyspace;
    u32 count;
    struct table *candidates[LEVELS_READ_CANDIDATES]; /* from that on whose block is to be read */
};

/* What level_unreadable.c looks at. */
struct suspect {
    struct table *table; /* held; or */
    struct level_blob *blob;
    u64 offset;        /* of what is wrong */
    u64 first, bytes;  /* to be read for it */
    struct gap tokens; /* of the blob: what it may hold */
};

struct levels {
    /* configuration, fixed by levels_open */
    struct levels_config config;
    char dir[LSM_PATH_BYTES];
    struct budget *budget;
    u32 id_prefix;       /* of file ids: generation and first slot, see levels.c */
    u64 slice_bytes;     /* LEVELS_SLICE_BYTES, less in tests */
    u64 table_bytes_max; /* 0: tables end with their slices only */
    u64 index_bytes_max; /* of a table, about */
    u32 fanout;
    u64 tier_bytes; /* see struct pick_tree */

    /* state */
    struct run_set *current;
    u32 sets_alive; /* current, and older ones that readers still look at */
    struct levels_waited waited;
    struct levels_state state; /* of the durable manifest */
    u64 generation;            /* of the durable manifest */
    u64 file_id_next;
    u64 run_id_next;
    u64 mark_next;
    struct range_list ranges;
    /* What hides versions from here on stays, and what expires from then on: lsm_purge_allow. */
    u64 purge_below[LIMIT_KEYSPACES], expire_below_ms[LIMIT_KEYSPACES];
    struct drop_bits drops[LIMIT_KEYSPACES];
    u64 drop_hashes[LIMIT_KEYSPACES]; /* of the bits at the last levels_drop_set */
    u64 drop_seq[LIMIT_KEYSPACES];    /* the store's number when they became so */
    bool mends[LIMIT_KEYSPACES];      /* lsm_mends_set */
    u64 expired_ms;                   /* see levels_expired_ms */
    /* The highest number of what was dropped so that perhaps no trace of its key is left, by the
     * key's hash; of tables that were dropped as a whole. Raised before the drop is visible. */
    u64 dropped_seqs[LEVELS_DROP_MARKS];
    u64 dropped_seq_tables[LIMIT_KEYSPACES];
    struct level_blob **blobs; /* every open one, ascending by id */
    u32 blob_count, blob_capacity;
    struct level_tree trees[LIMIT_KEYSPACES];
    bool failed;   /* a manifest write failed: files stay, nothing is committed any more */
    bool no_space; /* reported to the owner */
    u64 flush_failures, flush_told_ns; /* told by log_seldom */
    struct fiber_mutex commit_mutex, compact_mutex;

    /* background */
    bool started, stopping;
    u32 fibers;
    struct fiber_queue wake; /* the compaction fiber waits here for work */
    struct fiber_queue scrub_wake;
    struct fiber_queue stopped; /* levels_stop waits here */
    i64 credit_bytes;           /* what compaction may merge now; negative: it is ahead */
    u64 credit_ns;              /* when idle credit was added last */
    u64 credit_written;         /* what writers earned; it stands for idle credit */
    u32 forced;                 /* levels_compact_all calls that wait: no pacing */
    u64 prune_ns;               /* when to look for tables to drop again */
    u64 prune_generation;       /* of the manifest when that was done last */
    u32 pressure;               /* 0..1000, kept by levels_commit */
    u32 full;                   /* keyspaces with LEVELS_RUNS_MAX, a bit each; kept there, too */
    u32 space_pressure;         /* see levels_space_set */
    u64 debt_bytes;
    u64 scrub_bytes_per_s;
    u64 retry_ns; /* no compaction before this: the last one failed */
    bool judges;  /* a fiber looks at the suspect */
    struct suspect suspect;

    /* statistics */
    struct table_stats table_stats;
    u64 tables, table_bytes, table_entries, blob_bytes, blob_live_bytes, runs_max;
    u64 flushes, flush_bytes;
    u64 compactions, compaction_read_bytes, compaction_written_bytes;
    u64 dropped[RETAIN_ANSWER_COUNT];
    u64 blob_reads;
    u64 corruptions, corrupt_told_ns, waits_told_ns;
    u64 damaged_blobs; /* files that are known to be */
    u64 scrub_bytes, scrub_passes;
};

/* Mostly: worth writing the rest of its values again. Header and footer do not count. */
static inline bool
level_blob_is_garbage(const struct level_blob *blob)
{
    u64 frame = 2 * IO_ALIGNMENT;
    u64 bytes = blob->file_bytes > frame ? blob->file_bytes - frame : 0;
    return (unsigned __int128)blob->live_bytes * 100 < (unsigned __int128)bytes * BLOB_LIVE_PERCENT;
}

/* ---- levels.c ---- */

/* 0: the counter is used up. */
u64 levels_file_id_new(struct levels *levels);
static inline u64
levels_file_id_reserved(const struct levels *levels)
{
    return levels->file_id_next + FILE_ID_SLACK;
}
const u64 *levels_snapshots(const struct levels *levels, u32 *count_out);
/* The place of a key in dropped_seqs. */
u32 levels_drop_mark(u16 keyspace, struct bytes key);
static inline void
levels_note_dropped(struct levels *levels, u32 mark, u64 seq)
{
    levels->dropped_seqs[mark] = MAX(levels->dropped_seqs[mark], seq);
}
/* The clock by which expired values may be dropped until the end, holding compact_mutex; whoever
 * begins takes the snapshots at the same moment. */
u64 levels_expiry_begin(struct levels *levels);
void levels_expiry_end(struct levels *levels);
/* A corrupt file was met, a table ('t') or a blob file ('b'): count, and log now and then. */
void levels_report_corrupt(struct levels *levels, const char *where, char letter, u64 file_id);
/* "t0000000000000012" and so on. False: some other file. */
bool levels_parse_name(const char *name, bool *is_blob_out, u64 *file_id_out);
/* Recomputes runs_max, pressure and debt. */
void levels_shape_update(struct levels *levels);
void levels_pick_tree(struct levels *levels, u16 keyspace, struct pick_tree *tree,
                      struct pick_run *runs, struct pick_sweep *sweeps, u32 runs_max);

/* ---- levels_commit.c ---- */

/* Makes the changes and the state (NULL: as before) durable, then current. The changes refer to
 * runs that only the caller may replace; flushes insert at any time. ST_NO_SPACE and other errors
 * leave all as it was; when the outcome is unknown, levels->failed is set and told to the owner. */
MAY_YIELD MUST_CHECK status levels_commit(struct levels *levels, const struct run_change *changes,
                                          u32 count, const struct levels_state *state);
/* Makes set the first current one. */
void levels_install_first(struct levels *levels, struct run_set *set);
/* A table that was written and is in no set: it goes with its last reference, and its blob file
 * with it, unless levels->failed. */
void levels_forget_table(struct levels *levels, struct level_table *file);
void levels_discard_blob(struct levels *levels, struct level_blob *blob);

/* ---- output.c ---- */

struct output_config {
    struct levels *levels;
    u16 keyspace;
    enum lsm_codec codec;
    u32 filter_bits;
    enum io_class io_class;
    u64 slice_width;     /* tables end where a slice of this width does; 0: never */
    u64 table_bytes_max; /* 0: no limit */
    u64 entry_count_max; /* an estimate, of one table */
    u64 blob_span_max;   /* files whose values span more tokens are rewritten; UINT64_MAX: none */
    bool collect_blobs;  /* rewrite the values of blob files that are mostly garbage */
    bool leave_damaged;  /* ... and of those that are damaged, so that they go */
};

/* Whether the values of the file are written again. Of the others some may be, too, when one token
 * has more files than a table may refer to. */
bool output_rewrites(const struct output_config *config, const struct level_blob *blob);

/* Entries in, tables and blob files out. */
struct output {
    struct output_config config;
    struct retain retain;
    u64 *snapshots; /* frozen */
    u32 snapshot_count;

    /* the table being written */
    struct table_writer *table;
    struct blob_writer *blob;
    u64 blob_id, blob_token_first, blob_token_last;
    u64 token_last;
    u32 ref_count, blob_refs_max;
    u64 ref_ids[TABLE_BLOB_REFS_MAX];

    /* a tombstone that is written only if an older version of its key is kept */
    bool pending;
    enum retain_answer pending_reason;
    u64 pending_version, pending_seq;
    u32 pending_mark; /* levels_drop_mark */

    /* finished */
    struct level_table **tables;
    u32 table_count, table_capacity;
    u64 bytes_written;
    u64 entries_in, entries_out;
    u64 dropped[RETAIN_ANSWER_COUNT];
};

/* Freezes the list of snapshots. The caller completes retain: range_seq_limit, bottom and
 * version_outside; at the bottom the clock, too (levels_expiry_begin). After ok, output_deinit. */
MUST_CHECK status output_init(struct output *output, const struct output_config *config);
/* Judges the entry by retain and writes it or not. */
MAY_YIELD MUST_CHECK status output_add(struct output *output, const struct entry *entry);
/* Ends the last table. Checks that every entry went somewhere. */
MAY_YIELD MUST_CHECK status output_finish(struct output *output);
/* Frees; the caller's references are gone, so tables that no run refs any more are discarded. */
MAY_YIELD void output_deinit(struct output *output);

/* ---- level_damage.c ---- */

/* A merge of the tree met damage, its sweeps are ended. again: one that drops was among them, and
 * may come further the next time. located: it is known to lie in an input. */
void levels_tree_break(struct levels *levels, u16 keyspace, bool again, bool located);
/* Whether the tree may be merged at all; one that waits goes on when its damage is gone. */
bool levels_tree_merges(struct levels *levels, u16 keyspace);
/* Whether a merge that drops is under way or due. */
bool levels_tree_drops(const struct levels *levels, u16 keyspace);
/* Whether a part of it that is in view is known to be damaged. */
bool levels_run_is_damaged(const struct levels *levels, const struct run *run);

/* ---- level_unreadable.c ---- */

/* Opened tables are to tell of what cannot be read: table_stats.unreadable. */
void levels_unreadable_init(struct levels *levels);
/* As table_unreadable: what lies there of the blob file, which only such tokens have. */
MUST_CHECK status level_blob_unreadable(struct level_blob *blob, u64 offset, u64 bytes,
                                        struct gap tokens);
/* The same of the record of a value. */
MUST_CHECK status level_value_unreadable(struct level_blob *blob,
                                         const struct blob_pointer *pointer,
                                         const struct entry *entry);

/* ---- compaction.c, level_prune.c, scrub.c ---- */

/* Damage at the offset, found by who reads the file and not for a reader. */
void levels_note_table(struct levels *levels, struct table *table, u64 offset);

MAY_YIELD void levels_compaction_main(void *arg);
MAY_YIELD void levels_scrub_main(void *arg);
/* Ends a background fiber's life. */
void levels_fiber_ended(struct levels *levels);
/* Drops tables of which nothing is needed, and ranges that cover nothing. Holding compact_mutex. */
MAY_YIELD MUST_CHECK status levels_prune(struct levels *levels);
/* Whether a persistent range makes rewriting the last level of a tree worthwhile. */
bool levels_ranges_want_rewrite(struct levels *levels, u16 keyspace);
/* Whether the range may still hide an entry of a run. */
bool levels_range_may_cover(void *levels, const struct range_delete *range);
/* Whether some blob file of it is to be collected. */
bool levels_run_has_garbage(const struct run *run);
/* Whether anything from token_first to token_last is to be dropped (levels_drop_set). */
bool levels_drops_any(const struct levels *levels, u16 keyspace, u64 token_first, u64 token_last);
/* Whether a table of the last level should be written anew though nothing is merged into it. */
bool levels_wants_rewrite(struct levels *levels, const struct run_slot *slot);

#endif
