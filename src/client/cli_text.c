/* SPDX-License-Identifier: MIT
 *
 * cli_text.c -- bytes as text and back: escapes, JSON strings, base64, words of a line.
 *
 * Bytes that are valid UTF-8 stay readable; what is not is written so that it comes back exactly:
 * \xHH in TSV and on terminals, base64 under a field of another name in JSON (JSON has no bytes).
 */
#include "client/cli.h"

#include <string.h>

#include "base/utf8.h"

bool
text_is_utf8(const void *data, size_t size)
{
    const u8 *p = data;
    for (size_t i = 0; i < size;) {
        size_t step = utf8_sequence(p + i, size - i);
        if (step == 0) return false;
        i += step;
    }
    return true;
}

void
text_write_escaped(FILE *out, const void *data, size_t size)
{
    const u8 *p = data;
    for (size_t i = 0; i < size;) {
        size_t step = utf8_sequence(p + i, size - i);
        /* C1 controls (U+0080 to U+009F) steer terminals as well. */
        bool control = step == 2 && p[i] == 0xc2 && p[i + 1] < 0xa0;
        if (step > 1 && !control) {
            fwrite(p + i, 1, step, out);
            i += step;
            continue;
        }
        u8 c = p[i++];
        if (c == '\t')
            fputs("\\t", out);
        else if (c == '\n')
            fputs("\\n", out);
        else if (c == '\r')
            fputs("\\r", out);
        else if (c == '\\')
            fputs("\\\\", out);
        else if (c < 0x20 || c >= 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            putc(c, out);
    }
}

static int
hex_value(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* One escape behind a backslash at p, before end. The number of bytes read, or 0. */
static size_t
unescape_one(const char *p, const char *end, char *out)
{
    if (p == end) return 0;
    switch (*p) {
    case 't':
        *out = '\t';
        return 1;
    case 'n':
        *out = '\n';
        return 1;
    case 'r':
        *out = '\r';
        return 1;
    case '\\':
    case '"':
    case '\'':
        *out = *p;
        return 1;
    case 'x':
        if (end - p < 3 || hex_value(p[1]) < 0 || hex_value(p[2]) < 0) return 0;
        *out = (char)(hex_value(p[1]) * 16 + hex_value(p[2]));
        return 3;
    default:
        return 0;
    }
}

bool
text_unescape(char *text, size_t *size)
{
    char *out = text;
    const char *end = text + *size;
    for (const char *p = text; p < end;) {
        if (*p != '\\') {
            *out++ = *p++;
            continue;
        }
        char c;
        size_t step = unescape_one(p + 1, end, &c);
        if (step == 0) return false;
        *out++ = c;
        p += 1 + step;
    }
    *size = (size_t)(out - text);
    return true;
}

bool
text_write_json(FILE *out, const void *data, size_t size)
{
    if (!text_is_utf8(data, size)) return false;
    const u8 *p = data;
    putc('"', out);
    size_t plain = 0; /* bytes up to i that need no escape and are not written yet */
    for (size_t i = 0; i < size; i++) {
        if (p[i] >= 0x20 && p[i] != '"' && p[i] != '\\' && p[i] != 0x7f) continue;
        fwrite(p + plain, 1, i - plain, out);
        plain = i + 1;
        switch (p[i]) {
        case '"':
            fputs("\\\"", out);
            break;
        case '\\':
            fputs("\\\\", out);
            break;
        case '\n':
            fputs("\\n", out);
            break;
        case '\t':
            fputs("\\t", out);
            break;
        case '\r':
            fputs("\\r", out);
            break;
        default:
            fprintf(out, "\\u%04x", p[i]);
        }
    }
    if (size > plain) fwrite(p + plain, 1, size - plain, out);
    putc('"', out);
    return true;
}

void
text_write_json_field(FILE *out, const char *name, const void *data, size_t size)
{
    if (text_is_utf8(data, size)) {
        fprintf(out, "\"%s\":", name);
        text_write_json(out, data, size);
        return;
    }
    fprintf(out, "\"%s_b64\":\"", name);
    text_write_base64(out, data, size);
    putc('"', out);
}

static const char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void
text_write_base64(FILE *out, const void *data, size_t size)
{
    const u8 *p = data;
    for (size_t i = 0; i < size; i += 3) {
        size_t have = MIN(size - i, 3);
        u32 word = (u32)p[i] << 16;
        if (have > 1) word |= (u32)p[i + 1] << 8;
        if (have > 2) word |= p[i + 2];
        char text[4] = {BASE64[word >> 18], BASE64[word >> 12 & 63],
                        have > 1 ? BASE64[word >> 6 & 63] : '=',
                        have > 2 ? BASE64[word & 63] : '='};
        fwrite(text, 1, 4, out);
    }
}

static int
base64_value(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    if (c == '+') return 62;
    return c == '/' ? 63 : -1;
}

bool
text_read_base64(const char *text, size_t size, u8 *out, size_t *out_size)
{
    if (size % 4 != 0) return false;
    size_t used = 0;
    for (size_t i = 0; i < size; i += 4) {
        u32 padding = 0;
        if (i + 4 == size) padding = text[i + 3] != '=' ? 0 : text[i + 2] != '=' ? 1 : 2;
        u32 word = 0;
        for (u32 j = 0; j < 4; j++) {
            int value = j >= 4 - padding ? 0 : base64_value(text[i + j]);
            if (value < 0) return false;
            word = word << 6 | (u32)value;
        }
        /* Bits behind the last byte must be zero: one text for each value. */
        if (padding > 0 && (word & (padding == 1 ? 0xffu : 0xffffu)) != 0) return false;
        out[used++] = (u8)(word >> 16);
        if (padding < 2) out[used++] = (u8)(word >> 8);
        if (padding < 1) out[used++] = (u8)word;
    }
    *out_size = used;
    return true;
}

int
text_split(char *line, char **words, size_t *sizes, int max)
{
    int count = 0;
    const char *end = line + strlen(line);
    char *p = line;
    while (true) {
        while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')
            p++;
        if (p == end) return count;
        if (count == max) return -2;
        char *out = p;
        words[count] = out;
        while (p < end && !strchr(" \t\r\n", *p)) {
            char quote = *p;
            if (quote != '"' && quote != '\'') {
                *out++ = *p++;
                continue;
            }
            for (p++; p < end && *p != quote;) {
                char c = *p;
                size_t step = 1;
                if (c == '\\' && quote == '"') {
                    step = unescape_one(p + 1, end, &c) + 1;
                    if (step == 1) c = '\\'; /* not an escape: as it is */
                }
                *out++ = c;
                p += step;
            }
            if (p == end) return -1;
            p++;
        }
        sizes[count] = (size_t)(out - words[count]);
        count++;
        if (p < end) p++;
        *out = '\0'; /* at the latest where the blank stood */
    }
}
