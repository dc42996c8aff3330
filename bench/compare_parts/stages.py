# SPDX-License-Identifier: MIT
"""How the rows are measured. A stage sets up what its rows share (servers with data in them, a
directory of an engine), then measures ours and the peers in turn, round by round.

A server that is not asked meanwhile stays up, idle, on the same core: filling it again for each
round would cost more than it takes.
"""

import json
import os
import re
import shutil
import sys
import time

from . import hops
from .figures import number, percentile
from .servers import DistKV, Failed, ask, bench, fio, fixed_reply, read_reply, redis, wait_for

# What differs between a quick and a full run.
QUICK = {
    "hot_keys": 1000000, "hot_memory": "2GiB", "hot_seconds": 2, "hot_warmup": "300ms",
    "big_keys": 1000000, "big_memory": "64MiB", "cold_seconds": 4, "peak_seconds": 5,
    "mixed_seconds": 30,
    "engine_keys": 500000, "engine_memory": "32MiB", "engine_seconds": 2, "engine_rounds": 2,
    "hot_engine_keys": 1000000, "hot_engine_memory": "512MiB",
    "amplification_keys": {"100": 500000, "1k": 100000, "8k": 12500},
    "amplification_memory": "16MiB",
    "scan_keys": 300000, "scan_memory": "32MiB", "scan_seconds": 3,
    "replay_keys": 110000, "replay_memory": "8GiB",
    "shard_seconds": 2,
}
FULL = {
    "hot_keys": 1000000, "hot_memory": "2GiB", "hot_seconds": 10, "hot_warmup": "1s",
    "big_keys": 10000000, "big_memory": "256MiB", "cold_seconds": 20, "peak_seconds": 20,
    "mixed_seconds": 300,
    "engine_keys": 10000000, "engine_memory": "128MiB", "engine_seconds": 10, "engine_rounds": None,
    "hot_engine_keys": 1000000, "hot_engine_memory": "512MiB",
    "amplification_keys": {"100": 20000000, "1k": 2000000, "8k": 250000},
    "amplification_memory": "256MiB",
    "scan_keys": 4000000, "scan_memory": "256MiB", "scan_seconds": 20,
    "replay_keys": 110000, "replay_memory": "8GiB",
    "shard_seconds": 10,
}
VALUE_BYTES = {"100": 100, "1k": 1024, "8k": 8192}
WARM_PASSES_MAX = 10
WARM_ENOUGH = 0.01  # of the gets that are not answered from the memtable or the row cache
ENGINES = {"ours": "distkv", "rocksdb": "rocksdb"}


def _of_run(run):
    """The figures that every run of distkv-bench has."""
    latency = run["latency_us"]["total"]
    return {"rate": run["rate"], "server_cpu_us": run.get("server_cpu_us_per_op", 0),
            "client_cpu_us": run["client_cpu_us_per_op"], "client_busy": run["client_busy"],
            "p50_us": latency["p50"], "p99_us": latency["p99"], "p999_us": latency["p99.9"],
            "max_us": latency["max"]}


def _load(env, server, keys, value_bytes, *options):
    bench(env, server, "--workload", "get", "--load", "--keys", keys, "--value-size", value_bytes,
          "--pipeline", 16, "--count", 1, "--warmup", "0", "--timeout", "60s", *options)


def _remove(*directories):
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


# ---- hot: 1 M keys of 100 bytes, beside Redis and Valkey ----

def hot(env, wanted):
    p = env.params
    gets = [row for row in ("get-1", "get-16", "get-64") if row in wanted]
    sets = [row for row in ("set-1", "set-16", "set-64") if row in wanted]
    servers = {"ours": DistKV(env, "ours", p["hot_memory"], [env.server_core])}
    for kind in ("redis", "valkey"):
        program = shutil.which(f"{kind}-server")
        if program is None:
            for row in gets + sets:
                env.not_run(row, kind, f"{kind}-server is not installed")
                env.not_run(row, f"{kind}_always", f"{kind}-server is not installed")
            continue
        servers[kind] = redis(env, kind, program, durable=False)
        if sets:
            servers[f"{kind}_always"] = redis(env, f"{kind}_always", program, durable=True)
    try:
        for side, server in servers.items():
            env.say(f"filling {side}")
            server.start()
            _load(env, server, p["hot_keys"], 100)
        ours = servers["ours"]
        ours.wait_idle()
        if "get-1" in gets:
            servers["fixed"] = fixed_reply(env).start(wait=False)
            wait_for(lambda: _answers(servers["fixed"].port), "bench_fixed_reply", 20)
        _warm(env, ours)
        for row in gets:
            _alternate_requests(env, row, "get", [s for s in servers if not s.endswith("_always")
                                                  and (s != "fixed" or row == "get-1")], servers)
        for row in sets:
            _alternate_requests(env, row, "set", [s for s in servers if s != "fixed"], servers)
            ours.wait_idle()
    finally:
        for server in servers.values():
            if server.process is not None:
                server.stop()
        _remove(*[server.data for server in servers.values() if server.data])


def _answers(port):
    try:
        return ask(port, "GET", "key:000000000000") != b""
    except OSError:
        return False


def _warm(env, server):
    """Keys at random until memory answers nearly all: a row comes into the row cache only after it
    was asked for before, and not each time. (Passes in order bring in far fewer.)"""
    env.say("warming ours")
    keys = env.params["hot_keys"]
    for at in range(WARM_PASSES_MAX):
        before = server.metrics()
        bench(env, server, "--workload", "get", "--keys", keys, "--pipeline", 64, "--count",
              2 * keys, "--warmup", "0", "--seed", 1000 + at)
        if _from_tables(before, server.metrics()) < WARM_ENOUGH:
            break
    server.wait_idle()


def _alternate_requests(env, row, workload, sides, servers):
    p = env.params
    pipeline = row.split("-")[1]
    for at in range(env.rounds):
        for side in sides:
            server = servers[side]
            before = server.metrics() if side == "ours" else None
            run, command = bench(env, server, "--workload", workload, "--keys", p["hot_keys"],
                                 "--value-size", 100, "--pipeline", pipeline, "--connections", 50,
                                 "--duration", f"{p['hot_seconds']}s", "--warmup", p["hot_warmup"],
                                 "--seed", at + 1)
            figures = _of_run(run)
            if side == "ours" and workload == "get":
                after = server.metrics()
                figures["from_tables"] = _from_tables(before, after)
                if figures["from_tables"] > WARM_ENOUGH:
                    env.note(row, f"round {at + 1}: {figures['from_tables'] * 100:.1f} % of our gets "
                                  "were answered from blocks of tables, cached or not")
            if figures["client_busy"] > 0.95:
                env.note(row, f"the client's core was busy all the time beside {side}: its rate "
                              "may be the client's")
            env.record(row, side, figures, server.command, command)
        env.say(f"{row} round {at + 1}: " + ", ".join(
            f"{side} {number(env.last(row, side, 'rate'))}" for side in sides))


def _from_tables(before, after):
    def grown(name):
        return after[name] - before[name]

    reads = grown("gets_total")
    memory = grown("gets_memory_total") + grown("gets_row_cache_total")
    return (reads - memory) / max(reads, 1)


# ---- big: one directory of 1 KB values, larger than memory by far ----

def big(env, wanted):
    p = env.params
    server = DistKV(env, "big", p["big_memory"], [env.server_core])
    server.start()
    try:
        env.say(f"filling with {p['big_keys']} values of 1 KB")
        _load(env, server, p["big_keys"], 1024)
        server.wait_idle()
        if "index" in wanted:
            m = server.metrics()
            resident = m["index_bytes"] + m["filter_bytes"]
            env.record("index", "ours", {"percent": resident / m["table_bytes"] * 100,
                                         "mib": resident / (1 << 20)}, server.command)
        if "cold" in wanted:
            _cold(env, server)
        if "mixed" in wanted:
            _mixed(env, server)
        if "restart" in wanted:
            _restart(env, server)
    finally:
        server.stop()
        _remove(server.data)


def _cold(env, server):
    p = env.params
    size = f"{p['big_keys'] // 1000000}g"
    for at in range(env.rounds):
        for prefix, figure in (("key:", "reads_per_hit"), ("nil:", "reads_per_miss")):
            before = server.metrics()
            run, command = bench(env, server, "--workload", "get", "--keys", p["big_keys"],
                                 "--key-prefix", prefix, "--value-size", 1024, "--connections", 64,
                                 "--duration", f"{p['cold_seconds']}s", "--seed", at + 1)
            after = server.metrics()
            share = _from_tables(before, after)
            gets = after["gets_total"] - before["gets_total"]
            reads = (after["disk_reads_total"] - before["disk_reads_total"]) / max(gets, 1)
            if prefix == "key:":
                figures = _of_run(run) | {"cold_rate": run["rate"] * share, "cached": 1 - share,
                                          figure: reads / max(share, 1e-9)}
            else:
                figures = {figure: reads, "miss_rate": run["rate"]}
            env.record("cold", "ours", figures, server.command, command)
        job, command = fio(env, "randread", size, p["cold_seconds"])
        env.record("cold", "fio", {"rate": job["read"]["iops"]}, command)
        _cold_bound(env)
        env.say(f"cold round {at + 1}: ours {number(env.last('cold', 'ours', 'cold_rate'))}, "
                f"reads and replies alone {number(env.last('cold', 'bare', 'rate'))}, "
                f"fio {number(env.last('cold', 'fio', 'rate'))}")
    os.unlink(os.path.join(env.work, "fio.data"))
    env.note("cold", "only gets that found nothing in a memtable or the row cache count in our rate "
                     f"and in reads a hit ({env.last('cold', 'ours', 'cached') * 100:.1f} % of "
                     "all did)")
    env.note("cold", "a server that does nothing but read 4 KiB and reply (bench_read_reply) got "
                     f"{number(env.last('cold', 'bare', 'rate'))}/s in the last round, "
                     f"{env.last('cold', 'bare', 'rate') / env.last('cold', 'fio', 'rate'):.2f} of "
                     "fio: with as many requests under way some are always in the network")


def _cold_bound(env):
    """What a server gets that does nothing but read and reply: on the file that fio has read."""
    p = env.params
    bare = read_reply(env, os.path.join(env.work, "fio.data"), 4096, 1024).start()
    try:
        run, command = bench(env, bare, "--workload", "get", "--keys", p["big_keys"],
                             "--key-prefix", "key:", "--value-size", 1024, "--connections", 64,
                             "--duration", f"{p['cold_seconds']}s")
        env.record("cold", "bare", _of_run(run), bare.command, command)
    finally:
        bare.stop()


def _mixed(env, server):
    p = env.params
    mixed = ["--workload", "mixed", "--reads", "50%", "--distribution", "zipf", "--keys",
             p["big_keys"], "--value-size", 1024, "--connections", 50]
    run, command = bench(env, server, *mixed, "--duration", f"{p['peak_seconds']}s")
    peak = run["rate"]
    env.record("mixed", "ours", {"peak_rate": peak}, server.command, command)
    seconds = p["mixed_seconds"]
    probe_file = os.path.join(env.work, "probe.data")
    probe_command = [sys.executable, os.path.join(os.path.dirname(__file__), "probe.py"), probe_file,
                     str(seconds), "5"]
    before = server.metrics()
    probe_out = os.path.join(env.work, "probe.txt")
    with open(probe_out, "wb") as out:
        probe = env.children.start(probe_command, {env.other_core}, out=out)
    try:
        run, command = bench(env, server, *mixed, "--duration", f"{seconds}s", "--rate",
                             int(peak * 0.7))
        probe.wait(timeout=seconds + 60)
    finally:
        env.children.stop(probe)
    after = server.metrics()
    with open(probe_out, encoding="ascii") as text:
        writes = [float(line) for line in text]
    latency = run["latency_us"]["total"]
    figures = _of_run(run) | {
        "p999_ms": latency["p99.9"] / 1e3, "max_ms": latency["max"] / 1e3,
        "flushes": after["flushes_total"] - before["flushes_total"],
        "compactions": after["compactions_total"] - before["compactions_total"]}
    env.record("mixed", "ours", figures, server.command, command)
    env.record("mixed", "probe", {"p999_ms": percentile(writes, 0.999) / 1e3,
                                  "max_ms": max(writes) / 1e3, "p50_ms": percentile(writes, 0.5) / 1e3,
                                  "writes": len(writes)}, probe_command)
    env.note("mixed", f"peak {number(peak)}/s, asked for {number(peak * 0.7)}/s and got "
                      f"{number(run['rate'])}/s; {figures['flushes']:.0f} flushes and "
                      f"{figures['compactions']:.0f} compactions meanwhile; one run, with "
                      f"{len(writes)} writes of the probe beside it")
    parts = [("50", "p50", 0.5), ("90", "p90", 0.9), ("99", "p99", 0.99), ("99.9", "p99.9", 0.999),
             ("99.99", "p99.99", 0.9999), ("max", "max", 1.0)]
    env.chart("mixed", "percentiles", {
        "title": "mixed 50/50 at 70 % of the peak: latency by percentile", "x": "percentile",
        "y": "us", "names": [name for name, _, _ in parts],
        "series": [["requests", [latency[key] for _, key, _ in parts]],
                   ["bare DSYNC writes", [percentile(writes, part) for _, _, part in parts]]]})
    series = run["series"]
    env.chart("mixed", "time", {
        "title": "mixed 50/50 at 70 % of the peak: latency over time", "x": "seconds", "y": "us",
        "names": [f"{point['at_s']:.0f}" for point in series],
        "series": [["p50", [point["p50_us"] for point in series]],
                   ["p99", [point["p99_us"] for point in series]],
                   ["longest", [point["max_us"] for point in series]]]})
    server.wait_idle()


def _restart(env, server):
    for _ in range(env.rounds):
        server.stop()
        begun = time.monotonic()
        server.start(wait=False)
        wait_for(lambda: _finds(server.port), "the first answer", 60, pause=0.001)
        took = time.monotonic() - begun
        server.wait_ready()
        env.record("restart", "ours", {"first_answer_s": took,
                                       "table_gb": server.metrics()["table_bytes"] / 1e9},
                   server.command)


def _finds(port):
    try:
        return ask(port, "GET", "key:000000000007").startswith(b"$1024")
    except OSError:
        return False


# ---- engine_bench ----

def _engine(env, side, where, phases, keys, value_bytes, memory, *options, keep="no"):
    """{phase: its line, the last of each}; the command."""
    directory = os.path.join(env.work, where)
    command = [env.program("engine_bench"), "--engine", ENGINES[side], "--phases", phases, "--keys",
               keys, "--value-size", value_bytes, "--memory", memory, "--core", env.server_core,
               "--dir", directory, f"--keep={keep}", "--format", "json", *options]
    command = [str(word) for word in command]
    code, out, err = env.children.run(command, {env.server_core})
    if code != 0:
        raise Failed(f"engine_bench ended with {code}: {err.strip()[-500:]}")
    lines = {}
    for line in out.splitlines():
        phase = json.loads(line)
        lines[phase["phase"]] = phase
        if side == "rocksdb":
            env.versions["rocksdb"] = phase["version"]
    if not lines:
        raise Failed("engine_bench was built without RocksDB")
    return lines, command


def _engines(env, row):
    """The sides that can be measured."""
    if env.has_rocksdb():
        return ["ours", "rocksdb"]
    for side in ("rocksdb", "rocksdb_one"):
        env.not_run(row, side, "engine_bench was built without RocksDB (librocksdb-dev)")
    return ["ours"]


def engine(env, wanted):
    p = env.params
    rounds = min(env.rounds, p["engine_rounds"] or env.rounds)
    cold = "engine-get" in wanted
    phases = "fillrandom,settle,overwrite,settle" + (",coldget" if cold else "")
    for at in range(rounds):
        for side in _engines(env, "engine-write"):
            lines, command = _engine(env, side, "engine", phases, p["engine_keys"], 100,
                                     p["engine_memory"], "--seconds", p["engine_seconds"],
                                     "--seed", at + 1)
            if "engine-write" in wanted:
                env.record("engine-write", side, {
                    "fill_rate": lines["fillrandom"]["rate"],
                    "overwrite_rate": lines["overwrite"]["rate"],
                    "overwrite_p999_us": lines["overwrite"]["put_us"]["p99.9"],
                    "overwrite_max_us": lines["overwrite"]["put_us"]["max"]}, command)
            if cold:
                env.record("engine-get", side, {
                    "cold_rate": lines["coldget"]["rate"],
                    "cold_reads": lines["coldget"]["reads_per_op"]}, command)
            _remove(os.path.join(env.work, "engine"))
            env.say(f"engine round {at + 1}: {side} fill {number(lines['fillrandom']['rate'])}, "
                    f"overwrite {number(lines['overwrite']['rate'])}")
    if cold:
        _engine_hot(env)


def _engine_hot(env):
    p = env.params
    sides = _engines(env, "engine-get")
    fixed = (p["hot_engine_keys"], 100, p["hot_engine_memory"])
    for side in sides:
        _engine(env, side, "engine-hot", "fillrandom,settle", *fixed, keep="yes")
    for _ in range(env.rounds):
        for side in sides:
            lines, command = _engine(env, side, "engine-hot", "hotget", *fixed, "--seconds",
                                     p["engine_seconds"], keep="yes")
            env.record("engine-get", side, {"hot_rate": lines["hotget"]["rate"],
                                            "hot_reads": lines["hotget"]["reads_per_op"]}, command)
        if "rocksdb" in sides:
            lines, command = _engine(env, "rocksdb", "engine-hot", "hotget", *fixed, "--seconds",
                                     p["engine_seconds"], "--workers", 1, keep="yes")
            env.record("engine-get", "rocksdb_one", {"hot_rate": lines["hotget"]["rate"]}, command)
    _remove(os.path.join(env.work, "engine-hot"))


def amplification(env, wanted):
    """One round: bytes are counted, not timed."""
    p = env.params
    for row in ("amplification", "space"):
        if row in wanted:
            env.note(row, "one round: bytes are counted, not timed")
    if env.quick:
        env.not_run("amplification", "rocksdb", "RocksDB forms its levels from some hundred MB on: "
                                                "only the full run compares")
    for label, keys in p["amplification_keys"].items():
        sides = ["ours"] if env.quick else _engines(env, "amplification")
        for side in sides if label != "8k" else ["ours"]:
            lines, command = _engine(env, side, "amplification", "fillrandom,settle,overwrite,settle",
                                     keys, VALUE_BYTES[label], p["amplification_memory"],
                                     "--overwrite", 5)
            last = lines["settle"]
            tables = re.findall(r"(?:tables(?: \d+,)?|blobs) (\d+) MB", last["more"])
            space = last["space_amplification"]
            if env.quick:
                live = keys * (16 + VALUE_BYTES[label])
                space = sum(int(megabytes) for megabytes in tables) * 1e6 / live
            figures = {f"written_{label}": last["write_amplification"], f"space_{label}": space,
                       f"directory_{label}": last["space_amplification"]}
            for row in ("amplification", "space"):
                if row in wanted:
                    env.record(row, side, figures, command)
            env.say(f"amplification {label}: {side} {last['write_amplification']:.2f}, "
                    f"space {space:.2f}")
            _remove(os.path.join(env.work, "amplification"))


def scan(env, wanted):
    assert wanted == {"scan"}
    p = env.params
    data = (p["scan_keys"], 1024, p["scan_memory"])
    sides = _engines(env, "scan")
    for side in sides:
        _engine(env, side, "scan", "fillrandom,settle", *data, keep="yes")
    for _ in range(env.rounds):
        for side in sides:
            lines, command = _engine(env, side, "scan", "scan", *data, keep="yes")
            env.record("scan", side, {"mb_s": lines["scan"]["scan_mb_s"],
                                      "cpu_s": lines["scan"]["cpu_s"]}, command)
        job, command = fio(env, "read", f"{p['scan_keys'] // 1000}m", p["scan_seconds"], block="1m",
                           depth=8)
        env.record("scan", "fio", {"mb_s": job["read"]["bw_bytes"] / 1e6}, command)
    os.unlink(os.path.join(env.work, "fio.data"))
    _remove(os.path.join(env.work, "scan"))


# ---- restart after kill -9 ----

def replay(env, wanted):
    assert wanted == {"replay"}
    p = env.params
    for at in range(env.rounds):
        server = DistKV(env, "replay", p["replay_memory"], [env.server_core])
        server.start()
        try:
            _load(env, server, p["replay_keys"], 1024)
            server.kill()
            server.start()
            cpu = server.cpu()
            m = server.metrics()
            if m["recovery_bytes"] < p["replay_keys"] * 1024:
                raise Failed(f"only {m['recovery_bytes']:.0f} bytes were left to replay")
            size = m["recovery_bytes"] / 1e9
            env.record("replay", "ours", {
                "gb_s_of_core": size / cpu, "gb_s": size / m["recovery_seconds"], "gb": size,
                "cpu_s": cpu, "seconds": m["recovery_seconds"]}, server.command)
            env.say(f"replay round {at + 1}: {size:.2f} GB, {cpu:.2f} s of CPU time to ready")
        finally:
            server.stop()
            _remove(server.data)
    env.note("replay", "the core's time is that of the whole process from its start to ready; "
                       f"bytes by recovery time are {number(env.last('replay', 'ours', 'gb_s'))} "
                       "GB/s")


# ---- two shards ----

def shards(env, wanted):
    assert wanted == {"shards"}
    p = env.params
    # Nobody polls: with three on two cores an idle shard's polling would count as work.
    one = DistKV(env, "one", "256MiB", [env.server_core], "--spin", "0")
    two = DistKV(env, "two", "256MiB", [env.server_core, env.second_core], "--spin", "0")
    tags = hops.tags_of_halves()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {env.client_core})
    sockets = []
    try:
        for server in (one, two):
            server.start()
            hops.load(server.port, tags)
        on_one = hops.connect_any(one, tags, 25)
        on_two = hops.connect(two, tags, 25)
        sockets = on_one[0] + on_one[1] + on_two[0] + on_two[1]
        sides = {
            "one": (one, [(s, tags[half]) for half in range(2) for s in on_one[half]]),
            "straight": (two, [(s, tags[half]) for half in range(2) for s in on_two[half]]),
            "hop": (two, [(s, tags[1 - half]) for half in range(2) for s in on_two[half]]),
        }
        for at in range(env.rounds):
            for side, (server, asks) in sides.items():
                figures = {}
                for pipeline in (1, 16):
                    got = hops.measure(server, asks, pipeline, p["shard_seconds"])
                    figures |= {f"{name}_{pipeline}": value for name, value in got.items()}
                env.record("shards", side, figures, server.command, ["bench/compare_parts/hops.py"])
            env.say(f"shards round {at + 1}: " + ", ".join(
                f"{side} {env.last('shards', side, 'cpu_us_1'):.2f} us" for side in sides))
        if env.second_core == env.client_core:
            env.note("shards", "the second shard and the client share a core of this machine")
        env.note("shards", "`--spin 0`; a request hops in "
                           f"{env.last('shards', 'straight', 'hops_1') * 100:.0f} % of the straight "
                           f"and {env.last('shards', 'hop', 'hops_1') * 100:.0f} % of the other "
                           "requests")
    finally:
        for sock in sockets:
            sock.close()
        os.sched_setaffinity(0, before)
        for server in (one, two):
            if server.process is not None:
                server.stop()
            _remove(server.data)


# The short ones first: a run that is interrupted has them.
STAGES = {"hot": hot, "replay": replay, "shards": shards, "big": big, "scan": scan,
          "engine": engine, "amplification": amplification}
