/* SPDX-License-Identifier: MIT
 *
 * native_node.c -- the native requests about the whole node: HELLO, PING, TOPOLOGY, SCAN,
 * SNAPSHOT_OPEN and _CLOSE, COUNT, STATUS.
 */
#include <stdio.h>

#include "base/fault.h"
#include "base/scan_place.h"
#include "base/utf8.h"
#include "server/cluster_view.h"
#include "server/cmd.h"
#include "server/cut.h"
#include "server/glob.h"
#include "server/native.h"
#include "server/session.h"

/* A node by itself: its topology never changes. */
#define EPOCH_ALONE 1u

u64
native_epoch(void)
{
    const struct shard *shard = shard_self();
    const struct topology *topology =
        shard->cluster == NULL ? NULL : cluster_topology(shard->cluster);
    return topology == NULL ? EPOCH_ALONE : topology->epoch;
}

static struct native_reply
reply_to(const struct native_request *request)
{
    struct native_reply reply;
    memset(&reply, 0, sizeof(reply));
    reply.header = native_reply_header(&request->header, native_epoch());
    return reply;
}

void
native_ping(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    struct native_reply reply = reply_to(&request);
    reply.ping.payload = request.ping.payload;
    native_reply(x, &reply);
}

static bool
authenticate(struct exec *x, const struct native_request *request)
{
    const struct server_config *config = x->shard->config;
    struct bytes user = request->hello.user;
    if (!config_has_password(config)) return true;
    bool known = user.size == 0 || (user.size == 7 && memcmp(user.data, "default", 7) == 0);
    return known && config_password_matches(config, request->hello.password);
}

void
native_hello(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    const struct server *server = x->shard->server;
    if (request.hello.version_min > NATIVE_VERSION || request.hello.version_max < NATIVE_VERSION) {
        native_error(x, &request, NATIVE_ST_UNSUPPORTED, NATIVE_VERSION,
                     "this server speaks version 1 of the protocol");
        return;
    }
    if (!authenticate(x, &request)) {
        native_error(x, &request, NATIVE_ST_UNAUTHENTICATED, 0, "wrong user or password");
        return;
    }
    x->session->authenticated = true;
    struct bytes name = request.hello.client_name;
    buf_clear(&x->session->name, 255);
    for (size_t i = 0; i < name.size; i++) {
        u8 c = name.data[i] > ' ' && name.data[i] < 127 ? name.data[i] : '_';
        if (!buf_append(&x->session->name, &c, 1)) break; /* a name cut short does no harm */
    }

    struct native_reply reply = reply_to(&request);
    struct buf nodes, ranges;
    buf_init(&nodes, &x->shard->budget);
    buf_init(&ranges, &x->shard->budget);
    const char *id = server->layout.node_id;
    struct native_node node = {.id = BYTES(id, strlen(id)),
                               .host = BYTES(NULL, 0),
                               .port = (u16)server->port,
                               .shard_count = (u16)server->shard_count};
    bool fits = native_hello_add_node(&nodes, &node);
    u32 range_count = 0;
    for (u32 i = 0; i < server->shard_count && fits; i++) {
        struct native_slot_range range = {
            .slot_first = (u16)token_slot(server->layout.shards[i].token_first),
            .slot_last = (u16)token_slot(server->layout.shards[i].token_last),
            .shard = (u16)i};
        fits = native_hello_add_range(&ranges, &range);
        range_count++;
    }
    bool both = (request.hello.features & NATIVE_FEATURE_TOPOLOGY) != 0;
    bool places = server->cluster != NULL || server->config->shard_port != 0;
    bool cluster =
        (request.hello.features & NATIVE_FEATURE_CLUSTER) != 0 && server->cluster != NULL;
    const struct topology *topology =
        cluster && x->shard->cluster != NULL ? cluster_topology(x->shard->cluster) : NULL;
    reply.hello =
        (struct native_hello_reply){.version = NATIVE_VERSION,
                                    .shard = both ? (u8)x->shard->index : 0,
                                    .features = (both ? NATIVE_FEATURE_TOPOLOGY : 0) |
                                                (both && places ? NATIVE_FEATURE_PLACES : 0) |
                                                (cluster ? NATIVE_FEATURE_CLUSTER : 0),
                                    .cluster_id = topology == NULL ? 0 : topology->cluster_id,
                                    .run_id = server->run_number,
                                    .connection_id = x->session->id,
                                    .time_ms = io_wall_ms(),
                                    .key_bytes_max = LIMIT_KEY_BYTES,
                                    .value_bytes_max = LIMIT_VALUE_BYTES,
                                    .batch_ops_max = LIMIT_BATCH_OPS,
                                    .batch_bytes_max = LIMIT_BATCH_BYTES,
                                    .body_bytes_max = NATIVE_BODY_BYTES_MAX,
                                    .in_flight_max = SESSION_REQUESTS_MAX,
                                    .idempotency_ms = NATIVE_ID_LIFE_MS,
                                    .keyspaces = LIMIT_KEYSPACES_CLIENT,
                                    .partition_count = server->layout.partition_count,
                                    .node_id = BYTES(id, strlen(id)),
                                    .server_version = BYTES_LITERAL(DISTKV_VERSION),
                                    .node_count = 1,
                                    .range_count = range_count,
                                    .nodes = buf_bytes(&nodes),
                                    .ranges = buf_bytes(&ranges)};
    if (fits)
        native_reply(x, &reply);
    else
        native_error(x, &request, NATIVE_ST_NO_MEMORY, 0, "");
    buf_deinit(&nodes);
    buf_deinit(&ranges);
}

/* ---- TOPOLOGY ---- */

/* A node by itself: all partitions lie on it. */
static bool
topology_alone(const struct server *server, struct native_topology_reply *out, struct buf *nodes,
               struct buf *rows)
{
    const char *id = server->layout.node_id;
    struct native_node node = {.id = BYTES(id, strlen(id)),
                               .port = (u16)server->port,
                               .shard_count = (u16)server->shard_count,
                               .shard_port = server->config->shard_port};
    out->node_count = 1;
    out->width = 1;
    out->partition_count = server->layout.partition_count;
    bool fits = native_topology_add_node(nodes, &node);
    for (u32 i = 0; i < out->partition_count && fits; i++)
        fits = native_topology_add_place(rows, 0);
    return fits;
}

/* Its index in the reply's nodes, which are the members in their order. */
static u16
place_of(const struct topology *topology, u32 number)
{
    const struct topology_member *member = topology_member(topology, number);
    size_t index = member == NULL ? SIZE_MAX : (size_t)(member - topology->members);
    return index < NATIVE_NODES_MAX ? (u16)index : NATIVE_TOPOLOGY_NOBODY;
}

static bool
topology_members(const struct server *server, const struct topology *topology,
                 struct native_topology_reply *out, struct buf *nodes, struct buf *rows)
{
    bool fits = true;
    out->node_count = (u16)MIN(topology->member_count, NATIVE_NODES_MAX);
    out->partition_count = topology->partition_count;
    out->width = (u8)CLAMP(topology->replicas, 1u, NATIVE_TOPOLOGY_WIDTH_MAX);
    for (u32 i = 0; i < out->node_count && fits; i++) {
        const struct topology_member *member = &topology->members[i];
        struct native_node node = {.id = BYTES(member->node_id, strlen(member->node_id)),
                                   .host = BYTES(member->host, strlen(member->host)),
                                   .port = member->client_port,
                                   .shard_count = (u16)member->shard_count,
                                   .shard_port = cluster_view_shard_port(server, member)};
        fits = native_topology_add_node(nodes, &node);
    }
    for (u32 partition = 0; partition < out->partition_count && fits; partition++) {
        struct topology_row row;
        u32 count;
        topology_row(topology, 0, partition, &row);
        const u32 *members = topology_row_read(&row, &count);
        for (u32 i = 0, given = 0; i < out->width && fits; i++) {
            u16 place = NATIVE_TOPOLOGY_NOBODY; /* whoever is known comes first */
            while (given < count && place == NATIVE_TOPOLOGY_NOBODY)
                place = place_of(topology, members[given++]);
            fits = native_topology_add_place(rows, place);
        }
    }
    return fits;
}

void
native_topology(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    struct shard *shard = x->shard;
    const struct topology *topology =
        shard->cluster == NULL ? NULL : cluster_topology(shard->cluster);
    if (shard->cluster != NULL && topology == NULL) {
        exec_fail(x, ST_UNAVAILABLE);
        return;
    }
    struct native_reply reply = reply_to(&request);
    reply.topology.epoch = reply.header.epoch;
    struct buf nodes, rows;
    buf_init(&nodes, &shard->budget);
    buf_init(&rows, &shard->budget);
    bool fits = true;
    if (request.topology.epoch != reply.topology.epoch && topology == NULL)
        fits = topology_alone(shard->server, &reply.topology, &nodes, &rows);
    else if (request.topology.epoch != reply.topology.epoch)
        fits = topology_members(shard->server, topology, &reply.topology, &nodes, &rows);
    reply.topology.nodes = buf_bytes(&nodes);
    reply.topology.rows = buf_bytes(&rows);
    if (fits)
        native_reply(x, &reply);
    else
        native_error(x, &request, NATIVE_ST_NO_MEMORY, 0, "");
    buf_deinit(&nodes);
    buf_deinit(&rows);
}

/* ---- snapshots ---- */

static struct native_snapshot *
find_snapshot(struct shard *shard, u64 id)
{
    for (u32 i = 0; i < NATIVE_SNAPSHOTS_MAX; i++)
        if (shard->native->snapshots[i].id == id) return &shard->native->snapshots[i];
    return NULL;
}

/* For who opens it, who gives it back as each shard does. NATIVE_SNAPSHOTS_MAX: none is free. */
static u32
lease_take(struct server *server, u64 id)
{
    u32 i = 0;
    for (; i < NATIVE_SNAPSHOTS_MAX; i++) {
        u64 nobody = 0;
        if (atomic_compare_exchange_strong(&server->leases[i].id, &nobody, id)) break;
    }
    if (i < NATIVE_SNAPSHOTS_MAX) atomic_store(&server->leases[i].holders, 1);
    return i;
}

static void
lease_give_back(struct native_lease *lease)
{
    if (atomic_fetch_sub(&lease->holders, 1) == 1) atomic_store(&lease->id, 0);
}

static struct native_lease *
lease_of(struct shard *shard, const struct native_snapshot *entry)
{
    return &shard->server->leases[entry - shard->native->snapshots];
}

static void
drop_snapshot(struct shard *shard, struct native_snapshot *entry)
{
    CHECK(entry->users == 0);
    lsm_snapshot_close(entry->snapshot);
    memset(entry, 0, sizeof(*entry));
    lease_give_back(lease_of(shard, entry));
}

static bool
lease_is_over(const struct native_lease *lease, u64 lease_ns)
{
    if (atomic_load(&lease->readers) != 0) return false;
    u64 now = io_now_ns(), used_ns = atomic_load(&lease->used_ns);
    return now - MIN(now, used_ns) > lease_ns;
}

void
native_snapshots_sweep(struct shard *shard, bool all)
{
    for (u32 i = 0; i < NATIVE_SNAPSHOTS_MAX; i++) {
        struct native_snapshot *entry = &shard->native->snapshots[i];
        if (entry->id == 0 || entry->users != 0) continue;
        if (all || lease_is_over(lease_of(shard, entry), entry->lease_ns))
            drop_snapshot(shard, entry);
    }
}

struct snapshot_call {
    u64 id;
    u32 index;
    u64 lease_ns;
    struct cut *cut;
    status st;
};

/* The shard's snapshot of the cut gets a place of its own. */
static void
adopt_here(void *arg)
{
    struct snapshot_call *call = arg;
    struct shard *shard = shard_self();
    struct native_snapshot *entry = &shard->native->snapshots[call->index];
    CHECK(entry->id == 0); /* or its lease would not be free */
    *entry = (struct native_snapshot){
        .id = call->id, .snapshot = call->cut->snapshots[shard->index], .lease_ns = call->lease_ns};
    call->cut->snapshots[shard->index] = NULL;
    struct native_lease *lease = lease_of(shard, entry);
    atomic_fetch_add(&lease->holders, 1);
    atomic_store(&lease->used_ns, io_now_ns());
}

static void
close_here(void *arg)
{
    struct snapshot_call *call = arg;
    struct shard *shard = shard_self();
    struct native_snapshot *entry = find_snapshot(shard, call->id);
    if (entry == NULL) {
        call->st = ST_CANCELED;
        return;
    }
    entry->lease_ns = 0; /* a scan that reads it now finishes its page; then it goes */
    if (entry->users == 0) drop_snapshot(shard, entry);
}

MAY_YIELD void
native_snapshot_open(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    u32 lease_ms = CLAMP(request.snapshot_open.lease_ms, 1000u, NATIVE_LEASE_MS_MAX);
    struct server *server = x->shard->server;
    struct cut cut;
    struct snapshot_call call = {
        .id = io_random() | 1, .lease_ns = lease_ms * NS_PER_MS, .cut = &cut};
    /* First of all: whoever asks in vain shall not hold anybody's writes. */
    call.index = lease_take(server, call.id);
    if (call.index == NATIVE_SNAPSHOTS_MAX) {
        exec_fail(x, ST_OVERLOADED);
        return;
    }
    u64 time_ms = io_wall_ms();
    status st = cut_open(x->shard, &cut);
    if (ok(st)) {
        st = shard_for_all(x->shard, adopt_here, &call);
        if (!ok(st)) {
            shard_for_all_possible(x->shard, close_here, &call);
            cut_close(&cut);
        }
    }
    lease_give_back(&server->leases[call.index]);
    if (!ok(st)) {
        exec_fail(x, st);
        return;
    }
    struct native_reply reply = reply_to(&request);
    reply.snapshot_open.snapshot = call.id;
    reply.snapshot_open.lease_ms = lease_ms;
    reply.snapshot_open.time_ms = time_ms;
    native_reply(x, &reply);
    /* Nobody hears of this one, and when there is memory it is opened again. */
    if (x->reply->failed) {
        MARK("server.native.snapshot_unheard");
        shard_for_all_possible(x->shard, close_here, &call);
    }
}

MAY_YIELD void
native_snapshot_close(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    struct snapshot_call call = {.id = request.snapshot_close.snapshot};
    if (call.id == 0) call.st = ST_CANCELED;
    if (call.id != 0) shard_for_all_possible(x->shard, close_here, &call);
    if (!ok(call.st)) {
        native_error(x, &request, NATIVE_ST_SNAPSHOT_GONE, 0, "no such snapshot");
        return;
    }
    struct native_reply reply = reply_to(&request);
    native_reply(x, &reply);
}

/* ---- SCAN ---- */

/* One page never crosses a shard. The entries come back as bytes in the caller's memory. */
struct scan_call {
    const struct native_request *request;
    u8 *out;
    size_t room, used;
    size_t wanted; /* room for the first entry, which is larger than a page; else 0 */
    u32 count;
    struct scan_place place; /* behind the last one read; valid when moved */
    bool moved;
    bool end; /* of this shard's part of the range */
    bool gone;
    u64 token_last;
    status st;
};

/* Entries that match nothing are passed over, but not for ever within one request. */
#define SCAN_LOOKED_MAX 20000u
/* Nor is what was deleted or has expired: so many entries, some 50 ms. */
#define SCAN_PASSED_MAX     (128u << 10)
#define SCAN_PAGE_BYTES_MAX (1u << 20)
/* Of replicas, for one of the answer; where nothing matches it ends without any. */
#define SCAN_CLUSTER_PAGES 16u
/* A page may be larger by so much, for the usual entry that reaches its size. */
#define SCAN_ENTRY_BYTES (4u << 10)

static bool
matches(const struct native_request *request, struct bytes key)
{
    struct bytes pattern = request->scan.pattern;
    switch ((enum native_match)request->scan.match) {
    case NATIVE_MATCH_ALL:
        return true;
    case NATIVE_MATCH_PREFIX:
        return key.size >= pattern.size && bytes_equal(BYTES(key.data, pattern.size), pattern);
    case NATIVE_MATCH_GLOB:
        return glob_match(pattern, key, false);
    }
    return false;
}

static void
move_behind(struct scan_call *call, u64 token, struct bytes key)
{
    scan_place_behind(&call->place, token, key);
    call->moved = true;
}

MAY_YIELD static void
scan_here(void *arg)
{
    struct scan_call *call = arg;
    struct shard *shard = shard_self();
    const struct native_request *request = call->request;
    bool keys_only = (request->scan.flags & NATIVE_SCAN_KEYS_ONLY) != 0;
    struct native_snapshot *held = NULL;
    struct native_lease *lease = NULL;
    if (request->scan.snapshot != 0) {
        held = find_snapshot(shard, request->scan.snapshot);
        if (held == NULL || held->lease_ns == 0) {
            call->gone = true;
            return;
        }
        held->users++;
        lease = lease_of(shard, held);
        atomic_fetch_add(&lease->readers, 1);
    }
    u64 from_token = request->scan.token_first;
    struct bytes from_key = BYTES(NULL, 0);
    if (request->scan.after.given && request->scan.after.token >= from_token) {
        from_token = request->scan.after.token;
        from_key = request->scan.after.key;
    }
    from_token = MAX(from_token, shard->token_first);
    u64 last_token = MIN(request->scan.token_last, shard->token_last);
    u64 shown = 0;
    struct buf entries;
    buf_init(&entries, &shard->budget);
    struct lsm_scan *scan = NULL;
    call->st = lsm_scan_open(shard->lsm, held != NULL ? held->snapshot : NULL,
                             request->header.keyspace, from_token, from_key, last_token, &scan);
    u64 seen = lsm_seq_last(shard->lsm);
    if (ok(call->st)) lsm_scan_step(scan, SCAN_PASSED_MAX);
    u32 bytes_max = CLAMP(request->scan.bytes_max, 1u, SCAN_PAGE_BYTES_MAX);
    if (BUGGIFY("server.native.short_page")) bytes_max = MIN(bytes_max, 256u);
    for (u32 looked = 0; ok(call->st); looked++) {
        if (call->count >= request->scan.entries_max || entries.size >= bytes_max ||
            looked >= SCAN_LOOKED_MAX)
            break;
        u64 token;
        struct bytes key;
        struct lsm_value value;
        call->st = lsm_scan_next(scan, !keys_only, &token, &key, &value);
        if (status_is(call->st, ST_END)) {
            call->st = ST_OK;
            call->end = true;
            break;
        }
        if (status_is(call->st, ST_PAUSED)) {
            MARK("server.native.scan_paused");
            call->st = ST_OK;
            move_behind(call, token, key);
            break;
        }
        if (!ok(call->st)) break;
        if (from_key.size != 0 && token == from_token && bytes_equal(key, from_key)) continue;
        bool match = matches(request, key);
        size_t bytes = native_scan_entry_bytes(key.size, keys_only ? 0 : value.value.size);
        if (match && entries.size + bytes > call->room) { /* begins the next page */
            if (call->count == 0) call->wanted = bytes;
            break;
        }
        shown = MAX(shown, value.seq);
        move_behind(call, token, key);
        if (match) {
            struct native_scan_entry entry = {.version = value.version,
                                              .expire_ms = value.expire_ms,
                                              .key = key,
                                              .value = value.value,
                                              .has_value = !keys_only};
            if (native_scan_add(&entries, &entry))
                call->count++;
            else
                call->st = ST_NO_MEMORY;
        }
        if (fiber_should_yield()) fiber_yield();
    }
    if (scan != NULL) lsm_scan_close(scan);
    if (held == NULL && ok(call->st)) call->st = durable_wait_scanned(shard, seen, shown);
    if (held != NULL) {
        atomic_store(&lease->used_ns, io_now_ns());
        atomic_fetch_sub(&lease->readers, 1);
        held->users--;
    }
    CHECK(entries.size <= call->room);
    memcpy(call->out, entries.data == NULL ? (const u8 *)"" : entries.data, entries.size);
    call->used = entries.size;
    call->token_last = shard->token_last;
    buf_deinit(&entries);
}

/* ---- in a cluster ---- */

struct cluster_pages {
    const struct native_request *request;
    struct cluster_scan scan;
    struct buf entries;
    u64 count;
    u32 looked;
    bool stopped; /* the page is full */
    bool no_memory;
};

static bool
each_entry(void *arg, const struct cluster_entry *found)
{
    struct cluster_pages *pages = arg;
    const struct native_request *request = pages->request;
    if (pages->count >= request->scan.entries_max || pages->looked >= SCAN_LOOKED_MAX ||
        pages->entries.size >= CLAMP(request->scan.bytes_max, 1u, SCAN_PAGE_BYTES_MAX)) {
        pages->stopped = true;
        return false;
    }
    pages->looked++;
    if (!matches(request, found->key)) return true;
    struct native_scan_entry entry = {.version = found->version,
                                      .expire_ms = found->expire_ms,
                                      .key = found->key,
                                      .value = found->value,
                                      .has_value = pages->scan.with_values};
    pages->no_memory = !native_scan_add(&pages->entries, &entry);
    pages->count++;
    return !pages->no_memory;
}

static bool
each_counted(void *arg, const struct cluster_entry *entry)
{
    (void)entry;
    struct cluster_pages *pages = arg;
    pages->count++;
    return true;
}

MAY_YIELD static status
read_pages(struct exec *x, struct cluster_pages *pages, u32 pages_max)
{
    u64 timeout_ns = x->shard->config->cluster_timeout_ms * NS_PER_MS;
    status st = ST_OK;
    for (u32 i = 0; i < pages_max && ok(st) && !pages->scan.ended && !pages->stopped; i++) {
        pages->scan.deadline_ns = io_now_ns() + timeout_ns;
        st = cluster_scan_page(x->shard->cluster, &pages->scan);
        if (pages->no_memory) st = ST_NO_MEMORY;
        if (pages->entries.size != 0) break; /* a page of ours is a page of the answer */
    }
    return st;
}

/* Of the newest state; a snapshot of a whole cluster there is none. */
MAY_YIELD static void
scan_cluster(struct exec *x, const struct native_request *request)
{
    if (request->scan.snapshot != 0) {
        native_error(x, request, NATIVE_ST_SNAPSHOT_GONE, 0, "no such snapshot");
        return;
    }
    struct cluster_pages *pages = (struct cluster_pages *)(void *)exec_alloc(x, sizeof(*pages));
    if (pages == NULL) return;
    memset(pages, 0, sizeof(*pages));
    pages->request = request;
    buf_init(&pages->entries, x->budget);
    struct cluster_scan *scan = &pages->scan;
    scan->keyspace = request->header.keyspace;
    scan->level = x->level;
    scan->with_values = (request->scan.flags & NATIVE_SCAN_KEYS_ONLY) == 0;
    scan->bytes_max = CLAMP(request->scan.bytes_max, 1024u, SCAN_PAGE_BYTES_MAX);
    scan->token_last = request->scan.token_last;
    scan->each = each_entry;
    scan->arg = pages;
    scan_place_before(&scan->place, request->scan.token_first);
    const struct native_position *after = &request->scan.after;
    if (after->given && after->token >= scan->place.token)
        scan_place_behind(&scan->place, after->token, after->key);
    struct native_reply reply = reply_to(request);
    status st = ST_OK;
    if (scan->place.token <= scan->token_last)
        st = read_pages(x, pages, SCAN_CLUSTER_PAGES);
    else
        scan->ended = true;
    if (ok(st)) {
        reply.scan.count = (u32)pages->count;
        reply.scan.entries = buf_bytes(&pages->entries);
        reply.scan.more = !scan->ended;
        if (reply.scan.more)
            reply.scan.next = (struct native_position){
                .given = true, .token = scan->place.token, .key = scan_place_key(&scan->place)};
        native_reply(x, &reply);
    } else {
        exec_fail(x, st);
    }
    buf_deinit(&pages->entries);
}

MAY_YIELD static void
count_cluster(struct exec *x, const struct native_request *request)
{
    struct cluster_pages *pages = (struct cluster_pages *)(void *)exec_alloc(x, sizeof(*pages));
    if (pages == NULL) return;
    memset(pages, 0, sizeof(*pages));
    pages->scan.keyspace = request->header.keyspace;
    pages->scan.level = x->level;
    pages->scan.bytes_max = SCAN_PAGE_BYTES_MAX;
    pages->scan.token_last = UINT64_MAX;
    pages->scan.each = each_counted;
    pages->scan.arg = pages;
    status st = read_pages(x, pages, UINT32_MAX);
    if (!ok(st)) {
        exec_fail(x, st);
        return;
    }
    struct native_reply reply = reply_to(request);
    reply.count.count = pages->count;
    reply.count.exact = true;
    native_reply(x, &reply);
}

MAY_YIELD void
native_scan(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    if (x->shard->cluster != NULL) {
        scan_cluster(x, &request);
        return;
    }
    struct scan_call *call = (struct scan_call *)(void *)exec_alloc(x, sizeof(*call));
    if (call == NULL) return;
    memset(call, 0, sizeof(*call));
    call->request = &request;
    u64 from = request.scan.token_first;
    if (request.scan.after.given) from = MAX(from, request.scan.after.token);
    struct native_reply reply = reply_to(&request);
    if (from <= request.scan.token_last) {
        const struct server *server = x->shard->server;
        u32 owner = shard_of_token(server, from);
        status st = ST_OK;
        size_t room = CLAMP(request.scan.bytes_max, 1u, SCAN_PAGE_BYTES_MAX) + SCAN_ENTRY_BYTES;
        do { /* a second time for an entry that alone is larger than a page */
            *call = (struct scan_call){.request = &request, .room = room};
            call->out = exec_alloc(x, room);
            if (call->out == NULL) return;
            st = io_shard_call(owner, fiber_class_self(), scan_here, call);
            if (ok(st)) st = call->st;
            room = call->wanted;
        } while (ok(st) && !call->gone && room != 0);
        if (call->gone) {
            native_error(x, &request, NATIVE_ST_SNAPSHOT_GONE, 0, "no such snapshot");
            return;
        }
        if (!ok(st)) {
            exec_fail(x, st);
            return;
        }
        reply.scan.count = call->count;
        reply.scan.entries = BYTES(call->out, call->used);
        if (!call->end) {
            reply.scan.more = true;
            if (call->moved)
                reply.scan.next = (struct native_position){
                    .given = true, .token = call->place.token, .key = scan_place_key(&call->place)};
            else
                reply.scan.next = request.scan.after;
        } else if (call->token_last < request.scan.token_last) {
            reply.scan.more = true;
            reply.scan.next =
                (struct native_position){.given = true, .token = call->token_last + 1};
        }
    }
    native_reply(x, &reply);
}

/* ---- COUNT, STATUS ---- */

struct count_call {
    u16 keyspace;
    bool exact;
    u64 count;
    status st;
};

MAY_YIELD static void
count_here(void *arg)
{
    struct count_call *call = arg;
    struct shard *shard = shard_self();
    struct lsm *lsm = shard->lsm;
    u64 count = 0, seen = lsm_seq_last(lsm);
    status st = ST_OK;
    if (call->exact)
        st = lsm_count_exact(lsm, call->keyspace, &count);
    else
        count = lsm_count_estimate(lsm, call->keyspace);
    if (call->exact && ok(st)) st = durable_wait_scanned(shard, seen, 0);
    call->count += count;
    if (ok(call->st)) call->st = st;
}

MAY_YIELD void
native_count(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    if (x->shard->cluster != NULL) {
        count_cluster(x, &request);
        return;
    }
    struct count_call call = {.keyspace = request.header.keyspace, .exact = request.count.exact};
    status st = shard_for_all(x->shard, count_here, &call);
    if (ok(call.st)) call.st = st;
    if (!ok(call.st)) {
        exec_fail(x, call.st);
        return;
    }
    struct native_reply reply = reply_to(&request);
    reply.count.count = call.count;
    reply.count.exact = request.count.exact;
    native_reply(x, &reply);
}

/* The same names as /status of the admin address (host_metrics.c), which knows the process, too. */
struct status_call {
    struct shard_stats *stats; /* of the shard asked last */
    u64 keys, commands, connections, memory_used, data_bytes, log_bytes;
    u64 corruptions, debt, refused, errors;
    enum lsm_state state; /* the worst */
};

MAY_YIELD static void
status_here(void *arg)
{
    struct status_call *call = arg;
    struct server_collect collect = {.server = shard_self()->server, .out = call->stats};
    server_collect(&collect);
}

static void
status_add(struct status_call *call)
{
    const struct shard_stats *s = call->stats;
    call->keys += s->lsm.keys_estimate;
    call->commands += s->commands_total;
    call->connections += s->io.connections;
    call->memory_used += s->memory_used;
    call->data_bytes += s->lsm.table_bytes + s->lsm.blob_bytes;
    call->log_bytes += s->lsm.log_bytes_to_replay;
    call->corruptions += s->lsm.corruptions;
    call->debt += s->lsm.compaction_debt_bytes;
    call->refused += s->lsm.writes_refused;
    for (u32 i = 0; i < SERVER_ERROR_KINDS; i++)
        call->errors += s->errors[i];
    call->state = MAX(call->state, s->lsm.state);
}

static const char *
state_name(enum lsm_state state)
{
    switch (state) {
    case LSM_STATE_OK:
        return "ok";
    case LSM_STATE_NO_SPACE:
        return "no space";
    case LSM_STATE_FAILED:
        return "failed";
    }
    return "unknown";
}

static void
json_string(struct buf *out, const char *text)
{
    cmd_text(out, "\"");
    size_t step;
    for (size_t left = strlen(text); left > 0; text += step, left -= step) {
        size_t sequence = utf8_sequence((const u8 *)text, left);
        step = MAX(sequence, 1u);
        if (sequence == 0)
            cmd_text(out, "\\\\x%02x", (u8)*text);
        else if (sequence > 1)
            cmd_text(out, "%.*s", (int)sequence, text);
        else if (*text == '"' || *text == '\\')
            cmd_text(out, "\\%c", *text);
        else if ((u8)*text < 32)
            cmd_text(out, "\\u%04x", (unsigned)(u8)*text);
        else
            cmd_text(out, "%c", *text);
    }
    cmd_text(out, "\"");
}

static void
json_number(struct buf *out, const char *name, u64 value)
{
    cmd_text(out, ",\"%s\":%llu", name, (unsigned long long)value);
}

static void
json_text(struct buf *out, const char *name, const char *text)
{
    cmd_text(out, ",\"%s\":", name);
    json_string(out, text);
}

static void
json_shard(struct buf *out, const struct server *server, struct shard_stats *s)
{
    s->lsm.failure[sizeof(s->lsm.failure) - 1] = '\0';
    cmd_text(out, "%s{\"shard\":%u,\"core\":%u", s->shard == 0 ? "" : ",", s->shard,
             server->config->core_list[s->shard]);
    json_text(out, "state", state_name(s->lsm.state));
    json_text(out, "failure", s->lsm.failure);
    json_number(out, "keys_estimate", s->lsm.keys_estimate);
    json_number(out, "commands", s->commands_total);
    json_number(out, "connections", s->io.connections);
    json_number(out, "memory_bytes", s->memory_used);
    json_number(out, "memory_limit_bytes", s->memory_limit);
    json_number(out, "table_bytes", s->lsm.table_bytes);
    json_number(out, "blob_bytes", s->lsm.blob_bytes);
    json_number(out, "log_replay_bytes", s->lsm.log_bytes_to_replay);
    json_number(out, "compaction_debt_bytes", s->lsm.compaction_debt_bytes);
    json_number(out, "corruptions", s->lsm.corruptions);
    json_number(out, "stalls", s->io.stalls);
    cmd_text(out, "}");
}

static void
json_node(struct buf *out, const struct server *server, const struct status_call *call)
{
    const struct server_config *config = server->config;
    u64 now = io_wall_ms();
    cmd_text(out, "{\"version\":\"%s\"", DISTKV_VERSION);
    json_text(out, "node_id", server->layout.node_id);
    json_text(out, "run_id", server->run_id);
    cmd_text(out, ",\"ready\":%s", server->ready ? "true" : "false");
    json_text(out, "state", state_name(call->state));
    json_text(out, "address", config->endpoint.host);
    json_number(out, "port", server->port);
    json_text(out, "data_dir", config->data_dir);
    cmd_text(out, ",\"uptime_seconds\":%.3f",
             (double)(now - MIN(now, server->start_wall_ms)) / 1000);
    json_number(out, "shard_count", server->shard_count);
    json_number(out, "keys_estimate", call->keys);
    json_number(out, "commands", call->commands);
    json_number(out, "errors", call->errors);
    json_number(out, "connections", call->connections);
    json_number(out, "corruptions", call->corruptions);
    json_number(out, "data_bytes", call->data_bytes);
    json_number(out, "log_replay_bytes", call->log_bytes);
    json_number(out, "compaction_debt_bytes", call->debt);
    json_number(out, "writes_refused", call->refused);
    json_number(out, "memory_used_bytes", call->memory_used);
    json_number(out, "memory_limit_bytes", config->memory_bytes);
}

MAY_YIELD void
native_status(struct exec *x)
{
    struct native_request request;
    if (!native_decode(x, &request)) return;
    struct status_call call = {.state = LSM_STATE_OK};
    call.stats = (struct shard_stats *)(void *)exec_alloc(x, sizeof(*call.stats));
    if (call.stats == NULL) return;
    const struct server *server = x->shard->server;
    struct buf out, shards;
    buf_init(&out, &x->shard->budget);
    buf_init(&shards, &x->shard->budget);
    for (u32 i = 0; i < server->shard_count; i++) {
        status st = io_shard_call(i, FIBER_FOREGROUND, status_here, &call);
        if (!ok(st)) {
            exec_fail(x, st);
            goto out;
        }
        status_add(&call);
        json_shard(&shards, server, call.stats);
    }
    json_node(&out, server, &call);
    if (x->shard->cluster != NULL) {
        cmd_text(&out, ",\"cluster\":");
        status st = cluster_json(x, &out);
        if (!ok(st)) goto out; /* the run has failed */
    }
    cmd_text(&out, ",\"shards\":[");
    if (!buf_append(&out, shards.data, shards.size) || !buf_append(&out, "]}", 2)) {
        exec_fail(x, ST_NO_MEMORY); /* half a document is no answer */
        goto out;
    }
    struct native_reply reply = reply_to(&request);
    reply.status.json = buf_bytes(&out);
    native_reply(x, &reply);
out:
    buf_deinit(&out);
    buf_deinit(&shards);
}
