/* SPDX-License-Identifier: MIT
 *
 * marks.c -- see marks.h.
 */
#include "marks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/sim.h"

#define SITES_MAX 2048u

static struct site {
    const char *name;
    bool is_mark;
    bool listed;
    u64 passed;
} sites[SITES_MAX];
static u32 site_count;

/* The order is the same each time. */
static void
site_add(void *arg, const char *name, bool is_mark, u64 passed)
{
    u32 *at = arg;
    CHECK(*at < SITES_MAX);
    struct site *site = &sites[(*at)++];
    site->name = name;
    site->is_mark = is_mark;
    site->passed += passed;
    site_count = *at;
}

void
marks_collect(void)
{
    u32 at = 0;
    sim_site_each(site_add, &at);
}

void
marks_print(bool never_only)
{
    for (u32 i = 0; i < site_count; i++) {
        if (never_only && sites[i].passed > 0) continue;
        printf("%10llu  %s%s\n", (unsigned long long)sites[i].passed, sites[i].name,
               sites[i].is_mark ? "" : "  (buggify)");
    }
}

static struct site *
site_find(const char *name)
{
    for (u32 i = 0; i < site_count; i++)
        if (strcmp(sites[i].name, name) == 0) return &sites[i];
    return NULL;
}

u64
marks_passed(const char *name)
{
    struct site *site = site_find(name);
    CHECK(site != NULL);
    return site->passed;
}

/* One that this program does not link is another sweep's business. */
static u32
line_check(const char *line)
{
    char name[64], sweep[16];
    if (line[0] == '#' || sscanf(line, "%63s %15s", name, sweep) != 2) return 0;
    struct site *site = site_find(name);
    if (site == NULL) return 0;
    site->listed = true;
    if (site->passed == 0 || strcmp(sweep, "seldom") == 0) return 0;
    fprintf(stderr, "mark %s is said to be out of reach, but was passed %llu times\n", name,
            (unsigned long long)site->passed);
    return 1;
}

u32
marks_check(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        fprintf(stderr, "cannot read %s\n", path);
        return 1;
    }
    u32 complaints = 0;
    char line[512];
    while (fgets(line, sizeof(line), file) != NULL)
        complaints += line_check(line);
    fclose(file);
    for (u32 i = 0; i < site_count; i++) {
        if (sites[i].passed > 0 || sites[i].listed) continue;
        fprintf(stderr, "%s %s was never reached and is not in %s\n",
                sites[i].is_mark ? "mark" : "buggify site", sites[i].name, path);
        complaints++;
    }
    return complaints;
}
