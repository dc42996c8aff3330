/* SPDX-License-Identifier: MIT
 *
 * table_internal.h -- what the reader, the cursor and verification of tables share.
 */
#ifndef DISTKV_LSM_TABLE_INTERNAL_H
#define DISTKV_LSM_TABLE_INTERNAL_H

#include "lsm/table_format.h"

struct table_filter {
    u8 *lines; /* NULL: not resident */
    u64 line_count;
    u32 probes;
};

/* An opened footer and index, for struct table and for verification. The budget pays. */
MAY_YIELD MUST_CHECK status table_footer_read(struct io_file *file, u64 file_id, u64 file_bytes,
                                              struct budget *budget, struct table_footer *out,
                                              const char **what_out);
MAY_YIELD MUST_CHECK status table_index_read(struct io_file *file,
                                             const struct table_footer *footer,
                                             struct budget *budget, struct table_index *out);
void table_index_free(struct table_index *index, struct budget *budget);
/* ST_NO_MEMORY: no room for it. */
MAY_YIELD MUST_CHECK status table_filter_read(struct io_file *file,
                                              const struct table_footer *footer,
                                              struct budget *budget, struct table_filter *out);
void table_filter_free(struct table_filter *filter, struct budget *budget);

/* Counts damage found in a table, and logs it now and then. Returns ST_CORRUPT. */
status table_corrupt(struct table *table, u64 offset, const char *what);

/* The last token that the block may hold: the next one may go on with it. */
static inline u64
table_block_token_last(const struct table *table, u32 block)
{
    const struct table_index *index = table->index;
    return block + 1 < index->block_count ? index->tokens[block + 1] : table->meta.token_last;
}

/* A checked, decompressed, pinned block; cache may be NULL. */
MAY_YIELD MUST_CHECK status table_block_fetch(struct table *table, struct block_cache *cache,
                                              enum io_class io_class, u32 index, bool fill_cache,
                                              struct block **out);
/* Decompresses a checked block into target (header->raw_size bytes) and opens it. */
MUST_CHECK status table_block_unpack(const struct table_block_header *header, const u8 *payload,
                                     struct budget *budget, u8 *target, struct table_block *out);

#endif
