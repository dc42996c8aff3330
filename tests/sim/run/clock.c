/* SPDX-License-Identifier: MIT
 *
 * clock.c -- see clock.h. Parts follow each other; within one the clock only rises.
 */
#include "clock.h"

#include <stdlib.h>

struct part {
    u64 begun_ns, wall_ns;
    i32 ppm;
};
static struct part *parts;
static u32 part_count, part_capacity;

void
clock_begin(u64 now_ns, u64 wall_ns)
{
    part_count = 0;
    clock_change(now_ns, wall_ns, 0);
}

void
clock_change(u64 now_ns, u64 wall_ns, i32 ppm)
{
    CHECK(part_count == 0 || now_ns >= parts[part_count - 1].begun_ns);
    if (part_count == part_capacity) {
        part_capacity = MAX(16u, 2 * part_capacity);
        parts = realloc(parts, part_capacity * sizeof(*parts));
        CHECK(parts != NULL);
    }
    parts[part_count++] = (struct part){now_ns, wall_ns, ppm};
}

static u64
part_shows(const struct part *part, u64 time_ns)
{
    u64 passed_ns = time_ns - part->begun_ns;
    return part->wall_ns + passed_ns + (u64)(i64)((__int128)passed_ns * part->ppm / 1000000);
}

static u64
part_end(u32 index)
{
    return index + 1 < part_count ? parts[index + 1].begun_ns : UINT64_MAX;
}

u64
clock_least(u64 from_ns, u64 to_ns)
{
    u64 least = UINT64_MAX;
    for (u32 i = 0; i < part_count; i++)
        if (parts[i].begun_ns <= to_ns && part_end(i) >= from_ns)
            least = MIN(least, part_shows(&parts[i], MAX(from_ns, parts[i].begun_ns)));
    return least;
}

u64
clock_most(u64 from_ns, u64 to_ns)
{
    u64 most = 0;
    for (u32 i = 0; i < part_count; i++)
        if (parts[i].begun_ns <= to_ns && part_end(i) >= from_ns)
            most = MAX(most, part_shows(&parts[i], MIN(to_ns, part_end(i))));
    return most;
}
