/* SPDX-License-Identifier: MIT
 *
 * liveness.h -- which members answer. Pure: time and answers come in, whom to ping and changes of
 * states come out. One of each node, on shard 0; whom requests go to follows it within a turn.
 *
 *   ALIVE --5 pings without an answer--> SUSPECT --5 s of silence--> DEAD
 *     ^                                     |        far: 10 s         |
 *     +------------- an answer -------------+--------------------------+
 *
 * Near members are those whose silence somebody waits for; the caller says who they are, and may
 * say otherwise at any time. They are pinged at each tick. Far ones, and the dead, are pinged once
 * in LIVENESS_FAR_TICKS, a tenth of them at each tick. Whoever becomes near has five pings' time to
 * answer first, but no more than a far one has: so to be called near and far in turns hides nobody.
 *
 * Only answers count. A ping that comes in shows that a member can send to us; an answer shows that
 * we reach it, too. So a link that is broken in one direction is seen from both ends, and neither
 * goes on to send requests into it.
 *
 * A pause of our own (a stalled loop, a stopped process, a machine that swaps) is no silence of
 * others: their answers wait in our sockets. A tick that comes late by a ping or more shows such a
 * pause; all silences are taken to have begun later by as much, and we say of ourselves that we are
 * ill. Answers may be reported before that tick or after it.
 *
 * Ill members (they say so in their answers) are alive. Whoever has a choice asks others first.
 */
#ifndef DISTKV_CLUSTER_LIVENESS_H
#define DISTKV_CLUSTER_LIVENESS_H

#include "base/mem.h"

#define LIVENESS_PING_NS        100000000ull /* a tick each; one ping to each near member */
#define LIVENESS_FAR_TICKS      10u          /* so often to the far, and to the dead */
#define LIVENESS_SUSPECT_PINGS  5u           /* near: 500 to 600 ms, as ticks come once in a ping */
#define LIVENESS_FAR_SUSPECT_NS 5000000000ull  /* far: five of its pings */
#define LIVENESS_DEAD_NS        5000000000ull  /* near */
#define LIVENESS_FAR_DEAD_NS    10000000000ull /* far */
#define LIVENESS_ILL_NS         1000000000ull  /* how long after a pause we say that we are ill */
static_assert(LIVENESS_FAR_SUSPECT_NS ==
                  LIVENESS_SUSPECT_PINGS * LIVENESS_FAR_TICKS * LIVENESS_PING_NS,
              "as many pings as of the near");

enum liveness_state { LIVENESS_ALIVE, LIVENESS_SUSPECT, LIVENESS_DEAD };

struct liveness_member {
    u32 number;
    u8 state;    /* enum liveness_state */
    u8 reported; /* what liveness_change said last */
    bool ill;    /* says of itself that its loop or its disk stalls */
    bool ping;   /* is to be pinged */
    bool near;
    u8 phase;  /* far or dead: at which of LIVENESS_FAR_TICKS ticks it is pinged */
    void *arg; /* liveness_add's */
    u64 silent_since_ns;
    u64 near_since_ns;
};

struct liveness_stats {
    u64 suspected, died, recovered; /* changes: to SUSPECT, to DEAD, back to ALIVE */
    u64 pauses, paused_ns;          /* of our own */
    u64 pings;
    u32 alive, suspect, dead; /* members now */
    u32 near;                 /* of all */
};

/* Owned by shard 0. */
struct liveness {
    struct budget *budget;
    struct liveness_member *members; /* by ascending number */
    u32 count, capacity;
    u64 tick_ns; /* when the last one came */
    u64 tick_count;
    u32 phases[LIVENESS_FAR_TICKS]; /* members of each */
    u64 ill_until_ns;               /* ourselves */
    u32 unreported;                 /* members whose state is not the reported one */
    u32 change_at, ping_at;         /* where the search goes on */
    struct liveness_stats stats;
};

struct liveness_change {
    u32 number;
    u8 from, to; /* enum liveness_state */
};

void liveness_init(struct liveness *liveness, struct budget *budget, u64 now_ns);
void liveness_deinit(struct liveness *liveness);

/* ALIVE until it has been silent for long enough, and near; it is pinged at the next tick. arg:
 * what the caller knows of it, for him alone. A member that is there stays as it is. False: no
 * memory. */
MUST_CHECK bool liveness_add(struct liveness *liveness, u32 number, void *arg, u64 now_ns);
/* Whether its silence is waited for. Not a member: nothing. */
void liveness_near_set(struct liveness *liveness, u32 number, bool near, u64 now_ns);
/* Without a change reported: whoever removes it knows. */
void liveness_remove(struct liveness *liveness, u32 number);

/* It answered a ping or any other call. ill: what its last ping's answer said. Not (any more) a
 * member: nothing. */
void liveness_heard(struct liveness *liveness, u32 number, bool ill, u64 now_ns);
/* Every LIVENESS_PING_NS, or as soon after as can be. */
void liveness_tick(struct liveness *liveness, u64 now_ns);
/* Our disk stalls (or anything else that peers do not see by our silence). */
void liveness_self_stalled(struct liveness *liveness, u64 now_ns);

/* ---- what comes out; both to be called until they are false ---- */

/* A state that changed since it was last asked for. A member that changed and changed back between
 * two askings has not changed. */
bool liveness_change(struct liveness *liveness, struct liveness_change *out);
/* Whom to ping now, after a tick. */
bool liveness_ping(struct liveness *liveness, u32 *number_out);

/* ---- questions ---- */

/* NULL: nobody of that number. */
void *liveness_arg(const struct liveness *liveness, u32 number);
/* DEAD: nobody of that number. */
enum liveness_state liveness_state(const struct liveness *liveness, u32 number);
bool liveness_ill(const struct liveness *liveness, u32 number);
/* What to say of ourselves in answers. */
bool liveness_self_ill(const struct liveness *liveness, u64 now_ns);
void liveness_stats_get(const struct liveness *liveness, struct liveness_stats *out);
bool liveness_check(const struct liveness *liveness);

#endif
