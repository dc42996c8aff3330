/* SPDX-License-Identifier: MIT
 *
 * table_format.h -- the bytes of table files and blob files, and the pure functions that take them
 * apart. Everything decoded here is hostile until proved: each size and offset is checked against
 * what is really there before it is used, and nothing here waits, allocates or crashes.
 *
 *   table file
 *     | block | block | ... | index | filter | zeros | footer 4096 |      blocks are not padded
 *
 *   block:      | header 16 | stored payload: raw, or compressed |
 *   raw:        | raw header 28 | records | offsets u16 * count | token deltas, width * count |
 *   record:     | flags u8 | key size | value size | version | seq | [expire] | key | value |
 *               sizes and expire are varints; version and seq are zigzag varints relative to the
 *               bases in the raw header
 *   index:      | header 16 | first tokens u64 * n | offsets, low u32 * (n+1) | run blocks u32 * r
 *               | run separator ends u32 * r | offsets, high u8 * (n+1) | separators |
 *
 * A block on disk is at most TABLE_BLOCK_BYTES, so that the aligned span which holds it is 8 KiB at
 * most, and mostly less (io_file_read_unit); with a codec the raw unit is TABLE_UNIT_BYTES where
 * compression pays. An entry that is larger than that has a block of its own. Raw block and struct
 * block together are 4096 bytes: one size class of the allocator, without waste.
 *
 * Where a key is. Blocks are found by their first token. A block whose first token is also the last
 * token of the block before lies inside a *run* of one token and has a separator: the shortest key
 * greater than every key before it, or, marked TABLE_RUN_SAME_KEY, the key itself whose versions
 * span the border. So the search inside a run is a binary search over separators in memory.
 */
#ifndef DISTKV_LSM_TABLE_FORMAT_H
#define DISTKV_LSM_TABLE_FORMAT_H

#include "base/crc.h"
#include "base/limits.h"
#include "lsm/table.h"

/* ---- blocks ---- */

struct ONDISK table_block_header {
    u32 crc;         /* CRC32C of the rest of the header and the payload, seeded by the place */
    u32 stored_size; /* of the payload that follows */
    u32 raw_size;    /* when decompressed */
    u8 codec;        /* of this block: NONE where compression did not pay */
    u8 reserved[3];
};
static_assert(sizeof(struct table_block_header) == 16, "on disk");

struct ONDISK table_raw_header {
    u64 token_base; /* the first token */
    u64 version_base;
    u64 seq_base;
    u16 count;
    u8 token_width; /* bytes of a token delta, 0..8; 0: one token only */
    u8 reserved;
};
static_assert(sizeof(struct table_raw_header) == 28, "on disk");

#define TABLE_RAW_BYTES        (4096u - (u32)sizeof(struct block))
#define TABLE_BLOCK_BYTES      (TABLE_RAW_BYTES + (u32)sizeof(struct table_block_header))
#define TABLE_UNIT_BYTES       (16384u - (u32)sizeof(struct block))
#define TABLE_BLOCK_ENTRIES    1024u
#define TABLE_RECORD_BYTES_MAX (1u + 5u + 5u + 10u + 10u + 10u) /* without key and value */
/* The largest raw block: one entry with the largest key and value. */
#define TABLE_RAW_BYTES_MAX                                                                        \
    ((u32)sizeof(struct table_raw_header) + TABLE_RECORD_BYTES_MAX + LIMIT_KEY_BYTES +             \
     LIMIT_VALUE_BYTES + 2u + 8u)

static_assert(TABLE_BLOCK_BYTES <= 4096, "at most two aligned pages hold a block");
static_assert(TABLE_UNIT_BYTES <= UINT16_MAX, "offsets inside a block are 16 bits");

enum table_record_flags {
    TABLE_RECORD_DELETE = 1 << 0,
    TABLE_RECORD_BLOB = 1 << 1,
    TABLE_RECORD_EXPIRES = 1 << 2,
};

/* A raw block whose arrays are proved to lie inside it. Borrowed. */
struct table_block {
    const u8 *raw;
    const u8 *offsets;
    const u8 *tokens;
    u64 token_base, version_base, seq_base;
    u32 records_end; /* offset in raw */
    u32 count;
    u32 token_width;
};

static inline u32
table_place_seed(u64 file_id, u64 offset)
{
    u64 place[2] = {file_id, offset};
    return crc32c(0, place, sizeof(place));
}

/* Header and checksum of a stored block. stored: exactly its bytes, header included. */
MUST_CHECK status table_block_check(struct bytes stored, u64 file_id, u64 offset,
                                    struct table_block_header *out);
/* Proves the arrays of a raw block. */
MUST_CHECK status table_block_open(struct bytes raw, struct table_block *out);
/* *end_out (may be NULL): where the record ends in raw. The entry points into the block. */
MUST_CHECK status table_block_entry(const struct table_block *block, u32 index, struct entry *out,
                                    u32 *end_out);
/* The first entry at or after (token, key); count when there is none. */
MUST_CHECK status table_block_seek(const struct table_block *block, u64 token, struct bytes key,
                                   u32 *index_out);
/* Walks all entries strictly: order, no gaps between records, nothing that an encoder would not
 * write. each may be NULL; a status from it ends the walk. */
MUST_CHECK status table_block_iterate(const struct table_block *block,
                                      status (*each)(void *arg, const struct entry *entry),
                                      void *arg);

static inline u64
table_block_token(const struct table_block *block, u32 index)
{
    if (block->token_width == 0) return block->token_base;
    /* Eight bytes that end with the delta: what stands before the array is always longer. */
    const u8 *end = block->tokens + (size_t)(index + 1) * block->token_width;
    return block->token_base + (load_u64(end - 8) >> (64 - 8 * block->token_width));
}

/* ---- index ---- */

struct ONDISK table_index_header {
    u32 block_count;
    u32 run_count;
    u32 separator_bytes;
    u32 reserved;
};
static_assert(sizeof(struct table_index_header) == 16, "keeps the token array aligned");

#define TABLE_RUN_SAME_KEY 0x80000000u /* in a separator's end */

/* Blocks of a packed index that share one far offset. All but the last of a group's end within 64
 * KiB of it when blocks are of the usual size. */
#define TABLE_INDEX_GROUP 16u
static_assert((TABLE_INDEX_GROUP - 1) * TABLE_BLOCK_BYTES <= UINT16_MAX, "usual blocks fit");

/* Where the arrays of an index are: in a section as it is in the file, or in a packed one, which
 * needs 2.5 bytes for a block's offset instead of 5. Indexes stay in memory, so a table packs its
 * own when it is opened:
 *
 *   packed:     | first tokens u64 * n | far offsets u64 * (n / 16 + 1) | run blocks u32 * r
 *               | run separator ends u32 * r | near offsets u16 * (n+1) | separators |
 */
struct table_index {
    u8 *section; /* owned by the table; NULL when borrowed */
    u64 section_bytes;
    u64 block_bytes; /* where the last block ends */
    u32 block_count;
    u32 run_count;
    const u64 *tokens;
    const u32 *offsets_low; /* and offsets_high: NULL when packed */
    const u32 *run_blocks;
    const u32 *run_ends;
    const u8 *offsets_high;
    const u8 *separators;
    const u64 *offsets_far;  /* packed: where each group begins */
    const u16 *offsets_near; /* packed: of each block, counted from there; NULL when not packed */
};

static inline u64
table_index_bytes(u64 block_count, u64 run_count, u64 separator_bytes)
{
    return sizeof(struct table_index_header) + block_count * 8 + (block_count + 1) * 5 +
           run_count * 8 + separator_bytes;
}

static inline u64
table_index_offset(const struct table_index *index, u32 block)
{
    if (index->offsets_near != NULL)
        return index->offsets_far[block / TABLE_INDEX_GROUP] + index->offsets_near[block];
    return (u64)index->offsets_high[block] << 32 | index->offsets_low[block];
}

/* What the packed form of a decoded index needs; 0 when a group of its blocks is too long for it:
 * where values are larger, there are fewer blocks, and their offsets matter less. */
u64 table_index_packed_bytes(const struct table_index *index);
/* Into that many bytes, 8-byte aligned, which out points into. */
void table_index_pack(const struct table_index *index, u8 *packed, struct table_index *out);

/* section must be 8-byte aligned and stay in place. */
MUST_CHECK status table_index_decode(struct bytes section, u64 block_bytes,
                                     struct table_index *out);
/* The block in which (token, key) is, if it is in the table at all; for a seek, too: the first
 * entry at or after it is in this block, or is the next block's first. */
u32 table_index_find(const struct table_index *index, u64 token, struct bytes key);
/* The number of first tokens that are <= token: no block from there on has it, or less. */
u32 table_index_upper_bound(const struct table_index *index, u64 token);
/* Asks for the memory that these will look at first. The token lies between the two others, which
 * the table has. */
void table_index_prefetch(const struct table_index *index, u64 token_first, u64 token_last,
                          u64 token);

/* ---- footer ---- */

#define TABLE_FOOTER_BYTES 4096u
#define TABLE_MAGIC        0x31454c4241545644ull /* "DVTABLE1" */
#define TABLE_FORMAT       1u

struct ONDISK table_footer {
    u64 magic;
    u32 format;
    u32 block_count;
    u64 file_id;
    u64 file_bytes;
    u64 token_first, token_last;
    u64 seq_min, seq_max;
    u64 version_min, version_max;
    u64 expire_min_ms, expire_max_ms;
    u64 entry_count, delete_count, expiring_count;
    u64 data_bytes;
    u16 keyspace;
    u8 codec;
    u8 filter_bits;
    u8 filter_probes;
    u8 entries_all_expire;
    u8 reserved[2];
    u64 block_bytes; /* blocks lie in [0, block_bytes), the index follows */
    u64 index_bytes; /* the filter follows */
    u64 filter_bytes;
    u32 index_crc;
    u32 filter_crc;
    u32 blob_ref_count;
    u32 reserved2;
    struct table_blob_ref blob_refs[TABLE_BLOB_REFS_MAX];
    u8 zeros[TABLE_FOOTER_BYTES - 1204];
    u32 crc; /* CRC32C of the above, seeded by the place */
};
static_assert(sizeof(struct table_footer) == TABLE_FOOTER_BYTES, "a page");
static_assert(sizeof(struct table_blob_ref) == 16, "stored as it is");

/* page: the last TABLE_FOOTER_BYTES of a file of file_bytes. *what_out names what is wrong. */
MUST_CHECK status table_footer_decode(struct bytes page, u64 file_id, u64 file_bytes,
                                      struct table_footer *out, const char **what_out);
/* file_hash is not in the footer (it covers it). */
void table_footer_to_meta(const struct table_footer *footer, struct table_meta *out);
/* Whether the footer tells what the manifest tells. */
bool table_footer_matches(const struct table_footer *footer, const struct table_meta *meta);

/* ---- blob files ----
 *
 *   | header 64 | record | record | ... | zeros | footer 64 |    footer at the end of the last page
 *   record: | header 32 | key | value | zeros to a multiple of 16 |
 */

#define BLOB_MAGIC        0x31424f4c42564b44ull /* "DKVBLOB1" */
#define BLOB_FOOTER_MAGIC 0x31444e4542564b44ull /* "DKVBEND1" */
#define BLOB_RECORD_MAGIC 0x31435242u           /* "BRC1" */
#define BLOB_FORMAT       1u
#define BLOB_ALIGNMENT    16u

struct ONDISK blob_file_header {
    u64 magic;
    u32 format;
    u32 reserved;
    u64 file_id;
    u8 zeros[36];
    u32 crc; /* of the above */
};
static_assert(sizeof(struct blob_file_header) == 64, "on disk");

struct ONDISK blob_record_header {
    u32 magic;
    u32 crc; /* CRC32C of the rest of the header and the key, seeded by the place */
    u32 value_crc;
    u32 value_size;
    u16 key_size;
    u8 reserved[6];
    u64 token;
};
static_assert(sizeof(struct blob_record_header) == 32, "on disk");

struct ONDISK blob_footer {
    u64 magic;
    u64 file_id;
    u64 file_bytes;
    u64 records_end; /* offset after the last record */
    u64 record_count;
    u64 content_hash; /* XXH3 of [0, records_end) */
    u8 zeros[12];
    u32 crc; /* of the above */
};
static_assert(sizeof(struct blob_footer) == 64, "on disk");

/* What a value costs in a blob file; blob_refs of a table count these bytes. */
static inline u64
blob_record_bytes(u64 key_size, u64 value_size)
{
    return align_up(sizeof(struct blob_record_header) + key_size + value_size, BLOB_ALIGNMENT);
}
static inline u64
blob_header_bytes(void)
{
    return sizeof(struct blob_file_header);
}

struct blob_record {
    u64 token;
    struct bytes key, value;
    u32 value_crc;
    u64 bytes; /* with header and padding */
};
MUST_CHECK status blob_header_decode(struct bytes page, u64 file_id, const char **what_out);
MUST_CHECK status blob_footer_decode(struct bytes page, u64 file_id, u64 file_bytes,
                                     struct blob_footer *out, const char **what_out);
/* bytes: from the record's header to at least its end. Checks both checksums. ST_INCOMPLETE with
 * out->bytes set when there are fewer. */
MUST_CHECK status blob_record_decode(struct bytes bytes, u64 file_id, u64 offset,
                                     struct blob_record *out, const char **what_out);

/* ---- varints: seven bits a byte, low first; ten bytes at most ---- */

static inline u8 *
varint_put(u8 *p, u64 value)
{
    while (value >= 0x80) {
        *p++ = (u8)(value | 0x80);
        value >>= 7;
    }
    *p++ = (u8)value;
    return p;
}

/* NULL when it is cut off or longer than 64 bits. */
static inline const u8 *
varint_get(const u8 *p, const u8 *end, u64 *out)
{
    u64 value = 0;
    for (u32 shift = 0; shift < 64 && p < end; shift += 7) {
        u8 byte = *p++;
        if (shift == 63 && byte > 1) return NULL;
        value |= (u64)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *out = value;
            return p;
        }
    }
    return NULL;
}

static inline u64
zigzag_encode(u64 delta)
{
    return (delta << 1) ^ (0 - (delta >> 63));
}

static inline u64
zigzag_decode(u64 value)
{
    return (value >> 1) ^ (0 - (value & 1));
}

#endif
