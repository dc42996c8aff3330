/* SPDX-License-Identifier: MIT
 *
 * cluster_stream.c -- pages of stores: how they are asked for, read, and served to who gains
 * partitions (cluster_fetch.c) or scans (cluster_scan.c).
 *
 * A source answers who gains only once it knows the fence of the stage (topology.h) and nothing
 * from before the stage is under way in it: from then on it takes no write that the gainer does not
 * get, too.
 *
 * A source keeps the scan of a stream for the next page of it, STREAM_IDLE_NS long, or longer where
 * the gainer says that it goes slowly: to begin anew for each page reads each run's pieces again.
 * So a stream sees its source as it was when it began, at the most STREAM_PAGES pages ago, which is
 * behind the fence, too. A source gives no more than cluster_move_rate_set says to all who gain
 * together.
 *
 * A store that meets a damaged block refuses; one who asks for it is given what lies around the
 * damage (lsm_scan_pass_damage), and told so.
 *
 * PEER_STREAM, little-endian: last token (8), session (8; 0: a scan of clients), token to begin at
 * (8), bytes wanted (4), flags (1; bit 0: no values, 1: pass over damage; from 4 on: patience),
 * size of a key (2) and the key: begin behind it; without a key with the token's first. The answer:
 * bits (1; 0: there is more, 1: damage was passed over), then entries: kind (1: value, 2:
 * tombstone), version (8), expiry (8), size of the key (2), of the value (4), the two. Without
 * values the size is that of the value.
 */
#include "cluster/cluster_stream.h"

#include "base/fault.h"
#include "base/hash.h"
#include "io/io.h"
#include "proto/peer.h"

#define ENTRY_BYTES       23u
#define PAGE_BYTES_MAX    (4u << 20)
#define STREAMS_MAX       16u /* at work */
#define STREAMS_IDLE      8u  /* between two pages */
#define STREAM_PAGES      64u
#define SERVE_WAIT_NS_MAX (2 * NS_PER_S)    /* whoever asks waits STREAM_PAGE_NS */
#define SERVE_PAGES       32u               /* may wait so at once, and none is served early */
#define SCAN_NS_MAX       (200 * NS_PER_MS) /* of one page: a long stretch of nothing ends it */
#define FLAG_KEYS_ONLY    1u
#define FLAG_PASSES       2u
#define PATIENCE_SHIFT    4u /* in the byte of the flags */

enum stream_kind { STREAM_VALUE = 1, STREAM_TOMBSTONE = 2, STREAM_KEY = 3 };

/* ---- pages ---- */

void
cluster_page_encode(const struct cluster_page *page, u64 session, u8 out[CLUSTER_PAGE_HEAD_BYTES])
{
    store_u64(out, page->token_last);
    store_u64(out + 8, session);
    store_u64(out + 16, page->token);
    store_u32(out + 24, page->bytes_max);
    out[28] = (u8)((page->keys_only ? FLAG_KEYS_ONLY : 0) | (page->passes ? FLAG_PASSES : 0) |
                   page->patience << PATIENCE_SHIFT);
    store_u16(out + 29, (u16)page->behind.size);
}

static bool
add_entry(struct buf *out, enum stream_kind kind, struct bytes key, const struct lsm_value *value)
{
    u8 head[ENTRY_BYTES];
    head[0] = (u8)kind;
    store_u64(head + 1, value->version);
    store_u64(head + 9, value->expire_ms);
    store_u16(head + 17, (u16)key.size);
    store_u32(head + 19, kind == STREAM_TOMBSTONE ? 0 : (u32)value->value.size);
    if (!buf_append(out, head, sizeof(head)) || !buf_append(out, key.data, key.size)) return false;
    return kind != STREAM_VALUE || value->value.size == 0 ||
           buf_append(out, value->value.data, value->value.size);
}

bool
cluster_page_add(struct buf *out, bool deleted, struct bytes key, const struct lsm_value *value)
{
    return add_entry(out, deleted ? STREAM_TOMBSTONE : STREAM_VALUE, key, value);
}

MAY_YIELD static status
scan_open(struct cluster_shard *shard, const struct cluster_page *page, struct lsm_scan **out)
{
    u64 first, last;
    /* Who asks may know another number of shards than this process has, and nothing of what lies
     * elsewhere must not pass for nothing at all. */
    lsm_tokens(shard->lsm, &first, &last);
    if (page->token < first || page->token_last > last) {
        MARK("cluster.fetch.other_shard");
        return ST_WOULD_WAIT;
    }
    status st = lsm_scan_open(shard->lsm, NULL, page->keyspace, page->token, page->behind,
                              page->token_last, out);
    if (!ok(st)) return st;
    lsm_scan_whole(*out);
    if (page->passes) lsm_scan_pass_damage(*out);
    if (page->bytes_max >= STREAM_PAGE_LONG) lsm_scan_much(*out);
    return ST_OK;
}

/* From where the scan is. *last_out: where in *out the last entry is, if there is one. *seq_out:
 * the highest number of what is in the page, be it a tombstone. */
MAY_YIELD static status
page_fill(struct lsm_scan *scan, const struct cluster_page *page, struct buf *out, size_t *last_out,
          u64 *seq_out)
{
    u8 more = STREAM_MORE;
    size_t start = out->size;
    status st = ST_OK;
    *seq_out = 0;
    if (!buf_append(out, &more, 1)) return ST_NO_MEMORY;
    u64 until_ns = io_clock_ns() + SCAN_NS_MAX;
    while (out->size - start < page->bytes_max &&
           (out->size == start + 1 || io_clock_ns() < until_ns)) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        st = lsm_scan_next(scan, !page->keys_only, &token, &key, &value);
        if (!ok(st)) break;
        bool begun =
            token == page->token && page->behind.size != 0 && bytes_equal(key, page->behind);
        if (begun) continue; /* the last one of the page before */
        enum stream_kind kind = lsm_scan_deleted(scan) ? STREAM_TOMBSTONE
                                : page->keys_only      ? STREAM_KEY
                                                       : STREAM_VALUE;
        *last_out = out->size;
        *seq_out = MAX(*seq_out, value.seq);
        if (!add_entry(out, kind, key, &value)) st = ST_NO_MEMORY;
        if (!ok(st)) break;
        if (fiber_should_yield()) fiber_yield();
    }
    if (status_is(st, ST_END)) {
        out->data[start] = 0;
        st = ST_OK;
    }
    if (lsm_scan_damage(scan) != 0) out->data[start] |= STREAM_DAMAGE;
    return st;
}

MAY_YIELD status
cluster_page_read(struct cluster_shard *shard, const struct cluster_page *page, struct buf *out)
{
    struct lsm_scan *scan;
    status st = scan_open(shard, page, &scan);
    if (!ok(st)) return st;
    size_t at;
    u64 seq;
    st = page_fill(scan, page, out, &at, &seq);
    lsm_scan_close(scan);
    return ok(st) ? lsm_wait_durable(shard->lsm, seq) : st;
}

status
cluster_page_next(struct bytes page, bool keys_only, size_t *at, struct cluster_page_entry *out)
{
    if (*at == page.size) return ST_END;
    if (page.size - *at < ENTRY_BYTES) return ST_CORRUPT;
    const u8 *head = page.data + *at;
    u32 key_size = load_u16(head + 17), value_size = load_u32(head + 19);
    u32 sent = head[0] == STREAM_VALUE ? value_size : 0;
    u8 last = keys_only ? STREAM_KEY : STREAM_TOMBSTONE;
    if (head[0] < STREAM_VALUE || head[0] > last || key_size == 0 || key_size > LIMIT_KEY_BYTES ||
        value_size > LIMIT_VALUE_BYTES || page.size - *at - ENTRY_BYTES < (size_t)key_size + sent)
        return ST_CORRUPT;
    struct bytes key = BYTES(head + ENTRY_BYTES, key_size);
    *out = (struct cluster_page_entry){
        .deleted = head[0] == STREAM_TOMBSTONE,
        .entry = {.token = hash_token(key),
                  .version = load_u64(head + 1),
                  .expire_ms = load_u64(head + 9),
                  .key = key,
                  .value = BYTES(sent == 0 ? NULL : key.data + key_size, value_size)}};
    *at += ENTRY_BYTES + key_size + sent;
    return ST_OK;
}

/* ---- the source ---- */

struct stream {
    struct cluster_shard *shard;
    struct peer_request *request; /* NULL: between two pages */
    struct list link;             /* shard->streams_idle then */
    struct fiber_queue wake;
    struct cluster_page page; /* token and behind: where it is */
    u64 session, epoch;
    u32 member; /* who asks */
    u8 key[LIMIT_KEY_BYTES];
};

static void
stream_place_set(struct stream *stream, u64 token, struct bytes key)
{
    if (key.size != 0) memcpy(stream->key, key.data, key.size);
    stream->page.token = token;
    stream->page.behind = BYTES(stream->key, key.size);
}

/* Rests until this node may serve another page of what others gain: be they many, it gives no more
 * than one of them may take. */
MAY_YIELD static void
serve_pace(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    u64 until_ns = io_now_ns() + SERVE_WAIT_NS_MAX;
    for (;;) {
        u64 rate = cluster_move_rate(shard), at_ns = atomic_load(&cluster->serve_at_ns);
        u64 now = io_now_ns();
        if (rate == 0 || at_ns <= now || now >= until_ns || atomic_load(&cluster->refusing)) return;
        fiber_sleep_ns(MIN(at_ns - now, STREAM_PACE_LOOK_NS));
    }
}

/* How much of a page is served at a low rate. */
static u32
serve_bytes(const struct cluster_shard *shard, u32 wanted)
{
    u64 rate = cluster_move_rate(shard);
    if (rate == 0) return wanted;
    u64 bytes = rate / SERVE_PAGES * (SERVE_WAIT_NS_MAX / NS_PER_S);
    return (u32)MIN(wanted, MAX(bytes, STREAM_PAGE_MIN));
}

static void
serve_pace_add(struct cluster_shard *shard, u64 bytes)
{
    struct cluster *cluster = shard->cluster;
    u64 rate = cluster_move_rate(shard), before = atomic_load(&cluster->serve_at_ns), after;
    do {
        after = rate == 0 ? 0 : MAX(before, io_now_ns()) + bytes * NS_PER_S / rate;
    } while (!atomic_compare_exchange_weak(&cluster->serve_at_ns, &before, after));
}

void
cluster_move_rate_set(struct cluster *cluster, u64 bytes_per_s)
{
    if (atomic_exchange(&cluster->move_bytes_per_s, bytes_per_s) == bytes_per_s) return;
    atomic_store(&cluster->serve_at_ns, 0); /* what was due by the old one is not */
}

/* Reads a page and answers with it. False: there is no more, or it could not be read. */
MAY_YIELD static bool
serve_page(struct stream *stream, struct lsm_scan *scan)
{
    struct cluster_shard *shard = stream->shard;
    struct buf page;
    buf_init(&page, &shard->budget);
    size_t last = 0;
    u64 seq;
    if (stream->session != 0) {
        shard->streams_resting++;
        serve_pace(shard);
        shard->streams_resting--;
        stream->page.bytes_max = serve_bytes(shard, stream->page.bytes_max);
    }
    status st = page_fill(scan, &stream->page, &page, &last, &seq);
    /* A client is told only of what is durable; of a key that keeps siblings nobody may know what
     * this store can forget (B1). */
    bool siblings = replicate_siblings(shard->replicator, stream->page.keyspace);
    if (ok(st) && (stream->session == 0 || siblings))
        st = lsm_wait_durable(shard->lsm, siblings ? lsm_seq_last(shard->lsm) : seq);
    bool more = ok(st) && (page.data[0] & STREAM_MORE) != 0;
    if (more) {
        struct bytes key = BYTES(page.data + last + ENTRY_BYTES, load_u16(page.data + last + 17));
        stream_place_set(stream, hash_token(key), key);
    }
    if (stream->session != 0) serve_pace_add(shard, page.size);
    struct bytes part = buf_bytes(&page);
    enum native_status code = ok(st) ? NATIVE_ST_OK : native_status_of(st);
    peer_reply(stream->request, code, stream->epoch, &part, ok(st) ? 1 : 0);
    stream->request = NULL;
    buf_deinit(&page);
    return more;
}

static void
stream_busy(struct stream *stream)
{
    if (!list_linked(&stream->link)) return;
    list_del(&stream->link);
    stream->shard->streams_idle_count--;
}

/* Waits for who asks for the next page. False: nobody does. */
MAY_YIELD static bool
stream_goes_on(struct stream *stream)
{
    struct cluster_shard *shard = stream->shard;
    if (stream->session == 0 || shard->streams_idle_count == STREAMS_IDLE) return false;
    list_push_back(&shard->streams_idle, &stream->link);
    shard->streams_idle_count++;
    u64 deadline_ns = io_now_ns() + (STREAM_IDLE_NS << stream->page.patience);
    status st = ST_OK;
    while (stream->request == NULL && ok(st) && !atomic_load(&shard->cluster->refusing))
        st = fiber_queue_wait(&stream->wake, deadline_ns);
    stream_busy(stream);
    return stream->request != NULL;
}

MAY_YIELD static void
serve(void *arg)
{
    struct stream *stream = arg;
    struct cluster_shard *shard = stream->shard;
    struct lsm_scan *scan;
    status st = scan_open(shard, &stream->page, &scan);
    if (ok(st)) {
        u32 pages = 1;
        while (serve_page(stream, scan) && pages++ < STREAM_PAGES && stream_goes_on(stream))
            MARK("cluster.fetch.goes_on");
        lsm_scan_close(scan);
    } else {
        peer_reply(stream->request, native_status_of(st), stream->epoch, NULL, 0);
    }
    mem_free(&shard->budget, stream, sizeof(*stream));
    shard->streams--;
    fiber_queue_wake_all(&shard->ended);
}

/* The one that waits to be asked for just this. */
static struct stream *
stream_of(struct cluster_shard *shard, u32 member, u64 session, const struct cluster_page *page)
{
    list_for_each (link, &shard->streams_idle) {
        struct stream *stream = list_entry(link, struct stream, link);
        const struct cluster_page *at = &stream->page;
        if (stream->member == member && stream->session == session &&
            at->keyspace == page->keyspace && at->token == page->token &&
            at->token_last == page->token_last && at->keys_only == page->keys_only &&
            at->passes == page->passes && bytes_equal(at->behind, page->behind))
            return stream;
    }
    return NULL;
}

/* Whether what this shard has is what is asked for. */
static bool
may_serve(const struct cluster_shard *shard, u64 session, u64 token, u64 epoch)
{
    const struct topology *topology = shard->topology;
    if (topology == NULL) return false;
    if (session != 0) /* before the fence this member may still take what the gainer does not */
        return topology->session == session && topology->stage == STAGE_WRITE_BOTH &&
               topology_fenced(topology) && epoch >= topology->stage_epoch &&
               cluster_own_epoch(shard->cluster) >= topology->stage_epoch;
    return epoch >= topology->stage_epoch_before &&
           topology_holds(topology, cluster_member(shard->cluster),
                          token_partition(token, topology->partition_count));
}

static void
asked(void *arg, struct peer_request *request, const struct peer_identity *from,
      const struct native_header *header, struct bytes body)
{
    struct cluster_shard *shard = arg;
    if (request == NULL) return;
    u64 epoch = shard->topology == NULL ? 0 : shard->topology->epoch;
    u16 key_size = body.size < CLUSTER_PAGE_HEAD_BYTES ? 0 : load_u16(body.data + 29);
    if (body.size != CLUSTER_PAGE_HEAD_BYTES + (size_t)key_size || key_size > LIMIT_KEY_BYTES ||
        header->keyspace >= LIMIT_KEYSPACES_CLIENT) {
        peer_reply(request, NATIVE_ST_INVALID, epoch, NULL, 0);
        return;
    }
    u64 session = load_u64(body.data + 8);
    struct cluster_page page = {
        .token_last = load_u64(body.data),
        .token = load_u64(body.data + 16),
        .bytes_max = CLAMP(load_u32(body.data + 24), STREAM_PAGE_MIN, PAGE_BYTES_MAX),
        .keyspace = header->keyspace,
        .keys_only = (body.data[28] & FLAG_KEYS_ONLY) != 0,
        .passes = (body.data[28] & FLAG_PASSES) != 0,
        .patience = (u8)MIN((u32)body.data[28] >> PATIENCE_SHIFT, STREAM_PATIENCE_MAX),
        .behind = BYTES(body.data + CLUSTER_PAGE_HEAD_BYTES, key_size)};
    if (!may_serve(shard, session, page.token, header->epoch)) {
        peer_reply(request, NATIVE_ST_WRONG_EPOCH, epoch, NULL, 0);
        return;
    }
    /* What moves waits for its turn most of the time; a client's scan is not to wait for that. */
    u32 busy = shard->streams - shard->streams_idle_count;
    if (session == 0) busy -= shard->streams_resting;
    bool room = busy < STREAMS_MAX && !atomic_load(&shard->cluster->refusing);
    struct stream *stream = room ? stream_of(shard, from->member, session, &page) : NULL;
    if (stream != NULL) {
        stream->request = request;
        stream->epoch = epoch;
        stream->page.bytes_max = page.bytes_max;
        stream->page.patience = page.patience;
        stream_busy(stream);
        fiber_queue_wake_all(&stream->wake);
        return;
    }
    if (room) stream = mem_alloc_zero(&shard->budget, sizeof(*stream));
    if (stream == NULL) {
        peer_reply(request, NATIVE_ST_OVERLOADED, epoch, NULL, 0);
        return;
    }
    stream->shard = shard;
    stream->request = request;
    stream->session = session;
    stream->epoch = epoch;
    stream->member = from->member;
    stream->page = page;
    stream_place_set(stream, page.token, page.behind);
    list_init(&stream->link);
    fiber_queue_init(&stream->wake);
    shard->streams++;
    status st = fiber_spawn(FIBER_BULK, "cluster stream", serve, stream);
    if (ok(st)) return;
    shard->streams--;
    mem_free(&shard->budget, stream, sizeof(*stream));
    peer_reply(request, NATIVE_ST_OVERLOADED, epoch, NULL, 0);
}

void
cluster_streams_open(struct cluster_shard *shard)
{
    list_init(&shard->streams_idle);
    peers_handler_set(shard->peers, PEER_STREAM, asked, shard);
}

void
cluster_streams_close(struct cluster_shard *shard)
{
    list_for_each (link, &shard->streams_idle)
        fiber_queue_wake_all(&list_entry(link, struct stream, link)->wake);
}
