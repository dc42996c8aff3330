/* SPDX-License-Identifier: MIT
 *
 * utf8.c -- see utf8.h.
 */
#include "base/utf8.h"

#include <stdio.h>

size_t
utf8_sequence(const u8 *p, size_t left)
{
    if (p[0] < 0x80) return 1;
    size_t size = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || size > left) return 0;
    for (size_t i = 1; i < size; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xe0 && p[1] < 0xa0) return 0;
    if (p[0] == 0xed && p[1] > 0x9f) return 0;
    if (p[0] == 0xf0 && p[1] < 0x90) return 0;
    if (p[0] == 0xf4 && p[1] > 0x8f) return 0;
    return size;
}

void
utf8_escape(const char *text, char *out, size_t size)
{
    size_t left = strlen(text), used = 0;
    while (left > 0) {
        size_t step = utf8_sequence((const u8 *)text, left);
        char code[8];
        snprintf(code, sizeof(code), "\\x%02x", (u8)*text);
        size_t length = step != 0 ? step : strlen(code);
        if (used + length >= size) break;
        memcpy(out + used, step != 0 ? text : code, length);
        used += length;
        text += MAX(step, 1u);
        left -= MAX(step, 1u);
    }
    out[used] = '\0';
}
