/* SPDX-License-Identifier: MIT
 *
 * dvvset.c -- see dvvset.h. Vectors and values are sorted, so that a sync is one merge and equal
 * sets have equal bytes.
 */
#include "cluster/dvvset.h"

#include "base/fault.h"

static int
actor_compare(struct dvv_actor a, struct dvv_actor b)
{
    if (a.incarnation != b.incarnation) return a.incarnation < b.incarnation ? -1 : 1;
    return a.partition < b.partition ? -1 : a.partition > b.partition;
}

static int
dot_compare(const struct dvv_value *a, const struct dvv_value *b)
{
    int order = actor_compare(a->actor, b->actor);
    if (order != 0) return order;
    return a->counter < b->counter ? -1 : a->counter > b->counter;
}

/* ---- vectors ---- */

void
dvv_vector_init(struct dvv_vector *vector, struct budget *budget)
{
    *vector = (struct dvv_vector){.budget = budget};
}

void
dvv_vector_deinit(struct dvv_vector *vector)
{
    mem_free(vector->budget, vector->entries, vector->capacity * sizeof(*vector->entries));
    *vector = (struct dvv_vector){.budget = vector->budget};
}

static bool
vector_reserve(struct dvv_vector *vector, u32 capacity)
{
    if (capacity <= vector->capacity) return true;
    struct dvv_entry *more =
        mem_realloc(vector->budget, vector->entries, vector->capacity * sizeof(*more),
                    capacity * sizeof(*more));
    if (more == NULL) return false;
    vector->entries = more;
    vector->capacity = capacity;
    return true;
}

/* The first entry that is not below actor. */
static u32
vector_find(const struct dvv_vector *vector, struct dvv_actor actor)
{
    u32 first = 0, last = vector->count;
    while (first < last) {
        u32 middle = (first + last) / 2;
        if (actor_compare(vector->entries[middle].actor, actor) < 0)
            first = middle + 1;
        else
            last = middle;
    }
    return first;
}

u64
dvv_vector_counter(const struct dvv_vector *vector, struct dvv_actor actor)
{
    u32 at = vector_find(vector, actor);
    if (at == vector->count || actor_compare(vector->entries[at].actor, actor) != 0) return 0;
    return vector->entries[at].counter;
}

static bool
vector_saw(const struct dvv_vector *vector, const struct dvv_value *value)
{
    return value->counter <= dvv_vector_counter(vector, value->actor);
}

/* How many actors both have together. */
static u32
vector_union_count(const struct dvv_vector *a, const struct dvv_vector *b)
{
    u32 i = 0, j = 0, count = 0;
    for (; i < a->count && j < b->count; count++) {
        int order = actor_compare(a->entries[i].actor, b->entries[j].actor);
        if (order <= 0) i++;
        if (order >= 0) j++;
    }
    return count + (a->count - i) + (b->count - j);
}

/* There is room. */
static void
vector_raise(struct dvv_vector *vector, struct dvv_entry entry)
{
    u32 at = vector_find(vector, entry.actor);
    struct dvv_entry *there = &vector->entries[at];
    if (at < vector->count && actor_compare(there->actor, entry.actor) == 0) {
        there->counter = MAX(there->counter, entry.counter);
        return;
    }
    CHECK(vector->count < vector->capacity);
    memmove(there + 1, there, (vector->count - at) * sizeof(*there));
    *there = entry;
    vector->count++;
}

/* ---- sets ---- */

void
dvvset_init(struct dvvset *set, struct budget *budget)
{
    *set = (struct dvvset){0};
    dvv_vector_init(&set->seen, budget);
}

void
dvvset_deinit(struct dvvset *set)
{
    struct budget *budget = set->seen.budget;
    mem_free(budget, set->values, set->capacity * sizeof(*set->values));
    dvv_vector_deinit(&set->seen);
    dvvset_init(set, budget);
}

static bool
values_reserve(struct dvvset *set, u32 capacity)
{
    if (capacity <= set->capacity) return true;
    struct dvv_value *more = mem_realloc(set->seen.budget, set->values,
                                         set->capacity * sizeof(*more), capacity * sizeof(*more));
    if (more == NULL) return false;
    set->values = more;
    set->capacity = capacity;
    return true;
}

static bool
value_valid(const struct dvv_value *value)
{
    return value->counter > 0 && (value->flags & ~DVV_FLAGS_KNOWN) == 0 &&
           value->data.size <= LIMIT_VALUE_BYTES &&
           ((value->flags & DVV_DELETED) == 0 || value->data.size == 0);
}

bool
dvvset_check(const struct dvvset *set)
{
    const struct dvv_vector *seen = &set->seen;
    if (seen->count > LIMIT_DVV_ACTORS || set->count > LIMIT_DVV_SIBLINGS) return false;
    for (u32 i = 0; i < seen->count; i++) {
        const struct dvv_entry *entry = &seen->entries[i];
        if (entry->counter == 0) return false;
        if (i > 0 && actor_compare(entry[-1].actor, entry->actor) >= 0) return false;
    }
    for (u32 i = 0; i < set->count; i++) {
        const struct dvv_value *value = &set->values[i];
        if (!value_valid(value) || !vector_saw(seen, value)) return false;
        if (i > 0 && dot_compare(value - 1, value) >= 0) return false;
    }
    return true;
}

/* Actors after an update; none of them may have seen the new dot. */
static u32
update_actor_count(const struct dvvset *set, const struct dvv_vector *context,
                   struct dvv_actor actor)
{
    u32 count = context != NULL ? vector_union_count(&set->seen, context) : set->seen.count;
    bool known = dvv_vector_counter(&set->seen, actor) > 0 ||
                 (context != NULL && dvv_vector_counter(context, actor) > 0);
    return count + !known;
}

status
dvvset_update(struct dvvset *set, const struct dvv_vector *context, const struct dvv_value *value)
{
    CHECK(value_valid(value)); /* sizes are refused at the door */
    if (vector_saw(&set->seen, value)) return ST_CONFLICT;
    if (context != NULL && vector_saw(context, value)) return ST_CONFLICT;
    u32 kept = 0;
    for (u32 i = 0; i < set->count; i++)
        kept += context == NULL || !vector_saw(context, &set->values[i]);
    u32 actors = update_actor_count(set, context, value->actor);
    if (kept + 1 > LIMIT_DVV_SIBLINGS_WRITE || actors > LIMIT_DVV_ACTORS) return ST_TOO_LARGE;
    if (!values_reserve(set, kept + 1) || !vector_reserve(&set->seen, actors)) return ST_NO_MEMORY;

    /* Nothing fails from here on. */
    kept = 0;
    for (u32 i = 0; i < set->count; i++)
        if (context == NULL || !vector_saw(context, &set->values[i]))
            set->values[kept++] = set->values[i];
    u32 at = kept;
    while (at > 0 && dot_compare(&set->values[at - 1], value) > 0)
        at--;
    memmove(&set->values[at + 1], &set->values[at], (kept - at) * sizeof(*set->values));
    set->values[at] = *value;
    set->count = kept + 1;
    for (u32 i = 0; context != NULL && i < context->count; i++)
        vector_raise(&set->seen, context->entries[i]);
    vector_raise(&set->seen, (struct dvv_entry){.actor = value->actor, .counter = value->counter});
    AUDIT("cluster.dvvset.updated", dvvset_check(set));
    return ST_OK;
}

/* The values of both in the order of their dots, each once, that nobody knows to be replaced: what
 * both have, and what one has and the other never saw. out NULL: only counts. */
static u32
sync_values(const struct dvvset *a, const struct dvvset *b, struct dvv_value *out)
{
    u32 i = 0, j = 0, count = 0;
    while (i < a->count || j < b->count) {
        int order = i == a->count   ? 1
                    : j == b->count ? -1
                                    : dot_compare(&a->values[i], &b->values[j]);
        const struct dvv_value *value = order <= 0 ? &a->values[i] : &b->values[j];
        bool keep = order == 0 || !vector_saw(order < 0 ? &b->seen : &a->seen, value);
        if (order <= 0) i++;
        if (order >= 0) j++;
        if (!keep) continue;
        if (out != NULL) out[count] = *value;
        count++;
    }
    return count;
}

status
dvvset_sync(const struct dvvset *a, const struct dvvset *b, struct dvvset *out)
{
    CHECK(out != a && out != b && out->count == 0 && out->seen.count == 0);
    u32 actors = vector_union_count(&a->seen, &b->seen);
    u32 count = sync_values(a, b, NULL);
    if (count > LIMIT_DVV_SIBLINGS || actors > LIMIT_DVV_ACTORS) return ST_TOO_LARGE;
    if (!values_reserve(out, count) || !vector_reserve(&out->seen, actors)) return ST_NO_MEMORY;
    out->count = sync_values(a, b, out->values);
    for (u32 i = 0; i < a->seen.count; i++)
        vector_raise(&out->seen, a->seen.entries[i]);
    for (u32 i = 0; i < b->seen.count; i++)
        vector_raise(&out->seen, b->seen.entries[i]);
    AUDIT("cluster.dvvset.united", dvvset_check(out));
    return ST_OK;
}

void
dvvset_bury(struct dvvset *set)
{
    u32 kept = 0;
    for (u32 i = 0; i < set->count; i++)
        if ((set->values[i].flags & DVV_DELETED) == 0) set->values[kept++] = set->values[i];
    set->count = kept;
}

const struct dvv_value *
dvvset_latest(const struct dvvset *set)
{
    const struct dvv_value *latest = NULL;
    for (u32 i = 0; i < set->count; i++) /* by dot: of equal clocks the highest dot stays */
        if (latest == NULL || set->values[i].version >= latest->version) latest = &set->values[i];
    return latest;
}

u32
dvvset_prune(struct dvvset *set, bool (*gone)(struct dvv_actor actor, void *arg), void *arg)
{
    u32 kept = 0;
    for (u32 i = 0; i < set->seen.count; i++) {
        struct dvv_entry entry = set->seen.entries[i];
        bool alive = false;
        for (u32 v = 0; v < set->count && !alive; v++)
            alive = actor_compare(set->values[v].actor, entry.actor) == 0;
        if (alive || !gone(entry.actor, arg)) set->seen.entries[kept++] = entry;
    }
    u32 dropped = set->seen.count - kept;
    set->seen.count = kept;
    return dropped;
}
