"""The credential of the machine (docs/protocol.md 4, root credentials).

Looked for in this order, and the first that is there is taken:

1. a good TGT of a fitting principal in root's default cache (or ``[krb5] ccache``),
   which is read and never written: what is used is a copy in memory;
2. the first fitting entry of the keytab: a good TGT of that principal which an earlier
   upcall has left in our private cache, or a new one from the KDC.

The private cache is a file for each principal in /run/lgss (``[krb5] ccache_directory``).
Whoever finds no good TGT there takes a lock, looks again, asks the KDC, writes a file
beside it and renames it: a crash at any point leaves the old cache or none, the kernel
drops the lock, and a hundred upcalls of one mount make one AS exchange.  The lock is no
promise, though: who waits for it longer than ``limits.LOCK_SECONDS`` asks the KDC itself
(with the C program one dead KDC stalls every upcall of root: docs/security.md,
"What programs of this kind taught").

A keytab in a container (:class:`~lgss_keyring.formats.config.ContainerKrb5`) is used alone,
without any cache of the host.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time

from lgss_keyring.formats.config import ContainerKrb5
from lgss_keyring.formats.errors import CredentialError, Kind, LgssError
from lgss_keyring.worker import gss_library, krb5_library, limits, names
from lgss_keyring.worker.creds import Credential

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Report

# First components of principals, by flag; lustre_mgs from a cache only.
COMPONENTS = {"r": (b"lustre_root", b"host", b"lustre_role"), "m": (b"lustre_mds",), "o": (b"lustre_oss",)}
FROM_CACHE = b"lustre_mgs"
ANY_HOST = b"lustre_role"


def acquire(request: UpcallRequest, config: Config, service: str, report: Report) -> Credential:
    """A credential for initiating (to any ``service``), its TGT fetched from the KDC if need be.

    Raises CredentialError: no keytab, no fitting entry in it, or the KDC's refusal; and
    ResolutionError if this node's own name is needed and unknown.
    """
    context = krb5_library.init_context()
    fits = Fit(context, request, config)
    krb5 = config.krb5
    if not isinstance(krb5, ContainerKrb5):
        found = _from_cache(context, krb5.ccache.encode(), fits, report)
        if found is not None:

            def without() -> gss_library.creds.Creds:
                report(
                    "warning", f"the KDC does not take the cached ticket of {found.client}: using the keytab"
                )
                return _by_keytab(context, config, fits, report).handle

            return Credential(_handle(krb5_library.into_memory(context, found)), without)
    return _by_keytab(context, config, fits, report)


def _by_keytab(context: krb5_library.Context, config: Config, fits: Fit, report: Report) -> Credential:
    krb5 = config.krb5
    keytab, principal = _keytab_entry(context, krb5.keytab, fits)
    if isinstance(krb5, ContainerKrb5):
        return Credential(
            _handle(krb5_library.into_memory(context, _ask_kdc(context, keytab, principal, report)))
        )
    private = PrivateCache(krb5.ccache_directory, krb5.config, krb5.keytab, principal)

    def ask() -> krb5_library.Creds:
        return _ask_kdc(context, keytab, principal, report)

    tgt = private.read(context)
    if tgt is None:
        return Credential(_handle(krb5_library.into_memory(context, private.renew(context, ask, report))))

    def anew() -> gss_library.creds.Creds:
        report("warning", f"the KDC does not take {principal}'s cached ticket: getting a new one")
        return _handle(krb5_library.into_memory(context, private.renew(context, ask, report, stale=tgt)))

    report("debug", f"a ticket of {principal} is in {private.path}")
    return Credential(_handle(krb5_library.into_memory(context, tgt)), anew)


class Fit:
    """Which principals may stand for this machine (docs/protocol.md 4)."""

    def __init__(self, context: krb5_library.Context, request: UpcallRequest, config: Config) -> None:
        self._request = request
        self._config = config
        self._components = {component for flag in request.flags for component in COMPONENTS[flag]}
        realm = request.realm.encode("utf-8", "surrogateescape") if request.realm else None
        try:
            self._realm = realm or krb5_library.get_default_realm(context)
        except krb5_library.Krb5Error as error:
            raise krb5_library.explain(error, "this machine has no default realm", CredentialError) from error
        self._wanted = _configured(context, config.krb5.principal)
        self._host: bytes | None = None

    def __call__(self, principal: krb5_library.Principal, from_cache: bool = False) -> bool:
        """Whether ``principal`` fits; asks the name service only if all depends on it."""
        if self._wanted is not None:
            return str(principal) == self._wanted
        parts = principal.components
        if principal.realm != self._realm or not 1 <= len(parts) <= 2:
            return False
        if parts[0] not in self._components and not (from_cache and parts[0] == FROM_CACHE):
            return False
        if len(parts) == 1:
            return self._request.flags == "r"
        return parts[0] == ANY_HOST or parts[1].lower() == self._own_host()

    def _own_host(self) -> bytes:
        if self._host is None:
            own = self._request.self_nid
            self._host = names.own_name(own, self._config).lower().encode("ascii", "replace")
        return self._host

    def __str__(self) -> str:
        """The principals that would do, for people."""
        if self._wanted is not None:
            return self._wanted
        try:
            host = self._own_host().decode("ascii", "replace")
        except LgssError:
            host = "HOST"
        names = sorted(f"{name.decode()}/{host}" for name in self._components)
        return f"{', '.join(names)} (realm {self._realm.decode('utf-8', 'replace')})"


def _configured(context: krb5_library.Context, name: str) -> str | None:
    """``[krb5] principal`` with its realm; None where the rule decides."""
    if not name:
        return None
    try:
        return str(krb5_library.parse_name_flags(context, name.encode()))
    except krb5_library.Krb5Error as error:
        raise krb5_library.explain(
            error, f"[krb5] principal {name} is no principal", CredentialError
        ) from error


def _handle(cache: bytes) -> gss_library.creds.Creds:
    try:
        return gss_library.ext_cred_store.acquire_cred_from(
            {b"ccache": cache}, mechs=[gss_library.KRB5], usage="initiate"
        ).creds
    except gss_library.GSSError as error:
        raise gss_library.explain(error, "cannot use the machine's ticket", CredentialError) from error


def _from_cache(
    context: krb5_library.Context, name: bytes, fits: Fit, report: Report
) -> krb5_library.Creds | None:
    """The TGT in ``name`` (empty: root's default cache), if it is good and fits."""
    try:
        name = name or krb5_library.cc_default_name(context) or b""
        if not krb5_library.exists(name, os.getuid()):
            return None
        with krb5_library.own_cache(name, os.getuid()) as safe:
            tgt = krb5_library.tgt_of(context, krb5_library.cc_resolve(context, safe))
    except krb5_library.Krb5Error:
        return None
    except LgssError as error:
        report("debug", error.reason)
        return None
    if tgt is None or not tgt.good():
        return None
    shown = name.decode("utf-8", "replace")
    if not fits(tgt.creds.client, from_cache=True):
        report("debug", f"{tgt.creds.client} in cache {shown} is not for this")
        return None
    report("debug", f"a ticket of {tgt.creds.client} is in cache {shown}")
    return tgt.creds


def _keytab_entry(
    context: krb5_library.Context, name: str, fits: Fit
) -> tuple[krb5_library.KeyTab, krb5_library.Principal]:
    """The keytab, and the principal of its first fitting entry."""
    _check_readable(name)
    try:
        keytab = krb5_library.kt_resolve(context, name.encode())
        # One entry for each enctype: ask once for each principal.
        seen: dict[str, bool] = {}
        for entry in keytab:
            principal = entry.principal
            text = str(principal)
            if text not in seen:
                seen[text] = fits(principal)
                if seen[text]:
                    # A copy: the library frees an entry's principal with the entry
                    # (krb5 0.10; a crash of the worker, seen).
                    return keytab, krb5_library.copy_principal(context, principal)
    except krb5_library.Krb5Error as error:
        raise krb5_library.explain(error, f"cannot read keytab {name}", CredentialError) from error
    raise CredentialError(
        f"keytab {name} has none of the principals {fits}; it has {', '.join(sorted(seen)[:5]) or 'nothing'}",
        kind=Kind.NOT_IN_KEYTAB,
        hint="create one of them and add it to the keytab (kadmin: addprinc -randkey, ktadd)",
    )


def _ask_kdc(
    context: krb5_library.Context,
    keytab: krb5_library.KeyTab,
    principal: krb5_library.Principal,
    report: Report,
) -> krb5_library.Creds:
    report("debug", f"getting a ticket for {principal} from the KDC")
    try:
        options = krb5_library.get_init_creds_opt_alloc(context)
        return krb5_library.get_init_creds_keytab(context, principal, options, keytab)
    except krb5_library.Krb5Error as error:
        raise krb5_library.explain(
            error, f"cannot get a ticket for {principal} by the machine's keytab", CredentialError
        ) from error


class PrivateCache:
    """Our own file for one principal's TGT, shared by all upcalls of this machine."""

    def __init__(self, directory: str, *identity: object) -> None:
        """``identity``: all that the ticket depends on, the principal last."""
        self._directory = directory
        # The name is for people, the number keeps different ones apart.
        told = "\0".join(str(part) for part in identity).encode("utf-8", "surrogateescape")
        name = "".join(c if c.isalnum() or c in "._-@" else "_" for c in str(identity[-1]))[:100]
        self.path = f"{directory}/{name}.{hashlib.sha256(told).hexdigest()[:12]}"

    def read(self, context: krb5_library.Context) -> krb5_library.Creds | None:
        """The TGT in it, if it is good."""
        try:
            if not os.path.exists(self.path) or not _safe(self._directory):
                return None
            tgt = krb5_library.tgt_of(
                context, krb5_library.cc_resolve(context, b"FILE:" + self.path.encode())
            )
        except krb5_library.Krb5Error:
            return None
        return tgt.creds if tgt is not None and tgt.good() else None

    def renew(
        self,
        context: krb5_library.Context,
        ask: Callable[[], krb5_library.Creds],
        report: Report,
        stale: krb5_library.Creds | None = None,
    ) -> krb5_library.Creds:
        """The TGT that somebody else has put there meanwhile, or by ``ask``, then put there.
        ``stale`` is one that is no good, whatever it says of itself."""
        try:
            lock = self._lock()
        except OSError as error:
            report("warning", f"no ticket can be kept in {self._directory}: {error.strerror}")
            return ask()
        if lock is None:
            report("debug", f"another upcall holds {self.path}.lock; not waiting for it any longer")
            return ask()
        try:
            creds = self.read(context)
            if creds is None or (stale is not None and creds.ticket == stale.ticket):
                creds = ask()
                self._write(context, creds, report)
            return creds
        finally:
            os.close(lock)

    def _lock(self) -> int | None:
        """A descriptor that holds the lock, or None after ``limits.LOCK_SECONDS``."""
        try:
            os.mkdir(self._directory, 0o700)
        except FileExistsError:
            pass
        if not _safe(self._directory):
            raise OSError(errno.EPERM, "others than root may write there")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{self.path}.lock", flags, 0o600)
        end = time.monotonic() + limits.LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    os.close(descriptor)
                    return None
                time.sleep(limits.LOCK_POLL_SECONDS)
            else:
                return descriptor

    def _write(self, context: krb5_library.Context, creds: krb5_library.Creds, report: Report) -> None:
        # Only the lock's holder writes this name, so a crash leaves one file at most,
        # and the next writer begins it anew (libkrb5 unlinks it first).
        new = f"{self.path}.new"
        try:
            krb5_library.store_in(context, b"FILE:" + new.encode(), creds)
            os.rename(new, self.path)
        except (OSError, krb5_library.Krb5Error) as error:
            report("warning", f"the ticket cannot be kept in {self.path}: {error}")


def _safe(directory: str) -> bool:
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022


def _check_readable(keytab: str) -> None:
    # libkrb5 says "no credentials" for a keytab that is not there; say it in words.
    if keytab.startswith("FILE:"):
        keytab = keytab[5:]
    elif not keytab.startswith("/"):
        return
    try:
        os.close(os.open(keytab, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        raise CredentialError(
            f"cannot open keytab {keytab}: {error.strerror}",
            errno=errno.ENOKEY,
            kind=Kind.KEYTAB_MISSING if error.errno == errno.ENOENT else Kind.KEYTAB_UNREADABLE,
            hint="install the machine's keytab there, or set [krb5] keytab",
        ) from error
