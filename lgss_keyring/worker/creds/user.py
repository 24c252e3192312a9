"""The credential of an ordinary user, looked for as that user (docs/protocol.md 4).

His default cache, as libkrb5 computes it for the uid that this process has become, if it
holds a valid credential, or his client keytab gives one (of a collection the cache that
libkrb5 chooses for this acceptor).  Else the one that is valid for longest among

- the other caches of his default collection (DIR, KEYRING, KCM), and
- files whose name contains ``krb5cc`` in /tmp and in /run/user/UID: regular, his own, for
  him to read and write; no link is followed, and what is checked is the open file.

What comes of these is used as a copy in memory, so that nothing is written to a cache
that is not the default one.
"""

from __future__ import annotations

import os
import stat
import time

from lgss_keyring.formats.errors import CredentialError, Kind, LgssError
from lgss_keyring.worker import gss_library, identity, limits
from lgss_keyring.worker.creds import Credential

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report
    from lgss_keyring.worker import krb5_library

FALLBACK = ("/tmp", "/run/user/{uid}")  # noqa: S108
MARK = b"krb5cc"
COLLECTIONS = (b"DIR", b"KEYRING", b"KCM")


def acquire(request: UpcallRequest, config: Config, service: str, report: Report) -> Credential:
    """A credential for initiating to ``service`` (name@host).

    Raises CredentialError, what is wrong with the default cache being its words: no cache,
    an expired ticket, an unreadable one.
    """
    doing = f"uid {request.uid} has no usable Kerberos credential"
    default = _default()
    unusable = _unusable(default, request.uid)
    cause: gss_library.GSSError | None = None
    try:
        if unusable:
            # The client keytab, which libkrb5 would turn to as well; but what it gets must
            # not be written where somebody else has been, or is about to be.
            cache: bytes | None = b"MEMORY:lgss"
        else:
            cache = _of_collection(default, service)
        return Credential(_from(cache))
    except gss_library.GSSError as error:
        explained = gss_library.explain(error, doing, CredentialError)
        if not unusable or explained.kind not in (Kind.NO_TICKET, Kind.NO_CREDENTIAL):
            cause = error
    handle = _elsewhere(request.uid, report)
    if handle is not None:
        return Credential(handle)
    if cause is None:
        explained = CredentialError(f"{doing}: {unusable}", kind=Kind.NO_TICKET, hint=gss_library.TICKET_HINT)
    raise explained from cause


def _from(cache: bytes | None) -> gss_library.creds.Creds:
    """The credential in ``cache``, None: in the default one; else by the client keytab, into
    it.  Raises GSSError."""
    if cache is None:
        handle = gss_library.creds.acquire_cred(None, mechs=[gss_library.KRB5], usage="initiate").creds
    else:
        handle = gss_library.ext_cred_store.acquire_cred_from(
            {b"ccache": cache}, mechs=[gss_library.KRB5], usage="initiate"
        ).creds
    # This is where libkrb5 looks into the cache at last.
    gss_library.creds.inquire_cred(handle, lifetime=True, usage=False, mechs=False)
    return handle


def _default() -> bytes:
    """The default cache's name, empty if libkrb5 has something against its configuration: it
    will say so itself."""
    from lgss_keyring.worker import krb5_library

    try:
        return krb5_library.cc_default_name(krb5_library.init_context()) or b""
    except krb5_library.Krb5Error:
        return b""


def _of_collection(default: bytes, service: str) -> bytes | None:
    """The cache that krb5.conf, k5identity(5) or the realm's name choose for ``service`` out
    of several; None: the default one.

    Asked for here because GSS-API asks by the first call that knows the acceptor, and the
    look into the credential that tells a missing ticket from an expired one comes before.
    """
    if default.partition(b":")[0] not in COLLECTIONS:
        return None
    from lgss_keyring.worker import krb5_library

    try:
        two = list(zip(range(2), krb5_library.cccol_iter(krb5_library.init_context()), strict=False))
        return krb5_library.selected(service) if len(two) == 2 else None
    except krb5_library.Krb5Error:
        return None


def _unusable(name: bytes, uid: int) -> str:
    """Why libkrb5 must not open the default cache, or empty: it is not there, or another's.

    Anybody may have made it: /tmp is everybody's.  What is this user's there nobody else
    can replace (the folder is sticky), so a look at the name will do, and it keeps the
    service tickets that libkrb5 adds; what is not there now must not be taken later.
    """
    from lgss_keyring.worker import krb5_library

    if not name:
        return ""
    kind, colon, path = name.partition(b":")
    try:
        if not krb5_library.exists(name, uid):
            return _none(name)
    except OSError:
        return ""  # a container without /proc/keys
    if colon and kind not in (b"FILE", b"WRFILE", b"DIR"):
        return ""
    right = stat.S_ISDIR if kind == b"DIR" else stat.S_ISREG
    if kind == b"DIR" and path.startswith(b":"):
        path = os.path.dirname(path[1:])
    path = path if colon else name
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) and status.st_uid in (uid, 0):
            status = os.stat(path)  # another's link could lead elsewhere by the time it is used
    except FileNotFoundError:
        return _none(name)
    except OSError:
        return ""
    if right(status.st_mode) and status.st_uid == uid:
        return ""
    return f"the default cache {name.decode('utf-8', 'replace')} is another user's, or of another kind"


def _none(name: bytes) -> str:
    return f"No Kerberos credentials available (default cache: {name.decode('utf-8', 'replace')})"


def _elsewhere(uid: int, report: Report) -> gss_library.creds.Creds | None:
    # Here only, as few need it: 6 ms.
    from lgss_keyring.worker import krb5_library

    try:
        context = krb5_library.init_context()
        now = time.time()
        best: tuple[int, str, krb5_library.Creds] | None = None
        for name, tgt in _candidates(context, uid):
            if tgt.end > now and (best is None or tgt.end > best[0]):
                best = (tgt.end, name, tgt.creds)
        if best is None:
            return None
        report("info", f"the default cache has no valid credential; using {best[1]}")
        return _from(krb5_library.into_memory(context, best[2]))
    except (krb5_library.Krb5Error, gss_library.GSSError, LgssError, OSError) as error:
        report("debug", f"no other credential can be used: {error}")
        return None


def _candidates(context: krb5_library.Context, uid: int) -> Iterator[tuple[str, krb5_library.Tgt]]:
    from lgss_keyring.worker import krb5_library

    # A FILE cache is alone in its collection, and was looked at: libkrb5 must not open it
    # again if it is not this user's.
    default = _default()
    several = default.partition(b":")[0] in COLLECTIONS and not _unusable(default, uid)
    for cache in krb5_library.cccol_iter(context) if several else ():
        tgt = krb5_library.tgt_of(context, cache)
        if tgt is not None:
            yield str(cache), tgt
    # /proc/self belongs to root while we are not dumpable, and a file that is open has
    # no other name that surely stays its.
    identity.dumpable(True)
    try:
        for path, descriptor in _files(uid):
            name = b"FILE:/proc/self/fd/%d" % descriptor
            tgt = krb5_library.tgt_of(context, krb5_library.cc_resolve(context, name))
            if tgt is not None:
                yield path, tgt
    finally:
        identity.dumpable(False)


def _files(uid: int) -> Iterator[tuple[str, int]]:
    """Each fitting file, open while the caller looks at it."""
    for folder in FALLBACK:
        left = limits.CACHE_FILES
        folder = folder.format(uid=uid)
        try:
            entries = os.scandir(os.fsencode(folder))
        except OSError:
            continue
        with entries:
            for _, entry in zip(range(limits.TMP_ENTRIES), entries, strict=False):
                if MARK not in entry.name:
                    continue
                try:
                    # Others' names do not count, or they could hide this user's.
                    if entry.stat(follow_symlinks=False).st_uid != uid:
                        continue
                    left -= 1
                    if left < 0:
                        break
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    descriptor = os.open(entry.path, flags)
                except OSError:
                    continue
                try:
                    status = os.fstat(descriptor)
                    if (
                        stat.S_ISREG(status.st_mode)
                        and status.st_uid == uid
                        and status.st_mode & 0o600 == 0o600
                    ):
                        yield os.fsdecode(entry.path), descriptor
                finally:
                    os.close(descriptor)


def preload() -> None:
    """Import what only the search elsewhere needs: for a process that is about to enter
    a mount namespace."""
    from lgss_keyring.worker import krb5_library  # noqa: F401
