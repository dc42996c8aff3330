/* SPDX-License-Identifier: MIT
 *
 * cmd_key.c -- the commands on keys and their time to live.
 */
#include "cluster/cluster.h"
#include "server/cmd.h"

void
cmd_del(struct exec *x)
{
    i64 count = 0;
    for (u32 i = 1; i < x->arg_count; i++) {
        struct exec_value value;
        enum exec_found found = x->blind ? EXEC_FOUND : exec_look(x, x->args[i], &value);
        if (found == EXEC_STOP) return;
        if (found == EXEC_ABSENT) continue;
        if (!exec_delete(x, x->args[i])) return;
        count++;
    }
    resp_integer(x->reply, count);
}

void
cmd_exists(struct exec *x)
{
    i64 count = 0;
    for (u32 i = 1; i < x->arg_count; i++) {
        struct exec_value value;
        enum exec_found found = exec_get(x, x->args[i], &value);
        if (found == EXEC_STOP) return;
        count += found == EXEC_FOUND;
    }
    resp_integer(x->reply, count);
}

void
cmd_touch(struct exec *x)
{
    cmd_exists(x);
}

void
cmd_type(struct exec *x)
{
    struct exec_value value;
    enum exec_found found = exec_get(x, x->args[1], &value);
    if (found != EXEC_STOP) resp_simple(x->reply, found == EXEC_FOUND ? "string" : "none");
}

/* ---- moving ---- */

static void
rename_key(struct exec *x, bool only_if_absent)
{
    struct bytes from = x->args[1], to = x->args[2];
    struct exec_value value;
    enum exec_found found = exec_look(x, from, &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT) {
        resp_error(x->reply, "ERR no such key");
        return;
    }
    if (bytes_equal(from, to)) {
        if (only_if_absent)
            resp_integer(x->reply, 0);
        else
            resp_ok(x->reply);
        return;
    }
    struct bytes copy;
    u64 expire_ms = value.expire_ms;
    if (!exec_copy(x, value.value, &copy)) return;
    if (only_if_absent) {
        found = exec_look(x, to, &value);
        if (found == EXEC_STOP) return;
        if (found == EXEC_FOUND) {
            resp_integer(x->reply, 0);
            return;
        }
    }
    if (!exec_put(x, to, copy, expire_ms) || !exec_delete(x, from)) return;
    if (only_if_absent)
        resp_integer(x->reply, 1);
    else
        resp_ok(x->reply);
}

void
cmd_rename(struct exec *x)
{
    rename_key(x, false);
}

void
cmd_renamenx(struct exec *x)
{
    rename_key(x, true);
}

/* One that is not known here may have been made. False: it is not known whether it was. */
MAY_YIELD static bool
keyspace_known(struct exec *x, u16 keyspace)
{
    struct cluster_shard *cluster = x->shard->cluster;
    if (cluster == NULL || replicate_knows(cluster->replicator, keyspace)) return true;
    status st = ST_WOULD_WAIT; /* begins again, on a fiber */
    if (x->waits) st = cluster_topology_renew(cluster, x->deadline_ns);
    if (!ok(st)) exec_fail(x, st);
    return ok(st);
}

/* Whether the node that runs this holds the target, too. */
static bool
copies_within_row(const struct exec *x, u16 keyspace)
{
    if (x->shard->cluster == NULL || keyspace == x->keyspace) return true;
    const struct topology *topology = cluster_topology(x->shard->cluster);
    if (topology == NULL) return false;
    const struct topology_keyspace *from = &topology->keyspaces[x->keyspace];
    const struct topology_keyspace *to = &topology->keyspaces[keyspace];
    return to->used && to->replicas == from->replicas;
}

MAY_YIELD void
cmd_copy(struct exec *x)
{
    struct bytes from = x->args[1], to = x->args[2];
    bool replace = false;
    u16 keyspace = x->keyspace;
    for (u32 i = 3; i < x->arg_count; i++) {
        if (!exec_turn(x)) return;
        if (cmd_arg_is(x, i, "replace")) {
            replace = true;
        } else if (cmd_arg_is(x, i, "db") && i + 1 < x->arg_count) {
            if (!cmd_arg_db(x, ++i, &keyspace)) return;
        } else {
            resp_error(x->reply, CMD_SYNTAX);
            return;
        }
    }
    if (!keyspace_known(x, keyspace)) return;
    if (!copies_within_row(x, keyspace)) {
        resp_error(x->reply, "ERR in a cluster COPY goes to a keyspace that was used before, and "
                             "has as many replicas");
        return;
    }
    if (keyspace == x->keyspace && bytes_equal(from, to)) {
        resp_error(x->reply, "ERR source and destination objects are the same");
        return;
    }
    struct exec_value value;
    enum exec_found found = exec_get(x, from, &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT) {
        resp_integer(x->reply, 0);
        return;
    }
    struct bytes copy;
    u64 expire_ms = value.expire_ms;
    if (!exec_copy(x, value.value, &copy)) return;
    found = exec_get_in(x, keyspace, to, false, &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_FOUND && !replace) {
        resp_integer(x->reply, 0);
        return;
    }
    if (exec_put_in(x, keyspace, to, copy, expire_ms)) resp_integer(x->reply, 1);
}

/* ---- time to live ---- */

struct expire_options {
    bool nx, xx, gt, lt;
};

static bool
parse_expire_options(struct exec *x, struct expire_options *out)
{
    memset(out, 0, sizeof(*out));
    for (u32 i = 3; i < x->arg_count; i++) {
        if (cmd_arg_is(x, i, "nx")) {
            out->nx = true;
        } else if (cmd_arg_is(x, i, "xx")) {
            out->xx = true;
        } else if (cmd_arg_is(x, i, "gt")) {
            out->gt = true;
        } else if (cmd_arg_is(x, i, "lt")) {
            out->lt = true;
        } else {
            resp_error(x->reply, "ERR Unsupported option %.*s", (int)MIN(x->args[i].size, 128u),
                       (const char *)x->args[i].data);
            return false;
        }
    }
    if (out->nx && (out->xx || out->gt || out->lt)) {
        resp_error(x->reply, "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if (out->gt && out->lt) {
        resp_error(x->reply, "ERR GT and LT options at the same time are not compatible");
        return false;
    }
    return true;
}

static void
expire(struct exec *x, u32 how)
{
    struct expire_options options;
    u64 when;
    if (!parse_expire_options(x, &options)) return;
    if (!cmd_arg_expiry(x, 2, how, false, &when)) return;
    struct exec_value value;
    enum exec_found found = exec_look(x, x->args[1], &value);
    if (found == EXEC_STOP) return;
    u64 now = value.expire_ms;
    /* Without an expiry a key lives longer than any. */
    bool refused = found == EXEC_ABSENT || (options.nx && now != 0) || (options.xx && now == 0) ||
                   (options.gt && (now == 0 || when <= now)) ||
                   (options.lt && now != 0 && when >= now);
    if (refused) {
        resp_integer(x->reply, 0);
        return;
    }
    struct bytes copy;
    if (!exec_copy(x, value.value, &copy)) return;
    if (exec_put(x, x->args[1], copy, when)) resp_integer(x->reply, 1);
}

void
cmd_expire(struct exec *x)
{
    expire(x, CMD_SECONDS | CMD_RELATIVE);
}

void
cmd_pexpire(struct exec *x)
{
    expire(x, CMD_RELATIVE);
}

void
cmd_expireat(struct exec *x)
{
    expire(x, CMD_SECONDS);
}

void
cmd_pexpireat(struct exec *x)
{
    expire(x, 0);
}

void
cmd_persist(struct exec *x)
{
    struct exec_value value;
    enum exec_found found = exec_look(x, x->args[1], &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT || value.expire_ms == 0) {
        resp_integer(x->reply, 0);
        return;
    }
    struct bytes copy;
    if (!exec_copy(x, value.value, &copy)) return;
    if (exec_put(x, x->args[1], copy, 0)) resp_integer(x->reply, 1);
}

static void
reply_ttl(struct exec *x, bool seconds, bool absolute)
{
    struct exec_value value;
    enum exec_found found = exec_get(x, x->args[1], &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT || value.expire_ms == 0) {
        resp_integer(x->reply, found == EXEC_ABSENT ? -2 : -1);
        return;
    }
    u64 ms = value.expire_ms;
    if (!absolute) ms = ms > x->now_ms ? ms - x->now_ms : 0;
    resp_integer(x->reply, (i64)(seconds ? (ms + 500) / 1000 : ms));
}

void
cmd_ttl(struct exec *x)
{
    reply_ttl(x, true, false);
}

void
cmd_pttl(struct exec *x)
{
    reply_ttl(x, false, false);
}

void
cmd_expiretime(struct exec *x)
{
    reply_ttl(x, true, true);
}

void
cmd_pexpiretime(struct exec *x)
{
    reply_ttl(x, false, true);
}

/* ---- about one key ---- */

/* The sizes and words that Redis would answer for the same value. */
#define EMBSTR_BYTES_MAX 44u

void
cmd_object_encoding(struct exec *x)
{
    struct exec_value value;
    enum exec_found found = exec_look(x, x->args[2], &value);
    if (found == EXEC_STOP) return;
    i64 number;
    if (found == EXEC_ABSENT)
        resp_null(x->reply);
    else if (value.value.size <= 20 && number_parse_i64(value.value, &number))
        resp_bulk_text(x->reply, "int");
    else
        resp_bulk_text(x->reply, value.value.size <= EMBSTR_BYTES_MAX ? "embstr" : "raw");
}

static void
reply_number_if_there(struct exec *x, i64 number)
{
    struct exec_value value;
    enum exec_found found = exec_look(x, x->args[2], &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT)
        resp_null(x->reply);
    else
        resp_integer(x->reply, number);
}

void
cmd_object_idletime(struct exec *x)
{
    reply_number_if_there(x, 0); /* not kept per key */
}

void
cmd_object_refcount(struct exec *x)
{
    reply_number_if_there(x, 1);
}

void
cmd_object_freq(struct exec *x)
{
    struct exec_value value;
    enum exec_found found = exec_look(x, x->args[2], &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT) {
        resp_null(x->reply);
        return;
    }
    resp_error(x->reply, "ERR An LFU maxmemory policy is not selected, access frequency not "
                         "tracked. Please note that when switching between policies at runtime LRU "
                         "and LFU data will take some time to adjust.");
}

/* What an entry takes in a table, about: its bytes, its header, index and filter. */
#define ENTRY_OVERHEAD_BYTES 40u

void
cmd_memory_usage(struct exec *x)
{
    for (u32 i = 3; i < x->arg_count; i++) {
        i64 samples;
        if (!cmd_arg_is(x, i, "samples") || i + 1 >= x->arg_count) {
            resp_error(x->reply, CMD_SYNTAX);
            return;
        }
        if (!cmd_arg_i64(x, ++i, &samples)) return;
        if (samples < 0) {
            resp_error(x->reply, CMD_SYNTAX);
            return;
        }
    }
    struct exec_value value;
    enum exec_found found = exec_look(x, x->args[2], &value);
    if (found == EXEC_STOP) return;
    if (found == EXEC_ABSENT)
        resp_null(x->reply);
    else
        resp_integer(x->reply, (i64)(x->args[2].size + value.value.size + ENTRY_OVERHEAD_BYTES));
}
