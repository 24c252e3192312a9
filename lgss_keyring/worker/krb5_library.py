"""What GSS-API cannot say about caches and keytabs, by the library krb5 (:mod:`.lean_import`).

The types below are libkrb5's; a *context* belongs to one thread of one process.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time

from lgss_keyring.formats.errors import CredentialError, Kind, LgssError
from lgss_keyring.formats.record import Record
from lgss_keyring.system import keyrings
from lgss_keyring.worker import gss_library, lean_import, limits

lean_import.load(
    "krb5", ("_context", "_exceptions", "_principal", "_creds", "_creds_opt", "_ccache", "_cccol", "_kt")
)

from krb5._ccache import (  # noqa: E402
    CCache,
    cc_default_name,
    cc_initialize,
    cc_new_unique,
    cc_resolve,
    cc_store_cred,
)
from krb5._cccol import cccol_iter  # noqa: E402
from krb5._context import Context, get_default_realm, init_context  # noqa: E402
from krb5._creds import Creds, get_init_creds_keytab  # noqa: E402
from krb5._creds_opt import get_init_creds_opt_alloc  # noqa: E402
from krb5._exceptions import Krb5Error  # noqa: E402
from krb5._kt import KeyTab, kt_resolve  # noqa: E402
from krb5._principal import Principal, copy_principal, parse_name_flags  # noqa: E402

__all__ = [
    "CCache",
    "Context",
    "Creds",
    "KeyTab",
    "Krb5Error",
    "Principal",
    "Tgt",
    "cc_default_name",
    "cc_resolve",
    "cccol_iter",
    "copy_principal",
    "exists",
    "explain",
    "get_default_realm",
    "get_init_creds_keytab",
    "get_init_creds_opt_alloc",
    "init_context",
    "into_memory",
    "kt_resolve",
    "own_cache",
    "parse_name_flags",
    "selected",
    "store_in",
    "tgt_of",
]


class Tgt(Record):
    """A ticket-granting ticket of its client's own realm; times in seconds since the epoch."""

    creds: Creds
    start: int
    end: int

    def good(self, now: float | None = None) -> bool:
        """Whether it has left at least 30 minutes or a quarter of its lifetime."""
        left = self.end - (time.time() if now is None else now)
        return left > 0 and left >= min(
            limits.GOOD_TICKET_SECONDS, (self.end - self.start) / limits.GOOD_TICKET_DIVISOR
        )


def tgt_of(context: Context, cache: CCache) -> Tgt | None:
    """The longest-lived TGT in ``cache``; None if it has none, or is no cache."""
    found: Tgt | None = None
    try:
        for creds in cache:
            server = creds.server
            if server.components[:1] != [b"krbtgt"] or server.components[1:] != [creds.client.realm]:
                continue
            times = creds.times
            tgt = Tgt(creds, times.starttime or times.authtime, times.endtime)
            if found is None or tgt.end > found.end:
                found = tgt
    except Krb5Error:
        return None
    return found


def into_memory(context: Context, creds: Creds) -> bytes:
    """Put a copy of ``creds`` into a new MEMORY cache of this process; gives its name.

    What libkrb5 adds to a cache (service tickets) goes there, and not into the cache that
    ``creds`` came from.
    """
    cache = cc_new_unique(context, b"MEMORY")
    cc_initialize(context, cache, creds.client)
    cc_store_cred(context, cache, creds)
    return b"MEMORY:" + (cache.name or b"")


# What the library krb5 does not bind; the same libkrb5, which is loaded already.
_libkrb5 = ctypes.CDLL("libkrb5.so.3")
_NT_SRV_HST = 3


def selected(service: str) -> bytes | None:
    """The name of the cache that krb5_cc_select chooses for ``service`` (name@host) from the
    default collection, None if it has no opinion."""
    component, _, host = service.partition("@")
    handle, target, cache, client = (ctypes.c_void_p() for _ in range(4))
    name = ctypes.c_char_p()
    # A context of its own: the library does not tell where its one is.
    if _libkrb5.krb5_init_context(ctypes.byref(handle)):
        return None
    try:
        if (
            _libkrb5.krb5_sname_to_principal(
                handle, host.encode(), component.encode(), _NT_SRV_HST, ctypes.byref(target)
            )
            or _libkrb5.krb5_cc_select(handle, target, ctypes.byref(cache), ctypes.byref(client))
            or cache.value is None
            or _libkrb5.krb5_cc_get_full_name(handle, cache, ctypes.byref(name))
        ):
            return None
        return name.value
    finally:
        # Each takes NULL, but for the cache.
        _libkrb5.krb5_free_string(handle, name)
        if cache.value is not None:
            _libkrb5.krb5_cc_close(handle, cache)
        _libkrb5.krb5_free_principal(handle, client)
        _libkrb5.krb5_free_principal(handle, target)
        _libkrb5.krb5_free_context(handle)


def store_in(context: Context, name: bytes, creds: Creds) -> None:
    """Make the cache ``name`` anew, with ``creds``."""
    cache = cc_resolve(context, name)
    cc_initialize(context, cache, creds.client)
    cc_store_cred(context, cache, creds)


def exists(name: bytes, uid: int) -> bool:
    """Whether resolving ``name`` would find a cache rather than make one.

    libkrb5 makes a keyring for a KEYRING cache that is not there, by merely resolving its
    name (docs/protocol.md 10); so this looks for it before, and makes nothing.  True for all other
    types: those are made by writing only.
    """
    kind, _, residual = name.partition(b":")
    if kind != b"KEYRING":
        return True
    anchor, colon, rest = residual.partition(b":")
    collection = rest.partition(b":")[0]
    if not colon:
        # The old form, in the session keyring: of one cache, or of a collection.
        names = (anchor, b"_krb_" + anchor)
        return any(keyrings.search(keyrings.SESSION, "keyring", each) for each in names)
    if anchor == b"persistent":
        # Asking for it (KEYCTL_GET_PERSISTENT) makes it; so it is looked for by name.
        wanted = b" _persistent.%d:" % (int(collection) if collection.isdigit() else uid)
        with open("/proc/keys", "rb") as listed:
            return any(wanted in line for line in listed)
    ring = _ANCHORS.get(anchor)
    return ring is not None and bool(keyrings.search(ring, "keyring", b"_krb_" + collection))


class own_cache:
    """The name by which the cache ``name`` can be opened as that of ``uid`` and nobody else's.

    The default one is in /tmp, where anybody may put a FIFO that libkrb5 would wait in, or a
    cache of his own making.  A FILE cache is opened here, without following a link and
    without waiting, and is used by its descriptor; a DIR cache's folder must be that
    user's; all other types are nobody else's to make.  Raises CredentialError with kind
    no-ticket where there is none, or one that is not taken.
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
                if os.stat(folder).st_uid != self._uid:
                    raise CredentialError(f"cache {shown} is another user's", kind=Kind.NO_TICKET)
                return name
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(path, flags)
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != self._uid:
                self.__exit__()
                raise CredentialError(f"cache {shown} is another user's, or no file", kind=Kind.NO_TICKET)
        except OSError as error:
            raise CredentialError(f"cache {shown}: {error.strerror}", kind=Kind.NO_TICKET) from error
        return b"FILE:/proc/self/fd/%d" % self._descriptor

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


_ANCHORS = {b"thread": -1, b"process": -2, b"session": -3, b"user": -4}


def explain(error: Krb5Error, doing: str, family: type[LgssError]) -> LgssError:
    """``error`` in the words of this package; see :func:`lgss_keyring.worker.gss_library.explain`."""
    # The library appends the number, which says nothing to people.
    text = str(error).removesuffix(f" {error.err_code}")
    cause = gss_library.CAUSES.get(error.err_code)
    if cause is None:
        return family(f"{doing}: {text}")
    return family(f"{doing}: {text}", errno=cause.errno, kind=cause.kind, hint=cause.hint)
