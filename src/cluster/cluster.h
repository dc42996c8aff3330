/* SPDX-License-Identifier: MIT
 *
 * cluster.h -- a node's part in a cluster, put together: peers, the topology, replication, moves.
 *
 *   shard 0, before the others cluster_new
 *   shard 0, stores are open   cluster_start: peers, group0; founds, joins, or comes back
 *   the other shards, then     cluster_shard_open
 *   any shard                  cluster_topology, cluster_alive, shard->peers, shard->replicator
 *   every shard, stopping      cluster_shard_close, shard 0 last
 *   shard 0, afterwards        cluster_free
 *
 * The topology comes from group0 on shard 0 and goes to each shard by mail; each holds its own
 * reference. A shard works with the newest that it has; requests under way go on with theirs.
 *
 * Who lives. Shard 0 pings shard 0 of every other member each CLUSTER_PING_MS: all with all, which
 * is right for some tens of nodes (n nodes send 10 n pings a second each; at 50 that is a percent
 * or two of a core). A ping carries the oldest epoch that any shard of the sender still works with,
 * which the barriers between two stages of a move wait for.
 *
 * Moves. Whoever leads group0 plans when members join or leave, and takes the plan from stage to
 * stage (cluster_steward.c). Who gains partitions fetches them from a read quorum of those who have
 * them (cluster_fetch.c).
 */
#ifndef DISTKV_CLUSTER_CLUSTER_H
#define DISTKV_CLUSTER_CLUSTER_H

#include <stdatomic.h>

#include "base/hmac.h"
#include "cluster/group0.h"
#include "cluster/liveness.h"
#include "cluster/replicate.h"
#include "io/mailbox.h"
#include "io/timer.h"

#define CLUSTER_SEEDS_MAX   16u
#define CLUSTER_ALIVE_SLOTS 4096u
#define CLUSTER_PING_MS     100u
static_assert(CLUSTER_PING_MS * NS_PER_MS == LIVENESS_PING_NS, "a tick is a ping");

struct cluster_options {
    u8 secret[PEER_SECRET_BYTES];
    char node_id[TOPOLOGY_NAME_BYTES];
    char host[PEER_HOST_BYTES]; /* where the others reach us, clients too */
    char rack[TOPOLOGY_NAME_BYTES];
    char datacenter[TOPOLOGY_NAME_BYTES];
    u16 client_port, peer_port;
    u32 shard_count, partition_count;
    u32 weight;
    u32 replicas, write_quorum, read_quorum; /* of a cluster that we found */
    u64 hints_disk_bytes;                    /* of each shard: hints.h */
    struct peer_address seeds[CLUSTER_SEEDS_MAX];
    u32 seed_count;
};

/* From the text of a secret. */
void cluster_secret_make(struct bytes text, u8 out[PEER_SECRET_BYTES]);

struct cluster_shard;

/* A topology on its way to a shard, one at a time. */
struct cluster_mail {
    struct io_mail mail;
    struct cluster *cluster;
    struct topology *topology; /* NULL once it was taken */
    u32 shard;
    /* shard 0's */
    bool away;
    u64 epoch; /* of the last one that was sent */
};

/* The node's. What is not atomic is written before the shards start, or by shard 0 only. */
struct cluster {
    struct cluster_options options;
    struct cluster_shard *shards[LIMIT_SHARDS];
    struct cluster_mail mails[LIMIT_SHARDS];
    _Atomic u32 member;            /* our number; 0: none yet */
    _Atomic bool failed;           /* shard 0 gave up */
    _Atomic bool refusing;         /* nothing more is begun */
    _Atomic u32 open_shards;       /* but shard 0 */
    struct peer_identity identity; /* once member is set */
    /* By number modulo CLUSTER_ALIVE_SLOTS. Two of a thousand members whose numbers are 4,096 apart
     * would share one: then a call to a dead one is attempted, or one to a living one is not. */
    _Atomic u8 alive[CLUSTER_ALIVE_SLOTS];
    _Atomic u64 shard_epochs[LIMIT_SHARDS]; /* the oldest that it works with; 0: none */
    _Atomic u64 fetched_bytes, fetched_entries;
    char reason[TOPOLOGY_REASON_BYTES]; /* why it failed */
};

/* What another member is known to be; on shard 0. */
struct cluster_ping {
    struct peer_call call;
    struct list link; /* cluster_shard->pings */
    struct cluster_shard *shard;
    u32 member;
    u32 refusals; /* connections, in a row */
    bool calling;
    u64 heard_ns; /* when it answered last; 0: never */
    u64 began_ns;
    u64 rtt_ns;
    u64 epoch;    /* the oldest that it works with; 0: not known */
    i64 clock_ms; /* its wall clock before ours */
};

/* A shard's. */
struct cluster_shard {
    struct cluster *cluster;
    u32 index;
    struct lsm *lsm;
    struct budget budget;
    struct peers *peers;
    struct hints *hints;
    struct replicator *replicator;
    struct topology *topology; /* held; NULL: none yet */
    struct io_timer tick;
    u32 streams;              /* under way for others */
    struct fiber_queue ended; /* woken when one of those ends */
    /* shard 0 */
    struct group0 *group0;
    struct list pings;
    struct liveness liveness;
    bool steward_runs;
    bool fetch_runs;
    u64 fetch_session;          /* what is fetched now, or was last */
    struct fiber_queue changed; /* woken with each topology, and at the end */
};

/* options are copied. NULL: no memory. Both on shard 0. */
MUST_CHECK struct cluster *cluster_new(const struct cluster_options *options);
void cluster_free(struct cluster *cluster);

/* On shard 0. empty: no shard's store holds anything of clients; a node that joins or founds must
 * begin so. On failure cluster->reason says why. */
MAY_YIELD MUST_CHECK status cluster_start(struct cluster *cluster, struct lsm *lsm, bool empty,
                                          struct cluster_shard **out);
/* On the others: waits for that. ST_CANCELED: it failed, or the node stops. */
MAY_YIELD MUST_CHECK status cluster_shard_open(struct cluster *cluster, struct lsm *lsm,
                                               struct cluster_shard **out);
/* Shard 0 waits for the others. */
MAY_YIELD void cluster_shard_close(struct cluster_shard *shard);

static inline u32
cluster_member(const struct cluster *cluster)
{
    return atomic_load_explicit(&cluster->member, memory_order_relaxed);
}
/* Whether calls to it are worth an attempt. From any shard. */
static inline bool
cluster_alive(const struct cluster *cluster, u32 member)
{
    return atomic_load_explicit(&cluster->alive[member % CLUSTER_ALIVE_SLOTS],
                                memory_order_relaxed) != 0;
}
/* Until the next yield, unless held; NULL: none yet. */
static inline struct topology *
cluster_topology(const struct cluster_shard *shard)
{
    return shard->topology;
}

/* ---- scans: cluster_scan.c ---- */

struct cluster_entry {
    u64 token, version, expire_ms;
    struct bytes key;
    struct bytes value; /* without with_values only the size is right */
};

/* Live entries of a keyspace in the order of (token, key), each as the newest of a read quorum of
 * its replicas; what a replica lacks is not mended. */
struct cluster_scan {
    u16 keyspace;
    bool with_values;
    u32 bytes_max; /* of a page, about */
    u64 token_last;
    u64 deadline_ns;
    bool (*each)(void *arg, const struct cluster_entry *entry); /* false: not this one, and stop */
    void *arg;
    /* Where it is: behind the key of the token, or without a key before the token's first. */
    u64 token;
    u16 key_size;
    u8 key[LIMIT_KEY_BYTES];
    bool ended; /* behind token_last */
};

/* Goes on by one page, which may be empty. ST_UNAVAILABLE: too few replicas. */
MAY_YIELD MUST_CHECK status cluster_scan_page(struct cluster_shard *shard,
                                              struct cluster_scan *scan);

/* ---- for operators: on shard 0 ---- */

/* NULL: not known here (ourselves, or a stranger). */
const struct cluster_ping *cluster_ping_of(const struct cluster_shard *shard, u32 member);
bool cluster_ping_is_alive(const struct cluster_ping *ping);
/* Takes a member out: leave (it lives and gives its data away) or forget (it is dead). */
MAY_YIELD MUST_CHECK status cluster_remove(struct cluster_shard *shard, const char *node_id,
                                           bool dead, u64 deadline_ns,
                                           char reason[TOPOLOGY_REASON_BYTES]);

/* Makes a keyspace that keeps siblings, or finds the one of this name; its number. */
MAY_YIELD MUST_CHECK status cluster_siblings_make(struct cluster_shard *shard, const char *name,
                                                  u64 deadline_ns, u32 *number_out,
                                                  char reason[TOPOLOGY_REASON_BYTES]);

/* ---- between the files of this part ---- */

/* The oldest epoch that any shard of this node works with. */
u64 cluster_own_epoch(const struct cluster *cluster);
/* Every CLUSTER_PING_MS on shard 0. */
void cluster_pings_send(struct cluster_shard *shard);
void cluster_pings_open(struct cluster_shard *shard);
void cluster_pings_close(struct cluster_shard *shard);
/* For the members of the topology. */
void cluster_pings_follow(struct cluster_shard *shard);
bool cluster_is_alive(void *arg, u32 member); /* arg: shard 0 */
u64 cluster_epoch_of(void *arg, u32 member);

MAY_YIELD void cluster_steward(void *arg); /* struct cluster_shard *: of shard 0 */

void cluster_streams_open(struct cluster_shard *shard);
/* A page of a store, as PEER_STREAM answers it: appended to out. */
struct cluster_page {
    u64 token, token_last;
    u32 bytes_max;
    u16 keyspace;
    bool keys_only;
    struct bytes behind;
};
MAY_YIELD MUST_CHECK status cluster_page_read(struct cluster_shard *shard,
                                              const struct cluster_page *page, struct buf *out);
/* The body of a request for one: CLUSTER_PAGE_HEAD_BYTES, and then the key. session: of the plan
 * that it is fetched for; 0: for a scan. */
#define CLUSTER_PAGE_HEAD_BYTES 31u
void cluster_page_encode(const struct cluster_page *page, u64 session,
                         u8 out[CLUSTER_PAGE_HEAD_BYTES]);
/* One entry of a page. */
struct cluster_page_entry {
    bool deleted;
    struct cluster_entry entry;
};
/* From *at, which moves. ST_END; ST_CORRUPT. */
MUST_CHECK status cluster_page_next(struct bytes page, size_t *at, struct cluster_page_entry *out);
/* Everything that this shard gains by the present plan. ST_OK: it is here, and durable. */
MAY_YIELD MUST_CHECK status cluster_fetch(struct cluster_shard *shard);

#endif
