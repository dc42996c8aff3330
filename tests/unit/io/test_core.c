/* SPDX-License-Identifier: MIT
 *
 * test_core.c -- fibers, queues, timers, mails, the scheduler and output, on a backend of a few
 * lines: a clock that the test moves, and a transport that holds a fixed number of mails.
 */
#include "io/core.h"
#include "io/core_output.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/mman.h>

#define TRANSPORT_ROOM 2u

static u64 clock_ns;
static bool stop_asked;
static struct io_mail *transport[TRANSPORT_ROOM];
static u32 transport_count;
static struct io_shard shards[2];

u64
backend_clock_ns(struct io_shard *shard)
{
    return clock_ns;
}

bool
backend_slice_over(struct io_shard *shard)
{
    if (clock_ns >= shard->slice_end_ns) return true;
    return clock_ns >= shard->slice_own_ns && core_bulk_gives_way(shard);
}

void
backend_entropy(struct io_shard *shard, void *data, size_t size)
{
    memset(data, 7, size);
}

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

void
backend_stop(struct io_shard *shard)
{
    stop_asked = true;
}

bool
backend_mail_push(struct io_shard *shard, u32 target, struct io_mail *mail)
{
    if (transport_count == TRANSPORT_ROOM) return false;
    transport[transport_count++] = mail;
    return true;
}

void
backend_stats(struct io_shard *shard, struct io_stats *out)
{
}

static char trace[4096];

static void
note(const char *text)
{
    size_t used = strlen(trace);
    snprintf(trace + used, sizeof(trace) - used, "%s%s", used > 0 ? " " : "", text);
}

static void
turn(struct io_shard *shard)
{
    io_current = shard;
    core_turn_begin(shard, clock_ns, 0);
    core_run_timers(shard);
    struct io_mail *arrived[TRANSPORT_ROOM];
    u32 count = 0;
    if (shard == &shards[1]) {
        count = transport_count;
        memcpy(arrived, transport, sizeof(arrived));
        transport_count = 0;
    }
    for (u32 i = 0; i < count; i++)
        core_deliver(shard, arrived[i]);
    core_run_mails(shard);
    core_run_tasks(shard);
    core_run_answers(shard);
    if (core_background_is_due(shard)) core_run_background(shard);
}

static int
setup(void **state)
{
    trace[0] = 0;
    clock_ns = NS_PER_S;
    stop_asked = false;
    transport_count = 0;
    for (u32 i = 0; i < 2; i++) {
        io_current = &shards[i];
        status st = core_shard_init(&shards[i], NULL, i, 2, MIB(64), 300, i);
        if (!ok(st)) return 1;
    }
    io_current = &shards[0];
    return 0;
}

static int
teardown(void **state)
{
    for (u32 i = 0; i < 2; i++) {
        io_current = &shards[i];
        core_shard_deinit(&shards[i], false);
        if (shards[i].budget.used_bytes != 0) return 1;
    }
    return 0;
}

static void
spawn(enum fiber_class class, void (*fn)(void *arg), const void *arg)
{
    status st = fiber_spawn(class, "test", fn, (void *)(uintptr_t)arg);
    assert_true(ok(st));
}

/* ---- fibers ---- */

static void
yields_twice(void *arg)
{
    note((const char *)arg);
    errno = ((char *)arg)[0];
    fiber_yield();
    assert_int_equal(errno, ((char *)arg)[0]);
    note((const char *)arg);
    fiber_yield();
    note((const char *)arg);
}

static void
fibers_take_turns_in_order_and_keep_errno(void **state)
{
    spawn(FIBER_FOREGROUND, yields_twice, "a");
    spawn(FIBER_FOREGROUND, yields_twice, "b");
    for (int i = 0; i < 4; i++)
        turn(&shards[0]);
    assert_string_equal(trace, "a b a b a b");
    assert_int_equal(shards[0].stats.fibers_running, 0);
    assert_int_equal(shards[0].stats.fibers_pooled, 2);
}

static void
counts(void *arg)
{
    (*(u32 *)arg)++;
}

static void
stacks_are_pooled_and_spawns_stop_at_the_limit(void **state)
{
    u32 ran = 0;
    for (u32 i = 0; i < 300; i++)
        spawn(FIBER_FOREGROUND, counts, &ran);
    status st = fiber_spawn(FIBER_FOREGROUND, "test", counts, &ran);
    assert_int_equal(st.code, SC_NO_MEMORY);
    turn(&shards[0]);
    assert_int_equal(ran, 300);
    for (u32 i = 0; i < 300; i++)
        spawn(FIBER_FOREGROUND, counts, &ran);
    turn(&shards[0]);
    assert_int_equal(ran, 600);
    assert_int_equal(shards[0].fiber_stacks_used, 300);
}

static u64
recurse(u32 depth)
{
    volatile char block[1024];
    block[0] = (char)depth;
    block[1023] = block[0];
    if (depth == 0) {
        fiber_yield();
        return 1;
    }
    return recurse(depth - 1) + (block[1023] == (char)depth ? 1 : 0);
}

static void
deep(void *arg)
{
    *(u64 *)arg = recurse(20);
}

static void
deep_stacks_survive_switches(void **state)
{
    u64 result[20] = {0};
    for (u32 i = 0; i < 20; i++)
        spawn(FIBER_FOREGROUND, deep, &result[i]);
    for (u32 i = 0; i < 3; i++)
        turn(&shards[0]);
    for (u32 i = 0; i < 20; i++)
        assert_int_equal(result[i], 21);
#if DISTKV_DCHECK
    assert_true(shards[0].stack_used_max > 20 * 1024);
#endif
    assert_true(fiber_guard_hit(&shards[0], shards[0].fiber_chunks[0] + FIBER_STACK_BYTES + 1));
    assert_false(fiber_guard_hit(&shards[0], shards[0].fiber_chunks[0] + 8192));
}

/* ---- queues ---- */

static struct fiber_queue queue;

static void
waits_with_deadline(void *arg)
{
    status st = fiber_queue_wait(&queue, clock_ns + 100);
    note(status_name(st));
}

static void
a_waiter_is_woken_or_times_out_but_never_both(void **state)
{
    fiber_queue_init(&queue);
    for (u32 i = 0; i < 3; i++)
        spawn(FIBER_FOREGROUND, waits_with_deadline, NULL);
    turn(&shards[0]);
    assert_int_equal(fiber_queue_wake_one(&queue), 1);
    clock_ns += 1000; /* the deadline passes before the woken one has run */
    turn(&shards[0]);
    assert_non_null(strstr(trace, "OK"));
    assert_int_equal(strlen(trace), strlen("OK TIMED_OUT TIMED_OUT"));
    assert_true(fiber_queue_empty(&queue));
    assert_int_equal(core_next_deadline_ns(&shards[0]), UINT64_MAX);
}

static struct fiber_semaphore semaphore;

static void
takes_permit(void *arg)
{
    fiber_semaphore_take(&semaphore);
    note((const char *)arg);
    fiber_yield();
    fiber_semaphore_give(&semaphore);
}

static void
permits_are_handed_over_in_order(void **state)
{
    fiber_semaphore_init(&semaphore, 2);
    spawn(FIBER_FOREGROUND, takes_permit, "a");
    spawn(FIBER_FOREGROUND, takes_permit, "b");
    spawn(FIBER_FOREGROUND, takes_permit, "c");
    spawn(FIBER_FOREGROUND, takes_permit, "d");
    turn(&shards[0]);
    assert_string_equal(trace, "a b");
    assert_false(fiber_semaphore_try(&semaphore));
    for (int i = 0; i < 4; i++)
        turn(&shards[0]);
    assert_string_equal(trace, "a b c d");
    assert_int_equal(semaphore.available, 2);
}

static struct fiber_mutex mutex;

static void
locks(void *arg)
{
    fiber_mutex_lock(&mutex);
    note((const char *)arg);
    fiber_sleep_ns(1000);
    note((const char *)arg);
    fiber_mutex_unlock(&mutex);
}

static void
a_mutex_is_held_across_sleeps(void **state)
{
    fiber_mutex_init(&mutex);
    spawn(FIBER_FOREGROUND, locks, "a");
    spawn(FIBER_FOREGROUND, locks, "b");
    for (int i = 0; i < 5; i++) {
        turn(&shards[0]);
        clock_ns += 1000;
    }
    assert_string_equal(trace, "a a b b");
    assert_false(mutex.locked);
}

static struct fiber_gate gate;

static void
passes_gate(void *arg)
{
    assert_true(fiber_gate_enter(&gate));
    fiber_yield();
    note("leaves");
    fiber_gate_leave(&gate);
}

static void
closes_gate(void *arg)
{
    fiber_gate_close(&gate);
    note("closed");
    assert_false(fiber_gate_enter(&gate));
}

static void
a_gate_closes_after_the_last_has_left(void **state)
{
    fiber_gate_init(&gate);
    spawn(FIBER_FOREGROUND, passes_gate, NULL);
    spawn(FIBER_FOREGROUND, closes_gate, NULL);
    for (int i = 0; i < 3; i++)
        turn(&shards[0]);
    assert_string_equal(trace, "leaves closed");
}

/* ---- scheduler ---- */

static void
burns(void *arg)
{
    for (int i = 0; i < 4; i++) {
        note((const char *)arg);
        clock_ns += CORE_QUOTA_NS;
        fiber_yield();
    }
}

static void
the_quota_ends_a_turn_but_one_fiber_always_runs(void **state)
{
    spawn(FIBER_FOREGROUND, burns, "a");
    spawn(FIBER_FOREGROUND, burns, "b");
    turn(&shards[0]);
    assert_string_equal(trace, "a");
    turn(&shards[0]);
    assert_string_equal(trace, "a b");
    for (int i = 0; i < 16; i++)
        turn(&shards[0]);
}

static u64 worked_ns[FIBER_CLASSES];

/* In small steps, as long as it may. */
static void
works(void *arg)
{
    bool *end = arg;
    while (!*end) {
        while (!fiber_should_yield()) {
            clock_ns += 10 * NS_PER_US;
            worked_ns[fiber_class_self()] += 10 * NS_PER_US;
        }
        fiber_yield();
    }
}

static void
works_in_foreground(void *arg)
{
    bool *end = arg;
    while (!*end) {
        clock_ns += 200 * NS_PER_US;
        fiber_yield();
    }
}

static void
background_gets_about_a_tenth_of_a_busy_shard(void **state)
{
    bool end = false;
    memset(worked_ns, 0, sizeof(worked_ns));
    spawn(FIBER_FOREGROUND, works_in_foreground, &end);
    spawn(FIBER_BACKGROUND, works, &end);
    u64 start = clock_ns;
    for (int i = 0; i < 2000; i++)
        turn(&shards[0]);
    u64 percent = worked_ns[FIBER_BACKGROUND] * 100 / (clock_ns - start);
    assert_in_range(percent, 8, 14);
    end = true;
    for (int i = 0; i < 50; i++)
        turn(&shards[0]);
}

static void
background_gets_as_much_as_was_asked_for(void **state)
{
    bool end = false;
    memset(worked_ns, 0, sizeof(worked_ns));
    spawn(FIBER_FOREGROUND, works_in_foreground, &end);
    spawn(FIBER_BACKGROUND, works, &end);
    u64 start = clock_ns;
    for (int i = 0; i < 2000; i++) {
        turn(&shards[0]);
        shards[0].background_share = 600;
    }
    u64 percent = worked_ns[FIBER_BACKGROUND] * 100 / (clock_ns - start);
    assert_in_range(percent, 55, 65);
    end = true;
    for (int i = 0; i < 50; i++)
        turn(&shards[0]);
}

static void
bulk_gets_about_a_quarter_and_background_a_tenth_of_a_busy_shard(void **state)
{
    bool end = false;
    memset(worked_ns, 0, sizeof(worked_ns));
    for (int i = 0; i < 4; i++) /* more than one turn can run */
        spawn(FIBER_FOREGROUND, works_in_foreground, &end);
    spawn(FIBER_BULK, works, &end);
    spawn(FIBER_BULK, works, &end);
    spawn(FIBER_BACKGROUND, works, &end);
    u64 start = clock_ns;
    for (int i = 0; i < 2000; i++)
        turn(&shards[0]);
    u64 spent = clock_ns - start;
    assert_in_range(worked_ns[FIBER_BULK] * 100 / spent, 20, 28);
    assert_in_range(worked_ns[FIBER_BACKGROUND] * 100 / spent, 8, 14);
    end = true;
    for (int i = 0; i < 50; i++)
        turn(&shards[0]);
}

static void
notes(void *arg)
{
    note((const char *)arg);
}

static void
bulk_has_what_the_foreground_leaves(void **state)
{
    bool end = false;
    memset(worked_ns, 0, sizeof(worked_ns));
    spawn(FIBER_BULK, works, &end);
    u64 start = clock_ns;
    for (int i = 0; i < 100; i++)
        turn(&shards[0]);
    assert_true(worked_ns[FIBER_BULK] * 10 > (clock_ns - start) * 9);
    /* What is ready comes first, in the very next turn. */
    spawn(FIBER_FOREGROUND, notes, "answer");
    u64 before = worked_ns[FIBER_BULK];
    turn(&shards[0]);
    assert_string_equal(trace, "answer");
    assert_true(worked_ns[FIBER_BULK] - before <= CORE_QUOTA_NS);
    end = true;
    for (int i = 0; i < 50; i++)
        turn(&shards[0]);
}

static void
tries_no_yield(void *arg)
{
    fiber_no_yield_begin();
    note("alone");
    fiber_no_yield_end();
    fiber_yield();
    note("again");
}

static void
a_scope_without_yield_ends(void **state)
{
    spawn(FIBER_FOREGROUND, tries_no_yield, NULL);
    turn(&shards[0]);
    turn(&shards[0]);
    assert_string_equal(trace, "alone again");
}

/* ---- tasks ---- */

static struct io_task task_a, task_b;

static void
runs_a(struct io_task *task)
{
    note("a");
}

static void
runs_b(struct io_task *task)
{
    note("b");
    io_task_post(&task_b); /* the next turn, not this one */
}

static void
posts_a(struct io_timer *timer)
{
    io_task_post(&task_a);
    io_task_post(&task_a);
}

static void
a_task_runs_once_after_what_posted_it(void **state)
{
    struct io_timer timer;
    io_timer_init(&timer, posts_a);
    io_task_init(&task_a, runs_a);
    io_task_init(&task_b, runs_b);
    io_timer_arm(&timer, clock_ns);
    turn(&shards[0]);
    assert_string_equal(trace, "a");
    io_task_post(&task_b);
    io_task_post(&task_a);
    assert_true(core_has_work(&shards[0]));
    turn(&shards[0]);
    assert_string_equal(trace, "a b a");
    turn(&shards[0]);
    assert_string_equal(trace, "a b a b");
    io_task_cancel(&task_b);
    io_task_cancel(&task_b);
    assert_false(core_has_work(&shards[0]));
    turn(&shards[0]);
    assert_string_equal(trace, "a b a b");
}

/* ---- timers ---- */

static struct io_timer timer_a, timer_b;

static void
fires_a(struct io_timer *timer)
{
    note("a");
    io_timer_arm(&timer_a, clock_ns); /* in the past: the next turn, not this one */
}

static void
fires_b(struct io_timer *timer)
{
    note("b");
}

static void
timers_fire_by_deadline_then_by_order_of_arming(void **state)
{
    io_timer_init(&timer_a, fires_a);
    io_timer_init(&timer_b, fires_b);
    io_timer_arm(&timer_b, clock_ns + 10);
    io_timer_arm(&timer_a, clock_ns + 10);
    turn(&shards[0]);
    assert_string_equal(trace, "");
    clock_ns += 10;
    turn(&shards[0]);
    assert_string_equal(trace, "b a");
    turn(&shards[0]);
    assert_string_equal(trace, "b a a");
    io_timer_cancel(&timer_a);
    io_timer_cancel(&timer_a);
    turn(&shards[0]);
    assert_string_equal(trace, "b a a");
}

/* ---- mails ---- */

struct letter {
    struct io_mail mail;
    const char *text;
};

static void
reads_letter(struct io_mail *mail)
{
    assert_int_equal(mail->source, 0);
    note(CONTAINER_OF(mail, struct letter, mail)->text);
}

static void
mails_wait_in_the_outbox_and_arrive_in_order(void **state)
{
    struct letter letters[5] = {
        {.text = "1"}, {.text = "2"}, {.text = "3"}, {.text = "4"}, {.text = "5"}};
    for (u32 i = 0; i < 5; i++) {
        letters[i].mail.deliver = reads_letter;
        io_mail_send(1, &letters[i].mail);
    }
    struct io_stats stats;
    io_stats_get(&stats);
    assert_int_equal(stats.mails_waiting, 3);
    for (int i = 0; i < 3; i++) {
        turn(&shards[1]);
        turn(&shards[0]);
    }
    assert_string_equal(trace, "1 2 3 4 5");
    io_stats_get(&stats);
    assert_int_equal(stats.mails_waiting, 0);
}

static void
notes_shard(void *arg)
{
    fiber_yield();
    note("called");
}

static void
calls_itself(void *arg)
{
    assert_true(ok(io_shard_call(0, FIBER_BACKGROUND, notes_shard, NULL)));
    note("returned");
}

static void
a_call_to_oneself_returns(void **state)
{
    spawn(FIBER_FOREGROUND, calls_itself, NULL);
    for (int i = 0; i < 8; i++)
        turn(&shards[0]);
    assert_string_equal(trace, "called returned");
}

/* ---- the life of a shard ---- */

static status
main_that_fails(void *arg)
{
    io_wait_stop();
    note("stopped");
    return ST_CORRUPT;
}

static void
a_failed_main_stops_the_node(void **state)
{
    assert_true(ok(core_shard_start(&shards[0], main_that_fails, NULL)));
    turn(&shards[0]);
    assert_false(core_shard_finished(&shards[0]));
    core_stop_seen(&shards[0]);
    assert_true(io_stopping());
    turn(&shards[0]);
    assert_string_equal(trace, "stopped");
    assert_true(stop_asked);
    assert_int_equal(shards[0].main_status.code, SC_CORRUPT);
    assert_true(core_shard_finished(&shards[0]));
}

static void
output_that_finds_no_memory_keeps_nothing_of_what_was_sent(void **state)
{
    struct budget budget;
    struct core_output_spares spares;
    struct core_output output;
    static const u8 bytes[3000];
    budget_init(&budget, "output", KIB(20), NULL); /* a second chunk would be its last eighth */
    core_output_spares_init(&spares);
    core_output_init(&output, &shards[0], &budget, &spares);
    assert_true(core_output_write(&output, bytes, 3000));
    assert_false(core_output_write(&output, bytes, 2000)); /* the half of it would fit */
    assert_int_equal(core_output_pending(&output), 3000);
    core_output_advance(&output, 3000);
    assert_true(list_empty(&output.chunks));
    assert_int_equal(budget.used_bytes, 0);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(fibers_take_turns_in_order_and_keep_errno),
        TEST(stacks_are_pooled_and_spawns_stop_at_the_limit),
        TEST(deep_stacks_survive_switches),
        TEST(a_waiter_is_woken_or_times_out_but_never_both),
        TEST(permits_are_handed_over_in_order),
        TEST(a_mutex_is_held_across_sleeps),
        TEST(a_gate_closes_after_the_last_has_left),
        TEST(the_quota_ends_a_turn_but_one_fiber_always_runs),
        TEST(background_gets_about_a_tenth_of_a_busy_shard),
        TEST(background_gets_as_much_as_was_asked_for),
        TEST(bulk_gets_about_a_quarter_and_background_a_tenth_of_a_busy_shard),
        TEST(bulk_has_what_the_foreground_leaves),
        TEST(a_scope_without_yield_ends),
        TEST(a_task_runs_once_after_what_posted_it),
        TEST(timers_fire_by_deadline_then_by_order_of_arming),
        TEST(mails_wait_in_the_outbox_and_arrive_in_order),
        TEST(a_call_to_oneself_returns),
        TEST(a_failed_main_stops_the_node),
        TEST(output_that_finds_no_memory_keeps_nothing_of_what_was_sent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
