/* SPDX-License-Identifier: MIT
 *
 * ring_node.c -- the threads of a node, and how threads of the host reach it.
 *
 * Start: every thread makes its own ring (the kernel lets only the maker of a ring enter it), then
 * all wait for each other, so that a failure of one is the failure of io_node_start and no
 * shard_main has run. End: rings are closed only after every thread has left its loop, because a
 * shard may send a wake-up to another's ring until then.
 *
 * A call from a host thread goes through a mutex-protected list: it is rare, and a shard looks at
 * one counter a turn. io_node_stop only stores a flag and writes to eventfds, so a signal handler
 * may call it.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"

/* ---- stacks ---- */

void *
backend_stacks_map(size_t bytes)
{
    return fiber_stacks_map(bytes);
}

void
backend_stacks_unmap(void *stacks, size_t bytes)
{
    munmap(stacks, bytes);
}

/* ---- one shard's thread ---- */

static void
shard_thread_place(struct ring_shard *shard)
{
    char name[16];
    snprintf(name, sizeof(name), "shard-%u", shard->core.index);
    pthread_setname_np(pthread_self(), name);
    if (shard->cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(shard->cpu, &set);
    int error = pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    if (error != 0) {
        MARK("io.ring_node.not_pinned");
        log_warning("io", "shard not pinned shard=%u core=%d error=%s", shard->core.index,
                    shard->cpu, strerror(error));
    }
}

/* Reports how the start went and waits for the verdict over all shards. */
static bool
shard_thread_start_barrier(struct ring_shard *shard, status st)
{
    struct io_node *node = shard->host;
    pthread_mutex_lock(&node->mutex);
    node->init_count++;
    if (!ok(st) && ok(node->init_status)) node->init_status = st;
    pthread_cond_broadcast(&node->cond);
    while (!node->go && !node->abort)
        pthread_cond_wait(&node->cond, &node->mutex);
    bool go = node->go;
    pthread_mutex_unlock(&node->mutex);
    return go;
}

static void
host_call_finish(struct ring_call *call, status result)
{
    pthread_mutex_lock(&call->mutex);
    call->result = result;
    call->finished = true;
    pthread_cond_signal(&call->cond);
    pthread_mutex_unlock(&call->mutex);
}

/* Calls that came too late are refused. */
static void
shard_host_close(struct ring_shard *shard)
{
    pthread_mutex_lock(&shard->host_mutex);
    shard->host_closed = true;
    struct list *link;
    while ((link = list_pop_front(&shard->host_calls)) != NULL) {
        host_call_finish(list_entry(link, struct ring_call, link), ST_CLOSED);
    }
    pthread_mutex_unlock(&shard->host_mutex);
}

static void *
shard_thread(void *arg)
{
    struct ring_shard *shard = arg;
    struct io_node *node = shard->host;
    shard_thread_place(shard);
    ring_signals_thread_init();
    io_current = &shard->core;

    u64 seed;
    if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) seed = ring_clock_ns();
    status st = core_shard_init(&shard->core, node, shard->core.index, node->count,
                                node->memory_bytes / node->count, node->fiber_count_max, seed);
    bool core_ready = ok(st);
    shard->core.now_ns = ring_clock_ns();
    if (ok(st)) st = ring_init(shard);
    if (ok(st)) st = core_shard_start(&shard->core, node->shard_main, node->arg);
    if (shard_thread_start_barrier(shard, st)) {
        ring_run(shard);
        shard_host_close(shard);
        pthread_barrier_wait(&node->end_barrier);
        ring_deinit(shard);
        /* A timer may have fired after the end was decided and spawned something. */
        core_shard_deinit(&shard->core, true);
    } else {
        shard_host_close(shard);
        ring_deinit(shard);
        if (core_ready) core_shard_deinit(&shard->core, true);
        shard->core.main_status = st;
    }
    io_current = NULL;
    ring_signals_thread_deinit();
    pthread_mutex_lock(&node->mutex);
    atomic_fetch_add(&node->ended_count, 1);
    pthread_cond_broadcast(&node->cond);
    pthread_mutex_unlock(&node->mutex);
    return NULL;
}

/* ---- calls of host threads ---- */

static void
host_call_run(void *arg)
{
    struct ring_call *call = arg;
    call->fn(call->arg);
    host_call_finish(call, ST_OK);
}

u32
ring_host_calls_run(struct ring_shard *shard)
{
    if (atomic_load_explicit(&shard->host_calls_pending, memory_order_acquire) == 0) return 0;
    struct list batch;
    list_init(&batch);
    /* Either this shard is no longer finished, or all have: then shard_host_close refuses. */
    pthread_mutex_lock(&shard->host->mutex);
    bool too_late = atomic_load(&shard->host->all_finished);
    if (!too_late) atomic_store(&shard->finished, false);
    pthread_mutex_unlock(&shard->host->mutex);
    if (too_late) return MARKED("io.ring_node.call_late", 0);
    pthread_mutex_lock(&shard->host_mutex);
    list_splice_back(&batch, &shard->host_calls);
    pthread_mutex_unlock(&shard->host_mutex);
    u32 count = 0;
    struct list *link;
    while ((link = list_pop_front(&batch)) != NULL) {
        struct ring_call *call = list_entry(link, struct ring_call, link);
        count++;
        if (!call->waits) {
            host_call_run(call);
            continue;
        }
        status st = fiber_spawn(FIBER_FOREGROUND, "host call", host_call_run, call);
        if (!ok(st)) {
            MARK("io.ring_node.call_refused");
            host_call_finish(call, st);
        }
    }
    atomic_fetch_sub(&shard->host_calls_pending, count);
    return count;
}

static status
host_call(struct io_node *node, u32 index, void (*fn)(void *arg), void *arg, bool waits)
{
    CHECK(index < node->count);
    struct ring_shard *shard = node->shards[index];
    struct ring_call call = {.fn = fn, .arg = arg, .waits = waits, .result = ST_OK};
    pthread_mutex_init(&call.mutex, NULL);
    pthread_cond_init(&call.cond, NULL);

    pthread_mutex_lock(&shard->host_mutex);
    bool closed = shard->host_closed;
    if (!closed) {
        list_push_back(&shard->host_calls, &call.link);
        atomic_fetch_add(&shard->host_calls_pending, 1);
    }
    pthread_mutex_unlock(&shard->host_mutex);

    if (closed) {
        call.result = ST_CLOSED;
    } else {
        ring_kick(shard);
        pthread_mutex_lock(&call.mutex);
        while (!call.finished)
            pthread_cond_wait(&call.cond, &call.mutex);
        pthread_mutex_unlock(&call.mutex);
    }
    pthread_cond_destroy(&call.cond);
    pthread_mutex_destroy(&call.mutex);
    return call.result;
}

status
io_node_call(struct io_node *node, u32 index, void (*fn)(void *arg), void *arg)
{
    return host_call(node, index, fn, arg, true);
}

status
io_node_ask(struct io_node *node, u32 index, void (*fn)(void *arg), void *arg)
{
    return host_call(node, index, fn, arg, false);
}

/* ---- the node ---- */

static void
node_free(struct io_node *node)
{
    for (u32 i = 0; i < node->count && node->shards != NULL; i++) {
        struct ring_shard *shard = node->shards[i];
        if (shard == NULL) continue;
        if (shard->event_fd >= 0) close(shard->event_fd);
        pthread_mutex_destroy(&shard->host_mutex);
        free(shard);
    }
    ring_dir_locks_release(node);
    pthread_barrier_destroy(&node->end_barrier);
    pthread_mutex_destroy(&node->mutex);
    pthread_cond_destroy(&node->cond);
    free(node->shards);
    free(node->mailboxes);
    free(node);
}

static void *
zeroed(size_t size)
{
    size = (size_t)align_up(size, 64);
    void *block = aligned_alloc(64, size);
    if (block != NULL) memset(block, 0, size);
    return block;
}

static struct io_node *
node_new(const struct io_node_config *config)
{
    struct io_node *node = zeroed(sizeof(*node));
    if (node == NULL) return NULL;
    node->count = config->shard_count;
    node->memory_bytes = config->memory_bytes;
    node->spin_ns = (u32)MIN(config->spin_us * NS_PER_US, NS_PER_S);
    node->stall_ns = config->stall_ms * NS_PER_MS;
    node->fiber_count_max = config->fiber_count_max;
    node->shard_main = config->shard_main;
    node->arg = config->arg;
    pthread_mutex_init(&node->mutex, NULL);
    pthread_cond_init(&node->cond, NULL);
    pthread_barrier_init(&node->end_barrier, NULL, node->count);
    for (u32 i = 0; i < RING_DIR_LOCKS_MAX; i++)
        node->dir_locks[i].fd = -1;

    node->shards = zeroed(node->count * sizeof(node->shards[0]));
    node->mailboxes = zeroed((size_t)node->count * node->count * sizeof(node->mailboxes[0]));
    if (node->shards == NULL || node->mailboxes == NULL) goto fail;
    for (u32 i = 0; i < node->count; i++) {
        struct ring_shard *shard = zeroed(sizeof(*shard));
        if (shard == NULL) goto fail;
        node->shards[i] = shard;
        shard->host = node;
        shard->core.index = i;
        shard->cpu = config->cores != NULL ? (i32)config->cores[i] : -1;
        pthread_mutex_init(&shard->host_mutex, NULL);
        list_init(&shard->host_calls);
        shard->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (shard->event_fd < 0) goto fail;
    }
    return node;

fail:
    node_free(node);
    return NULL;
}

/* As many descriptors as the system lets us have: connections are many. */
static void
raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

/* Signals for the process belong to the host's threads; faults and the stall signal come through
 * whatever the mask, or are unblocked by ring_signals_thread_init. */
static int
thread_create_quiet(pthread_t *thread, void *(*fn)(void *), void *arg)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(thread, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return error;
}

static void
node_decide(struct io_node *node, bool go)
{
    pthread_mutex_lock(&node->mutex);
    if (go)
        node->go = true;
    else
        node->abort = true;
    pthread_cond_broadcast(&node->cond);
    pthread_mutex_unlock(&node->mutex);
}

static void
node_threads_join(struct io_node *node)
{
    for (u32 i = 0; i < node->count; i++) {
        if (!node->shards[i]->thread_started) continue;
        pthread_join(node->shards[i]->thread, NULL);
        node->shards[i]->thread_started = false;
    }
}

status
io_node_start(const struct io_node_config *config, struct io_node **out)
{
    CHECK(config->shard_count >= 1 && config->shard_count <= LIMIT_SHARDS);
    CHECK(config->shard_main != NULL);
    raise_file_limit();
    ring_signals_install();
    struct io_node *node = node_new(config);
    if (node == NULL) return MARKED("io.ring_node.no_memory", ST_NO_MEMORY);

    status st = ST_OK;
    u32 started = 0;
    for (; started < node->count; started++) {
        struct ring_shard *shard = node->shards[started];
        int error = thread_create_quiet(&shard->thread, shard_thread, shard);
        if (error != 0) {
            log_error("io", "no thread for shard %u: %s", started, strerror(error));
            st = MARKED("io.ring_node.no_thread", ST_OVERLOADED);
            break;
        }
        shard->thread_started = true;
    }
    pthread_mutex_lock(&node->mutex);
    while (node->init_count < started)
        pthread_cond_wait(&node->cond, &node->mutex);
    if (ok(st)) st = node->init_status;
    pthread_mutex_unlock(&node->mutex);
    if (ok(st) && node->stall_ns > 0) st = ring_monitor_start(node);
    node_decide(node, ok(st));
    if (!ok(st)) {
        MARK("io.ring_node.not_started");
        node_threads_join(node);
        node_free(node);
        return st;
    }
    *out = node;
    return ST_OK;
}

void
io_node_stop(struct io_node *node)
{
    atomic_store(&node->stop, true);
    for (u32 i = 0; i < node->count; i++)
        ring_kick(node->shards[i]);
}

status
io_node_join(struct io_node *node)
{
    pthread_mutex_lock(&node->mutex);
    while (!io_node_ended(node))
        pthread_cond_wait(&node->cond, &node->mutex);
    pthread_mutex_unlock(&node->mutex);
    ring_monitor_stop(node); /* before the join: it may signal a thread only until then */
    node_threads_join(node);
    status st = ST_OK;
    for (u32 i = 0; i < node->count && ok(st); i++)
        st = node->shards[i]->core.main_status;
    node_free(node);
    return st;
}

bool
io_node_ended(const struct io_node *node)
{
    return atomic_load(&node->ended_count) == node->count;
}

u64
io_node_heartbeat_ns(const struct io_node *node, u32 shard)
{
    CHECK(shard < node->count);
    return atomic_load_explicit(&node->shards[shard]->heartbeat_ns, memory_order_relaxed);
}
