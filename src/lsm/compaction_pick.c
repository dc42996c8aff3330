/* SPDX-License-Identifier: MIT
 *
 * compaction_pick.c -- see compaction_pick.h.
 *
 * Every possible piece of work has an urgency, 1000 when it is due; the most urgent one is next,
 * and on a tie the smaller tier, because its merge is cheap and takes most runs out of a read's
 * way. Urgencies fall as a sweep consumes its inputs, so a long sweep and the small merges above
 * it take turns. A sweep that has begun is always due: an unfinished one keeps space.
 *
 * Inputs of a sweep are neighbours in age. That, and giving its output the age of the oldest
 * input, is what keeps "newest first" true for every token (see run_set.h).
 */
#include "lsm/compaction_pick.h"

/* Runs that a read should have to look at, at most, and where writers are refused. */
#define PICK_RUNS_SOFT 24u
#define PICK_RUNS_HARD 72u
#define PICK_TIER_MAX  14u

static u64
tiers_bytes(const struct pick_tree *tree)
{
    u64 bytes = 0;
    for (u32 i = 0; i < tree->run_count; i++)
        bytes += tree->runs[i].bytes;
    return bytes;
}

static u32
scaled(u64 value, u64 of)
{
    if (of == 0) of = 1;
    if (value >= of * 100) return 100000;
    return (u32)(value * 1000 / of);
}

/* The tiers against the last level. With few flushes over a small last level the ratio alone would
 * rewrite it at every one of them, so they have to be half a full tier, too: as many runs, or as
 * much in fewer. (While a sweep into the last level goes on, all that is flushed meanwhile may
 * become a few runs as large as that level. By their number alone they would stay, and with them
 * twice the space.) */
static u32
last_urgency(const struct pick_tree *tree)
{
    u32 runs = tree->run_count;
    if (runs == 0) return 0;
    u64 bytes = tiers_bytes(tree);
    u32 by_bytes = scaled(bytes, tree->last_bytes / PICK_LAST_RATIO);
    u64 flushes = MAX((u64)runs, bytes / MAX(tree->tier_bytes, 1u));
    u32 by_flushes = scaled(flushes, MAX(2u, tree->fanout / 2));
    u32 urgency = MIN(by_bytes, by_flushes);
    if (tree->last_bytes == 0) urgency = scaled(runs, tree->fanout);
    return urgency;
}

/* The oldest runs that no sweep owns: what may be merged into the last level. */
static u32
free_suffix(const struct pick_tree *tree)
{
    u32 first = tree->run_count;
    while (first > 0 && tree->runs[first - 1].owner == 0)
        first--;
    return first;
}

static bool
free_sweep(const struct pick_tree *tree)
{
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++) {
        if (!tree->sweeps[i].active) return true;
    }
    return false;
}

static void
offer(struct pick *best, const struct pick *candidate)
{
    if (candidate->urgency > best->urgency) *best = *candidate;
}

/* A tree that waits is mended by its sweep into the last level: what came since that began is not
 * merged before it is much. Then in one go, and without a break, so that the sweep has its turn
 * again, for long. */
static bool
mending_comes_first(const struct pick_tree *tree)
{
    bool mends = false, busy = false;
    u32 beside = tree->run_count;
    for (u32 i = 0; tree->waits && i < PICK_SWEEPS_MAX; i++) {
        if (!tree->sweeps[i].active) continue;
        busy = busy || !tree->sweeps[i].into_last;
        if (!tree->sweeps[i].into_last) continue;
        mends = true;
        for (u32 j = 0; j < tree->run_count; j++)
            beside -= tree->runs[j].owner == i + 1;
    }
    return mends && (busy || beside < PICK_RUNS_HARD);
}

static void
offer_continues(const struct pick_tree *tree, struct pick *best)
{
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++) {
        const struct pick_sweep *sweep = &tree->sweeps[i];
        if (!sweep->active) continue;
        u32 runs = 0;
        for (u32 j = 0; j < tree->run_count; j++)
            runs += tree->runs[j].tier == sweep->tier;
        u32 urgency = sweep->into_last ? last_urgency(tree) : scaled(runs, tree->fanout);
        /* Runs of all sizes may be of its tier then (rank_of): small merges are not to wait. */
        if (tree->waits) urgency = sweep->into_last ? 1001 : 1002;
        struct pick pick = {.kind = PICK_CONTINUE, .sweep = i, .urgency = MAX(urgency, 1001u)};
        offer(best, &pick);
    }
}

/* From how many bytes on a run made of runs of this tier belongs to the next one. */
static u64
tier_due(const struct pick_tree *tree, u8 tier)
{
    u64 due = tree->tier_bytes;
    for (u32 t = 0; t < tier && due < UINT64_MAX / PICK_FANOUT; t++)
        due *= tree->fanout;
    return due;
}

/* Runs of one rank are merged with each other: those of a tier. But before a damaged run all are of
 * its tier at most, whatever their size, and a large one is not to be written again with each few
 * small ones: in a tree that waits size counts, too, from half of what a merge of full ones makes.
 * Ranks, as tiers, never fall with age; before: of the run that is next newer. */
static u8
rank_of(const struct pick_tree *tree, u32 index, u8 before)
{
    const struct pick_run *run = &tree->runs[index];
    if (!tree->waits) return run->tier;
    u8 rank = MAX(before, run->tier);
    while (rank < PICK_TIER_MAX && run->bytes / MAX(2u, tree->fanout / 2) >= tier_due(tree, rank))
        rank++;
    return rank;
}

static void
offer_tiers(const struct pick_tree *tree, struct pick *best)
{
    u8 rank = 0;
    for (u32 first = 0; first < tree->run_count;) {
        rank = rank_of(tree, first, rank);
        u32 end = first;
        u64 bytes = 0;
        while (end < tree->run_count && rank_of(tree, end, rank) == rank &&
               tree->runs[end].owner == 0 && !tree->runs[end].damaged)
            bytes += tree->runs[end++].bytes;
        u32 count = end - first;
        if (count >= tree->fanout) {
            /* Small runs are merged among themselves until they are worth a place in the next
             * tier: this is what makes many tiny flushes cheap. */
            u8 out = rank;
            if (bytes >= tier_due(tree, rank) && rank < PICK_TIER_MAX) out++;
            /* Tiers ascend with age, and the output stands before older runs that another sweep
             * has taken, or that stay: it may not be of a higher one. */
            if (end < tree->run_count) out = MIN(out, tree->runs[end].tier);
            struct pick pick = {.kind = PICK_TIER,
                                .first = first,
                                .count = count,
                                .tier_out = out,
                                .urgency = scaled(count, tree->fanout)};
            offer(best, &pick);
        }
        first = MAX(end, first + 1);
    }
}

static void
offer_last(const struct pick_tree *tree, struct pick *best)
{
    for (u32 i = 0; i < PICK_SWEEPS_MAX; i++) {
        if (tree->sweeps[i].active && tree->sweeps[i].into_last) return;
    }
    u32 first = free_suffix(tree);
    u32 count = tree->run_count - first;
    u32 urgency = last_urgency(tree);
    if (count > 0 && tree->force_last) urgency = MAX(urgency, 1000u);
    if (count == 0 || urgency < 1000) {
        if (!tree->rewrite_last || tree->last_bytes + count == 0) return;
        urgency = 1000;
    }
    struct pick pick = {.kind = PICK_LAST, .first = first, .count = count, .urgency = urgency};
    offer(best, &pick);
}

void
compaction_pick(const struct pick_tree *tree, struct pick *out)
{
    struct pick best = {.kind = PICK_NONE};
    offer_continues(tree, &best);
    if (free_sweep(tree)) {
        /* When everything goes down anyway, a tier merge before it would only write twice. */
        if (!tree->force_last && !mending_comes_first(tree)) offer_tiers(tree, &best);
        if (!tree->waits) offer_last(tree, &best);
    }
    if (best.urgency < 1000) best = (struct pick){.kind = PICK_NONE};
    *out = best;
}

u64
compaction_debt(const struct pick_tree *tree)
{
    u64 debt = 0;
    for (u32 first = 0; first < tree->run_count;) {
        u8 tier = tree->runs[first].tier;
        u64 bytes = 0;
        u32 end = first;
        while (end < tree->run_count && tree->runs[end].tier == tier)
            bytes += tree->runs[end++].bytes;
        u32 count = end - first;
        /* A full tier owes itself once; a fuller one, more. */
        debt += bytes / tree->fanout * MIN(count, 4 * tree->fanout);
        first = end;
    }
    u64 bytes = tiers_bytes(tree);
    u64 share = tree->last_bytes / PICK_LAST_RATIO;
    if (bytes > 0) {
        /* Merging the tiers down rewrites the last level with them. */
        u64 whole = bytes + tree->last_bytes;
        debt += bytes >= share ? whole : (u64)((unsigned __int128)whole * bytes / (share + 1));
    }
    return debt;
}

/* 0 below low, 1000 from high on, a line between. */
static u32
ramp(u64 value, u64 low, u64 high)
{
    if (value <= low) return 0;
    if (value >= high) return 1000;
    return (u32)((unsigned __int128)(value - low) * 1000 / (high - low));
}

u32
compaction_pressure(const struct pick_tree *tree)
{
    u32 by_runs = ramp(tree->run_count, PICK_RUNS_SOFT, PICK_RUNS_HARD);
    /* Space: the tiers may outgrow a small last level, but not a large one. */
    u64 base = MAX(tree->last_bytes, tree->tier_bytes * 32);
    u32 by_bytes = ramp(tiers_bytes(tree), base, base * 3);
    return MAX(by_runs, by_bytes);
}

u64
compaction_slice_width(u64 bytes, u64 token_first, u64 token_last, u64 target_bytes)
{
    CHECK(token_first <= token_last && target_bytes > 0);
    u64 slices = bytes / target_bytes;
    if (slices <= 1) return 0;
    u64 span = token_last - token_first;
    /* The widest power of two of which at least slices lie in the span. */
    u64 width = (u64)1 << 63;
    while (width > (u64)1 << 20 && span / width < slices)
        width >>= 1;
    return width;
}
