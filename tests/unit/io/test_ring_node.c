/* SPDX-License-Identifier: MIT
 *
 * test_ring_node.c -- real shards: start, stop, calls from host threads, mails between threads.
 */
#include "ring_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/fiber.h"
#include "io/mailbox.h"
#include "io/timer.h"

/* ---- start and end ---- */

static _Atomic u32 mains;

static status
main_counts(void *arg)
{
    atomic_fetch_add(&mains, 1);
    EXPECT(io_shard_count() == 2);
    EXPECT(io_shard_index() < 2);
    EXPECT(io_now_ns() > 0);
    EXPECT(io_clock_ns() >= io_now_ns());
    EXPECT(io_wall_ms() > 1700000000000ull);
    u64 a = io_random(), b = io_random();
    EXPECT(a != b);
    u8 bytes[32] = {0};
    io_entropy(bytes, sizeof(bytes));
    u32 set = 0;
    for (u32 i = 0; i < 32; i++)
        set += bytes[i] != 0;
    EXPECT(set > 8);
    EXPECT(io_budget()->limit_bytes == MIB(64));
    return ST_OK;
}

static void
a_node_runs_every_main_and_ends(void **state)
{
    atomic_store(&mains, 0);
    ring_run_main(2, main_counts, NULL);
    assert_int_equal(atomic_load(&mains), 2);
}

static status
main_fails_on_one(void *arg)
{
    if (io_shard_index() == 1) return ST_CORRUPT;
    io_wait_stop();
    EXPECT(io_stopping());
    return ST_OK;
}

static void
a_failure_on_one_shard_stops_the_others_and_is_returned(void **state)
{
    struct io_node_config config = ring_config(3, main_fails_on_one, NULL);
    status st = ring_run_config(&config);
    assert_int_equal(st.code, SC_CORRUPT);
}

static status
main_waits(void *arg)
{
    io_wait_stop();
    return ST_OK;
}

static void
counts_call(void *arg)
{
    fiber_sleep_ns(NS_PER_MS);
    (*(u32 *)arg)++;
}

static void
host_threads_call_shards_until_the_node_has_ended(void **state)
{
    struct io_node_config config = ring_config(2, main_waits, NULL);
    struct io_node *node;
    assert_true(ok(io_node_start(&config, &node)));
    u32 calls = 0;
    for (u32 i = 0; i < 20; i++)
        assert_true(ok(io_node_call(node, i % 2, counts_call, &calls)));
    assert_int_equal(calls, 20);
    assert_false(io_node_ended(node));
    /* An idle shard turns at least every 500 ms; on a busy machine, in one of some looks. */
    bool turned = false;
    for (u32 i = 0; i < 10 && !turned; i++) {
        u64 before = io_node_heartbeat_ns(node, 1);
        usleep(700 * 1000);
        turned = io_node_heartbeat_ns(node, 1) > before;
    }
    assert_true(turned);
    io_node_stop(node);
    for (u32 i = 0; i < 60000 && !io_node_ended(node); i++)
        usleep(1000);
    assert_true(io_node_ended(node));
    status st = io_node_call(node, 0, counts_call, &calls);
    assert_int_equal(st.code, SC_CLOSED);
    assert_true(ok(io_node_join(node)));
}

/* ---- time ---- */

static status
main_sleeps(void *arg)
{
    u64 slept_min = UINT64_MAX; /* of some times: the machine may be busy */
    for (u32 i = 0; i < 5; i++) {
        u64 start = io_now_ns();
        fiber_sleep_ns(30 * NS_PER_MS);
        u64 slept = io_now_ns() - start;
        EXPECT(slept >= 30 * NS_PER_MS);
        slept_min = MIN(slept_min, slept);
    }
    EXPECT(slept_min < NS_PER_S);
    struct fiber_queue queue;
    fiber_queue_init(&queue);
    EXPECT(status_is(fiber_queue_wait(&queue, io_now_ns() + NS_PER_MS), ST_TIMED_OUT));
    return ST_OK;
}

static void
sleeping_takes_its_time(void **state)
{
    ring_run_main(1, main_sleeps, NULL);
}

/* ---- mails ---- */

#define PING_ROUNDS 3000u

struct ping {
    struct io_mail mail;
    u32 value;
    u32 home;
    struct fiber_queue *queue;
};

static void
ping_returned(struct io_mail *mail)
{
    struct ping *ping = CONTAINER_OF(mail, struct ping, mail);
    fiber_queue_wake_one(ping->queue);
}

static void
ping_arrived(struct io_mail *mail)
{
    struct ping *ping = CONTAINER_OF(mail, struct ping, mail);
    EXPECT(ping->home == mail->source);
    EXPECT(io_shard_index() != ping->home);
    ping->value++;
    mail->deliver = ping_returned;
    io_mail_send(mail->source, mail);
}

static status
main_pings(void *arg)
{
    struct fiber_queue queue;
    fiber_queue_init(&queue);
    u32 me = io_shard_index();
    struct ping ping = {.home = me, .queue = &queue};
    for (u32 i = 0; i < PING_ROUNDS; i++) {
        ping.mail.deliver = ping_arrived;
        io_mail_send((me + 1 + i % (io_shard_count() - 1)) % io_shard_count(), &ping.mail);
        EXPECT(ok(fiber_queue_wait(&queue, FIBER_FOREVER)));
        EXPECT(ping.value == i + 1);
        if (i % 500 == 0) fiber_sleep_ns(NS_PER_MS); /* the others fall asleep */
    }
    return ST_OK;
}

static void
mails_travel_between_threads_and_back(void **state)
{
    ring_run_main(3, main_pings, NULL);
}

static void
mails_wake_a_sleeping_shard_without_spinning(void **state)
{
    struct io_node_config config = ring_config(2, main_pings, NULL);
    config.spin_us = 0;
    assert_true(ok(ring_run_config(&config)));
}

#define FLOOD_MAILS 5000u /* more than a mailbox holds */

struct flood {
    struct io_mail mail;
    u32 number;
};

static u32 flood_seen[2];
static struct flood floods[2][FLOOD_MAILS];

static void
flood_arrived(struct io_mail *mail)
{
    struct flood *flood = CONTAINER_OF(mail, struct flood, mail);
    EXPECT(flood->number == flood_seen[io_shard_index()]);
    flood_seen[io_shard_index()]++;
}

static status
main_floods(void *arg)
{
    u32 me = io_shard_index();
    for (u32 i = 0; i < FLOOD_MAILS; i++) {
        floods[me][i].number = i;
        floods[me][i].mail.deliver = flood_arrived;
        io_mail_send(1 - me, &floods[me][i].mail);
    }
    return ST_OK; /* the shards end only when all have arrived */
}

static void
a_full_mailbox_keeps_everything_in_order(void **state)
{
    memset(flood_seen, 0, sizeof(flood_seen));
    ring_run_main(2, main_floods, NULL);
    assert_int_equal(flood_seen[0], FLOOD_MAILS);
    assert_int_equal(flood_seen[1], FLOOD_MAILS);
}

static void
remembers_shard(void *arg)
{
    fiber_yield();
    *(u32 *)arg = io_shard_index();
}

static status
main_calls(void *arg)
{
    for (u32 i = 0; i < 200; i++) {
        u32 target = i % io_shard_count();
        u32 seen = 99;
        EXPECT(ok(io_shard_call(target, FIBER_BACKGROUND, remembers_shard, &seen)));
        EXPECT(seen == target);
    }
    return ST_OK;
}

static void
shards_call_each_other(void **state)
{
    ring_run_main(3, main_calls, NULL);
}

/* ---- stalls ---- */

static status
main_stalls(void *arg)
{
    u64 start = io_clock_ns();
    while (io_clock_ns() - start < 120 * NS_PER_MS)
        continue;
    fiber_yield();
    struct io_stats stats;
    io_stats_get(&stats);
    EXPECT(stats.stalls >= 1);
    EXPECT(stats.turn_ns_max >= 100 * NS_PER_MS);
    return ST_OK;
}

static void
a_long_turn_is_counted_and_reported(void **state)
{
    struct io_node_config config = ring_config(1, main_stalls, NULL);
    config.stall_ms = 25;
    assert_true(ok(ring_run_config(&config)));
}

/* ---- overflow ---- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static volatile u64 depth_max = UINT64_MAX; /* as good as none */

static u64
recurses_for_ever(u64 depth)
{
    volatile u8 block[512];
    block[depth % 512] = (u8)depth;
    return depth == depth_max ? 0 : recurses_for_ever(depth + 1) + block[0];
}

static status
main_overflows(void *arg)
{
    fiber_yield();
    return recurses_for_ever(0) == 1 ? ST_OK : ST_CORRUPT;
}

static char overflow_text[8192];
static int overflow_end;

/* Before cmocka begins, which catches SIGSEGV itself. */
static void
overflow_in_child(void)
{
    int ends[2];
    if (SANITIZED || pipe(ends) != 0) return; /* a sanitizer's own handler answers */
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0};
        setrlimit(RLIMIT_CORE, &none);
        dup2(ends[1], STDERR_FILENO);
        struct io_node_config config = ring_config(1, main_overflows, NULL);
        struct io_node *node;
        if (ok(io_node_start(&config, &node))) (void)io_node_join(node);
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    ssize_t got;
    while ((got = read(ends[0], overflow_text + used, sizeof(overflow_text) - 1 - used)) > 0)
        used += (size_t)got;
    close(ends[0]);
    waitpid(child, &overflow_end, 0);
}

static void
an_overflowing_fiber_says_so_before_it_dies(void **state)
{
    if (SANITIZED) skip();
    assert_true(WIFSIGNALED(overflow_end));
    assert_int_equal(WTERMSIG(overflow_end), SIGSEGV);
    assert_non_null(strstr(overflow_text, "fiber stack overflow in fiber main"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_node_runs_every_main_and_ends),
        cmocka_unit_test(a_failure_on_one_shard_stops_the_others_and_is_returned),
        cmocka_unit_test(host_threads_call_shards_until_the_node_has_ended),
        cmocka_unit_test(sleeping_takes_its_time),
        cmocka_unit_test(mails_travel_between_threads_and_back),
        cmocka_unit_test(mails_wake_a_sleeping_shard_without_spinning),
        cmocka_unit_test(a_full_mailbox_keeps_everything_in_order),
        cmocka_unit_test(shards_call_each_other),
        cmocka_unit_test(a_long_turn_is_counted_and_reported),
        cmocka_unit_test(an_overflowing_fiber_says_so_before_it_dies),
    };
    overflow_in_child();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
