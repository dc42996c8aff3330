# SPDX-License-Identifier: MIT
"""A bare DSYNC write of 4 KiB every few milliseconds, and how long each took.

    probe.py FILE SECONDS PAUSE_MS        microseconds, a line each, on standard output

It writes over a file that is there in full, with O_DIRECT and O_DSYNC: what a log has to wait for,
and nothing else.
"""

import mmap
import os
import sys
import time

BLOCK = 4096
FILE_BYTES = 16 << 20


def main():
    path, seconds, pause = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]) / 1e3
    with open(path, "wb") as file:
        file.write(bytes(FILE_BYTES))
        os.fsync(file.fileno())
    block = mmap.mmap(-1, BLOCK)
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
    try:
        # It must not wait for a core that a polling client keeps busy.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass
    took = []
    end = time.monotonic() + seconds
    offset = 0
    while time.monotonic() < end:
        begun = time.monotonic_ns()
        os.pwritev(fd, [block], offset)
        took.append((time.monotonic_ns() - begun) / 1e3)
        offset = (offset + BLOCK) % FILE_BYTES
        time.sleep(pause)
    os.close(fd)
    os.unlink(path)
    print("\n".join(f"{us:.1f}" for us in took))


if __name__ == "__main__":
    main()
