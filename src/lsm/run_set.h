/* SPDX-License-Identifier: MIT
 *
 * run_set.h -- what a reader sees of the files: immutable, counted sets of runs.
 *
 *   run_set   all trees of a store at one moment; a reader refs it before it yields
 *    > run    slots with disjoint tokens, ascending; shared between sets
 *       > slot        a table and the tokens for which this run uses it (its view)
 *          > level_table    an open table and the blob files its entries point to
 *             > level_blob  an open blob file
 *
 * Views are what lets a merge give space back slice by slice: consuming a slice of a run narrows
 * or removes slots in a new run object, the files stay as they are. A table that spans two stores
 * (after the number of cores changed) is clipped by its view, too. One table may stand in several
 * slots with disjoint views.
 *
 * Invariants
 *   S1  A tree lists its runs newest first: for every token, an entry of an earlier run has a higher
 *       seq than one of a later run. Tiers never fall along the list; the last level comes last.
 *   S2  Slots of a run are disjoint and ascending by view.
 *   S3  slot_count of a level_table is how many slots of the *current* set use it; when that falls
 *       to 0 and the manifest without it is durable, the file goes with its last reference.
 *   S4  live_tables and live_bytes of a level_blob count the tables of the current set.
 *   S5  owner of a run is 0 or 1 + the sweep that merges it; only that sweep may replace it.
 */
#ifndef DISTKV_LSM_RUN_SET_H
#define DISTKV_LSM_RUN_SET_H

#include "lsm/manifest.h"
#include "lsm/table.h"

struct levels;

struct level_blob {
    struct levels *levels;
    struct blob_file *file;
    u64 file_id, file_bytes;
    u64 token_first, token_last; /* of the values in it */
    u64 live_bytes;              /* values that tables of the current set point to */
    u64 mark;                    /* scratch of whoever walks a set */
    u32 live_tables;
    u32 ref_count;           /* level_tables, and a writer that has not finished */
    struct gap_list damaged; /* by tokens: level_blob_damaged */
};

struct level_table {
    struct levels *levels;
    struct table *table;
    u32 ref_count; /* runs (each slot once), writers, scrub */
    u32 slot_count;
    u32 blob_count;
    struct level_blob *blobs[]; /* as table->meta.blob_refs */
};

struct run_slot {
    struct level_table *file;
    u64 token_first, token_last; /* the view */
};

struct run {
    u64 id; /* of this process; a narrowed run keeps it */
    u32 ref_count;
    u16 keyspace;
    u8 tier;
    u8 owner;
    u64 bytes; /* files and blobs, by the share that the views have */
    u64 version_max;
    u32 count;
    struct run_slot slots[];
};

struct run_set {
    struct levels *levels;
    u32 ref_count;
    u32 run_count;
    u32 tree_first[LIMIT_KEYSPACES + 1]; /* tree k: runs tree_first[k] .. tree_first[k + 1] - 1 */
    struct run *runs[];
};

/* ---- files ---- */

/* Takes over the opened file. The new blob has one reference. NULL: no memory (the file is
 * unreferenced then). */
MUST_CHECK struct level_blob *level_blob_new(struct levels *levels, struct blob_file *file,
                                             u64 token_first, u64 token_last);
struct level_blob *level_blob_find(struct levels *levels, u64 file_id);
void level_blob_unref(struct level_blob *blob);
/* A record of such a token fails its check: from now on the file counts as damaged. */
void level_blob_damaged(struct level_blob *blob, u64 token_first, u64 token_last);
/* Takes over the opened table; refs the blobs that its meta names, which must be known (else
 * ST_CORRUPT). The table is unreferenced on failure. */
MUST_CHECK status level_table_new(struct levels *levels, struct table *table,
                                  struct level_table **out);
void level_table_unref(struct level_table *file);
/* The part of its bytes, or of others that are of it, by the share of its tokens in [first, last]. */
u64 level_table_part(const struct level_table *file, u64 bytes, u64 token_first, u64 token_last);
/* Bytes of the file and of what it points to, by the same share. */
u64 level_table_bytes_in(const struct level_table *file, u64 token_first, u64 token_last);

/* ---- runs ---- */

/* A run without slots yet, one reference. The caller adds exactly capacity slots. */
MUST_CHECK struct run *run_new(struct levels *levels, u16 keyspace, u8 tier, u32 capacity);
/* Appends; refs the file. */
void run_add(struct run *run, struct level_table *file, u64 token_first, u64 token_last);
void run_unref(struct run *run, struct levels *levels);
/* The slot whose view holds token, or NULL. */
const struct run_slot *run_find(const struct run *run, u64 token);
/* The first slot with token_last >= token; run->count when there is none. */
u32 run_slot_from(const struct run *run, u64 token);
/* A run of what run (NULL: nothing; keyspace and tier count then) has outside [first, last], and of
 * the slots to add, which lie inside. Keeps id and owner. *out is NULL when that is nothing. */
MUST_CHECK status run_splice(const struct run *run, struct levels *levels, u16 keyspace, u8 tier,
                             u64 token_first, u64 token_last, const struct run_slot *add,
                             u32 add_count, struct run **out);
bool run_overlaps(const struct run *run, u64 token_first, u64 token_last);

/* ---- sets ---- */

struct run_change {
    struct run *old; /* of the base set; NULL: an insertion */
    /* In its place, or NULL: removed. For an insertion: a flushed run goes to the front of its
     * tree, one of the last level to the end. */
    struct run *replacement;
    struct run *after; /* a run to stand right after old's place (the older side), or NULL */
};
/* A new set with one reference; runs are ref'd, so the caller keeps its own references. */
MUST_CHECK struct run_set *run_set_edit(struct levels *levels, const struct run_set *base,
                                        const struct run_change *changes, u32 count);
void run_set_ref(struct run_set *set);
void run_set_unref(struct run_set *set);
struct run *run_set_find(const struct run_set *set, u64 run_id);
static inline u32
run_set_tree_count(const struct run_set *set, u16 keyspace)
{
    return set->tree_first[keyspace + 1] - set->tree_first[keyspace];
}
static inline struct run *
run_set_tree_run(const struct run_set *set, u16 keyspace, u32 index)
{
    return set->runs[set->tree_first[keyspace] + index];
}
/* The last level of a tree, or NULL. */
struct run *run_set_last(const struct run_set *set, u16 keyspace);
/* S1 (by overlapping slots), S2 and counts: walks everything. */
bool run_set_check(const struct run_set *set);

/* ---- reading a run ---- */

/* A cursor over the entries of run with token_first <= token <= token_last, opening one table at a
 * time. set: ref'd for the cursor's life, or NULL when the caller holds it. read_ahead_bytes: as
 * table_cursor_open. NULL: no memory. */
MUST_CHECK struct cursor *run_cursor_open(struct levels *levels, struct run_set *set,
                                          const struct run *run, u64 token_first, u64 token_last,
                                          enum io_class io_class, u32 read_ahead_bytes);
/* Before its first seek: as table_cursor_pass_damage, and reported. */
void run_cursor_pass_damage(struct cursor *cursor, struct gap_list *gaps);
/* As table_cursor_leave_out, within its own tokens. */
void run_cursor_leave_out(struct cursor *cursor, struct leave_out *leave_out);

#endif
