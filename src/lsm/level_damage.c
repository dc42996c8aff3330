/* SPDX-License-Identifier: MIT
 *
 * level_damage.c -- tables with blocks that fail their check, for an owner who has what they held
 * from elsewhere.
 *
 *   a read, a scrub or a merge meets a block    its tokens stand in table->damaged; the block is
 *                                               refused, and a merge that needs it put off
 *   the owner has written anew what may have    table->is_brought: one merge of everything into the
 *   been in it                                  last level, which leaves out just those blocks
 *
 * A block that is met later is not among what was brought, and puts off the merge again. All of it
 * lives in memory: after a restart damage is found anew, and what was brought is only newer writes.
 */
#include "base/fault.h"
#include "base/log.h"
#include "lsm/levels_internal.h"

void
levels_mends_set(struct levels *levels, u32 keyspaces)
{
    levels->mends = keyspaces;
}

/* The damaged table with the lowest id from id on. */
static struct table *
damaged_from(const struct levels *levels, u64 id)
{
    const struct run_set *set = levels->current;
    struct table *found = NULL;
    for (u32 i = 0; i < set->run_count; i++) {
        for (u32 j = 0; j < set->runs[i]->count; j++) {
            struct table *table = set->runs[i]->slots[j].file->table;
            if (table->damage_met == 0 || table->meta.file_id < id) continue;
            if (found == NULL || table->meta.file_id < found->meta.file_id) found = table;
        }
    }
    return found;
}

static bool
same_gaps(const struct gap_list *a, const struct gap_list *b)
{
    return a->count == b->count && memcmp(a->gaps, b->gaps, a->count * sizeof(a->gaps[0])) == 0;
}

static bool
all_is_brought(const struct table *table)
{
    return table->is_brought && same_gaps(&table->damaged, &table->brought);
}

/* Else a merge would only meet the next one. */
static bool
keyspace_is_brought(const struct levels *levels, u16 keyspace)
{
    u64 id = 0;
    const struct table *table;
    while ((table = damaged_from(levels, id)) != NULL) {
        if (table->meta.keyspace == keyspace && !all_is_brought(table)) return false;
        id = table->meta.file_id + 1;
    }
    return true;
}

bool
levels_damage_next(const struct levels *levels, u64 *cursor, struct lsm_damage *out)
{
    if (levels->table_stats.damaged == 0) return false;
    const struct table *table = damaged_from(levels, *cursor);
    if (table == NULL) return false;
    *cursor = table->meta.file_id + 1;
    *out = (struct lsm_damage){
        .file_id = table->meta.file_id,
        .keyspace = table->meta.keyspace,
        .is_brought = all_is_brought(table),
        .tokens = table->damaged,
    };
    return true;
}

void
levels_damage_brought(struct levels *levels, const struct lsm_damage *damage)
{
    struct table *table = damaged_from(levels, damage->file_id);
    if (table == NULL || table->meta.file_id != damage->file_id) return; /* it is gone already */
    MARK("lsm.levels.damage_brought");
    /* What lay there may have been the last trace of a key. */
    levels->dropped_seq_tables[damage->keyspace] =
        MAX(levels->dropped_seq_tables[damage->keyspace], table->meta.seq_max);
    table->brought = damage->tokens;
    table->is_brought = true;
    if (!keyspace_is_brought(levels, damage->keyspace)) return;
    struct level_tree *tree = &levels->trees[damage->keyspace];
    tree->broken = false;
    bool busy = false;
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++)
        busy = busy || (tree->sweeps[i].active && tree->sweeps[i].into_last);
    if (!busy) tree->clean_due = true; /* else the owner comes again, if that one leaves it */
    fiber_queue_wake_all(&levels->wake);
}
