# SPDX-License-Identifier: MIT
"""Heavy clients beside one that asks for a key at a time, on data that does not fit in the caches:
its waits stay short, and theirs come to an end."""

import json
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time

import pytest

from conftest import CLIENT, SANITIZED, SLOW, Resp

# A client that was away for so long may be closed though it means to read.
STARVED_SECONDS = 0.3
CALLS_MIN = 10  # of single commands: a median of fewer says nothing
HEAVY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "heavy.py")


class Heavy:
    def __init__(self, server, kind, connections, keys, per):
        words = [sys.executable, HEAVY, server.port, kind, connections, keys, per]
        self.process = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "begun\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def end(self):
        """Lets what is under way come to its end."""
        self.process.stdin.close()
        result = json.loads(self.process.stdout.readline())
        self.process.wait()
        return result


def load(server, keys, size):
    value = os.urandom(size)
    with server.connect(timeout=60) as connection:
        for start in range(0, keys, 500):
            todo = list(range(start, min(start + 500, keys)))
            while todo:
                connection.send_raw(
                    b"".join(Resp.encode("SET", b"key%d" % i, value) for i in todo))
                todo = [i for i in todo if connection.read() != "OK"]
                if todo:
                    time.sleep(0.02)


def small_requests(server, keys, seconds):
    """How long single commands took, by kind, sorted."""
    chance = random.Random(3)
    waits = {"GET": [], "SET": []}
    end = time.monotonic() + seconds
    with server.connect(timeout=120) as connection:
        while time.monotonic() < end or len(waits["GET"]) < CALLS_MIN:
            for words in (("GET", f"key{chance.randrange(keys)}"),
                          ("SET", f"small{chance.randrange(1000)}", "x" * 100)):
                begun = time.monotonic()
                connection.call(*words)
                waits[words[0]].append(time.monotonic() - begun)
    return {kind: sorted(times) for kind, times in waits.items()}


def told(waits):
    return {kind: f"{len(times)} calls, median {times[len(times) // 2] * 1000:.1f} ms, "
                  f"longest {times[-1] * 1000:.1f} ms" for kind, times in waits.items()}


def beside(server, kind, connections, keys, per, seconds):
    """Runs the small requests beside heavy ones. Again when the heavy clients' process was not given
    the processor for so long that they may have been closed: see in_turn."""
    while True:
        with Heavy(server, kind, connections, keys, per) as heavy:
            time.sleep(0.5)
            waits = small_requests(server, keys, seconds)
            begun = time.monotonic()
            result = heavy.end()
            print(kind, told(waits), result, f"ended after {time.monotonic() - begun:.1f} s")
        assert result["unfinished"] == 0 and not result["errors"], result
        if result["closed"] == 0:
            assert result["done"] >= connections
            return waits
        assert result["away"] > STARVED_SECONDS, result
        connections //= 2
        assert connections >= 5, "closed again and again"


def not_reading(server):
    return server.metric("distkv_clients_output_closed_total")


def in_turn(server, kind, connections, keys, per):
    """Heavy clients that ask once; all are served. While others wait for the memory the server gives
    a client a second to take some of its reply, so it may close those of a process that is not given
    the processor for about as long. Then, and only then, fewer ask again: it is sooner through."""
    while True:
        before = not_reading(server)
        with Heavy(server, kind, connections, keys, per) as heavy:
            result = heavy.end()
        print(kind, connections, result)
        assert result["unfinished"] == 0 and not result["errors"], result
        server.wait_metric("distkv_clients_output_closed_total",
                           lambda value, closed=before + result["closed"]: value == closed)
        if result["closed"] == 0:
            return
        assert result["away"] > STARVED_SECONDS, result
        connections //= 2
        assert connections >= 5, "closed again and again"


def short(measure, median, longest, written=None, alone=None):
    """Whether they were, of six times once: others use the machine, too, and its disks. Who writes
    waits for those as well, so may wait longer. alone: the same without the heavy ones; what that takes
    three times in the same moment the machine itself costs."""
    bound = {"GET": longest, "SET": written or longest}
    seen = []
    for _ in range(6):
        waits = measure()
        quiet = alone() if alone is not None and seen else {"GET": [0], "SET": [0]}
        if all(times[len(times) // 2] < median * SLOW + 3 * quiet[kind][len(quiet[kind]) // 2] and
               times[-1] < bound[kind] * SLOW + 3 * quiet[kind][-1]
               for kind, times in waits.items()):
            return
        seen.append((told(waits), told(quiet)))
    pytest.fail(str(seen))


@pytest.mark.smoke
def test_a_small_request_does_not_wait_for_large_ones(make_server):
    """Without a line of its own it waits for seconds, and is closed when they take the memory."""
    keys = 80_000 // SLOW
    server = make_server(memory="64MiB", cores="0,1")
    load(server, keys, 400)
    for kind, connections, per in (("mget", 100, 1000), ("keys", 20, 0), ("pipeline", 100, 200)):
        if SANITIZED:
            connections //= 8
        short(lambda call=(server, kind, connections, keys, per, 1): beside(*call), 0.25, 2.5,
              alone=lambda: small_requests(server, keys, 1))


@pytest.mark.smoke
def test_commands_on_thousands_of_keys_answer_as_on_a_few(make_server):
    """They go stretch by stretch; nobody can tell."""
    server = make_server(memory="64MiB", cores="0,1")
    count = 6000 if not SANITIZED else 2500
    names = [f"many{i}" for i in range(count)]
    values = [os.urandom(1 + i % 40) for i in range(count)]
    pairs = [word for pair in zip(names, values) for word in pair]
    with server.connect(timeout=60) as connection:
        assert connection.call("MSET", *pairs) == "OK"
        connection.send("MSET", *pairs, "long", b"v" * ((1 << 20) + 1))
        assert "value is too large" in str(connection.read())
        asked = names + ["absent"] * 1500 + names[:1000]
        expected = values + [None] * 1500 + values[:1000]
        for version in ("2", "3"):
            connection.call("HELLO", version)
            assert connection.call("MGET", *asked) == expected
            # Behind and before others, in their order.
            connection.send_raw(b"".join(
                Resp.encode(*words) for words in (
                    ["GET", names[0]], ["MGET", *asked], ["GET", names[1]],
                    ["EXISTS", *asked], ["CLIENT", "REPLY", "SKIP"], ["MGET", *asked], ["PING"])))
            assert connection.read() == values[0]
            assert connection.read() == expected
            assert connection.read() == values[1]
            assert connection.read() == count + 1000
            assert connection.read() == "PONG"
        for i in range(20 if not SANITIZED else 5):
            values[i] = os.urandom(1 << 20)
            assert connection.call("SET", names[i], values[i]) == "OK"
        assert connection.call("MGET", *names[:30]) == values[:30]
        assert connection.call("MGET", *names[:5]) == values[:5]
        assert connection.call("MGET", *names) == values
        tagged = [f"{{tag}}{i}" for i in range(2000)]
        assert connection.call("MSET", *[w for name in tagged for w in (name, name)]) == "OK"
        assert connection.call("MGET", *tagged) == [name.encode() for name in tagged]
        assert connection.call("DEL", *names, *names, "absent") == count
        assert connection.call("TOUCH", *names, *tagged) == 2000
        assert connection.call("DBSIZE") == 2000


@pytest.mark.smoke
@pytest.mark.parametrize("cores", ["0", "0,1"])
def test_pipelines_of_long_replies_are_served_in_turn(make_server, cores):
    """Their sum is many times the memory for replies: one that would wait for those before it is
    made when its turn comes, and none is refused."""
    server = make_server(memory="64MiB", cores=cores)
    loads = ((3000, 2000, 200, 32), (300_000, 50, 10, 20), (100_000, 50, 50, 12))
    if SANITIZED == "thread":  # each byte is watched
        loads = loads[:1]
    for size, keys, connections, per in loads:
        load(server, keys, size)
        for kind in ("pipeline", "hotpipe"):
            in_turn(server, kind, connections // (5 if SANITIZED else 1), keys, per)
    names = [f"{{one slot}}{i}" for i in range(4)]
    values = [os.urandom(1 << 20) for _ in names]
    with server.connect(timeout=60) as connection:
        for name, value in zip(names, values):
            assert connection.call("SET", name, value) == "OK"
        for _ in range(8 if not SANITIZED else 1):
            assert connection.call("MGET", *names) == values


@pytest.mark.smoke
def test_what_cannot_be_answered_is_not_done(make_server):
    """A transaction whose reply is too long for the memory has no effect, and says so."""
    server = make_server(memory="64MiB", cores="0,1")
    names = [f"{{tag}}{i}" for i in range(16)]
    with server.connect(timeout=60) as connection:
        for name in names:
            assert connection.call("SET", name, os.urandom(1 << 20)) == "OK"
        for extra in ([], [["PING"]]):
            assert connection.call("SET", "{tag}mark", "before") == "OK"
            assert connection.call("MULTI") == "OK"
            for words in [["SET", "{tag}mark", "after"], ["MGET", *names], *extra]:
                assert connection.call(*words) == "QUEUED"
            connection.send("EXEC")
            assert str(connection.read()).startswith("OOM "), extra
            assert connection.call("GET", "{tag}mark") == b"before"


def test_clients_that_do_not_read_long_replies_hold_up_nobody(make_server):
    """Each keeps a part of its reply in the server's memory; others who want much get theirs."""
    server = make_server(memory="128MiB", cores="0,1")
    keys = 20_000 // SLOW
    load(server, keys, 200)
    with server.connect(timeout=60) as connection:
        for i in range(16):
            assert connection.call("SET", f"long{i}", os.urandom(1 << 20)) == "OK"
    words = ["MGET"] + [f"long{i}" for i in range(16)]
    lazy = []
    for _ in range(24):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(Resp.encode(*words))
        lazy.append(sock)
    time.sleep(2)
    short(lambda: small_requests(server, keys, 2), 0.25, 2.5)
    for asked, count in ((["MGET"] + [f"key{i}" for i in range(1000)], 1000),
                         (["KEYS", "key*"], keys), (words, 16), (["MGET"] + ["long1"] * 3, 3)):
        begun = time.monotonic()
        with server.connect(timeout=60) as connection:
            assert len(connection.call(*asked)) == count
        print(asked[:2], f"{time.monotonic() - begun:.1f} s")
        assert time.monotonic() - begun < 30 * SLOW
    for sock in lazy:
        sock.close()


def test_a_command_of_tens_of_thousands_of_words_holds_up_nobody(make_server):
    """All keys of a transaction are locked, looked for and written as one; the names of commands are
    looked for one by one, keys that are watched among those that are watched already; the commands
    of a transaction that have no keys run one by one."""
    server = make_server(memory="256MiB", cores="0", stall="0")
    load(server, 100, 100)
    tags = iter("abcdefghi")

    def pairs():
        tag = next(tags)
        return [word for i in range(60_000) for word in (f"{{{tag}}}{i * 7919 % 1_000_003}", "x")]

    names = ["close"] * 500_000
    watched = [f"{{w}}{i}" for i in range(4096)]
    listed = Resp.encode("COMMAND", "LIST", "FILTERBY", "PATTERN", "*a*b*c*d*e*f*")
    for request, size in (
            (lambda: Resp.encode("MSETNX", *pairs()), 4),
            (lambda: Resp.encode("COMMAND", "INFO", *names), len("*500000\r\n") + 5 * 500_000),
            (lambda: Resp.encode("LATENCY", "HISTOGRAM", *names), 4),
            (lambda: Resp.encode("WATCH", *watched), 5),
            (lambda: Resp.encode("WATCH", *watched, *watched[-1:] * 50_000), len(
                "-ERR too many keys are watched: a connection has at most 4096\r\n")),
            (lambda: Resp.encode("MULTI") + listed * 40_000 + Resp.encode("EXEC"),
             5 + 9 * 40_000 + len("*40000\r\n") + 4 * 40_000)):
        def measure(request=request, size=size):
            asked = request()
            with server.connect(timeout=60) as connection:
                answer = bytearray()

                def ask():
                    connection.send_raw(asked)
                    while len(answer) < size and (more := connection.sock.recv(1 << 20)):
                        answer.extend(more)

                thread = threading.Thread(target=ask)
                thread.start()
                waits = small_requests(server, 100, 1)
                thread.join()
            assert len(answer) == size and answer[:1] in b":*+-", answer[:80]
            print(told(waits))
            return waits
        short(measure, 0.05, 0.2, written=2.5, alone=lambda: small_requests(server, 100, 1))


def test_those_who_wait_for_replicas_hold_up_nobody(make_server):
    """There are none, so WAIT lasts as long as it was told."""
    server = make_server(memory="64MiB", cores="0")
    waiting = [server.connect() for _ in range(600)]
    try:
        for connection in waiting:
            connection.send("WAIT", "1", "0")
        with server.connect() as connection:
            begun = time.monotonic()
            assert b"redis_version" in connection.call("INFO", "server")
            assert time.monotonic() - begun < 20 * SLOW  # those wait for ever
            assert connection.call("MULTI") == "OK"  # nothing waits inside of one, as in Redis
            assert connection.call("WAIT", "1", "0") == "QUEUED"
            assert connection.call("EXEC") == [0]
            begun = time.monotonic()
            assert connection.call("WAIT", "0", "0") == 0
            assert time.monotonic() - begun < 20 * SLOW
    finally:
        for connection in waiting:
            connection.close()
    end, took = time.monotonic() + 60 * SLOW, 0
    with server.connect() as connection:
        while took < 0.3:  # as soon as those have gone
            assert time.monotonic() < end
            begun = time.monotonic()
            assert connection.call("WAIT", "1", "300") == 0
            took = time.monotonic() - begun


@pytest.mark.soak
def test_hundreds_of_heavy_clients_of_every_kind(make_server):
    keys = 600_000
    server = make_server(memory="128MiB", cores="0,1")
    load(server, keys, 400)
    with server.connect(timeout=60) as connection:
        for start in range(0, 10_000, 500):
            connection.send_raw(b"".join(Resp.encode("SET", b"{tag}%d" % i, "x" * 400)
                                         for i in range(start, start + 500)))
            assert all(connection.read() == "OK" for _ in range(500))
    for kind, connections, per in (
        ("mget", 500, 1000), ("keys", 8, 0), ("scan", 300, 1000), ("dbsize", 8, 0),
        ("exists", 300, 1000), ("pipeline", 500, 200), ("hotpipe", 100, 5000), ("hot", 300, 1000),
        ("exec", 20, 200), ("mget,scan,exists,pipeline,hot", 300, 500),
    ):
        limit = 10_000 if kind == "exec" else keys
        short(lambda call=(server, kind, connections, limit, per, 20): beside(*call), 0.25, 2.5)
    assert server.memory_peak() < 128 * 1.1 * (1 << 20)


def shard_cpu_ns(server):
    """Of all threads, of which one is a shard."""
    total = 0
    for thread in os.listdir(f"/proc/{server.process.pid}/task"):
        with open(f"/proc/{server.process.pid}/task/{thread}/schedstat", encoding="ascii") as figures:
            total += int(figures.read().split()[0])
    return total


def test_a_request_of_very_many_arguments_is_refused_at_little_cost(make_server):
    """All but its last byte has been read in turns before."""
    server = make_server(data_dir=":memory:", cores="0", memory="512MiB")
    count = 1_000_000
    with server.connect(timeout=60) as connection:

        def cost(name, error):
            body = b"*%d\r\n$%d\r\n%s\r\n" % (count + 1, len(name), name) + b"$7\r\n{t}0001\r\n" * count
            connection.send_raw(body[:-1])
            before, now = -1, shard_cpu_ns(server)
            while now - before > 20_000_000:  # until it has come round to all of it
                time.sleep(0.5 * SLOW)
                before, now = now, shard_cpu_ns(server)
            connection.send_raw(body[-1:])
            reply = connection.read()
            assert (error or "0") in str(reply)
            return shard_cpu_ns(server) - now

        done = cost(b"DEL", None)
        # What the node does for itself meanwhile counts, too: of three times once.
        for name, error in ((b"WATCH", "too many keys"), (b"NOSUCH", "unknown"), (b"GET", "wrong number"),
                            (b"MSETNX", "size limit")):
            assert any(cost(name, error) < done / 4 for _ in range(3)), name


def test_others_are_served_while_the_words_of_a_command_are_read(make_server):
    """Counted are the answers to somebody else between its last byte and its own answer."""
    server = make_server(data_dir=":memory:", cores="0", memory="512MiB", stall="0")
    count = 1_000_000
    with server.connect(timeout=60 * SLOW) as connection, server.connect(timeout=60 * SLOW) as other:

        def answers(reply, *words):
            request = Resp.encode(*words)
            connection.send_raw(request[:-1])
            before, now = -1, shard_cpu_ns(server)
            while now - before > 20_000_000:  # until it has come round to all of it
                time.sleep(0.2 * SLOW)
                before, now = now, shard_cpu_ns(server)
            connection.send_raw(request[-1:])
            answered = 0
            while not select.select([connection.sock], [], [], 0)[0]:
                assert other.call("PING") == "PONG"
                answered += 1
            assert connection.read() == reply
            return answered

        for reply, words in ((b"", ["INFO"] + ["close"] * count), (0, ["LATENCY", "RESET"] + ["close"] * count),
                             (0, ["CLIENT", "KILL"] + ["SKIPME", "yes"] * (count // 2) + ["ID", "99999999"]),
                             (0, ["COPY", "{t}a", "{t}b"] + ["DB", "1"] * (count // 2))):
            # In one turn one or two. Who asks may not be given the processor meanwhile: of five times once.
            assert any(answers(reply, *words) >= 5 for _ in range(5)), words[0]


def test_keys_that_are_watched_are_looked_for_at_little_cost(make_server):
    """Each key of WATCH is looked for among those that are watched already. That costs no more than to look
    for it in the store, whether it is watched or not."""
    server = make_server(data_dir=":memory:", cores="0", memory="512MiB", stall="0")
    keys = [b"{t}%04d" % i for i in range(4096)]
    with server.connect(timeout=60 * SLOW) as connection:

        def cost(reply, *words):
            before = shard_cpu_ns(server)
            assert connection.call(*words) == reply
            return shard_cpu_ns(server) - before

        # What the node does for itself meanwhile, or for the first time, counts, too: the least of some.
        store = min(cost(0, "EXISTS", *keys) for _ in range(5))
        watch, again = [], []
        for _ in range(5):
            watch.append(cost("OK", "WATCH", *keys))
            again.append(cost("OK", "WATCH", *keys[-1:] * 4096))
            assert connection.call("UNWATCH") == "OK"
        print(store, watch, again)
        assert max(min(watch), min(again)) < 8 * store


def test_what_cannot_be_printed_costs_little_more_to_show_to_a_monitor(make_server):
    server = make_server(data_dir=":memory:", cores="0", memory="512MiB", stall="0")
    with server.connect(timeout=60 * SLOW) as connection, server.connect() as monitor:
        assert monitor.call("MONITOR") == "OK"  # it does not read: its lines are made, and dropped

        def cost(byte):
            before = shard_cpu_ns(server)
            assert connection.call("SET", "key", byte * 1_000_000) == "OK"
            return shard_cpu_ns(server) - before

        # What comes in, and what the node does for itself, counts, too: the least of some.
        plain = min(cost(b"x") for _ in range(10))
        escaped = min(cost(b"\0") for _ in range(10))
        print(plain, escaped)
        assert escaped < 5 * plain


def test_deleted_keys_hold_up_no_scan(make_server):
    """However many lie between two that are there: a call of SCAN answers without having passed over all of
    them, and the next one goes on where it was."""
    server = make_server(data_dir=":memory:", cores="0", memory="1GiB", stall="0")
    dead = 300_000
    with server.connect(timeout=60) as connection:
        for start in range(0, dead, 2000):
            names = [f"dead{i}" for i in range(start, start + 2000)]
            connection.send_raw(Resp.encode("MSET", *(word for name in names for word in (name, "x"))) +
                                Resp.encode("DEL", *names))
            assert connection.read() == "OK" and connection.read() == 2000

        def scanned():
            cursor, calls, found = b"0", 0, []
            while calls == 0 or cursor != b"0":
                cursor, keys = connection.call("SCAN", cursor, "COUNT", 10)
                found += keys
                calls += 1
            return calls, found

        calls, found = scanned()
        assert found == [] and 2 <= calls <= 10
        assert connection.call("RANDOMKEY") is None
        assert connection.call("SET", "last", "x") == "OK"
        calls, found = scanned()
        assert found == [b"last"] and calls >= 2
        assert connection.call("RANDOMKEY") == b"last"
        assert connection.call("KEYS", "*") == [b"last"]
        assert connection.call("DBSIZE") == 1
        command = [CLIENT, "--server", f"127.0.0.1:{server.port}", "scan", "--keys-only"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["last"]
        # Where few were deleted one is found.
        assert connection.call("SELECT", 1) == "OK" and connection.call("RANDOMKEY") is None
        assert connection.call("SET", "one", "x") == "OK" and connection.call("DEL", "two") == 0
        assert connection.call("RANDOMKEY") == b"one"
