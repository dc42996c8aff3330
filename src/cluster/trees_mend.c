/* SPDX-License-Identifier: MIT
 *
 * trees_mend.c -- what lay in damaged blocks of this shard's tables is brought from the other
 * replicas. See lsm_damage_next.
 *
 *   this shard, for each damaged table                  each other living replica of the partition
 *   PEER_STREAM  the tokens of the damaged blocks  -->  all that it has of them, tombstones, too
 *   writes it, version by version              <--
 *   what only this store has, and was deleted, is deleted again
 *   the store merges the table away, without those blocks
 *
 * Why nothing is lost. What was acknowledged lies on W replicas, so on W - 1 others at least, and R
 * of the N - 1 others meet those (R + W > N). R of them are asked, each without damage of its own,
 * or nothing is done. So a node by itself, and a keyspace of one replica, or of as many as R, mends
 * nothing: what is damaged there is refused, never dropped.
 *
 * Why nothing comes back. The damaged block may have held a tombstone, which hides older values of
 * this store, and the others may have collected theirs: before the block rotted, or after, since
 * what trees say of it was summed when it could be read. So a value that this store alone has, of
 * which R others have nothing at all, is in doubt:
 *   below what is settled     all replicas had the same of it (A3), so it was hidden by what they
 *                             have collected since: it is deleted here
 *   from `oldest` on          a tombstone above it was not settled when this began, and between the
 *                             settling of a version and its collection lies TREES_GRACE_NS, more
 *                             than an attempt takes: it is on its way, and stays
 *   between                   it may be one of a few replicas that have acknowledged it, or have
 * been deleted; nobody can tell, so nothing is left out of the table
 *
 * Keyspaces that keep siblings are left as they are: what is gone there is not told by versions.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "cluster/replicate_internal.h"
#include "cluster/trees_internal.h"
#include "io/io.h"

#define MEND_LOOK_NS (5 * NS_PER_S)
/* What cannot be mended is tried again less and less often: each attempt writes what it brings. */
#define MEND_LOOK_NS_MAX (60 * NS_PER_S)
/* Of the tokens of one partition. */
#define MEND_NS (60 * NS_PER_S)
static_assert(MEND_NS < TREES_GRACE_NS, "nothing of it is collected meanwhile");
/* For snapshots of before what was brought. */
#define SNAPSHOTS_NS (30 * NS_PER_S)

struct mending {
    struct trees *t;
    u16 keyspace;
    u32 partition;
    u64 token_first, token_last; /* inside of the partition */
    u64 oldest, stage_epoch, until_ns;
    u32 sources[LIMIT_PLACEMENT_REPLICAS]; /* who has told all that it has */
    u32 source_count;
    u64 brought, deleted; /* entries */
    struct buf page;
    u8 key[LIMIT_KEY_BYTES];
};

static bool
is_over(const struct mending *m)
{
    const struct topology *topology = m->t->shard->topology;
    return trees_is_ending(m->t) || topology->stage != STAGE_NONE ||
           topology->stage_epoch != m->stage_epoch || io_now_ns() >= m->until_ns;
}

/* ---- others ---- */

MAY_YIELD static status
page_ask(struct mending *m, u32 number, const struct cluster_page *page)
{
    struct trees *t = m->t;
    const struct topology_member *member = topology_member(t->shard->topology, number);
    if (member == NULL || member->shard_count == 0) return ST_UNAVAILABLE;
    u32 there = partition_shard(m->partition, member->shard_count, t->partition_count);
    u8 head[CLUSTER_PAGE_HEAD_BYTES];
    cluster_page_encode(page, 0, head);
    struct bytes parts[] = {BYTES(head, sizeof(head)), page->behind};
    struct native_header answered, header = {.opcode = PEER_STREAM,
                                             .epoch = t->shard->topology->epoch,
                                             .keyspace = m->keyspace};
    bool maybe_sent;
    buf_clear(&m->page, m->page.capacity);
    status st = peer_call_wait(t->shard->peers, number, there, &header, parts, ARRAY_COUNT(parts),
                               io_now_ns() + TREES_PAGE_NS, &answered, &m->page, &maybe_sent);
    if (ok(st) && answered.status != NATIVE_ST_OK) st = native_status_to_base(answered.status);
    if (!ok(st)) return st;
    trees_pace(t, m->page.size);
    /* Each page goes on, or somebody could keep us here for ever. */
    if (m->page.size == 0 || (m->page.data[0] != 0 && m->page.size == 1)) return ST_CORRUPT;
    return is_over(m) ? ST_CANCELED : ST_OK;
}

MAY_YIELD static status
store(struct mending *m, const struct cluster_entry *entry, u64 version, bool deleted)
{
    struct replicator *replicator = m->t->shard->replicator;
    struct lsm_batch batch;
    lsm_batch_init(&batch, &m->t->shard->budget);
    batch.version = version;
    bool fits = deleted ? lsm_batch_delete(&batch, m->keyspace, entry->token, entry->key)
                        : lsm_batch_put(&batch, m->keyspace, entry->token, entry->key, entry->value,
                                        entry->expire_ms);
    u64 seq;
    status st =
        fits ? replicate_store(replicator, m->keyspace, m->partition, &batch, &seq) : ST_NO_MEMORY;
    lsm_batch_deinit(&batch);
    return st;
}

/* All that the member has of the tokens. */
MAY_YIELD static status
bring(struct mending *m, u32 member)
{
    struct cluster_page page = {.token = m->token_first,
                                .token_last = m->token_last,
                                .bytes_max = TREES_PAGE_BYTES,
                                .keyspace = m->keyspace};
    bool more = true;
    while (more) {
        status st = page_ask(m, member, &page);
        if (!ok(st)) return st;
        more = m->page.data[0] != 0;
        size_t at = 1;
        struct cluster_page_entry found;
        while (ok(st = cluster_page_next(buf_bytes(&m->page), &at, &found))) {
            const struct cluster_entry *entry = &found.entry;
            if (entry->token < page.token || entry->token > m->token_last) return ST_CORRUPT;
            if (is_over(m)) return ST_CANCELED;
            st = store(m, entry, entry->version, found.deleted);
            if (!ok(st)) return st;
            m->brought++;
            memcpy(m->key, entry->key.data, entry->key.size);
            page.token = entry->token;
            page.behind = BYTES(m->key, entry->key.size);
            if (fiber_should_yield()) fiber_yield();
        }
        if (!status_is(st, ST_END)) return st;
    }
    return ST_OK;
}

/* ST_OK: the member has something of the key; ST_END: nothing. */
MAY_YIELD static status
ask_key(struct mending *m, u32 member, u64 token, struct bytes key)
{
    u8 behind[LIMIT_KEY_BYTES];
    struct cluster_page page = {.token = token,
                                .token_last = token,
                                .bytes_max = TREES_PAGE_BYTES,
                                .keyspace = m->keyspace,
                                .keys_only = true};
    bool more = true;
    while (more) {
        status st = page_ask(m, member, &page);
        if (!ok(st)) return st;
        more = m->page.data[0] != 0;
        size_t at = 1;
        struct cluster_page_entry found;
        while (ok(st = cluster_page_next(buf_bytes(&m->page), &at, &found))) {
            if (bytes_equal(found.entry.key, key)) return ST_OK;
            memcpy(behind, found.entry.key.data, found.entry.key.size);
            page.behind = BYTES(behind, found.entry.key.size);
        }
        if (!status_is(st, ST_END)) return st;
    }
    return ST_END;
}

/* ---- what only this store has ---- */

/* Nothing is done if one of those who were asked has it. */
MAY_YIELD static status
decide(struct mending *m, u64 token, struct bytes key, u64 version)
{
    for (u32 i = 0; i < m->source_count; i++) {
        status st = ask_key(m, m->sources[i], token, key);
        if (!status_is(st, ST_END)) return st;
    }
    const struct trees *t = m->t;
    if (version >= t->settled[m->partition - t->first].last)
        return MARKED("cluster.trees.mend_in_doubt", ST_CONFLICT);
    MARK("cluster.trees.mend_deletes");
    /* Right above it: nothing else of the key is there, or will come below what is settled. */
    struct cluster_entry entry = {.token = token, .key = key};
    status st = store(m, &entry, version + 1, true);
    if (ok(st)) m->deleted++;
    return st;
}

/* seq: before anything was brought. What has a higher number is known to others, or new. */
MAY_YIELD static status
delete_hidden(struct mending *m, u64 seq)
{
    struct lsm *lsm = m->t->shard->lsm;
    struct lsm_scan *scan;
    status st =
        lsm_scan_open(lsm, NULL, m->keyspace, m->token_first, BYTES(NULL, 0), m->token_last, &scan);
    if (!ok(st)) return st;
    lsm_scan_whole(scan);
    lsm_scan_over_damage(scan);
    u64 token;
    struct bytes key;
    struct lsm_value value;
    while (ok(st = lsm_scan_next(scan, false, &token, &key, &value))) {
        bool deleted = lsm_scan_deleted(scan);
        if (is_over(m)) st = ST_CANCELED;
        if (ok(st) && !deleted && value.seq <= seq && value.version < m->oldest)
            st = decide(m, token, key, value.version);
        if (!ok(st)) break;
        if (fiber_should_yield()) fiber_yield();
    }
    lsm_scan_close(scan);
    return status_is(st, ST_END) ? ST_OK : st;
}

/* ---- tokens, tables ---- */

MAY_YIELD static status
mend_partition(struct mending *m)
{
    struct trees *t = m->t;
    struct cluster *cluster = t->shard->cluster;
    const struct topology *topology = t->shard->topology;
    u32 self = cluster_member(cluster);
    struct topology_row row;
    topology_row(topology, m->keyspace, m->partition, &row);
    m->stage_epoch = topology->stage_epoch;
    m->until_ns = io_now_ns() + MEND_NS;
    m->oldest = cluster_oldest(cluster, m->stage_epoch); /* before anybody is asked */
    m->source_count = 0;
    bool holds = false;
    u32 living = 0;
    for (u32 i = 0; i < row.count; i++) {
        holds = holds || row.write[i] == self;
        living += row.write[i] != self && cluster_alive(cluster, row.write[i]);
    }
    if (!holds || row.places != row.count || living < row.read_quorum || m->oldest == 0 ||
        is_over(m))
        return ST_UNAVAILABLE;
    u64 seq = lsm_seq_last(t->shard->lsm);
    for (u32 i = 0; i < row.count; i++) {
        if (row.write[i] == self || !cluster_alive(cluster, row.write[i])) continue;
        status st = bring(m, row.write[i]);
        if (ok(st)) m->sources[m->source_count++] = row.write[i];
        if (is_over(m)) return ST_CANCELED;
    }
    if (m->source_count < row.read_quorum) return ST_UNAVAILABLE;
    return delete_hidden(m, seq);
}

MAY_YIELD static status
mend_tokens(struct mending *m, u64 first, u64 last)
{
    struct trees *t = m->t;
    u64 own_first, own_last;
    lsm_tokens(t->shard->lsm, &own_first, &own_last);
    first = MAX(first, own_first);
    last = MIN(last, own_last);
    status st = ST_OK;
    for (u64 at = first; ok(st) && at <= last;) {
        m->partition = token_partition(at, t->partition_count);
        m->token_first = at;
        m->token_last = MIN(last, partition_token_last(m->partition, t->partition_count));
        st = mend_partition(m);
        if (m->token_last == UINT64_MAX) break;
        at = m->token_last + 1;
    }
    return st;
}

/* The store may leave the blocks out. */
MAY_YIELD static status
tell_store(struct trees *t, const struct lsm_damage *damage)
{
    struct lsm *lsm = t->shard->lsm;
    u64 seq = lsm_seq_last(lsm), until_ns = io_now_ns() + SNAPSHOTS_NS;
    status st;
    while (status_is(st = lsm_damage_brought(lsm, damage, seq), ST_WOULD_WAIT)) {
        if (trees_is_ending(t) || io_now_ns() >= until_ns) return ST_TIMED_OUT;
        (void)!ok(fiber_queue_wait(&t->wake, io_now_ns() + NS_PER_S));
    }
    return st;
}

MAY_YIELD static status
mend_table(struct trees *t, const struct lsm_damage *damage)
{
    struct mending *m = mem_alloc_zero(&t->shard->budget, sizeof(*m));
    if (m == NULL) return ST_NO_MEMORY;
    m->t = t;
    m->keyspace = damage->keyspace;
    buf_init(&m->page, &t->shard->budget);
    status st = ST_OK;
    for (u32 i = 0; ok(st) && i < damage->tokens.count; i++)
        st = mend_tokens(m, damage->tokens.gaps[i].token_first, damage->tokens.gaps[i].token_last);
    if (ok(st)) st = tell_store(t, damage);
    if (ok(st))
        log_warning("cluster",
                    "what lay in damaged blocks came from replicas, and the store merges them away "
                    "keyspace=%u file=%016llx entries=%llu deleted=%llu",
                    m->keyspace, (unsigned long long)damage->file_id,
                    (unsigned long long)m->brought, (unsigned long long)m->deleted);
    buf_deinit(&m->page);
    mem_free(&t->shard->budget, m, sizeof(*m));
    return st;
}

static bool
may_mend(const struct trees *t, u32 keyspace)
{
    const struct topology *topology = t->shard->topology;
    return keyspace < LIMIT_KEYSPACES_CLIENT && topology->keyspaces[keyspace].used &&
           topology->keyspaces[keyspace].replicas > 1 &&
           topology->keyspaces[keyspace].conflict == CONFLICT_LWW;
}

/* False: something is left. */
MAY_YIELD static bool
mend_all(struct trees *t)
{
    bool whole = true;
    struct lsm *lsm = t->shard->lsm;
    struct lsm_damage damage;
    u64 cursor = 0;
    while (!trees_is_ending(t) && trees_follow(t) && t->shard->topology->stage == STAGE_NONE &&
           lsm_damage_next(lsm, &cursor, &damage)) {
        status st = ST_UNSUPPORTED;
        if (damage.is_brought) /* the merge has not come to it yet */
            st = tell_store(t, &damage);
        else if (may_mend(t, damage.keyspace))
            st = mend_table(t, &damage);
        whole = whole && ok(st);
        if (!ok(st) && !status_is(st, ST_CANCELED) && log_seldom(&t->mend_told_ns, io_now_ns()))
            log_warning("cluster",
                        "damaged blocks cannot be mended from replicas now keyspace=%u "
                        "file=%016llx reason=\"%s\"",
                        damage.keyspace, (unsigned long long)damage.file_id, status_text(st));
    }
    return whole;
}

/* A merge that meets damage waits for the others, where there are some. */
static u32
keyspaces_to_mend(const struct trees *t)
{
    u32 keyspaces = 0;
    if (t->shard->topology == NULL || t->shard->topology->member_count < 2) return 0;
    for (u32 i = 0; i < LIMIT_KEYSPACES_CLIENT; i++)
        if (may_mend(t, i)) keyspaces |= 1u << i;
    return keyspaces;
}

MAY_YIELD static void
mend_main(void *arg)
{
    struct trees *t = arg;
    bool whole = mend_all(t);
    t->mend_wait_ns =
        whole ? MEND_LOOK_NS : CLAMP(2 * t->mend_wait_ns, MEND_LOOK_NS, MEND_LOOK_NS_MAX);
    t->mend_ns = io_now_ns() + t->mend_wait_ns;
    t->mending = false;
    fiber_queue_wake_all(&t->idle);
}

void
trees_mend(struct trees *t)
{
    struct lsm_damage damage;
    u64 cursor = 0;
    lsm_mends_set(t->shard->lsm, keyspaces_to_mend(t));
    if (t->mending || io_now_ns() < t->mend_ns || trees_is_ending(t) ||
        !lsm_damage_next(t->shard->lsm, &cursor, &damage))
        return;
    t->mending = ok(fiber_spawn(FIBER_BACKGROUND, "trees mend", mend_main, t));
    if (!t->mending) t->mend_ns = io_now_ns() + MEND_LOOK_NS;
}
