/* SPDX-License-Identifier: MIT
 *
 * cluster_view.c -- see cluster_view.h.
 */
#include "server/cluster_view.h"

#include <stdio.h>

#include "base/log.h"
#include "server/cluster_admin.h"
#include "server/cmd.h"
#include "server/command_table.h"

const char *const cluster_stage_names[3] = {"none", "write_both", "read_next"};
const char *const cluster_conflict_names[2] = {"lww", "siblings"};
static const char *const state_names[] = {"joining", "normal", "leaving"};

void
cluster_node_name(const char *node_id, char out[41])
{
    static const char digits[] = "0123456789abcdef";
    for (u32 part = 0; part < 3; part++) {
        u64 hash = hash_bytes(node_id, strlen(node_id), 0x6e6f6465u + part);
        for (u32 i = 0; i < 16 && part * 16 + i < 40; i++)
            out[part * 16 + i] = digits[hash >> (4 * i) & 15];
    }
    out[40] = '\0';
}

u16
cluster_view_shard_port(const struct server *server, const struct topology_member *member)
{
    if (member->client_port == 0 || member->client_port + member->shard_count > UINT16_MAX)
        return 0;
    return cluster_shard_ports(server->cluster, member->number) ? member->client_port + 1 : 0;
}

/* ---- taking it ---- */

struct look {
    struct server *server;
    struct cluster_view *view;
};

static void
look_here(void *arg)
{
    struct look *look = arg;
    const struct cluster_shard *shard = look->server->cluster->shards[0];
    if (shard == NULL) return;
    group0_stats_get(shard->group0, &look->view->group0);
    look->view->proving = group0_is_proving(shard->group0);
    look->view->left = shard->is_out;
    u64 now = io_now_ns();
    for (u32 i = 0; i < look->view->count; i++) {
        struct cluster_view_member *member = &look->view->members[i];
        if (member->number == cluster_member(look->server->cluster)) {
            member->alive = true;
            member->ill = liveness_self_ill(&shard->liveness, now);
            member->why =
                atomic_load(&look->server->cluster->ill) & (CLUSTER_ILL_STUCK | CLUSTER_ILL_CLOCK);
            member->drained = cluster_drained(look->server->cluster, member->number) &&
                              (member->why & CLUSTER_ILL_CLOCK) == 0;
            member->epoch = cluster_own_epoch(look->server->cluster);
            continue;
        }
        const struct cluster_ping *ping = cluster_ping_of(shard, member->number);
        member->seen_ms = UINT64_MAX;
        if (ping == NULL) continue;
        member->alive = cluster_ping_is_alive(ping);
        /* For its clock, then, and says so. */
        member->drained = ping->drained && (ping->ill & CLUSTER_ILL_CLOCK) == 0;
        member->ill = liveness_ill(&shard->liveness, member->number);
        member->why = member->alive ? ping->ill : 0;
        member->rtt_us = ping->rtt_ns / NS_PER_US;
        member->epoch = ping->epoch;
        member->clock_ms = ping->clock_ms;
        if (ping->heard_ns != 0) member->seen_ms = (now - ping->heard_ns) / NS_PER_MS;
    }
}

static struct cluster_view_member *
find(struct cluster_view *view, u32 number)
{
    for (u32 i = 0; i < view->count; i++)
        if (view->members[i].number == number) return &view->members[i];
    return NULL;
}

/* Whose store takes no writes still answers reads. */
static bool
writes(const struct cluster_view_member *member)
{
    return member->alive && (member->why & CLUSTER_ILL_STUCK) == 0;
}

/* The first keyspace of the same N, W and R, which has the same counts. */
static u32
twin_of(const struct topology *topology, u32 number)
{
    const struct topology_keyspace *keyspace = &topology->keyspaces[number];
    for (u32 k = 0; k < number; k++)
        if (topology->keyspaces[k].used && topology->keyspaces[k].replicas == keyspace->replicas &&
            topology->keyspaces[k].write_quorum == keyspace->write_quorum &&
            topology->keyspaces[k].read_quorum == keyspace->read_quorum)
            return k;
    return number;
}

static void
count_held(const struct topology_row *row, struct cluster_view *view)
{
    u32 count;
    const u32 *members = topology_row_read(row, &count);
    for (u32 i = 0; i < count; i++) {
        struct cluster_view_member *member = find(view, members[i]);
        if (member == NULL) continue;
        member->held++;
        member->first += i == 0;
    }
}

static void
count_mending(const struct topology *topology, u32 partition, struct cluster_view *view)
{
    const u32 *row = placement_row(&topology->current, partition);
    for (u32 k = 0; k < topology->current.width; k++) {
        if ((row[k] & TOPOLOGY_GONE) == 0) continue;
        struct cluster_view_member *member = find(view, row[k] & ~TOPOLOGY_GONE);
        if (member != NULL) member->mending++;
    }
}

static void
count_row(struct cluster_view *view, const u32 *members, u32 count, u32 *alive, u32 *writing)
{
    *alive = *writing = 0;
    for (u32 i = 0; i < count; i++) {
        const struct cluster_view_member *member = find(view, members[i]);
        *alive += member != NULL && member->alive;
        *writing += member != NULL && writes(member);
    }
}

/* Whether somebody is to fetch it before the plan goes on. */
static bool
is_awaited(const struct topology *topology, u32 keyspace, u32 partition,
           const struct topology_row *row)
{
    if (topology->stage != STAGE_WRITE_BOTH) return false;
    for (u32 i = 0; i < row->next_count; i++)
        if (topology_gains(topology, row->write_next[i], keyspace, partition) &&
            !topology_member(topology, row->write_next[i])->fetched)
            return true;
    return false;
}

static struct cluster_view_counts
count_partition(const struct topology *topology, u32 keyspace, u32 partition,
                struct cluster_view *view)
{
    struct topology_row row;
    u32 count, alive, writing, next_alive, next_writing;
    topology_row(topology, keyspace, partition, &row);
    if (keyspace == 0) count_held(&row, view);
    const u32 *members = topology_row_read(&row, &count);
    count_row(view, row.write_next, row.next_count, &next_alive, &next_writing);
    count_row(view, row.write, row.count, &alive, &writing);
    bool writable = writing >= row.write_quorum &&
                    (row.next_count == 0 || next_writing >= row.write_next_quorum);
    /* Whoever gains may have to ask more than a read does: so that one of any W is among them. */
    bool awaited = alive < topology_fetch_quorum(topology, keyspace, &row) &&
                   is_awaited(topology, keyspace, partition, &row);
    if (row.read_next) {
        alive = next_alive;
        writing = next_writing;
    }
    bool readable = alive >= row.read_quorum;
    for (u32 i = 0; i < count && (!readable || awaited); i++) {
        struct cluster_view_member *member = find(view, members[i]);
        if (member == NULL || member->alive) continue;
        member->missed[keyspace] += !readable;
        member->waited[keyspace] += awaited;
    }
    return (struct cluster_view_counts){.unavailable = !readable || !writable,
                                        .degraded = writing < count ||
                                                    count < topology->keyspaces[keyspace].replicas,
                                        .lost = count == 0};
}

static void
counts_add(struct cluster_view_counts *to, const struct cluster_view_counts *counts)
{
    to->unavailable += counts->unavailable;
    to->degraded += counts->degraded;
    to->lost += counts->lost;
}

static void
count_partitions(const struct topology *topology, struct cluster_view *view)
{
    u32 twins[LIMIT_KEYSPACES_CLIENT];
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        twins[k] = twin_of(topology, k);
    for (u32 partition = 0; partition < topology->partition_count; partition++) {
        struct cluster_view_counts any = {0};
        for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
            if (!topology->keyspaces[k].used || twins[k] != k) continue;
            struct cluster_view_counts counts = count_partition(topology, k, partition, view);
            counts_add(&view->keyspaces[k], &counts);
            any.unavailable |= counts.unavailable;
            any.degraded |= counts.degraded;
            any.lost |= counts.lost;
        }
        counts_add(&view->any, &any);
        count_mending(topology, partition, view);
    }
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        view->keyspaces[k] = view->keyspaces[twins[k]];
        for (u32 i = 0; i < view->count; i++) {
            view->members[i].missed[k] = view->members[i].missed[twins[k]];
            view->members[i].waited[k] = view->members[i].waited[twins[k]];
        }
    }
}

/* Who would be the last of a quorum of the row, once those who are drained are stopped. */
static void
count_risk(const struct topology *topology, u32 keyspace, u32 partition, struct cluster_view *view)
{
    struct topology_row row;
    u32 count, alive = 0, staying = 0;
    topology_row(topology, keyspace, partition, &row);
    const u32 *members = topology_row_read(&row, &count);
    for (u32 i = 0; i < count; i++) {
        const struct cluster_view_member *member = find(view, members[i]);
        if (member == NULL || !writes(member)) continue;
        alive++;
        staying += !member->drained;
    }
    u32 need = MAX(row.read_quorum, row.read_next ? row.write_next_quorum : row.write_quorum);
    if (alive < need) return; /* nobody makes it worse */
    for (u32 i = 0; i < count; i++) {
        struct cluster_view_member *member = find(view, members[i]);
        if (member == NULL || !writes(member)) continue;
        if (staying - !member->drained >= need) continue;
        member->at_risk += member->at_risk_seen != partition + 1; /* once, of all keyspaces */
        member->at_risk_seen = partition + 1;
    }
}

/* Keyspaces of one N, W and R are looked at once. */
static void
count_risks(const struct topology *topology, struct cluster_view *view)
{
    bool looked_at[LIMIT_KEYSPACES_CLIENT];
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        looked_at[k] = topology->keyspaces[k].used && twin_of(topology, k) == k;
    for (u32 partition = 0; partition < topology->partition_count; partition++)
        for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
            if (looked_at[k]) count_risk(topology, k, partition, view);
}

struct unproven { /* a topology that no shard works with yet, as bytes of shard 0 */
    struct cluster *cluster;
    struct buf bytes;
    bool taken; /* bytes is to be freed there */
    status st;
};

static void
unproven_take(void *arg)
{
    struct unproven *unproven = arg;
    struct cluster_shard *shard = unproven->cluster->shards[0];
    unproven->st = ST_UNAVAILABLE;
    if (shard == NULL || shard->group0 == NULL || group0_topology(shard->group0) == NULL) return;
    buf_init(&unproven->bytes, &shard->budget);
    unproven->taken = true;
    unproven->st =
        topology_encode(group0_topology(shard->group0), &unproven->bytes) ? ST_OK : ST_NO_MEMORY;
}

static void
unproven_free(void *arg)
{
    struct unproven *unproven = arg;
    buf_deinit(&unproven->bytes);
}

MAY_YIELD struct topology *
cluster_view_topology(struct exec *x)
{
    struct topology *topology = cluster_topology(x->shard->cluster);
    if (topology != NULL) {
        topology_hold(topology);
        return topology;
    }
    /* References are counted by the shard that has it, so this one gets its own. */
    struct unproven unproven = {.cluster = x->shard->server->cluster, .st = ST_UNAVAILABLE};
    status st = ST_UNAVAILABLE;
    if (atomic_load(&unproven.cluster->proving))
        st = io_shard_call(0, FIBER_FOREGROUND, unproven_take, &unproven);
    if (ok(st)) st = unproven.st;
    if (ok(st)) st = topology_decode(buf_bytes(&unproven.bytes), &x->shard->budget, &topology);
    if (unproven.taken && !ok(io_shard_call(0, FIBER_FOREGROUND, unproven_free, &unproven)))
        log_debug("cluster", "a copy of the topology goes with its shard");
    if (ok(st)) return topology;
    exec_fail(x, st);
    return NULL;
}

MAY_YIELD struct cluster_view *
cluster_view_take(struct exec *x, struct topology **topology_out)
{
    struct topology *topology = cluster_view_topology(x);
    if (topology == NULL) return NULL;
    size_t bytes =
        sizeof(struct cluster_view) + topology->member_count * sizeof(struct cluster_view_member);
    struct cluster_view *view = (struct cluster_view *)(void *)exec_alloc(x, bytes);
    if (view == NULL) {
        topology_release(topology);
        return NULL;
    }
    memset(view, 0, bytes);
    view->count = topology->member_count;
    for (u32 i = 0; i < view->count; i++)
        view->members[i].number = topology->members[i].number;
    struct look look = {.server = x->shard->server, .view = view};
    status st = io_shard_call(0, FIBER_FOREGROUND, look_here, &look);
    if (!ok(st)) {
        topology_release(topology);
        exec_fail(x, st);
        return NULL;
    }
    count_partitions(topology, view);
    if (view->proving) { /* also those of one replica */
        view->any.unavailable = topology->partition_count;
        for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
            if (topology->keyspaces[k].used)
                view->keyspaces[k].unavailable = topology->partition_count;
    }
    count_risks(topology, view);
    *topology_out = topology;
    return view;
}

/* ---- STATUS ---- */

/* Readers of JSON take signed numbers. */
static void
json_figure(struct buf *out, const char *name, u64 value)
{
    if (value == UINT64_MAX)
        cmd_text(out, ",\"%s\":null", name);
    else
        cmd_text(out, ",\"%s\":%llu", name, (unsigned long long)MIN(value, (u64)INT64_MAX));
}

static void
json_member(struct buf *out, const struct topology_member *member,
            const struct cluster_view_member *seen)
{
    /* Names are letters, digits and a few signs: topology and config see to it. */
    cmd_text(out,
             "{\"number\":%u,\"node_id\":\"%s\",\"host\":\"%s\",\"port\":%u,\"peer_port\":%u,"
             "\"shards\":%u",
             member->number, member->node_id, member->host, member->client_port, member->peer_port,
             member->shard_count);
    cmd_text(out, ",\"rack\":\"%s\",\"datacenter\":\"%s\",\"virtual_nodes\":%u", member->rack,
             member->datacenter, member->weight);
    cmd_text(out,
             ",\"state\":\"%s\",\"alive\":%s,\"ill\":%s,\"partitions\":%u,\"first_of\":%u,"
             "\"epoch\":%llu,\"fetched\":%s,\"stuck\":%s,\"clock_wrong\":%s,\"mending\":%u",
             state_names[member->state % 3], seen->alive ? "true" : "false",
             seen->ill ? "true" : "false", seen->held, seen->first, (unsigned long long)seen->epoch,
             member->fetched ? "true" : "false",
             (seen->why & CLUSTER_ILL_STUCK) != 0 ? "true" : "false",
             (seen->why & CLUSTER_ILL_CLOCK) != 0 ? "true" : "false", seen->mending);
    if (seen->seen_ms == UINT64_MAX)
        cmd_text(out, ",\"last_seen_ms\":null");
    else
        cmd_text(out, ",\"last_seen_ms\":%llu", (unsigned long long)seen->seen_ms);
    cmd_text(out, ",\"rtt_us\":%llu,\"clock_ms\":%lld,\"drained\":%s,\"partitions_at_risk\":%u",
             (unsigned long long)seen->rtt_us, (long long)seen->clock_ms,
             seen->drained ? "true" : "false", seen->at_risk);
    const struct peer_figures *figures = seen->figures;
    if (figures != NULL) {
        cmd_text(out, ",\"version\":\"%.*s\"", (int)figures->version.size,
                 (const char *)figures->version.data);
#define X(name) json_figure(out, #name, figures->name);
        PEER_FIGURES_LIST(X)
#undef X
    }
    cmd_text(out, "}");
}

static void
json_trees(struct buf *out, const struct cluster_shard *shard)
{
    struct trees_stats trees;
    trees_stats_get(shard, &trees);
    cmd_text(out,
             ",\"trees\":{\"repairing\":%s,\"repair_done\":%llu,\"repair_total\":%llu,"
             "\"repair_missed\":%llu,\"repair_damaged\":%llu",
             trees.repairing ? "true" : "false", (unsigned long long)trees.repair_done,
             (unsigned long long)trees.repair_total, (unsigned long long)trees.repair_missed,
             (unsigned long long)trees.repair_damaged);
    if (trees.round_age_ms == UINT64_MAX)
        cmd_text(out, ",\"round_age_ms\":null");
    else
        cmd_text(out, ",\"round_age_ms\":%llu", (unsigned long long)trees.round_age_ms);
    if (trees.settled_version == 0)
        cmd_text(out, ",\"settled_age_ms\":null");
    else
        cmd_text(out, ",\"settled_age_ms\":%llu", (unsigned long long)trees_settled_age_ms(&trees));
    cmd_text(out,
             ",\"exchanges\":%llu,\"failures\":%llu,\"leaves_differing\":%llu,"
             "\"entries_sent\":%llu,\"entries_received\":%llu}",
             (unsigned long long)trees.exchanges, (unsigned long long)trees.failures,
             (unsigned long long)trees.leaves_differing, (unsigned long long)trees.entries_sent,
             (unsigned long long)trees.entries_received);
}

void
cluster_view_json(const struct exec *x, const struct topology *topology,
                  const struct cluster_view *view, struct buf *out)
{
    const struct cluster *cluster = x->shard->server->cluster;
    u32 alive = 0;
    for (u32 i = 0; i < view->count; i++)
        alive += view->members[i].alive;
    cmd_text(out,
             "{\"cluster_id\":\"%016llx\",\"epoch\":%llu,\"stage\":\"%s\",\"self\":%u,"
             "\"leader\":%u,\"term\":%llu,\"replicas\":%u,\"write_quorum\":%u,\"read_quorum\":%u,"
             "\"proving\":%s,\"left\":%s",
             (unsigned long long)topology->cluster_id, (unsigned long long)topology->epoch,
             cluster_stage_names[topology->stage % 3], cluster_member(cluster), view->group0.leader,
             (unsigned long long)view->group0.term, topology->keyspaces[0].replicas,
             topology->keyspaces[0].write_quorum, topology->keyspaces[0].read_quorum,
             view->proving ? "true" : "false", view->left ? "true" : "false");
    cmd_text(out,
             ",\"partition_count\":%u,\"partitions_unavailable\":%u,\"partitions_degraded\":%u,"
             "\"members_alive\":%u,\"members_count\":%u,\"fetched_bytes\":%llu,\"members\":[",
             topology->partition_count, view->any.unavailable, view->any.degraded, alive,
             view->count, (unsigned long long)atomic_load(&cluster->fetched_bytes));
    for (u32 i = 0; i < view->count; i++) {
        if (i != 0) cmd_text(out, ",");
        json_member(out, &topology->members[i], &view->members[i]);
    }
    cmd_text(out, "]");
    json_trees(out, x->shard->cluster);
}

MAY_YIELD status
cluster_json(struct exec *x, struct buf *out)
{
    struct topology *topology;
    struct cluster_view *view = cluster_view_take(x, &topology);
    if (view == NULL) return x->failure;
    cluster_view_json(x, topology, view, out);
    cmd_text(out, "}");
    topology_release(topology);
    return ST_OK;
}

/* ---- INFO ---- */

void
cluster_info_lines(const struct shard *shard, struct buf *out)
{
    const struct cluster *cluster = shard->server->cluster;
    const struct topology *topology = cluster_topology(shard->cluster);
    if (topology == NULL) return;
    u8 ill = atomic_load(&cluster->ill);
    u32 alive = 0;
    for (u32 i = 0; i < topology->member_count; i++)
        alive += cluster_alive(cluster, topology->members[i].number);
    cmd_text(
        out,
        "distkv_cluster_id:%016llx\r\ndistkv_cluster_member:%u\r\ndistkv_cluster_members:%u\r\n"
        "distkv_cluster_members_alive:%u\r\ndistkv_cluster_epoch:%llu\r\n"
        "distkv_cluster_stage:%s\r\ndistkv_cluster_takes_writes:%s\r\n"
        "distkv_cluster_alone:%s\r\ndistkv_cluster_clock_ahead_ms:%llu\r\n"
        "distkv_cluster_clock_behind_ms:%llu\r\n",
        (unsigned long long)topology->cluster_id, cluster_member(cluster), topology->member_count,
        alive, (unsigned long long)topology->epoch, cluster_stage_names[topology->stage % 3],
        (ill & CLUSTER_ILL_STUCK) != 0 ? "no" : "yes",
        (ill & CLUSTER_ILL_ALONE) != 0 ? "yes" : "no",
        (unsigned long long)atomic_load(&cluster->clock_ahead_ms),
        (unsigned long long)cluster_clock_behind_ms(cluster));
}

/* ---- taking a member out ---- */

struct remove_call {
    struct server *server;
    char node_id[TOPOLOGY_NAME_BYTES];
    enum cluster_removal how;
    u64 deadline_ns;
    status st;
    char reason[TOPOLOGY_REASON_BYTES];
};

MAY_YIELD static void
remove_here(void *arg)
{
    struct remove_call *call = arg;
    call->st = cluster_admin_remove(call->server, call->node_id, call->how, call->deadline_ns,
                                    call->reason);
}

bool
cluster_named_alive(const struct cluster_shard *shard, const char *node_id)
{
    const struct topology *topology = cluster_topology(shard);
    const struct topology_member *member =
        topology == NULL ? NULL : topology_member_by_id(topology, node_id);
    return member != NULL && cluster_alive(shard->cluster, member->number);
}

MAY_YIELD void
cmd_distkv_remove(struct exec *x)
{
    if (x->shard->cluster == NULL) {
        resp_error(x->reply, "ERR this node is not one of a cluster");
        return;
    }
    enum cluster_removal how = CLUSTER_LEAVE;
    if (x->arg_count == 3 && cmd_arg_is(x, 2, "dead")) how = CLUSTER_FORGET;
    if (x->arg_count == 3 && cmd_arg_is(x, 2, "force")) how = CLUSTER_LEAVE_FORCED;
    if (x->arg_count == 3 && cmd_arg_is(x, 2, "undo")) how = CLUSTER_STAY;
    struct bytes id = x->args[1];
    if (x->arg_count > 3 || (x->arg_count == 3 && how == CLUSTER_LEAVE) ||
        id.size >= TOPOLOGY_NAME_BYTES) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    struct remove_call *call = (struct remove_call *)(void *)exec_alloc(x, sizeof(*call));
    if (call == NULL) return;
    memset(call, 0, sizeof(*call));
    call->server = x->shard->server;
    memcpy(call->node_id, id.data, id.size);
    call->how = how;
    call->deadline_ns = io_now_ns() + x->shard->config->cluster_timeout_ms * NS_PER_MS;
    if (how == CLUSTER_FORGET && cluster_named_alive(x->shard->cluster, call->node_id)) {
        resp_error(x->reply, "ERR this node answers: stop it first, or remove it without DEAD");
        return;
    }
    status st = io_shard_call(0, FIBER_FOREGROUND, remove_here, call);
    if (ok(st)) st = call->st;
    if (ok(st))
        resp_ok(x->reply);
    else if (status_is(st, ST_INVALID) || status_is(st, ST_NOT_FOUND))
        resp_error(x->reply, "ERR not %s: %s", how == CLUSTER_STAY ? "undone" : "removed",
                   call->reason);
    else if (how == CLUSTER_LEAVE_FORCED && status_is(st, ST_UNAVAILABLE) && call->reason[0] != 0)
        resp_error(x->reply, "ERR %s", call->reason); /* more was done than nothing */
    else
        exec_fail(x, st);
}

/* ---- comparing replicas ---- */

void
cmd_distkv_repair(struct exec *x)
{
    if (x->shard->cluster == NULL) {
        resp_error(x->reply, "ERR this node is not one of a cluster");
        return;
    }
    trees_repair_start(x->shard->cluster);
    resp_ok(x->reply);
}
