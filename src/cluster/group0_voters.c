/* SPDX-License-Identifier: MIT
 *
 * group0_voters.c -- who should vote in group0. Pure, and the same for everybody who asks the same,
 * though only the leader does.
 *
 * As many as an odd number allows, up to seven: a group of four survives no more than one of three
 * does. Two members are an exception: whoever grows from one to three passes through two, and
 * whoever shrinks to two has his last decisions on both disks; the number stays what it was.
 *
 * Who leaves has no vote, but where fewer than three stay: it holds its places until its plan has
 * ended, which may take hours, and of one or two voters none may fail. So those who leave make them
 * three, after all others, for as long. As they may be stopped as soon as they are out, there is one
 * at most when the plan is about to end: those who stay are a majority then without it.
 *
 * They are chosen one after the other: each time from the rack that has given the fewest so far,
 * the living before the dead, those who vote already before others, then by number. A dead voter is
 * thus given up only for somebody alive who is not needed elsewhere, and never without a
 * replacement.
 *
 * Of those who have no vote the silent do not count: it would not be they who get one, and where two
 * of three vote, one of them may be the next who is silent. Who was taken in and never came back
 * would so cost a founder its majority.
 */
#include "cluster/group0_internal.h"

#define HELPED_MAX 3u /* voters, with those who leave */

static bool
better(const struct group0_candidate *a, u32 a_in_rack, const struct group0_candidate *b,
       u32 b_in_rack)
{
    if (a->leaving != b->leaving) return !a->leaving;
    /* Somebody alive in a rack that has its share is better than somebody dead in another one. */
    if (a->alive != b->alive) return a->alive;
    if (a_in_rack != b_in_rack) return a_in_rack < b_in_rack;
    if (a->voter != b->voter) return a->voter;
    return a->number < b->number;
}

struct places { /* of those who are chosen */
    u32 of[GROUP0_VOTERS_MAX];
    u32 count;
};

static u32
chosen_in(const struct places *places, u32 place)
{
    u32 chosen = 0;
    for (u32 i = 0; i < places->count; i++)
        chosen += places->of[i] == place;
    return chosen;
}

static u32
wanted_of(u32 staying, u32 voters)
{
    if (staying == 2) return voters < 2 ? 1 : 2;
    u32 wanted = MIN(staying, GROUP0_VOTERS_MAX);
    return wanted % 2 == 0 && wanted > 0 ? wanted - 1 : wanted;
}

/* How many of those who leave help out. */
static u32
helpers_of(u32 staying, u32 leaving, bool ends)
{
    if (staying == 0 || staying >= HELPED_MAX) return 0;
    u32 needed = HELPED_MAX - staying;
    return needed > leaving || (ends && needed > 1) ? 0 : needed;
}

static bool
counts(const struct group0_candidate *candidate)
{
    return candidate->alive || (candidate->voter && !candidate->leaving);
}

void
group0_voters_choose(struct group0_candidate *candidates, u32 count, bool ends)
{
    struct places places = {.count = 0};
    u32 staying = 0, leaving = 0, voters = 0;
    for (u32 i = 0; i < count; i++) {
        candidates[i].chosen = false;
        staying += !candidates[i].leaving && counts(&candidates[i]);
        leaving += candidates[i].leaving && counts(&candidates[i]);
        voters += candidates[i].voter;
    }
    u32 helpers = helpers_of(staying, leaving, ends);
    u32 wanted = helpers != 0 ? HELPED_MAX : wanted_of(staying, voters);
    for (; wanted > 0; wanted--) {
        struct group0_candidate *best = NULL;
        u32 best_in_rack = 0;
        for (u32 i = 0; i < count; i++) {
            struct group0_candidate *candidate = &candidates[i];
            if (candidate->chosen || !counts(candidate)) continue;
            u32 in_rack = chosen_in(&places, candidate->place);
            if (best != NULL && !better(candidate, in_rack, best, best_in_rack)) continue;
            best = candidate;
            best_in_rack = in_rack;
        }
        if (best == NULL) return;
        best->chosen = true;
        places.of[places.count++] = best->place;
    }
}
