/* SPDX-License-Identifier: MIT
 *
 * placement_first.c -- who is first in each row, once rows are dealt. Nothing moves for it: the
 * first of a row takes its requests, and another one of the row can as well.
 *
 * Each node is due 1 / N of the rows that it is in: of all (P4), and about that of any stretch of
 * partitions (P8). So the rows are gone through block by block, and bounds are of everything up to
 * the end of the block, as a clerk carries remainders over:
 *
 *     held up to here / N, rounded down or up, less the first places that it has before this block
 *
 * In a block who is above its bounds gives to who is below, first where the neighbouring row is
 * led by the receiver already, or is not led by the giver: so runs with one leader stay long. Who
 * leads and is within the bounds goes on. Better is who comes second: then nobody is new among the
 * first two (placement_order.c). Where no single row helps, a chain of rows does: what is
 * due is a solution in fractions, so by max-flow there is one in whole numbers within a block whose
 * bounds are its own; carried bounds may miss it by one now and then. The end is a pass over
 * everything, with bounds of everything, which always succeeds.
 *
 * Blocks are gone through only when something has changed: the end may undo what a block would do
 * again, and who deals to a placement twice must get the same, or plans would never end.
 */
#include "cluster/placement_internal.h"

static void
first_set(struct deal *deal, u32 partition, u32 node)
{
    u16 *row = deal_row(deal, partition);
    u32 place = 0;
    while (row[place] != node)
        place++;
    u32 old = row[0];
    row[0] = (u16)node;
    row[place] = (u16)old;
    deal->nodes[old].first--;
    deal->nodes[node].first++;
}

/* ---- chains ---- */

/* Some of deal_walk, or of the partitions in their order. */
struct stretch {
    u32 from, to;
    bool walk;
};

static u32
stretch_partition(const struct deal *deal, const struct stretch *stretch, u32 at)
{
    return stretch->walk ? deal_walk(deal, at) : at;
}

/* Passes one first place from node along a chain of rows to somebody who may have one more (give),
 * or to node from somebody who can spare one. */
static bool
first_chain(struct deal *deal, const struct stretch *stretch, u32 start, bool give)
{
    for (u32 i = 0; i < deal->node_count; i++)
        deal->nodes[i].seen = false;
    u32 head = 0, tail = 0;
    deal->queue[tail++] = (u16)start;
    deal->nodes[start].seen = true;
    while (head < tail) {
        u32 node = deal->queue[head++];
        for (u32 at = stretch->from; at < stretch->to; at++) {
            u32 p = stretch_partition(deal, stretch, at);
            const u16 *row = deal_row(deal, p);
            deal_look(deal);
            if (give ? row[0] != node : !deal_row_has(deal, row, node)) continue;
            for (u32 k = give ? 1 : 0; k < (give ? deal->replicas : 1); k++) {
                struct deal_node *other = &deal->nodes[row[k]];
                if (other->seen) continue;
                other->seen = true;
                other->parent = (u16)node;
                other->parent_partition = p;
                deal->queue[tail++] = row[k];
                if (give ? other->first >= other->first_high : other->first <= other->first_low)
                    continue;
                for (u32 i = row[k]; i != start;) {
                    u32 parent = deal->nodes[i].parent;
                    first_set(deal, deal->nodes[i].parent_partition, give ? i : parent);
                    i = parent;
                }
                return true;
            }
        }
    }
    return false;
}

/* ---- one block ---- */

/* How many neighbours of the row are led by node. The row behind the block is not dealt yet. */
static u32
led_beside(const struct deal *deal, const struct stretch *block, u32 partition, u32 node)
{
    return (partition > 0 && deal_row(deal, partition - 1)[0] == node) +
           (partition + 1 < block->to && deal_row(deal, partition + 1)[0] == node);
}

/* The best row of the block whose leader can be relieved of it: who is above the bounds and anybody
 * who is not (relieve), or anybody and who is below. False: there is none. */
static bool
first_pass(struct deal *deal, const struct stretch *block, bool relieve)
{
    u32 best = 0, best_partition = 0, best_node = 0;
    for (u32 p = block->from; p < block->to; p++) {
        const u16 *row = deal_row(deal, p);
        deal_look(deal);
        const struct deal_node *giver = &deal->nodes[row[0]];
        if (giver->first <= (relieve ? giver->first_high : giver->first_low)) continue;
        u32 alone = 2 - led_beside(deal, block, p, row[0]);
        for (u32 k = 1; k < deal->replicas; k++) {
            const struct deal_node *taker = &deal->nodes[row[k]];
            if (taker->first >= (relieve ? taker->first_high : taker->first_low)) continue;
            u32 score = 1 + alone + 3 * led_beside(deal, block, p, row[k]) +
                        10 * (taker->first < taker->first_low) + 2 * (deal->even && k == 1);
            if (score <= best) continue;
            best = score;
            best_partition = p;
            best_node = row[k];
        }
    }
    if (best > 0) first_set(deal, best_partition, best_node);
    return best > 0;
}

static void
block_bounds(struct deal *deal, const struct stretch *block)
{
    for (u32 p = block->from; p < block->to; p++)
        for (u32 k = 0; k < deal->replicas; k++)
            deal->nodes[deal_row(deal, p)[k]].first = 0;
    for (u32 p = block->from; p < block->to; p++) {
        deal_look(deal);
        for (u32 k = 0; k < deal->replicas; k++)
            deal->nodes[deal_row(deal, p)[k]].held_before++;
        deal->nodes[deal_row(deal, p)[0]].first++;
    }
    for (u32 p = block->from; p < block->to; p++) {
        for (u32 k = 0; k < deal->replicas; k++) {
            struct deal_node *node = &deal->nodes[deal_row(deal, p)[k]];
            u32 low = node->held_before / deal->replicas;
            u32 high = (node->held_before + deal->replicas - 1) / deal->replicas;
            node->first_low = low - MIN(low, node->first_before);
            node->first_high = high - MIN(high, node->first_before);
        }
    }
}

static void
block_firsts(struct deal *deal, const struct stretch *block)
{
    block_bounds(deal, block);
    while (first_pass(deal, block, true)) {
    }
    for (u32 p = block->from; p < block->to; p++) {
        const struct deal_node *leader = &deal->nodes[deal_row(deal, p)[0]];
        if (leader->first > leader->first_high)
            (void)first_chain(deal, block, deal_row(deal, p)[0], true);
    }
    while (first_pass(deal, block, false)) {
    }
    for (u32 p = block->from; p < block->to; p++) {
        for (u32 k = 1; k < deal->replicas; k++) {
            u32 node = deal_row(deal, p)[k];
            if (deal->nodes[node].first < deal->nodes[node].first_low)
                (void)first_chain(deal, block, node, false);
        }
    }
    for (u32 p = block->from; p < block->to; p++)
        deal->nodes[deal_row(deal, p)[0]].first_before++;
}

/* ---- the whole ---- */

/* Most are settled within their row. */
static void
rows_settle(struct deal *deal)
{
    for (u32 at = 0; at < deal->partition_count; at++) {
        u32 p = deal_walk(deal, at);
        const u16 *row = deal_row(deal, p);
        deal_look(deal);
        const struct deal_node *best = &deal->nodes[row[0]];
        if (best->first <= best->first_high) continue;
        for (u32 k = 1; k < deal->replicas; k++) {
            const struct deal_node *other = &deal->nodes[row[k]];
            if (other->first < other->first_high &&
                (best == &deal->nodes[row[0]] ||
                 other->first_high - other->first > best->first_high - best->first))
                best = other;
        }
        if (best != &deal->nodes[row[0]]) first_set(deal, p, (u32)(best - deal->nodes));
    }
}

/* Counts and bounds of everything; whether all are within. */
static bool
firsts_count(struct deal *deal)
{
    for (u32 i = 0; i < deal->node_count; i++) {
        struct deal_node *node = &deal->nodes[i];
        node->first = 0;
        node->first_low = node->held / deal->replicas;
        node->first_high = (node->held + deal->replicas - 1) / deal->replicas;
    }
    for (u32 p = 0; p < deal->partition_count; p++)
        deal->nodes[deal_row(deal, p)[0]].first++;
    for (u32 i = 0; i < deal->node_count; i++) {
        const struct deal_node *node = &deal->nodes[i];
        if (node->first < node->first_low || node->first > node->first_high) return false;
    }
    return true;
}

void
deal_firsts(struct deal *deal)
{
    size_t bytes = (size_t)deal->partition_count * deal->replicas * sizeof(*deal->rows);
    bool changed = !firsts_count(deal) || memcmp(deal->rows, deal->origin, bytes) != 0;
    u32 size = deal->partition_count >> deal_block_bits(deal);
    for (u32 p = 0; deal->scattered && changed && p < deal->partition_count; p += size)
        block_firsts(deal, &(struct stretch){.from = p, .to = p + size});

    if (firsts_count(deal)) return;
    rows_settle(deal);
    struct stretch all = {.to = deal->partition_count, .walk = true};
    for (u32 i = 0; i < deal->node_count; i++) {
        while (deal->nodes[i].first > deal->nodes[i].first_high &&
               first_chain(deal, &all, i, true)) {
        }
    }
    for (u32 i = 0; i < deal->node_count; i++) {
        while (deal->nodes[i].first < deal->nodes[i].first_low &&
               first_chain(deal, &all, i, false)) {
        }
    }
}
