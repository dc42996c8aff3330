/* SPDX-License-Identifier: MIT
 *
 * crc.h -- CRC32C (Castagnoli, through isa-l) for everything stored or sent, and CRC16-XMODEM for
 * Redis Cluster slots (poly 0x1021, init 0, no reflection; "123456789" gives 0x31C3).
 */
#ifndef DISTKV_BASE_CRC_H
#define DISTKV_BASE_CRC_H

#include "base/types.h"

/* Continues from seed: crc32c(crc32c(0, a), b) == crc32c(0, ab). Seeding with where the bytes
 * belong makes bytes read from the wrong place fail their check. */
u32 crc32c(u32 seed, const void *data, size_t size);
u16 crc16_xmodem(const void *data, size_t size);

#endif
