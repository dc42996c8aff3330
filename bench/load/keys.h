/* SPDX-License-Identifier: MIT
 *
 * keys.h -- which key comes next. Pure: the randomness is passed in.
 *
 *   uniform      each of the keys as often
 *   zipf         the key of rank r about r^-theta as often as the first (Gray et al., "Quickly
 *                generating billion-record synthetic databases", 1994, as YCSB does); ranks are
 *                spread over the numbers by a permutation, so that neighbours are not alike
 *   latest       zipf counted back from the newest key
 *   sequential   one after another, each thread its own share, and again from the start
 *
 * Inserts. `count` keys are there at the start; threads add keys of their own behind them: thread t
 * of T inserts count + t, count + t + T, ... A thread's view of "all keys" is those at the start
 * and its own inserts that were acknowledged, as far as they have no gap.
 */
#ifndef DISTKV_BENCH_KEYS_H
#define DISTKV_BENCH_KEYS_H

#include "base/prng.h"

enum key_order { KEYS_UNIFORM, KEYS_ZIPF, KEYS_LATEST, KEYS_SEQUENTIAL };

struct zipf {
    u64 count;
    double theta, alpha, zeta, eta, second; /* second: below it u * zeta means rank 1 */
};

struct keys {
    /* configuration */
    enum key_order order;
    u64 count;
    u64 thread, threads;
    u64 multiplier; /* of the permutation; shares no factor with count */

    /* state */
    struct zipf zipf;
    u64 sequence;
    u64 inserts_begun;
    u64 inserts_done; /* without a gap */
    u64 window_bits;  /* a power of two: inserts that may be under way */
    u64 *window;      /* a bit for each; the caller's memory, window_bits / 8 bytes */
};

/* theta: above 0, below 1. count: at least 1. */
void zipf_init(struct zipf *zipf, u64 count, double theta);
/* One more key; cheap. */
void zipf_grow(struct zipf *zipf);
/* A rank, 0 the most frequent; u is uniform in [0, 1). */
u64 zipf_rank(const struct zipf *zipf, double u);

/* window: zeroed, window_bits a power of two of at least 64 and more than inserts are ever under
 * way. */
void keys_init(struct keys *keys, enum key_order order, u64 count, double theta, u64 thread,
               u64 threads, u64 *window, u64 window_bits);
u64 keys_pick(struct keys *keys, struct prng *prng);
/* The number of a new key. */
u64 keys_insert(struct keys *keys);
/* It is there now (or will never be). */
void keys_insert_done(struct keys *keys, u64 number);

#endif
