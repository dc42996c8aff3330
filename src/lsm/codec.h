/* SPDX-License-Identifier: MIT
 *
 * codec.h -- compression of table blocks: none, LZ4, and raw deflate by isa-l. Pure functions over
 * memory; what is decompressed is hostile input and never writes past its target.
 */
#ifndef DISTKV_LSM_CODEC_H
#define DISTKV_LSM_CODEC_H

#include "base/mem.h"
#include "base/status.h"
#include "lsm/lsm.h"

/* What codec_compress needs to work in; tens of KiB, so it is never on a fiber's stack. 0 for none.
 * 16-byte aligned. */
size_t codec_state_bytes(enum lsm_codec codec);
/* Compresses into at most capacity bytes; 0 when it does not fit (or the codec is none): the caller
 * stores the bytes as they are. */
u32 codec_compress(enum lsm_codec codec, void *state, const u8 *source, u32 size, u8 *target,
                   u32 capacity);
/* Fills target with exactly raw_size bytes or returns ST_CORRUPT. ST_NO_MEMORY when budget has no
 * room for the decoder's state. */
MUST_CHECK status codec_decompress(enum lsm_codec codec, struct budget *budget, struct bytes source,
                                   u8 *target, u32 raw_size);
/* "none", "lz4", "deflate": as options and metrics name them. */
const char *codec_name(enum lsm_codec codec);

#endif
