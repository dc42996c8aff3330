/* SPDX-License-Identifier: MIT
 *
 * cluster_fetch.c -- moving data: who gains partitions asks those who have them, page by page.
 *
 *   gainer, each shard for its own partitions            source, the shard that has them
 *   PEER_STREAM  keyspace, tokens, behind (token, key)  -->  a scan of everything: tombstones and
 *                                                            expired entries, too
 *   writes each entry with its version            <-----     a page of entries, and whether more
 *
 * This is the gainer; what a source does is in cluster_stream.c.
 *
 * Each partition is fetched from so many members that one of any write quorum is among them
 * (topology_fetch_quorum): so what was acknowledged is, too, whoever was away when it was written.
 * Where W + R > N that is a read quorum. Sources answer behind the fence of the stage alone. Versions decide in the gainer's store as everywhere, so
 * pages may come twice, and in any order with writes.
 *
 * Neighbouring partitions that lie on one shard of the same source are one range, FETCHES of which
 * are fetched at once, at the rate of cluster_move_rate_set. What was fetched is not fetched again
 * when an attempt fails half-way; the next one does without whoever has refused, where others are
 * enough.
 *
 * A partition of which too few live waits for them, and no other one does. Who was given up
 * (TOPOLOGY_GONE) is not waited for: so many of those who are left are asked, and what nobody is
 * left of begins empty.
 *
 * Damage. A source whose store meets a damaged block refuses, and is then asked only for what those
 * without damage are too few for, and to pass over it: so one bad block does not hold up the rest.
 * What lay there comes from the other sources; a write that only the damaged one and a lost one had
 * acknowledged is lost by the two together. Where one source is enough there is no other, and
 * damage would pass for absence: such a source is not asked so, and the fetch waits.
 */
#include "cluster/cluster_stream.h"

#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "io/io.h"
#include "proto/peer.h"

#define PAGE_BYTES       (256u << 10)
#define PAGE_BYTES_PACED (64u << 10)
#define FETCHES          4u /* of one shard, under way at once */
#define PAGE_PAUSE_NS    (500 * NS_PER_US)
#define CLOCK_NS         (10 * NS_PER_S)
#define CLOCK_LOOK_NS    (50 * NS_PER_MS)

static_assert(PAGE_BYTES_PACED >= STREAM_PAGE_LONG && PAGE_BYTES >= STREAM_PAGE_LONG,
              "a move reads far ahead, however slowly it goes");

/* In a row, of one source, they are no news: it may not be as far as we are. */
#define FAILURES_QUIET 8u

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
    u32 first, end;   /* partitions */
    bool failed_here; /* in our own store, or for want of our memory: the source may well serve */
    bool unsent;      /* for that, or as its connection is full */
    bool served;      /* a page of it */
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

/* Whether the partition is to be fetched from the member; *enough: whether enough of them live.
 * Those without damage come first. What no member has any more is lost: there is nothing to fetch,
 * and nobody to wait for. */
static bool
is_source(const struct fetch *fetch, u32 keyspace, u32 partition, u32 member, bool *enough)
{
    struct topology_row row;
    topology_row(fetch->topology, keyspace, partition, &row);
    u32 have = 0, wanted = topology_fetch_quorum(fetch->topology, keyspace, &row);
    u8 done = *done_of(fetch, keyspace, partition);
    bool found = false;
    for (u32 i = 0; i < row.count; i++) /* what is here already */
        if (row.write[i] == fetch->self || (done & 1u << i) != 0) have++;
    for (u32 i = 0; i < 2 * row.count && have < wanted; i++) {
        u32 at = i % row.count, from = row.write[at];
        if (from == fetch->self || (done & 1u << at) != 0) continue;
        if (!is_alive(fetch, from) || is_damaged(fetch, from) != (i >= row.count)) continue;
        have++;
        if (from == member) found = true;
    }
    *enough = have >= wanted;
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

/* A state of a key that keeps siblings joins what is here. It waits for room, as lsm_write does:
 * that there is none is no failure of the source. */
MAY_YIELD static status
take_state(struct fetch *fetch, u16 keyspace, const struct cluster_page_entry *found, u64 *seq_out)
{
    struct replicate_state state = {.keyspace = keyspace,
                                    .token = found->entry.token,
                                    .key = found->entry.key,
                                    .found = !found->deleted,
                                    .version = found->entry.version,
                                    .value = found->entry.value};
    return replicate_merge(fetch->shard->replicator, &state, FIBER_FOREVER, seq_out);
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
take_page(struct fetch *fetch, struct range *range, struct cluster_page *page, struct bytes bytes,
          struct buf *key_out)
{
    struct cluster_shard *shard = fetch->shard;
    u64 token_first = partition_token_first(range->first, fetch->topology->partition_count);
    struct lsm_batch batch;
    lsm_batch_init(&batch, &shard->budget);
    struct cluster_page_entry found;
    size_t at = 1;
    status st;
    while (ok(st = cluster_page_next(bytes, false, &at, &found))) {
        const struct cluster_entry *entry = &found.entry;
        if (entry->token < token_first || entry->token > page->token_last) {
            st = ST_CORRUPT;
            break;
        }
        st = observe(fetch, entry->version, range->member);
        /* Not if most others' clocks would refuse it, too: it was stamped by one that was ahead. */
        range->failed_here = ok(st) || hlc_wall_ms(entry->version) <=
                                           cluster_wall_ms(shard->cluster) + HLC_AHEAD_MS_MAX;
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
        if (!ok(st)) {
            /* Of a set that only some sources have: others may be enough. */
            if (status_is(st, ST_TOO_LARGE)) range->failed_here = false;
            break;
        }
        range->failed_here = false;
        page->token = entry->token;
        page->behind = buf_bytes(key_out);
        atomic_fetch_add_explicit(&shard->cluster->fetched_entries, 1, memory_order_relaxed);
        if (fiber_should_yield()) fiber_yield();
    }
    lsm_batch_deinit(&batch);
    return status_is(st, ST_END) ? ST_OK : st;
}

/* How long the source is to keep a scan, so that it need not begin anew for each page just when it
 * is to be spared: until all the fetches of a shard have had a page at this rate. */
static u8
patience_of(u64 rate)
{
    u64 pause_ns = rate == 0 ? 0 : (FETCHES + 1) * (PAGE_BYTES_PACED * NS_PER_S / rate);
    u8 patience = 0;
    while (patience < STREAM_PATIENCE_MAX && (STREAM_IDLE_NS << patience) < pause_ns)
        patience++;
    return patience;
}

/* Rests for as long as a page of so many bytes may take, beside what is fetched by the shard's
 * other fibers. A node's shards take turns in fetching, so that each has the whole rate. */
MAY_YIELD static void
pace(struct fetch *fetch, u64 bytes)
{
    struct cluster_shard *shard = fetch->shard;
    u64 rate = cluster_move_rate(shard);
    fiber_sleep_ns(PAGE_PAUSE_NS);
    if (rate == 0) return;
    u64 page_ns = bytes * NS_PER_S / rate;
    shard->fetch_at_ns = MAX(shard->fetch_at_ns, io_now_ns()) + page_ns;
    while (io_now_ns() < shard->fetch_at_ns && !is_over(fetch)) {
        fiber_sleep_ns(MIN(shard->fetch_at_ns - io_now_ns(), STREAM_PACE_LOOK_NS));
        if (cluster_move_rate(shard) != rate)
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

/* Nobody else would do better: the source is asked again. That a request does not get away is no
 * news at first, and another connection may have room. */
static void
note_own_failure(struct fetch *fetch, const struct range *range, status st)
{
    struct cluster_shard *shard = fetch->shard;
    if (status_is(st, ST_CANCELED)) return;
    shard->fetch_failures++;
    if (range->unsent && ++shard->fetch_unsent < FAILURES_QUIET) return;
    if (log_seldom(&shard->fetch_told_ns, io_now_ns()))
        log_warning("cluster",
                    "what this node gains does not get into its store keyspace=%u "
                    "partitions=%u-%u failures=%llu reason=\"%s\"",
                    range->keyspace, range->first, range->end - 1,
                    (unsigned long long)shard->fetch_failures, status_text(st));
}

static void
note_no_memory(struct cluster_shard *shard)
{
    shard->fetch_failures++;
    if (log_seldom(&shard->fetch_told_ns, io_now_ns()))
        log_warning("cluster", "no memory to fetch what this node gains shard=%u", shard->index);
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
        if (topology_fetch_quorum(fetch->topology, range->keyspace, &row) < 2) return false;
    }
    return true;
}

/* ---- ranges ---- */

MAY_YIELD static status
page_ask(struct fetch *fetch, struct range *range, const struct cluster_page *page, struct buf *out)
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
                               io_now_ns() + STREAM_PAGE_NS, &answer, out, &maybe_sent);
    range->unsent = status_is(st, ST_OVERLOADED) && !maybe_sent;
    range->failed_here = range->unsent || status_is(st, ST_NO_MEMORY);
    if (!ok(st)) return st;
    shard->fetch_unsent = 0;
    if (answer.status == NATIVE_ST_DAMAGED) source_note(shard, range->member)->is_damaged = true;
    if (answer.status != NATIVE_ST_OK) return native_status_to_base(answer.status);
    if (out->size == 0 || ((out->data[0] & STREAM_MORE) != 0 && out->size == 1)) return ST_CORRUPT;
    range->served = true;
    return ST_OK;
}

MAY_YIELD static status
fetch_range(struct fetch *fetch, struct range *range)
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
                                .bytes_max = BUGGIFY("cluster.fetch.small_pages") ? STREAM_PAGE_MIN
                                             : cluster_move_rate(shard) == 0      ? PAGE_BYTES
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
        page.patience = patience_of(cluster_move_rate(shard));
        st = page_ask(fetch, range, &page, &bytes);
        if (!ok(st)) break;
        more = (bytes.data[0] & STREAM_MORE) != 0;
        incomplete |= (bytes.data[0] & STREAM_DAMAGE) != 0;
        atomic_fetch_add_explicit(&shard->cluster->fetched_bytes, bytes.size, memory_order_relaxed);
        st = take_page(fetch, range, &page, buf_bytes(&bytes), &key);
        if (ok(st)) pace(fetch, bytes.size);
    }
    buf_deinit(&key);
    buf_deinit(&bytes);
    if (ok(st) && incomplete) note_incomplete(fetch, range);
    return st;
}

/* Whether the partition lies on this shard, and is gained. */
static bool
is_gained(const struct fetch *fetch, u32 keyspace, u32 partition)
{
    const struct topology *topology = fetch->topology;
    return partition_shard(partition, fetch->shard->cluster->options.shard_count,
                           topology->partition_count) == fetch->shard->index &&
           topology_gains(topology, fetch->self, keyspace, partition);
}

/* And whether it is to be fetched from the member. */
static bool
is_wanted(const struct fetch *fetch, u32 keyspace, const struct topology_member *member,
          u32 partition)
{
    bool enough;
    return is_gained(fetch, keyspace, partition) &&
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
        if (ok(fetch->st)) fetch->st = st;
        if (range.failed_here) {
            note_own_failure(fetch, &range, st);
            if (range.served) note_success(fetch, &range);
            if (!range.unsent) continue;
        } else {
            note_failure(fetch, &range, st);
        }
        /* Somebody else may serve. One with damage comes last anyway. */
        if (!is_damaged(fetch, range.member)) fetch->shard->fetch_avoid = range.member;
    }
    fetch->running--;
    fiber_queue_wake_all(&fetch->ended);
}

static void
wait_add(struct cluster_fetch_left *left, u32 keyspace, u32 member)
{
    u32 i = 0;
    while (i < left->wait_count &&
           (left->waits[i].keyspace != keyspace || left->waits[i].member != member))
        i++;
    if (i == CLUSTER_FETCH_WAITS) return;
    if (i == left->wait_count)
        left->waits[left->wait_count++] =
            (struct cluster_fetch_wait){.keyspace = keyspace, .member = member};
    left->waits[i].partitions++;
}

/* Whom the partition, of which too few live, waits for. */
static void
waits_note(const struct fetch *fetch, u32 keyspace, u32 partition, struct cluster_fetch_left *left)
{
    struct topology_row row;
    topology_row(fetch->topology, keyspace, partition, &row);
    for (u32 i = 0; i < row.count; i++)
        if (row.write[i] != fetch->self && !cluster_alive(fetch->shard->cluster, row.write[i]) &&
            (*done_of(fetch, keyspace, partition) & 1u << i) == 0)
            wait_add(left, keyspace, row.write[i]);
}

/* How many partitions have too few sources; left may be NULL. */
MAY_YIELD static u32
count_lacking(const struct fetch *fetch, struct cluster_fetch_left *left)
{
    u32 lacking = 0;
    for (u32 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        if (!fetch->topology->keyspaces[keyspace].used) continue;
        for (u32 partition = 0; partition < fetch->topology->partition_count; partition++) {
            if (fiber_should_yield()) fiber_yield();
            bool enough = true;
            if (!is_gained(fetch, keyspace, partition)) continue;
            (void)is_source(fetch, keyspace, partition, 0, &enough);
            lacking += !enough;
            if (!enough && left != NULL) waits_note(fetch, keyspace, partition, left);
        }
    }
    return lacking;
}

/* Whether anything can be fetched now: to find the next range takes a walk that does not yield, and
 * who waits for somebody looks again every second. */
MAY_YIELD static bool
have_some(const struct fetch *fetch)
{
    for (u32 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        if (!fetch->topology->keyspaces[keyspace].used) continue;
        for (u32 partition = 0; partition < fetch->topology->partition_count; partition++) {
            if (fiber_should_yield()) fiber_yield();
            if (!is_gained(fetch, keyspace, partition)) continue;
            struct topology_row row;
            bool enough;
            topology_row(fetch->topology, keyspace, partition, &row);
            for (u32 i = 0; i < row.count; i++)
                if (is_source(fetch, keyspace, partition, row.write[i], &enough)) return true;
        }
    }
    return false;
}

MAY_YIELD static void
count_lost(const struct fetch *fetch, struct cluster_fetch_left *left)
{
    for (u32 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        if (!fetch->topology->keyspaces[keyspace].used) continue;
        for (u32 partition = 0; partition < fetch->topology->partition_count; partition++) {
            if (fiber_should_yield()) fiber_yield();
            struct topology_row row;
            topology_row(fetch->topology, keyspace, partition, &row);
            left->lost[keyspace] += row.count == 0 && is_gained(fetch, keyspace, partition);
        }
    }
}

static void
choose_all_but(struct fetch *fetch, u32 avoid)
{
    const struct topology *topology = fetch->topology;
    for (u32 i = 0; i < topology->member_count; i++) {
        u32 number = topology->members[i].number;
        fetch->alive[i] = number != avoid && cluster_alive(fetch->shard->cluster, number);
    }
}

/* Whom to ask: who lives, but for the one who has just refused, if it goes without. */
MAY_YIELD static void
choose_sources(struct fetch *fetch)
{
    u32 avoid = fetch->shard->fetch_avoid;
    fetch->shard->fetch_avoid = 0;
    choose_all_but(fetch, avoid);
    if (avoid == 0) return;
    u32 lacking = count_lacking(fetch, NULL);
    if (lacking == 0) return;
    choose_all_but(fetch, 0);
    if (count_lacking(fetch, NULL) == lacking) choose_all_but(fetch, avoid);
}

MAY_YIELD static void
fetch_some(struct fetch *fetch)
{
    fiber_queue_init(&fetch->ended);
    fetch->running = 1;
    for (u32 i = 1; i < FETCHES; i++) {
        if (!ok(fiber_spawn(FIBER_BULK, "cluster fetch", fetch_ranges, fetch))) break;
        fetch->running++;
    }
    fetch_ranges(fetch);
    while (fetch->running > 0)
        (void)!ok(fiber_queue_wait(&fetch->ended, FIBER_FOREVER));
}

MAY_YIELD static status
fetch_all(struct fetch *fetch, struct cluster_fetch_left *left)
{
    choose_sources(fetch);
    if (have_some(fetch)) fetch_some(fetch);
    /* What has too few sources holds up nothing that has. */
    u32 lacking = count_lacking(fetch, left);
    if (!ok(fetch->st) || lacking != 0) return ok(fetch->st) ? ST_UNAVAILABLE : fetch->st;
    count_lost(fetch, left);
    return ST_OK;
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
            u32 sources = topology_fetch_quorum(topology, keyspace, &row);
            for (u32 i = 0; i < row.count && sources != 0; i++)
                if (row.write[i] == self) sources--;
            size += sources;
        }
    }
    topology_release(topology);
    return size;
}

MAY_YIELD status
cluster_fetch(struct cluster_shard *shard, struct cluster_fetch_left *left)
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
    status st = room ? fetch_all(&fetch, left) : ST_NO_MEMORY;
    if (!room) note_no_memory(shard);
    if (ok(st) && shard->fetched_seq != 0) st = lsm_wait_durable(shard->lsm, shard->fetched_seq);
    if (ok(st)) cluster_fetched_free(shard);
    mem_free(&shard->budget, fetch.alive, count);
    topology_release(fetch.topology);
    shard->fetching = 0;
    shard->streams--;
    fiber_queue_wake_all(&shard->ended);
    return st;
}
