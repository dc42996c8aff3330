/* SPDX-License-Identifier: MIT
 *
 * crc.c -- see crc.h. One place that binds to isa-l, so that every checksum in files and frames
 * is made the same way.
 */
#include "base/crc.h"

#include <isa-l/crc.h>

#include "base/crc16_table.h"

/* isa-l's code for AVX leaves the upper parts of the wide registers in use, and SSE code behind it, in
 * whatever function, takes several times as long until somebody clears them: XXH3 of the 4 KiB that a
 * checksum was made of 1,100 ns instead of 320 (bench_base, crc_then_hash). */
#if defined(__x86_64__)
__attribute__((target("avx"))) static void
upper_parts_clear(void)
{
    __builtin_ia32_vzeroupper();
}

static void
wide_registers_leave(void)
{
    if (__builtin_cpu_supports("avx")) upper_parts_clear();
}
#else
static void
wide_registers_leave(void)
{
}
#endif

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
    wide_registers_leave();
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
