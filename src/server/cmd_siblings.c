/* SPDX-License-Identifier: MIT
 *
 * cmd_siblings.c -- DISTKV.GET, DISTKV.PUT, DISTKV.DEL: keys that keep siblings, with contexts.
 *
 * A context is an opaque word of hexadecimal digits: what a reader has seen. It goes back with the
 * next write, which then replaces exactly that.
 */
#include "server/cmd.h"

#include "cluster/cluster.h"
#include "proto/native.h"

static bool
hex_write(struct bytes bytes, struct buf *out)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < bytes.size; i++) {
        char pair[2] = {digits[bytes.data[i] >> 4], digits[bytes.data[i] & 15]};
        if (!buf_append(out, pair, 2)) return false;
    }
    return true;
}

static i32
hex_digit(u8 c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* A context as an argument; the bytes live until the end of the run. false: return. */
static bool
arg_context(struct exec *x, u32 i, struct bytes *out)
{
    struct bytes text = x->args[i];
    bool good = text.size % 2 == 0 && text.size <= 2 * NATIVE_CONTEXT_BYTES_MAX;
    u8 *bytes = good ? exec_alloc(x, text.size / 2) : NULL;
    if (good && bytes == NULL) return false;
    for (size_t at = 0; good && at < text.size; at += 2) {
        i32 high = hex_digit(text.data[at]), low = hex_digit(text.data[at + 1]);
        good = high >= 0 && low >= 0;
        if (good) bytes[at / 2] = (u8)(high << 4 | low);
    }
    if (!good) {
        exec_refuse(x, ST_INVALID, "this is no context");
        return false;
    }
    *out = BYTES(bytes, text.size / 2);
    return true;
}

/* [context, [value, ...]]; of a key that is absent a context and no values. */
MAY_YIELD void
cmd_distkv_get(struct exec *x)
{
    const struct dvvset *set;
    if (!exec_get_siblings(x, x->keyspace, x->args[1], &set)) return;
    u32 count = 0;
    for (u32 i = 0; i < set->count; i++)
        count += (set->values[i].flags & DVV_DELETED) == 0;
    struct buf context, text;
    buf_init(&context, x->budget);
    buf_init(&text, x->budget);
    status st = dvv_vector_encode(dvvset_context(set), &context);
    if (ok(st) && !hex_write(buf_bytes(&context), &text)) st = ST_NO_MEMORY;
    if (ok(st)) {
        resp_array(x->reply, 2);
        resp_bulk(x->reply, buf_bytes(&text));
        resp_array(x->reply, count);
        for (u32 i = 0; i < set->count; i++)
            if ((set->values[i].flags & DVV_DELETED) == 0) resp_bulk(x->reply, set->values[i].data);
    } else {
        exec_fail(x, st);
    }
    buf_deinit(&text);
    buf_deinit(&context);
}

/* key value [context] */
MAY_YIELD void
cmd_distkv_put(struct exec *x)
{
    if (x->arg_count > 4) {
        resp_error(x->reply, CMD_SYNTAX);
        return;
    }
    if (!cmd_value_fits(x->reply, x->args[2].size)) return;
    struct bytes context = BYTES(NULL, 0);
    if (x->arg_count == 4 && !arg_context(x, 3, &context)) return;
    if (exec_put_siblings(x, x->keyspace, x->args[1], context, &x->args[2])) resp_ok(x->reply);
}

/* key context */
MAY_YIELD void
cmd_distkv_del(struct exec *x)
{
    struct bytes context;
    if (!arg_context(x, 2, &context)) return;
    if (exec_put_siblings(x, x->keyspace, x->args[1], context, NULL)) resp_ok(x->reply);
}
