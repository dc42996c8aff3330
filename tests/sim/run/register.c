/* SPDX-License-Identifier: MIT
 *
 * register.c -- see register.h.
 *
 * All orders that are still possible are followed at once, as *configurations*: which write is in
 * the register, which of the operations under way have had their moment, and when the last write
 * had its. Events come in their order; a configuration that cannot explain the end of an operation
 * goes, and when none is left that operation is the violation.
 *
 * Writes have their moments as late as can be: when a read ends that tells of one, or at their own
 * end. A write that ends and was never seen either has its moment then, or had it just before
 * another one's, where nobody looked: possible when another one had its since it began. So only
 * those writes branch that a read under way is still waiting for, and the one that ends.
 */
#include "register.h"

#include <stdlib.h>

#define SLOTS       64u
#define CONFIGS_MAX 20000u

void
register_history_free(struct register_history *history)
{
    free(history->ops);
    *history = (struct register_history){0};
}

u32
register_history_add(struct register_history *history, const struct register_op *op)
{
    if (history->count == history->capacity) {
        history->capacity = MAX(16u, 2 * history->capacity);
        history->ops = realloc(history->ops, history->capacity * sizeof(*history->ops));
        CHECK(history->ops != NULL);
    }
    history->ops[history->count] = *op;
    return history->count++;
}

struct config {
    u64 met;   /* bit a slot: its operation has had its moment */
    u64 moved; /* position of the last write's moment */
    u32 state; /* index of a put + 1; 0: nothing */
};

/* Of the index of configurations, by `met` and `state`: open addressing, at most half full. */
struct place {
    u32 round; /* other than that of the index: free */
    u32 at;
};

struct configs {
    struct config *all;
    u32 count, capacity;
    struct place *places; /* a power of two of them */
    u32 places_count, round;
};

struct judge {
    const struct register_history *history;
    bool again, astray;
    struct register_verdict *out;
    u32 slots[SLOTS];  /* index of the operation + 1; 0: free */
    u64 reads, writes; /* bit a slot: such an operation has it */
    u32 *slot_of;      /* by operation, + 1; 0: none, it does not matter */
    u64 *last_need;    /* by operation: until when somebody may tell of it */
    u64 position, now_ns;
    struct configs now, next, seen;
};

static void
configs_add(struct configs *configs, struct config config)
{
    if (configs->count == configs->capacity) {
        configs->capacity = MAX(64u, 2 * configs->capacity);
        configs->all = realloc(configs->all, configs->capacity * sizeof(*configs->all));
        CHECK(configs->all != NULL);
    }
    configs->all[configs->count++] = config;
}

static void
configs_clear(struct configs *configs)
{
    configs->count = 0;
    configs->round++; /* all places are free */
}

/* Where the configuration is, or the free place where it belongs. */
static struct place *
place_find(const struct configs *configs, const struct config *config)
{
    u32 mask = configs->places_count - 1;
    u64 mixed = (config->met ^ config->state * 0x9e3779b97f4a7c15ull) * 0xd6e8feb86659fd93ull;
    u32 i = (u32)(mixed >> 32) & mask;
    for (;; i = (i + 1) & mask) {
        struct place *place = &configs->places[i];
        if (place->round != configs->round) return place;
        const struct config *there = &configs->all[place->at];
        if (there->met == config->met && there->state == config->state) return place;
    }
}

static void
places_grow(struct configs *configs)
{
    free(configs->places);
    configs->places_count = MAX(128u, 2 * configs->places_count);
    configs->places = calloc(configs->places_count, sizeof(*configs->places));
    CHECK(configs->places != NULL);
    configs->round = 1;
    for (u32 i = 0; i < configs->count; i++)
        *place_find(configs, &configs->all[i]) = (struct place){configs->round, i};
}

/* False: it is there. (A later moment of the last write allows all that an earlier one does.) Only
 * where every configuration came in by this function, since configs_clear. */
static bool
configs_join(struct configs *configs, struct config config)
{
    if (configs->count >= configs->places_count / 2) places_grow(configs);
    struct place *place = place_find(configs, &config);
    if (place->round == configs->round) {
        struct config *there = &configs->all[place->at];
        if (there->moved >= config.moved) return false;
        there->moved = config.moved;
        return true;
    }
    *place = (struct place){configs->round, configs->count};
    configs_add(configs, config);
    return true;
}

static void
configs_free(struct configs *configs)
{
    free(configs->all);
    free(configs->places);
}

static const struct register_op *
op_at(const struct judge *judge, u32 index)
{
    return &judge->history->ops[index];
}

/* Whether a read tells what there is in this state, now. */
static bool
fits(const struct judge *judge, u32 state, const struct register_op *read)
{
    if (state == 0) return read->value == 0;
    const struct register_op *put = op_at(judge, state - 1);
    if (read->value != 0) return put->value == read->value;
    return put->gone_first_ns != 0 && judge->now_ns >= put->gone_first_ns;
}

/* The first of a set that is not empty, which it leaves. */
static u32
slot_pop(u64 *slots)
{
    u32 slot = (u32)__builtin_ctzll(*slots);
    *slots &= *slots - 1;
    return slot;
}

static void
reads_meet(const struct judge *judge, struct config *config)
{
    for (u64 left = judge->reads & ~config->met; left != 0;) {
        u32 slot = slot_pop(&left);
        if (fits(judge, config->state, op_at(judge, judge->slots[slot] - 1)))
            config->met |= 1ull << slot;
    }
}

/* Whether a read under way waits for what this write would make. */
static bool
is_waited_for(const struct judge *judge, const struct config *config, u32 state)
{
    for (u64 left = judge->reads & ~config->met; left != 0;) {
        u32 slot = slot_pop(&left);
        if (fits(judge, state, op_at(judge, judge->slots[slot] - 1))) return true;
    }
    return false;
}

static bool
follow(struct judge *judge, struct config from, u32 ending)
{
    if (judge->seen.count > CONFIGS_MAX) return false;
    const struct register_op *end = op_at(judge, judge->slots[ending] - 1);
    u64 bit = 1ull << ending;
    if (end->kind == REGISTER_READ && fits(judge, from.state, end)) from.met |= bit;
    if (from.met & bit) {
        from.met &= ~bit;
        (void)configs_join(&judge->next, from);
        if (end->kind == REGISTER_READ || !judge->again) return true;
        /* Once more, just before it ends. */
        from.state = end->kind == REGISTER_PUT ? judge->slots[ending] : 0;
        from.moved = judge->position;
        reads_meet(judge, &from);
        (void)configs_join(&judge->next, from);
        return true;
    }
    if (end->kind != REGISTER_READ && from.moved > end->begun) {
        struct config hidden = from; /* just before the last write */
        (void)configs_join(&judge->next, hidden);
    }
    u64 writes = judge->again ? judge->writes : judge->writes & ~from.met;
    while (writes != 0) {
        u32 slot = slot_pop(&writes);
        u32 index = judge->slots[slot] - 1;
        const struct register_op *op = op_at(judge, index);
        u32 state = op->kind == REGISTER_PUT ? index + 1 : 0;
        bool was_done = (from.met >> slot & 1) != 0;
        if (was_done && state == from.state) continue;
        if (slot != ending && !is_waited_for(judge, &from, state)) continue;
        struct config to = from;
        to.state = state;
        to.met |= 1ull << slot;
        to.moved = judge->position;
        reads_meet(judge, &to);
        if (configs_join(&judge->seen, to)) configs_add(&judge->now, to);
    }
    return true;
}

static bool
slot_take(struct judge *judge, u32 index)
{
    u64 unused = ~(judge->reads | judge->writes);
    if (unused == 0) return false;
    u32 slot = slot_pop(&unused);
    judge->slots[slot] = index + 1;
    judge->slot_of[index] = slot + 1;
    bool reads = op_at(judge, index)->kind == REGISTER_READ;
    *(reads ? &judge->reads : &judge->writes) |= 1ull << slot;
    return true;
}

static void
slot_give(struct judge *judge, u32 slot)
{
    judge->slots[slot] = 0;
    judge->reads &= ~(1ull << slot);
    judge->writes &= ~(1ull << slot);
}

static bool
op_begins(struct judge *judge, u32 index)
{
    const struct register_op *op = op_at(judge, index);
    if (!slot_take(judge, index)) return false;
    judge->now_ns = op->begun_ns;
    for (u32 i = 0; op->kind == REGISTER_READ && i < judge->now.count; i++)
        reads_meet(judge, &judge->now.all[i]);
    return true;
}

/* Writes of unknown outcome that nobody can tell of any more. */
static void
slots_release(struct judge *judge)
{
    for (u64 left = judge->writes; left != 0;) {
        u32 slot = slot_pop(&left);
        u32 index = judge->slots[slot] - 1;
        const struct register_op *op = op_at(judge, index);
        if (op->outcome != REGISTER_UNKNOWN || judge->last_need[index] > judge->position) continue;
        slot_give(judge, slot);
        for (u32 i = 0; i < judge->now.count; i++)
            judge->now.all[i].met &= ~(1ull << slot);
    }
}

/* False: there is a verdict. */
static bool
op_ends(struct judge *judge, u32 index)
{
    u32 slot = judge->slot_of[index] - 1;
    judge->now_ns = op_at(judge, index)->ended_ns;
    configs_clear(&judge->next);
    configs_clear(&judge->seen);
    for (u32 i = 0; i < judge->now.count; i++) {
        reads_meet(judge, &judge->now.all[i]); /* what has expired since the last event */
        (void)configs_join(&judge->seen, judge->now.all[i]);
    }
    for (u32 i = 0; i < judge->now.count; i++) { /* it grows meanwhile */
        if (follow(judge, judge->now.all[i], slot)) continue;
        judge->out->gave_up = true;
        return false;
    }
    slot_give(judge, slot);
    struct configs swap = judge->now;
    judge->now = judge->next;
    judge->next = swap;
    judge->out->configs_max = MAX(judge->out->configs_max, judge->now.count);
    if (judge->now.count == 0) {
        judge->out->rule = "register";
        judge->out->op = index;
        return false;
    }
    slots_release(judge);
    return true;
}

/* ---- before: what each read tells of, by itself ---- */

static u32
put_of(const struct register_history *history, u64 value)
{
    for (u32 i = 0; i < history->count; i++)
        if (history->ops[i].kind == REGISTER_PUT && history->ops[i].value == value) return i + 1;
    return 0;
}

static const char *
read_check(const struct register_history *history, const struct register_op *read, u32 *put_out)
{
    u32 put = *put_out = put_of(history, read->value);
    if (put == 0) return "never_written";
    const struct register_op *op = &history->ops[put - 1];
    if (op->outcome == REGISTER_REFUSED) return "refused_and_done";
    if (op->begun > read->ended) return "told_before_written";
    if (op->gone_last_ns != 0 && read->begun_ns > op->gone_last_ns) return "expired_told";
    return NULL;
}

void
register_check_told(const struct register_history *history, struct register_verdict *out)
{
    *out = (struct register_verdict){0};
    for (u32 i = 0; i < history->count && out->rule == NULL; i++) {
        const struct register_op *read = &history->ops[i];
        if (read->kind != REGISTER_READ || read->outcome != REGISTER_DONE || read->value == 0)
            continue;
        u32 put;
        out->rule = read_check(history, read, &put);
        out->op = i;
    }
}

/* Whether a write that was done is surely later than this one, by any clock. */
static bool
is_replaced(const struct register_history *history, const struct register_op *write, u64 apart_ns,
            u64 late_ns)
{
    u64 last_ns = write->outcome == REGISTER_DONE ? write->ended_ns : write->begun_ns + late_ns;
    for (u32 i = 0; i < history->count; i++) {
        const struct register_op *other = &history->ops[i];
        if (other->kind != REGISTER_READ && other->outcome == REGISTER_DONE &&
            other->begun_ns > last_ns + apart_ns)
            return true;
    }
    return false;
}

/* What may have left what is told: that write, or nothing at all when none was ever done. */
static bool
may_be_last(const struct register_history *history, const struct register_op *read, u64 apart_ns,
            u64 late_ns)
{
    bool written = false;
    for (u32 i = 0; i < history->count; i++) {
        const struct register_op *op = &history->ops[i];
        if (op->kind == REGISTER_READ || op->outcome == REGISTER_REFUSED || op->begun > read->ended)
            continue;
        written = written || op->outcome == REGISTER_DONE;
        bool gone = op->kind == REGISTER_DELETE ||
                    (op->gone_first_ns != 0 && op->gone_first_ns <= read->ended_ns);
        bool tells = read->value == 0 ? gone : op->kind == REGISTER_PUT && op->value == read->value;
        if (tells && !is_replaced(history, op, apart_ns, late_ns)) return true;
    }
    return !written && read->value == 0;
}

void
register_check_last(const struct register_history *history, u64 position, u64 apart_ns, u64 late_ns,
                    struct register_verdict *out)
{
    *out = (struct register_verdict){0};
    for (u32 i = 0; i < history->count && out->rule == NULL; i++) {
        const struct register_op *read = &history->ops[i];
        if (read->kind != REGISTER_READ || read->outcome != REGISTER_DONE ||
            read->begun < position || may_be_last(history, read, apart_ns, late_ns))
            continue;
        out->rule = "lost";
        out->op = i;
    }
}

/* Which writes of unknown outcome matter, and until when. */
static void
needs_find(struct judge *judge)
{
    const struct register_history *history = judge->history;
    for (u32 i = 0; i < history->count && judge->out->rule == NULL; i++) {
        const struct register_op *read = &history->ops[i];
        if (read->kind != REGISTER_READ || read->outcome != REGISTER_DONE) continue;
        if (read->value != 0) {
            u32 put;
            judge->out->rule = read_check(history, read, &put);
            judge->out->op = i;
            if (put != 0) judge->last_need[put - 1] = MAX(judge->last_need[put - 1], read->ended);
            continue;
        }
        for (u32 j = 0; j < history->count; j++) {
            const struct register_op *op = &history->ops[j];
            bool hides = op->kind == REGISTER_DELETE ||
                         (op->kind == REGISTER_PUT && op->gone_first_ns != 0 &&
                          op->gone_first_ns <= read->ended_ns);
            if (hides && op->begun < read->ended)
                judge->last_need[j] = MAX(judge->last_need[j], read->ended);
        }
    }
}

/* ---- events ---- */

struct event {
    u64 position;
    u32 op;
    bool ends;
};

static int
event_order(const void *a, const void *b)
{
    const struct event *x = a, *y = b;
    return x->position < y->position ? -1 : x->position > y->position;
}

static bool
tells_of_unknown(const struct register_history *history, const struct register_op *read)
{
    for (u32 i = 0; i < history->count; i++) {
        const struct register_op *op = &history->ops[i];
        if (op->outcome != REGISTER_UNKNOWN || op->kind == REGISTER_READ || op->begun > read->ended)
            continue;
        bool hides = op->kind == REGISTER_DELETE || op->gone_first_ns != 0;
        if (read->value == 0 ? hides : op->value == read->value) return true;
    }
    return false;
}

static u32
events_make(const struct judge *judge, struct event *events)
{
    u32 count = 0;
    for (u32 i = 0; i < judge->history->count; i++) {
        const struct register_op *op = op_at(judge, i);
        bool done = op->outcome == REGISTER_DONE;
        if (op->outcome == REGISTER_REFUSED || (op->kind == REGISTER_READ && !done)) continue;
        if (!done && judge->last_need[i] == 0) continue;
        if (judge->astray && op->kind == REGISTER_READ && tells_of_unknown(judge->history, op))
            continue;
        events[count++] = (struct event){op->begun, i, false};
        if (done) events[count++] = (struct event){op->ended, i, true};
    }
    qsort(events, count, sizeof(events[0]), event_order);
    return count;
}

void
register_judge(const struct register_history *history, bool again, bool astray,
               struct register_verdict *out)
{
    *out = (struct register_verdict){0};
    if (history->count == 0) return;
    struct judge judge = {.history = history, .again = again, .astray = astray, .out = out};
    judge.slot_of = calloc(history->count, sizeof(*judge.slot_of));
    judge.last_need = calloc(history->count, sizeof(*judge.last_need));
    struct event *events = calloc(2 * (size_t)history->count, sizeof(*events));
    CHECK(judge.slot_of != NULL && judge.last_need != NULL && events != NULL);
    needs_find(&judge);
    u32 count = out->rule == NULL ? events_make(&judge, events) : 0;
    configs_add(&judge.now, (struct config){0});
    for (u32 i = 0; i < count; i++) {
        judge.position = events[i].position;
        if (events[i].ends) {
            if (!op_ends(&judge, events[i].op)) break;
        } else if (!op_begins(&judge, events[i].op)) {
            out->gave_up = true;
            break;
        }
    }
    free(events);
    free(judge.slot_of);
    free(judge.last_need);
    configs_free(&judge.now);
    configs_free(&judge.next);
    configs_free(&judge.seen);
}
