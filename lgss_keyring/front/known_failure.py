"""Failures that are known already: a small file in /run/lgss for each uid, and for the machine.

A loop of the kernel's or of a user's find(1) asks again and again for a context that
cannot be had.  The monitor writes a *note* of the failure, and as long as the note holds the
front rejects the next keys with the same errno, without a process for each.  Only what the
next attempt cannot change is noted (:mod:`lgss_keyring.monitor.failures`), and a note is void as soon as
one of the files that it names has changed.

A note is text: a line ``ERRNO UNTIL LIFE SCOPE KIND``, then ``MTIME SIZE INODE PATH`` for
each file (three ``-`` for one that is not there).  UNTIL is in seconds of CLOCK_BOOTTIME, LIFE in
seconds.  SCOPE is ``*``, or ``SERVICE,NID`` (callout fields 6 and 7) if only this acceptor's
contexts fail.
"""

from __future__ import annotations

import os
import time

SIZE_LIMIT = 4096


def fingerprint(name: str) -> str:
    """Numbers that change when the file ``name`` changes: "MTIME SIZE INODE"; or "- - -"."""
    try:
        status = os.lstat(name)
    except OSError:
        return "- - -"
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def now() -> float:
    """Seconds since the machine was booted, those of its sleep included.  Setting the clock does
    not change it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read(name: str) -> list[str]:
    """The lines of the note ``name``; none if there is no such note."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return os.fsdecode(os.read(descriptor, SIZE_LIMIT)).split("\n")
    except OSError:
        return []
    finally:
        os.close(descriptor)


def look(name: str, callout: str) -> tuple[int, int]:
    """How to reject the request in ``callout`` by the note ``name``: an errno, and seconds; (0, 0)
    if the request has to be tried."""
    lines = read(name)
    try:
        number, until, _, scope, _ = lines[0].split(" ", 4)
        left = float(until) - now()
        fields = callout.split(":")
        if left <= 0 or scope not in ("*", f"{fields[6]},{fields[7]}"):
            return 0, 0
        for line in lines[1:]:
            mtime, size, inode, file = line.split(" ", 3)
            if f"{mtime} {size} {inode}" != fingerprint(file):
                return 0, 0
        # One of the last two is field 10. A process in another namespace has other credentials.
        if any(is_elsewhere(field) for field in fields[-2:]):
            return 0, 0
        return int(number), int(left) + 1
    except (ValueError, IndexError):
        return 0, 0  # damaged, or no callout info of ours


def is_elsewhere(pid: str) -> bool:
    """Whether process ``pid`` has, or may have, other credentials or another KDC than ours:
    another mount or network namespace."""
    if not (pid.isascii() and pid.isdecimal() and len(pid) <= 10) or pid == "0":
        return False
    try:
        return any(
            os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
            for kind in ("mnt", "net")
        )
    except OSError:
        return True
