/* SPDX-License-Identifier: MIT
 *
 * quorum.c -- see quorum.h. Sets are a handful of members: linear on purpose.
 */
#include "cluster/quorum.h"

void
quorum_init(struct quorum *quorum)
{
    *quorum = (struct quorum){0};
}

u32
quorum_find(const struct quorum *quorum, u32 member)
{
    for (u32 i = 0; i < quorum->count; i++)
        if (quorum->members[i] == member) return i;
    return QUORUM_MEMBERS_MAX;
}

void
quorum_set_add(struct quorum *quorum, const u32 *members, u32 count, u32 need)
{
    CHECK(quorum->set_count < QUORUM_SETS && count <= LIMIT_PLACEMENT_REPLICAS);
    u32 set = quorum->set_count++;
    quorum->need[set] = MAX(need, 1u);
    for (u32 i = 0; i < count; i++) {
        u32 at = quorum_find(quorum, members[i]);
        if (at == QUORUM_MEMBERS_MAX) {
            at = quorum->count++;
            quorum->members[at] = members[i];
            quorum->sets[at] = 0;
            quorum->answers[at] = QUORUM_PENDING;
        }
        quorum->sets[at] |= (u8)(1u << set);
    }
}

bool
quorum_answer(struct quorum *quorum, u32 member, enum quorum_answer answer)
{
    u32 at = quorum_find(quorum, member);
    if (at == QUORUM_MEMBERS_MAX || quorum->answers[at] != QUORUM_PENDING) return false;
    quorum->answers[at] = (u8)answer;
    return true;
}

static u32
count_in_set(const struct quorum *quorum, u32 set, enum quorum_answer answer)
{
    u32 count = 0;
    for (u32 i = 0; i < quorum->count; i++)
        if (quorum->sets[i] & 1u << set && quorum->answers[i] == answer) count++;
    return count;
}

u32
quorum_sets_lost(const struct quorum *quorum)
{
    u32 lost = 0;
    for (u32 set = 0; set < quorum->set_count; set++)
        if (count_in_set(quorum, set, QUORUM_YES) + count_in_set(quorum, set, QUORUM_PENDING) <
            quorum->need[set])
            lost |= 1u << set;
    return lost;
}

void
quorum_stand_in(struct quorum *quorum, u32 index, u32 member, u32 sets)
{
    CHECK(index < quorum->count);
    quorum->members[index] = member;
    quorum->sets[index] &= (u8)sets;
    quorum->answers[index] = QUORUM_PENDING;
    quorum->stand_ins |= 1u << index;
}

/* Of those who have places of their own. */
static u32
count_at_home(const struct quorum *quorum, u32 set, enum quorum_answer answer)
{
    u32 count = 0;
    for (u32 i = 0; i < quorum->count; i++)
        if ((quorum->stand_ins >> i & 1) == 0 && quorum->sets[i] & 1u << set &&
            quorum->answers[i] == answer)
            count++;
    return count;
}

enum quorum_state
quorum_state(const struct quorum *quorum)
{
    bool met = quorum->set_count > 0;
    for (u32 set = 0; set < quorum->set_count; set++) {
        u32 yes = count_in_set(quorum, set, QUORUM_YES);
        u32 pending = count_in_set(quorum, set, QUORUM_PENDING);
        if (yes + pending < quorum->need[set]) return QUORUM_LOST;
        met = met && yes >= quorum->need[set];
        if (LIKELY(quorum->stand_ins == 0)) continue;
        u32 yes_at_home = count_at_home(quorum, set, QUORUM_YES);
        if (yes_at_home + count_at_home(quorum, set, QUORUM_PENDING) == 0) return QUORUM_LOST;
        met = met && yes_at_home > 0;
    }
    return met ? QUORUM_MET : QUORUM_OPEN;
}

void
quorum_reset(struct quorum *quorum)
{
    for (u32 i = 0; i < quorum->count; i++)
        quorum->answers[i] = QUORUM_PENDING;
}

u32
quorum_count(const struct quorum *quorum, enum quorum_answer answer)
{
    u32 count = 0;
    for (u32 i = 0; i < quorum->count; i++)
        if (quorum->answers[i] == answer) count++;
    return count;
}
