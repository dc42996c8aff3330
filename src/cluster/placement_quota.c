/* SPDX-License-Identifier: MIT
 *
 * placement_quota.c -- how many partitions each node shall hold.
 *
 * 1. Bounds. A row has N places. With R racks, a rack has at most `high` of them: the least c for
 *    which all racks together, min(c, nodes of the rack) each, have room for N. Where R < N it has
 *    at least `low` = min(N / R, its nodes), so that no rack is left out (P2).
 * 2. Shares. All places are shared out to racks by weight; who is beyond a bound is frozen there
 *    and the rest is shared out again, the side that is further off first, as space is given to
 *    flexible boxes. In a rack the same, with the bound that a node holds at most everything.
 * 3. Quotas are whole numbers near the shares. They start from what a node holds, so that no
 *    partition moves for the sake of rounding; then racks are brought into their bounds, then the
 *    sum is made right by giving to who is furthest below its share, or taking from who is furthest
 *    above; then nodes of one share are made even.
 */
#include "cluster/placement_internal.h"

static void
bounds_set(struct deal *deal)
{
    u32 high = 0, room = 0;
    while (room < deal->replicas) {
        high++;
        room = 0;
        for (u32 r = 0; r < deal->rack_count; r++)
            room += MIN(high, deal->racks[r].node_count);
    }
    deal->racks_low = 0;
    for (u32 r = 0; r < deal->rack_count; r++) {
        struct deal_rack *rack = &deal->racks[r];
        rack->high = MIN(high, rack->node_count);
        rack->low = MIN(deal->replicas / deal->rack_count, rack->node_count);
        deal->racks_low += rack->low;
    }
}

static u64
share_of(u64 total, u64 weight, u64 weight_sum)
{
    return (u64)((unsigned __int128)total * weight / weight_sum);
}

/* Freezes racks at their bounds until the others' shares are within theirs. On return the places
 * and the weight of those that are not frozen. */
static void
rack_shares(struct deal *deal, u64 *free_places_out, u64 *free_weight_out)
{
    u64 places = (u64)deal->partition_count * deal->replicas;
    u64 weight = 0;
    for (u32 r = 0; r < deal->rack_count; r++) {
        deal->racks[r].frozen = false;
        weight += deal->racks[r].weight;
    }
    for (u32 round = 0; round <= deal->rack_count && weight > 0; round++) {
        u64 above = 0, below = 0;
        for (u32 r = 0; r < deal->rack_count; r++) {
            struct deal_rack *rack = &deal->racks[r];
            if (rack->frozen) continue;
            rack->share = share_of(DEAL_SHARE(places), rack->weight, weight);
            u64 high = DEAL_SHARE((u64)rack->high * deal->partition_count);
            u64 low = DEAL_SHARE((u64)rack->low * deal->partition_count);
            if (rack->share > high) above += rack->share - high;
            if (rack->share < low) below += low - rack->share;
        }
        if (above == 0 && below == 0) break;
        for (u32 r = 0; r < deal->rack_count; r++) {
            struct deal_rack *rack = &deal->racks[r];
            if (rack->frozen) continue;
            u64 bound = (u64)(above >= below ? rack->high : rack->low) * deal->partition_count;
            if (above >= below ? rack->share <= DEAL_SHARE(bound)
                               : rack->share >= DEAL_SHARE(bound))
                continue;
            rack->frozen = true;
            rack->share = DEAL_SHARE(bound);
            places -= MIN(places, bound);
            weight -= rack->weight;
        }
    }
    *free_places_out = places;
    *free_weight_out = weight;
}

static void
node_shares(struct deal *deal, u32 rack_index, u64 free_places, u64 free_weight)
{
    struct deal_rack *rack = &deal->racks[rack_index];
    /* Racks that are not frozen share one quotient, so that nodes of one weight have one share. */
    u64 total = rack->frozen ? rack->share : DEAL_SHARE(free_places);
    u64 weight = rack->frozen ? rack->weight : free_weight;
    u64 most = DEAL_SHARE(deal->partition_count);
    u64 rest = rack->share, rest_weight = rack->weight;
    bool again = true;
    for (u32 i = 0; i < deal->node_count; i++)
        if (deal->nodes[i].rack == rack_index) deal->nodes[i].share = 0;
    while (again) {
        again = false;
        for (u32 i = 0; i < deal->node_count; i++) {
            struct deal_node *node = &deal->nodes[i];
            if (node->rack != rack_index || node->share == most) continue;
            if (share_of(total, node->weight, weight) < most) continue;
            node->share = most;
            rest -= MIN(rest, most);
            rest_weight -= node->weight;
            again = true;
        }
        if (again) {
            total = rest;
            weight = rest_weight;
        }
    }
    for (u32 i = 0; i < deal->node_count; i++) {
        struct deal_node *node = &deal->nodes[i];
        if (node->rack != rack_index || node->share == most) continue;
        node->share = share_of(total, node->weight, weight);
    }
}

/* ---- quotas ---- */

static void
quota_change(struct deal *deal, u32 index, int change)
{
    deal->nodes[index].quota += (u32)change;
    deal->racks[deal->nodes[index].rack].quota += (u64)(i64)change;
}

static i64
quota_below(const struct deal_node *node)
{
    return (i64)node->share - (i64)DEAL_SHARE(node->quota);
}

static bool
rack_may_gain(const struct deal *deal, u32 rack)
{
    return deal->racks[rack].quota < (u64)deal->racks[rack].high * deal->partition_count;
}

static bool
rack_may_lose(const struct deal *deal, u32 rack)
{
    return deal->racks[rack].quota > (u64)deal->racks[rack].low * deal->partition_count;
}

/* Gives one to who is furthest below its share: of one rack, or (rack_count) of all that may gain.
 * False when nobody can take it. */
static bool
quota_give(struct deal *deal, u32 rack)
{
    u32 best = DEAL_HOLE;
    for (u32 i = 0; i < deal->node_count; i++) {
        const struct deal_node *node = &deal->nodes[i];
        if (node->quota >= deal->partition_count) continue;
        if (rack == deal->rack_count ? !rack_may_gain(deal, node->rack) : node->rack != rack)
            continue;
        if (best == DEAL_HOLE || quota_below(node) > quota_below(&deal->nodes[best])) best = i;
    }
    if (best == DEAL_HOLE) return false;
    quota_change(deal, best, 1);
    return true;
}

static bool
quota_take(struct deal *deal, u32 rack)
{
    u32 best = DEAL_HOLE;
    for (u32 i = 0; i < deal->node_count; i++) {
        const struct deal_node *node = &deal->nodes[i];
        if (node->quota == 0) continue;
        if (rack == deal->rack_count ? !rack_may_lose(deal, node->rack) : node->rack != rack)
            continue;
        if (best == DEAL_HOLE || quota_below(node) < quota_below(&deal->nodes[best])) best = i;
    }
    if (best == DEAL_HOLE) return false;
    quota_change(deal, best, -1);
    return true;
}

/* A rack at its bound evens out inside: its node gains from (or, where sign is -1, loses to) the
 * mate of another share that is furthest above (below) its own. */
static bool
quota_shift(struct deal *deal, u32 index, int sign)
{
    const struct deal_node *node = &deal->nodes[index];
    u32 best = DEAL_HOLE;
    for (u32 i = 0; i < deal->node_count; i++) {
        const struct deal_node *mate = &deal->nodes[i];
        if (mate->rack != node->rack || mate->share == node->share) continue;
        if (sign > 0 ? mate->quota == 0 : mate->quota == deal->partition_count) continue;
        if (best == DEAL_HOLE || quota_below(mate) * sign < quota_below(&deal->nodes[best]) * sign)
            best = i;
    }
    if (best == DEAL_HOLE) return false;
    quota_change(deal, index, sign);
    quota_change(deal, best, -sign);
    return true;
}

/* Among the nodes that have the share of nodes[like]: from the fullest to the emptiest. */
static bool
quota_even(struct deal *deal, u32 like)
{
    u32 least = like, most = like;
    for (u32 i = 0; i < deal->node_count; i++) {
        const struct deal_node *node = &deal->nodes[i];
        if (node->share != deal->nodes[like].share) continue;
        if (node->quota < deal->nodes[least].quota) least = i;
        if (node->quota > deal->nodes[most].quota) most = i;
    }
    if (deal->nodes[most].quota - deal->nodes[least].quota <= 1) return false;
    u32 from = deal->nodes[most].rack, to = deal->nodes[least].rack;
    if (from != to && !rack_may_gain(deal, to)) return quota_shift(deal, least, 1);
    if (from != to && !rack_may_lose(deal, from)) return quota_shift(deal, most, -1);
    quota_change(deal, most, -1);
    quota_change(deal, least, 1);
    return true;
}

/* A shift may make the mate's equals uneven: a few rounds, and no more steps than it could need. */
static void
quotas_even(struct deal *deal)
{
    u32 steps = deal->node_count * 8;
    for (bool again = true; again && steps > 0;) {
        again = false;
        for (u32 i = 0; i < deal->node_count; i++) {
            for (; steps > 0 && quota_even(deal, i); steps--)
                again = true;
        }
    }
}

void
deal_quotas(struct deal *deal)
{
    bounds_set(deal);
    u64 free_places, free_weight;
    rack_shares(deal, &free_places, &free_weight);
    for (u32 r = 0; r < deal->rack_count; r++) {
        deal->racks[r].quota = 0;
        node_shares(deal, r, free_places, free_weight);
    }

    u64 sum = 0, places = (u64)deal->partition_count * deal->replicas;
    for (u32 i = 0; i < deal->node_count; i++) {
        struct deal_node *node = &deal->nodes[i];
        u32 whole = (u32)(node->share >> DEAL_SHARE_BITS);
        bool part = (node->share & (DEAL_SHARE(1) - 1)) != 0;
        u32 low = whole > 0 ? whole - 1 : 0;
        u32 high = MIN(whole + part + 1, deal->partition_count);
        node->quota = CLAMP(node->held, low, high);
        deal->racks[node->rack].quota += node->quota;
    }
    for (u32 r = 0; r < deal->rack_count; r++) {
        struct deal_rack *rack = &deal->racks[r];
        while (rack->quota > (u64)rack->high * deal->partition_count && quota_take(deal, r)) {
        }
        while (rack->quota < (u64)rack->low * deal->partition_count && quota_give(deal, r)) {
        }
        sum += rack->quota;
    }
    while (sum < places && quota_give(deal, deal->rack_count))
        sum++;
    while (sum > places && quota_take(deal, deal->rack_count))
        sum--;
    CHECK(sum == places); /* bounds_set left room for all */
    quotas_even(deal);
}
