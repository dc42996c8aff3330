/* SPDX-License-Identifier: MIT
 *
 * model.c -- objects and their operations as they come and go; what is printed of them. The
 * judgement is in model_judge.c, what commands do in model_step.c.
 */
#include "model_internal.h"

#include <stdio.h>
#include <stdlib.h>

/* The wall clock of a run without one. */
static u64
least_of(u64 from_ns, u64 to_ns)
{
    (void)to_ns;
    return from_ns;
}

static u64
most_of(u64 from_ns, u64 to_ns)
{
    (void)from_ns;
    return to_ns;
}

struct model *
model_new(struct values *values)
{
    struct model *model = calloc(1, sizeof(*model));
    CHECK(model != NULL);
    model->values = values;
    model_clock_set(model, least_of, most_of);
    return model;
}

static void
set_free(struct config_set *set)
{
    free(set->all);
    free(set->next);
    free(set->hashes);
    free(set->buckets);
}

void
model_free(struct model *model)
{
    set_free(&model->now);
    set_free(&model->next);
    set_free(&model->seen);
    free(model);
}

void
model_clock_set(struct model *model, u64 (*least)(u64 from_ns, u64 to_ns),
                u64 (*most)(u64 from_ns, u64 to_ns))
{
    model->clock_least = least;
    model->clock_most = most;
}

void
model_time_back_set(struct model *model)
{
    model->time_back = true;
}

void
model_past_kept_set(struct model *model)
{
    model->past_kept = true;
}

const struct model_stats *
model_stats(const struct model *model)
{
    return &model->stats;
}

void
model_object_init(struct model_object *object, u32 key_count)
{
    *object = (struct model_object){.key_count = key_count, .state_count = 1, .state_capacity = 1};
    object->states = calloc(1, sizeof(*object->states));
    CHECK(object->states != NULL);
}

void
model_object_deinit(struct model_object *object)
{
    for (u32 i = 0; i < object->op_count; i++)
        free(object->ops[i]);
    free(object->ops);
    free(object->states);
    free(object->past);
}

/* ---- operations ---- */

static bool
step_changes(const struct model_step *step)
{
    return step->kind != MODEL_GET && step->kind != MODEL_STRLEN && step->kind != MODEL_TTL &&
           step->kind != MODEL_EXPECT;
}

struct model_op *
model_op_new(u32 step_count)
{
    CHECK(step_count > 0 && step_count <= MODEL_STEPS_MAX);
    struct model_op *op = calloc(1, sizeof(*op) + step_count * sizeof(op->steps[0]));
    CHECK(op != NULL);
    op->step_count = (u8)step_count;
    op->returned = MODEL_NEVER;
    op->slot = -1;
    return op;
}

void
model_invoke(struct model_object *object, struct model_op *op, u64 position, u64 now_ns)
{
    for (u32 i = 0; i < op->step_count; i++)
        op->changes |= step_changes(&op->steps[i]);
    op->invoked = position;
    op->invoked_ns = now_ns;
    op->outcome = MODEL_OPEN;
    if (object->op_count == object->op_capacity) {
        object->op_capacity = MAX(16u, 2 * object->op_capacity);
        object->ops = realloc(object->ops, object->op_capacity * sizeof(*object->ops));
        CHECK(object->ops != NULL);
    }
    object->ops[object->op_count++] = op;
    object->open_count += op->changes;
}

void
model_return(struct model_object *object, struct model_op *op, u64 position, u64 now_ns)
{
    CHECK(op->outcome == MODEL_OPEN);
    op->outcome = MODEL_DONE;
    op->returned = position;
    op->returned_ns = now_ns;
    object->open_count -= op->changes;
}

void
model_refuse(struct model_object *object, struct model_op *op)
{
    CHECK(op->outcome == MODEL_OPEN);
    op->outcome = MODEL_REFUSED;
    object->open_count -= op->changes;
}

void
model_forget(struct model_object *object, struct model_op *op)
{
    (void)object; /* it stays open until the end of the epoch */
    CHECK(op->outcome == MODEL_OPEN);
    op->outcome = MODEL_UNKNOWN;
}

/* ---- for a person ---- */

void
model_step_describe(const struct model *model, const struct model_step *step, char *out,
                    size_t size)
{
    static const char *const names[] = {
        [MODEL_GET] = "get",       [MODEL_PUT] = "put",       [MODEL_DELETE] = "delete",
        [MODEL_GETDEL] = "getdel", [MODEL_APPEND] = "append", [MODEL_INCR] = "incr",
        [MODEL_STRLEN] = "strlen", [MODEL_EXPIRE] = "expire", [MODEL_PERSIST] = "persist",
        [MODEL_TTL] = "ttl",       [MODEL_RENAME] = "rename", [MODEL_RENAMENX] = "renamenx",
        [MODEL_COPY] = "copy",     [MODEL_EXPECT] = "expect", [MODEL_CLEAR] = "clear",
    };
    char value[80] = "", result[80] = "";
    if (step->value != VALUE_ABSENT) values_describe(model->values, step->value, value, 80);
    if (step->known & MODEL_KNOWS_VALUE)
        values_describe(model->values, step->result_value, result, 80);
    int n = snprintf(out, size, "%s %u", names[step->kind], step->key);
#define ADD(...)                                                                                   \
    if (n >= 0 && (size_t)n < size) n += snprintf(out + n, size - (size_t)n, __VA_ARGS__)
    if (step->kind >= MODEL_RENAME && step->kind <= MODEL_COPY) ADD(" to %u", step->key2);
    if (value[0] != '\0') ADD(" (%s)", value);
    if (step->kind == MODEL_INCR) ADD(" by %lld", (long long)step->number);
    if (step->flags & MODEL_IF_ABSENT) ADD(" if absent");
    if (step->flags & MODEL_IF_PRESENT) ADD(" if present");
    if (step->flags & MODEL_IF_VERSION) ADD(" if version %llx", (unsigned long long)step->version);
    if (step->ttl_ms != 0) ADD(" for %llu ms", (unsigned long long)step->ttl_ms);
    if (step->known & (MODEL_KNOWS_VALUE | MODEL_KNOWS_NUMBER)) ADD(" ->");
    if (step->known & MODEL_KNOWS_VALUE) ADD(" %s", result);
    if (step->known & MODEL_KNOWS_NUMBER && step->result_number == MODEL_FAILED) {
        ADD(" error");
    } else if (step->known & MODEL_KNOWS_NUMBER) {
        ADD(" %lld", (long long)step->result_number);
    }
    if (step->known & MODEL_KNOWS_VERSION)
        ADD(" version %llx", (unsigned long long)step->result_version);
#undef ADD
}

static void
op_print(const struct model *model, const struct model_op *op, bool failed)
{
    static const char *const outcomes[] = {"open", "done", "refused", "unknown"};
    fprintf(stderr, "%s %8llu..", failed ? "  ->" : "    ", (unsigned long long)op->invoked);
    if (op->returned == MODEL_NEVER)
        fprintf(stderr, "%-8s", "");
    else
        fprintf(stderr, "%-8llu", (unsigned long long)op->returned);
    fprintf(stderr,
            " %10llu us  client %u/%u #%llu %s%s:", (unsigned long long)(op->invoked_ns / 1000),
            op->client, op->connection, (unsigned long long)op->number, outcomes[op->outcome],
            op->all == MODEL_ALL_UNDONE ? " (condition not met)" : "");
    for (u32 i = 0; i < op->step_count; i++) {
        char text[256];
        model_step_describe(model, &op->steps[i], text, sizeof(text));
        fprintf(stderr, "%s %s", i > 0 ? ";" : "", text);
    }
    fputc('\n', stderr);
}

static void
states_print(const struct model *model, const struct model_object *object,
             const struct model_state *states, u32 count)
{
    for (u32 i = 0; i < MIN(count, 12u); i++) {
        fprintf(stderr, "      ");
        for (u32 k = 0; k < object->key_count; k++) {
            const struct model_cell *cell = &states[i].cells[k];
            char text[80];
            values_describe(model->values, cell->value, text, sizeof(text));
            fprintf(stderr, " %u: %s", k, text);
            if (cell->version != 0)
                fprintf(stderr, " version %llx", (unsigned long long)cell->version);
            if (cell->expire_hi_ns != 0)
                fprintf(stderr, " until %llu..%llu us",
                        (unsigned long long)(cell->expire_lo_ns / 1000),
                        (unsigned long long)(cell->expire_hi_ns / 1000));
        }
        fputc('\n', stderr);
    }
    if (count > 12) fprintf(stderr, "       ... of %u\n", count);
}

/* Those long before the failure explain little. */
#define PRINT_OPS 60u

void
model_print(const struct model *model, const struct model_object *object,
            const struct model_op *failed)
{
    fprintf(stderr, "  when the process started it could hold:\n");
    states_print(model, object, object->states, object->state_count);
    u32 at = object->op_count;
    for (u32 i = 0; i < object->op_count; i++)
        if (object->ops[i] == failed) at = i;
    u32 first = at > PRINT_OPS ? at - PRINT_OPS : 0;
    fprintf(stderr, "  operations (position, time):%s\n", first > 0 ? " ..." : "");
    for (u32 i = first; i < object->op_count; i++) {
        if (failed != NULL && object->ops[i]->invoked > failed->returned) break;
        if (object->ops[i]->outcome != MODEL_REFUSED)
            op_print(model, object->ops[i], object->ops[i] == failed);
    }
    if (failed != NULL && model->seen.count > 0) {
        fprintf(stderr, "  just before that answer it could hold:\n");
        for (u32 i = 0; i < MIN(model->seen.count, 8u); i++)
            states_print(model, object, &model->seen.all[i].state, 1);
    }
}
