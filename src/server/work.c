/* SPDX-License-Identifier: MIT
 *
 * work.c -- see work.h.
 */
#include "server/work.h"

#include "base/fault.h"

/* On the stack of a worker that comes back. */
struct returning {
    struct list link; /* line->returning */
    const struct work *work;
    struct fiber_queue queue;
    bool granted;
};

void
work_init(struct work *work)
{
    list_init(&work->link);
    list_init(&work->rest);
    list_init(&work->bucket);
    work->units = 1;
}

void
workers_init(struct workers *workers, u64 light_bytes, u64 heavy_bytes)
{
    memset(workers, 0, sizeof(*workers));
    fiber_queue_init(&workers->idle);
    workers->away_max[WORK_AWAY_CLIENT] =
        (u32)CLAMP(heavy_bytes / WORK_AWAY_BYTES, WORK_AWAY_MIN, WORK_AWAY_MAX);
    workers->away_max[WORK_AWAY_MEMORY] = WORK_WAITING_MAX;
    workers->away_max[WORK_AWAY_TIME] = WORK_ASLEEP_MAX;
    u64 light_units = light_bytes / WORK_LIGHT_BYTES, heavy_units = heavy_bytes / WORK_UNIT_BYTES;
    for (u32 class = 0; class < WORK_CLASSES; class ++) {
        struct work_line *line = &workers->lines[class];
        line->workers = workers;
        line->fiber_class = class == WORK_LIGHT ? FIBER_FOREGROUND : FIBER_BULK;
        line->units_max =
            (u32)(class == WORK_LIGHT ? CLAMP(light_units, WORK_LIGHT_UNITS_MIN, WORK_LIGHT_UNITS)
                                      : CLAMP(heavy_units, WORK_HEAVY_UNITS_MIN, WORK_HEAVY_UNITS));
        for (u32 calls = 0; calls < 2; calls++) {
            list_init(&line->returning[calls]);
            list_init(&line->queues[calls].flows);
            for (u32 i = 0; i < WORK_BUCKETS; i++)
                list_init(&line->queues[calls].buckets[i]);
        }
    }
}

/* ---- one queue: flows in turn ---- */

static struct list *
bucket_of(struct work_queue *queue, u64 flow)
{
    return &queue->buckets[(flow * 0x9e3779b97f4a7c15ull >> 32) % WORK_BUCKETS];
}

static void
queue_push(struct work_queue *queue, struct work *work)
{
    struct list *bucket = bucket_of(queue, work->flow);
    list_for_each (node, bucket) {
        struct work *first = list_entry(node, struct work, bucket);
        if (first->flow != work->flow) continue;
        list_push_back(&first->rest, &work->link);
        return;
    }
    list_push_back(bucket, &work->bucket);
    list_push_back(&queue->flows, &work->link);
}

static struct work *
queue_first(const struct work_queue *queue)
{
    struct list *first = list_first(&queue->flows);
    return first == NULL ? NULL : list_entry(first, struct work, link);
}

static void
queue_pop(struct work_queue *queue, struct work *work)
{
    list_del(&work->link);
    list_del(&work->bucket);
    struct list *node = list_pop_front(&work->rest);
    if (node == NULL) return;
    struct work *next = list_entry(node, struct work, link);
    list_splice_back(&next->rest, &work->rest);
    list_push_back(bucket_of(queue, next->flow), &next->bucket);
    list_push_back(&queue->flows, &next->link);
}

/* ---- units ---- */

static bool
may_call(const struct work_line *line, const struct work *work)
{
    return line->calling_units + work->units <= line->units_max / 2; /* K2 */
}

static bool
fits(const struct work_line *line, const struct work *work)
{
    return line->units + work->units <= line->units_max && (!work->calls || may_call(line, work));
}

static void
hold(struct work_line *line, const struct work *work)
{
    line->units += work->units;
    if (work->calls) line->calling_units += work->units;
}

static void
give(struct work_line *line, u32 units, bool calls)
{
    CHECK(line->units >= units);
    line->units -= units;
    if (calls) line->calling_units -= units;
}

/* ---- whose turn it is ---- */

/* The next of those that call, or of those that do not: who comes back, else a new one. */
static const struct work *
next_of(const struct work_line *line, bool calls)
{
    struct list *first = list_first(&line->returning[calls]);
    if (first != NULL) return list_entry(first, struct returning, link)->work;
    return queue_first(&line->queues[calls]);
}

/* NULL: nobody's, or there are no units for whoever it is. */
static const struct work *
next_by_turn(const struct work_line *line)
{
    const struct work *plain = next_of(line, false);
    const struct work *calls = next_of(line, true);
    if (calls != NULL && !may_call(line, calls)) calls = NULL;
    const struct work *next = plain == NULL || (calls != NULL && line->calls_next) ? calls : plain;
    return next != NULL && fits(line, next) ? next : NULL;
}

static void
had_turn(struct work_line *line, const struct work *work)
{
    line->calls_next = !work->calls;
    hold(line, work);
}

/* Lets those go on that come back, as far as it is their turn; true when it is a new one's. */
static bool
advance(struct work_line *line)
{
    const struct work *work;
    while ((work = next_by_turn(line)) != NULL) {
        struct list *first = list_first(&line->returning[work->calls]);
        if (first == NULL) return true;
        struct returning *returning = list_entry(first, struct returning, link);
        list_del(&returning->link);
        had_turn(line, work);
        returning->granted = true;
        fiber_queue_wake_all(&returning->queue);
    }
    return false;
}

static struct work *
take(struct work_line *line)
{
    if (!advance(line)) return NULL;
    struct work *work = queue_first(&line->queues[next_by_turn(line)->calls]);
    queue_pop(&line->queues[work->calls], work);
    line->queued--;
    had_turn(line, work);
    return work;
}

/* ---- fibers ---- */

static void worker(void *arg);

static bool
spawn(struct work_line *line)
{
    status st = fiber_spawn(line->fiber_class, "worker", worker, line);
    if (!ok(st)) return false;
    line->fibers++;
    line->starting++;
    line->workers->fibers++;
    return true;
}

/* After units were given, or a work queued: somebody comes for what can start. One is enough, he
 * asks again. false: no fiber could be had. */
static bool
go_on(struct work_line *line)
{
    return !advance(line) || line->starting != 0 || spawn(line);
}

static void
worker(void *arg)
{
    struct work_line *line = arg;
    struct workers *workers = line->workers;
    line->starting--;
    struct work *work;
    while ((work = take(line)) != NULL) {
        u32 units = work->units;
        bool calls = work->calls;
        line->held_up += calls;
        if (!go_on(line)) MARK("server.work.no_fiber"); /* K5: whoever ends next takes it */
        work->run(work);
        line->held_up -= calls;
        give(line, units, calls);
    }
    line->fibers--;
    workers->fibers--;
    if (workers->fibers == 0) fiber_queue_wake_all(&workers->idle);
}

bool
work_start(struct workers *workers, struct work *work)
{
    struct work_line *line = &workers->lines[work->class];
    CHECK(work->units > 0 && work->units <= WORK_UNITS_MAX);
    queue_push(&line->queues[work->calls], work);
    line->queued++;
    bool served;
    if (work->class == WORK_LIGHT) /* a fiber each: ready now, and not after the one before */
        served = line->units + line->starting >= line->units_max || spawn(line);
    else
        served = go_on(line);
    if (served || line->fibers > line->held_up) return true; /* K5 */
    list_del(&work->link);
    list_del(&work->bucket);
    line->queued--;
    return false;
}

bool
work_leave(struct workers *workers, struct work *work, enum work_away away_for)
{
    CHECK(!work->away);
    if (workers->away[away_for] >= workers->away_max[away_for]) return false;
    struct work_line *line = &workers->lines[work->class];
    workers->away[away_for]++;
    work->away = true;
    work->away_for = (u8)away_for;
    line->held_up += !work->calls;
    give(line, work->units, work->calls);
    if (!go_on(line)) MARK("server.work.leave_no_fiber");
    return true;
}

MAY_YIELD void
work_return(struct workers *workers, struct work *work)
{
    if (!work->away) return;
    struct work_line *line = &workers->lines[work->class];
    struct returning returning = {.work = work};
    fiber_queue_init(&returning.queue);
    list_push_back(&line->returning[work->calls], &returning.link);
    if (!go_on(line)) MARK("server.work.return_no_fiber");
    while (!returning.granted) {
        status st = fiber_queue_wait(&returning.queue, FIBER_FOREVER);
        CHECK(ok(st));
    }
    work->away = false;
    workers->away[work->away_for]--;
    line->held_up -= !work->calls;
}
