/* SPDX-License-Identifier: MIT
 *
 * cluster_siblings.c -- the keyspace of a cluster's run that keeps siblings, its clients, and what
 * is made of their answers.
 *
 * They read with a context and write with it, with the one of an earlier read, or with none, here
 * or at another node; by RESP and in native frames; and plain commands are mixed in, which replace
 * what they read. What is told is judged by causal.c. Nobody writes without having read when a key
 * has many siblings: a write beyond the limit is refused, and in the calm nothing may be.
 */
#include "cluster.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "values.h"

#define MANY_SIBLINGS 6u
#define WRITES_MAX    3u /* by one context */
#define TRIES_MAX     400u
#define AUDITOR       92u /* its id in this keyspace */
/* Between two requests, up to so long at least: what is asked of one key is judged in its square.
 */
#define PAUSE_NS_MIN (40 * NS_PER_MS)

/* What a client knows of a key. */
struct known {
    u32 read; /* the operation that told, + 1; 0: nothing is known */
    u32 writes;
    struct cluster_seen seen;
};

static struct cluster_key *
key_first(void)
{
    struct cluster_run *c = run->cluster;
    return &c->keys[c->key_count - c->knobs.sibling_keys];
}

/* ---- what was asked, and what became of it ---- */

static u32
op_begins(struct cluster_client *client, struct cluster_request *request, u32 saw)
{
    struct cluster_part *part = &request->parts[0];
    bool deletes = request->kind == CLUSTER_DELETE || request->kind == CLUSTER_SIBLINGS_DELETE;
    bool puts = request->kind == CLUSTER_PUT || request->kind == CLUSTER_SIBLINGS_PUT;
    if (puts) {
        part->number = ++run->cluster->numbers;
        part->size =
            (u32)prng_range(&client->prng, VALUE_HEAD_BYTES, run->cluster->knobs.value_bytes_max);
    }
    struct causal_op op = {
        .kind = puts      ? CAUSAL_PUT
                : deletes ? CAUSAL_DELETE
                          : CAUSAL_READ,
        .plain = request->kind == CLUSTER_PUT || request->kind == CLUSTER_DELETE,
        .latest = request->kind == CLUSTER_GET,
        .client = (u16)client->id,
        .node = (u16)client->node,
        .begun = ++run->position,
        .ended = UINT64_MAX,
        .begun_ns = cluster_now_ns(),
        .ended_ns = UINT64_MAX,
        .number = part->number,
        .saw = saw,
    };
    return causal_history_add(&part->key->siblings, &op);
}

static void
op_ends(const struct cluster_request *request, u32 index, enum cluster_answer answer)
{
    const struct cluster_part *part = &request->parts[0];
    struct causal_op *op = &part->key->siblings.ops[index];
    op->ended = ++run->position;
    op->ended_ns = cluster_now_ns();
    op->outcome = answer == ANSWER_OK        ? CAUSAL_DONE
                  : answer == ANSWER_REFUSED ? CAUSAL_REFUSED
                                             : CAUSAL_UNKNOWN;
    if (op->kind != CAUSAL_READ || answer != ANSWER_OK) return;
    if (request->kind == CLUSTER_GET)
        causal_told(op, &part->found, part->found != 0);
    else
        causal_told(op, request->seen->numbers, request->seen->count);
}

/* The operation, + 1; 0: it was not done. */
static MAY_YIELD u32
ask(struct cluster_client *client, struct cluster_request *request, u32 saw)
{
    request->count = 1;
    u32 index = op_begins(client, request, saw);
    u64 begun_ns = cluster_now_ns();
    enum cluster_answer answer = cluster_ask(client, request);
    op_ends(request, index, answer);
    cluster_answered(client, request, begun_ns, answer);
    return answer == ANSWER_OK ? index + 1 : 0;
}

static MAY_YIELD bool
read_key(struct cluster_client *client, struct cluster_key *key, u32 level, struct known *known)
{
    struct cluster_request request = {
        .kind = CLUSTER_SIBLINGS_GET, .level = level, .seen = &known->seen};
    request.parts[0].key = key;
    known->writes = 0;
    known->read = ask(client, &request, 0);
    return known->read != 0;
}

/* ---- what to do next ---- */

static MAY_YIELD void
pause_a_while(struct cluster_client *client)
{
    fiber_sleep_ns(prng_below(&client->prng, MAX(run->cluster->knobs.pause_ns, PAUSE_NS_MIN)) +
                   cluster_rot_pause_ns());
}

static MAY_YIELD void
plain(struct cluster_client *client, struct cluster_key *key)
{
    const struct cluster_knobs *knobs = &run->cluster->knobs;
    struct cluster_request request = {.kind = CLUSTER_GET};
    request.parts[0].key = key;
    if (!prng_chance(&client->prng, knobs->read_part, 100))
        request.kind =
            prng_chance(&client->prng, knobs->delete_part, 100) ? CLUSTER_DELETE : CLUSTER_PUT;
    (void)ask(client, &request, 0);
}

/* To another node, which may not have what the one that was read from had. */
static MAY_YIELD void
move(struct cluster_client *client)
{
    u32 node;
    cluster_disconnect(client);
    if (cluster_node_draw(&client->prng, &node)) (void)cluster_connect(client, node);
}

static MAY_YIELD void
read_and_write(struct cluster_client *client, struct cluster_key *key, struct known *known)
{
    const struct cluster_knobs *knobs = &run->cluster->knobs;
    struct prng *prng = &client->prng;
    bool stale = prng_chance(prng, knobs->stale_part, 100);
    bool fresh = !stale || known->read == 0 || known->writes >= WRITES_MAX ||
                 known->seen.count >= MANY_SIBLINGS;
    if (fresh && !read_key(client, key, REPLICATE_DEFAULT, known)) return;
    if (prng_chance(prng, knobs->read_part, 200)) return;
    if (fresh && prng_chance(prng, 1, 2)) pause_a_while(client);
    if (prng_chance(prng, 1, 4)) move(client);
    if (client->conn == NULL || run->stop) return;
    bool blind = known->seen.count < MANY_SIBLINGS && prng_chance(prng, knobs->blind_part, 100);
    struct cluster_request request = {.kind = CLUSTER_SIBLINGS_PUT};
    request.parts[0].key = key;
    request.seen = blind ? NULL : &known->seen;
    if (!blind && prng_chance(prng, knobs->delete_part, 100))
        request.kind = CLUSTER_SIBLINGS_DELETE;
    known->writes++;
    (void)ask(client, &request, blind ? 0 : known->read);
}

static MAY_YIELD void
visit(struct cluster_client *client, struct known *known)
{
    struct cluster_run *c = run->cluster;
    u64 requests = prng_range(&client->prng, 1, 30);
    for (u64 i = 0; i < requests && client->conn != NULL && c->works && !run_over(); i++) {
        u32 key = (u32)prng_below(&client->prng, c->knobs.sibling_keys);
        if (prng_chance(&client->prng, c->knobs.plain_part, 100))
            plain(client, key_first() + key);
        else
            read_and_write(client, key_first() + key, &known[key]);
        pause_a_while(client);
    }
}

MAY_YIELD void
cluster_siblings_main(void *arg)
{
    struct cluster_run *c = run->cluster;
    u32 id = (u32)(uintptr_t)arg;
    struct cluster_client client;
    cluster_client_init(&client, id, id % 2 == 1);
    client.keyspace = CLUSTER_SIBLINGS;
    struct known *known = calloc(c->knobs.sibling_keys, sizeof(*known));
    CHECK(known != NULL);
    while (!run->stop && !run_over()) {
        u32 node;
        if (!c->works || !cluster_node_draw(&client.prng, &node)) {
            fiber_sleep_ns(50 * NS_PER_MS);
            continue;
        }
        if (cluster_connect(&client, node)) visit(&client, known);
        cluster_disconnect(&client);
        fiber_sleep_ns(prng_below(&client.prng, 20 * NS_PER_MS));
    }
    free(known);
    buf_deinit(&client.in);
    c->clients_running--;
}

/* ---- the auditor's ---- */

MAY_YIELD void
cluster_siblings_make(void)
{
    struct cluster_client client;
    cluster_client_init(&client, AUDITOR, true);
    bool made = false;
    for (u32 tries = 0; !made && tries < TRIES_MAX && !run_over() && !run->stop; tries++) {
        struct cluster_request request = {.kind = CLUSTER_KEYSPACE};
        u32 node;
        if (cluster_node_draw(&client.prng, &node) && cluster_connect(&client, node))
            made = cluster_ask(&client, &request) == ANSWER_OK;
        cluster_disconnect(&client);
        if (!made) fiber_sleep_ns(100 * NS_PER_MS);
    }
    if (!made && !run_over()) violated("not_filled", "the keyspace of siblings cannot be made");
    buf_deinit(&client.in);
}

/* False: nobody answers. */
static MAY_YIELD bool
read_until_done(struct cluster_client *client, struct cluster_key *key, u32 level,
                struct known *known)
{
    for (u32 tries = 0; tries < TRIES_MAX && !run_over() && !run->stop; tries++) {
        u32 node;
        if (cluster_node_draw(&client->prng, &node) && cluster_connect(client, node) &&
            read_key(client, key, level, known))
            return true;
        cluster_disconnect(client);
        fiber_sleep_ns(100 * NS_PER_MS);
    }
    return run_over();
}

MAY_YIELD void
cluster_siblings_audit(void)
{
    struct cluster_run *c = run->cluster;
    struct cluster_client client;
    cluster_client_init(&client, AUDITOR, false);
    client.keyspace = CLUSTER_SIBLINGS;
    struct known *known = calloc(1, sizeof(*known));
    CHECK(known != NULL);
    for (u32 i = 0; i < 2 * c->knobs.sibling_keys && !run_over(); i++) {
        struct cluster_key *key = key_first() + i / 2;
        u32 level = i % 2 == 0 ? REPLICATE_ALL : REPLICATE_DEFAULT;
        if (!read_until_done(&client, key, level, known))
            violated("audit", "%s cannot be read", key->name);
        cluster_disconnect(&client);
    }
    free(known);
    buf_deinit(&client.in);
}

/* ---- the judgement ---- */

void
cluster_siblings_judge(void)
{
    struct cluster_run *c = run->cluster;
    for (u32 i = 0; i < c->knobs.sibling_keys && !run_over(); i++) {
        struct cluster_key *key = key_first() + i;
        struct causal_verdict verdict;
        causal_judge(&key->siblings, &verdict);
        c->judged++;
        if (verdict.rule == NULL) continue;
        const struct causal_op *op = &key->siblings.ops[verdict.op];
        c->failed_key = key->index + 1;
        c->failed_op = verdict.op;
        violated(verdict.rule,
                 "%s: what client %u was told by node %u at %llu us of the value %llu cannot be",
                 key->name, op->client, op->node + 1, (unsigned long long)(op->ended_ns / 1000),
                 (unsigned long long)verdict.number);
    }
}

static void
op_print(const struct causal_history *history, u32 index, bool failed)
{
    static const char *const kinds[] = {"put", "delete", "read"};
    static const char *const outcomes[] = {"unknown", "done", "refused"};
    const struct causal_op *op = &history->ops[index];
    fprintf(stderr, "%s %4u %10llu..%10lld us  %s%s %llu  client %u at n%u  %s", failed ? ">" : " ",
            index, (unsigned long long)(op->begun_ns / 1000),
            op->ended_ns == UINT64_MAX ? -1ll : (long long)(op->ended_ns / 1000),
            op->plain || op->latest ? "plain " : "", kinds[op->kind],
            (unsigned long long)op->number, op->client, op->node + 1, outcomes[op->outcome]);
    if (op->saw != 0) fprintf(stderr, ", by the context of %u", op->saw - 1);
    for (u32 i = 0; i < op->value_count; i++)
        fprintf(stderr, "%s%llu", i == 0 ? ": " : " ", (unsigned long long)op->values[i]);
    fprintf(stderr, "\n");
}

void
cluster_siblings_print(const struct cluster_key *key, u32 failed)
{
    fprintf(stderr, "the history of %s, partition %u:\n", key->name,
            token_partition(key->token, PARTITION_COUNT_DEFAULT));
    u32 first = failed > 60 ? failed - 60 : 0;
    for (u32 i = first; i < key->siblings.count && i < failed + 12; i++)
        op_print(&key->siblings, i, i == failed);
}
