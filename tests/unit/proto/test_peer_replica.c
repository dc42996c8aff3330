/* SPDX-License-Identifier: MIT
 *
 * test_peer_replica.c -- bodies between coordinators and replicas: there and back, and whatever is
 * cut, too long, or sets what is reserved.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proto/peer_replica.h"

static struct bytes
body_of(u8 *body, size_t head_size, struct bytes rest)
{
    if (rest.size > 0) memcpy(body + head_size, rest.data, rest.size);
    return BYTES(body, head_size + rest.size);
}

static void
what_is_encoded_decodes_to_the_same(void **state)
{
    (void)state;
    u8 body[256];
    struct bytes rest = BYTES_LITERAL("operations, a key, or a value");

    struct peer_write write = {.version = 7ull << 60, .partition = 4095, .count = 3, .flags = 1};
    struct peer_write write_out;
    struct bytes bytes = body_of(body, peer_write_head(&write, body), rest);
    assert_true(ok(peer_write_decode(bytes, &write_out)));
    assert_int_equal(write_out.version, write.version);
    assert_int_equal(write_out.partition, 4095);
    assert_int_equal(write_out.count, 3);
    assert_int_equal(write_out.flags, PEER_WRITE_REPAIR);
    assert_int_equal(write_out.session, 0);
    write.flags = PEER_WRITE_TREE | PEER_WRITE_REPAIR;
    write.session = 12345;
    bytes = body_of(body, peer_write_head(&write, body), rest);
    assert_true(ok(peer_write_decode(bytes, &write_out)));
    assert_int_equal(write_out.session, 12345);
    assert_true(bytes_equal(write_out.ops, rest));
    write.flags = PEER_WRITE_STAND_IN;
    write.session = 7;
    bytes = body_of(body, peer_write_head(&write, body), rest);
    assert_true(ok(peer_write_decode(bytes, &write_out)));
    assert_int_equal(write_out.session, 7);
    /* For somebody, and nothing else. */
    write.session = 0;
    bytes = body_of(body, peer_write_head(&write, body), rest);
    assert_false(ok(peer_write_decode(bytes, &write_out)));
    write.session = 7;
    for (u32 flag = 1; flag < PEER_WRITE_STAND_IN; flag *= 2) {
        write.flags = (u8)(PEER_WRITE_STAND_IN | flag);
        bytes = body_of(body, peer_write_head(&write, body), rest);
        assert_false(ok(peer_write_decode(bytes, &write_out)));
    }

    struct peer_wrote wrote = {.newer = 99}, wrote_out;
    bytes = body_of(body, peer_wrote_encode(&wrote, body), BYTES(NULL, 0));
    assert_true(ok(peer_wrote_decode(bytes, &wrote_out)));
    assert_int_equal(wrote_out.newer, 99);

    struct peer_read read = {.partition = 17, .want = PEER_WANT_VALUE}, read_out;
    bytes = body_of(body, peer_read_head(&read, body), rest);
    assert_true(ok(peer_read_decode(bytes, &read_out)));
    assert_int_equal(read_out.partition, 17);
    assert_int_equal(read_out.want, PEER_WANT_VALUE);
    assert_true(bytes_equal(read_out.key, rest));

    struct peer_found found = {.version = 5, .expire_ms = 6, .found = true}, found_out;
    bytes = body_of(body, peer_found_head(&found, body), rest);
    assert_true(ok(peer_found_decode(bytes, &found_out)));
    assert_int_equal(found_out.version, 5);
    assert_int_equal(found_out.expire_ms, 6);
    assert_true(found_out.found);
    assert_true(bytes_equal(found_out.value, rest));
}

static void
every_cut_and_every_reserved_byte_is_refused(void **state)
{
    (void)state;
    u8 body[64] = {0};
    struct bytes one = BYTES_LITERAL("x");
    struct peer_write write = {.version = 1, .count = 1}, write_out;
    struct peer_read read = {.want = PEER_WANT_DIGEST}, read_out;
    struct peer_found found = {.version = 1}, found_out;
    struct peer_wrote wrote_out;
    for (size_t size = 0; size <= PEER_WRITE_HEAD_BYTES; size++) {
        (void)body_of(body, peer_write_head(&write, body), one);
        assert_false(ok(peer_write_decode(BYTES(body, size), &write_out)));
    }
    for (size_t i = 17; i < PEER_WRITE_HEAD_BYTES; i++) {
        struct bytes bytes = body_of(body, peer_write_head(&write, body), one);
        body[i] = 1;
        assert_false(ok(peer_write_decode(bytes, &write_out)));
    }
    for (size_t size = 0; size <= PEER_READ_HEAD_BYTES; size++) {
        (void)body_of(body, peer_read_head(&read, body), one);
        assert_false(ok(peer_read_decode(BYTES(body, size), &read_out)));
    }
    for (size_t size = 0; size < PEER_FOUND_HEAD_BYTES; size++) {
        (void)peer_found_head(&found, body);
        assert_false(ok(peer_found_decode(BYTES(body, size), &found_out)));
    }
    for (size_t size = 0; size < 20; size++)
        assert_true(ok(peer_wrote_decode(BYTES(body, size), &wrote_out)) ==
                    (size == PEER_WROTE_BYTES));
}

static void
what_cannot_be_is_refused(void **state)
{
    (void)state;
    u8 body[64];
    struct bytes one = BYTES_LITERAL("x");
    const struct peer_write writes[] = {
        {.version = 0, .count = 1},
        {.version = 1, .count = 0},
        {.version = 1, .count = LIMIT_BATCH_OPS + 1},
        {.version = 1, .count = 1, .flags = 16},
        {.version = 1, .count = 1, .flags = PEER_WRITE_TREE},
        {.version = 1, .count = 1, .flags = PEER_WRITE_REPAIR, .session = 5},
        {.version = 1, .count = 1, .partition = SLOT_COUNT},
    };
    struct peer_write write;
    for (u32 i = 0; i < ARRAY_COUNT(writes); i++)
        assert_true(status_is(
            peer_write_decode(body_of(body, peer_write_head(&writes[i], body), one), &write),
            ST_INVALID));
    const struct peer_read reads[] = {{.want = 2}, {.partition = SLOT_COUNT}};
    struct peer_read read;
    for (u32 i = 0; i < ARRAY_COUNT(reads); i++)
        assert_true(
            status_is(peer_read_decode(body_of(body, peer_read_head(&reads[i], body), one), &read),
                      ST_INVALID));
    /* A value of what was not found, and something found that nobody wrote. */
    struct peer_found found = {.version = 1}, found_out;
    struct bytes bytes = body_of(body, peer_found_head(&found, body), one);
    assert_true(status_is(peer_found_decode(bytes, &found_out), ST_INVALID));
    found = (struct peer_found){.found = true};
    bytes = body_of(body, peer_found_head(&found, body), one);
    assert_true(status_is(peer_found_decode(bytes, &found_out), ST_INVALID));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_encoded_decodes_to_the_same),
        cmocka_unit_test(every_cut_and_every_reserved_byte_is_refused),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
