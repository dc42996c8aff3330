/* SPDX-License-Identifier: MIT
 *
 * placement_deal.c -- which partitions move, once quotas say how many.
 *
 * A place is a source when it is a hole or its node holds more than its quota. Nodes below their
 * quota are sinks. Each sink in turn takes the sources that suit it best:
 *
 *   1. in rows that its taking brings closer to the bounds of racks,
 *   2. in rows with the most holes (a row that is left to the end may find only its own nodes),
 *   3. in rows whose other nodes are its partners already; else those with the fewest partners.
 *
 * A sink that no source suits looks for a chain: it takes the place of x, x that of y, y a source;
 * first through places that were filled in this step, which costs nothing, then through any. Rows
 * that racks still object to are mended by swapping two places, which leaves all counts alone, or
 * by a node beyond its quota and a chain from it.
 */
#include "cluster/placement_internal.h"

void
deal_walk_init(struct deal *deal)
{
    u32 bits = deal_block_bits(deal);
    for (u32 at = 0; at < 1u << bits; at++) {
        deal->blocks[at] = 0;
        for (u32 i = 0; i < bits; i++)
            deal->blocks[at] |= (u8)((at >> i & 1) << (bits - 1 - i));
    }
}

void
deal_place(struct deal *deal, u32 partition, u32 place, u32 node)
{
    u16 *row = deal_row(deal, partition);
    u32 old = row[place];
    for (u32 k = 0; k < deal->replicas; k++) {
        u32 other = row[k];
        if (k == place || other == DEAL_HOLE) continue;
        if (old != DEAL_HOLE) {
            --*deal_pair(deal, other, old);
            if (--*deal_pair(deal, old, other) == 0) {
                deal->nodes[old].partners--;
                deal->nodes[other].partners--;
            }
        }
        if (node != DEAL_HOLE) {
            ++*deal_pair(deal, other, node);
            if (++*deal_pair(deal, node, other) == 1) {
                deal->nodes[node].partners++;
                deal->nodes[other].partners++;
            }
        }
    }
    if (old != DEAL_HOLE) deal->nodes[old].held--;
    if (node != DEAL_HOLE) deal->nodes[node].held++;
    row[place] = (u16)node;
}

/* ---- racks of a row ---- */

/* What a row has of racks, so that one place after the other can be tried. */
struct racks {
    u32 over;    /* places beyond the high bounds of their racks */
    u32 lacking; /* places that low bounds ask for and that are not there */
    u32 holes;
    u16 at[LIMIT_PLACEMENT_REPLICAS]; /* of each place, DEAL_HOLE: a hole */
};

static u32
racks_count(const struct deal *deal, const struct racks *racks, u32 rack)
{
    u32 count = 0;
    for (u32 k = 0; k < deal->replicas; k++)
        count += racks->at[k] == rack;
    return count;
}

static u32
racks_violation(u32 over, u32 lacking, u32 holes)
{
    return over + (lacking > holes ? lacking - holes : 0);
}

/* Returns by how many places the row is off. */
static u32
racks_of(const struct deal *deal, const u16 *row, struct racks *out)
{
    if (deal->rack_count == 1) return 0; /* out is not used then */
    out->over = out->holes = 0;
    out->lacking = deal->racks_low;
    for (u32 k = 0; k < deal->replicas; k++) {
        u32 rack = row[k] == DEAL_HOLE ? DEAL_HOLE : deal->nodes[row[k]].rack, before = 0;
        out->at[k] = (u16)rack;
        if (rack == DEAL_HOLE) {
            out->holes++;
            continue;
        }
        for (u32 j = 0; j < k; j++)
            before += out->at[j] == rack;
        if (before >= deal->racks[rack].high) out->over++;
        if (before < deal->racks[rack].low) out->lacking--;
    }
    return racks_violation(out->over, out->lacking, out->holes);
}

/* By how many it would be with node in that place. */
static u32
racks_with(const struct deal *deal, const struct racks *racks, u32 place, u32 node)
{
    if (deal->rack_count == 1) return 0;
    u32 old = racks->at[place], new = deal->nodes[node].rack;
    u32 over = racks->over, lacking = racks->lacking, holes = racks->holes;
    if (old == new) return racks_violation(over, lacking, holes);
    if (old == DEAL_HOLE) {
        holes--;
    } else {
        u32 count = racks_count(deal, racks, old);
        over -= count > deal->racks[old].high;
        lacking += count <= deal->racks[old].low;
    }
    u32 count = racks_count(deal, racks, new);
    over += count >= deal->racks[new].high;
    lacking -= count < deal->racks[new].low;
    return racks_violation(over, lacking, holes);
}

u32
deal_row_violation(const struct deal *deal, const u16 *row)
{
    struct racks racks;
    return racks_of(deal, row, &racks);
}

/* ---- sources ---- */

static bool
is_source(const struct deal *deal, u32 occupant)
{
    return occupant == DEAL_HOLE || deal->nodes[occupant].held > deal->nodes[occupant].quota;
}

static u32
row_holes(const struct deal *deal, const u16 *row)
{
    u32 holes = 0;
    for (u32 k = 0; k < deal->replicas; k++)
        holes += row[k] == DEAL_HOLE;
    return holes;
}

/* ---- a sink takes ---- */

struct choice {
    u64 cost; /* UINT64_MAX: there is none */
    u32 at;   /* of deal_walk */
    u32 place;
};

/* What one more partner of a node costs, or one fewer saves: the more it has, the more. */
static u32
crowd(const struct deal *deal, u32 node, u32 more)
{
    u32 partners = deal->nodes[node].partners + more;
    return partners > DEAL_PARTNERS_FREE ? 8 + partners : 0;
}

/* Above what can be saved, so that costs stay positive. */
#define CROWD_BASE 0x4000u
static_assert(CROWD_BASE > 2 * LIMIT_PLACEMENT_REPLICAS * (LIMIT_PLACEMENT_NODES + 8),
              "savings fit, and with the base both fit 16 bits");

/* UINT64_MAX when it cannot be. The order of costs is that of the essay. grain: see sink_take. */
static u64
cost_of(const struct deal *deal, const u16 *row, const struct racks *racks, u32 before, u32 place,
        u32 node, u32 grain)
{
    u32 after = racks_with(deal, racks, place, node);
    if (after > before) return UINT64_MAX;
    u32 old = row[place];
    u64 crowded = CROWD_BASE, shared = 0;
    for (u32 k = 0; k < deal->replicas; k++) {
        if (k == place || row[k] == DEAL_HOLE) continue;
        u32 together = *deal_pair(deal, node, row[k]);
        if (together == 0) crowded += crowd(deal, node, 1) + crowd(deal, row[k], 1);
        if (old != DEAL_HOLE && *deal_pair(deal, old, row[k]) == 1)
            crowded -= crowd(deal, old, 0) + crowd(deal, row[k], 0);
        shared = MAX(shared, together);
    }
    u64 holes = row[place] == DEAL_HOLE ? row_holes(deal, row) : 0;
    return (u64)(LIMIT_PLACEMENT_REPLICAS - (before - after)) << 48 |
           (LIMIT_PLACEMENT_REPLICAS - holes) << 32 | crowded << 16 | shared / grain;
}

/* The place of a row that suits the node best; the first one where several do. */
static struct choice
row_choice(const struct deal *deal, u32 at, u32 node, u32 grain)
{
    const u16 *row = deal_row(deal, deal_walk(deal, at));
    struct choice best = {.cost = UINT64_MAX, .at = at};
    bool sources = false;
    for (u32 k = 0; k < deal->replicas; k++) {
        if (row[k] == node) return best;
        sources |= is_source(deal, row[k]);
    }
    if (!sources) return best;
    struct racks racks;
    u32 before = racks_of(deal, row, &racks);
    bool hole = false;
    for (u32 i = 0; i < deal->replicas; i++) {
        /* From the end, so that the first of a row stays as long as another one is as good. */
        u32 k = deal->scattered ? deal->replicas - 1 - i : i;
        if (!is_source(deal, row[k]) || (row[k] == DEAL_HOLE && hole)) continue;
        if (row[k] == DEAL_HOLE) hole = true; /* one hole is like another */
        u64 cost = cost_of(deal, row, &racks, before, k, node, grain);
        if (cost >= best.cost) continue;
        best.cost = cost;
        best.place = k;
    }
    return best;
}

static bool
wants(const struct deal *deal, u32 node)
{
    return deal->nodes[node].held < deal->nodes[node].quota;
}

/* Costs of places can fall only where crowds count. Without, no row becomes better for a sink than
 * it was before, and those that were worse than what is looked for now need no other look. */
static bool
costs_only_grow(const struct deal *deal)
{
    return deal->node_count <= DEAL_PARTNERS_FREE + 1;
}

/* ---- kinds of rows ---- */

static u8
kind_of(struct deal_kinds *kinds, const u16 *row, u32 replicas)
{
    u64 nodes = 0;
    for (u32 k = 0; k < replicas; k++)
        nodes = nodes << 16 | row[k];
    u32 slot = (u32)(nodes * 0x9e3779b97f4a7c15u >> (64 - DEAL_KINDS_BITS));
    for (; kinds->slots[slot] != DEAL_KIND_NONE; slot = (slot + 1) % ARRAY_COUNT(kinds->slots))
        if (kinds->kinds[kinds->slots[slot]].nodes == nodes) return kinds->slots[slot];
    if (kinds->count == DEAL_KINDS_MAX) return DEAL_KIND_NONE;
    kinds->slots[slot] = (u8)kinds->count++;
    kinds->kinds[kinds->slots[slot]] = (struct deal_kind){.nodes = nodes};
    return kinds->slots[slot];
}

/* For a sink: kinds of all rows, of which nothing is known yet. */
static void
kinds_begin(struct deal *deal)
{
    struct deal_kinds *kinds = deal->kinds;
    kinds->count = 0;
    kinds->taken = 1;
    memset(kinds->slots, DEAL_KIND_NONE, sizeof(kinds->slots));
    memset(kinds->rows, DEAL_KIND_NONE, deal->partition_count);
    for (u32 at = 0; deal->replicas <= DEAL_KIND_PLACES && at < deal->partition_count; at++)
        kinds->rows[at] = kind_of(kinds, deal_row(deal, deal_walk(deal, at)), deal->replicas);
}

static struct choice
row_look(struct deal *deal, u32 at, u32 node, u32 grain)
{
    struct deal_kinds *kinds = deal->kinds;
    u8 number = kinds->rows[at];
    if (number == DEAL_KIND_NONE) return row_choice(deal, at, node, grain);
    struct deal_kind *kind = &kinds->kinds[number];
    if (kind->taken != kinds->taken) {
        struct choice choice = row_choice(deal, at, node, grain);
        kind->taken = kinds->taken;
        kind->cost = choice.cost;
        kind->place = choice.place;
    }
    return (struct choice){.cost = kind->cost, .at = at, .place = kind->place};
}

static void
sink_place(struct deal *deal, struct choice choice, u32 node)
{
    struct deal_kinds *kinds = deal->kinds;
    u32 partition = deal_walk(deal, choice.at);
    deal_place(deal, partition, choice.place, node);
    kinds->taken++;
    if (deal->replicas <= DEAL_KIND_PLACES)
        kinds->rows[choice.at] = kind_of(kinds, deal_row(deal, partition), deal->replicas);
}

/* Takes the best place there is, then in one pass all that are as good. Rows shared are counted in
 * grains, a 32nd of what is wanted, so that there are few passes where much is wanted. *least: what
 * no place is better than; where one is as good, nobody looks further. */
static bool
sink_take(struct deal *deal, u32 node, u32 grain, u64 *least)
{
    bool grow = costs_only_grow(deal);
    struct choice best = {.cost = UINT64_MAX};
    for (u32 at = 0; at < deal->partition_count && best.cost > *least; at++) {
        if (deal->costs[at] >= best.cost) continue;
        deal_look(deal);
        struct choice choice = row_look(deal, at, node, grain);
        if (grow) deal->costs[at] = choice.cost;
        if (choice.cost < best.cost) best = choice;
    }
    if (best.cost == UINT64_MAX) return false;
    sink_place(deal, best, node);
    u64 left = UINT64_MAX;
    for (u32 i = 1; i < deal->partition_count && wants(deal, node); i++) {
        u32 at = (best.at + i) & (deal->partition_count - 1);
        struct choice choice = {.cost = deal->costs[at]};
        if (choice.cost <= best.cost) {
            deal_look(deal);
            choice = row_look(deal, at, node, grain);
            if (grow) deal->costs[at] = choice.cost;
        }
        if (choice.cost <= best.cost)
            sink_place(deal, choice, node);
        else
            left = MIN(left, choice.cost);
    }
    *least = grow ? left : 0;
    return true;
}

/* ---- chains ---- */

static bool
filled_now(const struct deal *deal, u32 partition, u32 node)
{
    const u16 *origin = deal->origin + (size_t)partition * deal->replicas;
    return !deal_row_has(deal, origin, node);
}

static bool
on_path(const struct deal *deal, u32 node, u32 sink, u32 partition)
{
    for (; node != sink; node = deal->nodes[node].parent)
        if (deal->nodes[node].parent_partition == partition) return true;
    return false;
}

/* node takes this place, the nodes that led to it take each other's. */
static void
chain_take(struct deal *deal, u32 node, u32 sink, u32 partition, u32 place)
{
    for (;;) {
        deal_place(deal, partition, place, node);
        if (node == sink) return;
        partition = deal->nodes[node].parent_partition;
        place = deal->nodes[node].parent_place;
        node = deal->nodes[node].parent;
    }
}

static bool
sink_chain(struct deal *deal, u32 sink, bool any)
{
    for (u32 i = 0; i < deal->node_count; i++)
        deal->nodes[i].seen = false;
    u32 head = 0, tail = 0;
    deal->queue[tail++] = (u16)sink;
    deal->nodes[sink].seen = true;
    while (head < tail) {
        u32 node = deal->queue[head++];
        for (u32 at = 0; at < deal->partition_count; at++) {
            u32 p = deal_walk(deal, at);
            const u16 *row = deal_row(deal, p);
            deal_look(deal);
            if (deal_row_has(deal, row, node) || on_path(deal, node, sink, p)) continue;
            struct racks racks;
            u32 before = racks_of(deal, row, &racks);
            for (u32 k = 0; k < deal->replicas; k++) {
                u32 other = row[k];
                bool source = is_source(deal, other);
                if (!source && (deal->nodes[other].seen || !(any || filled_now(deal, p, other))))
                    continue;
                if (racks_with(deal, &racks, k, node) > before) continue;
                if (source) {
                    chain_take(deal, node, sink, p, k);
                    return true;
                }
                deal->nodes[other].seen = true;
                deal->nodes[other].parent = (u16)node;
                deal->nodes[other].parent_partition = p;
                deal->nodes[other].parent_place = (u16)k;
                deal->queue[tail++] = (u16)other;
            }
        }
    }
    return false;
}

/* ---- what is left ---- */

/* A hole that no chain reached, because racks stand in the way: a replica on the wrong rack is
 * better than none. */
static void
holes_fill(struct deal *deal)
{
    for (u32 p = 0; p < deal->partition_count; p++) {
        u16 *row = deal_row(deal, p);
        for (u32 k = 0; k < deal->replicas; k++) {
            if (row[k] != DEAL_HOLE) continue;
            deal_look(deal);
            struct racks racks;
            racks_of(deal, row, &racks);
            u32 best = DEAL_HOLE, best_violation = 0;
            for (u32 i = 0; i < deal->node_count; i++) {
                if (deal_row_has(deal, row, i)) continue;
                u32 violation = racks_with(deal, &racks, k, i);
                i64 room = (i64)deal->nodes[i].quota - deal->nodes[i].held;
                if (best != DEAL_HOLE &&
                    (violation > best_violation ||
                     (violation == best_violation &&
                      room <= (i64)deal->nodes[best].quota - deal->nodes[best].held)))
                    continue;
                best = i;
                best_violation = violation;
            }
            CHECK(best != DEAL_HOLE); /* a row has no more places than there are nodes */
            deal_place(deal, p, k, best);
        }
    }
}

/* Swaps one place of this row with one of another so that together they are off by less. */
static bool
row_swap(struct deal *deal, u32 partition)
{
    u16 *row = deal_row(deal, partition);
    struct racks racks, others;
    u32 before = racks_of(deal, row, &racks);
    for (u32 k = 0; k < deal->replicas; k++) {
        for (u32 at = 0; at < deal->partition_count; at++) {
            u32 q = deal_walk(deal, at);
            u16 *other = deal_row(deal, q);
            deal_look(deal);
            if (q == partition || deal_row_has(deal, other, row[k])) continue;
            u32 other_before = racks_of(deal, other, &others);
            for (u32 j = 0; j < deal->replicas; j++) {
                u32 a = row[k], b = other[j];
                if (deal_row_has(deal, row, b)) continue;
                if (racks_with(deal, &racks, k, b) + racks_with(deal, &others, j, a) >=
                    before + other_before)
                    continue;
                deal_place(deal, partition, k, b);
                deal_place(deal, q, j, a);
                return true;
            }
        }
    }
    return false;
}

/* Where no swap helps: a node that racks want takes a place though it has enough, and a chain gives
 * who lost it something else. Without a chain it stays so: racks come before even counts. */
static bool
row_displace(struct deal *deal, u32 partition)
{
    const u16 *row = deal_row(deal, partition);
    struct racks racks;
    u32 before = racks_of(deal, row, &racks);
    for (u32 k = 0; k < deal->replicas; k++) {
        for (u32 i = 0; i < deal->node_count; i++) {
            deal_look(deal);
            if (deal_row_has(deal, row, i) || racks_with(deal, &racks, k, i) >= before) continue;
            u32 old = row[k];
            deal_place(deal, partition, k, i);
            if (wants(deal, old)) (void)sink_chain(deal, old, true);
            return true;
        }
    }
    return false;
}

/* The sink that is furthest below its quota goes first: large ones find room while there is most.
 */
static u32
sink_next(const struct deal *deal)
{
    u32 best = DEAL_HOLE;
    for (u32 i = 0; i < deal->node_count; i++) {
        const struct deal_node *node = &deal->nodes[i];
        if (!wants(deal, i) || node->seen) continue;
        if (best == DEAL_HOLE ||
            node->quota - node->held > deal->nodes[best].quota - deal->nodes[best].held)
            best = i;
    }
    return best;
}

void
deal_places(struct deal *deal)
{
    for (u32 i = 0; i < deal->node_count; i++)
        deal->nodes[i].seen = false;
    for (;;) {
        u32 sink = sink_next(deal);
        if (sink == DEAL_HOLE) break;
        u32 grain = 1 + (deal->nodes[sink].quota - deal->nodes[sink].held) / 32;
        u64 least = 0;
        memset(deal->costs, 0, deal->partition_count * sizeof(*deal->costs));
        kinds_begin(deal);
        while (wants(deal, sink) && sink_take(deal, sink, grain, &least)) {
        }
        deal->nodes[sink].seen = true;
    }
    for (u32 i = 0; i < deal->node_count; i++)
        while (wants(deal, i) && (sink_chain(deal, i, false) || sink_chain(deal, i, true))) {
        }
    holes_fill(deal);
    /* A swap may leave a little of it to a row that was passed already; all together shrinks. */
    for (bool again = true; again;) {
        again = false;
        for (u32 p = 0; p < deal->partition_count; p++)
            while (deal_row_violation(deal, deal_row(deal, p)) > 0 &&
                   (row_swap(deal, p) || row_displace(deal, p)))
                again = true;
    }
}
