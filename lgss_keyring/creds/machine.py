"""The credential of the machine: a principal of its keytab, by PROTOCOL 4.

Through python-gssapi's credential store with a memory ccache, so that root's own
caches are neither read nor written.
"""

from __future__ import annotations

import errno
import os

from .. import _gss, nid
from ..errors import CredentialError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..callout import UpcallRequest
    from ..config import Config

# First components by flag, the first that the keytab has is taken.
COMPONENTS = {"r": ("lustre_root", "host"), "m": ("lustre_mds",), "o": ("lustre_oss",)}


def acquire(request: UpcallRequest, config: Config) -> _gss.creds.Creds:
    """A credential handle for initiating, its ticket fetched from the KDC.

    Raises CredentialError: no keytab, no fitting entry in it, or the KDC's refusal.
    """
    keytab = config.krb5.keytab
    _check_readable(keytab)
    store: dict[bytes | str, bytes | str] = {
        b"client_keytab": keytab.encode(),
        b"ccache": b"MEMORY:lgss_keyring",
    }
    missing: _gss.GSSError | None = None
    candidates = principals(request, config)
    for principal in candidates:
        name = _gss.names.import_name(principal.encode(), _gss.NameType.kerberos_principal)
        try:
            return _gss.ext_cred_store.acquire_cred_from(
                store, name, mechs=[_gss.KRB5], usage="initiate"
            ).creds
        except _gss.GSSError as error:
            explained = _gss.explain(
                error, f"cannot get a ticket for {principal} with keytab {keytab}", CredentialError
            )
            # Only the keytab's "not here" leads on: an unreachable KDC would make
            # each further candidate wait as long again.
            if explained.kind not in ("not-in-keytab", "no-ticket", "no-credential"):
                raise explained from error
            missing = error
    raise CredentialError(
        f"keytab {keytab} has none of the principals {', '.join(candidates)}",
        kind="not-in-keytab",
        hint="create one of them and add it to the keytab (kadmin: addprinc -randkey, ktadd)",
    ) from missing


def principals(request: UpcallRequest, config: Config) -> list[str]:
    """The principals that may stand for this machine, best first (PROTOCOL 4)."""
    own = nid.Nid.from_int(request.self_nid)
    host = nid.host_name(own, config.hosts) if request.self_nid else nid.own_host_name()
    realm = f"@{request.realm}" if request.realm else ""
    found = [
        f"{component}/{host}{realm}"
        for flag in "rmo"
        if flag in request.flags
        for component in COMPONENTS[flag]
    ]
    if request.flags == "r":
        found.append(f"lustre_root{realm}")
    return found


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
            kind="keytab-missing" if error.errno == errno.ENOENT else "keytab-unreadable",
            hint="install the machine's keytab there, or set [krb5] keytab",
        ) from error
