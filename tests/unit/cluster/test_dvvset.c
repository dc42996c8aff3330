/* SPDX-License-Identifier: MIT
 *
 * test_dvvset.c -- siblings and their past. The second half runs random histories of replicas that
 * write, sync, send old states late and lose their disks, beside an oracle that keeps the set of
 * all events that each state has heard of: causality by definition, with no vector at all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "../../fewer.h"
#include "base/prng.h"
#include "cluster/dvvset.h"

static struct budget budget;

static struct dvv_value
value(u64 incarnation, u64 counter, u64 version, const char *text)
{
    return (struct dvv_value){.actor = {.incarnation = incarnation, .partition = 7},
                              .counter = counter,
                              .version = version,
                              .data = BYTES(text, strlen(text))};
}

static void
update(struct dvvset *set, const struct dvv_vector *context, struct dvv_value v)
{
    assert_true(ok(dvvset_update(set, context, &v)));
    assert_true(dvvset_check(set));
}

/* target becomes what it and source know together. */
static void
sync_into(struct dvvset *target, const struct dvvset *source)
{
    struct dvvset out;
    dvvset_init(&out, &budget);
    assert_true(ok(dvvset_sync(target, source, &out)));
    assert_true(dvvset_check(&out));
    dvvset_deinit(target);
    *target = out;
}

static void
set_copy(const struct dvvset *set, struct dvvset *out)
{
    struct dvvset empty;
    dvvset_init(&empty, &budget);
    dvvset_init(out, &budget);
    assert_true(ok(dvvset_sync(set, &empty, out)));
}

static void
vector_copy(const struct dvv_vector *vector, struct dvv_vector *out)
{
    struct buf buf;
    buf_init(&buf, &budget);
    assert_true(ok(dvv_vector_encode(vector, &buf)));
    assert_true(ok(dvv_vector_decode(buf_bytes(&buf), out)));
    buf_deinit(&buf);
}

static bool
set_equal(const struct dvvset *a, const struct dvvset *b)
{
    struct buf x, y;
    buf_init(&x, &budget);
    buf_init(&y, &budget);
    assert_true(ok(dvvset_encode(a, &x)) && ok(dvvset_encode(b, &y)));
    bool equal = bytes_equal(buf_bytes(&x), buf_bytes(&y));
    buf_deinit(&x);
    buf_deinit(&y);
    return equal;
}

/* As the reference writes it: actors with their counters, and of each what is alive, newest first.
 */
static const char *
told(const struct dvvset *set)
{
    static char text[256];
    size_t size = 0;
    text[0] = 0;
    for (u32 i = 0; i < set->seen.count; i++) {
        const struct dvv_entry *entry = &set->seen.entries[i];
        size += (size_t)snprintf(text + size, sizeof(text) - size, "%s%c%u[", i > 0 ? " " : "",
                                 (char)entry->actor.incarnation, (u32)entry->counter);
        for (u32 k = set->count, before = 0; k-- > 0;) {
            const struct dvv_value *v = &set->values[k];
            if (v->actor.incarnation != entry->actor.incarnation) continue;
            size += (size_t)snprintf(text + size, sizeof(text) - size, "%s%.*s",
                                     before++ > 0 ? " " : "", (int)v->data.size, v->data.data);
        }
        size += (size_t)snprintf(text + size, sizeof(text) - size, "]");
    }
    return text;
}

/* A copy of set, to which somebody who saw context has written. */
static void
written(const struct dvvset *set, const struct dvvset *context, char actor, u64 counter,
        const char *text, struct dvvset *out)
{
    set_copy(set, out);
    update(out, context != NULL ? dvvset_context(context) : NULL,
           value((u64)actor, counter, 1, text));
}

static const char *
told_together(const struct dvvset *a, const struct dvvset *b)
{
    static char text[256];
    struct dvvset there, back;
    set_copy(a, &there);
    sync_into(&there, b);
    set_copy(b, &back);
    sync_into(&back, a);
    assert_true(set_equal(&there, &back));
    snprintf(text, sizeof(text), "%s", told(&there));
    dvvset_deinit(&there);
    dvvset_deinit(&back);
    return text;
}

/* ---- single steps ---- */

/* What the authors' own implementation in Erlang makes of its test cases (update, sync, and both in
 * turn). There a counter is the next one of its actor in the set, as in all of these. */
static void
the_cases_of_the_reference_come_out_alike(void **state)
{
    (void)state;
    struct dvvset none, a0, a1, a2, a3, a4, b0, c3, b3, beside, seen, peter;
    dvvset_init(&none, &budget);
    written(&none, NULL, 'a', 1, "v1", &a0);
    written(&a0, &a0, 'a', 2, "v2", &a1);
    written(&a1, &a1, 'b', 1, "v3", &a2);
    written(&a1, &a0, 'b', 1, "v4", &a3);
    written(&a1, &a0, 'a', 3, "v5", &a4);
    assert_string_equal(told(&a0), "a1[v1]");
    assert_string_equal(told(&a1), "a2[v2]");
    assert_string_equal(told(&a2), "a2[] b1[v3]");
    assert_string_equal(told(&a3), "a2[v2] b1[v4]");
    assert_string_equal(told(&a4), "a3[v5 v2]");

    written(&none, NULL, 'b', 1, "v2", &b0);
    written(&a1, &a1, 'b', 1, "v3", &b3);
    written(&a1, &a1, 'c', 1, "v3", &c3);
    written(&a0, NULL, 'a', 2, "v2", &beside);
    set_copy(&a0, &seen); /* of a, the first was replaced by what nothing is left of */
    seen.count = 0;
    assert_string_equal(told(&seen), "a1[]");
    assert_string_equal(told(&beside), "a2[v2 v1]");
    assert_string_equal(told_together(&seen, &beside), "a2[v2]");
    assert_string_equal(told_together(&a0, &a1), "a2[v2]");
    assert_string_equal(told_together(&c3, &b3), "a2[] b1[v3] c1[v3]");
    assert_string_equal(told_together(&a0, &b0), "a1[v1] b1[v2]");
    assert_string_equal(told_together(&seen, &b0), "a1[] b1[v2]");

    /* One reads v1, v2 comes beside it, and who has read replaces v1 alone. */
    written(&beside, &a0, 'a', 3, "v3", &peter);
    assert_string_equal(told(&peter), "a3[v3 v2]");
    struct dvvset *all[] = {&none, &a0, &a1, &a2, &a3, &a4, &b0, &b3, &c3, &beside, &seen, &peter};
    for (u32 i = 0; i < ARRAY_COUNT(all); i++)
        dvvset_deinit(all[i]);
    assert_int_equal(budget.used_bytes, 0);
}

static void
a_write_with_its_context_replaces_and_without_stands_beside(void **state)
{
    struct dvvset set;
    dvvset_init(&set, &budget);
    update(&set, NULL, value(1, 1, 10, "a"));
    update(&set, dvvset_context(&set), value(1, 2, 11, "b"));
    assert_int_equal(set.count, 1);
    update(&set, NULL, value(1, 3, 12, "c"));
    assert_int_equal(set.count, 2);
    update(&set, dvvset_context(&set), value(2, 1, 13, "d"));
    assert_int_equal(set.count, 1);
    assert_memory_equal(set.values[0].data.data, "d", 1);
    dvvset_deinit(&set);
}

/* The case that plain version vectors of servers get wrong: two clients read the same state and
 * both write through one server. */
static void
two_writers_through_one_server_are_siblings(void **state)
{
    struct dvvset set;
    dvvset_init(&set, &budget);
    update(&set, NULL, value(1, 1, 10, "a"));
    struct dvv_vector both;
    dvv_vector_init(&both, &budget);
    vector_copy(dvvset_context(&set), &both);
    update(&set, &both, value(1, 2, 11, "x"));
    update(&set, &both, value(1, 3, 12, "y"));
    assert_int_equal(set.count, 2);
    dvv_vector_deinit(&both);
    dvvset_deinit(&set);
}

static void
a_sync_drops_what_the_other_side_saw_replaced(void **state)
{
    struct dvvset a, b;
    dvvset_init(&a, &budget);
    update(&a, NULL, value(1, 1, 10, "old"));
    set_copy(&a, &b);
    update(&b, dvvset_context(&b), value(2, 1, 11, "new"));
    sync_into(&a, &b);
    assert_int_equal(a.count, 1);
    assert_memory_equal(a.values[0].data.data, "new", 3);
    assert_true(set_equal(&a, &b));
    dvvset_deinit(&a);
    dvvset_deinit(&b);
}

static void
a_counter_that_was_seen_is_refused_and_changes_nothing(void **state)
{
    struct dvvset set, before;
    dvvset_init(&set, &budget);
    update(&set, NULL, value(1, 5, 10, "a"));
    set_copy(&set, &before);
    struct dvv_value again = value(1, 5, 11, "b");
    assert_true(status_is(dvvset_update(&set, NULL, &again), ST_CONFLICT));
    again.counter = 4;
    assert_true(status_is(dvvset_update(&set, dvvset_context(&set), &again), ST_CONFLICT));
    /* A server that lost its disk meets a client that still knows what it wrote. */
    struct dvvset empty;
    dvvset_init(&empty, &budget);
    again.counter = 1;
    assert_true(status_is(dvvset_update(&empty, dvvset_context(&set), &again), ST_CONFLICT));
    assert_int_equal(empty.count + empty.seen.count, 0);
    assert_true(set_equal(&set, &before));
    dvvset_deinit(&set);
    dvvset_deinit(&before);
}

static void
the_highest_clock_is_the_latest_tombstones_included(void **state)
{
    struct dvvset set;
    dvvset_init(&set, &budget);
    assert_null(dvvset_latest(&set));
    update(&set, NULL, value(1, 1, 30, "a"));
    update(&set, NULL, value(2, 1, 20, "b"));
    assert_int_equal(dvvset_latest(&set)->version, 30);
    struct dvv_value gone = value(3, 1, 40, "");
    gone.flags = DVV_DELETED;
    update(&set, NULL, gone);
    assert_int_equal(dvvset_latest(&set)->flags, DVV_DELETED);
    update(&set, NULL, value(4, 1, 40, "tie"));
    assert_int_equal(dvvset_latest(&set)->actor.incarnation, 4);
    dvvset_deinit(&set);
}

static void
too_many_siblings_and_actors_are_refused(void **state)
{
    struct dvvset set;
    dvvset_init(&set, &budget);
    for (u64 i = 1; i <= LIMIT_DVV_SIBLINGS_WRITE; i++)
        update(&set, NULL, value(1, i, i, "v"));
    struct dvv_value more = value(1, 1000, 1, "v");
    assert_true(status_is(dvvset_update(&set, NULL, &more), ST_TOO_LARGE));
    assert_int_equal(set.count, LIMIT_DVV_SIBLINGS_WRITE);
    assert_true(ok(dvvset_update(&set, dvvset_context(&set), &more)));
    for (u64 i = 2; i <= LIMIT_DVV_ACTORS; i++)
        update(&set, dvvset_context(&set), value(i, 1, i, "v"));
    more = value(9999, 1, 1, "v");
    assert_true(status_is(dvvset_update(&set, dvvset_context(&set), &more), ST_TOO_LARGE));
    assert_true(dvvset_check(&set));
    dvvset_deinit(&set);
}

static void
a_budget_that_is_used_up_changes_nothing(void **state)
{
    for (u64 limit = 0; limit < 400; limit += 8) {
        struct budget small;
        budget_init(&small, "small", limit, NULL);
        struct dvvset set;
        dvvset_init(&set, &small);
        u32 done = 0;
        for (u64 i = 1; i <= 8; i++) {
            struct dvv_value v = value(i, 1, i, "v");
            status st = dvvset_update(&set, NULL, &v);
            if (ok(st)) done++;
            assert_true(ok(st) || status_is(st, ST_NO_MEMORY));
            assert_int_equal(set.count, done);
            assert_true(dvvset_check(&set));
        }
        dvvset_deinit(&set);
        assert_int_equal(small.used_bytes, 0);
    }
}

static bool
gone_one(struct dvv_actor actor, void *arg)
{
    return actor.incarnation == 1;
}

static void
pruning_forgets_gone_actors_but_keeps_their_values(void **state)
{
    struct dvvset set;
    dvvset_init(&set, &budget);
    update(&set, NULL, value(1, 1, 10, "a"));
    assert_int_equal(dvvset_prune(&set, gone_one, NULL), 0);
    update(&set, dvvset_context(&set), value(2, 1, 11, "b"));
    assert_int_equal(dvvset_prune(&set, gone_one, NULL), 1);
    assert_true(dvvset_check(&set));
    assert_int_equal(set.count, 1);
    assert_int_equal(set.seen.count, 1);
    dvvset_deinit(&set);
}

/* Why C3 is as strict as it is. */
static void
pruning_before_all_replicas_met_brings_a_replaced_value_back(void **state)
{
    struct dvvset behind, set;
    dvvset_init(&behind, &budget);
    update(&behind, NULL, value(1, 1, 10, "old"));
    set_copy(&behind, &set);
    update(&set, dvvset_context(&set), value(2, 1, 11, "new"));
    dvvset_prune(&set, gone_one, NULL);
    sync_into(&set, &behind);
    assert_int_equal(set.count, 2);
    dvvset_deinit(&set);
    dvvset_deinit(&behind);
}

/* ---- bytes ---- */

static void
every_byte_is_checked(void **state)
{
    struct dvvset set, back;
    dvvset_init(&set, &budget);
    dvvset_init(&back, &budget);
    update(&set, NULL, value(1, 3, 10, "hello"));
    update(&set, NULL, value(1, 4, 11, ""));
    update(&set, NULL, value(2, 1, 12, "x"));
    struct buf buf;
    buf_init(&buf, &budget);
    assert_true(ok(dvvset_encode(&set, &buf)));
    assert_true(ok(dvvset_decode(buf_bytes(&buf), &back)));
    assert_true(set_equal(&set, &back));
    for (size_t size = 0; size < buf.size; size++)
        assert_true(status_is(dvvset_decode(BYTES(buf.data, size), &back), ST_CORRUPT));
    /* A changed byte is refused, or is another set that is as good and has those very bytes. */
    u32 refused = 0;
    for (size_t at = 0; at < buf.size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            buf.data[at] ^= (u8)(1 << bit);
            struct dvvset other;
            dvvset_init(&other, &budget);
            if (ok(dvvset_decode(buf_bytes(&buf), &other))) {
                assert_true(dvvset_check(&other));
                struct buf again;
                buf_init(&again, &budget);
                assert_true(ok(dvvset_encode(&other, &again)));
                assert_true(bytes_equal(buf_bytes(&again), buf_bytes(&buf)));
                buf_deinit(&again);
            } else {
                refused++;
            }
            dvvset_deinit(&other);
            buf.data[at] ^= (u8)(1 << bit);
        }
    }
    assert_true(refused > 100);
    buf_deinit(&buf);
    dvvset_deinit(&set);
    dvvset_deinit(&back);
}

/* ---- histories beside the oracle ---- */

enum { EVENTS = 256, REPLICAS = 4, CLIENTS = 4, LATE = 6 };

struct events {
    u64 bits[EVENTS / 64];
};

/* What a state has heard of, and what of it is alive. */
struct heard {
    struct events all;
    struct events alive;
};

struct both {
    struct dvvset set;
    struct heard heard;
};

struct client {
    struct dvv_vector context;
    struct events seen;
};

struct history {
    struct prng prng;
    struct both replicas[REPLICAS];
    struct both late[LATE]; /* states on their way */
    struct client clients[CLIENTS];
    struct dvv_actor actors[REPLICAS]; /* as whom a replica writes now */
    u64 counters[REPLICAS];
    u64 incarnation_next;
    u8 payload[EVENTS];
    struct dvv_value values[EVENTS];
    u32 event_count;
    u32 siblings_max;
};

static bool
event_in(const struct events *events, u32 event)
{
    return (events->bits[event / 64] >> event % 64 & 1) != 0;
}

static void
both_check(const struct history *h, const struct both *both)
{
    assert_true(dvvset_check(&both->set));
    u32 alive = 0;
    for (u32 e = 0; e < h->event_count; e++)
        alive += event_in(&both->heard.alive, e);
    assert_int_equal(both->set.count, alive); /* none lost, none too many: D1 */
    for (u32 i = 0; i < both->set.count; i++) {
        const struct dvv_value *v = &both->set.values[i];
        u32 event = v->data.data[0];
        assert_true(event_in(&both->heard.alive, event));
        assert_int_equal(v->counter, h->values[event].counter);
        assert_int_equal(v->actor.incarnation, h->values[event].actor.incarnation);
    }
}

static void
heard_sync(struct heard *a, const struct heard *b)
{
    for (u32 w = 0; w < EVENTS / 64; w++) {
        u64 alive = (a->alive.bits[w] & b->alive.bits[w]) | (a->alive.bits[w] & ~b->all.bits[w]) |
                    (b->alive.bits[w] & ~a->all.bits[w]);
        a->alive.bits[w] = alive;
        a->all.bits[w] |= b->all.bits[w];
    }
}

static void
both_sync(struct history *h, struct both *target, const struct both *source)
{
    sync_into(&target->set, &source->set);
    heard_sync(&target->heard, &source->heard);
    both_check(h, target);
}

static void
history_write(struct history *h, u32 r, const struct client *client)
{
    if (h->event_count == EVENTS) return;
    struct both *both = &h->replicas[r];
    h->counters[r] += prng_range(&h->prng, 1, 3);
    u32 event = h->event_count++;
    h->payload[event] = (u8)event;
    h->values[event] = (struct dvv_value){.actor = h->actors[r],
                                          .counter = h->counters[r],
                                          .version = prng_below(&h->prng, 100),
                                          .data = BYTES(&h->payload[event], 1)};
    assert_true(
        ok(dvvset_update(&both->set, client != NULL ? &client->context : NULL, &h->values[event])));
    for (u32 w = 0; w < EVENTS / 64 && client != NULL; w++) {
        both->heard.all.bits[w] |= client->seen.bits[w];
        both->heard.alive.bits[w] &= ~client->seen.bits[w];
    }
    both->heard.all.bits[event / 64] |= 1ull << event % 64;
    both->heard.alive.bits[event / 64] |= 1ull << event % 64;
    both_check(h, both);
    h->siblings_max = MAX(h->siblings_max, both->set.count);
}

static void
history_read(struct history *h, struct client *client, u32 r)
{
    vector_copy(dvvset_context(&h->replicas[r].set), &client->context);
    client->seen = h->replicas[r].heard.all;
}

static void
both_clear(struct both *both)
{
    dvvset_deinit(&both->set);
    both->heard = (struct heard){0};
}

/* A disk is lost: nothing is known any more, and who writes is somebody else. */
static void
history_wipe(struct history *h, u32 r)
{
    both_clear(&h->replicas[r]);
    h->actors[r].incarnation = h->incarnation_next++;
    h->counters[r] = 0;
}

static void
laws_check(const struct history *h, const struct dvvset *a, const struct dvvset *b,
           const struct dvvset *c)
{
    struct dvvset ab, ba, left, right, again;
    set_copy(a, &ab);
    sync_into(&ab, b);
    set_copy(b, &ba);
    sync_into(&ba, a);
    assert_true(set_equal(&ab, &ba));
    set_copy(&ab, &left);
    sync_into(&left, c);
    set_copy(b, &right);
    sync_into(&right, c);
    set_copy(a, &again);
    sync_into(&again, &right);
    assert_true(set_equal(&left, &again));
    sync_into(&again, &again);
    assert_true(set_equal(&left, &again));
    sync_into(&again, a);
    assert_true(set_equal(&left, &again));
    dvvset_deinit(&ab);
    dvvset_deinit(&ba);
    dvvset_deinit(&left);
    dvvset_deinit(&right);
    dvvset_deinit(&again);
}

static bool
gone_before(struct dvv_actor actor, void *arg)
{
    return actor.incarnation < *(u64 *)arg && actor.incarnation >= REPLICAS;
}

static void
history_run(u64 seed, u32 *siblings_max)
{
    static struct history h;
    memset(&h, 0, sizeof(h));
    prng_init(&h.prng, seed);
    for (u32 i = 0; i < REPLICAS; i++) {
        dvvset_init(&h.replicas[i].set, &budget);
        h.actors[i] = (struct dvv_actor){.incarnation = h.incarnation_next++, .partition = 3};
    }
    for (u32 i = 0; i < LATE; i++)
        dvvset_init(&h.late[i].set, &budget);
    for (u32 i = 0; i < CLIENTS; i++)
        dvv_vector_init(&h.clients[i].context, &budget);
    while (h.event_count < EVENTS) {
        u32 r = (u32)prng_below(&h.prng, REPLICAS);
        struct client *client = &h.clients[prng_below(&h.prng, CLIENTS)];
        struct both *late = &h.late[prng_below(&h.prng, LATE)];
        switch (prng_below(&h.prng, 16)) {
        case 0:
            /* Siblings from nothing are rare, else they are all there is. */
            if (h.replicas[r].set.count < 12) history_write(&h, r, NULL);
            break;
        case 1:
        case 2:
        case 3:
        case 4:
            if (h.replicas[r].set.count < 20) history_write(&h, r, client);
            break;
        case 5:
        case 6:
        case 7:
        case 8:
            history_read(&h, client, r);
            break;
        case 9:
        case 10:
        case 11:
            both_sync(&h, &h.replicas[r], &h.replicas[prng_below(&h.prng, REPLICAS)]);
            break;
        case 12:
            both_clear(late);
            sync_into(&late->set, &h.replicas[r].set);
            late->heard = h.replicas[r].heard;
            break;
        case 13:
            both_sync(&h, &h.replicas[r], late);
            break;
        case 14:
            if (prng_chance(&h.prng, 1, 8)) history_wipe(&h, r);
            break;
        case 15:
            /* Without anything else, a client reads and writes at once. */
            history_read(&h, client, r);
            history_write(&h, r, client);
            laws_check(&h, &h.replicas[r].set, &late->set,
                       &h.replicas[prng_below(&h.prng, REPLICAS)].set);
            break;
        }
    }
    /* All meet; then incarnations that are gone may be forgotten: nothing changes for readers. */
    for (u32 i = 1; i < REPLICAS; i++)
        both_sync(&h, &h.replicas[0], &h.replicas[i]);
    for (u32 i = 1; i < REPLICAS; i++) {
        both_sync(&h, &h.replicas[i], &h.replicas[0]);
        assert_true(set_equal(&h.replicas[0].set, &h.replicas[i].set));
    }
    for (u32 i = 0; i < REPLICAS; i++) {
        dvvset_prune(&h.replicas[i].set, gone_before, &h.incarnation_next);
        both_check(&h, &h.replicas[i]);
    }
    for (u32 i = 1; i < REPLICAS; i++)
        both_sync(&h, &h.replicas[i], &h.replicas[0]);
    *siblings_max = MAX(*siblings_max, h.siblings_max);
    for (u32 i = 0; i < REPLICAS; i++)
        dvvset_deinit(&h.replicas[i].set);
    for (u32 i = 0; i < LATE; i++)
        dvvset_deinit(&h.late[i].set);
    for (u32 i = 0; i < CLIENTS; i++)
        dvv_vector_deinit(&h.clients[i].context);
    assert_int_equal(budget.used_bytes, 0);
}

static void
random_histories_agree_with_causal_histories(void **state)
{
    u32 siblings_max = 0;
    for (u64 seed = 1; seed <= 200; seed++)
        history_run(seed, &siblings_max);
    print_message("at most %u siblings\n", siblings_max);
    assert_true(siblings_max > 5);
}

/* Writers that begin with the reply of their last write, at any replica; replicas sync now and
 * then. With plain vectors of servers this explodes. */
static void
there_are_never_more_siblings_than_writers(void **state)
{
    for (u32 writers = 1; writers <= 5; writers++) {
        struct prng prng;
        prng_init(&prng, writers);
        struct dvvset replicas[3];
        struct dvv_vector contexts[5];
        u64 counters[3] = {0};
        u32 most = 0;
        for (u32 i = 0; i < 3; i++)
            dvvset_init(&replicas[i], &budget);
        for (u32 i = 0; i < 5; i++)
            dvv_vector_init(&contexts[i], &budget);
        for (u32 i = 0; i < 20000; i++) {
            u32 r = (u32)prng_below(&prng, 3), w = (u32)prng_below(&prng, writers);
            struct dvv_value v = value(r + 1, ++counters[r], i, "v");
            update(&replicas[r], &contexts[w], v);
            vector_copy(dvvset_context(&replicas[r]), &contexts[w]);
            if (prng_chance(&prng, 1, 3)) sync_into(&replicas[r], &replicas[prng_below(&prng, 3)]);
            for (u32 k = 0; k < 3; k++)
                most = MAX(most, replicas[k].count);
        }
        assert_true(most <= writers);
        assert_true(writers == 1 || most >= 2);
        for (u32 i = 0; i < 3; i++)
            dvvset_deinit(&replicas[i]);
        for (u32 i = 0; i < 5; i++)
            dvv_vector_deinit(&contexts[i]);
    }
}

/* What a reader of these two is told: the union of both. */
static void
read_two(const struct dvvset *replicas, u32 a, u32 b, struct dvvset *out)
{
    dvvset_init(out, &budget);
    assert_true(ok(dvvset_sync(&replicas[a], &replicas[b], out)));
}

/* Two clients read and write one key through whoever answers, a million times: a quorum of two of
 * three replicas is read, and later, when the other one may have written any number of times, what
 * was read is replaced at one of them and brought to a second. The third lags for as long as chance
 * wants. However they interleave, nobody ever sees more than the last write of each. */
static void
two_writers_interleaved_a_million_times_leave_two_siblings_at_most(void **state)
{
    (void)state;
    enum { OPERATIONS = FEWER(1000000) };
    struct prng prng;
    struct dvvset replicas[3], seen;
    struct dvv_vector contexts[2];
    u64 counters[3] = {0}, writes[2] = {0}, concurrent = 0;
    bool has_read[2] = {false};
    prng_init(&prng, 2);
    for (u32 i = 0; i < 3; i++)
        dvvset_init(&replicas[i], &budget);
    for (u32 w = 0; w < 2; w++)
        dvv_vector_init(&contexts[w], &budget);
    for (u32 i = 0; i < OPERATIONS; i++) {
        u32 w = (u32)prng_below(&prng, 2), r = (u32)prng_below(&prng, 3);
        u32 second = (r + 1 + (u32)prng_below(&prng, 2)) % 3;
        if (!has_read[w]) {
            read_two(replicas, r, second, &seen);
            assert_in_range(seen.count, i > 2, 2);
            concurrent += seen.count == 2;
            dvv_vector_deinit(&contexts[w]);
            contexts[w] = seen.seen; /* moved */
            seen.seen = (struct dvv_vector){.budget = &budget};
            dvvset_deinit(&seen);
        } else {
            struct dvv_value v = value(r + 1, ++counters[r], i, w == 0 ? "x" : "y");
            assert_true(ok(dvvset_update(&replicas[r], &contexts[w], &v)));
            sync_into(&replicas[second], &replicas[r]);
            assert_in_range(replicas[second].count, 1, 2);
            writes[w]++;
        }
        has_read[w] = !has_read[w];
    }
    assert_true(concurrent > OPERATIONS / 10);
    assert_true(writes[0] > OPERATIONS / 5 && writes[1] > OPERATIONS / 5);
    /* In the end, when each has read and written alone, one value is left. */
    for (u32 r = 1; r < 3; r++)
        sync_into(&replicas[0], &replicas[r]);
    update(&replicas[0], dvvset_context(&replicas[0]), value(1, ++counters[0], OPERATIONS, "z"));
    assert_int_equal(replicas[0].count, 1);
    for (u32 i = 0; i < 3; i++)
        dvvset_deinit(&replicas[i]);
    for (u32 w = 0; w < 2; w++)
        dvv_vector_deinit(&contexts[w]);
    assert_int_equal(budget.used_bytes, 0);
}

/* A delete that stands for nothing: what its writer saw goes everywhere, what came meanwhile stays.
 */
static void
buried_tombstones_replace_what_they_saw(void **state)
{
    (void)state;
    struct dvvset a, b;
    struct dvv_vector seen;
    dvv_vector_init(&seen, &budget);
    dvvset_init(&a, &budget);
    dvvset_init(&b, &budget);
    update(&a, NULL, value(1, 1, 1, "old"));
    sync_into(&b, &a);
    vector_copy(dvvset_context(&a), &seen);
    update(&b, NULL, value(2, 1, 2, "meanwhile"));
    struct dvv_value gone = value(1, 2, 3, "");
    gone.flags = DVV_DELETED;
    update(&a, &seen, gone);
    assert_int_equal(a.count, 1);
    dvvset_bury(&a);
    assert_true(dvvset_check(&a));
    assert_int_equal(a.count, 0);
    assert_null(dvvset_latest(&a));
    sync_into(&b, &a);
    assert_int_equal(b.count, 1);
    assert_int_equal(b.values[0].version, 2);
    sync_into(&a, &b);
    assert_int_equal(a.count, 1);
    dvv_vector_deinit(&seen);
    dvvset_deinit(&a);
    dvvset_deinit(&b);
}

int
main(void)
{
    budget_init(&budget, "test", MIB(64), NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cases_of_the_reference_come_out_alike),
        cmocka_unit_test(a_write_with_its_context_replaces_and_without_stands_beside),
        cmocka_unit_test(two_writers_through_one_server_are_siblings),
        cmocka_unit_test(a_sync_drops_what_the_other_side_saw_replaced),
        cmocka_unit_test(a_counter_that_was_seen_is_refused_and_changes_nothing),
        cmocka_unit_test(the_highest_clock_is_the_latest_tombstones_included),
        cmocka_unit_test(too_many_siblings_and_actors_are_refused),
        cmocka_unit_test(a_budget_that_is_used_up_changes_nothing),
        cmocka_unit_test(pruning_forgets_gone_actors_but_keeps_their_values),
        cmocka_unit_test(pruning_before_all_replicas_met_brings_a_replaced_value_back),
        cmocka_unit_test(every_byte_is_checked),
        cmocka_unit_test(random_histories_agree_with_causal_histories),
        cmocka_unit_test(there_are_never_more_siblings_than_writers),
        cmocka_unit_test(two_writers_interleaved_a_million_times_leave_two_siblings_at_most),
        cmocka_unit_test(buried_tombstones_replace_what_they_saw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
