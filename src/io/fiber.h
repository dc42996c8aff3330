/* SPDX-License-Identifier: MIT
 *
 * fiber.h -- stackful fibers of one shard, and the ways they wait for each other.
 *
 * Fibers are cooperative and never leave their shard, so nothing here locks. Between two MAY_YIELD
 * calls a fiber is alone; whatever it read before such a call is stale after it. Stacks are 64 KiB
 * with a guard page, pooled last-in first-out: no large locals, no recursion without a bound.
 */
#ifndef DISTKV_IO_FIBER_H
#define DISTKV_IO_FIBER_H

#include "base/list.h"
#include "base/status.h"

struct fiber; /* owned by the pool */

enum fiber_class {
    FIBER_FOREGROUND, /* somebody waits for an answer */
    /* Somebody waits for the answer to much work: runs when no foreground fiber can, guaranteed
     * about a quarter of a busy shard. Its reads of the class IO_CLASS_READ count as IO_CLASS_BULK.
     */
    FIBER_BULK,
    FIBER_BACKGROUND, /* flush, compaction, scrub: guaranteed about a tenth of a busy shard */
};
#define FIBER_CLASSES 3u

/* Starts fn(arg) in a later part of this turn. ST_NO_MEMORY when the pool is at its limit. */
MUST_CHECK status fiber_spawn(enum fiber_class class, const char *name, void (*fn)(void *arg),
                              void *arg);
/* The running fiber; NULL in a callback. */
struct fiber *fiber_self(void);
/* Of the running fiber; in a callback FIBER_FOREGROUND. */
enum fiber_class fiber_class_self(void);
/* Lets everything else that is ready run first. */
MAY_YIELD void fiber_yield(void);
/* True when the running fiber (or callback) has used up its quota of this turn: long loops ask
 * this and yield. Cheap enough for every few microseconds of work. */
bool fiber_should_yield(void);
MAY_YIELD void fiber_sleep_ns(u64 duration_ns);
/* Asserts that no switch happens between the two calls (checked in all builds). */
void fiber_no_yield_begin(void);
void fiber_no_yield_end(void);

/* ---- waiting; all first-in first-out ---- */

/* A place to wait. Zero-cost when nobody waits. */
struct fiber_queue {
    struct list waiters; /* struct fiber_waiter, on the waiters' stacks */
};

#define FIBER_FOREVER UINT64_MAX

void fiber_queue_init(struct fiber_queue *queue);
/* Waits to be woken, or until deadline_ns on the io_now_ns clock (ST_TIMED_OUT). */
MAY_YIELD status fiber_queue_wait(struct fiber_queue *queue, u64 deadline_ns);
/* Makes the first waiter (all waiters) ready; they run later. Returns how many. */
u32 fiber_queue_wake_one(struct fiber_queue *queue);
u32 fiber_queue_wake_all(struct fiber_queue *queue);
static inline bool
fiber_queue_empty(const struct fiber_queue *queue)
{
    return list_empty(&queue->waiters);
}

/* Counted permits. */
struct fiber_semaphore {
    u64 available;
    struct fiber_queue queue;
};

void fiber_semaphore_init(struct fiber_semaphore *semaphore, u64 available);
bool fiber_semaphore_try(struct fiber_semaphore *semaphore);
MAY_YIELD void fiber_semaphore_take(struct fiber_semaphore *semaphore);
void fiber_semaphore_give(struct fiber_semaphore *semaphore);

/* Mutual exclusion across yields. Not recursive. */
struct fiber_mutex {
    bool locked;
    struct fiber_queue queue;
};

void fiber_mutex_init(struct fiber_mutex *mutex);
MAY_YIELD void fiber_mutex_lock(struct fiber_mutex *mutex);
void fiber_mutex_unlock(struct fiber_mutex *mutex);

/* Shutdown: refuse new work, wait for the old (after seastar's core/gate.hh). */
struct fiber_gate {
    u64 entered;
    bool closed;
    struct fiber_queue queue;
};

void fiber_gate_init(struct fiber_gate *gate);
/* False once closed. */
MUST_CHECK bool fiber_gate_enter(struct fiber_gate *gate);
void fiber_gate_leave(struct fiber_gate *gate);
/* Closes and waits until everybody has left. */
MAY_YIELD void fiber_gate_close(struct fiber_gate *gate);

#endif
