/* SPDX-License-Identifier: MIT
 *
 * cmd.h -- what the files of command handlers (cmd_*.c) share.
 */
#ifndef DISTKV_SERVER_CMD_H
#define DISTKV_SERVER_CMD_H

#include "base/limits.h"
#include "server/command_table.h"
#include "server/exec.h"
#include "server/number.h"

#define CMD_NOT_INTEGER "ERR value is not an integer or out of range"
#define CMD_SYNTAX      "ERR syntax error"

static inline bool
cmd_arg_is(const struct exec *x, u32 i, const char *word)
{
    return text_is(x->args[i], word);
}

/* Replies the error and returns false when the argument is none. */
static inline bool
cmd_arg_i64(struct exec *x, u32 i, i64 *out)
{
    if (number_parse_i64(x->args[i], out)) return true;
    resp_error(x->reply, CMD_NOT_INTEGER);
    return false;
}

/* The number of a database, for SELECT and COPY; the same. */
static inline bool
cmd_arg_db(struct exec *x, u32 i, u16 *out)
{
    i64 db;
    if (!cmd_arg_i64(x, i, &db)) return false;
    if (db < INT32_MIN || db > INT32_MAX) { /* Redis reads an int */
        resp_error(x->reply, "ERR value is out of range, value must between %d and %d", INT32_MIN,
                   INT32_MAX);
        return false;
    }
    if (db < 0 || db >= LIMIT_KEYSPACES_CLIENT) {
        resp_error(x->reply, "ERR DB index is out of range");
        return false;
    }
    *out = (u16)db;
    return true;
}

/* Replies the error and returns false when a value is over the limit. */
bool cmd_value_fits(struct resp_writer *w, size_t size);

/* The same for a pattern: what it costs to match a key grows with both, and one match is not
 * interrupted. Enough for a class for every byte of a key. */
#define CMD_PATTERN_BYTES_MAX (4 * LIMIT_KEY_BYTES)
bool cmd_pattern_fits(struct exec *x, struct bytes pattern);

enum cmd_time { CMD_SECONDS = 1, CMD_RELATIVE = 2 };
/* An expiry given as an argument, to Unix milliseconds. positive: 0 and below are errors. */
bool cmd_arg_expiry(struct exec *x, u32 i, u32 how, bool positive, u64 *out);

/* Appends lines to a growing text for bulk replies; cut, never overflowing. */
PRINTF_LIKE(2, 3) void cmd_text(struct buf *out, const char *format, ...);

#endif
