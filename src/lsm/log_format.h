/* SPDX-License-Identifier: MIT
 *
 * log_format.h -- the log on disk.
 *
 *   DIR/l0000000000000007      a segment; its number is in the name, in hexadecimal, and is used
 *                              once: a recycled file gets a new name and number
 *
 *   | block 0: header | block 1 | block 2 | ...            | zeros, or blocks of an older number |
 *
 *   block, 4096 bytes:  | struct log_block: 40 | used bytes of the record stream | zeros |
 *
 * The record stream is what the blocks hold, one after the other: records (struct log_record and
 * payload) lie in it back to back and may span blocks, but not segments.
 *
 * A block's CRC is seeded with the segment's number and the block's offset, so a block of an older
 * life of the file, or one that the disk put to the wrong place, is not valid. durable_offset says
 * how much of this segment was known to be durable when the block was written: this is what lets
 * recovery tell damage from a tail that nobody was promised. durable_seq says the same in numbers.
 */
#ifndef DISTKV_LSM_LOG_FORMAT_H
#define DISTKV_LSM_LOG_FORMAT_H

#include "base/limits.h"
#include "base/types.h"

#define LOG_BLOCK_BYTES IO_ALIGNMENT
#define LOG_NAME_BYTES  17u /* l, 16 digits; no terminator counted */
#define LOG_TEMPORARY   "l.new"
#define LOG_FORMAT      1u

enum log_block_kind {
    LOG_BLOCK_HEADER = 1, /* struct log_segment_header */
    LOG_BLOCK_RECORDS = 2,
    LOG_BLOCK_SEAL = 3, /* holds nothing: attests what is durable once the log is idle */
};

struct ONDISK log_block {
    u32 crc;          /* CRC32C of the other 4092 bytes, seeded: log_block_crc */
    u16 used;         /* bytes of the record stream in this block */
    u16 record_first; /* where in them the first record begins; LOG_NO_RECORD: none does */
    u64 segment;
    u64 durable_offset;
    u64 durable_seq;
    u32 index; /* of the block: offset / 4096 */
    u32 kind;
};
static_assert(sizeof(struct log_block) == 40, "stored as it is");

#define LOG_NO_RECORD           0xffffu
#define LOG_BLOCK_PAYLOAD_BYTES (LOG_BLOCK_BYTES - (u32)sizeof(struct log_block))

struct ONDISK log_segment_header {
    u8 magic[8]; /* LOG_MAGIC */
    u32 format;
    u32 block_bytes;
    u64 segment;
    u64 predecessor;     /* number of the segment before; 0: there was none */
    u64 predecessor_end; /* offset behind its last valid block */
    u64 predecessor_seq; /* last number in it or before it in the log */
    u64 seq_base;        /* the first record here has the number after this one */
    u64 segment_bytes;
    u64 created_ms;
    u64 reserved[4];
};
static_assert(sizeof(struct log_segment_header) == 104, "stored as it is");
#define LOG_MAGIC "DKVLOG\r\n"

u32 log_block_crc(const void *block, u64 segment, u64 offset);
/* "DIR/l..." into path (LSM_PATH_BYTES). */
void log_path(char *path, const char *dir, u64 segment);
/* False: not the name of a segment. */
bool log_name_parse(const char *name, u64 *segment_out);

#endif
