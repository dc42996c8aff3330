# SPDX-License-Identifier: MIT
"""Clients that ask for much, many at once, in a process of their own: it must not share an
interpreter with the client whose waits are measured.

    heavy.py PORT KIND CONNECTIONS KEYS PER      asks until its standard input ends, then waits for
                                                what is under way, and prints what came as JSON
"""

import json
import os
import random
import selectors
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from conftest import Resp  # noqa: E402

REQUESTS = 64
LOOK_SECONDS = 0.1  # waits no longer for its sockets, to see when it has not been given the processor


class Replies:
    """Counts whole replies in a stream; remembers errors."""

    def __init__(self):
        self.buffer = b""
        self.skip = 0
        self.open = []  # elements left of the arrays that have begun
        self.errors = []

    def _ended(self):
        while self.open:
            self.open[-1] -= 1
            if self.open[-1] > 0:
                return 0
            self.open.pop()
        return 1

    def feed(self, data):
        data = self.buffer + data
        at = whole = 0
        while True:
            if self.skip:
                taken = min(self.skip, len(data) - at)
                at += taken
                self.skip -= taken
                if self.skip:
                    break
                whole += self._ended()
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            kind, rest = data[at : at + 1], data[at + 1 : end]
            at = end + 2
            if kind == b"*" and int(rest) > 0:
                self.open.append(int(rest))
            elif kind == b"$" and rest != b"-1":
                self.skip = int(rest) + 2
            else:
                if kind == b"-":
                    self.errors.append(rest.decode(errors="replace"))
                whole += self._ended()
        self.buffer = data[at:]
        return whole


def request(kind, chance, keys, per):
    """(bytes, number of replies)"""

    def some():
        return b"key%d" % chance.randrange(keys)

    if kind == "mget":
        return Resp.encode("MGET", *[some() for _ in range(per)]), 1
    if kind == "hot":
        return Resp.encode("MGET", *[b"key%d" % (i % 50) for i in range(per)]), 1
    if kind == "exists":
        return Resp.encode("EXISTS", *[some() for _ in range(per)]), 1
    if kind == "keys":
        return Resp.encode("KEYS", chance.choice(["*", "nothing*"])), 1
    if kind == "scan":
        return Resp.encode("SCAN", chance.getrandbits(63), "COUNT", per), 1
    if kind == "dbsize":
        return Resp.encode("DBSIZE"), 1
    if kind == "pipeline":
        return b"".join(Resp.encode("GET", some()) for _ in range(per)), per
    if kind == "hotpipe":
        return b"".join(Resp.encode("GET", b"key%d" % (i % 50)) for i in range(per)), per
    if kind == "exec":
        words = [Resp.encode("GET", b"{tag}%d" % (i % keys)) for i in range(per)]
        return b"".join([Resp.encode("MULTI")] + words + [Resp.encode("EXEC")]), per + 2
    raise ValueError(kind)


class Client:
    def __init__(self, port, ask):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setblocking(False)
        self.ask = ask
        self.replies = Replies()
        self.next()

    def next(self):
        self.left, self.expected = self.ask()
        self.left = memoryview(self.left)
        self.since = time.monotonic()


def main(port, kind, connections, keys, per, patience=300):
    chance = random.Random(7)
    kinds = kind.split(",")
    ready = [request(kinds[i % len(kinds)], chance, keys, per) for i in range(REQUESTS)]
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        client = Client(port, lambda: ready[chance.randrange(REQUESTS)])
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        selector.register(client.socket, both, client)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("begun", flush=True)
    done = closed = 0
    longest = away = 0.0  # away: so long a socket that had something was not looked at
    errors = {}
    clients = connections
    end = None  # when it was told to end
    while clients > 0 and (end is None or time.monotonic() < end + patience):
        begun = time.monotonic()
        ready_now = selector.select(LOOK_SECONDS)
        woken = time.monotonic()
        away = max(away, woken - begun - LOOK_SECONDS)
        for key, events in ready_now:
            client = key.data
            if client is None:
                end = time.monotonic()
                selector.unregister(sys.stdin)
                continue
            gone = False
            try:
                if events & selectors.EVENT_WRITE and len(client.left):
                    client.left = client.left[client.socket.send(client.left[: 1 << 16]) :]
                    if not len(client.left):
                        selector.modify(client.socket, selectors.EVENT_READ, client)
                if events & selectors.EVENT_READ:
                    data = client.socket.recv(1 << 18)
                    gone = not data
                    client.expected -= client.replies.feed(data)
            except BlockingIOError:
                continue
            except OSError:
                gone = True
            for error in client.replies.errors:
                errors[error] = errors.get(error, 0) + 1
            client.replies.errors.clear()
            whole = client.expected <= 0
            if whole:
                done += 1
                longest = max(longest, time.monotonic() - client.since)
            if gone or (whole and end is not None):
                closed += gone
                clients -= 1
                selector.unregister(client.socket)
                client.socket.close()
            elif whole:
                client.next()
                selector.modify(client.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, client)
        away = max(away, time.monotonic() - woken)
    result = {"done": done, "closed": closed, "unfinished": clients, "errors": errors,
              "longest": round(longest, 3), "away": round(away, 3)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
