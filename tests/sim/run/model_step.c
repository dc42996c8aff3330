/* SPDX-License-Identifier: MIT
 *
 * model_step.c -- what each command does to what its keys hold, and what it answers.
 *
 * Before an operation runs, each key that it looks at and that may have expired is decided: there,
 * or gone for good. So one state can become several; within each the steps are deterministic.
 */
#include "model_internal.h"

#include <stdio.h>
#include <stdlib.h>

static const struct model_cell NOTHING;

/* ---- numbers and texts ---- */

static bool
number_of(const struct values *values, u32 value, i64 *out)
{
    if (value == VALUE_ABSENT) {
        *out = 0;
        return true;
    }
    struct bytes content = values_content(values, value);
    char text[24];
    if (content.data == NULL || content.size == 0 || content.size >= sizeof(text)) return false;
    memcpy(text, content.data, content.size);
    text[content.size] = '\0';
    char *end;
    long long number = strtoll(text, &end, 10);
    char again[24];
    snprintf(again, sizeof(again), "%lld", number);
    if (strcmp(again, text) != 0) return false; /* "+1", "01", " 1" are no numbers to Redis */
    *out = number;
    return true;
}

static u32
value_of_number(struct values *values, i64 number)
{
    char text[24];
    int size = snprintf(text, sizeof(text), "%lld", (long long)number);
    return values_intern(values, BYTES(text, size));
}

static u32
value_appended(struct values *values, u32 value, u32 tail)
{
    struct bytes a = value == VALUE_ABSENT ? BYTES(NULL, 0) : values_content(values, value);
    struct bytes b = values_content(values, tail);
    u8 *both = malloc(a.size + b.size + 1);
    CHECK(both != NULL);
    if (a.size > 0 && a.data != NULL) memcpy(both, a.data, a.size);
    if (b.size > 0) memcpy(both + a.size, b.data, b.size);
    u32 result = values_intern(values, BYTES(both, a.size + b.size));
    free(both);
    return result;
}

/* ---- one step ---- */

struct run {
    struct model *model;
    const struct model_op *op;
    struct model_state *state;
    bool check; /* the answers are known */
    bool undo;  /* a condition of an all-or-nothing operation does not hold */
};

static u64
end_ns(const struct run *run)
{
    return run->check ? run->op->returned_ns : run->model->end_ns;
}

static void
expiry_set(const struct run *run, struct model_cell *cell, u64 ttl_ms)
{
    cell->expire_lo_ns = cell->expire_hi_ns = cell->expire_set_ns = 0;
    if (ttl_ms == 0) return;
    u64 ttl_ns = ttl_ms * NS_PER_MS, begun_ns = run->op->invoked_ns;
    cell->expire_lo_ns =
        run->model->clock_least(begun_ns, end_ns(run)) + ttl_ns - MIN(ttl_ns, MODEL_SLACK_NS);
    cell->expire_hi_ns = run->model->clock_most(begun_ns, end_ns(run)) + ttl_ns + MODEL_SLACK_NS;
    cell->expire_set_ns = begun_ns;
}

/* Whether what was answered is what follows from the state. */
static bool
answers(const struct run *run, const struct model_step *step, u32 value, i64 number)
{
    if (!run->check) return true;
    if (step->known & MODEL_KNOWS_VALUE && step->result_value != value) return false;
    return !(step->known & MODEL_KNOWS_NUMBER) || step->result_number == number;
}

static bool
version_is(const struct run *run, const struct model_step *step, struct model_cell *cell, bool grew)
{
    if (!run->check || !(step->known & MODEL_KNOWS_VERSION)) {
        if (grew) cell->version = 0;
        return true;
    }
    if (cell->version != 0) {
        /* Versions of a key never go backwards. */
        if (grew ? step->result_version < cell->version : step->result_version != cell->version)
            return false;
    }
    cell->version = step->result_version;
    return true;
}

static bool
condition_holds(const struct run *run, const struct model_step *step, const struct model_cell *cell)
{
    bool there = cell->value != VALUE_ABSENT;
    if (step->flags & MODEL_IF_ABSENT && there) return false;
    if (step->flags & MODEL_IF_PRESENT && !there) return false;
    if (!(step->flags & MODEL_IF_VERSION)) return true;
    if (!there) return false;
    if (cell->version != 0) return cell->version == step->version;
    /* Its version is not known: the answer decides. */
    if (run->op->all == MODEL_ALL_UNDONE) return false;
    if (run->check && step->known & MODEL_KNOWS_NUMBER) return step->result_number == 1;
    return true;
}

static bool
put_run(struct run *run, const struct model_step *step, struct model_cell *cell)
{
    u32 old = step->flags & MODEL_GET_OLD ? cell->value : VALUE_ABSENT;
    if (!condition_holds(run, step, cell)) {
        run->undo = true;
        return answers(run, step, old, 0);
    }
    if (!answers(run, step, old, 1)) return false;
    bool keeps = step->flags & MODEL_KEEP_TTL && cell->value != VALUE_ABSENT;
    cell->value = step->value;
    if (!keeps) expiry_set(run, cell, step->ttl_ms);
    return version_is(run, step, cell, true);
}

static bool
delete_run(struct run *run, const struct model_step *step, struct model_cell *cell)
{
    u32 old = cell->value;
    if (!condition_holds(run, step, cell)) {
        run->undo = true;
        return answers(run, step, VALUE_ABSENT, 0);
    }
    *cell = NOTHING;
    return answers(run, step, old, old != VALUE_ABSENT);
}

static bool
incr_run(struct run *run, const struct model_step *step, struct model_cell *cell)
{
    struct values *values = run->model->values;
    i64 number;
    if (!number_of(values, cell->value, &number) ||
        __builtin_add_overflow(number, step->number, &number))
        return answers(run, step, VALUE_ABSENT, MODEL_FAILED);
    cell->value = value_of_number(values, number);
    cell->version = 0;
    return answers(run, step, cell->value, number);
}

static bool
ttl_run(const struct run *run, const struct model_step *step, const struct model_cell *cell)
{
    if (cell->value == VALUE_ABSENT) return answers(run, step, VALUE_ABSENT, MODEL_TTL_GONE);
    if (cell->expire_hi_ns == 0) return answers(run, step, VALUE_ABSENT, MODEL_TTL_NONE);
    if (!run->check || !(step->known & MODEL_KNOWS_NUMBER)) return true;
    if (step->result_number < 0) return false;
    u64 left_ns = (u64)step->result_number * NS_PER_MS;
    u64 first_ns = run->model->clock_least(run->op->invoked_ns, run->op->returned_ns);
    u64 last_ns = run->model->clock_most(run->op->invoked_ns, run->op->returned_ns);
    return last_ns + left_ns + 2 * MODEL_SLACK_NS >= cell->expire_lo_ns &&
           first_ns + left_ns <= cell->expire_hi_ns + 2 * MODEL_SLACK_NS;
}

static bool
move_run(struct run *run, const struct model_step *step)
{
    struct model_cell *from = &run->state->cells[step->key], *to = &run->state->cells[step->key2];
    bool copies = step->kind == MODEL_COPY;
    if (from->value == VALUE_ABSENT) return answers(run, step, 0, copies ? 0 : MODEL_FAILED);
    bool taken = to->value != VALUE_ABSENT;
    if (taken && (step->kind == MODEL_RENAMENX || (copies && !(step->flags & MODEL_REPLACE))))
        return answers(run, step, VALUE_ABSENT, 0);
    *to = *from;
    to->version = 0;
    if (!copies) *from = NOTHING;
    return answers(run, step, VALUE_ABSENT, 1);
}

static bool
step_run(struct run *run, const struct model_step *step)
{
    struct values *values = run->model->values;
    struct model_cell *cell = &run->state->cells[step->key];
    bool there = cell->value != VALUE_ABSENT;
    switch ((enum model_kind)step->kind) {
    case MODEL_GET:
        if (!answers(run, step, cell->value, there)) return false;
        return !there || version_is(run, step, cell, false);
    case MODEL_PUT:
        return put_run(run, step, cell);
    case MODEL_DELETE:
        return delete_run(run, step, cell);
    case MODEL_GETDEL: {
        u32 old = cell->value;
        *cell = NOTHING;
        return answers(run, step, old, there);
    }
    case MODEL_APPEND:
        cell->value = value_appended(values, cell->value, step->value);
        cell->version = 0;
        return answers(run, step, cell->value, values_size(values, cell->value));
    case MODEL_INCR:
        return incr_run(run, step, cell);
    case MODEL_STRLEN:
        return answers(run, step, cell->value, there ? values_size(values, cell->value) : 0);
    case MODEL_EXPIRE:
        if (there) {
            expiry_set(run, cell, step->ttl_ms);
            if (!version_is(run, step, cell, true)) return false;
        }
        return answers(run, step, VALUE_ABSENT, there);
    case MODEL_PERSIST: {
        bool had = there && cell->expire_hi_ns != 0;
        if (had) {
            expiry_set(run, cell, 0);
            cell->version = 0;
        }
        return answers(run, step, VALUE_ABSENT, had);
    }
    case MODEL_TTL:
        return ttl_run(run, step, cell);
    case MODEL_RENAME:
    case MODEL_RENAMENX:
    case MODEL_COPY:
        return move_run(run, step);
    case MODEL_EXPECT:
        if (cell->value != step->value) run->undo = true;
        return true;
    case MODEL_CLEAR:
        memset(run->state, 0, sizeof(*run->state));
        return true;
    }
    return false;
}

/* ---- an operation ---- */

static bool
steps_run(struct model *model, const struct model_op *op, struct model_state *state)
{
    struct model_state before;
    memcpy(&before, state, model->state_bytes);
    struct run run = {.model = model, .op = op, .state = state, .check = op->outcome == MODEL_DONE};
    for (u32 i = 0; i < op->step_count; i++) {
        const struct model_step *step = &op->steps[i];
        run.undo = false;
        if (!step_run(&run, step)) return false;
        if (!run.undo || (op->all == MODEL_ALL_NOT && step->kind != MODEL_EXPECT)) continue;
        memcpy(state, &before, model->state_bytes);
        return !run.check || op->all == MODEL_ALL_ANY || op->all == MODEL_ALL_UNDONE;
    }
    return op->all != MODEL_ALL_UNDONE;
}

/* Keys of which it matters whether they are there. */
static u32
keys_looked_at(const struct model_op *op)
{
    u32 keys = 0;
    for (u32 i = 0; i < op->step_count; i++) {
        const struct model_step *step = &op->steps[i];
        if (step->kind == MODEL_CLEAR) continue;
        if (step->kind == MODEL_PUT && step->flags == 0) continue;
        keys |= 1u << step->key;
        if (step->kind == MODEL_RENAMENX || step->kind == MODEL_COPY) keys |= 1u << step->key2;
    }
    return keys;
}

static u32
out_add(const struct model *model, struct model_state *out, u32 count,
        const struct model_state *state)
{
    for (u32 i = 0; i < count; i++)
        if (memcmp(&out[i], state, model->state_bytes) == 0) return count;
    out[count] = *state;
    return count + 1;
}

u32
model_apply(struct model *model, const struct model_state *state, const struct model_op *op,
            struct model_state *out)
{
    u32 looked = keys_looked_at(op), gone = 0, doubtful = 0;
    u64 last_ns = op->outcome == MODEL_DONE ? op->returned_ns : model->end_ns;
    for (u32 k = 0; k < MODEL_KEYS_MAX; k++) {
        const struct model_cell *cell = &state->cells[k];
        if (!(looked >> k & 1) || cell->expire_hi_ns == 0) continue;
        u64 most_ns = model->clock_most(MIN(cell->expire_set_ns, last_ns), last_ns);
        u64 least_ns = model->clock_least(op->invoked_ns, MAX(last_ns, op->shown_ns));
        bool may_be_there = least_ns < cell->expire_hi_ns;
        bool may_be_gone = most_ns + MODEL_SLACK_NS >= cell->expire_lo_ns;
        if (!may_be_there) {
            gone |= 1u << k;
        } else if (may_be_gone) {
            doubtful |= 1u << k;
        }
    }
    if (doubtful == 0 && !(model->time_back && gone != 0)) { /* nearly always */
        memcpy(&out[0], state, model->state_bytes);
        for (u32 k = 0; gone >> k != 0; k++)
            if (gone >> k & 1) out[0].cells[k] = NOTHING;
        return steps_run(model, op, &out[0]);
    }
    u32 count = 0;
    for (u32 choice = 0;; choice = ((choice | ~doubtful) + 1) & doubtful) { /* every subset */
        struct model_state result = *state;
        for (u32 k = 0; k < MODEL_KEYS_MAX; k++)
            if ((gone | choice) >> k & 1) result.cells[k] = NOTHING;
        if (steps_run(model, op, &result)) {
            if (!model->time_back || op->changes) count = out_add(model, out, count, &result);
            /* When the clock steps back, what was not written may come back. */
            if (model->time_back) {
                for (u32 k = 0; k < MODEL_KEYS_MAX; k++)
                    if ((gone | choice) >> k & 1 && result.cells[k].value == VALUE_ABSENT)
                        result.cells[k] = state->cells[k];
                count = out_add(model, out, count, &result);
            }
        }
        if (choice == doubtful) break;
    }
    return count;
}
