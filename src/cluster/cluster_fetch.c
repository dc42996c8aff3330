/* SPDX-License-Identifier: MIT
 *
 * cluster_fetch.c -- moving data: who gains partitions asks those who have them, page by page.
 *
 *   gainer, each shard for its own partitions            source, the shard that has them
 *   PEER_STREAM  keyspace, tokens, behind (token, key)  -->  a scan of everything: tombstones and
 *                                                            expired entries, too
 *   writes each entry with its version            <-----     a page of entries, and whether more
 *
 * Each partition is fetched from as many members as its read quorum demands: so what was
 * acknowledged by a write quorum is among it, whoever was away when it was written. A source
 * answers only once it knows the fence of the stage (topology.h) and nothing from before the stage
 * is under way in it: from then on it takes no write that the gainer does not get, too. Versions
 * decide in the gainer's store as everywhere, so pages may come twice, and in any order with
 * writes.
 *
 * A source keeps the scan of a stream for the next page of it, STREAM_IDLE_NS long, or longer where
 * the gainer says that it goes slowly: to begin anew for each page reads each run's pieces again.
 * So a stream sees its source as it was when it began, at the most STREAM_PAGES pages ago, which is
 * behind the fence, too.
 *
 * Neighbouring partitions that lie on one shard of the same source are one range, FETCHES of which
 * are fetched at once, at the rate of cluster_move_rate_set. A source gives no more than that,
 * either, to all who gain together. What was fetched is not fetched again when an attempt fails
 * half-way; the next one does without whoever has refused, where others are enough.
 *
 * Damage. A source whose store meets a damaged block refuses, and is then asked only for what those
 * without damage are too few for, and to pass over it (lsm_scan_pass_damage): so one bad block does
 * not hold up the rest. What lay there comes from the other sources of the quorum; a write that
 * only the damaged one and a lost one had acknowledged is lost by the two together. Where the read
 * quorum is one there is no other, and damage would pass for absence: such a source is not asked
 * so, and the fetch waits.
 *
 * PEER_STREAM, little-endian: last token (8), session (8; 0: a scan of clients), token to begin at
 * (8), bytes wanted (4), flags (1; bit 0: no values, 1: pass over damage; from 4 on: patience),
 * size of a key (2) and the key: begin behind it; without a key with the token's first. The answer:
 * bits (1; 0: there is more, 1: damage was passed over), then entries: kind (1: value, 2:
 * tombstone), version (8), expiry (8), size of the key (2), of the value (4), the two. Without
 * values the size is that of the value.
 */
#include "cluster/cluster.h"

#include "base/hash.h"
#include "base/fault.h"
#include "base/log.h"
#include "io/io.h"
#include "proto/peer.h"

#define ENTRY_BYTES       23u
#define PAGE_BYTES        (256u << 10)
#define PAGE_BYTES_MAX    (4u << 20)
#define PAGE_BYTES_MIN    (1u << 10)
#define STREAMS_MAX       16u /* at work */
#define STREAMS_IDLE      8u  /* between two pages */
#define STREAM_IDLE_NS    (100 * NS_PER_MS)
#define STREAM_PAGES      64u
#define PAGE_BYTES_LONG   (64u << 10)
#define PAGE_BYTES_PACED  (64u << 10)
#define FETCHES           4u /* of one shard, under way at once */
#define PAGE_NS           (10 * NS_PER_S)
#define PAGE_PAUSE_NS     (500 * NS_PER_US)
#define PACE_LOOK_NS      (100 * NS_PER_MS)
#define SERVE_WAIT_NS_MAX (2 * NS_PER_S) /* whoever asks waits PAGE_NS */
#define SERVE_PAGES       32u            /* may wait so at once, and none is served early */
#define CLOCK_NS          (10 * NS_PER_S)
#define CLOCK_LOOK_NS     (50 * NS_PER_MS)
#define SCAN_NS_MAX       (200 * NS_PER_MS) /* of one page: a long stretch of nothing ends it */
#define FLAG_KEYS_ONLY    1u
#define FLAG_PASSES       2u
#define PATIENCE_SHIFT    4u /* in the byte of the flags */
#define PATIENCE_MAX      5u /* a kept scan holds back what merges would free: 3.2 s */

static_assert(PAGE_BYTES_PACED >= PAGE_BYTES_LONG && PAGE_BYTES >= PAGE_BYTES_LONG,
              "a move reads far ahead, however slowly it goes (scan_open)");

/* In the first byte of a page. */
enum page_bit { PAGE_MORE = 1, PAGE_DAMAGE = 2 };

/* In a row, of one source, they are no news: it may not be as far as we are. */
#define FAILURES_QUIET 8u

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
    if (page->bytes_max >= PAGE_BYTES_LONG) lsm_scan_much(*out);
    return ST_OK;
}

/* From where the scan is. *last_out: where in *out the last entry is, if there is one. *seq_out:
 * the highest number of what is in the page, be it a tombstone. */
MAY_YIELD static status
page_fill(struct lsm_scan *scan, const struct cluster_page *page, struct buf *out, size_t *last_out,
          u64 *seq_out)
{
    u8 more = PAGE_MORE;
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
    if (lsm_scan_damage(scan) != 0) out->data[start] |= PAGE_DAMAGE;
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
cluster_page_next(struct bytes page, size_t *at, struct cluster_page_entry *out)
{
    if (*at == page.size) return ST_END;
    if (page.size - *at < ENTRY_BYTES) return ST_CORRUPT;
    const u8 *head = page.data + *at;
    u32 key_size = load_u16(head + 17), value_size = load_u32(head + 19);
    u32 sent = head[0] == STREAM_VALUE ? value_size : 0;
    if (head[0] < STREAM_VALUE || head[0] > STREAM_KEY || key_size == 0 ||
        key_size > LIMIT_KEY_BYTES || value_size > LIMIT_VALUE_BYTES ||
        page.size - *at - ENTRY_BYTES < (size_t)key_size + sent)
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

static u64
move_rate(const struct cluster_shard *shard)
{
    return atomic_load_explicit(&shard->cluster->move_bytes_per_s, memory_order_relaxed);
}

/* Rests until this node may serve another page of what others gain: be they many, it gives no more
 * than one of them may take. */
MAY_YIELD static void
serve_pace(struct cluster_shard *shard)
{
    struct cluster *cluster = shard->cluster;
    u64 until_ns = io_now_ns() + SERVE_WAIT_NS_MAX;
    for (;;) {
        u64 rate = move_rate(shard), at_ns = atomic_load(&cluster->serve_at_ns);
        u64 now = io_now_ns();
        if (rate == 0 || at_ns <= now || now >= until_ns || atomic_load(&cluster->refusing)) return;
        fiber_sleep_ns(MIN(at_ns - now, PACE_LOOK_NS));
    }
}

/* How much of a page is served at a low rate. */
static u32
serve_bytes(const struct cluster_shard *shard, u32 wanted)
{
    u64 rate = move_rate(shard);
    if (rate == 0) return wanted;
    u64 bytes = rate / SERVE_PAGES * (SERVE_WAIT_NS_MAX / NS_PER_S);
    return (u32)MIN(wanted, MAX(bytes, PAGE_BYTES_MIN));
}

static void
serve_pace_add(struct cluster_shard *shard, u64 bytes)
{
    struct cluster *cluster = shard->cluster;
    u64 rate = move_rate(shard), before = atomic_load(&cluster->serve_at_ns), after;
    do {
        after = rate == 0 ? 0 : MAX(before, io_now_ns()) + bytes * NS_PER_S / rate;
    } while (!atomic_compare_exchange_weak(&cluster->serve_at_ns, &before, after));
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
    bool more = ok(st) && (page.data[0] & PAGE_MORE) != 0;
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
        .bytes_max = CLAMP(load_u32(body.data + 24), PAGE_BYTES_MIN, PAGE_BYTES_MAX),
        .keyspace = header->keyspace,
        .keys_only = (body.data[28] & FLAG_KEYS_ONLY) != 0,
        .passes = (body.data[28] & FLAG_PASSES) != 0,
        .patience = (u8)MIN((u32)body.data[28] >> PATIENCE_SHIFT, PATIENCE_MAX),
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

/* ---- the gainer ---- */

struct fetch {
    struct cluster_shard *shard;
    struct topology *topology; /* held */
    u32 self;
    u8 *alive; /* of topology->members; who did not serve counts as dead in this attempt */
    /* the next range */
    u32 keyspace, member_at, partition;
    /* fibers */
    status st; /* the first failure */
    u32 running;
    struct fiber_queue ended;
};

/* Neighbouring partitions that lie on one shard of one source. */
struct range {
    u32 keyspace, member, there;
    u32 first, end; /* partitions */
};

static bool
is_alive(const struct fetch *fetch, u32 number)
{
    for (u32 i = 0; i < fetch->topology->member_count; i++)
        if (fetch->topology->members[i].number == number) return fetch->alive[i] != 0;
    return false;
}

/* What was fetched by an earlier attempt: a bit for each member of the partition's row. */
static u8 *
done_of(const struct fetch *fetch, u32 keyspace, u32 partition)
{
    return &fetch->shard->fetched[(size_t)keyspace * fetch->topology->partition_count + partition];
}

/* What is known of a source that has failed; NULL: it has not. */
static struct cluster_source *
source_find(struct cluster_shard *shard, u32 member)
{
    for (u32 i = 0; i < CLUSTER_SOURCES; i++)
        if (shard->fetch_sources[i].member == member) return &shard->fetch_sources[i];
    return NULL;
}

static bool
is_damaged(const struct fetch *fetch, u32 member)
{
    const struct cluster_source *source = source_find(fetch->shard, member);
    return source != NULL && source->is_damaged;
}

/* Whether the partition is to be fetched from the member; *enough: whether a read quorum lives.
 * Those without damage come first. */
static bool
is_source(const struct fetch *fetch, u32 keyspace, u32 partition, u32 member, bool *enough)
{
    struct topology_row row;
    topology_row(fetch->topology, keyspace, partition, &row);
    u32 have = 0;
    u8 done = *done_of(fetch, keyspace, partition);
    bool found = false;
    for (u32 i = 0; i < row.count; i++) /* what is here already */
        if (row.write[i] == fetch->self || (done & 1u << i) != 0) have++;
    for (u32 i = 0; i < 2 * row.count && have < row.read_quorum; i++) {
        u32 at = i % row.count, from = row.write[at];
        if (from == fetch->self || (done & 1u << at) != 0) continue;
        if (!is_alive(fetch, from) || is_damaged(fetch, from) != (i >= row.count)) continue;
        have++;
        if (from == member) found = true;
    }
    *enough = have >= row.read_quorum;
    return found;
}

static bool
is_over(const struct fetch *fetch)
{
    const struct cluster_shard *shard = fetch->shard;
    return atomic_load(&shard->cluster->refusing) || io_stopping() ||
           shard->topology->session != fetch->topology->session;
}

/* Nothing comes here that is newer than what is stamped here next (R2 in replicate_internal.h):
 * else a write over it would be acknowledged, and hidden by it. What is of the future, as far as
 * our clock goes, waits for that. */
MAY_YIELD static status
observe(const struct fetch *fetch, u64 version, u32 member)
{
    u64 until_ns = io_now_ns() + CLOCK_NS;
    while (!replicator_observe(fetch->shard->replicator, version, member)) {
        MARK("cluster.fetch.clock_behind");
        if (io_now_ns() >= until_ns) return ST_UNAVAILABLE;
        if (is_over(fetch)) return ST_CANCELED;
        fiber_sleep_ns(CLOCK_LOOK_NS);
    }
    return ST_OK;
}

/* A state of a key that keeps siblings joins what is here. */
MAY_YIELD static status
take_state(struct fetch *fetch, u16 keyspace, const struct cluster_page_entry *found, u64 *seq_out)
{
    struct replicate_state state = {.keyspace = keyspace,
                                    .token = found->entry.token,
                                    .key = found->entry.key,
                                    .found = !found->deleted,
                                    .version = found->entry.version,
                                    .value = found->entry.value};
    return replicate_merge(fetch->shard->replicator, &state, io_now_ns() + PAGE_NS, seq_out);
}

static void
note_done(struct fetch *fetch, const struct range *range)
{
    for (u32 partition = range->first; partition < range->end; partition++) {
        struct topology_row row;
        topology_row(fetch->topology, range->keyspace, partition, &row);
        for (u32 i = 0; i < row.count; i++)
            if (row.write[i] == range->member)
                *done_of(fetch, range->keyspace, partition) |= (u8)(1u << i);
    }
}

MAY_YIELD static status
take_page(struct fetch *fetch, u32 member, struct cluster_page *page, struct bytes bytes,
          u64 token_first, struct buf *key_out)
{
    struct cluster_shard *shard = fetch->shard;
    struct lsm_batch batch;
    lsm_batch_init(&batch, &shard->budget);
    struct cluster_page_entry found;
    size_t at = 1;
    status st;
    while (ok(st = cluster_page_next(bytes, &at, &found))) {
        const struct cluster_entry *entry = &found.entry;
        if (entry->token < token_first || entry->token > page->token_last) {
            st = ST_CORRUPT;
            break;
        }
        st = observe(fetch, entry->version, member);
        if (!ok(st)) break;
        lsm_batch_clear(&batch);
        batch.version = entry->version;
        bool siblings = replicate_siblings(shard->replicator, page->keyspace);
        bool fits = found.deleted
                        ? lsm_batch_delete(&batch, page->keyspace, entry->token, entry->key)
                        : lsm_batch_put(&batch, page->keyspace, entry->token, entry->key,
                                        entry->value, entry->expire_ms);
        u64 seq = 0;
        st = !fits      ? ST_NO_MEMORY
             : siblings ? take_state(fetch, page->keyspace, &found, &seq)
                        : lsm_write(shard->lsm, &batch, &seq);
        shard->fetched_seq = MAX(shard->fetched_seq, seq);
        key_out->size = 0;
        if (ok(st) && !buf_append(key_out, entry->key.data, entry->key.size)) st = ST_NO_MEMORY;
        if (!ok(st)) break;
        page->token = entry->token;
        page->behind = buf_bytes(key_out);
        atomic_fetch_add_explicit(&shard->cluster->fetched_entries, 1, memory_order_relaxed);
        if (fiber_should_yield()) fiber_yield();
    }
    lsm_batch_deinit(&batch);
    return status_is(st, ST_END) ? ST_OK : st;
}

void
cluster_move_rate_set(struct cluster *cluster, u64 bytes_per_s)
{
    atomic_store_explicit(&cluster->move_bytes_per_s, bytes_per_s, memory_order_relaxed);
    atomic_store(&cluster->serve_at_ns, 0); /* what was due by the old one is not */
}

/* How long the source is to keep a scan, so that it need not begin anew for each page just when it
 * is to be spared: until all the fetches of a shard have had a page at this rate. */
static u8
patience_of(u64 rate)
{
    u64 pause_ns = rate == 0 ? 0 : (FETCHES + 1) * (PAGE_BYTES_PACED * NS_PER_S / rate);
    u8 patience = 0;
    while (patience < PATIENCE_MAX && (STREAM_IDLE_NS << patience) < pause_ns)
        patience++;
    return patience;
}

/* Rests for as long as a page of so many bytes may take, beside what is fetched by the shard's
 * other fibers. A node's shards take turns in fetching, so that each has the whole rate. */
MAY_YIELD static void
pace(struct fetch *fetch, u64 bytes)
{
    struct cluster_shard *shard = fetch->shard;
    u64 rate = move_rate(shard);
    fiber_sleep_ns(PAGE_PAUSE_NS);
    if (rate == 0) return;
    u64 page_ns = bytes * NS_PER_S / rate;
    shard->fetch_at_ns = MAX(shard->fetch_at_ns, io_now_ns()) + page_ns;
    while (io_now_ns() < shard->fetch_at_ns && !is_over(fetch)) {
        fiber_sleep_ns(MIN(shard->fetch_at_ns - io_now_ns(), PACE_LOOK_NS));
        if (move_rate(shard) != rate)
            shard->fetch_at_ns = 0; /* what was due by the old one is not */
    }
}

/* ---- sources that fail ---- */

/* One that is not known yet takes the place of the one that became known longest ago. */
static struct cluster_source *
source_note(struct cluster_shard *shard, u32 member)
{
    struct cluster_source *source = source_find(shard, member);
    if (source != NULL) return source;
    source = &shard->fetch_sources[shard->fetch_source_next++ % CLUSTER_SOURCES];
    *source = (struct cluster_source){.member = member, .told = ST_OK};
    return source;
}

static const char *
name_of(const struct fetch *fetch, u32 number)
{
    const struct topology_member *member = topology_member(fetch->topology, number);
    return member == NULL ? "?" : member->node_id;
}

/* Once for each reason, then seldom. That a source is not as far as we are is no news at first. */
static void
note_failure(struct fetch *fetch, const struct range *range, status st)
{
    struct cluster_shard *shard = fetch->shard;
    if (status_is(st, ST_CANCELED)) return;
    struct cluster_source *source = source_note(shard, range->member);
    shard->fetch_failures++;
    source->failures++;
    if (source->failures < FAILURES_QUIET && !status_is(st, ST_CORRUPT)) {
        log_debug("cluster", "fetch failed from=%s keyspace=%u: %s", name_of(fetch, range->member),
                  range->keyspace, status_text(st));
        return;
    }
    atomic_store(&shard->cluster->fetch_failed_from, range->member);
    if (!status_is(st, source->told)) source->told_ns = 0;
    source->told = st;
    if (log_seldom(&source->told_ns, io_now_ns()))
        log_warning("cluster",
                    "a source does not serve what we gain from=%s keyspace=%u partitions=%u-%u "
                    "times=%u reason=\"%s\"",
                    name_of(fetch, range->member), range->keyspace, range->first, range->end - 1,
                    source->failures, status_text(st));
}

static void
note_success(struct fetch *fetch, const struct range *range)
{
    struct cluster_source *source = source_find(fetch->shard, range->member);
    if (source == NULL) return;
    source->failures = 0;
    u32 failed = range->member;
    (void)atomic_compare_exchange_strong(&fetch->shard->cluster->fetch_failed_from, &failed, 0);
}

/* All that the source can read of the range is here. */
static void
note_incomplete(struct fetch *fetch, const struct range *range)
{
    struct cluster_source *source = source_note(fetch->shard, range->member);
    MARK("cluster.fetch.passed_damage");
    fetch->shard->fetch_incomplete++;
    if (source->is_told) return;
    source->is_told = true;
    log_warning("cluster",
                "a source has damaged blocks: what lies in them comes from the other sources, and "
                "what only it has is missing from=%s keyspace=%u partitions=%u-%u",
                name_of(fetch, range->member), range->keyspace, range->first, range->end - 1);
}

/* Whether the source may leave out what is damaged. What one source is enough for has no other. */
static bool
may_pass_damage(const struct fetch *fetch, const struct range *range)
{
    if (!is_damaged(fetch, range->member)) return false;
    for (u32 partition = range->first; partition < range->end; partition++) {
        struct topology_row row;
        topology_row(fetch->topology, range->keyspace, partition, &row);
        if (row.read_quorum < 2) return false;
    }
    return true;
}

/* ---- ranges ---- */

MAY_YIELD static status
page_ask(struct fetch *fetch, const struct range *range, const struct cluster_page *page,
         struct buf *out)
{
    struct cluster_shard *shard = fetch->shard;
    u8 head[CLUSTER_PAGE_HEAD_BYTES];
    cluster_page_encode(page, fetch->topology->session, head);
    struct bytes parts[2] = {BYTES(head, sizeof(head)), page->behind};
    struct native_header header = {
        .opcode = PEER_STREAM, .epoch = fetch->topology->epoch, .keyspace = page->keyspace};
    struct native_header answer;
    bool maybe_sent;
    out->size = 0;
    status st = peer_call_wait(shard->peers, range->member, range->there, &header, parts, 2,
                               io_now_ns() + PAGE_NS, &answer, out, &maybe_sent);
    if (!ok(st)) return st;
    if (answer.status == NATIVE_ST_DAMAGED) source_note(shard, range->member)->is_damaged = true;
    if (answer.status != NATIVE_ST_OK) return native_status_to_base(answer.status);
    if (out->size == 0 || ((out->data[0] & PAGE_MORE) != 0 && out->size == 1)) return ST_CORRUPT;
    return ST_OK;
}

MAY_YIELD static status
fetch_range(struct fetch *fetch, const struct range *range)
{
    struct cluster_shard *shard = fetch->shard;
    u32 count = fetch->topology->partition_count;
    u64 token_first = partition_token_first(range->first, count);
    struct buf key, bytes;
    buf_init(&key, &shard->budget);
    buf_init(&bytes, &shard->budget);
    struct cluster_page page = {.token = token_first,
                                .token_last = range->end == count
                                                  ? UINT64_MAX
                                                  : partition_token_first(range->end, count) - 1,
                                .bytes_max = BUGGIFY("cluster.fetch.small_pages") ? PAGE_BYTES_MIN
                                             : move_rate(shard) == 0              ? PAGE_BYTES
                                                                     : PAGE_BYTES_PACED,
                                .keyspace = (u16)range->keyspace,
                                .passes = may_pass_damage(fetch, range)};
    bool more = true, incomplete = false;
    status st = ST_OK;
    while (more && ok(st)) {
        if (is_over(fetch)) {
            st = ST_CANCELED;
            break;
        }
        page.patience = patience_of(move_rate(shard));
        st = page_ask(fetch, range, &page, &bytes);
        if (!ok(st)) break;
        more = (bytes.data[0] & PAGE_MORE) != 0;
        incomplete |= (bytes.data[0] & PAGE_DAMAGE) != 0;
        atomic_fetch_add_explicit(&shard->cluster->fetched_bytes, bytes.size, memory_order_relaxed);
        st = take_page(fetch, range->member, &page, buf_bytes(&bytes), token_first, &key);
        if (ok(st)) pace(fetch, bytes.size);
    }
    buf_deinit(&key);
    buf_deinit(&bytes);
    if (ok(st) && incomplete) note_incomplete(fetch, range);
    return st;
}

/* Whether the partition lies on this shard, is gained, and is to be fetched from the member. */
static bool
is_wanted(const struct fetch *fetch, u32 keyspace, const struct topology_member *member,
          u32 partition)
{
    const struct topology *topology = fetch->topology;
    bool enough;
    return partition_shard(partition, fetch->shard->cluster->options.shard_count,
                           topology->partition_count) == fetch->shard->index &&
           topology_gains(topology, fetch->self, keyspace, partition) &&
           is_source(fetch, keyspace, partition, member->number, &enough);
}

/* The next one that nobody has; false: no more. Member by member within a keyspace. */
static bool
next_range(struct fetch *fetch, struct range *out)
{
    const struct topology *topology = fetch->topology;
    u32 count = topology->partition_count;
    for (; fetch->keyspace < LIMIT_KEYSPACES_CLIENT; fetch->keyspace++, fetch->member_at = 0) {
        if (!topology->keyspaces[fetch->keyspace].used) continue;
        for (; fetch->member_at < topology->member_count;
             fetch->member_at++, fetch->partition = 0) {
            const struct topology_member *member = &topology->members[fetch->member_at];
            if (member->number == fetch->self || !fetch->alive[fetch->member_at]) continue;
            u32 *at = &fetch->partition;
            while (*at < count && !is_wanted(fetch, fetch->keyspace, member, *at))
                (*at)++;
            if (*at == count) continue;
            *out = (struct range){.keyspace = fetch->keyspace,
                                  .member = member->number,
                                  .there = partition_shard(*at, member->shard_count, count),
                                  .first = *at};
            while (*at < count && partition_shard(*at, member->shard_count, count) == out->there &&
                   is_wanted(fetch, fetch->keyspace, member, *at))
                (*at)++;
            out->end = *at;
            return true;
        }
    }
    return false;
}

/* Ranges are small where many nodes share many partitions, and then it is the way to and fro that
 * takes the time: so some are under way at once. */
MAY_YIELD static void
fetch_ranges(void *arg)
{
    struct fetch *fetch = arg;
    struct range range;
    while (ok(fetch->st) && next_range(fetch, &range)) {
        status st = fetch_range(fetch, &range);
        if (ok(st)) {
            note_done(fetch, &range);
            note_success(fetch, &range);
            atomic_fetch_add(&fetch->shard->cluster->fetch_done, range.end - range.first);
            continue;
        }
        note_failure(fetch, &range, st);
        if (ok(fetch->st)) fetch->st = st;
        /* Somebody else may serve. One with damage comes last anyway. */
        if (!is_damaged(fetch, range.member)) fetch->shard->fetch_avoid = range.member;
    }
    fetch->running--;
    fiber_queue_wake_all(&fetch->ended);
}

/* Whether each partition has sources enough. */
static bool
have_sources(const struct fetch *fetch, u32 keyspace)
{
    const struct topology *topology = fetch->topology;
    u32 shards = fetch->shard->cluster->options.shard_count;
    for (u32 partition = 0; partition < topology->partition_count; partition++) {
        bool enough = true;
        if (partition_shard(partition, shards, topology->partition_count) != fetch->shard->index ||
            !topology_gains(topology, fetch->self, keyspace, partition))
            continue;
        (void)is_source(fetch, keyspace, partition, 0, &enough);
        if (!enough) return false;
    }
    return true;
}

static bool
have_all_sources(const struct fetch *fetch)
{
    for (u32 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++)
        if (fetch->topology->keyspaces[keyspace].used && !have_sources(fetch, keyspace))
            return false;
    return true;
}

/* Whom to ask: who lives, but for the one who has just refused, if it goes without. */
static status
choose_sources(struct fetch *fetch)
{
    const struct topology *topology = fetch->topology;
    u32 avoid = fetch->shard->fetch_avoid;
    fetch->shard->fetch_avoid = 0;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 number = topology->members[i].number;
        fetch->alive[i] = number != avoid && cluster_alive(fetch->shard->cluster, number);
    }
    if (have_all_sources(fetch)) return ST_OK;
    if (avoid == 0) return ST_UNAVAILABLE;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 number = topology->members[i].number;
        fetch->alive[i] = cluster_alive(fetch->shard->cluster, number);
    }
    return have_all_sources(fetch) ? ST_OK : ST_UNAVAILABLE;
}

MAY_YIELD static status
fetch_all(struct fetch *fetch)
{
    status st = choose_sources(fetch);
    if (!ok(st)) return st;
    fiber_queue_init(&fetch->ended);
    fetch->running = 1;
    for (u32 i = 1; i < FETCHES; i++) {
        if (!ok(fiber_spawn(FIBER_BULK, "cluster fetch", fetch_ranges, fetch))) break;
        fetch->running++;
    }
    fetch_ranges(fetch);
    while (fetch->running > 0)
        (void)!ok(fiber_queue_wait(&fetch->ended, FIBER_FOREVER));
    return fetch->st;
}

void
cluster_fetched_free(struct cluster_shard *shard)
{
    mem_free(&shard->budget, shard->fetched, shard->fetched_size);
    shard->fetched = NULL;
    shard->fetched_size = 0;
}

/* What earlier attempts have fetched counts as long as the plan and who had what before it are the
 * same: a source told all that it had behind the fence, and writes came here, too, from then on. */
static bool
fetched_keep(struct cluster_shard *shard, const struct topology *topology)
{
    size_t bytes = (size_t)LIMIT_KEYSPACES_CLIENT * topology->partition_count;
    size_t ids = (size_t)topology->current.partition_count * topology->current.width *
                 sizeof(*topology->current.ids);
    u64 of = hash_bytes(topology->current.ids, ids, topology->session);
    if (shard->fetched != NULL && shard->fetched_size == bytes && shard->fetched_of == of)
        return true;
    cluster_fetched_free(shard);
    shard->fetched = mem_alloc_zero(&shard->budget, bytes);
    if (shard->fetched == NULL) return false;
    shard->fetched_size = bytes;
    shard->fetched_of = of;
    shard->fetched_seq = 0;
    memset(shard->fetch_sources, 0, sizeof(shard->fetch_sources));
    return true;
}

MAY_YIELD u64
cluster_fetch_size(struct cluster_shard *shard)
{
    struct topology *topology = shard->topology;
    u32 self = cluster_member(shard->cluster);
    u64 size = 0;
    topology_hold(topology);
    for (u32 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        if (!topology->keyspaces[keyspace].used) continue;
        for (u32 partition = 0; partition < topology->partition_count; partition++) {
            if (fiber_should_yield()) fiber_yield();
            if (!topology_gains(topology, self, keyspace, partition)) continue;
            struct topology_row row;
            topology_row(topology, keyspace, partition, &row);
            u32 sources = row.read_quorum;
            for (u32 i = 0; i < row.count && sources != 0; i++)
                if (row.write[i] == self) sources--;
            size += sources;
        }
    }
    topology_release(topology);
    return size;
}

MAY_YIELD status
cluster_fetch(struct cluster_shard *shard)
{
    if (shard->topology == NULL) return ST_CANCELED;
    struct fetch fetch = {
        .shard = shard, .topology = shard->topology, .self = cluster_member(shard->cluster)};
    if (fetch.topology->stage != STAGE_WRITE_BOTH || !topology_fenced(fetch.topology))
        return ST_CANCELED;
    topology_hold(fetch.topology);
    shard->streams++; /* closing waits */
    shard->fetching = fetch.topology->session;
    u32 count = fetch.topology->member_count;
    fetch.alive = mem_alloc_zero(&shard->budget, count);
    bool room = fetch.alive != NULL && fetched_keep(shard, fetch.topology);
    status st = room ? fetch_all(&fetch) : ST_NO_MEMORY;
    if (ok(st) && shard->fetched_seq != 0) st = lsm_wait_durable(shard->lsm, shard->fetched_seq);
    if (ok(st)) cluster_fetched_free(shard);
    mem_free(&shard->budget, fetch.alive, count);
    topology_release(fetch.topology);
    shard->fetching = 0;
    shard->streams--;
    fiber_queue_wake_all(&shard->ended);
    return st;
}
