/* SPDX-License-Identifier: MIT
 *
 * ring_loop.c -- the ring of a shard, its turn, and how shards sleep and wake each other.
 *
 *   turn:  mailboxes -> host calls -> timers -> completions -> tasks -> fibers
 *          -> disk dispatch -> sends -> wake-ups -> one submit-and-get-events
 *   idle:  spin -> declare sleep -> look again -> wait in the kernel
 *
 * DEFER_TASKRUN. Completions appear only when this thread enters the kernel with GETEVENTS, and
 * each enter handles about 20 of them; IORING_SQ_TASKRUN stays set until all are out, so the loop
 * enters again while it is. A wait for more than one completion would sleep until its timeout when
 * fewer are in flight: it always waits for one.
 *
 * Sleep. A sender pushes its mail, then looks at the target's flag `asleep`; the target sets the
 * flag, then looks at its mailboxes. A full fence on both sides between the two steps makes sure
 * that at least one of them sees the other. Whoever exchanges the flag to 0 sends the one MSG_RING.
 */
#include "io/ring_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/log.h"

#define TAG_OP        1ull
#define WAKE_FAILED   2ull
#define ADDRESS_MASK  0x0000fffffffffff8ull
#define GENERATION_AT 48
/* Of requests to the disk, submitted before the replies of a turn. */
#define SQES_AT_ONCE 4u
/* Room in the budget from which on freed memory may stay resident for its next use: large values
 * leave up to half of what is used, so that a quarter of the budget, and with it the tenth that the
 * process may be above its bound, is enough; of a small budget more. */
#define FREED_KEPT_SHARE 4u
#define FREED_KEPT_MIN   MIB(16)

u64
ring_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * NS_PER_S + (u64)now.tv_nsec;
}

static u64
ring_wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / NS_PER_MS;
}

/* ---- requests ---- */

static void
ring_enter_failed(const char *what, int error)
{
    log_error("io", "%s failed error=%s", what, strerror(error));
    CHECK(!"the ring cannot be entered");
}

static bool
ring_kernel_has_more(const struct ring_shard *shard)
{
    u32 flags = IO_URING_READ_ONCE(*shard->uring.sq.kflags);
    return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

/* Submits what is queued and collects what is ready, without waiting. Not when many completions
 * are unread: each submission may add some, and the queue must not overflow. */
static void
ring_submit(struct ring_shard *shard)
{
    if (io_uring_sq_ready(&shard->uring) == 0 && !ring_kernel_has_more(shard)) return;
    if (io_uring_cq_ready(&shard->uring) > RING_CQ_ENTRIES / 2) return;
    shard->core.stats.ring_enters++;
    int result = io_uring_submit_and_get_events(&shard->uring);
    /* EBUSY, EAGAIN: completions must be read first. EINTR: a signal; the next turn submits. */
    if (result < 0 && result != -EINTR && result != -EBUSY && result != -EAGAIN)
        ring_enter_failed("submission", -result);
}

void
ring_submit_early(struct ring_shard *shard)
{
    if (io_uring_sq_ready(&shard->uring) == 0) return;
    if (io_uring_cq_ready(&shard->uring) > RING_CQ_ENTRIES / 2) return;
    shard->core.stats.ring_enters++;
    int result = io_uring_submit(&shard->uring);
    if (result < 0 && result != -EINTR && result != -EBUSY && result != -EAGAIN)
        ring_enter_failed("submission", -result);
}

struct io_uring_sqe *
ring_sqe(struct ring_shard *shard)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&shard->uring);
    while (UNLIKELY(sqe == NULL)) {
        MARK("io.ring_loop.queue_full");
        shard->core.stats.ring_enters++;
        int result = io_uring_submit(&shard->uring);
        if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY)
            ring_enter_failed("submission", -result);
        sqe = io_uring_get_sqe(&shard->uring);
    }
    return sqe;
}

u64
ring_req_user_data(const struct ring_req *req)
{
    return (u64)(uintptr_t)req | (u64)req->generation << GENERATION_AT;
}

void
ring_req_arm(struct ring_shard *shard, struct io_uring_sqe *sqe, struct ring_req *req)
{
    CHECK(!req->active);
    req->active = true;
    req->generation++;
    shard->requests_active++;
    io_uring_sqe_set_data64(sqe, ring_req_user_data(req));
}

void
ring_req_cancel(struct ring_shard *shard, struct ring_req *req)
{
    if (!req->active) return;
    struct io_uring_sqe *sqe = ring_sqe(shard);
    io_uring_prep_cancel64(sqe, ring_req_user_data(req), 0);
    /* Not found means that the last completion is on its way already. */
    io_uring_sqe_set_data64(sqe, 0);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
}

/* A MSG_RING was refused (its target's queue is full): the slow way to everybody. */
static void
ring_wake_all(struct ring_shard *shard)
{
    for (u32 i = 0; i < shard->core.count; i++)
        if (i != shard->core.index) ring_kick(shard->host->shards[i]);
}

static void
ring_dispatch(struct ring_shard *shard, u64 user_data, i32 result, u32 flags)
{
    if (user_data == 0) return; /* a wake-up, or a cancellation that came too late */
    if (user_data == WAKE_FAILED) {
        ring_wake_all(shard);
        return;
    }
    if (user_data & TAG_OP) {
        shard->requests_active--;
        ring_file_complete(shard, (struct io_op *)(uintptr_t)(user_data & ADDRESS_MASK), result);
        return;
    }
    struct ring_req *req = (struct ring_req *)(uintptr_t)(user_data & ADDRESS_MASK);
    CHECK(req->active);
    CHECK(req->generation == (u16)(user_data >> GENERATION_AT));
    if (!(flags & IORING_CQE_F_MORE)) {
        req->active = false;
        shard->requests_active--;
    }
    req->complete(req, result, flags);
}

/* Handles the completions that are in the ring now. */
static u32
ring_reap_batch(struct ring_shard *shard)
{
    struct io_uring_cqe *cqes[16];
    u32 total = 0;
    for (;;) {
        u32 count = io_uring_peek_batch_cqe(&shard->uring, cqes, ARRAY_COUNT(cqes));
        if (count == 0) break;
        for (u32 i = 0; i < count; i++) {
            /* The entry is free for the kernel before its callback runs, which may enter. */
            u64 user_data = cqes[i]->user_data;
            i32 result = cqes[i]->res;
            u32 flags = cqes[i]->flags;
            io_uring_cq_advance(&shard->uring, 1);
            ring_dispatch(shard, user_data, result, flags);
        }
        total += count;
        /* What is left stays in the ring until the next turn. */
        if (backend_slice_over(&shard->core)) break;
    }
    return total;
}

static u32
ring_reap(struct ring_shard *shard)
{
    u32 total = ring_reap_batch(shard);
    for (u32 round = 0; round < RING_REAP_ROUNDS_MAX && ring_kernel_has_more(shard); round++) {
        if (UNLIKELY(io_uring_cq_has_overflow(&shard->uring))) {
            MARK("io.ring_loop.overflowed");
            if (shard->core.stats.cq_overflows++ == 0)
                log_warning("io", "completion queue overflowed shard=%u", shard->core.index);
        }
        if (backend_slice_over(&shard->core)) break;
        shard->core.stats.ring_enters++;
        int result = io_uring_get_events(&shard->uring);
        if (result < 0 && result != -EINTR && result != -EBUSY && result != -EAGAIN)
            ring_enter_failed("get events", -result);
        total += ring_reap_batch(shard);
    }
    if (total > 0) shard->core.turn_had_foreground = true;
    return total;
}

/* ---- fibers that wait for one request ---- */

static void
ring_wait_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct ring_wait *wait = CONTAINER_OF(req, struct ring_wait, req);
    wait->result = result;
    wait->finished = true;
    if (wait->fiber != NULL) fiber_resume(wait->shard, wait->fiber);
}

void
ring_wait_arm(struct ring_shard *shard, struct io_uring_sqe *sqe, struct ring_wait *wait)
{
    memset(wait, 0, sizeof(*wait));
    wait->req.complete = ring_wait_complete;
    wait->shard = &shard->core;
    ring_req_arm(shard, sqe, &wait->req);
}

MAY_YIELD i32
ring_wait_for(struct ring_wait *wait)
{
    if (!wait->finished) {
        wait->fiber = fiber_self();
        CHECK(wait->fiber != NULL);
        fiber_suspend();
        CHECK(wait->finished);
    }
    return wait->result;
}

/* ---- registered files ---- */

i32
ring_slot_take(struct ring_shard *shard, int fd)
{
    u32 words = shard->file_slot_count / 64;
    for (u32 i = 0; i < words; i++) {
        u32 word = (shard->file_slot_hint + i) % words;
        if (shard->file_slots[word] == UINT64_MAX) continue;
        u32 bit = (u32)__builtin_ctzll(~shard->file_slots[word]);
        u32 slot = word * 64 + bit;
        if (io_uring_register_files_update(&shard->uring, slot, &fd, 1) != 1) return -1;
        shard->file_slots[word] |= 1ull << bit;
        shard->file_slot_hint = word;
        return (i32)slot;
    }
    return -1;
}

void
ring_slot_give(struct ring_shard *shard, i32 slot)
{
    if (slot < 0) return;
    int none = -1;
    /* Cannot fail for a slot that exists; if it did, the slot is lost and nothing else. */
    if (io_uring_register_files_update(&shard->uring, (u32)slot, &none, 1) != 1) return;
    shard->file_slots[slot / 64] &= ~(1ull << (slot % 64));
}

/* Whether what leaves the table is let go of while a request on another slot waits: one polls one
 * end of a pipe, and shall see the other end close. */
static bool
ring_slots_close_at_once(struct ring_shard *shard)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return false;
    i32 waits = ring_slot_take(shard, ends[0]);
    i32 leaves = ring_slot_take(shard, ends[1]);
    struct io_uring_sqe *sqe = ring_sqe(shard);
    io_uring_prep_poll_add(sqe, ends[0], POLLIN);
    ring_sqe_file(sqe, ends[0], waits);
    io_uring_sqe_set_data64(sqe, 0);
    bool armed = waits >= 0 && leaves >= 0 && io_uring_submit(&shard->uring) == 1;
    ring_slot_give(shard, leaves);
    close(ends[1]);
    u8 byte;
    bool closed = read(ends[0], &byte, 1) == 0; /* else EAGAIN: somebody may still write */

    sqe = ring_sqe(shard);
    io_uring_prep_cancel64(sqe, 0, 0); /* nothing else is in the ring yet */
    io_uring_sqe_set_data64(sqe, 0);
    while (io_uring_cq_ready(&shard->uring) < 2) {
        int result = io_uring_submit_and_wait(&shard->uring, 2);
        if (result < 0 && result != -EINTR && result != -EAGAIN)
            ring_enter_failed("submission", -result);
    }
    io_uring_cq_advance(&shard->uring, 2);
    ring_slot_give(shard, waits);
    close(ends[0]);
    return armed && closed;
}

/* Before Linux 6.13 what leaves the table stays open until all requests have ended that were on any
 * slot then: one receive of an idle client would keep each connection and each removed file of the
 * shard that is closed after it (liburing#1192). There requests on sockets, which may wait for
 * ever, name the descriptor; those on files are short, and keep their slots. */
static void
ring_slots_init(struct ring_shard *shard)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    u32 count = (u32)align_down(MIN(limit.rlim_cur, RING_FILES_MAX), 64);
    if (count == 0) return;
    size_t bytes = count / 8;
    shard->file_slots = mem_alloc_zero(&shard->core.budget, bytes);
    if (shard->file_slots == NULL) {
        MARK("io.ring_loop.slots_no_memory");
        return;
    }
    int result = io_uring_register_files_sparse(&shard->uring, count);
    if (result < 0) {
        MARK("io.ring_loop.no_slots");
        log_warning("io", "file table cannot be registered, going on without error=%s",
                    strerror(-result));
        mem_free(&shard->core.budget, shard->file_slots, bytes);
        shard->file_slots = NULL;
        return;
    }
    shard->file_slot_count = count;
    shard->sockets_have_slots =
        ring_slots_close_at_once(shard) && !BUGGIFY("io.ring_loop.closes_late");
    if (!shard->sockets_have_slots) MARK("io.ring_loop.sockets_without_slots");
}

/* ---- waking ---- */

void
ring_kick(struct ring_shard *shard)
{
    u64 one = 1;
    ssize_t ignored = write(shard->event_fd, &one, sizeof(one)); /* full: it is awake soon anyway */
    (void)ignored;
}

static void ring_event_arm(struct ring_shard *shard);

static void
ring_event_complete(struct ring_req *req, i32 result, u32 flags)
{
    struct ring_shard *shard = CONTAINER_OF(req, struct ring_shard, event_req);
    u64 count;
    ssize_t ignored = read(shard->event_fd, &count, sizeof(count)); /* non-blocking */
    (void)ignored;
    if (!(flags & IORING_CQE_F_MORE)) ring_event_arm(shard);
}

/* Polled, not read: reading an eventfd through the ring was slow in 6.15.4. */
static void
ring_event_arm(struct ring_shard *shard)
{
    struct io_uring_sqe *sqe = ring_sqe(shard);
    io_uring_prep_poll_multishot(sqe, shard->event_fd, POLLIN);
    ring_req_arm(shard, sqe, &shard->event_req);
}

static void
ring_wake_targets(struct ring_shard *shard)
{
    if (shard->wake_targets == 0) return;
    atomic_thread_fence(memory_order_seq_cst); /* the mails, before the look at asleep */
    u64 targets = shard->wake_targets;
    shard->wake_targets = 0;
    while (targets != 0) {
        u32 index = (u32)__builtin_ctzll(targets);
        targets &= targets - 1;
        struct ring_shard *target = shard->host->shards[index];
        if (atomic_load_explicit(&target->asleep, memory_order_relaxed) == 0) continue;
        if (atomic_exchange(&target->asleep, 0) == 0) continue;
        struct io_uring_sqe *sqe = ring_sqe(shard);
        io_uring_prep_msg_ring(sqe, target->uring.ring_fd, 0, 0, 0);
        io_uring_sqe_set_data64(sqe, WAKE_FAILED); /* seen only then */
        sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
        shard->core.stats.mail_wakes++;
    }
}

/* ---- mails ---- */

static struct ring_mailbox *
ring_mailbox(struct io_node *node, u32 source, u32 target)
{
    return &node->mailboxes[(size_t)source * node->count + target];
}

bool
backend_mail_push(struct io_shard *core, u32 target, struct io_mail *mail)
{
    struct ring_shard *shard = (struct ring_shard *)core;
    struct ring_mailbox *box = ring_mailbox(shard->host, core->index, target);
    u32 tail = atomic_load_explicit(&box->tail, memory_order_relaxed);
    if (tail - box->head_seen == RING_MAILBOX_SLOTS) {
        box->head_seen = atomic_load_explicit(&box->head, memory_order_acquire);
        if (tail - box->head_seen == RING_MAILBOX_SLOTS) return false;
    }
    box->slots[tail % RING_MAILBOX_SLOTS] = mail;
    atomic_store_explicit(&box->tail, tail + 1, memory_order_release);
    shard->wake_targets |= 1ull << target;
    return true;
}

static u32
ring_mails_receive(struct ring_shard *shard)
{
    u32 total = 0;
    for (u32 source = 0; source < shard->core.count; source++) {
        if (source == shard->core.index) continue;
        struct ring_mailbox *box = ring_mailbox(shard->host, source, shard->core.index);
        u32 head = atomic_load_explicit(&box->head, memory_order_relaxed);
        u32 tail = atomic_load_explicit(&box->tail, memory_order_acquire);
        for (; head != tail; head++) {
            struct io_mail *mail = box->slots[head % RING_MAILBOX_SLOTS];
            /* The place is free before the delivery, which may make the sender send again. */
            atomic_store_explicit(&box->head, head + 1, memory_order_release);
            core_deliver(&shard->core, mail);
            total++;
        }
    }
    return total;
}

static bool
ring_mails_waiting(struct ring_shard *shard)
{
    for (u32 source = 0; source < shard->core.count; source++) {
        if (source == shard->core.index) continue;
        struct ring_mailbox *box = ring_mailbox(shard->host, source, shard->core.index);
        if (atomic_load_explicit(&box->tail, memory_order_acquire) !=
            atomic_load_explicit(&box->head, memory_order_relaxed))
            return true;
    }
    return false;
}

/* ---- idling ---- */

/* Something that only a turn can handle. */
static bool
ring_has_work(struct ring_shard *shard)
{
    if (core_has_work(&shard->core) || shard->core.outbox_mails > 0) return true;
    if (io_uring_cq_ready(&shard->uring) > 0 || ring_kernel_has_more(shard)) return true;
    if (io_uring_sq_ready(&shard->uring) > 0) return true;
    if (atomic_load_explicit(&shard->host_calls_pending, memory_order_relaxed) > 0) return true;
    if (atomic_load_explicit(&shard->host->stop, memory_order_relaxed) && !shard->core.stopping)
        return true;
    return ring_mails_waiting(shard);
}

static inline void
ring_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static void
ring_sleep(struct ring_shard *shard, u64 duration_ns)
{
    struct __kernel_timespec timeout = {.tv_sec = (i64)(duration_ns / NS_PER_S),
                                        .tv_nsec = (i64)(duration_ns % NS_PER_S)};
    struct io_uring_getevents_arg arg = {.sigmask_sz = _NSIG / 8, .ts = (u64)(uintptr_t)&timeout};
    u32 flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    if (shard->ring_fd_registered) flags |= IORING_ENTER_REGISTERED_RING;
    if (shard->no_iowait) flags |= IORING_ENTER_NO_IOWAIT;
    shard->core.stats.ring_enters++;
    shard->core.stats.idle_sleeps++;
    int result = io_uring_enter2((u32)shard->uring.enter_ring_fd, 0, 1, flags, (sigset_t *)&arg,
                                 sizeof(arg));
    if (result < 0 && result != -ETIME && result != -EINTR && result != -EBUSY && result != -EAGAIN)
        ring_enter_failed("waiting", -result);
}

/* For as long as polling is allowed. True: something has come, or a timer is due. */
static bool
ring_poll(struct ring_shard *shard, u64 *now_ns, u64 deadline_ns)
{
    u64 until_ns = *now_ns + shard->host->spin_ns;
    while (*now_ns < until_ns) {
        if (ring_has_work(shard) || *now_ns >= deadline_ns) return true;
        for (int i = 0; i < 8; i++)
            ring_pause();
        *now_ns = ring_clock_ns();
    }
    return false;
}

static void
ring_idle(struct ring_shard *shard)
{
    atomic_store_explicit(&shard->turn_started_ns, 0, memory_order_relaxed);
    u64 deadline_ns = core_next_deadline_ns(&shard->core);
    u64 now_ns = ring_clock_ns();
    if (shard->host->spin_ns > 0 && ring_spin_wanted(&shard->spin)) {
        bool found = ring_poll(shard, &now_ns, deadline_ns);
        ring_spin_note(&shard->spin, found);
        if (found) return;
    }
    if (deadline_ns <= now_ns) return;

    atomic_store_explicit(&shard->asleep, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst); /* asleep, before the look at the mailboxes */
    if (!ring_has_work(shard)) ring_sleep(shard, MIN(deadline_ns - now_ns, RING_IDLE_NS_MAX));
    atomic_store_explicit(&shard->asleep, 0, memory_order_relaxed);
}

/* ---- the end ---- */

/* All shards have finished and no mail is under way: every flag is set, and what was sent equals
 * what arrived, twice in a row (after Mattern's four counters, 1987). A shard that has finished
 * goes on turning until then, because others may still need it. */
static bool
ring_all_finished(struct io_node *node)
{
    u64 sums[2][2] = {{0}};
    for (int pass = 0; pass < 2; pass++) {
        for (u32 i = 0; i < node->count; i++) {
            struct ring_shard *shard = node->shards[i];
            if (!atomic_load(&shard->finished)) return false;
            sums[pass][0] += atomic_load(&shard->mails_sent);
            sums[pass][1] += atomic_load(&shard->mails_received);
        }
    }
    return sums[0][0] == sums[0][1] && sums[1][0] == sums[1][1] && sums[0][0] == sums[1][0];
}

static bool
ring_may_end(struct ring_shard *shard)
{
    struct io_node *node = shard->host;
    if (atomic_load(&node->all_finished)) return true; /* and this one was among them */
    bool finished = core_shard_finished(&shard->core) &&
                    atomic_load_explicit(&shard->host_calls_pending, memory_order_relaxed) == 0;
    if (finished && !shard->net_shut) ring_net_shut(shard);
    /* The event's request stays for ever. */
    finished = finished && !core_has_work(&shard->core) && shard->requests_active == 1 &&
               shard->disk_queued == 0 && list_empty(&shard->net.conns);
    if (!finished) {
        atomic_store(&shard->finished, false);
        return false;
    }
    atomic_store(&shard->mails_sent, shard->core.stats.mails_sent);
    atomic_store(&shard->mails_received, shard->core.stats.mails_received);
    atomic_store(&shard->finished, true);
    /* Under the mutex, so that a host call cannot give a finished shard work meanwhile. */
    pthread_mutex_lock(&node->mutex);
    bool all = ring_all_finished(node);
    if (all) atomic_store(&node->all_finished, true);
    pthread_mutex_unlock(&node->mutex);
    if (!all) return false;
    for (u32 i = 0; i < node->count; i++)
        if (i != shard->core.index) ring_kick(node->shards[i]);
    return true;
}

/* ---- the turn ---- */

/* What was freed may stay while the budget has room for as much: a quick look, and a turn's
 * requests are small against it. */
static void
ring_watch_memory(const struct io_shard *core)
{
    u64 room = budget_available(&core->budget);
    mem_keep_freed(room >= MAX(FREED_KEPT_MIN, core->budget.limit_bytes / FREED_KEPT_SHARE));
}

static void
ring_turn_end(struct ring_shard *shard, bool busy)
{
    u64 elapsed_ns = ring_clock_ns() - shard->core.turn_start_ns;
    struct io_stats *stats = &shard->core.stats;
    if (busy) stats->busy_ns += elapsed_ns;
    if (elapsed_ns > stats->turn_ns_max) stats->turn_ns_max = elapsed_ns;
    if (shard->host->stall_ns > 0 && elapsed_ns > shard->host->stall_ns) stats->stalls++;
}

void
ring_run(struct ring_shard *shard)
{
    struct io_shard *core = &shard->core;
    for (;;) {
        u64 now_ns = ring_clock_ns();
        core_turn_begin(core, now_ns, ring_wall_ms());
        ring_watch_memory(core);
        atomic_store_explicit(&shard->heartbeat_ns, now_ns, memory_order_relaxed);
        atomic_store_explicit(&shard->turn_started_ns, now_ns, memory_order_relaxed);
        if (atomic_load_explicit(&shard->host->stop, memory_order_acquire) && !core->stopping)
            core_stop_seen(core);

        u32 done = ring_mails_receive(shard);
        done += ring_host_calls_run(shard);
        done += core_run_timers(core);
        done += ring_reap(shard);
        done += core_run_mails(core);
        done += core_run_tasks(core);
        done += core_run_answers(core);
        ring_file_dispatch(shard);
        /* The kernel hands reads on when it has looked at all that is submitted with them: not
         * behind replies, each of which takes longer than a read. */
        if (io_uring_sq_ready(&shard->uring) >= SQES_AT_ONCE) ring_submit_early(shard);
        ring_net_flush(shard);
        if (core_background_is_due(core)) {
            ring_wake_targets(shard);
            ring_submit_early(shard); /* no answer waits for it */
            done += core_run_background(core);
            ring_file_dispatch(shard);
            ring_net_flush(shard);
        }
        ring_wake_targets(shard);
        if (io_uring_sq_ready(&shard->uring) > 0 || ring_kernel_has_more(shard)) ring_submit(shard);
        ring_turn_end(shard, done > 0);

        if (core->main_done && ring_may_end(shard)) break;
        if (!ring_has_work(shard)) ring_idle(shard);
    }
    mem_keep_freed(true);
    atomic_store_explicit(&shard->turn_started_ns, 0, memory_order_relaxed);
}

/* ---- birth ---- */

status
ring_init(struct ring_shard *shard)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL |
                 IORING_SETUP_CQSIZE,
        .cq_entries = RING_CQ_ENTRIES,
    };
    int result = io_uring_queue_init_params(RING_SQ_ENTRIES, &shard->uring, &params);
    if (result < 0) {
        MARK("io.ring_loop.not_set_up");
        log_error("io", "io_uring cannot be set up%s error=%s",
                  result == -ENOMEM
                      ? ": raise the limit of locked memory (LimitMEMLOCK=, ulimit -l)"
                      : " (Linux 6.1 or newer, and kernel.io_uring_disabled=0)",
                  strerror(-result));
        return ST_UNSUPPORTED;
    }
    shard->uring_open = true;
    shard->no_iowait = (params.features & IORING_FEAT_NO_IOWAIT) != 0;
    shard->ring_fd_registered = io_uring_register_ring_fd(&shard->uring) == 1;
    u32 workers[2] = {RING_IOWQ_WORKERS, RING_IOWQ_WORKERS};
    result = io_uring_register_iowq_max_workers(&shard->uring, workers);
    if (result < 0) MARK("io.ring_loop.workers_not_capped");
    if (result < 0) log_warning("io", "io-wq workers not capped error=%s", strerror(-result));
    ring_slots_init(shard);

    ring_spin_init(&shard->spin);
    shard->event_req.complete = ring_event_complete;
    ring_event_arm(shard);
    ring_file_init(shard);
    return ring_net_init(shard);
}

void
ring_deinit(struct ring_shard *shard)
{
    if (!shard->uring_open) return;
    ring_file_deinit(shard);
    io_uring_queue_exit(&shard->uring);
    ring_net_deinit(shard);
    mem_free(&shard->core.budget, shard->file_slots, shard->file_slot_count / 8);
    shard->uring_open = false;
}

/* ---- what core.h asks of a backend ---- */

u64
backend_clock_ns(struct io_shard *core)
{
    return ring_clock_ns();
}

bool
backend_slice_over(struct io_shard *core)
{
    u64 now_ns = ring_clock_ns();
    if (now_ns >= core->slice_end_ns) return true;
    /* Bulk and background work leaves early when an answer can go on. */
    if (now_ns < core->slice_own_ns) return false;
    if (core_bulk_gives_way(core)) return true;
    struct ring_shard *shard = (struct ring_shard *)core;
    return io_uring_cq_ready(&shard->uring) > 0 || ring_kernel_has_more(shard);
}

void
backend_entropy(struct io_shard *core, void *data, size_t size)
{
    u8 *out = data;
    while (size > 0) {
        ssize_t got = getrandom(out, MIN(size, 256), 0);
        if (got < 0 && errno == EINTR) continue;
        CHECK(got > 0);
        out += got;
        size -= (size_t)got;
    }
}

void
backend_stop(struct io_shard *core)
{
    io_node_stop(core->node);
}

void
backend_stats(struct io_shard *core, struct io_stats *out)
{
    struct ring_shard *shard = (struct ring_shard *)core;
    out->io_in_flight = shard->disk_in_flight;
    out->io_queued = shard->disk_queued;
    core_net_stats(&shard->net, out);
}
