# SPDX-License-Identifier: MIT
"""Disks that misbehave, for tests with a real server on a real file system.

    server
      ext4 or XFS, mounted on `mount_point`
        loop device, direct I/O
          nbdfuse: shows an NBD export as one file
            nbdkit with filters:  cache (volatile)   error (EIO on request)
              file plugin on disk.img

The cache filter keeps every write in memory of the nbdkit process and passes it down only when the
file system asks for a flush. kill -9 of nbdkit is therefore a power cut: what was written and not
flushed is gone, O_DIRECT writes included, while disk.img keeps what was flushed. (A file system's
own shutdown call would not do: unsynced direct overwrites survive it.)

The error filter fails reads or writes while a trigger file exists (fail, heal). It lies below the
cache filter: with the cache, a failing write shows as a failing flush; without it as EIO of the
write itself.
"""

import os
import shutil
import signal
import subprocess
import time


def missing():
    """Why the rigs cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root for mount and losetup"
    for program in ("nbdkit", "nbdfuse", "losetup", "fusermount3", "mkfs.ext4"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    if not os.path.exists("/dev/loop-control"):
        return "needs loop devices"
    probe = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return "needs a free loop device"
    return None


def _run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _wait_for(condition, what, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds} s for {what}")
        time.sleep(0.01)


class Disk:
    """One disk of the stack above. Use as a context manager; every step is undone at the end."""

    def __init__(self, directory, size_mib=512, filesystem="ext4", volatile=True, errors=False):
        self.directory = str(directory)
        self.image = os.path.join(self.directory, "disk.img")
        self.socket = os.path.join(self.directory, "nbd.sock")
        self.fuse_dir = os.path.join(self.directory, "fuse")
        self.fuse_file = os.path.join(self.fuse_dir, "disk")
        self.mount_point = os.path.join(self.directory, "mnt")
        self.filesystem = filesystem
        self.volatile = volatile
        self.errors = errors
        self.nbdkit = None
        self.nbdfuse = None
        self.loop = None
        self.mounted = False
        os.makedirs(self.fuse_dir)
        os.makedirs(self.mount_point)
        with open(self.image, "wb") as image:
            image.truncate(size_mib << 20)

    def __enter__(self):
        try:
            self.attach()
            _run(f"mkfs.{self.filesystem}", *self._mkfs_options(), self.loop)
            self.mount()
        except BaseException:
            self.detach()
            raise
        return self

    def __exit__(self, *_):
        self.detach()

    def _mkfs_options(self):
        if self.filesystem == "ext4":
            # Nothing may be written behind our back later.
            return ("-q", "-E", "lazy_itable_init=0,lazy_journal_init=0")
        return ("-q", "-f")

    # ---- the stack ----

    def attach(self):
        """Switches the disk on."""
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        command = ["nbdkit", "-f", "-U", self.socket]
        arguments = []
        if self.volatile:
            command.append("--filter=cache")
            arguments.append("cache-min-block-size=4K")
        if self.errors:
            command.append("--filter=error")
            arguments.append("error=EIO")
            for kind in ("pread", "pwrite"):
                arguments.append(f"error-{kind}-rate=100%")
                arguments.append(f"error-{kind}-file={self.trigger(kind[1:])}")
        command += ["file", self.image] + arguments
        self.nbdkit = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        _wait_for(lambda: os.path.exists(self.socket), "nbdkit")
        self.nbdfuse = subprocess.Popen(
            ["nbdfuse", self.fuse_file, "--unix", self.socket],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # it complains loudly when its server dies
        )
        _wait_for(lambda: os.path.exists(self.fuse_file), "nbdfuse")
        self.loop = _run("losetup", "-f", "--show", "--direct-io=on", self.fuse_file)

    def mount(self):
        # Whoever made a mount namespace of its own meanwhile (each `ip netns exec` does) has the mount
        # of before the power cut in it still, and XFS mounts no second one with the same UUID.
        options = ("-o", "nouuid") if self.filesystem == "xfs" else ()
        _run("mount", "-t", self.filesystem, *options, self.loop, self.mount_point)
        self.mounted = True

    def power_cut(self):
        """Loses what was not flushed. The file system above sees errors from here on."""
        self.nbdkit.send_signal(signal.SIGKILL)
        self.nbdkit.wait()
        self.nbdkit = None

    def detach(self):
        """Takes the stack down whatever state it is in. Processes that use the mount must be gone."""
        if self.mounted:
            end = time.monotonic() + 60
            while True:
                done = subprocess.run(
                    ["umount", self.mount_point], capture_output=True, check=False
                )
                if done.returncode == 0:
                    break
                if time.monotonic() > end:
                    _run("umount", "-l", self.mount_point, check=False)
                    break
                time.sleep(0.05)
            self.mounted = False
        if self.loop:
            _run("losetup", "-d", self.loop, check=False)
            self.loop = None
        if self.nbdfuse:
            _run("fusermount3", "-u", "-z", self.fuse_dir, check=False)
            try:
                self.nbdfuse.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.nbdfuse.kill()
                self.nbdfuse.wait()
            self.nbdfuse = None
        if self.nbdkit:
            self.nbdkit.terminate()
            self.nbdkit.wait()
            self.nbdkit = None

    def power_cycle(self):
        """After power_cut, with the server dead: the same disk, freshly mounted."""
        self.detach()
        self.attach()
        self.mount()

    # ---- errors ----

    def trigger(self, kind):
        return os.path.join(self.directory, f"fail-{kind}")

    def fail(self, kind):
        with open(self.trigger(kind), "w", encoding="ascii"):
            pass

    def heal(self, kind):
        os.unlink(self.trigger(kind))


class HeldWrites:
    """Holds the writes of some processes back, in the block layer: a stalled disk, for these alone.
    Use as a context manager, for processes that have `wrapper` before their command. `missing`:
    why it cannot be done, or None. The group goes at the end, when its processes are gone."""

    def __init__(self, directory):
        self.missing = None
        self.group = None
        device = os.stat(directory).st_dev
        self.device = f"{os.major(device)}:{os.minor(device)}"
        name = f"distkv-test-{os.getpid()}"
        v1 = "/sys/fs/cgroup/blkio"
        if os.path.exists(f"{v1}/cgroup.procs"):
            self.group = f"{v1}/{name}"
            self.file, self.held, self.free = "blkio.throttle.write_bps_device", "1", "0"
        else:
            self.group = f"/sys/fs/cgroup/{name}"
            self.file, self.held, self.free = "io.max", "wbps=1", "wbps=max"

    @property
    def wrapper(self):
        return ("sh", "-c", f'echo $$ > {self.group}/cgroup.procs && exec "$@"', "sh")

    def __enter__(self):
        try:
            os.mkdir(self.group)
        except OSError as error:
            self.missing, self.group = f"no control group: {error}", None
            return self
        try:
            self.let_go()
        except OSError as error:
            self.missing = f"no throttling of device {self.device}: {error}"
        return self

    def __exit__(self, *_):
        if self.group is None:
            return
        if self.missing is None:
            self.let_go()
        _wait_for(self._removed, f"the end of {self.group}")

    def _removed(self):
        try:
            os.rmdir(self.group)
        except OSError:
            return False
        return True

    def _set(self, value):
        with open(f"{self.group}/{self.file}", "w", encoding="ascii") as file:
            file.write(f"{self.device} {value}")

    def hold(self):
        self._set(self.held)

    def let_go(self):
        self._set(self.free)
