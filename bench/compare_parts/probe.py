# SPDX-License-Identifier: MIT
"""A bare DSYNC write of 4 KiB every few milliseconds, and how long each took.

    probe.py FILE SECONDS EVERY_MS        microseconds, a line each, on standard output

It writes over a file that is there in full, with O_DIRECT and O_DSYNC: what a log has to wait for,
and nothing else. Like the requests that it is compared with, writes have a time at which they are
due, and count from then: a disk that stands still for 25 ms shows in each write that was due
meanwhile, where a probe that only begins the next one 5 ms after the last would have seen one slow
write, as if all other moments had been good.
"""

import mmap
import os
import sys
import time

BLOCK = 4096
FILE_BYTES = 16 << 20


def main():
    path, seconds, every = sys.argv[1], float(sys.argv[2]), int(float(sys.argv[3]) * 1e6)
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
    due = begin = time.monotonic_ns()
    offset = 0
    while due < begin + seconds * 1e9:
        wait = due - time.monotonic_ns()
        if wait > 0:
            time.sleep(wait / 1e9)
        os.pwritev(fd, [block], offset)
        took.append((time.monotonic_ns() - due) / 1e3)
        offset = (offset + BLOCK) % FILE_BYTES
        due += every
    os.close(fd)
    os.unlink(path)
    print("\n".join(f"{us:.1f}" for us in took))


if __name__ == "__main__":
    main()
