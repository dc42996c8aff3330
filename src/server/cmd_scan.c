/* SPDX-License-Identifier: MIT
 *
 * cmd_scan.c -- the commands that read whole keyspaces: SCAN, KEYS, RANDOMKEY, DBSIZE. They run on
 * a fiber of the connection's shard and ask the shards one after another.
 *
 * SCAN's cursor. Keys are ordered by token, so a cursor names a token: "every key in front of it
 * has been returned". A call ends only between two buckets of 2^12 tokens (so close together that
 * two keys share one by chance once in 2^52), and a cursor is the first token of a bucket: its
 * low 12 bits are 0. Keys of one hash tag share one token, so a long tag must be left in its
 * middle: the shard then remembers the last key in one of SCAN_POSITIONS places and answers the
 * bucket with the number of the place, 1 to 4095, in the low bits. When the place has been taken
 * by others since, the bucket starts again: keys may come twice, as SCAN allows, and none is left
 * out. 0 is the start and the end.
 *
 * KEYS streams from one instant of all shards (cut.h). RESP wants the number of elements first, so
 * the snapshots are read twice: counted, then sent. Both times expiry is judged by that instant, so
 * that a key which expires in between is no gap in the reply.
 *
 * In a cluster the keys come from quorums of replicas (cluster_scan in cluster.h), page by page,
 * and SCAN's positions are kept by the shard of the connection. KEYS, DBSIZE and RANDOMKEY are of
 * no one instant there.
 */
#include "base/fault.h"
#include "cluster/cluster.h"
#include "server/cmd.h"
#include "server/cut.h"
#include "server/glob.h"
#include "server/session.h"

#define BUCKET_BITS 12u
#define BUCKET_MASK ((1ull << BUCKET_BITS) - 1)
/* So many more keys than asked for are returned to reach the end of a bucket. */
#define BUCKET_SLACK 1024u
/* Keys looked at in one call, whatever COUNT says. */
#define SCAN_COUNT_MAX 65536u
/* Keys travel between shards in pieces. */
#define PIECE_BYTES (64u << 10)
/* KEYS sends its reply in these. It has the memory for one from the beginning, so that it need not
 * end in the middle for want of it. */
#define SEND_BYTES (16u << 10)
#define BULK_BYTES (LIMIT_KEY_BYTES + 16u) /* "$1024\r\n", the key, "\r\n" */
/* What other shards' stores need for a piece comes back. */
#define PIECE_RETRY_NS    (5 * NS_PER_MS)
#define PIECE_PATIENCE_NS (60 * NS_PER_S)

/* ---- positions inside a bucket ---- */

static struct scan_position *
find_position(struct shard *shard, u16 keyspace, u64 cursor)
{
    if (shard->positions == NULL || (cursor & BUCKET_MASK) == 0) return NULL;
    for (u32 i = 0; i < SCAN_POSITIONS; i++) {
        struct scan_position *position = &shard->positions[i];
        if (position->cursor == cursor && position->keyspace == keyspace) return position;
    }
    return NULL;
}

/* The cursor that leads back behind key, or to the start of its bucket when memory is out. */
static u64
keep_position(struct shard *shard, u16 keyspace, u64 token, struct bytes key)
{
    u64 bucket = token & ~BUCKET_MASK;
    if (shard->positions == NULL) {
        shard->positions =
            mem_alloc_zero(&shard->budget, SCAN_POSITIONS * sizeof(*shard->positions));
        if (shard->positions == NULL) return 0;
    }
    u32 oldest = 0;
    for (u32 i = 1; i < SCAN_POSITIONS; i++)
        if (shard->positions[i].used < shard->positions[oldest].used) oldest = i;
    struct scan_position *position = &shard->positions[oldest];
    position->cursor = bucket | (1 + oldest + SCAN_POSITIONS * (shard->scan_clock % 15));
    position->token = token;
    position->keyspace = keyspace;
    position->key_size = (u16)key.size;
    memcpy(position->key, key.data, key.size);
    position->used = ++shard->scan_clock;
    return position->cursor;
}
static_assert(1 + (SCAN_POSITIONS - 1) + SCAN_POSITIONS * 14 <= BUCKET_MASK,
              "a place and its generation fit into the low bits");

/* ---- pieces of keys ---- */

/* In: where to go on. Out: keys as u16 size and bytes, and where to go on next. */
struct piece {
    u16 keyspace;
    u64 token; /* from here */
    u16 key_size;
    u8 key[LIMIT_KEY_BYTES]; /* behind it, when skip */
    bool skip;
    struct bytes pattern; /* data NULL: all */
    u32 looked_max;       /* entries to look at, about */
    struct lsm_snapshot *snapshot;
    bool count_only;
    u8 *data;
    u32 size, used;
    u64 matched;
    u32 looked;
    u64 cursor;  /* of SCAN, when it does not go on to the end of the shard */
    bool end;    /* of this shard's tokens */
    bool stream; /* KEYS: may end anywhere, goes on by token and key */
    status st;
};

static void
remember(struct piece *piece, u64 token, struct bytes key)
{
    piece->token = token;
    piece->key_size = (u16)key.size;
    memcpy(piece->key, key.data, key.size);
    piece->skip = true;
}

static bool
may_pass(status st)
{
    return status_is(st, ST_NO_MEMORY) || status_is(st, ST_OVERLOADED);
}

/* On the shard that owns piece->token. */
MAY_YIELD static void
read_piece(void *arg)
{
    struct piece *piece = arg;
    struct shard *shard = shard_self();
    piece->used = 0;
    piece->looked = 0;
    piece->end = false;
    piece->cursor = 0;
    struct bytes from = piece->skip ? BYTES(piece->key, piece->key_size) : BYTES(NULL, 0);
    struct lsm_scan *scan;
    piece->st = lsm_scan_open(shard->lsm, piece->snapshot, piece->keyspace, piece->token, from,
                              shard->token_last, &scan);
    if (!ok(piece->st)) return;
    if (piece->stream) lsm_scan_freeze_clock(scan); /* the passes must agree */
    u64 seen = lsm_seq_last(shard->lsm), shown = 0;
    u64 last_token = 0;
    for (;;) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        piece->st = lsm_scan_next(scan, false, &token, &key, &value);
        if (status_is(piece->st, ST_END)) {
            piece->st = ST_OK;
            piece->end = true;
            break;
        }
        if (!ok(piece->st)) break;
        if (piece->skip && token == piece->token &&
            bytes_equal(key, BYTES(piece->key, piece->key_size)))
            continue;
        bool full = piece->size - piece->used < 2 + key.size;
        if (piece->stream && !piece->count_only && full) break;
        if (!piece->stream && piece->looked >= piece->looked_max &&
            (token & ~BUCKET_MASK) != (last_token & ~BUCKET_MASK)) {
            piece->cursor = token & ~BUCKET_MASK;
            break;
        }
        if (!piece->stream && (full || piece->looked >= piece->looked_max + BUCKET_SLACK)) {
            /* piece->token and key: the last one that was returned */
            piece->cursor = keep_position(shard, piece->keyspace, piece->token,
                                          BYTES(piece->key, piece->key_size));
            if (piece->cursor == 0) piece->st = ST_NO_MEMORY;
            break;
        }
        piece->looked++;
        last_token = token;
        if (piece->pattern.data == NULL || glob_match(piece->pattern, key, false)) {
            piece->matched++;
            if (!piece->count_only) {
                store_u16(piece->data + piece->used, (u16)key.size);
                memcpy(piece->data + piece->used + 2, key.data, key.size);
                piece->used += 2 + (u32)key.size;
            }
        }
        shown = MAX(shown, value.seq);
        remember(piece, token, key);
        if (fiber_should_yield()) fiber_yield();
    }
    lsm_scan_close(scan);
    /* A cut has waited already. */
    if (ok(piece->st) && piece->snapshot == NULL)
        piece->st = durable_wait_scanned(shard, seen, shown);
    /* What was found is good, and the next piece goes on behind it. */
    if (piece->stream && may_pass(piece->st) && piece->looked != 0) piece->st = ST_OK;
}

static void
reply_piece(struct exec *x, const struct piece *piece)
{
    for (u32 at = 0; at < piece->used;) {
        u32 size = load_u16(piece->data + at);
        resp_bulk(x->reply, BYTES(piece->data + at + 2, size));
        at += 2 + size;
    }
}

static u32
keys_in_piece(const struct piece *piece)
{
    u32 count = 0;
    for (u32 at = 0; at < piece->used; at += 2u + load_u16(piece->data + at))
        count++;
    return count;
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

/* found: the keys as replies. */
static void
reply_scan(struct exec *x, u64 next, u32 keys, struct bytes found)
{
    char text[24];
    size_t at = sizeof(text);
    do {
        text[--at] = (char)('0' + next % 10);
        next /= 10;
    } while (next != 0);
    resp_array(x->reply, 2);
    resp_bulk(x->reply, BYTES(text + at, sizeof(text) - at));
    resp_array(x->reply, keys);
    if (found.size != 0 && !buf_append(x->reply->out, found.data, found.size))
        x->reply->failed = true;
}

struct position_call {
    struct piece *piece;
    u64 cursor;
};

MAY_YIELD static void
read_from_cursor(void *arg)
{
    struct position_call *call = arg;
    struct piece *piece = call->piece;
    struct shard *shard = shard_self();
    struct scan_position *position = find_position(shard, piece->keyspace, call->cursor);
    if (position != NULL) {
        position->used = ++shard->scan_clock;
        remember(piece, position->token, BYTES(position->key, position->key_size));
    } else {
        piece->token = call->cursor & ~BUCKET_MASK;
        piece->skip = false;
    }
    read_piece(piece);
}

/* ---- in a cluster ---- */

#define CLUSTER_PAGE_BYTES (64u << 10)
/* Of one reply of SCAN; then it ends in the middle of a bucket. */
#define CLUSTER_REPLY_BYTES (1u << 20)
/* Somebody has just failed: others are asked once that is known. */
#define CLUSTER_RETRY_NS    (50 * NS_PER_MS)
#define CLUSTER_PATIENCE_NS (1500 * NS_PER_MS)

struct cluster_keys {
    struct exec *x;
    struct cluster_scan scan;
    struct resp_writer found; /* keys that match */
    struct bytes pattern;     /* data NULL: all */
    u64 matched, looked, looked_max;
    u64 last_token;
    u64 next;     /* the bucket that it stopped before; 0: within one */
    u64 until_ns; /* then it stops with what it has; 0: it goes on to the end */
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

/* Until all has been looked at, or each has stopped it, or it has got somewhere and its time is
 * over. false: the run has failed. */
MAY_YIELD static bool
cluster_keys_read(struct cluster_keys *keys)
{
    struct exec *x = keys->x;
    u64 patience_ns = io_now_ns() + CLUSTER_PATIENCE_NS;
    bool moved = false;
    while (!keys->scan.ended && !keys->stopped) {
        u64 now = io_now_ns();
        keys->scan.deadline_ns = now + x->shard->config->cluster_timeout_ms * NS_PER_MS;
        if (moved && keys->until_ns != 0) {
            keys->scan.deadline_ns = keys->until_ns;
            if (now >= keys->until_ns) {
                MARK("server.scan.time_over");
                keys->stopped = true;
                break;
            }
        }
        status st = cluster_scan_page(x->shard->cluster, &keys->scan);
        if (x->stopped) return false;
        if (keys->found.failed) st = ST_NO_MEMORY;
        if (ok(st)) {
            moved = true;
            patience_ns = io_now_ns() + CLUSTER_PATIENCE_NS;
            continue;
        }
        bool late = moved && keys->until_ns != 0 && io_now_ns() >= keys->until_ns;
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
    bool next_bucket = (entry->token & ~BUCKET_MASK) != (keys->last_token & ~BUCKET_MASK);
    bool enough = keys->looked >= keys->looked_max && next_bucket;
    bool too_much = keys->looked >= keys->looked_max + BUCKET_SLACK ||
                    keys->found.out->size >= CLUSTER_REPLY_BYTES;
    if (enough || too_much) {
        keys->stopped = true;
        keys->next = enough ? entry->token & ~BUCKET_MASK : 0;
        return false;
    }
    keys->looked++;
    keys->last_token = entry->token;
    if (key_matches(keys, entry->key)) {
        keys->matched++;
        resp_bulk(&keys->found, entry->key);
    }
    return true;
}

static void
cluster_scan_begin(struct cluster_keys *keys, u64 cursor)
{
    struct shard *shard = keys->x->shard;
    struct scan_position *position = find_position(shard, keys->scan.keyspace, cursor);
    keys->scan.token = cursor & ~BUCKET_MASK;
    if (position == NULL) return;
    position->used = ++shard->scan_clock;
    keys->scan.token = position->token;
    keys->scan.key_size = position->key_size;
    memcpy(keys->scan.key, position->key, position->key_size);
}

/* The cursor that leads on from where it has stopped. */
static bool
cluster_scan_cursor(struct cluster_keys *keys, u64 *out)
{
    const struct cluster_scan *scan = &keys->scan;
    *out = keys->next;
    if (*out == 0) /* in the middle of a bucket */
        *out = keep_position(keys->x->shard, scan->keyspace, scan->token,
                             BYTES(scan->key, scan->key_size));
    return *out != 0;
}

MAY_YIELD static void
scan_cluster(struct exec *x, u64 cursor, i64 count, struct bytes pattern, bool other_type)
{
    struct buf found;
    buf_init(&found, x->budget);
    struct cluster_keys *keys = cluster_keys_new(x, each_scanned, &found);
    u64 next = 0;
    if (keys != NULL) {
        keys->pattern = pattern;
        keys->looked_max = (u64)MIN(count, (i64)SCAN_COUNT_MAX);
        keys->scan.bytes_max = (u32)MIN(CLUSTER_PAGE_BYTES, 1024 + 64 * keys->looked_max);
        keys->until_ns = io_now_ns() + x->shard->config->cluster_timeout_ms * NS_PER_MS;
        cluster_scan_begin(keys, cursor);
        bool good = cluster_keys_read(keys);
        if (good && keys->stopped && !cluster_scan_cursor(keys, &next)) {
            exec_fail(x, ST_NO_MEMORY);
            good = false;
        }
        if (good)
            reply_scan(x, next, other_type ? 0 : (u32)keys->matched,
                       other_type ? BYTES(NULL, 0) : buf_bytes(&found));
    }
    buf_deinit(&found);
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
    keys->scan.token = io_random();
    if (!cluster_keys_read(keys)) return;
    if (!keys->stopped) {
        keys->scan.ended = false;
        keys->scan.token = 0;
        keys->scan.key_size = 0;
        if (!cluster_keys_read(keys)) return;
    }
    if (!keys->stopped) resp_null(x->reply);
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
    if (x->shard->cluster != NULL) {
        scan_cluster(x, cursor, count, pattern, other_type);
        return;
    }
    struct piece *piece = new_piece(x);
    if (piece == NULL) return;
    piece->pattern = pattern;
    const struct server *server = x->shard->server;
    struct resp_writer outer = *x->reply;
    struct buf found; /* the keys as replies, before their number is known */
    buf_init(&found, &x->shard->budget);
    x->reply->out = &found;
    u32 owner = shard_of_token(server, cursor), keys = 0;
    i64 left = MIN(count, (i64)SCAN_COUNT_MAX);
    u64 next = 0;
    status st;
    for (;; owner++) { /* on into the next shard while there is something left to look at */
        piece->looked_max = (u32)left;
        struct position_call call = {.piece = piece, .cursor = cursor};
        st = io_shard_call(owner, fiber_class_self(), read_from_cursor, &call);
        if (ok(st)) st = piece->st;
        if (!ok(st)) break;
        if (!other_type) {
            keys += keys_in_piece(piece);
            reply_piece(x, piece);
        }
        next = piece->cursor;
        left -= piece->looked;
        if (!piece->end) break;
        if (owner + 1 == server->shard_count) break;
        next = cursor = server->layout.shards[owner + 1].token_first;
        if (left <= 0) break;
    }
    outer.failed = x->reply->failed;
    *x->reply = outer;
    if (ok(st))
        reply_scan(x, next, keys, buf_bytes(&found));
    else
        exec_fail(x, st);
    buf_deinit(&found);
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
        piece->token = server->layout.shards[i].token_first;
        piece->skip = false;
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

    keys.piece->stream = true;
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
    u64 random;
    u8 *key;
    size_t key_size;
    status st;
};

MAY_YIELD static void
random_here(void *arg)
{
    struct random_call *call = arg;
    struct shard *shard = shard_self();
    u64 shown = 0;
    status st = lsm_random_key(shard->lsm, call->keyspace, call->random, call->key, &call->key_size,
                               &shown);
    call->st = st;
    if (!ok(st) && !status_is(st, ST_NOT_FOUND)) return;
    status safe = durable_wait_scanned(shard, lsm_seq_last(shard->lsm), shown);
    if (!ok(safe)) call->st = safe;
}

MAY_YIELD void
cmd_randomkey(struct exec *x)
{
    if (x->shard->cluster != NULL) {
        randomkey_cluster(x);
        return;
    }
    struct random_call call = {.keyspace = x->keyspace, .random = io_random()};
    call.key = exec_alloc(x, LIMIT_KEY_BYTES);
    if (call.key == NULL) return;
    u32 count = x->shard->server->shard_count;
    u32 first = (u32)(io_random() % count);
    call.st = ST_NOT_FOUND;
    for (u32 i = 0; i < count && status_is(call.st, ST_NOT_FOUND); i++) {
        status st = io_shard_call((first + i) % count, FIBER_FOREGROUND, random_here, &call);
        if (!ok(st)) call.st = st;
    }
    if (ok(call.st))
        resp_bulk(x->reply, BYTES(call.key, call.key_size));
    else if (status_is(call.st, ST_NOT_FOUND))
        resp_null(x->reply);
    else
        exec_fail(x, call.st);
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
