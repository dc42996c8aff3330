/* SPDX-License-Identifier: MIT
 *
 * test_text.c -- bytes as text and back: whatever is written comes back exactly.
 */
#include "base/prng.h"
#include "client/cli.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* What a writer writes, in memory. */
static char *
written(void (*write)(FILE *out, const void *data, size_t size), const void *data, size_t size,
        size_t *size_out)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, size_out);
    assert_non_null(out);
    write(out, data, size);
    fclose(out);
    return text;
}

static void
any_bytes_survive_escapes_and_base64(void **state)
{
    (void)state;
    struct prng prng;
    prng_init(&prng, 7);
    for (u32 round = 0; round < 2000; round++) {
        u8 data[64];
        size_t size = prng_below(&prng, sizeof(data) + 1);
        for (size_t i = 0; i < size; i++)
            data[i] = (u8)prng_u64(&prng);
        size_t text_size = 0;
        char *text = written(text_write_escaped, data, size, &text_size);
        assert_null(memchr(text, '\t', text_size));
        assert_null(memchr(text, '\n', text_size));
        assert_true(text_is_utf8(text, text_size));
        assert_true(text_unescape(text, &text_size));
        assert_int_equal(text_size, size);
        assert_memory_equal(text, data, size);
        free(text);

        u8 back[80];
        size_t back_size = 0;
        text = written(text_write_base64, data, size, &text_size);
        assert_true(text_read_base64(text, text_size, back, &back_size));
        assert_int_equal(back_size, size);
        assert_memory_equal(back, data, size);
        free(text);
    }
}

static void
bad_escapes_and_bad_base64_are_refused(void **state)
{
    (void)state;
    static const char *const escapes[] = {"\\", "a\\", "\\q", "\\x", "\\x1", "\\xg1", "\\x1g"};
    for (size_t i = 0; i < ARRAY_COUNT(escapes); i++) {
        char text[16];
        strcpy(text, escapes[i]);
        size_t size = strlen(text);
        assert_false(text_unescape(text, &size));
    }
    static const char *const base64[] = {"A",    "AA",   "AAA",  "A===",     "====", "AA=A",
                                         "AB==", "AAB=", "AA A", "AA==AAAA", "AA\n="};
    for (size_t i = 0; i < ARRAY_COUNT(base64); i++) {
        u8 out[16];
        size_t size;
        assert_false(text_read_base64(base64[i], strlen(base64[i]), out, &size));
    }
}

static void
only_utf8_is_utf8(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       "abc",
                                       "\xc3\xa9",
                                       "\xe2\x82\xac",
                                       "\xf0\x9f\x98\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "\xed\x9f\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc3",
                                      "\xc0\x80",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf8\x88\x80\x80\x80",
                                      "\xf0\x80\x80\x80",
                                      "a\xff",
                                      "\xe2\x82"};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++)
        assert_true(text_is_utf8(good[i], strlen(good[i])));
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        assert_false(text_is_utf8(bad[i], strlen(bad[i])));
}

static void
a_terminal_sees_no_control_bytes(void **state)
{
    (void)state;
    u8 all[256];
    for (u32 i = 0; i < 256; i++)
        all[i] = (u8)i;
    size_t size;
    char *text = written(text_write_escaped, all, sizeof(all), &size);
    for (size_t i = 0; i < size; i++)
        assert_in_range((u8)text[i], 0x20, 0x7e);
    free(text);
    text = written(text_write_escaped, "\xc2\x9b", 2, &size); /* CSI in one character */
    assert_string_equal(text, "\\xc2\\x9b");
    free(text);
}

static void
lines_are_split_as_a_shell_would(void **state)
{
    (void)state;
    char line[] = "  put \"a \\x00\\n\\q\" 'b \\n' c\"d e\"f ''\t\n";
    char *words[8];
    size_t sizes[8];
    assert_int_equal(text_split(line, words, sizes, 8), 5);
    assert_string_equal(words[0], "put");
    assert_int_equal(sizes[1], 6);
    assert_memory_equal(words[1], "a \0\n\\q", 6);
    assert_string_equal(words[2], "b \\n");
    assert_string_equal(words[3], "cd ef");
    assert_int_equal(sizes[4], 0);
    char open_quote[] = "a 'b";
    assert_int_equal(text_split(open_quote, words, sizes, 8), -1);
    char many[] = "a b c";
    assert_int_equal(text_split(many, words, sizes, 2), -2);
    char none[] = " \n";
    assert_int_equal(text_split(none, words, sizes, 2), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_bytes_survive_escapes_and_base64),
        cmocka_unit_test(bad_escapes_and_bad_base64_are_refused),
        cmocka_unit_test(only_utf8_is_utf8),
        cmocka_unit_test(a_terminal_sees_no_control_bytes),
        cmocka_unit_test(lines_are_split_as_a_shell_would),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
