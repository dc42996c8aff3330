/* SPDX-License-Identifier: MIT
 *
 * sim.c -- the world of the simulated link: one heap of events, one thread, virtual time.
 *
 *   event     something at a time: a shard's turn, a disk request's end, a mail or a segment that
 *             arrives, a call of the test
 *   arrival   what an event left for a shard to learn in its next turn
 *   turn      timers, arrivals, mails, tasks, fibers, as in the ring's loop; it takes virtual time,
 *             in which the shard learns of nothing
 *
 * A node's process is its shards and the blocks of memory that they allocated. Its end is found
 * after the event that brought it; a crash happens after the event, too, so never below the node's
 * own code: requests that it starts between the cut and the end of the event do not count.
 *
 * Invariants
 *   S1  Virtual time never goes back, and a shard's turns do not overlap.
 *   S2  Mails of one shard to another arrive in order.
 *   S3  Nothing here depends on addresses, on the host's clock or on anything but the seed.
 */
#include "io/sim_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"

#define START_NS      NS_PER_S
#define WALL_START_MS 1790000000000ull /* in September 2026 */

struct sim *sim_current;

struct sim_mail {
    struct list link; /* sim_node.mails */
    struct sim_event event;
    struct sim_arrival arrival;
    struct io_mail *mail;
    struct sim_shard *source, *target;
};

struct sim_control {
    struct list link; /* sim.controls */
    struct sim_event event;
    void (*fn)(void *arg);
    void *arg;
};

/* ---- chance ---- */

u64
sim_seed(u64 seed, const char *purpose, u64 index)
{
    u64 parts[3] = {seed, hash_bytes(purpose, strlen(purpose), 0), index};
    return hash_bytes(parts, sizeof(parts), 0);
}

u64
sim_draw(struct prng *prng, u64 first, u64 last)
{
    return prng_range(prng, first, MAX(first, last));
}

bool
sim_ppm(struct prng *prng, u32 ppm)
{
    return ppm > 0 && prng_chance(prng, ppm, 1000000);
}

/* ---- events ---- */

static bool
event_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct sim_event *x =
        (const struct sim_event *)((const char *)a - offsetof(struct sim_event, node));
    const struct sim_event *y =
        (const struct sim_event *)((const char *)b - offsetof(struct sim_event, node));
    if (x->time_ns != y->time_ns) return x->time_ns < y->time_ns;
    if (x->tiebreak != y->tiebreak) return x->tiebreak < y->tiebreak;
    return x->order < y->order;
}

void
sim_event_schedule(struct sim *sim, struct sim_event *event, u64 time_ns)
{
    CHECK(!event->scheduled);
    event->time_ns = MAX(time_ns, sim->now_ns); /* S1 */
    event->tiebreak = prng_u64(&sim->prng_schedule);
    event->order = ++sim->event_order;
    event->scheduled = true;
    heap_insert(&sim->events, &event->node);
}

void
sim_event_cancel(struct sim *sim, struct sim_event *event)
{
    if (!event->scheduled) return;
    heap_remove(&sim->events, &event->node);
    event->scheduled = false;
}

/* ---- turns ---- */

static void
shard_schedule_at(struct sim_shard *shard, u64 time_ns)
{
    struct sim *sim = shard->node->sim;
    time_ns = MAX(time_ns, MAX(shard->busy_until_ns, shard->stall_until_ns));
    if (shard->turn.scheduled) {
        if (shard->turn.time_ns <= time_ns) return;
        sim_event_cancel(sim, &shard->turn);
    }
    sim_event_schedule(sim, &shard->turn, time_ns);
}

static void
shard_schedule(struct sim_shard *shard)
{
    struct io_shard *core = &shard->core;
    if (core_has_work(core) || core->outbox_mails > 0 || !list_empty(&shard->arrivals)) {
        shard_schedule_at(shard, shard->busy_until_ns);
        return;
    }
    u64 deadline_ns = core_next_deadline_ns(core);
    if (deadline_ns != UINT64_MAX) shard_schedule_at(shard, deadline_ns);
}

void
sim_arrive(struct sim_shard *shard, struct sim_arrival *arrival)
{
    list_push_back(&shard->arrivals, &arrival->link);
    shard_schedule_at(shard, shard->busy_until_ns);
}

/* From here on the shard's code runs. */
static struct sim_memory *
shard_enter(struct sim_shard *shard)
{
    CHECK(io_current == NULL);
    io_current = &shard->core;
    return sim_mem_domain_set(&shard->node->memory);
}

static void
shard_leave(struct sim_memory *domain)
{
    io_current = NULL;
    sim_mem_domain_set(domain);
}

static void
shard_run_arrivals(struct sim_shard *shard)
{
    struct list batch;
    list_init(&batch);
    list_splice_back(&batch, &shard->arrivals);
    struct list *link;
    while ((link = list_pop_front(&batch)) != NULL) {
        struct sim_arrival *arrival = list_entry(link, struct sim_arrival, link);
        arrival->run(arrival);
        shard->core.turn_had_foreground = true;
    }
}

u64
sim_node_wall_ns(const struct sim_node *node)
{
    const struct sim_clock *clock = &node->clock;
    u64 passed_ns = node->sim->now_ns - clock->since_ns;
    i64 extra_ns = (i64)((__int128)passed_ns * clock->drift_ppm / 1000000);
    return clock->wall_ns + passed_ns + (u64)extra_ns;
}

static void
shard_stall_maybe(struct sim_shard *shard)
{
    struct sim *sim = shard->node->sim;
    if (!sim_fault_chance(sim, SIM_FAULT_SHARD_STALL, sim->options.shard_stall_ppm)) return;
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_SHARD_STALL);
    u64 ns = sim_draw(&prng, NS_PER_MS, sim->options.shard_stall_ns_max);
    if (!sim_fault_take(sim, SIM_FAULT_SHARD_STALL, "shard %u of %s for %llu us", shard->core.index,
                        shard->node->host, (unsigned long long)(ns / NS_PER_US)))
        return;
    shard->stall_until_ns = sim->now_ns + ns;
}

static void
shard_turn(struct sim_event *event)
{
    struct sim_shard *shard = event->shard;
    struct sim *sim = shard->node->sim;
    sim_trace(sim, shard, SIM_KIND_TURN, 0, NULL, 0, 0, 0);
    shard->spent_ns = 0;
    struct sim_memory *domain = shard_enter(shard);
    core_turn_begin(&shard->core, sim->now_ns, sim_node_wall_ns(shard->node) / NS_PER_MS);
    core_run_timers(&shard->core);
    shard_run_arrivals(shard);
    core_run_mails(&shard->core);
    core_run_tasks(&shard->core);
    core_run_answers(&shard->core);
    if (core_background_is_due(&shard->core)) core_run_background(&shard->core);
    if (core_shard_finished(&shard->core)) sim_net_shut(shard);
    shard_leave(domain);

    u64 cost_ns = sim_draw(&sim->prng_schedule, sim->options.turn_ns_min, sim->options.turn_ns_max);
    if (sim_ppm(&sim->prng_schedule, sim->options.turn_long_ppm))
        cost_ns += sim_draw(&sim->prng_schedule, NS_PER_MS, 100 * NS_PER_MS);
    shard->busy_until_ns = sim->now_ns + shard->spent_ns + cost_ns;
    shard->core.stats.busy_ns += shard->spent_ns + cost_ns;
    shard_stall_maybe(shard);
    shard_schedule(shard);
}

/* ---- what core.h wants ---- */

u64
backend_clock_ns(struct io_shard *core)
{
    struct sim_shard *shard = sim_shard_of(core);
    shard->spent_ns += sim_draw(&shard->node->sim->prng_schedule, 20, 500);
    return core->now_ns + shard->spent_ns;
}

bool
backend_slice_over(struct io_shard *core)
{
    struct sim_shard *shard = sim_shard_of(core);
    struct prng *prng = &shard->node->sim->prng_schedule;
    shard->spent_ns += sim_draw(prng, 100, 3000);
    if (prng_chance(prng, 1, 32)) shard->spent_ns += 50 * NS_PER_US;
    return core->now_ns + shard->spent_ns >= core->slice_end_ns;
}

void
backend_entropy(struct io_shard *core, void *data, size_t size)
{
    u8 *bytes = data;
    for (size_t i = 0; i < size; i++)
        bytes[i] = (u8)(prng_u64(&core->prng) >> 56);
}

static void
stop_arrives(struct sim_event *event)
{
    struct sim_shard *shard = event->shard;
    sim_trace(shard->node->sim, shard, SIM_KIND_STOP, 0, NULL, 0, 0, 0);
    struct sim_memory *domain = shard_enter(shard);
    core_stop_seen(&shard->core);
    shard_leave(domain);
    shard_schedule_at(shard, shard->busy_until_ns);
}

void
sim_node_stop(struct sim_node *node)
{
    if (!node->running || node->stopping) return;
    struct sim *sim = node->sim;
    node->stopping = true;
    for (u32 i = 0; i < node->shard_count; i++) {
        u64 delay_ns =
            sim_draw(&sim->prng_schedule, sim->options.mail_ns_min, sim->options.mail_ns_max);
        sim_event_schedule(sim, &node->shards[i].stop, sim->now_ns + delay_ns);
    }
}

void
backend_stop(struct io_shard *core)
{
    sim_node_stop(sim_shard_of(core)->node);
}

static void
mail_run(struct sim_arrival *arrival)
{
    struct sim_mail *sim_mail = CONTAINER_OF(arrival, struct sim_mail, arrival);
    struct io_mail *mail = sim_mail->mail;
    struct sim_shard *target = sim_mail->target;
    list_del(&sim_mail->link);
    free(sim_mail);
    core_deliver(&target->core, mail);
}

static void
mail_arrives(struct sim_event *event)
{
    struct sim_mail *mail = CONTAINER_OF(event, struct sim_mail, event);
    sim_trace(event->shard->node->sim, event->shard, SIM_KIND_MAIL, mail->source->core.index,
              "from", mail->source->core.index, 0, 0);
    mail->source->mail_counts[mail->target->core.index]--;
    sim_arrive(mail->target, &mail->arrival);
}

bool
backend_mail_push(struct io_shard *core, u32 target, struct io_mail *mail)
{
    struct sim_shard *shard = sim_shard_of(core);
    struct sim_node *node = shard->node;
    struct sim *sim = node->sim;
    if (shard->mail_counts[target] >= sim->options.mails_max) return false;
    if (prng_chance(&sim->prng_schedule, 1, 64)) return false; /* as if the ring were full */

    struct sim_mail *sim_mail = calloc(1, sizeof(*sim_mail));
    CHECK(sim_mail != NULL);
    sim_mail->mail = mail;
    sim_mail->source = shard;
    sim_mail->target = &node->shards[target];
    sim_mail->arrival.run = mail_run;
    sim_mail->event.kind = SIM_KIND_MAIL;
    sim_mail->event.shard = sim_mail->target;
    sim_mail->event.fire = mail_arrives;
    list_push_back(&node->mails, &sim_mail->link);
    shard->mail_counts[target]++;
    u64 delay_ns =
        sim_draw(&sim->prng_schedule, sim->options.mail_ns_min, sim->options.mail_ns_max);
    u64 time_ns = MAX(sim->now_ns + delay_ns, shard->mail_time_ns[target] + 1); /* S2 */
    shard->mail_time_ns[target] = time_ns;
    sim_event_schedule(sim, &sim_mail->event, time_ns);
    return true;
}

void
backend_stats(struct io_shard *core, struct io_stats *out)
{
    struct sim_shard *shard = sim_shard_of(core);
    out->io_in_flight = shard->io_in_flight;
    core_net_stats(&shard->net, out);
}

/* ---- faults at a chosen moment ---- */

static bool
trigger_matches(const struct sim_trigger *trigger, enum sim_point point)
{
    if (!trigger->armed) return false;
    if (trigger->point == point) return true;
    return trigger->point == SIM_POINT_IO && point >= SIM_POINT_READ && point <= SIM_POINT_NAME;
}

status
sim_point_hit(struct sim *sim, struct sim_node *node, enum sim_point point)
{
    u64 own = sim->points[point]++;
    u64 any = sim->points[SIM_POINT_IO];
    if (point >= SIM_POINT_READ && point <= SIM_POINT_NAME) sim->points[SIM_POINT_IO]++;

    struct sim_trigger *crash = &sim->crash;
    if (trigger_matches(crash, point) && (crash->node == NULL || crash->node == node)) {
        u64 n = crash->node != NULL ? crash->seen++ : crash->point == point ? own : any;
        if (n >= crash->first && node != NULL && node->running) {
            crash->armed = false;
            crash->done = true;
            node->crash_pending = true;
        }
    }
    struct sim_trigger *failure = &sim->failure;
    if (!trigger_matches(failure, point)) return ST_OK;
    u64 n = failure->point == point ? own : any;
    if (n < failure->first || n - failure->first >= failure->count) return ST_OK;
    failure->done = true;
    return failure->error;
}

void
sim_count_reset(struct sim *sim)
{
    memset(sim->points, 0, sizeof(sim->points));
}

void
sim_crash_at(struct sim *sim, enum sim_point point, u64 n)
{
    CHECK(point < SIM_POINT_COUNT && point != SIM_POINT_ALLOC);
    sim_count_reset(sim);
    sim->crash = (struct sim_trigger){.armed = true, .point = point, .first = n};
}

void
sim_node_crash_at(struct sim_node *node, enum sim_point point, u64 n)
{
    sim_crash_at(node->sim, point, n);
    node->sim->crash.node = node;
}

void
sim_fail_at(struct sim *sim, enum sim_point point, u64 n, u64 count, status error)
{
    CHECK(point != SIM_POINT_EVENT && point <= SIM_POINT_ALLOC);
    CHECK(!ok(error));
    sim_count_reset(sim);
    sim->failure = (struct sim_trigger){
        .armed = true, .point = point, .first = n, .count = count, .error = error};
}

void
sim_faults_clear(struct sim *sim)
{
    sim->crash.armed = false;
    sim->failure.armed = false;
    list_for_each (pos, &sim->nodes)
        list_entry(pos, struct sim_node, link)->memory.refuse_at = 0;
}

void
sim_crash_keeps_all_set(struct sim *sim, bool keeps_all)
{
    sim->options.disk.crash_keeps_all = keeps_all;
    list_for_each (pos, &sim->nodes) {
        sim_disk_crash_keeps_all_set(list_entry(pos, struct sim_node, link)->disk, keeps_all);
    }
}

void
sim_error_rates_set(struct sim *sim, u32 read_ppm, u32 write_ppm, u32 sync_ppm)
{
    sim->options.disk.read_error_ppm = read_ppm;
    sim->options.disk.write_error_ppm = write_ppm;
    sim->options.disk.sync_error_ppm = sync_ppm;
}

bool
sim_crashed(const struct sim *sim)
{
    return sim->crash.done;
}

bool
sim_failed(const struct sim *sim)
{
    return sim->failure.done;
}

u64
sim_count(const struct sim *sim, enum sim_point point)
{
    return sim->points[point];
}

/* ---- machines and their processes ---- */

struct sim_node *
sim_node_new(struct sim *sim, const char *host)
{
    struct sim_node *node = calloc(1, sizeof(*node));
    CHECK(node != NULL);
    node->sim = sim;
    node->index = sim->node_count++;
    snprintf(node->host, sizeof(node->host), "%s", host);
    node->disk = sim_disk_new(&sim->options.disk, sim_seed(sim->options.seed, "disk", node->index));
    sim_disk_books_set(node->disk, sim, node->host);
    node->space_returns.kind = SIM_KIND_CONTROL;
    node->space_returns.fire = sim_space_returns;
    node->clock.wall_ns = WALL_START_MS * NS_PER_MS;
    node->result = ST_OK;
    list_init(&node->memory.blocks);
    list_init(&node->io_queue);
    list_init(&node->io_requests);
    list_init(&node->io_late);
    list_init(&node->mails);
    list_init(&node->connects);
    list_init(&node->accepts);
    list_push_back(&sim->nodes, &node->link);
    return node;
}

static void
shard_init(struct sim_node *node, u32 index)
{
    struct sim_shard *shard = &node->shards[index];
    shard->node = node;
    shard->turn.kind = SIM_KIND_TURN;
    shard->turn.shard = shard;
    shard->turn.fire = shard_turn;
    shard->stop.kind = SIM_KIND_STOP;
    shard->stop.shard = shard;
    shard->stop.fire = stop_arrives;
    list_init(&shard->arrivals);
    list_init(&shard->files);
    list_init(&shard->listeners);
    shard->mail_time_ns = calloc(node->shard_count, sizeof(u64));
    shard->mail_counts = calloc(node->shard_count, sizeof(u64));
    CHECK(shard->mail_time_ns != NULL && shard->mail_counts != NULL);
}

static void
shard_deinit(struct sim_shard *shard, bool abandon)
{
    struct sim *sim = shard->node->sim;
    sim_event_cancel(sim, &shard->turn);
    sim_event_cancel(sim, &shard->stop);
    struct sim_memory *domain = shard_enter(shard);
    if (!abandon) memfs_deinit(&shard->memfs);
    core_shard_deinit(&shard->core, abandon);
    shard_leave(domain);
    free(shard->mail_time_ns);
    free(shard->mail_counts);
}

static void
node_release(struct sim_node *node, bool abandon)
{
    for (u32 i = 0; i < node->shard_count; i++)
        shard_deinit(&node->shards[i], abandon);
    free(node->shards);
    node->shards = NULL;
    node->shard_count = 0;
    node->running = false;
}

/* The process is gone; its disk is another matter. power: the machine, too. */
static void
node_drop(struct sim_node *node, bool power)
{
    sim_trace(node->sim, NULL, SIM_KIND_CONTROL, node->index, "end of node", node->index, power, 0);
    node->power_off = power;
    sim_files_drop(node);
    sim_net_drop(node, power);
    while (!list_empty(&node->mails)) {
        struct sim_mail *mail = list_entry(list_first(&node->mails), struct sim_mail, link);
        sim_event_cancel(node->sim, &mail->event);
        list_del(&mail->link);
        free(mail);
    }
    node_release(node, true);
    sim_mem_free_all(&node->memory);
    node->crash_pending = false;
    node->result = ST_CANCELED;
}

status
sim_node_start(struct sim_node *node, const struct io_node_config *config)
{
    struct sim *sim = node->sim;
    CHECK(!node->running);
    CHECK(config->shard_count > 0 && config->shard_count <= LIMIT_SHARDS);
    node->running = true;
    node->power_off = false;
    node->stopping = false;
    node->crash_pending = false;
    node->epoch++;
    node->result = ST_OK;
    node->memory.may_refuse = false;
    node->io_in_flight = 0;
    node->shard_count = config->shard_count;
    node->shards = calloc(config->shard_count, sizeof(*node->shards));
    CHECK(node->shards != NULL);
    status st = ST_OK;
    for (u32 i = 0; i < config->shard_count; i++)
        shard_init(node, i);
    for (u32 i = 0; i < config->shard_count; i++) {
        struct sim_shard *shard = &node->shards[i];
        u64 seed = sim_seed(sim->options.seed, "shard",
                            (u64)node->index << 40 | (node->epoch & 0xffffffff) << 8 | i);
        u64 memory_bytes = config->memory_bytes / config->shard_count;
        struct sim_memory *domain = shard_enter(shard);
        status started =
            core_shard_init(&shard->core, (struct io_node *)node, i, config->shard_count,
                            memory_bytes, config->fiber_count_max, seed);
        memfs_init(&shard->memfs, &shard->core.budget, UINT64_MAX);
        core_net_init(&shard->net, &shard->core);
        shard->core.now_ns = sim->now_ns;
        if (ok(started)) started = core_shard_start(&shard->core, config->shard_main, config->arg);
        shard_leave(domain);
        if (!ok(started)) st = started;
        shard_schedule_at(shard, sim->now_ns);
    }
    if (ok(st)) return ST_OK;
    sim_disk_process_ended(node->disk); /* it has not touched it */
    node_drop(node, false);
    return st;
}

void
sim_node_crash(struct sim_node *node)
{
    if (!node->running) return;
    CHECK(io_current == NULL);
    if (node->sim->options.disk.crash_keeps_all)
        sim_files_outlive(node);
    else
        sim_late_drop(node);
    sim_disk_crash(node->disk); /* first: it still takes data from the buffers of writes */
    node_drop(node, !node->sim->options.disk.crash_keeps_all);
}

/* The process has ended in order when every shard has, and nothing is under way. */
static bool
node_finished(const struct sim_node *node)
{
    if (!list_empty(&node->mails) || !list_empty(&node->io_requests) ||
        !list_empty(&node->io_queue))
        return false;
    for (u32 i = 0; i < node->shard_count; i++) {
        const struct sim_shard *shard = &node->shards[i];
        if (!core_shard_finished(&shard->core) || !list_empty(&shard->arrivals) ||
            sim_net_busy(shard))
            return false;
    }
    return true;
}

static void
node_end(struct sim_node *node)
{
    status result = ST_OK;
    for (u32 i = 0; i < node->shard_count; i++) {
        if (!ok(result)) break;
        result = node->shards[i].core.main_status;
    }
    sim_disk_process_ended(node->disk);
    node_release(node, false);
    u64 leaked_bytes = node->memory.bytes;
    u64 leaked_count = sim_mem_free_all(&node->memory);
    if (leaked_count > 0 && (ok(result) || node->sim->leaks_forbidden)) {
        fprintf(stderr, "sim: the process ended with %s and left %llu bytes in %llu blocks\n",
                status_name(result), (unsigned long long)leaked_bytes,
                (unsigned long long)leaked_count);
        sim_log_dump(node->sim);
        CHECK(!"memory leaked by a simulated process");
    }
    node->result = result;
}

void
sim_leaks_forbid(struct sim *sim)
{
    sim->leaks_forbidden = true;
}

bool
sim_node_running(const struct sim_node *node)
{
    return node->running;
}

status
sim_node_result(const struct sim_node *node)
{
    return node->result;
}

struct sim_disk *
sim_node_disk(struct sim_node *node)
{
    return node->disk;
}

/* Later draws begin where the clock is now. */
static void
clock_rebase(struct sim_node *node)
{
    node->clock.wall_ns = sim_node_wall_ns(node);
    node->clock.since_ns = node->sim->now_ns;
}

void
sim_node_clock_step(struct sim_node *node, i64 ms)
{
    clock_rebase(node);
    i64 step_ns = ms * (i64)NS_PER_MS;
    CHECK(step_ns > 0 || (u64)-step_ns < node->clock.wall_ns);
    node->clock.wall_ns += (u64)step_ns;
}

void
sim_node_clock_drift_set(struct sim_node *node, i32 ppm)
{
    CHECK(ppm > -1000000);
    clock_rebase(node);
    node->clock.drift_ppm = ppm;
}

void
sim_node_shard_stall(struct sim_node *node, u32 shard_index, u64 ns)
{
    if (!node->running) return;
    CHECK(shard_index < node->shard_count);
    struct sim_shard *shard = &node->shards[shard_index];
    shard->stall_until_ns = MAX(shard->stall_until_ns, node->sim->now_ns + ns);
    if (shard->turn.scheduled) {
        sim_event_cancel(node->sim, &shard->turn);
        shard_schedule(shard);
    }
}

void
sim_node_disk_slow_set(struct sim_node *node, enum sim_point point, u64 ns)
{
    CHECK(point < SIM_POINT_COUNT);
    node->io_slow_ns[point] = ns;
}

void
sim_node_disk_stall(struct sim_node *node, enum sim_point point, u64 ns)
{
    CHECK(point >= SIM_POINT_READ && point <= SIM_POINT_NAME);
    node->io_stall_until_ns[point] = MAX(node->io_stall_until_ns[point], node->sim->now_ns + ns);
}

void
sim_shard_hurry(struct sim_shard *shard)
{
    if (shard->stall_until_ns <= shard->node->sim->now_ns) return;
    shard->stall_until_ns = 0;
    shard_schedule(shard);
}

void
sim_node_started_set(struct sim_node *node)
{
    node->memory.may_refuse = true;
}

void
sim_node_refuse_at(struct sim_node *node, u64 n, u64 count)
{
    CHECK(count > 0);
    node->memory.refuse_at = n + 1;
    node->memory.refuse_more = count - 1;
}

u64
sim_node_memory_bytes(const struct sim_node *node)
{
    return node->memory.bytes;
}

void
sim_node_shard_memory(const struct sim_node *node, u32 shard, u64 *used_out, u64 *peak_out)
{
    bool there = shard < node->shard_count;
    *used_out = there ? node->shards[shard].core.budget.used_bytes : 0;
    *peak_out = there ? node->shards[shard].core.budget.used_bytes_max : 0;
}

/* ---- driving ---- */

u64
sim_now_ns(const struct sim *sim)
{
    return sim->now_ns;
}

static void
sim_settle(struct sim *sim)
{
    list_for_each (pos, &sim->nodes) {
        struct sim_node *node = list_entry(pos, struct sim_node, link);
        if (!node->running) continue;
        if (node->crash_pending) {
            sim_node_crash(node);
        } else if (node_finished(node)) {
            node_end(node);
        }
    }
}

bool
sim_step(struct sim *sim)
{
    struct heap_node *first = heap_first(&sim->events);
    if (first == NULL) return false;
    struct sim_event *event = CONTAINER_OF(first, struct sim_event, node);
    heap_remove(&sim->events, first);
    event->scheduled = false;
    CHECK(event->time_ns >= sim->now_ns);
    sim->now_ns = event->time_ns;
    sim->event_count++;
    struct sim_node *node = event->shard != NULL ? event->shard->node : event->to;
    (void)!ok(sim_point_hit(sim, node, SIM_POINT_EVENT));
    /* The power fails before the event: what it belongs to goes with the node. What is delivered
     * belongs to its line, and lies unread in the node's socket. */
    if (event->shard == NULL || !node->crash_pending) event->fire(event);
    sim_settle(sim);
    return true;
}

void
sim_run_idle(struct sim *sim)
{
    while (sim_step(sim))
        CHECK(sim->now_ns < sim->options.time_ns_max);
}

static u64
sim_next_ns(const struct sim *sim)
{
    struct heap_node *first = heap_first(&sim->events);
    return first == NULL ? UINT64_MAX : CONTAINER_OF(first, struct sim_event, node)->time_ns;
}

void
sim_run_until_ns(struct sim *sim, u64 time_ns)
{
    while (sim_next_ns(sim) <= time_ns)
        sim_step(sim);
    sim->now_ns = MAX(sim->now_ns, time_ns);
}

bool
sim_run_until(struct sim *sim, bool (*condition)(void *arg), void *arg, u64 deadline_ns)
{
    while (!condition(arg)) {
        if (sim_next_ns(sim) > deadline_ns) return false;
        sim_step(sim);
    }
    return true;
}

static void
control_fires(struct sim_event *event)
{
    struct sim_control *control = CONTAINER_OF(event, struct sim_control, event);
    list_del(&control->link);
    sim_trace(sim_current, NULL, SIM_KIND_CONTROL, 0, NULL, 0, 0, 0);
    control->fn(control->arg);
    free(control);
}

void
sim_at(struct sim *sim, u64 time_ns, void (*fn)(void *arg), void *arg)
{
    struct sim_control *control = calloc(1, sizeof(*control));
    CHECK(control != NULL);
    control->fn = fn;
    control->arg = arg;
    control->event.kind = SIM_KIND_CONTROL;
    control->event.fire = control_fires;
    list_push_back(&sim->controls, &control->link);
    sim_event_schedule(sim, &control->event, time_ns);
}

/* ---- the short forms ---- */

static void
node_report_stuck(const struct sim_node *node, const char *why)
{
    sim_log_dump(node->sim);
    fprintf(stderr, "sim: %s at %llu us, seed %llu; fibers:\n", why,
            (unsigned long long)(node->sim->now_ns / NS_PER_US),
            (unsigned long long)node->sim->options.seed);
    for (u32 i = 0; i < node->shard_count; i++) {
        list_for_each (pos, &node->shards[i].core.fibers_all) {
            const struct fiber *fiber = list_entry(pos, struct fiber, all);
            fprintf(stderr, "  shard %u: %s\n", i, fiber->name);
        }
    }
}

status
sim_run(struct sim *sim, u32 shard_count, status (*fn)(void *arg), void *arg)
{
    struct sim_node *node = list_empty(&sim->nodes)
                                ? sim_node_new(sim, "10.0.0.1")
                                : list_entry(list_first(&sim->nodes), struct sim_node, link);
    struct io_node_config config = {
        .shard_count = shard_count,
        .memory_bytes = sim->options.memory_bytes,
        .shard_main = fn,
        .arg = arg,
    };
    status st = sim_node_start(node, &config);
    if (!ok(st)) return st;
    while (node->running) {
        if (node->shards[0].core.main_done) sim_node_stop(node);
        if (!sim_step(sim)) {
            node_report_stuck(node,
                              "nothing will ever happen again, but the process has not ended");
            CHECK(!"deadlock in a simulated process");
        }
        if (sim->now_ns > sim->options.time_ns_max) {
            node_report_stuck(node, "the process does not end");
            CHECK(!"a simulated process runs for ever");
        }
    }
    return node->result;
}

status
sim_run_main(u64 seed, u32 shard_count, status (*fn)(void *arg), void *arg)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    struct sim *sim = sim_new(&options);
    status st = sim_run(sim, shard_count, fn, arg);
    sim_free(sim);
    return st;
}

/* ---- making and freeing ---- */

struct sim *
sim_new(const struct sim_options *options)
{
    /* A failed test leaves by longjmp, in the middle of a turn: its world is left behind. */
    sim_current = NULL;
    io_current = NULL;
    sim_mem_domain_set(NULL);

    struct sim *sim = calloc(1, sizeof(*sim));
    CHECK(sim != NULL);
    sim->options = *options;
    sim->now_ns = START_NS;
    sim->options.time_ns_max += START_NS;
    heap_init(&sim->events, event_before);
    list_init(&sim->nodes);
    list_init(&sim->controls);
    prng_init(&sim->prng_schedule, sim_seed(options->seed, "schedule", 0));
    prng_init(&sim->prng_disk, sim_seed(options->seed, "latency", 0));
    prng_init(&sim->prng_net, sim_seed(options->seed, "net", 0));
    prng_init(&sim->prng_test, sim_seed(options->seed, "test", 0));
    sim_inject_init(sim);
    sim_net_init(sim);
    sim_log_reset(options->print_log);
    sim_fault_reset(options->seed, options->buggify);
    sim_current = sim;
    return sim;
}

void
sim_free(struct sim *sim)
{
    CHECK(sim == sim_current);
    while (!list_empty(&sim->nodes)) {
        struct sim_node *node = list_entry(list_first(&sim->nodes), struct sim_node, link);
        sim_node_crash(node);
        sim_event_cancel(sim, &node->space_returns);
        sim_late_drop(node);
        list_del(&node->link);
        sim_disk_free(node->disk);
        free(node);
    }
    while (!list_empty(&sim->controls)) {
        struct sim_control *control =
            list_entry(list_first(&sim->controls), struct sim_control, link);
        sim_event_cancel(sim, &control->event);
        list_del(&control->link);
        free(control);
    }
    sim_net_free(sim);
    sim_inject_deinit(sim);
    sim_current = NULL;
    free(sim);
}

u64
sim_event_count(const struct sim *sim)
{
    return sim->event_count;
}

struct prng *
sim_prng(struct sim *sim)
{
    return &sim->prng_test;
}
