/* SPDX-License-Identifier: MIT
 *
 * test_sim_net.c -- the contracts of net.h and mailbox.h on the simulated link: order,
 * back-pressure, hints, holds, ends, cuts, and machines that lose power.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../fewer.h"
#include "base/mem.h"
#include "io/fiber.h"
#include "io/mailbox.h"
#include "io/net.h"
#include "io/sim_internal.h"

#define PORT 7000

/* ---- a server that echoes, and a client that counts ---- */

struct world {
    u64 bytes_wanted; /* what the client sends */
    u64 bytes_back;
    u64 mismatches;
    u32 opened, closed;
    status closed_why;
    u32 drained;
    bool pauses;      /* the client pauses and resumes */
    bool server_gone; /* the server closes after the first bytes */
    struct prng prng;
    struct fiber_queue queue;
    struct io_conn *client;
    u64 sent;
    status result;
    u64 frame_bytes, frames_whole, frames_short;
    u64 released;
    u64 largest_piece;
    u32 server_opened, server_closed;
    u32 ended;
    u64 connect_ns; /* how long to try; 0: a second */
    bool idle;      /* the client sends nothing after its first bytes, and waits */
};

static u8
pattern(u64 position)
{
    return (u8)((position * 2654435761u) >> 24);
}

static status
server_opened(struct io_conn *conn, void *arg)
{
    struct world *world = arg;
    io_conn_user_set(conn, world);
    world->server_opened++;
    return ST_OK;
}

static size_t
server_received(struct io_conn *conn, struct bytes data)
{
    struct world *world = io_conn_user(conn);
    if (world->server_gone) {
        io_conn_close(conn, IO_CLOSE_ABORT);
        return data.size;
    }
    /* Consumes a part now and then, and asks for the rest in the next turn. */
    size_t size = data.size;
    if (size > 1 && prng_chance(&world->prng, 1, 3)) {
        size = (size_t)prng_range(&world->prng, 0, size - 1);
        io_conn_again(conn);
    }
    if (size > 0 && !io_conn_write(conn, data.data, size)) io_conn_close(conn, IO_CLOSE_ABORT);
    return size;
}

static void
no_drained(struct io_conn *conn)
{
    (void)conn;
}

static void
server_closed(struct io_conn *conn, status why)
{
    (void)why;
    struct world *world = io_conn_user(conn);
    world->server_closed++;
}

static const struct io_conn_events server_events = {
    .opened = server_opened,
    .received = server_received,
    .drained = no_drained,
    .closed = server_closed,
};

static status
client_opened(struct io_conn *conn, void *arg)
{
    struct world *world = arg;
    io_conn_user_set(conn, world);
    world->client = conn;
    world->opened++;
    return ST_OK;
}

static size_t
client_received(struct io_conn *conn, struct bytes data)
{
    struct world *world = io_conn_user(conn);
    for (size_t i = 0; i < data.size; i++)
        world->mismatches += data.data[i] != pattern(world->bytes_back + i);
    world->bytes_back += data.size;
    world->largest_piece = MAX(world->largest_piece, data.size);
    if (world->pauses && prng_chance(&world->prng, 1, 4)) {
        io_conn_pause(conn);
        io_conn_resume(conn);
    }
    fiber_queue_wake_all(&world->queue);
    return data.size;
}

static void
client_drained(struct io_conn *conn)
{
    struct world *world = io_conn_user(conn);
    world->drained++;
    fiber_queue_wake_all(&world->queue);
}

static void
client_closed(struct io_conn *conn, status why)
{
    struct world *world = io_conn_user(conn);
    world->client = NULL;
    world->closed++;
    world->closed_why = why;
    fiber_queue_wake_all(&world->queue);
}

static const struct io_conn_events client_events = {
    .opened = client_opened,
    .received = client_received,
    .drained = client_drained,
    .closed = client_closed,
};

static MAY_YIELD void
client_send(struct world *world)
{
    u8 part[512];
    while (world->client != NULL && world->sent < world->bytes_wanted) {
        u64 size = prng_range(&world->prng, 1, sizeof(part));
        size = MIN(size, world->bytes_wanted - world->sent);
        for (u64 i = 0; i < size; i++)
            part[i] = pattern(world->sent + i);
        if (!io_conn_write(world->client, part, size)) return;
        world->sent += size;
        if (io_conn_pending(world->client) > CONN_OUTPUT_HIGH_BYTES)
            (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
    }
}

static status
echo_main(void *arg)
{
    struct world *world = arg;
    struct io_listener *listener;
    status st = io_listen("0.0.0.0", PORT, &server_events, world, &listener);
    if (!ok(st)) return st;
    if (io_shard_index() != 0) {
        io_wait_stop();
        io_listener_close(listener);
        return ST_OK;
    }
    fiber_queue_init(&world->queue);
    st = io_connect("127.0.0.1", PORT, &client_events, world, FIBER_FOREVER, &world->client);
    if (ok(st)) {
        client_send(world);
        while (world->client != NULL && world->bytes_back < world->bytes_wanted)
            (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
        if (world->client != NULL) io_conn_close(world->client, IO_CLOSE_FLUSH);
        while (world->closed == 0)
            (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
    }
    world->result = st;
    io_listener_close(listener);
    return ST_OK;
}

static u64
echo_run(struct world *world, u64 seed, u32 shard_count)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    prng_init(&world->prng, seed);
    options.net.pipe_bytes = (u32)prng_range(&world->prng, 1000, 100000);
    struct sim *sim = sim_new(&options);
    assert_int_equal(sim_run(sim, shard_count, echo_main, world).code, SC_OK);
    u64 hash = sim_trace_hash(sim);
    sim_free(sim);
    return hash;
}

static void
bytes_come_back_whole_and_in_order(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(40); seed++) {
        struct world world = {.bytes_wanted = 100000, .pauses = seed % 2 == 0};
        echo_run(&world, seed, 1 + (u32)seed % 3);
        assert_true(ok(world.result));
        assert_int_equal(world.bytes_back, world.bytes_wanted);
        assert_int_equal(world.mismatches, 0);
        assert_int_equal(world.opened, 1);
        assert_int_equal(world.closed, 1);
        assert_true(ok(world.closed_why));
    }
}

static void
a_full_output_says_when_it_has_drained(void **state)
{
    (void)state;
    struct world world = {.bytes_wanted = 2000000};
    echo_run(&world, 5, 1);
    assert_true(world.drained > 0);
    assert_int_equal(world.bytes_back, world.bytes_wanted);
}

static void
a_peer_that_aborts_ends_in_order_or_by_a_reset(void **state)
{
    (void)state;
    u32 ended = 0, reset = 0; /* as Linux: a reset when bytes were unread */
    for (u64 seed = 1; seed <= 60; seed++) {
        struct world world = {.bytes_wanted = 5000, .server_gone = true};
        echo_run(&world, seed, 1);
        assert_int_equal(world.closed, 1);
        ended += ok(world.closed_why);
        reset += status_is(world.closed_why, ST_CLOSED);
    }
    assert_true(ended > 0 && reset > 0 && ended + reset == 60);
}

static void
single_bytes_make_the_same_stream(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 3);
    options.net.single_bytes = true;
    struct world world = {.bytes_wanted = 5000};
    prng_init(&world.prng, 3);
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, echo_main, &world)));
    sim_free(sim);
    assert_int_equal(world.bytes_back, world.bytes_wanted);
    assert_int_equal(world.mismatches, 0);
    assert_int_equal(world.largest_piece, 1);
}

static void
the_same_seed_gives_the_same_trace(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct world first = {.bytes_wanted = 20000}, second = {.bytes_wanted = 20000};
        assert_true(echo_run(&first, seed, 3) == echo_run(&second, seed, 3));
    }
}

static status
refused_main(void *arg)
{
    struct world *world = arg;
    fiber_queue_init(&world->queue);
    struct io_conn *conn;
    world->result = io_connect("127.0.0.1", PORT, &client_events, world, FIBER_FOREVER, &conn);
    return ST_OK;
}

static void
a_port_without_listener_refuses(void **state)
{
    (void)state;
    struct world world = {0};
    assert_true(ok(sim_run_main(1, 1, refused_main, &world)));
    assert_true(status_is(world.result, ST_CLOSED));
    assert_int_equal(world.opened, 0);
}

/* ---- want, and held output ---- */

static size_t
frames_received(struct io_conn *conn, struct bytes data)
{
    struct world *world = io_conn_user(conn);
    if (data.size < 8) {
        io_conn_want(conn, 8);
        return 0;
    }
    u64 frame_bytes = load_u64(data.data);
    if (data.size < frame_bytes) {
        world->frames_short++;
        io_conn_want(conn, frame_bytes);
        return 0;
    }
    world->frames_whole++;
    world->bytes_back += frame_bytes;
    fiber_queue_wake_all(&world->queue);
    return frame_bytes;
}

static const struct io_conn_events frames_events = {
    .opened = server_opened,
    .received = frames_received,
    .drained = no_drained,
    .closed = server_closed,
};

static MAY_YIELD status
frames_connect(struct world *world)
{
    fiber_queue_init(&world->queue);
    struct io_listener *listener;
    status st = io_listen("127.0.0.1", PORT, &frames_events, world, &listener);
    if (!ok(st)) return st;
    return io_connect("127.0.0.1", PORT, &client_events, world, FIBER_FOREVER, &world->client);
}

static status
frames_main(void *arg)
{
    struct world *world = arg;
    status st = frames_connect(world);
    if (!ok(st)) return st;
    u8 *frame = io_conn_reserve(world->client, world->frame_bytes);
    if (frame == NULL) return ST_NO_MEMORY;
    memset(frame, 7, world->frame_bytes);
    store_u64(frame, world->frame_bytes);
    io_conn_send_until(world->client, 0);
    io_conn_commit(world->client, world->frame_bytes);
    fiber_sleep_ns(100 * NS_PER_MS);
    world->released = world->bytes_back; /* nothing yet: it is held */
    io_conn_send_until(world->client, UINT64_MAX);
    while (world->frames_whole == 0)
        (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
    io_conn_close(world->client, IO_CLOSE_ABORT);
    return ST_OK; /* the listener and the connections end with the shard */
}

static void
a_wanted_frame_is_given_whole_and_held_output_waits(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct world world = {.frame_bytes = 300000};
        assert_true(ok(sim_run_main(seed, 1, frames_main, &world)));
        assert_int_equal(world.released, 0);
        assert_int_equal(world.frames_whole, 1);
        assert_true(world.frames_short <= 1); /* then it waited for all of it */
    }
}

/* The last eighth of the memory is for small replies. */
static status
small_main(void *arg)
{
    struct world *world = arg;
    status st = frames_connect(world);
    if (!ok(st)) return st;
    struct budget *budget = world->client->output.budget;
    u64 taken = budget->limit_bytes / 16 * 15 - budget->used_bytes;
    CHECK(budget_take(budget, taken));
    CHECK(io_conn_reserve(world->client, 8192) == NULL);
    u8 *frame = io_conn_reserve(world->client, 100);
    CHECK(frame != NULL);
    memset(frame, 7, 100);
    store_u64(frame, 100);
    io_conn_commit(world->client, 100);
    while (world->frames_whole == 0)
        (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
    budget_give(budget, taken);
    CHECK(io_conn_reserve(world->client, 8192) != NULL);
    io_conn_commit(world->client, 0);
    io_conn_close(world->client, IO_CLOSE_ABORT);
    return ST_OK;
}

static void
the_last_of_the_memory_is_kept_for_small_output(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    struct world world = {0};
    assert_true(ok(sim_run(sim, 1, small_main, &world)));
    assert_int_equal(sim_mark_count(sim, "io.output.kept_for_small"), 1);
    sim_free(sim);
}

/* Of what does not fit into the last chunk nothing is written when there is no memory for the rest:
 * who tries again must not send a part of it twice. */
static status
second_main(void *arg)
{
    struct world *world = arg;
    world->frame_bytes = 7000;
    status st = frames_connect(world);
    if (!ok(st)) return st;
    u8 frame[7000];
    memset(frame, 7, sizeof(frame));
    store_u64(frame, sizeof(frame));
    io_conn_send_until(world->client, 0);
    CHECK(io_conn_write(world->client, frame, 3000));
    struct budget *budget = world->client->output.budget;
    u64 taken = budget->limit_bytes - budget->used_bytes;
    CHECK(budget_take(budget, taken));
    CHECK(!io_conn_write(world->client, frame + 3000, 4000));
    CHECK(io_conn_written(world->client) == 3000);
    budget_give(budget, taken);
    CHECK(io_conn_write(world->client, frame + 3000, 4000));
    CHECK(io_conn_written(world->client) == 7000);
    io_conn_send_until(world->client, UINT64_MAX);
    while (world->frames_whole == 0)
        (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
    io_conn_close(world->client, IO_CLOSE_ABORT);
    return ST_OK;
}

static void
what_finds_no_memory_for_its_rest_is_not_written_in_part(void **state)
{
    (void)state;
    struct world world = {0};
    assert_true(ok(sim_run_main(1, 1, second_main, &world)));
    assert_int_equal(world.frames_whole, 1);
}

/* ---- two machines ---- */

static status
server_main(void *arg)
{
    struct io_listener *listener;
    status st = io_listen("10.0.0.2", PORT, &server_events, arg, &listener);
    if (!ok(st)) return st;
    io_wait_stop();
    io_listener_close(listener);
    return ST_OK;
}

static status
remote_main(void *arg)
{
    struct world *world = arg;
    fiber_queue_init(&world->queue);
    fiber_sleep_ns(NS_PER_MS);
    u64 wait_ns = world->connect_ns != 0 ? world->connect_ns : NS_PER_S;
    status st =
        io_connect("10.0.0.2", PORT, &client_events, world, io_now_ns() + wait_ns, &world->client);
    world->result = st;
    if (!ok(st)) return ST_OK;
    if (world->idle) {
        client_send(world);
        while (world->client != NULL && !io_stopping())
            (void)!ok(fiber_queue_wait(&world->queue, io_now_ns() + NS_PER_S));
        return ST_OK;
    }
    while (world->client != NULL && world->bytes_back < world->bytes_wanted) {
        client_send(world);
        (void)!ok(fiber_queue_wait(&world->queue, io_now_ns() + 10 * NS_PER_MS));
        /* A word now and then, as a heartbeat would do: a silent peer shows only by that. */
        world->bytes_wanted += world->client != NULL && world->bytes_wanted > 50000000 ? 10 : 0;
    }
    if (world->client != NULL) io_conn_close(world->client, IO_CLOSE_FLUSH);
    while (world->closed == 0)
        (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
    return ST_OK;
}

struct pair {
    struct sim *sim;
    struct sim_node *server, *client;
};

static struct pair
pair_start_with(const struct sim_options *options, struct world *world)
{
    prng_init(&world->prng, options->seed);
    struct pair pair = {.sim = sim_new(options)};
    pair.server = sim_node_new(pair.sim, "10.0.0.2");
    pair.client = sim_node_new(pair.sim, "10.0.0.3");
    struct io_node_config config = {
        .shard_count = 2, .memory_bytes = MIB(64), .shard_main = server_main, .arg = world};
    assert_true(ok(sim_node_start(pair.server, &config)));
    config.shard_count = 1;
    config.shard_main = remote_main;
    assert_true(ok(sim_node_start(pair.client, &config)));
    return pair;
}

static struct pair
pair_start(u64 seed, struct world *world)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    return pair_start_with(&options, world);
}

static bool
client_ended(void *arg)
{
    struct pair *pair = arg;
    return !sim_node_running(pair->client);
}

static void
a_cut_link_stalls_and_heals(void **state)
{
    (void)state;
    struct world world = {.bytes_wanted = 3000000};
    struct pair pair = pair_start(1, &world);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 3 * NS_PER_MS);
    sim_link_cut(pair.sim, pair.server, pair.client);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + NS_PER_MS);
    u64 before = world.bytes_back;
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 10 * NS_PER_S);
    assert_true(world.bytes_back == before);
    assert_true(world.bytes_back < world.bytes_wanted);
    sim_link_heal(pair.sim, pair.server, pair.client);
    assert_true(sim_run_until(pair.sim, client_ended, &pair, sim_now_ns(pair.sim) + 60 * NS_PER_S));
    assert_int_equal(world.bytes_back, world.bytes_wanted);
    assert_int_equal(world.mismatches, 0);
    sim_free(pair.sim);
}

/* What the server has sent arrives no more; what the client sends still does. */
static void
a_link_may_be_cut_in_one_direction(void **state)
{
    (void)state;
    struct world world = {.bytes_wanted = 3000000};
    struct pair pair = pair_start(1, &world);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 3 * NS_PER_MS);
    sim_link_cut_one_way(pair.sim, pair.server, pair.client);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + NS_PER_MS);
    u64 back = world.bytes_back, sent = world.sent;
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 10 * NS_PER_S);
    assert_true(world.bytes_back == back && world.bytes_back < world.bytes_wanted);
    assert_true(world.sent > sent);
    sim_link_heal(pair.sim, pair.client, pair.server);
    assert_true(sim_run_until(pair.sim, client_ended, &pair, sim_now_ns(pair.sim) + 60 * NS_PER_S));
    assert_int_equal(world.bytes_back, world.bytes_wanted);
    assert_int_equal(world.mismatches, 0);
    sim_free(pair.sim);
}

static void
a_slow_link_takes_longer(void **state)
{
    (void)state;
    u64 took_ns[2];
    for (u32 slow = 0; slow < 2; slow++) {
        struct world world = {.bytes_wanted = 300000};
        struct pair pair = pair_start(1, &world);
        u64 begun_ns = sim_now_ns(pair.sim);
        if (slow == 1) sim_link_slow_set(pair.sim, pair.client, pair.server, 500 * NS_PER_MS);
        assert_true(sim_run_until(pair.sim, client_ended, &pair, begun_ns + 600 * NS_PER_S));
        assert_int_equal(world.bytes_back, world.bytes_wanted);
        took_ns[slow] = sim_now_ns(pair.sim) - begun_ns;
        sim_free(pair.sim);
    }
    assert_true(took_ns[1] > took_ns[0] + NS_PER_S);
}

static void
a_peer_without_power_is_noticed_by_who_sends_after_a_quarter_of_an_hour(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 3; seed++) {
        struct world world = {.bytes_wanted = 100000000};
        struct pair pair = pair_start(seed, &world);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 20 * NS_PER_MS);
        u64 cut_ns = sim_now_ns(pair.sim);
        sim_node_crash(pair.server);
        assert_true(sim_run_until(pair.sim, client_ended, &pair, cut_ns + 1000 * NS_PER_S));
        assert_true(sim_now_ns(pair.sim) > cut_ns + 900 * NS_PER_S);
        assert_int_equal(world.closed, 1);
        assert_true(status_is(world.closed_why, ST_TIMED_OUT));
        sim_free(pair.sim);
    }
}

static void
a_peer_whose_power_comes_back_answers_by_a_reset(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct world world = {.bytes_wanted = 100000000};
        struct pair pair = pair_start(seed, &world);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 20 * NS_PER_MS);
        sim_node_crash(pair.server);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 5 * NS_PER_S);
        assert_int_equal(world.closed, 0);
        u32 opened = world.server_opened;
        struct io_node_config config = {
            .shard_count = 1, .memory_bytes = MIB(64), .shard_main = server_main, .arg = &world};
        assert_true(ok(sim_node_start(pair.server, &config)));
        assert_true(
            sim_run_until(pair.sim, client_ended, &pair, sim_now_ns(pair.sim) + 60 * NS_PER_S));
        assert_true(status_is(world.closed_why, ST_CLOSED));
        /* The old segments met no connection of the new process. */
        assert_int_equal(world.server_opened, opened);
        sim_free(pair.sim);
    }
}

static void
who_only_listens_hears_nothing_of_a_power_cut(void **state)
{
    (void)state;
    struct world world = {.bytes_wanted = 1000, .idle = true};
    struct pair pair = pair_start(1, &world);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + NS_PER_S);
    assert_int_equal(world.bytes_back, 1000);
    sim_node_crash(pair.server);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 3 * 3600 * NS_PER_S);
    assert_int_equal(world.closed, 0);
    sim_free(pair.sim);
}

static void
a_killed_peer_is_noticed_at_once(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        struct world world = {.bytes_wanted = 1000, .idle = true};
        struct pair pair = pair_start(seed, &world);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + NS_PER_S);
        sim_crash_keeps_all_set(pair.sim, true);
        sim_node_crash(pair.server);
        assert_true(sim_run_until(pair.sim, client_ended, &pair, sim_now_ns(pair.sim) + NS_PER_S));
        assert_int_equal(world.closed, 1);
        sim_free(pair.sim);
    }
}

/* ---- breaks by chance ---- */

/* A client that runs against chances; returns how often the fault came. */
static u64
chance_run(struct world *world, u64 seed, enum sim_fault family, struct sim_net_options net)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    options.net = net;
    prng_init(&world->prng, seed);
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, echo_main, world)));
    u64 count = sim_fault_count(sim, family);
    sim_free(sim);
    return count;
}

static void
connections_are_reset_by_chance_and_both_ends_learn_of_it(void **state)
{
    (void)state;
    u32 broken = 0;
    for (u64 seed = 1; seed <= 40; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.net.reset_ppm = 100000;
        struct world world = {.bytes_wanted = 200000};
        u64 count = chance_run(&world, seed, SIM_FAULT_NET_RESET, options.net);
        assert_true(ok(world.result));
        assert_int_equal(world.server_closed, 1);
        if (count == 0) continue;
        broken++;
        assert_true(status_is(world.closed_why, ST_CLOSED));
    }
    assert_true(broken > 10);
}

static void
connects_are_refused_by_chance(void **state)
{
    (void)state;
    u32 refused = 0;
    for (u64 seed = 1; seed <= 40; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.net.refuse_ppm = 300000;
        struct world world = {.bytes_wanted = 10};
        u64 count = chance_run(&world, seed, SIM_FAULT_NET_REFUSE, options.net);
        assert_int_equal(count, status_is(world.result, ST_CLOSED));
        refused += count > 0;
    }
    assert_in_range(refused, 5, 25);
}

static void
a_half_open_connection_has_one_end_that_does_not_know(void **state)
{
    (void)state;
    u32 client_knows = 0, server_knows = 0;
    for (u64 seed = 1; seed <= 60; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.net.half_open_ppm = 1000000;
        struct world world = {.bytes_wanted = 1000, .idle = true};
        struct pair pair = pair_start_with(&options, &world);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 100 * NS_PER_MS);
        assert_true(sim_fault_count(pair.sim, SIM_FAULT_NET_HALF_OPEN) > 0);
        client_knows += world.closed > 0 && world.server_closed == 0;
        server_knows += world.closed == 0 && world.server_closed > 0;
        sim_free(pair.sim);
    }
    assert_true(client_knows > 5 && server_knows > 5);
}

static void
a_stalled_direction_delivers_nothing_and_then_everything(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    options.net.stall_ppm = 100000;
    options.net.stall_ns_max = 10 * NS_PER_S;
    struct world world = {.bytes_wanted = 3000000};
    struct pair pair = pair_start_with(&options, &world);
    assert_true(sim_run_until(pair.sim, client_ended, &pair, 3600 * NS_PER_S));
    assert_int_equal(world.bytes_back, world.bytes_wanted);
    assert_int_equal(world.mismatches, 0);
    u64 stalls = sim_fault_count(pair.sim, SIM_FAULT_NET_STALL);
    assert_true(stalls > 3);
    assert_true(sim_now_ns(pair.sim) > stalls * NS_PER_S); /* 5 s each in the mean */
    sim_free(pair.sim);
}

static void
a_connect_to_a_machine_without_power_waits_and_then_finds_it_or_gives_up(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 3; seed++) {
        struct world world = {.bytes_wanted = 1000, .connect_ns = 200 * NS_PER_S};
        struct pair pair = pair_start(seed, &world);
        sim_node_crash(pair.server);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 10 * NS_PER_S);
        assert_int_equal(world.opened, 0);
        bool back = seed > 1;
        if (back) {
            struct io_node_config config = {.shard_count = 1,
                                            .memory_bytes = MIB(64),
                                            .shard_main = server_main,
                                            .arg = &world};
            assert_true(ok(sim_node_start(pair.server, &config)));
        }
        assert_true(
            sim_run_until(pair.sim, client_ended, &pair, sim_now_ns(pair.sim) + 200 * NS_PER_S));
        if (back) {
            assert_int_equal(world.bytes_back, 1000);
        } else {
            assert_true(status_is(world.result, ST_TIMED_OUT));
            assert_in_range(sim_now_ns(pair.sim), 127 * NS_PER_S, 129 * NS_PER_S);
        }
        sim_free(pair.sim);
    }
}

static void
the_end_of_faults_heals_links_and_ends_stalls(void **state)
{
    (void)state;
    struct world world = {.bytes_wanted = 3000000};
    struct pair pair = pair_start(1, &world);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 3 * NS_PER_MS);
    sim_link_cut(pair.sim, pair.server, pair.client);
    sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 600 * NS_PER_S);
    assert_true(world.bytes_back < world.bytes_wanted);
    sim_faults_end(pair.sim); /* at once, not when TCP tries again */
    assert_true(sim_run_until(pair.sim, client_ended, &pair, sim_now_ns(pair.sim) + 2 * NS_PER_S));
    assert_int_equal(world.bytes_back, world.bytes_wanted);
    sim_free(pair.sim);
}

/* ---- a client that only stops sending ---- */

static void
late_ended(struct io_conn *conn)
{
    struct world *world = io_conn_user(conn);
    world->ended++;
    if (!io_conn_write(conn, "last words", 10)) io_conn_close(conn, IO_CLOSE_ABORT);
    io_conn_close(conn, IO_CLOSE_FLUSH);
}

static const struct io_conn_events late_events = {
    .opened = server_opened,
    .received = server_received,
    .drained = no_drained,
    .ended = late_ended,
    .closed = server_closed,
};

static status
half_close_main(void *arg)
{
    struct world *world = arg;
    fiber_queue_init(&world->queue);
    struct io_listener *listener;
    status st = io_listen("127.0.0.1", PORT, &late_events, world, &listener);
    if (!ok(st)) return st;
    st = io_connect("127.0.0.1", PORT, &client_events, world, FIBER_FOREVER, &world->client);
    if (!ok(st)) return st;
    client_send(world);
    if (world->client != NULL) sim_conn_shut_send(world->client);
    while (world->closed == 0)
        (void)!ok(fiber_queue_wait(&world->queue, FIBER_FOREVER));
    io_listener_close(listener);
    return ST_OK;
}

static void
a_client_that_stops_sending_still_gets_every_reply(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 30; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        struct world world = {.bytes_wanted = seed * 3000};
        prng_init(&world.prng, seed);
        struct sim *sim = sim_new(&options);
        assert_true(ok(sim_run(sim, 1, half_close_main, &world)));
        sim_free(sim);
        assert_int_equal(world.ended, 1);
        assert_int_equal(world.bytes_back, world.bytes_wanted + 10);
        assert_int_equal(world.mismatches > 0, 1); /* the last words are no echo */
        assert_true(ok(world.closed_why));
    }
}

static void
a_machine_may_lose_power_in_the_middle_of_its_connections(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 50; seed++) {
        struct world world = {.bytes_wanted = 100000000};
        struct pair pair = pair_start(seed, &world);
        u64 after_ns = prng_below(&world.prng, 5 * NS_PER_MS);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + after_ns);
        sim_node_crash(pair.client);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + NS_PER_S);
        sim_node_stop(pair.server);
        sim_run_until_ns(pair.sim, sim_now_ns(pair.sim) + 10 * NS_PER_S);
        assert_false(sim_node_running(pair.server));
        sim_free(pair.sim);
    }
}

static struct sim_node *
event_owner(const struct sim_event *event)
{
    return event->shard != NULL ? event->shard->node : event->to;
}

/* The server crashes at its n-th event, and at no other one: that is counted here again. false: it
 * has not so many. */
static bool
crash_at_event(u64 n, bool power, u32 *deliveries, u32 *kinds)
{
    struct sim_options options;
    sim_options_default(&options, 1);
    options.net.pipe_bytes = 4096; /* so that much is sent in many pieces */
    struct world world = {.bytes_wanted = 100000};
    struct pair pair = pair_start_with(&options, &world);
    sim_crash_keeps_all_set(pair.sim, !power);
    sim_node_crash_at(pair.server, SIM_POINT_EVENT, n);
    u64 seen = 0;
    bool crashed = false;
    while (!crashed && sim_node_running(pair.client)) {
        const struct sim_event *event =
            CONTAINER_OF(heap_first(&pair.sim->events), struct sim_event, node);
        bool own = event_owner(event) == pair.server;
        bool delivery = own && event->shard == NULL;
        enum sim_kind kind = event->kind;
        assert_true(sim_step(pair.sim));
        crashed = own && seen++ == n;
        assert_int_equal(sim_crashed(pair.sim), crashed);
        assert_int_equal(sim_node_running(pair.server), !crashed);
        if (!crashed) continue;
        kinds[kind]++;
        *deliveries += delivery;
        assert_true(status_is(sim_node_result(pair.server), ST_CANCELED));
    }
    /* Who is left hears of a process that ended, whatever was under way: no event was lost. */
    if (!power)
        assert_true(sim_run_until(pair.sim, client_ended, &pair, sim_now_ns(pair.sim) + NS_PER_S));
    sim_free(pair.sim);
    return crashed;
}

static void
a_node_crashes_at_each_of_its_events_and_no_other_node_does(void **state)
{
    (void)state;
    for (u32 power = 0; power <= 1; power++) {
        u32 deliveries = 0, kinds[SIM_KIND_FAULT + 1] = {0};
        u64 n = 0;
        while (crash_at_event(n, power, &deliveries, kinds))
            n++;
        assert_true(n > 20);
        assert_true(kinds[SIM_KIND_TURN] > 5 && deliveries > 5);
    }
}

/* ---- mails ---- */

#define MAIL_COUNT 2000u

struct post {
    struct io_mail mail;
    u64 number;
};

struct mail_world {
    struct post posts[MAIL_COUNT];
    u64 next; /* expected by shard 1 */
    u64 disorder;
    u64 returned;
    struct fiber_queue queue;
};

static struct mail_world *mails; /* of the running test */

static void
mail_returned(struct io_mail *mail)
{
    (void)mail;
    mails->returned++;
    fiber_queue_wake_all(&mails->queue);
}

static void
mail_delivered(struct io_mail *mail)
{
    struct post *post = CONTAINER_OF(mail, struct post, mail);
    mails->disorder += post->number != mails->next;
    mails->next = post->number + 1;
    mail->deliver = mail_returned;
    io_mail_send(mail->source, mail);
}

static status
mail_main(void *arg)
{
    (void)arg;
    if (io_shard_index() != 0) {
        io_wait_stop();
        return ST_OK;
    }
    fiber_queue_init(&mails->queue);
    for (u64 i = 0; i < MAIL_COUNT; i++) {
        mails->posts[i].number = i;
        mails->posts[i].mail.deliver = mail_delivered;
        list_init(&mails->posts[i].mail.link);
        io_mail_send(1, &mails->posts[i].mail);
        if (i % 100 == 99) fiber_yield();
    }
    while (mails->returned < MAIL_COUNT)
        (void)!ok(fiber_queue_wait(&mails->queue, FIBER_FOREVER));
    return ST_OK;
}

static void
mails_arrive_in_order_and_none_is_lost(void **state)
{
    (void)state;
    static struct mail_world world;
    for (u64 seed = 1; seed <= 10; seed++) {
        memset(&world, 0, sizeof(world));
        mails = &world;
        assert_true(ok(sim_run_main(seed, 2, mail_main, NULL)));
        assert_int_equal(world.returned, MAIL_COUNT);
        assert_int_equal(world.disorder, 0);
    }
}

static void
mails_that_wait_behind_a_full_way_keep_their_order(void **state)
{
    (void)state;
    static struct mail_world world;
    for (u64 seed = 1; seed <= 9; seed++) {
        memset(&world, 0, sizeof(world));
        mails = &world;
        struct sim_options options;
        sim_options_default(&options, seed);
        options.mails_max = 1 + seed % 3;
        struct sim *sim = sim_new(&options);
        assert_true(ok(sim_run(sim, 2, mail_main, NULL)));
        /* What waits has met a way that was still full. */
        assert_true(sim_mark_count(sim, "io.mailbox.outbox_stays") > MAIL_COUNT / 10);
        assert_int_equal(world.returned, MAIL_COUNT);
        assert_int_equal(world.disorder, 0);
        sim_free(sim);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_back_whole_and_in_order),
        cmocka_unit_test(a_full_output_says_when_it_has_drained),
        cmocka_unit_test(a_peer_that_aborts_ends_in_order_or_by_a_reset),
        cmocka_unit_test(single_bytes_make_the_same_stream),
        cmocka_unit_test(the_same_seed_gives_the_same_trace),
        cmocka_unit_test(a_port_without_listener_refuses),
        cmocka_unit_test(a_wanted_frame_is_given_whole_and_held_output_waits),
        cmocka_unit_test(the_last_of_the_memory_is_kept_for_small_output),
        cmocka_unit_test(what_finds_no_memory_for_its_rest_is_not_written_in_part),
        cmocka_unit_test(a_cut_link_stalls_and_heals),
        cmocka_unit_test(a_link_may_be_cut_in_one_direction),
        cmocka_unit_test(a_slow_link_takes_longer),
        cmocka_unit_test(a_peer_without_power_is_noticed_by_who_sends_after_a_quarter_of_an_hour),
        cmocka_unit_test(a_peer_whose_power_comes_back_answers_by_a_reset),
        cmocka_unit_test(who_only_listens_hears_nothing_of_a_power_cut),
        cmocka_unit_test(a_killed_peer_is_noticed_at_once),
        cmocka_unit_test(connections_are_reset_by_chance_and_both_ends_learn_of_it),
        cmocka_unit_test(connects_are_refused_by_chance),
        cmocka_unit_test(a_half_open_connection_has_one_end_that_does_not_know),
        cmocka_unit_test(a_stalled_direction_delivers_nothing_and_then_everything),
        cmocka_unit_test(a_connect_to_a_machine_without_power_waits_and_then_finds_it_or_gives_up),
        cmocka_unit_test(the_end_of_faults_heals_links_and_ends_stalls),
        cmocka_unit_test(a_client_that_stops_sending_still_gets_every_reply),
        cmocka_unit_test(a_machine_may_lose_power_in_the_middle_of_its_connections),
        cmocka_unit_test(a_node_crashes_at_each_of_its_events_and_no_other_node_does),
        cmocka_unit_test(mails_arrive_in_order_and_none_is_lost),
        cmocka_unit_test(mails_that_wait_behind_a_full_way_keep_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
