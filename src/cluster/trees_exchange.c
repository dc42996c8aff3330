/* SPDX-License-Identifier: MIT
 *
 * trees_exchange.c -- comparing a few neighbouring partitions with all their replicas. See trees.h.
 *
 *   for each keyspace   own trees, then the roots at each replica's shard
 *     for each leaf that differs   both lists of keys, merged; what is newer here is sent, what is
 *                                  newer there is asked for
 *   nothing that matters differed  the replicas are asked once more, for all that they said to be
 *                                  durable; then all are told what is settled
 *
 * What is written meanwhile differs for a moment. So what is young and differs is left alone, and
 * what is settled are versions below one (`oldest`) of which every member said, before any of this
 * began, that nothing below it will come any more. A difference in such a version is mended, and
 * the next round finds whether it is.
 */
#include "base/fault.h"
#include "base/hash.h"
#include "base/log.h"
#include "cluster/replicate_internal.h"
#include "cluster/trees_internal.h"
#include "io/io.h"

/* Keys that are asked for at once, and writes that are under way. */
#define WANTED_MAX       128u
#define WANTED_BYTES_MAX KIB(64)
#define PUSHES_MAX       32u
static_assert(WANTED_MAX <= PEER_TREE_ITEMS_MAX, "they are items of one request");

struct push {
    struct peer_call call;
    struct batch *batch;
    bool under_way;
};

/* One side of a leaf that is compared: its keys, page by page. */
struct side {
    struct cluster_page from; /* where the next page begins */
    struct buf page;
    size_t at;
    bool more, valid;
    struct cluster_page_entry next;
    u8 key[LIMIT_KEY_BYTES];
};

struct batch {
    struct trees *t;
    u32 first, count;
    bool all;
    u64 oldest;      /* of all members, when it began */
    u64 stage_epoch; /* it is over when that changes */
    bool hands_over; /* trees_hand_over */
    u64 seq;         /* of the last write here */
    struct trees_exchanged out;

    /* of each partition */
    u32 repairs[TREES_BATCH]; /* replicator_repairs, when it began */
    bool mine[TREES_BATCH];   /* it is this member who compares it */
    bool bad[TREES_BATCH];    /* not settled by this */

    /* one replica's shard */
    u16 keyspace;
    u32 member, there, session;
    struct tree_view *views; /* TREES_BATCH */

    /* one leaf */
    u32 partition, bound;
    bool met_damage; /* here or there */
    struct side ours, theirs;
    struct buf wanted;
    u32 wanted_count;
    struct push pushes[PUSHES_MAX];
    u32 pushing;
    bool push_failed;
    struct fiber_queue wake;
};

static const struct topology *
topology_of(const struct batch *b)
{
    return b->t->shard->topology;
}

static bool
is_over(const struct batch *b)
{
    const struct topology *topology = topology_of(b);
    return trees_is_ending(b->t) || topology->stage != STAGE_NONE ||
           topology->stage_epoch != b->stage_epoch;
}

/* ---- who ---- */

static bool
is_mine(const struct batch *b, u32 keyspace, u32 partition)
{
    struct cluster *cluster = b->t->shard->cluster;
    u32 self = cluster_member(cluster);
    struct topology_row row;
    topology_row(topology_of(b), keyspace, partition, &row);
    if (b->all) return topology_row_has(&row, self);
    for (u32 i = 0; i < row.count; i++)
        if (row.write[i] == self || cluster_alive(cluster, row.write[i]))
            return row.write[i] == self;
    return false;
}

/* A partition is one member's whole, so that he can say what is settled in it: of the keyspace with
 * the longest rows. */
static void
choose(struct batch *b)
{
    const struct topology *topology = topology_of(b);
    for (u32 i = 0; i < b->count; i++) {
        u32 widest = LIMIT_KEYSPACES_CLIENT;
        struct topology_row row;
        for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
            if (topology->keyspaces[k].used &&
                (widest == LIMIT_KEYSPACES_CLIENT ||
                 topology->keyspaces[k].replicas > topology->keyspaces[widest].replicas))
                widest = k;
        b->mine[i] = b->bad[i] = false;
        if (widest == LIMIT_KEYSPACES_CLIENT) continue;
        b->mine[i] = is_mine(b, widest, b->first + i);
        topology_row(topology, widest, b->first + i, &row);
        /* Who is gone may have had something that nobody has now. */
        if (row.places != row.count || b->oldest == 0) b->bad[i] = true;
        b->repairs[i] = replicator_repairs(b->t->shard->replicator, b->first + i);
    }
}

/* ---- asking ---- */

MAY_YIELD static status
ask(struct batch *b, u8 opcode, const struct bytes *parts, u32 part_count, u64 patience_ns,
    struct buf *answer)
{
    struct native_header header = {
        .opcode = opcode, .epoch = topology_of(b)->epoch, .keyspace = b->keyspace};
    struct native_header answered;
    bool maybe_sent;
    status st = ST_CLOSED;
    /* A connection from before the other one's restart is found broken by the first use. */
    for (u32 i = 0; i < 2 && status_is(st, ST_CLOSED) && !is_over(b); i++)
        st = peer_call_wait(b->t->shard->peers, b->member, b->there, &header, parts, part_count,
                            io_now_ns() + patience_ns, &answered, answer, &maybe_sent);
    if (!ok(st)) return st;
    if (answered.status == NATIVE_ST_DAMAGED) b->met_damage = true;
    return answered.status == NATIVE_ST_OK ? ST_OK : native_status_to_base(answered.status);
}

/* ---- what is newer here ---- */

static void
pushed(struct peer_call *call, status st, const struct native_header *header, struct bytes body)
{
    struct push *push = CONTAINER_OF(call, struct push, call);
    (void)body;
    push->under_way = false;
    push->batch->pushing--;
    if (!ok(st) || header->status != NATIVE_ST_OK) push->batch->push_failed = true;
    fiber_queue_wake_all(&push->batch->wake);
}

/* Calls end by their deadline. */
MAY_YIELD static void
pushes_await(struct batch *b, u32 at_most)
{
    while (b->pushing > at_most)
        (void)!ok(fiber_queue_wait(&b->wake, io_now_ns() + NS_PER_S));
}

MAY_YIELD static status
push_key(struct batch *b, const struct cluster_entry *entry)
{
    struct trees *t = b->t;
    pushes_await(b, PUSHES_MAX - 1);
    struct own_read own;
    status st = own_read(t->shard->replicator, b->keyspace, entry->token, entry->key, &own);
    if (status_is(st, ST_CORRUPT)) b->met_damage = true;
    if (!ok(st)) return st;
    st = lsm_wait_durable(t->shard->lsm, own.seq); /* nobody gets what a power cut may take back */
    struct lsm_batch batch;
    lsm_batch_init(&batch, &t->shard->budget);
    if (ok(st) && own.version != 0) {
        bool fits = own.found ? lsm_batch_put(&batch, b->keyspace, entry->token, entry->key,
                                              own.value.value, own.expire_ms)
                              : lsm_batch_delete(&batch, b->keyspace, entry->token, entry->key);
        if (!fits) st = ST_NO_MEMORY;
    }
    if (ok(st) && batch.count > 0) {
        struct push *push = b->pushes;
        while (push->under_way)
            push++;
        u8 head[PEER_REPLICA_HEAD_BYTES];
        bool siblings = replicate_siblings(t->shard->replicator, b->keyspace);
        struct peer_write write = {.version = own.version,
                                   .partition = b->partition,
                                   .count = 1,
                                   .flags = PEER_WRITE_REPAIR |
                                            (b->hands_over ? 0 : PEER_WRITE_TREE) |
                                            (siblings ? PEER_WRITE_MERGE : 0),
                                   .session = b->session};
        struct bytes parts[] = {BYTES(head, peer_write_head(&write, head)), buf_bytes(&batch.ops)};
        struct native_header header = {
            .opcode = PEER_WRITE, .epoch = topology_of(b)->epoch, .keyspace = b->keyspace};
        push->batch = b;
        push->under_way = true;
        b->pushing++;
        peer_call_init(&push->call, pushed);
        peer_call_start(t->shard->peers, &push->call, b->member, b->there, &header, parts,
                        ARRAY_COUNT(parts), io_now_ns() + TREES_CALL_NS);
        trees_count(&trees_node(t)->entries_sent, 1);
        trees_count(&trees_node(t)->bytes_sent, batch.ops.size);
        b->out.mended = true;
    }
    u64 bytes = batch.ops.size;
    lsm_batch_deinit(&batch);
    if (own.found) lsm_value_release(&own.value);
    if (ok(st)) trees_pace(t, bytes);
    return st;
}

/* ---- what is newer there ---- */

MAY_YIELD static status
store(struct batch *b, const struct cluster_page_entry *found)
{
    struct trees *t = b->t;
    const struct cluster_entry *entry = &found->entry;
    if (token_partition(entry->token, t->partition_count) != b->partition) return ST_CORRUPT;
    struct lsm_batch batch;
    lsm_batch_init(&batch, &t->shard->budget);
    batch.version = entry->version;
    bool fits = found->deleted ? lsm_batch_delete(&batch, b->keyspace, entry->token, entry->key)
                               : lsm_batch_put(&batch, b->keyspace, entry->token, entry->key,
                                               entry->value, entry->expire_ms);
    u64 seq = 0;
    status st = fits
                    ? replicate_store(t->shard->replicator, b->keyspace, b->partition, &batch, &seq)
                    : ST_NO_MEMORY;
    lsm_batch_deinit(&batch);
    b->seq = MAX(b->seq, seq); /* a set that says nothing new is in an older one */
    if (ok(st)) b->out.mended = true;
    return st;
}

/* Cuts off what was asked for up to this key. False: it was not asked for. */
static bool
wanted_cut(struct bytes *left, u32 *left_count, struct bytes key)
{
    struct bytes asked;
    while (peer_tree_key_next(left, &asked)) {
        *left_count -= 1;
        if (bytes_equal(asked, key)) return true;
    }
    return false;
}

/* One answer. It has entries in the order in which they were asked for, without those that are
 * absent there, and perhaps not all: what is behind the last one is left then. */
MAY_YIELD static status
fetch_some(struct batch *b, struct bytes *left, u32 *left_count)
{
    struct trees *t = b->t;
    u8 head[PEER_TREE_HEAD_BYTES];
    struct peer_tree asked = {.kind = PEER_TREE_ENTRIES, .count = *left_count};
    peer_tree_head(&asked, head);
    struct bytes parts[] = {BYTES(head, sizeof(head)), *left};
    struct buf answer;
    buf_init(&answer, &t->shard->budget);
    status st = ask(b, PEER_TREE, parts, ARRAY_COUNT(parts), TREES_PAGE_NS, &answer);
    if (ok(st) && answer.size == 0) st = ST_CORRUPT;
    bool more = ok(st) && (answer.data[0] & 1) != 0, any = false;
    size_t at = 1;
    struct cluster_page_entry found;
    while (ok(st)) {
        st = is_over(b) ? ST_CANCELED : cluster_page_next(buf_bytes(&answer), false, &at, &found);
        if (!ok(st)) break;
        st = wanted_cut(left, left_count, found.entry.key) ? store(b, &found) : ST_CORRUPT;
        any = true;
        trees_count(&trees_node(t)->entries_received, 1);
        trees_count(&trees_node(t)->bytes_received, found.entry.key.size + found.entry.value.size);
        if (fiber_should_yield()) fiber_yield();
    }
    if (status_is(st, ST_END)) st = ST_OK;
    if (!more) *left = BYTES(NULL, 0);
    /* Each answer goes on, or somebody could keep us here for ever. */
    if (ok(st) && more && !any) st = ST_CORRUPT;
    trees_pace(t, answer.size);
    buf_deinit(&answer);
    return st;
}

MAY_YIELD static status
fetch_wanted(struct batch *b)
{
    struct bytes left = buf_bytes(&b->wanted);
    u32 left_count = b->wanted_count;
    status st = ST_OK;
    while (ok(st) && left.size > 0)
        st = fetch_some(b, &left, &left_count);
    buf_clear(&b->wanted, b->wanted.capacity);
    b->wanted_count = 0;
    return st;
}

MAY_YIELD static status
want(struct batch *b, struct bytes key)
{
    u8 size[2];
    store_u16(size, (u16)key.size);
    if (!buf_append(&b->wanted, size, sizeof(size)) || !buf_append(&b->wanted, key.data, key.size))
        return ST_NO_MEMORY;
    b->wanted_count++;
    bool full = b->wanted_count == WANTED_MAX || b->wanted.size >= WANTED_BYTES_MAX;
    return full ? fetch_wanted(b) : ST_OK;
}

/* ---- two lists of keys ---- */

MAY_YIELD static status
side_fill(struct batch *b, struct side *side)
{
    buf_clear(&side->page, side->page.capacity);
    side->at = 1;
    status st;
    if (side == &b->ours) {
        st = cluster_page_read(b->t->shard, &side->from, &side->page);
        if (status_is(st, ST_CORRUPT)) b->met_damage = true;
    } else {
        u8 head[CLUSTER_PAGE_HEAD_BYTES];
        cluster_page_encode(&side->from, 0, head);
        struct bytes parts[] = {BYTES(head, sizeof(head)), side->from.behind};
        st = ask(b, PEER_STREAM, parts, ARRAY_COUNT(parts), TREES_PAGE_NS, &side->page);
    }
    if (!ok(st)) return st;
    trees_pace(b->t, side->page.size); /* where trees differ in all leaves, this is all the work */
    if (side->page.size == 0) return ST_CORRUPT;
    side->more = (side->page.data[0] & 1) != 0; /* bit 1: damage was passed over */
    /* Each page goes on, or somebody could keep us here for ever. */
    return side->more && side->page.size == 1 ? ST_CORRUPT : ST_OK;
}

/* To the next key: valid, or the side has ended. */
MAY_YIELD static status
side_step(struct batch *b, struct side *side)
{
    u64 before = side->valid ? side->next.entry.token : side->from.token;
    side->valid = false;
    for (;;) {
        status st =
            cluster_page_next(buf_bytes(&side->page), side->from.keys_only, &side->at, &side->next);
        if (ok(st)) {
            const struct cluster_entry *entry = &side->next.entry;
            if (entry->token < before || entry->token > side->from.token_last) return ST_CORRUPT;
            /* Where the next page begins: this one's bytes go before that. */
            memcpy(side->key, entry->key.data, entry->key.size);
            side->from.token = entry->token;
            side->from.behind = BYTES(side->key, entry->key.size);
            side->valid = true;
            return ST_OK;
        }
        if (!status_is(st, ST_END)) return st;
        if (!side->more) return ST_OK;
        st = side_fill(b, side);
        if (!ok(st)) return st;
    }
}

MAY_YIELD static status
side_open(struct batch *b, struct side *side, u64 first, u64 last)
{
    side->from = (struct cluster_page){.token = first,
                                       .token_last = last,
                                       .bytes_max = TREES_PAGE_BYTES,
                                       .keyspace = b->keyspace,
                                       .keys_only = !b->hands_over || side == &b->ours,
                                       .passes = b->hands_over && side == &b->ours};
    side->valid = false;
    side->more = true;
    status st = side_fill(b, side);
    return ok(st) ? side_step(b, side) : st;
}

/* ours, theirs: NULL where the key is not. */
MAY_YIELD static status
judge(struct batch *b, const struct cluster_page_entry *ours,
      const struct cluster_page_entry *theirs)
{
    u64 our_version = ours == NULL ? 0 : ours->entry.version;
    u64 their_version = theirs == NULL ? 0 : theirs->entry.version;
    if (our_version == their_version) return ST_OK;
    const struct cluster_page_entry *newer = our_version > their_version ? ours : theirs;
    u32 gone = tree_gone(newer->entry.version, newer->deleted, newer->entry.expire_ms);
    /* One has collected it; the other has not yet. */
    if ((ours == NULL || theirs == NULL) && gone < b->bound) return ST_OK;
    if (b->hands_over) {
        if (newer != ours) return ST_OK;
        b->partition = token_partition(ours->entry.token, b->t->partition_count);
        return push_key(b, &ours->entry);
    }
    if (newer->entry.version < b->oldest) b->bad[b->partition - b->first] = true;
    u64 fresh = hlc_version_at(io_wall_ms() - TREES_FRESH_MS);
    if (newer->entry.version >= MAX(fresh, b->oldest)) return ST_OK; /* it is on its way */
    return newer == ours ? push_key(b, &ours->entry) : want(b, newer->entry.key);
}

static i32
compare(const struct cluster_entry *a, const struct cluster_entry *b)
{
    if (a->token != b->token) return a->token < b->token ? -1 : 1;
    return bytes_compare(a->key, b->key);
}

MAY_YIELD static status
compare_stretch(struct batch *b, u64 first, u64 last)
{
    status st = side_open(b, &b->ours, first, last);
    if (ok(st)) st = side_open(b, &b->theirs, first, last);
    while (ok(st) && (b->ours.valid || b->theirs.valid)) {
        if (is_over(b)) return ST_CANCELED;
        i32 order = !b->ours.valid     ? 1
                    : !b->theirs.valid ? -1
                                       : compare(&b->ours.next.entry, &b->theirs.next.entry);
        st = judge(b, order <= 0 ? &b->ours.next : NULL, order >= 0 ? &b->theirs.next : NULL);
        if (ok(st) && order <= 0) st = side_step(b, &b->ours);
        if (ok(st) && order >= 0) st = side_step(b, &b->theirs);
        if (fiber_should_yield()) fiber_yield();
    }
    if (ok(st)) st = fetch_wanted(b);
    return st;
}

MAY_YIELD static status
compare_leaf(struct batch *b, u32 leaf)
{
    u32 count = b->t->partition_count;
    trees_count(&trees_node(b->t)->leaves_differing, 1);
    return compare_stretch(b, tree_leaf_first(b->partition, count, leaf),
                           tree_leaf_last(b->partition, count, leaf));
}

MAY_YIELD static status
compare_leaves(struct batch *b, const struct tree_view *view, const u8 *leaves)
{
    u64 theirs[TREE_LEAVES];
    for (u32 i = 0; i < TREE_LEAVES; i++)
        theirs[i] = load_u64(leaves + 8 * i);
    u64 differing = tree_differing(view->leaves, theirs);
    b->partition = view->partition;
    b->bound = view->bound;
    buf_clear(&b->wanted, b->wanted.capacity);
    b->wanted_count = 0;
    b->push_failed = b->met_damage = false;
    status st = ST_OK;
    for (; ok(st) && differing != 0; differing &= differing - 1)
        st = compare_leaf(b, (u32)__builtin_ctzll(differing));
    pushes_await(b, 0);
    if (ok(st) && b->push_failed) st = ST_UNAVAILABLE;
    return st;
}

/* ---- one replica ---- */

static struct tree_view *
view_of(const struct batch *b, u32 partition)
{
    for (u32 i = 0; i < b->count; i++)
        if (b->views[i].partition == partition) return &b->views[i];
    return NULL;
}

static void
failed(struct batch *b, u32 partition, bool damaged, const char *what, status st)
{
    b->bad[partition - b->first] = true;
    if (damaged) MARK("cluster.trees.damaged");
    *(damaged ? &b->out.damaged : &b->out.failed) += 1;
    trees_count(&trees_node(b->t)->failures, 1);
    log_debug("cluster", "trees: %s keyspace=%u partition=%u member=%u: %s", what, b->keyspace,
              partition, b->member, status_text(st));
}

/* wanted: which of the batch lie there. With a second round for those whose bound is higher there.
 */
MAY_YIELD static void
compare_there(struct batch *b, const bool wanted[TREES_BATCH])
{
    struct trees *t = b->t;
    bool left[TREES_BATCH];
    status why = ST_UNAVAILABLE;
    memcpy(left, wanted, sizeof(left));
    for (u32 round = 0; round < 2 && !is_over(b); round++) {
        struct buf request, answer;
        buf_init(&request, &t->shard->budget);
        buf_init(&answer, &t->shard->budget);
        struct peer_tree asked = {.kind = PEER_TREE_ROOTS};
        status st = ST_OK;
        for (u32 i = 0; i < b->count && ok(st); i++) {
            const struct tree_view *view = &b->views[i];
            if (!left[i] || view->failed) continue;
            u8 item[PEER_TREE_ROOT_BYTES];
            struct peer_tree_root root = {
                .partition = view->partition, .bound = view->bound, .root = view->root};
            peer_tree_root_encode(&root, item);
            if (!buf_append(&request, item, sizeof(item))) st = ST_NO_MEMORY;
            asked.count++;
        }
        u8 head[PEER_TREE_HEAD_BYTES];
        peer_tree_head(&asked, head);
        struct bytes parts[] = {BYTES(head, sizeof(head)), buf_bytes(&request)};
        struct bytes rest = {0};
        if (ok(st) && asked.count > 0)
            st = ask(b, PEER_TREE, parts, ARRAY_COUNT(parts), TREES_ROOTS_NS, &answer);
        if (ok(st) && asked.count > 0)
            st = peer_tree_roots_decode(buf_bytes(&answer), &b->session, &rest);
        struct peer_tree_side side;
        bool again = false;
        while (ok(st) && ok(st = peer_tree_side_next(&rest, &side))) {
            struct tree_view *view = view_of(b, side.partition);
            if (view == NULL || !left[view - b->views]) {
                st = ST_CORRUPT;
                break;
            }
            bool raise = side.state == PEER_TREE_BOUND && side.bound > view->bound && round == 0;
            if (raise) {
                view->bound = side.bound;
                again = true;
                continue;
            }
            left[view - b->views] = false;
            trees_count(&trees_node(t)->exchanges, 1);
            status compared = ST_OK;
            b->met_damage = side.state == PEER_TREE_DAMAGED;
            if (side.state == PEER_TREE_DIFFER)
                compared =
                    side.bound == view->bound ? compare_leaves(b, view, side.leaves) : ST_CORRUPT;
            else if (side.state != PEER_TREE_SAME)
                compared = ST_UNAVAILABLE;
            if (!ok(compared)) failed(b, side.partition, b->met_damage, "not compared", compared);
            if (is_over(b)) break;
        }
        buf_deinit(&request);
        buf_deinit(&answer);
        if (!ok(st) && !status_is(st, ST_END)) why = st;
        if (!again) break;
        /* Their higher bound is as good for us. */
        trees_view(t, b->keyspace, b->views, b->count);
    }
    for (u32 i = 0; i < b->count; i++)
        if (left[i]) failed(b, b->views[i].partition, b->views[i].damaged, "no answer", why);
}

/* ---- one keyspace ---- */

/* Calls fn for each shard of each member that has some of the batch, but us. */
MAY_YIELD static void
each_replica(struct batch *b, void (*fn)(struct batch *b, const bool wanted[TREES_BATCH]))
{
    struct trees *t = b->t;
    const struct topology *topology = topology_of(b);
    for (u32 m = 0; m < topology_of(b)->member_count && !is_over(b); m++) {
        topology = topology_of(b);
        const struct topology_member *member = &topology->members[m];
        if (member->number == cluster_member(t->shard->cluster)) continue;
        b->member = member->number;
        for (u32 there = 0; there < member->shard_count; there++) {
            bool wanted[TREES_BATCH] = {false}, any = false;
            for (u32 i = 0; i < b->count; i++) {
                struct topology_row row;
                topology_row(topology, b->keyspace, b->first + i, &row);
                wanted[i] =
                    b->mine[i] && topology_row_has(&row, b->member) &&
                    topology_row_has(&row, cluster_member(t->shard->cluster)) &&
                    partition_shard(b->first + i, member->shard_count, t->partition_count) == there;
                any = any || wanted[i];
            }
            if (!any) continue;
            b->there = there;
            fn(b, wanted);
            /* The member's record may be another one by now. */
            topology = topology_of(b);
            if (is_over(b) || m >= topology->member_count) return;
            member = &topology->members[m];
            if (member->number != b->member) {
                for (u32 i = 0; i < b->count; i++)
                    b->bad[i] = true;
                return;
            }
        }
    }
}

MAY_YIELD static void
compare_living(struct batch *b, const bool wanted[TREES_BATCH])
{
    if (cluster_alive(b->t->shard->cluster, b->member)) {
        compare_there(b, wanted);
        return;
    }
    for (u32 i = 0; i < b->count; i++) {
        b->out.not_tried += wanted[i];
        if (wanted[i]) b->bad[i] = true;
    }
}

MAY_YIELD static void
exchange_keyspace(struct batch *b)
{
    struct trees *t = b->t;
    for (u32 i = 0; i < b->count; i++)
        b->views[i] = (struct tree_view){.partition = b->first + i};
    trees_view(t, b->keyspace, b->views, b->count);
    for (u32 i = 0; i < b->count; i++) {
        struct topology_row row;
        topology_row(topology_of(b), b->keyspace, b->first + i, &row);
        /* Others have it who are not compared by us. */
        bool foreign = row.count > 1 && !topology_row_has(&row, cluster_member(t->shard->cluster));
        if (b->mine[i] && (b->views[i].failed || foreign)) b->bad[i] = true;
    }
    each_replica(b, compare_living);
}

/* ---- settling ---- */

/* An answer without items: all that is visible there is durable. */
MAY_YIELD static void
sync_there(struct batch *b, const bool wanted[TREES_BATCH])
{
    bool any = false;
    for (u32 i = 0; i < b->count; i++)
        any = any || (wanted[i] && !b->bad[i]);
    if (!any) return;
    u8 head[PEER_TREE_HEAD_BYTES];
    struct peer_tree asked = {.kind = PEER_TREE_ROOTS};
    peer_tree_head(&asked, head);
    struct bytes part = BYTES(head, sizeof(head));
    struct buf answer;
    buf_init(&answer, &b->t->shard->budget);
    status st = ask(b, PEER_TREE, &part, 1, TREES_CALL_NS, &answer);
    buf_deinit(&answer);
    for (u32 i = 0; i < b->count; i++)
        if (!ok(st) && wanted[i]) b->bad[i] = true;
}

MAY_YIELD static void
tell_there(struct batch *b, const bool wanted[TREES_BATCH])
{
    u8 head[PEER_TREE_HEAD_BYTES], items[4 * TREES_BATCH];
    struct peer_tree told = {.kind = PEER_TREE_SETTLED, .version = b->oldest};
    for (u32 i = 0; i < b->count; i++)
        if (wanted[i] && !b->bad[i]) store_u32(items + 4 * told.count++, b->first + i);
    if (told.count == 0) return;
    peer_tree_head(&told, head);
    struct bytes parts[] = {BYTES(head, sizeof(head)), BYTES(items, 4 * (size_t)told.count)};
    struct buf answer;
    buf_init(&answer, &b->t->shard->budget);
    /* Who does not hear it hears it in the next round. */
    (void)!ok(ask(b, PEER_TREE, parts, ARRAY_COUNT(parts), TREES_CALL_NS, &answer));
    buf_deinit(&answer);
}

MAY_YIELD static void
settle(struct batch *b)
{
    struct trees *t = b->t;
    struct lsm *lsm = t->shard->lsm;
    if (b->oldest == 0 || !ok(lsm_wait_durable(lsm, lsm_seq_last(lsm)))) return;
    /* The widest keyspace's replicas are all that there are. */
    const struct topology *topology = topology_of(b);
    u32 widest = 0;
    for (u32 k = 0; k < LIMIT_KEYSPACES_CLIENT; k++)
        if (topology->keyspaces[k].used &&
            (!topology->keyspaces[widest].used ||
             topology->keyspaces[k].replicas > topology->keyspaces[widest].replicas))
            widest = k;
    b->keyspace = (u16)widest;
    each_replica(b, sync_there);
    if (is_over(b)) return;
    for (u32 i = 0; i < b->count; i++) {
        /* A repair that came meanwhile may have come after some were compared. */
        if (replicator_repairs(t->shard->replicator, b->first + i) != b->repairs[i])
            b->bad[i] = true;
        if (b->mine[i] && !b->bad[i]) trees_settle(t, b->first + i, b->oldest);
    }
    each_replica(b, tell_there);
}

MAY_YIELD static void
exchange(struct batch *b)
{
    struct trees *t = b->t;
    b->stage_epoch = topology_of(b)->stage_epoch;
    b->oldest =
        cluster_oldest(t->shard->cluster, b->stage_epoch); /* before anything is looked at */
    choose(b);
    bool any = false;
    for (u32 i = 0; i < b->count; i++)
        any = any || b->mine[i];
    if (!any) return;
    for (u16 k = 0; k < LIMIT_KEYSPACES_CLIENT && !is_over(b); k++) {
        if (!topology_of(b)->keyspaces[k].used) continue;
        b->keyspace = k;
        exchange_keyspace(b);
    }
    if (b->seq != 0 && !ok(lsm_wait_durable(t->shard->lsm, b->seq))) {
        b->out.failed++;
        return;
    }
    if (!is_over(b)) settle(b);
}

static struct batch *
batch_new(struct trees *t, u32 first, u32 count)
{
    /* Not of the trees' memory, of which they may have taken all. */
    struct batch *b = mem_alloc_zero(&t->shard->budget, sizeof(*b));
    if (b == NULL) return NULL;
    b->t = t;
    b->first = first;
    b->count = count;
    buf_init(&b->ours.page, &t->shard->budget);
    buf_init(&b->theirs.page, &t->shard->budget);
    buf_init(&b->wanted, &t->shard->budget);
    fiber_queue_init(&b->wake);
    return b;
}

static void
batch_free(struct batch *b)
{
    if (b == NULL) return;
    buf_deinit(&b->ours.page);
    buf_deinit(&b->theirs.page);
    buf_deinit(&b->wanted);
    mem_free(&b->t->shard->budget, b, sizeof(*b));
}

MAY_YIELD void
trees_exchange(struct trees *t, u32 first, u32 count, bool all, struct trees_exchanged *out)
{
    CHECK(count <= TREES_BATCH);
    struct batch *b = batch_new(t, first, count);
    struct tree_view *views = mem_alloc(&t->shard->budget, TREES_BATCH * sizeof(*views));
    if (b != NULL && views != NULL) {
        b->all = all;
        b->views = views;
        exchange(b);
        b->out.over = is_over(b);
        *out = b->out;
    } else {
        MARK("cluster.trees.no_batch");
        trees_count(&trees_node(t)->failures, 1);
        *out = (struct trees_exchanged){.failed = 1};
    }
    mem_free(&t->shard->budget, views, TREES_BATCH * sizeof(*views));
    batch_free(b);
}

MAY_YIELD status
trees_hand_over(struct trees *t, u64 stage_epoch, u16 keyspace, u32 member, u32 there, u32 first,
                u32 end)
{
    /* The topology may have come a moment ago, and its own fiber not have met it. */
    if (!trees_follow(t)) return ST_CANCELED;
    struct batch *b = batch_new(t, first, end - first);
    if (b == NULL) return ST_NO_MEMORY;
    b->hands_over = true;
    b->stage_epoch = stage_epoch;
    b->keyspace = keyspace;
    b->member = member;
    b->there = there;
    b->bound = tree_bound_of(lsm_purge_below(t->shard->lsm, keyspace));
    status st = compare_stretch(b, partition_token_first(first, t->partition_count),
                                partition_token_last(end - 1, t->partition_count));
    pushes_await(b, 0);
    if (ok(st) && b->push_failed) st = ST_UNAVAILABLE;
    if (b->out.mended) MARK("cluster.trees.handed_over");
    batch_free(b);
    return st;
}
