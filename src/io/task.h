/* SPDX-License-Identifier: MIT
 *
 * task.h -- work put off to a later part of the loop, so that it is done once for all that a turn
 * brings. Caller-owned, intrusive.
 *
 * A turn runs tasks after it has delivered what came (timers, mails, bytes, finished io_ops) and
 * before its fibers: what a callback posts runs in the same turn, what a fiber or another task
 * posts in the next, which comes without a sleep.
 */
#ifndef DISTKV_IO_TASK_H
#define DISTKV_IO_TASK_H

#include "base/list.h"

struct io_task {
    struct list link; /* in a list of the shard while it is posted, else to itself */
    void (*run)(struct io_task *task); /* a callback */
};

void io_task_init(struct io_task *task, void (*run)(struct io_task *task));
/* Once is enough, however often it is asked for before it runs. It may be posted by its own run. */
void io_task_post(struct io_task *task);
void io_task_cancel(struct io_task *task);

#endif
