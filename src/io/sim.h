/* SPDX-License-Identifier: MIT
 *
 * sim.h -- control of the simulated link: for tests and for the simulator, never for the code that
 * is under test.
 *
 * A *sim* is a world: virtual time, machines (sim_node) with a disk each, and the network between
 * them, all in the calling thread. What runs on a machine is the production code above src/io; the
 * objects sim_*.c stand where ring_*.c stand in the server. Everything random comes from one seed,
 * in separate streams (scheduling, disk, network, faults, BUGGIFY, what the code asks for), so the
 * same seed and the same binary give the same run, event for event: sim_trace_hash tells.
 *
 * The short form, for a test that only needs a shard to run on:
 *
 *     static status body(void *arg) { ... }              runs as shard_main, on a fiber
 *     assert(ok(sim_run_main(seed, 1, body, NULL)));     an empty disk, no faults
 *
 * The form for power cuts, where the disk outlives the run:
 *
 *     for (u64 n = 0;; n++) {
 *         struct sim *sim = sim_new(&options);
 *         sim_crash_at(sim, SIM_POINT_IO, n);             the n-th from now, counted from 0
 *         status st = sim_run(sim, 1, writer, &model);    ST_CANCELED when the power failed
 *         bool cut = sim_crashed(sim);
 *         status st2 = sim_run(sim, 1, reader, &model);   recovers from what the disk still has
 *         sim_free(sim);
 *         if (!cut) break;                                n is larger than what the run needs
 *     }
 *
 * Only one sim may run at a time (sim_new to sim_free); tests make one after the other.
 */
#ifndef DISTKV_IO_SIM_H
#define DISTKV_IO_SIM_H

#include "base/prng.h"
#include "base/status.h"
#include "io/io.h"

struct sim;
struct sim_node;
struct sim_disk;
struct io_conn;

/* What goes wrong, by family: each can be switched off, each single fault can be left out. */
enum sim_fault {
    /* disk: what an honest disk does; the code must lose nothing */
    SIM_FAULT_READ_ERROR,  /* one read fails */
    SIM_FAULT_WRITE_ERROR, /* one write fails; some of its sectors may have been written */
    SIM_FAULT_SYNC_ERROR,  /* what it covered reads clean and never reaches the platter */
    SIM_FAULT_NO_SPACE,    /* the capacity shrinks to what is used, for a while */
    SIM_FAULT_DISK_STALL,  /* one request takes 1 to 30 s */
    SIM_FAULT_TORN,        /* sectors that were under way at a power cut are garbage */
    /* disk: damage beyond the promise; it must be detected and refused, never served */
    SIM_FAULT_BIT_ROT,     /* a stored bit flips */
    SIM_FAULT_LATENT,      /* a sector cannot be read until it is rewritten */
    SIM_FAULT_MISDIRECTED, /* a write lands elsewhere in the file, or in another file */
    SIM_FAULT_LOST_WRITE,  /* a write says ok, a sync after it too, and never happened */
    /* process */
    SIM_FAULT_POWER_CUT,   /* what was not durable may be gone */
    SIM_FAULT_KILL,        /* the process ends; what was written stays */
    SIM_FAULT_ALLOC,       /* an allocation is refused */
    SIM_FAULT_SHARD_STALL, /* a shard learns of nothing for 1 ms to 30 s */
    SIM_FAULT_CLOCK_STEP,  /* the wall clock jumps, either way */
    SIM_FAULT_CLOCK_DRIFT, /* and runs fast or slow */
    /* network */
    SIM_FAULT_NET_REFUSE,    /* a connect */
    SIM_FAULT_NET_RESET,     /* both ends learn of it */
    SIM_FAULT_NET_HALF_OPEN, /* one end does, the other hears nothing more */
    SIM_FAULT_NET_STALL,     /* a direction carries nothing for a while, then everything */
    /* disk again; what stands before it keeps its number, which seeds its chances */
    SIM_FAULT_LOOK_ERROR, /* a listing ends early, or a size or the free space is not told */
    /* several machines: the test does these itself (sim_fault_inject) */
    SIM_FAULT_LINK_CUT,     /* some cannot reach some others, in both directions or in one */
    SIM_FAULT_LINK_SLOW,    /* what goes between two takes longer */
    SIM_FAULT_MACHINE_LOST, /* with all that its disk had */
    SIM_FAULT_MEMBERS,      /* a machine comes or goes that nobody has lost */
    /* disk again */
    SIM_FAULT_NAME_ERROR, /* one request of SIM_POINT_NAME fails: not done, or done all the same */
    SIM_FAULT_SHORT,      /* a read or a write moves a part of its bytes only, without an error */
    SIM_FAULT_LATE_WRITE, /* one that is under way when its process is killed lands later */
    SIM_FAULT_COUNT,
};

/* One fault that happened: the number counts within its family from 0, so that leaving one out or
 * switching a family off renames no fault of another family. */
struct sim_fault_id {
    enum sim_fault family;
    u32 number;
};

struct sim_disk_options {
    u64 capacity_bytes;
    u64 latency_ns_min, latency_ns_max; /* of one request */
    u32 stall_ppm;                      /* requests that take longer, by 1 s ... */
    u64 stall_ns;                       /* ... up to this; by just this when it is less */
    u32 torn_ppm;                       /* of the unsynced sectors at a crash: garbage */
    u32 read_error_ppm, write_error_ppm, sync_error_ppm;
    u32 look_error_ppm; /* listings, sizes of files, free space */
    u32 name_error_ppm; /* opening, making, renaming, linking, removing, changing a size */
    u32 short_ppm;      /* reads and writes of more than one block that stop short */
    u32 evict_chance;   /* of 64: that a read, or the next process, finds a page gone that a failed
                           sync lost */
    u32 no_space_ppm; /* writes and allocations before which the capacity shrinks to what is used */
    u64 no_space_ns_max; /* ... for 1 ms up to this */
    u32 late_ppm;    /* of the writes under way when a process is killed (crash_keeps_all): the disk
                        goes on, and they land ... */
    u64 late_ns_max; /* ... up to this later, unless the power fails before */
    /* Beyond the promise, in millionths of the requests. */
    u32 bit_rot_ppm; /* of the reads: a bit of what it covers flips for good before it */
    u32 latent_ppm;  /* of the reads: a sector of what it covers is unreadable until rewritten */
    u32 misdirected_ppm, lost_write_ppm; /* of the writes */
    bool crash_keeps_all;                /* a crash of the process, not of the power */
};

struct sim_net_options {
    u64 latency_ns_min, latency_ns_max; /* of a segment; order within a connection is kept */
    u32 pipe_bytes;                     /* capacity of one direction: back-pressure above */
    u32 split_ppm;                      /* deliveries cut at a random place, down to one byte */
    bool single_bytes;                  /* every delivery is one byte */
    u32 refuse_ppm;                     /* connects refused */
    u32 reset_ppm;                      /* segments that become a reset */
    u32 half_open_ppm;                  /* segments after which one end is gone unannounced */
    u32 stall_ppm;                      /* segments before which the direction stalls ... */
    u64 stall_ns_max;                   /* ... for 1 ms up to this */
};

struct sim_options {
    u64 seed;
    bool print_log; /* messages to stderr as they come */
    bool buggify;
    u64 memory_bytes;             /* of a node that sim_run starts; default 256 MiB */
    u64 turn_ns_min, turn_ns_max; /* virtual time that a turn of a shard takes */
    u32 turn_long_ppm;            /* turns that take 1 to 100 ms instead */
    u64 mail_ns_min, mail_ns_max; /* between shards */
    u32 mails_max;       /* under way from one shard to another; more wait, as behind a full
                          * ring */
    u64 time_ns_max;     /* sim_run gives up (a CHECK) after this much virtual time */
    u32 alloc_ppm;       /* allocations of nodes that are refused, once started up: see
                          * sim_node_started_set */
    u32 shard_stall_ppm; /* turns after which the shard stalls for up to ... */
    u64 shard_stall_ns_max;
    u64 faults_off; /* bit per enum sim_fault: never injected, whatever the chances say */
    const struct sim_fault_id *faults_skip; /* these are left out; sorted; the caller's, kept */
    u32 faults_skip_count;
    u64 faults_max; /* those behind the first so many are left out; 0: none is */
    struct sim_disk_options disk;
    struct sim_net_options net;
};

/* No faults; orders and delays are random all the same. */
void sim_options_default(struct sim_options *options, u64 seed);
/* Draws fault rates, delays and BUGGIFY from the seed: every run has a character. What is injected
 * may make operations fail, so the test must expect errors. Nothing that an honest disk does not
 * do.
 */
void sim_options_swarm(struct sim_options *options, u64 seed);
/* Part of it, for others: in a quarter of the runs ways between shards are narrow and long. */
void sim_options_full_ways(struct sim_options *options, u64 seed);
/* On top of either: draws damage beyond the promise, at least one family. The code under test may
 * refuse then, but never serve it. */
void sim_options_beyond(struct sim_options *options, u64 seed);

struct sim *sim_new(const struct sim_options *options);
/* Crashes what still runs; frees everything, disks too. */
void sim_free(struct sim *sim);

/* ---- the short forms ---- */

/* Runs fn as shard_main of every shard of one fresh node with an empty disk, and returns the
 * node's status. Stops the node when shard 0's fn has returned. */
status sim_run_main(u64 seed, u32 shard_count, status (*fn)(void *arg), void *arg);
/* The same on the machine "10.0.0.1" of sim, whose disk stays as it is between runs. ST_CANCELED
 * when the power failed (sim_crash_at). */
status sim_run(struct sim *sim, u32 shard_count, status (*fn)(void *arg), void *arg);

/* ---- faults at a chosen moment ---- */

/* What is counted, over all nodes, since the last sim_crash_at, sim_fail_at or sim_count_reset. */
enum sim_point {
    SIM_POINT_EVENT, /* any event: a turn, a completion, a mail, a delivery, a stop */
    SIM_POINT_IO,    /* any disk request: the four below */
    SIM_POINT_READ,
    SIM_POINT_WRITE,
    SIM_POINT_SYNC,  /* of files and of directories */
    SIM_POINT_NAME,  /* open with create, rename, link, unlink, truncate, allocate, mkdir, rmdir */
    SIM_POINT_ALLOC, /* allocations of nodes through base/mem.h; for sim_fail_at only */
    /* Syncs of a directory that has a rename not synced yet: between the two; for sim_crash_at only
     */
    SIM_POINT_COMMIT,
    SIM_POINT_COUNT,
};

/* Power fails when the n-th request (from 0) begins: on its node, with it under way. */
void sim_crash_at(struct sim *sim, enum sim_point point, u64 n);
/* The same of one node's requests or events only: what other machines do does not count. One crash
 * is armed at a time, the last one. */
void sim_node_crash_at(struct sim_node *node, enum sim_point point, u64 n);
/* The requests n .. n + count - 1 fail with error (ST_IO_ERROR, ST_NO_SPACE). A write that fails
 * may have reached some sectors; a sync that fails loses what it should have kept, and the next
 * one says ok (as Linux does). */
void sim_fail_at(struct sim *sim, enum sim_point point, u64 n, u64 count, status error);
void sim_faults_clear(struct sim *sim);
/* From now on a crash is one of the process (what was written stays) or of the power, on all disks.
 */
void sim_crash_keeps_all_set(struct sim *sim, bool keeps_all);
/* The chances of sim_disk_options from now on: failing requests, in millionths. */
void sim_error_rates_set(struct sim *sim, u32 read_ppm, u32 write_ppm, u32 sync_ppm);
/* All chances of faults are 0 from now on, stalls end, space is back, links heal: what follows
 * must make progress. Damage that is stored stays. */
void sim_faults_end(struct sim *sim);
/* The test is about to do this one itself (a power cut, a clock step): false when the family is
 * off or this fault is to be left out; otherwise it is numbered and kept like the sim's own. */
bool sim_fault_inject(struct sim *sim, enum sim_fault family);
const char *sim_fault_name(enum sim_fault family); /* "sync-error" */
/* Injected so far. */
u64 sim_fault_count(const struct sim *sim, enum sim_fault family);
/* All that were injected, in the order of their time; detail: where, for a person. */
void sim_fault_each(const struct sim *sim,
                    void (*each)(void *arg, struct sim_fault_id id, u64 time_ns,
                                 const char *detail),
                    void *arg);
/* Whether BUGGIFY sites fire from now on; which may was drawn by sim_new. */
void sim_buggify_set(struct sim *sim, bool on);
/* How often any has fired. */
u64 sim_buggify_count(const struct sim *sim);
/* Damage beyond the promise, for a checker that demands that it is found. */
struct sim_damage {
    struct sim_fault_id id;
    u64 time_ns;
    const struct sim_node *node;
    const char *path; /* now; of a file without a name: "(no name)" */
    const char *path_then;
    bool shared; /* the file has more names */
    bool stale;  /* the place keeps what it had, of a write that went nowhere or elsewhere */
    u64 offset;
    u32 bytes;
    /* Reads show it now. Not so once it was written over or the file is gone; a power cut may bring
     * it back with what had been written over it, or show what a cache has hidden so far. */
    bool there;
};
/* SIM_FAULT_BIT_ROT or SIM_FAULT_LATENT strikes something that is stored on the node's disk while
 * nobody asks for it. False: nothing is, or this one is left out. */
bool sim_node_spoil(struct sim_node *node, enum sim_fault family);
void sim_damage_each(const struct sim *sim,
                     void (*each)(void *arg, const struct sim_damage *damage), void *arg);
/* Whether the armed crash or failure has happened. */
bool sim_crashed(const struct sim *sim);
bool sim_failed(const struct sim *sim);
u64 sim_count(const struct sim *sim, enum sim_point point);
void sim_count_reset(struct sim *sim);

/* ---- many machines ---- */

/* A machine with an address for io_connect and an empty disk. */
struct sim_node *sim_node_new(struct sim *sim, const char *host);
/* Starts its process. cores, spin and stall are ignored. */
MUST_CHECK status sim_node_start(struct sim_node *node, const struct io_node_config *config);
/* As io_node_stop; the process ends when its shards have. */
void sim_node_stop(struct sim_node *node);
/* Power off, now: memory, fibers, connections and what the disk had not made durable are gone, and
 * peers hear nothing until it is started again. With crash_keeps_all it is the process that ends:
 * the machine stays and closes its connections. Not from inside the node's own code. */
void sim_node_crash(struct sim_node *node);
bool sim_node_running(const struct sim_node *node);
/* What the last process ended with; ST_CANCELED after a crash. */
status sim_node_result(const struct sim_node *node);
struct sim_disk *sim_node_disk(struct sim_node *node);
/* What is on the disk of a machine whose process does not run: freed by sim_disk_copy_free, before
 * the simulation is. Put back, it is all that the disk has, and durable. */
struct sim_disk *sim_disk_copy_new(const struct sim_disk *disk);
void sim_disk_copy_put(const struct sim_disk *copy, struct sim_disk *disk);
void sim_disk_copy_free(struct sim_disk *copy);
/* The wall clock of node jumps by this much / from now on runs fast by this many millionths. */
void sim_node_clock_step(struct sim_node *node, i64 ms);
u64 sim_node_wall_ns(const struct sim_node *node);
void sim_node_clock_drift_set(struct sim_node *node, i32 ppm);
/* The shard learns of nothing before the time has passed. */
void sim_node_shard_stall(struct sim_node *node, u32 shard, u64 ns);
/* Disk requests of the kind that begin before the time has passed end when it has; nothing else
 * waits for them, and no fault is counted. */
void sim_node_disk_stall(struct sim_node *node, enum sim_point point, u64 ns);
/* The process has started up: from here to its end alloc_ppm counts. Comes by itself once every
 * shard listens on a port. */
void sim_node_started_set(struct sim_node *node);
/* The allocations n .. n + count - 1 of its process from now (from 0) are refused, even while it
 * starts up. Forgotten by sim_faults_clear. */
void sim_node_refuse_at(struct sim_node *node, u64 n, u64 count);
/* Bytes that the process holds: zero after its end. */
u64 sim_node_memory_bytes(const struct sim_node *node);
/* Each block of it. */
void sim_node_memory_each(const struct sim_node *node,
                          void (*look)(void *arg, const void *data, u64 size), void *arg);
/* Budgeted memory of a shard in use now, and its highest; zero when the process has ended. */
void sim_node_shard_memory(const struct sim_node *node, u32 shard, u64 *used_out, u64 *peak_out);
/* Requests of the kind (SIM_POINT_READ, WRITE, SYNC or NAME) that its disk gets from now on take so
 * much longer; 0: not any more. */
void sim_node_disk_slow_set(struct sim_node *node, enum sim_point point, u64 ns);
/* Closes only the sending side of a connection, behind what was written: a client that still reads.
 * On the shard of conn. */
void sim_conn_shut_send(struct io_conn *conn);
/* Nothing is delivered between the two (in both directions) until healed; connections stall. After
 * that they go on when their machines try again, as TCP does: within twice the time it lasted. */
void sim_link_cut(struct sim *sim, struct sim_node *a, struct sim_node *b);
void sim_link_heal(struct sim *sim, struct sim_node *a, struct sim_node *b);
/* The same for what goes from one to the other, and for new connections either way; the opposite
 * direction goes on. sim_link_heal ends it. */
void sim_link_cut_one_way(struct sim *sim, struct sim_node *from, struct sim_node *to);
/* Each segment between the two takes so much longer, in both directions; 0: not any more. */
void sim_link_slow_set(struct sim *sim, struct sim_node *a, struct sim_node *b, u64 ns);

/* ---- driving ---- */

u64 sim_now_ns(const struct sim *sim);
/* Handles one event. False when there is none. */
bool sim_step(struct sim *sim);
/* Until nothing is left to happen (idle timers count as something). */
void sim_run_idle(struct sim *sim);
void sim_run_until_ns(struct sim *sim, u64 time_ns);
/* True when the condition came true before the deadline. Asked after every event. */
bool sim_run_until(struct sim *sim, bool (*condition)(void *arg), void *arg, u64 deadline_ns);
/* Calls fn at a time, outside of all nodes (to crash, cut, start). */
void sim_at(struct sim *sim, u64 time_ns, void (*fn)(void *arg), void *arg);

/* ---- what happened ---- */

/* Over (time, node, shard, kind, content) of every event so far. */
u64 sim_trace_hash(const struct sim *sim);
u64 sim_event_count(const struct sim *sim);
/* Every event is printed to stderr as it happens. */
void sim_trace_print_set(struct sim *sim, bool print);
/* Prints the last events (time, node, shard, what), and the faults among them. */
void sim_trace_dump(const struct sim *sim);
/* A stream of its own for the test's decisions. */
struct prng *sim_prng(struct sim *sim);
/* From now on an AUDIT checks its structure once in so many passes; 0: never, as after sim_new. */
void sim_audits_set(struct sim *sim, u32 one_in);
#define SIM_AUDIT_ONE_IN 33u /* what histories ask for: 3 in 100 */
/* A process that ends by itself with an error must leave no memory either. (Tests of single layers
 * return in the middle when something fails.) */
void sim_leaks_forbid(struct sim *sim);
/* How often MARK(name) was passed since sim_new. */
u64 sim_mark_count(const struct sim *sim, const char *mark);
/* Every MARK, BUGGIFY and AUDIT site of the program, in byte order of the names, each name once;
 * passed: how often a mark was passed, or another site fired, since sim_new. */
void sim_site_each(void (*each)(void *arg, const char *name, bool is_mark, u64 passed), void *arg);
/* The same over all runs of the process, and what was passed without any. */
void sim_site_each_ever(void (*each)(void *arg, const char *name, bool is_mark, u64 passed),
                        void *arg);
/* Prints the last messages of all nodes, for a failed test. */
void sim_log_dump(const struct sim *sim);
/* Whether one of the kept messages contains text. */
bool sim_log_contains(const struct sim *sim, const char *text);

/* ---- a disk from outside ---- */

/* Flips the bits of mask in the stored byte, whatever is cached or not: damage that a checksum
 * must find. ST_NOT_FOUND, ST_END. */
MUST_CHECK status sim_disk_flip(struct sim_disk *disk, const char *path, u64 offset, u8 mask);
/* The sector of the byte cannot be read until it is written. ST_NOT_FOUND, ST_END. */
MUST_CHECK status sim_disk_latent(struct sim_disk *disk, const char *path, u64 offset);
MUST_CHECK status sim_disk_file_size(const struct sim_disk *disk, const char *path, u64 *size_out);
/* Tells the file apart from all others that were ever made on the disk, whatever it is called
 * later; never 0. ST_NOT_FOUND. */
MUST_CHECK status sim_disk_file_number(const struct sim_disk *disk, const char *path,
                                       u64 *number_out);
/* Whether the file has any name, as far as the running system sees. */
bool sim_disk_file_named(const struct sim_disk *disk, u64 number);
void sim_disk_capacity_set(struct sim_disk *disk, u64 bytes);
u64 sim_disk_used_bytes(const struct sim_disk *disk);
/* Calls each for every file, in byte order of the paths. */
void sim_disk_each_file(const struct sim_disk *disk, void (*each)(void *arg, const char *path),
                        void *arg);

#endif
