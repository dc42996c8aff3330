/* SPDX-License-Identifier: MIT
 *
 * bloom.h -- blocked Bloom filter: all bits of a key lie in one 512-bit line, so a probe costs one
 * cache miss. F. Putze, P. Sanders, J. Singler, "Cache-, hash- and space-efficient Bloom filters",
 * 2007; the probe sequence after RocksDB's FastLocalBloom.
 *
 * The line of a key is floor(h * line_count / 2^64). Halving an even line_count therefore maps
 * exactly two neighbouring lines onto one, which is how a filter that was sized for more keys than
 * came is folded (bloom_fold) without knowing the keys.
 *
 * Who chooses the size: bits per key come from who makes the table (FILTER_BITS_* in
 * levels_internal.h: flush.c, compaction.c), and so does the most keys that it may have;
 * table_writer.c takes the lines for these (filter_reserve; fewer when memory is short) and folds
 * them to the keys that came (filter_write).
 *
 * The input is hash_key(key, 0). It is remixed, because the keys of one table share the top bits of
 * their tokens, and a token is made of the same hash.
 */
#ifndef DISTKV_LSM_BLOOM_H
#define DISTKV_LSM_BLOOM_H

#include "base/types.h"

#define BLOOM_LINE_BYTES 64u
#define BLOOM_LINE_BITS  512u
#define BLOOM_PROBES_MAX 16u

/* Lines for that many keys; at least 1, and a multiple of 64 when large, so that it can be folded,
 * of less when small, so that this wastes little. */
u64 bloom_line_count(u64 key_count, u32 bits_per_key);
u32 bloom_probe_count(u32 bits_per_key);
/* Merges neighbouring lines while at least line_count_min are left; returns how many are. */
u64 bloom_fold(u8 *lines, u64 line_count, u64 line_count_min);

static inline u64
bloom_mix(u64 hash)
{
    hash = (hash ^ (hash >> 32)) * 0xd6e8feb86659fd93ull;
    hash = (hash ^ (hash >> 32)) * 0xd6e8feb86659fd93ull;
    return hash ^ (hash >> 32);
}

static inline const u8 *
bloom_line(const u8 *lines, u64 line_count, u64 mixed)
{
    return lines + (u64)(((unsigned __int128)mixed * line_count) >> 64) * BLOOM_LINE_BYTES;
}

static inline void
bloom_add(u8 *lines, u64 line_count, u32 probes, u64 key_hash)
{
    u64 h = bloom_mix(key_hash);
    u8 *line = lines + (bloom_line(lines, line_count, h) - lines);
    h *= 0x9e3779b97f4a7c15ull;
    for (u32 i = 0; i < probes; i++) {
        u32 bit = (u32)(h >> 55);
        line[bit >> 3] |= (u8)(1u << (bit & 7));
        h *= 0x9e3779b97f4a7c15ull;
    }
}

static inline void
bloom_prefetch(const u8 *lines, u64 line_count, u64 key_hash)
{
    __builtin_prefetch(bloom_line(lines, line_count, bloom_mix(key_hash)));
}

/* False: surely not added. */
static inline bool
bloom_may_contain(const u8 *lines, u64 line_count, u32 probes, u64 key_hash)
{
    u64 h = bloom_mix(key_hash);
    const u8 *line = bloom_line(lines, line_count, h);
    h *= 0x9e3779b97f4a7c15ull;
    for (u32 i = 0; i < probes; i++) {
        u32 bit = (u32)(h >> 55);
        if (!(line[bit >> 3] & (1u << (bit & 7)))) return false;
        h *= 0x9e3779b97f4a7c15ull;
    }
    return true;
}

#endif
