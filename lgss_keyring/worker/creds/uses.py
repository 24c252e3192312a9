"""Which of the machine's service tickets are in use: a note for each, in a folder beside the tickets.

:mod:`.renewal` renews the tickets that are in use, and no others.  The worker of a machine's request
writes the note when it has a ticket for the service.  The tickets' own file cannot tell: libkrb5
does not write to it, and its atime is not kept where /run is mounted noatime.

*An ordinary user can forge a request for the machine, naming any host* (docs/security.md, "Whom we
believe").  Lustre itself makes such requests from within users' processes, so they are not all forged,
and the worker cannot tell them apart.  So only a request of root's makes a note.  One from a user's
process makes an existing note younger.  But the note also tells when root asked last, and
:meth:`Use.is_current` bounds both.  So a ticket that root has never used is not renewed, and one that
only forged requests still use is not renewed for ever.

A note has 20 decimal digits, the time of root's last use in seconds since the epoch; then, each after a
NUL, what the ticket file's name is made of (:class:`.ticket_file.TicketFile`): the path of krb5.conf,
the origin of the TGT, and the service.  Its mtime is the time of the last use.
"""

from __future__ import annotations

import os
import time

from lgss_keyring.formats.record import Record
from lgss_keyring.worker import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "used"
_DIGITS = 20
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Use(Record):
    """A note: the ``identity`` of the ticket file, and when it was used (seconds since the epoch)."""

    identity: tuple[str, ...]
    last: float
    last_of_root: float

    def is_current(self, now: float, life: float) -> bool:
        """Whether a ticket that lives ``life`` seconds is in use.  A context lives as long as its
        ticket, so a mount uses each ticket once at least."""
        recent = self.last >= now - max(limits.USED_SECONDS, life)
        return recent and self.last_of_root >= now - max(limits.USED_BY_ROOT_SECONDS, 2 * life)


def write(directory: str, name: str, identity: tuple[str, ...], by_root: bool) -> None:
    """Note that the ticket file ``name`` in ``directory`` is used just now; ``by_root``: for a request
    of root's.  Raises OSError.  As a rule it costs two to four system calls, because a note of the last
    minute is left as it is."""
    path = f"{directory}/{FOLDER}/{name}"
    now = time.time()
    try:
        if not by_root:
            if not now - limits.USE_FRESH_SECONDS < os.lstat(path).st_mtime <= now:
                os.utime(path, (now, now), follow_symlinks=False)
            return
        descriptor = os.open(path, os.O_RDWR | _FLAGS)
    except FileNotFoundError:
        if by_root:
            _make(path, now, identity)
        return
    try:
        if not now - limits.USE_FRESH_SECONDS < _number(os.pread(descriptor, _DIGITS, 0)) <= now:
            os.pwrite(descriptor, _head(now), 0)
    finally:
        os.close(descriptor)


def _make(path: str, now: float, identity: tuple[str, ...]) -> None:
    try:
        os.mkdir(os.path.dirname(path), 0o700)
    except FileExistsError:
        pass
    # Of this process: two that make it at once must not write into each other's.
    new = f"{path}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS
    descriptor = os.open(new, flags, 0o600)
    try:
        os.write(descriptor, b"\0".join([_head(now), *(os.fsencode(part) for part in identity)]))
    finally:
        os.close(descriptor)
    os.rename(new, path)


def _head(now: float) -> bytes:
    return b"%0*d" % (_DIGITS, int(now))


def _number(text: bytes) -> int:
    return int(text) if len(text) == _DIGITS and text.isdigit() else 0


def read(directory: str, now: float) -> Iterator[Use]:
    """All notes for ticket files in ``directory``, at most :data:`~lgss_keyring.worker.limits.USES`;
    takes away those that are damaged or so old that they say nothing any more."""
    folder = f"{directory}/{FOLDER}"
    try:
        names = sorted(os.listdir(folder))[: limits.USES]
    except OSError:
        return
    for name in names:
        path = f"{folder}/{name}"
        try:
            use = _read(path)
            if use is None or now - use.last > limits.USE_FORGOTTEN_SECONDS:
                if now - os.lstat(path).st_mtime > limits.USE_FRESH_SECONDS:  # else it is being made
                    os.unlink(path)
                continue
        except OSError:
            continue
        yield use


def _read(path: str) -> Use | None:
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        content = os.read(descriptor, limits.USE_BYTES)
        last = os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
    head, *identity = content.split(b"\0")
    last_of_root = _number(head)
    if not last_of_root or path.endswith(".new"):
        return None
    return Use(tuple(os.fsdecode(part) for part in identity), last, last_of_root)
