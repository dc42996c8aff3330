/* SPDX-License-Identifier: MIT
 *
 * cluster_inspect.c -- what the stores hold, read by a fiber beside the server: past all protocols,
 * so that replicas can be compared as they are.
 */
#include "cluster.h"

#include <stdio.h>

#include "base/hash.h"
#include "lsm/lsm.h"
#include "server/shard.h"

#define LOOK_NS      (250 * NS_PER_MS)
#define LOOK_CALM_NS (50 * NS_PER_MS)
#define LOOKS_NS_MAX (120 * NS_PER_S)

static struct cluster_copy copies[CLUSTER_NODES_MAX][256];
static_assert(ARRAY_COUNT(copies[0]) == 256, "cluster_keys_make makes no more");

static struct cluster_key *
key_named(struct bytes name)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count; i++)
        if (bytes_equal(name, BYTES(c->keys[i].name, c->keys[i].size))) return &c->keys[i];
    return NULL;
}

static MAY_YIELD status
look(const struct cluster_node *node, struct lsm *lsm)
{
    struct lsm_scan *scan;
    u64 first, last;
    lsm_tokens(lsm, &first, &last);
    status st = lsm_scan_open(lsm, NULL, 0, first, BYTES(NULL, 0), last, &scan);
    if (!ok(st)) return st;
    lsm_scan_whole(scan);
    for (;;) {
        u64 token;
        struct bytes name;
        struct lsm_value value;
        st = lsm_scan_next(scan, true, &token, &name, &value);
        if (!ok(st)) break;
        const struct cluster_key *key = key_named(name);
        if (key == NULL) {
            violated("foreign_key", "node %s holds a key of %zu bytes that nobody wrote", node->id,
                     name.size);
            break;
        }
        bool deleted = lsm_scan_deleted(scan);
        copies[node->index][key->index] = (struct cluster_copy){
            .there = true,
            .deleted = deleted,
            .version = value.version,
            .expire_ms = value.expire_ms,
            .hash = deleted ? 0 : hash_bytes(value.value.data, value.value.size, 7),
        };
    }
    lsm_scan_close(scan);
    return status_is(st, ST_END) ? ST_OK : st;
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

MAY_YIELD void
cluster_inspect_main(void *arg)
{
    struct cluster_node *node = arg;
    u32 index = io_shard_index();
    while (!io_stopping()) {
        struct shard *shard = shard_self();
        if (run->cluster->sloppy_wanted && index == 0 && node->index == 0) sloppy_set(shard);
        if (node->look_wanted[index] && shard != NULL && shard->lsm != NULL &&
            ok(look(node, shard->lsm)))
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
    topology_row(topology, 0, token_partition(key->token, topology->partition_count), &row);
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

bool
cluster_stores_equal(char *why, size_t size)
{
    struct cluster_run *c = run->cluster;
    memset(copies, 0, sizeof(copies));
    for (u32 i = 0; i < c->node_count; i++) {
        struct cluster_node *node = &c->nodes[i];
        if (!cluster_node_ready(node)) continue;
        for (u32 shard = 0; shard < node->server->shard_count; shard++)
            node->look_wanted[shard] = true;
    }
    snprintf(why, size, "the stores cannot be read");
    if (!cluster_run_until(looks_are_done, LOOKS_NS_MAX)) return false;
    const struct topology *topology = cluster_topology_newest();
    for (u32 i = 0; topology != NULL && i < c->key_count; i++)
        if (!key_equal(topology, &c->keys[i], why, size)) return false;
    return topology != NULL && groups_whole(topology);
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
