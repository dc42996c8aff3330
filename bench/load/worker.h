/* SPDX-License-Identifier: MIT
 *
 * worker.h -- one thread of the client: a shard of src/io with its connections.
 *
 *   main thread                      worker (by io_node_call)
 *   worker_connect                   opens its connections, says hello
 *   worker_phase(LOAD)               each connection writes its share of the keys
 *   worker_phase(RUN)                closed loop or open loop, until the end
 *   worker_sample                    a copy of what was counted so far
 *   worker->finished                 the phase is over and no reply is awaited
 *
 * Filling keeps at least LOAD_DEPTH requests under way on each connection: it is not measured.
 *
 * Closed loop: a connection sends `depth` requests at once and sends again when all of them have
 * been answered, as redis-benchmark does. Latency counts from just before the requests were built:
 * it is the service time as this client sees it, and says nothing of requests that nobody sent
 * because others were slow.
 *
 * Open loop: request k of the whole client is due at start + k / rate; workers take turns. It is
 * sent then, or as soon as a connection has room, and its latency counts from when it was due.
 * `late` tells how much of that is this client's own fault: how long after its time a request was
 * written that a connection had room for.
 *
 * Strict verification. A key belongs to one connection, and only that one writes it: in order over
 * RESP, and never twice at once over the native protocol, which promises no order. So the version
 * that the last acknowledged write carried is a floor for every read that is sent after. What a
 * lost connection had under way may yet be done at any time: its keys are not judged by age any
 * more.
 */
#ifndef DISTKV_BENCH_WORKER_H
#define DISTKV_BENCH_WORKER_H

#include <stdatomic.h>

#include "base/prng.h"
#include "io/fiber.h"
#include "io/net.h"
#include "io/timer.h"
#include "load/errors.h"
#include "load/keys.h"
#include "load/latency.h"
#include "load/places.h"
#include "load/wire.h"

#define LOAD_DEPTH 16u

enum phase { PHASE_IDLE, PHASE_LOAD, PHASE_RUN };

/* Shared by the workers of a run. */
struct plan {
    const struct settings *settings;
    const struct values *values;
    char host[TEXT_BYTES]; /* numeric */
    u16 port;
    const struct places *places; /* never NULL; may be empty */
    /* strict: of each key the version of the last write that was sent, and acknowledged */
    _Atomic u32 *sent, *acknowledged;
    /* every key was written and none vanishes: a miss is a loss */
    _Atomic bool all_there;
    _Atomic bool stop; /* send no more */
    u64 begin_ns;      /* of the open loop's schedule; set before it begins */
    /* What begins from measure_ns on is counted, until end_ns. Set once all workers are at it, so
     * that the time is as long as it was asked to be; PLAN_NEVER until then. */
    _Atomic u64 measure_ns, end_ns;
};
#define PLAN_NEVER UINT64_MAX

static inline u64
plan_measure_ns(const struct plan *plan)
{
    return atomic_load_explicit(&plan->measure_ns, memory_order_relaxed);
}

static inline u64
plan_end_ns(const struct plan *plan)
{
    return atomic_load_explicit(&plan->end_ns, memory_order_relaxed);
}

struct counters {
    u64 answered;                   /* within the measured time */
    u64 last_ns;                    /* when the last of them was */
    u64 loaded;                     /* keys written by PHASE_LOAD */
    u64 misses;                     /* GET of no key */
    u64 entries;                    /* of scans */
    u64 verified;                   /* values judged */
    u64 sent_bytes, received_bytes; /* of all phases */
    u64 reconnects;
};

struct flight {
    u64 start_ns;
    u64 first_ns; /* the write of an RMW: when its read began; else 0 */
    u64 key;
    u32 version;
    u32 floor;
    u16 entries;
    u8 op;
    bool rmw; /* a read that a write follows */
    bool busy;
};

struct follow { /* the write of an RMW that waits for its turn */
    u64 key;
    u64 first_ns;
};

enum connection_state {
    CONN_DOWN,
    CONN_HELLO,
    CONN_UP,
    CONN_ENDING, /* given up; closed comes */
};

struct connection {
    struct worker *worker;
    struct io_conn *io;
    u32 number; /* of all the client's */
    u32 home;   /* the place that it goes to, and whose keys it draws; or PLACE_NOWHERE */
    enum connection_state state;
    u32 hello_replies; /* to come */
    u32 flying;
    u64 next;        /* serial of the next request */
    u64 first;       /* RESP: serial of the next reply */
    u64 load_number; /* the next key to fill in */
    u64 progress_ns; /* of the last reply, or when a request was sent while none was under way */
    bool lost_told;  /* what was under way is counted already */
    struct flight *flights; /* by serial */
    struct follow *follows; /* a ring of depth, for workloads with RMW */
    u32 follow_first, follow_count;
};

struct worker {
    /* configuration */
    struct plan *plan;
    u32 index, count;
    u32 connection_count;
    struct connection *connections;
    u32 flight_mask;
    u32 request_max; /* bytes of any request of this workload */
    struct wire wire;

    /* state */
    struct prng prng;
    struct keys keys;
    enum phase phase;
    u64 flying;
    u64 remaining; /* --count: requests still to be sent */
    u64 write_count;
    u64 due_index; /* open loop: of this worker's next request */
    bool blocked;  /* no connection had room for it */
    bool gave_up;  /* on requests that were due and not sent */
    u32 turn;      /* the connection to try first */
    struct io_timer pace;
    char problem[160]; /* why connecting failed */
    _Atomic bool finished;

    /* statistics */
    struct counters counters;
    struct errors errors;
    struct errors wrong;
    struct latency *latency[OP_COUNT]; /* NULL: never sent */
    struct latency late;
};

/* shard_main of the node; arg: the array of workers, one for each shard. */
MAY_YIELD status worker_main(void *arg);

/* False: no memory. Before the node starts and after it has ended. */
MUST_CHECK bool worker_init(struct worker *worker, struct plan *plan, u32 index, u32 count);
void worker_deinit(struct worker *worker);

/* For io_node_call on the worker's shard; arg: the worker. problem is set when it fails. */
MAY_YIELD void worker_connect(void *arg);
void worker_load(void *arg);
void worker_run(void *arg);

/* For io_node_call. */
struct sample {
    const struct worker *worker;
    struct counters counters;
    u64 errors, wrong;
    struct latency latency; /* of all kinds of requests that are sent */
};
void worker_sample(void *arg);

#endif
