"""A cgroup (v2) around upcalls, to measure and find all of their processes.

An upcall's processes are children of a kernel thread and then of init: no wait4(2)
of ours tells what they used.  A cgroup is inherited by fork, so a shell that joins
it and then execs the front has them all in it, and cpu.stat counts them without
any controller.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests.support.stage import TestingError


def _mount_point() -> Path:
    with open("/proc/self/mounts", encoding="ascii", errors="replace") as mounts:
        for line in mounts:
            words = line.split()
            if words[2] == "cgroup2":
                return Path(words[1])
    raise TestingError("no cgroup2 file system is mounted")


class Cgroup:
    """A cgroup of our own; a context manager that removes it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="lgss-", dir=_mount_point()))

    def write_wrapper(self, path: Path, program: Path) -> None:
        """Make ``path`` a program that joins the cgroup and becomes ``program``."""
        path.write_text(f'#!/bin/sh\necho $$ > {self.path}/cgroup.procs\nexec {program} "$@"\n')
        path.chmod(0o755)

    def cpu(self) -> float:
        """CPU seconds used so far, user and system, of ended processes too."""
        for line in (self.path / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec"):
                return int(line.split()[1]) / 1e6
        raise TestingError("cpu.stat has no usage_usec")

    def processes(self) -> list[int]:
        """The pids in it that are not zombies."""
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split() if _alive(int(line))]

    def pss(self) -> int:
        """Bytes of proportional set size of all its processes, now."""
        total = 0
        for pid in self.processes():
            try:
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
            except OSError:
                pass
        return total

    def wait_empty(self, seconds: float) -> bool:
        """Whether all its processes have ended within ``seconds``."""
        end = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def close(self) -> None:
        """Remove it; only an empty one can be."""
        self.wait_empty(5)
        for _ in range(100):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.02)

    def __enter__(self) -> Cgroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX" and os.path.exists(f"/proc/{pid}")
