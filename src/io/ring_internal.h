/* SPDX-License-Identifier: MIT
 *
 * ring_internal.h -- the real backend: one thread and one io_uring a shard. For ring_*.c only.
 *
 *     ring_node.c    threads, start and stop, calls from host threads
 *     ring_loop.c    the ring, the turn, idling, waking each other
 *     ring_stall.c   long turns and overflowed stacks are told with a backtrace
 *     ring_file.c    files: queues, shares, direct transfers
 *     ring_name.c    directories and names, the probe of a disk
 *     ring_net.c     connections        ring_listen.c   making them
 *
 * Every request to the kernel has an owner in memory, a ring_req or an io_op, whose address is the
 * user_data of its completions; an owner is freed only after its last completion (the one without
 * F_MORE) has come. To catch a slip, the upper 16 bits carry a generation that each arming changes.
 *
 *     user_data:  | generation 16 | address, bits 47..3 | 0 | 0 | is an io_op |
 *     0: a wake-up; 2: a wake-up that failed
 */
#ifndef DISTKV_IO_RING_INTERNAL_H
#define DISTKV_IO_RING_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "io/core.h"
#include "io/core_conn.h"
#include "io/file.h"
#include "io/memfs.h"
#include "io/net.h"
#include "io/ring_spin.h"
#include "io/uring_compat.h"

/* Submission entries: a turn rarely queues more, and a full queue only costs one more enter. */
#define RING_SQ_ENTRIES 512u
/* Completions: an enter posts about 20 before the loop reads them, so this never fills. */
#define RING_CQ_ENTRIES 8192u
/* An idle shard turns at least this often. */
#define RING_IDLE_NS_MAX (500 * NS_PER_MS)
/* Enters in a row for deferred work before the rest of the turn gets its time. */
#define RING_REAP_ROUNDS_MAX 32u
/* Threads that the kernel may start a ring for what it cannot do without blocking. */
#define RING_IOWQ_WORKERS 4u
/* Slots of the registered file table; files and sockets share them (but see ring_slots_init). */
#define RING_FILES_MAX 32768u
/* Mails under way per ordered pair of shards. */
#define RING_MAILBOX_SLOTS 1024u
/* Provided receive buffers. */
#define RING_BUFFER_BYTES     8192u
#define RING_BUFFERS_MIN      64u
#define RING_BUFFERS_MAX      512u
#define RING_BUFFER_GROUP     1
#define RING_STALL_FRAMES_MAX 48
#define RING_DIR_LOCKS_MAX    16u

struct ring_shard;

struct ring_req {
    /* flags: IORING_CQE_F_*. Without F_MORE it was the last one; active is cleared before. */
    void (*complete)(struct ring_req *req, i32 result, u32 flags);
    u16 generation;
    bool active;
};

/* The second descriptor of a file, for writes to the kernel's cache: ring_cached.c. */
struct ring_cached {
    int fd; /* not O_DIRECT; -1: not open */
    bool refused;
    u64 dirty_bytes;          /* written here since the last sync began */
    u64 push_from, push_end;  /* what the disk was not asked to write yet; equal: nothing */
    u64 end;                  /* behind the last byte written here */
    struct ring_req push_req; /* active: the file counts it as in flight */
};

/* Extents that are known of a file; a file in more has its first ones known. */
#define RING_FILE_EXTENTS 16u

struct io_file {
    struct list link; /* shard->files */
    struct ring_shard *shard;
    struct memfs_file *memory; /* not NULL: a file in memory, no fd */
    int fd;
    i32 slot;    /* in the registered table, or -1 */
    bool direct; /* O_DIRECT */
    bool dsync;  /* durable writes use RWF_DSYNC */
    bool closing;
    u32 read_unit; /* io_file_read_unit */
    u32 in_flight; /* operations not finished */
    struct fiber_queue idle_queue;
    struct ring_cached cached;
    u64 extent_ends[RING_FILE_EXTENTS]; /* ascending offsets at which another extent begins */
    u32 extent_end_count;
    size_t size_bytes; /* of this block */
    char path[];
};

/* Between an ordered pair of shards. The producer reads head only when its copy says full, the
 * consumer reads tail once a turn. */
struct ring_mailbox {
    ALIGNED(64) _Atomic u32 tail; /* written by the producer */
    u32 head_seen;                /* producer's copy */
    ALIGNED(64) _Atomic u32 head; /* written by the consumer */
    ALIGNED(64) struct io_mail *slots[RING_MAILBOX_SLOTS];
};

/* On the stack of a host thread that waits in io_node_call or io_node_ask. */
struct ring_call {
    struct list link;
    struct ring_shard *shard;
    void (*fn)(void *arg);
    void *arg;
    bool waits; /* fn may: it needs a fiber */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool finished;
    status result;
};

struct ring_disk_class {
    struct list queue; /* struct io_op.link */
    u32 in_flight;
    u64 read_bytes;   /* in flight */
    u64 virtual_time; /* of fair queueing; the smallest goes next */
};

struct ring_shard {
    struct io_shard core; /* first: backend functions cast */
    struct io_node *host;
    pthread_t thread;
    bool thread_started;
    i32 cpu; /* -1: not pinned */

    /* ring */
    struct io_uring uring;
    bool uring_open;
    bool ring_fd_registered;
    bool no_iowait;
    bool sockets_have_slots; /* of the table of registered files: ring_slots_init */
    int event_fd;
    struct ring_req event_req;
    struct ring_spin spin;
    u64 wake_targets;    /* bit a shard: mails were pushed since the last wake */
    u64 *file_slots;     /* bit set: taken */
    u32 file_slot_count; /* 0: the table could not be registered */
    u32 file_slot_hint;
    u64 dir_locks_changed; /* as the node's, when the slots below were looked through */
    struct ring_held_lock {
        u64 number; /* 0: none */
        i32 slot;
    } held_locks[RING_DIR_LOCKS_MAX]; /* ring_dir_locks_hold */
    u64 requests_active; /* ring_req and io_op with a completion still to come, but the event's */

    /* files */
    struct memfs memfs;
    struct list files;    /* struct io_file.link */
    struct list done_ops; /* struct io_op.link: finished at once, reported in the next turn */
    struct io_task report_task;
    bool report_task_posted;
    struct ring_disk_class disk[IO_CLASS_COUNT];
    u32 disk_queued;
    u32 disk_in_flight;
    u32 disk_shared; /* of these, taken from the node's common places */
    u64 disk_virtual_time;
    u64 vacate_ns; /* when the next blocks of a removed file go back */
    u32 vacating;  /* files that are going back */

    /* network */
    struct core_net net;
    struct io_uring_buf_ring *buffer_ring;
    u8 *buffers;
    u32 buffer_count;
    struct list conns_send; /* struct ring_conn.send_link: have something to send */
    struct list conns_recv; /* struct ring_conn.recv_link: receive is to be armed */
    struct list listeners;
    bool net_shut;

    /* read by other threads */
    ALIGNED(64) _Atomic u32 asleep;
    _Atomic u64 heartbeat_ns;
    _Atomic u64 turn_started_ns; /* 0: not in a turn */
    _Atomic u32 host_calls_pending;
    _Atomic bool finished; /* see ring_all_finished */
    _Atomic u64 mails_sent;
    _Atomic u64 mails_received;
    pthread_mutex_t host_mutex;
    struct list host_calls; /* struct ring_call.link */
    bool host_closed;

    /* of the stall detector */
    u64 stall_reported_ns; /* the monitor's: turn that was reported last */
    _Atomic u32 stall_frames;
    void *stall_trace[RING_STALL_FRAMES_MAX];
};

/* What a file system is known to do well; decided once, see ring_name.c. */
struct ring_device {
    u64 device;
    bool decided; /* false: a shard is measuring */
    bool dsync;   /* RWF_DSYNC rather than write then fdatasync */
};

struct ring_dir_lock {
    char *path;
    int fd;
    u32 count;
    u64 number; /* of this taking, from 1 */
};

/* A port that some shards of this node listen on. */
struct ring_port {
    struct sockaddr_storage address;
    u32 count; /* listeners; 0: not in use */
};

#define RING_PORTS_MAX   (2u * LIMIT_SHARDS + 8u) /* of each shard for nodes and for clients */
#define RING_DEVICES_MAX 16u

struct io_node {
    u32 count;
    u64 memory_bytes;
    u32 spin_ns;
    u64 stall_ns;
    u32 fiber_count_max;
    status (*shard_main)(void *arg);
    void *arg;
    struct ring_shard **shards;
    struct ring_mailbox *mailboxes; /* [source * count + target] */

    pthread_mutex_t mutex; /* below, and the start */
    pthread_cond_t cond;
    u32 init_count;
    status init_status;
    bool go;
    bool abort;
    struct ring_device devices[RING_DEVICES_MAX];
    u32 device_count;
    struct ring_dir_lock dir_locks[RING_DIR_LOCKS_MAX];
    u64 dir_lock_number;           /* of the last one that was taken */
    _Atomic u64 dir_locks_changed; /* how often one was taken or given back */
    struct ring_port ports[RING_PORTS_MAX];

    pthread_barrier_t end_barrier;
    _Atomic bool stop;
    _Atomic bool all_finished;
    _Atomic u32 ended_count;
    _Atomic u32 disk_common; /* taken of the places that no shard owns */
    pthread_t monitor;
    bool monitor_started;
    _Atomic bool monitor_stop;
};

static inline struct ring_shard *
ring_current(void)
{
    return (struct ring_shard *)io_current;
}

/* ---- ring_loop.c ---- */

u64 ring_clock_ns(void);
MUST_CHECK status ring_init(struct ring_shard *shard);
void ring_deinit(struct ring_shard *shard);
void ring_run(struct ring_shard *shard);
/* Wakes from any thread or signal handler. */
void ring_kick(struct ring_shard *shard);
/* Submits what is queued, before the end of the turn. */
void ring_submit_early(struct ring_shard *shard);
/* Never NULL: submits what is queued when the queue is full. */
struct io_uring_sqe *ring_sqe(struct ring_shard *shard);
/* The last step of preparing a request. */
void ring_req_arm(struct ring_shard *shard, struct io_uring_sqe *sqe, struct ring_req *req);
u64 ring_req_user_data(const struct ring_req *req);
/* Asks the kernel to end req early; its last completion comes as ever. */
void ring_req_cancel(struct ring_shard *shard, struct ring_req *req);
/* A slot of the registered table for fd, or -1: use fd itself. */
i32 ring_slot_take(struct ring_shard *shard, int fd);
void ring_slot_give(struct ring_shard *shard, i32 slot);
/* Sets the descriptor of a prepared request: the slot if there is one. */
static inline void
ring_sqe_file(struct io_uring_sqe *sqe, int fd, i32 slot)
{
    if (slot < 0) {
        sqe->fd = fd;
        return;
    }
    sqe->fd = slot;
    sqe->flags |= IOSQE_FIXED_FILE;
}

/* A request that a fiber waits for. */
struct ring_wait {
    struct ring_req req;
    struct io_shard *shard;
    struct fiber *fiber;
    i32 result;
    bool finished;
};

void ring_wait_arm(struct ring_shard *shard, struct io_uring_sqe *sqe, struct ring_wait *wait);
/* Returns the completion's result. */
MAY_YIELD i32 ring_wait_for(struct ring_wait *wait);

/* ---- ring_cached.c ---- */

/* Copies into the kernel's cache. 0, a negative errno, or -EOPNOTSUPP: write it directly. */
int ring_cached_write(struct io_file *file, const void *buffer, u32 size, u64 offset);
/* A sync took bytes of what is dirty, all of it before end. */
MAY_YIELD void ring_cached_synced(struct io_file *file, u64 bytes, u64 end);
MAY_YIELD void ring_cached_close(struct io_file *file);

/* ---- ring_node.c ---- */

/* Spawns the calls of host threads; returns how many. */
u32 ring_host_calls_run(struct ring_shard *shard);

/* ---- ring_stall.c ---- */

/* Process-wide handlers; more than one call is harmless. */
void ring_signals_install(void);
/* Per thread: the alternate stack. */
void ring_signals_thread_init(void);
void ring_signals_thread_deinit(void);
MUST_CHECK status ring_monitor_start(struct io_node *node);
void ring_monitor_stop(struct io_node *node);

/* ---- ring_file.c, ring_name.c ---- */

void ring_file_init(struct ring_shard *shard);
void ring_file_deinit(struct ring_shard *shard);
void ring_file_complete(struct ring_shard *shard, struct io_op *op, i32 result);
/* Hands queued requests to the ring while there are places. */
void ring_file_dispatch(struct ring_shard *shard);
status ring_errno_status(int error);
/* For ring_loop.c: what an op's user_data is. */
u64 ring_op_user_data(const struct io_op *op);
/* Whether durable writes to the device of fd should use RWF_DSYNC. path is a file on it. */
MAY_YIELD bool ring_device_dsync(struct ring_shard *shard, int fd, const char *path);
/* open(2) and close(2) by the ring; the descriptor, or a negative errno. */
MAY_YIELD i32 ring_open_wait(struct ring_shard *shard, const char *path, int flags);
MAY_YIELD void ring_close_wait(struct ring_shard *shard, int fd);
void ring_dir_locks_release(struct io_node *node);
/* Before a file is opened: from now on the kernel keeps the directory locks of this process until
 * all requests of the shard's ring are done, should it be killed. */
void ring_dir_locks_hold(struct ring_shard *shard);

/* ---- ring_net.c ---- */

MUST_CHECK status ring_net_init(struct ring_shard *shard);
void ring_net_deinit(struct ring_shard *shard);
/* Arms receives and queues sends. */
void ring_net_flush(struct ring_shard *shard);
/* The shard ends: aborts every connection and listener. */
void ring_net_shut(struct ring_shard *shard);
/* Makes a connection of a socket; on failure the socket is closed. */
status ring_conn_open(struct ring_shard *shard, int fd, const struct io_conn_events *events,
                      void *arg, struct io_conn **out);
/* ring_listen.c */
void ring_listeners_shut(struct ring_shard *shard);

#endif
