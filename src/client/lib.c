/* SPDX-License-Identifier: MIT
 *
 * lib.c -- handles of libdistkv: opening, closing, the loop behind distkv_process, and timers.
 *
 * All sockets and one timerfd hang in one epoll descriptor, which is what distkv_fd gives away.
 * The timerfd is armed at the earliest timer or before it: re-arming it for every request would
 * cost a system call each, and waking too early costs one now and then.
 */
#include "client/lib_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define LIB_EVENTS_MAX 64

static const struct {
    const char *name;
    const char *text;
} LIB_CODES[] = {
    [DISTKV_OK] = {"OK", "done"},
    [DISTKV_NOT_FOUND] = {"NOT_FOUND", "there is no such key"},
    [DISTKV_CONFLICT] = {"CONFLICT", "the condition was not met, nothing was written"},
    [DISTKV_INVALID] = {"INVALID", "invalid argument"},
    [DISTKV_TOO_LARGE] = {"TOO_LARGE", "over a size limit"},
    [DISTKV_UNSUPPORTED] = {"UNSUPPORTED", "the server does not know this request"},
    [DISTKV_UNREACHABLE] = {"UNREACHABLE", "no server could be reached"},
    [DISTKV_TIMED_OUT] = {"TIMED_OUT", "the deadline passed, nothing was written"},
    [DISTKV_UNKNOWN_OUTCOME] = {"UNKNOWN_OUTCOME", "it is not known whether the write took effect"},
    [DISTKV_OVERLOADED] = {"OVERLOADED", "the server is overloaded, nothing was written"},
    [DISTKV_NO_SPACE] = {"NO_SPACE", "no space is left on the server"},
    [DISTKV_READ_ONLY] = {"READ_ONLY", "the server has stopped taking writes"},
    [DISTKV_SERVER_ERROR] = {"SERVER_ERROR", "the server failed"},
    [DISTKV_NO_MEMORY] = {"NO_MEMORY", "the handle's memory limit is reached"},
    [DISTKV_CROSS_SLOT] = {"CROSS_SLOT", "the keys of an atomic batch fall into several slots"},
    [DISTKV_CANCELED] = {"CANCELED", "canceled"},
    [DISTKV_DENIED] = {"DENIED", "not authenticated"},
    [DISTKV_END] = {"END", "no more entries"},
    [DISTKV_FULL] = {"FULL",
                     "the server's memory is full of indexes, it takes nothing but deletes"},
};

const char *
distkv_code_name(int code)
{
    return code >= 0 && code < (int)ARRAY_COUNT(LIB_CODES) ? LIB_CODES[code].name : "?";
}

const char *
distkv_code_text(int code)
{
    return code >= 0 && code < (int)ARRAY_COUNT(LIB_CODES) ? LIB_CODES[code].text : "unknown code";
}

const char *
distkv_version(void)
{
    return DISTKV_VERSION;
}

int
lib_code_of(u32 native_status)
{
    switch ((enum native_status)native_status) {
    case NATIVE_ST_OK:
        return DISTKV_OK;
    case NATIVE_ST_NOT_FOUND:
        return DISTKV_NOT_FOUND;
    case NATIVE_ST_CONFLICT:
        return DISTKV_CONFLICT;
    case NATIVE_ST_INVALID:
        return DISTKV_INVALID;
    case NATIVE_ST_TOO_LARGE:
        return DISTKV_TOO_LARGE;
    case NATIVE_ST_UNSUPPORTED:
        return DISTKV_UNSUPPORTED;
    case NATIVE_ST_OVERLOADED:
    case NATIVE_ST_NO_MEMORY:
    case NATIVE_ST_CLOSING:
    case NATIVE_ST_WRONG_EPOCH:
    case NATIVE_ST_UNAVAILABLE:
        return DISTKV_OVERLOADED;
    case NATIVE_ST_TIMED_OUT:
        return DISTKV_TIMED_OUT;
    case NATIVE_ST_NO_SPACE:
        return DISTKV_NO_SPACE;
    case NATIVE_ST_FULL:
        return DISTKV_FULL;
    case NATIVE_ST_READ_ONLY:
        return DISTKV_READ_ONLY;
    case NATIVE_ST_UNKNOWN_OUTCOME:
        return DISTKV_UNKNOWN_OUTCOME;
    case NATIVE_ST_CROSS_SLOT:
        return DISTKV_CROSS_SLOT;
    case NATIVE_ST_SNAPSHOT_GONE:
        return DISTKV_CANCELED;
    case NATIVE_ST_UNAUTHENTICATED:
        return DISTKV_DENIED;
    case NATIVE_ST_BAD_FRAME:
    case NATIVE_ST_IO_ERROR:
    case NATIVE_ST_DAMAGED:
        break;
    }
    return DISTKV_SERVER_ERROR;
}

u64
lib_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

int
lib_fail(struct distkv *kv, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(kv->error, sizeof(kv->error), format, args);
    va_end(args);
    return code;
}

/* ---- timers ---- */

static bool
lib_timer_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct lib_timer *ta = (const struct lib_timer *)(const void *)a;
    const struct lib_timer *tb = (const struct lib_timer *)(const void *)b;
    return ta->at_ns < tb->at_ns;
}
static_assert(offsetof(struct lib_timer, node) == 0, "lib_timer_before casts");

void
lib_timer_stop(struct distkv *kv, struct lib_timer *timer)
{
    if (!timer->armed) return;
    heap_remove(&kv->timers, &timer->node);
    timer->armed = false;
}

void
lib_timer_set(struct distkv *kv, struct lib_timer *timer, u64 at_ns)
{
    lib_timer_stop(kv, timer);
    timer->at_ns = at_ns;
    timer->armed = true;
    heap_insert(&kv->timers, &timer->node);
}

static void
lib_timers_run(struct distkv *kv)
{
    u64 now = lib_now_ns();
    while (heap_first(&kv->timers) != NULL) {
        struct lib_timer *timer = CONTAINER_OF(heap_first(&kv->timers), struct lib_timer, node);
        if (timer->at_ns > now) return;
        lib_timer_stop(kv, timer);
        if (timer->request != NULL)
            request_on_timer(kv, timer->request);
        else if (timer->connection != NULL)
            connection_on_timer(timer->connection);
        else if (timer == &kv->fetch_timer)
            route_on_timer(kv);
        /* else: the queue is looked at next */
    }
}

/* Arms the timerfd no later than the first timer, and at once when callbacks are to be run. */
static void
lib_timerfd_arm(struct distkv *kv)
{
    u64 at = UINT64_MAX;
    if (!list_empty(&kv->completed))
        at = 1;
    else if (heap_first(&kv->timers) != NULL)
        at = CONTAINER_OF(heap_first(&kv->timers), struct lib_timer, node)->at_ns;
    if (at == UINT64_MAX || (kv->timer_armed_ns != 0 && kv->timer_armed_ns <= at)) return;
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S)}};
    int rc = timerfd_settime(kv->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
    CHECK(rc == 0);
    kv->timer_armed_ns = at;
}

/* ---- the loop ---- */

static void
lib_flush_all(struct distkv *kv)
{
    for (u32 s = 0; s < kv->server_count; s++) {
        for (u32 c = 0; c < kv->servers[s].connection_count; c++) {
            struct connection *connection = &kv->servers[s].connections[c];
            if (!list_empty(&connection->unsent) && !connection->writable_wanted)
                connection_flush(connection);
        }
    }
}

static void
lib_wait_events(struct distkv *kv, int timeout_ms)
{
    struct epoll_event events[LIB_EVENTS_MAX];
    int count = epoll_wait(kv->epoll_fd, events, LIB_EVENTS_MAX, timeout_ms);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == NULL) {
            u64 fired;
            ssize_t got = read(kv->timer_fd, &fired, sizeof(fired));
            (void)got; /* nothing to read: it was set anew in between */
            kv->timer_armed_ns = 0;
        } else {
            connection_on_event(events[i].data.ptr, events[i].events);
        }
    }
}

/* One round: send, wait for at most timeout_ms (-1: for ever), receive, run what has ended. */
static void
lib_turn(struct distkv *kv, int timeout_ms)
{
    route_sweep(kv);
    int completed = requests_run_completed(kv);
    requests_dispatch(kv);
    lib_flush_all(kv);
    if (completed > 0 || !list_empty(&kv->completed)) timeout_ms = 0;
    if (timeout_ms < 0 && kv->pending == 0) timeout_ms = 0;
    lib_timerfd_arm(kv);
    lib_wait_events(kv, timeout_ms);
    lib_timers_run(kv);
    requests_dispatch(kv);
    /* What their callbacks start goes out now: nothing would wake who waits on distkv_fd for it. */
    if (requests_run_completed(kv) > 0) requests_dispatch(kv);
    lib_flush_all(kv);
    lib_timerfd_arm(kv);
}

int
distkv_process(distkv *kv, int timeout_ms)
{
    if (kv->in_process) return -1;
    kv->in_process = true;
    u64 callbacks_before = kv->callbacks;
    u64 deadline_ns = timeout_ms > 0 ? lib_now_ns() + (u64)timeout_ms * NS_PER_MS : 0;
    /* A turn may end with nothing but a socket or timer of ours served: then wait for the rest. */
    while (true) {
        int wait_ms = timeout_ms;
        if (timeout_ms > 0) {
            u64 now = lib_now_ns();
            wait_ms =
                now < deadline_ns ? (int)((deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS) : 0;
        }
        lib_turn(kv, wait_ms);
        if (kv->callbacks != callbacks_before || wait_ms == 0) break;
        if (timeout_ms < 0 && kv->pending == 0) break;
    }
    kv->in_process = false;
    return (int)MIN(kv->callbacks - callbacks_before, (u64)INT32_MAX);
}

int
distkv_fd(const distkv *kv)
{
    return kv->epoll_fd;
}

void
distkv_flush(distkv *kv)
{
    if (kv->in_process) return; /* the turn that runs the callback flushes at its end */
    requests_dispatch(kv);
    lib_flush_all(kv);
    lib_timerfd_arm(kv);
}

size_t
distkv_pending(const distkv *kv)
{
    return kv->pending;
}

/* ---- opening and closing ---- */

void
distkv_options_init(struct distkv_options *options)
{
    *options = (struct distkv_options){
        .timeout_ms = 5000,
        .connect_timeout_ms = 2000,
        .reconnect_min_ms = 10,
        .reconnect_max_ms = 1000,
        .connections_per_server = 1,
        .memory_bytes_max = MIB(256),
    };
}

static const char *
options_fault(const struct distkv_options *options)
{
    if (options->timeout_ms == 0) return "timeout_ms is 0";
    if (options->connect_timeout_ms == 0) return "connect_timeout_ms is 0";
    if (options->reconnect_min_ms == 0 || options->reconnect_max_ms < options->reconnect_min_ms)
        return "reconnect pauses must be at least 1 ms, and the largest at least the smallest";
    if (options->connections_per_server == 0 ||
        options->connections_per_server > LIB_CONNECTIONS_MAX)
        return "connections_per_server must be 1 to 64";
    if (options->keyspace >= LIMIT_KEYSPACES_CLIENT) return "keyspace must be 0 to 15";
    if (options->consistency > DISTKV_ALL) return "consistency must be 0 to 3";
    if (options->memory_bytes_max < MIB(4)) return "memory_bytes_max must be at least 4 MiB";
    const char *names[] = {options->client_name, options->user, options->password};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (names[i] != NULL && strlen(names[i]) > NATIVE_NAME_BYTES_MAX)
            return "client_name, user and password are at most 255 bytes";
    return NULL;
}

static void
set_error(char *error, const char *text)
{
    if (error != NULL) snprintf(error, DISTKV_ERROR_BYTES, "%s", text);
}

static void
lib_destroy(struct distkv *kv)
{
    lib_timer_stop(kv, &kv->fetch_timer);
    lib_timer_stop(kv, &kv->elsewhere_timer);
    connections_deinit(kv);
    lib_map_deinit(&kv->map, &kv->budget);
    if (kv->timer_fd >= 0) close(kv->timer_fd);
    if (kv->epoll_fd >= 0) close(kv->epoll_fd);
    if (kv->table != NULL)
        mem_free(&kv->budget, kv->table, kv->table_size * sizeof(struct request *));
    CHECK(kv->budget.used_bytes == 0);
    free(kv);
}

static int
lib_create(const char *servers, const struct distkv_options *options, struct distkv **out,
           char *error)
{
    struct distkv *kv = calloc(1, sizeof(*kv));
    if (kv == NULL) {
        set_error(error, "out of memory");
        return DISTKV_NO_MEMORY;
    }
    kv->options = *options;
    const char *name = options->client_name != NULL ? options->client_name : "libdistkv";
    snprintf(kv->client_name, sizeof(kv->client_name), "%s", name);
    snprintf(kv->user, sizeof(kv->user), "%s", options->user != NULL ? options->user : "");
    snprintf(kv->password, sizeof(kv->password), "%s",
             options->password != NULL ? options->password : "");
    budget_init(&kv->budget, "libdistkv", options->memory_bytes_max, NULL);
    heap_init(&kv->timers, lib_timer_before);
    list_init(&kv->waiting);
    list_init(&kv->completed);
    kv->id_next = 1;
    u64 seed;
    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        seed = lib_now_ns() ^ ((u64)getpid() << 32);
    prng_init(&kv->prng, seed);
    retry_init(&kv->retries);
    kv->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    kv->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (kv->epoll_fd < 0 || kv->timer_fd < 0 ||
        epoll_ctl(kv->epoll_fd, EPOLL_CTL_ADD, kv->timer_fd, &event) != 0) {
        if (error != NULL)
            snprintf(error, DISTKV_ERROR_BYTES, "cannot make a descriptor: %s", strerror(errno));
        lib_destroy(kv);
        return DISTKV_NO_MEMORY;
    }
    int code = connections_init(kv, servers, error);
    if (code != DISTKV_OK) {
        lib_destroy(kv);
        return code;
    }
    *out = kv;
    return DISTKV_OK;
}

/* Every connection has failed a whole attempt. */
static bool
lib_all_failed(const struct distkv *kv)
{
    for (u32 s = 0; s < kv->server_count; s++)
        if (kv->servers[s].named && !kv->servers[s].connections[0].failed_once) return false;
    return true;
}

static bool
lib_any_ready(const struct distkv *kv)
{
    for (u32 s = 0; s < kv->server_count; s++)
        for (u32 c = 0; c < kv->servers[s].connection_count; c++)
            if (kv->servers[s].connections[c].state == CONNECTION_READY) return true;
    return false;
}

int
distkv_connect(const char *servers, const struct distkv_options *options, distkv **out, char *error)
{
    set_error(error, "");
    struct distkv_options defaults;
    distkv_options_init(&defaults);
    if (options == NULL) options = &defaults;
    const char *fault = options_fault(options);
    if (fault != NULL || servers == NULL) {
        set_error(error, fault != NULL ? fault : "no server is named");
        return DISTKV_INVALID;
    }
    struct distkv *kv;
    int code = lib_create(servers, options, &kv, error);
    if (code != DISTKV_OK) return code;
    u64 deadline = lib_now_ns() + (u64)options->timeout_ms * NS_PER_MS;
    while (!lib_any_ready(kv)) {
        u64 now = lib_now_ns();
        if (now >= deadline || lib_all_failed(kv)) {
            if (kv->connect_error[0] == '\0')
                snprintf(kv->connect_error, sizeof(kv->connect_error), "%s: no answer within %u ms",
                         servers, options->timeout_ms);
            set_error(error, kv->connect_error);
            code = kv->denied ? DISTKV_DENIED : DISTKV_UNREACHABLE;
            distkv_close(kv);
            return code;
        }
        kv->in_process = true;
        lib_turn(kv, (int)((deadline - now + NS_PER_MS - 1) / NS_PER_MS));
        kv->in_process = false;
    }
    *out = kv;
    return DISTKV_OK;
}

void
distkv_close(distkv *kv)
{
    if (kv == NULL) return;
    CHECK(!kv->in_process); /* never from a callback */
    requests_cancel_all(kv);
    lib_destroy(kv);
}

const char *
distkv_error(const distkv *kv)
{
    return kv->error;
}

void
distkv_set_timeout(distkv *kv, uint32_t timeout_ms)
{
    kv->options.timeout_ms = MAX(timeout_ms, 1);
}

int
distkv_set_keyspace(distkv *kv, uint32_t keyspace)
{
    if (keyspace >= LIMIT_KEYSPACES_CLIENT)
        return lib_fail(kv, DISTKV_INVALID, "keyspace must be 0 to 15");
    kv->options.keyspace = keyspace;
    return DISTKV_OK;
}

int
distkv_set_consistency(distkv *kv, uint32_t consistency)
{
    static_assert((u32)DISTKV_ALL == (u32)NATIVE_LEVEL_ALL, "one numbering");
    if (consistency > DISTKV_ALL) return lib_fail(kv, DISTKV_INVALID, "unknown consistency");
    kv->options.consistency = consistency;
    return DISTKV_OK;
}

int
distkv_server(const distkv *kv, struct distkv_server_info *out)
{
    for (u32 s = 0; s < kv->server_count; s++) {
        for (u32 c = 0; c < kv->servers[s].connection_count; c++) {
            if (kv->servers[s].connections[c].state == CONNECTION_READY) {
                *out = kv->servers[s].info;
                if (kv->map.node_count != 0) out->nodes = kv->map.node_count;
                return DISTKV_OK;
            }
        }
    }
    return DISTKV_UNREACHABLE;
}
