/* SPDX-License-Identifier: MIT
 *
 * test_peer_hello.c -- proto/peer.h: the bytes of the handshake, what of them is refused, and that
 * no opcode is both a client's and a peer's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "proto/peer.h"

static struct peer_hello
hello_example(void)
{
    struct peer_hello hello = {.version_min = 1,
                               .version_max = 3,
                               .shard = 0x0102,
                               .features = 0x03040506,
                               .requests_max = 0x0708090a,
                               .member = 0x0b0c0d0e,
                               .cluster_id = 0x1112131415161718,
                               .incarnation = 0x2122232425262728,
                               .node_id = "n-7"};
    for (u32 i = 0; i < PEER_NONCE_BYTES; i++)
        hello.nonce[i] = (u8)(0x80 + i);
    return hello;
}

static void
the_hello_has_the_bytes_that_are_documented(void **state)
{
    (void)state;
    static const u8 expected[] = {
        1,    3,    0x02, 0x01, 0x06, 0x05, 0x04, 0x03, 0x0a, 0x09, 0x08, 0x07, 0x0e, 0x0d,
        0x0c, 0x0b, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x28, 0x27, 0x26, 0x25,
        0x24, 0x23, 0x22, 0x21, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
        0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97,
        0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 3,    'n',  '-',  '7'};
    struct peer_hello hello = hello_example();
    u8 bytes[PEER_HELLO_BYTES_MAX];
    size_t size = peer_hello_encode(&hello, bytes);
    assert_int_equal(size, sizeof(expected));
    assert_memory_equal(bytes, expected, size);
}

static void
what_is_written_reads_the_same_and_no_part_of_it_does(void **state)
{
    (void)state;
    for (u32 id_size = 0; id_size < PEER_NODE_ID_BYTES; id_size++) {
        struct peer_hello hello = hello_example(), read;
        memset(hello.node_id, 0, sizeof(hello.node_id));
        memset(hello.node_id, 'x', id_size);
        u8 bytes[PEER_HELLO_BYTES_MAX + 5] = {0};
        size_t size = peer_hello_encode(&hello, bytes), consumed;
        assert_true(size <= PEER_HELLO_BYTES_MAX);
        assert_true(ok(peer_hello_decode(BYTES(bytes, size + 5), &read, &consumed)));
        assert_int_equal(consumed, size);
        assert_memory_equal(&read, &hello, sizeof(hello));
        for (size_t cut = 0; cut < size; cut++)
            assert_true(
                status_is(peer_hello_decode(BYTES(bytes, cut), &read, &consumed), ST_INVALID));
    }
}

static bool
is_refused(const struct peer_hello *hello)
{
    u8 bytes[PEER_HELLO_BYTES_MAX];
    struct peer_hello read;
    size_t consumed, size = peer_hello_encode(hello, bytes);
    return status_is(peer_hello_decode(BYTES(bytes, size), &read, &consumed), ST_INVALID);
}

static void
what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    struct peer_hello hello = hello_example();
    assert_false(is_refused(&hello));
    hello.version_min = 4;
    assert_true(is_refused(&hello));
    hello.version_min = 0;
    assert_true(is_refused(&hello));
    hello = hello_example();
    hello.cluster_id = 0; /* a member of nothing */
    assert_true(is_refused(&hello));
    hello.member = 0;
    assert_false(is_refused(&hello));
    hello = hello_example();
    for (u32 c = 1; c < 256; c++) { /* it goes into logs */
        hello.node_id[1] = (char)c;
        assert_int_equal(is_refused(&hello), c <= ' ' || c > '~');
    }
    /* A size of the id that the text has no room for. */
    u8 bytes[400] = {1, 1};
    struct peer_hello read;
    size_t consumed;
    bytes[64] = 64;
    memset(bytes + 65, 'x', 300);
    assert_true(status_is(peer_hello_decode(BYTES(bytes, 400), &read, &consumed), ST_INVALID));
    bytes[64] = 63;
    assert_true(ok(peer_hello_decode(BYTES(bytes, 400), &read, &consumed)));
    bytes[70] = 0; /* an end within */
    assert_true(status_is(peer_hello_decode(BYTES(bytes, 400), &read, &consumed), ST_INVALID));
}

static void
the_highest_version_of_both_is_chosen(void **state)
{
    (void)state;
    for (u8 a = 1; a < 5; a++) {
        for (u8 b = a; b < 5; b++) {
            for (u8 c = 1; c < 5; c++) {
                for (u8 d = c; d < 5; d++) {
                    struct peer_hello ours = {.version_min = a, .version_max = b};
                    struct peer_hello theirs = {.version_min = c, .version_max = d};
                    u8 expected = 0;
                    for (u8 v = 1; v < 5; v++)
                        if (v >= a && v <= b && v >= c && v <= d) expected = v;
                    assert_int_equal(peer_version_choose(&ours, &theirs), expected);
                }
            }
        }
    }
}

static void
a_proof_covers_direction_secret_and_every_byte_of_both_hellos(void **state)
{
    (void)state;
    u8 a[] = "hello of who connects", b[] = "hello of who listens", secret[] = "secret";
    struct bytes first = BYTES_LITERAL("hello of who connects");
    struct bytes second = BYTES_LITERAL("hello of who listens");
    u8 proof[HMAC_BYTES], other[HMAC_BYTES];
    peer_proof(BYTES_LITERAL("secret"), PEER_CONNECTS, first, second, proof);
    peer_proof(BYTES_LITERAL("secret"), PEER_LISTENS, first, second, other);
    assert_false(hmac_equal(proof, other));
    peer_proof(BYTES_LITERAL("secret"), PEER_CONNECTS, second, first, other);
    assert_false(hmac_equal(proof, other));
    /* The border between the two counts. */
    peer_proof(BYTES_LITERAL("secret"), PEER_CONNECTS, BYTES_LITERAL("hello of who connectsh"),
               BYTES_LITERAL("ello of who listens"), other);
    assert_false(hmac_equal(proof, other));
    u8 *changed[] = {a, b, secret};
    size_t sizes[] = {sizeof(a) - 1, sizeof(b) - 1, sizeof(secret) - 1};
    for (u32 which = 0; which < 3; which++) {
        for (size_t i = 0; i < sizes[which]; i++) {
            changed[which][i] ^= 1;
            peer_proof(BYTES(secret, sizes[2]), PEER_CONNECTS, BYTES(a, sizes[0]),
                       BYTES(b, sizes[1]), other);
            assert_false(hmac_equal(proof, other));
            changed[which][i] ^= 1;
        }
    }
    peer_proof(BYTES(secret, sizes[2]), PEER_CONNECTS, BYTES(a, sizes[0]), BYTES(b, sizes[1]),
               other);
    assert_true(hmac_equal(proof, other));
}

static void
no_opcode_of_a_peer_is_known_to_a_clients_connection(void **state)
{
    (void)state;
    for (u32 opcode = 0; opcode < 256; opcode++) {
        struct native_header header = {.opcode = (u8)opcode, .request_id = 1};
        struct native_request request;
        const char *error;
        status st = native_request_decode(&header, BYTES(NULL, 0), &request, &error);
        if (opcode >= PEER_OPCODE_MIN) assert_true(status_is(st, ST_UNSUPPORTED));
    }
    assert_string_equal(peer_opcode_name(PEER_WRITE), "WRITE");
    assert_string_equal(peer_opcode_name(NATIVE_PUT), "?");
    assert_string_equal(native_opcode_name(PEER_WRITE), "?");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_hello_has_the_bytes_that_are_documented),
        cmocka_unit_test(what_is_written_reads_the_same_and_no_part_of_it_does),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(the_highest_version_of_both_is_chosen),
        cmocka_unit_test(a_proof_covers_direction_secret_and_every_byte_of_both_hellos),
        cmocka_unit_test(no_opcode_of_a_peer_is_known_to_a_clients_connection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
