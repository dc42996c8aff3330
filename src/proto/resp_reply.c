/* SPDX-License-Identifier: MIT
 *
 * resp_reply.c -- RESP replies, written and read.
 *
 * Each element is appended whole or not at all, and after the first one that did not fit nothing
 * more is written: a reply with a hole would put every later reply in the wrong place, so a writer
 * that has failed means a connection to be closed.
 */
#include "proto/resp.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* A sign, 20 digits, a type byte and CR LF. */
#define RESP_HEAD_BYTES 24u

/* <type><value>\r\n into head; its size. */
static size_t
resp_format_head(u8 head[RESP_HEAD_BYTES], char type, i64 value)
{
    if (value >= 10 && value < 1000) { /* the size of most values */
        u32 n = (u32)value, hundreds = n / 100;
        u8 *p = head;
        *p++ = (u8)type;
        if (hundreds > 0) *p++ = (u8)('0' + hundreds);
        *p++ = (u8)('0' + n / 10 % 10);
        *p++ = (u8)('0' + n % 10);
        *p++ = '\r';
        *p++ = '\n';
        return (size_t)(p - head);
    }
    u8 digits[20];
    u32 count = 0;
    u64 rest = value < 0 ? 0 - (u64)value : (u64)value;
    do {
        digits[count++] = (u8)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    size_t size = 0;
    head[size++] = (u8)type;
    if (value < 0) head[size++] = '-';
    while (count > 0)
        head[size++] = digits[--count];
    head[size++] = '\r';
    head[size++] = '\n';
    return size;
}

static void
resp_append(struct resp_writer *w, const void *data, size_t size)
{
    if (!w->failed && !buf_append(w->out, data, size)) w->failed = true;
}

static void
resp_head(struct resp_writer *w, char type, i64 value)
{
    u8 head[RESP_HEAD_BYTES];
    resp_append(w, head, resp_format_head(head, type, value));
}

/* <head><prefix><bytes>\r\n, as one. */
static void
resp_blob(struct resp_writer *w, char type, struct bytes prefix, struct bytes value)
{
    size_t size = prefix.size + value.size;
    if (w->failed || !buf_reserve(w->out, RESP_HEAD_BYTES + size + 2)) {
        w->failed = true;
        return;
    }
    u8 *p = w->out->data + w->out->size;
    size_t head_size = resp_format_head(p, type, (i64)size);
    p += head_size;
    if (prefix.size > 0) memcpy(p, prefix.data, prefix.size);
    p += prefix.size;
    if (value.size > 0) memcpy(p, value.data, value.size);
    p += value.size;
    memcpy(p, "\r\n", 2);
    w->out->size += head_size + size + 2;
}

/* A line must stay one line: CR and LF in it would be read as the next reply. */
static void
resp_line(struct resp_writer *w, char type, const char *text, size_t size)
{
    if (w->failed || !buf_reserve(w->out, size + 3)) {
        w->failed = true;
        return;
    }
    u8 *p = w->out->data + w->out->size;
    *p++ = (u8)type;
    for (size_t i = 0; i < size; i++)
        *p++ = text[i] == '\r' || text[i] == '\n' ? ' ' : (u8)text[i];
    memcpy(p, "\r\n", 2);
    w->out->size += size + 3;
}

void
resp_simple(struct resp_writer *w, const char *text)
{
    resp_line(w, '+', text, strlen(text));
}

void
resp_ok(struct resp_writer *w)
{
    resp_append(w, "+OK\r\n", 5);
}

void
resp_error(struct resp_writer *w, const char *format, ...)
{
    /* The longest of our sentences quotes 128 bytes of a command and of its arguments each. */
    char text[640];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    CHECK(size >= 0);
    resp_line(w, '-', text, MIN((size_t)size, sizeof(text) - 1));
}

void
resp_integer(struct resp_writer *w, i64 value)
{
    resp_head(w, ':', value);
}

void
resp_bulk(struct resp_writer *w, struct bytes value)
{
    resp_blob(w, '$', BYTES(NULL, 0), value);
}

void
resp_bulk_text(struct resp_writer *w, const char *text)
{
    resp_bulk(w, BYTES(text, strlen(text)));
}

void
resp_null(struct resp_writer *w)
{
    if (w->version >= 3)
        resp_append(w, "_\r\n", 3);
    else
        resp_append(w, "$-1\r\n", 5);
}

void
resp_null_array(struct resp_writer *w)
{
    if (w->version >= 3)
        resp_append(w, "_\r\n", 3);
    else
        resp_append(w, "*-1\r\n", 5);
}

void
resp_array(struct resp_writer *w, u32 count)
{
    resp_head(w, '*', count);
}

void
resp_map(struct resp_writer *w, u32 pairs)
{
    if (w->version >= 3)
        resp_head(w, '%', pairs);
    else
        resp_head(w, '*', (i64)pairs * 2);
}

void
resp_set(struct resp_writer *w, u32 count)
{
    resp_head(w, w->version >= 3 ? '~' : '*', count);
}

void
resp_push(struct resp_writer *w, u32 count)
{
    resp_head(w, w->version >= 3 ? '>' : '*', count);
}

void
resp_bool(struct resp_writer *w, bool value)
{
    if (w->version >= 3)
        resp_append(w, value ? "#t\r\n" : "#f\r\n", 4);
    else
        resp_integer(w, value ? 1 : 0);
}

void
resp_double(struct resp_writer *w, double value)
{
    /* The shortest of these that reads back as the same number. */
    char text[32];
    int size = 0;
    if (isnan(value)) {
        size = snprintf(text, sizeof(text), "nan");
    } else if (isinf(value)) {
        size = snprintf(text, sizeof(text), "%s", value < 0 ? "-inf" : "inf");
    } else {
        for (int digits = 15; digits <= 17; digits++) {
            size = snprintf(text, sizeof(text), "%.*g", digits, value);
            if (strtod(text, NULL) == value) break;
        }
    }
    if (w->version >= 3)
        resp_line(w, ',', text, (size_t)size);
    else
        resp_bulk(w, BYTES(text, size));
}

void
resp_verbatim(struct resp_writer *w, const char *kind, struct bytes text)
{
    CHECK(strlen(kind) == 3);
    if (w->version < 3) {
        resp_bulk(w, text);
        return;
    }
    u8 prefix[4] = {(u8)kind[0], (u8)kind[1], (u8)kind[2], ':'};
    resp_blob(w, '=', BYTES(prefix, 4), text);
}

/* ---- reading replies ---- */

static bool
reply_integer(struct bytes line, i64 *out)
{
    bool negative = line.size > 0 && line.data[0] == '-';
    size_t i = negative || (line.size > 0 && line.data[0] == '+') ? 1 : 0;
    if (i == line.size || line.size > 20) return false;
    u64 value = 0;
    for (; i < line.size; i++) {
        if (line.data[i] < '0' || line.data[i] > '9') return false;
        u64 digit = (u64)(line.data[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    if (value > (u64)INT64_MAX + (negative ? 1 : 0)) return false;
    *out = negative ? (i64)(0 - value) : (i64)value;
    return true;
}

static status
reply_blob(struct bytes data, size_t line_end, i64 size, struct resp_reply *reply, size_t *consumed)
{
    if (size < 0 || size > (i64)RESP_BULK_BYTES_MAX) return ST_CORRUPT;
    if (data.size - line_end < (size_t)size + 2) return ST_INCOMPLETE;
    const u8 *end = data.data + line_end + size;
    if (end[0] != '\r' || end[1] != '\n') return ST_CORRUPT;
    reply->text = BYTES(data.data + line_end, size);
    *consumed = line_end + (size_t)size + 2;
    return ST_OK;
}

status
resp_read(struct bytes data, struct resp_reply *out, size_t *consumed)
{
    if (data.size == 0) return ST_INCOMPLETE;
    const u8 *cr = memchr(data.data, '\r', data.size);
    if (cr == NULL || (size_t)(cr - data.data) + 1 == data.size)
        return data.size > RESP_INLINE_BYTES_MAX + 2 ? ST_CORRUPT : ST_INCOMPLETE;
    if (cr[1] != '\n') return ST_CORRUPT;
    struct bytes line = BYTES(data.data + 1, cr - data.data - (cr > data.data ? 1 : 0));
    size_t line_end = (size_t)(cr - data.data) + 2;
    struct resp_reply reply = {0};
    i64 number = 0;
    switch (data.data[0]) {
    case '+':
    case '(': /* a number of any size: as text */
        reply.kind = RESP_REPLY_SIMPLE;
        reply.text = line;
        break;
    case '-':
        reply.kind = RESP_REPLY_ERROR;
        reply.text = line;
        break;
    case ',':
        reply.kind = RESP_REPLY_DOUBLE;
        reply.text = line;
        break;
    case ':':
        reply.kind = RESP_REPLY_INTEGER;
        if (!reply_integer(line, &reply.integer)) return ST_CORRUPT;
        break;
    case '#':
        reply.kind = RESP_REPLY_BOOL;
        if (line.size != 1 || (line.data[0] != 't' && line.data[0] != 'f')) return ST_CORRUPT;
        reply.integer = line.data[0] == 't';
        break;
    case '_':
        reply.kind = RESP_REPLY_NULL;
        if (line.size != 0) return ST_CORRUPT;
        break;
    case '$':
    case '!':
    case '=':
    case '*':
    case '%':
    case '~':
    case '>':
        if (!reply_integer(line, &number)) return ST_CORRUPT;
        break;
    default:
        return ST_CORRUPT;
    }
    switch (data.data[0]) {
    case '$':
    case '!':
    case '=':
        if (data.data[0] == '$' && number == -1) {
            reply.kind = RESP_REPLY_NULL;
            break;
        }
        reply.kind = data.data[0] == '$'   ? RESP_REPLY_BULK
                     : data.data[0] == '!' ? RESP_REPLY_ERROR
                                           : RESP_REPLY_VERBATIM;
        status st = reply_blob(data, line_end, number, &reply, consumed);
        if (!ok(st)) return st;
        *out = reply;
        return ST_OK;
    case '*':
    case '%':
    case '~':
    case '>':
        if (data.data[0] == '*' && number == -1) {
            reply.kind = RESP_REPLY_NULL;
            break;
        }
        if (number < 0 || number > (i64)UINT32_MAX) return ST_CORRUPT;
        reply.kind = data.data[0] == '*'   ? RESP_REPLY_ARRAY
                     : data.data[0] == '%' ? RESP_REPLY_MAP
                     : data.data[0] == '~' ? RESP_REPLY_SET
                                           : RESP_REPLY_PUSH;
        reply.integer = number;
        break;
    default:
        break;
    }
    *out = reply;
    *consumed = line_end;
    return ST_OK;
}
