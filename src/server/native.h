/* SPDX-License-Identifier: MIT
 *
 * native.h -- the native protocol's opcodes as commands: a request's only argument is its frame,
 * which its handler decodes again on the shard where it runs.
 *
 * Idempotency ids. A shard remembers the outcome of the last NATIVE_IDS writes that carried an id
 * (that a condition does not hold, too: a first attempt that comes after the second must not find
 * that it does), as long as the process lives; clients are told NATIVE_ID_LIFE_MS. Another attempt
 * with the same id is answered from there. So is one of a write that would do twice what it did
 * once, when nobody knows what became of the first attempt: what it finds of itself, half done, is
 * no reason for CONFLICT. When the shard does not know the id, it may have
 * forgotten it, and the attempt must not be done:
 *
 *   a retry          says how long ago its write was first sent, and may have been under way since
 *                    its connection was made. When ids that are no older were forgotten, nobody can
 *                    tell what became of the first attempt, and that is the answer.
 *   a first attempt  can be late, too: its client gave the connection up and had it done by a retry
 *                    over another one. Retries that are done are rare, so they have a ring of their
 *                    own, and first attempts, however many, do not push them out. When one is
 *                    forgotten all the same, connections from before its first attempt was sent may
 *                    still bring it: they take no more writes with an id (CLOSING), and their
 *                    clients, if they are still there, open others.
 *
 * In a cluster ids are remembered where a write ran: by the first replica that lives, as the node
 * sees it that the client talks to. That node also remembers when this last changed; a retry whose
 * first attempt is older carries a mark (request.moved), and where its id is not known then, nobody
 * knows what became of the first attempt. The same when the process that runs it is younger. Of
 * writes with a condition only: the others may be done twice. What is sent on may have been under
 * way between the nodes as well: to the one that runs it the connection is older by that time, and
 * by what clocks may differ (connected_of, route.c).
 *
 * Elsewhere. In a cluster a client has a write without a condition done by another node, too, when
 * the first does not answer; not within NATIVE_ELSEWHERE_MS after it was sent (libdistkv keeps to
 * it, docs/native-protocol.md tells others). From then on the first must not begin with it: done
 * last, it would undo what others have written on top. So
 *
 *   it is begun      within NATIVE_BEGIN_NS after it was read, or not at all; also where it is sent
 *                    on to, by a clock that is off by 250 ms at either end (route.c);
 *   it is read       at once, but after a pause: what came over connections that were there when
 *                    the shard stood still for a second or more (session_stood_since) is refused
 *                    with CLOSING. Over a connection that is newer nothing can have been sent
 *                    before it, since the answer to HELLO is waited for. The same of what may have
 *                    waited so long because its connection was not read from (session_stall). A
 *                    reset does not take back what the kernel here has.
 *
 * That a restart forgets all ids is told by HELLO's run id: the client decides whether it may send
 * again.
 *
 * Snapshots. SNAPSHOT_OPEN takes one of every shard, of one instant (cut.h), under one number; each
 * shard drops its own when no shard's was used for the lease (struct native_lease). The lease is
 * free for another snapshot when the last shard has dropped its own.
 */
#ifndef DISTKV_SERVER_NATIVE_H
#define DISTKV_SERVER_NATIVE_H

#include "proto/native.h"
#include "server/exec.h"

#define NATIVE_IDS          8192u
#define NATIVE_ID_BUCKETS   4096u
#define NATIVE_ID_LIFE_MS   (10u * 60u * 1000u)
#define NATIVE_BEGIN_NS     (1250 * NS_PER_MS)
#define NATIVE_LEASE_MS_MAX (5u * 60u * 1000u)

struct native_done {
    struct native_id id; /* none: free */
    u64 at_ms;           /* monotonic */
    u64 before_ms;       /* a retry: its first attempt was sent before; else 0 */
    u64 seq;
    u64 version; /* CONFLICT: the one that is there */
    u32 next;    /* in its bucket: index + 1 */
    u8 outcome;  /* NATIVE_ST_OK, CONFLICT, NOT_FOUND: final, all three; UNKNOWN_OUTCOME */
    bool existed;
};

/* The shard's part of one; its lease has the same index. */
struct native_snapshot {
    u64 id; /* 0: free */
    struct lsm_snapshot *snapshot;
    u64 lease_ns; /* 0: closed */
    u32 users;    /* scans that read it here now */
};

struct native_state {
    struct native_done *done; /* two rings of NATIVE_IDS: done by first attempts, by retries */
    u32 next, retry_next;
    u64 begun_ms;     /* monotonic: since when ids are remembered */
    u64 forgotten_ms; /* monotonic: ids up to this moment may be forgotten; 0: none */
    /* Likewise: retries of what was first sent up to this moment. */
    u64 retry_forgotten_ms;
    u32 buckets[NATIVE_ID_BUCKETS];
    struct native_snapshot snapshots[NATIVE_SNAPSHOTS_MAX];
};

struct request;

/* The error frame to the request in frame. */
void native_failure(struct bytes frame, struct resp_writer *reply, status why);
void native_refusal(struct bytes frame, struct resp_writer *reply, status why, const char *words);
/* Of a write that comes again over a connection: no attempt of it was sent before this moment (on
 * io_now_ns). */
u64 native_first_ns(u32 age_ms, u64 connected_ns);
/* Whether a reply reports an error (that a key is not there and that a condition does not hold are
 * none), and of which kind. */
bool native_reply_failed(struct bytes reply);
enum server_error_kind native_error_kind(struct bytes reply);
/* Whether its deadline has passed while it waited. */
bool native_too_late(struct bytes frame, const struct request *request);
/* The token that decides who runs it, and how many keys it has. false: it has no keys, or those of
 * a batch have several slots. */
MUST_CHECK bool native_token(const struct native_request *request, u64 *token_out, u32 *keys_out);
void native_for_each_key(struct exec *x, void (*each)(void *arg, u64 hash), void *arg);
/* Drops snapshots whose lease is over; now and then. */
void native_snapshots_sweep(struct shard *shard, bool all);
/* Decodes x's frame; false: the error has been replied. */
MUST_CHECK bool native_decode(struct exec *x, struct native_request *out);
void native_reply(struct exec *x, const struct native_reply *reply);
void native_error(struct exec *x, const struct native_request *request,
                  enum native_status native_status, u64 detail, const char *text);
/* Of the topology that this shard goes by. */
u64 native_epoch(void);

void native_hello(struct exec *x);
void native_ping(struct exec *x);
void native_get(struct exec *x);
void native_put(struct exec *x);
void native_delete(struct exec *x);
void native_batch(struct exec *x);
void native_scan(struct exec *x);
void native_snapshot_open(struct exec *x);
void native_snapshot_close(struct exec *x);
void native_ttl(struct exec *x);
void native_expire(struct exec *x);
void native_count(struct exec *x);
void native_status(struct exec *x);
void native_get_siblings(struct exec *x);
void native_put_siblings(struct exec *x);
void native_cluster(struct exec *x); /* cluster_admin.c */
void native_topology(struct exec *x);

#endif
