/* SPDX-License-Identifier: MIT
 *
 * test_cluster_late.c -- writes of the native protocol that come late or twice, to clusters of
 * whole nodes on the simulated link. A node stands still; its client gives it up, has the write
 * done by another node, and others write on top of it: whatever the node still holds of the first
 * attempt must not be done then. And a node that is stopped before all of its shards are in: what
 * was sent on to those that are ends in order.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"
#include "cluster/cluster.h"
#include "cluster/peer_internal.h"
#include "cluster_rig.h"
#include "proto/native.h"
#include "server/exec.h"
#include "server/native.h"

#ifdef __SANITIZE_ADDRESS__
#define SEED_COUNT 1u
#else
#define SEED_COUNT 4u
#endif
#define NODES   3u
#define WAIT_NS (60 * NS_PER_S)
/* How long the first node stands still: longer than its client waits at least. */
#define STANDS_NS (4 * NS_PER_S)

/* ---- requests ---- */

static void
configure(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 2);
}

static void
run_seeds(void (*story)(struct rig *rig), void *arg)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = 2,
                          .node_count = NODES,
                          .configure = configure,
                          .story = story,
                          .arg = arg};
        sim_options_default(&rig.options, seed);
        rig_run(&rig);
    }
}

static struct native_request
put_of(u64 id, u32 age_ms, const char *key, const char *value)
{
    return (struct native_request){
        .header = {.opcode = NATIVE_PUT, .timeout_ms = 10000, .age_ms = age_ms},
        .id.word = {id, 1},
        .op = {.kind = NATIVE_OP_PUT,
               .key = BYTES(key, strlen(key)),
               .value = BYTES(value, strlen(value))}};
}

static MAY_YIELD u32
put(struct rig_client *client, u64 id, u32 age_ms, const char *key, const char *value)
{
    struct native_request request = put_of(id, age_ms, key, value);
    return rig_native_call(client, &request).header.status;
}

static MAY_YIELD u32
put_if_absent(struct rig_client *client, u64 id, u32 age_ms, const char *key, u16 *flags)
{
    struct native_request request = put_of(id, age_ms, key, "once");
    request.op.condition = NATIVE_IF_ABSENT;
    struct native_reply reply = rig_native_call(client, &request);
    *flags = reply.header.flags;
    return reply.header.status;
}

static MAY_YIELD void
expect_node_has(struct rig *rig, u32 node, const char *key, const char *value)
{
    struct rig_client client;
    struct native_request request = {.header.opcode = NATIVE_GET,
                                     .get.key = BYTES(key, strlen(key))};
    rig_native_connect(rig, node, 0, &client);
    struct native_reply reply = rig_native_call(&client, &request);
    CHECK(reply.header.status == NATIVE_ST_OK);
    if (!bytes_equal(reply.get.value, BYTES(value, strlen(value))))
        fprintf(stderr, "n%u has %.*s, not %s\n", node + 1, (int)reply.get.value.size,
                (const char *)reply.get.value.data, value);
    CHECK(bytes_equal(reply.get.value, BYTES(value, strlen(value))));
    rig_disconnect(&client);
}

static void
key_of(struct rig *rig, u32 shard, char *out, size_t size)
{
    cluster_rig_key(rig, 0, shard, out, size);
}

static void
stand_still(struct rig *rig, u32 node, u32 shard)
{
    sim_node_shard_stall(rig->nodes[node].machine, shard, STANDS_NS);
}

/* ---- what a node holds that stood still ---- */

/* Where the write waits when the node stops. */
enum place { IN_SOCKET, IN_MAIL, FORWARDED };

static MAY_YIELD void
late_story(struct rig *rig)
{
    enum place place = *(enum place *)rig->arg;
    struct rig_client first, second, third;
    char key[16];
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    key_of(rig, 1, key, sizeof(key));
    rig_native_connect(rig, place == FORWARDED ? 2 : 0, 0, &first);
    rig_native_connect(rig, 1, 0, &second);
    CHECK(put(&first, 1, 0, key, "before") == NATIVE_ST_OK); /* and makes connections */

    struct native_request request = put_of(2, 0, key, "old");
    stand_still(rig, 0, 1);
    if (place == IN_SOCKET) stand_still(rig, 0, 0);
    rig_native_send(&first, &request);
    fiber_sleep_ns(50 * NS_PER_MS);
    stand_still(rig, 0, 0);

    /* Nothing is heard of it: another node has it done, and another client writes. */
    fiber_sleep_ns(NATIVE_ELSEWHERE_MS * NS_PER_MS);
    CHECK(put(&second, 2, NATIVE_ELSEWHERE_MS, key, "old") == NATIVE_ST_OK);
    CHECK(put(&second, 3, 0, key, "new") == NATIVE_ST_OK);
    fiber_sleep_ns(STANDS_NS);
    for (u32 i = 0; i < NODES; i++)
        expect_node_has(rig, i, key, "new");

    /* Who is still there is told that nothing was done, and goes on over another connection. */
    struct native_reply reply;
    bool answered = rig_native_reply(&first, &reply);
    if (place == IN_SOCKET)
        CHECK(answered && reply.header.status == NATIVE_ST_CLOSING);
    else if (place == IN_MAIL)
        CHECK(answered && native_status_retryable(reply.header.status));
    rig_native_connect(rig, 0, 0, &third);
    CHECK(put(&third, 4, 0, key, "newer") == NATIVE_ST_OK);
    for (u32 i = 0; i < NODES; i++)
        expect_node_has(rig, i, key, "newer");
    rig_disconnect(&first);
    rig_disconnect(&second);
    rig_disconnect(&third);
}

static void
run_late(enum place place)
{
    run_seeds(late_story, &place);
}

static void
what_lay_in_the_socket_of_a_node_that_stood_still_is_not_done(void **state)
{
    run_late(IN_SOCKET);
}

static void
what_was_on_its_way_between_shards_is_not_done(void **state)
{
    run_late(IN_MAIL);
}

static void
what_was_sent_on_to_it_is_not_done(void **state)
{
    run_late(FORWARDED);
}

/* It waits for room before its runner, whose link is full, when the node that would send it on
 * stops. (When its link has room again it is too late.) */
static void
link_take(struct rig *rig, u32 node, u32 to, u32 shard, u32 requests_max)
{
    const struct server *server = rig->nodes[node].server;
    struct peers *peers = server->cluster->shards[0]->peers;
    u32 member = cluster_member(rig->nodes[to].server->cluster), found = 0;
    list_for_each (pos, &peers->links) {
        struct peer_link *link = list_entry(pos, struct peer_link, link);
        if (link->member != member || link->shard != shard) continue;
        link->requests_max = requests_max;
        found++;
    }
    CHECK(found == 1);
}

static MAY_YIELD void
full_link_story(struct rig *rig)
{
    struct rig_client first, second;
    char key[16];
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    key_of(rig, 1, key, sizeof(key));
    rig_native_connect(rig, 2, 0, &first);
    rig_native_connect(rig, 1, 0, &second);
    CHECK(put(&first, 1, 0, key, "before") == NATIVE_ST_OK);
    link_take(rig, 2, 0, 1, 0);
    struct native_request request = put_of(2, 0, key, "old");
    request.id = (struct native_id){0};     /* so nobody remembers that it was done, */
    request.op.expiry = NATIVE_EXPIRY_KEEP; /* and it reads first: one replica runs it */
    rig_native_send(&first, &request);
    fiber_sleep_ns(50 * NS_PER_MS);
    stand_still(rig, 2, 0);
    stand_still(rig, 2, 1);
    fiber_sleep_ns(NATIVE_ELSEWHERE_MS * NS_PER_MS);
    link_take(rig, 2, 0, 1, PEER_REQUESTS_MAX_DEFAULT);
    CHECK(rig_native_call(&second, &request).header.status == NATIVE_ST_OK);
    CHECK(put(&second, 3, 0, key, "new") == NATIVE_ST_OK);
    fiber_sleep_ns(STANDS_NS);
    struct native_reply reply;
    bool answered = rig_native_reply(&first, &reply);
    CHECK(!answered || native_status_retryable(reply.header.status));
    for (u32 i = 0; i < NODES; i++)
        expect_node_has(rig, i, key, "new");
    rig_disconnect(&first);
    rig_disconnect(&second);
}

static void
what_waited_for_room_is_not_sent_on_late(void **state)
{
    run_seeds(full_link_story, NULL);
}

/* A shard that had no memory for the address of the runner looks for it again; meanwhile no other
 * replica runs what keeps its place. */
static MAY_YIELD void
no_address_story(struct rig *rig)
{
    struct rig_client client;
    char key[16];
    u16 flags;
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    key_of(rig, 1, key, sizeof(key));
    rig_native_connect(rig, 2, 1, &client);
    struct cluster_shard *shard = rig->nodes[2].server->cluster->shards[1];
    peers_member_remove(shard->peers, cluster_member(rig->nodes[0].server->cluster));
    shard->addresses_lacked = true;
    u64 first = cluster_rig_forwarded(rig, 0), second = cluster_rig_forwarded(rig, 1);
    CHECK(put_if_absent(&client, 1, 0, key, &flags) == NATIVE_ST_OK);
    CHECK(cluster_rig_forwarded(rig, 0) == first + 1);
    CHECK(cluster_rig_forwarded(rig, 1) == second);
    CHECK(!shard->addresses_lacked);
    rig_disconnect(&client);
}

static void
a_runner_whose_address_is_lacked_is_waited_for(void **state)
{
    run_seeds(no_address_story, NULL);
}

/* ---- what waits for its turn ---- */

#define AHEAD_MS 5000u

/* A connection has as many requests under way as it may, and they wait for another node's shard,
 * which stands still: what came behind them is as old when they end. */
static MAY_YIELD void
behind_others_story(struct rig *rig)
{
    struct rig_client first, second;
    char key[16], other[16];
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    key_of(rig, 1, key, sizeof(key));
    cluster_rig_key(rig, 1, 1, other, sizeof(other));
    rig_native_connect(rig, 0, 0, &first);
    rig_native_connect(rig, 2, 0, &second);
    CHECK(put(&first, 1, 0, key, "before") == NATIVE_ST_OK);
    sim_node_shard_stall(rig->nodes[1].machine, 1, (AHEAD_MS + 1000) * NS_PER_MS);
    for (u32 i = 0; i < SESSION_REQUESTS_MAX; i++) {
        struct native_request ahead = put_of(100 + i, 0, other, "ahead");
        ahead.header.timeout_ms = AHEAD_MS;
        rig_native_send(&first, &ahead);
    }
    struct native_request request = put_of(2, 0, key, "old");
    request.id = (struct native_id){0}; /* so nobody remembers that it was done */
    rig_native_send(&first, &request);

    fiber_sleep_ns(NATIVE_ELSEWHERE_MS * NS_PER_MS);
    CHECK(rig_native_call(&second, &request).header.status == NATIVE_ST_OK);
    CHECK(put(&second, 3, 0, key, "new") == NATIVE_ST_OK);
    u32 closing = 0;
    for (u32 i = 0; i <= SESSION_REQUESTS_MAX; i++) {
        struct native_reply reply;
        CHECK(rig_native_reply(&first, &reply));
        closing += reply.header.status == NATIVE_ST_CLOSING;
    }
    fiber_sleep_ns(5 * NS_PER_S); /* who stood still lets clients in again */
    for (u32 i = 0; i < NODES; i++)
        expect_node_has(rig, i, key, "new");
    CHECK(closing == 1);
    rig_disconnect(&first);
    rig_disconnect(&second);
}

static void
what_has_waited_behind_others_is_not_done(void **state)
{
    run_seeds(behind_others_story, NULL);
}

/* ---- a write that comes again while another node has become the one that runs it ---- */

enum change { NOTHING_CHANGES, RUNNER_DIES, RUNNER_IS_ANOTHER_PROCESS };

static MAY_YIELD void
again_story(struct rig *rig)
{
    enum change change = *(enum change *)rig->arg;
    struct rig_client first, again;
    char key[16];
    u16 flags;
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fiber_sleep_ns(5 * NS_PER_S); /* what has changed while they started is older than all below */
    key_of(rig, 1, key, sizeof(key));
    rig_native_connect(rig, 2, 0, &first);
    u64 sent_ns = io_now_ns();
    CHECK(put_if_absent(&first, 1, 0, key, &flags) == NATIVE_ST_OK); /* and this is lost */
    rig_disconnect(&first);
    if (change == RUNNER_DIES || change == RUNNER_IS_ANOTHER_PROCESS) {
        rig_crash(rig, 0);
        if (change == RUNNER_IS_ANOTHER_PROCESS) rig_start(rig, 0);
        fiber_sleep_ns(NS_PER_S);
    }
    rig_native_connect(rig, 2, 0, &again);
    u32 age_ms = (u32)((io_now_ns() - sent_ns) / NS_PER_MS) + 1;
    u32 outcome = put_if_absent(&again, 1, age_ms, key, &flags);
    if (change == NOTHING_CHANGES)
        CHECK(outcome == NATIVE_ST_OK && (flags & NATIVE_FLAG_REPLAYED) != 0);
    else
        CHECK(outcome == NATIVE_ST_UNKNOWN_OUTCOME);
    /* What was first sent since is judged as ever. */
    fiber_sleep_ns(NS_PER_S);
    CHECK(put_if_absent(&again, 2, 0, key, &flags) == NATIVE_ST_CONFLICT);
    rig_disconnect(&again);
    rig_native_connect(rig, 2, 0, &again);
    CHECK(put_if_absent(&again, 3, 5, key, &flags) == NATIVE_ST_CONFLICT);
    rig_disconnect(&again);
    if (change == RUNNER_DIES) rig_start(rig, 0);
}

static void
run_again(enum change change)
{
    run_seeds(again_story, &change);
}

static void
a_retry_is_answered_from_where_the_write_was_done(void **state)
{
    run_again(NOTHING_CHANGES);
}

static void
a_retry_that_another_node_would_judge_is_unknown(void **state)
{
    run_again(RUNNER_DIES);
}

static void
a_retry_that_another_process_would_judge_is_unknown(void **state)
{
    run_again(RUNNER_IS_ANOTHER_PROCESS);
}

/* ---- a write that comes again and is on its way to another node for long ---- */

/* Longer than all that happens before it, so that it looks younger than what was forgotten. */
#define HELD_NS (300 * NS_PER_MS)

/* The next outcome takes the place of the oldest: as if the ring were full. */
static MAY_YIELD void
ring_begins(struct shard *shard, void *arg)
{
    (void)arg;
    shard->native->next = 0;
}

static MAY_YIELD void
held_story(struct rig *rig)
{
    bool forgotten = *(bool *)rig->arg;
    struct rig_client first, again;
    char key[16];
    u16 flags;
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fiber_sleep_ns(5 * NS_PER_S);
    key_of(rig, 1, key, sizeof(key));
    rig_native_connect(rig, 2, 0, &first);
    rig_on_node(rig, 0, 1, ring_begins, NULL);
    u64 sent_ns = io_now_ns();
    CHECK(put_if_absent(&first, 1, 0, key, &flags) == NATIVE_ST_OK); /* and this is lost */
    if (forgotten) rig_on_node(rig, 0, 1, ring_begins, NULL);
    CHECK(put(&first, 2, 0, key, "newer") == NATIVE_ST_OK);
    rig_disconnect(&first);

    rig_native_connect(rig, 2, 0, &again);
    u32 age_ms = (u32)((io_now_ns() - sent_ns) / NS_PER_MS) + 1;
    CHECK(age_ms < HELD_NS / NS_PER_MS / 2);
    sim_node_shard_stall(rig->nodes[0].machine, 1, HELD_NS);
    u32 outcome = put_if_absent(&again, 1, age_ms, key, &flags);
    if (forgotten)
        CHECK(outcome == NATIVE_ST_UNKNOWN_OUTCOME);
    else
        CHECK(outcome == NATIVE_ST_OK && (flags & NATIVE_FLAG_REPLAYED) != 0);
    expect_node_has(rig, 2, key, "newer");
    rig_disconnect(&again);

    /* What was first sent since is judged as ever. */
    fiber_sleep_ns(NS_PER_S);
    rig_native_connect(rig, 2, 0, &again);
    CHECK(put_if_absent(&again, 3, 5, key, &flags) == NATIVE_ST_CONFLICT);
    rig_disconnect(&again);
}

static void
run_held(bool forgotten)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = 2,
                          .node_count = NODES,
                          .configure = configure,
                          .on_all_nodes = true,
                          .story = held_story,
                          .arg = &forgotten};
        sim_options_default(&rig.options, seed);
        rig_run(&rig);
    }
}

static void
a_retry_that_was_on_its_way_for_long_is_not_younger(void **state)
{
    run_held(true);
}

static void
a_retry_that_was_on_its_way_for_long_is_answered_where_it_is_known(void **state)
{
    run_held(false);
}

/* ---- a write that comes again of which nobody knows whether it is done ---- */

#define TIMEOUT_MS 1500u

static void
configure_all_write(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 2);
    config->write_quorum = NODES;
    config->read_quorum = 1;
}

/* Its node has written it, and the others do not say whether they have. Then it comes again: what
 * it finds of itself is no reason why it should not have been done. */
static MAY_YIELD void
uncertain_story(struct rig *rig)
{
    bool while_it_runs = *(bool *)rig->arg;
    struct rig_client first, again;
    char key[16];
    u16 flags;
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    fiber_sleep_ns(5 * NS_PER_S);
    key_of(rig, 1, key, sizeof(key));
    rig_native_connect(rig, 0, 0, &first);
    rig_native_connect(rig, 0, 0, &again);
    stand_still(rig, 1, 1); /* its first shard lives, and answers pings */
    struct native_request request = put_of(1, 0, key, "once");
    request.op.condition = NATIVE_IF_ABSENT;
    request.header.timeout_ms = TIMEOUT_MS;
    u64 sent_ns = io_now_ns();
    rig_native_send(&first, &request);
    fiber_sleep_ns(while_it_runs ? 100 * NS_PER_MS : (TIMEOUT_MS + 100) * NS_PER_MS);
    rig_disconnect(&first); /* and its reply is lost */
    u32 age_ms = (u32)((io_now_ns() - sent_ns) / NS_PER_MS) + 1;
    CHECK(put_if_absent(&again, 1, age_ms, key, &flags) == NATIVE_ST_UNKNOWN_OUTCOME);
    fiber_sleep_ns(STANDS_NS);
    CHECK(put_if_absent(&again, 1, age_ms + STANDS_NS / NS_PER_MS, key, &flags) ==
          NATIVE_ST_UNKNOWN_OUTCOME);
    expect_node_has(rig, 2, key, "once");
    /* Another write is judged as ever. */
    CHECK(put_if_absent(&again, 2, 0, key, &flags) == NATIVE_ST_CONFLICT);
    rig_disconnect(&again);
}

static void
run_uncertain(bool while_it_runs)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = 2,
                          .node_count = NODES,
                          .configure = configure_all_write,
                          .story = uncertain_story,
                          .arg = &while_it_runs};
        sim_options_default(&rig.options, seed);
        rig_run(&rig);
    }
}

static void
a_retry_of_what_may_be_done_is_no_conflict(void **state)
{
    run_uncertain(false);
}

static void
a_retry_that_waits_for_what_may_be_done_is_no_conflict(void **state)
{
    run_uncertain(true);
}

/* ---- a node that is stopped while its shards enter ---- */

#define ENTERS   2u /* that node; shard 0 gets in, shard 1 does not, shard 2 is late */
#define LATE_NS  (2 * NS_PER_S)
#define ATTEMPTS 20u

/* What the request waits for: another one that has its key's turn. */
struct turn {
    u64 hash, until_ns;
    bool taken;
};

static void
configure_three_shards(struct rig *rig, u32 node, struct server_config *config)
{
    cluster_rig_configure(rig, node, config, 3);
}

/* On shard 0. A shard that left the cluster with requests under way would not be there for long. */
static MAY_YIELD void
hold_turn(struct shard *shard, void *arg)
{
    struct turn *turn = arg;
    struct keylock lock;
    keylock_acquire(&shard->locks, &turn->hash, &lock, 1);
    turn->taken = true;
    bool entered = false;
    while (io_now_ns() < turn->until_ns && !(entered && shard->cluster == NULL)) {
        entered |= shard->cluster != NULL;
        fiber_sleep_ns(100 * NS_PER_US);
    }
    keylock_release(&shard->locks, &lock, 1);
}

static MAY_YIELD void
hold_turn_there(struct rig *rig, void *arg)
{
    rig_on_node(rig, ENTERS, 0, hold_turn, arg);
}

/* Starts the node anew and stops it when its stores are open and none of its shards has looked into
 * the cluster. True: shard 0 has entered since, shard 1 has heard of the stop before, and shard 2
 * comes LATE_NS later; which of the first two is sooner, the seed has drawn. False: it has ended.
 */
static MAY_YIELD bool
stop_while_it_enters(struct rig *rig, struct turn *turn)
{
    struct rig_node *node = &rig->nodes[ENTERS];
    rig_start_begin(rig, ENTERS);
    struct shard **shards = node->server->shards;
    sim_node_shard_stall(node->machine, 2, 100 * NS_PER_MS);
    turn->taken = false;
    turn->until_ns = UINT64_MAX;
    rig_spawn(rig, hold_turn_there, turn);
    while (!turn->taken)
        fiber_sleep_ns(NS_PER_MS);
    for (u32 i = 0; i < 3; i++)
        while (shards[i] == NULL || shards[i]->lsm == NULL)
            fiber_sleep_ns(NS_PER_US);
    CHECK(cluster_member(node->server->cluster) == 0);
    sim_node_shard_stall(node->machine, 0, NS_PER_MS);
    sim_node_shard_stall(node->machine, 2, LATE_NS);
    sim_node_stop(node->machine);
    turn->until_ns = io_now_ns() + LATE_NS + NS_PER_S / 10;
    fiber_sleep_ns(LATE_NS / 4);
    const struct cluster *cluster = node->server->cluster;
    if (cluster_member(cluster) != 0 && cluster->shards[1] == NULL) return true;
    turn->until_ns = 0;
    rig_wait_spawned(rig);
    while (sim_node_running(node->machine))
        fiber_sleep_ns(NS_PER_MS);
    return false;
}

static MAY_YIELD void
stopped_early_story(struct rig *rig)
{
    struct rig_client client;
    struct native_reply reply;
    char key[16];
    cluster_rig_settle(rig, NODES, NODES, WAIT_NS);
    cluster_rig_key(rig, ENTERS, 0, key, sizeof(key));
    struct turn turn = {.hash = exec_key_hash(0, BYTES(key, strlen(key)))};
    /* Else it would leave requests to the others until it may stamp. */
    for (u32 i = 0; i < NODES; i++)
        if (i != ENTERS) atomic_store(&rig->nodes[i].server->cluster->drain, CLUSTER_DRAIN_DONE);
    bool stopped = false;
    for (u32 i = 0; i < ATTEMPTS && !stopped; i++) {
        rig_crash(rig, ENTERS);
        stopped = stop_while_it_enters(rig, &turn);
    }
    CHECK(stopped);

    const struct rig_node *node = &rig->nodes[ENTERS];
    const struct shard *asked = node->server->shards[0];
    struct native_request request = put_of(2, 0, key, "after");
    rig_native_connect(rig, 1, 0, &client);
    u64 deadline_ns = io_now_ns() + LATE_NS / 2;
    rig_native_send(&client, &request);
    while (asked->request_count == 0 && io_now_ns() < deadline_ns)
        fiber_sleep_ns(NS_PER_MS);
    CHECK(asked->request_count == 1 && cluster_member(node->server->cluster) != 0);
    rig_wait_spawned(rig);
    while (sim_node_running(node->machine))
        fiber_sleep_ns(NS_PER_MS);
    CHECK(ok(sim_node_result(node->machine)));
    bool answered = rig_native_reply(&client, &reply);
    CHECK(answered);
    CHECK(reply.header.status == NATIVE_ST_OK || native_status_retryable(reply.header.status));
    rig_disconnect(&client);
}

static void
a_node_that_is_stopped_while_it_enters_ends_what_was_sent_on_to_it(void **state)
{
    for (u64 seed = 1; seed <= SEED_COUNT; seed++) {
        struct rig rig = {.shard_count = 3,
                          .node_count = NODES,
                          .configure = configure_three_shards,
                          .on_all_nodes = true,
                          .story = stopped_early_story};
        sim_options_default(&rig.options, seed);
        rig_run(&rig);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_lay_in_the_socket_of_a_node_that_stood_still_is_not_done),
        cmocka_unit_test(what_was_on_its_way_between_shards_is_not_done),
        cmocka_unit_test(what_was_sent_on_to_it_is_not_done),
        cmocka_unit_test(what_waited_for_room_is_not_sent_on_late),
        cmocka_unit_test(a_runner_whose_address_is_lacked_is_waited_for),
        cmocka_unit_test(what_has_waited_behind_others_is_not_done),
        cmocka_unit_test(a_retry_is_answered_from_where_the_write_was_done),
        cmocka_unit_test(a_retry_that_another_node_would_judge_is_unknown),
        cmocka_unit_test(a_retry_that_another_process_would_judge_is_unknown),
        cmocka_unit_test(a_retry_that_was_on_its_way_for_long_is_not_younger),
        cmocka_unit_test(a_retry_that_was_on_its_way_for_long_is_answered_where_it_is_known),
        cmocka_unit_test(a_retry_of_what_may_be_done_is_no_conflict),
        cmocka_unit_test(a_retry_that_waits_for_what_may_be_done_is_no_conflict),
        cmocka_unit_test(a_node_that_is_stopped_while_it_enters_ends_what_was_sent_on_to_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
