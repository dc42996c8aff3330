# SPDX-License-Identifier: MIT
"""The native protocol byte by byte, as docs/native-protocol.md has it: what a client library hides."""

import json
import os
import socket
import struct
import time

import pytest

from conftest import SLOW, wait_for

CRC_TABLE = []
for index in range(256):
    crc = index
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    CRC_TABLE.append(crc)

HELLO, PING, GET, PUT, SCAN, STATUS, TOPOLOGY = 1, 2, 3, 4, 7, 13, 17
SNAPSHOT_OPEN, SNAPSHOT_CLOSE = 8, 9
OK, NOT_FOUND, CONFLICT, TOO_LARGE, UNSUPPORTED, BAD_FRAME = 0, 1, 2, 4, 5, 6
BODY_BYTES_MAX = 16_773_072
OVERLOADED, UNKNOWN_OUTCOME, CLOSING, SNAPSHOT_GONE, UNAUTHENTICATED = 7, 14, 16, 17, 18
IF_PRESENT = 2
FLAG_REPLY, FLAG_REPLAYED = 1, 2


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ CRC_TABLE[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def frame(opcode, body, request_id=1, age=0, size=None, version=1, flags=0):
    header = b"\xd5DKV" + struct.pack(
        "<BBHQQIIHHII", version, opcode, flags, request_id, 0, 0,
        len(body) if size is None else size, 0, 0, crc32c(body), age)
    return header + struct.pack("<I", crc32c(header)) + body


def put(key, value, write_id, condition=0, **header):
    operation = struct.pack("<BBBBHHIQQ", 1, condition, 0, 0, len(key), 0, len(value), 0, 0)
    operation += key + value
    return frame(PUT, write_id.to_bytes(16, "little") + operation, **header)


class Native:
    def __init__(self, server):
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=60 * SLOW)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def _exactly(self, size):
        got = b""
        while len(got) < size:
            part = self.sock.recv(size - len(got))
            assert part, "closed by the server"
            got += part
        return got

    def read(self):
        """(status, flags, request id, body)"""
        header = self._exactly(48)
        _, _, _, flags, request_id, _, _, size, _, status = struct.unpack("<4sBBHQQIIHH", header[:36])
        assert flags & FLAG_REPLY
        return status, flags, request_id, self._exactly(size)

    def call(self, data):
        self.sock.sendall(data)
        return self.read()


@pytest.mark.smoke
def test_a_write_that_is_sent_again_is_answered_and_not_done_again(server):
    with Native(server) as native:
        status, flags, _, first = native.call(put(b"k", b"1", 7))
        assert (status, flags & FLAG_REPLAYED) == (OK, 0)
        assert native.call(put(b"k", b"2", 8))[0] == OK
        status, flags, _, again = native.call(put(b"k", b"1", 7, age=50))
        assert (status, flags & FLAG_REPLAYED) == (OK, FLAG_REPLAYED)
        assert again == first
        assert server.call("GET", "k") == b"2"
        # Never seen, and nothing that young was forgotten: it is the first to arrive.
        assert native.call(put(b"k", b"3", 9, age=50))[0] == OK


@pytest.mark.smoke
def test_a_condition_that_did_not_hold_is_answered_again_and_not_tried_again(server):
    with Native(server) as native:
        status, flags, _, first = native.call(put(b"k", b"1", 7, condition=IF_PRESENT, age=50))
        assert (status, flags & FLAG_REPLAYED) == (CONFLICT, 0)
        assert native.call(put(b"k", b"2", 8))[0] == OK
        # The first attempt of 7 comes only now: its connection had been slow.
        status, flags, _, again = native.call(put(b"k", b"1", 7, condition=IF_PRESENT))
        assert (status, flags & FLAG_REPLAYED) == (CONFLICT, FLAG_REPLAYED)
        assert again == first
        assert server.call("GET", "k") == b"2"


def test_a_write_that_may_have_been_forgotten_has_an_unknown_outcome(make_server):
    server = make_server(cores="0")
    with Native(server) as native:
        assert native.call(put(b"k", b"1", 1))[0] == OK
        for start in range(2, 8400, 200):
            native.sock.sendall(b"".join(put(b"k", b"x", i) for i in range(start, start + 200)))
            assert all(native.read()[0] == OK for _ in range(200))
        # 1 is forgotten. Its retry was first sent before the youngest that is forgotten, too.
        assert native.call(put(b"k", b"1", 1, age=600_000))[0] == UNKNOWN_OUTCOME
        assert server.call("GET", "k") == b"x"
        # A retry so young that its first attempt would still be known is done; a new write anyway.
        assert native.call(put(b"k", b"2", 10_000))[0] == OK
        assert server.call("GET", "k") == b"2"


def test_a_retry_may_have_been_under_way_for_long(make_server):
    server = make_server(cores="0")
    with Native(server) as first, Native(server) as second:
        assert first.call(put(b"k", b"1", 1))[0] == OK
        for start in range(2, 8400, 200):
            first.sock.sendall(b"".join(put(b"k", b"x", i) for i in range(start, start + 200)))
            assert all(first.read()[0] == OK for _ in range(200))
        # Sent again a moment after it was sent: since then it has been on its way, or so it may be
        # on a connection that was there at that time. On a new one it cannot.
        assert second.call(put(b"k", b"1", 1, age=1))[0] == UNKNOWN_OUTCOME
        assert server.call("GET", "k") == b"x"
        time.sleep(0.05)
        with Native(server) as third:
            accepted(third)
            assert third.call(put(b"k", b"2", 10_000, age=1))[0] == OK


def accepted(native):
    """The server knows of the connection, which it may do later than who connects; and some of its
    clock has gone by since."""
    assert native.call(frame(STATUS, b""))[0] == OK
    time.sleep(0.05)


def write_many(native, key, first, count, **header):
    for start in range(first, first + count, 200):
        ids = range(start, min(start + 200, first + count))
        native.sock.sendall(b"".join(put(key, b"x", i, **header) for i in ids))
        assert all(native.read()[0] == OK for _ in ids)


def test_a_first_attempt_that_comes_after_its_retry_is_not_done_again(make_server):
    server = make_server(cores="0")
    with Native(server) as slow, Native(server) as native:
        accepted(slow)
        # Sent over `slow`, which was given up; so sent again.
        status, _, _, first = native.call(put(b"k", b"1", 1, age=10))
        assert status == OK
        write_many(native, b"k", 2, 8400)
        status, flags, _, again = slow.call(put(b"k", b"1", 1))
        assert (status, flags & FLAG_REPLAYED) == (OK, FLAG_REPLAYED)
        assert again == first
        assert server.call("GET", "k") == b"x"


def test_a_connection_ends_whose_first_attempts_may_have_been_done(make_server):
    server = make_server(cores="0")
    with Native(server) as slow:
        accepted(slow)
        with Native(server) as native:
            accepted(native)
            write_many(native, b"k", 1, 8192, age=70)
        time.sleep(0.05)
        with Native(server) as native:
            accepted(native)
            assert native.call(put(b"k", b"x", 9000, age=1))[0] == OK  # 1 is forgotten
            # `slow` is older than the first attempt of what is forgotten, and might bring it.
            assert slow.call(put(b"k", b"1", 1))[0] == CLOSING
            assert slow.call(put(b"k", b"2", 10_000))[0] == CLOSING
            assert server.call("GET", "k") == b"x"
            assert slow.call(put(b"k", b"3", 0))[0] == OK  # without an id nothing is promised
            assert slow.call(frame(GET, b"k"))[0] == OK
        time.sleep(0.05)
        with Native(server) as young:
            assert young.call(put(b"k", b"4", 10_000))[0] == OK


@pytest.mark.smoke
def test_large_frames_wait_for_a_password(make_server):
    server = make_server(requirepass="s3cret")
    with Native(server) as native:
        native.sock.sendall(frame(PUT, b"", size=8 << 20)[:48])
        assert native.read()[0] == UNAUTHENTICATED
        assert native.sock.recv(1) == b""


@pytest.mark.parametrize("words, detail, unknown", [
    (b"this server speaks version 1 of the protocol", 1, {"version": 2, "flags": 1 << 15}),
    (b"unknown flags: this server knows bits 0 to 3", 0, {"flags": 1 << 4}),
    (b"unknown opcode", 0, {"opcode": 99}),
])
def test_what_is_unknown_is_named(server, words, detail, unknown):
    with Native(server) as native:
        opcode = unknown.pop("opcode", PING)
        status, _, request_id, body = native.call(frame(opcode, b"x", request_id=7, **unknown))
        assert (status, request_id) == (UNSUPPORTED, 7)
        assert (struct.unpack("<Q", body[:8])[0], body[8:]) == (detail, words)
        assert native.call(frame(PING, b"x"))[3] == b"x"


def test_any_request_id_comes_back(server):
    with Native(server) as native:
        for request_id in (0, 1, (1 << 64) - 1):
            assert native.call(frame(PING, b"x", request_id=request_id)) == (
                OK, FLAG_REPLY, request_id, b"x")


def test_a_body_is_accepted_up_to_the_limit_that_hello_says(server):
    """By the frame alone: no request has so long a body, which is told, and the connection goes on."""
    with Native(server) as native:
        _, _, _, body = native.call(frame(HELLO, struct.pack("<BBBBB3xQ", 1, 1, 0, 0, 0, 0)))
        assert struct.unpack("<I", body[56:60])[0] == BODY_BYTES_MAX
        status, _, request_id, _ = native.call(frame(PING, bytes(BODY_BYTES_MAX), request_id=7))
        assert (status, request_id) == (TOO_LARGE, 7)
        assert native.call(frame(PING, b"x", request_id=8)) == (OK, FLAG_REPLY, 8, b"x")
        # One more is known from the header, and what follows cannot be stepped over.
        native.sock.sendall(frame(PING, b"", request_id=9, size=BODY_BYTES_MAX + 1))
        status, _, request_id, body = native.read()
        assert (status, request_id) == (BAD_FRAME, 0)
        assert str(BODY_BYTES_MAX).encode() in body
        assert native.sock.recv(1) == b""


@pytest.mark.smoke
def test_status_has_the_same_names_on_both_ports(server):
    with Native(server) as native:
        status, _, _, body = native.call(frame(STATUS, b""))
        assert status == OK
        native_status = json.loads(body)
    admin_status = server.status()
    assert set(admin_status) - set(native_status) == {"resident_bytes"}
    assert set(native_status) <= set(admin_status)
    assert [set(shard) for shard in native_status["shards"]] == [
        set(shard) for shard in admin_status["shards"]]
    for name in ("version", "node_id", "run_id", "ready", "state", "port", "data_dir",
                 "shard_count", "memory_limit_bytes"):
        assert native_status[name] == admin_status[name]


@pytest.mark.smoke
def test_errors_of_the_native_protocol_are_counted(make_server):
    server = make_server(cores="0")
    with Native(server) as native:
        # That a key is not there is an answer.
        assert native.call(frame(GET, b"absent"))[0] == NOT_FOUND
        scan = struct.pack("<QQQIIBBBBHHQ", 12345, 0, (1 << 64) - 1, 10, 1000, 0, 0, 0, 0, 0, 0, 0)
        assert native.call(frame(SCAN, scan))[0] == SNAPSHOT_GONE
    server.wait_metric("distkv_errors_total", lambda value: value > 0)
    assert server.metric("distkv_errors_total") == 1


TOKENS = 1 << 64
SNAPSHOTS_MAX = 16


def page(native, snapshot, token=0):
    """The status of a page that begins there."""
    body = struct.pack("<QQQIIBBBBHHQ", snapshot, token, TOKENS - 1, 10, 1000, 0, 0, 0, 0, 0, 0, 0)
    return native.call(frame(SCAN, body))[0]


def snapshot_open(native, lease_ms):
    """(status, snapshot)"""
    status, _, _, body = native.call(frame(SNAPSHOT_OPEN, struct.pack("<I", lease_ms)))
    return status, struct.unpack("<Q", body[:8])[0]


def read_on(native, snapshot, token, lease):
    """For longer than its lease. False: it was gone, and this process had not asked for so long that it
    may have been."""
    begun = asked = time.monotonic()
    while asked < begun + 2.5 * lease:
        status = page(native, snapshot, token)
        now = time.monotonic()
        if status == SNAPSHOT_GONE and now - asked > lease / 2:
            return False
        assert status == OK
        time.sleep(lease / 8)
        asked = now
    return True


@pytest.mark.smoke
def test_a_snapshot_is_kept_on_all_shards_while_one_is_read(make_server):
    """As an export reads it: all of the first shard, and only then anything of the second. Again with a
    longer lease when the machine was so busy that nobody read for half of it."""
    server = make_server(cores="0,1")
    for lease in (1.0 * SLOW, 3.0 * SLOW, 9.0 * SLOW):
        with Native(server) as native:
            status, snapshot = snapshot_open(native, int(lease * 1000))
            assert status == OK
            # And the first one while the second one is.
            if not (read_on(native, snapshot, 0, lease) and
                    read_on(native, snapshot, TOKENS // 2, lease) and
                    read_on(native, snapshot, 0, lease / 10)):
                continue
            # Used by nobody it is dropped, on both.
            server.wait_metric("distkv_snapshots_open", lambda value: value == 0)
            assert page(native, snapshot, 0) == SNAPSHOT_GONE
            assert page(native, snapshot, TOKENS // 2) == SNAPSHOT_GONE
            return
    pytest.fail("this machine is so busy that nobody read for seconds")


@pytest.mark.smoke
def test_a_place_for_a_snapshot_is_free_again_when_one_has_ended(make_server):
    server = make_server(cores="0,1")
    with Native(server) as native:

        def fill(lease_ms):
            """What opening one more than there may be is answered, and those that were opened."""
            opened = [snapshot_open(native, lease_ms) for _ in range(SNAPSHOTS_MAX + 1)]
            return [status for status, _ in opened], [one for status, one in opened if status == OK]

        def close(snapshots):
            for snapshot in snapshots:
                body = struct.pack("<Q", snapshot)
                assert native.call(frame(SNAPSHOT_CLOSE, body))[0] == OK
                assert native.call(frame(SNAPSHOT_CLOSE, body))[0] == SNAPSHOT_GONE

        full = [OK] * SNAPSHOTS_MAX + [OVERLOADED]
        statuses, snapshots = fill(300_000)
        assert statuses == full
        # On both shards, and told so; they last for longer than is waited here.
        server.wait_metric("distkv_snapshots_open", lambda value: value >= 2 * SNAPSHOTS_MAX)
        close(snapshots)
        begun = time.monotonic()
        statuses, _ = fill(int(3000 * SLOW))
        assert statuses == full or time.monotonic() - begun > 2.5 * SLOW  # the first have run out

        def all_free():
            statuses, snapshots = fill(60_000)
            close(snapshots)
            return statuses == full

        wait_for(all_free, "the places of those that have run out")


def hello(native, features):
    """(shard, features) of the reply."""
    status, _, _, body = native.call(frame(HELLO, struct.pack("<BBBBB3xQ", 1, 1, 0, 0, 0, features)))
    assert status == OK
    return body[1], struct.unpack("<Q", body[8:16])[0]


def test_older_clients_are_told_what_they_have_always_read(make_server):
    count = 2 if os.cpu_count() > 1 else 1
    server = make_server(cores="0,1" if count == 2 else "0")
    shards = set()
    while len(shards) < count:  # the kernel deals them out
        with Native(server) as native:
            assert hello(native, 0) == (0, 0)
            shard, features = hello(native, 1)
            assert features == 1  # one address: there is nothing more to learn
            shards.add(shard)
            # features that are not known here are not used
            assert hello(native, 1 | 1 << 40) == (shard, 1)
    assert shards == set(range(count))


def test_topology_of_a_node_by_itself(server):
    with Native(server) as native:
        status, _, _, body = native.call(frame(TOPOLOGY, struct.pack("<Q", 0)))
        assert status == OK
        epoch, nodes, width, _, partitions, size = struct.unpack("<QHBBII", body[:20])
        assert (nodes, width, partitions) == (1, 1, 4096)
        id_size, host_size, port, shards, shard_port = struct.unpack("<BBHHH", body[20:28])
        assert (host_size, port, shard_port) == (0, server.port, 0) and shards >= 1
        assert size == 8 + id_size and body[20 + size:] == bytes(2 * 4096)
        # nothing is newer
        status, _, _, body = native.call(frame(TOPOLOGY, struct.pack("<Q", epoch)))
        assert status == OK and body == struct.pack("<QHBBII", epoch, 0, 0, 0, 0, 0)
