/* SPDX-License-Identifier: MIT */
#include "proto/peer_admin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static struct budget budget;

static void
figures_come_back_as_they_went_in(void **state)
{
    (void)state;
    struct peer_figures figures, back;
    struct buf out;
    u64 next = 1;
    budget_init(&budget, "test", MIB(1), NULL);
    buf_init(&out, &budget);
#define X(name)                                                                                    \
    next += (1ull << 40) + 1;                                                                      \
    figures.name = next;
    PEER_FIGURES_LIST(X)
#undef X
    figures.version = BYTES_LITERAL("1.2.3");
    assert_true(peer_figures_encode(&figures, &out));
    assert_true(ok(peer_figures_decode(buf_bytes(&out), &back)));
#define X(name) assert_true(back.name == figures.name);
    PEER_FIGURES_LIST(X)
#undef X
    assert_true(bytes_equal(back.version, figures.version));
    for (size_t size = 0; size < out.size; size++)
        assert_false(ok(peer_figures_decode(BYTES(out.data, size), &back)));
    out.data[2] = 1; /* reserved */
    assert_false(ok(peer_figures_decode(buf_bytes(&out), &back)));
    out.data[2] = 0;
    out.data[0] = 1; /* another version */
    assert_false(ok(peer_figures_decode(buf_bytes(&out), &back)));
    out.data[0] = 2;
    out.data[out.size - 1] = '"'; /* it is shown in JSON */
    assert_false(ok(peer_figures_decode(buf_bytes(&out), &back)));
    buf_deinit(&out);
    assert_int_equal(budget.used_bytes, 0);
}

static void
functions_that_nobody_knows_are_unsupported(void **state)
{
    (void)state;
    u8 body[PEER_ADMIN_BYTES];
    enum peer_admin_function function;
    peer_admin_encode(PEER_ADMIN_DRAIN, body);
    assert_true(ok(peer_admin_decode(BYTES(body, sizeof(body)), &function)));
    assert_int_equal(function, PEER_ADMIN_DRAIN);
    body[0] = PEER_ADMIN_LEAVE + 1;
    assert_true(status_is(peer_admin_decode(BYTES(body, sizeof(body)), &function), ST_UNSUPPORTED));
    body[0] = 0;
    assert_true(status_is(peer_admin_decode(BYTES(body, sizeof(body)), &function), ST_INVALID));
    body[0] = 1;
    body[7] = 1;
    assert_true(status_is(peer_admin_decode(BYTES(body, sizeof(body)), &function), ST_INVALID));
    assert_true(status_is(peer_admin_decode(BYTES(body, 7), &function), ST_INVALID));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_come_back_as_they_went_in),
        cmocka_unit_test(functions_that_nobody_knows_are_unsupported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
