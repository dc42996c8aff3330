# SPDX-License-Identifier: MIT
"""Clients that go straight to the node that has a key: libdistkv, and Redis Cluster clients."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
import test_cluster
from conftest import BUILD, SLOW, data_port, wait_for

cluster = test_cluster.cluster  # fixtures
three = test_cluster.three

FIGURES_AGE = 0.3  # seconds; of what /metrics says, unless the machine is busy
UNDER_WAY = 16  # of the load, unless it is told
SMART_LOAD = os.path.join(BUILD, "bin", "smart_load")


class SmartLoad:
    """See smart_load.c. Use as a context manager."""

    def __init__(self, nodes, handles=4, depth=UNDER_WAY // 4, prefix="k", routing=True):
        servers = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        words = [SMART_LOAD, servers, str(handles), str(depth), prefix]
        self.process = subprocess.Popen(words + ([] if routing else ["no-routing"]),
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(60 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def report(self):
        """What ended since the last report: by code, and how long the slowest took."""
        self.process.stdin.write("report\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def served(self, least=200):
        """Waits until so many more have ended well, and returns the sum of the reports."""
        total = {}
        end = time.monotonic() + 60 * SLOW
        while total.get("OK", 0) < least:
            assert time.monotonic() < end, total
            time.sleep(0.05)
            total = add(total, self.report())
        return total


def add(one, other):
    """Two reports as one."""
    return {name: max(one.get(name, other.get(name)), other.get(name, one.get(name)))
            if name in ("slowest_ms", "error") else one.get(name, 0) + other.get(name, 0)
            for name in {*one, *other}}


def failures(report):
    return {name: value for name, value in report.items()
            if name not in ("OK", "NOT_FOUND", "slowest_ms", "error") or (name == "error" and value)}


def metric(node, name, label=""):
    """The sum over the shards. Figures may be a moment old."""
    pattern = rf"^{name}(?:{{[^}}]*{re.escape(label)}[^}}]*}})? (\S+)$"
    return sum(float(value) for value in re.findall(pattern, node.get("/metrics")[1], re.M))


def at_rest(read):
    """The figure once it does not move any more."""
    last = read()
    while True:
        time.sleep(2 * FIGURES_AGE)
        now = read()
        if now == last:
            return now
        last = now


def goes_straight(load, read, count=2000):
    """Waits until hardly any of so many requests is sent on; none fails. (What was sent on before
    may be counted late, and the map changes when a node is taken for dead for a moment.)"""

    def straight():
        before = read()
        report = load.served(count)
        time.sleep(FIGURES_AGE)
        report = add(report, load.report())
        assert failures(report) == {}
        return read() - before <= (report["OK"] + report.get("NOT_FOUND", 0)) / 500

    wait_for(straight, "requests to go straight")


def forwards(cluster):
    return sum(metric(node, "distkv_cluster_forwards_total") for node in cluster.nodes
               if node.running())


def fetches(cluster):
    return sum(metric(node, "distkv_commands_total", 'command="native|topology"')
               for node in cluster.nodes if node.running())


def test_requests_go_straight_to_the_nodes_that_have_the_keys(three):
    with SmartLoad(three.nodes[:1]) as load:
        load.served()
        wait_for(lambda: load.served() and metric(three.nodes[2], "distkv_clients", '"native"') >= 4,
                 "connections to the last node")
        goes_straight(load, lambda: forwards(three))
    with SmartLoad(three.nodes[:1], routing=False) as load:
        load.served()
        before = forwards(three)
        assert failures(load.served(1000)) == {}
        # So what was counted above can be counted.
        wait_for(lambda: forwards(three) - before > 100, "requests to be sent on")


def test_a_killed_node_and_the_named_one_at_that_stop_no_request(three):
    with SmartLoad(three.nodes[:1]) as load:
        load.served()
        wait_for(lambda: load.served() and metric(three.nodes[1], "distkv_clients", '"native"') >= 4
                 and metric(three.nodes[2], "distkv_clients", '"native"') >= 4, "connections")
        assert failures(load.served()) == {}
        three.nodes[0].kill()
        report = load.served(2000)
        # Plain writes are repeated with another node, and so are reads. But that node, who has not
        # heard of the death, may have sent some on over a connection to the killed one that was
        # there for all it knew: nobody can say then whether they were done. Only what is under way
        # when such a connection ends; there is one from each shard of the others, and no second one.
        unknown = report.pop("UNKNOWN_OUTCOME", 0)
        shards = sum(node.status()["shard_count"] for node in three.nodes[1:])
        assert set(failures(report)) <= ({"error"} if unknown else set())
        assert unknown <= UNDER_WAY * shards
        three.nodes[0].start()
        three.wait_settled(3)
        assert failures(load.served(500)) == {}
        # It takes its part again.
        before = metric(three.nodes[0], "distkv_commands_total", 'command="native|put"')
        wait_for(lambda: load.served() and metric(three.nodes[0], "distkv_commands_total",
                                                  'command="native|put"') > before + 100,
                 "requests at the node that came back")


def slowest_while_one_stands_still(three):
    """Of the requests meanwhile and of those behind, in milliseconds."""
    with SmartLoad(three.nodes[:1]) as load:
        load.served()
        wait_for(lambda: load.served() and metric(three.nodes[1], "distkv_clients", '"native"') >= 4,
                 "connections")
        os.kill(three.nodes[1].process.pid, signal.SIGSTOP)
        try:
            # What it had is waited for until it is given up, 1.5 s, and does not listen, 2 s.
            report = load.served(3000)
            time.sleep(4)
            report = add(report, load.report())
        finally:
            os.kill(three.nodes[1].process.pid, signal.SIGCONT)
        assert failures(report) == {}
        return max(report["slowest_ms"], load.served(500)["slowest_ms"])


def test_a_node_that_stands_still_is_passed_by(three):
    """It stands still for more than 4 s, and nobody waits for so long and what it may take to be served
    elsewhere; of three times once, for others use the machine, too."""
    slowest = []
    while not slowest or slowest[-1] >= 6000 * SLOW:
        assert len(slowest) < 3, slowest
        three.wait_settled(3)
        slowest.append(slowest_while_one_stands_still(three))


def epoch_of(cluster):
    wait_for(lambda: cluster.view(0) is not None, "an answer")
    return cluster.field(0, "epoch")


def test_a_join_is_followed_by_its_epochs_and_few_fetches(three):
    with SmartLoad(three.nodes[:1], handles=50, depth=1) as load:
        load.served()
        wait_for(lambda: load.served() and fetches(three) >= 50, "each handle's first fetch")
        epoch = epoch_of(three)
        begin = time.monotonic()
        three.add()
        three.wait_settled(4, 120)
        wait_for(lambda: load.served() and
                 metric(three.nodes[3], "distkv_clients", '"native"') >= 50,
                 "connections to the node that has joined")
        goes_straight(load, lambda: forwards(three))
        seconds = time.monotonic() - begin
        # At most one for each new epoch, and one a second, whatever the replies say.
        epochs = epoch_of(three) - epoch
        assert fetches(three) <= 50 * (2 + min(epochs, seconds + 4))


def test_a_node_by_itself_is_asked_for_no_topology(server):
    with SmartLoad([server]) as load:
        assert failures(load.served(500)) == {}
    time.sleep(FIGURES_AGE)
    assert metric(server, "distkv_commands_total", 'command="native|topology"') == 0


def bench(node, *words):
    done = subprocess.run([os.path.join(BUILD, "bin", "distkv-bench"), "--server",
                           f"127.0.0.1:{node.port}", "--protocol", "native", "--keys", "20000",
                           "--connections", "12", "--threads", "1", "--format", "json", *words],
                          capture_output=True, text=True, timeout=120 * SLOW, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)["runs"][0]


@pytest.fixture
def apart(cluster):
    """Three nodes, each key on one of them: every other one forwards."""
    for _ in range(3):
        cluster.add(replicas=1, write_quorum=1, read_quorum=1)
    cluster.wait_settled(3)
    return cluster


def sent_on(cluster, routing, words):
    """How many requests of a run were sent on from one node to another."""
    before = at_rest(lambda: forwards(cluster))
    run = bench(cluster.nodes[0], "--count", "2000", f"--routing={routing}", *words)
    assert run["error_count"] == 0 and run["wrong_count"] == 0
    return at_rest(lambda: forwards(cluster)) - before


def test_the_benchmark_goes_straight(apart):
    for words in (("--workload", "mixed"), ("--workload", "ycsb-f"), ("--verify", "strict"),
                  ("--rate", "4000")):
        assert sent_on(apart, "no", words) > 400, words
        # A node that is taken for dead for a moment changes the map: of four times once.
        counts = []
        while not counts or counts[-1] > 8:
            assert len(counts) < 4, (words, counts)
            counts.append(sent_on(apart, "yes", words))


@pytest.mark.skipif(os.cpu_count() < 2, reason="needs two cores")
def test_with_ports_for_cores_requests_go_to_the_core(make_server):
    server = make_server(port=data_port(3), resp_cluster="cores", cores="0,1")
    with SmartLoad([server]) as load:
        load.served()
        wait_for(lambda: load.served() and metric(server, "distkv_clients", '"native"') >= 12,
                 "connections to both shards")
        goes_straight(load, lambda: metric(server, "distkv_requests_forwarded_total"))
    run = bench(server, "--count", "5000", "--load")
    assert run["error_count"] == 0
    before = at_rest(lambda: metric(server, "distkv_requests_forwarded_total"))
    run = bench(server, "--count", "5000")
    assert run["error_count"] == 0
    assert at_rest(lambda: metric(server, "distkv_requests_forwarded_total")) == before
