/* SPDX-License-Identifier: MIT
 *
 * replica_world.h -- a cluster on top of peer_rig.h whose nodes have on each shard what replicated
 * keys need (a store, hints, a replicator), and what is done with it: writes, looks into a node's
 * own store, crashes, and what seeds draw. A program has one: `world`.
 *
 *     world_open(seed, 5, 5, 1);            then what is to be otherwise is set in `world`
 *     peer_rig_open(&world.rig);
 *     struct world_op write = {.node = 0, .key = 3, .id = 7};
 *     assert_true(ok(world_write(&write)));
 *     world_crash(2);                       and everybody knows
 *     assert_int_equal(world_look_at(1, 3).version, write.version);
 *     world_close();
 */
#ifndef DISTKV_TESTS_REPLICA_WORLD_H
#define DISTKV_TESTS_REPLICA_WORLD_H

#include <stdio.h>

#include "base/prng.h"
#include "cluster/replicate_internal.h"
#include "replica_rig.h"

#define MS(n)      ((u64)(n)*NS_PER_MS)
#define SECONDS(n) ((u64)(n)*NS_PER_S)

#define WORLD_PARTITIONS 16u
#define WORLD_REPLICAS   3u
#define WORLD_KEYS_MAX   256u
#define WORLD_OPS_MAX    400u
/* Longer than a write's calls go on. */
#define UNKNOWN_NS (WRITE_CALL_NS_MIN + MS(300))

/* A write. */
struct world_op {
    u32 node, key;
    u64 id; /* 0: a deletion */
    u64 begun_ns, deadline_ns;
    u16 keyspace;
    enum replicate_level level;
    bool ended;
    bool excused; /* its coordinator crashed while nobody else may have known who misses it */
    status st;
    u64 version; /* when it was acknowledged */
};

struct world {
    /* the test's, until the rig is opened */
    struct peer_rig rig;
    u64 memtable_bytes, window_ms, replay_bytes_per_s;
    u64 disk_bytes_max[PEER_RIG_NODES_MAX];   /* of hints */
    u64 hint_memory_bytes;                    /* of a shard; 0: no less than all has */
    void (*ends)(const struct replica_app *); /* NULL, or is told of each that ends in order */

    struct prng prng;
    u64 seed;
    struct budget budget; /* of topologies */
    struct topology *topology;
    struct topology *old[8]; /* that crashed nodes may hold yet */
    u32 old_count;
    bool down[PEER_RIG_NODES_MAX]; /* as far as anybody knows */
    bool optimist;                 /* everybody is believed to live */
    struct replica_app apps[PEER_RIG_NODES_MAX][PEER_RIG_SHARDS_MAX];
    struct budget hint_budgets[PEER_RIG_NODES_MAX][PEER_RIG_SHARDS_MAX];

    /* of a seed */
    struct world_op ops[WORLD_OPS_MAX];
    struct peer_rig_job jobs[WORLD_OPS_MAX];
    u32 op_count;
    u64 restart_ns[PEER_RIG_NODES_MAX], know_ns[PEER_RIG_NODES_MAX];
    char violation[512]; /* the first one */
};

extern struct world world;

#define VIOLATED(...)                                                                              \
    do {                                                                                           \
        if (world.violation[0] == '\0')                                                            \
            snprintf(world.violation, sizeof(world.violation), __VA_ARGS__);                       \
    } while (0)

/* Nothing runs yet. The first `members` of the nodes are members; the others are there, and known
 * to nobody. */
void world_open(u64 seed, u32 nodes, u32 members, u32 shard_count);
void world_close(void);
struct replica_app *world_app(const struct peer_rig_node *node); /* of this shard */

/* The present one may be held by nodes that crash: it stays until the world is closed. */
void world_topology_keep(void);
/* The next one; the one before stays for whoever holds it. */
void world_apply(struct topology_command command);
/* All that run learn of it. */
void world_topology_tell(void);

bool world_runs(u32 node);
/* It loses its power, and everybody knows. */
void world_crash(u32 node);
void world_start(u32 node);

struct bytes world_key(u32 key);
u32 world_shard_of(u32 key);
void world_row(u32 key, struct topology_row *out);

/* The values of ids differ in their sizes. */
status world_write(struct world_op *op);

/* What a node's own store has; nobody is asked, and nothing is mended. */
struct world_look {
    u32 key;
    u64 version, id;
};
struct world_look world_look_at(u32 node, u32 key);

/* Of one that runs, all shards. */
struct hints_stats world_hints_of(u32 node);
/* Of all that run. */
struct hints_stats world_hints(void);
/* All hints are known, and none waits. */
bool world_delivered(void *arg);

/* The least of what `oldest` says of the node's shards; 0: it does not run. Then: of all nodes. */
u64 world_oldest_of(u32 node, u64 (*oldest)(struct replicator *replicator));
u64 world_oldest(u64 (*oldest)(struct replicator *replicator));
/* A node is rid of the tombstones below that version. */
void world_collect(u32 node, u64 below);

/* ---- seeds ---- */

/* What machines and links are like. */
void world_draw(void);
/* Begins one, without waiting for its end. Within a second at most it has one. */
void world_op_begin(u32 node, u32 key, u64 id);
struct world_crash_times {
    u32 away_ms_min, away_ms_max, known_ms_max;
};
/* Power or process; nobody knows at once. */
void world_crash_begin(u32 node, struct world_crash_times times);
/* Whose time has come is started, or known to be down. How many are away. */
u32 world_nodes_turn(void);
/* All run and reach each other, and hints are given the time that they need. */
void world_heal(void);
/* The newest write of the key that was acknowledged; NULL: none. */
const struct world_op *world_acknowledged(u32 key);
/* Closes the world; false: a rule was violated, and it is said which. */
bool world_judge(void);

/* For SIGABRT: of which seed it is. */
void world_on_abort(int number);

#endif
