/* SPDX-License-Identifier: MIT
 *
 * replica_rig.c -- see replica_rig.h.
 */
#include "replica_rig.h"

#include <stdio.h>

#include "base/hash.h"
#include "io/file.h"

MAY_YIELD status
replica_rig_store_open(const char *dir, u32 shard, u32 shard_count, u64 memtable_bytes,
                       struct lsm **out)
{
    status st = io_dir_make(dir);
    if (!ok(st) && !status_is(st, ST_EXISTS)) return st;
    st = io_dir_sync("/");
    if (!ok(st)) return st;
    u32 first = shard_partition_first(shard, shard_count, PARTITION_COUNT_DEFAULT);
    u32 end = shard_partition_first(shard + 1, shard_count, PARTITION_COUNT_DEFAULT);
    struct lsm_place place = {
        .dir = dir,
        .token_first = partition_token_first(first, PARTITION_COUNT_DEFAULT),
        .token_last = partition_token_last(end - 1, PARTITION_COUNT_DEFAULT),
    };
    struct lsm_options options;
    lsm_options_default(&options);
    options.memory_bytes = MIB(16) + 8 * memtable_bytes;
    options.memtable_bytes = memtable_bytes;
    options.log_segment_bytes = memtable_bytes;
    options.disk_reserve_bytes = 0;
    options.scrub_bytes_per_s = 0;
    options.outside_versions = true;
    return lsm_open(&place, &options, out);
}

MAY_YIELD status
replica_rig_app_open(struct peer_rig_node *node, const char *dir, u64 memtable_bytes,
                     struct hints_options *kept, struct replicator_options *options,
                     struct replica_app *app)
{
    u32 shard = io_shard_index();
    *app = (struct replica_app){0};
    status st =
        replica_rig_store_open(dir, shard, node->rig->shard_count, memtable_bytes, &app->lsm);
    if (!ok(st)) return st;
    st = peer_rig_peers_open(node, &app->peers);
    if (!ok(st)) return st;
    /* A fiber may be refused by chance. */
    if (kept != NULL) {
        kept->lsm = app->lsm;
        kept->peers = app->peers;
        if (kept->budget == NULL) kept->budget = io_budget();
        kept->shard = shard;
        while (!ok(hints_open(kept, &app->hints)))
            fiber_sleep_ns(NS_PER_MS);
    }
    options->lsm = app->lsm;
    options->peers = app->peers;
    options->budget = io_budget();
    options->shard = shard;
    options->hints = app->hints;
    while (!ok(replicator_open(options, &app->replicator)))
        fiber_sleep_ns(NS_PER_MS);
    return ST_OK;
}

MAY_YIELD status
replica_rig_app_close(struct replica_app *app)
{
    replicator_close(app->replicator);
    if (app->hints != NULL) hints_close(app->hints);
    app->replicator = NULL;
    app->hints = NULL;
    peers_close(app->peers);
    return lsm_close(app->lsm);
}

MAY_YIELD u16
replica_rig_ask(struct peer_rig_node *node, u32 member, u32 shard,
                const struct native_header *header, const struct bytes *parts, u32 part_count)
{
    struct native_header answer;
    struct buf out;
    buf_init(&out, io_budget());
    bool maybe_sent;
    status st = peer_call_wait(peer_rig_peers(node), member, shard, header, parts, part_count,
                               io_now_ns() + NS_PER_S * 2, &answer, &out, &maybe_sent);
    CHECK(ok(st) && answer.status <= NATIVE_ST_MAX);
    buf_deinit(&out);
    return answer.status;
}

struct topology *
replica_rig_apply(struct topology *from, struct topology_command command)
{
    static u64 state;
    command.state_before = from->state_id;
    command.state_after = ++state + 1000000;
    struct topology *next;
    char reason[TOPOLOGY_REASON_BYTES];
    status st = topology_apply(from, &command, NULL, &next, reason);
    if (!ok(st)) fprintf(stderr, "topology: %s\n", reason);
    CHECK(ok(st));
    return next;
}

struct topology *
replica_rig_apply_on(struct topology *from, struct topology_command command)
{
    struct topology *next = replica_rig_apply(from, command);
    topology_release(from);
    return next;
}

struct topology_member
replica_rig_member(u32 index, u32 shard_count)
{
    struct topology_member member = {.weight = 150,
                                     .incarnation = 100 + index,
                                     .client_port = 8080,
                                     .peer_port = PEER_RIG_PORT,
                                     .shard_count = shard_count};
    (void)snprintf(member.node_id, sizeof(member.node_id), "node-%u", index + 1);
    (void)snprintf(member.host, sizeof(member.host), "10.0.0.%u", index + 1);
    (void)snprintf(member.rack, sizeof(member.rack), "r");
    (void)snprintf(member.datacenter, sizeof(member.datacenter), "dc");
    return member;
}

struct topology *
replica_rig_found(struct budget *budget, u32 partitions, u32 replicas, u32 shard_count)
{
    struct topology *now = topology_new(budget);
    CHECK(now != NULL);
    return replica_rig_apply_on(
        now, (struct topology_command){.kind = TOPOLOGY_FOUND,
                                       .cluster_id = PEER_RIG_CLUSTER,
                                       .partition_count = partitions,
                                       .replicas = replicas,
                                       .member = replica_rig_member(0, shard_count)});
}

struct topology *
replica_rig_grow(struct topology *from, u32 members, u32 shard_count)
{
    struct topology *now = from;
    for (u32 i = now->member_count; i < members; i++)
        now = replica_rig_apply_on(
            now, (struct topology_command){.kind = TOPOLOGY_MEMBER_ADD,
                                           .member = replica_rig_member(i, shard_count)});
    return replica_rig_plan(now, 1);
}

struct topology *
replica_rig_advance(struct topology *from, u64 session)
{
    struct topology *now = from;
    for (u32 number; (number = topology_unfetched(now)) != 0;)
        now = replica_rig_apply_on(now, (struct topology_command){.kind = TOPOLOGY_FETCHED,
                                                                  .member = {.number = number},
                                                                  .session = session});
    return replica_rig_apply_on(
        now, (struct topology_command){.kind = TOPOLOGY_ADVANCE, .session = session});
}

struct topology *
replica_rig_plan(struct topology *from, u64 session)
{
    struct topology_command fence = {.kind = TOPOLOGY_FENCE, .session = session};
    struct topology *now = replica_rig_apply_on(
        from, (struct topology_command){.kind = TOPOLOGY_PLAN, .session = session});
    if (now->stage == STAGE_NONE) return now;
    now = replica_rig_advance(replica_rig_apply_on(now, fence), session);
    return replica_rig_advance(replica_rig_apply_on(now, fence), session);
}

void
replica_rig_free(struct topology *topology)
{
    topology->references = 1;
    topology_release(topology);
}
