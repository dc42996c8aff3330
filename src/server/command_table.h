/* SPDX-License-Identifier: MIT
 *
 * command_table.h -- the one table of commands: it drives parsing, arity, the keys a command
 * touches, where it runs, COMMAND and its DOCS, and the rows of the metrics.
 *
 * A command's name is unique in lower case; a subcommand's is "container|name". Keys lie at
 * arguments first, first + step, ... up to last (negative: counted from the end), as in Redis.
 */
#ifndef DISTKV_SERVER_COMMAND_TABLE_H
#define DISTKV_SERVER_COMMAND_TABLE_H

#include "base/types.h"

struct exec;
struct resp_writer;

enum command_flags {
    COMMAND_WRITE = 1 << 0,
    COMMAND_READONLY = 1 << 1,
    COMMAND_DENYOOM = 1 << 2,
    COMMAND_ADMIN = 1 << 3,
    COMMAND_NOSCRIPT = 1 << 4,
    COMMAND_LOADING = 1 << 5,
    COMMAND_STALE = 1 << 6,
    COMMAND_FAST = 1 << 7,
    COMMAND_NO_AUTH = 1 << 8,
    COMMAND_ALLOW_BUSY = 1 << 9,
    COMMAND_SKIP_SLOWLOG = 1 << 10,
    COMMAND_NO_MULTI = 1 << 11, /* cannot be queued: it spans shards */
    /* not shown to clients */
    COMMAND_DANGEROUS = 1 << 16, /* categories, where nothing else implies them */
    COMMAND_ADMIN_CATEGORY = 1 << 17,
    COMMAND_MULTI_NOW = 1 << 18,  /* runs at once inside MULTI */
    COMMAND_NATIVE = 1 << 19,     /* an opcode: only in the metrics */
    COMMAND_CONNECTION = 1 << 20, /* category */
    COMMAND_HEAVY = 1 << 21,      /* walks over the keyspace: see request.h */
};

enum command_place {
    PLACE_KEYS,        /* on the shard that owns the keys (of one slot when there are several) */
    PLACE_SPLIT_SUM,   /* per key, replies are integers to add */
    PLACE_SPLIT_OK,    /* per key, +OK */
    PLACE_SPLIT_ARRAY, /* per key, an array in the order of the keys */
    PLACE_HOME,        /* on the connection's shard, never waits */
    PLACE_FIBER,       /* on the connection's shard, on a fiber: asks the other shards */
    PLACE_EXEC,        /* EXEC */
    PLACE_WATCH,       /* WATCH */
    PLACE_CONTAINER,   /* has subcommands, does nothing itself */
};

enum command_group {
    GROUP_STRING,
    GROUP_GENERIC,
    GROUP_CONNECTION,
    GROUP_SERVER,
    GROUP_TRANSACTIONS,
    GROUP_CLUSTER,
    GROUP_NATIVE,
};

struct command {
    const char *name;
    void (*handler)(struct exec *x);
    i32 arity; /* with the name; negative: at least so many */
    enum command_place place;
    u32 flags; /* enum command_flags */
    i32 first, last, step;
    enum command_group group;
    const char *since;
    const char *complexity;
    const char *key_flags; /* "RW access update"; two specifications are parted by '|' */
    const char *tips;      /* space-separated */
    const char *syntax;    /* arguments: see command_docs.c */
    const char *summary;
};

extern const struct command command_table[];
u32 command_table_count(void);
static inline u32
command_index(const struct command *command)
{
    return (u32)(command - command_table);
}

/* NULL when there is none. Case is ignored. */
const struct command *command_find(struct bytes name);
const struct command *command_find_sub(const struct command *container, struct bytes name);
const struct command *command_native(u32 opcode);
bool command_is_sub(const struct command *command);
u32 command_sub_count(const struct command *command); /* they follow their container */
bool command_arity_fits(const struct command *command, u32 arg_count);

/* The keys of a call: for (i = first; i <= last; i += step). last_out < first when there are
 * none. */
void command_key_range(const struct command *command, u32 arg_count, u32 *first_out, u32 *last_out,
                       u32 *step_out);
/* Calls each(arg, exec_key_hash) for every key that the run x may touch, a transaction's all. */
void command_for_each_key_hash(struct exec *x, void (*each)(void *arg, u64 hash), void *arg);

/* COMMAND INFO's and COMMAND DOCS' element for one command. */
void command_reply_info(struct resp_writer *w, const struct command *command);
void command_reply_docs(struct resp_writer *w, const struct command *command);
/* Whether the command is in an ACL category ("read"); for COMMAND LIST. */
bool command_in_category(const struct command *command, struct bytes category);

#define COMMAND_NATIVE_COUNT 17u

/* ---- handlers ---- */
/* clang-format takes the list for one expression, and never comes to an end. */
/* clang-format off */
#define COMMAND_HANDLERS(X)                                                                        \
    X(get) X(set) X(mget) X(mset) X(msetnx) X(setnx) X(setex) X(psetex) X(getset) X(getdel)        \
    X(getex) X(append) X(strlen) X(getrange) X(setrange) X(incr) X(decr) X(incrby) X(decrby)       \
    X(incrbyfloat) X(del) X(exists) X(type) X(touch) X(rename) X(renamenx) X(copy) X(expire)       \
    X(pexpire) X(expireat) X(pexpireat) X(ttl) X(pttl) X(expiretime) X(pexpiretime) X(persist)     \
    X(scan) X(keys) X(randomkey) X(dbsize) X(flushdb) X(flushall) X(multi) X(exec) X(discard)      \
    X(watch) X(unwatch) X(hello) X(auth) X(ping) X(echo) X(quit) X(select) X(reset) X(client_id)   \
    X(client_info) X(client_list) X(client_kill) X(client_getname) X(client_setname)               \
    X(client_setinfo) X(client_reply) X(client_no_evict) X(client_help) X(info) X(command)         \
    X(command_count) X(command_info) X(command_docs) X(command_getkeys) X(command_list)            \
    X(command_help) X(config_get) X(config_set) X(config_resetstat) X(config_help) X(slowlog_get)  \
    X(slowlog_len) X(slowlog_reset) X(slowlog_help) X(latency_latest) X(latency_history) X(latency_graph)           \
    X(latency_reset) X(latency_histogram) X(latency_doctor) X(latency_help) X(memory_usage)        \
    X(memory_help) X(object_encoding) X(object_freq) X(object_idletime) X(object_refcount)         \
    X(object_help) X(time) X(role) X(wait) X(monitor) X(shutdown) X(acl_whoami) X(acl_help)        \
    X(cluster_info) X(cluster_myid) X(cluster_keyslot) X(cluster_slots) X(cluster_shards)          \
    X(cluster_nodes) X(cluster_help) X(readonly) X(distkv_consistency) X(distkv_remove)                        \
    X(distkv_get) X(distkv_put) X(distkv_del) X(distkv_repair)
/* clang-format on */
#define X(name) void cmd_##name(struct exec *x);
COMMAND_HANDLERS(X)
#undef X

#endif
