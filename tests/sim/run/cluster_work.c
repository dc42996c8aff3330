/* SPDX-License-Identifier: MIT
 *
 * cluster_work.c -- the keys of a cluster's run, what clients do with them, and what is made of
 * their answers.
 *
 * Each client is a fiber: it connects to some node, asks a few things one after the other, and goes
 * on to another node. What it asks is written into the histories of the keys when it is sent, and
 * what became of it when the answer comes; register.c judges in the end.
 *
 * Beside them: one who fills the fixed keys before the trouble begins, one who scans all keys again
 * and again (those fixed ones must be in each whole scan), one who asks for DISTKV.REMOVE, and the
 * auditor, who reads every key when all is calm.
 */
#include "cluster.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "cluster/cluster.h"
#include "server/shard.h"

#define KEYS_MAX 256u
/* Writes of one key that are under way at once. */
#define UNDER_WAY_MAX 6u
#define TRIES_MAX     400u
/* Their ids; 90 and 91 are the remover's and the auditor's, 92 the auditor's in that keyspace. */
#define SIBLING_CLIENTS_FIRST 40u
#define COUNTING_FIRST        60u
#define COUNTING              6u
#define COUNTING_TIMES        8u
/* Stamps run ahead of the wall clock by up to 250 ms, and clocks differ by 240. */
#define CLOCKS_APART_NS (500 * NS_PER_MS)

/* ---- keys ---- */

static struct cluster_key *
key_add(enum cluster_key_kind kind, u32 group)
{
    struct cluster_run *c = run->cluster;
    CHECK(c->key_count < KEYS_MAX);
    struct cluster_key *key = &c->keys[c->key_count];
    key->kind = kind;
    key->index = c->key_count++;
    key->group = group;
    return key;
}

static void
key_name(struct cluster_key *key, u32 number)
{
    static const char *const letters[] = {"r", "g", "f", "c", "l", "s"};
    if (key->kind == KEY_GROUP)
        snprintf(key->name, sizeof(key->name), "{g%u}%u", key->group, number);
    else
        snprintf(key->name, sizeof(key->name), "%s%u", letters[key->kind], number);
    key->size = (u32)strlen(key->name);
    key->token = hash_token(BYTES(key->name, key->size));
}

void
cluster_keys_make(void)
{
    struct cluster_run *c = run->cluster;
    const struct cluster_knobs *knobs = &c->knobs;
    c->keys = calloc(KEYS_MAX, sizeof(*c->keys));
    CHECK(c->keys != NULL);
    for (u32 i = 0; i < knobs->registers; i++)
        key_name(key_add(KEY_REGISTER, 0), i);
    for (u32 i = 0; i < knobs->groups; i++) {
        u32 count = (u32)prng_range(&run->prng, 2, 4);
        for (u32 k = 0; k < count; k++)
            key_name(key_add(KEY_GROUP, i), k);
    }
    for (u32 i = 0; i < knobs->fixed; i++)
        key_name(key_add(KEY_FIXED, 0), i);
    for (u32 i = 0; i < knobs->counters; i++)
        key_name(key_add(KEY_COUNTER, 0), i);
    for (u32 i = 0; knobs->loose_part > 0 && i < 4; i++)
        key_name(key_add(KEY_LOOSE, 0), i);
    for (u32 i = 0; i < knobs->sibling_keys; i++)
        key_name(key_add(KEY_SIBLINGS, 0), i);
}

void
cluster_keys_free(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count; i++) {
        register_history_free(&c->keys[i].history);
        causal_history_free(&c->keys[i].siblings);
    }
    free(c->keys);
}

/* Skewed: the first few are asked for most. NULL: there is none. */
static struct cluster_key *
key_draw(struct prng *prng, enum cluster_key_kind kind)
{
    struct cluster_run *c = run->cluster;
    u32 first = 0, count = 0;
    for (u32 i = 0; i < c->key_count; i++) {
        if (c->keys[i].kind != kind) continue;
        if (count++ == 0) first = i;
    }
    if (count == 0) return NULL;
    if (prng_chance(prng, c->knobs.hot_part, 100)) count = MIN(count, 3u);
    return &c->keys[first + prng_below(prng, count)];
}

/* ---- what was asked, and what became of it ---- */

static void
part_begins(const struct cluster_client *client, const struct cluster_request *request,
            struct cluster_part *part)
{
    bool reads = request->kind == CLUSTER_GET || request->kind == CLUSTER_MGET;
    bool deletes = request->kind == CLUSTER_DELETE || part->deletes;
    struct register_op op = {
        .kind = reads     ? REGISTER_READ
                : deletes ? REGISTER_DELETE
                          : REGISTER_PUT,
        .client = (u16)client->id,
        .node = (u16)client->node,
        .begun = ++run->position,
        .ended = UINT64_MAX,
        .begun_ns = cluster_now_ns(),
        .ended_ns = UINT64_MAX,
        .value = part->number,
    };
    if (op.kind == REGISTER_PUT && request->expire_ms != 0) { /* clocks_allow has the last word */
        op.gone_first_ns = op.begun_ns + request->expire_ms * NS_PER_MS;
        op.gone_last_ns = UINT64_MAX;
    }
    part->op = register_history_add(&part->key->history, &op);
    if (!reads) part->key->under_way++;
}

static void
part_ends(const struct cluster_request *request, struct cluster_part *part,
          enum cluster_answer answer)
{
    const struct cluster_run *c = run->cluster;
    struct register_op *op = &part->key->history.ops[part->op];
    op->ended = ++run->position;
    op->ended_ns = cluster_now_ns();
    if (op->kind != REGISTER_READ) part->key->under_way--;
    if (op->kind == REGISTER_READ) {
        op->value = part->found;
        op->outcome = answer == ANSWER_OK && part->told ? REGISTER_DONE : REGISTER_UNKNOWN;
        return;
    }
    if (op->gone_first_ns != 0) {
        op->gone_last_ns = op->ended_ns + request->expire_ms * NS_PER_MS;
        if (answer != ANSWER_OK) op->gone_last_ns += 2 * c->knobs.timeout_ms * NS_PER_MS;
    }
    switch (answer) {
    case ANSWER_OK:
        op->outcome = REGISTER_DONE;
        break;
    case ANSWER_REFUSED:
        op->outcome = REGISTER_REFUSED;
        break;
    case ANSWER_UNKNOWN:
    case ANSWER_NONE:
        op->outcome = REGISTER_UNKNOWN;
        break;
    }
    /* A DEL that has found nothing has only read. */
    if (request->kind == CLUSTER_DELETE && answer == ANSWER_OK && request->integer == 0 &&
        op->kind == REGISTER_DELETE) {
        op->kind = REGISTER_READ;
        op->value = 0;
    }
}

MAY_YIELD void
cluster_answered(struct cluster_client *client, const struct cluster_request *request, u64 begun_ns,
                 enum cluster_answer answer)
{
    struct cluster_run *c = run->cluster;
    if (answer == ANSWER_OK) c->answered++;
    struct request_seen seen = {.answer = answer,
                                .aborted = request->aborted,
                                .begun_ns = begun_ns,
                                .connected_ns = client->connected_ns,
                                .closing = client->closing};
    c->refused_calm += calm_is_broken(&seen, c->calm, c->calm_ns);
    if (client->closing) cluster_disconnect(client);
    client->closing = false;
    if (run->options->log)
        fprintf(stderr,
                "%12llu client %u at n%u: %u x %s%s kind %d level %u number %llu -> %d %s "
                "found %llu\n",
                (unsigned long long)(cluster_now_ns() / 1000), client->id, client->node + 1,
                request->count, request->count > 0 ? request->parts[0].key->name : request->text,
                client->native ? " native" : "", request->kind, request->level,
                request->count > 0 ? (unsigned long long)request->parts[0].number : 0ull, answer,
                request->error,
                request->count > 0 ? (unsigned long long)request->parts[0].found : 0ull);
}

static MAY_YIELD enum cluster_answer
ask(struct cluster_client *client, struct cluster_request *request)
{
    for (u32 i = 0; i < request->count; i++)
        part_begins(client, request, &request->parts[i]);
    u64 begun_ns = cluster_now_ns();
    enum cluster_answer answer = cluster_ask(client, request);
    /* One that knows no number of deletes: by a native request a blind one always is one. */
    if (client->native && request->kind == CLUSTER_DELETE) request->integer = 1;
    for (u32 i = 0; i < request->count; i++)
        part_ends(request, &request->parts[i], answer);
    cluster_answered(client, request, begun_ns, answer);
    return answer;
}

/* ---- what to do next ---- */

static void
part_puts(struct cluster_client *client, struct cluster_part *part, struct cluster_key *key)
{
    struct cluster_run *c = run->cluster;
    *part = (struct cluster_part){.key = key, .number = ++c->numbers};
    part->size = (u32)prng_range(&client->prng, 28, c->knobs.value_bytes_max);
}

/* Several different keys of a kind. */
static u32
keys_draw(struct cluster_client *client, struct cluster_request *request, u32 wanted, bool puts)
{
    for (u32 tries = 0; tries < 4 * wanted && request->count < wanted; tries++) {
        struct cluster_key *key = key_draw(&client->prng, KEY_REGISTER);
        bool taken = key == NULL || (puts && key->under_way >= UNDER_WAY_MAX);
        for (u32 i = 0; i < request->count; i++)
            taken = taken || request->parts[i].key == key;
        if (taken) continue;
        if (puts)
            part_puts(client, &request->parts[request->count], key);
        else
            request->parts[request->count] = (struct cluster_part){.key = key};
        request->count++;
    }
    return request->count;
}

static bool
batch_draw(struct cluster_client *client, struct cluster_request *request)
{
    struct cluster_run *c = run->cluster;
    const struct cluster_key *one = key_draw(&client->prng, KEY_GROUP);
    if (one == NULL || one->under_way >= UNDER_WAY_MAX) return false;
    request->kind = CLUSTER_BATCH;
    request->watches = !client->native && c->numbers % 4 > 1;
    for (u32 i = 0; i < c->key_count; i++) {
        struct cluster_key *key = &c->keys[i];
        if (key->kind != KEY_GROUP || key->group != one->group) continue;
        struct cluster_part *part = &request->parts[request->count++];
        part_puts(client, part, key);
        if (client->native && prng_chance(&client->prng, c->knobs.delete_part, 200)) {
            part->deletes = true;
            part->number = 0;
        }
    }
    return true;
}

/* A level that promises no less than the default: of plain keys only. */
static u32
level_draw(struct cluster_client *client, bool loose)
{
    if (loose) return (u32)prng_range(&client->prng, REPLICATE_ONE, REPLICATE_ALL);
    if (client->native || !prng_chance(&client->prng, 1, 6)) return REPLICATE_DEFAULT;
    return prng_chance(&client->prng, 1, 3) ? REPLICATE_ALL : REPLICATE_QUORUM;
}

/* False: nothing fits now. */
static bool
request_draw(struct cluster_client *client, struct cluster_request *request)
{
    const struct cluster_knobs *knobs = &run->cluster->knobs;
    struct prng *prng = &client->prng;
    u64 draw = prng_below(prng, 100);
    bool loose = !client->native && prng_chance(prng, knobs->loose_part, 100);
    request->level = level_draw(client, loose);
    if (draw < knobs->read_part) {
        enum cluster_key_kind kind = loose                     ? KEY_LOOSE
                                     : prng_chance(prng, 1, 8) ? KEY_FIXED
                                     : prng_chance(prng, 1, 5) ? KEY_GROUP
                                                               : KEY_REGISTER;
        if (kind == KEY_REGISTER && !client->native && prng_chance(prng, 1, 6)) {
            request->kind = CLUSTER_MGET;
            return keys_draw(client, request, (u32)prng_range(prng, 2, 5), false) > 0;
        }
        struct cluster_key *key = key_draw(prng, kind);
        if (key == NULL) return false;
        request->kind = CLUSTER_GET;
        request->count = 1;
        request->parts[0] = (struct cluster_part){.key = key};
        return true;
    }
    if (client->native && prng_chance(prng, knobs->batch_part, 100))
        return batch_draw(client, request);
    if (!client->native && !loose && prng_chance(prng, 1, 12)) {
        if (knobs->groups > 0 && run->cluster->numbers % 2 != 0) return batch_draw(client, request);
        request->kind = CLUSTER_MSET;
        return keys_draw(client, request, (u32)prng_range(prng, 2, 4), true) > 0;
    }
    if (!client->native && !loose && knobs->counters > 0 && prng_chance(prng, 1, 10)) {
        request->kind = CLUSTER_INCREMENT;
        request->level = REPLICATE_DEFAULT;
        return true;
    }
    struct cluster_key *key = key_draw(prng, loose ? KEY_LOOSE : KEY_REGISTER);
    if (key == NULL || key->under_way >= UNDER_WAY_MAX) return false;
    request->count = 1;
    if (prng_chance(prng, knobs->delete_part, 100) && !loose) {
        request->kind = CLUSTER_DELETE;
        request->parts[0] = (struct cluster_part){.key = key};
        return true;
    }
    request->kind = CLUSTER_PUT;
    part_puts(client, &request->parts[0], key);
    if (prng_chance(prng, knobs->expire_part, 100)) request->expire_ms = prng_range(prng, 1, 8000);
    return true;
}

/* ---- counters ---- */

/* While nothing fails no increment is lost, and never are there more than were asked for. */
static MAY_YIELD void
increment(struct cluster_client *client, struct cluster_request *request)
{
    struct cluster_key *key = key_draw(&client->prng, KEY_COUNTER);
    request->parts[0] = (struct cluster_part){.key = key};
    snprintf(request->text, sizeof(request->text), "%s", key->name);
    key->increments_begun++;
    enum cluster_answer answer = cluster_ask(client, request);
    if (answer == ANSWER_OK) {
        key->increments_done++;
        if (request->integer < 1 || request->integer > (i64)key->increments_begun)
            violated("counter", "%s is %lld after %llu increments", key->name,
                     (long long)request->integer, (unsigned long long)key->increments_begun);
    }
    if (answer == ANSWER_REFUSED) key->increments_begun--;
}

/* ---- scans ---- */

struct scan_look {
    u8 seen[KEYS_MAX];
};

static bool
scan_found(void *arg, struct bytes name)
{
    struct scan_look *look = arg;
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count; i++) {
        if (c->keys[i].kind == KEY_SIBLINGS ||
            !bytes_equal(name, BYTES(c->keys[i].name, c->keys[i].size)))
            continue;
        look->seen[i] = 1;
        return true;
    }
    violated("scan_foreign", "SCAN shows a key of %zu bytes that nobody wrote", name.size);
    return false;
}

/* All pages over one connection; a fixed key is in every whole scan. */
static MAY_YIELD void
scan_whole(struct cluster_client *client)
{
    struct cluster_run *c = run->cluster;
    struct scan_look look = {.seen = {0}};
    bool filled[KEYS_MAX];
    for (u32 i = 0; i < c->key_count; i++)
        filled[i] = c->keys[i].filled;
    u64 cursor = 0;
    do {
        struct cluster_request request = {
            .kind = CLUSTER_SCAN, .cursor = cursor, .found = scan_found, .arg = &look};
        if (cluster_ask(client, &request) != ANSWER_OK) return;
        cursor = request.cursor;
    } while (cursor != 0 && !run_over());
    run->stats.scans++;
    for (u32 i = 0; i < c->key_count && !run_over(); i++)
        if (c->keys[i].kind == KEY_FIXED && filled[i] && !look.seen[i])
            violated("scan", "a whole SCAN at node %u does not show %s", client->node + 1,
                     c->keys[i].name);
}

/* ---- fibers ---- */

bool
cluster_node_draw(struct prng *prng, u32 *out)
{
    struct cluster_run *c = run->cluster;
    for (u32 tries = 0; tries < 16; tries++) {
        u32 index = (u32)prng_below(prng, c->node_count);
        const struct cluster_node *node = &c->nodes[index];
        if (node->leaving || !cluster_node_ready(node)) continue;
        *out = index;
        return true;
    }
    return false;
}

static MAY_YIELD void
client_visit(struct cluster_client *client)
{
    struct cluster_run *c = run->cluster;
    u64 requests = prng_range(&client->prng, 1, 60);
    for (u64 i = 0; i < requests && client->conn != NULL && c->works && !run_over(); i++) {
        struct cluster_request request = {.kind = CLUSTER_GET};
        if (!client->native && prng_chance(&client->prng, 1, 150)) {
            scan_whole(client);
        } else if (request_draw(client, &request)) {
            if (request.kind == CLUSTER_INCREMENT)
                increment(client, &request);
            else
                (void)ask(client, &request);
        }
        u64 pause_ns = prng_below(&client->prng, 1 + c->knobs.pause_ns) + cluster_rot_pause_ns();
        if (pause_ns > 100000) fiber_sleep_ns(pause_ns);
    }
}

static MAY_YIELD void
client_main(void *arg)
{
    struct cluster_run *c = run->cluster;
    u32 id = (u32)(uintptr_t)arg;
    struct cluster_client client;
    cluster_client_init(&client, id, id % 3 == 2);
    while (!run->stop && !run_over()) {
        u32 node;
        if (!c->works || !cluster_node_draw(&client.prng, &node)) {
            fiber_sleep_ns(50 * NS_PER_MS);
            continue;
        }
        if (cluster_connect(&client, node)) client_visit(&client);
        cluster_disconnect(&client);
        fiber_sleep_ns(prng_below(&client.prng, 20 * NS_PER_MS));
    }
    buf_deinit(&client.in);
    c->clients_running--;
}

/* Asks until it is done, at one node after the other. */
static MAY_YIELD bool
ask_until_done(struct cluster_client *client, struct cluster_request *request, bool *told)
{
    for (u32 tries = 0; tries < TRIES_MAX && !run_over() && !run->stop; tries++) {
        u32 node;
        bool there = client->conn != NULL;
        if (!there && cluster_node_draw(&client->prng, &node))
            there = cluster_connect(client, node);
        struct cluster_request again = *request;
        /* What was refused must never be seen, so each attempt is a write of its own. */
        if (again.kind == CLUSTER_PUT) again.parts[0].number = ++run->cluster->numbers;
        if (there && ask(client, &again) == ANSWER_OK) {
            *told = true;
            *request = again;
            return true;
        }
        cluster_disconnect(client);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    return false;
}

static MAY_YIELD void
fill(struct cluster_client *client)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count && !run_over(); i++) {
        struct cluster_key *key = &c->keys[i];
        if (key->kind != KEY_FIXED || key->filled) continue;
        struct cluster_request request = {.kind = CLUSTER_PUT, .count = 1};
        part_puts(client, &request.parts[0], key);
        bool told = false;
        key->filled = ask_until_done(client, &request, &told);
    }
}

/* Each key by itself at level ALL, which brings it to whoever lacks it; then by default, from some
 * node. */
static MAY_YIELD void
audit(struct cluster_client *client)
{
    struct cluster_run *c = run->cluster;
    for (u32 round = 0; round < 2; round++) {
        for (u32 i = 0; i < c->key_count && !run_over(); i++) {
            if (c->keys[i].kind == KEY_COUNTER || c->keys[i].kind == KEY_SIBLINGS) continue;
            struct cluster_request request = {.kind = CLUSTER_GET, .count = 1};
            request.parts[0] = (struct cluster_part){.key = &c->keys[i]};
            request.level = round == 0 ? REPLICATE_ALL : REPLICATE_DEFAULT;
            bool told = false;
            if (!ask_until_done(client, &request, &told) && !run_over())
                violated("audit", "%s cannot be read: %s", c->keys[i].name, request.error);
            if (i % 16 == 15) cluster_disconnect(client);
        }
        cluster_disconnect(client);
    }
}

static MAY_YIELD void
count_calmly(struct cluster_client *client)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count && !run_over(); i++) {
        struct cluster_key *key = &c->keys[i];
        if (key->kind != KEY_COUNTER) continue;
        i64 last = 0;
        for (u32 times = 0; times < 4 && !run_over(); times++) {
            struct cluster_request request = {.kind = CLUSTER_INCREMENT};
            request.parts[0] = (struct cluster_part){.key = key};
            u32 node;
            cluster_disconnect(client);
            if (!cluster_node_draw(&client->prng, &node) || !cluster_connect(client, node))
                continue;
            if (cluster_ask(client, &request) != ANSWER_OK) {
                violated("counter_calm", "%s is not incremented, and nothing fails: %s", key->name,
                         request.error);
                break;
            }
            if (times > 0 && request.integer != last + 1)
                violated("counter_calm", "%s is %lld after %lld, and nothing fails", key->name,
                         (long long)request.integer, (long long)last);
            last = request.integer;
        }
    }
}

/* Several count at once: each increment that is acknowledged has told a number of its own. Nothing
 * fails but what is short of room now and then (BUGGIFY): whoever runs an increment lives, so nobody
 * else does at the same time. */
struct counting {
    struct cluster_key *key;
    u32 id;
    u32 told_count;
    i64 told[COUNTING_TIMES];
};

static MAY_YIELD void
counting_main(void *arg)
{
    struct counting *counting = arg;
    struct cluster_run *c = run->cluster;
    struct cluster_client client;
    cluster_client_init(&client, counting->id, false);
    for (u32 times = 0; times < COUNTING_TIMES && !run_over(); times++) {
        struct cluster_request request = {.kind = CLUSTER_INCREMENT};
        request.parts[0] = (struct cluster_part){.key = counting->key};
        u32 node;
        if (client.conn == NULL &&
            (!cluster_node_draw(&client.prng, &node) || !cluster_connect(&client, node)))
            continue;
        counting->key->increments_begun++;
        if (cluster_ask(&client, &request) == ANSWER_OK)
            counting->told[counting->told_count++] = request.integer;
    }
    cluster_disconnect(&client);
    buf_deinit(&client.in);
    c->counting--;
}

/* How often a node that runs has taken another one for dead. */
static u64
suspicions(void)
{
    const struct cluster_run *c = run->cluster;
    u64 count = 0;
    for (u32 i = 0; i < c->node_count; i++) {
        const struct server *server = c->nodes[i].server;
        if (server == NULL || server->cluster == NULL || server->cluster->shards[0] == NULL)
            continue;
        count += server->cluster->shards[0]->liveness.stats.suspected;
    }
    return count;
}

static void
counting_judge(const struct counting *all)
{
    for (u32 i = 0; i < COUNTING * COUNTING_TIMES; i++) {
        const struct counting *one = &all[i / COUNTING_TIMES];
        if (i % COUNTING_TIMES >= one->told_count) continue;
        i64 told = one->told[i % COUNTING_TIMES];
        for (u32 j = 0; j < i; j++) {
            const struct counting *other = &all[j / COUNTING_TIMES];
            if (j % COUNTING_TIMES < other->told_count && other->told[j % COUNTING_TIMES] == told)
                violated("counter_calm", "two increments of %s have told %lld, and nothing fails",
                         one->key->name, (long long)told);
        }
    }
}

static MAY_YIELD void
count_together(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count && !run_over(); i++) {
        if (c->keys[i].kind != KEY_COUNTER) continue;
        struct counting all[COUNTING];
        u64 before = suspicions();
        sim_buggify_set(run->sim, run->sim_options.buggify);
        for (u32 j = 0; j < COUNTING; j++) {
            all[j] = (struct counting){.key = &c->keys[i], .id = COUNTING_FIRST + j};
            if (ok(fiber_spawn(FIBER_BACKGROUND, "counting", counting_main, &all[j])))
                c->counting++;
        }
        while (c->counting > 0)
            fiber_sleep_ns(5 * NS_PER_MS);
        sim_buggify_set(run->sim, false);
        if (!run_over() && suspicions() == before) counting_judge(all);
    }
}

static MAY_YIELD void
remove_ask(struct cluster_client *client)
{
    struct cluster_run *c = run->cluster;
    struct cluster_request request = {.kind = CLUSTER_REMOVE};
    snprintf(request.text, sizeof(request.text), "%s", c->remove_text);
    c->remove_answer = ANSWER_NONE;
    if (cluster_connect(client, c->remove_at)) c->remove_answer = cluster_ask(client, &request);
    cluster_disconnect(client);
    if (run->options->log)
        fprintf(stderr, "%12llu %s at n%u -> %d %s\n",
                (unsigned long long)(cluster_now_ns() / 1000), c->remove_text, c->remove_at + 1,
                c->remove_answer, request.error);
    c->remove_wanted = false;
}

static MAY_YIELD void
remover_main(void *arg)
{
    struct cluster_run *c = run->cluster;
    struct cluster_client client;
    cluster_client_init(&client, (u32)(uintptr_t)arg, false);
    while (!run->stop && !run_over()) {
        if (c->remove_wanted) remove_ask(&client);
        fiber_sleep_ns(50 * NS_PER_MS);
    }
    buf_deinit(&client.in);
    c->clients_running--;
}

static MAY_YIELD void
auditor_main(void *arg)
{
    struct cluster_run *c = run->cluster;
    struct cluster_client client;
    cluster_client_init(&client, (u32)(uintptr_t)arg, false);
    fill(&client);
    cluster_disconnect(&client);
    if (c->knobs.sibling_keys > 0) cluster_siblings_make();
    c->audit_ended = true;
    while (!run->stop && !run_over()) {
        if (c->audit_wanted) {
            c->audited_from = run->position;
            count_calmly(&client);
            cluster_disconnect(&client);
            count_together();
            audit(&client);
            if (c->knobs.sibling_keys > 0) cluster_siblings_audit();
            u32 node;
            if (cluster_node_draw(&client.prng, &node) && cluster_connect(&client, node))
                scan_whole(&client);
            cluster_disconnect(&client);
            c->audit_wanted = false;
            c->audit_ended = true;
        }
        fiber_sleep_ns(50 * NS_PER_MS);
    }
    buf_deinit(&client.in);
    c->clients_running--;
}

MAY_YIELD status
cluster_clients_main(void *arg)
{
    struct cluster_run *c = run->cluster;
    (void)arg;
    c->clients_running = c->knobs.clients + c->knobs.sibling_clients + 2;
    status st = ST_OK;
    for (u32 i = 0; i < c->knobs.clients && ok(st); i++)
        st = fiber_spawn(FIBER_BACKGROUND, "client", client_main, (void *)(uintptr_t)i);
    for (u32 i = 0; i < c->knobs.sibling_clients && ok(st); i++)
        st = fiber_spawn(FIBER_BACKGROUND, "siblings", cluster_siblings_main,
                         (void *)(uintptr_t)(SIBLING_CLIENTS_FIRST + i));
    if (ok(st)) st = fiber_spawn(FIBER_BACKGROUND, "remover", remover_main, (void *)(uintptr_t)90);
    if (ok(st)) st = fiber_spawn(FIBER_BACKGROUND, "auditor", auditor_main, (void *)(uintptr_t)91);
    CHECK(ok(st));
    while (c->clients_running > 0)
        fiber_sleep_ns(50 * NS_PER_MS);
    return ST_OK;
}

/* ---- the judgement ---- */

/* Values expire by the clocks of nodes, which may be as wrong as they ever were in this run. */
static void
clocks_allow(struct register_history *history)
{
    const struct cluster_run *c = run->cluster;
    u64 wrong_ns = (u64)(c->skew_most_ms - c->skew_least_ms + 1) * NS_PER_MS;
    for (u32 i = 0; i < history->count; i++) {
        struct register_op *op = &history->ops[i];
        if (op->gone_first_ns == 0) continue;
        op->gone_first_ns -= MIN(op->gone_first_ns - 1, wrong_ns);
        if (op->gone_last_ns < UINT64_MAX - wrong_ns) op->gone_last_ns += wrong_ns;
    }
}

void
cluster_judge(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->key_count && !run_over(); i++) {
        struct cluster_key *key = &c->keys[i];
        struct register_verdict verdict;
        if (key->kind == KEY_SIBLINGS) continue;
        clocks_allow(&key->history);
        bool sloppy = c->knobs.sloppy && (key->kind == KEY_REGISTER || key->kind == KEY_GROUP);
        if (key->kind == KEY_LOOSE || sloppy) register_check_told(&key->history, &verdict);
        if (sloppy && verdict.rule == NULL && !c->skewed)
            register_check_last(&key->history, c->audited_from, CLOCKS_APART_NS,
                                2 * c->knobs.timeout_ms * NS_PER_MS, &verdict);
        if (key->kind != KEY_LOOSE && !sloppy)
            register_judge(&key->history, true, c->skewed, &verdict);
        c->gave_up += verdict.gave_up;
        c->judged++;
        if (verdict.rule == NULL) continue;
        c->failed_key = i + 1;
        c->failed_op = verdict.op;
        const struct register_op *op = &key->history.ops[verdict.op];
        violated(verdict.rule,
                 "%s: what client %u was told by node %u at %llu us (%llu) fits no "
                 "order",
                 key->name, op->client, op->node + 1, (unsigned long long)(op->ended_ns / 1000),
                 (unsigned long long)op->value);
    }
    if (!run_over()) cluster_siblings_judge();
}

void
cluster_key_print(u32 index, u32 failed)
{
    const struct cluster_key *key = &run->cluster->keys[index];
    if (key->kind == KEY_SIBLINGS) {
        cluster_siblings_print(key, failed);
        return;
    }
    static const char *const kinds[] = {"put", "delete", "read"};
    static const char *const outcomes[] = {"unknown", "done", "refused"};
    fprintf(stderr, "the history of %s, partition %u:\n", key->name,
            token_partition(key->token, PARTITION_COUNT_DEFAULT));
    u32 first = failed > 40 ? failed - 40 : 0;
    for (u32 i = first; i < key->history.count && i < failed + 12; i++) {
        const struct register_op *op = &key->history.ops[i];
        fprintf(stderr, "%s %10llu..%10lld us  %-6s %6llu  client %u at n%u  %s\n",
                i == failed ? ">" : " ", (unsigned long long)(op->begun_ns / 1000),
                op->ended_ns == UINT64_MAX ? -1ll : (long long)(op->ended_ns / 1000),
                kinds[op->kind], (unsigned long long)op->value, op->client, op->node + 1,
                outcomes[op->outcome]);
    }
}
