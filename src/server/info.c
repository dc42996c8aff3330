/* SPDX-License-Identifier: MIT
 *
 * info.c -- INFO: the sections and fields that clients, exporters and dashboards look for, and our
 * own under "distkv". Figures are summed over the shards. keys= is an estimate (exact=0 and
 * keys_exact:0 say so); DBSIZE counts.
 */
#include <stdio.h>

#include "server/cluster_view.h"
#include "server/cmd.h"
#include "server/session.h"

struct totals {
    u64 clients_resp, clients_native, clients_monitor, clients_paused;
    u64 commands, connections, refused, timed_out, request_timed_out, output_closed;
    u64 heavy, queued_light, queued_heavy;
    u64 hits, misses, errors, received, sent;
    u64 memory_used, memory_peak, memory_limit;
    u64 log_bytes_to_replay, writes_refused, table_bytes, blob_bytes, compaction_debt, tables;
    u64 row_cache_hits, row_cache_misses, block_cache_hits, block_cache_misses, corruptions;
    u64 busy_ns, fibers, forwarded, pending, watches, stalls;
    u64 commands_per_s, received_per_s, sent_per_s, expired;
    u64 write_holds, write_hold_ns_max;
    u64 keys[LIMIT_KEYSPACES_CLIENT];
    bool failed, no_space;
    struct command_stats commands_by_name[SERVER_COMMANDS_MAX];
    u64 errors_by_kind[SERVER_ERROR_KINDS];
};

struct collect_call {
    struct totals *totals;
    struct shard_stats *stats; /* scratch */
};

static void
add_command(struct command_stats *to, const struct command_stats *from)
{
    to->calls += from->calls;
    to->failed += from->failed;
    to->rejected += from->rejected;
    to->ns += from->ns;
    for (u32 i = 0; i < SERVER_LATENCY_BUCKETS; i++)
        to->buckets[i] += from->buckets[i];
}

MAY_YIELD static void
collect_here(void *arg)
{
    struct collect_call *call = arg;
    struct shard_stats *s = call->stats;
    struct totals *t = call->totals;
    struct shard *shard = shard_self();
    struct server_collect collect = {.server = shard->server, .out = s};
    server_collect(&collect);
    t->clients_resp += s->clients_resp;
    t->clients_native += s->clients_native;
    t->clients_monitor += s->clients_monitor;
    t->clients_paused += s->clients_paused;
    t->commands += s->commands_total;
    t->commands_per_s += s->commands_per_s;
    t->received_per_s += s->received_bytes_per_s;
    t->sent_per_s += s->sent_bytes_per_s;
    t->expired += s->lsm.compaction_dropped_expired;
    t->connections += s->io.connections_accepted;
    t->refused += s->clients_refused;
    t->timed_out += s->clients_timed_out;
    t->request_timed_out += s->clients_request_timed_out;
    t->heavy += s->requests_heavy;
    t->queued_light += s->work_queued_light;
    t->queued_heavy += s->work_queued_heavy;
    t->output_closed += s->clients_output_closed;
    t->hits += s->keyspace_hits;
    t->misses += s->keyspace_misses;
    t->received += s->io.received_bytes;
    t->sent += s->io.sent_bytes;
    t->memory_used += s->memory_used;
    t->memory_peak += s->memory_peak;
    t->memory_limit += s->memory_limit;
    t->log_bytes_to_replay += s->lsm.log_bytes_to_replay;
    t->writes_refused += s->lsm.writes_refused;
    t->write_holds += s->lsm.writes_held_ns.count;
    t->write_hold_ns_max = MAX(t->write_hold_ns_max, s->lsm.writes_held_ns.max);
    t->table_bytes += s->lsm.table_bytes;
    t->tables += s->lsm.tables;
    t->blob_bytes += s->lsm.blob_bytes;
    t->compaction_debt += s->lsm.compaction_debt_bytes;
    t->row_cache_hits += s->lsm.row_cache_hits;
    t->row_cache_misses += s->lsm.row_cache_misses;
    t->block_cache_hits += s->lsm.block_cache_hits;
    t->block_cache_misses += s->lsm.block_cache_misses;
    t->corruptions += s->lsm.corruptions;
    t->busy_ns += s->io.busy_ns;
    t->stalls += s->io.stalls;
    t->fibers += s->io.fibers_running;
    t->forwarded += s->requests_forwarded;
    t->pending += s->requests_pending;
    t->watches += s->watches;
    if (s->lsm.state == LSM_STATE_FAILED) t->failed = true;
    if (s->lsm.state == LSM_STATE_NO_SPACE) t->no_space = true;
    for (u32 i = 0; i < SERVER_ERROR_KINDS; i++) {
        t->errors_by_kind[i] += s->errors[i];
        t->errors += s->errors[i];
    }
    for (u16 i = 0; i < LIMIT_KEYSPACES_CLIENT; i++)
        t->keys[i] += lsm_count_estimate(shard->lsm, i);
    for (u32 i = 0; i < command_table_count(); i++)
        add_command(&t->commands_by_name[i], &s->commands[i]);
}

static void
human(u64 bytes, char *out, size_t size)
{
    static const char units[] = "BKMGTP";
    u32 unit = 0;
    u64 scaled = bytes * 100;
    for (; scaled >= 102400 && unit < 5; unit++)
        scaled /= 1024;
    if (unit == 0)
        snprintf(out, size, "%lluB", (unsigned long long)bytes);
    else
        snprintf(out, size, "%llu.%02llu%c", (unsigned long long)(scaled / 100),
                 (unsigned long long)(scaled % 100), units[unit]);
}

#define U(value) ((unsigned long long)(value))

static void
section_server(struct buf *out, const struct server *server, const struct totals *t)
{
    u64 now = io_wall_ms();
    u64 up_s = (now - MIN(now, server->start_wall_ms)) / 1000;
    cmd_text(out,
             "# Server\r\nredis_version:%s\r\nredis_git_sha1:00000000\r\nredis_git_dirty:0\r\n"
             "redis_build_id:0\r\nredis_mode:%s\r\n",
             SERVER_REDIS_VERSION, config_redis_mode(server->config));
    cmd_text(out,
             "os:Linux\r\narch_bits:64\r\nmonotonic_clock:POSIX clock_gettime\r\n"
             "multiplexing_api:io_uring\r\natomicvar_api:c11-builtin\r\nprocess_id:%u\r\n"
             "process_supervised:no\r\nrun_id:%s\r\ntcp_port:%u\r\n",
             server->pid, server->run_id, (u32)server->port);
    cmd_text(out,
             "server_time_usec:%llu\r\nuptime_in_seconds:%llu\r\nuptime_in_days:%llu\r\nhz:10\r\n"
             "configured_hz:10\r\nlru_clock:%llu\r\nexecutable:distkv-server\r\nconfig_file:%s\r\n"
             "io_threads_active:%d\r\n",
             U(now * 1000), U(up_s), U(up_s / 86400), U((now / 1000) & 0xffffff),
             server->config->config_file, server->shard_count > 1);
    (void)t;
}

static void
section_clients(struct buf *out, const struct server *server, const struct totals *t)
{
    cmd_text(out,
             "# Clients\r\nconnected_clients:%llu\r\ncluster_connections:0\r\nmaxclients:%llu\r\n"
             "client_recent_max_input_buffer:0\r\nclient_recent_max_output_buffer:0\r\n"
             "blocked_clients:0\r\ntracking_clients:0\r\nclients_in_timeout_table:0\r\n",
             U(t->clients_resp + t->clients_native), U(server->config->maxclients));
}

static void
section_memory(struct buf *out, const struct server *server, const struct totals *t)
{
    char used[32], peak[32], limit[32];
    u64 resident = server->resident_bytes;
    if (resident == 0) resident = t->memory_used; /* in the first second */
    u64 ratio = resident * 100 / MAX(t->memory_used, 1);
    human(t->memory_used, used, sizeof(used));
    human(t->memory_peak, peak, sizeof(peak));
    human(server->config->memory_bytes, limit, sizeof(limit));
    cmd_text(out,
             "# Memory\r\nused_memory:%llu\r\nused_memory_human:%s\r\nused_memory_rss:%llu\r\n"
             "used_memory_peak:%llu\r\nused_memory_peak_human:%s\r\n",
             U(t->memory_used), used, U(resident), U(t->memory_peak), peak);
    cmd_text(out,
             "used_memory_overhead:0\r\nused_memory_startup:0\r\nused_memory_dataset:%llu\r\n"
             "used_memory_lua:0\r\nmaxmemory:%llu\r\nmaxmemory_human:%s\r\n"
             "maxmemory_policy:noeviction\r\nmem_fragmentation_ratio:%llu.%02llu\r\n"
             "mem_allocator:mimalloc\r\nactive_defrag_running:0\r\nlazyfree_pending_objects:0\r\n",
             U(t->memory_used), U(server->config->memory_bytes), limit, U(ratio / 100),
             U(ratio % 100));
}

static void
section_persistence(struct buf *out, const struct totals *t)
{
    cmd_text(out,
             "# Persistence\r\nloading:0\r\nasync_loading:0\r\nrdb_changes_since_last_save:0\r\n"
             "rdb_bgsave_in_progress:0\r\nrdb_last_save_time:0\r\nrdb_last_bgsave_status:ok\r\n"
             "aof_enabled:0\r\naof_rewrite_in_progress:0\r\naof_last_write_status:%s\r\n"
             "aof_last_bgrewrite_status:ok\r\n",
             t->failed || t->no_space ? "err" : "ok");
}

static void
section_stats(struct buf *out, const struct totals *t)
{
    cmd_text(out,
             "# Stats\r\ntotal_connections_received:%llu\r\ntotal_commands_processed:%llu\r\n"
             "instantaneous_ops_per_sec:%llu\r\ntotal_net_input_bytes:%llu\r\n"
             "total_net_output_bytes:%llu\r\ninstantaneous_input_kbps:%llu.%02llu\r\n"
             "instantaneous_output_kbps:%llu.%02llu\r\nrejected_connections:%llu\r\n",
             U(t->connections), U(t->commands), U(t->commands_per_s), U(t->received), U(t->sent),
             U(t->received_per_s / 1024), U(t->received_per_s % 1024 * 100 / 1024),
             U(t->sent_per_s / 1024), U(t->sent_per_s % 1024 * 100 / 1024), U(t->refused));
    cmd_text(out,
             "sync_full:0\r\nsync_partial_ok:0\r\nsync_partial_err:0\r\nexpired_keys:%llu\r\n"
             "evicted_keys:0\r\nevicted_clients:0\r\nkeyspace_hits:%llu\r\nkeyspace_misses:%llu\r\n"
             "pubsub_channels:0\r\npubsub_patterns:0\r\nlatest_fork_usec:0\r\ntotal_forks:0\r\n"
             "total_error_replies:%llu\r\nclient_output_buffer_limit_disconnections:%llu\r\n",
             U(t->expired), U(t->hits), U(t->misses), U(t->errors), U(t->output_closed));
}

static void
section_replication(struct buf *out, const struct server *server)
{
    cmd_text(out,
             "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n"
             "master_failover_state:no-failover\r\nmaster_replid:%s\r\n"
             "master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:0\r\n"
             "second_repl_offset:-1\r\nrepl_backlog_active:0\r\nrepl_backlog_size:1048576\r\n"
             "repl_backlog_first_byte_offset:0\r\nrepl_backlog_histlen:0\r\n",
             server->run_id);
}

static void
section_cpu(struct buf *out, const struct totals *t)
{
    cmd_text(out,
             "# CPU\r\nused_cpu_sys:0.000000\r\nused_cpu_user:%llu.%06llu\r\n"
             "used_cpu_sys_children:0.000000\r\nused_cpu_user_children:0.000000\r\n",
             U(t->busy_ns / NS_PER_S), U(t->busy_ns % NS_PER_S / 1000));
}

static void
section_commandstats(struct buf *out, const struct totals *t)
{
    cmd_text(out, "# Commandstats\r\n");
    for (u32 i = 0; i < command_table_count(); i++) {
        const struct command_stats *c = &t->commands_by_name[i];
        if (c->calls == 0 && c->rejected == 0) continue;
        cmd_text(out,
                 "cmdstat_%s:calls=%llu,usec=%llu,usec_per_call=%.2f,rejected_calls=%llu,"
                 "failed_calls=%llu\r\n",
                 command_table[i].name, U(c->calls), U(c->ns / 1000),
                 c->calls == 0 ? 0.0 : (double)c->ns / 1000.0 / (double)c->calls, U(c->rejected),
                 U(c->failed));
    }
}

static void
section_errorstats(struct buf *out, const struct totals *t)
{
    cmd_text(out, "# Errorstats\r\n");
    for (u32 i = 0; i < SERVER_ERROR_KINDS; i++)
        if (t->errors_by_kind[i] != 0)
            cmd_text(out, "errorstat_%s:count=%llu\r\n", server_error_kind_name(i),
                     U(t->errors_by_kind[i]));
}

/* The upper bound in microseconds below which parts of a thousand of the calls lie. */
static double
percentile_us(const struct command_stats *c, u32 per_thousand)
{
    u64 wanted = (c->calls * per_thousand + 999) / 1000, seen = 0;
    for (u32 i = 0; i < SERVER_LATENCY_BUCKETS; i++) {
        seen += c->buckets[i];
        if (seen >= wanted) return (double)(1ull << i);
    }
    return (double)(1ull << SERVER_LATENCY_BUCKETS);
}

static void
section_latencystats(struct buf *out, const struct totals *t)
{
    cmd_text(out, "# Latencystats\r\n");
    for (u32 i = 0; i < command_table_count(); i++) {
        const struct command_stats *c = &t->commands_by_name[i];
        if (c->calls == 0) continue;
        cmd_text(out, "latency_percentiles_usec_%s:p50=%.3f,p99=%.3f,p99.9=%.3f\r\n",
                 command_table[i].name, percentile_us(c, 500), percentile_us(c, 990),
                 percentile_us(c, 999));
    }
}

static void
section_keyspace(struct buf *out, const struct totals *t)
{
    cmd_text(out, "# Keyspace\r\n");
    for (u32 i = 0; i < LIMIT_KEYSPACES_CLIENT; i++)
        if (t->keys[i] != 0)
            cmd_text(out, "db%u:keys=%llu,expires=0,avg_ttl=0,exact=0\r\n", i, U(t->keys[i]));
}

static void
section_distkv(struct buf *out, const struct server *server, const struct totals *t)
{
    cmd_text(out,
             "# DistKV\r\ndistkv_version:%s\r\nnode_id:%s\r\nshards:%u\r\npartitions:%u\r\n"
             "durability:%s\r\nkeys_exact:0\r\nstore_state:%s\r\n",
             DISTKV_VERSION, server->layout.node_id, server->shard_count,
             server->layout.partition_count,
             server->config->durability == LSM_DURABILITY_GROUP      ? "group"
             : server->config->durability == LSM_DURABILITY_PERIODIC ? "periodic"
                                                                     : "none",
             t->failed     ? "failed"
             : t->no_space ? "no-space"
                           : "ok");
    cmd_text(out,
             "clients_resp:%llu\r\nclients_native:%llu\r\nclients_paused:%llu\r\n"
             "clients_timed_out:%llu\r\nclients_request_timed_out:%llu\r\n"
             "requests_pending:%llu\r\nrequests_forwarded:%llu\r\nrequests_heavy:%llu\r\n"
             "requests_queued_light:%llu\r\nrequests_queued_heavy:%llu\r\n"
             "watched_keys:%llu\r\nloop_stalls:%llu\r\nwrites_refused:%llu\r\n"
             "write_holds:%llu\r\nwrite_hold_max_usec:%llu\r\n",
             U(t->clients_resp), U(t->clients_native), U(t->clients_paused), U(t->timed_out),
             U(t->request_timed_out), U(t->pending), U(t->forwarded), U(t->heavy),
             U(t->queued_light), U(t->queued_heavy), U(t->watches), U(t->stalls),
             U(t->writes_refused), U(t->write_holds), U(t->write_hold_ns_max / 1000));
    cmd_text(out,
             "log_bytes_to_replay:%llu\r\ntables:%llu\r\ntable_bytes:%llu\r\nblob_bytes:%llu\r\n"
             "compaction_debt_bytes:%llu\r\nrow_cache_hits:%llu\r\nrow_cache_misses:%llu\r\n"
             "block_cache_hits:%llu\r\nblock_cache_misses:%llu\r\ncorruptions:%llu\r\n",
             U(t->log_bytes_to_replay), U(t->tables), U(t->table_bytes), U(t->blob_bytes),
             U(t->compaction_debt), U(t->row_cache_hits), U(t->row_cache_misses),
             U(t->block_cache_hits), U(t->block_cache_misses), U(t->corruptions));
}

enum info_section {
    INFO_SERVER,
    INFO_CLIENTS,
    INFO_MEMORY,
    INFO_PERSISTENCE,
    INFO_STATS,
    INFO_REPLICATION,
    INFO_CPU,
    INFO_MODULES,
    INFO_COMMANDSTATS,
    INFO_ERRORSTATS,
    INFO_LATENCYSTATS,
    INFO_CLUSTER,
    INFO_KEYSPACE,
    INFO_DISTKV,
    INFO_SECTIONS
};

static const char *const section_names[] = {
    "server",  "clients",      "memory",     "persistence",  "stats",   "replication", "cpu",
    "modules", "commandstats", "errorstats", "latencystats", "cluster", "keyspace",    "distkv",
};
static_assert(ARRAY_COUNT(section_names) == INFO_SECTIONS, "a name for each section");

#define INFO_ALL     ((1u << INFO_SECTIONS) - 1)
#define INFO_DEFAULT (INFO_ALL & ~(1u << INFO_COMMANDSTATS | 1u << INFO_LATENCYSTATS))

static void
write_section(struct buf *out, enum info_section section, const struct server *server,
              const struct totals *t)
{
    switch (section) {
    case INFO_SERVER:
        section_server(out, server, t);
        return;
    case INFO_CLIENTS:
        section_clients(out, server, t);
        return;
    case INFO_MEMORY:
        section_memory(out, server, t);
        return;
    case INFO_PERSISTENCE:
        section_persistence(out, t);
        return;
    case INFO_STATS:
        section_stats(out, t);
        return;
    case INFO_REPLICATION:
        section_replication(out, server);
        return;
    case INFO_CPU:
        section_cpu(out, t);
        return;
    case INFO_MODULES:
        cmd_text(out, "# Modules\r\n");
        return;
    case INFO_COMMANDSTATS:
        section_commandstats(out, t);
        return;
    case INFO_ERRORSTATS:
        section_errorstats(out, t);
        return;
    case INFO_LATENCYSTATS:
        section_latencystats(out, t);
        return;
    case INFO_CLUSTER:
        /* INFO, CONFIG GET cluster-enabled and HELLO's mode agree. Unless resp-cluster says
         * otherwise this is one node that has 16 databases and takes keys of several slots in
         * MGET: tools that go by this field leave all but database 0 aside where it is 1. */
        cmd_text(out, "# Cluster\r\ncluster_enabled:%d\r\n",
                 server->config->resp_cluster != CONFIG_RESP_CLUSTER_OFF);
        if (server->cluster != NULL) cluster_info_lines(shard_self(), out);
        return;
    case INFO_KEYSPACE:
        section_keyspace(out, t);
        return;
    case INFO_DISTKV:
        section_distkv(out, server, t);
        return;
    case INFO_SECTIONS:
        break;
    }
    CHECK(false);
}

MAY_YIELD static struct totals *
collect(struct exec *x)
{
    struct collect_call call;
    call.totals = (struct totals *)(void *)exec_alloc(x, sizeof(*call.totals));
    call.stats = (struct shard_stats *)(void *)exec_alloc(x, sizeof(*call.stats));
    if (call.totals == NULL || call.stats == NULL) return NULL;
    memset(call.totals, 0, sizeof(*call.totals));
    shard_for_all_possible(x->shard, collect_here, &call);
    return call.totals;
}

MAY_YIELD void
cmd_info(struct exec *x)
{
    u32 wanted = x->arg_count == 1 ? INFO_DEFAULT : 0;
    for (u32 i = 1; i < x->arg_count; i++) {
        if (!exec_turn(x)) return;
        if (cmd_arg_is(x, i, "all") || cmd_arg_is(x, i, "everything")) wanted |= INFO_ALL;
        if (cmd_arg_is(x, i, "default")) wanted |= INFO_DEFAULT;
        for (u32 section = 0; section < INFO_SECTIONS; section++)
            if (cmd_arg_is(x, i, section_names[section])) wanted |= 1u << section;
    }
    const struct totals *t = collect(x);
    if (t == NULL) return;
    struct buf out;
    buf_init(&out, &x->shard->budget);
    for (u32 section = 0; section < INFO_SECTIONS; section++) {
        if (!(wanted & 1u << section)) continue;
        if (out.size != 0) cmd_text(&out, "\r\n");
        write_section(&out, (enum info_section)section, x->shard->server, t);
    }
    resp_verbatim(x->reply, "txt", buf_bytes(&out));
    buf_deinit(&out);
}

/* Up to a million names. A container's stands for its subcommands: it does nothing itself. */
MAY_YIELD static bool
histogram_named(struct exec *x, bool *named)
{
    for (u32 a = 2; a < x->arg_count; a++) {
        if (!exec_turn(x)) return false;
        for (u32 i = 0; i < command_table_count(); i++)
            if (cmd_arg_is(x, a, command_table[i].name))
                memset(named + i, true, 1 + command_sub_count(&command_table[i]));
    }
    return true;
}

/* LATENCY HISTOGRAM [command...]: calls at or below each power of two microseconds. */
MAY_YIELD void
cmd_latency_histogram(struct exec *x)
{
    const struct totals *t = collect(x);
    if (t == NULL) return;
    bool *chosen = (bool *)exec_alloc(x, command_table_count());
    if (chosen == NULL) return;
    memset(chosen, x->arg_count == 2, command_table_count());
    if (!histogram_named(x, chosen)) return;
    u32 count = 0;
    for (u32 i = 0; i < command_table_count(); i++) {
        if (t->commands_by_name[i].calls == 0) chosen[i] = false;
        count += chosen[i];
    }
    resp_map(x->reply, count);
    for (u32 i = 0; i < command_table_count(); i++) {
        if (!chosen[i]) continue;
        const struct command_stats *c = &t->commands_by_name[i];
        resp_bulk_text(x->reply, command_table[i].name);
        resp_map(x->reply, 2);
        resp_bulk_text(x->reply, "calls");
        resp_integer(x->reply, (i64)c->calls);
        resp_bulk_text(x->reply, "histogram_usec");
        u32 used = 0;
        for (u32 b = 0; b < SERVER_LATENCY_BUCKETS; b++)
            used += c->buckets[b] != 0;
        resp_map(x->reply, used);
        u64 seen = 0;
        for (u32 b = 0; b < SERVER_LATENCY_BUCKETS; b++) {
            if (c->buckets[b] == 0) continue;
            seen += c->buckets[b];
            resp_integer(x->reply, (i64)(1ull << b));
            resp_integer(x->reply, (i64)seen);
        }
    }
}
