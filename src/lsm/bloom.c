/* SPDX-License-Identifier: MIT
 *
 * bloom.c -- see bloom.h. Sizing and folding only; probing is inline there, for it is on the way
 * of every read.
 */
#include "lsm/bloom.h"

#define FOLDABLE_LINES 64u /* at most */

u64
bloom_line_count(u64 key_count, u32 bits_per_key)
{
    unsigned __int128 bits = (unsigned __int128)key_count * bits_per_key;
    u64 lines = (u64)((bits + BLOOM_LINE_BITS - 1) / BLOOM_LINE_BITS);
    if (lines == 0) return 1;
    u64 multiple = 1; /* for which a sixteenth is the most that is wasted */
    while (multiple < FOLDABLE_LINES && multiple * 32 <= lines)
        multiple *= 2;
    return align_up(lines, multiple);
}

u32
bloom_probe_count(u32 bits_per_key)
{
    /* ln 2 * bits is best for a plain filter; the uneven fill of lines wants a little less. */
    return (u32)CLAMP((bits_per_key * 6u + 5u) / 10u, 1u, BLOOM_PROBES_MAX);
}

u64
bloom_fold(u8 *lines, u64 line_count, u64 line_count_min)
{
    while (line_count % 2 == 0 && line_count / 2 >= MAX(line_count_min, 1)) {
        for (u64 i = 0; i < line_count / 2; i++) {
            for (u32 j = 0; j < BLOOM_LINE_BYTES; j += 8) {
                u64 word = load_u64(lines + 2 * i * BLOOM_LINE_BYTES + j) |
                           load_u64(lines + (2 * i + 1) * BLOOM_LINE_BYTES + j);
                store_u64(lines + i * BLOOM_LINE_BYTES + j, word);
            }
        }
        line_count /= 2;
    }
    return line_count;
}
