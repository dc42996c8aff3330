/* SPDX-License-Identifier: MIT
 *
 * number.c -- see number.h.
 */
#include "server/number.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

bool
number_parse_u64(struct bytes text, u64 *out)
{
    if (text.size == 0 || text.size > 20) return false;
    u64 value = 0;
    for (size_t i = 0; i < text.size; i++) {
        u8 c = text.data[i];
        if (c < '0' || c > '9') return false;
        if (__builtin_mul_overflow(value, 10u, &value) ||
            __builtin_add_overflow(value, (u64)(c - '0'), &value))
            return false;
    }
    *out = value;
    return true;
}

bool
number_parse_cursor(struct bytes text, u64 *out)
{
    const u8 *zero = text.size == 0 ? NULL : memchr(text.data, 0, text.size);
    size_t size = zero == NULL ? text.size : (size_t)(zero - text.data);
    *out = 0;
    if (size == 0) return true;
    bool negative = text.data[0] == '-';
    size_t i = negative || text.data[0] == '+';
    while (i + 1 < size && text.data[i] == '0')
        i++;
    if (!number_parse_u64(BYTES(text.data + i, size - i), out)) return false;
    if (negative) *out = 0 - *out;
    return true;
}

bool
number_parse_i64(struct bytes text, i64 *out)
{
    bool negative = text.size > 1 && text.data[0] == '-';
    struct bytes digits = BYTES(text.data + negative, text.size - negative);
    if (digits.size == 0) return false;
    if (digits.data[0] == '0' && (digits.size > 1 || negative)) return false;
    u64 magnitude;
    if (!number_parse_u64(digits, &magnitude)) return false;
    if (negative) {
        if (magnitude > (u64)INT64_MAX + 1) return false;
        *out = (i64)(0 - magnitude);
    } else {
        if (magnitude > (u64)INT64_MAX) return false;
        *out = (i64)magnitude;
    }
    return true;
}

size_t
number_format_i64(i64 value, char *out)
{
    u64 magnitude = value < 0 ? 0 - (u64)value : (u64)value;
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + magnitude % 10);
        magnitude /= 10;
    } while (magnitude != 0);
    size_t size = 0;
    if (value < 0) out[size++] = '-';
    while (count > 0)
        out[size++] = digits[--count];
    return size;
}

bool
number_parse_float(struct bytes text, long double *out)
{
    char copy[NUMBER_FLOAT_BYTES]; /* what is written by us is read by us, as in Redis */
    if (text.size == 0 || text.size >= sizeof(copy)) return false;
    memcpy(copy, text.data, text.size);
    copy[text.size] = '\0';
    char *end;
    errno = 0;
    long double value = strtold(copy, &end);
    if (isspace((unsigned char)copy[0]) || (size_t)(end - copy) != text.size) return false;
    if (errno == ERANGE && (isinf(value) || fpclassify(value) == FP_ZERO)) return false;
    if (errno == EINVAL || isnan(value)) return false;
    *out = value;
    return true;
}

size_t
number_format_float(long double value, char *out)
{
    int n = snprintf(out, NUMBER_FLOAT_BYTES, "%.17Lf", value);
    CHECK(n > 0 && (u32)n < NUMBER_FLOAT_BYTES); /* the longest finite one has 4,952 characters */
    size_t size = (size_t)n;
    if (memchr(out, '.', size) != NULL) {
        while (out[size - 1] == '0')
            size--;
        if (out[size - 1] == '.') size--;
    }
    if (size == 2 && out[0] == '-' && out[1] == '0') {
        out[0] = '0';
        size = 1;
    }
    return size;
}

bool
text_is(struct bytes text, const char *word)
{
    size_t i = 0;
    for (; i < text.size && word[i] != '\0'; i++) {
        u8 a = text.data[i], b = (u8)word[i];
        if (a == b) continue;
        if ((a ^ b) != 0x20 || (b | 0x20) < 'a' || (b | 0x20) > 'z') return false;
    }
    return i == text.size && word[i] == '\0';
}
