/* SPDX-License-Identifier: MIT
 *
 * model_judge.c -- whether the answers of an epoch can be explained: see model.h.
 */
#include "model_internal.h"

#include <stdlib.h>

#include "base/hash.h"

/* More configs than this in one step, and the object is given up: a seed of lite is to cost no more
 * than 0.2 s; tools/sim-sweep counts those that do. */
#define CONFIGS_MAX 4000u

static bool
mask_has(const u64 mask[static MODEL_MASK], i16 slot)
{
    return mask[slot / 64] >> (slot % 64) & 1;
}

static void
mask_add(u64 mask[static MODEL_MASK], i16 slot)
{
    mask[slot / 64] |= 1ull << (slot % 64);
}

static void
mask_drop(u64 mask[static MODEL_MASK], i16 slot)
{
    mask[slot / 64] &= ~(1ull << (slot % 64));
}

/* The lowest slot of a word, which is taken out of it. */
static i16
slot_next(u64 *left, u32 word)
{
    u32 bit = (u32)__builtin_ctzll(*left);
    *left &= *left - 1;
    return (i16)(word * 64 + bit);
}

/* ---- sets ---- */

static void
set_grow(struct config_set *set, u32 capacity)
{
    set->capacity = capacity;
    set->all = realloc(set->all, capacity * sizeof(*set->all));
    set->next = realloc(set->next, capacity * sizeof(*set->next));
    set->hashes = realloc(set->hashes, capacity * sizeof(*set->hashes));
    CHECK(set->all != NULL && set->next != NULL && set->hashes != NULL);
}

static void
set_clear(struct config_set *set)
{
    if (set->capacity == 0) {
        set_grow(set, 256);
        set->bucket_count = 4096;
        set->buckets = calloc(set->bucket_count, sizeof(*set->buckets));
        CHECK(set->buckets != NULL);
    }
    for (u32 i = 0; i < set->count; i++)
        set->buckets[set->hashes[i] % set->bucket_count] = 0;
    set->count = 0;
}

static bool
states_equal(const struct model *model, const struct model_state *a, const struct model_state *b)
{
    return memcmp(a, b, model->state_bytes) == 0;
}

/* a can do all that b can: it differs in nothing but in fewer unknown ones done. */
static bool
covers(const struct model *model, const struct config *a, const struct config *b)
{
    for (u32 i = 0; i < MODEL_MASK; i++) {
        u64 unknown = model->unknown[i];
        if ((a->mask[i] ^ b->mask[i]) & ~unknown) return false;
        if (a->mask[i] & unknown & ~b->mask[i]) return false;
    }
    return true;
}

static u32
config_hash(const struct model *model, const struct config *config)
{
    u64 known[MODEL_MASK];
    for (u32 i = 0; i < MODEL_MASK; i++)
        known[i] = config->mask[i] & ~model->unknown[i];
    return (u32)hash_bytes(&config->state, model->state_bytes, hash_bytes(known, sizeof(known), 3));
}

/* False: it, or one that covers it, is there already. */
static bool
set_add(const struct model *model, struct config_set *set, const struct config *config)
{
    u32 hash = config_hash(model, config), bucket = hash % set->bucket_count;
    for (u32 i = set->buckets[bucket]; i != 0; i = set->next[i - 1]) {
        if (set->hashes[i - 1] != hash) continue;
        const struct config *there = &set->all[i - 1];
        if (states_equal(model, &there->state, &config->state) && covers(model, there, config))
            return false;
    }
    if (set->count == set->capacity) set_grow(set, 2 * set->capacity);
    set->all[set->count] = *config;
    set->hashes[set->count] = hash;
    set->next[set->count] = set->buckets[bucket];
    set->buckets[bucket] = ++set->count;
    return true;
}

/* ---- order within a connection ---- */

static bool
shares_key(const struct model_op *a, const struct model_op *b)
{
    if (a->step_count != 1 || b->step_count != 1) return true; /* nothing passes these */
    const struct model_step *x = &a->steps[0], *y = &b->steps[0];
    if (x->kind >= MODEL_RENAME || y->kind >= MODEL_RENAME) return true;
    return x->key == y->key && (a->changes || b->changes);
}

static bool
comes_after(const struct model_op *a, const struct model_op *b)
{
    return a->invoked != b->invoked ? a->invoked > b->invoked : a->number > b->number;
}

/* Whether op is to come after other, because they are of one connection. */
static bool
is_behind(const struct model_op *op, const struct model_op *other)
{
    return op->connection != 0 && other->connection == op->connection && comes_after(op, other) &&
           shares_key(other, op);
}

/* Notes which of the open operations the one of that slot is behind, and which are behind it. */
static void
order_note(struct model *model, i16 slot)
{
    const struct model_op *op = model->open[slot];
    memset(model->before[slot], 0, sizeof(model->before[slot]));
    for (u32 word = 0; word < MODEL_MASK; word++) {
        for (u64 left = model->taken[word]; left != 0;) {
            i16 there = slot_next(&left, word);
            mask_drop(model->before[there], slot);
            if (is_behind(op, model->open[there])) mask_add(model->before[slot], there);
            if (is_behind(model->open[there], op)) mask_add(model->before[there], slot);
        }
    }
}

/* Whether op may take effect now; those before it in its connection that have not, and whose
 * outcome is unknown, never will: they are added to mask. */
static bool
may_go(const struct model *model, const struct config *config, const struct model_op *op,
       u64 mask[static MODEL_MASK])
{
    const u64 *before = model->before[op->slot];
    for (u32 word = 0; word < MODEL_MASK; word++) {
        u64 left = before[word] & model->taken[word] & ~config->mask[word];
        if (left & model->done[word]) return false;
        mask[word] |= left;
    }
    return true;
}

/* ---- leading on ---- */

/* Whether its answer says that it has changed nothing. (That it would change nothing in one state
 * is not enough: it may have waited for another.) */
static bool
changed_nothing(const struct model_op *op)
{
    if (op->outcome != MODEL_DONE) return false;
    if (!op->changes || op->all == MODEL_ALL_UNDONE) return true;
    for (u32 i = 0; i < op->step_count; i++) {
        const struct model_step *step = &op->steps[i];
        if (step->kind == MODEL_GET || step->kind == MODEL_STRLEN || step->kind == MODEL_TTL)
            continue;
        if (step->kind == MODEL_APPEND || step->kind == MODEL_EXPECT) return false;
        if (!(step->known & MODEL_KNOWS_NUMBER)) return false;
        if (step->result_number == MODEL_FAILED) continue;
        if (step->result_number != 0 || step->kind == MODEL_INCR) return false;
    }
    return true;
}

/* Whether it is a read of another value than there is: most of what does not fit is, and to apply
 * it costs more. */
static bool
reads_other(const struct config *config, const struct model_op *op)
{
    const struct model_step *step = &op->steps[0];
    if (op->step_count != 1 || step->kind != MODEL_GET || !(step->known & MODEL_KNOWS_VALUE))
        return false;
    const struct model_cell *cell = &config->state.cells[step->key];
    bool may_expire = cell->expire_hi_ns != 0 && step->result_value == VALUE_ABSENT;
    return cell->value != step->result_value && !may_expire;
}

static bool
settle_one(struct model *model, struct config *config, i16 slot)
{
    const struct model_op *op = model->open[slot];
    for (u32 i = 0; i < MODEL_MASK; i++) /* else it waits for another one, or costs it */
        if (model->before[slot][i] & model->taken[i] & ~config->mask[i]) return false;
    if (reads_other(config, op)) return false;
    struct model_state after[MODEL_BRANCHES];
    if (model_apply(model, &config->state, op, after) != 1) return false;
    if (!states_equal(model, &after[0], &config->state)) return false;
    mask_add(config->mask, slot);
    return true;
}

/* What has changed nothing takes effect as soon as its answer fits. */
static void
settle(struct model *model, struct config *config)
{
    for (bool again = true; again;) {
        again = false;
        for (u32 word = 0; word < MODEL_MASK; word++)
            for (u64 left = model->quiet[word] & ~config->mask[word]; left != 0;)
                again |= settle_one(model, config, slot_next(&left, word));
    }
}

static void
remember(const struct model *model, struct model_object *object, const struct model_state *state,
         u64 now_ns)
{
    for (u32 i = object->past_count; i-- > 0;) {
        if (!states_equal(model, &object->past[i].state, state)) continue;
        object->past[i].until_ns = MAX(object->past[i].until_ns, now_ns);
        return;
    }
    if (object->past_count == object->past_capacity) {
        object->past_capacity = MAX(16u, 2 * object->past_capacity);
        object->past = realloc(object->past, object->past_capacity * sizeof(*object->past));
        CHECK(object->past != NULL);
    }
    object->past[object->past_count++] = (struct model_past){*state, now_ns};
}

/* From a config to those in which the operation of that slot has taken effect, into model->seen. */
static void
lead_one(struct model *model, const struct config *config, i16 slot)
{
    const struct model_op *op = model->open[slot];
    struct config after = *config;
    if (!may_go(model, config, op, after.mask)) return;
    struct model_state states[MODEL_BRANCHES];
    u32 count = model_apply(model, &config->state, op, states);
    mask_add(after.mask, slot);
    for (u32 i = 0; i < count; i++) {
        struct config led = after;
        led.state = states[i];
        settle(model, &led);
        set_add(model, &model->seen, &led);
    }
}

/* From every config in model->now to those in which op has taken effect, into model->next; op NULL:
 * everything that can be reached. false: too many. */
static bool
lead_on(struct model *model, const struct model_op *op)
{
    set_clear(&model->next);
    set_clear(&model->seen);
    for (u32 i = 0; i < model->now.count; i++)
        set_add(model, &model->seen, &model->now.all[i]);
    for (u32 at = 0; at < model->seen.count; at++) {
        struct config config = model->seen.all[at]; /* a copy: the set grows */
        if (op == NULL) {
            set_add(model, &model->next, &config);
        } else if (mask_has(config.mask, op->slot)) {
            set_add(model, &model->next, &config);
            continue;
        }
        for (u32 word = 0; word < MODEL_MASK; word++)
            for (u64 left = model->taken[word] & ~config.mask[word]; left != 0;)
                lead_one(model, &config, slot_next(&left, word));
        if (model->seen.count > CONFIGS_MAX) return false;
    }
    model->stats.configs += model->seen.count;
    model->stats.configs_max = MAX(model->stats.configs_max, model->seen.count);
    return true;
}

/* The returned operation's slot is free again. */
static void
slot_free(struct model *model, struct model_op *op)
{
    set_clear(&model->now);
    for (u32 i = 0; i < model->next.count; i++) {
        struct config config = model->next.all[i];
        mask_drop(config.mask, op->slot);
        set_add(model, &model->now, &config);
    }
    model->open[op->slot] = NULL;
    mask_drop(model->taken, op->slot);
    mask_drop(model->quiet, op->slot);
    mask_drop(model->done, op->slot);
    op->slot = -1;
}

static bool
slot_take(struct model *model, struct model_op *op)
{
    u32 slot = 0;
    while (slot < MODEL_OPEN_MAX && model->open[slot] != NULL)
        slot++;
    if (slot == MODEL_OPEN_MAX) return false;
    op->slot = (i16)slot;
    model->open[slot] = op;
    order_note(model, op->slot);
    mask_add(model->taken, op->slot);
    if (changed_nothing(op)) mask_add(model->quiet, op->slot);
    if (op->outcome == MODEL_DONE) mask_add(model->done, op->slot);
    if (op->outcome == MODEL_UNKNOWN) mask_add(model->unknown, op->slot);
    set_clear(&model->next);
    for (u32 i = 0; i < model->now.count; i++) {
        struct config config = model->now.all[i];
        settle(model, &config);
        set_add(model, &model->next, &config);
    }
    struct config_set set = model->now;
    model->now = model->next;
    model->next = set;
    return true;
}

/* ---- an epoch ---- */

struct event {
    u64 position;
    u32 order; /* operations of one request share their positions */
    bool returns;
    struct model_op *op;
};

static int
event_order(const void *a, const void *b)
{
    const struct event *x = a, *y = b;
    if (x->position != y->position) return x->position < y->position ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

static struct event *
events_of(const struct model_object *object, u32 *count_out)
{
    struct event *events = calloc(2 * (size_t)object->op_count + 1, sizeof(*events));
    CHECK(events != NULL);
    u32 count = 0;
    for (u32 i = 0; i < object->op_count; i++) {
        struct model_op *op = object->ops[i];
        if (op->outcome == MODEL_REFUSED) continue;
        if (op->outcome == MODEL_UNKNOWN && !op->changes) continue;
        events[count++] = (struct event){op->invoked, i, false, op};
        if (op->outcome == MODEL_DONE) events[count++] = (struct event){op->returned, i, true, op};
    }
    qsort(events, count, sizeof(*events), event_order);
    *count_out = count;
    return events;
}

static void
states_take(struct model *model, struct model_object *object, enum model_end end, u64 since_ns)
{
    struct config_set *seen = &model->now;
    set_clear(seen);
    memset(model->unknown, 0, sizeof(model->unknown));
    for (u32 i = 0; i < model->next.count; i++) {
        struct config config = model->next.all[i];
        memset(config.mask, 0, sizeof(config.mask));
        set_add(model, seen, &config);
    }
    for (u32 i = 0; end == MODEL_END_LOSES && i < object->past_count; i++) {
        struct config config = {.state = object->past[i].state};
        if (object->past[i].until_ns >= since_ns) set_add(model, seen, &config);
    }
    if (seen->count > object->state_capacity) {
        object->state_capacity = seen->count;
        object->states = realloc(object->states, seen->count * sizeof(*object->states));
        CHECK(object->states != NULL);
    }
    for (u32 i = 0; i < seen->count; i++)
        object->states[i] = seen->all[i].state;
    object->state_count = seen->count;
    if (!model->past_kept) object->past_count = 0;
}

static void
ops_drop(struct model_object *object)
{
    for (u32 i = 0; i < object->op_count; i++)
        free(object->ops[i]);
    object->op_count = 0;
    object->open_count = 0;
}

static void
past_take(const struct model *model, struct model_object *object, u64 now_ns)
{
    for (u32 i = 0; i < model->seen.count; i++)
        remember(model, object, &model->seen.all[i].state, now_ns);
}

bool
model_judge(struct model *model, struct model_object *object, enum model_end end, bool weak,
            u64 since_ns, u64 now_ns, const struct model_op **failed)
{
    *failed = NULL;
    if (object->gave_up) {
        ops_drop(object);
        return true;
    }
    model->end_ns = now_ns;
    model->state_bytes = object->key_count * sizeof(object->states[0].cells[0]);
    memset(model->open, 0, sizeof(model->open));
    memset(model->taken, 0, sizeof(model->taken));
    memset(model->quiet, 0, sizeof(model->quiet));
    memset(model->done, 0, sizeof(model->done));
    memset(model->unknown, 0, sizeof(model->unknown));
    set_clear(&model->now);
    for (u32 i = 0; i < object->state_count; i++) {
        struct config config = {.state = object->states[i]};
        set_add(model, &model->now, &config);
        if (weak) remember(model, object, &object->states[i], now_ns);
    }
    u32 count;
    struct event *events = events_of(object, &count);
    bool fits = true;
    for (u32 i = 0; i < count && fits; i++) {
        struct model_op *op = events[i].op;
        model->stats.operations += !events[i].returns;
        if (!events[i].returns) {
            fits = slot_take(model, op);
            continue;
        }
        fits = lead_on(model, op);
        if (!fits) break;
        if (weak) past_take(model, object, op->returned_ns);
        if (model->next.count == 0) {
            *failed = op;
            free(events);
            return false;
        }
        slot_free(model, op);
    }
    free(events);
    if (fits) fits = lead_on(model, NULL);
    if (fits) {
        if (weak) past_take(model, object, now_ns);
        states_take(model, object, end, since_ns);
        model->stats.judged++;
    } else {
        object->gave_up = true;
        model->stats.gave_up++;
    }
    ops_drop(object);
    return true;
}
