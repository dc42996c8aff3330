/* SPDX-License-Identifier: MIT
 *
 * quorum.h -- who has answered what, and what follows from it. Pure.
 *
 * A request goes to the home replicas of a key. While a plan is under way they are two sets (rows
 * of the present and of the next placement), which mostly have members in common; each set has its
 * own need, and a member's one answer counts in each set that it belongs to. Nobody else counts
 * (but who has a member's place: stand_in.h), nobody counts twice, and one set's answers are never
 * added to the other's: three answers that meet 2 of 3 in the union may be 1 of 3 in each. Of each
 * set one at least who has a place of its own must succeed, however many have others' places.
 *
 *   OPEN    neither of the below yet
 *   MET     every set has as many successes as it needs. Stays so: successes are not taken back.
 *   LOST    some set cannot get there: what succeeded and what may yet answer are too few
 */
#ifndef DISTKV_CLUSTER_QUORUM_H
#define DISTKV_CLUSTER_QUORUM_H

#include "cluster/placement.h"

#define QUORUM_SETS        2u
#define QUORUM_MEMBERS_MAX (QUORUM_SETS * LIMIT_PLACEMENT_REPLICAS)

enum quorum_answer {
    QUORUM_PENDING,
    QUORUM_YES,
    QUORUM_NO, /* failed, refused, or was not worth an attempt */
};

enum quorum_state { QUORUM_OPEN, QUORUM_MET, QUORUM_LOST };

struct quorum {
    u32 set_count;
    u32 need[QUORUM_SETS];
    u32 count; /* members of all sets, each once */
    u32 members[QUORUM_MEMBERS_MAX];
    u8 sets[QUORUM_MEMBERS_MAX];    /* of which the member is: a bit each */
    u8 answers[QUORUM_MEMBERS_MAX]; /* enum quorum_answer */
    u32 stand_ins;                  /* who has another's place: a bit each */
};
static_assert(QUORUM_MEMBERS_MAX <= 32, "a bit each");

void quorum_init(struct quorum *quorum);
/* At most QUORUM_SETS. members: distinct; need: 1 to count, or it is LOST from the beginning. */
void quorum_set_add(struct quorum *quorum, const u32 *members, u32 count, u32 need);
/* Index of the member; QUORUM_MEMBERS_MAX: it is in no set. */
u32 quorum_find(const struct quorum *quorum, u32 member);
/* The first answer counts; false: it was no member's, or came again. */
bool quorum_answer(struct quorum *quorum, u32 member, enum quorum_answer answer);
enum quorum_state quorum_state(const struct quorum *quorum);
/* The sets that cannot get there: a bit each. */
u32 quorum_sets_lost(const struct quorum *quorum);
/* Another one has the place at the index from now on, in these of its sets alone, and is pending.
 */
void quorum_stand_in(struct quorum *quorum, u32 index, u32 member, u32 sets);
/* Everybody is pending again. */
void quorum_reset(struct quorum *quorum);
/* How many have answered so, of all sets. */
u32 quorum_count(const struct quorum *quorum, enum quorum_answer answer);

#endif
