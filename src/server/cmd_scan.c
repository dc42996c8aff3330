/* SPDX-License-Identifier: MIT
 *
 * cmd_scan.c -- the commands that read whole keyspaces: SCAN, KEYS, RANDOMKEY, DBSIZE. They run on
 * a fiber of the connection's shard and ask the shards one after another.
 *
 * SCAN's cursor, and which keys a call returns: scan_page.h.
 *
 * KEYS streams from one instant of all shards (cut.h). RESP wants the number of elements first, so
 * the snapshots are read twice: counted, then sent. Both times expiry is judged by that instant, so
 * that a key which expires in between is no gap in the reply.
 *
 * In a cluster the keys come from quorums of replicas (cluster_scan in cluster.h), page by page.
 * KEYS, DBSIZE and RANDOMKEY are of no one instant there.
 */
#include "base/fault.h"
#include "base/scan_place.h"
#include "cluster/cluster.h"
#include "server/cmd.h"
#include "server/cut.h"
#include "server/glob.h"
#include "server/scan_page.h"
#include "server/session.h"

/* Keys looked at in one call, whatever COUNT says. */
#define SCAN_COUNT_MAX 65536u
/* For the keys of one rank, of which all but a few are there to be a nuisance. */
#define SCAN_MEMORY_MAX (256u << 20)
/* Entries that the shard of a SCAN's keys reads before it asks whether somebody still waits. */
#define SCAN_STEP 16384u
/* Entries that were deleted or have expired: it passes over so many of them before it asks, and
 * after some such steps, in some 100 ms, a call answers with what it has. */
#define PASSED_STEP       (64u << 10)
#define SCAN_PASSED_STEPS 4u
/* RANDOMKEY looks at so many places, and at one of each shard at least; then it goes through all. */
#define RANDOM_PLACES 16u
/* Keys travel between shards in pieces. */
#define PIECE_BYTES (64u << 10)
/* KEYS sends its reply in these. It has the memory for one from the beginning, so that it need not
 * end in the middle for want of it. */
#define SEND_BYTES (16u << 10)
#define BULK_BYTES (LIMIT_KEY_BYTES + 16u) /* "$1024\r\n", the key, "\r\n" */
/* What other shards' stores need for a piece comes back. */
#define PIECE_RETRY_NS    (5 * NS_PER_MS)
#define PIECE_PATIENCE_NS (60 * NS_PER_S)

/* ---- pieces of keys, for KEYS ---- */

/* In: where to go on. Out: keys as u16 size and bytes, and where to go on next. */
struct piece {
    u16 keyspace;
    struct scan_place place;
    struct bytes pattern; /* data NULL: all */
    struct lsm_snapshot *snapshot;
    bool count_only;
    u8 *data;
    u32 size, used;
    u64 matched;
    u32 looked;
    bool end; /* of this shard's tokens */
    status st;
};

static bool
may_pass(status st)
{
    return status_is(st, ST_NO_MEMORY) || status_is(st, ST_OVERLOADED);
}

/* On the shard that owns its place. */
MAY_YIELD static void
read_piece(void *arg)
{
    struct piece *piece = arg;
    struct shard *shard = shard_self();
    piece->used = 0;
    piece->looked = 0;
    piece->end = false;
    struct lsm_scan *scan;
    piece->st = lsm_scan_open(shard->lsm, piece->snapshot, piece->keyspace, piece->place.token,
                              scan_place_key(&piece->place), shard->token_last, &scan);
    if (!ok(piece->st)) return;
    lsm_scan_freeze_clock(scan); /* the passes must agree */
    lsm_scan_step(scan, PASSED_STEP);
    while (piece->looked < PASSED_STEP) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        piece->st = lsm_scan_next(scan, false, &token, &key, &value);
        if (status_is(piece->st, ST_END)) {
            piece->st = ST_OK;
            piece->end = true;
            break;
        }
        if (status_is(piece->st, ST_PAUSED)) {
            piece->st = ST_OK;
            scan_place_behind(&piece->place, token, key);
            break;
        }
        if (!ok(piece->st)) break;
        if (scan_place_is(&piece->place, token, key)) continue;
        if (!piece->count_only && piece->size - piece->used < 2 + key.size) break;
        piece->looked++;
        if (piece->pattern.data == NULL || glob_match(piece->pattern, key, false)) {
            piece->matched++;
            if (!piece->count_only) {
                store_u16(piece->data + piece->used, (u16)key.size);
                memcpy(piece->data + piece->used + 2, key.data, key.size);
                piece->used += 2 + (u32)key.size;
            }
        }
        scan_place_behind(&piece->place, token, key);
        if (fiber_should_yield()) fiber_yield();
    }
    lsm_scan_close(scan);
    /* What was found is good, and the next piece goes on behind it. */
    if (may_pass(piece->st) && piece->looked != 0) piece->st = ST_OK;
}

static struct piece *
new_piece(struct exec *x)
{
    struct piece *piece = (struct piece *)(void *)exec_alloc(x, sizeof(*piece) + PIECE_BYTES);
    if (piece == NULL) return NULL;
    memset(piece, 0, sizeof(*piece));
    piece->keyspace = x->keyspace;
    piece->data = (u8 *)(piece + 1);
    piece->size = PIECE_BYTES;
    return piece;
}

/* ---- SCAN ---- */

/* A call of SCAN. */
struct scan_call {
    struct scan_page page;
    u16 keyspace;
    struct scan_place place;
    u64 end; /* it has read all of the buckets before this one */
    bool ended;
    u32 pauses; /* steps that have passed over nothing but dead keys at last */
    status st;
};

static void
scan_call_begin(struct scan_call *call, u64 cursor, i64 count, struct bytes pattern, bool none,
                u8 *data, u32 size)
{
    scan_page_init(&call->page, cursor, (u64)MIN(count, (i64)SCAN_COUNT_MAX), data, size);
    call->page.pattern = pattern;
    call->page.none = none;
    scan_place_before(&call->place, scan_page_token(&call->page));
    call->ended = false;
    call->pauses = 0;
}

static void
reply_scan(struct exec *x, struct scan_call *call)
{
    const struct scan_page *page = &call->page;
    u64 next = scan_page_end(&call->page, call->end);
    char text[24];
    size_t at = sizeof(text);
    do {
        text[--at] = (char)('0' + next % 10);
        next /= 10;
    } while (next != 0);
    resp_array(x->reply, 2);
    resp_bulk(x->reply, BYTES(text + at, sizeof(text) - at));
    resp_array(x->reply, page->keys);
    for (u32 i = 0; i < page->used;) {
        u32 size = load_u16(page->data + i);
        resp_bulk(x->reply, BYTES(page->data + i + 2, size));
        i += 2 + size;
    }
}

/* The last token that is to be read on this shard without asking anew. In the middle of a bucket
 * that is its end: most likely the page is full there. */
static u64
scan_token_last(const struct scan_call *call, const struct shard *shard)
{
    bool within = call->page.from != 0 && scan_bucket(call->place.token) == call->page.first;
    return within ? scan_bucket_token(call->page.first + 1) - 1 : shard->token_last;
}

/* On the shard that owns its place. */
MAY_YIELD static void
scan_step(void *arg)
{
    struct scan_call *call = arg;
    struct shard *shard = shard_self();
    u64 token_last = scan_token_last(call, shard);
    struct lsm_scan *scan;
    call->st = lsm_scan_open(shard->lsm, NULL, call->keyspace, call->place.token,
                             scan_place_key(&call->place), token_last, &scan);
    if (!ok(call->st)) return;
    if (token_last != shard->token_last || call->pauses != 0) lsm_scan_much(scan);
    lsm_scan_step(scan, PASSED_STEP);
    u64 seen = lsm_seq_last(shard->lsm), shown = 0;
    for (u32 step = 0; step < SCAN_STEP; step++) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        call->st = lsm_scan_next(scan, false, &token, &key, &value);
        if (status_is(call->st, ST_PAUSED)) {
            call->st = ST_OK;
            scan_place_behind(&call->place, token, key);
            call->pauses++;
            break;
        }
        if (!ok(call->st)) break;
        if (scan_place_is(&call->place, token, key)) continue;
        if (!scan_page_take(&call->page, token, key)) {
            call->end = scan_bucket(token);
            break;
        }
        shown = MAX(shown, value.seq);
        scan_place_behind(&call->place, token, key);
        if (fiber_should_yield()) fiber_yield();
    }
    lsm_scan_close(scan);
    if (status_is(call->st, ST_END)) {
        call->st = ST_OK;
        scan_place_before(&call->place, token_last + 1);
        call->ended = token_last == UINT64_MAX;
        call->end = call->ended ? SCAN_BUCKETS : scan_bucket(call->place.token);
    }
    if (ok(call->st)) call->st = durable_wait_scanned(shard, seen, shown);
}

/* ---- in a cluster ---- */

#define CLUSTER_PAGE_BYTES (64u << 10)
/* Somebody has just failed: others are asked once that is known. */
#define CLUSTER_RETRY_NS    (50 * NS_PER_MS)
#define CLUSTER_PATIENCE_NS (1500 * NS_PER_MS)

static void
reply_no_key(struct exec *x)
{
    MARK("server.randomkey.dead_passed");
    resp_error(x->reply, "BUSY No key was found among many that were deleted or have expired, try "
                         "again later");
}

struct cluster_keys {
    struct exec *x;
    struct cluster_scan scan;
    struct resp_writer found; /* keys that match */
    struct bytes pattern;     /* data NULL: all */
    u64 matched;
    struct scan_call *call; /* SCAN; NULL: something else */
    u64 until_ns;           /* of SCAN: then it stops with what it has */
    bool gives_up;          /* RANDOMKEY: at until_ns */
    bool stopped;
    bool count_only;
};

static struct cluster_keys *
cluster_keys_new(struct exec *x, bool (*each)(void *arg, const struct cluster_entry *entry),
                 struct buf *found)
{
    struct cluster_keys *keys = (struct cluster_keys *)(void *)exec_alloc(x, sizeof(*keys));
    if (keys == NULL) return NULL;
    memset(keys, 0, sizeof(*keys));
    keys->x = x;
    keys->scan.keyspace = x->keyspace;
    keys->scan.level = x->level;
    keys->scan.bytes_max = CLUSTER_PAGE_BYTES;
    keys->scan.token_last = UINT64_MAX;
    keys->scan.each = each;
    keys->scan.arg = keys;
    keys->found = (struct resp_writer){.out = found, .version = x->reply->version};
    return keys;
}

/* SCAN only: whether it may end where it is now. */
static bool
cluster_keys_may_end(const struct cluster_keys *keys)
{
    return keys->call != NULL &&
           scan_page_may_end(&keys->call->page, scan_bucket(keys->scan.place.token));
}

/* Until all has been looked at, or each has stopped it, or it may end and its time is over. false:
 * the run has failed. */
MAY_YIELD static bool
cluster_keys_read(struct cluster_keys *keys)
{
    struct exec *x = keys->x;
    u64 patience_ns = io_now_ns() + CLUSTER_PATIENCE_NS;
    while (!keys->scan.ended && !keys->stopped) {
        if (x->session->conn == NULL) return false; /* nobody waits for it any more */
        u64 now = io_now_ns();
        keys->scan.deadline_ns = now + x->shard->config->cluster_timeout_ms * NS_PER_MS;
        if (cluster_keys_may_end(keys)) {
            keys->scan.deadline_ns = keys->until_ns;
            if (now >= keys->until_ns) {
                MARK("server.scan.time_over");
                keys->call->end = scan_bucket(keys->scan.place.token);
                keys->stopped = true;
                break;
            }
        }
        if (keys->gives_up && now >= keys->until_ns) {
            reply_no_key(x);
            return false;
        }
        u64 bucket = scan_bucket(keys->scan.place.token);
        u64 looked = keys->call != NULL ? keys->call->page.looked : 0;
        status st = cluster_scan_page(x->shard->cluster, &keys->scan);
        if (x->stopped) return false;
        if (keys->found.failed) st = ST_NO_MEMORY;
        if (ok(st)) {
            /* Within one bucket all is read, however little of it is wanted; and of what was
             * deleted a page of a few keys shows nothing. */
            bool more = keys->call == NULL || scan_bucket(keys->scan.place.token) == bucket ||
                        keys->call->page.looked == looked;
            if (more) keys->scan.bytes_max = MIN(2 * keys->scan.bytes_max, CLUSTER_PAGE_BYTES);
            patience_ns = io_now_ns() + CLUSTER_PATIENCE_NS;
            continue;
        }
        bool late = cluster_keys_may_end(keys) && io_now_ns() >= keys->until_ns;
        if (!status_is(st, ST_UNAVAILABLE) || (io_now_ns() >= patience_ns && !late)) {
            exec_fail(x, st);
            return false;
        }
        if (!late) fiber_sleep_ns(CLUSTER_RETRY_NS);
    }
    return true;
}

static bool
key_matches(const struct cluster_keys *keys, struct bytes key)
{
    return keys->pattern.data == NULL || glob_match(keys->pattern, key, false);
}

static bool
each_scanned(void *arg, const struct cluster_entry *entry)
{
    struct cluster_keys *keys = arg;
    struct scan_call *call = keys->call;
    if (!scan_page_take(&call->page, entry->token, entry->key)) {
        call->end = scan_bucket(entry->token);
        keys->stopped = true;
        return false;
    }
    return true;
}

/* false: the run has failed. */
MAY_YIELD static bool
scan_cluster(struct exec *x, struct scan_call *call)
{
    struct cluster_keys *keys = cluster_keys_new(x, each_scanned, NULL);
    if (keys == NULL) return false;
    keys->call = call;
    scan_place_before(&keys->scan.place, call->place.token);
    keys->scan.bytes_max = (u32)MIN(CLUSTER_PAGE_BYTES, 1024 + 64 * call->page.looked_max);
    keys->until_ns = io_now_ns() + x->shard->config->cluster_timeout_ms * NS_PER_MS;
    if (!cluster_keys_read(keys)) return false;
    if (!keys->stopped) call->end = SCAN_BUCKETS;
    return true;
}

static bool
each_matching(void *arg, const struct cluster_entry *entry)
{
    struct cluster_keys *keys = arg;
    struct exec *x = keys->x;
    if (!key_matches(keys, entry->key)) return true;
    keys->matched++;
    if (keys->count_only) return true;
    resp_bulk(&keys->found, entry->key);
    u64 limit = x->shard->config->client_output_limit_bytes;
    if (limit == 0 || keys->found.out->size <= limit) return true;
    exec_fail(x, ST_TOO_LARGE);
    return false;
}

MAY_YIELD static void
keys_cluster(struct exec *x)
{
    struct buf found;
    buf_init(&found, x->budget);
    struct cluster_keys *keys = cluster_keys_new(x, each_matching, &found);
    if (keys != NULL) {
        if (!(x->args[1].size == 1 && x->args[1].data[0] == '*')) keys->pattern = x->args[1];
        if (cluster_keys_read(keys)) {
            resp_array(x->reply, (u32)keys->matched);
            if (found.size != 0 && !buf_append(x->reply->out, found.data, found.size))
                x->reply->failed = true;
        }
    }
    buf_deinit(&found);
}

MAY_YIELD static void
dbsize_cluster(struct exec *x)
{
    struct cluster_keys *keys = cluster_keys_new(x, each_matching, NULL);
    if (keys == NULL) return;
    keys->count_only = true;
    if (cluster_keys_read(keys)) resp_integer(x->reply, (i64)keys->matched);
}

static bool
each_random(void *arg, const struct cluster_entry *entry)
{
    struct cluster_keys *keys = arg;
    resp_bulk(keys->x->reply, entry->key);
    keys->stopped = true;
    return false;
}

/* From a random token on; when nothing lies behind it, from the beginning. */
MAY_YIELD static void
randomkey_cluster(struct exec *x)
{
    struct cluster_keys *keys = cluster_keys_new(x, each_random, NULL);
    if (keys == NULL) return;
    keys->scan.bytes_max = 1024;
    scan_place_before(&keys->scan.place, io_random());
    keys->gives_up = true;
    keys->until_ns = io_now_ns() + x->shard->config->cluster_timeout_ms * NS_PER_MS;
    if (!cluster_keys_read(keys)) return;
    if (!keys->stopped) {
        keys->scan.ended = false;
        scan_place_before(&keys->scan.place, 0);
        if (!cluster_keys_read(keys)) return;
    }
    if (!keys->stopped) resp_null(x->reply);
}

/* ---- SCAN, the command ---- */

/* On a node by itself. false: the run has failed. */
MAY_YIELD static bool
scan_shards(struct exec *x, struct scan_call *call)
{
    struct scan_page *page = &call->page;
    do { /* on into the next shard while there is something left to look at */
        if (x->session->conn == NULL) return false; /* nobody waits for it any more */
        u32 owner = shard_of_token(x->shard->server, call->place.token);
        status st = io_shard_call(owner, fiber_class_self(), scan_step, call);
        if (ok(st)) st = call->st;
        if (!ok(st)) {
            exec_fail(x, st);
            return false;
        }
        u64 bucket = scan_bucket(call->place.token);
        if (call->pauses >= SCAN_PASSED_STEPS && !page->stopped && !call->ended &&
            scan_page_may_end(page, bucket)) {
            MARK("server.scan.dead_passed");
            call->end = bucket;
            page->stopped = true;
        }
    } while (!page->stopped && !call->ended &&
             !(call->place.key_size == 0 && scan_page_is_full(page)));
    return true;
}

/* Memory for its keys: as much as is of use, or less when that is not there. */
static u8 *
scan_memory(struct exec *x, u32 *size)
{
    while (*size > SCAN_PAGE_BYTES_MIN && budget_available(x->budget) / 4 < *size)
        *size /= 2;
    return exec_alloc(x, *size);
}

/* All keys of one rank must fit. Twice as much: the next try begins anew. */
static u8 *
scan_memory_more(struct exec *x, u32 *size)
{
    MARK("server.scan.rank_too_large");
    *size *= 2;
    if (*size <= SCAN_MEMORY_MAX) return exec_alloc(x, *size);
    exec_fail(x, ST_TOO_LARGE);
    return NULL;
}

MAY_YIELD void
cmd_scan(struct exec *x)
{
    u64 cursor;
    if (!number_parse_cursor(x->args[1], &cursor)) {
        resp_error(x->reply, "ERR invalid cursor");
        return;
    }
    i64 count = 10;
    struct bytes pattern = BYTES(NULL, 0);
    bool other_type = false;
    for (u32 i = 2; i < x->arg_count; i += 2) {
        bool more = i + 1 < x->arg_count;
        if (more && cmd_arg_is(x, i, "count")) {
            if (!cmd_arg_i64(x, i + 1, &count)) return;
            if (count < 1) {
                resp_error(x->reply, CMD_SYNTAX);
                return;
            }
        } else if (more && cmd_arg_is(x, i, "match")) {
            pattern = x->args[i + 1];
            if (pattern.size == 1 && pattern.data[0] == '*') pattern = BYTES(NULL, 0);
        } else if (more && cmd_arg_is(x, i, "type")) {
            other_type = !cmd_arg_is(x, i + 1, "string");
        } else {
            resp_error(x->reply, CMD_SYNTAX);
            return;
        }
    }
    if (!cmd_pattern_fits(x, pattern)) return;
    struct scan_call *call = (struct scan_call *)(void *)exec_alloc(x, sizeof(*call));
    if (call == NULL) return;
    u32 size = scan_page_size(cursor, (u64)MIN(count, (i64)SCAN_COUNT_MAX));
    if (BUGGIFY("server.scan.small_page")) size = SCAN_PAGE_BYTES_LEAST;
    u8 *data = scan_memory(x, &size);
    while (data != NULL) {
        scan_call_begin(call, cursor, count, pattern, other_type, data, size);
        call->keyspace = x->keyspace;
        bool good = x->shard->cluster != NULL ? scan_cluster(x, call) : scan_shards(x, call);
        if (!good) return;
        if (!call->page.too_small) break;
        data = scan_memory_more(x, &size);
    }
    if (data == NULL) return;
    reply_scan(x, call);
}

/* ---- KEYS ---- */

/* The memory of KEYS. */
struct keys {
    struct piece *piece;
    struct cut *cut;
    struct buf out; /* SEND_BYTES of the reply */
};

MAY_YIELD static status
next_piece(struct exec *x, struct piece *piece, u32 shard)
{
    u64 deadline_ns = io_now_ns() + PIECE_PATIENCE_NS;
    for (;;) {
        status st = io_shard_call(shard, fiber_class_self(), read_piece, piece);
        if (ok(st)) st = piece->st;
        if (!may_pass(st) || x->session->conn == NULL || io_now_ns() >= deadline_ns) return st;
        MARK("server.keys.memory_awaited");
        fiber_sleep_ns(PIECE_RETRY_NS);
    }
}

/* Reads all keys of the cut in pieces; each is given to each_piece. */
MAY_YIELD static status
read_all(struct exec *x, struct keys *keys, bool (*each_piece)(struct exec *x, struct keys *keys))
{
    const struct server *server = x->shard->server;
    struct piece *piece = keys->piece;
    for (u32 i = 0; i < server->shard_count; i++) {
        scan_place_before(&piece->place, server->layout.shards[i].token_first);
        piece->snapshot = keys->cut->snapshots[i];
        do {
            status st = next_piece(x, piece, i);
            if (!ok(st)) return st;
            if (!each_piece(x, keys)) return ST_CLOSED;
        } while (!piece->end);
    }
    return ST_OK;
}

static bool
count_piece(struct exec *x, struct keys *keys)
{
    (void)keys;
    return x->session->conn != NULL;
}

MAY_YIELD static bool
send_out(struct exec *x, struct buf *out)
{
    bool there = session_stream_bytes(x, buf_bytes(out));
    out->size = 0;
    work_return(&x->shard->workers, x->work);
    return there && x->session->conn != NULL && !x->session->closing;
}

MAY_YIELD static bool
send_piece(struct exec *x, struct keys *keys)
{
    struct resp_writer w = {.out = &keys->out, .version = x->reply->version};
    const struct piece *piece = keys->piece;
    for (u32 at = 0; at < piece->used;) {
        u32 size = load_u16(piece->data + at);
        if (SEND_BYTES - keys->out.size < BULK_BYTES && !send_out(x, &keys->out)) return false;
        resp_bulk(&w, BYTES(piece->data + at + 2, size));
        at += 2 + size;
    }
    CHECK(!w.failed); /* there was room */
    return true;
}

/* Once this has begun to send, only the end of the connection says that the reply is not whole. */
MAY_YIELD static status
send_keys(struct exec *x, struct keys *keys, u32 counted)
{
    struct piece *piece = keys->piece;
    struct resp_writer w = {.out = &keys->out, .version = x->reply->version};
    piece->count_only = false;
    piece->matched = 0;
    resp_array(&w, counted);
    status st = read_all(x, keys, send_piece);
    if (ok(st) && keys->out.size != 0 && !send_out(x, &keys->out)) st = ST_CLOSED;
    if (ok(st) && piece->matched != counted) st = ST_CORRUPT; /* cannot be: see above */
    if (ok(st) || x->session->conn == NULL) return st;
    session_abort(x->session);
    return ST_OK;
}

MAY_YIELD void
cmd_keys(struct exec *x)
{
    if (!cmd_pattern_fits(x, x->args[1])) return;
    if (x->shard->cluster != NULL) {
        keys_cluster(x);
        return;
    }
    struct keys keys = {.piece = new_piece(x)};
    keys.cut = (struct cut *)(void *)exec_alloc(x, sizeof(*keys.cut));
    if (keys.piece == NULL || keys.cut == NULL) return;
    buf_init(&keys.out, x->budget);
    status st = ST_NO_MEMORY;
    if (buf_reserve(&keys.out, SEND_BYTES)) st = cut_open(x->shard, keys.cut);
    if (!ok(st)) goto done;
    exec_memory_had(x); /* from here on it waits for its client (K3 of work.h) */

    if (!(x->args[1].size == 1 && x->args[1].data[0] == '*')) keys.piece->pattern = x->args[1];
    keys.piece->count_only = true;
    st = read_all(x, &keys, count_piece);
    u64 counted = keys.piece->matched;
    if (ok(st) && counted > UINT32_MAX) st = ST_TOO_LARGE;
    if (ok(st)) st = send_keys(x, &keys, (u32)counted);
    cut_close(keys.cut);

done:
    buf_deinit(&keys.out);
    if (!ok(st) && !status_is(st, ST_CLOSED)) exec_fail(x, st);
}

/* ---- one key, all keys ---- */

struct random_call {
    u16 keyspace;
    bool walks; /* from the beginning of the shard on, in steps; else it looks at a random place */
    bool begun;
    struct scan_place place; /* walks: where it is; in the end the key that was found */
    status st;               /* PAUSED: it has passed over dead keys only */
};

MAY_YIELD static status
walk_on(struct random_call *call, const struct shard *shard, u64 *shown)
{
    struct lsm_scan *scan;
    if (!call->begun) scan_place_before(&call->place, shard->token_first);
    call->begun = true;
    status st = lsm_scan_open(shard->lsm, NULL, call->keyspace, call->place.token,
                              scan_place_key(&call->place), shard->token_last, &scan);
    if (!ok(st)) return st;
    lsm_scan_much(scan);
    lsm_scan_step(scan, PASSED_STEP);
    u64 token;
    struct bytes key;
    struct lsm_value value;
    st = lsm_scan_next(scan, false, &token, &key, &value);
    if (ok(st) || status_is(st, ST_PAUSED)) scan_place_behind(&call->place, token, key);
    if (ok(st)) *shown = value.seq;
    lsm_scan_close(scan);
    return status_is(st, ST_END) ? ST_NOT_FOUND : st;
}

MAY_YIELD static void
random_here(void *arg)
{
    struct random_call *call = arg;
    struct shard *shard = shard_self();
    u64 shown = 0;
    if (call->walks) {
        call->st = walk_on(call, shard, &shown);
    } else {
        size_t size = 0;
        call->st = lsm_random_key(shard->lsm, call->keyspace, io_random(), PASSED_STEP,
                                  call->place.key, &size, &shown);
        call->place.key_size = (u16)size;
    }
    if (!ok(call->st) && !status_is(call->st, ST_NOT_FOUND)) return;
    status safe = durable_wait_scanned(shard, lsm_seq_last(shard->lsm), shown);
    if (!ok(safe)) call->st = safe;
}

/* Where there is little but dead keys at random places, the first one that is alive: few are. */
MAY_YIELD void
cmd_randomkey(struct exec *x)
{
    if (x->shard->cluster != NULL) {
        randomkey_cluster(x);
        return;
    }
    struct random_call *call = (struct random_call *)(void *)exec_alloc(x, sizeof(*call));
    if (call == NULL) return;
    memset(call, 0, sizeof(*call));
    call->keyspace = x->keyspace;
    u32 count = x->shard->server->shard_count;
    u32 first = (u32)(io_random() % count);
    call->st = ST_NOT_FOUND;
    u32 places = RANDOM_PLACES;
    for (u32 i = 0; i < count && status_is(call->st, ST_NOT_FOUND); i++) {
        call->walks = call->begun = false;
        do {
            if (x->session->conn == NULL) return; /* nobody waits for it any more */
            status st = io_shard_call((first + i) % count, FIBER_FOREGROUND, random_here, call);
            if (!ok(st)) call->st = st;
            if (places > 0) places--;
            call->walks = places == 0;
        } while (status_is(call->st, ST_PAUSED));
    }
    if (ok(call->st))
        resp_bulk(x->reply, scan_place_key(&call->place));
    else if (status_is(call->st, ST_NOT_FOUND))
        resp_null(x->reply);
    else
        exec_fail(x, call->st);
}

struct count_call {
    u16 keyspace;
    u64 count;
    status st;
};

MAY_YIELD static void
count_here(void *arg)
{
    struct count_call *call = arg;
    struct shard *shard = shard_self();
    u64 count = 0, seen = lsm_seq_last(shard->lsm);
    status st = lsm_count_exact(shard->lsm, call->keyspace, &count);
    if (ok(st)) st = durable_wait_scanned(shard, seen, 0);
    call->count += count;
    if (ok(call->st)) call->st = st;
}

MAY_YIELD void
cmd_dbsize(struct exec *x)
{
    if (x->shard->cluster != NULL) {
        dbsize_cluster(x);
        return;
    }
    struct count_call call = {.keyspace = x->keyspace, .st = ST_OK};
    status st = shard_for_all(x->shard, count_here, &call);
    if (ok(call.st)) call.st = st;
    if (ok(call.st))
        resp_integer(x->reply, (i64)call.count);
    else
        exec_fail(x, call.st);
}
