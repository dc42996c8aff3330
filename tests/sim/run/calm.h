/* SPDX-License-Identifier: MIT
 *
 * calm.h -- the rules of the calm, in which everything must work: when it may begin, and who has to
 * be answered in it. Apart from the histories that follow them, so that test_run_calm.c can hold
 * each against the case that taught it.
 */
#ifndef DISTKV_TESTS_SIM_RUN_CALM_H
#define DISTKV_TESTS_SIM_RUN_CALM_H

#include "base/types.h"
#include "cluster/hlc.h"
#include "proto/native.h"

/* ---- who waits for an answer ---- */

enum patience {
    PATIENCE_WAITS,
    PATIENCE_GIVES_UP, /* the connection is left */
    PATIENCE_WRONGED,  /* an answer was due */
};

struct patience_rule {
    bool calm;
    u64 calm_ns;       /* when it began */
    u64 patience_ns;   /* of a client while things fail */
    u64 answer_ns_max; /* of requests of the calm */
};

/* What was sent before the calm is given up in it, too: its connection may be half open, and nobody
 * will ever answer. */
static inline enum patience
patience_of(const struct patience_rule *rule, u64 sent_ns, u64 now_ns)
{
    u64 waited_ns = now_ns - sent_ns;
    if (rule->calm && sent_ns >= rule->calm_ns)
        return waited_ns > rule->answer_ns_max ? PATIENCE_WRONGED : PATIENCE_WAITS;
    return waited_ns > rule->patience_ns ? PATIENCE_GIVES_UP : PATIENCE_WAITS;
}

/* ---- the work of a node's clients ---- */

/* Asked for in vain so often, nobody will answer: the chance that every client goes in the middle
 * of a pipeline that holds a whole round is below 0.6 a round. */
#define WORK_ROUNDS_MAX 20u

enum work_state {
    WORK_WAITS,
    WORK_DONE,
    WORK_AGAIN, /* another round is asked for */
    WORK_UNANSWERED,
};

/* Once the clients have asked for all of their round-th round. Pipelines may hold the whole of it
 * before the first packet has arrived, so who waits is waited for; and who goes in the middle has
 * left the answers behind. answered: anything, in any round. */
static inline enum work_state
work_state_of(u32 round, bool waiting, bool answered)
{
    if (waiting) return WORK_WAITS;
    if (answered) return WORK_DONE;
    return round < WORK_ROUNDS_MAX ? WORK_AGAIN : WORK_UNANSWERED;
}

enum cluster_answer {
    ANSWER_NONE,    /* the connection has ended, or nobody waits any more */
    ANSWER_OK,      /* done */
    ANSWER_REFUSED, /* nothing was done */
    ANSWER_UNKNOWN,
};

/* Whether an answer tells a client that there is no place for it, and is the last one. A node that
 * has no memory for a session says so in RESP, and closes, before it knows what that client speaks;
 * no frame begins so. One that has none for a frame whose header has not come says so with id 0. */
static inline bool
place_is_refused(bool native, struct bytes answer)
{
    if (!native || answer.size == 0) return false;
    if (answer.data[0] == '-') return true;
    struct native_header header;
    return ok(native_header_decode(answer, &header)) && header.request_id == 0 &&
           header.status == NATIVE_ST_OVERLOADED;
}

/* Of a request to a cluster: whether it counts as one that the calm should have answered. Who only
 * listens hears nothing of a power cut: what was asked before counts not. Nor does what a node that
 * stood still takes no more over a connection of before: another one is made. */
struct request_seen {
    enum cluster_answer answer;
    bool aborted; /* a transaction, for what it watched */
    u64 begun_ns, connected_ns;
    bool closing; /* that was its answer */
};

static inline bool
calm_is_broken(const struct request_seen *request, bool calm, u64 calm_ns)
{
    if (!calm || request->answer == ANSWER_OK || request->aborted) return false;
    if (request->closing && request->connected_ns < calm_ns) return false;
    return request->begun_ns >= calm_ns;
}

/* Whether a connection has the level of consistency that it asked for. A node without memory may
 * refuse that, as anything: then the request itself is not sent. */
static inline bool
level_is_taken(struct bytes answer)
{
    return answer.size > 0 && answer.data[0] == '+';
}

/* ---- a member that is asked to leave ---- */

#define STAYING_MIN 3u /* a majority goes on without one of them */

struct member_seen {
    bool normal; /* by the newest topology that anybody has who runs */
    bool told;   /* that it may go, by somebody whose topology is newer, perhaps */
};

/* Whether one more member may be asked. */
static inline bool
one_more_may_leave(const struct member_seen *members, u32 count)
{
    u32 staying = 0;
    for (u32 i = 0; i < count; i++)
        staying += members[i].normal && !members[i].told;
    return staying > STAYING_MIN;
}

#define LEAVER_REFUSALS_MAX 20u

struct leaver {
    bool asked;
    bool doubtful; /* nobody knows what became of one of the times that it was asked */
    u32 refusals;
};

enum leaver_state {
    LEAVER_TO_ASK, /* or once more: that does no harm */
    LEAVER_GOES,
    LEAVER_STAYS,
};

/* Of who is asked, by the newest topology that anybody has who runs. */
enum leaver_standing {
    STANDING_MEMBER,
    STANDING_LEAVES, /* which may take long */
    STANDING_NONE,
};

/* answer: the last one, if it was asked. When one of the times may have been done, a refusal may
 * mean just that: it leaves, or is no member any more, and cannot be asked. */
static inline enum leaver_state
leaver_answered(struct leaver *leaver, enum cluster_answer answer, enum leaver_standing standing)
{
    if (standing == STANDING_LEAVES) return LEAVER_GOES;
    if (leaver->asked) {
        if (answer == ANSWER_OK) return LEAVER_GOES;
        leaver->doubtful |= answer == ANSWER_UNKNOWN || answer == ANSWER_NONE;
        leaver->refusals += answer == ANSWER_REFUSED;
    }
    if (leaver->doubtful && standing == STANDING_NONE) return LEAVER_GOES;
    bool refused = leaver->asked && answer == ANSWER_REFUSED;
    bool believed = !leaver->doubtful || leaver->refusals > LEAVER_REFUSALS_MAX;
    return refused && believed ? LEAVER_STAYS : LEAVER_TO_ASK;
}

/* ---- when a cluster is settled ---- */

/* For longer than somebody who has just come back can be believed alive for having been so before,
 * and be waited for with the next connection. since_ns: of the caller; 0: not settled. */
static inline bool
settled_for_long(u64 *since_ns, bool settled, u64 now_ns, u64 wanted_ns)
{
    if (!settled)
        *since_ns = 0;
    else if (*since_ns == 0)
        *since_ns = now_ns;
    return *since_ns != 0 && now_ns - *since_ns >= wanted_ns;
}

/* Stamps of a node whose clock was ahead and has been set right: the others refuse what it stamps,
 * and what it has stored. */
static inline bool
stamps_settled(u64 ahead_ms)
{
    return ahead_ms <= HLC_AHEAD_MS_MAX / 2;
}

/* Why not, of the members; NULL: nothing is to come. lost: somebody who is to be forgotten yet, or
 * to be replaced when that is done: between the two no plan is under way. leaver: to be asked to
 * go. */
static inline const char *
members_unsettled(bool plan, bool lost, bool leaver)
{
    if (plan) return "a plan is under way";
    return lost || leaver ? "somebody is to go yet, or to be replaced" : NULL;
}

/* ---- replicas that become equal by their trees alone ---- */

/* What is younger may be on its way: trees leave it alone. */
#define REPAIR_FRESH_NS (6 * NS_PER_S)
/* Of N replicas that have each something of a set, trees make the same one in N rounds. */
#define REPAIR_REPLICAS_MAX 5u
#define REPAIR_UNANSWERED   2u /* rounds more, for who did not answer */

/* Whether they compare for the round-th time, from 0, and how long nothing is done before: what
 * the round before has united is young again. */
static inline bool
repair_round(u32 round, u64 *pause_ns)
{
    *pause_ns = REPAIR_FRESH_NS;
    return round < REPAIR_REPLICAS_MAX + REPAIR_UNANSWERED;
}

enum cluster_state {
    NODE_UNUSED,
    NODE_RUNS,
    NODE_DOWN, /* is to come back */
    NODE_LOST, /* never does */
    NODE_GONE, /* has left in order */
};

/* Why not, of a node that is seen from outside; NULL: nothing of it is to come. back_ns: DOWN: when
 * it is to be started; 0: nobody is going to. */
static inline const char *
node_unsettled(enum cluster_state state, u64 back_ns, bool member)
{
    if (state == NODE_RUNS && !member) return "who runs is no member";
    if (state == NODE_DOWN && back_ns != 0) return "a node comes back";
    return NULL;
}

/* In the end every process is asked to stop, also one that nobody waited for. */
static inline bool
node_to_be_stopped(bool has_process, bool stopping)
{
    return has_process && !stopping;
}

#endif
