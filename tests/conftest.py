# SPDX-License-Identifier: MIT
"""What the integration and compatibility tests share: a real server on free ports with a directory
of its own, ended by its process id, and a small RESP client that shows every byte.

    DISTKV_TEST_BUILD=build-asan pytest tests/integration     tests another build
"""

import collections
import fcntl
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, os.environ.get("DISTKV_TEST_BUILD", "build"))
SERVER = os.path.join(BUILD, "bin", "distkv-server")
CLIENT = os.path.join(BUILD, "bin", "distkv-client")
if not os.path.exists(CLIENT):  # this build may be of the server alone
    CLIENT = os.path.join(ROOT, "build", "bin", "distkv-client")
sys.path.insert(0, os.path.join(ROOT, "tests", "integration"))
# losetup, mount and ip are there, which not every environment names.
os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def configured(name):
    """What the build was configured with."""
    try:
        with open(os.path.join(BUILD, "CMakeCache.txt"), encoding="utf-8") as cache:
            match = re.search(rf"^{name}:\w+=(\w*)", cache.read(), re.M)
            return match.group(1) if match else ""
    except OSError:
        return ""


SANITIZED = configured("DISTKV_SANITIZE")  # 'address', 'thread' or ''
COVERED = configured("DISTKV_COVERAGE") == "ON"
# What takes a second in the release build may take this many under a sanitizer, or counting lines.
SLOW = 8 if SANITIZED else 4 if COVERED else 1


def pytest_configure(config):
    # A shell ignores this signal for what it starts in the background, and so would every program
    # that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "smoke: run again under the sanitizers")
    config.addinivalue_line("markers", "soak: minutes long; not in make test")
    config.addinivalue_line("markers", "rig: needs root, loop devices and FUSE")


# ---- ports ----
#
# A server binds its ports some time after they were found free, and once more in each of its lives.
# So they are below those that the kernel gives to connections, and a byte of a file that all tests of
# this machine share is locked for each: a process holds those that it gave last. The kernel ends the
# locks with the process.

PORT_FIRST, PORT_LAST = 11000, 31000
PORTS_HELD = 4000
_held = collections.OrderedDict()  # port -> None, oldest first; locks tell processes apart, this tells
                                   # the tests of one
_lock_file = []


def _lock(port, how):
    if not _lock_file:
        path = os.path.join(tempfile.gettempdir(), f"distkv-test-ports.{os.getuid()}")
        _lock_file.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    fcntl.lockf(_lock_file[0], how, 1, port)


def _hold(port):
    """False: somebody else holds it, or listens there."""
    if port in _held:
        return False
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
            _lock(port, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    _held[port] = None
    return True


def _let_go(port):
    del _held[port]
    _lock(port, fcntl.LOCK_UN)


def take_ports(offsets, first=PORT_FIRST, last=PORT_LAST):
    """A port P such that P + offset is ours for each of the offsets."""
    for _ in range(500):
        base, taken = random.randrange(first, last), []
        for offset in offsets:
            if not _hold(base + offset):
                break
            taken.append(base + offset)
        if len(taken) == len(offsets):
            while len(_held) > PORTS_HELD:
                _let_go(next(iter(_held)))
            return base
        for port in taken:
            _let_go(port)
    raise RuntimeError("no free ports")


def free_port():
    """A port for clients; the admin address is 1000 above it."""
    return take_ports((0, 1000))


def free_ports(count):
    """The first of so many in a row."""
    return take_ports(range(count))


def data_port(count):
    """The first of so many in a row, for a node whose shards have ports; with an admin address."""
    return take_ports((*range(count), 1000))


def wait_for(condition, what, seconds=60, more=lambda: "", every=0.05):
    """Of what others find out at their own time: members of each other, /metrics of a shard (its
    figures are a moment old). Generous, for busy machines; returns how long it took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds * SLOW:
            pytest.fail(f"waited {seconds * SLOW} s for {what}\n{more()}")
        time.sleep(every)
    return time.monotonic() - begun


class ReplyError(Exception):
    """An error reply of the server."""


class Resp:
    """A connection that speaks RESP2 (RESP3 after HELLO 3)."""

    def __init__(self, port, timeout=60.0):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout * SLOW)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    @staticmethod
    def encode(*words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            if isinstance(word, str):
                word = word.encode()
            elif isinstance(word, int):
                word = b"%d" % word
            parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
        return b"".join(parts)

    def send(self, *words):
        self.sock.sendall(self.encode(*words))

    def send_raw(self, data):
        self.sock.sendall(data)

    def _fill(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("closed by the server")
        self.buffer += data

    def _line(self):
        while True:
            end = self.buffer.find(b"\r\n")
            if end >= 0:
                line, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
                return line
            self._fill()

    def _exactly(self, size):
        if len(self.buffer) < size + 2:
            parts = [self.buffer]
            have = len(self.buffer)
            while have < size + 2:
                data = self.sock.recv(1 << 18)
                if not data:
                    raise ConnectionError("closed by the server")
                parts.append(data)
                have += len(data)
            self.buffer = b"".join(parts)
        value, self.buffer = self.buffer[:size], self.buffer[size + 2 :]
        return value

    def read(self):
        """One reply; an error reply is returned, not raised."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ReplyError(rest.decode(errors="replace"))
        if kind in b":":
            return int(rest)
        if kind in (b"$", b"="):
            return None if rest == b"-1" else self._exactly(int(rest))
        if kind in (b"*", b"~", b">"):
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        if kind == b"%":
            return {_hashable(self.read()): self.read() for _ in range(int(rest))}
        if kind == b"_":
            return None
        if kind == b"#":
            return rest == b"t"
        if kind == b",":
            return float(rest)
        raise ValueError(f"no RESP: {line!r}")

    def call(self, *words):
        self.send(*words)
        reply = self.read()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def closed_by_server(self, seconds=60.0):
        """Reads on until the server closes; False when it does not."""
        self.sock.settimeout(seconds * SLOW)
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


class Server:
    """One distkv-server process. Every argument is a flag: memory='64MiB' is --memory 64MiB."""

    def __init__(self, data_dir, log_dir, wait=True, binary=None, env=None, wrapper=(), **options):
        self.port = options.pop("port", None) or free_port()
        self.admin_port = self.port + 1000
        self.data_dir = str(data_dir)
        self.log_path = os.path.join(str(log_dir), f"server-{self.port}.log")
        self.options = {
            "address": f"127.0.0.1:{self.port}",
            "data-dir": self.data_dir,
            "memory": "256MiB",
            "log-level": "info",
            "disk-reserve": "8MiB",
            # A disk that is busy with others' work may not take all that is in memory within the 5 s
            # that are the default; what is not drained in time is a failure.
            "shutdown-timeout": "60s",
        }
        self.options.update({name.replace("_", "-"): value for name, value in options.items()})
        self.binary = binary or SERVER
        self.wrapper = list(wrapper)
        self.env = dict(os.environ, **(env or {}))
        self.process = None
        self.start(wait)

    def command(self):
        words = self.wrapper + [self.binary]
        for name, value in self.options.items():
            words += [f"--{name}", str(value)]
        return words

    def start(self, wait=True):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds=60.0):
        end = time.monotonic() + seconds * SLOW
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode}:\n{self.log()}")
            if self.get("/readyz")[0] == 200:
                return
            if time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"not ready in {seconds} s:\n{self.log()}")
            time.sleep(0.01)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def connect(self, timeout=60.0):
        return Resp(self.port, timeout)

    def call(self, *words):
        with self.connect() as connection:
            return connection.call(*words)

    def get(self, path, method="GET"):
        """(status code, body) of the admin address; (0, '') when nobody answers."""
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        try:
            request = urllib.request.Request(url, method=method)
            with urllib.request.urlopen(request, timeout=60 * SLOW) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, http.client.HTTPException):  # it may end half-way
            return 0, ""

    def status(self):
        code, body = self.get("/status")
        assert code == 200, body
        return json.loads(body)

    def metric(self, name):
        """The sum of a metric over all its labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            match = re.match(rf"{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", line)
            if match:
                total += float(match.group(1))
        return total

    def wait_metric(self, name, holds):
        """Until holds(its sum): figures are a moment old."""
        wait_for(lambda: holds(self.metric(name)), name, more=lambda: f"it is {self.metric(name)}")

    def memory_peak(self):
        """VmHWM in bytes."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return int(re.search(r"VmHWM:\s+(\d+) kB", status.read()).group(1)) * 1024

    def running(self):
        return self.process is not None and self.process.poll() is None

    def stop(self, seconds=90.0):
        """SIGTERM; returns the exit status."""
        if self.running():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=seconds * SLOW)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait()

    def restart(self, **options):
        code = self.stop()
        assert code == 0, self.log()
        self.options.update({name.replace("_", "-"): value for name, value in options.items()})
        self.start()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.excinfo is not None and outcome.get_result().failed:
        item.keeps_files = True


@pytest.fixture
def tmp_path(request, tmp_path):
    """What a test leaves is removed when it passed: all stores together fill a disk."""
    yield tmp_path
    if not getattr(request.node, "keeps_files", False):
        shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def make_server(request, tmp_path):
    """make_server(**options): a ready server; the same data directory unless data_dir is given."""
    if not os.path.exists(SERVER):
        pytest.fail(f"{SERVER} is not there: build first")
    servers = []

    def make(data_dir=None, **options):
        server = Server(data_dir or tmp_path / "data", tmp_path, **options)
        servers.append(server)
        return server

    yield make
    problems = []
    for server in servers:
        if server.running():
            server.process.terminate()
    for server in servers:
        try:
            server.process.wait(timeout=90 * SLOW)
        except subprocess.TimeoutExpired:
            server.kill()
            problems.append("did not end after SIGTERM")
        text = server.log()
        for sign in ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer",
                     "LeakSanitizer", "check failed"):
            if sign in text:
                problems.append(text[max(0, text.index(sign) - 200) : text.index(sign) + 4000])
    request.node.keeps_files = problems or getattr(request.node, "keeps_files", False)
    assert not problems, "\n".join(problems)


@pytest.fixture
def server(make_server):
    return make_server()


@pytest.fixture(autouse=True)
def limit(request):
    """A test that hangs fails, with the place where it does; generous, for busy machines."""
    seconds = 3600 if request.node.get_closest_marker("soak") else 480 * SLOW

    def over(_signal, _frame):
        raise TimeoutError(f"the test took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def need(program):
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
