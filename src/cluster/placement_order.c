/* SPDX-License-Identifier: MIT
 *
 * placement_order.c -- the order of a row's other places, once it is dealt and has its first. A
 * keyspace of fewer replicas is on the first places of rows alone (P9), so each prefix is to be
 * even, and what changes in it is moved.
 *
 * Place after place is settled, with those before it fixed. Who may have it: those of the row whose
 * rack has had the fewest places before it, so that a prefix is on as many racks as there can be.
 * What is due to a node in a prefix: what it had in the one before, and of each row an equal part
 * with all who may have the place; nodes that are alike are due the mean of theirs. Rounded down or
 * up, that is its bounds. In parts there is a solution, so by max-flow there is one in whole numbers
 * but for what the mean changes; it is found as firsts are, by passing places on within rows and
 * along chains of rows.
 *
 * Little moves: who was in the prefix before has its place first. Then rows give where it moves
 * nothing more (who has it comes anew as well as another one), and only then where it does.
 *
 * Who deals twice gets the same: then all rows are as they were before, so all begin with who has
 * the place, and no chain is left.
 */
#include "cluster/placement_internal.h"

/* 1 / k of a row is a whole number of these for each k up to LIMIT_PLACEMENT_REPLICAS. */
#define ROW_PARTS 420u

struct order {
    struct deal *deal;
    const struct placement *present; /* or NULL */
    u32 width;                       /* of a data center there */
    u32 place;                       /* that is settled */
    bool relieve;                    /* who is above its bounds, or who is below them */
    bool unmoved;                    /* only where it moves nothing more */
};

/* Which of the places from order->place on may come next: bits. */
static u32
row_eligible(const struct order *order, const u16 *row)
{
    const struct deal *deal = order->deal;
    u32 most = deal->replicas, eligible = 0;
    for (u32 k = order->place; k < deal->replicas; k++) {
        u32 before = 0;
        for (u32 i = 0; deal->rack_count > 1 && i < order->place; i++)
            before += deal->nodes[row[i]].rack == deal->nodes[row[k]].rack;
        if (before < most) eligible = 0;
        most = MIN(most, before);
        if (before == most) eligible |= 1u << k;
    }
    return eligible;
}

/* Whether the node was in this prefix of the row. Who was is no move. */
static bool
was_here(const struct order *order, u32 partition, u32 node)
{
    const struct placement *present = order->present;
    if (present == NULL) return false;
    const u32 *ids = placement_row(present, partition);
    for (u32 k = 0; k < present->width; k++)
        if (ids[k] == order->deal->nodes[node].id) return k % order->width <= order->place;
    return false;
}

static void
place_give(const struct order *order, u16 *row, u32 other)
{
    struct deal *deal = order->deal;
    u32 old = row[order->place];
    deal->nodes[old].first--;
    deal->nodes[row[other]].first++;
    row[order->place] = row[other];
    row[other] = (u16)old;
}

/* ---- what is due ---- */

/* Nodes that are due the same: of one share, where racks do not tell them apart. */
static bool
alike(const struct deal *deal, const struct deal_node *a, const struct deal_node *b)
{
    const struct deal_rack *of_a = &deal->racks[a->rack], *of_b = &deal->racks[b->rack];
    return a->share == b->share &&
           (deal->rack_count >= deal->replicas ||
            (of_a->node_count == of_b->node_count && of_a->weight == of_b->weight));
}

/* Of each node its likes: parent is the first of them, which has their sums. */
static void
bounds_set(struct deal *deal)
{
    for (u32 i = 0; i < deal->node_count; i++) {
        struct deal_node *node = &deal->nodes[i];
        u32 like = 0;
        while (like < i &&
               !(deal->nodes[like].parent == like && alike(deal, &deal->nodes[like], node)))
            like++;
        node->parent = (u16)like;
        if (like == i) {
            node->likes = 1;
            node->likes_due = node->due;
            continue;
        }
        deal->nodes[like].likes++;
        deal->nodes[like].likes_due += node->due;
    }
    for (u32 i = 0; i < deal->node_count; i++) {
        struct deal_node *node = &deal->nodes[i];
        const struct deal_node *like = &deal->nodes[node->parent];
        u64 parts = (u64)like->likes * ROW_PARTS;
        node->first_low = (u32)(like->likes_due / parts);
        node->first_high = (u32)((like->likes_due + parts - 1) / parts);
    }
}

/* Who has the place to begin with, what each has of the prefix then, and bounds of it. */
static void
place_begin(const struct order *order)
{
    struct deal *deal = order->deal;
    for (u32 i = 0; i < deal->node_count; i++)
        deal->nodes[i].due = (u64)deal->nodes[i].first * ROW_PARTS;
    for (u32 p = 0; p < deal->partition_count; p++) {
        u16 *row = deal_row(deal, p);
        deal_look(deal);
        u32 eligible = row_eligible(order, row);
        u32 part = ROW_PARTS / (u32)__builtin_popcount(eligible);
        u32 first = (u32)__builtin_ctz(eligible), had = deal->replicas;
        for (u32 k = first; k < deal->replicas; k++) {
            if ((eligible >> k & 1) == 0) continue;
            deal->nodes[row[k]].due += part;
            if (had == deal->replicas && was_here(order, p, row[k])) had = k;
        }
        deal->nodes[row[order->place]].first++;
        place_give(order, row, had < deal->replicas ? had : first);
    }
    bounds_set(deal);
}

/* ---- who gives, and to whom ---- */

static bool
gives(const struct order *order, u32 node)
{
    const struct deal_node *giver = &order->deal->nodes[node];
    return giver->first > (order->relieve ? giver->first_high : giver->first_low);
}

/* How many it may take. */
static u32
takes(const struct order *order, u32 node)
{
    const struct deal_node *taker = &order->deal->nodes[node];
    u32 most = order->relieve ? taker->first_high : taker->first_low;
    return most - MIN(most, taker->first);
}

/* Places of the row to which the place may be passed on: bits. */
static u32
row_takers(const struct order *order, u32 partition)
{
    const u16 *row = deal_row(order->deal, partition);
    u32 takers = row_eligible(order, row) & ~(1u << order->place);
    if (!order->unmoved || takers == 0 || !was_here(order, partition, row[order->place]))
        return takers;
    for (u32 k = order->place + 1; k < order->deal->replicas; k++)
        if (!was_here(order, partition, row[k])) takers &= ~(1u << k);
    return takers;
}

/* Most are settled within their row. */
static void
rows_settle(const struct order *order)
{
    struct deal *deal = order->deal;
    for (u32 at = 0; at < deal->partition_count; at++) {
        u32 p = deal_walk(deal, at);
        u16 *row = deal_row(deal, p);
        deal_look(deal);
        if (!gives(order, row[order->place])) continue;
        u32 takers = row_takers(order, p), best = order->place, most = 0;
        for (u32 k = order->place + 1; k < deal->replicas; k++) {
            u32 room = (takers >> k & 1) != 0 ? takes(order, row[k]) : 0;
            if (room <= most) continue;
            most = room;
            best = k;
        }
        place_give(order, row, best);
    }
}

/* ---- chains ---- */

/* The node of the queue takes its place from its parent, that from its own, and so on to who gives.
 * False: a chain before this one has changed a row of it, or used up what its ends had. */
static bool
chain_pass(const struct order *order, u32 node)
{
    struct deal *deal = order->deal;
    if (takes(order, node) == 0) return false;
    u32 from = node;
    for (; deal->nodes[from].parent != DEAL_HOLE; from = deal->nodes[from].parent)
        if (deal_row(deal, deal->nodes[from].parent_partition)[order->place] !=
            deal->nodes[from].parent)
            return false;
    if (!gives(order, from)) return false;
    for (; deal->nodes[node].parent != DEAL_HOLE; node = deal->nodes[node].parent) {
        u16 *row = deal_row(deal, deal->nodes[node].parent_partition);
        u32 other = order->place;
        while (row[other] != node)
            other++;
        place_give(order, row, other);
    }
    return true;
}

/* Looks from all who give at once, until somebody is found who takes. */
static bool
chains_pass(const struct order *order)
{
    struct deal *deal = order->deal;
    u32 found = 0;
    bool further = false, passed = false;
    for (u32 i = 0; i < deal->node_count; i++) {
        deal->nodes[i].seen = gives(order, i);
        deal->nodes[i].parent = DEAL_HOLE;
        further |= deal->nodes[i].seen;
    }
    while (further && found == 0) {
        further = false;
        for (u32 at = 0; at < deal->partition_count; at++) {
            u32 p = deal_walk(deal, at);
            const u16 *row = deal_row(deal, p);
            deal_look(deal);
            if (!deal->nodes[row[order->place]].seen) continue;
            u32 takers = row_takers(order, p);
            for (u32 k = order->place + 1; k < deal->replicas; k++) {
                struct deal_node *other = &deal->nodes[row[k]];
                if ((takers >> k & 1) == 0 || other->seen) continue;
                other->seen = further = true;
                other->parent = row[order->place];
                other->parent_partition = p;
                if (takes(order, row[k]) > 0) deal->queue[found++] = row[k];
            }
        }
    }
    for (u32 i = 0; i < found; i++)
        passed |= chain_pass(order, deal->queue[i]);
    return passed;
}

static void
place_settle(struct order *order)
{
    for (u32 round = 0; round < 4; round++) {
        order->unmoved = round < 2;
        order->relieve = round % 2 == 0;
        rows_settle(order);
        while (chains_pass(order)) {
        }
    }
}

void
deal_order(struct deal *deal, const struct placement *present, u32 width)
{
    struct order order = {.deal = deal, .present = present, .width = width};
    for (u32 i = 0; i < deal->node_count; i++)
        deal->nodes[i].first = 0;
    for (u32 p = 0; p < deal->partition_count; p++)
        deal->nodes[deal_row(deal, p)[0]].first++;
    for (order.place = 1; order.place + 1 < deal->replicas; order.place++) {
        place_begin(&order);
        place_settle(&order);
    }
}
