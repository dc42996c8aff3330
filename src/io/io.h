/* SPDX-License-Identifier: MIT
 *
 * io.h -- the one seam to the outside: time, randomness, scheduling, disk, network.
 *
 * Everything above src/io runs on shards. A shard is a pinned thread with one ring in the server,
 * and a set of queues inside one thread in the simulator; code above cannot tell. The two sets of
 * objects behind these headers (ring_*.c and sim_*.c) are chosen at link time.
 *
 *   io.h       who am I, what time is it, start and stop          (this file)
 *   fiber.h    fibers and how they wait for each other
 *   timer.h    callbacks at a time
 *   task.h     callbacks once for all that a turn brings
 *   mailbox.h  messages between shards
 *   file.h     direct disk I/O and directories
 *   net.h      byte-stream connections
 *
 * Two contexts exist. A *fiber* may call MAY_YIELD functions. A *callback* (a timer, a delivered
 * mail, bytes received, a finished io_op) runs on the shard's own stack and may not; it runs to its
 * end at once, is never called from inside the function that started the operation, and should take
 * well under the quota of 500 us.
 *
 * Functions without a shard argument act on the shard that calls them. Unless a function says
 * otherwise it may be called from both contexts, only on a shard, and never allocates.
 */
#ifndef DISTKV_IO_IO_H
#define DISTKV_IO_IO_H

#include "base/mem.h"
#include "base/status.h"

struct io_node; /* the shards of one process (of one simulated process) */

struct io_node_config {
    u32 shard_count;     /* 1..LIMIT_SHARDS */
    const u32 *cores;    /* shard_count core numbers, or NULL: no pinning */
    u64 memory_bytes;    /* of all shards together; each gets an equal budget */
    u32 spin_us;         /* idle polling before sleeping; 0: none */
    u32 stall_ms;        /* turns longer than this are reported with a backtrace; 0: off */
    u32 fiber_count_max; /* per shard; a spawn above it fails with ST_NO_MEMORY; 0: default */
    /* Runs as the first fiber of every shard; the shard ends when it has returned and nothing is
     * left in flight. A status that is not ok stops the other shards, too. */
    status (*shard_main)(void *arg);
    void *arg;
};

/* ---- identity ---- */

u32 io_shard_index(void); /* 0 .. io_shard_count() - 1 */
u32 io_shard_count(void);
/* One pointer per shard for the layer that assembles the node. */
void io_shard_user_set(void *user);
void *io_shard_user(void);
/* The root of all memory of this shard. */
struct budget *io_budget(void);
/* How much of a busy shard's time background fibers get, in thousandths (below 1000): more than
 * usual while those who keep it busy would soon have to wait for them. */
#define IO_BACKGROUND_SHARE 100u
void io_background_share_set(u32 share);

/* ---- time and randomness ---- */

/* Monotonic; read once a turn of the loop, so equal within a callback. */
u64 io_now_ns(void);
/* Monotonic, read now: for measuring short stretches. */
u64 io_clock_ns(void);
/* Since the Unix epoch; may step backwards. Read once a turn. */
u64 io_wall_ms(void);
/* Cryptographically seeded once, then a fast generator: not for secrets. */
u64 io_random(void);
/* Fills with bytes fit for secrets and ids. */
void io_entropy(void *data, size_t size);
/* An id that nobody else will draw: neither 0 nor `other`. */
u64 io_entropy_id(u64 other);

/* ---- stopping ---- */

/* True once the node was asked to stop, or a shard_main failed. */
bool io_stopping(void);
/* Waits for that. */
MAY_YIELD void io_wait_stop(void);
/* Asks the whole node to stop; from any shard. */
void io_stop(void);

/* The shard does not end while it is held: by what goes on without a fiber, in a timer. */
void io_shard_hold(void);
void io_shard_release(void);

/* ---- figures, for metrics; plain counters of the calling shard ---- */

struct io_stats {
    u64 turns;
    u64 busy_ns; /* time in turns that did something */
    u64 idle_sleeps;
    u64 stalls; /* turns above stall_ms */
    u64 turn_ns_max;
    u64 fibers_running; /* spawned and not ended */
    u64 fibers_pooled;
    u64 fiber_switches;
    u64 mails_sent;
    u64 mails_received;
    u64 mail_wakes;    /* MSG_RING wake-ups sent */
    u64 mails_waiting; /* in outboxes because a ring between shards was full */
    u64 reads, read_bytes, read_errors;
    u64 writes, write_bytes, write_errors;
    u64 syncs;
    u64 io_in_flight;
    u64 io_queued; /* waiting for a place under LIMIT_IO_IN_FLIGHT */
    u64 connections;
    u64 connections_accepted;
    u64 connections_refused; /* no memory, no descriptors */
    u64 received_bytes, sent_bytes;
    u64 input_bytes;         /* memory of what came and nobody has taken */
    u64 frame_bytes;         /* memory of large frames that come */
    u64 output_bytes;        /* memory of what clients have not taken yet */
    u64 receive_stalls;      /* times the provided buffers ran out */
    u64 connections_starved; /* closed: no memory for what they were sending */
    u64 connections_waiting; /* now: for room for a large frame */
    u64 connections_frames;  /* now: with memory of large frames */
    u64 cq_overflows;        /* a bug when not 0 */
    u64 ring_enters;
};

void io_stats_get(struct io_stats *out);

/* ---- the host side: called from ordinary threads, real link only ---- */

/* Starts the threads and returns at once. config is copied, the cores too. */
MUST_CHECK status io_node_start(const struct io_node_config *config, struct io_node **out);
/* Asks to stop; async-signal-safe. */
void io_node_stop(struct io_node *node);
/* Waits for all shards to end and frees the node; returns the first failure. */
status io_node_join(struct io_node *node);
/* True when all shards have ended (join will not block). */
bool io_node_ended(const struct io_node *node);
/* Runs fn(arg) on a fiber of the shard and blocks the calling thread until it returned. Fails
 * with ST_CLOSED when the shard has ended, or ends before it runs. */
MUST_CHECK status io_node_call(struct io_node *node, u32 shard, void (*fn)(void *arg), void *arg);
/* The same for a short fn that does not wait: without a fiber, so a shard that has no memory left
 * answers, too. */
MUST_CHECK status io_node_ask(struct io_node *node, u32 shard, void (*fn)(void *arg), void *arg);
/* Monotonic ns of the shard's last turn; an idle shard turns at least every 500 ms. */
u64 io_node_heartbeat_ns(const struct io_node *node, u32 shard);

#endif
