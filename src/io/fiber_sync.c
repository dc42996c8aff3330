/* SPDX-License-Identifier: MIT
 *
 * fiber_sync.c -- how fibers wait for each other.
 *
 * Everything stands on the queue. A waiter lives on the waiting fiber's stack, with the timer of
 * its deadline, and leaves the queue in exactly one way: woken, or timed out. Permits and locks are
 * handed from the one who gives to the first waiter, never put back for others to snatch, so
 * waiting is fair and a woken fiber need not look again.
 */
#include "io/core.h"

#include "base/fault.h"

struct fiber_waiter {
    struct list link;
    struct io_shard *shard;
    struct fiber *fiber;
    struct io_timer timer;
    status result;
};

static void
fiber_waiter_wake(struct fiber_waiter *waiter, status result)
{
    list_del(&waiter->link);
    waiter->result = result;
    fiber_resume(waiter->shard, waiter->fiber);
}

static void
fiber_waiter_expire(struct io_timer *timer)
{
    fiber_waiter_wake(CONTAINER_OF(timer, struct fiber_waiter, timer), ST_TIMED_OUT);
}

void
fiber_queue_init(struct fiber_queue *queue)
{
    list_init(&queue->waiters);
}

MAY_YIELD status
fiber_queue_wait(struct fiber_queue *queue, u64 deadline_ns)
{
    struct io_shard *shard = io_current;
    struct fiber_waiter waiter = {.shard = shard, .fiber = shard->running, .result = ST_OK};
    CHECK(waiter.fiber != NULL);
    list_push_back(&queue->waiters, &waiter.link);
    io_timer_init(&waiter.timer, fiber_waiter_expire);
    if (deadline_ns != FIBER_FOREVER) io_timer_arm(&waiter.timer, deadline_ns);
    fiber_suspend();
    io_timer_cancel(&waiter.timer);
    return waiter.result;
}

u32
fiber_queue_wake_one(struct fiber_queue *queue)
{
    struct list *first = list_first(&queue->waiters);
    if (first == NULL) return 0;
    struct fiber_waiter *waiter = list_entry(first, struct fiber_waiter, link);
    /* At once, not when it runs: it must not time out after it was handed something. */
    io_timer_cancel(&waiter->timer);
    fiber_waiter_wake(waiter, ST_OK);
    return 1;
}

u32
fiber_queue_wake_all(struct fiber_queue *queue)
{
    u32 count = 0;
    while (fiber_queue_wake_one(queue) != 0)
        count++;
    return count;
}

MAY_YIELD void
fiber_sleep_ns(u64 duration_ns)
{
    struct fiber_queue nobody_wakes;
    fiber_queue_init(&nobody_wakes);
    u64 now = io_now_ns();
    if (BUGGIFY("io.fiber.oversleeps")) now += 3 * NS_PER_MS;
    u64 deadline = duration_ns < FIBER_FOREVER - 1 - now ? now + duration_ns : FIBER_FOREVER - 1;
    (void)fiber_queue_wait(&nobody_wakes, deadline);
}

/* ---- semaphore ---- */

void
fiber_semaphore_init(struct fiber_semaphore *semaphore, u64 available)
{
    semaphore->available = available;
    fiber_queue_init(&semaphore->queue);
}

bool
fiber_semaphore_try(struct fiber_semaphore *semaphore)
{
    if (semaphore->available == 0) return false;
    semaphore->available--;
    return true;
}

MAY_YIELD void
fiber_semaphore_take(struct fiber_semaphore *semaphore)
{
    if (fiber_semaphore_try(semaphore)) return;
    (void)fiber_queue_wait(&semaphore->queue, FIBER_FOREVER); /* the giver handed it over */
}

void
fiber_semaphore_give(struct fiber_semaphore *semaphore)
{
    if (fiber_queue_wake_one(&semaphore->queue) == 0) semaphore->available++;
}

/* ---- mutex ---- */

void
fiber_mutex_init(struct fiber_mutex *mutex)
{
    mutex->locked = false;
    fiber_queue_init(&mutex->queue);
}

MAY_YIELD void
fiber_mutex_lock(struct fiber_mutex *mutex)
{
    if (!mutex->locked) {
        mutex->locked = true;
        return;
    }
    (void)fiber_queue_wait(&mutex->queue, FIBER_FOREVER); /* still locked, and now ours */
}

void
fiber_mutex_unlock(struct fiber_mutex *mutex)
{
    CHECK(mutex->locked);
    if (fiber_queue_wake_one(&mutex->queue) == 0) mutex->locked = false;
}

/* ---- gate ---- */

void
fiber_gate_init(struct fiber_gate *gate)
{
    gate->entered = 0;
    gate->closed = false;
    fiber_queue_init(&gate->queue);
}

bool
fiber_gate_enter(struct fiber_gate *gate)
{
    if (gate->closed) return false;
    gate->entered++;
    return true;
}

void
fiber_gate_leave(struct fiber_gate *gate)
{
    CHECK(gate->entered > 0);
    gate->entered--;
    if (gate->closed && gate->entered == 0) fiber_queue_wake_all(&gate->queue);
}

MAY_YIELD void
fiber_gate_close(struct fiber_gate *gate)
{
    gate->closed = true;
    if (gate->entered > 0) (void)fiber_queue_wait(&gate->queue, FIBER_FOREVER);
}
