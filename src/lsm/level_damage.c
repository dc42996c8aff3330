/* SPDX-License-Identifier: MIT
 *
 * level_damage.c -- which tokens the damage that is known of may hold, and what becomes of a tree
 * whose merge meets some.
 *
 * Whoever meets damage notes its tokens with the table or the blob file in which it is, where they
 * stay as long as the file is open; here they are looked up through the views of the current set:
 * what a merge has taken from a damaged table already is not damaged any more.
 *
 * A tree whose merge meets damage is broken: it is not merged any more, and the store has failed.
 * Unless its owner mends it (lsm_mends_set), which lets go of all that the damage may hold: then it
 * waits.
 *
 *   waits       nothing is merged into the last level; reads, writes and flushes go on, and so that
 *               flushes do not make ever more runs, those that are not damaged are merged as tiers,
 *               each stretch of neighbours for itself (compaction_pick.h). A merge of tiers reads
 *               and replaces its inputs only, drops what they hide of each other, and keeps what
 *               may hide something in an older run, damaged or not (compaction.c: at_bottom), by
 *               what the manifest says of that; so it is right beside damage as it is elsewhere.
 *               One that meets more damage makes that known, and the next goes around it; where
 *               that is not known, nothing more is merged (level_tree.stuck)
 *   drop due    levels_drop_set: one sweep of everything into the last level, which leaves out
 *               damaged blocks of which all that it takes goes anyhow, and writes what stays of
 *               damaged blob files anew; nothing else is merged when it begins, and meanwhile only
 *               what was flushed since, as a tier, when it has become many runs
 *   goes on     when nothing is damaged any more that is known of
 *
 * Why nothing older shows. Where a block is left out, every version that any run of the merge has
 * of its tokens goes with the same commit: all inputs have lower versions than whatever runs there
 * are beside them (sweep.held_back: else they wait), so retain.h drops each key whole; and the bits
 * are the same from the first key to the last (levels.drop_hashes: else the slice is merged anew).
 * Of runs beside the inputs only those count that have something from before the last call of
 * levels_drop_set: what came later is not of tokens that nobody wants.
 *
 * Whole tables that go unread (level_prune.c) go by what the manifest says of them, damaged or not.
 */
#include <stdio.h>

#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "lsm/levels_internal.h"

struct search {
    u64 token;
    bool found;
    u64 first, last;
};

/* Of the gaps within the view, the first that ends at or after the token. */
static void
search_in(struct search *search, const struct gap_list *damaged, const struct run_slot *view)
{
    for (u32 i = 0; i < damaged->count; i++) {
        u64 first = MAX(damaged->gaps[i].token_first, view->token_first);
        u64 last = MIN(damaged->gaps[i].token_last, view->token_last);
        if (first > last || last < search->token) continue;
        bool before = first < search->first || (first == search->first && last > search->last);
        if (search->found && !before) continue;
        *search = (struct search){search->token, true, first, last};
    }
}

bool
levels_damage_next(const struct levels *levels, u16 keyspace, u64 token, u64 *first_out,
                   u64 *last_out)
{
    if (levels->table_stats.damaged + levels->damaged_blobs == 0) return false;
    const struct run_set *set = levels->current;
    struct search search = {.token = token};
    for (u32 i = 0; i < run_set_tree_count(set, keyspace); i++) {
        const struct run *run = run_set_tree_run(set, keyspace, i);
        for (u32 j = run_slot_from(run, token); j < run->count; j++) {
            const struct level_table *file = run->slots[j].file;
            search_in(&search, &file->table->damaged, &run->slots[j]);
            for (u32 k = 0; k < file->blob_count; k++)
                search_in(&search, &file->blobs[k]->damaged, &run->slots[j]);
        }
    }
    *first_out = search.first;
    *last_out = search.last;
    return search.found;
}

u64
levels_damage_epoch(const struct levels *levels)
{
    return levels->table_stats.damage_epoch;
}

bool
levels_run_is_damaged(const struct levels *levels, const struct run *run)
{
    if (levels->table_stats.damaged + levels->damaged_blobs == 0) return false;
    for (u32 i = 0; i < run->count; i++) {
        const struct run_slot *view = &run->slots[i];
        const struct level_table *file = view->file;
        if (gap_list_meets(&file->table->damaged, view->token_first, view->token_last)) return true;
        for (u32 j = 0; j < file->blob_count; j++)
            if (gap_list_meets(&file->blobs[j]->damaged, view->token_first, view->token_last))
                return true;
    }
    return false;
}

static bool
damage_is_known(const struct levels *levels, u16 keyspace)
{
    u64 first, last;
    return levels_damage_next(levels, keyspace, 0, &first, &last);
}

/* ---- trees ---- */

static void
tree_fail(struct levels *levels, u16 keyspace)
{
    MARK("lsm.compaction.damage_fails");
    char text[160];
    snprintf(text, sizeof(text), "damaged table met while compacting keyspace %u", keyspace);
    log_error("lsm", "%s dir=%s: its runs stay as they are; run --verify", text, levels->dir);
    if (levels->config.failed != NULL) levels->config.failed(levels->config.arg, ST_CORRUPT, text);
}

void
levels_tree_break(struct levels *levels, u16 keyspace, bool again, bool located)
{
    struct level_tree *tree = &levels->trees[keyspace];
    bool told = tree->broken && !tree->waits;
    levels->corruptions++;
    MARK("lsm.compaction.corrupt_input");
    tree->broken = true;
    tree->stuck = !located;
    /* What is not known where it is cannot be let go of. */
    tree->waits = levels->mends[keyspace] && damage_is_known(levels, keyspace);
    levels_shape_update(levels); /* perhaps nothing is written until it presses less */
    if (tree->waits) {
        MARK("lsm.compaction.waits");
        tree->drop_due = tree->drop_due || again;
        if (log_seldom(&levels->waits_told_ns, io_now_ns()))
            log_error("lsm",
                      "damage met while compacting keyspace %u dir=%s: what is damaged stays as it "
                      "is until it is mended",
                      keyspace, levels->dir);
        return;
    }
    if (!told) tree_fail(levels, keyspace);
}

bool
levels_tree_merges(struct levels *levels, u16 keyspace)
{
    struct level_tree *tree = &levels->trees[keyspace];
    if (tree->waits && !damage_is_known(levels, keyspace)) {
        MARK("lsm.compaction.mended");
        log_info("lsm", "keyspace %u is compacted again dir=%s", keyspace, levels->dir);
        tree->broken = tree->waits = tree->stuck = false;
    }
    if (!tree->broken) return true;
    return tree->waits && (!tree->stuck || levels_tree_drops(levels, keyspace));
}

bool
levels_tree_drops(const struct levels *levels, u16 keyspace)
{
    const struct level_tree *tree = &levels->trees[keyspace];
    bool drops = tree->drop_due;
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++)
        drops = drops || (tree->sweeps[i].active && tree->sweeps[i].drops);
    return drops;
}

void
levels_mends_set(struct levels *levels, u16 keyspace, bool mends)
{
    struct level_tree *tree = &levels->trees[keyspace];
    levels->mends[keyspace] = mends;
    if (mends || !tree->waits) return;
    MARK("lsm.compaction.waited_in_vain");
    tree->waits = false;
    tree_fail(levels, keyspace);
    fiber_queue_wake_all(&levels->wake);
}
