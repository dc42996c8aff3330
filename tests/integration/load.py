# SPDX-License-Identifier: MIT
"""A writer that remembers what was acknowledged, for tests that then take the server away.

Each of `workers` threads owns its keys and pipelines SETs (and now and then a DEL or a large value)
over one connection. A key's values are numbered: after a crash the stored number must be at least
the last acknowledged one and at most the last one sent.
"""

import random
import threading

from conftest import Resp


def value_of(key, version, size):
    """Self-describing, so that a mix-up shows."""
    head = b"%s#%d#%d#" % (key, version, size)
    pattern = b"%08x" % (hash_of(key, version) & 0xFFFFFFFF)
    return head + (pattern * (size // 8 + 1))[:size]


def hash_of(key, version):
    value = 2166136261 ^ version
    for byte in key:
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


class Worker(threading.Thread):
    def __init__(self, port, name, seed, keys, depth, sizes):
        super().__init__(daemon=True)
        self.port = port
        self.label = name
        self.random = random.Random(seed)
        self.keys = keys
        self.depth = depth
        self.sizes = sizes
        # key -> list of (version, size or None for a delete): [acknowledged last, then unsure ones]
        self.acknowledged = {}
        self.sent = {}
        self.versions = {}
        self.count = 0
        self.errors = []
        self.stopping = threading.Event()

    def run(self):
        try:
            connection = Resp(self.port)
        except OSError:
            return
        flying = []
        try:
            while not self.stopping.is_set():
                batch = []
                for _ in range(self.depth):
                    key = b"%s:%d" % (self.label, self.random.randrange(self.keys))
                    version = self.versions.get(key, 0) + 1
                    self.versions[key] = version
                    if self.random.random() < 0.05:
                        size = None
                        batch.append(Resp.encode("DEL", key))
                    else:
                        size = self.random.choice(self.sizes)
                        batch.append(Resp.encode("SET", key, value_of(key, version, size)))
                    self.sent.setdefault(key, []).append((version, size))
                    flying.append((key, version, size))
                connection.send_raw(b"".join(batch))
                while flying:
                    reply = connection.read()
                    key, version, size = flying.pop(0)
                    if reply == "OK" or isinstance(reply, int):
                        self.acknowledged[key] = (version, size)
                        self.sent[key] = [one for one in self.sent[key] if one[0] > version]
                        self.count += 1
                    else:
                        self.errors.append(str(reply))
        except (OSError, ConnectionError, ValueError):
            pass
        finally:
            connection.close()


class Load:
    def __init__(self, server, workers=4, keys=2000, depth=16, sizes=(10, 100, 1000, 6000), seed=1):
        self.workers = [
            Worker(server.port, b"w%d" % i, seed * 100 + i, keys, depth, sizes)
            for i in range(workers)
        ]

    def start(self):
        for worker in self.workers:
            worker.start()

    def stop(self):
        for worker in self.workers:
            worker.stopping.set()
        self.join()

    def join(self):
        for worker in self.workers:
            worker.join(timeout=60)
            assert not worker.is_alive()

    def count(self):
        return sum(worker.count for worker in self.workers)

    def errors(self):
        return [error for worker in self.workers for error in worker.errors]

    def check(self, server):
        """The lost and the wrong, as sentences; empty when every acknowledged write is there."""
        problems = []
        with server.connect() as connection:
            for worker in self.workers:
                keys = sorted(worker.versions)
                for start in range(0, len(keys), 200):
                    chunk = keys[start : start + 200]
                    connection.send_raw(b"".join(Resp.encode("GET", key) for key in chunk))
                    for key in chunk:
                        problem = self._judge(worker, key, connection.read())
                        if problem:
                            problems.append(problem)
        return problems

    @staticmethod
    def _judge(worker, key, reply):
        allowed = [worker.acknowledged.get(key, (0, None))] + worker.sent.get(key, [])
        for version, size in allowed:
            if reply is None if size is None else reply == value_of(key, version, size):
                return None
        shown = reply if reply is None or isinstance(reply, Exception) else bytes(reply[:40])
        return f"{key!r} is {shown!r}, acknowledged {allowed[0]}, unsure {allowed[1:]}"
