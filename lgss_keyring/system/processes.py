"""Other processes, as /proc describes them.

A pid may be given to another process later.  So a :class:`Task` holds a descriptor of the
folder /proc/PID: that stays with one task, and cannot be read any more when the task has
ended.  A pidfd would not do.  pidfd_open(2) looks the number up in the caller's pid namespace,
and a worker may be in one of its own; and before Linux 5.8 setns(2) does not take a pidfd.
"""

from __future__ import annotations

import os

PF_EXITING = 0x4
"""A flag of /proc/PID/stat: the task has begun to exit."""
READ_LIMIT = 1 << 16
"""Bytes of one file of /proc/PID; those that are read here are far shorter."""


def start_time(stat_line: bytes) -> int:
    """Field 22 of /proc/PID/stat: when the task started, in clock ticks since boot."""
    return int(_fields_after_name(stat_line)[19])


def state(stat_line: bytes) -> bytes:
    """Field 3 of /proc/PID/stat, a letter (proc_pid_stat(5))."""
    return _fields_after_name(stat_line)[0]


def _fields_after_name(stat_line: bytes) -> list[bytes]:
    # The second field is the program's name in parentheses, and may hold anything.
    return stat_line[stat_line.rindex(b")") + 1 :].split()


def own_start_time(parent: int = 0) -> int:
    """When this process started, in clock ticks since boot; or its ``parent``, if that pid is
    given and the process still lives."""
    if parent and parent == os.getppid():
        try:
            with open(f"/proc/{parent}/stat", "rb") as file:
                return start_time(file.read())
        except OSError:
            pass  # it was killed just now
    with open("/proc/self/stat", "rb") as file:
        return start_time(file.read())


def cgroups_of(text: bytes) -> dict[bytes, bytes]:
    """/proc/PID/cgroup as paths by hierarchy: its controllers with commas between them, or a
    name, or nothing for version 2."""
    # Not splitlines(): the name of a cgroup may hold a carriage return, and what follows it
    # would be read as a line of its own.
    lines = (line.split(b":", 2) for line in text.split(b"\n") if line)
    return {controllers: path for _, controllers, path in lines}


def _read(descriptor: int) -> bytes:
    try:
        pieces = []
        while piece := os.read(descriptor, READ_LIMIT):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


class Task:
    """One process, or one thread of a process, that stays the same whatever becomes of its
    number.  All methods raise OSError (ESRCH, ENOENT) once it has ended."""

    def __init__(self, pid: int) -> None:
        """Take hold of ``pid``, of a process or a thread; raises OSError if there is none."""
        self.pid = pid
        self._folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._folder)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor, the caller's, of the file ``name`` of /proc/PID."""
        return os.open(name, flags, dir_fd=self._folder)

    def stat_of(self, name: str) -> os.stat_result:
        """stat(2) of the file ``name`` of /proc/PID."""
        return os.stat(name, dir_fd=self._folder)

    def read(self, name: str) -> bytes:
        """The contents of the file ``name`` of /proc/PID."""
        return _read(self.open(name))

    def status(self) -> dict[bytes, bytes]:
        """The lines of /proc/PID/status: values without blanks around them, by name."""
        pairs = (line.partition(b":") for line in self.read("status").split(b"\n"))
        return {name: value.strip() for name, _, value in pairs}

    def start_time(self) -> int:
        """When it started, in clock ticks since boot."""
        return start_time(self.read("stat"))

    def has_ended(self) -> bool:
        """Whether it is dead, or a zombie, which can still be read."""
        try:
            return state(self.read("stat")) in b"ZX"
        except OSError:
            return True

    def is_exiting(self) -> bool:
        """Whether it has begun to exit and is not dead yet.  The kernel takes its namespaces
        away before it closes the last of its files (docs/protocol.md 6)."""
        line = self.read("stat")
        return state(line) not in b"ZX" and bool(int(_fields_after_name(line)[6]) & PF_EXITING)
