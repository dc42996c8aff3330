/* SPDX-License-Identifier: MIT
 *
 * manifest.h -- the file that says what a store consists of: one complete snapshot of the state,
 * written as a whole beside the old one and renamed over it. So there is no edit log to replay, to
 * tear in the middle or to grow, and a reader sees one state or the other.
 *
 *   DIR/manifest       what holds
 *   DIR/manifest.new   being written; without meaning
 *   DIR/manifest.old   the one before, for the operator only: read by nobody but --verify
 *
 * Encoding and decoding are pure and treat every byte as hostile. docs/data-files.md draws the
 * layout.
 */
#ifndef DISTKV_LSM_MANIFEST_H
#define DISTKV_LSM_MANIFEST_H

#include "lsm/levels.h"
#include "lsm/range_list.h"

#define MANIFEST_FORMAT    1u
#define MANIFEST_BYTES_MAX MIB(256)

/* A tree lists its runs newest first, so tiers only grow along it; the last level comes last. */
#define RUN_TIER_LAST 255u
#define RUN_TIER_MAX  15u

struct ONDISK manifest_header {
    u8 magic[8]; /* "DKVMANIF" */
    u32 format;
    u32 part_count;
    u64 size;       /* of header and parts; zeros follow up to a multiple of IO_ALIGNMENT */
    u64 generation; /* counts up with every write */
    u8 reserved[24];
    u32 content_crc; /* CRC32C of everything after the header */
    u32 header_crc;  /* CRC32C of what is before this field */
};
static_assert(sizeof(struct manifest_header) == 64, "stored as it is");

struct ONDISK manifest_part {
    u32 kind; /* MANIFEST_PART_*: each occurs once, in this order */
    u32 count;
    u32 size; /* of the records that follow */
    u32 crc;  /* CRC32C of the records, seeded with kind */
};
static_assert(sizeof(struct manifest_part) == 16, "stored as it is");

enum manifest_part_kind {
    MANIFEST_PART_STATE = 1,
    MANIFEST_PART_RUNS,
    MANIFEST_PART_TABLES,
    MANIFEST_PART_BLOBS,
    MANIFEST_PART_RANGES,
};
#define MANIFEST_PART_COUNT 5u

struct ONDISK manifest_state_record {
    u64 log_segment_first;
    u64 seq_flushed;
    u64 version_max;
    u64 file_id_next; /* no file that was ever named has this id or a higher one of its prefix */
    u64 token_first, token_last;
    u8 reserved[16];
};
static_assert(sizeof(struct manifest_state_record) == 64, "stored as it is");

struct ONDISK manifest_run_record {
    u16 keyspace;
    u8 tier;
    u8 reserved;
    u32 table_count; /* of the next records in the part of tables */
};
static_assert(sizeof(struct manifest_run_record) == 8, "stored as it is");

struct ONDISK manifest_table_record {
    u64 file_id, file_bytes, file_hash;
    u64 token_first, token_last;
    u64 seq_min, seq_max;
    u64 version_min, version_max;
    u64 expire_min_ms, expire_max_ms;
    u64 entry_count, delete_count, expiring_count;
    u64 data_bytes;
    u64 view_first, view_last; /* the tokens for which the run uses the table */
    u16 keyspace;
    u8 codec;
    u8 filter_bits;
    u8 entries_all_expire;
    u8 reserved;
    u16 blob_ref_count; /* struct manifest_blob_ref_record follow */
};
static_assert(sizeof(struct manifest_table_record) == 144, "stored as it is");

struct ONDISK manifest_blob_ref_record {
    u64 file_id, bytes;
};

struct ONDISK manifest_blob_record {
    u64 file_id, file_bytes;
    u64 token_first, token_last; /* of the values in it */
};
static_assert(sizeof(struct manifest_blob_record) == 32, "stored as it is");

struct ONDISK manifest_range_record {
    u64 token_first, token_last;
    u64 version, seq;
    u16 keyspace;
    u8 reserved[6];
};
static_assert(sizeof(struct manifest_range_record) == 40, "stored as it is");

/* ---- in memory ---- */

struct manifest_run {
    u16 keyspace;
    u8 tier;
    u32 table_count;
};
struct manifest_table {
    const struct table_meta *meta;
    u64 view_first, view_last;
};
struct manifest_blob {
    u64 file_id, file_bytes;
    u64 token_first, token_last;
};

struct manifest {
    struct levels_state state;
    u64 generation;
    u64 file_id_next;
    u64 token_first, token_last;
    /* by keyspace, then newest first */
    struct manifest_run *runs;
    struct manifest_table *tables; /* in the order of the runs, by view within one */
    struct manifest_blob *blobs;   /* ascending by file id */
    struct range_delete *ranges;   /* ascending by seq */
    u32 run_count, table_count, blob_count, range_count;

    /* owned by a decoded manifest; empty in one that is put together for encoding */
    struct budget *budget;
    struct table_meta *metas;
};

/* Exactly what manifest_encode writes, padding not counted. */
u64 manifest_encoded_size(const struct manifest *manifest);
/* target has room for manifest_encoded_size. The manifest satisfies manifest_check. */
void manifest_encode(const struct manifest *manifest, u8 *target);
/* Everything is checked, trees as well as bytes. ST_CORRUPT with the place and a static text,
 * ST_UNSUPPORTED for a newer format, ST_NO_MEMORY. Free with manifest_free. */
MUST_CHECK status manifest_decode(struct bytes data, struct budget *budget, struct manifest *out,
                                  u64 *offset_out, const char **what_out);
void manifest_free(struct manifest *manifest);
/* NULL when the trees are well formed, else a static text; *index_out: of the table. */
const char *manifest_check(const struct manifest *manifest, u32 *index_out);

/* ---- the file ---- */

/* ST_NOT_FOUND: there is none. */
MAY_YIELD MUST_CHECK status manifest_read(const char *dir, struct budget *budget,
                                          struct manifest *out, u64 *offset_out,
                                          const char **what_out);
/* The same of manifest.old. */
MAY_YIELD MUST_CHECK status manifest_read_old(const char *dir, struct budget *budget,
                                              struct manifest *out, u64 *offset_out,
                                              const char **what_out);
/* Writes, syncs, renames, syncs the directory twice: before the rename, so that every file it names
 * is there, and after. *outcome_known_out: when it failed, whether the old manifest surely holds.
 */
MAY_YIELD MUST_CHECK status manifest_write(const char *dir, const struct manifest *manifest,
                                           struct budget *budget, bool *outcome_known_out);

#endif
