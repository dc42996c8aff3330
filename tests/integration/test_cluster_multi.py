# SPDX-License-Identifier: MIT
"""Transactions, flushes, exports and unknown outcomes of a cluster: real processes, unmodified clients."""

import contextlib
import json
import os
import subprocess
import threading
import time

import pytest
import redis
import test_cluster
from cluster_rig import Cluster, Network, missing_network
from conftest import BUILD, SLOW, ReplyError, need, wait_for
from test_cluster import client
from test_cluster_siblings import make_keyspace

cluster = test_cluster.cluster  # fixtures
three = test_cluster.three


def connect(node, db=0):
    return redis.Redis(port=node.port, db=db, socket_timeout=60 * SLOW)


def cli(node, text):
    done = subprocess.run(["redis-cli", "-p", str(node.port)], input=text, capture_output=True,
                          text=True, timeout=60 * SLOW, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# ---- transactions ----


def test_pipelines_and_watches_of_redis_py_through_every_node(three):
    handles = [connect(node) for node in three.nodes]
    for i in range(60):
        a, b, c = (handles[(i + k) % 3] for k in range(3))
        tag = f"{{{i}}}"
        pipe = a.pipeline(transaction=True)
        pipe.set(tag + "x", "1").incr(tag + "x").mget(tag + "x", tag + "y").echo("e")
        pipe.append(tag + "y", "z" * 1000)
        assert pipe.execute() == [True, 2, [b"2", None], b"e", 1000]
        # Nothing changes between WATCH and EXEC.
        with b.pipeline() as pipe:
            pipe.watch(tag + "x", tag + "absent")
            value = int(pipe.get(tag + "x"))
            pipe.multi()
            pipe.set(tag + "x", value + 1)
            assert pipe.execute() == [True]
        # Something does, through another node.
        with b.pipeline() as pipe:
            pipe.watch(tag + "x")
            c.set(tag + "x", "3")
            pipe.multi()
            pipe.set(tag + "x", "lost")
            with pytest.raises(redis.WatchError):
                pipe.execute()
        assert a.get(tag + "x") == b"3"
    pipe = handles[0].pipeline(transaction=True)
    pipe.set("one", 1).set("other", 2)
    with pytest.raises(redis.ResponseError, match="CROSSSLOT"):
        pipe.execute()


def test_redis_cli_runs_transactions(three):
    need("redis-cli")
    assert cli(three.nodes[1], "multi\nset {c}a 1\nincr {c}a\nget {c}none\nping\nexec\n") == [
        "OK", "QUEUED", "QUEUED", "QUEUED", "QUEUED", "OK", "2", "", "PONG"]
    assert cli(three.nodes[2], "watch {c}a\nset {c}a 5\nmulti\nget {c}a\nexec\nget {c}a\n") == [
        "OK", "OK", "OK", "QUEUED", "", "5"]
    assert cli(three.nodes[0], "multi\nset {c}a 1\ndiscard\nget {c}a\n")[-1] == "5"
    text = "\n".join(cli(three.nodes[0], "multi\nkeys *\nexec\n"))
    assert "not allowed inside a transaction" in text and "EXECABORT" in text


def again(call, seconds=60):
    """The answer of what may be done twice. On a busy machine disks are slow, and a node may be
    taken for dead for a moment: its outcome is unknown then, or nothing was done."""
    end = time.monotonic() + seconds * SLOW
    while True:
        try:
            return call()
        except redis.ResponseError as error:
            if not str(error).startswith(("UNKNOWN", "NOREPLICAS")) or time.monotonic() > end:
                raise


def execute(pipe):
    """As again, of a transaction."""
    commands = list(pipe.command_stack)

    def call():
        pipe.command_stack = list(commands)
        return pipe.execute()

    return again(call)


def test_replies_and_transactions_of_megabytes(cluster):
    for _ in range(3):
        cluster.add(memory="512MiB")
    cluster.wait_settled(3)
    values = {f"{{m}}{i}": bytes([65 + i]) * 100000 for i in range(7)}
    for handle in [connect(node) for node in cluster.nodes]:
        pipe = handle.pipeline(transaction=True)
        for key, value in values.items():
            pipe.set(key, value)
        assert execute(pipe) == [True] * 7
        pipe = handle.pipeline(transaction=True)
        pipe.mget(*values).strlen("{m}0")
        assert execute(pipe) == [list(values.values()), 100000]
        # Over what one answer of a node can carry: refused as a whole, and nothing is done.
        pipe = handle.pipeline(transaction=True)
        for _ in range(24):
            pipe.mget(*values)
        pipe.incr("{m}counter")
        with pytest.raises(redis.ResponseError) as error:
            execute(pipe)
        assert "size limit" in str(error.value)
        assert again(lambda handle=handle: handle.get("{m}counter")) is None


class Adder(threading.Thread):
    """Adds one by optimistic locking, again and again."""

    def __init__(self, node, times, key):
        super().__init__()
        self.handle, self.times, self.key = connect(node), times, key
        self.aborted, self.failed = 0, []

    def run(self):
        try:
            while self.times > 0:
                with self.handle.pipeline() as pipe:
                    pipe.watch(self.key)
                    value = int(pipe.get(self.key) or 0)
                    pipe.multi()
                    pipe.set(self.key, value + 1)
                    try:
                        pipe.execute()
                        self.times -= 1
                    except redis.WatchError:
                        self.aborted += 1
        except redis.RedisError as error:
            self.failed.append(error)


def test_optimistic_increments_from_every_node_are_all_counted(three):
    for attempt in range(3):
        adders = [Adder(three.nodes[i % 3], 60, f"sum{attempt}") for i in range(6)]
        for adder in adders:
            adder.start()
        for adder in adders:
            adder.join()
        failed = [str(error) for adder in adders for error in adder.failed]
        print(f"aborted {sum(adder.aborted for adder in adders)}, failed {failed}")
        if not failed:
            assert int(connect(three.nodes[0]).get(f"sum{attempt}")) == 360
            return
        # One was taken for dead for a moment: then nothing is promised of the sum.
        assert all(text.startswith(("UNKNOWN", "NOREPLICAS")) for text in failed)
    pytest.fail("thrice the nodes did not see each other")


def test_a_watch_outlives_a_killed_node(three):
    handles = [connect(node) for node in three.nodes[:2]]
    keys = [f"k{i}" for i in range(30)]  # a third of them runs on the node that is killed
    pipes = []
    for i, key in enumerate(keys):
        handles[0].set(key, "1")
        pipes.append(handles[i % 2].pipeline())
        pipes[-1].watch(key)
    three.nodes[2].kill()
    three.wait_alive(2, 0, 1)
    for key in keys[::2]:
        assert handles[1].set(key, "2")
    for i, (key, pipe) in enumerate(zip(keys, pipes)):
        pipe.multi()
        pipe.append(key, "x")
        if i % 2 == 0:
            with pytest.raises(redis.WatchError):
                pipe.execute()
        else:
            assert pipe.execute() == [2]
        assert handles[0].get(key) == (b"2" if i % 2 == 0 else b"1x")


# ---- flushes ----


def fill(node, count, prefix="k", db=0):
    handle = connect(node, db)
    for first in range(0, count, 1000):
        assert handle.mset({f"{prefix}{i}": "v" * 100 for i in range(first, min(first + 1000, count))})


def test_what_is_flushed_stays_away(three):
    nodes = three.nodes
    fill(nodes[0], 6000)
    fill(nodes[1], 100, db=1)
    number = make_keyspace(nodes)
    for i in range(20):
        assert client(nodes[i % 3], "--keyspace", number, "put", "--siblings", f"s{i}", "v").returncode == 0
    began = time.monotonic()
    assert again(connect(nodes[2]).flushdb)
    print(f"6000 keys in {time.monotonic() - began:.2f} s")
    for node in nodes:
        assert connect(node).dbsize() == 0
        assert connect(node, 1).dbsize() == 100
        assert connect(node, int(number)).dbsize() == 20
    # A node that is away has some of it on its disk, and hints wait for it.
    fill(nodes[0], 3000)
    nodes[2].kill()
    three.wait_alive(2, 0, 1)
    fill(nodes[1], 2000, "h")
    assert again(lambda: connect(nodes[0]).flushall(asynchronous=True))
    connect(nodes[1]).set("later", "1")
    nodes[2].start()
    three.wait_settled(3)
    for node in nodes:
        assert connect(node).keys() == [b"later"]
        assert connect(node, 1).dbsize() == 0
        assert connect(node, int(number)).dbsize() == 0
        assert connect(node).get("k1") is None and connect(node).get("h1") is None
    for node in nodes:
        node.call("DISTKV.REPAIR")
    for node in nodes:  # each by itself, too, once hints and comparison have come by
        with node.connect() as connection:
            connection.call("DISTKV.CONSISTENCY", "ONE")
            wait_for(lambda: connection.call("DBSIZE") == 1, "one key")


# ---- exports ----


def test_an_export_is_all_that_a_cluster_has(three, tmp_path):
    nodes = three.nodes
    fill(nodes[0], 5000)
    assert connect(nodes[1]).delete("k0", "k1") == 2
    assert connect(nodes[1]).set("t", "1", px=10**9)
    assert connect(nodes[1]).set(b"\x00\xff", b"\xfe\r\n")
    done = client(nodes[2], "export", str(tmp_path / "all.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "of no one moment" in done.stderr and "exported 5000 records" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines if "key" in line} == {f"k{i}" for i in range(2, 5000)} | {"t"}
    # One node is killed on the way: it goes on with the others.
    servers = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    with open(tmp_path / "again.jsonl", "wb") as out:
        export = subprocess.Popen([os.path.join(BUILD, "bin", "distkv-client"), "--server", servers,
                                   "export", "--quiet"], stdout=out)
        wait_for(lambda: out.tell() or os.path.getsize(out.name) > 0, "the first of it")
        nodes[1].kill()
        assert export.wait(timeout=60 * SLOW) == 0
    both = [(tmp_path / name).read_text().splitlines() for name in ("all.jsonl", "again.jsonl")]
    assert both[0] == both[1]
    # And back.
    three.wait_alive(2, 0, 2)
    assert again(connect(nodes[0]).flushall)
    done = client(nodes[2], "import", str(tmp_path / "all.jsonl"))
    assert done.returncode == 0, done.stderr
    assert connect(nodes[0]).dbsize() == 5000
    assert connect(nodes[0]).get(b"\x00\xff") == b"\xfe\r\n"
    assert connect(nodes[2]).get("k4999") == b"v" * 100
    assert 0 < connect(nodes[2]).pttl("t") <= 10**9
    assert client(nodes[0], "scan", "--snapshot").returncode == 1


def test_a_write_of_unknown_outcome_is_over_once_another_one_was_acknowledged(tmp_path):
    """Of one that the node alone has which was cut off as it coordinated it."""
    if missing_network():
        pytest.skip(missing_network())
    keys = "written", "deleted", "untouched"
    with Network() as network, Cluster(tmp_path, network) as cluster:
        for _ in range(3):
            cluster.add()
        cluster.wait_settled(3)
        first, cut_off = cluster.nodes[0], cluster.nodes[2]
        with first.connect() as connection:
            assert connection.call("SET", "deleted", "old") == "OK"
        links = [("n3", "n1"), ("n1", "n3"), ("n3", "n2"), ("n2", "n3")]
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(cut_off.connect()) for _ in keys]
            for connection in connections:
                assert connection.call("PING") == "PONG"
            for source, target in links:
                network.cut(source, target)
            for connection, key in zip(connections, keys):  # before it knows that it is alone
                connection.send("SET", key, "unknown")
            replies = [str(connection.read()) for connection in connections]
        assert all(reply.startswith("UNKNOWN ") for reply in replies), replies
        wait_for(lambda: (cluster.view(first) or {}).get("members_alive") == 2, "the node to be missed")
        with first.connect() as connection:
            assert connection.call("SET", "written", "new") == "OK"
            assert connection.call("DEL", "deleted") == 1
            assert connection.call("DEL", "untouched") == 0  # writes nothing
        network.heal()

        def found():
            values = []
            for node in cluster.nodes:
                with node.connect() as connection:
                    connection.send("MGET", *keys)
                    reply = connection.read()
                    if not isinstance(reply, ReplyError):  # not all know yet that they see each other
                        assert reply[0] == b"new" and reply[1] is None, (node.place, reply)
                        values.append(reply[2])
            return values

        # What nothing was written after comes to light. What is deleted then stays deleted.
        wait_for(lambda: found() == [b"unknown"] * 3, "the lone write to be seen")
        cluster.wait_settled(3)
        with cut_off.connect() as connection:
            assert connection.call("DEL", "untouched") == 1
        for _ in range(5):
            assert found() == [None] * 3
            time.sleep(0.2)
        assert cluster.repair()
        assert found() == [None] * 3
