"""How many lines each user's requests have written to the log lately.

Anybody can make upcalls that fail, and each failure is a line.  Upcalls are processes of their
own, so the count is in a file that they share: ``log-lines`` in the folder of ``[krb5]
ccache_directory``.  It is a table of :data:`~lgss_keyring.system.limits.LOG_SLOTS` slots, because
a file for each uid would let a user with 65536 subordinate uids fill /run.  The slot of a uid is
found by the uid's number.  The layout of a slot, in native byte order and without padding:

    u64 owner (0: none); u64 start of the window (ms of CLOCK_MONOTONIC); u32 lines; u32 hidden

The owner is 1 + 2 * uid, and one more for requests for the machine's credential.  Lustre asks for
the machine's contexts in users' processes, and a user who causes many lines must not hide theirs.

A line costs one open(2) and one lock, which is never waited for.  A line whose slot is locked by
another process is not counted, and shown if the limit was not reached before.  Where no count can
be kept (there is no folder, or another uid with the same slot writes lines at the same time) the
line is shown.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time

from lgss_keyring.formats.record import Record
from lgss_keyring.system.limits import LOG_LOCK_TRIES, LOG_SLOTS, LOG_WINDOW

_SLOT = struct.Struct("=QQII")
assert _SLOT.size == 24


class Hidden(Record):
    """How many ``lines`` of ``uid`` were not shown in the window that began ``age`` seconds ago."""

    uid: int
    for_machine: bool
    lines: int
    age: float


class Verdict(Record):
    """What becomes of a line.

    ``shown``
        whether it is written.
    ``last``
        whether it is the last one that is written in its window.
    ``hidden``
        the lines of an earlier window that were not written, to be reported now.
    """

    shown: bool
    last: bool = False
    hidden: Hidden | None = None


def count(folder: str, uid: int, for_machine: bool, limit: int) -> Verdict:
    """Count one more line of ``uid``, of which ``limit`` are shown in a window.

    ``for_machine``: it is about the machine's credential.  Raises nothing.
    """
    try:
        descriptor = _open(folder)
    except OSError:
        return Verdict(True)
    try:
        status = os.fstat(descriptor)
        # Others may have put something there if the folder is not root's alone.
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return Verdict(True)
        owner = 1 + 2 * uid + for_machine
        at = owner % LOG_SLOTS * _SLOT.size
        locked = _lock(descriptor, at)
        verdict, slot = _judge(os.pread(descriptor, _SLOT.size, at), owner, limit)
        if not locked:
            # The slot cannot be changed, so the next process reports what was hidden before.
            return Verdict(verdict.shown)
        if slot:
            os.pwrite(descriptor, slot, at)
        return verdict
    except OSError:
        return Verdict(True)
    finally:
        os.close(descriptor)


def _open(folder: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    path = f"{folder}/log-lines"
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.mkdir(folder, 0o700)
        return os.open(path, flags, 0o600)


def _lock(descriptor: int, at: int) -> bool:
    """Whether the slot is locked by us now; it is given back when the descriptor is closed."""
    for _ in range(LOG_LOCK_TRIES):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SLOT.size, at)
        except BlockingIOError:
            # The holder needs 10 us, if it is running.
            os.sched_yield()
        else:
            return True
    return False


def _judge(slot: bytes, owner: int, limit: int) -> tuple[Verdict, bytes]:
    """The verdict, and the new bytes of the slot (empty: they stay)."""
    now = int(time.monotonic() * 1000)
    # Beyond the end of the file, or never written: zeros.
    before, start, lines, hidden = _SLOT.unpack(slot.ljust(_SLOT.size, b"\0"))
    unreported = None
    # A start in the future was written before the machine was started again.
    if not before or not 0 <= now - start < LOG_WINDOW * 1000:
        if before and hidden:
            uid, for_machine = divmod(before - 1, 2)
            unreported = Hidden(uid, bool(for_machine), hidden, max(now - start, 0) / 1000)
        before, start, lines, hidden = owner, now, 0, 0
    if before != owner:
        return Verdict(True), b""
    shown = lines < limit
    if shown:
        lines += 1
    else:
        hidden = min(hidden + 1, 2**32 - 1)
    verdict = Verdict(shown, shown and lines == limit, unreported)
    return verdict, _SLOT.pack(owner, start, lines, hidden)
