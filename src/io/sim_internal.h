/* SPDX-License-Identifier: MIT
 *
 * sim_internal.h -- what the parts of the simulated link share.
 *
 *   sim.c        world, events, turns of shards, crash and restart; backend_* of core.h
 *   sim_file.c   file.h: requests to the disk as events
 *   sim_disk.c   the disk itself (sim_names.c: its names)
 *   sim_conn.c   net.h: connections as events
 *   sim_mem.c    allocation by node, so that a crash frees everything
 *   sim_log.c    the last messages; sim_fault.c: BUGGIFY and MARK
 */
#ifndef DISTKV_IO_SIM_INTERNAL_H
#define DISTKV_IO_SIM_INTERNAL_H

#include "io/core.h"
#include "io/file.h"
#include "io/memfs.h"
#include "io/sim.h"
#include "io/sim_disk.h"

/* What happened, for the trace. */
enum sim_kind {
    SIM_KIND_TURN = 1,
    SIM_KIND_MAIL,
    SIM_KIND_STOP,
    SIM_KIND_DISK,
    SIM_KIND_NET,
    SIM_KIND_CONTROL,
};

/* Something that will happen; embedded in what it happens to. Ordered by time, then by a random
 * number, then by order of scheduling. */
struct sim_event {
    struct heap_node node;
    u64 time_ns;
    u64 tiebreak;
    u64 order;
    enum sim_kind kind;
    bool scheduled;
    struct sim_shard *shard; /* NULL: nobody's */
    void (*fire)(struct sim_event *event);
};

/* Something that happened to a shard, which learns of it in its next turn. */
struct sim_arrival {
    struct list link;
    void (*run)(struct sim_arrival *arrival);
};

struct sim_shard {
    struct io_shard core; /* first: io_current points here */
    struct sim_node *node;
    struct sim_event turn;
    struct sim_event stop;
    u64 busy_until_ns;
    u64 spent_ns;         /* virtual time used in this turn */
    struct list arrivals; /* struct sim_arrival.link */
    struct memfs memfs;
    u64 *mail_time_ns; /* by target: when the last mail on its way arrives */
    u64 *mail_counts;  /* by target: under way */
    u64 io_in_flight;
    struct list files;       /* struct io_file.link, open ones */
    struct list connections; /* struct io_conn.link */
    struct list listeners;   /* struct io_listener.link */
    u64 conn_id_last;
};

struct sim_node {
    struct list link; /* sim.nodes, in order of making */
    struct sim *sim;
    u32 index;
    char host[64];
    struct sim_disk *disk;
    struct list blocks; /* memory of the process: sim_mem.c */

    bool running;
    bool stopping;
    bool crash_pending; /* at the end of this event */
    u64 epoch;          /* of the process: grows by one with each start */
    status result;
    u32 shard_count;
    struct sim_shard *shards;
    u64 boot_wall_ms;

    /* disk */
    u32 io_in_flight;
    struct list io_queue;    /* struct sim_request.link: waiting for a place */
    struct list io_requests; /* struct sim_request.link: under way */
    struct list mails;       /* struct sim_mail.link: between shards, under way */
    struct list connects;    /* sim_conn.c: under way from here */
    struct list accepts;     /* on their way to a listener here */
    u16 port_last;           /* for io_listen with port 0 */
};

struct sim_trigger {
    bool armed;
    bool done;
    enum sim_point point;
    u64 first, count;
    status error;
};

struct sim {
    struct sim_options options;
    u64 now_ns;
    struct heap events;
    u64 event_order;
    u64 event_count;
    u64 trace_hash;
    struct list nodes;
    u32 node_count;
    struct list controls; /* struct sim_control.link */
    struct list pipes;    /* sim_conn.c */
    struct list cuts;     /* struct sim_cut.link */

    struct prng prng_schedule;
    struct prng prng_disk;
    struct prng prng_net;
    struct prng prng_fault;
    struct prng prng_test;

    u64 points[SIM_POINT_COUNT];
    struct sim_trigger crash;
    struct sim_trigger failure;
};

extern struct sim *sim_current;

static inline struct sim_shard *
sim_shard_of(struct io_shard *core)
{
    return (struct sim_shard *)core;
}

static inline struct sim_shard *
sim_shard_current(void)
{
    CHECK(io_current != NULL); /* called from outside a shard */
    return (struct sim_shard *)io_current;
}

/* A stream of its own for each purpose. */
u64 sim_seed(u64 seed, const char *purpose, u64 index);
u64 sim_draw(struct prng *prng, u64 first, u64 last);
bool sim_ppm(struct prng *prng, u32 ppm);

/* ---- events ---- */

void sim_event_schedule(struct sim *sim, struct sim_event *event, u64 time_ns);
void sim_event_cancel(struct sim *sim, struct sim_event *event);
void sim_trace(struct sim *sim, const struct sim_shard *shard, enum sim_kind kind, u64 content);
/* The shard learns of it in its next turn. */
void sim_arrive(struct sim_shard *shard, struct sim_arrival *arrival);
/* Counts; ST_OK, or the failure that is to be injected. Arms the crash of node when its moment has
 * come. */
status sim_point_hit(struct sim *sim, struct sim_node *node, enum sim_point point);

/* ---- parts of a node's end ---- */

/* Forgets requests, openings, connections. The disk has its crash before, while buffers live. */
void sim_files_drop(struct sim_node *node);
void sim_net_drop(struct sim_node *node);
/* The shard has ended: closes what it listens on and its connections. In its turn. */
void sim_net_shut(struct sim_shard *shard);
bool sim_net_busy(const struct sim_shard *shard);
void sim_net_init(struct sim *sim);
void sim_net_free(struct sim *sim);

/* ---- memory ---- */

/* Whose blocks are allocated from now on; NULL: nobody's. Returns the last. */
struct list *sim_mem_domain_set(struct list *blocks);
/* Frees all; returns how many there were. */
u64 sim_mem_free_all(struct list *blocks);
u64 sim_mem_bytes(const struct list *blocks);

/* ---- messages, sites, marks ---- */

void sim_log_reset(bool print);
void sim_fault_reset(u64 seed, bool buggify);

#endif
