# SPDX-License-Identifier: MIT
"""kill -9, power cuts and disk errors: nothing acknowledged is lost, nothing wrong is served."""

import fcntl
import os
import random
import time

import pytest

import rig
from conftest import BUILD, SLOW, Server, wait_for
from load import Load

UNSYNCED = os.path.join(BUILD, "bin", "distkv-server-unsynced")


def need_rig():
    reason = rig.missing()
    if reason:
        pytest.skip(f"power-cut rig: {reason}")


@pytest.mark.smoke
def test_kill_9_under_load_loses_nothing_acknowledged(make_server):
    server = make_server(memory="128MiB")
    chance = random.Random(7)
    for round_number in range(5):
        load = Load(server, seed=round_number)
        load.start()
        wait_for(lambda load=load: load.count() > 0, "the first write")
        time.sleep(0.3 + chance.random())
        server.kill()
        load.join()
        server.start()
        problems = load.check(server)
        assert not problems, problems[:5]
        server.call("FLUSHALL")


def test_kill_9_under_periodic_durability_keeps_what_the_kernel_has(make_server):
    server = make_server(durability="periodic", sync_interval="50ms")
    load = Load(server)
    load.start()
    wait_for(lambda: load.count() > 0, "the first write")
    time.sleep(1)
    server.kill()
    load.join()
    server.start()
    problems = load.check(server)
    assert not problems, problems[:5]


def lock_is_free(server):
    with open(os.path.join(server.data_dir, "LOCK"), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_directory_is_free_when_its_server_has_ended(make_server):
    server = make_server()
    assert server.call("SET", "a", "1") == "OK"
    assert server.stop() == 0
    assert lock_is_free(server), "held after an orderly end"
    server.start()
    server.kill()
    # The kernel takes a moment for the rings; a start waits for a second.
    wait_for(lambda: lock_is_free(server), "the lock", every=0.001)
    server.start()


def test_a_write_of_a_killed_server_does_not_meet_the_next_one(make_server, tmp_path):
    """What the disk was asked for may be done long after the process is gone."""
    with rig.HeldWrites(tmp_path) as writes:
        if writes.missing:
            pytest.skip(writes.missing)
        server = make_server(memory="32MiB", cores="0", scrub_rate="0", wrapper=writes.wrapper)
        for i in range(40):
            assert server.call("SET", f"a{i}", "x" * 100) == "OK"
        writes.hold()
        connection = server.connect()
        connection.send("SET", "stuck", "old")
        looks = []

        def held():
            """Others come and go; the one that is held is there at each look for seconds."""
            looks.append(server.metric("distkv_disk_requests_in_flight") > 0)
            return looks[-20:] == [True] * 20

        wait_for(held, "the write that is held", every=0.1)
        server.kill()
        connection.close()

        server.wrapper = []
        server.start(wait=False)
        assert server.process.wait(timeout=60 * SLOW) == 1, server.log()
        assert "in use" in server.log()
        writes.let_go()
        wait_for(lambda: lock_is_free(server), "the end of the write")
        server.start()
        flushes = server.metric("distkv_flushes_total")
        count = 0
        with server.connect() as connection:
            while server.metric("distkv_flushes_total") < flushes + 3:
                for i in range(count, count + 200):
                    connection.send("SET", f"k{i}", f"{i}-" + "y" * 3000)
                for i in range(200):
                    assert connection.read() == "OK"
                count += 200
        server.kill()
        server.start()
        with server.connect() as connection:
            for i in range(40):
                assert connection.call("GET", f"a{i}") == b"x" * 100
            for i in range(count):
                assert connection.call("GET", f"k{i}").startswith(b"%d-" % i)


def cut_rounds(tmp_path, rounds, seed, binary=None, filesystem="ext4", compacts=False):
    """Power cuts at random moments; returns (acknowledged writes, problems, flushes during load,
    compactions that ran during load). The last cut comes after a flush and, where compacts says so,
    after a compaction has begun."""
    chance = random.Random(seed)
    count = flushes = compactions = 0
    problems = []
    (tmp_path / "disk").mkdir()
    with rig.Disk(tmp_path / "disk", size_mib=1024, filesystem=filesystem) as disk:
        server = Server(os.path.join(disk.mount_point, "data"), tmp_path, wait=False,
                        binary=binary, memory="64MiB", cores="0", scrub_rate="0")
        try:
            for round_number in range(rounds):
                server.wait_ready()
                flushes_before = server.metric("distkv_flushes_total")
                compactions_before = server.metric("distkv_compactions_total")

                def compacted(before=compactions_before):
                    return (server.metric("distkv_compactions_total") - before
                            + server.metric("distkv_compactions_active"))

                load = Load(server, seed=seed * 1000 + round_number, keys=5000)
                load.start()
                wait_for(lambda load=load: load.count() > 0, "the first write")
                # Long enough, at times, for flushes and compactions.
                time.sleep(0.2 + chance.random() * (3 if round_number % 3 == 2 else 0.8))
                seen = server.metric("distkv_flushes_total") - flushes_before
                merged = compacted()
                end = time.monotonic() + 100 * SLOW
                while (round_number == rounds - 1 and time.monotonic() < end
                       and (seen <= 0 or (compacts and merged <= 0))):
                    time.sleep(0.1 + 0.2 * chance.random())
                    seen = server.metric("distkv_flushes_total") - flushes_before
                    merged = compacted()
                flushes += max(0, seen)
                compactions += max(0, merged)
                disk.power_cut()
                server.kill()
                load.join()
                count += load.count()
                disk.power_cycle()
                server.start(wait=False)
                try:
                    server.wait_ready()
                    problems += load.check(server)
                except RuntimeError as error:
                    problems.append(str(error))
                    break
                if problems:
                    break
                server.call("FLUSHALL")
        finally:
            server.kill()
    return count, problems, flushes, compactions


@pytest.mark.rig
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_power_cuts_lose_nothing_acknowledged(tmp_path, filesystem):
    need_rig()
    rounds = 2 if filesystem == "xfs" else 3
    count, problems, flushes, _ = cut_rounds(tmp_path, rounds, 1, filesystem=filesystem)
    assert not problems, problems[:5]
    assert count > 100 and flushes > 0


@pytest.mark.rig
def test_the_power_cut_rig_catches_a_build_that_does_not_sync(tmp_path):
    """The rig is worth something only if it fails a server that leaves the sync out."""
    need_rig()
    if not os.path.exists(UNSYNCED):
        pytest.fail(f"{UNSYNCED} was not built")
    for seed in range(5):
        place = tmp_path / str(seed)
        place.mkdir()
        count, problems, flushes, _ = cut_rounds(place, 1, 100 + seed, binary=UNSYNCED)
        assert flushes > 0
        if count > 0 and problems:
            return
    pytest.fail("a build whose log does not sync lost nothing in 5 power cuts")


@pytest.mark.soak
@pytest.mark.rig
def test_fifty_power_cuts_lose_nothing_acknowledged(tmp_path):
    need_rig()
    for part in range(5):
        place = tmp_path / str(part)
        place.mkdir()
        filesystem = "xfs" if part % 2 else "ext4"
        count, problems, flushes, compactions = cut_rounds(place, 10, 1000 + part, compacts=True,
                                                           filesystem=filesystem)
        assert not problems, problems[:5]
        assert count > 1000 and flushes > 0 and compactions > 0


# ---- errors of the disk ----


def disk_server(disk, tmp_path, **options):
    return Server(os.path.join(disk.mount_point, "data"), tmp_path, memory="64MiB", cores="0",
                  scrub_rate="0", **options)


def wait_for_error(server, seconds=60.0):
    """Writes until the server answers an error or, as the outcome is unknown, closes; returns its
    text."""
    end = time.monotonic() + seconds
    with server.connect() as connection:
        number = 0
        while time.monotonic() < end:
            number += 1
            connection.send("SET", f"try{number}", "x" * 1000)
            try:
                reply = connection.read()
            except ConnectionError as error:
                return str(error)
            if isinstance(reply, Exception):
                return str(reply)
    return ""


@pytest.mark.rig
@pytest.mark.parametrize("kind", ["sync", "write"])
def test_a_failed_log_write_or_sync_stops_writes_for_good(tmp_path, kind):
    need_rig()
    (tmp_path / "disk").mkdir()
    with rig.Disk(tmp_path / "disk", volatile=kind == "sync", errors=True) as disk:
        server = disk_server(disk, tmp_path)
        try:
            for i in range(200):
                server.call("SET", f"good{i}", "v" * 100)
            disk.fail("write")
            text = wait_for_error(server)
            assert text, "writes went on after the disk failed"
            disk.heal("write")
            # Never retried: what the kernel dropped would pass for durable.
            with pytest.raises(Exception, match="MISCONF|READONLY|ERR"):
                server.call("SET", "later", "v")
            # Reads go on.
            assert server.call("GET", "good7") == b"v" * 100
            server.wait_metric("distkv_store_failed", lambda value: value == 2)
            wait_for(lambda: server.status()["state"] == "failed", "the status to say so")
            server.kill()
            # The file system has given up, too: it is mounted anew, as an operator would.
            disk.power_cycle()
            server.start()
            for i in range(200):
                assert server.call("GET", f"good{i}") == b"v" * 100
            assert server.call("SET", "again", "v") == "OK"
        finally:
            server.kill()


@pytest.mark.rig
def test_a_failed_read_is_an_error_and_not_an_absent_key(tmp_path):
    need_rig()
    (tmp_path / "disk").mkdir()
    with rig.Disk(tmp_path / "disk", volatile=False, errors=True) as disk:
        server = disk_server(disk, tmp_path)
        try:
            with server.connect() as connection:
                for i in range(20000):
                    connection.send("SET", f"k{i}", "v" * 1000)
                for _ in range(20000):
                    assert connection.read() == "OK"
            server.restart()
            disk.fail("read")
            failures = 0
            with server.connect() as connection:
                for i in range(0, 20000, 50):
                    connection.send("GET", f"k{i}")
                    reply = connection.read()
                    assert reply is not None, f"k{i}: an error of the disk passed for absence"
                    failures += isinstance(reply, Exception)
            assert failures > 0
            disk.heal("read")
            for i in range(0, 20000, 500):
                assert server.call("GET", f"k{i}") == b"v" * 1000
            assert server.call("SET", "after", "v") == "OK"
        finally:
            server.kill()


# ---- a full disk ----


@pytest.mark.rig
def test_a_full_disk_stops_writes_and_they_resume_when_space_returns(tmp_path):
    need_rig()
    (tmp_path / "disk").mkdir()
    with rig.Disk(tmp_path / "disk", size_mib=256, volatile=False) as disk:
        server = disk_server(disk, tmp_path, disk_reserve="32MiB")
        ballast = os.path.join(disk.mount_point, "ballast")
        try:
            server.call("SET", "before", "v")
            fd = os.open(ballast, os.O_CREAT | os.O_WRONLY)
            free = os.statvfs(disk.mount_point)
            os.posix_fallocate(fd, 0, max(4096, free.f_bavail * free.f_frsize - (16 << 20)))
            os.close(fd)
            text = wait_for_error(server)
            assert text, "writes went on on a full disk"
            assert "space" in text.lower() or "disk" in text.lower(), text
            assert server.call("GET", "before") == b"v"
            wait_for(lambda: server.status()["state"] == "no space", "the status to say so")
            os.unlink(ballast)
            assert set_until_taken(server) == "OK"
            assert server.call("GET", "after") == b"v"
            assert server.stop() == 0, server.log()
        finally:
            server.kill()


def fill(disk, name, left):
    """All of the disk but left bytes."""
    fd = os.open(os.path.join(disk.mount_point, name), os.O_CREAT | os.O_WRONLY)
    try:
        free = os.statvfs(disk.mount_point)
        os.posix_fallocate(fd, 0, max(4096, free.f_bavail * free.f_frsize - left))
    finally:
        os.close(fd)


def set_until_taken(server, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            return server.call("SET", "after", "v")
        except Exception as error:
            assert time.monotonic() < end, f"writes did not resume: {error}"
            time.sleep(0.1)


@pytest.mark.rig
@pytest.mark.parametrize("durability", ["group", "none"])
def test_a_full_disk_is_no_failure_of_a_stop_when_the_log_has_all(tmp_path, durability):
    need_rig()
    (tmp_path / "disk").mkdir()
    with rig.Disk(tmp_path / "disk", size_mib=256, volatile=False) as disk:
        server = disk_server(disk, tmp_path, disk_reserve="1MiB", durability=durability)
        try:
            with server.connect() as connection:
                for i in range(10000):
                    connection.send("SET", f"k{i}", os.urandom(500).hex())
                for _ in range(10000):
                    assert connection.read() == "OK"
            fill(disk, "ballast", 0)
            with open(os.path.join(disk.mount_point, "last"), "wb", buffering=0) as last:
                with pytest.raises(OSError):
                    while True:
                        last.write(bytes(1 << 16))
            assert server.stop() == (0 if durability == "group" else 5), server.log()
            if durability != "group":
                return
            assert "the log is replayed at the next start" in server.log()
            os.unlink(os.path.join(disk.mount_point, "ballast"))
            server.start()
            assert server.call("DBSIZE") == 10000
        finally:
            server.kill()


@pytest.mark.rig
@pytest.mark.parametrize("kill", [False, True])
def test_flushall_makes_room_on_a_full_disk(tmp_path, kill):
    need_rig()
    (tmp_path / "disk").mkdir()
    with rig.Disk(tmp_path / "disk", size_mib=256, volatile=False) as disk:
        server = disk_server(disk, tmp_path, disk_reserve="1MiB")
        try:
            with server.connect() as connection:
                for i in range(20000):
                    connection.send("SET", f"k{i}", os.urandom(500).hex())
                for _ in range(20000):
                    assert connection.read() == "OK"
            fill(disk, "ballast", 4 << 20)
            assert "MISCONF" in wait_for_error(server)
            wait_for(lambda: server.status()["state"] == "no space", "the status to say so")
            fill(disk, "last", 0)
            assert server.call("GET", "k1") is not None
            assert server.call("FLUSHALL") == "OK"
            if kill:
                server.kill()
                server.start()
            assert server.call("GET", "k1") is None
            assert set_until_taken(server) == "OK"
            wait_for(lambda: server.status()["state"] != "no space", "the status to say so")
            assert server.call("DBSIZE") == 1
            assert server.stop() == 0, server.log()
        finally:
            server.kill()


@pytest.mark.rig
def test_keys_can_be_deleted_on_a_full_disk_and_give_room(tmp_path):
    need_rig()
    (tmp_path / "disk").mkdir()
    with rig.Disk(tmp_path / "disk", size_mib=384, volatile=False) as disk:
        server = disk_server(disk, tmp_path, disk_reserve="96MiB")
        count = 60000
        try:
            with server.connect() as connection:
                for i in range(count):
                    connection.send("SET", f"k{i}", os.urandom(500).hex())
                    if i % 1000 == 999:
                        for _ in range(1000):
                            assert connection.read() == "OK"
                fill(disk, "ballast", 90 << 20)
                wait_for(lambda: server.status()["state"] == "no space", "the status to say so")
                for command in (("SET", "k0", "v"), ("APPEND", "k0", "v"),
                                ("EXPIRE", "k0", "100"), ("INCR", "n"), ("MSET", "k0", "v")):
                    with pytest.raises(Exception, match="MISCONF"):
                        server.call(*command)
                assert server.call("DEL", "k0", "absent") == 1
                assert server.call("UNLINK", "k1") == 1
                assert len(server.call("GETDEL", "k2")) == 1000
                assert server.call("EXPIRE", "k3", "-1") == 1
                assert server.call("EXISTS", "k0", "k1", "k2", "k3") == 0
                assert server.call("EXISTS", "k4") == 1
                for i in range(4, count, 2):
                    connection.send("DEL", f"k{i}")
                for i in range(4, count, 2):
                    assert connection.read() == 1, i
            assert set_until_taken(server) == "OK"
            assert server.call("DBSIZE") == (count - 4) // 2 + 1
            assert server.stop() == 0, server.log()
        finally:
            server.kill()
