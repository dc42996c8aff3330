/* SPDX-License-Identifier: MIT
 *
 * test_hmac.c -- HMAC-SHA256 by the vectors of RFC 4231, whole and in parts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/hmac.h"

struct vector {
    u8 key[131], data[152];
    u32 key_size, data_size;
    u32 shown; /* bytes of the result that the RFC gives */
    const char *hex;
};

#define TEXT(field, text) .field = text, .field##_size = sizeof(text) - 1

/* Sections 4.2 to 4.8; keys and data that are one byte many times are filled in by the test. */
static const struct vector vectors[] = {
    {.key_size = 20,
     TEXT(data, "Hi There"),
     .shown = 32,
     .hex = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
    {TEXT(key, "Jefe"), TEXT(data, "what do ya want for nothing?"), .shown = 32,
     .hex = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
    {.key_size = 20,
     .data_size = 50,
     .shown = 32,
     .hex = "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
    {.key_size = 25,
     .data_size = 50,
     .shown = 32,
     .hex = "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"},
    {.key_size = 20,
     TEXT(data, "Test With Truncation"),
     .shown = 16,
     .hex = "a3b6167473100ee06e0c796c2955552b"},
    {.key_size = 131,
     TEXT(data, "Test Using Larger Than Block-Size Key - Hash Key First"),
     .shown = 32,
     .hex = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
    {.key_size = 131,
     TEXT(data, "This is a test using a larger than block-size key and a larger than block-size "
                "data. The key needs to be hashed before being used by the HMAC algorithm."),
     .shown = 32,
     .hex = "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"},
};

static struct vector
vector_of(u32 number)
{
    static const u8 key_fill[] = {0x0b, 0, 0xaa, 0, 0x0c, 0xaa, 0xaa};
    static const u8 data_fill[] = {0, 0, 0xdd, 0xcd, 0, 0, 0};
    struct vector vector = vectors[number];
    if (key_fill[number] != 0) memset(vector.key, key_fill[number], vector.key_size);
    if (data_fill[number] != 0) memset(vector.data, data_fill[number], vector.data_size);
    for (u32 i = 0; number == 3 && i < vector.key_size; i++)
        vector.key[i] = (u8)(i + 1);
    return vector;
}

static void
the_vectors_of_the_rfc_come_out(void **state)
{
    (void)state;
    for (u32 number = 0; number < ARRAY_COUNT(vectors); number++) {
        struct vector vector = vector_of(number);
        struct bytes key = BYTES(vector.key, vector.key_size);
        /* In two parts, cut anywhere: the same as whole. */
        for (u32 cut = 0; cut <= vector.data_size; cut++) {
            struct bytes parts[] = {BYTES(vector.data, cut),
                                    BYTES(vector.data + cut, vector.data_size - cut)};
            u8 out[HMAC_BYTES];
            char hex[2 * HMAC_BYTES + 1];
            hmac_sha256(key, parts, 2, out);
            for (u32 i = 0; i < HMAC_BYTES; i++)
                (void)snprintf(hex + 2 * (size_t)i, 3, "%02x", out[i]);
            hex[2 * vector.shown] = '\0';
            assert_string_equal(hex, vector.hex);
        }
    }
}

static void
nothing_has_a_code_too(void **state)
{
    (void)state;
    u8 with_null[HMAC_BYTES], without[HMAC_BYTES];
    struct bytes none = BYTES(NULL, 0);
    hmac_sha256(none, &none, 1, with_null);
    hmac_sha256(BYTES("", 0), NULL, 0, without);
    assert_true(hmac_equal(with_null, without));
}

static void
one_bit_makes_a_difference(void **state)
{
    (void)state;
    u8 a[HMAC_BYTES], b[HMAC_BYTES];
    struct bytes data = BYTES_LITERAL("data");
    hmac_sha256(BYTES_LITERAL("key"), &data, 1, a);
    for (u32 bit = 0; bit < 8 * HMAC_BYTES; bit++) {
        memcpy(b, a, sizeof(b));
        assert_true(hmac_equal(a, b));
        b[bit / 8] ^= (u8)(1u << bit % 8);
        assert_false(hmac_equal(a, b));
    }
    hmac_forget(b, sizeof(b));
    for (u32 i = 0; i < sizeof(b); i++)
        assert_int_equal(b[i], 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_vectors_of_the_rfc_come_out),
        cmocka_unit_test(nothing_has_a_code_too),
        cmocka_unit_test(one_bit_makes_a_difference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
