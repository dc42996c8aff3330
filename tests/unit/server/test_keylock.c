/* SPDX-License-Identifier: MIT
 *
 * test_keylock.c -- who gets which lock in which order. A step of a fiber appends to the trace:
 * "+a" got, "-a" gave back; a is a key's letter, * is all keys.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/prng.h"
#include "io/io.h"
#include "io/sim.h"
#include "server/keylock.h"

static struct keylock_table table;
static char trace[512];

static void
note(char what, char who)
{
    size_t at = strlen(trace);
    CHECK(at + 4 < sizeof(trace));
    snprintf(trace + at, sizeof(trace) - at, "%s%c%c", at == 0 ? "" : " ", what, who);
}

struct step {
    char name;
    const char *keys; /* letters in ascending order; "*": all */
    u64 start_ms, hold_ms;
    u64 patience_ms; /* for all keys */
    char all_next;   /* of this name it takes all keys at once when it has given its own back */
};

static MAY_YIELD void
take_all(char name, u64 patience_ms, u64 hold_ms)
{
    status st = keylock_acquire_all(&table, io_now_ns() + patience_ms * NS_PER_MS);
    if (!ok(st)) {
        CHECK(status_is(st, ST_TIMED_OUT));
        note('!', name);
        return;
    }
    CHECK(keylock_held(&table, 'a') && keylock_held(&table, 12345));
    note('+', name);
    fiber_sleep_ns(hold_ms * NS_PER_MS);
    note('-', name);
    keylock_release_all(&table);
}

static MAY_YIELD void
run_step(void *arg)
{
    const struct step *step = arg;
    fiber_sleep_ns(step->start_ms * NS_PER_MS);
    if (step->keys[0] == '*') {
        take_all(step->name, step->patience_ms, step->hold_ms);
        return;
    }
    u64 hashes[8];
    struct keylock locks[8];
    u32 count = 0;
    for (const char *key = step->keys; *key != '\0'; key++)
        hashes[count++] = (u64)*key;
    keylock_acquire(&table, hashes, locks, count);
    CHECK(keylock_held(&table, hashes[0]));
    note('+', step->name);
    fiber_sleep_ns(step->hold_ms * NS_PER_MS);
    note('-', step->name);
    keylock_release(&table, locks, count);
    if (step->all_next != '\0') take_all(step->all_next, 9999, 100);
}

static MAY_YIELD status
run_story(void *arg)
{
    const struct step *steps = arg;
    for (u32 i = 0; steps[i].keys != NULL; i++) {
        union {
            const struct step *in;
            void *out;
        } step = {.in = &steps[i]};
        CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "step", run_step, step.out)));
    }
    fiber_sleep_ns(10 * NS_PER_S);
    CHECK(table.held == 0 && table.passing == 0 && table.all_wanted == 0 && !table.all_held);
    return ST_OK;
}

static void
expect(struct step *steps, const char *expected)
{
    for (u64 seed = 1; seed <= 5; seed++) {
        keylock_table_init(&table);
        trace[0] = '\0';
        assert_true(ok(sim_run_main(seed, 1, run_story, steps)));
        assert_string_equal(trace, expected);
    }
}

static void
one_key_is_locked_by_one(void **state)
{
    (void)state;
    struct step steps[] = {{.name = '1', .keys = "a", .start_ms = 10, .hold_ms = 100},
                           {.name = '2', .keys = "ab", .start_ms = 20, .hold_ms = 100},
                           {.name = '3', .keys = "b", .start_ms = 30, .hold_ms = 10},
                           {.name = '4', .keys = "a", .start_ms = 40, .hold_ms = 10},
                           {.keys = NULL}};
    expect(steps, "+1 +3 -3 -1 +2 -2 +4 -4");
}

static void
all_keys_wait_for_those_that_are_locked_and_newcomers_for_them(void **state)
{
    (void)state;
    struct step steps[] = {
        {.name = '1', .keys = "a", .start_ms = 10, .hold_ms = 100},
        {.name = '2', .keys = "*", .start_ms = 20, .hold_ms = 100, .patience_ms = 9999},
        {.name = '3', .keys = "b", .start_ms = 30, .hold_ms = 10},
        {.name = '4', .keys = "c", .start_ms = 150, .hold_ms = 50}, /* while all are held */
        {.keys = NULL}};
    expect(steps, "+1 -1 +2 -2 +3 +4 -3 -4");
}

static void
who_has_some_of_its_locks_gets_the_rest(void **state)
{
    (void)state;
    struct step steps[] = {
        {.name = '1', .keys = "b", .start_ms = 10, .hold_ms = 100},
        {.name = '2', .keys = "abc", .start_ms = 20, .hold_ms = 100}, /* has a, waits for b */
        {.name = '3', .keys = "*", .start_ms = 30, .hold_ms = 10, .patience_ms = 9999},
        {.keys = NULL}};
    expect(steps, "+1 -1 +2 -2 +3 -3");
}

static void
neither_kind_starves_the_other(void **state)
{
    (void)state;
    struct step steps[] = {
        {.name = '1', .keys = "*", .start_ms = 10, .hold_ms = 100, .patience_ms = 9999},
        {.name = '2', .keys = "*", .start_ms = 20, .hold_ms = 100, .patience_ms = 9999},
        {.name = '3', .keys = "a", .start_ms = 30, .hold_ms = 50},
        {.name = '4', .keys = "b", .start_ms = 140, .hold_ms = 10}, /* 2 waits already */
        {.keys = NULL}};
    expect(steps, "+1 -1 +3 -3 +2 -2 +4 -4");
}

static void
who_waits_too_long_for_all_keys_gives_way(void **state)
{
    (void)state;
    struct step steps[] = {
        {.name = '1', .keys = "a", .start_ms = 10, .hold_ms = 500},
        {.name = '2', .keys = "*", .start_ms = 20, .hold_ms = 10, .patience_ms = 100},
        {.name = '3', .keys = "b", .start_ms = 30, .hold_ms = 10},
        {.name = '4', .keys = "*", .start_ms = 200, .hold_ms = 10, .patience_ms = 9999},
        {.name = '5', .keys = "b", .start_ms = 210, .hold_ms = 10},
        {.keys = NULL}};
    expect(steps, "+1 !2 +3 -3 -1 +4 -4 +5 -5");
}

/* 1 gives a back, 2 is woken for it, and before 2 has run somebody wants all keys. */
static void
who_waits_for_its_first_lock_is_counted(void **state)
{
    (void)state;
    struct step steps[] = {
        {.name = '1', .keys = "a", .start_ms = 10, .hold_ms = 100, .all_next = '3'},
        {.name = '2', .keys = "a", .start_ms = 20, .hold_ms = 100},
        {.keys = NULL}};
    expect(steps, "+1 -1 +2 -2 +3 -3");
}

/* ---- many locks ---- */

#define MANY 60000u

static u64 many_hashes[MANY];
static struct keylock many_locks[MANY];

static int
ascending(const void *a, const void *b)
{
    const u64 *left = a, *right = b;
    return (*left > *right) - (*left < *right);
}

/* As hashes are; and as nobody would choose them but to make a tree deep: of few bits. */
static void
draw_hashes(struct prng *prng, u32 count)
{
    for (u32 i = 0; i < count; i++)
        many_hashes[i] = prng_below(prng, 4) != 0 ? prng_u64(prng)
                                                  : prng_u64(prng) & prng_u64(prng) &
                                                        (prng_u64(prng) << prng_below(prng, 64));
    qsort(many_hashes, count, sizeof(many_hashes[0]), ascending);
    u32 kept = 0;
    for (u32 i = 0; i < count; i++)
        if (i == 0 || many_hashes[i] != many_hashes[kept - 1]) many_hashes[kept++] = many_hashes[i];
    for (; kept < count; kept++)
        many_hashes[kept] = many_hashes[kept - 1] + 1;
}

static MAY_YIELD status
take_and_give_back(void *arg)
{
    const u64 *seed = arg;
    struct prng prng;
    prng_init(&prng, *seed);
    enum { COUNT = 500, HOLDERS = 20 };
    bool held[COUNT] = {false};
    draw_hashes(&prng, COUNT);
    for (u32 step = 0; step < 400; step++) {
        u32 first = prng_below(&prng, HOLDERS) * (COUNT / HOLDERS);
        for (u32 i = first; i < first + COUNT / HOLDERS; i++) {
            if (held[i])
                keylock_release(&table, &many_locks[i], 1);
            else
                keylock_acquire(&table, &many_hashes[i], &many_locks[i], 1);
            held[i] = !held[i];
        }
        CHECK(keylock_check(&table));
        for (u32 i = 0; i < COUNT; i++)
            CHECK(keylock_find(&table, many_hashes[i]) == held[i]);
    }
    for (u32 i = 0; i < COUNT; i++)
        if (held[i]) keylock_release(&table, &many_locks[i], 1);
    CHECK(table.held == 0 && keylock_check(&table));
    return ST_OK;
}

static void
what_is_held_is_found_in_whatever_order_it_is_taken_and_given_back(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 20; seed++) {
        keylock_table_init(&table);
        assert_true(ok(sim_run_main(seed, 1, take_and_give_back, &seed)));
    }
}

static bool many_done;
static u32 others_turns;

static MAY_YIELD void
others(void *arg)
{
    (void)arg;
    for (; !many_done; others_turns++)
        fiber_yield();
}

static MAY_YIELD status
take_many(void *arg)
{
    u32 *turns = arg;
    struct prng prng;
    prng_init(&prng, 1);
    draw_hashes(&prng, MANY);
    CHECK(ok(fiber_spawn(FIBER_FOREGROUND, "others", others, NULL)));
    fiber_yield();
    others_turns = 0;
    keylock_acquire(&table, many_hashes, many_locks, MANY);
    turns[0] = others_turns;
    CHECK(table.held == MANY && keylock_find(&table, many_hashes[MANY - 1]));
    others_turns = 0;
    keylock_release(&table, many_locks, MANY);
    turns[1] = others_turns;
    CHECK(table.held == 0);
    many_done = true;
    fiber_yield();
    return ST_OK;
}

static void
others_have_their_turns_while_many_locks_are_taken_and_given_back(void **state)
{
    (void)state;
    u32 turns[2];
    many_done = false;
    keylock_table_init(&table);
    assert_true(ok(sim_run_main(1, 1, take_many, turns)));
    assert_in_range(turns[0], 2, MANY / 64);
    assert_in_range(turns[1], 2, MANY / 64);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_key_is_locked_by_one),
        cmocka_unit_test(all_keys_wait_for_those_that_are_locked_and_newcomers_for_them),
        cmocka_unit_test(who_has_some_of_its_locks_gets_the_rest),
        cmocka_unit_test(neither_kind_starves_the_other),
        cmocka_unit_test(who_waits_too_long_for_all_keys_gives_way),
        cmocka_unit_test(who_waits_for_its_first_lock_is_counted),
        cmocka_unit_test(what_is_held_is_found_in_whatever_order_it_is_taken_and_given_back),
        cmocka_unit_test(others_have_their_turns_while_many_locks_are_taken_and_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
