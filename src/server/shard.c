/* SPDX-License-Identifier: MIT
 *
 * shard.c -- see shard.h: waiting for the log without fibers, asking every shard, figures.
 */
#include "server/shard.h"

#include "base/fault.h"
#include "cluster/cluster.h"
#include "server/command_table.h"

/* ---- waiting for the log ---- */

/* So many neighbours are looked at for the place in the list; further away the newcomer takes the
 * number it has got to, which is later than it must and never too early. */
#define DURABLE_STEPS_MAX 16u

bool
durable_wait_start(struct shard *shard, struct durable_wait *wait, u64 seq)
{
    CHECK(!list_linked(&wait->link));
    if (seq <= lsm_durable_seq(shard->lsm)) return false;
    struct list *at = shard->durable_waits.prev;
    for (u32 steps = 0; at != &shard->durable_waits; at = at->prev) {
        u64 other = list_entry(at, struct durable_wait, link)->seq;
        if (other <= seq) break;
        if (++steps > DURABLE_STEPS_MAX) {
            seq = other;
            break;
        }
    }
    wait->seq = seq;
    list_insert_between(&wait->link, at, at->next);
    shard->stats->durable_waits++;
    return true;
}

void
durable_wait_cancel(struct durable_wait *wait)
{
    if (!list_linked(&wait->link)) return;
    list_del(&wait->link);
    shard_self()->stats->durable_waits--;
}

MAY_YIELD status
durable_wait_scanned(struct shard *shard, u64 seen, u64 shown)
{
    status st = lsm_wait_durable(shard->lsm, seen);
    return shown <= lsm_durable_seq(shard->lsm) ? ST_OK : st;
}

void
shard_durable(void *arg, u64 durable_seq, bool failed)
{
    struct shard *shard = arg;
    struct list ready = LIST_INIT(ready);
    if (failed) {
        shard->store_failed = true;
        list_splice_back(&ready, &shard->durable_waits);
    } else {
        for (;;) {
            struct list *first = list_first(&shard->durable_waits);
            if (first == NULL || list_entry(first, struct durable_wait, link)->seq > durable_seq)
                break;
            list_del(first);
            list_push_back(&ready, first);
        }
    }
    struct list *node;
    while ((node = list_pop_front(&ready)) != NULL) {
        struct durable_wait *wait = list_entry(node, struct durable_wait, link);
        shard->stats->durable_waits--;
        wait->fn(wait, failed && wait->seq > durable_seq);
    }
}

/* ---- waiting for memory ---- */

/* So often who waits for his turn looks whether he still should. */
#define TURN_LOOK_NS (100 * NS_PER_MS)

/* On the stack of a worker that waits. */
struct turn_waiter {
    struct list link; /* turn->waiting */
    struct fiber_queue queue;
    bool granted;
};

/* false: in vain. */
MAY_YIELD static bool
turn_wait(const struct shard *shard, struct memory_turn *turn, const _Atomic u64 *wanted_until_ns,
          u64 deadline_ns)
{
    if (!turn->taken) {
        turn->taken = true;
        return true;
    }
    struct turn_waiter waiter = {.granted = false};
    fiber_queue_init(&waiter.queue);
    list_push_back(&turn->waiting, &waiter.link);
    while (!waiter.granted && !shard->draining && io_now_ns() < deadline_ns) {
        if (wanted_until_ns != NULL && io_now_ns() >= atomic_load(wanted_until_ns)) break;
        (void)fiber_queue_wait(&waiter.queue, MIN(deadline_ns, io_now_ns() + TURN_LOOK_NS));
    }
    if (!waiter.granted) list_del(&waiter.link);
    return waiter.granted;
}

MAY_YIELD bool
memory_turn_take(struct shard *shard, struct work *work, const _Atomic u64 *wanted_until_ns,
                 u64 deadline_ns)
{
    if (!work_leave(&shard->workers, work, WORK_AWAY_MEMORY)) return false;
    atomic_fetch_add(&shard->server->memory_wanted, 1);
    bool taken = turn_wait(shard, &shard->memory_turn[work->calls], wanted_until_ns, deadline_ns);
    if (!taken) {
        MARK("server.memory_turn.in_vain");
        atomic_fetch_sub(&shard->server->memory_wanted, 1);
    }
    work_return(&shard->workers, work);
    return taken;
}

void
memory_turn_give(struct shard *shard, const struct work *work)
{
    struct memory_turn *turn = &shard->memory_turn[work->calls];
    CHECK(turn->taken);
    struct list *first = list_pop_front(&turn->waiting);
    if (first == NULL) {
        turn->taken = false;
    } else { /* it stays taken, and is his */
        struct turn_waiter *next = list_entry(first, struct turn_waiter, link);
        next->granted = true;
        fiber_queue_wake_all(&next->queue);
    }
    atomic_fetch_sub(&shard->server->memory_wanted, 1);
}

/* ---- every shard ---- */

#define CALL_TRIES    1000u
#define CALL_RETRY_NS NS_PER_MS

MAY_YIELD status
shard_for_all(struct shard *shard, void (*fn)(void *arg), void *arg)
{
    status first = ST_OK;
    for (u32 i = 0; i < shard->server->shard_count; i++) {
        status st = io_shard_call(i, fiber_class_self(), fn, arg);
        for (u32 tries = 1; !ok(st) && tries < CALL_TRIES; tries++) {
            fiber_sleep_ns(CALL_RETRY_NS);
            st = io_shard_call(i, fiber_class_self(), fn, arg);
        }
        if (!ok(st)) MARK("server.shard.call_refused");
        if (ok(first)) first = st;
    }
    return first;
}

MAY_YIELD void
shard_for_all_possible(struct shard *shard, void (*fn)(void *arg), void *arg)
{
    status st = shard_for_all(shard, fn, arg);
    if (!ok(st)) MARK("server.shard.call_given_up");
}

/* ---- figures ---- */

void
shard_count_commands(struct shard *shard, u32 command, u32 count, u64 ns)
{
    struct command_stats *row = &shard->stats->commands[command];
    shard->stats->commands_total += count;
    row->calls += count;
    row->ns += ns * count;
    row->ns_max = MAX(row->ns_max, ns);
    u64 us = (ns + NS_PER_US - 1) / NS_PER_US;
    u32 bucket = us <= 1 ? 0 : 64u - (u32)__builtin_clzll(us - 1);
    row->buckets[MIN(bucket, SERVER_LATENCY_BUCKETS - 1)] += count;
}

void
shard_count_command(struct shard *shard, u32 command, u64 ns, bool failed)
{
    shard_count_commands(shard, command, 1, ns);
    if (failed) shard->stats->commands[command].failed++;
}

static const char *const error_kinds[] = {
    [SERVER_ERROR_ERR] = "ERR",
    [SERVER_ERROR_BUSY] = "BUSY",
    [SERVER_ERROR_OOM] = "OOM",
    [SERVER_ERROR_MISCONF] = "MISCONF",
    [SERVER_ERROR_CROSSSLOT] = "CROSSSLOT",
    [SERVER_ERROR_NOAUTH] = "NOAUTH",
    [SERVER_ERROR_PROTOCOL] = "PROTOCOL",
    [SERVER_ERROR_OTHER] = "OTHER",
};
static_assert(ARRAY_COUNT(error_kinds) == SERVER_ERROR_KINDS, "a name for each kind");

const char *
server_error_kind_name(u32 kind)
{
    CHECK(kind < SERVER_ERROR_KINDS);
    return error_kinds[kind];
}

void
shard_count_error(struct shard *shard, struct bytes reply)
{
    if (reply.size < 2 || reply.data[0] != '-') return;
    for (u32 kind = 0; kind < SERVER_ERROR_OTHER; kind++) {
        size_t size = strlen(error_kinds[kind]);
        if (reply.size > size + 1 && memcmp(reply.data + 1, error_kinds[kind], size) == 0 &&
            reply.data[1 + size] == ' ') {
            shard->stats->errors[kind]++;
            return;
        }
    }
    shard->stats->errors[SERVER_ERROR_OTHER]++;
}

void
shard_stats_reset(struct shard *shard)
{
    struct shard_stats *stats = shard->stats;
    memset(stats->commands, 0, sizeof(stats->commands));
    memset(stats->errors, 0, sizeof(stats->errors));
    stats->commands_total = 0;
    stats->keyspace_hits = 0;
    stats->keyspace_misses = 0;
    stats->clients_refused = 0;
    shard->stats_reset_wall_ms = io_wall_ms();
}

/* arg: struct server_collect * */
static void
collect_cluster(const struct shard *shard, struct shard_stats *out)
{
    const struct topology *topology = cluster_topology(shard->cluster);
    replicate_stats_get(shard->cluster->replicator, &out->replicate);
    out->cluster_retries_refused = out->replicate.retries_refused + shard->cluster->retries.refused;
    hints_stats_get(shard->cluster->hints, &out->hints);
    u64 oldest = out->hints.version_oldest, now = io_wall_ms();
    out->hints_oldest_ms = oldest == 0 ? 0 : now - MIN(now, hlc_wall_ms(oldest));
    if (shard->index == 0) {
        trees_stats_get(shard->cluster, &out->trees);
        out->trees_repairing = out->trees.repairing;
        out->trees_settled_age_ms = trees_settled_age_ms(&out->trees);
        if (out->trees.round_age_ms != UINT64_MAX)
            out->trees_round_age_ms = out->trees.round_age_ms;
    }
    peers_stats_get(shard->cluster->peers, &out->peers);
    out->cluster_fetch_failures = shard->cluster->fetch_failures;
    out->cluster_fetch_incomplete = shard->cluster->fetch_incomplete;
    if (topology == NULL) return;
    if (shard->index == 0) {
        u8 ill = atomic_load(&shard->server->cluster->ill);
        out->cluster_stuck = (ill & CLUSTER_ILL_STUCK) != 0;
        out->cluster_alone = (ill & CLUSTER_ILL_ALONE) != 0;
        out->cluster_clock_ahead_ms = atomic_load(&shard->server->cluster->clock_ahead_ms);
        out->cluster_clock_behind_ms = cluster_clock_behind_ms(shard->server->cluster);
    }
    out->cluster_epoch = topology->epoch;
    out->cluster_members = topology->member_count;
    for (u32 i = 0; i < topology->member_count; i++)
        out->cluster_members_alive +=
            cluster_alive(shard->server->cluster, topology->members[i].number);
}

MAY_YIELD void
server_collect(void *arg)
{
    struct server_collect *collect = arg;
    struct shard *shard = shard_self();
    struct shard_stats *out = collect->out;
    if (shard == NULL) {
        memset(out, 0, sizeof(*out));
        return;
    }
    *out = *shard->stats;
    out->shard = shard->index;
    out->now_ns = io_clock_ns();
    out->requests_pending = shard->request_count;
    out->requests_limit = SHARD_REQUESTS_MAX;
    out->work_queued_light = shard->workers.lines[WORK_LIGHT].queued;
    out->work_queued_heavy = shard->workers.lines[WORK_HEAVY].queued;
    out->keys_locked = shard->locks.held;
    const struct budget *root = io_budget();
    out->memory_used = root->used_bytes - root->spare_bytes;
    out->memory_peak = root->used_bytes_max;
    out->memory_limit = root->limit_bytes;
    out->memory_connections = shard->budget.used_bytes;
    out->slowlog_entries = shard->slowlog.count;
    for (struct list *node = shard->monitors.next; node != &shard->monitors; node = node->next)
        out->clients_monitor++;
    io_stats_get(&out->io);
    if (shard->lsm != NULL) lsm_stats_get(shard->lsm, &out->lsm);
    if (shard->cluster != NULL) collect_cluster(shard, out);
}

MAY_YIELD void
server_action_call(void *arg)
{
    struct server_action_call *call = arg;
    struct shard *shard = shard_self();
    call->result = ST_CLOSED;
    if (shard == NULL || shard->lsm == NULL) return;
    switch (call->action) {
    case SERVER_ACTION_FLUSH:
        call->result = lsm_flush(shard->lsm);
        break;
    case SERVER_ACTION_COMPACT:
        call->result = lsm_compact(shard->lsm);
        break;
    }
}

u32
server_command_count(void)
{
    return command_table_count();
}

const char *
server_command_name(u32 index)
{
    CHECK(index < command_table_count());
    return command_table[index].name;
}
