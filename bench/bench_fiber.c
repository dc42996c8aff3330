/* SPDX-License-Identifier: MIT
 *
 * bench_fiber.c -- question: what does the runtime add to a request that has to wait? On one shard
 * with its ring and nothing else to do.
 *
 *   yield.1       fiber_yield of the only fiber: a whole turn of the loop, with the look at the ring
 *   yield.N       the same of N fibers that take turns; with many a yield is two switches and the
 *                 list of those that are ready, and the turn is shared by all
 *   spawn         fiber_spawn, its first run and its end, in groups of 64, stacks from the pool
 *   wake          two fibers that wake each other through a queue: a wait, a wake, a switch
 *   mutex         lock and unlock of a mutex that nobody else wants
 *   semaphore     take and give of one that has permits
 *   timer.N       arm and cancel of one timer beside N others (a heap)
 *   task          io_task_post and its run, once a turn
 *   should_yield  the question of long loops
 *   clock         io_clock_ns
 *
 * Compare yield.64 with two times four nanoseconds, about what saving and restoring six registers
 * and a return that was not predicted take, and with the 1 to 2 us of a switch between threads.
 *
 *     bench_fiber [--only TEXT] [--rounds N] [--round-us N] [--small] [--format json]
 */
#include <stdio.h>

#include "base/prng.h"
#include "io/fiber.h"
#include "io/io.h"
#include "io/task.h"
#include "io/timer.h"
#include "micro.h"

#define SPAWN_TOGETHER 64u
#define TIMERS_MAX     10000u

/* ---- switches ---- */

/* Others that only yield, until they are to end. */
struct crowd {
    u32 count, running;
    bool ending;
};

MAY_YIELD static void
crowd_member(void *arg)
{
    struct crowd *crowd = arg;
    while (!crowd->ending)
        fiber_yield();
    crowd->running--;
}

MAY_YIELD static void
yield_run(void *arg, u64 count)
{
    const struct crowd *crowd = arg;
    for (u64 i = 0; i < count; i += crowd->count)
        fiber_yield(); /* each of the others has, too, when this one runs again */
}

MAY_YIELD static void
measure_yield(const char *name, u32 fibers)
{
    struct crowd crowd = {.count = fibers};
    for (; crowd.running < fibers - 1; crowd.running++)
        micro_must(fiber_spawn(FIBER_FOREGROUND, "bench", crowd_member, &crowd), "spawn");
    micro_measure(
        &(struct micro_case){.name = name, .run = yield_run, .arg = &crowd, .count_unit = fibers});
    crowd.ending = true;
    while (crowd.running > 0)
        fiber_yield();
}

static void
short_fiber(void *arg)
{
    --*(u32 *)arg;
}

MAY_YIELD static void
spawn_run(void *arg, u64 count)
{
    for (u64 i = 0; i < count; i += SPAWN_TOGETHER) {
        u32 running = SPAWN_TOGETHER;
        for (u32 j = 0; j < SPAWN_TOGETHER; j++)
            micro_must(fiber_spawn(FIBER_FOREGROUND, "bench", short_fiber, &running), "spawn");
        while (running > 0)
            fiber_yield();
    }
}

struct pair {
    struct fiber_queue asked, answered;
    bool ending, ended;
};

MAY_YIELD static void
answerer(void *arg)
{
    struct pair *pair = arg;
    while (!pair->ending) {
        (void)fiber_queue_wait(&pair->asked, FIBER_FOREVER);
        fiber_queue_wake_one(&pair->answered);
    }
    pair->ended = true;
}

/* An operation is one direction. */
MAY_YIELD static void
wake_run(void *arg, u64 count)
{
    struct pair *pair = arg;
    for (u64 i = 0; i < count; i += 2) {
        fiber_queue_wake_one(&pair->asked);
        (void)fiber_queue_wait(&pair->answered, FIBER_FOREVER);
    }
}

MAY_YIELD static void
measure_wake(void)
{
    struct pair pair = {0};
    fiber_queue_init(&pair.asked);
    fiber_queue_init(&pair.answered);
    micro_must(fiber_spawn(FIBER_FOREGROUND, "bench", answerer, &pair), "spawn");
    fiber_yield();
    micro_measure(
        &(struct micro_case){.name = "wake", .run = wake_run, .arg = &pair, .count_unit = 2});
    pair.ending = true;
    fiber_queue_wake_one(&pair.asked);
    while (!pair.ended)
        fiber_yield();
}

/* ---- what need not wait ---- */

MAY_YIELD static void
mutex_run(void *arg, u64 count)
{
    struct fiber_mutex *mutex = arg;
    for (u64 i = 0; i < count; i++) {
        fiber_mutex_lock(mutex);
        fiber_mutex_unlock(mutex);
    }
}

MAY_YIELD static void
semaphore_run(void *arg, u64 count)
{
    struct fiber_semaphore *semaphore = arg;
    for (u64 i = 0; i < count; i++) {
        fiber_semaphore_take(semaphore);
        fiber_semaphore_give(semaphore);
    }
}

static void
should_yield_run(void *arg, u64 count)
{
    u64 sum = 0;
    for (u64 i = 0; i < count; i++)
        sum += fiber_should_yield();
    micro_keep(sum);
}

static void
clock_run(void *arg, u64 count)
{
    for (u64 i = 0; i < count; i++)
        micro_keep(io_clock_ns());
}

/* ---- timers and tasks ---- */

static struct io_timer timers[TIMERS_MAX], timer;
static struct prng prng;

static void
timer_fire(struct io_timer *fired)
{
    micro_die("a timer fired", ST_OK);
}

/* Up to an hour ahead, so that none fires. */
static u64
timer_deadline(void)
{
    return io_now_ns() + 600 * NS_PER_S + prng_below(&prng, 3000 * NS_PER_S);
}

static void
timer_run(void *arg, u64 count)
{
    for (u64 i = 0; i < count; i++) {
        io_timer_arm(&timer, timer_deadline());
        io_timer_cancel(&timer);
    }
}

static void
measure_timers(const char *name, u32 others)
{
    for (u32 i = 0; i < others; i++) {
        io_timer_init(&timers[i], timer_fire);
        io_timer_arm(&timers[i], timer_deadline());
    }
    micro_measure(&(struct micro_case){.name = name, .run = timer_run});
    for (u32 i = 0; i < others; i++)
        io_timer_cancel(&timers[i]);
}

static u64 tasks_run;

static void
task_count(struct io_task *task)
{
    tasks_run++;
}

MAY_YIELD static void
task_run(void *arg, u64 count)
{
    struct io_task *task = arg;
    u64 end = tasks_run + count;
    while (tasks_run < end) {
        io_task_post(task);
        fiber_yield();
    }
}

MAY_YIELD static void
measure_all(void)
{
    prng_init(&prng, 1);
    measure_yield("yield.1", 1);
    measure_yield("yield.2", 2);
    measure_yield("yield.64", 64);
    if (!micro_small()) measure_yield("yield.1000", 1000);
    micro_measure(
        &(struct micro_case){.name = "spawn", .run = spawn_run, .count_unit = SPAWN_TOGETHER});
    measure_wake();
    struct fiber_mutex mutex;
    fiber_mutex_init(&mutex);
    micro_measure(&(struct micro_case){.name = "mutex", .run = mutex_run, .arg = &mutex});
    struct fiber_semaphore semaphore;
    fiber_semaphore_init(&semaphore, 1);
    micro_measure(
        &(struct micro_case){.name = "semaphore", .run = semaphore_run, .arg = &semaphore});
    io_timer_init(&timer, timer_fire);
    measure_timers("timer.10", 10);
    if (!micro_small()) measure_timers("timer.10000", TIMERS_MAX);
    struct io_task task;
    io_task_init(&task, task_count);
    micro_measure(&(struct micro_case){.name = "task", .run = task_run, .arg = &task});
    micro_measure(&(struct micro_case){.name = "should_yield", .run = should_yield_run});
    micro_measure(&(struct micro_case){.name = "clock", .run = clock_run});
}

int
main(int argc, char **argv)
{
    micro_begin(argc, argv);
    micro_on_shard(1, measure_all);
    return micro_end();
}
