/* SPDX-License-Identifier: MIT
 *
 * run.h -- what the parts of distkv-sim share: one run is one seed, and there is one at a time.
 *
 *   main.c      arguments, many seeds, what a failure prints
 *   knobs.c     what a run is like: drawn from the seed, printed
 *   history.c   phases: processes of the server begin and end, faults come and go
 *   universe.c  keys, and who may do what to them
 *   workload.c  what a client does next
 *   client.c    a client's life: connections, pipelines, answers; client_resp.c, client_native.c:
 *               the bytes; client_hostile.c: somebody who means no good
 *   clock.c     what the server's wall clock has shown
 *   damage.c    what damage may cost, in beyond
 *   prefix*.c   what a crash took is the end of a log
 *   check.c     from answers to the model (model.h, presence.h) and to the rules
 *   cluster_*.c histories of several nodes: cluster.h
 *   report.c    violations, crashes, hangs;  shrink.c: less of the same failure
 */
#ifndef DISTKV_TESTS_SIM_RUN_RUN_H
#define DISTKV_TESTS_SIM_RUN_RUN_H

#include <stdio.h>

#include "base/prng.h"
#include "io/fiber.h"
#include "io/sim.h"
#include "model.h"
#include "presence.h"
#include "server/server.h"

enum run_mode { RUN_LITE, RUN_SWARM, RUN_LIVENESS, RUN_BEYOND, RUN_CLUSTER, RUN_CLUSTER_SWARM };
#define RUN_MODES 6u
extern const char *const run_mode_names[];
static inline bool
run_of_cluster(enum run_mode mode)
{
    return mode == RUN_CLUSTER || mode == RUN_CLUSTER_SWARM;
}

/* Mistakes that a server could make, made between it and the checks: they must be noticed. */
enum run_flaw {
    RUN_FLAW_NONE,
    RUN_FLAW_LOST_WRITE,   /* answered, and not there: never sent, that is */
    RUN_FLAW_STALE_READ,   /* nothing, where something is */
    RUN_FLAW_HALF_BATCH,   /* the last write of a batch is not done */
    RUN_FLAW_TWO_REPLIES,  /* an answer comes twice */
    RUN_FLAW_DEEP_STACK,   /* a fiber uses more stack than it has */
    RUN_FLAW_FAILED_CHECK, /* of two: an earlier one when there are no power cuts */
    RUN_FLAW_ADDRESS,      /* what clients do depends on where the stack lies */
    RUN_FLAW_EARLY_CHECK,  /* a check fails before there is anything to report of */
    RUN_FLAW_COUNT,
};
extern const char *const run_flaw_names[];

#define RUN_SKIPS_MAX 4096u

struct run_options {
    u64 seed;
    enum run_mode mode;
    u64 ops; /* 0: drawn */
    u64 off; /* bit per enum sim_fault */
    struct sim_fault_id skips[RUN_SKIPS_MAX];
    u32 skip_count;
    u64 faults_max; /* 0: as many as come */
    enum run_flaw flaw;
    bool trace, log;
};

/* ---- knobs.c ---- */

struct knobs {
    /* the node */
    u32 shards;
    u64 memory_per_shard;
    u32 durability; /* enum lsm_durability */
    u32 sync_interval_ms;
    u32 codec, codec_last;
    u32 blob_threshold;
    u64 scrub_rate;
    u64 output_limit;
    bool operates; /* flushes and compacts now and then */
    /* the history */
    u32 phases;
    u64 ops; /* in all */
    u64 phase_ns_max;
    u32 power_part, kill_part; /* of 100 ends; the rest in order */
    u32 resize_part;           /* of 100 starts: another number of shards */
    u32 recovery_crash_part;   /* of 100 starts: crash while recovering */
    bool clock_steps, clock_drifts, space_shrinks;
    /* the clients */
    u32 resp_clients, native_clients, hostile_clients, machines;
    u32 depth_max;
    u32 keyspaces;
    u32 singles, groups; /* objects of one key, of several */
    u32 open_max;        /* operations under way on one object */
    u32 hot_part;        /* of 100 requests: to a few objects */
    u32 big_part;        /* of 1000 values: up to 1 MiB */
    u32 weights[32];     /* enum action of workload.c */
    bool slow_readers;
    u32 cut_part;    /* of 100 connections: end in the middle */
    u32 patience_ms; /* of native clients, for an answer; 0: as long as others */
    u32 ttl_ms_max;  /* 0: some values of some objects expire, as is drawn; else most, so soon */
};

void knobs_draw(struct knobs *knobs, struct sim_options *sim, const struct run_options *options);
void knobs_print(const struct knobs *knobs, const struct sim_options *sim);

/* ---- universe.c ---- */

enum object_type { OBJECT_REGISTER, OBJECT_COUNTER, OBJECT_TEXT };

#define KEY_BYTES_MAX 300u

struct key {
    u8 name[KEY_BYTES_MAX];
    u32 size;
    u32 object;
    u32 index; /* in its object */
    u64 token;
    struct presence presence;
    u64 changed; /* position: when the last operation that may have changed it ended */
    /* Position: when the last one began of which it is known that it has changed it. */
    u64 changed_surely;
};

struct object {
    struct model_object model;
    u16 keyspace;
    enum object_type type;
    bool expires; /* some of its values do */
    bool lost;    /* when the last process ended, acknowledged writes may have been */
    u32 key_first, key_count;
    u64 written;   /* values made for it */
    u32 under_way; /* operations, reads too */
};

void universe_make(void);
void universe_free(void);
struct bytes key_bytes(const struct key *key);
/* NULL: none of ours. */
struct key *key_find(u16 keyspace, struct bytes name);

/* ---- the run ---- */

struct run_stats {
    u64 requests, answers, refusals, unknown, connections, connects_failed, resends, replays;
    u64 starts, starts_failed, power_cuts, kills, stops, resizes, recoveries_cut;
    u64 scans, scanned_keys, snapshots, execs, execs_aborted, execs_stale, hostile, flushes,
        compactions;
    u64 virtual_ns, events;
    u64 refusals_unharmed; /* of what no damage is near */
    /* Of power_cuts and kills, at an event and not at a request to the disk; of recoveries_cut,
     * too, and those that followed another one. */
    u64 crashes_at_events, recoveries_cut_at_events, recoveries_cut_again;
    /* Logs that a crash may have shortened: of which a write of that process was left; of whose
     * keys an acknowledged one is gone. */
    u64 ends_survived, ends_lost;
    u64 starts_starved; /* an allocation was refused while they recovered */
    u64 damaged; /* 1: damage was on the disk when it was recovered from or read by the last reader
                  */
};

struct client;
struct cluster_run;

struct run {
    const struct run_options *options;
    struct knobs knobs;
    struct sim_options sim_options;
    struct sim *sim;
    struct sim_node *server_node;
    struct sim_node *machines[4];
    struct prng prng; /* the history's */

    struct values values;
    struct model *model;
    struct object *objects;
    struct key *keys;
    u32 object_count, key_count;
    u64 position; /* of events, for the model */

    /* the server's process */
    struct server_config config;
    struct server *server;
    u32 shards;
    u64 starts;       /* also the epoch's number */
    u64 epoch_ns;     /* when what is judged next began */
    bool serving;     /* ready, and what came before is judged: clients may connect */
    bool faulty;      /* refusals are to be expected */
    bool beyond;      /* damage is */
    i32 drift_ppm;    /* of the machine's clock */
    bool calm;        /* faults have ended: everything must be answered */
    u64 calm_ns;      /* since then */
    bool healthy;     /* and what they left is over: nothing should be refused */
    bool audits;      /* the auditor reads every key */
    bool *audit_seen; /* by key */
    u32 audited;      /* how many */
    bool stop;        /* clients go home */
    u64 ops_goal;     /* requests until the phase ends */

    struct client **clients;
    u32 client_count, clients_running;

    /* the first violation; rule NULL: none */
    const char *rule;
    char violation[768];
    const struct model_op *failed_op;
    u32 failed_object; /* + 1 */

    struct run_stats stats;
    struct cluster_run *cluster; /* of several nodes: cluster.h; NULL: of one */
};

extern struct run *run; /* the one that runs; NULL between runs */

/* ---- history.c ---- */

/* Everything of one seed. Afterwards run->rule tells. *hash_out: the trace's. */
void history_run(const struct run_options *options, u64 *hash_out);
/* After the report. */
void history_free(void);
/* Bytes that the process has and the budgets of its shards do not count: for rule `memory`. */
i64 memory_uncounted(const struct sim_node *node);

/* ---- report.c ---- */

void violated(const char *rule, const char *format, ...) PRINTF_LIKE(2, 3);
static inline bool
run_over(void)
{
    return run->rule != NULL;
}
void report_print(void);
void report_signals_set(void);
/* Called in the handler of a signal that ends the program; 0: by the watchdog. */
void report_crash_set(void (*tell)(i32 signal));
/* seconds: of a processor; 0: the run is over. */
void report_watchdog_start(u32 seconds);
void report_program_set(const char *name);
void report_replay_command(const struct run_options *options, FILE *out);

/* ---- shrink.c ---- */

int shrink_main(struct run_options *options);

#endif
