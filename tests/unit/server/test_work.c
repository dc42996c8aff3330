/* SPDX-License-Identifier: MIT
 *
 * test_work.c -- who gets a worker, in which order, and that nobody waits for ever.
 */
#include "../io/ring_fixture.h"

#include "base/prng.h"
#include "server/work.h"

#define JOBS_MAX 512u

static struct workers workers;
static struct fiber_queue gate;
static bool gate_open;
static char trace[256];
static u32 running, running_max, done;

struct job {
    struct work work;
    const char *name;
    struct job *part; /* it calls: starts this one and waits for it */
    bool leaves, waits_at_gate, ended;
    u32 naps;
    struct fiber_queue queue;
};

static struct job jobs[JOBS_MAX];

MAY_YIELD static void
job_run(struct work *work)
{
    struct job *job = CONTAINER_OF(work, struct job, work);
    running++;
    running_max = MAX(running_max, running);
    if (job->name != NULL) {
        size_t used = strlen(trace);
        snprintf(trace + used, sizeof(trace) - used, "%s%s", used > 0 ? " " : "", job->name);
    }
    while (job->waits_at_gate && !gate_open)
        (void)fiber_queue_wait(&gate, FIBER_FOREVER);
    bool left = job->leaves && work_leave(&workers, work, (enum work_away)(job->naps % WORK_AWAYS));
    for (u32 i = 0; i < job->naps; i++)
        fiber_yield();
    if (left) work_return(&workers, work);
    if (job->part != NULL) {
        bool started = work_start(&workers, &job->part->work);
        EXPECT(started);
        while (started && !job->part->ended)
            (void)fiber_queue_wait(&job->part->queue, FIBER_FOREVER);
    }
    running--;
    done++;
    job->ended = true;
    fiber_queue_wake_all(&job->queue);
}

static struct job *
job_init(u32 index, u64 flow, enum work_class class, u32 units)
{
    struct job *job = &jobs[index];
    memset(job, 0, sizeof(*job));
    work_init(&job->work);
    job->work.run = job_run;
    job->work.flow = flow;
    job->work.class = class;
    job->work.units = (u16)units;
    fiber_queue_init(&job->queue);
    return job;
}

static void
begin(u32 heavy_units)
{
    workers_init(&workers, (u64)WORK_LIGHT_UNITS * WORK_LIGHT_BYTES,
                 (u64)heavy_units * WORK_UNIT_BYTES);
    fiber_queue_init(&gate);
    gate_open = false;
    trace[0] = 0;
    running = running_max = done = 0;
}

static void
open_gate(void)
{
    gate_open = true;
    fiber_queue_wake_all(&gate);
}

/* Until so many jobs stand at the gate and so many have ended: new fibers may take their time. */
MAY_YIELD static void
await_jobs(u32 at_gate, u32 ended)
{
    u64 end_ns = io_clock_ns() + 20 * NS_PER_S;
    while ((running < at_gate || done < ended) && io_clock_ns() < end_ns)
        fiber_sleep_ns(NS_PER_MS / 10);
    fiber_sleep_ns(NS_PER_MS); /* and none that should not */
    EXPECT(running == at_gate && done == ended);
}

/* Everything has ended and was given back. */
MAY_YIELD static void
finish(u32 expected)
{
    u64 end_ns = io_clock_ns() + 20 * NS_PER_S;
    while (done < expected && io_clock_ns() < end_ns)
        fiber_sleep_ns(NS_PER_MS / 10);
    EXPECT(done == expected);
    for (u32 i = 0; i < 10 && workers.fibers > 0; i++)
        fiber_sleep_ns(NS_PER_MS);
    EXPECT(workers.fibers == 0);
    for (u32 away_for = 0; away_for < WORK_AWAYS; away_for++)
        EXPECT(workers.away[away_for] == 0);
    for (u32 class = 0; class < WORK_CLASSES; class ++) {
        const struct work_line *line = &workers.lines[class];
        EXPECT(line->units == 0 && line->calling_units == 0 && line->queued == 0);
        EXPECT(line->fibers == 0 && line->starting == 0 && line->held_up == 0);
    }
}

static status
main_turns(void *arg)
{
    begin(WORK_HEAVY_UNITS_MIN); /* two of the largest at once */
    for (u32 i = 0; i < 2; i++) {
        struct job *plug = job_init(i, i, WORK_HEAVY, WORK_UNITS_MAX);
        plug->waits_at_gate = true;
        EXPECT(work_start(&workers, &plug->work));
    }
    static const struct {
        const char *name;
        u64 flow;
    } rest[] = {{"a1", 10}, {"a2", 10}, {"a3", 10}, {"a4", 10},
                {"b1", 11}, {"b2", 11}, {"c1", 12}, {"d1", 10 + WORK_BUCKETS}};
    for (u32 i = 0; i < ARRAY_COUNT(rest); i++) {
        struct job *job = job_init(2 + i, rest[i].flow, WORK_HEAVY, WORK_UNITS_MAX);
        job->name = rest[i].name;
        EXPECT(work_start(&workers, &job->work));
    }
    await_jobs(2, 0);
    EXPECT(trace[0] == 0 && workers.lines[WORK_HEAVY].queued == ARRAY_COUNT(rest));
    open_gate();
    finish(2 + ARRAY_COUNT(rest));
    EXPECT(strcmp(trace, "a1 b1 c1 d1 a2 b2 a3 a4") == 0);
    return ST_OK;
}

static void
flows_take_turns(void **state)
{
    ring_run_main(1, main_turns, NULL);
}

static status
main_light(void *arg)
{
    begin(WORK_HEAVY_UNITS_MIN);
    for (u32 i = 0; i < 20; i++) {
        struct job *job = job_init(i, i, WORK_HEAVY, 1);
        job->waits_at_gate = true;
        EXPECT(work_start(&workers, &job->work));
    }
    struct job *light = job_init(20, 0, WORK_LIGHT, 1);
    EXPECT(work_start(&workers, &light->work));
    await_jobs(WORK_HEAVY_UNITS_MIN, 1);
    EXPECT(light->ended && workers.lines[WORK_HEAVY].queued == 4);
    open_gate();
    finish(21);
    return ST_OK;
}

static void
light_work_does_not_wait_for_heavy(void **state)
{
    ring_run_main(1, main_light, NULL);
}

static status
main_short(void *arg)
{
    begin(WORK_HEAVY_UNITS_MIN);
    workers_init(&workers, 0, 0);
    for (u32 i = 0; i <= WORK_LIGHT_UNITS_MIN; i++) {
        struct job *job = job_init(i, i, WORK_LIGHT, 1);
        job->waits_at_gate = true;
        EXPECT(work_start(&workers, &job->work));
    }
    await_jobs(WORK_LIGHT_UNITS_MIN, 0);
    EXPECT(workers.lines[WORK_LIGHT].queued == 1);
    open_gate();
    finish(WORK_LIGHT_UNITS_MIN + 1);
    return ST_OK;
}

static void
fewer_work_at_once_where_memory_is_short(void **state)
{
    ring_run_main(1, main_short, NULL);
}

static status
main_callers(void *arg)
{
    begin(WORK_HEAVY_UNITS_MIN);
    /* Each would take all the units that there are for those that call; its part as many again. */
    for (u32 i = 0; i < 100; i++) {
        struct job *caller = job_init(2 * i, i % 3, WORK_HEAVY, WORK_UNITS_MAX);
        caller->work.calls = true;
        caller->naps = 3;
        caller->part = job_init(2 * i + 1, i % 3, WORK_HEAVY, WORK_UNITS_MAX);
        caller->part->naps = 2;
        EXPECT(work_start(&workers, &caller->work));
    }
    finish(200);
    EXPECT(running_max == 2);
    return ST_OK;
}

static void
those_that_wait_for_others_leave_room_for_them(void **state)
{
    ring_run_main(1, main_callers, NULL);
}

static status
main_away(void *arg)
{
    begin(WORK_HEAVY_UNITS_MIN);
    for (u32 i = 0; i < 2; i++) {
        struct job *job = job_init(i, i, WORK_HEAVY, WORK_UNITS_MAX);
        job->leaves = true;
        job->naps = 33333 * WORK_AWAYS; /* WORK_AWAY_CLIENT: a slow one */
        EXPECT(work_start(&workers, &job->work));
    }
    for (u32 i = 2; i < 50; i++)
        EXPECT(work_start(&workers, &job_init(i, i, WORK_HEAVY, WORK_UNITS_MAX)->work));
    while (done < 48)
        fiber_yield();
    EXPECT(!jobs[0].ended && !jobs[1].ended && workers.away[WORK_AWAY_CLIENT] == 2);
    jobs[0].naps = jobs[1].naps = 0;
    finish(50);
    return ST_OK;
}

static void
who_waits_for_a_client_is_in_nobodys_way(void **state)
{
    ring_run_main(1, main_away, NULL);
}

static status
main_anything(void *arg)
{
    struct prng prng;
    for (u64 seed = 1; seed <= 200; seed++) {
        prng_init(&prng, seed);
        begin(WORK_HEAVY_UNITS_MIN + (u32)prng_u64(&prng) % 48);
        u32 used = 0, expected = 0;
        while (used + 2 <= JOBS_MAX) {
            enum work_class class = prng_u64(&prng) % 4 == 0 ? WORK_LIGHT : WORK_HEAVY;
            u32 units = class == WORK_LIGHT ? 1 : 1 + (u32)prng_u64(&prng) % WORK_UNITS_MAX;
            struct job *job = job_init(used++, prng_u64(&prng) % 7, class, units);
            job->leaves = prng_u64(&prng) % 3 == 0;
            job->naps = (u32)prng_u64(&prng) % 4;
            expected++;
            if (prng_u64(&prng) % 3 == 0) {
                job->work.calls = true;
                job->part = job_init(used++, job->work.flow, class, job->work.units);
                job->part->naps = (u32)prng_u64(&prng) % 4;
                expected++;
            }
            EXPECT(work_start(&workers, &job->work));
            if (prng_u64(&prng) % 8 == 0) fiber_yield();
        }
        finish(expected);
        if (atomic_load(&ring_failures) != 0) {
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            io_stop();
            break;
        }
    }
    return ST_OK;
}

static void
any_mixture_comes_to_its_end(void **state)
{
    ring_run_main(1, main_anything, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flows_take_turns),
        cmocka_unit_test(light_work_does_not_wait_for_heavy),
        cmocka_unit_test(fewer_work_at_once_where_memory_is_short),
        cmocka_unit_test(those_that_wait_for_others_leave_room_for_them),
        cmocka_unit_test(who_waits_for_a_client_is_in_nobodys_way),
        cmocka_unit_test(any_mixture_comes_to_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
