# SPDX-License-Identifier: MIT
"""distkv-client against a real server, command by command."""

import contextlib
import json
import os
import re
import subprocess
import time

import pytest

from conftest import CLIENT, SLOW, wait_for


@pytest.fixture
def client(server):
    def run(*words, data=None, code=0):
        done = subprocess.run(
            [CLIENT, "--server", f"127.0.0.1:{server.port}", *words], input=data,
            capture_output=True, timeout=60 * SLOW, check=False)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    run.server = server
    return run


@pytest.mark.smoke
def test_put_get_delete(client):
    client("put", "k", "v")
    assert client("get", "k").strip() == b"v"
    client("put", "from-stdin", "-", data=b"\x00\xff\r\n")
    assert client.server.call("GET", "from-stdin") == b"\x00\xff\r\n"
    client("put", "k", "w", "--if-absent", code=1)
    client("put", "none", "w", "--if-present", code=1)
    assert client("get", "k").strip() == b"v"
    version = json.loads(client("--json", "get", "k"))["version"]
    client("put", "k", "w", "--if-version", str(version))
    client("put", "k", "x", "--if-version", str(version), code=1)
    assert client("get", "k").strip() == b"w"
    client("delete", "k")
    client("get", "k", code=1)
    client("delete", "k", "--if-present", code=1)


def test_time_to_live(client):
    client("put", "k", "v", "--ttl", "100s")
    assert 0 < client.server.call("TTL", "k") <= 100
    client("ttl", "k")
    client("expire", "k", "never")
    assert client.server.call("TTL", "k") == -1
    client("expire", "k", "50s")
    assert 0 < client.server.call("PTTL", "k") <= 50000
    client("expire", "nobody", "50s", code=1)
    client("ttl", "nobody", code=1)


def test_a_line_with_a_zero_byte_is_refused_whole(client):
    client("put", "k", "v")
    client(data=b"put k w\0 --if-absent\nput other x\n", code=2)
    assert client("get", "k") == b"v"
    assert client("get", "other") == b"x"


def test_batches(client):
    client("batch", "--atomic", "put {a}1 x", "put {a}2 'y y'", "delete {a}3")
    assert client.server.call("MGET", "{a}1", "{a}2") == [b"x", b"y y"]
    client("batch", "--atomic", "put a 1", "put b 2", code=2)
    assert client.server.call("EXISTS", "a", "b") == 0
    client("batch", "put a 1", "put b 2")
    assert client.server.call("EXISTS", "a", "b") == 2
    client("batch", data=b"put c 3\ndelete a\n")
    assert client.server.call("MGET", "a", "c") == [None, b"3"]
    client("batch", "steal a 1", code=2)


def test_scans_and_counts(client):
    for i in range(300):
        client.server.call("SET", f"key:{i}", f"value {i}")
    for i in range(20):
        client.server.call("SET", "{tag}%02d" % i, "t")
    assert len(client("scan", "--keys-only").split()) == 320
    assert len(client("scan", "--limit", "7", "--keys-only").split()) == 7
    tagged = client("scan", "--prefix", "{tag}", "--keys-only").split()
    assert tagged == [b"{tag}%02d" % i for i in range(20)]
    assert len(client("scan", "--match", "key:1[0-4]*", "--snapshot",
                      "--keys-only").split()) == 5 * 11
    lines = [json.loads(line) for line in client("--json", "scan", "--prefix", "key:").splitlines()]
    assert len(lines) == 300 and all("key" in line for line in lines)
    assert b"320" in client("count")
    assert b"0" in client("--keyspace", "3", "count")


def test_dashes_end_the_options_before_and_behind_the_command(client):
    client("put", "--", "-x", "dashed")
    assert client("get", "--", "-x") == client("--", "get", "-x") == b"dashed"
    client("get", "-x", code=2)


def test_what_belongs_to_a_request_may_stand_before_the_command(client):
    client("--consistency", "one", "put", "k", "v")
    assert client("--consistency=all", "get", "k").strip() == b"v"
    client("--consistency", "two", "get", "k", code=2)
    client("--consistency", "one", "scan", code=2)  # which has no such option
    client("--consistency", "one", data=b"get k\n", code=2)  # nor has the prompt
    # --siblings and --context: test_cluster_siblings.py; a node by itself keeps none.
    client("--siblings", "put", "k", "v", code=1)
    client("--siblings", "delete", "k", code=2)
    client("--context", "00", "get", "k", code=2)
    assert client("--no-routing", "get", "k").strip() == b"v"


def test_help_begins_with_title_and_usage(client):
    text = client("--help").decode()
    places = [text.index(part) for part in ("distkv-client -- ", "Usage:", "Commands:", "--server")]
    assert places == sorted(places) and places[0] == 0
    assert "Commands:" not in client("get", "--help").decode()


def test_the_estimate_says_so_and_knows_of_a_flush(client):
    for i in range(200):
        client.server.call("SET", f"key:{i}", "v")
    assert b"db0:keys=200,expires=0,avg_ttl=0,exact=0\r\n" in client.server.call("INFO", "keyspace")
    assert client("count").startswith(b"about 200")
    client.server.call("FLUSHALL")
    assert b"db0:" not in client.server.call("INFO", "keyspace")
    assert client("count").startswith(b"about 0")
    assert client.server.status()["keys_estimate"] == 0
    client.server.call("SET", "key:1", "again")
    assert b"db0:keys=1," in client.server.call("INFO", "keyspace")
    client.server.call("FLUSHDB")
    assert b"db0:" not in client.server.call("INFO", "keyspace")


@pytest.mark.smoke
def test_import_is_the_inverse_of_export(client, tmp_path):
    for i in range(500):
        client.server.call("SET", b"\x00\xfe%d\t\n" % i, b"\xff\x00%d\\\"" % i * (1 + i % 50))
    client.server.call("SET", "expires", "soon", "EX", "1000")
    for form in "json", "tsv":
        file = tmp_path / f"all.{form}"
        client("export", str(file))
        before = client("export", "--format", form)
        client.server.call("FLUSHALL")
        client("import", "--connections", "2", str(file))
        assert client("export", "--format", form) == before
        assert client.server.call("DBSIZE") == 501
    assert 0 < client.server.call("TTL", "expires") <= 1000
    assert client.server.call("GET", b"\x00\xfe7\t\n") == b"\xff\x007\\\"" * 8
    # The first line alone says which format it is, and hash tags begin as JSON lines do.
    client.server.call("FLUSHALL")
    client.server.call("SET", "{user7}name", "Ann")
    client("export", str(tmp_path / "tagged.tsv"))
    client.server.call("FLUSHALL")
    client("import", str(tmp_path / "tagged.tsv"))
    assert client.server.call("GET", "{user7}name") == b"Ann"
    client("import", "--if-absent", str(tmp_path / "all.json"))
    client("import", data=b'{"key": "ok", "value": "1"}\n{"key": \n', code=1)
    assert client.server.call("GET", "ok") == b"1"


def import_with_pauses(client, timeout):
    """How it ended."""
    client.server.call("FLUSHALL")
    with subprocess.Popen(
            [CLIENT, "--server", f"127.0.0.1:{client.server.port}", "import", "--timeout",
             f"{timeout}s", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for part in b"a\t1\nb\t2\nc", b"\t3\nd\t4\n":
            before = client.server.call("DBSIZE")
            process.stdin.write(part)
            process.stdin.flush()
            wait_for(lambda before=before: client.server.call("DBSIZE") == before + 2, "two keys",
                     seconds=30)
            time.sleep(1.2 * timeout)
        _, told = process.communicate(timeout=60 * SLOW)
    return process.returncode, told


def test_import_from_a_source_that_pauses(client):
    """What has come is written though nothing more does, and its answers are read meanwhile. Again with
    more time for each when it failed: a busy machine may have needed it, a client that counts the
    pauses fails each time."""
    for timeout in SLOW, 4 * SLOW, 12 * SLOW:
        code, told = import_with_pauses(client, timeout)
        if code == 0:
            break
    assert code == 0 and b"imported 4 records, 0 skipped, 0 failed" in told, told
    assert client.server.call("MGET", "a", "b", "c", "d") == [b"1", b"2", b"3", b"4"]


def import_whose_server_goes(client):
    """How it ended."""
    with subprocess.Popen(
            [CLIENT, "--server", f"127.0.0.1:{client.server.port}", "import", "--timeout",
             f"{SLOW}s", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"a\t1\n")
        process.stdin.flush()
        wait_for(lambda: client.server.call("DBSIZE") == 1, "the first key")
        client.server.kill()

        # The kernel ends its connections a little later: the first of these may go there.
        def ended():
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"b\t2\n")
                process.stdin.flush()
            return process.poll() is not None

        wait_for(ended, "the end of the import")
        told = process.stderr.read()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    return process.returncode, told


def test_import_ends_when_its_server_is_gone(client):
    """Though its source has not ended. That the first key is stored is seen by us a moment before the
    import, and on a busy machine its server may be gone by then: again."""
    for _ in range(3):
        code, told = import_whose_server_goes(client)
        if b"imported 1 records" in told:
            break
        client.server.start()
        client.server.call("FLUSHALL")
    assert code == 3 and b"imported 1 records, 0 skipped" in told, told


def on_a_terminal(*words, data=None):
    """What it writes on its standard error, which is a terminal."""
    ours, its = os.openpty()
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=its,
                          close_fds=True) as process:
        os.close(its)
        if data is not None:
            process.stdin.write(data)
        process.stdin.close()
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        assert process.wait(timeout=60 * SLOW) == 0, shown
    return shown.decode()


def test_import_shows_its_progress_on_a_terminal_only(client, tmp_path):
    count = 20_000
    data = b"".join(b"key%d\t%s\n" % (i, b"v" * 200) for i in range(count))
    file = tmp_path / "many.tsv"
    file.write_bytes(data)
    address = ("--server", f"127.0.0.1:{client.server.port}")
    shown = on_a_terminal(CLIENT, *address, "import", str(file))
    bars = re.findall(r"\r\[(#*) *\] +(\d+)%  (\d+) records, \d+/s\x1b\[K", shown)
    assert bars, shown
    for filled, percent, records in bars:
        assert len(filled) <= 30 and abs(len(filled) - int(percent) * 0.3) <= 1, shown
        assert int(records) <= count
    assert [int(bar[1]) for bar in bars] == sorted(int(bar[1]) for bar in bars)
    assert re.search(rf"\r\x1b\[Kimported {count} records, 0 skipped, 0 failed", shown), shown
    assert client.server.call("DBSIZE") == count
    # How much is to come is not known of a pipe.
    shown = on_a_terminal(CLIENT, *address, "import", data=data)
    assert re.search(r"\r\d+ records, \d+\.\d MB, \d+/s\x1b\[K", shown), shown
    assert "imported" not in on_a_terminal(CLIENT, *address, "import", "--quiet", str(file))
    plain = subprocess.run([CLIENT, *address, "import", str(file)], capture_output=True,
                           timeout=60 * SLOW, check=True).stderr
    assert b"\r" not in plain and b"\x1b" not in plain and b"imported" in plain


def test_status_doctor_and_ping(client):
    status = json.loads(client("--json", "status"))
    assert isinstance(status, dict) and status
    client("status")
    client("doctor", "--count", "20")
    json.loads(client("--json", "doctor", "--count", "20"))
    client("bench-ping", "--count", "200", "--in-flight", "16")
    client.server.stop()
    client("status", "--timeout", "500ms", code=3)


def test_cluster_commands_describe_the_one_node(server):
    node = server.call("CLUSTER", "MYID")
    assert len(node) == 40
    assert b"cluster_state:ok" in server.call("CLUSTER", "INFO")
    slots = server.call("CLUSTER", "SLOTS")
    assert slots[0][0] == 0 and slots[-1][1] == 16383
    assert slots[0][2][1] == server.port and slots[0][2][2] == node
    shards = server.call("CLUSTER", "SHARDS")
    assert shards and shards[0][0] == b"slots"
    nodes = server.call("CLUSTER", "NODES")
    assert nodes.startswith(node) and b"myself,master" in nodes
    assert server.call("CLUSTER", "KEYSLOT", "foo") == 12182


def test_every_command_works_with_a_password(make_server, tmp_path):
    server = make_server(requirepass="a secret")
    (tmp_path / "pw").write_text("a secret\n")

    def run(*words, code=0, data=None, environment=None):
        done = subprocess.run(
            [CLIENT, "--server", f"127.0.0.1:{server.port}", *words], input=data, check=False,
            capture_output=True, timeout=60 * SLOW, env=dict(os.environ, **(environment or {})))
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    assert b"wrong user or password" in run("put", "k", "v", code=1)
    assert b"wrong user or password" in run("--password", "secret", "put", "k", "v", code=1)
    assert b"wrong user or password" in run(
        "--user", "nobody", "--password-file", str(tmp_path / "pw"), "put", "k", "v", code=1)
    run("--user", "default", "--password", "a secret", "put", "k", "v")
    assert run("get", "k", environment={"DISTKV_PASSWORD": "a secret"}) == b"v"
    file = ("--password-file", str(tmp_path / "pw"))
    for words in (("get", "k"), ("ttl", "k"), ("expire", "k", "100s"), ("scan",), ("count", "--exact"), ("status",),
                  ("doctor",), ("batch", "put b 1"), ("bench-ping", "--count", "10"), ("delete", "b"),
                  ("export", str(tmp_path / "all.jsonl")), ("import", str(tmp_path / "all.jsonl"))):
        run(*words, *file)
    assert b"v" in run(*file, data=b"get k\n")
