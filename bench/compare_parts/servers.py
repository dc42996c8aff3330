# SPDX-License-Identifier: MIT
"""Processes: started in a session of their own, pinned, awaited, measured, ended by their ids.

Ctrl-C reaches this program only; it then ends what it started, in the reverse order.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.request


ENDING = {signal.SIGINT, signal.SIGTERM}


class Failed(Exception):
    """Something that was started did not do what it should."""


_given = set()


def free_port():
    """A free port whose port + 1000 is free as well. Nothing holds it until the server takes it: so it is
    above those that the kernel gives to connections, where it leaves any, and none that was given before."""
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        highest = int(file.read().split()[1])
    for _ in range(1000):
        port = random.randrange(highest + 1 if highest < 64000 else 5000, 64536)
        both = {port, port + 1000}
        if both & _given:
            continue
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1000))
            except OSError:
                continue
        _given.update(both)
        return port
    raise Failed("no free ports")


def wait_for(condition, what, seconds, pause=0.01):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"waited {seconds} s for {what}")
        time.sleep(pause)


class Children:
    """Everything that runs for us."""

    def __init__(self):
        self.running = []

    def start(self, command, cores, log=subprocess.DEVNULL, out=None):
        def prepare():
            os.sched_setaffinity(0, cores)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

        # An interrupt between the fork and the note of it would leave the process behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out or log,
                                       stderr=log, preexec_fn=prepare, start_new_session=True)
            self.running.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        return process

    def run(self, command, cores, seconds=7200):
        """Runs to the end; (exit status, standard output, standard error)."""
        process = self.start(command, cores, log=subprocess.PIPE, out=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as over:
            raise Failed(f"not done in {seconds} s: {' '.join(command)}") from over
        finally:
            self.stop(process)
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    def stop(self, process, seconds=30):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        if process in self.running:
            self.running.remove(process)

    def kill(self, process):
        if process.poll() is None:
            process.kill()
        process.wait()
        if process in self.running:
            self.running.remove(process)

    def stop_all(self):
        for process in reversed(list(self.running)):
            self.stop(process, seconds=10)


def cpu_seconds(pid):
    """Of all threads that a process has, to the nanosecond."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
        except OSError:
            pass
    return total / 1e9


def ask(port, *words, timeout=30.0):
    """The first bytes of a server's reply to one RESP command."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            parts.append(b"$%d\r\n%s\r\n" % (len(word), word.encode()))
        sock.sendall(b"".join(parts))
        return sock.recv(65536)


class Server:
    """A server of any kind on a free port. `data` is its directory, or None."""

    def __init__(self, env, name, command, cores, data=None):
        self.env, self.name, self.cores, self.data = env, name, cores, data
        self.port = free_port()
        self.command = [word.replace("PORT", str(self.port)) for word in command]
        self.process = None
        if data:
            os.makedirs(data, exist_ok=True)

    def start(self, wait=True):
        with open(os.path.join(self.env.work, f"{self.name}.log"), "ab") as log:
            self.process = self.env.children.start(self.command, self.cores, log)
        if wait:
            self.wait_ready()
        return self

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}:\n{self.log_end()}")
        try:
            return ask(self.port, "PING").startswith((b"+PONG", b"+OK"))
        except OSError:
            return False

    def wait_ready(self, seconds=120):
        wait_for(self.ready, f"{self.name} to answer", seconds, pause=0.002)

    def log_end(self):
        path = os.path.join(self.env.work, f"{self.name}.log")
        with open(path, encoding="utf-8", errors="replace") as log:
            return log.read()[-2000:]

    def cpu(self):
        return cpu_seconds(self.process.pid)

    def stop(self):
        self.env.children.stop(self.process)

    def kill(self):
        self.env.children.kill(self.process)


class DistKV(Server):
    def __init__(self, env, name, memory, cores, *options):
        data = os.path.join(env.work, name)
        command = [env.program("distkv-server"), "--address", "127.0.0.1:PORT", "--data-dir", data,
                   "--memory", memory, "--cores", ",".join(str(core) for core in cores),
                   "--durability", "group", "--log-format", "logfmt", *options]
        # Its shards pin themselves; the rest of it may run where they run.
        super().__init__(env, name, command, set(cores), data)

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}:\n{self.log_end()}")
        try:
            return self.get("/readyz") is not None
        except OSError:
            return False

    def get(self, path):
        url = f"http://127.0.0.1:{self.port + 1000}{path}"
        with urllib.request.urlopen(url, timeout=20) as reply:
            return reply.read().decode()

    def metrics(self):
        """{name without its prefix: sum over all labels}, of now: the server shows figures that
        are up to a tenth of a second old."""
        time.sleep(0.11)
        out = {}
        for match in re.finditer(r"^distkv_(\w+?)(?:\{[^}]*\})? (\S+)$", self.get("/metrics"), re.M):
            out[match.group(1)] = out.get(match.group(1), 0.0) + float(match.group(2))
        return out

    def forwarded(self):
        """Requests that went to another shard, of now."""
        match = re.search(rb"requests_forwarded:(\d+)", ask(self.port, "INFO", "distkv"))
        if match is None:
            raise Failed("INFO does not say requests_forwarded")
        return int(match.group(1))

    def wait_idle(self, seconds=900):
        """Until nothing is merged, nor was flushed or merged for two seconds. (What a merge has done
        is counted slice by slice, which may take longer.) What is owed then may stay: a small tier
        waits for more of its size."""
        last, quiet = None, 0

        def idle():
            nonlocal last, quiet
            m = self.metrics()
            now = (m["flushed_bytes_total"], m["compaction_written_bytes_total"],
                   m["compaction_read_bytes_total"])
            quiet = quiet + 1 if now == last and m["compactions_active"] == 0 else 0
            last = now
            return quiet >= 4

        wait_for(idle, "background work to end", seconds, pause=0.5)


def redis(env, name, program, durable):
    """No snapshots; a log that is synced for each write, or none. The log is never rewritten: that
    would take from its rate."""
    data = os.path.join(env.work, name)
    command = [program, "--port", "PORT", "--bind", "127.0.0.1", "--dir", data, "--save", "",
               "--daemonize", "no"]
    if durable:
        command += ["--appendonly", "yes", "--appendfsync", "always",
                    "--auto-aof-rewrite-percentage", "0"]
    else:
        command += ["--appendonly", "no"]
    return Server(env, name, command, {env.server_core}, data)


def fixed_reply(env):
    return Server(env, "fixed", [env.program("bench_fixed_reply"), "PORT", str(env.server_core),
                                 "100"], {env.server_core})


def read_reply(env, file, read_bytes, value_bytes):
    """Answers each request by one direct read and a fixed reply, and does nothing else."""
    return Server(env, "read_reply", [env.program("bench_read_reply"), "PORT", file,
                                      str(read_bytes), str(value_bytes)], {env.server_core})


def bench_command(env, server, *options):
    return [env.program("distkv-bench"), "--server", f"127.0.0.1:{server.port}", "--server-pid",
            str(server.process.pid), "--format", "json", "--interval", "0",
            *[str(option) for option in options]]


def bench(env, server, *options):
    """One run of distkv-bench against a server; its result, and the command."""
    command = bench_command(env, server, "--cores", env.client_core, *options)
    code, out, err = env.children.run(command, {env.client_core})
    if code != 0:
        raise Failed(f"distkv-bench ended with {code}: {err.strip()[-500:] or out[-500:]}")
    run = json.loads(out)["runs"][0]
    if run["error_count"] or run["wrong_count"]:
        raise Failed(f"errors: {run['errors']} {run['wrong']}")
    return run, command


def fio(env, mode, size, seconds, block="4k", depth=64, extra=()):
    """One fio job on a file of that size in the data directory; (its figures, the command)."""
    command = ["fio", "--name=x", f"--filename={os.path.join(env.work, 'fio.data')}",
               f"--size={size}", f"--rw={mode}", f"--bs={block}", f"--iodepth={depth}", "--direct=1",
               "--ioengine=io_uring", f"--runtime={seconds}", "--time_based", "--randrepeat=0",
               "--norandommap", "--output-format=json", *extra]
    code, out, err = env.children.run(command, {env.server_core})
    if code != 0:
        raise Failed(f"fio ended with {code}: {err.strip()[-500:]}")
    return json.loads(out[out.index("{") :])["jobs"][0], command
