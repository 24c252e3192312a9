"""The credential of an ordinary user, looked for as that user (docs/protocol.md 4).

First comes the user's default cache, as libkrb5 computes it for the uid that this process has
become, if it holds a valid credential or if the user's client keytab gives one (of a
collection, the cache that libkrb5 chooses for this acceptor).  Else it is the credential that
is valid for longest among

- the other caches of the user's default collection (DIR, KEYRING, KCM), and
- files whose name contains ``krb5cc`` in /tmp and in /run/user/UID: regular, the user's own,
  for them to read and write.  No link is followed.

What comes of these is used as a copy in memory, so that nothing is written to a cache that is
not the default one.
"""

from __future__ import annotations

import os
import stat
import time

from lgss_keyring.formats.errors import CredentialError, Kind, LgssError
from lgss_keyring.worker import gss_library, krb5_library, limits
from lgss_keyring.worker.creds import Credential, cache_owner, obstacles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report

FALLBACK_FOLDERS = ("/tmp", "/run/user/{uid}")  # noqa: S108
NAME_PART = b"krb5cc"
COLLECTION_TYPES = (b"DIR", b"KEYRING", b"KCM")


def acquire(
    request: UpcallRequest, config: Config, service: str, report: Report, rejected: set[bytes]
) -> Credential:
    """A credential for initiating to ``service`` (name@host).  ``rejected`` is not used: no ticket is
    kept here.

    Raises CredentialError, which says what is wrong with the default cache: there is none, its
    ticket has expired, it cannot be read; and ConfigError for a krb5.conf that libkrb5 refuses.
    """
    problem = f"uid {request.uid} has no usable Kerberos credential"
    context = krb5_library.new_context()
    default = _default_name(context)
    obstacle = obstacles.before_use(default, request.uid)
    cause: gss_library.GSSError | None = None
    cache: bytes | None = None
    memory: krb5_library.MemoryCache | None = None
    try:
        # With an obstacle libkrb5 would use the client keytab, and so does this. But its ticket must
        # not be written into a file that somebody else has made, or is about to make.
        if obstacle is None:
            cache = _chosen_for(service, default)
        else:
            memory = krb5_library.MemoryCache(context)
            cache = memory.name
        return _credential(cache, memory)
    except gss_library.GSSError as error:
        explained = gss_library.explain(error, problem, CredentialError)
        if obstacle is None:
            obstacle = obstacles.behind_failure(context, cache or default, explained.kind)
            cause = error
        elif explained.kind not in (Kind.NO_TICKET, Kind.NO_CREDENTIAL):
            obstacle, cause = None, error
    elsewhere = _elsewhere(context, default, request.uid, report)
    if elsewhere is not None:
        return elsewhere
    if obstacle is not None:
        obstacle.reason = f"{problem}: {obstacle.reason}"
        raise obstacle from cause
    explained.cache = cache_owner.path_of(default)
    raise explained from cause


def _credential(cache: bytes | None, memory: krb5_library.MemoryCache | None) -> Credential:
    """The credential in ``cache`` (None: the default one), which is that of ``memory`` if there is one; if
    it has none, one that the client keytab gives, which is put there.  Raises GSSError."""
    if cache is None:
        handle = gss_library.creds.acquire_cred(None, mechs=[gss_library.KRB5], usage="initiate").creds
    else:
        handle = gss_library.ext_cred_store.acquire_cred_from(
            {b"ccache": cache}, mechs=[gss_library.KRB5], usage="initiate"
        ).creds
    # Only this call makes libkrb5 look into the cache.
    found = gss_library.creds.inquire_cred(handle, lifetime=True, usage=False, mechs=False)
    return Credential(handle, memory=memory, name=gss_library.shown_name(found.name))


def _default_name(context: krb5_library.Context) -> bytes:
    """The default cache's name; empty if libkrb5 has something against its configuration, which
    it says itself later."""
    try:
        return krb5_library.cc_default_name(context) or b""
    except krb5_library.Krb5Error:
        return b""


def _chosen_for(service: str, default: bytes) -> bytes | None:
    """The cache that krb5.conf, k5identity(5) or the realm's name choose for ``service`` out
    of several; None: the default one.

    It is asked for here because GSS-API asks only in the first call that knows the acceptor.  The
    look into the credential, which tells a missing ticket from an expired one, comes before that.
    """
    if default.partition(b":")[0] not in COLLECTION_TYPES:
        return None
    try:
        caches = krb5_library.cccol_iter(krb5_library.new_context())
        several = len(list(zip(range(2), caches, strict=False))) == 2
        return krb5_library.selected(service) if several else None
    except krb5_library.Krb5Error:
        return None


def _elsewhere(context: krb5_library.Context, default: bytes, uid: int, report: Report) -> Credential | None:
    """The credential of ``uid`` that is valid for longest outside of the ``default`` cache."""
    try:
        now = time.time()
        valid = (each for each in _candidates(context, default, uid) if each[1].end > now)
        best = max(valid, key=lambda each: each[1].end, default=None)
        if best is None:
            return None
        name, tgt = best
        report("info", f"the default cache has no valid credential; using {name}")
        memory = krb5_library.MemoryCache(context, tgt.creds)
        return _credential(memory.name, memory)
    except (krb5_library.Krb5Error, gss_library.GSSError, LgssError, OSError) as error:
        report("debug", f"no other credential can be used: {error}")
        return None


def _candidates(
    context: krb5_library.Context, default: bytes, uid: int
) -> Iterator[tuple[str, krb5_library.Ticket]]:
    """The name and the TGT of each cache elsewhere that has a TGT."""
    # A FILE cache is alone in its collection, and was looked at: libkrb5 must not open it
    # again if it is not this user's.
    is_collection = default.partition(b":")[0] in COLLECTION_TYPES
    if is_collection and obstacles.before_use(default, uid) is None:
        for cache in krb5_library.cccol_iter(context):
            tgt = krb5_library.tgt_of(cache)
            if tgt is not None:
                yield str(cache), tgt
    for folder in FALLBACK_FOLDERS:
        for path in _cache_files(os.fsencode(folder.format(uid=uid)), uid):
            tgt = krb5_library.tgt_of(krb5_library.cc_resolve(context, b"FILE:" + path))
            if tgt is not None:
                yield os.fsdecode(path), tgt


def _cache_files(folder: bytes, uid: int) -> Iterator[bytes]:
    """The path of each fitting file in ``folder``, for libkrb5 to open by that path.

    This process must never be dumpable, or a process of that uid could trace it and run code
    in it, outside of the limits (cgroup, memory) that hold for the user.  So nothing is opened
    by a descriptor in /proc/self, and the folder must be one where nobody else can put another
    file in the place of this user's.  Users who do that to themselves gain nothing.
    """
    try:
        if not cache_owner.is_safe_folder(folder, uid):
            return
        entries = os.scandir(folder)
    except OSError:
        return
    left = limits.CACHE_FILES
    with entries:
        for _, entry in zip(range(limits.TMP_ENTRIES), entries, strict=False):
            if NAME_PART not in entry.name:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            # Others' names do not count, or they could hide this user's.
            if status.st_uid != uid:
                continue
            left -= 1
            if left < 0:
                return
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o600 == 0o600:
                yield entry.path
