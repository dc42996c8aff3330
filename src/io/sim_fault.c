/* SPDX-License-Identifier: MIT
 *
 * sim_fault.c -- BUGGIFY and MARK of the simulated link.
 *
 * After FoundationDB: a site is active in a quarter of the runs, and an active one fires in a
 * quarter of its passes, so a run has character. Every site draws from its own stream (seed, name,
 * count), so a new site does not move the others.
 */
#include "base/fault.h"

#include "base/hash.h"
#include "io/sim_internal.h"

#define SITE_COUNT_MAX 512u

struct site {
    const char *name;
    u64 hash;
    u64 count;
};

/* Open addressing; sites stay for the life of the process, their counts for one run. */
static struct site sites[SITE_COUNT_MAX];
static u64 run_seed;
static bool enabled;

void
sim_fault_reset(u64 seed, bool buggify)
{
    run_seed = seed;
    enabled = buggify;
    for (u32 i = 0; i < SITE_COUNT_MAX; i++)
        sites[i].count = 0;
}

/* Sites are told apart by name: one name may stand in several objects. */
static struct site *
site_find(const char *name)
{
    u64 hash = hash_bytes(name, strlen(name), 0);
    for (u32 i = 0; i < SITE_COUNT_MAX; i++) {
        struct site *site = &sites[(hash + i) % SITE_COUNT_MAX];
        if (site->name == NULL) {
            site->name = name;
            site->hash = hash;
        }
        if (site->hash == hash && strcmp(site->name, name) == 0) return site;
    }
    CHECK(!"more sites than SITE_COUNT_MAX");
    return NULL;
}

bool
fault_buggify(const char *name)
{
    if (!enabled || io_current == NULL) return false;
    struct site *site = site_find(name);
    u64 parts[3] = {run_seed, site->hash, 0};
    if (hash_bytes(parts, sizeof(parts), 1) % 4 != 0) return false;
    parts[2] = ++site->count;
    return hash_bytes(parts, sizeof(parts), 2) % 4 == 0;
}

void
fault_mark(const char *name)
{
    site_find(name)->count++;
}

u64
sim_mark_count(const struct sim *sim, const char *mark)
{
    (void)sim;
    return site_find(mark)->count;
}
