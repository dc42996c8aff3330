/* SPDX-License-Identifier: MIT
 *
 * level_damage.c -- which tokens the damage that is known of may hold.
 *
 * Whoever meets damage notes its tokens with the table or the blob file in which it is, where they
 * stay as long as the file is open; here they are looked up through the views of the current set:
 * what a merge has taken from a damaged table already is not damaged any more.
 */
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
        if (search->found && search->first <= first) continue;
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
