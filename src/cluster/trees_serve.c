/* SPDX-License-Identifier: MIT
 *
 * trees_serve.c -- a replica that is asked for its trees. See trees.h.
 *
 * All is answered on fibers, few at once, with what was durable: whoever compares concludes from
 * the answer that we have what it says. Who has given up by then gets nothing.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "cluster/replicate_internal.h"
#include "cluster/trees_internal.h"
#include "io/io.h"

/* An answer to ENTRIES that has so much ends. A shard with the least memory has room for that and
 * for one of the largest values, twice (cluster.c). */
#define ENTRIES_BYTES KIB(256)

struct served {
    struct trees *t;
    struct peer_request *request;
    u64 epoch; /* of the request */
    u16 keyspace;
    struct buf body;
    struct buf answer;
};

static u64
own_epoch(const struct trees *t)
{
    return t->shard->topology == NULL ? 0 : t->shard->topology->epoch;
}

static bool
is_ours(const struct trees *t, u32 partition)
{
    return partition >= t->first && partition < t->first + t->count &&
           topology_holds(t->shard->topology, cluster_member(t->shard->cluster), partition);
}

/* ---- roots ---- */

static bool
side_add(struct buf *out, const struct tree_view *view, const struct peer_tree_root *asked)
{
    struct peer_tree_side side = {.partition = asked->partition, .bound = asked->bound};
    if (view == NULL || view->failed) {
        side.state = view != NULL && view->damaged ? PEER_TREE_DAMAGED : PEER_TREE_UNKNOWN;
    } else {
        side.bound = view->bound;
        side.state = view->bound != asked->bound ? PEER_TREE_BOUND
                     : view->root != asked->root ? PEER_TREE_DIFFER
                                                 : PEER_TREE_SAME;
    }
    u8 head[PEER_TREE_SIDE_BYTES];
    peer_tree_side_head(&side, head);
    if (!buf_append(out, head, sizeof(head))) return false;
    if (side.state != PEER_TREE_DIFFER) return true;
    for (u32 i = 0; i < TREE_LEAVES; i++) {
        u8 number[8];
        store_u64(number, view->leaves[i]);
        if (!buf_append(out, number, sizeof(number))) return false;
    }
    return true;
}

MAY_YIELD static status
serve_roots(struct served *served, const struct peer_tree *asked)
{
    struct trees *t = served->t;
    u8 head[PEER_TREE_ROOTS_BYTES] = {0};
    store_u32(head, replicator_session(t->shard->replicator));
    if (!buf_append(&served->answer, head, sizeof(head))) return ST_NO_MEMORY;
    struct tree_view *views = mem_alloc(&t->shard->budget, TREES_BATCH * sizeof(*views));
    if (views == NULL) return ST_NO_MEMORY;
    struct bytes rest = asked->items, again;
    status st = ST_OK;
    while (ok(st) && rest.size > 0) {
        u32 count = 0;
        struct peer_tree_root root;
        again = rest;
        for (u32 i = 0; i < TREES_BATCH && peer_tree_root_next(&rest, &root); i++)
            if (is_ours(t, root.partition))
                views[count++] =
                    (struct tree_view){.partition = root.partition, .bound = root.bound};
        trees_view(t, served->keyspace, views, count);
        if (trees_is_ending(t)) st = ST_CANCELED;
        for (u32 i = 0, next = 0; ok(st) && i < TREES_BATCH && peer_tree_root_next(&again, &root);
             i++) {
            bool known = next < count && views[next].partition == root.partition;
            if (!side_add(&served->answer, known ? &views[next] : NULL, &root)) st = ST_NO_MEMORY;
            next += known;
        }
    }
    mem_free(&t->shard->budget, views, TREES_BATCH * sizeof(*views));
    return ok(st) ? lsm_wait_durable(t->shard->lsm, lsm_seq_last(t->shard->lsm)) : st;
}

/* ---- entries ---- */

MAY_YIELD static status
serve_entries(struct served *served, const struct peer_tree *asked)
{
    struct trees *t = served->t;
    struct replicator *r = t->shard->replicator;
    struct bytes rest = asked->items, key;
    u8 more = 0;
    u64 seq = 0;
    status st = buf_append(&served->answer, &more, 1) ? ST_OK : ST_NO_MEMORY;
    while (ok(st) && peer_tree_key_next(&rest, &key)) {
        u64 token = hash_token(key);
        if (!is_ours(t, token_partition(token, t->partition_count))) return ST_INVALID;
        struct own_read own;
        st = own_read(r, served->keyspace, token, key, &own);
        if (!ok(st)) break;
        seq = MAX(seq, own.seq);
        struct lsm_value value = {.version = own.version};
        if (own.found) value = own.value;
        if (own.version != 0 && !cluster_page_add(&served->answer, !own.found, key, &value))
            st = ST_NO_MEMORY;
        if (own.found) lsm_value_release(&own.value);
        if (served->answer.size >= ENTRIES_BYTES) {
            served->answer.data[0] = rest.size > 0;
            break;
        }
        if (fiber_should_yield()) fiber_yield();
    }
    return ok(st) ? lsm_wait_durable(t->shard->lsm, seq) : st;
}

/* ---- settled ---- */

/* From whoever has compared all replicas, this one among them. */
static status
serve_settled(struct served *served, const struct peer_tree *asked)
{
    struct trees *t = served->t;
    const struct topology *topology = t->shard->topology;
    if (topology->stage != STAGE_NONE || served->epoch < topology->stage_epoch) return ST_CANCELED;
    struct bytes rest = asked->items;
    u32 partition;
    while (peer_tree_partition_next(&rest, &partition))
        if (is_ours(t, partition)) trees_settle(t, partition, asked->version);
    return ST_OK;
}

/* ---- requests ---- */

MAY_YIELD static void
serve(void *arg)
{
    struct served *served = arg;
    struct trees *t = served->t;
    struct peer_tree asked;
    status st = peer_tree_decode(buf_bytes(&served->body), &asked);
    if (ok(st) && io_now_ns() >= peer_request_deadline_ns(served->request)) st = ST_TIMED_OUT;
    if (ok(st) && (trees_is_ending(t) || !trees_follow(t))) st = ST_CANCELED;
    if (ok(st) && asked.kind == PEER_TREE_ROOTS)
        st = serve_roots(served, &asked);
    else if (ok(st) && asked.kind == PEER_TREE_ENTRIES)
        st = serve_entries(served, &asked);
    else if (ok(st))
        st = serve_settled(served, &asked);
    struct bytes part = buf_bytes(&served->answer);
    peer_reply(served->request, ok(st) ? NATIVE_ST_OK : native_status_of(st), own_epoch(t), &part,
               ok(st) ? 1 : 0);
    buf_deinit(&served->body);
    buf_deinit(&served->answer);
    mem_free(&t->shard->budget, served, sizeof(*served));
    t->serving--;
    fiber_queue_wake_all(&t->idle);
}

static void
asked(void *arg, struct peer_request *request, const struct peer_identity *from,
      const struct native_header *header, struct bytes body)
{
    struct trees *t = arg;
    (void)from;
    if (request == NULL) return;
    const struct topology *topology = t->shard->topology;
    struct peer_tree tree;
    enum native_status refused = NATIVE_ST_OK;
    if (!ok(peer_tree_decode(body, &tree)) || header->keyspace >= LIMIT_KEYSPACES_CLIENT)
        refused = NATIVE_ST_INVALID;
    else if (topology == NULL || header->epoch < topology->stage_epoch_before)
        refused = NATIVE_ST_WRONG_EPOCH;
    else if (trees_is_ending(t) || t->serving >= TREES_SERVED_MAX)
        refused = NATIVE_ST_OVERLOADED;
    struct served *served =
        refused == NATIVE_ST_OK ? mem_alloc_zero(&t->shard->budget, sizeof(*served)) : NULL;
    if (served == NULL) {
        peer_reply(request, refused == NATIVE_ST_OK ? NATIVE_ST_NO_MEMORY : refused, own_epoch(t),
                   NULL, 0);
        return;
    }
    *served = (struct served){
        .t = t, .request = request, .epoch = header->epoch, .keyspace = header->keyspace};
    buf_init(&served->body, &t->shard->budget);
    buf_init(&served->answer, &t->shard->budget);
    t->serving++;
    if (buf_append(&served->body, body.data, body.size) &&
        ok(fiber_spawn(FIBER_BULK, "trees for another", serve, served)))
        return;
    MARK("cluster.trees.refused");
    t->serving--;
    buf_deinit(&served->body);
    mem_free(&t->shard->budget, served, sizeof(*served));
    peer_reply(request, NATIVE_ST_NO_MEMORY, own_epoch(t), NULL, 0);
}

void
trees_serve_open(struct trees *t)
{
    peers_handler_set(t->shard->peers, PEER_TREE, asked, t);
}

void
trees_serve_close(struct trees *t)
{
    peers_handler_set(t->shard->peers, PEER_TREE, NULL, NULL);
}
