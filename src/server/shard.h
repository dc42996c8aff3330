/* SPDX-License-Identifier: MIT
 *
 * shard.h -- what one shard of a node holds while it serves: its store, its sessions, the work in
 * hand and the figures. Everything here belongs to the shard; nothing is locked.
 *
 * A command runs in one of two ways. In the receive path it is tried without waiting (exec.h). If
 * it has to wait it becomes a struct request (request.h) on a worker fiber, or on the shard that
 * owns its key. What waits only for the log waits in no fiber: see struct durable_wait.
 */
#ifndef DISTKV_SERVER_SHARD_H
#define DISTKV_SERVER_SHARD_H

#include "base/hash.h"
#include "io/io.h"
#include "io/mailbox.h"
#include "io/net.h"
#include "io/timer.h"
#include "lsm/lsm.h"
#include "lsm/store.h"
#include "server/keylock.h"
#include "server/room_wait.h"
#include "server/server.h"
#include "server/slowlog.h"
#include "server/work.h"

/* Requests of one connection that may be under way, and of one shard; of these heavy ones, so that
 * light ones find a place in any case. */
#define SESSION_REQUESTS_MAX     256u
#define SHARD_REQUESTS_MAX       8192u
#define SHARD_HEAVY_REQUESTS_MAX (SHARD_REQUESTS_MAX / 4 * 3)
/* Stages of held output that one connection remembers; further ones are merged. */
#define SESSION_HOLDS 16u
/* Lists of requests from other shards that wait here, by their key. */
#define SHARD_ORDER_BUCKETS 64u
/* A whole request's bytes: see CONN_INPUT_MAX_BYTES. */
#define REQUEST_BYTES_MAX (CONN_INPUT_MAX_BYTES - 4096u)

/* How long a native snapshot is kept (native.h). All shards count together: a scan reads one shard
 * after another, and the others' parts are in use as well. */
#define NATIVE_SNAPSHOTS_MAX 16u /* a node */
struct native_lease {
    _Atomic u64 id;      /* the snapshot's; 0: free */
    _Atomic u64 used_ns; /* by any shard */
    _Atomic u32 readers; /* pages that are being read now */
    _Atomic u32 holders; /* shards that have their part, and who opens it */
};

/* The node. Filled by server_new and by shard 0 before the others go on; then read-only. */
struct server {
    struct server_config *config; /* the host's; its changeable fields are atomic */
    u32 pid;
    u32 shard_count;
    u64 start_wall_ms;
    char run_id[41];
    char node_name[41]; /* for CLUSTER: 40 hex digits made of the node id */
    u64 run_number;     /* native HELLO */
    struct store_layout layout;
    struct shard *shards[LIMIT_SHARDS];
    struct meeting_place *meetings; /* node.c */
    char failure[640];
    _Atomic bool failing; /* the first to set it writes failure */
    _Atomic u32 prepared; /* layout is filled: 1, failed: 2 */
    _Atomic u32 shards_ready;
    _Atomic bool handed_over; /* cluster_hand_over is done: shards drain */
    _Atomic bool has_keys;    /* a store does, at its start */
    _Atomic bool ready;
    _Atomic u32 port;
    _Atomic u32 shutdown_wanted;
    _Atomic u64 resident_bytes; /* the host's last look; 0: never */
    _Atomic u32 clients;        /* of all shards: maxclients is the node's */
    _Atomic u32 memory_wanted;  /* requests of all shards that wait for memory, and clients
                                 * that have long found no place for one */
    struct cluster *cluster;    /* NULL: a node by itself */
    _Atomic u32 not_ready;      /* why, node.c; by shard 0; 0: it is */
    struct native_lease leases[NATIVE_SNAPSHOTS_MAX];
};

/* Somebody who waits until seq is durable, without a fiber. */
struct durable_wait {
    struct list link; /* shard->durable_waits, ascending seq; to itself when not waiting */
    u64 seq;
    void (*fn)(struct durable_wait *wait, bool failed);
};

struct memory_turn {
    bool taken;
    struct list waiting; /* struct turn_waiter of shard.c, in order */
};

struct shard {
    struct server *server;
    u32 index;
    struct server_config *config;
    u64 config_generation; /* whose rates are in force here */
    u64 scrub_rate;        /* of these: this shard's */

    /* store */
    struct lsm *lsm;
    u64 token_first, token_last;
    bool store_failed;
    struct list durable_waits;
    struct keylock_table locks;
    struct list order[SHARD_ORDER_BUCKETS]; /* struct request.order_link: see request.c */
    struct list order_ready;                /* struct request.follower_link: may run now */
    bool order_runs;                        /* somebody is at order_ready */
    /* Requests for other shards that one connection's input has brought so far: struct
     * request.follower_link, by owner; see request_trains_send. */
    struct list trains[LIMIT_SHARDS];
    u64 train_owners; /* bit a shard: it has one */
    bool trains_form;

    /* sessions */
    /* Sessions, requests, replies in hand. What large requests take, and what clients make us keep
     * from one command to the next, has bounds of its own within it, so that both leave something
     * for the small requests of others. */
    struct budget budget, large_budget, kept_budget;
    struct io_listener *listener;
    struct io_listener *own_listener; /* with resp-cluster cores: of this shard alone */
    struct list sessions;
    struct list *sweep_next; /* where the idle sweep goes on */
    struct io_timer sweep;
    u64 swept_ns;         /* when it came last */
    u64 stood_ns;         /* in a cluster: the end of the last pause, see session_stood_since */
    u64 stood_until_ns;   /* in a cluster: nobody is let in before that, see sweep_pause */
    struct io_timer rate; /* makes stats->commands_per_s and its neighbours */
    u64 rate_ns, rate_commands, rate_received, rate_sent; /* at the last look */
    u32 session_count;
    bool draining;
    u64 refusal_ns; /* of log_seldom: clients are refused */
    u64 turn_ns;    /* see may_go_on in session.c */
    u32 round, turn_runs, turn_waits;
    struct list monitors; /* sessions of this shard in MONITOR */
    u64 monitor_shards;   /* bit per shard that has monitors */
    u32 monitor_mails;    /* in flight from here */

    /* scratch of the receive path: valid until the next command */
    struct lsm_batch batch;
    struct buf reply;
    struct buf args; /* struct bytes[] */

    /* work */
    struct workers workers;
    u32 request_count, heavy_count, large_count;
    u32 block_reads; /* of these: wait for a block of a table, without a fiber */
    u32 guest_count; /* requests of other shards that run here, or have replies in memory of here */
    struct list starved[WORK_CLASSES]; /* sessions that wait for a place for a request */
    /* Large requests that were short of memory, one at a time; by work->calls, since of those that
     * call the one whose turn it is needs others of the other kind to run. */
    struct memory_turn memory_turn[2];

    /* snapshots, idempotency (native) */
    struct native_state *native;

    struct cluster_shard *cluster;     /* NULL: a node by itself, or not yet */
    struct cluster_kept *cluster_kept; /* cluster_resp.c; NULL: nothing is kept */
    u32 keyspaces_wanted;              /* to be made: a bit each */
    bool keyspaces_made;               /* a fiber is at it */
    u32 admin_answers;                 /* to other nodes' PEER_ADMIN, under way */
    struct room_line room; /* requests before the members that are to run them: route.c */

    struct cuts *cuts; /* cut.c */

    struct slowlog slowlog;
    struct latency_monitor latency;

    /* figures */
    struct shard_stats *stats;
    u64 stats_reset_wall_ms;
};

/* On each shard, now and then: acts on rates that were changed meanwhile, by whomever. */
void shard_config_look(struct shard *shard);
/* On shard 0, now and then: see server_not_ready. */
void server_not_ready_look(struct server *server);

static inline struct shard *
shard_self(void)
{
    return io_shard_user();
}

/* The shard that owns a token. */
static inline u32
shard_of_token(const struct server *server, u64 token)
{
    u32 count = server->layout.partition_count;
    return partition_shard(token_partition(token, count), server->shard_count, count);
}

/* Calls wait->fn (as a callback, later) once seq is durable; at once, that is: returns false and
 * does nothing, when it is already. *wait must not be waiting. */
MUST_CHECK bool durable_wait_start(struct shard *shard, struct durable_wait *wait, u64 seq);
/* The log has failed before seq was durable: nobody is to wait for it, nobody would be called. */
static inline bool
durable_lost(const struct shard *shard, u64 seq)
{
    return UNLIKELY(shard->store_failed) && seq > lsm_durable_seq(shard->lsm);
}
void durable_wait_cancel(struct durable_wait *wait);
/* After a scan: until what it has told is durable, the absence of what was deleted, too. seen: the
 * last number that it saw; shown: the highest of what it returned. When the log has failed, only
 * the latter counts: reads go on. */
MAY_YIELD MUST_CHECK status durable_wait_scanned(struct shard *shard, u64 seen, u64 shown);
/* For lsm_on_durable. */
void shard_durable(void *arg, u64 durable_seq, bool failed);

/* For a large request that was short of memory: until it has given its turn back no other one of
 * this shard and kind tries again, and clients anywhere that hold memory by reading slowly are
 * given less time. wanted_until_ns: changes when nobody wants its answer any more, or NULL. false:
 * too many wait, it was not its turn before one of the two, or the node stops. */
MAY_YIELD MUST_CHECK bool memory_turn_take(struct shard *shard, struct work *work,
                                           const _Atomic u64 *wanted_until_ns, u64 deadline_ns);
void memory_turn_give(struct shard *shard, const struct work *work);

/* Runs fn(arg) on every shard in turn, this one included, each on a fiber there. A shard that has
 * no fiber to spare is asked again for a while; then its status is returned, the others still run.
 */
MAY_YIELD MUST_CHECK status shard_for_all(struct shard *shard, void (*fn)(void *arg), void *arg);
/* The same where nothing depends on a shard that cannot. */
MAY_YIELD void shard_for_all_possible(struct shard *shard, void (*fn)(void *arg), void *arg);

/* Counts a finished command. */
void shard_count_command(struct shard *shard, u32 command, u64 ns, bool failed);
/* Several that took as long each, and succeeded. */
void shard_count_commands(struct shard *shard, u32 command, u32 count, u64 ns);
void shard_count_error(struct shard *shard, struct bytes reply);
void shard_stats_reset(struct shard *shard);

#endif
