"""Failures that are known already: a small file in /run/lgss for each uid, and for the machine.

A loop of the kernel's or of a user's find(1) asks again and again for a context that
cannot be had.  The monitor writes a *note* of the failure, and as long as the note holds the
front rejects the next keys with the same errno, without a process for each.  Only what the
next attempt cannot change is noted (:mod:`lgss_keyring.monitor.failures`), and a note is void as soon as
one of the files that it names has changed.

A note is text: a line ``ERRNO UNTIL LIFE KIND``; a line with its scope, ``*`` or the
:func:`acceptor` whose contexts alone fail; then ``CTIME SIZE INODE PATH`` for each file (three
``-`` for one that is not there).  UNTIL is in seconds of CLOCK_BOOTTIME, LIFE in seconds.
"""

from __future__ import annotations

import errno
import os
import time

from lgss_keyring.front import fuse

SIZE_LIMIT = 4096
FILE_TYPE, LINK = 0o170000, 0o120000
"""Of st_mode, as in :mod:`stat`, which is not loaded here."""
LONGEST_LIFE = 10
"""Seconds that a note is good for, at most."""
LARGEST_ERRNO = 511
"""The kernel rejects keys with errnos up to this; larger ones are for itself."""
home = "self"
"""The process in /proc whose namespaces are ours (:data:`lgss_keyring.worker.namespaces.home`)."""
SHORTEST_REJECTION = 2
"""Seconds.  With 1 s a few callers would see ENOKEY (:data:`.answer.FAILURE_LIFE`)."""


def fingerprint(name: str) -> str:
    """Numbers that change when the file ``name`` changes: "CTIME SIZE INODE"; or "- - -".

    The first is the time of the last change of the file's contents, owner, mode or label.  Only
    links of root's are followed: another user's could lead to a file system that holds us up.
    """
    try:
        descriptor = fuse.open_path(name)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if status.st_mode & FILE_TYPE == LINK and status.st_uid == 0:
            status = os.stat(name)
    except OSError:
        return "- - -"
    return f"{status.st_ctime_ns} {status.st_size} {status.st_ino}"


def acceptor(callout: str) -> str:
    """The acceptor that the request in ``callout`` is for: Lustre service, NID and obd name.

    The NID alone is not enough, because the host of an MGC with an IPv6 NID is found by its name.
    """
    return ":".join(callout.split(":")[6:-2])


def now() -> float:
    """Seconds since the machine was booted, those of its sleep included.  Setting the clock does
    not change it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read(name: str) -> list[str]:
    """The lines of the note ``name``; none if there is no such note of our own."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return []
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
        number, seconds = _verdict(lines[0])
        fields = callout.split(":")
        if lines[1] not in ("*", acceptor(callout)):
            return 0, 0
        for line in lines[2:]:
            ctime, size, inode, file = line.split(" ", 3)
            if f"{ctime} {size} {inode}" != fingerprint(file):
                return 0, 0
        # One of the last two is field 10. A process in another namespace has other credentials.
        if any(is_elsewhere(field) for field in fields[-2:]):
            return 0, 0
    except (ValueError, IndexError):
        return 0, 0  # damaged, or no callout info of ours
    return number, seconds


def _verdict(line: str) -> tuple[int, int]:
    """The errno and the seconds to reject with, from the first ``line`` of a note; raises ValueError
    if that is damaged, or does not hold any more."""
    number, until, _, _ = line.split(" ", 3)
    left = float(until) - now()
    if not (0 < left <= LONGEST_LIFE and 0 < int(number) <= LARGEST_ERRNO):
        raise ValueError
    # While the rejected key lives, the kernel itself answers further requests for it, and nobody
    # notices a kinit. So it lives as short as it can. With ENOKEY that is 1 s: callers for whom
    # the key is gone too early get ENOKEY as well.
    least = 1 if int(number) == errno.ENOKEY else SHORTEST_REJECTION
    return int(number), max(int(left), least)


def is_elsewhere(pid: str) -> bool:
    """Whether process ``pid`` has, or may have, another mount or network namespace than ours."""
    if not (pid.isascii() and pid.isdecimal() and len(pid) <= 10) or int(pid) == 0:
        return False
    try:
        return any(
            os.stat(f"/proc/{int(pid)}/ns/{kind}").st_ino != os.stat(f"/proc/{home}/ns/{kind}").st_ino
            for kind in ("mnt", "net")
        )
    except OSError:
        return True
