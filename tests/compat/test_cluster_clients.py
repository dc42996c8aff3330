# SPDX-License-Identifier: MIT
"""Redis Cluster clients, unmodified, against resp-cluster node and cores."""

import os
import time

import pytest
import redis
import test_clients
from conftest import ReplyError, Resp, data_port, need, wait_for
from redis.cluster import ClusterNode, RedisCluster
from test_clients import cli, run
from test_cluster import Cluster
from test_smart import at_rest

node_modules = test_clients.node_modules  # a fixture
CORES = "0,1" if os.cpu_count() > 1 else "0"
SHARDS = 2 if os.cpu_count() > 1 else 1


@pytest.fixture
def alone(make_server):
    """A node by itself whose shards have ports."""
    return make_server(port=data_port(1 + SHARDS), resp_cluster="cores", cores=CORES)


def members(make_server, tmp_path, kind):
    cluster = Cluster(make_server, tmp_path)
    for _ in range(3):
        cluster.add(cores=CORES, port=data_port(1 + SHARDS), resp_cluster=kind,
                    cluster_timeout="30s")  # a busy machine is not what is tested here
    cluster.wait_settled(3)
    return cluster


@pytest.fixture(params=["node", "cores"])
def three(request, make_server, tmp_path):
    cluster = members(make_server, tmp_path, request.param)
    cluster.kind = request.param
    return cluster


def connect(port):
    return RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", port)])


def ports_of(slots):
    return {row[2][1] for row in slots}


def check_slots(slots):
    """All of them, each once, in order, at an address, and nobody as a replica."""
    slot = 0
    for row in slots:
        assert row[0] == slot and row[1] >= row[0] and len(row) == 3
        host, port, name, more = row[2]
        assert host == b"127.0.0.1" and port > 0 and len(name) == 40 and more == []
        slot = row[1] + 1
    assert slot == 16384


def lines_of(nodes):
    """Of CLUSTER NODES: by port (flags, slots)."""
    lines = {}
    for line in nodes.decode().splitlines():
        words = line.split()
        port = int(words[1].split("@")[0].split(":")[1])
        slots = set()
        for word in words[8:]:
            first, _, last = word.partition("-")
            slots.update(range(int(first), int(last or first) + 1))
        assert port not in lines
        lines[port] = (words[2].split(","), slots, words[0])
    return lines


def use(client, prefix, count=300):
    for i in range(count):
        assert client.set(f"{prefix}{i}", f"v{i}")
    for i in range(count):
        assert client.get(f"{prefix}{i}") == f"v{i}".encode()
    assert client.incr(f"{prefix}n") == 1
    assert client.mset_nonatomic({f"{prefix}a": 1, f"{prefix}b": 2})
    assert client.mget_nonatomic(f"{prefix}a", f"{prefix}b") == [b"1", b"2"]
    with client.pipeline() as pipe:
        for i in range(50):
            pipe.get(f"{prefix}{i}")
        assert pipe.execute() == [f"v{i}".encode() for i in range(50)]
    assert client.delete(*(f"{prefix}{i}" for i in range(10))) == 10


def test_each_shard_of_a_node_is_one_for_cluster_clients(alone):
    base = alone.port
    own = [base + 1 + i for i in range(SHARDS)]
    for port in [base] + own:
        with Resp(port) as connection:
            assert b"cluster_enabled:1" in connection.call("INFO", "cluster")
            slots = connection.call("CLUSTER", "SLOTS")
            check_slots(slots)
            assert [row[2][1] for row in slots] == own  # one run for each
            lines = lines_of(connection.call("CLUSTER", "NODES"))
            assert sorted(lines) == own
            assert set().union(*(line[1] for line in lines.values())) == set(range(16384))
            myself = [p for p, line in lines.items() if "myself" in line[0]]
            assert len(myself) == 1 and (port == base or myself == [port])
            assert connection.call("CLUSTER", "MYID").decode() == lines[myself[0]][2]
            shards = connection.call("CLUSTER", "SHARDS")
            assert [shard[3][0][3] for shard in shards] == own
            assert b"cluster_state:ok" in connection.call("CLUSTER", "INFO")
            assert connection.call("READONLY") == "OK"
            # every port takes every key
            for i in range(40):
                assert connection.call("SET", f"{port}-{i}", "v") == "OK"
                assert connection.call("GET", f"{port}-{i}") == b"v"


def test_requests_of_a_cluster_client_stay_on_one_shard(alone):
    client = connect(alone.port)
    use(client, "warm")
    before = at_rest(lambda: alone.metric("distkv_requests_forwarded_total"))
    for i in range(500):
        assert client.set(f"k{i}", i)
        assert client.get(f"k{i}") == str(i).encode()
    assert at_rest(lambda: alone.metric("distkv_requests_forwarded_total")) == before
    client.close()


def test_redis_cli_and_benchmark_go_by_the_map(alone):
    need("redis-cli")
    need("redis-benchmark")
    assert cli(alone, "-c", "set", "{a}1", "x") == "OK\n"
    assert cli(alone, "-c", "get", "{a}1") == "x\n"
    assert "[OK] All 16384 slots covered" in cli(alone, "--cluster", "check",
                                                 f"127.0.0.1:{alone.port + 1}")
    text = run("redis-benchmark", "--cluster", "-p", str(alone.port), "-t", "set,get", "-n", "20000",
               "-c", "20", "-r", "1000", "-q")
    assert "SET:" in text and "GET:" in text and "rror" not in text, text


def test_nodes_or_their_shards_are_listed_and_reached(three):
    expected = set()
    for node in three.nodes:
        ports = [node.port] if three.kind == "node" else \
            [node.port + 1 + i for i in range(SHARDS)]
        expected.update(ports)

    def listed():
        return all(set(lines_of(node.call("CLUSTER", "NODES"))) == expected
                   for node in three.nodes)

    wait_for(listed, "all to be listed")  # whose shards have ports is told by pings

    def told():
        return [node.call("CLUSTER", "SLOTS") for node in three.nodes]

    wait_for(lambda: len(set(map(str, told()))) == 1, "all nodes to tell the same")
    maps = told()
    check_slots(maps[0])
    for node in three.nodes:
        lines = lines_of(node.call("CLUSTER", "NODES"))
        assert set(lines) == expected
        assert sum(len(line[1]) for line in lines.values()) == 16384
        assert all("master" in line[0] for line in lines.values())
        assert sum("myself" in line[0] for line in lines.values()) == 1
        by_slot = {slot: port for port, line in lines.items() for slot in line[1]}
        assert all(by_slot[row[0]] == row[2][1] for row in maps[0])
        for tag in ("a", "b", "c"):
            assert node.call("CLUSTER", "KEYSLOT", "{%s}x" % tag) == \
                node.call("CLUSTER", "KEYSLOT", tag)
    client = connect(three.nodes[1].port)
    use(client, "warm")

    def forwards():
        return at_rest(lambda: sum(node.metric("distkv_cluster_forwards_total")
                                   for node in three.nodes))

    for attempt in range(3):  # a node that is taken for dead for a moment changes the map
        before = forwards()
        for i in range(300):
            assert client.incr(f"{attempt}n{i}") == 1
            assert client.get(f"{attempt}n{i}") == b"1"
        if forwards() == before:
            break
    else:
        pytest.fail("requests were sent on")
    client.close()


def test_a_cluster_client_outlives_a_node(three):
    client = connect(three.nodes[0].port)
    use(client, "a")
    three.nodes[2].kill()
    end = time.monotonic() + 120
    done = 0
    while done < 300 and time.monotonic() < end:
        try:
            assert client.set(f"b{done}", "v")
            assert client.get(f"b{done}") == b"v"
            done += 1
        except redis.exceptions.RedisClusterException:
            # redis-py 4.3 cannot look for the map again ("cannot pickle '_thread.lock' object")
            # when the first node that it knows is the one that is gone.
            client = connect(three.nodes[0].port)
        except (redis.RedisError, OSError):
            time.sleep(0.1)  # it finds out, and asks another node for the map
    assert done == 300
    gone = three.nodes[2].port
    own = set(range(gone, gone + 1 + SHARDS))
    wait_for(lambda: not ports_of(three.nodes[0].call("CLUSTER", "SLOTS")) & own, "it to be left out")
    check_slots(three.nodes[0].call("CLUSTER", "SLOTS"))
    client.close()


def test_benchmark_and_cli_in_a_cluster(three):
    need("redis-cli")
    need("redis-benchmark")
    node = three.nodes[0]
    for i in range(10):
        assert cli(node, "-c", "set", f"cli{i}", "x") == "OK\n"
    text = run("redis-benchmark", "--cluster", "-p", str(node.port), "-t", "set,get", "-n", "6000",
               "-c", "12", "-r", "1000", "-q")
    assert "SET:" in text and "GET:" in text and "rror" not in text, text


@pytest.mark.parametrize("client", ["ioredis-cluster", "ioredis-newest-cluster"])
def test_ioredis_as_a_cluster_client(three, node_modules, client):
    place, major = node_modules
    if "-newest" in client and major < 20:
        pytest.skip(f"{client} needs Node.js 20, this is {major}")
    text = run("node", "clients.js", client, str(three.nodes[0].port), cwd=place)
    assert f"ok {client} keys" in text


def test_a_node_without_ports_for_its_shards_is_listed_itself(make_server, tmp_path):
    cluster = Cluster(make_server, tmp_path)
    cluster.add(cores=CORES, port=data_port(1 + SHARDS), resp_cluster="cores")
    cluster.add(cores=CORES, port=data_port(1 + SHARDS), resp_cluster="node")
    cluster.wait_settled(2)
    own = {cluster.nodes[0].port + 1 + i for i in range(SHARDS)}
    wait_for(lambda: set(lines_of(cluster.nodes[0].call("CLUSTER", "NODES"))) ==
             own | {cluster.nodes[1].port}, "both to be listed")
    # Who is set to nodes lists nodes.
    wait_for(lambda: ports_of(cluster.nodes[1].call("CLUSTER", "SLOTS")) ==
             {node.port for node in cluster.nodes}, "both to lead")


def test_off_there_is_no_cluster_for_them(server):
    assert b"cluster_enabled:0" in server.call("INFO", "cluster")
    with pytest.raises(ReplyError, match="cluster support disabled"):
        server.call("READONLY")


def test_ports_that_cannot_be_had_are_refused_with_a_sentence(make_server):
    node = make_server(wait=False, address="127.0.0.1:0", admin_address="off",
                       resp_cluster="cores")
    assert node.process.wait(60) == 2
    assert "resp-cluster" in node.log()
