/* SPDX-License-Identifier: MIT
 *
 * trees_resolve.c -- the trees of one shard, brought up to date when somebody wants to compare.
 *
 * A write marks its leaf and nothing else. Here runs of neighbouring leaves that are marked, or
 * were never looked at, are scanned at once: after a start that is one scan of all that there is,
 * in pieces, and in an idle keyspace it is none.
 *
 * Memory of trees is bounded by their budget: when it is short, the tree of some other partition is
 * forgotten, which costs a scan of that partition the next time. So sooner or later they have all
 * of it for good. What nobody forgets is not of that budget: the shard's counts it, 24 bytes a
 * keyspace and partition for the sets.
 */
#include "base/fault.h"
#include "cluster/trees_internal.h"
#include "io/io.h"

/* ---- memory ---- */

static void
set_free(const struct trees *t, struct tree_set *set)
{
    mem_free(io_budget(), set->trees, t->count * sizeof(*set->trees));
    mem_free(io_budget(), set->known, t->count * sizeof(*set->known));
    mem_free(io_budget(), set->marks, t->count * sizeof(*set->marks));
    *set = (struct tree_set){0};
}

static bool
set_open(struct trees *t, u16 keyspace)
{
    struct tree_set *set = &t->sets[keyspace];
    if (set->trees != NULL) return true;
    struct tree_set made = {
        .trees = mem_alloc_zero(io_budget(), t->count * sizeof(*made.trees)),
        .known = mem_alloc_zero(io_budget(), t->count * sizeof(*made.known)),
        .marks = mem_alloc_zero(io_budget(), t->count * sizeof(*made.marks)),
    };
    if (made.trees == NULL || made.known == NULL || made.marks == NULL) {
        set_free(t, &made);
        return MARKED("cluster.trees.no_set", false);
    }
    *set = made;
    lsm_marks_set(t->shard->lsm, keyspace, set->marks, tree_leaf_shift(t->partition_count));
    return true;
}

static void
tree_forget(struct trees *t, struct tree_set *set, u32 at)
{
    mem_free(&t->budget, set->trees[at], sizeof(struct tree));
    set->trees[at] = NULL;
    set->known[at] = 0;
}

void
trees_resolve_close(struct trees *t)
{
    for (u16 keyspace = 0; keyspace < LIMIT_KEYSPACES_CLIENT; keyspace++) {
        struct tree_set *set = &t->sets[keyspace];
        if (set->trees == NULL) continue;
        lsm_marks_set(t->shard->lsm, keyspace, NULL, 0);
        for (u32 i = 0; i < t->count; i++)
            if (set->trees[i] != NULL) tree_forget(t, set, i);
        set_free(t, set);
    }
}

/* Of any keyspace, but not the one at `keep`. False: there is none. */
static bool
forget_one(struct trees *t, const struct tree_set *keep_set, u32 keep)
{
    u32 places = t->count * LIMIT_KEYSPACES_CLIENT;
    for (u32 i = 0; i < places; i++) {
        u32 place = t->forget++ % places;
        struct tree_set *set = &t->sets[place / t->count];
        u32 at = place % t->count;
        if (set->trees == NULL || set->trees[at] == NULL || (set == keep_set && at == keep))
            continue;
        MARK("cluster.trees.forgotten");
        tree_forget(t, set, at);
        return true;
    }
    return false;
}

/* The lowest bound that a tree may have (A2). */
static u32
bound_least(const struct trees *t, u16 keyspace)
{
    return tree_bound_of(lsm_purge_below(t->shard->lsm, keyspace));
}

static struct tree *
tree_make(struct trees *t, struct tree_set *set, u32 at, u32 bound)
{
    struct tree *tree = mem_alloc(&t->budget, sizeof(*tree));
    while (tree == NULL && forget_one(t, set, at))
        tree = mem_alloc(&t->budget, sizeof(*tree));
    if (tree == NULL) return NULL;
    tree_init(tree, bound);
    tree->known = set->known[at]; /* these are empty */
    set->trees[at] = tree;
    return tree;
}

/* ---- scanning ---- */

/* Leaves that have to be scanned, as bits. */
static u64
leaves_due(const struct tree_set *set, u32 at)
{
    u64 known = set->trees[at] != NULL ? set->trees[at]->known : set->known[at];
    return set->marks[at] | ~known;
}

struct piece {
    struct trees *t;
    struct tree_set *set;
    u16 keyspace;
    u32 at;   /* the leaf that is being summed; leaves are counted from the shard's first */
    u32 last; /* included */
    u32 bound;
    struct tree_leaf leaf;
};

static u32
piece_bound(const struct piece *piece)
{
    const struct tree *tree = piece->set->trees[piece->at / TREE_LEAVES];
    return tree != NULL ? tree->bound : piece->bound;
}

static status
leaf_end(struct piece *piece)
{
    u32 at = piece->at / TREE_LEAVES, index = piece->at % TREE_LEAVES;
    struct tree *tree = piece->set->trees[at];
    if (tree == NULL && piece->leaf.gone_min == TREE_NEVER && piece->leaf.hash == 0) {
        piece->set->known[at] |= (u64)1 << index;
    } else {
        if (tree == NULL) tree = tree_make(piece->t, piece->set, at, piece->bound);
        if (tree == NULL) return ST_NO_MEMORY;
        tree_leaf_set(tree, index, &piece->leaf);
    }
    trees_count(&trees_node(piece->t)->leaves_scanned, 1);
    piece->at++;
    tree_leaf_init(&piece->leaf);
    return ST_OK;
}

/* Entries from piece->at on, until the last leaf has ended or the time is over. */
MAY_YIELD static status
piece_entries(struct piece *piece, struct lsm_scan *scan)
{
    struct trees *t = piece->t;
    u32 shift = tree_leaf_shift(t->partition_count);
    u64 until_ns = io_clock_ns() + TREES_SCAN_NS, entries = 0;
    status st;
    for (;;) {
        u64 token;
        struct bytes key;
        struct lsm_value value;
        st = lsm_scan_next(scan, false, &token, &key, &value);
        if (!ok(st)) break;
        u32 place = (u32)((token - t->token_first) >> shift);
        bool late = place > piece->at && io_clock_ns() >= until_ns;
        while (piece->at < place && ok(st))
            st = leaf_end(piece);
        if (!ok(st) || late) break;
        tree_leaf_add(&piece->leaf, piece_bound(piece), key, value.version, lsm_scan_deleted(scan),
                      value.expire_ms);
        entries++;
        if (trees_is_ending(t)) {
            st = ST_CANCELED;
            break;
        }
        if (fiber_should_yield()) fiber_yield();
    }
    trees_count(&trees_node(t)->entries_scanned, entries);
    while (status_is(st, ST_END) && piece->at <= piece->last) {
        status ended = leaf_end(piece);
        if (!ok(ended)) st = ended;
    }
    return status_is(st, ST_END) ? ST_OK : st;
}

static void
marks_change(struct tree_set *set, u32 from, u32 to, bool to_set)
{
    for (u32 i = from; i <= to; i++) {
        u64 bit = (u64)1 << i % TREE_LEAVES;
        if (to_set)
            set->marks[i / TREE_LEAVES] |= bit;
        else
            set->marks[i / TREE_LEAVES] &= ~bit;
    }
}

/* Leaves [first, last] of one keyspace, which are all due. */
MAY_YIELD static status
resolve_run(struct trees *t, u16 keyspace, u32 first, u32 last)
{
    struct tree_set *set = &t->sets[keyspace];
    u32 shift = tree_leaf_shift(t->partition_count);
    struct piece piece = {.t = t,
                          .set = set,
                          .keyspace = keyspace,
                          .at = first,
                          .last = last,
                          .bound = bound_least(t, keyspace)};
    status st = ST_OK;
    while (ok(st) && piece.at <= last) {
        /* A1: what is written from here on sets its mark again. No yield until the snapshot. */
        marks_change(set, piece.at, last, false);
        tree_leaf_init(&piece.leaf);
        struct lsm_snapshot *snapshot = lsm_snapshot_open(t->shard->lsm);
        struct lsm_scan *scan;
        u64 token = t->token_first + ((u64)piece.at << shift);
        u64 token_last = t->token_first + ((u64)last << shift) + (((u64)1 << shift) - 1);
        st = snapshot == NULL ? ST_NO_MEMORY
                              : lsm_scan_open(t->shard->lsm, snapshot, keyspace, token,
                                              BYTES(NULL, 0), token_last, &scan);
        if (ok(st)) {
            lsm_scan_whole(scan);
            st = piece_entries(&piece, scan);
            lsm_scan_close(scan);
        }
        if (snapshot != NULL) lsm_snapshot_close(snapshot);
        if (piece.at <= last) marks_change(set, piece.at, last, true);
    }
    return st;
}

/* Partitions [at, at + count) of the set. */
MAY_YIELD static status
resolve(struct trees *t, u16 keyspace, u32 at, u32 count)
{
    struct tree_set *set = &t->sets[keyspace];
    u32 leaf = at * TREE_LEAVES, end = (at + count) * TREE_LEAVES;
    while (leaf < end) {
        u64 due = leaves_due(set, leaf / TREE_LEAVES) >> leaf % TREE_LEAVES;
        if (due == 0) {
            leaf = (leaf / TREE_LEAVES + 1) * TREE_LEAVES;
            continue;
        }
        leaf += (u32)__builtin_ctzll(due);
        u32 last = leaf;
        while (last + 1 < end &&
               leaves_due(set, (last + 1) / TREE_LEAVES) >> (last + 1) % TREE_LEAVES & 1)
            last++;
        status st = resolve_run(t, keyspace, leaf, last);
        if (!ok(st)) return st;
        leaf = last + 1;
    }
    return ST_OK;
}

/* ---- views ---- */

static void
view_fill(const struct trees *t, u16 keyspace, struct tree_view *view)
{
    const struct tree_set *set = &t->sets[keyspace];
    const struct tree *tree = set->trees == NULL ? NULL : set->trees[view->partition - t->first];
    view->root = 0;
    if (tree == NULL) { /* empty, so it is the same with any bound */
        memset(view->leaves, 0, sizeof(view->leaves));
        view->bound = MAX(view->bound, bound_least(t, keyspace));
        return;
    }
    view->bound = tree->bound;
    view->root = tree_root(tree);
    memcpy(view->leaves, tree->hashes, sizeof(view->leaves));
}

/* Nothing was ever written to it here, so nothing needs memory. */
MAY_YIELD static bool
keyspace_is_empty(struct trees *t, u16 keyspace)
{
    struct lsm_scan *scan;
    if (t->sets[keyspace].trees != NULL ||
        !ok(lsm_scan_open(t->shard->lsm, NULL, keyspace, t->token_first, BYTES(NULL, 0), UINT64_MAX,
                          &scan)))
        return false;
    lsm_scan_whole(scan);
    u64 token;
    struct bytes key;
    struct lsm_value value;
    status st = lsm_scan_next(scan, false, &token, &key, &value);
    lsm_scan_close(scan);
    return status_is(st, ST_END) && t->sets[keyspace].trees == NULL;
}

/* One that was not forgotten again, while others were scanned, because memory is short. */
MAY_YIELD static bool
view_one(struct trees *t, u16 keyspace, struct tree_view *view)
{
    struct tree_set *set = &t->sets[keyspace];
    u32 at = view->partition - t->first;
    u32 bound = MAX(view->bound, bound_least(t, keyspace));
    if (set->trees[at] != NULL) tree_bound_raise(set->trees[at], bound);
    status st = resolve(t, keyspace, at, 1);
    /* One that has come to be by this has the least bound. */
    if (ok(st) && set->trees[at] != NULL && set->trees[at]->bound < bound) {
        tree_bound_raise(set->trees[at], bound);
        st = resolve(t, keyspace, at, 1);
    }
    view->damaged = status_is(st, ST_CORRUPT);
    if (!ok(st)) return false;
    u64 known = set->trees[at] != NULL ? set->trees[at]->known : set->known[at];
    if (known != UINT64_MAX) return false;
    view_fill(t, keyspace, view);
    return true;
}

MAY_YIELD void
trees_view(struct trees *t, u16 keyspace, struct tree_view *views, u32 count)
{
    fiber_mutex_lock(&t->resolving);
    bool empty = keyspace_is_empty(t, keyspace);
    bool open = empty || set_open(t, keyspace);
    for (u32 i = 0; i < count; i++) {
        views[i].failed = views[i].damaged = false;
        if (empty) {
            view_fill(t, keyspace, &views[i]);
            continue;
        }
        views[i].failed = !open;
        /* Neighbours are scanned at once. */
        u32 run = 1;
        while (i + run < count && views[i + run].partition == views[i].partition + run)
            run++;
        if (open && (i == 0 || views[i].partition != views[i - 1].partition + 1))
            (void)!ok(resolve(t, keyspace, views[i].partition - t->first, run));
        if (open) views[i].failed = !view_one(t, keyspace, &views[i]);
    }
    fiber_mutex_unlock(&t->resolving);
}
