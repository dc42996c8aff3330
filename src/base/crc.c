/* SPDX-License-Identifier: MIT
 *
 * crc.c -- see crc.h. One place that binds to isa-l, so that every checksum in files and frames
 * is made the same way.
 */
#include "base/crc.h"

#include <isa-l/crc.h>

#include "base/crc16_table.h"

u32
crc32c(u32 seed, const void *data, size_t size)
{
    /* isa-l takes an int length: longer inputs go in pieces. */
    const u8 *p = data;
    u32 crc = ~seed;
    while (size > 0) {
        size_t part = MIN(size, (size_t)1 << 30);
        crc = crc32_iscsi((unsigned char *)(uintptr_t)p, (int)part, crc);
        p += part;
        size -= part;
    }
    return ~crc;
}

u16
crc16_xmodem(const void *data, size_t size)
{
    const u8 *p = data;
    u16 crc = 0;
    for (; size >= 4; p += 4, size -= 4) {
        crc = crc16_table[3][p[0] ^ (crc >> 8)] ^ crc16_table[2][p[1] ^ (crc & 255)] ^
              crc16_table[1][p[2]] ^ crc16_table[0][p[3]];
    }
    for (; size > 0; p++, size--)
        crc = (u16)(crc << 8) ^ crc16_table[0][p[0] ^ (crc >> 8)];
    return crc;
}
