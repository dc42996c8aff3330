/* SPDX-License-Identifier: MIT
 *
 * prefix.c -- which write a value shows, and which write is surely missing: prefix.h.
 */
#include "prefix.h"

/* It has done nothing, for sure. */
static bool
undone(const struct model_op *op)
{
    return op->outcome == MODEL_REFUSED || op->all == MODEL_ALL_UNDONE;
}

static bool
surely_before(const struct model_op *op, const struct model_op *later)
{
    return op->outcome == MODEL_DONE && op->returned < later->invoked;
}

static bool
writes(const struct model_op *op, u32 value)
{
    for (u32 i = 0; i < op->step_count; i++)
        if (op->steps[i].kind == MODEL_PUT && op->steps[i].value == value) return true;
    return false;
}

static bool
moves(const struct model_op *op)
{
    for (u32 i = 0; i < op->step_count; i++)
        if (op->steps[i].kind >= MODEL_RENAME && op->steps[i].kind <= MODEL_COPY) return true;
    return false;
}

/* It may have left nothing there. */
static bool
may_take(const struct model_op *op, u32 key)
{
    for (u32 i = 0; i < op->step_count; i++) {
        const struct model_step *step = &op->steps[i];
        if (step->kind == MODEL_CLEAR) return true;
        if (step->key != key) continue;
        if (step->kind == MODEL_DELETE || step->kind == MODEL_GETDEL ||
            step->kind == MODEL_EXPIRE || step->kind == MODEL_RENAME ||
            step->kind == MODEL_RENAMENX || step->ttl_ms != 0)
            return true;
    }
    return false;
}

/* By itself, and it said so. */
static bool
changed_surely(const struct model_op *op, u32 key)
{
    const struct model_step *step = &op->steps[0];
    return op->outcome == MODEL_DONE && op->step_count == 1 && !undone(op) && step->key == key &&
           (step->kind == MODEL_PUT || step->kind == MODEL_DELETE) &&
           (step->known & MODEL_KNOWS_NUMBER) != 0 && step->result_number == 1;
}

/* The process may have found it there when it began. */
static bool
was_there(const struct model_object *object, u32 value)
{
    for (u32 i = 0; i < object->state_count; i++)
        for (u32 k = 0; k < object->key_count; k++)
            if (object->states[i].cells[k].value == value) return true;
    return false;
}

u64
prefix_survivor(const struct model_object *object, const struct prefix_seen *seen)
{
    if (object->gave_up || seen->found != PREFIX_VALUE || was_there(object, seen->value)) return 0;
    for (u32 i = 0; i < object->op_count; i++) /* by invocation */
        if (!undone(object->ops[i]) && writes(object->ops[i], seen->value))
            return object->ops[i]->invoked;
    return 0;
}

/* Whether what is seen is surely from before op, which has changed the key. */
static bool
is_older(const struct model_object *object, u32 key, bool expires, const struct prefix_seen *seen,
         const struct model_op *op)
{
    bool absent = seen->found == PREFIX_ABSENT, known = was_there(object, seen->value);
    if (absent && (expires || op->steps[0].kind == MODEL_DELETE)) return false;
    for (u32 i = 0; i < object->op_count; i++) {
        const struct model_op *other = object->ops[i];
        if (other == op || undone(other)) continue;
        bool may_explain =
            absent ? may_take(other, key) : moves(other) || writes(other, seen->value);
        if (may_explain && !surely_before(other, op)) return false;
        known |= !absent && writes(other, seen->value);
    }
    return (absent || known) && !(!absent && writes(op, seen->value));
}

const struct model_op *
prefix_missing(const struct model_object *object, u32 key, bool expires,
               const struct prefix_seen *seen, u64 before)
{
    if (object->gave_up || seen->found == PREFIX_UNREAD) return NULL;
    for (u32 i = object->op_count; i-- > 0;) {
        const struct model_op *op = object->ops[i];
        if (changed_surely(op, key) && op->returned < before &&
            is_older(object, key, expires, seen, op))
            return op;
    }
    return NULL;
}
