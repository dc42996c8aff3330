# SPDX-License-Identifier: MIT
"""Several nodes as one store: real processes on one machine, each with its own directory."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from conftest import BUILD, SLOW, ReplyError, data_port, free_port, free_ports, wait_for

SECRET = "a secret of the tests"


class Cluster:
    """Nodes 0, 1, 2 ...; node 0 has founded it."""

    def __init__(self, make_server, tmp_path):
        self.make_server = make_server
        self.tmp_path = tmp_path
        self.nodes = []
        self.peer_ports = []
        self.write_secret("secret", SECRET)

    def write_secret(self, name, text):
        path = self.tmp_path / name
        path.write_text(text + "\n")
        return path

    def add(self, cores="0", wait=True, **options):
        index = len(self.nodes)
        peer_port = free_ports(4)
        settings = {
            "node_id": f"n{index + 1}",
            "cluster_secret_file": self.tmp_path / "secret",
            "peer_address": f"127.0.0.1:{peer_port}",
            "rack": f"r{index + 1}",
            "memory": "128MiB",
            "cores": cores,
            # A disk may stand still for seconds while others use it; what waits for it is not to
            # have an unknown outcome for that.
            "cluster_timeout": "30s",
        }
        if index != 0:
            settings["seed_nodes"] = f"127.0.0.1:{self.nodes[0].port}@{self.peer_ports[0]}"
        settings.update(options)
        node = self.make_server(data_dir=self.tmp_path / f"d{index + 1}", wait=wait, **settings)
        self.nodes.append(node)
        self.peer_ports.append(peer_port)
        return node

    def readdress(self, index, **options):
        """A node that does not run: it is to start with other ports."""
        node = self.nodes[index]
        node.port, self.peer_ports[index] = free_port(), free_ports(4)
        node.admin_port = node.port + 1000
        node.options["address"] = f"127.0.0.1:{node.port}"
        node.options["peer-address"] = f"127.0.0.1:{self.peer_ports[index]}"
        node.options.update({name.replace("_", "-"): value for name, value in options.items()})

    def change_places(self, one, other):
        """Of two that do not run."""
        a, b = self.nodes[one], self.nodes[other]
        a.port, b.port = b.port, a.port
        ports = self.peer_ports
        ports[one], ports[other] = ports[other], ports[one]
        for index, node in ((one, a), (other, b)):
            node.admin_port = node.port + 1000
            node.options["address"] = f"127.0.0.1:{node.port}"
            node.options["peer-address"] = f"127.0.0.1:{ports[index]}"

    def view(self, index):
        """The cluster as the node sees it, or None while it does not answer."""
        done = client(self.nodes[index], "--json", "cluster", "status")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def field(self, index, name):
        """Of the view; None while the node does not answer."""
        view = self.view(index)
        return None if view is None else view[name]

    def wait_alive(self, members, *indexes):
        """Each node finds out by itself, at its own time, that another one is gone: those that are
        asked next must have. What they send on to it before has an unknown outcome."""
        wait_for(lambda: all(self.field(index, "members_alive") == members for index in indexes),
                 f"{indexes} to see {members} members", every=0.2)

    def settled(self, members):
        """Whether every running node sees so many normal members that live, and no move."""
        for index, node in enumerate(self.nodes):
            if not node.running():
                continue
            view = self.view(index)
            if view is None or view["stage"] != "none" or len(view["members"]) != members:
                return False
            if view["members_alive"] != members:
                return False
            if any(member["state"] != "normal" for member in view["members"]):
                return False
        return True

    def wait_settled(self, members, seconds=120):
        # Each look is a program that is started: not too often.
        wait_for(lambda: self.settled(members), f"{members} members", seconds,
                 lambda: "\n".join(node.log() for node in self.nodes), every=0.2)


def client(node, *words):
    return subprocess.run(
        [os.path.join(BUILD, "bin", "distkv-client"), "--server", f"127.0.0.1:{node.port}", *words],
        capture_output=True, text=True, check=False)


def repaired(node, *words):
    """Of `cluster repair` that has compared all replicas. A member that has been up for a moment only,
    or that a busy machine let stand still, may be taken for gone meanwhile: then the command says that
    it is to be run again."""
    deadline = time.monotonic() + 60 * SLOW
    while True:
        told = client(node, *words, "cluster", "repair")
        if "not all replicas were compared" not in told.stderr or time.monotonic() > deadline:
            return told
        time.sleep(1)


@pytest.fixture
def cluster(make_server, tmp_path):
    return Cluster(make_server, tmp_path)


@pytest.fixture
def three(cluster):
    cluster.add()
    cluster.add(cores="1" if os.cpu_count() > 1 else "0")
    cluster.add(cores="0,1" if os.cpu_count() > 1 else "0")
    cluster.wait_settled(3)
    return cluster


def test_two_join_the_one_that_founded_and_all_see_the_same_data(three):
    wait_for(lambda: "3 of 3 alive" in client(three.nodes[1], "cluster", "status").stdout, "status")
    wait_for(lambda: client(three.nodes[2], "cluster", "health").returncode == 0, "health")
    connections = [node.connect() for node in three.nodes]
    for i in range(90):
        assert connections[i % 3].call("SET", f"k{i}", f"v{i}") == "OK"
    for i in range(90):
        for connection in connections:
            assert connection.call("GET", f"k{i}") == f"v{i}".encode()
    for connection in connections * 5:
        connection.call("INCR", "counter")
    assert connections[0].call("GET", "counter") == b"15"
    assert connections[1].call("MSET", *sum(([f"m{i}", str(i)] for i in range(200)), [])) == "OK"
    values = connections[2].call("MGET", *(f"m{i}" for i in range(201)))
    assert values == [str(i).encode() for i in range(200)] + [None]
    assert connections[0].call("DEL", *(f"m{i}" for i in range(0, 210))) == 200
    assert connections[1].call("EXISTS", *(f"m{i}" for i in range(0, 210))) == 0
    assert connections[1].call("SET", "k0", "x", "NX") is None
    assert connections[2].call("APPEND", "k0", "!") == 3
    assert connections[0].call("GET", "k0") == b"v0!"
    assert connections[0].call("SET", "t", "1", "PX", "100000") == "OK"
    assert 0 < connections[1].call("PTTL", "t") <= 100000
    slots = connections[0].call("CLUSTER", "SLOTS")
    assert sum(row[1] - row[0] + 1 for row in slots) == 16384
    assert all(len(row) == 5 for row in slots)
    assert {node[1] for row in slots for node in row[2:]} == {node.port for node in three.nodes}
    for connection in connections:
        connection.close()


def locks_given(node, tag, clients, locks, at_once, size):
    """How often each lock was given to one of the clients, and what else was answered."""
    connections = [node.connect() for _ in range(clients)]
    given, others = [0] * locks, []
    for first in range(0, locks, at_once):
        for index, connection in enumerate(connections):
            connection.send_raw(b"".join(
                connection.encode("SET", f"{{{tag}}}{lock}", f"{index:02}".ljust(size, "x"), "NX")
                for lock in range(first, first + at_once)))
        for connection in connections:
            for lock in range(first, first + at_once):
                try:
                    given[lock] += connection.read() == "OK"
                except ReplyError as error:
                    others.append(str(error))
    for connection in connections:
        connection.close()
    return given, others


def test_a_lock_is_given_once_however_full_the_links_are(three):
    """What is forwarded waits for room before the one that runs it: that one lives, and gives the
    same locks to others. A node that is taken for dead is another matter: such a round does not
    count."""
    judged = 0
    for number, node in enumerate(three.nodes * 3):
        before = sum(node.log().count("member suspect") for node in three.nodes)
        many = locks_given(node, f"many{number}", 24, 170, 170, 2)
        large = locks_given(node, f"large{number}", 32, 6, 1, 100_000)
        if sum(node.log().count("member suspect") for node in three.nodes) != before:
            continue
        judged += 1
        for given, others in (many, large):
            assert max(given) == 1, (number, given)
            assert set(given) == {1} or others
            assert {error.split()[0] for error in others} <= {"BUSY", "NOREPLICAS"}, others[:3]
    if judged == 0:
        pytest.skip("this machine is so busy that nodes take each other for dead")


def slots_by_view(connection):
    """{slot range: first node} as CLUSTER SLOTS, SHARDS and NODES tell it."""
    by_slots = {(row[0], row[1]): row[2][2].decode() for row in connection.call("CLUSTER", "SLOTS")}
    by_shards = {}
    for shard in connection.call("CLUSTER", "SHARDS"):
        shard = dict(zip(shard[::2], shard[1::2]))
        nodes = [dict(zip(node[::2], node[1::2])) for node in shard[b"nodes"]]
        assert [node[b"role"] for node in nodes] == [b"master"] + [b"replica"] * (len(nodes) - 1)
        by_shards[tuple(shard[b"slots"])] = nodes[0][b"id"].decode()
    by_nodes = {}
    for line in connection.call("CLUSTER", "NODES").decode().splitlines():
        words = line.split(" ")
        assert len(words) >= 8 and words[3] == "-" and words[7] in ("connected", "disconnected"), line
        for part in words[8:]:
            first, _, last = part.partition("-")
            by_nodes[(int(first), int(last or first))] = words[0]
    return by_slots, by_shards, by_nodes


def owners(ranges):
    flat = [None] * 16384
    for (first, last), node in ranges.items():
        for slot in range(first, last + 1):
            assert flat[slot] is None, f"slot {slot} twice"
            flat[slot] = node
    return flat


def test_redis_clients_are_told_the_same_slots_by_every_command_and_node(three):
    names = [node.call("CLUSTER", "MYID").decode() for node in three.nodes]
    assert len(set(names)) == 3

    def told():
        views = []
        for node in three.nodes:
            with node.connect() as connection:
                views += [owners(view) for view in slots_by_view(connection)]
        return views

    def agreed():
        views = told()
        return all(view == views[0] for view in views) and set(views[0]) == set(names)

    wait_for(agreed, "all nodes to tell the same")
    for name, node in zip(names, three.nodes):
        with node.connect() as connection:
            for line in connection.call("CLUSTER", "NODES").decode().splitlines():
                words = line.split(" ")
                other = three.nodes[names.index(words[0])]
                assert words[1].startswith(f"127.0.0.1:{other.port}@")
                assert words[2] == ("myself,master" if words[0] == name else "master")
            info = dict(line.split(":") for line in connection.call("CLUSTER", "INFO").decode().split())
            assert info["cluster_state"] == "ok" and info["cluster_slots_ok"] == "16384"
            assert info["cluster_known_nodes"] == info["cluster_size"] == "3"
    # One that is gone is shown so; the others have a quorum still.
    three.nodes[2].kill()

    def seen_failed():
        lines = three.nodes[0].call("CLUSTER", "NODES").decode().splitlines()
        return [line.split(" ")[0] for line in lines if ",fail" in line.split(" ")[2]] == [names[2]]

    wait_for(seen_failed, "CLUSTER NODES to show a failed node")

    def healths():
        shards = three.nodes[0].call("CLUSTER", "SHARDS")
        return {(node[1].decode(), node[-1]) for shard in shards for node in shard[3]}

    wait_for(lambda: healths() == {(names[0], b"online"), (names[1], b"online"),
                                   (names[2], b"fail")}, "CLUSTER SHARDS to show it")
    wait_for(lambda: b"cluster_state:ok" in three.nodes[0].call("CLUSTER", "INFO"), "a quorum")
    three.nodes[1].kill()
    wait_for(lambda: b"cluster_state:fail\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:0\r\n"
             in three.nodes[0].call("CLUSTER", "INFO"), "CLUSTER INFO to tell that no quorum lives")


def maps_made(node):
    lines = node.get("/metrics")[1].splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith("distkv_cluster_maps_total"))


def test_maps_for_cluster_clients_are_made_once_and_again_when_they_change(cluster):
    for _ in range(3):
        cluster.add(resp_cluster="node")  # of one shard each
    cluster.wait_settled(3)
    node, last = cluster.nodes[0], cluster.nodes[2]
    name = last.call("CLUSTER", "MYID").decode()
    questions = [("CLUSTER", word) for word in ("INFO", "NODES", "SLOTS", "SHARDS")]
    with node.connect() as two, node.connect() as three:
        three.call("HELLO", "3")

        def ask():
            return [[connection.call(*words) for words in questions] for connection in (two, three)]

        told = [ask()]
        made = maps_made(node)
        for _ in range(50):
            now = ask()
            if now != told[-1]:
                told.append(now)
        # Members are seen to live or not at any time; but not with each question. (What the first
        # questions made may be counted with the rest: figures are a moment old.)
        assert len(told) <= 6
        assert maps_made(node) - made <= 8 * (len(told) + 1), "made again, and nothing has changed"
        names = {one.call("CLUSTER", "MYID").decode() for one in cluster.nodes}

        def all_lead():
            views = slots_by_view_runs(two)
            return views[0] == views[1] == views[2] and set(views[0]) == names

        wait_for(all_lead, "every node to lead")
        # Three nodes share 4,096 partitions, and lead them in few runs.
        assert len(two.call("CLUSTER", "SLOTS")) <= 260
        last.kill()

        def gone():
            views = slots_by_view_runs(two)
            return all(name not in view for view in views) and f"{name} " in \
                two.call("CLUSTER", "NODES").decode()

        wait_for(gone, "the node that is gone to lead nothing")
        wait_for(lambda: sum(row[1] - row[0] + 1 for row in two.call("CLUSTER", "SLOTS")) == 16384,
                 "all slots to be led")
        # Each member finds out by itself, at its own time, that a node is gone.
        wait_for(lambda: two.call("CLUSTER", "SLOTS") ==
                 cluster.nodes[1].call("CLUSTER", "SLOTS"), "two members to see the same")
        last.start()
        wait_for(lambda: all(name in view for view in slots_by_view_runs(two)), "it to lead again")


def slots_by_view_runs(connection):
    """{node: its slots}, thrice: as CLUSTER SLOTS, SHARDS and NODES tell it."""
    views = [{}, {}, {}]
    for row in connection.call("CLUSTER", "SLOTS"):
        views[0].setdefault(row[2][2].decode(), []).append((row[0], row[1]))
    for shard in connection.call("CLUSTER", "SHARDS"):
        ends = list(zip(shard[1][::2], shard[1][1::2]))
        if ends:
            views[1][shard[3][0][1].decode()] = ends
    for line in connection.call("CLUSTER", "NODES").decode().splitlines():
        words = line.split(" ")
        if words[8:]:
            parts = [part.partition("-") for part in words[8:]]
            views[2][words[0]] = [(int(low), int(high or low)) for low, _, high in parts]
    return views


def test_native_clients_reach_every_key_through_any_node(three):
    assert client(three.nodes[0], "put", "a", "1").returncode == 0
    assert client(three.nodes[1], "get", "a").stdout.strip() == "1"
    assert client(three.nodes[2], "put", "--if-absent", "a", "2").returncode == 1
    assert client(three.nodes[2], "batch", "put {t}x 1", "put {t}y 2", "delete a").returncode == 0
    assert client(three.nodes[0], "get", "{t}y").stdout.strip() == "2"
    assert client(three.nodes[1], "get", "a").returncode == 1
    for i in range(40):
        assert client(three.nodes[i % 3], "put", f"{{t}}{i:03}", "x" * i).returncode == 0
    for node in three.nodes:
        assert client(node, "count").stdout.split()[-1] == "42"
        lines = client(node, "--json", "scan", "--prefix", "{t}0").stdout.splitlines()
        assert [json.loads(line)["key"] for line in lines] == [f"{{t}}{i:03}" for i in range(40)]
        assert json.loads(lines[7])["value"] == "x" * 7


def scan_all(connection, *words):
    found, cursor = [], "0"
    while True:
        cursor, keys = connection.call("SCAN", cursor, *words)
        found += keys
        if cursor == b"0":
            return found
        cursor = cursor.decode()


def test_scans_see_the_keys_of_all_nodes(three):
    wanted = {f"k{i}".encode() for i in range(700)} | {f"{{t}}{i}".encode() for i in range(700)}
    with three.nodes[0].connect() as connection:
        assert connection.call("DBSIZE") == 0
        assert connection.call("RANDOMKEY") is None
        for key in wanted:
            connection.call("SET", key, "v")
        for i in range(100):
            connection.call("SET", f"gone{i}", "v")
        connection.call("DEL", *(f"gone{i}" for i in range(100)))
    for node in three.nodes:
        with node.connect() as connection:
            assert connection.call("DBSIZE") == len(wanted)
            found = scan_all(connection, "COUNT", "100")
            assert len(found) == len(wanted) and set(found) == wanted
            assert set(scan_all(connection, "MATCH", "k1*")) == {
                key for key in wanted if key.startswith(b"k1")}
            assert set(connection.call("KEYS", "*")) == wanted
            assert connection.call("RANDOMKEY") in wanted
    # One replica less, and what it has missed: the others know.
    three.nodes[2].kill()
    three.wait_alive(2, 0, 1)
    with three.nodes[1].connect() as connection:
        connection.call("DEL", "k0", "{t}0")
        connection.call("SET", "new", "v")
        wanted = (wanted - {b"k0", b"{t}0"}) | {b"new"}
        assert set(connection.call("KEYS", "*")) == wanted
    three.nodes[2].start()
    three.wait_settled(3)
    for node in three.nodes:
        with node.connect() as connection:
            assert set(scan_all(connection, "COUNT", "1000")) == wanted


LONG_TAG = 10_000


def fill_long_tag(connection):
    for start in range(0, LONG_TAG, 500):
        connection.call("MSET", *[word for i in range(start, start + 500) for word in (f"{{t}}{i:06}", "v")])


def step(connection, cursor, *words):
    """One call of a scan: the cursor that goes on, and its keys."""
    cursor, keys = connection.call("SCAN", cursor, *words)
    assert 0 <= int(cursor) < 1 << 53  # what a client that keeps it in a double can send back
    return cursor, set(keys)


def scan_in_turn(connections, *words):
    """One scan over several connections, as over a pool."""
    cursor, found, calls = b"0", set(), 0
    while True:
        cursor, keys = step(connections[calls % len(connections)], cursor, *words)
        found |= keys
        calls += 1
        if cursor == b"0":
            return found
        assert calls < 100


@pytest.mark.skipif(os.cpu_count() < 2, reason="needs two cores")
def test_a_scan_of_a_long_tag_may_go_on_over_any_connection(cluster):
    cluster.add(cores="0,1", replicas=1, write_quorum=1, read_quorum=1)
    cluster.add(cores="0,1", replicas=1, write_quorum=1, read_quorum=1)
    cluster.wait_settled(2)
    wanted = {b"{t}%06d" % i for i in range(LONG_TAG)}
    shards = {}
    for node in cluster.nodes:
        wait_for(lambda node=node: node.connect().call("PING") == "PONG", "a connection")
        for _ in range(64):  # one for each of its shards
            connection = node.connect()
            shards.setdefault((node.port, connection.call("CLIENT", "ID") & 63), connection)
    connections = list(shards.values())
    assert len(connections) >= 3
    fill_long_tag(connections[0])
    assert scan_in_turn(connections, "COUNT", "10") == wanted
    # Whose cursor leads on behind the other's, and over whose connection, is all the same.
    for mine in connections:
        for other in connections:
            cursor, found = step(mine, "0", "COUNT", "10")
            while cursor != b"0":
                step(other, "0", "COUNT", "5000")
                cursor, keys = step(other, cursor, "COUNT", "5000")
                found |= keys
            assert found == wanted


def peer_calls(node):
    time.sleep(0.6 * SLOW)  # figures are a moment old
    text = node.get("/metrics")[1]
    return sum(int(count) for count in re.findall(r"^distkv_peer_calls_total(?:{.*})? (\d+)$", text, re.M))


def test_a_scan_reads_a_long_tag_in_few_pages_though_it_wants_little_of_it(cluster):
    cluster.add(replicas=1, write_quorum=1, read_quorum=1)
    cluster.add(replicas=1, write_quorum=1, read_quorum=1)
    cluster.wait_settled(2)
    connections = [node.connect() for node in cluster.nodes]
    fill_long_tag(connections[0])
    cursor, _ = step(connections[0], "0")
    assert cursor != b"0"  # within the tag
    for words in (["MATCH", "nothing*"], ["TYPE", "hash"]):
        calls = []
        for node, connection in zip(cluster.nodes, connections):  # one of them has to ask the other for each page
            tries = []
            for _ in range(3):  # of which one is not so slow that it has many of other things
                before = peer_calls(node)
                assert step(connection, cursor, *words)[1] == set()
                tries.append(peer_calls(node) - before)
            calls.append(min(tries))
        assert max(calls) < 100, calls  # some 10, and those of other things; in pages of 1,664 bytes 200


class Load(threading.Thread):
    """Writes and reads back, one key after the other, through one node; remembers what failed."""

    def __init__(self, node, name):
        super().__init__()
        self.node = node
        self.name_of_keys = name
        self.acknowledged = {}
        self.refused, self.unknown, self.wrong = [], [], []
        self.gap = 0.0
        self.number = 0
        self.ending = False
        self.ended = False

    def more(self, count):
        """Until so many more have been asked for."""
        wanted = self.number + count
        wait_for(lambda: self.number >= wanted, f"{count} writes", 120)

    def run(self):
        last = time.monotonic()
        with self.node.connect() as connection:
            while not self.ending:
                key, value = f"{self.name_of_keys}{self.number % 500}", str(self.number)
                self.number += 1
                try:
                    connection.call("SET", key, value)
                    self.acknowledged[key] = value
                    got = connection.call("GET", key)
                    if got != value.encode():
                        self.wrong.append((key, value, got))
                    now = time.monotonic()
                    self.gap = max(self.gap, now - last)
                    last = now
                except ReplyError as error:
                    if "UNKNOWN" in str(error):
                        self.unknown.append((key, value))
                        self.acknowledged.pop(key, None)
                    else:
                        self.refused.append(str(error))
        self.ended = True  # and not by an error of its connection


def mistaken_for_dead(three, gone):
    """How often a node took another one than that for dead."""
    view = three.view(0)
    numbers = {str(member["number"]) for member in view["members"]
               if member["node_id"] != f"n{gone + 1}"}
    return sum(number in numbers for node in three.nodes for number in
               re.findall(r'msg="member suspect" member=(\d+)', node.log()))


def kill_under_load(three, attempt):
    """False: the machine was so busy that others were taken for dead, too, or that requests waited for
    the disk: it does not count, but that nothing acknowledged is lost."""
    loads = [Load(three.nodes[0], f"a{attempt}"), Load(three.nodes[1], f"b{attempt}")]
    before = mistaken_for_dead(three, 2)
    for load in loads:
        load.start()
    for load in loads:
        load.more(100)
    three.nodes[2].kill()
    time.sleep(3.0)
    for load in loads:
        load.more(100)
    three.nodes[2].start()
    three.wait_settled(3)
    for load in loads:
        load.more(100)
    for load in loads:
        load.ending = True
        load.join()
    calm = mistaken_for_dead(three, 2) == before
    for load in loads:
        assert load.ended
        print(f"refused {len(load.refused)} unknown {len(load.unknown)} gap {load.gap:.3f} s "
              f"writes {len(load.acknowledged)}")
        assert not load.wrong
        assert not load.refused or not calm
    # Whatever two replicas are asked, the newest is among them.
    for reader in three.nodes:
        with reader.connect() as connection:
            for load in loads:
                for key, value in load.acknowledged.items():
                    assert connection.call("GET", key) == value.encode()
    return calm and max(load.gap for load in loads) < 15 * SLOW


def test_a_killed_node_stops_nobody_and_comes_back_with_what_it_missed(three):
    # Who waits for one that is gone waits for cluster-timeout, 30 s.
    assert any(kill_under_load(three, attempt) for attempt in range(3)), "thrice it took too long"


def test_too_few_replicas_refuse_and_say_that_nothing_was_done(three):
    three.nodes[0].call("SET", "k", "1")
    three.nodes[1].kill()
    three.nodes[2].kill()
    end = time.monotonic() + 60 * SLOW
    while True:
        with three.nodes[0].connect() as connection:
            with pytest.raises(ReplyError) as error:
                connection.call("SET", "k", "2")
        if "NOREPLICAS" in str(error.value):
            break
        assert "UNKNOWN" in str(error.value)
        assert time.monotonic() < end
    with pytest.raises(ReplyError, match="NOREPLICAS"):
        three.nodes[0].call("GET", "k")
    assert client(three.nodes[0], "cluster", "health").returncode == 5


def test_a_whole_cluster_comes_back_with_its_data(three):
    for i in range(50):
        three.nodes[i % 3].call("SET", f"k{i}", f"v{i}")
    for node in three.nodes:
        assert node.stop() == 0, node.log()
    for node in three.nodes:
        node.start(wait=False)
    for node in three.nodes:
        node.wait_ready()
    three.wait_settled(3)
    for i in range(50):
        assert three.nodes[(i + 1) % 3].call("GET", f"k{i}") == f"v{i}".encode()


def test_a_node_that_finds_nobody_shows_what_it_waits_for(three):
    first, second, third = three.nodes
    first.call("SET", "k", "v")
    for node in three.nodes:
        assert node.stop() == 0, node.log()
    first.start()  # ready, though it is alone
    wait_for(lambda: three.view(0) is not None, "an answer")
    view = three.view(0)
    assert view["proving"] is True and view["members_alive"] == 1
    assert [member["node_id"] for member in view["members"]] == ["n1", "n2", "n3"]
    assert view["partitions_unavailable"] == view["partition_count"]
    assert "until 1 of the other nodes answer" in cli(three, "cluster", "status")
    done = client(first, "cluster", "health")
    assert done.returncode == 5 and "unavailable: 1 of 3" in done.stdout
    assert len(json.loads(cli(three, "--json", "cluster", "keyspaces"))) == 1
    assert len(json.loads(cli(three, "--json", "cluster", "ring"))["members"]) == 3
    assert read(first, "k", "ONE") is None
    sign = "it asks " + ", ".join(f"n{index + 1} (127.0.0.1:{three.peer_ports[index]})"
                                  for index in (1, 2))
    wait_for(lambda: sign in first.log(), "the log to say whom it asks")
    second.start()
    wait_for(lambda: read(first, "k") == b"v", "a quorum")
    assert three.field(0, "proving") is False
    third.start()
    three.wait_settled(3)


def has_moved(cluster, keys):
    """Everybody sees everybody, at their new addresses, and each node has all data."""
    cluster.wait_settled(3)

    def known():
        right = {f"n{index + 1}": port for index, port in enumerate(cluster.peer_ports)}
        return all(right == {member["node_id"]: member["peer_port"]
                             for member in cluster.field(index, "members") or []}
                   for index in range(3))

    wait_for(known, "all to know the new addresses", every=0.2)
    assert all(client(node, "cluster", "health").returncode == 0 for node in cluster.nodes)
    for node in cluster.nodes:
        with node.connect() as connection:
            for i in range(keys):
                assert connection.call("GET", f"k{i}") == f"v{i}".encode()


def test_members_come_back_under_other_addresses(three):
    for i in range(50):
        three.nodes[i % 3].call("SET", f"k{i}", f"v{i}")
    # One after the other, whoever leads; without a word of it to the others.
    for index in range(3):
        three.nodes[index].stop() if index != 1 else three.nodes[index].kill()
        three.readdress(index)
        begun = time.monotonic()
        three.nodes[index].start()
        has_moved(three, 50)
        print(f"node {index} was there after {time.monotonic() - begun:.1f} s")
        assert time.monotonic() - begun < 60 * SLOW
    # Two at once.
    for index in (0, 2):
        three.nodes[index].kill()
        three.readdress(index)
    for index in (0, 2):
        three.nodes[index].start()
    has_moved(three, 50)


def test_members_change_places(three):
    """Each of three comes back where another one was: all records are in the way of each other."""
    for i in range(50):
        three.nodes[i % 3].call("SET", f"k{i}", f"v{i}")
    for node in three.nodes[1:]:
        assert node.stop() == 0, node.log()
    three.change_places(1, 2)
    for node in three.nodes[1:]:
        node.start()
    has_moved(three, 50)
    for node in three.nodes:
        assert node.stop() == 0, node.log()
    three.change_places(0, 1)
    three.change_places(1, 2)
    for index, node in enumerate(three.nodes):
        if index != 0:
            node.options["seed-nodes"] = f"127.0.0.1:{three.nodes[0].port}@{three.peer_ports[0]}"
        node.start()
    has_moved(three, 50)
    for node in three.nodes:
        for i in range(30):
            assert node.call("SET", f"w{i}", "v") == "OK"


def test_a_whole_cluster_comes_back_under_other_addresses(three):
    for i in range(50):
        three.nodes[i % 3].call("SET", f"k{i}", f"v{i}")
    for node in three.nodes:
        assert node.stop() == 0, node.log()
    for index in range(3):
        three.readdress(index)
    for index, node in enumerate(three.nodes):
        if index != 0:
            node.options["seed-nodes"] = f"127.0.0.1:{three.nodes[0].port}@{three.peer_ports[0]}"
        node.start()
    has_moved(three, 50)


def test_who_joins_later_gets_the_data_and_the_deletes(cluster):
    first = cluster.add()
    with first.connect() as connection:
        for i in range(2000):
            connection.call("SET", f"k{i}", "v" * (i % 300))
        for i in range(0, 2000, 2):
            connection.call("DEL", f"k{i}")
    cluster.add()
    cluster.add()
    cluster.wait_settled(3)
    for index in range(3):
        wait_for(lambda index=index: cluster.field(index, "partitions_degraded") == 0,
                 "all to be whole")
    first.kill()
    with cluster.nodes[1].connect() as connection:
        end = time.monotonic() + 60 * SLOW
        for i in range(2000):
            while True:
                try:
                    got = connection.call("GET", f"k{i}")
                    break
                except ReplyError:
                    assert time.monotonic() < end
            assert got == (None if i % 2 == 0 else b"v" * (i % 300))


def test_replicas_are_compared_on_request(three):
    for i in range(300):
        three.nodes[i % 3].call("SET", f"k{i}", f"v{i}")

    def moved_nothing():
        """A third replica may still get a write that two have acknowledged: that is mended, then."""
        before = three.field(1, "trees")
        assert three.nodes[1].call("DISTKV.REPAIR") == "OK"
        assert three.nodes[1].call("DISTKV.REPAIR") == "OK"  # while one goes on it changes nothing
        wait_for(lambda: (three.field(1, "trees") or {"repairing": True})["repairing"] is False,
                 "the end of the repair", 120)
        trees = three.field(1, "trees")
        if before is None or trees is None:
            return False
        assert trees["repair_done"] == trees["repair_total"] == 4096
        assert trees["exchanges"] > before["exchanges"]
        return all(trees[name] == before[name]
                   for name in ("failures", "entries_sent", "entries_received"))

    wait_for(moved_nothing, "a repair that moves nothing", 120)


def test_a_repair_says_who_did_not_take_part(three):
    for i in range(50):
        three.nodes[0].call("SET", f"k{i}", "v")
    three.nodes[2].kill()
    three.wait_alive(2, 0, 1)
    assert "n3 did not take part" in cli(three, "cluster", "repair", code=5)
    assert "n3 did not take part" in cli(three, "cluster", "repair", "n1", code=5)
    done = client(three.nodes[0], "--json", "cluster", "repair")
    told = json.loads(done.stdout)
    assert done.returncode == 5 and told["ok"] is False and told["absent"] == ["n3"]
    assert told["missed"] > 0
    assert "did not take part" in json.loads(done.stderr)["error"]["message"]
    assert cli(three, "cluster", "repair", "n3", code=1)  # it cannot even be asked
    three.nodes[2].start()
    three.wait_settled(3)
    assert "compared and mended" in repaired(three.nodes[0]).stdout
    assert json.loads(repaired(three.nodes[0], "--json").stdout) == {
        "ok": True, "absent": [], "missed": 0, "damaged": 0, "damaged_nodes": []}


def test_nodes_leave_and_are_forgotten(three):
    fourth = three.add()
    three.wait_settled(4)
    for i in range(300):
        three.nodes[i % 4].call("SET", f"k{i}", f"v{i}")
    assert three.nodes[0].call("DISTKV.REMOVE", "n4") == "OK"
    wait_for(lambda: len(three.field(0, "members") or []) == 3, "the fourth to be gone", 120)
    wait_for(lambda: (three.view(3) or {"left": False})["left"], "the fourth to know")
    assert "no member of the cluster any more" in client(fourth, "cluster", "status").stdout
    done = client(fourth, "cluster", "health")
    assert done.returncode == 5 and done.stdout.startswith("left")
    fourth.kill()
    three.wait_settled(3)
    with pytest.raises(ReplyError, match="answers"):
        three.nodes[0].call("DISTKV.REMOVE", "n3", "DEAD")
    with pytest.raises(ReplyError, match="not removed"):
        three.nodes[0].call("DISTKV.REMOVE", "n9")
    with pytest.raises(ReplyError, match="2 nodes would be left, and a key has 3 replicas"):
        three.nodes[0].call("DISTKV.REMOVE", "n3")
    three.nodes[2].kill()
    three.wait_alive(2, 0, 1)  # whoever of them leads
    assert three.nodes[0].call("DISTKV.REMOVE", "n3", "DEAD") == "OK"
    three.wait_settled(2)
    with three.nodes[1].connect() as connection:
        for i in range(300):
            assert connection.call("GET", f"k{i}") == f"v{i}".encode()


def test_a_wiped_disk_comes_back_as_a_new_member_with_the_data(three):
    for i in range(300):
        three.nodes[i % 3].call("SET", f"k{i}", f"v{i}")

    def numbers():
        wait_for(lambda: three.view(0) is not None, "an answer")
        return {member["node_id"]: member["number"] for member in three.field(0, "members")}

    before = numbers()
    three.nodes[1].kill()
    shutil.rmtree(three.nodes[1].data_dir)
    three.nodes[1].start()
    three.wait_settled(3)
    after = numbers()
    assert after["n2"] > max(before.values())
    assert {after["n1"], after["n3"]} == {before["n1"], before["n3"]}
    three.nodes[0].kill()
    three.wait_alive(2, 1)
    with three.nodes[1].connect() as connection:
        for i in range(300):
            assert connection.call("GET", f"k{i}") == f"v{i}".encode()


def test_a_directory_that_is_put_back_is_not_believed(three):
    """n2 and n3 acknowledge a write while n1 is away; then n3 has an older copy of its directory, and
    n2 is away: neither of those who are there has the write."""
    first, second, third = three.nodes
    older = three.tmp_path / "older"
    first.call("SET", "k", "v1")
    wait_for(lambda: all(read(node, "k", "ONE") == b"v1" for node in three.nodes), "all to have it")
    third.kill()
    shutil.copytree(third.data_dir, older)
    third.start()
    three.wait_settled(3)
    first.kill()
    three.wait_alive(2, 1, 2)
    wait_for(lambda: written(second, "k", "v2"), "a write of two")
    assert third.stop() == 0, third.log()
    shutil.rmtree(third.data_dir)
    shutil.copytree(older, third.data_dir)
    assert second.stop() == 0, second.log()
    first.start()  # ready, though it is alone: who starts one after the other waits for that
    third.start(wait=False)
    quorums = ("QUORUM", "DEFAULT")  # n1 has missed the write, and may say so by ONE
    wait_for(lambda: never_old(first, *quorums) and never_old(third, "ONE", *quorums)
             and not third.running(), "the one that was put back to end")
    assert "an older copy; empty it and start this node again" in third.log()
    assert "permission denied" not in third.log()
    second.start()
    three.wait_alive(2, 0, 1)
    for node in (first, second):
        wait_for(lambda node=node: read(node, "k") is not None, "a quorum")
        assert read(node, "k") == b"v2"
    third.start(wait=False)  # and so each time
    wait_for(lambda: not third.running(), "it to end again")
    shutil.rmtree(third.data_dir)
    third.start()
    three.wait_settled(3)
    assert third.call("GET", "k") == b"v2"


def written(node, key, value):
    try:
        return node.call("SET", key, value) == "OK"
    except (ReplyError, OSError, ConnectionError):
        return False


def read(node, key, level="DEFAULT"):
    """None: an error."""
    try:
        with node.connect() as connection:
            connection.call("DISTKV.CONSISTENCY", level)
            return connection.call("GET", key)
    except (ReplyError, OSError, ConnectionError):
        return None


def never_old(node, *levels):
    for level in levels:
        assert read(node, "k", level) != b"v1", level
    return True


def cli(cluster, *words, code=0):
    """distkv-client cluster ... against the first two nodes; its standard output."""
    servers = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes[:2])
    done = subprocess.run(
        [os.path.join(BUILD, "bin", "distkv-client"), "--server", servers, *words],
        capture_output=True, text=True, timeout=60 * SLOW)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


def all_know(cluster, sign, *words):
    """Waits until the answers of both nodes that cli asks have the sign: what one has been told, the
    other one hears of a moment later, and either may be asked next."""
    wait_for(lambda: all(sign in client(node, *words).stdout for node in cluster.nodes[:2]),
             f"{sign} of both", every=0.2)


def test_what_only_a_dead_node_has_is_named_until_it_is_given_up(three):
    cluster = three
    for name, replicas in (("once", 1), ("two", 2)):
        cli(cluster, "cluster", "keyspaces", "create", name, "--replicas", str(replicas),
            "--write-quorum", "1", "--read-quorum", "1")
    all_know(cluster, "once", "cluster", "keyspaces")
    cluster.nodes[2].kill()
    cluster.wait_alive(2, 0, 1)
    health = client(cluster.nodes[0], "cluster", "health")
    assert health.returncode == 5 and health.stdout.startswith("unavailable"), health.stdout
    assert "keyspace once (15): 1" in health.stdout and "for want of n3 (" in health.stdout
    assert "keyspace two" not in health.stdout  # one of two is enough for it
    figures = json.loads(client(cluster.nodes[0], "--json", "cluster", "health").stdout)
    assert 1000 < figures["partitions_unavailable"] < figures["partitions_degraded"] == 4096
    cluster.add(wait=False)
    # Either n3 would gain by that, or has what n4 does: it follows from the members' numbers.
    all_know(cluster, "waits for n3, which does not answer", "cluster", "status")
    cli(cluster, "cluster", "remove-node", "n3", "--dead")
    cluster.wait_settled(3)
    all_know(cluster, "healthy", "cluster", "health")
    lost = [line for node in cluster.nodes for line in node.log().splitlines()
            if "begins empty" in line]
    assert lost and all("name=once" in line for line in lost), lost


def test_a_removal_of_a_dead_node_ends_when_its_places_are_taken_over(three):
    cluster = three
    cluster.add()
    cluster.wait_settled(4)
    for at in range(0, 600, 20):
        with cluster.nodes[0].connect() as conn:
            pairs = [word for i in range(at, at + 20) for word in (f"k{i}", "v" * 4000)]
            conn.call("MSET", *pairs)
    for node in cluster.nodes:  # the move takes some seconds
        node.call("CONFIG", "SET", "move-rate", "256KiB")
    cluster.nodes[3].kill()
    cluster.wait_alive(3, 0, 1, 2)
    assert "n4 is out, its places were taken over" in cli(cluster, "cluster", "remove-node", "n4",
                                                          "--dead")
    status = cluster.view(0)
    assert status["move"] is None and status["partitions_degraded"] == 0, status
    assert cluster.settled(3)
    cluster.nodes[2].kill()
    cluster.wait_alive(2, 0, 1)
    assert "n3 is out, the others take over" in cli(cluster, "cluster", "remove-node", "n3", "--dead",
                                                    "--no-wait")


def test_a_removal_is_taken_back_while_data_moves(three):
    cluster = three
    cluster.add()
    cluster.wait_settled(4)
    for at in range(0, 600, 20):
        with cluster.nodes[0].connect() as conn:
            conn.call("MSET", *[word for i in range(at, at + 20) for word in (f"k{i}", "v" * 4000)])
    for node in cluster.nodes:  # the move takes half a minute
        node.call("CONFIG", "SET", "move-rate", "16KiB")
    assert "goes with no other" in cli(cluster, "cluster", "remove-node", "n4", "--undo", "--force",
                                       code=2)
    assert "n4 stays" in cli(cluster, "cluster", "remove-node", "n4", "--undo")  # it always did
    cli(cluster, "cluster", "remove-node", "n4", "--no-wait")
    wait_for(lambda: cluster.view(0)["move"] is not None, "the move to begin", every=0.2)
    assert "n4 stays" in cli(cluster, "cluster", "remove-node", "n4", "--undo")
    cluster.wait_settled(4)
    all_know(cluster, "healthy", "cluster", "health")
    assert cluster.nodes[3].call("DISTKV.REMOVE", "n4", "UNDO") == "OK"
    for i in range(0, 600, 50):
        assert cli(cluster, "get", f"k{i}", "--consistency", "all") == "v" * 4000


def test_the_only_node_that_stays_is_lost_and_another_one_stays(three):
    cluster = three
    for at in range(0, 300, 20):
        with cluster.nodes[0].connect() as conn:
            conn.call("MSET", *[word for i in range(at, at + 20) for word in (f"k{i}", "v" * 4000)])
    for node in cluster.nodes:  # the first one, which is to have everything, fetches for long
        node.call("CONFIG", "SET", "move-rate", "16KiB")
    for name in ("n2", "n3"):
        cli(cluster, "cluster", "remove-node", name, "--force", "--no-wait")
    cluster.nodes[0].kill()
    cluster.wait_alive(2, 1, 2)
    answer = cli(cluster, "cluster", "remove-node", "n1", "--dead", code=1)
    left = re.search("first take back that '(n[23])' leaves", answer).group(1)
    assert f"{left} stays" in cli(cluster, "cluster", "remove-node", left, "--undo")
    cli(cluster, "cluster", "remove-node", "n1", "--dead", "--no-wait")
    node = cluster.nodes[int(left[1]) - 1]
    for other in cluster.nodes[1:]:
        other.call("CONFIG", "SET", "move-rate", "0")
    wait_for(lambda: [m["node_id"] for m in json.loads(
        client(node, "--json", "cluster", "status").stdout)["members"]] == [left],
        "it to be the only one", every=0.2)
    assert node.call("DBSIZE") == 300 and node.call("GET", "k299") == b"v" * 4000


def test_a_member_stays_in_its_data_center_and_says_so(cluster):
    node = cluster.add(datacenter="east")
    cluster.wait_settled(1)
    assert node.stop() == 0
    node.options.update(datacenter="west", rack="other")
    node.start()
    wait_for(lambda: cluster.view(0)["members"][0]["rack"] == "other", "the rack to be told")
    assert cluster.view(0)["members"][0]["datacenter"] == "east"
    told = [line for line in node.log().splitlines() if "a member stays in its data center" in line]
    assert len(told) == 1 and "datacenter=east asked=west" in told[0]


def test_operators_add_weigh_drain_and_remove(three):
    """Each function of distkv-client cluster, in one story: nodes are slow to start."""
    cluster = three
    assert "in its place" in cli(cluster, "cluster", "rebalance")
    all_know(cluster, '"settled":true', "--json", "cluster", "status")
    status = json.loads(cli(cluster, "--json", "cluster", "status"))
    assert [m["node_id"] for m in status["members"] if m["alive"] and "version" in m]
    assert status["settled"] is True and status["move"] is None
    assert "n3" in cli(cluster, "cluster", "status")
    all_know(cluster, "healthy", "cluster", "health")
    ring = json.loads(cli(cluster, "--json", "cluster", "ring"))
    assert ring["ranges"][0]["first"] == 0 and ring["ranges"][-1]["last"] == 4095
    assert "100.0 %" in cli(cluster, "cluster", "ring")

    cli(cluster, "put", "k", "v", "--consistency", "all")
    assert cli(cluster, "get", "k", "--consistency", "one") == "v"
    cli(cluster, "cluster", "keyspaces", "create", "orders", "--replicas", "2")
    # The client goes straight to whoever has the key: all three.
    wait_for(lambda: all("orders" in client(node, "cluster", "keyspaces").stdout
                         for node in cluster.nodes), "the keyspace at all nodes", every=0.2)
    cli(cluster, "--keyspace", "orders", "put", "k", "w")
    assert cli(cluster, "--keyspace", "orders", "get", "k") == "w"
    assert cli(cluster, "--keyspace", "15", "get", "k") == "w"
    assert "no keyspace has this name" in cli(cluster, "--keyspace", "no", "get", "k", code=1)
    cli(cluster, "cluster", "keyspaces", "set", "orders", "--read-quorum", "1")
    all_know(cluster, '"read_quorum":1', "--json", "cluster", "keyspaces")

    assert "distkv-server" in subprocess.run(
        [os.path.join(BUILD, "bin", "distkv-client"), "--server", f"127.0.0.1:{cluster.nodes[0].port}",
         "cluster", "add-node", "n4", "--no-wait"],
        capture_output=True, text=True, timeout=60 * SLOW).stderr
    cluster.add(wait=False)
    assert "n4 is in" in cli(cluster, "cluster", "add-node", "n4")
    cli(cluster, "cluster", "rebalance", "n4=300")
    assert "100.0 %" in [line for line in cli(cluster, "cluster", "ring").splitlines()
                         if " n4 " in line][0]

    assert "compared and mended" in repaired(cluster.nodes[0]).stdout
    assert "compared and mended" in cli(cluster, "cluster", "repair", "n2")

    # Two copies that both have to be written: nobody can be spared, and that is said.
    assert "no quorum without it" in cli(cluster, "cluster", "drain", "n3", code=5)
    cli(cluster, "cluster", "drain", "n3", "--undo")
    for name, quorum in (("read", 2), ("write", 1), ("read", 1)):
        cli(cluster, "cluster", "keyspaces", "set", "orders", f"--{name}-quorum", str(quorum))
        all_know(cluster, f'"{name}_quorum":{quorum}', "--json", "cluster", "keyspaces")
    assert "can be stopped" in cli(cluster, "cluster", "drain", "n3")
    assert cli(cluster, "get", "k") == "v"
    # Two at once are one too many: those who are drained are as good as gone.
    assert "no quorum without it" in cli(cluster, "cluster", "drain", "n2", code=5)
    cli(cluster, "cluster", "drain", "n2", "--undo")
    cli(cluster, "cluster", "drain", "n3", "--undo")

    before = json.loads(cli(cluster, "--json", "cluster", "status"))["members"]
    assert "bad" in cli(cluster, "cluster", "rebalance", "n1=10", "bad", code=2)
    after = json.loads(cli(cluster, "--json", "cluster", "status"))["members"]
    assert [m["virtual_nodes"] for m in after] == [m["virtual_nodes"] for m in before]

    # What the cluster refuses is no wrong usage.
    assert "stop it first" in cli(cluster, "cluster", "remove-node", "n4", "--dead", code=1)
    assert "can be stopped" in cli(cluster, "cluster", "remove-node", "n4")
    wait_for(lambda: all("n4" not in client(node, "cluster", "status").stdout
                         for node in cluster.nodes[:2]), "n4 to be gone")
    assert "no member" in cli(cluster, "cluster", "remove-node", "n4", code=1)
    assert "2 nodes would be left" in cli(cluster, "cluster", "remove-node", "n3", code=1)
    assert "cannot change" in cli(cluster, "cluster", "keyspaces", "set", "orders", "--replicas", "3",
                                  code=1)
    for words in (("remove-node", ""), ("drain", "n" * 64), ("keyspaces", "create", "k" * 64)):
        assert re.search("id or a name is missing|at most 63", cli(cluster, "cluster", *words, code=2))
    assert cli(cluster, "get", "k") == "v" and cli(cluster, "--keyspace", "orders", "get", "k") == "w"
    assert "usage" in cli(cluster, "cluster", code=2)
    assert "help cluster" in cli(cluster, "cluster", "nothing", code=2)

    # A partition that is at risk in two keyspaces is one.
    for name, quorum in (("whole", 1), ("most", 2)):
        cli(cluster, "cluster", "keyspaces", "create", name, "--write-quorum", "3",
            "--read-quorum", str(quorum))
        all_know(cluster, name, "cluster", "keyspaces")
    assert " 4096 partitions " in cli(cluster, "cluster", "drain", "n3", code=5)


def change_while_nobody_leads(cluster, *words):
    """A change that is asked for while two of three are stopped; they go on once its first request
    has ended without an outcome."""
    node, *others = cluster.nodes
    command = [os.path.join(BUILD, "bin", "distkv-client"), "--server", f"127.0.0.1:{node.port}",
               "--timeout", "1s", "cluster", *words]
    for other in others:
        other.process.send_signal(signal.SIGSTOP)
    try:
        change = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = change.stderr.readline()
    finally:
        for other in others:
            other.process.send_signal(signal.SIGCONT)
    out, rest = change.communicate(timeout=60 * SLOW)
    assert "asked for again" in first, first + rest
    assert change.returncode == 0, first + rest
    return out


def test_a_change_is_asked_for_again_while_nobody_leads(three):
    cluster = three
    assert "in its place" in change_while_nobody_leads(cluster, "rebalance", "n1=300")
    ring = json.loads(cli(cluster, "--json", "cluster", "ring"))
    assert [m["virtual_nodes"] for m in ring["members"] if m["node_id"] == "n1"] == [300]
    assert "orders is keyspace 15" in change_while_nobody_leads(cluster, "keyspaces", "create", "orders")
    all_know(cluster, "orders", "cluster", "keyspaces")

    # Not for ever, and what it says in the end is what the last answer was.
    for node in cluster.nodes[1:]:
        node.process.send_signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        done = client(cluster.nodes[0], "--timeout", "500ms", "cluster", "rebalance", "n1=400",
                      "--wait", "2s")
        assert time.monotonic() - begin >= 2
    finally:
        for node in cluster.nodes[1:]:
            node.process.send_signal(signal.SIGCONT)
    assert done.returncode == 1 and done.stdout == "", done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and "warning" in lines[0] and "error: rebalance" in lines[1], lines


class LosesReplies:
    """Passes on what a client and a node say, and of the first CLUSTER REMOVE only the request."""

    REMOVE = 3

    def __init__(self, node):
        self.node_port = node.port
        self.lost = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                client_end = self.listener.accept()[0]
            except OSError:
                return
            node_end = socket.create_connection(("127.0.0.1", self.node_port))
            mute = threading.Event()
            for source, target, is_client in ((client_end, node_end, True),
                                              (node_end, client_end, False)):
                threading.Thread(target=self._pump, args=(source, target, is_client, mute),
                                 daemon=True).start()

    def _pump(self, source, target, is_client, mute):
        with source, target:
            try:
                while data := source.recv(65536):
                    # A request is one frame, and is written as one.
                    removes = data[5:6] == b"\x10" and data[48:49] == bytes([self.REMOVE])
                    if is_client and removes and not self.lost.is_set():
                        self.lost.set()
                        mute.set()
                    if is_client or not mute.is_set():
                        target.sendall(data)
            except OSError:
                pass


def test_a_removal_whose_reply_is_lost_is_found_done(three):
    cluster = three
    cluster.nodes[2].kill()
    cluster.wait_alive(2, 0, 1)
    with LosesReplies(cluster.nodes[0]) as between:
        done = client(between, "cluster", "remove-node", "n3", "--dead")
        assert between.lost.is_set()
    assert done.returncode == 0 and "n3 is out" in done.stdout, done.stderr
    assert "asked for again" in done.stderr
    # Who never was a member has not been removed.
    assert "no member" in cli(cluster, "cluster", "remove-node", "n3", code=1)


def test_who_dies_while_it_is_drained_is_not_waited_for(cluster):
    # A move that takes minutes: the drain waits for its end.
    first, second = (cluster.add(move_rate="32KiB") for _ in range(2))
    cluster.wait_settled(2)
    for i in range(100):
        first.call("SET", f"key:{i}", os.urandom(100_000))
    cluster.add(move_rate="32KiB")
    wait_for(lambda: cluster.field(0, "move"), "the move")
    drain = subprocess.Popen(
        [os.path.join(BUILD, "bin", "distkv-client"), "--server", f"127.0.0.1:{first.port}",
         "cluster", "drain", "n2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: second.get("/readyz")[1] == "drained\n", "the node to be drained")
        assert drain.poll() is None
        second.kill()
        out, told = drain.communicate(timeout=60 * SLOW)
    finally:
        drain.kill()
    assert drain.returncode == 1 and "n2 does not answer any more" in told, out + told


def test_who_is_drained_or_takes_no_writes_says_so_and_is_shown(cluster):
    for _ in range(3):
        cluster.add()
    cluster.wait_settled(3)
    first, second, third = cluster.nodes
    assert third.get("/readyz") == (200, "ok\n")
    assert client(first, "cluster", "drain", "n3").returncode == 0
    wait_for(lambda: third.get("/readyz") == (503, "drained\n"), "the drained node to be not ready")
    assert third.get("/livez")[0] == 200
    wait_for(lambda: first.get("/readyz")[0] == 200, "the others to be ready")
    assert client(first, "cluster", "drain", "n3", "--undo").returncode == 0
    wait_for(lambda: third.get("/readyz")[0] == 200, "it to be ready again")

    assert third.stop() == 0
    third.options["disk-reserve"] = "1TiB"  # as if the disk were full
    third.start(wait=False)
    wait_for(lambda: "takes no writes" in third.get("/readyz")[1], "the full node to be not ready")
    third.wait_metric("distkv_cluster_stuck", lambda value: value >= 1)
    wait_for(lambda: b"distkv_cluster_takes_writes:no" in third.call("INFO", "cluster"), "INFO")

    def stuck():
        view = cluster.view(0)
        return view is not None and [member["node_id"] for member in view["members"] if member["stuck"]] == ["n3"] and \
            view["members_alive"] == 3 and view["partitions_unavailable"] == 0

    wait_for(stuck, "the others to know")

    def said():
        done = client(first, "cluster", "health")
        return done.returncode != 0 and "degraded" in done.stdout and "n3 takes no writes" in done.stdout

    wait_for(said, "health to say so")
    wait_for(lambda: [line for line in client(first, "cluster", "status").stdout.splitlines()
                      if " n3 " in line and " stuck " in line], "the status to say so")
    # Of two that are left one takes no writes: that is no quorum.
    second.kill()
    wait_for(lambda: cluster.field(0, "partitions_unavailable") == 4096, "no write quorum")
    wait_for(lambda: "unavailable" in client(first, "cluster", "health").stdout, "health to say so")


def fill_for_damage(node):
    with node.connect() as connection:
        for start in range(0, 20000, 500):
            for i in range(start, start + 500):
                connection.send("SET", f"k{i}", f"k{i}:" + "v" * 400)
            for _ in range(500):
                assert connection.read() == "OK"


def damage_largest_table(node):
    """Of a node that is stopped: a bit of its second block flips. Returns the file."""
    tables = [os.path.join(folder, name) for folder, _, files in os.walk(node.data_dir)
              for name in files if name[0] == "t" and len(name) == 17]
    victim = max(tables, key=os.path.getsize)
    with open(victim, "r+b") as file:
        file.seek(4096 + 100)
        byte = file.read(1)
        file.seek(4096 + 100)
        file.write(bytes([byte[0] ^ 0x10]))
    return victim


def test_damage_is_mended_from_replicas(three):
    """Flipped bits of a node are found, come back from the others, and the damaged file goes."""
    first, second = three.nodes[:2]
    fill_for_damage(first)
    with second.connect() as connection:
        connection.call("DISTKV.CONSISTENCY", "ONE")
        wait_for(lambda: connection.call("DBSIZE") == 20000, "the third replicas to have it, too")
    assert second.stop() == 0
    damage_largest_table(second)
    second.start()
    three.wait_settled(3)

    def read_alone():
        wrong = 0
        with second.connect() as connection:
            connection.call("DISTKV.CONSISTENCY", "ONE")
            for start in range(0, 20000, 500):
                for i in range(start, start + 500):
                    connection.send("GET", f"k{i}")
                for i in range(start, start + 500):
                    reply = connection.read()
                    assert reply is not None, f"k{i} vanished"
                    wrong += reply != b"k%d:" % i + b"v" * 400
        return wrong

    read_alone()  # meets it, if nobody has yet
    wait_for(lambda: "these partitions are given up" in second.log(), "damage to be met", 120,
             second.log)
    wait_for(lambda: client(first, "cluster", "health").returncode == 0, "it to be mended", 120,
             second.log)
    assert second.metric("distkv_damaged_files") == 0
    assert read_alone() == 0
    met = second.metric("distkv_corruptions_total")
    told = repaired(first)
    assert told.returncode == 0, told.stderr
    assert read_alone() == 0
    assert second.metric("distkv_corruptions_total") == met
    assert second.stop() == 0
    done = subprocess.run([os.path.join(BUILD, "bin", "distkv-server"), "--verify", "--data-dir",
                           str(second.data_dir)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "no damage" in done.stdout, done.stdout + done.stderr


def test_damage_is_named_by_health_and_by_repair(cluster):
    """Where a write may be on one node alone damage is not mended: it is told plainly, and once in a
    while."""
    first, second = (cluster.add(replicas=2, write_quorum=1, read_quorum=2) for _ in range(2))
    cluster.wait_settled(2)
    assert client(first, "cluster", "health").returncode == 0
    fill_for_damage(first)
    assert second.stop() == 0
    victim = os.path.basename(damage_largest_table(second))
    second.start()
    cluster.wait_settled(2)
    began = time.monotonic()
    told = repaired(first)
    assert time.monotonic() - began < 60 * SLOW
    assert told.returncode == 5, told.stderr
    assert "damaged blocks (of n2) prevent" in told.stderr, told.stderr
    assert "run it again when all are up" not in told.stderr, told.stderr
    told = json.loads(repaired(first, "--json").stdout)
    assert (told["ok"], told["missed"], told["damaged_nodes"]) == (False, 0, ["n2"])
    assert told["damaged"] > 0

    def said():
        health = client(first, "cluster", "health")
        return (health.returncode == 5 and "degraded" in health.stdout and
                "n2 has met damaged blocks" in health.stdout)

    wait_for(said, "health to say so")
    assert json.loads(client(first, "--json", "cluster", "health").stdout)["members_damaged"] == 1
    assert second.metric("distkv_damaged_files") == 1
    # Whoever reads meets it again and again; the log says so once in a while.
    met = second.metric("distkv_corruptions_total")
    with second.connect() as connection:
        connection.call("DISTKV.CONSISTENCY", "ONE")
        for start in range(0, 20000, 500):
            for i in range(start, start + 500):
                connection.send("GET", f"k{i}")
            for _ in range(500):
                connection.read()
    second.wait_metric("distkv_corruptions_total", lambda value: value > met)
    lines = [line for line in second.log().splitlines() if "damage" in line]
    assert 1 <= len(lines) <= 60 and any(victim in line for line in lines), lines


def test_a_move_that_damage_holds_up_is_shown(cluster):
    first = cluster.add()
    fill_for_damage(first)
    assert first.stop() == 0
    damage_largest_table(first)
    first.start()
    second = cluster.add(wait=False)  # it gets a copy, and there is no other one

    def said():
        health = client(first, "cluster", "health")
        return (health.returncode != 0 and "degraded" in health.stdout and
                "n2 gets nothing from n1" in health.stdout and
                "n1 has met damaged blocks" in client(first, "cluster", "status").stdout)

    wait_for(said, "health and status to say so", 120)
    assert "a source does not serve what we gain" in second.log()
    second.wait_metric("distkv_cluster_fetch_failures_total", lambda value: value > 0)
    assert first.metric("distkv_cluster_fetch_failures_total") == 0


def test_a_stranger_is_refused(cluster):
    cluster.add()
    other = cluster.write_secret("other", "another secret of the tests")
    node = cluster.add(wait=False, cluster_secret_file=other)
    wait_for(lambda: "not in the cluster yet" in node.log() or not node.running(), "a refusal")
    assert node.get("/readyz")[0] != 200
    cluster.nodes[0].wait_metric("distkv_peer_refused_total", lambda value: value >= 1)
    assert "does not take our proof of the secret" in cluster.nodes[0].log()
    wait_for(lambda: len(cluster.field(0, "members") or []) == 1, "the one member")


def test_a_node_with_data_of_its_own_does_not_join(cluster, make_server, tmp_path):
    cluster.add()
    alone = make_server(data_dir=tmp_path / "d2", node_id="n2")
    alone.call("SET", "k", "v")
    assert alone.stop() == 0
    node = cluster.add(wait=False)
    node.process.wait(timeout=60 * SLOW)
    assert node.process.returncode == 1
    assert "holds data" in node.log()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("what", ["peers of shard 0", "peers of shard 1", "clients of shard 1"])
def test_a_port_that_is_taken_is_the_one_cause_that_is_told(cluster, what):
    """Whichever of a node's ports it is."""
    port, peer_port = data_port(3), free_ports(2)
    taken = {"peers of shard 0": peer_port, "peers of shard 1": peer_port + 1,
             "clients of shard 1": port + 2}[what]
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:2])
    with socket.create_server(("127.0.0.1", taken)):
        node = cluster.add(wait=False, cores=cores, port=port, resp_cluster="cores",
                           peer_address=f"127.0.0.1:{peer_port}")
        assert node.process.wait(timeout=60 * SLOW) == 1
    errors = [line for line in node.log().splitlines() if "level=error" in line]
    assert len(errors) == 1, node.log()
    assert f"cannot listen on 127.0.0.1:{taken}" in errors[0], errors
    assert re.search(r"in use by another process\W*$", errors[0]), errors


def test_a_start_that_fails_joins_nothing(cluster):
    """A node whose admin port is taken would be a member that never comes back."""
    first = cluster.add()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        node = cluster.add(wait=False, admin_address=address)
        assert node.process.wait(timeout=60 * SLOW) == 1
    assert f"admin-address {address}: in use by another process" in node.log()
    assert len(first.call("CLUSTER", "NODES").strip().splitlines()) == 1


def test_a_node_by_itself_knows_no_cluster(server):
    with pytest.raises(ReplyError, match="not one of a cluster"):
        server.call("DISTKV.REPAIR")
    assert server.call("DISTKV.CONSISTENCY") == b"default"
    assert server.call("CLUSTER", "INFO").startswith(b"cluster_state:ok")
    done = client(server, "cluster", "status")
    assert done.returncode == 1 and "not one of a cluster" in done.stderr
