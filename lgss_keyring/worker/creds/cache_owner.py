"""Whether a credential cache is there, and whether it is the right user's.

A default cache has a name that everybody knows, in /tmp, where everybody may put a FIFO that
libkrb5 would wait in, or a cache of their own making.  And libkrb5 makes a keyring for a
KEYRING cache that is not there, by merely resolving its name (docs/protocol.md 10).
"""

from __future__ import annotations

import os
import stat

from lgss_keyring.formats.errors import CredentialError, Kind
from lgss_keyring.front import fuse
from lgss_keyring.system import keyrings

KEYRINGS = {b"thread": -1, b"process": -2, b"session": -3, b"user": -4}


def exists(name: bytes, uid: int) -> bool:
    """Whether resolving ``name`` as ``uid`` would find a cache rather than make one.

    Makes nothing itself.  True for all types but KEYRING: those are made by writing only.
    Raises OSError where /proc/keys cannot be read.
    """
    kind, _, residual = name.partition(b":")
    if kind != b"KEYRING":
        return True
    anchor, colon, rest = residual.partition(b":")
    collection = rest.partition(b":")[0]
    if not colon:
        # The old form, in the session keyring: of one cache, or of a collection.
        names = (anchor, keyrings.COLLECTION + anchor)
        return any(keyrings.search(keyrings.SESSION, "keyring", each) for each in names)
    if anchor == b"persistent":
        # Asking for it (KEYCTL_GET_PERSISTENT) makes it; so it is looked for by name.
        wanted = b" _persistent.%d:" % (int(collection) if collection.isdigit() else uid)
        with open("/proc/keys", "rb") as listed:
            return any(wanted in line for line in listed)
    keyring = KEYRINGS.get(anchor)
    return keyring is not None and bool(keyrings.search(keyring, "keyring", keyrings.COLLECTION + collection))


class OwnedCache:
    """A context manager that gives the name by which the cache ``name`` can be opened as that
    of ``uid`` and of nobody else.

    A FILE cache is opened here, without following a link and without asking a file system of a
    user's (FUSE), and is used by its descriptor.  A DIR cache's folder must be that user's.  Nobody
    else can make a cache of another type.  Raises CredentialError of kind no-ticket if there is
    none, or if it is another user's.
    """

    def __init__(self, name: bytes, uid: int) -> None:
        self._name, self._uid = name, uid
        self._descriptor = -1

    def __enter__(self) -> bytes:
        name = self._name
        kind, colon, path = name.partition(b":")
        if not colon or name.startswith(b"/"):
            kind, path = b"FILE", name
        if kind not in (b"FILE", b"WRFILE", b"DIR"):
            return name
        shown = path.decode("utf-8", "replace")
        try:
            if kind == b"DIR":
                folder = path if not path.startswith(b":") else os.path.dirname(path[1:])
                if _owner_of(os.fsdecode(folder)) != self._uid:
                    raise CredentialError(f"cache {shown} is another user's", kind=Kind.NO_TICKET)
                return name
            self._descriptor = fuse.open_path(os.fsdecode(path))
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != self._uid:
                self.__exit__()
                raise CredentialError(f"cache {shown} is another user's, or no file", kind=Kind.NO_TICKET)
        except OSError as error:
            raise CredentialError(f"cache {shown}: {error.strerror}", kind=Kind.NO_TICKET) from error
        # /proc/PID/fd of a process that is not dumpable is closed to all but that process.
        return b"FILE:/proc/self/fd/%d" % self._descriptor

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _owner_of(folder: str) -> int:
    """The uid that ``folder`` belongs to; of where it leads to if it is a link of root's."""
    descriptor = fuse.open_path(folder)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return os.stat(folder).st_uid if stat.S_ISLNK(status.st_mode) and status.st_uid == 0 else status.st_uid


def path_of(name: bytes) -> str:
    """The file of a FILE cache, or the folder of a DIR cache, that ``name`` names; empty for
    another type."""
    kind, colon, path = name.partition(b":")
    if not colon or name.startswith(b"/"):
        kind, path = b"FILE", name
    if kind == b"DIR" and path.startswith(b":"):
        path = os.path.dirname(path[1:])
    return os.fsdecode(path) if kind in (b"FILE", b"WRFILE", b"DIR") else ""


def is_safe_folder(path: bytes, uid: int) -> bool:
    """Whether nobody but root and ``uid`` can replace a file of that user's in this folder:
    it is sticky, or nobody else may write there.  Raises OSError."""
    status = os.stat(path)
    return status.st_uid in (0, uid) and bool(status.st_mode & stat.S_ISVTX or not status.st_mode & 0o022)
