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

/* ---- room for large frames ---- */

#define ROOM_BYTES      450000u
#define ROOM_CONNS      3u
#define ROOM_CONNS_MANY 8u
#define FRAME_BYTES     300000u

/* Frames tell their size in two words: what the first part needs, and all. */
struct room_world {
    bool told; /* the server's end is told of crowds */
    bool first_class;
    bool tail;  /* the first frame comes whole, and with its end the begin of another */
    bool many;  /* ROOM_CONNS_MANY clients, not ROOM_CONNS */
    bool small; /* the frame of the last one, so that it would fit beside any other */
    struct io_conn *clients[ROOM_CONNS_MANY];
    struct budget *budget;
    u64 taken;
    /* in the order in which they happened, by the number that a frame ends with */
    u8 whole[ROOM_CONNS];
    u32 whole_count;
    u32 waits, holds_up, gives_up;
    u32 closed, no_memory, timed_out; /* of the server's ends */
    u64 waiting;
    u64 at_ns; /* of the first of these */
};

static size_t
room_received(struct io_conn *conn, struct bytes data)
{
    struct room_world *room = io_conn_user(conn);
    size_t done = 0;
    while (done < data.size) {
        const u8 *frame = data.data + done;
        size_t size = data.size - done;
        if (size < 16) {
            io_conn_want(conn, 16);
            break;
        }
        u64 first = load_u64(frame), all = load_u64(frame + 8);
        if (size < all) {
            io_conn_want(conn, size < first ? first : all);
            break;
        }
        room->whole[room->whole_count++] = frame[all - 1];
        if (room->at_ns == 0) room->at_ns = io_now_ns();
        done += all;
    }
    return done;
}

static void
room_closed(struct io_conn *conn, status why)
{
    struct room_world *room = io_conn_user(conn);
    room->closed++;
    room->no_memory += status_is(why, ST_NO_MEMORY);
    room->timed_out += status_is(why, ST_TIMED_OUT);
    if (room->at_ns == 0) room->at_ns = io_now_ns();
}

static void
room_crowded(struct io_conn *conn, enum io_crowd what, struct bytes input)
{
    struct room_world *room = io_conn_user(conn);
    CHECK(input.size >= 16 && load_u64(input.data + 8) <= FRAME_BYTES);
    room->waits += what == IO_CROWD_WAITS;
    room->holds_up += what == IO_CROWD_HOLDS_UP;
    room->gives_up += what == IO_CROWD_GIVES_UP;
    if (what != IO_CROWD_WAITS) io_conn_close(conn, IO_CLOSE_FLUSH);
}

static status
room_opened(struct io_conn *conn, void *arg)
{
    io_conn_user_set(conn, arg);
    return ST_OK;
}

static const struct io_conn_events room_events = {
    .opened = room_opened,
    .received = room_received,
    .drained = no_drained,
    .closed = room_closed,
};

static const struct io_conn_events room_told_events = {
    .opened = room_opened,
    .received = room_received,
    .drained = no_drained,
    .closed = room_closed,
    .crowded = room_crowded,
};

static const struct io_conn_events room_first_events = {
    .opened = room_opened,
    .received = room_received,
    .drained = no_drained,
    .closed = room_closed,
    .first = true,
};

/* The clients' ends know where they are kept, and send only. */
static status
room_client_opened(struct io_conn *conn, void *arg)
{
    io_conn_user_set(conn, arg);
    return ST_OK;
}

static size_t
room_client_received(struct io_conn *conn, struct bytes data)
{
    (void)conn;
    return data.size;
}

static void
room_client_closed(struct io_conn *conn, status why)
{
    (void)why;
    struct io_conn **client = io_conn_user(conn);
    *client = NULL;
}

static const struct io_conn_events room_client_events = {
    .opened = room_client_opened,
    .received = room_client_received,
    .drained = no_drained,
    .closed = room_client_closed,
};

static u32
room_conns(const struct room_world *room)
{
    return room->many ? ROOM_CONNS_MANY : ROOM_CONNS;
}

/* Leaves ROOM_BYTES of the memory for input. */
static MAY_YIELD status
room_begin(struct room_world *room)
{
    struct io_listener *listener;
    const struct io_conn_events *events = room->told ? &room_told_events : &room_events;
    status st = io_listen("127.0.0.1", PORT, events, room, &listener);
    if (ok(st)) st = io_listen("127.0.0.1", PORT + 1, &room_first_events, room, &listener);
    for (u32 i = 0; ok(st) && i < room_conns(room); i++) {
        u16 port = PORT + (room->first_class && i == ROOM_CONNS - 1);
        st = io_connect("127.0.0.1", port, &room_client_events, &room->clients[i], FIBER_FOREVER,
                        &room->clients[i]);
    }
    if (!ok(st)) return st;
    room->budget = &room->clients[0]->net->frame_budget;
    room->taken = room->budget->limit_bytes / 8 * 7 - ROOM_BYTES;
    return budget_take(room->budget, room->taken) ? ST_OK : ST_NO_MEMORY;
}

/* Bytes from..to of the frame of client i. */
static void
room_send(struct room_world *room, u32 i, u64 first, u64 from, u64 to)
{
    static u8 frame[FRAME_BYTES];
    u64 all = room->small && i == ROOM_CONNS - 1 ? FRAME_BYTES / 3 : FRAME_BYTES;
    first = MIN(first, all);
    to = MIN(to, all);
    memset(frame, 7, sizeof(frame));
    store_u64(frame, first);
    store_u64(frame + 8, all);
    frame[all - 1] = (u8)i;
    CHECK(io_conn_write(room->clients[i], frame + from, to - from));
}

static u64
room_waiting(void)
{
    struct io_stats stats;
    io_stats_get(&stats);
    return stats.connections_waiting;
}

static MAY_YIELD void
room_end(struct room_world *room)
{
    room->waiting = room_waiting();
    for (u32 i = 0; i < room_conns(room); i++) {
        if (room->clients[i] != NULL) io_conn_close(room->clients[i], IO_CLOSE_ABORT);
    }
    fiber_sleep_ns(NS_PER_S);
    budget_give(room->budget, room->taken);
    CHECK(room->budget->used_bytes == 0 && room_waiting() == 0);
}

/* The first half of one frame; two whole ones wait in order. */
static status
room_order_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    room_send(room, 0, FRAME_BYTES, 0, FRAME_BYTES / 2);
    fiber_sleep_ns(50 * NS_PER_MS);
    for (u32 i = 1; i < ROOM_CONNS; i++) {
        room_send(room, i, FRAME_BYTES, 0, FRAME_BYTES);
        fiber_sleep_ns(50 * NS_PER_MS);
    }
    /* The last eighth is for the first class, too. */
    u32 served = room->first_class;
    CHECK(room_waiting() == 2 - served && room->whole_count == served);
    room_send(room, 0, FRAME_BYTES, FRAME_BYTES / 2, FRAME_BYTES);
    fiber_sleep_ns(NS_PER_S);
    room_end(room);
    return ST_OK;
}

static void
who_finds_no_room_for_a_large_frame_waits_for_it_in_order(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct room_world room = {.told = seed % 4 < 2, .small = seed % 2 == 0};
        assert_true(ok(sim_run_main(seed, 1, room_order_main, &room)));
        assert_int_equal(room.whole_count, 3);
        /* What fits beside it once it is its turn may be whole before. */
        assert_int_equal(room.whole[0], 0);
        if (!room.small) assert_memory_equal(room.whole, "\0\1\2", 3);
        assert_int_equal(room.waits, room.told ? 2 : 0);
        assert_int_equal(room.holds_up + room.gives_up + (u32)room.waiting, 0);
    }
}

static void
frames_of_the_first_class_find_room_before_the_others(void **state)
{
    (void)state;
    struct room_world room = {.first_class = true};
    assert_true(ok(sim_run_main(1, 1, room_order_main, &room)));
    assert_int_equal(room.whole_count, 3);
    assert_memory_equal(room.whole, "\2\0\1", 3);
}

/* Half of a frame, and nothing more. */
static status
room_half_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    room_send(room, 0, FRAME_BYTES, 0, FRAME_BYTES / 2);
    fiber_sleep_ns(20 * NS_PER_S);
    CHECK(room->holds_up == 0 && room->closed == 0); /* nobody waits */
    u64 begin_ns = io_now_ns();
    room_send(room, 1, FRAME_BYTES, 0, FRAME_BYTES);
    fiber_sleep_ns(12 * NS_PER_S);
    room->at_ns -= begin_ns;
    room_end(room);
    return ST_OK;
}

/* A client is; a peer has deadlines of its own, and is not cut because of others. */
static void
who_holds_room_that_others_wait_for_has_to_go_on(void **state)
{
    (void)state;
    for (u32 told = 0; told < 2; told++) {
        struct room_world room = {.told = told};
        struct sim_options options;
        sim_options_default(&options, 1);
        struct sim *sim = sim_new(&options);
        sim_audits_set(sim, 1);
        assert_true(ok(sim_run(sim, 1, room_half_main, &room)));
        assert_int_equal(room.holds_up, told);
        assert_int_equal(room.timed_out, 0);
        assert_int_equal(room.whole_count, told);
        if (told) assert_int_equal(room.whole[0], 1);
        if (told) assert_true(room.at_ns <= 13 * NS_PER_S / 2);
        assert_int_equal(sim_mark_count(sim, "io.room.held_up"), told);
        sim_free(sim);
    }
}

/* The halves of six, one behind the other, and then a whole one. */
static status
room_many_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    for (u32 i = 0; i < ROOM_CONNS_MANY; i++) {
        if (i != 1 && i != 2) room_send(room, i, FRAME_BYTES, 0, FRAME_BYTES / 2);
        fiber_sleep_ns(10 * NS_PER_MS);
    }
    room_send(room, 1, FRAME_BYTES, 0, FRAME_BYTES);
    fiber_sleep_ns(16 * NS_PER_S); /* six times three would be more */
    CHECK(room->whole_count == 1 && room->whole[0] == 1);
    CHECK(room->holds_up == 6 && room->gives_up == 0);
    for (u32 i = ROOM_CONNS; i < ROOM_CONNS_MANY; i++)
        CHECK(room->clients[i] == NULL);
    /* It is over: who is slow has all of the time again. */
    room_send(room, 2, FRAME_BYTES, 0, FRAME_BYTES / 2);
    fiber_sleep_ns(10 * NS_PER_MS);
    room_send(room, 1, FRAME_BYTES, 0, FRAME_BYTES);
    fiber_sleep_ns(5 * NS_PER_S / 2);
    CHECK(room->holds_up == 6);
    room_send(room, 2, FRAME_BYTES, FRAME_BYTES / 2, FRAME_BYTES);
    fiber_sleep_ns(NS_PER_S);
    room_end(room);
    return ST_OK;
}

static void
many_that_hold_room_and_do_nothing_are_ended_sooner(void **state)
{
    (void)state;
    struct room_world room = {.told = true, .many = true};
    assert_true(ok(sim_run_main(1, 1, room_many_main, &room)));
    assert_int_equal(room.whole_count, 3);
    assert_int_equal(room.holds_up, 6);
}

/* Nobody waits for room; but others need the memory of the shard. */
static status
room_short_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    room_send(room, 0, FRAME_BYTES, 0, room->tail ? FRAME_BYTES - 4000 : FRAME_BYTES / 2);
    room_send(room, 1, FRAME_BYTES, 0, FRAME_BYTES);
    fiber_sleep_ns(20 * NS_PER_S);
    CHECK(room->holds_up == 0 && room->closed == 0 && room->whole_count == 1);
    if (room->tail) {
        room_send(room, 0, FRAME_BYTES, FRAME_BYTES - 4000, FRAME_BYTES);
        room_send(room, 0, FRAME_BYTES, 0, 100);
        fiber_sleep_ns(NS_PER_S);
        CHECK(room->holds_up == 0 && room->closed == 0 && room->whole_count == 2);
    }
    struct budget *all = io_budget();
    u64 rest = all->limit_bytes / 16 * 15 - all->used_bytes;
    CHECK(budget_take(all, rest));
    u64 begin_ns = io_now_ns();
    room->at_ns = 0;
    fiber_sleep_ns(12 * NS_PER_S);
    budget_give(all, rest);
    room->at_ns -= begin_ns;
    room_end(room);
    return ST_OK;
}

static void
who_holds_memory_that_the_shard_needs_has_to_go_on(void **state)
{
    (void)state;
    for (u32 tail = 0; tail < 2; tail++) {
        struct room_world room = {.told = true, .tail = tail};
        assert_true(ok(sim_run_main(1, 1, room_short_main, &room)));
        assert_int_equal(room.holds_up, 1);
        assert_true(room.at_ns <= 13 * NS_PER_S / 2);
    }
}

/* A sixteenth of the frame in three seconds is enough. */
static status
room_slow_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    for (u32 i = 0; i < 15; i++) {
        room_send(room, 0, FRAME_BYTES, i * 20000, (i + 1) * 20000);
        if (i == 1) room_send(room, 1, FRAME_BYTES, 0, FRAME_BYTES);
        fiber_sleep_ns(900 * NS_PER_MS);
    }
    fiber_sleep_ns(NS_PER_S);
    room_end(room);
    return ST_OK;
}

static void
who_is_slow_but_goes_on_keeps_its_room(void **state)
{
    (void)state;
    struct room_world room = {.told = true};
    assert_true(ok(sim_run_main(1, 1, room_slow_main, &room)));
    assert_int_equal(room.holds_up, 0);
    assert_int_equal(room.whole_count, 2);
    assert_memory_equal(room.whole, "\0\1", 2);
}

/* The memory is somebody else's and does not come back. */
static status
room_none_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    CHECK(budget_take(room->budget, ROOM_BYTES / 2));
    u64 begin_ns = io_now_ns();
    room_send(room, 0, FRAME_BYTES, 0, FRAME_BYTES);
    fiber_sleep_ns(60 * NS_PER_S);
    room->at_ns -= begin_ns;
    budget_give(room->budget, ROOM_BYTES / 2);
    room_end(room);
    return ST_OK;
}

static void
who_waits_for_room_in_vain_is_told_and_closed(void **state)
{
    (void)state;
    for (u32 told = 0; told < 2; told++) {
        struct room_world room = {.told = told};
        struct sim_options options;
        sim_options_default(&options, 1);
        struct sim *sim = sim_new(&options);
        assert_true(ok(sim_run(sim, 1, room_none_main, &room)));
        assert_int_equal(room.gives_up, told);
        assert_int_equal(room.no_memory, !told);
        assert_true(room.at_ns >= 30 * NS_PER_S && room.at_ns < 35 * NS_PER_S);
        assert_int_equal(sim_mark_count(sim, "io.room.waited_too_long"), 1);
        assert_int_equal(sim_mark_count(sim, "io.conn.starved"), 1);
        sim_free(sim);
    }
}

/* Three frames that say 120 KB at first and are longer than that: each has room for its first
 * part, and none for more. */
static status
room_grows_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    u32 first = 120000;
    for (u32 i = 0; i < ROOM_CONNS; i++)
        room_send(room, i, first, 0, first / 2);
    fiber_sleep_ns(50 * NS_PER_MS);
    CHECK(room_waiting() == 0);
    for (u32 i = 0; i < ROOM_CONNS; i++)
        room_send(room, i, first, first / 2, FRAME_BYTES);
    fiber_sleep_ns(3 * NS_PER_S);
    room_end(room);
    return ST_OK;
}

static void
of_those_that_all_wait_for_more_the_last_gives_way(void **state)
{
    (void)state;
    struct room_world room = {.told = true};
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, room_grows_main, &room)));
    assert_int_equal(room.waits, 3);
    assert_int_equal(room.gives_up, 1);
    assert_int_equal(room.whole_count, 2);
    assert_int_equal(room.holds_up, 0);
    assert_int_equal(sim_mark_count(sim, "io.room.all_wait"), 1);
    sim_free(sim);
}

/* Whoever waits is aborted, or its session pauses and goes on. */
static status
room_leave_main(void *arg)
{
    struct room_world *room = arg;
    status st = room_begin(room);
    if (!ok(st)) return st;
    room_send(room, 0, FRAME_BYTES, 0, FRAME_BYTES / 2);
    fiber_sleep_ns(50 * NS_PER_MS);
    for (u32 i = 1; i < ROOM_CONNS; i++)
        room_send(room, i, FRAME_BYTES, 0, FRAME_BYTES);
    fiber_sleep_ns(50 * NS_PER_MS);
    CHECK(room_waiting() == 2);
    struct io_conn *waits[2];
    u32 count = 0;
    list_for_each (link, &room->clients[0]->net->conns) {
        struct io_conn *conn = list_entry(link, struct io_conn, link);
        if (io_conn_waits_for_room(conn)) waits[count++] = conn;
    }
    CHECK(count == 2);
    io_conn_pause(waits[0]);
    CHECK(room_waiting() == 1 && !io_conn_waits_for_room(waits[0]));
    io_conn_resume(waits[0]);
    fiber_sleep_ns(50 * NS_PER_MS);
    CHECK(room_waiting() == 2 && io_conn_waits_for_room(waits[0]));
    io_conn_close(waits[1], prng_chance(&io_current->prng, 1, 2) ? IO_CLOSE_ABORT : IO_CLOSE_FLUSH);
    CHECK(room_waiting() == 1);
    room_end(room);
    return ST_OK;
}

static void
who_waits_for_room_may_pause_or_end(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct room_world room = {.told = true};
        assert_true(ok(sim_run_main(seed, 1, room_leave_main, &room)));
        assert_int_equal(room.closed, 3);
        assert_int_equal(room.whole_count, 0);
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
        cmocka_unit_test(who_finds_no_room_for_a_large_frame_waits_for_it_in_order),
        cmocka_unit_test(frames_of_the_first_class_find_room_before_the_others),
        cmocka_unit_test(who_holds_room_that_others_wait_for_has_to_go_on),
        cmocka_unit_test(many_that_hold_room_and_do_nothing_are_ended_sooner),
        cmocka_unit_test(who_holds_memory_that_the_shard_needs_has_to_go_on),
        cmocka_unit_test(who_is_slow_but_goes_on_keeps_its_room),
        cmocka_unit_test(who_waits_for_room_in_vain_is_told_and_closed),
        cmocka_unit_test(of_those_that_all_wait_for_more_the_last_gives_way),
        cmocka_unit_test(who_waits_for_room_may_pause_or_end),
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
