/* SPDX-License-Identifier: MIT
 *
 * bench_merge.c -- question: what does merging cost a step, apart from reading and writing? The
 * sources are arrays in memory, so a step is that of the tree of losers and of what is around it.
 *
 *   merge.N   a step over N sources that take turns at random, as runs of hashed keys do
 *   runs.N    the same where each source has a thousand entries in a row, as levels cut by partition
 *   array     a step of one source alone: what the bench itself adds, and the bound
 *
 * Expected: the comparison on each level of the tree goes one way or the other at random, so each
 * doubling of N costs half a branch that was not foreseen, some 5 to 8 ns.
 *
 *     bench_merge [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/prng.h"
#include "lsm/merge.h"
#include "micro.h"

#define SOURCES_MAX   64u
#define ENTRIES       20000u
#define ENTRIES_SMALL 1000u
#define RUN_ENTRIES   1000u

/* Some of the entries, in their order. */
struct array_cursor {
    struct cursor cursor; /* first */
    const struct entry *entries;
    const u32 *own; /* places in entries */
    u32 count, at;
};

static struct budget budget;
static struct entry *entries;
static u32 entry_count;
static struct array_cursor sources[SOURCES_MAX];
static u32 *places[SOURCES_MAX];

static void
array_show(struct array_cursor *array)
{
    array->cursor.valid = array->at < array->count;
    if (array->cursor.valid) array->cursor.entry = array->entries[array->own[array->at]];
}

/* Only from the beginning. */
static status
array_seek(struct cursor *cursor, u64 token, struct bytes key)
{
    struct array_cursor *array = CONTAINER_OF(cursor, struct array_cursor, cursor);
    CHECK(token == 0);
    array->at = 0;
    array_show(array);
    return ST_OK;
}

static status
array_next(struct cursor *cursor)
{
    struct array_cursor *array = CONTAINER_OF(cursor, struct array_cursor, cursor);
    array->at++;
    array_show(array);
    return ST_OK;
}

static void
array_close(struct cursor *cursor)
{
}

static const struct cursor_ops array_ops = {
    .seek = array_seek, .next = array_next, .close = array_close};

MAY_YIELD static void
cursor_run(void *arg, u64 count)
{
    struct cursor *cursor = arg;
    for (u64 i = 0; i < count; i++) {
        if (cursor->valid)
            micro_must(cursor->ops->next(cursor), "next");
        else
            micro_must(cursor->ops->seek(cursor, 0, BYTES(NULL, 0)), "seek");
        if (cursor->valid) micro_keep(cursor->entry.token);
    }
}

/* Deals the entries out to so many sources. */
static void
deal(u32 source_count, u32 in_a_row)
{
    struct prng prng;
    prng_init(&prng, source_count);
    for (u32 i = 0; i < source_count; i++)
        sources[i] = (struct array_cursor){
            .cursor = {.ops = &array_ops}, .entries = entries, .own = places[i]};
    u32 source = 0;
    for (u32 i = 0; i < entry_count; i++) {
        if (i % in_a_row == 0) source = (u32)prng_below(&prng, source_count);
        places[source][sources[source].count++] = i;
    }
}

MAY_YIELD static void
measure_merge(const char *what, u32 source_count, u32 in_a_row)
{
    deal(source_count, in_a_row);
    struct cursor *cursors[SOURCES_MAX], *merged;
    for (u32 i = 0; i < source_count; i++)
        cursors[i] = &sources[i].cursor;
    micro_must(merge_cursor_open(cursors, source_count, &budget, &merged), "merge_cursor_open");
    char name[64];
    snprintf(name, sizeof(name), "%s.%u", what, source_count);
    micro_measure(&(struct micro_case){.name = name, .run = cursor_run, .arg = merged});
    merged->ops->close(merged);
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    budget_init(&budget, "bench", MIB(64), NULL);
    entry_count = micro_small() ? ENTRIES_SMALL : ENTRIES;
    struct micro_key *keys = micro_keys(0, entry_count);
    entries = malloc(entry_count * sizeof(entries[0]));
    MICRO_CHECK(entries != NULL);
    for (u32 i = 0; i < entry_count; i++)
        entries[i] = (struct entry){.token = (u64)i << 40,
                                    .key = micro_key_bytes(&keys[i]),
                                    .value = BYTES_LITERAL("value"),
                                    .version = i + 1,
                                    .seq = i + 1,
                                    .kind = ENTRY_PUT};
    for (u32 i = 0; i < SOURCES_MAX; i++)
        MICRO_CHECK((places[i] = malloc(entry_count * sizeof(u32))) != NULL);
    static const u32 counts[] = {2, 4, 8, 16, 64};
    for (u32 i = 0; i < ARRAY_COUNT(counts); i++)
        measure_merge("merge", counts[i], 1);
    measure_merge("runs", 8, RUN_ENTRIES);
    deal(1, 1);
    micro_measure(
        &(struct micro_case){.name = "array", .run = cursor_run, .arg = &sources[0].cursor});
    return micro_end();
}
