/* SPDX-License-Identifier: MIT
 *
 * sim_fault.c -- BUGGIFY, MARK and AUDIT of the simulated link.
 *
 * After FoundationDB: a site is active in a quarter of the runs, and an active one fires in a
 * quarter of its passes, so a run has character. Every site draws from its own stream (seed, name,
 * count), so a new site does not move the others.
 *
 * An AUDIT runs once in as many passes as the test asks for; it changes nothing, so the run stays
 * the same with it.
 *
 * The records of all sites lie side by side between two symbols that the linker makes (fault.h). A
 * record's number in that array depends on the order of linking, so nothing may depend on it but
 * the way to the site's counters; those are in byte order of the names.
 */
#include "base/fault.h"

#include <stdlib.h>

#include "base/hash.h"
#include "io/sim_internal.h"
#include "io/sim_sites.h"

#define SITE_COUNT_MAX 2048u

/* Weak: a program need not have any. */
extern const struct fault_site __start_fault_sites[] __attribute__((weak, visibility("hidden")));
extern const struct fault_site __stop_fault_sites[] __attribute__((weak, visibility("hidden")));

struct site {
    const struct fault_site *record;
    u64 hash;
    u64 pass_count; /* of an active BUGGIFY, of an AUDIT */
    u64 count;      /* a mark was passed, a site fired */
    u64 before;     /* the same in the runs before */
};

/* Sites stay for the life of the process, their counts for one run. */
static struct site sites[SITE_COUNT_MAX]; /* by name, each once */
static u32 site_count;                    /* 0: not made yet */
static u16 numbers[SITE_COUNT_MAX];       /* of a record: its place in sites */
static u64 run_seed;
static bool buggify_on;
static u32 audit_one_in; /* 0: never */

static bool armed;

/* In a run that wants neither, the code is the server's. */
static void
sites_arm(void)
{
    bool wanted = buggify_on || audit_one_in != 0;
    if (wanted != armed) sim_sites_arm(wanted);
    armed = wanted;
}

static int
order_names(const void *a, const void *b)
{
    const struct site *x = a, *y = b;
    return strcmp(x->record->name, y->record->name);
}

static struct site *
site_find(const char *name)
{
    u32 low = 0, high = site_count;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (strcmp(sites[middle].record->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == site_count || strcmp(sites[low].record->name, name) != 0) return NULL;
    return &sites[low];
}

/* tools/tidy demands that a name stands once; a site in a header would still leave a record in each
 * object, and those are one site. */
static void
sites_make(void)
{
    size_t records = (size_t)(__stop_fault_sites - __start_fault_sites);
    CHECK(records <= SITE_COUNT_MAX);
    for (size_t i = 0; i < records; i++)
        sites[i].record = &__start_fault_sites[i];
    qsort(sites, records, sizeof(sites[0]), order_names);
    for (size_t i = 0; i < records; i++) {
        const struct fault_site *record = sites[i].record;
        CHECK(record->name[0] != '\0'); /* a gap in the section */
        if (site_count > 0 && strcmp(sites[site_count - 1].record->name, record->name) == 0)
            continue;
        u64 hash = hash_bytes(record->name, strlen(record->name), 0);
        sites[site_count++] = (struct site){.record = record, .hash = hash};
    }
    for (size_t i = 0; i < records; i++)
        numbers[i] = (u16)(site_find(__start_fault_sites[i].name) - sites);
}

static struct site *
site_of(const struct fault_site *record)
{
    if (site_count == 0) sites_make(); /* code under test without a sim */
    return &sites[numbers[record - __start_fault_sites]];
}

void
sim_fault_reset(u64 seed, bool buggify)
{
    if (site_count == 0) sites_make();
    run_seed = seed;
    buggify_on = buggify;
    audit_one_in = 0;
    sites_arm();
    for (u32 i = 0; i < site_count; i++) {
        sites[i].before += sites[i].count;
        sites[i].pass_count = sites[i].count = 0;
    }
}

bool
fault_buggify(const struct fault_site *record)
{
    if (io_current == NULL || !buggify_on) return false;
    struct site *site = site_of(record);
    u64 parts[3] = {run_seed, site->hash, 0};
    if (hash_bytes(parts, sizeof(parts), 1) % 4 != 0) return false;
    parts[2] = ++site->pass_count;
    if (hash_bytes(parts, sizeof(parts), 2) % 4 != 0) return false;
    site->count++;
    return true;
}

void
sim_audits_set(struct sim *sim, u32 one_in)
{
    (void)sim;
    audit_one_in = one_in;
    sites_arm();
}

void
sim_buggify_set(struct sim *sim, bool on)
{
    (void)sim;
    buggify_on = on;
    sites_arm();
}

u64
sim_buggify_count(const struct sim *sim)
{
    (void)sim;
    u64 count = 0;
    for (u32 i = 0; i < site_count; i++)
        if (sites[i].record->kind == FAULT_BUGGIFY) count += sites[i].count;
    return count;
}

bool
fault_audit(const struct fault_site *record)
{
    if (audit_one_in == 0) return false;
    struct site *site = site_of(record);
    u64 parts[3] = {run_seed, site->hash, ++site->pass_count};
    if (hash_bytes(parts, sizeof(parts), 3) % audit_one_in != 0) return false;
    site->count++;
    return true;
}

void
fault_mark(const struct fault_site *record)
{
    site_of(record)->count++;
}

u64
sim_mark_count(const struct sim *sim, const char *mark)
{
    (void)sim;
    const struct site *site = site_find(mark);
    CHECK(site != NULL); /* else a test that asks for it cannot fail */
    return site->count;
}

static void
site_each(bool ever, void (*each)(void *arg, const char *name, bool is_mark, u64 passed), void *arg)
{
    if (site_count == 0) sites_make();
    for (u32 i = 0; i < site_count; i++) {
        const struct site *site = &sites[i];
        each(arg, site->record->name, site->record->kind == FAULT_MARK,
             site->count + (ever ? site->before : 0));
    }
}

void
sim_site_each(void (*each)(void *arg, const char *name, bool is_mark, u64 passed), void *arg)
{
    site_each(false, each, arg);
}

void
sim_site_each_ever(void (*each)(void *arg, const char *name, bool is_mark, u64 passed), void *arg)
{
    site_each(true, each, arg);
}
