/* SPDX-License-Identifier: MIT
 *
 * core.c -- the shard itself: birth and end, who runs next, and the functions of io.h that need
 * nothing from the kernel.
 *
 * Scheduling. Foreground fibers run in the order in which they became ready, until the turn's
 * quota of 500 us is over (one runs in any case, and half a quota is left to them whatever the
 * callbacks took).
 *
 * Bulk fibers come when no foreground fiber is ready. They leave when an answer can go on, but not
 * before CORE_SLICE_NS_MIN, so that a small request waits about that long for them. Foreground
 * fibers that are ready all the time cannot keep them out: a third of the time that others took is
 * their credit, which is a quarter of the whole, and that much they get in any case.
 *
 * Background fibers have the rest of the turn to themselves when nothing else happened in it;
 * beside other work they live on credit: a ninth of the time that it took, which is a tenth of the
 * whole, unless more was asked for (io_background_share_set). Unused credit is kept up to a limit.
 * So nobody starves, and an idle machine compacts at full speed.
 */
#include "io/core.h"

#include "base/fault.h"

/* ---- the life of a shard ---- */

status
core_shard_init(struct io_shard *shard, struct io_node *node, u32 index, u32 count,
                u64 memory_bytes, u32 fiber_count_max, u64 seed)
{
    CHECK(count > 0 && count <= LIMIT_SHARDS);
    CHECK(index < count);
    memset(shard, 0, sizeof(*shard));
    shard->node = node;
    shard->index = index;
    shard->count = count;
    shard->background_share = IO_BACKGROUND_SHARE;
    budget_init(&shard->budget, "shard", memory_bytes, NULL);
    for (u32 class = 0; class < FIBER_CLASSES; class ++) {
        list_init(&shard->ready[class]);
        list_init(&shard->yielded[class]);
    }
    list_init(&shard->tasks);
    core_timers_init(shard);
    core_mails_init(shard);
    fiber_queue_init(&shard->stop_queue);
    prng_init(&shard->prng, seed);
    return fiber_pool_init(shard, fiber_count_max);
}

void
core_shard_deinit(struct io_shard *shard, bool abandon)
{
    CHECK(shard->running == NULL);
    if (!abandon) CHECK(list_empty(&shard->fibers_all));
    fiber_pool_deinit(shard);
}

static void
core_main_fiber(void *arg)
{
    struct io_shard *shard = arg;
    status st = shard->shard_main(shard->shard_main_arg);
    shard->main_done = true;
    shard->main_status = st;
    if (!ok(st)) {
        MARK("io.shard.main_failed");
        backend_stop(shard);
    }
}

status
core_shard_start(struct io_shard *shard, status (*shard_main)(void *arg), void *arg)
{
    shard->shard_main = shard_main;
    shard->shard_main_arg = arg;
    return fiber_spawn(FIBER_FOREGROUND, "main", core_main_fiber, shard);
}

bool
core_shard_finished(const struct io_shard *shard)
{
    return shard->main_done && shard->held == 0 && list_empty(&shard->fibers_all) &&
           list_empty(&shard->tasks) && list_empty(&shard->mails_self) && shard->outbox_mails == 0;
}

void
core_stop_seen(struct io_shard *shard)
{
    shard->stopping = true;
    fiber_queue_wake_all(&shard->stop_queue);
}

/* ---- parts of a turn ---- */

void
core_turn_begin(struct io_shard *shard, u64 now_ns, u64 wall_ms)
{
    DCHECK(now_ns >= shard->now_ns);
    shard->now_ns = now_ns;
    shard->wall_ms = wall_ms;
    shard->turn_start_ns = now_ns;
    shard->slice_end_ns = shard->slice_own_ns = now_ns + CORE_QUOTA_NS;
    shard->turn_had_foreground = false;
    shard->stats.turns++;
    for (u32 class = 0; class < FIBER_CLASSES; class ++)
        list_splice_back(&shard->ready[class], &shard->yielded[class]);
}

void
core_task_post(struct io_shard *shard, struct io_task *task)
{
    list_push_back(&shard->tasks, &task->link);
}

u32
core_run_tasks(struct io_shard *shard)
{
    if (list_empty(&shard->tasks)) return 0;
    struct list batch; /* a task that posts itself again runs in the next turn */
    list_init(&batch);
    list_splice_back(&batch, &shard->tasks);
    u32 count = 0;
    struct list *link;
    while ((link = list_pop_front(&batch)) != NULL) {
        struct io_task *task = list_entry(link, struct io_task, link);
        task->run(task);
        count++;
    }
    shard->turn_had_foreground = true;
    return count;
}

void
io_task_init(struct io_task *task, void (*run)(struct io_task *task))
{
    list_init(&task->link);
    task->run = run;
}

void
io_task_post(struct io_task *task)
{
    if (!list_linked(&task->link)) core_task_post(io_current, task);
}

void
io_task_cancel(struct io_task *task)
{
    list_del(&task->link);
}

static struct fiber *
core_first_ready(struct io_shard *shard, enum fiber_class class)
{
    struct list *first = list_first(&shard->ready[class]);
    return first == NULL ? NULL : list_entry(first, struct fiber, link);
}

static u32
core_run_foreground(struct io_shard *shard)
{
    if (list_empty(&shard->ready[FIBER_FOREGROUND])) return 0;
    /* However long the callbacks of this turn took. */
    u64 least_ns = backend_clock_ns(shard) + CORE_QUOTA_NS / 2;
    shard->slice_end_ns = shard->slice_own_ns = MAX(shard->slice_end_ns, least_ns);
    u32 count = 0;
    for (;;) {
        struct fiber *fiber = core_first_ready(shard, FIBER_FOREGROUND);
        if (fiber == NULL) break;
        if (count > 0 && backend_slice_over(shard)) break;
        core_run_fiber(shard, fiber);
        count++;
    }
    if (count > 0) shard->turn_had_foreground = true;
    return count;
}

static u64
core_credit(u64 credit_ns, u64 others_ns, u32 share)
{
    return MIN(credit_ns + others_ns * share / (1000 - share), CORE_CREDIT_NS_MAX);
}

bool
core_bulk_gives_way(const struct io_shard *shard)
{
    return shard->bulk_runs && !list_empty(&shard->ready[FIBER_FOREGROUND]);
}

static u32
core_run_bulk(struct io_shard *shard)
{
    if (core_first_ready(shard, FIBER_BULK) == NULL) return 0;
    u64 start_ns = backend_clock_ns(shard);
    bool free = list_empty(&shard->ready[FIBER_FOREGROUND]);
    u64 credit_ns =
        core_credit(shard->bulk_credit_ns, start_ns - shard->turn_start_ns, CORE_BULK_SHARE);
    shard->bulk_credit_ns = credit_ns;
    if (!free && credit_ns < CORE_SLICE_NS_MIN) return 0;

    u64 own_ns = CLAMP(credit_ns, CORE_SLICE_NS_MIN, CORE_QUOTA_NS);
    shard->slice_own_ns = start_ns + own_ns;
    shard->slice_end_ns = start_ns + (free ? CORE_QUOTA_NS : own_ns);
    u32 count = 0;
    struct fiber *fiber;
    shard->bulk_runs = true;
    while ((fiber = core_first_ready(shard, FIBER_BULK)) != NULL) {
        core_run_fiber(shard, fiber);
        count++;
        if (backend_slice_over(shard)) break;
    }
    shard->bulk_runs = false;
    u64 spent_ns = backend_clock_ns(shard) - start_ns;
    shard->bulk_credit_ns -= MIN(spent_ns, shard->bulk_credit_ns);
    shard->turn_had_foreground = true;
    return count;
}

bool
core_background_is_due(struct io_shard *shard)
{
    shard->background_slice_ns = CORE_QUOTA_NS;
    if (shard->turn_had_foreground) {
        u64 others_ns = backend_clock_ns(shard) - shard->turn_start_ns;
        shard->background_credit_ns =
            core_credit(shard->background_credit_ns, others_ns, shard->background_share);
        if (shard->background_credit_ns < CORE_SLICE_NS_MIN) return false;
        shard->background_slice_ns = MIN(shard->background_credit_ns, CORE_QUOTA_NS);
    }
    return core_first_ready(shard, FIBER_BACKGROUND) != NULL;
}

u32
core_run_background(struct io_shard *shard)
{
    u64 start_ns = backend_clock_ns(shard);
    u64 slice_ns = shard->background_slice_ns;
    shard->slice_end_ns = start_ns + slice_ns;
    shard->slice_own_ns = shard->slice_end_ns - CORE_QUOTA_NS + CORE_SLICE_NS_MIN;
    u32 count = 0;
    u64 now_ns = start_ns;
    struct fiber *fiber;
    while (now_ns < shard->slice_end_ns &&
           (fiber = core_first_ready(shard, FIBER_BACKGROUND)) != NULL) {
        core_run_fiber(shard, fiber);
        count++;
        now_ns = backend_clock_ns(shard);
        if (!list_empty(&shard->ready[FIBER_FOREGROUND])) break; /* somebody waits for an answer */
    }
    u64 spent_ns = now_ns - start_ns;
    if (shard->turn_had_foreground)
        shard->background_credit_ns -= MIN(spent_ns, shard->background_credit_ns);
    return count;
}

u32
core_run_answers(struct io_shard *shard)
{
    u32 count = core_run_foreground(shard);
    return count + core_run_bulk(shard);
}

bool
core_has_work(const struct io_shard *shard)
{
    for (u32 class = 0; class < FIBER_CLASSES; class ++)
        if (!list_empty(&shard->ready[class]) || !list_empty(&shard->yielded[class])) return true;
    return !list_empty(&shard->tasks) || !list_empty(&shard->mails_self);
}

/* ---- io.h ---- */

u32
io_shard_index(void)
{
    return io_current->index;
}

u32
io_shard_count(void)
{
    return io_current->count;
}

void
io_shard_user_set(void *user)
{
    io_current->user = user;
}

void *
io_shard_user(void)
{
    return io_current->user;
}

struct budget *
io_budget(void)
{
    return &io_current->budget;
}

void
io_background_share_set(u32 share)
{
    CHECK(share < 1000);
    io_current->background_share = share;
}

u64
io_now_ns(void)
{
    return io_current->now_ns;
}

u64
io_clock_ns(void)
{
    return backend_clock_ns(io_current);
}

u64
io_wall_ms(void)
{
    return io_current->wall_ms;
}

u64
io_random(void)
{
    return prng_u64(&io_current->prng);
}

void
io_entropy(void *data, size_t size)
{
    backend_entropy(io_current, data, size);
}

u64
io_entropy_id(u64 other)
{
    u64 id;
    do
        io_entropy(&id, sizeof(id));
    while (id == 0 || id == other);
    return id;
}

bool
io_stopping(void)
{
    return io_current->stopping;
}

MAY_YIELD void
io_wait_stop(void)
{
    struct io_shard *shard = io_current;
    while (!shard->stopping)
        (void)fiber_queue_wait(&shard->stop_queue, FIBER_FOREVER);
}

void
io_stop(void)
{
    backend_stop(io_current);
}

void
io_shard_hold(void)
{
    io_current->held++;
}

void
io_shard_release(void)
{
    CHECK(io_current->held > 0);
    io_current->held--;
}

void
io_stats_get(struct io_stats *out)
{
    struct io_shard *shard = io_current;
    *out = shard->stats;
    out->mails_waiting = shard->outbox_mails;
    backend_stats(shard, out);
}
