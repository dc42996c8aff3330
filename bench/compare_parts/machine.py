# SPDX-License-Identifier: MIT
"""What the machine is, and what else runs on it while we measure."""

import os
import platform
import re
import shutil
import subprocess
import threading

TICKS = os.sysconf("SC_CLK_TCK")


def _read(path, fallback=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return fallback


def _first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else ""


def mount_of(directory):
    """(device, file system) of the longest mount point above the directory."""
    directory = os.path.realpath(directory)
    best = ("", "?", "?")
    for line in _read("/proc/mounts").splitlines():
        device, point, kind = line.split()[:3]
        inside = directory == point or directory.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, device, kind)
    return best[1], best[2]


def facts(directory):
    cpu = re.search(r"model name\s*:\s*(.*)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s+(\d+)", _read("/proc/meminfo"))
    device, kind = mount_of(directory)
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu.group(1) if cpu else platform.processor() or "?",
        "cores": os.cpu_count(),
        "memory_bytes": int(memory.group(1)) * 1024 if memory else 0,
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource",
                             "?").strip(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "?").strip(),
        "disk": {"device": device, "filesystem": kind},
    }


def versions(server):
    def word(pattern, text):
        match = re.search(pattern, text)
        return match.group(1) if match else text

    out = {"distkv-server": word(r"(\d+\.\d+\.\d+)", _first_line(server, "--version")),
           "python": platform.python_version()}
    for program in ("redis-server", "valkey-server"):
        if shutil.which(program):
            out[program] = word(r"v=(\S+)", _first_line(program, "--version"))
    if shutil.which("etcd"):
        out["etcd"] = word(r"(\d+\.\d+\.\d+)", _first_line("etcd", "--version"))
    if shutil.which("fio"):
        out["fio"] = _first_line("fio", "--version").removeprefix("fio-")
    return out


def commit(root):
    head = _first_line("git", "-C", root, "rev-parse", "--short=12", "HEAD")
    dirty = _first_line("git", "-C", root, "status", "--porcelain", "-uno")
    return head + ("-changed" if dirty else "") if head else "?"


def _busy_ticks():
    """User, nice and system time of all processes. Interrupts are left out: they are ours as well."""
    words = _read("/proc/stat").split("\n", 1)[0].split()
    return sum(int(words[at]) for at in (1, 2, 3))


def _own_ticks():
    """The same of this process and all below it, the ended ones included."""
    parents, times = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            text = _read(f"/proc/{name}/stat")
            if text:
                words = text[text.rindex(")") + 2 :].split()
                parents[int(name)] = int(words[1])
                times[int(name)] = sum(int(words[at]) for at in (11, 12, 13, 14))
    total = 0
    for pid, ticks in times.items():
        above = pid
        while above > 1 and above != os.getpid():
            above = parents.get(above, 0)
        if above == os.getpid():
            total += ticks
    return total


class LoadWatch:
    """How much of a core other processes take, over each stretch of time that somebody asks for."""

    def __init__(self):
        self.average_before = " ".join(_read("/proc/loadavg").split()[:3])
        self.shares = []
        self.lock = threading.Lock()
        self.mark = None

    def begin(self):
        self.mark = (os.times().elapsed, _busy_ticks(), _own_ticks())

    def end(self):
        """Cores that others kept busy since begin()."""
        seconds = os.times().elapsed - self.mark[0]
        others = (_busy_ticks() - self.mark[1]) - (_own_ticks() - self.mark[2])
        share = max(0.0, others / TICKS / max(seconds, 0.01))
        with self.lock:
            self.shares.append(share)
        return share

    def result(self):
        ordered = sorted(self.shares) or [0.0]
        return {"average_before": self.average_before, "other_max": ordered[-1],
                "other_median": ordered[len(ordered) // 2]}
