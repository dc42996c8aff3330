/* SPDX-License-Identifier: MIT
 *
 * cluster_admin.c -- the native request CLUSTER: what operators ask of any node and have done by
 * all of them; and PEER_ADMIN, by which nodes tell each other their figures and drain or repair on
 * behalf of who was asked.
 *
 *   STATUS    the view of the node that is asked, with the figures of all that answer within
 *             ASK_NS; the move that is under way, and how far it is
 *   RING      who holds which partition, runs of equal rows as one
 *   others    proposals to group0, or calls to the nodes that are named
 *
 * Replies are JSON, so that a new figure breaks nobody.
 */
#include "server/cluster_admin.h"

#include <stdio.h>

#include "cluster/trees.h"
#include "proto/peer.h"
#include "proto/peer_admin.h"
#include "server/cluster_view.h"
#include "server/cmd.h"
#include "server/command_table.h"
#include "server/native.h"

#define ASK_NS         (500 * NS_PER_MS)
#define LEAVE_AGAIN_NS (100 * NS_PER_MS)
#define ANSWERS_MAX    4u /* at once, to others */

/* ---- the own figures ---- */

static bool
reads_keys(const struct command *command)
{
    if (command->place > PLACE_SPLIT_ARRAY || (command->flags & COMMAND_WRITE) != 0) return false;
    return (command->flags & (COMMAND_READONLY | COMMAND_NATIVE)) != 0;
}

static bool
writes_keys(const struct command *command)
{
    return command->place <= PLACE_SPLIT_ARRAY && (command->flags & COMMAND_WRITE) != 0;
}

/* The upper end of the bucket that so many thousandths of the calls lie below. */
static u64
quantile_us(const u64 buckets[SERVER_LATENCY_BUCKETS], u64 count, u64 thousandths)
{
    u64 seen = 0;
    if (count == 0) return 0;
    for (u32 i = 0; i < SERVER_LATENCY_BUCKETS; i++) {
        seen += buckets[i];
        if (seen * 1000 >= count * thousandths) return 1ull << i;
    }
    return 1ull << (SERVER_LATENCY_BUCKETS - 1);
}

struct figures_sum {
    struct peer_figures *out;
    u64 read_buckets[SERVER_LATENCY_BUCKETS], write_buckets[SERVER_LATENCY_BUCKETS];
};

static void
figures_add(struct figures_sum *sum, const struct shard_stats *s)
{
    struct peer_figures *out = sum->out;
    out->keys += s->lsm.keys_estimate;
    out->data_bytes += s->lsm.table_bytes + s->lsm.blob_bytes + s->lsm.log_bytes_to_replay;
    out->memory_bytes += s->memory_used;
    out->connections += s->clients_resp + s->clients_native;
    out->commands_per_s += s->commands_per_s;
    out->commands += s->commands_total;
    out->requests_pending += s->requests_pending;
    for (u32 i = 0; i < SERVER_ERROR_KINDS; i++)
        out->errors += s->errors[i];
    out->hints_waiting += s->hints.waiting;
    out->hints_bytes += s->hints.waiting_bytes;
    out->hints_oldest_ms = MAX(out->hints_oldest_ms, s->hints_oldest_ms);
    out->corruptions += s->lsm.corruptions;
    out->damaged_files += s->lsm.damaged_files;
    out->hints_given_up += s->hints.dropped + s->hints.expired;
    for (u32 i = 0; i < command_table_count(); i++) {
        const struct command_stats *row = &s->commands[i];
        bool reads = reads_keys(&command_table[i]);
        if (!reads && !writes_keys(&command_table[i])) continue;
        *(reads ? &out->reads : &out->writes) += row->calls;
        u64 *buckets = reads ? sum->read_buckets : sum->write_buckets;
        for (u32 b = 0; b < SERVER_LATENCY_BUCKETS; b++)
            buckets[b] += row->buckets[b];
    }
}

/* Of all shards of this node; on shard 0. */
MAY_YIELD static status
figures_take(struct server *server, struct peer_figures *out)
{
    struct shard *shard = shard_self();
    const struct cluster *cluster = server->cluster;
    memset(out, 0, sizeof(*out));
    struct shard_stats *stats = mem_alloc(&shard->budget, sizeof(*stats));
    struct figures_sum *sum = mem_alloc_zero(&shard->budget, sizeof(*sum));
    status st = stats == NULL || sum == NULL ? ST_NO_MEMORY : ST_OK;
    if (sum != NULL) sum->out = out;
    for (u32 i = 0; i < server->shard_count && ok(st); i++) {
        struct server_collect collect = {.server = server, .out = stats};
        st = io_shard_call(i, FIBER_FOREGROUND, server_collect, &collect);
        if (ok(st)) figures_add(sum, stats);
    }
    if (ok(st)) {
        out->read_p50_us = quantile_us(sum->read_buckets, out->reads, 500);
        out->read_p99_us = quantile_us(sum->read_buckets, out->reads, 990);
        out->write_p50_us = quantile_us(sum->write_buckets, out->writes, 500);
        out->write_p99_us = quantile_us(sum->write_buckets, out->writes, 990);
        u64 now_ms = io_wall_ms(), now_ns = io_now_ns();
        out->uptime_ms = now_ms - MIN(now_ms, server->start_wall_ms);
        out->memory_limit_bytes = server->config->memory_bytes;
        out->fetch_session = atomic_load(&cluster->fetch_session);
        out->fetch_partitions = atomic_load(&cluster->fetch_partitions);
        out->fetch_done = atomic_load(&cluster->fetch_done);
        out->fetch_failed_from = atomic_load(&cluster->fetch_failed_from);
        out->fetch_bytes =
            atomic_load(&cluster->fetched_bytes) - atomic_load(&cluster->fetch_began_bytes);
        u64 began_ns = atomic_load(&cluster->fetch_began_ns);
        out->fetch_ms = began_ns == 0 ? 0 : (now_ns - MIN(now_ns, began_ns)) / NS_PER_MS;
        if (cluster->shards[0] != NULL) {
            struct group0_stats group0;
            group0_stats_get(cluster->shards[0]->group0, &group0);
            out->leads = group0.leads;
            out->plan_settled = group0.plan_settled;
            out->plan_waits_for = group0.plan_waits_for;
            struct trees_stats trees;
            trees_stats_get(cluster->shards[0], &trees);
            out->repair_partitions = trees.repair_total;
            out->repair_done = trees.repair_done;
            out->repair_missed = trees.repair_missed;
            out->repair_damaged = trees.repair_damaged;
            out->repair_running = trees.repairing;
            out->repair_differing = trees.leaves_differing;
            out->repair_keys = trees.entries_sent + trees.entries_received;
            out->repair_round_ms = trees.round_age_ms;
        }
        out->drains = atomic_load(&cluster->drain);
        out->version = BYTES_LITERAL(DISTKV_VERSION);
    }
    mem_free(&shard->budget, stats, sizeof(*stats));
    mem_free(&shard->budget, sum, sizeof(*sum));
    return st;
}

/* Does it on this node; on shard 0. */
MAY_YIELD static status
function_run(struct server *server, enum peer_admin_function function)
{
    struct cluster_shard *shard = server->cluster->shards[0];
    if (shard == NULL) return ST_CLOSED;
    switch (function) {
    case PEER_ADMIN_FIGURES:
        return ST_OK;
    case PEER_ADMIN_REPAIR:
        trees_repair_start(shard);
        return ST_OK;
    case PEER_ADMIN_DRAIN:
        return cluster_drain(shard, false);
    case PEER_ADMIN_DRAIN_UNDO:
        return cluster_drain(shard, true);
    case PEER_ADMIN_LEAVE:
        return cluster_leave_at_once(shard);
    }
    return ST_UNSUPPORTED;
}

/* ---- for other nodes ---- */

struct answer {
    struct shard *shard;
    struct peer_request *request;
    enum peer_admin_function function;
};

MAY_YIELD static void
answer_main(void *arg)
{
    struct answer *answer = arg;
    struct shard *shard = answer->shard;
    struct peer_figures figures;
    struct buf body;
    buf_init(&body, &shard->budget);
    status st = function_run(shard->server, answer->function);
    if (ok(st)) st = figures_take(shard->server, &figures);
    if (ok(st) && !peer_figures_encode(&figures, &body)) st = ST_NO_MEMORY;
    const struct topology *topology = cluster_topology(shard->cluster);
    struct bytes part = buf_bytes(&body);
    peer_reply(answer->request, ok(st) ? NATIVE_ST_OK : native_status_of(st),
               topology == NULL ? 0 : topology->epoch, &part, ok(st) ? 1 : 0);
    buf_deinit(&body);
    shard->admin_answers--;
    mem_free(&shard->budget, answer, sizeof(*answer));
}

static void
asked(void *arg, struct peer_request *request, const struct peer_identity *from,
      const struct native_header *header, struct bytes body)
{
    struct shard *shard = arg;
    (void)from;
    (void)header;
    if (request == NULL) return;
    const struct topology *topology = cluster_topology(shard->cluster);
    u64 epoch = topology == NULL ? 0 : topology->epoch;
    enum peer_admin_function function;
    status st = peer_admin_decode(body, &function);
    struct answer *answer = NULL;
    if (ok(st) && (shard->draining || shard->admin_answers == ANSWERS_MAX)) st = ST_OVERLOADED;
    if (ok(st)) {
        answer = mem_alloc(&shard->budget, sizeof(*answer));
        if (answer == NULL) st = ST_NO_MEMORY;
    }
    if (ok(st)) {
        *answer = (struct answer){.shard = shard, .request = request, .function = function};
        shard->admin_answers++;
        st = fiber_spawn(FIBER_FOREGROUND, "cluster admin", answer_main, answer);
        if (ok(st)) return;
        shard->admin_answers--;
        mem_free(&shard->budget, answer, sizeof(*answer));
    }
    peer_reply(request, native_status_of(st), epoch, NULL, 0);
}

void
cluster_admin_open(struct shard *shard)
{
    if (shard->index == 0) peers_handler_set(shard->cluster->peers, PEER_ADMIN, asked, shard);
}

/* ---- asking others: on shard 0 ---- */

struct told {
    bool known;
    struct peer_figures figures;
    char version[PEER_ADMIN_VERSION_BYTES + 1];
};

MAY_YIELD static status
ask(struct server *server, u32 member, enum peer_admin_function function, struct told *out)
{
    struct shard *shard = shard_self();
    struct cluster_shard *cluster = server->cluster->shards[0];
    out->known = false;
    if (cluster == NULL) return ST_CLOSED;
    if (member == cluster_member(server->cluster)) {
        status st = function_run(server, function);
        if (ok(st)) st = figures_take(server, &out->figures);
        out->known = ok(st);
        return st;
    }
    if (!cluster_alive(server->cluster, member)) return ST_UNAVAILABLE;
    u8 body[PEER_ADMIN_BYTES];
    peer_admin_encode(function, body);
    struct bytes part = BYTES(body, sizeof(body));
    struct native_header header = {.opcode = PEER_ADMIN}, answer;
    if (cluster->topology != NULL) header.epoch = cluster->topology->epoch;
    struct buf in;
    bool maybe_sent;
    buf_init(&in, &shard->budget);
    status st = peer_call_wait(cluster->peers, member, 0, &header, &part, 1, io_now_ns() + ASK_NS,
                               &answer, &in, &maybe_sent);
    if (ok(st) && answer.status != NATIVE_ST_OK) st = native_status_to_base(answer.status);
    if (ok(st)) st = peer_figures_decode(buf_bytes(&in), &out->figures);
    if (ok(st)) {
        struct bytes version = out->figures.version;
        memcpy(out->version, version.data, version.size);
        out->version[version.size] = 0;
        out->figures.version = BYTES(out->version, version.size);
        out->known = true;
    }
    buf_deinit(&in);
    return st;
}

/* NULL: it is none any more. One that is silent may be back before it is waited for no more, and
 * keep what it has: it has not been told. */
static const struct topology_member *
still_member(const struct server *server, u32 number)
{
    const struct cluster_shard *shard = server->cluster->shards[0];
    return shard == NULL ? NULL : topology_member(shard->topology, number);
}

MAY_YIELD status
cluster_admin_remove(struct server *server, const char *node_id, enum cluster_removal how,
                     u64 deadline_ns, char reason[TOPOLOGY_REASON_BYTES])
{
    struct cluster_shard *shard = server->cluster->shards[0];
    if (shard == NULL) return ST_CLOSED;
    const struct topology_member *leaver =
        shard->topology == NULL ? NULL : topology_member_by_id(shard->topology, node_id);
    u32 member = leaver == NULL ? 0 : leaver->number;
    status st = cluster_remove(shard, node_id, how, deadline_ns, reason);
    if (!ok(st) || how != CLUSTER_LEAVE_FORCED) return st;
    struct told told;
    bool leaves = false;
    while ((leaver = still_member(server, member)) != NULL) {
        /* What is said now would be taken for another removal's. */
        if (leaves && leaver->state != PLACEMENT_LEAVING) {
            snprintf(reason, TOPOLOGY_REASON_BYTES, "its removal was taken back meanwhile");
            return ST_UNAVAILABLE;
        }
        leaves = leaver->state == PLACEMENT_LEAVING;
        st = ask(server, member, PEER_ADMIN_LEAVE, &told);
        if (ok(st) || status_is(st, ST_UNSUPPORTED))
            break; /* of a version that waits for nothing */
        if (io_now_ns() >= deadline_ns) {
            snprintf(reason, TOPOLOGY_REASON_BYTES,
                     "it leaves, or was to, but does not answer that it goes at once: look at the "
                     "status, and ask again");
            return ST_UNAVAILABLE;
        }
        fiber_sleep_ns(LEAVE_AGAIN_NS);
    }
    return ST_OK;
}

struct asking {
    struct server *server;
    enum peer_admin_function function;
    u32 only; /* a member; 0: all */
    const struct cluster_view *view;
    struct told *told; /* as many as the view's members */
    status st;         /* the first that failed of those who live */
    u32 failed;
};

MAY_YIELD static void
ask_here(void *arg)
{
    struct asking *asking = arg;
    for (u32 i = 0; i < asking->view->count; i++) {
        const struct cluster_view_member *member = &asking->view->members[i];
        if (asking->only != 0 && member->number != asking->only) continue;
        if (!member->alive && asking->only == 0) continue;
        status st = ask(asking->server, member->number, asking->function, &asking->told[i]);
        if (ok(st) || !ok(asking->st)) continue;
        asking->st = st;
        asking->failed = member->number;
    }
}

/* With the figures of who answers in the view. NULL: the run has failed. */
MAY_YIELD static struct cluster_view *
view_with_figures(struct exec *x, enum peer_admin_function function, const char *only,
                  struct topology **topology_out, struct asking *asking)
{
    struct cluster_view *view = cluster_view_take(x, topology_out);
    if (view == NULL) return NULL;
    *asking = (struct asking){.server = x->shard->server, .function = function, .view = view};
    if (only != NULL) {
        const struct topology_member *member = topology_member_by_id(*topology_out, only);
        if (member == NULL) {
            asking->st = ST_NOT_FOUND;
            return view;
        }
        asking->only = member->number;
    }
    size_t bytes = view->count * sizeof(struct told);
    asking->told = (struct told *)(void *)exec_alloc(x, bytes);
    status st = asking->told == NULL ? ST_NO_MEMORY : ST_OK;
    if (ok(st)) {
        memset(asking->told, 0, bytes);
        st = io_shard_call(0, FIBER_FOREGROUND, ask_here, asking);
    }
    if (!ok(st)) {
        topology_release(*topology_out);
        exec_fail(x, st);
        return NULL;
    }
    for (u32 i = 0; i < view->count; i++)
        if (asking->told[i].known) view->members[i].figures = &asking->told[i].figures;
    return view;
}

/* ---- replies ---- */

static void
reply_json(struct exec *x, const struct native_request *request, u64 number, const struct buf *json)
{
    struct native_reply reply;
    memset(&reply, 0, sizeof(reply));
    reply.header = native_reply_header(&request->header, native_epoch());
    reply.cluster.number = number;
    reply.cluster.json = json == NULL ? BYTES_LITERAL("{}") : buf_bytes(json);
    native_reply(x, &reply);
}

/* What is said why it was not done; "" for the status alone. */
static void
reply_failed(struct exec *x, const struct native_request *request, status st, const char *reason)
{
    native_error(x, request, native_status_of(st), 0, reason[0] != 0 ? reason : status_text(st));
}

/* Of which members, who do not answer, somebody who gains waits for what. False: of none. */
static bool
json_waits(struct buf *out, const struct topology *topology, const struct cluster_view *view)
{
    bool first = true;
    cmd_text(out, ",\"waits\":[");
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        for (u32 i = 0; i < view->count && topology->keyspaces[k].used; i++) {
            if (view->members[i].waited[k] == 0) continue;
            cmd_text(out, "%s{\"keyspace\":%u,\"name\":\"%s\",\"node\":%u,\"partitions\":%u}",
                     first ? "" : ",", k, topology->keyspaces[k].name, view->members[i].number,
                     view->members[i].waited[k]);
            first = false;
        }
    cmd_text(out, "]");
    return !first;
}

/* "move": how far those are who gain by the plan; null: there is none. */
static void
json_move(struct buf *out, const struct topology *topology, const struct cluster_view *view)
{
    u64 total = 0, done = 0, bytes = 0, left_ms = 0, waits_for = 0;
    u32 gainers = 0, ready = 0;
    bool settled = false, known = topology->stage != STAGE_WRITE_BOTH;
    for (u32 i = 0; i < view->count; i++) {
        const struct peer_figures *figures = view->members[i].figures;
        const struct topology_member *member = &topology->members[i];
        if (figures != NULL && figures->leads) {
            settled = figures->plan_settled != 0;
            waits_for = figures->plan_waits_for;
        }
        if (topology->stage != STAGE_WRITE_BOTH || !topology_gainer(topology, member->number))
            continue;
        gainers++;
        ready += member->fetched;
        if (figures == NULL || figures->fetch_session != topology->session) continue;
        u64 here = MIN(figures->fetch_done, figures->fetch_partitions);
        if (member->fetched) here = figures->fetch_partitions;
        known = true;
        total += figures->fetch_partitions;
        done += here;
        bytes += figures->fetch_bytes;
        if (here != 0 && !member->fetched)
            left_ms = MAX(left_ms, figures->fetch_ms * (figures->fetch_partitions - here) / here);
    }
    cmd_text(out, ",\"settled\":%s,\"plan_waits_for\":%llu,\"move\":", settled ? "true" : "false",
             (unsigned long long)waits_for);
    if (topology->stage == STAGE_NONE) {
        cmd_text(out, "null");
        return;
    }
    cmd_text(out,
             "{\"stage\":\"%s\",\"session\":\"%016llx\",\"fenced\":%s,\"gainers\":%u,"
             "\"gainers_ready\":%u,\"partitions\":%llu,\"partitions_done\":%llu,\"bytes\":%llu",
             cluster_stage_names[topology->stage % 3], (unsigned long long)topology->session,
             topology_fenced(topology) ? "true" : "false", gainers, ready,
             (unsigned long long)total, (unsigned long long)done, (unsigned long long)bytes);
    bool waits = json_waits(out, topology, view);
    if (known && !waits && (done != 0 || topology->stage == STAGE_READ_NEXT))
        cmd_text(out, ",\"left_ms\":%llu}", (unsigned long long)left_ms);
    else
        cmd_text(out, ",\"left_ms\":null}");
}

/* Of one keyspace. "missing": the members that do not answer for want of whom partitions of it
 * cannot be read. */
static void
json_counts(struct buf *out, const struct cluster_view *view, u32 keyspace)
{
    const struct cluster_view_counts *counts = &view->keyspaces[keyspace];
    bool first = true;
    cmd_text(out,
             ",\"partitions_unavailable\":%u,\"partitions_degraded\":%u,\"partitions_lost\":%u,"
             "\"missing\":[",
             counts->unavailable, counts->degraded, counts->lost);
    for (u32 i = 0; i < view->count; i++) {
        if (view->members[i].missed[keyspace] == 0) continue;
        cmd_text(out, "%s{\"node\":%u,\"partitions\":%u}", first ? "" : ",",
                 view->members[i].number, view->members[i].missed[keyspace]);
        first = false;
    }
    cmd_text(out, "]");
}

/* view: NULL for the options alone. */
static void
json_keyspaces(struct buf *out, const struct topology *topology, const struct cluster_view *view)
{
    cmd_text(out, "\"keyspaces\":[");
    bool first = true;
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++) {
        const struct topology_keyspace *keyspace = &topology->keyspaces[k];
        if (!keyspace->used) continue;
        cmd_text(out,
                 "%s{\"number\":%u,\"name\":\"%s\",\"replicas\":%u,\"write_quorum\":%u,"
                 "\"read_quorum\":%u,\"conflict\":\"%s\",\"sloppy\":%s",
                 first ? "" : ",", k, keyspace->name, keyspace->replicas, keyspace->write_quorum,
                 keyspace->read_quorum, cluster_conflict_names[keyspace->conflict % 2],
                 keyspace->sloppy ? "true" : "false");
        if (view != NULL) json_counts(out, view, k);
        cmd_text(out, "}");
        first = false;
    }
    cmd_text(out, "]");
}

MAY_YIELD static void
show_status(struct exec *x, const struct native_request *request)
{
    struct topology *topology;
    struct asking asking;
    struct cluster_view *view = view_with_figures(x, PEER_ADMIN_FIGURES, NULL, &topology, &asking);
    if (view == NULL) return;
    struct buf out;
    buf_init(&out, &x->shard->budget);
    cluster_view_json(x, topology, view, &out);
    json_move(&out, topology, view);
    cmd_text(&out, ",");
    json_keyspaces(&out, topology, view);
    if (buf_append(&out, "}", 1))
        reply_json(x, request, topology->epoch, &out);
    else
        exec_fail(x, ST_NO_MEMORY);
    buf_deinit(&out);
    topology_release(topology);
}

static bool
same_row(const struct topology_row *a, const struct topology_row *b)
{
    return a->count == b->count && a->next_count == b->next_count &&
           memcmp(a->write, b->write, a->count * sizeof(u32)) == 0 &&
           memcmp(a->write_next, b->write_next, a->next_count * sizeof(u32)) == 0;
}

static void
json_numbers(struct buf *out, const u32 *numbers, u32 count)
{
    cmd_text(out, "[");
    for (u32 i = 0; i < count; i++)
        cmd_text(out, "%s%u", i == 0 ? "" : ",", numbers[i]);
    cmd_text(out, "]");
}

/* Rows of topology.replicas members: keyspaces of fewer use the first ones. */
MAY_YIELD static void
show_ring(struct exec *x, const struct native_request *request)
{
    struct topology *topology;
    struct cluster_view *view = cluster_view_take(x, &topology);
    if (view == NULL) return;
    struct buf out;
    buf_init(&out, &x->shard->budget);
    cmd_text(&out, "{\"epoch\":%llu,\"partition_count\":%u,\"replicas\":%u,\"members\":[",
             (unsigned long long)topology->epoch, topology->partition_count, topology->replicas);
    for (u32 i = 0; i < view->count; i++) {
        const struct topology_member *member = &topology->members[i];
        cmd_text(&out,
                 "%s{\"number\":%u,\"node_id\":\"%s\",\"rack\":\"%s\",\"datacenter\":\"%s\","
                 "\"virtual_nodes\":%u,\"partitions\":%u,\"first_of\":%u,\"alive\":%s}",
                 i == 0 ? "" : ",", member->number, member->node_id, member->rack,
                 member->datacenter, member->weight, view->members[i].held, view->members[i].first,
                 view->members[i].alive ? "true" : "false");
    }
    cmd_text(&out, "],\"ranges\":[");
    /* Keyspace 0 may have fewer replicas than rows have places; the widest one shows them all. */
    u32 widest = 0;
    for (u32 k = 1; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (topology->keyspaces[k].used &&
            topology->keyspaces[k].replicas > topology->keyspaces[widest].replicas)
            widest = k;
    for (u32 first = 0; first < topology->partition_count;) {
        struct topology_row row, other;
        topology_row(topology, widest, first, &row);
        u32 end = first + 1;
        for (; end < topology->partition_count; end++) {
            topology_row(topology, widest, end, &other);
            if (!same_row(&row, &other)) break;
        }
        u32 slots = SLOT_COUNT / topology->partition_count;
        cmd_text(&out,
                 "%s{\"first\":%u,\"last\":%u,\"slot_first\":%u,\"slot_last\":%u,\"members\":",
                 first == 0 ? "" : ",", first, end - 1, first * slots, end * slots - 1);
        json_numbers(&out, row.write, row.count);
        if (row.next_count != 0) {
            cmd_text(&out, ",\"next\":");
            json_numbers(&out, row.write_next, row.next_count);
        }
        cmd_text(&out, "}");
        first = end;
        if (fiber_should_yield()) fiber_yield();
    }
    if (buf_append(&out, "]}", 2))
        reply_json(x, request, topology->epoch, &out);
    else
        exec_fail(x, ST_NO_MEMORY);
    buf_deinit(&out);
    topology_release(topology);
}

/* What is not known here may have been made, too. False: the run has failed, or was answered. */
MAY_YIELD static bool
find_keyspace(struct exec *x, const struct native_request *request, u64 *number_out)
{
    struct cluster_shard *cluster = x->shard->cluster;
    char name[TOPOLOGY_NAME_BYTES] = "";
    memcpy(name, request->cluster.name.data, request->cluster.name.size);
    *number_out = cluster_keyspace_find(cluster_topology(cluster), name);
    if (*number_out != LIMIT_KEYSPACES_CLIENT) return true;
    status st = cluster_topology_renew(cluster, io_now_ns() + x->shard->config->cluster_timeout_ms *
                                                                  NS_PER_MS);
    if (!ok(st)) {
        exec_fail(x, st);
        return false;
    }
    *number_out = cluster_keyspace_find(cluster_topology(cluster), name);
    if (*number_out != LIMIT_KEYSPACES_CLIENT) return true;
    reply_failed(x, request, ST_NOT_FOUND, "no keyspace has this name");
    return false;
}

MAY_YIELD static void
show_keyspaces(struct exec *x, const struct native_request *request)
{
    u64 number = 0;
    bool finds = request->cluster.function == NATIVE_CLUSTER_KEYSPACE_FIND;
    if (finds && cluster_topology(x->shard->cluster) == NULL) {
        exec_fail(x, ST_UNAVAILABLE);
        return;
    }
    if (finds && !find_keyspace(x, request, &number)) return;
    struct topology *topology = cluster_view_topology(x);
    if (topology == NULL) return;
    if (!finds) number = topology->epoch;
    struct buf out;
    buf_init(&out, &x->shard->budget);
    cmd_text(&out, "{");
    json_keyspaces(&out, topology, NULL);
    if (buf_append(&out, "}", 1))
        reply_json(x, request, number, &out);
    else
        exec_fail(x, ST_NO_MEMORY);
    buf_deinit(&out);
    topology_release(topology);
}

/* ---- proposals ---- */

struct proposal {
    struct server *server;
    const struct native_cluster *asked;
    char node_id[TOPOLOGY_NAME_BYTES];
    struct cluster_keyspace keyspace;
    u64 deadline_ns;
    status st;
    char reason[TOPOLOGY_REASON_BYTES];
};

MAY_YIELD static void
propose_here(void *arg)
{
    struct proposal *proposal = arg;
    struct cluster_shard *shard = proposal->server->cluster->shards[0];
    proposal->st = ST_CLOSED;
    if (shard == NULL) return;
    u8 flags = proposal->asked->flags;
    enum cluster_removal how = (flags & NATIVE_CLUSTER_DEAD) != 0    ? CLUSTER_FORGET
                               : (flags & NATIVE_CLUSTER_UNDO) != 0  ? CLUSTER_STAY
                               : (flags & NATIVE_CLUSTER_FORCE) != 0 ? CLUSTER_LEAVE_FORCED
                                                                     : CLUSTER_LEAVE;
    if (proposal->asked->function == NATIVE_CLUSTER_REMOVE)
        proposal->st = cluster_admin_remove(proposal->server, proposal->node_id, how,
                                            proposal->deadline_ns, proposal->reason);
    if (proposal->asked->function == NATIVE_CLUSTER_WEIGHT)
        proposal->st = cluster_weight_set(shard, proposal->node_id, proposal->asked->weight,
                                          proposal->deadline_ns, proposal->reason);
    if (proposal->asked->function == NATIVE_CLUSTER_KEYSPACE_SET) {
        proposal->st = cluster_keyspace_set(shard, &proposal->keyspace, proposal->deadline_ns);
        memcpy(proposal->reason, proposal->keyspace.reason, sizeof(proposal->reason));
    }
}

MAY_YIELD static void
propose(struct exec *x, const struct native_request *request)
{
    const struct native_cluster *wanted = &request->cluster;
    struct proposal *proposal = (struct proposal *)(void *)exec_alloc(x, sizeof(*proposal));
    if (proposal == NULL) return;
    memset(proposal, 0, sizeof(*proposal));
    proposal->server = x->shard->server;
    proposal->asked = wanted;
    memcpy(proposal->node_id, wanted->node.data, wanted->node.size);
    proposal->keyspace =
        (struct cluster_keyspace){.create = (wanted->flags & NATIVE_CLUSTER_CREATE) != 0,
                                  .number = wanted->keyspace,
                                  .conflict = wanted->conflict,
                                  .replicas = wanted->replicas,
                                  .write_quorum = wanted->write_quorum,
                                  .read_quorum = wanted->read_quorum,
                                  .sloppy_on = (wanted->flags & NATIVE_CLUSTER_SLOPPY) != 0,
                                  .sloppy_off = (wanted->flags & NATIVE_CLUSTER_NOT_SLOPPY) != 0};
    memcpy(proposal->keyspace.name, wanted->name.data, wanted->name.size);
    u64 ms = x->shard->config->cluster_timeout_ms;
    if (request->header.timeout_ms != 0) ms = MIN(ms, request->header.timeout_ms);
    proposal->deadline_ns = io_now_ns() + ms * NS_PER_MS;
    /* One that lives is not called dead by mistake: it would lose what only it has. */
    if ((wanted->flags & NATIVE_CLUSTER_DEAD) != 0 &&
        cluster_named_alive(x->shard->cluster, proposal->node_id)) {
        reply_failed(x, request, ST_INVALID,
                     "this node answers: stop it first, or remove it as one that lives");
        return;
    }
    status st = io_shard_call(0, FIBER_FOREGROUND, propose_here, proposal);
    if (ok(st)) st = proposal->st;
    if (ok(st))
        reply_json(x, request, proposal->keyspace.number, NULL);
    else
        reply_failed(x, request, st, proposal->reason);
}

/* ---- what single nodes do ---- */

MAY_YIELD static void
have_done(struct exec *x, const struct native_request *request)
{
    const struct native_cluster *wanted = &request->cluster;
    enum peer_admin_function function = PEER_ADMIN_REPAIR;
    if (cluster_topology(x->shard->cluster) == NULL) {
        exec_fail(x, ST_UNAVAILABLE);
        return;
    }
    if (wanted->function == NATIVE_CLUSTER_DRAIN)
        function =
            (wanted->flags & NATIVE_CLUSTER_UNDO) != 0 ? PEER_ADMIN_DRAIN_UNDO : PEER_ADMIN_DRAIN;
    char node_id[TOPOLOGY_NAME_BYTES] = "";
    memcpy(node_id, wanted->node.data, wanted->node.size);
    struct topology *topology;
    struct asking asking;
    struct cluster_view *view =
        view_with_figures(x, function, node_id[0] == 0 ? NULL : node_id, &topology, &asking);
    if (view == NULL) return;
    char reason[TOPOLOGY_REASON_BYTES] = "";
    const struct topology_member *failed = topology_member(topology, asking.failed);
    if (status_is(asking.st, ST_NOT_FOUND))
        snprintf(reason, sizeof(reason), "no member has this id");
    else if (failed != NULL && status_is(asking.st, ST_UNAVAILABLE))
        snprintf(reason, sizeof(reason), "%s does not answer", failed->node_id);
    else if (failed != NULL)
        snprintf(reason, sizeof(reason), "%s: %s", failed->node_id, status_text(asking.st));
    if (ok(asking.st))
        reply_json(x, request, topology->epoch, NULL);
    else
        reply_failed(x, request, asking.st, reason);
    topology_release(topology);
}

MAY_YIELD void
native_cluster(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    if (x->shard->cluster == NULL) {
        reply_failed(x, &request, ST_UNSUPPORTED, "this node is not one of a cluster");
        return;
    }
    switch ((enum native_cluster_function)request.cluster.function) {
    case NATIVE_CLUSTER_STATUS:
        show_status(x, &request);
        return;
    case NATIVE_CLUSTER_RING:
        show_ring(x, &request);
        return;
    case NATIVE_CLUSTER_KEYSPACES:
    case NATIVE_CLUSTER_KEYSPACE_FIND:
        show_keyspaces(x, &request);
        return;
    case NATIVE_CLUSTER_REMOVE:
    case NATIVE_CLUSTER_WEIGHT:
    case NATIVE_CLUSTER_KEYSPACE_SET:
        propose(x, &request);
        return;
    case NATIVE_CLUSTER_REPAIR:
    case NATIVE_CLUSTER_DRAIN:
        have_done(x, &request);
        return;
    }
}
