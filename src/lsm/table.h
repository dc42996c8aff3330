/* SPDX-License-Identifier: MIT
 *
 * table.h -- immutable sorted files: what is known of one, how it is written and read.
 * The layout is in table_format.h; docs/data-files.md draws it byte by byte.
 */
#ifndef DISTKV_LSM_TABLE_H
#define DISTKV_LSM_TABLE_H

#include "base/limits.h"
#include "base/mem.h"
#include "io/file.h"
#include "lsm/cache.h"
#include "lsm/entry.h"
#include "lsm/gap_list.h"
#include "lsm/lsm.h"

/* How many bytes of one blob file the entries of a table point to: whole records, with header, key
 * and padding (blob_record_bytes), so that the sum over tables compares with the file's size. */
struct table_blob_ref {
    u64 file_id;
    u64 bytes;
};
#define TABLE_BLOB_REFS_MAX 64u /* a writer that meets more must finish and start a new table */

/* Kept in the manifest; everything that can be known without opening the file. */
struct table_meta {
    u64 file_id;
    u64 file_bytes;
    u64 file_hash;               /* XXH3 of the whole file */
    u64 token_first, token_last; /* of the entries in it */
    u64 seq_min, seq_max;
    u64 version_min, version_max;
    u64 expire_min_ms, expire_max_ms; /* of entries that expire; 0, 0 when none does */
    u64 entry_count, delete_count, expiring_count;
    u64 data_bytes; /* keys and values before compression, blobs not counted */
    u16 keyspace;
    u8 codec;
    u8 filter_bits; /* per key; 0: no filter */
    bool entries_all_expire;
    u32 blob_ref_count;
    struct table_blob_ref blob_refs[TABLE_BLOB_REFS_MAX];
};

/* "DIR/t0000000000000012": file names of tables and blob files (b...). */
#define LSM_PATH_BYTES 600u
void table_path(char *path, const char *dir, u64 file_id);
void blob_path(char *path, const char *dir, u64 file_id);

/* ---- writing ---- */

struct table_writer_options {
    const char *dir;
    u64 file_id;
    u16 keyspace;
    enum lsm_codec codec;
    u32 filter_bits;     /* per key: FILTER_BITS_* */
    u64 entry_count_max; /* sizes the filter; more are allowed, the filter gets worse */
    enum io_class io_class;
    struct budget *budget;
};

struct table_writer;

MAY_YIELD MUST_CHECK status table_writer_open(const struct table_writer_options *options,
                                              struct table_writer **out);
/* In entry order, checked. The bytes are copied. */
MAY_YIELD MUST_CHECK status table_writer_add(struct table_writer *writer,
                                             const struct entry *entry);
u64 table_writer_bytes(const struct table_writer *writer); /* file size so far, about */
u64 table_writer_index_bytes(const struct table_writer *writer);
u64 table_writer_count(const struct table_writer *writer);
bool table_writer_blob_refs_full(const struct table_writer *writer);
/* Writes index, filter and footer, reads nothing back, syncs the file (not the directory), fills
 * meta and frees the writer, also on error (the file is removed then). Without any entry there is
 * no table: ST_INVALID, and the file is removed. After a failed add it returns that failure. */
MAY_YIELD MUST_CHECK status table_writer_finish(struct table_writer *writer,
                                                struct table_meta *meta);
MAY_YIELD void table_writer_abort(struct table_writer *writer);

/* ---- reading ---- */

/* An open table. Counted: a read in flight keeps it, so that compaction may drop it from the tree.
 * The index is resident; the filter is while there is room for it. */
struct table {
    struct table_meta meta;
    u32 ref_count;
    bool unlink_on_close; /* no longer named by the manifest: the last unref removes the file */
    struct io_file *file;
    char dir[LSM_PATH_BYTES];
    struct budget *budget;
    struct table_index *index;
    struct table_filter *filter; /* NULL when it had no room */
    struct table_stats *stats;   /* of the store; counts reads, probes, false positives */
    u64 damage_met;              /* how often; table_damaged */
    u64 damage_told_ns;
    struct gap_list damaged; /* the tokens that what is damaged may hold */
};

struct table_stats {
    /* Told of a block that cannot be read, from any context. NULL: nobody. */
    void (*unreadable)(void *arg, struct table *table, u64 offset);
    void *arg;

    /* No filter is loaded beyond this, of indexes and filters together; 0: there is no bound. */
    u64 filter_limit_bytes;
    bool filters_later; /* none is loaded by table_open: table_filter_load */

    u64 reads, read_bytes, filter_probes, filter_negatives, filter_false_positives, corruptions;
    u64 index_bytes, filter_bytes;
    u64 damaged;      /* open tables that are known to be */
    u64 damage_epoch; /* how often one had damage that was not known; of blob files, too */
};

/* Reads and checks footer, index and filter. */
MAY_YIELD MUST_CHECK status table_open(const char *dir, const struct table_meta *meta,
                                       struct budget *budget, struct table_stats *stats,
                                       struct table **out);
void table_ref(struct table *table);
/* For who opened it while table_stats.filters_later. Without room for it the table does without. */
MAY_YIELD MUST_CHECK status table_filter_load(struct table *table);
/* Its memory is needed for something else: reads get slower, not wrong. */
void table_filter_drop(struct table *table);
/* The last one closes; on a background fiber when called from a callback. */
void table_unref(struct table *table);
/* What lies at the offset fails its check: from now on the table counts as damaged, by the tokens
 * of that block, or all of its own where that is no block. True: time to tell (a reader may meet it
 * a thousand times a second). */
bool table_damaged(struct table *table, u64 offset);
/* What lies at the offset cannot be read. ST_CORRUPT: that is known to be damage. Else ST_IO_ERROR,
 * and table_stats.unreadable is told. */
MUST_CHECK status table_unreadable(struct table *table, u64 offset);
/* What is read for the block at the offset; for what is no block, all from there on. */
void table_span_at(const struct table *table, u64 offset, u64 *first_out, u64 *bytes_out);

/* Hints for table_may_contain, and for the table_get after it. */
void table_prefetch_filter(const struct table *table, u64 key_hash);
void table_prefetch_index(const struct table *table, u64 token);
/* False: the key is surely not in it. key_hash is hash_key(key, 0). */
bool table_may_contain(struct table *table, u64 token, u64 key_hash);
/* The newest version with seq <= seq_max. *pin keeps out's bytes (block_cache_unpin releases).
 * ST_NOT_FOUND, ST_CORRUPT, ST_IO_ERROR; try: ST_WOULD_WAIT when the block is not cached.
 * fill_cache: whether a block read from disk is kept. */
MUST_CHECK status table_get_try(struct table *table, struct block_cache *cache, u64 token,
                                struct bytes key, u64 seq_max, struct entry *out,
                                struct block **pin);
MAY_YIELD MUST_CHECK status table_get(struct table *table, struct block_cache *cache, u64 token,
                                      struct bytes key, u64 seq_max, bool fill_cache,
                                      struct entry *out, struct block **pin);

/* ---- a point read without a fiber ---- */

/* The caller's; stays in place, as the table does, from start to take. */
struct table_read {
    void (*done)(struct table_read *read); /* set by the caller; a callback */

    /* private */
    struct table *table;
    struct block_cache *cache;
    u8 *buffer;
    struct block *block;
    u32 index;
    status result;
    struct io_op op;
};

/* A larger block is for who can wait for it in pieces. */
#define TABLE_READ_BYTES_MAX (64u << 10)

/* For a key that lies within the table's tokens, and whose block the cache does not have: begins to
 * read that. done comes later. false: no memory, or it is large. */
MUST_CHECK bool table_read_start(struct table_read *read, struct table *table,
                                 struct block_cache *cache, u64 token, struct bytes key);
/* Once, in done or after it: as table_get of the key's newest version. */
MUST_CHECK status table_read_take(struct table_read *read, u64 token, struct bytes key,
                                  struct entry *out, struct block **pin);

/* Sequential reading past the cache by large overlapped reads, every block verified. Refs the
 * table. token_last: nobody wants what comes later, so nothing of it is read but for what shares a
 * block with what is wanted; the cursor may show that, and ends there. read_ahead_bytes: 0 reads
 * block by block through the cache (short scans). */
MUST_CHECK status table_cursor_open(struct table *table, struct block_cache *cache, u64 token_last,
                                    enum io_class io_class, u32 read_ahead_bytes,
                                    struct budget *budget, struct cursor **out);
/* Before its first seek: it goes on behind damaged blocks, and adds to the list what they may hold
 * of [first, last], which is all that is wanted. */
void table_cursor_pass_damage(struct cursor *cursor, struct gap_list *gaps, u64 token_first,
                              u64 token_last);
/* Which damaged blocks a merge leaves out: those that hold nothing of what it takes but tokens that
 * nobody wants. */
struct leave_out {
    const struct drop_bits *drop;
    u64 blocks;  /* so far */
    u64 seq_max; /* the highest of their tables */
};
/* Before its first seek, and instead: it goes on behind those. What it takes: [first, last], within
 * the store's tokens. */
void table_cursor_leave_out(struct cursor *cursor, struct leave_out *leave_out, u64 token_first,
                            u64 token_last);
/* Told of each damaged place of a file as it is found. */
struct places {
    void (*each)(void *arg, u64 offset, const char *what);
    void *arg;
    u32 count; /* so far, of this file; zero at first */
};
#define PLACES_MAX                                                                                 \
    1000u /* of a file: where the next is, "and more" is told, and the file is left */
/* st: ST_CORRUPT, or why it cannot be read. */
void places_tell(struct places *places, status st, u64 offset, const char *what);
/* What has ended the file is told as well. ST_CORRUPT when any place was. */
MUST_CHECK status places_end(struct places *places, status st, u64 offset, const char *what);

/* Reads the whole file and checks every byte against its checksums and meta. *offset_out and
 * *what_out say where and what on ST_CORRUPT; where on ST_IO_ERROR, too. Yields between pieces; at most bytes_per_s (0: no
 * limit). ST_CANCELED when the node stops. */
MAY_YIELD MUST_CHECK status table_verify(const char *dir, const struct table_meta *meta,
                                         u64 bytes_per_s, struct budget *budget, u64 *offset_out,
                                         const char **what_out);
/* The same without a limit; but it goes on behind a block or a filter that is damaged or cannot be
 * read. What such damage makes meaningless (counts, hash of the file) is not told besides.
 * ST_CORRUPT: places were told, each once. Another status is not told. */
MAY_YIELD MUST_CHECK status table_verify_all(const char *dir, const struct table_meta *meta,
                                             struct budget *budget, struct places *places);

/* ---- blob files: values kept apart ---- */

struct blob_writer;
MAY_YIELD MUST_CHECK status blob_writer_open(const char *dir, u64 file_id, enum io_class io_class,
                                             struct budget *budget, struct blob_writer **out);
/* The record holds key, value and checksums, so that a value can be checked against its owner. */
MAY_YIELD MUST_CHECK status blob_writer_add(struct blob_writer *writer, u64 token, struct bytes key,
                                            struct bytes value, struct blob_pointer *out);
u64 blob_writer_bytes(const struct blob_writer *writer);
/* Syncs (not the directory) and frees, also on error. */
MAY_YIELD MUST_CHECK status blob_writer_finish(struct blob_writer *writer, u64 *file_bytes_out);
MAY_YIELD void blob_writer_abort(struct blob_writer *writer);

/* An open blob file, counted as a table is. */
struct blob_file {
    u64 file_id;
    u64 file_bytes;
    u32 ref_count;
    bool unlink_on_close;
    struct io_file *file;
    char dir[LSM_PATH_BYTES];
    struct budget *budget;
    u64 damage_met, damage_told_ns;
};
MAY_YIELD MUST_CHECK status blob_open(const char *dir, u64 file_id, u64 file_bytes,
                                      struct budget *budget, struct blob_file **out);
void blob_ref(struct blob_file *blob);
void blob_unref(struct blob_file *blob);
/* Reads and verifies one value into a buffer from budget; *buffer_out and *buffer_size_out are
 * freed by the caller with mem_free, value_out points into it. */
MAY_YIELD MUST_CHECK status blob_read(struct blob_file *blob, enum io_class io_class,
                                      const struct blob_pointer *pointer, u64 token,
                                      struct bytes key, struct budget *budget, void **buffer_out,
                                      size_t *buffer_size_out, struct bytes *value_out);
/* As table_verify. */
MAY_YIELD MUST_CHECK status blob_verify(const char *dir, u64 file_id, u64 file_bytes,
                                        u64 bytes_per_s, struct budget *budget, u64 *offset_out,
                                        const char **what_out);
/* As table_verify_all. A record whose header or key is damaged does not tell where the next one is:
 * that is where header and key are whole again, and all before it is one place. */
MAY_YIELD MUST_CHECK status blob_verify_all(const char *dir, u64 file_id, u64 file_bytes,
                                            struct budget *budget, struct places *places);

#endif
