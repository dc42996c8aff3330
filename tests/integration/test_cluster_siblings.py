# SPDX-License-Identifier: MIT
"""A keyspace that keeps siblings, on real processes: the commands of docs/cluster.md."""

import json

import test_cluster
from conftest import ReplyError, wait_for
from test_cluster import client

cluster = test_cluster.cluster  # fixtures
three = test_cluster.three


def make_keyspace(nodes):
    """Its number, once every node knows it."""
    done = client(nodes[0], "--json", "cluster", "keyspaces", "create", "carts", "--conflict",
                  "siblings")
    assert done.returncode == 0, done.stderr
    number = json.loads(done.stdout)["number"]
    wait_for(lambda: all(client(node, "--keyspace", str(number), "get", "--siblings", "no").returncode
                         == 0 for node in nodes), "the keyspace")
    return str(number)


def siblings(node, number, key):
    """The context, and the values in some order that stays."""
    done = client(node, "--keyspace", number, "get", "--siblings", key)
    assert done.returncode == 0, done.stderr
    context, *values = done.stdout.splitlines()
    return context, sorted(values)


def test_contexts_go_through_every_node_and_client(three):
    nodes = three.nodes
    number = make_keyspace(nodes)
    words = ("--keyspace", number)
    assert client(nodes[0], *words, "put", "--siblings", "cart:7", "apples").returncode == 0
    assert client(nodes[1], *words, "put", "--siblings", "cart:7", "pears").returncode == 0
    for node in nodes:
        context, values = siblings(node, number, "cart:7")
        assert values == ["apples", "pears"]
    done = client(nodes[2], *words, "put", "--context", context, "cart:7", "both")
    assert done.returncode == 0 and done.stdout == "ok\n"
    # What the context saw is gone; what came later stays.
    assert client(nodes[0], *words, "delete", "--context", context, "cart:7").returncode == 0
    newer, values = siblings(nodes[1], number, "cart:7")
    assert values == ["both"]
    assert client(nodes[1], *words, "get", "cart:7").stdout == "both"
    shown = json.loads(client(nodes[1], "--json", *words, "get", "--siblings", "cart:7").stdout)
    assert shown["context"] == newer and shown["values"][0]["value"] == "both"
    with nodes[2].connect() as connection:
        assert connection.call("SELECT", number) == "OK"
        assert connection.call("DISTKV.GET", "cart:7") == [newer.encode(), [b"both"]]
        assert connection.call("DISTKV.PUT", "cart:7", "figs", newer) == "OK"
        assert connection.call("GET", "cart:7") == b"figs"
        context = connection.call("DISTKV.GET", "cart:7")[0]
        assert connection.call("DISTKV.DEL", "cart:7", context) == "OK"
        assert connection.call("DISTKV.GET", "cart:7")[1] == []
        assert connection.call("GET", "cart:7") is None
    # Before the command these options mean the same.
    for value in ("plums", "cherries"):
        assert client(nodes[0], *words, "--siblings", "put", "cart:8", value).returncode == 0
    shown = client(nodes[1], "--siblings", *words, "get", "cart:8").stdout.splitlines()
    assert sorted(shown[1:]) == ["cherries", "plums"]
    assert client(nodes[2], *words, "--context", shown[0], "put", "cart:8", "both").returncode == 0
    context, values = siblings(nodes[0], number, "cart:8")
    assert values == ["both"]
    assert client(nodes[2], *words, "--context", context, "delete", "cart:8").returncode == 0
    assert siblings(nodes[0], number, "cart:8")[1] == []
    # A file may hold the context, or all that get --siblings printed; errors say what is wrong.
    seen = three.tmp_path / "seen"
    seen.write_text(client(nodes[0], *words, "get", "--siblings", "cart:7").stdout)
    assert client(nodes[0], *words, "put", "--context", f"@{seen}", "cart:7", "new").returncode == 0
    assert siblings(nodes[1], number, "cart:7")[1] == ["new"]
    assert client(nodes[0], *words, "put", "--context", "xyz", "cart:7", "v").returncode == 2
    assert client(nodes[0], *words, "put", "--siblings", "--ttl", "1s", "a", "v").returncode == 2
    assert client(nodes[0], *words, "put", "--ttl", "1s", "a", "v").returncode == 1
    done = client(nodes[0], "put", "--siblings", "a", "v")  # keyspace 0 keeps none
    assert done.returncode == 1 and "keeps no siblings" in done.stderr, done.stderr
    # Though nothing expires there.
    done = client(nodes[0], *words, "doctor", "--count", "5")
    assert done.returncode == 0 and "a durable write took" in done.stdout, done.stdout
    assert client(nodes[0], *words, "count", "--exact").stdout.split()[-1] == "1"  # cart:7


def test_writes_without_each_other_are_kept_over_kills_and_other_cores(three):
    nodes = three.nodes
    number = make_keyspace(nodes)
    for i in range(10):
        assert client(nodes[i % 3], "--keyspace", number, "put", "--siblings", f"k{i}",
                      "a").returncode == 0
    actors = {f"k{i}": siblings(nodes[0], number, f"k{i}")[0][4:8] for i in range(10)}
    assert set(actors.values()) == {"0100"}  # one, little-endian: the first replica of the key
    nodes[1].kill()
    # What is in flight to it, or sent before its death is known, may have an unknown outcome.
    three.wait_alive(2, 0, 2)
    for i in range(10):
        assert client(nodes[2 * (i % 2)], "--keyspace", number, "put", "--siblings", f"k{i}",
                      "b").returncode == 0
    nodes[1].options["cores"] = "0,1" if nodes[1].options["cores"] != "0,1" else "0"
    nodes[1].start()
    three.wait_settled(3)
    for i in range(10):
        assert siblings(nodes[1], number, f"k{i}")[1] == ["a", "b"]
        context = siblings(nodes[i % 3], number, f"k{i}")[0]
        assert client(nodes[1], "--keyspace", number, "put", "--context", context, f"k{i}",
                      "c").returncode == 0
    for i in range(10):
        context, values = siblings(nodes[2], number, f"k{i}")
        assert values == ["c"]
        assert context[4:8] in ("0100", "0200")  # nobody has got another name
    # One that joins fetches siblings, too, and what is written meanwhile joins them.
    for i in range(10):
        assert client(nodes[0], "--keyspace", number, "put", "--siblings", f"k{i}",
                      "d").returncode == 0
    three.add()
    three.wait_settled(4)
    for i in range(10):
        assert siblings(nodes[3], number, f"k{i}")[1] == ["c", "d"]
    assert client(nodes[3], "--keyspace", number, "count", "--exact").stdout.split()[-1] == "10"


def test_a_node_whose_disk_is_full_keeps_nobody_from_writing(three):
    number = make_keyspace(three.nodes)
    third = three.nodes[2]
    assert third.stop() == 0
    third.options["disk-reserve"] = "1TiB"  # as if the disk were full
    third.start(wait=False)
    wait_for(lambda: "takes no writes" in third.get("/readyz")[1], "the full node to say so")

    def known():
        view = three.view(0)
        return view is not None and [member["node_id"] for member in view["members"]
                                     if member["stuck"]] == ["n3"] and view["members_alive"] == 3

    wait_for(known, "the others to know")
    for node in (three.nodes[0], third):  # a third of the keys have it as their first replica
        with node.connect() as connection:
            assert connection.call("SELECT", number) == "OK"
            for i in range(100):
                assert connection.call("DISTKV.PUT", f"k{i}", "v") == "OK"
                assert connection.call("SET", f"plain{i}", "v") == "OK"


def test_a_node_by_itself_keeps_none(make_server):
    server = make_server()
    with server.connect() as connection:
        for words in (["DISTKV.GET", "k"], ["DISTKV.PUT", "k", "v"], ["DISTKV.DEL", "k", "01000000"]):
            try:
                raise AssertionError(connection.call(*words))
            except ReplyError as error:
                assert "keeps no siblings" in str(error)
