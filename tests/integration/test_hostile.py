# SPDX-License-Identifier: MIT
"""Clients that misbehave: each has a defined answer and costs nobody else anything."""

import os
import pathlib
import random
import re
import resource
import socket
import struct
import subprocess
import threading
import time

import pytest

import test_native
from conftest import SANITIZED, SLOW, ReplyError, Resp, wait_for
from test_bench import bench, run_of


def polite(server):
    """Somebody else is served while the others misbehave."""
    with server.connect() as connection:
        assert connection.call("PING") == "PONG"
        assert connection.call("SET", "polite", "x") == "OK"
        assert connection.call("GET", "polite") == b"x"


def raw(server, data, ends):
    """Sends bytes, and a question when the connection should live; returns all that comes back
    until its answer or until the server closes, and whether it closed."""
    answer = b"" if ends else b"$10\r\nstill-here\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW) as sock:
        got = b""
        try:
            sock.sendall(data if ends else data + b"ECHO still-here\r\n")
            while ends or not got.endswith(answer):
                part = sock.recv(1 << 16)
                if not part:
                    return got, True
                got += part
        except ConnectionError:
            return got, True
        return got.removesuffix(answer), False


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_who_goes_while_nobody_reads_from_it_is_noticed(make_server, reset, later):
    """Commands that were sent behind one that waits are not read yet."""
    server = make_server(data_dir=":memory:", cores="0")
    with server.connect() as asker:
        socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        for sock in socks:
            sock.sendall(b"WAIT 1 0\r\n" if later else b"WAIT 1 0\r\nPING\r\n")

        def figures():
            info = asker.call("INFO").decode()
            return [int(re.search(rf"^{name}:(\d+)", info, re.M).group(1))
                    for name in ("connected_clients", "requests_pending", "clients_paused")]

        alone = [1, figures()[1] - 3, 0]  # INFO itself counts
        if later:
            wait_for(lambda: figures()[1] == alone[1] + 3, "three that wait")
            for sock in socks:
                sock.sendall(b"PING\r\n")
        wait_for(lambda: figures()[2] == 3, "three that are paused")
        for sock in socks:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        wait_for(lambda: figures() == alone, "nobody but who asks")


def test_what_was_sent_before_the_end_is_answered_while_nobody_reads(make_server):
    server = make_server(data_dir=":memory:", cores="0")
    with socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW) as sock:
        lines = [b"SET k 0"] + [b"WAIT 1 300", b"INCR k"] * 3 + [b"WAIT 1 0", b"INCR k"]
        sock.sendall(b"\r\n".join(lines) + b"\r\n")
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while part := sock.recv(1 << 16):
            got += part
    assert got == b"+OK\r\n:0\r\n:1\r\n:0\r\n:2\r\n:0\r\n:3\r\n:0\r\n:4\r\n"


@pytest.mark.smoke
@pytest.mark.parametrize(
    "data, prefix, closed",
    [
        (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n", False),
        (b"PING\r\n", b"+PONG\r\n", False),
        (b"*-1\r\n", b"", False),
        (b"*0\r\n", b"", False),
        (b"*99999999999999999999\r\n", b"-ERR Protocol error", True),
        (b"*2147483648\r\n", b"-ERR Protocol error: invalid multibulk length", True),
        (b"*1\r\n$-5\r\n", b"-ERR Protocol error: invalid bulk length", True),
        (b"*1\r\n$18446744073709551615\r\n", b"-ERR Protocol error: invalid bulk length", True),
        (b"*1\r\n:1\r\n", b"-ERR Protocol error: expected '$', got ':'", True),
        (b"*x\r\n", b"-ERR Protocol error", True),
        pytest.param(b"*3\r\n$4\r\nECHO\r\n$9000000\r\n" + bytes(9000000) + b"\r\n$9000000\r\n",
                     b"-ERR Protocol error: request is larger than 16 MiB", True, id="17 MiB"),
        (b"'unbalanced\r\n", b"-ERR Protocol error: unbalanced quotes in request", True),
        (b"A" * 70000, b"-ERR Protocol error: too big inline request", True),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"", True),
        (b"hoST: x\r\n\r\n", b"", True),
        (b"post / HTTP/1.1\r\n\r\n", b"", True),
        (b"*1\r\n$6\r\nNOSUCH\r\n", b"-ERR unknown command 'NOSUCH'", False),
        (b"*1\r\n$3\r\nGET\r\n", b"-ERR wrong number of arguments for 'get' command", False),
    ],
)
def test_malformed_requests_get_their_answer(server, data, prefix, closed):
    got, was_closed = raw(server, data, closed)
    assert got.startswith(prefix), got[:200]
    assert was_closed == closed
    polite(server)


def test_random_garbage_harms_nobody(server):
    import random

    chance = random.Random(11)
    for _ in range(200):
        data = chance.randbytes(chance.choice([1, 7, 64, 500, 5000]))
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW) as sock:
                sock.sendall(data)
        except OSError:
            pass
    polite(server)


def test_more_watched_keys_than_there_may_be_are_refused_as_such(server):
    with server.connect() as connection:
        assert connection.call("WATCH", *[f"{{w}}{i}" for i in range(4096)]) == "OK"
        connection.send("WATCH", "{w}more")
        assert str(connection.read()).startswith("ERR too many keys are watched")
        assert connection.call("UNWATCH") == "OK"
        assert connection.call("WATCH", "{w}more") == "OK"


def test_a_key_or_value_over_its_limit_is_refused_exactly(server):
    with server.connect() as connection:
        assert connection.call("SET", b"k" * 1024, "v") == "OK"
        connection.send("SET", b"k" * 1025, "v")
        assert "1024" in str(connection.read())
        assert connection.call("SET", "big", b"v" * (1 << 20)) == "OK"
        assert connection.call("STRLEN", "big") == 1 << 20
        assert connection.call("SET", "empty", "") == "OK"
        assert connection.call("GET", "empty") == b""
        connection.send("SET", "", "v")
        assert isinstance(connection.read(), Exception)
    with server.connect() as connection:
        connection.send("SET", "k", b"v" * ((1 << 20) + 1))
        reply = connection.read()
        assert isinstance(reply, Exception), reply
    polite(server)


@pytest.mark.smoke
def test_binary_keys_and_values_are_kept_exactly(server):
    with server.connect() as connection:
        every = bytes(range(256))
        assert connection.call("SET", every, every * 3) == "OK"
        assert connection.call("GET", every) == every * 3
        assert connection.call("SET", b"\r\n$5\r\n", b"*1\r\n") == "OK"
        assert connection.call("GET", b"\r\n$5\r\n") == b"*1\r\n"


def resp_halves():
    """Requests in two parts, each with the beginning of its answer."""
    set_of_much = Resp.encode("SET", "half", b"v" * 100_000)
    get = Resp.encode("GET", "absent")
    return [(set_of_much[:40], set_of_much[40:], b"+OK"), (b"*1", b"\r\n$4\r\nPING\r\n", b"+PONG"),
            (b"PI", b"NG\r\n", b"+PONG"), (get[:-4], get[-4:], b"$-1"),
            (b"*1\r\n$4\r\nPING\r\n" + get[:-4], get[-4:], b"+PONG\r\n$-1")]


def native_halves():
    put = test_native.put(b"half", b"v" * 100_000, 7)
    ping = test_native.frame(test_native.PING, b"x")
    answer = b"\xd5DKV\x01"
    return [(ping[:1], ping[1:], answer), (ping[:20], ping[20:], answer),
            (put[:48], put[48:], answer), (put[:-1], put[-1:], answer),
            (ping + put[:50], put[50:], answer)]


@pytest.mark.parametrize("halves", [resp_halves, native_halves])
def test_half_a_request_then_silence_holds_up_nobody(server, halves):
    """Nothing is done of it, and it is answered when its other half comes after all."""
    for finished in (False, True):
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW)
                  for _ in halves()]
        for sock, (first, _, _) in zip(silent, halves()):
            sock.sendall(first)
        time.sleep(0.5)
        polite(server)
        with test_native.Native(server) as native:
            assert native.call(test_native.frame(test_native.PING, b"x"))[3] == b"x"
        assert server.call("EXISTS", "half") == 0
        for sock, (_, rest, answer) in zip(silent, halves()):
            if finished:
                sock.sendall(rest)
                got = b""
                while len(got) < len(answer):
                    got += sock.recv(1000) or pytest.fail(f"closed after {got}")
                assert got.startswith(answer)
            sock.close()
        polite(server)
    assert server.call("STRLEN", "half") == 100_000


def large_sets(port, count, each, size):
    """That many clients at once, each of which writes so many values: all answers."""
    request = Resp.encode("SET", "k", b"v" * size)
    answers = []

    def client():
        try:
            with Resp(port, 60 * SLOW) as connection:
                for _ in range(each):
                    connection.send_raw(request)
                    answers.append(connection.read())
        except (OSError, ReplyError) as error:
            answers.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("size", [1_000_000, 1 << 20])  # the latter is the largest there may be
def test_large_requests_that_find_no_memory_wait_for_it(make_server, size):
    """Thirty clients write values of 1 MB where a dozen of them fit at once: nobody is refused,
    and nobody loses the connection."""
    server = make_server(memory="64MiB", cores="0,1")
    answers = large_sets(server.port, 30, 4, size)
    assert answers == ["OK"] * 120, [answer for answer in answers if answer != "OK"][:3]
    assert server.metric("distkv_connections_starved_total") == 0
    assert server.metric("distkv_clients_request_timed_out_total") == 0
    server.wait_metric("distkv_connections_waiting_for_room", lambda value: value == 0)


@pytest.mark.parametrize("protocol", ["resp", "native"])
def test_half_large_requests_cost_others_a_moment(make_server, protocol):
    """They hold the memory for large requests, and are closed as soon as others need it."""
    server = make_server(memory="64MiB", cores="0,1")
    whole = {"resp": Resp.encode("SET", "half", b"v" * 1_000_000),
             "native": test_native.put(b"half", b"v" * 1_000_000, 7)}[protocol]
    halves = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    for sock in halves:
        sock.setblocking(False)
        sock.send(whole[:500_000])
    time.sleep(0.5)
    for size in (100, 20_000, 200_000, 1_000_000):
        begin = time.monotonic()
        answers = large_sets(server.port, 10, 3, size)
        assert answers == ["OK"] * 30, [answer for answer in answers if answer != "OK"][:3]
        # Who waits for room for 30 s is refused.
        assert time.monotonic() - begin < 28 * SLOW
    assert server.metric("distkv_connections_starved_total") == 0
    server.wait_metric("distkv_clients_request_timed_out_total", lambda value: value > 0)
    for sock in halves:
        sock.close()
    assert server.call("EXISTS", "half") == 0
    polite(server)


@pytest.mark.parametrize("count, size, sent, clients", [(0, 0, 0, 300),
                                                        (30, 1_048_576, 1_000_000, 50),
                                                        (44, 900_000, 880_000, 300)])
def test_pipelines_go_on_beside_half_large_requests(make_server, count, size, sent, clients):
    """What is for small requests is not there for large ones; and these are closed when the memory
    that they hold is short, though no other large one waits for it. No client of a pipeline loses
    its connection, or an answer, however many there are."""
    server = make_server(memory="64MiB", cores="0,1")
    half = b"*3\r\n$3\r\nSET\r\n$1\r\nh\r\n$%d\r\n" % size + b"x" * sent
    for seconds in 2, 8, 16:  # a busy machine may need the first just to connect
        halves = []  # anew: those of before have been closed
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=0.5)
            halves.append(sock)
            try:
                sock.sendall(half)
            except OSError:
                pass  # it waits for room
        run = run_of(bench(server.port, None, workload="set", keys=20_000, value_size=1000,
                           pipeline=64, connections=clients, duration=f"{seconds * SLOW}s"))
        for sock in halves:
            sock.close()
        if run["requests"] > 0 or run["errors"]:
            break
    assert run["requests"] > 0
    assert [error for error in run["errors"] if error["kind"] != "BUSY"] == []
    assert server.metric("distkv_connections_starved_total") == 0
    polite(server)


def test_idle_connections_are_closed_after_the_timeout(make_server):
    server = make_server(timeout=1)
    connection = server.connect()
    assert connection.call("PING") == "PONG"
    begun = time.monotonic()
    assert connection.closed_by_server(60)
    assert time.monotonic() - begun < 30 * SLOW


def closed_soon(sock, seconds):
    """Seconds until the server closed it, or None."""
    begun = time.monotonic()
    sock.settimeout(seconds * SLOW)
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return None
    except ConnectionError:
        pass
    return time.monotonic() - begun


def keepalive_seconds(server_port, client_port):
    """Until the kernel asks the client whether it is there; None: it never does."""
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    for _, local, remote, state, _, timer, *_ in (line.split() for line in lines):
        if state != "01" or int(local.split(":")[1], 16) != server_port:
            continue
        if int(remote.split(":")[1], 16) == client_port:
            kind, ticks = timer.split(":")
            return int(ticks, 16) / os.sysconf("SC_CLK_TCK") if kind == "02" else None
    return None


def test_clients_that_vanish_without_a_word_are_found_out(server):
    # A machine that lost its power ends no connection. Nobody else would: --timeout is 0.
    with server.connect() as connection:
        assert connection.call("PING") == "PONG"
        promised = int(connection.call("CONFIG", "GET", "tcp-keepalive")[1])
        port = connection.sock.getsockname()[1]
        deadline = time.monotonic() + 60 * SLOW
        while (left := keepalive_seconds(server.port, port)) is None:
            assert time.monotonic() < deadline, "the kernel has no timer for it"
            time.sleep(0.02)
        assert 0 < left <= promised


@pytest.mark.parametrize("words", [
    ["SCAN", "0", "MATCH", "*[" + "b" * 4_000_000],
    ["KEYS", "*[" + "b" * 4_000_000],
    ["COMMAND", "LIST", "FILTERBY", "PATTERN", "*[" + "b" * 4_000_000],
    ["CONFIG", "GET", *["*[" + "b" * 250] * 60_000],
])
def test_patterns_that_would_take_for_ever_are_refused(server, words):
    # Each of these kept its shard, and all whom it serves, busy for 10 to 20 s.
    with server.connect() as asker, server.connect() as other:
        assert asker.call("SET", "a" * 1024, "v") == "OK"
        with pytest.raises(ReplyError, match="^ERR .*at most (4096 bytes|256 patterns)"):
            asker.call(*words)
        assert asker.call("PING") == other.call("PING") == "PONG"
    longest = "a" * 1024 + "*" * 3072  # as long as a pattern may be
    with server.connect() as asker:
        assert asker.call("SCAN", "0", "MATCH", longest) == [b"0", [b"a" * 1024]]
        assert asker.call("KEYS", longest) == [b"a" * 1024]
        assert asker.call("COMMAND", "LIST", "FILTERBY", "PATTERN", "get" + "*" * 4093)
        assert asker.call("CONFIG", "GET", *["tcp-keepaliv?"] * 256) == [b"tcp-keepalive", b"300"]
        with pytest.raises(ReplyError, match="at most 4096 bytes"):
            asker.call("SCAN", "0", "MATCH", longest + "*")


def test_a_list_of_very_many_clients_is_refused(server):
    with server.connect() as asker:
        mine = asker.call("CLIENT", "ID")
        assert f"id={mine} ".encode() in asker.call("CLIENT", "LIST", "ID", *[mine] * 1024)
        with pytest.raises(ReplyError, match="^ERR too many client IDs: at most 1024"):
            asker.call("CLIENT", "LIST", "ID", *[mine] * 1025)


@pytest.mark.smoke
def test_an_unfinished_request_has_its_time(make_server):
    """A client that sends half of a request, or a byte now and then, is closed; its memory is for
    others. One that is slow but goes on is served, and silence between requests is none of this."""
    server = make_server()
    assert server.call("CONFIG", "GET", "request-timeout") == [b"request-timeout", b"1m"]
    assert server.call("CONFIG", "SET", "request-timeout", "2s") == "OK"
    idle = server.connect()
    assert idle.call("PING") == "PONG"
    before = server.metric("distkv_clients_request_timed_out_total")

    head = b"*3\r\n$3\r\nSET\r\n$4\r\nslow\r\n$900000\r\n"
    halves = (head + b"x" * 400_000, head, b"*1", b"GE", b"*2\r\n$3\r\nGET\r\n$5\r\nab", native_halves()[3][0])
    socks = [socket.create_connection(("127.0.0.1", server.port)) for _ in halves]
    for sock, half in zip(socks, halves):
        sock.sendall(half)
    drip = socket.create_connection(("127.0.0.1", server.port))
    drip.sendall(head)
    slow = socket.create_connection(("127.0.0.1", server.port))
    slow.sendall(head)

    ended = False
    for step in range(100):
        if not ended:
            try:
                drip.sendall(b"x")
            except OSError:
                ended = True
        slow.sendall(b"v" * 9000)
        time.sleep(0.08)
    assert ended, "a byte now and then kept it"
    slow.sendall(b"\r\n")
    slow.settimeout(60 * SLOW)
    assert slow.recv(100) == b"+OK\r\n"
    for sock in socks:
        assert closed_soon(sock, 20) is not None
        sock.close()
    drip.close()
    slow.close()
    assert idle.call("STRLEN", "slow") == 900_000
    idle.close()
    closed = len(halves) + 1
    server.wait_metric("distkv_clients_request_timed_out_total", lambda value: value == before + closed)
    wait_for(lambda: b"clients_request_timed_out:%d" % closed in server.call("INFO", "distkv"), "INFO")


def test_unfinished_requests_may_be_given_all_the_time(make_server):
    server = make_server(request_timeout="0")
    with server.connect() as connection:
        connection.send_raw(b"*1\r\n$4\r\nPI")
        time.sleep(3)
        connection.send_raw(b"NG\r\n")
        assert connection.read() == "PONG"


@pytest.mark.smoke
def test_a_request_of_many_small_arguments_is_received_in_large_pieces(server):
    """Its size is not known before its last argument; once it had taken a call for each of them."""
    pairs = 30_000 // SLOW
    words = [word for i in range(pairs) for word in (b"m%d" % i, b"v" * 20)]
    with server.connect(timeout=60) as connection:
        before = server.metric("distkv_loop_turns_total")
        assert connection.call("MSET", *words) == "OK"
        turns = server.metric("distkv_loop_turns_total") - before
        assert turns < pairs // 4, f"{turns} turns of the loops"
        assert connection.call("EXISTS", *words[::2]) == pairs


def test_a_promise_of_much_takes_no_memory_before_it_comes(server):
    before = server.memory_peak()
    connections = []
    for _ in range(200):
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\nx")
        connections.append(sock)
    time.sleep(0.5)
    polite(server)
    grown = server.memory_peak() - before
    for sock in connections:
        sock.close()
    assert grown < 128 << 20, f"{grown >> 20} MiB for 200 promises of 1 MB"


def test_a_client_that_never_reads_is_held_back_and_nobody_else_waits(make_server):
    server = make_server(client_output_limit="1MiB")
    with server.connect() as connection:
        connection.call("SET", "big", b"v" * 100000)
    greedy = socket.create_connection(("127.0.0.1", server.port))
    greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.settimeout(1.0)
    request = Resp.encode("GET", "big") * 100
    sent = 0
    end = time.monotonic() + 15 * SLOW
    closed = False
    while time.monotonic() < end and not closed:
        try:
            sent += greedy.send(request)
        except TimeoutError:
            break  # it is not read from any more: back-pressure
        except OSError:
            closed = True
        polite(server)
    peak = server.memory_peak()
    assert peak < 256 * 1.1 * (1 << 20) * (4 if SANITIZED else 1), f"{peak >> 20} MiB"
    assert sent < 100 << 20, "requests were read without end"
    polite(server)
    greedy.close()


def test_a_slow_reader_gets_everything_in_the_end(server):
    with server.connect() as connection:
        connection.call("SET", "big", b"v" * 50000)
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    count = 200
    slow.sendall(Resp.encode("GET", "big") * count)
    time.sleep(1)
    polite(server)
    expected = count * (len(b"$50000\r\n") + 50000 + 2)
    got = 0
    while got < expected:
        part = slow.recv(65536)
        assert part, f"closed after {got} of {expected} bytes"
        got += len(part)
    assert got == expected
    slow.close()


def ordinary_pipelines(port, patience_s):
    """Clients that each send 200 small requests at once and read all replies; how long each took, or
    what it met instead. They are spread over the cores as the kernel likes."""
    pipelines = [[("SET", f"o{i}", "y" * 1000) for i in range(200)],
                 [("GET", f"o{i}") for i in range(200)],
                 [("SET", f"o{i}", "y" * 1000) if i % 3 else ("GET", f"o{i}") for i in range(200)],
                 [("SET", f"o{i}", "y" * 1000) if i % 3 else ("GET", f"o{i}") for i in range(10)]]
    took = []

    def run(words):
        begin = time.monotonic()
        try:
            with Resp(port, timeout=patience_s) as connection:
                connection.send_raw(b"".join(Resp.encode(*command) for command in words))
                answers = [connection.read() for _ in words]
            refused = [answer for answer in answers if isinstance(answer, ReplyError)]
            took.append(refused[0] if refused else time.monotonic() - begin)
        except OSError as error:
            took.append(error)

    threads = [threading.Thread(target=run, args=(words,)) for words in pipelines * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def readers_that_stop(port, count, request):
    """Clients that ask, and take nothing of what they are sent."""
    sockets = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        sock.send(request)
        sockets.append(sock)
    return sockets


def test_who_does_not_read_long_replies_costs_others_nothing(make_server):
    """Their values of 200 KB fill what memory there is for long replies; small requests have
    another share."""
    server = make_server(memory="64MiB", cores="0,1")
    with server.connect() as connection:
        for i in range(20):
            connection.call("SET", f"m{i}", os.urandom(200_000))
    late = []
    for _ in range(4):
        sockets = []
        for n in range(40):
            request = b"".join(Resp.encode("GET", f"m{(n + i) % 20}") for i in range(200))
            sockets += readers_that_stop(server.port, 1, request)
        time.sleep(1)
        took = ordinary_pipelines(server.port, 60)
        assert all(isinstance(seconds, float) for seconds in took), took
        for sock in sockets:
            sock.close()
        polite(server)
        if max(took) < 3 * SLOW:  # of four times once: others use the machine, too
            return
        late.append(max(took))
    pytest.fail(f"the slowest took {late} s")


def test_pipelines_of_long_reads_do_not_wait_for_one_another(make_server):
    """Each has replies that wait behind its first one on a core where another's is due."""
    server = make_server(memory="64MiB", cores="0,1")
    values = [bytes([i]) * 900_000 for i in range(12)]
    with server.connect() as connection:
        for i, value in enumerate(values):
            connection.call("SET", f"l{i}", value)
    met, took = [], []

    def read(n):
        keys = random.Random(n)
        with server.connect(timeout=60) as connection:
            for _ in range(10):
                asked = [keys.randrange(12) for _ in range(4)]
                connection.send_raw(b"".join(Resp.encode("GET", f"l{i}") for i in asked))
                met.extend(connection.read() == values[i] for i in asked)

    for _ in range(3):
        met.clear()
        begin = time.monotonic()
        threads = [threading.Thread(target=read, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert met == [True] * 480
        took.append(time.monotonic() - begin)
        if took[-1] < 15 * SLOW:  # of three times once: others use the machine, too
            return
    pytest.fail(f"they took {took} s")


def test_a_million_tiny_pipelined_requests(server):
    count = 1_000_000 // (20 if SANITIZED else 1)
    request = b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n"
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=120)
    def send():
        for _ in range(count // 1000):
            sock.sendall(request * 1000)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    lines = 0
    tail = b""
    while lines < count:
        part = sock.recv(1 << 18)
        assert part
        lines += part.count(b"\n")
        tail = (tail + part)[-64:]
    sender.join()
    sock.close()
    assert tail.endswith(b":%d\r\n" % count)
    polite(server)


def test_pipelined_commands_on_one_key_keep_their_order_on_cold_keys(make_server):
    """Some of them find their key in memory, others wait for the disk; none may pass another one of
    its connection and key, whichever shard owns the key."""
    import random

    chance = random.Random(5)
    server = make_server(memory="64MiB", cores="0,1")
    keys, own = 60_000 // (8 if SANITIZED else 1), 6
    with server.connect() as loader:
        for start in range(0, keys - 499, 500):
            loader.send_raw(b"".join(Resp.encode("SET", f"cold{i}", "x" * 1000)
                                     for i in range(start, start + 500)))
            assert all(loader.read() == "OK" for _ in range(500))
    connections = [server.connect() for _ in range(own)]
    for turn in range(20):
        asked = []
        for index, connection in enumerate(connections):
            some = [f"cold{chance.randrange(keys) // own * own + index}" for _ in range(8)]
            calls, expected, now = [], [], {}
            for step in range(100):
                key = chance.choice(some)
                kind = chance.choice(["GETSET", "GET", "APPEND", "STRLEN"])
                known = now.get(key)
                calls.append((kind, key, f"{turn}.{step}") if kind in ("GETSET", "APPEND") else (kind, key))
                if kind == "GETSET":
                    now[key] = b"%d.%d" % (turn, step)
                elif kind == "APPEND" and known is not None:
                    now[key] = known = known + b"%d.%d" % (turn, step)
                if known is not None:
                    known = known if kind in ("GETSET", "GET") else len(known)
                expected.append(known)
            connection.send_raw(b"".join(Resp.encode(*words) for words in calls))
            asked.append((calls, expected))
        for connection, (calls, expected) in zip(connections, asked):
            for words, reply in zip(calls, expected):
                got = connection.read()
                assert reply is None or got == reply, words
    for connection in connections:
        connection.close()
    server.wait_metric("distkv_requests_fiber_total", lambda value: value > 0)


def test_ten_thousand_idle_connections(make_server):
    wanted = 10000 if not SANITIZED else 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, wanted + 2000), max(hard, wanted + 2000)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = min(wanted, limit - 500)
    if count < wanted:
        print(f"the limit of descriptors allows only {count} connections")
    server = make_server(maxclients=count + 100)
    connections = []
    try:
        for i in range(count):
            # Each source address has its own ports.
            sock = socket.socket()
            sock.bind((f"127.0.{1 + i // 20000}.1", 0))
            sock.settimeout(60)
            sock.connect(("127.0.0.1", server.port))
            connections.append(sock)
        polite(server)
        server.wait_metric("distkv_connections", lambda value: value >= count)
        for sock in connections[:: max(1, count // 50)]:
            sock.sendall(b"PING\r\n")
            assert sock.recv(7) == b"+PONG\r\n"
        peak = server.memory_peak()
        assert peak < 256 * 1.1 * (1 << 20) * (4 if SANITIZED else 1), f"{peak >> 20} MiB"
    finally:
        for sock in connections:
            sock.close()
    server.wait_metric("distkv_connections", lambda value: value <= 100)
    polite(server)


def test_connections_above_maxclients_are_refused_with_an_error(make_server):
    server = make_server(maxclients=10)
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    for sock in connections:
        sock.sendall(b"PING\r\n")
        assert sock.recv(7) == b"+PONG\r\n"
    extra = socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW)
    assert extra.recv(100).startswith(b"-ERR max number of clients reached")
    assert extra.recv(100) == b""
    for sock in connections:
        sock.close()
    end = time.monotonic() + 30 * SLOW
    while True:
        try:
            polite(server)
            break
        except Exception:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_who_was_refused_and_stays_does_not_hold_up_or_end_a_stop(make_server):
    server = make_server(maxclients=1)
    first = socket.create_connection(("127.0.0.1", server.port))
    first.sendall(b"PING\r\n")
    assert first.recv(7) == b"+PONG\r\n"
    extra = socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW)
    assert extra.recv(100).startswith(b"-ERR max number of clients reached")
    first.close()
    assert server.stop() == 0, server.log()
    extra.close()


def crowd(server, count, data):
    """That many connections, each of which sends this; they stay."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sockets = []
    for _ in range(min(count, hard - 500)):
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW)
        sockets.append(sock)
        try:
            sock.sendall(data)
        except ConnectionError:
            pass  # refused already
    return sockets


def answer_of(sock):
    try:
        return sock.recv(200)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def test_idle_connections_leave_room_for_newcomers_at_little_memory(make_server):
    """Each has had an answer, and then nothing of the memory for requests is left with it."""
    server = make_server(memory="32MiB", cores="0")
    sockets = crowd(server, 7000, b"PING\r\n")
    try:
        answers = [answer_of(sock) for sock in sockets]
        assert set(answers) == {b"+PONG\r\n"}, f"{answers.count(b'')} of {len(answers)} closed"
        polite(server)
    finally:
        for sock in sockets:
            sock.close()


def test_the_longest_value_is_exchanged_at_the_least_memory(make_server):
    """What can be stored can also be read and written at once, while nobody else asks."""
    server = make_server(memory="32MiB", cores="0")
    value, other = os.urandom(1 << 20), os.urandom(1 << 20)
    with server.connect() as connection:
        assert connection.call("SET", "k", value) == "OK"
        assert connection.call("GETEX", "k", "EX", "100") == value
        assert connection.call("GETSET", "k", other) == value
        assert connection.call("SET", "k", value, "GET") == other
        assert connection.call("GET", "k") == value


def test_an_echo_for_which_there_is_no_memory_is_refused(make_server):
    """It has changed nothing, so its connection goes on."""
    server = make_server(memory="64MiB", cores="0,1")
    with server.connect() as connection:
        for word in ("ECHO", "PING"):
            with pytest.raises(ReplyError, match="OOM "):
                connection.call(word, "x" * (14 << 20))
        assert connection.call("ECHO", "x") == b"x"


def test_who_finds_no_memory_for_a_request_is_told_so(make_server):
    """Half requests do take memory: who comes when it is used up reads why; it is counted and
    said in the log, in few lines."""
    server = make_server(memory="32MiB", cores="0", request_timeout="10m")
    begun = time.monotonic()
    sockets = crowd(server, 3000, b"*300\r\n" + b"$0\r\n\r\n" * 299)
    try:
        for sock in sockets:
            sock.setblocking(False)
        end = time.monotonic() + 60 * SLOW
        refused = []
        while not refused:
            assert time.monotonic() < end, "nobody was refused"
            time.sleep(0.1)
            refused = [got for got in map(answer_of, sockets) if got is not None]
        assert {got[:36] for got in refused} == {b"-OOM this node has no memory for one"}
        server.wait_metric("distkv_requests_refused_total",
                           lambda value, count=len(refused): value >= count)
        wait_for(lambda: "refusing clients" in server.log(), "the log to say so")
        # Once in a second, and not for each of hundreds.
        assert server.log().count("refusing clients") <= 10 + time.monotonic() - begun
    finally:
        for sock in sockets:
            sock.close()
    server.wait_metric("distkv_connections", lambda value: value <= 10)
    polite(server)


def test_a_storm_of_connections_harms_nobody(server):
    for _ in range(3000 // SLOW):
        socket.create_connection(("127.0.0.1", server.port)).close()
    polite(server)


def test_commands_before_the_password_are_refused(make_server):
    server = make_server(requirepass="s3cret")
    with server.connect() as connection:
        for words in (("GET", "a"), ("SET", "a", "b"), ("CONFIG", "GET", "*"), ("INFO",)):
            connection.send(*words)
            assert str(connection.read()).startswith("NOAUTH"), words
        connection.send("AUTH", "wrong")
        assert str(connection.read()).startswith("WRONGPASS")
        assert connection.call("AUTH", "s3cret") == "OK"
        assert connection.call("SET", "a", "b") == "OK"
    assert "s3cret" not in server.log()


# ---- memory ----


def load_values(server, total_bytes, size=1000):
    """Distinct keys, pipelined; waits out refusals. Returns how many."""
    count = total_bytes // size
    value = os.urandom(size)
    with server.connect(timeout=60) as connection:
        for start in range(0, count, 200):
            todo = list(range(start, min(start + 200, count)))
            while todo:
                connection.send_raw(b"".join(Resp.encode("SET", b"key%d" % i, value) for i in todo))
                again = [i for i in todo if connection.read() != "OK"]
                if again:
                    time.sleep(0.05)
                todo = again
    return count


def bound_of(server, mib):
    peak = server.memory_peak()
    assert peak <= mib * (1 << 20) * 1.1, f"VmHWM is {peak >> 20} MiB of {mib} MiB"


@pytest.mark.skipif(bool(SANITIZED), reason="sanitizers have memory of their own")
def test_memory_stays_within_its_bound_under_load(make_server):
    server = make_server(memory="64MiB")
    count = load_values(server, 160 << 20)
    bound_of(server, 64)
    with server.connect() as connection:
        for i in range(0, count, 7):
            connection.send("GET", f"key{i}")
        for i in range(0, count, 7):
            assert len(connection.read()) == 1000
        connection.send("KEYS", "*")
        assert len(connection.read()) == count
    bound_of(server, 64)
    assert server.call("DBSIZE") == count
    bound_of(server, 64)


def large_values(port, stop_at, kind):
    """Until then: values of 1 MiB written, read by the dozen, asked for and not read, and begun but
    not ended, and small ones. A refusal is an answer; a lost connection is made anew."""
    import random

    chance = random.Random(kind)
    value = os.urandom(1 << 20)
    half = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048576\r\n"

    def key():
        return f"big{chance.randrange(300)}"

    def step(connection):
        if kind == "slow":
            connection.send_raw(b"".join(Resp.encode("GET", key()) for _ in range(300)))
            time.sleep(1)
            raise ConnectionError("enough")
        if kind == "half":
            others = [Resp(port, 3) for _ in range(100)]
            for other in others:
                other.send_raw(half + value[:chance.choice([10, 100_000, 1_000_000])])
            time.sleep(0.5)
            for other in others:
                other.close()
            return
        calls = {"big": [("SET", key(), value) for _ in range(4)],
                 "small": [("SET", f"s{chance.randrange(10**7)}", "v" * chance.randrange(300))
                           for _ in range(500)],
                 "mget": [("MGET", *[key() for _ in range(30)])]}[kind]
        connection.send_raw(b"".join(Resp.encode(*words) for words in calls))
        for _ in calls:
            connection.read()

    while time.monotonic() < stop_at:
        try:
            with Resp(port, 3) as connection:
                while time.monotonic() < stop_at:
                    step(connection)
        except OSError:
            time.sleep(0.05)


@pytest.mark.skipif(bool(SANITIZED), reason="sanitizers have memory of their own")
@pytest.mark.parametrize("mib, cores", [(32, "0"), (64, "0,1")])
def test_memory_stays_within_its_bound_under_large_values(make_server, mib, cores):
    """At the least memory that there may be; the allocator must not keep what was freed."""
    server = make_server(memory=f"{mib}MiB", cores=cores)
    kinds = ["big", "big", "small", "small", "mget", "half", "slow", "slow", "slow"]
    for _ in range(4):  # a busy machine may take as long for the first hundred
        stop_at = time.monotonic() + 4
        threads = [threading.Thread(target=large_values, args=(server.port, stop_at, kind),
                                    daemon=True) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        bound_of(server, mib)
        if server.call("DBSIZE") > 100:
            break
    assert server.call("DBSIZE") > 100, "the load was no load"
    polite(server)


@pytest.mark.soak
def test_ten_gigabytes_on_256_mib(make_server):
    server = make_server(memory="256MiB")
    count = load_values(server, 10 << 30)
    bound_of(server, 256)
    server.restart()
    assert server.call("DBSIZE") == count
    bound_of(server, 256)


# ---- the hot path and io-wq ----


@pytest.mark.skipif(bool(SANITIZED), reason="counts the release build")
def test_no_read_write_send_or_receive_falls_to_a_kernel_worker(make_server, tmp_path):
    """Counted by the tracepoint, by opcode, during a mixed load after a warm-up."""
    if os.geteuid() != 0:
        pytest.skip("needs root for tracefs")
    trace = tmp_path / "trace"
    trace.mkdir()
    done = subprocess.run(["mount", "-t", "tracefs", "none", str(trace)], capture_output=True,
                          check=False)
    if done.returncode != 0:
        pytest.skip("needs tracefs")
    instance = trace / "instances" / f"distkv{os.getpid()}"
    try:
        event = trace / "events/io_uring/io_uring_queue_async_work"
        if not event.exists():
            pytest.skip("needs the tracepoint io_uring_queue_async_work")
        server = make_server(memory="128MiB")
        load_values(server, 100 << 20)
        instance.mkdir()
        (instance / "events/io_uring/io_uring_queue_async_work/enable").write_text("1")
        with server.connect() as connection:
            for round_number in range(200):
                for i in range(100):
                    key = f"key{(round_number * 7919 + i * 104729) % 100000}"
                    connection.send("GET", key)
                    connection.send("SET", key, "w" * 900)
                for _ in range(200):
                    assert not isinstance(connection.read(), Exception)
        (instance / "events/io_uring/io_uring_queue_async_work/enable").write_text("0")
        text = (instance / "trace").read_text()
        punted = {}
        threads = set(os.listdir(f"/proc/{server.process.pid}/task"))
        for line in text.splitlines():
            if line.startswith("#") or "opcode" not in line:
                continue
            thread = line.split()[0].rsplit("-", 1)[-1]
            if thread not in threads:
                continue
            opcode = line.split("opcode ")[1].split(",")[0].strip()
            punted[opcode] = punted.get(opcode, 0) + 1
        print("punted:", punted)
        assert punted, "not even the files of flushes are seen: the count is not to be trusted"
        hot = {name: count for name, count in punted.items()
               if any(word in name for word in ("READ", "WRITE", "SEND", "RECV"))}
        assert not hot, hot
    finally:
        if instance.exists():
            instance.rmdir()
        subprocess.run(["umount", str(trace)], check=False)


@pytest.mark.smoke
def test_a_connection_that_ends_behind_a_write_still_gets_its_reply(server):
    """The reply waits for the log when the end is already known."""
    for i in range(10):
        assert raw(server, b"SET a%d x\r\nQUIT\r\n" % i, True) == (b"+OK\r\n+OK\r\n", True)
        got, closed = raw(server, b"SET b%d x\r\nGET b%d\r\n*1\r\n$-5\r\n" % (i, i), True)
        assert got.startswith(b"+OK\r\n$1\r\nx\r\n-ERR Protocol error") and closed


@pytest.mark.smoke
def test_a_client_that_only_stops_sending_gets_all_replies(server):
    count = 5000
    commands = b"".join(b"SET half%d v\r\nGET half%d\r\n" % (i, i) for i in range(count))
    for data, reply in ((b"SET a x\r\nGET a\r\nPING\r\n", b"+OK\r\n$1\r\nx\r\n+PONG\r\n"),
                        (commands, b"+OK\r\n$1\r\nv\r\n" * count)):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                got = b""
                while part := sock.recv(1 << 16):
                    got += part
            assert got == reply
