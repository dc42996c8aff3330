/* SPDX-License-Identifier: MIT
 *
 * ring_stall.c -- the stall detector, and the handler that tells an overflowed fiber stack from any
 * other fault.
 *
 * A monitor thread looks at every shard each stall_ns. A turn that has lasted longer gets one
 * signal; the handler, on the shard's alternate stack, walks the stack that it interrupted into a
 * buffer, and the monitor prints it. The count of stalls is kept by the shard itself at the end of
 * each turn; the monitor only shows where the time went, at most RING_STALLS_PER_MINUTE times.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"

#define ALT_STACK_BYTES        (64u << 10)
#define RING_STALLS_PER_MINUTE 5u
#define STALL_SIGNAL           (SIGRTMIN + 4)

static __thread void *alt_stack;
static struct sigaction previous_segv, previous_bus;

static void
write_text(const char *text)
{
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
}

/* Says what happened when it was a guard page, then lets the previous handler have the fault: the
 * instruction runs again when we return. */
static void
on_fault(int signal_number, siginfo_t *info, void *context)
{
    struct io_shard *shard = io_current;
    if (shard != NULL && fiber_guard_hit(shard, info->si_addr)) {
        write_text("distkv: fiber stack overflow");
        if (shard->running != NULL) {
            write_text(" in fiber ");
            write_text(shard->running->name);
        }
        write_text("\n");
        void *frames[32];
        backtrace_symbols_fd(frames, backtrace(frames, 32), STDERR_FILENO);
    }
    sigaction(signal_number, signal_number == SIGSEGV ? &previous_segv : &previous_bus, NULL);
}

static void
on_stall(int signal_number, siginfo_t *info, void *context)
{
    struct ring_shard *shard = ring_current();
    /* A signal that comes late, behind the next one, must not touch what is being read. */
    if (shard == NULL || atomic_load(&shard->stall_frames) != 0) return;
    int error = errno;
    int count = backtrace(shard->stall_trace, RING_STALL_FRAMES_MAX);
    atomic_store_explicit(&shard->stall_frames, (u32)count, memory_order_release);
    errno = error;
}

static void
signals_install_once(void)
{
    void *frame;
    backtrace(&frame, 1); /* loads libgcc now: it allocates, which a handler must not */
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &previous_segv);
    sigaction(SIGBUS, &action, &previous_bus);
    action.sa_sigaction = on_stall;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigaction(STALL_SIGNAL, &action, NULL);
}

void
ring_signals_install(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, signals_install_once);
}

void
ring_signals_thread_init(void)
{
    alt_stack =
        mmap(NULL, ALT_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (alt_stack == MAP_FAILED) {
        alt_stack = NULL;
        return; /* without it an overflow dies silently, nothing worse */
    }
    stack_t stack = {.ss_sp = alt_stack, .ss_size = ALT_STACK_BYTES};
    sigaltstack(&stack, NULL);
    sigset_t unblock;
    sigemptyset(&unblock);
    sigaddset(&unblock, STALL_SIGNAL);
    sigaddset(&unblock, SIGSEGV);
    sigaddset(&unblock, SIGBUS);
    sigaddset(&unblock, SIGFPE);
    sigaddset(&unblock, SIGILL);
    sigaddset(&unblock, SIGABRT);
    sigaddset(&unblock, SIGPROF);
    pthread_sigmask(SIG_UNBLOCK, &unblock, NULL);
}

void
ring_signals_thread_deinit(void)
{
    if (alt_stack == NULL) return;
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, STALL_SIGNAL);
    pthread_sigmask(SIG_BLOCK, &block, NULL);
    stack_t stack = {.ss_flags = SS_DISABLE};
    sigaltstack(&stack, NULL);
    munmap(alt_stack, ALT_STACK_BYTES);
    alt_stack = NULL;
}

/* ---- the monitor ---- */

static void
monitor_sleep(u64 duration_ns)
{
    struct timespec duration = {.tv_sec = (time_t)(duration_ns / NS_PER_S),
                                .tv_nsec = (long)(duration_ns % NS_PER_S)};
    nanosleep(&duration, NULL);
}

static void
stall_report(struct ring_shard *shard, u64 stalled_ns)
{
    log_warning("io", "long turn shard=%u elapsed_ms=%llu", shard->core.index,
                (unsigned long long)(stalled_ns / NS_PER_MS));
    atomic_store(&shard->stall_frames, 0);
    if (pthread_kill(shard->thread, STALL_SIGNAL) != 0) return;
    u32 count = 0;
    for (u32 wait = 0; wait < 20 && count == 0; wait++) {
        monitor_sleep(NS_PER_MS);
        count = atomic_load_explicit(&shard->stall_frames, memory_order_acquire);
    }
    char **names = count == 0 ? NULL : backtrace_symbols(shard->stall_trace, (int)count);
    if (names == NULL) {
        MARK("io.ring_stall.in_kernel");
        log_warning("io", "no backtrace: the shard is inside the kernel shard=%u",
                    shard->core.index);
        return;
    }
    for (u32 i = 0; i < count; i++)
        log_warning("io", "long turn shard=%u frame=%u at=%s", shard->core.index, i, names[i]);
    free(names);
}

static void *
monitor_thread(void *arg)
{
    struct io_node *node = arg;
    pthread_setname_np(pthread_self(), "monitor");
    u64 minute_ns = 0;
    u32 reports = 0;
    while (!atomic_load(&node->monitor_stop)) {
        bool awake = false;
        u64 now_ns = ring_clock_ns();
        if (now_ns - minute_ns > 60 * NS_PER_S) {
            minute_ns = now_ns;
            reports = 0;
        }
        for (u32 i = 0; i < node->count; i++) {
            struct ring_shard *shard = node->shards[i];
            u64 start_ns = atomic_load_explicit(&shard->turn_started_ns, memory_order_relaxed);
            if (start_ns == 0) continue;
            awake = true;
            if (now_ns < start_ns + node->stall_ns || shard->stall_reported_ns == start_ns)
                continue;
            shard->stall_reported_ns = start_ns;
            if (reports++ < RING_STALLS_PER_MINUTE) stall_report(shard, now_ns - start_ns);
        }
        /* Shards that all sleep are looked at less often; a stall is counted in any case. */
        monitor_sleep(awake ? node->stall_ns : MAX(node->stall_ns, 100 * NS_PER_MS));
    }
    return NULL;
}

status
ring_monitor_start(struct io_node *node)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&node->monitor, NULL, monitor_thread, node);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error != 0) {
        log_error("io", "no thread for the monitor of stalls: %s", strerror(error));
        return MARKED("io.ring_stall.no_thread", ST_OVERLOADED);
    }
    node->monitor_started = true;
    return ST_OK;
}

void
ring_monitor_stop(struct io_node *node)
{
    if (!node->monitor_started) return;
    atomic_store(&node->monitor_stop, true);
    pthread_join(node->monitor, NULL);
    node->monitor_started = false;
}
