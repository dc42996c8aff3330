/* SPDX-License-Identifier: MIT
 *
 * seeds.h -- which seeds a test of seeds runs: 1 to `count`, or what the environment says.
 *
 *     SIM_SEEDS=5000 build/bin/test_replicate      1 to 5000
 *     SIM_FIRST=800 SIM_SEEDS=900 ...              800 to 900
 *     SIM_SEED=17 ...                              this one
 */
#ifndef DISTKV_TESTS_SEEDS_H
#define DISTKV_TESTS_SEEDS_H

#include <stdlib.h>

#include "base/types.h"

struct seeds {
    u64 first, last;
};

static inline u64
seeds_number(const char *name, u64 otherwise)
{
    const char *text = getenv(name);
    return text == NULL || *text == '\0' ? otherwise : strtoull(text, NULL, 10);
}

/* A single seed, which is to be looked at closely. */
static inline bool
seeds_is_one(void)
{
    return getenv("SIM_SEED") != NULL;
}

/* Somebody wants seeds, and no stories. */
static inline bool
seeds_are_chosen(void)
{
    return seeds_is_one() || getenv("SIM_FIRST") != NULL;
}

static inline struct seeds
seeds_chosen(u64 count)
{
    u64 only = seeds_number("SIM_SEED", 0);
    if (only != 0) return (struct seeds){only, only};
    return (struct seeds){seeds_number("SIM_FIRST", 1), seeds_number("SIM_SEEDS", count)};
}

static inline u64
seeds_count(const struct seeds *seeds)
{
    return seeds->last - seeds->first + 1;
}

/* Runs them until `most` have failed; how many did. */
static inline u32
seeds_run(const struct seeds *seeds, u32 most, bool (*run)(u64 seed))
{
    u32 failed = 0;
    for (u64 seed = seeds->first; seed <= seeds->last && failed < most; seed++)
        failed += !run(seed);
    return failed;
}

#endif
