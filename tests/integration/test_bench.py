# SPDX-License-Identifier: MIT
"""distkv-bench against real servers, and against servers that lie: it must notice."""

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

from conftest import BUILD, SLOW, Resp, free_port

BENCH = os.path.join(BUILD, "bin", "distkv-bench")
REDIS = shutil.which("redis-server")

RESP_WORKLOADS = ["get", "set", "mixed", "incr", "delete", "ping",
                  "ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-f"]
NATIVE_WORKLOADS = ["get", "set", "mixed", "delete", "ping",
                    "ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-e", "ycsb-f"]


def command(port, options):
    """Underscores are dashes; True is a flag alone."""
    words = [BENCH]
    if port is not None:
        words += ["--server", f"127.0.0.1:{port}"]
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def bench(port, code=0, cwd=None, **options):
    """Runs it; the JSON that it wrote. code None: whatever it ends with."""
    options = {"duration": "500ms", "warmup": "50ms", "keys": 2000, "format": "json", **options}
    done = subprocess.run(command(port, options), capture_output=True, text=True, check=False,
                          timeout=120 * SLOW, cwd=cwd)
    assert code in (None, done.returncode), done.stdout[:2000] + done.stderr
    return json.loads(done.stdout)


def run_of(result):
    assert result["distkv_bench"]["format"] == 1
    assert len(result["runs"]) == 1
    return result["runs"][0]


def check_run(run, verified):
    assert run["error_count"] == 0 and run["wrong_count"] == 0, (run["errors"], run["wrong"])
    assert run["requests"] > 0 and run["rate"] > 0
    total = run["latency_us"]["total"]
    assert total["count"] == run["requests"]
    assert 0 < total["p50"] <= total["p99"] <= total["p99.99"] <= total["max"]
    assert sum(count for _, count in total["buckets_ns"]) == total["count"]
    assert (run["verified"] > 0) == verified


def how_to_verify(workload):
    return "values" if workload == "delete" else "strict"


def all_workloads(port, protocol, workloads):
    for workload in workloads:
        if workload == "ping":
            options = {}
        elif workload == "incr":  # others' values of the same keys cannot be counted up
            options = {"load": True, "key_prefix": "counter:"}
        else:
            options = {"load": True, "verify": how_to_verify(workload), "connections": 8}
        run = run_of(bench(port, workload=workload, protocol=protocol, pipeline=4,
                           count=1000, **options))
        check_run(run, verified=workload in ("get", "mixed") or workload.startswith("ycsb"))
        assert run["misses"] == 0


@pytest.fixture
def redis(tmp_path):
    if REDIS is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    with subprocess.Popen([REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                           "--dir", str(tmp_path)], stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while True:
            try:
                with Resp(port) as connection:
                    assert connection.call("PING") == "PONG"
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)
        yield port, process
        process.terminate()


@pytest.mark.smoke
def test_every_workload_over_resp(server):
    all_workloads(server.port, "resp", RESP_WORKLOADS)


@pytest.mark.smoke
def test_every_workload_over_the_native_protocol(server):
    all_workloads(server.port, "native", NATIVE_WORKLOADS)


def test_every_workload_against_redis(redis):
    all_workloads(redis[0], "resp", RESP_WORKLOADS)


def test_the_report_says_who_and_how(server):
    result = bench(server.port, workload="mixed", load=True, threads=3, connections=20,
                   value_size="50-5000", compressible="50%", database=3, ttl="1h", verify=True,
                   pipeline=16, count=20000)
    assert result["server"]["name"] == "distkv"
    assert result["server"]["pid"] == server.process.pid
    assert result["machine"]["cores"] >= 1 and "Linux" in result["machine"]["kernel"]
    run = run_of(result)
    check_run(run, verified=True)
    assert run["options"]["value-size"] == "50-5000" and run["options"]["threads"] == 3
    assert run["client_cpu_us_per_op"] > 0 and run["server_cpu_us_per_op"] > 0
    assert run["load"]["requests"] == 2000
    assert run["sent_bytes"] > 0 and run["received_bytes"] > 0
    with server.connect() as connection:
        connection.call("SELECT", 3)
        assert connection.call("DBSIZE") == 2000
        assert 3500 < connection.call("TTL", "key:000000000007") <= 3600


def test_a_count_is_exact(server):
    for protocol in ("resp", "native"):
        run = run_of(bench(server.port, workload="set", count=3456, threads=2, connections=7,
                           pipeline=5, protocol=protocol, warmup=0))
        assert run["requests"] == 3456
        check_run(run, verified=False)


def test_values_of_an_earlier_run_are_verified(server):
    bench(server.port, workload="set", load=True, value_size="100-3000")
    run = run_of(bench(server.port, workload="get", verify=True, value_size=100,
                       count=5000))
    check_run(run, verified=True)
    with server.connect() as connection:
        value = connection.call("GET", "key:000000000005")
        for number in range(100):
            connection.call("SET", f"key:{number:012}", value)
    run = run_of(bench(server.port, code=1, workload="get", verify=True, count=5000))
    assert {wrong["kind"] for wrong in run["wrong"]} == {"foreign value"}


def test_a_large_value_takes_the_same_way(server):
    for protocol in ("resp", "native"):
        run = run_of(bench(server.port, workload="mixed", load=True, keys=20, connections=3,
                           value_size="900KiB-1MiB", verify="strict", protocol=protocol,
                           count=30))
        check_run(run, verified=True)


def test_a_password_is_said(make_server, tmp_path):
    server = make_server(requirepass="open sesame")
    path = tmp_path / "password"
    path.write_text("open sesame\n", encoding="ascii")
    for protocol in ("resp", "native"):
        check_run(run_of(bench(server.port, workload="set", password_file=path,
                               protocol=protocol, count=200)), verified=False)
        done = subprocess.run(command(server.port, {"password": "wrong", "protocol": protocol}),
                              capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 3, done.stderr
        assert "pass" in done.stderr.lower()


def test_exit_codes_and_words():
    def ended(*words):
        return subprocess.run([BENCH, *words], capture_output=True, text=True, check=False,
                              timeout=60)
    assert ended("--help").returncode == 0
    assert "distkv-bench" in ended("--version").stdout
    done = ended("--wrkload", "get")
    assert done.returncode == 2 and "did you mean" in done.stderr
    assert ended("--workload", "ycsb-e").returncode == 2
    assert ended("--compare", "one").returncode == 2
    done = ended("--server", f"127.0.0.1:{free_port()}")
    assert done.returncode == 3 and "cannot connect" in done.stderr


def test_compare(server, tmp_path):
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path, pipeline in zip(paths, (1, 8)):
        done = subprocess.run(
            command(server.port, {"workload": "set", "duration": "300ms", "warmup": 0,
                                  "format": "json", "output": path, "pipeline": pipeline}),
            capture_output=True, text=True, check=False, timeout=60 * SLOW)
        assert done.returncode == 0 and "per second" in done.stdout
    done = subprocess.run([BENCH, "--compare", *paths], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout and "differs: --pipeline 1, then 8" in done.stdout


# ---- servers that lie ----


class Liar:
    """Speaks enough RESP; `answer(words, store)` gives a reply's bytes, None closes."""

    def __init__(self, answer):
        self.answer = answer
        self.store = {}
        self.count = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, sock.makefile("rb") as stream:
            try:
                while line := stream.readline():
                    words = []
                    for _ in range(int(line[1:])):
                        size = int(stream.readline()[1:])
                        words.append(stream.read(size + 2)[:-2])
                    self.count += 1
                    reply = self.answer(self, words)
                    if reply is None:
                        return
                    sock.sendall(reply)
            except (OSError, ValueError):
                return

    def honest(self, words):
        if words[0] == b"SET":
            self.store[words[1]] = words[2]
            return b"+OK\r\n"
        if words[0] == b"GET":
            return self.bulk(self.store.get(words[1]))
        return b"-ERR unknown command\r\n"

    @staticmethod
    def bulk(value):
        return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)

    def close(self):
        self.listener.close()


def lies(change):
    """Every fiftieth GET is answered by change(liar, key, value)."""
    def answer(liar, words):
        if words[0] == b"GET" and liar.count % 50 == 0:
            return change(liar, words[1], liar.store.get(words[1]))
        return liar.honest(words)
    return answer


def flipped(liar, key, value):
    at = liar.count % len(value)
    return liar.bulk(value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :])


def another(liar, key, value):
    other = b"key:%012d" % ((int(key[4:]) + 1) % 200)
    return liar.bulk(liar.store[other])


def first_versions(liar, words):
    """Acknowledges all writes of a key and keeps the first."""
    if words[0] == b"SET":
        liar.store.setdefault(words[1], words[2])
        return b"+OK\r\n"
    return liar.honest(words)


def lost_writes(liar, words):
    if words[0] == b"SET" and liar.count % 50 == 0:
        liar.store.pop(words[1], None)
        return b"+OK\r\n"
    return liar.honest(words)


LIES = {
    "flipped bit": (lies(flipped), "values", "broken value"),
    "cut": (lies(lambda liar, key, value: liar.bulk(value[:-1])), "values", "broken value"),
    "empty": (lies(lambda liar, key, value: liar.bulk(b"")), "values", "broken value"),
    "another key's": (lies(another), "values", "foreign value"),
    "gone": (lies(lambda liar, key, value: liar.bulk(None)), "values", "lost key"),
    "stale": (first_versions, "strict", "stale value"),
    "acknowledged and lost": (lost_writes, "strict", "lost key"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_noticed(name):
    answer, verify, kind = LIES[name]
    liar = Liar(answer)
    try:
        run = run_of(bench(liar.port, code=1, workload="mixed", keys=200, connections=4,
                           pipeline=2, load=True, verify=verify, count=3000))
    finally:
        liar.close()
    assert run["error_count"] == 0, run["errors"]
    assert {wrong["kind"] for wrong in run["wrong"]} == {kind}
    assert run["wrong_count"] < run["verified"]


def test_an_honest_server_is_not_accused():
    liar = Liar(Liar.honest)
    try:
        check_run(run_of(bench(liar.port, workload="mixed", keys=200, connections=4, pipeline=2,
                               load=True, verify="strict", count=3000)), verified=True)
    finally:
        liar.close()


def every(number, reply):
    def answer(liar, words):
        return reply if liar.count > 100 and liar.count % number == 0 else liar.honest(words)
    return answer


ERRORS = {
    "error replies": (every(20, b"-OOM not today\r\n"), "OOM"),
    "closed connections": (every(50, None), "connection lost"),
    "no protocol": (every(50, b"hello\r\n"), "protocol error"),
    "one reply too many": (every(50, b"+OK\r\n+OK\r\n+OK\r\n+OK\r\n"), "protocol error"),
    "the wrong kind of reply": (every(20, b":1\r\n"), "unexpected reply"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_counted(name):
    answer, kind = ERRORS[name]
    liar = Liar(answer)
    try:
        run = run_of(bench(liar.port, code=1, workload="set", keys=200, connections=4, pipeline=2,
                           verify="strict", count=1000))
    finally:
        liar.close()
    kinds = {error["kind"] for error in run["errors"]}
    assert kind in kinds, run["errors"]
    assert run["wrong_count"] == 0, run["wrong"]
    assert run["requests"] > 0


def test_a_server_that_never_answers_times_out():
    silent = Liar(every(1, b""))
    try:
        run = run_of(bench(silent.port, code=1, workload="set", keys=200, connections=4,
                           timeout="300ms", duration="1s"))
    finally:
        silent.close()
    assert "timeout" in {error["kind"] for error in run["errors"]}


# ---- what happens meanwhile ----


class Running:
    """A run in the background."""

    def __init__(self, port, **options):
        options = {"format": "json", "interval": "1s", "warmup": 0, "keys": 2000, **options}
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(command(port, options), stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)

    def wait_measuring(self):
        """Until the first second is over."""
        for line in self.process.stderr:
            if re.search(r" run \d+ s", line):
                return
        pytest.fail("it never began")

    def result(self, code):
        out, err = self.process.communicate(timeout=120 * SLOW)
        assert self.process.returncode == code, out[:2000] + err
        return run_of(json.loads(out))


def stopped_for(seconds, server, **options):
    options = {"duration": "4s", **options}
    running = Running(server.port, workload="get", connections=4, **options)
    running.wait_measuring()
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds) # the length of the stop is what is tested
    server.process.send_signal(signal.SIGCONT)
    return running.result(0)


def test_an_open_loop_shows_who_had_to_wait(server):
    bench(server.port, workload="set", load=True)
    run = stopped_for(0.4, server, rate=2000)
    assert run["latency_is"] == "from the intended start"
    assert run["requests"] == 8000
    total = run["latency_us"]["total"]
    # 800 of 8000 were due while the server stood still: a tenth waited up to 400 ms.
    assert total["p99.9"] > 350e3
    assert total["p95"] > 120e3
    assert total["max"] > 390e3


def test_a_closed_loop_does_not(server):
    bench(server.port, workload="set", load=True)
    run = stopped_for(0.4, server, duration="2s")
    assert run["latency_is"] == "service time"
    slow = sum(count for last, count in run["latency_us"]["total"]["buckets_ns"] if last > 350e6)
    # One request of each connection; an open loop of this rate would have had a hundred.
    assert 1 <= slow <= 40


def test_an_open_loop_keeps_its_rate_in_every_second(server):
    for attempt in range(4):
        run = run_of(bench(server.port, workload="ycsb-f", load=True, rate=1000, duration="2s",
                           verify="strict", threads=2))
        assert run["error_count"] == 0 and run["wrong_count"] == 0
        latency = run["latency_us"]
        # Reads are due by the rate; the writes of read-modify-writes follow them, some of them those
        # of reads before the measured time.
        assert latency["get"]["count"] == 2000
        assert 800 < latency["rmw"]["count"] < 1200
        # Of one that follows late, on a busy machine, more is not measured any more.
        if abs(latency["set"]["count"] - latency["rmw"]["count"]) <= 200:
            return
    pytest.fail(f"{latency['set']['count']} writes of {latency['rmw']['count']}")


def test_a_killed_server_costs_errors_but_nothing_acknowledged(server):
    for seconds in 8, 40:  # on a busy machine it may not be back before the end
        running = Running(server.port, workload="mixed", load=True, duration=f"{seconds}s",
                          connections=8, pipeline=4, verify="strict", rate=5000)
        running.wait_measuring()
        server.kill()
        server.start()
        run = running.result(1)
        assert run["wrong_count"] == 0, run["wrong"]
        assert "connection lost" in {error["kind"] for error in run["errors"]}
        if run["reconnects"] >= 8 and run["series"][-1]["rate"] > 0:
            return
    pytest.fail(f"{run['reconnects']} reconnects, then {run['series'][-1]['rate']} a second")


def test_ctrl_c_ends_early_with_a_report(server):
    running = Running(server.port, workload="set", duration="10m")
    running.wait_measuring()
    running.process.send_signal(signal.SIGINT)
    run = running.result(0)
    assert run["stopped_early"] and run["requests"] > 0
    assert run["seconds"] < 300


# ---- with nothing but itself ----


def test_the_standard_set_needs_no_server(tmp_path):
    result = bench(None, cwd=tmp_path, standard=True, duration="500ms")
    names = [run["name"] for run in result["runs"]]
    assert names == ["set-p1", "set-p16", "set-p64", "get-p1", "get-p16", "get-p64",
                     "ycsb-a", "ycsb-b", "ycsb-c"]
    for run in result["runs"]:
        check_run(run, verified=False)
        assert run["misses"] == 0
        assert "server_cpu_us_per_op" in run
    assert not os.listdir(tmp_path)
    assert not os.path.exists(f"/proc/{result['server']['pid']}")


def test_the_standard_set_leaves_nothing_behind_when_interrupted(tmp_path):
    with subprocess.Popen(command(None, {"standard": True, "keys": 2000, "interval": "1s"}),
                          cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        for line in process.stderr:
            if " run " in line:
                break
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60 * SLOW)
        assert process.returncode == 0, err
    assert "set-p1" in out
    assert not os.listdir(tmp_path)


def test_the_ceiling_is_measured():
    result = bench(None, ceiling=True, duration="200ms")
    assert [run["name"] for run in result["runs"]] == ["get-p1", "get-p16", "get-p64",
                                                       "set-p1", "set-p16", "set-p64"]
    for run in result["runs"]:
        assert run["error_count"] == 0
        assert run["client_cpu_us_per_op"] > 0
    # The kernel counts the other process in hundredths of a second: none may fall into a short run.
    assert max(run["server_cpu_us_per_op"] for run in result["runs"]) > 0
