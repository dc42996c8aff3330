/* SPDX-License-Identifier: MIT
 *
 * stand_in.c -- see stand_in.h.
 */
#include "cluster/stand_in.h"

/* How near to each other two are: the more, the better one stands in for the other. */
static u32
nearness(const struct topology_member *a, const struct topology_member *b)
{
    if (strcmp(a->datacenter, b->datacenter) != 0) return 1;
    return strcmp(a->rack, b->rack) != 0 ? 2 : 3;
}

/* 0: nobody. */
static u32
choose(const struct topology *topology, u32 partition, bool (*alive)(const void *arg, u32 member),
       const void *arg, const struct quorum *quorum, u32 target)
{
    const struct topology_member *home = topology_member(topology, target);
    u32 best = 0, best_nearness = 0;
    for (u32 i = 0; home != NULL && i < topology->member_count; i++) {
        u32 at = (partition + i) % topology->member_count;
        const struct topology_member *member = &topology->members[at];
        u32 near = nearness(home, member);
        if (near <= best_nearness) continue;
        if (member->state != PLACEMENT_NORMAL || !alive(arg, member->number) ||
            quorum_find(quorum, member->number) != QUORUM_MEMBERS_MAX)
            continue;
        best = member->number;
        best_nearness = near;
    }
    return best;
}

void
stand_ins_choose(const struct topology *topology, u32 partition,
                 bool (*alive)(const void *arg, u32 member), const void *arg, struct quorum *quorum,
                 struct stand_ins *out)
{
    *out = (struct stand_ins){0};
    u32 lost = quorum_sets_lost(quorum);
    for (u32 i = 0; i < quorum->count; i++) {
        if (quorum->answers[i] != QUORUM_NO || (quorum->sets[i] & lost) == 0) continue;
        u32 target = quorum->members[i];
        u32 member = choose(topology, partition, alive, arg, quorum, target);
        if (member == 0) continue;
        quorum_stand_in(quorum, i, member, lost);
        out->targets[i] = target;
        out->count++;
    }
}
