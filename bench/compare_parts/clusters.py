# SPDX-License-Identifier: MIT
"""Clusters and their clients: DistKV's nodes, etcd's members.

The members of a side run on the cores in turn (0, 1, 0 ...); the clients, one for each member, run
where the scheduler puts them. A side has start(), stop(), and run(what, seconds, rate), which
returns {figure: value} and a command. CPU is that of all members, over all that a run asked for.
"""

import base64
import json
import os
import re
import secrets
import shutil
import struct
import subprocess
import urllib.request

from .figures import percentile
from .servers import DistKV, Failed, Server, bench_command, free_port, wait_for

CONNECTIONS, UNDER_WAY = 8, 32  # of each client; requests on each connection
VALUE_BYTES = 1000
KEYS = 20000
ETCD_KEY = b"key:000000000001"


def together(env, commands, seconds):
    """Runs them all at once; their outputs."""
    processes = [env.children.start(command, env.all_cores, log=subprocess.PIPE, out=subprocess.PIPE)
                 for command in commands]
    outputs = []
    for command, process in zip(commands, processes):
        out, err = process.communicate(timeout=seconds)
        env.children.stop(process)
        if process.returncode != 0:
            raise Failed(f"{os.path.basename(command[0])} ended with {process.returncode}: "
                         f"{err.decode(errors='replace').strip()[-500:]}")
        outputs.append(out.decode(errors="replace"))
    return outputs


class Side:
    """Some members that are started, measured and ended together."""

    def __init__(self):
        self.members = []

    def start(self):
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            member.wait_ready()

    def stop(self):
        for member in self.members:
            member.stop()
            shutil.rmtree(member.data, ignore_errors=True)

    def cpu(self):
        return sum(member.cpu() for member in self.members)


class DistKVNodes(Side):
    """A cluster of so many; one is a node that is in no cluster."""

    def __init__(self, env, name, count):
        super().__init__()
        self.env, self.name = env, name
        secret = os.path.join(env.work, f"{name}.secret")
        with open(os.open(secret, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        seed = []
        for at in range(count):
            options, peers = [], free_port()
            if count > 1:
                options = ["--node-id", f"n{at + 1}", "--rack", f"r{at + 1}", "--peer-address",
                           f"127.0.0.1:{peers}", "--cluster-secret-file", secret, *seed]
            node = DistKV(env, f"{name}{at + 1}", "256MiB", [env.cores[at % len(env.cores)]],
                          *options)
            seed = seed or ["--seed-nodes", f"127.0.0.1:{node.port}@{peers}"]
            self.members.append(node)

    def status(self, node):
        done = subprocess.run(
            [self.env.program("distkv-client"), "--server", f"127.0.0.1:{node.port}", "--json",
             "cluster", "status"], capture_output=True, text=True, check=False, timeout=30)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def settled(self):
        views = [self.status(node) for node in self.members]
        return all(view is not None and view["stage"] == "none" and
                   view["members_alive"] == len(self.members) and
                   all(member["state"] == "normal" for member in view["members"])
                   for view in views)

    def start(self):
        super().start()
        if len(self.members) > 1:
            wait_for(self.settled, f"{self.name} to be one cluster", 60, pause=0.1)
        # What is read is there, then.
        self._clients("set", self.members[:1], ["--count", str(KEYS), "--distribution", "sequential"])

    def _clients(self, workload, members, options):
        commands = [bench_command(self.env, member, "--workload", workload, "--keys", KEYS,
                                  "--value-size", VALUE_BYTES, "--connections", CONNECTIONS,
                                  "--pipeline", UNDER_WAY, "--warmup", "0", *options)
                    for member in members]
        runs = [json.loads(out)["runs"][0] for out in together(self.env, commands, 600)]
        for run in runs:
            if run["error_count"] or run["wrong_count"] or run["misses"]:
                raise Failed(f"errors: {run['errors']} {run['wrong']}, misses {run['misses']}")
        return runs, commands[0]

    def run(self, what, seconds, rate):
        options = ["--duration", f"{seconds}s"]
        if rate:
            options += ["--rate", str(rate // len(self.members))]
        before = self.cpu()
        runs, command = self._clients({"put": "set", "get": "get"}[what], self.members, options)
        spent = self.cpu() - before
        figures = {"rate": sum(run["rate"] for run in runs),
                   "cpu_us": spent * 1e6 / sum(run["requests"] for run in runs)}
        for name in ("p50", "p99"):
            # Of the slowest of the clients.
            figures[f"{name}_us"] = max(run["latency_us"]["total"][name] for run in runs)
        return figures, command


class EtcdMember(Server):
    def __init__(self, env, name, core, port, peer_port, cluster):
        data = os.path.join(env.work, name)
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        # One thread that runs Go code for each, as DistKV's nodes have one shard.
        command = ["env", "GOMAXPROCS=1", "etcd", "--name", name, "--data-dir", data,
                   "--listen-client-urls", client, "--advertise-client-urls", client,
                   "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                   "--initial-cluster", cluster, "--initial-cluster-state", "new",
                   "--quota-backend-bytes", str(8 << 30), "--log-level", "error"]
        super().__init__(env, name, command, {core}, data)
        os.chmod(data, 0o700)
        self.port = port

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}:\n{self.log_end()}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as reply:
                return json.load(reply).get("health") in ("true", True)
        except (OSError, ValueError):
            return False

    def ask(self, path, body):
        """Over its gateway for JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v3/kv/{path}",
                                         data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)


def grpc(message):
    """As gRPC frames it: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def proto_bytes(field, data):
    """A field of bytes as protocol buffers have it; data of up to 16 KiB."""
    size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    return bytes([field << 3 | 2]) + size + data


class Etcd(Side):
    """Driven by h2load: one key, over gRPC."""

    BODIES = {
        "put": ("Put", proto_bytes(1, ETCD_KEY) + proto_bytes(2, b"v" * VALUE_BYTES)),
        "get": ("Range", proto_bytes(1, ETCD_KEY)),
        "get_local": ("Range", proto_bytes(1, ETCD_KEY) + bytes([7 << 3, 1])),  # serializable
    }

    def __init__(self, env, name, count):
        super().__init__()
        self.env = env
        ports = [(free_port(), free_port()) for _ in range(count)]
        cluster = ",".join(f"{name}{at + 1}=http://127.0.0.1:{peer}"
                           for at, (_, peer) in enumerate(ports))
        for at, (port, peer) in enumerate(ports):
            self.members.append(EtcdMember(env, f"{name}{at + 1}", env.cores[at % len(env.cores)],
                                           port, peer, cluster))
        for what, (_, message) in self.BODIES.items():
            with open(os.path.join(env.work, f"{what}.grpc"), "wb") as file:
                file.write(grpc(message))

    def start(self):
        super().start()
        self.members[0].ask("put", {"key": base64.b64encode(ETCD_KEY).decode(),
                                    "value": base64.b64encode(b"v" * VALUE_BYTES).decode()})

    def _revision(self):
        return int(self.members[0].ask(
            "range", {"key": base64.b64encode(ETCD_KEY).decode()})["header"]["revision"])

    def run(self, what, seconds, rate):
        path = self.BODIES[what][0]
        commands, logs = [], []
        for member in self.members:
            command = ["h2load", "-c", str(CONNECTIONS), "-m", str(UNDER_WAY), "-D", str(seconds),
                       "-d", os.path.join(self.env.work, f"{what}.grpc"),
                       "-H", "content-type: application/grpc", "-H", "te: trailers"]
            if rate:
                logs.append(os.path.join(self.env.work, f"{member.name}.requests"))
                command += ["--rps", str(rate / len(self.members) / CONNECTIONS),
                            "--log-file", logs[-1]]
            commands.append([*command,
                             f"http://127.0.0.1:{member.port}/etcdserverpb.KV/{path}"])
        revision, before = self._revision(), self.cpu()
        outputs = together(self.env, commands, 600)
        spent, done = self.cpu() - before, sum(h2load_done(out) for out in outputs)
        # That a request was answered says nothing of it; that all puts are there does.
        if what == "put" and self._revision() - revision < done:
            raise Failed(f"{done} puts made {self._revision() - revision} revisions")
        figures = {"rate": done / seconds, "cpu_us": spent * 1e6 / done}
        if logs:
            times = [times_of(log) for log in logs]
            for name, part in (("p50", 0.5), ("p99", 0.99)):
                figures[f"{name}_us"] = max(percentile(of_one, part) for of_one in times)
        return figures, commands[0]


def times_of(log):
    """Of each request, in us; and the file is gone then."""
    with open(log, encoding="ascii") as file:
        times = [float(line.split()[2]) for line in file]
    os.unlink(log)
    return times


def h2load_done(out):
    """Requests that succeeded; all must have."""
    match = re.search(r"requests: (\d+) total, .*?(\d+) done, (\d+) succeeded, (\d+) failed, "
                      r"(\d+) errored, (\d+) timeout", out)
    if match is None:
        raise Failed(f"h2load said: {out[-500:]}")
    _, _, succeeded, failed, errored, timeout = (int(word) for word in match.groups())
    if failed or errored or timeout or not succeeded:
        raise Failed(f"h2load: {succeeded} succeeded, {failed + errored + timeout} did not")
    return succeeded
