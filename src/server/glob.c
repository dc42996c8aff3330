/* SPDX-License-Identifier: MIT
 *
 * glob.c -- see glob.h. One place to go back to, the last star, so a pattern of many stars costs
 * pattern times text and not an exponent of it: a client chooses both.
 */
#include "server/glob.h"

static u8
fold(u8 c, bool ignore_case)
{
    return ignore_case && c >= 'A' && c <= 'Z' ? (u8)(c + 32) : c;
}

/* Matches c against the class that begins after '['; *at is left behind the ']'. A class without
 * an end runs to the end of the pattern, as in Redis. */
static bool
class_match(struct bytes pattern, size_t *at, u8 c, bool ignore_case)
{
    size_t i = *at;
    bool negate = i < pattern.size && pattern.data[i] == '^';
    if (negate) i++;
    bool found = false;
    c = fold(c, ignore_case);
    for (; i < pattern.size && pattern.data[i] != ']'; i++) {
        if (pattern.data[i] == '\\' && i + 1 < pattern.size) {
            i++;
            if (pattern.data[i] == c) found = true;
        } else if (i + 2 < pattern.size && pattern.data[i + 1] == '-') {
            u8 low = fold(pattern.data[i], ignore_case);
            u8 high = fold(pattern.data[i + 2], ignore_case);
            if (low > high) {
                u8 swap = low;
                low = high;
                high = swap;
            }
            if (c >= low && c <= high) found = true;
            i += 2;
        } else if (fold(pattern.data[i], ignore_case) == c) {
            found = true;
        }
    }
    *at = i < pattern.size ? i + 1 : i;
    return negate ? !found : found;
}

bool
glob_match(struct bytes pattern, struct bytes text, bool ignore_case)
{
    size_t p = 0, t = 0;
    size_t star = SIZE_MAX, star_text = 0;
    while (t < text.size) {
        bool matched = false;
        size_t next = p;
        if (p < pattern.size) {
            u8 c = pattern.data[p];
            if (c == '*') {
                star = ++p;
                star_text = t;
                continue;
            }
            if (c == '?') {
                matched = true;
                next = p + 1;
            } else if (c == '[') {
                next = p + 1;
                matched = class_match(pattern, &next, text.data[t], ignore_case);
            } else {
                if (c == '\\' && p + 1 < pattern.size) c = pattern.data[++next];
                matched = fold(c, ignore_case) == fold(text.data[t], ignore_case);
                next++;
            }
        }
        if (matched) {
            p = next;
            t++;
        } else if (star != SIZE_MAX) {
            p = star;
            t = ++star_text;
        } else {
            return false;
        }
    }
    while (p < pattern.size && pattern.data[p] == '*')
        p++;
    return p == pattern.size;
}

bool
glob_is_literal(struct bytes pattern)
{
    for (size_t i = 0; i < pattern.size; i++) {
        u8 c = pattern.data[i];
        if (c == '*' || c == '?' || c == '[' || c == '\\') return false;
    }
    return true;
}
