/* SPDX-License-Identifier: MIT
 *
 * prng.h -- xoshiro256** seeded by splitmix64 (Blackman and Vigna, public domain algorithms).
 * Integers only, so that a seed gives the same stream on every machine. Not for secrets.
 */
#ifndef DISTKV_BASE_PRNG_H
#define DISTKV_BASE_PRNG_H

#include "base/types.h"

struct prng {
    u64 s[4];
};

static inline u64
splitmix64(u64 *state)
{
    u64 z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline void
prng_init(struct prng *prng, u64 seed)
{
    for (int i = 0; i < 4; i++)
        prng->s[i] = splitmix64(&seed);
}

static inline u64
prng_u64(struct prng *prng)
{
    u64 *s = prng->s;
    u64 x = s[1] * 5;
    u64 result = (x << 7 | x >> 57) * 9;
    u64 t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

/* Uniform in [0, bound); bound > 0 (Lemire's multiply-shift; the bias is below 2^-32 here). */
static inline u64
prng_below(struct prng *prng, u64 bound)
{
    CHECK(bound > 0);
    return (u64)(((unsigned __int128)prng_u64(prng) * bound) >> 64);
}

/* Uniform in [first, last], both included. */
static inline u64
prng_range(struct prng *prng, u64 first, u64 last)
{
    CHECK(first <= last);
    return last - first == UINT64_MAX ? prng_u64(prng) : first + prng_below(prng, last - first + 1);
}

/* True with probability numerator / denominator. */
static inline bool
prng_chance(struct prng *prng, u64 numerator, u64 denominator)
{
    return prng_below(prng, denominator) < numerator;
}

#endif
