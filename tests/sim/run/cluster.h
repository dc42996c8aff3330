/* SPDX-License-Identifier: MIT
 *
 * cluster.h -- histories of whole clusters: what their parts share. See cluster_history.c.
 *
 *   cluster_history.c   phases: found, fill, trouble, heal, work, converge, stop, judge
 *   cluster_knobs.c     what a run is like
 *   cluster_nodes.c     machines and their processes: start, stop, crash, loss, members
 *   cluster_trouble.c   what goes wrong, and when; the fault budget
 *   cluster_client.c    clients: connections, RESP and native frames, what was asked and answered
 *   cluster_work.c      keys, and what clients do with them
 *   cluster_siblings.c  the same of keys that keep siblings
 *   cluster_inspect.c   what the stores of all nodes hold, past all protocols; convergence
 *   register.c          the judge of a key; causal.c: of one that keeps siblings
 *
 * Position 0 of everything that names a node is the founder; numbers of members are group0's.
 */
#ifndef DISTKV_TESTS_SIM_RUN_CLUSTER_H
#define DISTKV_TESTS_SIM_RUN_CLUSTER_H

#include "calm.h"
#include "causal.h"
#include "cluster/cluster.h"
#include "cluster/dvvset.h"
#include "io/net.h"
#include "lsm/table.h"
#include "proto/native.h"
#include "register.h"
#include "rot.h"
#include "run.h"

#define CLUSTER_NODES_MAX   16u /* machines, with those that come later */
#define CLUSTER_CLIENTS_MAX 10u
#define CLUSTER_PARTS_MAX   8u /* keys of one request */
#define CLUSTER_PORT        7000u

/* ---- what a run is like: cluster_knobs.c ---- */

enum cluster_trouble {
    TROUBLE_POWER,    /* a node's power fails; it comes back */
    TROUBLE_KILL,     /* its process ends */
    TROUBLE_RESTART,  /* in order, perhaps with another number of shards */
    TROUBLE_BLACKOUT, /* all lose their power */
    TROUBLE_WIPE,     /* it comes back with an empty disk, under its old name */
    TROUBLE_LOSE,     /* it does not come back; another one does later */
    TROUBLE_JOIN,     /* one more */
    TROUBLE_LEAVE,    /* one gives its data away and goes */
    TROUBLE_ISOLATE,  /* one is cut off from all others */
    TROUBLE_HALVES,   /* two groups do not see each other */
    TROUBLE_BRIDGE,   /* ... but both see one node */
    TROUBLE_ONE_WAY,  /* one hears the others, and they do not hear it; or the reverse */
    TROUBLE_PAIR,     /* two do not see each other */
    TROUBLE_SLOW,     /* a link is slow */
    TROUBLE_PAUSE,    /* a process stands still */
    TROUBLE_SKEW,     /* a clock is wrong by less than is allowed */
    TROUBLE_STEP,     /* ... by more */
    TROUBLE_ROT,      /* a block of a table rots, and is to come back from the others */
    TROUBLE_COUNT,
};
extern const char *const cluster_trouble_names[];

/* How much longer the trouble lasts for each of --ops. */
#define CLUSTER_NS_PER_OP (10 * NS_PER_MS)

struct cluster_knobs {
    bool lite;
    u32 nodes, shards_max;
    u32 replicas, write_quorum, read_quorum;
    u64 timeout_ms;
    u64 memory_per_shard;
    u32 clients;
    u32 registers, groups, fixed, counters;
    u32 hot_part;   /* of 100: to the first few keys */
    u64 pause_ns;   /* between a client's requests, at most */
    u64 trouble_ns; /* how long it lasts */
    u64 between_ns; /* two troubles, about */
    u64 lasts_ns;   /* one of them, at most */
    u32 weights[TROUBLE_COUNT];
    u32 value_bytes_max;
    u32 expire_part, delete_part, read_part, batch_part, loose_part; /* of 100 */
    bool racks;
    bool sloppy;   /* the keyspace is: what reads promise then is less */
    bool shrinks;  /* three members become two, and another one comes; one may be lost meanwhile */
    bool operates; /* stores are flushed and merged now and then */
    /* Of 100 power cuts and kills: at an event of the node; of 100 starts: cut at one. */
    u32 event_part, recovery_cut_part;
    u64 after; /* requests after the heal */
    /* Keys of a keyspace that keeps siblings; 0: there is none. */
    u32 sibling_keys, sibling_clients;
    bool sibling_fewer;                     /* it has two replicas: the first of each row */
    u32 blind_part, stale_part, plain_part; /* of 100 writes there: without a context, with that of
                                               an earlier read, by a plain command */
    bool looks;   /* trees and contents are looked at during the trouble, too */
    bool repairs; /* replicas converge by comparing their trees, and not by reads */
};

void cluster_knobs_draw(struct cluster_knobs *knobs, struct sim_options *sim,
                        const struct run_options *options);
void cluster_knobs_print(const struct cluster_knobs *knobs);

/* ---- nodes: cluster_nodes.c ---- */

struct cluster_node {
    u32 index;
    enum cluster_state state;
    bool leaving; /* it was asked to; stopped when it is no member any more */
    bool stopping;
    bool may_fail; /* when it stops: its disk has failed, or may have */
    u32 disks;     /* how many it has had: each has a directory of its own */
    u64 starts;
    u64 back_ns; /* DOWN: when it is to be started */
    char host[16], id[16];
    struct sim_node *machine;
    struct server_config *config;
    struct server *server;          /* NULL: no process */
    u64 topologies_bytes;           /* of its process, at the last look: cluster_nodes.c */
    i64 skew_ms;                    /* what its clock was set wrong by */
    bool look_wanted[LIMIT_SHARDS]; /* cluster_inspect.c */
    bool repair_wanted;
    u32 rot_wanted; /* of a shard, + 1 */
    bool scrub_wanted[LIMIT_SHARDS];
};

/* ---- keys: cluster_work.c ---- */

enum cluster_key_kind {
    KEY_REGISTER, /* the default levels; judged as a register */
    KEY_GROUP,    /* written by atomic batches only; judged as a register, too */
    KEY_FIXED,    /* written once, in the beginning; always there */
    KEY_COUNTER,  /* INCR */
    KEY_LOOSE,    /* levels ONE, QUORUM and ALL mixed: only what was ever written is told */
    KEY_SIBLINGS, /* of CLUSTER_SIBLINGS: judged by causal.h */
};

#define CLUSTER_SIBLINGS 1u /* the number of the keyspace that keeps siblings */

struct cluster_key {
    enum cluster_key_kind kind;
    u32 index, group;
    char name[32];
    u32 size;
    u64 token;
    struct register_history history; /* of a loose one: its writes, and what ONE has told */
    struct causal_history siblings;
    u64 increments_done, increments_begun;
    bool filled;   /* FIXED: it is known to be there */
    u32 under_way; /* requests that may change it */
};

/* What a store holds of a key. */
struct cluster_copy {
    bool there, deleted;
    u64 version, expire_ms, hash;
    bool tree_told; /* that of its partition */
    bool tree;      /* ... and nothing was written meanwhile */
    u32 tree_bound;
    u64 tree_root;
};

/* ---- clients: cluster_client.c ---- */

enum cluster_request_kind {
    CLUSTER_GET,
    CLUSTER_MGET,
    CLUSTER_PUT,
    CLUSTER_MSET,
    CLUSTER_DELETE,
    CLUSTER_BATCH, /* by RESP: MULTI and EXEC */
    CLUSTER_INCREMENT,
    CLUSTER_SCAN, /* one page */
    CLUSTER_REMOVE,
    CLUSTER_KEYSPACE, /* native: makes the one that keeps siblings */
    CLUSTER_SIBLINGS_GET,
    CLUSTER_SIBLINGS_PUT,
    CLUSTER_SIBLINGS_DELETE,
};

/* What a read has told of a key that keeps siblings. */
struct cluster_seen {
    u32 count;
    u64 numbers[LIMIT_DVV_SIBLINGS];
    u32 context_size;
    u8 context[2 * NATIVE_CONTEXT_BYTES_MAX]; /* as the client's protocol has it */
};

struct cluster_part {
    struct cluster_key *key;
    u32 op;     /* of the key's history */
    u64 number; /* of the value that is put */
    u32 size;
    bool deletes; /* of a batch: this one is a delete */
    bool told;    /* of reads: there was an answer for it */
    u64 found;    /* 0: nothing */
};

struct cluster_request {
    enum cluster_request_kind kind;
    u32 count;
    struct cluster_part parts[CLUSTER_PARTS_MAX];
    u64 expire_ms;                              /* 0: never */
    u32 level;                                  /* enum replicate_level */
    bool watches, aborted;                      /* BATCH by RESP: WATCH first; EXEC said nil */
    i64 integer;                                /* what INCR and DEL have answered */
    u64 cursor;                                 /* SCAN: of this page, then of the next one */
    bool (*found)(void *arg, struct bytes key); /* SCAN */
    void *arg;
    struct cluster_seen *seen; /* SIBLINGS: what is told; of a write: what its writer saw */
    char text[64];             /* REMOVE: the arguments */
    char error[96];
};

struct cluster_client {
    u32 id;
    bool native;
    struct prng prng;
    struct fiber_queue queue;
    struct io_conn *conn;
    struct buf in;
    u32 node;
    u32 level;
    u32 keyspace, selected; /* for its requests; by RESP, of this connection */
    u64 connected_ns;
    bool closing; /* the last native answer was CLOSING: what is asked is to go over another one */
    u64 request_id;
    u64 version; /* that the last native answer told */
};

/* Waits until there is one; false: nobody takes it now. */
MAY_YIELD bool cluster_connect(struct cluster_client *client, u32 node);
MAY_YIELD void cluster_disconnect(struct cluster_client *client);
/* Asks, and waits for the answer. */
MAY_YIELD enum cluster_answer cluster_ask(struct cluster_client *client,
                                          struct cluster_request *request);
void cluster_client_init(struct cluster_client *client, u32 id, bool native);

/* ---- the run ---- */

struct cluster_run {
    struct cluster_knobs knobs;
    struct cluster_node nodes[CLUSTER_NODES_MAX];
    u32 node_count; /* that were ever used */
    struct sim_node *clients_machine;
    struct cluster_key *keys;
    u32 key_count;
    u64 numbers; /* of values */
    u32 clients_running;
    u32 counting;       /* count_together */
    bool sloppy_wanted; /* the keyspace is to be made so */
    bool founded;       /* there is a cluster; who starts without data joins it */
    bool works;         /* clients go on */
    bool calm;          /* nothing goes wrong any more */
    bool troubles;      /* now */
    bool skewed;        /* clocks were apart by more than is allowed */
    u64 calm_ns;        /* since then */
    u64 settled_ns;
    u64 tend_ns;  /* when nodes and troubles are looked at again */
    u64 answered; /* requests that were done since then */
    u64 refused_calm;
    i64 skew_least_ms, skew_most_ms; /* that any clock was ever set wrong by */

    /* the fault budget */
    u32 lost; /* + 1: whose loss the cluster has not got over yet; 0: none */
    u32 losses;
    u32 shrink_losses; /* of them, while three became two */
    /* Who is to crash at an event of its own, + 1; 0: nobody. */
    u32 cut;
    bool cut_power;
    u64 cut_ns;    /* how long it is away then */
    bool cut_last; /* the last that was cut had not come up: it may well be cut again */
    /* who asks for DISTKV.REMOVE */
    char remove_text[64];
    u32 remove_at;
    bool remove_wanted;
    enum cluster_answer remove_answer;

    /* checks at the end */
    bool audit_wanted, audit_ended;
    u64 audited_from; /* the position where the last audit began */
    u64 happened[TROUBLE_COUNT];
    struct rot rot;          /* of no file when none has rotted, or it was found to be gone */
    u32 rot_node, rot_disks; /* index; which of the disks that it has had */
    u64 scrub_ns;            /* when it is looked for next */
    u64 look_ns;             /* stores are looked at again */
    u64 trees_compared, trees_equal;
    u64 judged, gave_up; /* keys */
    u32 failed_key;      /* + 1 */
    u32 failed_op;
};

static inline u64
cluster_now_ns(void)
{
    return sim_now_ns(run->sim);
}

/* cluster_nodes.c */
void cluster_nodes_init(void);
void cluster_node_start(struct cluster_node *node);
/* The power fails, or the process ends. */
void cluster_node_crash(struct cluster_node *node, bool power);
/* The same at its n-th event from now, unless it ends before; it is away for so long. One at a
 * time: false, another one is to. */
bool cluster_node_crash_at(struct cluster_node *node, bool power, u64 n, u64 away_ns);
/* After each event: whether that was the one. */
void cluster_nodes_cut_look(void);
/* Nobody is to, any more. */
void cluster_nodes_cut_end(void);
void cluster_node_stop(struct cluster_node *node);
/* After each event or so: whoever has ended is noticed, whoever is due is started. */
void cluster_nodes_tend(void);
/* A fresh machine, not started; NULL: there are no more. */
struct cluster_node *cluster_node_new(void);
bool cluster_node_ready(const struct cluster_node *node);
/* Of shard 0 of a node that is ready; NULL. */
const struct topology *cluster_topology_of(const struct cluster_node *node);
/* The newest that any running node knows; NULL: none. */
const struct topology *cluster_topology_newest(void);
/* Nobody moves, everybody knows, group0 has its voters: what was lost is made good. */
bool cluster_is_settled(void);
const char *cluster_why_unsettled(void);
struct cluster_node *cluster_node_of(const struct topology *topology, u32 member);
u32 cluster_running(void);
/* Of whoever leads; NULL: nobody does. */
const struct group0 *cluster_group_leader(void);
void cluster_nodes_free(void);

/* cluster_trouble.c */
/* Whether what has rotted lies on a member's disk yet. */
bool cluster_rot_is_there(void);
/* Between two requests of a client, besides: so that runs that only wait for that are no longer. */
u64 cluster_rot_pause_ns(void);
void cluster_trouble_init(void);
void cluster_trouble_begin(void);
void cluster_trouble_step(void); /* now and then */
void cluster_trouble_end(void);
/* Why they are not settled, as members_unsettled says. */
const char *cluster_members_unsettled(bool plan);

/* cluster_work.c */
void cluster_keys_make(void);
void cluster_keys_free(void);
bool cluster_node_draw(struct prng *prng, u32 *out);
/* Takes note of an answer, whatever it is of. */
MAY_YIELD void cluster_answered(struct cluster_client *client,
                                const struct cluster_request *request, u64 begun_ns,
                                enum cluster_answer answer);
MAY_YIELD status cluster_clients_main(void *arg); /* shard_main of the clients' machine */
void cluster_judge(void);
void cluster_key_print(u32 key, u32 op);

/* cluster_siblings.c */
/* Of the auditor: makes the keyspace; reads every key there. */
MAY_YIELD void cluster_siblings_make(void);
MAY_YIELD void cluster_siblings_audit(void);
MAY_YIELD void cluster_siblings_main(void *arg); /* a client */
void cluster_siblings_judge(void);
void cluster_siblings_print(const struct cluster_key *key, u32 failed);

/* cluster_inspect.c */
void cluster_inspect_init(void);
/* What replicas hold is compared; equal: true, or *key_out says which is not. Outside of all nodes;
 * turns the world. */
bool cluster_stores_equal(char *why, size_t size);
MAY_YIELD void cluster_inspect_main(void *arg); /* on each shard of each node */
/* Now and then, in the trouble. */
void cluster_inspect_step(void);
/* Has the keyspace made sloppy, and waits until all know. */
void cluster_make_sloppy(void);
/* Nothing waits for anybody any more. */
bool cluster_hints_drained(void);
/* Every node is asked to compare its trees; then whether all have. */
void cluster_repairs_begin(void);
bool cluster_repairs_done(void);

/* cluster_history.c */
bool cluster_step(void);
bool cluster_run_until(bool (*condition)(void), u64 ns);
void cluster_history_run(void);
void cluster_history_free(void);
void cluster_report(void);

#endif
