"""What is wrong with krb5.conf, in words that name the file.

libkrb5's errors do not name it.  libkrb5 goes on without a file that is missing, and for one that
it may not read it says only "Permission denied".
"""

from __future__ import annotations

import errno
import os
import stat

from lgss_keyring.formats.errors import ConfigError, Kind
from lgss_keyring.formats.outcome import Failed
from lgss_keyring.system import fingerprint
from lgss_keyring.worker import identity, limits, paths

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


# Which files it consists of.


def files(settings: Krb5) -> tuple[str, ...]:
    """krb5.conf, and all files and folders that it includes, each with a fingerprint: two results differ
    if libkrb5 may read something else.

    A path, a blank, and what :func:`~lgss_keyring.system.fingerprint.of` returns.  Only a file of root's
    is read, the others are looked at: root calls this, too.
    """
    found: dict[str, str] = {}
    waiting = (settings.config or identity.DEFAULT_KRB5_CONFIG).split(":")[::-1]
    while waiting and len(found) < limits.KRB5_CONF_FILES:
        path = waiting.pop()
        if path not in found:
            found[path], included = _look_at(path)
            waiting += included[::-1]
    return tuple(f"{path} {mark}" for path, mark in found.items())


def have_changed(known: Sequence[str]) -> bool:
    """Whether any of the files ``known``, a result of :func:`files`, is not what it was.  Reads none."""
    return any(fingerprint.of(path) != mark for path, _, mark in (each.rpartition(" ") for each in known))


def _look_at(path: str) -> tuple[str, list[str]]:
    """The fingerprint of a file or folder, and the paths that it includes."""
    mark = fingerprint.NO_FILE
    try:
        status = os.stat(path)
        mark = fingerprint.of_status(status)
        if stat.S_ISDIR(status.st_mode):
            return mark, [f"{path}/{name}" for name in sorted(os.listdir(path)) if _is_included(name)]
        if not stat.S_ISREG(status.st_mode) or status.st_uid != 0:
            return mark, []
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, limits.KRB5_CONF_BYTES)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return mark, []  # of a file that cannot be read, too: else it would seem to change at each look
    words = (line.split(None, 1) for line in text.split(b"\n") if line.lstrip().startswith(b"include"))
    return mark, [
        os.fsdecode(each[1].strip())
        for each in words
        if len(each) == 2 and each[0] in (b"include", b"includedir")
    ]


def _is_included(name: str) -> bool:
    """Whether libkrb5 reads a file of that name in a folder that is included (krb5.conf(5))."""
    if name.endswith(".conf") and not name.startswith("."):
        return True
    return name.isascii() and name.replace("-", "").replace("_", "").isalnum()
