"""What is wrong with krb5.conf, in words that name the file.

libkrb5's errors do not name it.  libkrb5 goes on without a file that is missing, and for one that
it may not read it says only "Permission denied".
"""

from __future__ import annotations

import errno
import os

from lgss_keyring.formats.errors import ConfigError, Kind
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.worker import identity, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.formats.config import Krb5

OF_A_MISSING_FILE = frozenset({Kind.NO_TICKET, Kind.NO_CREDENTIAL, Kind.KDC_UNREACHABLE, Kind.KRB5_CONF})
"""The kinds of failures that a missing krb5.conf can lead to."""


def unusable(text: str) -> ConfigError:
    """The error for files of KRB5_CONFIG that libkrb5 refuses with ``text``."""
    files = os.environ.get("KRB5_CONFIG") or identity.DEFAULT_KRB5_CONFIG
    names = [name for name in files.split(":") if name != identity.NAMES_AS_THEY_ARE]
    shown = " or ".join(names)
    return _unreadable(names) or ConfigError(
        f"cannot use krb5.conf {shown}: {text}",
        kind=Kind.KRB5_CONF,
        hint=f"correct the syntax of {shown}, or of a file that it includes (include, includedir)",
    )


def with_missing_file(failure: Failed, settings: Krb5) -> Failed:
    """``failure``; or, if there is no krb5.conf where ``[krb5] config`` says (or in its usual place,
    without that setting) and this can be the cause, a failure that says so."""
    names = (settings.config or identity.DEFAULT_KRB5_CONFIG).split(":")
    if failure.kind not in OF_A_MISSING_FILE or any(os.path.isfile(name) for name in names):
        return failure
    if not settings.config and failure.kind != Kind.KRB5_CONF:
        return failure  # DNS may have all that libkrb5 needs
    error = _unreadable(names) or ConfigError(
        f"cannot use krb5.conf {' or '.join(names)}: there is no such file (so: {failure.reason})",
        kind=Kind.KRB5_CONF,
        hint="correct [krb5] config" if settings.config else "install it",
    )
    return Failed.by(error)


def _unreadable(names: Sequence[str]) -> ConfigError | None:
    """The error for the first of these files that this user may not read; None if there is none."""
    for name in names:
        try:
            os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.EACCES:
                continue
            folder = paths.closed_folder(name)
            closed, mode = (folder, "755") if folder else (name, "644")
            return ConfigError(
                f"cannot use krb5.conf {name}: uid {os.geteuid()} may not read {closed}",
                kind=Kind.KRB5_CONF,
                hint=f"chmod {mode} {closed}: every user needs the file, and it has no secrets",
            )
    return None
