/* SPDX-License-Identifier: MIT
 *
 * cluster_scan.c -- a page of a keyspace as a client sees it, from nodes that may each lack some of
 * it.
 *
 *   replica 1   a1  c3  d9* more       each sends its entries from the place on, in order, with
 *   replica 2   a1  b2  c4  d5         versions and tombstones (PEER_STREAM)
 *   merged      a1  b2  c4             the newest of each key; not behind the last entry of who
 *                                      has more, for nobody knows what else that one has there
 *
 * As many replicas are asked as the level demands, by default the read quorum of the row: so the
 * newest acknowledged version of each key is among the answers. A page ends where others have to
 * be asked at the latest. Who cannot read what it has, or refuses, is left out of the page, and
 * others are asked in its place as long as there are enough; but who is asked by level ONE for what
 * it has itself answers alone.
 *
 * Of keys that keep siblings the sets of all that have answered are united, and the sibling of the
 * highest clock is shown: what a plain GET would return.
 */
#include "cluster/cluster.h"

#include "base/fault.h"
#include "base/hash.h"
#include "cluster/siblings.h"
#include "io/io.h"
#include "proto/peer.h"

struct source {
    u32 member, there;
    struct buf page;
    bool elsewhere; /* the page is memory of another shard of this node */
    bool more;
    size_t at;
    bool valid; /* `next` is one */
    struct cluster_page_entry next;
};

struct pass {
    struct cluster_shard *shard;
    struct cluster_scan *scan;
    struct cluster_page page;
    u64 epoch;
    bool siblings;
    struct buf set; /* of the present key; borrowed by what is shown */
    struct dvvset united;
    struct source sources[LIMIT_PLACEMENT_REPLICAS];
    u32 source_count;
    u32 failed[LIMIT_PLACEMENT_REPLICAS]; /* members that are not asked again */
    u32 failed_count;
};

/* ---- asking ---- */

static u32
need_of(const struct topology *topology, const struct topology_row *row, u16 keyspace, u8 level,
        u32 count)
{
    u32 replicas = topology->keyspaces[keyspace].replicas;
    u32 places = row->read_next ? row->next_places : row->places;
    switch ((enum replicate_level)level) {
    case REPLICATE_ONE:
        return 1;
    case REPLICATE_ALL:
        return count;
    case REPLICATE_QUORUM:
        return topology_quorum(replicas / 2 + 1, replicas, places, count);
    case REPLICATE_DEFAULT:
    case REPLICATE_HOMES:
    case REPLICATE_COUNT_BASE:
        break;
    }
    return row->read_quorum;
}

/* Our own record may be of a process before this one, with another number of shards. */
static u32
shards_of(const struct cluster *cluster, const struct topology_member *member)
{
    return member->number == cluster_member(cluster) ? cluster->options.shard_count
                                                     : member->shard_count;
}

/* Whether those who were chosen do for this partition, too: all of them hold it, on the same shard,
 * and no more are needed. */
static bool
same_sources(const struct pass *pass, const struct topology *topology, u32 partition)
{
    const struct cluster *cluster = pass->shard->cluster;
    struct topology_row row;
    u32 count;
    topology_row(topology, pass->page.keyspace, partition, &row);
    const u32 *members = topology_row_read(&row, &count);
    if (need_of(topology, &row, pass->page.keyspace, pass->scan->level, count) !=
        pass->source_count)
        return false;
    for (u32 i = 0; i < pass->source_count; i++) {
        const struct source *source = &pass->sources[i];
        bool holds = false;
        for (u32 j = 0; j < count; j++)
            holds = holds || members[j] == source->member;
        const struct topology_member *member = topology_member(topology, source->member);
        if (!holds || partition_shard(partition, shards_of(cluster, member),
                                      topology->partition_count) != source->there)
            return false;
    }
    return true;
}

static bool
has_failed(const struct pass *pass, u32 member)
{
    for (u32 i = 0; i < pass->failed_count; i++)
        if (pass->failed[i] == member) return true;
    return false;
}

/* The stretch that the same sources have, each on one shard: fills page.token_last. */
static status
choose(struct pass *pass, const struct topology *topology)
{
    const struct cluster *cluster = pass->shard->cluster;
    u32 count = topology->partition_count, self = cluster_member(cluster);
    u32 partition = token_partition(pass->page.token, count), members_count;
    struct topology_row row;
    topology_row(topology, pass->page.keyspace, partition, &row);
    const u32 *members = topology_row_read(&row, &members_count);
    u32 need = need_of(topology, &row, pass->page.keyspace, pass->scan->level, members_count);
    for (u32 round = 0; round < 2; round++) { /* first ourselves: that costs no message */
        for (u32 i = 0; i < members_count && pass->source_count < need; i++) {
            if ((members[i] == self) != (round == 0) || !cluster_alive(cluster, members[i]) ||
                has_failed(pass, members[i]))
                continue;
            const struct topology_member *member = topology_member(topology, members[i]);
            if (member == NULL) continue;
            struct source *source = &pass->sources[pass->source_count++];
            source->member = members[i];
            source->there = partition_shard(partition, shards_of(cluster, member), count);
        }
    }
    if (pass->source_count < need || pass->source_count == 0) return ST_UNAVAILABLE;
    u32 end = partition + 1;
    while (end < count && same_sources(pass, topology, end))
        end++;
    u64 last = end == count ? UINT64_MAX : partition_token_first(end, count) - 1;
    pass->page.token_last = MIN(last, pass->scan->token_last);
    return ST_OK;
}

struct local_call {
    struct cluster *cluster;
    const struct cluster_page *page;
    struct buf *out;
    status st;
};

MAY_YIELD static void
read_here(void *arg)
{
    struct local_call *call = arg;
    struct cluster_shard *shard = call->cluster->shards[io_shard_index()];
    call->st = ST_CANCELED;
    if (shard == NULL) return;
    buf_init(call->out, &shard->budget);
    call->st = cluster_page_read(shard, call->page, call->out);
}

static void
free_here(void *arg)
{
    struct local_call *call = arg;
    buf_deinit(call->out);
}

MAY_YIELD static status
ask_local(struct pass *pass, struct source *source)
{
    if (source->there == pass->shard->index)
        return cluster_page_read(pass->shard, &pass->page, &source->page);
    struct local_call call = {
        .cluster = pass->shard->cluster, .page = &pass->page, .out = &source->page};
    status st = io_shard_call(source->there, fiber_class_self(), read_here, &call);
    if (!ok(st)) return st;
    source->elsewhere = true;
    return call.st;
}

MAY_YIELD static status
ask(struct pass *pass, struct source *source)
{
    struct cluster_shard *shard = pass->shard;
    buf_init(&source->page, &shard->budget);
    status st;
    if (source->member == cluster_member(shard->cluster)) {
        st = ask_local(pass, source);
        /* Its log has failed, and what it has may go again: as if it did not answer. */
        if (status_is(st, ST_UNKNOWN_OUTCOME)) st = ST_UNAVAILABLE;
    } else {
        u8 head[CLUSTER_PAGE_HEAD_BYTES];
        cluster_page_encode(&pass->page, 0, head);
        struct bytes parts[2] = {BYTES(head, sizeof(head)), pass->page.behind};
        struct native_header answer,
            header = {.opcode = PEER_STREAM, .epoch = pass->epoch, .keyspace = pass->page.keyspace};
        bool maybe_sent;
        st = peer_call_wait(shard->peers, source->member, source->there, &header, parts, 2,
                            pass->scan->deadline_ns, &answer, &source->page, &maybe_sent);
        if (!ok(st)) cluster_waits_for(shard->cluster, source->member);
        if (ok(st) && answer.status != NATIVE_ST_OK) st = native_status_to_base(answer.status);
        if (!ok(st)) st = ST_UNAVAILABLE;
    }
    if (!ok(st)) return st;
    if (source->page.size == 0) return ST_CORRUPT;
    source->more = source->page.data[0] != 0;
    source->at = 1;
    return ST_OK;
}

MAY_YIELD static void
give_back(struct pass *pass, struct source *source)
{
    if (source->page.budget == NULL) return;
    if (!source->elsewhere) {
        buf_deinit(&source->page);
        return;
    }
    struct local_call call = {.out = &source->page};
    /* A shard that has no fiber to spare now has one soon: fibers end. */
    while (!ok(io_shard_call(source->there, fiber_class_self(), free_here, &call)))
        fiber_sleep_ns(NS_PER_MS);
}

/* ---- merging ---- */

static status
step(const struct pass *pass, struct source *source)
{
    status st = cluster_page_next(buf_bytes(&source->page), pass->page.keys_only, &source->at,
                                  &source->next);
    source->valid = ok(st);
    if (source->valid && (source->next.entry.token < pass->page.token ||
                          source->next.entry.token > pass->page.token_last))
        return ST_CORRUPT;
    return status_is(st, ST_END) ? ST_OK : st;
}

static i32
compare(const struct cluster_entry *a, const struct cluster_entry *b)
{
    if (a->token != b->token) return a->token < b->token ? -1 : 1;
    size_t size = MIN(a->key.size, b->key.size);
    int order = memcmp(a->key.data, b->key.data, size);
    if (order != 0) return order;
    return a->key.size == b->key.size ? 0 : a->key.size < b->key.size ? -1 : 1;
}

/* The first key of all sources, its newest version; false: somebody may have an earlier one. */
static bool
first_of_all(struct pass *pass, const struct cluster_page_entry **out)
{
    const struct cluster_page_entry *first = NULL;
    for (u32 i = 0; i < pass->source_count; i++) {
        const struct source *source = &pass->sources[i];
        if (!source->valid) {
            if (source->more) return false;
            continue;
        }
        i32 order = first == NULL ? -1 : compare(&source->next.entry, &first->entry);
        if (order < 0 || (order == 0 && source->next.entry.version > first->entry.version))
            first = &source->next;
    }
    *out = first;
    return first != NULL;
}

/* The sets of all sources whose next entry is of this key. */
static status
unite(struct pass *pass, const struct cluster_entry *key)
{
    pass->set.size = 0;
    for (u32 i = 0; i < pass->source_count; i++) {
        const struct source *source = &pass->sources[i];
        if (!source->valid || compare(&source->next.entry, key) != 0) continue;
        struct siblings_entry entry = {.found = !source->next.deleted,
                                       .version = source->next.entry.version,
                                       .value = source->next.entry.value};
        struct buf one, both;
        buf_init(&one, pass->set.budget);
        buf_init(&both, pass->set.budget);
        status st = siblings_bytes(&entry, key->token, &one);
        if (ok(st) && pass->set.size != 0)
            st = siblings_union(buf_bytes(&pass->set), buf_bytes(&one), &both);
        struct buf *next = pass->set.size != 0 ? &both : &one;
        if (ok(st)) {
            struct buf old = pass->set;
            pass->set = *next;
            *next = old;
        }
        buf_deinit(&one);
        buf_deinit(&both);
        if (!ok(st)) return st;
    }
    dvvset_deinit(&pass->united);
    return dvvset_decode(buf_bytes(&pass->set), &pass->united);
}

/* Makes the entry what is shown of the key. */
static status
show_latest(struct pass *pass, struct cluster_page_entry *entry)
{
    status st = unite(pass, &entry->entry);
    if (!ok(st)) return st;
    const struct dvv_value *latest = dvvset_latest(&pass->united);
    entry->deleted = latest == NULL || (latest->flags & DVV_DELETED) != 0;
    entry->entry.expire_ms = 0;
    entry->entry.value = entry->deleted ? BYTES(NULL, 0) : latest->data;
    return ST_OK;
}

MAY_YIELD static status
merge(struct pass *pass)
{
    struct cluster_scan *scan = pass->scan;
    u64 now_ms = io_wall_ms();
    const struct cluster_page_entry *first;
    for (u32 i = 0; i < pass->source_count; i++) {
        status st = step(pass, &pass->sources[i]);
        if (!ok(st)) return st;
    }
    while (first_of_all(pass, &first)) {
        struct cluster_page_entry entry = *first; /* its bytes stay in the page */
        if (pass->siblings) {
            status st = show_latest(pass, &entry);
            if (!ok(st)) return st;
        }
        bool live =
            !entry.deleted && (entry.entry.expire_ms == 0 || entry.entry.expire_ms > now_ms);
        if (live && !scan->each(scan->arg, &entry.entry)) return ST_OK;
        scan_place_behind(&scan->place, entry.entry.token, entry.entry.key);
        for (u32 i = 0; i < pass->source_count; i++) {
            struct source *source = &pass->sources[i];
            if (!source->valid || compare(&source->next.entry, &entry.entry) != 0) continue;
            status st = step(pass, source);
            if (!ok(st)) return st;
        }
        if (fiber_should_yield()) fiber_yield();
    }
    for (u32 i = 0; i < pass->source_count; i++)
        if (pass->sources[i].valid || pass->sources[i].more) return ST_OK;
    /* The stretch is at its end. */
    scan->ended = pass->page.token_last >= scan->token_last;
    scan_place_before(&scan->place, pass->page.token_last + (scan->ended ? 0 : 1));
    return ST_OK;
}

/* ---- a page ---- */

/* Whether others may be asked in its place. */
static bool
leave_out(struct pass *pass, u32 member, status st)
{
    const struct cluster *cluster = pass->shard->cluster;
    bool self = member == cluster_member(cluster);
    bool of_source =
        status_is(st, ST_CORRUPT) || status_is(st, ST_IO_ERROR) || status_is(st, ST_UNAVAILABLE);
    if (!of_source || (self && pass->scan->level == REPLICATE_ONE)) return false;
    if (io_now_ns() >= pass->scan->deadline_ns) return false;
    if (pass->failed_count == ARRAY_COUNT(pass->failed)) return false;
    MARK("cluster.scan.source_left_out");
    pass->failed[pass->failed_count++] = member;
    return true;
}

MAY_YIELD static void
give_all_back(struct pass *pass)
{
    for (u32 i = 0; i < pass->source_count; i++)
        give_back(pass, &pass->sources[i]);
    memset(pass->sources, 0, sizeof(pass->sources));
    pass->source_count = 0;
}

/* A page of each of as many as it takes. What was there before a failure is given back: others may
 * be the same for another stretch. */
MAY_YIELD static status
pages_get(struct pass *pass)
{
    status failed = ST_OK;
    for (;;) {
        const struct topology *topology = pass->shard->topology; /* as it is now */
        pass->epoch = topology->epoch;
        status st = choose(pass, topology);
        if (!ok(st)) return ok(failed) ? st : failed;
        u32 i = 0;
        while (i < pass->source_count && ok(st = ask(pass, &pass->sources[i])))
            i++;
        if (ok(st)) return ST_OK;
        if (!leave_out(pass, pass->sources[i].member, st)) return st;
        failed = st;
        give_all_back(pass);
    }
}

MAY_YIELD status
cluster_scan_page(struct cluster_shard *shard, struct cluster_scan *scan)
{
    if (shard->topology == NULL) return ST_UNAVAILABLE;
    if (!replicate_knows(shard->replicator, scan->keyspace)) {
        status renewed = cluster_topology_renew(shard, scan->deadline_ns);
        if (!ok(renewed)) return renewed;
    }
    struct topology *topology = shard->topology;
    if (!topology->keyspaces[scan->keyspace].used) { /* nobody has used it yet */
        scan->ended = true;
        scan_place_before(&scan->place, scan->token_last);
        return ST_OK;
    }
    struct pass *pass = mem_alloc_zero(&shard->budget, sizeof(*pass));
    struct scan_place *begin =
        mem_alloc(&shard->budget, sizeof(*begin)); /* its own moves meanwhile */
    status st = ST_NO_MEMORY;
    if (pass != NULL && begin != NULL) {
        *begin = scan->place;
        pass->shard = shard;
        pass->scan = scan;
        pass->siblings = replicate_siblings(shard->replicator, scan->keyspace);
        buf_init(&pass->set, &shard->budget);
        dvvset_init(&pass->united, &shard->budget);
        pass->page = (struct cluster_page){.token = begin->token,
                                           .bytes_max = scan->bytes_max,
                                           .keyspace = scan->keyspace,
                                           .keys_only = !scan->with_values && !pass->siblings,
                                           .behind = scan_place_key(begin)};
        st = pages_get(pass);
        if (ok(st)) st = merge(pass);
        give_all_back(pass);
        dvvset_deinit(&pass->united);
        buf_deinit(&pass->set);
    }
    mem_free(&shard->budget, begin, sizeof(*begin));
    mem_free(&shard->budget, pass, sizeof(*pass));
    return st;
}
