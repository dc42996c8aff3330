/* SPDX-License-Identifier: MIT
 *
 * flush_cluster.c -- FLUSHDB and FLUSHALL in a cluster: every key is found by a scan of a quorum,
 * and deleted by a write of a quorum.
 *
 *   scan       a page of keys, in the order of tokens (cluster_scan in cluster.h)
 *   delete     keys of one partition make a request, some requests at once: the first living
 *              replica writes tombstones for all of them without a look at what is there
 *   ...        the next page
 *
 * Why a tombstone a key, and no deleted range. What hides a key has to be on every replica before
 * it may be forgotten, and be found by whoever compares replicas: hints, trees, moves and reads
 * know tombstones of keys, with versions. A range would need a place in all of them. So a flush
 * takes its time with many keys, and nothing that it has deleted comes back from a node that was
 * away.
 *
 * Scan and tombstones go to as many replicas as are needed to meet every write that W of them have
 * acknowledged, whatever R is: so each is found, and its tombstone is stamped above it.
 *
 * What is written meanwhile may be deleted or stay. A batch whose outcome is unknown is sent again:
 * nobody minds a second tombstone, until the flush has ended. Of keys that keep siblings each is a
 * DEL of its own.
 */
#include "server/flush_cluster.h"

#include "base/fault.h"
#include "server/cmd.h"
#include "server/route.h"
#include "server/session.h"

#define PAGE_BYTES  (64u << 10)
#define KEY_HEAD    10u
#define BATCHES_MAX 16u
#define BATCH_KEYS  256u
#define RETRY_NS    (20 * NS_PER_MS)
#define PATIENCE_NS (10 * NS_PER_S) /* without anything that succeeds */
static_assert(BATCH_KEYS <= FLUSH_KEYS_MAX, "others take it");

struct flush {
    struct exec *x;
    struct cluster_scan scan;
    const struct command *command; /* UNLINK */
    bool siblings;
    u8 write_level;
    bool full; /* of keys */
    bool no_memory;
    struct buf keys; /* token (8), size (2), bytes */
    u64 patience_ns; /* until then it tries again */
    struct fiber_queue wake;
    struct request *requests[BATCHES_MAX];
    size_t ends[BATCHES_MAX]; /* of the batches, in keys */
    u32 count;
};

/* ---- finding ---- */

static bool
each_key(void *arg, const struct cluster_entry *entry)
{
    struct flush *f = arg;
    u8 head[KEY_HEAD];
    if (f->keys.size >= PAGE_BYTES) {
        f->full = true;
        return false;
    }
    store_u64(head, entry->token);
    store_u16(head + 8, (u16)entry->key.size);
    f->no_memory = !buf_append(&f->keys, head, sizeof(head)) ||
                   !buf_append(&f->keys, entry->key.data, entry->key.size);
    return !f->no_memory;
}

/* So that those who are asked meet every W that have acknowledged a write. by_default: how many are
 * asked anyway. */
static u8
level_of(const struct topology_keyspace *keyspace, u32 by_default)
{
    u32 n = keyspace->replicas, w = keyspace->write_quorum;
    if (w + by_default > n) return REPLICATE_DEFAULT;
    return w + n / 2 + 1 > n ? REPLICATE_QUORUM : REPLICATE_ALL;
}

/* Nobody waits for it any more. */
static bool
is_over(const struct flush *f)
{
    const struct session *s = f->x->session;
    return s->conn == NULL || s->closing || f->x->shard->draining;
}

MAY_YIELD static status
find(struct flush *f)
{
    struct shard *shard = f->x->shard;
    f->keys.size = 0;
    f->full = false;
    while (!f->scan.ended && !f->full) {
        f->scan.deadline_ns = io_now_ns() + shard->config->cluster_timeout_ms * NS_PER_MS;
        status st = cluster_scan_page(shard->cluster, &f->scan);
        if (f->no_memory) st = ST_NO_MEMORY;
        if (ok(st)) {
            f->patience_ns = io_now_ns() + PATIENCE_NS;
            if (is_over(f)) return ST_CLOSED;
            continue;
        }
        if (!status_is(st, ST_UNAVAILABLE) || io_now_ns() >= f->patience_ns || is_over(f))
            return st;
        fiber_sleep_ns(RETRY_NS);
    }
    return ST_OK;
}

/* ---- deleting ---- */

static u64
token_at(const struct flush *f, size_t at)
{
    return load_u64(f->keys.data + at);
}

static struct bytes
key_at(const struct flush *f, size_t at)
{
    return BYTES(f->keys.data + at + KEY_HEAD, load_u16(f->keys.data + at + 8));
}

/* How many keys from there on make a batch. */
static u32
batch_keys(const struct flush *f, size_t at, size_t *end_out)
{
    u32 partitions = f->x->shard->server->layout.partition_count;
    u32 partition = token_partition(token_at(f, at), partitions), count = 0;
    do {
        at += KEY_HEAD + key_at(f, at).size;
        count++;
    } while (at < f->keys.size && count < (f->siblings ? 1 : BATCH_KEYS) &&
             token_partition(token_at(f, at), partitions) == partition);
    *end_out = at;
    return count;
}

/* false: no place or no memory now. */
static bool
start(struct flush *f, size_t at)
{
    struct exec *x = f->x;
    struct shard *shard = x->shard;
    u64 token = token_at(f, at);
    size_t end;
    u32 count = batch_keys(f, at, &end);
    shard->args.size = 0;
    if (!buf_reserve(&shard->args, (count + 1) * sizeof(struct bytes))) return false;
    struct bytes *args = (struct bytes *)(void *)shard->args.data;
    args[0] = BYTES_LITERAL("unlink");
    for (u32 i = 1; i <= count; i++) {
        args[i] = key_at(f, at);
        at += KEY_HEAD + args[i].size;
    }
    struct request *request = request_new(shard, f->command, args, count + 1, count, 0);
    if (request == NULL) return false;
    request->keyspace = f->scan.keyspace;
    request->blind = !f->siblings;
    request->level = f->write_level;
    request->connected_ns = x->session->created_ns;
    request->work.flow = x->session->id;
    request->waiter = &f->wake;
    if (!route_start(request, token)) {
        request_free(request);
        return false;
    }
    f->requests[f->count] = request;
    f->ends[f->count++] = end;
    return true;
}

/* Waits for those that were started. How far all is deleted; *why: of the first that failed. */
MAY_YIELD static size_t
settle(struct flush *f, size_t at, status *why)
{
    bool failed = false;
    for (u32 i = 0; i < f->count; i++) {
        struct request *request = f->requests[i];
        request_wait(request);
        struct bytes reply = request_reply(request);
        bool done = !request->unknown && reply.size != 0 && reply.data[0] == ':';
        f->x->wrote |= done || request->unknown || status_is(request->failure, ST_UNKNOWN_OUTCOME);
        if (!done && !failed) *why = ok(request->failure) ? ST_UNKNOWN_OUTCOME : request->failure;
        failed |= !done;
        if (!failed) at = f->ends[i];
        request_free(request);
    }
    f->count = 0;
    if (failed) MARK("server.flush.again");
    return at;
}

MAY_YIELD static status
delete_found(struct flush *f)
{
    for (size_t at = 0; at < f->keys.size;) {
        status why = ST_NO_MEMORY;
        size_t from = at;
        for (size_t next = at; next < f->keys.size && f->count < BATCHES_MAX;
             next = f->ends[f->count - 1])
            if (!start(f, next)) break;
        at = settle(f, at, &why);
        if (is_over(f)) return ST_CLOSED;
        if (at != from) {
            f->patience_ns = io_now_ns() + PATIENCE_NS;
            continue;
        }
        if (io_now_ns() >= f->patience_ns) return why;
        fiber_sleep_ns(RETRY_NS);
    }
    return ST_OK;
}

/* ---- all of it ---- */

MAY_YIELD static status
flush_keyspace(struct flush *f, u16 number)
{
    const struct topology *topology = cluster_topology(f->x->shard->cluster);
    const struct topology_keyspace *keyspace = &topology->keyspaces[number];
    if (!keyspace->used) return ST_OK;
    f->siblings = keyspace->conflict == CONFLICT_SIBLINGS;
    f->write_level = level_of(keyspace, keyspace->write_quorum);
    if (f->x->session->level == REPLICATE_ALL) f->write_level = REPLICATE_ALL;
    f->scan = (struct cluster_scan){.keyspace = number,
                                    .level = level_of(keyspace, keyspace->read_quorum),
                                    .bytes_max = PAGE_BYTES,
                                    .token_last = UINT64_MAX,
                                    .each = each_key,
                                    .arg = f};
    f->patience_ns = io_now_ns() + PATIENCE_NS;
    status st = ST_OK;
    while (ok(st) && !f->scan.ended) {
        st = find(f);
        if (ok(st)) st = delete_found(f);
    }
    return st;
}

/* One that is not known here may have been made, and have keys. */
MAY_YIELD static status
keyspaces_know(const struct exec *x, u16 first, u16 last)
{
    struct cluster_shard *cluster = x->shard->cluster;
    if (cluster_topology(cluster) == NULL) return ST_UNAVAILABLE;
    for (u16 keyspace = first; keyspace <= last; keyspace++)
        if (!replicate_knows(cluster->replicator, keyspace))
            return cluster_topology_renew(cluster, io_now_ns() + PATIENCE_NS);
    return ST_OK;
}

MAY_YIELD void
flush_cluster(struct exec *x, u16 first, u16 last)
{
    struct flush *f = (struct flush *)(void *)exec_alloc(x, sizeof(*f));
    if (f == NULL) return;
    memset(f, 0, sizeof(*f));
    f->x = x;
    f->command = command_find(BYTES_LITERAL("unlink"));
    fiber_queue_init(&f->wake);
    buf_init(&f->keys, x->budget);
    status st = keyspaces_know(x, first, last);
    for (u16 keyspace = first; keyspace <= last && ok(st); keyspace++)
        st = flush_keyspace(f, keyspace);
    buf_deinit(&f->keys);
    if (ok(st))
        resp_ok(x->reply);
    else if (x->wrote)
        resp_error(x->reply, "UNKNOWN Some keys are deleted, and others are not: flush again");
    else
        exec_fail(x, st);
}
