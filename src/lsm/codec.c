/* SPDX-License-Identifier: MIT
 *
 * codec.c -- see codec.h.
 *
 * Both libraries like to keep their state on the stack or in malloc; here it always comes from the
 * caller or the budget, because fiber stacks are 64 KiB and isa-l's states are larger than that.
 * Deflate runs at igzip's level 1, the fastest one that still uses dynamic Huffman tables.
 */
#include "lsm/codec.h"

#include "base/fault.h"

#include <isa-l/igzip_lib.h>
#include <lz4.h>

#define DEFLATE_LEVEL 1u

struct deflate_state {
    struct isal_zstream stream;
    u8 level_buffer[ISAL_DEF_LVL1_SMALL] ALIGNED(16);
};

size_t
codec_state_bytes(enum lsm_codec codec)
{
    switch (codec) {
    case LSM_CODEC_NONE:
    case LSM_CODEC_COUNT:
        return 0;
    case LSM_CODEC_LZ4:
        return (size_t)LZ4_sizeofState();
    case LSM_CODEC_DEFLATE:
        return sizeof(struct deflate_state);
    }
    return 0;
}

static u32
deflate_compress(struct deflate_state *state, const u8 *source, u32 size, u8 *target, u32 capacity)
{
    struct isal_zstream *stream = &state->stream;
    isal_deflate_stateless_init(stream);
    stream->level = DEFLATE_LEVEL;
    stream->level_buf = state->level_buffer;
    stream->level_buf_size = sizeof(state->level_buffer);
    stream->gzip_flag = IGZIP_DEFLATE;
    stream->flush = NO_FLUSH;
    stream->end_of_stream = 1;
    stream->next_in = (u8 *)(uintptr_t)source; /* not written to */
    stream->avail_in = size;
    stream->next_out = target;
    stream->avail_out = capacity;
    if (isal_deflate_stateless(stream) != COMP_OK || stream->avail_in != 0) return 0;
    return stream->total_out;
}

u32
codec_compress(enum lsm_codec codec, void *state, const u8 *source, u32 size, u8 *target,
               u32 capacity)
{
    CHECK(size > 0 && size <= LZ4_MAX_INPUT_SIZE && capacity <= INT32_MAX);
    if (capacity == 0) return 0;
    switch (codec) {
    case LSM_CODEC_NONE:
    case LSM_CODEC_COUNT:
        return 0;
    case LSM_CODEC_LZ4: {
        int written = LZ4_compress_fast_extState(state, (const char *)source, (char *)target,
                                                 (int)size, (int)capacity, 1);
        return written > 0 ? (u32)written : 0;
    }
    case LSM_CODEC_DEFLATE:
        return deflate_compress(state, source, size, target, capacity);
    }
    return 0;
}

static status
deflate_decompress(struct budget *budget, struct bytes source, u8 *target, u32 raw_size)
{
    struct inflate_state *state = mem_alloc(budget, sizeof(*state));
    if (state == NULL) return MARKED("lsm.codec.no_memory", ST_NO_MEMORY);
    isal_inflate_init(state);
    state->crc_flag = ISAL_DEFLATE;
    state->next_in = (u8 *)(uintptr_t)source.data; /* not written to */
    state->avail_in = (u32)source.size;
    state->next_out = target;
    state->avail_out = raw_size;
    int result = isal_inflate_stateless(state);
    bool whole = result == ISAL_DECOMP_OK && state->total_out == raw_size && state->avail_in == 0;
    mem_free(budget, state, sizeof(*state));
    return whole ? ST_OK : MARKED("lsm.codec.deflate_bad", ST_CORRUPT);
}

status
codec_decompress(enum lsm_codec codec, struct budget *budget, struct bytes source, u8 *target,
                 u32 raw_size)
{
    if (source.size == 0 || source.size > INT32_MAX || raw_size == 0 || raw_size > INT32_MAX)
        return MARKED("lsm.codec.sizes_bad", ST_CORRUPT);
    switch (codec) {
    case LSM_CODEC_NONE:
        if (source.size != raw_size) return MARKED("lsm.codec.none_bad", ST_CORRUPT);
        memcpy(target, source.data, raw_size);
        return ST_OK;
    case LSM_CODEC_LZ4: {
        int written = LZ4_decompress_safe((const char *)source.data, (char *)target,
                                          (int)source.size, (int)raw_size);
        return written == (int)raw_size ? ST_OK : MARKED("lsm.codec.lz4_bad", ST_CORRUPT);
    }
    case LSM_CODEC_DEFLATE:
        return deflate_decompress(budget, source, target, raw_size);
    case LSM_CODEC_COUNT:
        break;
    }
    return MARKED("lsm.codec.unknown", ST_CORRUPT);
}

const char *
codec_name(enum lsm_codec codec)
{
    switch (codec) {
    case LSM_CODEC_NONE:
        return "none";
    case LSM_CODEC_LZ4:
        return "lz4";
    case LSM_CODEC_DEFLATE:
        return "deflate";
    case LSM_CODEC_COUNT:
        break;
    }
    return "unknown";
}
