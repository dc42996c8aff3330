/* SPDX-License-Identifier: MIT
 *
 * command_table.c -- the table, and finding in it. What COMMAND says of each is command_docs.c's.
 *
 * Names are found by walking the table: the commands that make up nearly all traffic stand first,
 * and one byte decides against nearly all others, so that a look-up costs less than the call of a
 * hash function would. Subcommands follow their container.
 */
#include "server/command_table.h"

#include "base/limits.h"
#include "proto/native.h"
#include "server/exec.h"
#include "server/native.h"
#include "server/number.h"

/* clang-format off */
const struct command command_table[] = {
    {"get", cmd_get, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "RO access", "", "key", "Returns the value of a key."},
    {"set", cmd_set, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "RW access update variable_flags", "", "key value [NX|XX] [GET] [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|KEEPTTL]", "Sets a key, on a condition and with a time to live where asked."},
    {"mget", cmd_mget, -2, PLACE_SPLIT_ARRAY, COMMAND_READONLY | COMMAND_FAST, 1, -1, 1, GROUP_STRING, "1.0.0", "O(N)", "RO access", "request_policy:multi_shard", "key...", "Returns the values of several keys."},
    {"mset", cmd_mset, -3, PLACE_SPLIT_OK, COMMAND_WRITE | COMMAND_DENYOOM, 1, -1, 2, GROUP_STRING, "1.0.1", "O(N)", "OW update", "request_policy:multi_shard response_policy:all_succeeded", "(key value)...", "Sets several keys, each on its own."},
    {"msetnx", cmd_msetnx, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM, 1, -1, 2, GROUP_STRING, "1.0.1", "O(N)", "OW insert", "request_policy:multi_shard response_policy:agg_min", "(key value)...", "Sets several keys of one slot when none of them is there."},
    {"setnx", cmd_setnx, 3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "OW insert", "", "key value", "Sets a key when it is not there."},
    {"setex", cmd_setex, 4, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM, 1, 1, 1, GROUP_STRING, "2.0.0", "O(1)", "OW update", "", "key seconds value", "Sets a key with a time to live in seconds."},
    {"psetex", cmd_psetex, 4, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM, 1, 1, 1, GROUP_STRING, "2.6.0", "O(1)", "OW update", "", "key milliseconds value", "Sets a key with a time to live in milliseconds."},
    {"getset", cmd_getset, 3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "RW access update", "", "key value", "Sets a key and returns what was there."},
    {"getdel", cmd_getdel, 2, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "6.2.0", "O(1)", "RW access delete", "", "key", "Deletes a key and returns what was there."},
    {"getex", cmd_getex, -2, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "6.2.0", "O(1)", "RW access update", "", "key [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|PERSIST]", "Returns a value and changes its time to live."},
    {"append", cmd_append, 3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "2.0.0", "O(1)", "RW insert", "", "key value", "Appends to a value."},
    {"strlen", cmd_strlen, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "2.2.0", "O(1)", "RO", "", "key", "Returns the length of a value."},
    {"getrange", cmd_getrange, 4, PLACE_KEYS, COMMAND_READONLY, 1, 1, 1, GROUP_STRING, "2.4.0", "O(N)", "RO access", "", "key start end", "Returns a part of a value."},
    {"setrange", cmd_setrange, 4, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM, 1, 1, 1, GROUP_STRING, "2.2.0", "O(N)", "RW update", "", "key offset value", "Overwrites a part of a value."},
    {"incr", cmd_incr, 2, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "RW access update", "", "key", "Adds one to a number."},
    {"decr", cmd_decr, 2, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "RW access update", "", "key", "Takes one from a number."},
    {"incrby", cmd_incrby, 3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "RW access update", "", "key increment", "Adds to a number."},
    {"decrby", cmd_decrby, 3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "1.0.0", "O(1)", "RW access update", "", "key decrement", "Subtracts from a number."},
    {"incrbyfloat", cmd_incrbyfloat, 3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "2.6.0", "O(1)", "RW access update", "", "key increment", "Adds to a number with a fraction."},
    {"del", cmd_del, -2, PLACE_SPLIT_SUM, COMMAND_WRITE, 1, -1, 1, GROUP_GENERIC, "1.0.0", "O(N)", "RM delete", "request_policy:multi_shard response_policy:agg_sum", "key...", "Deletes keys."},
    {"unlink", cmd_del, -2, PLACE_SPLIT_SUM, COMMAND_WRITE | COMMAND_FAST, 1, -1, 1, GROUP_GENERIC, "4.0.0", "O(N)", "RM delete", "request_policy:multi_shard response_policy:agg_sum", "key...", "Deletes keys; here the same as DEL."},
    {"exists", cmd_exists, -2, PLACE_SPLIT_SUM, COMMAND_READONLY | COMMAND_FAST, 1, -1, 1, GROUP_GENERIC, "1.0.0", "O(N)", "RO", "request_policy:multi_shard response_policy:agg_sum", "key...", "Counts how many of the keys are there."},
    {"touch", cmd_touch, -2, PLACE_SPLIT_SUM, COMMAND_READONLY | COMMAND_FAST, 1, -1, 1, GROUP_GENERIC, "3.2.1", "O(N)", "RO", "request_policy:multi_shard response_policy:agg_sum", "key...", "Counts how many of the keys are there."},
    {"type", cmd_type, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "1.0.0", "O(1)", "RO", "", "key", "Returns the type of a key: string or none."},
    {"rename", cmd_rename, 3, PLACE_KEYS, COMMAND_WRITE, 1, 2, 1, GROUP_GENERIC, "1.0.0", "O(1)", "RW access delete|OW update", "", "key newkey", "Renames a key within its slot."},
    {"renamenx", cmd_renamenx, 3, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 2, 1, GROUP_GENERIC, "1.0.0", "O(1)", "RW access delete|OW insert", "", "key newkey", "Renames a key when the new name is free."},
    {"copy", cmd_copy, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM, 1, 2, 1, GROUP_GENERIC, "6.2.0", "O(1)", "RO access|OW update", "", "source destination [DB destination-db] [REPLACE]", "Copies a key within its slot."},
    {"expire", cmd_expire, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "1.0.0", "O(1)", "RW update", "", "key seconds [NX|XX|GT|LT]", "Sets when a key expires."},
    {"pexpire", cmd_pexpire, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "2.6.0", "O(1)", "RW update", "", "key milliseconds [NX|XX|GT|LT]", "Sets when a key expires."},
    {"expireat", cmd_expireat, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "1.2.0", "O(1)", "RW update", "", "key unix-time-seconds [NX|XX|GT|LT]", "Sets when a key expires."},
    {"pexpireat", cmd_pexpireat, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "2.6.0", "O(1)", "RW update", "", "key unix-time-milliseconds [NX|XX|GT|LT]", "Sets when a key expires."},
    {"ttl", cmd_ttl, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "1.0.0", "O(1)", "RO access", "nondeterministic_output", "key", "Returns the seconds that a key still lives."},
    {"pttl", cmd_pttl, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "2.6.0", "O(1)", "RO access", "nondeterministic_output", "key", "Returns the milliseconds that a key still lives."},
    {"expiretime", cmd_expiretime, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "7.0.0", "O(1)", "RO access", "", "key", "Returns when a key expires, in Unix seconds."},
    {"pexpiretime", cmd_pexpiretime, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "7.0.0", "O(1)", "RO access", "", "key", "Returns when a key expires, in Unix milliseconds."},
    {"persist", cmd_persist, 2, PLACE_KEYS, COMMAND_WRITE | COMMAND_FAST, 1, 1, 1, GROUP_GENERIC, "2.2.0", "O(1)", "RW update", "", "key", "Takes the time to live away."},
    {"scan", cmd_scan, -2, PLACE_FIBER, COMMAND_READONLY | COMMAND_NO_MULTI | COMMAND_HEAVY, 0, 0, 0, GROUP_GENERIC, "2.8.0", "O(1)", "", "nondeterministic_output request_policy:special", "cursor [MATCH pattern] [COUNT count] [TYPE type]", "Walks over the keys, a few at a time."},
    {"keys", cmd_keys, 2, PLACE_FIBER, COMMAND_READONLY | COMMAND_NO_MULTI | COMMAND_DANGEROUS | COMMAND_HEAVY, 0, 0, 0, GROUP_GENERIC, "1.0.0", "O(N)", "", "request_policy:all_shards nondeterministic_output_order", "pattern", "Returns all keys that match, from one snapshot."},
    {"randomkey", cmd_randomkey, 1, PLACE_FIBER, COMMAND_READONLY | COMMAND_NO_MULTI, 0, 0, 0, GROUP_GENERIC, "1.0.0", "O(1)", "", "request_policy:all_shards nondeterministic_output", "", "Returns a key at random."},
    {"dbsize", cmd_dbsize, 1, PLACE_FIBER, COMMAND_READONLY | COMMAND_FAST | COMMAND_NO_MULTI | COMMAND_HEAVY, 0, 0, 0, GROUP_SERVER, "1.0.0", "O(N)", "", "request_policy:all_shards response_policy:agg_sum", "", "Counts the keys exactly."},
    {"flushdb", cmd_flushdb, -1, PLACE_FIBER, COMMAND_WRITE | COMMAND_NO_MULTI | COMMAND_DANGEROUS | COMMAND_HEAVY, 0, 0, 0, GROUP_SERVER, "1.0.0", "O(1)", "", "request_policy:all_shards response_policy:all_succeeded", "[ASYNC|SYNC]", "Deletes all keys of the selected database."},
    {"flushall", cmd_flushall, -1, PLACE_FIBER, COMMAND_WRITE | COMMAND_NO_MULTI | COMMAND_DANGEROUS | COMMAND_HEAVY, 0, 0, 0, GROUP_SERVER, "1.0.0", "O(1)", "", "request_policy:all_shards response_policy:all_succeeded", "[ASYNC|SYNC]", "Deletes all keys."},
    {"multi", cmd_multi, 1, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_ALLOW_BUSY | COMMAND_MULTI_NOW, 0, 0, 0, GROUP_TRANSACTIONS, "1.2.0", "O(1)", "", "", "", "Begins a transaction."},
    {"exec", cmd_exec, 1, PLACE_EXEC, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_SKIP_SLOWLOG | COMMAND_MULTI_NOW, 0, 0, 0, GROUP_TRANSACTIONS, "1.2.0", "O(1)", "", "", "", "Runs the queued commands as one."},
    {"discard", cmd_discard, 1, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_ALLOW_BUSY | COMMAND_MULTI_NOW, 0, 0, 0, GROUP_TRANSACTIONS, "2.0.0", "O(1)", "", "", "", "Forgets the queued commands."},
    {"watch", cmd_watch, -2, PLACE_WATCH, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_ALLOW_BUSY | COMMAND_MULTI_NOW, 1, -1, 1, GROUP_TRANSACTIONS, "2.2.0", "O(1)", "RO", "", "key...", "Makes EXEC depend on keys staying as they are."},
    {"unwatch", cmd_unwatch, 1, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_ALLOW_BUSY, 0, 0, 0, GROUP_TRANSACTIONS, "2.2.0", "O(1)", "", "", "", "Forgets the watched keys."},
    {"hello", cmd_hello, -1, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_NO_AUTH | COMMAND_ALLOW_BUSY | COMMAND_NO_MULTI, 0, 0, 0, GROUP_CONNECTION, "6.0.0", "O(1)", "", "", "[protover [AUTH username password] [SETNAME clientname]]", "Chooses the protocol version and introduces both sides."},
    {"auth", cmd_auth, -2, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_NO_AUTH | COMMAND_ALLOW_BUSY, 0, 0, 0, GROUP_CONNECTION, "1.0.0", "O(1)", "", "", "[username] password", "Authenticates the connection."},
    {"ping", cmd_ping, -1, PLACE_HOME, COMMAND_FAST, 0, 0, 0, GROUP_CONNECTION, "1.0.0", "O(1)", "", "request_policy:all_shards response_policy:all_succeeded", "[message]", "Answers PONG, or the message."},
    {"echo", cmd_echo, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST, 0, 0, 0, GROUP_CONNECTION, "1.0.0", "O(1)", "", "", "message", "Returns the message."},
    {"quit", cmd_quit, -1, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_NO_AUTH | COMMAND_ALLOW_BUSY | COMMAND_MULTI_NOW, 0, 0, 0, GROUP_CONNECTION, "1.0.0", "O(1)", "", "", "", "Closes the connection."},
    {"select", cmd_select, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST, 0, 0, 0, GROUP_CONNECTION, "1.0.0", "O(1)", "", "", "index", "Selects one of the 16 databases."},
    {"reset", cmd_reset, 1, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_NO_AUTH | COMMAND_ALLOW_BUSY | COMMAND_MULTI_NOW, 0, 0, 0, GROUP_CONNECTION, "6.2.0", "O(1)", "", "", "", "Makes the connection as new."},
    {"distkv.consistency", cmd_distkv_consistency, -1, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST, 0, 0, 0, GROUP_CONNECTION, "7.2.0", "O(1)", "", "", "[ONE|QUORUM|ALL|DEFAULT]", "How many replicas this connection's reads and writes wait for, in a cluster; without an argument tells it."},
    {"distkv.remove", cmd_distkv_remove, -2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_NO_MULTI | COMMAND_DANGEROUS, 0, 0, 0, GROUP_CLUSTER, "7.2.0", "O(1)", "", "", "node-id [DEAD|FORCE|UNDO]", "Takes a node out of the cluster: it gives its data away first, or, when it is dead, others take it over. FORCE: though fewer nodes are left than a key has replicas, or it has hints for others to deliver. UNDO: one that leaves is to stay."},
    {"distkv.get", cmd_distkv_get, 2, PLACE_KEYS, COMMAND_READONLY | COMMAND_FAST, 1, 1, 1, GROUP_STRING, "7.2.0", "O(N)", "RO access", "", "key", "Returns a context and all values of a key that keeps siblings."},
    {"distkv.put", cmd_distkv_put, -3, PLACE_KEYS, COMMAND_WRITE | COMMAND_DENYOOM, 1, 1, 1, GROUP_STRING, "7.2.0", "O(N)", "OW update", "", "key value [context]", "Writes a value that replaces what the context has seen, and nothing else."},
    {"distkv.del", cmd_distkv_del, 3, PLACE_KEYS, COMMAND_WRITE, 1, 1, 1, GROUP_STRING, "7.2.0", "O(N)", "OW delete", "", "key context", "Deletes what the context has seen of a key, and nothing else."},
    {"distkv.repair", cmd_distkv_repair, 1, PLACE_HOME, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_NO_MULTI, 0, 0, 0, GROUP_CLUSTER, "7.2.0", "O(1)", "", "", "", "Begins to compare all that this node holds with the other replicas, and to mend what differs."},
    {"client", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_CONNECTION, "2.4.0", "O(1)", "", "", "", "Commands about connections."},
    {"client|getname", cmd_client_getname, 2, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "2.6.9", "O(1)", "", "", "", "Returns the name of this connection."},
    {"client|id", cmd_client_id, 2, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "5.0.0", "O(1)", "", "", "", "Returns the number of this connection."},
    {"client|info", cmd_client_info, 2, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "6.2.0", "O(1)", "", "nondeterministic_output", "", "Describes this connection."},
    {"client|kill", cmd_client_kill, -3, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "2.4.0", "O(N)", "", "", "(ip:port|([ID client-id] [TYPE type] [USER username] [ADDR ip:port] [LADDR ip:port] [SKIPME yes/no]))", "Closes connections."},
    {"client|list", cmd_client_list, -2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "2.4.0", "O(N)", "", "nondeterministic_output", "[TYPE (normal|master|replica|pubsub)] [ID client-id...]", "Describes the connections."},
    {"client|no-evict", cmd_client_no_evict, 3, PLACE_HOME, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "7.0.0", "O(1)", "", "", "(ON|OFF)", "Accepted; connections are not evicted here."},
    {"client|reply", cmd_client_reply, 3, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "3.2.0", "O(1)", "", "", "(ON|OFF|SKIP)", "Turns replies on or off."},
    {"client|setinfo", cmd_client_setinfo, 4, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "7.2.0", "O(1)", "", "", "(LIB-NAME libname|LIB-VER libver)", "Says which library the client uses."},
    {"client|setname", cmd_client_setname, 3, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "2.6.9", "O(1)", "", "", "connection-name", "Names this connection."},
    {"client|help", cmd_client_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CONNECTION, "5.0.0", "O(1)", "", "", "", "Prints this help."},
    {"info", cmd_info, -1, PLACE_FIBER, COMMAND_LOADING | COMMAND_STALE | COMMAND_DANGEROUS, 0, 0, 0, GROUP_SERVER, "1.0.0", "O(1)", "", "nondeterministic_output request_policy:all_shards response_policy:special", "[section...]", "Returns figures and facts about the node."},
    {"command", cmd_command, -1, PLACE_HOME, COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(N)", "", "nondeterministic_output_order", "", "Describes all commands."},
    {"command|count", cmd_command_count, 2, PLACE_HOME, COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "", "", "Counts the commands."},
    {"command|docs", cmd_command_docs, -2, PLACE_HOME, COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "7.0.0", "O(N)", "", "nondeterministic_output_order", "[command-name...]", "Documents commands."},
    {"command|getkeys", cmd_command_getkeys, -3, PLACE_HOME, COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(N)", "", "", "command [arg...]", "Returns the keys of a call."},
    {"command|info", cmd_command_info, -2, PLACE_HOME, COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(N)", "", "nondeterministic_output_order", "[command-name...]", "Describes commands."},
    {"command|list", cmd_command_list, -2, PLACE_HOME, COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "7.0.0", "O(N)", "", "nondeterministic_output_order", "[FILTERBY (MODULE module-name|ACLCAT category|PATTERN pattern)]", "Returns the names of the commands."},
    {"command|help", cmd_command_help, 2, PLACE_HOME, COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "5.0.0", "O(1)", "", "", "", "Prints this help."},
    {"config", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_SERVER, "2.0.0", "O(1)", "", "", "", "Commands about options."},
    {"config|get", cmd_config_get, -3, PLACE_HOME, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.0.0", "O(N)", "", "", "parameter...", "Returns options by pattern."},
    {"config|set", cmd_config_set, -4, PLACE_HOME, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.0.0", "O(N)", "", "request_policy:all_nodes response_policy:all_succeeded", "(parameter value)...", "Changes options while the node runs."},
    {"config|resetstat", cmd_config_resetstat, 2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.0.0", "O(1)", "", "request_policy:all_nodes response_policy:all_succeeded", "", "Sets the figures of INFO to zero."},
    {"config|help", cmd_config_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "5.0.0", "O(1)", "", "", "", "Prints this help."},
    {"slowlog", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_SERVER, "2.2.12", "O(1)", "", "", "", "Commands about slow commands."},
    {"slowlog|get", cmd_slowlog_get, -2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.2.12", "O(N)", "", "request_policy:all_nodes nondeterministic_output", "[count]", "Returns the newest slow commands."},
    {"slowlog|len", cmd_slowlog_len, 2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.2.12", "O(1)", "", "request_policy:all_nodes response_policy:agg_sum nondeterministic_output", "", "Counts the entries of the slow log."},
    {"slowlog|reset", cmd_slowlog_reset, 2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.2.12", "O(N)", "", "request_policy:all_nodes response_policy:all_succeeded", "", "Empties the slow log."},
    {"slowlog|help", cmd_slowlog_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "6.2.0", "O(1)", "", "", "", "Prints this help."},
    {"latency", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "", "", "Commands about latency."},
    {"latency|doctor", cmd_latency_doctor, 2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "nondeterministic_output request_policy:all_nodes response_policy:special", "", "Says in words what the latency monitor saw."},
    {"latency|graph", cmd_latency_graph, 3, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "nondeterministic_output request_policy:all_nodes response_policy:special", "event", "Draws the slow seconds of an event."},
    {"latency|histogram", cmd_latency_histogram, -2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "7.0.0", "O(N)", "", "nondeterministic_output request_policy:all_nodes response_policy:special", "[command...]", "Returns how long commands took."},
    {"latency|history", cmd_latency_history, 3, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "nondeterministic_output request_policy:all_nodes response_policy:special", "event", "Returns the seconds in which an event was slow."},
    {"latency|latest", cmd_latency_latest, 2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "nondeterministic_output request_policy:all_nodes response_policy:special", "", "Returns the newest slow second of every event."},
    {"latency|reset", cmd_latency_reset, -2, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "request_policy:all_nodes response_policy:all_succeeded", "[event...]", "Forgets slow events."},
    {"latency|help", cmd_latency_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "2.8.13", "O(1)", "", "", "", "Prints this help."},
    {"memory", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_SERVER, "4.0.0", "O(1)", "", "", "", "Commands about memory."},
    {"memory|usage", cmd_memory_usage, -3, PLACE_KEYS, COMMAND_READONLY, 2, 2, 1, GROUP_SERVER, "4.0.0", "O(1)", "RO", "", "key [SAMPLES count]", "Returns the bytes that a key and its value take."},
    {"memory|help", cmd_memory_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "4.0.0", "O(1)", "", "", "", "Prints this help."},
    {"object", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_GENERIC, "2.2.3", "O(1)", "", "", "", "Commands about one key."},
    {"object|encoding", cmd_object_encoding, 3, PLACE_KEYS, COMMAND_READONLY, 2, 2, 1, GROUP_GENERIC, "2.2.3", "O(1)", "RO", "nondeterministic_output", "key", "Returns how Redis would keep the value."},
    {"object|freq", cmd_object_freq, 3, PLACE_KEYS, COMMAND_READONLY, 2, 2, 1, GROUP_GENERIC, "4.0.0", "O(1)", "RO", "nondeterministic_output", "key", "Not kept: answers as Redis does without an LFU policy."},
    {"object|idletime", cmd_object_idletime, 3, PLACE_KEYS, COMMAND_READONLY, 2, 2, 1, GROUP_GENERIC, "2.2.3", "O(1)", "RO", "nondeterministic_output", "key", "Returns 0: it is not kept."},
    {"object|refcount", cmd_object_refcount, 3, PLACE_KEYS, COMMAND_READONLY, 2, 2, 1, GROUP_GENERIC, "2.2.3", "O(1)", "RO", "nondeterministic_output", "key", "Returns 1."},
    {"object|help", cmd_object_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_GENERIC, "6.2.0", "O(1)", "", "", "", "Prints this help."},
    {"time", cmd_time, 1, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST, 0, 0, 0, GROUP_SERVER, "2.6.0", "O(1)", "", "nondeterministic_output", "", "Returns the wall clock in seconds and microseconds."},
    {"role", cmd_role, 1, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_FAST | COMMAND_ADMIN_CATEGORY, 0, 0, 0, GROUP_SERVER, "2.8.12", "O(1)", "", "", "", "Returns the role in replication."},
    {"wait", cmd_wait, 3, PLACE_FIBER, COMMAND_CONNECTION | COMMAND_NOSCRIPT, 0, 0, 0, GROUP_GENERIC, "3.0.0", "O(1)", "", "request_policy:all_shards response_policy:agg_min", "numreplicas timeout", "Waits for replicas; there are none."},
    {"monitor", cmd_monitor, 1, PLACE_FIBER, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_NO_MULTI, 0, 0, 0, GROUP_SERVER, "1.0.0", "O(1)", "", "", "", "Streams every command that the node runs."},
    {"shutdown", cmd_shutdown, -1, PLACE_HOME, COMMAND_ADMIN | COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE | COMMAND_NO_MULTI | COMMAND_ALLOW_BUSY, 0, 0, 0, GROUP_SERVER, "1.0.0", "O(1)", "", "", "[NOSAVE|SAVE] [NOW] [FORCE] [ABORT]", "Stops the node."},
    {"acl", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_SERVER, "6.0.0", "O(1)", "", "", "", "Commands about users."},
    {"acl|whoami", cmd_acl_whoami, 2, PLACE_HOME, COMMAND_NOSCRIPT | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "6.0.0", "O(1)", "", "", "", "Returns the name of the user."},
    {"acl|help", cmd_acl_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_SERVER, "6.0.0", "O(1)", "", "", "", "Prints this help."},
    {"cluster", NULL, -2, PLACE_CONTAINER, 0, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(1)", "", "", "", "Commands about the cluster."},
    {"cluster|info", cmd_cluster_info, 2, PLACE_HOME, COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(1)", "", "nondeterministic_output", "", "Returns the state of the cluster."},
    {"cluster|keyslot", cmd_cluster_keyslot, 3, PLACE_HOME, COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(N)", "", "", "key", "Returns the slot of a key."},
    {"cluster|myid", cmd_cluster_myid, 2, PLACE_HOME, COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(1)", "", "", "", "Returns the id of this node."},
    {"cluster|nodes", cmd_cluster_nodes, 2, PLACE_HOME, COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(1)", "", "nondeterministic_output", "", "Lists the nodes as lines."},
    {"cluster|shards", cmd_cluster_shards, 2, PLACE_HOME, COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "7.0.0", "O(1)", "", "nondeterministic_output", "", "Lists the nodes by slots."},
    {"cluster|slots", cmd_cluster_slots, 2, PLACE_HOME, COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(1)", "", "nondeterministic_output", "", "Lists the slots and their nodes."},
    {"cluster|help", cmd_cluster_help, 2, PLACE_HOME, COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "5.0.0", "O(1)", "", "", "", "Prints this help."},
    {"readonly", cmd_readonly, 1, PLACE_HOME, COMMAND_FAST | COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(1)", "", "", "", "Does nothing: every node answers every read."},
    {"readwrite", cmd_readonly, 1, PLACE_HOME, COMMAND_FAST | COMMAND_CONNECTION | COMMAND_LOADING | COMMAND_STALE, 0, 0, 0, GROUP_CLUSTER, "3.0.0", "O(1)", "", "", "", "Does nothing: every node answers every read."},
    {"native|hello", native_hello, 1, PLACE_HOME, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|ping", native_ping, 1, PLACE_HOME, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|get", native_get, 1, PLACE_KEYS, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|put", native_put, 1, PLACE_KEYS, COMMAND_NATIVE | COMMAND_WRITE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|delete", native_delete, 1, PLACE_KEYS, COMMAND_NATIVE | COMMAND_WRITE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|batch", native_batch, 1, PLACE_KEYS, COMMAND_NATIVE | COMMAND_WRITE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|scan", native_scan, 1, PLACE_FIBER, COMMAND_NATIVE | COMMAND_HEAVY, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|snapshot_open", native_snapshot_open, 1, PLACE_FIBER, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|snapshot_close", native_snapshot_close, 1, PLACE_FIBER, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|ttl", native_ttl, 1, PLACE_KEYS, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|expire", native_expire, 1, PLACE_KEYS, COMMAND_NATIVE | COMMAND_WRITE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|count", native_count, 1, PLACE_FIBER, COMMAND_NATIVE | COMMAND_HEAVY, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|status", native_status, 1, PLACE_FIBER, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|get_siblings", native_get_siblings, 1, PLACE_KEYS, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|put_siblings", native_put_siblings, 1, PLACE_KEYS, COMMAND_NATIVE | COMMAND_WRITE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|cluster", native_cluster, 1, PLACE_FIBER, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
    {"native|topology", native_topology, 1, PLACE_HOME, COMMAND_NATIVE, 0, 0, 0, GROUP_NATIVE, "", "", "", "", "", ""},
};
/* clang-format on */

static_assert(ARRAY_COUNT(command_table) <= SERVER_COMMANDS_MAX, "a row of figures for each");

u32
command_table_count(void)
{
    return ARRAY_COUNT(command_table);
}

bool
command_is_sub(const struct command *command)
{
    return strchr(command->name, '|') != NULL;
}

const struct command *
command_find(struct bytes name)
{
    if (name.size == 0) return NULL;
    u8 first = name.data[0] | 0x20;
    for (u32 i = 0; i < ARRAY_COUNT(command_table); i++) {
        const struct command *command = &command_table[i];
        if ((u8)command->name[0] == first && text_is(name, command->name) &&
            !command_is_sub(command))
            return command;
    }
    return NULL;
}

u32
command_sub_count(const struct command *command)
{
    size_t size = strlen(command->name);
    u32 count = 0;
    for (u32 i = command_index(command) + 1; i < ARRAY_COUNT(command_table); i++, count++)
        if (strncmp(command_table[i].name, command->name, size) != 0 ||
            command_table[i].name[size] != '|')
            break;
    return count;
}

const struct command *
command_find_sub(const struct command *container, struct bytes name)
{
    size_t prefix = strlen(container->name);
    /* The rows of a container follow it. */
    for (const struct command *sub = container + 1;
         sub < command_table + ARRAY_COUNT(command_table); sub++) {
        if (strncmp(sub->name, container->name, prefix) != 0 || sub->name[prefix] != '|') break;
        if (text_is(name, sub->name + prefix + 1)) return sub;
    }
    return NULL;
}

const struct command *
command_native(u32 opcode)
{
    enum {
#define X(name, number) NATIVE_ROW_##name,
        NATIVE_OPCODE_LIST(X)
#undef X
            NATIVE_ROWS
    };
    static const u8 rows[NATIVE_OPCODE_MAX + 1] = {
#define X(name, number) [number] = NATIVE_ROW_##name,
        NATIVE_OPCODE_LIST(X)
#undef X
    };
    static_assert(NATIVE_ROWS == COMMAND_NATIVE_COUNT, "a row for each opcode");
    CHECK(native_opcode_known(opcode));
    return &command_table[ARRAY_COUNT(command_table) - COMMAND_NATIVE_COUNT + rows[opcode]];
}

bool
command_arity_fits(const struct command *command, u32 arg_count)
{
    i64 count = arg_count;
    return command->arity >= 0 ? count == command->arity : count >= -command->arity;
}

void
command_key_range(const struct command *command, u32 arg_count, u32 *first_out, u32 *last_out,
                  u32 *step_out)
{
    *first_out = 1;
    *last_out = 0;
    *step_out = 1;
    if (command->first == 0 || arg_count <= (u32)command->first) return;
    i64 last = command->last >= 0 ? command->last : (i64)arg_count + command->last;
    if (last >= arg_count) last = (i64)arg_count - 1;
    *first_out = (u32)command->first;
    *step_out = (u32)command->step;
    /* The last key itself, not what follows it. */
    *last_out = *first_out + ((u32)last - *first_out) / *step_out * *step_out;
}
