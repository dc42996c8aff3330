# SPDX-License-Identifier: MIT
"""A sloppy keyspace on five real processes, two of which are killed: the commands of
docs/cluster.md."""

import json

from cluster_rig import Cluster
from conftest import ReplyError, wait_for

KEYS = 150


def make_keyspace(cluster):
    """Its number, once every node knows it."""
    first = cluster.nodes[0]
    done = cluster.client(first, "--json", "cluster", "keyspaces", "create", "events", "--sloppy", "on")
    assert done.returncode == 0, done.stderr
    number = json.loads(done.stdout)["number"]
    wait_for(lambda: all('"sloppy":true' in cluster.client(node, "--json", "cluster", "keyspaces").stdout
                         .replace(" ", "") for node in cluster.nodes), "the keyspace")
    refused = cluster.client(first, "cluster", "keyspaces", "create", "carts", "--conflict", "siblings",
                             "--sloppy", "on")
    assert refused.returncode != 0 and "cannot be sloppy" in refused.stderr
    return str(number)


def write(node, number, first, level="DEFAULT"):
    """How many of KEYS were refused; of the others each was acknowledged."""
    refused = 0
    with node.connect() as connection:
        assert connection.call("SELECT", number) == "OK"
        assert connection.call("DISTKV.CONSISTENCY", level) == "OK"
        for i in range(first, first + KEYS):
            try:
                assert connection.call("SET", f"e{i}", f"v{i}") == "OK"
            except ReplyError as error:
                assert str(error).startswith("NOREPLICAS"), error
                refused += 1
    return refused


def missing(node, number, first):
    with node.connect() as connection:
        connection.call("SELECT", number)
        return [i for i in range(first, first + KEYS)
                if connection.call("GET", f"e{i}") != f"v{i}".encode()]


def test_writes_go_on_while_two_of_five_are_gone(tmp_path):
    # A write waits for a disk that stands still, as shared ones do for seconds.
    with Cluster(tmp_path, memory="128MiB", cluster_timeout="30s") as cluster:
        for _ in range(5):
            cluster.add()
        cluster.wait_settled(5, seconds=120)
        number = make_keyspace(cluster)
        first = cluster.nodes[0]
        assert write(first, number, 0) == 0
        assert sum(node.metric("distkv_cluster_hints_kept_total") for node in cluster.nodes) == 0

        gone = cluster.nodes[3:]
        for node in gone:
            node.kill()
        wait_for(lambda: all((cluster.view(node) or {}).get("members_alive") == 3
                             for node in cluster.nodes[:3]), "both to be missed")
        # Some keys have both as replicas. Elsewhere these are refused, and where replicas are named.
        assert write(first, "0", 0) > 0
        assert write(first, number, 1000, "QUORUM") > 0
        assert write(first, number, 2000) == 0
        assert write(cluster.nodes[1], number, 3000) == 0
        living = cluster.running()
        assert sum(node.metric("distkv_cluster_writes_stood_in_total") for node in living) > 0
        assert sum(node.metric("distkv_cluster_hints_kept_total") for node in living) > 0

        # Who stands in is killed, too, and comes back.
        third = cluster.nodes[2]
        third.kill()
        third.start()
        for node in gone:
            node.start()
        cluster.wait_settled(5, seconds=120)
        cluster.wait_hints()
        for node in cluster.nodes:
            for start in (0, 2000, 3000):
                assert not missing(node, number, start)
        done = cluster.client(first, "cluster", "keyspaces", "set", "events", "--sloppy", "off")
        assert done.returncode == 0, done.stderr
        shown = cluster.client(first, "cluster", "keyspaces").stdout
        assert [line.split()[-1] for line in shown.splitlines() if " events " in line] == ["off"]
