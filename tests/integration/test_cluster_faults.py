# SPDX-License-Identifier: MIT
"""What clusters meet, to real processes under a load that remembers what it was told: a node is
killed, stops, is cut off, loses its disk, joins, leaves, is restarted.

Of every case the same is asked (Run.judge): no acknowledged write is lost and none comes back, be
it during the load or after it; no request fails but those that were with the lost node while it was
away; in the end each node's own store holds the same.

The short variants share one small cluster, one after the other, with a light load: what is asked
of times is left out there, for others use the machine, too; and where members take one for dead that
is there, as they do on a machine that leaves it without the processor for half a second, a request
may fail as if it were lost. The long ones (marked soak) put more
than 5,000 SETs of 1 KB a second on a cluster of their own, and ask for that rate and for times as
well.
"""

import contextlib
import dataclasses
import shutil
import time

import pytest
from cluster_rig import Cluster, DiskProbe, Network, missing_network
from conftest import SLOW, wait_for


@dataclasses.dataclass
class Scale:
    long: bool
    rate: int
    keys: int
    before_s: float  # load before the fault
    absent_s: float  # how long a node is gone
    stop_s: float  # how long a process is stopped; longer than the time-out of requests
    long_away_s: float  # how long a node is gone that is to have caught up soon
    after_s: float  # load afterwards
    timeout: str  # cluster-timeout
    silent_ms: int  # when a client gives a stopped node up
    patience_ms: int  # and one that is only slow
    late_ms: int  # so long after that an unsure write has taken effect, or never does
    slack: int  # so many times what it takes on a machine of one's own to be known


SHORT = Scale(False, 700, 1000, 0.3, 0.9, 5.0, 1.5, 0.4, "3s", 4000, 20000, 3000, 4)
LONG = Scale(True, 9500, 20000, 4.0, 8.0, 10.0, 30.0, 4.0, "5s", 2000, 2000, 6000, 1)
# Of LONG, 55 % of whose requests are SETs.
SETS_PER_S = 5000
# When the first second is over, p99 is to be back within so many times what it was: of all the rest, and
# of each quarter of a second, where a p99 below the floor is as good (it is the disk's, and moves by itself).
P99_FACTOR, P99_FLOOR_MS, P99_BACK_MS = 3, 20, 1000
# The disk is shared with others. While a bare write beside the nodes takes longer than this, and until what
# has waited for it is done, a p99 tells of the disk: such moments are left out, before the event and after.
# They are few, or nodes that keep their disk from answering would be excused by it.
STALL_S, STALL_OVER_MS, STALL_PART = 0.03, 250, 0.2
# What is known to fail is over when the others know that a node does not answer.
DETECT_MS = 1000
# What was due so long before a node went may have been with it.
FLIGHT_MS = 1000
# A node's log may tell of what it thinks of another one so much later than it thinks so.
TOLD_MS = 1000
# So many, and so much of the load's time for all pairs of members together, may be the machine's fault.
MISTAKES, MISTAKEN_PART = 30, 1.5
# Who was away has all it missed so soon after its start.
CAUGHT_UP_S = 10


@dataclasses.dataclass
class Away:
    """A node's, or a link's between nodes (None)."""
    node: int | None
    begin_ms: float
    end_ms: float = float("inf")  # it serves again
    healed_ms: float | None = None  # what was kept on the way arrives
    slack: int = 1  # of the scale
    since_ms: float | None = None  # what has failed before that has not failed for its sake; begin_ms

    def took(self, ms, ended_ms, node):
        return node == self.node and ended_ms >= (self.since_ms or self.begin_ms) and \
            self.begin_ms - FLIGHT_MS * self.slack * SLOW <= ms <= self.end_ms

    def near(self, ms, ended_ms=float("inf")):
        """Others may not know yet that something was lost: a DEL of it waits, and what was sent
        after it on its connection."""
        moments = [(self.begin_ms, self.since_ms or self.begin_ms)]
        if self.healed_ms is not None:
            moments.append((self.healed_ms, self.healed_ms))
        return any(at - 2000 * self.slack <= ms <= at + DETECT_MS * self.slack * SLOW and ended_ms >= since
                   for at, since in moments)


class Run:
    """A cluster, a load, and what is asked of both."""

    def __init__(self, cluster, scale):
        self.cluster = cluster
        self.scale = scale
        self.ledger = self.probe = None
        self.filled = 0
        self.begin_ms = self.event_ms = self.end_ms = 0
        self.event_time = 0.0

    @property
    def nodes(self):
        return self.cluster.nodes

    def load(self, silent_ms=None):
        """Begins it; returns once there is something to compare with."""
        self.ledger = self.cluster.ledger(rate=self.scale.rate, keys=self.scale.keys,
                                          timeout_ms=silent_ms or self.scale.patience_ms,
                                          late_ms=self.scale.late_ms)
        self.filled = 0
        for _ in range(self.scale.slack):  # a busy machine fails one now and then
            filled = self.ledger.ask("fill")
            self.filled += filled["filled"]
            if filled["failed"] == 0:
                break
        assert filled["failed"] == 0, filled
        if self.scale.long:
            self.probe = DiskProbe(self.cluster.directory)
        self.begin_ms = self.ledger.start()
        time.sleep(self.scale.before_s)
        self.event_ms = self.ledger.now()
        self.event_time = time.time()

    def judge_detection(self, nodes):
        """Those who are left are soon told by nobody but their own pings."""
        seconds = [self.nodes[index].knew(self.event_time) for index in sorted(nodes)]
        print(f"the others knew after {seconds} s")
        assert None not in seconds
        if self.scale.long:
            assert max(seconds) * 1000 <= DETECT_MS

    def end(self, members=3):
        """Of the load, once all is well again and has been for a while."""
        self.cluster.wait_settled(members)
        time.sleep(self.scale.after_s)
        self.end_ms = self.ledger.stop()
        if self.probe:
            self.probe.close()

    def mistaken(self, lost):
        """When members were taken for dead that were not away: (begin, end, whether one of the two was
        away at some time of it) in milliseconds. What lasts from when one was away is a mistake from
        when it is back."""
        if self.scale.long:
            return []
        view = self.cluster.view(self.nodes[0]) or {"members": []}
        indexes = {member["number"]: self.cluster.index(member["node_id"])
                   for member in view["members"]}

        def told():
            return [(self.cluster.index(node.place), *one) for node in self.cluster.running()
                    for one in node.not_alive() if one[0] in indexes]

        # However long it lasts, it ends: all are there.
        wait_for(lambda: all(end != float("inf") for *_, end in told()), "all to be alive to all")
        found = []
        for by, number, begin, end in told():
            begin_ms, end_ms = (self.event_ms + (at - self.event_time) * 1000 for at in (begin, end))
            provoked = False
            for away in lost:
                if away.begin_ms > end_ms or begin_ms > away.end_ms:
                    continue
                provoked |= away.node in (None, by, indexes[number])
                if away.node in (None, indexes[number]):
                    begin_ms = away.end_ms
            begin_ms, end_ms = max(begin_ms, self.begin_ms), min(end_ms, self.end_ms)
            if begin_ms < end_ms:
                found.append((begin_ms, end_ms, provoked))
        return found

    @staticmethod
    def excused(failure, lost, mistaken=()):
        """Those that were with the lost node: asked of it while it was away, or sent on to it by
        another one, which says that the outcome is unknown; or with one that was taken for lost.
        What has failed before is not for its sake, whenever it was due."""
        ms, node, request, kind, latency_ms, _ = failure
        ended_ms = ms + latency_ms + 2  # both are rounded down
        if any(away.took(ms, ended_ms, node) for away in lost):
            return True
        if kind in ("UNKNOWN", "NOREPLICAS") and \
                any(begin - TOLD_MS <= ended_ms and ms <= end + DETECT_MS for begin, end, _ in mistaken):
            return True
        return request == "del" and kind == "UNKNOWN" and any(away.near(ms, ended_ms) for away in lost)

    def judge(self, lost):
        """lost: what was away, and when."""
        ledger, cluster = self.ledger, self.cluster
        report = ledger.report
        failures = ledger.failures()
        assert len(failures) == report["failures"], "more than the ledger tells"
        lost = [dataclasses.replace(away, slack=self.scale.slack) for away in lost]
        mistaken = self.mistaken(lost)
        unexcused = [failure for failure in failures if failure[0] >= self.begin_ms and
                     not self.excused(failure, lost, mistaken)]
        by_mistake = [failure for failure in failures if failure[0] >= self.begin_ms and
                      not self.excused(failure, lost) and self.excused(failure, lost, mistaken)]
        unprovoked = [end - begin for begin, end, provoked in mistaken if not provoked]
        load_s = (self.end_ms - self.begin_ms) / 1000
        acknowledged = (report["set"][0] - self.filled) / load_s
        sets_per_s = acknowledged + report["set"][1] / load_s
        print(f"requests {sum(node['done'] for node in report['nodes'])} failed {len(failures)}, "
              f"not excused {len(unexcused)}, not sent {report['unsent']}, "
              f"excused by mistakes {len(by_mistake)}; members mistaken for dead {len(mistaken)} times, "
              f"{len(unprovoked)} times for {sum(unprovoked):.0f} ms with nobody away; "
              f"{sets_per_s:.0f} SETs a second, {acknowledged:.0f} acknowledged")
        assert report["violations"] == 0, report["violation_texts"]
        assert not unexcused, ([vars(away) for away in lost], mistaken, unexcused[:20])
        # A busy machine makes few mistakes, a bad detector makes many.
        few = len(unprovoked) <= MISTAKES and sum(unprovoked) <= MISTAKEN_PART * load_s * 1000
        assert few or not by_mistake, (unprovoked, by_mistake[:20])
        if self.scale.long:
            width = report["window_ms"]
            late = [window * width for window, _ in report["unsent_windows"]
                    if not any(away.near(window * width) for away in lost)]
            assert not late and sets_per_s >= SETS_PER_S, (late[:20], sets_per_s)
        # What was acknowledged is there, whomever one asks.
        seconds = cluster.wait_hints()
        assert ledger.check()["violations"] == 0, ledger.read_report()["violation_texts"]
        # Replicas: each by its own store. Nobody reads all keys in practice; this does.
        first = ledger.check("ONE")
        if first["different"] or first["violations"]:
            if not cluster.repair():
                ledger.check("ALL")
            wait_for(lambda: ledger.check("ONE")["different"] == 0, "replicas to be equal", 120)
        sure, maybe = ledger.keys()
        for node in cluster.running():
            found = cluster.own_keys(node)
            assert sure <= found <= sure | maybe, (
                node.place, sorted(sure - found)[:5], sorted(found - sure - maybe)[:5])
        print(f"hints were delivered {seconds:.1f} s after the load; {first['different']} keys "
              f"differed then; {len(sure)} keys, {len(maybe)} of them unsure")
        ledger.close()

    def stalled(self, until_ms):
        """Windows of the ledger that tell of the disk."""
        if not self.probe:
            return frozenset()
        width, found = self.ledger.report["window_ms"], set()
        for begin, end in self.probe.stalls(STALL_S):
            begin_ms, end_ms = (self.event_ms + (at - self.event_time) * 1000 for at in (begin, end))
            found.update(range(int(begin_ms // width), int((end_ms + STALL_OVER_MS) // width) + 1))
        first, last = int(self.begin_ms // width), int(until_ms // width)
        left_out = len([at for at in found if first <= at <= last])
        print(f"the disk stood still in {left_out} of {last - first} windows, at most "
              f"{max(took for _, took in self.probe.took) * 1000:.0f} ms")
        assert left_out <= STALL_PART * (last - first), "the disk is too unsteady to tell, or we are too hard on it"
        return found

    def judge_times(self, event_ms, what, until_ms=None, nodes=None, floor_ms=0):
        """p99 of what the nodes that are left coordinate is soon what it was. floor_ms: what is as good
        for the rest as a whole."""
        ledger = self.ledger
        until_ms = until_ms or self.end_ms
        stalled = self.stalled(until_ms)
        before = ledger.percentile(self.begin_ms, self.event_ms, without=stalled)
        limit = P99_FACTOR * max(before, P99_FLOOR_MS)
        slow_ms = ledger.slow_until(event_ms, limit, until_ms, nodes=nodes, without=stalled)
        during = ledger.percentile(event_ms, event_ms + 1000, nodes=nodes)
        after = ledger.percentile(event_ms + 1000, until_ms, nodes=nodes, without=stalled)
        print(f"{what}: p99 {before:.1f} ms before, {during} in the first second, {after} then; "
              f"above {limit:.0f} ms for {slow_ms:.0f} ms")
        if slow_ms > P99_BACK_MS:
            print("slow:", [(at - event_ms, p99) for at in range(int(event_ms), int(until_ms), 50)
                            if (p99 := ledger.percentile(at, at + 50, nodes=nodes) or 0) > limit])
        if self.scale.long:
            assert slow_ms <= P99_BACK_MS, f"{what}: p99 was above {limit} ms for {slow_ms} ms"
            assert after <= P99_FACTOR * max(before, floor_ms), f"{what}: p99 is {after} ms"


def start(directory, scale, network):
    cluster = Cluster(directory, network, cluster_timeout=scale.timeout)
    for _ in range(3):
        cluster.add()
    return cluster


@pytest.fixture(scope="module")
def network_reason():
    return missing_network()


@pytest.fixture(scope="module")
def shared(request, tmp_path_factory, network_reason):
    """The small cluster: in a network of its own where there may be one."""
    directory = tmp_path_factory.mktemp("cluster")
    failed = request.session.testsfailed
    if network_reason is not None:
        with start(directory, SHORT, None) as cluster:
            yield cluster
    else:
        with Network() as network, start(directory, SHORT, network) as cluster:
            yield cluster
    if request.session.testsfailed == failed:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.soak)])
def run(request, tmp_path, network_reason):
    if request.param == "short":
        cluster = request.getfixturevalue("shared")
        cluster.wait_settled(3)
        yield Run(cluster, SHORT)
        return
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network()) if network_reason is None else None
        cluster = stack.enter_context(start(tmp_path, LONG, network))
        cluster.wait_settled(3)
        long_run = Run(cluster, LONG)
        yield long_run
        if long_run.probe:
            long_run.probe.close()


def test_a_killed_node_costs_what_was_with_it_and_comes_back(run):
    run.load()
    lost = run.nodes[2]
    lost.kill()
    time.sleep(run.scale.absent_s)
    back_ms = run.ledger.now()
    lost.start()
    ready_ms = run.ledger.now()
    run.end()
    run.judge_detection({0, 1})
    run.judge_times(run.event_ms, "killed", back_ms, nodes={0, 1})
    run.judge([Away(2, run.event_ms, ready_ms)])


def test_a_node_that_was_away_for_long_has_soon_caught_up(run):
    """Under the load: all that it has missed, and all that comes meanwhile."""
    run.load()
    lost = run.nodes[2]
    lost.kill()
    time.sleep(run.scale.long_away_s)
    waited = run.cluster.hints_waiting()
    assert waited > 0
    started = time.monotonic()
    lost.start()
    ready_ms = run.ledger.now()
    ready_s = time.monotonic() - started
    run.cluster.wait_hints()
    caught_up_s = time.monotonic() - started
    run.end_ms = run.ledger.stop()
    # Nothing is mended on the way: each answers of what is in its own store.
    own = run.ledger.check("ONE")
    sure, maybe = run.ledger.keys()
    found = run.cluster.own_keys(lost)
    print(f"{waited:.0f} hints; ready {ready_s:.1f} s, caught up {caught_up_s:.1f} s after its start; "
          f"{own['different']} keys differed then")
    assert own["different"] == 0 and own["violations"] == 0, own
    assert sure <= found <= sure | maybe
    if run.scale.long:
        assert caught_up_s <= CAUGHT_UP_S
    run.cluster.wait_settled(3)
    run.judge([Away(2, run.event_ms, ready_ms)])


def test_a_stopped_node_is_left_out_and_does_nothing_that_is_too_late(run):
    run.load(run.scale.silent_ms)
    run.nodes[2].pause()
    time.sleep(run.scale.stop_s)
    back_ms = run.ledger.now()
    run.nodes[2].go_on()
    run.cluster.wait_settled(3)
    again_ms = run.ledger.now()
    run.end()
    run.judge_detection({0, 1})
    run.judge_times(run.event_ms, "stopped", back_ms, nodes={0, 1})
    # Where all is slow the others find it back, and what they had sent it before given up, later.
    run.judge([Away(2, run.event_ms, again_ms, None if run.scale.long else back_ms)])


CUTS = {
    # Links that are cut, and whose clients suffer.
    "off": ((("n3", "n1"), ("n1", "n3"), ("n3", "n2"), ("n2", "n3"),
             ("n3", "clients"), ("clients", "n3")), {2}),
    "minority": ((("n3", "n1"), ("n1", "n3"), ("n3", "n2"), ("n2", "n3")), {2}),
    "one_way": ((("n3", "n1"),), set()),
    "bridge": ((("n3", "n1"), ("n1", "n3")), set()),
}


@pytest.mark.parametrize("cut", CUTS)
def test_links_are_cut_and_healed(run, cut):
    if run.cluster.network is None:
        pytest.skip(missing_network())
    if cut == "minority" and not run.scale.long:
        pytest.skip("as off, but for its clients: in the long variant")
    links, suffer = CUTS[cut]
    run.load()
    for source, target in links:
        run.cluster.network.cut(source, target)
    time.sleep(run.scale.absent_s)
    back_ms = run.ledger.now()
    run.cluster.network.heal()
    run.cluster.wait_settled(3)
    again_ms = run.ledger.now()
    run.end()
    run.judge_detection({0, 1} if suffer else {0})
    run.judge_times(run.event_ms, cut, back_ms, nodes={0, 1, 2} - suffer)
    # A cut link is lost to both of its ends; and as it heals, what the kernel has kept arrives, and
    # then both find that they have given the connection up.
    run.judge([Away(node, run.event_ms, again_ms, back_ms) for node in suffer or {None}])


def test_each_node_is_restarted_in_turn(run):
    run.load()
    lost = []
    for index, node in enumerate(run.nodes):
        stop_ms = run.ledger.now()
        assert node.stop() == 0, node.log()
        node.start()
        lost.append(Away(index, stop_ms, run.ledger.now()))
        run.cluster.wait_settled(3)
        time.sleep(run.scale.after_s / 2)
    run.end()
    run.judge_times(run.event_ms, "restarts")
    run.judge(lost)


def test_a_node_whose_disk_was_wiped_is_replaced(run):
    run.load()
    lost = run.nodes[2]
    lost.kill()
    time.sleep(run.scale.absent_s / 4)
    shutil.rmtree(lost.data_dir)
    back_ms = run.ledger.now()
    lost.start()
    ready_ms = run.ledger.now()
    run.end()
    run.judge_times(run.event_ms, "wiped", back_ms, nodes={0, 1})
    run.judge_times(back_ms, "rebuilt", nodes={0, 1})
    run.judge([Away(2, run.event_ms, ready_ms)])


def test_two_nodes_join_at_once_and_leave_again(run):
    """Nobody's request fails."""
    run.load()
    cluster = run.cluster
    first = len(run.nodes)
    joined = [cluster.add(wait=False) for _ in range(2)]
    for node in joined:
        node.wait_ready()
    cluster.wait_settled(5)
    joined_ms = run.ledger.now()
    for node in joined:
        run.ledger.ask("node", f"{node.host}:{node.port}")
    time.sleep(run.scale.after_s)
    # Clients go to others before it leaves, as behind any balancer.
    lost = []
    leave_ms = run.ledger.now()
    for number, node in enumerate(joined):
        asked_ms = run.ledger.now()
        with run.nodes[0].connect() as connection:
            assert connection.call("DISTKV.REMOVE", node.place) == "OK"
        left = 4 - number
        wait_for(lambda left=left: len((cluster.view(run.nodes[0]) or {"members": []})["members"])
                 == left, "the node to be gone", 150)
        lost.append(Away(first + number, run.ledger.now(), since_ms=asked_ms))
        node.kill()
    run.end()
    print(f"gone after {[away.begin_ms - leave_ms for away in lost]} ms")
    print(f"two joined within {joined_ms - run.event_ms} ms")
    stay = set(range(first))
    run.judge_times(run.event_ms, "joined", joined_ms, nodes=stay)
    # Five nodes on these cores, and all that two of them had is written to the other three.
    run.judge_times(leave_ms, "left", nodes=stay, floor_ms=P99_FLOOR_MS)
    run.judge(lost)
    del run.nodes[first:]
