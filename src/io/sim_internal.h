/* SPDX-License-Identifier: MIT
 *
 * sim_internal.h -- what the parts of the simulated link share.
 *
 *   sim.c        world, events, turns of shards, crash and restart; backend_* of core.h
 *   sim_file.c   file.h: requests to the disk as events
 *   sim_disk.c   the disk itself (sim_names.c: its names; sim_damage.c: what it should never do)
 *   sim_conn.c   net.h: connections as events (sim_line.c: what is under way between them)
 *   sim_mem.c    allocation by node, so that a crash frees everything
 *   sim_inject.c faults by family: chances, numbers, what is left out
 *   sim_trace.c  the hash over all events, the last ones
 *   sim_log.c    the last messages; sim_fault.c: BUGGIFY and MARK
 */
#ifndef DISTKV_IO_SIM_INTERNAL_H
#define DISTKV_IO_SIM_INTERNAL_H

#include "io/core.h"
#include "io/core_conn.h"
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
    SIM_KIND_FAULT,
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
    struct sim_shard *shard; /* NULL: no shard's */
    struct sim_node *to;     /* of a delivery; else NULL */
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
    u64 stall_until_ns;   /* no turn before it, whatever happens */
    u64 spent_ns;         /* virtual time used in this turn */
    struct list arrivals; /* struct sim_arrival.link */
    struct memfs memfs;
    u64 *mail_time_ns; /* by target: when the last mail on its way arrives */
    u64 *mail_counts;  /* by target: under way */
    u64 io_in_flight;
    struct list files;     /* struct io_file.link, open ones */
    struct list listeners; /* struct io_listener.link */
    struct core_net net;
};

/* What the process of a node allocated. */
struct sim_memory {
    struct list blocks; /* struct block.link: sim_mem.c */
    u64 bytes;
    bool may_refuse; /* started up: from here on alloc_ppm counts */
    u64 refuse_at;   /* the n-th allocation from now, from 1, is refused; 0: none is ... */
    u64 refuse_more; /* ... and so many behind it */
};

/* The wall clock of a node: at since_ns it was wall_ns, and runs fast by drift_ppm. */
struct sim_clock {
    u64 since_ns;
    u64 wall_ns;
    i32 drift_ppm;
};

struct sim_node {
    struct list link; /* sim.nodes, in order of making */
    struct sim *sim;
    u32 index;
    char host[64];
    struct sim_disk *disk;
    struct sim_memory memory;
    struct sim_clock clock; /* the machine's: outlives its processes */

    bool power_off; /* after a cut, until the next start: answers nothing */
    bool running;
    bool stopping;
    bool crash_pending; /* at the end of this event */
    u64 epoch;          /* of the process: grows by one with each start */
    status result;
    u32 shard_count;
    struct sim_shard *shards;

    /* disk */
    u32 io_in_flight;
    struct list io_queue;    /* struct sim_request.link: waiting for a place */
    struct list io_requests; /* struct sim_request.link: under way */
    struct list io_late;     /* struct sim_late.link: writes of processes that were killed */
    u64 io_slow_ns[SIM_POINT_COUNT];
    u64 io_stall_until_ns[SIM_POINT_COUNT];
    struct sim_event space_returns;
    struct list mails;    /* struct sim_mail.link: between shards, under way */
    struct list connects; /* sim_conn.c: under way from here */
    struct list accepts;  /* on their way to a listener here */
    u16 port_last;        /* for io_listen with port 0 */
};

struct sim_trigger {
    bool armed;
    bool done;
    enum sim_point point;
    u64 first, count;
    status error;
    struct sim_node *node; /* whose are counted, in seen; NULL: all nodes' */
    u64 seen;
};

struct sim_fault_record {
    struct sim_fault_id id;
    u64 time_ns;
    char detail[112];
};

/* sim_inject.c */
struct sim_faults {
    struct prng chances[SIM_FAULT_COUNT];
    u32 numbers[SIM_FAULT_COUNT];  /* the next one */
    u64 injected[SIM_FAULT_COUNT]; /* without what was left out */
    struct sim_fault_record *records;
    u32 record_count, record_capacity;
};

#define SIM_TRACE_ENTRIES 512u

struct sim_trace_entry {
    u64 time_ns;
    u64 content;
    u32 node, shard; /* UINT32_MAX: nobody's */
    enum sim_kind kind;
    const char *what; /* static; names the numbers. NULL: there is nothing to tell */
    u64 numbers[3];   /* of a fault: the first is its record */
};

/* sim_trace.c */
struct sim_tracer {
    struct sim_trace_entry entries[SIM_TRACE_ENTRIES]; /* a ring */
    u64 count;
    bool printing;
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
    struct list lines;    /* sim_line.c */
    u64 line_last;
    struct list cuts; /* struct sim_cut.link */

    struct prng prng_schedule;
    struct prng prng_disk;
    struct prng prng_net;
    struct prng prng_test;

    u64 points[SIM_POINT_COUNT];
    struct sim_trigger crash;
    struct sim_trigger failure;
    struct sim_faults faults;
    struct sim_tracer tracer;
    bool leaks_forbidden; /* whatever a process ends with */
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
/* content goes into the hash, the rest only into the kept text. shard may be NULL. */
void sim_trace(struct sim *sim, const struct sim_shard *shard, enum sim_kind kind, u64 content,
               const char *what, u64 a, u64 b, u64 c);
/* The shard learns of it in its next turn. */
void sim_arrive(struct sim_shard *shard, struct sim_arrival *arrival);
/* Counts; ST_OK, or the failure that is to be injected. Arms the crash of node when its moment has
 * come. */
status sim_point_hit(struct sim *sim, struct sim_node *node, enum sim_point point);

/* ---- faults by family ---- */

void sim_inject_init(struct sim *sim);
void sim_inject_deinit(struct sim *sim);
/* One draw of the family's stream. */
bool sim_fault_chance(struct sim *sim, enum sim_fault family, u32 ppm);
/* The fault is about to happen: numbers and keeps it. False: it is to be left out. */
bool sim_fault_take(struct sim *sim, enum sim_fault family, const char *format, ...)
    PRINTF_LIKE(3, 4);
/* The one that was taken last. */
struct sim_fault_id sim_fault_last(const struct sim *sim);
/* What the next fault of the family, to be taken after this, draws about itself. */
struct prng sim_fault_prng(const struct sim *sim, enum sim_fault family);
void sim_space_returns(struct sim_event *event);
/* Stalls end: requests, turns and segments come soon. */
void sim_files_hurry(struct sim_node *node);
void sim_shard_hurry(struct sim_shard *shard);
void sim_net_hurry(struct sim *sim);

/* ---- parts of a node's end ---- */

/* The process is killed: some of its writes stay with the disk. Before the disk's crash. */
void sim_files_outlive(struct sim_node *node);
/* These are lost. */
void sim_late_drop(struct sim_node *node);
/* Forgets requests, openings, connections. The disk has its crash before, while buffers live. */
void sim_files_drop(struct sim_node *node);
void sim_net_drop(struct sim_node *node, bool power);
/* The shard has ended: closes what it listens on and its connections. In its turn. */
void sim_net_shut(struct sim_shard *shard);
bool sim_net_busy(const struct sim_shard *shard);
void sim_net_init(struct sim *sim);
void sim_net_free(struct sim *sim);

/* ---- memory ---- */

/* Whose blocks are allocated from now on; NULL: nobody's. Returns the last. */
struct sim_memory *sim_mem_domain_set(struct sim_memory *memory);
/* Frees all; returns how many blocks there were. */
u64 sim_mem_free_all(struct sim_memory *memory);

/* ---- messages, sites, marks ---- */

void sim_log_reset(bool print);
void sim_fault_reset(u64 seed, bool buggify);

#endif
