/* SPDX-License-Identifier: MIT
 *
 * placement.c -- see placement.h. Each data center is copied out of the present placement, dealt to
 * apart, and written into the next; what differs in the end are the moves.
 */
#include "cluster/placement.h"

#include "cluster/placement_internal.h"

/* ---- input ---- */

static bool
input_valid(const struct placement_input *input, const struct placement *present)
{
    if (input->node_count == 0 || input->node_count > LIMIT_PLACEMENT_NODES) return false;
    if (!is_power_of_two(input->partition_count) || input->partition_count > SLOT_COUNT)
        return false;
    if (input->replicas == 0 || input->replicas > LIMIT_PLACEMENT_REPLICAS) return false;
    if (input->dealing > PLACEMENT_EVEN) return false;
    for (u32 i = 0; i < input->node_count; i++) {
        const struct placement_node *node = &input->nodes[i];
        if (node->id == PLACEMENT_NONE || (i > 0 && node->id <= node[-1].id)) return false;
        if (node->weight == 0 || node->weight > LIMIT_PLACEMENT_WEIGHT) return false;
        if (node->state > PLACEMENT_LEAVING) return false;
    }
    return present == NULL || present->partition_count == input->partition_count;
}

static const struct placement_node *
input_find(const struct placement_input *input, u32 id)
{
    u32 first = 0, last = input->node_count;
    while (first < last) {
        u32 middle = (first + last) / 2;
        if (input->nodes[middle].id < id)
            first = middle + 1;
        else
            last = middle;
    }
    return first < input->node_count && input->nodes[first].id == id ? &input->nodes[first] : NULL;
}

/* The data centers that have somebody to hold data, ascending; false when there are too many. */
static bool
datacenters_of(const struct placement_input *input, u16 *out, u32 *count_out)
{
    u32 count = 0;
    for (u32 i = 0; i < input->node_count; i++) {
        if (input->nodes[i].state == PLACEMENT_LEAVING) continue;
        u16 number = input->nodes[i].datacenter;
        u32 at = 0;
        while (at < count && out[at] < number)
            at++;
        if (at < count && out[at] == number) continue;
        if (count == LIMIT_PLACEMENT_DATACENTERS) return false;
        memmove(out + at + 1, out + at, (count - at) * sizeof(*out));
        out[at] = number;
        count++;
    }
    *count_out = count;
    return count > 0;
}

/* ---- one data center ---- */

static size_t
deal_rows_bytes(const struct deal *deal)
{
    return (size_t)deal->partition_count * deal->replicas * sizeof(u16);
}

static size_t
deal_pairs_bytes(const struct deal *deal)
{
    return (size_t)deal->node_count * deal->node_count * sizeof(u16);
}

static size_t
deal_costs_bytes(const struct deal *deal)
{
    return deal->partition_count * sizeof(*deal->costs);
}

static size_t
deal_kinds_bytes(const struct deal *deal)
{
    return align_up(sizeof(*deal->kinds) + deal->partition_count, sizeof(u64));
}

static size_t
deal_searches_bytes(const struct deal *deal)
{
    return deal_costs_bytes(deal) + deal_kinds_bytes(deal) +
           deal->node_count * sizeof(*deal->queue);
}

static void
deal_deinit(struct deal *deal, struct budget *budget)
{
    mem_free(budget, deal->nodes, deal->node_count * sizeof(*deal->nodes));
    mem_free(budget, deal->racks, deal->node_count * sizeof(*deal->racks));
    mem_free(budget, deal->rows, deal_rows_bytes(deal));
    mem_free(budget, deal->origin, deal_rows_bytes(deal));
    mem_free(budget, deal->pairs, deal_pairs_bytes(deal));
    mem_free(budget, deal->costs, deal_searches_bytes(deal));
}

static u32
deal_find(const struct deal *deal, u32 id)
{
    u32 first = 0, last = deal->node_count;
    while (first < last) {
        u32 middle = (first + last) / 2;
        if (deal->nodes[middle].id < id)
            first = middle + 1;
        else
            last = middle;
    }
    return first < deal->node_count && deal->nodes[first].id == id ? first : DEAL_HOLE;
}

static void
deal_add_node(struct deal *deal, const struct placement_node *from)
{
    u32 rack = 0;
    while (rack < deal->rack_count && deal->racks[rack].number != from->rack)
        rack++;
    if (rack == deal->rack_count) deal->racks[deal->rack_count++].number = from->rack;
    deal->racks[rack].node_count++;
    deal->racks[rack].weight += from->weight;
    deal->nodes[deal->node_count++] =
        (struct deal_node){.id = from->id, .weight = from->weight, .rack = (u16)rack};
}

static status
deal_init(struct deal *deal, const struct placement_input *input, u16 datacenter,
          struct budget *budget)
{
    u32 count = 0;
    for (u32 i = 0; i < input->node_count; i++)
        count +=
            input->nodes[i].datacenter == datacenter && input->nodes[i].state != PLACEMENT_LEAVING;
    *deal = (struct deal){.partition_count = input->partition_count,
                          .scattered = input->dealing != PLACEMENT_IN_ORDER,
                          .even = input->dealing == PLACEMENT_EVEN,
                          .replicas = MIN(input->replicas, count),
                          .node_count = count,
                          .pause = input->pause};
    deal->nodes = mem_alloc_zero(budget, count * sizeof(*deal->nodes));
    deal->racks = mem_alloc_zero(budget, count * sizeof(*deal->racks));
    deal->rows = mem_alloc(budget, deal_rows_bytes(deal));
    deal->origin = mem_alloc(budget, deal_rows_bytes(deal));
    deal->pairs = mem_alloc_zero(budget, deal_pairs_bytes(deal));
    deal->costs = mem_alloc_zero(budget, deal_searches_bytes(deal));
    if (deal->nodes == NULL || deal->racks == NULL || deal->rows == NULL || deal->origin == NULL ||
        deal->pairs == NULL || deal->costs == NULL) {
        deal_deinit(deal, budget);
        return ST_NO_MEMORY;
    }
    deal->kinds = (struct deal_kinds *)(deal->costs + deal->partition_count);
    deal->queue = (u16 *)((u8 *)deal->kinds + deal_kinds_bytes(deal));
    deal_walk_init(deal);
    deal->node_count = 0;
    for (u32 i = 0; i < input->node_count; i++)
        if (input->nodes[i].datacenter == datacenter && input->nodes[i].state != PLACEMENT_LEAVING)
            deal_add_node(deal, &input->nodes[i]);
    return ST_OK;
}

/* Takes over who stays, in the order that the row has. A place that becomes free is a hole. */
static void
deal_load(struct deal *deal, const struct placement *present)
{
    memset(deal->rows, 0xff, deal_rows_bytes(deal));
    for (u32 p = 0; present != NULL && p < present->partition_count; p++) {
        const u32 *ids = placement_row(present, p);
        u32 place = 0;
        for (u32 k = 0; k < present->width && place < deal->replicas; k++) {
            if (ids[k] == PLACEMENT_NONE) continue;
            u32 node = deal_find(deal, ids[k]);
            if (node == DEAL_HOLE || deal_row_has(deal, deal_row(deal, p), node)) continue;
            deal_place(deal, p, place++, node);
        }
    }
    memcpy(deal->origin, deal->rows, deal_rows_bytes(deal));
}

/* ---- moves ---- */

static bool
moves_add(struct placement_moves *moves, struct placement_move move)
{
    if (moves->count == moves->capacity) {
        u32 capacity = MAX(64u, moves->capacity * 2);
        struct placement_move *more = mem_realloc(
            moves->budget, moves->moves, moves->capacity * sizeof(*more), capacity * sizeof(*more));
        if (more == NULL) return false;
        moves->moves = more;
        moves->capacity = capacity;
    }
    moves->moves[moves->count++] = move;
    return true;
}

static bool
row_has(const u32 *row, u32 width, u32 id)
{
    for (u32 k = 0; k < width; k++)
        if (row[k] == id) return true;
    return false;
}

/* Each node that is new in a row with one that is no longer in it: of its own data center, or one
 * that is gone and whose data center nobody knows. */
static bool
moves_of_row(const struct placement_input *input, const struct placement *present,
             const struct placement *next, u32 partition, struct placement_moves *moves)
{
    const u32 *new = placement_row(next, partition);
    const u32 *old = present != NULL ? placement_row(present, partition) : NULL;
    u32 old_width = present != NULL ? present->width : 0;
    u64 used[(LIMIT_PLACEMENT_REPLICAS * LIMIT_PLACEMENT_DATACENTERS + 63) / 64] = {0};
    for (u32 k = 0; k < next->width; k++) {
        if (new[k] == PLACEMENT_NONE || row_has(old, old_width, new[k])) continue;
        u16 datacenter = input_find(input, new[k])->datacenter;
        struct placement_move move = {.partition = partition, .to = new[k]};
        for (u32 j = 0; j < old_width && move.from == PLACEMENT_NONE; j++) {
            if (old[j] == PLACEMENT_NONE || (used[j / 64] >> j % 64 & 1) != 0) continue;
            if (row_has(new, next->width, old[j])) continue;
            const struct placement_node *node = input_find(input, old[j]);
            if (node != NULL && node->datacenter != datacenter) continue;
            move.from = old[j];
            used[j / 64] |= (u64)1 << j % 64;
        }
        if (!moves_add(moves, move)) return false;
    }
    for (u32 j = 0; j < old_width; j++) {
        if (old[j] == PLACEMENT_NONE || (used[j / 64] >> j % 64 & 1) != 0) continue;
        if (row_has(new, next->width, old[j]) || row_has(old, j, old[j])) continue;
        struct placement_move move = {.partition = partition, .from = old[j]};
        if (!moves_add(moves, move)) return false;
    }
    return true;
}

/* ---- the whole ---- */

static status
datacenter_next(const struct placement_input *input, const struct placement *present,
                u16 datacenter, u32 column, struct budget *budget, struct placement *next)
{
    struct deal deal;
    status st = deal_init(&deal, input, datacenter, budget);
    if (!ok(st)) return st;
    deal_load(&deal, present);
    deal_quotas(&deal);
    deal_places(&deal);
    deal_firsts(&deal);
    if (deal.even) deal_order(&deal, present, input->replicas);
    for (u32 p = 0; p < next->partition_count; p++) {
        const u16 *row = deal_row(&deal, p);
        u32 *ids = next->ids + (size_t)p * next->width + column;
        for (u32 k = 0; k < deal.replicas; k++)
            ids[k] = deal.nodes[row[k]].id;
    }
    deal_deinit(&deal, budget);
    return ST_OK;
}

status
placement_next(const struct placement_input *input, const struct placement *present,
               struct budget *budget, struct placement *next_out, struct placement_moves *moves_out)
{
    u16 datacenters[LIMIT_PLACEMENT_DATACENTERS];
    u32 count;
    if (!input_valid(input, present) || !datacenters_of(input, datacenters, &count))
        return ST_INVALID;
    if (present != NULL && present->width > LIMIT_PLACEMENT_REPLICAS * LIMIT_PLACEMENT_DATACENTERS)
        return ST_INVALID;

    struct placement next = {.partition_count = input->partition_count,
                             .width = count * input->replicas,
                             .budget = budget};
    struct placement_moves moves = {.budget = budget};
    next.ids = mem_alloc_zero(budget, (size_t)next.partition_count * next.width * sizeof(u32));
    status st = next.ids != NULL ? ST_OK : ST_NO_MEMORY;
    for (u32 d = 0; d < count && ok(st); d++)
        st = datacenter_next(input, present, datacenters[d], d * input->replicas, budget, &next);
    for (u32 p = 0; p < next.partition_count && ok(st); p++) {
        if (p % DEAL_PAUSE_LOOKS == 0 && input->pause != NULL) input->pause();
        if (!moves_of_row(input, present, &next, p, &moves)) st = ST_NO_MEMORY;
    }
    if (!ok(st)) {
        placement_deinit(&next);
        placement_moves_deinit(&moves);
        return st;
    }
    *next_out = next;
    *moves_out = moves;
    return ST_OK;
}

void
placement_deinit(struct placement *placement)
{
    mem_free(placement->budget, placement->ids,
             (size_t)placement->partition_count * placement->width * sizeof(u32));
    placement->ids = NULL;
}

void
placement_moves_deinit(struct placement_moves *moves)
{
    mem_free(moves->budget, moves->moves, moves->capacity * sizeof(*moves->moves));
    *moves = (struct placement_moves){.budget = moves->budget};
}
