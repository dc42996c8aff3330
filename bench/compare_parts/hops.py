# SPDX-License-Identifier: MIT
"""A client that knows on which shard each of its connections is.

The kernel spreads connections over the shards that listen on one port, and a client cannot choose.
It can find out: a request of a key that lives on another shard is counted as forwarded. So
connections are made until there are enough on each shard, and then all of them ask for keys of
their own shard, or all for keys of the other one.

Requests and replies have fixed sizes, so that a client in Python can keep a server busy.
"""

import random
import select
import socket
import time

from .servers import Failed

VALUE = b"v" * 100
REPLY_BYTES = len(b"$100\r\n") + len(VALUE) + 2
KEYS = 20000
SLOTS = 16384


def crc16(data):
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        crc &= 0xFFFF
    return crc


def tags_of_halves():
    """A hash tag of a slot in the lower half, and one in the upper: two shards own these."""
    tags = [None, None]
    for number in range(1000):
        tag = b"t%d" % number
        half = crc16(tag) % SLOTS * 2 // SLOTS
        tags[half] = tags[half] or tag
    return tags


def _words(*words):
    return b"".join([b"*%d\r\n" % len(words)] + [b"$%d\r\n%s\r\n" % (len(w), w) for w in words])


def key(tag, number):
    return b"{%s}%06d" % (tag, number)


def _exactly(sock, size):
    while size > 0:
        data = sock.recv(min(size, 1 << 20))
        if not data:
            raise Failed("the server closed a connection")
        size -= len(data)


def load(port, tags):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for tag in tags:
            for first in range(0, KEYS, 500):
                sock.sendall(b"".join(_words(b"SET", key(tag, n), VALUE)
                                      for n in range(first, first + 500)))
                _exactly(sock, 500 * len(b"+OK\r\n"))


def _is_far(server, sock, tag):
    before = server.forwarded()
    sock.sendall(_words(b"GET", key(tag, 0)))
    _exactly(sock, REPLY_BYTES)
    return server.forwarded() > before


def connect(server, tags, count):
    """count connections on the shard of each tag: [[sockets near the first], [near the second]]."""
    near = [[], []]
    for _ in range(count * 40):
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        half = 1 if _is_far(server, sock, tags[0]) else 0
        if len(near[half]) < count:
            near[half].append(sock)
        else:
            sock.close()
        if all(len(sockets) == count for sockets in near):
            return near
    raise Failed("the kernel does not spread connections over the shards")


def connect_any(server, tags, count):
    near = [[], []]
    for half in range(2):
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            near[half].append(sock)
    return near


def batches(tag, pipeline, count=64):
    draw = random.Random(pipeline)
    return [b"".join(_words(b"GET", key(tag, draw.randrange(KEYS))) for _ in range(pipeline))
            for _ in range(count)]


def measure(server, asks, pipeline, seconds, warmup=0.3):
    """asks: [(socket, tag)]. Closed loop; {rate, cpu_us, hops}: what was answered a second, the
    server's time a request, and the part of the requests that went to another shard."""
    prepared = {tag: batches(tag, pipeline) for _, tag in asks}
    poll = select.epoll()
    state = {}
    for at, (sock, tag) in enumerate(asks):
        poll.register(sock.fileno(), select.EPOLLIN)
        state[sock.fileno()] = [sock, prepared[tag], at, REPLY_BYTES * pipeline]
        sock.sendall(prepared[tag][at % 64])
    done = 0
    now = time.monotonic()
    begin, begun = now + warmup, None
    end = begin + seconds
    while now < end:
        for fd, _ in poll.poll(1.0):
            one = state[fd]
            data = one[0].recv(1 << 18)
            if not data:
                raise Failed("the server closed a connection")
            one[3] -= len(data)
            if one[3] <= 0:
                one[2] += 1
                one[3] = REPLY_BYTES * pipeline
                one[0].sendall(one[1][one[2] % 64])
                done += pipeline
        now = time.monotonic()
        if begun is None and now >= begin:
            forwarded = server.forwarded()
            begun, done, cpu = time.monotonic(), 0, server.cpu()
    took, cpu = time.monotonic() - begun, server.cpu() - cpu
    hops = (server.forwarded() - forwarded) / max(done, 1)
    for sock, _, _, left in state.values():
        _exactly(sock, left)
        poll.unregister(sock.fileno())
    poll.close()
    return {"rate": done / took, "cpu_us": cpu * 1e6 / max(done, 1), "hops": hops}
