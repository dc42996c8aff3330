/* SPDX-License-Identifier: MIT
 *
 * resp.c -- RESP commands from bytes.
 *
 *   *2\r\n $3\r\n GET\r\n $5\r\n hello\r\n          an array of bulk strings
 *   set key "a \"quoted\" \x41rgument"\r\n          an inline line
 *
 * The parser walks whole elements: `scanned` always stands at the beginning of an element (the
 * array's head, or one bulk string) that is not complete yet, so a call repeats at most that
 * element's head, and `searched` spares it the search for a line end that was not there the last
 * time. Only offsets are kept. Whatever is wrong is found as early as its bytes are there.
 *
 * We are stricter than Redis in one thing: it skips the two bytes behind an argument unseen, and
 * the byte behind a CR. A client that sends anything but CR LF there has lost its place, and what
 * follows would be run as commands; it gets an error.
 */
#include "proto/resp.h"

#include <stdio.h>

/* Memory that an idle parser keeps: 32 arguments. */
#define RESP_KEEP_BYTES 256u

void
resp_parser_init(struct resp_parser *parser, struct budget *budget)
{
    *parser = (struct resp_parser){0};
    buf_init(&parser->args, budget);
    buf_init(&parser->unquoted, budget);
}

void
resp_parser_deinit(struct resp_parser *parser)
{
    buf_deinit(&parser->args);
    buf_deinit(&parser->unquoted);
}

void
resp_parser_reset(struct resp_parser *parser)
{
    buf_clear(&parser->args, RESP_KEEP_BYTES);
    buf_clear(&parser->unquoted, RESP_KEEP_BYTES);
    parser->arg_count = 0;
    parser->inline_command = false;
    parser->started = false;
    parser->complete = false;
    parser->args_expected = 0;
    parser->scanned = 0;
    parser->searched = 0;
    parser->error[0] = '\0';
}

void
resp_parser_trim(struct resp_parser *parser)
{
    if (!resp_parser_is_fresh(parser)) return;
    resp_parser_reset(parser);
    buf_clear(&parser->args, 0);
    buf_clear(&parser->unquoted, 0);
}

static enum resp_result
resp_fail(struct resp_parser *parser, const char *text)
{
    snprintf(parser->error, sizeof(parser->error), "Protocol error: %s", text);
    return RESP_ERROR;
}

static bool
resp_add_arg(struct resp_parser *parser, size_t offset, size_t size)
{
    struct resp_arg arg = {.offset = (u32)offset, .size = (u32)size};
    if (!buf_append(&parser->args, &arg, sizeof(arg))) return false;
    parser->arg_count++;
    return true;
}

/* Decimal as Redis writes it: no sign but one "-", no leading zeros, no spaces, at most 64 bits. */
static bool
resp_read_integer(const u8 *text, size_t size, i64 *out)
{
    if (size == 0 || size > 20) return false;
    bool negative = text[0] == '-';
    size_t i = negative ? 1 : 0;
    if (i == size) return false;
    if (text[i] == '0' && (negative || size > 1)) return false;
    u64 value = 0;
    for (; i < size; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        u64 digit = (u64)(text[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    if (value > (u64)INT64_MAX + (negative ? 1 : 0)) return false;
    *out = negative ? (i64)(0 - value) : (i64)value;
    return true;
}

enum line_result { LINE_FOUND, LINE_INCOMPLETE, LINE_BROKEN, LINE_TOO_LONG };

/* Looks for the CR LF that ends the line at scanned; *size_out is the line's without it. */
static enum line_result
resp_find_line(struct resp_parser *parser, struct bytes data, size_t *size_out)
{
    const u8 *line = data.data + parser->scanned;
    size_t size = data.size - parser->scanned;
    const u8 *cr = memchr(line + parser->searched, '\r', size - parser->searched);
    if (cr == NULL) {
        parser->searched = size;
        return size > RESP_INLINE_BYTES_MAX ? LINE_TOO_LONG : LINE_INCOMPLETE;
    }
    *size_out = (size_t)(cr - line);
    parser->searched = *size_out;
    if (*size_out + 1 == size) return LINE_INCOMPLETE;
    return cr[1] == '\n' ? LINE_FOUND : LINE_BROKEN;
}

static void
resp_next_element(struct resp_parser *parser, size_t scanned)
{
    parser->scanned = scanned;
    parser->searched = 0;
}

static enum resp_result
resp_incomplete(size_t bytes, size_t *wanted)
{
    *wanted = bytes;
    return RESP_INCOMPLETE;
}

/* "*<count>\r\n". RESP_COMMAND here means: go on with the arguments. */
static enum resp_result
resp_parse_head(struct resp_parser *parser, struct bytes data, u32 args_max, size_t *wanted)
{
    size_t size;
    switch (resp_find_line(parser, data, &size)) {
    case LINE_INCOMPLETE:
        return resp_incomplete(data.size + 1, wanted);
    case LINE_TOO_LONG:
        return resp_fail(parser, "too big mbulk count string");
    case LINE_BROKEN:
        return resp_fail(parser, "invalid multibulk length");
    case LINE_FOUND:
        break;
    }
    i64 count;
    if (!resp_read_integer(data.data + 1, size - 1, &count) || count > RESP_ARGS_MAX)
        return resp_fail(parser, "invalid multibulk length");
    if (count > args_max) {
        return resp_fail(parser, args_max <= RESP_ARGS_MAX_UNAUTHENTICATED
                                     ? "unauthenticated multibulk length"
                                     : "invalid multibulk length");
    }
    parser->args_expected = count < 0 ? 0 : (u32)count;
    parser->started = true;
    resp_next_element(parser, size + 2);
    return RESP_COMMAND;
}

static enum resp_result
resp_expected_bulk(struct resp_parser *parser, u8 got)
{
    char text[32];
    if (got == '\r' || got == '\n') got = ' ';
    if (got == 0) got = '?';
    snprintf(text, sizeof(text), "expected '$', got '%c'", got);
    return resp_fail(parser, text);
}

/* "$<size>\r\n<bytes>\r\n". RESP_COMMAND: one argument more. */
static enum resp_result
resp_parse_bulk(struct resp_parser *parser, struct bytes data, u32 bulk_max, size_t *wanted)
{
    if (data.size == parser->scanned) return resp_incomplete(data.size + 1, wanted);
    const u8 *line = data.data + parser->scanned;
    size_t line_size;
    enum line_result found = resp_find_line(parser, data, &line_size);
    if (found == LINE_TOO_LONG) return resp_fail(parser, "too big bulk count string");
    if (line[0] != '$') return resp_expected_bulk(parser, line[0]);
    if (found == LINE_INCOMPLETE) return resp_incomplete(data.size + 1, wanted);
    i64 size;
    if (found == LINE_BROKEN || !resp_read_integer(line + 1, line_size - 1, &size) || size < 0)
        return resp_fail(parser, "invalid bulk length");
    if (size > bulk_max) {
        return resp_fail(parser, bulk_max <= RESP_BULK_BYTES_MAX_UNAUTHENTICATED
                                     ? "unauthenticated bulk length"
                                     : "invalid bulk length");
    }
    size_t offset = parser->scanned + line_size + 2;
    size_t end = offset + (size_t)size;
    /* Offsets are 32 bits: a command of 4 GiB is over every other limit as well. */
    if (end > UINT32_MAX) return resp_fail(parser, "invalid bulk length");
    if (data.size > end && data.data[end] != '\r')
        return resp_fail(parser, "expected CRLF after bulk string");
    if (data.size < end + 2) return resp_incomplete(end + 2, wanted);
    if (data.data[end + 1] != '\n') return resp_fail(parser, "expected CRLF after bulk string");
    if (!resp_add_arg(parser, offset, (size_t)size)) return RESP_NO_MEMORY;
    resp_next_element(parser, end + 2);
    return RESP_COMMAND;
}

/* ---- inline commands: the rules of redis-cli's quoting (Redis' sdssplitargs) ---- */

static bool
is_space(u8 c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int
hex_digit(u8 c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static u8
unescape(u8 c)
{
    switch (c) {
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case 'b':
        return '\b';
    case 'a':
        return '\a';
    default:
        return c;
    }
}

/* Reads what a double quote has opened, to behind the closing one. Unquoting never makes text
 * longer, so out has room. NULL: unbalanced. */
static const u8 *
unquote_double(const u8 *p, const u8 *end, u8 **out)
{
    while (p < end && *p != '"') {
        if (p[0] == '\\' && end - p >= 4 && p[1] == 'x' && hex_digit(p[2]) >= 0 &&
            hex_digit(p[3]) >= 0) {
            *(*out)++ = (u8)(hex_digit(p[2]) * 16 + hex_digit(p[3]));
            p += 4;
        } else if (p[0] == '\\' && end - p >= 2) {
            *(*out)++ = unescape(p[1]);
            p += 2;
        } else {
            *(*out)++ = *p++;
        }
    }
    return p == end ? NULL : p + 1;
}

static const u8 *
unquote_single(const u8 *p, const u8 *end, u8 **out)
{
    while (p < end && *p != '\'') {
        if (p[0] == '\\' && end - p >= 2 && p[1] == '\'') p++;
        *(*out)++ = *p++;
    }
    return p == end ? NULL : p + 1;
}

/* One argument from p on; NULL: unbalanced quotes. A closing quote ends the argument and must be
 * followed by space or nothing; an opening one may stand in its middle. */
static const u8 *
unquote_arg(const u8 *p, const u8 *end, u8 **out)
{
    while (p < end && !is_space(*p)) {
        if (*p != '"' && *p != '\'') {
            *(*out)++ = *p++;
            continue;
        }
        p = *p == '"' ? unquote_double(p + 1, end, out) : unquote_single(p + 1, end, out);
        if (p == NULL || (p < end && !is_space(*p))) return NULL;
        return p;
    }
    return p;
}

static enum resp_result
resp_parse_inline(struct resp_parser *parser, struct bytes data, u32 args_max, size_t *consumed,
                  size_t *wanted)
{
    const u8 *lf = memchr(data.data + parser->searched, '\n', data.size - parser->searched);
    size_t line_size = lf == NULL ? data.size : (size_t)(lf - data.data);
    if (line_size > RESP_INLINE_BYTES_MAX) return resp_fail(parser, "too big inline request");
    if (lf == NULL) {
        parser->searched = data.size;
        return resp_incomplete(data.size + 1, wanted);
    }
    const u8 *p = data.data;
    const u8 *end = lf;
    if (end > p && end[-1] == '\r') end--;
    parser->inline_command = true;
    if (!buf_reserve(&parser->unquoted, line_size + 1)) return RESP_NO_MEMORY;
    u8 *out = parser->unquoted.data;
    while (true) {
        while (p < end && is_space(*p))
            p++;
        if (p == end) break;
        u8 *start = out;
        p = unquote_arg(p, end, &out);
        if (p == NULL) return resp_fail(parser, "unbalanced quotes in request");
        if (parser->arg_count == args_max) return resp_fail(parser, "too big inline request");
        if (!resp_add_arg(parser, (size_t)(start - parser->unquoted.data), (size_t)(out - start)))
            return RESP_NO_MEMORY;
    }
    parser->unquoted.size = (size_t)(out - parser->unquoted.data);
    parser->complete = true;
    *consumed = line_size + 1;
    return RESP_COMMAND;
}

enum resp_result
resp_parse(struct resp_parser *parser, struct bytes data, u32 args_max, u32 bulk_max,
           size_t *consumed, size_t *wanted)
{
    if (parser->complete) resp_parser_reset(parser);
    if (data.size == 0) return resp_incomplete(1, wanted);
    CHECK(parser->scanned + parser->searched <= data.size);
    if (data.data[0] != '*') return resp_parse_inline(parser, data, args_max, consumed, wanted);
    if (!parser->started) {
        enum resp_result head = resp_parse_head(parser, data, args_max, wanted);
        if (head != RESP_COMMAND) return head;
    }
    u32 first = parser->arg_count, per_call = parser->args_per_call;
    while (parser->arg_count < parser->args_expected) {
        if (per_call != 0 && parser->arg_count - first == per_call)
            return resp_incomplete(parser->scanned, wanted);
        enum resp_result bulk = resp_parse_bulk(parser, data, bulk_max, wanted);
        if (bulk != RESP_COMMAND) return bulk;
    }
    parser->complete = true;
    *consumed = parser->scanned;
    return RESP_COMMAND;
}

/* ---- the usual request, without a state ---- */

/* "<number>\r\n": 1 to 5 digits, the first not 0. Returns what follows, or NULL. */
static const u8 *
plain_length(const u8 *p, const u8 *end, u32 *out)
{
    u32 value = 0;
    if (end - p < 3 || *p == '0') return NULL;
    const u8 *limit = end - p > 7 ? p + 5 : end - 2;
    for (; p < limit && (u8)(*p - '0') < 10; p++)
        value = value * 10 + (u8)(*p - '0');
    if (value == 0 || p[0] != '\r' || p[1] != '\n') return NULL;
    *out = value;
    return p + 2;
}

/* "<number>\r\n<bytes>\r\n" */
static const u8 *
plain_bulk(const u8 *p, const u8 *end, struct bytes *out)
{
    u32 size;
    p = plain_length(p, end, &size);
    if (p == NULL || (size_t)(end - p) < (size_t)size + 2) return NULL;
    if (p[size] != '\r' || p[size + 1] != '\n') return NULL;
    *out = BYTES(p, size);
    return p + size + 2;
}

bool
resp_parse_plain(struct bytes data, struct resp_plain *out)
{
    static const char head[] = "*2\r\n$3\r\nGET\r\n$";
    const size_t head_size = sizeof(head) - 1;
    if (data.size < head_size + 3) return false;
    const u8 *p = data.data, *end = data.data + data.size;
    bool set = p[1] == '3';
    if (p[0] != '*' || (!set && p[1] != '2') || memcmp(p + 2, head + 2, 6) != 0) return false;
    u8 c = p[8] | 0x20;
    if (c != (set ? 's' : 'g') || (p[9] | 0x20) != 'e' || (p[10] | 0x20) != 't') return false;
    if (memcmp(p + 11, head + 11, 3) != 0) return false;
    p = plain_bulk(p + head_size, end, &out->key);
    if (p == NULL || out->key.size > LIMIT_KEY_BYTES) return false;
    if (set) {
        if (end - p < 4 || *p != '$') return false;
        p = plain_bulk(p + 1, end, &out->value);
        if (p == NULL) return false;
    }
    out->set = set;
    out->size = (size_t)(p - data.data);
    return true;
}
