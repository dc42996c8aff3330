/* SPDX-License-Identifier: MIT
 *
 * server.h -- a node: what the host starts, and what it may ask of it while it runs.
 *
 *   host thread                                    shards
 *   struct server_config filled
 *   server_new(config)
 *   io_node_start(.shard_main = server_shard_main,
 *                 .arg = server)              -->  shard 0: store_prepare
 *                                                  all:     lsm_open, then (all open) listen
 *   server_ready()  true                      <--
 *   io_node_ask(shard, server_collect, ...)   -->  copies figures
 *   io_node_call(shard, server_action_call, ...)
 *   io_node_stop()                            -->  stop listening, let what is in flight end,
 *   io_node_join()                                 close stores, release the directory
 *   server_free()
 *
 * struct server is written by the host before the start and read-only afterwards, but for the few
 * atomic fields named so. Everything else that changes belongs to a shard.
 */
#ifndef DISTKV_SERVER_SERVER_H
#define DISTKV_SERVER_SERVER_H

#include <stdatomic.h>

#include "cluster/replicate.h"
#include "cluster/trees.h"
#include "io/io.h"
#include "lsm/lsm.h"
#include "server/config.h"

struct server;

/* What clients are told of the Redis that we follow; DISTKV_VERSION is our own. */
#define SERVER_REDIS_VERSION "7.2.4"

/* Keeps config, which stays the host's and must outlive the server. pid: for INFO; the layers below
 * cannot ask for it. NULL: no memory. Called by an ordinary thread. */
MUST_CHECK struct server *server_new(struct server_config *config, u32 pid);
/* After io_node_join. */
void server_free(struct server *server);
/* io_node_config.shard_main; arg: struct server *. */
MAY_YIELD status server_shard_main(void *arg);

/* From any thread: all stores are open and every shard listens; false again once it stops. */
bool server_ready(const struct server *server);
/* Why no traffic should be sent here, though it may be answered: a node of a cluster that is being
 * drained, or that cannot do what another one can. NULL: send it. */
const char *server_not_ready(const struct server *server);
/* From any thread: the port that the shards listen on, 0 before; the stores' node id. */
u16 server_port(const struct server *server);
/* Why the start failed, for the operator: set before io_node_join returns its status, "" if the
 * status says it all. Read it after the join. */
const char *server_failure(const struct server *server);
/* Valid once ready. */
const char *server_node_id(const struct server *server);
const char *server_run_id(const struct server *server); /* 40 hex digits, new at each start */
/* From the host, about once a second: what the process occupies, for INFO. */
void server_resident_set(struct server *server, u64 resident_bytes);
/* What a client wanted by SHUTDOWN: 0 nothing, 1 stop, 2 stop without flushing. */
u32 server_shutdown_wanted(const struct server *server);

/* ---- figures ---- */

/* Latency buckets: bucket i counts calls of at most 2^i microseconds, the last one all longer
 * ones (2^25 us = 33 s). Not cumulative. */
#define SERVER_LATENCY_BUCKETS 27u
#define SERVER_COMMANDS_MAX    192u

struct command_stats {
    u64 calls;
    u64 failed;   /* ran and answered an error */
    u64 rejected; /* refused before it ran: arity, permission, overload */
    u64 ns;       /* of all calls together */
    u64 ns_max;
    u64 buckets[SERVER_LATENCY_BUCKETS];
};

/* One per command of the table, by index: server_command_name. The native protocol's opcodes have
 * rows of their own ("native|get"). */
u32 server_command_count(void);
const char *server_command_name(u32 index); /* lower case, "client|list" for subcommands */

enum server_error_kind { /* by the reply's first word */
                         SERVER_ERROR_ERR,
                         SERVER_ERROR_BUSY, /* overloaded, retry */
                         SERVER_ERROR_OOM,
                         SERVER_ERROR_MISCONF, /* the store takes no writes */
                         SERVER_ERROR_CROSSSLOT,
                         SERVER_ERROR_NOAUTH,
                         SERVER_ERROR_PROTOCOL,
                         SERVER_ERROR_OTHER,
                         SERVER_ERROR_KINDS
};
const char *server_error_kind_name(u32 kind);

struct shard_stats {
    u32 shard;
    u64 now_ns;
    struct command_stats commands[SERVER_COMMANDS_MAX];
    u64 errors[SERVER_ERROR_KINDS];
    u64 commands_total;
    u64 commands_per_s, received_bytes_per_s, sent_bytes_per_s; /* over the last second or two */
    u64 clients_resp, clients_native, clients_monitor;
    u64 clients_refused;           /* above maxclients */
    u64 clients_timed_out;         /* idle */
    u64 clients_request_timed_out; /* left a request unfinished */
    u64 clients_output_closed;     /* did not read their replies */
    u64 clients_paused; /* now: not read from, until replies are gone or a place is free */
    u64 keyspace_hits, keyspace_misses;
    u64 tried_inline;     /* requests answered in the receive path */
    u64 requests_pending; /* now: on fibers, on other shards, waiting for their turn */
    u64 requests_limit;
    u64 requests_fiber;                       /* requests that needed one */
    u64 requests_block;                       /* that read a block of a table without one */
    u64 requests_heavy;                       /* of these: many keys, scans, deep in a pipeline */
    u64 work_queued_light, work_queued_heavy; /* now: waiting for a worker */
    u64 requests_forwarded;                   /* sent to another shard */
    u64 requests_refused;                     /* no place, no memory */
    u64 cluster_forwards, cluster_forwarded;  /* to other nodes; from them */
    u64 cluster_retries_refused;              /* base/retry.h */
    u64 cluster_maps;                         /* of slots, made for cluster clients */
    u64 cluster_fetch_failures;               /* cluster_shard.fetch_failures and so on */
    u64 cluster_fetch_incomplete;
    u64 durable_waits; /* now: replies held until the log is safe */
    u64 keys_locked;   /* now */
    u64 lock_waits;
    u64 memory_used, memory_peak, memory_limit;
    u64 memory_connections; /* of it: sessions, requests, replies */
    u64 slowlog_entries;
    u64 monitor_dropped;
    u64 watches;
    struct io_stats io;
    struct lsm_stats lsm;
    /* in a cluster, else 0 */
    u64 cluster_epoch, cluster_members, cluster_members_alive;
    /* the node's: on shard 0 */
    u64 cluster_stuck, cluster_alone, cluster_clock_ahead_ms, cluster_clock_behind_ms;
    struct replicate_stats replicate;
    struct hints_stats hints;
    u64 hints_oldest_ms;      /* age */
    struct trees_stats trees; /* the node's: on shard 0 */
    u64 trees_round_age_ms, trees_settled_age_ms, trees_repairing;
    struct peers_stats peers;
};

/* arg of server_collect: out is the caller's memory (it is large: not on a stack). */
struct server_collect {
    struct server *server;
    struct shard_stats *out;
};
/* For io_node_ask, io_shard_call: fills *out with the figures of the shard that runs it. */
MAY_YIELD void server_collect(void *arg); /* struct server_collect * */

/* For io_node_call on every shard in turn: live stores in order, for operators. */
enum server_action { SERVER_ACTION_FLUSH, SERVER_ACTION_COMPACT };
struct server_action_call {
    struct server *server;
    enum server_action action;
    status result;
};
MAY_YIELD void server_action_call(void *arg);

#endif
