# SPDX-License-Identifier: MIT
"""Gigabytes that move between nodes while a load that remembers what it was told goes on: a node
whose disk was lost is rebuilt, another one joins, and leaves again.

    DISTKV_TEST_GB=5 make soak       as much data (1 if not said; each of three nodes has all)
    DISTKV_TEST_MOVE_RATE=0 ...      moves go on as fast as they can
"""

import json
import os
import shutil
import subprocess
import time

import pytest
from cluster_rig import Cluster, wait_for
from conftest import BUILD

BENCH = os.path.join(BUILD, "bin", "distkv-bench")
GIGABYTES = float(os.environ.get("DISTKV_TEST_GB", "1"))
VALUE_BYTES = 1000
BULK_KEYS = int(GIGABYTES * 1e9 / VALUE_BYTES)
# What the nodes have time for beside the moves: they share the machine's cores.
RATE = int(os.environ.get("DISTKV_TEST_RATE", "3000"))
# As an operator may set it; nothing: the fallback.
MOVES = ({"move_rate": os.environ["DISTKV_TEST_MOVE_RATE"]}
         if "DISTKV_TEST_MOVE_RATE" in os.environ else {})


def bench(node, *words):
    done = subprocess.run(
        [BENCH, "--server", f"{node.host}:{node.port}", "--key-prefix", "bulk:", "--keys",
         str(BULK_KEYS), "--value-size", str(VALUE_BYTES), "--format", "json", "--interval", "0",
         "--distribution", "sequential", "--count", str(BULK_KEYS), "--warmup", "0", "--connections",
         "16", "--pipeline", "16", *words],
        capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def fetched_bytes(cluster, node):
    return cluster.view(node)["fetched_bytes"]


def told(ledger, what, begin_ms, end_ms, nodes):
    print(f"{what}: {(end_ms - begin_ms) / 1000:.1f} s, p50 "
          f"{ledger.percentile(begin_ms, end_ms, 0.5, nodes)} ms, p99 "
          f"{ledger.percentile(begin_ms, end_ms, 0.99, nodes)} ms, p99.9 "
          f"{ledger.percentile(begin_ms, end_ms, 0.999, nodes)} ms, "
          f"{ledger.done(begin_ms, end_ms) * 1000 / max(1, end_ms - begin_ms):.0f} requests/s",
          flush=True)


@pytest.mark.soak
def test_gigabytes_are_rebuilt_and_moved_under_load(tmp_path):
    with Cluster(tmp_path, memory="512MiB", **MOVES) as cluster:
        for _ in range(3):
            cluster.add()
        cluster.wait_settled(3)
        seconds = bench(cluster.nodes[0], "--workload", "set")["runs"][0]["seconds"]
        print(f"filled {GIGABYTES} GB in {seconds:.1f} s", flush=True)
        cluster.wait_hints(300)
        ledger = cluster.ledger(rate=RATE, keys=20000)
        assert ledger.ask("fill")["failed"] == 0
        begin_ms = ledger.start()
        time.sleep(10)

        lost = cluster.nodes[2]
        kill_ms = ledger.now()
        lost.kill()
        shutil.rmtree(lost.data_dir)
        time.sleep(1)
        rebuild_ms = ledger.now()
        lost.start()
        cluster.wait_settled(3, 1800)
        rebuilt_ms = ledger.now()
        rebuilt = fetched_bytes(cluster, lost)
        time.sleep(5)

        join_ms = ledger.now()
        joined = cluster.add(wait=False)
        joined.wait_ready()
        cluster.wait_settled(4, 1800)
        joined_ms = ledger.now()
        moved = fetched_bytes(cluster, joined)
        time.sleep(5)

        leave_ms = ledger.now()
        with cluster.nodes[0].connect() as connection:
            assert connection.call("DISTKV.REMOVE", joined.place) == "OK"
        wait_for(lambda: len((cluster.view(cluster.nodes[0]) or {"members": []})["members"]) == 3,
                 "the node to be gone", 1800)
        left_ms = ledger.now()
        joined.kill()
        time.sleep(5)
        end_ms = ledger.stop()

        stay = {0, 1}
        told(ledger, "before", begin_ms, kill_ms, stay)
        told(ledger, f"rebuild of {rebuilt / 1e9:.2f} GB", rebuild_ms, rebuilt_ms, stay)
        told(ledger, "between", rebuilt_ms, join_ms, stay)
        told(ledger, f"join, {moved / 1e9:.2f} GB", join_ms, joined_ms, stay)
        told(ledger, "with four", joined_ms, leave_ms, stay)
        told(ledger, "leave", leave_ms, left_ms, stay)
        told(ledger, "after", left_ms, end_ms, stay)
        failures = [failure for failure in ledger.failures() if failure[1] in stay]
        # What was sent on to the lost node before the others knew (test_cluster_faults.py).
        unexcused = [failure for failure in failures
                     if not (failure[2] == "del" and failure[3] == "UNKNOWN"
                             and failure[0] < rebuild_ms + 1000)]
        print(f"failed {len(failures)}, not excused {len(unexcused)}, not sent "
              f"{ledger.report['unsent']}", flush=True)
        assert ledger.report["violations"] == 0, ledger.report["violation_texts"]
        assert not unexcused, unexcused[:20]
        cluster.wait_hints(300)
        assert ledger.check()["violations"] == 0, ledger.read_report()["violation_texts"]
        ledger.close()
        # The bulk is whole, and read through the node that had lost everything.
        result = bench(cluster.nodes[2], "--workload", "get", "--verify", "values")["runs"][0]
        assert result["verified"] >= BULK_KEYS and result["misses"] == 0, result
        assert result["wrong_count"] == 0 and result["error_count"] == 0, result
        assert rebuilt >= 0.9 * BULK_KEYS * VALUE_BYTES
