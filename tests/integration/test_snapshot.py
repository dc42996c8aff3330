# SPDX-License-Identifier: MIT
"""Exports and KEYS show one instant over all shards: whoever sees a write sees what was acknowledged
before it was sent."""

import json
import re
import subprocess
import threading
import time

import pytest

from conftest import CLIENT, ReplyError, SLOW


def keys_of_shards(server, count, name):
    """Keys that lie on the two shards in turn."""
    keys = []
    with server.connect() as connection:
        for i in range(100000):
            key = "{%s%d}" % (name, i)
            if connection.call("CLUSTER", "KEYSLOT", key) * 2 // 16384 == len(keys) % 2:
                keys.append(key)
            if len(keys) == count:
                return keys
    raise AssertionError("no keys")


class Writer(threading.Thread):
    """Calls step(connection, n) for n = 1, 2, ... until it is stopped; every reply is waited for."""

    def __init__(self, server, step):
        super().__init__(daemon=True)
        self.server = server
        self.step = step
        self.stopping = threading.Event()
        self.failure = None
        self.count = 0
        self.start()

    def run(self):
        try:
            with self.server.connect() as connection:
                while not self.stopping.is_set():
                    self.step(connection, self.count + 1)
                    self.count += 1
        except Exception as failure:  # pylint: disable=broad-except
            self.failure = failure

    def stop(self):
        self.stopping.set()
        self.join()
        assert self.failure is None and self.count > 0, self.failure


def export(server):
    done = subprocess.run(
        [CLIENT, "--server", f"127.0.0.1:{server.port}", "--timeout", f"{5 * SLOW}s", "export", "-"],
        capture_output=True,
        timeout=60 * SLOW, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {record["key"]: int(record["value"]) for record in records}


@pytest.mark.smoke
def test_an_export_is_one_instant_over_all_shards(make_server):
    server = make_server(cores="0,1")
    chains = [keys_of_shards(server, 6, name) for name in ("x", "y", "z")]

    def step_of(chain):
        def step(connection, n):
            for key in chain:
                assert connection.call("SET", key, n) == "OK"

        return step

    writers = [Writer(server, step_of(chain)) for chain in chains]
    end = time.monotonic() + 2
    looks = middles = 0
    while time.monotonic() < end or looks <= 3 or middles == 0:
        values = export(server)
        for chain in chains:
            seen = [values.get(key, 0) for key in chain]
            # Value n of a key was acknowledged before value n of the next one was sent.
            assert seen == sorted(seen, reverse=True) and seen[0] - seen[-1] <= 1, seen
            middles += seen[0] != seen[-1]
        looks += 1
    for writer in writers:
        writer.stop()
    assert server.status()["shard_count"] == 2


@pytest.mark.smoke
def test_keys_is_one_instant_over_all_shards(make_server):
    server = make_server(cores="0,1")

    def step_of(name):
        def step(connection, n):
            assert connection.call("SET", f"{name}:{n}", "v") == "OK"
            if n > 50:
                assert connection.call("DEL", f"{name}:{n - 50}") == 1

        return step

    names = ["x", "y", "z"]
    writers = [Writer(server, step_of(name)) for name in names]
    end = time.monotonic() + 2
    looks = 0
    with server.connect() as connection:
        while time.monotonic() < end or looks <= 10:
            keys = connection.call("KEYS", "*")
            for name in names:
                seen = sorted(int(match.group(1)) for match in
                              (re.fullmatch(rf"{name}:(\d+)", key.decode()) for key in keys)
                              if match)
                if seen:
                    assert seen == list(range(seen[0], seen[-1] + 1)), seen
                    assert len(seen) <= 51
            looks += 1
    for writer in writers:
        writer.stop()


@pytest.mark.smoke
def test_many_snapshots_at_once_neither_deadlock_nor_stop_the_writers(make_server):
    server = make_server(cores="0,1")
    for i in range(100):
        server.call("SET", f"k:{i}", "v")

    def look(connection, _n):
        try:
            assert len(connection.call("KEYS", "k:*")) == 100
        except ReplyError as error:
            assert "BUSY" in str(error)

    def write(connection, n):
        assert connection.call("SET", f"w:{n % 1000}", "v") == "OK"

    lookers = [Writer(server, look) for _ in range(8)]
    writers = [Writer(server, write) for _ in range(2)]
    time.sleep(2)
    for one in lookers + writers:
        one.stop()
    # The last ones are closed behind their replies.
    server.wait_metric("distkv_snapshots_open", lambda value: value == 0)
    server.wait_metric("distkv_writes_held_seconds_count", lambda value: value > 0)
