/* SPDX-License-Identifier: MIT
 *
 * keys.c -- see keys.h. The sum that zipf needs is not added up over billions of keys: behind the
 * first terms a formula gives it, and a key that is inserted adds its own term. Ranks are spread by
 * a multiplier that shares no divisor with the count; the window remembers inserts that ended
 * before an earlier one.
 */
#include "load/keys.h"

#include <math.h>

/* Terms of the sum that are added one by one; behind them Euler and Maclaurin's formula is exact to
 * the last digits. */
#define ZETA_TERMS 10000u

static double
zeta_sum(u64 count, double theta)
{
    double sum = 0;
    u64 terms = MIN(count, ZETA_TERMS);
    for (u64 i = 1; i <= terms; i++)
        sum += pow((double)i, -theta);
    if (count == terms) return sum;
    double from = (double)terms, to = (double)count;
    sum += (pow(to, 1 - theta) - pow(from, 1 - theta)) / (1 - theta);
    sum += (pow(to, -theta) - pow(from, -theta)) / 2;
    sum += theta / 12 * (pow(from, -theta - 1) - pow(to, -theta - 1));
    return sum;
}

static void
zipf_settle(struct zipf *zipf)
{
    double zeta2 = 1 + pow(0.5, zipf->theta);
    double n = (double)zipf->count;
    zipf->eta =
        zipf->count <= 2 ? 0 : (1 - pow(2.0 / n, 1 - zipf->theta)) / (1 - zeta2 / zipf->zeta);
}

void
zipf_init(struct zipf *zipf, u64 count, double theta)
{
    CHECK(count > 0 && theta > 0 && theta < 1);
    *zipf = (struct zipf){.count = count,
                          .theta = theta,
                          .alpha = 1 / (1 - theta),
                          .zeta = zeta_sum(count, theta),
                          .second = 1 + pow(0.5, theta)};
    zipf_settle(zipf);
}

void
zipf_grow(struct zipf *zipf)
{
    zipf->count++;
    zipf->zeta += pow((double)zipf->count, -zipf->theta);
    zipf_settle(zipf);
}

u64
zipf_rank(const struct zipf *zipf, double u)
{
    double at = u * zipf->zeta;
    if (at < 1 || zipf->count == 1) return 0;
    if (at < zipf->second || zipf->count == 2) return 1;
    double rank = (double)zipf->count * pow(zipf->eta * u - zipf->eta + 1, zipf->alpha);
    return MIN((u64)rank, zipf->count - 1);
}

static u64
divisor(u64 a, u64 b)
{
    while (b != 0) {
        u64 rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

void
keys_init(struct keys *keys, enum key_order order, u64 count, double theta, u64 thread, u64 threads,
          u64 *window, u64 window_bits)
{
    CHECK(count > 0 && thread < threads);
    CHECK(is_power_of_two(window_bits) && window_bits >= 64);
    *keys = (struct keys){.order = order,
                          .count = count,
                          .thread = thread,
                          .threads = threads,
                          .multiplier = 1,
                          .sequence = thread % count,
                          .window = window,
                          .window_bits = window_bits};
    if (order == KEYS_ZIPF || order == KEYS_LATEST) zipf_init(&keys->zipf, count, theta);
    /* The golden section of count leaves neighbouring ranks far apart. */
    keys->multiplier = MAX((u64)((double)count * 0.6180339887498949), 1u);
    while (divisor(keys->multiplier, count) != 1)
        keys->multiplier++;
}

/* The n-th of all keys in this thread's view. */
static u64
keys_number(const struct keys *keys, u64 n)
{
    if (n < keys->count) return n;
    return keys->count + (n - keys->count) * keys->threads + keys->thread;
}

u64
keys_pick(struct keys *keys, struct prng *prng)
{
    switch (keys->order) {
    case KEYS_UNIFORM:
        return prng_below(prng, keys->count);
    case KEYS_ZIPF: {
        u64 rank = zipf_rank(&keys->zipf, (double)(prng_u64(prng) >> 11) * 0x1p-53);
        if (keys->count <= UINT32_MAX) return rank * keys->multiplier % keys->count;
        return (u64)((unsigned __int128)rank * keys->multiplier % keys->count);
    }
    case KEYS_LATEST: {
        u64 rank = zipf_rank(&keys->zipf, (double)(prng_u64(prng) >> 11) * 0x1p-53);
        return keys_number(keys, keys->count + keys->inserts_done - 1 - rank);
    }
    case KEYS_SEQUENTIAL: {
        u64 number = keys->sequence;
        keys->sequence += keys->threads;
        if (keys->sequence >= keys->count) keys->sequence = keys->thread % keys->count;
        return number;
    }
    }
    return 0;
}

u64
keys_insert(struct keys *keys)
{
    CHECK(keys->inserts_begun - keys->inserts_done < keys->window_bits);
    return keys_number(keys, keys->count + keys->inserts_begun++);
}

void
keys_insert_done(struct keys *keys, u64 number)
{
    u64 n = (number - keys->count - keys->thread) / keys->threads;
    CHECK(n >= keys->inserts_done && n < keys->inserts_begun);
    u64 mask = keys->window_bits - 1;
    keys->window[(n & mask) / 64] |= 1ull << (n & 63);
    for (;;) {
        u64 *word = &keys->window[(keys->inserts_done & mask) / 64];
        u64 bit = 1ull << (keys->inserts_done & 63);
        if ((*word & bit) == 0) break;
        *word &= ~bit;
        keys->inserts_done++;
        if (keys->order == KEYS_LATEST) zipf_grow(&keys->zipf);
    }
}
