/* SPDX-License-Identifier: MIT
 *
 * cmd_string.c -- the commands on values. Order of checks, replies and texts are Redis' own,
 * because clients compare them.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "server/cmd.h"

void
cmd_text(struct buf *out, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    if (n < 0) return;
    if (!buf_append(out, line, MIN((size_t)n, sizeof(line) - 1))) return; /* cut: memory is out */
}

bool
cmd_value_fits(struct resp_writer *w, size_t size)
{
    if (size <= LIMIT_VALUE_BYTES) return true;
    resp_error(w, "ERR value is too large: %zu bytes, a value has at most %u bytes", size,
               LIMIT_VALUE_BYTES);
    return false;
}

bool
cmd_pattern_fits(struct exec *x, struct bytes pattern)
{
    if (pattern.size <= CMD_PATTERN_BYTES_MAX) return true;
    resp_error(x->reply, "ERR pattern is too long: %zu bytes, a pattern has at most %u bytes",
               pattern.size, CMD_PATTERN_BYTES_MAX);
    return false;
}

static bool
grown_fits(struct exec *x, u64 size)
{
    if (size <= LIMIT_VALUE_BYTES) return true;
    resp_error(x->reply, "ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    return false;
}

bool
cmd_arg_expiry(struct exec *x, u32 i, u32 how, bool positive, u64 *out)
{
    i64 value;
    if (!cmd_arg_i64(x, i, &value)) return false;
    if (positive && value <= 0) goto invalid;
    if (how & CMD_SECONDS && __builtin_mul_overflow(value, (i64)1000, &value)) goto invalid;
    if (how & CMD_RELATIVE && __builtin_add_overflow(value, (i64)x->now_ms, &value)) goto invalid;
    /* 0 means "never" to the store; any time before now is as good as another. */
    *out = value <= 0 ? 1 : (u64)value;
    return true;
invalid:
    resp_error(x->reply, "ERR invalid expire time in '%s' command", x->command->name);
    return false;
}

static void
reply_value(struct exec *x, enum exec_found found, const struct exec_value *value)
{
    if (found == EXEC_FOUND)
        resp_bulk(x->reply, value->value);
    else
        resp_null(x->reply);
}

/* ---- GET and SET ---- */

void
cmd_get(struct exec *x)
{
    struct exec_value value;
    enum exec_found found = exec_get(x, x->args[1], &value);
    if (found != EXEC_STOP) reply_value(x, found, &value);
}

struct set_options {
    bool nx, xx, get, keep_ttl, persist;
    u32 expiry_arg; /* 0: none */
    u32 expiry_how;
};

/* One kind of expiry at most; the same kind again is the one that counts, as in Redis. */
static bool
take_expiry(struct exec *x, u32 i, struct set_options *out)
{
    static const struct {
        const char *word;
        u32 how;
    } kinds[] = {
        {"ex", CMD_SECONDS | CMD_RELATIVE},
        {"px", CMD_RELATIVE},
        {"exat", CMD_SECONDS},
        {"pxat", 0},
    };
    if (out->keep_ttl || out->persist || i + 1 >= x->arg_count) return false;
    for (u32 kind = 0; kind < ARRAY_COUNT(kinds); kind++) {
        if (!cmd_arg_is(x, i, kinds[kind].word)) continue;
        if (out->expiry_arg != 0 && out->expiry_how != kinds[kind].how) return false;
        out->expiry_how = kinds[kind].how;
        out->expiry_arg = i + 1;
        return true;
    }
    return false;
}

/* Reads the options of SET (is_set) or GETEX from argument i on. */
static bool
parse_set_options(struct exec *x, u32 i, bool is_set, struct set_options *out)
{
    memset(out, 0, sizeof(*out));
    for (; i < x->arg_count; i++) {
        if (is_set && cmd_arg_is(x, i, "nx") && !out->xx) {
            out->nx = true;
        } else if (is_set && cmd_arg_is(x, i, "xx") && !out->nx) {
            out->xx = true;
        } else if (is_set && cmd_arg_is(x, i, "get")) {
            out->get = true;
        } else if (is_set && cmd_arg_is(x, i, "keepttl") && out->expiry_arg == 0) {
            out->keep_ttl = true;
        } else if (!is_set && cmd_arg_is(x, i, "persist") && out->expiry_arg == 0) {
            out->persist = true;
        } else if (take_expiry(x, i, out)) {
            i++;
        } else {
            resp_error(x->reply, CMD_SYNTAX);
            return false;
        }
    }
    return true;
}

void
cmd_set(struct exec *x)
{
    struct set_options options;
    if (!parse_set_options(x, 3, true, &options)) return;
    u64 expire_ms = 0;
    if (options.expiry_arg != 0 &&
        !cmd_arg_expiry(x, options.expiry_arg, options.expiry_how, true, &expire_ms))
        return;
    if (!cmd_value_fits(x->reply, x->args[2].size)) return;
    if (options.nx || options.xx || options.get || options.keep_ttl) {
        struct exec_value old;
        enum exec_found found =
            options.get ? exec_get(x, x->args[1], &old) : exec_look(x, x->args[1], &old);
        if (found == EXEC_STOP) return;
        if (options.get) reply_value(x, found, &old);
        if ((options.nx && found == EXEC_FOUND) || (options.xx && found == EXEC_ABSENT)) {
            if (!options.get) resp_null(x->reply);
            return;
        }
        if (options.keep_ttl && found == EXEC_FOUND) expire_ms = old.expire_ms;
    }
    if (!exec_put(x, x->args[1], x->args[2], expire_ms)) return;
    if (!options.get) resp_ok(x->reply);
}

void
cmd_setnx(struct exec *x)
{
    if (!cmd_value_fits(x->reply, x->args[2].size)) return;
    struct exec_value old;
    enum exec_found found = exec_look(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT && !exec_put(x, x->args[1], x->args[2], 0)) return;
    resp_integer(x->reply, found == EXEC_ABSENT);
}

static void
set_with_expiry(struct exec *x, u32 how)
{
    u64 expire_ms;
    if (!cmd_arg_expiry(x, 2, how, true, &expire_ms)) return;
    if (!cmd_value_fits(x->reply, x->args[3].size)) return;
    if (exec_put(x, x->args[1], x->args[3], expire_ms)) resp_ok(x->reply);
}

void
cmd_setex(struct exec *x)
{
    set_with_expiry(x, CMD_SECONDS | CMD_RELATIVE);
}

void
cmd_psetex(struct exec *x)
{
    set_with_expiry(x, CMD_RELATIVE);
}

void
cmd_getset(struct exec *x)
{
    if (!cmd_value_fits(x->reply, x->args[2].size)) return;
    struct exec_value old;
    enum exec_found found = exec_get(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    reply_value(x, found, &old);
    if (!exec_put(x, x->args[1], x->args[2], 0)) return;
}

void
cmd_getdel(struct exec *x)
{
    struct exec_value old;
    enum exec_found found = exec_get(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    reply_value(x, found, &old);
    if (found == EXEC_FOUND && !exec_delete(x, x->args[1])) return;
}

void
cmd_getex(struct exec *x)
{
    struct set_options options;
    if (!parse_set_options(x, 2, false, &options)) return;
    struct exec_value old;
    enum exec_found found = exec_get(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT) {
        resp_null(x->reply);
        return;
    }
    u64 expire_ms = 0;
    if (options.expiry_arg != 0 &&
        !cmd_arg_expiry(x, options.expiry_arg, options.expiry_how, true, &expire_ms))
        return;
    resp_bulk(x->reply, old.value);
    if (options.expiry_arg == 0 && !(options.persist && old.expire_ms != 0)) return;
    struct bytes copy;
    if (!exec_copy(x, old.value, &copy)) return;
    if (!exec_put(x, x->args[1], copy, expire_ms)) return;
}

/* ---- several ---- */

void
cmd_mget(struct exec *x)
{
    resp_array(x->reply, x->arg_count - 1);
    for (u32 i = 1; i < x->arg_count; i++) {
        struct exec_value value;
        enum exec_found found = exec_get(x, x->args[i], &value);
        if (found == EXEC_STOP) return;
        reply_value(x, found, &value);
        if (exec_reply_too_large(x)) return;
    }
}

static bool
put_pairs(struct exec *x)
{
    for (u32 i = 1; i + 1 < x->arg_count; i += 2)
        if (!exec_put(x, x->args[i], x->args[i + 1], 0)) return false;
    return true;
}

static bool
pairs_fit(struct exec *x)
{
    if (x->arg_count % 2 == 0) {
        resp_error(x->reply, "ERR wrong number of arguments for '%s' command", x->command->name);
        return false;
    }
    for (u32 i = 1; i + 1 < x->arg_count; i += 2)
        if (!cmd_value_fits(x->reply, x->args[i + 1].size)) return false;
    return true;
}

void
cmd_mset(struct exec *x)
{
    if (pairs_fit(x) && put_pairs(x)) resp_ok(x->reply);
}

void
cmd_msetnx(struct exec *x)
{
    if (!pairs_fit(x)) return;
    for (u32 i = 1; i + 1 < x->arg_count; i += 2) {
        struct exec_value old;
        enum exec_found found = exec_look(x, x->args[i], &old);
        if (found == EXEC_STOP) return;
        if (found == EXEC_FOUND) {
            resp_integer(x->reply, 0);
            return;
        }
    }
    if (put_pairs(x)) resp_integer(x->reply, 1);
}

/* ---- parts of a value ---- */

void
cmd_append(struct exec *x)
{
    struct exec_value old;
    enum exec_found found = exec_look(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    size_t old_size = found == EXEC_FOUND ? old.value.size : 0;
    size_t size = old_size + x->args[2].size;
    if (!grown_fits(x, size)) return;
    u64 expire_ms = found == EXEC_FOUND ? old.expire_ms : 0;
    u8 *grown = exec_alloc(x, size);
    if (grown == NULL) return;
    if (old_size != 0) memcpy(grown, old.value.data, old_size);
    if (x->args[2].size != 0) memcpy(grown + old_size, x->args[2].data, x->args[2].size);
    if (exec_put(x, x->args[1], BYTES(grown, size), expire_ms)) resp_integer(x->reply, (i64)size);
}

void
cmd_strlen(struct exec *x)
{
    struct exec_value value;
    enum exec_found found = exec_get(x, x->args[1], &value);
    if (found == EXEC_STOP) return;
    resp_integer(x->reply, found == EXEC_FOUND ? (i64)value.value.size : 0);
}

void
cmd_getrange(struct exec *x)
{
    i64 start, end;
    if (!cmd_arg_i64(x, 2, &start) || !cmd_arg_i64(x, 3, &end)) return;
    struct exec_value value;
    enum exec_found found = exec_get(x, x->args[1], &value);
    if (found == EXEC_STOP) return;
    i64 size = found == EXEC_FOUND ? (i64)value.value.size : 0;
    bool empty = size == 0 || (start < 0 && end < 0 && start > end);
    if (!empty) {
        if (start < 0) start = MAX(start + size, 0);
        if (end < 0) end = MAX(end + size, 0);
        end = MIN(end, size - 1);
        empty = start > end;
    }
    resp_bulk(x->reply,
              empty ? BYTES("", 0) : BYTES(value.value.data + start, (size_t)(end - start + 1)));
}

void
cmd_setrange(struct exec *x)
{
    i64 offset;
    if (!cmd_arg_i64(x, 2, &offset)) return;
    if (offset < 0) {
        resp_error(x->reply, "ERR offset is out of range");
        return;
    }
    struct bytes piece = x->args[3];
    struct exec_value old;
    enum exec_found found = exec_look(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    size_t old_size = found == EXEC_FOUND ? old.value.size : 0;
    if (piece.size == 0) {
        resp_integer(x->reply, (i64)old_size);
        return;
    }
    if (offset > LIMIT_VALUE_BYTES || !grown_fits(x, (u64)offset + piece.size)) {
        if (offset > LIMIT_VALUE_BYTES) (void)grown_fits(x, UINT64_MAX);
        return;
    }
    size_t size = MAX(old_size, (size_t)offset + piece.size);
    u64 expire_ms = found == EXEC_FOUND ? old.expire_ms : 0;
    u8 *changed = exec_alloc(x, size);
    if (changed == NULL) return;
    memset(changed, 0, size);
    if (old_size != 0) memcpy(changed, old.value.data, old_size);
    memcpy(changed + offset, piece.data, piece.size);
    if (exec_put(x, x->args[1], BYTES(changed, size), expire_ms)) resp_integer(x->reply, (i64)size);
}

/* ---- counters ---- */

static void
add(struct exec *x, i64 delta)
{
    struct exec_value old;
    enum exec_found found = exec_look(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    i64 value = 0;
    u64 expire_ms = 0;
    if (found == EXEC_FOUND) {
        if (!number_parse_i64(old.value, &value)) {
            resp_error(x->reply, CMD_NOT_INTEGER);
            return;
        }
        expire_ms = old.expire_ms;
    }
    if (__builtin_add_overflow(value, delta, &value)) {
        resp_error(x->reply, "ERR increment or decrement would overflow");
        return;
    }
    u8 *text = exec_alloc(x, 24);
    if (text == NULL) return;
    size_t size = number_format_i64(value, (char *)text);
    if (exec_put(x, x->args[1], BYTES(text, size), expire_ms)) resp_integer(x->reply, value);
}

void
cmd_incr(struct exec *x)
{
    add(x, 1);
}

void
cmd_decr(struct exec *x)
{
    add(x, -1);
}

void
cmd_incrby(struct exec *x)
{
    i64 delta;
    if (cmd_arg_i64(x, 2, &delta)) add(x, delta);
}

void
cmd_decrby(struct exec *x)
{
    i64 delta;
    if (!cmd_arg_i64(x, 2, &delta)) return;
    if (delta == INT64_MIN) {
        resp_error(x->reply, "ERR decrement would overflow");
        return;
    }
    add(x, -delta);
}

void
cmd_incrbyfloat(struct exec *x)
{
    struct exec_value old;
    enum exec_found found = exec_look(x, x->args[1], &old);
    if (found == EXEC_STOP) return;
    long double value = 0, delta;
    u64 expire_ms = found == EXEC_FOUND ? old.expire_ms : 0;
    if ((found == EXEC_FOUND && !number_parse_float(old.value, &value)) ||
        !number_parse_float(x->args[2], &delta)) {
        resp_error(x->reply, "ERR value is not a valid float");
        return;
    }
    value += delta;
    if (isnan(value) || isinf(value)) {
        resp_error(x->reply, "ERR increment would produce NaN or Infinity");
        return;
    }
    char *text = (char *)exec_alloc(x, NUMBER_FLOAT_BYTES);
    if (text == NULL) return;
    size_t size = number_format_float(value, text);
    if (exec_put(x, x->args[1], BYTES(text, size), expire_ms))
        resp_bulk(x->reply, BYTES(text, size));
}
