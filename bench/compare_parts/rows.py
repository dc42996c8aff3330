# SPDX-License-Identifier: MIT
"""The table: each row's question, its targets, and the stage that measures it.

A target is an expression over the figures that the stage records for the row's sides (figures.py);
`ours` and `peer` are what the table shows beside it. A row that is not measured at full size by
--quick says so in `quick`.
"""

from dataclasses import dataclass


@dataclass
class Target:
    text: str
    holds: str
    ours: str
    peer: str = ""
    unit: str = ""


@dataclass
class Row:
    name: str
    asks: str
    stage: str
    targets: list
    quick: str = ""
    bars: str = ""  # the figures that are plotted for all sides, with blanks between
    bars_unit: str = "/s"


def _rate(times, peer, text):
    return Target(f"at least {times}x {text}", f"ours.rate / {peer}.rate >= {times}", "ours.rate",
                  f"{peer}.rate", "/s")


ROWS = [
    Row("get-1", "GET hot, unpipelined", "hot", [
        _rate(1.15, "redis", "redis-server's rate"),
        Target("CPU per request at most 1.2x a fixed-reply server's",
               "ours.server_cpu_us / fixed.server_cpu_us <= 1.2", "ours.server_cpu_us",
               "fixed.server_cpu_us", "us"),
    ], bars="rate"),
    Row("get-16", "GET hot, pipeline 16", "hot", [
        _rate(2.5, "redis", "redis-server"), _rate(2.5, "valkey", "valkey-server"),
    ], bars="rate"),
    Row("get-64", "GET hot, pipeline 64", "hot", [
        _rate(3, "redis", "redis-server"), _rate(3, "valkey", "valkey-server"),
    ], bars="rate"),
    Row("set-1", "SET durable, pipeline 1", "hot", [
        _rate(2, "redis_always", "redis-server with `appendfsync always`"),
    ], bars="rate"),
    Row("set-16", "SET durable, pipeline 16", "hot", [
        _rate(3, "redis_always", "redis-server with `appendfsync always`"),
        Target("no slower than redis-server with no persistence",
               "ours.rate / redis.rate >= 1", "ours.rate", "redis.rate", "/s"),
    ], bars="rate"),
    Row("set-64", "SET durable, pipeline 64", "hot", [
        _rate(3, "redis_always", "redis-server with `appendfsync always`"),
    ], bars="rate"),
    Row("mixed", "mixed 50/50 Zipf at 70 % of the peak, 1 KB values, flushes and compaction running",
        "big", [
            Target("p99.9 at most 2 ms above a bare DSYNC write's",
                   "ours.p999_ms - probe.p999_ms <= 2", "ours.p999_ms", "probe.p999_ms", "ms"),
            Target("the longest at most 20 ms above a bare DSYNC write's",
                   "ours.max_ms - probe.max_ms <= 20", "ours.max_ms", "probe.max_ms", "ms"),
        ], quick="1 GB instead of 10 GB, 30 s instead of 5 minutes"),
    Row("cold", "cold GET, 1 KB values, 64 connections", "big", [
        Target("at least 85 % of fio's random 4 KiB reads at the same depth",
               "ours.cold_rate / fio.rate >= 0.85", "ours.cold_rate", "fio.rate", "/s"),
        Target("at most 1.05 reads a hit", "ours.reads_per_hit <= 1.05", "ours.reads_per_hit"),
        Target("at most 0.03 reads a miss", "ours.reads_per_miss <= 0.03", "ours.reads_per_miss"),
    ], quick="1 GB in 64 MiB instead of 10 GB in 256 MiB", bars="cold_rate"),
    Row("engine-write", "engine: random fill, sustained overwrite (32 in flight, one core)",
        "engine", [
            Target("fill at least 3x RocksDB", "ours.fill_rate / rocksdb.fill_rate >= 3",
                   "ours.fill_rate", "rocksdb.fill_rate", "/s"),
            Target("overwrite at least 3x RocksDB",
                   "ours.overwrite_rate / rocksdb.overwrite_rate >= 3", "ours.overwrite_rate",
                   "rocksdb.overwrite_rate", "/s"),
            Target("overwrite p99.9 at most a fifth of its",
                   "ours.overwrite_p999_us / rocksdb.overwrite_p999_us <= 0.2",
                   "ours.overwrite_p999_us", "rocksdb.overwrite_p999_us", "us"),
        ], quick="half a million keys in 32 MiB instead of 10 million in 128 MiB", bars="overwrite_rate"),
    Row("engine-get", "engine: hot get, cold get (32 in flight, one core)", "engine", [
        Target("hot at least 6x RocksDB", "ours.hot_rate / rocksdb.hot_rate >= 6", "ours.hot_rate",
               "rocksdb.hot_rate", "/s"),
        Target("hot at least 2.5x one thread of RocksDB",
               "ours.hot_rate / rocksdb_one.hot_rate >= 2.5", "ours.hot_rate",
               "rocksdb_one.hot_rate", "/s"),
        Target("cold at least 1.6x RocksDB", "ours.cold_rate / rocksdb.cold_rate >= 1.6",
               "ours.cold_rate", "rocksdb.cold_rate", "/s"),
    ], quick="half a million keys in 32 MiB instead of 10 million in 128 MiB", bars="hot_rate"),
    Row("amplification", "bytes written a byte, all data overwritten five times, debt drained",
        "amplification", [
            Target("values of 100 B: at most 0.6x RocksDB's leveled default",
                   "ours.written_100 / rocksdb.written_100 <= 0.6", "ours.written_100",
                   "rocksdb.written_100"),
            Target("values of 1 KB: at most 0.6x RocksDB's leveled default",
                   "ours.written_1k / rocksdb.written_1k <= 0.6", "ours.written_1k",
                   "rocksdb.written_1k"),
            Target("values of 8 KB: at most 3.0, log included", "ours.written_8k <= 3.0",
                   "ours.written_8k"),
            Target("values of 8 KB: space at most 1.5", "ours.space_8k <= 1.5", "ours.space_8k"),
        ], quick="0.05 to 0.1 GB of data instead of 2 GB; space is that of tables and blobs, without "
                 "the log's segments, which outweigh small data",
        bars="written_100 written_1k written_8k", bars_unit=""),
    Row("space", "bytes on disk a byte of data, steady, values below 4 KB", "amplification", [
        Target("values of 100 B: at most 1.25", "ours.space_100 <= 1.25", "ours.space_100",
               "rocksdb.space_100"),
        Target("values of 1 KB: at most 1.25", "ours.space_1k <= 1.25", "ours.space_1k",
               "rocksdb.space_1k"),
    ], quick="0.05 to 0.1 GB of data instead of 2 GB; tables only, without the log's segments, "
             "which outweigh small data", bars="space_100 space_1k", bars_unit=""),
    Row("scan", "full scan, 1 KB values", "scan", [
        Target("at least 80 % of fio's sequential reads", "ours.mb_s / fio.mb_s >= 0.8",
               "ours.mb_s", "fio.mb_s", "MB/s"),
    ], quick="0.3 GB instead of 4 GB", bars="mb_s", bars_unit="MB/s"),
    Row("replay", "restart after kill -9: log replay, 1 KB values", "replay", [
        Target("at least 0.5 GB/s of a core's time", "ours.gb_s_of_core >= 0.5",
               "ours.gb_s_of_core", "", "GB/s"),
    ], bars="gb_s_of_core", bars_unit="GB/s"),
    Row("restart", "restart of a closed directory of 10 GB", "big", [
        Target("first request answered within 1 s", "ours.first_answer_s <= 1",
               "ours.first_answer_s", "", "s"),
    ], quick="1 GB instead of 10 GB", bars="first_answer_s", bars_unit="s"),
    Row("shards", "two shards against one, GET, server CPU per request", "shards", [
        Target("straight to the right shard: at most 1.15x",
               "straight.cpu_us_1 / one.cpu_us_1 <= 1.15", "straight.cpu_us_1", "one.cpu_us_1",
               "us"),
        Target("every request hops: at most 1.6x", "hop.cpu_us_1 / one.cpu_us_1 <= 1.6",
               "hop.cpu_us_1", "one.cpu_us_1", "us"),
        Target("straight, pipeline 16: at most 1.15x",
               "straight.cpu_us_16 / one.cpu_us_16 <= 1.15", "straight.cpu_us_16", "one.cpu_us_16",
               "us"),
        Target("every request hops, pipeline 16: at most 1.6x",
               "hop.cpu_us_16 / one.cpu_us_16 <= 1.6", "hop.cpu_us_16", "one.cpu_us_16", "us"),
    ], bars="cpu_us_1 cpu_us_16", bars_unit="us"),
    Row("index", "index and filters in memory, 1 KB values", "big", [
        Target("at most 0.6 % of the data", "ours.percent <= 0.6", "ours.percent", "", "%"),
    ], quick="1 GB instead of 10 GB", bars="percent", bars_unit="%"),
]

SIDES = {
    "ours": "DistKV",
    "redis": "redis-server, no persistence",
    "redis_always": "redis-server, appendfsync always",
    "valkey": "valkey-server, no persistence",
    "valkey_always": "valkey-server, appendfsync always",
    "fixed": "fixed replies",
    "bare": "reads and replies alone",
    "probe": "bare DSYNC writes",
    "fio": "fio",
    "rocksdb": "RocksDB",
    "rocksdb_one": "RocksDB, one thread",
    "one": "one shard",
    "straight": "two shards, straight",
    "hop": "two shards, all hop",
}


def by_name(name):
    for row in ROWS:
        if row.name == name:
            return row
    raise KeyError(name)
