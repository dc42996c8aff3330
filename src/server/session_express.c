/* SPDX-License-Identifier: MIT
 *
 * session_express.c -- the express lane: runs of plain GETs and SETs of this shard's keys that need
 * nothing but memory, which is nearly all that a busy client sends. What a whole struct call does
 * for one command is done here for up to 32 at once, and that in the order which lets the cache
 * misses of one overlap with the work for the others:
 *
 *     parse all, hash, ask for roots  ->  for leaves and rows  ->  for records  ->  read and write
 *
 * All of it happens within one turn, without a yield, so nobody sees a state between. Within it the
 * SETs become one batch, behind the GETs; that is the same as one after the other because the lane
 * ends before a key that a SET of it has named (E1).
 *
 * Whatever is unusual ends the lane in front of it, and the long way (session_resp.c) takes it from
 * there: another command or form, a key of another shard, a key that is locked, what would wait,
 * replies under way, transactions, monitors, a slow log that wants everything. Only a GET in front
 * that has to wait for the disk becomes a request right here, as it would there.
 *
 *   E1  No key is written twice, or read after it was written, in one go. Told by some bits of the
 *       keys' hashes: a false alarm only ends the go.
 *   E2  Replies and accounts are those of the long way. The time of one command is its share; only
 *       the slow log asks how long all took.
 *   E3  What has no reply in the buffer has no effect: the reply comes first.
 */
#include "server/session.h"

#include <stdio.h>

#include "base/fault.h"
#include "server/command_table.h"

#define EXPRESS_MAX 32u /* bits of a u32 */
/* Bytes of replies, and of writes, in one go. */
#define EXPRESS_BYTES (16u << 10)
/* E1: so many that 32 keys seldom meet. */
#define EXPRESS_BITS 1024u
/* A slow log that wants commands faster than this wants each one's own time. */
#define EXPRESS_SLOWLOG_US_MIN 1000

struct express {
    struct session *s;
    struct resp_plain requests[EXPRESS_MAX];
    struct lsm_aim aims[EXPRESS_MAX];
    u32 count;
    u32 sets;
    u32 done;       /* requests whose replies are in the buffer */
    u32 found;      /* a bit for each of them that is a GET and found its key */
    u32 first_set;  /* the first of those that is a SET */
    size_t set_at;  /* its reply's place */
    u64 seq;        /* what GETs told is safe with this number */
    size_t held_at; /* from here on replies wait for it */
    bool waits;     /* the one behind those is a GET that has to wait for the disk */
};

bool
session_may_express(const struct session *s)
{
    const struct shard *shard = s->shard;
    i64 slower_us = config_slowlog_us(shard->config);
    return shard->server->cluster == NULL && session_is_let_in(s) && s->conn != NULL &&
           !s->closing && list_empty(&s->pending) && s->stall == SESSION_RUNS &&
           !session_in_multi(s) && !s->reply_off && !s->reply_skip && !s->reply_skip_next &&
           shard->monitor_shards == 0 && !shard->store_failed && resp_parser_is_fresh(&s->parser) &&
           session_has_room(s, 2 * EXPRESS_BYTES) &&
           (slower_us < 0 || slower_us >= EXPRESS_SLOWLOG_US_MIN) &&
           shard->config->latency_monitor_threshold_ms == 0;
}

/* Takes requests from the front of data as long as they are plain, and ours. */
static void
take(struct express *e, struct bytes data)
{
    struct session *s = e->s;
    const struct server *server = s->shard->server;
    struct lsm *lsm = s->shard->lsm;
    size_t set_bytes = 0;
    u64 written[EXPRESS_BITS / 64] = {0}; /* E1: a bit for each key of a SET */
    while (e->count < EXPRESS_MAX) {
        struct resp_plain *request = &e->requests[e->count];
        if (!resp_parse_plain(data, request)) break;
        if (request->set) {
            set_bytes += request->size;
            if (set_bytes > EXPRESS_BYTES || s->shard->locks.held != 0) break;
        }
        struct lsm_aim *aim = &e->aims[e->count];
        aim->keyspace = s->keyspace;
        aim->token = hash_token_and_key(request->key, &aim->key_hash);
        if (shard_of_token(server, aim->token) != s->shard->index) break;
        u64 *word = &written[aim->key_hash % EXPRESS_BITS / 64], bit = 1ull << (aim->key_hash & 63);
        if ((*word & bit) != 0) break; /* E1 */
        if (request->set) *word |= bit;
        lsm_aim_1(lsm, aim);
        e->count++;
        data = BYTES(data.data + request->size, data.size - request->size);
    }
}

static bool
do_get(struct express *e, u32 i, struct resp_writer *w)
{
    struct session *s = e->s;
    struct lsm_value value;
    value.seq = 0;
    status st = lsm_get_aimed(s->shard->lsm, &e->aims[i], e->requests[i].key, &value);
    bool found = ok(st);
    e->waits = status_is(st, ST_WOULD_WAIT);
    if (!found && !status_is(st, ST_NOT_FOUND)) return false;
    if (found && value.value.size > EXPRESS_BYTES) return false;
    if (value.seq > e->seq && value.seq > lsm_durable_seq(s->shard->lsm)) {
        if (e->seq == 0) e->held_at = w->out->size;
        e->seq = value.seq;
    }
    if (found)
        resp_bulk(w, value.value);
    else
        resp_null(w);
    if (w->failed) return false;
    e->found |= (u32)found << i;
    return true;
}

static bool
do_set(struct express *e, u32 i, struct resp_writer *w)
{
    const struct resp_plain *request = &e->requests[i];
    struct lsm_batch *batch = &e->s->shard->batch;
    if (e->sets == 0) {
        lsm_batch_clear(batch);
        e->first_set = i;
        e->set_at = w->out->size;
    }
    resp_ok(w); /* E3 */
    if (w->failed ||
        !lsm_batch_put(batch, e->s->keyspace, e->aims[i].token, request->key, request->value, 0))
        return false;
    e->aims[e->sets++] = e->aims[i]; /* those of the batch; what stood there has been read */
    return true;
}

/* Runs those that were taken, in order, until one is for the long way. */
static void
run(struct express *e, struct resp_writer *w)
{
    const struct lsm *lsm = e->s->shard->lsm;
    for (u32 i = 0; i < e->count; i++)
        lsm_aim_2(lsm, &e->aims[i], e->requests[i].set);
    for (u32 i = 0; i < e->count; i++)
        lsm_aim_3(&e->aims[i], e->requests[i].set);
    for (; e->done < e->count && w->out->size < EXPRESS_BYTES; e->done++) {
        size_t before = w->out->size;
        bool set = e->requests[e->done].set;
        if (!(set ? do_set(e, e->done, w) : do_get(e, e->done, w))) {
            w->failed = false;
            w->out->size = before;
            break;
        }
    }
}

/* Makes the SETs visible, or takes everything from the first of them on back. */
static void
commit(struct express *e, struct resp_writer *w)
{
    struct shard *shard = e->s->shard;
    u64 seq = 0;
    status st = lsm_write_aimed(shard->lsm, &shard->batch, e->aims, &seq);
    if (!ok(st)) {
        MARK("server.express.taken_back");
        w->out->size = e->set_at;
        e->done = e->first_set;
        e->sets = 0;
        e->waits = false; /* that GET is not the one in front */
        e->found &= (u32)((1ull << e->done) - 1);
        if (e->held_at >= e->set_at) e->seq = 0; /* GETs behind it are taken back, too */
        return;
    }
    if (e->seq == 0 || e->set_at < e->held_at) e->held_at = e->set_at;
    e->seq = MAX(e->seq, seq);
}

/* One entry for all, with the time of all: nobody knows which of them took it, and the replies of
 * all came after it. */
static void
log_slow(const struct express *e, const struct command *command, u64 us)
{
    MARK("server.express.slow");
    const struct resp_plain *first = &e->requests[0];
    char more[48];
    struct bytes args[4] = {BYTES(first->set ? "SET" : "GET", 3), first->key};
    u32 count = 2;
    if (first->set) args[count++] = first->value;
    if (e->done > 1) {
        int n = snprintf(more, sizeof(more), "... (%u more commands at once)", e->done - 1);
        args[count++] = BYTES(more, (size_t)n);
    }
    session_log_slow(e->s, command, args, count, us);
}

static void
account(const struct express *e, u64 ns)
{
    struct session *s = e->s;
    struct shard *shard = s->shard;
    u32 gets = e->done - e->sets;
    u32 hits = (u32)__builtin_popcount(e->found);
    shard->stats->tried_inline += e->done;
    shard->stats->keyspace_hits += hits;
    shard->stats->keyspace_misses += gets - hits;
    const struct command *get = command_find(BYTES("get", 3));
    const struct command *set = command_find(BYTES("set", 3));
    u64 ns_each = ns / e->done;
    i64 slower_us = config_slowlog_us(shard->config);
    if (UNLIKELY(slower_us >= 0 && ns / NS_PER_US >= (u64)slower_us))
        log_slow(e, e->requests[0].set ? set : get, ns / NS_PER_US);
    if (gets != 0) shard_count_commands(shard, command_index(get), gets, ns_each);
    if (e->sets != 0) shard_count_commands(shard, command_index(set), e->sets, ns_each);
    s->commands += e->done;
    s->last_command = e->requests[e->done - 1].set ? set : get;
}

/* The GET in front goes on as a request. 0: there is no place for it. */
static size_t
wait_for_disk(const struct express *e, u64 *clock_ns)
{
    struct session *s = e->s;
    const struct resp_plain *first = &e->requests[0];
    CHECK(!first->set);
    const struct command *get = command_find(BYTES("get", 3));
    const struct bytes args[2] = {BYTES("GET", 3), first->key};
    struct request *request = request_new(s->shard, get, args, 2, 1, 0);
    if (request == NULL) return 0;
    request->session = s;
    request->key_hash = exec_key_hash(s->keyspace, first->key) | 1; /* as run_on_keys */
    request->keyspace = s->keyspace;
    request->level = s->level;
    request->resp = s->resp;
    request->start_ns = *clock_ns;
    s->last_command = get;
    list_push_back(&s->pending, &request->link);
    s->pending_count++;
    request_start(request);
    *clock_ns = io_clock_ns();
    return first->size;
}

size_t
session_express(struct session *s, struct bytes data, u64 *clock_ns, bool *waits)
{
    *waits = false;
    if (BUGGIFY("server.express.closed")) return 0;
    struct shard *shard = s->shard;
    struct express e;
    e.s = s;
    e.count = e.sets = e.done = e.found = e.first_set = 0;
    e.set_at = e.held_at = 0;
    e.seq = 0;
    e.waits = false;
    take(&e, data);
    if (e.count == 0) return 0;
    shard->reply.size = 0;
    struct resp_writer w = {.out = &shard->reply, .version = s->resp};
    run(&e, &w);
    if (e.sets != 0) commit(&e, &w);
    *waits = e.done == 0 && e.waits;
    if (*waits) return wait_for_disk(&e, clock_ns);
    if (e.done == 0) return 0;

    size_t size = 0;
    for (u32 i = 0; i < e.done; i++)
        size += e.requests[i].size;
    u64 end_ns = io_clock_ns();
    account(&e, end_ns > *clock_ns ? end_ns - *clock_ns : 0);
    *clock_ns = end_ns;
    struct bytes replies = buf_bytes(w.out);
    if (e.seq != 0 && e.held_at != 0) {
        session_write(s, BYTES(replies.data, e.held_at), 0);
        replies = BYTES(replies.data + e.held_at, replies.size - e.held_at);
    }
    session_write(s, replies, e.seq);
    return size;
}
