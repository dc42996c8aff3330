/* SPDX-License-Identifier: MIT
 *
 * liveness.c -- see liveness.h.
 *
 * Invariants (liveness_check)
 *   L1  Members stand by ascending number.
 *   L2  unreported counts those whose state is not what was reported.
 *   L3  Nobody has been silent since a time that is yet to come, as seen from the last event. (Kept
 *       where silences are shifted; times are compared as they were passed in.)
 *   L4  phases counts the members of each phase.
 */
#include "cluster/liveness.h"

#include "base/fault.h"

static u32
find(const struct liveness *liveness, u32 number)
{
    u32 first = 0, last = liveness->count;
    while (first < last) {
        u32 middle = (first + last) / 2;
        if (liveness->members[middle].number < number)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

static struct liveness_member *
member_of(const struct liveness *liveness, u32 number)
{
    u32 at = find(liveness, number);
    bool found = at < liveness->count && liveness->members[at].number == number;
    return found ? &liveness->members[at] : NULL;
}

static void
state_set(struct liveness *liveness, struct liveness_member *member, enum liveness_state state)
{
    if (member->state == state) return;
    CHECK(state != LIVENESS_DEAD || member->state == LIVENESS_SUSPECT);
    liveness->unreported -= member->state != member->reported;
    member->state = (u8)state;
    liveness->unreported += member->state != member->reported;
    switch (state) {
    case LIVENESS_ALIVE:
        liveness->stats.recovered++;
        break;
    case LIVENESS_SUSPECT:
        liveness->stats.suspected++;
        break;
    case LIVENESS_DEAD:
        liveness->stats.died++;
        break;
    }
}

/* ---- members ---- */

/* Members add each other in one order, and so give each other the same phases. The clocks of their
 * machines began at different times: so they do not all ping the same one at the same tick. */
void
liveness_init(struct liveness *liveness, struct budget *budget, u64 now_ns)
{
    *liveness = (struct liveness){
        .budget = budget, .tick_ns = now_ns, .tick_count = now_ns / LIVENESS_PING_NS};
}

void
liveness_deinit(struct liveness *liveness)
{
    mem_free(liveness->budget, liveness->members, liveness->capacity * sizeof(*liveness->members));
    *liveness = (struct liveness){.budget = liveness->budget};
}

/* That of the fewest. */
static u8
phase_take(struct liveness *liveness)
{
    u8 best = 0;
    for (u8 phase = 1; phase < LIVENESS_FAR_TICKS; phase++)
        if (liveness->phases[phase] < liveness->phases[best]) best = phase;
    liveness->phases[best]++;
    return best;
}

bool
liveness_add(struct liveness *liveness, u32 number, void *arg, u64 now_ns)
{
    u32 at = find(liveness, number);
    if (at < liveness->count && liveness->members[at].number == number) return true;
    if (liveness->count == liveness->capacity) {
        u32 capacity = MAX(8u, liveness->capacity * 2);
        struct liveness_member *more =
            mem_realloc(liveness->budget, liveness->members, liveness->capacity * sizeof(*more),
                        capacity * sizeof(*more));
        if (more == NULL) return false;
        liveness->members = more;
        liveness->capacity = capacity;
    }
    memmove(&liveness->members[at + 1], &liveness->members[at],
            (liveness->count - at) * sizeof(*liveness->members));
    liveness->members[at] = (struct liveness_member){.number = number,
                                                     .arg = arg,
                                                     .near = true,
                                                     .phase = phase_take(liveness),
                                                     .silent_since_ns = now_ns,
                                                     .near_since_ns = now_ns};
    liveness->count++;
    return true;
}

void
liveness_near_set(struct liveness *liveness, u32 number, bool near, u64 now_ns)
{
    struct liveness_member *member = member_of(liveness, number);
    if (member == NULL || member->near == near) return;
    member->near = near;
    member->near_since_ns = now_ns;
}

void
liveness_remove(struct liveness *liveness, u32 number)
{
    struct liveness_member *member = member_of(liveness, number);
    if (member == NULL) return;
    liveness->unreported -= member->state != member->reported;
    liveness->phases[member->phase]--;
    u32 at = (u32)(member - liveness->members);
    liveness->count--;
    memmove(member, member + 1, (liveness->count - at) * sizeof(*member));
    /* Nobody is left out by a search under way. */
    if (liveness->ping_at > at) liveness->ping_at--;
}

/* ---- events ---- */

void
liveness_heard(struct liveness *liveness, u32 number, bool ill, u64 now_ns)
{
    struct liveness_member *member = member_of(liveness, number);
    if (member == NULL) return;
    member->silent_since_ns = MAX(member->silent_since_ns, now_ns);
    member->ill = ill;
    state_set(liveness, member, LIVENESS_ALIVE);
    AUDIT("cluster.liveness.heard", liveness_check(liveness));
}

void
liveness_self_stalled(struct liveness *liveness, u64 now_ns)
{
    liveness->ill_until_ns = MAX(liveness->ill_until_ns, now_ns + LIVENESS_ILL_NS);
}

/* Whoever answered after the pause, but before this tick, is not silent since the future. */
static void
pause_take(struct liveness *liveness, u64 pause_ns, u64 now_ns)
{
    for (u32 i = 0; i < liveness->count; i++) {
        struct liveness_member *member = &liveness->members[i];
        member->silent_since_ns = MIN(now_ns, member->silent_since_ns + pause_ns);
        member->near_since_ns = MIN(now_ns, member->near_since_ns + pause_ns);
    }
    liveness->stats.pauses++;
    liveness->stats.paused_ns += pause_ns;
    liveness_self_stalled(liveness, now_ns);
}

static u64
since(u64 from_ns, u64 now_ns)
{
    return now_ns - MIN(now_ns, from_ns);
}

static void
silence_judge(struct liveness *liveness, struct liveness_member *member, u64 now_ns)
{
    u64 silence_ns = since(member->silent_since_ns, now_ns);
    /* While it was far, nobody asked it so often. */
    u64 asked_ns = since(MAX(member->silent_since_ns, member->near_since_ns), now_ns);
    bool missed = member->near && asked_ns >= LIVENESS_SUSPECT_PINGS * LIVENESS_PING_NS;
    if (!missed && silence_ns < LIVENESS_FAR_SUSPECT_NS) return;
    if (member->state == LIVENESS_ALIVE) state_set(liveness, member, LIVENESS_SUSPECT);
    u64 dead_ns = member->near ? LIVENESS_DEAD_NS : LIVENESS_FAR_DEAD_NS;
    if (silence_ns >= dead_ns) state_set(liveness, member, LIVENESS_DEAD);
}

void
liveness_tick(struct liveness *liveness, u64 now_ns)
{
    u64 gap_ns = since(liveness->tick_ns, now_ns);
    liveness->tick_ns = MAX(now_ns, liveness->tick_ns);
    liveness->tick_count++;
    if (gap_ns >= 2 * LIVENESS_PING_NS) pause_take(liveness, gap_ns - LIVENESS_PING_NS, now_ns);
    u8 phase = (u8)(liveness->tick_count % LIVENESS_FAR_TICKS);
    for (u32 i = 0; i < liveness->count; i++) {
        struct liveness_member *member = &liveness->members[i];
        silence_judge(liveness, member, now_ns);
        bool each_tick = member->near && member->state != LIVENESS_DEAD;
        member->ping = each_tick || member->phase == phase;
    }
    liveness->ping_at = 0;
    AUDIT("cluster.liveness.ticked", liveness_check(liveness));
}

/* ---- what comes out ---- */

bool
liveness_change(struct liveness *liveness, struct liveness_change *out)
{
    if (liveness->unreported == 0) return false;
    /* In a circle: who changes often does not keep the others from being told of. */
    for (u32 tried = 0; tried < liveness->count; tried++) {
        if (liveness->change_at >= liveness->count) liveness->change_at = 0;
        struct liveness_member *member = &liveness->members[liveness->change_at++];
        if (member->state == member->reported) continue;
        *out = (struct liveness_change){
            .number = member->number, .from = member->reported, .to = member->state};
        member->reported = member->state;
        liveness->unreported--;
        return true;
    }
    return false;
}

bool
liveness_ping(struct liveness *liveness, u32 *number_out)
{
    while (liveness->ping_at < liveness->count) {
        struct liveness_member *member = &liveness->members[liveness->ping_at++];
        if (!member->ping) continue;
        member->ping = false;
        liveness->stats.pings++;
        *number_out = member->number;
        return true;
    }
    return false;
}

/* ---- questions ---- */

void *
liveness_arg(const struct liveness *liveness, u32 number)
{
    const struct liveness_member *member = member_of(liveness, number);
    return member != NULL ? member->arg : NULL;
}

enum liveness_state
liveness_state(const struct liveness *liveness, u32 number)
{
    const struct liveness_member *member = member_of(liveness, number);
    return member != NULL ? (enum liveness_state)member->state : LIVENESS_DEAD;
}

bool
liveness_ill(const struct liveness *liveness, u32 number)
{
    const struct liveness_member *member = member_of(liveness, number);
    return member != NULL && member->ill;
}

bool
liveness_self_ill(const struct liveness *liveness, u64 now_ns)
{
    return now_ns < liveness->ill_until_ns;
}

void
liveness_stats_get(const struct liveness *liveness, struct liveness_stats *out)
{
    struct liveness_stats stats = liveness->stats;
    for (u32 i = 0; i < liveness->count; i++) {
        u8 state = liveness->members[i].state;
        stats.alive += state == LIVENESS_ALIVE;
        stats.suspect += state == LIVENESS_SUSPECT;
        stats.dead += state == LIVENESS_DEAD;
        stats.near += liveness->members[i].near;
    }
    *out = stats;
}

bool
liveness_check(const struct liveness *liveness)
{
    u32 unreported = 0, phases[LIVENESS_FAR_TICKS] = {0};
    for (u32 i = 0; i < liveness->count; i++) {
        const struct liveness_member *member = &liveness->members[i];
        if (member->phase >= LIVENESS_FAR_TICKS) return false;
        phases[member->phase]++;
        if (i > 0 && member->number <= member[-1].number) return false;
        if (member->state > LIVENESS_DEAD || member->reported > LIVENESS_DEAD) return false;
        unreported += member->state != member->reported;
    }
    return unreported == liveness->unreported &&
           memcmp(phases, liveness->phases, sizeof(phases)) == 0;
}
