"""A credential cache file of our own, shared by all upcalls of this machine.

A worker that finds no good ticket in it takes the lock, looks again, asks the KDC, writes
another file beside it and renames that into place.  So a crash at any point leaves the old
file or none, the kernel gives the lock back, and a hundred upcalls of one mount make one
exchange with the KDC.  A worker that has waited ``limits.LOCK_SECONDS`` for the lock asks the
KDC itself: with the C program one dead KDC stalls every upcall of root (docs/security.md,
"What programs of this kind taught").
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import time

from lgss_keyring.worker import krb5_library, limits
from lgss_keyring.worker.creds import uses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.formats.config import Krb5
    from lgss_keyring.formats.outcome import Report


LOCKS = "locks"
"""The file, beside the tickets, on which all locks are: each on one byte of its own.  A file for each
lock would let users fill /run, whose forged requests name one host after the other."""
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of fcntl(2): type, whence, start, length, pid."""


class TicketFile:
    """One such file and its lock."""

    def __init__(self, directory: str, title: str, *identity: str) -> None:
        """``title`` is the part of the file's name that is for people; ``identity`` is all that
        the tickets depend on, and its digest keeps different files apart."""
        self._directory = directory
        self._identity = identity
        key = "\0".join(identity).encode("utf-8", "surrogateescape")
        readable = "".join(each if each.isalnum() or each in "._-@" else "_" for each in title)[:100]
        self.path = f"{directory}/{readable}.{hashlib.sha256(key).hexdigest()[:12]}"

    def read(self, context: krb5_library.Context) -> list[krb5_library.Ticket]:
        """All tickets in it; none if it is not there, is damaged, or if others may write its folder."""
        if not os.path.exists(self.path) or _why_not_roots_alone(self._directory):
            return []
        try:
            return krb5_library.tickets_of(krb5_library.cc_resolve(context, self._name(self.path)))
        except krb5_library.Krb5Error:
            return []

    def lock(self) -> int | None:
        """A descriptor that holds the lock until it is closed; None if another worker still
        holds the lock after ``limits.LOCK_SECONDS``.  Raises OSError, also for a folder that
        others may write."""
        try:
            os.mkdir(self._directory, 0o700)
        except FileExistsError:
            pass
        if why_not := _why_not_roots_alone(self._directory):
            raise OSError(errno.EPERM, why_not)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{self._directory}/{LOCKS}", flags, 0o600)
        # Of the open file, not of the process: this one may hold a TGT's and a service's.
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, lock_place(self.path), 1, 0)
        end = time.monotonic() + limits.LOCK_SECONDS
        while True:
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
            except BlockingIOError:
                if time.monotonic() > end:
                    os.close(descriptor)
                    return None
                time.sleep(limits.LOCK_POLL_SECONDS)
            except BaseException:
                os.close(descriptor)
                raise
            else:
                return descriptor

    def write(
        self, context: krb5_library.Context, tickets: Sequence[krb5_library.Creds], report: Report
    ) -> None:
        """Replace its contents by ``tickets``, while holding the lock; a failure is reported only."""
        # Only the lock's holder writes this name, so a crash leaves one file at most,
        # and the next writer begins it anew (libkrb5 unlinks it first).
        new = f"{self.path}.new"
        try:
            krb5_library.store_in(context, self._name(new), tickets)
            os.rename(new, self.path)
        except (OSError, krb5_library.Krb5Error) as error:
            report("warning", f"the ticket cannot be kept in {self.path}: {error}")

    def note_use(self, by_root: bool, report: Report) -> None:
        """Note that it is used just now, so that it is renewed before it ends (:mod:`.uses`);
        ``by_root``: for a request of root's.  A failure is reported only."""
        if _why_not_roots_alone(self._directory):
            return
        try:
            uses.write(self._directory, os.path.basename(self.path), self._identity, by_root)
        except OSError as error:
            report("debug", f"the use of {self.path} cannot be noted: {error.strerror}")

    def remove(self) -> None:
        """Take the file away, while holding the lock.  Raises OSError."""
        os.unlink(self.path)

    @staticmethod
    def _name(path: str) -> bytes:
        return b"FILE:" + os.fsencode(path)


def of_tgt(krb5: Krb5, keytab: str, principal: str) -> TicketFile:
    """The file of the TGT that ``principal`` gets by ``keytab``."""
    return TicketFile(krb5.ccache_directory, principal, krb5.config, keytab, principal)


def of_service(krb5: Krb5, origin: tuple[str, ...], service: str) -> TicketFile:
    """The file of the tickets for ``service`` (name@host).  ``origin`` says where their TGT comes from:
    ``("keytab", keytab, principal)`` or ``("cache", principal)``.  TGTs of different origins do not
    share a file."""
    title = f"{origin[-1]}.{service}"
    return TicketFile(krb5.ccache_directory, title, krb5.config, *origin, service)


def lock_place(path: str) -> int:
    """The byte of the file of locks that belongs to the tickets in ``path``."""
    return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:7], "big")


def _why_not_roots_alone(directory: str) -> str:
    """Why no ticket may be kept in ``directory``; empty if it is a folder that root alone may write."""
    try:
        status = os.lstat(directory)
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISDIR(status.st_mode):
        return "it is no folder"
    if status.st_uid != 0:
        return f"it belongs to uid {status.st_uid}, not to root"
    return "others than root may write there" if status.st_mode & 0o022 else ""
