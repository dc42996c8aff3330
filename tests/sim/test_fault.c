/* SPDX-License-Identifier: MIT
 *
 * test_fault.c -- the registry of MARK and BUGGIFY sites, which the linker puts together out of
 * several objects (also under sanitizers, which like to put redzones between variables).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fault_shared.h"
#include "io/sim.h"
#include "io/sim_sites.h"

struct list_of_sites {
    const char *names[256];
    bool is_mark[256];
    u64 passed[256];
    u32 count;
};

static void
site_note(void *arg, const char *name, bool is_mark, u64 passed)
{
    struct list_of_sites *list = arg;
    assert_true(list->count < 256);
    list->names[list->count] = name;
    list->is_mark[list->count] = is_mark;
    list->passed[list->count++] = passed;
}

static u32
site_at(const struct list_of_sites *list, const char *name)
{
    for (u32 i = 0; i < list->count; i++)
        if (strcmp(list->names[i], name) == 0) return i;
    fail_msg("%s is not listed", name);
    return 0;
}

static status
body_of_marks(void *arg)
{
    (void)arg;
    shared_pass();
    other_pass(false);
    return MARKED("test.fault.on_the_way_out", ST_OK);
}

static void
every_site_is_listed_once_whether_it_was_passed_or_not(void **state)
{
    (void)state;
    struct sim_options options;
    sim_options_default(&options, 1);
    struct sim *sim = sim_new(&options);
    assert_true(ok(sim_run(sim, 1, body_of_marks, NULL)));
    struct list_of_sites list = {0};
    sim_site_each(site_note, &list);
    for (u32 i = 1; i < list.count; i++)
        assert_true(strcmp(list.names[i - 1], list.names[i]) < 0);
    u32 shared = site_at(&list, "test.shared.passed");
    assert_true(list.is_mark[shared]);
    assert_int_equal(list.passed[shared], 2);
    assert_int_equal(list.passed[site_at(&list, "test.other.never")], 0);
    assert_int_equal(list.passed[site_at(&list, "test.fault.on_the_way_out")], 1);
    assert_int_equal(sim_mark_count(sim, "test.shared.passed"), 2);
    assert_false(list.is_mark[site_at(&list, "test.fault.rare")]);
    sim_free(sim);
    sim = sim_new(&options);
    list.count = 0;
    sim_site_each(site_note, &list);
    assert_int_equal(list.passed[shared], 0);
    list.count = 0;
    sim_site_each_ever(site_note, &list);
    assert_int_equal(list.passed[shared], 2);
    sim_free(sim);
}

static status
body_of_counts(void *arg)
{
    u32 *fired = arg;
    for (u32 i = 0; i < 1000; i++)
        *fired += BUGGIFY("test.fault.rare");
    return ST_OK;
}

static u32
fired_with(u64 seed, bool buggify)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    options.buggify = buggify;
    struct sim *sim = sim_new(&options);
    u32 fired = 0;
    assert_true(ok(sim_run(sim, 1, body_of_counts, &fired)));
    struct list_of_sites list = {0};
    sim_site_each(site_note, &list);
    assert_int_equal(list.passed[site_at(&list, "test.fault.rare")], fired);
    sim_free(sim);
    return fired;
}

static void
a_site_has_its_quarter_of_the_runs_and_fires_in_a_quarter_of_its_passes(void **state)
{
    (void)state;
    u32 active = 0;
    for (u64 seed = 1; seed <= 200; seed++) {
        u32 fired = fired_with(seed, true);
        assert_int_equal(fired_with(seed, true), fired);
        assert_int_equal(fired_with(seed, false), 0);
        if (fired == 0) continue;
        active++;
        assert_in_range(fired, 190, 310);
    }
    assert_in_range(active, 30, 70);
}

struct switched {
    struct sim *sim;
    u32 before, after;
};

static status
body_that_is_switched(void *arg)
{
    struct switched *switched = arg;
    for (u32 i = 0; i < 1000; i++)
        switched->before += BUGGIFY("test.fault.switched");
    assert_int_equal(sim_buggify_count(switched->sim), switched->before);
    sim_buggify_set(switched->sim, false);
    for (u32 i = 0; i < 1000; i++)
        switched->after += BUGGIFY("test.fault.switched_off");
    assert_int_equal(sim_buggify_count(switched->sim), switched->before);
    return ST_OK;
}

/* What is made common ends before a life that is judged by its refusals: lite 523. */
static void
nothing_is_made_common_once_that_is_switched_off_though_audits_go_on(void **state)
{
    (void)state;
    u32 fired = 0;
    for (u64 seed = 1; seed <= 40; seed++) {
        struct sim_options options;
        sim_options_default(&options, seed);
        options.buggify = true;
        struct switched switched = {.sim = sim_new(&options)};
        sim_audits_set(switched.sim, 1);
        assert_true(ok(sim_run(switched.sim, 1, body_that_is_switched, &switched)));
        assert_int_equal(switched.after, 0);
        fired += switched.before;
        sim_free(switched.sim);
    }
    assert_true(fired > 0);
}

static status
body_of_audits(void *arg)
{
    u32 *asked = arg;
    for (u32 i = 0; i < 10000; i++)
        AUDIT("test.fault.audited", ++*asked > 0);
    return ST_OK;
}

static u32
audited_with(u64 seed, u32 one_in)
{
    struct sim_options options;
    sim_options_default(&options, seed);
    struct sim *sim = sim_new(&options);
    if (one_in != 0) sim_audits_set(sim, one_in);
    u32 asked = 0;
    assert_true(ok(sim_run(sim, 1, body_of_audits, &asked)));
    struct list_of_sites list = {0};
    sim_site_each(site_note, &list);
    assert_int_equal(list.passed[site_at(&list, "test.fault.audited")], asked);
    assert_false(list.is_mark[site_at(&list, "test.fault.audited")]);
    sim_free(sim);
    return asked;
}

static void
an_audit_runs_once_in_as_many_passes_as_is_asked_for(void **state)
{
    (void)state;
    for (u64 seed = 1; seed <= 5; seed++) {
        assert_int_equal(audited_with(seed, 0), 0);
        assert_int_equal(audited_with(seed, 1), 10000);
        u32 some = audited_with(seed, 33);
        assert_in_range(some, 220, 390);
        assert_int_equal(audited_with(seed, 33), some);
    }
}

/* In a run without them a site is an instruction that does nothing, as in a server. */
static void
sites_jump_only_while_somebody_wants_them_to(void **state)
{
    (void)state;
    assert_true(sim_sites_count() >= 2);
    fired_with(1, false); /* it may have been another one before */
    u32 asked = 0, fired = 0;
    for (u32 round = 0; round < 3; round++) {
        u32 fired_now = 0;
        for (u32 i = 0; i < 1000; i++) {
            fired += BUGGIFY("test.fault.jumps");
            AUDIT("test.fault.jumps_to", ++asked > 0);
        }
        assert_int_equal(audited_with(1, 1), 10000);
        for (u64 seed = 1; fired_now == 0; seed++)
            fired_now = fired_with(seed, true);
        fired_with(1, false);
    }
    assert_int_equal(asked, 0);
    assert_int_equal(fired, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_site_is_listed_once_whether_it_was_passed_or_not),
        cmocka_unit_test(a_site_has_its_quarter_of_the_runs_and_fires_in_a_quarter_of_its_passes),
        cmocka_unit_test(nothing_is_made_common_once_that_is_switched_off_though_audits_go_on),
        cmocka_unit_test(an_audit_runs_once_in_as_many_passes_as_is_asked_for),
        cmocka_unit_test(sites_jump_only_while_somebody_wants_them_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
