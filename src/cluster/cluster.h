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
 * Who lives. Shard 0 pings shard 0 of every other member: of those whose silence is waited for
 * (near ones: who shares a partition with us, above all) each CLUSTER_PING_MS, of the others once a
 * second (cluster_ping.c). A ping carries the oldest epoch that any shard of the sender still works
 * with, which the barriers between two stages of a move wait for.
 *
 * Moves. Whoever leads group0 plans when members join or leave, and takes the plan from stage to
 * stage (group0_lead.c). Who gains partitions fetches them from as many of those who have them
 * as meet every write quorum (cluster_fetch.c; the sources: cluster_stream.c).
 */
#ifndef DISTKV_CLUSTER_CLUSTER_H
#define DISTKV_CLUSTER_CLUSTER_H

#include <stdatomic.h>

#include "base/hmac.h"
#include "base/retry.h"
#include "base/scan_place.h"
#include "cluster/group0.h"
#include "cluster/liveness.h"
#include "cluster/replicate.h"
#include "cluster/trees.h"
#include "io/io.h"
#include "io/mailbox.h"
#include "io/timer.h"

#define CLUSTER_SEEDS_MAX   16u
#define CLUSTER_ALIVE_SLOTS 4096u
#define CLUSTER_IS_ALIVE    1u
#define CLUSTER_IS_DRAINED  2u
#define CLUSTER_HAS_PORTS   4u
#define CLUSTER_IS_STUCK    8u
#define CLUSTER_PING_MS     100u
static_assert(CLUSTER_PING_MS * NS_PER_MS == LIVENESS_PING_NS, "a tick is a ping");
/* Of the 5 s that a node has to stop. */
#define CLUSTER_HAND_OVER_NS (500 * NS_PER_MS)

struct cluster_options {
    u8 secret[PEER_SECRET_BYTES];
    char node_id[TOPOLOGY_NAME_BYTES];
    char host[PEER_HOST_BYTES]; /* where the others reach us, clients too */
    char rack[TOPOLOGY_NAME_BYTES];
    char datacenter[TOPOLOGY_NAME_BYTES];
    u16 client_port, peer_port;
    bool shard_ports; /* each shard has one for clients, from client_port + 1 on */
    u32 shard_count, partition_count;
    u32 weight;
    u32 member_replaced;                     /* a dead one, when we join; 0: nobody */
    u32 replicas, write_quorum, read_quorum; /* of a cluster that we found */
    u64 hints_disk_bytes;                    /* of each shard: hints.h */
    u64 move_bytes_per_s;                    /* cluster_move_rate_set */
    struct peer_address seeds[CLUSTER_SEEDS_MAX];
    u32 seed_count;
};

/* What is wrong with a member, by its own account. */
enum cluster_ill {
    CLUSTER_ILL_STUCK = 1, /* the store of a shard takes no writes: full, failed, or a slow disk */
    /* Its clock is so far ahead of most others' that these refuse what it stamps, or so far behind
     * that it refuses what they do. */
    CLUSTER_ILL_CLOCK = 2,
    CLUSTER_ILL_ALONE = 4, /* most members, which it has seen before, do not answer */
};

/* From the text of a secret. */
void cluster_secret_make(struct bytes text, u8 out[PEER_SECRET_BYTES]);

/* Others coordinate what this node would: it may not stamp yet (replicator_may_stamp), or it stops
 * (cluster_hand_over). (Also while its clock is wrong: CLUSTER_ILL_CLOCK.) */
enum cluster_passing { CLUSTER_PASSING_NOTHING, CLUSTER_PASSING_STARTS, CLUSTER_PASSING_STOPS };

/* cluster_operate.c */
enum cluster_drain { CLUSTER_DRAIN_NONE, CLUSTER_DRAIN_CLOSING, CLUSTER_DRAIN_DONE };

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
    _Atomic bool outdated;         /* group0_is_outdated: the node stops */
    _Atomic bool taken_out;        /* it is no member any more, and did not leave: it stops */
    _Atomic bool rolled_back;      /* group0_is_rolled_back: it stops */
    _Atomic bool proving;          /* group0_is_proving: the shards open without a topology */
    _Atomic u32 open_shards;       /* but shard 0 */
    struct peer_identity identity; /* once member is set */
    /* By number modulo CLUSTER_ALIVE_SLOTS. Two of a thousand members whose numbers are 4,096 apart
     * would share one: then a call to a dead one is attempted, or one to a living one is not. */
    _Atomic u8 alive[CLUSTER_ALIVE_SLOTS]; /* CLUSTER_IS_ALIVE ... */
    /* How often one seemed to have ended, modulo 256: it does not answer, or its link to us was
     * cut. doubt_count counts all, when that of its member is to be seen. */
    _Atomic u8 doubts[CLUSTER_ALIVE_SLOTS];
    _Atomic u64 doubt_count;
    _Atomic bool waited_for[CLUSTER_ALIVE_SLOTS]; /* cluster_waits_for, until shard 0 has seen it */
    /* On io_now_ns: when it last changed, on any shard, which member this node has a request run
     * by. Before the change is to be seen. */
    _Atomic u64 runners_changed_ns;
    _Atomic u64 shard_epochs[LIMIT_SHARDS];   /* the oldest that it works with; 0: none */
    _Atomic u64 shard_oldest[LIMIT_SHARDS];   /* replicator_oldest_to_come of each; 0: not known */
    _Atomic u64 shard_ahead_ms[LIMIT_SHARDS]; /* how far its stamps are ahead of our wall clock */
    _Atomic u64 oldest;                       /* the least of all members; 0: not of all known */
    _Atomic u64 oldest_stage;                 /* stage_epoch that they worked with */
    struct trees_node trees;
    _Atomic u64 move_bytes_per_s; /* 0: without limit */
    _Atomic u64 serve_at_ns;      /* on io_now_ns: no page is served before */
    _Atomic u64 fetched_bytes, fetched_entries;
    /* Of the plan that is fetched by now, or was last: of how many partitions (a keyspace's each),
     * and how many are here. */
    _Atomic u64 fetch_session, fetch_began_ns, fetch_began_bytes, fetch_partitions, fetch_done;
    _Atomic u32 fetch_failed_from;      /* who did not serve last; 0: nobody, or it goes on */
    _Atomic u64 shards_stuck;           /* a bit each: lsm_is_stuck */
    _Atomic u64 shards_keeping;         /* a bit each: hints_wait_for_others */
    _Atomic bool leaves_at_once;        /* cluster_leave_at_once */
    _Atomic u8 ill;                     /* enum cluster_ill, of us */
    _Atomic u64 clock_ahead_ms;         /* of what any shard stamps; else 0 */
    _Atomic i64 clock_off_ms;           /* of the wall clock, negative: behind; else 0 */
    _Atomic u8 drain;                   /* enum cluster_drain; the server heeds it */
    _Atomic u8 passing;                 /* enum cluster_passing */
    _Atomic u64 shards_stamping;        /* a bit each: it may (replicator_may_stamp) */
    char reason[TOPOLOGY_REASON_BYTES]; /* why it failed */
};

/* What another member is known to be; on shard 0, with its member of liveness. */
struct cluster_ping {
    struct peer_call call;
    struct cluster_shard *shard;
    u32 member;
    u32 refusals; /* connections, in a row */
    bool calling;
    bool near;     /* as liveness was told */
    bool partner;  /* holds a partition that we hold, or one of us is about to */
    u64 waited_ns; /* until then it is near, because a request waits for it */
    u64 heard_ns;  /* when it answered last; 0: never */
    u64 began_ns;
    u64 told_ns; /* when the last ping that it answered began */
    u64 rtt_ns;
    u64 epoch;    /* the oldest that it works with; 0: not known */
    u64 oldest;   /* no write of a lower version will come from there; 0: not known */
    i64 clock_ms; /* its wall clock before ours, by at least so much */
    u8 ill;       /* enum cluster_ill, without ALONE */
    bool drained; /* wants others to do what it did */
    bool shard_ports;
    bool keeps; /* for others what it has not delivered yet: who leaves is waited for */
    /* sloppy keyspaces, members that lost a part, and so on; false: not, or it was never heard */
    bool knows_sloppy, knows_lost, knows_plan, knows_stay;
};

/* Who has not served something that is to be fetched. */
#define CLUSTER_SOURCES 8u
struct cluster_source {
    u32 member;      /* 0: none */
    u32 failures;    /* in a row */
    bool is_damaged; /* its store has met damage there */
    bool is_told;    /* that it is damaged, and what it could read was taken */
    status told;     /* the reason that is in the log */
    u64 told_ns;     /* of log_seldom */
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
    struct trees *trees;
    struct topology *topology; /* held; NULL: none yet */
    struct io_timer tick;
    bool addresses_lacked;  /* no memory for one: calls to that member end with NOT_FOUND */
    u32 streams;            /* under way for others */
    u32 streams_idle_count; /* of these, between two pages */
    u32 streams_resting;    /* and until the rate lets them have one */
    struct list streams_idle;
    struct retry_budget retries; /* of what is forwarded to other nodes */
    bool closing;                /* this node is about to be drained: nothing more is coordinated */
    u32 coordinating;            /* requests that run on this node: the server counts them */
    struct fiber_queue ended;    /* woken when one of those ends */
    /* what was fetched for the plan that fetched_of names: cluster_fetch.c */
    u8 *fetched;
    size_t fetched_size;
    u64 fetched_of, fetched_seq;
    u64 fetching;    /* session of the plan for which something is fetched; 0: nothing is */
    u32 fetch_avoid; /* who has refused to serve; 0: nobody */
    struct cluster_source fetch_sources[CLUSTER_SOURCES]; /* who has failed by that plan */
    u32 fetch_source_next;                                /* the next of them to be forgotten */
    u32 fetch_unsent;     /* requests in a row that did not get away */
    u64 fetch_failures;   /* ranges, since the start */
    u64 fetch_incomplete; /* and those fetched without what lies in damaged blocks of a source */
    u64 fetch_told_ns;    /* of log_seldom: what was gained did not get into the own store */
    bool mends;           /* cluster_mend.c looks at its store */
    u64 fetch_at_ns;      /* before this, no other page is asked for: cluster_move_rate_set */
    u8 doubts[CLUSTER_ALIVE_SLOTS]; /* cluster->doubts and doubt_count, when last looked at */
    u64 doubt_count;
    /* shard 0 */
    struct group0 *group0;
    /* of each other member a struct cluster_ping: cluster_ping_at */
    struct liveness liveness;
    bool pings_lacked;                   /* no memory for one: that member counts as dead */
    bool said_drained;                   /* by the last pings */
    u64 said_ns;                         /* since when they say so */
    bool majority_seen;                  /* since the start */
    u64 record_again_ns, record_told_ns; /* keep_record */
    u64 mend_at_ns, mend_told_ns;        /* cluster_mend */
    status mend_told;                    /* why not, last */
    u64 mend_seen[LIMIT_SHARDS];         /* lsm_damage_epoch of each shard, all told of */
    u64 mend_seen_epoch;                 /* of the stage in which that is so */
    u64 mend_stage_epoch, mend_since_ns; /* the present one, since when */
    u64 mend_pause_ns;                   /* the last one after it was in vain */
    bool leaves;                         /* when it was a member last, it was about to leave */
    bool is_out;                         /* it is none any more */
    bool steward_runs;
    bool fetch_runs, drain_runs, mend_runs;
    u64 fetch_session;          /* what is fetched now, or was last */
    struct fiber_queue changed; /* woken with each topology, and at the end */
};

/* ---- cluster_mend.c ---- */

/* Whether damage in one member's store can be mended by the others, as keyspaces are. */
bool cluster_mends(const struct topology *topology);
/* Now and then, by the steward: has a fiber look for damage, give up the partitions that it lies
 * in, and say when they are removed. */
void cluster_mend(struct cluster_shard *shard);

/* options are copied. NULL: no memory. Both on shard 0. */
MUST_CHECK struct cluster *cluster_new(const struct cluster_options *options);
void cluster_free(struct cluster *cluster);

/* How many bytes a second this node fetches of what it gains, and serves of what others gain, all
 * shards together; 0: as fast as it can. Any thread, any time. */
void cluster_move_rate_set(struct cluster *cluster, u64 bytes_per_s);

/* On shard 0. empty: no shard's store holds anything of clients; a node that joins or founds must
 * begin so. On failure cluster->reason says why. */
MAY_YIELD MUST_CHECK status cluster_start(struct cluster *cluster, struct lsm *lsm, bool empty,
                                          struct cluster_shard **out);
/* On the others: waits for that. ST_CANCELED: it failed, or the node stops. reason: why it failed
 * here, or empty. */
MAY_YIELD MUST_CHECK status cluster_shard_open(struct cluster *cluster, struct lsm *lsm,
                                               struct cluster_shard **out,
                                               char reason[TOPOLOGY_REASON_BYTES]);
/* On shard 0, before the node stops serving: ends what it coordinates, gives the lead of group0
 * away, and tells the others to coordinate what it would. Returns when all of it is done, or after
 * CLUSTER_HAND_OVER_NS. */
MAY_YIELD void cluster_hand_over(struct cluster_shard *shard);
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
    return (atomic_load_explicit(&cluster->alive[member % CLUSTER_ALIVE_SLOTS],
                                 memory_order_relaxed) &
            CLUSTER_IS_ALIVE) != 0;
}
/* Whether others are to coordinate what it would, if there are any. */
static inline bool
cluster_drained(const struct cluster *cluster, u32 member)
{
    if (member == cluster_member(cluster))
        return atomic_load_explicit(&cluster->drain, memory_order_relaxed) == CLUSTER_DRAIN_DONE ||
               atomic_load_explicit(&cluster->passing, memory_order_relaxed) !=
                   CLUSTER_PASSING_NOTHING ||
               (atomic_load_explicit(&cluster->ill, memory_order_relaxed) & CLUSTER_ILL_CLOCK) != 0;
    return (atomic_load_explicit(&cluster->alive[member % CLUSTER_ALIVE_SLOTS],
                                 memory_order_relaxed) &
            CLUSTER_IS_DRAINED) != 0;
}
/* Whether a store of its takes no writes: CLUSTER_ILL_STUCK, as it said when it was heard last. From
 * any shard. */
static inline bool
cluster_stuck(const struct cluster *cluster, u32 member)
{
    if (member == cluster_member(cluster))
        return (atomic_load_explicit(&cluster->ill, memory_order_relaxed) & CLUSTER_ILL_STUCK) != 0;
    return (atomic_load_explicit(&cluster->alive[member % CLUSTER_ALIVE_SLOTS],
                                 memory_order_relaxed) &
            CLUSTER_IS_STUCK) != 0;
}
/* The wall clock, by most others' where ours is more than 250 ms off: for times that go along with
 * requests. From any shard. */
static inline u64
cluster_wall_ms(const struct cluster *cluster)
{
    i64 off = atomic_load_explicit(&cluster->clock_off_ms, memory_order_relaxed);
    return (u64)((i64)io_wall_ms() - off);
}
static inline u64
cluster_clock_behind_ms(const struct cluster *cluster)
{
    i64 off = atomic_load_explicit(&cluster->clock_off_ms, memory_order_relaxed);
    return off < 0 ? (u64)-off : 0;
}
/* Whether what reads before it writes may begin on this shard: not while its write would wait, and
 * others, who may stamp before, would have run more by then. */
static inline bool
cluster_may_stamp(const struct cluster *cluster, u32 shard)
{
    return (atomic_load_explicit(&cluster->shards_stamping, memory_order_relaxed) >> shard & 1) !=
           0;
}
/* A request of ours waits for its answer, or got none: whoever it is, it is pinged at each tick for
 * a while. From any shard. */
static inline void
cluster_waits_for(struct cluster *cluster, u32 member)
{
    atomic_store_explicit(&cluster->waited_for[member % CLUSTER_ALIVE_SLOTS], true,
                          memory_order_relaxed);
}
/* Requests go to others from now on. */
static inline void
cluster_runners_change(struct cluster *cluster)
{
    atomic_store(&cluster->runners_changed_ns, io_now_ns());
}
/* Whether they may have gone to others since; asked after who is next was chosen. */
static inline bool
cluster_runners_changed_since(const struct cluster *cluster, u64 since_ns)
{
    atomic_thread_fence(memory_order_acquire);
    return atomic_load(&cluster->runners_changed_ns) >= since_ns;
}
/* Whether each of its shards has a port for clients, as far as is known. */
static inline bool
cluster_shard_ports(const struct cluster *cluster, u32 member)
{
    if (member == cluster_member(cluster)) return cluster->options.shard_ports;
    return (atomic_load_explicit(&cluster->alive[member % CLUSTER_ALIVE_SLOTS],
                                 memory_order_relaxed) &
            CLUSTER_HAS_PORTS) != 0;
}
/* Until the next yield, unless held; NULL: none yet. */
static inline struct topology *
cluster_topology(const struct cluster_shard *shard)
{
    return shard->topology;
}

/* From any shard: its topology is at least as new as that of all members was when the call began.
 * Before what is not in it may be said not to be: somebody may have made it, and have been told so,
 * while this shard or node was behind. ST_UNAVAILABLE: too few voters answer, or it takes longer
 * than the deadline. */
MAY_YIELD MUST_CHECK status cluster_topology_renew(struct cluster_shard *shard, u64 deadline_ns);

/* ---- scans: cluster_scan.c ---- */

struct cluster_entry {
    u64 token, version, expire_ms;
    struct bytes key;
    struct bytes value; /* without with_values only the size is right */
};

/* Live entries of a keyspace in the order of (token, key), each as the newest of a read quorum of
 * its replicas; what a replica lacks is not mended, and for one that cannot read what it has others
 * are asked. With REPLICATE_ONE a node that holds a partition shows what it has itself, or fails: so
 * replicas are compared. */
struct cluster_scan {
    u16 keyspace;
    u8 level; /* enum replicate_level */
    bool with_values;
    u32 bytes_max; /* of a page, about */
    u64 token_last;
    u64 deadline_ns;
    bool (*each)(void *arg, const struct cluster_entry *entry); /* false: not this one, and stop */
    void *arg;
    struct scan_place place;
    bool ended; /* behind token_last */
};

/* Goes on by one page, which may be empty. ST_UNAVAILABLE: too few replicas. */
MAY_YIELD MUST_CHECK status cluster_scan_page(struct cluster_shard *shard,
                                              struct cluster_scan *scan);

/* ---- for operators: on shard 0 ---- */

/* All that are known: at, below liveness.count, by number. */
static inline struct cluster_ping *
cluster_ping_at(const struct cluster_shard *shard, u32 at)
{
    return shard->liveness.members[at].arg;
}
/* NULL: not known here (ourselves, or a stranger). */
const struct cluster_ping *cluster_ping_of(const struct cluster_shard *shard, u32 member);
bool cluster_ping_is_alive(const struct cluster_ping *ping);
enum cluster_removal {
    CLUSTER_LEAVE,        /* it lives and gives its data away; refused where fewer members would be
                           * left (in its data center) than a key has replicas */
    CLUSTER_LEAVE_FORCED, /* not refused for that; cluster_leave_at_once is to be said to it, too */
    CLUSTER_FORGET,       /* it is dead: its data is lost anyway */
    CLUSTER_STAY,         /* it leaves, and is not to any more; what it holds it keeps */
};
/* Takes a member out, or takes that back. */
MAY_YIELD MUST_CHECK status cluster_remove(struct cluster_shard *shard, const char *node_id,
                                           enum cluster_removal how, u64 deadline_ns,
                                           char reason[TOPOLOGY_REASON_BYTES]);
/* What this node keeps for others is not waited for (cluster_keeps) while it leaves, until it starts
 * again. OVERLOADED: for all it knows it does not leave; it may have yet to hear so, or not to leave
 * any more. On shard 0. */
MUST_CHECK status cluster_leave_at_once(struct cluster_shard *shard);
/* Its virtual nodes, from the next plan on. */
MAY_YIELD MUST_CHECK status cluster_weight_set(struct cluster_shard *shard, const char *node_id,
                                               u32 weight, u64 deadline_ns,
                                               char reason[TOPOLOGY_REASON_BYTES]);

#define CLUSTER_KEYSPACE_ANY UINT16_MAX
struct cluster_keyspace {
    bool create;
    u16 number; /* of a new one, CLUSTER_KEYSPACE_ANY: whichever is free; out: its number */
    u8 conflict;
    u8 replicas, write_quorum, read_quorum; /* 0: as it is, or as keyspace 0 is */
    bool sloppy_on, sloppy_off;             /* neither: the same */
    char name[TOPOLOGY_NAME_BYTES];
    char reason[TOPOLOGY_REASON_BYTES]; /* out: why not */
};
/* Makes or changes one. ST_INVALID, ST_NOT_FOUND: for the reason. */
MAY_YIELD MUST_CHECK status cluster_keyspace_set(struct cluster_shard *shard,
                                                 struct cluster_keyspace *wanted, u64 deadline_ns);
/* Makes the keyspace with the defaults and its number as its name if there is none of the number.
 */
MAY_YIELD MUST_CHECK status cluster_keyspace_need(struct cluster_shard *shard, u32 number,
                                                  u64 deadline_ns);
/* LIMIT_KEYSPACES_CLIENT: none of this name. */
u32 cluster_keyspace_find(const struct topology *topology, const char *name);
/* Begins to hand over what this node does for others, or ends that. */
MUST_CHECK status cluster_drain(struct cluster_shard *shard, bool undo);

/* ---- between the files of this part ---- */

/* What a node may change about itself from one start to the next: addresses, shards, rack. */
void cluster_describe(const struct cluster_options *options, struct topology_member *out);
/* The oldest epoch that any shard of this node works with. */
u64 cluster_own_epoch(const struct cluster *cluster);
/* The lowest version that any shard of this node may yet send to anybody; 0: not known. */
u64 cluster_own_oldest(const struct cluster *cluster);
/* The same of all members, who all work with this stage; 0: not known, or not so. */
u64 cluster_oldest(const struct cluster *cluster, u64 stage_epoch);
/* Every CLUSTER_PING_MS on shard 0. */
void cluster_pings_send(struct cluster_shard *shard);
void cluster_pings_open(struct cluster_shard *shard);
void cluster_pings_close(struct cluster_shard *shard);
/* For the members of the topology. */
void cluster_pings_follow(struct cluster_shard *shard);
bool cluster_is_alive(void *arg, u32 member); /* arg: shard 0 */
u64 cluster_epoch_of(void *arg, u32 member);
/* Whether it keeps hints for others, of writes that it may have acknowledged as a stand-in: when it
 * answered last. Right where cluster_epoch_of says that nothing of before is under way there, since
 * nobody has a member that leaves stand in. */
bool cluster_keeps(void *arg, u32 member);
bool cluster_is_stuck(void *arg, u32 member);
/* Whether it has shown that it knows TOPOLOGY_PLAN. */
bool cluster_knows_plan(void *arg, u32 member);

MAY_YIELD void cluster_steward(void *arg); /* struct cluster_shard *: of shard 0 */

void cluster_streams_open(struct cluster_shard *shard);
/* Nobody waits for the next page any more: with refusing set. */
void cluster_streams_close(struct cluster_shard *shard);
/* A page of a store, as PEER_STREAM answers it: appended to out. What is in it is durable. */
struct cluster_page {
    u64 token, token_last;
    u32 bytes_max;
    u16 keyspace;
    bool keys_only;
    bool passes; /* over damage, and says so */
    u8 patience; /* for the next page the scan is kept 100 ms << patience */
    struct bytes behind;
};
MAY_YIELD MUST_CHECK status cluster_page_read(struct cluster_shard *shard,
                                              const struct cluster_page *page, struct buf *out);
/* One entry behind those of a page. false: no memory. */
MUST_CHECK bool cluster_page_add(struct buf *out, bool deleted, struct bytes key,
                                 const struct lsm_value *value);
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
/* From *at, which moves. keys_only: as it was asked for; else each value is there. ST_END; ST_CORRUPT. */
MUST_CHECK status cluster_page_next(struct bytes page, bool keys_only, size_t *at,
                                    struct cluster_page_entry *out);
/* What is not fetched, of all shards together. */
#define CLUSTER_FETCH_WAITS 8u
struct cluster_fetch_left {
    /* By keyspace: partitions that no member has any more. */
    u32 lost[LIMIT_KEYSPACES_CLIENT];
    /* And those that too few have without this one, which does not answer. */
    struct cluster_fetch_wait {
        u32 keyspace, member, partitions;
    } waits[CLUSTER_FETCH_WAITS]; /* the first ones */
    u32 wait_count;
};
/* Everything that this shard gains by the present plan. ST_OK: it is here, and durable; what nobody
 * has any more is added to left->lost. ST_UNAVAILABLE: so is what the others have; left->waits. */
MAY_YIELD MUST_CHECK status cluster_fetch(struct cluster_shard *shard,
                                          struct cluster_fetch_left *left);
/* What fetch_done of the node is when all its shards have done so. */
MAY_YIELD u64 cluster_fetch_size(struct cluster_shard *shard);
void cluster_fetched_free(struct cluster_shard *shard);

#endif
