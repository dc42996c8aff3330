/* SPDX-License-Identifier: MIT
 *
 * causal.c -- see causal.h.
 *
 * Sets of operations are bits by their index. All that is known of an operation follows from what
 * began before it, so they are worked through in that order.
 */
#include "causal.h"

#include <stdlib.h>

#define WORD_BITS 64u

void
causal_history_free(struct causal_history *history)
{
    for (u32 i = 0; i < history->count; i++)
        free(history->ops[i].values);
    free(history->ops);
    *history = (struct causal_history){0};
}

u32
causal_history_add(struct causal_history *history, const struct causal_op *op)
{
    if (history->count == history->capacity) {
        history->capacity = MAX(16u, 2 * history->capacity);
        history->ops = realloc(history->ops, history->capacity * sizeof(*history->ops));
        CHECK(history->ops != NULL);
    }
    struct causal_op *added = &history->ops[history->count];
    *added = *op;
    added->values = NULL;
    causal_told(added, op->values, op->value_count);
    return history->count++;
}

void
causal_told(struct causal_op *op, const u64 *values, u32 count)
{
    free(op->values);
    op->values = NULL;
    op->value_count = count;
    if (count == 0) return;
    op->values = malloc(count * sizeof(*values));
    CHECK(op->values != NULL);
    memcpy(op->values, values, count * sizeof(*values));
}

struct judge {
    const struct causal_history *history;
    u32 words;
    /* By operation, `words` each. Of a write: what it has surely replaced; of a read: the same of
     * all that it must know of. */
    u64 *replaced;
    u64 *seen; /* itself, and all that it must know of */
    u64 *may;  /* of a write: what it may have replaced by itself */
    u64 *told; /* of a read */
    /* Of all that was done by now. */
    u64 *settled_seen, *settled_replaced;
    u32 *by_end; /* operations in the order of their ends */
    u32 settled; /* how many of these */
    /* Of the read at hand. */
    u64 *explained;
    u32 *queue;
    struct causal_verdict *out;
};

static u64 *
set_of(const struct judge *judge, u64 *sets, u32 op)
{
    return sets + (size_t)op * judge->words;
}

static void
set_add(u64 *set, u32 op)
{
    set[op / WORD_BITS] |= (u64)1 << op % WORD_BITS;
}

static bool
set_has(const u64 *set, u32 op)
{
    return set[op / WORD_BITS] >> op % WORD_BITS & 1;
}

static void
set_unite(const struct judge *judge, u64 *set, const u64 *other)
{
    for (u32 i = 0; i < judge->words; i++)
        set[i] |= other[i];
}

static void
violates(struct judge *judge, const char *rule, u32 op, u64 number)
{
    if (judge->out->rule != NULL) return;
    *judge->out = (struct causal_verdict){.rule = rule, .op = op, .number = number};
}

/* The index of the put of that value, + 1; 0: there is none. */
static u32
put_of(const struct causal_history *history, u64 number)
{
    for (u32 i = 0; i < history->count; i++)
        if (history->ops[i].kind == CAUSAL_PUT && history->ops[i].number == number) return i + 1;
    return 0;
}

/* ---- what is told ---- */

static void
told_check(struct judge *judge, u32 at)
{
    const struct causal_op *read = &judge->history->ops[at];
    u64 *told = set_of(judge, judge->told, at);
    for (u32 i = 0; i < read->value_count; i++) {
        u32 put = put_of(judge->history, read->values[i]);
        if (put == 0) {
            violates(judge, "never_written", at, read->values[i]);
            return;
        }
        const struct causal_op *op = &judge->history->ops[put - 1];
        if (op->begun > read->ended)
            violates(judge, "told_before_written", at, op->number);
        else if (op->outcome == CAUSAL_REFUSED)
            violates(judge, "refused_and_done", at, op->number);
        else if (set_has(told, put - 1))
            violates(judge, "sibling_twice", at, op->number);
        set_add(told, put - 1);
    }
}

/* ---- what is known ---- */

static bool
is_done(const struct causal_op *op)
{
    return op->outcome == CAUSAL_DONE;
}

/* What whoever looks at the key from that position on must know of. Positions only grow. */
static void
settled_add(struct judge *judge, u64 position, u64 *seen, u64 *replaced)
{
    const struct causal_op *ops = judge->history->ops;
    while (judge->settled < judge->history->count &&
           ops[judge->by_end[judge->settled]].ended < position) {
        u32 at = judge->by_end[judge->settled++];
        if (!is_done(&ops[at])) continue;
        set_unite(judge, judge->settled_seen, set_of(judge, judge->seen, at));
        set_unite(judge, judge->settled_replaced, set_of(judge, judge->replaced, at));
    }
    set_unite(judge, seen, judge->settled_seen);
    set_unite(judge, replaced, judge->settled_replaced);
}

static void
read_know(struct judge *judge, u32 at)
{
    u64 *seen = set_of(judge, judge->seen, at), *replaced = set_of(judge, judge->replaced, at);
    const u64 *told = set_of(judge, judge->told, at);
    settled_add(judge, judge->history->ops[at].begun, seen, replaced);
    for (u32 i = 0; i < judge->history->count; i++) {
        if (!set_has(told, i) || i == at) continue;
        set_unite(judge, seen, set_of(judge, judge->seen, i));
        set_unite(judge, replaced, set_of(judge, judge->replaced, i));
    }
}

static void
write_know(struct judge *judge, u32 at)
{
    const struct causal_op *ops = judge->history->ops, *op = &ops[at];
    u64 *seen = set_of(judge, judge->seen, at), *replaced = set_of(judge, judge->replaced, at);
    u64 *may = set_of(judge, judge->may, at);
    if (op->plain) {
        /* What it has read had seen, and replaced, all that was settled: all of it goes. */
        settled_add(judge, op->begun, seen, replaced);
        u64 until = is_done(op) ? op->ended : UINT64_MAX; /* unknown: it may be done later */
        for (u32 i = 0; i < judge->history->count; i++)
            if (ops[i].kind == CAUSAL_PUT && i != at && ops[i].begun < until) set_add(may, i);
    } else if (op->saw != 0) {
        set_unite(judge, seen, set_of(judge, judge->seen, op->saw - 1));
        set_unite(judge, may, set_of(judge, judge->told, op->saw - 1));
    }
    set_unite(judge, replaced, seen);
    set_add(seen, at);
}

/* ---- judgement ---- */

/* What is not told though it was seen: replaced by what is told, step by step, or by deletes. */
static void
explain(struct judge *judge, u32 at)
{
    const struct causal_history *history = judge->history;
    const struct causal_op *read = &history->ops[at];
    u64 *explained = judge->explained;
    u32 queued = 0;
    memcpy(explained, set_of(judge, judge->told, at), judge->words * sizeof(*explained));
    for (u32 i = 0; i < history->count && history->ops[i].begun < read->ended; i++) {
        const struct causal_op *op = &history->ops[i];
        if (op->kind == CAUSAL_DELETE && op->outcome != CAUSAL_REFUSED) set_add(explained, i);
        if (set_has(explained, i)) judge->queue[queued++] = i;
    }
    while (queued > 0) {
        const u64 *may = set_of(judge, judge->may, judge->queue[--queued]);
        for (u32 w = 0; w < judge->words; w++) {
            for (u64 more = may[w] & ~explained[w]; more != 0; more &= more - 1) {
                u32 put = w * WORD_BITS + (u32)__builtin_ctzll(more);
                if (history->ops[put].outcome == CAUSAL_REFUSED ||
                    history->ops[put].begun > read->ended)
                    continue;
                set_add(explained, put);
                judge->queue[queued++] = put;
            }
        }
    }
}

static void
read_judge(struct judge *judge, u32 at)
{
    const struct causal_history *history = judge->history;
    const struct causal_op *read = &history->ops[at];
    const u64 *told = set_of(judge, judge->told, at), *seen = set_of(judge, judge->seen, at);
    const u64 *replaced = set_of(judge, judge->replaced, at);
    for (u32 i = 0; i < history->count; i++) {
        if (!set_has(told, i)) continue;
        for (u32 k = 0; k < history->count; k++)
            if (set_has(told, k) && set_has(set_of(judge, judge->replaced, k), i))
                violates(judge, "sibling_beside", at, history->ops[i].number);
        if (set_has(replaced, i)) violates(judge, "sibling_returned", at, history->ops[i].number);
    }
    if (read->latest && read->value_count > 0) return;
    explain(judge, at);
    for (u32 i = 0; i < history->count; i++)
        if (history->ops[i].kind == CAUSAL_PUT && set_has(seen, i) && !set_has(judge->explained, i))
            violates(judge, "sibling_lost", at, history->ops[i].number);
}

static int
ends_order(const void *a, const void *b, void *arg)
{
    const struct causal_op *ops = arg;
    u64 one = ops[*(const u32 *)a].ended, two = ops[*(const u32 *)b].ended;
    return (one > two) - (one < two);
}

static u64 *
sets_new(const struct judge *judge)
{
    u64 *sets = calloc((size_t)judge->history->count * judge->words + 1, sizeof(*sets));
    CHECK(sets != NULL);
    return sets;
}

void
causal_judge(const struct causal_history *history, struct causal_verdict *out)
{
    struct judge judge = {.history = history, .words = history->count / WORD_BITS + 1, .out = out};
    *out = (struct causal_verdict){0};
    judge.replaced = sets_new(&judge);
    judge.seen = sets_new(&judge);
    judge.may = sets_new(&judge);
    judge.told = sets_new(&judge);
    judge.settled_seen = calloc(3 * (size_t)judge.words, sizeof(u64));
    judge.by_end = calloc(2 * (size_t)history->count + 1, sizeof(u32));
    CHECK(judge.settled_seen != NULL && judge.by_end != NULL);
    judge.settled_replaced = judge.settled_seen + judge.words;
    judge.explained = judge.settled_replaced + judge.words;
    judge.queue = judge.by_end + history->count;
    for (u32 i = 0; i < history->count; i++)
        judge.by_end[i] = i;
    qsort_r(judge.by_end, history->count, sizeof(u32), ends_order, history->ops);
    for (u32 i = 0; i < history->count; i++)
        if (history->ops[i].kind == CAUSAL_READ && is_done(&history->ops[i])) told_check(&judge, i);
    for (u32 i = 0; i < history->count && out->rule == NULL; i++) {
        if (history->ops[i].kind == CAUSAL_READ) {
            if (is_done(&history->ops[i])) read_know(&judge, i);
        } else {
            write_know(&judge, i);
        }
    }
    for (u32 i = 0; i < history->count && out->rule == NULL; i++)
        if (history->ops[i].kind == CAUSAL_READ && is_done(&history->ops[i])) read_judge(&judge, i);
    free(judge.replaced);
    free(judge.seen);
    free(judge.may);
    free(judge.told);
    free(judge.settled_seen);
    free(judge.by_end);
}
