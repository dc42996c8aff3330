/* SPDX-License-Identifier: MIT
 *
 * merge.c -- merges cursors by a tree of losers (Knuth, TAOCP volume 3, 5.4.1): one comparison a
 * level for the next entry, almost always of two tokens that lie side by side in an array.
 *
 *            tree[1]: loser            tree[0]: the winner, the merged cursor's entry
 *           /               \
 *      tree[2]             tree[3]     losers of the matches below
 *      /     \             /     \
 *   src 0   src 1       src 2   src 3
 *
 * A source that has ended loses every match. Entries with equal (token, key, version, seq) exist
 * only when one entry is in two sources (a memtable and its fresh run); the first source wins, the
 * copy comes right after it, and whoever resolves versions does not care.
 */
#include "lsm/merge.h"

#include "base/fault.h"

struct merge_cursor {
    struct cursor base;
    struct budget *budget;
    size_t memory_bytes;
    u32 source_count;
    u32 width;   /* leaves: power of two >= source_count */
    u64 *tokens; /* of each leaf's entry; meaningless when it has ended */
    bool *ended; /* leaves without a source are ended, too */
    struct cursor **sources;
    u32 *tree; /* width nodes: leaf numbers */
};

static bool
leaf_before(const struct merge_cursor *merge, u32 a, u32 b)
{
    if (merge->ended[a] || merge->ended[b]) return !merge->ended[a] && merge->ended[b];
    if (merge->tokens[a] != merge->tokens[b]) return merge->tokens[a] < merge->tokens[b];
    int order = entry_compare(&merge->sources[a]->entry, &merge->sources[b]->entry);
    return order != 0 ? order < 0 : a < b;
}

static void
leaf_refresh(struct merge_cursor *merge, u32 leaf)
{
    struct cursor *source = merge->sources[leaf];
    merge->ended[leaf] = !source->valid;
    if (source->valid) merge->tokens[leaf] = source->entry.token;
}

static void
winner_publish(struct merge_cursor *merge)
{
    u32 winner = merge->tree[0];
    merge->base.valid = !merge->ended[winner];
    if (merge->base.valid) merge->base.entry = merge->sources[winner]->entry;
}

/* Plays all matches; winners[] is the upper half of a heap and lives only here. */
static void
tree_build(struct merge_cursor *merge)
{
    u32 winners[2 * MERGE_SOURCES_MAX];
    u32 width = merge->width;
    for (u32 i = 0; i < width; i++)
        winners[width + i] = i;
    for (u32 node = width - 1; node >= 1; node--) {
        u32 left = winners[2 * node], right = winners[2 * node + 1];
        bool left_wins = leaf_before(merge, left, right);
        winners[node] = left_wins ? left : right;
        merge->tree[node] = left_wins ? right : left;
    }
    merge->tree[0] = width > 1 ? winners[1] : 0;
}

static void
tree_replay(struct merge_cursor *merge, u32 leaf)
{
    u32 winner = leaf;
    for (u32 node = (merge->width + leaf) / 2; node >= 1; node /= 2) {
        u32 other = merge->tree[node];
        if (leaf_before(merge, other, winner)) {
            merge->tree[node] = winner;
            winner = other;
        }
    }
    merge->tree[0] = winner;
}

MAY_YIELD static status
merge_seek(struct cursor *cursor, u64 token, struct bytes key)
{
    struct merge_cursor *merge = CONTAINER_OF(cursor, struct merge_cursor, base);
    merge->base.valid = false;
    for (u32 i = 0; i < merge->source_count; i++) {
        struct cursor *source = merge->sources[i];
        status st = source->ops->seek(source, token, key);
        if (!ok(st)) return st;
        leaf_refresh(merge, i);
    }
    tree_build(merge);
    winner_publish(merge);
    return ST_OK;
}

MAY_YIELD static status
merge_next(struct cursor *cursor)
{
    struct merge_cursor *merge = CONTAINER_OF(cursor, struct merge_cursor, base);
    CHECK(merge->base.valid);
    u32 winner = merge->tree[0];
    struct cursor *source = merge->sources[winner];
    merge->base.valid = false; /* stays so when the source fails: a dead cursor is not an end */
    status st = source->ops->next(source);
    if (!ok(st)) return st;
    leaf_refresh(merge, winner);
    tree_replay(merge, winner);
    winner_publish(merge);
    return ST_OK;
}

static void
merge_close(struct cursor *cursor)
{
    struct merge_cursor *merge = CONTAINER_OF(cursor, struct merge_cursor, base);
    for (u32 i = 0; i < merge->source_count; i++)
        merge->sources[i]->ops->close(merge->sources[i]);
    mem_free(merge->budget, merge, merge->memory_bytes);
}

static const struct cursor_ops merge_ops = {
    .seek = merge_seek,
    .next = merge_next,
    .close = merge_close,
};

status
merge_cursor_open(struct cursor *const *sources, u32 count, struct budget *budget,
                  struct cursor **out)
{
    CHECK(count <= MERGE_SOURCES_MAX);
    u32 width = 1;
    while (width < count)
        width *= 2;
    /* One block, widest alignment first. */
    size_t size = sizeof(struct merge_cursor) +
                  width * (sizeof(u64) + sizeof(struct cursor *) + sizeof(u32) + sizeof(bool));
    struct merge_cursor *merge = mem_alloc_zero(budget, size);
    if (merge == NULL) {
        MARK("lsm.merge.no_memory");
        for (u32 i = 0; i < count; i++)
            sources[i]->ops->close(sources[i]);
        return ST_NO_MEMORY;
    }
    merge->base.ops = &merge_ops;
    merge->budget = budget;
    merge->memory_bytes = size;
    merge->source_count = count;
    merge->width = width;
    merge->tokens = (u64 *)(merge + 1);
    merge->sources = (struct cursor **)(merge->tokens + width);
    merge->tree = (u32 *)(merge->sources + width);
    merge->ended = (bool *)(merge->tree + width);
    for (u32 i = 0; i < width; i++) {
        merge->ended[i] = true;
        if (i < count) merge->sources[i] = sources[i];
    }
    *out = &merge->base;
    return ST_OK;
}
