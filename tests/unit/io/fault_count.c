/* SPDX-License-Identifier: MIT
 *
 * fault_count.c -- in the place of fault_none.c for tests of the real ring: MARK is counted, and
 * BUGGIFY fires when a test has armed it, three times out of four. What was passed goes where the
 * simulated programs leave theirs (tests/sim/marks.c).
 *
 * Any thread of a node may pass a site, so counts are atomic.
 */
#include "fault_count.h"

#include <stdatomic.h>

#include "base/fault.h"
#include "io/sim.h"
#include "io/sim_sites.h"

#define SITES_MAX 2048u

extern const struct fault_site __start_fault_sites[] __attribute__((weak, visibility("hidden")));
extern const struct fault_site __stop_fault_sites[] __attribute__((weak, visibility("hidden")));

static _Atomic bool fault_armed;
static _Atomic u64 counts[SITES_MAX];
static _Atomic u64 passes;

/* Before there are threads: which sites fire when is asked in fault_buggify. */
__attribute__((constructor)) static void
sites_ask(void)
{
    sim_sites_arm(true);
}

static _Atomic u64 *
count_of(const struct fault_site *site)
{
    size_t index = (size_t)(site - __start_fault_sites);
    CHECK(index < SITES_MAX);
    return &counts[index];
}

bool
fault_buggify(const struct fault_site *site)
{
    if (!fault_armed || atomic_fetch_add(&passes, 1) % 4 == 3) return false;
    atomic_fetch_add(count_of(site), 1);
    return true;
}

bool
fault_audit(const struct fault_site *site)
{
    (void)site;
    return false;
}

void
fault_mark(const struct fault_site *site)
{
    atomic_fetch_add(count_of(site), 1);
}

void
fault_armed_set(bool armed)
{
    fault_armed = armed;
}

u64
fault_count(const char *name)
{
    u64 count = 0;
    for (const struct fault_site *site = __start_fault_sites; site < __stop_fault_sites; site++)
        if (strcmp(site->name, name) == 0) count += *count_of(site);
    return count;
}

void
sim_site_each_ever(void (*each)(void *arg, const char *name, bool is_mark, u64 passed), void *arg)
{
    for (const struct fault_site *site = __start_fault_sites; site < __stop_fault_sites; site++)
        if (site->kind != FAULT_AUDIT)
            each(arg, site->name, site->kind == FAULT_MARK, *count_of(site));
}
