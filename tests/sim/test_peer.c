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

#include "../fewer.h"
#include "base/buf.h"
#include "cluster/peer_internal.h"
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
    bool twice;           /* PEER_WRITE is answered with what it says, twice */
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
    struct bytes parts[] = {body, body};
    peer_reply(request, (enum native_status)header->epoch, 7, parts, app->twice ? 2 : 1);
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
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 3, 2);
        rig.options.net.single_bytes = seed % 3 == 0;
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

/* What was done must not look as if it were not: who asked would have it done again. */
static void
an_answer_that_does_not_fit_leaves_the_outcome_unknown(void **state)
{
    (void)state;
    static const struct {
        u64 status, answered;
    } cases[] = {{NATIVE_ST_OK, NATIVE_ST_UNKNOWN_OUTCOME},
                 {NATIVE_ST_OVERLOADED, NATIVE_ST_NO_MEMORY}};
    struct peer_rig rig;
    rig_init(&rig, 3, 2, 1);
    rig.memory_bytes = MIB(512);
    peer_rig_open(&rig);
    apps[1][0].twice = true;
    for (u32 i = 0; i < ARRAY_COUNT(cases); i++) {
        struct asked asked = {.member = 2,
                              .status = cases[i].status,
                              .body_size = PEER_BODY_BYTES_MAX / 2 + 1,
                              .wait_ns = SECONDS(100)};
        ask_and_wait(&rig, 0, 0, &asked);
        assert_true(ok(asked.st));
        assert_int_equal(asked.answer.status, cases[i].answered);
        assert_int_equal(asked.answer_size, 0);
    }
    peer_rig_close(&rig);
}

static void
answers_come_in_any_order_to_who_asked(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(10); seed++) {
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
    for (u64 seed = 1; seed <= FEWER(40); seed++) {
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
    for (u64 seed = 1; seed <= FEWER(10); seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 2, 1);
        peer_rig_open(&rig);
        struct asked first = {.member = 2};
        ask_and_wait(&rig, 0, 0, &first);
        assert_true(ok(first.st));
        /* Silence alone is none: the connection outlives an idle hour. */
        peer_rig_run(&rig, SECONDS(seed == 1 ? FEWER(3600) : 30));
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

/* The first link of the node's shard 0 is in the state. */
struct link_wanted {
    struct peer_rig *rig;
    enum peer_link_state state;
};

static bool
is_in_state(void *arg)
{
    const struct link_wanted *wanted = arg;
    const struct peers *peers = wanted->rig->nodes[0].shards[0].peers;
    return !list_empty(&peers->links) &&
           list_entry(list_first(&peers->links), struct peer_link, link)->state == wanted->state;
}

/* What waits for a connection that is cut while both ends introduce themselves waits no longer than
 * over one that is open; then it is made anew, whatever becomes of the first. */
static void
a_cut_in_the_handshake_is_noticed_as_soon(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 10; seed++) {
        struct peer_rig rig;
        struct link_wanted wanted = {.rig = &rig,
                                     .state = seed % 2 == 0 ? LINK_GREETING : LINK_PROVING};
        rig_init(&rig, seed, 2, 1);
        peer_rig_open(&rig);
        struct asked cut = {.member = 2}, next = {.member = 2, .wait_ns = SECONDS(4)};
        peer_rig_do(&rig, 0, 0, ask, &cut);
        assert_true(peer_rig_run_until(&rig, is_in_state, &wanted, SECONDS(1)));
        peer_rig_cut(&rig, 0, 1);
        assert_true(peer_rig_run_until(&rig, is_done, &cut, SECONDS(3)));
        assert_true(status_is(cut.st, ST_CLOSED) && !cut.call.maybe_sent);
        peer_rig_heal(&rig, 0, 1);
        ask_and_wait(&rig, 0, 0, &next);
        assert_true(ok(next.st));
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

/* ---- posts, seeds, members that change ---- */

static void
post(struct peer_rig_node *node, void *arg)
{
    struct native_header header = {.opcode = PEER_RAFT};
    struct bytes part = BYTES_LITERAL("raft");
    peer_post(peer_rig_peers(node), *(u32 *)arg, 0, &header, &part, 1);
}

static void
what_is_posted_comes_once_there_is_a_connection(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 6, 2, 1);
    peer_rig_open(&rig);
    u32 member = 2, nobody = 40;
    peer_rig_do(&rig, 0, 0, post, &member); /* begins one */
    peer_rig_run(&rig, MS(50));
    assert_int_equal(apps[1][0].posts, 0);
    for (u32 i = 0; i < 10; i++)
        peer_rig_do(&rig, 0, 0, post, &member);
    peer_rig_do(&rig, 0, 0, post, &nobody);
    peer_rig_run(&rig, MS(50));
    assert_int_equal(apps[1][0].posts, 10);
    assert_int_equal(apps[1][0].posted_bytes, 40);
    struct peers_stats stats = stats_of(&rig, 0, 0);
    assert_int_equal(stats.posts, 12);
    assert_int_equal(stats.posts_dropped, 2);
    /* Nothing ever answers a post; the silence of a cut link is noticed all the same. */
    peer_rig_cut(&rig, 0, 1);
    peer_rig_do(&rig, 0, 0, post, &member);
    peer_rig_run(&rig, SECONDS(4));
    assert_int_equal(stats_of(&rig, 0, 0).connections, 0);
    peer_rig_close(&rig);
}

struct seeded {
    struct asked asked;
    struct peer_address address;
};

static void
ask_seed(struct peer_rig_node *node, void *arg)
{
    struct seeded *seeded = arg;
    struct native_header header = {.opcode = PEER_JOIN};
    struct asked *asked = &seeded->asked;
    peer_call_init(&asked->call, asked_done);
    asked->started_ns = io_now_ns();
    peer_call_start_at(peer_rig_peers(node), &asked->call, &seeded->address, 0, &header, NULL, 0,
                       io_now_ns() + SECONDS(5));
}

static void
set_identity(struct peer_rig_node *node, void *arg)
{
    peers_identity_set(peer_rig_peers(node), arg);
}

static void
a_node_that_is_no_member_may_join_and_no_more(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 7, 2, 1);
    rig.started_by_test = true;
    peer_rig_open(&rig);
    struct peer_identity member = rig.nodes[1].identity;
    rig.nodes[1].identity.cluster_id = 0;
    rig.nodes[1].identity.member = 0;
    peer_rig_start(&rig, 0);
    peer_rig_start(&rig, 1);

    struct seeded join = {0};
    peer_rig_address(&rig, 0, &join.address);
    peer_rig_do(&rig, 1, 0, ask_seed, &join);
    assert_true(peer_rig_run_until(&rig, is_done, &join.asked, SECONDS(5)));
    assert_true(ok(join.asked.st));
    assert_int_equal(join.asked.answer.status, NATIVE_ST_OK);
    assert_int_equal(apps[0][0].joins, 1);
    assert_int_equal(apps[0][0].from.cluster_id, 0);
    struct asked early = {.member = 1, .wait_ns = SECONDS(5)};
    ask_and_wait(&rig, 1, 0, &early);
    assert_true(ok(early.st));
    assert_int_equal(early.answer.status, NATIVE_ST_UNAUTHENTICATED);
    assert_int_equal(apps[0][0].writes, 0);
    /* A member does not take it for one. */
    struct asked other = {.member = 2, .wait_ns = SECONDS(5)};
    ask_and_wait(&rig, 0, 0, &other);
    assert_true(status_is(other.st, ST_DENIED) && !other.call.maybe_sent);

    /* Once it is one, its next call says so. */
    peer_rig_do(&rig, 1, 0, set_identity, &member);
    struct asked now = {.member = 1, .wait_ns = SECONDS(5)};
    ask_and_wait(&rig, 1, 0, &now);
    assert_true(ok(now.st));
    assert_int_equal(now.answer.status, NATIVE_ST_OK);
    assert_int_equal(apps[0][0].from.member, 2);
    struct asked back = {.member = 2, .wait_ns = SECONDS(5)};
    ask_and_wait(&rig, 0, 0, &back);
    assert_true(ok(back.st));
    peer_rig_close(&rig);
}

static void
the_identity_changes_under_calls_and_none_is_lost(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 8, 2, 1);
    peer_rig_open(&rig);
    struct asked slow = {.member = 2, .opcode = PEER_READ, .delay_ns = SECONDS(2), .body_size = 8};
    peer_rig_do(&rig, 0, 0, ask, &slow);
    peer_rig_run(&rig, MS(100));
    struct peer_identity self = rig.nodes[0].identity;
    self.incarnation = 99;
    peer_rig_do(&rig, 0, 0, set_identity, &self);
    struct asked next = {.member = 2};
    ask_and_wait(&rig, 0, 0, &next);
    assert_int_equal(apps[1][0].from.incarnation, 99);
    assert_int_equal(stats_of(&rig, 0, 0).connections, 2);
    assert_true(peer_rig_run_until(&rig, is_done, &slow, SECONDS(5)));
    assert_true(ok(slow.st));
    peer_rig_run(&rig, SECONDS(1));
    assert_int_equal(stats_of(&rig, 0, 0).connections, 1);
    peer_rig_close(&rig);
}

static void
a_seed_is_let_go_after_ten_idle_seconds(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 9, 2, 1);
    peer_rig_open(&rig);
    for (u32 i = 0; i < 3; i++) {
        struct seeded seeded = {0};
        peer_rig_address(&rig, 1, &seeded.address);
        peer_rig_do(&rig, 0, 0, ask_seed, &seeded);
        assert_true(peer_rig_run_until(&rig, is_done, &seeded.asked, SECONDS(5)));
        assert_true(ok(seeded.asked.st));
        peer_rig_run(&rig, SECONDS(8));
        assert_int_equal(stats_of(&rig, 0, 0).connections, 1);
    }
    peer_rig_run(&rig, SECONDS(4));
    assert_int_equal(stats_of(&rig, 0, 0).connections, 0);
    assert_int_equal(stats_of(&rig, 1, 0).connections, 0);
    peer_rig_close(&rig);
}

struct moved {
    u32 member;
    struct peer_address address; /* port 0: remove it */
};

static void
move_member(struct peer_rig_node *node, void *arg)
{
    struct moved *moved = arg;
    struct peers *peers = peer_rig_peers(node);
    if (moved->address.port == 0)
        peers_member_remove(peers, moved->member);
    else
        assert_true(peers_member_set(peers, moved->member, &moved->address));
}

static void
a_member_that_moves_or_goes_ends_its_calls(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 10, 3, 1);
    peer_rig_open(&rig);
    struct asked held = {.member = 2, .opcode = PEER_PROPOSE};
    peer_rig_do(&rig, 0, 0, ask, &held);
    peer_rig_run(&rig, MS(100));
    /* The same address again is no change; another is, and there sits member 3. */
    struct moved moved = {.member = 2};
    peer_rig_address(&rig, 1, &moved.address);
    peer_rig_do(&rig, 0, 0, move_member, &moved);
    peer_rig_run(&rig, MS(100));
    assert_int_equal(held.done, 0);
    peer_rig_address(&rig, 2, &moved.address);
    peer_rig_do(&rig, 0, 0, move_member, &moved);
    peer_rig_run(&rig, MS(100));
    assert_int_equal(held.done, 1);
    assert_true(status_is(held.st, ST_CLOSED) && held.call.maybe_sent);
    struct asked wrong = {.member = 2};
    ask_and_wait(&rig, 0, 0, &wrong);
    assert_true(status_is(wrong.st, ST_DENIED) && !wrong.call.maybe_sent);
    assert_true(sim_log_contains(rig.sim, "is another member than it should be"));

    struct asked other = {.member = 3, .opcode = PEER_PROPOSE};
    peer_rig_do(&rig, 0, 0, ask, &other);
    struct asked back = {.member = 1};
    ask_and_wait(&rig, 2, 0, &back);
    struct moved gone = {.member = 3};
    peer_rig_do(&rig, 0, 0, move_member, &gone);
    peer_rig_run(&rig, MS(100));
    assert_true(other.done == 1 && status_is(other.st, ST_CLOSED));
    assert_int_equal(stats_of(&rig, 0, 0).connections, 0); /* nor may it ask */
    struct asked last = {.member = 3};
    ask_and_wait(&rig, 0, 0, &last);
    assert_true(status_is(last.st, ST_NOT_FOUND));
    peer_rig_close(&rig);
}

/* ---- who may talk ---- */

static status
refuse_node_2(void *arg, const struct peer_identity *peer)
{
    (void)arg;
    return strcmp(peer->node_id, "node-2") == 0 ? ST_DENIED : ST_OK;
}

static void
strangers_are_refused_counted_and_logged_at_a_limited_rate(void **state)
{
    (void)state;
    static const char *const said[] = {"does not know the secret", "is of another cluster",
                                       "names a number or incarnation that is not its own"};
    for (u32 kind = 0; kind < 3; kind++) {
        struct peer_rig rig;
        rig_init(&rig, 11, 3, 1);
        rig.started_by_test = true;
        peer_rig_open(&rig);
        if (kind == 0) rig.nodes[1].secret[31] ^= 1;
        if (kind == 1) rig.nodes[1].identity.cluster_id++;
        if (kind == 2) rig.nodes[0].admit = refuse_node_2;
        for (u32 i = 0; i < 3; i++)
            peer_rig_start(&rig, i);
        for (u32 i = 0; i < 5; i++) {
            struct asked in = {.member = 1, .wait_ns = SECONDS(5)};
            ask_and_wait(&rig, 1, 0, &in);
            assert_true(status_is(in.st, ST_DENIED) && !in.call.maybe_sent);
            struct asked out = {.member = 2, .wait_ns = SECONDS(5)};
            ask_and_wait(&rig, 0, 0, &out);
            assert_true(status_is(out.st, ST_DENIED) && !out.call.maybe_sent);
        }
        assert_int_equal(apps[0][0].writes + apps[1][0].writes, 0);
        assert_int_equal(stats_of(&rig, 0, 0).connections, 0);
        assert_true(stats_of(&rig, 0, 0).refused >= 5);
        assert_true(sim_log_contains(rig.sim, said[kind]));
        struct asked friend = {.member = 1, .wait_ns = SECONDS(5)};
        ask_and_wait(&rig, 2, 0, &friend);
        assert_true(ok(friend.st));
        peer_rig_close(&rig);
    }
}

/* It was taken in, perhaps, and does not know it yet: it is called until it does. */
static void
who_has_no_cluster_yet_is_said_to_have_none_and_seldom(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 13, 2, 1);
    rig.started_by_test = true;
    peer_rig_open(&rig);
    rig.nodes[1].identity.cluster_id = 0;
    rig.nodes[1].identity.member = 0;
    peer_rig_start(&rig, 0);
    peer_rig_start(&rig, 1);
    for (u32 i = 0; i < 5; i++) {
        struct asked out = {.member = 2, .wait_ns = SECONDS(5)};
        ask_and_wait(&rig, 0, 0, &out);
        assert_true(status_is(out.st, ST_DENIED) && !out.call.maybe_sent);
        peer_rig_run(&rig, SECONDS(2)); /* it dials again */
    }
    assert_int_equal(stats_of(&rig, 0, 0).refused, 5);
    assert_true(sim_log_contains(rig.sim, "it has no cluster yet address=10.0.0.2:7100 refused=1"));
    assert_false(sim_log_contains(rig.sim, "refused=2"));
    assert_false(sim_log_contains(rig.sim, "is of another cluster"));
    peer_rig_run(&rig, SECONDS(60));
    struct asked again = {.member = 2, .wait_ns = SECONDS(5)};
    ask_and_wait(&rig, 0, 0, &again);
    assert_true(sim_log_contains(rig.sim, "refused=6"));
    peer_rig_close(&rig);
}

/* Whoever dials is the first to see that the secrets differ. Nobody dials back here. */
static void
who_is_dialed_with_another_secret_counts_and_logs_it(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 12, 2, 1);
    rig.started_by_test = true;
    peer_rig_open(&rig);
    rig.nodes[1].secret[31] ^= 1;
    peer_rig_start(&rig, 0);
    peer_rig_start(&rig, 1);
    for (u32 i = 0; i < 5; i++) {
        struct asked in = {.member = 1, .wait_ns = SECONDS(5)};
        ask_and_wait(&rig, 1, 0, &in);
        assert_true(status_is(in.st, ST_DENIED) && !in.call.maybe_sent);
        peer_rig_run(&rig, SECONDS(2)); /* it dials again */
    }
    assert_int_equal(stats_of(&rig, 0, 0).refused, 5);
    assert_int_equal(stats_of(&rig, 0, 0).connections, 0);
    assert_int_equal(apps[0][0].writes, 0);
    assert_true(sim_log_contains(rig.sim, "it does not take our proof of the secret"));
    peer_rig_close(&rig);
}

/* A connection by hand. */
struct raw {
    struct io_conn *conn;
    struct fiber_queue queue;
    struct buf in;
    bool closed;
};

static status
raw_opened(struct io_conn *conn, void *arg)
{
    struct raw *raw = arg;
    raw->conn = conn;
    io_conn_user_set(conn, raw);
    return ST_OK;
}

static size_t
raw_received(struct io_conn *conn, struct bytes data)
{
    struct raw *raw = io_conn_user(conn);
    assert_true(buf_append(&raw->in, data.data, data.size));
    fiber_queue_wake_all(&raw->queue);
    return data.size;
}

static void
raw_drained(struct io_conn *conn)
{
    (void)conn;
}

static void
raw_closed(struct io_conn *conn, status why)
{
    (void)why;
    struct raw *raw = io_conn_user(conn);
    raw->closed = true;
    fiber_queue_wake_all(&raw->queue);
}

static const struct io_conn_events raw_events = {
    .opened = raw_opened, .received = raw_received, .drained = raw_drained, .closed = raw_closed};

static MAY_YIELD void
raw_connect(struct raw *raw, const char *host)
{
    *raw = (struct raw){0};
    fiber_queue_init(&raw->queue);
    buf_init(&raw->in, io_budget());
    struct io_conn *conn;
    status st = io_connect(host, PEER_RIG_PORT, &raw_events, raw, FIBER_FOREVER, &conn);
    assert_true(ok(st));
}

/* What there was to read goes first. */
static MAY_YIELD bool
raw_closes_within(struct raw *raw, u64 ns)
{
    u64 until_ns = io_now_ns() + ns;
    while (!raw->closed && io_now_ns() < until_ns)
        (void)!ok(fiber_queue_wait(&raw->queue, until_ns));
    return raw->closed;
}

static MAY_YIELD void
raw_end(struct raw *raw)
{
    if (!raw->closed) io_conn_close(raw->conn, IO_CLOSE_ABORT);
    while (!raw->closed)
        (void)!ok(fiber_queue_wait(&raw->queue, FIBER_FOREVER));
    buf_deinit(&raw->in);
}

static void
raw_send(struct raw *raw, u8 opcode, u16 flags, u64 id, struct bytes body)
{
    struct buf frame;
    buf_init(&frame, io_budget());
    size_t start;
    struct native_header header = {.opcode = opcode, .flags = flags, .request_id = id};
    assert_true(native_frame_begin(&frame, &header, &start));
    assert_true(body.size == 0 || buf_append(&frame, body.data, body.size));
    native_frame_end(&frame, start);
    if (!raw->closed) assert_true(io_conn_write(raw->conn, frame.data, frame.size));
    buf_deinit(&frame);
}

/* The next frame; false: the connection ended before. */
static MAY_YIELD bool
raw_read(struct raw *raw, struct native_header *header, struct bytes *body, size_t *size)
{
    size_t wanted;
    status st;
    while (status_is(st = native_frame_decode(buf_bytes(&raw->in), header, body, size, &wanted),
                     ST_INCOMPLETE)) {
        if (raw->closed) return false;
        (void)!ok(fiber_queue_wait(&raw->queue, FIBER_FOREVER));
    }
    return ok(st);
}

/* As node 1 of the rig would, up to where the step says: 1 the hello, 2 the proof, 3 a wrong one.
 */
static MAY_YIELD bool
raw_handshake(struct raw *raw, const struct peer_rig_node *node, u32 step)
{
    struct peer_hello hello = {.version_min = 1,
                               .version_max = 1,
                               .member = node->identity.member,
                               .cluster_id = node->identity.cluster_id,
                               .incarnation = node->identity.incarnation};
    io_entropy(hello.nonce, sizeof(hello.nonce));
    u8 body[PEER_HELLO_BYTES_MAX], proof[HMAC_BYTES];
    size_t size = peer_hello_encode(&hello, body), consumed, answer_size;
    raw_send(raw, PEER_HELLO, 0, 1, BYTES(body, size));
    struct native_header header;
    struct bytes answer;
    if (step == 1) return true;
    if (!raw_read(raw, &header, &answer, &consumed)) return false;
    assert_true(answer.size > HMAC_BYTES);
    answer_size = answer.size - HMAC_BYTES;
    /* 3: what the other end has proved itself by does not serve the other way. */
    if (step == 3)
        memcpy(proof, answer.data + answer_size, HMAC_BYTES);
    else
        peer_proof(BYTES(node->secret, PEER_SECRET_BYTES), PEER_CONNECTS, BYTES(body, size),
                   BYTES(answer.data, answer_size), proof);
    buf_consume(&raw->in, consumed);
    raw_send(raw, PEER_PROOF, 0, 2, BYTES(proof, HMAC_BYTES));
    if (!raw_read(raw, &header, &answer, &consumed)) return false;
    buf_consume(&raw->in, consumed);
    return header.status == NATIVE_ST_OK;
}

static MAY_YIELD void
send_strange_bytes(struct peer_rig_node *node, void *arg)
{
    struct prng *prng = arg;
    static u8 junk[8000];
    for (u32 i = 0; i < sizeof(junk); i++)
        junk[i] = (u8)prng_u64(prng);
    struct raw raw;
    /* Bytes. */
    raw_connect(&raw, "10.0.0.2");
    assert_true(io_conn_write(raw.conn, junk, prng_range(prng, 1, sizeof(junk))));
    assert_true(raw_closes_within(&raw, SECONDS(1)));
    raw_end(&raw);
    /* A client's frames, and a peer's at the wrong time. */
    static const u8 opcodes[] = {NATIVE_HELLO, NATIVE_PUT, PEER_WRITE, PEER_PROOF, PEER_PING, 200};
    for (u32 i = 0; i < sizeof(opcodes); i++) {
        raw_connect(&raw, "10.0.0.2");
        raw_send(&raw, opcodes[i], 0, 1, BYTES(junk, prng_range(prng, 0, 200)));
        assert_true(raw_closes_within(&raw, SECONDS(1)));
        assert_int_equal(raw.in.size, 0);
        raw_end(&raw);
    }
    /* Much at once; a frame that says it is large. */
    raw_connect(&raw, "10.0.0.2");
    raw_send(&raw, PEER_HELLO, 0, 1, BYTES(junk, 5000));
    assert_true(raw_closes_within(&raw, SECONDS(1)));
    raw_end(&raw);
    /* Nothing, or half a hello, or no proof: 5 s. */
    for (u32 i = 0; i < 3; i++) {
        raw_connect(&raw, "10.0.0.2");
        if (i == 1)
            assert_true(io_conn_write(raw.conn,
                                      "\xd5"
                                      "DKV",
                                      4));
        if (i == 2) assert_true(raw_handshake(&raw, node, 1));
        assert_false(raw_closes_within(&raw, SECONDS(4)));
        assert_true(raw_closes_within(&raw, SECONDS(2)));
        raw_end(&raw);
    }
    /* A wrong proof. */
    raw_connect(&raw, "10.0.0.2");
    assert_false(raw_handshake(&raw, node, 3));
    assert_true(raw_closes_within(&raw, SECONDS(1)));
    raw_end(&raw);
    /* The right one, and then what a peer may not say: each ends the connection. */
    for (u32 i = 0; i < 6; i++) {
        raw_connect(&raw, "10.0.0.2");
        assert_true(raw_handshake(&raw, node, 2));
        assert_false(raw_closes_within(&raw, MS(100)));
        struct bytes none = BYTES(NULL, 0);
        if (i == 0) raw_send(&raw, NATIVE_GET, 0, 9, none);
        if (i == 1) raw_send(&raw, PEER_HELLO, 0, 9, none);
        if (i == 2) raw_send(&raw, PEER_WRITE, NATIVE_FLAG_REPLY, 9, none);
        if (i == 3) assert_true(io_conn_write(raw.conn, junk, 100));
        if (i == 4) { /* its body's checksum fails */
            struct native_header header = {.opcode = PEER_WRITE, .request_id = 9};
            struct buf frame;
            size_t start;
            buf_init(&frame, io_budget());
            assert_true(native_frame_begin(&frame, &header, &start));
            assert_true(buf_append(&frame, "body", 4));
            native_frame_end(&frame, start);
            frame.data[NATIVE_HEADER_BYTES] ^= 1;
            assert_true(io_conn_write(raw.conn, frame.data, frame.size));
            buf_deinit(&frame);
        }
        if (i == 5) /* more at once than it was told */
            for (u32 id = 1; id <= 17; id++)
                raw_send(&raw, PEER_PROPOSE, 0, id, none);
        assert_true(raw_closes_within(&raw, SECONDS(1)));
        raw_end(&raw);
    }
}

static void
strange_bytes_end_the_connection_and_nothing_else(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(20); seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 2, 1);
        rig.options.net.single_bytes = seed % 3 == 0;
        rig.started_by_test = true;
        peer_rig_open(&rig);
        rig.nodes[1].requests_max = 16;
        peer_rig_start(&rig, 0);
        peer_rig_start(&rig, 1);
        assert_true(peer_rig_do(&rig, 0, 0, send_strange_bytes, sim_prng(rig.sim)));
        assert_int_equal(apps[1][0].writes + apps[1][0].posts, 0);
        assert_int_equal(apps[1][0].proposes, 16);
        assert_int_equal(stats_of(&rig, 1, 0).connections, 0);
        assert_int_equal(stats_of(&rig, 1, 0).requests_under_way, 16); /* not answered yet */
        peer_rig_do(&rig, 1, 0, let_go, NULL);
        assert_int_equal(stats_of(&rig, 1, 0).requests_under_way, 0);
        struct asked asked = {.member = 2};
        ask_and_wait(&rig, 0, 0, &asked);
        assert_true(ok(asked.st));
        peer_rig_close(&rig);
    }
}

static MAY_YIELD void
come_in_crowds(struct peer_rig_node *node, void *arg)
{
    (void)node;
    u32 *refused = arg;
    static struct raw raws[300];
    for (u32 i = 0; i < 300; i++)
        raw_connect(&raws[i], "10.0.0.2");
    fiber_sleep_ns(SECONDS(1));
    for (u32 i = 0; i < 300; i++)
        *refused += raws[i].closed;
    fiber_sleep_ns(SECONDS(6));
    for (u32 i = 0; i < 300; i++) {
        assert_true(raws[i].closed);
        raw_end(&raws[i]);
    }
}

static void
not_too_many_strangers_at_once(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 1, 2, 1);
    peer_rig_open(&rig);
    u32 refused = 0;
    assert_true(peer_rig_do(&rig, 0, 0, come_in_crowds, &refused));
    assert_int_equal(refused, 300 - 256);
    struct asked asked = {.member = 2};
    ask_and_wait(&rig, 0, 0, &asked);
    assert_true(ok(asked.st));
    peer_rig_close(&rig);
}

/* A listener that answers as no node would. */
struct fake {
    u32 kind;
    struct io_listener *listener;
};

static size_t
fake_received(struct io_conn *conn, struct bytes data)
{
    struct fake *fake = io_conn_user(conn);
    struct native_header header;
    struct bytes body;
    size_t consumed, wanted;
    if (!ok(native_frame_decode(data, &header, &body, &consumed, &wanted))) return 0;
    struct raw raw = {.conn = conn};
    u8 junk[200] = {1, 1};
    switch (fake->kind) {
    case 0: /* what it heard itself */
        raw_send(&raw, header.opcode, NATIVE_FLAG_REPLY, header.request_id, body);
        break;
    case 1:
        raw_send(&raw, PEER_HELLO, NATIVE_FLAG_REPLY, 1, BYTES(junk, 60 + HMAC_BYTES + 3));
        break;
    case 2:
        raw_send(&raw, PEER_HELLO, 0, 1, body);
        break;
    case 3:
        raw_send(&raw, PEER_PROOF, NATIVE_FLAG_REPLY, 2, BYTES(NULL, 0));
        break;
    case 4:
        assert_true(io_conn_write(conn, junk, sizeof(junk)));
        break;
    case 5:
        io_conn_close(conn, IO_CLOSE_FLUSH);
        break;
    default: /* nothing */
        break;
    }
    return consumed;
}

static status
fake_opened(struct io_conn *conn, void *arg)
{
    io_conn_user_set(conn, arg);
    return ST_OK;
}

static void
fake_closed(struct io_conn *conn, status why)
{
    (void)conn;
    (void)why;
}

static const struct io_conn_events fake_events = {.opened = fake_opened,
                                                  .received = fake_received,
                                                  .drained = raw_drained,
                                                  .closed = fake_closed};

static MAY_YIELD status
fake_main(struct peer_rig_node *node)
{
    if (node->index == 0) return node_main(node);
    struct fake *fake = node->rig->arg;
    status st = io_listen(node->host, PEER_RIG_PORT, &fake_events, fake, &fake->listener);
    if (!ok(st)) return st;
    peer_rig_serve(node);
    io_listener_close(fake->listener);
    return ST_OK;
}

static void
who_answers_strangely_is_told_nothing(void **state)
{
    (void)state;
    for (u32 kind = 0; kind < 7; kind++) {
        struct fake fake = {.kind = kind};
        struct peer_rig rig;
        rig_init(&rig, 1 + kind, 2, 1);
        rig.shard_main = fake_main;
        rig.arg = &fake;
        peer_rig_open(&rig);
        struct asked asked = {.member = 2, .body_size = 100, .wait_ns = SECONDS(20)};
        ask_and_wait(&rig, 0, 0, &asked);
        assert_true(status_is(asked.st, kind < 5 ? ST_DENIED : ST_CLOSED) ||
                    (kind == 4 && status_is(asked.st, ST_CLOSED)));
        assert_false(asked.call.maybe_sent);
        if (kind == 6) assert_in_range(asked.took_ns, MS(1500), SECONDS(3));
        peer_rig_close(&rig);
    }
}

/* ---- bounds ---- */

struct many {
    struct asked *asked;
    u32 count;
};

/* In one go: the first of them makes the connection, or has it made. */
static void
ask_many(struct peer_rig_node *node, void *arg)
{
    struct many *many = arg;
    for (u32 i = 0; i < many->count; i++)
        ask(node, &many->asked[i]);
}

static void
no_more_calls_than_the_peer_allows(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 12, 2, 1);
    rig.started_by_test = true;
    peer_rig_open(&rig);
    rig.nodes[1].requests_max = 4;
    peer_rig_start(&rig, 0);
    peer_rig_start(&rig, 1);
    struct asked first[10], second[4], third;
    for (u32 i = 0; i < 10; i++)
        first[i] = (struct asked){.member = 2, .opcode = PEER_PROPOSE, .wait_ns = MS(500)};
    struct many many = {.asked = first, .count = 10};
    peer_rig_do(&rig, 0, 0, ask_many, &many); /* before the peer has said how many */
    peer_rig_run(&rig, MS(400));
    u32 under_way = 0;
    for (u32 i = 0; i < 10; i++) {
        under_way += first[i].done == 0;
        if (first[i].done == 0) continue;
        assert_true(status_is(first[i].st, ST_OVERLOADED) && !first[i].call.maybe_sent);
    }
    assert_int_equal(under_way, 4);
    assert_int_equal(apps[1][0].proposes, 4);
    /* Nobody waits for them any more, but the peer is at work on them. */
    peer_rig_run(&rig, SECONDS(1));
    third = (struct asked){.member = 2};
    ask_and_wait(&rig, 0, 0, &third);
    assert_true(status_is(third.st, ST_OVERLOADED) && !third.call.maybe_sent);
    peer_rig_do(&rig, 1, 0, let_go, NULL);
    peer_rig_run(&rig, MS(50));
    for (u32 i = 0; i < 4; i++) {
        second[i] = (struct asked){.member = 2};
        ask_and_wait(&rig, 0, 0, &second[i]);
        assert_true(ok(second[i].st));
    }
    assert_int_equal(stats_of(&rig, 1, 0).refused, 0);
    peer_rig_close(&rig);
}

static void
what_cannot_go_out_is_refused_above_a_bound(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 13, 2, 1);
    peer_rig_open(&rig);
    for (u32 connected = 0; connected < 2; connected++) {
        if (connected) {
            struct asked hello = {.member = 2};
            ask_and_wait(&rig, 0, 0, &hello);
            assert_true(ok(hello.st));
        }
        peer_rig_cut(&rig, 0, 1);
        static struct asked asked[100];
        u32 overloaded = 0, member = 2;
        for (u32 i = 0; i < 100; i++) {
            asked[i] = (struct asked){.member = 2, .body_size = 20000, .wait_ns = MS(400)};
            peer_rig_do(&rig, 0, 0, ask, &asked[i]);
        }
        peer_rig_do(&rig, 0, 0, post, &member);
        u64 used = rig.nodes[0].shards[0].budget.used_bytes;
        assert_true(used < KIB(800));
        peer_rig_run(&rig, SECONDS(1));
        for (u32 i = 0; i < 100; i++) {
            assert_int_equal(asked[i].done, 1);
            if (!status_is(asked[i].st, ST_OVERLOADED)) continue;
            overloaded++;
            assert_false(asked[i].call.maybe_sent);
        }
        assert_true(overloaded >= 60 && overloaded < 100);
        assert_int_equal(stats_of(&rig, 0, 0).posts_dropped, 1 + connected);
        peer_rig_heal(&rig, 0, 1);
        peer_rig_run(&rig, SECONDS(5));
    }
    struct asked last = {.member = 2, .wait_ns = SECONDS(5)};
    ask_and_wait(&rig, 0, 0, &last);
    assert_true(ok(last.st));
    peer_rig_close(&rig);
}

/* Whoever gets no ping out takes the peer for dead, and others decide beside it. */
static void
pings_go_out_beside_what_waits(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 17, 2, 1);
    peer_rig_open(&rig);
    static struct asked many_asked[1200];
    for (u32 i = 0; i < ARRAY_COUNT(many_asked); i++)
        many_asked[i] = (struct asked){.member = 2, .opcode = PEER_PROPOSE, .wait_ns = SECONDS(1)};
    struct many many = {.asked = many_asked, .count = ARRAY_COUNT(many_asked)};
    peer_rig_do(&rig, 0, 0, ask_many, &many);
    peer_rig_run(&rig, MS(100));
    struct asked write = {.member = 2}, ping = {.member = 2, .opcode = PEER_PING};
    ask_and_wait(&rig, 0, 0, &write);
    assert_true(status_is(write.st, ST_OVERLOADED));
    ask_and_wait(&rig, 0, 0, &ping);
    assert_true(ok(ping.st) && ping.call.maybe_sent);
    peer_rig_run(&rig, SECONDS(1));
    peer_rig_do(&rig, 1, 0, let_go, NULL);
    peer_rig_run(&rig, MS(50));

    /* And behind bytes that do not go out now. */
    peer_rig_cut(&rig, 0, 1);
    static struct asked large[100];
    for (u32 i = 0; i < ARRAY_COUNT(large); i++)
        large[i] = (struct asked){.member = 2, .body_size = 20000, .wait_ns = MS(400)};
    struct many all = {.asked = large, .count = ARRAY_COUNT(large)};
    peer_rig_do(&rig, 0, 0, ask_many, &all);
    ping = (struct asked){.member = 2, .opcode = PEER_PING, .wait_ns = MS(400)};
    peer_rig_do(&rig, 0, 0, ask, &ping);
    peer_rig_run(&rig, MS(10));
    assert_true(status_is(large[99].st, ST_OVERLOADED));
    assert_int_equal(ping.done, 0);
    peer_rig_heal(&rig, 0, 1);
    peer_rig_run(&rig, SECONDS(1));
    assert_int_equal(ping.done, 1);
    assert_true(ping.call.maybe_sent);
    peer_rig_close(&rig);
}

static MAY_YIELD void
do_not_read(struct peer_rig_node *node, void *arg)
{
    (void)arg;
    struct raw raw;
    raw_connect(&raw, "10.0.0.2");
    assert_true(raw_handshake(&raw, node, 2));
    io_conn_pause(raw.conn);
    u8 *body = mem_alloc_zero(io_budget(), 30000);
    assert_non_null(body);
    for (u64 id = 1; id <= 400; id++) {
        raw_send(&raw, PEER_WRITE, 0, id, BYTES(body, 30000));
        fiber_sleep_ns(MS(1));
    }
    mem_free(io_budget(), body, 30000);
    fiber_sleep_ns(MS(500));
    /* The other end has stopped reading: neither side holds all of it. */
    assert_true(apps[1][0].writes < 300);
    assert_false(raw.closed);
    io_conn_resume(raw.conn);
    struct native_header header;
    struct bytes answer;
    size_t size;
    for (u64 id = 1; id <= 400; id++) {
        assert_true(raw_read(&raw, &header, &answer, &size));
        assert_true(header.request_id == id && answer.size == 30000);
        buf_consume(&raw.in, size);
    }
    raw_end(&raw);
}

static void
who_does_not_read_answers_is_not_read_from(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 14, 2, 1);
    peer_rig_open(&rig);
    assert_true(peer_rig_do(&rig, 0, 0, do_not_read, NULL));
    assert_int_equal(apps[1][0].writes, 400);
    peer_rig_close(&rig);
}

static void
without_memory_calls_are_refused_and_nothing_breaks(void **state)
{
    (void)state;
    for (u32 with_caller = 0; with_caller < 2; with_caller++) {
        struct peer_rig rig;
        rig_init(&rig, 15, 2, 1);
        rig.started_by_test = true;
        peer_rig_open(&rig);
        rig.nodes[with_caller ? 0 : 1].budget_bytes = 12000;
        peer_rig_start(&rig, 0);
        peer_rig_start(&rig, 1);
        static struct asked asked[200];
        for (u32 i = 0; i < 200; i++) {
            asked[i] = (struct asked){.member = 2,
                                      .opcode = i % 2 == 0 ? PEER_PROPOSE : PEER_WRITE,
                                      .body_size = 500,
                                      .wait_ns = SECONDS(2)};
        }
        struct many many = {.asked = asked, .count = 200};
        peer_rig_do(&rig, 0, 0, ask_many, &many);
        peer_rig_run(&rig, SECONDS(3));
        u32 fine = 0, refused = 0;
        for (u32 i = 0; i < 200; i++) {
            assert_int_equal(asked[i].done, 1);
            bool overloaded = ok(asked[i].st) ? asked[i].answer.status == NATIVE_ST_OVERLOADED
                                              : status_is(asked[i].st, ST_OVERLOADED);
            refused += overloaded;
            fine += ok(asked[i].st) && !overloaded;
        }
        assert_true(fine > 0 && refused > 0);
        peer_rig_close(&rig);
    }
}

static MAY_YIELD void
hold_fiber(void *arg)
{
    (void)arg;
    fiber_sleep_ns(SECONDS(1));
}

static MAY_YIELD void
ask_without_fibers(struct peer_rig_node *node, void *arg)
{
    while (ok(fiber_spawn(FIBER_FOREGROUND, "hold", hold_fiber, NULL)))
        continue;
    ask_many(node, arg);
    fiber_sleep_ns(SECONDS(1)); /* the last one */
}

/* Not as if the peer were not there: who believes that asks another one, beside it. */
static void
what_needs_a_connection_waits_for_a_fiber(void **state)
{
    (void)state;
    struct peer_rig rig;
    rig_init(&rig, 16, 2, 1);
    peer_rig_open(&rig);
    struct asked asked[2] = {
        {.member = 2, .wait_ns = SECONDS(3)},
        {.member = 2, .wait_ns = MS(500)},
    };
    struct many many = {.asked = asked, .count = 2};
    peer_rig_do(&rig, 0, 0, ask_without_fibers, &many);
    peer_rig_run(&rig, SECONDS(3));
    assert_int_equal(asked[0].done, 1);
    assert_true(ok(asked[0].st));
    assert_in_range(asked[0].took_ns, MS(900), MS(1300));
    assert_int_equal(asked[1].done, 1);
    assert_true(status_is(asked[1].st, ST_TIMED_OUT));
    assert_false(asked[1].call.maybe_sent);
    peer_rig_close(&rig);

    /* When nobody waits any more nothing is kept of those who have. */
    rig_init(&rig, 16, 2, 1);
    peer_rig_open(&rig);
    for (u32 i = 0; i < 2; i++)
        asked[i] = (struct asked){.member = 2, .body_size = 1000, .wait_ns = MS(200)};
    peer_rig_do(&rig, 0, 0, ask_without_fibers, &many);
    peer_rig_run(&rig, MS(900)); /* there is no fiber yet */
    const struct peers *peers = rig.nodes[0].shards[0].peers;
    u32 found = 0;
    list_for_each (pos, &peers->links) {
        const struct peer_link *link = list_entry(pos, struct peer_link, link);
        if (link->member != 2) continue;
        assert_int_equal(link->slots_used, 0);
        assert_int_equal(link->waiting.size, 0);
        found++;
    }
    assert_int_equal(found, 1);
    assert_true(status_is(asked[0].st, ST_TIMED_OUT));
    peer_rig_close(&rig);
}

/* ---- the end ---- */

struct chain {
    struct peer_call call;
    struct peers *peers;
    u32 done, closed, member;
};

static void
chain_start(struct chain *chain)
{
    struct native_header header = {.opcode = PEER_WRITE};
    peer_call_start(chain->peers, &chain->call, chain->member, 0, &header, NULL, 0,
                    io_now_ns() + SECONDS(1));
}

static void
chain_done(struct peer_call *call, status st, const struct native_header *header, struct bytes body)
{
    (void)header;
    (void)body;
    struct chain *chain = CONTAINER_OF(call, struct chain, call);
    chain->done++;
    chain->closed += status_is(st, ST_CLOSED);
    if (chain->closed < 3) chain_start(chain); /* from inside of done */
}

static void
chain_begin(struct peer_rig_node *node, void *arg)
{
    struct chain *chain = arg;
    chain->peers = peer_rig_peers(node);
    peer_call_init(&chain->call, chain_done);
    chain_start(chain);
}

static void
the_end_comes_with_calls_under_way(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= FEWER(30); seed++) {
        struct peer_rig rig;
        rig_init(&rig, seed, 3, 1);
        peer_rig_open(&rig);
        struct chain chain = {.member = 2};
        peer_rig_do(&rig, 0, 0, chain_begin, &chain);
        struct asked asked[30];
        for (u32 i = 0; i < 30; i++) {
            asked[i] = (struct asked){.member = 1 + i % 3,
                                      .opcode = i % 2 == 0 ? PEER_PROPOSE : PEER_READ,
                                      .delay_ns = MS(300),
                                      .body_size = 8 + i * 1000};
            peer_rig_do(&rig, 0, 0, ask, &asked[i]);
        }
        if (seed % 3 == 0) peer_rig_crash(&rig, 2, false); /* in the middle of connecting */
        peer_rig_run(&rig, prng_range(sim_prng(rig.sim), 1, MS(10)));
        u32 first = seed % 2 == 0 ? 1 : 0;
        peer_rig_stop(&rig, first);
        if (first == 1) {
            peer_rig_run(&rig, MS(100));
            peer_rig_stop(&rig, 0);
        }
        for (u32 i = 0; i < 30; i++) {
            assert_int_equal(asked[i].done, 1);
            if (!ok(asked[i].st)) assert_true(status_is(asked[i].st, ST_CLOSED));
        }
        assert_true(chain.closed >= 3 || chain.done > 0);
        peer_rig_close(&rig);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_reaches_the_shard_and_its_answer_comes_back),
        cmocka_unit_test(what_a_handler_says_is_an_answer_whatever_the_status),
        cmocka_unit_test(large_bodies_go_both_ways),
        cmocka_unit_test(an_answer_that_does_not_fit_leaves_the_outcome_unknown),
        cmocka_unit_test(answers_come_in_any_order_to_who_asked),
        cmocka_unit_test(a_fiber_waits_for_its_answer),
        cmocka_unit_test(a_call_ends_at_its_deadline_and_a_late_answer_meets_nobody),
        cmocka_unit_test(a_cancelled_call_is_never_told),
        cmocka_unit_test(who_is_not_there_is_said_at_once_and_not_sent_to),
        cmocka_unit_test(a_crash_in_the_middle_ends_each_call_once),
        cmocka_unit_test(a_cut_link_is_noticed_by_its_silence_and_used_again_once_healed),
        cmocka_unit_test(a_cut_in_the_handshake_is_noticed_as_soon),
        cmocka_unit_test(a_slow_answer_is_no_silence),
        cmocka_unit_test(what_is_posted_comes_once_there_is_a_connection),
        cmocka_unit_test(a_node_that_is_no_member_may_join_and_no_more),
        cmocka_unit_test(the_identity_changes_under_calls_and_none_is_lost),
        cmocka_unit_test(a_seed_is_let_go_after_ten_idle_seconds),
        cmocka_unit_test(a_member_that_moves_or_goes_ends_its_calls),
        cmocka_unit_test(strangers_are_refused_counted_and_logged_at_a_limited_rate),
        cmocka_unit_test(who_has_no_cluster_yet_is_said_to_have_none_and_seldom),
        cmocka_unit_test(who_is_dialed_with_another_secret_counts_and_logs_it),
        cmocka_unit_test(strange_bytes_end_the_connection_and_nothing_else),
        cmocka_unit_test(not_too_many_strangers_at_once),
        cmocka_unit_test(who_answers_strangely_is_told_nothing),
        cmocka_unit_test(no_more_calls_than_the_peer_allows),
        cmocka_unit_test(what_cannot_go_out_is_refused_above_a_bound),
        cmocka_unit_test(pings_go_out_beside_what_waits),
        cmocka_unit_test(who_does_not_read_answers_is_not_read_from),
        cmocka_unit_test(without_memory_calls_are_refused_and_nothing_breaks),
        cmocka_unit_test(what_needs_a_connection_waits_for_a_fiber),
        cmocka_unit_test(the_end_comes_with_calls_under_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
