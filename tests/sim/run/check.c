/* SPDX-License-Identifier: MIT
 *
 * check.c -- from requests and answers to the model, and the rules that are checked at once:
 *
 *   foreign_value    bytes that were never written to that object, or are not whole
 *   history          no order of atomic steps explains the answers (model.h): a lost, stale,
 *                    resurrected or half done write, a wrong answer
 *   scan_missed, scan_found_absent, scan_twice, scan_foreign, count
 *   watch_aborted    EXEC says that a key has changed which nobody touched
 *   watch_missed     EXEC was done though its watched key had changed, be it that it came and went
 */
#include "client.h"
#include "damage.h"

#include <stdlib.h>

#include "lsm/lsm.h"

/* Reads and writes under way on one object: below MODEL_OPEN_MAX, with room for snapshots. */
#define UNDER_WAY_MAX 160u

const char *const request_names[] = {
    [REQUEST_STEP] = "step",     [REQUEST_VALUES] = "mget", [REQUEST_EXEC] = "exec",
    [REQUEST_ALL] = "mset",      [REQUEST_SUM] = "del",     [REQUEST_ALL_NX] = "msetnx",
    [REQUEST_CLEAR] = "flushdb", [REQUEST_BATCH] = "batch", [REQUEST_SCAN] = "scan",
    [REQUEST_KEYS] = "keys",     [REQUEST_COUNT] = "count", [REQUEST_SNAPSHOT] = "snapshot",
    [REQUEST_WATCH] = "watch",   [REQUEST_OTHER] = "other", [REQUEST_HELLO] = "hello",
};

struct model_op *
check_op(struct client *client, u32 object, u32 steps)
{
    struct model_op *op = model_op_new(steps);
    op->object = object;
    op->client = client->id;
    op->number = ++client->numbers;
    op->connection = client->native ? 0 : client->connection;
    return op;
}

bool
check_has_room(const struct object *object, bool changes)
{
    if (object->under_way >= UNDER_WAY_MAX) return false;
    return !changes || object->model.open_count < run->knobs.open_max;
}

bool
flaw_strikes(struct client *client, enum run_flaw flaw, u64 one_in)
{
    return run->options->flaw == flaw && prng_chance(&client->prng, 1, one_in);
}

/* ---- presence ---- */

static struct key *
key_of(const struct model_op *op, u32 index)
{
    return &run->keys[run->objects[op->object].key_first + index];
}

/* What a step may do to a key. */
static void
step_effects(const struct model_step *step, u32 key, bool *makes, bool *takes)
{
    bool expires = step->ttl_ms != 0;
    switch ((enum model_kind)step->kind) {
    case MODEL_PUT:
    case MODEL_APPEND:
    case MODEL_INCR:
        *makes |= step->key == key;
        *takes |= step->key == key && expires;
        break;
    case MODEL_DELETE:
    case MODEL_GETDEL:
    case MODEL_EXPIRE:
        *takes |= step->key == key;
        break;
    case MODEL_RENAME:
    case MODEL_RENAMENX:
        *takes |= step->key == key;
        *makes |= step->key2 == key;
        break;
    case MODEL_COPY:
        *makes |= step->key2 == key;
        break;
    case MODEL_CLEAR:
        *takes = true;
        break;
    case MODEL_GET:
    case MODEL_STRLEN:
    case MODEL_PERSIST:
    case MODEL_TTL:
    case MODEL_EXPECT:
        break;
    }
}

static enum presence_effect
step_tells(const struct model_step *step, u32 key)
{
    bool done = step->known & MODEL_KNOWS_NUMBER && step->result_number == 1;
    bool not_done = step->known & MODEL_KNOWS_NUMBER && step->result_number == 0;
    switch ((enum model_kind)step->kind) {
    case MODEL_GET:
        if (step->key != key || !(step->known & MODEL_KNOWS_VALUE)) break;
        return step->result_value == VALUE_ABSENT ? PRESENCE_ABSENT : PRESENCE_THERE;
    case MODEL_PUT:
        if (step->key == key && done) return PRESENCE_THERE;
        break;
    case MODEL_APPEND:
        if (step->key == key) return PRESENCE_THERE;
        break;
    case MODEL_INCR:
        if (step->key == key && step->result_number != MODEL_FAILED) return PRESENCE_THERE;
        break;
    case MODEL_DELETE:
        if (step->key == key && (step->flags == 0 || done)) return PRESENCE_ABSENT;
        break;
    case MODEL_GETDEL:
    case MODEL_CLEAR:
        if (step->key == key || step->kind == MODEL_CLEAR) return PRESENCE_ABSENT;
        break;
    case MODEL_RENAME:
    case MODEL_RENAMENX:
        if (done && step->key2 == key) return PRESENCE_THERE;
        if (done && step->key == key) return PRESENCE_ABSENT;
        break;
    case MODEL_COPY:
        if (done && step->key2 == key) return PRESENCE_THERE;
        break;
    case MODEL_EXPIRE:
    case MODEL_STRLEN:
    case MODEL_PERSIST:
    case MODEL_TTL:
    case MODEL_EXPECT:
        break;
    }
    (void)not_done;
    return PRESENCE_UNSURE;
}

static void
op_effects(const struct model_op *op, u32 key, bool *makes, bool *takes)
{
    *makes = *takes = false;
    for (u32 i = 0; i < op->step_count; i++)
        step_effects(&op->steps[i], key, makes, takes);
}

/* That it has changed a key for sure: written or removed it, by itself, and said so. */
static bool
op_changed_surely(const struct model_op *op, u32 key)
{
    bool makes, takes;
    op_effects(op, key, &makes, &takes);
    if (op->step_count != 1 || op->all == MODEL_ALL_UNDONE || (!makes && !takes)) return false;
    const struct model_step *step = &op->steps[0];
    return (step->kind == MODEL_PUT || step->kind == MODEL_DELETE) &&
           (step->known & MODEL_KNOWS_NUMBER) && step->result_number == 1;
}

static void
op_presence_end(const struct model_op *op, bool answered)
{
    const struct object *object = &run->objects[op->object];
    for (u32 k = 0; k < object->key_count; k++) {
        bool makes, takes;
        op_effects(op, k, &makes, &takes);
        enum presence_effect effect = PRESENCE_UNSURE;
        if (answered && op->all != MODEL_ALL_UNDONE) {
            for (u32 i = 0; i < op->step_count; i++) {
                bool step_makes = false, step_takes = false;
                step_effects(&op->steps[i], k, &step_makes, &step_takes);
                enum presence_effect tells = step_tells(&op->steps[i], k);
                if (tells != PRESENCE_UNSURE || step_makes || step_takes) effect = tells;
            }
        }
        if (object->expires) effect = PRESENCE_UNSURE;
        struct key *key = key_of(op, k);
        presence_end(&key->presence, makes, takes, effect, op->invoked, run->position);
        if (makes || takes) key->changed = run->position;
        if (answered && op_changed_surely(op, k))
            key->changed_surely = MAX(key->changed_surely, op->invoked);
    }
}

static void
op_presence_begin(const struct model_op *op)
{
    const struct object *object = &run->objects[op->object];
    for (u32 k = 0; k < object->key_count; k++) {
        bool makes, takes;
        op_effects(op, k, &makes, &takes);
        presence_begin(&key_of(op, k)->presence, makes, takes);
    }
}

/* ---- requests ---- */

/* With --log: what clients ask and hear. */
void
check_log(const struct client *client, const struct request *request, const char *what)
{
    if (!run->options->log) return;
    fprintf(stderr, "%10llu us client %u/%u %s %s",
            (unsigned long long)(sim_now_ns(run->sim) / 1000), client->id, client->connection, what,
            request_names[request->kind]);
    if (request->text != NULL) fprintf(stderr, " %s", request->text);
    for (u32 i = 0; i < request->op_count; i++) {
        const struct model_op *op = request->ops[i];
        fprintf(stderr, "%s #%llu object %u:", i > 0 ? "," : "", (unsigned long long)op->number,
                op->object);
        for (u32 k = 0; k < op->step_count; k++) {
            char text[256];
            model_step_describe(run->model, &op->steps[k], text, sizeof(text));
            fprintf(stderr, "%s %s", k > 0 ? ";" : "", text);
        }
    }
    fputc('\n', stderr);
}

/* For RUN_FLAW_DEEP_STACK: all of it, and on to what must not be touched. */
static __attribute__((noinline)) u32
stack_use(u32 depth)
{
    volatile u8 part[1024];
    part[0] = (u8)depth;
    return depth == 0 ? 0 : stack_use(depth - 1) + part[0];
}

/* Mistakes that end the program, once so many requests were made. */
static void
flaw_ends(void)
{
    u64 requests = run->stats.requests;
    if (run->options->flaw == RUN_FLAW_DEEP_STACK && requests == 50) CHECK(stack_use(256) > 0);
    if (run->options->flaw == RUN_FLAW_FAILED_CHECK) {
        bool cuts = !(run->options->off >> SIM_FAULT_POWER_CUT & 1);
        CHECK(cuts || requests < 20);
        CHECK(requests < 100);
    }
}

void
check_begin(struct request *request)
{
    request->begun = ++run->position;
    request->sent_ns = sim_now_ns(run->sim);
    run->stats.requests++;
    flaw_ends();
    for (u32 i = 0; i < request->op_count; i++) {
        struct model_op *op = request->ops[i];
        struct object *object = &run->objects[op->object];
        model_invoke(&object->model, op, run->position, request->sent_ns);
        object->under_way++;
        op_presence_begin(op);
    }
}

void
check_end(struct request *request)
{
    run->position++;
    run->stats.answers++;
    for (u32 i = 0; i < request->op_count; i++) {
        struct model_op *op = request->ops[i];
        struct object *object = &run->objects[op->object];
        op_presence_end(op, true);
        model_return(&object->model, op, run->position, sim_now_ns(run->sim));
        object->under_way--;
    }
    request->op_count = 0;
}

/* None of its keys lies where something is damaged. */
static bool
request_unharmed(const struct request *request)
{
    for (u32 i = 0; i < request->op_count; i++)
        if (damage_in_store(key_of(request->ops[i], 0)->token)) return false;
    return request->op_count > 0 || !damage_anywhere();
}

void
check_refused(struct request *request)
{
    run->position++;
    run->stats.refusals++;
    run->stats.refusals_unharmed += !run->beyond || request_unharmed(request);
    for (u32 i = 0; i < request->op_count; i++) {
        struct model_op *op = request->ops[i];
        struct object *object = &run->objects[op->object];
        op_presence_end(op, false);
        model_refuse(&object->model, op);
        object->under_way--;
    }
    request->op_count = 0;
}

void
check_unknown(struct request *request)
{
    run->position++;
    run->stats.unknown++;
    for (u32 i = 0; i < request->op_count; i++) {
        struct model_op *op = request->ops[i];
        struct object *object = &run->objects[op->object];
        if (!op->changes) object->under_way--;
        model_forget(&object->model, op);
    }
    request->op_count = 0;
}

void
check_apart(struct client *client, struct request *request)
{
    struct model_op *whole = request->ops[0];
    struct object *object = &run->objects[whole->object];
    for (u32 i = 0; i < whole->step_count; i++) {
        if (whole->steps[i].kind == MODEL_EXPECT) continue;
        struct model_op *op = check_op(client, whole->object, 1);
        op->steps[0] = whole->steps[i];
        model_invoke(&object->model, op, request->begun, request->sent_ns);
        object->under_way++;
        op_presence_begin(op);
        struct request part = {.op_count = 1, .ops = {op}};
        check_unknown(&part);
    }
    check_refused(request);
}

u32
check_value(const struct model_op *op, u32 key, struct bytes content)
{
    const struct object *object = &run->objects[op->object];
    if (object->type != OBJECT_REGISTER) return values_intern(&run->values, content);
    u32 value = values_find(&run->values, content);
    if (value != VALUE_ABSENT && value_is_right(content, op->object)) return value;
    char name[64] = "";
    const struct key *found = key_of(op, key);
    for (u32 i = 0; i < MIN(found->size, 40u); i++)
        name[i] = found->name[i] > ' ' && found->name[i] < 127 ? (char)found->name[i] : '.';
    u32 of = content.size >= VALUE_HEAD_BYTES ? load_u32(content.data + 8) : 0;
    violated("foreign_value", "key %s of object %u holds %zu bytes that were never written to it%s",
             name, op->object, content.size,
             content.size < VALUE_HEAD_BYTES ? ""
             : value_is_right(content, of)   ? ": they are another object's"
                                             : ": their checksum does not match");
    return VALUE_ABSENT;
}

void
check_audited(const struct model_op *op, bool answered)
{
    u32 key = (u32)(key_of(op, op->steps[0].key) - run->keys);
    if (!answered &&
        !(run->beyond && damage_in_reach(run->objects[op->object].keyspace, run->keys[key].token)))
        return;
    run->audited += !run->audit_seen[key];
    run->audit_seen[key] = true;
}

/* ---- the end of a process ---- */

/* How much a power cut may take under periodic durability: the interval, a sync that has just begun
 * and one more, each behind other requests. */
static u64
slack_ns(void)
{
    const struct sim_disk_options *disk = &run->sim_options.disk;
    u64 slack = run->knobs.sync_interval_ms * NS_PER_MS + 20 * disk->latency_ns_max + NS_PER_S;
    if (disk->stall_ppm > 0) slack += 3 * disk->stall_ns;
    if (run->sim_options.shard_stall_ppm > 0) slack += 3 * run->sim_options.shard_stall_ns_max;
    return slack;
}

static void
fault_first(void *arg, struct sim_fault_id id, u64 time_ns, const char *detail)
{
    (void)detail;
    u64 *first_ns = arg;
    if (id.family == SIM_FAULT_WRITE_ERROR && time_ns >= run->epoch_ns)
        *first_ns = MIN(*first_ns, time_ns);
}

/* A log that has met an error syncs nothing any more: what was last acknowledged before stays at
 * the mercy of the power. */
static u64
last_sync_ns(u64 now_ns)
{
    u64 first_ns = now_ns;
    sim_fault_each(run->sim, fault_first, &first_ns);
    return first_ns;
}

bool
check_end_loses(bool orderly, bool power)
{
    u32 durability = run->knobs.durability;
    return !orderly &&
           (durability == LSM_DURABILITY_NONE || (durability == LSM_DURABILITY_PERIODIC && power));
}

void
check_epoch_end(bool orderly, bool power, u64 now_ns)
{
    u32 durability = run->knobs.durability;
    bool weak = durability != LSM_DURABILITY_GROUP || run->beyond;
    bool loses = check_end_loses(orderly, power);
    u64 last_ns = last_sync_ns(now_ns);
    u64 since_ns = durability == LSM_DURABILITY_NONE ? 0 : last_ns - MIN(last_ns, slack_ns());
    for (u32 i = 0; i < run->object_count && !run_over(); i++) {
        struct object *object = &run->objects[i];
        const struct model_op *failed;
        object->under_way = 0;
        u64 lost_ns, object_since_ns = loses ? since_ns : UINT64_MAX;
        object->lost = loses;
        if (run->beyond && damage_may_lose(run->keys[object->key_first].token, &lost_ns)) {
            object_since_ns = MIN(object_since_ns, lost_ns);
            object->lost = true;
        }
        if (model_judge(run->model, &object->model,
                        object->lost ? MODEL_END_LOSES : MODEL_END_KEEPS, weak, object_since_ns,
                        now_ns, &failed))
            continue;
        run->failed_op = failed;
        run->failed_object = i + 1;
        char text[256];
        model_step_describe(run->model, &failed->steps[0], text, sizeof(text));
        violated("history",
                 "nothing explains the answer of client %u to operation %llu on object %u: %s%s",
                 failed->client, (unsigned long long)failed->number, i, text,
                 failed->step_count > 1 ? "; ..." : "");
    }
    run->position++;
    for (u32 i = 0; i < run->key_count; i++)
        presence_reset(&run->keys[i].presence, run->objects[run->keys[i].object].lost,
                       run->position);
    damage_forget();
}

/* ---- scans ---- */

void
check_scan_begin(struct client *client, u16 keyspace)
{
    struct scan *scan = &client->scan;
    check_scan_stop(client);
    *scan = (struct scan){.active = true, .keyspace = keyspace, .epoch = run->starts};
    scan->begun = ++run->position;
    scan->begun_ns = sim_now_ns(run->sim);
    scan->seen = calloc(run->key_count, 1);
    CHECK(scan->seen != NULL);
    run->stats.scans++;
}

void
check_scan_stop(struct client *client)
{
    struct scan *scan = &client->scan;
    free(scan->seen);
    free(scan->sure);
    free(scan->values);
    free(scan->versions);
    *scan = (struct scan){.active = false};
}

void
check_scan_found(struct client *client, struct bytes name)
{
    struct scan *scan = &client->scan;
    struct key *key = key_find(scan->keyspace, name);
    run->stats.scanned_keys++;
    if (key == NULL) {
        violated("scan_foreign", "client %u: a scan of keyspace %u gives a key that nobody wrote",
                 client->id, scan->keyspace);
        return;
    }
    u8 *seen = &scan->seen[key - run->keys];
    *seen = (u8)MIN(*seen + 1, 200);
}

static void
scan_wrong(const char *rule, const struct client *client, u32 key, const char *what)
{
    char name[64] = "";
    for (u32 i = 0; i < MIN(run->keys[key].size, 40u); i++)
        name[i] = (char)(run->keys[key].name[i] > ' ' && run->keys[key].name[i] < 127
                             ? run->keys[key].name[i]
                             : '.');
    violated(rule,
             "client %u: a scan of keyspace %u from position %llu to %llu %s key %s (there "
             "since %lld, absent since %lld)",
             client->id, client->scan.keyspace, (unsigned long long)client->scan.begun,
             (unsigned long long)run->position, what, name,
             (long long)run->keys[key].presence.there_since,
             (long long)run->keys[key].presence.absent_since);
}

/* once: no key may come twice (SCAN may repeat some). */
void
check_scan_judge(const struct client *client, bool once)
{
    const struct scan *scan = &client->scan;
    for (u32 i = 0; i < run->key_count && scan->epoch == run->starts; i++) {
        const struct key *key = &run->keys[i];
        if (run->objects[key->object].keyspace != scan->keyspace) continue;
        if (scan->seen[i] == 0 && presence_surely_there(&key->presence, scan->begun))
            scan_wrong("scan_missed", client, i, "does not return");
        if (scan->seen[i] > 0 && presence_surely_absent(&key->presence, scan->begun))
            scan_wrong("scan_found_absent", client, i, "returns the absent");
        if (once && scan->seen[i] > 1) scan_wrong("scan_twice", client, i, "returns twice the");
    }
}

void
check_scan_end(struct client *client, bool once)
{
    check_scan_judge(client, once);
    check_scan_stop(client);
}

/* ---- instants ---- */

/* What KEYS and snapshots show is one moment for all objects, whatever shard they are on. So what
 * they show of one object bounds what they must show of all others: the moment is not before what
 * the shown is the work of was asked for. */

/* Only of values that tell who wrote them: others may have come there in another way. */
static u64
value_begun(const struct model_object *object, u32 value)
{
    if (value == VALUE_ABSENT || values_size(&run->values, value) < VALUE_HEAD_BYTES) return 0;
    for (u32 k = 0; k < object->op_count; k++) {
        const struct model_op *op = object->ops[k];
        for (u32 n = 0; n < op->step_count; n++)
            if (op->steps[n].kind == MODEL_PUT && op->steps[n].value == value) return op->invoked;
    }
    return 0; /* before this process */
}

/* When the first operation began that may have brought the key since, or taken it. */
static u64
change_begun(const struct key *key, bool makes, u64 since)
{
    const struct model_object *object = &run->objects[key->object].model;
    for (u32 k = 0; k < object->op_count; k++) {
        bool may_make, may_take;
        op_effects(object->ops[k], key->index, &may_make, &may_take);
        if (object->ops[k]->invoked > since && (makes ? may_make : may_take))
            return object->ops[k]->invoked;
    }
    return 0;
}

static u64
shown_moment(const struct scan *scan)
{
    u64 moment = scan->begun;
    for (u32 i = 0; i < run->key_count; i++) {
        const struct key *key = &run->keys[i];
        const struct object *object = &run->objects[key->object];
        if (object->keyspace != scan->keyspace) continue;
        u64 begun = 0;
        if (scan->values != NULL && object->type == OBJECT_REGISTER)
            begun = value_begun(&object->model, scan->values[i]);
        if (scan->seen[i] > 0 && scan->sure[i] == PRESENCE_ABSENT)
            begun = MAX(begun, change_begun(key, true, scan->sure_since));
        if (scan->seen[i] == 0 && scan->sure[i] == PRESENCE_THERE)
            begun = MAX(begun, change_begun(key, false, scan->sure_since));
        if (begun < scan->opened) moment = MAX(moment, begun);
    }
    return moment;
}

/* What was shown of a key, as a step of a read. */
static void
shown_step(const struct scan *scan, u32 key, struct model_step *step)
{
    const struct object *object = &run->objects[run->keys[key].object];
    *step = (struct model_step){.kind = MODEL_GET, .key = (u8)run->keys[key].index};
    bool shown = scan->seen[key] > 0;
    /* What expires before its page is read is not shown. */
    if (!shown && object->expires) return;
    step->known = MODEL_KNOWS_NUMBER;
    step->result_number = shown;
    if (scan->values == NULL) return;
    step->known |= MODEL_KNOWS_VALUE;
    step->result_value = scan->values[key];
    if (scan->versions[key] == 0) return;
    step->known |= MODEL_KNOWS_VERSION;
    step->result_version = scan->versions[key];
}

void
check_instant_begin(struct client *client)
{
    struct scan *scan = &client->scan;
    scan->sure = calloc(run->key_count, 1);
    CHECK(scan->sure != NULL);
    scan->sure_since = scan->begun;
    for (u32 i = 0; i < run->key_count; i++) {
        const struct presence *presence = &run->keys[i].presence;
        if (presence_surely_there(presence, scan->begun)) scan->sure[i] = PRESENCE_THERE;
        if (presence_surely_absent(presence, scan->begun)) scan->sure[i] = PRESENCE_ABSENT;
    }
}

/* What was shown of each object is a read of all its keys, at a moment while KEYS ran or the
 * snapshot was being opened. */
void
check_instant_end(struct client *client)
{
    struct scan *scan = &client->scan;
    bool counts = scan->active && scan->epoch == run->starts;
    u64 begun = counts ? shown_moment(scan) : 0;
    for (u32 i = 0; i < run->object_count && counts; i++) {
        struct object *object = &run->objects[i];
        if (object->keyspace != scan->keyspace) continue;
        struct model_op *op = check_op(client, i, object->key_count);
        op->connection = 0;
        op->shown_ns = sim_now_ns(run->sim);
        for (u32 k = 0; k < object->key_count; k++)
            shown_step(scan, object->key_first + k, &op->steps[k]);
        model_invoke(&object->model, op, begun, scan->begun_ns);
        model_return(&object->model, op, scan->opened, scan->opened_ns);
    }
    if (counts) run->stats.snapshots++;
    check_scan_stop(client);
}

void
check_count_bounds(u16 keyspace, u64 since, u64 *least, u64 *most)
{
    *least = *most = 0;
    for (u32 i = 0; i < run->key_count; i++) {
        const struct key *key = &run->keys[i];
        if (run->objects[key->object].keyspace != keyspace) continue;
        *least += presence_surely_there(&key->presence, since);
        *most += !presence_surely_absent(&key->presence, since);
    }
}

void
check_watch_sent(struct client *client, struct request *request)
{
    const struct model_op *op = request->ops[0];
    if (op->steps[0].kind != MODEL_EXPECT) return;
    request->stale = key_of(op, op->steps[0].key)->changed_surely > client->watching;
    run->stats.execs_stale += request->stale;
}

void
check_watch_done(struct client *client, struct request *request)
{
    if (!request->stale) return;
    const struct model_op *op = request->ops[0];
    const struct key *key = key_of(op, op->steps[0].key);
    violated("watch_missed",
             "client %u: EXEC %llu was done, though key %u of object %u, which is watched since "
             "%llu, was changed by an operation that began at %llu and was answered before EXEC",
             client->id, (unsigned long long)op->number, op->steps[0].key, op->object,
             (unsigned long long)client->watching, (unsigned long long)key->changed_surely);
}

void
check_watch_aborted(struct client *client, struct request *request)
{
    const struct model_op *op = request->ops[0];
    const struct object *object = &run->objects[op->object];
    const struct key *key = key_of(op, op->steps[0].key);
    run->stats.execs_aborted++;
    if (object->expires || key->changed >= client->watched) return;
    if (key->presence.makers + key->presence.takers > 1) return; /* one of them is this EXEC */
    /* Of a key that was absent, EXEC may say so by chance: multi.c. */
    if (!presence_surely_there(&key->presence, client->watched)) return;
    violated("watch_aborted",
             "client %u: EXEC %llu says that key %u of object %u has changed since %llu; nobody "
             "touched it",
             client->id, (unsigned long long)op->number, op->steps[0].key, op->object,
             (unsigned long long)client->watched);
}
