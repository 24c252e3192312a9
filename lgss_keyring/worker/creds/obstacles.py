"""Why a user's default cache cannot be used, with words that say what to do.

libkrb5 says "No Kerberos credentials available" in most of these cases, and kinit(1), which the
user would run then, does not help.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from lgss_keyring.formats.errors import GSS_S_CREDENTIALS_EXPIRED, CredentialError, Kind
from lgss_keyring.worker import gss_library, krb5_library, paths
from lgss_keyring.worker.creds import cache_owner


def before_use(name: bytes, uid: int) -> CredentialError | None:
    """Why libkrb5 must not, or cannot, open the default cache ``name`` as ``uid``; None if it may.

    It may be missing, or another user's, or in a folder that is closed.  A look at the name is
    enough, because in a sticky folder nobody else can replace a file of this user's.  So libkrb5
    may open the cache by its name, and add service tickets to it.  A file that is missing now must
    not be used either: anybody could make it before libkrb5 opens it.
    """
    if not name:
        return None
    try:
        if not cache_owner.exists(name, uid):
            return _no_cache(name)
    except OSError:
        return None  # a container without /proc/keys
    path = cache_owner.path_of(name)
    if not path:
        return None
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode) and status.st_uid in (uid, 0):
            status = os.stat(path)  # another's link could lead elsewhere by the time it is used
    except FileNotFoundError:
        return _no_cache(name)
    except PermissionError:
        return _closed(name, path, uid)
    except OSError:
        return None
    return _foreign(name, path, status, uid)


def _foreign(name: bytes, path: str, status: os.stat_result, uid: int) -> CredentialError | None:
    is_folder = name.startswith(b"DIR:")
    if status.st_uid != uid:
        owner = "root" if status.st_uid == 0 else f"uid {status.st_uid}"
        return _unusable(
            name,
            f"the default cache {_shown(name)} belongs to {owner}, and uid {uid} cannot replace it",
            f"remove it as root (rm {'-r ' if is_folder else ''}{path}), then let the user run kinit",
        )
    if not (stat.S_ISDIR if is_folder else stat.S_ISREG)(status.st_mode):
        needed = "folder" if is_folder else "regular file"
        problem = f"the default cache {_shown(name)} is no {needed}"
        return _unusable(name, problem, f"remove {path}, then let the user run kinit")
    return None


def behind_failure(context: krb5_library.Context, name: bytes, kind: str) -> CredentialError | None:
    """What libkrb5's failure of ``kind`` with the cache ``name`` does not say: whose ticket has
    expired, and when; or that the cache's server does not run.  None if nothing more is known."""
    try:
        cache = krb5_library.cc_resolve(context, name)
        if kind != Kind.TICKET_EXPIRED:
            krb5_library.tickets_of(cache)
            return None
        ticket = krb5_library.tgt_of(cache)
    except krb5_library.Krb5Error as error:
        return _no_kcm(name) if error.err_code == krb5_library.KCM_NO_SERVER else None
    if ticket is None or ticket.end > time.time():
        return None
    ended = krb5_library.shown_time(ticket.end)
    return CredentialError(
        f"the ticket of {ticket.creds.client} in {_shown(name)} expired at {ended}",
        errno=errno.EKEYEXPIRED,
        major=GSS_S_CREDENTIALS_EXPIRED,
        kind=Kind.TICKET_EXPIRED,
        hint=gss_library.TICKET_HINT,
        cache=cache_owner.path_of(name),
    )


def _closed(name: bytes, path: str, uid: int) -> CredentialError:
    folder = paths.closed_folder(path) or os.path.dirname(path)
    return _unusable(
        name,
        f"the default cache {_shown(name)} cannot be reached: permission denied on folder {folder}",
        f"open {folder} to uid {uid} (chmod, chown), or change default_ccache_name in krb5.conf",
    )


def _no_kcm(name: bytes) -> CredentialError:
    return _unusable(
        name,
        f"no server for KCM caches is running (default cache: {_shown(name)})",
        "start sssd-kcm (systemctl enable --now sssd-kcm.socket), or change default_ccache_name in krb5.conf",
    )


def _unusable(name: bytes, problem: str, hint: str) -> CredentialError:
    return CredentialError(problem, kind=Kind.CACHE_UNUSABLE, hint=hint, cache=cache_owner.path_of(name))


def _no_cache(name: bytes) -> CredentialError:
    return CredentialError(
        f"No Kerberos credentials available (default cache: {_shown(name)})",
        kind=Kind.NO_TICKET,
        hint=gss_library.TICKET_HINT,
        cache=cache_owner.path_of(name),
    )


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")
