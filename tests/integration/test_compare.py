# SPDX-License-Identifier: MIT
"""bench/compare and bench/compare-clusters: what is pure of them, and their command lines. What they
measure is not judged here."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree

import pytest

from conftest import BUILD, ROOT, SLOW

sys.path.insert(0, os.path.join(ROOT, "bench"))

from compare_parts import clusters, figures, hops, plots, report, rows, stages  # noqa: E402

COMPARE = os.path.join(ROOT, "bench", "compare")
COMPARE_CLUSTERS = os.path.join(ROOT, "bench", "compare-clusters")


def result_of(measured):
    """A result as a run writes it, of {row: {side: {figure: [values]}}}."""
    return {
        "compare": 1, "quick": True, "rounds": 3, "time": "2026-01-02T03:04:05+00:00",
        "command": "bench/compare --quick", "commit": "0123456789ab", "seconds": 90.0,
        "machine": {"kernel": "Linux", "cpu": "some", "cores": 2, "memory_bytes": 1 << 30,
                    "clocksource": "tsc", "disk": {"device": "/dev/x", "filesystem": "ext4"}},
        "versions": {"redis-server": "7.0.15"},
        "load": {"average_before": "0 0 0", "other_max": 0.1, "other_median": 0.0},
        "rows": {name: {"figures": sides, "commands": {"ours": [f"run {name}"]}, "notes": [],
                        "not_run": [], "charts": {}} for name, sides in measured.items()},
    }


@pytest.mark.parametrize("values, middle", [([3], 3), ([5, 1, 3], 3), ([4, 1, 3, 2], 2.5)])
def test_median(values, middle):
    assert figures.median(values) == middle


def test_percentile_is_the_smallest_value_that_is_enough():
    values = list(range(1, 1001))
    assert figures.percentile(values, 0.5) == 500
    assert figures.percentile(values, 0.999) == 999
    assert figures.percentile(values, 1.0) == 1000
    assert figures.percentile([7], 0.999) == 7


def test_a_target_is_judged_by_the_medians_and_spread_over_the_rounds():
    measured = {"ours": {"rate": [30, 10, 20]}, "redis": {"rate": [10, 10, 10]}}
    outcome = figures.judge("ours.rate / redis.rate >= 2", measured)
    assert (outcome.state, outcome.value, outcome.low, outcome.high) == ("reached", 2, 1, 3)
    assert figures.judge("ours.rate / redis.rate >= 2.01", measured).state == "missed"
    assert figures.judge("ours.rate - redis.rate <= 9", measured).state == "missed"
    assert figures.judge("max(ours.rate, 25) <= 25", measured).state == "reached"


def test_what_was_not_measured_is_neither_reached_nor_missed():
    for measured in ({}, {"ours": {"rate": [1]}}, {"ours": {"rate": [1]}, "redis": {"rate": [0]}}):
        outcome = figures.judge("ours.rate / redis.rate >= 2", measured)
        assert outcome.state == "not run" and outcome.why


@pytest.mark.parametrize("target", ["ours.rate", "ours.rate > 2", "2 <= ours.rate", "1 <= 2 <= 3",
                                    "open('x') >= 2", "ours.rate.real >= 2", "ours['rate'] >= 2"])
def test_a_target_is_nothing_but_a_comparison_of_figures(target):
    with pytest.raises(ValueError):
        figures.judge(target, {"ours": {"rate": [1]}})


def test_numbers_have_three_digits():
    shown = [figures.number(v) for v in (None, 0, 0.01234, 1.234, 12.34, 123.4, 1234, 1234567)]
    assert shown == ["", "0.00", "0.0123", "1.23", "12.3", "123", "1,230", "1,230,000"]


def test_every_row_has_a_stage_and_targets_that_can_be_judged():
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    for row in rows.ROWS:
        assert row.stage in stages.STAGES and row.targets
        for target in row.targets:
            _, sign, _ = figures.split_target(target.holds)
            assert sign in (">=", "<=")
            assert figures.judge(target.holds, {}).state == "not run"
    assert set(stages.QUICK) == set(stages.FULL)


def test_the_table_says_reached_missed_and_why_not_run():
    result = result_of({"get-16": {"ours": {"rate": [500.0, 510.0]}, "redis": {"rate": [100.0, 100.0]}},
                        "set-1": {"ours": {"rate": [100.0]}, "redis_always": {"rate": [100.0]}}})
    result["rows"]["get-16"]["not_run"] = [{"side": "valkey", "why": "it is not installed"},
                                           {"side": None, "why": "interrupted"}]
    states = [(line["row"], line["state"], line["why"]) for line in report.lines_of(result)]
    assert states == [("get-16", "reached", ""), ("get-16", "not run", "it is not installed"),
                      ("set-1", "missed", "")]
    text = report.table(result)
    assert "**missed**" in text and "5.05 (5.00..5.10)" in text and "not run: it is not" in text
    widths = {line.count("|") for line in text.splitlines()}
    assert widths == {7}, "every line has the same columns"
    assert report.summary(result) == "1 reached, 1 missed, 1 not run"


def test_publishing_replaces_what_stands_between_the_marks():
    result = result_of({"set-1": {"ours": {"rate": [100.0]}}})
    before = f"# Head\n{report.BEGIN}\nold\n{report.END}\ntail\n"
    after = report.publish(before, result)
    assert after.startswith("# Head\n") and after.endswith("tail\n") and "old" not in after
    assert "0123456789ab" in after and "run set-1" in after
    assert report.publish(after, result) == after
    with pytest.raises(ValueError):
        report.publish("no marks", result)


def test_parts_that_were_measured_one_by_one_make_one_table():
    first = result_of({"get-16": {"ours": {"rate": [30]}, "redis": {"rate": [10]}},
                       "index": {"ours": {"percent": [0.7]}}})
    second = result_of({"index": {"ours": {"percent": [0.5]}}, "get-16": {}})
    first["commit"], second["load"]["other_max"] = "ba9876543210", 0.2
    whole = report.merged([first, second])
    assert whole["rows"]["index"]["figures"]["ours"]["percent"] == [0.5]
    assert whole["rows"]["get-16"]["figures"]["ours"]["rate"] == [30]  # not run the second time
    assert whole["rows"]["get-16"]["notes"] == ["at commit `ba9876543210`"]
    assert whole["rows"]["index"]["notes"] == []
    assert whole["seconds"] == 180 and whole["load"]["other_max"] == 0.2
    assert first["rows"]["get-16"]["notes"] == []  # left as it was
    assert "at commit `ba9876543210`" in report.section(whole)


def test_plots_are_well_formed():
    awkward = "a < b & c > \"d\""
    for svg in (plots.bars(awkward, "/s", [(awkward, 3.0, 1.0, 4.0), ("none", 0.0, 0.0, 0.0)]),
                plots.bars("nothing", "/s", []),
                plots.lines(awkward, "x", "y", ["50", "99"], [(awkward, [1.5, 2000.0]), ("b", [None, 0])]),
                plots.lines("nothing", "x", "y", [], [])):
        root = xml.etree.ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
    result = result_of({"get-1": {"ours": {"rate": [2.0, 3.0]}, "redis": {"rate": [1.0]}}})
    result["rows"]["get-1"]["charts"]["time"] = {"title": "t", "x": "s", "y": "us", "names": [1, 2],
                                                 "series": [["p99", [1.0, 2.0]]]}
    assert set(report.plots_of(result)) == {"get-1.svg", "get-1-time.svg"}


def test_every_row_has_a_plot_of_what_its_targets_are_about():
    for row in rows.ROWS:
        # "mixed" is lines, which its stage makes.
        assert bool(row.bars) == (row.name != "mixed")
        named = " ".join(target.holds for target in row.targets)
        assert all(f".{figure} " in f"{named} " for figure in row.bars.split()), row.name
    result = result_of({"shards": {"one": {"cpu_us_1": [2.0], "cpu_us_16": [1.0]},
                                   "hop": {"cpu_us_1": [4.0], "cpu_us_16": [3.0]}},
                        "index": {"ours": {"percent": [0.5]}}})
    drawn = report.plots_of(result)
    assert set(drawn) == {"shards.svg", "index.svg"}
    assert "two shards, all hop, cpu_us_16" in drawn["shards.svg"] and "3.00 us" in drawn["shards.svg"]
    assert "0.5 %" in drawn["index.svg"]


def test_the_bars_are_as_long_as_the_figures():
    svg = plots.bars("t", "/s", [("a", 50.0, 50.0, 50.0), ("b", 100.0, 100.0, 100.0)])
    root = xml.etree.ElementTree.fromstring(svg)
    widths = [float(r.get("width")) for r in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths[1] == pytest.approx(2 * widths[0])


def test_tags_lie_in_both_halves_of_the_slots():
    assert hops.crc16(b"123456789") == 0x31C3
    low, high = (hops.crc16(tag) % hops.SLOTS for tag in hops.tags_of_halves())
    assert low < hops.SLOTS // 2 <= high


def run(*arguments, cwd=None):
    return subprocess.run([COMPARE, *arguments], capture_output=True, text=True, check=False,
                          timeout=60, cwd=cwd)


def test_the_command_line_names_what_is_wrong(tmp_path):
    assert "get-16" in run("--list").stdout
    done = run("--only", "get-17")
    assert done.returncode == 2 and "get-17" in done.stderr
    done = run("--build", "no-such-build", cwd=tmp_path)
    assert done.returncode == 2 and "no-such-build" in done.stderr
    assert os.listdir(tmp_path) == []


def processes_of(directory):
    """The processes whose command line names the directory."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if os.fsencode(directory) in file.read():
                    out.append(int(pid))
        except OSError:
            pass
    return out


def test_interrupted_it_leaves_nothing_behind(tmp_path):
    data = tmp_path / "data"
    process = subprocess.Popen(
        [COMPARE, "--quick", "--only", "replay", "--build", os.path.basename(BUILD), "--dir", data,
         "--out", tmp_path / "result"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        # The data directory of the server is there once it runs, or is about to.
        while process.poll() is None and not list(data.glob("compare-*/replay")):
            time.sleep(0.02)
        if process.poll() == 2:
            pytest.skip(process.stderr.read().strip())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60 * SLOW)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 130, err
    assert os.listdir(tmp_path) == [] and processes_of(str(data)) == []


def test_an_earlier_result_is_shown_again(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(result_of({"set-1": {"ours": {"rate": [9.0]},
                                                    "redis_always": {"rate": [3.0]}}})))
    done = run("--from", str(path))
    assert done.returncode == 0, done.stderr
    assert "1 reached, 0 missed, 0 not run" in done.stdout
    assert (tmp_path / "one.md").exists() and (tmp_path / "one-set-1.svg").exists()


def test_what_is_sent_to_etcd_is_what_it_reads():
    # PutRequest{key: "k", value: 300 times "v"} of rpc.proto, as protoc encodes it.
    message = clusters.proto_bytes(1, b"k") + clusters.proto_bytes(2, b"v" * 300)
    assert message == b"\x0a\x01k" + b"\x12\xac\x02" + b"v" * 300
    assert clusters.grpc(message) == b"\x00\x00\x00\x01\x32" + message


def test_what_h2load_says_counts_only_if_all_succeeded():
    told = ("finished in 2.00s, 1280.00 req/s, 100KB/s\n"
            "requests: 2560 total, 2816 started, 2560 done, 2560 succeeded, {} failed, 0 errored, "
            "0 timeout\n")
    assert clusters.h2load_done(told.format(0)) == 2560
    for text in (told.format(1), "could not connect", told.replace("2560 succ", "0 succ").format(0)):
        with pytest.raises(clusters.Failed):
            clusters.h2load_done(text)


def test_clusters_are_measured_and_nothing_is_left_behind(tmp_path):
    data = tmp_path / "data"
    done = subprocess.run(
        [COMPARE_CLUSTERS, "--rounds", "1", "--seconds", "1", "--rate", "300", "--sides", "distkv,one",
         "--build", os.path.basename(BUILD), "--dir", data, "--out", tmp_path / "result"],
        capture_output=True, text=True, check=False, timeout=180 * SLOW)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["result.json", "result.md"]
    assert processes_of(str(data)) == []
    result = json.loads((tmp_path / "result.json").read_text())
    assert sorted(result["rows"]) == ["get@0", "get@300", "put@0", "put@300"]
    for row in result["rows"].values():
        for side in ("distkv", "one"):
            assert row[side]["rate"][0] > 0 and row[side]["cpu_us"][0] > 0
    assert "DistKV, three nodes" in (tmp_path / "result.md").read_text()
    wrong = subprocess.run([COMPARE_CLUSTERS, "--sides", "two"], capture_output=True, text=True,
                           check=False, timeout=60)
    assert wrong.returncode == 2 and "two" in wrong.stderr
