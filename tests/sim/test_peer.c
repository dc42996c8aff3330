/* SPDX-License-Identifier: MIT
 *
 * test_peer.c -- the promises of cluster/peer.h between nodes on the simulated link: answers now
 * and later, deadlines, breaks at any moment, strangers, bounds, the end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/buf.h"
#include "io/fiber.h"
#include "io/net.h"
#include "io/timer.h"
#include "peer_rig.h"
#include "proto/peer.h"

#define SECONDS(n) ((u64)(n)*NS_PER_S)
#define MS(n)      ((u64)(n)*NS_PER_MS)

/* ---- what nodes do ----
 *
 * PEER_WRITE   answers at once with the same body, the status is the request's epoch
 * PEER_READ    answers as late as the body's first 8 bytes say (ns)
 * PEER_PROPOSE is held until a job lets go
 * PEER_RAFT    is counted
 */

#define HELD_MAX 4096u

struct app {
    u32 writes, reads, proposes, posts, joins;
    u64 posted_bytes;
    struct peer_request *held[HELD_MAX];
    u32 held_count;
    u64 deadline_left_ns; /* of the last request */
    struct peer_identity from;
    bool no_members_own; /* knows nobody */
};

/* Of node i, shard s; outside of all nodes, so that a crash does not take it. */
static struct app apps[PEER_RIG_NODES_MAX][PEER_RIG_SHARDS_MAX];

static void
app_note(struct app *app, struct peer_request *request, const struct peer_identity *from)
{
    assert_null(fiber_self()); /* a callback */
    u64 deadline_ns = peer_request_deadline_ns(request);
    app->deadline_left_ns = deadline_ns == UINT64_MAX ? UINT64_MAX : deadline_ns - io_now_ns();
    app->from = *from;
}

static void
write_asked(void *arg, struct peer_request *request, const struct peer_identity *from,
            const struct native_header *header, struct bytes body)
{
    struct app *app = arg;
    app->writes++;
    app_note(app, request, from);
    peer_reply(request, (enum native_status)header->epoch, 7, &body, 1);
}

struct later {
    struct io_timer timer;
    struct peer_request *request;
    size_t size;
    u8 body[];
};

static void
later_fire(struct io_timer *timer)
{
    struct later *later = CONTAINER_OF(timer, struct later, timer);
    struct bytes body = BYTES(later->body, later->size);
    peer_reply(later->request, NATIVE_ST_OK, 0, &body, 1);
    mem_free(io_budget(), later, sizeof(*later) + later->size);
    io_shard_release();
}

static void
read_asked(void *arg, struct peer_request *request, const struct peer_identity *from,
           const struct native_header *header, struct bytes body)
{
    (void)header;
    struct app *app = arg;
    app->reads++;
    app_note(app, request, from);
    struct later *later = mem_alloc(io_budget(), sizeof(*later) + body.size);
    if (later == NULL) {
        peer_reply(request, NATIVE_ST_NO_MEMORY, 0, NULL, 0);
        return;
    }
    io_shard_hold();
    later->request = request;
    later->size = body.size;
    memcpy(later->body, body.data, body.size);
    io_timer_init(&later->timer, later_fire);
    io_timer_arm(&later->timer, io_now_ns() + load_u64(body.data));
}

static void
propose_asked(void *arg, struct peer_request *request, const struct peer_identity *from,
              const struct native_header *header, struct bytes body)
{
    (void)header;
    (void)body;
    struct app *app = arg;
    app->proposes++;
    app_note(app, request, from);
    assert_true(app->held_count < HELD_MAX);
    app->held[app->held_count++] = request;
}

static void
raft_posted(void *arg, struct peer_request *request, const struct peer_identity *from,
            const struct native_header *header, struct bytes body)
{
    (void)header;
    (void)from;
    struct app *app = arg;
    assert_null(request);
    app->posts++;
    app->posted_bytes += body.size;
}

static void
join_asked(void *arg, struct peer_request *request, const struct peer_identity *from,
           const struct native_header *header, struct bytes body)
{
    (void)header;
    struct app *app = arg;
    app->joins++;
    app_note(app, request, from);
    peer_reply(request, NATIVE_ST_OK, 0, &body, 1);
}

static void
let_go(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct app *app = &apps[node->index][io_shard_index()];
    while (app->held_count > 0)
        peer_reply(app->held[--app->held_count], NATIVE_ST_OK, 0, NULL, 0);
}

static MAY_YIELD status
node_main(struct peer_rig_node *node)
{
    struct app *app = &apps[node->index][io_shard_index()];
    *app = (struct app){0};
    struct peers *peers;
    status st = peer_rig_peers_open(node, &peers);
    if (!ok(st)) return st;
    peers_handler_set(peers, PEER_WRITE, write_asked, app);
    peers_handler_set(peers, PEER_READ, read_asked, app);
    peers_handler_set(peers, PEER_PROPOSE, propose_asked, app);
    peers_handler_set(peers, PEER_RAFT, raft_posted, app);
    peers_handler_set(peers, PEER_JOIN, join_asked, app);
    peer_rig_serve(node);
    peers_close(peers);
    let_go(node, NULL); /* requests outlive the transport */
    while (app->reads > 0 && node->shards[io_shard_index()].budget.used_bytes > 0)
        fiber_sleep_ns(MS(1)); /* answers that are due later */
    return ST_OK;
}

static void
rig_init(struct peer_rig *rig, u64 seed, u32 nodes, u32 shards)
{
    *rig = (struct peer_rig){.node_count = nodes, .shard_count = shards, .shard_main = node_main};
    sim_options_default(&rig->options, seed);
}

/* ---- one call and its outcome ---- */

struct asked {
    struct peer_call call;
    u32 member, shard;
    u8 opcode;
    u64 status;   /* wanted of PEER_WRITE */
    u64 delay_ns; /* of PEER_READ */
    u32 body_size;
    u64 wait_ns; /* 0: for ever */

    u32 done;
    status st;
    struct native_header answer;
    u32 answer_size;
    bool same_body, from_inside;
    bool starting;
    u64 took_ns, started_ns;
};

static u8
pattern(u64 at)
{
    return (u8)(at * 2654435761u >> 24);
}

static bool
is_pattern(struct bytes body)
{
    for (size_t i = 8; i < body.size; i++)
        if (body.data[i] != pattern(i)) return false;
    return true;
}

static void
asked_done(struct peer_call *call, status st, const struct native_header *header, struct bytes body)
{
    struct asked *asked = CONTAINER_OF(call, struct asked, call);
    assert_null(fiber_self());
    asked->from_inside = asked->starting;
    asked->done++;
    asked->st = st;
    asked->took_ns = io_now_ns() - asked->started_ns;
    assert_int_equal(ok(st), header != NULL);
    if (header == NULL) return;
    asked->answer = *header;
    asked->answer_size = (u32)body.size;
    asked->same_body = body.size == asked->body_size && is_pattern(body);
}

static void
ask(struct peer_rig_node *node, void *arg)
{
    struct asked *asked = arg;
    u8 *body = NULL;
    size_t size = asked->body_size;
    if (size > 0) {
        body = mem_alloc(io_budget(), MAX(size, 8));
        assert_non_null(body);
        for (size_t i = 0; i < size; i++)
            body[i] = pattern(i);
        store_u64(body, asked->delay_ns);
    }
    struct bytes parts[2] = {BYTES(body, size / 3), BYTES(body + size / 3, size - size / 3)};
    struct native_header header = {.opcode = asked->opcode != 0 ? asked->opcode : PEER_WRITE,
                                   .epoch = asked->status};
    peer_call_init(&asked->call, asked_done);
    asked->started_ns = io_now_ns();
    asked->starting = true;
    u64 deadline_ns = asked->wait_ns != 0 ? io_now_ns() + asked->wait_ns : UINT64_MAX;
    peer_call_start(peer_rig_peers(node), &asked->call, asked->member, asked->shard, &header, parts,
                    body == NULL ? 0 : 2, deadline_ns);
    asked->starting = false;
    if (body != NULL) mem_free(io_budget(), body, MAX(size, 8));
}

static bool
is_done(void *arg)
{
    struct asked *asked = arg;
    return asked->done > 0;
}

/* Asks and waits for the outcome. */
static void
ask_and_wait(struct peer_rig *rig, u32 node, u32 shard, struct asked *asked)
{
    peer_rig_do(rig, node, shard, ask, asked);
    assert_true(peer_rig_run_until(rig, is_done, asked, SECONDS(300)));
    peer_rig_run(rig, MS(5));
    assert_int_equal(asked->done, 1);
    assert_false(asked->from_inside);
}

static struct peers_stats
stats_of(struct peer_rig *rig, u32 node, u32 shard)
{
    struct peers_stats stats;
    peers_stats_get(rig->nodes[node].shards[shard].peers, &stats);
    return stats;
}

/* ---- answers ---- */

static void
a_call_reaches_the_shard_and_its_answer_comes_back(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 3, 2);
        rig.options.net.single_bytes = seed % 4 == 0;
        peer_rig_open(&rig);
        for (u32 to = 1; to <= 3; to++) { /* itself, too */
            for (u32 shard = 0; shard < 2; shard++) {
                struct asked asked = {
                    .member = to, .shard = shard, .body_size = 100, .wait_ns = SECONDS(2)};
                ask_and_wait(&rig, 0, 1, &asked);
                assert_true(ok(asked.st));
                assert_true(asked.same_body && asked.call.maybe_sent);
                assert_int_equal(asked.answer.epoch, 7);
                assert_int_equal(asked.answer.opcode, PEER_WRITE);
                struct app *app = &apps[to - 1][shard];
                assert_int_equal(app->writes, 1);
                assert_int_equal(app->from.member, 1);
                assert_string_equal(app->from.node_id, "node-1");
                assert_in_range(app->deadline_left_ns, SECONDS(1), SECONDS(2) + MS(1));
            }
        }
        struct peers_stats stats = stats_of(&rig, 0, 1);
        assert_int_equal(stats.calls, 6);
        assert_int_equal(stats.calls_failed, 0);
        peer_rig_close(&rig);
    }
}

static void
what_a_handler_says_is_an_answer_whatever_the_status(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 1, 2, 1);
    peer_rig_open(&rig);
    struct asked conflict = {.member = 2, .status = NATIVE_ST_CONFLICT};
    ask_and_wait(&rig, 0, 0, &conflict);
    assert_true(ok(conflict.st));
    assert_int_equal(conflict.answer.status, NATIVE_ST_CONFLICT);
    assert_int_equal(apps[1][0].deadline_left_ns, UINT64_MAX);
    struct asked unknown = {.member = 2, .opcode = 200};
    ask_and_wait(&rig, 0, 0, &unknown);
    assert_true(ok(unknown.st));
    assert_int_equal(unknown.answer.status, NATIVE_ST_UNSUPPORTED);
    struct asked ping = {.member = 2, .opcode = PEER_PING};
    ask_and_wait(&rig, 0, 0, &ping);
    assert_int_equal(ping.answer.status, NATIVE_ST_OK);
    peer_rig_close(&rig);
}

static void
large_bodies_go_both_ways(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 3, 2, 1);
    rig.memory_bytes = MIB(512);
    peer_rig_open(&rig);
    u32 sizes[] = {100000, 1u << 20, PEER_BODY_BYTES_MAX};
    for (u32 i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct asked asked = {.member = 2, .body_size = sizes[i], .wait_ns = SECONDS(100)};
        ask_and_wait(&rig, 0, 0, &asked);
        assert_true(ok(asked.st));
        assert_int_equal(asked.answer.status, NATIVE_ST_OK);
        assert_true(asked.same_body);
    }
    struct asked asked = {.member = 2, .body_size = PEER_BODY_BYTES_MAX + 1};
    ask_and_wait(&rig, 0, 0, &asked);
    assert_true(status_is(asked.st, ST_TOO_LARGE));
    assert_false(asked.call.maybe_sent);
    peer_rig_close(&rig);
}

static void
answers_come_in_any_order_to_who_asked(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 10; seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 2, 1);
        peer_rig_open(&rig);
        struct asked asked[50];
        for (u32 i = 0; i < 50; i++) {
            asked[i] = (struct asked){.member = 2,
                                      .opcode = PEER_READ,
                                      .delay_ns = MS(50) * (50 - i),
                                      .body_size = 8 + i,
                                      .wait_ns = SECONDS(10)};
            peer_rig_do(&rig, 0, 0, ask, &asked[i]);
        }
        for (u32 i = 50; i-- > 0;) {
            assert_true(peer_rig_run_until(&rig, is_done, &asked[i], SECONDS(10)));
            assert_true(ok(asked[i].st) && asked[i].same_body);
            if (i > 0) assert_int_equal(asked[i - 1].done, 0);
        }
        assert_int_equal(stats_of(&rig, 0, 0).connections, 1);
        peer_rig_close(&rig);
    }
}

struct waited {
    u32 member;
    status st;
    u32 size;
    bool maybe_sent;
    u64 wait_ns;
};

static MAY_YIELD void
wait_for_call(struct peer_rig_node *node, void *arg)
{
    struct waited *waited = arg;
    struct native_header header = {.opcode = PEER_WRITE}, answer;
    struct bytes part = BYTES_LITERAL("12345678");
    struct buf out;
    buf_init(&out, io_budget());
    waited->st = peer_call_wait(peer_rig_peers(node), waited->member, 0, &header, &part, 1,
                                io_now_ns() + waited->wait_ns, &answer, &out, &waited->maybe_sent);
    waited->size = (u32)out.size;
    buf_deinit(&out);
}

static void
a_fiber_waits_for_its_answer(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 1, 2, 1);
    peer_rig_open(&rig);
    struct waited waited = {.member = 2, .wait_ns = SECONDS(1)};
    assert_true(peer_rig_do(&rig, 0, 0, wait_for_call, &waited));
    assert_true(ok(waited.st) && waited.size == 8 && waited.maybe_sent);
    waited = (struct waited){.member = 9, .wait_ns = SECONDS(1)};
    assert_true(peer_rig_do(&rig, 0, 0, wait_for_call, &waited));
    assert_true(status_is(waited.st, ST_NOT_FOUND) && !waited.maybe_sent);
    peer_rig_close(&rig);
}

/* ---- without an answer ---- */

static void
a_call_ends_at_its_deadline_and_a_late_answer_meets_nobody(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 2, 2, 1);
    peer_rig_open(&rig);
    struct asked asked = {.member = 2, .opcode = PEER_PROPOSE, .wait_ns = MS(100)};
    ask_and_wait(&rig, 0, 0, &asked);
    assert_true(status_is(asked.st, ST_TIMED_OUT));
    assert_true(asked.call.maybe_sent);
    assert_in_range(asked.took_ns, MS(100), MS(101));
    peer_rig_do(&rig, 1, 0, let_go, NULL);
    peer_rig_run(&rig, MS(50));
    struct asked next = {.member = 2, .wait_ns = MS(100)};
    ask_and_wait(&rig, 0, 0, &next);
    assert_true(ok(next.st));
    assert_int_equal(asked.done, 1);
    struct peers_stats stats = stats_of(&rig, 0, 0);
    assert_int_equal(stats.calls_timed_out, 1);
    assert_int_equal(stats.connections, 1);

    struct asked past = {.member = 2, .wait_ns = 1}; /* over before the frame is made */
    peer_rig_do(&rig, 0, 0, ask, &past);
    peer_rig_run(&rig, MS(50));
    assert_int_equal(past.done, 1);
    peer_rig_close(&rig);
}

static void
cancel(struct peer_rig_node *node, void *arg)
{
    struct asked *asked = arg;
    peer_call_cancel(peer_rig_peers(node), &asked->call);
}

static void
ask_and_cancel(struct peer_rig_node *node, void *arg)
{
    ask(node, arg);
    cancel(node, arg);
    cancel(node, arg); /* as often as one likes */
}

static void
a_cancelled_call_is_never_told(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 2, 2, 1);
    peer_rig_open(&rig);
    /* Before there is a connection: then it is not sent either. */
    struct asked early = {.member = 2};
    peer_rig_do(&rig, 0, 0, ask_and_cancel, &early);
    peer_rig_run(&rig, SECONDS(1));
    assert_int_equal(early.done, 0);
    assert_false(early.call.maybe_sent);
    assert_int_equal(apps[1][0].writes, 0);
    /* While it is under way. */
    struct asked later = {.member = 2, .opcode = PEER_READ, .delay_ns = MS(100), .body_size = 8};
    peer_rig_do(&rig, 0, 0, ask, &later);
    peer_rig_run(&rig, MS(50));
    assert_int_equal(apps[1][0].reads, 1);
    peer_rig_do(&rig, 0, 0, cancel, &later);
    peer_rig_run(&rig, SECONDS(1));
    assert_int_equal(later.done, 0);
    /* When its end is due, but was not told yet. */
    struct asked nobody = {.member = 77};
    peer_rig_do(&rig, 0, 0, ask_and_cancel, &nobody);
    peer_rig_run(&rig, SECONDS(1));
    assert_int_equal(nobody.done, 0);
    struct asked last = {.member = 2, .wait_ns = SECONDS(1)};
    ask_and_wait(&rig, 0, 0, &last);
    assert_true(ok(last.st));
    peer_rig_close(&rig);
}

static void
who_is_not_there_is_said_at_once_and_not_sent_to(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 4, 2, 1);
    rig.started_by_test = true;
    peer_rig_open(&rig);
    peer_rig_start(&rig, 0);
    struct asked nobody = {.member = 5};
    ask_and_wait(&rig, 0, 0, &nobody);
    assert_true(status_is(nobody.st, ST_NOT_FOUND) && !nobody.call.maybe_sent);
    struct asked no_shard = {.member = 2, .shard = 1};
    ask_and_wait(&rig, 0, 0, &no_shard);
    assert_true(status_is(no_shard.st, ST_NOT_FOUND));
    /* No process: the port refuses. Each attempt waits longer, up to a second. */
    u64 before_ns = sim_now_ns(rig.sim);
    for (u32 i = 0; i < 10; i++) {
        struct asked refused = {.member = 2, .wait_ns = SECONDS(20)};
        ask_and_wait(&rig, 0, 0, &refused);
        assert_true(status_is(refused.st, ST_CLOSED));
        assert_false(refused.call.maybe_sent);
        assert_true(refused.took_ns < MS(1100));
    }
    u64 took_ns = sim_now_ns(rig.sim) - before_ns;
    assert_in_range(took_ns, SECONDS(4), SECONDS(8));
    /* Calls that wait for the attempt go out by it. */
    peer_rig_start(&rig, 1);
    struct asked found = {.member = 2, .wait_ns = SECONDS(3)};
    ask_and_wait(&rig, 0, 0, &found);
    assert_true(ok(found.st));
    peer_rig_close(&rig);
}

static void
a_crash_in_the_middle_ends_each_call_once(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 40; seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 2, 1);
        peer_rig_open(&rig);
        struct asked asked[20];
        for (u32 i = 0; i < 20; i++) {
            asked[i] = (struct asked){.member = 2,
                                      .opcode = i % 2 == 0 ? PEER_PROPOSE : PEER_WRITE,
                                      .body_size = 1000 * i,
                                      .wait_ns = SECONDS(30)};
            peer_rig_do(&rig, 0, 0, ask, &asked[i]);
        }
        peer_rig_run(&rig, prng_range(sim_prng(rig.sim), 1, MS(3)));
        u32 done = apps[1][0].writes + apps[1][0].proposes;
        peer_rig_crash(&rig, 1, seed % 2 == 0);
        u64 crash_ns = sim_now_ns(rig.sim);
        u32 maybe = 0;
        for (u32 i = 0; i < 20; i++) {
            assert_true(peer_rig_run_until(&rig, is_done, &asked[i], SECONDS(20)));
            if (ok(asked[i].st)) continue;
            assert_true(status_is(asked[i].st, ST_CLOSED));
            maybe += asked[i].call.maybe_sent;
        }
        /* By the reset, or by silence. */
        assert_true(sim_now_ns(rig.sim) - crash_ns < SECONDS(4));
        u32 answered = 0;
        for (u32 i = 0; i < 20; i++) {
            assert_int_equal(asked[i].done, 1);
            answered += ok(asked[i].st);
        }
        assert_true(answered + maybe >= done);

        /* The same node, another incarnation. */
        peer_rig_start(&rig, 1);
        struct asked again = {.member = 2, .wait_ns = SECONDS(5)};
        ask_and_wait(&rig, 0, 0, &again);
        assert_true(ok(again.st));
        struct asked back = {.member = 1, .wait_ns = SECONDS(5)};
        ask_and_wait(&rig, 1, 0, &back);
        assert_true(ok(back.st));
        assert_int_equal(apps[0][0].from.incarnation, 2);
        peer_rig_close(&rig);
    }
}

static void
a_cut_link_is_noticed_by_its_silence_and_used_again_once_healed(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 10; seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 2, 1);
        peer_rig_open(&rig);
        struct asked first = {.member = 2};
        ask_and_wait(&rig, 0, 0, &first);
        assert_true(ok(first.st));
        /* Silence alone is none: the connection outlives an idle hour. */
        peer_rig_run(&rig, SECONDS(3600));
        assert_int_equal(stats_of(&rig, 0, 0).connections, 1);
        assert_int_equal(stats_of(&rig, 1, 0).connections, 1);

        peer_rig_cut(&rig, 0, 1);
        struct asked cut = {.member = 2};
        ask_and_wait(&rig, 0, 0, &cut);
        assert_true(status_is(cut.st, ST_CLOSED) && cut.call.maybe_sent);
        assert_in_range(cut.took_ns, SECONDS(1), SECONDS(3));
        struct asked still = {.member = 2};
        ask_and_wait(&rig, 0, 0, &still);
        assert_true(status_is(still.st, ST_CLOSED) && !still.call.maybe_sent);
        peer_rig_heal(&rig, 0, 1);
        struct asked healed = {.member = 2, .wait_ns = SECONDS(5)};
        ask_and_wait(&rig, 0, 0, &healed);
        assert_true(ok(healed.st));
        /* The other end of the broken one goes, too, in time. */
        peer_rig_run(&rig, SECONDS(100));
        assert_int_equal(stats_of(&rig, 1, 0).connections, 1);
        peer_rig_close(&rig);
    }
}

static void
a_slow_answer_is_no_silence(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 5, 2, 1);
    peer_rig_open(&rig);
    struct asked slow = {.member = 2, .opcode = PEER_READ, .delay_ns = SECONDS(60), .body_size = 8};
    ask_and_wait(&rig, 0, 0, &slow);
    assert_true(ok(slow.st));
    /* Nor is a shard that hears nothing for a while, on either side. */
    for (u32 node = 0; node < 2; node++) {
        struct asked stalled = {
            .member = 2, .opcode = PEER_READ, .delay_ns = MS(1500), .body_size = 8};
        peer_rig_do(&rig, 0, 0, ask, &stalled);
        sim_node_shard_stall(rig.nodes[node].machine, 0, node == 0 ? SECONDS(10) : MS(1200));
        assert_true(peer_rig_run_until(&rig, is_done, &stalled, SECONDS(20)));
        assert_true(ok(stalled.st));
    }
    peer_rig_close(&rig);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_reaches_the_shard_and_its_answer_comes_back),
        cmocka_unit_test(what_a_handler_says_is_an_answer_whatever_the_status),
        cmocka_unit_test(large_bodies_go_both_ways),
        cmocka_unit_test(answers_come_in_any_order_to_who_asked),
        cmocka_unit_test(a_fiber_waits_for_its_answer),
        cmocka_unit_test(a_call_ends_at_its_deadline_and_a_late_answer_meets_nobody),
        cmocka_unit_test(a_cancelled_call_is_never_told),
        cmocka_unit_test(who_is_not_there_is_said_at_once_and_not_sent_to),
        cmocka_unit_test(a_crash_in_the_middle_ends_each_call_once),
        cmocka_unit_test(a_cut_link_is_noticed_by_its_silence_and_used_again_once_healed),
        cmocka_unit_test(a_slow_answer_is_no_silence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
