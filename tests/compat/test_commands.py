# SPDX-License-Identifier: MIT
"""Every command side by side with redis-server: the same calls to both, the same replies, RESP2 and
RESP3. Where we differ on purpose the table says so with OURS(reply): our reply, and Redis' is not
asked. Times and ids are compared by shape."""

import itertools
import shutil
import subprocess
import threading
import time

import pytest

from conftest import ReplyError, Resp, Server, free_port, need, wait_for


class Ours:
    """A reply that is ours alone."""

    def __init__(self, reply):
        self.reply = reply


def OURS(reply):
    return Ours(reply)


class Shape:
    """Both must satisfy the check; they need not be equal."""

    def __init__(self, check):
        self.check = check


def near(value, slack=2):
    return Shape(lambda reply: isinstance(reply, int) and abs(reply - value) <= slack)


def a(kind):
    return Shape(lambda reply: isinstance(reply, kind))


BIG = "9223372036854775807"
# One list is one fresh database and connection: (call..., expectation) or just a call. Transactions
# and renames use one hash tag, as their keys must have one slot here.
SCRIPTS = {
    "get_set": [
        ("GET", "k"), ("SET", "k", "v"), ("GET", "k"), ("SET", "k", ""), ("GET", "k"),
        ("SET", "k", b"\x00\xff\r\n"), ("GET", "k"), ("get", "k"), ("GeT", "k"),
        ("GET",), ("GET", "a", "b"), ("SET", "k"), ("SET",), ("SET", "k", "v", "bad"),
        ("SET", "k", "v", "EX"), ("SET", "k", "v", "EX", "0"), ("SET", "k", "v", "EX", "-1"),
        ("SET", "k", "v", "EX", "abc"), ("SET", "k", "v", "EX", "1.5"),
        ("SET", "k", "v", "PX", "0"), ("SET", "k", "v", "EX", BIG), ("SET", "k", "v", "PX", BIG),
        ("SET", "k", "v", "EXAT", "0"), ("SET", "k", "v", "PXAT", "-5"),
        ("SET", "k", "v", "EX", "10", "PX", "10"), ("SET", "k", "v", "NX", "XX"),
        ("SET", "k", "v", "KEEPTTL", "EX", "10"), ("SET", "k", "v", "EX", "10", "KEEPTTL"),
        ("SET", "k", "v2", "NX"), ("SET", "k2", "v", "XX"), ("SET", "k2", "v", "NX"),
        ("SET", "k2", "w", "XX"), ("GET", "k2"), ("SET", "k", "n", "GET"), ("SET", "q", "n", "GET"),
        ("SET", "k", "n2", "NX", "GET"), ("SET", "r", "n2", "NX", "GET"), ("GET", "r"),
        ("SET", "z", "n2", "XX", "GET"), ("EXISTS", "z"),
        ("SET", "t", "1", "EX", "100"), ("TTL", "t"), ("SET", "t", "2", "KEEPTTL"), ("TTL", "t"),
        ("SET", "t", "3"), ("TTL", "t"), ("SET", "t", "1", "PX", "100000"), ("TTL", "t"),
        ("SET", "t", "1", "EXAT", "4102444800"), ("EXPIRETIME", "t"),
        ("SET", "t", "1", "PXAT", "4102444800123"), ("PEXPIRETIME", "t"),
        ("SET", "t", "1", "EXAT", "1"), ("GET", "t"), ("EXISTS", "t"),
        # the same option again: the last one counts
        ("SET", "t", "1", "EX", "100", "EX", "200"), ("TTL", "t"), ("SET", "t", "1", "EX", "0", "EX", "50"),
        ("TTL", "t"), ("SET", "t", "1", "PX", "1", "px", "70000"), ("TTL", "t"),
        ("SET", "t", "1", "EX", "1", "EX", "0"), ("SET", "t", "1", "EX", "100", "EX"),
        ("SET", "t", "1", "EXAT", "1", "EXAT", "4102444800"), ("EXPIRETIME", "t"),
        ("SET", "t", "1", "PXAT", "1", "PXAT", "4102444800123"), ("PEXPIRETIME", "t"),
        ("SET", "t", "1", "EX", "1", "EXAT", "4102444800"), ("SET", "t", "1", "PXAT", "1", "PX", "5"),
        ("SET", "t", "1", "NX", "NX"), ("SET", "t", "1", "XX", "XX"), ("SET", "t", "2", "GET", "GET"),
        ("SET", "t", "3", "KEEPTTL", "KEEPTTL"), ("SET", "t", "3", "KEEPTTL", "EX", "1"),
        ("SET", "t", "3", "EX", "1", "KEEPTTL"), ("SET", "t", "3", "PERSIST"),
    ],
    "setters": [
        ("SETNX", "k", "1"), ("SETNX", "k", "2"), ("GET", "k"), ("SETNX", "k"),
        ("SETEX", "k", "100", "v"), ("TTL", "k"), ("SETEX", "k", "0", "v"), ("SETEX", "k", "x", "v"),
        ("SETEX", "k", "-1", "v"), ("SETEX", "k", "10"), ("PSETEX", "k", "100000", "v"), ("TTL", "k"),
        ("PSETEX", "k", "0", "v"), ("GETSET", "k", "n"), ("TTL", "k"), ("GETSET", "new", "n"),
        ("GETDEL", "k"), ("GETDEL", "k"), ("GETDEL",), ("GETEX", "k"), ("SET", "k", "v"),
        ("GETEX", "k", "EX", "100"), ("TTL", "k"), ("GETEX", "k"), ("TTL", "k"),
        ("GETEX", "k", "PERSIST"), ("TTL", "k"), ("GETEX", "k", "PXAT", "4102444800123"),
        ("PEXPIRETIME", "k"), ("GETEX", "k", "EX"), ("GETEX", "k", "EX", "0"),
        ("GETEX", "k", "EX", "10", "PERSIST"), ("GETEX", "k", "NX"), ("GETEX", "k", "EXAT", "1"),
        ("GET", "k"), ("GETEX", "nokey", "EX", "10"), ("SET", "k", "v"),
        ("GETEX", "k", "EX", "100", "EX", "200"), ("TTL", "k"), ("GETEX", "k", "EX", "0", "EX", "50"), ("TTL", "k"),
        ("GETEX", "k", "PERSIST", "PERSIST"), ("TTL", "k"), ("GETEX", "k", "PERSIST", "EX", "1"),
        ("GETEX", "k", "EX", "1", "PERSIST"), ("GETEX", "k", "EX", "1", "PX", "1"), ("GETEX", "k", "KEEPTTL"),
        ("TTL", "k"),
    ],
    "several": [
        ("MSET", "a", "1", "b", "2"), ("MGET", "a", "b", "c"), ("MSET", "a"), ("MSET", "a", "1", "b"),
        ("MGET",), ("MSET",), ("MSETNX", "{t}1", "1", "{t}2", "2"), ("MSETNX", "{t}2", "x", "{t}3", "3"),
        ("EXISTS", "{t}3"), ("MSETNX", "a", "1", "b"), ("MGET", "a", "a", "a"),
        ("MSETNX", "{u}1", "1", "{u}1", "2"), ("GET", "{u}1"), ("MSET", "d", "1", "d", "2"), ("GET", "d"),
        ("DEL", "a", "b", "c"), ("DEL", "a"), ("DEL",), ("UNLINK", "d", "nokey"), ("EXISTS", "a"),
        ("SET", "a", "1"), ("EXISTS", "a", "a", "b"), ("TOUCH", "a", "b"), ("EXISTS",), ("TOUCH",),
        ("SET", "x", "1"), ("DEL", "x", "x"),
    ],
    "parts": [
        ("APPEND", "k", "ab"), ("APPEND", "k", "cd"), ("GET", "k"), ("STRLEN", "k"), ("STRLEN", "no"),
        ("APPEND", "k"), ("GETRANGE", "k", "0", "1"), ("GETRANGE", "k", "-2", "-1"),
        ("GETRANGE", "k", "1", "100"), ("GETRANGE", "k", "3", "1"), ("GETRANGE", "k", "-1", "-3"),
        ("GETRANGE", "k", "-100", "100"), ("GETRANGE", "k", "a", "1"), ("GETRANGE", "no", "0", "-1"),
        ("GETRANGE", "k", "-100", "-50"), ("GETRANGE", "k", "5", "10"), ("GETRANGE", "k", "0"),
        ("SETRANGE", "k", "1", "XY"), ("GET", "k"), ("SETRANGE", "k", "6", "Z"), ("GET", "k"),
        ("SETRANGE", "n", "3", "q"), ("GET", "n"), ("SETRANGE", "n2", "0", ""), ("EXISTS", "n2"),
        ("SETRANGE", "k", "-1", "x"), ("SETRANGE", "k", "x", "x"), ("SETRANGE", "k", BIG, ""),
        ("SETRANGE", "k", "1", ""), ("SETRANGE", "k", "536870912", "x"), ("SETRANGE", "k", BIG, "x"),
        ("SET", "t", "1", "EX", "100"), ("APPEND", "t", "2"), ("TTL", "t"), ("SETRANGE", "t", "0", "9"),
        ("TTL", "t"),
    ],
    "counters": [
        ("INCR", "n"), ("INCR", "n"), ("DECR", "n"), ("INCRBY", "n", "10"), ("DECRBY", "n", "3"),
        ("INCRBY", "n", "-5"), ("GET", "n"), ("INCRBY", "n", "x"), ("INCRBY", "n", "1.5"), ("INCR",),
        ("INCRBY", "n", "9223372036854775808"), ("SET", "n", BIG), ("INCR", "n"), ("DECR", "n"),
        ("DECRBY", "n", "-9223372036854775808"), ("SET", "n", "-9223372036854775808"), ("DECR", "n"),
        ("INCR", "n"), ("SET", "s", "abc"), ("INCR", "s"), ("SET", "s", " 1"), ("INCR", "s"),
        ("SET", "s", "1 "), ("INCR", "s"), ("SET", "s", "01"), ("INCR", "s"), ("SET", "s", "+1"),
        ("INCR", "s"), ("SET", "s", "-0"), ("INCR", "s"), ("SET", "s", ""), ("INCR", "s"),
        ("SET", "s", "-1"), ("INCR", "s"), ("SET", "t", "1", "EX", "100"), ("INCR", "t"), ("TTL", "t"),
        ("INCRBYFLOAT", "f", "1.5"), ("INCRBYFLOAT", "f", "0.1"), ("INCRBYFLOAT", "f", "-1.6"),
        ("INCRBYFLOAT", "f", "3.0e3"), ("GET", "f"), ("INCRBYFLOAT", "f", "x"), ("INCRBYFLOAT", "f", " 1"),
        ("INCRBYFLOAT", "f", "inf"), ("INCRBYFLOAT", "f", "nan"), ("SET", "f", "5.0e3"),
        ("INCRBYFLOAT", "f", "2.0e2"), ("SET", "f", "10.50"), ("INCRBYFLOAT", "f", "0.1"),
        ("INCRBYFLOAT", "f", "1e5000"),
        ("SET", "f", "0"), ("INCRBYFLOAT", "f", "1e308"), ("INCRBYFLOAT", "f", "1"),
        ("INCRBYFLOAT", "f", "1e4000"), ("INCRBYFLOAT", "f", "-1e4000"), ("SET", "f", "abc"), ("INCRBYFLOAT", "f", "1"),
        ("SET", "f", "3"), ("INCRBYFLOAT", "f", "1.1"), ("INCRBYFLOAT", "f", "-4.1"),
        ("INCRBYFLOAT", "g", "0.00000000000000001"), ("INCRBYFLOAT", "h", "100000000000000000000"),
    ],
    "keys": [
        ("TYPE", "k"), ("SET", "k", "1"), ("TYPE", "k"), ("TYPE",),
        ("RENAME", "{t}x", "{t}y"), ("SET", "{t}x", "1", "EX", "100"), ("RENAME", "{t}x", "{t}y"),
        ("TTL", "{t}y"), ("EXISTS", "{t}x"), ("RENAME", "{t}y", "{t}y"), ("SET", "{t}z", "2"),
        ("RENAMENX", "{t}y", "{t}z"), ("RENAMENX", "{t}y", "{t}w"), ("RENAMENX", "{t}no", "{t}w"),
        ("RENAMENX", "{t}w", "{t}w"), ("GET", "{t}w"), ("RENAME", "a"), ("COPY", "{t}w", "{t}c"),
        ("TTL", "{t}c"), ("COPY", "{t}w", "{t}c"), ("COPY", "{t}w", "{t}c", "REPLACE"),
        ("COPY", "{t}no", "{t}c"), ("COPY", "{t}w", "{t}w"), ("COPY", "{t}w", "{t}w", "DB", "1"),
        ("COPY", "{t}w", "{t}d", "DB", "16"), ("COPY", "{t}w", "{t}d", "DB", "x"),
        ("COPY", "{t}w", "{t}d", "DB", BIG), ("COPY", "{t}w", "{t}d", "DB", "-2147483649"),
        ("COPY", "{t}w", "{t}d", "DB", "-1"), ("COPY", "{t}w", "{t}d", "DB", BIG + "0"),
        ("COPY", "{t}w", "{t}d", "bad"), ("COPY", "{t}w"), ("SELECT", "1"), ("GET", "{t}w"),
        ("DBSIZE",), ("FLUSHDB",), ("DBSIZE",), ("SELECT", "0"), ("EXISTS", "{t}w"),
        ("OBJECT", "ENCODING", "no"), ("SET", "i", "123"), ("OBJECT", "ENCODING", "i"),
        ("SET", "i", "a" * 44), ("OBJECT", "ENCODING", "i"), ("SET", "i", "a" * 45),
        ("OBJECT", "ENCODING", "i"), ("OBJECT", "REFCOUNT", "i"),
        ("OBJECT", "IDLETIME", "i", near(0, 60)), ("OBJECT", "FREQ", "i"),
        ("OBJECT", "FREQ", "no"), ("OBJECT", "ENCODING"), ("OBJECT", "BAD", "i"), ("OBJECT",),
        ("MEMORY", "USAGE", "no"), ("MEMORY", "USAGE", "i", a(int)), ("MEMORY", "USAGE"),
        ("MEMORY", "USAGE", "i", "SAMPLES", "x"), ("MEMORY", "USAGE", "i", "BAD", "1"), ("MEMORY", "BAD"),
    ],
    "expiry": [
        ("EXPIRE", "no", "10"), ("SET", "k", "1"), ("EXPIRE", "k", "100"), ("TTL", "k"),
        ("PTTL", "k", near(100000, 2000)), ("EXPIRE", "k", "abc"), ("EXPIRE", "k"), ("EXPIRE", "k", BIG),
        ("PEXPIRE", "k", BIG), ("EXPIRE", "k", "-" + BIG), ("PEXPIRE", "k", "200000"), ("TTL", "k"),
        ("EXPIREAT", "k", "4102444800"), ("EXPIRETIME", "k"), ("PEXPIRETIME", "k"),
        ("PEXPIREAT", "k", "4102444800999"), ("PEXPIRETIME", "k"), ("EXPIRETIME", "k"),
        ("PERSIST", "k"), ("PERSIST", "k"), ("PERSIST", "no"), ("TTL", "k"), ("TTL", "no"),
        ("PTTL", "k"), ("PTTL", "no"), ("EXPIRETIME", "k"), ("PEXPIRETIME", "no"),
        ("EXPIRE", "k", "100", "XX"), ("EXPIRE", "k", "100", "GT"), ("EXPIRE", "k", "100", "LT"),
        ("EXPIRE", "k", "200", "NX"), ("EXPIRE", "k", "50", "GT"), ("EXPIRE", "k", "200", "GT"),
        ("TTL", "k"), ("EXPIRE", "k", "300", "LT"), ("EXPIRE", "k", "150", "LT"), ("TTL", "k"),
        ("EXPIRE", "k", "100", "XX", "GT"), ("EXPIRE", "k", "100", "NX", "XX"),
        ("EXPIRE", "k", "100", "NX", "GT"), ("EXPIRE", "k", "100", "GT", "LT"),
        ("EXPIRE", "k", "100", "BAD"), ("EXPIRE", "k", "x", "BAD"), ("EXPIRE", "k", "0"), ("EXISTS", "k"),
        ("SET", "k", "1"), ("EXPIRE", "k", "-1"), ("EXISTS", "k"), ("SET", "k", "1"),
        ("EXPIREAT", "k", "1"), ("GET", "k"), ("SET", "k", "1"), ("PEXPIREAT", "k", "-1"), ("GET", "k"),
        ("SET", "k", "1"), ("EXPIRE", "k", "0", "GT"), ("EXISTS", "k"),
    ],
    "spaces": [
        ("SELECT", "1"), ("SET", "k", "1"), ("SELECT", "0"), ("GET", "k"), ("SELECT", "16"),
        ("SELECT", "-1"), ("SELECT", "x"), ("SELECT",), ("SELECT", BIG), ("SELECT", BIG + "0"),
        ("SELECT", "2147483647"), ("SELECT", "2147483648"), ("SELECT", "-2147483648"), ("SELECT", "-2147483649"),
        ("DBSIZE",), ("RANDOMKEY",), ("SET", "only", "1"),
        ("RANDOMKEY",), ("KEYS", "*"), ("KEYS", "o?ly"), ("KEYS", "[n-p]nly"), ("KEYS", "x*"), ("KEYS",),
        ("SCAN", "0"), ("SCAN", "0", "MATCH", "x*"), ("SCAN", "0", "COUNT", "100"),
        ("SCAN", "0", "COUNT", "0"), ("SCAN", "0", "COUNT", "x"), ("SCAN", "x"), ("SCAN", "0", "BAD"),
        ("SCAN", "-1", a(list)), ("SCAN", ""), ("SCAN", "-0"), ("SCAN", "+0"), ("SCAN", "00"), ("SCAN", " 0"), ("SCAN", "0 "),
        ("SCAN", "-"), ("SCAN", "+"), ("SCAN", "--1"), ("SCAN", "0x1"), ("SCAN", "\x00"), ("SCAN", "0\x00x"),
        ("SCAN", "18446744073709551615", a(list)), ("SCAN", "18446744073709551616"),
        ("SCAN", "-18446744073709551615", a(list)), ("SCAN", "-18446744073709551616"),
        ("SCAN", "0" * 30), ("SCAN", "0" * 30 + "18446744073709551615", a(list)),
        ("SCAN", "0", "TYPE", "string"), ("SCAN", "0", "TYPE", "hash"), ("SCAN",), ("SCAN", "0", "MATCH"),
        ("FLUSHALL",), ("DBSIZE",), ("FLUSHDB", "ASYNC"), ("FLUSHALL", "SYNC"), ("FLUSHDB", "BAD"),
        ("FLUSHALL", "SYNC", "ASYNC"), ("RANDOMKEY",), ("KEYS", "*"),
    ],
    "multi": [
        ("MULTI",), ("SET", "{t}a", "1"), ("INCR", "{t}a"), ("GET", "{t}a"), ("EXEC",), ("EXEC",),
        ("DISCARD",), ("MULTI",), ("MULTI",), ("DISCARD",), ("MULTI",), ("EXEC",), ("MULTI",),
        ("BADCMD", "x"), ("GET", "{t}a"), ("EXEC",), ("MULTI",), ("GET",), ("EXEC",), ("MULTI",),
        ("SET", "{t}s", "abc"), ("INCR", "{t}s"), ("GET", "{t}s"), ("EXEC",), ("MULTI",), ("PING",),
        ("SET", "{t}a", "7"), ("ECHO", "x"), ("GET", "{t}a"), ("EXEC",), ("MULTI",), ("SELECT", "1"),
        ("SET", "{t}one", "1"), ("SELECT", "0"), ("GET", "{t}one"), ("EXEC",), ("GET", "{t}one"),
        ("SELECT", "1"), ("GET", "{t}one"), ("SELECT", "0"), ("MULTI",), ("DISCARD", "x"), ("EXEC",),
        ("WATCH", "{t}a"), ("MULTI",), ("SET", "{t}a", "8"), ("EXEC",), ("WATCH", "{t}a"),
        ("SET", "{t}a", "9"), ("MULTI",), ("SET", "{t}a", "10"), ("EXEC",), ("GET", "{t}a"),
        ("WATCH", "{t}new"), ("SET", "{t}new", "1"), ("DEL", "{t}new"), ("MULTI",), ("PING",), ("EXEC",),
        ("WATCH", "{t}never"), ("MULTI",), ("SET", "{t}never", "1"), ("EXEC",), ("WATCH", "{t}a"),
        ("SET", "{t}a", "1"), ("UNWATCH",), ("MULTI",), ("GET", "{t}a"), ("EXEC",), ("WATCH",),
        ("MULTI",), ("WATCH", "{t}a"), ("DISCARD",), ("MULTI",), ("UNWATCH",), ("EXEC",),
        ("WATCH", "{t}a"), ("EXPIRE", "{t}a", "100"), ("MULTI",), ("EXEC",), ("WATCH", "{t}a"),
        ("MULTI",), ("SET", "{t}l1", "1"), ("SET", "{t}l2", "2"), ("MGET", "{t}l1", "{t}l2", "{t}l3"),
        ("DEL", "{t}l1", "{t}l2"), ("EXISTS", "{t}l1"), ("EXEC",), ("WATCH", "{t}a"), ("DISCARD",),
        ("MULTI",), ("EXEC", "x"), ("EXEC",), ("EXEC", "x"), ("WATCH", "{t}a"), ("SET", "{t}a", "1"),
        ("EXEC", "x"), ("MULTI",), ("PING",), ("EXEC",),
        ("MULTI",), ("WAIT", "1", "0"), ("EXEC",),
        # half a pair is found when it runs
        ("MULTI",), ("MSET", "{t}a", "1", "{t}b"), ("MSETNX", "{t}n", "1", "{t}m"), ("SET", "{t}c", "3"), ("EXEC",),
        ("MGET", "{t}a", "{t}b", "{t}c", "{t}n"),
    ],
    "connection": [
        ("PING",), ("PING", "hi"), ("PING", "a", "b"), ("ECHO", "x"), ("ECHO",), ("ECHO", "a", "b"),
        ("CLIENT", "GETNAME"), ("CLIENT", "SETNAME", "me"), ("CLIENT", "GETNAME"),
        ("CLIENT", "SETNAME", "a b"), ("CLIENT", "SETNAME", "a\nb"), ("CLIENT", "SETNAME", ""),
        ("CLIENT", "GETNAME"), ("CLIENT", "ID", a(int)), ("CLIENT", "NO-EVICT", "ON"),
        ("CLIENT", "NO-EVICT", "OFF"), ("CLIENT", "NO-EVICT", "x"), ("CLIENT", "BAD"), ("CLIENT",),
        ("CLIENT", "INFO", "x"), ("CLIENT", "KILL", "1.2.3.4:5"), ("CLIENT", "KILL", "ID", "999999"),
        ("CLIENT", "KILL", "ID", "x"), ("CLIENT", "KILL", "BAD", "x"), ("CLIENT", "KILL", "TYPE", "bad"),
        ("CLIENT", "KILL", "TYPE", "pubsub"), ("CLIENT", "KILL", "SKIPME", "maybe"),
        ("CLIENT", "KILL", "ADDR", "1.2.3.4:5"), ("CLIENT", "KILL", "LADDR", "1.2.3.4:5", "SKIPME", "yes"),
        ("CLIENT", "KILL", "USER", "nosuch"), ("CLIENT", "KILL", "USER", "default", "ADDR", "1.2.3.4:5", "SKIPME", "no"),
        ("CLIENT", "KILL", "ID"), ("CLIENT", "KILL", "ID", "1", "TYPE"), ("CLIENT", "KILL", "ID", "0"),
        ("CLIENT", "KILL"), ("CLIENT", "LIST", "TYPE"), ("CLIENT", "LIST", "TYPE", "bad"), ("CLIENT", "LIST", "TYPE", "pubsub"),
        ("CLIENT", "LIST", "ID", "x"), ("CLIENT", "LIST", "ID", "0"), ("CLIENT", "LIST", "ID", "-1", "0"),
        ("CLIENT", "LIST", "ID", "1", "x"), ("CLIENT", "LIST", "ID", BIG + "0"), ("CLIENT", "LIST", "ID"), ("CLIENT", "LIST", "BAD"), ("CLIENT", "REPLY", "ON"),
        ("CLIENT", "REPLY", "x"), ("CLIENT", "SETINFO", "lib-name", "redis-py", OURS("OK")),
        ("CLIENT", "SETINFO", "lib-ver", "1.2", OURS("OK")),
        ("CLIENT", "SETINFO", "bad", "x", OURS(ReplyError("ERR Unrecognized option 'bad'"))),
        ("CLIENT", "SETINFO", "lib-name", "a b",
         OURS(ReplyError("ERR lib-name cannot contain spaces, newlines or special characters."))),
        ("CLIENT", "SETINFO", "LIB-Ver", "a b",
         OURS(ReplyError("ERR LIB-Ver cannot contain spaces, newlines or special characters."))),
        ("CLIENT", "MAINT_NOTIFICATIONS", "ON"), ("AUTH", "x"), ("AUTH", "default", "x"),
        ("AUTH", "nobody", "x"), ("AUTH", "a", "b", "c"), ("AUTH",), ("ACL", "WHOAMI"), ("ACL", "BAD"),
        ("HELLO", "x"), ("HELLO", "4"), ("HELLO", "1"), ("HELLO", "2", "BAD"),
        ("HELLO", "2", "SETNAME", "a b"), ("HELLO", "2", "AUTH", "x"), ("RESET",), ("RESET", "x"),
        ("HELLO", "2", "SETNAME", "a b", "SETNAME", "ab"), ("HELLO", "2", "SETNAME", "a b", "BAD"),
        ("HELLO", "2", "BAD", "SETNAME", "a b"), ("HELLO", "2", "SETNAME", "a b", "AUTH", "nobody", "x"),
        ("HELLO", "2", "AUTH", "nobody", "x"), ("BAD",), ("BAD", "a", "b"), ("bad cmd", "a b"),
        ("BAD", "x" * 200, "y"), ("BAD", "a\r\nb"), ("", ), ("HGET", "a", "b", OURS(ReplyError(
            "ERR unknown command 'HGET', with args beginning with: 'a' 'b' "))),
        ("CONFIG", "BAD"), ("CONFIG",), ("CONFIG", "GET"), ("CONFIG", "GET", "nosuchoption"),
        ("CONFIG", "SET", "nosuchoption", "1"), ("CONFIG", "SET", "maxclients"),
        ("CONFIG", "SET", "slowlog-max-len", "64", "slowlog-max-len"), ("CONFIG", "SET", "a", "b", "c"),
        ("CONFIG", "SET", "slowlog-max-len", "64"), ("CONFIG", "GET", "slowlog-max-len"),
        ("CONFIG", "GET", "SLOWLOG-MAX-LEN"), ("CONFIG", "GET", "SlowLog-Max-Len", "slowlog-max-len"),
        ("CONFIG", "GET", "SLOWLOG-MAX-LEN", "slowlog-max-l*"), ("CONFIG", "GET", "[Ss]lowlog-max-len"),
        ("CONFIG", "GET", "SLOWLOG-MAX-[l-m]en"), ("CONFIG", "GET", "[^a-r]lowlog-max-len"),
        ("CONFIG", "GET", "slowlog-max-l?n"), ("CONFIG", "GET", "slowlog\\-max-len"),
        ("CONFIG", "GET", "slowlog\\-max-l*"), ("CONFIG", "GET", "cluster-enabled"),
        ("CONFIG", "GET", "databases"), ("CONFIG", "RESETSTAT"), ("CONFIG", "RESETSTAT", "x"),
        ("TIME", a(list)), ("ROLE",), ("WAIT", "0", "0"), ("WAIT", "x", "0"), ("WAIT", "0", "x"),
        ("WAIT", "0", "-1"), ("WAIT",), ("SLOWLOG", "RESET"), ("SLOWLOG", "LEN"), ("SLOWLOG", "GET"),
        ("SLOWLOG", "GET", "a", "b"), ("SLOWLOG", "get", "1", "2", "3"), ("SLOWLOG", "GET", "-2"), ("SLOWLOG", "GET", "x"), ("SLOWLOG", "BAD"), ("LATENCY", "LATEST"),
        ("LATENCY", "HISTORY", "command"), ("LATENCY", "RESET"), ("LATENCY", "RESET", "command"),
        ("LATENCY", "BAD"), ("LATENCY", "HISTORY"), ("LATENCY", "GRAPH"), ("LATENCY", "GRAPH", "nosuch"),
        ("LATENCY", "GRAPH", "command"), ("LATENCY", "GRAPH", "command", "x"), ("COMMAND", "COUNT", a(int)),
        ("COMMAND", "BAD"), ("COMMAND", "INFO", "nosuch"), ("COMMAND", "INFO", "nosuch", "client|nosuch"), ("COMMAND", "DOCS", "nosuch"),
        ("COMMAND", "GETKEYS", "GET", "k"), ("COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2"),
        ("COMMAND", "GETKEYS", "OBJECT", "ENCODING", "k"), ("COMMAND", "GETKEYS", "MEMORY", "USAGE", "k"),
        ("COMMAND", "GETKEYS", "NOSUCH", "x"), ("COMMAND", "GETKEYS", "PING", # Redis 7.2's
         OURS(ReplyError("ERR The command has no key arguments"))), ("COMMAND", "GETKEYS", "GET",
         OURS(ReplyError("ERR Invalid number of arguments specified for command"))), ("COMMAND", "LIST", "FILTERBY", "PATTERN", "xyz*"),
        ("COMMAND", "LIST", "FILTERBY", "PATTERN", "getex"), ("COMMAND", "LIST", "FILTERBY", "ACLCAT", "nosuch"),
        ("COMMAND", "LIST", "FILTERBY", "MODULE", "nosuch"), ("COMMAND", "LIST", "FILTERBY", "PATTERN"),
        ("COMMAND", "LIST", "FILTERBY", "BAD", "x"), ("CLUSTER", "KEYSLOT", "foo", OURS(12182)),
        ("CLUSTER", "BAD"), ("SHUTDOWN", "BAD"), ("SHUTDOWN", "ABORT"),
        ("SHUTDOWN", "NOSAVE", "SAVE"), ("SHUTDOWN", "NOSAVE", "ABORT"), ("SHUTDOWN", "ABORT", "NOW"), ("DISCARD",), ("EXEC",),
    ],
}
# Sets nothing: the next connection finds the node as it was.
SCRIPTS["config set"] = [
    ("CONFIG", "SET", name, value)
    for name in ("maxclients", "timeout", "slowlog-max-len", "slowlog-log-slower-than",
                 "latency-monitor-threshold")
    for value in ("abc", "", " 1", "1 ", "+1", "01", "0x10", "1.5", "1mb", BIG + "0")
] + [
    ("CONFIG", "SET", "timeout", "-1"), ("CONFIG", "SET", "timeout", "2147483648"),
    ("CONFIG", "SET", "slowlog-log-slower-than", "-2"),
    # ours have other ends
    ("CONFIG", "SET", "maxclients", "0", OURS(ReplyError(
        "ERR CONFIG SET failed (possibly related to argument 'maxclients') - "
        "argument must be between 1 and 1000000 inclusive"))),
    ("CONFIG", "SET", "slowlog-max-len", "-1", OURS(ReplyError(
        "ERR CONFIG SET failed (possibly related to argument 'slowlog-max-len') - "
        "argument must be between 0 and 1024 inclusive"))),
    ("CONFIG", "SET", "log-level", "loud", OURS(ReplyError(
        "ERR CONFIG SET failed (possibly related to argument 'log-level') - "
        "argument(s) must be one of the following: error, warning, info, debug"))),
    # all names are looked at before any value; a value's error has the name as the table has it
    ("CONFIG", "SET", "MaxClients", "abc"), ("CONFIG", "SET", "maxclients", "abc", "nosuch", "1"),
    ("CONFIG", "SET", "nosuch", "1", "maxclients", "abc"), ("CONFIG", "SET", "maxclients\0", "1"),
    ("CONFIG", "SET", "maxclients", "abc", "MAXCLIENTS", "9"),
    ("CONFIG", "SET", "maxclients", "abc", "Cores", "3", OURS(ReplyError(
        "ERR CONFIG SET failed (possibly related to argument 'Cores') - can't set immutable config"))),
    ("CONFIG", "SET", "timeout", "7", "MaxClients", "abc"), ("CONFIG", "GET", "timeout"),
    ("CONFIG", "SET", "maxclients", "9", "timeout", "abc"), ("CONFIG", "GET", "maxclients"),
]
# What COMMAND INFO must say exactly as Redis does.
INFO_OF = """get set mget mset msetnx setnx setex psetex getset getdel getex append strlen getrange
setrange incr decr incrby decrby incrbyfloat del unlink exists type touch rename renamenx copy expire
pexpire expireat pexpireat ttl pttl expiretime pexpiretime persist multi exec discard watch unwatch
ping echo select quit reset time auth role wait client command""".split()


def serves(port, *words):
    """Whether it listens yet, and so has answered."""
    try:
        with Resp(port) as connection:
            connection.call(*words)
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory):
    need("redis-server")
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir",
         str(tmp_path_factory.mktemp("redis")), "--bind", "127.0.0.1",
         # A busy machine makes any command slow.
         "--slowlog-log-slower-than", "60000000"],
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: serves(port, "PING"), "redis-server", every=0.02)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture(scope="module", params=["1 core", "2 cores"])
def our_port(request, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("distkv")
    server = Server(":memory:", log_dir, cores="0" if request.param == "1 core" else "0,1",
                    slowlog_log_slower_than=60000000)
    yield server.port
    assert server.stop() == 0, server.log()


def text_of(reply):
    """Replies comparable by ==, and readable in a failure."""
    if isinstance(reply, ReplyError):
        return f"-{reply}"
    if isinstance(reply, list):
        return [text_of(item) for item in reply]
    if isinstance(reply, dict):
        return {key: text_of(item) for key, item in reply.items()}
    return reply


def ask(connection, words):
    connection.send(*words)
    return connection.read()


def differences_of(script, our_port, redis_port, protocol):
    """(call, our reply, what it should be), of each that differs."""
    differences = []
    with Resp(our_port) as ours, Resp(redis_port) as redis:
        for connection in (ours, redis):
            connection.call("HELLO", str(protocol))
            connection.call("FLUSHALL")
        for step in script:
            words, expected = step, None
            if isinstance(step[-1], (Ours, Shape)):
                words, expected = step[:-1], step[-1]
            mine = ask(ours, words)
            if isinstance(expected, Ours):
                if text_of(mine) != text_of(expected.reply):
                    differences.append((words, text_of(mine), text_of(expected.reply)))
                continue
            theirs = ask(redis, words)
            if isinstance(expected, Shape):
                if not (expected.check(mine) and expected.check(theirs)):
                    differences.append((words, text_of(mine), text_of(theirs)))
            elif text_of(mine) != text_of(theirs):
                differences.append((words, text_of(mine), text_of(theirs)))
    return differences


@pytest.mark.smoke
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_replies_are_those_of_redis(our_port, redis_port, name, protocol):
    """Of three times once: where half a second goes by between two calls a TTL is another."""
    for _ in range(3):
        differences = differences_of(SCRIPTS[name], our_port, redis_port, protocol)
        if not differences:
            return
    pytest.fail("\n".join(f"{w}\n  ours   {m!r}\n  redis  {t!r}" for w, m, t in differences))


def normal(info):
    for spec in info[8]:
        if spec[0] == b"notes":
            del spec[:2]
        spec[1].sort()
    return info[:2] + [sorted(info[2])] + info[3:6] + [sorted(info[6])] + info[7:9]


def test_command_info_is_that_of_redis(our_port, redis_port):
    with Resp(our_port) as ours, Resp(redis_port) as redis:
        for name in INFO_OF:
            mine = ours.call("COMMAND", "INFO", name)[0]
            theirs = redis.call("COMMAND", "INFO", name)[0]
            assert normal(mine) == normal(theirs), name


def categories_of(connection):
    """Of every command and subcommand."""
    found, left = {}, connection.call("COMMAND")
    while left:
        info = left.pop()
        found[info[0]] = sorted(info[6])
        left += info[9]
    return found


def test_acl_categories_are_those_of_redis(our_port, redis_port):
    with Resp(our_port) as ours, Resp(redis_port) as redis:
        mine, theirs = categories_of(ours), categories_of(redis)
        assert len(mine) > 100
        for name, names in mine.items():
            if name != b"client|setinfo" and not name.startswith(b"distkv."):  # of 7.2; our own
                assert names == theirs[name], name


def raw_reply(port, *words):
    """The bytes: what Resp shows alike may differ in them, as one null and another."""
    with Resp(port) as connection:
        connection.send(*words)
        return connection.sock.recv(1 << 16)


def shape_of(stream):
    """Types and counts of a reply, without what is in it."""
    line = stream.readline().strip()
    kind, count = line[:1], line[1:]
    if kind in b"$=":
        stream.read(int(count) + 2)
    if kind not in b"*~%":
        return kind
    return kind, [shape_of(stream) for _ in range(int(count) * (2 if kind == b"%" else 1))]


def ask_shape(connection, words):
    connection.send(*words)
    with connection.sock.makefile("rb") as stream:  # nothing else is under way that it could take
        return shape_of(stream)


def test_sets_maps_and_arrays_are_those_of_redis(our_port, redis_port):
    """In RESP3 they differ, though a client shows them alike."""
    for name in ("get", "mget", "ping", "rename", "copy", "exec"):
        shapes = []
        for port in (our_port, redis_port):
            with Resp(port) as connection:
                connection.call("HELLO", "3")
                shapes.append(ask_shape(connection, ("COMMAND", "INFO", name)))
        assert shapes[0] == shapes[1], name


def test_cluster_replies_have_the_form_of_redis(our_port, make_server, tmp_path):
    need("redis-server")
    port = free_port()
    listed = make_server(resp_cluster="node").port
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", str(tmp_path), "--bind",
         "127.0.0.1", "--cluster-enabled", "yes", "--cluster-port", str(free_port())],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: serves(port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383"), "redis-server",
                 every=0.02)
        for protocol, our in itertools.product(("2", "3"), (our_port, listed)):
            with Resp(our) as ours, Resp(port) as redis:
                for words in (("CLUSTER", "SLOTS"), ("CLUSTER", "SHARDS"), ("CLUSTER", "INFO"),
                              ("CLUSTER", "NODES"), ("CLUSTER", "MYID"), ("CLUSTER", "KEYSLOT", "a")):
                    for connection in (ours, redis):
                        connection.call("HELLO", protocol)
                    assert ask_shape(ours, words) == ask_shape(redis, words), words
    finally:
        process.terminate()
        process.wait()


def test_nulls_are_of_the_same_form(our_port, redis_port):
    for words in (("COMMAND", "INFO", "nosuch"), ("GET", "no"), ("MGET", "no"), ("SET", "no", "v", "XX")):
        assert raw_reply(our_port, *words) == raw_reply(redis_port, *words), words


PASSWORDS = [
    ("AUTH", "bad"), ("AUTH", "user", "bad"), ("AUTH", "pw1"), ("AUTH", "default", "pw1"),
    ("HELLO", "2", "AUTH", "default", "pw1", "SETNAME", "auth"),
    ("HELLO", "2", "SETNAME", "auth", "AUTH", "default", "pw1"),
    ("HELLO", "2", "AUTH", "default", "bad"), ("HELLO", "2", "SETNAME", "auth"), ("MULTI",), ("AUTH", "pw1"), ("EXEC",),
    ("CONFIG", "SET", "requirepass", "pw1"), ("CONFIG", "SET", "timeout", "0", "RequirePass", "pw1"),
    ("CONFIG", "SET", "timeout", "0", "maxclients", "1000"), ("PING", "requirepass"),
]


def test_hello_that_is_refused_lets_nobody_in(redis_port, make_server):
    """Whatever comes first: as Redis 7.2; before, it went by the order."""
    bad_name = ("SETNAME", "a b")
    auth = ("AUTH", "default", "pw1")
    for port, orders in ((make_server().port, (bad_name + auth, auth + bad_name)), (redis_port, (bad_name + auth,))):
        with Resp(port) as one:
            one.call("CONFIG", "SET", "requirepass", "pw1")
            try:
                with Resp(port) as other:
                    for words in orders:
                        assert "Client names cannot contain spaces" in str(ask(other, ("HELLO", "2", *words)))
                        assert "NOAUTH" in str(ask(other, ("GET", "a")))
            finally:
                one.call("CONFIG", "SET", "requirepass", "")


def quoted_words(line):
    return line.split("] ", 1)[1]


def test_passwords_are_shown_to_nobody(redis_port, make_server):
    shown = []
    for port in (make_server().port, redis_port):
        with Resp(port) as watcher, Resp(port) as one:
            one.call("CONFIG", "SET", "requirepass", "pw1")
            one.call("AUTH", "pw1")
            one.call("CONFIG", "SET", "slowlog-log-slower-than", "0")
            one.call("SLOWLOG", "RESET")
            watcher.call("AUTH", "pw1")
            assert watcher.call("MONITOR") == "OK"
            for words in PASSWORDS:
                ask(one, words)
            lines = [quoted_words(watcher.read()) for _ in range(12)]
            entries = [entry[3] for entry in one.call("SLOWLOG", "GET", "-1")]
            one.call("CONFIG", "SET", "slowlog-log-slower-than", "60000000", "requirepass", "")
        # what was queued is shown when it is queued here, when it runs there
        shown.append((sorted(lines), sorted(entry for entry in entries if entry[0] not in (
            b"EXEC", b"MULTI", b"SLOWLOG", b"MONITOR") and entry[2:3] != [b"slowlog-log-slower-than"])))
    assert shown[0][0] == shown[1][0]
    assert [b"CONFIG", b"SET", b"timeout", b"0", b"RequirePass", b"(redacted)"] in shown[0][1]
    assert [entry for entry in shown[1][1] if entry not in shown[0][1]] == []
    assert "pw1" not in repr(shown[0]) and "bad" not in repr(shown[0])
    # Behind a mistake Redis shows them.
    server = make_server(":memory:")
    with server.connect() as watcher, server.connect() as one:
        watcher.call("MONITOR")
        for words in (("AUTH", "a", "b", "secret"), ("HELLO", "9", "AUTH", "default", "secret"),
                      ("HELLO", "2", "BAD", "AUTH", "default", "secret")):
            assert isinstance(ask(one, words), ReplyError)
            line = watcher.read()
            assert "(redacted)" in line and "secret" not in line, line


def test_what_is_no_command_is_told_before_the_password(redis_port, make_server):
    calls = [("NOSUCH", "a"), ("GET",), ("GET", "a"), ("CLIENT", "BAD"), ("CLIENT",), ("EXEC",), ("EXEC", "x"),
             ("MULTI",), ("HELLO", "4"), ("HELLO", "3", "AUTH", "default"), ("COMMAND", "BAD"), ("PING",),
             ("AUTH",), ("AUTH", "bad")]
    server = make_server(requirepass="pw")
    with Resp(redis_port) as admin:
        admin.call("CONFIG", "SET", "requirepass", "pw")
        try:
            with server.connect() as ours, Resp(redis_port) as redis:
                for words in calls:
                    assert text_of(ask(ours, words)) == text_of(ask(redis, words)), words
        finally:
            admin.call("CONFIG", "SET", "requirepass", "")


def test_who_has_said_no_password_is_let_in_when_it_is_taken_away(redis_port, make_server):
    server = make_server(requirepass="pw")
    shown = []
    for port in (server.port, redis_port):
        with Resp(port) as admin, Resp(port) as one:
            if port == redis_port:
                admin.call("CONFIG", "SET", "requirepass", "pw")
                one.close()
                one = Resp(port)
            else:
                admin.call("AUTH", "pw")
            got = [text_of(ask(one, ["PING"])), text_of(ask(one, ["HELLO", "3"]))[:20]]
            admin.call("CONFIG", "SET", "requirepass", "")
            try:
                got += [text_of(ask(one, ["PING"])), len(ask(one, ["MGET", *["x" * 100] * 500])),
                        text_of(ask(one, ["SET", "let", "in"])), text_of(ask(one, ["GET", "let"]))]
                if port == server.port:  # HELLO, too; Redis still refuses that one
                    assert isinstance(ask(one, ["HELLO", "2"]), list)
                admin.call("CONFIG", "SET", "requirepass", "pw")
                got += [text_of(ask(one, ["PING"])), text_of(ask(one, ["AUTH", "pw"])), text_of(ask(one, ["PING"]))]
            finally:
                admin.call("CONFIG", "SET", "requirepass", "")
            one.close()
        shown.append(got)
    assert shown[0] == shown[1]
    assert shown[0][2] == "PONG"


def test_command_docs_name_the_arguments_that_redis_names(our_port, redis_port):
    with Resp(our_port) as ours, Resp(redis_port) as redis:
        for connection in (ours, redis):
            connection.call("HELLO", "3")
        for name in ["get", "set", "mset", "getex", "expire", "copy", "scan"]:
            mine = ours.call("COMMAND", "DOCS", name)[name.encode()]
            theirs = redis.call("COMMAND", "DOCS", name)[name.encode()]
            assert len(mine[b"arguments"]) == len(theirs[b"arguments"]), name
            for one, other in zip(mine[b"arguments"], theirs[b"arguments"]):
                assert one[b"type"] == other[b"type"], (name, one, other)
                assert sorted(one.get(b"flags", [])) == sorted(other.get(b"flags", [])), (name, one)
            assert mine[b"group"] == theirs[b"group"] and mine[b"since"] == theirs[b"since"]
        everything = ours.call("COMMAND", "DOCS")
        assert len(everything) == ours.call("COMMAND", "COUNT")


def test_each_container_has_its_help(our_port, redis_port):
    with Resp(our_port) as ours, Resp(redis_port) as redis:
        for name in ("CLIENT", "COMMAND", "CONFIG", "SLOWLOG", "LATENCY", "MEMORY", "OBJECT", "ACL", "CLUSTER"):
            mine = ours.call(name, "HELP")
            if name != "CLUSTER":  # one that has no cluster has no help about it there
                theirs = redis.call(name, "HELP")
                assert (mine[0], mine[-2:]) == (theirs[0], theirs[-2:]), name
            subcommands = {info[0].decode() for info in ours.call("COMMAND", "INFO", name)[0][9]}
            told = {f"{name}|{line.split()[0]}".lower() for line in mine[1:] if not line.startswith(" ")}
            assert told == subcommands, name


def test_slow_commands_are_kept_as_latency_events(make_server):
    server = make_server(":memory:")
    with server.connect() as connection:
        connection.call("MSET", *[word for i in range(20000) for word in (f"key{i}", "v")])
        assert connection.call("LATENCY", "LATEST") == []
        assert b"off" in connection.call("LATENCY", "DOCTOR")
        connection.call("CONFIG", "SET", "latency-monitor-threshold", "1")
        end = time.monotonic() + 60
        while not connection.call("LATENCY", "HISTORY", "command"):
            assert time.monotonic() < end, "KEYS of 20,000 keys never took a millisecond"
            assert len(connection.call("KEYS", "*")) == 20000
        assert b"command" in connection.call("LATENCY", "DOCTOR")
        # What is asked here may be slow, too, on a busy machine.
        connection.call("CONFIG", "SET", "latency-monitor-threshold", "0")
        latest = {event[0]: event[1:] for event in connection.call("LATENCY", "LATEST")}
        newest, last, worst = latest[b"command"]
        assert 1 <= last <= worst
        history = connection.call("LATENCY", "HISTORY", "command")
        assert history[-1] == [newest, last] and max(ms for _, ms in history) == worst
        assert abs(newest - time.time()) < 60
        graph = connection.call("LATENCY", "GRAPH", "command").splitlines()
        assert graph[0].endswith(f"(all time high {worst} ms)".encode()) and len(graph[1]) == 80
        assert len(graph[2]) == len(history)
        (name, (_, calls, _, buckets)) = connection.call("LATENCY", "HISTOGRAM", "keys")
        assert name == b"keys" and buckets[-1] == calls
        assert connection.call("LATENCY", "RESET") == len(latest)
        assert connection.call("LATENCY", "LATEST") == []
        with pytest.raises(ReplyError, match="No samples"):
            connection.call("LATENCY", "GRAPH", "command")


def test_a_container_stands_for_its_subcommands_in_latency_histogram(make_server):
    server = make_server(":memory:")
    with server.connect() as connection:
        connection.call("CONFIG", "GET", "maxmemory")
        connection.call("CONFIG", "RESETSTAT")
        connection.call("CONFIG", "GET", "maxmemory")
        connection.call("CLIENT", "ID")
        connection.call("CLIENT", "ID")
        connection.call("CLIENT", "SETNAME", "me")

        def calls(*names):
            flat = connection.call("LATENCY", "HISTOGRAM", *names)
            return {name: told[1] for name, told in zip(flat[::2], flat[1::2])}

        assert calls("CLIENT") == {b"client|id": 2, b"client|setname": 1}
        assert calls("client|id", "get") == {b"client|id": 2}
        assert calls("config", "config|get")[b"config|get"] == 1
        assert calls("conf", "configs", "config|", "client|nosuch", "") == {}
        # As Redis has it: all that was ever called, subcommands by themselves.
        assert {b"client|id", b"client|setname", b"config|get", b"latency|histogram"} <= calls().keys()


def test_hello_has_the_seven_fields(our_port):
    with Resp(our_port) as ours:
        flat = ours.call("HELLO", "2")
        assert dict(zip(flat[::2], flat[1::2])).keys() == {
            b"server", b"version", b"proto", b"id", b"mode", b"role", b"modules"}
        hello = ours.call("HELLO", "3", "SETNAME", "me")
        assert (hello[b"server"], hello[b"version"], hello[b"proto"]) == (b"redis", b"7.2.4", 3)
        assert (hello[b"mode"], hello[b"role"], hello[b"modules"]) == (b"standalone", b"master", [])
        assert ours.call("CLIENT", "GETNAME") == b"me"
        assert ours.call("GET", "nothing-here") is None


def test_info_has_the_fields_that_clients_look_for(our_port):
    with Resp(our_port) as ours:
        ours.call("SET", "k", "1")
        text = ours.call("INFO").decode()
        for field in ["redis_version:7.2.4", "redis_mode:standalone", "loading:0", "role:master",
                      "master_repl_offset:", "connected_clients:", "cluster_enabled:0",
                      "used_memory:", "total_commands_processed:", "distkv_version:", "maxmemory:"]:
            assert field in text, field
        assert ours.call("CONFIG", "GET", "cluster-enabled") == [b"cluster-enabled", b"no"]
        assert "cluster_enabled" not in ours.call("CLUSTER", "INFO").decode()
        assert "cmdstat_set:" in ours.call("INFO", "commandstats").decode()
        assert ours.call("INFO", "server").decode().startswith("# Server\r\n")
        assert "# CPU" not in ours.call("INFO", "server", "clients").decode()


def test_keys_and_values_at_their_limits(our_port):
    with Resp(our_port) as ours:
        key, value = b"k" * 1024, b"v" * (1 << 20)
        assert ours.call("SET", key, value) == "OK"
        assert ours.call("GET", key) == value
        assert ours.call("STRLEN", key) == 1 << 20
        reply = ask(ours, ["SET", b"k" * 1025, "v"])
        assert str(reply) == "ERR key is too large: 1025 bytes, a key has 1 to 1024 bytes"
        assert str(ask(ours, ["GET", ""])) == "ERR key is empty: a key has 1 to 1024 bytes"
        reply = ask(ours, ["SET", "k", value + b"v"])
        assert str(reply) == "ERR value is too large: 1048577 bytes, a value has at most 1048576 bytes"
        reply = ask(ours, ["APPEND", key, "v"])
        assert str(reply) == "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
        assert ours.call("DEL", key) == 1


def test_keys_of_several_slots(our_port):
    crossed = "CROSSSLOT Keys in request don't hash to the same slot"
    with Resp(our_port) as ours:
        ours.call("FLUSHALL")
        for words in (["RENAME", "a", "b"], ["COPY", "a", "b"], ["MSETNX", "a", "1", "b", "2"],
                      ["WATCH", "a", "b"]):
            assert str(ask(ours, words)) == crossed, words
        many = [f"key{i}" for i in range(500)]
        assert ours.call("MSET", *[word for key in many for word in (key, "v" + key)]) == "OK"
        assert ours.call("MGET", *many, "none") == [("v" + key).encode() for key in many] + [None]
        assert ours.call("EXISTS", *many, "none") == 500
        assert ours.call("DBSIZE") == 500
        assert sorted(ours.call("KEYS", "*")) == sorted(key.encode() for key in many)
        assert ours.call("DEL", *many[:100], "none") == 100
        ours.call("MULTI")
        assert ours.call("SET", "a", "1") == "QUEUED"
        assert str(ask(ours, ["SET", "b", "1"])) == crossed
        assert str(ask(ours, ["EXEC"])).startswith("EXECABORT")
        ours.call("MULTI")
        assert "not allowed inside a transaction" in str(ask(ours, ["FLUSHALL"]))
        ours.call("DISCARD")


def test_a_refused_mset_has_set_nothing(our_port):
    """Whatever shard, or stretch of a long one, the value is of that is too large."""
    large = "v" * ((1 << 20) + 1)
    refusal = "ERR value is too large: 1048577 bytes, a value has at most 1048576 bytes"
    with Resp(our_port) as ours:
        ours.call("FLUSHALL")
        for count in (8, 3000):
            keys = [f"key{i}" for i in range(count)]
            for at in (0, 1, count // 2, count - 2, count - 1):
                words = [word for i, key in enumerate(keys) for word in (key, large if i == at else "v")]
                assert str(ask(ours, ["MSET", *words])) == refusal
                assert ours.call("EXISTS", *keys) == 0, (count, at)
        ours.call("MULTI")
        assert ours.call("MSET", "{t}a", "1", "{t}b", large) == "QUEUED"
        assert ours.call("SET", "{t}c", "1") == "QUEUED"
        assert text_of(ours.call("EXEC")) == ["-" + refusal, "OK"]
        assert ours.call("EXISTS", "{t}a", "{t}b", "{t}c") == 1


def test_replies_of_other_shards_wait_for_their_own_log(redis_port, tmp_path):
    server = Server(tmp_path / "data", tmp_path, cores="0,1")
    with server.connect() as one:
        # shard 0 has few writes, shard 1 many: their numbers are far apart
        heavy = [f"h{i}" for i in range(400) if one.call("CLUSTER", "KEYSLOT", f"h{i}") >= 8192][:50]
        for _ in range(20):
            one.send_raw(b"".join(Resp.encode("SET", key, "v") for key in heavy))
            assert [one.read() for _ in heavy] == ["OK"] * len(heavy)
    others = [Resp(server.port, 5) for _ in range(8)]
    for other in others:
        for key in heavy[:10]:
            assert other.call("SET", key, "w") == "OK"
        other.close()
    assert server.stop() == 0, server.log()


def scan_all(connection, *words):
    cursor, found, calls = "0", [], 0
    while True:
        cursor, keys = connection.call("SCAN", cursor, *words)
        found += keys
        calls += 1
        if cursor == b"0":
            return found, calls


def test_scan_returns_every_key(our_port):
    with Resp(our_port) as ours:
        ours.call("FLUSHALL")
        for start in range(0, 3000, 500):
            ours.call("MSET", *[w for i in range(start, start + 500) for w in (f"key:{i}", "v")])
        found, calls = scan_all(ours, "COUNT", "100")
        assert sorted(found) == sorted(b"key:%d" % i for i in range(3000))
        assert 25 <= calls <= 40
        found, _ = scan_all(ours, "MATCH", "key:1?", "COUNT", "1000")
        assert sorted(found) == sorted(b"key:%d" % i for i in range(10, 20))
        # a tag longer than any call: the shard keeps the place
        for start in range(0, 5000, 500):
            ours.call("MSET", *[w for i in range(start, start + 500) for w in (f"{{t}}{i}", "v")])
        found, calls = scan_all(ours, "MATCH", "{t}*")
        assert sorted(found) == sorted(b"{t}%d" % i for i in range(5000))
        assert calls > 3


def test_pipelines_keep_the_order_of_their_replies(our_port):
    with Resp(our_port) as ours:
        ours.call("FLUSHALL")
        calls, expected = [], []
        for i in range(2000):
            calls += [("SET", f"p{i}", str(i)), ("INCR", f"p{i}"), ("GET", f"p{i}"), ("PING", str(i))]
            expected += ["OK", i + 1, str(i + 1).encode(), str(i).encode()]
        ours.send_raw(b"".join(Resp.encode(*words) for words in calls))
        assert [ours.read() for _ in calls] == expected


def test_inline_commands(our_port, redis_port):
    for port in (our_port, redis_port):
        with Resp(port) as connection:
            connection.send_raw(b'PING\r\nSET inl "a b\\x41"\r\nGET inl\r\n\r\nGET \'inl\'\nQUIT\r\n')
            assert [connection.read() for _ in range(5)] == ["PONG", "OK", b"a bA", b"a bA", "OK"]
            assert connection.closed_by_server()
    for line in (b'SET a "unbalanced\r\n', b"*-x\r\n", b"*1\r\n+OK\r\n", b"*1\r\n$-5\r\n",
                 b"*2147483648\r\n", b"*1\r\n$999999999999\r\n"):
        replies = []
        for port in (our_port, redis_port):
            with Resp(port) as connection:
                connection.send_raw(line)
                replies.append(text_of(connection.read()))
                assert connection.closed_by_server()
        assert replies[0] == replies[1], line


def test_client_reply_off_and_skip(our_port):
    with Resp(our_port) as ours:
        ours.send("CLIENT", "REPLY", "SKIP")
        ours.send("SET", "a", "1")
        assert ours.call("GET", "a") == b"1"
        ours.send("CLIENT", "REPLY", "OFF")
        ours.send("SET", "a", "2")
        ours.send("GET", "a")
        assert ours.call("CLIENT", "REPLY", "ON") == "OK"
        assert ours.call("GET", "a") == b"2"
        ours.send("CLIENT", "REPLY", "OFF")
        assert ours.call("RESET") == "RESET"
        assert ours.call("GET", "a") == b"2"


def test_client_reply_skip_holds_for_a_reset(our_port, redis_port):
    for port in (our_port, redis_port):
        with Resp(port) as connection:
            connection.send("CLIENT", "REPLY", "SKIP")
            connection.send("RESET")
            assert connection.call("ECHO", "1") == b"1", port
            connection.send("CLIENT", "REPLY", "SKIP")
            assert connection.call("CLIENT", "REPLY", "ON") == "OK", port


def test_calls_with_too_few_arguments_are_counted_as_rejected(our_port, redis_port):
    for port in (our_port, redis_port):
        with Resp(port) as connection:
            connection.call("CONFIG", "RESETSTAT")
            connection.send("STRLEN")
            assert isinstance(connection.read(), Exception), port
            assert "cmdstat_strlen:calls=0,usec=0,usec_per_call=0.00,rejected_calls=1" in \
                connection.call("INFO", "commandstats").decode(), port


@pytest.mark.parametrize("empty", [b"\r\n", b"*0\r\n", b"*-1\r\n"])
def test_client_reply_skip_is_used_up_by_an_empty_request(our_port, redis_port, empty):
    skip = Resp.encode("CLIENT", "REPLY", "SKIP")
    for port in (our_port, redis_port):
        with Resp(port) as connection:
            connection.send_raw(skip + empty + Resp.encode("ECHO", "1") + skip + empty + empty +
                                Resp.encode("ECHO", "2") + skip + Resp.encode("ECHO", "3") +
                                Resp.encode("ECHO", "4"))
            assert [connection.read() for _ in range(3)] == [b"1", b"2", b"4"], port


@pytest.mark.parametrize("before", [[], [("SET", "a", "9"), ("GET", "a")]])
def test_client_reply_skip_in_a_transaction_counts_for_what_comes_behind_it(our_port, redis_port, before):
    words = [("MULTI",), *before, ("CLIENT", "REPLY", "SKIP"), ("EXEC",), ("ECHO", "1"), ("ECHO", "2"), ("ECHO", "3")]
    for port in (our_port, redis_port):
        with Resp(port) as connection:
            connection.send_raw(b"".join(Resp.encode(*each) for each in words))
            got = b""
            while b"$1\r\n3\r\n" not in got:
                got += connection.sock.recv(4096)
            assert (b"$1\r\n1\r\n" in got, b"$1\r\n2\r\n" in got) == (False, True), (port, got)


@pytest.mark.parametrize("empty", [b"\r\n", b"*0\r\n"])
def test_client_reply_skip_in_a_transaction_is_used_up_by_an_empty_request_behind_it(our_port, redis_port, empty):
    words = [("MULTI",), ("SET", "a", "9"), ("GET", "a"), ("CLIENT", "REPLY", "SKIP"), ("EXEC",)]
    for port in (our_port, redis_port):
        with Resp(port) as connection:
            connection.send_raw(b"".join(Resp.encode(*each) for each in words) + empty +
                                Resp.encode("ECHO", "1") + Resp.encode("ECHO", "2"))
            got = b""
            while b"$1\r\n2\r\n" not in got:
                got += connection.sock.recv(4096)
            assert b"$1\r\n1\r\n" in got, (port, got)


@pytest.mark.parametrize("count", [1, 4096, 4097, 100_000])
def test_watch_in_a_transaction_is_refused_and_spoils_nothing(our_port, redis_port, count):
    for port in (our_port, redis_port):
        with Resp(port) as connection:
            assert connection.call("MULTI") == "OK"
            connection.send("WATCH", *["{w}a"] * count)
            assert str(connection.read()) == "ERR WATCH inside MULTI is not allowed", port
            assert connection.call("SET", "{w}a", "1") == "QUEUED"
            assert connection.call("EXEC") == ["OK"], port


def test_client_list_and_kill(our_port):
    with Resp(our_port) as one, Resp(our_port) as two:
        two.call("CLIENT", "SETNAME", "victim")
        number = two.call("CLIENT", "ID")
        lines = one.call("CLIENT", "LIST").decode().splitlines()
        assert any(f"id={number} " in line and "name=victim" in line for line in lines)
        assert one.call("CLIENT", "LIST", "ID", str(number)).decode().count("\n") == 1
        assert "name= " in one.call("CLIENT", "INFO").decode()
        assert "cmd=client|info " in one.call("CLIENT", "INFO").decode()
        for words, queued in ((["PING"], -1), (["MULTI"], 0), (["PING"], 1), (["GET", "a"], 2), (["DISCARD"], -1)):
            two.call(*words)
            assert f" multi={queued} " in one.call("CLIENT", "LIST", "ID", str(number)).decode(), words
        assert one.call("CLIENT", "KILL", "ID", str(number)) == 1
        assert two.closed_by_server()
        assert one.call("PING") == "PONG"
        assert one.call("CLIENT", "KILL", "SKIPME", "no", "ID", str(one.call("CLIENT", "ID"))) == 1
        assert one.closed_by_server()


def test_monitor_shows_commands_of_all_connections(our_port):
    with Resp(our_port) as watcher, Resp(our_port) as one:
        assert watcher.call("MONITOR") == "OK"
        for i in range(20):
            one.call("SET", f"m{i}", 'a"b\x01')
        lines = [watcher.read() for _ in range(20)]
        for i, line in enumerate(sorted(lines, key=lambda text: int(text.split('"m')[1].split('"')[0]))):
            assert line.endswith(f'"SET" "m{i}" "a\\"b\\x01"') and "[0 127.0.0.1:" in line


def test_a_second_monitor_has_no_reply(our_port, redis_port):
    for port in (our_port, redis_port):
        with Resp(port) as watcher, Resp(port) as one:
            assert watcher.call("MONITOR") == "OK"
            watcher.send("MONITOR")
            time.sleep(0.1)
            one.call("SET", "m", "1")
            assert '"SET" "m" "1"' in watcher.read(), port
            one.call("SET", "m", "2")
            assert '"SET" "m" "2"' in watcher.read(), port
            if port == our_port:  # Redis takes nothing but QUIT and the like behind a MONITOR
                watcher.send("RESET")
                assert watcher.read() == "RESET"


def test_slowlog_keeps_slow_commands(our_port):
    with Resp(our_port) as ours:
        ours.call("CONFIG", "SET", "slowlog-log-slower-than", "0")
        ours.call("SLOWLOG", "RESET")
        ours.call("SET", "slow", "x" * 300)
        ours.call("MULTI")
        ours.call("GET", "slow")
        ours.call("EXEC")
        ours.call("CONFIG", "SET", "slowlog-log-slower-than", "60000000")
        assert ours.call("SLOWLOG", "LEN") >= 1
        entries = ours.call("SLOWLOG", "GET", "100")
        words = [entry[3] for entry in entries if entry[3][0] == b"SET"][0]
        assert words[2] == b"x" * 128 + b"... (172 more bytes)"
        assert [b"EXEC"] in [entry[3] for entry in entries]  # Redis logs its commands one by one
        assert all(len(entry) == 6 for entry in entries)
        ours.call("SLOWLOG", "RESET")


def test_slowlog_shows_each_entry_once_while_others_are_added(our_port):
    """Most are added while it merges those of the shards."""
    stop = threading.Event()

    def load():
        with Resp(our_port) as one:
            i = 0
            while not stop.is_set():
                one.call("INCR", f"count{i % 50}")
                i += 1

    with Resp(our_port) as ours:
        ours.call("CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "256")
        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: ours.call("SLOWLOG", "LEN") == 256, "a full log", every=0.02)
            for _ in range(20):
                ids = [entry[0] for entry in ours.call("SLOWLOG", "GET", "-1")]
                assert 0 < len(ids) == len(set(ids)) <= 256  # the oldest may go meanwhile
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            ours.call("CONFIG", "SET", "slowlog-log-slower-than", "60000000")
        assert ours.call("SLOWLOG", "LEN") == len(ours.call("SLOWLOG", "GET", "-1")) == 256
        assert len(ours.call("SLOWLOG", "GET", "100")) == 100
        ours.call("CONFIG", "SET", "slowlog-max-len", "128")
        assert ours.call("SLOWLOG", "LEN") == 128
        ours.call("SLOWLOG", "RESET")
        assert ours.call("SLOWLOG", "LEN") == 0


def test_watch_across_connections(our_port):
    with Resp(our_port) as one, Resp(our_port) as two:
        for key in ("w1", "w2", "w3", "w4"):
            one.call("SET", key, "1")
            one.call("WATCH", key)
            two.call("SET", key, "1")
            one.call("MULTI")
            one.call("GET", key)
            assert one.call("EXEC") is None
            one.call("WATCH", key)
            two.call("GET", key)
            one.call("MULTI")
            one.call("INCR", key)
            assert one.call("EXEC") == [2]
        for ttl in (30, 300, 3000):
            one.call("SET", "w5", "1", "PX", str(ttl))
            one.call("WATCH", "w5")
            if one.call("EXISTS", "w5"):  # it lived when it was watched, however busy the machine
                break
            one.call("UNWATCH")
        time.sleep(ttl * 0.002)
        one.call("MULTI")
        one.call("PING")
        assert one.call("EXEC") is None


def test_counters_lose_nothing_under_concurrency(our_port):
    connections = [Resp(our_port) for _ in range(8)]
    connections[0].call("DEL", "count")
    for connection in connections:
        connection.send_raw(Resp.encode("INCR", "count") * 500)
    for connection in connections:
        for _ in range(500):
            connection.read()
    assert connections[0].call("GET", "count") == b"4000"
    for connection in connections:
        connection.close()


def test_redis_benchmark_runs_its_string_tests(our_port):
    need("redis-benchmark")
    for pipeline in ("1", "16"):
        run = subprocess.run(
            ["redis-benchmark", "-p", str(our_port), "-t", "ping,set,get,incr,mset", "-n", "2000", "-P",
             pipeline, "--csv"], capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0 and run.stdout.count("\n") == 7, run.stdout + run.stderr


def test_redis_cli_reads_the_documentation(our_port):
    need("redis-cli")
    assert shutil.which("redis-cli")
    run = subprocess.run(["redis-cli", "-p", str(our_port)], input="help set\nset a 1\nget a\n",
                         capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0 and '1' in run.stdout, run.stdout + run.stderr
