# SPDX-License-Identifier: MIT
"""Loads that last minutes: memory, space and latency that stay bounded, and answers that stay
right. Run by `make soak`; the build under test is DISTKV_TEST_BUILD, as everywhere."""

import json
import os
import random
import socket
import subprocess
import sys
import time

import pytest

from conftest import BUILD, CLIENT, SANITIZED, SERVER, SLOW
from load import Load

HAMMER = os.path.join(BUILD, "bin", "hammer")
HERE = os.path.dirname(os.path.abspath(__file__))
SCALE = int(os.environ.get("DISTKV_TEST_SCALE", "1"))


def hammer(server, **options):
    """Runs the load generator; its result, checked for wrong values."""
    words = [HAMMER, "--port", str(server.port)]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == 0
    return result


def disk_bytes(path):
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


def memory_bound(server, mib):
    peak = server.memory_peak()
    assert peak <= mib * 1.1 * (1 << 20), f"VmHWM is {peak >> 20} MiB of {mib} MiB"


def verified(server):
    done = subprocess.run([SERVER, "--verify", "--data-dir", server.data_dir],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.soak
def test_kill_9_twenty_times_while_the_number_of_cores_changes(make_server):
    cores = ["0", "0,1"] + (["0-2"] if os.cpu_count() >= 3 else [])
    server = make_server(memory="256MiB", cores=cores[0])
    chance = random.Random(11)
    load = None
    for number in range(20):
        load = Load(server, workers=4, seed=number)
        for i, worker in enumerate(load.workers): # keys of its own: older values are not judged
            worker.label = b"r%dw%d" % (number, i)
        load.start()
        time.sleep(0.3 + chance.random() * 1.5)
        server.kill()
        load.join()
        assert load.count() > 0
        verified(server)
        server.options["cores"] = cores[number % len(cores)]
        server.start()
        problems = load.check(server)
        assert not problems, (number, problems[:5])


@pytest.mark.soak
def test_totals_and_replies_are_exact_under_concurrency(make_server):
    server = make_server(memory="128MiB" if not SANITIZED else "512MiB")
    clients = [
        subprocess.Popen([sys.executable, os.path.join(HERE, "checker.py"), str(server.port),
                          str(seed), str(30 * SCALE)], stdout=subprocess.PIPE, text=True)
        for seed in (1, 2)
    ]
    totals = {}
    for client in clients:
        out, _ = client.communicate(timeout=120 * SCALE * SLOW)
        assert client.returncode == 0
        result = json.loads(out)
        assert not result["problems"], result["problems"]
        for name, counts in result["done"].items():
            totals[name] = [a + b for a, b in zip(totals.get(name, [0] * len(counts)), counts)]
    with server.connect() as connection:
        for i, count in enumerate(totals["counter"]):
            assert int(connection.call("GET", f"counter{i}") or 0) == count
        for i, count in enumerate(totals["pair"]):
            assert int(connection.call("GET", f"a{{pair{i}}}") or 0) == count
            assert int(connection.call("GET", f"b{{pair{i}}}") or 0) == count
        for i, count in enumerate(totals["watched"]):
            assert int(connection.call("GET", f"watched{i}") or 0) == count


@pytest.mark.soak
@pytest.mark.skipif(bool(SANITIZED), reason="sanitizers have memory of their own")
def test_a_thousand_slow_readers_cost_no_memory_and_nobody_a_connection(make_server):
    server = make_server(memory="256MiB")
    hammer(server, keys=500000, count=500000, order="sequential", size=1000)
    chance = random.Random(3)
    readers = []
    for _ in range(1000):
        reader = socket.create_connection(("127.0.0.1", server.port))
        reader.setblocking(False)
        readers.append(reader)
    request = b"".join(b"*2\r\n$3\r\nGET\r\n$16\r\nkey:%012d\r\n" % chance.randrange(500000)
                       for _ in range(200))
    rest = {reader: b"" for reader in readers}
    end = time.monotonic() + 15
    while time.monotonic() < end:
        for reader in readers:
            try:
                rest[reader] = rest[reader] or request
                rest[reader] = rest[reader][reader.send(rest[reader]):]
            except BlockingIOError:
                pass
            if chance.random() < 0.02:
                try:
                    assert reader.recv(4096) != b""
                except BlockingIOError:
                    pass
    result = hammer(server, keys=500000, seconds=5, connections=4, depth=1, mix="set:1,get:1")
    assert result["errors"] == 0
    for reader in readers:
        reader.close()
    memory_bound(server, 256)


@pytest.mark.soak
def test_overwritten_values_give_their_space_back(make_server):
    server = make_server(memory="256MiB")
    for size, keys in ((1000, 300000), (8192, 20000), (100000, 2000)):
        prefix = f"s{size}:"
        for _ in range(4):
            hammer(server, keys=keys, count=keys, order="sequential", size=size, prefix=prefix,
                   depth=4)
    live = 1000 * 300000 + 8192 * 20000 + 100000 * 2000
    end = time.monotonic() + 120 * SLOW
    while disk_bytes(server.data_dir) > 2.5 * live and time.monotonic() < end:
        time.sleep(1)
    used = disk_bytes(server.data_dir)
    assert used <= 2.5 * live, f"{used >> 20} MiB for {live >> 20} MiB"
    memory_bound(server, 256)


@pytest.mark.soak
def test_a_flush_of_everything_under_load_leaves_nothing_behind(make_server):
    server = make_server(memory="256MiB")
    hammer(server, keys=300000, count=300000, order="sequential", size=1000)
    load = subprocess.Popen([HAMMER, "--port", str(server.port), "--keys", "300000", "--seconds",
                             "8", "--mix", "set:1,get:1,del:1"], stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        time.sleep(2)
        assert server.call("FLUSHALL") == "OK"
    out, _ = load.communicate(timeout=60 * SLOW)
    assert load.returncode == 0
    assert json.loads(out)["wrong"] == 0
    assert server.call("FLUSHALL") == "OK"
    assert server.call("DBSIZE") == 0
    done = subprocess.run([CLIENT, "--server", f"127.0.0.1:{server.port}", "export"],
                          capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout == b""
