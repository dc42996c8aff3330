/* SPDX-License-Identifier: MIT
 *
 * host_metrics.c -- see host_metrics.h.
 *
 * Naming follows Prometheus' practice: prefix distkv_, base units (seconds, bytes), _total for
 * counters, label `shard` for what a shard counts. Plain figures are one line in a table each;
 * what has a second label (command, error, cache) is written out by hand below it.
 */
#include "server/host_metrics.h"

#include "base/utf8.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct text {
    char *data;
    size_t size, capacity;
    bool failed;
};

static void PRINTF_LIKE(2, 3) put(struct text *text, const char *format, ...)
{
    if (text->failed) return;
    for (;;) {
        va_list args;
        va_start(args, format);
        size_t room = text->capacity - text->size;
        int length = vsnprintf(room > 0 ? text->data + text->size : NULL, room, format, args);
        va_end(args);
        CHECK(length >= 0);
        if ((size_t)length < room) {
            text->size += (size_t)length;
            return;
        }
        size_t capacity = MAX(text->capacity * 2, text->capacity + (size_t)length + 1);
        char *grown = realloc(text->data, capacity);
        if (grown == NULL) {
            text->failed = true;
            return;
        }
        text->data = grown;
        text->capacity = capacity;
    }
}

enum metric_kind { GAUGE, COUNTER };

struct metric {
    const char *name;
    const char *help;
    enum metric_kind kind;
    u32 offset;  /* of a u64 in struct shard_stats */
    double unit; /* the figure times this is in base units */
};

#define C(name, field, unit, help)                                                                 \
    {                                                                                              \
        "distkv_" name "_total", help, COUNTER, offsetof(struct shard_stats, field), unit          \
    }
#define G(name, field, unit, help)                                                                 \
    {                                                                                              \
        "distkv_" name, help, GAUGE, offsetof(struct shard_stats, field), unit                     \
    }
#define NS 1e-9

static const struct metric metrics[] = {
    /* clang-format off */
    C("commands_processed", commands_total, 1, "Commands that ran."),
    C("clients_refused", clients_refused, 1, "Connections refused above maxclients, or without memory for a session."),
    C("clients_timed_out", clients_timed_out, 1, "Connections closed because they were idle."),
    C("clients_request_timed_out", clients_request_timed_out, 1,
      "Connections closed because they left a request unfinished."),
    C("clients_output_closed", clients_output_closed, 1,
      "Connections closed because they did not read their replies."),
    G("clients_paused", clients_paused, 1, "Connections that are not read from for now."),
    C("keyspace_hits", keyspace_hits, 1, "Reads that found their key."),
    C("keyspace_misses", keyspace_misses, 1, "Reads that did not find their key."),
    C("requests_inline", tried_inline, 1, "Requests answered in the receive path."),
    C("requests_fiber", requests_fiber, 1, "Requests that had to wait and took a fiber."),
    C("requests_block", requests_block, 1,
      "Reads that waited for a block of a table and took no fiber."),
    C("requests_heavy", requests_heavy, 1,
      "Requests that queued as heavy: many keys, scans, deep in a pipeline."),
    G("requests_queued_light", work_queued_light, 1, "Light requests that wait for a worker."),
    G("requests_queued_heavy", work_queued_heavy, 1, "Heavy requests that wait for their turn."),
    C("requests_forwarded", requests_forwarded, 1, "Requests sent to another shard."),
    G("cluster_epoch", cluster_epoch, 1, "Epoch of the topology that the shard works with."),
    G("cluster_members", cluster_members, 1, "Members of the cluster; 0 for a node by itself."),
    G("cluster_members_alive", cluster_members_alive, 1, "Members that answer this node."),
    G("cluster_stuck", cluster_stuck, 1,
      "Whether the node takes no writes: its disk is full, slow, or has failed, or its memory is full."),
    G("cluster_alone", cluster_alone, 1, "Whether most members do not answer the node."),
    G("cluster_clock_ahead_seconds", cluster_clock_ahead_ms, 1e-3,
      "How far the node's clock is ahead of most others', when these refuse its writes; else 0."),
    G("cluster_clock_behind_seconds", cluster_clock_behind_ms, 1e-3,
      "How far the node's clock is behind most others', when it refuses their writes; else 0."),
    C("cluster_forwards", cluster_forwards, 1, "Requests of clients sent to another node."),
    C("cluster_retries_refused", cluster_retries_refused, 1,
      "Reads and forwarded requests that no further replica was asked for: too many were repeated."),
    C("cluster_forwarded", cluster_forwarded, 1, "Requests that came from another node."),
    C("cluster_fetch_failures", cluster_fetch_failures, 1,
      "Ranges of partitions that a source did not serve, or the own store did not take; repeated."),
    C("cluster_fetch_incomplete", cluster_fetch_incomplete, 1,
      "Ranges of partitions fetched without what lies in damaged blocks of a source."),
    C("cluster_maps", cluster_maps, 1,
      "Replies to CLUSTER SLOTS and its like that were made anew; the others were kept."),
    C("cluster_reads", replicate.reads, 1, "Reads that this shard has coordinated."),
    C("cluster_reads_local", replicate.reads_local, 1, "Of these, answered by this node alone."),
    C("cluster_digest_mismatches", replicate.digest_mismatches, 1,
      "Reads whose replicas did not agree."),
    C("cluster_repairs", replicate.repairs, 1, "Replicas mended by reads."),
    C("cluster_writes", replicate.writes, 1, "Writes that this shard has coordinated."),
    C("cluster_writes_restamped", replicate.restamped, 1,
      "Writes that met a newer version and were stamped again."),
    C("cluster_writes_stood_in", replicate.stood_in, 1,
      "Writes of sloppy keyspaces acknowledged with nodes that stand in for replicas."),
    C("cluster_writes_unknown", replicate.unknown, 1, "Writes whose outcome is not known."),
    C("cluster_unavailable", replicate.unavailable, 1,
      "Requests refused because too few replicas could be reached."),
    C("cluster_replica_reads", replicate.replica_reads, 1, "Reads for other coordinators."),
    C("cluster_replica_writes", replicate.replica_writes, 1, "Writes for other coordinators."),
    C("cluster_wrong_epoch", replicate.wrong_epoch, 1,
      "Requests of other nodes refused because one of the two is behind."),
    G("cluster_hints_waiting", hints.waiting, 1, "Writes kept for replicas that missed them."),
    G("cluster_hints_waiting_bytes", hints.waiting_bytes, 1, "Their bytes on disk."),
    G("cluster_hints_oldest_seconds", hints_oldest_ms, 1e-3, "Age of the oldest of them."),
    G("cluster_hints_repairs_due", hints.repairs_due, 1,
      "Partitions and replicas that need repair, since hints were dropped."),
    C("cluster_hints_kept", hints.kept, 1,
      "Writes kept for others as a stand-in, in sloppy keyspaces."),
    C("cluster_hints_replayed", hints.replayed, 1, "Hints that were delivered."),
    C("cluster_hints_failed", hints.failed, 1, "Attempts to deliver that failed; repeated."),
    C("cluster_hints_dropped", hints.dropped, 1, "Hints that did not fit."),
    C("cluster_hints_expired", hints.expired, 1, "Hints that became too old."),
    C("cluster_tree_rounds", trees.rounds, 1,
      "Rounds in which a shard has compared its partitions with other replicas."),
    G("cluster_tree_round_age_seconds", trees_round_age_ms, 1e-3,
      "Since the last round of the shard where that is longest ago; 0 before all had one."),
    G("cluster_tree_settled_age_seconds", trees_settled_age_ms, 1e-3,
      "Age of the versions below which all replicas have everything; 0 when not known."),
    G("cluster_tree_repairing", trees_repairing, 1, "Whether a repair that was asked for goes on."),
    C("cluster_tree_exchanges", trees.exchanges, 1, "Partitions compared with a replica."),
    C("cluster_tree_failures", trees.failures, 1, "Of these, not to the end."),
    C("cluster_tree_leaves_differing", trees.leaves_differing, 1,
      "Stretches of keys that differed, and were compared key by key."),
    C("cluster_tree_entries_sent", trees.entries_sent, 1, "Entries that other replicas lacked."),
    C("cluster_tree_entries_received", trees.entries_received, 1,
      "Entries that this node lacked."),
    C("cluster_tree_sent_bytes", trees.bytes_sent, 1, "Bytes of those that were sent."),
    C("cluster_tree_received_bytes", trees.bytes_received, 1, "Bytes of those that were received."),
    C("cluster_tree_entries_scanned", trees.entries_scanned, 1,
      "Entries read to bring hash trees up to date."),
    C("peer_calls", peers.calls, 1, "Calls to other nodes."),
    C("peer_calls_failed", peers.calls_failed, 1, "Of these, failed."),
    C("peer_calls_timed_out", peers.calls_timed_out, 1, "Of these, not answered in time."),
    C("peer_posts_dropped", peers.posts_dropped, 1, "Messages to other nodes that were dropped."),
    C("peer_refused", peers.refused, 1, "Connections of peers refused: wrong secret, stranger."),
    G("peer_connections", peers.connections, 1, "Connections with other nodes."),
    C("peer_sent_bytes", peers.sent_bytes, 1, "Bytes sent to other nodes."),
    C("peer_received_bytes", peers.received_bytes, 1, "Bytes received from other nodes."),
    C("requests_refused", requests_refused, 1, "Requests refused for want of room."),
    G("requests_pending", requests_pending, 1, "Requests being worked on."),
    G("requests_limit", requests_limit, 1, "Most requests that are worked on at once."),
    G("replies_held", durable_waits, 1, "Replies held until the log is safe."),
    G("keys_locked", keys_locked, 1, "Keys locked by requests in progress."),
    C("lock_waits", lock_waits, 1, "Requests that waited for a locked key."),
    G("memory_used_bytes", memory_used, 1, "Memory in use, of the shard's budget."),
    G("memory_peak_bytes", memory_peak, 1, "Most memory that was in use."),
    G("memory_limit_bytes", memory_limit, 1, "The shard's memory budget."),
    G("memory_connections_bytes", memory_connections, 1, "Memory of sessions and requests."),
    G("memory_input_bytes", io.input_bytes, 1, "Memory of what clients sent and nobody has read."),
    G("memory_large_frames_bytes", io.frame_bytes, 1, "Memory of large requests that come."),
    G("memory_output_bytes", io.output_bytes, 1, "Memory of replies that clients have not read."),
    G("slowlog_entries", slowlog_entries, 1, "Entries of the slow log."),
    C("monitor_dropped", monitor_dropped, 1, "Lines that slow MONITOR clients lost."),
    G("watched_keys", watches, 1, "Keys that clients watch."),

    C("loop_turns", io.turns, 1, "Turns of the shard's loop."),
    C("loop_busy_seconds", io.busy_ns, NS, "Time in turns that did something."),
    C("loop_sleeps", io.idle_sleeps, 1, "Times the shard went to sleep."),
    C("loop_stalls", io.stalls, 1, "Turns above the stall limit."),
    G("loop_turn_max_seconds", io.turn_ns_max, NS, "The longest turn."),
    G("fibers_running", io.fibers_running, 1, "Fibers that have not ended."),
    G("fibers_pooled", io.fibers_pooled, 1, "Fibers kept for use again."),
    C("fiber_switches", io.fiber_switches, 1, "Switches to fibers."),
    C("mails_sent", io.mails_sent, 1, "Messages to other shards."),
    C("mails_received", io.mails_received, 1, "Messages from other shards."),
    C("mail_wakes", io.mail_wakes, 1, "Sleeping shards woken."),
    G("mails_waiting", io.mails_waiting, 1, "Messages waiting because a queue is full."),
    C("disk_reads", io.reads, 1, "Reads from disk."),
    C("disk_read_bytes", io.read_bytes, 1, "Bytes read from disk."),
    C("disk_read_errors", io.read_errors, 1, "Reads from disk that failed."),
    C("disk_writes", io.writes, 1, "Writes to disk."),
    C("disk_written_bytes", io.write_bytes, 1, "Bytes written to disk."),
    C("disk_write_errors", io.write_errors, 1, "Writes to disk that failed."),
    C("disk_syncs", io.syncs, 1, "Syncs of files."),
    G("disk_requests_in_flight", io.io_in_flight, 1, "Requests that the disk works on."),
    G("disk_requests_queued", io.io_queued, 1, "Requests waiting for their turn at the disk."),
    G("connections", io.connections, 1, "Open connections."),
    C("connections_accepted", io.connections_accepted, 1, "Connections accepted."),
    C("connections_refused", io.connections_refused, 1,
      "Connections refused for want of memory or descriptors."),
    C("received_bytes", io.received_bytes, 1, "Bytes received from clients."),
    C("sent_bytes", io.sent_bytes, 1, "Bytes sent to clients."),
    C("receive_stalls", io.receive_stalls, 1, "Times that receive buffers ran out."),
    C("connections_starved", io.connections_starved, 1,
      "Connections closed because there was no memory for the request they were sending."),
    G("connections_waiting_for_room", io.connections_waiting, 1,
      "Connections that are not read until there is memory for their large request."),
    C("ring_overflows", io.cq_overflows, 1, "Completion queue overflows; not 0 is a fault."),
    C("ring_enters", io.ring_enters, 1, "Calls into the kernel for the ring."),

    G("keys_estimate", lsm.keys_estimate, 1, "About how many keys there are."),
    C("gets", lsm.gets, 1, "Reads of keys in the engine."),
    C("gets_memory", lsm.gets_memory, 1, "Reads answered by a memtable."),
    C("gets_row_cache", lsm.gets_row_cache, 1, "Reads answered by the row cache."),
    C("gets_not_found", lsm.gets_not_found, 1, "Reads of absent keys."),
    C("writes", lsm.writes, 1, "Operations written."),
    C("written_bytes", lsm.write_bytes, 1, "Bytes of keys and values written."),
    C("writes_refused", lsm.writes_refused, 1, "Operations refused by the engine."),
    C("log_written_bytes", lsm.log_bytes, 1, "Bytes written to the log."),
    C("log_writes", lsm.log_writes, 1, "Group commits."),
    G("log_segments", lsm.log_segments, 1, "Log segments."),
    G("log_replay_bytes", lsm.log_bytes_to_replay, 1, "Log that a restart would replay."),
    G("memtable_bytes", lsm.memtable_bytes, 1, "Memory of memtables."),
    G("memtable_limit_bytes", lsm.memtable_bytes_limit, 1, "Most memory of memtables."),
    C("flushes", lsm.flushes, 1, "Memtables written to tables."),
    C("flushed_bytes", lsm.flush_bytes, 1, "Bytes of tables written by flushes."),
    G("tables", lsm.tables, 1, "Tables."),
    G("table_bytes", lsm.table_bytes, 1, "Bytes of tables."),
    G("table_entries", lsm.table_entries, 1, "Entries in tables."),
    G("blob_files", lsm.blob_files, 1, "Files of large values."),
    G("blob_bytes", lsm.blob_bytes, 1, "Bytes of files of large values."),
    G("blob_live_bytes", lsm.blob_live_bytes, 1, "Of them in use."),
    G("runs", lsm.runs_max, 1, "Most runs that a read may have to look at."),
    G("index_bytes", lsm.index_bytes, 1, "Memory of indexes."),
    G("filter_bytes", lsm.filter_bytes, 1, "Memory of filters."),
    C("filter_probes", lsm.filter_probes, 1, "Questions to filters."),
    C("filter_negatives", lsm.filter_negatives, 1, "Reads that filters saved."),
    C("filter_false_positives", lsm.filter_false_positives, 1, "Reads that filters caused."),
    C("table_reads", lsm.table_reads, 1, "Blocks of tables read."),
    C("blob_reads", lsm.blob_reads, 1, "Large values read."),
    C("compactions", lsm.compactions, 1, "Compactions."),
    C("compaction_read_bytes", lsm.compaction_read_bytes, 1, "Bytes read by compaction."),
    C("compaction_written_bytes", lsm.compaction_written_bytes, 1,
      "Bytes written by compaction."),
    G("compactions_active", lsm.compactions_active, 1, "Compactions under way."),
    G("compaction_debt_bytes", lsm.compaction_debt_bytes, 1, "Bytes that compaction is behind."),
    C("compaction_dropped_overwritten", lsm.compaction_dropped_overwritten, 1,
      "Overwritten entries dropped."),
    C("compaction_dropped_deleted", lsm.compaction_dropped_deleted, 1,
      "Deleted entries and tombstones dropped."),
    C("compaction_dropped_expired", lsm.compaction_dropped_expired, 1,
      "Expired entries dropped."),
    G("snapshots_open", lsm.snapshots_open, 1, "Snapshots in use."),
    C("scrubbed_bytes", lsm.scrub_bytes, 1, "Bytes verified by the scrub."),
    C("scrub_passes", lsm.scrub_passes, 1, "Times that everything was verified."),
    C("corruptions", lsm.corruptions, 1, "Damaged blocks found."),
    G("damaged_files", lsm.damaged_files, 1, "Files with damaged blocks, as far as they were met."),
    G("store_memory_bytes", lsm.memory_bytes, 1, "Memory of the engine."),
    G("store_memory_limit_bytes", lsm.memory_limit_bytes, 1, "The engine's memory budget."),
    G("recovery_seconds", lsm.recovery_ns, NS, "Time that recovery took at the start."),
    G("recovery_records", lsm.recovery_records, 1, "Log records replayed at the start."),
    G("recovery_bytes", lsm.recovery_bytes, 1, "Log bytes replayed at the start."),
    /* clang-format on */
};

static u64
figure(const struct shard_stats *stats, u32 offset)
{
    return load_u64((const char *)stats + offset);
}

static void
put_head(struct text *text, const char *name, const char *type, const char *help)
{
    put(text, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void
put_number(struct text *text, u64 value, double unit)
{
    if (unit == 1) {
        put(text, " %llu\n", (unsigned long long)value);
    } else {
        put(text, " %.9f\n", (double)value * unit);
    }
}

static void
put_table(struct text *text, const struct host_figures *figures)
{
    for (u32 i = 0; i < ARRAY_COUNT(metrics); i++) {
        const struct metric *metric = &metrics[i];
        put_head(text, metric->name, metric->kind == GAUGE ? "gauge" : "counter", metric->help);
        for (u32 shard = 0; shard < figures->shard_count; shard++) {
            if (!figures->shard_known[shard]) continue;
            put(text, "%s{shard=\"%u\"}", metric->name, shard);
            put_number(text, figure(&figures->shards[shard], metric->offset), metric->unit);
        }
    }
}

/* One metric whose second label tells figures of the same kind apart. */
struct labelled {
    const char *label_value;
    u32 offset;
};

static void
put_labelled(struct text *text, const struct host_figures *figures, const char *name,
             const char *type, const char *help, const char *label, const struct labelled *rows,
             u32 count)
{
    put_head(text, name, type, help);
    for (u32 shard = 0; shard < figures->shard_count; shard++) {
        if (!figures->shard_known[shard]) continue;
        for (u32 i = 0; i < count; i++) {
            put(text, "%s{shard=\"%u\",%s=\"%s\"} %llu\n", name, shard, label, rows[i].label_value,
                (unsigned long long)figure(&figures->shards[shard], rows[i].offset));
        }
    }
}

static void
put_clients_and_caches(struct text *text, const struct host_figures *figures)
{
#define ROW(label, field)                                                                          \
    {                                                                                              \
        label, offsetof(struct shard_stats, field)                                                 \
    }
    static const struct labelled clients[] = {
        ROW("resp", clients_resp),
        ROW("native", clients_native),
        ROW("monitor", clients_monitor),
    };
    put_labelled(text, figures, "distkv_clients", "gauge", "Connected clients by protocol.",
                 "protocol", clients, ARRAY_COUNT(clients));
    static const struct labelled bytes[] = {
        ROW("row", lsm.row_cache_bytes),
        ROW("block", lsm.block_cache_bytes),
    };
    put_labelled(text, figures, "distkv_cache_bytes", "gauge", "Memory of a cache.", "cache", bytes,
                 ARRAY_COUNT(bytes));
    static const struct labelled hits[] = {
        ROW("row", lsm.row_cache_hits),
        ROW("block", lsm.block_cache_hits),
    };
    put_labelled(text, figures, "distkv_cache_hits_total", "counter", "Found in a cache.", "cache",
                 hits, ARRAY_COUNT(hits));
    static const struct labelled misses[] = {
        ROW("row", lsm.row_cache_misses),
        ROW("block", lsm.block_cache_misses),
    };
    put_labelled(text, figures, "distkv_cache_misses_total", "counter", "Not found in a cache.",
                 "cache", misses, ARRAY_COUNT(misses));
#undef ROW
}

static void
put_errors(struct text *text, const struct host_figures *figures)
{
    put_head(text, "distkv_errors_total", "counter", "Error replies by their first word.");
    for (u32 shard = 0; shard < figures->shard_count; shard++) {
        if (!figures->shard_known[shard]) continue;
        for (u32 kind = 0; kind < SERVER_ERROR_KINDS; kind++) {
            put(text, "distkv_errors_total{shard=\"%u\",error=\"%s\"} %llu\n", shard,
                server_error_kind_name(kind),
                (unsigned long long)figures->shards[shard].errors[kind]);
        }
    }
}

/* Commands that were never called have no series: there are many, and each histogram is long. */
static void
put_commands(struct text *text, const struct host_figures *figures)
{
    u32 count = MIN(server_command_count(), SERVER_COMMANDS_MAX);
    const char *name = "distkv_command_duration_seconds";
    put_head(text, name, "histogram", "Time from a command's receipt to its reply.");
    for (u32 shard = 0; shard < figures->shard_count; shard++) {
        if (!figures->shard_known[shard]) continue;
        for (u32 i = 0; i < count; i++) {
            const struct command_stats *stats = &figures->shards[shard].commands[i];
            if (stats->calls == 0) continue;
            const char *command = server_command_name(i);
            u64 cumulative = 0;
            for (u32 bucket = 0; bucket + 1 < SERVER_LATENCY_BUCKETS; bucket++) {
                cumulative += stats->buckets[bucket];
                put(text, "%s_bucket{shard=\"%u\",command=\"%s\",le=\"%.9g\"} %llu\n", name, shard,
                    command, (double)(1ull << bucket) / 1e6, (unsigned long long)cumulative);
            }
            cumulative += stats->buckets[SERVER_LATENCY_BUCKETS - 1];
            put(text,
                "%s_bucket{shard=\"%u\",command=\"%s\",le=\"+Inf\"} %llu\n"
                "%s_sum{shard=\"%u\",command=\"%s\"} %.9f\n"
                "%s_count{shard=\"%u\",command=\"%s\"} %llu\n",
                name, shard, command, (unsigned long long)cumulative, name, shard, command,
                (double)stats->ns * NS, name, shard, command, (unsigned long long)cumulative);
        }
    }
    static const struct {
        const char *name, *help;
        u32 offset;
    } counters[] = {
        {"distkv_commands_total", "Calls of a command.", offsetof(struct command_stats, calls)},
        {"distkv_commands_failed_total", "Calls that answered an error.",
         offsetof(struct command_stats, failed)},
        {"distkv_commands_rejected_total", "Calls refused before they ran.",
         offsetof(struct command_stats, rejected)},
    };
    for (u32 c = 0; c < ARRAY_COUNT(counters); c++) {
        put_head(text, counters[c].name, "counter", counters[c].help);
        for (u32 shard = 0; shard < figures->shard_count; shard++) {
            if (!figures->shard_known[shard]) continue;
            for (u32 i = 0; i < count; i++) {
                const struct command_stats *stats = &figures->shards[shard].commands[i];
                if (stats->calls == 0 && stats->rejected == 0) continue;
                put(text, "%s{shard=\"%u\",command=\"%s\"} %llu\n", counters[c].name, shard,
                    server_command_name(i),
                    (unsigned long long)load_u64((const char *)stats + counters[c].offset));
            }
        }
    }
}

/* By hand: an enum is narrower than the figures of the table. */
static void
put_state(struct text *text, const struct host_figures *figures)
{
    put_head(text, "distkv_store_failed", "gauge",
             "0 writable, 1 disk full, 2 stopped taking writes.");
    for (u32 shard = 0; shard < figures->shard_count; shard++) {
        if (!figures->shard_known[shard]) continue;
        put(text, "distkv_store_failed{shard=\"%u\"} %u\n", shard,
            (u32)figures->shards[shard].lsm.state);
    }
}

/* offset: of a struct histogram in struct shard_stats. */
static void
put_histogram(struct text *text, const struct host_figures *figures, const char *name,
              const char *help, u32 offset)
{
    put_head(text, name, "histogram", help);
    for (u32 shard = 0; shard < figures->shard_count; shard++) {
        if (!figures->shard_known[shard]) continue;
        const struct histogram *h = (const void *)((const char *)&figures->shards[shard] + offset);
        for (u32 bits = 3; bits <= 20; bits++) { /* 8 us to 1 s */
            u64 us = 1ull << bits;
            put(text, "%s_bucket{shard=\"%u\",le=\"%.9g\"} %llu\n", name, shard, (double)us / 1e6,
                (unsigned long long)histogram_count_until(h, us * NS_PER_US));
        }
        put(text,
            "%s_bucket{shard=\"%u\",le=\"+Inf\"} %llu\n%s_sum{shard=\"%u\"} %.9f\n"
            "%s_count{shard=\"%u\"} %llu\n",
            name, shard, (unsigned long long)h->count, name, shard, (double)h->sum * NS, name,
            shard, (unsigned long long)h->count);
    }
}

static void
put_process(struct text *text, const struct host_figures *figures)
{
    put_head(text, "distkv_build_info", "gauge", "1; the labels tell what runs.");
    put(text, "distkv_build_info{version=\"%s\",node_id=\"%s\"} 1\n", DISTKV_VERSION,
        figures->node_id);
    put_head(text, "distkv_ready", "gauge", "1 while the node serves requests.");
    put(text, "distkv_ready %d\n", figures->ready ? 1 : 0);
    put_head(text, "distkv_uptime_seconds", "gauge", "Time since the process started.");
    put(text, "distkv_uptime_seconds %.3f\n", (double)figures->uptime_ns * NS);
    put_head(text, "distkv_process_memory_limit_bytes", "gauge", "The option memory.");
    put(text, "distkv_process_memory_limit_bytes %llu\n",
        (unsigned long long)figures->config->memory_bytes);
    put_head(text, "distkv_process_resident_memory_bytes", "gauge", "Resident set of the process.");
    put(text, "distkv_process_resident_memory_bytes %llu\n",
        (unsigned long long)figures->resident_bytes);
    put_head(text, "distkv_process_resident_memory_peak_bytes", "gauge",
             "Largest resident set of the process.");
    put(text, "distkv_process_resident_memory_peak_bytes %llu\n",
        (unsigned long long)figures->resident_bytes_max);
    put_head(text, "distkv_log_messages_dropped_total", "counter",
             "Messages of the operator's log that found no room.");
    put(text, "distkv_log_messages_dropped_total %llu\n", (unsigned long long)figures->log_dropped);
    put_head(text, "distkv_shard_up", "gauge", "1 when the shard answered this request.");
    for (u32 shard = 0; shard < figures->shard_count; shard++) {
        put(text, "distkv_shard_up{shard=\"%u\"} %d\n", shard, figures->shard_known[shard] ? 1 : 0);
    }
}

char *
host_metrics_text(const struct host_figures *figures, size_t *size_out)
{
    struct text text = {.data = malloc(1 << 16), .capacity = 1 << 16};
    if (text.data == NULL) return NULL;
    put_process(&text, figures);
    if (figures->ready) {
        put_table(&text, figures);
        put_clients_and_caches(&text, figures);
        put_errors(&text, figures);
        put_commands(&text, figures);
        put_state(&text, figures);
        put_histogram(&text, figures, "distkv_log_write_duration_seconds",
                      "Time of one group commit on the disk.",
                      offsetof(struct shard_stats, lsm.log_write_ns));
        put_histogram(&text, figures, "distkv_writes_held_seconds",
                      "Time that writes were held for a snapshot of all shards.",
                      offsetof(struct shard_stats, lsm.writes_held_ns));
    }
    if (text.failed) {
        free(text.data);
        return NULL;
    }
    *size_out = text.size;
    return text.data;
}

/* ---- JSON ---- */

static const char *
state_name(enum lsm_state state)
{
    switch (state) {
    case LSM_STATE_OK:
        return "ok";
    case LSM_STATE_NO_SPACE:
        return "no space";
    case LSM_STATE_FAILED:
        return "failed";
    }
    return "unknown";
}

static json_t *
shard_json(const struct server_config *config, const struct shard_stats *s, u32 shard)
{
    char failure[4 * sizeof(s->lsm.failure)];
    utf8_escape(s->lsm.failure, failure, sizeof(failure));
    return json_pack(
        "{s:i, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "shard",
        (int)shard, "core", (int)config->core_list[shard], "state", state_name(s->lsm.state),
        "failure", failure, "keys_estimate", (json_int_t)s->lsm.keys_estimate, "commands",
        (json_int_t)s->commands_total, "connections", (json_int_t)s->io.connections, "memory_bytes",
        (json_int_t)s->memory_used, "memory_limit_bytes", (json_int_t)s->memory_limit,
        "table_bytes", (json_int_t)s->lsm.table_bytes, "blob_bytes", (json_int_t)s->lsm.blob_bytes,
        "log_replay_bytes", (json_int_t)s->lsm.log_bytes_to_replay, "compaction_debt_bytes",
        (json_int_t)s->lsm.compaction_debt_bytes, "corruptions", (json_int_t)s->lsm.corruptions,
        "stalls", (json_int_t)s->io.stalls);
}

char *
host_status_json(const struct host_figures *figures, size_t *size_out)
{
    const struct server_config *config = figures->config;
    u64 keys = 0, commands = 0, connections = 0, corruptions = 0, disk = 0;
    u64 errors = 0, replay = 0, debt = 0, refused = 0, memory = 0;
    enum lsm_state worst = LSM_STATE_OK;
    json_t *shards = json_array();
    if (shards == NULL) return NULL;
    for (u32 shard = 0; shard < figures->shard_count; shard++) {
        if (!figures->ready || !figures->shard_known[shard]) continue;
        const struct shard_stats *s = &figures->shards[shard];
        keys += s->lsm.keys_estimate;
        commands += s->commands_total;
        connections += s->io.connections;
        corruptions += s->lsm.corruptions;
        disk += s->lsm.table_bytes + s->lsm.blob_bytes;
        replay += s->lsm.log_bytes_to_replay;
        debt += s->lsm.compaction_debt_bytes;
        refused += s->lsm.writes_refused;
        memory += s->memory_used;
        for (u32 i = 0; i < SERVER_ERROR_KINDS; i++)
            errors += s->errors[i];
        worst = MAX(worst, s->lsm.state);
        json_t *one = shard_json(config, s, shard);
        if (one == NULL || json_array_append_new(shards, one) != 0) {
            json_decref(shards);
            return NULL;
        }
    }
    char data_dir[4 * sizeof(config->data_dir)]; /* json_pack takes nothing but UTF-8 */
    utf8_escape(config->data_dir, data_dir, sizeof(data_dir));
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:b, s:s, s:s, s:i, s:s, s:f, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
        "s:I, s:I, s:I, s:I, s:I, s:o}",
        "version", DISTKV_VERSION, "node_id", figures->node_id, "run_id", figures->run_id, "ready",
        figures->ready, "state", state_name(worst), "address", config->endpoint.host, "port",
        (int)figures->port, "data_dir", data_dir, "uptime_seconds", (double)figures->uptime_ns * NS,
        "shard_count", (int)figures->shard_count, "keys_estimate", (json_int_t)keys, "commands",
        (json_int_t)commands, "errors", (json_int_t)errors, "connections", (json_int_t)connections,
        "corruptions", (json_int_t)corruptions, "data_bytes", (json_int_t)disk, "log_replay_bytes",
        (json_int_t)replay, "compaction_debt_bytes", (json_int_t)debt, "writes_refused",
        (json_int_t)refused, "memory_used_bytes", (json_int_t)memory, "memory_limit_bytes",
        (json_int_t)config->memory_bytes, "resident_bytes", (json_int_t)figures->resident_bytes,
        "shards", shards);
    if (root == NULL) return NULL;
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    if (text != NULL) *size_out = strlen(text);
    return text;
}
