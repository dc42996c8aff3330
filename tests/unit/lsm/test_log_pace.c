/* SPDX-License-Identifier: MIT
 *
 * test_log_pace.c -- when groups of records leave, in a model of a log: one write under way at a time,
 * each of which takes the same, and clients that wait for each record, or that do not.
 */
#include "lsm/log_pace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/prng.h"

#define CLIENTS_MAX 64u
#define STEP_NS     1000u

struct model {
    struct log_pace pace;
    u64 write_ns; /* a write takes */
    u32 clients;  /* that wait for their record; 0: records come by themselves */
    u64 away_ns;  /* from a client's answer to its next record */
    u32 per_ms;   /* records that come by themselves, at random */
    u32 record_bytes;
    bool paced;
    /* what came of it */
    u64 writes, records;
    u64 waited_ns, waited_most_ns; /* of records, until durable */
};

/* What is not durable: when it came, and whose it is. */
struct wait {
    u64 since_ns;
    u32 client;
};

static void
run(struct model *m, u64 for_ns)
{
    struct prng prng;
    prng_init(&prng, 7);
    struct wait waits[256];
    u32 group = 0, flying = 0; /* waits[0 .. flying) are under way, then the group */
    u64 ends_ns = 0;
    u64 back_ns[CLIENTS_MAX] = {0};
    for (u64 now = 1; now < for_ns; now += STEP_NS) {
        if (flying > 0 && now >= ends_ns) {
            log_pace_ended(&m->pace, m->write_ns, flying);
            for (u32 i = 0; i < flying; i++) {
                u64 waited = now - waits[i].since_ns;
                m->waited_ns += waited;
                m->waited_most_ns = MAX(m->waited_most_ns, waited);
                back_ns[waits[i].client] = now + m->away_ns;
            }
            m->records += flying;
            for (u32 i = 0; i < group; i++)
                waits[i] = waits[flying + i];
            flying = 0;
        }
        for (u32 c = 0; c < m->clients; c++) {
            if (now < back_ns[c]) continue;
            back_ns[c] = UINT64_MAX;
            waits[flying + group++] = (struct wait){now, c};
            log_pace_appended(&m->pace);
        }
        if (m->per_ms > 0 && prng_below(&prng, NS_PER_MS / STEP_NS) < m->per_ms) {
            assert_true(flying + group < ARRAY_COUNT(waits));
            waits[flying + group++] = (struct wait){now, 0};
            log_pace_appended(&m->pace);
        }
        if (flying > 0 || group == 0) continue;
        if (m->paced && log_pace_wait_ns(&m->pace, now, (u64)group * m->record_bytes) > 0) continue;
        log_pace_begun(&m->pace, now);
        m->writes++;
        flying = group;
        group = 0;
        ends_ns = now + m->write_ns;
    }
}

/* The same twice: as it is, and as it would be without waiting. */
static void
run_both(struct model *paced, struct model *unpaced)
{
    *unpaced = *paced;
    paced->paced = true;
    run(paced, NS_PER_S);
    run(unpaced, NS_PER_S);
}

static void
a_client_alone_never_waits(void **state)
{
    for (u64 away_us = 5; away_us < 5000; away_us *= 3) {
        struct model paced = {
            .write_ns = 100000, .clients = 1, .away_ns = away_us * 1000, .record_bytes = 100};
        struct model unpaced;
        run_both(&paced, &unpaced);
        assert_int_equal(paced.records, unpaced.records);
        assert_int_equal(paced.waited_ns, unpaced.waited_ns);
    }
}

/* Who all wait are waited for by nobody: it costs a few nothing, and many little. */
static void
clients_that_wait_are_as_fast_together(void **state)
{
    static const u32 counts[] = {2, 3, 5, 8, 16, 50};
    for (u32 i = 0; i < ARRAY_COUNT(counts); i++) {
        for (u64 away_us = 10; away_us <= 160; away_us *= 2) {
            struct model paced = {.write_ns = 100000,
                                  .clients = counts[i],
                                  .away_ns = away_us * 1000,
                                  .record_bytes = 100};
            struct model unpaced;
            run_both(&paced, &unpaced);
            assert_true(paced.records * 100 >= unpaced.records * 93);
            assert_true(paced.writes <= unpaced.writes);
        }
    }
}

/* Of records that come by themselves there are two thirds as many writes at most, and none waits for
 * longer than the interval and a write. */
static void
a_moderate_load_takes_a_third_fewer_writes(void **state)
{
    static const u32 write_us[] = {50, 100, 300, 450};
    for (u32 i = 0; i < ARRAY_COUNT(write_us); i++) {
        struct model paced = {
            .write_ns = write_us[i] * 1000, .per_ms = 5000 / write_us[i] + 1, .record_bytes = 100};
        struct model unpaced;
        run_both(&paced, &unpaced);
        assert_in_range(paced.records, unpaced.records - 20, unpaced.records + 20);
        assert_true(paced.writes * 100 <= unpaced.writes * 65);
        u64 most_ns = MIN(2 * paced.write_ns, PACE_NS_MAX) + paced.write_ns + STEP_NS;
        assert_true(paced.waited_most_ns <= most_ns);
        /* A write's time at most is what it costs a record. */
        assert_true(paced.waited_ns / paced.records <=
                    unpaced.waited_ns / unpaced.records + paced.write_ns);
    }
}

/* What was a burst is believed for some writes only. */
static void
the_rate_follows_the_load(void **state)
{
    struct log_pace pace = {0};
    u64 now_ns = 0;
    for (u32 i = 0; i < 240; i++) {
        u32 records = i < 40 ? 4 : 1;
        for (u32 r = 0; r < records; r++)
            log_pace_appended(&pace);
        log_pace_begun(&pace, now_ns += 100000);
        log_pace_ended(&pace, 50000, records);
    }
    /* One in 100 us. */
    assert_in_range(pace.rate_parts * 100000 * 100 / pace.rate_ns / PACE_FRACTION, 90, 110);
}

/* Few records, each far from the next: there is nobody to wait for. */
static void
a_low_load_never_waits(void **state)
{
    struct model paced = {.write_ns = 300000, .per_ms = 1, .record_bytes = 100};
    struct model unpaced;
    run_both(&paced, &unpaced);
    assert_true(paced.waited_ns * 100 <= unpaced.waited_ns * 105);
}

/* A device that is stuck holds up what follows for no longer than PACE_NS_MAX. */
static void
a_slow_device_is_not_waited_for_twice(void **state)
{
    struct model paced = {.write_ns = 20 * NS_PER_MS, .per_ms = 5, .record_bytes = 100};
    struct model unpaced;
    run_both(&paced, &unpaced);
    assert_int_equal(paced.records, unpaced.records);
    assert_int_equal(paced.waited_ns, unpaced.waited_ns);

    /* And one that was stuck once is as fast as before soon after. */
    struct model m = {.write_ns = 100000, .per_ms = 20, .record_bytes = 100, .paced = true};
    run(&m, NS_PER_S);
    log_pace_appended(&m.pace);
    log_pace_ended(&m.pace, NS_PER_S, 1);
    log_pace_begun(&m.pace, 2 * NS_PER_S);
    log_pace_appended(&m.pace);
    assert_in_range(log_pace_wait_ns(&m.pace, 2 * NS_PER_S, 100), 0, 250000);
}

static void
a_large_group_never_waits(void **state)
{
    struct model paced = {.write_ns = 300000, .per_ms = 20, .record_bytes = PACE_BYTES};
    struct model unpaced;
    run_both(&paced, &unpaced);
    assert_int_equal(paced.writes, unpaced.writes);
}

/* After a pause nothing of the load before it is believed for long. */
static void
after_a_pause_the_first_leaves_at_once(void **state)
{
    struct model m = {.write_ns = 300000, .per_ms = 20, .record_bytes = 100, .paced = true};
    run(&m, NS_PER_S);
    log_pace_appended(&m.pace);
    assert_int_equal(log_pace_wait_ns(&m.pace, 2 * NS_PER_S, 100), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_alone_never_waits),
        cmocka_unit_test(clients_that_wait_are_as_fast_together),
        cmocka_unit_test(a_moderate_load_takes_a_third_fewer_writes),
        cmocka_unit_test(the_rate_follows_the_load),
        cmocka_unit_test(a_low_load_never_waits),
        cmocka_unit_test(a_slow_device_is_not_waited_for_twice),
        cmocka_unit_test(a_large_group_never_waits),
        cmocka_unit_test(after_a_pause_the_first_leaves_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
