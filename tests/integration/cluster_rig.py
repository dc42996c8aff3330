# SPDX-License-Identifier: MIT
"""A cluster of real processes to do harm to, under a load that remembers what it was told.

    Cluster     nodes, each pinned to a core, with one shard and a directory of its own
    Ledger      ledger.c: the load, and what became of each of its writes
    Network     a network namespace for each node and for the clients, on one bridge; links between
                them are cut by nft rules on the bridge, where frames pass from port to port:

                    n1 --veth-- |              |
                    n2 --veth-- |  br0 in `sw` | --veth-- clients
                    n3 --veth-- |              |

                Nothing of it is seen outside: the bridge is in a namespace, too. A process that
                dies before it could take its namespaces away leaves them to the next run.

Without a Network the nodes share the machine's loopback; links cannot be cut then.
"""

import contextlib
import ctypes
import datetime
import json
import mmap
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time

from conftest import BUILD, CLIENT, SLOW, ReplyError, Resp, Server, take_ports, wait_for

SECRET = "a secret of the tests"
LEDGER = os.path.join(BUILD, "bin", "ledger")
CLONE_NEWNET = 0x40000000
CORES = sorted(os.sched_getaffinity(0))


def missing_network():
    """Why links cannot be cut here, or None."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"needs {program}"
    try:
        with Network() as network:
            network.add("probe", 9)
            network.cut("probe", "probe")
            network.heal()
    except (RuntimeError, OSError) as error:
        return f"needs network namespaces and nft rules on bridges: {error}"
    return None


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


# ---- the network ----


class Network:
    """Use as a context manager."""

    COUNT = 0

    def __init__(self):
        Network.COUNT += 1
        self.prefix = f"dkv{os.getpid()}-{Network.COUNT}-"
        self.names = []

    def __enter__(self):
        self.sweep()
        try:
            self._make("sw")
            self._in("sw", "ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            self._in("sw", "ip", "link", "set", "br0", "up")
            self.heal()
            self.add("clients", 200)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    @staticmethod
    def sweep():
        """Takes away what runs that were killed have left."""
        for line in run("ip", "netns", "list").splitlines():
            name = line.split()[0] if line else ""
            if not name.startswith("dkv") or "-" not in name:
                continue
            pid = name[3:].split("-")[0]
            if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def close(self):
        for name in reversed(self.names):
            subprocess.run(["ip", "netns", "del", self.prefix + name], capture_output=True,
                           check=False)
        self.names = []

    def _make(self, name):
        run("ip", "netns", "add", self.prefix + name)
        self.names.append(name)
        self._in(name, "ip", "link", "set", "lo", "up")

    def _in(self, name, *command):
        return run(*self.wrapper(name), *command)

    def wrapper(self, name):
        return ["ip", "netns", "exec", self.prefix + name]

    def add(self, name, number):
        """One more place, with its address."""
        self._make(name)
        port = f"p{number}"
        self._in("sw", "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns",
                 self.prefix + name)
        self._in("sw", "ip", "link", "set", port, "master", "br0", "up")
        self._in(name, "ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")
        return f"10.77.0.{number}"

    def number(self, name):
        return 200 if name == "clients" else int(name[1:]) if name[1:].isdigit() else 9

    def cut(self, source, target):
        """Frames from the one to the other are lost."""
        self._in("sw", "nft", "add", "rule", "bridge", "faults", "pass", "iifname",
                 f"p{self.number(source)}", "oifname", f"p{self.number(target)}", "drop")

    def heal(self):
        rules = ("table bridge faults {}\ndelete table bridge faults\ntable bridge faults {\n"
                 "chain pass { type filter hook forward priority 0; policy accept; }\n}\n")
        done = subprocess.run(self.wrapper("sw") + ["nft", "-f", "-"], input=rules, text=True,
                              capture_output=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"nft: {done.stderr.strip()}")

    @contextlib.contextmanager
    def inside(self, name):
        """What this thread opens meanwhile is there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as home, \
                open(f"/var/run/netns/{self.prefix}{name}", "rb") as there:
            if libc.setns(there.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                if libc.setns(home.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns back")


# ---- nodes ----


class Node(Server):
    """A server in its place."""

    def __init__(self, network, place, host, *args, **options):
        self.network = network
        self.place = place
        self.host = host
        super().__init__(*args, **options)

    def there(self, place):
        return self.network.inside(place) if self.network else contextlib.nullcontext()

    def connect(self, timeout=60.0):
        with self.there("clients"):
            connection = object.__new__(Resp)
            connection.sock = socket.create_connection((self.host, self.port), timeout * SLOW)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.buffer = b""
            return connection

    def get(self, path, method="GET"):
        with self.there(self.place):
            return super().get(path, method)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def knew(self, begin, words=("suspect", "dead")):
        """Seconds from then (of time.time()) until its log first says that of a member, or None."""
        for line in self.log().splitlines():
            found = re.match(r"time=(\S+)Z .*msg=\"member (\w+)\"", line)
            if found is None or found[2] not in words:
                continue
            at = datetime.datetime.fromisoformat(found[1] + "+00:00").timestamp()
            if at >= begin:
                return at - begin
        return None

    def not_alive(self):
        """When it took other members for suspect or dead, in any of its lives: (number of the member,
        begin, end), of time.time()."""
        found, since = [], {}
        for line in self.log().splitlines():
            at = re.match(r"time=(\S+)Z ", line)
            if at is None:
                continue
            now = datetime.datetime.fromisoformat(at[1] + "+00:00").timestamp()
            told = re.search(r'msg="member (alive|suspect|dead)" member=(\d+)', line)
            begins_anew = "durable writes probed" in line
            for number in [*since] if begins_anew else [int(told[2])] if told else []:
                if number in since and (begins_anew or told[1] == "alive"):
                    found.append((number, since.pop(number), now))
                elif number not in since and told[1] != "alive":
                    since[number] = now
        return found + [(number, begin, float("inf")) for number, begin in since.items()]

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """Nodes n1, n2 ...; n1 has founded it. Use as a context manager."""

    def __init__(self, directory, network=None, **options):
        self.directory = str(directory)
        self.network = network
        self.options = options
        self.nodes = []
        self.ledgers = []
        with open(os.path.join(self.directory, "secret"), "w", encoding="ascii") as file:
            file.write(SECRET + "\n")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for ledger in self.ledgers:
            ledger.close()
        for node in self.nodes:
            if node.running():
                node.go_on()
                node.process.terminate()
        problems = []
        for node in self.nodes:
            try:
                node.process.wait(timeout=90 * SLOW)
            except subprocess.TimeoutExpired:
                node.kill()
                problems.append("did not end after SIGTERM")
            text = node.log()
            for sign in ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer",
                         "LeakSanitizer", "check failed"):
                if sign in text:
                    problems.append(text[max(0, text.index(sign) - 200):][:4000])
        if kind is not None:
            for node in self.nodes:
                print(f"---- log of {node.place}\n{node.log()[-6000:]}")
        for node in self.nodes:
            shutil.rmtree(node.data_dir, ignore_errors=True)
        assert not problems, "\n".join(problems)

    def free_ports(self):
        """A port for clients and one for peers."""
        if self.network:
            return 8080, 18080
        first = take_ports((0, 1000, 1))
        return first, first + 1

    def add(self, wait=True, **options):
        number = len(self.nodes) + 1
        name = f"n{number}"
        host = self.network.add(name, number) if self.network else "127.0.0.1"
        port, peer_port = self.free_ports()
        settings = {
            "address": f"{host}:{port}",
            "port": port,
            "node_id": name,
            "cluster_secret_file": os.path.join(self.directory, "secret"),
            "peer_address": f"{host}:{peer_port}",
            "rack": f"r{number}",
            "memory": "192MiB",
            "cores": str(CORES[(number - 1) % len(CORES)]),
        }
        if self.nodes:
            settings["seed_nodes"] = ",".join(
                f"{node.host}:{node.port}@{node.peer_port}" for node in self.nodes)
        settings.update(self.options)
        settings.update(options)
        log_dir = os.path.join(self.directory, name)
        os.makedirs(log_dir, exist_ok=True)
        node = Node(self.network, name, host, os.path.join(self.directory, name, "data"), log_dir,
                    wait=wait, wrapper=self.network.wrapper(name) if self.network else (),
                    **settings)
        node.peer_port = peer_port
        self.nodes.append(node)
        return node

    def index(self, name):
        return int(name[1:]) - 1

    def client(self, node, *words):
        wrapper = self.network.wrapper("clients") if self.network else []
        return subprocess.run(
            wrapper + [CLIENT, "--server", f"{node.host}:{node.port}", *words],
            capture_output=True, text=True, check=False, timeout=60 * SLOW)

    def view(self, node):
        """The cluster as the node sees it, or None while it does not answer."""
        try:
            done = self.client(node, "--json", "cluster", "status")
            return json.loads(done.stdout) if done.returncode == 0 else None
        except (subprocess.TimeoutExpired, ValueError):
            return None

    def settled(self, members):
        for node in self.nodes:
            if not node.running():
                continue
            view = self.view(node)
            if view is None or view["stage"] != "none" or view["members_alive"] != members:
                return False
            if len(view["members"]) != members:
                return False
            if any(member["state"] != "normal" for member in view["members"]):
                return False
        return True

    def wait_settled(self, members, seconds=120):
        return wait_for(lambda: self.settled(members), f"{members} members", seconds,
                        lambda: "\n".join(node.log()[-3000:] for node in self.nodes))

    def running(self):
        return [node for node in self.nodes if node.running()]

    def hints_waiting(self):
        return sum(node.metric("distkv_cluster_hints_waiting") for node in self.running())

    def wait_hints(self, seconds=120):
        """Returns how long it took."""
        return wait_for(lambda: self.hints_waiting() == 0, "the hints to be delivered", seconds)

    def ledger(self, **options):
        ledger = Ledger(self, **options)
        self.ledgers.append(ledger)
        return ledger

    # ---- replicas, compared ----

    def own_keys(self, node, prefix=b"k"):
        """What the node's own store has of the partitions that it holds (and else anybody's)."""
        found, cursor = set(), b"0"
        with node.connect() as connection:
            connection.call("DISTKV.CONSISTENCY", "ONE")
            while True:
                cursor, keys = connection.call("SCAN", cursor, "COUNT", "2000")
                found.update(key for key in keys if key.startswith(prefix))
                if cursor == b"0":
                    return found

    def repair(self):
        """Asks for anti-entropy; False: this build has none."""
        try:
            for node in self.running():
                with node.connect(timeout=60) as connection:
                    connection.call("DISTKV.REPAIR")
        except ReplyError as error:
            if "unknown command" in str(error):
                return False
            raise
        return True


# ---- the load ----


def bucket_us(bucket):
    """The upper end of a bucket of ledger.c, in microseconds."""
    if bucket < 16:
        return bucket + 1
    power = bucket // 16 + 3
    return (16 + bucket % 16 + 1) << (power - 4)


class DiskProbe:
    """A bare direct DSYNC write of 4 KiB every 20 ms beside the nodes, on their disk: what it takes is the
    disk's doing, or of whoever else uses it, and none of ours."""

    def __init__(self, directory):
        self.path = os.path.join(directory, "probe.data")
        self.took = []  # (when it was due: time.time(), seconds)
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_DSYNC, 0o600)
        with contextlib.suppress(OSError):  # it must not wait for a core
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        with contextlib.closing(mmap.mmap(-1, 4096)) as block:
            while not self.ending.wait(0.02):
                begun = time.time()
                os.pwritev(fd, [block], 0)
                self.took.append((begun, time.time() - begun))
        os.close(fd)

    def close(self):
        self.ending.set()
        self.thread.join()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def stalls(self, seconds):
        """(begin, end) of each write that took longer."""
        return [(begun, begun + took) for begun, took in self.took if took > seconds]


class Ledger:
    def __init__(self, cluster, rate=8500, mix="set:55,get:40,del:5", keys=20000, size=1024,
                 connections=4, timeout_ms=2000, late_ms=6000, seed=1):
        self.cluster = cluster
        self.report_path = os.path.join(cluster.directory, f"report-{len(cluster.ledgers)}.json")
        command = cluster.network.wrapper("clients") if cluster.network else []
        command = command + [LEDGER]
        for node in cluster.nodes:
            command += ["--node", f"{node.host}:{node.port}"]
        for name, value in (("rate", rate), ("mix", mix), ("keys", keys), ("size", size),
                            ("connections", connections), ("timeout-ms", timeout_ms * SLOW),
                            ("late-ms", late_ms), ("seed", seed)):
            command += [f"--{name}", str(value)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.report = None

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def ask(self, *words, seconds=120):
        self.process.stdin.write((" ".join(words) + "\n").encode())
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds * SLOW)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            raise AssertionError(f"the ledger does not answer {words}: {self.process.poll()}")
        return json.loads(line)

    def now(self):
        """Milliseconds, as all times of the report."""
        return self.ask("time")["ms"]

    def start(self):
        return self.ask("start")["ms"]

    def stop(self):
        """The end of the load; the report is there afterwards."""
        end = self.ask("stop")["ms"]
        self.read_report()
        return end

    def read_report(self):
        self.ask("report", self.report_path)
        with open(self.report_path, encoding="utf-8") as file:
            self.report = json.load(file)
        return self.report

    def check(self, level="DEFAULT"):
        """Reads every key through every node."""
        return self.ask("check", level, seconds=300)

    def keys(self):
        """(keys that must be there, keys that may be)."""
        path = self.report_path + ".keys"
        self.ask("keys", path)
        with open(path, encoding="ascii") as file:
            lines = file.read().splitlines()
        return ({line[2:].encode() for line in lines if line[0] == "+"},
                {line[2:].encode() for line in lines if line[0] == "?"})

    # ---- what the report says ----

    def percentile(self, begin_ms, end_ms, part=0.99, nodes=None, without=()):
        """In milliseconds, of what was due then and was answered; None: nothing was. without: numbers of
        windows that do not count."""
        counts = {}
        width = self.report["window_ms"]
        windows = self.report["windows"]
        first, last = int(begin_ms // width), min(int(end_ms // width), len(windows))
        for at, window in enumerate(windows[first:last], first):
            if at in without:
                continue
            for number, buckets in enumerate(window):
                if nodes is not None and number not in nodes:
                    continue
                for bucket, count in buckets:
                    counts[bucket] = counts.get(bucket, 0) + count
        total = sum(counts.values())
        if total == 0:
            return None
        wanted, seen = part * total, 0
        for bucket in sorted(counts):
            seen += counts[bucket]
            if seen >= wanted:
                return bucket_us(bucket) / 1000
        return None

    def done(self, begin_ms, end_ms):
        width = self.report["window_ms"]
        windows = self.report["windows"][int(begin_ms // width):int(end_ms // width)]
        return sum(count for window in windows for node in window for _, count in node)

    def unsent(self, begin_ms, end_ms):
        """Of what was due then, for which no node's connection was free: each waited for an older
        request."""
        width = self.report["window_ms"]
        return sum(count for window, count in self.report["unsent_windows"]
                   if int(begin_ms // width) <= window < int(end_ms // width))

    def slow_until(self, event_ms, limit_ms, end_ms, step_ms=250, nodes=None, without=()):
        """When, after the event, p99 over a quarter of a second was last above the limit, or
        something could not even be sent: milliseconds."""
        worst, at = 0, event_ms
        while at + step_ms <= end_ms:
            p99 = self.percentile(at, at + step_ms, nodes=nodes, without=without)
            if (p99 is not None and p99 > limit_ms) or self.unsent(at, at + step_ms):
                worst = at + step_ms - event_ms
            at += 50
        return worst

    def failures(self, nodes=None, begin_ms=0, end_ms=1 << 62):
        """(ms, node, request, kind, latency ms, key), by the node that was asked."""
        return [one for one in self.report["failure_list"]
                if (nodes is None or one[1] in nodes) and begin_ms <= one[0] < end_ms]
