/* SPDX-License-Identifier: MIT
 *
 * cluster_inspect.c -- what the stores hold, read by a fiber beside the server: past all protocols,
 * so that replicas can be compared as they are. With it come the hash trees that replicas compare,
 * of the partitions that the keys are in.
 *
 * A tree is a function of what it is made of, so trees and contents of two replicas can be held
 * against each other though they were looked at at different moments: where the trees are equal the
 * contents are, or the replicas would never find their difference; and the reverse, or they would
 * look for one for ever. A look counts only when nothing was written meanwhile.
 */
#include "cluster.h"

#include <stdio.h>

#include "../trees_look.h"
#include "base/hash.h"
#include "lsm/lsm.h"
#include "server/shard.h"

#define LOOK_NS      (250 * NS_PER_MS)
#define LOOK_CALM_NS (50 * NS_PER_MS)
#define LOOKS_NS_MAX (120 * NS_PER_S)

#define LOOKS_EVERY_NS (700 * NS_PER_MS)
#define TRIES_MAX      3u

static struct cluster_copy copies[CLUSTER_NODES_MAX][256];
static_assert(ARRAY_COUNT(copies[0]) == 256, "cluster_keys_make makes no more");

static u16
keyspace_of(const struct cluster_key *key)
{
    return key->kind == KEY_SIBLINGS ? CLUSTER_SIBLINGS : 0;
}

static struct cluster_key *
key_named(u16 keyspace, struct bytes name)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count; i++)
        if (keyspace_of(&c->keys[i]) == keyspace &&
            bytes_equal(name, BYTES(c->keys[i].name, c->keys[i].size)))
            return &c->keys[i];
    return NULL;
}

void
cluster_inspect_init(void)
{
    memset(copies, 0, sizeof(copies)); /* what an earlier run has left */
}

/* ---- a look ---- */

/* The trees of all partitions of this shard in which keys are. */
static MAY_YIELD void
look_at_trees(const struct cluster_node *node, struct cluster_shard *shard)
{
    const struct cluster_run *c = run->cluster;
    struct trees *t = shard->trees;
    for (u32 i = 0; i < c->key_count; i++) {
        const struct cluster_key *key = &c->keys[i];
        struct cluster_copy *copy = &copies[node->index][i];
        if (shard->trees != t) return;
        if (shard->topology == NULL || t->partition_count == 0) return;
        struct tree_view view = {.partition = token_partition(key->token, t->partition_count)};
        if (view.partition < t->first || view.partition >= t->first + t->count) continue;
        if (!trees_look(t, keyspace_of(key), &view)) return;
        copy->tree_told = !view.failed;
        copy->tree_bound = view.bound;
        copy->tree_root = view.root;
    }
}

static void
copy_take(struct cluster_copy *copy, const struct lsm_value *value, bool deleted)
{
    copy->there = true;
    copy->deleted = deleted;
    copy->version = value->version;
    copy->expire_ms = value->expire_ms;
    copy->hash = deleted ? 0 : hash_bytes(value->value.data, value->value.size, 7);
}

static MAY_YIELD status
look_at_keys(const struct cluster_node *node, struct lsm *lsm, u16 keyspace)
{
    struct lsm_scan *scan;
    u64 first, last;
    lsm_tokens(lsm, &first, &last);
    status st = lsm_scan_open(lsm, NULL, keyspace, first, BYTES(NULL, 0), last, &scan);
    if (!ok(st)) return st;
    lsm_scan_whole(scan);
    for (;;) {
        u64 token;
        struct bytes name;
        struct lsm_value value;
        st = lsm_scan_next(scan, true, &token, &name, &value);
        if (!ok(st)) break;
        const struct cluster_key *key = key_named(keyspace, name);
        if (key == NULL) {
            violated("foreign_key", "node %s holds a key of %zu bytes that nobody wrote", node->id,
                     name.size);
            break;
        }
        copy_take(&copies[node->index][key->index], &value, lsm_scan_deleted(scan));
    }
    lsm_scan_close(scan);
    return status_is(st, ST_END) ? ST_OK : st;
}

static void
copies_forget(const struct cluster_node *node, const struct lsm *lsm)
{
    const struct cluster_run *c = run->cluster;
    u64 first, last;
    lsm_tokens(lsm, &first, &last);
    for (u32 i = 0; i < c->key_count; i++)
        if (c->keys[i].token >= first && c->keys[i].token <= last)
            copies[node->index][i] = (struct cluster_copy){.there = false};
}

/* Only when all was seen, and nothing else may have been collected than what counts in no tree. */
static void
trees_judge(const struct cluster_node *node, struct lsm *lsm, bool steady)
{
    const struct cluster_run *c = run->cluster;
    u64 first, last;
    lsm_tokens(lsm, &first, &last);
    for (u32 i = 0; i < c->key_count; i++) {
        const struct cluster_key *key = &c->keys[i];
        struct cluster_copy *copy = &copies[node->index][i];
        if (key->token < first || key->token > last) continue;
        copy->tree = steady && copy->tree_told &&
                     lsm_purge_below(lsm, keyspace_of(key)) <= tree_bound_version(copy->tree_bound);
    }
}

static MAY_YIELD status
look(const struct cluster_node *node, const struct shard *shard)
{
    struct lsm *lsm = shard->lsm;
    status st = ST_OK;
    bool steady = false;
    for (u32 tries = 0; ok(st) && !steady && tries < TRIES_MAX; tries++) {
        u64 seq = lsm_seq_last(lsm);
        copies_forget(node, lsm);
        if (shard->cluster != NULL && shard->cluster->trees != NULL)
            look_at_trees(node, shard->cluster);
        st = look_at_keys(node, lsm, 0);
        if (ok(st) && run->cluster->knobs.sibling_keys > 0)
            st = look_at_keys(node, lsm, CLUSTER_SIBLINGS);
        steady = lsm_seq_last(lsm) == seq;
    }
    trees_judge(node, lsm, ok(st) && steady);
    return st;
}

MAY_YIELD static void
sloppy_set(struct shard *shard)
{
    if (shard == NULL || shard->cluster == NULL) return;
    struct cluster_keyspace wanted = {.sloppy_on = true, .name = "0"};
    status st = cluster_keyspace_set(shard->cluster, &wanted, io_now_ns() + NS_PER_S);
    run->cluster->sloppy_wanted = !ok(st) && !status_is(st, ST_EXISTS);
}

static bool
is_sloppy(void)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        const struct topology *topology = cluster_topology_of(&c->nodes[i]);
        if (topology == NULL || !topology->keyspaces[0].sloppy) return false;
    }
    return true;
}

void
cluster_make_sloppy(void)
{
    run->cluster->sloppy_wanted = true;
    if (!cluster_run_until(is_sloppy, LOOKS_NS_MAX) && !run_over())
        violated("not_sloppy", "the keyspace cannot be changed");
    run->cluster->sloppy_wanted = false;
}

/* Few have anything in tables by themselves. */
static MAY_YIELD void
rot_here(const struct cluster_node *node, struct shard *shard)
{
    struct cluster_run *c = run->cluster;
    status st = lsm_flush(shard->lsm);
    if (!ok(st) || io_stopping() ||
        !rot_table(shard->lsm, sim_node_disk(node->machine), &run->prng, &c->rot))
        return;
    c->rot_node = node->index;
    c->rot_disks = node->disks;
}

MAY_YIELD void
cluster_inspect_main(void *arg)
{
    struct cluster_node *node = arg;
    u32 index = io_shard_index();
    while (!io_stopping()) {
        struct shard *shard = shard_self();
        if (index == 0 && node->repair_wanted && shard != NULL && shard->cluster != NULL) {
            node->repair_wanted = false;
            trees_repair_start(shard->cluster);
        }
        if (run->cluster->sloppy_wanted && index == 0 && node->index == 0) sloppy_set(shard);
        bool has_store = shard != NULL && shard->lsm != NULL;
        if (node->rot_wanted == index + 1 && has_store) {
            rot_here(node, shard);
            node->rot_wanted = 0;
        }
        if (node->scrub_wanted[index] && has_store) {
            node->scrub_wanted[index] = false;
            lsm_scrub_rate_set(shard->lsm, MIB(64));
        }
        if (node->look_wanted[index] && shard != NULL && shard->lsm != NULL &&
            ok(look(node, shard)))
            node->look_wanted[index] = false;
        fiber_sleep_ns(run->cluster->calm ? LOOK_CALM_NS : LOOK_NS);
    }
}

static bool
looks_are_done(void)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        const struct cluster_node *node = &c->nodes[i];
        if (node->server == NULL) continue;
        for (u32 shard = 0; shard < node->server->shard_count; shard++)
            if (node->look_wanted[shard]) return false;
    }
    return true;
}

static bool
copies_same(const struct cluster_copy *a, const struct cluster_copy *b)
{
    return a->there == b->there && a->deleted == b->deleted && a->version == b->version &&
           a->expire_ms == b->expire_ms && a->hash == b->hash;
}

static void
copy_text(const struct cluster_copy *copy, char *out, size_t size)
{
    snprintf(out, size, "%s version %016llx expiry %llu",
             !copy->there    ? "nothing"
             : copy->deleted ? "a tombstone"
                             : "a value",
             (unsigned long long)copy->version, (unsigned long long)copy->expire_ms);
}

static bool
key_equal(const struct topology *topology, const struct cluster_key *key, char *why, size_t size)
{
    struct topology_row row;
    topology_row(topology, keyspace_of(key), token_partition(key->token, topology->partition_count),
                 &row);
    const struct cluster_copy *first = NULL;
    const struct cluster_node *first_node = NULL;
    for (u32 i = 0; i < row.count; i++) {
        const struct cluster_node *node = cluster_node_of(topology, row.write[i]);
        if (node == NULL) continue;
        const struct cluster_copy *copy = &copies[node->index][key->index];
        if (first == NULL) {
            first = copy;
            first_node = node;
        } else if (!copies_same(first, copy)) {
            char had[128], has[128];
            copy_text(first, had, sizeof(had));
            copy_text(copy, has, sizeof(has));
            snprintf(why, size, "%s: %s has %s, %s has %s", key->name, first_node->id, had,
                     node->id, has);
            return false;
        }
    }
    return true;
}

/* Keys of a group are written by batches alone, so in the end all are of the same one. */
static bool
groups_whole(const struct topology *topology)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 1; i < c->key_count; i++) {
        const struct cluster_key *key = &c->keys[i], *before = &c->keys[i - 1];
        if (key->kind != KEY_GROUP || before->kind != KEY_GROUP || key->group != before->group)
            continue;
        struct topology_row row;
        topology_row(topology, 0, token_partition(key->token, topology->partition_count), &row);
        const struct cluster_node *node = cluster_node_of(topology, row.write[0]);
        if (node == NULL) continue;
        const struct cluster_copy *a = &copies[node->index][key->index];
        const struct cluster_copy *b = &copies[node->index][before->index];
        if (a->version == b->version) continue;
        violated("half_batch",
                 "%s has version %016llx and %s %016llx, and both are written at once", key->name,
                 (unsigned long long)a->version, before->name, (unsigned long long)b->version);
        return false;
    }
    return true;
}

/* ---- trees and contents ---- */

static bool
counts(const struct cluster_copy *copy, u32 bound)
{
    return copy->there && tree_gone(copy->version, copy->deleted, copy->expire_ms) >= bound;
}

/* What counts of the keys that are in one tree with this one. */
static bool
same_contents(const struct cluster_key *key, u32 a, u32 b, u32 bound)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count; i++) {
        const struct cluster_key *other = &c->keys[i];
        const struct cluster_copy *one = &copies[a][i], *two = &copies[b][i];
        if (keyspace_of(other) != keyspace_of(key) ||
            token_partition(other->token, PARTITION_COUNT_DEFAULT) !=
                token_partition(key->token, PARTITION_COUNT_DEFAULT))
            continue;
        if (counts(one, bound) != counts(two, bound)) return false;
        if (counts(one, bound) && !copies_same(one, two)) return false;
    }
    return true;
}

static void
pair_judge(const struct cluster_key *key, const struct cluster_node *a,
           const struct cluster_node *b)
{
    const struct cluster_copy *one = &copies[a->index][key->index];
    const struct cluster_copy *two = &copies[b->index][key->index];
    if (!one->tree || !two->tree || one->tree_bound != two->tree_bound) return;
    bool same = same_contents(key, a->index, b->index, one->tree_bound);
    run->cluster->trees_compared++;
    run->cluster->trees_equal += one->tree_root == two->tree_root;
    if (same == (one->tree_root == two->tree_root)) return;
    char had[128], has[128];
    copy_text(one, had, sizeof(had));
    copy_text(two, has, sizeof(has));
    violated(same ? "trees_differ" : "trees_equal",
             "%s: %s has %s, %s has %s; of its partition the contents are %s, and the trees are %s",
             key->name, a->id, had, b->id, has, same ? "equal" : "not equal",
             same ? "not" : "equal");
}

static void
trees_compare(const struct topology *topology)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count && !run_over(); i++) {
        const struct cluster_key *key = &c->keys[i];
        struct topology_row row;
        topology_row(topology, keyspace_of(key),
                     token_partition(key->token, topology->partition_count), &row);
        for (u32 a = 0; a < row.count; a++) {
            const struct cluster_node *one = cluster_node_of(topology, row.write[a]);
            for (u32 b = 0; one != NULL && b < a && !run_over(); b++) {
                const struct cluster_node *two = cluster_node_of(topology, row.write[b]);
                if (two != NULL) pair_judge(key, one, two);
            }
        }
    }
}

static void
looks_begin(void)
{
    struct cluster_run *c = run->cluster;
    memset(copies, 0, sizeof(copies));
    for (u32 i = 0; i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        if (!cluster_node_ready(node)) continue;
        for (u32 shard = 0; shard < node->server->shard_count; shard++)
            node->look_wanted[shard] = true;
    }
}

void
cluster_inspect_step(void)
{
    struct cluster_run *c = run->cluster;
    if (!c->knobs.looks || !c->troubles || cluster_now_ns() < c->look_ns || !looks_are_done())
        return;
    const struct topology *topology = cluster_topology_newest();
    if (topology != NULL) trees_compare(topology);
    looks_begin();
    c->look_ns = cluster_now_ns() + LOOKS_EVERY_NS;
}

bool
cluster_stores_equal(char *why, size_t size)
{
    struct cluster_run *c = run->cluster;
    looks_begin();
    snprintf(why, size, "the stores cannot be read");
    if (!cluster_run_until(looks_are_done, LOOKS_NS_MAX)) return false;
    const struct topology *topology = cluster_topology_newest();
    if (topology != NULL) trees_compare(topology);
    for (u32 i = 0; topology != NULL && i < c->key_count; i++)
        if (!key_equal(topology, &c->keys[i], why, size)) return false;
    return topology != NULL && groups_whole(topology);
}

void
cluster_repairs_begin(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++)
        c->nodes[i].repair_wanted = cluster_node_ready(&c->nodes[i]);
}

bool
cluster_repairs_done(void)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        const struct cluster_node *node = &c->nodes[i];
        if (!cluster_node_ready(node)) continue;
        if (node->repair_wanted) return false;
        const struct trees_node *trees = &node->server->cluster->trees;
        for (u32 shard = 0; shard < node->server->shard_count; shard++)
            if (trees->repair_ended[shard] != trees->repair_asked) return false;
    }
    return true;
}

bool
cluster_hints_drained(void)
{
    const struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->node_count; i++) {
        const struct cluster_node *node = &c->nodes[i];
        if (!cluster_node_ready(node)) continue;
        for (u32 s = 0; s < node->server->shard_count; s++) {
            const struct cluster_shard *shard = node->server->cluster->shards[s];
            struct hints_stats stats;
            if (shard == NULL || shard->hints == NULL) return false;
            hints_stats_get(shard->hints, &stats);
            if (!stats.loaded || stats.waiting != 0 || stats.queued_bytes != 0) return false;
        }
    }
    return true;
}
