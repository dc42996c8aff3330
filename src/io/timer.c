/* SPDX-License-Identifier: MIT
 *
 * timer.c -- timers of a shard: one pairing heap, ordered by deadline, then by order of arming, so
 * that a run is repeatable. Arming, moving and cancelling never allocate.
 */
#include "io/core.h"

static const struct io_timer *
io_timer_of(const struct heap_node *node)
{
    return (const struct io_timer *)((const char *)node - offsetof(struct io_timer, node));
}

static bool
io_timer_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct io_timer *x = io_timer_of(a);
    const struct io_timer *y = io_timer_of(b);
    if (x->deadline_ns != y->deadline_ns) return x->deadline_ns < y->deadline_ns;
    return x->order < y->order;
}

void
core_timers_init(struct io_shard *shard)
{
    heap_init(&shard->timers, io_timer_before);
    shard->timer_order = 0;
}

void
io_timer_init(struct io_timer *timer, void (*fire)(struct io_timer *timer))
{
    memset(timer, 0, sizeof(*timer));
    timer->fire = fire;
}

void
io_timer_arm(struct io_timer *timer, u64 deadline_ns)
{
    struct io_shard *shard = io_current;
    if (timer->armed) heap_remove(&shard->timers, &timer->node);
    timer->deadline_ns = deadline_ns;
    timer->order = ++shard->timer_order;
    timer->armed = true;
    heap_insert(&shard->timers, &timer->node);
}

void
io_timer_cancel(struct io_timer *timer)
{
    if (!timer->armed) return;
    timer->armed = false;
    heap_remove(&io_current->timers, &timer->node);
}

u64
core_next_deadline_ns(const struct io_shard *shard)
{
    const struct heap_node *first = heap_first(&shard->timers);
    return first == NULL ? UINT64_MAX : io_timer_of(first)->deadline_ns;
}

u32
core_run_timers(struct io_shard *shard)
{
    /* Those armed from here on, even for the past, wait for the next turn. */
    u64 order_last = shard->timer_order;
    u32 count = 0;
    for (;;) {
        struct heap_node *first = heap_first(&shard->timers);
        if (first == NULL) break;
        struct io_timer *timer = CONTAINER_OF(first, struct io_timer, node);
        if (timer->deadline_ns > shard->now_ns || timer->order > order_last) break;
        timer->armed = false;
        heap_remove(&shard->timers, &timer->node);
        timer->fire(timer);
        count++;
    }
    if (count > 0) shard->turn_had_foreground = true;
    return count;
}
