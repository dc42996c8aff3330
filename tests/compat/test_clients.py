# SPDX-License-Identifier: MIT
"""Unmodified clients, as people install them, against a real server."""

import os
import shutil
import subprocess

import pytest
import redis

from conftest import BUILD, ROOT, SLOW, need

HERE = os.path.dirname(os.path.abspath(__file__))


def run(*command, **options):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120 * SLOW, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cli(server, *words, **options):
    return run("redis-cli", "-p", str(server.port), *words, **options)


# ---- redis-cli ----


def test_redis_cli_reads_and_writes(server):
    need("redis-cli")
    assert cli(server, "set", "hello", "world") == "OK\n"
    assert cli(server, "get", "hello") == "world\n"
    assert cli(server, "-3", "get", "hello") == "world\n"
    assert cli(server, "get", "none") == "\n"
    assert cli(server, "-x", "set", "from-stdin", input="line\n") == "OK\n"
    assert cli(server, "--json", "-3", "mget", "hello", "none") == '["world",null]\n'
    assert "hello" in cli(server, "--scan", "--pattern", "h*")
    assert "unknown command" in cli(server, "nosuch")


def test_redis_cli_reports_big_keys_and_memory(server):
    need("redis-cli")
    cli(server, "set", "big", "x" * 10000)
    assert "big" in cli(server, "--bigkeys")
    assert "big" in cli(server, "--memkeys")


def test_redis_cli_pipe_loads_in_bulk(server):
    need("redis-cli")
    commands = "".join(f"*3\r\n$3\r\nSET\r\n$6\r\nk{i:05d}\r\n$1\r\nv\r\n" for i in range(20000))
    text = cli(server, "--pipe", input=commands)
    assert "errors: 0, replies: 20000" in text
    assert server.call("DBSIZE") == 20000


# ---- redis-benchmark ----


@pytest.mark.parametrize("pipeline", [1, 16])
def test_redis_benchmark_runs_all_its_string_tests(server, pipeline):
    need("redis-benchmark")
    text = run(
        "redis-benchmark", "-p", str(server.port), "-t", "ping_inline,ping_mbulk,set,get,incr,mset",
        "-n", "5000", "-P", str(pipeline), "-r", "1000", "-q",
    )
    for name in ("PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"):
        assert f"{name}:" in text, text
    assert "rror" not in text, text


# ---- python3-redis ----


@pytest.mark.smoke
def test_python_redis_speaks_resp2(server):
    client = redis.Redis(port=server.port)
    assert client.ping()
    value = bytes(range(256)) * 4
    assert client.set(b"\x00\r\n\xff", value)
    assert client.get(b"\x00\r\n\xff") == value
    assert client.set("t", 1, ex=100, nx=True)
    assert client.set("t", 2, nx=True) is None
    assert 90 < client.ttl("t") <= 100
    assert client.incr("n", 5) == 5
    with client.pipeline(transaction=False) as pipe:
        for i in range(1000):
            pipe.set(f"p{i}", i)
        assert all(pipe.execute())
    assert client.mget("p1", "none", "p999") == [b"1", None, b"999"]
    assert len(set(client.scan_iter("p*", count=50))) == 1000
    with client.pipeline() as pipe:
        pipe.watch("{w}a")
        client.set("{w}a", "changed")
        pipe.multi()
        pipe.set("{w}a", "mine")
        with pytest.raises(redis.WatchError):
            pipe.execute()
    assert client.get("{w}a") == b"changed"
    with pytest.raises(redis.ResponseError, match="not an integer"):
        client.incr("{w}a")
    info = client.info()
    assert info["redis_version"].startswith("7.2")
    assert client.config_get("maxmemory")["maxmemory"].isdigit()


def test_python_redis_speaks_resp3(server):
    # Version 4 of the package has no RESP3; HELLO switches the protocol under RESP2 replies that
    # are the same in both, and the raw connection shows the types that differ.
    with server.connect() as connection:
        hello = connection.call("HELLO", 3)
        assert hello[b"server"] == b"redis" and hello[b"proto"] == 3
        assert connection.call("GET", "none") is None
        assert isinstance(connection.call("CONFIG", "GET", "maxmemory"), dict)
        connection.call("HELLO", 2)
        assert isinstance(connection.call("CONFIG", "GET", "maxmemory"), list)


# ---- hiredis ----


def test_hiredis_client_works(server, tmp_path):
    program = tmp_path / "hiredis_client"
    compiler = shutil.which("cc")
    if compiler is None or not os.path.exists("/usr/include/hiredis/hiredis.h"):
        pytest.skip("needs cc and libhiredis-dev")
    source = os.path.join(HERE, "hiredis_client.c")
    run(compiler, "-O1", source, "-o", str(program), "-lhiredis")
    assert run(str(program), str(server.port)).count("ok ") == 3


# ---- Node.js ----


@pytest.fixture(scope="session")
def node_modules():
    """The pinned clients, installed once under the build directory."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    version = run("node", "--version").strip().lstrip("v")
    place = os.path.join(BUILD, "node-clients")
    os.makedirs(place, exist_ok=True)
    source = os.path.join(HERE, "node")
    with open(os.path.join(source, "package-lock.json"), "rb") as file:
        wanted = file.read()
    stamp = os.path.join(place, "installed.json")
    installed = b""
    if os.path.exists(stamp):
        with open(stamp, "rb") as file:
            installed = file.read()
    for name in ("package.json", "package-lock.json", ".npmrc", "clients.js"):
        shutil.copy(os.path.join(source, name), place)
    if installed != wanted:
        run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=place)
        shutil.copy(os.path.join(source, "package-lock.json"), stamp)
    return place, int(version.split(".")[0])


@pytest.mark.parametrize("client", ["ioredis", "ioredis-newest", "redis", "redis-newest"])
def test_node_client_works(server, node_modules, client):
    place, major = node_modules
    if client.endswith("-newest") and major < 20:
        pytest.skip(f"{client} needs Node.js 20, this is {major}")
    text = run("node", "clients.js", client, str(server.port), cwd=place)
    assert f"ok {client} errors" in text


def test_the_lock_file_names_no_registry():
    with open(os.path.join(ROOT, "tests/compat/node/package-lock.json"), encoding="utf-8") as file:
        assert '"resolved"' not in file.read()
