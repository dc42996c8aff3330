/* SPDX-License-Identifier: MIT
 *
 * value.h -- values that describe themselves, so that a read can be judged without memory of what
 * was written. Pure.
 *
 *   offset size
 *        0    8  check: a hash of all that follows in the head and of the value's size
 *        8    8  number of the key it was written to
 *       16    4  version: the how-many-th write of that key in its run
 *       20    3  run: drawn at the start of a program; values of earlier runs stay readable
 *       23    1  compressible part, percent
 *       24       content: pieces of a fixed pool of noise, chosen by and mixed with the check
 *
 * A value that is whole follows from its head, byte by byte; so a cut, damaged or mixed value is
 * found by comparing, at the speed of memory. Making one costs little more than copying it. The
 * mixing keeps equal stretches of the pool from being equal in two values, which a compressing
 * server would find.
 *
 * Values under VALUE_HEAD_BYTES have no head and cannot be judged.
 */
#ifndef DISTKV_BENCH_VALUE_H
#define DISTKV_BENCH_VALUE_H

#include "base/types.h"

#define VALUE_HEAD_BYTES  24u
#define VALUE_PIECE_BYTES 4096u
#define VALUE_POOL_BYTES  (64u << 10)

struct values {
    u32 size_min, size_max;
    u32 run;          /* 24 bits */
    u32 compressible; /* percent */
    u64 pool[(VALUE_POOL_BYTES + VALUE_PIECE_BYTES) / 8];
};

struct value_stamp {
    u64 key;
    u32 version;
    u32 run;
};

enum value_verdict {
    VALUE_RIGHT,
    VALUE_FOREIGN, /* whole, but another key's */
    VALUE_BROKEN,  /* cut, damaged, or not ours at all */
};

void values_init(struct values *values, u32 size_min, u32 size_max, u32 compressible, u32 run);
/* Of the value that value_write makes for these. */
u32 value_size(const struct values *values, u64 key, u32 version);
/* out has `size` bytes, which value_size gave. */
void value_write(const struct values *values, u64 key, u32 version, u8 *out, u32 size);
/* stamp_out is set for RIGHT and FOREIGN. */
enum value_verdict value_judge(const struct values *values, u64 key, struct bytes value,
                               struct value_stamp *stamp_out);

#endif
