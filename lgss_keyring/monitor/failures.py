"""Writing notes of failures that the next attempt cannot change, by which the front rejects keys.

:mod:`lgss_keyring.front.known_failure` says what a note is, and reads it.
"""

from __future__ import annotations

import os

from lgss_keyring.formats import config
from lgss_keyring.formats.errors import Kind, LgssError
from lgss_keyring.front import arguments, known_failure
from lgss_keyring.front.answer import FAILURE_LIFE
from lgss_keyring.system import keyrings, own_folder
from lgss_keyring.worker import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.formats.outcome import Failed
    from lgss_keyring.front.arguments import Call

# The kinds that are noted, and whether the failure is about one acceptor only.
NOTED = {
    Kind.KEYTAB_MISSING: False,
    Kind.KEYTAB_UNREADABLE: False,
    Kind.NOT_IN_KEYTAB: False,
    Kind.CLIENT_UNKNOWN: False,
    Kind.CLIENT_EXPIRED: False,
    Kind.CLIENT_REVOKED: False,
    Kind.PASSWORD_EXPIRED: False,
    Kind.KRB5_CONF: False,
    Kind.NO_TICKET: False,
    Kind.CACHE_UNUSABLE: False,
    Kind.NO_CREDENTIAL: False,
    Kind.TICKET_EXPIRED: False,
    Kind.KDC_UNREACHABLE: False,
    Kind.SERVICE_UNKNOWN: True,
    Kind.SERVICE_LOCKED: True,
    Kind.SERVICE_EXPIRED: True,
}
NOTES_LIMIT = 1000
"""How many notes there may be; old ones are removed when there are so many."""


def note(call: Call, request: UpcallRequest, failure: Failed, settings: Config, is_word: bool) -> int:
    """Note ``failure`` if the next attempt cannot change it; returns the seconds that the note is
    good for, 0 if there is none.  ``is_word``: the key is not instantiated yet.

    The first note of a cause of the machine's lives for FAILURE_LIFE, each further one twice as
    long, up to LONGEST_LIFE.  Raises nothing.
    """
    one_acceptor = NOTED.get(failure.kind)
    if failure.kind == Kind.LIMIT and is_word:
        one_acceptor = True  # it may have been the name service, slow for this one name
    if one_acceptor is None or not call.failure_note or not _is_for_others(request):
        return 0
    try:
        scope = known_failure.acceptor(call.callout) if one_acceptor else "*"
        life = FAILURE_LIFE
        if request.is_machine:
            life = _next_life(call.failure_note, failure, scope)
        lines = [f"{failure.errno} {known_failure.now() + life:.3f} {life} {failure.kind}", scope]
        for file in _causes(call, request, failure, settings):
            lines.append(f"{known_failure.fingerprint(file)} {file}")
        return life if _write(call.failure_note, lines) else 0
    except (OSError, ValueError):
        return 0  # where none can be kept, nothing is lost


def _is_for_others(request: UpcallRequest) -> bool:
    """Whether the failure of this request holds for other requests of its uid, or of the machine."""
    if request.is_machine and request.requestor_uid != 0:
        # An ordinary user can forge such a request, and choose an acceptor that makes it
        # fail: root's requests must not be rejected for that.
        return False
    if known_failure.is_elsewhere(str(request.pid)):
        return False
    # The front links only keyrings that hold credentials; other requestors may have others.
    try:
        return not set(request.keyrings) & set(keyrings.members(keyrings.SESSION))
    except LgssError:
        return True


def forget(call: Call) -> None:
    """Remove the note, because the request works again."""
    try:
        os.unlink(call.failure_note)
    except OSError:
        pass


def _next_life(name: str, failure: Failed, scope: str) -> int:
    """Twice the life of the last note, if that was of the same cause and not long ago."""
    try:
        first, last_scope = known_failure.read(name)[:2]
        number, until, life, kind = first.split(" ", 3)
        is_same = (int(number), last_scope, kind) == (failure.errno, scope, failure.kind)
        if is_same and abs(known_failure.now() - float(until)) < known_failure.LONGEST_LIFE:
            return max(FAILURE_LIFE, min(2 * int(life), known_failure.LONGEST_LIFE))
    except ValueError:
        pass
    return FAILURE_LIFE


def _causes(call: Call, request: UpcallRequest, failure: Failed, settings: Config) -> Sequence[str]:
    """The files whose change may end the failure."""
    krb5 = settings.krb5
    files = [call.options.get("config") or config.DEFAULT_PATH]
    files += (krb5.config or identity.DEFAULT_KRB5_CONFIG).split(":")
    if request.is_machine:
        files += [krb5.keytab.removeprefix("FILE:"), krb5.ccache.removeprefix("FILE:") or "/tmp/krb5cc_0"]  # noqa: S108
        files.append("/etc/hosts")  # this host's name is part of the principal's
    else:
        files.append(_cache_of_user(failure.cache, request.uid))
    return [file for file in files if file.startswith("/") and file.isprintable() and len(file) < 200]


def _cache_of_user(claimed: str, uid: int) -> str:
    """The default cache that the user's worker has ``claimed``, if root may look at it; else the
    usual one.

    The front looks at it as root, while a caller waits.  So it must be in no folder of the
    user's: a file system of their own there could hold root up.  A DIR cache's folder changes
    when a cache in it is made or replaced.
    """
    for folder in ("/tmp/", f"/run/user/{uid}/"):  # noqa: S108
        name = claimed.removeprefix(folder)
        if claimed.startswith(folder) and name not in ("", ".", "..") and "/" not in name:
            return claimed
    return f"/tmp/krb5cc_{uid}"  # noqa: S108


def _write(name: str, lines: Sequence[str]) -> bool:
    """Write the note, as a whole or not at all; returns whether it was.  Raises OSError."""
    folder = arguments.NOTES
    own_folder.prepare(folder)
    if not os.path.exists(name) and not _has_room(folder):
        return False
    new = f"{name}.{os.getpid()}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, os.fsencode("\n".join(lines)))
        finally:
            os.close(descriptor)
        os.rename(new, name)
    except OSError:
        os.unlink(new)
        raise
    return True


def _has_room(folder: str) -> bool:
    """Whether there may be one more note; removes old ones if there are many.  A user
    with subordinate uids (subuid(5)) could fill /run with notes otherwise."""
    names = [each for each in os.listdir(folder) if each.startswith("failed-")]
    if len(names) < NOTES_LIMIT:
        return True
    now = known_failure.now()
    gone = 0
    for each in names:
        try:
            until = float(known_failure.read(f"{folder}/{each}")[0].split(" ")[1])
        except (IndexError, ValueError):
            until = 0.0  # damaged, or removed just now
        # A damaged note may also hold for ever (inf), or until nan, for which each comparison is false.
        if not abs(until - now) <= known_failure.LONGEST_LIFE:
            os.unlink(f"{folder}/{each}")
            gone += 1
    return gone > 0
