/* SPDX-License-Identifier: MIT
 *
 * core.h -- what both backends share, and what each of them must bring. Private to src/io.
 *
 *     io.h fiber.h timer.h mailbox.h         implemented once, in core.c fiber*.c timer.c mailbox.c
 *     file.h net.h, io_node_*                implemented by each backend
 *     core_* below                           called by a backend's loop
 *     backend_* below                        called by the common code, resolved at link time
 *
 * A backend embeds struct io_shard as the first member of its own shard. Whoever runs a shard sets
 * io_current to it first: the ring's threads once for ever, the simulator before each step.
 *
 * One turn of a loop, in the ring's order; the simulator may take any part in any order:
 *
 *     core_turn_begin      now_ns and wall_ms are taken; the quota starts
 *     core_run_timers      callbacks whose time has come
 *     core_deliver         one call for each mail that the transport brought
 *     core_run_mails       mails to oneself, outboxes that were waiting for room
 *     core_run_tasks       callbacks posted so far in this turn or by the one before
 *     core_run_answers     ready fibers that somebody waits for, within the quota
 *     core_run_background  the others, when their time has come
 *
 * Invariants
 *   C1  A callback never runs inside the function that started its operation: completions go
 *       through a list that a later part of the loop empties.
 *   C2  A fiber is on exactly one of: a ready list, the waiters of one queue, no list while it runs.
 *   C3  io_current never changes while a fiber or callback runs.
 */
#ifndef DISTKV_IO_CORE_H
#define DISTKV_IO_CORE_H

#include "base/heap.h"
#include "base/limits.h"
#include "base/list.h"
#include "base/prng.h"
#include "io/fiber.h"
#include "io/io.h"
#include "io/mailbox.h"
#include "io/task.h"
#include "io/timer.h"

/* Turn of a busy shard; a fiber or callback should ask fiber_should_yield well within it. */
#define CORE_QUOTA_NS (500 * NS_PER_US)
/* Bulk and background work beside foreground work gets at least this long at a time, ... */
#define CORE_SLICE_NS_MIN (50 * NS_PER_US)
/* ... is guaranteed this part of the time, and may save up this much of it. */
#define CORE_BULK_SHARE    250u /* in thousandths; background: IO_BACKGROUND_SHARE */
#define CORE_CREDIT_NS_MAX (5 * NS_PER_MS)

#define FIBER_STACK_BYTES (64u << 10)
/* Pages at the top of a stack that are touched at once, and what a stack counts in the budget:
 * the rest is address space until a deep call needs it. */
#define FIBER_STACK_TOUCHED_BYTES (8u << 10)
#define FIBER_STACK_CHARGE_BYTES  (16u << 10)
#define FIBER_COUNT_MAX_DEFAULT   4096u
/* Stacks are mapped this many at a time: 4 MiB of address space. */
#define FIBER_CHUNK_STACKS 64u

enum fiber_state {
    FIBER_STATE_POOLED,  /* on shard->fiber_pool */
    FIBER_STATE_READY,   /* on shard->ready[class] or shard->yielded[class] */
    FIBER_STATE_RUNNING, /* shard->running */
    FIBER_STATE_WAITING, /* its fiber_waiter is on a queue, or only its timer is armed */
};

/* Lives at the top of its own stack. */
struct fiber {
    struct list link; /* ready list or pool */
    struct list all;  /* every fiber that was spawned and has not ended: for debuggers and tests */
    void *stack_pointer; /* while not running */
    u8 *stack_bottom;    /* lowest usable byte, above the guard */
    size_t stack_bytes;
    void (*fn)(void *arg);
    void *arg;
    const char *name;
    u64 id; /* of this spawn; never used again in this shard */
    enum fiber_class class;
    enum fiber_state state;
    int saved_errno;
    void *asan_fake_stack;
    void *tsan_fiber;
    unsigned valgrind_id;
};

struct io_shard {
    /* configuration, fixed by core_shard_init */
    struct io_node *node; /* the backend's */
    u32 index;
    u32 count;
    u32 fiber_count_max;
    status (*shard_main)(void *arg);
    void *shard_main_arg;
    struct budget budget; /* root of this shard */

    /* time of this turn */
    u64 now_ns;
    u64 wall_ms;
    u64 turn_start_ns; /* on the clock of backend_clock_ns */
    u64 slice_end_ns;  /* when the running fiber or callback should yield */
    u64 slice_own_ns;  /* until then a fiber of a lower class need not leave for an answer */

    /* work */
    struct list ready[FIBER_CLASSES];   /* struct fiber.link, by enum fiber_class */
    struct list yielded[FIBER_CLASSES]; /* ready again, but not before the next turn */
    struct list tasks;                  /* struct io_task.link */
    struct heap timers;                 /* struct io_timer.node */
    u64 timer_order;
    u64 bulk_credit_ns, background_credit_ns;
    u64 background_slice_ns; /* core_background_is_due */
    u32 background_share;    /* io_background_share_set */
    bool bulk_runs;
    bool turn_had_foreground; /* anything but background fibers ran in this turn */

    /* fibers */
    struct fiber *running;
    u32 no_yield_depth;
    struct list fiber_pool;
    struct list fibers_all;
    u8 **fiber_chunks; /* mapped, FIBER_CHUNK_STACKS stacks each */
    u32 fiber_chunk_count;
    u32 fiber_chunk_max;
    u32 fiber_stacks_used; /* ever handed out of the chunks */
    u64 fiber_id_last;
    size_t stack_used_max; /* deepest stack seen; only where DISTKV_DCHECK paints */
    void *loop_stack_pointer;
    const void *loop_stack_bottom;
    size_t loop_stack_bytes;
    void *loop_fake_stack;
    void *loop_tsan_fiber;

    /* mails */
    struct list mails_self;
    struct list outboxes[LIMIT_SHARDS];
    u32 outbox_mails; /* in all of them */

    /* stopping */
    bool stopping;
    u32 held; /* io_shard_hold */
    struct fiber_queue stop_queue;
    bool main_done;
    status main_status;

    void *user;
    struct prng prng;
    struct io_stats stats;
};

extern __thread struct io_shard *io_current;

/* ---- the life of a shard ---- */

/* Prepares shard in the caller's memory; every field that is not of core.h is left alone.
 * fiber_count_max 0: the default. */
MUST_CHECK status core_shard_init(struct io_shard *shard, struct io_node *node, u32 index,
                                  u32 count, u64 memory_bytes, u32 fiber_count_max, u64 seed);
/* Frees the stacks. abandon: fibers that have not ended are forgotten (a simulated crash);
 * otherwise there must be none. */
void core_shard_deinit(struct io_shard *shard, bool abandon);
/* Spawns the fiber that runs shard_main. Sets main_done and main_status when it has returned; a
 * failure asks the node to stop. */
MUST_CHECK status core_shard_start(struct io_shard *shard, status (*shard_main)(void *arg),
                                   void *arg);
/* shard_main has returned, no fiber is left, nobody holds the shard and no mail waits: it may end
 * once nothing of the backend's is in flight either. */
bool core_shard_finished(const struct io_shard *shard);
/* The node was asked to stop: sets stopping and wakes io_wait_stop. May be called again. */
void core_stop_seen(struct io_shard *shard);

/* ---- parts of a turn; all need io_current == shard ---- */

void core_turn_begin(struct io_shard *shard, u64 now_ns, u64 wall_ms);
/* Returns how many ran. */
u32 core_run_timers(struct io_shard *shard);
void core_deliver(struct io_shard *shard, struct io_mail *mail);
u32 core_run_mails(struct io_shard *shard);
u32 core_run_tasks(struct io_shard *shard);
u32 core_run_answers(struct io_shard *shard);
/* Once a turn: counts what background fibers have earned. True: some are to run now. */
bool core_background_is_due(struct io_shard *shard);
u32 core_run_background(struct io_shard *shard);
/* Switches to a fiber that is ready, wherever it stands in its list, until it waits or ends. The
 * simulator picks by this; the two above use it, too. */
void core_run_fiber(struct io_shard *shard, struct fiber *fiber);
/* Whether another turn has something to do at once. Timers and the backend's own work do not
 * count. */
bool core_has_work(const struct io_shard *shard);
/* Bulk work is running, and a foreground fiber could. */
bool core_bulk_gives_way(const struct io_shard *shard);
/* When the first timer fires; UINT64_MAX without one. */
u64 core_next_deadline_ns(const struct io_shard *shard);
/* Runs the task in a later part of the loop. Posting it again before it ran is a bug. */
void core_task_post(struct io_shard *shard, struct io_task *task);

/* ---- of a file's operation ---- */

struct io_op;
/* A request for the rest of op has moved so many bytes of it, perhaps not all. The next one begins
 * at a multiple of unit (a power of two), so what stopped within one begins with it once more.
 * False: nothing was gained, and another request would gain nothing, either. */
bool core_op_advance(struct io_op *op, u32 moved, u32 unit);

/* ---- for code of src/io that makes fibers wait on its own ---- */

/* Suspends the running fiber until fiber_resume. */
MAY_YIELD void fiber_suspend(void);
void fiber_resume(struct io_shard *shard, struct fiber *fiber);
/* The parts of the other files that core_shard_init calls. */
void core_timers_init(struct io_shard *shard);
void core_mails_init(struct io_shard *shard);
/* The part of fiber.c that core_shard_init and core_shard_deinit call. */
MUST_CHECK status fiber_pool_init(struct io_shard *shard, u32 fiber_count_max);
void fiber_pool_deinit(struct io_shard *shard);
/* Fresh memory for stacks; NULL when there is none. */
void *fiber_stacks_map(size_t bytes);
/* Whether address lies in the guard page of a stack of shard: for the fault handler. */
bool fiber_guard_hit(const struct io_shard *shard, const void *address);

/* ---- what a backend brings ---- */

/* Monotonic, read now. */
u64 backend_clock_ns(struct io_shard *shard);
/* fiber_should_yield: the ring compares its clock with slice_end_ns. */
bool backend_slice_over(struct io_shard *shard);
void backend_entropy(struct io_shard *shard, void *data, size_t size);
/* Tells every shard of the node (through core_stop_seen, later). */
void backend_stop(struct io_shard *shard);
/* Hands mail to the transport towards another shard; false when there is no room now. The common
 * code calls it in order and keeps the rest. */
bool backend_mail_push(struct io_shard *shard, u32 target, struct io_mail *mail);
/* Memory for many stacks, from fiber_stacks_map or used by another shard before; and back. */
void *backend_stacks_map(size_t bytes);
void backend_stacks_unmap(void *stacks, size_t bytes);
/* Adds the figures that the backend keeps elsewhere. */
void backend_stats(struct io_shard *shard, struct io_stats *out);

#endif
