/* SPDX-License-Identifier: MIT
 *
 * timer.h -- callbacks at a time of the io_now_ns clock. Caller-owned, intrusive; a timer may be
 * armed again from its own callback.
 */
#ifndef DISTKV_IO_TIMER_H
#define DISTKV_IO_TIMER_H

#include "base/heap.h"

struct io_timer {
    struct heap_node node;
    u64 deadline_ns;
    u64 order; /* of arming: decides ties */
    void (*fire)(struct io_timer *timer);
    bool armed;
};

void io_timer_init(struct io_timer *timer, void (*fire)(struct io_timer *timer));
/* Moves it if it is armed already. A deadline in the past fires in the next turn. */
void io_timer_arm(struct io_timer *timer, u64 deadline_ns);
void io_timer_cancel(struct io_timer *timer);

#endif
