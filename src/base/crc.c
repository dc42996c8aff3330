/* SPDX-License-Identifier: MIT */
#include "base/crc.h"

#include <isa-l/crc.h>

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

/* One nibble a step: 32 bytes of table instead of 512, and keys (or tags) are short. */
static const u16 crc16_nibble[16] = {
    0x0000, 0x1021, 0x2042, 0x3063, 0x4084, 0x50a5, 0x60c6, 0x70e7,
    0x8108, 0x9129, 0xa14a, 0xb16b, 0xc18c, 0xd1ad, 0xe1ce, 0xf1ef,
};

u16
crc16_xmodem(const void *data, size_t size)
{
    const u8 *p = data;
    u16 crc = 0;
    for (size_t i = 0; i < size; i++) {
        crc = (u16)(crc << 4) ^ crc16_nibble[(crc >> 12) ^ (p[i] >> 4)];
        crc = (u16)(crc << 4) ^ crc16_nibble[(crc >> 12) ^ (p[i] & 15)];
    }
    return crc;
}
