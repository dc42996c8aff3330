/* SPDX-License-Identifier: MIT
 *
 * work.h -- worker fibers of a shard: what runs next, and how much at once.
 *
 * What has to wait (for a disk, a lock, room in the log, another shard) runs on a worker fiber.
 * Before it runs it is told apart by an estimate of what it will read (request.h):
 *
 *   light   a key or a few.                         Foreground fibers; WORK_LIGHT_UNITS at once,
 *                                                   each work is one unit.
 *   heavy   many keys, scans, everything; also a    Bulk fibers: the processor and the disk serve
 *           key of a connection that already has    light work first but leave heavy work a share
 *           several under way: a deep pipeline      (fiber.h, file.h). At most WORK_HEAVY_UNITS; a
 *           is as much work as one long MGET.       work is as many as it may read at a time.
 *
 * So light work never stands behind heavy work for a fiber, and heavy work is not starved.
 *
 * Fairness. A work belongs to a flow: its connection. Within a class each flow has its turn, one
 * work at a time, in order; whoever queues a thousand waits longer for its second, nobody else
 * does.
 *
 *   queue:  flows -> A1 -> B1 -> C1 -> A1 ...      A1.rest -> A2 -> A3
 *   A1 starts: A2 takes its place among those to be found by flow, and goes to the end of the ring.
 *
 * Why workers that wait for workers do not wait for ever
 *   K1  Only a work with `calls` set waits for another work to run, on this shard or another one.
 *       What it waits for has `calls` not set.
 *   K2  In each class, on each shard, works that call hold at most half of the units. So a work
 *       that does not call gets its units when others that do not call have ended, and those end by
 *       themselves: they wait for the disk, for room in the log, for memory (one at a time, and not
 *       for ever) and for key locks, whose holders have their units already and do not call. Nobody
 *       holds a key lock while he waits for units or for another work.
 *   K3  Work that waits for a client may take as long as the client likes. It leaves meanwhile and
 *       gives its units back (work_leave), and nobody waits for it: it has no lock, no turn at the
 *       memory, and little of it. Whoever cannot leave, because as many have as there is memory
 *       for, waits for a short time only. Who waits for his turn at the memory leaves, too, or is
 *       refused; so whoever has that turn can have units. So does who waits for nothing but the
 *       time (WAIT), or he does not wait. Who comes back goes before new work of his kind.
 *   K4  Within a class none is passed over for ever: those that call take turns with those that do
 *       not, and what is next by turn and needs more units than are free is waited for. (One that
 *       calls is next only when K2 lets it: those that call may be waiting for what does not.)
 *   K5  A work that has units but no fiber (no memory for a stack) waits only when a fiber of its
 *       class is going to come for it by itself: one that neither calls nor is away. Else it is
 *       refused.
 *   K6  Fibers of other shards' scans and of control paths (io_shard_call) are no workers: they
 *       hold no units, and nothing that they do waits for any.
 */
#ifndef DISTKV_SERVER_WORK_H
#define DISTKV_SERVER_WORK_H

#include "io/fiber.h"

enum work_class { WORK_LIGHT, WORK_HEAVY, WORK_CLASSES };

/* Each has a stack; less where memory is short. */
#define WORK_LIGHT_UNITS     512u
#define WORK_LIGHT_UNITS_MIN 64u
#define WORK_LIGHT_BYTES     (16u << 10)
/* As many reads as the disk takes of a class at once; less where memory is short: a heavy work has
 * about so much in hand for each of its units. */
#define WORK_HEAVY_UNITS 64u
#define WORK_UNIT_BYTES  (32u << 10)
/* What one work may take; half of a class's units must hold at least one. */
#define WORK_UNITS_MAX 8u
/* Those who wait for their clients; each has about so much in hand. */
#define WORK_AWAY_MIN   4u
#define WORK_AWAY_MAX   256u
#define WORK_AWAY_BYTES (128u << 10)
/* Those who wait for their turn at the memory; each has a stack. */
#define WORK_WAITING_MAX 256u
/* Those who wait for the time; each has a stack, and none takes a place of those above. */
#define WORK_ASLEEP_MAX 64u
#define WORK_BUCKETS    128u
/* K2: the largest work runs, too. */
#define WORK_HEAVY_UNITS_MIN (2 * WORK_UNITS_MAX)
static_assert(WORK_HEAVY_UNITS_MIN <= WORK_HEAVY_UNITS, "there are as many");

/* K3: what it waits for. */
enum work_away {
    WORK_AWAY_CLIENT, /* it keeps something in hand */
    WORK_AWAY_MEMORY,
    WORK_AWAY_TIME,
    WORK_AWAYS,
};

/* Something to run on a worker fiber. */
struct work {
    struct list
        link; /* the first of its flow: in the queue's flows; another: in the first's rest */
    struct list rest;   /* of the first of a flow: those behind it */
    struct list bucket; /* of the first of a flow: it is found by the flow */
    u64 flow;
    void (*run)(struct work *work); /* may yield; afterwards the work may be gone */
    u16 units;
    u8 class;    /* enum work_class */
    bool calls;  /* K1 */
    bool away;   /* K3 */
    u8 away_for; /* enum work_away */
};

void work_init(struct work *work);

struct work_queue {
    struct list flows;
    struct list buckets[WORK_BUCKETS];
};

struct workers;

/* One class. */
struct work_line {
    struct workers *workers;
    enum fiber_class fiber_class;
    u32 units_max;
    u32 units, calling_units; /* held */
    u32 fibers;
    u32 starting; /* of these: have not come to take anything yet */
    u32 held_up;  /* of these: run a work that calls or is away (K5) */
    u32 queued;
    struct work_queue queues[2]; /* by work->calls */
    struct list returning[2];    /* struct returning, by work->calls: K3 */
    bool calls_next;             /* K4 */
};

struct workers {
    struct work_line lines[WORK_CLASSES];
    u32 fibers; /* of all classes */
    u32 away[WORK_AWAYS], away_max[WORK_AWAYS];
    struct fiber_queue idle; /* woken when the last fiber ends */
};

/* light_bytes: of the stacks of light work; heavy_bytes: what heavy work may have in hand. So long
 * as these are little, the bounds above are lower. */
void workers_init(struct workers *workers, u64 light_bytes, u64 heavy_bytes);

/* Runs work->run on a worker fiber when it has its turn. false: no fiber could be had. */
MUST_CHECK bool work_start(struct workers *workers, struct work *work);
/* Whether one more unit of the class would not have to wait for its turn. */
static inline bool
work_has_room(const struct workers *workers, enum work_class class)
{
    const struct work_line *line = &workers->lines[class];
    return line->units + line->queued < line->units_max;
}
/* K3: the running work gives its units back. false: too many have left, it keeps them. */
MUST_CHECK bool work_leave(struct workers *workers, struct work *work, enum work_away away_for);
/* And takes them again. */
MAY_YIELD void work_return(struct workers *workers, struct work *work);

#endif
